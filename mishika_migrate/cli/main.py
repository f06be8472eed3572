"""The app, and the one place where errors become sentences and exit statuses.

Imports the command modules; see docs/exit-codes.md for the statuses.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import mishika_migrate
from mishika_migrate import errors
from mishika_migrate.cli import books, copying, demo, signals

app = typer.Typer(
    name="mishika-migrate",
    help="Move the database of a MishikaLLM proxy to another Postgres server, and keep every virtual key working.",
    epilog="Start with `mishika-migrate demo`, then `plan`, then `copy`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        from mishika_migrate.pg import connect

        typer.echo(f"mishika-migrate {mishika_migrate.__version__} ({connect.versions()})")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the versions and exit.")
    ] = False,
) -> None:
    pass


app.command()(copying.plan)
app.command()(copying.copy)
app.command()(books.tables)
app.command()(books.status)
app.command()(books.cleanup)
app.command()(demo.demo)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process with its documented status."""
    signals.raising()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=given, prog_name="mishika-migrate")
    except errors.Error as error:
        _tell(error, given)
        _leave(error.status)
    except SystemExit as end:
        _leave(end.code if isinstance(end.code, int) else 0 if end.code is None else 1)
    except BrokenPipeError:
        _leave(0)  # whoever read our output has seen enough
    except Exception as error:
        _tell_bug(error, given)
        _leave(1)


def _tell(error: errors.Error, given: Sequence[str]) -> None:
    from mishika_migrate.report import terminal

    if _wants("--json", "MISHIKA_MIGRATE_JSON", given):
        fields = {"status": error.status, "message": error.message, "hint": error.hint}
        findings = error.findings if isinstance(error, errors.Refused) else ()
        _print_json({"event": "error", **fields, "findings": [_plain(finding) for finding in findings]})
    try:
        terminal.error(terminal.screen(sys.stderr), error)
    except OSError:
        pass  # nobody reads stderr; the status still tells


def _print_json(fields: dict[str, object]) -> None:
    try:
        print(json.dumps(fields, ensure_ascii=False), flush=True)
    except OSError:
        pass


def _plain(finding: object) -> dict[str, object]:
    import dataclasses

    return dataclasses.asdict(finding)  # type: ignore[call-overload,no-any-return]


def _tell_bug(error: Exception, given: Sequence[str]) -> None:
    try:
        if _wants("--verbose", "MISHIKA_MIGRATE_VERBOSE", given) or "-v" in given:
            traceback.print_exception(error, file=sys.stderr)
        print(
            f"error: a bug in mishika-migrate: {type(error).__name__}: {error}\n"
            "hint: Run the same command with --verbose and report what it prints.",
            file=sys.stderr,
        )
    except OSError:
        pass


def _wants(flag: str, variable: str, given: Sequence[str]) -> bool:
    return flag in given or os.environ.get(variable, "").lower() in ("1", "true", "yes", "on", "t", "y")


def _leave(status: int) -> None:
    """Flushes what can be flushed; a reader that is gone must not turn into a traceback at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)
