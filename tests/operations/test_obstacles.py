"""What between two real servers would change rows on their way, or turn them away; and that the fixes mend it."""

from __future__ import annotations

import psycopg
import pytest

from mishika_migrate import errors
from tests.fix_faults import ask
from tests.fix_program import Run
from tests.fix_servers import KEYS, LOGS, Clone, Pair, assert_equal, rows_of, tables_of
from tests.looking import (
    BUDGET,
    TEAM,
    TOKEN,
    USER,
    as_role,
    carry_out,
    execute,
    found,
    mend,
    one,
    role,
    see,
    subjects,
)

SPENDLOGS = "MishikaLLM_SpendLogs"
TRIGGERS = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {} RETURN NULL; END$$"


@pytest.fixture
def pieces(pair: Pair, clone: Clone) -> tuple[str, str]:
    """Two databases with the proxy's schema, and a table `parts` on both with one partition and rows on the source."""
    source, target = clone(pair.old, "filled"), clone(pair.new, "bare")
    for url in (source, target):
        execute(
            url,
            "CREATE TABLE parts (day int, id int, PRIMARY KEY (day, id)) PARTITION BY RANGE (day)",
            "CREATE SCHEMA old; CREATE TABLE old.leaf PARTITION OF parts FOR VALUES FROM (0) TO (100)",
        )
    execute(source, "INSERT INTO parts SELECT n % 100, n FROM generate_series(1, 500) n")
    return source, target


# -- triggers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        "TRIGGER t AFTER INSERT ON {} FOR EACH ROW",
        "TRIGGER t AFTER INSERT ON {} FOR EACH STATEMENT",
        "TRIGGER t BEFORE INSERT OR UPDATE ON {} FOR EACH STATEMENT",
        "CONSTRAINT TRIGGER t AFTER INSERT ON {} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW",
    ],
)
@pytest.mark.parametrize("table", [TEAM, f'"{SPENDLOGS}"'])
def test_trigger_of_any_kind_is_refused_until_its_fix_switches_it_off(
    kind: str, table: str, source_url: str, target_url: str
) -> None:
    execute(target_url, TRIGGERS.format(f"DELETE FROM {table};"), f"CREATE {kind.format(table)} EXECUTE FUNCTION f()")
    before = see(source_url, target_url, everything=True)
    assert one(before, "trigger").severity == "refuse"
    mend(before, source_url, target_url, "trigger")
    after = see(source_url, target_url, everything=True)
    assert not after.refused
    carry_out(after, source_url, target_url)
    assert_equal(source_url, target_url, [chosen.table for chosen in after.chosen])
    execute(target_url, one(before, "trigger").fix.partition("-- after the copy: ")[2])
    assert found(see(source_url, target_url, everything=True), "trigger")


def test_trigger_of_a_partition_is_named_with_the_partition(pieces: tuple[str, str]) -> None:
    source, target = pieces
    execute(
        target,
        TRIGGERS.format("DELETE FROM parts;"),
        "CREATE TRIGGER t AFTER INSERT ON old.leaf FOR EACH ROW EXECUTE FUNCTION f()",
    )
    before = see(source, target, include=("parts",))
    assert "partition old.leaf of parts" in one(before, "trigger").message
    mend(before, source, target, "trigger")
    after = see(source, target, include=("parts",))
    assert not after.refused
    carry_out(after, source, target)
    assert_equal(source, target, ["parts"])


def test_triggers_and_forced_row_security_are_not_brought_along_with_the_schema(
    pair: Pair, clone: Clone, source_url: str
) -> None:
    nothing, writer = clone(pair.new, "template0"), role(pair.new)
    name = ask(nothing, "SELECT current_database()")
    execute(nothing, f'GRANT CREATE ON DATABASE "{name}" TO "{writer}"; GRANT ALL ON SCHEMA public TO "{writer}"')
    execute(
        source_url,
        TRIGGERS.format("DELETE FROM keys;"),
        f"CREATE TRIGGER t AFTER INSERT ON {USER} FOR EACH ROW EXECUTE FUNCTION f()",
        f'CREATE TRIGGER t AFTER INSERT ON "{SPENDLOGS}" FOR EACH ROW EXECUTE FUNCTION f()',
        f"ALTER TABLE {TEAM} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    )
    target = as_role(nothing, writer)
    before = see(source_url, target, create_schema=True)
    # Logs are not copied, so nothing fires for them.
    assert {(each.code, each.subject) for each in before.refused} == {
        ("trigger-created", "MishikaLLM_UserTable"),
        ("row-security", "MishikaLLM_TeamTable"),
    }
    assert "DISABLE TRIGGER" in one(before, "trigger-created").fix
    execute(nothing, one(before, "row-security").fix)
    execute(source_url, f"DROP TRIGGER t ON {USER}")
    after = see(source_url, target, create_schema=True)
    assert not after.refused
    carry_out(after, source_url, target)
    assert_equal(source_url, nothing, ["MishikaLLM_TeamTable", "MishikaLLM_UserTable"])
    with psycopg.connect(nothing, autocommit=True) as admin:
        admin.execute(f'DROP OWNED BY "{writer}" CASCADE'.encode())


# -- constraints and partitions -------------------------------------------------------------------


def test_constraints_that_only_the_target_has_are_warnings_whose_fix_lets_rows_in(
    source_url: str, target_url: str
) -> None:
    execute(source_url, f"ALTER TABLE {TEAM} ADD CONSTRAINT same CHECK (spend > -1)")
    execute(
        target_url,
        f"ALTER TABLE {TEAM} ADD CONSTRAINT other_name CHECK (spend > -1) NOT VALID",
        f"ALTER TABLE {TEAM} ADD CONSTRAINT strict CHECK (team_alias = 'no')",
        f"ALTER TABLE {BUDGET} ADD CONSTRAINT one EXCLUDE USING btree (created_by WITH =)",
        f"CREATE UNIQUE INDEX alone ON {TOKEN} (config)",
        f"ALTER TABLE {TOKEN} ADD CONSTRAINT lonely UNIQUE (metadata)",
    )
    before = see(source_url, target_url)
    assert subjects(before, "check-new") == {"MishikaLLM_TeamTable.strict", "MishikaLLM_BudgetTable.one"}
    assert not before.refused
    with pytest.raises(errors.Error, match=r"strict|one|alone|lonely"):
        carry_out(before, source_url, target_url)
    mend(before, source_url, target_url, "check-new", "unique-new")
    after = see(source_url, target_url)
    assert not found(after, "check-new") + found(after, "unique-new")
    carry_out(after, source_url, target_url)
    assert_equal(source_url, target_url, [chosen.table for chosen in after.chosen])


def test_partitioned_target_without_a_place_for_the_rest_is_warned_about(pieces: tuple[str, str]) -> None:
    source, target = pieces
    assert not found(see(source, target, include=("parts",)), "partition-missing")
    execute(source, "DROP TABLE parts; CREATE TABLE parts (day int, id int, PRIMARY KEY (day, id))")
    execute(source, "INSERT INTO parts VALUES (99, 1), (100, 1)")
    before = see(source, target, include=("parts",))
    assert one(before, "partition-missing").severity == "warn"
    mend(before, source, target, "partition-missing")
    after = see(source, target, include=("parts",))
    assert not found(after, "partition-missing")
    carry_out(after, source, target)
    assert_equal(source, target, ["parts"])


def test_partitioned_target_without_any_partition_is_refused(pieces: tuple[str, str]) -> None:
    source, target = pieces
    execute(target, "DROP TABLE old.leaf")
    before = see(source, target, include=("parts",))
    assert [each.code for each in before.refused] == ["partition-missing"]
    mend(before, source, target, "partition-missing")
    assert not see(source, target, include=("parts",)).refused


def test_generated_column_of_another_expression_is_mended_by_its_fix(source_url: str, target_url: str) -> None:
    for url, factor in ((source_url, 2), (target_url, 3)):
        execute(url, f"ALTER TABLE {TEAM} ADD twice float8 GENERATED ALWAYS AS (spend * {factor}) STORED")
        execute(url, f"ALTER TABLE {USER} ADD n int" + (" GENERATED ALWAYS AS (7) STORED" if factor == 3 else ""))
    before = see(source_url, target_url)
    assert one(before, "generated-differs").subject == "MishikaLLM_TeamTable.twice"
    mend(before, source_url, target_url, "generated-differs", "column-generated")
    after = see(source_url, target_url)
    assert not found(after, "generated-differs") + found(after, "column-generated")
    carry_out(after, source_url, target_url)
    assert_equal(source_url, target_url, ["MishikaLLM_TeamTable", "MishikaLLM_UserTable"])


# -- values ---------------------------------------------------------------------------------------


def test_types_that_would_change_values_are_refused_and_their_fix_keeps_them(source_url: str, target_url: str) -> None:
    execute(source_url, f"ALTER TABLE {USER} ADD doc json, ADD free text, ADD short varchar(9), ADD padded char(9)")
    execute(source_url, f"""UPDATE {USER} SET doc = '{{"b": 1, "a": 1,  "a": 2}}', free = 'a  ', short = 'b   '""")
    execute(
        target_url,
        f"ALTER TABLE {USER} ADD doc jsonb, ADD free varchar(2), ADD short varchar(2), ADD padded text",
    )
    before = see(source_url, target_url)
    refused = {each.subject.partition(".")[2] for each in found(before, "column-type", "refuse")}
    assert refused == {"doc", "free", "short", "padded"}
    mend(before, source_url, target_url, "column-type")
    after = see(source_url, target_url)
    assert not after.refused
    carry_out(after, source_url, target_url)
    assert_equal(source_url, target_url, ["MishikaLLM_UserTable"])


def test_names_of_objects_arrive_as_names_whatever_their_numbers_are(source_url: str, target_url: str) -> None:
    execute(target_url, "CREATE TABLE shift_the_oids (a int)")
    for url in (source_url, target_url):
        execute(
            url,
            "CREATE TABLE named (a int); CREATE DOMAIN relation AS regclass; CREATE DOMAIN relations AS regclass[]",
            f"ALTER TABLE {TEAM} ADD one regclass, ADD many regtype[], ADD domain relation, ADD several relations",
        )
    execute(
        source_url,
        f"UPDATE {TEAM} SET one = 'named', many = ARRAY['named'::regtype], domain = 'named', several = '{{named}}'",
    )
    plan = see(source_url, target_url)
    assert not plan.refused
    carry_out(plan, source_url, target_url)
    assert_equal(source_url, target_url, ["MishikaLLM_TeamTable"])


def test_composite_types_whose_attributes_differ_are_refused(source_url: str, target_url: str) -> None:
    execute(source_url, "CREATE TYPE pair AS (a text, b text); CREATE TYPE inner_first AS (p pair)")
    execute(target_url, "CREATE TYPE pair AS (b text, a text); CREATE TYPE inner_first AS (p pair)")
    for url in (source_url, target_url):
        execute(url, f"ALTER TABLE {TEAM} ADD p pair; ALTER TABLE {USER} ADD ps inner_first[]")
    plan = see(source_url, target_url)
    assert [each.code for each in plan.refused] == ["type-differs", "type-differs"]
    assert "a text, b text on the source and b text, a text on the target" in plan.refused[0].message


def test_sequence_that_counts_down_goes_on_where_it_was(source_url: str, target_url: str) -> None:
    for url in (source_url, target_url):
        execute(url, f"CREATE SEQUENCE down INCREMENT -2; ALTER TABLE {TEAM} ADD n int8 DEFAULT nextval('down')")
    execute(source_url, "SELECT setval('down', -9001)")
    carry_out(see(source_url, target_url), source_url, target_url)
    assert ask(target_url, "SELECT nextval('down')") == -9003


# -- what is no table, or has no columns ------------------------------------------------------------


def test_what_has_a_tables_name_but_is_none_is_a_finding_on_either_side(source_url: str, target_url: str) -> None:
    for url, table in ((source_url, "AuditLog"), (source_url, "Config"), (target_url, "ErrorLogs")):
        execute(
            url,
            f'ALTER TABLE "MishikaLLM_{table}" RENAME TO "{table}_2"',
            f'CREATE MATERIALIZED VIEW "MishikaLLM_{table}" AS SELECT * FROM "{table}_2"',
        )
    plan = see(source_url, target_url, groups=frozenset({"auditlogs", "errorlogs"}))
    found_kinds = {(each.subject, each.severity) for each in found(plan, "not-a-table")}
    assert found_kinds == {
        ("MishikaLLM_AuditLog", "refuse"),
        ("MishikaLLM_Config", "warn"),
        ("MishikaLLM_ErrorLogs", "refuse"),
    }
    assert all("materialized view" in each.message and each.fix for each in found(plan, "not-a-table"))


def test_required_view_and_unknown_foreign_table_are_told_apart(source_url: str, target_url: str) -> None:
    execute(
        source_url,
        f"ALTER TABLE {TEAM} RENAME TO hidden; CREATE VIEW {TEAM} AS SELECT * FROM hidden",
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE far (a int)"
        " SERVER s",
    )
    plan = see(source_url, target_url)
    assert [(each.code, each.subject) for each in plan.refused] == [("not-a-table", "MishikaLLM_TeamTable")]
    assert one(plan, "not-copied").subject == "far"
    with pytest.raises(errors.ConfigurationError, match=r"far on .* is a foreign table, not a table"):
        see(source_url, target_url, include=("far",))


def test_rows_without_columns_are_refused(source_url: str, target_url: str) -> None:
    for url in (source_url, target_url):
        execute(url, "CREATE TABLE nothing ()")
    assert not see(source_url, target_url, include=("nothing",)).refused
    execute(source_url, "INSERT INTO nothing DEFAULT VALUES")
    assert one(see(source_url, target_url, include=("nothing",)), "no-columns").fix == "--exclude nothing"


def test_table_that_no_application_will_create_is_made_by_pg_dump(source_url: str, target_url: str) -> None:
    execute(source_url, "CREATE TABLE extra AS SELECT 1 AS a")
    plan = see(source_url, target_url, everything=True)
    assert one(plan, "table-missing").fix.startswith("--exclude extra, or create it: pg_dump --schema-only")
    assert not see(source_url, target_url, everything=True, exclude=("extra",)).refused


# -- rows that are there already --------------------------------------------------------------------


def test_no_fix_empties_the_source_itself(source_url: str) -> None:
    plan = see(source_url, source_url, everything=True)
    assert one(plan, "same-database").severity == "refuse"
    assert not found(plan, "target-has-rows")
    assert "TRUNCATE" not in repr(plan.findings)


def test_swapped_servers_are_told_so_and_nothing_is_to_be_emptied(
    pair: Pair, clone: Clone, source_url: str, target_url: str
) -> None:
    plan = see(clone(pair.old, "bare"), clone(pair.old, "filled"))
    assert [each.code for each in plan.refused] == ["swapped"]
    assert not found(plan, "source-empty")
    assert "TRUNCATE" not in repr(plan.findings)
    assert not see(source_url, target_url).refused


def test_rows_of_an_unfinished_run_are_not_to_be_emptied_but_continued(source_url: str, target_url: str) -> None:
    plan = see(source_url, target_url, everything=True)
    execute(target_url, f'ALTER TABLE "{SPENDLOGS}" ADD CONSTRAINT no CHECK (false)')
    with pytest.raises(errors.Error):
        carry_out(plan, source_url, target_url)
    again = see(source_url, target_url, everything=True)
    finding = one(again, "unfinished-run")
    assert finding.severity == "warn"
    assert "copy --resume" in finding.fix
    assert "mishika-migrate reset" in finding.fix
    assert not found(again, "target-has-rows")
    assert "TRUNCATE" not in repr(again.findings)


# -- who may what -----------------------------------------------------------------------------------


def test_created_views_can_be_read_by_the_owner_of_the_tables(pair: Pair, source_url: str, target_url: str) -> None:
    owner, mover = role(pair.new), role(pair.new)
    tables = ", ".join(f'"{name}"' for name in tables_of(target_url))
    execute(target_url, f'GRANT CREATE ON SCHEMA public TO "{mover}"; GRANT CREATE ON SCHEMA public TO "{owner}"')
    execute(target_url, f'GRANT CREATE ON DATABASE "{ask(target_url, "SELECT current_database()")}" TO "{mover}"')
    for name in tables_of(target_url):
        execute(target_url, f'ALTER TABLE "{name}" OWNER TO "{owner}"')
    execute(
        target_url,
        f'GRANT ALL ON {tables} TO "{mover}"; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO "{mover}"',
        f'REVOKE MAINTAIN ON {tables} FROM "{mover}"',
    )
    plan = see(source_url, as_role(target_url, mover))
    assert not plan.refused
    assert owner in one(plan, "view-owner").message
    note = one(plan, "privilege-to-analyze")
    carry_out(plan, source_url, as_role(target_url, mover))
    with psycopg.connect(as_role(target_url, owner)) as proxy:
        for view in ("MishikaLLM_VerificationTokenView", "MonthlyGlobalSpend"):
            proxy.execute(f'SELECT count(*) FROM "{view}"'.encode())
    assert ask(target_url, "SELECT count(*) FROM pg_stats WHERE tablename = 'MishikaLLM_TeamTable'") == 0
    execute(target_url, note.fix, one(plan, "view-owner").fix)
    after = see(source_url, as_role(target_url, mover))
    assert not found(after, "privilege-to-analyze") + found(after, "view-owner")


def test_grants_say_on_which_server_they_belong(pair: Pair, source_url: str, target_url: str) -> None:
    plan = see(as_role(source_url, role(pair.old)), as_role(target_url, role(pair.new)))
    grants = [each for each in plan.findings if each.fix.startswith("GRANT")]
    assert {each.fix.rpartition("-- ")[2] for each in grants} == {"on the source", "on the target"}
    for each in grants:
        assert each.fix.rpartition("on the ")[2] in each.message


def test_rows_that_the_role_may_not_count_are_unknown_and_not_none(pair: Pair, source_url: str, run: Run) -> None:
    reader = role(pair.old)
    execute(source_url, f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{reader}"')
    execute(source_url, "CREATE TABLE fresh (a int); CREATE TABLE lost AS SELECT 1 AS a")
    url = as_role(source_url, reader)
    execute(source_url, f'REVOKE ALL ON "MishikaLLM_AuditLog" FROM "{reader}"; TRUNCATE "MishikaLLM_AuditLog"')
    rows = {line["table"]: line["rows"] for line in run("tables", "--json", "--source", url).lines()}
    assert (rows["MishikaLLM_AuditLog"], rows["fresh"], rows["lost"]) == (None, None, None)
    shown = run("tables", "--source", url).out
    assert "unknown" in next(line for line in shown.splitlines() if "AuditLog" in line)


def test_plan_calls_unknown_rows_unknown(pair: Pair, source_url: str, target_url: str, run: Run) -> None:
    reader = role(pair.old)
    execute(source_url, f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{reader}"; CREATE TABLE lost (a int)')
    done = run("plan", "--source", as_role(source_url, reader), "--target", target_url)
    assert "unknown" in next(line for line in done.out.splitlines() if "lost" in line and "not in the matrix" in line)
    assert "lost" not in done.out.partition("Empty, so nothing is lost: ")[2].partition("\n")[0]
    assert "lost of the source (an unknown number of rows)" in done.out


# -- only -------------------------------------------------------------------------------------------


def copying(source: str, target: str, *more: str) -> tuple[str, ...]:
    return ("copy", "--yes", "--source", source, "--target", target, *more)


@pytest.mark.soak
def test_history_follows_after_the_keys_while_the_new_server_is_in_use(
    source_url: str, target_url: str, run: Run
) -> None:
    assert run(*copying(source_url, target_url)).status == 0
    execute(target_url, f"UPDATE {TOKEN} SET spend = spend + 1; DELETE FROM {TEAM.replace('Table', 'Membership')}")
    keys = rows_of(target_url, "MishikaLLM_VerificationToken")
    refused = run(*copying(source_url, target_url, "--include-spendlogs"))
    assert refused.status == 4
    assert f"--only {SPENDLOGS}" in refused.err
    assert "from this source has finished there" in refused.err

    (plan,) = run("plan", "--json", "--only", "SpendLogs", "--source", source_url, "--target", target_url).lines()
    assert [chosen["table"] for chosen in plan["chosen"]] == [SPENDLOGS]
    assert not [each for each in plan["findings"] if each["severity"] != "note"]
    done = run(*copying(source_url, target_url, "--only", "spendlogs"))
    assert done.status == 0, done.err
    assert_equal(source_url, target_url, [SPENDLOGS])
    assert len(rows_of(target_url, SPENDLOGS)) == LOGS
    assert rows_of(target_url, "MishikaLLM_VerificationToken") == keys
    assert len(keys) == KEYS
    assert run(*copying(source_url, target_url), env={"MISHIKA_MIGRATE_ONLY": "spendlogs"}).status == 4


def test_only_takes_along_what_the_target_has_no_rows_of(source_url: str, target_url: str) -> None:
    plan = see(source_url, target_url, only=("MishikaLLM_TeamTable",))
    chosen = {each.table for each in plan.chosen}
    assert chosen == {f"MishikaLLM_{name}" for name in ("TeamTable", "OrganizationTable", "BudgetTable", "ModelTable")}
    assert not plan.refused
    carry_out(plan, source_url, target_url)
    later = see(source_url, target_url, only=("VerificationToken",))
    assert {each.table for each in later.chosen} == {"MishikaLLM_VerificationToken"}
    assert subjects(later, "reference-kept") == {"MishikaLLM_BudgetTable", "MishikaLLM_OrganizationTable"}
    assert not found(later, "required-excluded") + found(later, "reference-left-behind") + list(later.refused)
    carry_out(later, source_url, target_url)
    assert_equal(source_url, target_url, ["MishikaLLM_TeamTable", "MishikaLLM_VerificationToken"])


def test_only_goes_with_no_other_choice(source_url: str, target_url: str, run: Run) -> None:
    for other in ("--everything", "--include-usage", "--create-schema", "--include=AuditLog"):
        done = run("plan", "--only", "usage", other, "--source", source_url, "--target", target_url)
        assert done.status == 2
        assert f"only and {other.removeprefix('--').partition('=')[0]} exclude each other" in done.err
    lease = run("plan", "--only", "CronJob", "--source", source_url, "--target", target_url)
    assert (lease.status, "Leave out --only" in lease.err) == (2, True)


@pytest.mark.parametrize("option", ["--include", "--exclude", "--only"])
@pytest.mark.parametrize("value", ["postgresql://u:s3cret@h/db", "u:s3cret@h", "host=h password=s3cret"])
def test_address_in_the_place_of_a_name_is_not_repeated(
    option: str, value: str, source_url: str, target_url: str, run: Run
) -> None:
    done = run("plan", option, value, "--source", source_url, "--target", target_url)
    assert done.status == 2
    assert "there is no table or group of that name" in done.err
    assert "s3cret" not in done.out + done.err
