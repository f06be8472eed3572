"""The verdict about every key: does the application decide the same about it on both sides?

Imports pg, comparing, verdicts, matrix and the words.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mishika_migrate import matrix, model, words
from mishika_migrate.pg import connect, digest, keys, sides
from mishika_migrate.proof import comparing, verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """How the keys of two servers are compared. `names` are columns by which people recognise a key."""

    ring: model.Keyring
    look: digest.Look
    names: tuple[str, ...]


def question(
    rules: matrix.Matrix,
    source: model.Catalog,
    target: model.Catalog,
    *,
    method: model.Method,
    share: float,
) -> Question | None:
    """None where the matrix describes no keys, or a side has no table of them."""
    ring = comparing.narrowed(rules.keys, source, target) if rules.keys else None
    if ring is None:
        return None
    shapes = comparing.shapes(rules, ring, source, target)
    what = comparing.of_keys(ring, source, target, shapes)
    names = _names(rules, ring, source, target)
    look = digest.Look(
        what=what,
        method=method,
        share=share,
        relations={role: keys.relation(ring, what, shapes, role, names=names) for role in sides.ROLES},
    )
    return Question(ring=ring, look=look, names=names)


def _names(rules: matrix.Matrix, ring: model.Keyring, source: model.Catalog, target: model.Catalog) -> tuple[str, ...]:
    entry, origin, place = rules.entry(ring.table), source.table(ring.table), target.table(ring.table)
    assert origin is not None and place is not None, "narrowed() keeps what both have"
    return tuple(name for name in (entry.names if entry else ()) if origin.column(name) and place.column(name))


@dataclass(slots=True)
class Tally:
    """Counts all verdicts that are not `unchanged`, and keeps the first ones."""

    most: int
    outcomes: Counter[model.Outcome] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    kept: list[model.Verdict] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def add(self, place: int, verdict: model.Verdict) -> None:
        self.outcomes[verdict.outcome] += 1
        self.reasons.update({reason.code for reason in verdict.reasons})  # a key of two lost budgets is one
        if len(self.places) < REREAD:
            self.places.append(place)
        if self.outcomes[verdict.outcome] <= self.most:  # of each kind, so that the worst are among them
            self.kept.append(verdict)

    @property
    def total(self) -> int:
        return sum(self.outcomes.values())


REREAD = 10_000
"""How many rows or keys that differ are remembered, so that they can be read again."""


def inspect(
    asked: Question, both: sides.Both, *, fenced: bool, most: int, samples: Sequence[tuple[str, str]] = ()
) -> tuple[model.Keys, Tally]:
    """All keys of both sides. `samples` are pairs of a name and a token's hash, which get a verdict each."""
    began = time.monotonic()
    look, what = asked.look, f"table {asked.look.what.table}"
    found = Tally(most=most)
    ours, theirs = both.ask(lambda session, role: digest.sums(session, look, role), what)
    buckets = digest.differing(ours, theirs)
    if buckets:
        _judge(asked, both, found, fenced=fenced, wanted=digest.among(look, buckets))
    (total, here), (_, there) = both.ask(lambda session, role: keys.faults(session, look, role), what)
    result = _counted(
        model.Keys(
            total=digest.total(ours) if look.share < 1 else total,
            outcomes={},
            weights=verdicts.weights(asked.ring, fenced=fenced),
            notes=_alike(asked.ring, here, there),
            sampled=look.share if look.share < 1 else None,
            seconds=time.monotonic() - began,
        ),
        found,
    )
    return sampled(asked, both, result, samples, fenced=fenced), found


def lenient(found: model.Keys) -> model.Keys:
    """Where rows were merged: what only the target has was there before, so that it decides is a warning."""

    def weight(code: str, before: model.Weight) -> model.Weight:
        return "warning" if code == "extra" or code.endswith("-extra") else before

    return dataclasses.replace(
        found,
        weights={code: weight(code, before) for code, before in found.weights.items()},
        verdicts=tuple(
            dataclasses.replace(
                verdict,
                reasons=tuple(dataclasses.replace(why, weight=weight(why.code, why.weight)) for why in verdict.reasons),
            )
            for verdict in found.verdicts
        ),
    )


def again(asked: Question, both: sides.Both, before: Tally, *, fenced: bool) -> Tally:
    """The same for those keys alone that differed, in newer snapshots."""
    found = Tally(most=before.most)
    _judge(asked, both, found, fenced=fenced, wanted=digest.at(before.places))
    return found


def settled(before: model.Keys, found: Tally) -> model.Keys:
    """After they were read again: what differs no more was in flight."""
    bad = sum(count for outcome, count in before.outcomes.items() if outcome != "unchanged")
    return dataclasses.replace(_counted(before, found), in_flight=before.in_flight + bad - found.total)


def _counted(result: model.Keys, found: Tally) -> model.Keys:
    """The result with these verdicts, and the others unchanged."""
    extra = found.outcomes["revived"]  # the source does not know them
    return dataclasses.replace(
        result,
        outcomes={"unchanged": result.total - found.total + extra, **found.outcomes},
        reasons=dict(found.reasons),
        verdicts=tuple(sorted(found.kept, key=_worst_first)[: found.most]),
    )


_ORDER: tuple[model.Outcome, ...] = ("lost", "revived", "opened", "changed", "moved", "unchanged")


def _worst_first(verdict: model.Verdict) -> tuple[int, str]:
    return _ORDER.index(verdict.outcome), verdict.key


def _judge(asked: Question, both: sides.Both, found: Tally, *, fenced: bool, wanted: digest.Condition) -> None:
    for place, ours, theirs in _side_by_side(*(_decisions(asked, both, role, wanted) for role in sides.ROLES)):
        judged = [verdicts.judge(asked.ring, *pair, fenced=fenced) for pair in _unlike(ours, theirs)]
        verdict = min(judged, key=_worst_first, default=None)
        if verdict is not None and verdict.outcome != "unchanged":
            found.add(place, verdict)


def _unlike(
    ours: Sequence[model.Decision], theirs: Sequence[model.Decision]
) -> Iterator[tuple[model.Decision | None, model.Decision | None]]:
    """What is decided on one side only, with all that the other decides: of a row that is there twice it is two."""
    known: tuple[Sequence[model.Decision | None], ...] = (ours or (None,), theirs or (None,))
    for one, other in itertools.product(*known):
        if one not in theirs or other not in ours:
            yield one, other


def _decisions(
    asked: Question, both: sides.Both, role: model.Role, wanted: digest.Condition
) -> Iterator[model.Decision]:
    session = both.sessions[role]
    with connect.translated(both.end(role), f"table {asked.look.what.table}"):
        yield from keys.decisions(session, asked.look, role, names=asked.names, wanted=wanted)


def _side_by_side(
    ours: Iterator[model.Decision], theirs: Iterator[model.Decision]
) -> Iterator[tuple[int, list[model.Decision], list[model.Decision]]]:
    """Both sides' decisions about one key at a time; both come ordered by place."""
    one, other = next(ours, None), next(theirs, None)
    while one is not None or other is not None:
        place = min(each.place for each in (one, other) if each is not None)
        left, one = _take(ours, one, place)
        right, other = _take(theirs, other, place)
        for token in dict.fromkeys(each.token for each in (*left, *right)):
            yield place, [each for each in left if each.token == token], [each for each in right if each.token == token]


def _take(
    decisions: Iterator[model.Decision], one: model.Decision | None, place: int
) -> tuple[list[model.Decision], model.Decision | None]:
    taken = []
    while one is not None and one.place == place:
        taken.append(one)
        one = next(decisions, None)
    return taken, one


def _alike(ring: model.Keyring, ours: Mapping[str, int], theirs: Mapping[str, int]) -> tuple[str, ...]:
    """What the application cannot read on either side: no difference, but worth knowing."""
    found = ((ring.table_of(name[:-1]), min(count, theirs[name])) for name, count in ours.items())
    return tuple(
        f"{words.count(count, 'key')} cannot be used on either side: the application cannot read its row of {table}"
        for table, count in found
        if count
    )


def sampled(
    asked: Question, both: sides.Both, result: model.Keys, samples: Sequence[tuple[str, str]], *, fenced: bool
) -> model.Keys:
    """The result with a verdict about each of the samples, as both sides are seen now."""
    if not samples:
        return result
    wanted = keys.having([token for _, token in samples])
    ours, theirs = (
        {decision.token: decision for decision in _decisions(asked, both, role, wanted)} for role in sides.ROLES
    )
    judged = tuple(
        _sample(asked.ring, name, ours.get(token), theirs.get(token), fenced=fenced) for name, token in samples
    )
    return dataclasses.replace(result, samples=judged)


def _sample(
    ring: model.Keyring, name: str, ours: model.Decision | None, theirs: model.Decision | None, *, fenced: bool
) -> model.Verdict:
    if ours is None and theirs is None:
        says = "neither side knows it, so calls with it are refused on both (401)"
        reason = model.Reason(code="unknown", weight="error", message=says)
        return model.Verdict(key=name, outcome="lost", reasons=(reason,))
    return verdicts.judge(ring, ours, theirs, fenced=fenced)
