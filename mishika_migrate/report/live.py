"""How a run is seen while it goes on: a live display on a terminal, plain lines elsewhere.

Imports events, terminal and the words. Both faces live on stderr and consume the same events.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mishika_migrate import events, model
from mishika_migrate.report import terminal


class Plain:
    """One line a finished table, one a retry: for logs and pipes."""

    def __init__(self, to: Console) -> None:
        self._to = to

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, event: events.Event) -> None:
        if text := line(event):
            terminal.say(self._to, text)


def line(event: events.Event) -> str:
    """The event in one line, empty for those that only a live display shows."""
    match event:
        case events.RunStarted():
            verb = "resumed" if event.resumed else "started"
            return f"run {event.run} {verb}: {event.source} → {event.target}, {event.tables} tables"
        case events.StepFinished() if event.table:
            return (
                f"{event.table}: {event.rows:,} rows, {terminal.size(event.bytes)}"
                f" in {terminal.duration(event.seconds)}"
            )
        case events.StepKept() if event.table:
            return f"{event.table}: {event.rows:,} rows kept, unchanged on the source since they landed"
        case events.StepRetried():
            return f"retry {event.attempt} of {event.step} in {event.wait:.1f} s: {event.error}"
        case events.Noticed():
            return event.message
        case _:
            return ""


@dataclass(slots=True)
class _Row:
    rows_expected: float
    bytes_expected: int
    rows: int = 0
    bytes: int = 0
    began: float = 0.0
    seconds: float = 0.0
    done: bool = False

    @property
    def share(self) -> float:
        """How much of the table is there, 0 to 1, by rows: sizes on disk and in a stream differ."""
        if self.done:
            return 1.0
        return min(self.rows / self.rows_expected, 0.999) if self.rows_expected else 0.0


class Display:
    """A table's line appears when its rows begin to move; the last line is the whole run."""

    def __init__(self, to: Console, plan: model.Plan) -> None:
        self._to = to
        self._rows = {c.table: _Row(rows_expected=c.rows, bytes_expected=c.bytes) for c in plan.chosen}
        self._began = time.monotonic()
        self._title = ""
        self._kept = 0.0
        self._live = Live(console=to, refresh_per_second=8, get_renderable=self._render, transient=True)

    def __enter__(self) -> Display:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.StageStarted():
                self._title = event.title
            case events.Progress():
                self._move(event.table, event.rows, event.bytes)
            case events.StepFinished() if event.table:
                self._finish(event.table, event.rows, event.bytes, event.seconds)
            case events.StepKept() if event.table:
                self._finish(event.table, event.rows, 0, 0.0)
                self._kept = self._share()
            case events.StepRetried() | events.Noticed():
                self._to.print(Text(line(event), "yellow"))

    def _move(self, table: str, rows: int, size: int) -> None:
        row = self._rows.setdefault(table, _Row(0.0, 0))
        row.began = row.began or time.monotonic()
        row.rows, row.bytes = rows, size

    def _finish(self, table: str, rows: int, size: int, seconds: float) -> None:
        row = self._rows.setdefault(table, _Row(0.0, 0))
        row.rows, row.bytes, row.seconds, row.done = rows, size, seconds, True

    # -- drawing ----------------------------------------------------------------------------------

    def _render(self) -> Group:
        seen = [(name, row) for name, row in self._rows.items() if row.done or row.began]
        room = max(self._to.height - 5, 3)
        # What moves must be visible; of what is done, the latest.
        moving = [item for item in seen if not item[1].done]
        done = [item for item in seen if item[1].done]
        shown = [*done[len(done) - max(room - len(moving), 0) :], *moving][-room:]
        return Group(self._lines(shown), self._total())

    def _lines(self, shown: list[tuple[str, _Row]]) -> Table:
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(ratio=3, no_wrap=True, overflow="ellipsis")
        grid.add_column(justify="right", no_wrap=True)
        grid.add_column(justify="right", no_wrap=True)
        grid.add_column(justify="right", no_wrap=True)
        for name, row in shown:
            seconds = row.seconds if row.done else time.monotonic() - row.began
            rate = f"{terminal.size(row.bytes / max(seconds, 1e-3))}/s" if row.bytes else ""
            mark = Text("✓ ", "green") if row.done else Text("› ", "cyan")
            grid.add_row(
                mark + Text(name),
                f"{row.rows:,} rows",
                terminal.size(row.bytes) if row.bytes else "",
                rate,
            )
        return grid

    def _share(self) -> float:
        whole = sum(row.bytes_expected for row in self._rows.values())
        return sum(row.share * row.bytes_expected for row in self._rows.values()) / whole if whole else 0.0

    def _total(self) -> Table:
        share = self._share()
        elapsed = time.monotonic() - self._began
        fresh = share - self._kept
        left = elapsed * (1 - share) / fresh if fresh > 0.01 and elapsed > 1 else None
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1, no_wrap=True)
        grid.add_column(no_wrap=True, justify="right")
        grid.add_row(
            Text(self._title or "starting", "bold"),
            ProgressBar(total=1.0, completed=share),
            f"{share:4.0%}  {terminal.duration(elapsed)}"
            + (f", about {terminal.duration(left)} left" if left is not None else ""),
        )
        return grid
