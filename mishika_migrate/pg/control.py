"""What a run is told while it goes on: one row of the ledger, for its workers and for any other machine.

Imports pg.connect, pg.ledger, pg.progress and the words.
"""

from __future__ import annotations

from dataclasses import dataclass

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, ledger, progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """`rate` is what all workers together may move, `share` what one task may, in bytes a second, None without
    a limit.

    `paused` is what an operator said, `waiting` what the source's standbys ask for. `halted` ends
    every worker.
    """

    rate: int | None = None
    share: int | None = None
    paused: bool = False
    waiting: bool = False
    halted: bool = False


def begin(session: connect.Session, *, run: str, rate: int | None) -> Orders:
    """Of a new run, or anew for one that is resumed: what it was told before stays, unless there is a new `rate`.

    Orders are those that hold; `paused` says that it was, and is no more.
    """
    before = read(session, run=run)
    wanted = before.rate if rate is None else rate
    session.execute(
        "INSERT INTO mishika_migrate.control (run, rate, share) VALUES (%(run)s, %(rate)s, %(rate)s)"
        " ON CONFLICT (run) DO UPDATE SET rate = %(rate)s, share = %(rate)s, paused = false, waiting = false,"
        " halted = false, asked_at = clock_timestamp()",
        {"run": run, "rate": wanted},
    )
    return Orders(rate=wanted, share=wanted, paused=before.paused)


def read(session: connect.Session, *, run: str) -> Orders:
    """Those of a run without a row let everything pass."""
    row = session.execute(
        "SELECT rate, share, paused, waiting, halted FROM mishika_migrate.control WHERE run = %s", [run]
    ).fetchone()
    if row is None:
        return Orders()
    rate, share = (None if value is None else int(str(value)) for value in row[:2])
    return Orders(rate=rate, share=share, paused=bool(row[2]), waiting=bool(row[3]), halted=bool(row[4]))


def share(session: connect.Session, *, run: str, share: int | None, waiting: bool) -> None:
    """What the run itself decides; the operator's words stay."""
    session.execute("UPDATE mishika_migrate.control SET share = %s, waiting = %s WHERE run = %s", [share, waiting, run])


def received(session: connect.Session, *, run: str) -> tuple[int, int]:
    """The bytes of the run's finished steps and open streams, and how many streams are open.

    As the target counts them; before PG 14 no stream is seen.
    """
    row = session.execute(
        "SELECT coalesce(sum(bytes), 0)::int8 FROM mishika_migrate.step WHERE run = %s", [run]
    ).fetchone()
    landed = int(str(row[0])) if row else 0
    sizes = progress.streams(session, run=run)
    return landed + sum(sizes), len(sizes)


def halt(session: connect.Session, *, run: str) -> None:
    session.execute("UPDATE mishika_migrate.control SET halted = true WHERE run = %s", [run])


def throttle(session: connect.Session, *, run: str, rate: int | None) -> None:
    """The run takes it to heart, and divides it among its tasks, within a second."""
    session.execute(
        "UPDATE mishika_migrate.control SET rate = %s, asked_at = clock_timestamp() WHERE run = %s", [rate, run]
    )


def pause(session: connect.Session, *, run: str, paused: bool) -> None:
    session.execute(
        "UPDATE mishika_migrate.control SET paused = %s, asked_at = clock_timestamp() WHERE run = %s", [paused, run]
    )


def under_way(session: connect.Session, endpoint: model.Endpoint) -> str:
    """The run that works on this target just now; `errors.Refused` when there is none."""
    if ledger.exists(session) and ledger.holder(session):
        row = session.execute(
            "SELECT r.id FROM mishika_migrate.run r JOIN mishika_migrate.control c ON c.run = r.id"
            " WHERE r.state = 'running' AND NOT c.halted ORDER BY r.started DESC LIMIT 1"
        ).fetchone()
        if row is not None:
            return str(row[0])
    raise errors.Refused(
        f"no run is under way on {endpoint.label}",
        hint="`mishika-migrate status` shows what there is; a new run takes its limit from --max-rate.",
    )
