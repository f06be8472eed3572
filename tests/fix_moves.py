"""A move under traffic: a proxy that writes where it is sent, and a program that is killed at any of its messages."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.fix_faults import LOGS, Program, Start, ask, wait_until
from tests.fix_network import Proxy
from tests.fix_program import Ended, Forker, Run, environment
from tests.fix_servers import Pair, assert_equal, cloning, tables_of

KEYS = "MishikaLLM_VerificationToken"
LEFT = {"MishikaLLM_CronJob", "_prisma_migrations"}
NAMED = r"""
SELECT coalesce(string_agg(name, ', '), '') FROM (
  SELECT subname::text FROM pg_subscription JOIN pg_database d ON d.oid = subdbid WHERE datname = current_database()
  UNION ALL SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database()
  UNION ALL SELECT pubname::text FROM pg_publication
  UNION ALL SELECT tgname::text FROM pg_trigger UNION ALL SELECT nspname::text FROM pg_namespace
) o (name) WHERE name LIKE 'mishika\_migrate%%'
"""


class Move:
    """Two databases, and the program between them. What stands in `address` is where the traffic goes.

    `seen` are the addresses by which the program reaches them, where these make a detour; `reaching` is the one by
    which the target's server reaches the source.
    """

    def __init__(
        self,
        source: str,
        target: str,
        folder: Path,
        run: Run,
        start: Start | None,
        *,
        seen: tuple[str, str] | None = None,
        reaching: str = "",
    ) -> None:
        self.source, self.target = source, target
        self._seen, self._reaching = seen or (source, target), reaching or source
        self._run, self._start = run, start
        self.address = folder / "address"
        self.address.write_text("source", encoding="utf-8")

    def url(self, side: str) -> str:
        return self.source if side == "source" else self.target

    def __call__(self, *words: str) -> Ended:
        return self._run(*self._whole(words))

    def start(self, *words: str) -> Program:
        assert self._start is not None
        return self._start(*self._whole(words))

    def _whole(self, words: tuple[str, ...]) -> tuple[str, ...]:
        asks = words[0] in ("copy", "cutover", "rollback", "complete") and not {"--dry-run", "--abort"} & set(words)
        far = words[0] in ("copy", "cutover", "rollback")
        return (
            *words, "--source", self._seen[0], "--target", self._seen[1],
            *(("--source-from-target", self._reaching) if far else ()),
            *(("--target-from-source", self.target) if far and words[0] != "copy" else ()),
            *(("--yes",) if asks else ()),
        )  # fmt: skip

    def well(self, *words: str) -> Ended:
        """A run that must end well."""
        done = self(*words)
        assert done.status == 0, done.err
        return done

    def follow(self) -> None:
        self.well(*COPY)

    def over(self) -> tuple[str, ...]:
        """`cutover` with a command that sends the traffic to the target."""
        return ("cutover", "--on-switch", self.sending("target"))

    def back(self) -> tuple[str, ...]:
        return ("rollback", "--on-switch", self.sending("source"))

    def sending(self, side: str) -> str:
        return f"printf {side} > {self.address}"

    # -- what is true -----------------------------------------------------------------------------

    @property
    def slots(self) -> list[str]:
        """Of both servers, in these databases."""
        query = (
            "SELECT coalesce(string_agg(slot_name::text, ' '), '') FROM pg_replication_slots"
            " WHERE database = current_database()"
        )
        return [name for url in (self.source, self.target) for name in str(ask(url, query)).split()]

    def follows(self, *, way: str = "forward") -> bool:
        """Whether the last run's target follows, or is followed, as far as the catalogs say."""
        publisher, subscriber = (self.source, self.target) if way == "forward" else (self.target, self.source)
        return bool(
            ask(publisher, "SELECT bool_or(active) FROM pg_replication_slots WHERE database = current_database()")
        ) and bool(
            ask(
                subscriber,
                "SELECT bool_or(subenabled) FROM pg_subscription JOIN pg_database d ON d.oid = subdbid"
                " WHERE datname = current_database()",
            )
        )

    def refusal(self, side: str) -> str:
        """The SQLSTATE with which that side answers a write; empty when it takes it."""
        try:
            ask(
                self.url(side), f'UPDATE "{KEYS}" SET blocked = blocked WHERE token = (SELECT min(token) FROM "{KEYS}")'
            )
        except psycopg.Error as error:
            return error.sqlstate or "lost"
        return ""

    @property
    def switch(self) -> str:
        """The state of the latest switch; empty without any."""
        if not ask(self.target, "SELECT to_regclass('mishika_migrate.cutover') IS NOT NULL"):
            return ""
        return str(ask(self.target, "SELECT state FROM mishika_migrate.cutover ORDER BY id DESC LIMIT 1") or "")

    def arrived(self) -> None:
        """Waits until the last change is on the other side; fails when it will not come."""
        wait_until(lambda: self("follow", "status", "--max-lag", "10s").status == 0)

    def assert_same(self) -> None:
        assert_equal(self.source, self.target, [table for table in tables_of(self.source) if table not in LEFT])

    def assert_gone(self) -> None:
        assert [ask(url, NAMED) for url in (self.source, self.target)] == ["", ""]


def hold(session: psycopg.Connection[Any], *, until: Callable[[], object]) -> None:
    """Leaves a transaction open that has written; a gate would see an old one, so it is renewed `until` that holds."""
    while True:
        session.commit()
        session.execute('UPDATE "MishikaLLM_TeamTable" SET spend = spend + 1')
        began = time.monotonic()
        wait_until(lambda: until() or time.monotonic() - began > 1)  # noqa: B023
        if until():
            return


COPY = ("copy", "--follow", "--everything")


class Traffic:
    """A proxy that counts and logs, a write after the other, on the side that `address` names.

    Each write is one transaction: a row of the request log, and 1 more spent by a key. It knows which were
    acknowledged where, and of which it cannot know because the connection broke.
    """

    def __init__(self, move: Move) -> None:
        self._move = move
        ask(move.source, f'UPDATE "{KEYS}" SET spend = 0')
        self._key = str(ask(move.source, f'SELECT min(token) FROM "{KEYS}"'))
        self.acknowledged: dict[str, list[int]] = {"source": [], "target": []}
        self.unsure: set[int] = set()
        self.refused = 0
        self.errors: list[BaseException] = []
        self._number = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        side, session = "", None
        try:
            # Some 200 writes a second; the machine has other things to do.
            while not self._over.wait(0.005):
                wanted = self._move.address.read_text(encoding="utf-8") or side
                if session is None or session.closed or wanted != side:
                    if session is not None:
                        session.close()
                    side, session = wanted, self._connect(wanted)
                if session is not None:
                    self._write(side, session)
        except BaseException as error:
            self.errors.append(error)
        finally:
            if session is not None:
                session.close()

    def _connect(self, side: str) -> psycopg.Connection[Any] | None:
        try:
            return psycopg.connect(self._move.url(side), autocommit=True)
        except psycopg.OperationalError:
            return None  # that server is down

    def _write(self, side: str, session: psycopg.Connection[Any]) -> None:
        self._number += 1
        try:
            # One message, and so one transaction.
            session.execute(
                f'INSERT INTO "{LOGS}" (request_id, call_type, "startTime", "endTime")'
                f" VALUES ('write {self._number}', 'x', now(), now());"
                f" UPDATE \"{KEYS}\" SET spend = spend + 1 WHERE token = '{self._key}'".encode()
            )
        except psycopg.errors.ReadOnlySqlTransaction:
            self.refused += 1
        except psycopg.OperationalError:
            self.unsure.add(self._number)
            session.close()
        else:
            self.acknowledged[side].append(self._number)

    def goes_on(self, side: str) -> None:
        """Waits until some more writes are acknowledged there."""
        before = len(self.acknowledged[side])
        wait_until(lambda: self.errors or len(self.acknowledged[side]) > before + 5)
        assert not self.errors, self.errors

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        assert not self.errors, self.errors

    def assert_kept(self, url: str) -> None:
        """Every acknowledged write is there, once, and nothing that was refused."""
        self.stop()
        with psycopg.connect(url) as session:
            found = session.execute(f"SELECT request_id FROM \"{LOGS}\" WHERE request_id LIKE 'write %'".encode())
            there = {int(row[0].split()[1]) for row in found}
        written = {number for numbers in self.acknowledged.values() for number in numbers}
        assert sorted(written - there) == [], "acknowledged and lost"
        assert sorted(there - written - self.unsure) == [], "refused and there"
        assert ask(url, f"SELECT spend FROM \"{KEYS}\" WHERE token = '{self._key}'") == len(there), "spend"


@pytest.fixture
def move(source_url: str, target_url: str, tmp_path: Path, run: Run, start: Start) -> Move:
    """Between two databases of its own, not begun yet."""
    return Move(source_url, target_url, tmp_path, run, start)


@pytest.fixture
def following(move: Move) -> Move:
    """One whose target follows."""
    move.follow()
    return move


@pytest.fixture
def traffic() -> Iterator[Callable[[Move], Traffic]]:
    """`traffic(move)` lets it begin, on the source."""
    made: list[Traffic] = []

    def make(move: Move) -> Traffic:
        made.append(Traffic(move))
        return made[-1]

    yield make
    for each in made:
        each.stop()


# -- killed at any message ------------------------------------------------------------------------


class Tap(Proxy):
    """Calls `seen` before and after each message of the program to the server; drops what it calls a dead one's."""

    def __init__(self, to: Path, seen: Callable[[bool], bool]) -> None:
        self._seen = seen
        super().__init__(to)

    def _pump(self, come: socket.socket, go: socket.socket, forth: bool) -> None:
        if not forth:
            super()._pump(come, go, forth)
            return
        try:
            while block := come.recv(65536):
                if self._seen(False):
                    raise ConnectionResetError  # it died before it could say that
                go.sendall(block)
                self._seen(True)
            go.shutdown(socket.SHUT_WR)
        except OSError:
            self._close((come, go))


class Taps:
    """Both servers' taps, which count together. `strike(n, what)` does it at the n-th message from now on: before the
    server has it when `n` is odd, and after when it is even. `what` tells whether the program is dead."""

    def __init__(self, pair: Pair) -> None:
        self._guard = threading.Lock()
        self.count = 0
        self._at = 0
        self._strike: Callable[[], bool] = bool
        self._made = [Tap(server.socket, self._seen) for server in (pair.old, pair.new)]

    def seen(self, source: str, target: str) -> tuple[str, str]:
        """The addresses for the program. The servers reach each other without a tap."""
        old, new = self._made
        return old.url(source), new.url(target)

    def strike(self, number: int, what: Callable[[], bool]) -> None:
        self.count, self._at, self._strike = 0, number, what

    def _seen(self, after: bool) -> bool:
        with self._guard:
            self.count += not after
            due = self.count == self._at and after == (self._at % 2 == 0)
            if due:
                self._at = 0
        return due and self._strike()

    def close(self) -> None:
        for tap in self._made:
            tap.close()


@pytest.fixture
def taps(pair: Pair) -> Iterator[Taps]:
    made = Taps(pair)
    yield made
    made.close()


@pytest.fixture
def tapped(move: Move, taps: Taps, tmp_path: Path, run: Run, start: Start) -> Move:
    """A move whose messages are counted."""
    return Move(move.source, move.target, tmp_path, run, start, seen=taps.seen(move.source, move.target))


@pytest.fixture(scope="session")
def lengths(pair: Pair, forker: Forker, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, int]:
    """How many messages `copy`, `cutover`, `rollback` and `complete` take from their begin to their end."""
    folder = tmp_path_factory.mktemp("lengths")
    (folder / "in").touch()

    def run(*words: str) -> Ended:
        return forker.run(words, folder, environment(), folder / "in", folder)

    found: dict[str, int] = {}
    with ExitStack() as stack:
        clone = stack.enter_context(cloning())
        source, target = clone(pair.old, "filled"), clone(pair.new, "bare")
        taps = Taps(pair)
        stack.callback(taps.close)
        move = Move(source, target, folder, run, None, seen=taps.seen(source, target))
        for words in (COPY, move.over(), move.back(), ("complete",)):
            taps.count = 0
            move.well(*words)
            found[words[0]] = taps.count
    return found


def killed(taps: Taps, move: Move, words: tuple[str, ...], number: int, how: signal.Signals) -> Ended:
    """What is left of the program when it gets that signal at its n-th message, or of one that ended before."""
    ready = threading.Event()
    program: list[Program] = []

    def strike() -> bool:
        ready.wait()
        program[0].signal(how)
        if how == signal.SIGKILL:
            program[0].process.wait(timeout=30)
        return how == signal.SIGKILL

    taps.strike(number, strike)
    program.append(move.start(*words))
    ready.set()
    done = program[0].ended()
    taps.strike(0, bool)  # one that took fewer messages than another time has not met its end
    # The server may be at the dead program's last statement still.
    gone = (
        "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name LIKE 'mishika-migrate/%%')"
    )
    wait_until(lambda: all(ask(url, gone) for url in (move.source, move.target)))
    return done
