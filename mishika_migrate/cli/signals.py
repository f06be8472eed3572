"""SIGINT, SIGTERM and SIGHUP: the first asks for a clean stop, the second ends the process at once.

Imports the words only.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

from mishika_migrate import errors

_HANGUP = getattr(signal, "SIGHUP", None)
_SIGNALS = tuple(number for number in (signal.SIGINT, signal.SIGTERM, _HANGUP) if number is not None)
_NOTICE = "stopping; once more ends at once"
_heard = 0


def heard() -> int:
    """The number of the signal that has asked to stop, 0 while there is none."""
    return _heard


def raising() -> None:
    """Until a command knows better, a signal raises `errors.Interrupted` where the program is."""
    before = 0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal before
        if before:
            # Whatever cleans up after the first may wait for a server that does not answer.
            _end_at_once(number, lambda: tell("ended at once"))
            return
        global _heard  # noqa: PLW0603 - a library may swallow what is raised here, as psycopg does while it loads
        before = _heard = number
        raise errors.Interrupted("interrupted; nothing was written", hint="Run the same command again.", signal=number)

    _install(handle)


class Stop:
    """Remembers the first signal while in use; the second ends the process.

    Calling it returns the number of the signal that asked to stop, 0 while there is none. `notice`
    hears of it, and `last` says the last words, both in the handler. Ending at once is safe: the
    servers roll back what the dead sessions had open.
    """

    def __init__(self, notice: Callable[[str], None], last: Callable[[], None]) -> None:
        self._number = 0
        self._notice = notice
        self._last = last

    def __call__(self) -> int:
        return self._number

    def __enter__(self) -> Stop:
        _install(self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        raising()

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._number:
            _end_at_once(number, self._last)
            return
        self._number = number
        self._notice(_NOTICE)


def tell(words: str) -> None:
    """One line on stderr from within a handler, which may have interrupted a write to the same stream."""
    try:
        os.write(2, f"{words}\n".encode())
    except OSError:
        pass  # nobody reads it


def _install(handle: Callable[[int, FrameType | None], None]) -> None:
    for number in _SIGNALS:
        # nohup and its kin: whoever started the program wants it to outlive the terminal.
        if number != _HANGUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)


def _end_at_once(number: int, last: Callable[[], None]) -> None:
    # A lost terminal is told by the kernel and by the shell: nobody has asked twice.
    if number != _HANGUP:
        last()
        os._exit(128 + number)
