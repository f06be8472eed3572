"""Traffic like a proxy's on a database that moves, from a process of its own, and a check that none of it was lost.

Imports psycopg only, on purpose: what a move is checked with must share nothing with the program's own
comparison. Every write that the database acknowledged is a line of a journal; `Load.check` holds a database
against the journal. Used by tests and by `tests.benchmark.cutover`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Literal, Self

import psycopg

LOGS, TOKENS, USERS, TEAMS, ALIASES = (
    f'"MishikaLLM_{name}"' for name in ("SpendLogs", "VerificationToken", "UserTable", "TeamTable", "ModelTable")
)
Kind = Literal["request", "create", "block", "revoke", "alias"]
Outcome = Literal["acknowledged", "unknown", "refused", "abandoned"]
"""`unknown`: the connection was lost in COMMIT. `refused`: an error that a proxy cannot mend by trying again.
`abandoned`: not committed when the load ended."""

_GRAIN = 1024
"""Amounts are multiples of 1/1024: sums of float8 are exact, in whatever order they are made."""
_BUSY = 500  # keys that requests are made with, so that each of them gets many
_POLL = 0.015  # seconds between two looks into the address file
_ARREARS = 1.0  # seconds of traffic that are made up for after a pause


# -- the database before the load -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What keys, users and teams have spent; `blocked` are keys, `logs` counts rows that no load has written."""

    tokens: Mapping[str, float]
    users: Mapping[str, float]
    teams: Mapping[str, float]
    blocked: frozenset[str]
    logs: int


def settle(url: str) -> None:
    """Rounds what has been spent, so that sums are exact from here on. Before the first `state`."""
    with psycopg.connect(url, autocommit=True) as session:
        for table in (TOKENS, USERS, TEAMS):
            _execute(session, f"UPDATE {table} SET spend = round(spend * {_GRAIN}) / {_GRAIN}")


def state(url: str) -> State:
    with psycopg.connect(url) as session:
        session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        tokens, users, teams = (
            dict(_rows(session, f"SELECT {key}, spend FROM {table}"))
            for key, table in (("token", TOKENS), ("user_id", USERS), ("team_id", TEAMS))
        )
        for spend in (*tokens.values(), *users.values(), *teams.values()):
            assert (spend * _GRAIN).is_integer(), "settle() comes first"
        blocked = _rows(session, f"SELECT token FROM {TOKENS} WHERE blocked")
        ((logs,),) = _rows(session, f"SELECT count(*) FROM {LOGS} WHERE request_id NOT LIKE 'load-%'")
        return State(
            tokens=tokens, users=users, teams=teams, blocked=frozenset(token for (token,) in blocked), logs=logs
        )


# -- the journal ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What became of one write. `at` is the machine's monotonic clock, `waited` the seconds since the first try."""

    kind: Kind
    outcome: Outcome
    id: str
    address: str
    at: float
    waited: float
    amount: float = 0.0
    token: str = ""
    user: str = ""
    team: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """`addresses` are those that the file has held, in order; `hindrances` counts tries that failed, by SQLSTATE."""

    entries: tuple[Entry, ...]
    addresses: tuple[str, ...]
    hindrances: Mapping[str, int]

    @property
    def acknowledged(self) -> tuple[Entry, ...]:
        """By time."""
        return tuple(sorted((each for each in self.entries if each.outcome == "acknowledged"), key=_when))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Between the last write that one address acknowledged and the first that the next one did.

    `waited` is the longest that a single write took that was under way then.
    """

    at: float
    seconds: float
    waited: float


def _read(path: Path) -> Journal:
    entries: list[Entry] = []
    addresses: list[str] = []
    hindrances: Counter[str] = Counter()
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            continue  # is being written
        found = json.loads(line)
        if found["kind"] == "address":
            addresses.append(found["address"])
        elif found["kind"] == "hindered":
            hindrances[found["state"]] += 1
        else:
            entries.append(Entry(**found))
    return Journal(entries=tuple(entries), addresses=tuple(addresses), hindrances=hindrances)


def _when(entry: Entry) -> float:
    return entry.at


# -- the load, as its owner has it ----------------------------------------------------------------


class Load:
    """Writes to the database whose URL the file `address` holds, `rate` times a second in all.

    Each writer keeps its connection until a write fails; then it does what the file says by now. The journal
    is next to the file.
    """

    def __init__(self, address: Path, *, writers: int = 4, rate: float = 300.0, seed: int = 1) -> None:
        self.name = uuid.uuid4().hex[:8]
        self.path = address.with_name(f"{address.name}.{self.name}.jsonl")
        self._asked = {
            "address": address.resolve(),
            "journal": self.path.resolve(),
            "writers": writers,
            "rate": rate,
            "seed": seed,
        }
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns when every writer is connected."""
        options = [f"--{name}={value}" for name, value in {**self._asked, "name": self.name}.items()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.load", *options],
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for who owns it
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "the load did not start: see above"

    def stop(self) -> None:
        """Lets writes under way come to an end. Does nothing when it does not run."""
        if self._process is not None:
            self._process.communicate(timeout=60)
            assert self._process.returncode == 0, f"the load ended with status {self._process.returncode}: see above"
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def journal(self) -> Journal:
        """As far as it goes now."""
        return _read(self.path)

    # -- what it says -----------------------------------------------------------------------------

    def pauses(self) -> list[Pause]:
        """One for every change of address, in order."""
        acknowledged = self.journal().acknowledged
        return [
            Pause(
                at=before.at,
                seconds=after.at - before.at,
                waited=max(each.waited for each in acknowledged if each.at - each.waited <= after.at <= each.at),
            )
            for before, after in pairwise(acknowledged)
            if before.address != after.address
        ]

    def longest_gap(self) -> float:
        """The longest time in which nothing was acknowledged, in seconds."""
        return max((after.at - before.at for before, after in pairwise(self.journal().acknowledged)), default=0.0)

    def per_second(self) -> list[int]:
        """Acknowledged writes of every whole second."""
        acknowledged = self.journal().acknowledged
        if not acknowledged:
            return []
        counts = Counter(int(each.at - acknowledged[0].at) for each in acknowledged)
        return [counts[second] for second in range(max(counts))]

    def check(self, url: str, initial: State) -> list[str]:
        """Everything that is not as it must be on the side that has the traffic, or follows it and has caught up."""
        journal = self.journal()
        with psycopg.connect(url) as session:
            logs = _logs(session, self.name)
            aliases = Counter(name for (name,) in _rows(session, _ALIASES_OF, f"load-{self.name}-%"))
        now = state(url)
        return [
            *_check_outcomes(journal),
            *_check_logs(journal, logs),
            *_check_spends(journal, logs, initial, now),
            *_check_keys(journal, initial, now),
            *_check_aliases(journal, aliases),
            *([f"{initial.logs} log rows from before, now {now.logs}"] if now.logs != initial.logs else []),
        ]

    def check_kept(self, url: str, address: str) -> list[str]:
        """Requests that `address` has acknowledged and `url`, the same database, does not hold."""
        with psycopg.connect(url) as session:
            logs = _logs(session, self.name)
        return [
            f"request {each.id} was acknowledged here and is missing here"
            for each in self.journal().acknowledged
            if each.kind == "request" and each.address == address and each.id not in logs
        ]


# -- the check ------------------------------------------------------------------------------------

_LOGS_OF = f"SELECT request_id, spend FROM {LOGS} WHERE request_id LIKE %s"
_ALIASES_OF = f"SELECT created_by FROM {ALIASES} WHERE created_by LIKE %s"


def _logs(session: psycopg.Connection[Any], name: str) -> dict[str, list[float]]:
    """The amounts of every log row that the load has written, by request."""
    found: dict[str, list[float]] = {}
    for request, amount in _rows(session, _LOGS_OF, f"load-{name}-%"):
        found.setdefault(request, []).append(amount)
    return found


def _check_outcomes(journal: Journal) -> Iterator[str]:
    for each in journal.entries:
        if each.outcome == "refused":
            yield f"{each.kind} {each.id} failed for good: {each.error}"
    turns = sum(before.address != after.address for before, after in pairwise(journal.acknowledged))
    if turns >= len(journal.addresses):
        yield f"{len(journal.addresses)} addresses, but acknowledgements went from one to another {turns} times"


def _check_logs(journal: Journal, logs: Mapping[str, Sequence[float]]) -> Iterator[str]:
    requests = {each.id: each for each in journal.entries if each.kind == "request"}
    for each in requests.values():
        there = logs.get(each.id, ())
        if each.outcome == "acknowledged" and not there:
            yield f"request {each.id} was acknowledged and is missing"
        if each.outcome in ("refused", "abandoned") and there:
            yield f"request {each.id} was never acknowledged ({each.outcome}) and is there"
        if len(there) > 1:
            yield f"request {each.id} is there {len(there)} times"
        if any(amount != each.amount for amount in there):
            yield f"request {each.id} cost {each.amount}, its row says {there}"
    for request in logs.keys() - requests.keys():
        yield f"request {request} is there, but nobody has made it"


def _check_spends(journal: Journal, logs: Mapping[str, Sequence[float]], initial: State, now: State) -> Iterator[str]:
    """What is gone is told by others."""
    spends: defaultdict[tuple[str, str], float] = defaultdict(float)
    for each in journal.entries:
        if each.kind == "request" and (each.outcome == "acknowledged" or _landed(each, logs)):
            for of in (("token", each.token), ("user", each.user), ("team", each.team)):
                spends[of] += each.amount
    for what, before, after in (
        ("token", initial.tokens, now.tokens),
        ("user", initial.users, now.users),
        ("team", initial.teams, now.teams),
    ):
        if what != "token" and before.keys() != after.keys():
            yield f"{what}s are not those from before: {sorted(before.keys() ^ after.keys())}"
        for name, spend in after.items():
            wanted = before.get(name, 0.0) + spends[what, name]
            if spend != wanted:
                yield f"{what} {name} has spent {spend}, not {wanted}: {spend - wanted:+}"


def _landed(entry: Entry, logs: Mapping[str, Sequence[float]]) -> bool:
    """A log row and its increments are one transaction, so the row tells of all of them."""
    return entry.outcome == "unknown" and entry.id in logs


def _check_keys(journal: Journal, initial: State, now: State) -> Iterator[str]:
    alive, blocked, doubtful = set(initial.tokens), set(initial.blocked), set[str]()
    for each in journal.entries:
        if each.kind not in ("create", "block", "revoke"):
            continue
        if each.outcome == "unknown":
            doubtful.add(each.token)
        elif each.outcome == "acknowledged":
            alive = alive - {each.token} if each.kind == "revoke" else alive | {each.token}
            blocked = blocked | {each.token} if each.kind == "block" else blocked - {each.token}
    for token in sorted((alive | now.tokens.keys()) - doubtful):
        if token not in now.tokens:
            yield f"key {token} is missing"
        elif token not in alive:
            yield (
                f"key {token} was revoked and is alive" if token in initial.tokens else f"key {token} has come to life"
            )
        elif (token in blocked) != (token in now.blocked):
            yield f"key {token} is {'not blocked' if token in blocked else 'blocked'}"


def _check_aliases(journal: Journal, there: Mapping[str, int]) -> Iterator[str]:
    """Their ids come from the only sequence."""
    for each in journal.entries:
        if each.kind == "alias" and each.outcome == "acknowledged" and there.get(each.id, 0) != 1:
            yield f"alias {each.id} was acknowledged and is there {there.get(each.id, 0)} times"


def _rows(session: psycopg.Connection[Any], query: str, *values: str) -> list[tuple[Any, ...]]:
    return session.execute(query.encode(), values or None).fetchall()


def _execute(session: psycopg.Connection[Any], statement: str) -> None:
    session.execute(statement.encode())


# -- the process that writes ----------------------------------------------------------------------

_INSERT_LOG = f"""
INSERT INTO {LOGS} (request_id, call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens,
    "startTime", "endTime", model, model_group, custom_llm_provider, "user", metadata, cache_hit, request_tags, team_id)
VALUES (%(id)s, 'acompletion', %(token)s, %(amount)s, 120, 100, 20, %(began)s, %(ended)s,
    'openai/gpt-4o-mini', 'gpt-4o-mini', 'openai', %(user)s, %(metadata)s::jsonb, 'False', '["load"]', %(team)s)
"""
_SPEND = (
    f"UPDATE {TOKENS} SET spend = spend + %(amount)s WHERE token = %(token)s",
    f"UPDATE {USERS} SET spend = spend + %(amount)s WHERE user_id = %(user)s",
    f"UPDATE {TEAMS} SET spend = spend + %(amount)s WHERE team_id = %(team)s",
)
_CREATE = f"""
INSERT INTO {TOKENS} (token, key_name, key_alias, models, user_id, team_id, metadata)
VALUES (%(token)s, 'sk-...load', %(id)s, '{{gpt-4o-mini}}', %(user)s, %(team)s, '{{"made": "by the load"}}')
"""
_BLOCK = f"UPDATE {TOKENS} SET blocked = true, updated_at = %(ended)s WHERE token = %(token)s"
_REVOKE = f"DELETE FROM {TOKENS} WHERE token = %(token)s"
_ALIAS = f"INSERT INTO {ALIASES} (aliases, created_by, updated_by) VALUES ('{{}}', %(id)s, 'load')"
_STATEMENTS: Mapping[Kind, tuple[str, ...]] = {
    "request": (_INSERT_LOG, *_SPEND),
    "create": (_CREATE,),
    "block": (_BLOCK,),
    "revoke": (_REVOKE,),
    "alias": (_ALIAS,),
}
_RARE: tuple[tuple[Kind, float], ...] = (("create", 0.015), ("block", 0.01), ("revoke", 0.01), ("alias", 0.005))
# Fenced, in a deadlock, cancelled or waited too long for a lock: rolled back, and worth another try.
_PASSING = ("25006", "40001", "40P01", "55P03", "57014")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    token: str
    user: str
    team: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Write:
    """One transaction. The same values at every try."""

    kind: Kind
    id: str
    key: _Key
    amount: float = 0.0
    log_last: bool = False
    began: float = field(default_factory=time.monotonic)
    ended: datetime = field(default_factory=lambda: datetime.now(UTC).replace(tzinfo=None))

    @property
    def statements(self) -> tuple[str, ...]:
        """Increments always in one order: then writers do not deadlock among themselves."""
        first, *others = _STATEMENTS[self.kind]
        return (*others, first) if self.log_last else (first, *others)

    @property
    def values(self) -> dict[str, object]:
        return {
            **asdict(self.key),
            "id": self.id,
            "amount": self.amount,
            "began": self.ended - timedelta(milliseconds=int(self.amount * _GRAIN)),
            "ended": self.ended,
            "metadata": json.dumps({"user_api_key": self.key.token, "user_api_key_team_id": self.key.team}),
        }

    def entry(self, outcome: Outcome, address: str, error: str = "") -> Entry:
        now = time.monotonic()
        return Entry(
            kind=self.kind, outcome=outcome, id=self.id, address=address, at=now, waited=now - self.began,
            amount=self.amount, error=error, **asdict(self.key),
        )  # fmt: skip


class _Book:
    """The journal, and the address file beside it, for all writers."""

    def __init__(self, journal: Path, address: Path) -> None:
        self._file = journal.open("a", buffering=1)
        self._lock = threading.Lock()
        self._source, self._address = address, ""

    def enter(self, line: Mapping[str, object]) -> None:
        with self._lock:
            self._file.write(f"{json.dumps(line)}\n")

    def address(self) -> str:
        """What the file says now."""
        with self._lock:
            now = self._source.read_text().strip()
            if now != self._address:
                self._address = now
                self._file.write(f"{json.dumps({'kind': 'address', 'address': now, 'at': time.monotonic()})}\n")
            return now


class _Hindered(Exception):
    """The write is not committed; `state` is the SQLSTATE, empty where no server has spoken."""

    def __init__(self, error: psycopg.Error, *, lost: bool) -> None:
        super().__init__((error.diag.message_primary or str(error)).strip())
        self.state = error.sqlstate or ""
        self.passing = lost or self.state in _PASSING


class _InDoubt(Exception):
    """The connection was lost in COMMIT."""


class _Session:
    """One writer's connection, to wherever the file says at the first try and after every failure."""

    def __init__(self, book: _Book) -> None:
        self._book, self.address = book, ""
        self._connection: psycopg.Connection[Any] | None = None

    def commit(self, write: _Write) -> None:
        """Returns when the server has acknowledged it."""
        try:
            session = self._connected()
        except psycopg.Error as error:
            raise _Hindered(error, lost=True) from None
        try:
            for statement in write.statements:
                touched = session.execute(statement.encode(), write.values).rowcount
                if touched != 1:
                    raise psycopg.DataError(f"{touched} rows instead of one: {' '.join(statement.split())}")
        except psycopg.Error as error:
            lost = session.broken
            self._give_up()
            raise _Hindered(error, lost=lost) from None
        try:
            session.commit()
        except psycopg.Error as error:
            # A server that shuts down may have committed before it said so.
            doubt = session.broken or (error.sqlstate or "08").startswith(("08", "57P"))
            self._give_up()
            raise (_InDoubt() if doubt else _Hindered(error, lost=False)) from None

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.broken:
            self.address = self._book.address()
            self._connection = psycopg.connect(self.address, application_name="load", connect_timeout=5)
        return self._connection

    def _give_up(self) -> None:
        """Rolls back; stays connected where the file still says the same."""
        if self._connection is None:
            return
        with contextlib.suppress(psycopg.Error):
            self._connection.rollback()
        if self._connection.broken or self._book.address() != self.address:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class _Writer(threading.Thread):
    """One connection. `idle` are keys that nobody else blocks or revokes and no request uses."""

    def __init__(
        self, number: int, name: str, book: _Book, *, seed: int, busy: Sequence[_Key], idle: Iterable[_Key]
    ) -> None:
        super().__init__(name=f"writer {number}", daemon=True)
        self._number, self._load, self._book = number, name, book
        self._random = Random(f"{seed}/{number}")
        self._busy, self._idle, self._made = busy, list(idle), list[_Key]()
        self._session = _Session(book)
        self._count = 0
        self.interval = 0.0
        self.stopping = threading.Event()
        self.pending: _Write | None = None

    def run(self) -> None:
        due = time.monotonic() + self.interval * self._random.random()
        while not self.stopping.wait(max(0.0, due - time.monotonic())):
            self.write()
            due = max(due + self.interval, time.monotonic() - _ARREARS)
        self._session.close()

    def write(self) -> None:
        """One write, tried until it is acknowledged, in doubt, refused, or the load ends."""
        self.pending = write = self._next()
        while True:
            try:
                self._session.commit(write)
            except _InDoubt:
                self._ended(write, "unknown")
                return
            except _Hindered as hindered:
                self._book.enter({"kind": "hindered", "state": hindered.state, "at": time.monotonic()})
                if not hindered.passing:
                    self._ended(write, "refused", f"{hindered.state} {hindered}".strip())
                    return
                if self.stopping.wait(_POLL):
                    self._ended(write, "abandoned")
                    return
            else:
                self._ended(write, "acknowledged")
                return

    def _ended(self, write: _Write, outcome: Outcome, error: str = "") -> None:
        self._book.enter(asdict(write.entry(outcome, self._session.address, error)))
        self.pending = None
        if write.kind == "create" and outcome == "acknowledged":
            self._made.append(write.key)

    # -- what to write ----------------------------------------------------------------------------

    def _next(self) -> _Write:
        self._count += 1
        name, random = f"load-{self._load}-{self._number}-{self._count}", self._random
        kind = self._kind()
        if kind == "create":
            made = hashlib.sha256(f"sk-{name}".encode()).hexdigest()
            owner = random.choice(self._busy)
            return _Write(kind=kind, id=name, key=_Key(token=made, user=owner.user, team=owner.team))
        if kind in ("block", "revoke"):
            return _Write(kind=kind, id=name, key=self._taken())
        if kind == "alias":
            return _Write(kind=kind, id=name, key=_Key(token="", user="", team=""))
        return _Write(
            kind=kind,
            id=name,
            key=random.choice(self._made if self._made and random.random() < 0.1 else self._busy),
            amount=random.randint(1, 4 * _GRAIN) / _GRAIN,
            log_last=random.random() < 0.5,
        )

    def _kind(self) -> Kind:
        draw = self._random.random()
        for kind, share in _RARE:
            if draw < share:
                return kind if kind in ("create", "alias") or self._idle or self._made else "request"
            draw -= share
        return "request"

    def _taken(self) -> _Key:
        """A key, old or made by this writer, that is not touched again: whatever comes of it can be told."""
        of = self._made if self._made and (not self._idle or self._random.random() < 0.3) else self._idle
        return of.pop(self._random.randrange(len(of)))


_KEYS = f"""
SELECT token, coalesce(t.user_id, ''), coalesce(t.team_id, ''), u.user_id IS NOT NULL AND g.team_id IS NOT NULL
FROM {TOKENS} t LEFT JOIN {USERS} u ON u.user_id = t.user_id LEFT JOIN {TEAMS} g ON g.team_id = t.team_id
WHERE t.blocked IS NOT TRUE ORDER BY token
"""


def _writers(asked: argparse.Namespace, book: _Book) -> list[_Writer]:
    with psycopg.connect(book.address()) as session:
        found = [(_Key(token=token, user=user, team=team), whole) for token, user, team, whole in _rows(session, _KEYS)]
    busy = [key for key, whole in found if whole][: min(_BUSY, len(found) // 8)]
    assert busy, "no key has both a user and a team"
    idle = [key for key, _ in found if key not in set(busy)]
    return [
        _Writer(number, asked.name, book, seed=asked.seed, busy=busy, idle=idle[number :: asked.writers])
        for number in range(asked.writers)
    ]


def main() -> None:
    """Until stdin ends, which it also does when who started this is gone."""
    asked = _parser().parse_args()
    book = _Book(asked.journal, asked.address)
    writers = _writers(asked, book)
    for writer in writers:
        writer.interval = asked.writers / asked.rate
        writer.write()
    for writer in writers:
        writer.start()
    print("ready", flush=True)
    sys.stdin.read()
    for writer in writers:
        writer.stopping.set()
    deadline = time.monotonic() + 20
    for writer in writers:
        writer.join(max(0.0, deadline - time.monotonic()))
        if (left := writer.pending) is not None:  # the server does not answer
            book.enter(asdict(left.entry("unknown", "")))
    sys.stdout.flush()
    os._exit(0)  # threads that still wait for a server would hold it up


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--address", type=Path, required=True, help="file that holds the database's URL")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--name", required=True, help="part of every id that it writes")
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--rate", type=float, default=300.0, help="writes a second, of all writers")
    parser.add_argument("--seed", type=int, default=1)
    return parser


if __name__ == "__main__":
    main()
