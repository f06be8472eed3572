"""Sandbox servers: real ones, made and ended in temporary directories."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from mishika_migrate import errors
from mishika_migrate.sandbox import __main__ as command
from mishika_migrate.sandbox import accounts, servers

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    # Not tmp_path: another pytest session closes its parent to the server's user again.
    with tempfile.TemporaryDirectory(prefix="mishika-test-") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[servers.Server]:
    settings = {"work_mem": "3MB", "application_name": "it's a \\ test"}
    with servers.Server.create(place / "shared", binaries=servers.embedded(), settings=settings, tcp=True) as server:
        yield server


def ask(server: servers.Server, question: str) -> object:
    with psycopg.connect(server.url()) as connection:
        row = connection.execute(question.encode()).fetchone()
    return row and row[0]


def test_finds_each_installation_once_with_the_wheel_first() -> None:
    found = servers.find_binaries()
    assert found[0] == servers.embedded()
    assert len({binaries.path for binaries in found}) == len(found)
    assert all((binaries.path / "initdb").exists() and binaries.version >= 10 for binaries in found)


def test_missing_wheel_is_a_configuration_error_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(errors.ConfigurationError) as caught:
        servers.embedded()
    assert "mishika-migrate[demo]" in caught.value.hint


def test_settings_go_over_the_defaults(server: servers.Server) -> None:
    assert ask(server, "SHOW work_mem") == "3MB"
    assert ask(server, "SHOW wal_level") == "logical"
    assert ask(server, "SHOW application_name") == "it's a \\ test"
    assert ask(server, "SHOW server_encoding") == "UTF8"


def test_takes_connections_over_socket_and_port(server: servers.Server) -> None:
    assert server.socket.is_socket()
    with psycopg.connect(f"postgresql://postgres@127.0.0.1:{server.port}/postgres") as connection:
        assert connection.info.server_version // 10_000 == server.version


def test_url_quotes_the_name_of_the_database(server: servers.Server) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute('CREATE DATABASE "a b/c?d"')
    with psycopg.connect(server.url("a b/c?d")) as connection:
        assert connection.info.dbname == "a b/c?d"


def test_what_is_not_an_empty_directory_is_left_as_it_is(place: Path) -> None:
    (place / "full").mkdir(mode=0o755)
    letter = place / "full" / "letter"
    letter.write_text("dear")
    letter.chmod(0o644)
    for occupied in (letter.parent, letter):
        before = occupied.stat()
        with pytest.raises(errors.ConfigurationError, match="not an empty directory"):
            servers.Server.create(occupied, binaries=servers.embedded())
        assert occupied.stat() == before
    with pytest.raises(errors.ConfigurationError, match="cannot be used"):
        servers.Server.create(letter / "below", binaries=servers.embedded())
    assert letter.read_text() == "dear"


def test_life_of_a_server_in_a_deep_directory(place: Path) -> None:
    deep = place / ("d" * 100) / "data"
    server = servers.Server.create(deep, binaries=servers.embedded())
    with server:
        sockets = server.socket.parent
        assert sockets != deep
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
            server.kill()
            assert not server.running
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        server.start()
        assert ask(server, "SELECT one FROM kept") == 1
        server.restart("immediate")
        assert ask(server, "SELECT one FROM kept") == 1
    assert not server.running
    assert not sockets.exists()
    assert deep.exists()

    again = servers.Server.open(deep, binaries=servers.embedded())
    with again:
        assert ask(again, "SELECT one FROM kept") == 1
        seen = servers.Server.open(deep, binaries=servers.embedded())
        assert seen.running
        assert seen.url() == again.url()
        with pytest.raises(errors.ConfigurationError, match="without tcp"):
            _ = seen.port


def test_a_start_that_fails_quotes_the_log(place: Path) -> None:
    server = servers.Server.create(place / "wrong", binaries=servers.embedded(), settings={"max_connections": "many"})
    with pytest.raises(errors.ConfigurationError, match="max_connections"):
        server.start()
    assert not server.running


def test_open_refuses_what_is_no_sandbox(place: Path) -> None:
    with pytest.raises(errors.ConfigurationError, match="holds no server"):
        servers.Server.open(place, binaries=servers.embedded())


def test_a_server_ends_with_its_process_unless_it_is_kept(place: Path) -> None:
    script = (
        "import sys, pathlib; from mishika_migrate.sandbox import servers\n"
        "server = servers.Server.create(pathlib.Path(sys.argv[1]), binaries=servers.embedded())\n"
        "server.start(); assert server.running"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script, place / "ended"], check=True, cwd=root)
    assert not servers.Server.open(place / "ended", binaries=servers.embedded()).running

    serve = [sys.executable, "-m", "mishika_migrate.sandbox", "serve", str(place / "ended")]
    url = subprocess.run(serve, check=True, cwd=root, capture_output=True, text=True).stdout.strip()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert command.main(["stop", str(place / "ended")]) == 0
    assert not servers.Server.open(place / "ended", binaries=servers.embedded()).running


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as somebody else")
def test_root_changes_nothing_outside_the_temporary_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, vacant = place / "closed", place / "vacant"
    closed.mkdir(mode=0o700)
    vacant.mkdir(mode=0o755)
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/elsewhere")
    before = vacant.stat()

    with pytest.raises(errors.ConfigurationError) as caught:
        accounts.own(closed / "new" / "data", accounts.unprivileged())
    assert f"chmod o+x {closed}" in caught.value.hint
    assert closed.stat().st_mode & 0o777 == 0o700
    assert not list(closed.iterdir())

    with pytest.raises(errors.ConfigurationError, match="exists"):
        accounts.own(vacant, accounts.unprivileged())
    assert vacant.stat() == before
