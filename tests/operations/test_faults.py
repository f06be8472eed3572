"""Networks, servers, disks and people that come in between: what is true afterwards, and how it goes on."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest

from mishika_migrate.pg import connect, ledger
from mishika_migrate.sandbox import sample, schema, servers
from tests import fix_faults
from tests.fix_faults import (
    HOLDER,
    IN_RANGES,
    LOGS,
    STEP,
    WATCH,
    FullDisk,
    Program,
    Start,
    ask,
    backends,
    blocked,
    blow_up,
    indexes_of,
    locked,
    terminate,
    wait_until,
)
from tests.fix_network import Proxy
from tests.fix_program import Ended, Run
from tests.fix_servers import Clone, Pair, assert_equal, endpoint, rows_of, tables_of

LEFT = {"MishikaLLM_CronJob", "_prisma_migrations"}
KEYS = "MishikaLLM_VerificationToken"
LATE = "MishikaLLM_InvitationLink"  # the last table of the core
MakeProxy = Callable[[servers.Server], Proxy]
QUICK = ("--retries", "3", "--retry-seconds", "3s")
PATIENT = ("--lock-timeout", "10min")

# Seconds after which a program counts as hanging: fewer than the 30 after which the engine lets go of a task
# that does not end, and than the minute after which a silent network is given up. tests/benchmark/promises.py
# tells how soon it is.
HANGS = 20.0


def arguments(source: str, target: str, *more: str) -> tuple[str, ...]:
    return ("copy", "--everything", "--yes", "--json", "--source", source, "--target", target, *more)


def resumed(run: Run, source: str, target: str) -> Ended:
    return run("copy", "--resume", "--json", "--source", source, "--target", target)


def copied(source: str) -> list[str]:
    return [table for table in tables_of(source) if table not in LEFT]


def retried(done: Ended) -> list[str]:
    return [line["step"] for line in done.lines() if line["event"] == "step_retried"]


def assert_nothing_landed(target: str) -> None:
    assert [table for table in tables_of(target) if table != "_prisma_migrations" and rows_of(target, table)] == []


def assert_done(done: Ended, source: str, target: str) -> None:
    assert done.status == 0, done.err
    assert_equal(source, target, copied(source))
    assert fix_faults.state(target) == "finished"


@contextmanager
def stuck(start: Start, target: str, table: str, *given: str, waiting: str = "") -> Iterator[Program]:
    """The program, started, while it waits for that table's lock; the lock goes at the end of the block."""
    with locked(waiting or target, table):
        program = start(*given)
        wait_until(lambda: blocked(waiting or target) and backends(waiting or target, STEP) == 1)
        yield program


# -- the network ----------------------------------------------------------------------------------


def test_target_cut_in_mid_copy_is_retried_from_nothing(
    source_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start
) -> None:
    way = proxy(pair.new)
    with stuck(start, target_url, LOGS, *arguments(source_url, way.url(target_url))) as program:
        way.cut_after(200_000)
    done = program.ended()
    assert retried(done) == [f"public.{LOGS}"]
    assert way.cuts == 1
    assert_done(done, source_url, target_url)


def test_source_cut_in_mid_copy_is_retried_in_the_same_snapshot(
    source_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start
) -> None:
    way = proxy(pair.old)
    before = rows_of(source_url, LOGS)
    with stuck(start, target_url, LOGS, *arguments(way.url(source_url), target_url)) as program:
        way.cut_after(200_000, back=True)
        ask(source_url, f'DELETE FROM "{LOGS}" WHERE request_id = (SELECT min(request_id) FROM "{LOGS}")')
    done = program.ended()
    assert done.status == 0, done.err
    assert retried(done) == [f"public.{LOGS}"]
    assert rows_of(target_url, LOGS) == before


@pytest.mark.parametrize("table", [pytest.param(LATE, marks=pytest.mark.soak), LOGS])
def test_all_connections_to_the_target_cut_at_once_are_made_again(
    table: str, source_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start
) -> None:
    way = proxy(pair.new)
    with stuck(start, target_url, table, *arguments(source_url, way.url(target_url))) as program:
        way.cut()
    assert_done(program.ended(), source_url, target_url)
    assert way.cuts >= 2


@pytest.mark.soak
def test_network_that_stays_down_in_the_core_ends_with_6_and_an_untouched_target(
    source_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start, run: Run
) -> None:
    way = proxy(pair.new)
    with stuck(start, target_url, LATE, *arguments(source_url, way.url(target_url), *QUICK)) as program:
        way.refuse = True
        way.cut()
        done = program.ended(seconds=HANGS)
    assert done.status == 6, done.err
    assert retried(done)
    assert_nothing_landed(target_url)
    assert_done(run(*arguments(source_url, target_url)), source_url, target_url)


def test_network_that_stays_down_in_the_bulk_ends_with_5_and_is_resumed(
    source_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start, run: Run
) -> None:
    way = proxy(pair.new)
    url = way.url(target_url)
    with stuck(start, target_url, LOGS, *arguments(source_url, url, *QUICK)) as program:
        way.refuse = True
        way.cut()
        done = program.ended(seconds=HANGS)
    assert done.status == 5, done.err
    assert retried(done)
    assert "mishika-migrate copy --resume" in done.err
    way.refuse = False
    assert_done(resumed(run, source_url, url), source_url, target_url)


@pytest.mark.soak
def test_source_that_stays_away_is_given_up(
    source_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start, run: Run
) -> None:
    way = proxy(pair.old)
    url = way.url(source_url)
    with stuck(start, target_url, LOGS, *arguments(url, target_url, *QUICK)) as program:
        way.refuse = True
        way.cut()
    done = program.ended(seconds=HANGS)
    assert done.status == 5, done.err
    way.refuse = False
    assert_done(resumed(run, url, target_url), source_url, target_url)


@pytest.mark.parametrize("table", [pytest.param(LATE, marks=pytest.mark.soak), LOGS])
def test_commit_without_an_answer_doubles_no_row(
    table: str, source_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start
) -> None:
    way = proxy(pair.new)
    with stuck(start, target_url, table, *arguments(source_url, way.url(target_url))) as program:
        way.swallow("COMMIT")
    done = program.ended()
    assert way.swallowed
    assert len(retried(done)) == 1
    assert_done(done, source_url, target_url)


@pytest.mark.soak
def test_commit_of_changed_rows_without_an_answer_loses_no_row(
    source_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start
) -> None:
    way = proxy(pair.new)
    url = way.url(target_url)
    with stuck(start, target_url, LOGS, *arguments(source_url, url)) as program:
        program.kill()
    ask(source_url, f'UPDATE "{KEYS}" SET spend = spend + 1')
    with stuck(start, target_url, LATE, "copy", "--resume", "--json", "--source", source_url, "--target", url) as again:
        way.swallow("COMMIT")
    done = again.ended()
    assert (way.swallowed, len(retried(done))) == (True, 1)
    assert_done(done, source_url, target_url)


# -- ended sessions and servers -------------------------------------------------------------------


@pytest.mark.parametrize("table", [pytest.param(LATE, marks=pytest.mark.soak), LOGS])
def test_ended_target_backend_is_retried(table: str, source_url: str, target_url: str, start: Start) -> None:
    with stuck(start, target_url, table, *arguments(source_url, target_url)) as program:
        assert terminate(target_url, STEP) == 1
        wait_until(lambda: "step_retried" in program.said())
    assert_done(program.ended(), source_url, target_url)


def test_ended_source_backend_is_retried(source_url: str, target_url: str, start: Start) -> None:
    with stuck(start, target_url, LOGS, *arguments(source_url, target_url)) as program:
        assert terminate(source_url, STEP) == 1
    done = program.ended()
    assert retried(done) == [f"public.{LOGS}"]
    assert_done(done, source_url, target_url)


@pytest.mark.parametrize("table", [pytest.param(LATE, marks=pytest.mark.soak), LOGS])
def test_ended_snapshot_stops_the_run_before_it_mixes_two_states(
    table: str, source_url: str, target_url: str, start: Start, run: Run
) -> None:
    keys = rows_of(source_url, KEYS)
    with stuck(start, target_url, table, *arguments(source_url, target_url, "--jobs", "1")) as program:
        assert terminate(source_url, HOLDER) == 1
        wait_until(lambda: backends(source_url, HOLDER) == 0)
        ask(source_url, f'UPDATE "{KEYS}" SET spend = spend + 1')
        ask(source_url, 'DELETE FROM "MishikaLLM_AuditLog"')
    done = program.ended()
    assert (done.status, "copy --resume" in done.err) == (5, True), done.err
    assert rows_of(target_url, KEYS) == keys
    assert_done(resumed(run, source_url, target_url), source_url, target_url)


@pytest.mark.soak
def test_ended_watch_takes_its_lock_again(source_url: str, target_url: str, start: Start, run: Run) -> None:
    with stuck(start, target_url, LOGS, *arguments(source_url, target_url)) as program:
        assert terminate(target_url, WATCH) == 1
        wait_until(lambda: backends(target_url, WATCH) == 0)
        wait_until(lambda: backends(target_url, WATCH) == 1)
        second = resumed(run, source_url, target_url)
    assert second.status == 4, second.err
    assert_done(program.ended(), source_url, target_url)


def test_run_that_lost_its_lock_to_another_stops(source_url: str, target_url: str, start: Start) -> None:
    other = psycopg.connect(target_url, autocommit=True, application_name="somebody")
    with closing(other), stuck(start, target_url, LOGS, *arguments(source_url, target_url)) as program:
        pid = other.info.backend_pid
        other.pgconn.send_query(b"SELECT pg_advisory_lock(%d)" % 0x6D69_7368_696B_61)
        queued = "SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"
        wait_until(lambda: ask(target_url, queued))
        terminate(target_url, WATCH)
        done = program.ended()
    assert (done.status, f"backend {pid}, somebody" in " ".join(done.err.split())) == (5, True), done.err


@pytest.mark.parametrize("side", [pytest.param("source", marks=pytest.mark.soak), "target"])
def test_server_that_crashes_under_a_copy(
    side: str, source_url: str, target_url: str, pair: Pair, start: Start, run: Run
) -> None:
    server = pair.old if side == "source" else pair.new
    with locked(target_url, LOGS):
        program = start(*arguments(source_url, target_url))
        wait_until(lambda: blocked(target_url) and backends(target_url, STEP) == 1)
        server.restart("immediate")
    done = program.ended()
    # A crash takes the snapshot with it, and those bulk steps that had not reached the disk.
    assert done.status in ((5,) if side == "source" else (0, 5)), done.err
    if done.status == 5:
        done = resumed(run, source_url, target_url)
    assert_done(done, source_url, target_url)


# -- disks ----------------------------------------------------------------------------------------


def test_full_disk_in_the_bulk_ends_with_5_and_is_resumed_once_there_is_room(
    source_url: str, target_url: str, full_disk: Callable[[str], FullDisk], run: Run
) -> None:
    blow_up(source_url, LOGS, "messages")
    ask(source_url, f'VACUUM ANALYZE "{LOGS}"')
    before = indexes_of(target_url)
    disk = full_disk(LOGS)
    done = run(*arguments(source_url, target_url, *IN_RANGES))
    assert done.status == 5, done.err
    assert LOGS in done.err and "Free space on the server." in done.err and "copy --resume" in done.err, done.err
    assert retried(done) == []
    assert len(rows_of(target_url, LOGS)) < len(rows_of(source_url, LOGS))
    assert_equal(source_url, target_url, [KEYS])
    disk.make_room()
    done = resumed(run, source_url, target_url)
    assert_done(done, source_url, target_url)
    assert f"public.{LOGS}[" in done.out
    assert indexes_of(target_url) == before


def test_full_disk_in_the_core_ends_with_6_and_an_untouched_target(
    source_url: str, target_url: str, full_disk: Callable[[str], FullDisk], run: Run
) -> None:
    blow_up(source_url, "MishikaLLM_TeamTable", "metadata")
    disk = full_disk("MishikaLLM_TeamTable")
    done = run(*arguments(source_url, target_url))
    assert done.status == 6, done.err
    assert "Free space on the server. Run the same command again." in " ".join(done.err.split())
    assert_nothing_landed(target_url)
    disk.make_room()
    assert_done(run(*arguments(source_url, target_url)), source_url, target_url)


# -- other sessions, and servers that do not write ------------------------------------------------


def test_second_run_is_refused_and_told_who_is_at_work(
    source_url: str, target_url: str, start: Start, run: Run
) -> None:
    with stuck(start, target_url, LATE, *arguments(source_url, target_url)) as program:
        second = run(*arguments(source_url, target_url))
        assert second.status == 4, second.err
        assert "another run is working on" in second.err and "/watch, since 20" in second.err
        assert fix_faults.state(target_url) == "running"
    assert_done(program.ended(), source_url, target_url)


def test_resume_of_a_run_that_is_at_work_is_refused_and_leaves_it_alone(
    source_url: str, target_url: str, start: Start, run: Run
) -> None:
    with stuck(start, target_url, LOGS, *arguments(source_url, target_url)) as program:
        second = resumed(run, source_url, target_url)
        assert second.status == 4, second.err
        assert fix_faults.state(target_url) == "running"
        assert backends(target_url, STEP) == 1
    assert_done(program.ended(), source_url, target_url)


@pytest.mark.parametrize(("table", "status"), [(LATE, 6), (LOGS, 5)])
def test_lock_that_nobody_gives_up_ends_with_the_table_in_the_message(
    table: str, status: int, source_url: str, target_url: str, start: Start
) -> None:
    wanted = arguments(source_url, target_url, "--lock-timeout", "200ms", "--retries", "2")
    with locked(target_url, table):
        done = start(*wanted).ended()
    assert done.status == status, done.err
    said = " ".join(done.err.split())
    assert f"table {table}: canceling statement due to lock timeout" in said
    assert "Another session holds a lock on the table" in said
    assert len(retried(done)) == 1


@contextmanager
def lock_on_the_source(start: Start, source: str, target: str, *more: str) -> Iterator[Program]:
    """The program, started, when it has read both catalogs and is about to lock the source's tables."""
    with connect.session(endpoint(target, "target"), name="test") as session:
        ledger.create(session)
    with psycopg.connect(target) as gate:
        gate.execute("LOCK TABLE mishika_migrate.layout IN ACCESS EXCLUSIVE MODE")
        program = start(*arguments(source, target, *more))
        wait_until(lambda: waiting(target, WATCH))
        with locked(source, LOGS, "ACCESS EXCLUSIVE"):
            gate.rollback()
            wait_until(lambda: waiting(source, HOLDER))
            yield program


def waiting(url: str, name: str) -> bool:
    query = (
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE %(name)s"
    )
    return bool(ask(url, f"{query} AND datname = current_database())", {"name": name}))


def test_lock_on_the_source_ends_with_the_table_in_the_message(source_url: str, target_url: str, start: Start) -> None:
    with lock_on_the_source(start, source_url, target_url, "--lock-timeout", "1s") as program:
        done = program.ended()
    assert done.status == 6, done.err
    assert f"table {LOGS}: canceling statement due to lock timeout" in " ".join(done.err.split())
    assert_nothing_landed(target_url)


def test_database_that_is_read_only_by_default_is_written_all_the_same(
    source_url: str, target_url: str, run: Run
) -> None:
    name = ask(target_url, "SELECT current_database()")
    ask(target_url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    assert_done(run(*arguments(source_url, target_url)), source_url, target_url)


@pytest.fixture
def standby(pair: Pair) -> Iterator[str]:
    """A filled server in recovery: it answers, and accepts no writes."""
    with tempfile.TemporaryDirectory(prefix="mm-") as folder:
        server = servers.Server.create(Path(folder) / "standby", binaries=servers.embedded())
        with server:
            schema.apply(server.url())
            sample.fill(server.url(), keys=20, logs=20)
            server.stop()
            (server.directory / "standby.signal").touch()
            server.start()
            yield server.url()


def test_standby_is_a_source_and_no_target(standby: str, source_url: str, target_url: str, run: Run) -> None:
    refused = run(*arguments(source_url, standby))
    assert refused.status == 4, refused.err
    assert "standby" in refused.err
    assert_done(run(*arguments(standby, target_url)), standby, target_url)


# -- signals --------------------------------------------------------------------------------------

ENDS = pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.soak)]
)


def stopped(program: Program, number: signal.Signals) -> Ended:
    """By the signal, whatever it waits for."""
    program.signal(number)
    return program.ended(seconds=HANGS)


def assert_gone(*urls: str) -> None:
    """No session of ours, and nobody who keeps a snapshot."""
    snapshots = "SELECT count(*) FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()"
    for url in urls:
        assert backends(url) == 0
        assert ask(url, f"{snapshots} AND datname = current_database()") == 0


@ENDS
def test_signal_in_the_core_leaves_the_target_untouched(
    number: signal.Signals, status: int, source_url: str, target_url: str, start: Start, run: Run
) -> None:
    with stuck(start, target_url, LATE, *arguments(source_url, target_url, *PATIENT)) as program:
        done = stopped(program, number)
        assert done.status == status, done.err
        assert "nothing was written" in done.err and "Run the same command again." in done.err
        assert done.lines()[-2]["event"] == "run_stopped"
        assert fix_faults.state(target_url) == "stopped"
        assert_gone(source_url, target_url)
    assert_nothing_landed(target_url)
    assert_done(run(*arguments(source_url, target_url)), source_url, target_url)


@ENDS
def test_signal_in_the_bulk_keeps_what_landed(
    number: signal.Signals, status: int, source_url: str, target_url: str, start: Start, run: Run
) -> None:
    with stuck(start, target_url, LOGS, *arguments(source_url, target_url, *PATIENT)) as program:
        done = stopped(program, number)
        assert done.status == status, done.err
        assert "steps have landed" in done.err and "mishika-migrate copy --resume" in done.err
        assert fix_faults.state(target_url) == "stopped"
        assert_gone(source_url, target_url)
    assert_equal(source_url, target_url, [KEYS])
    assert rows_of(target_url, LOGS) == []
    assert_done(resumed(run, source_url, target_url), source_url, target_url)


def test_signal_while_the_snapshot_waits_for_a_lock_of_the_source(
    source_url: str, target_url: str, start: Start
) -> None:
    with lock_on_the_source(start, source_url, target_url, *PATIENT) as program:
        done = stopped(program, signal.SIGINT)
        assert done.status == 130, done.err
        assert "nothing was written" in done.err
        assert_gone(target_url)
        assert backends(source_url) == 0


@pytest.mark.parametrize("side", [pytest.param("source", marks=pytest.mark.soak), "target"])
def test_signal_is_heard_when_the_network_stalls(
    side: str, source_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start, run: Run
) -> None:
    way = proxy(pair.old if side == "source" else pair.new)
    ends = (way.url(source_url), target_url) if side == "source" else (source_url, way.url(target_url))
    with stuck(start, target_url, LOGS, *arguments(*ends)) as program:
        way.stall()
    if side == "source":
        wait_until(lambda: fix_faults.landed(target_url, "MishikaLLM_AuditLog"))
    done = stopped(program, signal.SIGINT)
    assert (done.status, "Traceback" in done.err) == (130, False), done.err
    way.flow()
    wait_until(lambda: backends(source_url) + backends(target_url) == 0)
    assert rows_of(target_url, LOGS) == []
    assert_done(resumed(run, *ends), source_url, target_url)


def test_signal_is_heard_before_the_run_is_in_the_ledger(
    source_url: str, target_url: str, start: Start, run: Run
) -> None:
    with stuck(start, target_url, LATE, *arguments(source_url, target_url, *PATIENT)) as first:
        stopped(first, signal.SIGINT)
    with psycopg.connect(target_url) as holder:
        holder.execute("LOCK TABLE mishika_migrate.run IN SHARE MODE")
        program = start(*arguments(source_url, target_url, *PATIENT))
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE '%%/watch'"
        )
        wait_until(lambda: ask(target_url, waiting.replace("%%", "%")) == 1)
        done = stopped(program, signal.SIGTERM)
        assert (done.status, "Traceback" in done.err) == (143, False), done.err
        wait_until(lambda: backends(source_url) + backends(target_url) == 0)
    assert_nothing_landed(target_url)


def test_second_signal_ends_at_once(
    source_url: str, target_url: str, pair: Pair, proxy: MakeProxy, start: Start
) -> None:
    way = proxy(pair.new)
    with stuck(start, target_url, LOGS, *arguments(source_url, way.url(target_url))) as program:
        way.stall()
        program.signal(signal.SIGINT)
        wait_until(lambda: "once more ends at once" in program.said())
        done = stopped(program, signal.SIGINT)
    assert (done.status, "ended at once" in done.err, "run_stopped" in done.out) == (130, True, False), done.err


SLOW_DUMP = """#!/bin/sh
[ "$1" = --version ] && echo "pg_dump (PostgreSQL) 99.0" && exit
echo $$ > "$0.pid"
exec sleep 600
"""


def test_signal_lets_no_pg_dump_live(source_url: str, pair: Pair, clone: Clone, start: Start, tmp_path: Path) -> None:
    target = clone(pair.new, "template0")
    slow = tmp_path / "bin" / "pg_dump"
    slow.parent.mkdir()
    slow.write_text(SLOW_DUMP)
    slow.chmod(0o755)
    program = start(
        *arguments(source_url, target, "--create-schema"), env={"PATH": f"{slow.parent}:{os.environ['PATH']}"}
    )
    wait_until(lambda: Path(f"{slow}.pid").exists() and Path(f"{slow}.pid").read_text().strip())
    done = stopped(program, signal.SIGINT)
    assert done.status == 130, done.err
    assert not Path("/proc", Path(f"{slow}.pid").read_text().strip()).exists()
    assert tables_of(target) == []
