"""The program itself: versions, help, completion, how soon it answers."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fix_program import Run, command, environment

COMMANDS = ("plan", "copy", "tables", "status", "cleanup", "demo")


def test_version_names_the_libraries(run: Run) -> None:
    done = run("--version")
    assert done.status == 0
    assert re.fullmatch(r"mishika-migrate [\d.]+ \(psycopg [\d.]+, libpq [\d.]+\)\n", done.out)


def test_script_and_module_are_the_same() -> None:
    script = shutil.which("mishika-migrate", path=str(Path(sys.executable).parent))
    assert script
    said = subprocess.run([script, "--version"], env=environment(), capture_output=True, text=True, check=True)
    module = subprocess.run(command("--version"), env=environment(), capture_output=True, text=True, check=True)
    assert said.stdout == module.stdout


def test_nothing_said_shows_the_help_and_is_a_mistake(run: Run) -> None:
    done = run()
    assert done.status == 2
    assert "Usage: mishika-migrate" in done.out
    assert done.err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str, run: Run) -> None:
    done = run(command, "-h", env={"COLUMNS": "80"})
    assert done.status == 0
    assert f"Usage: mishika-migrate {command}" in done.out
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_shown(shell: str, run: Run) -> None:
    done = run("--show-completion", shell, env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert done.status == 0, done.err
    assert "mishika" in done.out


def test_completion_completes_commands_and_options(run: Run) -> None:
    def completed(words: str, number: int) -> list[str]:
        env = {"_MISHIKA_MIGRATE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(number)}
        return run(env=env).out.split()

    assert completed("mishika-migrate c", 1) == ["copy", "cleanup"]
    assert "--include-spendlogs" in completed("mishika-migrate copy --inc", 2)


def test_help_is_there_at_once() -> None:
    # 0.35 s is promised for this project's machine; twice that still tells a heavy import elsewhere.
    for arguments in ((), ("copy",)):
        took = []
        for _ in range(5):
            began = time.monotonic()
            subprocess.run(command(*arguments, "--help"), env=environment(), capture_output=True, check=True)
            took.append(time.monotonic() - began)
        assert statistics.median(took) < 0.7, took


def test_help_imports_nothing_heavy() -> None:
    seen = subprocess.run(
        [sys.executable, "-X", "importtime", *command("copy", "--help")[1:]],
        env=environment(), capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    for module in ("psycopg", "yaml", "tenacity", "mishika_migrate.plan", "mishika_migrate.report", "asyncio"):
        assert not re.search(rf"\| +{re.escape(module)}$", seen, re.MULTILINE), module
