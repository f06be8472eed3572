"""Sessions: how every connection is opened and set up, and how psycopg's errors become ours.

Imports the words only. Nothing else in the package catches a psycopg exception.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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

_open: weakref.WeakSet[Session] = weakref.WeakSet()
_open_guard = threading.Lock()


@contextmanager
def session(
    endpoint: model.Endpoint, *, name: str, answered: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[Session]:
    """An autocommit session that is set up alike on every server and closed afterwards.

    `name` becomes `application_name`. `answered` says that this endpoint has answered before in
    this run, which makes a failure to connect transient. Every psycopg error inside the block
    leaves it as one of ours, blamed on this endpoint.
    """
    connection = open(endpoint, name=name, answered=answered, settings=settings)
    try:
        with translated(endpoint):
            yield connection
    finally:
        connection.close()


def open(
    endpoint: model.Endpoint, *, name: str, answered: bool = False, settings: Mapping[str, str] | None = None
) -> Session:
    """Like `session`, for those who keep it; they close it and translate errors themselves."""
    try:
        connection: Session = psycopg.connect(
            conninfo.make_conninfo("", **_parameters(endpoint, name)), autocommit=True
        )
    except psycopg.Error as error:
        raise _no_session(endpoint, error, transient=answered) from None
    with _open_guard:
        _open.add(connection)
    with translated(endpoint):
        _set_up(connection, endpoint, settings or {})
    return connection


def _parameters(endpoint: model.Endpoint, name: str) -> dict[str, str | int]:
    wanted = conninfo.conninfo_to_dict(endpoint.conninfo)
    given = {key: value for key, value in wanted.items() if value is not None}
    return {**_KEEPALIVE, **given, "application_name": name[:63], "client_encoding": "UTF8"}


def _set_up(connection: Session, endpoint: model.Endpoint, settings: Mapping[str, str]) -> None:
    wanted = {**_SAME_TEXT, **settings}
    if endpoint.role == "target":
        wanted["default_transaction_read_only"] = "off"
    # idle_session_timeout is PG 14, transaction_timeout PG 17: a server's own limit would end a
    # quiet holder in the middle of a run.
    if connection.info.server_version >= 14_00_00:
        wanted["idle_session_timeout"] = "0"
    if connection.info.server_version >= 17_00_00:
        wanted["transaction_timeout"] = "0"
    calls = sql.SQL(", ").join(
        sql.SQL("set_config({}, {}, false)").format(sql.Literal(key), sql.Literal(value))
        for key, value in wanted.items()
    )
    connection.execute(sql.SQL("SELECT {}").format(calls))


def versions() -> str:
    """`psycopg 3.3.9, libpq 18.6`."""
    libpq = pq.version()
    return f"psycopg {psycopg.__version__}, libpq {libpq // 10000}.{libpq % 10000}"


def cancel_all() -> None:
    """Asks the servers to stop what any session of this process is waiting for."""
    with _open_guard:
        sessions = list(_open)
    for connection in sessions:
        if connection.closed or connection.pgconn.transaction_status != pq.TransactionStatus.ACTIVE:
            continue
        try:
            connection.cancel_safe(timeout=2)
        except psycopg.Error:
            pass  # it may have ended by itself; the worker reports what it saw


def end_leftovers(connection: Session, name: str) -> int:
    """Ends other sessions of this role named `name`: those of an attempt whose network died.

    Their transactions may still be open on the server and would hold the step's ledger row.
    """
    row = connection.execute(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE application_name = %s AND usename = current_user AND pid <> pg_backend_pid()",
        [name],
    ).fetchone()
    return int(str(row[0])) if row else 0


# -- errors ---------------------------------------------------------------------------------------


@contextmanager
def translated(endpoint: model.Endpoint) -> Iterator[None]:
    """Turns psycopg's errors into ours, with SQLSTATE and the endpoint's label."""
    try:
        yield
    except psycopg.Error as error:
        raise _translate(endpoint, error) from error


_TRANSIENT = re.compile("08...|57P0[1-3]|40001|40P01|55P03|53300")


def _translate(endpoint: model.Endpoint, error: psycopg.Error) -> errors.ServerError:
    state = error.sqlstate
    text = f"{endpoint.role} {endpoint.label}: {_sentence(error)}"
    if state is None:
        # A killed backend or a cut connection: libpq has no SQLSTATE to give.
        lost = isinstance(error, psycopg.OperationalError)
        return errors.ServerError(text, sqlstate=None, transient=lost, hint=_HINTS["lost"] if lost else "")
    if state == "42501":
        return errors.Denied(text, sqlstate=state, hint=_HINTS["denied"])
    if state == "53100":
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


_HINTS = {
    "lost": "See the server's log for why the session ended.",
    "denied": "Run `mishika-migrate plan`: it lists the GRANT for every missing privilege.",
    "space": "Free space on the server.",
    "25006": "The server or this database accepts no writes: connect to the primary.",
    "55P03": "Another session holds a lock on the table; see pg_locks.",
    "42P01": "Apply the proxy's schema there first, or use --create-schema on an empty target.",
}

_CONNECT_HINTS = (
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


def _no_session(endpoint: model.Endpoint, error: psycopg.Error, *, transient: bool) -> errors.Unreachable:
    text = _sentence(error)
    hint = next((hint for mark, hint in _CONNECT_HINTS if mark in text), "Check the URL.")
    return errors.Unreachable(
        f"cannot connect to {endpoint.role} {endpoint.label}: {text}",
        hint=hint.format(role=endpoint.role.upper()),
        transient=transient,
    )


def _sentence(error: psycopg.Error) -> str:
    """The message without libpq's preamble, on one line."""
    primary = error.diag.message_primary
    text = primary or str(error)
    text = re.sub(r"^.*?connection to server (at|on) .*? failed: ", "", text, count=1, flags=re.S)
    text = re.sub(r"^(connection failed: |FATAL: +|consuming input failed: )+", "", text.strip())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
