"""Sessions that see one state of each of two servers, for as many readers at once as are wanted.

Imports pg.connect, pg.interrupt and the words. Nothing is written through them.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from psycopg import sql

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, interrupt

_T = TypeVar("_T")

PATIENCE = {
    # A table that somebody holds for itself is an error with a name (55P03), not a silent wait.
    "lock_timeout": "30s",
}

ROLES: tuple[model.Role, model.Role] = ("source", "target")


class Both:
    """One session of each side, used by one caller at a time."""

    def __init__(
        self, sessions: Mapping[model.Role, connect.Session], ends: Mapping[model.Role, model.Endpoint], *, name: str
    ) -> None:
        self._ends, self._name = ends, name
        self.sessions = sessions

    def end(self, role: model.Role) -> model.Endpoint:
        return self._ends[role]

    def ask(self, question: Callable[[connect.Session, model.Role], _T], what: str) -> tuple[_T, _T]:
        """The answers of source and target, which work on them at the same time."""
        with ThreadPoolExecutor(2, thread_name_prefix="side") as pool:
            ours, theirs = (pool.submit(self.one, role, question, what) for role in ROLES)
            if any(each.exception() for each in wait((ours, theirs), return_when=FIRST_EXCEPTION).done):
                interrupt.cancel(self._name)  # the other side's answer is of no use any more
                raise cause((ours, theirs))
            return ours.result(), theirs.result()

    def one(self, role: model.Role, question: Callable[[connect.Session, model.Role], _T], what: str) -> _T:
        """The answer of one side; `what` names the object in its errors."""
        with connect.translated(self._ends[role], what):
            return question(self.sessions[role], role)


_CANCELED = "57014"


def cause(calls: Iterable[Future[Any]]) -> BaseException:
    """Why they failed, of which at least one has: what was cancelled because of another is not the reason."""
    failed = [error for call in calls if not call.cancelled() and (error := call.exception())]
    return min(failed, key=lambda error: isinstance(error, errors.ServerError) and error.sqlstate == _CANCELED)


def results(calls: Sequence[Future[_T]]) -> list[_T]:
    """What they return, in their order; the cause as soon as one fails, when the others should be ended."""
    if any(each.exception() for each in wait(calls, return_when=FIRST_EXCEPTION).done):
        raise cause(each for each in calls if each.done())
    return [each.result() for each in calls]


class Sides:
    """A snapshot of each side; `pair()` lends sessions that see it.

    With `snapshots` a side sees an exported snapshot of somebody else's. `states` tell what was seen,
    as `txid_current_snapshot()` does.
    """

    def __init__(
        self,
        source: model.Endpoint,
        target: model.Endpoint,
        *,
        name: str,
        snapshots: Mapping[model.Role, str] | None = None,
        stopping: Callable[[], bool] = connect.never,
    ) -> None:
        self._ends: Mapping[model.Role, model.Endpoint] = {"source": source, "target": target}
        self._name, self._stopping = name, stopping
        self._closing = ExitStack()
        self._free: queue.SimpleQueue[Both] = queue.SimpleQueue()
        given = snapshots or {}
        try:
            first = self._open(given)
            self.states, self._names = {}, {}
            for role, session in first.sessions.items():
                with connect.translated(self._ends[role]):
                    self.states[role], self._names[role] = _export(session)
            self.first = first
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Sides:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all sessions, in whatever state they are."""
        self._closing.close()

    @property
    def name(self) -> str:
        """That of its sessions."""
        return self._name

    @contextmanager
    def pair(self) -> Iterator[Both]:
        """A session of each side; callers are as many as there are jobs."""
        try:
            both = self._free.get_nowait()
        except queue.Empty:
            both = self._open(self._names)
        yield both
        self._free.put(both)  # not after an error: its transactions have failed

    def _open(self, snapshots: Mapping[model.Role, str]) -> Both:
        sessions: dict[model.Role, connect.Session] = {}
        for role in ROLES:
            end = self._ends[role]
            session = connect.open(end, name=self._name, stopping=self._stopping, settings=PATIENCE)
            self._closing.callback(connect.close, session)
            sessions[role] = session
            with connect.translated(end):
                session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            if role in snapshots:
                with connect.translated(end, f"snapshot {snapshots[role]}"):
                    session.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshots[role])))
        return Both(sessions, self._ends, name=self._name)


def _export(session: connect.Session) -> tuple[str, str]:
    row = session.execute("SELECT txid_current_snapshot()::text, pg_export_snapshot()").fetchone()
    assert row is not None
    return str(row[0]), str(row[1])
