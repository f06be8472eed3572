"""What must go on working on a loaded target: foreign keys, sequences and views, each asked of the server.

Imports pg.connect and the words. The sessions are inside a transaction of the caller's, so whatever
may fail is asked `aside`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import LiteralString

from psycopg import rows, sql

from mishika_migrate import model
from mishika_migrate.pg import connect


@contextmanager
def aside(session: connect.Session) -> Iterator[None]:
    """A savepoint that is rolled back at its end, so that neither errors nor settings stay."""
    with session.transaction(force_rollback=True):
        yield


# -- foreign keys ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A foreign key. `wholes` says of child and parent whether their rows lie in partitions.

    `operators` compare parent and child, column by column. `manner` is how it treats changes and when
    it is asked (`ON DELETE CASCADE`). One that is not `valid` was never asked of the rows that were there,
    one that is not `active` is asked of no row.
    """

    name: str
    child: model.TableName
    parent: model.TableName
    columns: tuple[str, ...]
    referenced: tuple[str, ...]
    operators: tuple[tuple[str, str], ...]
    wholes: tuple[bool, bool]
    full: bool
    manner: str
    valid: bool
    active: bool


# tgenabled: D is off, R on for replication only. conenforced is PostgreSQL 18.
_KEYS = """
SELECT k.conname::text AS name, cn.nspname::text AS child_schema, c.relname::text AS child,
       pn.nspname::text AS parent_schema, p.relname::text AS parent,
       c.relkind = 'p' AS child_whole, p.relkind = 'p' AS parent_whole,
       (SELECT array_agg(a.attname::text ORDER BY u.n) FROM unnest(k.conkey) WITH ORDINALITY u (num, n)
        JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.num) AS columns,
       (SELECT array_agg(a.attname::text ORDER BY u.n) FROM unnest(k.confkey) WITH ORDINALITY u (num, n)
        JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.num) AS referenced,
       (SELECT array_agg(ARRAY[s.nspname::text, o.oprname::text] ORDER BY u.n)
        FROM unnest(k.conpfeqop) WITH ORDINALITY u (oid, n)
        JOIN pg_operator o ON o.oid = u.oid JOIN pg_namespace s ON s.oid = o.oprnamespace) AS operators,
       k.confmatchtype = 'f' AS "full", k.convalidated AS valid,
       coalesce((to_jsonb(k) ->> 'conenforced')::bool, true) AND NOT EXISTS (
         SELECT FROM pg_trigger t WHERE t.tgconstraint = k.oid AND t.tgenabled IN ('D', 'R')) AS active,
       concat_ws(' ', CASE WHEN k.confmatchtype = 'f' THEN 'MATCH FULL' END,
         'ON UPDATE ' || (names ->> k.confupdtype::text), 'ON DELETE ' || (names ->> k.confdeltype::text),
         CASE WHEN k.condeferred THEN 'INITIALLY DEFERRED' WHEN k.condeferrable THEN 'DEFERRABLE' END) AS manner
FROM pg_constraint k
JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace
JOIN pg_class p ON p.oid = k.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace,
jsonb_build_object('a', 'NO ACTION', 'r', 'RESTRICT', 'c', 'CASCADE', 'n', 'SET NULL', 'd', 'SET DEFAULT') AS names
WHERE k.contype = 'f' AND k.conparentid = 0
  AND (cn.nspname = %(schema)s AND c.relname = ANY (%(tables)s)
       OR pn.nspname = %(schema)s AND p.relname = ANY (%(tables)s))
ORDER BY cn.nspname, c.relname, k.conname
"""


def keys(session: connect.Session, schema: str, tables: Sequence[str]) -> tuple[Key, ...]:
    """The foreign keys from these tables and to them."""
    cursor = session.cursor(row_factory=rows.dict_row)
    found = cursor.execute(_KEYS, {"schema": schema, "tables": list(tables)})
    return tuple(
        Key(
            name=row["name"],
            child=model.TableName(schema=row["child_schema"], name=row["child"]),
            parent=model.TableName(schema=row["parent_schema"], name=row["parent"]),
            columns=tuple(row["columns"]),
            referenced=tuple(row["referenced"]),
            operators=tuple((place, name) for place, name in row["operators"]),
            wholes=(row["child_whole"], row["parent_whole"]),
            full=row["full"],
            manner=row["manner"],
            valid=row["valid"],
            active=row["active"],
        )
        for row in found
    )


def broken(session: connect.Session, key: Key) -> int:
    """How many rows of the child name a row that the parent lacks, whatever the server believes.

    NULL in any column names nothing; under MATCH FULL it is a fault unless all are NULL.
    """
    child = [sql.SQL("c.{}").format(sql.Identifier(name)) for name in key.columns]
    query = sql.SQL(
        "SELECT count(*) FROM {child} c WHERE {named} AND NOT EXISTS (SELECT FROM {parent} p WHERE {same}){half}"
    ).format(
        child=_rows(key.child, whole=key.wholes[0]),
        parent=_rows(key.parent, whole=key.wholes[1]),
        named=sql.SQL(" AND ").join(sql.SQL("{} IS NOT NULL").format(each) for each in child),
        same=sql.SQL(" AND ").join(
            sql.SQL("p.{} OPERATOR({}.{}) {}").format(
                sql.Identifier(name), sql.Identifier(place), sql.SQL(_trusted(sign)), each
            )
            for name, (place, sign), each in zip(key.referenced, key.operators, child, strict=True)
        ),
        half=sql.SQL(" OR num_nulls({0}) BETWEEN 1 AND {1}").format(
            sql.SQL(", ").join(child), sql.Literal(len(child) - 1)
        )
        if key.full
        else sql.SQL(""),
    )
    return _number(session, query)


def _rows(table: model.TableName, *, whole: bool) -> sql.Composed:
    """A foreign key binds a table's own rows, not those of tables that inherit from it."""
    return sql.SQL("{}{}").format(sql.SQL("" if whole else "ONLY "), sql.Identifier(table.schema, table.name))


# -- sequences ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Which number a sequence hands out next, and by how much it goes on; down where that is negative."""

    next: int
    step: int


def standing(session: connect.Session, sequence: model.TableName) -> Standing:
    name = sql.Identifier(sequence.schema, sequence.name)
    row = session.execute(
        sql.SQL(
            "SELECT s.last_value + CASE WHEN s.is_called THEN p.seqincrement ELSE 0 END::numeric, p.seqincrement"
            " FROM {} s, pg_sequence p WHERE p.seqrelid = {}::regclass"
        ).format(name, sql.Literal(name.as_string()))
    ).fetchone()
    assert row is not None
    return Standing(next=int(str(row[0])), step=int(str(row[1])))


def furthest(session: connect.Session, table: model.TableName, column: str, *, step: int) -> int | None:
    """The number that the rows have got to, None without any."""
    row = session.execute(
        sql.SQL("SELECT trunc({}({}))::text FROM {}").format(
            sql.SQL("max" if step > 0 else "min"), sql.Identifier(column), sql.Identifier(table.schema, table.name)
        )
    ).fetchone()
    return None if row is None or row[0] is None else int(str(row[0]))


# -- views ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """`columns` are (name, type) in order. `open` says that the role may read it, whoever owns its tables."""

    columns: tuple[tuple[str, str], ...]
    open: bool


_VIEWS = """
SELECT c.relname::text AS name,
       has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE')
         AND coalesce(c.reloptions::text !~* 'security_invoker=(true|on|1|yes)', true) AS open,
       (SELECT coalesce(json_agg(json_build_array(a.attname, format_type(a.atttypid, a.atttypmod))
                                 ORDER BY a.attnum), '[]')
        FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'v' AND n.nspname = %s
"""


def views(session: connect.Session, schema: str) -> dict[str, View]:
    """Those of the schema, by name; types are printed with the schema in the search path."""
    with aside(session):
        _search(session, schema)
        cursor = session.cursor(row_factory=rows.dict_row)
        found = cursor.execute(_VIEWS, [schema]).fetchall()
    return {
        row["name"]: View(columns=tuple((name, kind) for name, kind in row["columns"]), open=row["open"])
        for row in found
    }


def answer(session: connect.Session, view: model.TableName, *, seconds: float) -> None:
    """Runs the view until its first row, `seconds` at most (57014), as the application would.

    Its settings are the caller's savepoint's. A policy hides rows from the application, too, and is no error.
    """
    _search(session, view.schema)
    session.execute(
        "SELECT set_config('row_security', 'on', true), set_config('statement_timeout', %s, true)",
        [f"{max(1, round(seconds * 1000))}ms"],
    )
    # The row is not fetched: a value that Python has no type for is no fault of the view.
    session.execute(sql.SQL("SELECT * FROM {} LIMIT 1").format(sql.Identifier(view.schema, view.name)))


# What changes, hides or loses rows of a table, in a few words each. tgenabled D and the ledger's own never fire.
_OBSTACLES = """
SELECT c.relname::text AS "table", o.what
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
  SELECT 'trigger ' || t.tgname AS what FROM pg_trigger t
  WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D'
  UNION ALL
  SELECT 'rule ' || r.rulename FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_enabled <> 'D'
  UNION ALL
  SELECT 'row security' WHERE c.relrowsecurity
  UNION ALL
  SELECT 'policy ' || p.polname FROM pg_policy p WHERE p.polrelid = c.oid AND c.relrowsecurity
  UNION ALL
  SELECT 'unlogged: a crash of the server empties it' WHERE c.relpersistence = 'u'
) o
WHERE n.nspname = %(schema)s AND c.relname = ANY (%(tables)s)
ORDER BY 1, 2
"""


def obstacles(session: connect.Session, schema: str, tables: Sequence[str]) -> set[tuple[str, str]]:
    """Pairs of a table and what stands between the application and its rows: triggers, rules, row security."""
    found = session.execute(_OBSTACLES, {"schema": schema, "tables": list(tables)})
    return {(str(row[0]), str(row[1])) for row in found}


def _search(session: connect.Session, schema: str) -> None:
    session.execute("SELECT set_config('search_path', quote_ident(%s), true)", [schema])


def _number(session: connect.Session, query: sql.Composed) -> int:
    row = session.execute(query).fetchone()
    assert row is not None
    return int(str(row[0]))


def _trusted(text: str) -> LiteralString:
    # The sign of an operator, as the server itself spells it.
    return text
