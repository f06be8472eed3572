"""Moves traffic between two servers again and again, and measures for how long nobody could write.

Run by hand: `python -m tests.benchmark.cutover --help`. Each run copies and follows a filled database
under traffic (`tests.traffic`), cuts over, lets the traffic go on, and on request rolls back; then it
checks that every acknowledged write is there once.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg

from mishika_migrate.sandbox import sample, schema, servers
from tests import traffic
from tests.fix_program import command, environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--old", type=int, default=18, help="major version of the source")
    parser.add_argument("--new", type=int, default=18, help="major version of the target")
    parser.add_argument("--keys", type=int, default=20_000)
    parser.add_argument("--logs", type=int, default=500_000)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rate", type=float, default=330.0, help="transactions a second")
    parser.add_argument("--method", choices=("replication", "sync"), default="replication")
    parser.add_argument("--rollback", type=float, metavar="SECONDS", help="roll back after so many seconds")
    parser.add_argument("--settle", type=float, default=3.0, help="seconds of traffic before and after")
    asked = parser.parse_args()
    known = {each.version: each for each in servers.find_binaries()}
    with tempfile.TemporaryDirectory(prefix="mm-bench-") as name, ExitStack() as stack:
        room = Path(name)
        old, new = (
            stack.enter_context(
                servers.Server.create(room / side, binaries=known[version], settings={"max_connections": "60"})
            )
            for side, version in (("old", asked.old), ("new", asked.new))
        )
        for server, filled in ((old, True), (new, False)):
            _ask(server.url(), "CREATE DATABASE template")
            schema.apply(server.url("template"))
            if filled:
                schema.create_views(server.url("template"))
                sample.fill(server.url("template"), keys=asked.keys, logs=asked.logs, usage=2000)
                _ask(server.url("template"), "VACUUM ANALYZE")
        print(
            f"PostgreSQL {asked.old} to {asked.new}, {asked.keys:,} keys, {asked.logs:,} logs, {asked.method}",
            flush=True,
        )
        results = [_run(asked, room, old, new, number) for number in range(asked.runs)]
    for verb in ("cutover", *(["rollback"] if asked.rollback else [])):
        seen = sorted(each[verb]["seen"] for each in results)
        print(f"{verb}: write pause p50 {statistics.median(seen):.2f} s, worst {seen[-1]:.2f} s")
    print(f"violations: {sum(each['violations'] for each in results)}")


def _run(
    asked: argparse.Namespace, room: Path, old: servers.Server, new: servers.Server, number: int
) -> dict[str, Any]:
    for server in (old, new):
        _ask(server.url(), "DROP DATABASE IF EXISTS proxy WITH (FORCE)")
        _ask(server.url(), "CREATE DATABASE proxy TEMPLATE template")
    ends = old.url("proxy"), new.url("proxy")
    address = room / "address"
    address.write_text(ends[0])
    before = traffic.spends(ends[0])
    found: dict[str, Any] = {}
    spans: dict[str, tuple[float, float]] = {}
    with traffic.flowing(address, room / "book", rate=asked.rate) as ran:
        follow = ["--follow"] if asked.method == "replication" else []
        _tool(ends, "copy", *follow, "--include-spendlogs", "--yes")
        time.sleep(asked.settle)
        for verb, to in (("cutover", ends[1]), *([("rollback", ends[0])] if asked.rollback else [])):
            switch = f"printf %s {shlex.quote(to)} > {address}.new && mv {address}.new {address}"
            began = time.time()
            lines = _tool(ends, verb, "--yes", "--json", "--on-switch", switch)
            found[verb] = next(line for line in lines if line["event"] == verb)
            time.sleep(asked.rollback if asked.rollback and verb == "cutover" else asked.settle)
            spans[verb] = (began, time.time())
    for verb, span in spans.items():
        found[verb]["seen"] = ran.pauses(*span)
    wrong = traffic.violations(address.read_text(), before, ran)
    if asked.method == "replication":
        _tool(ends, "complete", "--yes")
    told = ", ".join(
        f"{verb} {each['seen']:.2f} s seen, {each['pause']:.2f} s said ("
        + ", ".join(f"{step['name']} {step['seconds']:.2f}" for step in each["steps"])
        + ")"
        for verb, each in found.items()
    )
    print(f"run {number + 1}: {told}; {len(ran.times):,} writes, {ran.rate:.0f}/s, {len(wrong)} violations", flush=True)
    for each in wrong[:5]:
        print(f"    {each}")
    return {**found, "violations": len(wrong)}


def _tool(ends: tuple[str, str], *words: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        command(*words, "--source", ends[0], "--target", ends[1]),
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{words[0]} ended with {done.returncode}:\n{done.stderr}\n{done.stdout}")
    return [json.loads(line) for line in done.stdout.splitlines()] if "--json" in words else []


def _ask(url: str, query: str) -> None:
    with psycopg.connect(url, autocommit=True) as session:
        session.execute(query.encode())


if __name__ == "__main__":
    main()
