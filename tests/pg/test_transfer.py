"""One table's rows through the pipe, whatever they are; or none of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import hypothesis
import psycopg
import pytest
from hypothesis import strategies as st
from psycopg import sql

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, transfer
from tests.fix_faults import ask
from tests.fix_servers import assert_equal, endpoint

KEYS, LOGS = "MishikaLLM_VerificationToken", "MishikaLLM_SpendLogs"

# Everything that Postgres' UTF8 can hold: no NUL, no lone surrogate.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
NASTY = st.lists(st.sampled_from(["\\N", "\\.", "\n", "\t", "\\", '"', "'", ",", "{", "}", "NULL", "é", "😀"])).map(
    "".join
)
TEXTS = TEXT | NASTY
ARRAYS = st.lists(st.none() | TEXTS, max_size=4)
JSONS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
).map(json.dumps)
TIMES = st.datetimes().map(str) | st.sampled_from(
    ["infinity", "-infinity", "4713-11-24 00:00:00 BC", "0001-12-31 23:59:59.999 BC", "294276-12-31 23:59:59.999"]
)
COLUMNS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    KEYS: {
        "key_name": st.none() | TEXTS,
        "models": st.none() | ARRAYS,
        "spend": st.floats(),
        "max_budget": st.none() | st.floats(),
        "expires": st.none() | TIMES,
        "metadata": JSONS,
        "aliases": JSONS,
        "tpm_limit": st.none() | st.integers(-(2**63), 2**63 - 1),
        "max_parallel_requests": st.none() | st.integers(-(2**31), 2**31 - 1),
        "blocked": st.none() | st.booleans(),
    },
    LOGS: {
        "call_type": TEXTS,
        "startTime": TIMES,
        "endTime": TIMES,
        "spend": st.floats(),
        "total_tokens": st.integers(-(2**31), 2**31 - 1),
        "messages": st.none() | JSONS,
        "request_tags": st.none() | JSONS,
        "user": st.none() | TEXTS,
    },
}
KEY = {KEYS: "token", LOGS: "request_id"}


@pytest.fixture(scope="module")
def databases(pair: Any) -> Iterator[tuple[str, str]]:
    """One pair for all examples."""
    urls = []
    for server in (pair.old, pair.new):
        with psycopg.connect(server.url(), autocommit=True) as session:
            session.execute("CREATE DATABASE examples TEMPLATE bare")
        urls.append(server.url("examples"))
    yield urls[0], urls[1]
    for server in (pair.old, pair.new):
        with psycopg.connect(server.url(), autocommit=True) as session:
            session.execute("DROP DATABASE examples WITH (FORCE)")


def step(table: str, url: str, *, binary: bool) -> model.CopyTable:
    with psycopg.connect(url) as session:
        found = session.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
            " ORDER BY attnum DESC",
            [f'"{table}"'],
        )
        columns = tuple(str(row[0]) for row in found)
    name = model.TableName(schema="public", name=table)
    return model.CopyTable(
        source=name, target=name, columns=columns, binary=binary, partitioned=False, rows=0.0, bytes=0
    )


def fill(url: str, table: str, rows: list[dict[str, Any]]) -> None:
    with psycopg.connect(url) as session:
        session.execute(sql.SQL("TRUNCATE {} CASCADE").format(sql.Identifier(table)))
        for n, row in enumerate(rows):
            names = [KEY[table], *row]
            session.execute(
                sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                    sql.Identifier(table),
                    sql.SQL(", ").join(map(sql.Identifier, names)),
                    sql.SQL(", ").join([sql.Placeholder()] * len(names)),
                ),
                [f"row {n}", *row.values()],
            )


def moved(source: str, target: str, what: model.CopyTable) -> model.Landed:
    ends = (endpoint(source, "source"), endpoint(target, "target"))
    with (
        connect.session(ends[0], name="test") as reading,
        connect.session(ends[1], name="test") as writing,
        connect.transaction(writing),
    ):
        return transfer.copy(transfer.Way(source=reading, target=writing, endpoints=ends), what)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "text"])
@pytest.mark.parametrize("table", [pytest.param(KEYS, marks=pytest.mark.soak), LOGS])
@hypothesis.settings(
    max_examples=20, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
@hypothesis.given(data=st.data())
def test_any_row_arrives_as_it_was(table: str, binary: bool, databases: tuple[str, str], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.fixed_dictionaries(COLUMNS[table]), min_size=1, max_size=6))
    source, target = databases
    fill(source, table, rows)
    fill(target, table, [])
    landed = moved(source, target, step(table, source, binary=binary))
    assert landed.rows_out == landed.rows_in == len(rows)
    assert_equal(source, target, [table])


@pytest.fixture
def blobs(source_url: str, target_url: str) -> tuple[str, str]:
    for url in (source_url, target_url):
        ask(url, "CREATE TABLE blobs (n int, t text)")
    return source_url, target_url


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "text"])
def test_rows_around_the_size_of_a_block_are_all_there(binary: bool, blobs: tuple[str, str]) -> None:
    block = 128 * 1024
    sizes = [0, 1, block - 60, block, 10, block + 1, block * 3, 5, 5, block * 2, *[9] * 40_000, block]
    with psycopg.connect(blobs[0]) as session:
        session.execute(
            "INSERT INTO blobs SELECT n, repeat('x', size) FROM unnest(%s::int[]) WITH ORDINALITY u (size, n)", [sizes]
        )
    what = step("blobs", blobs[0], binary=binary)
    landed = moved(*blobs, what)
    assert landed.rows_in == len(sizes)
    assert landed.bytes > sum(sizes)
    assert_equal(*blobs, ["blobs"])


def test_no_block_but_a_single_large_row_is_larger_than_two_hundred_kib(blobs: tuple[str, str]) -> None:
    ask(blobs[0], "INSERT INTO blobs SELECT n, repeat('x', n * 10) FROM generate_series(1, 5000) n")
    end = endpoint(blobs[0], "source")
    with connect.session(end, name="test") as session:
        query = transfer.copy_out(step("blobs", blobs[0], binary=True))
        stream = transfer.Stream(session, query, what="table blobs", endpoint=end, stopping=connect.never)
        sizes = [len(block) for block in stream]
    assert stream.rows == 5000
    assert (min(sizes[:-1]) >= 128 * 1024, max(sizes) < 200 * 1024) == (True, True)
    assert stream.bytes == sum(sizes)


def test_stop_leaves_nothing_and_a_usable_session(blobs: tuple[str, str]) -> None:
    ask(blobs[0], "INSERT INTO blobs SELECT n, repeat('x', 1000) FROM generate_series(1, 5000) n")
    ends = (endpoint(blobs[0], "source"), endpoint(blobs[1], "target"))
    stop = threading.Event()
    what = step("blobs", blobs[0], binary=True)
    with connect.session(ends[0], name="test") as reading, connect.session(ends[1], name="test") as writing:
        stop.set()
        with pytest.raises(connect.Stopped), connect.transaction(writing):
            transfer.copy(transfer.Way(source=reading, target=writing, endpoints=ends, stopping=stop.is_set), what)
        assert writing.execute("SELECT count(*) FROM public.blobs").fetchone() == (0,)


@pytest.mark.parametrize(("side", "column"), [("source", "gone"), ("target", "gone")])
def test_error_names_the_side_and_the_table(side: str, column: str, blobs: tuple[str, str]) -> None:
    what = step("blobs", blobs[0], binary=True)
    ask(blobs[0] if side == "source" else blobs[1], f"ALTER TABLE blobs RENAME t TO {column}")
    with pytest.raises(errors.ServerError, match=f"^{side} .*table blobs: column .* does not exist") as raised:
        moved(*blobs, what)
    assert (raised.value.sqlstate, raised.value.transient) == ("42703", False)


def test_constraint_of_the_target_ends_in_its_error(blobs: tuple[str, str]) -> None:
    ask(blobs[1], "ALTER TABLE blobs ADD CHECK (n < 4000)")
    ask(blobs[0], "INSERT INTO blobs SELECT n, repeat('x', 1000) FROM generate_series(1, 5000) n")
    with pytest.raises(errors.ServerError, match=r"target .*blobs") as raised:
        moved(*blobs, step("blobs", blobs[0], binary=True))
    assert raised.value.sqlstate == "23514"


def test_trigger_that_drops_rows_does_not_go_unnoticed(blobs: tuple[str, str]) -> None:
    ask(
        blobs[1],
        "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER skip BEFORE INSERT ON blobs FOR EACH ROW WHEN (NEW.n = 3) EXECUTE FUNCTION skip()",
    )
    ask(blobs[0], "INSERT INTO blobs SELECT n, 'x' FROM generate_series(1, 5) n")
    with pytest.raises(errors.Error, match="the source sent 5 rows, 4 arrived"):
        moved(*blobs, step("blobs", blobs[0], binary=True))
    assert ask(blobs[1], "SELECT count(*) FROM blobs") == 0


def test_rows_of_inheriting_tables_stay_and_those_of_partitions_come(source_url: str, target_url: str) -> None:
    ask(
        source_url,
        "CREATE TABLE parent (n int); CREATE TABLE heir () INHERITS (parent); INSERT INTO heir VALUES (1);"
        "CREATE TABLE parts (n int) PARTITION BY RANGE (n); CREATE TABLE part PARTITION OF parts DEFAULT;"
        "INSERT INTO parts VALUES (1), (2)",
    )
    ask(target_url, "CREATE TABLE parent (n int); CREATE TABLE parts (n int)")
    assert moved(source_url, target_url, step("parent", source_url, binary=True)).rows_in == 0
    parts = replace(step("parts", source_url, binary=True), partitioned=True)
    assert moved(source_url, target_url, parts).rows_in == 2


@pytest.mark.parametrize(("truncate", "referenced"), [(True, False), (True, True), (False, False)])
def test_empty_leaves_no_row_and_no_reader_without_rows(truncate: bool, referenced: bool, target_url: str) -> None:
    ask(target_url, "CREATE TABLE t (n int PRIMARY KEY); INSERT INTO t VALUES (1)")
    if referenced:
        ask(target_url, "CREATE TABLE child (n int REFERENCES t)")
    with connect.session(endpoint(target_url, "target"), name="test") as session, connect.transaction(session):
        transfer.empty(session, model.TableName(schema="public", name="t"), truncate=truncate)
        exclusive = "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND mode = 'AccessExclusiveLock'"
        assert ask(target_url, exclusive) == int(truncate and not referenced)
    assert ask(target_url, "SELECT count(*) FROM t") == 0
