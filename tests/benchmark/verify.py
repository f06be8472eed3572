"""Times `verify` against a plain digest of every row, `SELECT count(*), sum(hashtext(t::text))`, on both sides at once.

Run by hand: `python -m tests.benchmark.verify --help`. Starts two servers, fills one, copies it, then runs both ways
in turns; prints medians, CPU seconds and the ratio run by run, then the verdicts of all keys alone, then the memory
for a million rows that differ. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import psycopg

from mishika_migrate.sandbox import schema, servers
from tests.benchmark import peers
from tests.fix_faults import measured

TABLE = peers.SPENDLOGS


def main() -> None:
    asked = arguments(__doc__)
    found = [each for each in servers.find_binaries() if each.version == asked.server]
    binaries = found[0] if found else servers.embedded()
    with tempfile.TemporaryDirectory(prefix="mm-bench-") as name, ExitStack() as stack:
        room = Path(name)
        old, new = (
            stack.enter_context(servers.Server.create(room / side, binaries=binaries)) for side in ("old", "new")
        )
        peers.fill(old, new, asked)
        ends = old.url("filled"), new.url("bare")
        schema.create_views(ends[0])
        _ours(room, "copy", "--yes", "--everything", "--no-verify", ends=ends)
        with psycopg.connect(ends[1], autocommit=True) as session:
            session.execute("VACUUM ANALYZE")
        print(
            f"PostgreSQL {binaries.version}, {asked.logs:,} request logs, {asked.keys:,} keys, {asked.runs} runs each"
        )
        _compare(asked, room, (old, new), ends)
        _million(room, ends)


def _compare(asked: argparse.Namespace, room: Path, both: Sequence[servers.Server], ends: tuple[str, str]) -> None:
    logs = ("verify", "--only", "spendlogs", "--allow-unchecked", "views")
    ways: dict[str, Callable[[], float]] = {
        "verify, fast hash": lambda: _ours(room, *logs, ends=ends),
        "of it the content alone, without start-up, views and other checks": lambda: _content(room, *logs, ends=ends),
        "verify, exact hash": lambda: _ours(room, *logs, "--hash", "exact", ends=ends),
        "sum(hashtext(t::text)), both sides at once": lambda: _plain(ends),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(asked.runs):
        for name, way in ways.items():
            before = sum(map(peers.cpu, both))
            taken[name].append(way())
            spent[name].append(sum(map(peers.cpu, both)) - before)
            print(f"{turn + 1}/{asked.runs} {name}: {taken[name][-1]:.2f} s", file=sys.stderr)
    *_, plain = taken
    for name, walls in taken.items():
        ratio = statistics.median(one / other for one, other in zip(walls, taken[plain], strict=True))
        print(
            f"{name}: {statistics.median(walls):.2f} s ({min(walls):.2f} to {max(walls):.2f}),"
            f" servers' CPU {statistics.median(spent[name]):.1f} s, {ratio:.2f} of the plain digest"
        )
    keys = [_ours(room, "verify", "--exclude", "spendlogs", "--allow-unchecked", "decryption", ends=ends)
            for _ in range(asked.runs)]  # fmt: skip
    print(f"all but the logs, with a verdict for {asked.keys:,} keys: {statistics.median(keys):.2f} s")


def _million(room: Path, ends: tuple[str, str]) -> None:
    for url, shift in zip(ends, (0, 1), strict=True):
        with psycopg.connect(url, autocommit=True) as session:
            session.execute("CREATE TABLE many (id int PRIMARY KEY, n int NOT NULL)")
            session.execute(f"INSERT INTO many SELECT n, n + {shift} FROM generate_series(1, 1000000) n".encode())
    began = time.monotonic()
    ended, peak = measured(room, "verify", "--only", "many", "--json", "--source", ends[0], "--target", ends[1])
    assert ended.status == 3 and '"differing": 1000000' in ended.out, ended.err
    print(f"1,000,000 rows that differ: {time.monotonic() - began:.1f} s, peak {peak / 1e6:.0f} MB")


def _ours(room: Path, *arguments: str, ends: tuple[str, str]) -> float:
    began = time.monotonic()
    ended, _ = measured(room, *arguments, "--quiet", "--source", ends[0], "--target", ends[1])
    assert ended.status == 0, ended.out + ended.err
    return time.monotonic() - began


def _content(room: Path, *arguments: str, ends: tuple[str, str]) -> float:
    """Seconds of comparing the rows, as the command itself tells."""
    ended, _ = measured(room, *arguments, "--quiet", "--json", "--source", ends[0], "--target", ends[1])
    assert ended.status == 0, ended.out + ended.err
    lines = map(json.loads, ended.out.splitlines())
    return float(next(line["seconds"] for line in lines if line["event"] == "content"))


def _plain(ends: tuple[str, str]) -> float:
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        ours, theirs = pool.map(_digest, ends)
    assert ours == theirs
    return time.monotonic() - began


def _digest(url: str) -> object:
    with psycopg.connect(url) as session:
        return session.execute(f'SELECT count(*), sum(hashtext(t::text)) FROM "{TABLE}" t'.encode()).fetchone()


def arguments(about: str | None) -> argparse.Namespace:
    """How much there is to compare, and how often."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=int, default=560_000)
    parser.add_argument("--long-logs", type=int, default=60_000)
    parser.add_argument("--usage", type=int, default=0)
    parser.add_argument("--keys", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--server", type=int, default=0, help="major version on both sides; 0 is the embedded one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
