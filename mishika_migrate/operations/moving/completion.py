"""`complete`: takes away everything that following and switching have made, on both sides, and proves it.

Imports moves, pg and the words. The one destructive verb of a move: afterwards there is no way back.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mishika_migrate import errors, findings, model
from mishika_migrate.operations.moving import moves
from mishika_migrate.pg import connect, ddl, fence, journal, ledger, removal, replication

_NAME = "mishika-migrate/complete"
_MARGIN = 1000
_READER_SECONDS = 2.0
_SETTINGS = {"lock_timeout": "10s", "default_transaction_read_only": "off"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """What is there of a move: by side the names of its objects, in the words of SQL. `fenced` sides take no writes.

    `followed` tells what the ledger says is under way, empty for nothing; `elsewhere` what it knows of on the
    source, where the server that was given has nothing of this tool. `unfinished` is the run that could be resumed,
    empty without one.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    fenced: tuple[model.Role, ...] = ()
    followed: str = ""
    elsewhere: tuple[str, ...] = ()
    unfinished: str = ""


def look(servers: moves.Servers, lost: str) -> Remains:
    """What would be removed. `errors.Refused` while another command works, a switch is half done, or when the roles may
    not remove all of it."""
    with contextlib.ExitStack() as stack:
        sessions = _sessions(stack, servers, lost)
        if "target" in sessions:
            ledger.lock(sessions["target"], servers["target"].end)
        _refuse_kept(servers, sessions)
        if "target" in sessions:
            ledger.refuse_indexes_away(sessions["target"], servers["target"].end)
        found: dict[model.Role, tuple[str, ...]] = {"source": (), "target": ()}
        fenced: list[model.Role] = []
        for role, session in sessions.items():
            with connect.translated(servers[role].end):
                found[role] = replication.named(session)
                if fence.standing(session):
                    fenced.append(role)
        followed = unfinished = ""
        elsewhere: tuple[str, ...] = ()
        if "target" in sessions:
            followed = _state(sessions, servers["target"].end, lost)
            before = ledger.unfinished(sessions["target"])
            unfinished = before.run if before else ""
            if "source" in sessions and not found["source"]:
                elsewhere = tuple(
                    f"{kind} {name}" for side, kind, name in journal.objects(sessions["target"]) if side == "source"
                )
    return Remains(
        source=found["source"],
        target=found["target"],
        fenced=tuple(fenced),
        followed=followed,
        elsewhere=elsewhere,
        unfinished=unfinished,
    )


def _sessions(stack: contextlib.ExitStack, servers: moves.Servers, lost: str) -> dict[model.Role, connect.Session]:
    return {
        role: stack.enter_context(connect.session(server.end, name=_NAME, settings=_SETTINGS))
        for role, server in servers.items()
        if role != lost
    }


def _refuse_kept(servers: moves.Servers, sessions: Mapping[model.Role, connect.Session]) -> None:
    """Half a move is worse than a whole one: what its other half was is known nowhere then."""
    told = []
    for role, session in sessions.items():
        end = servers[role].end
        with connect.translated(end):
            told += [
                findings.refuse("not-removable", each.what, f"{each.what} of {end.label} {each.why}", _on(role, each))
                for each in removal.kept(session, end)
            ]
    if told:
        raise errors.Refused(
            "not everything of the move can be removed; nothing was removed",
            hint="Mend what is listed, then run `mishika-migrate complete` again.",
            findings=told,
        )


def _on(role: model.Role, each: removal.Kept) -> str:
    return f"{each.fix} -- on the {role}" if each.fix.endswith(";") else each.fix


def _state(sessions: Mapping[model.Role, connect.Session], target: model.Endpoint, lost: str) -> str:
    """What is under way. With a side that is lost, or opened alone, there is nothing else left than to end it."""
    session = sessions["target"]
    before, done = journal.switch(session), journal.settled(session)
    if lost:
        return ""
    if moves.parted(sessions, done):
        return "both sides accept writes, one without those of the other"
    half = before if before is not None and before.open else done if done and done.state == "switching" else None
    if half is not None:
        verb = "cutover" if half.way == "forward" else "rollback"
        raise errors.Refused(
            f"the {verb} of run {half.run} to {target.label} has come to no end (it is {half.state})",
            hint=f"`mishika-migrate {verb}` ends it"
            + (", or `mishika-migrate cutover --abort` gives it up." if half.open else "."),
        )
    if done is not None:
        return "traffic is on the target" if done.way == "forward" else "traffic is back on the source"
    return "traffic is on the source" if journal.follow(session) is not None else ""


def carry_out(servers: moves.Servers, lost: str) -> tuple[str, ...]:
    """Removes it all; what is left to do, by hand on the side that is lost, in statements.

    `errors.Incomplete` names what was removed and what is left; the same command goes on from there.
    """
    with contextlib.ExitStack() as stack:
        sessions = _sessions(stack, servers, lost)
        if "target" in sessions:
            ledger.lock(sessions["target"], servers["target"].end)
            _state(sessions, servers["target"].end, lost)
        by_hand = _by_hand(sessions, lost) if lost else ()
        before = {role: replication.named(session) for role, session in sessions.items()}
        try:
            _remove(servers, sessions, lost)
        except errors.Error as error:
            raise _unended(servers, before, error) from error
        left = {role: replication.named(session) for role, session in sessions.items()}
    if any(left.values()):
        raise errors.Incomplete(
            f"not everything could be removed: {_told(servers, left)}", hint="Run `mishika-migrate complete` again."
        )
    return by_hand


def _remove(servers: moves.Servers, sessions: Mapping[model.Role, connect.Session], lost: str) -> None:
    def everywhere(drop: Callable[[connect.Session], None], *order: model.Role) -> None:
        for role in order:
            if role in sessions:
                with connect.translated(servers[role].end):
                    drop(sessions[role])

    if lost:
        # Rows came by replication, which leaves sequences alone; the server that knows them is gone.
        for role, session in sessions.items():
            with connect.translated(servers[role].end, "its sequences"):
                ddl.advance_sequences(session, servers[role].end.schema, margin=_MARGIN)
    # A slot cannot go before its reader has.
    everywhere(_subscriptions, "target", "source")
    everywhere(_publishing, "target", "source")
    everywhere(_give_up, "target")
    # The source after the target: what its fence tells is asked for again when the target has failed.
    everywhere(_fence, "target", "source")
    # The target at the very end: its ledger alone knows what there is, should anything fail before.
    everywhere(ledger.drop, "source", "target")


def _subscriptions(session: connect.Session) -> None:
    for each in replication.subscriptions(session):
        replication.unsubscribe(session, each.name)


def _publishing(session: connect.Session) -> None:
    # Their readers have been told to end, and to end them takes a right over their role (42501).
    until = time.monotonic() + _READER_SECONDS
    while any(slot.active for slot in replication.slots(session)) and time.monotonic() < until:
        time.sleep(0.02)
    for slot in replication.slots(session):
        replication.drop_slot(session, slot.name)
    for name in replication.publications(session):
        replication.unpublish(session, name)


def _give_up(session: connect.Session) -> None:
    """A switch that has come to no end is over: no fence tells it any more to whom this command is repeated."""
    before = journal.switch(session)
    if before is not None and before.open:
        journal.set_switch(session, before.id, "aborted")


def _fence(session: connect.Session) -> None:
    # From now on both sides may be written to, so no verb may go on, should a table's lock not be had.
    fence.lift(session, alone=True)
    fence.remove(session, patience=10.0)


def _unended(servers: moves.Servers, before: Mapping[model.Role, tuple[str, ...]], error: errors.Error) -> errors.Error:
    """What is true when it failed half way, asked in sessions of their own: the others may be what failed."""
    left: dict[model.Role, tuple[str, ...]] = {}
    gone: dict[model.Role, tuple[str, ...]] = {}
    for role, names in before.items():
        try:
            with connect.session(servers[role].end, name=_NAME) as session:
                left[role] = replication.named(session)
        except errors.Error:
            left[role] = ("what is not known",)
        else:
            there = {_name(each) for each in left[role]}
            gone[role] = tuple(each for each in names if _name(each) not in there)
    told = f"removed: {_told(servers, gone) or 'nothing'}; left: {_told(servers, left) or 'nothing'}"
    hint = "Run `mishika-migrate complete` again when that is mended: it goes on from there."
    if isinstance(error, errors.Interrupted):
        return errors.Interrupted(f"interrupted; {told}", hint=hint, signal=error.status - 128)
    return errors.Incomplete(f"{error.message}; {told}", hint=hint)


def _name(each: str) -> str:
    """Without how many: a trigger goes table by table."""
    return " ".join(each.split()[:2])


def _told(servers: moves.Servers, names: Mapping[model.Role, tuple[str, ...]]) -> str:
    return "; ".join(f"{servers[role].end.label}: {', '.join(each)}" for role, each in names.items() if each)


def _by_hand(sessions: Mapping[model.Role, connect.Session], lost: str) -> tuple[str, ...]:
    """By what the ledger knows of on the side that is lost, and by what the other one has: each subscription has a slot
    and a publication of its name on the other server."""
    known = journal.objects(sessions["target"]) if "target" in sessions else ()
    subscriptions = {name for side, kind, name in known if (side, kind) == (lost, "subscription")}
    publications = {name for side, kind, name in known if (side, kind) == (lost, "publication")}
    for session in sessions.values():
        subscriptions |= {*replication.publications(session), *(slot.name for slot in replication.slots(session))}
        publications |= {each.name for each in replication.subscriptions(session)}
    return removal.by_hand(sorted(subscriptions), sorted(publications))
