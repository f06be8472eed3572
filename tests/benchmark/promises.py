"""Times what an operator feels, on this machine: help, plan, a copy of 20,000 keys, sample rows, memory, Ctrl-C.

Run by hand: `python -m tests.benchmark.promises`. Starts two servers of its own; prints medians, their
spread and what is promised, as a table or with `--json` as one object a line. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import psycopg

from mishika_migrate.sandbox import sample, schema, servers
from tests.fix_faults import LOGS, Program, blocked, locked, measured, wait_until
from tests.fix_network import Proxy
from tests.fix_program import command, environment


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The middle of `runs` measurements, and the ends; `promised` is None where nothing is."""

    what: str
    unit: str
    median: float
    low: float
    high: float
    runs: int
    promised: float | None = None


def main() -> None:
    asked = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="mm-promises-") as name, ExitStack() as stack:
        folder = Path(name)
        binaries = servers.embedded()
        old = stack.enter_context(servers.Server.create(folder / "old", binaries=binaries))
        new = stack.enter_context(servers.Server.create(folder / "new", binaries=binaries))
        for found in _all(asked, folder, old, new):
            if asked.json:
                print(json.dumps(asdict(found)), flush=True)
            else:
                _print(found)


def _all(asked: argparse.Namespace, folder: Path, old: servers.Server, new: servers.Server) -> Iterator[Measured]:
    def middle(what: str, unit: str, measure: Callable[[], float], promised: float | None = None) -> Measured:
        taken = [measure() for _ in range(asked.runs)]
        return Measured(
            what=what, unit=unit, median=statistics.median(taken), low=min(taken), high=max(taken),
            runs=len(taken), promised=promised,
        )  # fmt: skip

    yield middle("--help", "s", lambda: _wall("--help"), 0.35)
    yield middle("copy --help", "s", lambda: _wall("copy", "--help"), 0.35)
    for server in (old, new):
        _create(server, "bare")
        schema.apply(server.url("bare"))
    yield middle(f"sample log rows ({asked.logs:,})", "rows/s", lambda: _filled(old, asked.logs))
    _create(old, "keys", "bare")
    sample.fill(old.url("keys"), keys=asked.keys, logs=0, usage=0)
    _create(new, "goal", "bare")
    ends = ("--source", old.url("keys"), "--target", new.url("goal"))
    yield middle("plan of 23 tables", "s", lambda: _wall("plan", *ends), 1.0)
    yield middle(f"copy of {asked.keys:,} keys, from its start", "s", lambda: _copied(old, new, "keys"))
    yield middle(f"peak memory, copy of {asked.logs:,} logs", "MB", lambda: _memory(folder, old, new))
    yield middle("Ctrl-C while a table is locked", "s", lambda: _stopped(folder, old, new, silent=False), 2.0)
    yield middle("Ctrl-C while the network is silent", "s", lambda: _stopped(folder, old, new, silent=True), 3.0)


def _wall(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run(command(*arguments), env=environment(), capture_output=True, check=True)
    return time.perf_counter() - began


def _filled(old: servers.Server, logs: int) -> float:
    """Leaves them in `logs`."""
    _create(old, "logs", "bare")
    # What is not logs takes its time too.
    seconds = []
    for count in (0, logs):
        _create(old, "logs", "bare")
        began = time.perf_counter()
        sample.fill(old.url("logs"), keys=100, logs=count, usage=0)
        seconds.append(time.perf_counter() - began)
    return logs / (seconds[1] - seconds[0])


def _copied(old: servers.Server, new: servers.Server, name: str) -> float:
    """Seconds of the run itself, without the start of the program and the look at both servers."""
    _create(new, "goal", "bare")
    ends = ("--source", old.url(name), "--target", new.url("goal"))
    done = subprocess.run(
        command("copy", "--yes", "--json", "--verify", *ends),
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    (finished,) = [line for line in map(json.loads, done.stdout.splitlines()) if line["event"] == "run_finished"]
    return float(finished["seconds"])


def _memory(folder: Path, old: servers.Server, new: servers.Server) -> float:
    _create(new, "goal", "bare")
    ends = ("--source", old.url("logs"), "--target", new.url("goal"))
    done, peak = measured(folder, "copy", "--yes", "--quiet", "--verify", "--include-spendlogs", *ends)
    assert done.status == 0, done.err
    return peak / 1e6


def _stopped(folder: Path, old: servers.Server, new: servers.Server, *, silent: bool) -> float:
    """From the signal to the end of the program, with a step that waits for a lock of the target."""
    _create(new, "goal", "bare")
    goal = new.url("goal")
    with tempfile.TemporaryDirectory(dir=folder) as name, closing(Proxy(new.socket)) as way, locked(goal, LOGS):
        ends = ("--source", old.url("logs"), "--target", way.url(goal))
        program = Program(Path(name), ("copy", "--yes", "--quiet", "--include-spendlogs", *ends), None)
        wait_until(lambda: blocked(goal))
        if silent:
            way.stall()
        began = time.perf_counter()
        program.signal(signal.SIGINT)
        assert program.ended().status == 130
        return time.perf_counter() - began


def _create(server: servers.Server, name: str, template: str = "template0") -> None:
    with psycopg.connect(server.url(), autocommit=True) as session:
        session.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
        session.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())


def _print(found: Measured) -> None:
    digits = 0 if found.median >= 100 else 2
    promised = "" if found.promised is None else f"  promised {found.promised:g}"
    print(
        f"{found.what:<40} {found.median:>10,.{digits}f} {found.unit:<6}"
        f"  {found.low:,.{digits}f} to {found.high:,.{digits}f}, {found.runs} runs{promised}",
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark.promises", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each measurement (%(default)s)")
    parser.add_argument("--keys", type=int, default=20_000)
    parser.add_argument("--logs", type=int, default=50_000)
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    main()
