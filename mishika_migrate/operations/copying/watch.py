"""The run's own session on the target: it holds the lock, keeps the books and asks how far the rows are.

Imports steering, pg, events and the words. Progress comes from the server, so it is the same for every
executor and costs the copying nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from mishika_migrate import errors, events, model
from mishika_migrate.operations.copying.steering import Steering
from mishika_migrate.pg import connect, interrupt, ledger, progress

_SECONDS = 0.5
_T = TypeVar("_T")


class Watch:
    """`open` takes the lock; from `start` on progress is gathered in a thread, and emitted by `tick`.

    A thread, because a server that says nothing must not keep the run from hearing a signal.
    """

    def __init__(
        self,
        target: model.Endpoint,
        *,
        run: str,
        steps: Sequence[str],
        lock_timeout: float,
        emit: Callable[[events.Event], None],
        steering: Steering,
    ) -> None:
        self.name = f"mishika-migrate/{run}/watch"
        self._target = target
        self._run = run
        self._steps = steps
        self._settings = {"lock_timeout": f"{int(lock_timeout * 1000)}ms"}
        self._emit = emit
        self._steering = steering
        self._guard = threading.RLock()  # one user of the session at a time
        self._session: connect.Session | None = None
        self._former: tuple[int, str] | None = None
        self._over = threading.Event()
        self._turn = threading.Event()
        self._thread: threading.Thread | None = None
        self._moving: dict[str, tuple[int, int]] = {}
        self._landed: dict[str, tuple[int, int]] = {}
        self._building: dict[int, float] = {}
        self._said: dict[int, float] = {}
        self._seen: dict[str, tuple[int, int]] = {}
        self._refused: errors.Refused | None = None

    def open(self) -> None:
        """Connects and takes the target's lock; `errors.Refused` when another run has it.

        With the lock, whatever an earlier process has left open on the target is ended.
        """
        with self._guard, connect.translated(self._target):
            interrupt.end_leftovers(self._live(), "mishika-migrate/")

    def start(self) -> None:
        self._thread = threading.Thread(target=self._gather, daemon=True, name="watch")
        self._thread.start()

    def ask(self, question: Callable[[connect.Session], _T]) -> _T:
        """The answer; asked once more in a new session when the old one turns out to be lost."""
        with self._guard:
            try:
                return self._asked(question)
            except errors.ServerError as error:
                if not error.transient or self._over.is_set():
                    raise
                return self._asked(question)

    def tick(self) -> None:
        """Emits what has moved. `errors.Refused` when the lock was lost to another run."""
        if self._refused is not None:
            raise self._refused
        for notice in self._steering.notices():
            self._emit(notice)
        for table, (rows, size) in self._moving.items():
            if self._seen.get(table) != (rows, size):
                self._seen[table] = (rows, size)
                before = self._landed.get(table, (0, 0))
                self._emit(events.Progress(table=table, rows=before[0] + rows, bytes=before[1] + size))
        for number, share in self._building.items():
            if self._said.get(number) != share:
                self._said[number] = share
                self._emit(events.Building(step=self._steps[number], share=share))

    def kept(self, table: events.TableKept) -> None:
        """Rows that an earlier attempt has brought."""
        self._add(table.table, table.rows, 0)

    def landed(self, step: events.StepFinished) -> None:
        """Rows that move no more."""
        self._add(step.table, step.rows, step.bytes)
        self._moving = {table: moved for table, moved in self._moving.items() if table != step.table}

    def _add(self, table: str, rows: int, size: int) -> None:
        before = self._landed.get(table, (0, 0))
        self._landed[table] = (before[0] + rows, before[1] + size)
        self._seen.pop(table, None)

    def halt(self) -> None:
        """Tells the workers, wherever they are, to end; returns at once."""
        self._steering.halt()
        self._turn.set()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Ends every question of the block that is still without an answer then."""
        timer = threading.Timer(seconds, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def close(self) -> None:
        """Gives the lock back."""
        self._over.set()
        self._turn.set()
        with self.within(1.0):
            if self._thread is not None:
                self._thread.join()
            with self._guard:
                self._drop()

    # -- inside -----------------------------------------------------------------------------------

    def _asked(self, question: Callable[[connect.Session], _T]) -> _T:
        try:
            with connect.translated(self._target):
                return question(self._live())
        except errors.ServerError as error:
            if error.transient:
                self._drop()
            raise

    def _live(self) -> connect.Session:
        """Reopened when it was lost, with the lock."""
        if self._session is None:
            session = connect.open(
                self._target,
                name=self.name,
                answered=self._former is not None,
                settings=self._settings,
                stopping=self._over.is_set,
            )
            try:
                ledger.lock(session, self._target, former=self._former)
            except BaseException:
                connect.close(session)
                raise
            self._session = session
            self._former = (session.info.backend_pid, self.name)
        return self._session

    def _drop(self) -> None:
        if self._session is not None:
            connect.close(self._session)
            self._session = None

    def _gather(self) -> None:
        while not self._over.is_set():
            self._turn.wait(_SECONDS)
            self._turn.clear()
            if self._over.is_set():
                return
            with self._guard:
                try:
                    self._asked(self._steering.turn)
                    self._moving = self._asked(lambda session: progress.moving(session, run=self._run))
                    self._building = self._asked(lambda session: progress.building(session, run=self._run))
                except errors.Refused as error:
                    self._refused = error
                    return
                except (errors.Error, connect.Stopped):
                    # The workers' own errors say what is wrong with the target; progress must not.
                    self._drop()

    def _give_up(self) -> None:
        self._over.set()
        while not self._guard.acquire(blocking=False):
            interrupt.sever(self.name)
            time.sleep(0.1)  # a session may be about to open
        self._guard.release()
