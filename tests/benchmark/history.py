"""How long a live insert takes on the target while its history arrives: `python -m tests.benchmark.history`.

Two servers; the target has the keys, and writers insert request logs there one by one, each its own transaction.
First alone, then next to `copy --only spendlogs --on-existing skip --order newest` at every `--rates`. Prints the
middle and the slow end of what one insert took, and ends with status 1 when an insert failed or a row of either side
is missing. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg

from mishika_migrate.sandbox import sample, schema, servers
from tests.benchmark import peers
from tests.fix_faults import measured

_INSERT = (
    f'INSERT INTO "{peers.SPENDLOGS}" (request_id, call_type, api_key, "startTime", "endTime", messages)'
    " VALUES (%s, 'acompletion', %s, now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC',"
    " jsonb_build_object('content', repeat('a word ', 120)))"
)


class _Writers:
    """Insert at `rate` rows a second altogether while the block lasts; `taken` are the seconds of each."""

    def __init__(self, url: str, mark: str, *, count: int, rate: float) -> None:
        self._url, self._mark, self._pause = url, mark, count / rate
        self.taken: list[float] = []
        self.failed: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(count)]

    def __enter__(self) -> _Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _write(self, number: int) -> None:
        with psycopg.connect(self._url, autocommit=True) as session:
            row = 0
            while not self._over.wait(self._pause):
                row += 1
                began = time.perf_counter()
                try:
                    session.execute(_INSERT, [f"{self._mark}-{number}-{row}", f"live-{number}"])
                except psycopg.Error as error:
                    self.failed.append(str(error))
                else:
                    self.taken.append(time.perf_counter() - began)


def main() -> None:
    asked = _arguments()
    found = [each for each in servers.find_binaries() if each.version == asked.server]
    binaries = found[0] if found else servers.embedded()
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="mm-bench-") as name, _servers(Path(name), binaries) as (old, new):
        schema.apply(old.url())
        sample.fill(old.url(), keys=asked.keys, logs=asked.logs)
        schema.create_views(old.url())
        schema.apply(new.url())
        print(
            f"PostgreSQL {binaries.version}, {asked.logs:,} request logs, {asked.writers} writers of {asked.rate:g}/s"
        )
        print("| next to it | seconds | inserts | middle ms | 95 % under ms | of idle | 99 % under ms |")
        print("|---|---|---|---|---|---|---|")
        idle = 0.0
        for number, limit in enumerate(["", *asked.rates]):
            with psycopg.connect(new.url(), autocommit=True) as session:
                session.execute(f"CREATE DATABASE t{number} TEMPLATE postgres".encode())
            target = new.url(f"t{number}")
            _ours(name, old.url(), target, "copy", "--no-verify")
            began = time.monotonic()
            with _Writers(target, f"live-{number}", count=asked.writers, rate=asked.rate) as writers:
                if limit:
                    how = () if limit == "none" else ("--max-rate", limit)
                    more = ("--only", "spendlogs", "--on-existing", "skip", "--order", "newest", "--no-verify", *how)
                    _ours(name, old.url(), target, "copy", *more)
                else:
                    time.sleep(asked.idle)
            taken = time.monotonic() - began
            cuts = statistics.quantiles(writers.taken, n=100)
            idle = idle or cuts[94]
            cells = (f"{taken:.1f}", f"{len(writers.taken):,}", f"{cuts[49] * 1e3:.2f}", f"{cuts[94] * 1e3:.2f}",
                     f"{cuts[94] / idle:.2f}", f"{cuts[98] * 1e3:.2f}")  # fmt: skip
            print(f"| {f'copy, --max-rate {limit}' if limit else 'nothing'} | {' | '.join(cells)} |", flush=True)
            wrong += len(writers.failed) + _missing(old.url(), target, len(writers.taken), history=bool(limit))
    sys.exit(1 if wrong else 0)


@contextmanager
def _servers(room: Path, binaries: servers.Binaries) -> Iterator[tuple[servers.Server, servers.Server]]:
    with ExitStack() as stack:
        old, new = (
            stack.enter_context(servers.Server.create(room / side, binaries=binaries)) for side in ("old", "new")
        )
        yield old, new


def _ours(room: str, source: str, target: str, *words: str) -> None:
    ended, _ = measured(Path(room), *words, "--yes", "--quiet", "--source", source, "--target", target)
    assert ended.status == 0, ended.err


def _missing(source: str, target: str, live: int, *, history: bool) -> int:
    count = f'SELECT count(*) FROM "{peers.SPENDLOGS}"'
    with psycopg.connect(source) as old, psycopg.connect(target) as new:
        there = (new.execute(count.encode()).fetchone() or (0,))[0]
        sent = (old.execute(count.encode()).fetchone() or (0,))[0] if history else 0
    lost = sent + live - there
    if lost:
        print(f"{lost} rows are missing on the target", file=sys.stderr)
    return abs(int(lost))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=int, default=200_000)
    parser.add_argument("--keys", type=int, default=2_000)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--rate", type=float, default=100.0, help="live inserts a second of all writers")
    parser.add_argument("--rates", nargs="*", default=["10MB/s", "20MB/s", "none"], help="--max-rate of the copies")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds without a copy")
    parser.add_argument("--server", type=int, default=0, help="major version on both sides; 0 is the embedded one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
