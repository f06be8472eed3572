"""`python -m mishika_migrate.sandbox`: fill a database, or keep a server running in a directory.

For contributors and benchmarks; operators use `mishika-migrate demo`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mishika_migrate import errors
from mishika_migrate.sandbox import sample, schema, servers

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status; a foreseeable failure is one sentence on stderr."""
    options = _parser().parse_args(argv)
    try:
        {"fill": _fill, "serve": _serve, "stop": _stop}[options.command](options)
    except errors.Error as error:
        print(f"error: {error.message}. {error.hint}".rstrip(), file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _fill(options: argparse.Namespace) -> None:
    if options.schema:
        schema.apply(options.dsn)
        schema.create_views(options.dsn)
    begun = time.perf_counter()
    counts = sample.fill(
        options.dsn,
        keys=options.keys,
        logs=options.logs,
        long_logs=options.long_logs,
        usage=options.usage,
        seed=options.seed,
    )
    seconds = time.perf_counter() - begun
    for table, count in counts.items():
        print(f"{count:>12,}  {table}")
    total = sum(counts.values())
    print(f"{total:>12,}  rows in {seconds:.1f} s, {total / seconds:,.0f} rows/s")


def _serve(options: argparse.Namespace) -> None:
    directory: Path = options.directory
    if (directory / "PG_VERSION").exists():
        server = servers.Server.open(directory, binaries=_binaries_for(directory), keep=True)
    else:
        server = servers.Server.create(directory, binaries=servers.embedded(), tcp=options.tcp, keep=True)
    server.start()
    print(server.url())


def _stop(options: argparse.Namespace) -> None:
    servers.Server.open(options.directory, binaries=_binaries_for(options.directory)).stop()


def _binaries_for(directory: Path) -> servers.Binaries:
    """The installation of the version that made the directory; else any, for `open` to refuse."""
    try:
        made_by = (directory / "PG_VERSION").read_text().strip()
    except OSError:
        made_by = ""
    matching = [binaries for binaries in servers.find_binaries() if str(binaries.version) == made_by]
    return matching[0] if matching else servers.embedded()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mishika_migrate.sandbox", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    fill = commands.add_parser("fill", help="write sample rows into a database")
    fill.add_argument("--dsn", required=True, help="where to write; a password is better left to ~/.pgpass")
    fill.add_argument("--schema", action="store_true", help="apply the proxy's schema and views first")
    fill.add_argument("--keys", type=int, default=2000, metavar="N", help="virtual keys (%(default)s)")
    fill.add_argument("--logs", type=int, default=20_000, metavar="N", help="spend logs (%(default)s)")
    fill.add_argument("--long-logs", type=int, metavar="N", help="of them, with prompts (a tenth)")
    fill.add_argument("--usage", type=int, default=300, metavar="N", help="daily usage rows (%(default)s)")
    fill.add_argument("--seed", type=int, default=1, metavar="N", help="same seed, same rows (%(default)s)")

    serve = commands.add_parser("serve", help="run a server in a directory, print its URL, leave it running")
    serve.add_argument("directory", type=Path, metavar="DIR", help="missing, empty, or an earlier sandbox")
    serve.add_argument("--tcp", action="store_true", help="listen on a free port of 127.0.0.1 too")

    stop = commands.add_parser("stop", help="stop the server in a directory; the directory stays")
    stop.add_argument("directory", type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
