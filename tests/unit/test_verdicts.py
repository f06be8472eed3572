"""Every way in which a decision can differ has its reason, and a decision that differs is never called unchanged."""

from __future__ import annotations

from dataclasses import replace

import hypothesis
import pytest
from hypothesis import strategies as st

from mishika_migrate import matrix, model
from mishika_migrate.proof import verdicts


def packaged() -> model.Keyring:
    ring = matrix.load().keys
    assert ring is not None
    return ring


RING = packaged()
JOINS = [join.name for join in RING.joins]
COLUMNS = [(aspect.reason, column) for aspect in RING.aspects for column in aspect.columns]
SAME = model.Decision(
    place=1,
    token="0123456789abcdef" * 4,
    label=("Ada's laptop", "sk-...a1b2"),
    there=dict.fromkeys(JOINS, True),
    reads=dict.fromkeys(["key", *JOINS], True),
    hashes=dict.fromkeys(RING.columns, 5),
)


def without(*names: str) -> model.Decision:
    """As it is where these rows are not there, and so nothing of them is known."""
    gone = {column: 0 for column in RING.columns if column.partition(".")[0] in names}
    return replace(SAME, there={**SAME.there, **dict.fromkeys(names, False)}, hashes={**SAME.hashes, **gone})


def unread(*names: str, **hashes: int) -> model.Decision:
    return replace(SAME, reads={**SAME.reads, **dict.fromkeys(names, False)}, hashes={**SAME.hashes, **hashes})


def other(*columns: str) -> model.Decision:
    return replace(SAME, hashes={**SAME.hashes, **dict.fromkeys(columns, 6)})


def judged(
    ours: model.Decision | None, theirs: model.Decision | None, *, fenced: bool = False
) -> tuple[model.Outcome, list[str]]:
    verdict = verdicts.judge(RING, ours, theirs, fenced=fenced)
    return verdict.outcome, [reason.code for reason in verdict.reasons]


def leading_to(name: str) -> list[str]:
    """The join and those that are found by it."""
    found = [name]
    for join in RING.joins:
        if any(end.partition(".")[0] in found for _, end in join.by):
            found.append(join.name)
    return found


# -- each reason ----------------------------------------------------------------------------------


def test_the_same_decision_has_no_reason() -> None:
    assert judged(SAME, SAME) == judged(SAME, SAME, fenced=True) == ("unchanged", [])


def test_a_key_of_one_side() -> None:
    assert judged(SAME, None) == ("lost", ["missing"])
    assert judged(None, SAME) == ("revived", ["extra"])


@pytest.mark.parametrize("name", JOINS)
def test_a_row_that_is_missing_is_told_once_and_without_what_follows(name: str) -> None:
    join = next(join for join in RING.joins if join.name == name)
    rest = without(*leading_to(name))
    assert judged(SAME, rest) == ("opened", [join.missing])
    (reason,) = verdicts.judge(RING, SAME, rest, fenced=False).reasons
    assert (reason.weight, reason.message, reason.fields) == ("error", join.opens, (name,))
    assert judged(rest, SAME) == ("changed", [join.missing.replace("-missing", "-extra")])
    assert judged(rest, rest) == ("unchanged", [])


@pytest.mark.parametrize(("code", "column"), COLUMNS)
def test_each_column_has_its_reason(code: str, column: str) -> None:
    outcome, codes = judged(SAME, other(column))
    assert codes == [code]
    assert outcome == ("moved" if code == "spend-differs" else "changed")
    (reason,) = verdicts.judge(RING, SAME, other(column), fenced=False).reasons
    assert (reason.fields, reason.weight) == ((column,), "warning" if code == "spend-differs" else "error")
    (fenced,) = verdicts.judge(RING, SAME, other(column), fenced=True).reasons
    assert fenced.weight == "error"


def test_fields_of_one_reason_are_told_together() -> None:
    verdict = verdicts.judge(RING, SAME, other("key.blocked", "team.blocked", "key.expires"), fenced=False)
    assert [(each.code, each.fields) for each in verdict.reasons] == [
        ("blocked-differs", ("key.blocked", "team.blocked")),
        ("expiry-differs", ("key.expires",)),
    ]


def test_a_key_that_the_proxy_cannot_read_is_lost() -> None:
    assert judged(SAME, unread("key")) == ("lost", ["unparseable"])
    assert judged(SAME, unread("key", **{"key.metadata": 6, "key.models": 6})) == ("lost", ["unparseable"])
    assert judged(unread("key"), unread("key")) == ("unchanged", [])


@pytest.mark.parametrize("name", ["key", "team", "user"])
def test_what_can_be_read_on_the_target_only_is_not_lost(name: str) -> None:
    assert judged(unread(name), SAME) == ("changed", ["unparseable"])


@pytest.mark.parametrize("join", RING.joins, ids=JOINS)
def test_a_row_that_cannot_be_read_refuses_or_counts_as_missing(join: model.Join) -> None:
    expected = ("lost", ["unparseable"]) if join.refuses else ("opened", [join.missing])
    assert judged(SAME, unread(join.name, **{f"{join.name}.metadata": 6})) == expected


def test_what_does_not_follow_is_told_as_well() -> None:
    lost = without("team", "aliases")
    both = replace(lost, hashes={**lost.hashes, "key.max_budget": 6}, reads={**SAME.reads, "budget": False})
    assert judged(SAME, both) == ("lost", ["team-missing", "unparseable", "budget-differs"])


@pytest.mark.parametrize(
    ("theirs", "outcome"),
    [
        (unread("budget"), "lost"),
        (without("user"), "opened"),
        (other("key.blocked"), "changed"),
        (other("key.spend"), "moved"),
    ],
)
def test_the_worst_reason_decides_the_outcome(theirs: model.Decision, outcome: model.Outcome) -> None:
    worse = {"moved": [], "changed": ["key.spend"], "opened": ["key.spend", "key.blocked"]}
    columns = worse.get(outcome, ["key.spend", "key.blocked", "user.spend"])
    more = replace(theirs, hashes={**theirs.hashes, **dict.fromkeys(columns, 6)})
    assert judged(SAME, more)[0] == outcome


# -- all of them ----------------------------------------------------------------------------------

FLAGS = st.dictionaries(st.sampled_from(JOINS), st.booleans(), max_size=4)
DECISIONS = st.builds(
    lambda there, reads, hashes: replace(
        SAME, there={**SAME.there, **there}, reads={**SAME.reads, **reads}, hashes={**SAME.hashes, **hashes}
    ),
    FLAGS,
    st.dictionaries(st.sampled_from(["key", *JOINS]), st.booleans(), max_size=3),
    st.dictionaries(st.sampled_from(RING.columns), st.integers(0, 2), max_size=5),
)


@hypothesis.given(ours=DECISIONS, theirs=DECISIONS, fenced=st.booleans())
def test_a_decision_that_differs_is_never_unchanged(ours: model.Decision, theirs: model.Decision, fenced: bool) -> None:
    verdict = verdicts.judge(RING, ours, theirs, fenced=fenced)
    assert (verdict.outcome == "unchanged") == (ours == theirs) == (verdict.reasons == ())
    weights = verdicts.weights(RING, fenced=fenced)
    for reason in verdict.reasons:
        assert weights[reason.code] == reason.weight
        assert reason.fields
        assert reason.message
    codes = [reason.code for reason in verdict.reasons]
    told = [(reason.code, field) for reason in verdict.reasons for field in reason.fields]
    assert len(set(told)) == len(told)
    assert ("lost" in verdict.outcome) <= ("unparseable" in codes)


def test_weights_know_every_reason_of_the_issue() -> None:
    weights = verdicts.weights(RING, fenced=False)
    assert list(weights)[:3] == ["missing", "extra", "unparseable"]
    assert weights.keys() >= {
        "team-missing", "user-missing", "membership-missing", "budget-missing", "aliases-missing", "blocked-differs",
        "expiry-differs", "models-differ", "limits-differ", "budget-differs", "permissions-differ", "spend-differs",
    }  # fmt: skip
    assert [code for code, weight in weights.items() if weight != "error"] == ["spend-differs"]
    assert set(verdicts.weights(RING, fenced=True).values()) == {"error"}


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        (("Ada's laptop", "sk-...a1b2"), "Ada's laptop, sk-...a1b2, 01234567…"),
        (("", ""), "01234567…"),
        (("two\nlines\x1b[2J\x00", ""), "two·lines·[2J·, 01234567…"),
        (("x" * 500, ""), f"{'x' * 60}, 01234567…"),
        (("sk-1234567890abcdefghijklmn", ""), "sk-1234…, 01234567…"),
        (("0123456789abcdef" * 4, ""), "01234567…, 01234567…"),
    ],
)
def test_a_key_is_named_but_never_whole(label: tuple[str, ...], shown: str) -> None:
    named = replace(SAME, label=label)
    assert verdicts.shown(named) == shown
    assert verdicts.judge(RING, named, None, fenced=False).key == shown
    assert verdicts.judge(RING, None, named, fenced=False).key == shown


AROUND = st.text(max_size=9)


@hypothesis.given(label=st.lists(st.text(), max_size=3).map(tuple), before=AROUND, after=AROUND)
def test_no_name_holds_a_whole_token_or_key(label: tuple[str, ...], before: str, after: str) -> None:
    secret = "sk-Zm9vYmFyYmF6cXV4Zm9vYmFy"
    spoiled = f"{before} {secret} {after} {SAME.token}"
    text = verdicts.shown(replace(SAME, label=(*label, spoiled)))
    assert secret not in text
    assert SAME.token[:9] not in text
    assert text.isprintable()
