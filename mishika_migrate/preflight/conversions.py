"""What becomes of values on their way between two types. Pure.

Imports findings and the words. Values go as text where the types differ: what the target's input
function makes of it must be the same value, or an error, never another value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mishika_migrate import model
from mishika_migrate.findings import alter, literal, note, quoted, refuse, warn

# Pairs of types where the later reads every text form of the first, and as the same value; with a
# limit, as of numeric(9,2), it stops at one that does not fit. Everything else that differs is refused.
_WIDENING = frozenset(
    {
        ("smallint", "integer"),
        ("smallint", "bigint"),
        ("integer", "bigint"),
        ("real", "double precision"),
        ("character varying", "text"),
        ("date", "timestamp without time zone"),
        ("integer", "numeric"),
        ("bigint", "numeric"),
    }
)

# Pairs where the later takes the text, but not as it is.
_CHANGING = {
    ("json", "jsonb"): "which would lose duplicate keys, their order and spaces",
    ("text", "character varying"): "which would cut spaces at the end, and stop at what is longer",
    ("character", "text"): "which would make its padding part of the values",
    ("character", "character varying"): "which would make its padding part of the values",
}

# Types that round what does not fit, without an error: numeric(12,4) into numeric(12,2).
_ROUNDING = re.compile("numeric|interval|time.*")
# Types that cut spaces at the end to make a value fit, without an error.
_CUTTING = frozenset({"character", "character varying"})


def inspect(
    table: str, column: model.Column, other: model.Column, source: model.Catalog, target: model.Catalog
) -> Iterable[model.Finding]:
    """Of one column that both sides have."""
    subject = f"{table}.{column.name}"
    yield from _type(table, column, other, target)
    yield from _labels(subject, column, other, target)
    if column.type == other.type:
        yield from _own_types(subject, column.type.removesuffix("[]"), source, target)


def _type(table: str, column: model.Column, other: model.Column, target: model.Catalog) -> Iterable[model.Finding]:
    if column.type == other.type:
        return
    subject = f"{table}.{column.name}"
    differs = f"{subject} is {column.type} on the source and {other.type} on the target"
    change = f"{alter(table, target)} ALTER COLUMN {quoted(column.name)} TYPE {column.type};"
    (ours, our_limits), (theirs, their_limits) = _parts(column.type), _parts(other.type)
    fits = _fits(our_limits, their_limits)
    if changes := _changes(ours, theirs, our_limits, their_limits):
        yield refuse("column-type", subject, f"{differs}, {changes}", change)
    elif (_same(ours, theirs) and fits) or (theirs == "text" and column.labels):
        yield note("column-type", subject, f"{differs}; values go as text")
    elif ours == theirs or (ours, theirs) in _WIDENING:
        yield warn(
            "column-type", subject, f"{differs}; values go as text, and one that does not fit stops the copy", change
        )
    else:
        yield refuse(
            "column-type",
            subject,
            f"{differs}: values of one may mean something else in the other",
            "bring both applications to the same version",
        )


def _same(ours: str, theirs: str) -> bool:
    return ours == theirs or (ours, theirs) in _WIDENING or (ours, theirs) == ("text", "character varying")


def _changes(ours: str, theirs: str, our_limits: Sequence[int], their_limits: Sequence[int]) -> str:
    """What the target would do to some values without an error, empty when it would not."""
    bare = ours.removesuffix("[]")
    if (ours, theirs) == ("text", "character varying") and not their_limits:
        return ""
    if ours == theirs and _rounds(ours, our_limits, their_limits):
        return "which would round values"
    if ours == theirs and bare in _CUTTING and not _fits(our_limits, their_limits):
        return "which would cut spaces at the end, and stop at what is longer"
    return _CHANGING.get((ours, theirs), "")


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
        kind = enum(other, target)
        yield refuse(
            "enum-labels",
            subject,
            f"the type of {subject} on the target lacks {', '.join(missing)}",
            " ".join(f"ALTER TYPE {kind} ADD VALUE IF NOT EXISTS {literal(label)};" for label in missing),
        )


def enum(column: model.Column, catalog: model.Catalog) -> str:
    """The qualified name of the column's enum."""
    return _named(column.type.removesuffix("[]"), catalog)


def _named(bare: str, catalog: model.Catalog) -> str:
    """The server prints a type's name bare where it is in the endpoint's schema."""
    named = bare if bare.startswith('"') else quoted(bare)
    return bare if re.search(r'^("([^"]|"")+"|[^".]+)\.', bare) else f"{quoted(catalog.endpoint.schema)}.{named}"


# -- types of the schema's own ---------------------------------------------------------------------


def _own_types(subject: str, first: str, source: model.Catalog, target: model.Catalog) -> Iterable[model.Finding]:
    """Composite types and domains of one name that are not the same on both sides, and those within."""
    waiting = [first]
    for name in waiting:
        ours, theirs = source.own_type(name), target.own_type(name)
        if ours is None and theirs is None:
            continue
        if ours is None or theirs is None or ours.parts != theirs.parts:
            yield refuse(
                "type-differs",
                subject,
                f"type {name} of {subject} is {_made(ours)} on the source and {_made(theirs)} on the target",
                _creation(ours, target) if ours else "bring both applications to the same version",
            )
            continue
        new = [rule for rule in theirs.checks if rule not in ours.checks]
        if new:
            yield warn(
                "domain-check",
                subject,
                f"domain {name} of {subject} has {' and '.join(new)} on the target only: a value that breaks it stops"
                " the copy",
                f"bring both applications to the same version, or ALTER DOMAIN {_named(name, target)} on the target",
            )
        inner = (kind.removesuffix("[]") for _, kind in ours.parts)
        waiting += [kind for kind in inner if kind not in waiting]


def _made(kind: model.OwnType | None) -> str:
    if kind is None:
        return "of another nature"
    return ", ".join(f"{name} {inner}".strip() for name, inner in kind.parts) or "without attributes"


def _creation(kind: model.OwnType, target: model.Catalog) -> str:
    name = _named(kind.name, target)
    domain = len(kind.parts) == 1 and not kind.parts[0][0]
    attributes = ", ".join(f"{quoted(part)} {inner}" for part, inner in kind.parts)
    made = f"DOMAIN {name} AS {kind.parts[0][1]}" if domain else f"TYPE {name} AS ({attributes})"
    return f"CREATE {made}; -- on the target, in place of its own, or bring both applications to the same version"
