"""How columns, sequences and the history of two schemas differ, as far as it matters to rows. Pure.

Imports conversions, matrix, findings and the words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mishika_migrate import matrix, model, words
from mishika_migrate.findings import alter, grant, literal, note, qualified, quoted, refuse, warn
from mishika_migrate.preflight import conversions

_DROP_EXPRESSION_SINCE = 13_00_00
_SET_EXPRESSION_SINCE = 17_00_00


def columns(
    origin: model.Table, place: model.Table, source: model.Catalog, target: model.Catalog
) -> Iterable[model.Finding]:
    for column in origin.columns:
        other = place.column(column.name)
        subject = f"{origin.name}.{column.name}"
        if other is None:
            yield _missing_column(subject, column, place, target)
        elif other.generated:
            yield from _generated(subject, column, other, place, target)
        else:
            yield from conversions.inspect(place.name, column, other, source, target)
            yield from _nullability(subject, column, other, place, target)
    for other in place.columns:
        if origin.column(other.name) is None:
            yield _extra_column(place, other, target)
    yield from _nothing_in_common(origin, place, target)


def _nothing_in_common(origin: model.Table, place: model.Table, target: model.Catalog) -> Iterable[model.Finding]:
    """COPY wants to be told a column."""
    common = [column for column in origin.columns if (there := place.column(column.name)) and not there.generated]
    if not common and origin.occupied is not False:
        yield refuse(
            "no-columns",
            origin.name,
            f"{origin.name} of the source has no column that {target.endpoint.label} takes values for, so"
            f" about {words.count(origin.rows, 'row')} cannot be copied",
            f"--exclude {origin.name}",
        )


def _generated(
    subject: str, column: model.Column, other: model.Column, place: model.Table, target: model.Catalog
) -> Iterable[model.Finding]:
    change, name = alter(place.name, target), quoted(column.name)
    if not column.generated:
        stored = not other.virtual and target.version >= _DROP_EXPRESSION_SINCE
        yield warn(
            "column-generated",
            subject,
            f"{subject} is generated on the target: the values of the source stay behind",
            f"{change} ALTER COLUMN {name} DROP EXPRESSION;"
            if stored
            else f"{change} DROP COLUMN {name}, ADD COLUMN {name} {other.type};",
        )
    elif column.default != other.default:
        made = f"{other.type} GENERATED ALWAYS AS ({column.default}){'' if other.virtual else ' STORED'}"
        yield warn(
            "generated-differs",
            subject,
            f"{subject} is generated as {column.default} on the source and as {other.default} on the target, where its"
            " values will be other ones",
            f"{change} ALTER COLUMN {name} SET EXPRESSION AS ({column.default});"
            if target.version >= _SET_EXPRESSION_SINCE
            else f"{change} DROP COLUMN {name}, ADD COLUMN {name} {made};",
        )


def _missing_column(subject: str, column: model.Column, place: model.Table, target: model.Catalog) -> model.Finding:
    kind, create = column.type, ""
    if column.labels:
        kind = conversions.enum(column, target)
        create = "" if _has_type(column, target) else _create_enum(kind, column.labels)
        kind += "[]" if column.type.endswith("[]") else ""
    return refuse(
        "column-missing",
        subject,
        f"the target's {place.name} has no column {column.name}: its values would be lost",
        f"{create}{alter(place.name, target)} ADD COLUMN {quoted(column.name)} {kind};"
        " -- better: bring the target's application to at least the version of the source's",
    )


def _has_type(column: model.Column, catalog: model.Catalog) -> bool:
    """Whether any table uses it; types that no table uses are not in a catalog."""
    bare = column.type.removesuffix("[]")
    return any(each.type.removesuffix("[]") == bare for table in catalog.tables for each in table.columns)


def _create_enum(name: str, labels: Iterable[str]) -> str:
    return f"CREATE TYPE {name} AS ENUM ({', '.join(map(literal, labels))}); "


def _extra_column(place: model.Table, column: model.Column, target: model.Catalog) -> model.Finding:
    subject = f"{place.name}.{column.name}"
    if column.nullable or column.default is not None or column.generated or column.identity:
        return note("column-new", subject, f"{subject} exists on the target only and gets its default")
    better = "bring the source's application to the version of the target's"
    return refuse(
        "column-without-default",
        subject,
        f"{subject} exists on the target only, is NOT NULL and has no default",
        better
        if column.name in place.primary_key
        else f"{alter(place.name, target)} ALTER COLUMN {quoted(column.name)} DROP NOT NULL; -- better: {better}",
    )


def _nullability(
    subject: str, column: model.Column, other: model.Column, place: model.Table, target: model.Catalog
) -> Iterable[model.Finding]:
    if not column.nullable or other.nullable:
        return
    free = column.name not in place.primary_key and not other.identity
    yield warn(
        "column-not-null",
        subject,
        f"{subject} may be NULL on the source, not on the target: a NULL stops the copy",
        f"{alter(place.name, target)} ALTER COLUMN {quoted(column.name)} DROP NOT NULL;"
        " -- or fill the NULLs on the source"
        if free
        else "fill the NULLs on the source",
    )


# -- sequences ------------------------------------------------------------------------------------


def sequences(source: model.Catalog, target: model.Catalog, selection: model.Selection) -> Iterable[model.Finding]:
    for chosen in selection.chosen:
        place = target.table(chosen.table)
        for column in place.columns if place else ():
            ours, theirs = (_sequence(catalog, chosen.table, column.name) for catalog in (source, target))
            if ours is not None and theirs is None:
                yield _no_sequence(chosen.table, column.name, target)
            elif theirs is not None and ours is None:
                yield _new_sequence(chosen.table, column.name, theirs, target)
            elif ours is not None and theirs is not None:
                yield from _closed_sequences(ours, theirs, source, target)


def _sequence(catalog: model.Catalog, table: str, column: str) -> model.Sequence | None:
    return next((each for each in catalog.sequences if (each.table, each.column) == (table, column)), None)


def _no_sequence(table: str, column: str, target: model.Catalog) -> model.Finding:
    name = qualified(f"{table}_{column}_seq", target)
    return refuse(
        "sequence-missing",
        f"{table}.{column}",
        f"{table}.{column} draws its numbers from a sequence on the source, but not on the target",
        f"CREATE SEQUENCE {name} OWNED BY {qualified(table, target)}.{quoted(column)};"
        f" {alter(table, target)} ALTER COLUMN {quoted(column)} SET DEFAULT nextval({literal(name)});"
        " -- better: bring the target's application to the version of the source's",
    )


def _new_sequence(table: str, column: str, sequence: model.Sequence, target: model.Catalog) -> model.Finding:
    return warn(
        "sequence-new",
        f"{table}.{column}",
        f"{table}.{column} draws its numbers from a sequence on the target only: it does not know the copied ones",
        f"SELECT setval({literal(qualified(sequence.name, target))}, max({quoted(column)}))"
        f" FROM {qualified(table, target)}; -- after the copy",
    )


def _closed_sequences(
    ours: model.Sequence, theirs: model.Sequence, source: model.Catalog, target: model.Catalog
) -> Iterable[model.Finding]:
    if not ours.readable:
        yield refuse(
            "privilege",
            ours.name,
            f"{source.user} may not read sequence {ours.name} on the source",
            grant(f"SELECT ON SEQUENCE {qualified(ours.name, source)}", source),
        )
    if not (theirs.writable and theirs.readable):
        yield refuse(
            "privilege",
            theirs.name,
            f"{target.user} may not set sequence {theirs.name} on the target",
            grant(f"SELECT, UPDATE ON SEQUENCE {qualified(theirs.name, target)}", target),
        )


# -- the history of the schema --------------------------------------------------------------------


def migrations(rules: matrix.Matrix, source: model.Catalog, target: model.Catalog) -> Iterable[model.Finding]:
    if rules.migrations is None:
        return
    for catalog in (source, target):
        yield from _failed(rules.migrations, catalog)
    if source.migrations is None or target.migrations is None:
        yield from _no_history(rules.migrations, source, target)
        return
    ours = {migration.name: migration for migration in source.migrations if migration.finished}
    theirs = {migration.name: migration for migration in target.migrations if migration.finished}
    behind = [name for name in ours if name not in theirs]
    ahead = [name for name in theirs if name not in ours]
    changed = [name for name in ours if name in theirs and ours[name].checksum != theirs[name].checksum]
    if behind:
        yield warn(
            "migrations-behind",
            rules.migrations,
            f"the target lacks {len(behind)} migrations of the source: {_few(behind)}",
            "deploy the source's version of the application on the target first",
        )
    if ahead:
        yield note(
            "migrations-ahead",
            rules.migrations,
            f"the target has {len(ahead)} migrations that the source lacks: {_few(ahead)}",
        )
    if changed:
        yield warn(
            "migrations-differ",
            rules.migrations,
            f"migrations of one name have other contents on source and target: {_few(changed)}",
            "compare the versions of the application on both sides",
        )


def _failed(name: str, catalog: model.Catalog) -> Iterable[model.Finding]:
    failed = [migration.name for migration in catalog.migrations or () if not migration.finished]
    if failed:
        yield warn(
            "migrations-failed",
            name,
            f"{len(failed)} migrations did not finish on the {catalog.endpoint.role} {catalog.endpoint.label}:"
            f" {_few(failed)}",
            "see what they left half done, then resolve them with the application's own tool",
        )


def _no_history(name: str, source: model.Catalog, target: model.Catalog) -> Iterable[model.Finding]:
    """Where only one side has it, or lets it be read."""
    for catalog, other in ((source, target), (target, source)):
        if catalog.migrations is not None or other.migrations is None or not catalog.tables:
            continue
        there = catalog.table(name)
        may = there is None or "SELECT" in there.privileges
        yield note(
            "migrations-unknown",
            name,
            f"the {catalog.endpoint.role} {catalog.endpoint.label} has no {name} that {catalog.user} can read;"
            " only tables and columns were compared",
            "" if may else grant(f"SELECT ON {qualified(name, catalog)}", catalog),
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
