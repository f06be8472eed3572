"""Any one value of any table becomes another one, and that is what is found: one row, one column."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import hypothesis
import psycopg
import pytest
from hypothesis import strategies as st
from psycopg import sql

from mishika_migrate import model
from tests import proving
from tests.fix_servers import Pair
from tests.looking import execute
from tests.proving import plant, prove

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40)
PLAIN = st.text(st.characters(min_codepoint=32, codec="utf-8"), max_size=10)  # json cannot hold \u0000
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(PLAIN, inner, max_size=4),
    max_leaves=8,
).map(json.dumps)


def whole(bits: int) -> st.SearchStrategy[str]:
    return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1).map(str)


def number(value: float) -> str:
    return "NaN" if math.isnan(value) else repr(value).replace("inf", "Infinity")


def listed(elements: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def quoted(text: str | None) -> str:
        return "NULL" if text is None else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    return st.lists(st.none() | elements, max_size=4).map(lambda some: "{" + ",".join(map(quoted, some)) + "}")


MOMENTS = st.datetimes().map(lambda moment: moment.isoformat(sep=" ")) | st.sampled_from(["infinity", "-infinity"])

VALUES: dict[str, st.SearchStrategy[str]] = {
    "text": TEXT,
    "varchar": TEXT,
    "bpchar": TEXT.map(lambda text: text[:5]),
    "bool": st.sampled_from(["true", "false"]),
    "int4": whole(32),
    "int8": whole(64),
    "float4": st.floats(width=32).map(number),
    "float8": st.floats().map(number),
    "numeric": st.decimals(allow_infinity=False, places=3).map(str) | st.integers().map(str),
    "timestamp": MOMENTS,
    "timestamptz": MOMENTS,
    "date": st.dates().map(str) | st.sampled_from(["infinity", "-infinity"]),
    "time": st.times().map(str),
    "interval": st.timedeltas().map(lambda span: f"{span.days} days {span.seconds} seconds {span.microseconds} us"),
    "bytea": st.binary(max_size=20).map(lambda raw: "\\x" + raw.hex()),
    "uuid": st.uuids().map(str),
    "int4range": st.tuples(st.integers(-9, 9), st.integers(-9, 9)).map(lambda ends: f"[{min(ends)},{max(ends)}]"),
    "mood": st.sampled_from(["calm", "cross"]),
    "json": JSON,
    "jsonb": JSON,
    "_text": listed(TEXT),
    "_int4": st.lists(st.integers(0, 9), max_size=4).map(lambda some: "{" + ",".join(map(str, some)) + "}"),
}
"""By type what another value may be, as text that the server reads."""

CLOSE: dict[str, tuple[str, ...]] = {
    "text": ("{} || ' '", "upper({})", "left({}, -1)", "reverse({})", "{} || E'\\n'", "''", "NULL"),
    "varchar": ("{} || ' '", "upper({})", "NULL"),
    "float8": ("{} + {} * 2.3e-16", "-{}", "{} * 0.5", "NULL"),
    "float4": ("-{}", "{} * 0.5", "NULL"),
    "int4": ("{} + 1", "-{}", "NULL"),
    "int8": ("{} + 1", "{} # 4294967297", "-{}", "NULL"),
    "numeric": ("{} + 0.000", "-{}", "NULL"),
    "bool": ("NOT {}", "NULL"),
    "timestamp": ("{} + interval '1 hour'", "{} - interval '1 ms'", "{} + interval '1 day'", "NULL"),
    "timestamptz": ("{} + interval '1 hour'", "{} - interval '1 us'", "NULL"),
    "jsonb": ("to_jsonb({}::text)", "jsonb_build_array({})", "'{{}}'", "'[]'", "'null'", "NULL"),
    "json": ("json_build_array({})", "to_json({}::text)", "(' ' || {})::json", "NULL"),
    "_text": ("array_append({}, '')", "array_append({}, NULL)", "{}[2:]", "'{{}}'", "ARRAY[{}]", "NULL"),
    "_int4": ("array_append({}, NULL)", "{}[2:]", "'{{}}'", "ARRAY[{}]", "NULL"),
}
"""By type what is nearly the same, as an expression of the value."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A column that has values."""

    table: str
    column: str
    kind: str
    key: bool


@dataclass(frozen=True, kw_only=True)
class Bench:
    source: str
    target: str
    places: tuple[Place, ...]


@pytest.fixture(scope="module")
def bench(pair: Pair) -> Iterator[Bench]:
    """A copy whose changes are taken back one by one."""
    made = proving.templates(pair)
    source, target = made.source, pair.new.url("mutated")
    execute(pair.new.url(), f"CREATE DATABASE mutated TEMPLATE {made.copy}")
    equal = prove(source, target, checked=False)
    assert equal.state == "ok"
    filled = [content.table for content in equal.contents if content.rows_target]
    assert len(filled) > 20
    yield Bench(source=source, target=target, places=tuple(_places(target, filled)))
    execute(pair.new.url(), "DROP DATABASE mutated WITH (FORCE)")


def _places(url: str, tables: list[str]) -> Iterator[Place]:
    query = """
        SELECT c.relname, a.attname, t.typname,
               coalesce((SELECT a.attnum = ANY (i.indkey) FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary),
                        false)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%s) AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY 1, 2
    """
    with psycopg.connect(url) as session:
        for table, column, kind, key in session.execute(query, [tables]):
            yield Place(table=table, column=column, kind=kind, key=key)


@dataclass(frozen=True, kw_only=True)
class Change:
    """The value of a row's column becomes that of `expression`, with `value` for its parameter."""

    place: Place
    row: int
    expression: str
    value: str | None


def changes(places: tuple[Place, ...]) -> st.SearchStrategy[Change]:
    def of(place: Place) -> st.SearchStrategy[Change]:
        near = st.sampled_from(CLOSE.get(place.kind, ("NULL",))).map(lambda text: (text, None))
        far: st.SearchStrategy[tuple[str, str | None]] = VALUES[place.kind].map(lambda text: ("%s", text))
        return st.builds(
            lambda row, change: Change(place=place, row=row, expression=change[0], value=change[1]),
            st.integers(0, 10_000),
            near | far,
        )

    return st.sampled_from(places).flatmap(of)


def exact(column: str) -> sql.Composed:
    """A value as nothing but its own text."""
    return sql.SQL("ROW({})::text").format(sql.Identifier(column))


def carry_out(url: str, change: Change) -> Callable[[], None] | None:
    """What takes the change back; None where the table does not let it happen, or it changes nothing."""
    name, column = sql.Identifier("public", change.place.table), sql.Identifier(change.place.column)
    text = sql.SQL("{}::text").format(column)
    kind = sql.SQL("") if change.value is None else sql.SQL("::{}").format(sql.SQL(_type(change.place.kind)))
    with psycopg.connect(url) as session:
        session.execute("SET session_replication_role = replica; SET extra_float_digits = 3")
        query = sql.SQL("SELECT ctid::text, {}, {} FROM {} ORDER BY ctid OFFSET {} % (SELECT count(*) FROM {}) LIMIT 1")
        where, before, was = _one(
            session, query.format(text, exact(change.place.column), name, sql.Literal(change.row), name)
        )
        new = sql.SQL(change.expression.replace("{}", "{0}") if change.value is None else "{0}").format(
            column if change.value is None else sql.Literal(change.value)
        )
        update = sql.SQL("UPDATE {} SET {} = {}{} WHERE ctid = {}::tid RETURNING ctid::text, {}")
        try:
            here, now = _one(
                session,
                update.format(name, column, new, kind, sql.Literal(where), exact(change.place.column)),
            )
        except (psycopg.errors.IntegrityError, psycopg.errors.DataError, psycopg.errors.ProgramLimitExceeded):
            return None
        if now == was:
            session.rollback()
            return None

    def back() -> None:
        old = sql.SQL("UPDATE {} SET {} = {}::{} WHERE ctid = {}::tid").format(
            name, column, sql.Literal(before), sql.SQL(_type(change.place.kind)), sql.Literal(here)
        )
        with psycopg.connect(url, autocommit=True) as session:
            session.execute("SET session_replication_role = replica")
            session.execute(old)

    return back


def _one(session: psycopg.Connection[tuple[object, ...]], query: sql.Composed) -> tuple[object, ...]:
    row = session.execute(query).fetchone()
    assert row is not None
    return row


def _type(kind: str) -> str:
    return f"{kind[1:]}[]" if kind.startswith("_") else "public.mood" if kind == "mood" else kind


def expected(place: Place, table: str) -> tuple[dict[str, tuple[int, int, int]], dict[str, set[str]]]:
    moved = place.key or place.table == "keyless"
    return {table: (1, 1, 0) if moved else (0, 0, 1)}, {} if moved else {table: {place.column}}


METHODS: tuple[model.Method, ...] = ("fast", "exact")


@pytest.mark.parametrize("examples", [12, pytest.param(200, marks=pytest.mark.soak)])
def test_every_mutation_is_found_in_its_row_and_column(bench: Bench, examples: int) -> None:
    looked = []

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(change=changes(bench.places))
    def check(change: Change) -> None:
        back = carry_out(bench.target, change)
        hypothesis.assume(back is not None)
        assert back is not None
        try:
            rows, columns = expected(change.place, proving.bare(change.place.table))
            for method in METHODS:
                wanted = proving.only(change.place.table)
                found = proving.found(prove(bench.source, bench.target, wanted, method=method, checked=False))
                assert (method, found.rows, found.columns) == (method, rows, columns)
        finally:
            back()
        looked.append(change)

    check()
    assert len(looked) >= examples
    assert prove(bench.source, bench.target, checked=False).state == "ok"


# -- many at once ---------------------------------------------------------------------------------


def test_a_mutation_in_every_column_of_a_row_is_found_at_once(bench: Bench) -> None:
    """Each column of table `odd` in a row of its own, all in one pass."""
    own = [place for place in bench.places if place.table == "odd" and not place.key]
    execute(bench.target, "CREATE TABLE kept AS SELECT * FROM odd")
    try:
        for number_, place in enumerate(own, start=11):
            plant(bench.target, f"UPDATE odd SET {place.column} = NULL WHERE id = {number_}")
        for method in METHODS:
            proof = prove(bench.source, bench.target, proving.only("odd"), method=method, checked=False)
            (content,) = proof.contents
            assert {each.row: each.columns for each in content.differences} == {
                str(number_): (place.column,) for number_, place in enumerate(own, start=11)
            }
    finally:
        execute(bench.target, "TRUNCATE odd", "INSERT INTO odd SELECT * FROM kept", "DROP TABLE kept")
