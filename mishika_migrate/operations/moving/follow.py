"""`copy --follow` and `follow`: the target goes on from the copy's own snapshot by Postgres' replication.

Imports streams, moves, pg, following and the words.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mishika_migrate import errors, findings, matrix, model
from mishika_migrate.operations.moving import moves, streams
from mishika_migrate.pg import connect, fence, footing, journal, ledger, replication
from mishika_migrate.preflight import following

_NAME = "mishika-migrate/follow"
_SETTINGS = {"lock_timeout": "10s", "default_transaction_read_only": "off"}
_UNDO_SECONDS = 5.0
_FIRST_SECONDS = 20.0  # PostgreSQL 15 may take 5 s to start a worker
_READER_SECONDS = 7.0
_OLD_SECONDS = 60.0


# -- before a copy --------------------------------------------------------------------------------


def obstacles(source: moves.Server, target: moves.Server, tables: Sequence[str]) -> tuple[model.Finding, ...]:
    """What stands in the way of following these tables, on either side. Nothing is left behind."""
    with contextlib.ExitStack() as stack:
        sessions = _sessions(stack, source.end, target.end)
        found: dict[model.Role, model.Footing] = {}
        for end in (source.end, target.end):
            with connect.translated(end):
                found[end.role] = footing.read(sessions[end.role], end, tables, patience=_OLD_SECONDS, name=_NAME)
        theirs = found["target"]
        # One that must fail all the same leaves the statement in the server's log, with the password.
        if theirs.subscribes and theirs.creates and min(each.version for each in found.values()) >= following.OLDEST:
            theirs = dataclasses.replace(theirs, reaches=_reaches(sessions["target"], target.end, source.reaching))
        return following.inspect(found["source"], theirs, schema=source.end.schema, target_schema=target.end.schema)


def _reaches(session: connect.Session, target: model.Endpoint, reaching: str) -> str:
    probe = f"{replication.PREFIX}probe"
    try:
        with connect.translated(target):
            replication.reaches(session, probe, publication=probe, reaching=reaching)
    except errors.ServerError as error:
        return error.message
    return ""


# -- with a copy ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """`reaching` is how the target's server reaches the source; `fingerprint` that of the tables' columns."""

    reaching: str
    tables: tuple[str, ...]
    fingerprint: str


class Start:
    """What a copy does so that the target follows afterwards. Its sessions are its own."""

    def __init__(self, run: str, source: model.Endpoint, target: model.Endpoint, wanted: Wanted) -> None:
        self._run, self._wanted = run, wanted
        self._ends: Mapping[model.Role, model.Endpoint] = {"source": source, "target": target}
        self._at = ""
        self._begun = False

    @contextlib.contextmanager
    def snapshot(self, stopping: Callable[[], bool]) -> Iterator[str]:
        """One of the source from which on its changes are kept, importable inside the block."""
        with self._open() as (stream, sessions):
            self._begun = True
            self._forget_others(sessions)
            with connect.translated(self._ends["target"], "the ledger"):
                journal.begin_follow(
                    sessions["target"],
                    model.Follow(
                        run=self._run, way="forward", tables=self._wanted.tables, fingerprint=self._wanted.fingerprint
                    ),
                )
            stream.remove(sessions)  # of an earlier attempt, whose snapshot died with it
            stream.publish(sessions)
            stream.refuse_stranger(sessions)
            with connect.translated(self._ends["source"]):
                row = sessions["source"].execute("SELECT clock_timestamp()::text").fetchone()
            self._at = str(row[0]) if row else ""
            with stream.snapshot(sessions, session=f"mishika-migrate/{self._run}/slot", stopping=stopping) as made:
                yield made

    def _forget_others(self, sessions: streams.Sessions) -> None:
        """A run that was killed before anything landed has left a slot under its own name."""
        with connect.translated(self._ends["target"], "the ledger"):
            before = journal.follow(sessions["target"])
        if before is not None and before.run != self._run:
            self._stream(sessions, before.run).remove(sessions)

    def subscribe(self, *, proved: bool) -> None:
        """Everything of the snapshot has landed: all is there for going on, but nothing moves yet."""
        with self._open() as (stream, sessions):
            stream.subscribe(sessions, enabled=False)
            if proved:
                with connect.translated(self._ends["target"], "the ledger"):
                    journal.set_proved(sessions["target"], self._at)

    def go(self) -> None:
        """The target goes on from the snapshot. After the run's books are closed: a run that is resumed must find its
        rows as it left them."""
        with self._open() as (stream, sessions):
            with connect.translated(self._ends["target"], "the ledger"):
                journal.set_follow(sessions["target"], ready=True)
            stream.enable(sessions, enabled=True)
            if stream.drain(sessions, seconds=_FIRST_SECONDS) is None:
                raise errors.ServerError(
                    f"a change of {self._ends['source'].label} has not arrived within {_FIRST_SECONDS:g} s",
                    hint="`mishika-migrate follow status` shows why; --source-from-target may name another server.",
                )

    def undo(self, *, resumable: bool) -> str:
        """Removes what it has made; says what is left and how it goes, empty for nothing.

        A slot without a reader fills the source's disk, and a run that is resumed needs a new one anyway.
        """
        if not self._begun:
            return ""
        done = threading.Event()
        threading.Thread(target=self._remove, args=(done, resumable), daemon=True, name="unfollow").start()
        if done.wait(_UNDO_SECONDS):
            return ""
        name = model.object_name(self._run, "forward")
        return (
            f"Slot and publication {name} of {self._ends['source'].label} could not be removed, and the slot fills its"
            " disk: `mishika-migrate complete` removes them."
        )

    def _remove(self, done: threading.Event, resumable: bool) -> None:
        try:
            with self._open() as (stream, sessions):
                stream.remove(sessions)
                if not resumable:
                    with connect.translated(self._ends["target"], "the ledger"):
                        journal.end_follow(sessions["target"])
        except (errors.Error, connect.Stopped):
            return
        done.set()

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[streams.Stream, streams.Sessions]]:
        with contextlib.ExitStack() as stack:
            sessions = _sessions(stack, *self._ends.values())
            yield self._stream(sessions, self._run), sessions

    def _stream(self, sessions: streams.Sessions, run: str) -> streams.Stream:
        return streams.Stream(
            run=run,
            way="forward",
            ends=self._ends,
            tables=self._wanted.tables,
            reaching=lambda: self._wanted.reaching,
            ask=streams.asking(sessions["target"], self._ends["target"]),
        )


def _sessions(stack: contextlib.ExitStack, *ends: model.Endpoint) -> dict[model.Role, connect.Session]:
    return {
        end.role: stack.enter_context(connect.session(end, name=_NAME, answered=True, settings=_SETTINGS))
        for end in ends
    }


# -- afterwards -----------------------------------------------------------------------------------


def watch(
    servers: moves.Servers,
    *,
    patience: float,
    interval: float | None,
    show: Callable[[model.Following], None],
) -> model.Following:
    """How far it is, once or again and again; the last look. Writes heartbeats only."""
    with contextlib.ExitStack() as stack:
        sessions = _sessions(stack, *(server.end for server in servers.values()))
        follow = _followed(sessions["target"], servers["target"].end)
        stream = _stream(follow, servers, sessions)
        before: tuple[float, int] | None = None
        while True:
            now = time.monotonic()
            found = _look(follow, stream, servers, sessions, patience)
            written = _written(sessions[stream.publisher], servers[stream.publisher].end)
            if before is not None:
                found = dataclasses.replace(found, rate=(written - before[1]) / max(now - before[0], 0.001))
            before = (now, written)
            show(found)
            if interval is None:
                return found
            time.sleep(interval)


def forgotten(*ends: model.Endpoint) -> tuple[model.Finding, ...]:
    """Slots of this tool on these servers that nobody reads from."""
    found: list[model.Finding] = []
    for end in ends:
        with connect.session(end, name=_NAME) as session, connect.translated(end):
            found += following.abandoned(replication.slots(session), end, current="")
    return tuple(found)


def _written(session: connect.Session, end: model.Endpoint) -> int:
    with connect.translated(end):
        return replication.written(session)


def _look(
    follow: model.Follow,
    stream: streams.Stream,
    servers: moves.Servers,
    sessions: streams.Sessions,
    patience: float,
) -> model.Following:
    publisher, subscriber = servers[stream.publisher].end, servers[stream.subscriber].end
    told = list(_switching(sessions, servers))
    switching = bool(told)
    if not switching:
        told += _revived(stream, sessions)
    delay = _delay(stream, sessions, patience)
    slot, subscription = stream.state(sessions)
    broken = streams.trouble(publisher, subscriber, slot, subscription)
    if broken and not switching:
        told.append(findings.warn("not-following", stream.name, broken, _mend(follow.way, slot, subscription)))
    # On either side: a switch that was killed at its very end leaves the slot of the former way.
    for role, server in servers.items():
        with connect.translated(server.end):
            others = [each for each in replication.slots(sessions[role]) if each.name != stream.name]
        told += following.abandoned(others, server.end, current="")
    if slot is not None and not slot.active and not switching:
        told += following.unread(slot, subscription, publisher, subscriber)
    told += following.worries(publisher, slot, subscription, delay=delay, waited=None if broken else patience)
    return model.Following(
        follow=follow, slot=slot, subscription=subscription, delay=delay, waited=patience, findings=tuple(told)
    )


def _revived(stream: streams.Stream, sessions: streams.Sessions) -> Iterable[model.Finding]:
    if stream.revive(sessions):
        stream.read(sessions, seconds=_READER_SECONDS)
        what = f"{stream.name} had stopped at an error, such as a restart of the {stream.publisher}: started again"
        yield findings.warn("started-again", stream.name, what, f"see the log of the {stream.subscriber}'s server")


def _delay(stream: streams.Stream, sessions: streams.Sessions, patience: float) -> float | None:
    """None also where nothing arrives any more; `streams.trouble` says why."""
    try:
        stream.refuse_broken(sessions)
        return stream.drain(sessions, seconds=patience)
    except errors.ServerError:
        return None


def _switching(sessions: streams.Sessions, servers: moves.Servers) -> Iterable[model.Finding]:
    """A switch that is under way, or was ended amid its work: following rests, and nobody may be able to write."""
    with connect.translated(servers["target"].end, "the ledger"):
        latest, settled = journal.switch(sessions["target"]), journal.settled(sessions["target"])
    found = latest if latest is not None and latest.open else settled
    if found is None or not (found.open or found.state == "switching"):
        return
    away = servers["source" if found.way == "forward" else "target"].end
    verb = "cutover" if found.way == "forward" else "rollback"
    with connect.translated(away):
        closed = fence.standing(sessions[away.role])
    what = f"a {verb} is under way, or was ended amid its work (it is {found.state})"
    if closed:
        what += f", and {away.label} takes no writes"
    fix = f"wait for it; where no {verb} runs any more, mishika-migrate {verb} ends it"
    yield findings.warn(
        "switch-unended",
        model.object_name(found.run, found.way),
        what,
        f"{fix}, cutover --abort gives it up" if found.open else fix,
    )


def _mend(way: model.Way, slot: model.Slot | None, subscription: model.Subscription | None) -> str:
    if slot is None or slot.lost or subscription is None:
        # Traffic has moved: `complete` would give the way back away.
        back = "mishika-migrate rollback, which takes one pass of sync instead; mishika-migrate complete to stay here"
        return back if way == "back" else "mishika-migrate complete, then copy --follow anew"
    if subscription.errors:
        return (
            "remove what is in the way, such as a row that the source has not made; it is started again by every"
            " mishika-migrate follow status, follow start and cutover"
        )
    return "mishika-migrate follow start"


def set_running(rules: matrix.Matrix, servers: moves.Servers, *, running: bool) -> model.Follow:
    """`follow start` and `follow stop`."""
    with moves.plain(rules, servers) as move:
        follow = _followed(move.ledger, move.end("target"), ready=False)
        moves.refuse_parted(move)
        half = move.before if move.before is not None and move.before.open else move.settled
        if half is not None and half.state != "finished":
            verb = "cutover" if half.way == "forward" else "rollback"
            raise errors.Refused(
                f"a {verb} has come to no end (it is {half.state}), and following would disturb it",
                hint=f"End it: `mishika-migrate {verb}`"
                + (", or give it up: `mishika-migrate cutover --abort`." if half.open else "."),
            )
        if not follow.ready:
            _refuse_unfinished(move, follow.run)
        stream = move.stream(follow.way)
        slot, subscription = stream.state(move.sessions)
        if subscription is None or slot is None or slot.lost:
            broken = streams.trouble(move.end(stream.publisher), move.end(stream.subscriber), slot, subscription)
            mend = _mend(follow.way, slot, subscription)
            raise errors.Refused(broken, hint=f"Run {mend}.")
        if running and not follow.ready:
            move.ask(lambda session: journal.set_follow(session, ready=True))
        stream.forgive(move.sessions)
        stream.enable(move.sessions, enabled=running)
        if running and not stream.read(move.sessions, seconds=_READER_SECONDS):
            # Its server cannot connect by what it was told when it was made: a password may have changed since.
            stream.readdress(move.sessions)
        return follow


def _refuse_unfinished(move: moves.Move, run: str) -> None:
    """A copy that ended before it was complete must not be followed: its rest would come after what changed it."""
    if not any(each.id == run and each.state == "finished" for each in move.ask(ledger.runs)):
        raise errors.Refused(
            f"run {run} on {move.end('target').label} is unfinished, and nothing can follow it yet",
            hint="Continue it: `mishika-migrate copy --resume`; the target follows afterwards.",
        )


def begun(target: model.Endpoint, *, run: str) -> model.Follow | None:
    """What an unfinished copy has begun to follow; None where it was not to."""
    with connect.session(target, name=_NAME) as session:
        found = journal.follow(session)
    return found if found is not None and found.run == run else None


def _followed(session: connect.Session, target: model.Endpoint, *, ready: bool = True) -> model.Follow:
    with connect.translated(target, "the ledger"):
        found = journal.follow(session) if ledger.exists(session) else None
    if found is None or (ready and not found.ready):
        raise _nothing_follows(session, target, found)
    return found


def _nothing_follows(session: connect.Session, target: model.Endpoint, found: model.Follow | None) -> errors.Refused:
    """Why, and what comes next."""
    with connect.translated(target, "the ledger"):
        done = journal.settled(session)
        before = ledger.unfinished(session)
        finished = ledger.exists(session) and any(
            found is not None and each.id == found.run and each.state == "finished" for each in ledger.runs(session)
        )
    if done is not None:
        there = "target" if done.way == "forward" else "source"
        again = "rollback` goes back" if done.way == "forward" else "cutover` goes over again"
        return errors.Refused(
            f"traffic is on the {there} since {done.started}, and nothing follows it",
            hint=f"`mishika-migrate {again} by sync, `mishika-migrate complete` ends the move.",
        )
    if found is not None and before is not None and before.run == found.run:
        return errors.Refused(
            f"run {found.run} is to follow, and has not copied everything yet",
            hint="Continue it: `mishika-migrate copy --resume`.",
        )
    if found is not None and not finished:
        return errors.Refused(
            f"run {found.run} was to follow, and ended before anything had landed",
            hint="`mishika-migrate complete` clears up what it has made; then begin again.",
        )
    if found is not None:
        return errors.Refused(
            f"run {found.run} has copied everything, and {target.label} does not follow yet",
            hint="`mishika-migrate follow start` lets it go on, `mishika-migrate complete` clears it up.",
        )
    return errors.Refused(f"{target.label} follows nothing", hint="Begin with `mishika-migrate copy --follow`.")


def _stream(follow: model.Follow, servers: moves.Servers, sessions: streams.Sessions) -> streams.Stream:
    publisher: model.Role = "source" if follow.way == "forward" else "target"
    return streams.Stream(
        run=follow.run,
        way=follow.way,
        ends={role: server.end for role, server in servers.items()},
        tables=follow.tables,
        reaching=lambda: servers[publisher].reaching,
        ask=streams.asking(sessions["target"], servers["target"].end),
        faults=follow.faults,
    )
