"""`complete`: takes away everything that following and switching have made, on both sides, and proves it.

Imports moves, pg and the words. The one destructive verb of a move: afterwards there is no way back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from mishika_migrate import errors, model
from mishika_migrate.operations.moving import moves
from mishika_migrate.pg import connect, ddl, fence, journal, ledger, replication

_NAME = "mishika-migrate/complete"
_MARGIN = 1000
_SETTINGS = {"lock_timeout": "10s", "default_transaction_read_only": "off"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """What is there of a move: by side the names of its objects, in the words of SQL. `fenced` sides take no writes.

    `followed` tells what the ledger says is under way, empty for nothing; `elsewhere` what it knows of on the
    source, where the server that was given has nothing of this tool.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    fenced: tuple[model.Role, ...] = ()
    followed: str = ""
    elsewhere: tuple[str, ...] = ()


def look(servers: moves.Servers, lost: str) -> Remains:
    """What would be removed; `errors.Refused` while a switch is half done."""
    with contextlib.ExitStack() as stack:
        sessions = _sessions(stack, servers, lost)
        found: dict[model.Role, tuple[str, ...]] = {"source": (), "target": ()}
        fenced: list[model.Role] = []
        for role, session in sessions.items():
            with connect.translated(servers[role].end):
                found[role] = replication.named(session)
                if fence.standing(session):
                    fenced.append(role)
        followed = ""
        elsewhere: tuple[str, ...] = ()
        if "target" in sessions:
            followed = _state(sessions, servers["target"].end, lost)
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
    )


def _sessions(stack: contextlib.ExitStack, servers: moves.Servers, lost: str) -> dict[model.Role, connect.Session]:
    return {
        role: stack.enter_context(connect.session(server.end, name=_NAME, settings=_SETTINGS))
        for role, server in servers.items()
        if role != lost
    }


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

    `errors.Incomplete` names what could not be removed.
    """
    target = servers["target"].end
    with contextlib.ExitStack() as stack:
        sessions = _sessions(stack, servers, lost)
        if "target" in sessions:
            ledger.lock(sessions["target"], target)
            _state(sessions, target, lost)
        if lost:
            # Rows came by replication, which leaves sequences alone; the server that knows them is gone.
            for role, session in sessions.items():
                with connect.translated(servers[role].end, "its sequences"):
                    ddl.advance_sequences(session, servers[role].end.schema, margin=_MARGIN)
        # A slot cannot go before its reader has.
        for drop in (_subscriptions, _rest):
            # The source last: what its fence tells is asked for again when the target has failed.
            for role, session in sorted(sessions.items(), reverse=True):
                with connect.translated(servers[role].end):
                    drop(session)
        left = {role: replication.named(session) for role, session in sessions.items()}
    if any(left.values()):
        told = "; ".join(f"{servers[role].end.label}: {', '.join(names)}" for role, names in left.items() if names)
        raise errors.Incomplete(
            f"not everything could be removed: {told}", hint="Run `mishika-migrate complete` again."
        )
    return _by_hand() if lost else ()


def _subscriptions(session: connect.Session) -> None:
    for each in replication.subscriptions(session):
        replication.unsubscribe(session, each.name)


def _rest(session: connect.Session) -> None:
    for slot in replication.slots(session):
        replication.drop_slot(session, slot.name)
    for name in replication.publications(session):
        replication.unpublish(session, name)
    fence.lift(session)
    fence.remove(session, patience=10.0)
    ledger.drop(session)


def _by_hand() -> tuple[str, ...]:
    return (
        "ALTER SUBSCRIPTION … DISABLE; ALTER SUBSCRIPTION … SET (slot_name = NONE); DROP SUBSCRIPTION …;"
        " -- every one of pg_subscription named mishika_migrate_…",
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
        " WHERE slot_name LIKE 'mishika\\_migrate\\_%';",
        "DROP PUBLICATION …; -- every one of pg_publication named mishika_migrate_…",
        "DROP SCHEMA mishika_migrate CASCADE; -- with it go the fence's triggers",
    )
