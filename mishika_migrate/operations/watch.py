"""The run's own session on the target: it holds the lock and asks the server how far the rows are.

Imports pg, events and the words. Progress comes from the server, so it is the same for every
executor and costs the copying nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mishika_migrate import errors, events, model
from mishika_migrate.pg import connect, ledger

_SECONDS = 0.5


class Watch:
    """Open it once; `tick` may be called as often as one likes."""

    def __init__(self, target: model.Endpoint, *, run: str, emit: Callable[[events.Event], None]) -> None:
        self._target = target
        self._run = run
        self._emit = emit
        self._session: connect.Session | None = None
        self._asked = 0.0
        self._seen: dict[str, tuple[int, int]] = {}

    def open(self) -> None:
        """Connects and takes the target's lock; `errors.Refused` when another run has it."""
        self._session = connect.open(self._target, name=f"mishika-migrate/{self._run}/watch")
        ledger.lock(self._session, self._target)

    @property
    def session(self) -> connect.Session:
        """Reopened when it was lost: whoever took the lock meanwhile makes this `Refused`."""
        if self._session is None or self._session.closed:
            self._session = None
            self.open()
        assert self._session is not None
        return self._session

    def tick(self) -> None:
        """Emits progress at most twice a second. A lost session is mended at the next tick."""
        now = time.monotonic()
        if now - self._asked < _SECONDS:
            return
        self._asked = now
        try:
            moving = ledger.moving(self.session, run=self._run)
        except errors.Refused:
            raise
        except Exception:
            # The workers' own errors say what is wrong with the target; progress must not.
            self.close()
            return
        for table, (rows, size) in moving.items():
            if self._seen.get(table) != (rows, size):
                self._seen[table] = (rows, size)
                self._emit(events.Progress(table=table, rows=rows, bytes=size))

    def landed(self, step: events.StepFinished) -> None:
        """Forgets the progress of a table that is done."""
        self._seen.pop(step.table, None)

    def close(self) -> None:
        """Gives the lock back."""
        if self._session is not None:
            self._session.close()
            self._session = None
