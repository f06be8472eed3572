"""The nouns: endpoints, what a server has, findings, steps and plans. Values only, no I/O.

Imports only `errors`. Every value is frozen and picklable, because a step may be carried out in
another process.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Literal

Role = Literal["source", "target"]
Severity = Literal["refuse", "warn", "note"]
Need = Literal["required", "if-used", "if-wanted", "never"]
StageName = Literal["schema", "core", "bulk", "finish"]

OLDEST_SERVER = 12_00_00
"""The oldest `server_version_num` whose catalog is read and whose rows are moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a server is and as whom. `conninfo` may hold a password: only `pg.connect` reads it."""

    role: Role
    conninfo: str = field(repr=False)
    schema: str = "public"
    label: str

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class TableName:
    """A qualified name; also of views and sequences."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column; `type` is `format_type()` with the schema in the search path.

    `default` is the server's own text, None without one. `labels` are an enum's, or those of an
    array's enum, in order. `binary` says that the type has send and receive functions.
    """

    name: str
    type: str
    nullable: bool
    default: str | None = None
    generated: bool = False
    identity: bool = False
    labels: tuple[str, ...] = ()
    binary: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignKey:
    """`references` is a bare table name when it lies in the same schema, else qualified."""

    name: str
    columns: tuple[str, ...]
    references: str
    referenced_columns: tuple[str, ...]
    deferrable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """`definition` is `pg_get_indexdef()`; `constraint` its constraint's text, None without one.

    `columns` are names, and the server's text for an expression.
    """

    name: str
    definition: str
    columns: tuple[str, ...]
    unique: bool
    primary: bool
    constraint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """A user trigger that would fire for rows inserted by an ordinary session.

    `before_insert` is true where it sees each row first and may change or drop it. `always` is its
    ENABLE ALWAYS.
    """

    name: str
    before_insert: bool
    always: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table of the endpoint's schema. Sizes are bytes, `rows` is the planner's estimate.

    `occupied` is None where the role may not look. `hidden` is true where row security would
    keep rows from the role.
    """

    name: str
    columns: tuple[Column, ...]
    rows: float
    bytes: int
    occupied: bool | None
    partitioned: bool = False
    partitions: tuple[TableName, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    indexes: tuple[Index, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    privileges: frozenset[str] = frozenset()
    hidden: bool = False
    owner: str = ""

    @property
    def primary_key(self) -> tuple[str, ...]:
        """Its columns, empty without one."""
        return next((index.columns for index in self.indexes if index.primary), ())

    def column(self, name: str) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """`table` and `column` own it (serial, identity) or draw from it by default, both None for a free one."""

    name: str
    table: str | None
    column: str | None
    writable: bool
    readable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """`definition` is `pg_get_viewdef()`; `reads` the tables of the schema that it needs.

    `columns` are the (table, column) pairs among them. `foreign` are functions and relations of
    other schemas that it needs, which nobody looks for on the target.
    """

    name: str
    definition: str
    reads: tuple[str, ...]
    columns: tuple[tuple[str, str], ...] = ()
    foreign: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """A row of the migration table: one deployed change of the schema."""

    name: str
    checksum: str
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """What one server has in the endpoint's schema, read once with one query a fact.

    `version` is `server_version_num`, e.g. 180006; of a server before `OLDEST_SERVER` nothing below
    it is known. `migrations` is None where there is no such table or the role may not read it.
    `elsewhere` are the tables of the database's other schemas.
    """

    endpoint: Endpoint
    database: str
    version: int
    encoding: str
    user: str
    in_recovery: bool
    schema_exists: bool
    may_create_schema: bool
    may_use_schema: bool
    may_create_in_schema: bool
    tables: tuple[Table, ...]
    sequences: tuple[Sequence, ...] = ()
    views: tuple[View, ...] = ()
    migrations: tuple[Migration, ...] | None = None
    elsewhere: tuple[TableName, ...] = ()

    def table(self, name: str) -> Table | None:
        return next((table for table in self.tables if table.name == name), None)

    def view(self, name: str) -> View | None:
        return next((view for view in self.views if view.name == name), None)


# -- what only the rows can tell ------------------------------------------------------------------


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

    `plan` is its plan as JSON (`plan.loads`), `horizon` the snapshot its rows come from, `tables`
    are those it wrote to.
    """

    run: str
    plan: str = field(repr=False)
    horizon: str
    tables: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What only a look at both servers at once, or at the rows, can tell.

    `unlooked` are tables too large to search for dangling references before the run. `pg_dump` is
    the major version of the newest one at hand, looked for when the schema is to be created.
    """

    same_database: bool = False
    pooled: tuple[Role, ...] = ()
    dangling: tuple[Dangling, ...] = ()
    unparseable: tuple[Unparseable, ...] = ()
    unlooked: tuple[str, ...] = ()
    pg_dump: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something preflight noticed: `code` is stable, `fix` is SQL or a command, or empty."""

    code: str
    severity: Severity
    subject: str
    message: str
    fix: str = ""


# -- the plan -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A table that will be copied, and why."""

    table: str
    stage: StageName
    reason: str
    rows: float
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A table that stays behind, and what is lost by that."""

    table: str
    reason: str
    loses: str
    rows: float
    known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which tables go and which stay, in the matrix's order; `findings` say what is wrong with it."""

    chosen: tuple[Chosen, ...]
    left: tuple[Left, ...]
    findings: tuple[Finding, ...] = ()

    def has(self, table: str) -> bool:
        return any(chosen.table == table for chosen in self.chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateSchema:
    """Types, tables, keys, indexes and sequences of the source's schema, without `without`."""

    schema: str
    without: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"schema {self.schema}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyTable:
    """All rows of one table, one stream. `columns` are the same names on both sides."""

    source: TableName
    target: TableName
    columns: tuple[str, ...]
    binary: bool
    partitioned: bool
    rows: float
    bytes: int

    @property
    def id(self) -> str:
        return str(self.target)


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
    """Planner statistics of one table, so that the first queries on the target are not slow."""

    target: TableName

    @property
    def id(self) -> str:
        return f"analyze {self.target}"


Step = CreateSchema | CopyTable | SetSequence | CreateView | Analyze


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

        Estimates are left out, and so is the order of independent steps, which follows from them:
        they move on a live source.
        """
        stages = [
            [stage.name, steps if stage.atomic else sorted(steps)]
            for stage in self.stages
            if (steps := [_lasting(step) for step in stage.steps])
        ]
        text = json.dumps([self.source, self.target, stages])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _lasting(step: Step) -> str:
    fields = {name: value for name, value in asdict(step).items() if name not in ("rows", "bytes")}
    return json.dumps([type(step).__name__, fields], sort_keys=True)


# -- a run ----------------------------------------------------------------------------------------


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
    """The books of one table: rows that left, rows that arrived, rows that the ledger says."""

    table: str
    rows_out: int
    rows_in: int
    rows_ledger: int
    bytes: int
    seconds: float

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
class Listed:
    """One table of the matrix or of the source. `rows` is None without a source or without the table.

    `need` is `unknown` for a table that only the source has.
    """

    table: str
    need: str
    stage: str
    flag: str
    why: str
    rows: float | None
    bytes: int | None
