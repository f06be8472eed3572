"""One task, wherever it runs: some steps in one transaction on the target, with their ledger rows.

Imports pace, pg and the words. A `Task` is a picklable value, so any executor can carry it to a thread
or another process; everything it needs to know is in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from mishika_migrate import model
from mishika_migrate.operations.copying import pace
from mishika_migrate.pg import connect, ddl, delta, dump, indexes, interrupt, ledger, snapshot, transfer, upsert

Compression = Literal["auto", "lz4", "pglz", "server"]

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
class Follow:
    """A resumed run's own step: the rows of finished steps become those of the run's new snapshot.

    `changes` are all finished steps of `table`, `horizons` by step what they are brought to, `key`
    its primary key. It is no step of the plan and has no ledger entry: those of the finished steps
    tell whether it has happened.
    """

    table: model.TableName
    changes: tuple[delta.Change, ...]
    horizons: Mapping[str, str]
    key: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"changes of {self.table}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clear:
    """A resumed run's own step: these tables, children first, are emptied and their steps forgotten."""

    tables: tuple[model.TableName, ...]
    within: Mapping[model.TableName, model.Interval] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"clear {', '.join(table.name for table in self.tables)}"


Step = model.Step | Follow | Clear


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """`steps` in this order, all or none.

    `snapshot` is None when no step reads the source's rows; `horizons` say by step which state of
    it they see. `followers` are tables of later stages that reference those of `steps`: their rows
    go first when a table is copied once more. `durable` waits for the target's disk at COMMIT.
    `lock_timeout` is in seconds.
    """

    run: str
    number: int
    stage: model.StageName
    steps: tuple[Step, ...]
    source: model.Endpoint
    target: model.Endpoint
    snapshot: Snapshot | None
    horizons: Mapping[str, str] = field(default_factory=dict)
    followers: tuple[model.TableName, ...] = ()
    durable: bool = True
    compression: Compression = "auto"
    lock_timeout: float = 10.0

    @property
    def id(self) -> str:
        """What people call it: its step, or its stage when it has several."""
        return self.steps[0].id if len(self.steps) == 1 else f"{self.stage} ({len(self.steps)} steps)"

    @property
    def name(self) -> str:
        """The `application_name` of its sessions."""
        return f"{sessions(self.run)}{self.number:05}"  # none is the beginning of another one

    def stopping(self) -> bool:
        return self.run in _halted or pace.halted(self.run)


def sessions(run: str) -> str:
    """How the names of all sessions of the run's tasks begin."""
    return f"mishika-migrate/{run}/step/"


Perform = Callable[..., tuple[model.Landed, ...]]
Take = Callable[[int], None]


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
            interrupt.end_leftovers(target, task.name)
        if task.stage == "bulk":
            transfer.compress(target, task.compression)
        if task.stage == "indexes":
            indexes.make_room(target)
        with pace.kept(task.run, task.target, target, stopping=task.stopping) as take:
            take(0)
            with connect.transaction(target):
                return _inside(task, target, waits, take)


def _inside(task: Task, target: connect.Session, waits: dict[str, str], take: Take) -> tuple[model.Landed, ...]:
    target.execute("SET CONSTRAINTS ALL DEFERRED")
    claims = [_claim(task, step, target) for step in task.steps]
    landed = [claim.landed for claim in claims if claim.landed is not None]
    if len(landed) == len(claims):
        return tuple(landed)  # an attempt whose COMMIT was not answered
    _clear(task, claims, target)
    with _reader(task, waits) as source:
        return tuple(
            claim.landed or _step(task, step, source, target, take)
            for step, claim in zip(task.steps, claims, strict=True)
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


def _claim(task: Task, step: Step, target: connect.Session) -> ledger.Claim:
    """Of a step of the plan; what a resumed run does besides is harmless to do again."""
    if isinstance(step, Follow | Clear):
        return ledger.Claim()
    return ledger.claim(target, run=task.run, step=step.id)


def _clear(task: Task, claims: list[ledger.Claim], target: connect.Session) -> None:
    """Children first, because their parents' rows are referenced. Merged rows are among others', and stay."""
    old = [
        step.target
        for step, claim in zip(task.steps, claims, strict=True)
        if claim.again and isinstance(step, model.CopyTable) and not step.merges
    ]
    if old:
        # The core's tables are those that a running proxy reads.
        for table in (*task.followers, *reversed(old)):
            transfer.empty(target, table, truncate=False)
        ledger.forget(target, run=task.run, tables=task.followers)


def _step(task: Task, step: Step, source: connect.Session | None, target: connect.Session, take: Take) -> model.Landed:
    if task.stopping():
        raise connect.Stopped
    began = time.monotonic()
    if isinstance(step, model.CopyTable):
        move = upsert.copy if step.merges else transfer.copy
        landed = move(_way(task, source, target, take), step)
    else:
        _carry_out(task, step, source, target, take)
        seconds = time.monotonic() - began
        landed = model.Landed(step=step.id, table="", rows_out=0, rows_in=0, bytes=0, seconds=seconds)
    if not isinstance(step, Follow | Clear):
        ledger.record(target, run=task.run, landed=landed, horizon=task.horizons.get(step.id, ""))
    return landed


def _way(task: Task, source: connect.Session | None, target: connect.Session, take: Take) -> transfer.Way:
    assert source is not None
    ends = (task.source, task.target)
    return transfer.Way(source=source, target=target, endpoints=ends, stopping=task.stopping, pace=take)


def _carry_out(task: Task, step: Step, source: connect.Session | None, target: connect.Session, take: Take) -> None:
    match step:
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
            ddl.apply(target, script, schema=step.schema, owner=step.owner)
        case model.Empty():
            transfer.truncate(target, step)
        case model.DropIndexes() | model.BuildIndex() | model.RestoreIndexes():
            _indexes(task, step, target)
        case Clear():
            _clear_tables(task, step, target)
        case Follow():
            _follow(task, step, _way(task, source, target, take))


def _clear_tables(task: Task, step: Clear, target: connect.Session) -> None:
    for table in step.tables:
        transfer.empty(target, table, truncate=True, within=step.within.get(table))
    ledger.forget(target, run=task.run, tables=step.tables)


def _indexes(
    task: Task, step: model.DropIndexes | model.BuildIndex | model.RestoreIndexes, target: connect.Session
) -> None:
    match step:
        case model.DropIndexes():
            _drop_indexes(task, step, target)
        case model.BuildIndex():
            _build_index(task, step, target)
        case model.RestoreIndexes():
            _restore_indexes(task, step, target)


def _drop_indexes(task: Task, step: model.DropIndexes, target: connect.Session) -> None:
    for definition in indexes.read(target, step.target, step.names):
        text = indexes.dumps(definition)
        ledger.keep_index(target, run=task.run, table=step.target, name=definition.name, definition=text)
        indexes.drop(target, step.target, definition)


def _build_index(task: Task, step: model.BuildIndex, target: connect.Session) -> None:
    text = ledger.kept_indexes(target, run=task.run).get((step.target, step.name))
    if text is not None:
        definition = indexes.loads(text)
        with connect.translated(task.target, f"index {step.name}, which is {definition.create},"):
            indexes.build(target, step.target, definition)


def _restore_indexes(task: Task, step: model.RestoreIndexes, target: connect.Session) -> None:
    kept = ledger.kept_indexes(target, run=task.run)
    for name in step.names:
        if (text := kept.get((step.target, name))) is not None:
            indexes.complete(target, step.target, indexes.loads(text))
            ledger.release_index(target, run=task.run, table=step.target, name=name)


def _follow(task: Task, step: Follow, way: transfer.Way) -> None:
    before = ledger.horizons(way.target, run=task.run)
    if all(before.get(name) == horizon for name, horizon in step.horizons.items()):
        return  # an attempt whose COMMIT was not answered
    delta.follow(way, step.changes, key=step.key)
    for each in step.changes:
        horizon = step.horizons[each.step.id]
        ledger.move(way.target, run=task.run, step=each.step.id, rows=each.rows, horizon=horizon)
