"""What follows what: slots, subscriptions, lag, what servers allow for it, gates, and switches from one to the other.

Imports servers and answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mishika_migrate.model.answers import Finding
from mishika_migrate.model.servers import Role

Way = Literal["forward", "back"]
"""From the source to the target, or the other way round after a cutover."""

SwitchMethod = Literal["replication", "sync"]
SwitchState = Literal["begun", "fenced", "drained", "proved", "switching", "finished", "aborted", "undone"]
"""Up to `proved` nothing has been switched, and giving up means lifting the fence. From `switching` on the
operator's command may have run. `undone` is a cutover that was rolled back."""


def object_name(run: str, way: Way) -> str:
    """Of publication, slot and subscription; a slot's may hold lower-case letters, digits and underscores."""
    return f"mishika_migrate_{run.replace('-', '_')}{'_back' if way == 'back' else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A replication slot of this tool. `lag` is WAL that its reader has not confirmed, `retained` WAL that the
    server keeps for it, both in bytes; `safe` is how much more may come until the server gives it up, None without
    a limit. `inactive` is for how many seconds nobody has read from it, None where that is not known.
    """

    name: str
    active: bool
    lag: int
    retained: int
    status: str
    safe: int | None = None
    reason: str = ""
    inactive: float | None = None

    @property
    def lost(self) -> bool:
        """Whether the server has thrown away what its reader had yet to read."""
        return self.status == "lost" or bool(self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """A subscription of this tool; `errors` counts what has stopped it, a row that cannot be applied or a connection
    that ended, `unready` tables that do not follow yet. `working` says that its worker runs."""

    name: str
    enabled: bool
    working: bool
    errors: int = 0
    unready: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """A transaction that is open on a server: since how many seconds, and whose. `prepared` ones have no session."""

    who: str
    seconds: float
    prepared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """One table as replication sees it. `identified` says that UPDATE and DELETE can be published, `owned` that the
    role has the rights of its `owner`, `settable` that it may SET ROLE to it, true before 16. `always` are triggers
    that fire for replicated rows too."""

    table: str
    owner: str
    identified: bool
    owned: bool
    settable: bool = True
    logged: bool = True
    always: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Footing:
    """What one server allows for following.

    `slots`, `senders` and `workers` are how many are free. `replicates` says why the role cannot open
    a replication connection, empty where it can; `reaches` why this server cannot reach the other one,
    None where that was not tried. `keeps` are the bytes of WAL that a slot may hold back and `idles` the
    seconds that it may be idle, None without a limit.
    """

    role: Role
    label: str
    database: str
    version: int
    user: str
    in_recovery: bool
    wal_level: str
    slots: int
    senders: int
    workers: int
    superuser: bool
    subscribes: bool
    creates: bool
    replicates: str
    grounds: tuple[Ground, ...]
    keeps: int | None = None
    idles: float | None = None
    writers: tuple[Writer, ...] = ()
    reaches: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Follow:
    """One run's following, as the ledger knows it. `tables` are bare names, `fingerprint` that of their
    columns on the side that is followed, since it is. `proved` is when all rows were last compared (ISO
    8601, UTC by the source's clock), empty for never. Nothing may follow before it is `ready`. `faults` are the
    subscription's errors that were known when it was last started or stopped."""

    run: str
    way: Way
    tables: tuple[str, ...]
    fingerprint: str
    proved: str = ""
    ready: bool = False
    faults: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """How far it is. `delay` is how many seconds a change takes, None when none arrived in the time that
    was waited; `waited` is that time. `rate` is WAL a second on the server that is followed, None at the
    first look."""

    follow: Follow
    slot: Slot | None
    subscription: Subscription | None
    delay: float | None
    waited: float
    rate: float | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A condition of a switch: what was found, and what to do where it is not met."""

    code: str
    passed: bool
    said: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A step of a switch and its length; what is expected in a dry run."""

    name: str
    said: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A cutover (`forward`) or a rollback (`back`), as the ledger knows it."""

    id: int
    run: str
    way: Way
    method: SwitchMethod
    state: SwitchState
    started: str
    message: str = ""

    @property
    def open(self) -> bool:
        """Whether it can be given up: a fence may stand, and no traffic has moved."""
        return self.state in ("begun", "fenced", "drained", "proved")


@dataclass(frozen=True, slots=True, kw_only=True)
class Switched:
    """What a switch has done, or a dry run foresees. `pause` is how long nobody could write, in seconds."""

    way: Way
    method: SwitchMethod
    why: str
    gates: tuple[Gate, ...]
    steps: tuple[Taken, ...]
    pause: float
    run: str = ""
    state: SwitchState | Literal["foreseen"] = "foreseen"
    left: tuple[str, ...] = ()

    @property
    def unmet(self) -> tuple[Gate, ...]:
        return tuple(gate for gate in self.gates if not gate.passed)
