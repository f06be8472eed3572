"""What only a look at both servers at once, or at the rows themselves, can tell.

Imports pg.connect, pg.snapshot and the words. The questions come as values from `selection.questions`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from psycopg import rows, sql

from mishika_migrate import model, words
from mishika_migrate.pg import connect, snapshot

_MARK = 0x6D69_6772  # "migr"


@contextmanager
def marked(session: connect.Session) -> Iterator[tuple[int, int]]:
    """A lock that this session holds meanwhile, for `has_mark` to look for."""
    mark = (_MARK, secrets.randbits(31))
    session.execute("SELECT pg_advisory_lock(%s, %s)", mark)
    try:
        yield mark
    finally:
        session.execute("SELECT pg_advisory_unlock(%s, %s)", mark)


def has_mark(session: connect.Session, mark: tuple[int, int]) -> bool:
    """Whether this session's database is the one of the session that holds `mark`.

    Host names prove nothing: two names may lead to one server, one name to two. The lock is asked
    for rather than read from pg_locks, which an operator may have closed.
    """
    row = session.execute("SELECT pg_try_advisory_lock(%s, %s)", mark).fetchone()
    free = bool(row and row[0])
    if free:
        session.execute("SELECT pg_advisory_unlock(%s, %s)", mark)
    return not free


_OWNER = """
SELECT r.rolsuper,
  pg_has_role(r.oid, 'USAGE') AND CASE WHEN current_setting('server_version_num')::int >= 160000
    THEN pg_has_role(r.oid, 'SET') ELSE pg_has_role(r.oid, 'MEMBER') END,
  coalesce(has_schema_privilege(r.oid, to_regnamespace(quote_ident(%s))::oid, 'CREATE'), false)
FROM pg_roles r WHERE r.rolname = %s
"""


def owner(session: connect.Session, schema: str, name: str) -> model.Owner:
    """What the role of that name is for tables that are to be made in that schema."""
    row = session.execute(_OWNER, [schema, name]).fetchone()
    if row is None:
        return model.Owner(name=name, exists=False)
    return model.Owner(name=name, exists=True, superuser=bool(row[0]), usable=bool(row[1]), creates=bool(row[2]))


def pooled(one: connect.Session, other: connect.Session) -> bool:
    """Whether two sessions of one endpoint share a backend, as behind a transaction pooler.

    Such a pooler gives each transaction any backend, so a snapshot or a lock held by a session
    means nothing. It hands out the backend that became free last, so asking in turns shows it.
    """
    answers = [(_backend(one), _backend(other)) for _ in range(3)]
    ones, others = ({pids[n] for pids in answers} for n in (0, 1))
    return len(ones) > 1 or len(others) > 1 or ones == others


def _backend(session: connect.Session) -> int:
    row = session.execute("SELECT pg_backend_pid()").fetchone()
    return int(str(row[0])) if row else 0


def dangling(session: connect.Session, schema: str, pointers: Sequence[model.Pointer]) -> tuple[model.Dangling, ...]:
    """The pointers that have rows without a row at their other end, in one query."""
    if not pointers:
        return ()
    query = sql.SQL(" UNION ALL ").join(
        sql.SQL("SELECT {n}, ({count})").format(n=sql.Literal(n), count=_dangling(schema, pointer))
        for n, pointer in enumerate(pointers)
    )
    counts = {int(str(row[0])): int(str(row[1])) for row in session.execute(query)}
    return tuple(
        model.Dangling(
            table=pointer.table,
            column=pointer.column,
            references=pointer.references,
            rows=counts[n],
            absent=pointer.absent,
        )
        for n, pointer in enumerate(pointers)
        if counts[n]
    )


def _dangling(schema: str, pointer: model.Pointer) -> sql.Composed:
    column = sql.SQL("t.{}").format(sql.Identifier(pointer.column))
    start = sql.SQL("FROM {table} t{each} WHERE {value}::text <> ALL ({exempt}::text[])").format(
        table=sql.Identifier(schema, pointer.table),
        each=sql.SQL(", unnest({}) AS e (value)").format(column) if pointer.each else sql.SQL(""),
        value=sql.SQL("e.value") if pointer.each else column,
        exempt=sql.Literal(["", *pointer.exempt]),
    )
    if pointer.absent:
        return sql.SQL("SELECT count(*) {}").format(start)
    return sql.SQL(
        "SELECT count(*) {start} AND NOT EXISTS (SELECT FROM {other} r WHERE r.{key}::text = {value}::text)"
    ).format(
        start=start,
        other=sql.Identifier(schema, pointer.references),
        key=sql.Identifier(pointer.key),
        value=sql.SQL("e.value") if pointer.each else column,
    )


def unparseable(session: connect.Session, schema: str, shapes: Sequence[model.Shape]) -> tuple[model.Unparseable, ...]:
    """Columns with values that the application rejects, with up to three rows by name: one query."""
    selects = [
        _misfits(schema, shape, column, condition, fault)
        for shape in shapes
        for column, condition, fault in _conditions(shape)
    ]
    if not selects:
        return ()
    cursor = session.cursor(row_factory=rows.dict_row)
    found: list[dict[str, Any]] = cursor.execute(
        sql.SQL("SELECT * FROM ({}) x WHERE rows > 0").format(sql.SQL(" UNION ALL ").join(selects))
    ).fetchall()
    return tuple(model.Unparseable(**{**row, "examples": tuple(map(person, row["examples"]))}) for row in found)


def _conditions(shape: model.Shape) -> list[tuple[str, sql.Composed, str]]:
    # json_typeof(to_json(…)) takes json and jsonb; json with \u0000 in it has no jsonb form.
    return [
        *(
            (
                column,
                sql.SQL("json_typeof(to_json({})) <> 'object'").format(sql.Identifier(column)),
                "not a JSON object",
            )
            for column in shape.objects
        ),
        *((column, sql.SQL("{} IS NULL").format(sql.Identifier(column)), "NULL") for column in shape.present),
    ]


def _misfits(schema: str, shape: model.Shape, column: str, condition: sql.Composed, fault: str) -> sql.Composed:
    return sql.SQL(
        "SELECT {table_name} AS table, {column} AS column, {fault} AS fault, (SELECT count(*) {where}) AS rows,"
        " ARRAY(SELECT {name} {where} ORDER BY 1 LIMIT 3) AS examples"
    ).format(
        table_name=sql.Literal(shape.table),
        column=sql.Literal(column),
        fault=sql.Literal(fault),
        name=_name(shape),
        where=sql.SQL("FROM {} WHERE {}").format(sql.Identifier(schema, shape.table), condition),
    )


def _name(shape: model.Shape) -> sql.Composed:
    """What a person may see of a row, as bytes: in SQL_ASCII a text need not be text, and is not converted.

    No more than the first 8 characters of a key, which may be a token.
    """
    parts = [
        *(sql.SQL("{}::text").format(sql.Identifier(name)) for name in shape.names),
        *(sql.SQL("left({}::text, 8) || '...'").format(sql.Identifier(name)) for name in shape.key),
    ]
    return sql.SQL(
        "convert_to(concat_ws(' ', {}), CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END)"
    ).format(sql.SQL(", ").join(parts or [sql.SQL("{}").format("")]))


def person(name: bytes) -> str:
    """A row's name for people: on one line, at most 80 characters, and without what looks like a whole key or token."""
    return words.masked(name.decode(errors="replace"))[:80]


def times(session: connect.Session, schema: str, table: str, column: str) -> tuple[datetime, ...]:
    """The bounds of equally full buckets of a time column, as its statistics know them; empty without any."""
    found = session.execute(
        "SELECT unnest(histogram_bounds::text::text[]) FROM pg_stats"
        " WHERE schemaname = %s AND tablename = %s AND attname = %s ORDER BY inherited DESC",
        [schema, table, column],
    )
    return tuple(sorted({moment for row in found if (moment := _moment(str(row[0]))) is not None}))


def _moment(text: str) -> datetime | None:
    # Infinity and years before Christ are no time of a request.
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        return None


def holds(session: connect.Session, schema: str, table: str, within: model.Interval) -> bool:
    """Whether the table has a row in that interval."""
    query = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {})").format(
        sql.Identifier(schema, table), snapshot.inside(within)
    )
    row = session.execute(query).fetchone()
    return bool(row and row[0])
