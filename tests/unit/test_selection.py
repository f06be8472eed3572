"""Which tables go, which stay, and why."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mishika_migrate import errors, matrix, model
from mishika_migrate.plan import selection
from tests.values import catalog, column, entry, key, rules, table

RULES = rules(
    entry("App_must"),
    entry("App_used", "if-used"),
    entry("App_friend", "if-used", goes_with="App_used"),
    entry("App_logs", "if-wanted", group="logs", stage="bulk"),
    entry("App_more_logs", "if-wanted", group="logs", stage="bulk"),
    entry("App_lease", "never"),
    groups=["logs"],
    migrations="history",
)
NAMES = [each.table for each in RULES.entries]


def select(*tables: model.Table, **asked: object) -> dict[str, str]:
    """Reason by chosen table."""
    found = selection.select(RULES, catalog("source", tables), selection.Wanted(**asked))  # type: ignore[arg-type]
    return {chosen.table: chosen.reason for chosen in found.chosen}


def stays(*tables: model.Table, **asked: object) -> dict[str, str]:
    found = selection.select(RULES, catalog("source", tables), selection.Wanted(**asked))  # type: ignore[arg-type]
    return {left.table: left.reason for left in found.left}


def test_needs_decide() -> None:
    tables = [*map(table, NAMES), table("history"), table("stranger")]
    assert select(*tables) == {
        "App_must": "why App_must",
        "App_used": "in use: why App_used",
        "App_friend": "in use: why App_friend",
    }
    assert stays(*tables) == {
        "App_logs": "not asked for (--include logs)",
        "App_more_logs": "not asked for (--include logs)",
        "App_lease": "never copied: why App_lease",
        "stranger": "not in the matrix",
    }


def test_tables_that_the_source_lacks_are_neither_chosen_nor_left() -> None:
    assert select() == stays() == {}


@pytest.mark.parametrize("asked", [{"groups": frozenset({"logs"})}, {"include": ("logs",)}])
def test_group_is_wanted_by_flag_or_by_name(asked: dict[str, object]) -> None:
    assert set(select(*map(table, NAMES), **asked)) == set(NAMES) - {"App_lease"}


def test_one_table_of_a_group_can_be_taken_or_left_out() -> None:
    assert "App_more_logs" not in select(*map(table, NAMES), include=("logs",), exclude=("more_logs",))
    assert "App_more_logs" not in select(*map(table, NAMES), include=("LOGS",))
    assert "App_logs" not in select(*map(table, NAMES), include=("more_logs",))


def test_everything_takes_all_but_never_and_excluded_and_the_history() -> None:
    tables = [*map(table, NAMES), table("history"), table("stranger"), table("other")]
    chosen = select(*tables, everything=True, exclude=("other", "App_logs"))
    assert set(chosen) == {"App_must", "App_used", "App_friend", "App_more_logs", "stranger"}


def test_unreadable_table_counts_as_used_and_an_empty_one_does_not() -> None:
    assert "App_used" in select(table("App_used", occupied=None))
    assert stays(table("App_used", occupied=False)) == {"App_used": "empty on the source"}


def test_companion_goes_even_when_it_is_empty() -> None:
    used, friend = table("App_used"), table("App_friend", occupied=False)
    assert select(used, friend)["App_friend"] == "goes with App_used"
    assert "App_friend" not in select(used, friend, exclude=("App_friend",))


def test_history_goes_along_only_when_the_schema_is_created() -> None:
    assert "history" in select(table("App_must"), table("history"), create_schema=True)
    assert "history" not in select(table("App_must"), table("history"), everything=True)


def test_foreign_keys_bring_their_tables_along_however_far() -> None:
    tables = (table("App_must", key("near")), table("near", key("far"), key("near")), table("far"), table("free"))
    assert select(*tables) == {
        "App_must": "why App_must",
        "far": "referenced by near.far_id",
        "near": "referenced by App_must.near_id",
    }


def test_a_never_table_goes_when_a_foreign_key_needs_it() -> None:
    assert "App_lease" in select(table("App_must", key("App_lease")), table("App_lease"))


def test_foreign_key_into_another_schema_is_a_warning() -> None:
    source = catalog("source", [table("App_must", key("other.far"))])
    (finding,) = selection.select(RULES, source, selection.Wanted()).findings
    assert (finding.code, finding.severity) == ("reference-outside", "warn")
    assert "other.far" in finding.message


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"include": ("App_lose",)}, "there is no table or group 'App_lose'"),
        ({"exclude": ("nonsense",)}, "there is no table or group 'nonsense'"),
        ({"groups": frozenset({"nonsense"})}, "no group nonsense"),
        ({"include": ("App_lease",)}, "App_lease is never copied"),
        ({"include": ("history",)}, "never merged"),
    ],
)
def test_names_that_cannot_be_meant_are_configuration_errors(asked: dict[str, object], said: str) -> None:
    with pytest.raises(errors.ConfigurationError, match=said):
        select(*map(table, [*NAMES, "history"]), **asked)


def test_near_miss_is_suggested() -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        select(*map(table, NAMES), include=("App_lugs",))
    assert caught.value.hint == "Did you mean App_logs?"


@given(
    edges=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30),
    wanted=st.sets(st.integers(0, 9)),
    excluded=st.sets(st.integers(0, 9), max_size=3),
)
def test_selection_is_closed_under_foreign_keys_or_says_what_breaks_it(
    edges: list[tuple[int, int]], wanted: set[int], excluded: set[int]
) -> None:
    tables = [
        table(f"t{n}", *(key(f"t{b}", name=f"k{i}") for i, (a, b) in enumerate(edges) if a == n)) for n in range(10)
    ]
    asked = selection.Wanted(include=tuple(f"t{n}" for n in wanted), exclude=tuple(f"t{n}" for n in excluded))
    found = selection.select(rules(entry("none")), catalog("source", tables), asked)
    chosen = {each.table for each in found.chosen}
    refused = {finding.subject for finding in found.findings}
    assert {f"t{n}" for n in wanted - excluded} <= chosen
    assert chosen.isdisjoint(f"t{n}" for n in excluded)
    for child, parent in edges:
        if f"t{child}" in chosen:
            assert f"t{parent}" in chosen | refused
    assert {each.table for each in found.left} == {each.name for each in tables} - chosen


# -- only what is named ----------------------------------------------------------------------------


def only(*names: str, there: dict[str, bool | None] | None = None, **asked: object) -> model.Selection:
    """Of `App_must`, which references `near`, which references `far`; `there` says what the target has rows of."""
    tables = [table("App_must", key("near")), table("near", key("far"), key("near")), table("far"), table("App_logs")]
    target = catalog("target", tables)
    target = dataclasses.replace(
        target, tables=tuple(dataclasses.replace(t, occupied=(there or {}).get(t.name, False)) for t in target.tables)
    )
    wanted = selection.Wanted(only=names, **asked)  # type: ignore[arg-type]
    return selection.select(RULES, catalog("source", tables), wanted, target=target)


def chosen(found: model.Selection) -> list[str]:
    return [each.table for each in found.chosen]


def test_only_what_is_named_goes_with_what_it_references_and_the_target_lacks() -> None:
    assert chosen(only("logs")) == ["App_logs"]
    assert set(chosen(only("must"))) == {"App_must", "near", "far"}
    assert set(chosen(only("must", there={"far": True}))) == {"App_must", "near"}
    kept = only("must", there={"near": True})
    assert chosen(kept) == ["App_must"]
    assert [(each.code, each.severity) for each in kept.findings] == [("reference-kept", "note")]
    assert chosen(only("must", there={"near": None})) == ["App_must"]  # nobody can tell: it is left alone


def test_what_is_not_named_is_left_without_a_loss() -> None:
    left = {each.table: each for each in only("logs").left}
    assert set(left) == {"App_must", "near", "far"}
    assert {each.reason for each in left.values()} == {selection.OTHERS}
    assert all(each.loses.startswith("nothing") for each in left.values())


def test_named_table_that_is_referenced_and_excluded_is_refused_unless_the_target_has_it() -> None:
    assert [each.code for each in only("must", exclude=("near",)).findings] == ["excluded-but-referenced"]
    assert not [
        each for each in only("must", exclude=("near",), there={"near": True}).findings if each.severity != "note"
    ]


@pytest.mark.parametrize(
    ("name", "flag"),
    [("usage", "--include-usage"), ("spendlogs", "--include-spendlogs"), ("events", "--include events")],
)
def test_group_is_asked_for_in_a_way_that_exists(name: str, flag: str) -> None:
    assert selection.flag(matrix.Group(name=name, flag="--include-whatever", why="")) == flag


# -- questions ------------------------------------------------------------------------------------


def reference(column: str, other: str, **more: object) -> matrix.SoftReference:
    return matrix.SoftReference(column=column, table=other, key="id", **more)  # type: ignore[arg-type]


ASKED = rules(
    entry(
        "a", references=(reference("one", "b"), reference("many", "b", each=True)), objects=("json",), names=("one",)
    ),
    entry("b", "if-used"),
)
A = table(
    "a",
    columns=(column(), column("one"), column("many", "text[]"), column("json", "jsonb")),
    indexes=(
        model.Index(
            name="pk", definition="", columns=("id",), unique=True, primary=True, constraint="PRIMARY KEY (id)"
        ),
    ),
)


def ask(
    *tables: model.Table, **more: object
) -> tuple[tuple[model.Pointer, ...], tuple[model.Shape, ...], tuple[str, ...]]:
    source = catalog("source", tables, **more)
    return selection.questions(ASKED, source, selection.select(ASKED, source, selection.Wanted()))


def test_questions_are_asked_of_columns_that_are_there() -> None:
    pointers, shapes, unlooked = ask(A, table("b"))
    assert [(each.column, each.each, each.absent) for each in pointers] == [
        ("one", False, False),
        ("many", True, False),
    ]
    assert shapes == (model.Shape(table="a", objects=("json",), names=("one",), key=("id",)),)
    assert unlooked == ()
    plain = dataclasses.replace(A, columns=(column(), column("one", "text[]"), column("many"), column("json")))
    assert ask(plain, table("b")) == ((), (), ())


def test_questions_about_a_missing_table_are_about_every_value() -> None:
    assert [each.absent for each in ask(A)[0]] == [True, True]
    assert [each.absent for each in ask(A, table("b", occupied=False))[0]] == [False, False]


def test_nothing_is_asked_of_what_the_role_cannot_read() -> None:
    assert ask(dataclasses.replace(A, privileges=frozenset()), table("b")) == ((), (), ())
    assert ask(dataclasses.replace(A, hidden=True), table("b")) == ((), (), ())
    assert ask(A, table("b"), may_use_schema=False) == ((), (), ())
    assert ask(A, table("b", privileges=frozenset()))[0] == ()


def test_large_tables_are_not_asked_but_named() -> None:
    assert ask(dataclasses.replace(A, bytes=1 << 40), table("b")) == ((), (), ("a",))


# -- rows on the target ---------------------------------------------------------------------------


def test_table_counts_more_than_its_group_and_its_group_more_than_all() -> None:
    given = rules(
        entry("App_must"), *(entry(name, "if-wanted", group="g") for name in ("App_a", "App_b")), groups=["g"]
    )
    source = catalog("source", [table(each.table) for each in given.entries])
    ways: tuple[tuple[str, model.Existing], ...] = (("a", "replace"), ("g", "skip"), ("", "update"))
    for said in (ways, ways[::-1]):
        found = selection.select(given, source, selection.Wanted(groups=frozenset("g"), existing=said))
        assert {each.table: each.existing for each in found.chosen} == {
            "App_must": "update", "App_a": "replace", "App_b": "skip"
        }  # fmt: skip
    with pytest.raises(errors.ConfigurationError, match="there is no table or group 'c'"):
        selection.select(given, source, selection.Wanted(existing=(("c", "skip"),)))


def test_history_of_migrations_is_never_merged() -> None:
    given = rules(entry("a"), migrations="done")
    source = catalog("source", [table("a"), table("done")])
    found = selection.select(given, source, selection.Wanted(create_schema=True, existing=(("", "update"),)))
    assert {each.table: each.existing for each in found.chosen} == {"a": "update", "done": "refuse"}
