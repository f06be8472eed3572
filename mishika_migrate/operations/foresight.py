"""What a copy would do to rows that the target has, and which of the source's could not come. Writes nothing.

Imports contents, pg, collisions, comparing, history, matrix and the words.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from mishika_migrate import matrix, model, words
from mishika_migrate.operations.verifying import contents
from mishika_migrate.pg import connect, digest, sides, uniques
from mishika_migrate.plan import history
from mishika_migrate.preflight import collisions
from mishika_migrate.proof import comparing

NAME = "mishika-migrate/plan"

_EXAMPLES = 5
_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Foresight:
    """`effects` are of all tables that have rows on the target and something to be done to them, in their order."""

    collisions: tuple[model.Collision, ...] = ()
    effects: tuple[model.Effect, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meeting:
    """Rows of one table on both sides, and what is to become of those of the target."""

    existing: model.Existing
    what: model.Comparison
    uniques: tuple[collisions.Unique, ...] = field(default=())


def look(
    rules: matrix.Matrix,
    source: model.Catalog,
    target: model.Catalog,
    selection: model.Selection,
    *,
    span: history.Span | None,
    counting: bool,
) -> Foresight:
    """Collisions always, effects when `counting`: for those all rows are read where they are updated, all keys
    where they are skipped."""
    meetings = list(_meetings(rules, source, target, selection, span))
    wanted = [each for each in meetings if counting or each.uniques]
    if not wanted:
        return Foresight()
    with sides.Sides(source.endpoint, target.endpoint, name=NAME) as seen:
        both = seen.first
        method = digest.method(both, "fast")
        found = [one for each in wanted for one in _collisions(each, both, method)]
        effects = [_effect(each, both, method) for each in wanted] if counting else []
    return Foresight(collisions=tuple(found), effects=tuple(effects))


def _meetings(
    rules: matrix.Matrix,
    source: model.Catalog,
    target: model.Catalog,
    selection: model.Selection,
    span: history.Span | None,
) -> Iterator[_Meeting]:
    """Of tables that can be looked at: what keeps from that is a finding anyway."""
    for chosen in selection.chosen:
        origin, place = source.table(chosen.table), target.table(chosen.table)
        if chosen.existing == "refuse" or origin is None or place is None or place.occupied is False:
            continue
        if not (_readable(origin, source) and _readable(place, target)):
            continue
        (what,) = comparing.of_selection(rules, source, target, [chosen.table], span=span)
        if chosen.existing == "replace":
            yield _Meeting(existing="replace", what=what)
        elif collisions.mergeable(origin, place):
            yield _Meeting(existing=chosen.existing, what=what, uniques=collisions.uniques(origin, place))


def _readable(table: model.Table, catalog: model.Catalog) -> bool:
    return catalog.may_use_schema and "SELECT" in table.privileges and not table.hidden


# -- effects --------------------------------------------------------------------------------------

_LEVELS: dict[model.Existing, model.Level] = {"replace": "counts", "skip": "keys", "update": "content"}


def _effect(meeting: _Meeting, both: sides.Both, method: model.Method) -> model.Effect:
    level = _LEVELS[meeting.existing]
    found = contents.compare(digest.Look(what=meeting.what, method=method, level=level), both, most=0).content
    replaced = meeting.existing == "replace"
    return model.Effect(
        table=meeting.what.table,
        existing=meeting.existing,
        insert=found.rows_source if replaced else found.source_only,
        update=found.differing,
        leave=0 if replaced else found.rows_target - found.differing,
        delete=found.rows_target if replaced else 0,
    )


# -- collisions -----------------------------------------------------------------------------------


def _collisions(meeting: _Meeting, both: sides.Both, method: model.Method) -> Iterator[model.Collision]:
    key = digest.Look(what=dataclasses.replace(meeting.what, within=None), method=method, level="keys")
    for unique in meeting.uniques:
        held = uniques.look(meeting.what, unique.columns, method, nulls=unique.nulls)
        rows, examples = 0, list[str]()
        for holder in _colliding(meeting, held, key, both):
            rows += 1
            if len(examples) < _EXAMPLES:
                examples.append(_shown(meeting.what, unique, holder.label))
        if rows:
            yield model.Collision(
                table=unique.table, index=unique.index, columns=unique.columns, rows=rows, examples=tuple(examples)
            )


def _colliding(meeting: _Meeting, held: digest.Look, key: digest.Look, both: sides.Both) -> Iterator[uniques.Holder]:
    what = f"table {meeting.what.table}"
    ours, theirs = both.ask(lambda session, role: digest.sums(session, held, role), what)
    buckets = digest.differing(ours, theirs)
    # A bucket of one side alone has nothing to collide with.
    buckets = tuple(bucket for bucket in buckets if bucket in ours and bucket in theirs)
    if not buckets:
        return
    found = uniques.colliding(*(_holders(both, role, held, key, buckets, what) for role in sides.ROLES))
    if meeting.existing == "update":
        yield from found
        return
    while batch := list(itertools.islice(found, _AT_ONCE)):
        # A row whose primary key is on the target already is skipped, whatever else it holds.
        with connect.translated(both.end("target"), what):
            stay = uniques.present(both.sessions["target"], key, "target", [holder.key for holder in batch])
        yield from (holder for holder in batch if holder.key not in stay)


def _holders(
    both: sides.Both,
    role: model.Role,
    held: digest.Look,
    key: digest.Look,
    buckets: tuple[int, ...],
    what: str,
) -> Iterator[uniques.Holder]:
    with connect.translated(both.end(role), what):
        yield from uniques.holders(both.sessions[role], held, key, role, buckets)


def _shown(what: model.Comparison, unique: collisions.Unique, label: tuple[str, ...]) -> str:
    """Unique values for people; of what names a token its beginning only."""
    parts = zip(unique.columns, label, strict=True)
    return ", ".join(f"{text[:8]}…" if name in what.secret else words.masked(text)[:80] for name, text in parts)
