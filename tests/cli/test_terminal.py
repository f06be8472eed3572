"""The program on a terminal: its question, its live display, its colours."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mishika_migrate.sandbox.servers import Server
from tests.fix_faults import LOGS, blocked, locked, wait_until
from tests.fix_network import Proxy
from tests.fix_program import Run
from tests.fix_servers import Pair, rows_of
from tests.fix_terminal import Open, Terminal

TOKENS = "MishikaLLM_VerificationToken"


def ends(source_url: str, target_url: str) -> tuple[str, ...]:
    return ("--source", source_url, "--target", target_url)


def test_yes_copies_and_leaves_the_result_alone_on_the_screen(source_url: str, target_url: str, terminal: Open) -> None:
    shown = terminal("copy", *ends(source_url, target_url), "--include-spendlogs")
    shown.until("[y/N]")
    shown.type("y\n")
    assert shown.ended() == 0
    _, _, result = shown.screen.text.partition("[y/N]: y\n")
    assert result.startswith("Done: ")
    assert "›" not in result and "✓" not in result and "━" not in result
    assert "VerificationToken" in result


def test_any_other_answer_writes_nothing(source_url: str, target_url: str, terminal: Open) -> None:
    for answer, status, said in (
        ("n\n", 4, "error: not confirmed; nothing was written"),
        ("\n", 4, "error: not confirmed; nothing was written"),
        ("\x04", 4, "\nerror: not confirmed; nothing was written"),
        ("\x03", 130, "\nerror: interrupted; nothing was written"),
    ):
        shown = terminal("copy", *ends(source_url, target_url))
        shown.until("[y/N]")
        shown.type(answer)
        assert shown.ended() == status
        assert said in shown.screen.text
        assert "Traceback" not in shown.screen.text
    assert rows_of(target_url, TOKENS) == []


def test_ctrl_c_in_a_copy_says_what_is_still_to_copy(source_url: str, target_url: str, terminal: Open) -> None:
    with locked(target_url, LOGS):
        shown = terminal("copy", *ends(source_url, target_url), "--include-spendlogs", "--yes", "--lock-timeout", "0")
        shown.until("✓ VerificationToken")
        wait_until(lambda: blocked(target_url))
        shown.type("\x03")
        assert shown.ended() == 130
    assert "still to copy: public.MishikaLLM_SpendLogs" in shown.screen.text
    assert "copy --resume" in shown.screen.text
    assert "✓" not in shown.screen.text


def test_second_ctrl_c_clears_the_display_and_says_how_to_go_on(
    pair: Pair, source_url: str, target_url: str, terminal: Open, proxy: Callable[[Server], Proxy]
) -> None:
    between = proxy(pair.new)
    with locked(target_url, LOGS):
        shown = terminal(
            "copy", "--source", source_url, "--include-spendlogs", "--yes", "--lock-timeout", "0",
            env={"MISHIKA_MIGRATE_TARGET": between.url(target_url)},
        )  # fmt: skip
        shown.until("✓ VerificationToken")
        wait_until(lambda: blocked(target_url))
        between.stall()
        shown.type("\x03")
        shown.until("stopping; once more ends at once")
        shown.type("\x03")
        assert shown.ended() == 130
    said = f"ended at once; `mishika-migrate copy --resume --source '{source_url}'` continues"
    assert shown.screen.text.replace("\n", "").endswith(said)
    assert "✓" not in shown.screen.text and "^C" not in shown.screen.text


@pytest.mark.parametrize("columns", [60, 120])
def test_nothing_is_wider_than_the_terminal_while_it_copies(
    columns: int, source_url: str, target_url: str, terminal: Open
) -> None:
    with locked(target_url, LOGS):
        shown = terminal(
            "copy", *ends(source_url, target_url), "--include-spendlogs", "--yes", "--lock-timeout", "0",
            columns=columns, rows=40,
        )  # fmt: skip
        shown.until("✓ VerificationToken")
        shown.until("history")
        display = shown.screen.text[shown.screen.text.index("✓") :]
    assert max(len(line) for line in display.splitlines()) < columns
    # A wrapped line would have left its second half on a line of its own.
    assert all(line[:2] in ("✓ ", "› ", "hi") for line in display.splitlines() if line)
    assert "VerificationToken  " in display
    assert shown.ended() == 0


def test_low_window_counts_the_tables_that_it_does_not_show(source_url: str, target_url: str, terminal: Open) -> None:
    with locked(target_url, LOGS):
        shown = terminal(
            "copy", *ends(source_url, target_url), "--include-spendlogs", "--yes", "--lock-timeout", "0", rows=12
        )
        shown.until("more tables")
        shown.until("history")
        assert "history" in shown.screen.visible
    assert shown.ended() == 0


def test_window_may_change_its_size(source_url: str, target_url: str, terminal: Open) -> None:
    with locked(target_url, LOGS):
        shown = terminal(
            "copy", *ends(source_url, target_url), "--include-spendlogs", "--yes", "--lock-timeout", "0", rows=40
        )
        shown.until("✓ VerificationToken")
        for columns in (60, 100, 45):
            before = len(shown.raw)
            shown.resize(columns, 40)
            shown.until_true(lambda: _drawn_at_the_top(shown, before), "not drawn again")  # noqa: B023
            assert shown.screen.visible.count("TeamMembership") == 1
            assert shown.screen.visible.startswith("From  ")
    assert shown.ended() == 0
    assert shown.screen.visible.startswith("Done: ")


def _drawn_at_the_top(shown: Terminal, before: int) -> bool:
    return "\x1b[H" in shown.raw[before:] and shown.raw.endswith("\x1b[J") and "history" in shown.screen.visible


def test_dumb_terminal_gets_lines(source_url: str, target_url: str, terminal: Open) -> None:
    shown = terminal("copy", *ends(source_url, target_url), "--yes", env={"TERM": "dumb"})
    assert shown.ended() == 0
    assert "MishikaLLM_VerificationToken: 300 rows" in shown.screen.text.replace("\n", " ")
    assert "\x1b[" not in shown.raw


def test_no_color_means_none(source_url: str, target_url: str, terminal: Open) -> None:
    shown = terminal("plan", *ends(source_url, target_url), env={"NO_COLOR": "1"})
    assert shown.ended() == 0
    assert not [code for code in ("\x1b[31", "\x1b[32", "\x1b[33", "\x1b[36") if code in shown.raw]
    assert "Ready: " in shown.screen.text


def test_quiet_asks_with_all_that_must_be_known(source_url: str, target_url: str, terminal: Open) -> None:
    shown = terminal("copy", "-q", *ends(source_url, target_url))
    shown.until("[y/N]")
    assert shown.screen.text.startswith("Copy 16 tables, about ")
    shown.type("y\n")
    assert shown.ended() == 0
    assert "From  " not in shown.screen.text


def test_display_survives_a_stream_that_is_not_utf_8(source_url: str, target_url: str, terminal: Open) -> None:
    shown = terminal("copy", *ends(source_url, target_url), "--yes", env={"PYTHONIOENCODING": "ascii"})
    assert shown.ended() == 0
    assert "Done: " in shown.screen.text
    assert shown.raw.isascii()


def test_cleanup_asks(source_url: str, target_url: str, terminal: Open, run: Run) -> None:
    assert run("copy", *ends(source_url, target_url), "--yes").status == 0
    shown = terminal("cleanup", "--target", target_url)
    shown.until("[y/N]")
    assert "Remove schema mishika_migrate with 1 run" in shown.screen.text.replace("\n", "")
    shown.type("y\n")
    assert shown.ended() == 0
    assert "Removed schema mishika_migrate" in shown.screen.text
