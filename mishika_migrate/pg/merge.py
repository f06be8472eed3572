"""Makes rows of the target what the source's are: changed, new and removed ones, and no others.

Imports pg.connect, pg.digest, pg.snapshot, pg.transfer and the words. What differs is known by the hashes of keys
(`digest`); the rows themselves come by COPY into a temporary table and are compared by their real keys,
so two keys with one hash do no harm.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import LiteralString

from psycopg import sql

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, delta, digest, snapshot, transfer

# Places travel inside the query: so many are some 2 MB of it.
_PLACES_AT_ONCE = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """One table whose rows at `places` are to become the source's. `step` says which columns, in which format.

    `number` tells its temporary table from those of others in the same transaction. `uniques` are the
    columns of the target's unique indexes beside the key.
    """

    look: digest.Look
    step: model.CopyTable
    places: array[int]
    number: int
    uniques: tuple[tuple[str, ...], ...] = ()
    columns: tuple[model.Column, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        return self.look.what.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What was done to one table, and how many bytes travelled for it."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    bytes: int = 0


def bring(way: transfer.Way, merge: Merge) -> int:
    """The source's rows at these places into the temporary table, which ends with the transaction; their bytes."""
    _create(way.target, merge)
    size = 0
    for places in _batches(merge.places):
        rows = sql.SQL("{} AND {} IN (SELECT unnest({}::int8[]))").format(
            digest.rows_of(merge.look, "source"), digest.place(merge.look, "source"), sql.Literal(places)
        )
        size += _relay(way, merge, rows)
    _analyze(way.target, merge)
    return size


def bring_newer(way: transfer.Way, merge: Merge, horizon: str) -> int:
    """The same for the source's rows that may be newer than the horizon."""
    _create(way.target, merge)
    columns = transfer.columns(merge.step)
    rows = sql.SQL("(SELECT xmin, {} FROM {}) t WHERE {}").format(
        columns, snapshot.rows_of(merge.step), delta.newer(horizon)
    )
    size = _relay(way, merge, rows)
    _analyze(way.target, merge)
    return size


def _batches(places: array[int]) -> Iterator[list[int]]:
    for start in range(0, len(places), _PLACES_AT_ONCE):
        yield places[start : start + _PLACES_AT_ONCE].tolist()


def _relay(way: transfer.Way, merge: Merge, rows: sql.Composed) -> int:
    out = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT {}").format(
        transfer.columns(merge.step), rows, transfer.options(merge.step)
    )
    into = sql.SQL("COPY {} ({}) FROM STDIN {}").format(
        _incoming(merge), transfer.columns(merge.step), transfer.options(merge.step)
    )
    return way.relay(out, into, table=merge.step.target)[1]


def _create(session: connect.Session, merge: Merge) -> None:
    session.execute(
        sql.SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {} FROM {} LIMIT 0").format(
            sql.Identifier(_name(merge)), transfer.columns(merge.step), _table(merge)
        )
    )


def _analyze(session: connect.Session, merge: Merge) -> None:
    if merge.key:
        keys = sql.SQL(", ").join(map(sql.Identifier, merge.key))
        session.execute(sql.SQL("CREATE INDEX ON {} ({})").format(_incoming(merge), keys))
    session.execute(sql.SQL("ANALYZE {}").format(_incoming(merge)))


# -- in the transaction ---------------------------------------------------------------------------


def apply(session: connect.Session, merges: Sequence[Merge]) -> None:
    """Makes all these tables, parents first, what has been brought for them; children first for what goes.

    Values that move from one row to another are taken out of the way before.
    """
    for each in merges:
        make_way(session, each)
    for each in merges:
        if not each.key:
            delete(session, each)
        insert(session, each)
        update(session, each)
    for each in reversed(merges):
        if each.key:
            delete(session, each)


def make_way(session: connect.Session, merge: Merge) -> None:
    """Takes values of unique columns away from rows that have them still while others are to get them.

    Only from rows that are about to be changed or removed. Under an index with a condition, others may have
    the same value for good.
    """
    kinds = {column.name: column for column in merge.columns}
    for unique in merge.uniques:
        yielding = _yielding([kinds[name] for name in unique])
        for places in _batches(merge.places):
            session.execute(
                sql.SQL(
                    "UPDATE {table} r SET {column} = {other} FROM ("
                    "SELECT r.tableoid AS relation, r.ctid AS place, row_number() OVER () AS number FROM {rows}"
                    " AND {place} IN (SELECT unnest({places}::int8[]))"
                    " AND EXISTS (SELECT FROM {incoming} i WHERE {same} AND NOT ({key}))"
                    ") u WHERE r.tableoid = u.relation AND r.ctid = u.place"
                ).format(
                    table=_table(merge),
                    column=sql.Identifier(yielding.name),
                    other=_out_of_the_way(merge, yielding),
                    rows=digest.rows_of(merge.look, "target"),
                    place=digest.place(merge.look, "target"),
                    places=sql.Literal(places),
                    incoming=_incoming(merge),
                    same=_equal(unique),
                    key=_equal(merge.key),
                )
            )


_TEXTS = ("text", "character varying")
_INTEGERS = ("smallint", "integer", "bigint")


def _yielding(columns: Sequence[model.Column]) -> model.Column:
    """The column whose value can be another one for a moment."""
    known = (each for each in columns if each.type in (*_TEXTS, "uuid", *_INTEGERS))
    return next((each for each in columns if each.nullable), None) or next(known, None) or columns[0]


def _out_of_the_way(merge: Merge, column: model.Column) -> sql.Composable:
    """A value that no row has; the row gets its own one in a moment."""
    if column.nullable:
        return sql.SQL("NULL")
    if column.type in _TEXTS:
        return sql.SQL("'mishika-migrate ' || md5(random()::text || r.ctid::text)")
    if column.type == "uuid":
        return sql.SQL("md5(random()::text || r.ctid::text)::uuid")
    if column.type in _INTEGERS:
        return sql.SQL("(SELECT least(min({}), 0) FROM {}) - u.number").format(
            sql.Identifier(column.name), _table(merge)
        )
    raise errors.Refused(
        f"unique column {column.name} of type {column.type} cannot be taken out of the way for a moment",
        hint="Empty the table on the target and copy it anew.",
    )


def insert(session: connect.Session, merge: Merge) -> int:
    """Rows that the target has none of that key of; all of them where there is no key."""
    known = sql.SQL("NOT EXISTS (SELECT FROM {} r WHERE {})").format(_table(merge), _equal(merge.key))
    return session.execute(
        sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} i WHERE {}").format(
            _table(merge),
            transfer.columns(merge.step),
            transfer.columns(merge.step),
            _incoming(merge),
            known if merge.key else sql.SQL("true"),
        )
    ).rowcount


def update(session: connect.Session, merge: Merge) -> int:
    """Rows that the target has with other values."""
    names = [name for name in merge.step.columns if name not in merge.key]
    if not merge.key or not names:
        return 0
    assigned = [sql.SQL("{0} = i.{0}").format(sql.Identifier(name)) for name in names]
    return session.execute(
        sql.SQL("UPDATE {} r SET {} FROM {} i WHERE {}").format(
            _table(merge), sql.SQL(", ").join(assigned), _incoming(merge), _equal(merge.key)
        )
    ).rowcount


def delete(session: connect.Session, merge: Merge) -> int:
    """Rows of the target at these places whose keys the source does not have; all of them without a key."""
    known = sql.SQL("NOT EXISTS (SELECT FROM {} i WHERE {})").format(_incoming(merge), _equal(merge.key))
    return sum(
        session.execute(
            sql.SQL("DELETE FROM {} AND {} IN (SELECT unnest({}::int8[])) AND {}").format(
                digest.rows_of(merge.look, "target"),
                digest.place(merge.look, "target"),
                sql.Literal(places),
                known if merge.key else sql.SQL("true"),
            )
        ).rowcount
        for places in _batches(merge.places)
    )


def upsert(session: connect.Session, merge: Merge) -> int:
    """Rows into a table that others write to: new ones are added, those of a known key replaced."""
    names = [name for name in merge.step.columns if name not in merge.key]
    assigned = [sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in names]
    action = sql.SQL("DO UPDATE SET {}").format(sql.SQL(", ").join(assigned)) if names else sql.SQL("DO NOTHING")
    return session.execute(
        sql.SQL(
            "INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {incoming} i"
            " ON CONFLICT ({key}) {action}"
        ).format(
            table=_table(merge),
            columns=transfer.columns(merge.step),
            incoming=_incoming(merge),
            key=sql.SQL(", ").join(map(sql.Identifier, merge.key)),
            action=action,
        )
    ).rowcount


def lock(session: connect.Session, tables: Sequence[model.TableName]) -> None:
    """Keeps all other writers out until the transaction ends; readers pass."""
    names = sql.SQL(", ").join(sql.Identifier(table.schema, table.name) for table in tables)
    session.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(names))


def forget(session: connect.Session, run: str) -> None:
    """Removes a pass from the ledger, where a later one over the same tables is: of thousands the last is enough."""
    session.execute("DELETE FROM mishika_migrate.run WHERE id = %s", [run])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outsider:
    """A foreign key of a table that is not synced, by which its rows would change when others go."""

    table: str
    references: str
    name: str


def outsiders(
    session: connect.Session, parents: Sequence[model.TableName], inside: Sequence[model.TableName]
) -> tuple[Outsider, ...]:
    """Those by which rows of other tables would be removed or changed along with those of `parents`."""
    found = session.execute(
        "SELECT c.relname::text, p.relname::text, k.conname::text FROM pg_constraint k"
        " JOIN pg_class c ON c.oid = k.conrelid JOIN pg_class p ON p.oid = k.confrelid"
        " WHERE k.contype = 'f' AND k.confdeltype IN ('c', 'n', 'd')"
        "   AND k.confrelid = ANY (%s::text[]::regclass[]) AND NOT k.conrelid = ANY (%s::text[]::regclass[])"
        " ORDER BY 1, 2",
        [[_text(table) for table in parents], [_text(table) for table in inside]],
    )
    return tuple(Outsider(table=str(row[0]), references=str(row[1]), name=str(row[2])) for row in found)


def _text(table: model.TableName) -> str:
    return sql.Identifier(table.schema, table.name).as_string()


def _equal(columns: Sequence[str]) -> sql.Composable:
    pairs = [sql.SQL("i.{0} = r.{0}").format(sql.Identifier(name)) for name in columns]
    return sql.SQL(" AND ").join(pairs) if pairs else sql.SQL("true")


def _table(merge: Merge) -> sql.Identifier:
    return sql.Identifier(merge.step.target.schema, merge.step.target.name)


def _name(merge: Merge) -> LiteralString:
    return _trusted(f"mishika_incoming_{merge.number}")


def _incoming(merge: Merge) -> sql.Identifier:
    return sql.Identifier("pg_temp", _name(merge))


def _trusted(text: str) -> LiteralString:
    # A word of ours and a number.
    return text


def places(pairs: Iterator[digest.Pair]) -> tuple[array[int], tuple[int, int, int]]:
    """Where rows differ, and how many are to be inserted, updated and deleted for that."""
    found: array[int] = array("q")
    inserted = updated = deleted = 0
    for pair in pairs:
        found.append(pair.place)
        inserted += pair.ours - pair.differ
        updated += pair.differ
        deleted += pair.theirs - pair.differ
    return array("q", (place for place, _ in itertools.groupby(found))), (inserted, updated, deleted)
