"""Tables are compared by name, by the columns of both, and told by a key that both have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

import pytest

from mishika_migrate import matrix, model
from mishika_migrate.plan import history
from mishika_migrate.proof import comparing
from tests import values

PACKAGED = matrix.load()
assert PACKAGED.keys is not None
RING: model.Keyring = PACKAGED.keys
TOKENS = RING.table


def primary(*columns: str) -> model.Index:
    return model.Index(name="pkey", definition="", columns=columns, unique=True, primary=True)


def table(name: str, *columns: model.Column | str, key: Iterable[str] = (), **more: object) -> model.Table:
    made = tuple(each if isinstance(each, model.Column) else values.column(each) for each in columns)
    indexes = (primary(*key),) if key else ()
    return values.table(name, columns=made, indexes=indexes, **more)


def pair(ours: Iterable[model.Table], theirs: Iterable[model.Table]) -> tuple[model.Catalog, model.Catalog]:
    return values.catalog("source", ours), values.catalog("target", theirs)


def one(ours: model.Table, theirs: model.Table, rules: matrix.Matrix = PACKAGED) -> model.Comparison:
    (found,) = comparing.of_selection(rules, *pair([ours], [theirs]), [ours.name])
    return found


# -- tables ---------------------------------------------------------------------------------------


def test_columns_are_matched_by_name_in_the_source_s_order() -> None:
    what = one(
        table("t", "b", "a", values.column("n", "integer"), "gone"),
        table("t", values.column("n", "bigint"), "a", "new", "b"),
    )
    assert what.columns == (
        model.Compared(name="b", type="text"),
        model.Compared(name="a", type="text"),
        model.Compared(name="n", type="bigint", cast=True),
    )
    assert (what.only_source, what.only_target) == (("gone",), ("new",))


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (("a",), ("a",), ("a",)),
        (("a",), (), ("a",)),
        ((), ("a",), ("a",)),
        (("a",), ("a", "b"), ("a", "b")),
        (("a", "b"), ("b",), ("b",)),
        (("gone",), (), ()),
        (("a",), ("new",), ("a",)),
        (("gone",), ("new",), ()),
        ((), (), ()),
    ],
)
def test_rows_are_told_by_a_key_of_columns_that_both_have(
    ours: tuple[str, ...], theirs: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    what = one(table("t", "a", "b", "gone", key=ours), table("t", "a", "b", "new", key=theirs))
    assert what.key == expected


def test_the_largest_table_comes_first_and_the_larger_side_counts() -> None:
    source, target = pair(
        [table("a", "x", bytes=5, rows=1.0), table("b", "x", bytes=9), table("c", "x", bytes=7)],
        [table("a", "x", bytes=20, rows=3.0), table("b", "x", bytes=0), table("d", "x", bytes=7)],
    )
    found = comparing.of_selection(PACKAGED, source, target, ["b", "c", "d", "a"])
    assert [(what.table, what.bytes, what.rows) for what in found] == [("a", 20, 3.0), ("b", 9, 10.0)]


def test_sides_may_have_other_schemas_and_partitions() -> None:
    source, target = pair([table("t", "a")], [table("t", "a", partitioned=True)])
    target = replace(target, endpoint=replace(target.endpoint, schema="other"))
    (what,) = comparing.of_selection(PACKAGED, source, target, ["t"])
    assert [str(what.on(role)) for role in ("source", "target")] == ["public.t", "other.t"]
    assert what.partitioned == (False, True)


def test_a_part_of_history_is_what_was_asked_for_or_what_a_run_has_copied() -> None:
    logs = "MishikaLLM_SpendLogs"
    source, target = pair(*[[table(logs, "request_id", "startTime"), table("other", "a")]] * 2)
    span = history.Span(since=datetime(2026, 1, 1), before=None)
    asked = comparing.of_selection(PACKAGED, source, target, [logs, "other"], span=span)
    assert {what.table: what.within and what.within.column for what in asked} == {logs: "startTime", "other": None}
    copied = model.Interval(column="startTime", since=None, before="2026-02-01 00:00:00.000")
    (what,) = comparing.of_selection(PACKAGED, source, target, [logs], within={logs: copied})
    assert what.within == copied


def test_columns_with_tokens_are_known() -> None:
    def secret(name: str, column: str, rules: matrix.Matrix = PACKAGED) -> tuple[str, ...]:
        return one(table(name, column), table(name, column), rules).secret

    assert secret(TOKENS, "token") == ("token",)
    assert "api_key" in secret("MishikaLLM_SpendLogs", "api_key")
    assert secret("MishikaLLM_TeamTable", "team_id") == secret("t", "token") == ()
    assert secret(TOKENS, "token", values.rules(values.entry(TOKENS))) == ()


def test_tables_of_one_side_are_problems() -> None:
    source, target = pair([table("a", "x"), table("b", "x")], [table("a", "x"), table("c", "x")])
    target = replace(target, views=(model.View(name="b", definition="", reads=()),))
    check = comparing.absent(source, target, ["a", "b", "c", "d"])
    assert (check.code, check.state, check.looked) == ("tables", "different", 4)
    assert check.problems == (
        "b is a view there on the target me@target/db",
        "c is not there on the source me@source/db",
        "d is not there on the source me@source/db",
        "d is not there on the target me@target/db",
    )
    assert comparing.absent(source, target, ["a"]).state == "ok"


# -- keys -----------------------------------------------------------------------------------------


def proxy(without: Iterable[str] = ()) -> list[model.Table]:
    """All tables of the keyring with all columns that it names, but `table` or `table.column`."""
    names: dict[str, dict[str, None]] = {name: {} for name in RING.tables}
    for end in RING.ends:
        alias, _, column = end.partition(".")
        names[RING.table_of(alias)][column] = None
    left = set(without)
    return [
        table(name, *(values.column(each, _kind(each)) for each in columns if f"{name}.{each}" not in left), "more")
        for name, columns in names.items()
        if name not in left
    ]


def _kind(column: str) -> str:
    return "jsonb" if column in ("metadata", "config", "aliases", "permissions", "model_max_budget") else "text"


def test_the_keyring_is_whole_where_both_sides_are() -> None:
    assert comparing.narrowed(RING, *pair(proxy(), proxy())) == RING
    assert comparing.undecided(RING, *pair(proxy(), proxy())) is None


def test_a_table_that_the_target_lacks_leaves_keys_undecided() -> None:
    both = pair(proxy(), proxy(["MishikaLLM_TeamTable"]))
    assert comparing.narrowed(RING, *both) is None
    check = comparing.undecided(RING, *both)
    assert check is not None
    assert (check.code, check.state) == ("keys", "unchecked")
    assert check.why_not == "the target has no MishikaLLM_TeamTable, by which the source decides about keys"


@pytest.mark.parametrize("side", [0, 1])
def test_without_the_table_of_keys_there_is_no_verdict(side: int) -> None:
    lacking = [proxy(), proxy()]
    for gone in (TOKENS, f"{TOKENS}.{RING.key}"):
        lacking[side] = proxy([gone])
        assert comparing.narrowed(RING, *pair(*lacking)) is None


def test_what_the_source_never_had_is_not_missed() -> None:
    both = pair(proxy(["MishikaLLM_OrganizationTable", f"{TOKENS}.blocked"]), proxy())
    ring = comparing.narrowed(RING, *both)
    assert ring is not None
    assert not {"organization", "organization_budget"} & {join.name for join in ring.joins}
    assert "key.blocked" not in ring.columns
    assert "team.blocked" in ring.columns
    assert comparing.undecided(RING, *both) is None


def test_columns_that_the_target_lacks_are_left_out_and_told() -> None:
    both = pair(proxy(), proxy([f"{TOKENS}.team_id", "MishikaLLM_UserTable.models"]))
    ring = comparing.narrowed(RING, *both)
    assert ring is not None
    assert not {"team", "membership", "aliases", "member_budget"} & {join.name for join in ring.joins}
    assert not [column for column in ring.columns if column.startswith("team.")]
    check = comparing.undecided(RING, *both)
    assert check is not None
    assert f"{TOKENS}.team_id" in check.why_not
    assert "MishikaLLM_UserTable.models" in check.why_not


def test_the_relation_of_keys_has_a_column_for_all_that_decides() -> None:
    both = pair(proxy(), proxy())
    shapes = comparing.shapes(PACKAGED, RING, *both)
    what = comparing.of_keys(RING, *both, shapes)
    names = [column.name for column in what.columns]
    assert len(set(names)) == len(names)
    assert {f"{join.name}." for join in RING.joins} <= set(names)
    assert {"key!", "team!", "user!", "budget!", "aliases!"} <= set(names)
    assert set(RING.columns) <= set(names)
    assert what.key == ("key.token",)
    types = {column.name: (column.type, column.cast) for column in what.columns}
    assert types["team."] == types["key!"] == ("boolean", False)
    assert (types["key.metadata"], types["key.blocked"], types["key.token"]) == (
        ("jsonb", False),
        ("text", False),
        ("text", True),
    )


def test_shapes_are_of_columns_that_both_sides_have_and_as_json() -> None:
    ours = proxy()
    theirs = proxy([f"{TOKENS}.metadata"])
    shape = comparing.shapes(PACKAGED, RING, *pair(ours, theirs))[TOKENS]
    assert set(shape.objects) == {"aliases", "config", "permissions", "model_max_budget"}
    assert shape.present == ("models",)
    assert comparing.shapes(values.rules(), RING, *pair(ours, theirs)) == {}
