"""How fast the tasks of a run may move bytes in this process, and whether they may at all.

Imports pg and the words. What holds is a row on the target (`pg.control`). In the process that
leads the run its watch brings the news by `lead`; in any other one thread with a session of its own
asks for them, as long as a task of the run is there.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, control

_LISTEN_SECONDS = 0.5
_POLL_SECONDS = 0.1

# What may pass at once after a lull: long enough for a task to commit and the next one to begin,
# and 4 % of what passes in five seconds.
_BURST_SECONDS = 0.2


class Bucket:
    """Bytes drip in at `rate` a second; whoever takes more than there is waits until it is made up for.

    `clock` counts seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate: float | None = None
        self._clock = clock
        self._level = 0.0
        self._seen = clock()

    def set(self, rate: float | None) -> None:
        """From now on. Without a rate every debt is forgotten."""
        self._drip()
        self.rate = rate
        if rate is None:
            self._level = 0.0

    def take(self, size: int) -> None:
        self._drip()
        self._level -= size

    @property
    def wait(self) -> float:
        """Seconds until all that was taken is paid for."""
        self._drip()
        return max(-self._level / self.rate, 0.0) if self.rate else 0.0

    def _drip(self) -> None:
        now = self._clock()
        if self.rate:
            self._level = min(self._level + (now - self._seen) * self.rate, _BURST_SECONDS * self.rate)
        self._seen = now


class _Pace:
    """Of one run in this process, shared by all its tasks here."""

    def __init__(self, run: str, target: model.Endpoint | None) -> None:
        self.orders = control.Orders()
        self._run = run
        self._target = target
        self._changed = threading.Condition()
        self._bucket = Bucket()
        self._tasks = 0
        self._thread: threading.Thread | None = None

    @property
    def leads(self) -> bool:
        """Whether this process leads the run, and so hears of it without a thread."""
        return self._target is None

    def hear(self, orders: control.Orders) -> None:
        with self._changed:
            self.orders = orders
            self._divide()
            self._changed.notify_all()

    def _divide(self) -> None:
        """The leading process has no other beside it; elsewhere each task brings its share along."""
        rate = self.orders.rate
        if rate is not None and not self.leads and self.orders.share is not None:
            rate = min(rate, self.orders.share * max(self._tasks, 1))
        if rate != self._bucket.rate:
            self._bucket.set(rate)

    def enter(self) -> None:
        with self._changed:
            if self.over:
                # Whatever was said when the last task ended, this one asks anew.
                self.orders = dataclasses.replace(self.orders, halted=False)
            self._tasks += 1
            self._divide()
            if not self.leads and self._thread is None:
                self._thread = threading.Thread(target=self._listen, daemon=True, name="control")
                self._thread.start()

    def leave(self) -> None:
        with self._changed:
            self._tasks -= 1
            self._divide()
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        """Of a run that may have no more tasks for this process."""
        return not self._tasks and not self.leads

    def take(self, size: int, stopping: Callable[[], bool]) -> None:
        """Returns when so many bytes may pass; `connect.Stopped` when they never will."""
        orders = self.orders
        if orders.rate is None and not (orders.paused or orders.waiting or orders.halted):
            return
        with self._changed:
            self._bucket.take(size)
            while True:
                if stopping():
                    raise connect.Stopped
                held = self.orders.paused or self.orders.waiting
                wait = _POLL_SECONDS if held else min(self._bucket.wait, _POLL_SECONDS)
                if not wait:
                    return
                self._changed.wait(wait)

    def _listen(self) -> None:
        assert self._target is not None
        session: connect.Session | None = None
        # The first look is half a second away: most tasks are over by then and cost no session.
        while self._goes_on():
            try:
                session = session or connect.open(
                    self._target, name=f"mishika-migrate/{self._run}/control", answered=True, stopping=self._alone
                )
                with connect.translated(self._target):
                    self.hear(control.read(session, run=self._run))
            except connect.Stopped:
                continue
            except errors.ServerError as error:
                # What was said last holds; a ledger that is gone says that the run is (42P01).
                if error.sqlstate == "42P01":
                    self.hear(control.Orders(halted=True))
                if session is not None:
                    connect.close(session)
                    session = None
        if session is not None:
            connect.close(session)

    def _alone(self) -> bool:
        return not self._tasks

    def _goes_on(self) -> bool:
        with self._changed:
            self._changed.wait_for(self._alone, timeout=_LISTEN_SECONDS)
            if self._tasks:
                return True
            self._thread = None
            return False


_guard = threading.Lock()
_paces: dict[str, _Pace] = {}


def lead(run: str, orders: control.Orders) -> None:
    """Brings the news, in the process that leads the run."""
    with _guard:
        pace = _paces.setdefault(run, _Pace(run, None))
    pace.hear(orders)


def end(run: str) -> None:
    """Takes `lead` back."""
    with _guard:
        _paces.pop(run, None)


def halted(run: str) -> bool:
    """Whether the run's leading process said that its tasks are to end."""
    pace = _paces.get(run)
    return pace is not None and not pace.over and pace.orders.halted


@contextmanager
def kept(
    run: str, target: model.Endpoint, session: connect.Session, *, stopping: Callable[[], bool]
) -> Iterator[Callable[[int], None]]:
    """What a task calls with the size of each block before it passes; the run's orders are known from the start.

    `session` is one on the target that is free to be asked.
    """
    with _guard:
        pace = _paces.get(run)
        if pace is None:
            # Between tasks one stays, with what has dripped in; a long-lived worker keeps those of one run.
            for other in [other for other in _paces if _paces[other].over]:
                del _paces[other]
            pace = _paces[run] = _Pace(run, target)
        pace.enter()
    try:
        if not pace.leads:
            pace.hear(control.read(session, run=run))
        take = pace.take
        yield lambda size: take(size, stopping)
    finally:
        pace.leave()
