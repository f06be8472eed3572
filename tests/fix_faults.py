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
