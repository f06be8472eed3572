"""Which tables `verify` and `sync` are about: those that are asked for, or all that runs have copied.

Imports pg, history, selection, plan, matrix and the words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mishika_migrate import errors, matrix, model, plan
from mishika_migrate.pg import connect, ledger
from mishika_migrate.plan import history, selection

_NAME = "mishika-migrate/verify"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which tables are compared, within which intervals, and where that was said.

    `existing` says of which tables rows were merged into the target's. `idle` are needed when they are
    used, and were not when the runs looked. `known` are all tables that the source had then.
    """

    tables: tuple[str, ...]
    said: str
    within: Mapping[str, model.Interval] = field(default_factory=dict)
    existing: Mapping[str, model.Existing] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    known: frozenset[str] = frozenset()


def choose(
    rules: matrix.Matrix,
    source: model.Catalog,
    target: model.Catalog,
    end: model.Endpoint,
    wanted: selection.Wanted | None,
    span: history.Span | None,
) -> Scope:
    """What is `wanted`; without that what the target's ledger says, or else what is required or in use."""
    if wanted is None and (found := copied(end)) is not None:
        return in_use(found, source, target)
    asked = dataclasses.replace(wanted or selection.Wanted(), use="either")
    chosen = selection.select(rules, source, asked, target=target)
    intervals = {
        each.table: interval
        for each in chosen.chosen
        if (table := source.table(each.table)) and (interval := history.interval(rules.entry(each.table), table, span))
    }
    return Scope(
        tables=(*(each.table for each in chosen.chosen), *_lost(rules, chosen)),
        said="as asked for" if wanted else "what is required or in use: the target has no run in its ledger",
        within=intervals,
    )


def _lost(rules: matrix.Matrix, chosen: model.Selection) -> list[str]:
    """A required table that the source has lost is not nothing to compare."""
    if chosen.only:
        return []
    known = {each.table for each in chosen.chosen} | {left.table for left in chosen.left}
    return [entry.table for entry in rules.entries if entry.need == "required" and entry.table not in known]


def in_use(found: Scope, source: model.Catalog, target: model.Catalog) -> Scope:
    """With those of its idle tables that one of the sides has rows of by now."""
    more = tuple(name for name in found.idle if selection.used(name, source, target))
    return dataclasses.replace(found, tables=(*found.tables, *more))


def copied(target: model.Endpoint) -> Scope | None:
    """All that the runs in the ledger have copied; None without any."""
    runs = _runs(target)
    if not runs:
        return None
    parts: dict[str, list[model.Interval | None]] = {}
    idle: dict[str, None] = {}
    known: set[str] = set()
    for _, todo in runs:
        known |= {chosen.table for chosen in todo.chosen} | {left.table for left in todo.left}
        intervals = {table.name: interval for table, interval in todo.intervals.items()}
        for chosen in todo.chosen:
            parts.setdefault(chosen.table, []).append(intervals.get(chosen.table))
        idle |= {left.table: None for left in todo.left if left.reason == selection.IDLE}
    within = {table: whole for table, found in parts.items() if (whole := _joined(found)) is not None}
    last = runs[-1][0]
    many = f"as run {last} copied" if len(runs) == 1 else f"as {len(runs)} runs copied, the last of them {last}"
    return Scope(
        tables=tuple(parts),
        said=many,
        within=within,
        idle=tuple(each for each in idle if each not in parts),
        known=frozenset(known),
    )


def _joined(parts: Sequence[model.Interval | None]) -> model.Interval | None:
    """One interval for all of them, None for the whole table; the last one where there are gaps between them."""
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        return None
    joined, *others = sorted(whole, key=lambda part: part.since or "")
    for part in others:
        if joined.before is not None and (part.since or "") > joined.before:
            return whole[-1]
        ends = (joined.before, part.before)
        before = None if None in ends else max(end for end in ends if end is not None)
        joined = dataclasses.replace(joined, before=before)
    return joined


def _runs(target: model.Endpoint) -> list[tuple[str, model.Plan]]:
    with connect.session(target, name=_NAME) as session:
        try:
            with connect.translated(target):
                found = ledger.plans(session)
        except errors.Denied as error:
            raise errors.Denied(
                f"the ledger on {target.label} may not be read, so what has been copied is not known",
                hint="GRANT USAGE ON SCHEMA mishika_migrate, SELECT ON ALL TABLES IN SCHEMA mishika_migrate to this"
                " role, or say what to compare, such as --include-spendlogs.",
                sqlstate=error.sqlstate,
            ) from error
    return [(run, plan.loads(text)) for run, text in found]
