"""What only a look at both servers at once, or at the rows themselves, can tell.

Imports pg.connect and the words. The questions come as values from `plan.questions`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from psycopg import rows, sql

from mishika_migrate import model
from mishika_migrate.pg import connect


def same_database(one: connect.Session, other: connect.Session) -> bool:
    """Whether both sessions are in one database: a lock taken here is looked for there.

    Host names prove nothing: two names may lead to one server, one name to two.
    """
    key = secrets.randbits(31)
    one.execute("SELECT pg_advisory_lock(%s, %s)", [_MARK, key])
    try:
        row = other.execute(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid = %s"
            " AND objsubid = 2 AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))",
            [_MARK, key],
        ).fetchone()
    finally:
        one.execute("SELECT pg_advisory_unlock(%s, %s)", [_MARK, key])
    return bool(row and row[0])


_MARK = 0x6D69_6772  # "migr"


def pooled(one: connect.Session, other: connect.Session) -> bool:
    """Whether two sessions of one endpoint share a backend, as behind a transaction pooler.

    Such a pooler gives each transaction any backend, so a snapshot or a lock held by a session
    means nothing.
    """
    answers = {str(one.execute("SELECT pg_backend_pid()").fetchone()) for _ in range(2)}
    answers.add(str(other.execute("SELECT pg_backend_pid()").fetchone()))
    return len(answers) != 2


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
    return tuple(model.Unparseable(**{**row, "examples": tuple(row["examples"])}) for row in found)


def _conditions(shape: model.Shape) -> list[tuple[str, sql.Composed, str]]:
    return [
        *(
            (
                column,
                sql.SQL("{0} IS NOT NULL AND jsonb_typeof({0}::jsonb) <> 'object'").format(sql.Identifier(column)),
                "not a JSON object",
            )
            for column in shape.objects
        ),
        *((column, sql.SQL("{} IS NULL").format(sql.Identifier(column)), "NULL") for column in shape.present),
    ]


def _misfits(schema: str, shape: model.Shape, column: str, condition: sql.Composed, fault: str) -> sql.Composed:
    names = [sql.SQL("{}::text").format(sql.Identifier(name)) for name in shape.names]
    return sql.SQL(
        "SELECT {table_name} AS table, {column} AS column, {fault} AS fault, count(*) AS rows,"
        " coalesce((array_agg({name}))[1:3], '{{}}') AS examples FROM {table} WHERE {condition}"
    ).format(
        table_name=sql.Literal(shape.table),
        column=sql.Literal(column),
        fault=sql.Literal(fault),
        name=sql.SQL("concat_ws(' ', {})").format(sql.SQL(", ").join(names)) if names else sql.SQL("''::text"),
        table=sql.Identifier(schema, shape.table),
        condition=condition,
    )
