"""What a resumed run makes of what earlier attempts have left: kept, brought up to date, or done again.

Imports work, pg, plan, events and the words.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mishika_migrate import errors, events, model, plan, words
from mishika_migrate.operations.copying import work
from mishika_migrate.pg import catalog, connect, ddl, delta, ledger, snapshot

_T = TypeVar("_T")


class Ask(Protocol):
    """Asks the target in the run's own session."""

    def __call__(self, question: Callable[[connect.Session], _T]) -> _T: ...


def resumable(source: model.Endpoint, target: model.Endpoint) -> tuple[model.Plan, model.Unfinished]:
    """The target's unfinished run and its plan; `errors.Refused` when there is none from this source."""
    patience = {"lock_timeout": "10s"}
    with connect.session(target, name="mishika-migrate/look", settings=patience) as session:
        before = ledger.unfinished(session)
        theirs = catalog.read(session, target)
    if before is None:
        raise errors.Refused(f"there is no unfinished run on {target.label}", hint="Start one: `mishika-migrate copy`.")
    todo = plan.loads(before.plan)
    if todo.source != source.label:
        raise errors.Refused(
            f"run {before.run} copies from {todo.source}, not from {source.label}",
            hint="Give the same --source as at its start.",
        )
    with connect.session(source, name="mishika-migrate/look", settings=patience) as session:
        ours = catalog.read(session, source)
    if found := plan.outdated(todo, ours, theirs):
        raise errors.Refused(
            f"the schema has changed since run {before.run} began", hint="See the findings.", findings=found
        )
    return todo, before


Links = dict[model.TableName, tuple[model.TableName, ...]]


def _followers(todo: model.Plan, references: list[tuple[model.TableName, model.TableName]]) -> Links:
    """For each table of the plan those that reference it, directly or not, and go when its rows go.

    Rows of a merged table never go; what it references is merged itself (`order.existing`).
    """
    tables = {step.target for step in todo.steps if isinstance(step, model.CopyTable)} - set(todo.merged)
    links = {table: {child for child, parent in references if parent == table} & tables for table in tables}
    for _ in tables:
        links = {
            table: children.union(*(links[child] for child in children), set()) for table, children in links.items()
        }
    return {table: tuple(sorted(children - {table})) for table, children in links.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """`kept` steps are not repeated, `stale` ones are; `late` is done before history goes on.

    `followers` are, for each table of the plan, those that reference it, directly or not.
    """

    kept: Mapping[str, model.Landed]
    stale: frozenset[str]
    late: tuple[work.Follow | work.Clear, ...]
    followers: Links


def judge(
    todo: model.Plan,
    run: str,
    holder: snapshot.Holder,
    source: model.Endpoint,
    ask: Ask,
    *,
    reset: str,
    emit: Callable[[events.Event], None],
) -> Judgement:
    """Compares what landed with the source as the holder sees it, and with what the target still holds.

    Raises `errors.Refused`, which names the command `reset`, when somebody else has changed the
    target's tables since.
    """
    landed = ask(lambda session: ledger.landed(session, run=run))
    horizons = ask(lambda session: ledger.horizons(session, run=run))
    followers = _followers(todo, ask(ddl.references))
    copies = [step for step in _copies(todo) if step.id in landed]
    with connect.translated(source):
        changes = [
            delta.change(holder.session, step, horizon=horizons[step.id], landed=landed[step.id].rows_out)
            for step in copies
            if holder.continues(horizons[step.id], step)
        ]
        known = {change.step.id for change in changes}
        lost = {step.target for step in copies if step.id not in known}
        changed = lost | {change.step.target for change in changes if not change.nothing}
        follow = _following(todo, holder, changes, changed - lost - set(todo.merged), followers)
    again = _closure(todo, changed - set(follow), followers)
    alone = _unchanged(todo, changes)
    # Sequences and statistics cost nothing to do again.
    stale = {
        step.id
        for step in todo.steps
        if isinstance(step, model.SetSequence | model.Analyze)
        or (isinstance(step, model.CopyTable) and step.target in again and step.id not in alone)
    } & set(landed)
    kept = {name: outcome for name, outcome in landed.items() if name not in stale}
    clear = _clear(todo, set(horizons) - set(kept))
    cleared = {table for each in clear for table in each.tables}
    _check_target(todo, run, ask, emit, reset=reset, rewritten={*again, *follow, *cleared})
    updates = (step for table, step in follow.items() if table not in again)
    return Judgement(kept=kept, stale=frozenset(stale), late=(*clear, *updates), followers=followers)


def _unchanged(todo: model.Plan, changes: Sequence[delta.Change]) -> set[str]:
    """Steps of merged history that stay whatever becomes of the others: none of their rows is removed for those."""
    history = {step.id for step in _copies(todo, history=True)}
    return {each.step.id for each in changes if each.nothing and each.step.merges and each.step.id in history}


def _copies(todo: model.Plan, *, history: bool = False) -> Iterator[model.CopyTable]:
    return (
        step
        for stage in todo.stages
        if stage.name == "bulk" or not history
        for step in stage.steps
        if isinstance(step, model.CopyTable)
    )


def _following(
    todo: model.Plan,
    holder: snapshot.Holder,
    changes: Sequence[delta.Change],
    tables: Set[model.TableName],
    followers: Links,
) -> dict[model.TableName, work.Follow]:
    """Changed tables of history whose changes can be found by key; nobody's foreign key may depend on them."""
    found = {}
    for table in tables & {step.target for step in _copies(todo, history=True)}:
        mine = tuple(change for change in changes if change.step.target == table)
        step = mine[0].step
        key = delta.primary_key(holder.session, step.root or step.source)
        if key and set(key) <= set(step.columns) and not followers.get(table):
            horizons = {change.step.id: holder.horizon(change.step) for change in mine}
            found[table] = work.Follow(table=table, changes=mine, horizons=horizons, key=key)
    return found


def _closure(todo: model.Plan, changed: Set[model.TableName], followers: Links) -> set[model.TableName]:
    """What goes with these: the whole atomic stage, which is one state of the source, and who references them."""
    again = set(changed)
    for stage in todo.stages:
        tables = {step.target for step in stage.steps if isinstance(step, model.CopyTable)}
        if stage.atomic and again & tables:
            again |= tables
    for table in tuple(again):
        again.update(followers.get(table, ()))
    return again


def _clear(todo: model.Plan, stale: Set[str]) -> tuple[work.Clear, ...]:
    """History that is to be copied again is emptied first: each of its steps brings only a part."""
    steps = (step for step in _copies(todo, history=True) if step.id in stale and not step.merges)
    tables = dict.fromkeys(step.target for step in steps)
    return (work.Clear(tables=tuple(reversed(tables)), within=todo.intervals),) if tables else ()


def _check_target(
    todo: model.Plan,
    run: str,
    ask: Ask,
    emit: Callable[[events.Event], None],
    *,
    reset: str,
    rewritten: Set[model.TableName],
) -> None:
    """Rows that vanished are no longer the run's word; rows of others must not be removed.

    Of merged tables neither is asked: their rows are anybody's, and none is removed.
    """
    brought = ask(lambda session: ledger.brought(session, run=run))
    for table in dict.fromkeys(step.target for step in _copies(todo) if not step.merges):
        ours = brought.get(table.name, 0)
        there = ask(functools.partial(delta.count, table=table, within=todo.intervals.get(table)))
        if there < ours:
            raise errors.Refused(
                f"{todo.target} holds {words.count(there, 'row')} of {table.name}, but run {run} has brought {ours:,}:"
                " somebody has removed some",
                hint=f"Undo the run and begin anew: `{reset}`.",
            )
        if there > ours and table in rewritten:
            raise errors.Refused(
                f"{table.name} on {todo.target} has {words.count(there - ours, 'row')} that run {run} has not brought,"
                " and its own are to be replaced because the source has changed since",
                hint=f"Undo the run and begin anew: `{reset}`.",
            )
        if there > ours:
            strange = words.count(there - ours, "row")
            emit(events.Noticed(message=f"{table.name} has {strange} that this run has not brought"))


def said(step: work.Follow) -> str:
    """What is about to happen, for people."""
    newer = sum(change.newer for change in step.changes)
    if all(change.only_new for change in step.changes):
        rows = words.count(newer, "new row")
        return f"{step.table.name}: {rows} on the source since the run stopped; nothing else changed"
    return f"{step.table.name}: rows were changed or removed on the source since the run stopped; comparing keys"
