"""Rows that are on the target already, and whose they are. Pure.

Imports matrix, findings and the words. What can be mended by finishing or undoing a run is never
mended by a TRUNCATE, and no row is to be thrown away when the two servers may be swapped or one.
"""

from __future__ import annotations

from collections.abc import Iterable

from mishika_migrate import matrix, model, words
from mishika_migrate.findings import qualified, refuse, warn

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
) -> Iterable[model.Finding]:
    """What the rows on the target mean; nothing at all where it is the source's own database."""
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
        if place is not None and place.occupied and source.table(chosen.table) and place.name not in fine:
            yield _occupied(place, source, target, selection, survey)


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
) -> model.Finding:
    names = _emptied(place, target)
    out = f"leave it out of --only: {place.name}" if place.name in selection.only else f"--exclude {place.name}"
    rest = _still_empty(source, target, selection)
    if survey.unfinished is not None and survey.unfinished.tables.intersection(names):
        fix = f"first the unfinished run: {_CONTINUE}; or leave the table as it is: {out}"
    else:
        fix = (
            f"TRUNCATE {', '.join(qualified(name, target) for name in names)};"
            f" -- empties {'it' if len(names) == 1 else 'them'}; or leave it as it is: {out}"
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
