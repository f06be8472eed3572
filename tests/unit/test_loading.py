"""In which ranges history is loaded, and without which indexes."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mishika_migrate import model
from mishika_migrate.plan import loading
from tests.values import ALL, catalog, key, table

T = model.TableName(schema="public", name="t")
STEP = model.CopyTable(
    source=T, target=T, columns=("id",), binary=True, partitioned=False, rows=1000.0, bytes=10_000_000
)


def piece(name: str = "t", **more: object) -> model.Piece:
    fields = {"pages": 1000, "bytes": 10_000_000, "rows": 1000.0, **more}
    return model.Piece(name=model.TableName(schema="public", name=name), **fields)  # type: ignore[arg-type]


PIECES = st.builds(
    piece,
    name=st.just("t"),
    pages=st.integers(0, 10**7),
    bytes=st.integers(0, 10**13),
    rows=st.floats(0, 10**10),
)
LEAVES = st.lists(PIECES, min_size=1, max_size=4).map(
    lambda found: tuple(
        piece(f"leaf{n}", pages=each.pages, bytes=each.bytes, rows=each.rows) for n, each in enumerate(found)
    )
)
# No smaller than a thousandth of the largest piece: a plan of a million steps takes its time.
BATCHES = st.integers(10**10, 10**13)


def cut(
    *pieces: model.Piece, step: model.CopyTable = STEP, place: model.Table | None = None, version: int = 16_00_00,
    batch: int = 1_000_000, partitioned: bool = False,
) -> tuple[model.CopyTable, ...]:  # fmt: skip
    origin = table("t", pieces=pieces, partitioned=partitioned)
    return loading.cut(step, origin, place or table("t"), version=version, batch=batch)


def assert_adjacent(parts: list[model.CopyTable]) -> None:
    """They start at the first page, leave none out, and the last one has no end."""
    ranges = [part.pages for part in parts if part.pages is not None]
    if ranges:
        assert [each.low for each in ranges] == [0, *(each.high for each in ranges[:-1])]
        assert ranges[-1].high is None
        assert all(each.high is None or each.high > each.low for each in ranges)
    assert len(ranges) == len(parts) or (len(parts), ranges) == (1, [])


@given(piece=PIECES, batch=BATCHES)
def test_ranges_are_the_whole_table_each_page_once(piece: model.Piece, batch: int) -> None:
    parts = cut(piece, batch=batch)
    assert_adjacent(list(parts))
    assert len({part.id for part in parts}) == len(parts)
    assert len(parts) <= max(1, piece.pages)
    assert sum(part.rows for part in parts) == pytest.approx(STEP.rows)
    assert STEP.bytes - len(parts) < sum(part.bytes for part in parts) <= STEP.bytes


@given(leaves=LEAVES, batch=BATCHES)
def test_leaves_are_read_one_by_one_and_written_to_the_root(leaves: tuple[model.Piece, ...], batch: int) -> None:
    parts = cut(*leaves, batch=batch, partitioned=True)
    assert len({part.id for part in parts}) == len(parts)
    assert {(part.root, part.target, part.partitioned) for part in parts} == {(T, T, False)}
    for leaf in leaves:
        mine = [part for part in parts if part.source == leaf.name]
        assert_adjacent(mine)
        assert sum(part.rows for part in mine) == pytest.approx(leaf.rows)
        assert leaf.bytes - len(mine) < sum(part.bytes for part in mine) <= leaf.bytes


@pytest.mark.parametrize(
    ("pages", "size", "parts"),
    [
        (1000, 10_000_000, 10),
        (1000, 9_000_001, 10),
        (1000, 1_000_000, 1),
        (1000, 0, 1),
        (3, 10_000_000, 3),  # long values lie elsewhere: no range is smaller than a page
        (0, 10_000_000, 1),
    ],
)
def test_number_of_ranges_follows_from_bytes(pages: int, size: int, parts: int) -> None:
    assert len(cut(piece(pages=pages, bytes=size))) == parts


def test_ids_tell_table_leaf_and_pages() -> None:
    assert [part.id for part in cut(piece(bytes=2_000_000))] == ["public.t[0,500)", "public.t[500,)"]
    leaves = cut(piece("a", bytes=2_000_000), piece("b", bytes=1), partitioned=True)
    assert [part.id for part in leaves] == [
        "public.t(public.a)[0,500)",
        "public.t(public.a)[500,)",
        "public.t(public.b)",
    ]


def test_table_that_references_itself_stays_whole() -> None:
    assert cut(piece(), place=table("t", key("t"))) == (STEP,)
    assert len(cut(piece(), place=table("t", key("other")))) == 10


@pytest.mark.parametrize(("version", "parts"), [(12_00_22, 1), (13_00_20, 1), (14_00_00, 10), (18_00_06, 10)])
def test_server_without_range_scans_reads_a_table_whole(version: int, parts: int) -> None:
    assert len(cut(piece(), version=version)) == parts


def test_old_server_reads_leaf_by_leaf() -> None:
    parts = cut(piece("a"), piece("b"), version=13_00_00, partitioned=True)
    assert [(part.source.name, part.pages) for part in parts] == [("a", None), ("b", None)]


def test_leaf_that_may_be_read_through_its_root_only() -> None:
    assert cut(piece("a"), piece("b", readable=False), partitioned=True) == (STEP,)


def test_table_without_anything_to_cut() -> None:
    assert cut() == (STEP,)
    assert cut(partitioned=True) == (STEP,)


# -- indexes --------------------------------------------------------------------------------------

Defer = Literal["auto", "always", "never"]
MB = 1024 * 1024


def index(name: str, *, droppable: bool = True) -> model.Index:
    return model.Index(name=name, definition="", columns=("id",), unique=False, primary=False, droppable=droppable)


INDEXES = (index("a"), index("referenced", droppable=False), index("b"))


def deferred(
    defer: Defer, *, size: int = 33 * MB, existing: model.Existing = "refuse", creates: bool = True, **place: object
) -> tuple[list[tuple[str, tuple[str, ...]]], list[str]]:
    fields = {"indexes": INDEXES, "occupied": False, **place}
    source = catalog("source", [table("t", bytes=size)])
    target = replace(catalog("target", []), tables=(table("t", **fields),))
    target = replace(target, may_create_in_schema=creates)
    steps, findings = loading.deferrals(
        ["t", "absent"], source, target, loading.Manner(defer=defer), {"t": existing}, {"t": size}
    )
    return [(step.id, step.names) for step in steps], [f"{finding.severity} {finding.code}" for finding in findings]


GONE: tuple[list[object], list[object]] = ([("drop indexes public.t", ("a", "b"))], [])
STAYS: tuple[list[object], list[str]] = ([], [])


@pytest.mark.parametrize(
    ("defer", "size", "occupied", "expected"),
    [
        ("auto", 33 * MB, False, GONE),
        ("auto", 32 * MB, False, STAYS),
        ("auto", 33 * MB, True, STAYS),
        ("auto", 33 * MB, None, STAYS),
        ("always", 0, False, GONE),
        ("always", 0, True, GONE),
        ("never", 33 * MB, False, STAYS),
    ],
)
def test_indexes_go_when_it_is_worth_it_or_wanted(
    defer: Defer, size: int, occupied: bool | None, expected: object
) -> None:
    assert deferred(defer, size=size, occupied=occupied) == expected


@pytest.mark.parametrize(
    ("existing", "occupied", "expected"),
    [("replace", True, GONE), ("skip", False, STAYS), ("update", False, STAYS), ("update", True, STAYS)],
)
@pytest.mark.parametrize("defer", ["auto", "always"])
def test_indexes_go_of_a_replaced_table_and_stay_where_rows_are_merged(
    defer: Defer, existing: model.Existing, occupied: bool, expected: object
) -> None:
    assert deferred(defer, existing=existing, occupied=occupied) == expected


@pytest.mark.parametrize("defer", ["auto", "always"])
def test_indexes_of_a_partitioned_target_stay(defer: Defer) -> None:
    assert deferred(defer, partitioned=True) == STAYS


def test_index_that_something_refers_to_stays() -> None:
    assert deferred("always", indexes=(index("referenced", droppable=False),)) == STAYS
    assert deferred("always", indexes=()) == STAYS


def test_who_does_not_own_the_table_keeps_its_indexes_and_is_told() -> None:
    assert deferred("auto", privileges=ALL - {"OWNER"}) == ([], ["warn indexes-kept"])
    assert deferred("never", privileges=ALL - {"OWNER"}) == STAYS


def test_who_could_not_build_indexes_again_keeps_them_and_is_told() -> None:
    assert deferred("auto", creates=False) == ([], ["warn indexes-kept"])


def test_warning_says_how_to_become_the_owner() -> None:
    source = catalog("source", [table("t")])
    target = catalog("target", [table("t", indexes=INDEXES, privileges=ALL - {"OWNER"})])
    _, (finding,) = loading.deferrals(["t"], source, target, loading.Manner(defer="always"), {"t": "refuse"}, {})
    assert finding.fix == 'ALTER TABLE "public"."t" OWNER TO "me";'
    assert "me does not own t on the target me@target/db" in finding.message


def test_everything_is_built_before_anything_is_restored() -> None:
    drops = tuple(
        model.DropIndexes(target=model.TableName(schema="public", name=name), names=("a", "b")) for name in "tu"
    )
    build, restore = loading.rebuilding(drops)
    assert [step.id for step in build.steps] == [
        "index public.t a", "index public.t b", "index public.u a", "index public.u b",
    ]  # fmt: skip
    assert [step.id for step in restore.steps] == ["restore indexes public.t", "restore indexes public.u"]
    assert (build.name, restore.name, build.atomic, restore.atomic) == ("indexes", "indexes", False, False)
