"""What goes wrong while a table comes in ranges, or its indexes are built: nothing is lost, nothing is there twice."""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests import fix_faults
from tests.fix_faults import (
    HOLDER,
    IN_RANGES,
    LOGS,
    STEP,
    WATCH,
    Gate,
    Program,
    Start,
    ask,
    backends,
    blocked,
    held_up,
    indexes_of,
    locked,
    ranges_landed,
    terminate,
    wait_until,
)
from tests.fix_network import Proxy
from tests.fix_program import Ended, Run
from tests.fix_servers import Pair, assert_equal, rows_of, tables_of

LEFT = {"MishikaLLM_CronJob", "_prisma_migrations"}
MakeGate = Callable[[str], Gate]
MakeProxy = Callable[..., Proxy]
WHERE = pytest.mark.parametrize("where", ["copy", pytest.param("index", marks=pytest.mark.soak)])


def arguments(source: str, target: str, *more: str) -> tuple[str, ...]:
    given = ("copy", "--everything", "--yes", "--json", "--source", source, "--target", target)
    return (*given, *IN_RANGES, "--jobs", "2", *more)


def resume(source: str, target: str) -> tuple[str, ...]:
    return ("copy", "--resume", "--json", "--source", source, "--target", target)


def copied(source: str) -> list[str]:
    return [table for table in tables_of(source) if table not in LEFT]


def retried(done: Ended) -> list[str]:
    return [line["step"] for line in done.lines() if line["event"] == "step_retried"]


@pytest.fixture
def before(target_url: str) -> list[str]:
    """The target's indexes, once `at_the_gate` has noted them."""
    return [indexes_of(target_url)]


@contextmanager
def at_the_gate(
    start: Start, gate: MakeGate, where: str, target: str, *given: str, before: list[str]
) -> Iterator[Program]:
    """The program, started, while one range or one index build is held up and others have landed."""
    closed = gate(where)
    before[:] = [indexes_of(target)]
    with held_up(start, closed, target, *given) as program:
        yield program


def assert_done(done: Ended, source: str, target: str, before: list[str]) -> None:
    assert done.status == 0, done.err
    assert_equal(source, target, copied(source))
    assert fix_faults.state(target) == "finished"
    assert [indexes_of(target)] == before
    assert ask(target, "SELECT count(*) FROM mishika_migrate.index") == 0


def change(source: str) -> None:
    """New, changed, removed rows and rows with new keys, in ranges that have landed and in those that have not."""
    with psycopg.connect(source) as session:
        session.execute(f"UPDATE \"{LOGS}\" SET spend = spend + 1 WHERE request_id LIKE 'long %9'")
        session.execute(f"UPDATE \"{LOGS}\" SET request_id = 'renamed ' || request_id WHERE request_id LIKE 'long %99'")
        session.execute(f"DELETE FROM \"{LOGS}\" WHERE request_id LIKE 'long %7'")
    add(source, 100)


def add(source: str, rows: int) -> None:
    ask(
        source,
        f'INSERT INTO "{LOGS}" (request_id, call_type, "startTime", "endTime")'
        f" SELECT 'new ' || n, 'x', now(), now() FROM generate_series(1, {rows}) n",
    )


# -- the program ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "changes"),
    [
        ("copy", True),
        pytest.param("copy", False, marks=pytest.mark.soak),
        pytest.param("index", True, marks=pytest.mark.soak),
    ],
)
def test_killed_and_resumed(
    where: str, changes: bool, long_url: str, target_url: str, start: Start, run: Run, gate: MakeGate, before: list[str]
) -> None:
    with at_the_gate(start, gate, where, target_url, *arguments(long_url, target_url), before=before) as program:
        program.kill()
        wait_until(lambda: backends(target_url) == 0)
        landed = ranges_landed(target_url)
        if changes:
            change(long_url)
    done = run(*resume(long_url, target_url))
    assert_done(done, long_url, target_url, before)
    copies = [line["step"] for line in done.lines() if line["event"] == "step_finished" and line["table"] == LOGS]
    assert len(copies) == ranges_landed(target_url) - landed


def test_rows_that_are_only_new_are_brought_without_comparing_keys(
    long_url: str, target_url: str, start: Start, run: Run, gate: MakeGate, before: list[str]
) -> None:
    with at_the_gate(start, gate, "index", target_url, *arguments(long_url, target_url), before=before) as program:
        program.kill()
        add(long_url, 2)
    done = run(*resume(long_url, target_url))
    assert_done(done, long_url, target_url, before)
    said = [line["message"] for line in done.lines() if line["event"] == "noticed"]
    assert said == [f"{LOGS}: 2 new rows on the source since the run stopped; nothing else changed"]


@pytest.mark.soak
def test_second_crash_while_finished_ranges_follow(
    long_url: str, target_url: str, start: Start, run: Run, gate: MakeGate, before: list[str]
) -> None:
    with at_the_gate(start, gate, "copy", target_url, *arguments(long_url, target_url), before=before) as program:
        program.kill()
        change(long_url)
    with locked(target_url, LOGS):
        program = start(*resume(long_url, target_url))
        wait_until(lambda: blocked(target_url))
        program.kill()
        wait_until(lambda: backends(target_url) == 0)
    assert_done(run(*resume(long_url, target_url)), long_url, target_url, before)


@pytest.mark.soak
def test_ranges_in_another_file_are_copied_again(
    long_url: str, target_url: str, start: Start, run: Run, gate: MakeGate, before: list[str]
) -> None:
    """After VACUUM FULL the pages of a range hold other rows."""
    with at_the_gate(start, gate, "copy", target_url, *arguments(long_url, target_url), before=before) as program:
        program.kill()
    wait_until(lambda: backends(long_url) + backends(target_url) == 0)
    ask(long_url, f"DELETE FROM \"{LOGS}\" WHERE request_id LIKE 'long %3'")
    ask(long_url, f'VACUUM FULL "{LOGS}"')
    assert_done(run(*resume(long_url, target_url)), long_url, target_url, before)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.soak) for n in range(1, 20))])
def test_kill_at_any_instant_is_mended_by_what_the_next_command_says(
    seed: int, long_url: str, target_url: str, run: Run, start: Start, before: list[str]
) -> None:
    chance = random.Random(seed)
    program = start(*arguments(long_url, target_url))
    wait_until(lambda: backends(target_url, WATCH) or not program.running)
    with contextlib.suppress(subprocess.TimeoutExpired):
        program.process.wait(timeout=chance.uniform(0.0, 1.5))
    program.kill()
    wait_until(lambda: backends(target_url) == 0)
    if fix_faults.state(target_url) != "finished":
        done = run(*arguments(long_url, target_url))
        if done.status == 5:
            change(long_url)
            done = run(*resume(long_url, target_url))
        assert done.status == 0, done.err
    assert_equal(long_url, target_url, copied(long_url))
    assert [indexes_of(target_url)] == before


# -- sessions, servers and the network ------------------------------------------------------------


@WHERE
def test_ended_target_backend_is_retried(
    where: str, long_url: str, target_url: str, start: Start, gate: MakeGate, before: list[str]
) -> None:
    with at_the_gate(start, gate, where, target_url, *arguments(long_url, target_url), before=before) as program:
        assert terminate(target_url, STEP) >= 1
        wait_until(lambda: "step_retried" in program.said())
    assert_done(program.ended(), long_url, target_url, before)


@pytest.mark.soak
def test_source_cut_in_mid_range_is_retried(
    long_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start, gate: MakeGate, before: list[str]
) -> None:
    way = proxy(pair.old)
    closed = gate("copy")
    before[:] = [indexes_of(target_url)]
    with locked(target_url, "MishikaLLM_InvitationLink"):
        program = start(*arguments(way.url(long_url), target_url))
        wait_until(lambda: blocked(target_url))
        way.cut_after(3_500_000, back=True)
        closed.open()
    done = program.ended()
    assert way.cuts == 1
    assert [step.partition("[")[0] for step in retried(done)] == [f"public.{LOGS}"]
    assert_done(done, long_url, target_url, before)


def test_ended_snapshot_stops_the_run_before_it_mixes_two_states(
    long_url: str, target_url: str, start: Start, run: Run, gate: MakeGate, before: list[str]
) -> None:
    with at_the_gate(start, gate, "copy", target_url, *arguments(long_url, target_url), before=before) as program:
        wait_until(lambda: terminate(long_url, HOLDER) + terminate(long_url, STEP) == 0)
        change(long_url)
    done = program.ended()
    assert (done.status, "copy --resume" in done.err) == (5, True), done.err
    assert_done(run(*resume(long_url, target_url)), long_url, target_url, before)


@pytest.mark.parametrize("where", [pytest.param("copy", marks=pytest.mark.soak), "index"])
def test_server_that_crashes_is_gone_on_with(
    where: str, long_url: str, target_url: str, pair: Pair, start: Start, run: Run, gate: MakeGate, before: list[str]
) -> None:
    """Steps that had not reached the disk are lost with their entries in the ledger."""
    with at_the_gate(start, gate, where, target_url, *arguments(long_url, target_url), before=before) as program:
        pair.new.restart("immediate")
    done = program.ended()
    assert done.status in (0, 5), done.err
    if done.status == 5:
        done = run(*resume(long_url, target_url))
    assert_done(done, long_url, target_url, before)


@pytest.mark.soak
@WHERE
def test_network_that_is_cut_is_made_up_for(
    where: str, long_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start, gate: MakeGate,
    before: list[str],
) -> None:  # fmt: skip
    way = proxy(pair.new)
    given = arguments(long_url, way.url(target_url))
    with at_the_gate(start, gate, where, target_url, *given, before=before) as program:
        way.cut()
    done = program.ended()
    assert retried(done)
    assert_done(done, long_url, target_url, before)


@pytest.mark.soak
def test_network_that_stalls_in_silence_is_waited_for(
    long_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start, gate: MakeGate, before: list[str]
) -> None:
    way = proxy(pair.new)
    given = arguments(long_url, way.url(target_url))
    with at_the_gate(start, gate, "copy", target_url, *given, before=before) as program:
        way.stall()
    # The target has taken what it got, and waits for more that does not come.
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientRead' AND application_name LIKE %(step)s"
    wait_until(lambda: ask(target_url, waiting, {"step": STEP}))
    way.flow()
    assert_done(program.ended(), long_url, target_url, before)


# A dead peer is noticed after a second or two, instead of a minute.
IMPATIENT = "&keepalives_idle=1&keepalives_interval=1&keepalives_count=1&tcp_user_timeout=1000&connect_timeout=2"
LARGE = ("--batch-size", "4MB")  # more than sockets take in advance


def test_target_that_takes_nothing_for_too_long_is_given_its_rows_anew(
    long_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start, before: list[str]
) -> None:
    way = proxy(pair.new, buffer=16384)
    way.stall_after(2_500_000)
    program = start(*arguments(long_url, way.url(target_url) + IMPATIENT, *LARGE))
    # The kernel gives up a session with bytes that it cannot get rid of.
    wait_until(lambda: "step_retried" in program.said())
    assert way.stalled
    way.flow()
    done = program.ended()
    assert {step.partition("[")[0] for step in retried(done)} == {f"public.{LOGS}"}
    assert_done(done, long_url, target_url, before)


@pytest.mark.soak
def test_target_that_takes_nothing_until_the_run_gives_up_is_gone_on_with(
    long_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start, run: Run, before: list[str]
) -> None:
    way = proxy(pair.new, buffer=16384)
    way.stall_after(2_500_000)
    url = way.url(target_url) + IMPATIENT
    done = start(*arguments(long_url, url, *LARGE, "--retries", "1")).ended()
    assert (done.status, way.stalled) == (5, True), done.err
    assert "mishika-migrate copy --resume" in done.err
    way.flow()
    wait_until(lambda: backends(target_url) == 0)
    assert_done(run(*resume(long_url, url)), long_url, target_url, before)


@pytest.mark.soak
def test_source_that_sends_nothing_for_longer_than_the_keepalive_is_waited_for(
    long_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start, before: list[str]
) -> None:
    """Its kernel answers all the time: a server that computes for long is not a dead one."""
    way = proxy(pair.old)
    way.stall_after(3_500_000, back=True)
    program = start(*arguments(way.url(long_url) + IMPATIENT, target_url))
    wait_until(lambda: way.stalled)
    # That nothing happens has no condition to wait for: longer than idle, interval and user timeout together.
    threading.Event().wait(3.5)
    assert program.running
    way.flow()
    done = program.ended()
    # Sessions that wanted to begin just then could not; those that were under way have gone on.
    failed = [line["error"] for line in done.lines() if line["event"] == "step_retried"]
    assert all(error.startswith("cannot connect to source") for error in failed), failed
    assert_done(done, long_url, target_url, before)


@WHERE
def test_commit_without_an_answer_is_not_repeated(
    where: str, long_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start, gate: MakeGate,
    before: list[str],
) -> None:  # fmt: skip
    way = proxy(pair.new)
    given = arguments(long_url, way.url(target_url))
    with at_the_gate(start, gate, where, target_url, *given, before=before) as program:
        way.swallow("COMMIT")
    done = program.ended()
    assert way.swallowed
    assert_done(done, long_url, target_url, before)


@pytest.mark.soak
def test_commit_of_what_followed_without_an_answer_is_not_repeated(
    long_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start, gate: MakeGate, before: list[str]
) -> None:
    with at_the_gate(start, gate, "copy", target_url, *arguments(long_url, target_url), before=before) as program:
        program.kill()
        change(long_url)
    way = proxy(pair.new)
    with locked(target_url, LOGS):
        program = start(*resume(long_url, way.url(target_url)))
        wait_until(lambda: blocked(target_url))
        way.swallow("COMMIT")
    done = program.ended()
    assert (way.swallowed, retried(done)) == (True, [f"changes of public.{LOGS}"])
    assert_done(done, long_url, target_url, before)


# -- others ---------------------------------------------------------------------------------------


@pytest.mark.soak
@WHERE
def test_second_run_is_refused_and_leaves_the_first_alone(
    where: str, long_url: str, target_url: str, start: Start, run: Run, gate: MakeGate, before: list[str]
) -> None:
    with at_the_gate(start, gate, where, target_url, *arguments(long_url, target_url), before=before) as program:
        for given in (arguments(long_url, target_url), resume(long_url, target_url)):
            second = run(*given)
            assert second.status == 4, second.err
    assert_done(program.ended(), long_url, target_url, before)


def test_retried_range_reads_the_same_state_of_the_source(
    long_url: str, target_url: str, start: Start, gate: MakeGate, before: list[str]
) -> None:
    old = rows_of(long_url, LOGS)
    with at_the_gate(start, gate, "copy", target_url, *arguments(long_url, target_url), before=before) as program:
        change(long_url)
        assert terminate(target_url, STEP) >= 1
        wait_until(lambda: "step_retried" in program.said())
    assert program.ended().status == 0
    assert rows_of(target_url, LOGS) == old
    assert [indexes_of(target_url)] == before
