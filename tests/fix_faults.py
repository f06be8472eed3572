"""What goes wrong, at a moment of the test's choosing: held locks, killed programs, ended backends, full disks."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from mishika_migrate.sandbox import accounts, servers
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


@contextmanager
def held_up(start: Start, closed: Gate, target: str, *given: str) -> Iterator[Program]:
    """The program, started, while one range or one index build stands before the gate and others have landed."""
    program = start(*given)
    wait_until(lambda: closed.reached() and ranges_landed(target) > 5)
    yield program
    closed.open()


def ranges_landed(url: str) -> int:
    """How many of the request log's ranges the ledger holds."""
    return int(ask(url, f"SELECT count(*) FROM mishika_migrate.step WHERE {RANGES}"))


# Whatever an index can have, on top of what the proxy's have.
ADORNED = f"""
CREATE INDEX "a b" ON "{LOGS}" (lower(request_id) text_pattern_ops, "startTime" DESC NULLS LAST)
  INCLUDE (spend) WITH (fillfactor = 70) WHERE spend >= 0;
CREATE INDEX tags ON "{LOGS}" USING gin (request_tags jsonb_path_ops);
ALTER TABLE "{LOGS}" ADD CONSTRAINT later UNIQUE (request_id, call_type) DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE "{LOGS}" ADD EXCLUDE USING hash (request_id WITH =);
COMMENT ON INDEX "a b" IS 'it''s one';
COMMENT ON CONSTRAINT later ON "{LOGS}" IS 'a constraint';
ALTER TABLE "{LOGS}" CLUSTER ON "{LOGS}_startTime_idx";
CREATE UNIQUE INDEX identity ON "{LOGS}" (request_id, call_type);
ALTER TABLE "{LOGS}" REPLICA IDENTITY USING INDEX identity;
ALTER INDEX "a b" ALTER COLUMN 1 SET STATISTICS 777;
ALTER INDEX tags DEPENDS ON EXTENSION plpgsql;
"""

_INDEXES = """
SELECT coalesce(string_agg(concat_ws(' | ', i.indrelid::regclass, pg_get_indexdef(i.indexrelid), k.conname, k.contype,
    pg_get_constraintdef(k.oid), obj_description(i.indexrelid, 'pg_class'), obj_description(k.oid, 'pg_constraint'),
    i.indisclustered, i.indisreplident, i.indisprimary, i.indisvalid,
    ARRAY (SELECT a.attstattarget FROM pg_attribute a WHERE a.attrelid = c.oid ORDER BY a.attnum),
    ARRAY (SELECT d.refobjid FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'x' ORDER BY 1)),
    E'\n' ORDER BY i.indrelid, c.relname), '')
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid
WHERE c.relnamespace = 'public'::regnamespace
"""


def indexes_of(url: str) -> str:
    """Everything that is to be as it was, one index a line; shares no code with the tool."""
    return str(ask(url, _INDEXES))


_CONSTRAINTS = """
SELECT coalesce(string_agg(concat_ws(' | ', conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated,
    obj_description(oid, 'pg_constraint')), E'\n' ORDER BY conrelid, conname), '')
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
"""


def constraints_of(url: str) -> str:
    """The same of constraints, with and without an index."""
    return str(ask(url, _CONSTRAINTS))


# -- disks ----------------------------------------------------------------------------------------

HUGE = 25_000_000  # bytes that do not compress


class FullDisk:
    """Room for less than HUGE: a tmpfs as tablespace, or a limit on the size of the server's files."""

    def __init__(self, server: servers.Server, url: str, name: str, folder: Path) -> None:
        self._server, self._url, self._name, self._folder = server, url, name, folder

    def mount(self) -> None:
        account = accounts.unprivileged()
        self._folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", str(self._folder)]
        if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
            pytest.skip(
                "mounting a tmpfs needs Linux, root and CAP_SYS_ADMIN (in a container: --cap-add SYS_ADMIN); without"
                " it the same test with [limit] fills a file up to its limit instead of a disk (EFBIG, not ENOSPC)"
            )
        accounts.own(self._folder / "space", account)
        ask(self._url, f"CREATE TABLESPACE small LOCATION '{self._folder / 'space'}'")
        ask(self._url, f'ALTER TABLE "{self._name}" SET TABLESPACE small')

    def limit(self) -> None:
        self._limit(str(17 * 1024 * 1024))  # a segment of the write-ahead log has 16

    def make_room(self) -> None:
        if self._folder.exists():
            subprocess.run(["mount", "-o", "remount,size=200m", str(self._folder)], check=True)
        else:
            self._limit("unlimited")

    def clear(self) -> None:
        if self._folder.exists():
            ask(self._url, f'ALTER TABLE "{self._name}" SET TABLESPACE pg_default')
            ask(self._url, "DROP TABLESPACE small")
            subprocess.run(["umount", str(self._folder)], check=True)
        else:
            self._limit("unlimited")

    def _limit(self, size: str) -> None:
        """Sessions inherit it from the postmaster."""
        pid = int((self._server.directory / "postmaster.pid").read_text().split()[0])
        account = accounts.run_as(accounts.unprivileged())
        subprocess.run(["prlimit", f"--pid={pid}", f"--fsize={size}:unlimited"], check=True, **account)


@pytest.fixture(params=[pytest.param("tmpfs", marks=pytest.mark.soak), "limit"])
def full_disk(request: pytest.FixtureRequest, pair: Pair, target_url: str) -> Iterator[Callable[[str], FullDisk]]:
    """`full_disk("name")` puts that table or index of the target on it."""
    made: list[FullDisk] = []
    with tempfile.TemporaryDirectory(prefix="mm-disk-") as folder:

        def make(name: str) -> FullDisk:
            disk = FullDisk(pair.new, target_url, name, Path(folder) / "disk")
            if request.param == "tmpfs":
                disk.mount()
            else:
                disk.limit()
            made.append(disk)
            return disk

        yield make
        for disk in made:
            disk.clear()


def blow_up(url: str, table: str, column: str) -> None:
    """One row of the table becomes too large for the disk."""
    random = f"SELECT string_agg(md5(n::text), '') FROM generate_series(1, {HUGE // 32}) n"
    ask(url, f'UPDATE "{table}" SET "{column}" = to_jsonb(({random})) WHERE ctid = (SELECT min(ctid) FROM "{table}")')
