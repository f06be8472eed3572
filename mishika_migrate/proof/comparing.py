"""What `verify` compares: which tables and columns, by what a row is known, as which type. Pure.

Imports history, matrix, selection, findings and the words. `pg.digest` turns a
comparison into queries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from mishika_migrate import matrix, model
from mishika_migrate.findings import few
from mishika_migrate.plan import history, selection


def of_selection(
    rules: matrix.Matrix,
    source: model.Catalog,
    target: model.Catalog,
    tables: Sequence[str],
    *,
    span: history.Span | None = None,
    within: Mapping[str, model.Interval] | None = None,
) -> tuple[model.Comparison, ...]:
    """One comparison for each of the tables that both sides have, the largest first.

    `within` narrows tables to what a run has copied, `span` to what was asked for.
    """
    found = [
        _comparison(rules, source, target, origin, place, (within or {}).get(name) or _interval(rules, origin, span))
        for name in tables
        if (origin := source.table(name)) is not None and (place := target.table(name)) is not None
    ]
    return tuple(sorted(found, key=lambda each: -each.bytes))


def absent(source: model.Catalog, target: model.Catalog, tables: Iterable[str]) -> model.Check:
    """Tables that one side lacks, so that nothing can be compared."""
    problems: list[str] = []
    looked = 0
    for name in tables:
        looked += 1
        for catalog in (source, target):
            if catalog.table(name) is None:
                kind = catalog.kind(name)
                what = f"is a {kind} there" if kind else "is not there"
                problems.append(f"{name} {what} on the {catalog.endpoint.role} {catalog.endpoint.label}")
    return model.Check(
        code="tables", title="Both sides have the selected tables", looked=looked, problems=tuple(problems)
    )


def _interval(rules: matrix.Matrix, table: model.Table, span: history.Span | None) -> model.Interval | None:
    return history.interval(rules.entry(table.name), table, span)


def _comparison(
    rules: matrix.Matrix,
    source: model.Catalog,
    target: model.Catalog,
    origin: model.Table,
    place: model.Table,
    within: model.Interval | None,
) -> model.Comparison:
    columns = compared(origin, place)
    return model.Comparison(
        source=model.TableName(schema=source.endpoint.schema, name=origin.name),
        target=model.TableName(schema=target.endpoint.schema, name=place.name),
        columns=columns,
        key=_key(origin, place, columns),
        only_source=tuple(each.name for each in origin.columns if place.column(each.name) is None),
        only_target=tuple(each.name for each in place.columns if origin.column(each.name) is None),
        within=within,
        partitioned=(origin.partitioned, place.partitioned),
        secret=_secret(rules, origin.name),
        rows=max(origin.rows, place.rows),
        bytes=max(origin.bytes, place.bytes),
    )


def _secret(rules: matrix.Matrix, table: str) -> tuple[str, ...]:
    """Columns with tokens: that of the keys, and those that name one."""
    if rules.keys is None:
        return ()
    if table == rules.keys.table:
        return (rules.keys.key,)
    entry = rules.entry(table)
    references = entry.references if entry else ()
    return tuple(each.column for each in references if (each.table, each.key) == (rules.keys.table, rules.keys.key))


def compared(origin: model.Table, place: model.Table) -> tuple[model.Compared, ...]:
    """The columns that both sides have, in the source's order."""
    return tuple(
        model.Compared(name=column.name, type=other.type, cast=column.type != other.type)
        for column in origin.columns
        if (other := place.column(column.name)) is not None
    )


def _key(origin: model.Table, place: model.Table, columns: Sequence[model.Compared]) -> tuple[str, ...]:
    """What tells rows apart on both sides: a primary key, of the source where the target has lost its own."""
    names = {column.name for column in columns}
    for table in (place, origin):
        if table.primary_key and set(table.primary_key) <= names:
            return table.primary_key
    return ()


# -- keys -----------------------------------------------------------------------------------------


def narrowed(ring: model.Keyring, source: model.Catalog, target: model.Catalog) -> model.Keyring | None:
    """The keyring over what both sides have; None where one of them has no table of keys.

    Columns are those of both schemas, so that servers of two versions can be compared. A whole table that
    the target lacks is no other version: None as well.
    """
    if _lost(ring, source, target):
        return None
    both = {
        name: {column.name for column in compared(origin, place)}
        for name in ring.tables
        if (origin := source.table(name)) is not None and (place := target.table(name)) is not None
    }
    if ring.key not in both.get(ring.table, set()):
        return None
    return ring.limited(both)


def _lost(ring: model.Keyring, source: model.Catalog, target: model.Catalog) -> list[str]:
    """Tables that the source decides by, and the target lacks."""
    return [name for name in ring.tables if source.table(name) is not None and target.table(name) is None]


def undecided(ring: model.Keyring, source: model.Catalog, target: model.Catalog) -> model.Check | None:
    """What the source decides by about keys, and the target lacks, so that it could not be compared."""
    lost = _lost(ring, source, target)
    for end in ring.ends:
        name, _, column = end.partition(".")
        origin, place = source.table(ring.table_of(name)), target.table(ring.table_of(name))
        if origin is not None and place is not None and origin.column(column) and not place.column(column):
            lost.append(f"{origin.name}.{column}")
    if not lost:
        return None
    return model.Check(
        code="keys",
        title="The target has all that decides about keys",
        why_not=f"the target has no {few(list(dict.fromkeys(lost)))}, by which the source decides about keys",
    )


def shapes(
    rules: matrix.Matrix, ring: model.Keyring, source: model.Catalog, target: model.Catalog
) -> dict[str, model.Shape]:
    """By table what the application expects of its rows, in columns that both sides have."""
    found: dict[str, model.Shape] = {}
    for name in ring.tables:
        entry, origin, place = rules.entry(name), source.table(name), target.table(name)
        if entry is None or origin is None or place is None:
            continue
        ours, theirs = selection.shape_of(entry, origin), selection.shape_of(entry, place)
        shape = dataclasses.replace(
            ours,
            objects=tuple(column for column in ours.objects if column in theirs.objects),
            present=tuple(column for column in ours.present if column in theirs.present),
        )
        if shape.objects or shape.present:
            found[name] = shape
    return found


def of_keys(
    ring: model.Keyring, source: model.Catalog, target: model.Catalog, shapes: Mapping[str, model.Shape]
) -> model.Comparison:
    """The decisions about all keys, as one relation of both sides: a row a key, `name.column` its columns.

    `name.` says whether the row of that join is there, `name!` whether the application can read it, which
    is asked of the tables in `shapes`. `pg.keys` makes the relation.
    """
    columns = [model.Compared(name=f"{join.name}.", type="boolean") for join in ring.joins]
    names = [model.KEY, *(join.name for join in ring.joins)]
    columns += [model.Compared(name=f"{name}!", type="boolean") for name in names if ring.table_of(name) in shapes]
    types: dict[str, dict[str, model.Compared]] = {}
    for name in ring.tables:
        origin, place = source.table(name), target.table(name)
        assert origin is not None and place is not None, "narrowed() keeps what both have"
        types[name] = {column.name: column for column in compared(origin, place)}
    for place_name in ring.columns:
        alias, _, column = place_name.partition(".")
        kind = types[ring.table_of(alias)][column]
        columns.append(model.Compared(name=place_name, type=kind.type, cast=kind.cast))
    key = f"{model.KEY}.{ring.key}"
    columns.append(model.Compared(name=key, type="text", cast=True))
    return model.Comparison(
        source=model.TableName(schema=source.endpoint.schema, name=ring.table),
        target=model.TableName(schema=target.endpoint.schema, name=ring.table),
        columns=tuple(columns),
        key=(key,),
    )
