"""`throttle`: what a run under way is told from outside.

Imports pg, statements and the words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, control
from mishika_migrate.settings import statements

Wish = int | Literal["off", "pause", "resume"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttled:
    """What holds from now on: `rate` in bytes a second, None without a limit; `waiting` for a standby."""

    run: str
    rate: int | None
    paused: bool
    waiting: bool
    message: str


def wish(text: str) -> Wish:
    """Of the command line; `errors.ConfigurationError` for what is none."""
    if text in ("off", "pause", "resume"):
        return text  # type: ignore[return-value]  # mypy does not narrow a str by `in`
    rate = statements.rate(text)
    if rate is None:
        raise errors.ConfigurationError(
            "throttle needs a rate, off, pause or resume", hint=f"Give the rate as {statements.RATE}."
        )
    return rate


def change(target: model.Endpoint, what: Wish) -> Throttled:
    """Writes it into the ledger, where the run reads it; `errors.Refused` when no run is under way."""
    with connect.session(target, name="mishika-migrate/throttle") as session:
        run = control.under_way(session, target)
        before = control.read(session, run=run)
        if what in ("pause", "resume"):
            control.pause(session, run=run, paused=what == "pause")
        else:
            control.throttle(session, run=run, rate=what if isinstance(what, int) else None)
        now = control.read(session, run=run)
    return Throttled(run=run, rate=now.rate, paused=now.paused, waiting=now.waiting, message=_said(run, before, now))


def _said(run: str, before: control.Orders, now: control.Orders) -> str:
    if now.paused != before.paused:
        text = f"run {run} is paused" if now.paused else f"run {run} goes on{_limited(now.rate)}"
    elif now.rate != before.rate:
        text = f"run {run} copies {rate(now.rate)} from now on; until now {rate(before.rate)}"
        text += ", and is paused" if now.paused else ""
    elif now.paused:
        text = f"run {run} is paused already"
    else:
        text = f"nothing to change: run {run} is not paused and copies {rate(now.rate)}"
    return f"{text}; it waits for a standby of the source" if now.waiting and not now.paused else text


def _limited(limit: int | None) -> str:
    return f", {rate(limit)}" if limit is not None else ""


def rate(limit: int | None) -> str:
    """In words."""
    if limit is None:
        return "without a limit"
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if limit >= size:
            return f"at most {limit / size:g} {unit}/s"
    return f"at most {limit / 1000:g} kB/s"
