"""`sync` makes the target what the source holds, whatever has happened on the source, and nothing in between."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mishika_migrate import errors, events, matrix, model
from mishika_migrate.operations import look
from mishika_migrate.operations.copying import copy
from mishika_migrate.operations.syncing import sync
from mishika_migrate.pg import catalog, connect
from mishika_migrate.plan import selection
from tests.fix_faults import Start, ask, locked, wait_until
from tests.fix_program import Run
from tests.fix_servers import Clone, Pair, assert_equal, endpoint, rows_of
from tests.looking import as_role, role

RULES = matrix.load()
CORE = [entry.table for entry in RULES.entries if entry.stage == "core" and entry.need != "never"]
LOGS, TOKEN, USER, TEAM = (
    f'"MishikaLLM_{name}"' for name in ("SpendLogs", "VerificationToken", "UserTable", "TeamTable")
)


@pytest.fixture(scope="module")
def copied(pair: Pair) -> Iterator[tuple[str, str]]:
    """Templates of a source and of a target that holds all that it does, with the run in its ledger."""
    for server, name, template in ((pair.old, "sync_old", "filled"), (pair.new, "sync_new", "bare")):
        with psycopg.connect(server.url(), autocommit=True) as session:
            session.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
            session.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
    ends = endpoint(pair.old.url("sync_old"), "source"), endpoint(pair.new.url("sync_new"), "target")
    plan = look.both(RULES, *ends, selection.Wanted(everything=True)).plan
    copy.begin(plan, *ends, options=copy.Options(), emit=lambda event: None, stopping=lambda: 0)
    yield "sync_old", "sync_new"


@pytest.fixture
def source_url(pair: Pair, clone: Clone, copied: tuple[str, str]) -> str:
    # The same server and database history as in the ledger, but another database: see `horizon` below.
    return clone(pair.old, copied[0])


@pytest.fixture
def target_url(pair: Pair, clone: Clone, copied: tuple[str, str]) -> str:
    return clone(pair.new, copied[1])


def passed(source: str, target: str, wanted: selection.Wanted | None = None, **more: object) -> model.Sync:
    """One pass, as the command makes it."""
    ends = endpoint(source, "source"), endpoint(target, "target")
    options = sync.Options(**{"overwrite": True, **more})  # type: ignore[arg-type]
    scene, _ = sync.prepare(RULES, *ends, wanted, options=options)
    return sync.carry_out(scene, *ends, options=options, emit=lambda event: None)


def foreseen(source: str, target: str, **more: object) -> model.Sync:
    ends = endpoint(source, "source"), endpoint(target, "target")
    options = sync.Options(**{"overwrite": True, **more})  # type: ignore[arg-type]
    scene, _ = sync.prepare(RULES, *ends, None, options=options)
    return sync.foresee(scene, *ends, options=options, emit=lambda event: None)


def change(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as session:
        for statement in statements:
            session.execute(statement.encode())


def of(done: model.Sync, table: str) -> model.Synced:
    return next(each for each in done.changes if each.table == f"MishikaLLM_{table}")


# -- any history of a source ----------------------------------------------------------------------

IDS = st.integers(0, 4)
TEXTS = st.sampled_from(["", "a", "b", "Zoë\t\\N", "{}", "null"])

# Each with the numbers of the rows that it is about; one that breaks a key of the source is skipped.
STATEMENTS = [
    "INSERT INTO \"MishikaLLM_BudgetTable\" (budget_id, max_budget, created_by, updated_by)"
    " VALUES ('b{0}', {1}, 'x', 'y')",
    "UPDATE \"MishikaLLM_BudgetTable\" SET max_budget = {1}, updated_at = now() WHERE budget_id = 'b{0}'",
    "UPDATE \"MishikaLLM_BudgetTable\" SET budget_id = 'b{1}' WHERE budget_id = 'b{0}'",
    "DELETE FROM \"MishikaLLM_BudgetTable\" WHERE budget_id = 'b{0}'",
    "INSERT INTO \"MishikaLLM_OrganizationTable\" (organization_id, organization_alias, budget_id, created_by,"
    " updated_by) VALUES ('o{0}', 'alias', 'b{1}', 'x', 'y')",
    "UPDATE \"MishikaLLM_OrganizationTable\" SET budget_id = 'b{1}' WHERE organization_id = 'o{0}'",
    "DELETE FROM \"MishikaLLM_OrganizationTable\" WHERE organization_id = 'o{0}'",
    "INSERT INTO \"MishikaLLM_ModelTable\" (id, aliases, created_by, updated_by)"
    " VALUES (9000 + {0}, '{{\"m\": {1}}}', 'x', 'y')",
    'DELETE FROM "MishikaLLM_ModelTable" WHERE id = 9000 + {0}',
    f"INSERT INTO {TEAM} (team_id, team_alias, models, model_id)"
    " VALUES ('t{0}', 'team', '{{a,b}}', 9000 + {1})",
    f"UPDATE {TEAM} SET model_id = 9000 + {{1}} WHERE team_id = 't{{0}}'",
    f"UPDATE {TEAM} SET model_id = NULL WHERE team_id = 't{{0}}'",
    f"UPDATE {TEAM} SET blocked = NOT blocked, organization_id = 'o{{1}}' WHERE team_id = 't{{0}}'",
    f"UPDATE {TEAM} SET team_id = 't{{1}}' WHERE team_id = 't{{0}}'",
    f"DELETE FROM {TEAM} WHERE team_id = 't{{0}}'",
    f"INSERT INTO {USER} (user_id, sso_user_id, teams) VALUES ('u{{0}}', 'sso{{1}}', '{{{{t1,NULL}}}}')",
    f"UPDATE {USER} SET sso_user_id = NULL WHERE user_id = 'u{{0}}'",
    f"UPDATE {USER} SET sso_user_id = 'sso{{1}}' WHERE user_id = 'u{{0}}'",
    f"DELETE FROM {USER} WHERE user_id = 'u{{0}}'",
    f"INSERT INTO {TOKEN} (token, key_alias, user_id, team_id, budget_id, models)"
    " VALUES (md5('k{0}'), 'key', 'u{1}', 't{0}', 'b{1}', '{{}}')",
    f"UPDATE {TOKEN} SET spend = spend + 0.1, blocked = true, metadata = '{{{{\"n\": {{1}}}}}}'"
    " WHERE token = md5('k{0}')",
    f"UPDATE {TOKEN} SET token = md5('k{{1}}') WHERE token = md5('k{{0}}')",
    f"DELETE FROM {TOKEN} WHERE token = md5('k{{0}}')",
    "INSERT INTO \"MishikaLLM_TeamMembership\" (user_id, team_id, budget_id) VALUES ('u{0}', 't{1}', 'b{0}')",
    "UPDATE \"MishikaLLM_TeamMembership\" SET spend = spend + 1, team_id = 't{1}' WHERE user_id = 'u{0}'",
    "DELETE FROM \"MishikaLLM_TeamMembership\" WHERE user_id = 'u{0}'",
    "INSERT INTO \"MishikaLLM_OrganizationMembership\" (user_id, organization_id) VALUES ('u{0}', 'o{1}')",
    "DELETE FROM \"MishikaLLM_OrganizationMembership\" WHERE organization_id = 'o{1}'",
    "INSERT INTO \"MishikaLLM_CredentialsTable\" (credential_id, credential_name, credential_values, credential_info,"
    " created_by, updated_by) VALUES ('c{0}', 'name{1}', '{{}}', '{{}}', 'x', 'y')",
    "UPDATE \"MishikaLLM_CredentialsTable\" SET credential_name = 'name{1}' WHERE credential_id = 'c{0}'",
    "DELETE FROM \"MishikaLLM_CredentialsTable\" WHERE credential_id = 'c{0}'",
    "INSERT INTO \"MishikaLLM_EndUserTable\" (user_id, budget_id) VALUES ('e{0}', 'b{1}')",
    "DELETE FROM \"MishikaLLM_EndUserTable\" WHERE user_id = 'e{0}'",
    "INSERT INTO \"MishikaLLM_Config\" (param_name, param_value) VALUES ('p{0}', '{{\"a\": {1}}}')",
    "UPDATE \"MishikaLLM_Config\" SET param_value = NULL WHERE param_name = 'p{0}'",
]  # fmt: skip

HAPPENINGS = st.lists(st.tuples(st.sampled_from(STATEMENTS), IDS, IDS), min_size=1, max_size=25)


def happen(url: str, happenings: list[tuple[str, int, int]]) -> None:
    with psycopg.connect(url) as session:
        for statement, one, other in happenings:
            try:
                with session.transaction():
                    session.execute(statement.format(one, other).encode())
            except psycopg.errors.IntegrityError:
                pass  # the source's own keys forbid it
        two = session.execute(
            f"SELECT user_id, sso_user_id FROM {USER} WHERE user_id LIKE 'u_' AND sso_user_id <> '' LIMIT 2".encode()
        ).fetchall()
        if len(two) == 2:  # their unique values change places
            session.execute(f"UPDATE {USER} SET sso_user_id = NULL WHERE user_id LIKE 'u_'".encode())
            for (user, _), (_, value) in zip(two, reversed(two), strict=True):
                session.execute(f"UPDATE {USER} SET sso_user_id = %s WHERE user_id = %s".encode(), [value, user])


def becomes_equal(source: str, target: str, happenings: list[tuple[str, int, int]]) -> None:
    happen(source, happenings)
    passed(source, target, selection.Wanted())
    assert_equal(source, target, CORE)
    assert passed(source, target, selection.Wanted()).total == 0


@given(HAPPENINGS)
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
def test_target_is_what_the_source_holds(
    source_url: str, target_url: str, happenings: list[tuple[str, int, int]]
) -> None:
    becomes_equal(source_url, target_url, happenings)


@pytest.mark.soak
@given(HAPPENINGS)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_target_is_what_the_source_holds_after_much(
    source_url: str, target_url: str, happenings: list[tuple[str, int, int]]
) -> None:
    becomes_equal(source_url, target_url, happenings)


def test_unique_values_that_change_places_arrive(source_url: str, target_url: str) -> None:
    def set_to(url: str, first: str, second: str) -> None:
        change(
            url,
            f"UPDATE {USER} SET sso_user_id = NULL",
            f"UPDATE {USER} SET sso_user_id = '{first}' WHERE user_id = (SELECT min(user_id) FROM {USER})",
            f"UPDATE {USER} SET sso_user_id = '{second}' WHERE user_id = (SELECT max(user_id) FROM {USER})",
        )

    set_to(source_url, "one", "two")
    passed(source_url, target_url)
    set_to(source_url, "two", "one")
    assert of(passed(source_url, target_url), "UserTable").updated == 2
    assert_equal(source_url, target_url, CORE)


def test_name_of_a_removed_row_goes_to_a_new_one(source_url: str, target_url: str) -> None:
    credentials = '"MishikaLLM_CredentialsTable"'
    change(
        source_url,
        f"CREATE TEMP TABLE gone AS SELECT * FROM {credentials} LIMIT 1;"
        f"DELETE FROM {credentials} WHERE credential_id IN (SELECT credential_id FROM gone);"
        "UPDATE gone SET credential_id = 'another';"
        f"INSERT INTO {credentials} SELECT * FROM gone",
    )
    done = of(passed(source_url, target_url), "CredentialsTable")
    assert (done.inserted, done.deleted) == (1, 1)
    assert_equal(source_url, target_url, CORE)


def test_values_that_must_be_there_change_places_too(source_url: str, target_url: str) -> None:
    """No NULL helps: a name, and an integer that is 0."""
    for url in (source_url, target_url):
        change(
            url,
            "CREATE TABLE seats (id int PRIMARY KEY, place int NOT NULL UNIQUE, name text NOT NULL UNIQUE)",
            "INSERT INTO seats VALUES (1, 0, 'a'), (2, -1, 'b'), (3, 5, 'c')",
        )
    change(
        source_url,
        "DELETE FROM seats",
        "INSERT INTO seats VALUES (1, -1, 'b'), (2, 5, 'c'), (3, 0, 'a')",
    )
    wanted = selection.Wanted(include=("seats",))
    scene, _ = sync.prepare(
        RULES, endpoint(source_url, "source"), endpoint(target_url, "target"), wanted, options=sync.Options()
    )
    assert "seats" in {step.target.name for step in (*scene.core, *scene.history)}
    passed(source_url, target_url, wanted, delete_extra=True)
    assert_equal(source_url, target_url, ["seats"])


def test_rows_outside_of_a_partial_index_keep_their_values(source_url: str, target_url: str) -> None:
    for url in (source_url, target_url):
        change(
            url,
            f"CREATE UNIQUE INDEX one_blocked ON {TOKEN} (key_alias) WHERE blocked IS TRUE",
            f"UPDATE {TOKEN} SET key_alias = 'same', blocked = NULL",
        )
    first = f"(SELECT min(token) FROM {TOKEN})"
    change(source_url, f"UPDATE {TOKEN} SET blocked = true WHERE token = {first}")
    assert of(passed(source_url, target_url), "VerificationToken").updated == 1
    change(source_url, f"UPDATE {TOKEN} SET blocked = token <> {first} WHERE token IN ({first}, md5('x'))")
    change(source_url, f"UPDATE {TOKEN} SET blocked = true WHERE token = (SELECT max(token) FROM {TOKEN})")
    assert of(passed(source_url, target_url), "VerificationToken").updated == 2
    assert_equal(source_url, target_url, CORE)


def test_tables_that_reference_each_other_arrive_together(source_url: str, target_url: str) -> None:
    for url in (source_url, target_url):
        change(
            url,
            "CREATE TABLE hens (id int PRIMARY KEY, egg int)",
            "CREATE TABLE eggs (id int PRIMARY KEY, hen int REFERENCES hens DEFERRABLE)",
            "ALTER TABLE hens ADD FOREIGN KEY (egg) REFERENCES eggs DEFERRABLE",
        )
    change(source_url, "BEGIN; SET CONSTRAINTS ALL DEFERRED; INSERT INTO hens VALUES (1, 1);"
                       " INSERT INTO eggs VALUES (1, 1); COMMIT")  # fmt: skip
    passed(source_url, target_url, selection.Wanted(include=("hens", "eggs")))
    assert_equal(source_url, target_url, ["hens", "eggs"])


# -- what only the target has ----------------------------------------------------------------------


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL", "NO ACTION"])
def test_rows_of_tables_that_are_not_synced_do_not_change(
    action: str, source_url: str, target_url: str, run: Run
) -> None:
    gone = f"(SELECT min(team_id) FROM {TEAM})"
    change(
        target_url,
        f"CREATE TABLE notes (team text REFERENCES {TEAM} ON DELETE {action})",
        f"INSERT INTO notes SELECT team_id FROM {TEAM}",
    )
    change(
        source_url,
        f"UPDATE {TOKEN} SET team_id = NULL WHERE team_id = {gone}",
        f"DELETE FROM {TEAM} WHERE team_id = {gone}",
    )
    before = {table: rows_of(target_url, table) for table in [*CORE, "notes"]}
    ends = ("--source", source_url, "--target", target_url)
    if action != "NO ACTION":  # which only the server knows
        done = run("sync", "--dry-run", *ends)
        assert "this will be refused: rows of MishikaLLM_TeamTable on " in done.err
    done = run("sync", "--yes", *ends)
    assert done.status == 4, done.err
    assert "notes" in done.err
    assert "nothing was changed" in done.err
    assert "On the target, remove its rows that reference them, or drop the foreign key." in done.err
    assert {table: rows_of(target_url, table) for table in [*CORE, "notes"]} == before


@pytest.fixture
def mover(pair: Pair, target_url: str) -> str:
    """The target by a role that may do whatever a sync needs there."""
    name, database = role(pair.new), target_url.partition("?")[0].rpartition("/")[2]
    change(
        target_url,
        f'GRANT ALL ON ALL TABLES IN SCHEMA public, mishika_migrate TO "{name}"',
        f'GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO "{name}"',
        f'GRANT ALL ON SCHEMA public, mishika_migrate TO "{name}"',
        f'GRANT CREATE ON DATABASE {database} TO "{name}"',
    )
    return as_role(target_url, name)


def test_role_that_may_not_make_temporary_tables_is_refused_before(
    source_url: str, target_url: str, mover: str
) -> None:
    change(source_url, f"UPDATE {TEAM} SET spend = spend + 1")
    passed(source_url, mover)
    change(target_url, f"REVOKE TEMPORARY ON DATABASE {target_url.partition('?')[0].rpartition('/')[2]} FROM PUBLIC")
    with pytest.raises(errors.Refused) as caught:
        passed(source_url, mover)
    refused = [each.message for each in caught.value.findings if each.severity == "refuse"]
    assert ["may not create temporary tables" in message for message in refused] == [True]


@pytest.mark.parametrize("privilege", ["UPDATE", "DELETE"])
def test_role_that_may_not_change_or_remove_rows_is_refused_before(
    privilege: str, source_url: str, target_url: str, mover: str
) -> None:
    change(target_url, f"REVOKE {privilege} ON {TEAM} FROM PUBLIC, {_named(mover)}")
    with pytest.raises(errors.Refused) as caught:
        passed(source_url, mover)
    (finding,) = [each for each in caught.value.findings if each.severity == "refuse"]
    assert finding.subject == "MishikaLLM_TeamTable"
    assert finding.fix.startswith(f'GRANT {privilege} ON "public"."MishikaLLM_TeamTable" TO ')


def test_role_that_may_not_write_the_ledger_is_told_the_grant(source_url: str, target_url: str, mover: str) -> None:
    change(source_url, f"UPDATE {TEAM} SET spend = spend + 1")
    change(target_url, f"REVOKE INSERT ON mishika_migrate.run FROM {_named(mover)}")
    before = rows_of(target_url, "MishikaLLM_TeamTable")
    with pytest.raises(errors.Denied, match="the ledger") as caught:
        passed(source_url, mover)
    assert "GRANT ALL ON ALL TABLES IN SCHEMA mishika_migrate" in caught.value.hint
    assert rows_of(target_url, "MishikaLLM_TeamTable") == before


def _named(url: str) -> str:
    """The quoted role of such a URL."""
    name = url.partition("://")[2].partition("@")[0].replace("%20", " ")
    return f'"{name}"'


# -- keys -----------------------------------------------------------------------------------------


def test_revoked_key_does_not_survive_and_is_foreseen(source_url: str, target_url: str) -> None:
    change(source_url, f"DELETE FROM {TOKEN} WHERE token IN (SELECT token FROM {TOKEN} ORDER BY token LIMIT 3)")
    before = rows_of(target_url, "MishikaLLM_VerificationToken")
    would = foreseen(source_url, target_url)
    assert rows_of(target_url, "MishikaLLM_VerificationToken") == before
    assert of(would, "VerificationToken").deleted == 3
    assert would.keys is not None and would.keys.count("revived") == 3
    passed(source_url, target_url)
    assert len(rows_of(target_url, "MishikaLLM_VerificationToken")) == len(before) - 3


def test_sync_without_changes_changes_and_transfers_nothing(source_url: str, target_url: str) -> None:
    written = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables WHERE schemaname = 'public'"
    before = ask(target_url, written)
    done = passed(source_url, target_url)
    assert done.total == 0
    assert sum(each.bytes for each in done.changes) == 0
    assert ask(target_url, written) == before


def test_trigger_that_changes_rows_is_noticed_before_the_commit(source_url: str, target_url: str) -> None:
    ends, options = (endpoint(source_url, "source"), endpoint(target_url, "target")), sync.Options(overwrite=True)
    scene, _ = sync.prepare(RULES, *ends, None, options=options)
    change(
        target_url,
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN NEW.spend := NEW.spend + 1; RETURN NEW; END$$",
        f"CREATE TRIGGER meddle BEFORE UPDATE ON {TOKEN} FOR EACH ROW EXECUTE FUNCTION meddle()",
    )
    change(source_url, f"UPDATE {TOKEN} SET blocked = true WHERE token = (SELECT min(token) FROM {TOKEN})")
    before = rows_of(target_url, "MishikaLLM_VerificationToken")
    with pytest.raises(errors.Different, match="nothing was changed"):
        sync.carry_out(scene, *ends, options=options, emit=lambda event: None)
    assert rows_of(target_url, "MishikaLLM_VerificationToken") == before


# -- history --------------------------------------------------------------------------------------

LOG = f"INSERT INTO {LOGS} (request_id, call_type, \"startTime\", \"endTime\") VALUES ('{{}}', 'x', now(), now())"


def test_rows_of_history_that_only_the_target_has_stay_unless_asked(source_url: str, target_url: str) -> None:
    change(target_url, LOG.format("mine"))
    change(source_url, LOG.format("yours"))
    done = of(passed(source_url, target_url), "SpendLogs")
    assert (done.inserted, done.deleted, done.extra) == (1, 0, 1) or done.how == "visibility"
    assert ask(target_url, f"SELECT count(*) FROM {LOGS} WHERE request_id IN ('mine', 'yours')") == 2
    done = of(passed(source_url, target_url, delete_extra=True), "SpendLogs")
    assert (done.how, done.deleted) == ("buckets", 1)
    assert_equal(source_url, target_url, ["MishikaLLM_SpendLogs"])


def test_new_rows_of_history_are_found_by_what_the_last_run_has_seen(source_url: str, target_url: str) -> None:
    first = of(passed(source_url, target_url), "SpendLogs")
    assert first.how == "buckets", "the clone is another database than the one that was copied"
    change(source_url, LOG.format("new"))
    second = of(passed(source_url, target_url), "SpendLogs")
    assert (second.how, second.inserted) == ("visibility", 1)
    assert_equal(source_url, target_url, ["MishikaLLM_SpendLogs"])
    change(source_url, f"CREATE TABLE other AS TABLE {LOGS}", f"TRUNCATE {LOGS}", f"INSERT INTO {LOGS} TABLE other")
    assert of(passed(source_url, target_url), "SpendLogs").how == "buckets", "its file is another one"


def test_rows_that_have_vanished_from_the_target_come_again(source_url: str, target_url: str) -> None:
    passed(source_url, target_url)
    change(target_url, f"DELETE FROM {LOGS} WHERE request_id IN (SELECT request_id FROM {LOGS} LIMIT 3)")
    change(source_url, LOG.format("new"))
    done = of(passed(source_url, target_url), "SpendLogs")
    assert (done.how, done.inserted) == ("buckets", 4)
    assert_equal(source_url, target_url, ["MishikaLLM_SpendLogs"])
    change(target_url, f"TRUNCATE {LOGS}")
    passed(source_url, target_url)
    assert_equal(source_url, target_url, ["MishikaLLM_SpendLogs"])


def test_day_that_both_sides_have_counted_is_named_or_removed(source_url: str, target_url: str) -> None:
    daily = '"MishikaLLM_DailyUserSpend"'
    change(target_url, f"UPDATE {daily} SET id = 'mine' WHERE id = (SELECT min(id) FROM {daily})")
    with pytest.raises(errors.ServerError, match="MishikaLLM_DailyUserSpend") as caught:
        passed(source_url, target_url)
    assert "--delete-extra" in caught.value.hint
    passed(source_url, target_url, delete_extra=True)
    assert_equal(source_url, target_url, ["MishikaLLM_DailyUserSpend"])


def test_live_inserts_next_to_a_sync_neither_fail_nor_get_lost(source_url: str, target_url: str) -> None:
    change(source_url, *(LOG.format(f"source{n}") for n in range(200)))
    ended, failures, written = threading.Event(), [], 0

    def write() -> None:
        nonlocal written
        with psycopg.connect(target_url, autocommit=True) as session:
            while not ended.is_set() or not written:
                try:
                    session.execute(LOG.format(f"live{written}").encode())
                except psycopg.Error as error:
                    failures.append(error)
                    return
                written += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        done = of(passed(source_url, target_url), "SpendLogs")
    finally:
        ended.set()
        writer.join()
    assert not failures
    assert done.inserted == 200
    assert ask(target_url, f"SELECT count(*) FROM {LOGS} WHERE request_id LIKE 'live%%'") == written
    assert ask(target_url, f"SELECT count(*) FROM {LOGS} WHERE request_id LIKE 'source%%'") == 200


# -- all or nothing -------------------------------------------------------------------------------


def test_killed_sync_leaves_the_core_as_it_was(source_url: str, target_url: str, start: Start) -> None:
    change(
        source_url,
        f"UPDATE {TOKEN} SET blocked = true",
        f"DELETE FROM {TEAM} WHERE team_id IN (SELECT team_id FROM {TEAM} LIMIT 5)",
    )
    before = {table: rows_of(target_url, table) for table in CORE}
    waiting = (
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE 'mishika-migrate/%/step/sync/core'"
        " AND wait_event_type = 'Lock')"
    )
    with locked(target_url, "MishikaLLM_TeamTable", "ROW EXCLUSIVE"):
        child = start("sync", "--yes", "--overwrite-live-target", "--source", source_url, "--target", target_url)
        wait_until(lambda: ask(target_url, waiting))
        child.kill()
    wait_until(lambda: not ask(target_url, waiting))
    assert {table: rows_of(target_url, table) for table in CORE} == before
    passed(source_url, target_url)
    assert_equal(source_url, target_url, CORE)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.soak) for n in range(1, 12))])
def test_kill_at_any_instant_leaves_the_old_or_the_new_core(
    seed: int, source_url: str, target_url: str, start: Start
) -> None:
    change(
        source_url,
        f"UPDATE {TOKEN} SET spend = spend + 1",
        f"UPDATE {TEAM} SET blocked = NOT blocked",
        f"DELETE FROM {TOKEN} WHERE token IN (SELECT token FROM {TOKEN} ORDER BY token LIMIT 3)",
        *(LOG.format(f"new{n}") for n in range(20)),
    )
    old = {table: rows_of(target_url, table) for table in CORE}
    new = {table: rows_of(source_url, table) for table in CORE}
    child = start("sync", "--yes", "--overwrite-live-target", "--source", source_url, "--target", target_url)
    statements = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'mishika-migrate/%%/step/sync%%'"
    wait_until(lambda: not child.running or ask(target_url, statements))
    # Instants spread over the second that a pass takes, from its first session on.
    threading.Event().wait(random.Random(seed).random())
    child.kill()
    wait_until(lambda: not ask(target_url, statements))
    assert {table: rows_of(target_url, table) for table in CORE} in (old, new)
    passed(source_url, target_url)
    assert_equal(source_url, target_url, [*CORE, "MishikaLLM_SpendLogs"])


def test_passes_are_repeated_until_ctrl_c(source_url: str, target_url: str, start: Start) -> None:
    child = start(
        "sync", "--yes", "--overwrite-live-target", "--every", "200ms", "--quiet",
        "--source", source_url, "--target", target_url,
    )  # fmt: skip
    wait_until(lambda: "Nothing to do" in child.said())
    change(source_url, f"DELETE FROM {TOKEN} WHERE token = (SELECT min(token) FROM {TOKEN})")
    wait_until(lambda: ": 1 row; VerificationToken -1" in child.said())
    wait_until(lambda: child.said().rstrip().endswith(": nothing to do"))
    child.signal(signal.SIGINT)
    done = child.ended()
    assert done.status == 130, done.err
    assert "every table is as it was or in sync" in done.err
    assert_equal(source_url, target_url, CORE)
    passes = ask(target_url, "SELECT count(*) FROM mishika_migrate.run WHERE tool LIKE '%%sync'")
    assert passes in (1, 2), "a pass takes the place of the former one"


def test_repeated_passes_survive_a_lost_connection(pair: Pair, source_url: str, target_url: str, start: Start) -> None:
    child = start(
        "sync", "--yes", "--overwrite-live-target", "--every", "200ms",
        "--source", source_url, "--target", target_url,
    )  # fmt: skip
    wait_until(lambda: "pass 2, " in child.said())
    name = target_url.partition("?")[0].rpartition("/")[2]
    change(
        pair.new.url(),
        f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
    )
    wait_until(lambda: child.said().count("trying again in 0.2 s") > 1)
    change(source_url, f"DELETE FROM {TOKEN} WHERE token = (SELECT min(token) FROM {TOKEN})")
    change(pair.new.url(), f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    wait_until(lambda: ": 1 row; VerificationToken -1" in child.said())
    child.signal(signal.SIGTERM)
    assert child.ended().status == 143
    assert_equal(source_url, target_url, CORE)


def test_repeated_passes_end_when_the_target_comes_into_use(source_url: str, target_url: str, start: Start) -> None:
    child = start("sync", "--yes", "--every", "200ms", "--quiet", "--source", source_url, "--target", target_url)
    wait_until(lambda: "pass 2, " in child.said())
    change(target_url, f"UPDATE {TOKEN} SET spend = spend + 1")
    done = child.ended()
    assert done.status == 4, done.err
    assert "looks as if it were in use" in done.err


def test_first_pass_that_fails_is_not_repeated(source_url: str, target_url: str, run: Run) -> None:
    nowhere = target_url.replace("/t", "/no_such_t", 1)
    done = run("sync", "--yes", "--every", "1s", "--source", source_url, "--target", nowhere)
    assert done.status == 6, done.err


def test_lock_that_is_not_had_in_time_says_what_is_true(source_url: str, target_url: str, run: Run) -> None:
    ends = ("--source", source_url, "--target", target_url)
    with locked(target_url, "MishikaLLM_TeamTable", "ROW EXCLUSIVE"):
        done = run("sync", "--yes", "--overwrite-live-target", "--lock-timeout", "100ms", *ends)
    assert done.status == 6
    assert "the lock on the core tables: " in done.err
    assert "Every table is as it was or in sync" in done.err


def test_reader_never_sees_a_part_of_it(source_url: str, target_url: str) -> None:
    """One statement moves every key to another team: a reader sees the old teams or the new ones."""
    change(source_url, f"UPDATE {TEAM} SET spend = 77", f"UPDATE {TOKEN} SET spend = 77")
    ended, seen = threading.Event(), set()
    query = "SELECT " + ", ".join(f"(SELECT bool_and(spend = 77) FROM {table})" for table in (TEAM, TOKEN))

    def read() -> None:
        with psycopg.connect(target_url, autocommit=True) as session:
            while not ended.is_set():
                seen.add(session.execute(query.encode()).fetchone())

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: seen)
    passed(source_url, target_url)
    wait_until(lambda: (True, True) in seen)
    ended.set()
    reader.join()
    assert seen == {(False, False), (True, True)}


def test_two_at_once_are_kept_apart(source_url: str, target_url: str, run: Run) -> None:
    with psycopg.connect(target_url, autocommit=True) as session:
        from mishika_migrate.pg import ledger

        ledger.lock(session, endpoint(target_url, "target"))
        done = run("sync", "--yes", "--overwrite-live-target", "--source", source_url, "--target", target_url)
    assert done.status == 4
    assert "another run is working" in done.err


def test_unfinished_run_is_refused(source_url: str, target_url: str) -> None:
    change(target_url, "UPDATE mishika_migrate.run SET state = 'stopped'")
    with pytest.raises(errors.Refused, match="is unfinished"):
        passed(source_url, target_url)


def test_views_that_no_copy_has_made_are_a_note(pair: Pair, clone: Clone, source_url: str) -> None:
    ends = endpoint(source_url, "source"), endpoint(clone(pair.new, "bare"), "target")
    _, (note,) = sync.prepare(RULES, *ends, None, options=sync.Options())
    assert note.startswith("the target lacks views of the source, which sync does not create, but copy does: ")
    assert "MishikaLLM_VerificationTokenView" in note


def test_swapped_servers_are_refused(pair: Pair, clone: Clone, target_url: str) -> None:
    empty = clone(pair.old, "bare")
    with pytest.raises(errors.Refused, match="swapped"):
        passed(empty, target_url)


# -- the command ----------------------------------------------------------------------------------


def test_command_shows_first_and_does_then(source_url: str, target_url: str, run: Run) -> None:
    change(source_url, f"DELETE FROM {TOKEN} WHERE token = (SELECT min(token) FROM {TOKEN})")
    ends = ("--source", source_url, "--target", target_url)
    done = run("sync", "--dry-run", *ends)
    assert done.status == 0, done.err
    assert done.out.startswith("Would change 1 row of ")
    assert "1 key revoked on the source is still alive on the target" in done.out
    assert run("sync", *ends).status == 2, "nobody to ask"
    done = run("sync", "--yes", *ends)
    assert done.status == 0, done.err
    assert done.out.startswith("Done: 1 row changed")
    done = run("sync", "--yes", "--json", *ends)
    assert done.lines()[-1]["total"] == 0
    assert run("verify", *ends, "--allow-unchecked", "decryption").status == 0


def test_what_would_change_is_shown_of_a_target_in_use_too(source_url: str, target_url: str, run: Run) -> None:
    change(target_url, f"UPDATE {TOKEN} SET spend = spend + 1 WHERE token = (SELECT min(token) FROM {TOKEN})")
    ends = ("--source", source_url, "--target", target_url)
    done = run("sync", "--dry-run", *ends)
    assert done.status == 0, done.err
    assert done.out.startswith("Would change 1 row of ")
    assert "the target looks as if it were in use: 1 row of MishikaLLM_VerificationToken is ahead" in done.err
    assert run("sync", "--yes", *ends).status == 4


def test_page_says_what_was_compared(source_url: str, target_url: str, run: Run) -> None:
    ends = ("--source", source_url, "--target", target_url)
    assert "tables are the same on both sides" in run("sync", "--yes", *ends).out, "all by hashes: see `horizon`"
    done = run("sync", "--yes", *ends)
    assert "Nothing to do: nothing has changed in " in done.out
    assert "MishikaLLM_SpendLogs" in done.out
    assert "by what the last run has seen of the source" in done.out
    change(target_url, LOG.format("mine"))
    would = run("sync", "--dry-run", *ends)
    assert "hold all that the source does; 1 row only the target has" in would.out


def test_both_catalogs_are_read_once(source_url: str, target_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = catalog.read, list[str]()

    def counted(session: connect.Session, end: model.Endpoint, **more: str | None) -> model.Catalog:
        seen.append(end.role)
        return read(session, end, **more)

    monkeypatch.setattr(catalog, "read", counted)
    sync.prepare(RULES, endpoint(source_url, "source"), endpoint(target_url, "target"), None, options=sync.Options())
    assert sorted(seen) == ["source", "target"]


def test_what_is_done_is_told_by_events(source_url: str, target_url: str) -> None:
    change(source_url, LOG.format("told"))
    told: list[events.Event] = []
    ends = endpoint(source_url, "source"), endpoint(target_url, "target")
    options = sync.Options(overwrite=True)
    scene, _ = sync.prepare(RULES, *ends, None, options=options)
    sync.carry_out(scene, *ends, options=options, emit=told.append)
    changes = [event.change for event in told if isinstance(event, events.TableSynced)]
    assert len(changes) == len(scene.core) + len(scene.history)
    assert [each.table for each in changes if each.changes] == ["MishikaLLM_SpendLogs"]
