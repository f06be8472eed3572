"""Reads what a table's columns hold encrypted, value by value, so that memory does not grow with the table.

Imports pg.connect, pg.survey and the words. What comes from here is ciphertext; nothing in here opens it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from psycopg import sql

from mishika_migrate import model
from mishika_migrate.pg import connect, survey

# Bytes: in SQL_ASCII a text need not be text.
_BYTES = "convert_to({}, CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One string of a JSON object in an encrypted column. `row` names its row for people.

    `place` is the same for all values of a row, which follow each other. `text` is None for a row
    whose column holds JSON that is no object.
    """

    place: str
    row: str
    text: str | None = field(repr=False)


def values(
    session: connect.Session,
    schema: str,
    table: model.Table,
    column: str,
    *,
    names: Sequence[str],
    where: tuple[str, Sequence[str]] | None = None,
) -> Iterator[Value]:
    """Every string at the top of the objects in that column; nested ones are not encrypted.

    `names` are columns by which a person knows a row. `where` is a column and the values that it
    has in the rows that count. The session is busy until the last one.
    """
    query = sql.SQL(
        "SELECT concat(t.tableoid, t.ctid), {name}, {text}"
        " FROM {only}{table} t, LATERAL ("
        "  SELECT e.value FROM json_each(CASE json_typeof(to_json({column})) WHEN 'object' THEN to_json({column})"
        "    ELSE '{{}}' END) e WHERE json_typeof(e.value) = 'string'"
        "  UNION ALL SELECT NULL WHERE json_typeof(to_json({column})) NOT IN ('object', 'null')) v WHERE {where}"
    ).format(
        name=_name(table, names),
        text=sql.SQL(_BYTES).format(sql.SQL("v.value::text")),
        only=sql.SQL("" if table.partitioned else "ONLY "),
        table=sql.Identifier(schema, table.name),
        column=sql.SQL("t.{}").format(sql.Identifier(column)),
        where=_where(where),
    )
    # One row at a time from the wire, and in a transaction or without one.
    for place, name, text in session.cursor().stream(query):
        yield Value(
            place=str(place),
            row=survey.person(_bytes(name)),
            text=None if text is None else str(json.loads(_bytes(text).decode(errors="replace"))),
        )


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


def _where(where: tuple[str, Sequence[str]] | None) -> sql.Composable:
    if where is None:
        return sql.SQL("true")
    column, wanted = where
    return sql.SQL("t.{}::text = ANY ({}::text[])").format(sql.Identifier(column), sql.Literal(list(wanted)))


def _name(table: model.Table, names: Sequence[str]) -> sql.Composed:
    """Its names, or without any the first 8 characters of its key."""
    there = [sql.SQL("t.{}::text").format(sql.Identifier(name)) for name in names if table.column(name)]
    short = [sql.SQL("left(t.{}::text, 8)").format(sql.Identifier(name)) for name in table.primary_key]
    words = sql.SQL("coalesce(nullif(concat_ws(' ', {}), ''), concat_ws(' ', {}), '')").format(
        sql.SQL(", ").join([*there, sql.SQL("NULL")]), sql.SQL(", ").join([*short, sql.SQL("NULL")])
    )
    return sql.SQL(_BYTES).format(words)
