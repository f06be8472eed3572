"""Lets an old side accept writes again: where a switch is given up, and where its other side is lost.

Imports moves, pg and the words. The fence is lifted on its own server alone, whatever has become of the other one.
"""

from __future__ import annotations

import time

from mishika_migrate import errors, model
from mishika_migrate.operations.moving import moves
from mishika_migrate.pg import connect, ddl, fence, replication


def give_up(move: moves.Move, before: model.Switch) -> None:
    """The old side accepts writes again, and the new side follows it as before. In this order."""
    away: model.Role = "source" if before.way == "forward" else "target"
    with connect.translated(move.end(away), "the fence"):
        fence.lift(move.sessions[away])
    if before.method == "replication" and move.follow is not None:
        move.stream("back" if before.way == "forward" else "forward").remove(move.sessions)
        stream = move.stream(before.way)
        if stream.state(move.sessions)[1] is not None:
            stream.enable(move.sessions, enabled=True)
    move.enter(before.id, "aborted")


_RESTART_SECONDS = 15.0


def lifted(end: model.Endpoint) -> bool:
    """Lifts the fence there, whatever has become of the other server; waits while that one restarts."""
    until = time.monotonic() + _RESTART_SECONDS
    while True:
        try:
            with (
                connect.session(end, name=moves.REPAIR, answered=True, settings=moves.WAITS) as session,
                connect.translated(end, "the fence"),
            ):
                fence.lift(session)
                return True
        except errors.Error:
            if time.monotonic() > until:
                return False
            time.sleep(0.25)


def refuse_open(source: model.Endpoint) -> None:
    """`errors.Refused` where no fence stands: to open what is open would end the move for nothing."""
    with connect.session(source, name=moves.NAME) as session:
        _refuse_open(session, source)


def _refuse_open(session: connect.Session, source: model.Endpoint) -> None:
    if not fence.standing(session):
        raise errors.Refused(
            f"the source {source.label} accepts writes already: no fence stands there",
            hint="Nothing is to be done for traffic. `mishika-migrate complete --lost target` removes what is left.",
        )


def reopen(source: model.Endpoint, *, margin: int) -> str:
    """The source accepts writes again, whatever becomes of the target; says how far it had got with its changes.

    From then on no other verb but `complete` goes on with the move. `errors.Refused` where no fence stands.
    """
    with connect.session(source, name=moves.NAME, settings=moves.WAITS) as session, connect.translated(source):
        _refuse_open(session, source)
        row = replication.last_heard(session, "target")
        # Should the target come back, its changes would overwrite what is written here from now on.
        for each in replication.subscriptions(session):
            replication.unsubscribe(session, each.name)
        fence.lift(session, alone=True)
        ddl.advance_sequences(session, source.schema, margin=margin)
    return f" The last sign of the target is of {row}." if row else ""
