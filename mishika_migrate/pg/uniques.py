"""Which rows of two sides have the same unique values under different primary keys.

Imports pg.connect, pg.digest and the words. Both sides hash unique values to keys inside the server: buckets of them
that are equal hold nothing to look at, and of the others only hashes travel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from psycopg import sql

from mishika_migrate import model
from mishika_migrate.pg import connect, digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A row by the hashes of its unique values and of its primary key; `label` are those values as texts."""

    place: int
    key: int
    label: tuple[str, ...]


def look(what: model.Comparison, columns: Sequence[str], method: model.Method, *, nulls: bool) -> digest.Look:
    """A comparison by unique values instead of by the primary key; without `nulls` only of rows that have them all.

    Of the source only the rows that would be copied, of the target all: they are in the way wherever they are.
    """
    wanted = {*columns, *what.key}
    held = dataclasses.replace(
        what,
        key=tuple(columns),
        columns=tuple(column for column in what.columns if column.name in wanted),
        within=None,
    )
    return digest.Look(what=held, method=method, relations=_relations(what, () if nulls else columns))


def _relations(what: model.Comparison, present: Sequence[str]) -> Mapping[model.Role, sql.Composed]:
    sides: tuple[tuple[model.Role, model.Comparison], ...] = (
        ("source", what),
        ("target", dataclasses.replace(what, within=None)),
    )
    return {
        role: sql.SQL("SELECT r.* FROM {rows}{present}").format(
            rows=digest.rows_of(digest.Look(what=each, method="exact"), role),
            present=sql.SQL("").join(
                sql.SQL(" AND r.{} IS NOT NULL").format(sql.Identifier(column)) for column in present
            ),
        )
        for role, each in sides
    }


def holders(
    session: connect.Session, look: digest.Look, key: digest.Look, role: model.Role, buckets: Sequence[int]
) -> Iterator[Holder]:
    """The rows of these buckets, ordered by `place`; `key` looks at the same table by its primary key."""
    query = sql.SQL(
        "SELECT kh, ph, k FROM (SELECT {place} AS kh, {key} AS ph, {label} AS k FROM {rows} OFFSET 0) h"
        " WHERE {wanted} ORDER BY kh"
    ).format(
        place=digest.place(look, role),
        key=digest.place(key, role),
        label=digest.key_text(look),
        rows=digest.rows_of(look, role),
        wanted=digest.among(look, buckets),
    )
    for row in digest.streamed(session, query):
        yield Holder(place=int(str(row[0])), key=int(str(row[1])), label=digest.texts(row[2]))


def present(session: connect.Session, key: digest.Look, role: model.Role, places: Sequence[int]) -> set[int]:
    """Which of these primary keys, by their hashes, that side has."""
    query = sql.SQL("SELECT DISTINCT {place} FROM {rows} AND {place} = ANY ({places}::int8[])").format(
        place=digest.place(key, role), rows=digest.rows_of(key, role), places=sql.Literal(list(places))
    )
    return {int(str(row[0])) for row in session.execute(query)}


def colliding(ours: Iterator[Holder], theirs: Iterator[Holder]) -> Iterator[Holder]:
    """The rows of ours whose unique values another row of theirs has; both are ordered by `place`."""
    other = next(theirs, None)
    keys: set[int] = set()
    place: int | None = None
    for holder in ours:
        if holder.place != place:
            place, keys = holder.place, set()
            while other is not None and other.place < place:
                other = next(theirs, None)
            while other is not None and other.place == place:
                keys.add(other.key)
                other = next(theirs, None)
        if keys - {holder.key}:
            yield holder
