"""Annotations and the step's summary, as the runner of GitHub Actions reads them."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from mishika_migrate import model
from mishika_migrate.report import github, markdown
from tests import fix_proofs

# The runner's ActionCommand.TryParseV2: what it splits, and what it puts back, `%25` last.
_COMMAND = re.compile(r"::(\w+) (.*?)::(.*)")
_BACK = {"%0D": "\r", "%0A": "\n", "%3A": ":", "%2C": ",", "%25": "%"}


def publish(proof: model.Proof, **environ: str) -> str:
    stream = io.StringIO()
    github.publish(proof, {"GITHUB_ACTIONS": "true", **environ}, stream)
    return stream.getvalue()


def heard(said: str) -> list[tuple[str, str, str]]:
    """Command, title and message of every line, as the runner would have them."""
    found = []
    for line in said.splitlines():
        match = _COMMAND.fullmatch(line)
        assert match, line
        command, properties, message = match.groups()
        assert properties.count(",") == 0 and properties.startswith("title=")
        title = properties.removeprefix("title=")
        for code, sign in _BACK.items():
            title = title.replace(code, sign)
            if code not in ("%3A", "%2C"):
                message = message.replace(code, sign)
        found.append((command, title, message))
    return found


@pytest.mark.parametrize("environ", [{}, {"GITHUB_ACTIONS": "false"}, {"CI": "true"}])
def test_nothing_happens_elsewhere(environ: dict[str, str], tmp_path: Path) -> None:
    stream = io.StringIO()
    summary = tmp_path / "summary"
    github.publish(fix_proofs.different(), {**environ, "GITHUB_STEP_SUMMARY": str(summary)}, stream)
    assert stream.getvalue() == ""
    assert not summary.exists()


def test_equal_is_one_notice() -> None:
    assert heard(publish(fix_proofs.equal())) == [
        ("notice", "verify", "Equal: 120,000 rows in 6 tables.\n20,000 keys: 20,000 continue unchanged")
    ]


def test_sample_is_a_warning() -> None:
    said = heard(publish(fix_proofs.sampled()))
    assert said[0][:2] == ("warning", "verify")
    assert "Only a sample of 1 % was compared" in said[1][2]


def test_differences_are_errors_the_verdict_first() -> None:
    said = heard(publish(fix_proofs.different()))
    assert [(command, title) for command, title, _ in said] == [
        ("error", "verify"),
        ("error", "keys: missing"),
        ("error", "keys: team-missing"),
        ("error", "table MishikaLLM_BudgetTable"),
        ("error", "table MishikaLLM_UserTable"),
        ("error", "check indexes"),
        ("error", "not checked"),
        ("error", "not checked"),
        ("warning", "keys: spend-differs"),
        ("notice", "not checked"),
        ("notice", "not checked"),
    ]
    assert said[2][2] == (
        "902 keys fail open: the team's block, budget, rate limits and model list no longer hold\n"
        "prod-app sk-...9876 deadbeef, batch sk-...5555 00c0ffee\n"
        "and 900 more, not listed"
    )


def test_unproven_is_an_error_and_allowed_is_a_notice() -> None:
    said = [(command, title) for command, title, _ in heard(publish(fix_proofs.unproven()))]
    assert said == [("error", "verify"), ("error", "not checked"), ("notice", "not checked"), ("notice", "not checked")]


def test_no_more_of_a_kind_than_github_shows() -> None:
    said = heard(publish(fix_proofs.huge()))
    assert len(said) == 10
    assert said[0][1] == "verify"
    assert said[-1][2] == "and 112 more, which the step's summary and the log have"


def test_names_of_strangers_forge_no_command() -> None:
    said = publish(fix_proofs.hostile())
    assert all(sign.isprintable() or sign == "\n" for sign in said)
    for command, title, message in heard(said):
        assert command in ("error", "warning", "notice")
        assert len(title) < 500 and len(message) < 8000
    assert len(said.splitlines()) <= 30


def test_percent_and_line_ends_are_escaped() -> None:
    check = model.Check(code="a:b,c%", title="100%0A", problems=("x",))
    said = publish(fix_proofs.proof(checks=(check,)))
    assert "::error title=check a%3Ab%2Cc%25::100%250A%0Ax\n" in said
    assert ("error", "check a:b,c%", "100%0A\nx") in heard(said)


def test_summary_is_appended(tmp_path: Path) -> None:
    summary = tmp_path / "summary"
    publish(fix_proofs.equal(), GITHUB_STEP_SUMMARY=str(summary))
    summary.write_text(f"{summary.read_text('utf-8')}an open line", encoding="utf-8")
    publish(fix_proofs.different(), GITHUB_STEP_SUMMARY=str(summary))
    assert summary.read_text("utf-8") == (
        f"{markdown.text(fix_proofs.equal())}\nan open line\n{markdown.text(fix_proofs.different())}\n"
    )


def test_full_summary_is_left_alone_and_said(tmp_path: Path) -> None:
    """GitHub refuses a longer one as a whole, with what other commands of the step wrote."""
    summary = tmp_path / "summary"
    summary.write_bytes(b"x" * (1024 * 1024 - 100))
    said = heard(publish(fix_proofs.equal(), GITHUB_STEP_SUMMARY=str(summary)))
    assert said[0] == (
        "warning", "verify: no step summary", "the step's summary is nearly full already: GitHub takes 1 MiB",
    )  # fmt: skip
    assert summary.stat().st_size == 1024 * 1024 - 100


def test_summary_that_cannot_be_written_is_only_a_warning(tmp_path: Path) -> None:
    said = heard(publish(fix_proofs.equal(), GITHUB_STEP_SUMMARY=str(tmp_path)))
    assert said[0][:2] == ("warning", "verify: no step summary")
    assert "Is a directory" in said[0][2]
    assert said[1][:2] == ("notice", "verify")
