"""Merges rows of one table into those that the target has: new ones come, others stay or follow the source.

Imports pg.connect, pg.transfer and the words. All of a step's rows arrive in a temporary table first, so one
statement decides about each of them by its primary key, and rows that others insert meanwhile do no harm.
"""

from __future__ import annotations

import dataclasses
import time

from psycopg import sql

from mishika_migrate import model
from mishika_migrate.pg import connect, transfer


def copy(way: transfer.Way, step: model.CopyTable) -> model.Landed:
    """As `transfer.copy`, which counts the rows that have arrived in the temporary table."""
    began = time.monotonic()
    waiting = _waiting_room(way.target, step)
    landed = transfer.copy(way, step, into=waiting)
    way.target.execute(_merge(step, waiting))
    return dataclasses.replace(landed, seconds=time.monotonic() - began)


def _waiting_room(session: connect.Session, step: model.CopyTable) -> sql.Identifier:
    """Called like the table itself: the server's progress view then says whose rows arrive."""
    name = sql.Identifier("pg_temp", step.target.name)
    session.execute(
        sql.SQL("CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS SELECT {columns} FROM {table} WITH NO DATA").format(
            name=name,
            columns=transfer.columns(step),
            table=sql.Identifier(step.target.schema, step.target.name),
        )
    )
    return name


def _merge(step: model.CopyTable, waiting: sql.Identifier) -> sql.Composed:
    """A row of the same key stays, or is written where it is really another one.

    `*<>` compares records byte by byte: it sees 1.0 and 1.00, and types that know no equality. Without
    the casts the server would compare column by column.
    """
    columns = transfer.columns(step)
    values = [column for column in step.columns if column not in step.key]
    names = sql.SQL(", ").join(map(sql.Identifier, values))
    conflict: sql.Composable = sql.SQL("DO NOTHING")
    if step.existing == "update" and values:
        conflict = sql.SQL(
            "DO UPDATE SET ({names}) = ROW({new}) WHERE ROW({old})::record OPERATOR(pg_catalog.*<>) ROW({new})::record"
        ).format(
            names=names,
            new=sql.SQL(", ").join(sql.SQL("excluded.{}").format(sql.Identifier(name)) for name in values),
            old=sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(name)) for name in values),
        )
    return sql.SQL(
        "INSERT INTO {table} AS t ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {waiting}"
        " ON CONFLICT ({key}) {conflict}"
    ).format(
        table=sql.Identifier(step.target.schema, step.target.name),
        columns=columns,
        waiting=waiting,
        key=sql.SQL(", ").join(map(sql.Identifier, step.key)),
        conflict=conflict,
    )
