"""A program that dies at any moment leaves a target that the next command continues or starts over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from mishika_migrate.sandbox import servers
from tests import fix_faults
from tests.fix_faults import LOGS, STEP, Start, ask, backends, blocked, landed, locked, wait_until
from tests.fix_program import Ended, Run
from tests.fix_servers import Pair, assert_equal, rows_of, tables_of

LEFT = {"MishikaLLM_CronJob", "_prisma_migrations"}
KEYS = "MishikaLLM_VerificationToken"
NO_ANALYZE = "SHARE UPDATE EXCLUSIVE"  # COPY does not need what it withholds
CORE = ("MishikaLLM_BudgetTable", KEYS)  # the first one, and one in the middle


def arguments(source: str, target: str, *more: str) -> tuple[str, ...]:
    return ("copy", "--everything", "--yes", "--json", "--source", source, "--target", target, *more)


def resume(run: Run, source: str, target: str) -> Ended:
    return run("copy", "--resume", "--json", "--source", source, "--target", target)


def copied(source: str) -> list[str]:
    return [table for table in tables_of(source) if table not in LEFT]


def kept(done: Ended) -> set[str]:
    return {line["table"] for line in done.lines() if line["event"] == "table_kept" and line["whole"]}


def finished(done: Ended) -> set[str]:
    return {line["table"] for line in done.lines() if line["event"] == "step_finished" and line["table"]}


def kill_when_blocked(start: Start, source: str, target: str, table: str, *more: str, mode: str = "SHARE") -> None:
    """Kills it while it waits for a lock of that table, and every other step of the stage has landed."""
    with locked(target, table, mode):
        program = start(*arguments(source, target, *more))
        wait_until(lambda: blocked(target) and backends(target, STEP) == 1)
        if table == LOGS:
            others = [each for each in copied(source) if each != LOGS]
            wait_until(lambda: all(landed(target, each) for each in others))
        program.kill()
        # The lock is still held: the server itself notices that nobody waits for it any more.
        wait_until(lambda: backends(target) == 0, seconds=10)


def change(source: str) -> None:
    """In finished and unfinished tables of both stages: new, changed and removed rows."""
    with psycopg.connect(source) as session:
        session.execute(f'UPDATE "{KEYS}" SET spend = spend + 1 WHERE token = (SELECT min(token) FROM "{KEYS}")')
        session.execute(
            'DELETE FROM "MishikaLLM_DailyTagSpend" WHERE id = (SELECT min(id) FROM "MishikaLLM_DailyTagSpend")'
        )
        session.execute(f'DELETE FROM "{LOGS}" WHERE request_id = (SELECT min(request_id) FROM "{LOGS}")')
        session.execute(
            'INSERT INTO "MishikaLLM_AuditLog" (id, changed_by_api_key, action, table_name, object_id)'
            " VALUES ('a new one', 'x', 'updated', 'x', 'y')"
        )


def test_kill_in_the_core_leaves_every_core_table_as_it_was(
    source_url: str, target_url: str, run: Run, start: Start
) -> None:
    for table in CORE:
        kill_when_blocked(start, source_url, target_url, table)
        assert all(not rows_of(target_url, each) for each in copied(source_url)), table
    done = run(*arguments(source_url, target_url))
    assert done.status == 0, done.err
    assert_equal(source_url, target_url, copied(source_url))


def test_kill_in_the_bulk_is_resumed_to_a_source_that_has_changed(
    source_url: str, target_url: str, run: Run, start: Start
) -> None:
    kill_when_blocked(start, source_url, target_url, LOGS)
    again = run(*arguments(source_url, target_url))
    assert (again.status, "mishika-migrate copy --resume" in again.err) == (5, True)
    change(source_url)
    done = resume(run, source_url, target_url)
    assert done.status == 0, done.err
    assert_equal(source_url, target_url, copied(source_url))
    assert {"MishikaLLM_AuditLog", "MishikaLLM_DailyTagSpend"} <= kept(done)  # history that follows is not repeated
    assert kept(done) == set(copied(source_url)) - finished(done)
    assert {LOGS, KEYS} <= finished(done)


def test_resume_repeats_nothing_that_has_not_changed(source_url: str, target_url: str, run: Run, start: Start) -> None:
    kill_when_blocked(start, source_url, target_url, LOGS)
    done = resume(run, source_url, target_url)
    assert done.status == 0, done.err
    assert finished(done) == {LOGS}
    assert kept(done) == set(copied(source_url)) - {LOGS}
    assert_equal(source_url, target_url, copied(source_url))


@pytest.mark.soak
def test_resume_killed_before_the_changed_rows_landed_still_knows_that_they_changed(
    source_url: str, target_url: str, run: Run, start: Start
) -> None:
    kill_when_blocked(start, source_url, target_url, LOGS)
    change(source_url)
    for table in (KEYS, "MishikaLLM_DailyTagSpend"):
        with locked(target_url, table):
            program = start("copy", "--resume", "--source", source_url, "--target", target_url)
            wait_until(lambda: blocked(target_url))
            program.kill()
    done = resume(run, source_url, target_url)
    assert done.status == 0, done.err
    assert_equal(source_url, target_url, copied(source_url))


@pytest.mark.soak
def test_readers_see_the_old_keys_until_the_changed_core_is_there(
    source_url: str, target_url: str, run: Run, start: Start
) -> None:
    kill_when_blocked(start, source_url, target_url, LOGS)
    before = rows_of(target_url, KEYS)
    change(source_url)
    with locked(target_url, "MishikaLLM_InvitationLink"):
        program = start("copy", "--resume", "--source", source_url, "--target", target_url)
        wait_until(lambda: blocked(target_url))
        assert rows_of(target_url, KEYS) == before
    assert program.ended().status == 0
    assert rows_of(target_url, KEYS) == rows_of(source_url, KEYS) != before


@pytest.mark.soak
def test_kill_in_the_finish_stage_is_resumed(source_url: str, target_url: str, run: Run, start: Start) -> None:
    kill_when_blocked(start, source_url, target_url, LOGS, mode=NO_ANALYZE)
    assert run(*arguments(source_url, target_url)).status == 5
    done = resume(run, source_url, target_url)
    assert done.status == 0, done.err
    assert kept(done) == set(copied(source_url))
    assert_equal(source_url, target_url, copied(source_url))
    views = "SELECT count(*) FROM pg_views WHERE schemaname = 'public'"
    assert ask(target_url, views) == ask(source_url, views) == 8


def test_resume_from_another_source_is_refused(
    source_url: str, target_url: str, pair: Pair, clone: Callable[[servers.Server, str], str], run: Run, start: Start
) -> None:
    kill_when_blocked(start, source_url, target_url, LOGS)
    done = resume(run, clone(pair.old, "filled"), target_url)
    assert done.status == 4, done.err
    assert fix_faults.state(target_url) == "running"


FAMILY = """
CREATE TABLE parent (id int PRIMARY KEY, note text);
CREATE TABLE child (id int PRIMARY KEY, parent int NOT NULL REFERENCES parent ON DELETE CASCADE);
CREATE TABLE grandchild (id int PRIMARY KEY, child int NOT NULL REFERENCES child ON DELETE RESTRICT);
"""
FAMILY_ROWS = """
INSERT INTO parent SELECT n, 'p' FROM generate_series(1, 100) n;
INSERT INTO child SELECT n, n FROM generate_series(1, 100) n;
INSERT INTO grandchild SELECT n, n FROM generate_series(1, 100) n;
"""


@pytest.mark.parametrize("stage", [pytest.param("core", marks=pytest.mark.soak), "bulk"])
def test_rows_that_reference_a_changed_table_are_copied_again_with_it(
    stage: str, pair: Pair, clone: Callable[[servers.Server, str], str], run: Run, start: Start, tmp_path: Path
) -> None:
    source, target = clone(pair.old, "template0"), clone(pair.new, "template0")
    ask(source, FAMILY + FAMILY_ROWS)
    ask(target, FAMILY)
    more = ("--matrix", str(family_matrix(tmp_path, stage)))
    kill_when_blocked(start, source, target, "parent", *more, mode=NO_ANALYZE)
    ask(source, "UPDATE parent SET note = 'new' WHERE id = 7")
    done = run("copy", "--resume", "--json", "--source", source, "--target", target, *more)
    assert done.status == 0, done.err
    assert_equal(source, target, tables_of(source))
    assert kept(done) == set()


def family_matrix(folder: Path, stage: str) -> Path:
    tables = {"parent": stage, "child": "bulk", "grandchild": "bulk"}
    entries = (
        f"  {table}: {{need: required, why: a test, loses: rows, stage: {stage}, written: never}}\n"
        for table, stage in tables.items()
    )
    path = folder / "family.yaml"
    path.write_text("matrix: 1\nname: family\ntables:\n" + "".join(entries))
    return path
