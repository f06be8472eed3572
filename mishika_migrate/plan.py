"""Decides what is done and in which order: `build` makes the plan that is printed or executed. Pure.

Imports preflight, views, findings, selection, matrix and the words.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mishika_migrate import errors, history, loading, matrix, model, preflight, views
from mishika_migrate import selection as selections
from mishika_migrate.findings import qualified, quoted, refuse


def build(
    rules: matrix.Matrix,
    source: model.Catalog,
    target: model.Catalog,
    selection: model.Selection,
    survey: model.Survey,
    wanted: selections.Wanted,
    *,
    manner: loading.Manner | None = None,
    implied: Sequence[model.Finding] = (),
) -> model.Plan:
    """The plan, with all findings of preflight in it; refusing ones do not stop it from being built."""
    real_target = target
    create = _schema_step(rules, source, selection) if wanted.create_schema else None
    if create is not None:
        target = _as_created(source, target, without=create.without)
    core, bulk, cycles = _order(selection, source, target)
    manner = manner or loading.Manner()
    deferred, kept = loading.deferrals([table for level in bulk for table in level], source, target, manner)
    stages = [
        model.Stage(name="schema", title="schema", atomic=True, steps=(create,) if create else ()),
        _core_stage(core, source, target),
        model.Stage(name="prepare", title="taking indexes away", atomic=False, steps=deferred),
        *(_bulk_stage(rules, level, source, target, survey, manner) for level in bulk),
        *loading.rebuilding(deferred),
        _view_stage(source, target),
        _statistics_stage(target, selection),
    ]
    findings = [
        *preflight.inspect(
            rules,
            source,
            target,
            selection,
            survey,
            real_target=real_target,
            create=create,
        ),
        *selection.findings,
        *cycles,
        *kept,
        *implied,
    ]
    return model.Plan(
        source=source.endpoint.label,
        target=target.endpoint.label,
        chosen=_in_order(selection, core, [table for level in bulk for table in level], stages),
        left=selection.left,
        stages=tuple(stage for stage in stages if stage.steps),
        findings=tuple(sorted(findings, key=lambda finding: _SEVERITY[finding.severity])),
    )


_SEVERITY: Mapping[model.Severity, int] = {"refuse": 0, "warn": 1, "note": 2}


def _in_order(
    selection: model.Selection, core: Sequence[str], bulk: Sequence[str], stages: Iterable[model.Stage]
) -> tuple[model.Chosen, ...]:
    """In the order of the copy, each with the stage that it really is in, and the rows of its interval."""
    chosen = {each.table: each for each in selection.chosen}
    for step in (step for stage in stages for step in stage.steps if isinstance(step, model.CopyTable)):
        if step.within is not None and (each := chosen[step.target.name]).within is None:
            chosen[each.table] = dataclasses.replace(each, within=step.within, rows=0, bytes=0)
        if step.within is not None:
            each = chosen[step.target.name]
            chosen[each.table] = dataclasses.replace(each, rows=each.rows + step.rows, bytes=each.bytes + step.bytes)
    return (
        *(dataclasses.replace(chosen[table], stage="core") for table in core),
        *(dataclasses.replace(chosen[table], stage="bulk") for table in bulk),
    )


def _as_created(source: model.Catalog, target: model.Catalog, *, without: Iterable[str]) -> model.Catalog:
    """What the target will be once the source's schema has been created on it."""
    mine = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "OWNER", "MAINTAIN"})
    return dataclasses.replace(
        target,
        tables=tuple(
            dataclasses.replace(table, occupied=False, privileges=mine, hidden=False, owner=target.user, triggers=())
            for table in source.tables
            if table.name not in set(without)
        ),
        sequences=tuple(dataclasses.replace(each, writable=True, readable=True) for each in source.sequences),
        migrations=source.migrations,
        types=source.types,
    )


# -- order ----------------------------------------------------------------------------------------

Graph = Mapping[str, Mapping[str, bool]]
"""Of each table the tables it references, and whether those constraints can wait for COMMIT."""


def _order(
    selection: model.Selection, source: model.Catalog, target: model.Catalog
) -> tuple[list[str], list[list[str]], list[model.Finding]]:
    """Core tables parents first, bulk tables in levels, and circles that nothing can order."""
    graph = {chosen.table: _parents(chosen.table, selection, source, target) for chosen in selection.chosen}
    circles = _circles(graph)
    order = _parents_first(graph, circles)
    core = {chosen.table for chosen in selection.chosen if chosen.stage == "core"}
    # A deferred constraint is checked at COMMIT: the tables of a circle need one transaction.
    core.update(table for circle in circles for table in circle)
    while more := {parent for table in core for parent in graph[table]} - core:
        core |= more  # a parent's rows must be there when the core commits
    levels: dict[str, int] = {}
    for table in (table for table in order if table not in core):
        levels[table] = max((levels[p] + 1 for p in graph[table] if p in levels), default=0)
    sizes = {chosen.table: chosen.bytes for chosen in selection.chosen}
    bulk = [
        sorted((table for table in levels if levels[table] == n), key=lambda table: -sizes[table])
        for n in range(max(levels.values(), default=-1) + 1)
    ]
    firm = {table: {p: waits for p, waits in parents.items() if not waits} for table, parents in graph.items()}
    findings = [_circle(circle, order, target) for circle in _circles(firm)]
    return [table for table in order if table in core], bulk, findings


def _parents(table: str, selection: model.Selection, source: model.Catalog, target: model.Catalog) -> dict[str, bool]:
    """Chosen tables that this one references, and whether the constraint can wait for COMMIT.

    The target enforces the keys. Those of the source alone only make the order the same everywhere.
    """
    parents: dict[str, bool] = {}
    for key in _foreign_keys(table, selection, target):
        parents[key.references] = parents.get(key.references, True) and key.deferrable
    for key in _foreign_keys(table, selection, source):
        parents.setdefault(key.references, True)
    return parents


def _foreign_keys(table: str, selection: model.Selection, catalog: model.Catalog) -> list[model.ForeignKey]:
    """Without self-references, which one COPY checks at its end, when all rows are there."""
    found = catalog.table(table)
    keys = found.foreign_keys if found else ()
    return [key for key in keys if key.references != table and selection.has(key.references)]


def _circles(graph: Graph) -> list[tuple[str, ...]]:
    """The groups of two or more tables that reference each other, directly or by way of others."""
    above = {table: _above(table, graph) for table in graph}
    groups = (tuple(other for other in graph if other in above[t] and t in above[other]) for t in graph)
    return list(dict.fromkeys(group for group in groups if group))


def _above(table: str, graph: Graph) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[table])
    while waiting:
        parent = waiting.pop()
        if parent not in found:
            found.add(parent)
            waiting.extend(graph[parent])
    return found


def _parents_first(graph: Graph, circles: Iterable[Sequence[str]]) -> list[str]:
    """Every table after its parents, as near to the given order as that allows.

    In a circle the constraints that can wait do not count.
    """
    together = {table: circle for circle in circles for table in circle}
    before = {
        table: {p for p, waits in parents.items() if not (waits and p in together.get(table, ()))}
        for table, parents in graph.items()
    }
    order: list[str] = []
    waiting = dict.fromkeys(graph)
    while waiting:
        free = (table for table in waiting if before[table].isdisjoint(waiting))
        table = next(free, next(iter(waiting)))  # none is free in a circle that will be refused
        del waiting[table]
        order.append(table)
    return order


def _circle(circle: Sequence[str], order: Sequence[str], target: model.Catalog) -> model.Finding:
    place = {table: order.index(table) for table in circle}
    late = [
        (table, key.name)
        for table in circle
        if (found := target.table(table)) is not None
        for key in found.foreign_keys
        if not key.deferrable and place.get(key.references, -1) > place[table]
    ]
    return refuse(
        "foreign-key-cycle",
        ", ".join(circle),
        f"the tables {', '.join(circle)} of the target {target.endpoint.label} reference each other in a circle,"
        " so none of them can be loaded first",
        " ".join(
            f"ALTER TABLE {qualified(table, target)} ALTER CONSTRAINT {quoted(name)} DEFERRABLE;"
            for table, name in late
        ),
    )


# -- stages ---------------------------------------------------------------------------------------


def _schema_step(rules: matrix.Matrix, source: model.Catalog, selection: model.Selection) -> model.CreateSchema:
    """All tables that the matrix knows, since the copied migration history says that they exist.

    And what those reference: a foreign key cannot be created without its other table.
    """
    kept = {table.name for table in source.tables if rules.entry(table.name) or selection.has(table.name)}
    kept |= {table.name for table in source.tables if table.name == rules.migrations}
    waiting = list(kept)
    while waiting:
        table = source.table(waiting.pop())
        more = {key.references for key in table.foreign_keys} - kept if table else set()
        kept |= more
        waiting.extend(more)
    return model.CreateSchema(
        schema=source.endpoint.schema,
        without=(
            *(table.name for table in source.tables if table.name not in kept),
            *(view.name for view in source.views),
            *(other.name for other in source.others),
        ),
    )


def _core_stage(tables: Sequence[str], source: model.Catalog, target: model.Catalog) -> model.Stage:
    steps: list[model.Step] = []
    for origin, place in _both(tables, source, target):
        steps.extend(_copy_steps(origin, place, source, target))
        steps.extend(_sequences(origin.name, source, target))
    return model.Stage(name="core", title="keys and configuration", atomic=True, steps=tuple(steps))


def _bulk_stage(
    rules: matrix.Matrix,
    tables: Sequence[str],
    source: model.Catalog,
    target: model.Catalog,
    survey: model.Survey,
    manner: loading.Manner,
) -> model.Stage:
    """Independent steps in the order of `tables`, the largest first; a sequence does not wait for its table."""
    pairs = list(_both(tables, source, target))
    copies: list[model.Step] = []
    for origin, place in pairs:
        spread = survey.spread.get(origin.name, ())
        within = history.interval(rules.entry(origin.name), origin, manner.span)
        for step in _copy_steps(origin, place, source, target):
            part = history.narrowed(step, within, spread)
            copies += loading.cut(part, origin, place, version=source.version, batch=manner.batch, spread=spread)
    sequences = (step for origin, _ in pairs for step in _sequences(origin.name, source, target))
    return model.Stage(name="bulk", title="history", atomic=False, steps=(*copies, *sequences))


def _both(
    tables: Sequence[str], source: model.Catalog, target: model.Catalog
) -> Iterable[tuple[model.Table, model.Table]]:
    for table in tables:
        origin, place = source.table(table), target.table(table)
        if origin is not None and place is not None:
            yield origin, place


def _copy_steps(
    origin: model.Table, place: model.Table, source: model.Catalog, target: model.Catalog
) -> Iterable[model.CopyTable]:
    step = _copy_step(origin, place, source, target)
    if step.columns:  # without columns there is nothing to name in a COPY
        yield step


def _copy_step(
    origin: model.Table, place: model.Table, source: model.Catalog, target: model.Catalog
) -> model.CopyTable:
    pairs = [
        (column, other)
        for column in origin.columns
        if (other := place.column(column.name)) is not None and not other.generated
    ]
    return model.CopyTable(
        source=model.TableName(schema=source.endpoint.schema, name=origin.name),
        target=model.TableName(schema=target.endpoint.schema, name=place.name),
        columns=tuple(column.name for column, _ in pairs),
        binary=all(column.type == other.type and column.binary and other.binary for column, other in pairs),
        partitioned=origin.partitioned,
        rows=origin.rows,
        bytes=origin.bytes,
    )


def _sequences(table: str, source: model.Catalog, target: model.Catalog) -> Iterable[model.SetSequence]:
    """Sequences owned by the same column on both sides, whatever they are called."""
    for sequence in source.sequences:
        twin = next((s for s in target.sequences if s.table == table and s.column == sequence.column), None)
        if sequence.table == table and twin is not None:
            yield model.SetSequence(
                source=model.TableName(schema=source.endpoint.schema, name=sequence.name),
                target=model.TableName(schema=target.endpoint.schema, name=twin.name),
            )


def _view_stage(source: model.Catalog, target: model.Catalog) -> model.Stage:
    """Views that the target lacks, in one transaction, those that others read first."""
    creatable, _ = views.missing(source, target)
    steps = tuple(
        model.CreateView(
            target=model.TableName(schema=target.endpoint.schema, name=view.name),
            definition=view.definition,
            owner=views.owner(view, target),
        )
        for view in creatable
    )
    return model.Stage(name="finish", title="views", atomic=True, steps=steps)


# Reading their samples is most of the work (JSON of 6 kB a row lies in TOAST), and no query of the
# proxy compares them. The server's own autovacuum still looks at them later.
_DOCUMENTS = frozenset({"json", "jsonb", "xml"})


def _statistics_stage(target: model.Catalog, selection: model.Selection) -> model.Stage:
    steps = tuple(
        model.Analyze(
            target=model.TableName(schema=target.endpoint.schema, name=table.name),
            columns=tuple(column.name for column in table.columns if column.type not in _DOCUMENTS),
        )
        for chosen in selection.chosen
        if (table := target.table(chosen.table)) is not None
    )
    return model.Stage(name="finish", title="statistics", atomic=False, steps=steps)


def outdated(todo: model.Plan, source: model.Catalog, target: model.Catalog) -> tuple[model.Finding, ...]:
    """What no longer fits a plan that is to be continued: tables that are gone, and columns that are other ones."""
    findings = []
    for step in {step.target: step for step in todo.steps if isinstance(step, model.CopyTable)}.values():
        origin, place = source.table((step.root or step.source).name), target.table(step.target.name)
        if origin is None or place is None:
            gone = source if origin is None else target
            findings.append(_changed(step, f"{gone.endpoint.role} {gone.endpoint.label} has no such table any more"))
            continue
        now = _copy_step(origin, place, source, target)
        misfits = {*now.columns} ^ {*step.columns} | _without_partner(origin, place)
        if misfits or (step.binary and not now.binary):
            other = ", ".join(sorted(misfits)) or "types"
            findings.append(_changed(step, f"its columns on the two servers are other ones now ({other})"))
    return tuple(findings)


def _without_partner(origin: model.Table, place: model.Table) -> set[str]:
    """Columns whose values would be lost, and those that the target wants a value for."""
    wanting = (column for column in place.columns if not column.nullable and column.default is None)
    return {column.name for column in origin.columns if place.column(column.name) is None} | {
        column.name
        for column in wanting
        if origin.column(column.name) is None and not (column.generated or column.identity)
    }


def _changed(step: model.CopyTable, how: str) -> model.Finding:
    return refuse(
        "schema-changed",
        step.target.name,
        f"{step.target.name} has changed since the plan was made: {how}",
        "mishika-migrate reset -- undoes the run, then copy anew; or take the change back and resume",
    )


# -- as text --------------------------------------------------------------------------------------

_STEPS: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (
        model.CreateSchema,
        model.CopyTable,
        model.DropIndexes,
        model.BuildIndex,
        model.RestoreIndexes,
        model.SetSequence,
        model.CreateView,
        model.Analyze,
    )
}


def dumps(plan: model.Plan) -> str:
    """The plan as one JSON object; `loads` gives an equal plan back."""
    return json.dumps(as_dict(plan), ensure_ascii=False)


def as_dict(plan: model.Plan) -> dict[str, Any]:
    """Plain values; every step names its kind. Documented in docs/json.md."""
    plain = dataclasses.asdict(plan)
    for stage, value in zip(plan.stages, plain["stages"], strict=True):
        value["steps"] = [
            {"kind": type(step).__name__, **fields} for step, fields in zip(stage.steps, value["steps"], strict=True)
        ]
    return plain


def loads(text: str) -> model.Plan:
    """Raises `errors.ConfigurationError` for text that another version of the tool wrote."""
    try:
        plain = json.loads(text)
        return model.Plan(
            source=plain["source"],
            target=plain["target"],
            chosen=tuple(model.Chosen(**{**value, "within": _field(value["within"])}) for value in plain["chosen"]),
            left=tuple(model.Left(**value) for value in plain["left"]),
            stages=tuple(
                model.Stage(**{**value, "steps": tuple(_step(step) for step in value["steps"])})
                for value in plain["stages"]
            ),
            findings=tuple(model.Finding(**value) for value in plain["findings"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise errors.ConfigurationError(
            "the plan in the ledger was written by another version of mishika-migrate",
            hint="Continue with the version that `mishika-migrate status` names.",
        ) from error


def _step(plain: dict[str, Any]) -> model.Step:
    fields = {key: _field(value) for key, value in plain.items() if key != "kind"}
    step: model.Step = _STEPS[plain["kind"]](**fields)
    return step


def _field(value: Any) -> Any:
    if isinstance(value, dict):
        kind = model.PageRange if "low" in value else model.Interval if "since" in value else model.TableName
        return kind(**value)
    return tuple(value) if isinstance(value, list) else value
