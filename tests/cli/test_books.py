"""`tables`, `status`, `cleanup`, and `copy --resume`: what the ledger says, and what one is told to do."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.fix_faults import LOGS, Start, ask, blocked, landed, locked, wait_until
from tests.fix_program import Run
from tests.fix_servers import Clone, Pair

Unfinished = Callable[[], None]


@pytest.fixture
def unfinished(source_url: str, target_url: str, start: Start) -> Unfinished:
    """`unfinished()` leaves a run whose keys are there and whose logs are not."""

    def make() -> None:
        with locked(target_url, LOGS):
            program = start(
                "copy", "--yes", "--include-spendlogs", "--lock-timeout", "0",
                "--source", source_url, "--target", target_url,
            )  # fmt: skip
            wait_until(lambda: blocked(target_url))
            program.signal(signal.SIGINT)
            done = program.ended()
        assert done.status == 130
        assert "stopping; once more ends at once" in done.err
        assert f"still to copy: public.{LOGS}" in done.err

    return make


# -- tables ---------------------------------------------------------------------------------------


def test_tables_without_a_source_counts_needs(run: Run) -> None:
    done = run("tables")
    assert done.out.splitlines()[0] == "23 tables: 5 required, 11 if-used, 6 if-wanted, 1 never."
    assert "rows" not in done.out.splitlines()[2]
    listed = run("tables", "--json").lines()
    assert {line["event"] for line in listed} == {"table"}
    assert len(listed) == 23
    assert {line["rows"] for line in listed} == {None}


def test_tables_with_a_source_counts_rows_and_names_strangers(pair: Pair, clone: Clone, run: Run) -> None:
    source_url = clone(pair.old, "filled")
    ask(source_url, "CREATE TABLE plugin_state (id int PRIMARY KEY)")
    done = run("tables", "--source", source_url)
    assert done.status == 0
    assert done.out.splitlines()[0].startswith("24 tables: ")
    assert "1 unknown; 24 of them on postgres@" in done.out.splitlines()[0]
    assert "…VerificationToken" in done.out
    assert "--include plugin_state" in done.out
    rows = {line["table"]: line["rows"] for line in run("tables", "--source", source_url, "--json").lines()}
    assert (rows["MishikaLLM_VerificationToken"], rows[LOGS]) == (300, 600)


# -- status ---------------------------------------------------------------------------------------


def test_status_of_a_target_without_runs(target_url: str, run: Run) -> None:
    done = run("status", "--target", target_url)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("No runs on postgres@")
    (line,) = run("status", "--target", target_url, "--json").lines()
    assert (line["event"], line["runs"], line["unfinished"], line["working"]) == ("status", 0, "", "")


def test_status_of_a_finished_run(source_url: str, target_url: str, run: Run) -> None:
    assert run("copy", "--yes", "--source", source_url, "--target", target_url).status == 0
    done = run("status", "--target", target_url)
    assert done.out.startswith("Finished: run ")
    assert "VerificationToken" in done.out
    summary, found = run("status", "--target", target_url, "--json").lines()
    assert (summary["runs"], found["event"], found["state"]) == (1, "run", "finished")


def test_status_of_an_unfinished_run_says_how_to_go_on(
    unfinished: Unfinished, source_url: str, target_url: str, run: Run
) -> None:
    unfinished()
    done = run("status", "--target", target_url)
    assert done.out.startswith("Unfinished: ")
    assert "`mishika-migrate copy --resume`" in done.out
    assert f"Still to copy: {LOGS}" in done.out
    summary = run("status", "--target", target_url, "--json").lines()[0]
    assert (summary["waiting"], summary["working"]) == ([LOGS], "")
    assert summary["unfinished"]
    planned = run("plan", "--source", source_url, "--target", target_url)
    assert "is unfinished; `mishika-migrate copy --resume --source " in planned.err
    again = run("copy", "--yes", "--source", source_url, "--target", target_url)
    assert again.status == 5
    assert "copy --resume" in again.err
    resumed = run("copy", "--resume", "--include-usage", "--source", source_url, "--target", target_url)
    assert resumed.status == 0, resumed.err
    assert "warning: --include-usage changes nothing" in resumed.err
    assert "Continuing run " in resumed.err
    assert run("status", "--target", target_url).out.startswith("Finished: ")


def test_while_a_run_works_status_says_so_and_nobody_else_may(
    source_url: str, target_url: str, start: Start, run: Run
) -> None:
    ends = ("--source", source_url, "--target", target_url)
    with locked(target_url, LOGS):
        program = start("copy", "--yes", "--include-spendlogs", "--lock-timeout", "0", *ends)
        wait_until(lambda: blocked(target_url) and landed(target_url, "MishikaLLM_VerificationToken"))
        done = run("status", "--target", target_url)
        assert done.out.startswith("Running: "), done.out
        assert run("status", "--target", target_url, "--json").lines()[0]["working"]
        removed = run("cleanup", "--yes", "--target", target_url)
        assert removed.status == 4
        assert "another run is working on" in removed.err
        again = run("copy", "--yes", *ends)
        assert again.status == 4
        assert "another run is working on" in again.err
    assert program.ended().status == 0


@pytest.mark.soak
def test_status_of_a_run_that_was_killed_does_not_say_that_it_works(
    source_url: str, target_url: str, start: Start, run: Run
) -> None:
    with locked(target_url, LOGS):
        program = start(
            "copy", "--yes", "--include-spendlogs", "--lock-timeout", "0",
            "--source", source_url, "--target", target_url,
        )  # fmt: skip
        wait_until(lambda: blocked(target_url))
        program.kill()
        wait_until(lambda: not blocked(target_url))
    assert run("status", "--target", target_url).out.startswith("Unfinished: ")


# -- cleanup --------------------------------------------------------------------------------------


def test_cleanup_removes_the_ledger_and_no_row(source_url: str, target_url: str, run: Run) -> None:
    assert run("cleanup", "--yes", "--target", target_url).out.startswith("Nothing to remove on ")
    assert run("copy", "--yes", "--source", source_url, "--target", target_url).status == 0
    (line,) = run("cleanup", "--yes", "--json", "--target", target_url).lines()
    assert (line["event"], line["removed"]) == ("cleanup", True)
    assert ask(target_url, "SELECT to_regnamespace('mishika_migrate') IS NULL")
    assert ask(target_url, 'SELECT count(*) FROM "MishikaLLM_VerificationToken"') == 300


def test_cleanup_warns_of_an_unfinished_run(unfinished: Unfinished, target_url: str, run: Run) -> None:
    unfinished()
    done = run("cleanup", "--yes", "--target", target_url)
    assert done.status == 0
    assert "is unfinished and cannot be resumed afterwards" in done.err
