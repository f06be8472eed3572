"""How an application decides about a call by a key: one row, joined with others, and which columns count.

Imports nothing of ours. The matrix describes it (`matrix.keyring`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

KEY: Final = "key"
"""How the key's own row is called among the joins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """The row of `table` whose columns equal others: `by` are pairs (column, `name.column`) of earlier joins.

    `missing` is the reason when the target lacks a row that the source has, and `opens` the limit that
    then disappears. One that `refuses` makes the call fail when the application cannot read it; any
    other counts as missing then.
    """

    name: str
    table: str
    by: tuple[tuple[str, str], ...]
    missing: str
    opens: str
    refuses: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Aspect:
    """A reason why a decision differs: when one of `columns` (`name.column`) does; `says` what it means.

    `moving` values change with every call, so on a live source they only warn.
    """

    reason: str
    columns: tuple[str, ...]
    says: str
    moving: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """The keys are the rows of `table`, each told by its column `key`, the SHA-256 of what callers send."""

    table: str
    key: str
    joins: tuple[Join, ...]
    aspects: tuple[Aspect, ...]

    @property
    def tables(self) -> tuple[str, ...]:
        """Every table that a decision reads."""
        return tuple(dict.fromkeys([self.table, *(join.table for join in self.joins)]))

    @property
    def columns(self) -> tuple[str, ...]:
        """Every `name.column` that counts, once."""
        return tuple(dict.fromkeys(column for aspect in self.aspects for column in aspect.columns))

    @property
    def ends(self) -> tuple[str, ...]:
        """Those, the key itself and what joins the rows."""
        joined = [(f"{join.name}.{column}", end) for join in self.joins for column, end in join.by]
        return tuple(dict.fromkeys([f"{KEY}.{self.key}", *(end for pair in joined for end in pair), *self.columns]))

    def limited(self, there: Mapping[str, Collection[str]]) -> Keyring:
        """Without joins and columns that are not `there` (columns by table)."""
        rows, kept = {KEY: self.table}, []
        for join in self.joins:
            ends = [f"{KEY}.{self.key}", *(end for _, end in join.by)]
            own = [(f"{join.name}.{column}", {join.name: join.table}) for column, _ in join.by]
            if all(_is_there(end, rows, there) for end in ends) and all(_is_there(*each, there) for each in own):
                kept.append(join)
                rows[join.name] = join.table
        aspects = (
            replace(aspect, columns=tuple(each for each in aspect.columns if _is_there(each, rows, there)))
            for aspect in self.aspects
        )
        return replace(self, joins=tuple(kept), aspects=tuple(aspect for aspect in aspects if aspect.columns))

    def table_of(self, name: str) -> str:
        """The table behind a join's name."""
        return next((join.table for join in self.joins if join.name == name), self.table)


def _is_there(column: str, rows: Mapping[str, str], there: Mapping[str, Collection[str]]) -> bool:
    name, _, column = column.partition(".")
    return name in rows and column in there.get(rows[name], ())
