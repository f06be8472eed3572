"""Native logical replication: publications, slots and subscriptions, made, looked at and removed.

Imports pg.connect, pg.ddl and the words. Postgres itself moves the rows; nothing is decoded here. Every
object is named by its run, and what makes one leaves an error as psycopg raised it, but for those
that open sessions of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import psycopg
from psycopg import conninfo, pq, sql

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, ddl

PREFIX = "mishika_migrate_"
OLDEST = 15_00_00
"""The oldest server on either side: CREATE_REPLICATION_SLOT's options, `disable_on_error`, error counts."""


# -- publications ---------------------------------------------------------------------------------


def publish(session: connect.Session, name: str, tables: Sequence[model.TableName]) -> None:
    """Rows of partitioned tables are published as those of their root, whatever the target's partitions are."""
    session.execute(
        sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)").format(
            sql.Identifier(name), sql.SQL(", ").join(sql.Identifier(table.schema, table.name) for table in tables)
        )
    )


def widen(session: connect.Session, name: str, tables: Sequence[model.TableName]) -> None:
    """These tables too, from the next transaction on."""
    session.execute(
        sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(
            sql.Identifier(name), sql.SQL(", ").join(sql.Identifier(table.schema, table.name) for table in tables)
        )
    )


def refresh(session: connect.Session, name: str) -> None:
    """The subscriber looks again what is published; rows that are there already are not copied."""
    session.execute(
        sql.SQL("ALTER SUBSCRIPTION {} REFRESH PUBLICATION WITH (copy_data = false)").format(sql.Identifier(name))
    )


def unpublish(session: connect.Session, name: str) -> None:
    session.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(name)))


# -- slots ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def slot(
    endpoint: model.Endpoint, name: str, *, session: str, stopping: Callable[[], bool] = connect.never
) -> Iterator[str]:
    """Makes the slot; yields the snapshot from which on it has every change, importable inside the block.

    Waits for all transactions that write on the server to end. `session` names the connection's own session.
    """
    with connect.session(endpoint, name=session, answered=True, stopping=stopping, replication=True) as walsender:
        made = walsender.execute(
            sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'export')").format(sql.Identifier(name))
        ).fetchone()
        assert made is not None
        yield str(made[2])


def new_slot(session: connect.Session, name: str) -> None:
    """One whose starting point nobody copies from."""
    session.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])


def may_replicate(endpoint: model.Endpoint, *, session: str) -> str:
    """Why the role cannot open a replication connection; empty when it can. Tried for real: pg_hba may forbid it."""
    try:
        with connect.session(endpoint, name=session, answered=True, replication=True):
            return ""
    except errors.ServerError as error:
        return error.message


def drop_slot(session: connect.Session, name: str, *, seconds: float = 5.0) -> None:
    """Ends who reads from it first; nothing when there is none."""
    for _ in range(max(int(seconds / 0.05), 1)):
        found = session.execute(
            "SELECT active_pid, pg_terminate_backend(active_pid), pg_sleep(0.05)"
            " FROM pg_replication_slots WHERE slot_name = %s AND active_pid IS NOT NULL",
            [name],
        ).fetchone()
        if found is None:
            break
    session.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", [name])


_SLOTS = """
SELECT slot_name::text, active, (now - coalesce(confirmed_flush_lsn, restart_lsn))::int8, (now - restart_lsn)::int8,
  coalesce(wal_status, 'lost'), safe_wal_size, {reason}, {since}
FROM pg_replication_slots, LATERAL (
  SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END
) w (now)
WHERE starts_with(slot_name, %s) AND database = current_database() ORDER BY 1
"""


_SINCE = "extract(epoch FROM clock_timestamp() - inactive_since)"


def slots(session: connect.Session) -> tuple[model.Slot, ...]:
    """This tool's, of any run."""
    version = session.info.server_version
    query = _SLOTS.format(
        # 17 has both columns.
        reason="coalesce(invalidation_reason, '')" if version >= 17_00_00 else "''",
        since="extract(epoch FROM clock_timestamp() - inactive_since)::float8"
        if version >= 17_00_00
        else "NULL::float8",
    )
    return tuple(
        model.Slot(
            name=str(row[0]),
            active=bool(row[1]),
            lag=_whole(row[2]),
            retained=_whole(row[3]),
            status=str(row[4]),
            safe=None if row[5] is None else _whole(row[5]),
            reason=str(row[6]),
            inactive=float(str(row[7])) if row[7] is not None else None,
        )
        for row in session.execute(query.encode(), [PREFIX])
    )


def written(session: connect.Session) -> int:
    """Bytes of WAL since the server began; the difference of two looks is what was written between them."""
    row = session.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::int8").fetchone()
    return _whole(row[0]) if row else 0


def _whole(value: object) -> int:
    return int(str(value)) if value is not None else 0


# -- subscriptions --------------------------------------------------------------------------------


_NO_PUBLICATION = "42704"  # a warning: 'publication "…" does not exist on the publisher'

# What servers keep of statements: their logs when one fails, is slow or is DDL, and the extension's view.
_KEEPING = {
    "log_min_error_statement": "panic",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "pg_stat_statements.track_utility": "off",
}


@contextlib.contextmanager
def _unkept(session: connect.Session) -> Iterator[None]:
    """A transaction whose statements the server does not keep, as far as the role may say so: one holds a password."""
    begun = session.info.transaction_status is not pq.TransactionStatus.IDLE
    with contextlib.nullcontext() if begun else connect.transaction(session):
        if session.info.server_version >= 15_00_00:
            session.execute(
                sql.SQL(
                    "SELECT set_config(name, value, true) FROM unnest({}::text[], {}::text[]) AS k (name, value)"
                    " WHERE has_parameter_privilege(name, 'SET')"
                ).format(sql.Literal(list(_KEEPING)), sql.Literal(list(_KEEPING.values())))
            )
        yield


def subscribe(
    session: connect.Session, name: str, *, slot: str | None, publication: str, reaching: str, enabled: bool
) -> None:
    """Follows the slot without copying. The server connects to `reaching` for it, so that a wrong address fails here.

    A row that cannot be applied disables it instead of being tried for ever. From 16 on nothing is
    sent back that came from the other side. The statement stays out of what the server keeps of statements where the
    role may say so: it holds a password.
    """
    options = [
        sql.SQL("create_slot = false"),
        sql.SQL("copy_data = false"),
        sql.SQL("slot_name = {}").format(sql.SQL("NONE") if slot is None else sql.Literal(slot)),
        sql.SQL("enabled = {}").format(sql.SQL("true" if enabled else "false")),
        sql.SQL("disable_on_error = true"),
    ]
    if session.info.server_version >= 16_00_00:
        options.append(sql.SQL("origin = none"))
    with _unkept(session):
        session.execute(
            sql.SQL("CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION {} WITH ({})").format(
                sql.Identifier(name), sql.Literal(reaching), sql.Identifier(publication), sql.SQL(", ").join(options)
            )
        )


def reaches(session: connect.Session, name: str, *, publication: str, reaching: str) -> bool:
    """Raises what the server says when it connects there as a subscriber; leaves nothing behind.

    Whether the publication is there: another server may answer at that address.
    """
    told: list[str] = []

    def hear(notice: psycopg.errors.Diagnostic) -> None:
        told.append(notice.sqlstate or "")

    session.add_notice_handler(hear)
    session.execute("BEGIN")
    try:
        subscribe(session, name, slot=None, publication=publication, reaching=reaching, enabled=False)
    except psycopg.errors.UndefinedTable:
        return True  # it names tables that are still to be made here
    finally:
        if not session.closed:
            session.execute("ROLLBACK")
            session.remove_notice_handler(hear)
    return _NO_PUBLICATION not in told


def readdress(session: connect.Session, name: str, reaching: str) -> None:
    """From now on it connects there."""
    with _unkept(session):
        session.execute(
            sql.SQL("ALTER SUBSCRIPTION {} CONNECTION {}").format(sql.Identifier(name), sql.Literal(reaching))
        )


def enable(session: connect.Session, name: str, enabled: bool) -> None:
    word = sql.SQL("ENABLE" if enabled else "DISABLE")
    session.execute(sql.SQL("ALTER SUBSCRIPTION {} {}").format(sql.Identifier(name), word))


def unsubscribe(session: connect.Session, name: str) -> None:
    """Removes it, and leaves the slot on the other server, which may be gone."""
    if (
        session.execute(
            "SELECT FROM pg_subscription WHERE subname = %s AND subdbid = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())",
            [name],
        ).fetchone()
        is None
    ):
        return
    enable(session, name, enabled=False)
    session.execute(sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(sql.Identifier(name)))
    session.execute(sql.SQL("DROP SUBSCRIPTION {}").format(sql.Identifier(name)))


_SUBSCRIPTIONS = """
SELECT s.subname::text, s.subenabled, w.pid IS NOT NULL, coalesce(e.apply_error_count, 0)::int8,
  (SELECT count(*) FROM pg_subscription_rel r WHERE r.srsubid = s.oid AND r.srsubstate <> 'r')
FROM pg_subscription s
LEFT JOIN pg_stat_subscription w ON w.subid = s.oid AND w.relid IS NULL{leader}
LEFT JOIN pg_stat_subscription_stats e ON e.subid = s.oid
WHERE starts_with(s.subname, %s) AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY 1
"""


def subscriptions(session: connect.Session) -> tuple[model.Subscription, ...]:
    """This tool's, of any run; its errors are counted since the server's statistics began."""
    if session.info.server_version < OLDEST:
        return ()
    # From 16 on a large transaction may have workers of its own, which have a leader.
    leader = " AND w.leader_pid IS NULL" if session.info.server_version >= 16_00_00 else ""
    found = session.execute(_SUBSCRIPTIONS.format(leader=leader).encode(), [PREFIX])
    return tuple(
        model.Subscription(
            name=str(row[0]), enabled=bool(row[1]), working=bool(row[2]), errors=_whole(row[3]), unready=_whole(row[4])
        )
        for row in found
    )


def publications(session: connect.Session) -> tuple[str, ...]:
    """This tool's, of any run."""
    found = session.execute(
        "SELECT pubname::text FROM pg_publication WHERE starts_with(pubname, %s) ORDER BY 1", [PREFIX]
    )
    return tuple(str(row[0]) for row in found)


_NAMED = r"""
SELECT kind || ' ' || name FROM (
  SELECT 'subscription', subname::text FROM pg_subscription
    WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
  UNION ALL SELECT 'slot', slot_name::text FROM pg_replication_slots WHERE database = current_database()
  UNION ALL SELECT 'publication', pubname::text FROM pg_publication
  UNION ALL SELECT 'trigger', tgname || ' on ' || count(*) || ' tables' FROM pg_trigger
    WHERE NOT tgisinternal AND tgparentid = 0 GROUP BY tgname
  UNION ALL SELECT 'schema', nspname::text FROM pg_namespace
) o (kind, name) WHERE name LIKE 'mishika\_migrate%' ORDER BY 1
"""


def named(session: connect.Session) -> tuple[str, ...]:
    """All that bears this tool's name in the database, as `kind name`."""
    return tuple(str(row[0]) for row in session.execute(_NAMED.encode()))


# -- heartbeats -----------------------------------------------------------------------------------

HEARTBEAT = model.TableName(schema="mishika_migrate", name="heartbeat")

_HEARTBEAT = """
CREATE TABLE IF NOT EXISTS mishika_migrate.heartbeat (
  side text PRIMARY KEY, beat int8 NOT NULL DEFAULT 0, lsn pg_lsn, at timestamptz
);
"""


def make_heartbeat(session: connect.Session, side: model.Role) -> None:
    """The published table by which one server knows how far it has got with the other's changes.

    The row of `side` begins anew, on both servers, before anything is published: an UPDATE of a row
    that the subscriber does not have is silently left out. Those of both sides are made at once: a row
    made on both servers while one follows the other would collide.
    """
    ddl.make_schema(session)
    session.execute(_HEARTBEAT)
    session.execute("INSERT INTO mishika_migrate.heartbeat (side) VALUES ('source'), ('target') ON CONFLICT DO NOTHING")
    session.execute("UPDATE mishika_migrate.heartbeat SET beat = 0, lsn = NULL, at = NULL WHERE side = %s", [side])


def beat(session: connect.Session, side: model.Role) -> int:
    """One more; it arrives after everything that was committed before it."""
    row = session.execute(
        "UPDATE mishika_migrate.heartbeat SET beat = beat + 1, at = clock_timestamp(),"
        " lsn = pg_current_wal_insert_lsn() WHERE side = %s RETURNING beat",
        [side],
    ).fetchone()
    if row is None:
        raise errors.Refused(
            "the heartbeat of this tool is gone from the server that is followed",
            hint="Somebody has removed schema mishika_migrate: `mishika-migrate complete`, then copy again.",
        )
    return _whole(row[0])


def heard(session: connect.Session, side: model.Role) -> int:
    """The last beat of that side that has arrived; 0 for none."""
    row = session.execute("SELECT beat FROM mishika_migrate.heartbeat WHERE side = %s", [side]).fetchone()
    return _whole(row[0]) if row else 0


def last_heard(session: connect.Session, side: model.Role) -> str:
    """When the last beat of that side was sent, by its clock; empty where none has arrived."""
    if session.execute("SELECT to_regclass('mishika_migrate.heartbeat')").fetchone() == (None,):
        return ""
    row = session.execute("SELECT at::text FROM mishika_migrate.heartbeat WHERE side = %s", [side]).fetchone()
    return str(row[0]) if row and row[0] else ""


def reaching(endpoint: model.Endpoint, *, own: bool) -> str:
    """The address as another server can use it; `own` says that it was written for this machine.

    Raises `errors.ConfigurationError` where it names no host: the other server would take that for itself.
    """
    given = conninfo.conninfo_to_dict(endpoint.conninfo)
    kept = {key: value for key, value in given.items() if value is not None and key not in _OWN}
    if not (kept.get("host") or kept.get("hostaddr") or (kept.get("service") and not own)):
        other = "target" if endpoint.role == "source" else "source"
        raise errors.ConfigurationError(
            f"the address of the {endpoint.role} names no host that the {other}'s server could connect to",
            hint=f"Give it as that server reaches it: --{endpoint.role}-from-{other} URL.",
        )
    if own:
        kept.pop("service", None)
    return conninfo.make_conninfo("", **kept)


# What a program of this machine says of itself, or the server refuses in a subscription.
_OWN = frozenset({"application_name", "fallback_application_name", "client_encoding", "options", "replication"})
