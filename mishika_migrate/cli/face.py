"""What every command needs: its settings, its two consoles, its JSON lines, its questions.

Imports settings, report and the words. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import typer

from mishika_migrate import errors, events, matrix, model, selection, settings
from mishika_migrate.report import jsonl, live, terminal


class Face:
    """One command's view of the operator. `lines` is set when JSON was asked for."""

    def __init__(self, given: Mapping[str, object]) -> None:
        options = dict(given)
        config = options.pop("config", None)
        self.settings = settings.load(options, environ=os.environ, config=config if isinstance(config, Path) else None)
        self.lines = jsonl.Lines(sys.stdout) if self.settings.json else None
        self.out = terminal.screen(sys.stdout)
        self.err = terminal.screen(sys.stderr, quiet=self.settings.quiet)
        for warning in self.settings.warnings:
            terminal.say(self.err, f"warning: {warning}", "yellow")

    def rules(self) -> matrix.Matrix:
        return matrix.load(self.settings.matrix)

    def wanted(self) -> selection.Wanted:
        return selection.Wanted(
            groups=self.settings.groups,
            include=self.settings.include,
            exclude=self.settings.exclude,
            everything=self.settings.everything,
            create_schema=self.settings.create_schema,
        )

    def implied(self) -> tuple[model.Finding, ...]:
        return settings.implications(self.settings.proxy) if self.settings.proxy else ()

    def confirm(self, question: str) -> None:
        """Asks on a terminal; without one only --yes answers. A no is a refusal."""
        if self.settings.yes:
            return
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise errors.ConfigurationError(
                "there is no terminal to confirm on", hint="Add --yes, or look first with --dry-run."
            )
        if not typer.confirm(question, err=True):
            raise errors.Refused("not confirmed; nothing was written")

    def watching(self, what: model.Plan) -> AbstractContextManager[Callable[[events.Event], None]]:
        """The consumer of a run's events that suits where they are going."""
        if self.lines is not None:
            return _Lines(self.lines)
        if self.err.is_terminal and not self.settings.quiet:
            return live.Display(self.err, what)
        return live.Plain(self.err)

    def result(self, name: str, fields: Mapping[str, Any], show: Callable[[terminal.Screen], None]) -> None:
        """A result in the form that was asked for."""
        if self.lines is not None:
            self.lines.write(name, fields)
        else:
            show(self.out)


class _Lines:
    def __init__(self, lines: jsonl.Lines) -> None:
        self._lines = lines

    def __enter__(self) -> Callable[[events.Event], None]:
        return self._lines.event

    def __exit__(self, *_: object) -> None:
        pass
