"""Ends what sessions are at: those of this process, by asking and then by force, and those that a dead one has left.

Imports connect and the words. A session is known by the beginning of its name (`application_name`).
"""

from __future__ import annotations

import contextlib
import functools
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import capabilities, pq

from mishika_migrate.pg import connect

_POLL_SECONDS = 0.1
_CANCEL_SECONDS = 5.0


def _all(_: connect.Opened) -> bool:
    return True


def cancel(prefix: str, which: Callable[[connect.Opened], bool] = _all) -> None:
    """Asks the servers to stop what sessions with such names wait for; returns at once."""
    calls = []
    with connect.opened() as sessions:
        for connection, opened in sessions.items():
            ours = opened.name.startswith(prefix) and which(opened)
            if ours and connection.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                with contextlib.suppress(psycopg.Error):  # it ends just now
                    calls.append(_canceller(connection))
    for call in calls:
        # Each needs a connection of its own, which on a dead network takes its time.
        threading.Thread(target=_quietly, args=(call,), daemon=True, name="cancel").start()


def _quietly(call: Callable[[], None]) -> None:
    """The session may have ended by itself; its worker reports what it saw."""
    with contextlib.suppress(psycopg.Error):
        call()


def _canceller(connection: connect.Session) -> Callable[[], None]:
    if capabilities.has_cancel_safe():
        return functools.partial(_cancel, connection.pgconn.cancel_conn())
    return connection.pgconn.get_cancel().cancel


def _cancel(request: pq.abc.PGcancelConn) -> None:
    """Polls: the blocking call of psycopg 3.3 keeps the interpreter's lock while a dead network times out."""
    request.start()
    while (wanted := request.poll()) != pq.PollingStatus.OK:
        if wanted == pq.PollingStatus.FAILED:
            return
        with selectors.DefaultSelector() as selector:
            reading = wanted == pq.PollingStatus.READING
            selector.register(request.socket, selectors.EVENT_READ if reading else selectors.EVENT_WRITE)
            if not selector.select(_CANCEL_SECONDS):
                return


def sever(prefix: str, which: Callable[[connect.Opened], bool] = _all) -> None:
    """Cuts sessions with such names off: whoever waits in one gets an error now.

    For those whom `cancel` does not reach, because the network lets nothing through.
    """
    with connect.opened() as sessions:
        for connection, opened in sessions.items():
            if opened.name.startswith(prefix) and which(opened):
                with contextlib.suppress(psycopg.Error, OSError):  # it ends just now, or the other end was faster
                    _cut(connection.pgconn.socket)


def _cut(number: int) -> None:
    end = socket.socket(fileno=number)
    try:
        end.shutdown(socket.SHUT_RDWR)
    finally:
        end.detach()


@contextmanager
def given_up(prefix: str) -> Iterator[Callable[[], bool]]:
    """When the block fails, whatever sessions with such names wait for ends, by asking and then by force.

    Yields what says so, for those who dial. To be used inside of what waits for the threads that use the sessions.
    """
    over = threading.Event()
    try:
        yield over.is_set
    except BaseException:
        over.set()
        # Who comes after this block may have sessions of the same name: they are of later threads, or of this one.
        now, others = time.monotonic(), {*threading.enumerate()} - {threading.current_thread()}

        def of_this(opened: connect.Opened) -> bool:
            return opened.at < now or opened.thread in others

        threading.Thread(target=_give_up, args=(prefix, of_this), daemon=True, name="give up").start()
        raise


_GRACE_SECONDS = 0.75
_GIVE_UP_SECONDS = 30.0


def _give_up(prefix: str, which: Callable[[connect.Opened], bool]) -> None:
    began = time.monotonic()
    while (seconds := time.monotonic() - began) < _GIVE_UP_SECONDS:
        with connect.opened() as sessions:
            if not any(opened.name.startswith(prefix) and which(opened) for opened in sessions.values()):
                return
        if seconds < _GRACE_SECONDS:
            cancel(prefix, which)
        else:
            sever(prefix, which)
        time.sleep(_POLL_SECONDS)


_LEFTOVERS = """
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND starts_with(application_name, %(prefix)s)
  AND application_name LIKE 'mishika-migrate/%%/%%' AND pg_has_role(usesysid, 'USAGE')
  AND coalesce(pid = %(pid)s, application_name NOT LIKE '%%/watch')
"""


def end_leftovers(connection: connect.Session, prefix: str, *, pid: int | None = None, seconds: float = 5.0) -> int:
    """Ends other sessions of runs in this database: those of a process or an attempt that is gone.

    Their transactions may still be open on the server, and would hold the locks and the ledger
    entries of those who come after. Without `pid`, watches are spared: one that does not hold the
    target's lock is about to be refused. Waits until they are gone, `seconds` at most.
    """
    wanted = {"prefix": prefix, "pid": pid}
    row = connection.execute(f"SELECT count(pg_terminate_backend(pid)) {_LEFTOVERS}", wanted).fetchone()
    ended = int(str(row[0])) if row else 0
    polls = int(seconds / 0.05) if ended else 0
    for _ in range(polls):
        row = connection.execute(f"SELECT count(*), pg_sleep(0.05) {_LEFTOVERS}", wanted).fetchone()
        if row is None or row[0] == 0:
            break
    return ended


def cancel_leftovers(connection: connect.Session, prefix: str, *, seconds: float) -> None:
    """Asks other sessions of runs to give up what they are at; waits until they are gone, `seconds` at most."""
    wanted = {"prefix": prefix, "pid": None}
    connection.execute(f"SELECT count(pg_cancel_backend(pid)) {_LEFTOVERS}", wanted)
    for _ in range(int(seconds / 0.05)):
        row = connection.execute(f"SELECT count(*), pg_sleep(0.05) {_LEFTOVERS}", wanted).fetchone()
        if row is None or row[0] == 0:
            break
