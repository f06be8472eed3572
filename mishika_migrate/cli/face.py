"""What every command needs: its settings, its two consoles, its JSON lines, its questions.

Imports settings, report and the words. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import os
import select
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import typer

from mishika_migrate import errors, events, matrix, model, settings
from mishika_migrate.cli import signals
from mishika_migrate.plan import history, loading, selection
from mishika_migrate.report import document, jsonl, live, screen
from mishika_migrate.settings import addresses, proxy

_latest: settings.Settings | None = None
_done = errors.ResultLost("stdout did not take the whole result", hint="Send it to where there is room.")


def lost_result(why: str) -> errors.ResultLost:
    """What is true although stdout is full."""
    return errors.ResultLost(f"{_done.message}: {why}", hint=_done.hint)


def asked(name: Literal["json", "verbose"]) -> bool | None:
    """What the settings of this process said; None where none could be read."""
    return None if _latest is None else _latest.json if name == "json" else _latest.verbose


class Watching(Protocol):
    """Consumes a run's events. `notice` and `last` may be called from a signal handler."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def __call__(self, event: events.Event) -> None: ...
    def notice(self, words: str) -> None: ...
    def last(self, words: str) -> None: ...


class Face:
    """One command's view of the operator. `lines` is set when JSON was asked for.

    `given` are the flags as Typer parsed them, None where neither flag nor variable spoke. The
    settings file is looked for in `directory`.
    """

    def __init__(self, given: Mapping[str, object], *, directory: Path = Path()) -> None:
        global _latest  # noqa: PLW0603 - errors are told when the command is gone
        options = dict(given)
        config = options.pop("config", None)
        named = {name: str(value) for name, value in given.items() if name in ("source", "target", "config") and value}
        # What a variable says is said to the next command too.
        self._flags = {
            name: value for name, value in named.items() if os.environ.get(f"{settings.PREFIX}{name.upper()}") != value
        }
        self.given = frozenset(name for name, value in options.items() if value not in (None, (), []))
        self.settings = _latest = settings.load(
            options, environ=os.environ, config=config if isinstance(config, Path) else None, directory=directory
        )
        self.lines = jsonl.Lines(sys.stdout) if self.settings.json else None
        self.out = screen.screen(sys.stdout)
        self.err = screen.screen(sys.stderr, quiet=self.settings.quiet)
        for warning in self.settings.warnings:
            self.warn(warning)

    def command(self, words: str) -> str:
        """A command that reaches the same servers as this one, to be pasted; never with a password."""
        ends = ((role, getattr(self.settings, role), self._flags.get(role)) for role in ("source", "target"))
        shown = (
            f" --{role} {'URL' if addresses.has_secret(endpoint) else shlex.quote(text)}"
            for role, endpoint, text in ends
            if endpoint is not None and text
        )
        config = f" --config {shlex.quote(str(self._flags['config']))}" if "config" in self._flags else ""
        return f"mishika-migrate {words}{''.join(shown)}{config}"

    def warn(self, words: str) -> None:
        screen.say(self.err, screen.marked("warning:", "bold yellow", words))

    def rules(self) -> matrix.Matrix:
        return matrix.load(self.settings.matrix)

    def wanted(self) -> selection.Wanted:
        return selection.Wanted(
            groups=self.settings.groups,
            include=self.settings.include,
            exclude=self.settings.exclude,
            only=self.settings.only,
            existing=self.settings.on_existing,
            everything=self.settings.everything,
            create_schema=self.settings.create_schema,
            # What is empty now would not follow when it is used.
            use="any" if self.settings.follow else "source",
        )

    def asked(self) -> selection.Wanted | None:
        """What the options select; None where none of them does."""
        said = self.settings
        selects = said.groups or said.include or said.exclude or said.only or said.everything
        return self.wanted() if selects else None

    def manner(self) -> loading.Manner:
        since, before = self.settings.spendlogs_since, self.settings.spendlogs_before
        return loading.Manner(
            batch=self.settings.batch_size,
            defer=self.settings.defer_indexes,
            newest=self.settings.order == "newest",
            span=history.Span(since=since, before=before) if since or before else None,
        )

    def implied(self) -> tuple[model.Finding, ...]:
        return proxy.implications(self.settings.proxy) if self.settings.proxy else ()

    def confirm(self, question: str, *, otherwise: str) -> None:
        """Asks on a terminal; without one only --yes answers. A no is a refusal, and `otherwise` is true then."""
        if self.settings.yes:
            return
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise errors.ConfigurationError(
                f"there is no terminal to ask on; {otherwise}", hint="Add --yes to go on without a question."
            )
        try:
            agreed = _answer(f"{question} [y/N]: ").strip().lower() in ("y", "yes")
        except errors.Interrupted as error:
            typer.echo(err=True)
            raise errors.Interrupted(f"interrupted; {otherwise}", hint=error.hint, signal=error.status - 128) from error
        if not agreed:
            raise errors.Refused(f"not confirmed; {otherwise}", hint="Answer y, or give --yes.")

    def pause(self, words: str) -> None:
        """Until Enter is pressed; a signal and the end of the input are a no."""
        if not sys.stdin.isatty():
            raise errors.ConfigurationError("there is no terminal to wait on", hint="Give --on-switch a command.")
        if not _answer(words):
            raise errors.Refused("the input ended before Enter", hint="Run it on a terminal that stays.")

    def watching(self, what: model.Plan) -> Watching:
        """The consumer of a run's events that suits where they are going."""
        if self.lines is not None:
            return _Lines(self.lines)
        if self.err.paints and not self.settings.quiet:
            return live.Display(self.err, what)
        return _Plain(self.err, what)

    def noting(self) -> Callable[[events.Event], None]:
        """A consumer for what is not a run: a line an event, on stderr or as JSON."""
        if self.lines is not None:
            return self.lines.event
        return live.Notes(self.err)

    def is_done(self, what: str, *, hint: str) -> None:
        """What stays true when stdout does not take the result."""
        global _done  # noqa: PLW0603 - streams fail when the command is gone
        _done = errors.ResultLost(f"{what}, but stdout did not take its result", hint=hint)

    def result(self, name: str, fields: Mapping[str, Any], show: Callable[[screen.Screen], None]) -> None:
        """A result in the form that was asked for."""
        if self.lines is not None:
            self.lines.write(name, fields)
        else:
            show(self.out)


def _answer(question: str) -> str:
    """One line of the operator's, empty at the end of the input.

    Not by input(), and so not by typer.confirm: it throws away what a signal handler raises while
    it flushes the streams, and a Ctrl-C at that moment would be lost.
    """
    typer.echo(question, nl=False, err=True)
    # A signal that comes just before a read would be heard after it only; hence no read waits.
    while os.name == "posix" and not select.select([sys.stdin], [], [], 0.1)[0]:
        pass
    line = sys.stdin.readline()
    if not line.endswith("\n"):
        typer.echo(err=True)
    return line


class _Plain(live.Plain):
    def notice(self, words: str) -> None:
        signals.tell(words)

    def last(self, words: str) -> None:
        signals.tell(words)


class _Lines:
    def __init__(self, lines: jsonl.Lines) -> None:
        self._lines = lines

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, event: events.Event) -> None:
        if not isinstance(event, events.Proven):
            self._lines.event(event)
            return
        for name, fields in document.lines(event.proof):
            self._lines.write(name, fields)

    def notice(self, words: str) -> None:
        signals.tell(words)

    def last(self, words: str) -> None:
        signals.tell(words)
