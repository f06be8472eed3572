"""One table's rows on both sides: equal, or which rows and columns are not.

Imports pg, words and the model. Memory does not grow with the number of differences: they are streamed in
order, counted, and the first ones are kept.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mishika_migrate import model, words
from mishika_migrate.operations.verifying.keys import REREAD
from mishika_migrate.pg import connect, digest, sides


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table's comparison, and the places of what differs; None where those are too many to remember."""

    look: digest.Look
    content: model.Content
    places: tuple[int, ...] | None = ()


def compare(look: digest.Look, both: sides.Both, *, most: int) -> Table:
    """All rows, or those of the sample; at most `most` of what differs is listed."""
    began = time.monotonic()
    if look.level == "counts":
        ours, theirs = both.ask(lambda session, role: digest.count(session, look, role), _what(look))
        table = Table(look=look, content=_content(look, ours, theirs))
    else:
        here, there = both.ask(lambda session, role: digest.sums(session, look, role), _what(look))
        table = Table(look=look, content=_content(look, digest.total(here), digest.total(there)))
        if buckets := digest.differing(here, there):
            table = _differing(table, both, buckets, most)
    content = dataclasses.replace(table.content, seconds=time.monotonic() - began)
    return dataclasses.replace(table, content=content)


def again(table: Table, both: sides.Both, *, most: int) -> Table:
    """Reads what differed once more, as the sides are now; what is equal by now was in flight."""
    if not table.places:
        return table
    look, places = table.look, table.places
    ours, theirs = both.ask(lambda session, role: digest.again(session, look, role, places), _what(look))
    streams = (iter(sorted(rows, key=lambda row: row.place)) for rows in (ours, theirs))
    found = _collect(digest.compare(*streams), most, merged=look.what.merged)
    settled = table.content.different - found.different
    content = dataclasses.replace(
        _with(table.content, look, found, both), in_flight=table.content.in_flight + max(settled, 0)
    )
    return dataclasses.replace(table, content=content, places=tuple(found.places))


def _content(look: digest.Look, ours: int, theirs: int) -> model.Content:
    counted = look.level == "counts"
    return model.Content(
        table=look.what.table,
        level=look.level,
        rows_source=ours,
        rows_target=theirs,
        source_only=max(ours - theirs, 0) if counted else 0,
        target_only=max(theirs - ours, 0) if counted else 0,
        not_compared=(*look.what.only_source, *look.what.only_target) if look.level == "content" else (),
        within=str(look.what.within or ""),
        sampled=look.share if look.share < 1 and not counted else None,
        existing=look.what.existing,
    )


def _what(look: digest.Look) -> str:
    return f"table {look.what.table}"


# -- what differs ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Found:
    """Counts all, keeps the first ones. `places` are as many as can be read again."""

    source_only: int = 0
    target_only: int = 0
    differing: int = 0
    extra: int = 0
    kept: list[digest.Pair] = dataclasses.field(default_factory=list)
    places: list[int] = dataclasses.field(default_factory=list)
    pairs: int = 0

    @property
    def different(self) -> int:
        return self.source_only + self.target_only + self.differing


def _collect(pairs: Iterable[digest.Pair], most: int, *, merged: bool) -> _Found:
    """Where rows were `merged` the target's own ones are counted apart, and are nothing to be read again."""
    found = _Found()
    listed = 0
    for pair in pairs:
        if merged and not pair.ours:
            found.extra += pair.theirs
            continue
        found.source_only += pair.ours - pair.differ
        found.target_only += pair.theirs - pair.differ
        found.differing += pair.differ
        found.pairs += 1
        if found.pairs <= REREAD:
            found.places.append(pair.place)
        if listed < most:
            found.kept.append(pair)
            listed += 1
    return found


def _differing(table: Table, both: sides.Both, buckets: Sequence[int], most: int) -> Table:
    streams = (_rows(both, table.look, role, buckets) for role in sides.ROLES)
    found = _collect(digest.compare(*streams), most, merged=table.look.what.merged)
    places = tuple(found.places) if found.pairs <= REREAD else None
    return Table(look=table.look, content=_with(table.content, table.look, found, both), places=places)


def _rows(both: sides.Both, look: digest.Look, role: model.Role, buckets: Sequence[int]) -> Iterator[digest.Row]:
    with connect.translated(both.end(role), _what(look)):
        yield from digest.rows(both.sessions[role], look, role, buckets)


def _with(content: model.Content, look: digest.Look, found: _Found, both: sides.Both) -> model.Content:
    return dataclasses.replace(
        content,
        source_only=found.source_only,
        target_only=found.target_only,
        differing=found.differing,
        extra=content.extra + found.extra,
        differences=tuple(sorted(_listed(look, found.kept, both), key=lambda each: (each.kind, each.row))),
    )


def _listed(look: digest.Look, kept: Sequence[digest.Pair], both: sides.Both) -> Iterator[model.Difference]:
    names = _columns(look, [pair for pair in kept if pair.differ], both) if look.level == "content" else {}
    for pair in kept:
        row = _row(look.what, pair)
        if pair.differ:
            columns = names.get((pair.place, pair.key), ())
            yield model.Difference(row=row, kind="differs", columns=columns, copies=pair.differ)
        if pair.ours > pair.differ:
            yield model.Difference(row=row, kind="source-only", copies=pair.ours - pair.differ)
        if pair.theirs > pair.differ:
            yield model.Difference(row=row, kind="target-only", copies=pair.theirs - pair.differ)


def _row(what: model.Comparison, pair: digest.Pair) -> str:
    """A row's key for people, or its hash where it has none; never a whole token."""
    if not pair.key:
        return f"#{pair.place & 0xFFFF_FFFF_FFFF_FFFF:016x}"
    parts = zip(what.key, pair.key, strict=True)
    return ", ".join(f"{part[:8]}…" if name in what.secret else words.unkeyed(part)[:80] for name, part in parts)


def _columns(
    look: digest.Look, pairs: Sequence[digest.Pair], both: sides.Both
) -> dict[tuple[int, tuple[str, ...]], tuple[str, ...]]:
    """Of rows that are on both sides but not the same, the columns that differ."""
    if not pairs:
        return {}
    places = [pair.place for pair in pairs]
    ours, theirs = both.ask(lambda session, role: digest.columns(session, look, role, places), _what(look))
    names = [column.name for column in look.what.columns]
    return {
        at: tuple(name for name, one, other in zip(names, ours[at], theirs[at], strict=True) if one != other)
        for at in ours.keys() & theirs.keys()
    }
