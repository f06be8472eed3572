"""JSON lines on stdout: one object an event or a result, and nothing else. See docs/json.md.

Imports events and the words. Written by `json`, never through rich, which wraps and eats brackets.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import IO, Any

from mishika_migrate import events


class Lines:
    """Writes to a stream that is UTF-8 or not."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        # JSON is UTF-8; another encoding of the stream gets escapes, which are JSON too.
        self._ascii = not (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")

    def event(self, event: events.Event) -> None:
        """`{"event": "step_finished", …fields}`."""
        self.write(_name(type(event).__name__), dataclasses.asdict(event))

    def write(self, name: str, fields: Mapping[str, Any]) -> None:
        """One line, flushed: a program may act on it at once."""
        line = json.dumps({"event": name, **fields}, ensure_ascii=self._ascii, default=_plain)
        self._stream.write(f"{line}\n")
        self._stream.flush()


def _name(kind: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
