"""`throttle`: slows down, pauses and resumes a run that is under way.

Imports face, operations, report and the words, the heavy ones inside the command.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from mishika_migrate.cli import options


def throttle(
    wish: Annotated[
        str,
        typer.Argument(
            metavar="RATE|off|pause|resume",
            help="The most that all workers together copy from now on, such as 50MB/s; off for no limit.",
            show_default=False,
        ),
    ],
    target: options.Target = None,
    config: options.Config = None,
    json: options.Json = None,
    verbose: options.Verbose = None,
) -> None:
    """Change how fast the run that is under way copies, or pause and resume it.

    Works from any machine that reaches the target, and takes hold within a second. A paused run
    keeps its snapshot, which holds the source's vacuum back. Ends with status 4 when no run is
    under way.
    """
    given = {name: value for name, value in locals().items() if name != "wish"}
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations.copying import throttle as throttles
    from mishika_migrate.report import screen

    face = Face(given)
    what, where = throttles.wish(wish), face.settings.need_target()
    done = throttles.change(where, what)
    fields = {"target": where.label, **dataclasses.asdict(done)}
    face.result("throttle", fields, lambda to: screen.say(to, done.message))
