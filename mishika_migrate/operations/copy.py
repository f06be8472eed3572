"""`copy`: executes a plan, keeps the books, and says what is true when it ends early.

Imports engine, work, pg, plan, events and the words.
"""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import mishika_migrate
from mishika_migrate import errors, events, model, plan
from mishika_migrate.operations import engine, work
from mishika_migrate.operations.watch import Watch
from mishika_migrate.pg import connect, ledger, snapshot

RESUME = "mishika-migrate copy --resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`jobs` tasks at once; `lock_timeout` in seconds."""

    jobs: int = 4
    policy: engine.Policy = field(default_factory=engine.Policy)
    lock_timeout: float = 10.0


def begin(
    todo: model.Plan,
    source: model.Endpoint,
    target: model.Endpoint,
    *,
    options: Options,
    emit: Callable[[events.Event], None],
    stopping: Callable[[], int],
) -> tuple[model.Account, ...]:
    """Executes a plan that preflight did not refuse; returns the books, one entry a table.

    `stopping` returns the number of the signal that asked to stop, 0 while there is none.
    Raises `errors.Incomplete` or `errors.Interrupted` when something landed before it ended.
    """
    if todo.refused:
        raise refusal(todo)
    with _Copy(todo, source, target, options, emit, stopping) as run:
        return run.execute(before=None)


def resumable(source: model.Endpoint, target: model.Endpoint) -> tuple[model.Plan, model.Unfinished]:
    """The target's unfinished run and its plan; `errors.Refused` when there is none from this source."""
    with connect.session(target, name="mishika-migrate/look") as session:
        before = ledger.unfinished(session)
    if before is None:
        raise errors.Refused(f"there is no unfinished run on {target.label}", hint="Start one: `mishika-migrate copy`.")
    todo = plan.loads(before.plan)
    if todo.source != source.label:
        raise errors.Refused(
            f"run {before.run} copies from {todo.source}, not from {source.label}",
            hint="Give the same --source as at its start.",
        )
    return todo, before


def resume(
    todo: model.Plan,
    before: model.Unfinished,
    source: model.Endpoint,
    target: model.Endpoint,
    *,
    options: Options,
    emit: Callable[[events.Event], None],
    stopping: Callable[[], int],
) -> tuple[model.Account, ...]:
    """Continues what `resumable` found, from a new snapshot of the source.

    Tables that landed and have not changed on the source since are kept; those that have are
    copied again, so the target ends equal to one state of the source.
    """
    with _Copy(todo, source, target, options, emit, stopping, run=before.run) as run:
        return run.execute(before=before)


def refusal(todo: model.Plan) -> errors.Refused:
    """All findings, in one error."""
    count = len(todo.refused)
    return errors.Refused(
        f"{count} {'finding stands' if count == 1 else 'findings stand'} in the way; nothing was written",
        hint="Mend what is listed, then run the same command again.",
        findings=todo.findings,
    )


class _Copy:
    """One execution: the lock and the ledger on the target, the snapshot on the source."""

    def __init__(
        self,
        todo: model.Plan,
        source: model.Endpoint,
        target: model.Endpoint,
        options: Options,
        emit: Callable[[events.Event], None],
        stopping: Callable[[], int],
        *,
        run: str | None = None,
    ) -> None:
        self._plan, self._source, self._target = todo, source, target
        self._options, self._emit, self._stopping = options, emit, stopping
        self._began = time.monotonic()
        self._run = run or f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        self._holder: snapshot.Holder | None = None
        self._watch = Watch(target, run=self._run, emit=emit)
        self._landed: dict[str, model.Landed] = {}
        self._kept: frozenset[str] = frozenset()
        self._redo: frozenset[str] = frozenset()

    def __enter__(self) -> _Copy:
        return self

    def __exit__(self, *_: object) -> None:
        self._release()
        self._watch.close()

    def execute(self, *, before: model.Unfinished | None) -> tuple[model.Account, ...]:
        """See `begin` and `resume`."""
        try:
            self._open(before)
            for stage in self._plan.stages:
                self._stage(stage)
            accounts = self._books()
        except (errors.Error, engine.Interruption) as error:
            raise self._ended(error) from error
        ledger.end(self._watch.session, run=self._run, state="finished")
        self._emit(events.RunFinished(run=self._run, accounts=accounts, seconds=time.monotonic() - self._began))
        return accounts

    # -- begin ------------------------------------------------------------------------------------

    def _open(self, before: model.Unfinished | None) -> None:
        with connect.translated(self._target):
            self._watch.open()
            ledger.create(self._watch.session)
            if before is None:
                self._hold()
                self._enter()
            else:
                ledger.resume(self._watch.session, run=self._run)
                self._reconsider(before)
        self._announce(resumed=before is not None)

    def _hold(self) -> snapshot.Holder:
        if self._holder is None:
            self._holder = snapshot.Holder(self._source, run=self._run)
        return self._holder

    def _enter(self) -> None:
        left = ledger.unfinished(self._watch.session)
        if left is not None:
            raise errors.Incomplete(
                f"run {left.run} on {self._target.label} is unfinished", hint=f"Continue it: `{RESUME}`."
            )
        ledger.begin(
            self._watch.session,
            run=self._run,
            plan=self._plan,
            text=plan.dumps(self._plan),
            horizon=self._hold().horizon,
            tool=f"mishika-migrate {mishika_migrate.__version__}",
        )

    def _announce(self, *, resumed: bool) -> None:
        self._emit(
            events.RunStarted(
                run=self._run,
                source=self._source.label,
                target=self._target.label,
                digest=self._plan.digest,
                tables=len(self._plan.chosen),
                rows=self._plan.rows,
                bytes=self._plan.bytes,
                steps=len(self._plan.steps),
                resumed=resumed,
            )
        )
        for step in self._plan.steps:
            if step.id in self._kept:
                landed = self._landed[step.id]
                self._emit(events.StepKept(step=step.id, table=landed.table, rows=landed.rows_in))

    def _reconsider(self, before: model.Unfinished) -> None:
        """Sorts what landed into what is still true and what must be done again."""
        landed = ledger.landed(self._watch.session, run=self._run)
        holder = self._hold()
        stale: set[str] = set()
        for stage in self._plan.stages:
            there = [step for step in stage.steps if step.id in landed]
            changed = {step.id for step in there if self._changed(step, landed, holder, before.horizon)}
            # An atomic stage is one state of the source: a changed table takes the others along.
            stale |= {step.id for step in there} if changed and stage.atomic else changed
        ledger.rebase(self._watch.session, run=self._run, horizon=holder.horizon)
        self._redo = frozenset(stale)
        self._kept = frozenset(landed) - self._redo
        self._landed = {step: landed[step] for step in self._kept}

    def _changed(
        self,
        step: model.Step,
        landed: dict[str, model.Landed],
        holder: snapshot.Holder,
        horizon: str,
    ) -> bool:
        if isinstance(step, model.CreateSchema | model.CreateView):
            return False
        if not isinstance(step, model.CopyTable):
            return True  # sequences and statistics cost nothing to do again
        with connect.translated(self._source):
            rows, new = snapshot.changed_since(
                holder.session, step.source, horizon=horizon, partitioned=step.partitioned
            )
        return new > 0 or rows != landed[step.id].rows_out

    # -- stages -----------------------------------------------------------------------------------

    def _stage(self, stage: model.Stage) -> None:
        tasks = list(self._tasks(stage))
        if not tasks:
            return
        if stage.name == "finish":
            self._release()
        self._emit(events.StageStarted(name=stage.name, title=stage.title, steps=len(stage.steps)))
        with ThreadPoolExecutor(self._options.jobs, thread_name_prefix="step") as pool:
            done = engine.run(
                tasks,
                executor=pool,
                policy=self._options.policy,
                emit=self._hear,
                tick=self._watch.tick,
                stopping=lambda: bool(self._stopping()),
                cancel=connect.cancel_all,
            )
        for _, outcomes in done:
            self._landed.update({landed.step: landed for landed in outcomes})

    def _hear(self, event: events.Event) -> None:
        if isinstance(event, events.StepFinished):
            self._watch.landed(event)
        self._emit(event)

    def _tasks(self, stage: model.Stage) -> Iterable[work.Task]:
        steps = [step for step in stage.steps if step.id not in self._kept]
        groups = [tuple(steps)] if stage.atomic and steps else [(step,) for step in steps]
        for group in groups:
            reads = any(isinstance(step, model.CopyTable | model.SetSequence) for step in group)
            yield work.Task(
                run=self._run,
                number=self._plan.steps.index(group[0]),
                stage=stage.name,
                steps=group,
                source=self._source,
                target=self._target,
                snapshot=self._hold().name if reads else None,
                durable=stage.name != "bulk",
                redo=self._redo,
                lock_timeout=self._options.lock_timeout,
            )

    def _release(self) -> None:
        if self._holder is not None:
            self._holder.release()
            self._holder = None
            self._emit(events.SnapshotReleased(seconds=time.monotonic() - self._began))

    # -- end --------------------------------------------------------------------------------------

    def _books(self) -> tuple[model.Account, ...]:
        """Compares what the workers saw with what the ledger holds, table by table."""
        with connect.translated(self._target):
            entries = ledger.landed(self._watch.session, run=self._run)
        lost = [step.id for step in self._plan.steps if step.id not in entries]
        if lost:
            # Bulk steps do not wait for the disk; a server that crashed may have forgotten some.
            raise errors.Incomplete(
                f"{self._target.label} lost {len(lost)} finished steps in a crash of the server: {lost[0]}",
                hint=f"Continue: `{RESUME}`.",
            )
        accounts = tuple(
            _account(step, self._landed[step.id], entries[step.id])
            for step in self._plan.steps
            if isinstance(step, model.CopyTable)
        )
        wrong = next((account for account in accounts if not account.balanced), None)
        if wrong is not None:
            raise errors.Error(
                f"the books of {wrong.table} do not balance: {wrong.rows_out} rows left the source,"
                f" {wrong.rows_in} arrived, the ledger says {wrong.rows_ledger}"
            )
        return accounts

    def _ended(self, error: errors.Error | engine.Interruption) -> errors.Error:
        """What is true now, in the ledger and as an error with the right exit status."""
        landed = self._still_landed()
        signal = self._stopping()
        text = f"stopped by signal {signal}" if signal else str(error)
        try:
            ledger.end(self._watch.session, run=self._run, state="stopped", message=text)
        except Exception:
            pass  # the target may be what failed; an open run counts as unfinished all the same
        if isinstance(error, errors.Refused) or (isinstance(error, errors.Incomplete) and not landed):
            return error
        hint = f"Continue: `{RESUME}`." if landed else _again(error)
        waiting = tuple(step.id for step in self._plan.steps if step.id not in landed)
        self._emit(events.RunStopped(run=self._run, landed=tuple(landed), open=waiting, message=text, hint=hint))
        what = f"{len(landed)} of {len(self._plan.steps)} steps have landed" if landed else "nothing was written"
        if signal:
            return errors.Interrupted(f"interrupted; {what}", hint=hint, signal=signal)
        if landed and error.__class__ is not errors.Error:
            return errors.Incomplete(f"{error}; {what}", hint=_both(error, hint))
        return error if isinstance(error, errors.Error) else errors.Error(str(error))

    def _still_landed(self) -> dict[str, model.Landed]:
        try:
            return ledger.landed(self._watch.session, run=self._run)
        except Exception:
            return self._landed  # the target does not answer: what this process saw committed


def _account(step: model.CopyTable, landed: model.Landed, entry: model.Landed) -> model.Account:
    return model.Account(
        table=step.target.name,
        rows_out=landed.rows_out,
        rows_in=landed.rows_in,
        rows_ledger=entry.rows_in,
        bytes=landed.bytes,
        seconds=landed.seconds,
    )


def _again(error: Exception) -> str:
    hint = error.hint if isinstance(error, errors.Error) else ""
    return hint or "Run the same command again."


def _both(error: Exception, hint: str) -> str:
    first = error.hint if isinstance(error, errors.Error) else ""
    return f"{first} {hint}".strip()
