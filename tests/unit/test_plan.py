"""The plan: an order that foreign keys allow, a digest that lasts, and text that comes back the same."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mishika_migrate import errors, model, plan
from tests.values import build, catalog, column, entry, key, rules, table

NAMES = [f"t{n}" for n in range(8)]
Edge = tuple[int, int, bool]
EDGES = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.booleans()), max_size=24)
STAGES = st.lists(st.sampled_from(["core", "bulk"]), min_size=8, max_size=8)


def tables(edges: Sequence[Edge], *, sizes: Sequence[int] = ()) -> list[model.Table]:
    return [
        table(
            name,
            *(key(f"t{b}", deferrable=waits, name=f"k{i}") for i, (a, b, waits) in enumerate(edges) if a == n),
            bytes=sizes[n] if sizes else 8192,
        )
        for n, name in enumerate(NAMES)
    ]


def make(edges: Sequence[Edge], stages: Sequence[str] = (), *, sizes: Sequence[int] = (), **more: object) -> model.Plan:
    entries = [entry(name, stage=stage) for name, stage in itertools.zip_longest(NAMES, stages, fillvalue="core")]
    made = tables(edges, sizes=sizes)
    return build(rules(*entries), catalog("source", made), catalog("target", made, **more))


def copied(made: model.Plan) -> list[list[str]]:
    """The tables of each stage that copies any."""
    stages = [[step.target.name for step in stage.steps if isinstance(step, model.CopyTable)] for stage in made.stages]
    return [stage for stage in stages if stage]


def circle(edges: Sequence[Edge]) -> bool:
    """Whether constraints that cannot wait run in a circle; by removing tables without parents."""
    left = set(range(8))
    firm = [(a, b) for a, b, waits in edges if not waits and a != b]
    while free := {n for n in left if not any(a == n and b in left for a, b in firm)}:
        left -= free
    return bool(left)


# -- order ----------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(edges=EDGES, stages=STAGES)
def test_order_is_one_that_the_target_accepts_or_the_circle_is_refused(edges: list[Edge], stages: list[str]) -> None:
    made = make(edges, stages)
    order = copied(made)
    assert sorted(itertools.chain(*order)) == NAMES  # each once
    assert {finding.code for finding in made.refused} <= {"foreign-key-cycle"}
    assert bool(made.refused) == circle(edges)
    if made.refused:
        return
    place = {name: (n, m) for n, stage in enumerate(order) for m, name in enumerate(stage)}
    atomic = {name for stage in made.stages if stage.atomic for step in stage.steps for name in [step.id[7:]]}
    for a, b, waits in edges:
        child, parent = f"t{a}", f"t{b}"
        if a == b:
            continue
        if child in atomic and parent in atomic:
            assert waits or place[parent] < place[child]  # one transaction, checked at its end or as it goes
        else:
            assert place[parent][0] < place[child][0]  # a transaction of its own for each


@given(edges=EDGES, stages=STAGES)
def test_constraints_made_deferrable_by_the_fix_can_be_ordered(edges: list[Edge], stages: list[str]) -> None:
    before = make(edges, stages)
    names = [name for finding in before.refused for name in finding.fix.split('"') if name.startswith("k")]
    assert bool(names) == bool(before.refused)
    mended = [(a, b, waits or f"k{i}" in names) for i, (a, b, waits) in enumerate(edges)]
    assert not make(mended, stages).refused


def test_order_stays_as_near_to_the_matrix_as_it_can() -> None:
    assert copied(make([])) == [NAMES]
    assert copied(make([(0, 7, False)])) == [[*NAMES[1:], "t0"]]


def test_circle_is_named_with_its_tables_and_its_server() -> None:
    (finding,) = make([(1, 2, False), (2, 3, False), (3, 1, False)]).refused
    assert finding.subject == "t1, t2, t3"
    assert "me@target/db" in finding.message
    assert finding.fix.startswith('ALTER TABLE "public"."t')
    assert finding.fix.count("DEFERRABLE;") == 1


def test_source_alone_may_have_a_circle() -> None:
    given_rules = rules(entry("t0"), entry("t1"))
    ours = [table("t0", key("t1")), table("t1", key("t0"))]
    theirs = [dataclasses.replace(each, foreign_keys=()) for each in ours]
    assert not build(given_rules, catalog("source", ours), catalog("target", theirs)).refused


def test_parent_of_a_core_table_is_core_and_shown_so() -> None:
    made = make([(0, 1, False), (1, 2, False)], ["core", "bulk", "bulk", *["bulk"] * 5])
    assert copied(made)[0] == ["t2", "t1", "t0"]
    assert [(chosen.table, chosen.stage) for chosen in made.chosen[:3]] == [
        (name, "core") for name in ("t2", "t1", "t0")
    ]


def test_bulk_children_wait_for_their_parents_and_the_largest_goes_first() -> None:
    made = make([(0, 1, False)], ["bulk"] * 8, sizes=[1, 2, 3, 4, 5, 6, 7, 8])
    assert copied(made) == [["t7", "t6", "t5", "t4", "t3", "t2", "t1"], ["t0"]]
    assert not any(stage.atomic for stage in made.stages if stage.name == "bulk")


# -- steps ----------------------------------------------------------------------------------------


def step_for(ours: Sequence[model.Column], theirs: Sequence[model.Column]) -> model.CopyTable | None:
    source = catalog("source", [table("t", columns=tuple(ours))])
    target = catalog("target", [table("t", columns=tuple(theirs))])
    steps = build(rules(entry("t")), source, target).steps
    return next((step for step in steps if isinstance(step, model.CopyTable)), None)


def test_columns_are_matched_by_name_and_generated_ones_left_to_the_target() -> None:
    step = step_for(
        [column("a"), column("b"), column("gone"), column("made", generated=True)],
        [column("new", nullable=True), column("b"), column("made", generated=True), column("a")],
    )
    assert step is not None
    assert step.columns == ("a", "b")


@pytest.mark.parametrize(
    ("ours", "theirs", "binary"),
    [
        (column(), column(), True),
        (column(kind="integer"), column(kind="bigint"), False),
        (column(binary=False), column(), False),
        (column(), column(binary=False), False),
    ],
)
def test_binary_needs_the_same_types_with_binary_forms(ours: model.Column, theirs: model.Column, binary: bool) -> None:
    step = step_for([ours], [theirs])
    assert step is not None
    assert step.binary is binary


def test_table_without_a_common_column_has_no_step() -> None:
    assert step_for([], []) is None


def test_created_schema_holds_what_the_kept_tables_reference_and_nothing_else() -> None:
    source = catalog(
        "source",
        [table("known", key("far")), table("unwanted", key("far")), table("far"), table("stranger"), table("history")],
        views=(model.View(name="view", definition="", reads=("known",)),),
    )
    given_rules = rules(entry("known", "if-used"), entry("unwanted", "never"), migrations="history")
    made = build(given_rules, source, catalog("target", []), create_schema=True)
    create = made.steps[0]
    assert isinstance(create, model.CreateSchema)
    assert create.without == ("stranger", "view")
    assert not made.refused
    assert copied(made) == [["far", "known", "history"]]
    assert "view public.view" in {step.id for step in made.steps}


# -- digest ---------------------------------------------------------------------------------------


SIZES = st.lists(st.integers(0, 1 << 40), min_size=8, max_size=8)


@given(edges=EDGES, stages=STAGES, one=SIZES, other=SIZES)
def test_digest_does_not_move_with_estimates(
    edges: list[Edge], stages: list[str], one: list[int], other: list[int]
) -> None:
    assert make(edges, stages, sizes=one).digest == make(edges, stages, sizes=other).digest


def test_digest_changes_with_columns_tables_and_servers() -> None:
    def digest(*names: str, columns: int = 1, label: str = "a") -> str:
        made = [table(name, columns=tuple(column(f"c{n}") for n in range(columns))) for name in names]
        end = model.Endpoint(role="source", conninfo="secret", label=label)
        source = catalog("source", made, endpoint=end)
        return build(rules(*(entry(name) for name in names)), source, catalog("target", made)).digest

    digests = [digest("t"), digest("u"), digest("t", "u"), digest("t", columns=2), digest("t", label="b")]
    assert len(set(digests)) == 5
    assert digest("t") == digests[0]


def test_digest_changes_when_the_order_of_an_atomic_stage_does() -> None:
    steps = make([]).stages[0]
    one = dataclasses.replace(make([]), stages=(steps,))
    other = dataclasses.replace(one, stages=(dataclasses.replace(steps, steps=steps.steps[::-1]),))
    assert one.digest != other.digest


# -- text -----------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
QUALIFIED = st.builds(model.TableName, schema=TEXT, name=TEXT)
ROWS, BYTES = st.floats(0, 1e15), st.integers(0, 1 << 60)
NAME_TUPLE = st.lists(TEXT, max_size=3).map(tuple)
STEPS = st.one_of(
    st.builds(model.CreateSchema, schema=TEXT, without=NAME_TUPLE, owner=TEXT),
    st.builds(
        model.CopyTable,
        source=QUALIFIED,
        target=QUALIFIED,
        columns=NAME_TUPLE,
        binary=st.booleans(),
        partitioned=st.booleans(),
        rows=ROWS,
        bytes=BYTES,
    ),
    st.builds(model.DropIndexes, target=QUALIFIED, names=NAME_TUPLE),
    st.builds(model.BuildIndex, target=QUALIFIED, name=TEXT),
    st.builds(model.RestoreIndexes, target=QUALIFIED, names=NAME_TUPLE),
    st.builds(model.SetSequence, source=QUALIFIED, target=QUALIFIED),
    st.builds(model.CreateView, target=QUALIFIED, definition=TEXT, owner=TEXT),
    st.builds(model.Analyze, target=QUALIFIED, columns=NAME_TUPLE),
)
STAGE_NAMES = st.sampled_from(["schema", "core", "bulk", "finish"])
PLANS = st.builds(
    model.Plan,
    source=TEXT,
    target=TEXT,
    chosen=st.lists(
        st.builds(model.Chosen, table=TEXT, stage=STAGE_NAMES, reason=TEXT, rows=ROWS, bytes=BYTES), max_size=3
    ).map(tuple),
    left=st.lists(
        st.builds(model.Left, table=TEXT, reason=TEXT, loses=TEXT, rows=ROWS, known=st.booleans()), max_size=3
    ).map(tuple),
    stages=st.lists(
        st.builds(
            model.Stage,
            name=STAGE_NAMES,
            title=TEXT,
            atomic=st.booleans(),
            steps=st.lists(STEPS, max_size=4).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
    findings=st.lists(
        st.builds(
            model.Finding,
            code=TEXT,
            severity=st.sampled_from(["refuse", "warn", "note"]),
            subject=TEXT,
            message=TEXT,
            fix=TEXT,
        ),
        max_size=3,
    ).map(tuple),
)


@settings(max_examples=200)
@given(PLANS)
def test_plan_comes_back_from_its_text_equal_and_with_its_digest(made: model.Plan) -> None:
    back = plan.loads(plan.dumps(made))
    assert back == made
    assert back.digest == made.digest


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{}", '{"source": 1}', '{"stages": [1]}', "not json"],
)
def test_text_that_is_no_plan_is_a_configuration_error(text: str) -> None:
    with pytest.raises(errors.ConfigurationError, match="another version"):
        plan.loads(text)


@pytest.mark.parametrize("change", ["steps", "kind", "field"])
def test_plan_of_another_version_is_a_configuration_error(change: str) -> None:
    plain = json.loads(plan.dumps(make([])))
    step = plain["stages"][0]["steps"][0]
    if change == "steps":
        plain["stages"][0]["steps"] = ["text"]
    elif change == "kind":
        step["kind"] = "Unheard"
    else:
        step["unheard"] = 1
    with pytest.raises(errors.ConfigurationError):
        plan.loads(json.dumps(plain))


@given(edges=EDGES, stages=STAGES)
def test_building_twice_gives_the_same_and_changes_nothing(edges: list[Edge], stages: list[str]) -> None:
    made = tables(edges)
    source, target = catalog("source", made), catalog("target", made)
    before = copy.deepcopy((source, target))
    given_rules = rules(*(entry(name, stage=stage) for name, stage in zip(NAMES, stages, strict=True)))
    assert build(given_rules, source, target) == build(given_rules, source, target)
    assert (source, target) == before
