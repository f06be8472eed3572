"""What preflight asks and what it was told: questions to the rows, answers, findings.

Imports servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from mishika_migrate.model.servers import Role

Severity = Literal["refuse", "warn", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """A question: do all values of `column` exist as `key` of `references`?

    With `each`, the column is an array of such values. `absent` means that the referenced table
    stays behind, so every value dangles. Empty texts and `exempt` values point nowhere by design.
    """

    table: str
    column: str
    references: str
    key: str
    each: bool = False
    exempt: tuple[str, ...] = ()
    absent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A question: do all rows hold what the application expects?

    `objects` must be JSON objects, `present` must not be NULL. `names` and the beginning of `key`
    tell a person which row it is; a key may be a secret, so the whole of it is never read.
    """

    table: str
    objects: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    key: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dangling:
    """`rows` of `table` point by `column` at rows that `references` does not hold."""

    table: str
    column: str
    references: str
    rows: int
    absent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unparseable:
    """`rows` of `table` hold a value in `column` that the application rejects."""

    table: str
    column: str
    fault: str
    rows: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A run that stopped after some of its steps had landed.

    `plan` is its plan as JSON (`plan.loads`), `tables` are those it wrote to.
    """

    run: str
    plan: str = field(repr=False)
    tables: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What only a look at both servers at once, or at the rows, can tell.

    `unlooked` are tables too large to search for dangling references before the run. `pg_dump` is
    the major version of the newest one at hand, looked for when the schema is to be created. Of
    the target's ledger: `unfinished`, and `finished`, the latest run that copied all it had planned
    from this source, empty without one. `spread` are, of tables of which an interval is asked for,
    the bounds of equally full buckets of its time column on the source; `vacant` are those of which
    the target has no row in it.
    """

    same_database: bool = False
    pooled: tuple[Role, ...] = ()
    dangling: tuple[Dangling, ...] = ()
    unparseable: tuple[Unparseable, ...] = ()
    unlooked: tuple[str, ...] = ()
    spread: Mapping[str, tuple[datetime, ...]] = field(default_factory=dict)
    vacant: frozenset[str] = frozenset()
    pg_dump: int | None = None
    unfinished: Unfinished | None = None
    finished: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something preflight noticed: `code` is stable, `fix` is SQL or a command, or empty."""

    code: str
    severity: Severity
    subject: str
    message: str
    fix: str = ""
