"""Where tasks run: in threads, in processes of this machine, or on an existing Dask cluster.

Imports errors only; `distributed` when it is asked for. All of them are `concurrent.futures`: what
a task returns or raises is the same wherever it ran, and a worker that dies is a failure to be
tried again.
"""

from __future__ import annotations

import abc
import concurrent.futures
import contextlib
import importlib
import importlib.metadata
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from multiprocessing import context
from typing import Any, TypeVar

import mishika_migrate
from mishika_migrate import errors

DASK = "dask="

_T = TypeVar("_T")
_ANSWER_SECONDS = 10.0
_EXIT_SECONDS = 2.0


class Workers(Executor):
    """An executor that runs `jobs` calls at once. `elsewhere` says that they run in other processes."""

    elsewhere = False
    jobs = 1

    def kill(self) -> None:
        """Ends workers that do not end by themselves, as far as they are of this machine."""


@contextmanager
def workers(choice: str, *, jobs: int) -> Iterator[Workers]:
    """`threads`, `processes` or `dask=ADDRESS`; closed, with nothing left running, at the end of the block.

    `errors.ConfigurationError` when they cannot be had.
    """
    if choice == "threads":
        with _Threads(jobs) as threads:
            yield threads
    elif choice == "processes":
        with _Processes(jobs) as processes:
            yield processes
    else:
        with _dask(choice.removeprefix(DASK), jobs) as cluster:
            yield cluster


class _Threads(concurrent.futures.ThreadPoolExecutor, Workers):
    def __init__(self, jobs: int) -> None:
        super().__init__(jobs, thread_name_prefix="step")
        self.jobs = jobs


class _Elsewhere(Workers, abc.ABC):
    """At most `jobs` calls are under way; the others wait here, so that a dying worker takes none of them along."""

    elsewhere = True

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._guard = threading.RLock()
        self._waiting: deque[tuple[Future[Any], Callable[[], Future[Any]]]] = deque()
        self._under_way = 0
        self._closed = False

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        outer: Future[_T] = Future()
        with self._guard:
            self._waiting.append((outer, lambda: self._start(fn, *args, **kwargs)))
        self._go_on()
        return outer

    @abc.abstractmethod
    def _start(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begins one call at once."""

    def _go_on(self) -> None:
        with self._guard:
            while self._waiting and self._under_way < self.jobs and not self._closed:
                outer, start = self._waiting.popleft()
                if outer.set_running_or_notify_cancel():
                    self._under_way += 1
                    self._launch(outer, start)

    def _launch(self, outer: Future[Any], start: Callable[[], Future[Any]]) -> None:
        try:
            inner = start()
        except Exception as error:
            inner = Future()
            inner.set_exception(error)
        inner.add_done_callback(lambda done: self._ended(outer, done))

    def _ended(self, outer: Future[Any], inner: Future[Any]) -> None:
        with self._guard:
            self._under_way -= 1
        if inner.cancelled():
            outer.set_exception(_lost("its task was cancelled"))
        elif error := inner.exception():
            outer.set_exception(_lost(str(error)) if isinstance(error, BrokenExecutor) else error)
        else:
            outer.set_result(inner.result())
        self._go_on()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._guard:
            self._closed = True
            waiting = [outer for outer, _ in self._waiting]
            self._waiting.clear()
        for outer in waiting:
            outer.cancel()


def _lost(why: str) -> errors.WorkerLost:
    return errors.WorkerLost(f"a worker was lost: {why.splitlines()[0] if why else 'no reason is known'}")


# -- processes ------------------------------------------------------------------------------------


_FOR_THE_PARENT = {number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGHUP")}


class _Worker(context.SpawnProcess):
    """One that is ended for good: it hears no SIGTERM."""

    def terminate(self) -> None:
        self.kill()


class _Context(context.SpawnContext):
    """Knows the processes that were made with it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[_Worker] = []

    def Process(self, *args: Any, **kwargs: Any) -> _Worker:  # type: ignore[override]
        self.made.append(_Worker(*args, **kwargs))
        return self.made[-1]


class _Processes(_Elsewhere):
    """A pool that is made anew when one of its processes was killed: the old one is of no use then."""

    def __init__(self, jobs: int) -> None:
        super().__init__(jobs)
        self._context = _Context()
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def _start(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with _deaf():
            if self._pool is not None:
                try:
                    return self._pool.submit(fn, *args, **kwargs)
                except BrokenExecutor:
                    self._pool.shutdown(wait=False)
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self.jobs, mp_context=self._context, initializer=_obey_the_parent
            )
            return self._pool.submit(fn, *args, **kwargs)

    def kill(self) -> None:
        for process in self._context.made:
            # One that has not been started, or that is reaped just now, has nothing to kill.
            with contextlib.suppress(ValueError, AttributeError):
                process.kill()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        # Whatever they have done is committed or rolled back, and their own way out takes a while.
        self.kill()
        if self._pool is not None:
            # Its thread must be over before the interpreter ends: Python 3.11 wakes it without a lock
            # then, and prints a traceback (OSError: bad file descriptor) when it ends just at that moment.
            self._pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes begun here never hear of a Ctrl-C, not even before their first line: they inherit the mask."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # else it starts within, and takes the mask away
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey_the_parent() -> None:
    """A terminal's signals go to the whole group: the leading process decides. Without it there is nothing to do."""
    for number in _FOR_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_follow, args=(parent,), daemon=True, name="parent").start()


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)


# -- Dask -----------------------------------------------------------------------------------------


@contextmanager
def _dask(address: str, jobs: int) -> Iterator[Workers]:
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise errors.ConfigurationError(
            "the executor dask needs the package distributed, which is not installed",
            hint="Run pip install 'mishika-migrate[dask]', or use --executor processes.",
        ) from error
    # It logs what we say in our own words, over a live display.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        client = distributed.Client(address, timeout=_ANSWER_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:  # a TLS address without certificates is a TypeError
        raise errors.ConfigurationError(
            f"no Dask scheduler answers at {address}: {str(error).splitlines()[0] if str(error) else 'timed out'}",
            hint="Give the address that `dask scheduler` prints, as --executor dask=tcp://host:8786.",
        ) from error
    try:
        _same_version(client, address)
        slots = sum(client.nthreads().values())
        with _Dask(client, min(jobs, slots or jobs)) as cluster:
            yield cluster
    finally:
        client.close(timeout=_EXIT_SECONDS)


def _same_version(client: Any, address: str) -> None:
    """Tasks are pickled values of this version's classes."""
    ours = mishika_migrate.__version__
    for worker, theirs in client.run(_version, on_error="return").items():
        if theirs != ours:
            found = theirs if isinstance(theirs, str) and theirs else "none"
            raise errors.ConfigurationError(
                f"Dask worker {worker} of {address} has mishika-migrate {found}, not {ours}",
                hint=f"Install mishika-migrate=={ours} where the workers run.",
            )


def _version() -> str:
    return importlib.metadata.version("mishika-migrate")


class _Dask(_Elsewhere):
    """Keys are the ids of steps, of runs and a number: nothing else of a task is shown by a scheduler."""

    def __init__(self, client: Any, jobs: int) -> None:
        super().__init__(jobs)
        self._client = client
        self._number = 0

    def _start(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self._number += 1
        key = f"{getattr(args[0], 'run', '')}/{getattr(args[0], 'id', '')}/{self._number}"
        inner: Future[Any] = Future()
        theirs = self._client.submit(fn, *args, **kwargs, key=key, pure=False)
        theirs.add_done_callback(lambda done: _hand_over(done, inner))
        return inner


def _hand_over(theirs: Any, ours: Future[Any]) -> None:
    if theirs.cancelled():
        ours.set_exception(_lost("the scheduler forgot its task"))
        return
    try:
        result = theirs.result()
    except Exception as error:
        known = type(error).__module__.partition(".")[0] != "distributed"
        ours.set_exception(error if known else _lost(f"{type(error).__name__}: {error}"))
    else:
        ours.set_result(result)
