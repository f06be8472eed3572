"""`copy`: executes a plan, keeps the books, and says what is true when it ends early.

Imports engine, work, pg, plan, events and the words.
"""

from __future__ import annotations

import concurrent.futures
import datetime
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import mishika_migrate
from mishika_migrate import errors, events, model, plan
from mishika_migrate.operations import engine, work
from mishika_migrate.operations.watch import Watch
from mishika_migrate.pg import connect, ddl, ledger, snapshot

RESUME = "mishika-migrate copy --resume"

# How long a server may take to let go when asked, and to hear the run's last words.
_GRACE_SECONDS = 0.75
_LAST_SECONDS = 0.75

_T = TypeVar("_T")


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
        self._watch = Watch(target, run=self._run, lock_timeout=options.lock_timeout, emit=emit)
        self._entered = False
        self._landed: dict[str, model.Landed] = {}
        self._kept: frozenset[str] = frozenset()
        self._followers: dict[model.TableName, tuple[model.TableName, ...]] = {}

    def __enter__(self) -> _Copy:
        return self

    def __exit__(self, *_: object) -> None:
        self._release()
        self._watch.close()

    def execute(self, *, before: model.Unfinished | None) -> tuple[model.Account, ...]:
        """See `begin` and `resume`."""
        work.proceed(self._run)
        try:
            self._patiently(lambda: self._open(before))
            self._announce(resumed=before is not None)
            self._watch.start()
            for stage in self._plan.stages:
                self._stage(stage)
            accounts = self._patiently(self._books)
        except (errors.Error, engine.Interruption) as error:
            raise self._ended(error) from error
        self._emit(events.RunFinished(run=self._run, accounts=accounts, seconds=time.monotonic() - self._began))
        return accounts

    def _patiently(self, call: Callable[[], _T]) -> _T:
        """Carries it out in a thread, so that a signal is heard whatever it waits for."""
        future: concurrent.futures.Future[_T] = concurrent.futures.Future()

        def answer() -> None:
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=answer, daemon=True, name="patient").start()
        stopped = None
        while not concurrent.futures.wait([future], timeout=0.1).done:
            if self._stopping():
                stopped = stopped or time.monotonic()
                connect.cancel(self._watch.name)
                if self._end(time.monotonic() - stopped) > 2 * _GRACE_SECONDS:
                    raise engine.Interruption  # the process ends without that thread
        if self._stopping() and future.exception() is not None:
            raise engine.Interruption
        return future.result()

    def _end(self, seconds: float) -> float:
        """Ends what this run waits for in any session but the watch's; at first by asking the servers."""
        work.halt(self._run)
        for name in (work.sessions(self._run), snapshot.name(self._run)):
            if seconds < _GRACE_SECONDS:
                connect.cancel(name)
            else:
                connect.sever(name)
        return seconds

    # -- begin ------------------------------------------------------------------------------------

    def _open(self, before: model.Unfinished | None) -> None:
        self._watch.open()
        self._watch.ask(ledger.create)
        if before is None:
            self._enter()
        else:
            self._watch.ask(lambda session: ledger.resume(session, run=self._run))
            self._entered = True
            self._reconsider(before)

    def _hold(self) -> snapshot.Holder:
        if self._holder is None:
            self._holder = snapshot.Holder(self._source, run=self._run, stopping=lambda: bool(self._stopping()))
        return self._holder

    def _enter(self) -> None:
        left = self._watch.ask(ledger.unfinished)
        if left is not None:
            raise errors.Incomplete(
                f"run {left.run} on {self._target.label} is unfinished", hint=f"Continue it: `{RESUME}`."
            )
        holder = self._hold()
        self._watch.ask(
            lambda session: ledger.begin(
                session,
                run=self._run,
                plan=self._plan,
                text=plan.dumps(self._plan),
                horizon=holder.horizon,
                tool=f"mishika-migrate {mishika_migrate.__version__}",
            )
        )
        self._entered = True

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
        landed = self._watch.ask(lambda session: ledger.landed(session, run=self._run))
        self._followers = _followers(self._plan, self._watch.ask(ddl.references))
        holder = self._hold()
        copies = [step for step in self._plan.steps if isinstance(step, model.CopyTable) and step.id in landed]
        changed = {step.target for step in copies if self._changed(step, landed[step.id], holder, before.horizon)}
        for stage in self._plan.stages:
            # An atomic stage is one state of the source: a changed table takes the others along.
            tables = {step.target for step in stage.steps if isinstance(step, model.CopyTable)}
            if stage.atomic and changed & tables:
                changed |= tables
        for table in tuple(changed):
            changed.update(self._followers.get(table, ()))  # their rows go with those that they reference
        # Sequences and statistics cost nothing to do again.
        stale = {
            step.id
            for step in self._plan.steps
            if isinstance(step, model.SetSequence | model.Analyze)
            or (isinstance(step, model.CopyTable) and step.target in changed)
        }
        self._watch.ask(
            lambda session: ledger.rebase(session, run=self._run, horizon=holder.horizon, stale=stale & set(landed))
        )
        self._kept = frozenset(landed) - stale
        self._landed = {step: landed[step] for step in self._kept}

    def _changed(self, step: model.CopyTable, landed: model.Landed, holder: snapshot.Holder, horizon: str) -> bool:
        with connect.translated(self._source, f"table {step.source.name}"):
            rows, new = snapshot.changed_since(
                holder.session, step.source, horizon=horizon, partitioned=step.partitioned
            )
        return new > 0 or rows != landed.rows_out

    # -- stages -----------------------------------------------------------------------------------

    def _stage(self, stage: model.Stage) -> None:
        if stage.name == "finish":
            self._release()
        tasks = list(self._tasks(stage))
        if not tasks:
            return
        self._emit(events.StageStarted(name=stage.name, title=stage.title, steps=len(stage.steps)))
        with ThreadPoolExecutor(self._options.jobs, thread_name_prefix="step") as pool:
            engine.run(
                tasks,
                executor=pool,
                policy=self._options.policy,
                emit=self._hear,
                tick=self._watch.tick,
                stopping=lambda: bool(self._stopping()),
                end=self._end,
                landed=self._note,
            )

    def _note(self, landed: model.Landed) -> None:
        self._landed[landed.step] = landed

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
                snapshot=work.Snapshot(name=self._hold().name, state=self._hold().state) if reads else None,
                followers=self._behind(group),
                durable=stage.name != "bulk",
                lock_timeout=self._options.lock_timeout,
            )

    def _behind(self, group: tuple[model.Step, ...]) -> tuple[model.TableName, ...]:
        """Tables of later stages that reference those of the group, the last ones first."""
        tables = {step.target for step in group if isinstance(step, model.CopyTable)}
        behind = {follower for table in tables for follower in self._followers.get(table, ())} - tables
        order = [step.target for step in self._plan.steps if isinstance(step, model.CopyTable)]
        return tuple(table for table in reversed(order) if table in behind)

    def _release(self) -> None:
        if self._holder is not None:
            self._holder.release()
            self._holder = None
            self._emit(events.SnapshotReleased(seconds=time.monotonic() - self._began))

    # -- end --------------------------------------------------------------------------------------

    def _books(self) -> tuple[model.Account, ...]:
        """Compares what the workers saw with what the ledger holds, table by table, and closes it."""
        entries = self._watch.ask(lambda session: ledger.landed(session, run=self._run))
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
        self._watch.ask(lambda session: ledger.end(session, run=self._run, state="finished"))
        return accounts

    def _ended(self, error: errors.Error | engine.Interruption) -> errors.Error:
        """What is true now, in the ledger and as an error with the right exit status."""
        signal = self._stopping()
        self._release()
        if not self._entered:
            return _interrupted(signal, "nothing was written", _AGAIN) if signal else _own(error)
        text = f"stopped by signal {signal}" if signal else str(error)
        landed, touched, sure = self._last_words(text)
        what, hint = _true_now(len(landed), len(self._plan.steps), touched=touched, sure=sure)
        waiting = tuple(step.id for step in self._plan.steps if step.id not in landed)
        hint = _both(error, hint)
        self._emit(events.RunStopped(run=self._run, landed=tuple(landed), open=waiting, message=text, hint=hint))
        if signal:
            return _interrupted(signal, what, hint)
        own = _own(error)
        if own.__class__ is errors.Error:
            return own  # a bug stays one
        if touched:
            return errors.Incomplete(f"{own}; {what}", hint=hint)
        own.hint = hint
        return own

    def _last_words(self, text: str) -> tuple[dict[str, model.Landed], bool, bool]:
        """What landed, whether anything did, and whether the target itself says so."""
        try:
            with self._watch.within(_LAST_SECONDS):
                landed = self._watch.ask(lambda session: ledger.landed(session, run=self._run))
                touched = self._watch.ask(lambda session: ledger.touched(session, run=self._run))
                self._watch.ask(lambda session: ledger.end(session, run=self._run, state="stopped", message=text))
        except (errors.Error, connect.Stopped):
            # The target may be what failed; an open run counts as unfinished all the same.
            return self._landed, bool(self._landed), False
        return landed, touched, True


Links = dict[model.TableName, tuple[model.TableName, ...]]


def _followers(todo: model.Plan, references: list[tuple[model.TableName, model.TableName]]) -> Links:
    """For each table of the plan those that reference it, directly or not."""
    tables = {step.target for step in todo.steps if isinstance(step, model.CopyTable)}
    links = {table: {child for child, parent in references if parent == table} & tables for table in tables}
    for _ in tables:
        links = {
            table: children.union(*(links[child] for child in children), set()) for table, children in links.items()
        }
    return {table: tuple(sorted(children - {table})) for table, children in links.items()}


_AGAIN = "Run the same command again."


def _true_now(landed: int, steps: int, *, touched: bool, sure: bool) -> tuple[str, str]:
    """A clause for the message, and what to do next."""
    if touched:
        return f"{landed} of {steps} steps have landed", f"Continue: `{RESUME}`."
    if sure:
        return "nothing was written", _AGAIN
    return "nothing is known to have landed", f"{_AGAIN} If something has landed, it says how to continue."


def _own(error: errors.Error | engine.Interruption) -> errors.Error:
    return error if isinstance(error, errors.Error) else errors.Error("interrupted")


def _interrupted(signal: int, what: str, hint: str) -> errors.Interrupted:
    return errors.Interrupted(f"interrupted; {what}", hint=hint, signal=signal)


def _account(step: model.CopyTable, landed: model.Landed, entry: model.Landed) -> model.Account:
    return model.Account(
        table=step.target.name,
        rows_out=landed.rows_out,
        rows_in=landed.rows_in,
        rows_ledger=entry.rows_in,
        bytes=landed.bytes,
        seconds=landed.seconds,
    )


def _both(error: Exception, hint: str) -> str:
    first = error.hint if isinstance(error, errors.Error) else ""
    return first if hint in first else f"{first} {hint}".strip()
