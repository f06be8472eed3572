"""What is asked of servers and what they tell: questions to the rows, answers, findings, who is there.

Imports servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from mishika_migrate.model.servers import Role

Severity = Literal["refuse", "warn", "note"]
Existing = Literal["refuse", "replace", "skip", "update"]
"""What becomes of rows that the target has already: nothing is copied, they go, they stay, or they follow the
source's row of the same primary key."""


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
class Collision:
    """`rows` of the source could not be merged into `table`: another row of the target has their unique values.

    `index` is the target's, over `columns`. `examples` are such values, for people.
    """

    table: str
    index: str
    columns: tuple[str, ...]
    rows: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a copy would do to the rows of a table of which the target has some; `leave` stay as they are there."""

    table: str
    existing: Existing
    insert: int
    update: int
    leave: int
    delete: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A run that stopped after some of its steps had landed.

    `plan` is its plan as JSON (`plan.loads`), `tables` are those it wrote to.
    """

    run: str
    plan: str = field(repr=False)
    tables: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The role that owns the chosen tables on the source, as the target knows it.

    `usable` says that the connecting role has its rights there and may SET ROLE to it, `creates` that it
    may create tables in the schema.
    """

    name: str
    exists: bool
    superuser: bool = False
    usable: bool = False
    creates: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What only a look at both servers at once, or at the rows, can tell.

    `unlooked` are tables too large to search for dangling references before the run. When the schema is
    to be created, `pg_dump` is the major version of the newest one at hand, `owner` whose tables they are. Of
    the target's ledger: `unfinished`, and `finished`, the latest run that copied all it had planned
    from this source, empty without one. `spread` are, of tables of which an interval is asked for,
    the bounds of equally full buckets of its time column on the source; `vacant` are those of which
    the target has no row in it. `collisions` are what keeps rows from being merged into the target's.
    """

    same_database: bool = False
    pooled: tuple[Role, ...] = ()
    dangling: tuple[Dangling, ...] = ()
    unparseable: tuple[Unparseable, ...] = ()
    unlooked: tuple[str, ...] = ()
    spread: Mapping[str, tuple[datetime, ...]] = field(default_factory=dict)
    vacant: frozenset[str] = frozenset()
    collisions: tuple[Collision, ...] = ()
    pg_dump: int | None = None
    owner: Owner | None = None
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """A reason to think that the target is in use already; `code` is stable."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """A session of somebody else in a database.

    `client` is an address, or local for a socket. `connected` and `asked` are the seconds since it
    connected and since its last query began. `writing` says that its open transaction has written.
    Of a `hidden` one the role may see no more than `pid`, `user` and `application`.
    """

    pid: int
    user: str
    application: str
    client: str
    state: str
    writing: bool
    hidden: bool
    connected: float | None
    asked: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """How fast one side moves. `quiet` are the seconds for which nothing has.

    `rows` are those written a second by table, without tables that do not move; `spend` what the
    counted spend changes by a second, None where that cannot be told.
    """

    role: Role
    server: str
    quiet: float
    rows: Mapping[str, float]
    spend: float | None
    visitors: tuple[Visitor, ...]
