"""How a run is seen while it goes on: a live display on a terminal, plain lines elsewhere.

Imports progress, screen, events and the words. Both faces live on stderr and consume the same
events.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from rich.cells import cell_len
from rich.text import Text

from mishika_migrate import events, model
from mishika_migrate.report import names, progress, screen

_FRAME_SECONDS = 0.125
_LINE_SECONDS = 30.0


class Plain:
    """One line a finished table, a retry, a notice; for logs and pipes.

    While nothing finishes, a line every half minute says how far the rows are.
    """

    def __init__(self, to: screen.Screen, plan: model.Plan) -> None:
        self._to = to
        self._course = progress.Course(plan)
        self._said = self._course.elapsed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, event: events.Event) -> None:
        self._course.hear(event)
        if words := self._line(event):
            self._say(words)
        elif isinstance(event, events.Progress) and self._course.elapsed - self._said >= _LINE_SECONDS:
            whole = f"{_percent(self._course.share)} of all{_left(self._course)}"
            self._say(f"{event.table}: {screen.count(event.rows, 'row')} so far; {whole}")
        elif isinstance(event, events.Building) and self._course.elapsed - self._said >= _LINE_SECONDS:
            self._say(f"index {self._course.index(event.step)}: {_percent(event.share)} of its present phase")

    def _line(self, event: events.Event) -> str:
        if not isinstance(event, events.TableFinished) or not (kept := self._course.rows[event.table].kept_rows):
            return line(event)
        size = event.bytes - self._course.rows[event.table].kept_bytes
        return f"{line(replace(event, rows=event.rows - kept, bytes=size))}; {event.rows:,} with those kept"

    def _say(self, words: str) -> None:
        self._said = self._course.elapsed
        screen.say(self._to, words)


class Notes:
    """One line for each thing that is done, for what is not a run."""

    def __init__(self, to: screen.Screen) -> None:
        self._to = to

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.TableCompared):
            content = event.content
            found = screen.count(content.different, "difference") if content.different else "equal"
            rows = screen.count(max(content.rows_source, content.rows_target), "row")
            screen.say(self._to, f"table {content.table}: {rows}, {found}, {screen.duration(content.seconds)}")
        elif words := line(event):
            screen.say(self._to, words)


def line(event: events.Event) -> str:
    """The event in one line, empty for those that only a live display shows."""
    match event:
        case events.RunStarted():
            verb = "resumed" if event.resumed else "started"
            return f"run {event.run} {verb}: {event.source} → {event.target}"
        case events.StageStarted():
            return _begun(event)
        case events.TableFinished():
            amount = f"{screen.count(event.rows, 'row')}, {screen.size(event.bytes)}"
            return f"{event.table}: {amount} in {screen.duration(event.seconds)}"
        case events.TableKept():
            return f"{event.table}: {screen.count(event.rows, 'row')} kept of an earlier attempt"
        case events.StepFinished() if event.kind == "BuildIndex":
            return f"{event.step}: built in {screen.duration(event.seconds)}"
        case events.StepRetried():
            return f"attempt {event.attempt} of {event.step} in {event.wait:.1f} s: {event.error}"
        case events.Noticed():
            return event.message
        case events.Proven():
            return f"compared with the snapshot: {event.proof.headline}"
        case events.RunStopped() if event.landed:
            return _open(event.open)
        case _:
            return ""


def _begun(stage: events.StageStarted) -> str:
    if stage.name == "schema":
        return "creating the schema"
    return f"{stage.title}: {stage.steps} to do" if stage.name in progress.CHORES else ""


def _open(steps: Sequence[str]) -> str:
    """`public.T` and `public.T[0,10)` copy T; the other steps name what they do first."""
    tables = dict.fromkeys(step.partition("[")[0] for step in steps if " " not in step.partition("[")[0])
    if tables:
        return f"still to copy: {', '.join(tables)}"
    return f"all rows have landed; still to do: {screen.count(len(steps), 'step')}"


def _left(course: progress.Course) -> str:
    # Tenths of an estimate would only flicker.
    return "" if course.left is None else f", about {screen.duration(max(round(course.left), 1))} left"


def _percent(share: float) -> str:
    return f"{int(share * 100)} %"


class Display:
    """A table's line appears when its rows begin to move; the last line is the whole run.

    It draws over itself, follows the window's width, and leaves the screen as it was. `notice` and
    `last` may be called from a signal handler.
    """

    def __init__(self, to: screen.Screen, plan: model.Plan) -> None:
        self._to = to
        self._course = progress.Course(plan)
        self._names = names.Names([chosen.table for chosen in plan.chosen], unicode=to.unicode)
        self._painter = _Painter(to, [screen.text(f"From  {plan.source}"), screen.text(f"To    {plan.target}")])
        self._notice = ""
        self._guard = threading.RLock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_painting, name="display", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._painter.clear()

    def __call__(self, event: events.Event) -> None:
        with self._guard:
            self._course.hear(event)
            if isinstance(event, events.StepRetried | events.Noticed | events.RunStopped) and (words := line(event)):
                self._painter.clear()
                screen.say(self._to, words, "bold" if isinstance(event, events.RunStopped) else "")
                self._painter.paint(self._lines())

    def notice(self, words: str) -> None:
        """Shown in the last line from now on."""
        self._notice = words

    def last(self, words: str) -> None:
        """Takes the place of what is drawn; for a signal handler that ends the process then."""
        # Not given back, so that nobody paints any more; whoever holds it may wait for the terminal.
        self._guard.acquire(timeout=_FRAME_SECONDS)
        self._painter.last(words)

    def _keep_painting(self) -> None:
        while not self._ended.wait(_FRAME_SECONDS):
            with self._guard:
                self._painter.paint(self._lines())

    # -- drawing ----------------------------------------------------------------------------------

    def _lines(self) -> list[Text]:
        width, height = self._to.size
        course = self._course
        done = [(name, row) for name, row in course.rows.items() if row.done]
        moving = [(name, row) for name, row in course.rows.items() if not row.done and row.began is not None]
        room = max(height - len(course.chores) - len(course.building) - 4, 3)
        moving = moving[:room]
        shown = done[max(len(done) - (room - len(moving)), 0) :]
        lines = []
        if hidden := done[: len(done) - len(shown)]:
            rows = sum(row.rows for _, row in hidden)
            more = f"{len(hidden)} more {'table' if len(hidden) == 1 else 'tables'}"
            lines.append(screen.marked("✓", "green", f"{more}, {screen.count(rows, 'row')}"))
        lines += self._tables([*shown, *moving], width)
        for chore in course.chores:
            finished = chore.done == chore.steps
            mark = ("✓", "green") if finished else ("›", "cyan")
            counted = str(chore.steps) if finished else f"{chore.done} of {chore.steps}"
            lines.append(screen.marked(*mark, f"{chore.title}: {counted}"))
        return [*lines, *self._builds(width), self._total(width)]

    def _builds(self, width: int) -> list[Text]:
        """The indexes under way, one a line."""
        building = {f"index {self._names.short(name)}": share for name, share in self._course.building.items()}
        # The mark before it takes 2 cells, the share behind it 7.
        longest = min(max(map(cell_len, building), default=0), width - 1 - 2 - 7)
        lines = []
        for name, share in building.items():
            called = screen.text(name)
            called.truncate(longest, overflow="ellipsis", pad=True)
            lines.append(Text.assemble(("› ", "cyan"), called, f"{_percent(share):>7}"))
        return lines

    def _tables(self, shown: Sequence[tuple[str, progress.Row]], width: int) -> list[Text]:
        rows = max((len(f"{max(row.rows_expected, row.rows):,.0f}") for _, row in shown), default=1)
        # mark, share, size and rate take 2 + 6 + 10 + 12 cells, each with the gap before it.
        narrow = width < 64
        room = width - 1 - 2 - (rows + 2) - 6 - (0 if narrow else 10) - 12
        name_width = min(max((cell_len(self._names.short(name)) for name, _ in shown), default=1), room)
        return [self._table(name, row, name_width, rows, narrow=narrow) for name, row in shown]

    def _table(self, name: str, row: progress.Row, name_width: int, rows_width: int, *, narrow: bool) -> Text:
        mark = ("✓ ", "green") if row.done else ("› ", "cyan")
        called = screen.text(self._names.short(name))
        called.truncate(name_width, overflow="ellipsis", pad=True)
        rate = self._course.rate(row)
        share = "" if row.done else _percent(row.share)
        cells = [f"  {row.rows:>{rows_width},}", f"{share:>6}"]
        if not narrow:
            cells.append(f"{screen.size(row.bytes) if row.bytes else '':>10}")
        cells.append(f"{'kept' if row.kept else screen.size(rate) + '/s' if rate else '':>12}")
        return Text.assemble(mark, called, "".join(cells).rstrip())

    def _total(self, width: int) -> Text:
        course = self._course
        words = f" {_percent(course.stage_share):>5}  {screen.duration(course.elapsed)}{_left(course)}"
        title = self._notice or course.title
        room = width - 1 - cell_len(title) - 2 - cell_len(words)
        if room < 8:
            return Text.assemble((title, "bold"), " ", words)
        filled = int(course.stage_share * room)
        return Text.assemble((title, "bold"), "  ", ("━" * filled, "green"), ("─" * (room - filled), "dim"), words)


class _Painter:
    """Lines at the end of a terminal's output, drawn over in one write.

    Rich's own Live goes back by the height at which it drew. A window that changes its size wraps
    those lines anew, some terminals before they say so (tmux waits up to 250 ms), and remains stay
    for good. So with the first new size everything moves up out of sight, and the window is ours
    from its top on; `head` then says what has moved away.
    """

    def __init__(self, to: screen.Screen, head: Sequence[Text]) -> None:
        self._to = to
        self._head = head
        self._size = to.size
        self._drawn = 0
        self._at_top = False

    def paint(self, lines: Sequence[Text]) -> None:
        start = self._start()
        shown = [*self._head, *lines][-self._size.height + 1 :] if self._at_top else lines
        self._write(start + "".join(f"{self._code(line)}\x1b[K\n" for line in shown) + "\x1b[J")
        self._drawn = len(shown)

    def clear(self) -> None:
        if self._drawn:
            self._write(self._start() + "\x1b[J")
        self._drawn = 0

    def last(self, words: str) -> None:
        """The same with words instead, past a stream that the caller may have interrupted."""
        try:
            os.write(self._to.file.fileno(), f"{self._start()}\x1b[J{words}\n".encode())
        except OSError:
            pass  # the terminal is gone

    def _start(self) -> str:
        """To the first of the lines."""
        before, self._size = self._size, self._to.size
        if before != self._size and self._drawn:
            away = "" if self._at_top else "\n" * self._size.height
            self._at_top = True
            return f"{away}\x1b[H\x1b[J"
        return f"\x1b[{self._drawn}A\r" if self._drawn else "\r"

    def _code(self, line: Text) -> str:
        # One cell less than there is room for: terminals differ in what they do after the last one.
        width = max(self._size.width - 1, 1)
        with self._to.capture() as captured:
            self._to.print(line, width=width, no_wrap=True, overflow="ellipsis", end="")
        return captured.get().rstrip("\n")

    def _write(self, what: str) -> None:
        self._to.file.write(what)
        self._to.file.flush()
