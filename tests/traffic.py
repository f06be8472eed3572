"""Traffic as a proxy makes it, from several connections, and a check that none of its acknowledged writes is lost.

`python -m tests.traffic ADDRESS BOOK` runs until its input ends. The file ADDRESS holds the URL of the
database in use; a connection that is fenced (25006) or lost reads it again and repeats the write there,
unless its COMMIT may have come through. BOOK receives what was acknowledged, as JSON. Shares no code
with the program.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

TOKENS, USERS, TEAMS, LOGS = (
    f'"MishikaLLM_{name}"' for name in ("VerificationToken", "UserTable", "TeamTable", "SpendLogs")
)
_LOG = (
    f"INSERT INTO {LOGS} (request_id, call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens,"
    ' "startTime", "endTime", "user", team_id, messages)'
    " VALUES (%s, 'acompletion', %s, %s, 30, 10, 20, now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC', %s, %s,"
    " jsonb_build_object('prompt', repeat('why? ', 40)))"
)
_EVERY = 40  # every so many requests a key is made, blocked or revoked
_TRY_SECONDS = 0.01


@dataclass(kw_only=True)
class Book:
    """What one connection knows: requests with their spend, what may have come through, keys and their last state."""

    requests: list[tuple[str, float, str, str | None, str | None]] = field(default_factory=list)
    unknown: list[tuple[str, float, str, str | None, str | None]] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    sides: list[str] = field(default_factory=list)


class Writer(threading.Thread):
    """One connection of the proxy, `rate` requests a second."""

    def __init__(self, number: int, address: Path, rate: float, over: threading.Event) -> None:
        super().__init__(daemon=True, name=f"writer {number}")
        self._number, self._address, self._rate, self._over = number, address, rate, over
        self._random = random.Random(number)
        self._session: psycopg.Connection[Any] | None = None
        self._url = ""
        self._count = 0
        self._keys: list[tuple[str, str | None, str | None]] = []
        self.book = Book()
        self._unique = f"{number}-{time.time_ns()}"

    def run(self) -> None:
        began, done = time.monotonic(), 0
        while not self._over.is_set():
            self._write()
            done += 1
            self._over.wait(max(began + done / self._rate - time.monotonic(), 0))
            if time.monotonic() - began > done / self._rate + 1:
                began, done = time.monotonic(), 0  # after a pause it does not hurry
        if self._session is not None:
            self._session.close()

    def _write(self) -> None:
        self._count += 1
        step = self._key_step if self._count % _EVERY == 0 else self._request
        while not self._over.is_set():
            try:
                session = self._connected()
                record = step(session)
            except psycopg.errors.ReadOnlySqlTransaction:
                self._leave()
            except psycopg.OperationalError:
                self._leave()
            else:
                try:
                    session.commit()
                except psycopg.OperationalError:
                    self._leave()
                    self.book.unknown.append(record) if isinstance(record, tuple) else None
                    return
                self.book.times.append(time.time())
                self.book.sides.append(self._url)
                if isinstance(record, tuple):
                    self.book.requests.append(record)
                else:
                    self.book.keys.update(record)
                return

    def _request(self, session: psycopg.Connection[Any]) -> tuple[str, float, str, str | None, str | None]:
        token, user, team = self._random.choice(self._keys)
        amount = self._random.randint(1, 64) / 1024
        request = f"{self._unique}-{self._count}"
        session.execute(_LOG, [request, token, amount, user, team])
        for table, key, value in ((TOKENS, "token", token), (USERS, "user_id", user), (TEAMS, "team_id", team)):
            if value is not None:
                session.execute(f"UPDATE {table} SET spend = spend + %s WHERE {key} = %s".encode(), [amount, value])
        return request, amount, token, user, team

    def _key_step(self, session: psycopg.Connection[Any]) -> Mapping[str, str]:
        """The same key is made, then blocked, then revoked; every fourth stays."""
        number, state = divmod(self._count // _EVERY, 3)
        token = hashlib.sha256(f"{self._unique}-{number}".encode()).hexdigest()
        if state == 0 or token not in self.book.keys:
            session.execute(
                f"INSERT INTO {TOKENS} (token, key_alias) VALUES (%s, %s) ON CONFLICT DO NOTHING".encode(),
                [token, f"made {self._unique}-{number}"],
            )
            return {token: "made"}
        if state == 1:
            session.execute(f"UPDATE {TOKENS} SET blocked = true WHERE token = %s".encode(), [token])
            return {token: "blocked"}
        if number % 4 == 0:
            return {token: self.book.keys[token]}
        session.execute(f"DELETE FROM {TOKENS} WHERE token = %s".encode(), [token])
        return {token: "revoked"}

    def _connected(self) -> psycopg.Connection[Any]:
        if self._session is None:
            self._url = self._address.read_text().strip()
            self._session = psycopg.connect(self._url, application_name="proxy", connect_timeout=2)
            if not self._keys:
                asked = f"SELECT token, user_id, team_id FROM {TOKENS} WHERE key_alias NOT LIKE 'made %' ORDER BY token"
                self._keys = self._session.execute(asked.encode()).fetchall()
        return self._session

    def _leave(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None
        self._over.wait(_TRY_SECONDS)


def serve(address: Path, book: Path, *, writers: int, rate: float) -> None:
    """Until the input ends."""
    over = threading.Event()
    threads = [Writer(number, address, rate / writers, over) for number in range(writers)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    book.write_text(
        json.dumps(
            {
                "requests": [each for thread in threads for each in thread.book.requests],
                "unknown": [each for thread in threads for each in thread.book.unknown],
                "keys": {token: state for thread in threads for token, state in thread.book.keys.items()},
                "times": sorted(each for thread in threads for each in thread.book.times),
                "sides": dict(collections.Counter(each for thread in threads for each in thread.book.sides)),
            }
        )
    )


# -- for who starts it ----------------------------------------------------------------------------


@dataclass(kw_only=True)
class Ran:
    """What the traffic saw: all books together once it has ended."""

    requests: list[list[Any]] = field(default_factory=list)
    unknown: list[list[Any]] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    sides: dict[str, int] = field(default_factory=dict)

    def pauses(self, since: float, until: float) -> float:
        """The same within a span of `time.time()`."""
        times = [each for each in self.times if since <= each <= until]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    @property
    def rate(self) -> float:
        return len(self.times) / (self.times[-1] - self.times[0]) if len(self.times) > 1 else 0.0


@contextmanager
def flowing(address: Path, book: Path, *, writers: int = 4, rate: float = 330.0) -> Iterator[Ran]:
    """Traffic while the block runs; afterwards the value holds what it saw."""
    ran = Ran()
    command = [sys.executable, "-m", "tests.traffic", str(address), str(book), str(writers), str(rate)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            yield ran
        finally:
            process.communicate(timeout=30)
    for name, value in json.loads(book.read_text()).items():
        setattr(ran, name, value)


def spends(url: str) -> dict[str, float]:
    """The spend of every token, user and team by its name."""
    found: dict[str, float] = {}
    with psycopg.connect(url) as session:
        for table, key in ((TOKENS, "token"), (USERS, "user_id"), (TEAMS, "team_id")):
            for name, spend in session.execute(f"SELECT {key}, spend FROM {table}".encode()):
                found[f"{key} {name}"] = spend
    return found


def violations(url: str, before: Mapping[str, float], ran: Ran) -> list[str]:
    """What of the acknowledged is not there, or is there twice; `before` is `spends` at the start."""
    wrong: list[str] = []
    with psycopg.connect(url) as session:
        asked = f"SELECT request_id FROM {LOGS} WHERE request_id ~ '^[0-9]+-[0-9]{{19}}-'"
        there = collections.Counter(str(row[0]) for row in session.execute(asked.encode()))
        asked = f"SELECT token, blocked FROM {TOKENS} WHERE key_alias LIKE 'made %'"
        alive = {str(token): bool(blocked) for token, blocked in session.execute(asked.encode())}
    certain = {each[0] for each in ran.requests}
    wrong += [f"request {name} is missing" for name in certain if not there[name]]
    wrong += [f"request {name} is there {count} times" for name, count in there.items() if count > 1]
    maybe = {each[0]: each for each in ran.unknown}
    wrong += [f"request {name} is nobody's" for name in there if name not in certain and name not in maybe]
    expected = dict(before)
    for request, amount, token, user, team in [*ran.requests, *(maybe[name] for name in there if name in maybe)]:
        del request
        for name in (f"token {token}", f"user_id {user}", f"team_id {team}"):
            if name in expected:
                expected[name] += amount
    now = spends(url)
    for name, value in expected.items():
        if abs(now.get(name, -1.0) - value) > 1e-6:
            wrong.append(f"{name} has spent {now.get(name)}, not {value}")
    for token, state in ran.keys.items():
        found = "revoked" if token not in alive else "blocked" if alive[token] else "made"
        if found != state:
            wrong.append(f"key {token[:8]} is {found}, not {state}")
    return wrong


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), writers=int(sys.argv[3]), rate=float(sys.argv[4]))
