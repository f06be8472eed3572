"""`reset`: undoes an unfinished run, as if it had never begun.

Imports pg, plan and the words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from mishika_migrate import errors, model, plan
from mishika_migrate.pg import connect, delta, indexes, interrupt, journal, ledger, transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """What a reset would do: `tables` are emptied, children first, and `indexes` put back.

    Of a table of which the run wanted an interval only that goes: `within`. `rows` are those that the
    tables hold now, `foreign` those of them that the run has not brought. Rows that the run has merged
    into those of the target cannot be told from them: the tables `merged` stay as they are. Rows that
    `emptied` tables had before the run are gone. `objects` are what was made for following, which stay.
    """

    run: str
    tables: tuple[model.TableName, ...]
    indexes: int
    rows: int
    foreign: int
    within: Mapping[model.TableName, model.Interval] = field(default_factory=dict)
    merged: tuple[model.TableName, ...] = ()
    emptied: tuple[model.TableName, ...] = ()
    objects: tuple[str, ...] = ()


def look(target: model.Endpoint) -> Undo:
    """What there is to undo; `errors.Refused` when there is no unfinished run, or one is under way."""
    with connect.session(target, name=_NAME) as session:
        ledger.lock(session, target)
        return _look(session, target)


def carry_out(target: model.Endpoint, *, run: str, lock_timeout: float) -> Undo:
    """In one transaction: rows go, indexes come back, the run counts as abandoned.

    Sequences stay where they are and views that the run created stay: both are harmless. So does a
    schema that it created.
    """
    settings = {"lock_timeout": f"{int(lock_timeout * 1000)}ms"}
    with _room(), connect.session(target, name=_NAME, settings=settings) as session:
        ledger.lock(session, target)
        interrupt.end_leftovers(session, "mishika-migrate/")
        with connect.transaction(session):
            undo = _look(session, target)
            if undo.run != run:
                raise errors.Refused(f"run {run} on {target.label} is no longer unfinished", hint="Look again.")
            transfer.empty_all(session, [table for table in undo.tables if table not in undo.within])
            for table, interval in undo.within.items():
                transfer.empty(session, table, truncate=False, within=interval)
            _restore(session, target, run)
            ledger.abandon(session, run=run)
    return undo


_NAME = "mishika-migrate/reset"


@contextmanager
def _room() -> Iterator[None]:
    """Says how little is missing: an emptied table and an index begin with a page in a new file, and the old
    files go with the COMMIT [53100 on a disk with no page left]."""
    try:
        yield
    except errors.OutOfSpace as error:
        error.hint = "Nothing was changed. Free some megabytes on the server and reset again: that frees the rest."
        raise


def _look(session: connect.Session, target: model.Endpoint) -> Undo:
    before = ledger.unfinished(session)
    if before is None:
        raise errors.Refused(
            f"there is no unfinished run on {target.label}", hint="`mishika-migrate status` shows the runs."
        )
    todo = plan.loads(before.plan)
    copies = [step for step in todo.steps if isinstance(step, model.CopyTable)]
    written = dict.fromkeys(step.target for step in copies if step.target.name in before.tables)
    tables = tuple(table for table in reversed(written) if table not in todo.merged)
    brought = ledger.brought(session, run=before.run)
    landed = ledger.landed(session, run=before.run)
    gone = [step for step in todo.steps if isinstance(step, model.Empty) and step.id in landed]
    within = {table: interval for table, interval in todo.intervals.items() if table in tables}
    there = {table: delta.count(session, table, within.get(table)) for table in tables}
    return Undo(
        run=before.run,
        tables=tables,
        indexes=len(ledger.kept_indexes(session, run=before.run)),
        rows=sum(there.values()),
        foreign=sum(max(rows - brought.get(table.name, 0), 0) for table, rows in there.items()),
        within=within,
        merged=tuple(table for table in written if table in todo.merged),
        emptied=tuple(table for step in gone for table in step.tables),
        objects=tuple(
            f"{kind} {name} on the {side}" for side, kind, name in journal.objects(session) if kind != "heartbeat"
        ),
    )


def _restore(session: connect.Session, target: model.Endpoint, run: str) -> None:
    kept = ledger.kept_indexes(session, run=run)
    definitions = {key: indexes.loads(text) for key, text in kept.items()}
    for (table, name), definition in definitions.items():
        with connect.translated(target, f"index {name}, which is {definition.create},"):
            indexes.build(session, table, definition)
    for (table, _), definition in definitions.items():
        indexes.complete(session, table, definition)
