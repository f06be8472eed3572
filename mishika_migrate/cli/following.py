"""`follow status`, `follow stop` and `follow start`, and what other commands say about a move under way.

Imports face, operations, report and the words, the heavy ones inside the commands.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import typer

from mishika_migrate.cli import options, switches, watching

if TYPE_CHECKING:
    from mishika_migrate import model
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations.moving import moves

app = typer.Typer(help="The target that goes on following the source: how far it is, stop it, start it.")


def servers(face: Face) -> moves.Servers:
    """Both sides, each with the address by which the other one reaches it."""
    from mishika_migrate.operations.moving import moves

    wanted = face.settings
    source, target = wanted.need_source(), wanted.need_target()
    return {
        "source": moves.Server(end=source, seen=wanted.source_from_target),
        "target": moves.Server(end=target, seen=wanted.target_from_source),
    }


_CAUSES = ("not-following", "switch-unended")


@app.command()
def status(
    source: options.Source = None,
    target: options.Target = None,
    config: options.Config = None,
    watch: options.Watch = None,
    interval: options.Interval = None,
    max_lag: switches.MaxLag = None,
    json: options.Json = None,
    verbose: options.Verbose = None,
) -> None:
    """Show how far the target is behind, and what the source keeps for it.

    The delay is measured: a heartbeat is written on the one side and awaited on the other. Ends with
    status 7 when what is to follow does not any more, or when --max-lag is given and the delay is
    longer; with 4 when nothing is to follow, as after a switch without a way back.
    """
    given = locals()
    from mishika_migrate import errors
    from mishika_migrate.cli.face import Face

    face = Face(given)
    if face.settings.watch:
        with watching.watching():
            _look(face, interval=face.settings.interval)
        return
    last = _look(face, interval=None)
    if last.delay is None:
        broken = next((each.message for each in last.findings if each.code in _CAUSES), "")
        late = f"a change takes longer than {last.waited:g} s"
        raise errors.GateNotMet(broken or late, hint="`mishika-migrate follow status --watch` shows how it moves.")


def _look(face: Face, *, interval: float | None) -> model.Following:
    """The last one; without an interval there is only one."""
    from mishika_migrate.operations.moving import follow
    from mishika_migrate.report import following

    def show(found: model.Following) -> None:
        if face.lines is None:
            following.show(face.out, found)
        else:
            face.lines.write("following", dataclasses.asdict(found))
        if interval is not None:
            watching.refuse_unheard()

    longest = face.settings.max_lag
    return follow.watch(
        servers(face), patience=max(5.0 if longest is None else longest, 0.1), interval=interval, show=show
    )


@app.command()
def stop(
    source: options.Source = None,
    target: options.Target = None,
    config: options.Config = None,
    json: options.Json = None,
    verbose: options.Verbose = None,
) -> None:
    """Let the side that follows stand still. The other one keeps all changes meanwhile, on its disk."""
    _set(locals(), running=False)


@app.command()
def start(
    source: options.Source = None,
    target: options.Target = None,
    config: options.Config = None,
    json: options.Json = None,
    verbose: options.Verbose = None,
) -> None:
    """Let it go on from where it stopped, also after a row that could not be applied was put right."""
    _set(locals(), running=True)


def _set(given: dict[str, object], *, running: bool) -> None:
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations.moving import follow
    from mishika_migrate.report import screen

    face = Face(given)
    found = follow.set_running(face.rules(), servers(face), running=running)
    keeps = "source" if found.way == "forward" else "target"
    words = "goes on" if running else f"stands still; the {keeps} keeps every change until `follow start`"
    text = f"Run {found.run} {words}."
    face.is_done(text, hint="`mishika-migrate follow status` shows it.")
    fields = {"run": found.run, "way": found.way, "running": running}
    face.result("follow", fields, lambda to: screen.say(to, text, "bold green" if running else "bold"))
