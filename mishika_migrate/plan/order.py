"""Which table is loaded before which, and what must be merged because merged rows reference it. Pure.

Imports findings and the words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mishika_migrate import model
from mishika_migrate.findings import qualified, quoted, refuse

Graph = Mapping[str, Mapping[str, bool]]
"""Of each table the tables it references, and whether those constraints can wait for COMMIT."""


def graph(selection: model.Selection, source: model.Catalog, target: model.Catalog) -> Graph:
    """Of the chosen tables, without self-references."""
    return {chosen.table: _parents(chosen.table, selection, source, target) for chosen in selection.chosen}


def levels(
    selection: model.Selection, graph: Graph, target: model.Catalog
) -> tuple[list[str], list[list[str]], list[model.Finding]]:
    """Core tables parents first, bulk tables in levels, and circles that nothing can order."""
    circles = _circles(graph)
    order = _parents_first(graph, circles)
    core = {chosen.table for chosen in selection.chosen if chosen.stage == "core"}
    # A deferred constraint is checked at COMMIT: the tables of a circle need one transaction.
    core.update(table for circle in circles for table in circle)
    while more := {parent for table in core for parent in graph[table]} - core:
        core |= more  # a parent's rows must be there when the core commits
    level: dict[str, int] = {}
    for table in (table for table in order if table not in core):
        level[table] = max((level[p] + 1 for p in graph[table] if p in level), default=0)
    sizes = {chosen.table: chosen.bytes for chosen in selection.chosen}
    bulk = [
        sorted((table for table in level if level[table] == n), key=lambda table: -sizes[table])
        for n in range(max(level.values(), default=-1) + 1)
    ]
    firm = {table: {p: waits for p, waits in parents.items() if not waits} for table, parents in graph.items()}
    findings = [_circle(circle, order, target) for circle in _circles(firm)]
    return [table for table in order if table in core], bulk, findings


def existing(selection: model.Selection, graph: Graph) -> dict[str, model.Existing]:
    """How the rows of each chosen table meet those of the target: as was asked for, mostly.

    What a merged table references is merged too. To be copied once more it would be emptied first, and the
    rows of the target that reference it would go along (ON DELETE CASCADE) or lose their reference (SET
    NULL), which makes a key work without its limits.
    """
    found = {chosen.table: chosen.existing for chosen in selection.chosen}
    merged = [table for table, how in found.items() if how in ("skip", "update")]
    for parent in {parent for table in merged for parent in _above(table, graph)}:
        if found[parent] not in ("skip", "update"):
            found[parent] = "update"
    return found


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
