"""Rows that are on the target already, and whose they are. Pure.

Imports matrix, privileges, findings and the words. What can be mended by finishing or undoing a run is never
mended by a TRUNCATE, and no row is to be thrown away when the two servers may be swapped or one.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from mishika_migrate import matrix, model, words
from mishika_migrate.findings import note, qualified, refuse, warn
from mishika_migrate.preflight import privileges

_CONTINUE = "`mishika-migrate copy --resume` continues it, `mishika-migrate reset` undoes it"


def swapped(rules: matrix.Matrix, source: model.Catalog, target: model.Catalog) -> bool:
    """Whether the source looks like a new server and the target like the one in use."""
    core = [entry.table for entry in rules.entries if entry.stage == "core" and entry.need != "never"]
    ours = [table for name in core if (table := source.table(name))]
    theirs = [table for name in core if (table := target.table(name))]
    new = bool(ours) and all(table.occupied is False for table in ours)
    return new and any(table.occupied for table in theirs)


def inspect(
    rules: matrix.Matrix,
    source: model.Catalog,
    target: model.Catalog,
    selection: model.Selection,
    survey: model.Survey,
    within: Set[str],
    *,
    followed: bool = False,
) -> Iterable[model.Finding]:
    """What the rows on the target mean; nothing at all where it is the source's own database.

    Of the tables `within` only a part is asked for. Merged tables cannot be `followed`.
    """
    if survey.same_database:
        return
    if not selection.only and swapped(rules, source, target):
        yield refuse(
            "swapped",
            target.endpoint.label,
            f"the source {source.endpoint.label} is empty and the target {target.endpoint.label} is in use:"
            " they look swapped",
            "give the server in use as --source and the new one as --target",
        )
        return
    if survey.unfinished is not None:
        yield _unfinished(survey.unfinished, target)
    # Of a vacant table another interval is asked for than the one that is there.
    fine = survey.vacant | (survey.unfinished.tables if survey.unfinished else frozenset())
    for chosen in selection.chosen:
        place = target.table(chosen.table)
        if place is None or not place.occupied or not source.table(chosen.table):
            continue
        if chosen.existing != "refuse":
            yield _wished(chosen, place, target, partly=place.name in within, followed=followed)
        elif place.name not in fine:
            yield _occupied(place, source, target, selection, survey, followed=followed)
    yield from _emptying(selection, source, target, followed=followed)


def emptied(selection: model.Selection, target: model.Catalog) -> model.Empty | None:
    """What one TRUNCATE has to name so that the replaced tables can go; None where there is nothing to remove.

    Only replaced tables, and empty ones that reference them: nothing is lost by those.
    """
    names = _replaced(selection, target)
    wished = {chosen.table for chosen in selection.chosen if chosen.existing == "replace"}
    idle = [name for name in names if name not in wished and _is_empty(name, target)]
    if not names:
        return None
    schema = target.endpoint.schema
    return model.Empty(
        tables=tuple(model.TableName(schema=schema, name=name) for name in names if name in wished),
        idle=tuple(model.TableName(schema=schema, name=name) for name in idle),
    )


def _replaced(selection: model.Selection, target: model.Catalog) -> list[str]:
    """Tables that are to be replaced and have rows, and all that reference them."""
    names: list[str] = []
    for chosen in selection.chosen:
        place = target.table(chosen.table)
        if chosen.existing == "replace" and place is not None and place.occupied is not False:
            names += [name for name in _emptied(place, target) if name not in names]
    return names


def _is_empty(name: str, target: model.Catalog) -> bool:
    table = target.table(name)
    return table is not None and table.occupied is False


def _wished(
    chosen: model.Chosen, place: model.Table, target: model.Catalog, *, partly: bool, followed: bool
) -> model.Finding:
    """Rows on the target of which the operator has said what becomes of them."""
    rows = f"table {place.name} on {target.endpoint.label} has about {words.count(place.rows, 'row')}"
    if chosen.existing == "replace" and partly:
        return refuse(
            "replace-part",
            place.name,
            f"{rows}: all of them would go, and only a part of the table is asked for",
            f"{'' if followed else f'--on-existing {place.name}=skip, or '}leave out --spendlogs-since,"
            " --spendlogs-last and --spendlogs-before",
        )
    if chosen.existing == "replace":
        return warn(
            "rows-replaced",
            place.name,
            f"{rows}: all of them go",
            f"{'without --follow, ' if followed else ''}--on-existing {place.name}=update or {place.name}=skip keeps"
            " those that the source does not have",
        )
    if chosen.existing == "update":
        return warn(
            "rows-updated",
            place.name,
            f"{rows}: those that differ from the source's row of the same primary key are overwritten, others stay",
            f"--on-existing {place.name}=skip leaves them as they are",
        )
    return note("rows-kept", place.name, f"{rows}: they stay as they are, and rows with other primary keys are added")


def _emptying(
    selection: model.Selection, source: model.Catalog, target: model.Catalog, *, followed: bool
) -> Iterable[model.Finding]:
    """What keeps the replaced tables from being emptied: a TRUNCATE goes no further than what was asked for."""
    names = _replaced(selection, target)
    wished = {chosen.table for chosen in selection.chosen if chosen.existing == "replace"}
    for name in names:
        table = target.table(name)
        if table is None:
            continue
        if name in wished or _is_empty(name, target):
            yield from privileges.emptiable(table, target)
            continue
        parent = next(key.references for key in table.foreign_keys if key.references in names)
        many = f"about {words.count(table.rows, 'row')}" if table.occupied else "an unknown number of rows"
        take = "" if selection.has(name) else f"{'--only' if selection.only else '--include'} {name} "
        if source.table(name):
            rid = f"replace it too: {take}--on-existing {name}=replace"
        else:
            rid = f"TRUNCATE {qualified(name, target)}; -- the source has no such table"
        yield refuse(
            "replace-referenced",
            name,
            f"{name} on {target.endpoint.label} references {parent} by a foreign key, has {many} and is not replaced"
            f" itself, so {parent} cannot be emptied",
            rid if followed else f"{rid}; or keep the rows of {parent}: --on-existing {parent}=update",
        )


def _unfinished(run: model.Unfinished, target: model.Catalog) -> model.Finding:
    return warn(
        "unfinished-run",
        run.run,
        f"run {run.run} on the target {target.endpoint.label} stopped before its end and has left rows in"
        f" {len(run.tables)} tables",
        _CONTINUE,
    )


def _occupied(
    place: model.Table,
    source: model.Catalog,
    target: model.Catalog,
    selection: model.Selection,
    survey: model.Survey,
    *,
    followed: bool,
) -> model.Finding:
    names = _emptied(place, target)
    out = f"leave it out of --only: {place.name}" if place.name in selection.only else f"--exclude {place.name}"
    rest = _still_empty(source, target, selection)
    if survey.unfinished is not None and survey.unfinished.tables.intersection(names):
        fix = f"first the unfinished run: {_CONTINUE}; or leave the table as it is: {out}"
    else:
        ways = (
            f"let its rows go: --on-existing {place.name}=replace"
            if followed
            else f"let its rows go, stay or follow: --on-existing {place.name}=replace, =skip or =update"
        )
        fix = (
            f"TRUNCATE {', '.join(qualified(name, target) for name in names)};"
            f" -- empties {'it' if len(names) == 1 else 'them'}; or {ways}; or leave it as it is: {out}"
        )
        if survey.finished and rest:
            fix += f"; or leave all as they are: {' '.join(f'--only {name}' for name in rest)}"
    run = survey.finished
    whose = f"run {run} from this source has finished there" if run else "is that the new server?"
    return refuse(
        "target-has-rows",
        place.name,
        f"table {place.name} on {target.endpoint.label} has about {words.count(place.rows, 'row')}; {whose}",
        fix,
    )


def _still_empty(source: model.Catalog, target: model.Catalog, selection: model.Selection) -> list[str]:
    """Tables of which the target has nothing yet and the source has something."""
    return [
        chosen.table
        for chosen in selection.chosen
        if (place := target.table(chosen.table)) is not None
        and place.occupied is False
        and (origin := source.table(chosen.table)) is not None
        and origin.occupied
    ]


def _emptied(table: model.Table, target: model.Catalog) -> list[str]:
    """The table and all that reference it, which TRUNCATE wants to be named too."""
    names = [table.name]
    for name in names:
        names += [
            child.name
            for child in target.tables
            if child.name not in names and any(key.references == name for key in child.foreign_keys)
        ]
    return names
