"""The three standard streams as a shell may hand them over: closed, broken, full, or not UTF-8.

Imports nothing of ours, so that it is ready before anything can fail.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TextIO

# One sign for one wherever possible, so that columns stay aligned.
_PLAIN = str.maketrans({
    "→": "->", "–": "-", "…": "...", "×": "x", "≥": ">=", "≤": "<=", "·": "-", "✗": "x", "✓": "+", "›": ">",
    "━": "#", "─": "-", "’": "'",
})  # fmt: skip


def prepare() -> None:
    """Makes writing safe: it raises neither for a stream's end nor for a sign that the stream lacks."""
    _reopen()
    codecs.register_error("plain", _replaced)
    sys.stdout, sys.stderr = _safe(sys.stdout), _safe(sys.stderr)


def failure() -> str:
    """Why stdout did not take everything, or an empty text.

    A reader that went away (`| head`) has seen enough and is no failure.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    error = sys.stdout.error if isinstance(sys.stdout, _Safe) else None
    return "" if error is None or isinstance(error, BrokenPipeError) else error.strerror or str(error)


def unheard() -> bool:
    """Whether stdout takes nothing any more: its reader went away, or there is no room."""
    return isinstance(sys.stdout, _Safe) and sys.stdout.error is not None


class _Safe(io.TextIOWrapper):
    """Remembers the first failure in `error`, and swallows what is written after it.

    A copy must not end because its log is full, or because nobody reads it any more.
    """

    error: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.error = self.error or error
        # What is still buffered goes there; Python flushes at exit once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


def _safe(stream: TextIO) -> TextIO:
    if type(stream) is not io.TextIOWrapper:
        return stream
    encoding, line_buffering, write_through = stream.encoding, stream.line_buffering, stream.write_through
    return _Safe(stream.detach(), encoding, "plain", line_buffering=line_buffering, write_through=write_through)


def _reopen() -> None:
    # A descriptor that stays closed would be given to the next socket, and prints would go there.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, so this one
    # Python leaves None where it found a closed one.
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    return part.translate(_PLAIN).encode("ascii", "backslashreplace").decode(), error.end
