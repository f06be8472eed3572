"""Table names without the prefix that they share: it takes a quarter of a narrow terminal and says nothing.

Imports nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


class Names:
    """`title` heads the column; `short` is what stands in it. Never two tables under one name."""

    def __init__(self, tables: Sequence[str], *, unicode: bool = True) -> None:
        self._prefix = _prefix(tables)
        self._all = set(tables)
        mixed = not all(table.startswith(self._prefix) for table in tables)
        dots = "…" if unicode else "..."
        self._dots = dots if mixed else ""
        self.title = f"table ({self._prefix}{dots})" if self._prefix else "table"

    def short(self, table: str) -> str:
        cut = table.removeprefix(self._prefix)
        return f"{self._dots}{cut}" if cut and cut != table and cut not in self._all else table


def _prefix(tables: Sequence[str]) -> str:
    """What most of them start with, up to an underscore; empty unless it is worth a word of explanation."""
    starts = Counter(table.partition("_")[0] + "_" for table in tables if 0 < table.find("_") < len(table) - 1)
    if not starts:
        return ""
    start, many = starts.most_common(1)[0]
    return start if many > 1 and many * 3 >= len(tables) * 2 else ""
