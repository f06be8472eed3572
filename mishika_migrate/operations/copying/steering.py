"""What the process that leads a run tells its workers, wherever they are, and hears from the operator.

Imports executors, pace, pg, events and the words. It works in the thread and the session of the
run's watch, so the operator's signals are heard whatever a server does.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Iterator

from mishika_migrate import errors, events, model
from mishika_migrate.operations.copying import pace, throttle
from mishika_migrate.pg import connect, control, standbys

_LAG_SECONDS = 2.0
_WINDOW_SECONDS = 2.0

# Bounds what passes when all tasks use their share again before the next look.
_LEAST, _MOST = 0.75, 1.25


class Steering:
    """`rate` is in bytes a second, `lag` in seconds; None without a limit. `jobs` tasks run at once."""

    def __init__(self, run: str, *, source: model.Endpoint, rate: int | None, lag: float | None, jobs: int) -> None:
        self._open = jobs
        self._run = run
        self._rate = rate
        self.jobs = jobs
        self._halted = False
        self._known = control.Orders(rate=rate)
        self._standbys = Standbys(source, run, lag) if lag is not None else None
        self._said: list[str] = []
        self._passed: deque[tuple[float, int]] = deque()
        self._factor = 1.0

    def begin(self, session: connect.Session) -> None:
        """Once the run is in the ledger, before its first task."""
        orders = control.begin(session, run=self._run, rate=self._rate)
        if orders.rate != self._rate:
            self._said.append(f"{throttle.rate(orders.rate)}, as before; `mishika-migrate throttle off` ends that")
        if orders.paused:
            self._said.append("it was paused before, and goes on now")
        self._known = dataclasses.replace(orders, paused=False)
        pace.lead(self._run, self._known)
        if self._standbys is not None:
            self._standbys.start()

    def expect(self, tasks: int) -> None:
        """So many tasks are open; each that runs may move an equal share."""
        self._open = tasks

    def landed(self) -> None:
        """One of them has ended."""
        self._open -= 1

    def turn(self, session: connect.Session) -> None:
        """A few times a second."""
        if self._halted:
            control.halt(session, run=self._run)
        orders = control.read(session, run=self._run)
        waiting = self._standbys is not None and self._standbys.behind
        share = None if orders.rate is None else self._share(session, orders.rate)
        if (share, waiting) != (orders.share, orders.waiting):
            control.share(session, run=self._run, share=share, waiting=waiting)
            orders = dataclasses.replace(orders, share=share, waiting=waiting)
        self._said += _differences(self._known, orders)
        self._known = orders
        if not self._halted:
            pace.lead(self._run, orders)

    def _share(self, session: connect.Session, rate: int) -> int:
        """Of one task. Those that read a slow disk, or commit just now, move less: what is left over goes to all."""
        running = max(min(self._open, self.jobs), 1)
        size, streams = control.received(session, run=self._run)
        now = time.monotonic()
        if streams < running:
            # As long as some have not begun, nothing is left over.
            self._passed.clear()
        while self._passed and now - self._passed[0][0] > _WINDOW_SECONDS:
            self._passed.popleft()
        self._passed.append((now, size))
        began, before = self._passed[0]
        if now > began:
            missing = 1 - (size - before) / (now - began) / rate
            self._factor = min(max(self._factor + missing / 2, _LEAST), _MOST)
        return max(int(rate / running * self._factor), 1)

    def halt(self) -> None:
        """Every worker is to end, as those of other processes hear by the next `turn`."""
        self._halted = True

    def notices(self) -> Iterator[events.Noticed]:
        """What the operator should read, each once."""
        for said in (self._said, self._standbys.said if self._standbys is not None else []):
            while said:
                yield events.Noticed(message=said.pop(0))

    def close(self) -> None:
        pace.end(self._run)
        if self._standbys is not None:
            self._standbys.close()


def _differences(before: control.Orders, now: control.Orders) -> Iterator[str]:
    if before.rate != now.rate:
        yield f"{throttle.rate(now.rate)} from now on"
    if now.paused and not before.paused:
        yield "paused by `mishika-migrate throttle pause`; `mishika-migrate throttle resume` goes on"
    if before.paused and not now.paused:
        yield "going on"


class Standbys:
    """Asks the source how far its standbys are behind, in a thread and a session of its own."""

    def __init__(self, source: model.Endpoint, run: str, limit: float) -> None:
        self.behind = False
        self.said: list[str] = []
        self._source = source
        self._name = f"mishika-migrate/{run}/standbys"
        self._limit = limit
        self._since = 0.0
        self._over = threading.Event()
        self._told = False

    def start(self) -> None:
        threading.Thread(target=self._ask, daemon=True, name="standbys").start()

    def close(self) -> None:
        self._over.set()

    def _ask(self) -> None:
        while not self._over.is_set():
            try:
                with connect.session(
                    self._source, name=self._name, answered=True, stopping=self._over.is_set
                ) as session:
                    while not self._over.is_set():
                        self.judge(standbys.lag(session))
                        self._over.wait(min(_LAG_SECONDS, max(self._limit / 2, 0.1)))
            except (errors.Error, connect.Stopped):
                # The workers' own errors say what is wrong with the source; they are not to wait for it.
                self.behind = False
                self._over.wait(_LAG_SECONDS)

    def judge(self, lag: standbys.Lag) -> None:
        if (lag.hidden or not lag.count) and not self._told:
            self._told = True
            self.said.append(self._nothing_to_see(lag))
        # Twice the limit apart, so that it does not stop and go with every answer.
        behind = lag.seconds > (self._limit / 2 if self.behind else self._limit)
        if behind and not self.behind:
            self._since = time.monotonic()
            self.said.append(
                f"waiting: standby {lag.name} of the source is {lag.seconds:.1f} s behind, more than {self._limit:g} s"
            )
        elif self.behind and not behind:
            seconds = time.monotonic() - self._since
            self.said.append(f"going on after {seconds:.0f} s: no standby of the source is far behind any more")
        self.behind = behind

    def _nothing_to_see(self, lag: standbys.Lag) -> str:
        if lag.hidden:
            return (
                f"{lag.role} may not see how far the standbys of {self._source.label} are behind, so nothing waits"
                f' for them; on the source: GRANT pg_monitor TO "{lag.role}";'
            )
        return f"{self._source.label} has no standby now; one that comes is waited for"
