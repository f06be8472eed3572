"""Targets that hold rows already: replaced, kept or brought up to date, and what is told beforehand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from mishika_migrate import errors, model
from mishika_migrate.operations import look
from mishika_migrate.plan import selection
from tests.fix_faults import LOGS, STEP, Start, ask, backends, blocked, landed, locked, wait_until
from tests.fix_program import Ended, Run
from tests.fix_servers import Clone, Pair, assert_equal, endpoint, rows_of, tables_of
from tests.looking import RULES, as_role, carry_out, execute, found, mend, one, role, see, subjects

BUDGET, TEAM, USER, KEYS, INVITATION = (
    f"MishikaLLM_{name}" for name in ("BudgetTable", "TeamTable", "UserTable", "VerificationToken", "InvitationLink")
)
USAGE = "MishikaLLM_DailyUserSpend"
LEFT = {"MishikaLLM_CronJob", "_prisma_migrations"}


def copied(source: str) -> list[str]:
    return [table for table in tables_of(source) if table not in LEFT]


def command(source: str, target: str, *more: str) -> tuple[str, ...]:
    return ("copy", "--yes", "--json", "--source", source, "--target", target, *more)


@pytest.fixture
def filled(source_url: str, target_url: str, run: Run) -> str:
    """The target after a copy of everything; the source has the same rows."""
    done = run(*command(source_url, target_url, "--everything"))
    assert done.status == 0, done.err
    execute(target_url, "DROP SCHEMA mishika_migrate CASCADE")
    return target_url


def change(source: str, target: str) -> None:
    """The source has a new, a changed and one row less; the target has a budget and a log of its own."""
    execute(
        source,
        f"""INSERT INTO "{BUDGET}" (budget_id, created_by, updated_by) VALUES ('new', 'x', 'x')""",
        f"""UPDATE "{BUDGET}" SET max_budget = 4711 WHERE budget_id = {first(source, BUDGET, "budget_id")}""",
        f"""UPDATE "{LOGS}" SET spend = spend + 1 WHERE request_id = {first(source, LOGS, "request_id")}""",
        another_log("new"),
    )
    execute(
        target,
        f"""INSERT INTO "{BUDGET}" (budget_id, created_by, updated_by) VALUES ('own', 'x', 'x')""",
        another_log("own"),
    )


def another_log(name: str) -> str:
    return f"""INSERT INTO "{LOGS}" SELECT (jsonb_populate_record(l, '{{"request_id": "{name}"}}')).*
               FROM "{LOGS}" l LIMIT 1"""


def first(url: str, table: str, column: str) -> str:
    """As an SQL literal."""
    return "'" + str(ask(url, f'SELECT min("{column}") FROM "{table}"')).replace("'", "''") + "'"


def effects(source: str, target: str, **wanted: object) -> dict[str, tuple[str, int, int, int, int]]:
    ends = endpoint(source, "source"), endpoint(target, "target")
    asked = selection.Wanted(**wanted)  # type: ignore[arg-type]
    seen = look.both(RULES, *ends, asked, counting=True).effects
    return {each.table: (each.existing, each.insert, each.update, each.leave, each.delete) for each in seen}


# -- what is there in the end ---------------------------------------------------------------------


def test_update_brings_every_row_of_the_source_and_keeps_the_targets_own(
    source_url: str, filled: str, run: Run
) -> None:
    change(source_url, filled)
    done = run(*command(source_url, filled, "--everything", "--on-existing", "update", "--overwrite-live-target"))
    assert done.status == 0, done.err
    execute(
        filled, f"""DELETE FROM "{BUDGET}" WHERE budget_id = 'own'; DELETE FROM "{LOGS}" WHERE request_id = 'own'"""
    )
    assert_equal(source_url, filled, copied(source_url))


def test_skip_brings_new_rows_and_leaves_all_others(source_url: str, filled: str, run: Run) -> None:
    change(source_url, filled)
    before = {table: set(rows_of(filled, table)) for table in copied(source_url)}
    done = run(*command(source_url, filled, "--everything", "--on-existing", "skip"))
    assert done.status == 0, done.err
    for table in copied(source_url):
        assert before[table] <= set(rows_of(filled, table)), table
        assert len(rows_of(filled, table)) - len(before[table]) == (table in (BUDGET, LOGS)), table


def test_replace_leaves_nothing_of_what_was_there(source_url: str, filled: str, run: Run) -> None:
    change(source_url, filled)
    done = run(*command(source_url, filled, "--everything", "--on-existing", "replace", "--overwrite-live-target"))
    assert done.status == 0, done.err
    assert_equal(source_url, filled, copied(source_url))


def test_each_table_has_its_own_way_and_the_others_are_refused(source_url: str, filled: str, run: Run) -> None:
    change(source_url, filled)
    spent = f"""SELECT spend::text FROM "{LOGS}" WHERE request_id = {first(source_url, LOGS, "request_id")}"""
    before = ask(filled, spent)
    ways = ("--on-existing", "spendlogs=skip", "--on-existing", "BudgetTable=update", "--overwrite-live-target")
    refused = run(*command(source_url, filled, "--only", LOGS, "--only", BUDGET, "--only", TEAM, *ways))
    assert (refused.status, TEAM in refused.err) == (4, True)
    done = run(*command(source_url, filled, "--only", LOGS, "--only", BUDGET, *ways))
    assert done.status == 0, done.err
    assert ask(filled, spent) == before != ask(source_url, spent)
    assert set(rows_of(source_url, BUDGET)) < set(rows_of(filled, BUDGET))


def test_rows_out_are_those_that_arrived_whatever_became_of_them(source_url: str, filled: str, run: Run) -> None:
    done = run(*command(source_url, filled, "--only", LOGS, "--on-existing", "skip"))
    (account,) = next(line["accounts"] for line in done.lines() if line["event"] == "run_finished")
    many = len(rows_of(source_url, LOGS))
    assert (account["rows_out"], account["rows_in"], account["rows_ledger"]) == (many, many, many)


WIDE = """
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TABLE "we""ird" (
  a int GENERATED ALWAYS AS IDENTITY, "b" text, j json, n numeric, f float8, m mood, t text[], d timestamp,
  g int GENERATED ALWAYS AS (length(b)) STORED, PRIMARY KEY (a, "b")
)
"""


def test_really_distinct_rows_alone_are_written(pair: Pair, clone: Clone, run: Run) -> None:
    source, target = clone(pair.old, "template0"), clone(pair.new, "template0")
    values = """OVERRIDING SYSTEM VALUE VALUES
      (1, 'same', '{"a": 1}', 1.0, 'NaN', 'good', '{x,NULL}', 'infinity'),
      (2, 'null', NULL, NULL, NULL, NULL, NULL, NULL)"""
    execute(source, WIDE, f'INSERT INTO "we""ird" (a, b, j, n, f, m, t, d) {values}')
    execute(target, WIDE, f'INSERT INTO "we""ird" (a, b, j, n, f, m, t, d) {values}')
    execute(
        source,
        """INSERT INTO "we""ird" (a, b, j, n, f) OVERRIDING SYSTEM VALUE
           VALUES (3, 'json', '{"a":  1}', 1.00, '-0'), (4, 'new', NULL, 1, 1)""",
    )
    execute(
        target,
        """INSERT INTO "we""ird" (a, b, j, n, f) OVERRIDING SYSTEM VALUE
           VALUES (3, 'json', '{"a": 1}', 1.0, '0'), (5, 'own', NULL, 1, 1)""",
    )
    before = versions(target)
    done = run(*command(source, target, "--only", 'we"ird', "--on-existing", "update", "--overwrite-live-target"))
    assert done.status == 0, done.err
    after = versions(target)
    assert {a for a in before if before[a] == after[a]} == {1, 2, 5}
    assert set(after) == {1, 2, 3, 4, 5}
    assert set(rows_of(source, 'we"ird')) < set(rows_of(target, 'we"ird'))


def versions(url: str) -> dict[int, str]:
    with psycopg.connect(url) as session:
        return dict(session.execute('SELECT a, ctid::text FROM "we""ird"').fetchall())


# -- what stands in the way -----------------------------------------------------------------------


def test_unique_values_under_another_key_are_found_before_anything_is_written(
    source_url: str, filled: str, run: Run
) -> None:
    token = "a" * 64
    execute(
        source_url,
        f"""UPDATE "{USER}" SET sso_user_id = 'sso of two' WHERE user_id = {first(source_url, USER, "user_id")}""",
        f"""UPDATE "{USAGE}" SET api_key = '{token}' WHERE id = {first(source_url, USAGE, "id")}""",
    )
    execute(
        filled,
        f"""INSERT INTO "{USER}" (user_id, sso_user_id) VALUES ('another', 'sso of two'), ('b', NULL)""",
        f"""UPDATE "{USAGE}" SET id = 'another', api_key = '{token}' WHERE id = {first(filled, USAGE, "id")}""",
    )
    before = {table: rows_of(filled, table) for table in (USER, USAGE)}
    done = run(*command(source_url, filled, "--everything", "--on-existing", "update", "--overwrite-live-target"))
    assert done.status == 4
    error = done.lines()[-1]
    told = {each["subject"]: each["message"] for each in error["findings"] if each["code"] == "unique-collision"}
    assert set(told) == {f"{USER}.sso_user_id", next(each for each in told if each.startswith(USAGE))}
    assert "1 row" in told[f"{USER}.sso_user_id"]
    assert "sso of two" in told[f"{USER}.sso_user_id"]
    assert token not in done.out + done.err
    assert before == {table: rows_of(filled, table) for table in before}


def test_row_that_is_skipped_collides_with_nothing(source_url: str, filled: str) -> None:
    execute(
        source_url, f"""UPDATE "{USER}" SET sso_user_id = 'x' WHERE user_id = {first(source_url, USER, "user_id")}"""
    )
    execute(filled, f"""INSERT INTO "{USER}" (user_id, sso_user_id) VALUES ('another', 'x')""")
    assert not found(see(source_url, filled, existing=(("", "skip"),)), "unique-collision")
    assert subjects(see(source_url, filled, existing=(("", "update"),)), "unique-collision") == {f"{USER}.sso_user_id"}


def test_nulls_collide_where_the_index_says_that_they_are_not_distinct(pair: Pair, clone: Clone) -> None:
    source, target = clone(pair.old, "template0"), clone(pair.new, "template0")
    made = "CREATE TABLE t (id int PRIMARY KEY, a int, b int, UNIQUE (a), UNIQUE NULLS NOT DISTINCT (b))"
    execute(source, made, "INSERT INTO t VALUES (1, NULL, 1), (2, NULL, NULL)")
    execute(target, made, "INSERT INTO t VALUES (3, NULL, 7), (4, NULL, NULL)")
    collision = one(see(source, target, only=("t",), existing=(("", "skip"),)), "unique-collision")
    assert collision.subject == "t.b"
    execute(target, "DELETE FROM t WHERE id = 4")
    assert not see(source, target, only=("t",), existing=(("", "skip"),)).refused


def test_indexes_that_nobody_looked_at_are_named_and_no_key_is_a_refusal(pair: Pair, clone: Clone) -> None:
    source, target = clone(pair.old, "template0"), clone(pair.new, "template0")
    made = "CREATE TABLE t (id int, a text, b int, UNIQUE (b)); CREATE UNIQUE INDEX part ON t (a) WHERE b > 1"
    for url in (source, target):
        execute(url, made, "CREATE UNIQUE INDEX expression ON t (lower(a))", "INSERT INTO t VALUES (1, 'x', 1)")
    plan = see(source, target, only=("t",), existing=(("t", "update"),))
    assert [finding.code for finding in plan.refused] == ["no-key"]
    for url in (source, target):
        execute(url, "ALTER TABLE t ADD PRIMARY KEY (id)")
    plan = see(source, target, only=("t",), existing=(("t", "update"),))
    assert not plan.refused
    assert "expression, part" in one(plan, "collisions-unlooked").message


def test_truncate_goes_no_further_than_what_was_asked_for(source_url: str, filled: str, run: Run) -> None:
    ways = ("--on-existing", "replace", "--on-existing", f"{INVITATION}=refuse", "--overwrite-live-target")
    before = {table: rows_of(filled, table) for table in (USER, INVITATION)}
    done = run(*command(source_url, filled, "--exclude", INVITATION, *ways))
    assert done.status == 4
    (finding,) = [each for each in done.lines()[-1]["findings"] if each["severity"] == "refuse"]
    assert (finding["code"], finding["subject"]) == ("replace-referenced", INVITATION)
    assert f"about {len(before[INVITATION])} rows" in finding["message"]
    assert before == {table: rows_of(filled, table) for table in before}


def test_table_that_only_the_target_has_keeps_a_referenced_one(source_url: str, filled: str) -> None:
    execute(
        filled,
        f'CREATE TABLE notes (who text REFERENCES "{USER}")',
        f'INSERT INTO notes SELECT user_id FROM "{USER}"',
    )
    fix = one(see(source_url, filled, existing=(("", "replace"),)), "replace-referenced").fix
    assert 'TRUNCATE "public"."notes"; -- the source has no such table' in fix
    assert "--include" not in fix


def test_empty_tables_that_reference_a_replaced_one_do_not_stand_in_the_way(source_url: str, filled: str) -> None:
    for url in (source_url, filled):
        execute(url, f'DELETE FROM "{INVITATION}"')
    plan = see(source_url, filled, existing=(("", "replace"),))
    (step,) = [step for step in plan.steps if isinstance(step, model.Empty)]
    assert [table.name for table in step.idle] == [INVITATION]
    change(source_url, filled)
    carry_out(plan, source_url, filled)
    assert_equal(source_url, filled, [BUDGET, USER, KEYS])


def test_idle_table_that_has_rows_by_now_is_not_emptied(source_url: str, filled: str) -> None:
    for url in (source_url, filled):
        execute(url, f'CREATE TABLE saved AS TABLE "{INVITATION}"; DELETE FROM "{INVITATION}"')
    plan = see(source_url, filled, existing=(("", "replace"),))
    execute(filled, f'INSERT INTO "{INVITATION}" TABLE saved')
    before = {table: rows_of(filled, table) for table in (USER, INVITATION)}
    with pytest.raises(errors.Refused, match="was empty when the plan was made"):
        carry_out(plan, source_url, filled)
    assert before == {table: rows_of(filled, table) for table in before}


def test_rows_of_an_inheriting_table_are_not_truncated(pair: Pair, clone: Clone) -> None:
    source, target = clone(pair.old, "template0"), clone(pair.new, "template0")
    for url in (source, target):
        execute(url, "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE heir () INHERITS (t)")
        execute(url, "INSERT INTO t VALUES (1); INSERT INTO heir VALUES (2)")
    carry_out(see(source, target, only=("t",), existing=(("t", "replace"),)), source, target)
    assert rows_of(target, "heir") == ["(2)"]


def test_privileges_that_merging_and_replacing_need_are_granted_by_the_fixes(
    pair: Pair, source_url: str, filled: str
) -> None:
    writer = role(pair.new)
    database = ask(filled, "SELECT current_database()")
    execute(
        filled,
        f'GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO "{writer}"',
        f'GRANT USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA public TO "{writer}"',
        f'GRANT CREATE ON DATABASE {database} TO "{writer}"; REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC',
    )
    theirs = as_role(filled, writer)
    wanted = {"only": (BUDGET, LOGS), "existing": ((BUDGET, "update"), (LOGS, "replace"))}
    before = see(source_url, theirs, **wanted)
    messages = {finding.message for finding in before.refused}
    assert f"{writer} lacks UPDATE on {BUDGET} of the target" in messages
    assert f"{writer} lacks TRUNCATE on {LOGS} of the target, which replacing rows needs" in messages
    assert f"{writer} may not create temporary tables on the target, which merging rows needs" in messages
    mend(before, source_url, filled, "privilege")
    after = see(source_url, theirs, **wanted)
    assert not after.refused
    carry_out(after, source_url, theirs)


def test_part_of_a_table_does_not_replace_all_of_it(source_url: str, filled: str, run: Run) -> None:
    done = run(*command(source_url, filled, "--only", LOGS, "--spendlogs-last", "1d", "--on-existing", "replace"))
    assert (done.status, "only a part of the table is asked for" in done.err) == (4, True)


# -- what is told beforehand ----------------------------------------------------------------------


def test_effects_are_what_then_happens(source_url: str, filled: str, run: Run) -> None:
    change(source_url, filled)
    budgets, logs = len(rows_of(filled, BUDGET)), len(rows_of(filled, LOGS))
    asked = {"only": (BUDGET, LOGS)}
    assert effects(source_url, filled, **asked) == {}
    assert effects(source_url, filled, **asked, existing=((BUDGET, "update"), (LOGS, "skip"))) == {
        BUDGET: ("update", 1, 1, budgets - 1, 0),
        LOGS: ("skip", 1, 0, logs, 0),
    }
    assert effects(source_url, filled, **asked, existing=((LOGS, "replace"), (BUDGET, "skip"))) == {
        BUDGET: ("skip", 1, 0, budgets, 0),
        LOGS: ("replace", logs, 0, 0, logs),
    }
    ways = ("--only", BUDGET, "--on-existing", "update")
    told = run(*command(source_url, filled, "--dry-run", *ways)).lines()[-1]
    assert told["effects"] == [
        {"table": BUDGET, "existing": "update", "insert": 1, "update": 1, "leave": budgets - 1, "delete": 0}
    ]
    page = run("plan", "--source", source_url, "--target", filled, *ways)
    assert "Rows on the target: what the copy would do, as of now" in page.out


def test_copy_proves_that_all_rows_are_there_and_says_which_are_the_targets_own(
    source_url: str, filled: str, run: Run
) -> None:
    change(source_url, filled)
    execute(filled, f"""INSERT INTO "{KEYS}" (token, key_alias) VALUES ('own', 'own')""")
    ends = ("copy", "--yes", "--verify", "--source", source_url, "--target", filled, "--overwrite-live-target")
    ways = ("--everything", "--on-existing", "update", "--on-existing", "spendlogs=skip")
    done = run(*ends, *ways)
    assert done.status == 0, done.err
    assert "Compared with the snapshot: all there: " in done.out
    assert "1 revoked on the source but alive on the target" in done.out
    for table, how in (
        (BUDGET, "update); every row of the source is there with equal values, and 1 row of"),
        (LOGS, "skip); every row of the source is there by its primary key alone, and 1 row of"),
    ):
        assert f"{table}: rows were merged (--on-existing {how} the target's own" in done.out
    skipped = run(*ends, "--on-existing", "skip")
    assert skipped.status == 0, skipped.err
    assert "keys get no verdict" in skipped.err
    assert run("verify", "--source", source_url, "--target", filled).status == 3


# -- interrupted ----------------------------------------------------------------------------------


def interrupt(start: Start, source: str, target: str, *more: str) -> None:
    """Kills it while it waits to write logs, and everything else has landed."""
    with locked(target, LOGS):
        program = start(*command(source, target, "--everything", "--overwrite-live-target", *more))
        wait_until(lambda: blocked(target) and backends(target, STEP) == 1, seconds=90)
        wait_until(lambda: all(landed(target, each) for each in copied(source) if each != LOGS))
        program.kill()
        wait_until(lambda: backends(target) == 0)


def resume(run: Run, source: str, target: str) -> Ended:
    return run("copy", "--resume", "--json", "--source", source, "--target", target)


@pytest.mark.soak
@pytest.mark.parametrize("existing", [pytest.param("skip", marks=pytest.mark.soak), "update"])
def test_killed_merge_is_resumed_without_emptying_anything(
    existing: str, source_url: str, filled: str, run: Run, start: Start
) -> None:
    interrupt(start, source_url, filled, "--on-existing", existing, "--batch-size", "1MB")
    change(source_url, filled)
    execute(
        source_url,
        f"""DELETE FROM "{USAGE}" WHERE id = {first(source_url, USAGE, "id")}""",
        f"""INSERT INTO "{USAGE}" SELECT (jsonb_populate_record(u, '{{"id": "new", "date": "1999"}}')).*
            FROM "{USAGE}" u LIMIT 1""",
    )
    before = {table: set(rows_of(filled, table)) for table in copied(source_url)}
    done = resume(run, source_url, filled)
    assert done.status == 0, done.err
    after = {table: set(rows_of(filled, table)) for table in copied(source_url)}
    for table in copied(source_url):
        if existing == "update":
            assert set(rows_of(source_url, table)) <= after[table], table
        else:
            assert before[table] <= after[table], table
        assert len(after[table]) - len(before[table]) == (table in (BUDGET, LOGS, USAGE)), table
    kept = {line["table"] for line in done.lines() if line["event"] == "table_kept" and line["whole"]}
    assert "MishikaLLM_AuditLog" in kept
    assert not {USAGE, BUDGET} & kept


def test_killed_replace_does_not_truncate_again_what_it_has_loaded(
    source_url: str, filled: str, run: Run, start: Start
) -> None:
    change(source_url, filled)
    with locked(filled, BUDGET, "ACCESS SHARE"):
        program = start(*replacing(source_url, filled))
        wait_until(lambda: blocked(filled))
        program.kill()
        wait_until(lambda: backends(filled) == 0)
    assert ask(filled, f"""SELECT count(*) FROM "{BUDGET}" WHERE budget_id = 'own'""") == 1
    program = start(*replacing(source_url, filled, "--max-rate", "200kB/s"))
    wait_until(lambda: landed(filled, KEYS))
    program.kill()
    wait_until(lambda: backends(filled) == 0)
    written = f'SELECT min(xmin::text::bigint) FROM "{KEYS}"'
    before = ask(filled, written)
    done = resume(run, source_url, filled)
    assert done.status == 0, done.err
    assert ask(filled, written) == before
    assert_equal(source_url, filled, copied(source_url))


def replacing(source: str, target: str, *more: str) -> tuple[str, ...]:
    return command(source, target, "--everything", "--on-existing", "replace", "--overwrite-live-target", *more)


@pytest.mark.soak
def test_reset_keeps_merged_rows_and_says_what_is_gone(source_url: str, filled: str, run: Run, start: Start) -> None:
    execute(filled, f'DELETE FROM "{USAGE}"')
    ways = ("--on-existing", "update", "--on-existing", f"{USAGE}=refuse", "--on-existing", "AuditLog=replace")
    interrupt(start, source_url, filled, *ways)
    before = {table: rows_of(filled, table) for table in (BUDGET, KEYS, TEAM)}
    done = run("reset", "--yes", "--json", "--target", filled)
    assert done.status == 0, done.err
    assert before == {table: rows_of(filled, table) for table in before}
    assert not rows_of(filled, USAGE)
    assert not rows_of(filled, "MishikaLLM_AuditLog")
    assert "rows that the run has merged into" in done.err
    assert "rows that MishikaLLM_AuditLog had before the run are gone" in done.err


# -- a target in use ------------------------------------------------------------------------------


def log(name: str) -> bytes:
    columns = 'request_id, call_type, "startTime", "endTime"'
    return f"""INSERT INTO "{LOGS}" ({columns}) VALUES ({name}, 'x', now(), now())""".encode()


@contextmanager
def writing(url: str) -> Iterator[list[str]]:
    """Somebody writes logs meanwhile; yields the ids of those that the server has accepted."""
    written: list[str] = []
    over = threading.Event()

    def write() -> None:
        with psycopg.connect(url, autocommit=True) as session:
            while not over.is_set():
                name = f"live {len(written)}"
                session.execute(log(f"'{name}'"))
                written.append(name)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_until(lambda: written)
        yield written
    finally:
        over.set()
        thread.join()


HISTORY = ("--only", "spendlogs", "--on-existing", "skip", "--order", "newest", "--batch-size", "1MB")


@pytest.mark.parametrize("ended", [pytest.param("killed", marks=pytest.mark.soak), "left alone"])
def test_history_follows_into_a_target_that_is_written_to(
    ended: str, long_url: str, target_url: str, run: Run, start: Start
) -> None:
    with writing(target_url) as written:
        with psycopg.connect(target_url) as other:
            # A row that is being written under the same key holds up the step that has it, and nobody else.
            other.execute(log("'gate'"))
            program = start(*command(long_url, target_url, *HISTORY))
            wait_until(lambda: blocked(target_url) and backends(target_url, STEP) == 1 and landed(target_url, LOGS))
            more_than(len(written), written)
            if ended == "killed":
                program.kill()
            other.rollback()
        if ended == "killed":
            wait_until(lambda: backends(target_url) == 0)
            execute(long_url, another_log("newer"))
            done = resume(run, long_url, target_url)
            assert any(line["event"] == "table_kept" for line in done.lines())
        else:
            done = program.ended()
        assert done.status == 0, done.err
        more_than(len(written), written)
    rows = rows_of(target_url, LOGS)
    assert len(rows) == len(rows_of(long_url, LOGS)) + len(written)
    assert set(rows_of(long_url, LOGS)) < set(rows)


def more_than(many: int, written: list[str]) -> None:
    wait_until(lambda: len(written) > many)
