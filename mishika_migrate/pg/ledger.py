"""The target's own book of runs and steps, in schema `mishika_migrate`, never in the proxy's schema.

Imports pg.connect, pg.ddl, pg.interrupt and the words. A step's row is written in the same transaction as its rows, so
a step has either happened with its entry or not at all. An entry is stale when the source has
changed since: the rows are still there, but must go before the step is carried out once more.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from psycopg import rows, sql

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, ddl, interrupt

SCHEMA = "mishika_migrate"
_LAYOUT = 4
_UPGRADED = (0, 2, 3)  # none, and those that lack tables or columns only
_LOCK = 0x6D69_7368_696B_61  # "mishika"
# A second: a server under load hears later that a command has ended than the next one in a script begins.
_LOCK_POLLS = 20

_CREATE = """
COMMENT ON SCHEMA mishika_migrate IS 'mishika-migrate: runs and steps; `mishika-migrate cleanup` removes it';
CREATE TABLE IF NOT EXISTS mishika_migrate.layout (version int PRIMARY KEY);
CREATE TABLE IF NOT EXISTS mishika_migrate.run (
  id text PRIMARY KEY,
  state text NOT NULL CHECK (state IN ('running', 'finished', 'stopped', 'abandoned')),
  source text NOT NULL,
  target text NOT NULL,
  digest text NOT NULL,
  plan text NOT NULL,
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
  horizon text NOT NULL DEFAULT '',
  finished timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (run, id)
);
CREATE TABLE IF NOT EXISTS mishika_migrate.index (
  run text NOT NULL REFERENCES mishika_migrate.run ON DELETE CASCADE,
  schema text NOT NULL,
  "table" text NOT NULL,
  name text NOT NULL,
  definition text NOT NULL,
  PRIMARY KEY (run, schema, "table", name)
);
CREATE TABLE IF NOT EXISTS mishika_migrate.control (
  run text PRIMARY KEY REFERENCES mishika_migrate.run ON DELETE CASCADE,
  rate int8,
  share int8,
  paused boolean NOT NULL DEFAULT false,
  waiting boolean NOT NULL DEFAULT false,
  halted boolean NOT NULL DEFAULT false,
  asked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE IF NOT EXISTS mishika_migrate.heartbeat (
  side text PRIMARY KEY, beat int8 NOT NULL DEFAULT 0, lsn pg_lsn, at timestamptz
);
CREATE TABLE IF NOT EXISTS mishika_migrate.object (
  run text NOT NULL,
  side text NOT NULL CHECK (side IN ('source', 'target')),
  kind text NOT NULL,
  name text NOT NULL,
  recorded timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (run, side, kind, name)
);
CREATE TABLE IF NOT EXISTS mishika_migrate.follow (
  run text PRIMARY KEY,
  way text NOT NULL CHECK (way IN ('forward', 'back')),
  tables text NOT NULL,
  fingerprint text NOT NULL,
  proved timestamptz,
  ready boolean NOT NULL
);
ALTER TABLE mishika_migrate.follow ADD COLUMN IF NOT EXISTS faults int8 NOT NULL DEFAULT 0;
CREATE TABLE IF NOT EXISTS mishika_migrate.cutover (
  id int8 PRIMARY KEY,
  run text NOT NULL,
  way text NOT NULL CHECK (way IN ('forward', 'back')),
  method text NOT NULL CHECK (method IN ('replication', 'sync')),
  state text NOT NULL CHECK (
    state IN ('begun', 'fenced', 'drained', 'proved', 'switching', 'finished', 'aborted', 'undone')
  ),
  message text NOT NULL DEFAULT '',
  started timestamptz NOT NULL DEFAULT clock_timestamp(),
  finished timestamptz
);
"""

TABLES = tuple(re.findall(r"CREATE TABLE IF NOT EXISTS mishika_migrate\.(\w+)", _CREATE))


def lock(session: connect.Session, endpoint: model.Endpoint, *, former: tuple[int, str] | None = None) -> None:
    """Holds the target for this session; `errors.Refused` names the session that has it.

    `former` is this run's lost session, backend and name: the server may not know yet that it is
    lost, and is told.
    """
    for polls in range(_LOCK_POLLS):
        if _locked(session):
            return
        if former is not None and polls == 0:
            interrupt.end_leftovers(session, former[1], pid=former[0])
        else:
            session.execute("SELECT pg_sleep(0.05)")
    raise errors.Refused(
        f"another run is working on {endpoint.label} ({holder(session) or 'another session'})",
        hint="Wait for it, or see `mishika-migrate status`.",
    )


def _locked(session: connect.Session) -> bool:
    return bool(_one(session, "SELECT pg_try_advisory_lock(%s)", [_LOCK]))


def holder(session: connect.Session) -> str:
    """Who holds the target: backend, name and since when; empty when nobody does."""
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
    return str(who) if who else ""


def create(session: connect.Session) -> None:
    """Makes the ledger where it is missing, and completes one of an older layout. Refuses one of a newer one."""
    version = _one(session, "SELECT max(version) FROM mishika_migrate.layout") if exists(session) else 0
    if version in _UPGRADED:
        with connect.transaction(session):
            ddl.make_schema(session)
            session.execute(_CREATE)
            session.execute("DELETE FROM mishika_migrate.layout")
            session.execute("INSERT INTO mishika_migrate.layout VALUES (%s)", [_LAYOUT])
        version = _LAYOUT
    if version != _LAYOUT:
        raise errors.Refused(
            f"the ledger on the target has layout {version}, this tool writes layout {_LAYOUT}",
            hint="Use the version of mishika-migrate that began the run, or `mishika-migrate cleanup`.",
        )


def exists(session: connect.Session) -> bool:
    return bool(_one(session, "SELECT to_regclass('mishika_migrate.step') IS NOT NULL"))


def missing(session: connect.Session) -> tuple[str, ...] | None:
    """Tables that a whole ledger has and this one has not; None where the target has no ledger at all."""
    if _one(session, "SELECT to_regnamespace('mishika_migrate') IS NULL"):
        return None
    found = session.execute(
        "SELECT t FROM unnest(%s::text[]) WITH ORDINALITY AS wanted (t, n) WHERE NOT EXISTS"
        " (SELECT FROM pg_class WHERE relnamespace = to_regnamespace('mishika_migrate') AND relname = t)"
        " ORDER BY n",
        [list(TABLES)],
    )
    return tuple(str(row[0]) for row in found)


def strangers(session: connect.Session) -> tuple[str, ...]:
    """What would go with the schema and is not the tool's, in the server's words: `view public.x`."""
    found = session.execute(
        "WITH ours AS (SELECT oid FROM pg_class"
        "   WHERE relnamespace = to_regnamespace('mishika_migrate') AND relname = ANY (%s))"
        # All that lies in a schema depends on it, but for indexes and the like, which depend on a table.
        " SELECT pg_describe_object(classid, objid, objsubid) FROM pg_depend"
        " WHERE refclassid = 'pg_namespace'::regclass AND refobjid = to_regnamespace('mishika_migrate')"
        "   AND NOT (classid = 'pg_class'::regclass AND objid IN (TABLE ours))"
        "   AND NOT (classid = 'pg_proc'::regclass AND objid = coalesce(to_regproc('mishika_migrate.fence')::oid, 0))"
        " UNION SELECT pg_describe_object('pg_class'::regclass, r.ev_class, 0) FROM pg_depend d"
        "   JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid"
        "   WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid IN (TABLE ours) AND r.ev_class NOT IN (TABLE ours)"
        " UNION SELECT pg_describe_object('pg_constraint'::regclass, oid, 0) FROM pg_constraint"
        "   WHERE confrelid IN (TABLE ours) AND conrelid NOT IN (TABLE ours)"
        " ORDER BY 1",
        [list(TABLES)],
    )
    return tuple(str(row[0]) for row in found)


def drop(session: connect.Session) -> None:
    """Removes the schema; SQLSTATE 2BP01, and nothing is removed, when there are `strangers`."""
    there = sql.SQL(", ").join(sql.Identifier(SCHEMA, table) for table in TABLES)
    with connect.transaction(session):
        session.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(there))
        session.execute("DROP SCHEMA IF EXISTS mishika_migrate")


def indexes_away(session: connect.Session) -> tuple[str, ...]:
    """Indexes that runs have taken away and that are not back: nothing else knows what they were."""
    if not _one(session, "SELECT to_regclass('mishika_migrate.index') IS NOT NULL"):
        return ()
    found = session.execute("SELECT schema || '.' || name FROM mishika_migrate.index ORDER BY 1")
    return tuple(str(row[0]) for row in found)


def refuse_indexes_away(session: connect.Session, endpoint: model.Endpoint) -> None:
    """Whoever drops the ledger would lose them for good."""
    if away := indexes_away(session):
        more = f" and {len(away) - 3} more" if len(away) > 3 else ""
        raise errors.Refused(
            f"an unfinished run on {endpoint.label} has taken {', '.join(away[:3])}{more} away, and only the ledger"
            " knows what they were",
            hint="`mishika-migrate copy --resume` goes on and builds them, `mishika-migrate reset` undoes the run and"
            " puts them back.",
        )


def begin(session: connect.Session, *, run: str, plan: model.Plan, text: str, tool: str) -> None:
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
            "INSERT INTO mishika_migrate.run (id, state, source, target, digest, plan, planned, tool)"
            " VALUES (%s, 'running', %s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO NOTHING",
            [run, plan.source, plan.target, plan.digest, text, len(plan.steps), tool],
        )


def resume(session: connect.Session, *, run: str) -> None:
    """Makes the run a running one again."""
    session.execute(
        "UPDATE mishika_migrate.run SET state = 'running', message = '', finished = NULL WHERE id = %s", [run]
    )


def outdate(session: connect.Session, *, run: str, steps: Collection[str]) -> None:
    """These steps are to be carried out once more; what they did is still there."""
    with connect.transaction(session):
        session.execute("SET LOCAL synchronous_commit = on")
        session.execute(
            "UPDATE mishika_migrate.step SET stale = true WHERE run = %s AND id = ANY (%s)", [run, list(steps)]
        )


def forget(session: connect.Session, *, run: str, tables: Iterable[model.TableName]) -> None:
    """In the transaction that empties these tables: their steps have not happened."""
    session.execute(
        'DELETE FROM mishika_migrate.step WHERE run = %s AND "table" = ANY (%s)',
        [run, [table.name for table in tables]],
    )


def horizons(session: connect.Session, *, run: str) -> dict[str, str]:
    """Of each landed step, stale or not, the state of the source that its rows come from."""
    found = session.execute("SELECT id, horizon FROM mishika_migrate.step WHERE run = %s", [run])
    return {str(row[0]): str(row[1]) for row in found}


def move(session: connect.Session, *, run: str, step: str, rows: int, horizon: str) -> None:
    """The step's rows are those of a newer state of the source now."""
    session.execute(
        "UPDATE mishika_migrate.step SET rows_out = %(rows)s, rows_in = %(rows)s, horizon = %(horizon)s"
        " WHERE run = %(run)s AND id = %(step)s",
        {"run": run, "step": step, "rows": rows, "horizon": horizon},
    )


def end(session: connect.Session, *, run: str, state: str, message: str = "") -> None:
    """The run's last word, written synchronously whatever the session's setting is."""
    with connect.transaction(session):
        session.execute("SET LOCAL synchronous_commit = on")
        session.execute(
            "UPDATE mishika_migrate.run SET state = %s, message = %s, finished = clock_timestamp() WHERE id = %s",
            [state, message, run],
        )


def abandon(session: connect.Session, *, run: str) -> None:
    """In the transaction that undoes it: nothing of the run is there any more."""
    session.execute("DELETE FROM mishika_migrate.step WHERE run = %s", [run])
    session.execute("DELETE FROM mishika_migrate.index WHERE run = %s", [run])
    session.execute(
        "UPDATE mishika_migrate.run SET state = 'abandoned', message = 'undone', finished = clock_timestamp()"
        " WHERE id = %s",
        [run],
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


def record(session: connect.Session, *, run: str, landed: model.Landed, horizon: str = "") -> None:
    """Completes the claimed entry; it becomes true with the caller's COMMIT."""
    updated = session.execute(
        'UPDATE mishika_migrate.step SET "table" = %s, rows_out = %s, rows_in = %s, bytes = %s,'
        " seconds = %s, horizon = %s, finished = clock_timestamp() WHERE run = %s AND id = %s",
        [
            landed.table,
            landed.rows_out,
            landed.rows_in,
            landed.bytes,
            landed.seconds,
            horizon,
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


def brought(session: connect.Session, *, run: str) -> dict[str, int]:
    """The rows that the run has brought by table, those of stale steps too: they are still there."""
    found = session.execute(
        'SELECT "table", sum(rows_in)::int8 FROM mishika_migrate.step WHERE run = %s AND "table" <> \'\' GROUP BY 1',
        [run],
    )
    return {str(row[0]): int(str(row[1])) for row in found}


def touched(session: connect.Session, *, run: str) -> bool:
    """Whether anything of the run is on the target, be it stale."""
    return bool(_one(session, "SELECT EXISTS (SELECT FROM mishika_migrate.step WHERE run = %s)", [run]))


def unfinished(session: connect.Session) -> model.Unfinished | None:
    """The latest run, if it stopped after something had landed."""
    if not exists(session):
        return None
    row = session.execute(
        "SELECT r.id, r.plan, s.tables FROM mishika_migrate.run r,"
        ' LATERAL (SELECT array_agg(DISTINCT "table") FILTER (WHERE "table" <> \'\') AS tables, count(*) AS n'
        "          FROM mishika_migrate.step s WHERE s.run = r.id) s"
        " WHERE r.state IN ('running', 'stopped') AND s.n > 0 ORDER BY r.started DESC LIMIT 1"
    ).fetchone()
    if row is None:
        return None
    tables = row[2] if isinstance(row[2], list) else []
    return model.Unfinished(run=str(row[0]), plan=str(row[1]), tables=frozenset(map(str, tables)))


def enter(session: connect.Session, *, run: str, plan: model.Plan, text: str, tool: str) -> None:
    """A run that is finished with the open transaction; nobody ever continues it."""
    session.execute(
        "INSERT INTO mishika_migrate.run (id, state, source, target, digest, plan, planned, tool, finished)"
        " VALUES (%s, 'finished', %s, %s, %s, %s, %s, %s, clock_timestamp())",
        [run, plan.source, plan.target, plan.digest, text, len(plan.chosen), tool],
    )


def seen(session: connect.Session, *, table: str) -> tuple[tuple[str, ...], str] | None:
    """What the last finished run that has brought rows of the table has seen of it: its horizons, and its plan."""
    row = session.execute(
        "SELECT array_agg(DISTINCT s.horizon), r.plan FROM mishika_migrate.step s"
        " JOIN mishika_migrate.run r ON r.id = s.run"
        " WHERE s.\"table\" = %s AND NOT s.stale AND r.state = 'finished'"
        " GROUP BY r.id, r.plan, r.started ORDER BY r.started DESC LIMIT 1",
        [table],
    ).fetchone()
    if row is None or not isinstance(row[0], list):
        return None
    return tuple(map(str, row[0])), str(row[1])


def plans(session: connect.Session) -> list[tuple[str, str]]:
    """The runs that have brought something, the latest last, with their plans as JSON; none without a ledger."""
    if not exists(session):
        return []
    found = session.execute(
        "SELECT r.id, r.plan FROM mishika_migrate.run r WHERE r.state <> 'abandoned'"
        " AND EXISTS (SELECT FROM mishika_migrate.step s WHERE s.run = r.id) ORDER BY r.started"
    )
    return [(str(row[0]), str(row[1])) for row in found]


def keep_index(session: connect.Session, *, run: str, table: model.TableName, name: str, definition: str) -> None:
    """In the transaction that drops it."""
    session.execute(
        "INSERT INTO mishika_migrate.index VALUES (%s, %s, %s, %s, %s)",
        [run, table.schema, table.name, name, definition],
    )


def kept_indexes(session: connect.Session, *, run: str) -> dict[tuple[model.TableName, str], str]:
    """The definitions of what the run has dropped and not yet restored, by table and name."""
    found = session.execute(
        'SELECT schema, "table", name, definition FROM mishika_migrate.index WHERE run = %s ORDER BY 1, 2, 3', [run]
    )
    return {(model.TableName(schema=str(row[0]), name=str(row[1])), str(row[2])): str(row[3]) for row in found}


def release_index(session: connect.Session, *, run: str, table: model.TableName, name: str) -> None:
    """In the transaction that restores it."""
    session.execute(
        'DELETE FROM mishika_migrate.index WHERE run = %s AND schema = %s AND "table" = %s AND name = %s',
        [run, table.schema, table.name, name],
    )


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


def _one(session: connect.Session, query: str, values: list[object] | None = None) -> object:
    row = session.execute(query, values).fetchone()
    return row[0] if row else None
