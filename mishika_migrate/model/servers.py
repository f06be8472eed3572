"""What a server is and has: endpoints, tables with all that belongs to them, and the catalog.

Imports nothing of ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["source", "target"]

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

    `default` is the server's own text, None without one; of a `generated` column it is the
    expression, and `virtual` says that it is computed when it is read. `labels` are an enum's, or
    those of an array's enum, in order. `binary` says that its binary form means the same elsewhere.
    """

    name: str
    type: str
    nullable: bool
    default: str | None = None
    generated: bool = False
    virtual: bool = False
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

    `columns` are names, and the server's text for an expression. `droppable` says that it can be
    taken away and put back: nothing refers to it, and its constraint can be added to an index.
    """

    name: str
    definition: str
    columns: tuple[str, ...]
    unique: bool
    primary: bool
    constraint: str | None = None
    droppable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """A user trigger that would fire for rows written by an ordinary session: inserted ones, if `on_insert`,
    or only those that are changed or removed.

    `on` is the table or one of its partitions. `always` is its ENABLE ALWAYS.
    """

    name: str
    on: TableName
    always: bool = False
    on_insert: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A CHECK or an exclusion; `definition` is `pg_get_constraintdef()`, `on` as of a trigger."""

    name: str
    definition: str
    on: TableName


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a table's rows lie in: the table itself, or one leaf of a partitioned one.

    `pages` are those of its heap, `bytes` count TOAST too, `rows` is an estimate. `readable` is
    false where the role may read the leaf by way of its root only.
    """

    name: TableName
    pages: int
    bytes: int
    rows: float
    readable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table of the endpoint's schema. Sizes are bytes, `rows` is the planner's estimate.

    `occupied` is None where the role may not look. `hidden` is true where row security would
    keep rows from the role, `forced` where it keeps them from the owner too. `bounds` say what
    the partitions of a partitioned table take, `gaps` which of them, or of itself, have no DEFAULT
    partition. `extensions` are those that its columns and indexes need.
    """

    name: str
    columns: tuple[Column, ...]
    rows: float
    bytes: int
    occupied: bool | None
    partitioned: bool = False
    pieces: tuple[Piece, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    indexes: tuple[Index, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    bounds: tuple[str, ...] = ()
    gaps: tuple[TableName, ...] = ()
    extensions: tuple[str, ...] = ()
    privileges: frozenset[str] = frozenset()
    hidden: bool = False
    forced: bool = False
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
class OwnType:
    """A type that somebody made: a composite one or a domain, named as columns name it.

    `parts` are its attributes (name, type) in order; a domain has one, without a name. `checks`
    are what a domain's values must fulfil.
    """

    name: str
    parts: tuple[tuple[str, str], ...]
    checks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """What is no table but holds rows: a materialized view or a foreign table, says `kind`."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """An installed extension, and the schema that its objects lie in."""

    name: str
    schema: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """A row of the migration table: one deployed change of the schema."""

    name: str
    checksum: str
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How many sessions the role, the database or the server takes, and how many of them are taken, without this
    tool's; of a server those that it keeps for others, too."""

    of: Literal["role", "database", "server"]
    allowed: int
    used: int

    @property
    def left(self) -> int:
        return max(self.allowed - self.used, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """What one server has in the endpoint's schema, read once with one query a fact.

    `version` is `server_version_num`, e.g. 180006; of a server before `OLDEST_SERVER` nothing below
    it is known. `migrations` is None where there is no such table or the role may not read it.
    `elsewhere` are the tables of the database's other schemas. `unbound` says that row security
    does not apply to the role, `limits` how many sessions it may have.
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
    types: tuple[OwnType, ...] = ()
    others: tuple[Relation, ...] = ()
    extensions: tuple[Extension, ...] = ()
    unbound: bool = False
    may_use_temporary: bool = True
    limits: tuple[Limit, ...] = ()

    def table(self, name: str) -> Table | None:
        return next((table for table in self.tables if table.name == name), None)

    def view(self, name: str) -> View | None:
        return next((view for view in self.views if view.name == name), None)

    def own_type(self, name: str) -> OwnType | None:
        return next((each for each in self.types if each.name == name), None)

    def kind(self, name: str) -> str:
        """What has this name without being a table: `view`, `foreign table` …; empty for nothing."""
        return "view" if self.view(name) else next((each.kind for each in self.others if each.name == name), "")
