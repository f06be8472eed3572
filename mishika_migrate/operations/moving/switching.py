"""A switch of traffic from one server to the other: gates, fence, drain, proof, way back, the operator's command.

Imports moves, gates, proving, reopening, sync, pg and the words. `cutover` goes from source to target, `rollback` the
other way; both are this flow. Until the operator's command may have run, whatever fails lifts the fence, and
nothing was switched.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from mishika_migrate import errors, events, matrix, model, words
from mishika_migrate.operations.moving import gates, moves, proving, reopening, streams
from mishika_migrate.operations.syncing import levelling
from mishika_migrate.operations.syncing import sync as syncing
from mishika_migrate.pg import connect, ddl, fence, interrupt, journal
from mishika_migrate.preflight import following

Emit = Callable[[events.Event], None]
Perform = Callable[[float], None]
"""The operator's part: given the seconds that are left, returns when traffic goes to the new side, or raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(gates.Wanted):
    """`timeout` bounds the time from fence to switch, in seconds. Sequences go `margin` ahead."""

    method: Literal["auto", "replication", "sync"] = "auto"
    timeout: float = 30.0
    margin: int = 1000


def foresee(rules: matrix.Matrix, servers: moves.Servers, way: model.Way, *, options: Options) -> model.Switched:
    """Every gate, and what each step would take; changes nothing but a heartbeat."""
    with moves.opened(rules, servers, way, method=options.method, timeout=None) as move:
        _refuse_order(move)
        if move.unended is not None:
            said = f"the earlier attempt goes on, and traffic to {move.toward.label}"
            steps = [model.Taken(name="switch", said=said, seconds=0.0)]
            return model.Switched(
                way=way, method=move.method, why=move.why, gates=(), steps=tuple(steps), pause=0.0, run=move.run
            )
        found = gates.pass_all(move, options)
        steps = [
            model.Taken(name="fence", said=f"no writes on {move.away.label}", seconds=0.05),
            model.Taken(name="drain", said=f"the last changes reach {move.toward.label}", seconds=found.delay or 0.0),
        ]
        passed = list(found.all)
        if not found.unmet:
            gate, seconds = _equal(move, options.jobs)
            passed.append(gate)
            steps.append(model.Taken(name="proof", said="all keys, core tables, recent history", seconds=seconds))
        return model.Switched(
            way=way,
            method=move.method,
            why=move.why,
            gates=tuple(passed),
            steps=tuple(steps),
            pause=sum(step.seconds for step in steps),
        )


def _equal(move: moves.Move, jobs: int) -> tuple[model.Gate, float]:
    """Whether the proof under the fence would pass, and how long it takes. By sync the last pass makes both equal.

    Traffic goes on meanwhile: only what differs each time that it is looked at again counts.
    """
    began = time.monotonic()
    proof = proving.all_but_history(move, move.now(), jobs, lambda _: None)
    seconds = time.monotonic() - began
    if move.method == "replication" and proof.different:
        proof = proving.all_but_history(move, move.now(), jobs, lambda _: None, rechecks=_RECHECKS)
    if move.method == "replication" and proof.different:
        said = proving.differs(proof, move)
        return model.Gate(code="equal", passed=False, said=said.message, fix=said.hint), seconds
    return model.Gate(code="equal", passed=True, said="keys and core tables are equal on both sides"), seconds


def carry_out(
    rules: matrix.Matrix,
    servers: moves.Servers,
    way: model.Way,
    *,
    options: Options,
    perform: Perform,
    emit: Emit,
) -> model.Switched:
    """Switches, or changes nothing.

    Raises `errors.GateNotMet` when a gate is closed or anything fails under the fence: the old side accepts writes
    again then, and the message says so. A switch that a dead process left is given up first, or ended where the
    operator's command may have run.
    """
    with moves.opened(rules, servers, way, method=options.method, timeout=options.timeout) as move:
        _clear(move)
        _refuse_order(move)
        if move.before is not None and move.before.open:
            emit(events.Noticed(message=f"giving up what an earlier attempt has left ({move.before.state})"))
            reopening.give_up(move, move.before)
        if move.unended is not None:
            emit(events.Noticed(message="an earlier attempt was ended while it switched; going on from there"))
            return _Switch(move, options, perform, emit, number=move.unended.id).end()
        emit(events.Noticed(message=f"by {move.method}: {move.why}"))
        found = gates.pass_all(move, options)
        if found.unmet:
            raise gates.not_met(found.unmet)
        return _Switch(move, options, perform, emit).go(found.all)


def abort(rules: matrix.Matrix, servers: moves.Servers) -> model.Switch | None:
    """Gives up the switch that a dead process has left; None where there is none.

    `errors.Refused` where the operator's command may have run: traffic may be on the new side.
    """
    with moves.plain(rules, servers) as move:
        before, settled = move.before, move.settled
        if before is not None and before.open:
            reopening.give_up(move, before)
            return before
        if settled is not None and settled.state == "switching":
            again, back = ("cutover", "rollback") if settled.way == "forward" else ("rollback", "cutover")
            raise errors.Refused(
                f"the {again} of run {settled.run} was ended while it switched: traffic may be on the new side",
                hint=f"`mishika-migrate {again}` ends it; `mishika-migrate {back}` goes back and loses nothing.",
            )
        return None


def _clear(move: moves.Move) -> None:
    """What a switch of this way had no time to take away once it was done."""
    done = move.settled
    if done is not None and (done.state, done.way, done.method) == ("finished", move.way, "replication"):
        move.stream(move.way).remove(move.sessions)


def _refuse_order(move: moves.Move) -> None:
    """Each verb after the one that it follows."""
    moves.refuse_parted(move)
    done = move.settled if move.settled is not None and move.settled.state == "finished" else None
    if move.way == "forward" and done is not None and done.way == "forward":
        raise errors.Refused(
            f"traffic is on {move.toward.label} since the cutover of {done.started}",
            hint="`mishika-migrate rollback` goes back, `mishika-migrate complete` ends the move.",
        )
    if move.way == "back" and (move.settled is None or (done is not None and done.way == "back")):
        raise errors.Refused(
            "there is no cutover to roll back", hint="`mishika-migrate follow status` shows where things are."
        )


# -- the switch itself ----------------------------------------------------------------------------


# Longer than deadlock_timeout (1 s), after which the server ends an autovacuum that is in our way.
_LOCK_SECONDS = 3.0
_READY_SECONDS = 20.0
_RECHECKS = 5


class CommandFailed(errors.GateNotMet):
    """The operator's command did not end well, and may have moved some of the traffic."""

    def __init__(self, error: BaseException) -> None:
        stopped = isinstance(error, errors.Interrupted) or not isinstance(error, errors.Error)
        super().__init__("interrupted while the command of --on-switch ran" if stopped else str(error))


class _Switch:
    """One attempt. `number` is its entry in the ledger."""

    def __init__(
        self, move: moves.Move, options: Options, perform: Perform, emit: Emit, *, number: int | None = None
    ) -> None:
        self._move, self._options, self._perform, self._emit = move, options, perform, emit
        self._number = number
        self._steps: list[model.Taken] = []
        self._gates: tuple[model.Gate, ...] = ()
        self._fenced = 0.0
        self._committed = False
        self._level: tuple[levelling.Scene, syncing.Options]

    def go(self, gates_: tuple[model.Gate, ...]) -> model.Switched:
        move, self._gates = self._move, gates_
        now = move.now()
        if move.method == "sync":
            if move.follow is not None:
                move.stream(move.way).remove(move.sessions)  # broken, or it would have been taken
                if self._opposite.state(move.sessions)[1] is not None:
                    # What the pass writes there must not flow back.
                    self._opposite.enable(move.sessions, enabled=False)
            with self._step("level", f"{move.toward.label} is brought level once, while traffic goes on"):
                self._prepare()
                self._pass()
        proving.history(move, now, self._options.jobs, self._emit)
        try:
            self._number = move.ask(
                lambda session: journal.begin_switch(session, run=move.run, way=move.way, method=move.method)
            )
            if self._returns:
                with self._step("way back", f"{move.away.label} is ready to follow {move.toward.label}"):
                    self._prepare_return()
            with move.limited():
                self._under_the_fence(now)
        except BaseException as error:
            if not self._committed:
                self._undo(error)
            elif isinstance(error, errors.Error):
                raise self._unended(error) from error
            raise
        return self.end()

    def _under_the_fence(self, now: datetime.datetime) -> None:
        move, number = self._move, self._number
        assert number is not None
        with self._step("fence", f"no writes on {move.away.label}"):
            self._fenced = time.monotonic()
            self._fence()
            move.enter(number, "fenced")
        with self._step("drain", f"the last changes are on {move.toward.label}"):
            self._drain()
            move.enter(number, "drained")
        with self._step("sequences", f"{words.count(len(move.sequences), 'sequence')} set ahead"):
            self._set_sequences()
        back = "; the way back is there" if self._returns else ""
        with self._step("proof", f"all keys, core tables and recent history are equal{back}"):
            self._prove(now)
        move.enter(number, "switching")
        # Nothing may follow this in here: from now on the new side may have traffic.
        self._committed = True

    # -- steps ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _step(self, name: str, said: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        taken = model.Taken(name=name, said=said, seconds=time.monotonic() - began)
        self._steps.append(taken)
        self._emit(events.Noticed(message=f"{name}: {said} ({taken.seconds:.2f} s)"))

    def _fence(self) -> None:
        move = self._move
        session = move.sessions[move.away.role]
        with connect.translated(move.away):
            tables = fence.tables(session, move.away.schema)
        message = f"this database takes no writes: its traffic goes to {move.toward.label} (mishika-migrate {move.run})"
        undo = "rollback" if move.way == "forward" else "cutover"
        attempts = 0
        while True:
            attempts += 1
            try:
                with connect.translated(move.away, "the fence"):
                    fence.raise_(
                        session,
                        tables,
                        message=message,
                        hint=f"Connect to the new server. `mishika-migrate {undo}` would come back here.",
                        patience=_LOCK_SECONDS,
                    )
                return
            except errors.ServerError as error:
                if error.sqlstate != "55P03" or move.late:
                    raise
                if attempts == 1:
                    self._emit(events.Noticed(message=f"waiting for who writes on {move.away.label}: {error.message}"))

    def _drain(self) -> None:
        move = self._move
        if move.method == "sync":
            self._pass()
            return
        if move.stream(move.way).drain(move.sessions, seconds=self._options.timeout) is None:
            raise errors.GateNotMet(f"the changes of {move.away.label} did not all arrive in time")

    def _set_sequences(self) -> None:
        move = self._move
        away, toward = move.sessions[move.away.role], move.sessions[move.toward.role]
        for step in move.sequences:
            with connect.translated(move.away, step.id):
                value, called = ddl.last_value(away, step)
            with connect.translated(move.toward, step.id):
                ddl.set_sequence(toward, step, value, called, margin=self._options.margin)

    def _prove(self, now: datetime.datetime) -> None:
        """The comparison, and meanwhile the way back."""
        move = self._move
        with ThreadPoolExecutor(1, thread_name_prefix="return") as pool, interrupt.given_up(move.name):
            back = pool.submit(self._return) if self._returns else None
            proof = proving.all_but_history(move, now, self._options.jobs, self._emit)
            if proof.different:
                raise proving.differs(proof, move)
            if back is not None:
                back.result()
            elif move.method == "replication":
                # Should the way back be a pass of sync, what it writes must not flow on.
                move.stream(move.way).enable(move.sessions, enabled=False)
        move.enter(self._number or 0, "proved")

    @property
    def _returns(self) -> bool:
        return self._move.method == "replication" and self._options.way_back

    def _prepare_return(self) -> None:
        """All of the way back but the tables: a slot and a worker take their time, in PostgreSQL 15 up to 5 s."""
        move, stream = self._move, self._opposite
        stream.remove(move.sessions)
        stream.publish(move.sessions, narrow=True)
        stream.slot(move.sessions)
        stream.subscribe(move.sessions)
        # Nobody is kept from writing yet: --timeout is the fence's.
        self._arrive(move.sessions, seconds=max(self._options.timeout, _READY_SECONDS))

    def _return(self) -> None:
        """Changes of the new side flow to the old one, which is proven before they matter."""
        move = self._move
        # Before 16 rows would go round in circles.
        move.stream(move.way).enable(move.returning, enabled=False)
        self._opposite.widen(move.returning)
        self._arrive(move.returning, seconds=self._options.timeout)

    def _arrive(self, sessions: Mapping[model.Role, connect.Session], *, seconds: float) -> None:
        move = self._move
        if self._opposite.drain(sessions, seconds=seconds) is None:
            raise errors.GateNotMet(
                f"changes of {move.toward.label} do not arrive on {move.away.label}",
                hint="See the log of that server, or go without a way back: --no-way-back.",
            )

    @property
    def _opposite(self) -> streams.Stream:
        return self._move.stream("back" if self._move.way == "forward" else "forward")

    # -- sync instead of replication --------------------------------------------------------------

    def _prepare(self) -> None:
        self._level = self._move.level(jobs=self._options.jobs, lock_timeout=self._options.lock_timeout)

    def _pass(self) -> None:
        level, how = self._level
        syncing.carry_out(level, self._move.as_source, self._move.as_target, options=how, emit=lambda _: None)

    # -- the end ----------------------------------------------------------------------------------

    def end(self) -> model.Switched:
        """The operator's command, and what no longer has a use."""
        try:
            return self._end()
        except CommandFailed:
            raise
        except errors.Error as error:
            raise self._unended(error) from error

    def _unended(self, error: errors.Error) -> errors.Error:
        """What is true when the new side may have traffic, and the ledger does not say that it is done."""
        again, back = ("cutover", "rollback") if self._move.way == "forward" else ("rollback", "cutover")
        return errors.GateNotMet(
            f"{_reason(error, late=False, timeout=0)}; the {again} has come to no end:"
            f" {self._move.away.label} takes no writes, and traffic may be on {self._move.toward.label}",
            hint=f"`mishika-migrate {again}` ends it; `mishika-migrate {back}` goes back and loses nothing.",
        )

    def _end(self) -> model.Switched:
        move, number = self._move, self._number
        assert number is not None
        with self._step("switch", f"traffic goes to {move.toward.label}"):
            with connect.translated(move.toward, "the fence"):
                fence.lift(move.sessions[move.toward.role])
            rest = self._options.timeout - (time.monotonic() - self._fenced) if self._fenced else 0.0
            try:
                self._perform(max(rest, 1.0) if self._fenced else 0.0)
            except (errors.Error, KeyboardInterrupt) as error:
                raise CommandFailed(error) from error
        pause = time.monotonic() - self._fenced if self._fenced else 0.0
        if move.follow is not None:
            self._turn_round()
        move.ask(lambda session: journal.supersede(session, move.way))
        move.enter(number, "finished")
        left = self._clear_up() if move.follow is not None else []
        return model.Switched(
            way=move.way,
            method=move.method,
            why=move.why,
            gates=self._gates,
            steps=tuple(self._steps),
            pause=pause,
            run=move.run,
            state="finished",
            left=tuple(left),
        )

    def _turn_round(self) -> None:
        """What follows now, and what its tables look like on the side that is followed."""
        move = self._move
        assert move.follow is not None
        other: model.Way = "back" if move.way == "forward" else "forward"
        shape = following.fingerprint(move.catalogs[0 if move.toward.role == "source" else 1], move.follow.tables)
        # An attempt that is ended by another one may have been without a way back.
        returns = move.method == "replication" and None not in self._opposite.state(move.sessions)
        move.ask(lambda session: journal.set_follow(session, way=other, ready=returns, fingerprint=shape))

    def _clear_up(self) -> list[str]:
        """Takes away what has no use any more: by sync nothing follows, in either direction. What could not go."""
        move = self._move
        gone = [move.stream(move.way)] if move.method == "replication" else [move.stream(move.way), self._opposite]
        left = []
        for stream in gone:
            try:
                stream.remove(move.sessions)
            except errors.Error as error:
                left.append(f"{stream.name}: {error.message}")
        return left

    def _undo(self, error: BaseException) -> None:
        """Raises what is true now: in sessions of its own, because the others may be what failed."""
        move = self._move
        verb = "cutover" if move.way == "forward" else "rollback"
        late = move.late
        lifted = reopening.lifted(move.away)
        try:
            with move.anew() as fresh:
                before = fresh.before
                # Its last word may have been heard although nobody heard the answer; the command has not run.
                if before is not None and (before.open or before.id == self._number):
                    reopening.give_up(fresh, before)
        except errors.Error as worse:
            fenced = (
                f"{move.away.label} accepts writes again; not everything of the attempt could be taken away"
                if lifted
                else f"but the fence on {move.away.label} could not be lifted"
            )
            raise errors.GateNotMet(
                f"{_reason(error, late, self._options.timeout)}; nothing was switched, {fenced}: {worse.message}",
                hint=f"`mishika-migrate cutover --abort` does it, as soon as both servers answer ({verb} does, too).",
            ) from error
        if isinstance(error, errors.Error | connect.Stopped):
            raise errors.GateNotMet(
                f"{_reason(error, late, self._options.timeout)}; the fence is lifted, nothing was switched:"
                f" {move.away.label} accepts writes again",
                hint=getattr(error, "hint", "") or f"Run `mishika-migrate {verb}` again when that is mended.",
                findings=getattr(error, "findings", ()),
            ) from error


def _reason(error: BaseException, late: bool, timeout: float) -> str:
    if isinstance(error, errors.Interrupted):
        return "interrupted"
    if late:
        return f"fence to switch took longer than {timeout:g} s"
    return error.message if isinstance(error, errors.Error) else str(error) or type(error).__name__
