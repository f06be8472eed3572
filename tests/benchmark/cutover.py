"""Cuts over under the traffic of `tests.load`, again and again: how long nobody could write, and that nothing was lost.

Run by hand: `python -m tests.benchmark.cutover --help`; `--smoke` first. Starts two servers, and for every run gives
them fresh databases, copies and switches with the real program while the load writes, and holds every acknowledged
write against what is there in the end. Prints a Markdown page; ends with status 1 when a write was lost, was there
twice, or a command failed. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from mishika_migrate.sandbox import schema, servers
from tests import load
from tests.benchmark import peers
from tests.fix_program import command, environment

_PROMISED = {"replication": (2.0, 5.0), "sync": (2.0, 10.0)}
"""Seconds without writes: the middle and the worst of all runs."""
_PATIENCE = 60.0  # seconds until the side that follows must have everything


@dataclass(kw_only=True)
class Switch:
    """A cutover or a rollback: the pause as the load saw it, the longest that one write took, and what the program
    told of itself, all in seconds."""

    verb: str
    seen: float
    waited: float
    told: float
    took: float
    steps: dict[str, float]


@dataclass(kw_only=True)
class Run:
    """`gap` is the longest time without any acknowledged write, switches and all else, in seconds.

    `failed` is what a command said that did not end well; the run ends there, and is checked all the same.
    """

    switches: list[Switch] = field(default_factory=list)
    copied: float = 0.0
    writes: int = 0
    rate: float = 0.0
    gap: float = 0.0
    in_doubt: int = 0
    hindrances: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    failed: str = ""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Where one run takes place."""

    asked: argparse.Namespace
    address: Path
    source: str
    target: str


class _Failed(Exception):
    pass


def main() -> None:
    asked = arguments()
    with tempfile.TemporaryDirectory(prefix="mm-bench-") as name, ExitStack() as stack:
        room = Path(name)
        old, new = (
            stack.enter_context(servers.Server.create(room / side, binaries=_binaries(version), settings=settings))
            for side, version, settings in (
                ("old", asked.old, {"fsync": asked.fsync}),
                ("new", asked.new, {"fsync": asked.fsync}),
            )
        )
        peers.fill(old, new, asked)
        _prepare(old.url("filled"))
        runs: list[Run] = []
        for turn in range(asked.runs):
            runs.append(_run(asked, room / f"address{turn}", old, new))
            print(f"{turn + 1}/{asked.runs} {_line(runs[-1])}", file=sys.stderr, flush=True)
        print(_report(asked, runs))
        if asked.json:
            about = {name: str(value) for name, value in vars(asked).items()}
            asked.json.write_text(json.dumps({**about, "results": [asdict(run) for run in runs]}, indent=1))
    sys.exit(1 if any(run.violations or run.failed for run in runs) else 0)


def _binaries(version: int) -> servers.Binaries:
    found = [each for each in servers.find_binaries() if each.version == version]
    if not found:
        raise SystemExit(f"there is no PostgreSQL {version} on this machine")
    return found[0]


def _prepare(url: str) -> None:
    schema.create_views(url)
    load.settle(url)
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("VACUUM ANALYZE")


# -- one run --------------------------------------------------------------------------------------


def _run(asked: argparse.Namespace, address: Path, old: servers.Server, new: servers.Server) -> Run:
    for server in (old, new):
        _clear_away(server)
    scene = Scene(asked=asked, address=address, source=_fresh(old, "filled"), target=_fresh(new, "bare"))
    address.write_text(scene.source)
    initial = load.state(scene.source)
    run, taken = Run(), list[Switch]()
    with load.Load(address, writers=asked.writers, rate=asked.rate) as traffic:
        try:
            _move(scene, run, taken)
        except _Failed as failed:
            run.failed = str(failed)
    for switch, pause in zip(taken, traffic.pauses(), strict=False):
        switch.seen, switch.waited = pause.seconds, pause.waited
        run.switches.append(switch)
    journal = traffic.journal()
    run.writes = len(journal.acknowledged)
    run.rate = statistics.median(traffic.per_second())
    run.gap = traffic.longest_gap()
    run.in_doubt = sum(each.outcome == "unknown" for each in journal.entries)
    run.hindrances = dict(journal.hindrances)
    run.violations = _violations(scene, traffic, initial, moved=len(run.switches) > 0)
    if len(taken) != len(run.switches):
        run.violations.append(f"{len(taken)} switches, but traffic moved {len(run.switches)} times")
    return run


def _move(scene: Scene, run: Run, taken: list[Switch]) -> None:
    asked = scene.asked
    replicates = asked.method == "replication"
    began = time.monotonic()
    _ours(scene, "copy", "--include-spendlogs", *(["--follow"] if replicates else []))
    run.copied = time.monotonic() - began
    time.sleep(asked.before)
    _switch(scene, taken, "cutover", scene.target, "--method", asked.method)
    if asked.rollback:
        time.sleep(asked.stay)
        _switch(scene, taken, "rollback", scene.source)
    time.sleep(asked.after)


def _switch(scene: Scene, taken: list[Switch], verb: str, to: str, *options: str) -> None:
    new = scene.address.with_suffix(".new")
    move = f"printf %s {shlex.quote(to)} > {shlex.quote(str(new))} && mv {new} {scene.address}"
    _ours(scene, verb, *options, "--dry-run")  # under traffic, too, every gate must be passed
    began = time.monotonic()
    told = _ours(scene, verb, *options, "--on-switch", move)
    taken.append(
        Switch(
            verb=verb,
            seen=0.0,
            waited=0.0,
            told=float(told["pause"]),
            took=time.monotonic() - began,
            steps={step["name"]: step["seconds"] for step in told["steps"]},
        )
    )


def _ours(scene: Scene, verb: str, *options: str) -> dict[str, Any]:
    """The line of its result, with the program's own defaults."""
    ends = ("--source", scene.source, "--target", scene.target)
    done = subprocess.run(
        command(verb, *options, *ends, "--yes", "--json"),
        env={name: value for name, value in environment().items() if not name.startswith("MISHIKA_MIGRATE_")},
        cwd=scene.address.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise _Failed(f"{verb} ended with status {done.returncode}: {done.stderr.strip()[-2000:]}")
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    return next((line for line in reversed(lines) if line["event"] == verb), {})


# -- what is there in the end ---------------------------------------------------------------------


def _violations(scene: Scene, traffic: load.Load, initial: load.State, *, moved: bool) -> list[str]:
    here = scene.address.read_text()
    other = scene.source if here == scene.target else scene.target
    found = [f"where traffic is: {each}" for each in traffic.check(here, initial)]
    if not moved:
        return found
    for url in (here, other):
        found += [f"where it was acknowledged: {each}" for each in traffic.check_kept(url, url)]
    if scene.asked.method == "replication":
        found += [f"on the side that follows: {each}" for each in _followed(lambda: traffic.check(other, initial))]
    return found


def _followed(check: Callable[[], list[str]]) -> list[str]:
    """What is still not right when a change must long have arrived."""
    deadline = time.monotonic() + _PATIENCE
    while (found := check()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


# -- databases ------------------------------------------------------------------------------------


def _fresh(server: servers.Server, template: str) -> str:
    with psycopg.connect(server.url(), autocommit=True) as session:
        session.execute("DROP DATABASE IF EXISTS moved WITH (FORCE)")
        # Its files, not its pages by way of the WAL.
        session.execute(
            sql.SQL("CREATE DATABASE moved TEMPLATE {} STRATEGY file_copy").format(sql.Identifier(template))
        )
        session.execute("CHECKPOINT")
    return server.url("moved")


def _clear_away(server: servers.Server) -> None:
    """Subscriptions and slots, which would keep the database of the run before; whatever became of it."""
    with psycopg.connect(server.url(), autocommit=True) as session:
        for name in _names(session, "SELECT subname FROM pg_subscription"):
            with psycopg.connect(server.url("moved"), autocommit=True) as inside:
                for change in ("DISABLE", "SET (slot_name = NONE)"):
                    inside.execute(sql.SQL("ALTER SUBSCRIPTION {} {}").format(sql.Identifier(name), sql.SQL(change)))
                inside.execute(sql.SQL("DROP SUBSCRIPTION {}").format(sql.Identifier(name)))
        for name in _names(session, "SELECT slot_name FROM pg_replication_slots"):
            _drop_slot(session, name)


def _drop_slot(session: psycopg.Connection[Any], name: str) -> None:
    ended = "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = %s AND active"
    while True:
        session.execute(ended, [name])
        try:
            session.execute("SELECT pg_drop_replication_slot(%s)", [name])
            return
        except psycopg.errors.ObjectInUse:
            time.sleep(0.1)  # its reader came back before it was told not to


def _names(session: psycopg.Connection[Any], query: str) -> list[str]:
    return [str(name) for (name,) in session.execute(query.encode())]


# -- the page -------------------------------------------------------------------------------------


def _line(run: Run) -> str:
    said = [f"{each.verb}: {each.seen:.2f} s seen, {each.told:.2f} s told" for each in run.switches]
    said += [f"{run.writes:,} writes, {run.rate:.0f}/s", f"{len(run.violations)} violations"]
    return "; ".join([*said, *run.violations[:5], *([run.failed] if run.failed else [])])


def _report(asked: argparse.Namespace, runs: Sequence[Run]) -> str:
    hindrances = sorted({name for run in runs for name in run.hindrances})
    rates = [run.rate for run in runs]
    middle, worst = _PROMISED[asked.method]
    return "\n".join([
        f"{os.cpu_count()} cores, {platform.machine()}, PostgreSQL {asked.old} → {asked.new}, {asked.method},"
        f" {asked.keys:,} keys, {asked.logs:,} request logs, fsync {asked.fsync}, {len(runs)} runs;"
        f" {asked.writers} writers, {asked.rate:g} writes/s asked for.",
        "",
        "| | switches | pause p50, s | worst | one write, worst | told p50 | worst | slowest steps p50, s |",
        "|---|---|---|---|---|---|---|---|",
        *_rows(runs),
        "",
        f"Promised: {middle:g} s, worst {worst:g} s. {sum(run.writes for run in runs):,} writes acknowledged, a median"
        f" of {statistics.median(rates):.0f} a second ({min(rates):.0f} in the slowest run),"
        f" {sum(run.in_doubt for run in runs)} in doubt; {max(run.gap for run in runs):.2f} s the longest time without"
        f" any. Copy: {statistics.median(run.copied for run in runs):.1f} s.",
        f"Tries that failed: {', '.join(f'{_state(name)} {_sum(runs, name):,}' for name in hindrances) or 'none'}.",
        f"**{sum(len(run.violations) for run in runs)} violations**,"
        f" {sum(bool(run.failed) for run in runs)} of {len(runs)} runs failed.",
        *(f"- run {number}: {each}" for number, run in enumerate(runs, 1) for each in run.violations[:20]),
        *(f"- run {number}: {run.failed}" for number, run in enumerate(runs, 1) if run.failed),
    ])  # fmt: skip


def _rows(runs: Sequence[Run]) -> Iterator[str]:
    for verb in ("cutover", "rollback"):
        found = [each for run in runs for each in run.switches if each.verb == verb]
        if found:
            seen, told = ([getattr(each, name) for each in found] for name in ("seen", "told"))
            yield (
                f"| {verb} | {len(found)} | {statistics.median(seen):.2f} | {max(seen):.2f}"
                f" | {max(each.waited for each in found):.2f} | {statistics.median(told):.2f} | {max(told):.2f}"
                f" | {_slowest([each.steps for each in found])} |"
            )


def _slowest(steps: Sequence[Mapping[str, float]]) -> str:
    middles = {name: statistics.median(each.get(name, 0.0) for each in steps) for name in steps[0]}
    return ", ".join(f"{name} {taken:.2f}" for name, taken in sorted(middles.items(), key=lambda pair: -pair[1])[:4])


def _sum(runs: Sequence[Run], state: str) -> int:
    return sum(run.hindrances.get(state, 0) for run in runs)


def _state(name: str) -> str:
    return {"25006": "fenced (25006)", "40P01": "deadlock (40P01)", "": "no connection"}.get(name, name)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=int, default=servers.embedded().version, help="major version of the source")
    parser.add_argument("--new", type=int, default=servers.embedded().version, help="major version of the target")
    parser.add_argument("--method", choices=tuple(_PROMISED), default="replication")
    parser.add_argument("--rollback", action="store_true", help="go back after --stay seconds on the target")
    parser.add_argument("--keys", type=int, default=20_000)
    parser.add_argument("--logs", type=int, default=500_000)
    parser.add_argument("--long-logs", type=int, help="those of about 10 KB (a tenth)")
    parser.add_argument("--usage", type=int, default=0)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--rate", type=float, default=300.0, help="writes a second of all writers (%(default)s)")
    parser.add_argument("--before", type=float, default=5.0, help="seconds between copy and cutover (%(default)s)")
    parser.add_argument("--stay", type=float, default=30.0, help="seconds on the target (%(default)s)")
    parser.add_argument("--after", type=float, default=5.0, help="seconds after the last switch (%(default)s)")
    parser.add_argument("--fsync", choices=("on", "off"), default="off", help="of both servers (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="once, with few rows: whether it works at all")
    parser.add_argument("--json", type=Path, help="also write everything here")
    asked = parser.parse_args()
    if asked.smoke:
        asked.keys, asked.logs, asked.runs, asked.before, asked.stay, asked.after = 500, 5_000, 1, 2.0, 4.0, 3.0
    if asked.long_logs is None:
        asked.long_logs = asked.logs // 10
    return asked


if __name__ == "__main__":
    main()
