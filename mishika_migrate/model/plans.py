"""What would be done: the selection, steps, stages and the plan.

Imports servers and answers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from mishika_migrate.model.answers import Existing, Finding
from mishika_migrate.model.servers import TableName

Need = Literal["required", "if-used", "if-wanted", "never"]
StageName = Literal["schema", "core", "prepare", "bulk", "indexes", "finish"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Rows whose `column` is not before `since` and before `before`; ISO 8601 without a zone, None is open."""

    column: str
    since: str | None = None
    before: str | None = None

    def __str__(self) -> str:
        return f"[{self.column} {self.since or ''},{self.before or ''})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A table that will be copied, and why; `within` when only rows of some time are asked for.

    `existing` is what was asked for the rows that the target has of it.
    """

    table: str
    stage: StageName
    reason: str
    rows: float
    bytes: int
    within: Interval | None = None
    existing: Existing = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A table that stays behind, and what is lost by that. `rows` is None where nobody may count them."""

    table: str
    reason: str
    loses: str
    rows: float | None
    known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which tables go and which stay, in the matrix's order; `findings` say what is wrong with it.

    `only` are the tables that were asked for by name, where nothing else was to go.
    """

    chosen: tuple[Chosen, ...]
    left: tuple[Left, ...]
    findings: tuple[Finding, ...] = ()
    only: tuple[str, ...] = ()

    def has(self, table: str) -> bool:
        return any(chosen.table == table for chosen in self.chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateSchema:
    """Types, tables, keys, indexes and sequences of the source's schema, without `without`.

    They are made as `owner`, as the connecting role where that is empty.
    """

    schema: str
    without: tuple[str, ...]
    owner: str = ""

    @property
    def id(self) -> str:
        return f"schema {self.schema}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRange:
    """Heap pages from `low` up to, not including, `high`; `high=None` is open-ended."""

    low: int
    high: int | None

    def __str__(self) -> str:
        return f"[{self.low},{'' if self.high is None else self.high})"


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyTable:
    """Rows of one table, one stream: all of them, those of a leaf, of some heap pages, or of some time.

    `columns` are the same names on both sides. `root` is the partitioned table that `source` is a
    leaf of, None for any other. `within` is what was asked for of the table, `slice` this step's
    part of it. With `existing` skip or update the rows are merged by `key`, the target's primary key.
    """

    source: TableName
    target: TableName
    columns: tuple[str, ...]
    binary: bool
    partitioned: bool
    rows: float
    bytes: int
    root: TableName | None = None
    pages: PageRange | None = None
    within: Interval | None = None
    slice: Interval | None = None
    existing: Existing = "refuse"
    key: tuple[str, ...] = ()

    @property
    def merges(self) -> bool:
        """Whether the target's own rows stay, so that nothing may be removed to do the step again."""
        return self.existing in ("skip", "update")

    @property
    def id(self) -> str:
        leaf = "" if self.root is None else f"({self.source})"
        return f"{self.target}{leaf}{self.pages or self.slice or ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Empty:
    """The rows that these tables have on the target go, all at once, before the first row arrives.

    `idle` tables are empty, but reference one of them: a TRUNCATE must name them too.
    """

    tables: tuple[TableName, ...]
    idle: tuple[TableName, ...] = ()

    @property
    def id(self) -> str:
        return f"empty {', '.join(map(str, self.tables))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DropIndexes:
    """These indexes of an empty table go before its load; their definitions are kept in the ledger."""

    target: TableName
    names: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"drop indexes {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildIndex:
    """One of them is built again from its definition in the ledger."""

    target: TableName
    name: str

    @property
    def id(self) -> str:
        return f"index {self.target} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreIndexes:
    """The built indexes become what they were: constraints, comments, clustering, replica identity."""

    target: TableName
    names: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"restore indexes {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSequence:
    """The target's sequence takes over the source's `last_value`; it is never set back."""

    source: TableName
    target: TableName

    @property
    def id(self) -> str:
        return f"sequence {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateView:
    """A view that the target lacks, with the source's definition; `owner` empty keeps the creator."""

    target: TableName
    definition: str
    owner: str

    @property
    def id(self) -> str:
        return f"view {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Analyze:
    """Planner statistics of `columns`, so that the first queries on the target are not slow."""

    target: TableName
    columns: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"analyze {self.target}"


Step = CreateSchema | Empty | CopyTable | DropIndexes | BuildIndex | RestoreIndexes | SetSequence | CreateView | Analyze


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A barrier: all its steps end before the next stage starts.

    An `atomic` stage is one transaction on the target, its steps in this order; the steps of any
    other stage are independent of each other.
    """

    name: StageName
    title: str
    atomic: bool
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would be done, all of it; executing a plan reads nothing that is not in here."""

    source: str
    target: str
    chosen: tuple[Chosen, ...]
    left: tuple[Left, ...]
    stages: tuple[Stage, ...]
    findings: tuple[Finding, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(step for stage in self.stages for step in stage.steps)

    @property
    def intervals(self) -> dict[TableName, Interval]:
        """Of those tables of the target of which not all rows are asked for, what is."""
        copies = (step for step in self.steps if isinstance(step, CopyTable))
        return {step.target: step.within for step in copies if step.within is not None}

    @property
    def merged(self) -> dict[TableName, Existing]:
        """Of those tables of the target whose own rows stay, how: skip or update."""
        return {step.target: step.existing for step in self.steps if isinstance(step, CopyTable) and step.merges}

    @property
    def emptied(self) -> tuple[TableName, ...]:
        """Tables of the target whose rows go before the copy."""
        return tuple(table for step in self.steps if isinstance(step, Empty) for table in step.tables)

    @property
    def refused(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "refuse")

    @property
    def rows(self) -> float:
        return sum(chosen.rows for chosen in self.chosen)

    @property
    def bytes(self) -> int:
        return sum(chosen.bytes for chosen in self.chosen)

    @property
    def digest(self) -> str:
        """Changes when, and only when, other tables, columns or steps would be carried out.

        Estimates are left out, and so are the order of independent steps and the pages where a
        table is cut, which follow from them: they move on a live source.
        """
        stages = [
            [stage.name, steps if stage.atomic else sorted(set(steps))]
            for stage in self.stages
            if (steps := [_lasting(step) for step in stage.steps])
        ]
        text = json.dumps([self.source, self.target, stages])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _lasting(step: Step) -> str:
    fields = {name: value for name, value in asdict(step).items() if name not in ("rows", "bytes", "pages", "slice")}
    return json.dumps([type(step).__name__, fields], sort_keys=True)
