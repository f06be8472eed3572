"""`reset` leaves a target as if the run had never begun, and a resumed run trusts nothing that it can ask."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from tests.fix_faults import (
    ADORNED,
    HOLDER,
    LOGS,
    STEP,
    WATCH,
    FullDisk,
    Gate,
    Program,
    Start,
    ask,
    backends,
    blocked,
    blow_up,
    constraints_of,
    held_up,
    indexes_of,
    locked,
    state,
    terminate,
    wait_until,
)
from tests.fix_network import Proxy
from tests.fix_program import Run
from tests.fix_servers import Pair, assert_equal, rows_of, tables_of

KEYS = "MishikaLLM_VerificationToken"
LEFT = {"MishikaLLM_CronJob", "_prisma_migrations"}
INDEXES = """
SELECT string_agg(concat_ws(' ', pg_get_indexdef(i.indexrelid), pg_get_constraintdef(k.oid), i.indisreplident), E'\\n'
                  ORDER BY i.indexrelid::regclass::text COLLATE "C")
FROM pg_index i LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid
WHERE i.indrelid::regclass::text LIKE '%%Mishika%%'
"""


def arguments(source: str, target: str) -> tuple[str, ...]:
    more = ("--everything", "--yes", "--json", "--batch-size", "1MB", "--defer-indexes", "always")
    return ("copy", *more, "--source", source, "--target", target)


def copied(source: str) -> list[str]:
    return [table for table in tables_of(source) if table not in LEFT]


def interrupt(start: Start, source: str, target: str) -> None:
    """Kills a run while it builds the indexes of the logs: all rows have landed, and some index is not there."""
    program = start(*arguments(source, target))
    wait_until(lambda: ask(target, "SELECT to_regclass('mishika_migrate.index') IS NOT NULL"))
    dropped = 'SELECT count(*) FROM mishika_migrate.index WHERE "table" = %(table)s'
    wait_until(lambda: ask(target, dropped, {"table": LOGS}))
    # SHARE, which CREATE INDEX wants, waits for ours; COPY does not.
    with locked(target, LOGS, "ROW EXCLUSIVE"):
        wait_until(lambda: ask(target, INDEX_WAITS) and backends(target, STEP) >= 1)
        program.kill()
        wait_until(lambda: backends(target) == 0)


INDEX_WAITS = """
SELECT count(*) > 0 FROM pg_stat_activity
WHERE wait_event_type = 'Lock' AND query LIKE 'CREATE%%INDEX%%' AND datname = current_database()
"""


def test_reset_removes_the_rows_and_puts_the_indexes_back(
    source_url: str, target_url: str, run: Run, start: Start
) -> None:
    before = ask(target_url, INDEXES)
    interrupt(start, source_url, target_url)
    assert ask(target_url, INDEXES) != before
    done = run("reset", "--yes", "--target", target_url)
    assert done.status == 0, done.err
    assert ask(target_url, INDEXES) == before
    assert all(not rows_of(target_url, table) for table in copied(source_url))
    assert state(target_url) == "abandoned"
    again = run(*arguments(source_url, target_url))
    assert again.status == 0, again.err
    assert_equal(source_url, target_url, copied(source_url))
    assert ask(target_url, INDEXES) == before


def test_reset_that_fails_has_done_nothing(source_url: str, target_url: str, run: Run, start: Start) -> None:
    interrupt(start, source_url, target_url)
    rows, indexes = rows_of(target_url, KEYS), ask(target_url, INDEXES)
    with locked(target_url, LOGS, "ACCESS SHARE"):
        done = run("reset", "--yes", "--target", target_url, "--lock-timeout", "0.2")
    assert done.status == 6
    assert (rows_of(target_url, KEYS), ask(target_url, INDEXES), state(target_url)) == (rows, indexes, "running")


def test_reset_without_an_unfinished_run_is_refused(source_url: str, target_url: str, run: Run) -> None:
    done = run("reset", "--yes", "--target", target_url)
    assert (done.status, "no unfinished run" in done.err) == (4, True)
    assert run(*arguments(source_url, target_url)).status == 0
    assert run("reset", "--yes", "--target", target_url).status == 4
    assert_equal(source_url, target_url, copied(source_url))


def test_reset_is_refused_while_the_run_works(source_url: str, target_url: str, run: Run, start: Start) -> None:
    with locked(target_url, LOGS):
        program = start(*arguments(source_url, target_url))
        wait_until(lambda: blocked(target_url))
        done = run("reset", "--yes", "--target", target_url)
        assert (done.status, "another run is working" in done.err) == (4, True)
    assert program.ended().status == 0


def test_reset_asks_and_says_what_came_from_elsewhere(source_url: str, target_url: str, run: Run, start: Start) -> None:
    interrupt(start, source_url, target_url)
    with psycopg.connect(target_url) as session:
        session.execute(
            'INSERT INTO "MishikaLLM_BudgetTable" (budget_id, created_by, updated_by) VALUES (%s, %s, %s)', [*"xyz"]
        )
    asked = run("reset", "--target", target_url)
    assert (asked.status, "1 row in these tables came from elsewhere" in asked.err) == (2, True)
    assert rows_of(target_url, KEYS)


@pytest.mark.parametrize("command", ["TRUNCATE", pytest.param("DELETE FROM", marks=pytest.mark.soak)])
def test_rows_that_vanished_from_the_target_are_not_said_to_be_there(
    command: str, source_url: str, target_url: str, run: Run, start: Start
) -> None:
    interrupt(start, source_url, target_url)
    with psycopg.connect(target_url) as session:
        session.execute(f'{command} "{KEYS}"'.encode())
    done = run("copy", "--resume", "--json", "--source", source_url, "--target", target_url)
    assert (done.status, "somebody has removed some" in done.err, "mishika-migrate reset" in done.err) == (
        4,
        True,
        True,
    )
    hint = f"mishika-migrate reset --target {target_url!r}" if "'" in done.err else "mishika-migrate reset"
    assert hint.split(" --")[0] in done.err
    assert run("reset", "--yes", "--target", target_url).status == 0
    assert run(*arguments(source_url, target_url)).status == 0
    assert_equal(source_url, target_url, copied(source_url))


@pytest.mark.soak
def test_rows_of_others_are_never_removed_by_a_resume(source_url: str, target_url: str, run: Run, start: Start) -> None:
    interrupt(start, source_url, target_url)
    with psycopg.connect(target_url) as session:
        session.execute(f"INSERT INTO \"{KEYS}\" (token) VALUES ('new')".encode())
    with psycopg.connect(source_url) as session:
        session.execute(f'UPDATE "{KEYS}" SET spend = spend + 1'.encode())
    done = run("copy", "--resume", "--json", "--source", source_url, "--target", target_url)
    assert (done.status, "1 row that run" in done.err) == (4, True)
    assert ask(target_url, f"SELECT count(*) FROM \"{KEYS}\" WHERE token = 'new'") == 1


@pytest.mark.parametrize(
    "side", [pytest.param("source", marks=pytest.mark.soak), pytest.param("target", marks=pytest.mark.soak), "both"]
)
def test_resume_is_refused_when_the_columns_have_changed(
    side: str, source_url: str, target_url: str, run: Run, start: Start
) -> None:
    interrupt(start, source_url, target_url)
    for name, url in (("source", source_url), ("target", target_url)):
        with psycopg.connect(url) as session:
            if side in (name, "both"):
                session.execute(f'ALTER TABLE "{KEYS}" ADD fresh text'.encode())
    done = run("copy", "--resume", "--json", "--source", source_url, "--target", target_url)
    expected = {"source": (4, True), "target": (0, False), "both": (4, True)}[side]
    assert (done.status, "fresh" in done.err) == expected, done.err


@pytest.mark.soak
def test_command_that_continues_can_be_pasted(source_url: str, target_url: str, run: Run, start: Start) -> None:
    interrupt(start, source_url, target_url)
    stopped = run(*arguments(source_url, target_url))
    assert stopped.status == 5
    line = next(line for line in stopped.err.splitlines() if "copy --resume" in line)
    pasted = line.partition("`")[2].partition("`")[0]
    done = run(*shlex.split(pasted)[1:])
    assert done.status == 0, done.err
    assert_equal(source_url, target_url, copied(source_url))


# -- after each kind of crash ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A run in the middle of its work; `way` is its network to the target."""

    program: Program
    source: str
    target: str
    servers: Pair
    way: Proxy


def program_killed(scene: Scene) -> None:
    scene.program.kill()


def source_changed_since(scene: Scene) -> None:
    scene.program.kill()
    ask(scene.source, f"DELETE FROM \"{LOGS}\" WHERE request_id LIKE 'long %7'")
    ask(scene.source, f'UPDATE "{LOGS}" SET spend = spend + 1')
    ask(scene.source, f'UPDATE "{KEYS}" SET spend = spend + 1')


def target_backend_ended(scene: Scene) -> None:
    assert terminate(scene.target, STEP) >= 1


def source_backends_ended(scene: Scene) -> None:
    wait_until(lambda: terminate(scene.source, HOLDER) + terminate(scene.source, STEP) == 0)


def target_crashed(scene: Scene) -> None:
    scene.servers.new.restart("immediate")


def network_cut(scene: Scene) -> None:
    scene.way.refuse = True
    scene.way.cut()


def commit_unanswered(scene: Scene) -> None:
    scene.way.swallow("COMMIT")


Crash = Callable[[Scene], None]
soak = pytest.mark.soak


def after(crash: Crash, where: str, *marks: pytest.MarkDecorator) -> Any:
    return pytest.param(crash, where, marks=marks, id=f"{crash.__name__}-{where}")


CRASHES = [
    after(program_killed, "copy"),
    after(program_killed, "index", soak),
    after(source_changed_since, "copy", soak),
    after(source_changed_since, "index"),
    after(target_backend_ended, "copy"),
    after(target_backend_ended, "index", soak),
    after(source_backends_ended, "copy"),
    after(target_crashed, "copy", soak),
    after(target_crashed, "index"),
    after(network_cut, "copy", soak),
    after(network_cut, "index"),
    after(commit_unanswered, "copy"),
    after(commit_unanswered, "index", soak),
]


def assert_undone(target: str, before: tuple[str, str]) -> None:
    assert (indexes_of(target), constraints_of(target)) == before
    assert [table for table in tables_of(target) if table not in LEFT and rows_of(target, table)] == []
    assert state(target) == "abandoned"
    assert ask(target, "SELECT count(*) FROM mishika_migrate.index") == 0


@pytest.mark.parametrize(("crash", "where"), CRASHES)
def test_reset_leaves_a_target_as_it_was_after(
    crash: Crash, where: str, long_url: str, target_url: str, pair: Pair, start: Start, run: Run,
    gate: Callable[[str], Gate], proxy: Callable[..., Proxy],
) -> None:  # fmt: skip
    ask(target_url, ADORNED)
    closed, way = gate(where), proxy(pair.new)
    before = indexes_of(target_url), constraints_of(target_url)
    given = (*arguments(long_url, way.url(target_url)), "--jobs", "2", "--retries", "1")
    with held_up(start, closed, target_url, *given) as program:
        crash(Scene(program=program, source=long_url, target=target_url, servers=pair, way=way))
    assert program.ended().status not in (0, 1), program.said()
    wait_until(lambda: backends(target_url, WATCH) == 0)
    assert (indexes_of(target_url), constraints_of(target_url)) != before
    undone = run("reset", "--yes", "--target", target_url)
    assert undone.status == 0, undone.err
    assert_undone(target_url, before)


def fill_up(
    source: str, target: str, full_disk: Callable[[str], FullDisk], run: Run
) -> tuple[FullDisk, tuple[str, str]]:
    """A run that has ended with the request log on a full disk, and what the target was before it."""
    blow_up(source, LOGS, "messages")
    ask(target, ADORNED)
    disk = full_disk(LOGS)
    before = indexes_of(target), constraints_of(target)
    done = run(*arguments(source, target))
    assert (done.status, "Free space on the server." in done.err) == (5, True), done.err
    return disk, before


@pytest.mark.parametrize("full_disk", ["tmpfs"], indirect=True)
def test_reset_of_a_full_disk_changes_nothing_and_says_how_little_room_it_needs(
    long_url: str, target_url: str, full_disk: Callable[[str], FullDisk], run: Run
) -> None:
    disk, before = fill_up(long_url, target_url, full_disk, run)
    rows, indexes = rows_of(target_url, KEYS), indexes_of(target_url)
    undone = run("reset", "--yes", "--target", target_url)
    said = " ".join(undone.err.split())
    assert (undone.status, "No space left on device" in said, "Nothing was changed." in said) == (6, True, True), said
    assert (rows_of(target_url, KEYS), indexes_of(target_url), state(target_url)) == (rows, indexes, "stopped")
    disk.make_room()
    undone = run("reset", "--yes", "--target", target_url)
    assert undone.status == 0, undone.err
    assert_undone(target_url, before)


@soak
@pytest.mark.parametrize("full_disk", ["limit"], indirect=True)
def test_reset_needs_no_large_file(
    long_url: str, target_url: str, full_disk: Callable[[str], FullDisk], run: Run
) -> None:
    _, before = fill_up(long_url, target_url, full_disk, run)
    undone = run("reset", "--yes", "--target", target_url)
    assert undone.status == 0, undone.err
    assert_undone(target_url, before)
