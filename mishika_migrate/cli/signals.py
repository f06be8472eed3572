"""SIGINT and SIGTERM: the first asks for a clean stop, the second ends the process at once.

Imports the words only.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from mishika_migrate import errors

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def raising() -> None:
    """Until a command knows better, a signal raises `errors.Interrupted` where the program is."""

    def handle(number: int, _: FrameType | None) -> None:
        raise errors.Interrupted("interrupted; nothing was written", signal=number)

    for number in _SIGNALS:
        signal.signal(number, handle)


class Stop:
    """Remembers the first signal while in use; the second ends the process.

    Calling it returns the number of the signal that asked to stop, 0 while there is none. Ending
    at once is safe: the servers roll back what the dead sessions had open.
    """

    def __init__(self) -> None:
        self._number = 0

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
        # os.write, because the handler may interrupt a write to the same stream.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"\nstopping; once more ends at once\n")
