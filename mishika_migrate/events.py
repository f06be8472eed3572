"""The facts of a run, in the order they happen. Terminal, JSON lines and reports consume these.

Imports the words only. Nothing here knows how it will be shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from mishika_migrate import model


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """`steps` counts all steps of the plan; `done` those that an earlier attempt has finished."""

    run: str
    source: str
    target: str
    digest: str
    tables: int
    rows: float
    bytes: int
    steps: int
    resumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStarted:
    name: str
    title: str
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What is under way, as the target's server counts it. `bytes` are those of the stream."""

    table: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRetried:
    """A transient failure; the step starts again from nothing after `wait` seconds."""

    step: str
    attempt: int
    error: str
    wait: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished:
    """Committed on the target together with its ledger row; a table may take many steps."""

    step: str
    stage: str
    table: str
    kind: str
    rows: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFinished:
    """The last step of the table has landed. `seconds` run from the start of the first one of this attempt."""

    table: str
    stage: str
    rows: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TableKept:
    """`steps` of the table were done by an earlier attempt of this run and are not repeated.

    `whole` when those are all of them.
    """

    table: str
    rows: int
    steps: int
    whole: bool
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Building:
    """An index is being built on the target; `share` is 0 to 1 of its present phase, as the server counts."""

    step: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCompared:
    """`verify` has looked at all of the table."""

    content: model.Content


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSynced:
    """`sync` is through with the table; `foreseen` when it has only looked."""

    change: model.Synced
    foreseen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """What was copied has been compared with the snapshot that it was copied from."""

    proof: model.Proof


@dataclass(frozen=True, slots=True, kw_only=True)
class Noticed:
    """Something an operator should read, that stops nothing."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotReleased:
    """The source's vacuum is free again after `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """Everything of the plan is on the target. `accounts` has one entry a table, in plan order."""

    run: str
    accounts: tuple[model.Account, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStopped:
    """The run ended early. `landed` are the committed steps; the next command is `hint`."""

    run: str
    landed: tuple[str, ...]
    open: tuple[str, ...]
    message: str
    hint: str


Event = (
    RunStarted
    | StageStarted
    | Progress
    | StepRetried
    | StepFinished
    | TableFinished
    | TableKept
    | Building
    | TableCompared
    | TableSynced
    | Proven
    | Noticed
    | SnapshotReleased
    | RunFinished
    | RunStopped
)
