"""Watches: commands that go on until somebody ends them, which is no failure then.

Imports signals and streams.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer

from mishika_migrate.cli import signals, streams


class _Unheard(Exception):
    """Nobody hears the watch any more."""


def refuse_unheard() -> None:
    """After each look: ends the watch whose reader went away (`| head`)."""
    if streams.unheard():
        raise _Unheard


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Around a watch. A signal ends it with its number and without a word, a reader that went away with 0."""
    try:
        yield
    except _Unheard:
        return
    except Exception as error:
        # Not errors.Interrupted alone: a library may have made another error of it.
        if number := signals.heard():
            raise typer.Exit(128 + number) from error
        raise
