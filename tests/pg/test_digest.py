"""Which differences the hashes see, on two real servers; and that equal rows have equal hashes on both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import hypothesis
import psycopg
import pytest
from hypothesis import strategies as st

from mishika_migrate import model
from mishika_migrate.operations.verifying import contents
from mishika_migrate.pg import catalog, connect, digest, sides
from mishika_migrate.proof import comparing
from tests import oddities
from tests.fix_faults import ask
from tests.fix_servers import Clone, Pair, endpoint
from tests.looking import RULES, execute

Mode = Literal["fast", "large", "exact", "sha256"]
MODES: tuple[Mode, ...] = ("fast", "large", "exact", "sha256")
LARGE = 1 << 40

ROLES = sides.ROLES


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A session of each side, inside a transaction that is rolled back after each test."""

    both: sides.Both
    catalogs: Mapping[model.Role, model.Catalog]

    def look(self, table: str, mode: Mode = "fast", **more: object) -> digest.Look:
        """`large` is the fast hash as it is for a table of many gigabytes."""
        (what,) = comparing.of_selection(RULES, self.catalogs["source"], self.catalogs["target"], [table])
        if mode == "large":
            return digest.Look(what=replace(what, bytes=LARGE), method="fast", **more)  # type: ignore[arg-type]
        return digest.Look(what=what, method=mode, **more)  # type: ignore[arg-type]

    def compare(self, look: digest.Look, most: int = 100) -> model.Content:
        return contents.compare(look, self.both, most=most).content

    def execute(self, role: model.Role, statement: str) -> None:
        session = self.both.sessions[role]
        session.execute("SET LOCAL search_path = public")
        session.execute(statement.encode())
        session.execute("SET LOCAL search_path = ''")

    @contextmanager
    def planted(self, statement: str, *, into: model.Role = "target") -> Iterator[None]:
        with self.open():
            self.execute(into, statement)
            yield

    @contextmanager
    def open(self) -> Iterator[None]:
        for session in self.both.sessions.values():
            session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        yield
        for session in self.both.sessions.values():
            session.execute("ROLLBACK")


@contextmanager
def benched(source: str, target: str) -> Iterator[Bench]:
    ends: dict[model.Role, model.Endpoint] = {
        "source": endpoint(source, "source"),
        "target": endpoint(target, "target"),
    }
    with ExitStack() as stack:
        sessions = {role: stack.enter_context(connect.session(end, name="test")) for role, end in ends.items()}
        catalogs = {role: catalog.read(sessions[role], ends[role], migrations=None) for role in ends}
        yield Bench(both=sides.Both(sessions, ends, name="test"), catalogs=catalogs)


@pytest.fixture(scope="module")
def bench(pair: Pair) -> Iterator[Bench]:
    """The odd tables with the same rows on both sides."""
    with ExitStack() as stack:
        urls = []
        for server in (pair.old, pair.new):
            with psycopg.connect(server.url(), autocommit=True) as session:
                session.execute("CREATE DATABASE digests TEMPLATE template0")
            stack.callback(execute, server.url(), "DROP DATABASE digests WITH (FORCE)")
            execute(server.url("digests"), oddities.TABLES, oddities.ROWS, MORE)
            urls.append(server.url("digests"))
        yield stack.enter_context(benched(*urls))


MORE = """
CREATE TABLE pairs (k int PRIMARY KEY, v text, w int);
INSERT INTO pairs SELECT n, 'value ' || n, n FROM generate_series(1, 4000) n;
CREATE TABLE nothing ();
INSERT INTO nothing SELECT FROM generate_series(1, 3);
CREATE TABLE composite (a text, b int, c float8, v text, PRIMARY KEY (a, b, c));
INSERT INTO composite SELECT 'a ' || n, n, n / 3.0, 'v' FROM generate_series(1, 50) n;
"""


# -- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", oddities.CHANGES)
def test_every_change_is_seen_in_its_column_alone(bench: Bench, name: str, mode: Mode) -> None:
    statement, expected = oddities.CHANGES[name]
    ((table, rows),) = expected.rows.items()
    look = bench.look(table, mode)
    for role in ROLES if mode == "fast" else ROLES[1:]:
        with bench.planted(statement, into=role):
            content = bench.compare(look)
        here, there, differing = rows
        if mode == "large" and name in oddities.UNSEEN:
            assert content.state == "ok"
            continue
        assert (content.source_only, content.target_only, content.differing) == (
            (here, there, differing) if role == "target" else (there, here, differing)
        )
        columns: set[str] = set().union(*(each.columns for each in content.differences))
        assert columns == expected.columns.get(table, set())


@pytest.mark.parametrize("mode", MODES)
def test_equal_rows_are_equal(bench: Bench, mode: Mode) -> None:
    for table in ("odd", "keyless", "pairs", "nothing", "composite"):
        with bench.open():
            content = bench.compare(bench.look(table, mode))
            assert (content.state, content.rows_source, content.differences) == ("ok", content.rows_target, ())
            assert content.rows_source == bench.compare(bench.look(table, level="counts")).rows_source > 2


def test_only_a_large_table_with_jsonb_has_something_unseen(bench: Bench) -> None:
    small = [bench.look(table, mode) for table in ("odd", "pairs") for mode in MODES if mode != "large"]
    assert digest.blind(small) == ()
    (text,) = digest.blind([*small, bench.look("odd", "large"), bench.look("pairs", "large")])
    assert "jsonb of odd" in text
    assert digest.blind([bench.look("odd", "large", level="keys")]) == ()


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_one_bucket_cannot_swap_values(bench: Bench, mode: Mode) -> None:
    """A record's hash is linear: the sum over both is the same, modulo 2^64."""
    look = bench.look("pairs", mode)
    with bench.open():
        by_bucket: dict[int, list[str]] = {}
        for row in digest.rows(bench.both.sessions["source"], look, "source", range(look.buckets)):
            by_bucket.setdefault(row.place & (look.buckets - 1), []).append(row.key[0])
    shared = [keys[:2] for keys in by_bucket.values() if len(keys) > 1][:12]
    assert len(shared) == 12
    for one, other in shared:
        for column in ("v", "w"):
            swap = f"UPDATE pairs p SET {column} = q.{column} FROM pairs q WHERE p.k + q.k = {one} + {other}"
            with bench.planted(f"{swap} AND p.k IN ({one}, {other}) AND q.k IN ({one}, {other})"):
                content = bench.compare(look)
            assert content.differing == content.different == 2
            assert {each.columns for each in content.differences} == {(column,)}


@pytest.mark.parametrize("mode", MODES)
def test_two_equal_changes_do_not_cancel(bench: Bench, mode: Mode) -> None:
    with bench.planted("UPDATE pairs SET v = 'same', w = 1"):
        assert bench.compare(bench.look("pairs", mode)).differing == 4000
    with bench.planted("INSERT INTO keyless SELECT a, b FROM keyless"):
        content = bench.compare(bench.look("keyless", mode))
    assert (content.target_only, content.rows_target) == (6, 12)
    assert sorted(each.copies for each in content.differences) == [1, 1, 1, 1, 2]


@pytest.mark.parametrize("mode", MODES)
def test_rows_without_columns_are_counted(bench: Bench, mode: Mode) -> None:
    with bench.planted("INSERT INTO nothing DEFAULT VALUES"):
        content = bench.compare(bench.look("nothing", mode))
    assert (content.target_only, content.rows_source, content.rows_target) == (1, 3, 4)


@pytest.mark.parametrize("mode", MODES)
def test_rows_are_told_by_all_of_a_composite_key(bench: Bench, mode: Mode) -> None:
    with bench.planted("UPDATE composite SET v = 'w' WHERE b = 7; UPDATE composite SET a = 'a 9 ' WHERE b = 9"):
        content = bench.compare(bench.look("composite", mode))
        keys = bench.compare(bench.look("composite", mode, level="keys"))
    assert [(each.kind, each.row, each.columns) for each in content.differences] == [
        ("differs", "a 7, 7, 2.3333333333333335", ("v",)),
        ("source-only", "a 9, 9, 3", ()),
        ("target-only", "a 9 , 9, 3", ()),
    ]
    assert (keys.source_only, keys.target_only, keys.differing) == (1, 1, 0)


def test_counts_see_nothing_but_the_number(bench: Bench) -> None:
    with bench.planted("UPDATE pairs SET v = ''; DELETE FROM pairs WHERE k < 4"):
        content = bench.compare(bench.look("pairs", level="counts"))
    assert (content.source_only, content.target_only, content.differing) == (3, 0, 0)


# -- both servers ---------------------------------------------------------------------------------


def method(bench: Bench, wanted: model.Method) -> model.Method:
    return digest.method(bench.both, wanted)


def test_servers_agree_on_the_hash(bench: Bench) -> None:
    for wanted in ("fast", "exact", "sha256"):
        assert method(bench, wanted) == wanted


def test_other_encodings_are_compared_by_sha256(pair: Pair, clone: Clone) -> None:
    name = "latin"
    execute(pair.old.url(), f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1'")
    try:
        target = clone(pair.new, "template0")
        for url in (pair.old.url(name), target):
            execute(url, "SET client_encoding = 'UTF8'", oddities.TABLES, oddities.ROWS)
        with benched(pair.old.url(name), target) as bench:
            for wanted in ("fast", "exact", "sha256"):
                assert method(bench, wanted) == "sha256"
            for table in ("odd", "keyless"):
                with bench.open():
                    assert bench.compare(bench.look(table, "sha256")).state == "ok"
            with bench.planted("UPDATE odd SET text = 'Zo€' WHERE id = 1"):
                (row,) = bench.compare(bench.look("odd", "sha256")).differences
            assert row.columns == ("text",)
    finally:
        execute(pair.old.url(), f"DROP DATABASE {name} WITH (FORCE)")


def test_columns_that_ignore_case_hide_nothing(pair: Pair, clone: Clone) -> None:
    """A collation that takes 'a' for 'A', of a key too, where a server has one."""
    urls = clone(pair.old, "template0"), clone(pair.new, "template0")
    for url in urls:
        loose = ""
        if ask(url, "SELECT count(*) FROM pg_collation WHERE collname = 'und-x-icu'"):
            execute(url, "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
            loose = "COLLATE loose"
        execute(
            url,
            f"CREATE TABLE t (k text {loose} PRIMARY KEY, v text {loose})",
            "INSERT INTO t SELECT 'Key ' || n, 'Value' FROM generate_series(1, 9) n",
        )
    with benched(*urls) as bench:
        for mode in MODES:
            look = bench.look("t", mode)
            with bench.open():
                assert bench.compare(look).state == "ok"
            with bench.planted(
                "UPDATE t SET v = 'value' WHERE k = 'Key 3'; UPDATE t SET k = 'KEY 4' WHERE k = 'Key 4'"
            ):
                content = bench.compare(look)
            assert [(each.kind, each.row) for each in content.differences] == [
                ("differs", "Key 3"),
                ("source-only", "Key 4"),
                ("target-only", "KEY 4"),
            ]


WIDENED = {
    "small": ("smallint", "bigint", "-7", "-8"),
    "whole": ("integer", "numeric(12,2)", "100", "1000"),
    "plain": ("bigint", "numeric", "100", "10"),
    "money": ("numeric(9,2)", "numeric(14,4)", "10.10", "10.01"),
    "round": ("numeric(9,2)", "numeric", "100.00", "10.00"),
    "free": ("numeric", "numeric(12,2)", "'NaN'", "0"),
    "single": ("real", "double precision", "0.1", "0.10000000149011612"),
    "day": ("date", "timestamp", "'2026-03-29'", "'2026-03-29 00:00:01'"),
    "moment": ("timestamp(3)", "timestamp", "'2026-03-29 01:30:00.123'", "'2026-03-29 01:30:00.123001'"),
    "zoned": ("timestamptz(3)", "timestamptz", "'2026-03-29 01:30:00.12+02'", "'2026-03-29 01:30:00.12+00'"),
    "name": ("varchar(20)", "text", "'Zoë '", "'Zoë'"),
    "padded": ("char(3)", "char(9)", "'a'", "'b'"),
    "mood": ("mood", "text", "'calm'", "'cross'"),
    "doc": ("jsonb", "json", """'{"a": 1}'""", """'{"a": 2}'"""),
    "list": ("varchar(9)[]", "text[]", "'{a,NULL,\"NULL\"}'", "'{a,NULL,NULL}'"),
    "other": ("integer", "bigint", "NULL", "0"),
}


@pytest.fixture(scope="module")
def widened(pair: Pair) -> Iterator[Bench]:
    """A table with wider types on the target, as a copy by text fills it."""
    with ExitStack() as stack:
        urls = []
        for server, side in ((pair.old, 0), (pair.new, 1)):
            execute(server.url(), "CREATE DATABASE widened TEMPLATE template0")
            stack.callback(execute, server.url(), "DROP DATABASE widened WITH (FORCE)")
            columns = ", ".join(f"{name} {kinds[side]}" for name, kinds in WIDENED.items())
            values = ", ".join(kinds[2] for kinds in WIDENED.values())
            execute(
                server.url("widened"),
                "CREATE TYPE mood AS ENUM ('calm', 'cross')",
                f"CREATE TABLE t (id {('integer', 'bigint')[side]} PRIMARY KEY, {columns})",
                f"INSERT INTO t VALUES (-1, {values}), (2, {values})",
            )
            urls.append(server.url("widened"))
        yield stack.enter_context(benched(*urls))


@pytest.mark.parametrize("mode", MODES)
def test_wider_types_hold_the_same_values(widened: Bench, mode: Mode) -> None:
    with widened.open():
        content = widened.compare(widened.look("t", mode))
    assert content.differences == ()
    for name, (*_, changed) in WIDENED.items():
        with widened.planted(f"UPDATE t SET {name} = {changed} WHERE id = -1"):
            (row,) = widened.compare(widened.look("t", mode)).differences
        assert (row.row, row.kind, row.columns) == ("-1", "differs", (name,))


# -- buckets, samples, streams --------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "buckets"), [(0, 1024), (2_000_000, 1024), (5_000_000, 4096), (1e10, 16_384)])
def test_buckets_grow_with_the_table(bench: Bench, rows: float, buckets: int) -> None:
    look = bench.look("odd")
    assert replace(look, what=replace(look.what, rows=rows)).buckets == buckets


@pytest.mark.parametrize("mode", MODES)
def test_sums_of_all_buckets_hold_every_row_once(bench: Bench, mode: Mode) -> None:
    look = bench.look("pairs", mode)
    with bench.open():
        ours, theirs = (digest.sums(bench.both.sessions[role], look, role) for role in ROLES)
        assert ours == theirs
        assert digest.total(ours) == 4000
        assert set(ours) <= set(range(1024))
        assert len(ours) > 900
        some = sorted(ours)[:10]
        rows = list(digest.rows(bench.both.sessions["source"], look, "source", some))
        assert len(rows) == sum(ours[bucket][0] for bucket in some)
        assert [row.place for row in rows] == sorted(row.place for row in rows)
        assert {row.place & 1023 for row in rows} == set(some)


def test_buckets_that_one_side_lacks_differ() -> None:
    assert digest.differing({1: (1, 2, 3), 2: (1, 5, 6), 3: (1, 1, 1)}, {1: (1, 2, 3), 2: (1, 5, 7), 9: (1, 1, 1)}) == (
        2, 3, 9,
    )  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_a_sample_is_of_the_same_rows_on_both_sides(bench: Bench, mode: Mode) -> None:
    look = bench.look("pairs", mode, share=0.1)
    with bench.planted("INSERT INTO pairs SELECT n, 'new', n FROM generate_series(4001, 6000) n"):
        keys: list[set[tuple[str, ...]]] = [
            {
                row.key
                for row in digest.rows(bench.both.sessions[role], look, role, range(look.buckets))
            }
            for role in ROLES
        ]  # fmt: skip
    assert 300 < len(keys[0]) < 500
    assert keys[0] == {key for key in keys[1] if int(key[0]) <= 4000}
    with bench.planted("UPDATE pairs SET v = 'x'"):
        content = bench.compare(look)
    assert (content.differing, content.rows_source, content.sampled) == (len(keys[0]), len(keys[0]), 0.1)


@pytest.mark.parametrize("mode", MODES)
def test_column_hashes_tell_the_columns_in_their_order(bench: Bench, mode: Mode) -> None:
    look = bench.look("odd", mode)
    with bench.planted("UPDATE odd SET float = 5, text = 'x' WHERE id = 30"):
        places = [row.place for row in digest.rows(bench.both.sessions["source"], look, "source", range(1024))]
        ours, theirs = (digest.columns(bench.both.sessions[role], look, role, places) for role in ROLES)
    assert len(ours) == 40
    assert ours.keys() == theirs.keys()
    names = [column.name for column in look.what.columns]
    changed = {
        key: [
            name for name, one, other in zip(names, ours[place, key], theirs[place, key], strict=True) if one != other
        ]
        for place, key in ours
    }
    assert {key: columns for key, columns in changed.items() if columns} == {("30",): ["float", "text"]}


STREAMS = st.lists(
    st.builds(
        digest.Row,
        place=st.integers(0, 5),
        hash=st.tuples(st.integers(0, 2), st.just(0)),
        key=st.one_of(st.just(()), st.tuples(st.sampled_from("ab"))),
    ),
    max_size=12,
)


@hypothesis.given(ours=STREAMS, theirs=STREAMS)
def test_streams_differ_by_what_one_has_more(ours: Sequence[digest.Row], theirs: Sequence[digest.Row]) -> None:
    def streamed(rows: Sequence[digest.Row]) -> Iterator[digest.Row]:
        return iter(sorted(rows, key=lambda row: row.place))

    pairs = list(digest.compare(streamed(ours), streamed(theirs)))
    assert sum(pair.ours for pair in pairs) == (Counter(ours) - Counter(theirs)).total()
    assert sum(pair.theirs for pair in pairs) == (Counter(theirs) - Counter(ours)).total()
    assert len({(pair.place, pair.key) for pair in pairs}) == len(pairs)
    assert all(pair.ours or pair.theirs for pair in pairs)
    assert all(pair.differ == (min(pair.ours, pair.theirs) if pair.key else 0) for pair in pairs)


def test_texts_take_null_for_the_empty_text() -> None:
    assert digest.texts(["a", None, ""]) == ("a", "", "")
    assert digest.texts(None) == ()
