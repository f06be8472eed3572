"""The part of the ledger that is about following and switching: objects, follows and switches.

Imports pg.connect, pg.ledger and the words. It lies on the target. An object is entered before it
is made, on whichever side, so that whatever dies, what may be left is known. Every entry is
committed synchronously.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import LiteralString

from mishika_migrate import model
from mishika_migrate.pg import connect, ledger


@contextmanager
def _surely(session: connect.Session) -> Iterator[None]:
    """A transaction whose COMMIT waits for the disk, and with it for all that was committed before."""
    with connect.transaction(session):
        session.execute("SET LOCAL synchronous_commit = on")
        yield


# -- objects --------------------------------------------------------------------------------------


def note(session: connect.Session, *, run: str, side: model.Role, kind: str, name: str) -> None:
    """Before the object is made."""
    with _surely(session):
        session.execute(
            "INSERT INTO mishika_migrate.object (run, side, kind, name) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [run, side, kind, name],
        )


def forget(session: connect.Session, *, run: str, side: model.Role, kind: str, name: str) -> None:
    """After it is gone."""
    with _surely(session):
        session.execute(
            "DELETE FROM mishika_migrate.object WHERE (run, side, kind, name) = (%s, %s, %s, %s)",
            [run, side, kind, name],
        )


def objects(session: connect.Session) -> tuple[tuple[model.Role, str, str], ...]:
    """Side, kind and name of all that may be there."""
    if not _there(session, "object"):
        return ()
    found = session.execute("SELECT side, kind, name FROM mishika_migrate.object ORDER BY recorded, kind")
    return tuple(("source" if row[0] == "source" else "target", str(row[1]), str(row[2])) for row in found)


# -- follows --------------------------------------------------------------------------------------


def begin_follow(session: connect.Session, follow: model.Follow) -> None:
    """Replaces what was followed before."""
    with _surely(session):
        session.execute("DELETE FROM mishika_migrate.follow")
        session.execute(
            "INSERT INTO mishika_migrate.follow (run, way, tables, fingerprint, proved, ready)"
            " VALUES (%s, %s, %s, %s, nullif(%s, '')::timestamptz, %s)",
            [
                follow.run, follow.way, json.dumps(follow.tables), follow.fingerprint, follow.proved, follow.ready,
            ],
        )  # fmt: skip


def set_follow(
    session: connect.Session,
    *,
    way: model.Way | None = None,
    ready: bool | None = None,
    fingerprint: str | None = None,
) -> None:
    """What is given; another way is that of a new subscription, which has met no errors yet."""
    with _surely(session):
        session.execute(
            "UPDATE mishika_migrate.follow SET faults = CASE WHEN way = coalesce(%s, way) THEN faults ELSE 0 END,"
            " way = coalesce(%s, way), ready = coalesce(%s, ready), fingerprint = coalesce(%s, fingerprint)",
            [way, way, ready, fingerprint],
        )


def set_faults(session: connect.Session, number: int) -> None:
    """So many errors of the subscription are known, and are not what stops it the next time."""
    with _surely(session):
        session.execute("UPDATE mishika_migrate.follow SET faults = %s", [number])


def set_proved(session: connect.Session, at: str) -> None:
    """All of it was compared and equal; `at` is the source's time of that."""
    with _surely(session):
        session.execute("UPDATE mishika_migrate.follow SET proved = %s::timestamptz", [at])


def follow(session: connect.Session) -> model.Follow | None:
    """What is followed; None where nothing is, or there is no such ledger."""
    if not _there(session, "follow"):
        return None
    row = session.execute(
        "SELECT run, way, tables, fingerprint,"
        " coalesce(to_char(proved AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS'), ''), ready,"
        # A ledger of an older layout may be one that this role only reads.
        " coalesce((to_jsonb(f) ->> 'faults')::int8, 0) FROM mishika_migrate.follow f"
    ).fetchone()
    if row is None:
        return None
    return model.Follow(
        run=str(row[0]),
        way="back" if row[1] == "back" else "forward",
        tables=tuple(json.loads(str(row[2]))),
        fingerprint=str(row[3]),
        proved=str(row[4]),
        ready=bool(row[5]),
        faults=int(str(row[6])),
    )


def end_follow(session: connect.Session) -> None:
    with _surely(session):
        session.execute("DELETE FROM mishika_migrate.follow")


# -- switches -------------------------------------------------------------------------------------


def begin_switch(session: connect.Session, *, run: str, way: model.Way, method: model.SwitchMethod) -> int:
    """Before the fence; its number."""
    with _surely(session):
        row = session.execute(
            # One at a time: the target's lock is held.
            "INSERT INTO mishika_migrate.cutover (id, run, way, method, state)"
            " SELECT coalesce(max(id), 0) + 1, %s, %s, %s, 'begun' FROM mishika_migrate.cutover RETURNING id",
            [run, way, method],
        ).fetchone()
    assert row is not None
    return int(str(row[0]))


def set_switch(session: connect.Session, number: int, state: model.SwitchState, message: str = "") -> None:
    """The state that is true from now on. What was committed before it is on the disk then, too."""
    with _surely(session):
        session.execute(
            "UPDATE mishika_migrate.cutover SET state = %s, message = %s, finished ="
            " CASE WHEN %s IN ('finished', 'aborted', 'undone') THEN clock_timestamp() END WHERE id = %s",
            [state, message, state, number],
        )


def supersede(session: connect.Session, way: model.Way) -> None:
    """Switches the other way round have been undone by one of this way."""
    with _surely(session):
        session.execute(
            "UPDATE mishika_migrate.cutover SET state = 'undone'"
            " WHERE way <> %s AND state IN ('finished', 'switching')",
            [way],
        )


def switch(session: connect.Session) -> model.Switch | None:
    """The latest attempt; None without any."""
    return _latest(session, "true")


def settled(session: connect.Session) -> model.Switch | None:
    """The latest by which traffic has moved, or may have; None while it is where it began."""
    return _latest(session, "state IN ('finished', 'switching')")


def _latest(session: connect.Session, condition: LiteralString) -> model.Switch | None:
    if not _there(session, "cutover"):
        return None
    row = session.execute(
        "SELECT id, run, way, method, state,"
        " to_char(started AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), message"
        " FROM mishika_migrate.cutover WHERE " + condition + " ORDER BY id DESC LIMIT 1"
    ).fetchone()
    if row is None:
        return None
    return model.Switch(
        id=int(str(row[0])),
        run=str(row[1]),
        way="back" if row[2] == "back" else "forward",
        method="sync" if row[3] == "sync" else "replication",
        state=row[4],  # type: ignore[arg-type]  # the table's CHECK lists them
        started=str(row[5]),
        message=str(row[6]),
    )


def _there(session: connect.Session, table: str) -> bool:
    row = session.execute("SELECT to_regclass(%s) IS NOT NULL", [f"{ledger.SCHEMA}.{table}"]).fetchone()
    return bool(row and row[0])
