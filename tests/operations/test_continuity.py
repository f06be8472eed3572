"""A copied pair of the proxy's databases has no fault, and each planted fault is found, once and alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import psycopg
import pytest
from psycopg import sql

from mishika_migrate import errors, model
from mishika_migrate.operations.verifying import continuity
from mishika_migrate.pg import catalog, connect
from tests.fix_faults import ask, locked, wait_until
from tests.fix_servers import Clone, Pair, endpoint
from tests.looking import BUDGET, RULES, TEAM, TOKEN, USER, as_role, carry_out, execute, role, see

MODEL, LOGS = '"MishikaLLM_ModelTable"', '"MishikaLLM_SpendLogs"'
JOURNAL = "_prisma_migrations"
CODES = [
    "columns",
    "indexes",
    "constraints",
    "migrations",
    "obstacles",
    "foreign-keys",
    "soft-references",
    "sequences",
    "views",
]


@pytest.fixture(scope="module")
def copied(pair: Pair) -> Iterator[str]:
    """A template on the new server that holds all of template `filled` of the old one."""
    name = "copied_continuity"
    with psycopg.connect(pair.new.url(), autocommit=True) as session:
        session.execute(sql.SQL("CREATE DATABASE {} TEMPLATE bare").format(sql.Identifier(name)))
    source, target = pair.old.url("filled"), pair.new.url(name)
    carry_out(see(source, target, everything=True), source, target)
    yield name
    with psycopg.connect(pair.new.url(), autocommit=True) as session:
        session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def ends(pair: Pair, clone: Clone, copied: str) -> tuple[str, str]:
    """A source and its copy."""
    return clone(pair.old, "filled"), clone(pair.new, copied)


def inspect(
    source: str,
    target: str,
    *,
    seconds: float = 30.0,
    meanwhile: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> list[model.Check]:
    """All checks, of all tables of the source. `meanwhile` begins after the catalogs have been read."""
    ends: dict[model.Role, model.Endpoint] = {
        "source": endpoint(source, "source"),
        "target": endpoint(target, "target"),
    }
    with ExitStack() as stack:
        sessions = {
            side: stack.enter_context(connect.session(end, name="test", settings={"lock_timeout": "1s"}))
            for side, end in ends.items()
        }
        ours, theirs = (catalog.read(sessions[side], ends[side], migrations=RULES.migrations) for side in ends)
        for session in sessions.values():
            session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        stack.enter_context(meanwhile())
        tables = [table.name for table in ours.tables if table.name != JOURNAL]
        checks = continuity.inspect(RULES, ours, theirs, tables, sessions, view_seconds=seconds)
        for session in sessions.values():
            left = session.execute("SELECT current_setting('search_path'), current_setting('row_security')").fetchone()
            assert left == ("", "off")
    assert [each.code for each in checks] == CODES
    return list(checks)


def faults(checks: list[model.Check]) -> list[tuple[str, str]]:
    """Every problem, and everything that was not checked."""
    return [
        *((each.code, text) for each in checks for text in each.problems),
        *((f"{each.code}?", each.why_not) for each in checks if each.why_not),
    ]


def notes(checks: list[model.Check], code: str) -> str:
    return "\n".join(text for each in checks if each.code == code for text in each.notes)


# -- no false alarm -------------------------------------------------------------------------------


def test_copied_pair_has_no_fault(ends: tuple[str, str]) -> None:
    checks = inspect(*ends)
    assert faults(checks) == []
    looked: Mapping[str, int] = {each.code: each.looked for each in checks}
    assert looked["columns"] > 250
    assert looked["indexes"] > 40
    assert looked["foreign-keys"] == looked["constraints"] > 10
    assert looked["soft-references"] > 8
    assert (looked["sequences"], looked["views"], looked["migrations"]) == (1, 8, 14)


def test_names_order_and_schema_do_not_count(pair: Pair, clone: Clone, ends: tuple[str, str]) -> None:
    source, target = ends
    execute(
        target,
        'ALTER INDEX "MishikaLLM_SpendLogs_startTime_idx" RENAME TO "an (other) ""name"" USING btree (x)"',
        f'ALTER TABLE {TOKEN} RENAME CONSTRAINT "MishikaLLM_VerificationToken_budget_id_fkey" TO other',
        f'ALTER SEQUENCE {MODEL[:-1]}_id_seq" RENAME TO "it\'s another"',
        f"ALTER TABLE {BUDGET} ADD again double precision",
        f"UPDATE {BUDGET} SET again = max_budget",
        f"ALTER TABLE {BUDGET} DROP max_budget; ALTER TABLE {BUDGET} RENAME again TO max_budget",
        'ALTER SCHEMA public RENAME TO "An Other"',
    )
    assert faults(inspect(source, f"{target}{'&' if '?' in target else '?'}schema=An%20Other")) == []


def test_serial_and_identity_are_the_same(ends: tuple[str, str]) -> None:
    source, target = ends
    last = ask(target, f'SELECT last_value FROM {MODEL[:-1]}_id_seq"')
    execute(
        target,
        f'ALTER TABLE {MODEL} ALTER id DROP DEFAULT; DROP SEQUENCE {MODEL[:-1]}_id_seq"',
        f"ALTER TABLE {MODEL} ALTER id ADD GENERATED BY DEFAULT AS IDENTITY (START WITH {last + 1})",
    )
    assert faults(inspect(source, target)) == []


# -- one fault each -------------------------------------------------------------------------------

PLANTED = {
    "index": (
        'DROP INDEX "MishikaLLM_SpendLogs_startTime_idx"',
        "indexes",
        'MishikaLLM_SpendLogs_startTime_idx of MishikaLLM_SpendLogs (index btree ("startTime")) is missing',
    ),
    "invalid index": (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = '\"MishikaLLM_SpendLogs_startTime_idx\"'::regclass",
        "indexes",
        "or not valid there: what it makes fast will be slow",
    ),
    "unique index": (
        'DROP INDEX "MishikaLLM_UserTable_sso_user_id_key"',
        "indexes",
        "duplicates will be accepted",
    ),
    "primary key": (
        f'ALTER TABLE {LOGS} DROP CONSTRAINT "MishikaLLM_SpendLogs_pkey"',
        "indexes",
        "(primary key btree (request_id)) is missing on the target, or not valid there: duplicates will be accepted",
    ),
    "index on other columns": (
        'DROP INDEX "MishikaLLM_SpendLogs_end_user_idx";'
        f' CREATE INDEX "MishikaLLM_SpendLogs_end_user_idx" ON {LOGS} (end_user DESC)',
        "indexes",
        "(index btree (end_user)) is missing",
    ),
    "foreign key": (
        f'ALTER TABLE {TOKEN} DROP CONSTRAINT "MishikaLLM_VerificationToken_budget_id_fkey"',
        "constraints",
        "MishikaLLM_VerificationToken lacks the foreign key (budget_id) to MishikaLLM_BudgetTable (budget_id)",
    ),
    "default": (
        f"ALTER TABLE {TOKEN} ALTER spend SET DEFAULT 1",
        "columns",
        "the default of MishikaLLM_VerificationToken.spend is 0.0 on the source and 1 on the target",
    ),
    "no default": (
        f"ALTER TABLE {TOKEN} ALTER created_at DROP DEFAULT",
        "columns",
        "the default of MishikaLLM_VerificationToken.created_at is CURRENT_TIMESTAMP on the source and none on",
    ),
    "no draw": (
        f"ALTER TABLE {MODEL} ALTER id DROP DEFAULT",
        "columns",
        "is the next of MishikaLLM_ModelTable.id on the source and none on the target",
    ),
    "nullability": (
        f"ALTER TABLE {TEAM} ALTER blocked DROP NOT NULL",
        "columns",
        "MishikaLLM_TeamTable.blocked is NOT NULL on the source, but not on the target, which will accept NULL",
    ),
    "type": (
        f"ALTER TABLE {BUDGET} ALTER tpm_limit TYPE text",
        "columns",
        "MishikaLLM_BudgetTable.tpm_limit is bigint on the source and text on the target: values may not fit",
    ),
    "precision": (
        f"ALTER TABLE {BUDGET} ALTER budget_reset_at TYPE timestamp(0)",
        "columns",
        "is timestamp(3) without time zone on the source and timestamp(0) without time zone on the target",
    ),
    "sequence behind the rows": (
        f"SELECT setval('{MODEL[:-1]}_id_seq\"', (SELECT max(id) FROM {MODEL}), false)",
        "sequences",
        "an insert will fail or repeat a number",
    ),
    "dropped view": (
        'DROP VIEW "MonthlyGlobalSpend"',
        "views",
        "view MonthlyGlobalSpend (Spend of the last 30 days by day; with a budget for the whole proxy, calls fail"
        " without it) is missing on the target; the application creates it only while",
    ),
    "table in the place of a view": (
        'DROP VIEW "MonthlyGlobalSpend"; CREATE TABLE "MonthlyGlobalSpend" (date date, spend float8)',
        "views",
        "is a table on the target",
    ),
    "view of other types": (
        'DROP VIEW "Last30dModelsBySpend"; CREATE VIEW "Last30dModelsBySpend" AS'
        f" SELECT model, sum(spend)::text AS total_spend FROM {LOGS} GROUP BY model",
        "views",
        "view Last30dModelsBySpend has other types on the target: total_spend",
    ),
    "view without a column": (
        'DROP VIEW "Last30dModelsBySpend"; CREATE VIEW "Last30dModelsBySpend" AS'
        f" SELECT sum(spend) AS total_spend FROM {LOGS}",
        "views",
        "view Last30dModelsBySpend lacks model on the target",
    ),
    "broken foreign key": (
        f"SET session_replication_role = replica; UPDATE {TOKEN} SET budget_id = 'gone'"
        f" WHERE token = (SELECT min(token) FROM {TOKEN})",
        "foreign-keys",
        "does not hold on the target: 1 row of MishikaLLM_VerificationToken names no row of MishikaLLM_BudgetTable;"
        " the source has none",
    ),
    "triggers left off": (
        'ALTER TABLE "MishikaLLM_EndUserTable" DISABLE TRIGGER ALL',
        "foreign-keys",
        "is switched off on the target",
    ),
    "other treatment": (
        f'ALTER TABLE {TOKEN} DROP CONSTRAINT "MishikaLLM_VerificationToken_budget_id_fkey",'
        f" ADD CONSTRAINT other FOREIGN KEY (budget_id) REFERENCES {BUDGET} ON DELETE CASCADE ON UPDATE CASCADE",
        "foreign-keys",
        "is ON UPDATE CASCADE ON DELETE SET NULL on the source and ON UPDATE CASCADE ON DELETE CASCADE on the target",
    ),
    "migration": (
        f"DELETE FROM {JOURNAL} WHERE migration_name = (SELECT max(migration_name) FROM {JOURNAL})",
        "migrations",
        "is not done on the target: its schema is older than the source's",
    ),
    "checksum": (
        f"UPDATE {JOURNAL} SET checksum = 'x' WHERE migration_name = (SELECT max(migration_name) FROM {JOURNAL})",
        "migrations",
        "has another content on the target than on the source",
    ),
    "unfinished migration": (
        f"INSERT INTO {JOURNAL} (id, checksum, migration_name) VALUES ('x', 'x', '9_half')",
        "migrations",
        "migration 9_half did not finish on the target",
    ),
}


@pytest.mark.parametrize(
    # Every third one; test_verify plants the most important ones again.
    "fault",
    [fault if not n % 3 else pytest.param(fault, marks=pytest.mark.soak) for n, fault in enumerate(PLANTED)],
)
def test_planted_fault_is_found_and_nothing_else(fault: str, ends: tuple[str, str]) -> None:
    source, target = ends
    statements, code, text = PLANTED[fault]
    execute(target, statements)
    found = faults(inspect(source, target))
    assert [each for each, _ in found] == [code]
    assert text in found[0][1]


def test_unique_constraint_and_check_that_the_target_lost(ends: tuple[str, str]) -> None:
    source, target = ends
    execute(source, f"ALTER TABLE {BUDGET} ADD UNIQUE (created_at, budget_id), ADD CHECK (soft_budget >= 0)")
    found = faults(inspect(source, target))
    assert [code for code, _ in found] == ["indexes", "constraints"]
    assert "(unique constraint btree (created_at, budget_id)) is missing" in found[0][1]
    assert "lacks CHECK ((soft_budget >= (0)::double precision)) on the target" in found[1][1]
    assert faults(inspect(target, source)) == []
    checks = inspect(target, source)
    assert "is on the target only: it may reject writes that the source accepts" in notes(checks, "indexes")
    assert "may reject writes" in notes(checks, "constraints")
    execute(target, f"CREATE UNIQUE INDEX ON {BUDGET} (created_at, budget_id) WITH (fillfactor = 70)")
    execute(target, f"ALTER TABLE {BUDGET} ADD CHECK (soft_budget >= 0) NOT VALID")
    checks = inspect(source, target)
    assert faults(checks) == []
    assert "which is the same rule" in notes(checks, "indexes")


def test_column_of_one_side_is_unchecked_or_a_note(ends: tuple[str, str]) -> None:
    source, target = ends
    execute(source, f"ALTER TABLE {TEAM} ADD lost text UNIQUE")
    checks = inspect(source, target)
    text = "MishikaLLM_TeamTable.lost is on the source only and was not compared"
    assert faults(checks) == [("columns?", text)]
    assert "is on lost, which the target lacks" in notes(checks, "indexes")
    checks = inspect(target, source)
    assert faults(checks) == []
    assert notes(checks, "columns") == "MishikaLLM_TeamTable.lost is on the target only"


def test_wider_type_and_equal_default_are_notes(ends: tuple[str, str]) -> None:
    source, target = ends
    execute(
        target,
        f"ALTER TABLE {BUDGET} ALTER rpm_limit TYPE numeric; ALTER TABLE {TOKEN} ALTER created_at SET DEFAULT now()",
    )
    checks = inspect(source, target)
    assert faults(checks) == []
    assert "rpm_limit is bigint on the source and numeric on the target" in notes(checks, "columns")
    assert "which is the same in other words" in notes(checks, "columns")


# -- foreign keys ---------------------------------------------------------------------------------


def test_break_that_the_source_has_as_well_is_told_with_its_number(ends: tuple[str, str]) -> None:
    for url in ends:
        execute(url, f"SET session_replication_role = replica; UPDATE {TOKEN} SET budget_id = 'gone' WHERE true")
    ((code, text),) = faults(inspect(*ends))
    total = ask(ends[0], f"SELECT count(*) FROM {TOKEN}")
    assert code == "foreign-keys"
    assert f"{total} rows of MishikaLLM_VerificationToken name no row" in text
    assert text.endswith(f"the source has {total} such rows")


def test_key_that_is_not_valid_is_looked_at(ends: tuple[str, str]) -> None:
    source, target = ends
    execute(
        target,
        f'ALTER TABLE {TOKEN} DROP CONSTRAINT "MishikaLLM_VerificationToken_budget_id_fkey"',
        f"ALTER TABLE {TOKEN} ADD CONSTRAINT k FOREIGN KEY (budget_id) REFERENCES {BUDGET}"
        " ON DELETE SET NULL ON UPDATE CASCADE NOT VALID",
    )
    checks = inspect(source, target)
    assert faults(checks) == []
    assert "NOT VALID on the target; its rows were looked at" in notes(checks, "foreign-keys")


# -- soft references ------------------------------------------------------------------------------


def test_reference_that_dangles_on_the_target_only_says_which_limit_disappears(ends: tuple[str, str]) -> None:
    source, target = ends
    team = ask(target, f"SELECT team_id FROM {TOKEN} WHERE team_id IN (SELECT team_id FROM {TEAM}) LIMIT 1")
    execute(target, f"UPDATE {TOKEN} SET team_id = 'gone' WHERE team_id = '{team}'")
    ((code, text),) = faults(inspect(source, target))
    assert code == "soft-references"
    assert "of MishikaLLM_VerificationToken.team_id name" in text
    assert "the team's block, budget, rate limits and model list no longer holds" in text
    execute(source, f"UPDATE {TOKEN} SET team_id = 'gone' WHERE team_id = '{team}'")
    checks = inspect(source, target)
    assert faults(checks) == []
    assert "MishikaLLM_VerificationToken.team_id name" in notes(checks, "soft-references")


# -- sequences ------------------------------------------------------------------------------------


def test_sequence_behind_the_source_would_give_a_number_again(ends: tuple[str, str]) -> None:
    source, target = ends
    execute(source, f"SELECT setval('{MODEL[:-1]}_id_seq\"', 4000)")
    ((code, text),) = faults(inspect(source, target))
    assert code == "sequences"
    assert text.endswith("the source's gives 4001: numbers that the source has given away will be given again")
    execute(target, f"SELECT setval('{MODEL[:-1]}_id_seq\"', 9000, false)")
    assert faults(inspect(source, target)) == []


def test_sequence_that_counts_down_is_behind_above_its_rows(ends: tuple[str, str]) -> None:
    for url in ends:
        execute(
            url,
            "CREATE TABLE down (id bigint PRIMARY KEY); CREATE SEQUENCE s AS bigint INCREMENT -1 OWNED BY down.id",
            "ALTER TABLE down ALTER id SET DEFAULT nextval('s')",
            "INSERT INTO down SELECT nextval('s') FROM generate_series(1, 5)",
        )
    assert faults(inspect(*ends)) == []
    execute(ends[1], "SELECT setval('s', -5, false)")
    ((code, text),) = faults(inspect(*ends))
    assert (code, "gives -5 next on the target, but there are rows up to -5" in text) == ("sequences", True)


def test_sequences_of_no_column_are_compared_by_name(ends: tuple[str, str]) -> None:
    source, target = ends
    for url in ends:
        execute(url, "CREATE SEQUENCE free; CREATE TABLE t (id text DEFAULT nextval('free'), b int)")
        execute(url, "ALTER TABLE t ALTER id DROP DEFAULT")
    execute(source, "SELECT setval('free', 7); CREATE SEQUENCE more; CREATE SEQUENCE owned OWNED BY t.b")
    checks = inspect(source, target)
    assert [text.partition(":")[0] for _, text in faults(checks)] == [
        "sequence free gives 1 next on the target, the source's gives 8",
        "the target has no sequence for t.b",
    ]
    assert notes(checks, "sequences") == "sequence more, which belongs to no column, is on the source only"
    execute(target, "SELECT setval('free', 8, false); ALTER SEQUENCE free INCREMENT -1; CREATE SEQUENCE b OWNED BY t.b")
    assert faults(inspect(source, target)) == []


def test_numbers_kept_as_text_are_not_compared_with_their_sequence(ends: tuple[str, str]) -> None:
    for url in ends:
        execute(url, "CREATE SEQUENCE s; CREATE TABLE t (id text DEFAULT nextval('s')); INSERT INTO t VALUES ('900')")
    assert faults(inspect(*ends)) == []


# -- views ----------------------------------------------------------------------------------------

BROKEN = 'CREATE OR REPLACE VIEW "Last30dModelsBySpend" AS SELECT {} FROM ' + LOGS


def test_view_that_fails_when_it_runs_is_a_problem(ends: tuple[str, str]) -> None:
    source, target = ends
    for url in ends:
        execute(url, BROKEN.format("model, (1 / ascii(substr(model, 1, 0)))::float8 AS total_spend"))
    ((code, text),) = faults(inspect(source, target))
    assert code == "views"
    assert text.startswith("view Last30dModelsBySpend does not answer on the target: ")
    assert text.endswith("division by zero")


def test_view_that_takes_too_long_is_unchecked_and_named(ends: tuple[str, str]) -> None:
    source, target = ends
    for url in ends:
        execute(url, BROKEN.format("model, length(pg_sleep(600)::text)::float8 AS total_spend"))
    ((code, text),) = faults(inspect(source, target, seconds=1))
    assert (code, text) == ("views?", "view Last30dModelsBySpend of the target did not answer within 1 s")


def test_view_of_a_locked_table_waits_no_longer_than_others(ends: tuple[str, str]) -> None:
    for url in ends:
        execute(url, "CREATE TABLE shut (a int); CREATE VIEW w AS SELECT * FROM shut")
    checks = inspect(*ends, seconds=1, meanwhile=lambda: locked(ends[1], "shut", "ACCESS EXCLUSIVE"))
    assert faults(checks) == [("views?", "view w of the target did not answer within 1 s")]


def test_view_with_another_condition_is_a_problem_between_servers_of_one_version(
    pair: Pair, clone: Clone, copied: str
) -> None:
    source, target = clone(pair.new, copied), clone(pair.new, copied)
    execute(target, BROKEN.format("model, sum(spend) AS total_spend") + " GROUP BY model")
    assert faults(inspect(source, target)) == [
        ("views", "view Last30dModelsBySpend is defined otherwise on the target: it will show something else")
    ]


def test_view_of_another_order_is_a_note(pair: Pair, clone: Clone, copied: str) -> None:
    source, target = clone(pair.new, copied), clone(pair.new, copied)
    execute(
        target,
        'DROP VIEW "Last30dModelsBySpend"; CREATE VIEW "Last30dModelsBySpend" AS'
        f' SELECT sum(spend) AS total_spend, model FROM {LOGS} WHERE "startTime" >= current_date'
        " - interval '30 days' AND model <> '' GROUP BY model ORDER BY sum(spend) DESC",
    )
    execute(
        source,
        'DROP VIEW "Last30dModelsBySpend"; CREATE VIEW "Last30dModelsBySpend" AS'
        f' SELECT model, sum(spend) AS total_spend FROM {LOGS} WHERE "startTime" >= current_date'
        " - interval '30 days' AND model <> '' GROUP BY model ORDER BY sum(spend) DESC",
    )
    checks = inspect(source, target)
    assert faults(checks) == []
    assert "its columns in another order" in notes(checks, "views")


# -- what a role may not do -----------------------------------------------------------------------


def test_what_a_role_may_not_read_is_unchecked_by_name(pair: Pair, ends: tuple[str, str]) -> None:
    source, target = ends
    reader = role(pair.new)
    execute(
        target,
        f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{reader}"',
        f'GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO "{reader}"',
    )
    ours = as_role(target, reader)
    assert faults(inspect(source, ours)) == []
    execute(
        target,
        f'REVOKE SELECT ON {BUDGET}, {USER}, {JOURNAL}, "MonthlyGlobalSpend" FROM "{reader}"',
        f'REVOKE SELECT ON SEQUENCE {MODEL[:-1]}_id_seq" FROM "{reader}"',
    )
    found = dict(faults(inspect(source, ours)))
    assert set(found) == {"foreign-keys?", "soft-references?", "sequences?", "views?", "migrations?"}
    assert "permission denied for table MishikaLLM_BudgetTable" in found["foreign-keys?"]
    assert "MishikaLLM_VerificationToken.user_id was not followed to MishikaLLM_UserTable" in found["soft-references?"]
    assert "permission denied for sequence" in found["sequences?"]
    assert "view MonthlyGlobalSpend of the target was not asked" in found["views?"]
    assert f"{JOURNAL} was not compared" in found["migrations?"]


def test_what_a_role_may_not_read_on_the_source_is_unchecked_too(pair: Pair, ends: tuple[str, str]) -> None:
    source, target = ends
    reader = role(pair.old)
    execute(
        source, f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{reader}"', f'REVOKE ALL ON {USER} FROM "{reader}"'
    )
    found = dict(faults(inspect(as_role(source, reader), target)))
    assert set(found) == {"soft-references?", "sequences?"}
    assert "the source does not let it be read" in found["soft-references?"]
    assert "permission denied for sequence" in found["sequences?"]
    execute(target, f"SET session_replication_role = replica; UPDATE {TOKEN} SET budget_id = 'gone'")
    execute(source, f'REVOKE ALL ON {BUDGET} FROM "{reader}"')
    text = dict(faults(inspect(as_role(source, reader), target)))["foreign-keys"]
    assert text.endswith("the source could not be asked")


@pytest.mark.soak
@pytest.mark.parametrize(
    ("table", "unchecked"),
    [
        ("MishikaLLM_TeamTable", {"foreign-keys?", "soft-references?", "views?"}),
        ("MishikaLLM_ModelTable", {"foreign-keys?", "sequences?"}),
    ],
)
def test_locked_table_is_unchecked_by_name(table: str, unchecked: set[str], ends: tuple[str, str]) -> None:
    found = faults(inspect(*ends, meanwhile=lambda: locked(ends[1], table, "ACCESS EXCLUSIVE")))
    assert {code for code, _ in found} == unchecked
    assert all("lock timeout" in text for _, text in found)


def test_view_whose_owner_may_not_read_its_table_is_a_problem(pair: Pair, ends: tuple[str, str]) -> None:
    source, target = ends
    other = role(pair.new)
    execute(target, f'GRANT ALL ON SCHEMA public TO "{other}"; ALTER VIEW "MonthlyGlobalSpend" OWNER TO "{other}"')
    ((code, text),) = faults(inspect(source, target))
    assert (code, "permission denied for table MishikaLLM_SpendLogs" in text) == ("views", True)


@pytest.mark.parametrize("ending", ["pg_terminate_backend", "pg_cancel_backend"])
def test_lost_or_cancelled_session_is_an_error_and_no_check(ending: str, ends: tuple[str, str]) -> None:
    for url in ends:
        execute(url, BROKEN.format("model, length(pg_sleep(600)::text)::float8 AS total_spend"))
    query = f"SELECT {ending}(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"

    @contextmanager
    def ended() -> Iterator[None]:
        thread = threading.Thread(target=lambda: wait_until(lambda: ask(ends[1], query)))
        thread.start()
        yield
        thread.join()

    with pytest.raises(errors.ServerError) as caught:
        inspect(*ends, meanwhile=ended)
    assert "target" in caught.value.message


def test_view_that_neither_side_has_is_missed_all_the_same(ends: tuple[str, str]) -> None:
    for url in ends:
        execute(url, 'DROP VIEW "MonthlyGlobalSpend"')
    ((code, text),) = faults(inspect(*ends))
    assert (code, "is missing on the target and on the source; the application" in text) == ("views", True)
