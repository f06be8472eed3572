"""The program on a terminal of any size: a pseudo-terminal, and the screen that a person would see."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.fix_program import command, environment

_PATIENCE = 30.0
_CODE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b[()][A-Z0-9]|\x1b[=>]")


class Screen:
    """The few things that the program asks of a terminal; any other code fails the test."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.lines: list[str] = [""]
        self.at, self.column, self._top = 0, 0, 0
        self._rest = ""

    def feed(self, text: str) -> None:
        text = self._rest + text
        # A code may be cut by the end of a read.
        cut = text.rfind("\x1b", max(len(text) - 12, 0))
        whole = cut < 0 or _CODE.match(text, cut) is not None
        text, self._rest = (text, "") if whole else (text[:cut], text[cut:])
        while text:
            if found := _CODE.match(text):
                self._code(found[1] or "", found[2] or "")
                text = text[found.end() :]
            else:
                self._put(text[0])
                text = text[1:]

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self._down()
        elif character.isprintable():
            if self.column == self.columns:
                self._down()
                self.column = 0
            line = self.lines[self.at].ljust(self.column)
            self.lines[self.at] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1

    def _down(self) -> None:
        self.at += 1
        if self.at == len(self.lines):
            self.lines.append("")
        self._top = max(self._top, self.at - self.rows + 1)

    def _code(self, values: str, kind: str) -> None:
        if kind == "A":
            self.at = max(self.at - int(values or 1), self._top)
        elif kind == "K":
            self.lines[self.at] = self.lines[self.at][: self.column]
        elif kind == "J":
            del self.lines[self.at + 1 :]
            self.lines[self.at] = self.lines[self.at][: self.column]
        elif kind == "H":
            self.at, self.column = self._top, 0
        elif kind and kind not in "mh l":
            raise AssertionError(f"unexpected code {values}{kind}")

    @property
    def text(self) -> str:
        """All lines, those that have moved out of sight too."""
        return "\n".join(line.rstrip() for line in self.lines)

    @property
    def visible(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines[self._top :])


def _own_the_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A program that runs on one."""

    def __init__(
        self, arguments: tuple[str, ...], *, folder: Path, columns: int, rows: int, env: Mapping[str, str] | None
    ) -> None:
        self._end, other = os.openpty()
        self.resize(columns, rows)
        self.screen = Screen(columns, rows)
        self.raw = ""
        kept = {name: value for name, value in environment(env).items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            command(*arguments),
            env={"TERM": "xterm-256color", **kept, **(env or {})},
            cwd=folder,
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            # The terminal must be the program's own, so that Ctrl-C becomes a signal.
            preexec_fn=_own_the_terminal,  # noqa: PLW1509 - the child does one system call there
        )
        os.close(other)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        if hasattr(self, "screen"):
            self.screen.columns, self.screen.rows = columns, rows
            os.killpg(self.process.pid, signal.SIGWINCH)

    def type(self, keys: str) -> None:
        os.write(self._end, keys.encode())

    def until(self, text: str) -> None:
        """Reads until the screen shows it."""
        self.until_true(lambda: text in self.screen.text, f"no {text!r}")

    def until_true(self, condition: Callable[[], bool], failure: str) -> None:
        self._read(condition, failure)

    def ended(self) -> int:
        """The exit status, once everything has been read."""
        self._read(lambda: False, "still running", at_end=False)
        return self.process.wait(timeout=_PATIENCE)

    def _read(self, enough: Callable[[], bool], failure: str, *, at_end: bool = True) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not enough():
            ready, _, _ = select.select([self._end], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{failure} on the screen:\n{self.screen.text}"
            try:
                block = os.read(self._end, 65536)
            except OSError:  # Linux says EIO when the last one who writes has gone
                block = b""
            if not block:
                assert not at_end, f"{failure}, the program ended:\n{self.screen.text}"
                return
            text = block.decode(errors="replace")
            self.raw += text
            self.screen.feed(text)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=_PATIENCE)
        os.close(self._end)


Open = Callable[..., Terminal]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Open]:
    """`terminal("copy", …, columns=60, rows=24)` starts the program on one; all are closed after the test."""
    made: list[Terminal] = []

    def call(*arguments: str, columns: int = 80, rows: int = 24, env: Mapping[str, str] | None = None) -> Terminal:
        made.append(Terminal(arguments, folder=tmp_path, columns=columns, rows=rows, env=env))
        return made[-1]

    yield call
    for each in made:
        each.close()
