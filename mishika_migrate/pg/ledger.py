"""The target's own book of runs and steps, in schema `mishika_migrate`, never in the proxy's schema.

Imports pg.connect and the words. A step's row is written in the same transaction as its rows, so
a step has either happened with its entry or not at all. An entry is stale when the source has
changed since: the rows are still there, but must go before the step is carried out once more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from psycopg import rows

from mishika_migrate import errors, model
from mishika_migrate.pg import connect

SCHEMA = "mishika_migrate"
_LAYOUT = 1
_LOCK = 0x6D69_7368_696B_61  # "mishika"

_CREATE = """
CREATE SCHEMA IF NOT EXISTS mishika_migrate;
COMMENT ON SCHEMA mishika_migrate IS 'mishika-migrate: runs and steps; `mishika-migrate cleanup` removes it';
CREATE TABLE IF NOT EXISTS mishika_migrate.layout (version int PRIMARY KEY);
CREATE TABLE IF NOT EXISTS mishika_migrate.run (
  id text PRIMARY KEY,
  state text NOT NULL CHECK (state IN ('running', 'finished', 'stopped', 'abandoned')),
  source text NOT NULL,
  target text NOT NULL,
  digest text NOT NULL,
  plan text NOT NULL,
  horizon text NOT NULL DEFAULT '',
  planned int NOT NULL,
  tool text NOT NULL,
  message text NOT NULL DEFAULT '',
  started timestamptz NOT NULL DEFAULT now(),
  finished timestamptz
);
CREATE TABLE IF NOT EXISTS mishika_migrate.step (
  run text NOT NULL REFERENCES mishika_migrate.run ON DELETE CASCADE,
  id text NOT NULL,
  "table" text NOT NULL DEFAULT '',
  rows_out int8 NOT NULL DEFAULT 0,
  rows_in int8 NOT NULL DEFAULT 0,
  bytes int8 NOT NULL DEFAULT 0,
  seconds float8 NOT NULL DEFAULT 0,
  round int NOT NULL DEFAULT 1,
  stale boolean NOT NULL DEFAULT false,
  finished timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (run, id)
);
"""


def lock(session: connect.Session, endpoint: model.Endpoint, *, former: tuple[int, str] | None = None) -> None:
    """Holds the target for this session; `errors.Refused` names the session that has it.

    `former` is this run's lost session, backend and name: the server may not know yet that it is
    lost, and is told.
    """
    if _one(session, "SELECT pg_try_advisory_lock(%s)", [_LOCK]):
        return
    if former is not None:
        connect.end_leftovers(session, former[1], pid=former[0])
        if _one(session, "SELECT pg_try_advisory_lock(%s)", [_LOCK]):
            return
    # A session of another role shows when it began to superusers only.
    who = _one(
        session,
        "SELECT concat_ws(', ', 'backend ' || a.pid, nullif(a.application_name, ''),"
        " 'since ' || a.backend_start::timestamp(0)::text || ' UTC')"
        " FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.database ="
        "   (SELECT oid FROM pg_database WHERE datname = current_database())"
        "   AND l.classid = %s AND l.objid = %s",
        [_LOCK >> 32, _LOCK & 0xFFFF_FFFF],
    )
    raise errors.Refused(
        f"another run is working on {endpoint.label} ({who or 'another session'})",
        hint="Wait for it, or see `mishika-migrate status`.",
    )


def create(session: connect.Session) -> None:
    """Makes the ledger where it is missing. Refuses one of a newer layout."""
    if not exists(session):
        with connect.transaction(session):
            session.execute(_CREATE)
            session.execute("INSERT INTO mishika_migrate.layout VALUES (%s) ON CONFLICT DO NOTHING", [_LAYOUT])
    version = _one(session, "SELECT max(version) FROM mishika_migrate.layout")
    if version != _LAYOUT:
        raise errors.Refused(
            f"the ledger on the target has layout {version}, this tool writes layout {_LAYOUT}",
            hint="Use the version of mishika-migrate that began the run, or `mishika-migrate cleanup`.",
        )


def exists(session: connect.Session) -> bool:
    return bool(_one(session, "SELECT to_regclass('mishika_migrate.step') IS NOT NULL"))


def drop(session: connect.Session) -> None:
    """Removes the schema with everything in it."""
    session.execute("DROP SCHEMA IF EXISTS mishika_migrate CASCADE")


def begin(session: connect.Session, *, run: str, plan: model.Plan, text: str, horizon: str, tool: str) -> None:
    """Enters a new run; `text` is its plan as JSON, for a resume.

    Earlier runs that wrote nothing are marked as abandoned.
    """
    with connect.transaction(session):
        session.execute(
            "UPDATE mishika_migrate.run r SET state = 'abandoned', finished = now()"
            " WHERE state IN ('running', 'stopped')"
            " AND NOT EXISTS (SELECT FROM mishika_migrate.step s WHERE s.run = r.id)"
        )
        session.execute(
            "INSERT INTO mishika_migrate.run (id, state, source, target, digest, plan, horizon, planned, tool)"
            " VALUES (%s, 'running', %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO NOTHING",
            [run, plan.source, plan.target, plan.digest, text, horizon, len(plan.steps), tool],
        )


def resume(session: connect.Session, *, run: str) -> None:
    """Makes the run a running one again."""
    session.execute(
        "UPDATE mishika_migrate.run SET state = 'running', message = '', finished = NULL WHERE id = %s", [run]
    )


def rebase(session: connect.Session, *, run: str, horizon: str, stale: Collection[str]) -> None:
    """The run's rows are those of a newer snapshot from now on, but for the steps in `stale`.

    Both in one transaction: whoever resumes next must not take an old row for a new one.
    """
    with connect.transaction(session):
        session.execute("SET LOCAL synchronous_commit = on")
        session.execute("UPDATE mishika_migrate.run SET horizon = %s WHERE id = %s", [horizon, run])
        session.execute(
            "UPDATE mishika_migrate.step SET stale = true WHERE run = %s AND id = ANY (%s)", [run, list(stale)]
        )


def end(session: connect.Session, *, run: str, state: str, message: str = "") -> None:
    """The run's last word, written synchronously whatever the session's setting is."""
    with connect.transaction(session):
        session.execute("SET LOCAL synchronous_commit = on")
        session.execute(
            "UPDATE mishika_migrate.run SET state = %s, message = %s, finished = clock_timestamp() WHERE id = %s",
            [state, message, run],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """`landed` is what the step did when it is done already; `again` says that its old rows are there."""

    landed: model.Landed | None = None
    again: bool = False


def claim(session: connect.Session, *, run: str, step: str) -> Claim:
    """Enters the step in the open transaction, unless it has landed.

    Waits for a twin whose outcome is still open (an attempt whose connection was lost in COMMIT):
    its unique key makes the outcome known before anything is written twice.
    """
    row = session.execute(
        "INSERT INTO mishika_migrate.step AS s (run, id) VALUES (%s, %s)"
        " ON CONFLICT (run, id) DO UPDATE SET stale = false, round = s.round + 1 WHERE s.stale RETURNING round",
        [run, step],
    ).fetchone()
    if row is None:
        return Claim(landed=landed(session, run=run)[step])
    return Claim(again=row[0] != 1)


def record(session: connect.Session, *, run: str, landed: model.Landed) -> None:
    """Completes the claimed entry; it becomes true with the caller's COMMIT."""
    updated = session.execute(
        'UPDATE mishika_migrate.step SET "table" = %s, rows_out = %s, rows_in = %s, bytes = %s,'
        " seconds = %s, finished = clock_timestamp() WHERE run = %s AND id = %s",
        [
            landed.table,
            landed.rows_out,
            landed.rows_in,
            landed.bytes,
            landed.seconds,
            run,
            landed.step,
        ],
    ).rowcount
    if updated != 1:
        raise errors.Error(f"step {landed.step} of run {run} is not in the ledger")


def landed(session: connect.Session, *, run: str) -> dict[str, model.Landed]:
    """The committed steps of a run by id, without stale ones."""
    cursor = session.cursor(row_factory=rows.dict_row)
    found: Iterable[dict[str, Any]] = cursor.execute(
        'SELECT id AS step, "table", rows_out, rows_in, bytes, seconds FROM mishika_migrate.step'
        " WHERE run = %s AND NOT stale ORDER BY finished, id",
        [run],
    )
    return {row["step"]: model.Landed(**row) for row in found}


def touched(session: connect.Session, *, run: str) -> bool:
    """Whether anything of the run is on the target, be it stale."""
    return bool(_one(session, "SELECT EXISTS (SELECT FROM mishika_migrate.step WHERE run = %s)", [run]))


def unfinished(session: connect.Session) -> model.Unfinished | None:
    """The latest run, if it stopped after something had landed."""
    if not exists(session):
        return None
    row = session.execute(
        "SELECT r.id, r.plan, r.horizon, s.tables FROM mishika_migrate.run r,"
        ' LATERAL (SELECT array_agg(DISTINCT "table") FILTER (WHERE "table" <> \'\') AS tables, count(*) AS n'
        "          FROM mishika_migrate.step s WHERE s.run = r.id) s"
        " WHERE r.state IN ('running', 'stopped') AND s.n > 0 ORDER BY r.started DESC LIMIT 1"
    ).fetchone()
    if row is None:
        return None
    tables = row[3] if isinstance(row[3], list) else []
    return model.Unfinished(run=str(row[0]), plan=str(row[1]), horizon=str(row[2]), tables=frozenset(map(str, tables)))


def runs(session: connect.Session) -> tuple[model.Run, ...]:
    """All runs, the latest first; empty without a ledger."""
    if not exists(session):
        return ()
    cursor = session.cursor(row_factory=rows.dict_row)
    found: list[dict[str, Any]] = cursor.execute(
        "SELECT id, state, source, target, digest, message, planned,"
        " to_char(started AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS started,"
        " to_char(finished AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS finished"
        " FROM mishika_migrate.run ORDER BY run.started DESC"
    ).fetchall()
    return tuple(model.Run(**row, steps=tuple(landed(session, run=row["id"]).values())) for row in found)


def moving(session: connect.Session, *, run: str) -> dict[str, tuple[int, int]]:
    """Rows and bytes that the open COPYs of this run have received so far, by table.

    The server counts (PG ≥ 14); on older ones this is empty.
    """
    if session.info.server_version < 14_00_00:
        return {}
    found = session.execute(
        "SELECT c.relname::text, sum(p.tuples_processed)::int8, sum(p.bytes_processed)::int8"
        " FROM pg_stat_progress_copy p JOIN pg_stat_activity a USING (pid) JOIN pg_class c ON c.oid = p.relid"
        " WHERE p.command = 'COPY FROM' AND p.datname = current_database()"
        " AND starts_with(a.application_name, %s) GROUP BY 1",
        [f"mishika-migrate/{run}/"],
    )
    return {str(row[0]): (int(str(row[1])), int(str(row[2]))) for row in found}


def _one(session: connect.Session, query: str, values: list[object] | None = None) -> object:
    row = session.execute(query, values).fetchone()
    return row[0] if row else None
