"""How two schemas differ, from plain values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mishika_migrate import matrix, model
from mishika_migrate.preflight import drift, views
from tests.values import catalog, column, rules, table

Fields = dict[str, object]


def compare(
    ours: model.Column, theirs: model.Column, our: Fields | None = None, their: Fields | None = None
) -> list[model.Finding]:
    source = catalog("source", [table("t", columns=(column(), ours))], **(our or {}))
    target = catalog("target", [table("t", columns=(column(), theirs))], **(their or {}))
    return list(drift.columns(source.tables[0], target.tables[0], source, target))


@pytest.mark.parametrize(
    ("ours", "theirs", "severity"),
    [
        ("text", "text", None),
        ("integer", "bigint", "note"),
        ("integer", "numeric(5,2)", "warn"),
        ("integer", "numeric", "note"),
        ("bigint", "integer", "refuse"),
        ("text", "jsonb", "refuse"),
        ("json", "jsonb", "refuse"),
        ("character(9)", "text", "refuse"),
        ("character(9)", "character(5)", "refuse"),
        ("character varying(9)[]", "character varying(5)[]", "refuse"),
        ("text", "character varying", "note"),
        ("character varying(9)", "character varying(12)", "note"),
        ("character varying(9)", "character varying", "note"),
        ("character varying(9)", "character varying(5)", "refuse"),
        ("character varying", "character varying(5)", "refuse"),
        ("character varying(9)", "text", "note"),
        ("text", "character varying(9)", "refuse"),
        ("timestamp(3) without time zone", "timestamp without time zone", "note"),
        ("timestamp(3) without time zone", "timestamp(6) without time zone", "note"),
        ("timestamp without time zone", "timestamp(3) without time zone", "refuse"),
        ("timestamp(6) without time zone[]", "timestamp(3) without time zone[]", "refuse"),
        ("timestamp(3) without time zone", "timestamp(3) with time zone", "refuse"),
        ("numeric(12,2)", "numeric(14,2)", "note"),
        ("numeric(12,2)", "numeric(12,4)", "warn"),
        ("numeric(12,4)", "numeric(14,2)", "refuse"),
        ("numeric", "numeric(9)", "refuse"),
        ("integer[]", "bigint[]", "refuse"),
    ],
)
def test_types_that_differ(ours: str, theirs: str, severity: str | None) -> None:
    findings = compare(column("c", ours), column("c", theirs))
    assert [(each.code, each.severity) for each in findings] == ([("column-type", severity)] if severity else [])


LABELS = st.lists(st.sampled_from(["a", "b", "it's", "ü"]), unique=True, min_size=1)


@given(ours=LABELS, theirs=LABELS)
def test_labels_that_the_target_lacks_are_refused_and_others_do_not_matter(ours: list[str], theirs: list[str]) -> None:
    findings = compare(column("c", "mood", labels=tuple(ours)), column("c", "mood", labels=tuple(theirs)))
    missing = set(ours) - set(theirs)
    assert [each.code for each in findings] == (["enum-labels"] if missing else [])
    assert sum(each.fix.count("ADD VALUE") for each in findings) == len(missing)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("mood", '"public"."mood"'),
        ("mood[]", '"public"."mood"'),
        ('"Job.Status"', '"public"."Job.Status"'),
        ('other."Mood"', 'other."Mood"'),
    ],
)
def test_enum_is_named_with_its_schema(kind: str, named: str) -> None:
    (finding,) = compare(column("c", kind, labels=("a", "b")), column("c", kind, labels=("a",)))
    assert finding.fix == f"ALTER TYPE {named} ADD VALUE IF NOT EXISTS 'b';"


def own(name: str, *parts: tuple[str, str], checks: tuple[str, ...] = ()) -> model.OwnType:
    return model.OwnType(name=name, parts=parts, checks=checks)


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        (own("t", ("a", "text")), own("t", ("a", "text")), []),
        (own("t", ("a", "text"), ("b", "text")), own("t", ("b", "text"), ("a", "text")), ["type-differs"]),
        (own("t", ("a", "text")), own("t", ("a", "integer")), ["type-differs"]),
        (own("t", ("a", "text")), own("t", ("a", "text"), ("b", "text")), ["type-differs"]),
        (own("t", ("", "integer")), own("t", ("", "bigint")), ["type-differs"]),
        (own("t", ("", "integer")), None, ["type-differs"]),
        (own("t", ("", "integer")), own("t", ("", "integer"), checks=("CHECK (VALUE > 0)",)), ["domain-check"]),
        (own("t", ("", "integer"), checks=("CHECK (VALUE > 0)",)), own("t", ("", "integer")), []),
    ],
)
@pytest.mark.parametrize("kind", ["t", "t[]", "outer"])
def test_types_of_one_name_are_compared_by_what_they_are(
    kind: str, ours: model.OwnType, theirs: model.OwnType | None, found: list[str]
) -> None:
    outer = own("outer", ("x", "t[]"), ("y", "outer[]"))
    made = column("c", kind, binary=False)
    our, their = ({"types": tuple(each for each in (side, outer) if each)} for side in (ours, theirs))
    findings = compare(made, made, dict(our), dict(their))
    assert [each.code for each in findings] == found
    assert all(each.fix for each in findings)


def test_nullability_matters_in_one_direction() -> None:
    assert [each.code for each in compare(column("c", nullable=True), column("c"))] == ["column-not-null"]
    assert compare(column("c"), column("c", nullable=True)) == []


def test_generated_columns_are_compared_only_where_values_would_be_lost() -> None:
    made = column("c", "integer", generated=True, default="1")
    assert [each.code for each in compare(column("c"), made)] == ["column-generated"]
    assert compare(made, column("c", "integer")) == []
    assert compare(made, column("c", "bigint", generated=True, default="1")) == []
    other = column("c", "integer", generated=True, default="2")
    assert [(each.code, each.severity) for each in compare(made, other)] == [("generated-differs", "warn")]
    stored, virtual = (compare(column("c"), column("c", generated=True, virtual=v))[0].fix for v in (False, True))
    assert ("DROP EXPRESSION" in stored, "DROP EXPRESSION" in virtual) == (True, False)


# -- views ----------------------------------------------------------------------------------------


def view(name: str, *reads: str, **more: object) -> model.View:
    return model.View(name=name, definition="", reads=reads, **more)  # type: ignore[arg-type]


VIEWS = st.lists(
    st.builds(
        lambda n, reads: view(f"v{n}", *sorted(reads)),
        st.integers(0, 5),
        st.sets(st.sampled_from(["v0", "v1", "v2", "v3", "v4", "v5", "t", "gone"]), max_size=3),
    ),
    unique_by=lambda each: each.name,
)


@given(VIEWS)
def test_views_come_after_what_they_read_and_none_is_forgotten(given: list[model.View]) -> None:
    source = catalog("source", [table("t"), table("gone")], views=tuple(given))
    order, needs = views.missing(source, catalog("target", [table("t")]))
    there = {"t"}
    for each in order:
        assert set(each.reads) <= there
        there.add(each.name)
    assert {each.name for each in order} | needs.keys() == {each.name for each in given}
    assert all(needs.values())


def test_view_that_nobody_has_is_a_warning_when_its_tables_are_there() -> None:
    expected = matrix.MatrixView(name="v", why="the page", reads=("t",))
    given_rules = rules(views=(expected,))
    with_table, without = catalog("source", [table("t")]), catalog("source", [])
    target = catalog("target", [table("t")])
    assert [each.code for each in views.inspect(given_rules, with_table, target)] == ["view-nowhere"]
    assert list(views.inspect(given_rules, without, target)) == []
