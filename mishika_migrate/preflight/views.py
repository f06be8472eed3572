"""Views that the target lacks: which can be created, and whose they will be. Pure.

Imports matrix, findings, privileges and the words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mishika_migrate import matrix, model
from mishika_migrate.findings import act_as, note, qualified, warn
from mishika_migrate.preflight import privileges


def missing(source: model.Catalog, target: model.Catalog) -> tuple[list[model.View], dict[str, list[str]]]:
    """Views that the target lacks and can have, those that others read first; and what the others need."""
    waiting = {view.name: view for view in source.views if target.view(view.name) is None}
    there = {table.name for table in target.tables} | {view.name for view in target.views}
    columns = {(table.name, column.name) for table in target.tables for column in table.columns}
    order: list[model.View] = []
    needs: dict[str, list[str]] = {}
    while waiting:
        needs = {name: _needs(view, there, columns, target) for name, view in waiting.items()}
        ready = [name for name in waiting if not needs[name]]
        if not ready:
            break
        order += [waiting.pop(name) for name in ready]
        there.update(ready)
    return order, {name: needs[name] for name in waiting}


def _needs(view: model.View, there: set[str], columns: set[tuple[str, str]], target: model.Catalog) -> list[str]:
    lacking = [
        f"{table}.{name}" for table, name in view.columns if target.table(table) and (table, name) not in columns
    ]
    taken = [f"the name of a table ({view.name})"] if target.table(view.name) else []
    return [*taken, *(name for name in view.reads if name not in there), *lacking, *view.foreign]


def inspect(rules: matrix.Matrix, source: model.Catalog, target: model.Catalog) -> Iterable[model.Finding]:
    creatable, needs = missing(source, target)
    if creatable:
        names = ", ".join(sorted(view.name for view in creatable))
        yield note(
            "view-missing",
            names,
            f"the target lacks {len(creatable)} views of the source, which will be created: {names}",
        )
        if target.schema_exists and not target.may_create_in_schema:
            yield privileges.creating(target, "these views")
        yield from _owners(creatable, target)
    for name, lacking in needs.items():
        yield warn(
            "view-not-creatable",
            name,
            f"view {name} of the source will not be created: it needs {', '.join(lacking)},"
            " which the target lacks or nobody can tell",
            f"{_dump(name, source)} # once the target has what it needs",
        )
    for expected in rules.views:
        if source.view(expected.name) is None and target.view(expected.name) is None and _reads(expected, source):
            yield warn(
                "view-nowhere",
                expected.name,
                f"neither side has view {expected.name} ({expected.why}); the application creates it only while"
                " its logs were never analyzed",
                "start the application once on an empty database, and bring the view from there:"
                f" {_dump(expected.name, source)}",
            )


def _dump(view: str, source: model.Catalog) -> str:
    return f"pg_dump --schema-only --no-owner --table='{qualified(view, source)}' SOURCE | psql TARGET"


def owner(view: model.View, target: model.Catalog) -> str:
    """Who owns the tables that it reads, most of them; a view of views has the owner of most tables."""
    owners = Counter(table.owner for name in view.reads if (table := target.table(name)))
    owners = owners or Counter(table.owner for table in target.tables)
    return owners.most_common(1)[0][0] if owners else target.user


def _owners(views: Iterable[model.View], target: model.Catalog) -> Iterable[model.Finding]:
    """Views that the role can create, but not give away."""
    mine = {table.owner for table in target.tables if "OWNER" in table.privileges} | {target.user}
    kept: dict[str, list[str]] = {}
    for view in views:
        if (other := owner(view, target)) not in mine:
            kept.setdefault(other, []).append(view.name)
    for other, names in kept.items():
        yield warn(
            "view-owner",
            ", ".join(sorted(names)),
            f"{target.user} may not make {other}, who owns the tables on the target, owner of {len(names)} views"
            f" ({', '.join(sorted(names))}): {other} will be granted all privileges on them, but cannot replace them",
            act_as(other, target.user, version=target.version, role="target"),
        )


def _reads(view: matrix.MatrixView, source: model.Catalog) -> bool:
    return all(source.table(table) is not None for table in view.reads)
