"""What a person reads of `sync`: what was changed, or would be, and for which keys.

Imports names, screen and the words.
"""

from __future__ import annotations

import datetime

from rich import box
from rich.table import Table

from mishika_migrate import model
from mishika_migrate.report import names, screen

# Of one key, and of more.
_MEANING: dict[model.Outcome, tuple[str, str]] = {
    "lost": (
        "works on the source and would be refused on the target",
        "work on the source and would be refused on the target",
    ),
    "revived": (
        "revoked on the source is still alive on the target",
        "revoked on the source are still alive on the target",
    ),
    "opened": ("lacks a limit on the target", "lack a limit on the target"),
    "changed": ("is decided otherwise on the target", "are decided otherwise on the target"),
    "moved": ("has another spend on the target", "have another spend on the target"),
}


def show(to: screen.Screen, done: model.Sync) -> None:
    """The sum first, then the tables in which something differs, then what that means for keys."""
    foreseen = not done.run
    if not done.total:
        screen.say(to, f"Nothing to do: {_same(done)}.", "bold green")
    elif foreseen:
        screen.say(to, f"Would change {screen.count(done.total, 'row')} of {done.target}; nothing was written.", "bold")
    else:
        seconds = screen.duration(done.seconds)
        screen.say(to, f"Done: {screen.count(done.total, 'row')} changed in {seconds}, run {done.run}.", "bold green")
    screen.say(to, f"From  {done.source}")
    screen.say(to, f"To    {done.target}")
    screen.say(to, f"What  {done.said}")
    if unread := [change.table for change in done.changes if change.how == "visibility"]:
        screen.say(to, f"How   by hashes; {', '.join(unread)} by what the last run has seen of the source")
    if changed := [change for change in done.changes if change.changes or change.extra]:
        to.print()
        to.print(_grid(to, changed))
    if foreseen and done.keys is not None:
        _keys(to, done.keys)


def beat(to: screen.Screen, number: int, done: model.Sync) -> None:
    """One of many passes in one line: `19:45:02  pass 2, 0.4 s: 4 rows; SpendLogs +3, TeamTable ~1`."""
    what = screen.count(done.total, "row") if done.total else "nothing to do"
    short = names.Names([change.table for change in done.changes], unicode=to.unicode)
    changed = [f"{short.short(each.table)} {_counts(each)}" for each in done.changes if each.changes]
    now = datetime.datetime.now().astimezone()
    line = f"{now:%H:%M:%S}  pass {number}, {screen.duration(done.seconds)}: {what}"
    screen.say(to, "; ".join([line, *([", ".join(changed)] if changed else [])]))


def _counts(change: model.Synced) -> str:
    parts = (("+", change.inserted), ("~", change.updated), ("-", change.deleted))
    return " ".join(f"{sign}{number:,}" for sign, number in parts if number)


def _same(done: model.Sync) -> str:
    """What is the target's own in history is no reason to do anything, and no equality either."""
    extra = sum(change.extra for change in done.changes)
    tables = screen.count(len(done.changes), "table")
    if extra:
        return f"{tables} hold all that the source does; {screen.count(extra, 'row')} only the target has"
    if any(change.how == "visibility" for change in done.changes):
        return f"nothing has changed in {tables}"
    return f"{tables} are the same on both sides"


def _grid(to: screen.Screen, changed: list[model.Synced]) -> Table:
    short = names.Names([change.table for change in changed], unicode=to.unicode)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(short.title, overflow="fold")
    for column in ("insert", "update", "delete", "stay"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("found by", no_wrap=True)
    for change in changed:
        numbers = (change.inserted, change.updated, change.deleted, change.extra)
        table.add_row(screen.text(short.short(change.table)), *(f"{n:,}" if n else "" for n in numbers), change.how)
    return table


def _keys(to: screen.Screen, keys: model.Keys) -> None:
    told = [(count, _MEANING[outcome]) for outcome, count in keys.outcomes.items() if outcome in _MEANING and count]
    if not told:
        return
    to.print()
    for count, meaning in told:
        screen.say(to, f"{screen.count(count, 'key')} {meaning[count > 1]}")
    for verdict in keys.verdicts[:10]:
        codes = ", ".join(reason.code for reason in verdict.reasons)
        screen.say(to, f"    {verdict.key}: {codes}")
    if keys.capped or len(keys.verdicts) > 10:
        more = sum(n for outcome, n in keys.outcomes.items() if outcome != "unchanged") - min(len(keys.verdicts), 10)
        screen.say(to, f"    and {more:,} more")
