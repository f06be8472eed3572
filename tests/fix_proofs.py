"""Proofs made of plain values: equal, sampled, not proven, and different in every way at once."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

from mishika_migrate import model
from mishika_migrate.report import screen

Make = Callable[[], model.Proof]

HOSTILE = (
    "pipe | and \\| tick ` and ``` and [red]bold[/red] <b>&amp;</b> <!-- -->",
    "two\nlines\r\n::error::forged\t\x00\x1b[2J\x07\x7f\u202e",
    "emoji 🦊🏳️‍🌈 ￾ \udcff @everyone #1 https://example.com *_~$]]>",
    "a" * 100_000 + " sk-...1234 0a1b2c3d",
)
"""What people put into names; the third has characters that XML forbids and UTF-8 lacks."""

TABLES = ("BudgetTable", "UserTable", "TeamTable", "VerificationToken", "OrganizationMembership", "SpendLogs")

PASSED = (
    model.Check(code="tables", title="Both sides have the selected tables", looked=6),
    model.Check(code="foreign-keys", title="Foreign keys hold on the target", looked=14),
    model.Check(code="sequences", title="Sequences are ahead of the largest id", looked=1),
    model.Check(code="views", title="The views exist and answer", looked=8, notes=("MonthlyGlobalSpend is slow",)),
)
UNMADE = model.Check(
    code="secrets",
    title="Encrypted values can be decrypted on the target",
    why_not="no secret was given (--salt-key-env NAME or --master-key-env NAME)",
)
FAILED = model.Check(
    code="indexes",
    title="Indexes are equal by definition",
    looked=40,
    problems=(
        'MishikaLLM_SpendLogs: CREATE INDEX ON "MishikaLLM_SpendLogs" ("startTime") is missing on the target',
        'MishikaLLM_UserTable: UNIQUE ("sso_user_id") is missing on the target',
    ),
    why_not="the role may not see the definition of 1 index",
)

WEIGHTS: dict[str, model.Weight] = {
    "missing": "error",
    "extra": "error",
    "unparseable": "error",
    "team-missing": "error",
    "user-missing": "error",
    "budget-missing": "error",
    "blocked-differs": "error",
    "limits-differ": "error",
    "spend-differs": "warning",
}
"""As the verdicts know them, the worst first."""


def content(name: str, **more: object) -> model.Content:
    fields = {"level": "content", "rows_source": 20_000, "rows_target": 20_000, "seconds": 1.5, **more}
    return model.Content(table=f"MishikaLLM_{name}", **fields)  # type: ignore[arg-type]


def reason(code: str, message: str, *fields: str) -> model.Reason:
    return model.Reason(code=code, weight=WEIGHTS[code], message=message, fields=fields)


LOST = model.Verdict(
    key="ci-bot sk-...1234 0a1b2c3d",
    outcome="lost",
    reasons=(reason("missing", "calls with it will be refused (401)"),),
)
_TEAM = "the team's block, budget, rate limits and model list no longer hold"
OPENED = tuple(
    model.Verdict(
        key=key, outcome="opened", reasons=(reason("team-missing", _TEAM, "team.max_budget", "team.blocked"),)
    )
    for key in ("prod-app sk-...9876 deadbeef", "batch sk-...5555 00c0ffee")
)
MOVED = model.Verdict(
    key="busy sk-...7777 12345678",
    outcome="moved",
    reasons=(reason("spend-differs", "the spend is another one", "key.spend"),),
)
SAME = model.Verdict(key="kept sk-...4321 89abcdef", outcome="unchanged")


def proof(**more: object) -> model.Proof:
    """An equal one but for what is said."""
    fields = {
        "source": "proxy@old.internal:5432/litellm",
        "target": "proxy@new.internal:5432/litellm",
        "at": "2026-07-01T12:00:03Z",
        "scope": "the selection of run 7f3a, the last one in the ledger",
        "level": "content",
        "method": "fast",
        "blind": ("-0 and 0 of a float are the same to it", "a change that keeps a 64-bit hash: 1 in 10^19"),
        "snapshot": "00000003-0000001B-1",
        "contents": tuple(map(content, TABLES)),
        "keys": model.Keys(total=20_000, outcomes={"unchanged": 20_000}, weights=WEIGHTS, seconds=0.8),
        "checks": PASSED,
        "seconds": 12.3,
        **more,
    }
    return model.Proof(**fields)  # type: ignore[arg-type]


def equal() -> model.Proof:
    return proof()


def sampled() -> model.Proof:
    return proof(sample=0.01, contents=tuple(content(name, sampled=0.01) for name in TABLES))


def unproven() -> model.Proof:
    """One check was not made, another one is allowed to be unmade."""
    other = replace(UNMADE, code="standby", title="A standby answers", why_not="there is none")
    return proof(checks=(*PASSED, UNMADE, other), allowed=("standby",), keys=None)


def different() -> model.Proof:
    """Everything that a page can show."""
    users = tuple(
        model.Difference(row=f"user_id=u{number}", kind="differs", columns=("max_budget", "spend"))
        for number in range(100)
    )
    changed = {
        "BudgetTable": content(
            "BudgetTable",
            rows_target=20_001,
            source_only=1,
            target_only=2,
            differences=(
                model.Difference(row="budget_id=b1", kind="source-only"),
                model.Difference(row="budget_id=b2", kind="target-only", copies=2),
            ),
            not_compared=("allowed_cidr (target)",),
        ),
        "UserTable": content("UserTable", differing=1000, differences=users),
        "SpendLogs": content("SpendLogs", rows_source=123_456_789, rows_target=123_456_789, in_flight=3,
                             within="startTime >= 2026-06-01"),
    }  # fmt: skip
    keys = model.Keys(
        total=20_000,
        outcomes={"unchanged": 19_084, "lost": 1, "opened": 902, "moved": 13},
        reasons={"missing": 1, "team-missing": 902, "spend-differs": 13},
        weights=WEIGHTS,
        verdicts=(LOST, *OPENED, MOVED),
        samples=(SAME, LOST),
        notes=("3 keys name a team that neither side has",),
        in_flight=4,
        seconds=0.8,
    )
    return proof(
        contents=tuple(changed.get(name, content(name)) for name in TABLES),
        keys=keys,
        checks=(*PASSED, FAILED, UNMADE),
    )


def probed() -> model.Proof:
    """Checks of one side alone, as `probe` makes them."""
    return proof(source="", scope="probe of https://proxy.internal", level="keys", blind=(), snapshot="", contents=(),
                 keys=None)  # fmt: skip


def hostile() -> model.Proof:
    """Different, and every name in it is one of `HOSTILE`."""
    rows = tuple(model.Difference(row=name, kind="differs", columns=HOSTILE) for name in HOSTILE)
    verdicts = tuple(
        model.Verdict(key=name, outcome="lost", reasons=(reason("missing", name, name),)) for name in HOSTILE
    )
    return proof(
        source=HOSTILE[0],
        target=HOSTILE[1],
        scope=HOSTILE[2],
        snapshot=HOSTILE[0],
        blind=HOSTILE,
        contents=tuple(
            replace(content("T", differing=9, differences=rows), table=name, within=name, not_compared=HOSTILE)
            for name in HOSTILE
        ),
        keys=model.Keys(
            total=4, outcomes={"lost": 4}, reasons={"missing": 4}, weights=WEIGHTS, verdicts=verdicts,
            samples=verdicts, notes=HOSTILE,
        ),
        checks=tuple(
            model.Check(code=f"c{number}", title=name, problems=HOSTILE, notes=HOSTILE, why_not=name)
            for number, name in enumerate(HOSTILE)
        ),
    )  # fmt: skip


def huge(rows: int = 100, tables: int = 101) -> model.Proof:
    """Different in all tables, with long lists everywhere."""
    listed = tuple(model.Difference(row=f"id={'x' * 60}{n}", kind="differs", columns=("a", "b")) for n in range(rows))
    verdicts = tuple(replace(OPENED[0], key=f"{OPENED[0].key}-{number}") for number in range(rows))
    return proof(
        contents=tuple(content(f"T{n}", differing=10 * rows, differences=listed) for n in range(tables)),
        keys=model.Keys(
            total=10 * rows, outcomes={"opened": 10 * rows}, reasons={"team-missing": 10 * rows}, weights=WEIGHTS,
            verdicts=verdicts,
        ),
        checks=tuple(replace(FAILED, code=f"check-{n}", problems=FAILED.problems * rows) for n in range(9)),
    )  # fmt: skip


class Terminal(io.StringIO):
    """A stream that calls itself one."""

    def isatty(self) -> bool:
        return True


def shown(width: int, *, terminal: bool = True, height: int = 50) -> tuple[screen.Screen, io.StringIO]:
    """A screen of that size, and what is written on it."""
    stream = Terminal() if terminal else io.StringIO()
    to = screen.screen(stream)
    to.size = to.size.__class__(width, height)
    return to, stream
