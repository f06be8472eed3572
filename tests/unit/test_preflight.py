"""Findings that need no server to be told."""

from __future__ import annotations

import dataclasses

import pytest

from mishika_migrate import model
from mishika_migrate.findings import literal, major, quoted
from mishika_migrate.preflight import privileges
from tests.values import ALL, build, catalog, entry, key, rules, table

RULES = rules(entry("a"), entry("b", "if-used"))
TABLES = [table("a"), table("b")]
DUMP = model.Survey(pg_dump=18)


def codes(made: model.Plan) -> dict[str, str]:
    return {finding.code: finding.severity for finding in made.findings}


def plan(ours: object = None, theirs: object = None, **more: object) -> model.Plan:
    source = dataclasses.replace(catalog("source", TABLES), **(ours or {}))  # type: ignore[arg-type]
    target = dataclasses.replace(catalog("target", TABLES), **(theirs or {}))  # type: ignore[arg-type]
    return build(RULES, source, target, **more)  # type: ignore[arg-type]


def test_two_servers_alike_leave_nothing_to_say() -> None:
    assert plan().findings == ()


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("version", [9_06_24, 11_00_22])
def test_server_before_12_is_refused_and_nothing_else_is_said_of_it(side: str, version: int) -> None:
    old = {"version": version, "tables": ()}
    made = plan(old) if side == "source" else plan(None, old)
    (finding,) = made.findings
    assert (finding.code, finding.severity) == ("server-too-old", "refuse")
    assert f"me@{side}/db is PostgreSQL {major(version)}" in finding.message


def test_versions_are_named_as_people_name_them() -> None:
    assert [major(version) for version in (9_06_24, 10_00_01, 18_00_06)] == ["9.6", "10", "18"]


def test_older_target_is_a_note_and_a_newer_one_nothing() -> None:
    assert codes(plan(None, {"version": 15_00_04})) == {"older-target": "note"}
    assert codes(plan(None, {"version": 16_00_04})) == {}
    assert codes(plan(None, {"version": 17_00_04})) == {}


def test_standby_is_refused_once() -> None:
    assert codes(plan(None, {"in_recovery": True, "may_create_schema": False})) == {"read-only": "refuse"}


def test_survey_of_both_servers_is_told() -> None:
    answers = model.Survey(same_database=True, pooled=("source", "target"), unlooked=("a",))
    made = plan(survey=answers)
    assert codes(made) == {"same-database": "refuse", "transaction-pooler": "refuse", "not-searched": "note"}
    assert len(made.refused) == 3


def test_half_of_the_required_tables_is_another_refusal_than_none() -> None:
    two = rules(entry("a"), entry("c"))
    half = build(two, catalog("source", TABLES), catalog("target", TABLES))
    assert "lacks 1 required tables of Test" in half.refused[0].message
    none = build(two, catalog("source", [table("x")]), catalog("target", []))
    assert "has no table of Test" in none.refused[0].message
    assert len(none.findings) == 1  # not a word about x


def test_create_schema_wants_an_empty_schema_of_the_same_name_and_a_pg_dump_that_is_new_enough() -> None:
    made = plan(create_schema=True, survey=model.Survey(pg_dump=15))
    assert [finding.code for finding in made.refused] == ["target-not-empty", "pg-dump"]
    assert "pg_dump 15 cannot dump a server of version 16" in made.refused[1].message
    assert codes(plan(None, {"tables": ()}, create_schema=True, survey=model.Survey()))["pg-dump"] == "refuse"
    end = model.Endpoint(role="target", conninfo="", schema="other", label="t")
    renamed = plan(None, {"tables": (), "endpoint": end, "schema_exists": False}, create_schema=True)
    assert [finding.code for finding in renamed.refused] == ["schema-renamed"]
    assert not plan(None, {"tables": (), "schema_exists": False}, create_schema=True).findings


def test_pg_dump_has_to_read_tables_that_are_not_copied_too() -> None:
    closed = [table("a"), table("b", occupied=False, privileges=frozenset())]
    made = plan({"tables": tuple(closed)}, {"tables": ()}, create_schema=True)
    assert [finding.subject for finding in made.refused] == ["b"]
    assert made.refused[0].fix == 'GRANT SELECT ON "public"."b" TO "me"; -- on the source'


def test_emptying_a_table_names_all_that_reference_it() -> None:
    theirs = (table("a"), table("b", key("a")), table("c", key("b")), table("d"))
    (finding,) = plan(
        None, {"tables": (*theirs[:1], *(dataclasses.replace(t, occupied=False) for t in theirs[1:]))}
    ).refused
    assert finding.code == "target-has-rows"
    assert finding.fix.startswith('TRUNCATE "public"."a", "public"."b", "public"."c"; ')


def test_what_is_followed_is_not_to_be_merged() -> None:
    for use, said in (("source", True), ("any", False)):
        (finding,) = plan(None, full("b"), use=use).refused
        assert ("=skip" in finding.fix, "--on-existing b=replace" in finding.fix) == (said, True)
    given = (("", "replace"),)
    (gone,) = plan(None, full("b"), use="any", existing=given).findings
    assert (gone.code, gone.fix.startswith("without --follow, --on-existing b=update")) == ("rows-replaced", True)
    (kept,) = plan(None, full("a", "c"), use="any", existing=(("a", "replace"),)).refused
    assert (kept.code, "=update" in kept.fix) == ("replace-referenced", False)


def limited(of: str, allowed: int, used: int, *, followed: bool, version: int = 18_00_00) -> list[model.Finding]:
    limit = model.Limit(of=of, allowed=allowed, used=used)  # type: ignore[arg-type]
    target = catalog("target", TABLES, limits=(limit,), version=version)
    return list(privileges.sessions(target, jobs=4, followed=followed))


def test_sessions_that_a_run_would_lack_are_counted() -> None:
    assert limited("role", 6, 0, followed=False) == []
    assert limited("role", 8, 0, followed=True) == []
    (copy,) = limited("role", 7, 2, followed=False)
    assert (copy.severity, copy.code) == ("warn", "too-few-sessions")
    assert "up to 6 sessions on the target me@target/db, and role me takes 5 more (a limit of 7)" in copy.message
    assert copy.fix == 'ALTER ROLE "me" CONNECTION LIMIT 8; -- on the target, or --jobs 3'
    (move,) = limited("database", 8, 0, followed=True, version=15_00_00)  # WAL senders count
    assert move.fix == 'ALTER DATABASE "db" CONNECTION LIMIT 9; -- on the target, or --jobs 3'
    (full,) = limited("server", 100, 99, followed=False)
    assert full.fix == "ALTER SYSTEM SET max_connections = 105; -- on the target, then restart it"


OWNED = tuple(dataclasses.replace(each, owner="proxy") for each in TABLES)


def made_by(owner: model.Owner | None, **theirs: object) -> model.Plan:
    """Where the schema is to be created on the target, and the source's tables are proxy's."""
    survey = model.Survey(pg_dump=18, owner=owner)
    return plan({"tables": OWNED}, {"tables": (), **theirs}, create_schema=True, survey=survey)


def test_schema_is_created_as_the_owner_where_the_role_may_be_it() -> None:
    made = made_by(model.Owner(name="proxy", exists=True, usable=True, creates=True))
    assert (made.findings, made.steps[0].owner) == ((), "proxy")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("owner", "theirs", "fix"),
    [
        (
            {"creates": True},
            {},
            'GRANT "proxy" TO "me" WITH INHERIT TRUE, SET TRUE; -- on the target',
        ),
        ({"usable": True}, {}, 'GRANT CREATE ON SCHEMA "public" TO "proxy"; -- on the target'),
        (
            {"usable": True},
            {"schema_exists": False},
            'CREATE SCHEMA "public" AUTHORIZATION "proxy"; -- on the target',
        ),
        (
            {},
            {"version": 15_00_00},
            'GRANT CREATE ON SCHEMA "public" TO "proxy"; GRANT "proxy" TO "me"; ALTER ROLE "me" INHERIT;'
            " -- on the target",
        ),
    ],
)
def test_owner_who_would_be_shut_out_is_a_warning(owner: dict[str, bool], theirs: dict[str, object], fix: str) -> None:
    made = made_by(model.Owner(name="proxy", exists=True, **owner), **theirs)
    (finding,) = [each for each in made.findings if each.severity == "warn"]
    assert (finding.code, finding.fix) == ("table-owner", fix)
    assert made.steps[0].owner == ""  # type: ignore[union-attr]


def test_owner_of_another_name_or_a_superuser_is_no_warning() -> None:
    assert codes(made_by(model.Owner(name="proxy", exists=False))) == {"table-owner": "note"}
    assert codes(made_by(model.Owner(name="proxy", exists=True, superuser=True))) == {}
    assert codes(made_by(model.Owner(name="me", exists=True, usable=True, creates=True))) == {}


def full(*names: str) -> dict[str, object]:
    """The target's a, b and c; c references a; these have rows."""
    theirs = (table("a"), table("b"), table("c", key("a")))
    return {"tables": tuple(dataclasses.replace(each, occupied=each.name in names) for each in theirs)}


def test_nothing_that_an_unfinished_run_wrote_is_to_be_emptied() -> None:
    run = model.Unfinished(run="r1", plan="", tables=frozenset({"b", "c"}))
    survey = model.Survey(unfinished=run)
    assert codes(plan(None, full("b"), survey=survey)) == {"unfinished-run": "warn"}
    parent = plan(None, full("a", "b"), survey=survey)  # TRUNCATE of a would take c along
    assert codes(parent) == {"target-has-rows": "refuse", "unfinished-run": "warn"}
    assert not [each for each in parent.findings if "TRUNCATE" in each.fix]
    assert "copy --resume" in parent.refused[0].fix
    assert "TRUNCATE" not in repr(plan(None, {"tables": full("b")["tables"]}, create_schema=True, survey=survey))


def test_unfinished_run_is_no_reason_to_leave_out_create_schema() -> None:
    run = model.Unfinished(run="r1", plan="", tables=frozenset({"b"}))
    made = plan(None, full("b"), create_schema=True, survey=model.Survey(unfinished=run, pg_dump=18))
    assert codes(made) == {"unfinished-run": "warn"}


def test_finished_run_is_named_and_what_is_still_empty_can_follow() -> None:
    (finding,) = plan(None, full("a"), survey=model.Survey(finished="r1")).refused
    assert "run r1 from this source has finished there" in finding.message
    assert finding.fix.endswith("or leave all as they are: --only b")


def test_the_other_way_round_is_told_and_nothing_is_to_be_emptied() -> None:
    empty = {"tables": tuple(dataclasses.replace(each, occupied=False) for each in TABLES)}
    swapped = plan(empty, full("a"))
    assert codes(swapped) == {"swapped": "refuse"}
    assert "TRUNCATE" not in repr(swapped)
    assert codes(plan(empty, full())) == {"source-empty": "warn"}


def test_one_database_on_both_sides_is_not_to_be_emptied() -> None:
    assert codes(plan(None, full("a"), survey=model.Survey(same_database=True))) == {"same-database": "refuse"}


def extension(name: str, schema: str = "public") -> tuple[model.Extension, ...]:
    return (model.Extension(name=name, schema=schema),)


@pytest.mark.parametrize(
    ("theirs", "fix"),
    [
        ((), 'CREATE SCHEMA IF NOT EXISTS "ext"; CREATE EXTENSION "hstore" SCHEMA "ext";'),
        (extension("hstore"), 'ALTER EXTENSION "hstore" SET SCHEMA "ext";'),
        (extension("hstore", "ext"), ""),
    ],
)
def test_extension_that_the_created_tables_need_must_be_there(theirs: tuple[model.Extension, ...], fix: str) -> None:
    ours = {"tables": (table("a", extensions=("hstore",)), table("x", extensions=("other",)))}
    made = plan(
        {**ours, "extensions": (*extension("hstore", "ext"), *extension("other"))},
        {"tables": (), "extensions": theirs},
        create_schema=True,
    )
    assert [each.fix for each in made.refused] == ([fix] if fix else [])


def test_views_of_views_belong_to_who_owns_the_tables() -> None:
    lone = (model.View(name="v", definition="", reads=("a",)), model.View(name="w", definition="", reads=("v",)))
    theirs = [
        dataclasses.replace(each, occupied=False, owner="app", privileges=frozenset(ALL - {"OWNER"})) for each in TABLES
    ]
    made = plan({"views": lone}, {"tables": tuple(theirs)})
    assert {step.owner for step in made.steps if isinstance(step, model.CreateView)} == {"app"}
    finding = next(each for each in made.findings if each.code == "view-owner")
    assert (finding.subject, finding.fix) == (
        "v, w",
        'GRANT "app" TO "me" WITH INHERIT TRUE, SET TRUE; -- on the target',
    )


def test_statistics_are_granted_where_the_server_knows_how_and_left_to_the_owner_elsewhere() -> None:
    closed = tuple(dataclasses.replace(t, occupied=False, owner="app", privileges=ALL - {"MAINTAIN"}) for t in TABLES)
    fixes = [plan(None, {"tables": closed, "version": version}).findings[0].fix for version in (16_00_00, 17_00_00)]
    assert fixes == [
        'ANALYZE "public"."a", "public"."b"; -- on the target after the copy, as app',
        'GRANT MAINTAIN ON "public"."a", "public"."b" TO "me"; -- on the target',
    ]


def test_delete_is_missed_only_by_a_resume() -> None:
    mine = frozenset({"SELECT", "INSERT", "MAINTAIN"})
    theirs = tuple(dataclasses.replace(t, occupied=False, privileges=mine) for t in TABLES)
    assert codes(plan(None, {"tables": theirs})) == {"privilege-to-resume": "note"}


def test_every_finding_names_its_server() -> None:
    trigger = model.Trigger(name="t", on=model.TableName(schema="public", name="a"))
    bad = (table("a", hidden=True, privileges=frozenset(), triggers=(trigger,)),)
    answers = model.Survey(
        same_database=True,
        pooled=("source",),
        dangling=(model.Dangling(table="a", column="x", references="b", rows=1, absent=True),),
        unparseable=(model.Unparseable(table="a", column="x", fault="NULL", rows=9, examples=("one", "")),),
        unlooked=("a",),
    )
    made = plan(
        {"tables": (*bad, table("stranger")), "encoding": "LATIN1", "may_use_schema": False},
        {"tables": bad, "encoding": "SQL_ASCII", "in_recovery": True, "version": 12_00_00},
        survey=answers,
    )
    assert len(made.refused) > 8
    for finding in made.findings:
        assert "source" in finding.message or "target" in finding.message, finding
        assert finding.fix or finding.severity == "note", finding


def test_names_are_quoted_for_pasting() -> None:
    assert (quoted('a"b'), literal("it's")) == ('"a""b"', "'it''s'")
