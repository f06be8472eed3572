"""How two schemas differ, as far as it matters to rows on their way. Pure.

Imports matrix, findings and the words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mishika_migrate import matrix, model
from mishika_migrate.findings import literal, note, qualified, quoted, refuse, warn

# Pairs of types where the later reads every text form of the first, or stops at one that does not fit.
# Everything else that differs is refused.
_WIDENING = frozenset(
    {
        ("smallint", "integer"),
        ("smallint", "bigint"),
        ("integer", "bigint"),
        ("real", "double precision"),
        ("character varying", "text"),
        ("text", "character varying"),
        ("character", "text"),
        ("json", "jsonb"),
        ("date", "timestamp without time zone"),
        ("integer", "numeric"),
        ("bigint", "numeric"),
    }
)

# Types that round what does not fit, without an error: numeric(12,4) into numeric(12,2).
_ROUNDING = re.compile("numeric|interval|time.*")


def columns(
    origin: model.Table, place: model.Table, source: model.Catalog, target: model.Catalog
) -> Iterable[model.Finding]:
    for column in origin.columns:
        other = place.column(column.name)
        subject = f"{origin.name}.{column.name}"
        if other is None:
            yield _missing_column(subject, column, place, target)
        elif other.generated and not column.generated:
            yield warn(
                "column-generated",
                subject,
                f"{subject} is generated on the target: the values of the source stay behind",
            )
        elif not other.generated:
            yield from _type(subject, column, other, target)
            yield from _labels(subject, column, other, target)
            yield from _nullability(subject, column, other, place, target)
    for other in place.columns:
        if origin.column(other.name) is None:
            yield _extra_column(place, other, target)
    yield from _foreign_keys(origin, place, source, target)
    yield from _unique(origin, place)


def _missing_column(subject: str, column: model.Column, place: model.Table, target: model.Catalog) -> model.Finding:
    kind, create = column.type, ""
    if column.labels:
        kind = _enum(column, target)
        create = "" if _has_type(column, target) else _create_enum(kind, column.labels)
        kind += "[]" if column.type.endswith("[]") else ""
    return refuse(
        "column-missing",
        subject,
        f"the target's {place.name} has no column {column.name}: its values would be lost",
        f"{create}{_alter(place.name, target)} ADD COLUMN {quoted(column.name)} {kind};"
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
        else f"{_alter(place.name, target)} ALTER COLUMN {quoted(column.name)} DROP NOT NULL; -- better: {better}",
    )


def _alter(table: str, catalog: model.Catalog) -> str:
    return f"ALTER TABLE {qualified(table, catalog)}"


# -- types ----------------------------------------------------------------------------------------


def _type(subject: str, column: model.Column, other: model.Column, target: model.Catalog) -> Iterable[model.Finding]:
    if column.type == other.type:
        return
    differs = f"{subject} is {column.type} on the source and {other.type} on the target"
    (ours, our_limits), (theirs, their_limits) = _parts(column.type), _parts(other.type)
    if ours == theirs and _rounds(ours, our_limits, their_limits):
        yield refuse(
            "column-type",
            subject,
            f"{differs}, which would round values",
            f"{_alter(subject.removesuffix(f'.{column.name}'), target)}"
            f" ALTER COLUMN {quoted(column.name)} TYPE {column.type};",
        )
    elif (ours == theirs and _fits(our_limits, their_limits)) or (theirs == "text" and column.labels):
        yield note("column-type", subject, f"{differs}; values go as text")
    elif ours == theirs or (ours, theirs) in _WIDENING:
        yield warn("column-type", subject, f"{differs}; values go as text, and one that does not fit stops the copy")
    else:
        yield refuse(
            "column-type",
            subject,
            f"{differs}: values of one may mean something else in the other",
            "bring both applications to the same version",
        )


def _parts(kind: str) -> tuple[str, tuple[int, ...]]:
    """The type without its modifier, and that: `timestamp(3) without time zone` has (3,)."""
    found = re.search(r"\(([\d,]+)\)", kind)
    if found is None:
        return kind, ()
    return kind[: found.start()] + kind[found.end() :], tuple(map(int, found[1].split(",")))


def _rounds(base: str, ours: Sequence[int], theirs: Sequence[int]) -> bool:
    """Whether the target keeps fewer digits after the point; no modifier is all of them."""
    return bool(_ROUNDING.fullmatch(base.removesuffix("[]")) and theirs and (not ours or theirs[-1] < ours[-1]))


def _fits(ours: Sequence[int], theirs: Sequence[int]) -> bool:
    if not theirs:
        return True
    if len(ours) == len(theirs) == 2:  # numeric: digits before the point
        return theirs[0] - theirs[1] >= ours[0] - ours[1]
    return bool(ours) and theirs[0] >= ours[0]


def _labels(subject: str, column: model.Column, other: model.Column, target: model.Catalog) -> Iterable[model.Finding]:
    missing = [label for label in column.labels if label not in other.labels]
    if missing and other.labels:
        enum = _enum(other, target)
        yield refuse(
            "enum-labels",
            subject,
            f"the type of {subject} on the target lacks {', '.join(missing)}",
            " ".join(f"ALTER TYPE {enum} ADD VALUE IF NOT EXISTS {literal(label)};" for label in missing),
        )


def _enum(column: model.Column, catalog: model.Catalog) -> str:
    """The enum's qualified name; the server prints it bare where it is in the endpoint's schema."""
    bare = column.type.removesuffix("[]")
    named = bare if bare.startswith('"') else quoted(bare)
    return bare if re.search(r'^("([^"]|"")+"|[^".]+)\.', bare) else f"{quoted(catalog.endpoint.schema)}.{named}"


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
        f"{_alter(place.name, target)} ALTER COLUMN {quoted(column.name)} DROP NOT NULL;"
        " -- or fill the NULLs on the source"
        if free
        else "fill the NULLs on the source",
    )


# -- constraints that only the target has -----------------------------------------------------------


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
            f"{_alter(place.name, target)} DROP CONSTRAINT {quoted(key.name)};"
            + (f" -- or copy the other table too: --include {key.references}" if there else ""),
        )


def _unique(origin: model.Table, place: model.Table) -> Iterable[model.Finding]:
    """Keys of the target that no key of the source implies."""
    ours = [set(index.columns) for index in origin.indexes if index.unique and " WHERE " not in index.definition]
    for index in place.indexes:
        if index.unique and not any(columns <= set(index.columns) for columns in ours):
            yield warn(
                "unique-new",
                f"{place.name}.{', '.join(index.columns)}",
                f"only the target wants {', '.join(index.columns)} of {place.name} to be unique ({index.name}):"
                " a duplicate stops the copy",
            )


# -- views ----------------------------------------------------------------------------------------


def missing_views(source: model.Catalog, target: model.Catalog) -> tuple[list[model.View], dict[str, list[str]]]:
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


def views(rules: matrix.Matrix, source: model.Catalog, target: model.Catalog) -> Iterable[model.Finding]:
    creatable, needs = missing_views(source, target)
    if creatable:
        names = ", ".join(sorted(view.name for view in creatable))
        yield note(
            "view-missing",
            names,
            f"the target lacks {len(creatable)} views of the source, which will be created: {names}",
        )
        if target.schema_exists and not target.may_create_in_schema:
            yield refuse(
                "privilege",
                target.endpoint.schema,
                f"{target.user} may not create these views in schema {target.endpoint.schema} on the target",
                f"GRANT CREATE ON SCHEMA {quoted(target.endpoint.schema)} TO {quoted(target.user)};",
            )
    for name, lacking in needs.items():
        yield warn(
            "view-not-creatable",
            name,
            f"view {name} of the source will not be created: it needs {', '.join(lacking)},"
            " which the target lacks or nobody can tell",
        )
    for expected in rules.views:
        if source.view(expected.name) is None and target.view(expected.name) is None and _reads(expected, source):
            yield warn(
                "view-nowhere",
                expected.name,
                f"neither side has view {expected.name} ({expected.why}); the application creates it only while"
                " its logs were never analyzed",
            )


def _reads(view: matrix.MatrixView, source: model.Catalog) -> bool:
    return all(source.table(table) is not None for table in view.reads)


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
        f" {_alter(table, target)} ALTER COLUMN {quoted(column)} SET DEFAULT nextval({literal(name)});"
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
            f"GRANT SELECT ON SEQUENCE {qualified(ours.name, source)} TO {quoted(source.user)};",
        )
    if not (theirs.writable and theirs.readable):
        yield refuse(
            "privilege",
            theirs.name,
            f"{target.user} may not set sequence {theirs.name} on the target",
            f"GRANT SELECT, UPDATE ON SEQUENCE {qualified(theirs.name, target)} TO {quoted(target.user)};",
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
            "" if may else f"GRANT SELECT ON {qualified(name, catalog)} TO {quoted(catalog.user)};",
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
