"""`copy`: executes a plan, keeps the books, and says what is true when it ends early.

Imports engine, work, patience, endings, verify, follow, pg, plan, events and the words.
"""

from __future__ import annotations

import contextlib
import datetime
import secrets
import time
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field

import mishika_migrate
from mishika_migrate import errors, events, matrix, model, plan
from mishika_migrate.operations.copying import accounts, endings, engine, executors, resuming, work
from mishika_migrate.operations.copying.patience import Patience
from mishika_migrate.operations.copying.steering import Steering
from mishika_migrate.operations.copying.watch import Watch
from mishika_migrate.operations.moving import follow
from mishika_migrate.operations.verifying import verify
from mishika_migrate.pg import connect, ledger, snapshot, transfer

RESUME, RESET = "copy --resume", "reset"

# How long a server may take to hear the run's last words.
_LAST_SECONDS = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`jobs` tasks at once; `lock_timeout` in seconds; `compression` of long values on the target.

    `resume` and `reset` are the commands that continue and undo this run, whole. `executor` is one
    of `executors.workers`; `max_rate` is in bytes a second, `pause_if_lag` in seconds. With `proving`
    all rows and keys are compared with the snapshot before it is released; with `following` the
    target goes on from that snapshot by replication.
    """

    resume: str = f"mishika-migrate {RESUME}"
    reset: str = f"mishika-migrate {RESET}"
    jobs: int = 4
    compression: work.Compression = "auto"
    policy: engine.Policy = field(default_factory=engine.Policy)
    lock_timeout: float = 10.0
    executor: str = "threads"
    max_rate: int | None = None
    pause_if_lag: float | None = None
    proving: matrix.Matrix | None = None
    following: follow.Wanted | None = None


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
    Raises `errors.Incomplete` or `errors.Interrupted` when something landed before it ended, and
    `errors.Different` when all of it did, but is not what the snapshot holds.
    """
    if todo.refused:
        raise refusal(todo)
    with _Copy(todo, source, target, options, emit, stopping) as run:
        return run.execute(before=None)


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
    """Continues what `resuming.resumable` found, from a new snapshot of the source.

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
        self._closing = contextlib.ExitStack()
        self._steering = Steering(
            self._run, source=source, rate=options.max_rate, lag=options.pause_if_lag, jobs=options.jobs
        )
        self._watch = Watch(
            target,
            run=self._run,
            steps=[step.id for step in todo.steps],
            lock_timeout=options.lock_timeout,
            emit=emit,
            steering=self._steering,
        )
        self._patience = Patience(self._run, self._watch, source, target, stopping)
        self._entered = self._announced = False
        self._landed: dict[str, model.Landed] = {}
        self._kept: frozenset[str] = frozenset()
        self._followers: resuming.Links = {}
        self._late: list[work.Follow | work.Clear] = []
        self._accounts = accounts.Accounts(todo)
        self._proof: model.Proof | None = None
        wanted = options.following
        self._start = follow.Start(self._run, source, target, wanted) if wanted else None

    def __enter__(self) -> _Copy:
        return self

    def __exit__(self, *_: object) -> None:
        self._release()
        self._watch.close()
        self._steering.close()
        self._closing.close()

    def execute(self, *, before: model.Unfinished | None) -> tuple[model.Account, ...]:
        """See `begin` and `resume`."""
        work.proceed(self._run)
        try:
            self._patience.wait(lambda: self._open(before))
            self._announce(resumed=before is not None)
            self._watch.start()
            for stage in self._plan.stages:
                if stage.name == "bulk":
                    self._follow()
                if stage.name in ("indexes", "finish"):
                    self._prove()
                self._stage(stage)
            self._prove()
            follows = self._start is not None and not (self._proof and self._proof.different)
            if follows:
                self._patience.wait(self._subscribe)
            books = self._patience.wait(self._books)
        except (errors.Error, engine.Interruption) as error:
            raise self._ended(error) from error
        if follows:
            self._go_on()
        else:
            self._unfollow(resumable=False)
        self._emit(events.RunFinished(run=self._run, accounts=books, seconds=time.monotonic() - self._began))
        if self._proof is not None and self._proof.different:
            raise errors.Different(
                f"all {len(self._plan.steps)} steps have landed, but {self._target.label} is not what was copied:"
                f" {self._proof.headline[:1].lower()}{self._proof.headline[1:].rstrip('.')}",
                hint="Something else has written to the target. `mishika-migrate verify` compares again.",
            )
        return books

    # -- begin ------------------------------------------------------------------------------------

    def _open(self, before: model.Unfinished | None) -> None:
        self._workers = self._closing.enter_context(executors.workers(self._options.executor, jobs=self._options.jobs))
        self._patience.workers = self._workers
        self._steering.jobs = self._workers.jobs
        self._watch.open()
        self._watch.ask(lambda session: transfer.refuse_method(session, self._target, self._options.compression))
        self._watch.ask(ledger.create)
        if before is None:
            self._enter()
        else:
            self._watch.ask(lambda session: ledger.resume(session, run=self._run))
            self._entered = True
            self._reconsider()
        self._watch.ask(self._steering.begin)

    def _hold(self) -> snapshot.Holder:
        if self._holder is None:
            self._holder = snapshot.Holder(
                self._source,
                run=self._run,
                steps=self._copies,
                settings={"lock_timeout": f"{int(self._options.lock_timeout * 1000)}ms"},
                stopping=self._patience.stopping,
                importing=(lambda: start.snapshot(self._patience.stopping)) if (start := self._start) else None,
            )
        return self._holder

    def _enter(self) -> None:
        left = self._watch.ask(ledger.unfinished)
        if left is not None:
            raise errors.Incomplete(
                f"run {left.run} on {self._target.label} is unfinished",
                hint=f"Continue it: `{self._options.resume}`, or undo it: `{self._options.reset}`.",
            )
        for table, within in {step.target: step.within for step in self._copies if step.existing == "refuse"}.items():
            if self._watch.ask(lambda session: transfer.occupied(session, table, within)):  # noqa: B023
                raise errors.Refused(
                    f"{table} on {self._target.label} has rows by now, which it had not when the plan was made",
                    hint="Another run or a proxy has written them: look at them, then run the same command again.",
                )
        self._hold()
        self._watch.ask(
            lambda session: ledger.begin(
                session,
                run=self._run,
                plan=self._plan,
                text=plan.dumps(self._plan),
                tool=f"mishika-migrate {mishika_migrate.__version__}",
            )
        )
        self._entered = True

    def _announce(self, *, resumed: bool) -> None:
        self._announced = True
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
        for kept in self._accounts.kept(self._landed):
            self._watch.kept(kept)
            self._emit(kept)

    @property
    def _copies(self) -> tuple[model.CopyTable, ...]:
        return tuple(step for step in self._plan.steps if isinstance(step, model.CopyTable))

    def _reconsider(self) -> None:
        holder = self._hold()
        found = resuming.judge(
            self._plan,
            self._run,
            holder,
            self._source,
            self._watch.ask,
            reset=self._options.reset,
            emit=self._emit,
        )
        self._watch.ask(lambda session: ledger.outdate(session, run=self._run, steps=found.stale))
        self._followers, self._late = found.followers, list(found.late)
        self._kept, self._landed = frozenset(found.kept), dict(found.kept)

    def _follow(self) -> None:
        """What a resumed run does before history goes on, once."""
        steps, self._late = self._late, []
        if not steps:
            return
        self._emit(events.StageStarted(name="prepare", title="following the source", steps=len(steps)))
        for step in steps:
            if isinstance(step, work.Follow):
                self._emit(events.Noticed(message=resuming.said(step)))
        number = len(self._plan.steps)
        clear = [step for step in steps if isinstance(step, work.Clear)]
        others = [step for step in steps if isinstance(step, work.Follow)]
        for group in (clear, others):
            self._run_tasks([self._task("prepare", (step,), number + steps.index(step)) for step in group])
        landed = self._watch.ask(lambda session: ledger.landed(session, run=self._run))
        self._landed.update({name: landed[name] for name in self._kept & set(landed)})

    # -- stages -----------------------------------------------------------------------------------

    def _prove(self) -> None:
        """Compares everything with the snapshot, while it is still there; once."""
        rules = self._options.proving
        if rules is not None and self._proof is None and self._copies:
            self._emit(
                events.StageStarted(name="verify", title="comparing with the snapshot", steps=len(self._plan.chosen))
            )
            self._proof = self._patience.wait(
                lambda: verify.of_copy(
                    rules,
                    self._plan,
                    self._source,
                    self._target,
                    name=f"{work.sessions(self._run)}verify",
                    snapshot=self._hold().name,
                    jobs=self._options.jobs,
                    emit=self._emit,
                )
            )
            self._emit(events.Proven(proof=self._proof))
        self._release()

    def _subscribe(self) -> None:
        assert self._start is not None
        self._start.subscribe(proved=self._proof is not None)

    def _go_on(self) -> None:
        """Whatever the source writes from the snapshot on arrives on the target, too."""
        assert self._start is not None
        try:
            self._patience.wait(self._start.go)
        except (errors.Error, engine.Interruption) as error:
            raise errors.Incomplete(
                f"everything is copied, but {self._target.label} does not follow yet"
                f"{f': {error}' if isinstance(error, errors.Error) else ''}",
                hint="`mishika-migrate follow start` lets it go on.",
            ) from error
        self._emit(events.Noticed(message=f"{self._target.label} follows {self._source.label}"))

    def _unfollow(self, *, resumable: bool) -> None:
        """A slot that nobody reads from fills the source's disk."""
        if self._start is not None and (left := self._start.undo(resumable=resumable)):
            self._emit(events.Noticed(message=left))

    def _stage(self, stage: model.Stage) -> None:
        tasks = list(self._tasks(stage))
        if not tasks:
            return
        self._emit(events.StageStarted(name=stage.name, title=stage.title, steps=len(stage.steps)))
        self._run_tasks(tasks)

    def _run_tasks(self, tasks: Sequence[work.Task]) -> None:
        self._steering.expect(len(tasks))
        engine.run(
            tasks,
            executor=self._workers,
            jobs=self._workers.jobs,
            policy=self._options.policy,
            emit=self._hear,
            tick=self._watch.tick,
            stopping=self._patience.stopping,
            end=self._patience.end,
            landed=self._note,
        )

    def _note(self, landed: model.Landed) -> None:
        self._landed[landed.step] = landed

    def _hear(self, event: events.Event) -> None:
        self._emit(event)
        if isinstance(event, events.StepFinished):
            self._steering.landed()
        if isinstance(event, events.StepFinished) and event.table:
            self._watch.landed(event)
            finished = self._accounts.finished(event)
            if finished is not None:
                self._emit(finished)

    def _tasks(self, stage: model.Stage) -> Iterable[work.Task]:
        steps = [step for step in stage.steps if step.id not in self._kept]
        groups = [tuple(steps)] if stage.atomic and steps else [(step,) for step in steps]
        numbers = {step.id: number for number, step in enumerate(self._plan.steps)}
        for group in groups:
            yield self._task(stage.name, group, numbers[group[0].id])

    def _task(self, stage: model.StageName, steps: tuple[work.Step, ...], number: int) -> work.Task:
        reads = any(isinstance(step, model.CopyTable | model.SetSequence | work.Follow) for step in steps)
        copies = [step for step in steps if isinstance(step, model.CopyTable)]
        return work.Task(
            run=self._run,
            number=number,
            stage=stage,
            steps=steps,
            source=self._source,
            target=self._target,
            snapshot=work.Snapshot(name=self._hold().name, state=self._hold().state) if reads else None,
            horizons={step.id: self._hold().horizon(step) for step in copies},
            followers=self._behind({step.target for step in copies}) if stage == "core" else (),
            durable=stage != "bulk",
            compression=self._options.compression,
            lock_timeout=self._options.lock_timeout,
        )

    def _behind(self, tables: Set[model.TableName]) -> tuple[model.TableName, ...]:
        """Tables of later stages that reference these, the last ones first."""
        behind = {follower for table in tables for follower in self._followers.get(table, ())} - tables
        order = dict.fromkeys(step.target for step in self._copies)
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
                hint=f"Continue: `{self._options.resume}`.",
            )
        books = self._accounts.all(self._landed, entries)
        wrong = next((account for account in books if not account.balanced), None)
        if wrong is not None:
            raise errors.Error(
                f"the books of {wrong.table} do not balance: {wrong.rows_out} rows left the source,"
                f" {wrong.rows_in} arrived, the ledger says {wrong.rows_ledger}"
            )
        proven = f"compared with the snapshot: {self._proof.headline}" if self._proof else ""
        self._watch.ask(lambda session: ledger.end(session, run=self._run, state="finished", message=proven))
        return books

    def _ended(self, error: errors.Error | engine.Interruption) -> errors.Error:
        """What is true now, in the ledger and as an error with the right exit status."""
        signal = self._stopping()
        self._release()
        self._unfollow(resumable=self._entered)
        if not self._entered:
            return endings.interrupted(signal, "nothing was written", endings.AGAIN) if signal else endings.own(error)
        text = f"stopped by signal {signal}" if signal else str(error)
        landed, touched, sure = self._last_words(text)
        if isinstance(error, errors.Refused) and not self._announced:
            return error
        what, hint = endings.true_now(
            error,
            f"{len(landed)} of {len(self._plan.steps)} steps have landed",
            touched=touched,
            sure=sure,
            resume=self._options.resume,
            reset=self._options.reset,
        )
        waiting = tuple(step.id for step in self._plan.steps if step.id not in landed)
        hint = endings.both(error, hint)
        self._emit(events.RunStopped(run=self._run, landed=tuple(landed), open=waiting, message=text, hint=hint))
        if signal:
            return endings.interrupted(signal, what, hint)
        own = endings.own(error)
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
