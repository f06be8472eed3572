"""The same run in threads, in processes and on a Dask cluster: equal, retried, stopped, resumed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from mishika_migrate import errors, model
from mishika_migrate.operations.copying import executors, work
from tests import fix_faults
from tests.fix_cluster import Cluster, children
from tests.fix_faults import LOGS, STEP, Start, backends, blocked, landed, locked, terminate, wait_until
from tests.fix_program import Ended, Run
from tests.fix_servers import assert_equal, tables_of

LEFT = {"MishikaLLM_CronJob", "_prisma_migrations"}
SECRET = "geheim-4711"


@pytest.fixture(params=["threads", "processes", "dask"])
def executor(request: pytest.FixtureRequest) -> str:
    if request.param == "dask":
        return f"dask={request.getfixturevalue('cluster').address}"
    return str(request.param)


def arguments(source: str, target: str, executor: str, *more: str) -> tuple[str, ...]:
    ends = ("--source", source, "--target", target, "--executor", executor, "--json", "--jobs", "2")
    return ("copy", *(more or ("--everything", "--yes")), *ends)


def copied(source: str) -> list[str]:
    return [table for table in tables_of(source) if table not in LEFT]


def only_logs_are_left(source: str, target: str) -> bool:
    return blocked(target) and all(landed(target, table) for table in copied(source) if table != LOGS)


def assert_done(done: Ended, source: str, target: str) -> None:
    assert done.status == 0, done.err
    assert_equal(source, target, copied(source))
    assert fix_faults.state(target) == "finished"


def retried(done: Ended) -> list[str]:
    return [line["step"] for line in done.lines() if line["event"] == "step_retried"]


def test_copy_is_equal_and_an_ended_backend_is_retried(
    executor: str, source_url: str, target_url: str, start: Start
) -> None:
    with locked(target_url, LOGS):
        program = start(*arguments(source_url, target_url, executor))
        wait_until(lambda: only_logs_are_left(source_url, target_url))
        assert terminate(target_url, STEP) == 1
        wait_until(lambda: "step_retried" in program.said())
    done = program.ended()
    assert retried(done) == [f"public.{LOGS}"]
    assert_done(done, source_url, target_url)


def test_ctrl_c_leaves_nothing_running_and_the_run_is_resumed(
    executor: str, source_url: str, target_url: str, start: Start, run: Run
) -> None:
    with locked(target_url, LOGS):
        program = start(*arguments(source_url, target_url, executor))
        wait_until(lambda: only_logs_are_left(source_url, target_url))
        helpers = children(program.process.pid)
        for pid in (*helpers, program.process.pid):  # as a terminal does it
            os.kill(pid, signal.SIGINT)
        done = program.ended(seconds=10)
        wait_until(lambda: backends(target_url) == backends(source_url) == 0)
    assert done.status == 130, done.err
    assert "Traceback" not in done.err
    assert not [pid for pid in helpers if Path(f"/proc/{pid}").exists()]
    assert_done(run(*arguments(source_url, target_url, executor, "--resume")), source_url, target_url)


def test_killed_processes_are_replaced_and_their_steps_retried(source_url: str, target_url: str, start: Start) -> None:
    with locked(target_url, LOGS):
        program = start(*arguments(source_url, target_url, "processes"))
        wait_until(lambda: only_logs_are_left(source_url, target_url))
        os.kill(children(program.process.pid)[0], signal.SIGKILL)
        wait_until(lambda: "step_retried" in program.said())
    done = program.ended()
    assert retried(done) == [f"public.{LOGS}"]
    assert_done(done, source_url, target_url)


def test_program_killed_for_good_leaves_no_process_behind(source_url: str, target_url: str, start: Start) -> None:
    with locked(target_url, LOGS):
        program = start(*arguments(source_url, target_url, "processes"))
        wait_until(lambda: only_logs_are_left(source_url, target_url))
        helpers = children(program.process.pid)
        program.kill()
        wait_until(lambda: not [pid for pid in helpers if running(pid)])
    assert helpers


def running(pid: int) -> bool:
    """A process that nobody waits for stays as a zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_killed_dask_worker_loses_no_row_and_shows_no_secret(
    cluster: Cluster, source_url: str, target_url: str, start: Start
) -> None:
    wait_until(cluster.complete)
    source, target = (url.replace("postgres@", f"postgres:{SECRET}@") for url in (source_url, target_url))
    assert SECRET in source
    with locked(target_url, LOGS):
        program = start(*arguments(source, target, f"dask={cluster.address}"))
        wait_until(lambda: only_logs_are_left(source_url, target_url))
        assert terminate(target_url, STEP) == 1
        wait_until(lambda: "step_retried" in program.said())
        wait_until(lambda: only_logs_are_left(source_url, target_url))
        said = cluster.said()
        cluster.kill_busy()
    done = program.ended()
    assert_done(done, source_url, target_url)
    wait_until(cluster.complete)
    said += cluster.said()
    assert f"/public.{LOGS}/" in said
    assert "Compute Failed" in said
    assert SECRET not in said + done.out + done.err


def test_scheduler_that_does_not_answer_is_a_mistake_in_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_ANSWER_SECONDS", 0.2)
    with (
        pytest.raises(errors.ConfigurationError, match="no Dask scheduler answers at tcp://127") as caught,
        executors.workers("dask=tcp://127.0.0.1:1", jobs=1),
    ):
        pass
    assert "--executor dask=tcp://host:8786" in caught.value.hint


def test_missing_package_is_said_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(errors.ConfigurationError) as caught,
        executors.workers("dask=tcp://127.0.0.1:1", jobs=1),
    ):
        pass
    assert "mishika-migrate[dask]" in caught.value.hint


def test_other_version_on_a_worker_is_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mishika_migrate.__version__", "0.0.0")
    with (
        pytest.raises(errors.ConfigurationError, match=r"has mishika-migrate .*, not 0\.0\.0"),
        executors.workers(f"dask={cluster.address}", jobs=1),
    ):
        pass


def die(pid: int = 0) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_lost_worker_is_a_transient_failure_and_takes_no_waiting_call_along() -> None:
    with executors.workers("processes", jobs=1) as pool:
        first, second = pool.submit(die), pool.submit(os.getpid)
        error = first.exception(timeout=30)
        assert isinstance(error, errors.WorkerLost)
        assert error.transient
        assert second.result(timeout=30) != os.getpid()


def test_no_name_of_a_task_is_the_beginning_of_another_one() -> None:
    """An attempt ends the sessions that its predecessor may have left, by that name."""
    names = [named(number) for number in range(1200)]
    assert not [name for name in names for number in (1, 11, 110) if name != named(number) and name in named(number)]


def named(number: int) -> str:
    nowhere = model.Endpoint(role="source", conninfo="", label="nowhere")
    return work.Task(
        run="a run", number=number, stage="bulk", steps=(), source=nowhere, target=nowhere, snapshot=None
    ).name
