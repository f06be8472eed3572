"""How well `--max-rate` is kept, and how soon Ctrl-C ends a paused run: `python -m tests.benchmark.throttle`.

Two servers of the wheel and the packaged sample's request logs. The rate is taken from what the target
has received (finished steps and open streams, as its server counts): from the first to the last moment
at which all jobs copy, at least five seconds apart, and over the whole copy of the logs, with the
start of processes and the last steps that have no others beside them.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg

from mishika_migrate.sandbox import sample, schema, servers
from tests.fix_cluster import Cluster
from tests.fix_program import command, environment

_RECEIVED = """
SELECT (SELECT count(*) FROM pg_stat_progress_copy WHERE command = 'COPY FROM'),
       (SELECT coalesce(sum(bytes), 0) FROM mishika_migrate.step
        WHERE "table" = 'MishikaLLM_SpendLogs')::int8
     + (SELECT coalesce(sum(bytes_processed), 0) FROM pg_stat_progress_copy
        WHERE relid = '"MishikaLLM_SpendLogs"'::regclass)::int8
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--logs", type=int, default=100_000)
    options.add_argument("--rate", type=float, default=15.0, help="MB/s")
    options.add_argument("--batch", default="8MB")
    options.add_argument("--executors", nargs="*", default=["threads", "processes", "dask"])
    options.add_argument("--jobs", nargs="*", type=int, default=[1, 4, 8])
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="mm-throttle-") as folder, ExitStack() as stack:
        binaries = servers.embedded()
        old = stack.enter_context(servers.Server.create(Path(folder) / "old", binaries=binaries))
        new = stack.enter_context(servers.Server.create(Path(folder) / "new", binaries=binaries))
        schema.apply(old.url())
        sample.fill(old.url(), keys=100, logs=given.logs, usage=0)
        with psycopg.connect(new.url(), autocommit=True) as session:
            session.execute("CREATE DATABASE bare")
        schema.apply(new.url("bare"))
        print(f"{'executor':<10} {'jobs':>4} {'seconds':>8} {'MB/s':>8} {'of rate':>8} {'whole':>9} {'Ctrl-C, s':>16}")
        for name in given.executors:
            where = f"dask={stack.enter_context(closing(Cluster())).address}" if name == "dask" else name
            for jobs in given.jobs:
                seconds, rate, whole = _rate(old.url(), _fresh(new), where, jobs, given)
                ended = _ctrl_c(old.url(), _fresh(new), where, jobs, given)
                cells = f"{rate:>8.2f} {rate / given.rate:>8.1%} {whole / given.rate:>9.1%} {ended:>16.2f}"
                print(f"{name:<10} {jobs:>4} {seconds:>8.1f} {cells}", flush=True)


def _fresh(server: servers.Server) -> str:
    with psycopg.connect(server.url(), autocommit=True) as session:
        session.execute("DROP DATABASE IF EXISTS goal WITH (FORCE)")
        session.execute("CREATE DATABASE goal TEMPLATE bare")
    return server.url("goal")


def _begin(source: str, target: str, executor: str, jobs: int, given: Any) -> subprocess.Popen[bytes]:
    arguments = ("copy", "--include-spendlogs", "--yes", "--quiet", "--source", source, "--target", target)
    more = ("--executor", executor, "--jobs", str(jobs), "--max-rate", f"{given.rate}MB/s", "--batch-size", given.batch)
    return subprocess.Popen(command(*arguments, *more), env=environment(), stdout=subprocess.DEVNULL)


def _received(session: psycopg.Connection[Any]) -> tuple[int, int]:
    """Open streams, and bytes."""
    row = session.execute("SELECT to_regclass('mishika_migrate.step') IS NOT NULL").fetchone()
    row = session.execute(_RECEIVED.encode()).fetchone() if row and row[0] else None
    return (int(row[0]), int(row[1])) if row else (0, 0)


def _rate(source: str, target: str, executor: str, jobs: int, given: Any) -> tuple[float, float, float]:
    """Seconds and MB/s while all jobs copied, and MB/s of the whole."""
    samples: list[tuple[float, int, int]] = []
    program = _begin(source, target, executor, jobs, given)
    with psycopg.connect(target, autocommit=True) as session:
        while program.poll() is None:
            samples.append((time.monotonic(), *_received(session)))
            time.sleep(0.05)
    assert program.returncode == 0
    moving = [each for each in samples if 0 < each[2] < samples[-1][2]]
    steady = [each for each in moving if each[1] >= jobs]
    seconds = steady[-1][0] - steady[0][0]
    assert seconds >= 5, f"only {seconds:.1f} s: more --logs, or a lower --rate"
    return seconds, _speed(steady), _speed(moving)


def _speed(samples: list[tuple[float, int, int]]) -> float:
    return (samples[-1][2] - samples[0][2]) / (samples[-1][0] - samples[0][0]) / 1e6


def _ctrl_c(source: str, target: str, executor: str, jobs: int, given: Any) -> float:
    program = _begin(source, target, executor, jobs, given)
    with psycopg.connect(target, autocommit=True) as session:
        while not _received(session)[1]:
            time.sleep(0.05)
    subprocess.run(command("throttle", "pause", "--target", target), env=environment(), check=True, capture_output=True)
    time.sleep(1.0)
    began = time.monotonic()
    program.send_signal(signal.SIGINT)
    assert program.wait(timeout=60) == 130
    return time.monotonic() - began


if __name__ == "__main__":
    main()
