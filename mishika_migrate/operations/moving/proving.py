"""What a switch compares: history while traffic goes on, everything else under the fence.

Imports moves, verify, pg and the words.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping

from mishika_migrate import errors, events, findings, model
from mishika_migrate.operations.moving import moves
from mishika_migrate.operations.verifying import verify
from mishika_migrate.pg import journal

Emit = Callable[[events.Event], None]

_MENDS: Mapping[model.SwitchMethod, str] = {
    "replication": "`complete`, then `sync` and `cutover --method sync`, or `copy --follow --on-existing replace` anew",
    "sync": "`sync --delete-extra`",
}

_LATE = datetime.timedelta(minutes=10)
"""A row of a log is written when its request ends, and bears the time at which it began."""
_RECENT = datetime.timedelta(seconds=30)


def all_but_history(
    move: moves.Move, now: datetime.datetime, jobs: int, emit: Emit, *, rechecks: int = 0
) -> model.Proof:
    """Compares keys and core tables whole, and of logs what `history` with the same `now` leaves out.

    With `rechecks` traffic goes on: what differs is looked at again so often, and differences in spend do not count.
    """
    proof = verify.of_switch(
        move.rules,
        move.catalogs,
        move.scope(since=now - _RECENT - _LATE),
        move.end("source"),
        move.end("target"),
        name=move.name,
        jobs=jobs,
        fenced=not rechecks,
        rechecks=rechecks,
        emit=_of_note(emit),
    )
    return _of_the_way(proof, move)


def _of_the_way(proof: model.Proof, move: moves.Move) -> model.Proof:
    """By sync, rows of logs stay that only the new side has: the old one has dropped them for their age."""
    if move.method != "sync":
        return proof
    contents = [
        each
        if not move.is_log(each.table)
        else dataclasses.replace(each, target_only=0)
        if move.toward.role == "target"
        else dataclasses.replace(each, source_only=0)
        for each in proof.contents
    ]
    return dataclasses.replace(proof, contents=tuple(contents))


def _of_note(emit: Emit) -> Emit:
    """Without the tables that are equal."""

    def hear(event: events.Event) -> None:
        if not (isinstance(event, events.TableCompared) and not event.content.different):
            emit(event)

    return hear


def history(move: moves.Move, now: datetime.datetime, jobs: int, emit: Emit) -> None:
    """Compares what of logs nobody has compared yet, up to shortly before `now`, while traffic goes on.

    Raises `errors.GateNotMet` for a difference.
    """
    proved = move.follow.proved if move.follow else ""
    begun = datetime.datetime.fromisoformat(proved) - _LATE if proved else None
    scope = move.logs(since=begun, before=now - _RECENT)
    if not scope.tables:
        return
    emit(events.Noticed(message=f"comparing history before the fence: {', '.join(scope.tables)}"))
    proof = verify.of_switch(
        move.rules,
        move.catalogs,
        scope,
        move.end("source"),
        move.end("target"),
        name=move.name,
        jobs=jobs,
        fenced=False,
        rechecks=5,
        emit=_of_note(emit),
    )
    proof = _of_the_way(proof, move)
    if proof.different:
        raise differs(proof, move)
    move.ask(lambda session: journal.set_proved(session, f"{now.isoformat()}Z"))


def differs(proof: model.Proof, move: moves.Move) -> errors.GateNotMet:
    """What the comparison has found, as the reason not to switch."""
    unequal = [content.table for content in proof.contents if content.different]
    where = f" (in {findings.few(unequal)})" if unequal else ""
    return errors.GateNotMet(
        f"{move.toward.label} is not what {move.away.label} is{where}: {proof.headline}",
        hint="`mishika-migrate verify` lists every difference. What was written to"
        f" {move.toward.label} by others must go: {_MENDS[move.method]}.",
    )
