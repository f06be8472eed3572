"""What a server allows for following, read with one query a fact.

Imports pg.connect, pg.replication and the words. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import rows

from mishika_migrate import model
from mishika_migrate.pg import connect, replication

_SERVER = """
SELECT current_user::text AS "user", current_database()::text AS database, pg_is_in_recovery() AS in_recovery,
  current_setting('wal_level') AS wal_level,
  current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots)::int AS slots,
  current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication)::int AS senders,
  least(current_setting('max_logical_replication_workers')::int, current_setting('max_worker_processes')::int)
    - (SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL)::int AS workers,
  r.rolsuper AS superuser,
  r.rolsuper OR {subscribes} AS subscribes,
  has_database_privilege(current_database(), 'CREATE') AS creates,
  nullif((SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), -1) * 1048576 AS keeps,
  {idles} AS idles
FROM pg_roles r WHERE r.rolname = current_user
"""

_GROUNDS = """
SELECT c.relname::text AS "table", pg_get_userbyid(c.relowner)::text AS owner,
  pg_has_role(c.relowner, 'USAGE') AS owned, {settable} AS settable,
  NOT EXISTS (SELECT FROM pg_class l WHERE l.relpersistence = 'u'
    AND (l.oid = c.oid OR l.oid IN (SELECT relid FROM pg_partition_tree(c.oid)))) AS logged,
  CASE c.relreplident WHEN 'f' THEN true WHEN 'n' THEN false
    WHEN 'i' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisvalid)
    ELSE EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indisvalid
      AND i.indimmediate) END AS identified,
  coalesce((SELECT array_agg(t.tgname::text ORDER BY t.tgname) FROM pg_trigger t
    WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled IN ('A', 'R')), '{{}}') AS always
FROM pg_class c WHERE c.relnamespace = to_regnamespace(quote_ident(%(schema)s)) AND c.relname = ANY (%(tables)s)
ORDER BY array_position(%(tables)s::text[], c.relname::text)
"""

# A transaction without a number has written nothing, and no slot waits for it; but a fence waits for its locks, and
# for those of VACUUM, which autovacuum gives back when it is asked, unless it prevents wraparound.
_WRITERS = """
SELECT coalesce(nullif(application_name, ''), 'a session without a name') || ' as ' || coalesce(usename::text, '?')
    || ' from ' || coalesce(host(client_addr), 'a local socket') || ', backend ' || pid AS who,
  extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds, false AS prepared
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND (backend_type = 'client backend' OR query LIKE 'autovacuum: %% (to prevent wraparound)')
  AND xact_start < clock_timestamp() - make_interval(secs => %(seconds)s)
  AND NOT starts_with(application_name, 'mishika-migrate/')
  AND (backend_xid IS NOT NULL OR EXISTS (SELECT FROM pg_locks l WHERE l.pid = pg_stat_activity.pid AND l.granted
    AND l.mode IN ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock',
      'ExclusiveLock', 'AccessExclusiveLock')
    AND l.locktype = 'relation' AND l.relation >= 16384))
UNION ALL
SELECT 'prepared transaction ' || quote_literal(gid), extract(epoch FROM clock_timestamp() - prepared)::float8, true
FROM pg_prepared_xacts WHERE database = current_database()
ORDER BY 2 DESC
"""


# Whose sessions one may not see shows neither its transaction's age nor its number, but its locks.
_LOCKING = """
SELECT DISTINCT ON (l.pid) l.pid, l.virtualtransaction, c.relname::text
FROM pg_locks l JOIN pg_stat_activity a USING (pid) JOIN pg_class c ON c.oid = l.relation
WHERE l.locktype = 'relation' AND l.granted AND l.relation >= 16384 AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.mode IN ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock',
    'ExclusiveLock', 'AccessExclusiveLock')
  AND a.xact_start IS NULL AND a.backend_type IS NULL
ORDER BY l.pid, c.relname
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Locking:
    """A transaction of a session that this role may not see, and a table that it keeps a writer's lock on."""

    pid: int
    transaction: str
    table: str = field(compare=False)


def read(
    session: connect.Session, endpoint: model.Endpoint, tables: Sequence[str], *, patience: float, name: str
) -> model.Footing:
    """`patience` is the age in seconds from which on an open transaction counts as long. On the source a replication
    connection is tried, by that `name`."""
    version = session.info.server_version
    query = _SERVER.format(
        subscribes="pg_has_role('pg_create_subscription', 'USAGE')" if version >= 16_00_00 else "false",
        # Seconds in 18, where it came.
        idles="nullif((SELECT setting::float8 FROM pg_settings WHERE name = 'idle_replication_slot_timeout'), 0)"
        if version >= 18_00_00
        else "NULL::float8",
    )
    # From 16 on rows are applied as the owner of their table, to whom the subscription's must be allowed to SET ROLE.
    grounds = _GROUNDS.format(settable="pg_has_role(c.relowner, 'SET')" if version >= 16_00_00 else "true")
    cursor = session.cursor(row_factory=rows.dict_row)
    found: dict[str, Any] = cursor.execute(query.encode()).fetchone() or {}
    wanted = {"schema": endpoint.schema, "tables": list(tables)}
    return model.Footing(
        role=endpoint.role,
        label=endpoint.label,
        version=version,
        grounds=tuple(
            model.Ground(**{**row, "always": tuple(row["always"])})
            for row in session.cursor(row_factory=rows.dict_row).execute(grounds.encode(), wanted)
        ),
        writers=writers(session, patience=patience),
        replicates=replication.may_replicate(endpoint, session=name),
        **found,
    )


def locking(session: connect.Session) -> frozenset[Locking]:
    """Transactions that have written just now, of sessions that this role may not see."""
    found = session.execute(_LOCKING.encode())
    return frozenset(
        Locking(pid=int(str(pid)), transaction=str(number), table=str(table)) for pid, number, table in found
    )


# Tables of a role of its own that can log in were made for the application there, whatever else bears the old name.
_SHUT_OUT = """
SELECT r.rolname::text, c.relname::text
FROM unnest(%(tables)s::text[], %(owners)s::text[]) WITH ORDINALITY u (name, owner, number)
JOIN pg_class c ON c.relname = u.name AND c.relnamespace = to_regnamespace(quote_ident(%(schema)s))
JOIN pg_roles r ON r.rolname = u.owner
JOIN pg_roles o ON o.oid = c.relowner
WHERE (o.rolname = current_user OR o.rolsuper OR NOT o.rolcanlogin)
  AND NOT (has_schema_privilege(r.oid, c.relnamespace, 'USAGE')
    AND has_table_privilege(r.oid, c.oid, 'SELECT') AND has_table_privilege(r.oid, c.oid, 'INSERT')
    AND has_table_privilege(r.oid, c.oid, 'UPDATE') AND has_table_privilege(r.oid, c.oid, 'DELETE'))
ORDER BY u.number
"""


def shut_out(session: connect.Session, schema: str, owners: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
    """Roles of the server that may not read and write all of the tables of which `owners` says that they are theirs,
    each with those tables; nothing of roles that the server has not."""
    asked = {"schema": schema, "tables": list(owners), "owners": list(owners.values())}
    found: dict[str, list[str]] = {}
    for role, table in session.execute(_SHUT_OUT.encode(), asked):
        found.setdefault(str(role), []).append(str(table))
    return found


def writers(session: connect.Session, *, patience: float) -> tuple[model.Writer, ...]:
    """Transactions that have been open for longer and may have written."""
    found = session.cursor(row_factory=rows.dict_row).execute(_WRITERS.encode(), {"seconds": patience})
    return tuple(model.Writer(**row) for row in found)
