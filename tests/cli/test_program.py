"""The program itself: versions, help, completion, what it does without."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
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

    assert completed("mishika-migrate c", 1) == ["copy", "cutover", "complete", "cleanup"]
    assert "--include-spendlogs" in completed("mishika-migrate copy --inc", 2)


@pytest.mark.parametrize("arguments", [["--help"], ["copy", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    seen = subprocess.run(
        [sys.executable, "-X", "importtime", *command(*arguments)[1:]],
        env=environment(), capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    heavy = ("psycopg", "yaml", "tenacity", "asyncio", "rich.live", "mishika_migrate.plan", "mishika_migrate.report")
    for module in heavy:
        assert not re.search(rf"\| +{re.escape(module)}$", seen, re.MULTILINE), module
