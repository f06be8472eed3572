"""What rows of the source meet when they are merged into those of the target: one key by which, and others. Pure.

Imports privileges, findings and the words. A row of the same primary key is met on purpose; one that has the same
values in another unique index would stop the copy half way, so it is looked for before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mishika_migrate import model, words
from mishika_migrate.findings import few, qualified, refuse, warn
from mishika_migrate.preflight import privileges

MERGED: tuple[model.Existing, ...] = ("skip", "update")
"""How rows are merged into others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unique:
    """A unique index of a target's table. With `nulls` two NULLs are equal, else such rows never collide."""

    table: str
    index: str
    columns: tuple[str, ...]
    nulls: bool = False


def mergeable(origin: model.Table, place: model.Table) -> bool:
    """Whether the target has a primary key, and the source its columns."""
    return bool(place.primary_key) and all(origin.column(name) for name in place.primary_key)


def uniques(origin: model.Table, place: model.Table) -> tuple[Unique, ...]:
    """Those that rows of two primary keys could both want."""
    return tuple(
        Unique(
            table=place.name,
            index=index.name,
            columns=index.columns,
            nulls=" NULLS NOT DISTINCT" in index.definition,
        )
        for index in _others(place)
        if _plain(index, origin, place)
    )


def _others(place: model.Table) -> Iterable[model.Index]:
    """One over the primary key's columns and more says nothing new."""
    key = set(place.primary_key)
    return (index for index in place.indexes if index.unique and not key <= set(index.columns))


def _plain(index: model.Index, origin: model.Table, place: model.Table) -> bool:
    """Over columns of both sides, for all rows."""
    both = all(origin.column(name) and place.column(name) for name in index.columns)
    return both and " WHERE " not in index.definition


def inspect(
    source: model.Catalog, target: model.Catalog, existing: Mapping[str, model.Existing], survey: model.Survey
) -> Iterable[model.Finding]:
    """What stands in the way of merging; `existing` says which tables are merged."""
    merged = [
        (origin, place)
        for name, how in existing.items()
        if how in MERGED and (origin := source.table(name)) is not None and (place := target.table(name)) is not None
    ]
    if merged:
        yield from privileges.temporary(target)
    for origin, place in merged:
        if not mergeable(origin, place):
            yield _keyless(place, target)
        elif place.occupied is not False:
            yield from _unlooked(origin, place)
    for collision in survey.collisions:
        yield _collision(collision, target)


def _keyless(place: model.Table, target: model.Catalog) -> model.Finding:
    if place.primary_key:
        why = f"the source lacks a column of its primary key ({', '.join(place.primary_key)})"
        fix = f"--on-existing {place.name}=replace, or --exclude {place.name}"
    else:
        why = "it has no primary key there"
        fix = (
            f"ALTER TABLE {qualified(place.name, target)} ADD PRIMARY KEY (…);"
            f" -- or --on-existing {place.name}=replace, or --exclude {place.name}"
        )
    return refuse(
        "no-key",
        place.name,
        f"rows cannot be merged into {place.name} of the target {target.endpoint.label}: {why}",
        fix,
    )


def _unlooked(origin: model.Table, place: model.Table) -> Iterable[model.Finding]:
    names = [index.name for index in _others(place) if not _plain(index, origin, place)]
    names += [each.name for each in place.constraints if each.definition.startswith("EXCLUDE")]
    if names:
        yield warn(
            "collisions-unlooked",
            place.name,
            f"nobody has looked whether rows of {place.name} collide in {few(names)} of the target, which"
            f" {'is' if len(names) == 1 else 'are'} not over plain columns of all rows: one that does stops the copy",
            f"compare the two servers by hand, or --on-existing {place.name}=replace",
        )


def _collision(found: model.Collision, target: model.Catalog) -> model.Finding:
    more = " and others" if found.rows > len(found.examples) else ""
    return refuse(
        "unique-collision",
        f"{found.table}.{', '.join(found.columns)}",
        f"{words.count(found.rows, 'row')} of {found.table} of the source cannot be merged: on the target"
        f" {target.endpoint.label} other rows have the same {', '.join(found.columns)} ({found.index}):"
        f" {'; '.join(found.examples)}{more}",
        f"change or remove these rows on one side; or --on-existing {found.table}=replace, or --exclude {found.table}",
    )
