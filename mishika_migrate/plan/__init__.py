"""Decides what is done and in which order: `build` makes the plan that is printed or executed. Pure.

Imports preflight, creation, occupancy, order, loading, views, findings, selection, matrix and the words.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from mishika_migrate import errors, matrix, model, preflight
from mishika_migrate.findings import refuse
from mishika_migrate.plan import history, loading, order
from mishika_migrate.plan import selection as selections
from mishika_migrate.preflight import creation, occupancy, views


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
    owner = creation.made_as(survey.owner, target)
    create = _schema_step(rules, source, selection, owner=owner) if wanted.create_schema else None
    if create is not None:
        target = _as_created(source, target, create)
    graph = order.graph(selection, source, target)
    core, bulk, cycles = order.levels(selection, graph, target)
    existing = order.existing(selection, graph)
    manner = manner or loading.Manner()
    loads = [_bulk_stage(rules, level, source, target, survey, manner, existing) for level in bulk]
    deferred, kept = loading.deferrals(
        [table for level in bulk for table in level], source, target, manner, existing, sizes=_sizes(loads)
    )
    stages = [
        model.Stage(name="schema", title="schema", atomic=True, steps=(create,) if create else ()),
        _core_stage(core, source, target, existing, emptied=occupancy.emptied(selection, target)),
        model.Stage(name="prepare", title="taking indexes away", atomic=False, steps=deferred),
        *loads,
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
            existing=existing,
            within={step.target.name for stage in stages for step in stage.steps if _partly(step)},
            followed=wanted.use == "any",
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


def _partly(step: model.Step) -> TypeGuard[model.CopyTable]:
    return isinstance(step, model.CopyTable) and step.within is not None


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


def _as_created(source: model.Catalog, target: model.Catalog, create: model.CreateSchema) -> model.Catalog:
    """What the target will be once the source's schema has been created on it."""
    owner = create.owner or target.user
    mine = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "OWNER", "MAINTAIN"})
    return dataclasses.replace(
        target,
        tables=tuple(
            dataclasses.replace(table, occupied=False, privileges=mine, hidden=False, owner=owner, triggers=())
            for table in source.tables
            if table.name not in create.without
        ),
        sequences=tuple(dataclasses.replace(each, writable=True, readable=True) for each in source.sequences),
        migrations=source.migrations,
        types=source.types,
    )


# -- stages ---------------------------------------------------------------------------------------


def _schema_step(
    rules: matrix.Matrix, source: model.Catalog, selection: model.Selection, *, owner: str
) -> model.CreateSchema:
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
        owner=owner,
    )


def _core_stage(
    tables: Sequence[str],
    source: model.Catalog,
    target: model.Catalog,
    existing: Mapping[str, model.Existing],
    *,
    emptied: model.Empty | None,
) -> model.Stage:
    """Former rows of replaced tables, also of history, go in the transaction in which the new ones of the core come."""
    steps: list[model.Step] = [emptied] if emptied else []
    for origin, place in _both(tables, source, target):
        steps.extend(_copy_steps(origin, place, source, target, existing))
        steps.extend(_sequences(origin.name, source, target))
    return model.Stage(name="core", title="keys and configuration", atomic=True, steps=tuple(steps))


def _bulk_stage(
    rules: matrix.Matrix,
    tables: Sequence[str],
    source: model.Catalog,
    target: model.Catalog,
    survey: model.Survey,
    manner: loading.Manner,
    existing: Mapping[str, model.Existing],
) -> model.Stage:
    """Independent steps in the order of `tables`, the largest first; a sequence does not wait for its table."""
    pairs = list(_both(tables, source, target))
    copies: list[model.Step] = []
    for origin, place in pairs:
        spread = survey.spread.get(origin.name, ())
        within = history.interval(rules.entry(origin.name), origin, manner.span)
        for step in _copy_steps(origin, place, source, target, existing):
            part = history.narrowed(step, within, spread)
            parts = loading.cut(part, origin, place, version=source.version, batch=manner.batch, spread=spread)
            copies += reversed(parts) if manner.newest else parts
    sequences = (step for origin, _ in pairs for step in _sequences(origin.name, source, target))
    return model.Stage(name="bulk", title="history", atomic=False, steps=(*copies, *sequences))


def _sizes(stages: Iterable[model.Stage]) -> Mapping[str, int]:
    """Bytes that come, by table."""
    sizes: dict[str, int] = {}
    for stage in stages:
        for step in stage.steps:
            if isinstance(step, model.CopyTable):
                sizes[step.target.name] = sizes.get(step.target.name, 0) + step.bytes
    return sizes


def _both(
    tables: Sequence[str], source: model.Catalog, target: model.Catalog
) -> Iterable[tuple[model.Table, model.Table]]:
    for table in tables:
        origin, place = source.table(table), target.table(table)
        if origin is not None and place is not None:
            yield origin, place


def _copy_steps(
    origin: model.Table,
    place: model.Table,
    source: model.Catalog,
    target: model.Catalog,
    existing: Mapping[str, model.Existing],
) -> Iterable[model.CopyTable]:
    step = dataclasses.replace(_copy_step(origin, place, source, target), existing=existing[origin.name])
    if step.merges:
        step = dataclasses.replace(step, key=place.primary_key)
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
        if step.merges and place.primary_key != step.key:
            findings.append(_changed(step, "its primary key on the target is another one now"))
        elif misfits or (step.binary and not now.binary):
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
        model.Empty,
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
    return tuple(map(_field, value)) if isinstance(value, list) else value
