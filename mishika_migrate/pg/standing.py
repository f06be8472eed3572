"""What the database says about single keys: whether they are there, blocked or expired.

Imports pg.connect only. Which columns say so comes from the matrix, by way of the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg import sql

from mishika_migrate.pg import connect

KEY = "key"
"""How the key's own row is called among the joins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Where it is written: the column `key` of `table` holds the hash, rows of other tables count too.

    `joins` are names with the table and the pairs (column, `name.column`) by which its row is found.
    Columns are `name.column`: `blocked` ones are boolean, `expires` ones naive UTC or with a zone.
    """

    table: str
    key: str
    joins: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = ()
    blocked: tuple[str, ...] = ()
    expires: tuple[str, ...] = ()


def refused(session: connect.Session, schema: str, rows: Rows, tokens: Sequence[str]) -> Mapping[str, bool]:
    """By hash, whether the key is blocked or expired by now; without those that are not there."""
    signs = [sql.SQL("coalesce({}, false)").format(_column(name)) for name in rows.blocked]
    # The session's TimeZone is UTC, so a naive time means the same as to the application.
    signs += [
        sql.SQL("coalesce({} < (now() AT TIME ZONE 'UTC'), false)").format(_column(name)) for name in rows.expires
    ]
    joins = [
        sql.SQL(" LEFT JOIN {} {} ON {}").format(
            sql.Identifier(schema, table),
            sql.Identifier(name),
            sql.SQL(" AND ").join(
                sql.SQL("{} = {}").format(sql.Identifier(name, column), _column(end)) for column, end in by
            ),
        )
        for name, table, by in rows.joins
    ]
    query = sql.SQL(
        "SELECT {key}::text, bool_or({signs}) FROM {table} {own}{joins} WHERE {key} = ANY ({tokens}) GROUP BY 1"
    ).format(
        key=sql.Identifier(KEY, rows.key),
        signs=sql.SQL(" OR ").join(signs or [sql.SQL("{}").format(False)]),
        table=sql.Identifier(schema, rows.table),
        own=sql.Identifier(KEY),
        joins=sql.SQL("").join(joins),
        tokens=sql.Placeholder(),
    )
    return {str(row[0]): bool(row[1]) for row in session.execute(query, [list(tokens)])}


def _column(name: str) -> sql.Identifier:
    row, _, column = name.partition(".")
    return sql.Identifier(row, column)
