"""Decides which tables go and which stay, each with its reason. Pure.

Imports addresses, settings' names, findings, matrix and the words. `questions` says what must be
asked of the source's rows before `plan.build` can judge the selection.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mishika_migrate import errors, matrix, model, settings
from mishika_migrate.findings import note, qualified, refuse, warn
from mishika_migrate.settings import addresses

# A table of more bytes than this is not searched for dangling references before a run.
_SEARCHED_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the operator asks for beyond the matrix; names are tables or groups of the matrix.

    `only` are all that go, with what they reference by a foreign key and the target has no rows of.
    `also` go with those as soon as either side has rows of them. `existing` says of these names what
    becomes of rows that the target has; "" means all other tables. `use` is where rows make a table that
    is needed when used go: on the source, on either side (those of the target must go where the source
    has none any more), or anywhere at any time, as for what is followed.
    """

    groups: frozenset[str] = frozenset()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    use: Literal["source", "either", "any"] = "source"
    existing: tuple[tuple[str, model.Existing], ...] = ()
    everything: bool = False
    create_schema: bool = False


OTHERS = "not among those of --only"
"""Why a table stays where others were asked for by name; nothing is lost by it."""

IDLE = "empty on the source"
"""Why a table stays that is needed when it is used."""


def flag(group: matrix.Group) -> str:
    """How a group is asked for: four have an option of their own, whatever the matrix calls it."""
    return f"--include-{group.name}" if group.name in settings.GROUPS else f"--include {group.name}"


def select(
    rules: matrix.Matrix, source: model.Catalog, wanted: Wanted, *, target: model.Catalog | None = None
) -> model.Selection:
    """Which tables go and which stay, each with its reason. The target is asked for `wanted.only` and `wanted.use`.

    Raises `errors.ConfigurationError` for a name that neither the source nor the matrix knows, and
    for asking for a table that is never copied.
    """
    include = _resolve(wanted.include, rules, source)
    exclude = _resolve(wanted.exclude, rules, source)
    _check_possible(include, rules)
    for group in sorted(wanted.groups):
        if rules.group(group) is None:
            raise errors.ConfigurationError(f"the matrix {rules.name} has no group {group}")
    existing = _existing(wanted.existing, rules, source)
    if wanted.only:
        asked = _resolve(wanted.only, rules, source) | _in_use(wanted.also, source, target)
        found = _only(asked, exclude, rules, source, target)
        return _with_existing(found, existing, rules)
    reasons: dict[str, str] = {}
    left: dict[str, model.Left] = {}
    for table in _known_first(rules, source):
        reason, stays = _verdict(table, rules, wanted, include, exclude, target)
        if reason:
            reasons[table.name] = reason
        else:
            left[table.name] = stays
    if wanted.create_schema and rules.migrations and source.table(rules.migrations):
        reasons[rules.migrations] = "the history of the schema that is created here"
    findings = [*_close(reasons, left, rules, source, exclude), *_no_tables(rules, source, wanted, include, exclude)]
    return _with_existing(
        model.Selection(
            chosen=_all_chosen(reasons, rules, source), left=tuple(left.values()), findings=tuple(findings)
        ),
        existing,
        rules,
    )


def _in_use(names: Iterable[str], source: model.Catalog, target: model.Catalog | None) -> frozenset[str]:
    return frozenset(name for name in names if used(name, source, target))


def used(name: str, source: model.Catalog, target: model.Catalog | None) -> bool:
    """Whether the source has the table, and either side may have rows of it."""
    ours, theirs = source.table(name), target.table(name) if target else None
    return ours is not None and any(table is not None and table.occupied is not False for table in (ours, theirs))


def _existing(
    wanted: Iterable[tuple[str, model.Existing]], rules: matrix.Matrix, source: model.Catalog
) -> dict[str, model.Existing]:
    """By table; what is said of it by name counts more than what is said of its group."""
    found: dict[str, model.Existing] = {}
    named: dict[str, model.Existing] = {}
    for name, existing in wanted:
        if not name:
            found[""] = existing
        elif rules.group(name) is not None:
            found.update(dict.fromkeys(_resolve([name], rules, source), existing))
        else:
            named.update(dict.fromkeys(_resolve([name], rules, source), existing))
    return found | named


def _with_existing(
    selection: model.Selection, existing: Mapping[str, model.Existing], rules: matrix.Matrix
) -> model.Selection:
    """The history of migrations is never merged, and copied only into a schema that is new."""
    chosen = tuple(
        each
        if each.table == rules.migrations
        else dataclasses.replace(each, existing=existing.get(each.table, existing.get("", "refuse")))
        for each in selection.chosen
    )
    return dataclasses.replace(selection, chosen=chosen)


def _all_chosen(reasons: Mapping[str, str], rules: matrix.Matrix, source: model.Catalog) -> tuple[model.Chosen, ...]:
    tables = _known_first(rules, source, migrations=True)
    return tuple(_chosen(table, reasons[table.name], rules) for table in tables if table.name in reasons)


def _only(
    names: frozenset[str],
    exclude: frozenset[str],
    rules: matrix.Matrix,
    source: model.Catalog,
    target: model.Catalog | None,
) -> model.Selection:
    """These tables and, of what they reference by a foreign key, what the target has no rows of."""
    _check_possible(names, rules, option="--only")
    asked = names - exclude
    reasons = {table.name: "asked for" for table in source.tables if table.name in asked}
    findings: dict[str, model.Finding] = {}
    waiting = list(reasons)
    while waiting:
        name = waiting.pop(0)
        for key in _keys(name, source, target):
            there = target.table(key.references) if target else None
            if key.references in reasons:
                continue
            if there is not None and there.occupied is not False:
                findings[key.references] = _kept(name, key, there)
            elif source.table(key.references) is None:
                findings[f"{name} {key.name}"] = _outside(name, key, source)
            elif key.references in exclude:
                findings[f"{name} {key.name}"] = _needed(name, key, source)
            else:
                reasons[key.references] = f"referenced by {name}.{', '.join(key.columns)}, and empty on the target"
                waiting.append(key.references)
    others = [table for table in _known_first(rules, source) if table.name not in reasons]
    kinds = (_no_table(name, source, asked=True) for name in sorted(asked) if source.kind(name))
    return model.Selection(
        chosen=_all_chosen(reasons, rules, source),
        left=tuple(
            _stays(table, OTHERS, "nothing: it is left as it is", known=rules.entry(table.name) is not None)
            for table in others
        ),
        findings=(*findings.values(), *kinds),
        only=tuple(sorted(asked)),
    )


def _keys(name: str, source: model.Catalog, target: model.Catalog | None) -> list[model.ForeignKey]:
    """The target enforces its own; those of the source say what belongs together."""
    found = [source.table(name), target.table(name) if target else None]
    keys = {(key.columns, key.references): key for table in found if table for key in table.foreign_keys}
    return [key for key in keys.values() if key.references != name]


def _kept(name: str, key: model.ForeignKey, there: model.Table) -> model.Finding:
    return note(
        "reference-kept",
        key.references,
        f"{name} ({', '.join(key.columns)}) references {there.name}, which is taken as it is on the target and not"
        " copied again",
    )


def _known_first(rules: matrix.Matrix, source: model.Catalog, *, migrations: bool = False) -> Iterable[model.Table]:
    known = [table for entry in rules.entries if (table := source.table(entry.table))]
    names = {table.name for table in known} | ({rules.migrations} if not migrations else set())
    return [*known, *(table for table in source.tables if table.name not in names)]


def _verdict(
    table: model.Table,
    rules: matrix.Matrix,
    wanted: Wanted,
    include: frozenset[str],
    exclude: frozenset[str],
    target: model.Catalog | None,
) -> tuple[str, model.Left]:
    """The reason to copy, or an empty one and why the table stays behind."""
    entry = rules.entry(table.name)
    if entry is None and table.name in exclude:
        return "", _stays(table, "excluded", "what it holds: the matrix does not know")
    if entry is None:
        reason = "asked for" if table.name in include else "everything" if wanted.everything else ""
        return reason, _stays(table, "not in the matrix", "what it holds: the matrix does not know", known=False)
    if entry.need == "never":
        return "", _stays(table, f"never copied: {entry.why}", "nothing that should last")
    if table.name in exclude:
        return "", _stays(table, "excluded", entry.loses or entry.why)
    reason = _reason(table, entry, wanted, include, target)
    if reason:
        return reason, _stays(table, "", "")
    if entry.need == "if-used":
        return "", _stays(table, IDLE, "nothing")
    group = rules.group(entry.group or "")
    ask = f"not asked for ({flag(group)})" if group else "not asked for"
    return "", _stays(table, ask, entry.loses)


def _reason(
    table: model.Table, entry: matrix.Entry, wanted: Wanted, include: frozenset[str], target: model.Catalog | None
) -> str:
    if entry.need == "required":
        return entry.why
    if table.name in include:
        return "asked for"
    if entry.need == "if-used":
        if table.occupied is not False:
            return f"in use: {entry.why}"
        there = target.table(table.name) if target else None
        if wanted.use == "any" and (there is not None or wanted.create_schema):
            return f"may come into use: {entry.why}"
        if wanted.use == "either" and there is not None and there.occupied is not False:
            return "empty on the source, and the target has rows"
        return ""
    if wanted.everything or entry.group in wanted.groups:
        return f"asked for: {entry.why}"
    return ""


def _stays(table: model.Table, reason: str, loses: str, *, known: bool = True) -> model.Left:
    return model.Left(table=table.name, reason=reason, loses=loses, rows=known_rows(table), known=known)


def known_rows(table: model.Table) -> float | None:
    """The estimate; None where the role may not look and the server has none either."""
    return None if table.occupied is None and not table.rows else table.rows


def _chosen(table: model.Table, reason: str, rules: matrix.Matrix) -> model.Chosen:
    entry = rules.entry(table.name)
    stage: model.StageName = entry.stage if entry else "core" if table.name == rules.migrations else "bulk"
    return model.Chosen(table=table.name, stage=stage, reason=reason, rows=table.rows, bytes=table.bytes)


def _close(
    reasons: dict[str, str],
    left: dict[str, model.Left],
    rules: matrix.Matrix,
    source: model.Catalog,
    exclude: frozenset[str],
) -> list[model.Finding]:
    """Adds what chosen tables reference by a foreign key, and what goes with them; changes both dicts."""
    findings = []
    waiting = list(reasons)
    while waiting:
        name = waiting.pop(0)
        table = source.table(name)
        more = {entry.table: f"goes with {name}" for entry in _companions(name, rules, source) if entry.table in left}
        for key in table.foreign_keys if table else ():
            if key.references in reasons:
                continue
            if source.table(key.references) is None:
                findings.append(_outside(name, key, source))
            elif key.references in exclude:
                findings.append(_needed(name, key, source))
            else:
                more[key.references] = f"referenced by {name}.{', '.join(key.columns)}"
        for other in (other for other in more if other not in exclude and other not in reasons):
            reasons[other] = more[other]
            left.pop(other, None)
            waiting.append(other)
    return findings


def _companions(name: str, rules: matrix.Matrix, source: model.Catalog) -> Iterable[matrix.Entry]:
    return (
        entry
        for entry in rules.entries
        if entry.goes_with == name and entry.need != "never" and source.table(entry.table) is not None
    )


def _needed(name: str, key: model.ForeignKey, source: model.Catalog) -> model.Finding:
    return refuse(
        "excluded-but-referenced",
        key.references,
        f"{key.references} is excluded, but {name} ({', '.join(key.columns)}) on the source"
        f" {source.endpoint.label} references it by a foreign key",
        f"leave out --exclude {key.references}, or exclude {name} as well: --exclude {name}",
    )


def _outside(name: str, key: model.ForeignKey, source: model.Catalog) -> model.Finding:
    return warn(
        "reference-outside",
        f"{name}.{', '.join(key.columns)}",
        f"{name} ({', '.join(key.columns)}) references {key.references}, which is not in schema"
        f" {source.endpoint.schema} of the source and will not be copied",
        f"copy {key.references} first, with ?schema= in both URLs",
    )


def _no_tables(
    rules: matrix.Matrix, source: model.Catalog, wanted: Wanted, include: frozenset[str], exclude: frozenset[str]
) -> Iterable[model.Finding]:
    """What has the name of a table that the matrix knows, and what else holds rows without being a table."""
    for entry in rules.entries:
        if not source.kind(entry.table) or entry.need == "never" or entry.table in exclude:
            continue
        asked = entry.need == "required" or wanted.everything or entry.group in wanted.groups
        yield _no_table(entry.table, source, asked=asked or entry.table in include)
    for other in source.others:
        if rules.entry(other.name) is None:
            yield note(
                "not-copied",
                other.name,
                f"{other.name} of the source is a {other.kind} and stays behind",
                f"pg_dump --schema-only --no-owner --table='{qualified(other.name, source)}' SOURCE | psql TARGET"
                " # after the copy",
            )


def _no_table(name: str, source: model.Catalog, *, asked: bool) -> model.Finding:
    tell = refuse if asked else warn
    return tell(
        "not-a-table",
        name,
        f"{name} on the source {source.endpoint.label} is a {source.kind(name)}, not a table, so its rows would stay"
        " behind",
        f"give --source the server that holds the table itself, or --exclude {name}",
    )


def _resolve(names: Iterable[str], rules: matrix.Matrix, source: model.Catalog) -> frozenset[str]:
    """Full table names of what the operator calls a table or a group."""
    known = list(dict.fromkeys([*(entry.table for entry in rules.entries), *(t.name for t in source.tables)]))
    found: set[str] = set()
    for name in names:
        members = [entry.table for entry in rules.entries if entry.group == name]
        found.update(members or [_resolve_one(name, known, source)])
    return frozenset(found)


def _check_possible(include: frozenset[str], rules: matrix.Matrix, *, option: str = "--include") -> None:
    for name in sorted(include):
        entry = rules.entry(name)
        if entry is not None and entry.need == "never":
            raise errors.ConfigurationError(f"{name} is never copied: {entry.why}", hint=f"Leave out {option} {name}.")
        if name == rules.migrations:
            raise errors.ConfigurationError(
                f"{name} is the history of the schema; it is compared, never merged",
                hint="--create-schema takes it along with the schema.",
            )


def _resolve_one(name: str, known: Sequence[str], source: model.Catalog) -> str:
    if name in known:
        return name
    short = [table for table in known if table.partition("_")[2].lower() == name.lower()]
    if len(short) == 1:
        return short[0]
    if kind := source.kind(name):
        raise errors.ConfigurationError(
            f"{name} on {source.endpoint.label} is a {kind}, not a table", hint="Only tables are copied; leave it out."
        )
    nearest = difflib.get_close_matches(name, [*known, *(t.partition("_")[2] for t in known)], n=1)
    raise errors.ConfigurationError(
        f"there is no table or group {addresses.shown(name)}",
        hint=f"Did you mean {nearest[0]}?" if nearest else "`mishika-migrate tables` lists them.",
    )


# -- questions to the rows ------------------------------------------------------------------------


def questions(
    rules: matrix.Matrix, source: model.Catalog, selection: model.Selection
) -> tuple[tuple[model.Pointer, ...], tuple[model.Shape, ...], tuple[str, ...]]:
    """What to ask the source's rows, and the tables that are too large to ask.

    History (the bulk stage) is not asked: its references to what was deleted since are no fault.
    """
    pointers: list[model.Pointer] = []
    shapes: list[model.Shape] = []
    unlooked: list[str] = []
    for chosen in selection.chosen:
        entry, table = rules.entry(chosen.table), source.table(chosen.table)
        if entry is None or table is None or entry.stage != "core" or not _readable(table, source):
            continue
        asked = tuple(_pointers(entry, table, source, selection))
        shape = shape_of(entry, table)
        if table.bytes > _SEARCHED_BYTES and (asked or shape.objects or shape.present):
            unlooked.append(table.name)
            continue
        pointers.extend(asked)
        shapes.extend([shape] if shape.objects or shape.present else [])
    return tuple(pointers), tuple(shapes), tuple(unlooked)


def _readable(table: model.Table, source: model.Catalog) -> bool:
    return source.may_use_schema and "SELECT" in table.privileges and not table.hidden


def shape_of(entry: matrix.Entry, table: model.Table) -> model.Shape:
    """What the application expects of the table's rows, as far as it has the columns."""
    return model.Shape(
        table=table.name,
        objects=tuple(name for name in entry.objects if _type(table, name) in ("json", "jsonb")),
        present=tuple(name for name in entry.present if _type(table, name)),
        names=tuple(name for name in entry.names if _type(table, name)),
        key=table.primary_key,
    )


def _pointers(
    entry: matrix.Entry, table: model.Table, source: model.Catalog, selection: model.Selection
) -> Iterable[model.Pointer]:
    for reference in entry.references:
        kind, other = _type(table, reference.column), source.table(reference.table)
        if not kind or kind.endswith("[]") != reference.each:
            continue
        if selection.only and not selection.has(reference.table):
            continue  # it is on the target already, or nobody wants to know
        # Where the other table is empty nothing is left behind: its rows are missing on the source already.
        absent = other is None or not (selection.has(reference.table) or other.occupied is False)
        if other is not None and not absent and not (_type(other, reference.key) and _readable(other, source)):
            continue
        yield model.Pointer(
            table=table.name,
            column=reference.column,
            references=reference.table,
            key=reference.key,
            each=reference.each,
            exempt=reference.exempt,
            absent=absent,
        )


def _type(table: model.Table, column: str) -> str:
    found = table.column(column)
    return found.type if found else ""
