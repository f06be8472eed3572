"""Runs tasks, many at once, and tries them again when a failure is worth it.

Imports work, events and the words; the only home of tenacity. A worker never waits before a
retry: the task goes back to the queue, so the same loop serves every executor and a stop is
noticed at once.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import tenacity
from tenacity.stop import stop_base

from mishika_migrate import errors, events, model
from mishika_migrate.operations.copying import work

_TICK_SECONDS = 0.25

# After this time a task that does not end is given up; what it did is for the ledger to say.
_DRAIN_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """At most `attempts` of one task, none of them begun later than `seconds` after its first failure."""

    attempts: int = 5
    seconds: float = 120.0


class Interruption(Exception):
    """`stopping` became true; every open task was rolled back."""


def run(
    tasks: Sequence[work.Task],
    *,
    executor: concurrent.futures.Executor,
    jobs: int,
    policy: Policy,
    emit: Callable[[events.Event], None],
    tick: Callable[[], None],
    stopping: Callable[[], bool],
    end: Callable[[float], object],
    landed: Callable[[model.Landed], None],
    perform: work.Perform = work.perform,
) -> None:
    """Returns when every task has committed; `landed` hears of each step that did.

    No more than `jobs` tasks are with `executor`; one that is to be tried again goes before those that
    were never begun.
    Raises the first failure that is not worth another try, after all other open tasks have ended;
    what they committed before stays, and is told and emitted. `tick` is called a few times a second in this
    thread. `end` makes open tasks end; it is called again and again with the seconds that it has
    been trying for.
    """
    queue = [_Try.first(task, policy) for task in tasks]
    loop = _Loop(executor=executor, jobs=jobs, perform=perform, emit=emit, landed=landed, queue=queue)
    try:
        while loop.open:
            if stopping():
                raise Interruption
            loop.submit()
            loop.collect()
            tick()
    except BaseException:
        loop.drain(end)
        raise


@dataclass(slots=True, kw_only=True)
class _Try:
    """One task on its way: the attempt that is next, and when it may start (monotonic seconds)."""

    task: work.Task
    attempt: int
    ready: float
    attempts: Iterator[tenacity.AttemptManager]
    current: tenacity.AttemptManager

    @classmethod
    def first(cls, task: work.Task, policy: Policy) -> _Try:
        attempts = iter(
            tenacity.Retrying(
                stop=tenacity.stop_any(_Enough(policy.attempts), _TooLate(policy.seconds)),
                wait=tenacity.wait_random_exponential(multiplier=0.5, max=15),
                retry=tenacity.retry_if_exception(_worth_another),
                sleep=lambda seconds: None,
                reraise=True,
            )
        )
        return cls(task=task, attempt=1, ready=0.0, attempts=attempts, current=next(attempts))

    def again(self, error: BaseException) -> float:
        """Seconds to wait before the next attempt; raises `error` when there is none."""
        state = self.current.retry_state
        state.set_exception((type(error), error, error.__traceback__))
        self.current = next(self.attempts)
        self.attempt += 1
        wait = state.upcoming_sleep
        self.ready = time.monotonic() + wait
        return wait


class _Enough(stop_base):
    """Counts attempts that met a server. One that is away for some seconds, as at a restart, turns connections down at
    once, and would use up all attempts of some task among many."""

    def __init__(self, attempts: int) -> None:
        self._left = attempts

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        if not _away(retry_state.outcome.exception() if retry_state.outcome else None):
            self._left -= 1
        return self._left <= 0


class _TooLate(stop_base):
    """Counts from the first failure: tenacity's own stop_before_delay counts from the start, and a
    table that copied well for an hour still deserves its retries."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._first: float | None = None

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        now = time.monotonic()
        if self._first is None:
            self._first = now
        return now + retry_state.upcoming_sleep - self._first > self._seconds


def _away(error: BaseException | None) -> bool:
    """Whether a server that has answered before gives no session now."""
    return isinstance(error, errors.Unreachable) and error.transient


def _worth_another(error: BaseException) -> bool:
    return isinstance(error, errors.ServerError) and error.transient


@dataclass(slots=True, kw_only=True)
class _Loop:
    executor: concurrent.futures.Executor
    jobs: int
    perform: work.Perform
    emit: Callable[[events.Event], None]
    landed: Callable[[model.Landed], None]
    queue: list[_Try]
    running: dict[concurrent.futures.Future[tuple[model.Landed, ...]], _Try] = field(default_factory=dict)
    away: bool = False

    @property
    def open(self) -> bool:
        return bool(self.queue or self.running)

    def submit(self) -> None:
        now = time.monotonic()
        # While a server is away only those that have met that ask again, not one after the other of those behind them.
        ready = [item for item in self.queue if item.ready <= now and not (self.away and item.attempt == 1)]
        # On a silent network each attempt takes a connect_timeout (10 s): behind thousands of ranges the second
        # one would come hours later, and with it the moment to give up.
        ready.sort(key=lambda item: item.attempt, reverse=True)
        for item in ready[: self.jobs - len(self.running)]:
            self.queue.remove(item)
            self.running[self.executor.submit(self.perform, item.task, attempt=item.attempt)] = item

    def collect(self) -> None:
        if not self.running:
            time.sleep(_TICK_SECONDS)  # every task waits for its next attempt
            return
        ended, _ = concurrent.futures.wait(
            self.running, timeout=_TICK_SECONDS, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in ended:
            self._take(future, self.running.pop(future))

    def _take(self, future: concurrent.futures.Future[tuple[model.Landed, ...]], item: _Try) -> None:
        error = future.exception()
        self.away = _away(error)
        if error is None:
            self._finished(item.task, future.result())
            return
        wait = item.again(error)
        self.emit(events.StepRetried(step=item.task.id, attempt=item.attempt, error=str(error), wait=round(wait, 1)))
        self.queue.append(item)

    def _finished(self, task: work.Task, landed: tuple[model.Landed, ...]) -> None:
        for outcome in landed:
            self.landed(outcome)
        for step, outcome in zip(task.steps, landed, strict=True):
            self.emit(
                events.StepFinished(
                    step=step.id,
                    stage=task.stage,
                    table=outcome.table,
                    kind=type(step).__name__,
                    rows=outcome.rows_in,
                    bytes=outcome.bytes,
                    seconds=outcome.seconds,
                )
            )

    def drain(self, end: Callable[[float], object]) -> None:
        """Ends all open tasks. What one commits meanwhile is reported; no failure matters any more."""
        self.queue.clear()
        for future in self.running:
            future.cancel()
        began = time.monotonic()
        late: list[tuple[work.Task, tuple[model.Landed, ...]]] = []
        while self.running and (trying := time.monotonic() - began) < _DRAIN_SECONDS:
            end(trying)
            ended, _ = concurrent.futures.wait(self.running, timeout=_TICK_SECONDS)
            for future in ended:
                item = self.running.pop(future)
                if not future.cancelled() and future.exception() is None:
                    late.append((item.task, future.result()))
        for task, landed in late:
            self._finished(task, landed)  # at last, because `emit` may raise
