"""Standard streams as shells hand them over: closed, broken, full, not UTF-8; and who writes where."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.fix_program import Run, command, environment


def shell(words: str, folder: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """`words` in bash, where `mm` is the program."""
    prelude = f'set -o pipefail; mm() {{ {" ".join(command())} "$@"; }}; '
    return subprocess.run(
        ["bash", "-c", prelude + words], cwd=folder, env=environment(env), capture_output=True, timeout=60, check=False
    )


def test_results_go_to_stdout_and_the_rest_to_stderr(source_url: str, target_url: str, run: Run) -> None:
    ends = ("--source", source_url, "--target", target_url)
    planned = run("plan", *ends)
    assert (planned.status, planned.err) == (0, "")
    copied = run("copy", "--yes", *ends)
    assert copied.out.startswith("Done: ")
    assert copied.out.splitlines()[1] == "Rows out = rows in = ledger, for every table."
    assert "MishikaLLM_VerificationToken: 300 rows" in copied.err
    assert "From  " in copied.err
    assert run("status", "--target", target_url).err == ""


def test_one_plain_line_a_table_without_a_terminal(source_url: str, target_url: str, run: Run) -> None:
    done = run("copy", "--yes", "--source", source_url, "--target", target_url, env={"COLUMNS": "20"})
    finished = [line for line in done.err.splitlines() if re.match(r"MishikaLLM_\w+: [\d,]+ rows?, ", line)]
    assert len(finished) == 16
    assert "\x1b" not in done.err + done.out


def test_quiet_leaves_the_result_alone(source_url: str, target_url: str, run: Run) -> None:
    done = run("copy", "--yes", "-q", "--source", source_url, "--target", target_url)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("Done: ")


def test_json_is_all_that_is_on_stdout(source_url: str, target_url: str, run: Run) -> None:
    ends = ("--source", source_url, "--target", target_url)
    assert [line["event"] for line in run("plan", "--json", *ends).lines()] == ["plan"]
    events = [line["event"] for line in run("copy", "--yes", "--json", *ends).lines()]
    assert events[0] == "run_started"
    assert events[-1] == "run_finished"
    assert events.count("step_finished") > 16


@pytest.mark.parametrize("arguments", ["tables", "tables --json", "copy --help"])
def test_reader_may_go_away(arguments: str, tmp_path: Path) -> None:
    for reader in ("head -1", "true"):
        done = shell(f"mm {arguments} | {reader}", tmp_path)
        assert (done.returncode, done.stderr) == (0, b"")


def test_reader_that_goes_away_ends_no_copy(source_url: str, target_url: str, tmp_path: Path, run: Run) -> None:
    done = shell(
        'mm copy --yes --json | head -1', tmp_path,
        {"MISHIKA_MIGRATE_SOURCE": source_url, "MISHIKA_MIGRATE_TARGET": target_url},
    )  # fmt: skip
    assert done.returncode == 0
    assert json.loads(done.stdout)["event"] == "run_started"
    assert run("status", "--target", target_url).out.startswith("Finished: ")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("mm tables >&-", 0, b""),
        ("mm tables --json >&-", 0, b""),
        ("mm --help >&-", 0, b""),
        ("mm status 2>&-", 2, b""),
        ("mm status <&- >&- 2>&-", 2, b""),
        ("mm tables >/dev/full", 8, b"error: stdout did not take the whole result"),
        ("mm tables --json >/dev/full", 8, b"error: stdout did not take the whole result"),
        ("mm --help >/dev/full", 8, b"error: stdout did not take the whole result"),
        ("mm status 2>/dev/full", 2, b""),
    ],
)
def test_stream_that_is_closed_or_full(words: str, status: int, said: bytes, tmp_path: Path) -> None:
    done = shell(words, tmp_path)
    assert done.returncode == status
    assert done.stderr.startswith(said)
    assert b"Traceback" not in done.stderr
    assert said or not done.stderr


def test_full_log_ends_no_copy(source_url: str, target_url: str, tmp_path: Path) -> None:
    ends = {"MISHIKA_MIGRATE_SOURCE": source_url, "MISHIKA_MIGRATE_TARGET": target_url}
    done = shell("mm copy --yes 2>/dev/full", tmp_path, ends)
    assert done.returncode == 0
    assert done.stdout.startswith(b"Done: ")


@pytest.mark.parametrize("options", ["", "--json"])
def test_full_stdout_does_not_hide_that_the_copy_is_complete(
    options: str, source_url: str, target_url: str, tmp_path: Path, run: Run
) -> None:
    ends = {"MISHIKA_MIGRATE_SOURCE": source_url, "MISHIKA_MIGRATE_TARGET": target_url}
    done = shell(f"mm copy --yes -q {options} >/dev/full", tmp_path, ends)
    assert done.returncode == 8
    assert done.stderr.decode().splitlines() == [
        "error: the copy is complete, but stdout did not take its result: No space left on device",
        "hint: `mishika-migrate status` shows it.",
    ]
    assert run("status", "--target", target_url).out.startswith("Finished: ")
    done = shell("mm cleanup --yes >/dev/full", tmp_path, ends)
    assert (done.returncode, b"the ledger is removed, but" in done.stderr) == (8, True)


@pytest.mark.parametrize(
    "env", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_streams_that_are_not_utf_8(env: Mapping[str, str], source_url: str, tmp_path: Path) -> None:
    ends = {"MISHIKA_MIGRATE_SOURCE": source_url, "MISHIKA_MIGRATE_TARGET": source_url}
    done = shell("mm plan", tmp_path, {**env, **ends})
    assert done.returncode == 4
    assert done.stdout.isascii()
    assert b"x refuse" in done.stdout
    assert shell("mm --help", tmp_path, env).returncode == 0
    (line,) = shell("mm tables --json --matrix m\u00f6.yaml", tmp_path, env).stdout.splitlines()
    assert json.loads(line)["event"] == "error"


@pytest.mark.parametrize("columns", ["abc", "0", "99999999999999999999"])
def test_columns_may_be_nonsense(columns: str, run: Run) -> None:
    done = run("tables", env={"COLUMNS": columns})
    assert (done.status, done.err) == (0, "")
    assert max(map(len, done.out.splitlines())) <= 120
