"""Times this tool and every peer on PATH on the same data, interleaved, each on a fresh database.

Run by hand: `python -m tests.benchmark.peers --help`. It starts two servers of its own, fills one, and for
every mode prints wall seconds, CPU seconds of client, source and target, peak memory, and the ratio to this
tool; then a lower bound: what COPY OUT, COPY IN and the index builds cost alone. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql

from mishika_migrate.sandbox import sample, schema, servers

SPENDLOGS = "MishikaLLM_SpendLogs"
USAGE = "MishikaLLM_DailyUserSpend"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One run. CPU is user and system seconds; `memory` is the largest client process in MB."""

    wall: float
    client: float
    source: float
    target: float
    memory: float


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One way to move the rows: a shell command with {source}, {target} and the tools' folder on PATH."""

    name: str
    command: str
    prepared: bool = True
    """The target has the schema already; False: the command makes it."""
    does: str = ""


@dataclass(frozen=True, kw_only=True)
class Bench:
    old: servers.Server
    new: servers.Server
    tools: Path
    results: dict[str, list[Sample]] = field(default_factory=dict)


def modes(jobs: int, tables: Sequence[str], options: str) -> Iterator[Mode]:
    """This tool first, then whatever is installed."""
    us = f"{sys.executable} -m mishika_migrate copy --yes --quiet --jobs {jobs} {options}"
    yield Mode(
        name="mishika-migrate copy",
        command=f"{us} --source '{{source}}' --target '{{target}}'",
        does="one snapshot, ledger, accounting, indexes rebuilt",
    )
    pipes = "; ".join(
        f"psql -qXd '{{source}}' -c 'COPY \"{table}\" TO STDOUT'"
        f" | psql -qXd '{{target}}' -c 'COPY \"{table}\" FROM STDIN'"
        for table in tables
    )
    yield Mode(name="psql | psql", command=pipes, does=f"{len(tables)} tables, a snapshot each, indexes in place")
    only = " ".join(f"-t '\"{table}\"'" for table in tables)
    yield Mode(
        name="pg_dump --data-only | psql",
        command=f"pg_dump --data-only {only} -d '{{source}}' | psql -qXd '{{target}}' -v ON_ERROR_STOP=1",
        does="one snapshot, indexes in place",
    )
    yield Mode(
        name="pg_dump -Fc -Z0 | pg_restore",
        command="pg_dump -Fc -Z0 -d '{source}' | pg_restore --no-owner -d '{target}'",
        prepared=False,
        does="whole database with its schema, one snapshot, indexes built at the end one by one",
    )
    yield Mode(
        name=f"pg_dump -Fd -j{jobs}; pg_restore -j{jobs}",
        command=(
            f"rm -rf '{{room}}/dump' && pg_dump -Fd -Z0 -j{jobs} -f '{{room}}/dump' -d '{{source}}'"
            f" && pg_restore --no-owner -j{jobs} -d '{{target}}' '{{room}}/dump'"
        ),
        prepared=False,
        does="whole database through a folder on disk, tables and indexes side by side",
    )
    if shutil.which("pgcopydb"):
        yield Mode(
            name="pgcopydb clone",
            command=(
                f"pgcopydb clone --no-owner --table-jobs {jobs} --index-jobs {jobs} --dir '{{room}}/pgcopydb'"
                " --restart --source '{source}' --target '{target}'"
            ),
            prepared=False,
            does="whole database with its schema, one snapshot, tables and indexes side by side",
        )


def measure(bench: Bench, mode: Mode, room: Path) -> Sample:
    """One run on a fresh database; fails when the command does."""
    source, target = bench.old.url("filled"), fresh(bench.new, "bare" if mode.prepared else "template0")
    command = mode.command.format(source=source, target=target, room=room)
    environment = {**os.environ, "PATH": f"{bench.tools}:{os.environ['PATH']}"}
    before = cpu(bench.old), cpu(bench.new)
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(["sh", "-c", command], env=environment, stdout=subprocess.DEVNULL, stderr=said)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - began
        if child.returncode:
            said.seek(0)
            raise SystemExit(f"{mode.name} failed: {said.read()[-2000:]}")
    return Sample(
        wall=wall,
        client=used.ru_utime + used.ru_stime,
        source=cpu(bench.old) - before[0],
        target=cpu(bench.new) - before[1],
        memory=used.ru_maxrss / 1000,
    )


def fresh(server: servers.Server, template: str) -> str:
    with psycopg.connect(server.url(), autocommit=True) as session:
        session.execute("DROP DATABASE IF EXISTS moved WITH (FORCE)")
        session.execute(sql.SQL("CREATE DATABASE moved TEMPLATE {}").format(sql.Identifier(template)))
        session.execute("CHECKPOINT")
    return server.url("moved")


def cpu(server: servers.Server) -> float:
    """Seconds of the postmaster, its living children and those that have ended (Linux)."""
    ticks = os.sysconf("SC_CLK_TCK")
    pid = int((server.directory / "postmaster.pid").read_text().split()[0])
    family = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    total = 0
    for member in family:
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue  # ended meanwhile; the postmaster has its time
        total += sum(map(int, fields[11:15] if member == pid else fields[11:13]))
    return total / ticks


def bound(bench: Bench, tables: Sequence[str], room: Path) -> dict[str, float]:
    """Wall seconds of the parts alone: reading to nowhere, writing from a file without indexes, building them.

    Long values are compressed as this tool does it: with lz4 where the server has it.
    """
    parts = {"copy out": 0.0, "copy in": 0.0, "indexes": 0.0}
    target = fresh(bench.new, "bare")
    with psycopg.connect(target, autocommit=True) as session:
        found = session.execute(
            "SELECT '-c default_toast_compression=lz4' FROM pg_settings"
            " WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)"
        ).fetchone()
        compressed = str(found[0]) if found else ""
        for table in tables:
            parts["copy out"] += timed(bench, f"psql -qXd '{bench.old.url('filled')}' -c \"{out(table, '/dev/null')}\"")
            timed(bench, f"psql -qXd '{bench.old.url('filled')}' -c \"{out(table, str(room / 'rows'))}\"")
            definitions = [
                str(row[0])
                for row in session.execute(
                    "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = %s::regclass", [f'"{table}"']
                )
            ]
            session.execute(
                sql.SQL("CREATE UNLOGGED TABLE bound AS TABLE {} WITH NO DATA").format(sql.Identifier(table))
            )
            session.execute("ALTER TABLE bound SET LOGGED")
            parts["copy in"] += timed(
                bench,
                f"psql -qXd '{target}' -c \"\\copy bound from '{room / 'rows'}' (format binary)\"",
                options=compressed,
            )
            began = time.monotonic()
            for n, definition in enumerate(definitions):
                _, _, how = definition.partition(" USING ")
                session.execute(f"CREATE INDEX bound_{n} ON bound USING {how}".encode())
            parts["indexes"] += time.monotonic() - began
            session.execute("DROP TABLE bound")
    return parts


def out(table: str, place: str) -> str:
    return f"\\copy \\\"{table}\\\" to '{place}' (format binary)"


def timed(bench: Bench, command: str, *, options: str = "") -> float:
    environment = {**os.environ, "PATH": f"{bench.tools}:{os.environ['PATH']}", "PGOPTIONS": options}
    began = time.monotonic()
    subprocess.run(["sh", "-c", command], env=environment, check=True, capture_output=True)
    return time.monotonic() - began


def report(bench: Bench, wanted: Sequence[Mode], parts: dict[str, float], about: dict[str, object]) -> str:
    """A Markdown page: medians, and the ratio to the first mode run by run."""
    first = bench.results[wanted[0].name]
    lines = [
        f"{about['machine']}, PostgreSQL {about['server']}, {about['rows']}, {about['runs']} runs each, interleaved.",
        "",
        "| way | wall s | CPU s client / source / target | peak MB | ours / theirs | what it does |",
        "|---|---|---|---|---|---|",
    ]
    for mode in wanted:
        runs = bench.results[mode.name]
        ratio = statistics.median(ours.wall / theirs.wall for ours, theirs in zip(first, runs, strict=True))
        lines.append(
            f"| {mode.name} | {median(runs, lambda s: s.wall):.1f}"
            f" ({min(s.wall for s in runs):.1f}–{max(s.wall for s in runs):.1f})"
            f" | {median(runs, lambda s: s.client):.1f} / {median(runs, lambda s: s.source):.1f}"
            f" / {median(runs, lambda s: s.target):.1f} | {median(runs, lambda s: s.memory):.0f}"
            f" | {ratio:.2f} | {mode.does} |"
        )
    lower = max(parts["copy out"], parts["copy in"] + parts["indexes"])
    lines += [
        "",
        f"Lower bound: reading alone {parts['copy out']:.1f} s; writing alone {parts['copy in']:.1f} s and building"
        f" the indexes one by one {parts['indexes']:.1f} s; the longer of the two ends is {lower:.1f} s.",
    ]
    return "\n".join(lines)


def median(runs: Sequence[Sample], what: Callable[[Sample], float]) -> float:
    return statistics.median(map(what, runs))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=int, default=560_000, help="rows of SpendLogs")
    parser.add_argument("--long-logs", type=int, default=60_000, help="how many of them are long")
    parser.add_argument("--usage", type=int, default=2_000_000, help="rows of DailyUserSpend")
    parser.add_argument("--keys", type=int, default=20_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--server", type=int, default=0, help="major version on both sides; 0 is the embedded one")
    parser.add_argument("--only", default="", help="run only modes whose name contains this, and ours")
    parser.add_argument("--options", default="--everything", help="what ours is asked to copy")
    parser.add_argument("--json", type=Path, help="also write everything here")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    found = [each for each in servers.find_binaries() if each.version == asked.server]
    binaries = found[0] if found else servers.embedded()
    with tempfile.TemporaryDirectory(prefix="mm-bench-") as name:
        room = Path(name)
        with (
            servers.Server.create(room / "old", binaries=binaries) as old,
            servers.Server.create(room / "new", binaries=binaries) as new,
        ):
            fill(old, new, asked)
            bench = Bench(old=old, new=new, tools=binaries.path)
            run(bench, asked, room)


def fill(old: servers.Server, new: servers.Server, asked: argparse.Namespace) -> None:
    for server, name in ((old, "filled"), (new, "bare")):
        with psycopg.connect(server.url(), autocommit=True) as session:
            session.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        schema.apply(server.url(name))
    sample.fill(old.url("filled"), keys=asked.keys, logs=asked.logs, long_logs=asked.long_logs, usage=asked.usage)
    with psycopg.connect(old.url("filled"), autocommit=True) as session:
        session.execute("VACUUM ANALYZE")


def run(bench: Bench, asked: argparse.Namespace, room: Path) -> None:
    tables = [name for name, rows in ((SPENDLOGS, asked.logs), (USAGE, asked.usage)) if rows]
    wanted = [
        mode for n, mode in enumerate(modes(asked.jobs, tables, asked.options)) if n == 0 or asked.only in mode.name
    ]
    for turn in range(asked.runs):
        for mode in wanted:
            sampled = measure(bench, mode, room)
            bench.results.setdefault(mode.name, []).append(sampled)
            print(f"{turn + 1}/{asked.runs} {mode.name}: {sampled.wall:.1f} s", file=sys.stderr)
    parts = bound(bench, tables, room)
    about: dict[str, object] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "server": bench.old.version,
        "rows": f"{asked.logs:,} SpendLogs ({asked.long_logs:,} long), {asked.usage:,} DailyUserSpend",
        "runs": asked.runs,
    }
    print(report(bench, wanted, parts, about))
    if asked.json:
        results = {name: [asdict(each) for each in runs] for name, runs in bench.results.items()}
        asked.json.write_text(json.dumps({**about, "bound": parts, "results": results}, indent=1))


if __name__ == "__main__":
    main()
