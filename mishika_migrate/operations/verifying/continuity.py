"""The rest of continuity, beyond rows and keys: what else must be on the target for the application to go on.

Imports structure, selection, pg, matrix and the words.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mishika_migrate import errors, matrix, model, words
from mishika_migrate.findings import few, major
from mishika_migrate.pg import connect, continuity, survey
from mishika_migrate.plan import selection
from mishika_migrate.proof import structure

_T = TypeVar("_T")
_CANCELED = "57014"
_DENIED = "42501"
_WHOLE = frozenset({"smallint", "integer", "bigint"})


def inspect(
    rules: matrix.Matrix,
    source: model.Catalog,
    target: model.Catalog,
    tables: Sequence[str],
    sessions: Mapping[model.Role, connect.Session],
    *,
    view_seconds: float = 30.0,
) -> tuple[model.Check, ...]:
    """All checks but those of content and keys, of these tables of both sides.

    Each session is inside an open read-only transaction, whose snapshot is read and which stays usable;
    its `lock_timeout` bounds the wait for a table that somebody else has locked, `view_seconds` that for
    a view. Raises `errors.ServerError` only for a session that is lost; what a server denies is left unchecked.
    """
    sides = _Sides(
        ours=_Side(catalog=source, session=sessions["source"]),
        theirs=_Side(catalog=target, session=sessions["target"]),
        tables=tuple(tables),
    )
    return (
        *structure.inspect(rules, source, target, tables),
        _obstacles(sides),
        _foreign_keys(sides),
        _soft_references(rules, sides),
        _sequences(sides),
        _views(rules, sides, view_seconds),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    catalog: model.Catalog
    session: connect.Session

    def name(self, bare: str) -> model.TableName:
        return model.TableName(schema=self.catalog.endpoint.schema, name=bare)

    def asked(self, ask: Callable[[], _T]) -> _T:
        """The answer of the server's own catalog, which every role may read."""
        with connect.translated(self.catalog.endpoint), continuity.aside(self.session):
            return ask()

    def tried(self, ask: Callable[[], _T], *, seconds: float | None = None) -> _T | errors.ServerError:
        """The answer, or the server's reason not to give one, such as that the time is over.

        Raises when the session is gone, and when somebody else cancelled what it was at.
        """
        began = time.monotonic()
        try:
            return self.asked(ask)
        except errors.ServerError as error:
            over = seconds is not None and time.monotonic() - began >= seconds
            if error.sqlstate is None or self.session.closed or (error.sqlstate == _CANCELED and not over):
                raise
            return error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sides:
    ours: _Side
    theirs: _Side
    tables: tuple[str, ...]

    def __iter__(self) -> Iterator[_Side]:
        return iter((self.ours, self.theirs))


def _standing_before(side: _Side, tables: Sequence[str]) -> set[tuple[str, str]]:
    return side.asked(lambda: continuity.obstacles(side.session, side.catalog.endpoint.schema, tables))


def _obstacles(sides: _Sides) -> model.Check:
    """What the target alone has: with it the application reads or writes other rows than before."""
    ours, theirs = (_standing_before(side, sides.tables) for side in sides)
    said = [structure.problem(f"{table} of the target has {what}, the source's has not") for table, what in
            sorted(theirs - ours)]  # fmt: skip
    said += [structure.note(f"{table} of the source has {what}, the target's has not") for table, what in
             sorted(ours - theirs)]  # fmt: skip
    title = "No trigger, rule or row security comes between the application and its rows"
    return structure.check("obstacles", title, len(sides.tables), said)


# -- foreign keys ---------------------------------------------------------------------------------


def _foreign_keys(sides: _Sides) -> model.Check:
    ours, keys = (_keys(side, sides.tables) for side in sides)
    known = {_link(key, sides.ours): key for key in ours}
    said: list[structure.Said] = []
    for key in keys:
        said.extend(_foreign_key(key, sides))
        if (twin := known.get(_link(key, sides.theirs))) is not None:
            said.extend(_manner(key, twin))
    return structure.check("foreign-keys", "Every foreign key of the target holds", len(keys), said)


def _keys(side: _Side, tables: Sequence[str]) -> tuple[continuity.Key, ...]:
    return side.asked(lambda: continuity.keys(side.session, side.catalog.endpoint.schema, tables))


def _link(key: continuity.Key, side: _Side) -> tuple[object, ...]:
    """What it binds; its name does not count, nor that of the schema."""
    return (_bare(key.child, side), key.columns, _bare(key.parent, side), key.referenced)


def _bare(table: model.TableName, side: _Side) -> str:
    return table.name if table.schema == side.catalog.endpoint.schema else str(table)


def _foreign_key(key: continuity.Key, sides: _Sides) -> Iterable[structure.Said]:
    child, parent = (_bare(table, sides.theirs) for table in (key.child, key.parent))
    told = f"foreign key {key.name} of {child} ({', '.join(key.columns)}) to {parent}"
    found = sides.theirs.tried(lambda: continuity.broken(sides.theirs.session, key))
    if isinstance(found, errors.ServerError):
        yield structure.unlooked(f"{told}: {found.message}")
    elif found:
        yield structure.problem(
            f"{told} does not hold on the target: {words.count(found, 'row')} of {child}"
            f" {'names' if found == 1 else 'name'} no row of {parent}; {_as_many(key, sides)}"
        )
    if not key.active:
        yield structure.problem(f"{told} is switched off on the target, which will accept rows that break it")
    elif not key.valid:
        yield structure.note(f"{told} is NOT VALID on the target; its rows were looked at here")


def _as_many(key: continuity.Key, sides: _Sides) -> str:
    """What the source says to the same question, whether or not it has that foreign key."""
    child, parent = (
        sides.ours.name(table.name) if table.schema == sides.theirs.catalog.endpoint.schema else table
        for table in (key.child, key.parent)
    )
    parts = [
        (found := sides.ours.catalog.table(each.name)) is not None and found.partitioned for each in (child, parent)
    ]
    twin = dataclasses.replace(key, child=child, parent=parent, wholes=(parts[0], parts[1]))
    count = sides.ours.tried(lambda: continuity.broken(sides.ours.session, twin))
    if isinstance(count, errors.ServerError):
        return "the source could not be asked"
    return f"the source has {words.count(count, 'such row') if count else 'none'}"


def _manner(key: continuity.Key, twin: continuity.Key) -> Iterable[structure.Said]:
    if key.manner != twin.manner:
        yield structure.problem(
            f"foreign key {key.name} of {key.child.name} ({', '.join(key.columns)}) is {twin.manner} on the source and"
            f" {key.manner} on the target: changes of {key.parent.name} will end otherwise"
        )


# -- soft references ------------------------------------------------------------------------------

Dangling = dict[tuple[str, str, str], int]
"""Of every pointer that was followed (table, column, referenced table), how many rows dangle."""


def _soft_references(rules: matrix.Matrix, sides: _Sides) -> model.Check:
    found = [_dangling(rules, side, sides.tables) for side in sides]
    said = [structure.unlooked(each.message) for each in found if isinstance(each, errors.ServerError)]
    looked = 0
    if not said:
        ours, theirs = (each for each in found if isinstance(each, dict))
        references = _references(rules, sides)
        looked = len(references)
        said = [each for table, reference in references for each in _soft_reference(table, reference, ours, theirs)]
    return structure.check("soft-references", "Rows that are named without a foreign key are there", looked, said)


def _references(rules: matrix.Matrix, sides: _Sides) -> list[tuple[str, matrix.SoftReference]]:
    """Those that both sides have the column for. History's point at what was deleted since, which is no fault."""
    return [
        (entry.table, reference)
        for entry in rules.entries
        if entry.table in sides.tables and entry.stage == "core"
        for reference in entry.references
        if all(_holds(side.catalog.table(entry.table), reference) for side in sides)
    ]


def _holds(table: model.Table | None, reference: matrix.SoftReference) -> bool:
    column = table.column(reference.column) if table else None
    return column is not None and column.type.endswith("[]") == reference.each


def _dangling(rules: matrix.Matrix, side: _Side, tables: Sequence[str]) -> Dangling | errors.ServerError:
    # As if all were selected: what another table lacks is asked, however large it is, not inferred from the selection.
    whole = dataclasses.replace(
        side.catalog, tables=tuple(dataclasses.replace(table, bytes=0) for table in side.catalog.tables)
    )
    chosen = tuple(model.Chosen(table=each.name, stage="core", reason="", rows=0, bytes=0) for each in whole.tables)
    asked, _, _ = selection.questions(rules, whole, model.Selection(chosen=chosen, left=(), findings=()))
    pointers = [pointer for pointer in asked if pointer.table in tables]
    found = side.tried(lambda: survey.dangling(side.session, side.catalog.endpoint.schema, pointers))
    if isinstance(found, errors.ServerError):
        return found
    counts = {(each.table, each.column, each.references): each.rows for each in found}
    return {at: counts.get(at, 0) for at in ((each.table, each.column, each.references) for each in pointers)}


def _soft_reference(
    table: str, reference: matrix.SoftReference, ours: Dangling, theirs: Dangling
) -> Iterable[structure.Said]:
    at = (table, reference.column, reference.table)
    told = f"{table}.{reference.column}"
    if at not in ours or at not in theirs:
        side = "target" if at in ours else "source"
        yield structure.unlooked(f"{told} was not followed to {reference.table}: the {side} does not let it be read")
    elif theirs[at] > ours[at]:
        opens = f": {reference.opens} no longer holds for them" if reference.opens else ""
        yield structure.problem(
            f"{words.count(theirs[at], 'value')} of {told} {'names' if theirs[at] == 1 else 'name'} no row of"
            f" {reference.table} on the target, {ours[at]:,} on the source{opens}"
        )
    elif theirs[at]:
        yield structure.note(
            f"{words.count(theirs[at], 'value')} of {told} {'names' if theirs[at] == 1 else 'name'} no row of"
            f" {reference.table} on the target, and {ours[at]:,} on the source"
        )


# -- sequences ------------------------------------------------------------------------------------


def _sequences(sides: _Sides) -> model.Check:
    pairs = [
        (each, _twin(each, sides.ours.catalog))
        for each in sides.theirs.catalog.sequences
        if each.table is None or each.table in sides.tables
    ]
    said = [each for sequence, twin in pairs for each in _sequence(sequence, twin, sides)]
    for sequence in sides.ours.catalog.sequences:
        if sequence.table in (None, *sides.tables) and _twin(sequence, sides.theirs.catalog) is None:
            said.extend(_lacking(sequence, sides.ours.catalog))
    return structure.check(
        "sequences", "Sequences are ahead of the rows, and not behind the source's", len(pairs), said
    )


def _twin(sequence: model.Sequence, catalog: model.Catalog) -> model.Sequence | None:
    """The other side's sequence of the same column, whatever it is called; one of no column by its name."""
    if sequence.table is None:
        return next((each for each in catalog.sequences if each.table is None and each.name == sequence.name), None)
    owner = (sequence.table, sequence.column)
    return next((each for each in catalog.sequences if (each.table, each.column) == owner), None)


def _lacking(sequence: model.Sequence, source: model.Catalog) -> Iterable[structure.Said]:
    if sequence.table is None:
        yield structure.note(f"sequence {sequence.name}, which belongs to no column, is on the source only")
        return
    table = source.table(sequence.table)
    column = table.column(sequence.column or "") if table else None
    if column is not None and not column.identity and "nextval(" not in (column.default or ""):
        # Else the column's default is a problem already.
        yield structure.problem(f"the target has no sequence for {sequence.table}.{sequence.column}")


def _sequence(sequence: model.Sequence, twin: model.Sequence | None, sides: _Sides) -> Iterable[structure.Said]:
    owner = f" of {sequence.table}.{sequence.column}" if sequence.table else ""
    told = f"sequence {sequence.name}{owner}"
    here = _standing(sequence, sides.theirs)
    if isinstance(here, errors.ServerError):
        yield structure.unlooked(f"{told}: {here.message}")
        return
    there = _standing(twin, sides.ours) if twin else None
    if isinstance(there, errors.ServerError):
        yield structure.unlooked(f"{told}: {there.message}")
        there = None
    reached = _reached(sequence, sides.theirs, here)
    if isinstance(reached, errors.ServerError):
        yield structure.unlooked(f"{told}: {reached.message}")
        reached = None
    gives = f"{told} gives {here.next} next on the target"
    if reached is not None and not _before(reached, here.next, here):
        yield structure.problem(f"{gives}, but there are rows up to {reached}: an insert will fail or repeat a number")
    elif there is not None and there.step * here.step > 0 and _before(here.next, there.next, here):
        yield structure.problem(
            f"{gives}, the source's gives {there.next}: numbers that the source has given away will be given again"
        )


def _standing(sequence: model.Sequence, side: _Side) -> continuity.Standing | errors.ServerError:
    return side.tried(lambda: continuity.standing(side.session, side.name(sequence.name)))


def _reached(sequence: model.Sequence, side: _Side, here: continuity.Standing) -> int | errors.ServerError | None:
    name, field = sequence.table, sequence.column
    table = side.catalog.table(name) if name else None
    column = table.column(field) if table and field else None
    if table is None or column is None or column.type not in _WHOLE:
        return None
    place, called = side.name(table.name), column.name
    return side.tried(lambda: continuity.furthest(side.session, place, called, step=here.step))


def _before(one: int, other: int, standing: continuity.Standing) -> bool:
    """On the sequence's way, which may go down."""
    return one < other if standing.step > 0 else one > other


# -- views ----------------------------------------------------------------------------------------


def _views(rules: matrix.Matrix, sides: _Sides, seconds: float) -> model.Check:
    wanted = _wanted(rules, sides)
    whys = {view.name: view.why for view in rules.views}
    ours, theirs = (_defined(side) for side in sides)
    said: list[structure.Said] = []
    for name in wanted:
        if name not in theirs:
            said.append(_missing_view(name, whys.get(name, ""), sides))
            continue
        said.extend(_answer(name, theirs[name], sides.theirs, seconds))
        if name in ours:
            said.extend(_same_view(name, ours[name], theirs[name], sides))
    if ours and not _printed_alike(sides):
        said.append(structure.note("definitions of views were not compared: the servers print them otherwise"))
    return structure.check("views", "Views are there, answer and are defined alike", len(wanted), said)


def _defined(side: _Side) -> dict[str, continuity.View]:
    return side.asked(lambda: continuity.views(side.session, side.catalog.endpoint.schema))


def _wanted(rules: matrix.Matrix, sides: _Sides) -> list[str]:
    """Views of the source, and those that the application needs and whose tables the target has.

    Not those that read none of the tables which are looked at.
    """
    there = {view.name: set(view.reads) for view in sides.ours.catalog.views}
    needed = {
        view.name: set(view.reads)
        for view in rules.views
        if all(sides.theirs.catalog.table(name) for name in view.reads)
    }
    return [name for name, reads in {**there, **needed}.items() if not reads or not reads.isdisjoint(sides.tables)]


def _missing_view(name: str, why: str, sides: _Sides) -> structure.Said:
    kind = "table" if sides.theirs.catalog.table(name) else sides.theirs.catalog.kind(name)
    told = f"view {name}{f' ({why})' if why else ''} is {f'a {kind}' if kind else 'missing'} on the target"
    alike = "" if sides.ours.catalog.view(name) else " and on the source" if not kind else ""
    once = "; the application creates it only while its logs were never analyzed" if why and not kind else ""
    return structure.problem(f"{told}{alike}{once}")


def _answer(name: str, view: continuity.View, side: _Side, seconds: float) -> Iterable[structure.Said]:
    failure = side.tried(lambda: continuity.answer(side.session, side.name(name), seconds=seconds), seconds=seconds)
    if failure is None:
        return
    if failure.sqlstate == _CANCELED:
        yield structure.unlooked(f"view {name} of the target did not answer within {seconds:g} s")
    elif failure.transient or (failure.sqlstate == _DENIED and not view.open):
        yield structure.unlooked(f"view {name} of the target was not asked: {failure.message}")
    else:
        yield structure.problem(f"view {name} does not answer on the target: {failure.message}")


def _same_view(name: str, ours: continuity.View, theirs: continuity.View, sides: _Sides) -> Iterable[structure.Said]:
    one, other = sides.ours.catalog.view(name), sides.theirs.catalog.view(name)
    if one is None or other is None or one.definition == other.definition:
        return  # its columns are then those of the tables, which are compared
    here, there = dict(ours.columns), dict(theirs.columns)
    if lost := [column for column in here if column not in there]:
        yield structure.problem(f"view {name} lacks {few(lost)} on the target")
    elif changed := [column for column in here if here[column] != there[column]]:
        yield structure.problem(f"view {name} has other types on the target: {few(changed)}")
    elif not _printed_alike(sides):
        return
    elif _lines(one) == _lines(other):
        yield structure.note(f"view {name} has its columns in another order on the target")
    else:
        yield structure.problem(f"view {name} is defined otherwise on the target: it will show something else")


def _printed_alike(sides: _Sides) -> bool:
    return major(sides.ours.catalog.version) == major(sides.theirs.catalog.version)


def _lines(view: model.View) -> list[str]:
    """The server prints one column a line; `SELECT *` takes them in the table's physical order."""
    return sorted(line.strip().removeprefix("SELECT ").rstrip(",;") for line in view.definition.splitlines())
