"""The app, and the one place where errors become sentences and exit statuses.

Imports the command modules; see docs/exit-codes.md for the statuses.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import typer

import mishika_migrate
from mishika_migrate import errors
from mishika_migrate.cli import (
    books,
    copying,
    demo,
    following,
    probing,
    signals,
    streams,
    switching,
    syncing,
    throttling,
    verifying,
)

app = typer.Typer(
    name="mishika-migrate",
    help="Move the database of a MishikaLLM proxy to another Postgres server, and keep every virtual key working.",
    epilog="Start with `mishika-migrate demo`, then `plan`, then `copy`.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        from mishika_migrate.pg import connect

        typer.echo(f"mishika-migrate {mishika_migrate.__version__} ({connect.versions()})")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the versions and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(errors.ConfigurationError.status)


app.command()(copying.plan)
app.command()(copying.copy)
app.command()(verifying.verify)
app.command()(syncing.sync)
app.add_typer(following.app, name="follow")
app.command()(switching.cutover)
app.command()(switching.rollback)
app.command()(switching.complete)
app.command()(probing.probe)
app.command()(books.tables)
app.command()(books.status)
app.command()(throttling.throttle)
app.command()(books.reset)
app.command()(books.cleanup)
app.command()(demo.demo)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process with its documented status."""
    streams.prepare()
    signals.raising()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(given)
    except errors.Error as error:
        status = error.status
        _tell(error, given)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except Exception as error:
        told = _stopped() or _bug(error, given)
        status = told.status
        _tell(told, given)
    if (failure := streams.failure()) and status == 0:
        from mishika_migrate.cli import face

        lost = face.lost_result(failure)
        status = lost.status
        _tell(lost, given)
    sys.exit(status)


def _run(given: Sequence[str]) -> int:
    try:
        # Not standalone: Typer would print its own errors in its own way.
        status = app(args=list(given), prog_name="mishika-migrate", standalone_mode=False)
    except typer.Abort as error:
        raise errors.Interrupted("interrupted; nothing was written", hint="Run the same command again.") from error
    except Exception as error:
        if (usage := _usage(error)) is None:
            raise
        raise usage from error
    return status if isinstance(status, int) else 0


def _usage(error: Exception) -> errors.ConfigurationError | None:
    """Typer's complaint about the command line, in our words; None for any other error.

    Its classes have moved between versions, so they are known by what they can do.
    """
    if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
        return None
    context = getattr(error, "ctx", None)
    command = getattr(context, "command", None)
    message = str(error.format_message()).strip().rstrip(".")
    hint = f"See `{getattr(context, 'command_path', 'mishika-migrate')} --help`."
    if name := getattr(error, "option_name", None):
        flags = [flag for option in getattr(command, "params", ()) for flag in option.opts]
        message = str(getattr(error, "message", message))
        message = message if re.fullmatch(r"--?[\w-]{1,40}", name) else "no such option"
        hint = _near(name, flags) or hint
    elif "extra argument" in message:
        # Not quoted: it may well be a URL with a password.
        message, hint = "an argument without an option", f"Servers are given as --source URL and --target URL. {hint}"
    elif (found := re.match(r"No such command '(.*?)'", message)) and not hasattr(error, "param"):
        plain = re.fullmatch(r"[\w-]{1,20}", found[1])
        message = f"no such command {found[1]}" if plain else "no such command"
        hint = _near(found[1], getattr(command, "commands", ())) or hint
    return errors.ConfigurationError(message[:1].lower() + message[1:], hint=hint)


def _near(name: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(known), 1)
    return f"Did you mean {close[0]}?" if close else ""


def _stopped() -> errors.Error | None:
    """What a signal meant that was raised inside of a library, which made another error of it."""
    number = signals.heard()
    if not number:
        return None
    return errors.Interrupted("interrupted; nothing was written", hint="Run the same command again.", signal=number)


def _bug(error: Exception, given: Sequence[str]) -> errors.Error:
    if _asked("verbose", given):
        traceback.print_exception(error, file=sys.stderr)
    return errors.Error(
        f"a bug in mishika-migrate: {type(error).__name__}: {error}",
        hint="Run the same command with --verbose and report what it prints.",
    )


def _tell(error: errors.Error, given: Sequence[str]) -> None:
    import dataclasses

    from mishika_migrate.report import jsonl, screen, terminal

    if _asked("json", given):
        findings = error.findings if isinstance(error, errors.Refused) else ()
        jsonl.Lines(sys.stdout).write(
            "error",
            {
                "status": error.status,
                "message": error.message,
                "hint": error.hint,
                "findings": [dataclasses.asdict(finding) for finding in findings],
            },
        )
    terminal.error(screen.screen(sys.stderr), error)


def _asked(name: Literal["json", "verbose"], given: Sequence[str]) -> bool:
    """As the settings say, or, for errors that come before they are read, flags and environment."""
    from mishika_migrate.cli import face

    if (said := face.asked(name)) is not None:
        return said
    if f"--{name}" in given or (name == "verbose" and any(re.fullmatch("-[a-z]*v[a-z]*", word) for word in given)):
        return True
    return os.environ.get(f"MISHIKA_MIGRATE_{name.upper()}", "").lower() in ("1", "true", "yes", "on", "t", "y")
