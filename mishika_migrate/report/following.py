"""What a person reads of a target that follows, and of a switch.

Imports screen and the words.
"""

from __future__ import annotations

from mishika_migrate import model, words
from mishika_migrate.report import screen, terminal

_GB = 1_000_000_000


def standing(
    to: screen.Screen,
    follow: model.Follow | None,
    switch: model.Switch | None,
    settled: model.Switch | None,
    *,
    working: bool,
    goes_on: str,
) -> None:
    """What the ledger says of a move, and the next command; nothing where there is none.

    `switch` is the latest attempt, `settled` the latest by which traffic has moved or may have. `working` says that
    somebody holds the target; `goes_on` is what lets go on what was to follow and does not.
    """
    half = switch if switch is not None and switch.open else settled
    if half is not None and half.state != "finished":
        screen.say(to, _half(half, working), "bold" if working else "bold red")
        return
    if settled is not None:
        verb, there = ("cutover", "target") if settled.way == "forward" else ("rollback", "source")
        when = f"since the {verb} of {_began(settled)} UTC, by {settled.method}"
        screen.say(to, f"Traffic is on the {there} {when}.", "bold")
    elif switch is not None:
        verb = "cutover" if switch.way == "forward" else "rollback"
        screen.say(to, f"The {verb} of {_began(switch)} UTC was given up: traffic is where it was.", "bold")
    if follow is not None and follow.ready:
        there = "The target follows the source" if follow.way == "forward" else "The source follows the target"
        screen.say(to, f"{there} (run {follow.run}); `mishika-migrate follow status` shows how far.")
    elif settled is not None:
        screen.say(to, _alone(settled))
    elif follow is not None:
        screen.say(to, f"Run {follow.run} is to follow and has not got there{goes_on}.")


def _half(half: model.Switch, working: bool) -> str:
    verb, back = ("cutover", "rollback") if half.way == "forward" else ("rollback", "cutover")
    began = f"A {verb} began at {_began(half)} UTC and"
    if working:
        return f"{began} is under way (it is {half.state})."
    ends = (
        f"`mishika-migrate {verb}` goes on, `mishika-migrate cutover --abort` gives it up"
        if half.open
        else f"traffic may be on either side: `mishika-migrate {verb}` ends it, `mishika-migrate {back}` goes back"
    )
    return f"{began} has come to no end (it is {half.state}): {ends}."


def _alone(settled: model.Switch) -> str:
    again = "rollback` goes back" if settled.way == "forward" else "cutover` goes over again"
    return f"Nothing follows it: `mishika-migrate {again} by sync, `mishika-migrate complete` ends the move."


def _began(switch: model.Switch) -> str:
    return switch.started.replace("T", " ").removesuffix("Z")


def show(to: screen.Screen, found: model.Following) -> None:
    """One line that says it all, then what there is to worry about."""
    follow, slot = found.follow, found.slot
    there = "the target follows the source" if follow.way == "forward" else "the source follows the target"
    if found.delay is not None:
        screen.say(to, f"Run {follow.run}: {there}, {screen.duration(found.delay)} behind.", "bold green")
    else:
        screen.say(to, f"Run {follow.run}: {there}, more than {found.waited:g} s behind or not at all.", "bold red")
    if slot is not None:
        kept = f"{words.size(slot.lag)} not confirmed, {words.size(slot.retained)} of WAL kept"
        rate = f", {words.size(found.rate)}/s written" if found.rate is not None else ""
        screen.say(to, f"{kept}{rate}{_room(found)}")
    if found.subscription is not None and found.subscription.errors:
        screen.say(to, f"stopped at {words.count(found.subscription.errors, 'error')} since it was started")
    if found.findings:
        terminal.findings(to, found.findings)


def _room(found: model.Following) -> str:
    """How long it takes until the server gives the slot up, or the disk is full: how large that is no server tells."""
    safe = found.slot.safe if found.slot else None
    if safe is None:
        lasts = f", 1 GB of which lasts {screen.duration(_GB / found.rate)} at this rate" if found.rate else ""
        return f", without a limit but the free space of its disk{lasts}"
    if found.rate:
        return f", room for {words.size(safe)} more ({screen.duration(max(safe, 0) / found.rate)} at this rate)"
    return f", room for {words.size(safe)} more"


def foreseen(to: screen.Screen, found: model.Switched) -> None:
    """The gates, then the steps as they would be."""
    for gate in found.gates:
        mark, style = ("✓", "green") if gate.passed else ("✗", "bold red")
        screen.say(to, screen.marked(mark, style, gate.said))
        if not gate.passed and gate.fix:
            screen.quote(to, gate.fix)
    screen.say(to, f"By {found.method}: {found.why}.")
    if not found.unmet:
        for step in found.steps:
            screen.say(to, f"{step.name}: {step.said}, about {screen.duration(step.seconds)}")
        screen.say(
            to,
            f"It would keep everybody from writing for about {screen.duration(found.pause)}. Nothing was changed.",
            "bold",
        )


def switched(to: screen.Screen, done: model.Switched, label: str) -> None:
    if done.pause:
        screen.say(
            to, f"Done: traffic is on {label}; nobody could write for {screen.duration(done.pause)}.", "bold green"
        )
    else:
        screen.say(to, f"Done: traffic is on {label}.", "bold green")
    for left in done.left:
        screen.say(to, f"Left behind, removed by `mishika-migrate complete`: {left}")
    back = "`mishika-migrate rollback` goes back; " if done.way == "forward" else ""
    screen.say(to, f"{back}`mishika-migrate complete` ends the move and removes everything of this tool.")
