"""How far a run is, from its events alone: rows and bytes of every table, the whole share, the time left.

Imports events and the words. Sizes on disk and in a stream differ, so shares are shares of rows,
weighted by the bytes that the plan expects.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mishika_migrate import events, model


@dataclass(slots=True, kw_only=True)
class Row:
    """One table. `began` is None until its rows move; `seconds` counts once it is done."""

    rows_expected: float = 0.0
    bytes_expected: int = 0
    rows: int = 0
    bytes: int = 0
    began: float | None = None
    seconds: float = 0.0
    done: bool = False
    kept: bool = False

    @property
    def share(self) -> float:
        """0 to 1; 1 only when it is committed."""
        if self.done:
            return 1.0
        if self.rows_expected:
            return min(self.rows / self.rows_expected, 0.99)
        return min(self.bytes / self.bytes_expected, 0.99) if self.bytes_expected else 0.0


@dataclass(slots=True, kw_only=True)
class Chore:
    """A stage without rows of its own: views, statistics, the schema."""

    title: str
    steps: int
    done: int = 0


@dataclass(slots=True)
class Course:
    """Hears the events of a run; `clock` counts seconds."""

    plan: model.Plan
    clock: Callable[[], float] = time.monotonic
    title: str = "connecting"
    rows: dict[str, Row] = field(init=False)
    chores: list[Chore] = field(init=False, default_factory=list)
    _began: float = field(init=False)
    _kept: float = field(init=False, default=0.0)
    _in_chore: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._began = self.clock()
        self.rows = {c.table: Row(rows_expected=max(c.rows, 0.0), bytes_expected=c.bytes) for c in self.plan.chosen}

    def hear(self, event: events.Event) -> None:
        match event:
            case events.StageStarted():
                self._enter(event)
            case events.Progress():
                row = self.rows.setdefault(event.table, Row())
                row.began = self.clock() if row.began is None else row.began
                row.rows, row.bytes = event.rows, event.bytes
            case events.StepFinished() if event.table:
                self._finish(event.table, event.rows, event.bytes, event.seconds)
            case events.StepFinished() if self._in_chore:
                self.chores[-1].done = min(self.chores[-1].done + 1, self.chores[-1].steps)
            case events.StepKept() if event.table:
                self._finish(event.table, event.rows, 0, 0.0)
                self.rows[event.table].kept = True
                self._kept = self.share
            case events.StepRetried():
                self._again(event.step)

    def _enter(self, event: events.StageStarted) -> None:
        self._leave()
        self.title = event.title
        self._in_chore = event.name in ("schema", "finish")
        if self._in_chore:
            self.chores.append(Chore(title=event.title, steps=event.steps))

    def _leave(self) -> None:
        # What an earlier attempt of the run has done is not reported again.
        if self._in_chore:
            self.chores[-1].done = self.chores[-1].steps

    def _finish(self, table: str, rows: int, size: int, seconds: float) -> None:
        row = self.rows.setdefault(table, Row())
        row.rows, row.bytes, row.seconds, row.done = rows, size, seconds, True

    def _again(self, step: str) -> None:
        """A retried step starts from nothing; a retried stage takes all its open tables along."""
        for name, row in self.rows.items():
            if not row.done and (step.endswith(f".{name}") or "steps)" in step):
                row.rows = row.bytes = 0
                row.began = None

    @property
    def elapsed(self) -> float:
        return self.clock() - self._began

    @property
    def bytes(self) -> int:
        """What has arrived, as the streams count it."""
        return sum(row.bytes for row in self.rows.values())

    @property
    def share(self) -> float:
        """Of all rows, 0 to 1, weighted by expected bytes."""
        whole = sum(row.bytes_expected for row in self.rows.values())
        if not whole:
            return 1.0 if all(row.done for row in self.rows.values()) else 0.0
        return sum(row.share * row.bytes_expected for row in self.rows.values()) / whole

    @property
    def left(self) -> float | None:
        """Seconds until the last row, None as long as it is too early to say."""
        fresh = self.share - self._kept
        if self.elapsed < 1 or fresh < 0.01 or self._in_chore:
            return None
        return self.elapsed * (1 - self.share) / fresh

    def rate(self, row: Row) -> float:
        """Bytes a second of one table, 0 where nothing is known."""
        seconds = row.seconds if row.done else self.clock() - row.began if row.began is not None else 0.0
        return row.bytes / seconds if seconds >= 0.05 else 0.0
