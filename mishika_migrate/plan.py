"""Decides what is done and in which order: `build` makes the plan that is printed or executed. Pure.

Imports preflight, selection, matrix and the words.
"""

from __future__ import annotations

import dataclasses
import graphlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mishika_migrate import errors, matrix, model, preflight
from mishika_migrate import selection as selections


def build(
    rules: matrix.Matrix,
    source: model.Catalog,
    target: model.Catalog,
    selection: model.Selection,
    survey: model.Survey,
    wanted: selections.Wanted,
    *,
    implied: Sequence[model.Finding] = (),
) -> model.Plan:
    """The plan, with all findings of preflight in it; refusing ones do not stop it from being built."""
    real_target = target
    if wanted.create_schema:
        target = _as_created(source, target)
    core, bulk, cycles = _order(selection, source, target)
    stages = [
        _schema_stage(rules, source, target, selection) if wanted.create_schema else None,
        _copy_stage("core", "keys and configuration", core, source, target),
        *(_copy_stage("bulk", "history", level, source, target) for level in bulk),
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
            create_schema=wanted.create_schema,
        ),
        *selection.findings,
        *cycles,
        *implied,
    ]
    rank = {"refuse": 0, "warn": 1, "note": 2}
    return model.Plan(
        source=source.endpoint.label,
        target=target.endpoint.label,
        chosen=_in_order(selection, [*core, *(table for level in bulk for table in level)]),
        left=selection.left,
        stages=tuple(stage for stage in stages if stage is not None and stage.steps),
        findings=tuple(sorted(findings, key=lambda finding: rank[finding.severity])),
    )


def _in_order(selection: model.Selection, order: Sequence[str]) -> tuple[model.Chosen, ...]:
    place = {table: n for n, table in enumerate(order)}
    return tuple(sorted(selection.chosen, key=lambda chosen: place.get(chosen.table, len(place))))


def _as_created(source: model.Catalog, target: model.Catalog) -> model.Catalog:
    """What the target will be once the source's schema has been created on it."""
    mine = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "OWNER"})
    return dataclasses.replace(
        target,
        tables=tuple(
            dataclasses.replace(table, occupied=False, privileges=mine, hidden=False, owner=target.user, triggers=())
            for table in source.tables
        ),
        sequences=tuple(dataclasses.replace(sequence, writable=True) for sequence in source.sequences),
        migrations=source.migrations,
    )


def _order(
    selection: model.Selection, source: model.Catalog, target: model.Catalog
) -> tuple[list[str], list[list[str]], list[model.Finding]]:
    """Core tables parents first, bulk tables in levels, and cycles that nothing can order."""
    edges = {chosen.table: _parents(chosen.table, selection, source, target) for chosen in selection.chosen}
    core = {chosen.table for chosen in selection.chosen if chosen.stage == "core"}
    while more := {parent for table in core for parent in edges[table]} - core:
        core |= more  # a parent's rows must be there when the core commits
    order, findings = _sorted(edges, selection, source, target)
    levels: dict[str, int] = {}
    for table in (table for table in order if table not in core):
        levels[table] = max((levels[p] + 1 for p in edges[table] if p in levels), default=0)
    bulk = [
        sorted((t for t in levels if levels[t] == n), key=lambda t: -_bytes(selection, t))
        for n in range(max(levels.values(), default=-1) + 1)
    ]
    return [table for table in order if table in core], bulk, findings


def _parents(table: str, selection: model.Selection, source: model.Catalog, target: model.Catalog) -> dict[str, bool]:
    """Chosen tables that this one references, and whether the constraint can wait for COMMIT.

    The target enforces the keys; the source's are added so that the order is the same when the
    target is to get them later.
    """
    parents: dict[str, bool] = {}
    for catalog in (target, source):
        found = catalog.table(table)
        for key in found.foreign_keys if found else ():
            if key.references != table and selection.has(key.references):
                known = parents.get(key.references, True)
                parents[key.references] = known and key.deferrable
    return parents


def _sorted(
    edges: Mapping[str, Mapping[str, bool]],
    selection: model.Selection,
    source: model.Catalog,
    target: model.Catalog,
) -> tuple[list[str], list[model.Finding]]:
    graph = {table: set(parents) for table, parents in edges.items()}
    findings: list[model.Finding] = []
    while True:
        try:
            return list(graphlib.TopologicalSorter(_stable(graph)).static_order()), findings
        except graphlib.CycleError as error:
            # The cycle is listed from parent to child, its first table again at its end.
            cycle: list[str] = error.args[1]
            links = list(zip(cycle[1:], cycle, strict=False))
            waits = [(child, parent) for child, parent in links if edges[child][parent]]
            if not waits:
                findings.append(_cycle(cycle))
            child, parent = waits[0] if waits else links[0]
            graph[child].discard(parent)


def _stable(graph: Mapping[str, set[str]]) -> dict[str, list[str]]:
    place = {table: n for n, table in enumerate(graph)}
    return {table: sorted(parents, key=lambda p: place[p]) for table, parents in graph.items()}


def _cycle(cycle: Sequence[str]) -> model.Finding:
    return model.Finding(
        code="foreign-key-cycle",
        severity="refuse",
        subject=" → ".join(cycle),
        message=f"the tables {' → '.join(cycle)} reference each other in a circle, so none can be loaded first",
        fix="ALTER TABLE … ALTER CONSTRAINT … DEFERRABLE on one of these foreign keys of the target",
    )


def _bytes(selection: model.Selection, table: str) -> int:
    return next(chosen.bytes for chosen in selection.chosen if chosen.table == table)


# -- stages ---------------------------------------------------------------------------------------


def _schema_stage(
    rules: matrix.Matrix, source: model.Catalog, target: model.Catalog, selection: model.Selection
) -> model.Stage:
    """All tables that the matrix knows: the copied migration history says that they exist."""
    kept = {entry.table for entry in rules.entries} | {rules.migrations}
    without = [table.name for table in source.tables if table.name not in kept and not selection.has(table.name)]
    step = model.CreateSchema(
        schema=source.endpoint.schema,
        without=(*without, *(view.name for view in source.views)),
    )
    return model.Stage(name="schema", title="schema", atomic=True, steps=(step,))


def _copy_stage(
    name: model.StageName,
    title: str,
    tables: Sequence[str],
    source: model.Catalog,
    target: model.Catalog,
) -> model.Stage:
    steps: list[model.Step] = []
    for table in tables:
        origin, place = source.table(table), target.table(table)
        if origin is not None and place is not None:
            steps.append(_copy_step(origin, place, source, target))
            steps.extend(_sequences(table, source, target))
    if name != "core":
        # Independent steps: a sequence does not wait for its table.
        steps.sort(key=lambda step: -step.bytes if isinstance(step, model.CopyTable) else 1)
    return model.Stage(name=name, title=title, atomic=name == "core", steps=tuple(steps))


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
    missing = {view.name: view for view in source.views if target.view(view.name) is None}
    steps = tuple(
        model.CreateView(
            target=model.TableName(schema=target.endpoint.schema, name=view.name),
            definition=view.definition,
            owner=_owner(view, target),
        )
        for view in _creatable(missing, target)
    )
    return model.Stage(name="finish", title="views", atomic=True, steps=steps)


def _statistics_stage(target: model.Catalog, selection: model.Selection) -> model.Stage:
    steps = tuple(
        model.Analyze(target=model.TableName(schema=target.endpoint.schema, name=chosen.table))
        for chosen in selection.chosen
        if target.table(chosen.table)
    )
    return model.Stage(name="finish", title="statistics", atomic=False, steps=steps)


def _creatable(missing: Mapping[str, model.View], target: model.Catalog) -> list[model.View]:
    """Views whose tables the target has, those that others read first."""
    there = {table.name for table in target.tables} | {view.name for view in target.views}
    order = []
    graph = {name: [read for read in view.reads if read in missing] for name, view in missing.items()}
    for name in graphlib.TopologicalSorter(graph).static_order():
        if set(missing[name].reads) <= there:
            there.add(name)
            order.append(missing[name])
    return order


def _owner(view: model.View, target: model.Catalog) -> str:
    owners = {table.owner for name in view.reads if (table := target.table(name))}
    return owners.pop() if len(owners) == 1 else target.user


# -- as text --------------------------------------------------------------------------------------

_STEPS: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (model.CreateSchema, model.CopyTable, model.SetSequence, model.CreateView, model.Analyze)
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
            chosen=tuple(model.Chosen(**value) for value in plain["chosen"]),
            left=tuple(model.Left(**value) for value in plain["left"]),
            stages=tuple(
                model.Stage(**{**value, "steps": tuple(_step(step) for step in value["steps"])})
                for value in plain["stages"]
            ),
            findings=tuple(model.Finding(**value) for value in plain["findings"]),
        )
    except (KeyError, TypeError, ValueError) as error:
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
        return model.TableName(**value)
    return tuple(value) if isinstance(value, list) else value
