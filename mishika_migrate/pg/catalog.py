"""What one server has, read once: one query a fact, never one a table.

Imports pg.connect and the words. All texts the server prints (types, defaults, view and index
definitions) are printed with the endpoint's schema in the search path, so that they mean the same
in a schema of another name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from psycopg import rows, sql

from mishika_migrate import model
from mishika_migrate.pg import connect

# Tables whose heap (without TOAST) has at most this many bytes are counted. Larger ones are estimated from
# their statistics, and where they were never analyzed, from a sample of about as much.
_COUNTED_BYTES = 8 * 1024 * 1024

_SERVER = """
SELECT current_setting('server_version_num')::int AS version,
       d.datname::text AS database, pg_encoding_to_char(encoding) AS encoding,
       current_user::text AS user,
       pg_is_in_recovery() AS in_recovery,
       n.oid IS NOT NULL AS schema_exists,
       has_database_privilege(d.oid, 'CREATE') AS may_create_schema,
       coalesce(has_schema_privilege(n.oid, 'USAGE'), false) AS may_use_schema,
       coalesce(has_schema_privilege(n.oid, 'CREATE'), false) AS may_create_in_schema
FROM pg_database d LEFT JOIN pg_namespace n ON n.nspname = %(schema)s
WHERE d.datname = current_database()
"""

_TABLES = """
SELECT c.oid::int8 AS oid, c.relname::text AS name, c.relkind = 'p' AS partitioned,
       pg_get_userbyid(c.relowner)::text AS owner,
       row_security_active(c.oid) AS hidden,
       size.bytes, size.heap, size.rows,
       coalesce(size.leaves, '{}') AS leaves,
       array_remove(ARRAY[
         CASE WHEN has_table_privilege(c.oid, 'SELECT') THEN 'SELECT' END,
         CASE WHEN has_table_privilege(c.oid, 'INSERT') THEN 'INSERT' END,
         CASE WHEN has_table_privilege(c.oid, 'UPDATE') THEN 'UPDATE' END,
         CASE WHEN has_table_privilege(c.oid, 'DELETE') THEN 'DELETE' END,
         CASE WHEN has_table_privilege(c.oid, 'TRUNCATE') THEN 'TRUNCATE' END,
         CASE WHEN pg_has_role(c.relowner, 'USAGE') THEN 'OWNER' END], NULL) AS privileges
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
  SELECT sum(pg_table_size(l.oid))::int8 AS bytes,
         sum(pg_relation_size(l.oid))::int8 AS heap,
         CASE WHEN bool_and(l.reltuples > 0 AND l.relpages > 0)
              THEN sum(l.reltuples::float8 / greatest(l.relpages, 1)
                       * (pg_relation_size(l.oid) / current_setting('block_size')::int))
              END::float8 AS rows,
         array_agg(ARRAY[ln.nspname::text, l.relname::text]) FILTER (WHERE l.oid <> c.oid) AS leaves
  FROM pg_class l JOIN pg_namespace ln ON ln.oid = l.relnamespace
  WHERE l.oid = c.oid AND c.relkind = 'r'
     OR c.relkind = 'p' AND l.oid IN (SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf)
) size
WHERE n.nspname = %(schema)s AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND c.relpersistence <> 't' AND NOT EXISTS (
    SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY c.relname
"""

# Only asked for names: a URL with the wrong ?schema= should be answered with the right one.
_ELSEWHERE = """
SELECT n.nspname::text AS schema, c.relname::text AS name
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname <> %(schema)s AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'mishika_migrate')
  AND c.relkind IN ('r', 'p') AND NOT c.relispartition
ORDER BY 1, 2
"""

# Arrays and rows of types with their own OID carry that OID inside their binary form, and the
# target's differs ("binary data has array element type … instead of expected").
_COLUMNS = """
SELECT a.attrelid::int8 AS oid, a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS type,
       NOT a.attnotnull AS nullable, pg_get_expr(d.adbin, d.adrelid) AS "default",
       a.attgenerated <> '' AS generated, a.attidentity <> '' AS identity,
       coalesce((SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder)
                 FROM pg_enum e WHERE e.enumtypid IN (a.atttypid, t.typelem)), '{}') AS labels,
       t.typsend <> 0 AND t.typreceive <> 0 AND t.typtype <> 'c'
         AND t.typelem < 16384 AND t.typbasetype < 16384 AS "binary"
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = ANY (%(oids)s) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""

_FOREIGN_KEYS = """
SELECT k.conrelid::int8 AS oid, k.conname::text AS name, k.condeferrable AS deferrable,
       CASE WHEN rn.nspname = %(schema)s THEN r.relname::text
            ELSE rn.nspname || '.' || r.relname END AS references,
       (SELECT array_agg(a.attname::text ORDER BY u.n) FROM unnest(k.conkey) WITH ORDINALITY u (num, n)
        JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.num) AS columns,
       (SELECT array_agg(a.attname::text ORDER BY u.n) FROM unnest(k.confkey) WITH ORDINALITY u (num, n)
        JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.num) AS referenced
FROM pg_constraint k JOIN pg_class r ON r.oid = k.confrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conrelid = ANY (%(oids)s)
ORDER BY k.conrelid, k.conname
"""

_INDEXES = """
SELECT i.indrelid::int8 AS oid, c.relname::text AS name, pg_get_indexdef(i.indexrelid) AS definition,
       i.indisunique AS "unique", i.indisprimary AS "primary", pg_get_constraintdef(k.oid) AS "constraint",
       (SELECT array_agg(coalesce(a.attname::text, pg_get_indexdef(i.indexrelid, n, true)) ORDER BY n)
        FROM generate_series(1, i.indnkeyatts) n
        LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = nullif(i.indkey[n - 1], 0)) AS columns
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid
  AND k.contype IN ('p', 'u', 'x')
WHERE i.indrelid = ANY (%(oids)s) AND i.indisvalid
ORDER BY i.indrelid, c.relname
"""

# tgtype: 1 row, 2 before, 4 insert. tgenabled: O fires for ordinary sessions, A always.
_TRIGGERS = """
SELECT tgrelid::int8 AS oid, tgname::text AS name, tgtype & 3 = 3 AS before_insert, tgenabled = 'A' AS always
FROM pg_trigger
WHERE NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgtype & 4 = 4 AND tgrelid = ANY (%(oids)s)
ORDER BY tgrelid, tgname
"""

# The subselect keeps the privilege functions, which fail on anything else, away from other relations.
# A sequence belongs to the column that owns it, else to the first whose default draws from it.
_SEQUENCES = """
SELECT s.name, o."table", o."column", has_sequence_privilege(s.oid, 'UPDATE') AS writable,
       has_sequence_privilege(s.oid, 'SELECT') AS readable
FROM (SELECT c.oid, c.relnamespace AS schema, c.relname::text AS name
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relkind = 'S' AND n.nspname = %(schema)s OFFSET 0) s
LEFT JOIN LATERAL (
  SELECT t.relname::text AS "table", a.attname::text AS "column"
  FROM (SELECT d.refobjid AS oid, d.refobjsubid AS number, 0 AS rank FROM pg_depend d
        WHERE d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.refclassid = 'pg_class'::regclass
          AND d.deptype IN ('a', 'i')
        UNION ALL
        SELECT f.adrelid, f.adnum, 1 FROM pg_depend d JOIN pg_attrdef f ON f.oid = d.objid
        WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = s.oid) u
  JOIN pg_class t ON t.oid = u.oid AND t.relnamespace = s.schema
  JOIN pg_attribute a ON a.attrelid = u.oid AND a.attnum = u.number
  ORDER BY u.rank, t.relname, a.attnum LIMIT 1
) o ON true
ORDER BY s.name
"""

# Views of an extension (pg_stat_statements) come with the extension. 16384 is the first OID that is not
# the server's own (FirstNormalObjectId).
_VIEWS = """
SELECT c.relname::text AS name, pg_get_viewdef(c.oid) AS definition,
       coalesce(array_agg(DISTINCT r.relname::text) FILTER (WHERE r.relnamespace = c.relnamespace), '{}') AS reads,
       coalesce(array_agg(DISTINCT ARRAY[r.relname::text, a.attname::text])
                FILTER (WHERE r.relnamespace = c.relnamespace AND a.attnum > 0), '{}') AS columns,
       coalesce(array_agg(DISTINCT CASE WHEN p.oid IS NOT NULL THEN 'function ' || p.oid::regprocedure
                                        ELSE o.nspname || '.' || r.relname END)
                FILTER (WHERE p.oid IS NOT NULL OR r.relnamespace <> c.relnamespace), '{}') AS "foreign"
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_rewrite w ON w.ev_class = c.oid
LEFT JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
  AND d.refobjid <> c.oid AND d.refobjid >= 16384
LEFT JOIN pg_class r ON d.refclassid = 'pg_class'::regclass AND r.oid = d.refobjid
LEFT JOIN pg_namespace o ON o.oid = r.relnamespace
LEFT JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum = d.refobjsubid
LEFT JOIN pg_proc p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
WHERE c.relkind = 'v' AND n.nspname = %(schema)s AND NOT EXISTS (
  SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')
GROUP BY c.oid, c.relname ORDER BY c.relname
"""

Record = dict[str, Any]


def read(session: connect.Session, endpoint: model.Endpoint, *, migrations: str | None = None) -> model.Catalog:
    """Everything about the endpoint's schema, in one read-only transaction.

    `migrations` names the table of deployed schema changes (Prisma's layout), if there is one.
    What the role may not look at is left out, never an error.
    """
    session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    session.execute("SELECT set_config('search_path', quote_ident(%s), true)", [endpoint.schema])
    reader = _Reader(session, endpoint.schema)
    server = reader.all(_SERVER)[0]
    if server["version"] < model.OLDEST_SERVER:
        session.execute("COMMIT")
        return model.Catalog(endpoint=endpoint, tables=(), **server)
    found = reader.all(_TABLES)
    reader.oids = [table["oid"] for table in found]
    looked = [row for row in found if _open(server, row)]
    tables = _tables(reader, found, looked)
    catalog = model.Catalog(
        endpoint=endpoint,
        tables=tables,
        sequences=tuple(model.Sequence(**row) for row in reader.all(_SEQUENCES)),
        views=tuple(_view(row) for row in reader.all(_VIEWS)),
        migrations=_migrations(reader, tables, looked, migrations),
        elsewhere=tuple(model.TableName(**row) for row in reader.all(_ELSEWHERE)),
        **server,
    )
    session.execute("COMMIT")
    return catalog


def _open(server: Record, table: Record) -> bool:
    """Whether the role can read the table's rows, all of them."""
    return bool(server["may_use_schema"]) and "SELECT" in table["privileges"] and not table["hidden"]


class _Reader:
    def __init__(self, session: connect.Session, schema: str) -> None:
        self._cursor = session.cursor(row_factory=rows.dict_row)
        self.schema = schema
        self.oids: list[int] = []

    def all(self, query: str | sql.Composed) -> list[Record]:
        # A composed query has its values in it, and perhaps a table's name with a percent sign.
        values = {"schema": self.schema, "oids": self.oids} if isinstance(query, str) else None
        return self._cursor.execute(query, values).fetchall()

    def by_table(self, query: str) -> dict[int, list[Record]]:
        grouped: dict[int, list[Record]] = {oid: [] for oid in self.oids}
        for row in self.all(query):
            grouped[row.pop("oid")].append(row)
        return grouped


def _tables(reader: _Reader, found: list[Record], looked: list[Record]) -> tuple[model.Table, ...]:
    columns = reader.by_table(_COLUMNS)
    foreign_keys = reader.by_table(_FOREIGN_KEYS)
    indexes = reader.by_table(_INDEXES)
    triggers = reader.by_table(_TRIGGERS)
    counted, occupied = _look_inside(reader, looked)
    return tuple(
        model.Table(
            name=table["name"],
            columns=tuple(model.Column(**{**row, "labels": tuple(row["labels"])}) for row in columns[table["oid"]]),
            rows=counted.get(table["name"], max(table["rows"] or 0.0, 0.0)),
            bytes=table["bytes"] or 0,
            occupied=occupied.get(table["name"]),
            partitions=tuple(model.TableName(schema=leaf[0], name=leaf[1]) for leaf in table["leaves"]),
            partitioned=table["partitioned"],
            foreign_keys=tuple(_foreign_key(row) for row in foreign_keys[table["oid"]]),
            indexes=tuple(model.Index(**{**row, "columns": tuple(row["columns"])}) for row in indexes[table["oid"]]),
            triggers=tuple(model.Trigger(**row) for row in triggers[table["oid"]]),
            privileges=frozenset(table["privileges"]),
            hidden=table["hidden"],
            owner=table["owner"],
        )
        for table in found
    )


def _foreign_key(row: Mapping[str, Any]) -> model.ForeignKey:
    return model.ForeignKey(
        name=row["name"],
        columns=tuple(row["columns"]),
        references=row["references"],
        referenced_columns=tuple(row["referenced"]),
        deferrable=row["deferrable"],
    )


def _view(row: Record) -> model.View:
    return model.View(
        name=row["name"],
        definition=row["definition"],
        reads=tuple(row["reads"]),
        columns=tuple((table, column) for table, column in row["columns"]),
        foreign=tuple(row["foreign"]),
    )


def _look_inside(reader: _Reader, looked: Iterable[Record]) -> tuple[dict[str, float], dict[str, bool]]:
    """Rows of small tables, and for every table whether it holds any: one query."""
    selects = [
        sql.SQL("SELECT {name}, ({count})::float8, EXISTS (SELECT FROM {table})").format(
            name=sql.Literal(row["name"]), count=_count(row, table), table=table
        )
        for row in looked
        for table in [_rows_of(reader.schema, row)]
    ]
    if not selects:
        return {}, {}
    query = sql.SQL("SELECT * FROM ({}) x (name, rows, occupied)").format(sql.SQL(" UNION ALL ").join(selects))
    answers = reader.all(query)
    return (
        {row["name"]: float(row["rows"]) for row in answers if row["rows"] is not None},
        {row["name"]: row["occupied"] for row in answers},
    )


def _rows_of(schema: str, table: Record) -> sql.Composed:
    """ONLY keeps rows of inheriting tables out: they are tables of their own."""
    only = sql.SQL("" if table["partitioned"] else "ONLY ")
    return sql.SQL("{}{}").format(only, sql.Identifier(schema, table["name"]))


def _count(row: Record, table: sql.Composed) -> sql.Composable:
    heap = row["heap"] or 0
    if heap <= _COUNTED_BYTES:
        return sql.SQL("(SELECT count(*) FROM {})").format(table)
    if row["rows"] is not None:
        return sql.SQL("NULL")
    percent = 100.0 * _COUNTED_BYTES / heap
    return sql.SQL("(SELECT count(*) * {factor} FROM {table} TABLESAMPLE SYSTEM ({percent}))").format(
        factor=sql.Literal(100.0 / percent), table=table, percent=sql.Literal(percent)
    )


_PRISMA = frozenset({"migration_name", "checksum", "started_at", "finished_at", "rolled_back_at"})


def _migrations(
    reader: _Reader, tables: Iterable[model.Table], looked: Iterable[Record], name: str | None
) -> tuple[model.Migration, ...] | None:
    table = next((table for table in tables if table.name == name), None)
    if table is None or table.name not in {row["name"] for row in looked}:
        return None
    if not {column.name for column in table.columns} >= _PRISMA:
        return None
    # One that was rolled back may have been deployed again since; it counts for nothing.
    query = sql.SQL(
        "SELECT DISTINCT ON (migration_name) migration_name AS name, checksum,"
        " finished_at IS NOT NULL AS finished FROM {}"
        " WHERE rolled_back_at IS NULL ORDER BY migration_name, started_at DESC"
    ).format(sql.Identifier(reader.schema, table.name))
    return tuple(model.Migration(**row) for row in reader.all(query))
