"""Passwords, whole tokens and keys appear nowhere: not in output, `ps`, the ledger, session names or tracebacks."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from mishika_migrate.sandbox import servers
from tests.fix_faults import LOGS, Start, ask, blocked, locked, wait_until
from tests.fix_program import Ended, Run, environment
from tests.fix_servers import KEYS

PASSWORD = "hunter2%2Fgeheim"
PLAIN = "hunter2/geheim"
_SECRET = re.compile(r"\b[0-9a-f]{64}\b|\bsk-[A-Za-z0-9_-]{16,}|hunter2|geheim")


def clean(*texts: str) -> None:
    for text in texts:
        found = _SECRET.search(text)
        assert not found, text[max(found.start() - 100, 0) : found.end() + 100]


@pytest.fixture(scope="module")
def guarded() -> Iterator[servers.Server]:
    """A server that lets `mover` in over TCP with a password alone."""
    # Not pytest's own folder: another session closes its parent to the server's user again.
    with tempfile.TemporaryDirectory(prefix="mm-") as name:
        folder = Path(name)
        counting = {"shared_preload_libraries": "pg_stat_statements"}
        server = servers.Server.create(folder / "data", binaries=servers.embedded(), tcp=True, settings=counting)
        rules = folder / "data" / "pg_hba.conf"
        rules.write_text("host all mover 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
        with server:
            yield server


def address(server: servers.Server, database: str, password: str = PASSWORD) -> str:
    return f"postgresql://mover:{password}@127.0.0.1:{server.port}/{database}"


@pytest.fixture
def ends(guarded: servers.Server) -> dict[str, str]:
    """Source and target on that server, as variables with the password in them."""
    from mishika_migrate.sandbox import sample, schema

    with psycopg.connect(guarded.url(), autocommit=True) as session:
        for name in ("old", "new"):
            session.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
        session.execute("DROP ROLE IF EXISTS mover")
        session.execute(f"CREATE ROLE mover SUPERUSER LOGIN PASSWORD '{PLAIN}'".encode())
        for name in ("old", "new"):
            session.execute(f"CREATE DATABASE {name} OWNER mover".encode())
    schema.apply(guarded.url("old"))
    schema.create_views(guarded.url("old"))
    sample.fill(guarded.url("old"), keys=KEYS, logs=100, usage=10)
    return {
        "MISHIKA_MIGRATE_SOURCE": address(guarded, "old"),
        "MISHIKA_MIGRATE_TARGET": address(guarded, "new"),
    }


def test_nothing_secret_shows_while_and_after_a_copy(
    guarded: servers.Server, ends: dict[str, str], start: Start, run: Run
) -> None:
    target = guarded.url("new")
    from mishika_migrate.sandbox import schema

    schema.apply(target)
    clean(*texts(run("plan", env=ends)), *texts(run("plan", "--json", env=ends)))
    with locked(target, LOGS):
        program = start("copy", "--everything", "--yes", "--json", "-v", "--lock-timeout", "0", env=ends)
        wait_until(lambda: blocked(target))
        clean(*command_lines(program.process.pid), sessions(target), program.said())
        clean(*texts(run("status", env=ends)))
    done = program.ended()
    assert done.status == 0, done.err
    clean(*texts(done), ledger(target), *texts(run("status", env=ends)), *texts(run("status", "--json", env=ends)))
    clean(*texts(run("copy", "--yes", env=ends)), *texts(run("cleanup", "--yes", env=ends)))


def test_pg_dump_gets_no_password_in_its_arguments(guarded: servers.Server, ends: dict[str, str], start: Start) -> None:
    seen: set[str] = set()
    program = start("copy", "--create-schema", "--yes", env=ends)
    while program.running:
        seen.update(command_lines(program.process.pid))
    done = program.ended()
    assert done.status == 0, done.err
    assert any("pg_dump" in line for line in seen)
    clean(*seen, *texts(done), ledger(guarded.url("new")))


@pytest.mark.parametrize("database", ["old", "nope"])
def test_refused_password_is_not_repeated(
    database: str, guarded: servers.Server, ends: dict[str, str], run: Run
) -> None:
    wrong = address(guarded, database, PASSWORD + "x")
    done = run("status", "-v", "--json", env={"MISHIKA_MIGRATE_TARGET": wrong})
    assert done.status == 6
    assert "password authentication failed" in done.err
    clean(*texts(done))
    done = run("status", env={"MISHIKA_MIGRATE_TARGET": address(guarded, database, "")})
    assert done.status == 6
    assert "MISHIKA_MIGRATE_TARGET or ~/.pgpass" in done.err


def test_flag_with_a_password_draws_a_warning_without_it(
    guarded: servers.Server, ends: dict[str, str], run: Run
) -> None:
    done = run("status", "--target", ends["MISHIKA_MIGRATE_TARGET"])
    assert done.status == 0
    assert "--target carries a password" in done.err
    assert "MISHIKA_MIGRATE_TARGET" in done.err
    clean(*texts(done))


def test_server_keeps_no_password_of_a_subscription_where_the_role_may_say_so(
    guarded: servers.Server, ends: dict[str, str], run: Run
) -> None:
    from mishika_migrate.sandbox import schema

    target = guarded.url("new")
    schema.apply(target)
    ask(target, "CREATE EXTENSION pg_stat_statements")
    for name, value in (("log_statement", "ddl"), ("log_min_duration_statement", "0")):
        ask(target, f"ALTER DATABASE new SET {name} = '{value}'")
    ask(target, "SELECT pg_stat_statements_reset()")  # the role was made with its password
    before = len(guarded.log.read_text())
    nowhere = ends["MISHIKA_MIGRATE_SOURCE"].replace("127.0.0.1", "127.0.0.2")
    assert run("plan", "--follow", "--source-from-target", nowhere, env=ends).status == 4
    done = run("copy", "--follow", "--yes", env=ends)
    assert done.status == 0, done.err
    assert PLAIN in ask(target, "SELECT subconninfo FROM pg_subscription")
    kept = ask(target, "SELECT string_agg(query, '; ') FROM pg_stat_statements")
    log = guarded.log.read_text()[before:]
    assert "ALTER SUBSCRIPTION" in kept
    assert "ALTER SUBSCRIPTION" in log, "without a password the log is as it was"
    assert PLAIN not in kept + log
    clean(*texts(done))
    assert run("complete", "--yes", env=ends).status == 0


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@h@x/d",
        "postgresql://u:hunter2/geheim@h/d",
        "postgresql://u:hunter2#geheim@h/d",
        "host=h password=hunter2 geheim user=u",
        "host=h password='hunter2 user=u",
        "'postgresql://u:hunter2@h/d'",
        "mysql://u:hunter2@h/d",
        "postgresql://u:hunter2@h:geheim/d",
        "postgresql://u:hunter2@h/d?geheim=hunter2",
    ],
)
def test_address_that_cannot_be_read_is_not_repeated(url: str, run: Run) -> None:
    done = run("status", "--json", "-v", env={"MISHIKA_MIGRATE_TARGET": url})
    assert done.status == 2
    named = ("unknown connection parameter geheim", "Remove geheim")  # a name, not a value
    clean(*(text.replace(named[0], "").replace(named[1], "") for text in texts(done)))


def test_traceback_of_a_bug_shows_no_secret(ends: dict[str, str], run: Run, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import mishika_migrate.pg.ledger as l\ndef fail(session): raise ZeroDivisionError('no')\nl.missing = fail\n"
    )
    spoiled = {"PYTHONPATH": str(tmp_path) + ":" + environment().get("PYTHONPATH", "")}
    done = run("status", "-v", env={**ends, **spoiled})
    assert done.status == 1
    assert "Traceback" in done.err
    clean(*texts(done))


# -- where to look --------------------------------------------------------------------------------


def texts(done: Ended) -> tuple[str, str]:
    return done.out, done.err


def command_lines(pid: int) -> list[str]:
    """Of the program and all its children, as `ps` shows them."""
    found = []
    for process in (pid, *children(pid)):
        try:
            found.append(Path(f"/proc/{process}/cmdline").read_text().replace("\0", " "))
        except OSError:
            pass  # it has ended
    return found


def children(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return []


def sessions(url: str) -> str:
    return str(ask(url, "SELECT string_agg(application_name, '|') FROM pg_stat_activity"))


def ledger(url: str) -> str:
    runs = str(ask(url, "SELECT string_agg(r::text, '|') FROM mishika_migrate.run r"))
    return runs + str(ask(url, "SELECT string_agg(s::text, '|') FROM mishika_migrate.step s"))
