"""A move between two servers that is under way: what the ledger says of it, and sessions on both sides.

Imports streams, scopes, verify, sync, pg and the words. Shared by the commands that follow, switch and complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from mishika_migrate import errors, matrix, model
from mishika_migrate.operations import scopes
from mishika_migrate.operations.moving import streams
from mishika_migrate.operations.syncing import levelling
from mishika_migrate.operations.syncing import sync as syncing
from mishika_migrate.operations.verifying import verify
from mishika_migrate.pg import connect, fence, interrupt, journal, ledger, replication
from mishika_migrate.plan import history, selection

_T = TypeVar("_T")

NAME = "mishika-migrate/switch"
REPAIR = "mishika-migrate/repair"
# The source is written to as well: publications, fences, heartbeats.
WAITS = {"lock_timeout": "10s", "default_transaction_read_only": "off"}
_GRACE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One side. `seen` is its address as the other server has to write it, None where that is the same."""

    end: model.Endpoint
    seen: model.Endpoint | None = None

    @property
    def reaching(self) -> str:
        """The connection string by which the other server reaches it; see `replication.reaching`."""
        return replication.reaching(self.seen or self.end, own=self.seen is None)


Servers = Mapping[model.Role, Server]


class Move:
    """Made by `opened`. `way` is where a switch would go; `before` the latest attempt that the ledger knows of, and
    `settled` the latest by which traffic has moved, or may have. `origin` is the source of the last run."""

    def __init__(
        self,
        rules: matrix.Matrix,
        servers: Servers,
        way: model.Way,
        sessions: Mapping[model.Role, connect.Session],
        ledger_session: connect.Session,
        *,
        name: str,
        timeout: float | None,
    ) -> None:
        self.rules, self.servers, self.way, self.name = rules, servers, way, name
        self.sessions, self.ledger = sessions, ledger_session
        self.ask = streams.asking(ledger_session, servers["target"].end)
        self._timeout = timeout
        self._timer: threading.Timer | None = None
        self._late = threading.Event()
        with connect.translated(self.end("target")):
            self.follow = journal.follow(ledger_session)
            self.before = journal.switch(ledger_session)
            self.settled = journal.settled(ledger_session)
            runs = [run for run in ledger.runs(ledger_session) if run.state == "finished"]
        self._last = runs[0].id if runs else ""
        self.origin = runs[0].source if runs else ""
        self.method: model.SwitchMethod = "sync"
        self.why = ""
        self.catalogs: tuple[model.Catalog, model.Catalog]
        self._copied: scopes.Scope | None = None
        self.returning: Mapping[model.Role, connect.Session] = sessions

    # -- who is who -------------------------------------------------------------------------------

    def end(self, role: model.Role) -> model.Endpoint:
        return self.servers[role].end

    @property
    def away(self) -> model.Endpoint:
        """The side that traffic leaves."""
        return self.end("source" if self.way == "forward" else "target")

    @property
    def toward(self) -> model.Endpoint:
        return self.end("target" if self.way == "forward" else "source")

    @property
    def as_source(self) -> model.Endpoint:
        """The side that traffic leaves, in the part of a source."""
        return dataclasses.replace(self.away, role="source")

    @property
    def as_target(self) -> model.Endpoint:
        return dataclasses.replace(self.toward, role="target")

    @property
    def run(self) -> str:
        return self.follow.run if self.follow else self._last

    def stream(self, way: model.Way) -> streams.Stream:
        assert self.follow is not None, "only what follows has one"
        publisher: model.Role = "source" if way == "forward" else "target"
        return streams.Stream(
            run=self.follow.run,
            way=way,
            ends={role: server.end for role, server in self.servers.items()},
            tables=self.follow.tables,
            reaching=lambda: self.servers[publisher].reaching,
            ask=self.ask,
            faults=self.follow.faults if self.follow.way == way else 0,
        )

    def enter(self, number: int, state: model.SwitchState) -> None:
        """What is true of the switch from now on."""
        self.ask(lambda session: journal.set_switch(session, number, state))

    # -- what is moved ----------------------------------------------------------------------------

    def choose(self, method: Literal["auto", "replication", "sync"]) -> None:
        """By which way the last changes go, and why."""
        following = self.follow is not None and self.follow.ready
        turned = self.follow is not None and self.follow.way != self.way  # nothing may follow in this direction
        broken = self._broken() if following and (self.way == "back" or turned) else ""
        if self.unended is not None:
            self.method, self.why = self.unended.method, "an earlier attempt began so"
            return
        if method == "sync" and following:
            raise errors.Refused(
                f"{self.toward.label} follows {self.away.label}, which sync would disturb",
                hint="Leave --method out, or end the following first: `mishika-migrate complete`.",
            )
        if method == "replication" and not following:
            raise errors.Refused(
                f"{self.toward.label} does not follow {self.away.label}",
                hint="Begin with `mishika-migrate copy --follow`, or use --method sync.",
            )
        if broken and method == "auto":
            self.method, self.why = "sync", broken
            return
        self.method = "replication" if following else "sync"
        follows = f"{self.toward.label} follows {self.away.label}"
        self.why = "as asked for" if method != "auto" else follows if following else "nothing follows"

    def refuse_unfinished(self) -> None:
        """What is copied is not all there is, and nothing can be switched to it."""
        left = self.ask(ledger.unfinished) if self.ask(ledger.exists) else None
        if left is not None:
            raise errors.Refused(
                f"run {left.run} on {self.end('target').label} is unfinished, and traffic cannot go there yet",
                hint="Continue it: `mishika-migrate copy --resume`, or undo it: `mishika-migrate reset`.",
            )

    def _broken(self) -> str:
        """Why the old side will never have the new one's changes by replication; empty where it may."""
        slot, subscription = self.stream(self.way).state(self.sessions)
        if slot is not None and not slot.lost and subscription is not None:
            return ""
        return streams.trouble(self.away, self.toward, slot, subscription)

    @property
    def unended(self) -> model.Switch | None:
        """A switch of this way whose command may have run."""
        found = self.settled
        return found if found is not None and found.way == self.way and found.state == "switching" else None

    def read(self) -> None:
        """Catalogs of both sides, and what has been copied."""
        self.catalogs = verify.catalogs(self.rules, self.end("source"), self.end("target"), self.name)
        found = scopes.copied(self.end("target"))
        self._copied = scopes.in_use(found, *self.catalogs) if found else None

    @property
    def tables(self) -> tuple[str, ...]:
        if self.follow is not None:
            return self.follow.tables
        return self._copied.tables if self._copied else ()

    @property
    def known(self) -> frozenset[str]:
        """All tables that the source had when runs looked."""
        return self._copied.known if self._copied else frozenset()

    @property
    def wanted(self) -> selection.Wanted:
        return selection.Wanted(only=tuple(table for table in self.tables if table != self.rules.migrations))

    @property
    def span(self) -> history.Span | None:
        within = next(iter(self._copied.within.values()), None) if self._copied else None
        return history.span(within) if within else None

    def level(self, *, jobs: int, lock_timeout: float) -> tuple[levelling.Scene, syncing.Options]:
        """What one pass of sync would level, in the direction of the switch, and how; behind a fence of ours, too."""
        how = syncing.Options(
            jobs=jobs,
            overwrite=True,
            lock_timeout=lock_timeout,
            held=self.way == "forward",
            settings={fence.PASS: fence.WORD},
        )
        found, _ = syncing.prepare(self.rules, self.as_source, self.as_target, self.wanted, span=self.span, options=how)
        return found, how

    @property
    def sequences(self) -> tuple[model.SetSequence, ...]:
        """Of the tables that move, in the direction of the switch."""
        ours, theirs = self.catalogs
        names = {each.name for each in theirs.sequences if each.table in self.tables}
        return tuple(
            model.SetSequence(
                source=model.TableName(schema=self.away.schema, name=each.name),
                target=model.TableName(schema=self.toward.schema, name=each.name),
            )
            for each in ours.sequences
            if each.table in self.tables and each.name in names
        )

    def scope(self, *, since: datetime.datetime) -> scopes.Scope:
        """Everything, but of logs only what is not older."""
        within = {table: self._within(table, since, None) for table in self.tables if self.is_log(table)}
        return scopes.Scope(tables=self.tables, said="all that moves", within=within)

    def logs(self, *, since: datetime.datetime | None, before: datetime.datetime) -> scopes.Scope:
        """Logs alone, of that time."""
        tables = tuple(table for table in self.tables if self.is_log(table))
        within = {table: self._within(table, since, before) for table in tables}
        return scopes.Scope(tables=tables, said="history", within=within)

    def is_log(self, table: str) -> bool:
        """Rows that are never changed, and bear a time."""
        entry = self.rules.entry(table)
        if entry is None or not entry.insert_only or entry.time_column is None:
            return False
        places = [catalog.table(table) for catalog in self.catalogs]
        return all(place is not None and place.column(entry.time_column) is not None for place in places)

    def _within(self, table: str, since: datetime.datetime | None, before: datetime.datetime | None) -> model.Interval:
        entry = self.rules.entry(table)
        assert entry is not None
        assert entry.time_column is not None
        asked = self._copied.within.get(table) if self._copied else None
        low = since.isoformat(timespec="milliseconds") if since else None
        if asked is not None and asked.since is not None:
            low = max(low or "", asked.since)
        high = before.isoformat(timespec="milliseconds") if before else None
        return model.Interval(column=entry.time_column, since=low, before=high)

    def now(self) -> datetime.datetime:
        """UTC by the clock of the side that traffic leaves, without a zone."""
        with connect.translated(self.away):
            row = self.sessions[self.away.role].execute("SELECT clock_timestamp() AT TIME ZONE 'UTC'").fetchone()
        assert row is not None
        assert isinstance(row[0], datetime.datetime)
        return row[0]

    # -- time -------------------------------------------------------------------------------------

    @property
    def late(self) -> bool:
        return self._late.is_set()

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """From here on every session of the move ends what it does when the time is over."""
        assert self._timeout is not None
        self._timer = threading.Timer(self._timeout, self._end)
        self._timer.daemon = True
        self._timer.start()
        try:
            yield
        finally:
            self._timer.cancel()

    def _end(self) -> None:
        self._late.set()
        for end in (interrupt.cancel, interrupt.sever):
            # Those of a pass of sync are named by their run, which begins with a year.
            for name in (self.name, "mishika-migrate/2"):
                end(name)
            time.sleep(_GRACE_SECONDS)

    @contextlib.contextmanager
    def anew(self) -> Iterator[Move]:
        """The same in fresh sessions, because these may be what failed; these are closed."""
        if self._timer is not None:
            self._timer.cancel()
        former = (self.ledger.info.backend_pid, self.name) if not self.ledger.closed else None
        for session in {*self.sessions.values(), *self.returning.values(), self.ledger}:
            connect.close(session)
        with _opened(self.rules, self.servers, self.way, name=REPAIR, timeout=None, former=former) as fresh:
            yield fresh


def parted(sessions: Mapping[model.Role, connect.Session], settled: model.Switch | None) -> bool:
    """Whether a side that a switch was to leave takes writes again without the other one.

    By `rollback --lost target`; or a switch was given up in the moment between the ledger's last word and the
    operator's command, when the other server did not answer any more.
    """
    if fence.reopened(sessions["source"]):
        return True
    if settled is None or settled.state != "switching":
        return False
    return not fence.standing(sessions["source" if settled.way == "forward" else "target"])


def refuse_parted(move: Move) -> None:
    """Neither side has all that was written then, and no order of writes is right."""
    with connect.translated(move.away, "the fence"):
        found = parted(move.sessions, move.settled)
    if found:
        raise errors.Refused(
            f"{move.end('source').label} and {move.end('target').label} both accept writes, each without those of the"
            " other one, since one of them was opened alone",
            hint="Leave traffic where it is. `mishika-migrate complete` ends this move; then begin a new one.",
        )


@contextlib.contextmanager
def opened(
    rules: matrix.Matrix,
    servers: Servers,
    way: model.Way,
    *,
    method: Literal["auto", "replication", "sync"] = "auto",
    timeout: float | None = None,
) -> Iterator[Move]:
    """A move with the target's lock and everything read. `errors.Refused` where nothing was ever copied."""
    with _opened(rules, servers, way, name=NAME, timeout=timeout) as move:
        move.refuse_unfinished()
        if not move.run:
            raise errors.Refused(
                f"nothing has been copied to {move.end('target').label} yet",
                hint="Begin with `mishika-migrate copy --follow`, or with `mishika-migrate copy`.",
            )
        move.choose(method)
        move.read()
        with contextlib.ExitStack() as stack:
            move.returning = _sessions(stack, servers, NAME)
            yield move


@contextlib.contextmanager
def plain(rules: matrix.Matrix, servers: Servers, way: model.Way = "forward") -> Iterator[Move]:
    """A move with the target's lock, and nothing read but the ledger."""
    with _opened(rules, servers, way, name=REPAIR, timeout=None) as move:
        yield move


@contextlib.contextmanager
def _opened(
    rules: matrix.Matrix,
    servers: Servers,
    way: model.Way,
    *,
    name: str,
    timeout: float | None,
    former: tuple[int, str] | None = None,
) -> Iterator[Move]:
    target = servers["target"].end
    with contextlib.ExitStack() as stack:
        books = stack.enter_context(connect.session(target, name=f"{name}/watch", settings=WAITS))
        ledger.lock(books, target, former=former)
        if ledger.exists(books):
            ledger.create(books)
        yield Move(rules, servers, way, _sessions(stack, servers, name), books, name=name, timeout=timeout)


def _sessions(stack: contextlib.ExitStack, servers: Servers, name: str) -> Mapping[model.Role, connect.Session]:
    found: dict[model.Role, connect.Session] = {}
    for role, server in servers.items():
        session = connect.open(server.end, name=name, settings=WAITS)
        stack.callback(connect.close, session)
        found[role] = session
    return found
