"""What moves in a database just now, and who is connected to it.

Imports pg.connect and the words. Rows are counted by the server's statistics, which lag: a backend adds
what it has done at the end of a transaction, once a second at most, and the rest of a burst only after ten
seconds of idling (PostgreSQL 15 and later) or with its next transaction (before). Sums are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

from psycopg import rows, sql

from mishika_migrate import model
from mishika_migrate.pg import connect

_CHEAP_BYTES = 64 * 1024 * 1024

# Without pg_monitor, or the other's role, a server tells of a session its pid, user and name, and no more.
_VISITORS = """
SELECT pid, coalesce(usename::text, '') AS user, coalesce(application_name, '') AS application,
       CASE WHEN backend_type IS NULL THEN '' ELSE coalesce(host(client_addr), 'local') END AS client,
       coalesce(state, '') AS state, backend_xid IS NOT NULL AS writing, backend_type IS NULL AS hidden,
       extract(epoch FROM clock_timestamp() - backend_start)::float8 AS connected,
       extract(epoch FROM clock_timestamp() - query_start)::float8 AS asked
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND usesysid IS NOT NULL
  AND NOT starts_with(coalesce(application_name, ''), 'mishika-migrate')
  AND coalesce(backend_type, 'client backend') = 'client backend'
ORDER BY backend_start NULLS LAST, pid
"""


def visitors(session: connect.Session) -> tuple[model.Visitor, ...]:
    """The sessions of others in this database, the oldest first; never what they ask."""
    cursor = session.cursor(row_factory=rows.dict_row)
    return tuple(model.Visitor(**row) for row in cursor.execute(_VISITORS))


def counters(session: connect.Session, schema: str, tables: Sequence[str]) -> dict[str, int]:
    """How often rows of each table were written since the server counts, all kinds of writing together.

    Of a partitioned table it is that of its partitions.
    """
    # Whoever asks twice in one transaction is given the first answer again.
    session.execute("SELECT pg_stat_clear_snapshot()")
    found = session.execute(
        "SELECT c.relname::text, coalesce(sum(s.n_tup_ins + s.n_tup_upd + s.n_tup_del), 0)::int8"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " CROSS JOIN LATERAL (SELECT c.oid AS relid WHERE c.relkind = 'r'"
        "   UNION SELECT t.relid FROM pg_partition_tree(c.oid) t WHERE c.relkind = 'p') leaf"
        " LEFT JOIN pg_stat_all_tables s ON s.relid = leaf.relid"
        " WHERE n.nspname = %s AND c.relname = ANY (%s) AND c.relkind IN ('r', 'p') GROUP BY 1",
        [schema, list(tables)],
    )
    return {str(row[0]): int(str(row[1])) for row in found}


def summable(session: connect.Session, schema: str, columns: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Those of these columns (table, column) that are numbers the role may read, of tables that are small."""
    found = session.execute(
        "SELECT c.relname::text, a.attname::text FROM unnest(%(tables)s::text[], %(columns)s::text[]) w (t, c)"
        " JOIN pg_class c ON c.relname = w.t AND c.relkind = 'r'"
        " JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = %(schema)s"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = w.c AND NOT a.attisdropped"
        " WHERE a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'float4'::regtype,"
        "   'float8'::regtype, 'numeric'::regtype) AND has_column_privilege(c.oid, a.attnum, 'SELECT')"
        "   AND has_schema_privilege(n.oid, 'USAGE') AND NOT row_security_active(c.oid)"
        "   AND pg_relation_size(c.oid) <= %(most)s",
        {
            "schema": schema,
            "tables": [table for table, _ in columns],
            "columns": [column for _, column in columns],
            "most": _CHEAP_BYTES,
        },
    )
    return tuple((str(row[0]), str(row[1])) for row in found)


def sums(
    session: connect.Session, schema: str, columns: Sequence[tuple[str, str]]
) -> Mapping[tuple[str, str], Decimal]:
    """The sum of each of these columns, without what is no number.

    As numeric: a sum of float8 is another one with every order in which the rows are read.
    """
    if not columns:
        return {}
    query = sql.SQL(" UNION ALL ").join(
        sql.SQL(
            "SELECT {number}, coalesce(sum({column}::numeric) FILTER (WHERE {column}::float8 < 'Infinity'"
            " AND {column}::float8 > '-Infinity'), 0) FROM {table}"
        ).format(
            number=sql.Literal(number),
            column=sql.Identifier(column),
            table=sql.Identifier(schema, table),
        )
        for number, (table, column) in enumerate(columns)
    )
    return {columns[int(str(row[0]))]: Decimal(str(row[1])) for row in session.execute(query)}
