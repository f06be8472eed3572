"""What is tried again, how often and how long, and what becomes of the other tasks. No server."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

import pytest

from mishika_migrate import errors, events, model
from mishika_migrate.operations.copying import engine, work
from mishika_migrate.pg import connect

SOON = engine.Policy(attempts=3, seconds=60.0)


def task(name: str) -> work.Task:
    return work.Task(
        run="a run",
        number=0,
        stage="bulk",
        steps=(model.Analyze(target=model.TableName(schema="public", name=name), columns=()),),
        source=model.Endpoint(role="source", conninfo="", label="nowhere"),
        target=model.Endpoint(role="target", conninfo="", label="nowhere"),
        snapshot=None,
    )


def outcome(task: work.Task) -> tuple[model.Landed, ...]:
    return tuple(model.Landed(step=s.id, table="", rows_out=1, rows_in=1, bytes=1, seconds=0.0) for s in task.steps)


def lost() -> errors.ServerError:
    return errors.ServerError("the network is down", transient=True)


@dataclass
class Worker:
    """Fails with what `failures` names for a step, first come first served, then succeeds."""

    failures: dict[str, list[BaseException]] = field(default_factory=dict)
    attempts: list[tuple[str, int]] = field(default_factory=list)
    before: Callable[[work.Task], None] = lambda task: None

    def __call__(self, task: work.Task, *, attempt: int = 1) -> tuple[model.Landed, ...]:
        self.attempts.append((task.id, attempt))
        self.before(task)
        waiting = self.failures.get(task.id, [])
        if waiting:
            raise waiting.pop(0)
        return outcome(task)


def wait(event: threading.Event) -> None:
    assert event.wait(10)


@dataclass
class Heard:
    """What the engine told its caller."""

    said: list[events.Event] = field(default_factory=list)
    landed: list[str] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    ticks: int = 0
    end: Callable[[], None] = lambda: None

    def tick(self) -> None:
        self.ticks += 1

    def ending(self, seconds: float) -> None:
        self.ends.append(seconds)
        self.end()

    def of(self, kind: type[events.Event]) -> list[events.Event]:
        return [event for event in self.said if isinstance(event, kind)]


@pytest.fixture
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def go(
    pool: Executor,
    names: tuple[str, ...],
    perform: work.Perform,
    heard: Heard,
    *,
    jobs: int = 4,
    policy: engine.Policy = SOON,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    engine.run(
        [task(name) for name in names],
        executor=pool,
        jobs=jobs,
        policy=policy,
        emit=heard.said.append,
        tick=heard.tick,
        stopping=stopping,
        end=heard.ending,
        landed=lambda landed: heard.landed.append(landed.step),
        perform=perform,
    )


ID = "analyze public."


def away() -> errors.Unreachable:
    return errors.Unreachable("the database system is starting up", transient=True)


def test_server_that_is_away_uses_up_no_attempts_and_is_not_asked_by_everybody(pool: Executor) -> None:
    """A restart takes seconds, and turns every connection down at once."""
    heard = Heard()
    worker = Worker({f"{ID}a": [away() for _ in range(SOON.attempts + 2)]})
    go(pool, ("a", *(f"t{number}" for number in range(20))), worker, heard, jobs=1)
    assert len(heard.landed) == 21
    assert [step for step, _ in worker.attempts[: SOON.attempts + 3]] == [f"{ID}a"] * (SOON.attempts + 3)


def test_server_that_stays_away_is_waited_for_as_long_as_is_said(pool: Executor) -> None:
    heard, worker = Heard(), Worker({f"{ID}a": [away() for _ in range(1000)]})
    with pytest.raises(errors.Unreachable):
        go(pool, ("a",), worker, heard, policy=engine.Policy(attempts=1000, seconds=0.5))


def test_transient_failure_is_tried_again_and_told(pool: Executor) -> None:
    heard, worker = Heard(), Worker({f"{ID}a": [lost(), lost()]})
    go(pool, ("a", "b"), worker, heard)
    assert sorted(heard.landed) == [f"{ID}a", f"{ID}b"]
    assert [attempt for step, attempt in worker.attempts if step == f"{ID}a"] == [1, 2, 3]
    told = heard.of(events.StepRetried)
    assert [(e.step, e.attempt, e.error) for e in told if isinstance(e, events.StepRetried)] == [
        (f"{ID}a", 2, "the network is down"),
        (f"{ID}a", 3, "the network is down"),
    ]
    assert heard.ends == []
    assert heard.ticks > 0


@pytest.mark.parametrize(
    "error",
    [
        errors.ServerError("no such column", sqlstate="42703"),
        errors.OutOfSpace("the disk is full", sqlstate="53100"),
        errors.SnapshotLost("gone", sqlstate="22023"),
        errors.Error("books do not balance"),
        ValueError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_permanent_failure_is_raised_at_once(error: Exception, pool: Executor) -> None:
    heard, worker = Heard(), Worker({f"{ID}a": [error]})
    with pytest.raises(type(error)) as raised:
        go(pool, ("a",), worker, heard)
    assert raised.value is error
    assert (len(worker.attempts), heard.landed, heard.of(events.StepRetried)) == (1, [], [])


def test_attempts_are_bounded_and_the_last_error_is_raised(pool: Executor) -> None:
    heard, worker = Heard(), Worker({f"{ID}a": [lost() for _ in range(9)]})
    with pytest.raises(errors.ServerError, match="the network is down"):
        go(pool, ("a",), worker, heard)
    assert len(worker.attempts) == 3


def test_time_is_bounded_from_the_first_failure_on(pool: Executor) -> None:
    policy = engine.Policy(attempts=1000, seconds=0.7)
    slow = threading.Event()

    def slow_first(task: work.Task) -> None:
        slow.wait(1.0)  # nobody sets it: longer than the policy's time, and no failure yet
        slow.set()

    heard, worker = Heard(), Worker({f"{ID}a": [lost() for _ in range(1000)]}, before=slow_first)
    with pytest.raises(errors.ServerError):
        go(pool, ("a",), worker, heard, policy=policy)
    assert 2 <= len(worker.attempts) < 1000


def test_next_attempt_comes_before_what_was_never_begun(pool: Executor) -> None:
    """On a silent network every attempt takes its time, and there may be thousands of ranges."""
    names = tuple(f"{n:03}" for n in range(1000))
    answer = threading.Event()  # nobody sets it

    def dial(task: work.Task) -> None:
        answer.wait(0.05)

    heard, worker = Heard(), Worker({ID + name: [lost() for _ in range(3)] for name in names}, before=dial)
    with pytest.raises(errors.ServerError):
        go(pool, names, worker, heard, jobs=2)
    assert len({step for step, _ in worker.attempts}) < 500


def test_executor_has_no_more_tasks_than_it_can_run(pool: Executor) -> None:
    released, seen = threading.Event(), set()
    heard, worker = Heard(), Worker(before=lambda task: wait(released))

    def look() -> bool:
        if heard.ticks == 2:
            seen.update(worker.attempts)
            released.set()
        return False

    go(pool, ("a", "b", "c"), worker, heard, jobs=1, stopping=look)
    assert seen == {(f"{ID}a", 1)}
    assert heard.landed == [f"{ID}{name}" for name in "abc"]


def test_each_task_has_attempts_of_its_own(pool: Executor) -> None:
    heard, worker = Heard(), Worker({f"{ID}{name}": [lost(), lost()] for name in "abc"})
    go(pool, ("a", "b", "c"), worker, heard)
    assert len(heard.landed) == 3
    assert len(worker.attempts) == 9


def test_failure_ends_the_others_and_tells_what_they_committed(pool: Executor) -> None:
    """`a` fails; `b` commits just then; `c` notices that it is to end, and so does `d`, if it starts."""
    halted, started = threading.Event(), threading.Barrier(3, timeout=10)

    def before(task: work.Task) -> None:
        if task.id != f"{ID}d":
            started.wait()
        if task.id != f"{ID}a":
            wait(halted)
        if task.id in (f"{ID}c", f"{ID}d"):
            raise connect.Stopped

    heard = Heard(end=halted.set)
    worker = Worker({f"{ID}a": [errors.ServerError("permanent")]}, before=before)
    with ThreadPoolExecutor(3) as three, pytest.raises(errors.ServerError, match="permanent"):
        go(three, ("a", "b", "c", "d"), worker, heard)
    assert heard.landed == [f"{ID}b"]
    assert [e.step for e in heard.said if isinstance(e, events.StepFinished)] == [f"{ID}b"]


def test_stop_is_noticed_while_all_wait_for_their_next_attempt(pool: Executor) -> None:
    stop = threading.Event()
    heard, worker = Heard(), Worker({f"{ID}a": [lost()]}, before=lambda task: stop.set())
    with pytest.raises(engine.Interruption):
        go(pool, ("a",), worker, heard, stopping=stop.is_set)
    assert worker.attempts == [(f"{ID}a", 1)]


def test_end_is_asked_for_until_all_have_ended(pool: Executor) -> None:
    released = threading.Event()
    heard = Heard()
    heard.end = lambda: released.set() if len(heard.ends) == 3 else None
    worker = Worker(before=lambda task: wait(released))
    with pytest.raises(engine.Interruption):
        go(pool, ("a",), worker, heard, stopping=lambda: bool(worker.attempts))
    assert len(heard.ends) == 3
    assert heard.ends == sorted(heard.ends)
    assert heard.landed == [f"{ID}a"]


def test_consumer_that_fails_leaves_no_task_behind(pool: Executor) -> None:
    """Events may go to a pipe that nobody reads any more."""
    halted, started = threading.Event(), threading.Barrier(2, timeout=10)

    def before(task: work.Task) -> None:
        started.wait()
        if task.id == f"{ID}b":
            wait(halted)

    def broken(event: events.Event) -> None:
        raise BrokenPipeError

    heard, worker = Heard(end=halted.set), Worker(before=before)
    with pytest.raises(BrokenPipeError):
        engine.run(
            [task("a"), task("b")],
            executor=pool,
            jobs=4,
            policy=SOON,
            emit=broken,
            tick=heard.tick,
            stopping=lambda: False,
            end=heard.ending,
            landed=lambda landed: heard.landed.append(landed.step),
            perform=worker,
        )
    assert heard.landed == [f"{ID}a", f"{ID}b"]


def fails_with_ours(task: work.Task, *, attempt: int = 1) -> tuple[model.Landed, ...]:
    if attempt < 3:
        raise errors.ServerError("from afar", hint="wait", sqlstate="57P01", transient=True)
    return outcome(task)


def test_tasks_and_errors_travel_to_other_processes() -> None:
    heard = Heard()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        go(processes, ("a",), fails_with_ours, heard)
    assert heard.landed == [f"{ID}a"]
    assert len(heard.of(events.StepRetried)) == 2
    assert pickle.loads(pickle.dumps(task("a"))) == task("a")


def test_halt_is_of_one_run_and_can_be_taken_back() -> None:
    work.halt("a run")
    assert task("a").stopping()
    work.proceed("a run")
    work.halt("another run")
    assert not task("a").stopping()
