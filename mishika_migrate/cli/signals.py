"""SIGINT and SIGTERM: the first asks for a clean stop, the second ends the process at once.

Imports the words only.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

from mishika_migrate import errors

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = "stopping; once more ends at once"


def raising() -> None:
    """Until a command knows better, a signal raises `errors.Interrupted` where the program is."""
    before = 0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal before
        if before:
            # Whatever cleans up after the first may wait for a server that does not answer.
            os._exit(128 + number)
        before = number
        raise errors.Interrupted("interrupted; nothing was written", hint="Run the same command again.", signal=number)

    for number in _SIGNALS:
        signal.signal(number, handle)


class Stop:
    """Remembers the first signal while in use; the second ends the process.

    Calling it returns the number of the signal that asked to stop, 0 while there is none. `tell`
    hears of it, in the handler. Ending at once is safe: the servers roll back what the dead
    sessions had open.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._number = 0
        self._tell = tell

    def __call__(self) -> int:
        return self._number

    def __enter__(self) -> Stop:
        for number in _SIGNALS:
            signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        raising()

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._number:
            os._exit(128 + number)
        self._number = number
        self._tell(_NOTICE)


def tell(words: str) -> None:
    """One line on stderr from within a handler, which may have interrupted a write to the same stream."""
    try:
        os.write(2, f"{words}\n".encode())
    except OSError:
        pass  # nobody reads it
