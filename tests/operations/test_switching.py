"""Following, cutting over and going back, with the real program between two servers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.fix_faults import Start, ask, locked, wait_until
from tests.fix_moves import hold
from tests.fix_program import Ended, Run
from tests.fix_servers import Clone, Pair, assert_equal

TOKENS, LOGS, TEAMS = "MishikaLLM_VerificationToken", "MishikaLLM_SpendLogs", "MishikaLLM_TeamTable"
MODELS = "MishikaLLM_ModelTable"
FENCED = "25006"

Tool = Callable[..., Ended]


@pytest.fixture
def tool(source_url: str, target_url: str, run: Run) -> Tool:
    """`tool("cutover", …)` between source and target, with a yes to every question."""

    def call(*words: str, **more: Any) -> Ended:
        asks = words[0] in ("copy", "cutover", "rollback", "complete") and "--dry-run" not in words
        return run(*words, "--source", source_url, "--target", target_url, *(["--yes"] if asks else []), **more)

    return call


@pytest.fixture
def following(tool: Tool) -> Tool:
    """With a target that follows."""
    done = tool("copy", "--follow", "--include-spendlogs", "--verify")
    assert done.status == 0, done.err
    return tool


def write(url: str, *queries: str) -> None:
    with psycopg.connect(url) as session:
        for query in queries:
            session.execute(query.encode())


def everything(url: str, mark: str) -> None:
    """One of each kind of write, in the tables that the program moves."""
    write(
        url,
        f'UPDATE "{TOKENS}" SET spend = spend + 1',
        f"INSERT INTO \"{TOKENS}\" (token, key_alias) VALUES ('{mark:0>64}', '{mark}')",
        f'DELETE FROM "{TOKENS}" WHERE token = (SELECT max(token) FROM "{TOKENS}")',
        f'UPDATE "{TEAMS}" SET blocked = NOT blocked',
        f'INSERT INTO "{LOGS}" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens,'
        f" \"startTime\", \"endTime\") VALUES ('{mark}', 'acompletion', 'k', 1, 1, 1, 0, now(), now())",
        f"INSERT INTO \"{MODELS}\" (aliases, created_by, updated_by) VALUES ('{{}}', '{mark}', '{mark}')",
    )


def moved(tool: Tool, here: str, there: str) -> None:
    """Waits for the last change, then compares every table that follows."""
    assert tool("follow", "status").status == 0
    tables = [str(name) for name in json.loads(ask(there, "SELECT tables FROM mishika_migrate.follow") or "[]")]
    assert len(tables) > 10
    assert_equal(here, there, tables)


def refused(url: str) -> bool:
    try:
        write(url, f'UPDATE "{TOKENS}" SET spend = spend + 1')
    except psycopg.errors.ReadOnlySqlTransaction as error:
        assert error.sqlstate == FENCED
        return True
    return False


def result(done: Ended, name: str) -> dict[str, Any]:
    (found,) = (line for line in done.lines() if line["event"] == name)
    return found


# -- the whole way --------------------------------------------------------------------------------


def test_whatever_the_source_writes_arrives(following: Tool, source_url: str, target_url: str) -> None:
    everything(source_url, "first")
    moved(following, source_url, target_url)


def test_there_and_back_and_there_again(following: Tool, source_url: str, target_url: str) -> None:
    everything(source_url, "one")
    assert following("cutover", "--on-switch", "true").status == 0
    assert refused(source_url)
    everything(target_url, "two")
    moved(following, source_url, target_url)

    assert following("rollback", "--on-switch", "true").status == 0
    assert refused(target_url)
    everything(source_url, "three")
    moved(following, source_url, target_url)

    assert following("cutover", "--on-switch", "true").status == 0
    assert refused(source_url)
    everything(target_url, "four")
    moved(following, source_url, target_url)

    done = following("complete", "--json")
    assert done.status == 0, done.err
    assert result(done, "complete")["left"] == []
    for url in (source_url, target_url):
        assert ask(url, _LEFT) == 0
        assert not refused(url)


_LEFT = r"""
SELECT (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'mishika%%')
  + (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'mishika%%')
  + (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_proc WHERE proname = 'fence')
  + (SELECT count(*) FROM pg_subscription s JOIN pg_database d ON d.oid = subdbid WHERE datname = current_database())
  + (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())
"""


def test_sync_goes_there_and_back_too(tool: Tool, source_url: str, target_url: str) -> None:
    assert tool("copy", "--include-spendlogs").status == 0
    everything(source_url, "one")
    done = tool("cutover", "--json", "--on-switch", "true")
    assert (done.status, result(done, "cutover")["method"]) == (0, "sync")
    assert refused(source_url)
    assert ask(target_url, f"SELECT count(*) FROM \"{TOKENS}\" WHERE key_alias = 'one'") == 1
    everything(target_url, "two")
    assert tool("rollback", "--on-switch", "true").status == 0
    assert refused(target_url)
    tables = [TOKENS, LOGS, TEAMS, MODELS, "MishikaLLM_UserTable"]
    assert_equal(source_url, target_url, tables)
    everything(source_url, "three")
    assert tool("cutover").status == 0
    assert_equal(source_url, target_url, tables)
    assert tool("complete").status == 0
    assert [ask(url, _LEFT) for url in (source_url, target_url)] == [0, 0]


def test_sequences_go_ahead_of_the_old_side(following: Tool, source_url: str, target_url: str) -> None:
    before = int(ask(source_url, f'SELECT last_value FROM "{MODELS}_id_seq"'))
    assert following("cutover", "--margin", "77").status == 0
    assert ask(target_url, f'SELECT last_value FROM "{MODELS}_id_seq"') == before + 77
    write(target_url, f"INSERT INTO \"{MODELS}\" (aliases, created_by, updated_by) VALUES ('{{}}', 'x', 'x')")
    ahead = int(ask(target_url, f'SELECT last_value FROM "{MODELS}_id_seq"'))
    assert following("rollback", "--margin", "5").status == 0
    assert ask(source_url, f'SELECT last_value FROM "{MODELS}_id_seq"') == ahead + 5


@pytest.mark.parametrize(
    "query",
    [
        f"INSERT INTO \"{MODELS}\" (aliases, created_by, updated_by) VALUES ('{{}}', 'x', 'x')",
        f'UPDATE "{TOKENS}" SET spend = 0',
        f'DELETE FROM "{TOKENS}" WHERE false',
        'TRUNCATE "MishikaLLM_CronJob"',
    ],
)
def test_fence_binds_superusers_whatever_they_say(following: Tool, source_url: str, query: str) -> None:
    assert following("cutover").status == 0
    with psycopg.connect(source_url, autocommit=True) as session:
        session.execute("BEGIN READ WRITE")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction, match="takes no writes: its traffic goes to"):
            session.execute(query.encode())
        session.execute("ROLLBACK")
        assert session.execute(f'SELECT count(*) FROM "{TOKENS}"'.encode()).fetchone() is not None


# -- gates ----------------------------------------------------------------------------------------


def test_dry_run_changes_nothing(following: Tool, source_url: str) -> None:
    done = following("cutover", "--dry-run", "--json")
    found = result(done, "cutover")
    assert (done.status, found["state"]) == (0, "foreseen")
    assert {gate["code"] for gate in found["gates"]} >= {"following", "lag", "proof", "schema", "way-back", "fence"}
    assert [step["name"] for step in found["steps"]] == ["fence", "drain", "proof"]
    assert not refused(source_url)
    assert ask(source_url, "SELECT to_regproc('mishika_migrate.fence') IS NULL")


def test_changed_columns_close_the_gate(following: Tool, source_url: str) -> None:
    write(source_url, f'ALTER TABLE "{TEAMS}" ADD COLUMN novel text')
    done = following("cutover")
    assert (done.status, "have changed since the copy" in done.err) == (7, True)
    assert not refused(source_url)


def test_long_transaction_closes_the_gate(following: Tool, source_url: str) -> None:
    with psycopg.connect(source_url, application_name="report") as session:
        session.execute(f'UPDATE "{TEAMS}" SET spend = spend'.encode())
        age = "SELECT max(clock_timestamp() - xact_start) FROM pg_stat_activity WHERE application_name = 'report'"
        wait_until(lambda: ask(source_url, age).total_seconds() > 5.1)
        done = following("cutover")
    assert (done.status, "report" in done.err) == (7, True)
    assert not refused(source_url)


def test_switch_needs_a_copy(tool: Tool) -> None:
    done = tool("cutover")
    assert (done.status, "nothing has been copied" in done.err) == (4, True)
    done = tool("rollback")
    assert done.status == 4
    assert tool("follow", "status").status == 4
    assert tool("cutover", "--abort").status == 0
    assert tool("complete").status == 0


def test_each_verb_only_after_the_one_before(following: Tool, source_url: str) -> None:
    done = following("rollback")
    assert (done.status, "no cutover to roll back" in done.err) == (4, True)
    assert following("cutover").status == 0
    done = following("cutover")
    assert (done.status, "traffic is on" in done.err) == (4, True)
    assert following("rollback").status == 0
    assert following("rollback").status == 4
    assert not refused(source_url)


@pytest.mark.parametrize("verb", ["copy", "sync"])
def test_nothing_is_written_into_a_target_that_follows(following: Tool, verb: str) -> None:
    more = ("--on-existing", "replace", "--overwrite-live-target") if verb == "copy" else ("--yes",)
    done = following(verb, *more)
    assert (done.status, "follows the source since run" in done.err) == (4, True)


# -- the operator's command -----------------------------------------------------------------------


def test_command_runs_behind_the_fence(following: Tool, source_url: str, tmp_path: Path) -> None:
    done = following(
        "cutover", "--json", "--on-switch", f"psql '{source_url}' -c 'UPDATE \"{TEAMS}\" SET spend = 1' 2>said; true"
    )
    assert done.status == 0, done.err
    assert "takes no writes" in (tmp_path / "said").read_text()


@pytest.mark.parametrize("command", ["exit 3", "sleep 60"])
def test_command_that_fails_is_taken_back(following: Tool, source_url: str, target_url: str, command: str) -> None:
    done = following("cutover", "--on-switch", command, "--timeout", "3s")
    assert (done.status, "accepts writes again" in done.err) == (7, True), done.err
    assert refused(target_url)
    everything(source_url, "after")
    moved(following, source_url, target_url)
    assert following("cutover", "--on-switch", "true").status == 0


# -- what is left over ----------------------------------------------------------------------------


def test_stopped_follower_is_the_loudest_finding(following: Tool, source_url: str) -> None:
    assert following("follow", "stop").status == 0
    slot = "SELECT active FROM pg_replication_slots WHERE database = current_database()"
    wait_until(lambda: ask(source_url, slot) is False)
    done = following("follow", "status")
    assert (done.status, "nobody reads from slot" in done.out) == (7, True)
    assert "fills its disk" in following("plan").out
    assert following("cutover").status == 7
    assert following("follow", "start").status == 0
    wait_until(lambda: ask(source_url, slot) is True)
    assert following("follow", "status").status == 0


def test_lag_gate_of_status(following: Tool) -> None:
    done = following("follow", "status", "--json", "--max-lag", "10s")
    (found,) = done.lines()
    assert (done.status, found["event"], found["subscription"]["working"]) == (0, "following", True)
    assert 0 <= found["delay"] < 10


def test_failed_copy_leaves_no_slot(tool: Tool, source_url: str, target_url: str) -> None:
    write(target_url, "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'")
    write(target_url, f'CREATE TRIGGER no BEFORE INSERT ON "{LOGS}" FOR EACH ROW EXECUTE FUNCTION no()')
    write(target_url, f'ALTER TABLE "{LOGS}" DISABLE TRIGGER no')
    # Preflight sees no trigger that fires; the copy then meets a table without a column.
    write(target_url, f'ALTER TABLE "{LOGS}" ADD CONSTRAINT never CHECK (false) NOT VALID')
    done = tool("copy", "--follow", "--include-spendlogs")
    assert done.status == 5, done.err
    assert ask(source_url, "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == 0
    write(target_url, f'ALTER TABLE "{LOGS}" DROP CONSTRAINT never')
    everything(source_url, "between")
    assert tool("copy", "--resume").status == 0
    everything(source_url, "after")
    moved(tool, source_url, target_url)


def test_copy_that_is_not_the_snapshot_is_not_followed(
    tool: Tool, source_url: str, target_url: str, start: Start
) -> None:
    ends = ("--source", source_url, "--target", target_url)
    with locked(target_url, LOGS):
        program = start("copy", "--follow", "--include-spendlogs", "--verify", *ends, "--yes")
        wait_until(lambda: ask(target_url, f'SELECT count(*) FROM "{TOKENS}"') > 0)
        write(target_url, f'UPDATE "{TOKENS}" SET blocked = NOT coalesce(blocked, false)')
    done = program.ended()
    assert (done.status, "is not what was copied" in done.err) == (3, True), done.err
    assert ask(source_url, "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == 0
    assert ask(source_url, "SELECT count(*) FROM pg_publication") == 0
    assert "follows nothing" in tool("follow", "status").err


def test_history_without_a_proof_is_compared_before_the_fence(tool: Tool, source_url: str, target_url: str) -> None:
    assert tool("copy", "--follow", "--include-spendlogs", "--no-verify").status == 0
    victim = ask(target_url, f'SELECT min(request_id) FROM "{LOGS}"')
    write(target_url, f"UPDATE \"{LOGS}\" SET spend = spend + 1 WHERE request_id = '{victim}'")
    done = tool("cutover")
    assert (done.status, LOGS in done.err) == (7, True), done.err
    assert not refused(source_url)


def test_difference_under_the_fence_lifts_it(following: Tool, source_url: str, target_url: str) -> None:
    write(target_url, f'UPDATE "{TOKENS}" SET blocked = true')
    done = following("cutover")
    assert (done.status, "the fence is lifted, nothing was switched" in done.err) == (7, True), done.err
    assert not refused(source_url)
    assert following("follow", "status").status == 0


# -- by sync --------------------------------------------------------------------------------------


def test_history_that_the_old_side_has_dropped_is_in_nobodys_way(tool: Tool, source_url: str, target_url: str) -> None:
    assert tool("copy", "--include-spendlogs", "--include-usage").status == 0
    for url in (source_url, target_url):
        write(url, f'UPDATE "{TOKENS}" SET spend = 0')
    aged = f'DELETE FROM "{LOGS}" WHERE request_id IN (SELECT request_id FROM "{LOGS}" ORDER BY "startTime" LIMIT 3)'
    write(source_url, aged)
    done = tool("cutover")
    assert done.status == 0, done.err
    write(target_url, aged.replace("LIMIT 3", "LIMIT 9"))
    everything(target_url, "later")
    done = tool("rollback")
    assert done.status == 0, done.err
    assert ask(source_url, f"SELECT count(*) FROM \"{LOGS}\" WHERE request_id LIKE 'later%'") > 0


def begun(url: str) -> bool:
    """Whether the latest switch has passed its gates, and no more."""
    query = "SELECT state = 'begun' FROM mishika_migrate.cutover ORDER BY id DESC LIMIT 1"
    return bool(ask(url, query))


def test_killed_switch_by_sync_is_given_up_or_repeated(
    tool: Tool, source_url: str, target_url: str, start: Start
) -> None:
    assert tool("copy").status == 0
    ends = ("--source", source_url, "--target", target_url, "--yes")
    waits = (
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE 'mishika-migrate/switch%'"
        " AND wait_event_type = 'Lock' AND datname = current_database())"
    )
    for verb in ("abort", "again"):
        with psycopg.connect(source_url) as session:
            program = start("cutover", *ends)
            hold(session, until=lambda: begun(target_url))
            wait_until(lambda: ask(source_url, waits))  # a part of its tables is fenced
            program.kill()
            session.commit()
        done = tool("cutover", "--abort") if verb == "abort" else tool("cutover")
        assert done.status == 0, done.err
        assert refused(source_url) == (verb == "again")
    assert_equal(source_url, target_url, [TOKENS, TEAMS])


# -- tables of other kinds ------------------------------------------------------------------------


def test_table_without_a_key_closes_the_gate_until_the_target_can_be_followed(
    tool: Tool, source_url: str, target_url: str
) -> None:
    for url in (source_url, target_url):
        write(url, "CREATE TABLE notes (a int)")
    write(source_url, "ALTER TABLE notes REPLICA IDENTITY FULL", "INSERT INTO notes VALUES (1)")
    assert tool("copy", "--follow", "--include", "notes").status == 0
    done = tool("cutover")
    assert (done.status, "has no primary key as its replica identity" in done.err) == (7, True), done.err
    assert not refused(source_url)
    write(target_url, "ALTER TABLE notes REPLICA IDENTITY FULL")
    assert tool("cutover").status == 0
    write(target_url, "UPDATE notes SET a = 2")
    wait_until(lambda: ask(source_url, "SELECT a FROM notes") == 2)


def test_columns_that_change_on_the_target_close_the_gate_back(following: Tool, target_url: str) -> None:
    assert following("cutover").status == 0
    write(target_url, f'ALTER TABLE "{TEAMS}" ADD COLUMN more text')
    done = following("rollback")
    assert (done.status, "have changed since the cutover" in done.err) == (7, True), done.err


def test_copy_that_was_killed_before_its_last_word_goes_on(following: Tool, source_url: str, target_url: str) -> None:
    assert following("follow", "stop").status == 0
    write(target_url, "UPDATE mishika_migrate.follow SET ready = false")
    done = following("follow", "status")
    assert (done.status, "`mishika-migrate follow start` lets it go on" in done.err) == (4, True), done.err
    everything(source_url, "meanwhile")
    assert following("follow", "start").status == 0
    moved(following, source_url, target_url)


def test_switch_that_waits_for_enter_needs_a_terminal_before_the_fence(following: Tool, source_url: str) -> None:
    done = following("cutover", "--on-switch", "wait")
    assert (done.status, "there is no terminal to wait on" in done.err) == (2, True), done.err
    assert ask(source_url, "SELECT to_regproc('mishika_migrate.fence') IS NULL")


def test_row_that_is_gone_on_the_source_closes_the_gate_by_sync(tool: Tool, source_url: str, target_url: str) -> None:
    for url in (source_url, target_url):
        write(url, "CREATE TABLE notes (a int PRIMARY KEY)")
    write(source_url, "INSERT INTO notes VALUES (1), (2)")
    assert tool("copy", "--include", "notes").status == 0
    write(source_url, "DELETE FROM notes WHERE a = 1")
    done = tool("cutover")
    assert (done.status, "notes" in done.err, "sync --delete-extra" in done.err) == (7, True, True), done.err
    assert not refused(source_url)
    assert tool("sync", "--delete-extra", "--yes").status == 0
    assert tool("cutover").status == 0


def test_column_that_the_old_side_lacks_closes_the_way_back(following: Tool, source_url: str, target_url: str) -> None:
    write(target_url, f'ALTER TABLE "{TEAMS}" ADD COLUMN more text')
    done = following("cutover")
    assert (done.status, "lacks more" in done.err) == (7, True), done.err
    assert not refused(source_url)
    assert following("cutover", "--no-way-back").status == 0


@pytest.mark.parametrize("alike", [pytest.param(True, marks=pytest.mark.soak), False])
def test_switch_back_is_taken_back_too(alike: bool, following: Tool, source_url: str, target_url: str) -> None:
    if not alike:  # nor need the sides be
        write(target_url, f'ALTER TABLE "{TEAMS}" ALTER COLUMN spend DROP NOT NULL')
        done = following("cutover", "--on-switch", "exit 3")
        assert "accepts writes again, with all that was written meanwhile" in done.err, done.err
    done = following("cutover")
    assert done.status == 0, done.err
    everything(target_url, "there")
    done = following("rollback", "--no-way-back", "--on-switch", "exit 3")
    assert done.status == 7, done.err
    assert "accepts writes again, with all that was written meanwhile" in done.err, done.err
    assert (refused(source_url), refused(target_url)) == (True, False)
    assert following("rollback").status == 0
    assert (refused(source_url), refused(target_url)) == (False, True)


def test_move_whose_source_was_opened_alone_can_be_completed(following: Tool, source_url: str, target_url: str) -> None:
    assert following("cutover").status == 0
    write(target_url, "UPDATE mishika_migrate.cutover SET state = 'switching', finished = NULL")
    assert following("rollback", "--lost", "target", "--yes").status == 0
    for words in (("cutover",), ("rollback",), ("follow", "start")):
        assert following(*words).status == 4
    done = following("complete")
    assert done.status == 0, done.err
    assert not refused(source_url)
    for url in (source_url, target_url):
        assert ask(url, "SELECT count(*) FROM pg_namespace WHERE nspname = 'mishika_migrate'") == 0


def test_another_source_than_that_of_the_move_is_asked_about(
    following: Tool, target_url: str, pair: Pair, clone: Clone, run: Run
) -> None:
    done = run("complete", "--source", clone(pair.old, "filled"), "--target", target_url)
    assert done.status == 2, "there is no terminal to ask on"
    assert "has nothing of this tool, and the ledger knows of " in done.err
    assert "publication mishika_migrate_" in done.err
    assert "is it that server?" in done.err
    assert following("complete").status == 0


def test_source_that_takes_writes_is_not_opened_without_its_target(following: Tool, source_url: str) -> None:
    done = following("rollback", "--lost", "target")
    assert (done.status, "accepts writes already" in done.err) == (4, True), done.err
    assert "warning" not in done.err
    for verb in ("cutover", "rollback"):
        assert following(verb).status == 0
    done = following("rollback", "--lost", "target")
    assert (done.status, "accepts writes already" in done.err) == (4, True), done.err
    assert following("cutover").status == 0, "the move goes on"


def test_what_happens_without_a_command_is_told_when_it_happens(following: Tool, source_url: str) -> None:
    write(source_url, f'ALTER TABLE "{TEAMS}" ADD COLUMN novel text')
    done = following("cutover")
    assert (done.status, "by hand" in done.err) == (7, False), done.err
    write(source_url, f'ALTER TABLE "{TEAMS}" DROP COLUMN novel')
    done = following("cutover")
    assert (done.status, "move traffic by hand now" in done.err) == (0, True), done.err


def test_side_that_keeps_the_changes_is_named(following: Tool) -> None:
    assert "the source keeps every change" in following("follow", "stop").out
    assert following("follow", "start").status == 0
    assert following("cutover").status == 0
    assert "the target keeps every change" in following("follow", "stop").out


def test_rehearsal_says_what_would_be(following: Tool) -> None:
    assert "It would keep everybody from writing for about " in following("cutover", "--dry-run").out


# -- what status says -----------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["fenced", "switching"])
def test_status_tells_a_switch_that_came_to_no_end(state: str, following: Tool, target_url: str) -> None:
    assert following("cutover").status == 0
    write(
        target_url,
        f"UPDATE mishika_migrate.cutover SET state = '{state}', finished = NULL",
        "UPDATE mishika_migrate.follow SET way = 'forward'",  # turned round at its end only
    )
    said = following("status").out
    assert f"has come to no end (it is {state})" in said
    assert ("`mishika-migrate cutover --abort` gives it up" in said) == (state == "fenced")
    assert "follows" not in said
    with psycopg.connect(target_url, application_name="mishika-migrate/switch/watch") as other:
        other.execute(f"SELECT pg_advisory_lock({0x6D69_7368_696B_61})".encode())
        said = following("status").out
    assert f"is under way (it is {state})" in said
    assert said.startswith("Finished: "), "the copy is"


def test_status_tells_where_traffic_is_and_what_follows(following: Tool) -> None:
    assert "The target follows the source" in following("status").out
    assert following("cutover").status == 0
    said = following("status").out
    assert "Traffic is on the target since the cutover of" in said
    assert "The source follows the target" in said
    assert following("rollback", "--no-way-back").status == 0
    said = following("status").out
    assert "Traffic is on the source since the rollback of" in said
    assert "Nothing follows it: `mishika-migrate cutover` goes over again by sync" in said
    assert following("status", "--json").lines()[0]["settled"]["way"] == "back"


def test_status_names_what_continues_a_copy_that_is_to_follow(tool: Tool, target_url: str) -> None:
    write(target_url, f'ALTER TABLE "{LOGS}" ADD CONSTRAINT never CHECK (false) NOT VALID')
    assert tool("copy", "--follow", "--include-spendlogs").status == 5
    assert "is to follow and has not got there: `mishika-migrate copy --resume` continues it" in tool("status").out
    write(target_url, f'ALTER TABLE "{LOGS}" DROP CONSTRAINT never')
    assert tool("copy", "--resume").status == 0
    assert tool("follow", "stop").status == 0
    write(target_url, "UPDATE mishika_migrate.follow SET ready = false")
    assert "has not got there: `mishika-migrate follow start` lets it go on" in tool("status").out


@pytest.mark.parametrize("way_back", [True, False])
def test_status_of_following_refuses_where_nothing_is_to_follow(way_back: bool, following: Tool) -> None:
    assert following("cutover", *([] if way_back else ["--no-way-back"])).status == 0
    done = following("follow", "status", "--max-lag", "10s")
    assert done.status == (0 if way_back else 4), done.err
    assert ("nothing follows it" in done.err) == (not way_back)
