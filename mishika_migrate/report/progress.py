"""How far a run is, from its events alone: rows and bytes of every table, the whole share, the time left.

Imports events and the words. Sizes on disk and in a stream differ, so shares are shares of rows,
weighted by the bytes that the plan expects.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mishika_migrate import events, model

CHORES = frozenset({"schema", "prepare", "verify", "indexes", "finish"})
"""Stages without rows of their own."""


@dataclass(slots=True, kw_only=True)
class Row:
    """One table. `began` is None until its rows move; `seconds` counts once it is done."""

    rows_expected: float = 0.0
    bytes_expected: int = 0
    rows: int = 0
    bytes: int = 0
    landed_rows: int = 0
    landed_bytes: int = 0
    first_bytes: int = 0
    kept_rows: int = 0
    kept_bytes: int = 0
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
    """Hears the events of a run; `clock` counts seconds.

    `building` are the indexes under way by name, with the share of their present phase.
    """

    plan: model.Plan
    clock: Callable[[], float] = time.monotonic
    title: str = "connecting"
    rows: dict[str, Row] = field(init=False)
    chores: list[Chore] = field(init=False, default_factory=list)
    building: dict[str, float] = field(init=False, default_factory=dict)
    _indexes: dict[str, str] = field(init=False)
    _built: set[str] = field(init=False, default_factory=set)
    _began: float = field(init=False)
    _kept: float = field(init=False, default=0.0)
    _in_chore: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._began = self.clock()
        self._indexes = {step.id: step.name for step in self.plan.steps if isinstance(step, model.BuildIndex)}
        self.rows = {c.table: Row(rows_expected=max(c.rows, 0.0), bytes_expected=c.bytes) for c in self.plan.chosen}

    def hear(self, event: events.Event) -> None:
        match event:
            case events.StageStarted():
                self._enter(event)
            case events.Progress():
                row = self.rows.setdefault(event.table, Row())
                if row.began is None:
                    # When they began to move is not known; the rate counts from here on.
                    row.began, row.first_bytes = self.clock(), event.bytes
                row.rows, row.bytes = event.rows, event.bytes
            case events.StepFinished() if event.table:
                self._add(event)
            case events.TableFinished():
                self._finish(event.table, event.rows, event.bytes, event.seconds)
            case events.StepFinished() | events.TableCompared() if self._in_chore:
                self._advance(event)
            case events.Building() if event.step not in self._built:  # the server was asked before it ended
                self.building[self.index(event.step)] = event.share
            case events.TableKept():
                self._keep(event)
            case events.StepRetried():
                self._again(event.step)

    def index(self, step: str) -> str:
        """The name of the index that the step builds."""
        return self._indexes.get(step, step)

    def _enter(self, event: events.StageStarted) -> None:
        self._leave()
        self.title = event.title
        self._in_chore = event.name in CHORES
        if self._in_chore:
            self.chores.append(Chore(title=event.title, steps=event.steps))

    def _leave(self) -> None:
        # What an earlier attempt of the run has done is not reported again.
        if self._in_chore:
            self.chores[-1].done = self.chores[-1].steps
        self.building.clear()

    def _advance(self, event: events.StepFinished | events.TableCompared) -> None:
        self.chores[-1].done = min(self.chores[-1].done + 1, self.chores[-1].steps)
        if isinstance(event, events.StepFinished):
            self.building.pop(self.index(event.step), None)
            self._built.add(event.step)

    def _add(self, event: events.StepFinished) -> None:
        """Where the server does not count open COPYs (before PostgreSQL 14), finished steps are all that is known."""
        row = self.rows.setdefault(event.table, Row())
        row.began = self.clock() - event.seconds if row.began is None else row.began
        row.landed_rows += event.rows
        row.landed_bytes += event.bytes
        row.rows, row.bytes = max(row.rows, row.landed_rows), max(row.bytes, row.landed_bytes)

    def _keep(self, event: events.TableKept) -> None:
        row = self.rows.setdefault(event.table, Row())
        row.landed_rows = row.rows = row.kept_rows = event.rows
        row.landed_bytes = row.bytes = row.kept_bytes = event.bytes
        row.done = row.kept = event.whole
        self._kept = self.share

    def _finish(self, table: str, rows: int, size: int, seconds: float) -> None:
        row = self.rows.setdefault(table, Row())
        row.rows, row.bytes, row.seconds, row.done = rows, size, seconds, True

    def _again(self, step: str) -> None:
        """A retried step starts from nothing; a retried stage takes all its open tables along."""
        self.building.pop(self.index(step), None)
        table = step.partition("[")[0].partition("(")[0]
        for name, row in self.rows.items():
            if not row.done and (table.endswith(f".{name}") or "steps)" in step):
                row.rows, row.bytes = row.landed_rows, row.landed_bytes
                row.began = row.began if row.landed_rows else None

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
    def stage_share(self) -> float:
        """The whole run's, and of a stage without rows its own: the rows may be there long before the indexes."""
        if not self._in_chore:
            return self.share
        chore = self.chores[-1]
        if chore.done == chore.steps:
            return 1.0
        return min((chore.done + sum(self.building.values())) / chore.steps, 0.99)

    @property
    def left(self) -> float | None:
        """Seconds until the last row, None as long as it is too early to say."""
        fresh = self.share - self._kept
        if self.elapsed < 1 or fresh < 0.01 or self._in_chore:
            return None
        return self.elapsed * (1 - self.share) / fresh

    def rate(self, row: Row) -> float:
        """Bytes a second of one table, 0 where nothing is known."""
        if row.done:
            return (row.bytes - row.kept_bytes) / row.seconds if row.seconds >= 0.05 else 0.0
        seconds = 0.0 if row.began is None else self.clock() - row.began
        return max(row.bytes - row.first_bytes, 0) / seconds if seconds >= 0.05 else 0.0
