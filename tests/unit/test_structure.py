"""Which differences of two schemas are a problem, from plain values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mishika_migrate import matrix, model
from mishika_migrate.proof import structure
from tests.values import catalog, column, key, rules, table

Fields = dict[str, object]
RULES = rules(migrations="journal")


def inspect(
    ours: model.Table,
    theirs: model.Table,
    our: Fields | None = None,
    their: Fields | None = None,
    given_rules: matrix.Matrix = RULES,
) -> dict[str, model.Check]:
    source, target = catalog("source", [ours], **(our or {})), catalog("target", [theirs], **(their or {}))
    return {each.code: each for each in structure.inspect(given_rules, source, target, [ours.name])}


def judged(checks: dict[str, model.Check]) -> dict[str, str]:
    """What came of each check that said anything."""
    states = {code: "problem" if each.problems else "note" if each.notes else "" for code, each in checks.items()}
    states.update({code: "unlooked" for code, each in checks.items() if each.why_not})
    return {code: state for code, state in states.items() if state and code != "migrations"}


def columns(
    ours: model.Column, theirs: model.Column, our: Fields | None = None, their: Fields | None = None
) -> str | None:
    one, other = (table("t", columns=(column(), each)) for each in (ours, theirs))
    return judged(inspect(one, other, our, their)).get("columns")


# -- columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "state"),
    [
        ("text", "text", None),
        ("character varying", "text", "note"),
        ("character varying(9)", "character varying(5)", "problem"),
        ("integer", "bigint", "note"),
        ("bigint", "integer", "problem"),
        ("integer", "numeric(5,2)", "problem"),
        ("json", "jsonb", "problem"),
        ("timestamp(3) without time zone", "timestamp(6) without time zone", "note"),
        ("timestamp(3) without time zone", "timestamp(3) with time zone", "problem"),
    ],
)
def test_types(ours: str, theirs: str, state: str | None) -> None:
    assert columns(column("c", ours), column("c", theirs)) == state


@pytest.mark.parametrize(
    ("ours", "theirs", "state"),
    [
        (False, False, None),
        (False, True, "problem"),
        (True, False, "note"),
    ],
)
def test_nullability(ours: bool, theirs: bool, state: str | None) -> None:
    assert columns(column("c", nullable=ours), column("c", nullable=theirs)) == state


OLD: Fields = {"version": 12_00_00}


@pytest.mark.parametrize(
    ("ours", "theirs", "state", "between_versions"),
    [
        (None, None, None, None),
        ("1", None, "problem", "problem"),
        (None, "1", "problem", "problem"),
        ("0.0", "1.0", "problem", "problem"),
        ("now()", "CURRENT_TIMESTAMP", "note", "note"),
        ("'{}'::jsonb", "'{}'::text", "problem", "note"),
        ("'a'::character varying(3)", "'a'", "problem", "note"),
        ("('a'::text)", "'a'::text", "problem", "note"),
        ("((1 + 2))", "(1 + 2)", "problem", "note"),
        ("(1 + 2) * 3", "1 + (2 * 3)", "problem", "problem"),
        ("'a b'::text", "'ab'::text", "problem", "problem"),
        ("'now()'::text", "'CURRENT_TIMESTAMP'::text", "problem", "problem"),
        ("'x::text'", "'x'", "problem", "problem"),
        ("'it''s (1)'", "'it''s 1'", "problem", "problem"),
    ],
)
def test_defaults_of_one_version_and_between_versions(
    ours: str | None, theirs: str | None, state: str | None, between_versions: str | None
) -> None:
    pair = column("c", default=ours), column("c", default=theirs)
    assert columns(*pair) == state
    assert columns(*pair, OLD) == between_versions


def drawing(name: str, table_name: str | None = "t") -> Fields:
    return {"sequences": (model.Sequence(name=name, table=table_name, column=table_name and "c", writable=True),)}


@given(st.text("aB.\"' ", min_size=1), st.text("aB.\"' ", min_size=1))
def test_sequences_are_told_by_their_column(one: str, other: str) -> None:
    ours, theirs = (column("c", "integer", default=_nextval(name)) for name in (one, other))
    assert columns(ours, theirs, drawing(one), drawing(other)) is None
    identity = column("c", "integer", identity=True)
    assert columns(ours, identity, drawing(one), drawing(other)) is None
    assert columns(identity, theirs, drawing(one), drawing(other)) is None
    assert columns(ours, theirs, drawing(one), drawing(other, "another")) == "problem"
    assert columns(ours, column("c", "integer"), drawing(one), drawing(other)) == "problem"


def _nextval(name: str) -> str:
    quoted = name.replace('"', '""').replace("'", "''")
    return f"nextval('\"{quoted}\"'::regclass)"


def test_sequence_of_another_schema_is_told_by_its_name() -> None:
    ours, theirs = (column("c", "integer", default=f"nextval('{name}.seq'::regclass)") for name in ("a", '"B"'))
    assert columns(ours, theirs) is None


def test_generated_columns() -> None:
    made = column("c", "integer", generated=True, default="(a + 1)")
    assert columns(made, made) is None
    assert columns(made, column("c", "integer")) == "problem"
    assert columns(column("c", "integer"), made) == "problem"
    assert columns(made, column("c", "integer", generated=True, default="(a + 2)")) == "problem"
    assert columns(made, column("c", "integer", generated=True, virtual=True, default="(a + 1)")) == "note"


def test_columns_and_tables_of_one_side() -> None:
    bare, more = table("t"), table("t", columns=(column(), column("extra")))
    assert judged(inspect(more, bare)) == {"columns": "unlooked"}
    assert inspect(more, bare)["columns"].why_not == "t.extra is on the source only and was not compared"
    assert judged(inspect(bare, more)) == {"columns": "note"}
    assert judged(inspect(bare, table("other"))) == {"columns": "problem"}


def test_labels_and_types_within() -> None:
    def mood(*labels: str) -> model.Column:
        return column("c", "mood", labels=labels)

    assert columns(mood("a", "b"), mood("b", "a", "c")) is None
    assert columns(mood("a", "b"), mood("a")) == "problem"
    whole, other = (model.OwnType(name="own", parts=(("x", kind),)) for kind in ("integer", "text"))
    assert columns(column("c", "own"), column("c", "own"), {"types": (whole,)}, {"types": (other,)}) == "problem"


# -- indexes --------------------------------------------------------------------------------------


def index(
    name: str, way: str, *columns: str, kind: str = "", constraint: str | None = None, on: str = 'public."T x"'
) -> model.Index:
    printed = f'"{name}"' if not name.islower() else name
    return model.Index(
        name=name,
        definition=f"CREATE {'UNIQUE ' if kind else ''}INDEX {printed} ON {on} USING {way}",
        columns=columns or ("id",),
        unique=bool(kind),
        primary=kind == "primary",
        constraint=constraint,
    )


def indexes(ours: list[model.Index], theirs: list[model.Index], our: Fields | None = None) -> model.Check:
    return inspect(table("t", indexes=tuple(ours)), table("t", indexes=tuple(theirs)), our)["indexes"]


def test_indexes_are_compared_without_names_and_schemas() -> None:
    ours = [
        index("a", "btree (id)", kind="primary", constraint="PRIMARY KEY (id)"),
        index('B USING hash (x) "" ', "btree (b) WHERE (c > 0)", on="ONLY public.t"),
        index("c", "gin (c jsonb_path_ops)"),
        index("d", "gin (c jsonb_path_ops)"),
    ]
    theirs = [
        index("C", "gin (c jsonb_path_ops)", on='"An Other".t'),
        index("E", "gin (c jsonb_path_ops)"),
        index("A", "btree (id)", kind="primary", constraint="PRIMARY KEY (id)"),
        index("F", "btree (b) WHERE (c > 0)"),
    ]
    assert judged({"indexes": indexes(ours, theirs)}) == {}
    assert indexes(ours, theirs).looked == 4
    assert len(indexes(ours, theirs[:3]).problems) == 1
    (problem,) = indexes(ours, theirs[1:]).problems
    assert problem == (
        "c of t (index gin (c jsonb_path_ops)) is missing on the target, or not valid there:"
        " what it makes fast will be slow"
    )
    (note,) = indexes(ours[:3], theirs).notes
    assert note == "C of t (index gin (c jsonb_path_ops)) is on the target only"


@pytest.mark.parametrize(
    ("ours", "theirs", "state"),
    [
        (index("a", "btree (a)", kind="unique"), index("a", "btree (a)"), "problem"),
        (index("a", "btree (a)"), index("a", "btree (a DESC)"), "problem"),
        (index("a", "btree (a)"), index("a", "hash (a)"), "problem"),
        (index("a", "btree (a)"), index("a", "btree (a) WHERE (a > 0)"), "problem"),
        (index("a", "btree (a)", kind="unique"), index("a", "btree (a) NULLS NOT DISTINCT", kind="unique"), "problem"),
        (index("a", "btree (a)"), index("a", "btree (a) WITH (fillfactor='70')"), "note"),
        (
            index("a", "btree (a)", kind="unique", constraint="UNIQUE (a)"),
            index("a", "btree (a)", kind="unique"),
            "note",
        ),
        (
            index("a", "btree (a)", kind="unique", constraint="UNIQUE (a)"),
            index("a", "btree (a)", kind="unique", constraint="UNIQUE (a) DEFERRABLE INITIALLY DEFERRED"),
            "problem",
        ),
        (
            index("a", "btree (a)", kind="primary", constraint="PRIMARY KEY (a)"),
            index("a", "btree (a)", kind="unique"),
            "problem",
        ),
        (
            index("a", "gist (a)", constraint="EXCLUDE USING gist (a WITH =)"),
            index("b", "gist (a)", constraint="EXCLUDE USING gist (a WITH =)"),
            None,
        ),
    ],
)
def test_indexes_that_differ(ours: model.Index, theirs: model.Index, state: str | None) -> None:
    assert judged({"indexes": indexes([ours], [theirs])}).get("indexes") == state


def test_servers_of_two_versions_may_cast_otherwise_in_an_index() -> None:
    ours = [index("a", "btree (a) WHERE ((b)::text = 'x::y'::text)")]
    theirs = [index("a", "btree (a) WHERE (b = 'x::y')")]
    assert indexes(ours, theirs).problems
    assert not indexes(ours, theirs, OLD).problems
    assert indexes(ours, [index("a", "btree (a) WHERE (b = 'x')")], OLD).problems


def test_partitioned_target_is_unique_only_together_with_what_it_is_cut_by() -> None:
    ours = table("t", indexes=(index("a", "btree (id)", "id", kind="primary", constraint="PRIMARY KEY (id)"),))
    wider = index("a", "btree (id, day)", "id", "day", kind="primary", constraint="PRIMARY KEY (id, day)")
    assert inspect(ours, table("t", indexes=(wider,)))["indexes"].problems
    assert not inspect(ours, table("t", indexes=(wider,), partitioned=True))["indexes"].problems


# -- constraints ----------------------------------------------------------------------------------


def constraints(ours: list[str], theirs: list[str], our: Fields | None = None) -> model.Check:
    one, other = (
        table(
            "t",
            constraints=tuple(
                model.Constraint(name=f"c{n}", definition=each, on=model.TableName(schema="s", name="t"))
                for n, each in enumerate(side)
            ),
        )
        for side in (ours, theirs)
    )
    return inspect(one, other, our)["constraints"]


def test_checks_are_compared_by_definition() -> None:
    one, other = "CHECK ((a > 0))", "CHECK ((b > 0))"
    assert judged({"constraints": constraints([one, other], [other, one])}) == {}
    assert constraints([one, other], [other]).problems == (
        "t lacks CHECK ((a > 0)) on the target, which will accept rows that break it",
    )
    assert constraints([other], [one, other]).notes == (
        "t has CHECK ((a > 0)) on the target only, which may reject writes",
    )
    assert judged({"constraints": constraints([one], [f"{one} NOT VALID"])}) == {}
    assert constraints([one], [f"{one} NOT ENFORCED"]).problems
    assert constraints([one], ["CHECK (a > 0)"]).problems
    assert not constraints([one], ["CHECK (a > 0)"], OLD).problems


def test_foreign_keys_are_compared_by_what_they_bind() -> None:
    ours, theirs = table("t", key("p", name="a")), table("t", key("p", name="b"))
    assert judged(inspect(ours, theirs)) == {}
    without = table("t", columns=ours.columns)
    assert inspect(ours, without)["constraints"].problems == (
        "t lacks the foreign key (p_id) to p (id) on the target, which will accept rows without it",
    )
    assert judged(inspect(without, theirs)) == {"constraints": "note"}
    assert judged(inspect(ours, table("t"))) == {"columns": "unlooked", "constraints": "note"}


def test_domains_are_compared_by_their_checks() -> None:
    def side(*checks: str) -> Fields:
        inner = model.OwnType(name="inner", parts=(("", "integer"),), checks=checks)
        return {"types": (model.OwnType(name="outer", parts=(("x", "inner[]"),)), inner)}

    made = table("t", columns=(column("c", "outer[]"),))
    one, other = "CHECK ((VALUE > 0))", "CHECK ((VALUE > 1))"
    assert judged(inspect(made, made, side(one), side(one))) == {}
    assert judged(inspect(made, made, side(one), side())) == {"constraints": "problem"}
    assert judged(inspect(made, made, side(), side(one))) == {"constraints": "note"}
    assert judged(inspect(made, made, side(one), side(other))) == {"constraints": "problem"}
    assert judged(inspect(table("t"), table("t"), side(one), side())) == {}


# -- migrations -----------------------------------------------------------------------------------


def migration(name: str, checksum: str = "x", *, finished: bool = True) -> model.Migration:
    return model.Migration(name=name, checksum=checksum, finished=finished)


def migrations(ours: list[model.Migration] | None, theirs: list[model.Migration] | None) -> model.Check:
    our, their = ({"migrations": None if side is None else tuple(side)} for side in (ours, theirs))
    return inspect(table("journal"), table("journal"), dict(our), dict(their))["migrations"]


def test_migrations_are_compared_by_name_and_content() -> None:
    one, two = migration("1"), migration("2")
    assert migrations([one, two], [two, one]) == migrations([two, one], [one, two])
    assert migrations([one, two], [two, one]).state == "ok"
    assert migrations([one, two], [one]).problems == (
        "migration 2 is not done on the target: its schema is older than the source's",
    )
    assert migrations([one], [one, two]).notes == ("the target has 1 migration that the source lacks: 2",)
    assert len(migrations([one], [migration("1", "y")]).problems) == 1


def test_migration_that_did_not_finish() -> None:
    one, half = migration("1"), migration("2", finished=False)
    assert len(migrations([one, migration("2")], [one, half]).problems) == 1
    assert len(migrations([one], [one, half]).problems) == 1
    assert migrations([one, half], [one, half]).notes == ("migration 2 did not finish on either side",)
    assert migrations([one, half], [one, migration("2")]).state == "ok"


def test_journal_that_cannot_be_read_is_unchecked() -> None:
    assert migrations([], []).state == "ok"
    assert migrations([migration("1")], None).why_not == (
        "journal was not compared: the target me@target/db does not let me read it"
    )
    assert migrations(None, [migration("1")]).state == "unchecked"
    bare = inspect(table("t"), table("t"))["migrations"]
    assert (bare.state, bare.notes) == ("ok", ("neither side has journal",))
    assert "migrations" not in inspect(table("t"), table("t"), given_rules=rules())
