"""`tables`, `status` and `cleanup`: what there is to know, and the ledger.

Imports face, operations, report and the words, the heavy ones inside the commands.
"""

from __future__ import annotations

import dataclasses

from mishika_migrate.cli import options


def tables(
    source: options.Source = None,
    proxy_config: options.ProxyConfig = None,
    matrix: options.Matrix = None,
    config: options.Config = None,
    json: options.Json = None,
    verbose: options.Verbose = None,
) -> None:
    """List the tables that the matrix knows: which are needed, which only when used, which never.

    With a source it also shows their rows, and tables that the matrix does not know.
    """
    given = locals()
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations import books
    from mishika_migrate.report import terminal

    face = Face(given)
    source_endpoint = face.settings.source
    listed = books.tables(face.rules(), source_endpoint)
    if face.lines is not None:
        for row in listed:
            face.lines.write("table", dataclasses.asdict(row))
        return
    terminal.tables(face.out, listed, source=source_endpoint.label if source_endpoint else "")


def status(
    target: options.Target = None,
    config: options.Config = None,
    json: options.Json = None,
    verbose: options.Verbose = None,
) -> None:
    """Show what the target's ledger says: whether a run is under way, unfinished or done, and its tables.

    Works from any machine that reaches the target. Names the command that continues an unfinished run.
    """
    given = locals()
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations import books
    from mishika_migrate.report import terminal

    face = Face(given)
    endpoint = face.settings.need_target()
    found = books.status(endpoint)
    if face.lines is not None:
        summary = {name: getattr(found, name) for name in ("unfinished", "waiting", "working")}
        face.lines.write("status", {"target": endpoint.label, **summary, "runs": len(found.runs)})
        for run in found.runs:
            face.lines.write("run", dataclasses.asdict(run))
        return
    terminal.runs(face.out, endpoint.label, found.runs, working=found.working, waiting=found.waiting)


def cleanup(
    target: options.Target = None,
    config: options.Config = None,
    yes: options.Yes = None,
    json: options.Json = None,
    verbose: options.Verbose = None,
) -> None:
    """Remove the ledger from the target. The copied rows stay; an unfinished run cannot be resumed."""
    given = locals()
    from mishika_migrate import errors
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations import books
    from mishika_migrate.report import screen

    face = Face(given)
    endpoint = face.settings.need_target()
    found = books.status(endpoint)
    if found.working:
        raise errors.Refused(found.working, hint="Wait for it, or stop it; `mishika-migrate status` shows it.")
    if found.exists:
        if found.unfinished:
            face.warn(f"run {found.unfinished} is unfinished and cannot be resumed afterwards")
        face.confirm(
            f"Remove schema mishika_migrate with {screen.count(len(found.runs), 'run')} from {endpoint.label}?",
            otherwise="nothing was removed",
        )
        books.cleanup(endpoint)
        text = f"Removed schema mishika_migrate from {endpoint.label}."
    else:
        text = f"Nothing to remove on {endpoint.label}."
    face.result(
        "cleanup",
        {"target": endpoint.label, "removed": found.exists, "message": text},
        lambda to: screen.say(to, text),
    )
