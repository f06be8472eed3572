"""What a proof says in words: the same ones on a terminal, in Markdown, in JUnit and in annotations.

Imports the words only. What comes back is plain text; names of rows and keys in it are still raw,
`line` makes them fit for one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mishika_migrate import model, words

_WEIGHTS: Final[tuple[model.Weight, ...]] = ("error", "warning", "note")
_OUTCOMES: Final[dict[model.Outcome, str]] = {
    "unchanged": "continues unchanged",
    "lost": "would be refused",
    "opened": "would become unlimited",
    "revived": "revoked on the source, alive on the target",
    "changed": "would be decided otherwise",
    "moved": "differs in spend only",
}
_KINDS: Final[dict[model.Kind, str]] = {
    "source-only": "only on the source",
    "target-only": "only on the target",
    "differs": "differs",
}
# For reasons of which no key is listed; else the keys' own messages say it, which come from the matrix.
_MEANINGS: Final = {
    "missing": "calls with it will be refused",
    "extra": "revoked on the source, it is alive on the target",
    "unparseable": "calls with it will be refused",
}
_LONGEST: Final = 400
_ENDING: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The keys of one reason. `count` is exact; `members` are those that are listed, with that reason."""

    code: str
    weight: model.Weight
    count: int
    members: tuple[tuple[model.Verdict, model.Reason], ...]

    @property
    def title(self) -> str:
        """`2 keys fail open: the team's block no longer holds`, as far as it can be said of all of them."""
        fails = "" if not self.opens else " fails open" if self.count == 1 else " fail open"
        messages = self.by_message
        means = _MEANINGS.get(self.code, "") if not messages else next(iter(messages)) if len(messages) == 1 else ""
        return f"{words.count(self.count, 'key')}{fails}{f': {means}' if means else ''}"

    @property
    def opens(self) -> bool:
        """Whether the proxy misses the row without an error and the limit in it with it (`matrix.Join.missing`)."""
        return self.code.endswith("-missing")

    @property
    def by_message(self) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
        """Keys and the fields that differ, under what is said of all of them."""
        found: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        for verdict, reason in self.members:
            found.setdefault(reason.message, []).append((verdict.key, reason.fields))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Something that was not checked. `open` ones keep the proof from being one; `remedy` says what to do."""

    what: str
    why: str = ""
    remedy: str = ""
    open: bool = False


def line(text: str, most: int = _LONGEST) -> str:
    """Fit for one line: no control characters, and of a long text both ends, as a key's digits are the last."""
    if len(text) > most:
        text = f"{text[: most - _ENDING]}…{text[-_ENDING:]}"
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def verdict(proof: model.Proof) -> str:
    """`equal`, `sampled`, `different` or `unproven`: a sample is never called equal."""
    if proof.state == "ok":
        return "sampled" if sampled(proof) else "equal"
    return "different" if proof.state == "different" else "unproven"


def headline(proof: model.Proof) -> str:
    """The verdict in one line, also where only checks were made."""
    if proof.state == "ok" and not compares(proof):
        return f"Passed: {words.count(len(proof.checks), 'check')}."
    return proof.headline


def compares(proof: model.Proof) -> bool:
    """Whether two sides were compared: `probe` asks one alone."""
    return bool(proof.source)


def sampled(proof: model.Proof) -> bool:
    shares = [proof.sample, *(content.sampled for content in proof.contents), proof.keys and proof.keys.sampled]
    return any(share is not None for share in shares)


def percent(share: float) -> str:
    """`1 %`, `0.05 %`."""
    return f"{share * 100:.3g} %"


def when(proof: model.Proof) -> str:
    """`2026-07-01 12:00:03 UTC`."""
    return f"{proof.at[:19].replace('T', ' ')} UTC"


def how(proof: model.Proof) -> str:
    """`every value, by the fast hash`; `only the rows' keys`; `only counts`."""
    if not compares(proof):
        return "checks only"
    if proof.level == "counts":
        return "only counts"
    what = "every value" if proof.level == "content" else "only the rows' keys"
    share = f" of a sample of {percent(proof.sample)}" if proof.sample is not None else ""
    return f"{what}{share}, by the {proof.method} hash"


# -- tables ---------------------------------------------------------------------------------------


def amounts(content: model.Content) -> str:
    """`3 only on the source, 2 only on the target, 1 differs`."""
    if content.level == "counts":
        return f"{words.count(content.rows_source, 'row')} on the source, {content.rows_target:,} on the target"
    parts = (
        (content.source_only, f"{content.source_only:,} only on the source"),
        (content.target_only, f"{content.target_only:,} only on the target"),
        (content.differing, f"{content.differing:,} {'differs' if content.differing == 1 else 'differ'}"),
    )
    return ", ".join(told for number, told in parts if number)


def fate(difference: model.Difference) -> str:
    """What is with the row: `differs in a, b`, `only on the source`."""
    columns = f" in {', '.join(difference.columns)}" if difference.columns else ""
    many = f", {difference.copies:,} times" if difference.copies > 1 else ""
    return f"{_KINDS[difference.kind]}{columns}{many}"


def equal(proof: model.Proof) -> str:
    """`The same on both sides: 15 tables, 1,234 rows.`; empty without such tables."""
    same = [content for content in proof.contents if content.state == "ok"]
    if not same:
        return ""
    what = {"content": "The same on both sides", "keys": "The same keys", "counts": "The same counts"}[proof.level]
    if sampled(proof):
        what = "No difference in the sample"
    rows = words.count(sum(content.rows_source for content in same), "row")
    return f"{what}: {words.count(len(same), 'table')}, {rows}."


def more(listed: int, shown: int, total: int) -> str:
    """What a list leaves out; empty when that is nothing. Of `total`, `listed` are known by name."""
    if total <= shown:
        return ""
    left = f"and {total - shown:,} more, not listed"
    if shown >= listed:
        return left
    rest = "all" if listed == total else f"{listed - shown:,}"
    return f"{left} here; {rest} of them with --report FILE"


# -- keys -----------------------------------------------------------------------------------------


def outcome(verdict: model.Verdict) -> str:
    return _OUTCOMES[verdict.outcome]


def weight(keys: model.Keys, code: str) -> model.Weight:
    """A reason without one does not make the proof fail (`Keys.state`)."""
    return keys.weights.get(code, "warning")


def groups(keys: model.Keys) -> tuple[Group, ...]:
    """The reasons that occur, errors first, else in the order in which they are known."""
    codes = [code for code in {**keys.weights, **keys.reasons} if keys.reasons.get(code)]
    found = (
        Group(
            code=code,
            weight=weight(keys, code),
            count=keys.reasons[code],
            members=tuple((each, why) for each in keys.verdicts for why in each.reasons if why.code == code),
        )
        for code in codes
    )
    return tuple(sorted(found, key=lambda group: _WEIGHTS.index(group.weight)))


def bad(verdict: model.Verdict) -> bool:
    return any(reason.weight == "error" for reason in verdict.reasons)


# -- what was not checked, and the rest -----------------------------------------------------------


def gaps(proof: model.Proof) -> tuple[Gap, ...]:
    """Everything that was asked for or might be expected, and was not looked at; the open ones first."""
    found = [*_unmade(proof), *_narrowed(proof), *_columns(proof)]
    return tuple(sorted(found, key=lambda gap: not gap.open))


def _unmade(proof: model.Proof) -> Iterable[Gap]:
    for check in proof.unchecked:
        open_ = check in proof.unproven
        part = " (in part)" if check.looked else ""
        yield Gap(
            what=f"{check.code}: {check.title}{part}",
            why=check.why_not,
            remedy=f"To accept that: --allow-unchecked {check.code}" if open_ else "Accepted by --allow-unchecked.",
            open=open_,
        )


def _narrowed(proof: model.Proof) -> Iterable[Gap]:
    if not compares(proof):
        return
    if not proof.contents:
        yield Gap(what="No table was compared.")
    if sampled(proof):
        share = "" if proof.sample is None else f" of {percent(proof.sample)}"
        yield Gap(
            what=f"Only a sample{share} was compared: it says nothing about the other rows.",
            remedy="To compare all rows: leave out --sample.",
        )
    if proof.level != "content":
        what = "Rows were only counted." if proof.level == "counts" else "Only the keys of rows were compared."
        yield Gap(what=f"{what} Their values may differ.", remedy="To compare values: --level content.")
    if proof.keys is None:
        yield Gap(what="Virtual keys got no verdict.", why="It was not asked for, or the matrix describes no keys.")
    for content in proof.contents:
        if content.within:
            yield Gap(what=f"{content.table}: only rows of {content.within} were compared.")


def _columns(proof: model.Proof) -> Iterable[Gap]:
    for content in proof.contents:
        if content.not_compared:
            yield Gap(what=f"{content.table}: not on both sides, so not compared: {', '.join(content.not_compared)}")


def merged(proof: model.Proof) -> list[str]:
    """What was proven of tables whose rows were merged into the target's, and how many rows are the target's own."""
    how = {"skip": "by its primary key alone", "update": "with equal values"}
    return [
        f"{content.table}: rows were merged (--on-existing {content.existing}); every row of the source is there"
        f" {how[content.existing]}, and {words.count(content.extra, 'row')} of the target's own"
        for content in proof.contents
        if content.existing in how and content.state == "ok"
    ]


def notes(proof: model.Proof) -> tuple[str, ...]:
    """What is worth a line and no difference."""
    found = [
        f"{content.table}: {words.count(content.in_flight, 'row')} in flight (equal when read again)"
        for content in proof.contents
        if content.in_flight
    ]
    found += merged(proof)
    if proof.keys is not None:
        if proof.keys.in_flight:
            found.append(f"{words.count(proof.keys.in_flight, 'key')} in flight (equal when read again)")
        found += proof.keys.notes
    return (*found, *(f"{check.code}: {note}" for check in proof.checks for note in check.notes))
