"""Whether two schemas mean the same: columns, indexes, constraints and the journal of migrations. Pure.

Imports conversions, matrix, findings and the words. `problem`, `note`, `unlooked` and `check` make the
checks of `verifying.continuity`, too. Names of indexes, constraints and sequences do not count: they
are cut at 63 bytes and differ from one release of an application to the next.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mishika_migrate import matrix, model, words
from mishika_migrate.findings import few, major
from mishika_migrate.preflight import conversions

Pair = tuple[model.Table, model.Table]
"""A table of the source, and the one of that name on the target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One sentence of a check; `unlooked` ones say what could not be compared."""

    weight: Literal["problem", "note", "unlooked"]
    text: str


def problem(text: str) -> Said:
    return Said(weight="problem", text=text)


def note(text: str) -> Said:
    return Said(weight="note", text=text)


def unlooked(text: str) -> Said:
    return Said(weight="unlooked", text=text)


def check(code: str, title: str, looked: int, said: Iterable[Said]) -> model.Check:
    """Puts the sentences where they belong."""
    by: dict[str, list[str]] = {"problem": [], "note": [], "unlooked": []}
    for each in said:
        by[each.weight].append(each.text)
    return model.Check(
        code=code,
        title=title,
        looked=looked,
        problems=tuple(by["problem"]),
        notes=tuple(by["note"]),
        why_not="; ".join(by["unlooked"]),
    )


def inspect(
    rules: matrix.Matrix, source: model.Catalog, target: model.Catalog, tables: Sequence[str]
) -> tuple[model.Check, ...]:
    """Checks `columns`, `indexes`, `constraints` and, where the matrix names a journal, `migrations`."""
    both = [(origin, place) for name in tables if (origin := source.table(name)) and (place := target.table(name))]
    return (
        _columns(both, tables, source, target),
        _indexes(both, source, target),
        _constraints(both, source, target),
        *([_migrations(rules.migrations, source, target)] if rules.migrations else []),
    )


def _printed_alike(source: model.Catalog, target: model.Catalog) -> bool:
    """Whether both servers print one definition in the same words."""
    return major(source.version) == major(target.version)


# -- columns --------------------------------------------------------------------------------------


def _columns(both: Sequence[Pair], tables: Sequence[str], source: model.Catalog, target: model.Catalog) -> model.Check:
    said = [
        problem(f"the {catalog.endpoint.role} has no table {name}, so nothing of it was compared")
        for name in tables
        for catalog in (source, target)
        if catalog.table(name) is None
    ]
    looked = 0
    for origin, place in both:
        for column in origin.columns:
            other = place.column(column.name)
            if other is None:
                said.append(unlooked(f"{origin.name}.{column.name} is on the source only and was not compared"))
                continue
            looked += 1
            said.extend(_column(origin.name, column, other, source, target))
        said.extend(
            note(f"{place.name}.{column.name} is on the target only")
            for column in place.columns
            if origin.column(column.name) is None
        )
    return check("columns", "Types, nullability and defaults of the columns", looked, said)


def _column(
    table: str, column: model.Column, other: model.Column, source: model.Catalog, target: model.Catalog
) -> Iterable[Said]:
    subject = f"{table}.{column.name}"
    yield from _type(table, column, other, source, target)
    if other.nullable and not column.nullable:
        yield problem(f"{subject} is NOT NULL on the source, but not on the target, which will accept NULL")
    elif column.nullable and not other.nullable:
        yield note(f"{subject} is NOT NULL on the target only, which may reject writes")
    if column.generated or other.generated:
        yield from _generated(subject, column, other, source, target)
    else:
        yield from _default(table, column, other, source, target)


def _type(
    table: str, column: model.Column, other: model.Column, source: model.Catalog, target: model.Catalog
) -> Iterable[Said]:
    """What the target reads as the same value is no problem; the codes are those of `conversions`."""
    for finding in conversions.inspect(table, column, other, source, target):
        if finding.code == "column-type":
            differs = f"{table}.{column.name} is {column.type} on the source and {other.type} on the target"
            yield (
                note(differs)
                if finding.severity == "note"
                else problem(f"{differs}: values may not fit, or mean something else")
            )
        elif finding.severity == "refuse":
            yield problem(finding.message)


def _generated(
    subject: str, column: model.Column, other: model.Column, source: model.Catalog, target: model.Catalog
) -> Iterable[Said]:
    if column.generated != other.generated:
        side = "source" if column.generated else "target"
        yield problem(f"{subject} is generated on the {side} only: its values will come from elsewhere")
        return
    if column.virtual != other.virtual:
        yield note(f"{subject} is computed when it is {'read' if other.virtual else 'written'} on the target only")
    yield from _texts(
        f"{subject} is generated as", column.default, other.default, "", strict=_strict(column, other, source, target)
    )


def _default(
    table: str, column: model.Column, other: model.Column, source: model.Catalog, target: model.Catalog
) -> Iterable[Said]:
    yield from _texts(
        f"the default of {table}.{column.name} is",
        _meaning(table, column, source),
        _meaning(table, other, target),
        ": new rows will get another value",
        strict=_strict(column, other, source, target),
    )


def _strict(column: model.Column, other: model.Column, source: model.Catalog, target: model.Catalog) -> bool:
    """Servers of one version print the same expression of the same type in the same words."""
    return _printed_alike(source, target) and column.type == other.type


def _texts(what: str, ours: str | None, theirs: str | None, means: str, *, strict: bool) -> Iterable[Said]:
    if ours == theirs:
        return
    differs = f"{what} {ours or 'none'} on the source and {theirs or 'none'} on the target"
    if ours and theirs and _loosened(ours, casts=not strict) == _loosened(theirs, casts=not strict):
        yield note(f"{differs}, which is the same in other words")
    else:
        yield problem(f"{differs}{means}")


_NEXTVAL = re.compile(r"nextval\('((?:[^']|'')*)'::regclass\)")


def _meaning(table: str, column: model.Column, catalog: model.Catalog) -> str | None:
    """The default, with the sequence that it draws from told by its column, not by its name."""
    if column.identity:
        return f"the next of {table}.{column.name}"
    if column.default is None:
        return None
    return _NEXTVAL.sub(lambda found: _drawn(found[1].replace("''", "'"), catalog), column.default)


def _drawn(printed: str, catalog: model.Catalog) -> str:
    bare = re.findall(r'"((?:[^"]|"")*)"|([^".]+)', printed)[-1]
    name = bare[0].replace('""', '"') or bare[1]
    owned = next((each for each in catalog.sequences if each.name == name and each.table), None)
    return f"the next of {owned.table}.{owned.column}" if owned else f"the next of sequence {name}"


# -- other words for the same ---------------------------------------------------------------------

_STRING = r"'(?:[^']|'')*'"
_NAME = r'"(?:[^"]|"")*"'
_CAST = (
    r"::(?:character varying|double precision|bit varying|(?:timestamp|time)(?:\(\d\))? with(?:out)? time zone"
    rf"|(?:{_NAME}|\w+)(?:\.(?:{_NAME}|\w+))?)(?:\(\d+(?:,\d+)?\))?(?:\[\])*"
)
_TOKEN = re.compile(rf"{_STRING}|{_NAME}|{_CAST}|[\w.]+|\S")
_ATOM_IN_PARENTHESES = re.compile(rf"(?<![\w\"] )\( ({_STRING}|{_NAME}|[\w.]+) \)")
_TWICE_IN_PARENTHESES = re.compile(r"\( \( ([^()]*) \) \)")


def _loosened(text: str, *, casts: bool) -> str:
    """An expression without what says nothing: CURRENT_TIMESTAMP is now(), and with `casts` also without those.

    Servers of different versions cast and parenthesise otherwise. Texts in quotes stay as they are.
    """
    tokens = [token for token in _TOKEN.findall(text) if not (casts and token.startswith("::"))]
    loose = " ".join("now ( )" if token == "CURRENT_TIMESTAMP" else token for token in tokens)
    while casts:
        looser = _TWICE_IN_PARENTHESES.sub(r"( \1 )", _ATOM_IN_PARENTHESES.sub(r"\1", loose))
        if looser == loose:
            break
        loose = looser
    return loose


def _apart(ours: Iterable[str], theirs: Iterable[str]) -> tuple[list[str], list[str]]:
    """What only one side has, each as often as it has it more."""
    mine, others = Counter(ours), Counter(theirs)
    return list((mine - others).elements()), list((others - mine).elements())


def _paired(missing: list[str], extra: list[str], loosened: dict[str, str]) -> list[tuple[str, str]]:
    """Takes those out of both lists that are the same once loosened."""
    pairs = []
    for one in list(missing):
        twin = next((other for other in extra if loosened[other] == loosened[one]), None)
        if twin is not None:
            pairs.append((one, twin))
            missing.remove(one)
            extra.remove(twin)
    return pairs


# -- indexes --------------------------------------------------------------------------------------


def _indexes(both: Sequence[Pair], source: model.Catalog, target: model.Catalog) -> model.Check:
    casts = not _printed_alike(source, target)
    said = [each for origin, place in both for each in _indexes_of(origin, place, casts=casts)]
    looked = sum(len(_kept(origin)) for origin, _ in both)
    return check("indexes", "Indexes, unique ones and primary keys among them", looked, said)


def _kept(table: model.Table) -> list[model.Index]:
    """An exclusion is a constraint, and compared as one."""
    return [index for index in table.indexes if not (index.constraint or "").startswith("EXCLUDE")]


def _indexes_of(origin: model.Table, place: model.Table, *, casts: bool) -> Iterable[Said]:
    ours = {index.name: _shape(index) for index in _kept(origin) if not _gone(index.columns, origin, place)}
    theirs = {index.name: _shape(index) for index in _kept(place)}
    for index in _kept(origin):
        if lost := _gone(index.columns, origin, place):
            yield note(f"index {index.name} of {origin.name} is on {few(lost)}, which the target lacks")
    missing, extra = _apart(ours.values(), theirs.values())
    loosened = {shape: _plain(shape, casts=casts) for shape in (*missing, *extra)}
    for one, other in _paired(missing, extra, loosened):
        yield note(f"{origin.name} has {one} on the source and {other} on the target, which is the same rule")
    for shape in dict.fromkeys(missing):
        yield _missing_index(next(name for name, each in ours.items() if each == shape), shape, origin, place)
    for shape in dict.fromkeys(extra):
        name = next(name for name, each in theirs.items() if each == shape)
        rejects = "" if shape.startswith("index") else ": it may reject writes that the source accepts"
        yield note(f"{name} of {place.name} ({shape}) is on the target only{rejects}")


def _gone(columns: Iterable[str], origin: model.Table, place: model.Table) -> list[str]:
    """Those that the target's table does not have."""
    return [name for name in columns if origin.column(name) and not place.column(name)]


# pg_get_indexdef() qualifies the table whatever the search path is; ONLY stands before a partitioned one.
_DEFINITION = re.compile(rf"CREATE (?:UNIQUE )?INDEX (?:{_NAME}|\S+) ON .*? USING (\w+ \(.*)", re.S)


def _shape(index: model.Index) -> str:
    """What it does, without its name and the table's: `unique index btree (a, b)`."""
    found = _DEFINITION.fullmatch(index.definition)
    way = found[1] if found else index.definition
    if index.primary:
        kind = "primary key"
    elif index.unique:
        kind = "unique constraint" if index.constraint else "unique index"
    else:
        kind = "index"
    _, deferrable, when = (index.constraint or "").partition(" DEFERRABLE")
    return f"{kind} {way}{deferrable}{when}"


def _plain(shape: str, *, casts: bool) -> str:
    """Without how its pages are filled; a unique constraint and a unique index reject the same rows."""
    rule = re.sub(r"^unique constraint", "unique index", re.sub(r" WITH \([^()]*\)", "", shape))
    return _loosened(rule, casts=True) if casts else rule


def _missing_index(name: str, shape: str, origin: model.Table, place: model.Table) -> Said:
    told = f"{name} of {origin.name} ({shape}) is missing on the target, or not valid there"
    if shape.startswith("index"):
        return problem(f"{told}: what it makes fast will be slow")
    columns = next(set(index.columns) for index in origin.indexes if index.name == name)
    wider = [index for index in place.indexes if index.unique and set(index.columns) > columns]
    if place.partitioned and not origin.partitioned and wider:
        # PostgreSQL keeps rows of a partitioned table unique only together with what it is partitioned by.
        return note(f"{name} of {origin.name} ({shape}) is {_shape(wider[0])} on the target, which is partitioned")
    return problem(f"{told}: duplicates will be accepted")


# -- constraints ----------------------------------------------------------------------------------


def _constraints(both: Sequence[Pair], source: model.Catalog, target: model.Catalog) -> model.Check:
    casts = not _printed_alike(source, target)
    said = [
        each
        for origin, place in both
        for part in (_rules(origin, place, casts=casts), _foreign_keys(origin, place))
        for each in part
    ]
    domains = _domains(both, source)
    said += [each for name in domains for each in _domain(name, source, target)]
    looked = sum(len(origin.constraints) + len(origin.foreign_keys) for origin, _ in both) + len(domains)
    return check("constraints", "Foreign keys, CHECKs and exclusions are the same", looked, said)


def _rules(origin: model.Table, place: model.Table, *, casts: bool) -> Iterable[Said]:
    ours, theirs = ([_rule(each, table) for each in table.constraints] for table in (origin, place))
    missing, extra = _apart(ours, theirs)
    loosened = {rule: _loosened(rule, casts=casts) for rule in (*missing, *extra)}
    for one, other in _paired(missing, extra, loosened):
        yield note(f"{origin.name} has {one} on the source and {other} on the target, the same in other words")
    for rule in missing:
        yield problem(f"{origin.name} lacks {rule} on the target, which will accept rows that break it")
    for rule in extra:
        yield note(f"{place.name} has {rule} on the target only, which may reject writes")


def _rule(constraint: model.Constraint, table: model.Table) -> str:
    """One that is NOT VALID holds for every new row; one of a partition says so."""
    where = "" if constraint.on.name == table.name else f" on partition {constraint.on.name}"
    return f"{constraint.definition.removesuffix(' NOT VALID')}{where}"


def _foreign_keys(origin: model.Table, place: model.Table) -> Iterable[Said]:
    ours, theirs = ([_link(key) for key in table.foreign_keys] for table in (origin, place))
    names = {_link(key): key for key in origin.foreign_keys}
    missing, extra = _apart(ours, theirs)
    for link in missing:
        if lost := _gone(names[link].columns, origin, place):
            yield note(f"foreign key {names[link].name} of {origin.name} is on {few(lost)}, which the target lacks")
            continue
        yield problem(f"{origin.name} lacks the foreign key {link} on the target, which will accept rows without it")
    for link in extra:
        yield note(f"{place.name} has the foreign key {link} on the target only, which may reject writes")


def _link(key: model.ForeignKey) -> str:
    return f"({', '.join(key.columns)}) to {key.references} ({', '.join(key.referenced_columns)})"


def _domains(both: Sequence[Pair], source: model.Catalog) -> list[str]:
    """Types of the source's own that the columns are of, and those within."""
    waiting = [column.type.removesuffix("[]") for origin, _ in both for column in origin.columns]
    found: dict[str, model.OwnType] = {}
    while waiting:
        kind = source.own_type(waiting.pop())
        if kind is not None and kind.name not in found:
            found[kind.name] = kind
            waiting += [inner.removesuffix("[]") for _, inner in kind.parts]
    return sorted(found)


def _domain(name: str, source: model.Catalog, target: model.Catalog) -> Iterable[Said]:
    ours, theirs = source.own_type(name), target.own_type(name)
    if ours is None or theirs is None or ours.parts != theirs.parts:
        return  # the columns of this type are a problem already
    missing, extra = _apart(ours.checks, theirs.checks)
    casts = not _printed_alike(source, target)
    _paired(missing, extra, {rule: _loosened(rule, casts=casts) for rule in (*missing, *extra)})
    for rule in missing:
        yield problem(f"domain {name} lacks {rule} on the target, which will accept values that break it")
    for rule in extra:
        yield note(f"domain {name} has {rule} on the target only, which may reject writes")


# -- the journal of the schema --------------------------------------------------------------------


def _migrations(name: str, source: model.Catalog, target: model.Catalog) -> model.Check:
    title = f"The same migrations in {name}"
    if source.migrations is None or target.migrations is None:
        return check("migrations", title, 0, _unread(name, source, target))
    ours = {each.name: each for each in source.migrations}
    theirs = {each.name: each for each in target.migrations}
    done, arrived = ({each.name for each in side.values() if each.finished} for side in (ours, theirs))
    said = [
        *(
            problem(f"migration {each} is not done on the target: its schema is older than the source's")
            for each in sorted(done - arrived)
        ),
        *(
            problem(f"migration {each} has another content on the target than on the source")
            for each in sorted(done & arrived)
            if ours[each].checksum != theirs[each].checksum
        ),
        *_half_done(ours, theirs),
    ]
    if ahead := sorted(arrived - done):
        said.append(note(f"the target has {words.count(len(ahead), 'migration')} that the source lacks: {few(ahead)}"))
    return check("migrations", title, len(done), said)


def _half_done(ours: dict[str, model.Migration], theirs: dict[str, model.Migration]) -> Iterable[Said]:
    for each in theirs.values():
        ours_done = ours[each.name].finished if each.name in ours else None
        if each.finished or ours_done:
            continue
        if ours_done is None:
            yield problem(f"migration {each.name} did not finish on the target, and no later one will be deployed")
        else:
            yield note(f"migration {each.name} did not finish on either side")


def _unread(name: str, source: model.Catalog, target: model.Catalog) -> Iterable[Said]:
    if source.table(name) is None and target.table(name) is None:
        yield note(f"neither side has {name}")
        return
    for catalog in (source, target):
        if catalog.migrations is None:
            may = "has none" if catalog.table(name) is None else f"does not let {catalog.user} read it"
            yield unlooked(f"{name} was not compared: the {catalog.endpoint.role} {catalog.endpoint.label} {may}")
