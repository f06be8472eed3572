"""Waiting that a signal ends: whatever a run waits for in its sessions, a Ctrl-C is heard and it lets go.

Imports executors, work, endings, engine, pg and the words.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from mishika_migrate import model
from mishika_migrate.operations.copying import endings, engine, executors, work
from mishika_migrate.operations.copying.watch import Watch
from mishika_migrate.pg import interrupt, snapshot

# How long a server may take to let go when asked, and a process to end.
_GRACE_SECONDS = 0.75
_KILL_SECONDS = 0.2

_T = TypeVar("_T")


class Patience:
    """That of one run. `stopping` returns the number of the signal that asked to stop, 0 while there is none.

    `workers` are whose sessions it can end, as soon as there are any.
    """

    def __init__(
        self, run: str, watch: Watch, source: model.Endpoint, target: model.Endpoint, stopping: Callable[[], int]
    ) -> None:
        self._run, self._watch, self._ends, self._stopping = run, watch, (source, target), stopping
        self.workers = executors.Workers()
        self._ending: list[threading.Thread] = []

    def stopping(self) -> bool:
        return bool(self._stopping())

    def wait(self, call: Callable[[], _T]) -> _T:
        """Carries it out in a thread; `engine.Interruption` when it was ended by a signal."""
        future: concurrent.futures.Future[_T] = concurrent.futures.Future()

        def answer() -> None:
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=answer, daemon=True, name="patient").start()
        stopped = None
        while not concurrent.futures.wait([future], timeout=0.1).done:
            if self.stopping():
                stopped = stopped or time.monotonic()
                interrupt.cancel(self._watch.name)
                if self.end(time.monotonic() - stopped) > 2 * _GRACE_SECONDS:
                    raise engine.Interruption  # the process ends without that thread
        if self.stopping() and future.exception() is not None:
            raise engine.Interruption
        return future.result()

    def end(self, seconds: float) -> float:
        """Ends what the run waits for in any session but the watch's; at first by asking the servers.

        `seconds` have passed since it was to end. Returns them.
        """
        work.halt(self._run)
        self._watch.halt()
        if self.workers.elsewhere:
            self._end_elsewhere(seconds)
        for name in (work.sessions(self._run), snapshot.name(self._run)):
            if seconds < _GRACE_SECONDS:
                interrupt.cancel(name)
            else:
                interrupt.sever(name)
        return seconds

    def _end_elsewhere(self, seconds: float) -> None:
        """Other processes' sessions are ended through sessions of our own, each in a thread: a server may be silent."""
        if not self._ending:
            self._ending = [
                threading.Thread(
                    target=endings.end_sessions,
                    args=(endpoint, work.sessions(self._run), _GRACE_SECONDS),
                    daemon=True,
                    name="end",
                )
                for endpoint in self._ends
            ]
            for thread in self._ending:
                thread.start()
        if seconds > _KILL_SECONDS:
            self.workers.kill()
