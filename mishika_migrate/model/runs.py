"""What has been done: landed steps, the books of a table, runs; and what `tables` lists.

Imports proofs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mishika_migrate.model.proofs import Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed:
    """What one step did. `rows_out` is the source's command tag, `rows_in` the target's."""

    step: str
    table: str
    rows_out: int
    rows_in: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The books of one table: rows that left, rows that arrived, rows that the ledger says.

    `kept` of the rows and `kept_bytes` are an earlier attempt's; `seconds` are this one's alone.
    """

    table: str
    rows_out: int
    rows_in: int
    rows_ledger: int
    bytes: int
    seconds: float
    kept: int = 0
    kept_bytes: int = 0

    @property
    def balanced(self) -> bool:
        return self.rows_out == self.rows_in == self.rows_ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One execution of a plan, as the ledger knows it. Times are ISO 8601 in UTC."""

    id: str
    state: str
    source: str
    target: str
    digest: str
    started: str
    finished: str | None
    message: str
    steps: tuple[Landed, ...]
    planned: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What of one table has landed in a run: `steps` of `planned`, 0 where the plan cannot be read."""

    table: str
    rows: int
    bytes: int
    steps: int
    planned: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """What `sync` did to one table, or would do. `extra` rows are on the target only, and stay.

    `how` says by what differences were found: `buckets` of hashes, or what the last run has seen
    (`visibility`).
    """

    table: str
    how: Literal["buckets", "visibility"]
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    extra: int = 0
    bytes: int = 0
    seconds: float = 0.0

    @property
    def changes(self) -> int:
        return self.inserted + self.updated + self.deleted


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    """One pass of `sync`, done (`run` names it in the ledger) or foreseen, with what it means for `keys`."""

    source: str
    target: str
    said: str
    changes: tuple[Synced, ...]
    run: str = ""
    keys: Keys | None = None
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return sum(change.changes for change in self.changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One table of the matrix or of the source. `rows` is None without a source or without the table,
    and where the role may not count them; `bytes` is known then.

    `need` is `unknown` for a table that only the source has.
    """

    table: str
    need: str
    stage: str
    flag: str
    why: str
    rows: float | None
    bytes: int | None
