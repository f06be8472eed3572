"""Where a person reads: a console on a terminal or not, and how numbers are written for people.

Imports the words only. Colours are the terminal's own sixteen and mark single words, so light and
dark both work.
"""

from __future__ import annotations

import os
import sys
from typing import IO

from rich.console import Console
from rich.text import Text

from mishika_migrate import words

count = words.count  # numbers in sentences belong to all modules

# The width of tables in files and pipes, where nobody says one.
_WIDE = 120


class Screen(Console):
    """A console that knows what it is written on."""

    @property
    def on_terminal(self) -> bool:
        """Whether the stream is one; FORCE_COLOR and its kin change colours only."""
        return self.file.isatty()

    @property
    def paints(self) -> bool:
        """Whether lines that are already there can be drawn anew."""
        return self.on_terminal and not self.is_dumb_terminal and not self.legacy_windows

    @property
    def unicode(self) -> bool:
        return self.encoding.startswith("utf")


def screen(stream: IO[str] | None = None, *, quiet: bool = False) -> Screen:
    """On stdout unless told otherwise."""
    stream = stream or sys.stdout
    # A terminal is asked for its width every time: COLUMNS does not follow when a window changes.
    asked = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return Screen(
        file=stream,
        width=None if stream.isatty() else _columns(),
        _environ=asked,
        highlight=False,
        markup=False,
        emoji=False,
        quiet=quiet,
    )


def _columns() -> int:
    said = os.environ.get("COLUMNS", "")
    return max(int(said), _WIDE) if said.isascii() and said.isdigit() and len(said) < 5 else _WIDE


def text(what: str, style: str = "") -> Text:
    """Words from a server or an operator, as text: no markup, no control characters."""
    return Text("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in what), style=style)


def marked(mark: str, style: str, words: str) -> Text:
    """A sign or a word with a colour, and words without."""
    return Text.assemble((mark, style), " ", text(words))


def say(to: Screen, what: str | Text, style: str = "") -> None:
    """One line of ours: wrapped between words on a terminal, whole in a file or a pipe."""
    to.print(text(what, style) if isinstance(what, str) else what, soft_wrap=not to.on_terminal)


def quote(to: Screen, what: str) -> None:
    """Something to copy and run: indented, and never broken by us."""
    to.print(text(f"    {what}"), soft_wrap=True)


size = words.size


def duration(seconds: float) -> str:
    """`4 ms`, `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 0.001:
        return "<1 ms"
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95 and seconds != round(seconds):
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
