"""The page that `verify` ends with, as an operator sees it on a terminal and finds it in a log."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from mishika_migrate import model
from mishika_migrate.report import proof, sentences
from tests import fix_proofs

WIDTHS = pytest.mark.parametrize("width", [60, 80, 120])
_CODE = re.compile(r"\x1b\[[0-9;]*m")


def page(what: model.Proof, width: int = 120, *, terminal: bool = False, height: int = 1000) -> str:
    to, stream = fix_proofs.shown(width, terminal=terminal, height=height)
    proof.show(to, what)
    return _CODE.sub("", stream.getvalue())


def order(text: str, *parts: str) -> list[int]:
    return [text.index(part) for part in parts]


@pytest.mark.parametrize("terminal", [False, True])
def test_verdict_comes_first_then_keys_differences_checks_and_what_was_not_checked(terminal: bool) -> None:
    what = fix_proofs.different()
    assert what.keys is not None
    shown = page(what, terminal=terminal)
    assert shown.splitlines()[:3] == [
        what.headline, what.keys.headline, "Also not proven: 2 checks could not be made.",
    ]  # fmt: skip
    places = order(
        shown, "Tables that differ", "The same on both sides: 4 tables", "Keys that differ", "Your sample keys",
        "Checks that failed", "4 checks passed", "NOT CHECKED", "What the fast hash cannot see", "Notes",
    )  # fmt: skip
    assert places == sorted(places)


@WIDTHS
@pytest.mark.parametrize("make", [fix_proofs.equal, fix_proofs.different, fix_proofs.unproven, fix_proofs.sampled])
def test_page_fits_and_cuts_no_word(make: fix_proofs.Make, width: int) -> None:
    shown = page(make(), width, terminal=True)
    lines = shown.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    whole = " ".join(shown.split())
    log = " ".join(page(make()).split())
    for word in ("proxy@old.internal:5432/litellm", "00000003-0000001B-1", "MonthlyGlobalSpend", "10^19"):
        assert word in whole and word in log
    assert "…" not in whole.replace("MishikaLLM_…", "")


@WIDTHS
def test_counts_are_never_wrapped(width: int) -> None:
    contents = (fix_proofs.content("SpendLogs", rows_source=123_456_789, rows_target=1, source_only=123_456_788),)
    shown = page(fix_proofs.proof(contents=contents), width, terminal=True)
    assert re.search(r"^MishikaLLM_SpendLogs .*\b123,456,788\b", shown, re.M)


def test_terminal_lists_a_few_and_a_log_lists_all() -> None:
    short, long = page(fix_proofs.different(), terminal=True), page(fix_proofs.different())
    assert "~ user_id=u9: differs in max_budget, spend" in short and "user_id=u10" not in short
    assert "and 990 more, not listed here; 90 of them with --report FILE" in short
    assert "user_id=u99: differs" in long
    assert "    and 900 more, not listed\n" in long


def test_long_page_ends_with_the_verdict_again() -> None:
    what = fix_proofs.different()
    assert page(what, terminal=True, height=24).count(what.headline) == 2
    assert page(what, terminal=True, height=1000).count(what.headline) == 1
    assert page(what, height=24).count(what.headline) == 1


def test_keys_stand_under_their_reason_with_what_it_means() -> None:
    lines = page(fix_proofs.different()).splitlines()
    title = "✗ team-missing  902 keys fail open: the team's block, budget, rate limits and model list no longer hold"
    at = lines.index(title)
    assert lines[at + 1 : at + 4] == [
        "    - prod-app sk-...9876 deadbeef (team.max_budget, team.blocked)",
        "    - batch sk-...5555 00c0ffee (team.max_budget, team.blocked)",
        "    and 900 more, not listed",
    ]
    assert any(line.startswith("! spend-differs  13 keys") for line in lines)


def test_reason_that_means_several_things_says_them_one_by_one() -> None:
    verdicts = tuple(
        model.Verdict(key=key, outcome="opened", reasons=(fix_proofs.reason("budget-missing", message),))
        for key, message in (("a", "the member's budget no longer holds"), ("b", "the key's"), ("c", "the key's"))
    )
    keys = model.Keys(
        total=3, outcomes={"opened": 3}, reasons={"budget-missing": 3, "unparseable": 1}, weights=fix_proofs.WEIGHTS,
        verdicts=verdicts,
    )  # fmt: skip
    assert page(fix_proofs.proof(keys=keys)).partition("by reason\n")[2].splitlines()[:8] == [
        "✗ unparseable  1 key: calls with it will be refused",
        "    and 1 more, not listed",
        "✗ budget-missing  3 keys fail open",
        "    the member's budget no longer holds",
        "    - a",
        "    the key's",
        "    - b",
        "    - c",
    ]


def test_list_of_a_reason_is_short_whatever_its_keys_say() -> None:
    verdicts = tuple(
        model.Verdict(key=f"key {n}", outcome="lost", reasons=(fix_proofs.reason("missing", f"for {n}"),))
        for n in range(12)
    )
    keys = model.Keys(
        total=20, outcomes={"lost": 20}, reasons={"missing": 20}, weights=fix_proofs.WEIGHTS, verdicts=verdicts
    )
    shown = page(fix_proofs.proof(keys=keys), terminal=True)
    assert "- key 9\n" in shown and "key 10" not in shown and "for 10" not in shown
    assert "and 10 more, not listed here; 2 of them with --report FILE" in shown


def test_probe_claims_no_comparison() -> None:
    lines = page(fix_proofs.probed()).splitlines()
    assert lines[:4] == [
        "Passed: 4 checks.",
        "To    proxy@new.internal:5432/litellm",
        "What  probe of https://proxy.internal",
        "How   checks only, as of 2026-07-01 12:00:03 UTC, in 12 s",
    ]
    assert "NOT CHECKED" not in "".join(lines)


def test_unchecked_says_which_option_would_allow_it() -> None:
    shown = page(fix_proofs.unproven())
    assert shown.splitlines()[0] == "Not proven: 1 of 6 checks could not be made."
    after = shown.partition("NOT CHECKED, so nothing is proven (exit status 3)\n")[2].splitlines()
    assert after[:3] == [
        "✗ secrets: Encrypted values can be decrypted on the target",
        "    no secret was given (--salt-key-env NAME or --master-key-env NAME)",
        "    To accept that: --allow-unchecked secrets",
    ]
    assert "! standby: A standby answers" in after
    assert "    Accepted by --allow-unchecked." in after
    assert "! Virtual keys got no verdict." in after


def test_equal_proof_shows_every_table_and_nothing_as_unchecked() -> None:
    shown = page(fix_proofs.equal())
    assert shown.splitlines()[0] == "Equal: 120,000 rows in 6 tables."
    assert "NOT CHECKED" not in shown
    assert [name for name in fix_proofs.TABLES if re.search(rf"^{name} +20,000$", shown, re.M)] == [*fix_proofs.TABLES]


def test_sample_is_never_called_equal() -> None:
    shown = page(fix_proofs.sampled())
    assert shown.startswith("Sampled: ")
    assert "OrganizationMembership (sampled)" in shown
    assert "Only a sample of 1 % was compared" in shown
    assert "qual" not in shown and "same on both" not in shown
    partly = fix_proofs.proof(contents=(fix_proofs.content("T", sampled=0.5),))
    assert sentences.verdict(partly) == "sampled"


@pytest.mark.parametrize("level", ["counts", "keys"])
def test_less_than_content_is_said(level: model.Level) -> None:
    contents = (fix_proofs.content("T", level=level, rows_target=19_999, source_only=1),)
    shown = page(fix_proofs.proof(level=level, contents=contents))
    assert "To compare values: --level content." in shown
    assert "and 1 more, not listed" in shown or "only counted; --level content names the rows" in shown
    if level == "counts":
        assert "MishikaLLM_T: 20,000 rows on the source, 19,999 on the target" in shown


def test_no_table_is_not_nothing() -> None:
    assert "! No table was compared." in page(fix_proofs.proof(contents=()))


@WIDTHS
@pytest.mark.parametrize("terminal", [False, True])
def test_names_of_strangers_change_neither_lines_nor_colours(width: int, terminal: bool) -> None:
    to, stream = fix_proofs.shown(width, terminal=terminal)
    proof.show(to, fix_proofs.hostile())
    shown = _CODE.sub("", stream.getvalue())
    assert "[red]bold[/red]" in shown
    assert all(sign.isprintable() or sign == "\n" for sign in shown)
    assert not re.search(r"^\s*::", shown, re.M)
    assert "sk-...1234 0a1b2c3d" in shown, "the end of a long name is what tells the key"
    assert len(shown) < 200_000


def test_no_line_of_a_log_is_broken() -> None:
    contents = (fix_proofs.content("T", not_compared=tuple(f"column_{n}" for n in range(30))),)
    assert any(
        "column_0" in line and "column_29" in line for line in page(fix_proofs.proof(contents=contents)).split("\n")
    )


def test_no_color_leaves_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    to, stream = fix_proofs.shown(80, terminal=True)
    proof.show(to, fix_proofs.different())
    assert not re.search(r"\x1b\[(\d+;)*3[0-7]", stream.getvalue())


def test_sample_keys_are_all_shown() -> None:
    keys = model.Keys(total=99, outcomes={"unchanged": 99}, samples=(fix_proofs.SAME,) * 30)
    assert (
        page(fix_proofs.proof(keys=keys), terminal=True).count("✓ kept sk-...4321 89abcdef: continues unchanged") == 30
    )


def test_many_gaps_are_counted_but_open_ones_are_all_shown() -> None:
    contents = tuple(fix_proofs.content(f"T{n}", within="x > 1") for n in range(40))
    checks = tuple(replace(fix_proofs.UNMADE, code=f"c{n}") for n in range(20))
    shown = page(fix_proofs.proof(contents=contents, checks=checks), terminal=True)
    assert shown.count("To accept that: --allow-unchecked c") == 20
    assert "and 40 more, not listed here" in shown
