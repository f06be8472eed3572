"""What only the target has and could change rows as they arrive, or turn them away. Pure.

Imports findings and the words.
"""

from __future__ import annotations

from collections.abc import Iterable

from mishika_migrate import model
from mishika_migrate.findings import alter, placed, qualified, quoted, refuse, warn


def inspect(
    origin: model.Table, place: model.Table, source: model.Catalog, target: model.Catalog
) -> Iterable[model.Finding]:
    yield from _triggers(place)
    yield from _foreign_keys(origin, place, source, target)
    yield from _unique(origin, place, target)
    yield from _constraints(origin, place)
    yield from _partitions(origin, place, target)


def where(on: model.TableName, table: model.Table) -> str:
    """`t`, or `partition p of t`."""
    return table.name if on.name == table.name else f"partition {on} of {table.name}"


def _triggers(place: model.Table) -> Iterable[model.Finding]:
    """Any that fires for an INSERT: one AFTER it can delete the row again, one for the statement all of them."""
    return (_fires(each, place, "inserted", "copy") for each in place.triggers if each.on_insert)


def levelling(place: model.Table) -> Iterable[model.Finding]:
    """What stands in the way of changing and removing rows of the target too."""
    return (_fires(each, place, "changed or removed", "sync") for each in place.triggers if not each.on_insert)


def _fires(trigger: model.Trigger, place: model.Table, which: str, verb: str) -> model.Finding:
    change, name = f"ALTER TABLE {placed(trigger.on)}", quoted(trigger.name)
    enable = f"ENABLE{' ALWAYS' if trigger.always else ''} TRIGGER {name}"
    return refuse(
        "trigger",
        place.name,
        f"trigger {trigger.name} on {where(trigger.on, place)} of the target fires for {which} rows and could"
        " change what is copied",
        f"{change} DISABLE TRIGGER {name}; -- after the {verb}: {change} {enable};",
    )


def _foreign_keys(
    origin: model.Table, place: model.Table, source: model.Catalog, target: model.Catalog
) -> Iterable[model.Finding]:
    known = {(key.columns, key.references, key.referenced_columns) for key in origin.foreign_keys}
    for key in place.foreign_keys:
        if (key.columns, key.references, key.referenced_columns) in known:
            continue
        there = source.table(key.references)
        yield warn(
            "foreign-key-new",
            f"{place.name}.{', '.join(key.columns)}",
            f"only the target has foreign key {key.name} from {place.name} ({', '.join(key.columns)}) to"
            f" {key.references}: a row that names none there stops the copy",
            f"{alter(place.name, target)} DROP CONSTRAINT {quoted(key.name)};"
            + (f" -- or copy the other table too: --include {key.references}" if there else ""),
        )


def _unique(origin: model.Table, place: model.Table, target: model.Catalog) -> Iterable[model.Finding]:
    """Keys of the target that no key of the source implies."""
    ours = [set(index.columns) for index in origin.indexes if index.unique and " WHERE " not in index.definition]
    for index in place.indexes:
        if not index.unique or any(columns <= set(index.columns) for columns in ours):
            continue
        name, change = quoted(index.name), alter(place.name, target)
        yield warn(
            "unique-new",
            f"{place.name}.{', '.join(index.columns)}",
            f"only the target wants {', '.join(index.columns)} of {place.name} to be unique ({index.name}):"
            " a duplicate stops the copy",
            f"{change} DROP CONSTRAINT {name}; -- after the copy: {change} ADD CONSTRAINT {name} {index.constraint};"
            if index.constraint
            else f"DROP INDEX {qualified(index.name, target)}; -- after the copy: {index.definition};",
        )


def _constraints(origin: model.Table, place: model.Table) -> Iterable[model.Finding]:
    known = {_enforced(each.definition) for each in origin.constraints}
    for each in place.constraints:
        rule = _enforced(each.definition)
        if rule in known or rule.endswith("NOT ENFORCED"):
            continue
        change, name = f"ALTER TABLE {placed(each.on)}", quoted(each.name)
        yield warn(
            "check-new",
            f"{place.name}.{each.name}",
            f"only the target has constraint {each.name} on {where(each.on, place)}: a row that breaks"
            f" {rule} stops the copy",
            f"{change} DROP CONSTRAINT {name}; -- after the copy: {change} ADD CONSTRAINT {name} {each.definition};",
        )


def _enforced(definition: str) -> str:
    """One that is NOT VALID holds for every new row."""
    return definition.removesuffix(" NOT VALID")


def _partitions(origin: model.Table, place: model.Table, target: model.Catalog) -> Iterable[model.Finding]:
    """Rows for which a partitioned target has no place, unless the source is cut in the same way."""
    if not place.partitioned or (origin.bounds and origin.bounds == place.bounds):
        return
    table = qualified(place.name, target)
    if not place.pieces:
        tell = warn if origin.occupied is False else refuse
        yield tell(
            "partition-missing",
            place.name,
            f"the partitioned table {place.name} of the target {target.endpoint.label} has no partition to hold rows",
            f"CREATE TABLE {qualified(f'{place.name}_default', target)} PARTITION OF {table} DEFAULT;"
            if place.gaps
            else f"create the partitions of {table} on the target",
        )
        return
    for gap in place.gaps:
        name = model.TableName(schema=gap.schema, name=f"{gap.name}_default")
        yield warn(
            "partition-missing",
            place.name,
            f"{where(gap, place)} on the target {target.endpoint.label} is partitioned in another way than on the"
            " source and has no DEFAULT partition: a row that fits none stops the copy",
            f"CREATE TABLE {placed(name)} PARTITION OF {placed(gap)} DEFAULT;",
        )
