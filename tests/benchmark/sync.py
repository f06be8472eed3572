"""Times `sync` against `verify` on the same two databases: unchanged, then with one row in a hundred changed.

Run by hand: `python -m tests.benchmark.sync --help`. Starts two servers, fills one, copies it, then runs both commands
in turns; prints medians, the ratio and how many bytes of rows travelled. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg

from mishika_migrate.sandbox import schema, servers
from tests.benchmark import peers, verify
from tests.fix_faults import measured

# Neither key nor foreign key is touched; the spend of history and of keys is what changes.
_CHANGES = (
    f'UPDATE "{peers.SPENDLOGS}" SET spend = spend + 1 WHERE hashtext(request_id) % 100 = {{0}}',
    'UPDATE "MishikaLLM_VerificationToken" SET spend = spend + 1 WHERE hashtext(token) % 100 = {0}',
)


def main() -> None:
    asked = verify.arguments(__doc__)
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
        _ours(room, ends, "copy", "--yes", "--everything", "--no-verify")
        for url in ends:
            with psycopg.connect(url, autocommit=True) as session:
                session.execute("VACUUM ANALYZE")
        print(
            f"PostgreSQL {binaries.version}, {asked.logs:,} request logs, {asked.keys:,} keys, {asked.runs} runs each"
        )
        _compare(asked, room, ends, changed=False)
        _compare(asked, room, ends, changed=True)


def _compare(asked: argparse.Namespace, room: Path, ends: tuple[str, str], *, changed: bool) -> None:
    ways = {
        "verify": ("verify", "--allow-unchecked", "decryption"),
        "sync": ("sync", "--yes", "--overwrite-live-target"),
        "sync --delete-extra (no row is known by visibility)": (
            "sync", "--yes", "--overwrite-live-target", "--delete-extra"
        ),
    }  # fmt: skip
    taken: dict[str, list[float]] = {name: [] for name in ways}
    moved: dict[str, list[int]] = {name: [] for name in ways}
    for turn in range(asked.runs):
        for number, (name, way) in enumerate(ways.items()):
            if changed and number:
                _change(ends[0], turn * 10 + number)
            began = time.monotonic()
            lines = _ours(room, ends, *way)
            taken[name].append(time.monotonic() - began)
            moved[name].append(sum(each["bytes"] for each in lines[-1].get("changes", ())))
            print(f"{turn + 1}/{asked.runs} {name}: {taken[name][-1]:.2f} s", file=sys.stderr)
    what = "1 % of the rows changed before each sync" if changed else "unchanged"
    for name, walls in taken.items():
        ratio = statistics.median(one / other for one, other in zip(walls, taken["verify"], strict=True))
        size = statistics.median(moved[name]) / 1e6
        print(f"{what}: {name}: {statistics.median(walls):.2f} s, {ratio:.2f} of verify, {size:.1f} MB of rows")


def _change(url: str, number: int) -> None:
    with psycopg.connect(url, autocommit=True) as session:
        for statement in _CHANGES:
            session.execute(statement.format(number).encode())


def _ours(room: Path, ends: tuple[str, str], *arguments: str) -> list[dict[str, list[dict[str, int]]]]:
    ended, _ = measured(room, *arguments, "--quiet", "--json", "--source", ends[0], "--target", ends[1])
    assert ended.status == 0, ended.out + ended.err
    return [json.loads(line) for line in ended.out.splitlines()]


if __name__ == "__main__":
    main()
