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
    target's unique indexes beside the key; columns that are `bound` are of the key or of a foreign key.
    """

    look: digest.Look
    step: model.CopyTable
    places: array[int]
    number: int
    uniques: tuple[model.Index, ...] = ()
    columns: tuple[model.Column, ...] = ()
    bound: frozenset[str] = frozenset()

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


def make_way(session: connect.Session, merge: Merge, *, known: bool = False) -> None:
    """Takes values of unique columns away from rows that have them still while others are to get them.

    Only from rows that are about to be changed or, unless `known`, removed. Under an index with a condition,
    others may have the same value for good.
    """
    kinds = {column.name: column for column in merge.columns}
    for unique in merge.uniques:
        yielding = _yielding(merge, unique, [kinds[name] for name in unique.columns])
        for places in _batches(merge.places):
            rows = sql.SQL(
                "{rows} AND {place} IN (SELECT unnest({places}::int8[]))"
                " AND EXISTS (SELECT FROM {incoming} i WHERE {same} AND NOT ({key})) AND {changing}"
            ).format(
                rows=digest.rows_of(merge.look, "target"),
                place=digest.place(merge.look, "target"),
                places=sql.Literal(places),
                incoming=_incoming(merge),
                same=_equal(unique.columns),
                key=_equal(merge.key),
                changing=sql.SQL("EXISTS (SELECT FROM {} i WHERE {})").format(_incoming(merge), _equal(merge.key))
                if known
                else sql.SQL("true"),
            )
            if yielding is None:
                _refuse_any(session, merge, unique, rows)
                continue
            column, other = yielding
            session.execute(
                sql.SQL(
                    "UPDATE {table} r SET {column} = {other} FROM ("
                    "SELECT r.tableoid AS relation, r.ctid AS place, row_number() OVER () AS number FROM {rows}"
                    ") u WHERE r.tableoid = u.relation AND r.ctid = u.place"
                ).format(table=_table(merge), column=sql.Identifier(column), other=other, rows=rows)
            )


def _refuse_any(session: connect.Session, merge: Merge, unique: model.Index, rows: sql.Composed) -> None:
    if session.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(rows)).fetchone() is not None:
        raise errors.Refused(
            f"rows of {merge.step.target.name} exchange values under {unique.name}, none of whose columns"
            f" ({', '.join(unique.columns)}) can have another value for a moment; nothing of it was changed",
            hint="Copy the table anew: `mishika-migrate copy --on-existing replace`.",
        )


_NUMBERS = ("smallint", "integer", "bigint", "numeric", "double precision")


def _yielding(merge: Merge, unique: model.Index, columns: Sequence[model.Column]) -> tuple[str, sql.Composable] | None:
    """A column, and a value for it that no row has; the row gets its own one in a moment. None where there is none."""
    if "NULLS NOT DISTINCT" not in unique.definition:
        for column in columns:
            if column.nullable and column.name not in merge.key:
                return column.name, sql.SQL("NULL")
    for column in columns:
        # What has another value meanwhile must not be what other rows are found by.
        if column.name not in merge.bound and (other := _another(merge, column)) is not None:
            return column.name, other
    return None


def _another(merge: Merge, column: model.Column) -> sql.Composable | None:
    kind, _, rest = column.type.partition("(")
    random = sql.SQL("md5(random()::text || r.ctid::text)")
    least = sql.SQL("(SELECT min({}) FROM {})").format(sql.Identifier(column.name), _table(merge))
    if kind == "text" or (kind == "character varying" and not rest):
        return random
    if kind in ("character varying", "character") and rest:
        return sql.SQL("left({}, {})").format(random, sql.Literal(int(rest.partition(")")[0])))
    if kind == "uuid":
        return sql.SQL("{}::uuid").format(random)
    if kind == "bytea":
        return sql.SQL("decode({}, 'hex')").format(random)
    if kind in _NUMBERS:
        return sql.SQL("least({}, 0) - u.number").format(least)
    if kind == "date":
        return sql.SQL("{} - u.number::int").format(least)
    if kind.startswith("timestamp"):
        return sql.SQL("{} - u.number * interval '1 second'").format(least)
    return None


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


def add(session: connect.Session, merge: Merge) -> int:
    """Of rows without a key those that the target has too few of; what only the target has stays."""
    name = _trusted(f"mishika_places_{merge.number}")
    places = sql.Identifier("pg_temp", name)
    session.execute(sql.SQL("CREATE TEMP TABLE {} (place int8) ON COMMIT DROP").format(sql.Identifier(name)))
    for batch in _batches(merge.places):
        session.execute(sql.SQL("INSERT INTO {} SELECT unnest({}::int8[])").format(places, sql.Literal(batch)))
    row = sql.SQL("ROW({})::text").format(transfer.columns(merge.step))
    numbered = sql.SQL(
        "SELECT {columns}, {row} AS mishika_row, row_number() OVER (PARTITION BY {row}) AS mishika_number"
    )
    ours = numbered.format(columns=transfer.columns(merge.step), row=row)
    return session.execute(
        sql.SQL(
            "INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM ({ours} FROM {incoming}) i"
            " WHERE NOT EXISTS (SELECT FROM ({ours} FROM {rows} AND {place} IN (SELECT place FROM {places})) r"
            " WHERE (r.mishika_row, r.mishika_number) = (i.mishika_row, i.mishika_number))"
        ).format(
            table=_table(merge),
            columns=transfer.columns(merge.step),
            ours=ours,
            incoming=_incoming(merge),
            rows=digest.rows_of(merge.look, "target"),
            place=digest.place(merge.look, "target"),
            places=places,
        )
    ).rowcount


def upsert(session: connect.Session, merge: Merge) -> tuple[int, int]:
    """Rows into a table that others write to: how many were new, and how many of a known key had other values."""
    names = [name for name in merge.step.columns if name not in merge.key]
    known = session.execute(
        sql.SQL("SELECT count(*) FROM {} i WHERE EXISTS (SELECT FROM {} r WHERE {})").format(
            _incoming(merge), _table(merge), _equal(merge.key)
        )
    ).fetchone()
    coming = session.execute(sql.SQL("SELECT count(*) FROM {}").format(_incoming(merge))).fetchone()
    written = session.execute(
        sql.SQL(
            "INSERT INTO {table} AS r ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {incoming} i"
            " ON CONFLICT ({key}) {action}"
        ).format(
            table=_table(merge),
            columns=transfer.columns(merge.step),
            incoming=_incoming(merge),
            key=sql.SQL(", ").join(map(sql.Identifier, merge.key)),
            action=_unless_equal(names),
        )
    ).rowcount
    new = int(str(coming[0])) - int(str(known[0])) if coming and known else 0
    new = min(max(new, 0), written)
    return new, written - new


def _unless_equal(names: Sequence[str]) -> sql.Composable:
    """Rows that are the same already are not written again, nor locked. As `pg.upsert` compares them."""
    if not names:
        return sql.SQL("DO NOTHING")
    new, old = (
        sql.SQL(", ").join(sql.SQL("{}.{}").format(sql.SQL(of), sql.Identifier(name)) for name in names)
        for of in ("excluded", "r")
    )
    return sql.SQL(
        "DO UPDATE SET ({names}) = ROW({new}) WHERE ROW({old})::record OPERATOR(pg_catalog.*<>) ROW({new})::record"
    ).format(names=sql.SQL(", ").join(map(sql.Identifier, names)), new=new, old=old)


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
        " WHERE k.contype = 'f' AND k.confdeltype IN ('c', 'n', 'd') AND k.conparentid = 0"
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
