"""What `verify` compares and what comes of it: comparisons, differences, verdicts, checks, the proof.

Imports plans, servers and words. Nothing in here holds a secret: keys of rows are shown, never whole tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mishika_migrate.model.answers import Existing
from mishika_migrate.model.plans import Interval
from mishika_migrate.model.servers import Role, TableName
from mishika_migrate.words import count

Level = Literal["counts", "keys", "content"]
Method = Literal["fast", "exact", "sha256"]
Kind = Literal["source-only", "target-only", "differs"]
Weight = Literal["error", "warning", "note"]
State = Literal["ok", "different", "unchecked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A column of both sides, and the type as which its values are compared.

    `cast` says that the source's type is another one, whose text the target has read.
    """

    name: str
    type: str
    cast: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One table of both sides: which columns, matched by name, and what tells its rows apart.

    Without a `key` (names of columns) rows are compared as a multiset. `only_source` and
    `only_target` are columns that the other side lacks. `partitioned` is of source and target. Values
    of `secret` columns of the key are shown by their first 8 characters only. Where rows were merged
    (`existing` skip or update), rows that only the target has are no differences.
    """

    source: TableName
    target: TableName
    columns: tuple[Compared, ...]
    key: tuple[str, ...]
    only_source: tuple[str, ...] = ()
    only_target: tuple[str, ...] = ()
    within: Interval | None = None
    partitioned: tuple[bool, bool] = (False, False)
    secret: tuple[str, ...] = ()
    rows: float = 0
    bytes: int = 0
    existing: Existing = "refuse"

    @property
    def table(self) -> str:
        return self.target.name

    @property
    def merged(self) -> bool:
        return self.existing in ("skip", "update")

    def on(self, role: Role) -> TableName:
        return self.source if role == "source" else self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One row that is not the same. `row` names it for people; `columns` are those that differ.

    `copies` is how many more times a row without a key is on that one side.
    """

    row: str
    kind: Kind
    columns: tuple[str, ...] = ()
    copies: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """One table's comparison. The counts are exact, `differences` are capped.

    `in_flight` are rows that differed at first and were equal when they were read again. `sampled`
    is the share of rows that was looked at, None for all of them. Where rows were merged into the
    target's, which `existing` says, `extra` rows are the target's own and no difference.
    """

    table: str
    level: Level
    rows_source: int
    rows_target: int
    source_only: int = 0
    target_only: int = 0
    differing: int = 0
    in_flight: int = 0
    differences: tuple[Difference, ...] = ()
    not_compared: tuple[str, ...] = ()
    within: str = ""
    sampled: float | None = None
    seconds: float = 0.0
    existing: Existing = "refuse"
    extra: int = 0

    @property
    def different(self) -> int:
        """How many rows are not the same; at level `counts` by how many rows the sides differ."""
        return self.source_only + self.target_only + self.differing

    @property
    def capped(self) -> int:
        """How many differences are counted, but not listed."""
        return self.different - sum(each.copies for each in self.differences)

    @property
    def state(self) -> State:
        return "different" if self.different else "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What counts for one key on one side. `there` and `reads` are by join, `hashes` by `name.column`.

    `label` are the texts by which a person recognises the key, `token` its hash: never shown whole.
    """

    place: int
    token: str
    label: tuple[str, ...]
    there: Mapping[str, bool]
    reads: Mapping[str, bool]
    hashes: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a key's decision is another one on the target. `code` is stable; `fields` are `team.max_budget` …"""

    code: str
    weight: Weight
    message: str
    fields: tuple[str, ...] = ()


Outcome = Literal["unchanged", "lost", "opened", "revived", "changed", "moved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of one key on the target. Named by alias, `sk-...1234` and 8 hex digits, never whole.

    `lost` keys are refused, `opened` ones lose a limit, `revived` ones were revoked on the source,
    `changed` ones are decided otherwise, of `moved` ones only the spend differs.
    """

    key: str
    outcome: Outcome
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The verdicts of all keys: `outcomes` and `reasons` count them exactly, `verdicts` is capped.

    `total` counts the source's keys. `samples` are the verdicts of keys that the operator gave.
    `notes` are faults that both sides have alike.
    """

    total: int
    outcomes: Mapping[Outcome, int]
    reasons: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, Weight] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    samples: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    in_flight: int = 0
    sampled: float | None = None
    seconds: float = 0.0

    def count(self, outcome: Outcome) -> int:
        return self.outcomes.get(outcome, 0)

    @property
    def different(self) -> bool:
        """Whether any key is decided otherwise, samples aside."""
        return any(count and self.weights.get(code) == "error" for code, count in self.reasons.items())

    @property
    def state(self) -> State:
        return "different" if self.different or any(_bad(each) for each in self.samples) else "ok"

    @property
    def capped(self) -> int:
        """How many keys with a reason are counted, but not listed."""
        return sum(count for outcome, count in self.outcomes.items() if outcome != "unchanged") - len(self.verdicts)

    @property
    def headline(self) -> str:
        """`20,000 keys: 19,997 continue unchanged, 1 lost, 2 would become unlimited`."""
        words: tuple[tuple[Outcome, str], ...] = (
            ("unchanged", "continue unchanged"),
            ("lost", "lost"),
            ("opened", "would become unlimited"),
            ("revived", "revoked on the source but alive on the target"),
            ("changed", "would be decided otherwise"),
            ("moved", "differ in spend only"),
        )
        told = [f"{self.count(name):,} {word}" for name, word in words if self.count(name) or name == "unchanged"]
        return f"{count(self.total, 'key')}: {', '.join(told)}"


def _bad(verdict: Verdict) -> bool:
    return any(reason.weight == "error" for reason in verdict.reasons)


CHECKS = (
    "tables", "keys", "columns", "indexes", "constraints", "migrations", "obstacles", "foreign-keys",
    "soft-references", "sequences", "views", "ciphertext", "decryption",
    "probe-samples", "probe-ready", "probe-keys", "probe-refusals", "probe-database",
)  # fmt: skip
"""The codes of all checks, which `--allow-unchecked` takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question beyond the rows. `code` is stable, `title` says what was asked.

    `looked` counts what was looked at. `problems` are differences, `notes` are not; `why_not` says
    why all or a part of it could not be checked.
    """

    code: str
    title: str
    looked: int = 0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    why_not: str = ""

    @property
    def state(self) -> State:
        return "different" if self.problems else "unchecked" if self.why_not else "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """All that `verify` found, as of `at` (ISO 8601, UTC).

    `scope` says where the selection comes from, `blind` what the hash cannot see. `keys` is None
    where the matrix describes no keys or they were not asked for. `allowed` are the codes of checks
    that may stay unchecked.
    """

    source: str
    target: str
    at: str
    scope: str
    level: Level
    method: Method
    blind: tuple[str, ...] = ()
    sample: float | None = None
    snapshot: str = ""
    contents: tuple[Content, ...] = ()
    keys: Keys | None = None
    checks: tuple[Check, ...] = ()
    allowed: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def different(self) -> bool:
        states = [each.state for each in self.contents] + [each.state for each in self.checks]
        return "different" in states or (self.keys is not None and self.keys.state == "different")

    @property
    def unchecked(self) -> tuple[Check, ...]:
        """Checks that were not made, or not wholly."""
        return tuple(check for check in self.checks if check.why_not)

    @property
    def unproven(self) -> tuple[Check, ...]:
        """Those of them that nobody allowed."""
        return tuple(check for check in self.unchecked if check.code not in self.allowed)

    @property
    def compared(self) -> bool:
        """Whether anything was looked at; a proof without a source is one of checks alone."""
        return bool(self.contents) or not self.source

    @property
    def state(self) -> State:
        if self.different:
            return "different"
        return "unchecked" if self.unproven or not self.compared else "ok"

    @property
    def status(self) -> int:
        """The exit status: 0 only where everything was compared and equal."""
        return 0 if self.state == "ok" else 3

    @property
    def headline(self) -> str:
        """The verdict in one line."""
        if self.state == "different":
            return f"Different: {'; '.join(self._differing)}."
        if not self.compared:
            return "Not proven: no table was compared."
        if self.state == "unchecked":
            return f"Not proven: {len(self.unproven)} of {count(len(self.checks), 'check')} could not be made."
        if not self.source:
            return f"Passed: {count(len(self.checks), 'check')}."
        rows = sum(content.rows_source for content in self.contents)
        return f"{self._equal}: {count(rows, 'row')} in {count(len(self.contents), 'table')}."

    @property
    def _equal(self) -> str:
        if self.sample is not None and self.level != "counts":
            return "Sampled"
        if any(content.existing in ("skip", "update") for content in self.contents):
            return "All there"
        return {"content": "Equal", "keys": "Same row keys", "counts": "Same counts"}[self.level]

    @property
    def _differing(self) -> list[str]:
        tables = sum(content.state == "different" for content in self.contents)
        rows = sum(content.different for content in self.contents)
        failed = sum(check.state == "different" for check in self.checks)
        parts = {
            f"{count(rows, 'row')} {'differs' if rows == 1 else 'differ'} in {tables} of"
            f" {count(len(self.contents), 'table')}": tables,
            f"{failed} of {count(len(self.checks), 'check')} failed": failed,
        }
        found = [words for words, there in parts.items() if there]
        if self.keys is not None and self.keys.different:
            found.append("keys would be decided otherwise")
        elif self.keys is not None and self.keys.state == "different":
            found.append("sample keys do not continue unchanged")
        return found
