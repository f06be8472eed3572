"""`tables`, `status` and `cleanup`: the matrix with live counts, the target's ledger, and what moves on both sides.

Imports pg, look, plan, matrix and the words.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal

from mishika_migrate import errors, matrix, model, plan
from mishika_migrate.operations import look
from mishika_migrate.pg import activity, connect, journal, ledger
from mishika_migrate.plan import selection

_NAME = "mishika-migrate/books"


def tables(rules: matrix.Matrix, source: model.Endpoint | None) -> tuple[model.Listed, ...]:
    """The matrix in its order, then what else the source has."""
    there = look.one(rules, source) if source is not None else None
    known = [_listed(entry, rules, there) for entry in rules.entries]
    names = {entry.table for entry in rules.entries} | {rules.migrations}
    others = [
        model.Listed(
            table=table.name,
            need="unknown",
            stage="",
            flag=f"--include {table.name}",
            why="not in the matrix",
            rows=selection.known_rows(table),
            bytes=table.bytes,
        )
        for table in (there.tables if there else ())
        if table.name not in names
    ]
    return (*known, *others)


def _listed(entry: matrix.Entry, rules: matrix.Matrix, there: model.Catalog | None) -> model.Listed:
    table = there.table(entry.table) if there else None
    group = rules.group(entry.group or "")
    return model.Listed(
        table=entry.table,
        need=entry.need,
        stage=entry.stage,
        flag=selection.flag(group) if group else "",
        why=entry.why,
        rows=selection.known_rows(table) if table else None,
        bytes=table.bytes if table else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the target's ledger says. `runs` has the latest first.

    `unfinished` is the run that `copy --resume` would continue, empty without one, and `waiting`
    are the tables that it has still to copy. `tables` are those of the latest run that has landed
    something. `working` names who holds the target just now. `missing` are tables that the ledger
    lacks, and then nothing else is known. `follow` is what follows what, `switch` the latest cutover or
    rollback, and `settled` the latest by which traffic has moved, or may have.
    """

    exists: bool
    runs: tuple[model.Run, ...]
    unfinished: str = ""
    waiting: tuple[str, ...] = ()
    tables: tuple[model.Tally, ...] = ()
    working: str = ""
    missing: tuple[str, ...] = ()
    follow: model.Follow | None = None
    switch: model.Switch | None = None
    settled: model.Switch | None = None

    @property
    def following(self) -> str:
        """What lets go on a run that was to follow and does not, as the end of a sentence."""
        if self.working or self.follow is None:
            return ""
        if self.follow.run == self.unfinished:
            return ": `mishika-migrate copy --resume` continues it, and the target follows afterwards"
        if any(run.id == self.follow.run and run.state == "finished" for run in self.runs):
            return ": `mishika-migrate follow start` lets it go on"
        return ": nothing of it has landed; `mishika-migrate complete` clears it up"


def status(target: model.Endpoint) -> Status:
    """Reads the ledger; writes nothing."""
    with connect.session(target, name=_NAME) as session:
        missing = ledger.missing(session)
        if missing is None or missing:
            return Status(exists=missing is not None, runs=(), missing=missing or ())
        runs = ledger.runs(session)
        before = ledger.unfinished(session)
        tables = _tables(before, runs)
        switch, settled = journal.switch(session), journal.settled(session)
        return Status(
            exists=True,
            runs=runs,
            unfinished=before.run if before else "",
            waiting=tuple(table.table for table in tables if table.steps < table.planned),
            tables=tables,
            working=_working(session, target) if _open(runs, switch, settled) else "",
            follow=journal.follow(session),
            switch=switch,
            settled=settled,
        )


def _tables(before: model.Unfinished | None, runs: tuple[model.Run, ...]) -> tuple[model.Tally, ...]:
    """Of the unfinished run all that it wants to copy, of any other what it has."""
    shown = next((run for run in runs if (run.id == before.run if before else run.steps)), None)
    if shown is None:
        return ()
    landed: dict[str, list[model.Landed]] = {}
    for step in shown.steps:
        if step.table:
            landed.setdefault(step.table, []).append(step)
    planned = _planned(before) if before else {table: len(steps) for table, steps in landed.items()}
    return tuple(
        model.Tally(
            table=table,
            rows=sum(step.rows_in for step in landed.get(table, ())),
            bytes=sum(step.bytes for step in landed.get(table, ())),
            steps=len(landed.get(table, ())),
            planned=planned.get(table, 0),
        )
        for table in dict.fromkeys([*planned, *landed])
    )


def _planned(before: model.Unfinished) -> Mapping[str, int]:
    """How many steps each table takes."""
    try:
        todo = plan.loads(before.plan)
    except errors.ConfigurationError:
        return {}  # of another version of the tool, which alone can continue it
    return Counter(step.target.name for step in todo.steps if isinstance(step, model.CopyTable))


def _open(runs: Sequence[model.Run], *switches: model.Switch | None) -> bool:
    """Whether the ledger has something under way, be it of a dead command."""
    half = any(each is not None and (each.open or each.state == "switching") for each in switches)
    return half or any(run.state == "running" for run in runs)


def _working(session: connect.Session, target: model.Endpoint) -> str:
    # The lock itself is not tried: it could turn a new run away.
    who = ledger.holder(session)
    return f"another run is working on {target.label} ({who})" if who else ""


# -- watching -------------------------------------------------------------------------------------

_LEAST_SECONDS = 0.1


def watch(
    rules: matrix.Matrix,
    ends: Sequence[model.Endpoint],
    *,
    interval: float,
    until: float | None,
    show: Callable[[tuple[model.Pulse, ...]], None],
) -> None:
    """Shows every `interval` seconds how fast each side moves.

    Returns when all of them have been quiet for `until` seconds, never without it.
    """
    with ExitStack() as stack:
        sides = [_Side(rules, end, stack.enter_context(connect.session(end, name=_NAME))) for end in ends]
        while True:
            time.sleep(max(interval, _LEAST_SECONDS))
            pulses = tuple(side.look() for side in sides)
            show(pulses)
            if until is not None and all(pulse.quiet >= until for pulse in pulses):
                return


class _Side:
    """What one server said last. A change counts from when it was seen, so that `quiet` is never too long."""

    def __init__(self, rules: matrix.Matrix, end: model.Endpoint, session: connect.Session) -> None:
        self._end, self._session = end, session
        self._tables = [entry.table for entry in rules.entries if entry.need != "never"]
        ring = rules.keys
        moving = [column for aspect in ring.aspects if aspect.moving for column in aspect.columns] if ring else []
        ends = [column.partition(".") for column in moving]
        named = dict.fromkeys((ring.table_of(name), column) for name, _, column in ends) if ring else {}
        with connect.translated(end):
            self._columns = activity.summable(session, end.schema, tuple(named))
        # Teams and users count the same money once more.
        self._spend = [each for each in self._columns if ring is not None and each[0] == ring.table]
        self._counts: Mapping[str, int] = {}
        self._sums: Mapping[tuple[str, str], Decimal] = {}
        self._seen = self._moved = 0.0
        self.look()
        self._moved = time.monotonic()

    def look(self) -> model.Pulse:
        """What has changed since the last look."""
        began = time.monotonic()
        with connect.translated(self._end):
            visitors = activity.visitors(self._session)
            counts = activity.counters(self._session, self._end.schema, self._tables)
            sums = activity.sums(self._session, self._end.schema, self._columns)
        elapsed = max(began - self._seen, _LEAST_SECONDS)
        # Below zero when the server's statistics were reset: it has moved, nobody knows how much.
        rows = {name: count - self._counts.get(name, 0) for name, count in counts.items()}
        moved = any(rows.values()) or sums != self._sums or any(visitor.writing for visitor in visitors)
        spent = sum((sums[each] - self._sums.get(each, 0) for each in self._spend), Decimal())
        self._counts, self._sums, self._seen = counts, sums, began
        if moved:
            self._moved = time.monotonic()
        return model.Pulse(
            role=self._end.role,
            server=self._end.label,
            quiet=max(began - self._moved, 0.0),
            rows={name: max(count, 0) / elapsed for name, count in rows.items() if count},
            spend=float(spent) / elapsed if self._spend else None,
            visitors=visitors,
        )


# -- keeping others apart ---------------------------------------------------------------------------


def refuse_while_working(target: model.Endpoint) -> None:
    """`errors.Refused` names the session that holds the target just now."""
    with connect.session(target, name=_NAME) as session:
        ledger.lock(session, target)


def refuse_strangers(target: model.Endpoint) -> None:
    """`errors.Refused` names what others have put into the ledger's schema, or made depend on it."""
    with connect.session(target, name=_NAME) as session:
        _refuse_strangers(session, target)


def _refuse_strangers(session: connect.Session, target: model.Endpoint) -> None:
    if strangers := ledger.strangers(session):
        more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
        raise errors.Refused(
            f"with schema {ledger.SCHEMA} of {target.label} would go what is not this tool's:"
            f" {', '.join(strangers[:5])}{more}",
            hint="Move it to another schema or drop it, then run the same command again.",
        )


def _refuse_move(session: connect.Session, target: model.Endpoint) -> None:
    """What the ledger knows of slots and fences is known nowhere else."""
    if left := [f"{kind} {name} on the {side}" for side, kind, name in journal.objects(session) if kind != "heartbeat"]:
        raise errors.Refused(
            f"the ledger of {target.label} is needed to take away {', '.join(left)}",
            hint="`mishika-migrate complete` removes them, and the ledger with them.",
        )


def cleanup(target: model.Endpoint) -> None:
    """Drops the ledger, whatever is left of it; refused while a run holds the target, and for strangers."""
    with connect.session(target, name=_NAME) as session:
        ledger.lock(session, target)
        _refuse_move(session, target)
        ledger.refuse_indexes_away(session, target)
        _refuse_strangers(session, target)
        ledger.drop(session)
