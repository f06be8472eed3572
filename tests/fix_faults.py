"""What goes wrong, at a moment of the test's choosing: held locks, killed programs, ended backends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.fix_program import Ended, command, environment
from tests.fix_servers import Clone, Pair

LOGS = "MishikaLLM_SpendLogs"


def wait_until(condition: Callable[[], object], *, seconds: float = 30.0) -> None:
    """Returns when it holds; fails with its text when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds:.0f} s: {condition}"
        time.sleep(0.01)


class Program:
    """The program while it runs."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], env: Mapping[str, str] | None) -> None:
        self._out, self._err = folder / "out", folder / "err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command(*arguments),
                env=environment(env),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def kill(self) -> None:
        """As the kernel does it when memory runs out."""
        self.process.kill()
        self.process.wait(timeout=30)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def ended(self, *, seconds: float = 90.0) -> Ended:
        status = self.process.wait(timeout=seconds)
        return Ended(status=status, out=self._out.read_text(), err=self._err.read_text())

    def said(self) -> str:
        return self._out.read_text() + self._err.read_text()


Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start("copy", …)` returns at once; what still runs after the test is killed."""
    made: list[Program] = []

    def call(*arguments: str, env: Mapping[str, str] | None = None) -> Program:
        folder = tmp_path / f"program{len(made)}"
        folder.mkdir()
        made.append(Program(folder, arguments, env))
        return made[-1]

    yield call
    for program in made:
        if program.running:
            program.kill()


_MEASURE = """
import os, sys
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
open(sys.argv[1], "w").write(str(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measured(folder: Path, *arguments: str) -> tuple[Ended, int]:
    """The program's run and the most memory that it had at once, in bytes.

    By a small process in between: the kernel counts what a program's parent had when it started it.
    """
    report = folder / "peak"
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(report), *command(*arguments)],
        env=environment(),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Ended(status=done.returncode, out=done.stdout, err=done.stderr), int(report.read_text())


# -- on a server ----------------------------------------------------------------------------------


def ask(url: str, query: str, values: Mapping[str, object] | None = None) -> Any:
    """The first value of the first row, None without one."""
    with psycopg.connect(url, autocommit=True) as session:
        cursor = session.execute(query.encode(), values)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


@contextmanager
def locked(url: str, table: str, mode: str = "SHARE") -> Iterator[psycopg.Connection[Any]]:
    """Holds the table's lock. SHARE lets readers pass and nobody write."""
    with closing(psycopg.connect(url)) as session:
        session.execute(sql.SQL("LOCK TABLE {} IN {} MODE").format(sql.Identifier(table), sql.SQL(mode)))
        yield session


@contextmanager
def waiting_for(url: str, table: str, mode: str = "SHARE") -> Iterator[psycopg.Connection[Any]]:
    """Is in the queue for the table's lock, behind who has it now; `granted` tells when it has come."""
    with closing(psycopg.connect(url, autocommit=True)) as session:
        pid = session.info.backend_pid
        session.pgconn.send_query(f"BEGIN; LOCK TABLE {table} IN {mode} MODE".encode())
        waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = %(pid)s AND NOT granted)"
        wait_until(lambda: ask(url, waiting, {"pid": pid}))
        yield session


def granted(waiting: psycopg.Connection[Any]) -> bool:
    waiting.pgconn.consume_input()
    return not waiting.pgconn.is_busy()


_OURS = (
    "FROM pg_stat_activity WHERE application_name LIKE %(name)s AND pid <> pg_backend_pid()"
    " AND datname = current_database()"
)
STEP, WATCH, HOLDER = "mishika-migrate/%/step/%", "mishika-migrate/%/watch", "mishika-migrate/%/snapshot"


def backends(url: str, name: str = "mishika-migrate/%") -> int:
    """How many sessions of the program the database has."""
    return int(ask(url, f"SELECT count(*) {_OURS}", {"name": name}))


def blocked(url: str, count: int = 1) -> bool:
    """Whether at least `count` steps wait for a lock."""
    return int(ask(url, f"SELECT count(*) {_OURS} AND wait_event_type = 'Lock'", {"name": STEP})) >= count


def terminate(url: str, name: str) -> int:
    """Ends the program's sessions of that name; how many there were."""
    return int(ask(url, f"SELECT count(pg_terminate_backend(pid)) {_OURS}", {"name": name}))


def state(url: str) -> str | None:
    """Of the latest run in the ledger, None without a ledger."""
    if not ask(url, "SELECT to_regclass('mishika_migrate.run') IS NOT NULL"):
        return None
    found = ask(url, "SELECT state FROM mishika_migrate.run ORDER BY started DESC LIMIT 1")
    return None if found is None else str(found)


def landed(url: str, table: str) -> bool:
    """Whether the ledger holds that table's step."""
    return bool(
        ask(
            url,
            'SELECT EXISTS (SELECT FROM mishika_migrate.step WHERE "table" = %(table)s AND NOT stale)',
            {"table": table},
        )
    )


# -- history in ranges ----------------------------------------------------------------------------

LONG = 2400
IN_RANGES = ("--batch-size", "1MB", "--defer-indexes", "always")
RANGES = f"id LIKE 'public.{LOGS}[%' AND NOT stale"

_GATE = 0x67_6174_65  # "gate"


@pytest.fixture(scope="session")
def long_logs(pair: Pair) -> str:
    """A template on the old server: the sample with some thousand long prompts, and a row `gate` amid them."""
    with psycopg.connect(pair.old.url(), autocommit=True) as session:
        session.execute("CREATE DATABASE long TEMPLATE filled")
    with psycopg.connect(pair.old.url("long"), autocommit=True) as session:
        # Long values stay as long as they are.
        session.execute(f'ALTER TABLE "{LOGS}" ALTER messages SET STORAGE EXTERNAL')
        session.execute(
            f'INSERT INTO "{LOGS}" (request_id, call_type, "startTime", "endTime", messages)'
            " SELECT CASE WHEN n = %(gate)s THEN 'gate' ELSE 'long ' || n END, 'x', now(), now(),"
            "  jsonb_build_array(n || repeat('é', 2000))"
            " FROM generate_series(1, %(last)s) n",
            {"gate": LONG // 2, "last": LONG},
        )
        session.execute("VACUUM ANALYZE")
    return "long"


@pytest.fixture
def long_url(pair: Pair, clone: Clone, long_logs: str) -> str:
    """A database of its own on the old server, whose request log is cut into ranges by `IN_RANGES`."""
    return clone(pair.old, long_logs)


class Gate:
    """What stands in the way of the row `gate` on the target until it is opened."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = psycopg.connect(url, autocommit=True)
        self._session.execute("SELECT pg_advisory_lock(%s)", [_GATE])

    def open(self) -> None:
        self._session.close()

    def reached(self) -> bool:
        """Whether a step stands before it."""
        return bool(
            ask(
                self._url,
                "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid = %(gate)s)",
                {"gate": _GATE & 0xFFFF_FFFF},
            )
        )


@pytest.fixture
def gate(target_url: str) -> Iterator[Callable[[str], Gate]]:
    """`gate("copy")` stops the COPY of that row, `gate("index")` the build of an index that reads it.

    Either stays on the target, as a constraint or an index of the request log.
    """
    made: list[Gate] = []

    def make(where: str) -> Gate:
        ask(
            target_url,
            "CREATE FUNCTION gate(text) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN"
            f" IF $1 = 'gate' THEN PERFORM pg_advisory_xact_lock_shared({_GATE}); END IF; RETURN true; END $$",
        )
        thing = (
            "ALTER TABLE {} ADD CHECK (gate(request_id))"
            if where == "copy"
            else "CREATE INDEX gate ON {} (gate(request_id))"
        )
        ask(target_url, thing.format(f'"{LOGS}"'))
        made.append(Gate(target_url))
        return made[-1]

    yield make
    for each in made:
        each.open()


def ranges_landed(url: str) -> int:
    """How many of the request log's ranges the ledger holds."""
    return int(ask(url, f"SELECT count(*) FROM mishika_migrate.step WHERE {RANGES}"))


_INDEXES = """
SELECT coalesce(string_agg(concat_ws(' | ', i.indrelid::regclass, pg_get_indexdef(i.indexrelid), k.conname, k.contype,
    pg_get_constraintdef(k.oid), obj_description(i.indexrelid, 'pg_class'), obj_description(k.oid, 'pg_constraint'),
    i.indisclustered, i.indisreplident, i.indisprimary, i.indisvalid), E'\n' ORDER BY i.indrelid, c.relname), '')
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid
WHERE c.relnamespace = 'public'::regnamespace
"""


def indexes_of(url: str) -> str:
    """Everything that is to be as it was, one index a line; shares no code with the tool."""
    return str(ask(url, _INDEXES))
