"""`cutover`, `rollback` and `complete`.

Imports face, following, operations, report and the words, the heavy ones inside the commands.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from mishika_migrate import errors
from mishika_migrate.cli import options, switches

if TYPE_CHECKING:
    from mishika_migrate import model
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations.moving import completion, moves


def cutover(
    source: options.Source = None,
    target: options.Target = None,
    source_from_target: switches.SourceFromTarget = None,
    target_from_source: switches.TargetFromSource = None,
    matrix: options.Matrix = None,
    config: options.Config = None,
    method: switches.SwitchMethod = None,
    on_switch: switches.OnSwitch = None,
    timeout: switches.Timeout = None,
    max_lag: switches.MaxLag = None,
    margin: switches.Margin = None,
    way_back: switches.WayBack = None,
    dry_run: options.DryRun = None,
    abort: switches.Abort = None,
    jobs: options.Jobs = None,
    lock_timeout: options.LockTimeout = None,
    yes: options.Yes = None,
    json: options.Json = None,
    quiet: options.Quiet = None,
    verbose: options.Verbose = None,
) -> None:
    """Move traffic to the target: fence the source, wait for the last change, prove it, switch.

    Writes are turned away for a second or two. Before traffic moves, all keys are compared, and the
    way back is established. Whatever fails until then lifts the fence, and nothing was switched:
    status 7. --dry-run passes every gate and changes nothing.
    """
    _switch(locals(), "forward")


def rollback(
    source: options.Source = None,
    target: options.Target = None,
    source_from_target: switches.SourceFromTarget = None,
    target_from_source: switches.TargetFromSource = None,
    matrix: options.Matrix = None,
    config: options.Config = None,
    on_switch: switches.OnSwitch = None,
    timeout: switches.Timeout = None,
    max_lag: switches.MaxLag = None,
    margin: switches.Margin = None,
    way_back: switches.WayBack = None,
    lost: switches.Lost = None,
    dry_run: options.DryRun = None,
    jobs: options.Jobs = None,
    lock_timeout: options.LockTimeout = None,
    yes: options.Yes = None,
    json: options.Json = None,
    quiet: options.Quiet = None,
    verbose: options.Verbose = None,
) -> None:
    """Move traffic back to the source, with everything that was written to the target since.

    The same steps as those of `cutover`, the other way round; possible until `complete`. With
    --lost target the source accepts writes again without it: what it has not received by then is lost.
    """
    _switch(locals(), "back")


def _switch(given: dict[str, object], way: model.Way) -> None:
    from mishika_migrate.cli import following
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations.moving import switching
    from mishika_migrate.report import following as page

    face = Face(given)
    wanted = face.settings
    verb = "cutover" if way == "forward" else "rollback"
    if wanted.abort and way == "forward":
        _abort(face)
        return
    if wanted.lost:
        _without(face)
        return
    both = following.servers(face)
    how = switching.Options(
        method=wanted.method if way == "forward" else "auto",
        timeout=wanted.timeout,
        max_lag=5.0 if wanted.max_lag is None else wanted.max_lag,
        margin=wanted.margin,
        jobs=wanted.jobs,
        lock_timeout=wanted.lock_timeout,
        way_back=wanted.way_back,
    )
    if wanted.dry_run:
        found = switching.foresee(face.rules(), both, way, options=how)
        face.result(verb, dataclasses.asdict(found), lambda to: page.foreseen(to, found))
        if found.unmet:
            raise errors.GateNotMet("a gate is not met; nothing was changed", hint="Mend what is listed above.")
        return
    away, toward = wanted.need_source(), wanted.need_target()
    if way == "back":
        away, toward = toward, away
    if wanted.on_switch == "wait" and not sys.stdin.isatty():
        raise errors.ConfigurationError(
            "there is no terminal to wait on; nothing was switched", hint="Give --on-switch a command."
        )
    by_hand = (
        "" if wanted.on_switch else f" By hand: without --on-switch {away.label} takes no writes from the fence on."
    )
    face.confirm(f"Move traffic to {toward.label}?{by_hand}", otherwise="nothing was switched")
    perform = _performer(face, wanted.on_switch, away)
    try:
        done = switching.carry_out(face.rules(), both, way, options=how, perform=perform, emit=face.noting())
    except switching.CommandFailed as error:
        _take_back(face, way, how, error)
        raise
    face.is_done(f"the {verb} is done", hint="`mishika-migrate follow status` shows it.")
    face.result(verb, dataclasses.asdict(done), lambda to: page.switched(to, done, toward.label))


def _performer(face: Face, command: str | None, away: model.Endpoint) -> Callable[[float], None]:
    """What the operator wants to happen behind the fence."""

    def perform(seconds: float) -> None:
        if command is None:
            face.warn(f"move traffic by hand now: without --on-switch nothing does, and {away.label} takes no writes")
            return
        if command == "wait":
            face.pause("Move traffic now, then press Enter: ")
            return
        try:
            status = _run(command, seconds)
        except subprocess.TimeoutExpired:
            raise errors.GateNotMet(f"the command of --on-switch took longer than {seconds:.0f} s") from None
        if status:
            raise errors.GateNotMet(f"the command of --on-switch ended with status {status}")

    return perform


def _run(command: str, seconds: float) -> int:
    """Its exit status. Whatever ends it early ends what it has started, too: it must not move traffic afterwards."""
    # Its words belong to people: stdout holds the result alone.
    child = subprocess.Popen(command, shell=True, stdout=sys.stderr, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return child.wait(timeout=seconds or None)
    except BaseException:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise


def _take_back(face: Face, way: model.Way, how: object, error: errors.Error) -> None:
    """The command may have moved some of the traffic: going back is a switch of its own."""
    from mishika_migrate.cli import following
    from mishika_migrate.operations.moving import switching

    assert isinstance(how, switching.Options)
    other: model.Way = "back" if way == "forward" else "forward"
    both = following.servers(face)
    stays = both["source" if way == "forward" else "target"].end.label
    verb = "cutover" if way == "forward" else "rollback"
    face.warn(f"{error.message}; taking the switch back")
    how = dataclasses.replace(how, method="auto")
    try:
        switching.carry_out(face.rules(), both, other, options=how, perform=lambda _: None, emit=face.noting())
    except errors.Error as worse:
        raise errors.GateNotMet(
            f"{error.message}, and the switch could not be taken back: {worse.message}; {stays} takes no writes",
            hint=f"Run `mishika-migrate {verb}` again to end it, or `rollback` to go back.",
        ) from error
    error.message = f"{error.message}; {stays} accepts writes again, with all that was written meanwhile"
    error.args = (error.message,)
    error.hint = f"Mend the command, move back what it has moved, then run `mishika-migrate {verb}` again."


def _abort(face: Face) -> None:
    from mishika_migrate.cli import following
    from mishika_migrate.operations.moving import switching
    from mishika_migrate.report import screen

    done = switching.abort(face.rules(), following.servers(face))
    text = (
        f"Gave up the {'cutover' if done.way == 'forward' else 'rollback'} of run {done.run}, which was {done.state}:"
        " writes are accepted again."
        if done
        else "There is nothing to give up: no cutover is half done."
    )
    face.result(
        "abort", {"run": done.run if done else "", "state": done.state if done else ""}, lambda to: screen.say(to, text)
    )


def _without(face: Face) -> None:
    """The target is gone: the source serves again as it is."""
    from mishika_migrate.cli import following
    from mishika_migrate.operations.moving import reopening
    from mishika_migrate.report import screen

    if face.settings.lost != "target":
        raise errors.ConfigurationError(
            "a rollback without the source leads nowhere", hint="Only --lost target is possible."
        )
    source = following.servers(face)["source"].end
    reopening.refuse_open(source)
    face.warn(f"what {source.label} has not received from the target is lost")
    face.confirm(f"Let {source.label} accept writes again?", otherwise="nothing was switched")
    heard = reopening.reopen(source, margin=face.settings.margin)
    text = f"{source.label} accepts writes again.{heard} When the target is back: `mishika-migrate complete`."
    face.result("rollback", {"source": source.label, "lost": "target"}, lambda to: screen.say(to, text))


def complete(
    source: options.Source = None,
    target: options.Target = None,
    config: options.Config = None,
    lost: switches.Lost = None,
    yes: options.Yes = None,
    json: options.Json = None,
    verbose: options.Verbose = None,
) -> None:
    """End the move: remove subscriptions, slots, publications, fences and the ledger from both sides.

    Afterwards there is no way back, and the old side would accept writes again. It looks first
    whether the roles may remove all of it. With --lost SIDE the other one alone is cleaned, and the
    statements for the lost one are shown.
    """
    given = locals()
    from mishika_migrate.cli import following
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations.moving import completion
    from mishika_migrate.report import screen

    face = Face(given)
    both = following.servers(face)
    gone = face.settings.lost
    found = completion.look(both, gone)
    _tell_remains(face, both, found)
    if found.source or found.target:
        state = f" ({found.followed})" if found.followed else ""
        face.confirm(f"Remove all of it{state}? There is no way back then.", otherwise="nothing was removed")
        left = completion.carry_out(both, gone)
        text = "Nothing named mishika_migrate is left on " + ("both sides." if not gone else "the other side.")
    else:
        left, text = (), "Nothing is left of a move."
    face.is_done("everything is removed", hint="Nothing is left to do.")

    def show(to: screen.Screen) -> None:
        screen.say(to, text, "bold green")
        if left:
            screen.say(to, f"When the {gone} is back, run there:")
            for statement in left:
                screen.quote(to, statement)

    fields = {"source": list(found.source), "target": list(found.target), "left": list(left)}
    face.result("complete", fields, show)


def _tell_remains(face: Face, both: moves.Servers, found: completion.Remains) -> None:
    """What would go, before anybody is asked."""
    from mishika_migrate.report import screen

    if face.lines is not None:
        face.lines.write("remains", dataclasses.asdict(found))
    else:
        for role, names in (("source", found.source), ("target", found.target)):
            if names:
                label = both["source" if role == "source" else "target"].end.label
                screen.say(face.err, f"On the {role} {label}: {', '.join(names)}")
    for role in found.fenced:
        face.warn(f"{both[role].end.label} is fenced, and will accept writes of whoever still uses it")
    if found.unfinished:
        face.warn(f"run {found.unfinished} is unfinished, and `copy --resume` cannot continue it afterwards")
    if found.elsewhere:
        face.warn(
            f"{both['source'].end.label} has nothing of this tool, and the ledger knows of {', '.join(found.elsewhere)}"
            " on the source: is it that server?"
        )
