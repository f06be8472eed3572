"""What a plan makes of rows that the target has already, from plain values."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mishika_migrate import model, plan
from mishika_migrate.plan import loading, selection
from mishika_migrate.preflight import collisions
from tests.values import ALL, build, catalog, column, entry, key, rules, table

MERGES: tuple[model.Existing, ...] = ("skip", "update")


def index(name: str, *columns: str, primary: bool = False, definition: str = "") -> model.Index:
    return model.Index(name=name, definition=definition, columns=columns, unique=True, primary=primary)


PRIMARY = index("pk", "id", primary=True)


def made(
    *tables: model.Table,
    existing: tuple[tuple[str, model.Existing], ...],
    empty: tuple[str, ...] = (),
    stage: model.StageName = "core",
    left: tuple[str, ...] = (),
    **more: object,
) -> model.Plan:
    """The plan for tables of both sides; those of the target have rows but for the `empty` ones."""
    keyed = [replace(each, indexes=(*each.indexes, PRIMARY)) for each in tables]
    target = catalog("target", [], **more)
    there = tuple(replace(each, occupied=each.name not in empty) for each in keyed)
    return build(
        rules(*(entry(each.name, stage=stage) for each in keyed)),
        catalog("source", keyed),
        replace(target, tables=there),
        existing=existing,
        exclude=left,
    )


def ways(what: model.Plan) -> dict[str, str]:
    return {step.target.name: step.existing for step in what.steps if isinstance(step, model.CopyTable)}


def codes(what: model.Plan) -> set[str]:
    return {finding.code for finding in what.refused}


def emptied(what: model.Plan) -> tuple[list[str], list[str]]:
    steps = [step for step in what.steps if isinstance(step, model.Empty)]
    assert len(steps) <= 1
    names = ([table.name for table in tables] for step in steps for tables in (step.tables, step.idle))
    tables, idle = list(names) or ([], [])
    return tables, idle


# -- which way ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", MERGES)
def test_what_a_merged_table_references_is_merged_too(way: model.Existing) -> None:
    child, parent, grandparent, other = table("c", key("b")), table("b", key("a")), table("a"), table("d")
    what = made(child, parent, grandparent, other, existing=(("c", way),), empty=("a", "b", "d"))
    assert ways(what) == {"a": "update", "b": "update", "c": way, "d": "refuse"}
    assert not what.refused


def test_merged_tables_know_the_key_and_others_need_none() -> None:
    what = made(table("a"), table("b"), existing=(("a", "skip"),), empty=("b",))
    keys = {step.target.name: step.key for step in what.steps if isinstance(step, model.CopyTable)}
    assert keys == {"a": ("id",), "b": ()}
    assert {name.name: way for name, way in what.merged.items()} == {"a": "skip"}


def test_plan_comes_back_from_text_and_its_digest_knows_the_way() -> None:
    plans = [made(table("a"), table("b"), existing=(("", way),)) for way in ("replace", *MERGES)]
    assert [plan.loads(plan.dumps(each)) for each in plans] == plans
    assert len({each.digest for each in plans}) == len(plans)


def test_plan_of_an_older_version_refuses_rows_that_are_there() -> None:
    text = plan.dumps(made(table("a"), existing=(), empty=("a",)))
    for field in (', "existing": "refuse"', ', "key": []'):
        assert field in text
        text = text.replace(field, "")
    loaded = plan.loads(text)
    assert ways(loaded) == {"a": "refuse"}
    assert loaded.chosen[0].existing == "refuse"


def test_merge_by_another_key_than_that_of_the_plan_is_not_resumed() -> None:
    what = made(table("a"), existing=(("a", "skip"),))
    now = [table("a", indexes=(index("pk", "other", primary=True),))]
    (finding,) = plan.outdated(what, catalog("source", now), catalog("target", now))
    assert "its primary key on the target is another one now" in finding.message


# -- replacing ------------------------------------------------------------------------------------


def test_all_that_is_replaced_goes_first_and_at_once() -> None:
    tables = (table("a"), table("b", key("a")), table("c"))
    what = made(*tables, existing=(("", "replace"),), stage="bulk")
    assert emptied(what) == (["a", "b", "c"], [])
    stage = what.stages[0]
    assert (stage.name, stage.atomic, len(stage.steps)) == ("core", True, 1)
    assert {finding.code for finding in what.findings} == {"rows-replaced"}


def test_nothing_is_emptied_where_nothing_is() -> None:
    assert emptied(made(table("a"), existing=(("a", "replace"),), empty=("a",))) == ([], [])
    assert emptied(made(table("a"), existing=(("a", "update"),))) == ([], [])


@pytest.mark.parametrize(
    ("empty", "left", "tables", "idle", "refused"),
    [
        ((), (), ["a"], [], {"replace-referenced", "target-has-rows"}),
        ((), ("b",), ["a"], [], {"replace-referenced"}),
        (("b",), (), ["a"], ["b"], set()),
        (("b",), ("b",), ["a"], ["b"], set()),
        (("b", "c"), (), ["a"], ["b", "c"], set()),
    ],
)
def test_referencing_tables_are_in_the_way_unless_they_are_empty(
    empty: tuple[str, ...], left: tuple[str, ...], tables: list[str], idle: list[str], refused: set[str]
) -> None:
    family = [table("a"), table("b", key("a"))]
    family += [table("c", key("b"))] if "c" in empty else []
    what = made(*family, existing=(("a", "replace"),), empty=empty, left=left)
    assert emptied(what) == (tables, idle)
    assert codes(what) == refused


def test_child_of_an_empty_child_is_in_the_way_too() -> None:
    family = (table("a"), table("b", key("a")), table("c", key("b")))
    what = made(*family, existing=(("a", "replace"),), empty=("b",), left=("c",))
    (finding,) = what.refused
    assert (finding.code, finding.subject) == ("replace-referenced", "c")
    assert finding.fix.startswith("replace it too: --include c --on-existing c=replace")


def test_truncate_needs_its_privilege_on_every_table_that_it_names() -> None:
    poor = ALL - {"TRUNCATE"}
    family = (table("a", privileges=poor), table("b", key("a"), privileges=poor))
    what = made(*family, existing=(("a", "replace"),), empty=("b",))
    assert {finding.fix for finding in what.refused} == {
        f'GRANT TRUNCATE ON "public"."{name}" TO "me"; -- on the target' for name in "ab"
    }


# -- merging --------------------------------------------------------------------------------------


def test_privileges_of_merging() -> None:
    poor = ALL - {"UPDATE", "DELETE", "TRUNCATE"}
    assert codes(made(table("a", privileges=poor), existing=(("a", "skip"),))) == set()
    (finding,) = made(table("a", privileges=poor), existing=(("a", "update"),)).refused
    assert finding.message == "me lacks UPDATE on a of the target"
    (finding,) = made(table("a"), existing=(("a", "skip"),), may_use_temporary=False).refused
    assert finding.fix == 'GRANT TEMPORARY ON DATABASE "db" TO "me"; -- on the target'


def test_key_that_the_source_lacks_cannot_be_merged_by() -> None:
    ours = catalog("source", [table("a")])
    theirs = catalog(
        "target", [table("a", columns=(column(), column("new")), indexes=(index("pk", "new", primary=True),))]
    )
    what = build(rules(entry("a")), ours, theirs, existing=(("a", "skip"),))
    assert "no-key" in codes(what)


def test_unique_indexes_that_rows_of_two_keys_could_both_want() -> None:
    indexes = (
        PRIMARY,
        index("plain", "a", "b"),
        index("over the key", "a", "id"),
        index("partial", "a", definition="CREATE UNIQUE INDEX … WHERE (a IS NOT NULL)"),
        index("expression", "lower(a)"),
        index("new", "c"),
        index("nulls", "b", definition="CREATE UNIQUE INDEX … NULLS NOT DISTINCT"),
    )
    columns = tuple(column(name) for name in ("id", "a", "b"))
    origin = table("t", columns=columns)
    place = table("t", columns=(*columns, column("c", nullable=True)), indexes=indexes)
    assert [(each.index, each.nulls) for each in collisions.uniques(origin, place)] == [
        ("plain", False),
        ("nulls", True),
    ]
    excluding = model.Constraint(
        name="apart", definition="EXCLUDE USING gist (a WITH &&)", on=model.TableName(schema="public", name="t")
    )
    target = catalog("target", [])
    target = replace(target, tables=(replace(place, constraints=(excluding,)),))
    what = build(rules(entry("t")), catalog("source", [origin]), target, existing=(("t", "skip"),))
    (finding,) = [each for each in what.findings if each.code == "collisions-unlooked"]
    assert "partial, expression, new and 1 more" in finding.message


def test_collisions_are_named_with_what_collides() -> None:
    found = model.Collision(table="a", index="u", columns=("x", "y"), rows=3, examples=("1, 2", "3, 4"))
    survey = model.Survey(collisions=(found,))
    one = table("a", indexes=(PRIMARY,))
    what = build(rules(entry("a")), catalog("source", [one]), catalog("target", [one]), survey=survey)
    (finding,) = what.refused
    assert (finding.code, finding.subject) == ("unique-collision", "a.x, y")
    assert finding.message.endswith("other rows have the same x, y (u): 1, 2; 3, 4 and others")


# -- the newest first -----------------------------------------------------------------------------


def test_newest_first_begins_with_the_end_of_each_table() -> None:

    pieces = (model.Piece(name=model.TableName(schema="public", name="t"), pages=100, bytes=10**8, rows=1000),)
    big = table("t", pieces=pieces, bytes=10**8)
    ours, theirs = catalog("source", [big]), catalog("target", [big])
    given, wanted = rules(entry("t", stage="bulk")), selection.Wanted()
    plans = [
        plan.build(
            given,
            ours,
            theirs,
            selection.select(given, ours, wanted, target=theirs),
            model.Survey(),
            wanted,
            manner=loading.Manner(batch=3 * 10**7, newest=newest),
        )
        for newest in (False, True)
    ]
    ids = [[step.id for step in each.steps if isinstance(step, model.CopyTable)] for each in plans]
    assert ids[1] == list(reversed(ids[0]))
    assert ids[1][0] == "public.t[75,)"
    assert plans[0].digest == plans[1].digest
