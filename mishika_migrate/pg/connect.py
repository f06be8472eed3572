"""Sessions: how every connection is opened and set up, and how psycopg's errors become ours.

Imports the words only. Nothing else in the package catches a psycopg exception.
"""

from __future__ import annotations

import concurrent.futures
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import conninfo, pq, sql

from mishika_migrate import errors, model

Session = psycopg.Connection[tuple[object, ...]]

# What makes rows look the same from every server. row_security=off turns rows that a policy
# would silently hide into an error (42501).
_SAME_TEXT: Mapping[str, str] = {
    "client_encoding": "UTF8",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "row_security": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "search_path": "",
    # A database may read backslashes, quote names in definitions and print money otherwise than another one.
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",
    "lc_monetary": "C",
}

# Seconds of silence after which a dead peer is noticed: 30 + 3 × 10.
_KEEPALIVE: Mapping[str, str | int] = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}

# The same on the server's side: its own defaults notice a dead client after two hours, and while it
# waits for a lock not at all. Systems without these options refuse or log them.
_LIVELINESS: Mapping[str, str] = {
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "60000",
    "client_connection_check_interval": "2000",
}

_POLL_SECONDS = 0.1


class Stopped(Exception):
    """The caller's `stopping` said so; nothing of what was open remains."""


def never() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What is known of a session of this process: its name, when it was opened, and by which thread."""

    name: str
    at: float
    thread: threading.Thread


# The guard is held while one is closed, so that no other thread asks libpq about a session that it frees meanwhile.
_sessions: weakref.WeakKeyDictionary[Session, Opened] = weakref.WeakKeyDictionary()
_guard = threading.Lock()


@contextmanager
def opened() -> Iterator[Mapping[Session, Opened]]:
    """The open sessions of this process; none of them is closed, and none comes, while the block lasts."""
    with _guard:
        yield _sessions


@contextmanager
def session(
    endpoint: model.Endpoint,
    *,
    name: str,
    answered: bool = False,
    settings: Mapping[str, str] | None = None,
    stopping: Callable[[], bool] = never,
    replication: bool = False,
) -> Iterator[Session]:
    """An autocommit session that is set up alike on every server and closed afterwards.

    `name` becomes `application_name`. `answered` says that this endpoint has answered before in
    this run, which makes a failure to connect transient. With `replication` it takes the commands
    of the replication protocol, too. Every psycopg error inside the block
    leaves it as one of ours, blamed on this endpoint.
    """
    connection = open(
        endpoint, name=name, answered=answered, settings=settings, stopping=stopping, replication=replication
    )
    try:
        with translated(endpoint):
            yield connection
    finally:
        close(connection)


def open(
    endpoint: model.Endpoint,
    *,
    name: str,
    answered: bool = False,
    settings: Mapping[str, str] | None = None,
    stopping: Callable[[], bool] = never,
    replication: bool = False,
) -> Session:
    """Like `session`, for those who keep it; they close it and translate errors themselves."""
    connection = _dial(endpoint, name, answered=answered, stopping=stopping, replication=replication)
    with _guard:
        _sessions[connection] = Opened(name=name, at=time.monotonic(), thread=threading.current_thread())
    try:
        with translated(endpoint):
            _set_up(connection, endpoint, settings or {})
    except BaseException:
        close(connection)
        raise
    return connection


def close(connection: Session) -> None:
    """Ends it, whatever state it is in; the server rolls back what it had open."""
    with _guard:
        _sessions.pop(connection, None)
        connection.close()


def _dial(
    endpoint: model.Endpoint, name: str, *, answered: bool, stopping: Callable[[], bool], replication: bool
) -> Session:
    """In a thread of its own: nothing else can leave libpq's waits (name service, timeouts) early."""
    call: concurrent.futures.Future[Session] = concurrent.futures.Future()
    more = {"replication": "database"} if replication else {}
    text = conninfo.make_conninfo("", **_parameters(endpoint, name), **more)

    def dial() -> None:
        try:
            connection: Session = psycopg.connect(text, autocommit=True)
        except BaseException as error:
            if call.set_running_or_notify_cancel():
                call.set_exception(error)
            return
        if call.set_running_or_notify_cancel():
            call.set_result(connection)
        else:
            connection.close()

    threading.Thread(target=dial, daemon=True, name="dial").start()
    while not concurrent.futures.wait([call], timeout=_POLL_SECONDS).done:
        if stopping() and call.cancel():
            raise Stopped
    try:
        return call.result()
    except psycopg.Error as error:
        raise _no_session(endpoint, error, answered=answered) from None


def _parameters(endpoint: model.Endpoint, name: str) -> dict[str, str | int]:
    wanted = conninfo.conninfo_to_dict(endpoint.conninfo)
    given = {key: value for key, value in wanted.items() if value is not None}
    return {**_KEEPALIVE, **given, "application_name": name[:63], "client_encoding": "UTF8"}


def _set_up(connection: Session, endpoint: model.Endpoint, settings: Mapping[str, str]) -> None:
    wanted = {**_SAME_TEXT, **settings}
    alive = dict(_LIVELINESS)
    if endpoint.role == "target":
        wanted["default_transaction_read_only"] = "off"
    else:
        # It also counts while a reader takes nothing [tried on Linux 6]: a paused copy would be cut off after it.
        alive["tcp_user_timeout"] = "0"
    # idle_session_timeout is PG 14, transaction_timeout PG 17: a server's own limit would end a
    # quiet holder in the middle of a run.
    if connection.info.server_version >= 14_00_00:
        wanted["idle_session_timeout"] = "0"
    else:
        del alive["client_connection_check_interval"]
    if connection.info.server_version >= 17_00_00:
        wanted["transaction_timeout"] = "0"
    calls = [
        sql.SQL("set_config({}, {}, false)").format(sql.Literal(key), sql.Literal(value))
        for key, value in wanted.items()
    ]
    calls += [
        sql.SQL("set_config({0}, CASE WHEN version() ~ 'linux' THEN {1} ELSE current_setting({0}) END, false)").format(
            sql.Literal(key), sql.Literal(value)
        )
        for key, value in alive.items()
    ]
    connection.execute(sql.SQL("SELECT {}").format(sql.SQL(", ").join(calls)))


@contextmanager
def transaction(connection: Session) -> Iterator[None]:
    """Commits at the end of the block, rolls back when it raises.

    psycopg's own logs a warning when the session is lost in it, and takes the ROLLBACK with which
    a server answers the COMMIT of a failed transaction for success.
    """
    connection.execute("BEGIN")
    try:
        yield
    except BaseException:
        try:
            connection.execute("ROLLBACK")
        except psycopg.Error:
            pass  # the session is lost, and with it the transaction
        raise
    if connection.execute("COMMIT").statusmessage != "COMMIT":
        raise errors.Error("the server rolled back instead of committing")


def versions() -> str:
    """`psycopg 3.3.9, libpq 18.6`."""
    libpq = pq.version()
    return f"psycopg {psycopg.__version__}, libpq {libpq // 10000}.{libpq % 10000}"


# -- errors ---------------------------------------------------------------------------------------


@contextmanager
def translated(endpoint: model.Endpoint, what: str = "") -> Iterator[None]:
    """Turns psycopg's errors into ours, with SQLSTATE and the endpoint's label.

    `what` names the object for messages that do not, as that of a lock timeout.
    """
    try:
        yield
    except psycopg.Error as error:
        raise _translate(endpoint, error, what) from error


# A quota or a limit on the size of files has no SQLSTATE of its own (XX000).
_FULL = re.compile("No space left on device|Disk quota exceeded|File too large")
_TRANSIENT = re.compile("08...|57P0[1-3]|40001|40P01|55P03|53300")


def _translate(endpoint: model.Endpoint, error: psycopg.Error, what: str) -> errors.ServerError:
    state = error.sqlstate
    text = f"{endpoint.role} {endpoint.label}{what and f', {what}'}: {_sentence(error)}"
    if state is None:
        # A killed backend or a cut connection: libpq has no SQLSTATE to give.
        lost = isinstance(error, psycopg.OperationalError)
        return errors.ServerError(text, sqlstate=None, transient=lost, hint=_HINTS["lost"] if lost else "")
    if state == "42501":
        return errors.Denied(text, sqlstate=state, hint=_HINTS["denied"])
    if state == "53100" or _FULL.search(text):
        return errors.OutOfSpace(text, sqlstate=state, hint=_HINTS["space"])
    if _snapshot_is_gone(state, error):
        return errors.SnapshotLost(text, sqlstate=state)
    return errors.ServerError(
        text, sqlstate=state, transient=bool(_TRANSIENT.fullmatch(state)), hint=_HINTS.get(state, "")
    )


def _snapshot_is_gone(state: str, error: psycopg.Error) -> bool:
    # 22023 'invalid snapshot identifier' up to 17, 42704 'snapshot "…" does not exist' in 18;
    # 55000 when the exporting process is gone while its file is still there.
    return state in ("22023", "42704", "55000") and "snapshot" in str(error)


DENIED = "Run `mishika-migrate plan`: it lists the GRANT for every missing privilege."
"""The hint of `errors.Denied`, for those who know a better one."""

_HINTS = {
    "lost": "See the server's log for why the session ended.",
    "denied": DENIED,
    "space": "Free space on the server.",
    "25006": "The server or this database accepts no writes: connect to the primary.",
    "55P03": "Another session holds a lock on the table; see pg_locks.",
    "42P01": "Apply the proxy's schema there first, or use --create-schema on an empty target.",
}

_CONNECT_HINTS = (
    *(
        (
            words,
            "Lower --jobs (a copy opens two more than that, cutover and rollback four), or raise the connection limit"
            " that the message names.",
        )
        for words in ("too many clients", "too many connections", "connection slots are reserved")
    ),
    (
        "password",
        "Check user and password; MISHIKA_MIGRATE_{role} or ~/.pgpass keep it off the command line.",
    ),
    ("no pg_hba.conf entry", "The server's pg_hba.conf does not let this user in from here."),
    ("could not translate host name", "Check the host name."),
    ("Name or service not known", "Check the host name."),
    ("Connection refused", "Check host and port, and that the server is running."),
    (
        "No such file or directory",
        "No server listens on that socket; check host, port and that it is running.",
    ),
    ("timeout expired", "Check host, port and firewall; connect_timeout=SECONDS in the URL waits longer."),
    ("does not exist", "Check the name in the URL."),
    ("SSL", "Check sslmode and sslrootcert in the URL."),
    ("unsupported startup parameter", "This looks like a connection pooler; use the server's direct URL."),
)


# What waiting does not mend, even when the endpoint has answered before.
_FOR_GOOD = re.compile("authentication failed|no pg_hba.conf entry|is not permitted to log in|does not exist")


def _no_session(endpoint: model.Endpoint, error: psycopg.Error, *, answered: bool) -> errors.Unreachable:
    text = _sentence(error)
    hint = _blamed(endpoint, text) or next((hint for mark, hint in _CONNECT_HINTS if mark in text), "Check the URL.")
    return errors.Unreachable(
        f"cannot connect to {endpoint.role} {endpoint.label}: {text}",
        hint=hint.format(role=endpoint.role.upper()),
        transient=answered and not _FOR_GOOD.search(text),
    )


_MISTAKE = re.compile("invalid (?!response)|unrecognized |definition of service ")
_OPTIONS = re.compile("configuration parameter|command-line argument|value for parameter")
# Variables of libpq that are no connection parameter, and the server's name for each.
_SERVER_SIDE = {"PGTZ": '"TimeZone"', "PGDATESTYLE": '"DateStyle"'}


def _blamed(endpoint: model.Endpoint, text: str) -> str:
    """What holds the value that libpq or the server cannot use; empty where the message is about something else."""
    if not _MISTAKE.match(text):
        return ""
    given = conninfo.conninfo_to_dict(endpoint.conninfo)
    for option in pq.Conninfo.get_defaults():
        keyword, variable = option.keyword.decode(), (option.envvar or b"").decode()
        if re.search(rf"\b{keyword}\b", text) or (keyword == "options" and _OPTIONS.match(text.partition(" ")[2])):
            if given.get(keyword) is not None:
                return f"Check {keyword} in the URL."
            if os.environ.get(variable):
                return f"Check the environment variable {variable}."
    variables = [variable for variable, name in _SERVER_SIDE.items() if name in text and os.environ.get(variable)]
    return f"Check the environment variable {variables[0]}." if variables else ""


def _sentence(error: psycopg.Error) -> str:
    """The message without libpq's preamble, on one line."""
    primary = error.diag.message_primary
    text = primary or str(error)
    text = re.sub(r"^.*?connection to server (at|on) .*? failed: ", "", text, count=1, flags=re.S)
    text = re.sub(r"^(connection failed: |connection is bad: |FATAL: +|consuming input failed: )+", "", text.strip())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
