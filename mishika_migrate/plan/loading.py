"""How history is loaded: a table in which ranges, and without which of its indexes. Pure.

Imports history, findings and the words. Pages are what every table has, whatever its key; a TID range scan
reads just them (PostgreSQL 14 and later: before that it reads the whole table for every range).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from mishika_migrate import model
from mishika_migrate.findings import qualified, quoted, warn
from mishika_migrate.plan import history

_RANGES_SINCE = 14_00_00

# Below this, keeping the indexes up to date costs less than a stage more.
_WORTH_DEFERRING = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """`batch` is about how many bytes of the source one step copies, TOAST counted.

    `defer` says when indexes are built after the load: `auto` means for an empty table and a load
    of more than 32 MB. `span` is the part of the request log that is asked for. With `newest` the end
    of a table goes before its beginning: rows are written in the order of their time.
    """

    batch: int = 64 * 1024 * 1024
    defer: Literal["auto", "always", "never"] = "auto"
    span: history.Span | None = None
    newest: bool = False


def cut(
    step: model.CopyTable,
    origin: model.Table,
    place: model.Table,
    *,
    version: int,
    batch: int,
    spread: Sequence[datetime] = (),
) -> tuple[model.CopyTable, ...]:
    """The step in parts of about `batch` bytes; a small table stays whole.

    Leaves of a partitioned table are read one by one and written to the root. The last range of
    each has no upper end, so that no page that exists when the snapshot is taken is missed. A
    table that references itself stays whole too: one COPY checks that at its end, when all rows
    are there. `spread` is what is known of the times of a table of which an interval is asked for.
    """
    itself = any(key.references == place.name for key in place.foreign_keys)
    if itself or not origin.pieces or not all(piece.readable for piece in origin.pieces):
        return (step,)
    if by_time := history.slices(step, origin, spread, batch=batch):
        return by_time
    leaves = [_leaf(step, piece) if origin.partitioned else step for piece in origin.pieces]
    return tuple(
        part for leaf, piece in zip(leaves, origin.pieces, strict=True) for part in _ranges(leaf, piece, version, batch)
    )


def _leaf(step: model.CopyTable, piece: model.Piece) -> model.CopyTable:
    return dataclasses.replace(
        step, source=piece.name, root=step.source, partitioned=False, rows=piece.rows, bytes=piece.bytes
    )


def _ranges(step: model.CopyTable, piece: model.Piece, version: int, batch: int) -> Iterator[model.CopyTable]:
    count = min(-(-piece.bytes // batch), piece.pages) if version >= _RANGES_SINCE else 1
    if count <= 1:
        yield step
        return
    # A page of a log table stands for its TOAST too: cut by pages, count by bytes.
    bounds = [piece.pages * n // count for n in range(count)]
    for low, high in zip(bounds, [*bounds[1:], None], strict=True):
        pages = model.PageRange(low=low, high=high)
        yield dataclasses.replace(step, pages=pages, rows=step.rows / count, bytes=step.bytes // count)


def deferrals(
    tables: Iterable[str],
    source: model.Catalog,
    target: model.Catalog,
    manner: Manner,
    existing: Mapping[str, model.Existing],
    sizes: Mapping[str, int],
) -> tuple[tuple[model.DropIndexes, ...], tuple[model.Finding, ...]]:
    """Which indexes go before the load, and a warning for each table whose indexes have to stay.

    `sizes` are the bytes that come, by table. Where rows are merged somebody may be using them, and the key itself is
    asked for every row.
    """
    steps: list[model.DropIndexes] = []
    findings: list[model.Finding] = []
    for name in tables:
        origin, place = source.table(name), target.table(name)
        if origin is None or place is None or existing[name] in ("skip", "update"):
            continue
        if not _worth(sizes.get(name, 0), place, manner, replaced=existing[name] == "replace"):
            continue
        names = tuple(index.name for index in place.indexes if index.droppable)
        # To build an index takes CREATE on the schema, which owners of tables have not by themselves since 15.
        if names and not ("OWNER" in place.privileges and (target.may_create_in_schema or not target.schema_exists)):
            findings.append(_kept(place, target))
        elif names:
            steps.append(
                model.DropIndexes(target=model.TableName(schema=target.endpoint.schema, name=name), names=names)
            )
    return tuple(steps), tuple(findings)


def _worth(size: int, place: model.Table, manner: Manner, *, replaced: bool) -> bool:
    # An index of a partitioned table is one of each leaf; those are kept up to date.
    if manner.defer == "never" or place.partitioned:
        return False
    return manner.defer == "always" or ((replaced or place.occupied is False) and size > _WORTH_DEFERRING)


def _kept(place: model.Table, target: model.Catalog) -> model.Finding:
    if "OWNER" in place.privileges:
        schema = target.endpoint.schema
        why = f"may create nothing in schema {schema} of"
        fix = f"GRANT CREATE ON SCHEMA {quoted(schema)} TO {quoted(target.user)};"
    else:
        why = f"does not own {place.name} on"
        fix = f"ALTER TABLE {qualified(place.name, target)} OWNER TO {quoted(target.user)};"
    return warn(
        "indexes-kept",
        place.name,
        f"{target.user} {why} the target {target.endpoint.label}, so the indexes of {place.name} stay in place and make"
        " the load up to three times slower",
        fix,
    )


def rebuilding(deferred: Sequence[model.DropIndexes]) -> tuple[model.Stage, ...]:
    """The two stages that put everything back: builds many at once, then what needs a table alone."""
    builds = tuple(model.BuildIndex(target=step.target, name=name) for step in deferred for name in step.names)
    restores = tuple(model.RestoreIndexes(target=step.target, names=step.names) for step in deferred)
    return (
        model.Stage(name="indexes", title="building indexes", atomic=False, steps=builds),
        model.Stage(name="indexes", title="restoring constraints", atomic=False, steps=restores),
    )
