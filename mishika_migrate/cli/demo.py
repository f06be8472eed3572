"""`demo`: two embedded servers, the real schema, sample data, and a real copy between them.

Imports face, operations, sandbox, report and the words, the heavy ones inside the command.
"""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mishika_migrate.cli import options

if TYPE_CHECKING:
    from mishika_migrate import model
    from mishika_migrate.cli.face import Face
    from mishika_migrate.sandbox import servers


_PANEL = "The demo"

Keys = Annotated[
    int,
    options.option("--keys", metavar="N", help="Virtual keys (2000).", min=1, max=1_000_000, rich_help_panel=_PANEL),
]
Logs = Annotated[
    int,
    options.option(
        "--logs", metavar="N", help="Logged requests (20000).", min=0, max=50_000_000, rich_help_panel=_PANEL
    ),
]
Seed = Annotated[
    int,
    options.option("--seed", metavar="N", help="Other sample data for another number (1).", rich_help_panel=_PANEL),
]
Keep = Annotated[
    Path | None,
    options.option(
        "--keep", metavar="DIR", help="Leave both servers running in this new folder.", rich_help_panel=_PANEL
    ),
]


def demo(
    keys: Keys = 2000,
    logs: Logs = 20_000,
    seed: Seed = 1,
    keep: Keep = None,
    json: options.Json = None,
    quiet: options.Quiet = None,
    verbose: options.Verbose = None,
) -> None:
    """Try it here and now: two Postgres servers, the proxy's real schema, and a copy between them.

    Needs the extra `demo` and nothing else. As root it uses (or creates) a system user for the
    servers, because Postgres refuses to run as root.
    """
    given = {"json": json, "quiet": quiet, "verbose": verbose, "include_spendlogs": True}
    from mishika_migrate.cli.face import Face
    from mishika_migrate.report import terminal

    with ExitStack() as stack:
        folder = stack.enter_context(_folder(keep))
        # No settings file is read: whatever the operator's own moves need, the demo is the same.
        face = Face(given, directory=folder)
        old, new = _prepare(face, stack, folder, keys=keys, logs=logs, seed=seed, keep=keep is not None)
        plan, moved = _move(Face({**given, "source": old.url(), "target": new.url()}, directory=folder), folder)
        face.is_done("the demo is complete", hint="Send it to where there is room.")
        face.result(
            "demo",
            {"source": old.url(), "target": new.url(), "kept": keep is not None, "rows": moved},
            lambda to: terminal.panel(to, "demo", _told(plan, moved, keep), _commands(old, new, keep)),
        )


def _prepare(
    face: Face, stack: ExitStack, folder: Path, *, keys: int, logs: int, seed: int, keep: bool
) -> tuple[servers.Server, servers.Server]:
    """The old server with rows, and the new one with the schema alone."""
    from mishika_migrate.report import screen
    from mishika_migrate.sandbox import sample, schema

    began = time.monotonic()
    screen.say(face.err, "Starting two servers …")
    old, new = (stack.enter_context(_server(folder / name, keep=keep)) for name in ("old", "new"))
    screen.say(face.err, f"two PostgreSQL {old.version} servers in {screen.duration(time.monotonic() - began)}")
    began = time.monotonic()
    for server in (old, new):
        schema.apply(server.url())
    schema.create_views(old.url())
    filled = sample.fill(old.url(), keys=keys, logs=logs, seed=seed)
    took = screen.duration(time.monotonic() - began)
    screen.say(face.err, f"the proxy's schema on both, {sum(filled.values()):,} sample rows on the old one in {took}")
    return old, new


def _move(face: Face, folder: Path) -> tuple[model.Plan, dict[str, int]]:
    """The plan, and the rows that arrived, by table."""
    from mishika_migrate.cli.copying import execute
    from mishika_migrate.operations import look
    from mishika_migrate.operations.copying import copy
    from mishika_migrate.report import terminal

    source, target = face.settings.need_source(), face.settings.need_target()
    found = look.both(face.rules(), source, target, face.wanted())
    if face.lines is None:
        terminal.brief(face.err, found.plan)
    stop = " and ".join(f"`python -m mishika_migrate.sandbox stop {folder / name}`" for name in ("old", "new"))
    ended = f"ended at once; the servers are left running: {stop}"
    accounts = execute(face, found.plan, functools.partial(copy.begin, found.plan), ended=ended)
    return found.plan, {account.table: account.rows_in for account in accounts}


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    from mishika_migrate import errors

    if keep is None:
        with tempfile.TemporaryDirectory(prefix="mishika-migrate-") as name:
            yield Path(name)
        return
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise errors.ConfigurationError(f"{keep} is not an empty folder", hint="Give --keep a new folder.")
    if re.search("[@:,]", str(keep.resolve())):  # libpq takes each for more than one host, or for half an address
        raise errors.ConfigurationError("a folder of servers has no @, : or , in its path", hint="Name another folder.")
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.ConfigurationError(
            f"cannot create {keep}: {error.strerror}", hint="Give --keep a folder that you may write to."
        ) from error
    yield keep.resolve()


@contextmanager
def _server(folder: Path, *, keep: bool) -> Iterator[servers.Server]:
    """Running; stopped at the end, unless it is to be kept and all went well."""
    from mishika_migrate.sandbox import servers

    server = servers.Server.create(folder, binaries=servers.embedded(), keep=keep)
    server.start()
    try:
        yield server
    except BaseException:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)  # so that the same --keep works again
        raise
    if not keep:
        server.stop()


def _told(plan: model.Plan, moved: dict[str, int], keep: Path | None) -> Iterator[str]:
    from mishika_migrate.report import screen, terminal

    tokens = next((rows for table, rows in moved.items() if table.endswith("VerificationToken")), 0)
    others = screen.count(sum(moved.values()) - tokens, "other row")
    yield f"{screen.count(tokens, 'virtual key')} and {others} are on the new server."
    missed = {item.table for item in terminal.missed(plan)}
    yield f"{screen.count(len(missed), 'table')} stayed behind, because nobody asked for them."
    if never := [item.table for item in plan.left if item.rows and item.table not in missed]:
        yield f"{', '.join(never)} is never copied." if len(never) == 1 else f"{', '.join(never)} are never copied."
    yield "Both servers are gone now; --keep DIR leaves them running." if keep is None else "Both servers are running."


def _commands(old: servers.Server, new: servers.Server, keep: Path | None) -> Iterator[str]:
    if keep is not None:
        yield f"export MISHIKA_MIGRATE_SOURCE='{old.url()}'"
        yield f"export MISHIKA_MIGRATE_TARGET='{new.url()}'"
        yield "mishika-migrate status"
        for name in ("old", "new"):
            yield f"python -m mishika_migrate.sandbox stop {shlex.quote(str(keep.resolve() / name))}"
