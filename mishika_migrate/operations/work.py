"""One task, wherever it runs: some steps in one transaction on the target, with their ledger rows.

Imports pg and the words. A `Task` is a picklable value, so any executor can carry it to a thread
or another process; everything it needs to know is in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mishika_migrate import model
from mishika_migrate.pg import connect, ddl, dump, ledger, snapshot, transfer

# Runs whose tasks in this process are to end soon, whatever they wait for. A set's methods are
# atomic, so the threads of a run need no lock.
_halted: set[str] = set()


def halt(run: str) -> None:
    """Ends the run's tasks in this process within half a second, those apart that a server holds up."""
    _halted.add(run)


def proceed(run: str) -> None:
    """Takes `halt` back, for a run that is continued in the same process."""
    _halted.discard(run)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """An exported snapshot: its name and, to know it by, `txid_current_snapshot()` in it."""

    name: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """`steps` in this order, all or none.

    `snapshot` is None when no step reads the source's rows. `followers` are tables of later stages
    that reference those of `steps`: their rows go first when a table is copied once more. `durable`
    waits for the target's disk at COMMIT. `lock_timeout` is in seconds.
    """

    run: str
    number: int
    stage: model.StageName
    steps: tuple[model.Step, ...]
    source: model.Endpoint
    target: model.Endpoint
    snapshot: Snapshot | None
    followers: tuple[model.TableName, ...] = ()
    durable: bool = True
    lock_timeout: float = 10.0

    @property
    def id(self) -> str:
        """What people call it: its step, or its stage when it has several."""
        return self.steps[0].id if len(self.steps) == 1 else f"{self.stage} ({len(self.steps)} steps)"

    @property
    def name(self) -> str:
        """The `application_name` of its sessions."""
        return f"{sessions(self.run)}{self.number}"

    def stopping(self) -> bool:
        return self.run in _halted


def sessions(run: str) -> str:
    """How the names of all sessions of the run's tasks begin."""
    return f"mishika-migrate/{run}/step/"


Perform = Callable[..., tuple[model.Landed, ...]]


def perform(task: Task, *, attempt: int = 1) -> tuple[model.Landed, ...]:
    """Carries the task out and commits, or leaves the target as it was.

    A step that has landed before is not repeated: its ledger entry is returned instead.
    """
    waits = {"lock_timeout": f"{int(task.lock_timeout * 1000)}ms"}
    settings = {**waits, "synchronous_commit": "on" if task.durable else "off"}
    with (
        connect.session(
            task.target, name=task.name, answered=True, settings=settings, stopping=task.stopping
        ) as target,
        connect.translated(task.target, f"step {task.id}"),
    ):
        if attempt > 1:
            connect.end_leftovers(target, task.name)
        with connect.transaction(target):
            return _inside(task, target, waits)


def _inside(task: Task, target: connect.Session, waits: dict[str, str]) -> tuple[model.Landed, ...]:
    target.execute("SET CONSTRAINTS ALL DEFERRED")
    claims = [ledger.claim(target, run=task.run, step=step.id) for step in task.steps]
    landed = [claim.landed for claim in claims if claim.landed is not None]
    if len(landed) == len(claims):
        return tuple(landed)  # an attempt whose COMMIT was not answered
    _clear(task, claims, target)
    with _reader(task, waits) as source:
        return tuple(
            claim.landed or _step(task, step, source, target) for step, claim in zip(task.steps, claims, strict=True)
        )


@contextmanager
def _reader(task: Task, settings: dict[str, str]) -> Iterator[connect.Session | None]:
    if task.snapshot is None:
        yield None
        return
    with snapshot.reader(
        task.source,
        name=task.name,
        snapshot=task.snapshot.name,
        state=task.snapshot.state,
        settings=settings,
        stopping=task.stopping,
    ) as source:
        yield source


def _clear(task: Task, claims: list[ledger.Claim], target: connect.Session) -> None:
    """Children first, because their parents' rows are referenced."""
    old = [
        step.target
        for step, claim in zip(task.steps, claims, strict=True)
        if claim.again and isinstance(step, model.CopyTable)
    ]
    if old:
        for table in (*task.followers, *reversed(old)):
            # The core's tables are those that a running proxy reads.
            transfer.empty(target, table, truncate=task.stage == "bulk")


def _step(task: Task, step: model.Step, source: connect.Session | None, target: connect.Session) -> model.Landed:
    if task.stopping():
        raise connect.Stopped
    landed = _carry_out(task, step, source, target)
    ledger.record(target, run=task.run, landed=landed)
    return landed


def _carry_out(task: Task, step: model.Step, source: connect.Session | None, target: connect.Session) -> model.Landed:
    began = time.monotonic()
    match step:
        case model.CopyTable():
            assert source is not None
            ends = (task.source, task.target)
            return transfer.copy(source, target, step, endpoints=ends, stopping=task.stopping)
        case model.SetSequence():
            assert source is not None
            with connect.translated(task.source, step.id):
                value, called = ddl.last_value(source, step)
            ddl.set_sequence(target, step, value, called)
        case model.CreateView():
            ddl.create_view(target, step)
        case model.Analyze():
            ddl.analyze(target, step)
        case model.CreateSchema():
            script = dump.schema(task.source, step, lock_timeout=task.lock_timeout, stopping=task.stopping)
            ddl.apply(target, script, schema=step.schema)
    return model.Landed(step=step.id, table="", rows_out=0, rows_in=0, bytes=0, seconds=time.monotonic() - began)
