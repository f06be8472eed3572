"""A run that is slowed down, paused and resumed from outside, or by the source's standbys."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mishika_migrate import errors, model
from mishika_migrate.operations.copying import steering
from mishika_migrate.operations.copying import throttle as throttles
from mishika_migrate.pg import connect, standbys
from mishika_migrate.sandbox import accounts
from tests import fix_faults
from tests.fix_cluster import Cluster
from tests.fix_faults import IN_RANGES, STEP, Program, Start, ask, backends, ranges_landed, wait_until
from tests.fix_program import Ended, Run
from tests.fix_servers import Clone, Pair, assert_equal, endpoint, tables_of

LEFT = {"MishikaLLM_CronJob", "_prisma_migrations"}
CONTROL = "mishika-migrate/%/control"


@pytest.fixture(
    params=["threads", pytest.param("processes", marks=pytest.mark.soak), pytest.param("dask", marks=pytest.mark.soak)]
)
def executor(request: pytest.FixtureRequest) -> str:
    if request.param == "dask":
        cluster: Cluster = request.getfixturevalue("cluster")
        wait_until(cluster.complete)
        return f"dask={cluster.address}"
    return str(request.param)


def arguments(source: str, target: str, *more: str) -> tuple[str, ...]:
    return ("copy", "--everything", "--yes", "--json", "--source", source, "--target", target, *more)


def throttle(run: Run, target: str, wish: str) -> Ended:
    done = run("throttle", wish, "--json", "--target", target)
    assert done.status == 0, done.err
    return done


def noticed(program: Program, words: str) -> None:
    """Waits until the run itself has said that it heard."""
    wait_until(lambda: words in program.said())


def under_way(target: str) -> bool:
    return fix_faults.state(target) == "running" and backends(target, STEP) > 0


def moved(target: str) -> int:
    """The bytes that the target has received in open streams."""
    return int(ask(target, "SELECT coalesce(sum(bytes_processed), 0) FROM pg_stat_progress_copy"))


def workers_have_heard(target: str) -> bool:
    """Whether every listener of another process has looked since the last word."""
    return bool(
        ask(
            target,
            "SELECT count(*) > 0 AND bool_and(query_start > (SELECT max(asked_at) FROM mishika_migrate.control))"
            " FROM pg_stat_activity WHERE application_name LIKE %(name)s AND datname = current_database()",
            {"name": CONTROL},
        )
    )


def assert_done(done: Ended, source: str, target: str) -> None:
    assert done.status == 0, done.err
    assert_equal(source, target, [table for table in tables_of(source) if table not in LEFT])


def test_paused_run_moves_no_byte_until_it_is_resumed(
    executor: str, source_url: str, target_url: str, start: Start, run: Run
) -> None:
    elsewhere = executor != "threads"
    program = start(*arguments(source_url, target_url, "--max-rate", "20kB/s", "--executor", executor))
    wait_until(lambda: under_way(target_url))
    assert '"paused": true' in throttle(run, target_url, "pause").out
    noticed(program, "paused by")
    wait_until(lambda: not elsewhere or workers_have_heard(target_url))
    before = moved(target_url)
    assert '"rate": null' in throttle(run, target_url, "off").out
    noticed(program, "without a limit from now on")
    wait_until(lambda: not elsewhere or workers_have_heard(target_url))
    assert (moved(target_url), program.running) == (before, True)
    throttle(run, target_url, "resume")
    assert_done(program.ended(), source_url, target_url)
    wait_until(lambda: backends(target_url, CONTROL) == 0)


@pytest.mark.parametrize("executor", [pytest.param("threads", marks=pytest.mark.soak), "processes"])
def test_ctrl_c_ends_a_paused_run_and_the_next_one_is_not_paused(
    executor: str, source_url: str, target_url: str, start: Start, run: Run
) -> None:
    more = ("--executor", executor)
    program = start(*arguments(source_url, target_url, "--max-rate", "20kB/s", *more))
    wait_until(lambda: under_way(target_url))
    throttle(run, target_url, "pause")
    noticed(program, "paused by")
    program.signal(signal.SIGINT)
    done = program.ended(seconds=10)
    assert (done.status, "Traceback" in done.err) == (130, False), done.err
    wait_until(lambda: backends(target_url) == backends(source_url) == 0)
    assert_done(run(*arguments(source_url, target_url, *more)), source_url, target_url)


def test_resumed_run_keeps_what_the_operator_has_said(long_url: str, target_url: str, start: Start, run: Run) -> None:
    more = ("--max-rate", "1MB/s", *IN_RANGES)
    program = start(*arguments(long_url, target_url, *more))
    wait_until(lambda: under_way(target_url) and ranges_landed(target_url) > 0)
    throttle(run, target_url, "pause")
    noticed(program, "paused by")
    throttle(run, target_url, "40MB/s")
    program.kill()
    done = run("copy", "--resume", "--source", long_url, "--target", target_url)
    assert done.status == 0, done.err
    assert "at most 40 MB/s, as before" in done.err
    assert "it was paused before, and goes on now" in done.err


def test_throttle_without_a_run_under_way_is_refused(source_url: str, target_url: str, start: Start, run: Run) -> None:
    def refused() -> None:
        done = run("throttle", "50MB/s", "--target", target_url)
        assert (done.status, "no run is under way on" in done.err) == (4, True), done.err

    refused()
    program = start(*arguments(source_url, target_url, "--max-rate", "20kB/s"))
    wait_until(lambda: under_way(target_url))
    assert "of 50 MB/s" not in program.said()
    said = run("throttle", "50MB/s", "--target", target_url)
    assert (said.status, said.out.count("at most 50 MB/s from now on; until now at most 20 kB/s")) == (0, 1), said
    noticed(program, "at most 50 MB/s from now on")
    assert program.ended().status == 0
    refused()


@pytest.mark.parametrize("wish", ["fast", "", "0", "5", "50MB/min", "postgresql://u:SECRET@h/d"])
def test_wish_that_is_none_is_refused_without_being_repeated(wish: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        throttles.wish(wish)
    assert "such as 50MB/s" in caught.value.hint
    assert "SECRET" not in f"{caught.value} {caught.value.hint}"


# -- standbys -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def standby(pair: Pair) -> Iterator[str]:
    """The address of a standby of the old server, which says every second how far it is."""
    path = Path(pair.old._binaries.path)
    account = accounts.unprivileged()
    with tempfile.TemporaryDirectory(prefix="mm-standby-") as folder:
        place = Path(folder) / "data"
        accounts.own(Path(folder), account)
        known = accounts.run_as(account)
        source = f"host={pair.old.socket.parent} port={pair.old.socket.suffix[1:]} user=postgres"
        subprocess.run(
            [path / "pg_basebackup", "-D", place, "-d", source, "-R", "-X", "stream", "-c", "fast"],
            check=True, capture_output=True, **known,
        )  # fmt: skip
        settings = f"\nlisten_addresses = ''\nunix_socket_directories = '{folder}'\nwal_receiver_status_interval = 1\n"
        with (place / "postgresql.auto.conf").open("a") as file:
            file.write(settings)
        server = subprocess.Popen(
            [path / "postgres", "-D", place], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **known
        )
        try:
            wait_until(
                lambda: ask(pair.old.url(), "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")
            )
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(timeout=30)


def write(url: str) -> bool:
    """Something for the standby to be behind with."""
    ask(url, "CREATE TABLE IF NOT EXISTS noise (n int)")
    return ask(url, "INSERT INTO noise SELECT generate_series(1, 1000) RETURNING true") is True


def test_run_waits_for_a_standby_that_is_behind_and_says_so(
    pair: Pair, standby: str, clone: Clone, source_url: str, target_url: str, start: Start, run: Run
) -> None:
    other = clone(pair.old, "template0")
    ask(standby, "SELECT pg_wal_replay_pause()")
    program = start(*arguments(source_url, target_url, "--max-rate", "20kB/s", "--pause-if-lag", "500ms"))
    wait_until(lambda: "of the source is" in program.said() or not write(other))
    wait_until(lambda: ask(target_url, "SELECT waiting FROM mishika_migrate.control"))
    assert "it waits for a standby" in throttle(run, target_url, "off").out
    noticed(program, "without a limit from now on")
    assert program.running
    ask(standby, "SELECT pg_wal_replay_resume()")
    done = program.ended()
    assert "going on after" in done.out
    assert_done(done, source_url, target_url)


def test_role_that_may_not_see_the_lag_is_told_so_once(standby: str, source: model.Endpoint, source_url: str) -> None:
    assert standby
    name = f"blind{os.getpid()}"
    ask(source_url, f"CREATE ROLE {name} LOGIN")
    watching = steering.Standbys(source, "a run", 30.0)
    with connect.session(endpoint(source_url.replace("postgres@", f"{name}@"), "source"), name="a test") as session:
        for _ in range(2):
            watching.judge(standbys.lag(session))
    (said,) = watching.said
    assert said.endswith(f'on the source: GRANT pg_monitor TO "{name}";')
    assert not watching.behind


def test_waiting_begins_above_the_limit_and_ends_below_half_of_it(source: model.Endpoint) -> None:
    watching = steering.Standbys(source, "a run", 10.0)
    found = []
    for seconds in (0.0, 10.0, 10.1, 9.0, 5.1, 5.0, 9.0):
        watching.judge(standbys.Lag(count=1, hidden=False, name="s1", seconds=seconds))
        found.append(watching.behind)
    assert found == [False, False, True, True, True, False, False]
    assert [said.split(":")[0].split(" after")[0] for said in watching.said] == ["waiting", "going on"]


def test_source_without_a_standby_is_said_once(source: model.Endpoint) -> None:
    watching = steering.Standbys(source, "a run", 10.0)
    for _ in range(2):
        watching.judge(standbys.Lag(count=0, hidden=False))
    assert watching.said == [f"{source.label} has no standby now; one that comes is waited for"]
