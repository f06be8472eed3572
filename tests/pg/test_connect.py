"""Sessions alike on every server, and errors in our words."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from mishika_migrate import errors, model
from mishika_migrate.pg import connect
from tests.fix_faults import ask, backends
from tests.fix_servers import Clone, Pair, endpoint


@pytest.fixture
def url(pair: Pair, clone: Clone) -> str:
    return clone(pair.new, "template0")


@pytest.fixture
def target(url: str) -> model.Endpoint:
    return endpoint(url, "target")


def shown(session: connect.Session, setting: str) -> str:
    row = session.execute("SELECT current_setting(%s)", [setting]).fetchone()
    assert row is not None
    return str(row[0])


SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "row_security": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "search_path": "",
    "client_encoding": "UTF8",
}
CONTRARY = {
    "TimeZone": "Asia/Kathmandu",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "iso_8601",
    "extra_float_digits": "-3",
    "bytea_output": "escape",
    "statement_timeout": "1h",
    "idle_in_transaction_session_timeout": "1h",
    "idle_session_timeout": "1h",
    "search_path": "somewhere",
    "client_encoding": "LATIN1",
    "default_transaction_read_only": "on",
}


def test_session_is_set_up_alike_whatever_the_database_says(url: str, target: model.Endpoint) -> None:
    database = ask(url, "SELECT current_database()")
    for setting, value in CONTRARY.items():
        ask(url, f"ALTER DATABASE \"{database}\" SET {setting} = '{value}'")
    with connect.session(target, name="a name", settings={"lock_timeout": "123ms"}) as session:
        assert {setting: shown(session, setting).strip('"') for setting in SETTINGS} == SETTINGS
        assert shown(session, "lock_timeout") == "123ms"
        assert shown(session, "application_name") == "a name"
        assert shown(session, "idle_session_timeout") == "0"
        assert shown(session, "client_connection_check_interval") == "2s"
        session.execute("CREATE TABLE public.written ()")
    assert backends(url, "a name") == 0


@pytest.mark.parametrize("old", [False, True])
def test_source_is_not_made_writable(old: bool, pair: Pair, clone: Clone) -> None:
    url = clone(pair.old if old else pair.new, "template0")
    ask(url, f'ALTER DATABASE "{ask(url, "SELECT current_database()")}" SET default_transaction_read_only = on')
    with connect.session(endpoint(url, "source"), name="test") as session:
        assert shown(session, "default_transaction_read_only") == "on"


# -- transactions ---------------------------------------------------------------------------------


def test_transaction_commits_or_leaves_nothing(url: str, target: model.Endpoint) -> None:
    with connect.session(target, name="test") as session:
        with connect.transaction(session):
            session.execute("CREATE TABLE public.a ()")
        with pytest.raises(ZeroDivisionError), connect.transaction(session):
            session.execute("CREATE TABLE public.b ()")
            raise ZeroDivisionError
        with pytest.raises(errors.Error, match="rolled back instead"), connect.transaction(session):
            session.execute("CREATE TABLE public.c ()")
            with pytest.raises(psycopg.errors.DivisionByZero):
                session.execute("SELECT 1 / 0")
        assert session.execute("SELECT count(*) FROM pg_class WHERE relname IN ('b', 'c')").fetchone() == (0,)


def test_transaction_of_a_lost_session_raises_what_happened_in_it(
    url: str, target: model.Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pytest.raises(errors.ServerError) as raised,
        connect.session(target, name="mishika-migrate/x/y") as session,
        connect.transaction(session),
    ):
        ask(url, f"SELECT pg_terminate_backend({session.info.backend_pid})")
        session.execute("SELECT 1")
    assert raised.value.transient
    assert caplog.records == []


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind", "transient"),
    [
        ("08006", errors.ServerError, True),
        ("40001", errors.ServerError, True),
        ("40P01", errors.ServerError, True),
        ("42501", errors.Denied, False),
        ("42P01", errors.ServerError, False),
        ("53100", errors.OutOfSpace, False),
        ("53300", errors.ServerError, True),
        ("55P03", errors.ServerError, True),
        ("57014", errors.ServerError, False),
        ("57P01", errors.ServerError, True),
        ("57P03", errors.ServerError, True),
        ("23505", errors.ServerError, False),
    ],
)
def test_sqlstate_decides_what_an_error_is(
    code: str, kind: type[errors.ServerError], transient: bool, target: model.Endpoint
) -> None:
    raising = f"DO $$ BEGIN RAISE EXCEPTION 'it happened' USING ERRCODE = '{code}'; END $$"
    with pytest.raises(errors.ServerError) as raised, connect.session(target, name="test") as session:
        session.execute(raising)  # type: ignore[call-overload,unused-ignore]
    error = raised.value
    assert (type(error), error.sqlstate, error.transient) == (kind, code, transient)
    assert str(error) == f"target {target.label}: it happened"


def test_what_names_the_object(target: model.Endpoint) -> None:
    with (
        pytest.raises(errors.ServerError, match=r"^target .*, table t: division by zero$"),
        connect.session(target, name="test") as session,
        connect.translated(target, "table t"),
    ):
        session.execute("SELECT 1 / 0")


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (("postgres@", "nobody@"), 'role "nobody" does not exist', "Check the name in the URL."),
        (("?host=", "?host=/nowhere/"), "No such file or directory", "No server listens on that socket"),
        (("/t", "/gone_t"), "does not exist", "Check the name in the URL."),
    ],
)
def test_session_that_cannot_be_had_says_why(change: tuple[str, str], message: str, hint: str, url: str) -> None:
    with pytest.raises(errors.Unreachable) as raised:
        connect.open(endpoint(url.replace(*change, 1), "target"), name="test", answered=True)
    assert message in raised.value.message
    assert hint in raised.value.hint
    assert raised.value.transient == ("No such file" in message)
    assert raised.value.status == 6


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("PGSSLMODE", "bogus", 'invalid sslmode value: "bogus"'),
        ("PGSERVICE", "bogus", 'definition of service "bogus" not found'),
        ("PGPORT", "bogus", 'invalid integer value "bogus" for connection option "port"'),
        ("PGTZ", "bogus", 'invalid value for parameter "TimeZone": "bogus"'),
        ("PGDATESTYLE", "bogus", 'invalid value for parameter "DateStyle": "bogus"'),
        ("PGOPTIONS", "-c bogus=1", 'unrecognized configuration parameter "bogus"'),
        ("PGOPTIONS", "bogus", "invalid command-line argument for server process: bogus"),
    ],
)
def test_hint_names_the_variable_that_holds_the_mistake(
    variable: str, value: str, words: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(errors.Unreachable) as raised:
        connect.open(endpoint(url, "target"), name="test")
    assert raised.value.message.endswith(f": {words}")
    assert raised.value.hint == f"Check the environment variable {variable}."


def test_hint_names_the_parameter_of_the_url_that_holds_the_mistake(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=64MB")
    with pytest.raises(errors.Unreachable) as raised:
        connect.open(endpoint(f"{url}&options=-c%20bogus%3D1", "target"), name="test")
    assert raised.value.hint == "Check options in the URL."


def test_too_many_connections_are_no_mistake_of_the_url(url: str) -> None:
    with connect.session(endpoint(url, "target"), name="test") as session:
        session.execute("DROP ROLE IF EXISTS crowd")
        session.execute("CREATE ROLE crowd LOGIN CONNECTION LIMIT 0")
        try:
            with pytest.raises(errors.Unreachable, match='too many connections for role "crowd"') as raised:
                connect.open(endpoint(url.replace("postgres@", "crowd@", 1), "target"), name="test", answered=True)
        finally:
            session.execute("DROP ROLE crowd")
    assert "Lower --jobs" in raised.value.hint
    assert raised.value.transient


def test_refused_connection_is_worth_another_try_once_the_endpoint_has_answered() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    nobody = endpoint(f"postgresql://postgres:secret@127.0.0.1:{port}/x", "target")
    for answered in (False, True):
        with pytest.raises(errors.Unreachable, match="Connection refused") as raised:
            connect.open(nobody, name="test", answered=answered)
        assert raised.value.transient == answered
        assert "secret" not in f"{raised.value!r} {raised.value.message} {raised.value.__context__!r}"


@pytest.fixture
def mute() -> Iterator[model.Endpoint]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield endpoint(f"postgresql://postgres@127.0.0.1:{listener.getsockname()[1]}/x", "target")


def test_stop_leaves_a_connection_attempt_at_once(mute: model.Endpoint) -> None:
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    with pytest.raises(connect.Stopped):
        connect.open(mute, name="test", stopping=stop.is_set)
    assert time.monotonic() - began < 1
