"""One task, wherever it runs: some steps in one transaction on the target, with their ledger rows.

Imports pg and the words. A `Task` is a picklable value, so any executor can carry it to a thread
or another process; everything it needs to know is in it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from mishika_migrate import model
from mishika_migrate.pg import connect, ddl, dump, ledger, snapshot, transfer

Stopped = transfer.Stopped

# Set to end all tasks of this process soon, whatever they wait for.
halt = threading.Event()


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """`steps` in this order, all or none. `redo` are steps whose old rows must go first.

    `snapshot` is the exported one; None when no step reads the source's rows. `durable` waits for
    the target's disk at COMMIT. `lock_timeout` is in seconds.
    """

    run: str
    number: int
    stage: model.StageName
    steps: tuple[model.Step, ...]
    source: model.Endpoint
    target: model.Endpoint
    snapshot: str | None
    durable: bool = True
    redo: frozenset[str] = frozenset()
    lock_timeout: float = 10.0

    @property
    def id(self) -> str:
        """What people call it: its step, or its stage when it has several."""
        return self.steps[0].id if len(self.steps) == 1 else f"{self.stage} ({len(self.steps)} steps)"

    @property
    def name(self) -> str:
        """The `application_name` of its sessions."""
        return f"mishika-migrate/{self.run}/{self.number}"


def perform(task: Task, *, attempt: int = 1) -> tuple[model.Landed, ...]:
    """Carries the task out and commits, or leaves the target as it was.

    A step that has landed before is not repeated: its ledger entry is returned instead.
    """
    settings = {
        "lock_timeout": f"{int(task.lock_timeout * 1000)}ms",
        "synchronous_commit": "on" if task.durable else "off",
    }
    answered = attempt > 1
    with ExitStack() as stack:
        target = stack.enter_context(connect.session(task.target, name=task.name, answered=True, settings=settings))
        if answered:
            connect.end_leftovers(target, task.name)
        source = None
        if task.snapshot is not None:
            source = stack.enter_context(connect.session(task.source, name=task.name, answered=True))
            stack.enter_context(snapshot.reading(source, task.snapshot))
        stack.enter_context(target.transaction())
        target.execute("SET CONSTRAINTS ALL DEFERRED")
        _clear(task, target)
        return tuple(_step(task, step, source, target) for step in task.steps)


def _clear(task: Task, target: connect.Session) -> None:
    """Children first, because their parents' rows are referenced."""
    for step in reversed(task.steps):
        if step.id in task.redo:
            ledger.forget(target, run=task.run, step=step.id)
            if isinstance(step, model.CopyTable):
                transfer.empty(target, step.target)


def _step(task: Task, step: model.Step, source: connect.Session | None, target: connect.Session) -> model.Landed:
    if stopping():
        raise Stopped
    before = ledger.claim(target, run=task.run, step=step.id)
    if before is not None:
        return before
    landed = _carry_out(task, step, source, target)
    ledger.record(target, run=task.run, landed=landed)
    return landed


def _carry_out(task: Task, step: model.Step, source: connect.Session | None, target: connect.Session) -> model.Landed:
    began = time.monotonic()
    match step:
        case model.CopyTable():
            assert source is not None
            return transfer.copy(source, target, step, endpoints=(task.source, task.target), stopping=stopping)
        case model.SetSequence():
            assert source is not None
            with connect.translated(task.source):
                ddl.set_sequence(source, target, step)
        case model.CreateView():
            ddl.create_view(target, step)
        case model.Analyze():
            ddl.analyze(target, step)
        case model.CreateSchema():
            ddl.apply(target, dump.schema(task.source, step), schema=step.schema)
    return model.Landed(step=step.id, table="", rows_out=0, rows_in=0, bytes=0, seconds=time.monotonic() - began)


def stopping() -> bool:
    return halt.is_set()


Perform = Callable[..., tuple[model.Landed, ...]]
