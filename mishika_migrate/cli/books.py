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
    listed = books.tables(face.rules(), face.settings.source)
    if face.lines is not None:
        for row in listed:
            face.lines.write("table", dataclasses.asdict(row))
        return
    terminal.tables(face.out, listed)


def status(
    target: options.Target = None,
    config: options.Config = None,
    json: options.Json = None,
    verbose: options.Verbose = None,
) -> None:
    """Show the runs that the target's ledger knows, and the steps of the latest."""
    given = locals()
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations import books
    from mishika_migrate.report import terminal

    face = Face(given)
    endpoint = face.settings.need_target()
    runs = books.runs(endpoint)
    if face.lines is not None:
        for run in runs:
            face.lines.write("run", dataclasses.asdict(run))
    elif not runs:
        terminal.say(face.out, f"no runs on {endpoint.label}")
    else:
        terminal.runs(face.out, runs)


def cleanup(
    target: options.Target = None,
    config: options.Config = None,
    yes: options.Yes = None,
    json: options.Json = None,
    verbose: options.Verbose = None,
) -> None:
    """Remove the ledger from the target. The copied rows stay; an unfinished run cannot be resumed."""
    given = locals()
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations import books
    from mishika_migrate.report import terminal

    face = Face(given)
    endpoint = face.settings.need_target()
    runs = books.runs(endpoint)
    open_runs = [run.id for run in runs if run.state in ("running", "stopped") and run.steps]
    warning = f" Run {open_runs[0]} is unfinished and cannot be resumed afterwards." if open_runs else ""
    if books.has_ledger(endpoint):
        face.confirm(f"Remove schema mishika_migrate with {len(runs)} runs from {endpoint.label}?{warning}")
        books.cleanup(endpoint)
        text = f"removed schema mishika_migrate from {endpoint.label}"
    else:
        text = f"nothing to remove on {endpoint.label}"
    face.result("cleanup", {"target": endpoint.label, "message": text}, lambda to: terminal.say(to, text))
