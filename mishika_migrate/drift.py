"""How two schemas differ, as far as it matters to rows on their way. Pure.

Imports matrix, findings and the words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mishika_migrate import matrix, model
from mishika_migrate.findings import note, qualified, quoted, refuse, warn

# Types whose text form any later one reads without loss. Everything else that differs is refused.
_WIDENING = frozenset(
    {
        ("smallint", "integer"),
        ("smallint", "bigint"),
        ("integer", "bigint"),
        ("real", "double precision"),
        ("character varying", "text"),
        ("character", "text"),
        ("json", "jsonb"),
        ("date", "timestamp without time zone"),
        ("integer", "numeric"),
        ("bigint", "numeric"),
    }
)


def columns(origin: model.Table, place: model.Table, target: model.Catalog) -> Iterable[model.Finding]:
    for column in origin.columns:
        other = place.column(column.name)
        subject = f"{origin.name}.{column.name}"
        if other is None:
            yield refuse(
                "column-missing",
                subject,
                f"the target's {origin.name} has no column {column.name}: its values would be lost",
                "bring the target's proxy to at least the source's version"
                f" (or: ALTER TABLE {qualified(place.name, target)}"
                f" ADD COLUMN {quoted(column.name)} {column.type};)",
            )
        elif other.generated and not column.generated:
            yield warn(
                "column-generated",
                subject,
                f"{subject} is generated on the target: the source's values stay behind",
            )
        else:
            yield from _column(subject, column, other)
    names = {column.name for column in origin.columns}
    for other in place.columns:
        if other.name not in names:
            yield _extra_column(place.name, other)


def _column(subject: str, column: model.Column, other: model.Column) -> Iterable[model.Finding]:
    if column.type != other.type:
        if (_base(column.type), _base(other.type)) in _WIDENING or _base(column.type) == _base(other.type):
            yield warn(
                "column-type",
                subject,
                f"{subject} is {column.type} on the source and {other.type} on the target; values go as text,"
                " and one that does not fit stops the copy",
            )
        else:
            yield refuse(
                "column-type",
                subject,
                f"{subject} is {column.type} on the source and {other.type} on the target",
                "bring both proxies to the same version",
            )
    missing = [label for label in column.labels if label not in other.labels]
    if missing and other.labels:
        yield refuse(
            "enum-labels",
            subject,
            f"the target's type of {subject} lacks {', '.join(missing)}",
            f"ALTER TYPE {other.type} ADD VALUE '{missing[0]}';",
        )
    if column.nullable and not other.nullable and not other.generated:
        yield warn(
            "column-not-null",
            subject,
            f"{subject} may be NULL on the source, not on the target: a NULL stops the copy",
        )


def _extra_column(table: str, column: model.Column) -> model.Finding:
    subject = f"{table}.{column.name}"
    if column.nullable or column.default is not None or column.generated or column.identity:
        return note("column-new", subject, f"{subject} exists on the target only and gets its default")
    return refuse(
        "column-without-default",
        subject,
        f"{subject} exists on the target only, is NOT NULL and has no default",
        f"ALTER TABLE {quoted(table)} ALTER COLUMN {quoted(column.name)} SET DEFAULT …;",
    )


def _base(kind: str) -> str:
    """The type without its modifier: `timestamp(3) without time zone` is `timestamp without time zone`."""
    start, end = kind.find("("), kind.find(")")
    return kind if start < 0 else kind[:start] + kind[end + 1 :]


def views(rules: matrix.Matrix, source: model.Catalog, target: model.Catalog) -> Iterable[model.Finding]:
    there = {table.name for table in target.tables}
    creatable = []
    for view in source.views:
        if target.view(view.name) is not None:
            continue
        gone = sorted(name for name in view.reads if name not in there and source.view(name) is None)
        if gone:
            yield warn(
                "view-not-creatable",
                view.name,
                f"view {view.name} reads {', '.join(gone)}, which the target lacks",
            )
        else:
            creatable.append(view.name)
    if creatable:
        yield note(
            "view-missing",
            ", ".join(creatable),
            f"the target lacks {len(creatable)} views of the source, which will be created: {', '.join(creatable)}",
        )
    for expected in rules.views:
        if source.view(expected.name) is None and target.view(expected.name) is None and _reads(expected, source):
            yield warn(
                "view-nowhere",
                expected.name,
                f"neither side has view {expected.name}; the proxy creates it only while its logs were never analyzed",
            )


def _reads(view: matrix.MatrixView, source: model.Catalog) -> bool:
    return all(source.table(table) is not None for table in view.reads)


def sequences(source: model.Catalog, target: model.Catalog, selection: model.Selection) -> Iterable[model.Finding]:
    for sequence in source.sequences:
        if sequence.table is None or not selection.has(sequence.table):
            continue
        owner = f"{sequence.table}.{sequence.column}"
        twin = next((s for s in target.sequences if (s.table, s.column) == (sequence.table, sequence.column)), None)
        if twin is None and target.table(sequence.table) is not None:
            yield refuse(
                "sequence-missing",
                owner,
                f"{owner} draws its numbers from a sequence on the source, but not on the target",
                "bring the target's proxy to the source's version",
            )
        elif twin is not None and not twin.writable:
            yield refuse(
                "privilege",
                twin.name,
                f"{target.user} may not set sequence {twin.name} on the target",
                f"GRANT UPDATE ON SEQUENCE {qualified(twin.name, target)} TO {quoted(target.user)};",
            )


def migrations(rules: matrix.Matrix, source: model.Catalog, target: model.Catalog) -> Iterable[model.Finding]:
    if source.migrations is None or target.migrations is None or rules.migrations is None:
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
            "deploy the source's proxy version on the target first",
        )
    if ahead:
        yield note(
            "migrations-ahead",
            rules.migrations,
            f"the target has {len(ahead)} later migrations: {_few(ahead)}",
        )
    if changed:
        yield warn(
            "migrations-differ",
            rules.migrations,
            f"migrations of one name have other contents: {_few(changed)}",
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
