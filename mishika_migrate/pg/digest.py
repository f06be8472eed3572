"""Compares rows of two servers without moving them: hashes are computed inside each server and summed.

Imports pg.connect, pg.sides, pg.snapshot and the words. One scan a side sums the hashes of rows by buckets of
their keys; of buckets that differ the hashes of keys and rows are fetched in order and compared; of rows that
differ the hashes of columns. Equal tables cost one scan and a few kilobytes, whatever their size.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import LiteralString

from psycopg import sql

from mishika_migrate import model
from mishika_migrate.pg import connect, sides, snapshot

# 1,024 buckets hold some 500 rows each of a log of 1 GB, and their sums fit into a server's work_mem.
_BUCKETS = 1024
_MOST_BUCKETS = 16_384
_ROWS_A_BUCKET = 2_000
# Where one row in a hundred is another one, all of those differ; of 65,536 one in twelve does. Their sums take
# 3.4 s of 1 GB instead of 3.2 s.
_FINE_BUCKETS = 65_536
_ROWS_A_FINE_BUCKET = 8

_FAST_SINCE = 14_00_00  # hash_record_extended

# Types whose own hash sees every difference. Those of floats and numerics take -0 for 0 and 1.0 for 1.00,
# that of all 64-bit values folds them to 32 bits, which takes -1 for 4294967295: their binary form is hashed.
# hash_array does not see where dimensions end; intervals are normalised. Anything else is hashed as text.
_NATIVE = frozenset({"boolean", "smallint", "integer", "date", "uuid", "bytea"})
_TEXTS = frozenset({"text", "character varying"})
_SENT: Mapping[str, LiteralString] = {
    "bigint": "int8send({})",
    "real": "float4send({})",
    "double precision": "float8send({})",
    "numeric": "numeric_send({})",
    "timestamp without time zone": "timestamp_send({})",
    "timestamp with time zone": "timestamptz_send({})",
    "time without time zone": "time_send({})",
}

# jsonb's own hash takes {} for [], and [[1], [2]] for [[1, [2]]]: it does not see where a list or an object ends.
# The text costs as much as the rest of a request log (0.43 s and 0.30 s for 144 MB on 18), so that of a table of
# more than these bytes is hashed so, but for {} and [].
_NESTED_BYTES = 256 * 1024 * 1024

# What jsonb takes when it is an empty list or object, 4 bytes and a header of 1 or 4; the next larger takes 9.
_EMPTY_BYTES = 8

# One value of every kind that is hashed natively. Hash functions are not promised to stay the same between
# versions or kinds of machines, so both servers are asked.
_PROBE: LiteralString = (
    "ROW(true, 1::int2, 2::int4, -3::int8, '2026-08-01'::date, '6f1e9c1c-5f4e-4c84-9c3c-1d1f2c8f6a11'::uuid,"
    " '\\x00ff'::bytea, '{\"a\": [1, 2.5, null, \"\\u00fc\"]}'::jsonb, '2026-08-01 12:00:00.123'::timestamp,"
    " '2026-08-01 12:00:00+00'::timestamptz, '12:34:56.789'::time, 'Zo\\u00eb'::text COLLATE \"C\","
    " float8send(0.1), float4send(0.1), numeric_send(12.340), int8send(-1), hashfloat8extended(1e18, 1))"
)


def method(both: sides.Both, wanted: model.Method) -> model.Method:
    """The hash by which both servers can be compared: the wanted one, or else sha256 of the text."""
    oldest = min(session.info.server_version for session in both.sessions.values())
    if wanted == "fast" and oldest < _FAST_SINCE:
        wanted = "exact"
    if wanted == "sha256" or not _agree(both, sql.Composed([sql.SQL("SELECT getdatabaseencoding()")])):
        return "sha256"  # a text has other bytes in another encoding
    probe = sql.SQL("SELECT {}").format(
        sql.SQL("hash_record_extended({}, 0)" if wanted == "fast" else "hashtextextended(({})::text, 0)").format(
            sql.SQL(_PROBE)
        )
    )
    return wanted if _agree(both, probe) else "sha256"


def _agree(both: sides.Both, query: sql.Composed) -> bool:
    return len({both.one(role, lambda session, _: _one(session, query), "") for role in sides.ROLES}) == 1


def blind(looks: Iterable[Look]) -> tuple[str, ...]:
    """What is not seen; all hashes take rows for equal that differ only by a collision of 64 bits."""
    nested = [look.what.table for look in looks if look.nested and look.level == "content"]
    return tuple(
        f"where a list or an object ends within jsonb of {table} ([[1], [2]] and [[1, [2]]]), and zeros at the end of"
        " its numbers (1.0 and 1.00)"
        for table in nested
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How to look at the rows of one comparison on both sides.

    `share` is of rows, 1 for all; which ones follows from their keys, so both sides look at the same.
    `relations` are queries to look at instead of the tables, by side. `fine` is for tables of which some
    rows in a hundred differ, all over.
    """

    what: model.Comparison
    method: model.Method
    level: model.Level = "content"
    share: float = 1.0
    relations: Mapping[model.Role, sql.Composed] = field(default_factory=dict)
    fine: bool = False

    @property
    def nested(self) -> bool:
        """Whether jsonb is hashed by its own hash, which is fast and blind to nesting."""
        large = self.method == "fast" and self.what.bytes > _NESTED_BYTES
        return large and any(column.type == "jsonb" for column in self.what.columns)

    @property
    def buckets(self) -> int:
        wanted = _BUCKETS
        most, rows = (_FINE_BUCKETS, _ROWS_A_FINE_BUCKET) if self.fine else (_MOST_BUCKETS, _ROWS_A_BUCKET)
        while wanted < most and self.what.rows / wanted > rows:
            wanted *= 2
        return wanted


Sums = dict[int, tuple[int, ...]]

Condition = sql.Composed
"""Which rows of a query for `kh` are wanted."""


def count(session: connect.Session, look: Look, role: model.Role) -> int:
    """All rows of one side."""
    query = sql.SQL("SELECT count(*) FROM {}").format(rows_of(look, role))
    return int(str(_one(session, query)))


def sums(session: connect.Session, look: Look, role: model.Role) -> Sums:
    """By bucket the number of rows and the sums of their hashes: one scan."""
    query = sql.SQL(
        "SELECT kh & {mask}, count(*), sum(rh), sum(rh2) FROM ({hashes}) h WHERE {sampled} GROUP BY 1"
    ).format(mask=sql.Literal(look.buckets - 1), hashes=_hashes(look, role), sampled=_sampled(look))
    return {int(str(row[0])): tuple(int(str(value)) for value in row[1:]) for row in session.execute(query)}


def differing(ours: Sums, theirs: Sums) -> tuple[int, ...]:
    """The buckets that are not the same."""
    return tuple(sorted(bucket for bucket in ours.keys() | theirs.keys() if ours.get(bucket) != theirs.get(bucket)))


def total(found: Sums) -> int:
    """How many rows that are."""
    return sum(values[0] for values in found.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row as its hashes tell it. `key` are the texts of its key, empty without one."""

    place: int
    hash: tuple[int, int]
    key: tuple[str, ...]


def rows(session: connect.Session, look: Look, role: model.Role, buckets: Sequence[int]) -> Iterator[Row]:
    """The rows of these buckets ordered by `place`, a few thousand at a time."""
    query = sql.SQL("SELECT kh, rh, rh2, k FROM ({hashes}) h WHERE {wanted} ORDER BY kh").format(
        hashes=_hashes(look, role, named=True, buckets=buckets), wanted=among(look, buckets)
    )
    for row in streamed(session, query):
        yield _row(row)


def streamed(session: connect.Session, query: sql.Composed) -> Iterator[tuple[object, ...]]:
    """All rows of a query, a few thousand at a time; inside a transaction, one at a time for a session."""
    # All of them are read: a plan for the first few would sort by an index that is not there.
    session.execute("SELECT set_config('cursor_tuple_fraction', '1', true)")
    with session.cursor(name="mishika_rows") as cursor:
        cursor.itersize = 4000
        cursor.execute(query)
        yield from cursor


def again(session: connect.Session, look: Look, role: model.Role, places: Sequence[int]) -> list[Row]:
    """The rows at these places, as this session sees them now."""
    query = sql.SQL("SELECT kh, rh, rh2, k FROM ({hashes}) h WHERE {}").format(
        at(places), hashes=_hashes(look, role, named=True, places=places)
    )
    return [_row(row) for row in session.execute(query)]


def _row(row: Sequence[object]) -> Row:
    place, one, other = (int(str(value)) for value in row[:3])
    return Row(place=place, hash=(one, other), key=texts(row[3]))


def texts(value: object) -> tuple[str, ...]:
    """An array of texts; NULL is the empty text."""
    return tuple("" if part is None else str(part) for part in value) if isinstance(value, list) else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What the sides have at one place under one key; rows that are on both alike are left out."""

    place: int
    key: tuple[str, ...]
    ours: int
    theirs: int

    @property
    def differ(self) -> int:
        """How many rows are on both sides, but not the same."""
        return min(self.ours, self.theirs) if self.key else 0


def compare(ours: Iterator[Row], theirs: Iterator[Row]) -> Iterator[Pair]:
    """What is not the same in two streams that are ordered by `place`. Holds one place at a time."""
    one, other = next(ours, None), next(theirs, None)
    while one is not None or other is not None:
        place = min(row.place for row in (one, other) if row is not None)
        left, one = _take(ours, one, place)
        right, other = _take(theirs, other, place)
        yield from _unequal(place, left, right)


def _take(rows: Iterator[Row], row: Row | None, place: int) -> tuple[list[Row], Row | None]:
    taken = []
    while row is not None and row.place == place:
        taken.append(row)
        row = next(rows, None)
    return taken, row


def _unequal(place: int, left: Sequence[Row], right: Sequence[Row]) -> Iterator[Pair]:
    for key in dict.fromkeys(row.key for row in (*left, *right)):
        ours = Counter(row.hash for row in left if row.key == key)
        theirs = Counter(row.hash for row in right if row.key == key)
        if ours != theirs:
            yield Pair(place=place, key=key, ours=(ours - theirs).total(), theirs=(theirs - ours).total())


def columns(
    session: connect.Session, look: Look, role: model.Role, places: Sequence[int]
) -> dict[tuple[int, tuple[str, ...]], tuple[int, ...]]:
    """Of the rows at these places, by place and key, the hash of each column in the comparison's order."""
    query = sql.SQL("SELECT {place}, {key}, ARRAY[{hashes}] FROM {rows} AND {place} = ANY ({places})").format(
        place=place(look, role),
        key=key_text(look),
        hashes=column_hashes(look, role),
        rows=rows_of(look, role),
        places=_numbers(places),
    )
    found: dict[tuple[int, tuple[str, ...]], tuple[int, ...]] = {}
    for row in session.execute(query):
        hashes = row[2] if isinstance(row[2], list) else []
        found[int(str(row[0])), texts(row[1])] = tuple(map(int, hashes))
    return found


# -- hashes ---------------------------------------------------------------------------------------

# 0 would hash jsonb's true, false and null to 2, 4 and 1, and {} as NULL.
_KEY_SEED, _ROW_SEED, _SECOND_SEED = 7, 3, 1

# sha256 has no seeds; other bytes of it are as good.
_PARTS = {_ROW_SEED: 1, _SECOND_SEED: 9, _KEY_SEED: 17}


def _hashes(
    look: Look,
    role: model.Role,
    *,
    named: bool = False,
    places: Sequence[int] | None = None,
    buckets: Sequence[int] | None = None,
) -> sql.Composed:
    """A query for `kh`, where a row belongs, and `rh`, `rh2`, what it is; `k` names it.

    With `places` or `buckets` rows elsewhere may be left out: the hash of a key costs little, that of a row much.
    """
    columns = look.what.columns if look.level == "content" else _key_columns(look)
    where = rows_of(look, role)
    if places is not None and look.what.key:
        where = sql.SQL("{} AND {} = ANY ({})").format(where, place(look, role), _numbers(places))
    if buckets is not None and look.what.key:
        # A list is looked through for every row before 14.
        where = sql.SQL("{} AND {} & {} IN (SELECT unnest({}))").format(
            where, place(look, role), sql.Literal(look.buckets - 1), _numbers(buckets)
        )
    name = sql.SQL(", {} AS k").format(key_text(look)) if named else sql.SQL("")
    if look.method == "fast":
        # A record's hash is linear in those of its columns, so two rows of one bucket that swap a value have
        # the same sum. hashfloat8 of it is not, and costs nothing.
        return sql.SQL(
            "SELECT {kh} AS kh, rh, hashfloat8extended(rh::float8, {seed}) AS rh2{k}"
            " FROM (SELECT {whole} AS rh{place}{name} FROM {where} OFFSET 0) v OFFSET 0"
        ).format(
            kh=sql.SQL("kh" if look.what.key else "rh"),
            seed=sql.Literal(_SECOND_SEED),
            k=sql.SQL(", k" if named else ""),
            whole=_of_values(look, columns, role, _ROW_SEED),
            place=sql.SQL(", {} AS kh").format(place(look, role)) if look.what.key else sql.SQL(""),
            name=name,
            where=where,
        )
    # OFFSET 0 keeps the planner from writing out a row's text once for each hash.
    return sql.SQL(
        "SELECT {kh} AS kh, {one} AS rh, {two} AS rh2{k}"
        " FROM (SELECT {values}::text AS t{place}{name} FROM {where} OFFSET 0) v OFFSET 0"
    ).format(
        kh=sql.SQL("kh") if look.what.key else _of_text(look, sql.SQL("t"), _ROW_SEED),
        one=_of_text(look, sql.SQL("t"), _ROW_SEED),
        two=_of_text(look, sql.SQL("t"), _SECOND_SEED),
        k=sql.SQL(", k" if named else ""),
        values=_values(look, columns, role),
        place=sql.SQL(", {} AS kh").format(place(look, role)) if look.what.key else sql.SQL(""),
        name=name,
        where=where,
    )


def _key_columns(look: Look) -> Sequence[model.Compared]:
    return [column for column in look.what.columns if column.name in look.what.key] or look.what.columns


def place(look: Look, role: model.Role) -> sql.Composable:
    """The hash of a row's key, of row `r`; of all its columns where it has no key."""
    return _of_values(look, _key_columns(look), role, _KEY_SEED if look.what.key else _ROW_SEED)


def key_text(look: Look) -> sql.Composable:
    """An array of the texts of a row's key."""
    keys = [sql.SQL("r.{}::text").format(sql.Identifier(name)) for name in look.what.key]
    return sql.SQL("ARRAY[{}]::text[]").format(sql.SQL(", ").join(keys))


def column_hashes(look: Look, role: model.Role) -> sql.Composable:
    return sql.SQL(", ").join(_of_values(look, [column], role, _ROW_SEED) for column in look.what.columns)


def _of_values(look: Look, columns: Sequence[model.Compared], role: model.Role, seed: int) -> sql.Composable:
    values = _values(look, columns, role)
    if look.method == "fast":
        return sql.SQL("hash_record_extended({}, {})").format(values, sql.Literal(seed))
    return _of_text(look, sql.SQL("({})::text").format(values), seed)


def _of_text(look: Look, text: sql.Composable, seed: int) -> sql.Composable:
    if look.method == "exact":
        return sql.SQL("hashtextextended({}, {})").format(text, sql.Literal(seed))
    return sql.SQL("('x' || encode(substr(sha256(convert_to({}, 'UTF8')), {}, 8), 'hex'))::bit(64)::int8").format(
        text, sql.Literal(_PARTS[seed])
    )


def _values(look: Look, columns: Sequence[model.Compared], role: model.Role) -> sql.Composed:
    made = [_value(look, column, role) for column in columns]
    return sql.SQL("ROW({})").format(sql.SQL(", ").join(made))


def _value(look: Look, column: model.Compared, role: model.Role) -> sql.Composable:
    """A column of row `r` in a form whose hash, or text, is the same for the same value on every server."""
    kind = re.sub(r"\([0-9, ]+\)", "", column.type)
    value: sql.Composable = sql.SQL("r.{}").format(sql.Identifier(column.name))
    if column.cast and role == "source" and kind in _NATIVE | _TEXTS | _SENT.keys() | {"jsonb"}:
        # As the copy did: the target has read the source's text.
        value = sql.SQL("{}::text::{}").format(value, sql.SQL(_trusted(kind)))
    if column.cast and kind == "numeric":
        # 1.5 is 1.50 in a numeric(9,2); numeric(…,4) keeps other zeros than numeric(…,2).
        zeros = "CASE WHEN strpos({0}::text, '.') > 0 THEN rtrim(rtrim({0}::text, '0'), '.') ELSE {0}::text END"
        return sql.SQL(f'({zeros}) COLLATE "C"').format(value)
    if look.method != "fast" and not column.cast:
        return value
    if kind == "jsonb" and look.nested:
        empty = sql.SQL('CASE WHEN pg_column_size({v}) <= {bytes} THEN {v}::text COLLATE "C" END')
        return sql.SQL(", ").join([value, empty.format(v=value, bytes=sql.Literal(_EMPTY_BYTES))])
    if kind in _NATIVE:
        return value
    if kind in _SENT:
        return sql.SQL(_SENT[kind]).format(value)
    # Collation "C": others may take different texts for equal.
    return sql.SQL('{}::text COLLATE "C"').format(value)


def rows_of(look: Look, role: model.Role) -> sql.Composed:
    """`FROM` and `WHERE` of the rows, as `r`; ONLY keeps rows of inheriting tables out, which are not ours."""
    if role in look.relations:
        return sql.SQL("({}) r WHERE true").format(look.relations[role])
    table = look.what.on(role)
    partitioned = look.what.partitioned[0 if role == "source" else 1]
    return sql.SQL("{}{} r WHERE {}").format(
        sql.SQL("" if partitioned else "ONLY "),
        sql.Identifier(table.schema, table.name),
        snapshot.inside(look.what.within),
    )


def among(look: Look, buckets: Sequence[int]) -> Condition:
    """Whether `kh` is in one of these buckets, and in the sample."""
    return sql.SQL("{} AND kh & {} IN (SELECT unnest({}))").format(
        _sampled(look), sql.Literal(look.buckets - 1), _numbers(buckets)
    )


def at(places: Sequence[int]) -> Condition:
    """Whether `kh` is one of these places."""
    return sql.SQL("kh = ANY ({})").format(_numbers(places))


def _sampled(look: Look) -> sql.Composable:
    if look.share >= 1:
        return sql.SQL("true")
    return sql.SQL("(kh >> 20) & 65535 < {}").format(sql.Literal(max(round(look.share * 65536), 1)))


def _numbers(values: Sequence[int]) -> sql.Composed:
    return sql.SQL("{}::int8[]").format(sql.Literal(list(values)))


def _one(session: connect.Session, query: sql.Composed | LiteralString) -> object:
    row = session.execute(query).fetchone()
    return row[0] if row else None


def _trusted(text: str) -> LiteralString:
    # One of the types named above.
    return text
