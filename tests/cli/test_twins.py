"""Every option has a twin in the environment; and the order in which flag, variable and file speak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from mishika_migrate import settings
from mishika_migrate.cli import main
from tests.fix_program import Run

ROOT: Any = typer.main.get_command(main.app)
NOBODY = "postgresql://u@127.0.0.1:1/x"


def options() -> list[tuple[str, Any]]:
    return [
        (name, option)
        for name, command in ROOT.commands.items()
        for option in command.params
        if "--help" not in option.opts and option.param_type_name == "option"
    ]


@pytest.mark.parametrize(("command", "option"), options(), ids=lambda value: getattr(value, "name", value))
def test_option_has_its_twin(command: str, option: Any) -> None:
    assert option.envvar == settings.PREFIX + option.opts[0].removeprefix("--").replace("-", "_").upper()
    assert option.help


def test_only_throttle_has_an_argument_and_each_option_one_meaning() -> None:
    arguments = [
        (name, given.name)
        for name, command in ROOT.commands.items()
        for given in command.params
        if given.param_type_name == "argument"
    ]
    assert arguments == [("throttle", "wish")]
    helps: dict[str, set[str]] = {}
    for _, option in options():
        helps.setdefault(option.opts[0], set()).add(option.help)
    assert [flag for flag, said in helps.items() if len(said) > 1] == []


def test_every_setting_is_an_option_and_the_other_way_round() -> None:
    own = {"config", "keys", "logs", "seed", "keep"}
    assert {option.name for _, option in options()} - own == set(settings.NAMES)


def test_flag_goes_before_environment_before_file_before_default(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mishika-migrate.yaml"
    variable = {"MISHIKA_MIGRATE_JOBS": "200"}
    ends = ("--source", NOBODY, "--target", NOBODY)
    file.write_text("jobs: 100\n")
    assert run("copy", *ends, "--jobs", "300", env=variable).err.startswith("error: --jobs: ")
    assert run("copy", *ends, env=variable).err.startswith("error: MISHIKA_MIGRATE_JOBS: ")
    assert run("copy", *ends).err.startswith("error: mishika-migrate.yaml:1: ")
    file.unlink()
    assert "Connection refused" in run("copy", *ends).err


def test_addresses_and_switches_come_from_the_environment(source_url: str, target_url: str, run: Run) -> None:
    env = {
        "MISHIKA_MIGRATE_SOURCE": source_url,
        "MISHIKA_MIGRATE_TARGET": target_url,
        "MISHIKA_MIGRATE_INCLUDE": "MishikaLLM_AuditLog usage",
        "MISHIKA_MIGRATE_INCLUDE_SPENDLOGS": "true",
        "MISHIKA_MIGRATE_JSON": "1",
    }
    (planned,) = run("plan", env=env).lines()
    chosen = {table["table"] for table in planned["chosen"]}
    assert {"MishikaLLM_AuditLog", "MishikaLLM_DailyTagSpend", "MishikaLLM_SpendLogs"} <= chosen
    (planned,) = run("plan", "--no-include-spendlogs", "--include", "errorlogs", env=env).lines()
    chosen = {table["table"] for table in planned["chosen"]}
    assert "MishikaLLM_ErrorLogs" in chosen
    assert not {"MishikaLLM_AuditLog", "MishikaLLM_SpendLogs"} & chosen


def test_yes_and_config_have_working_twins(source_url: str, target_url: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(f"source: {source_url}\ntarget: {target_url}\n")
    (tmp_path / "other.yaml").chmod(0o600)
    done = run("copy", env={"MISHIKA_MIGRATE_CONFIG": "other.yaml", "MISHIKA_MIGRATE_YES": "1"})
    assert done.status == 0, done.err


def test_empty_variables_say_nothing(run: Run) -> None:
    env = {"MISHIKA_MIGRATE_TARGET": "", "MISHIKA_MIGRATE_JSON": "", "MISHIKA_MIGRATE_MATRIX": ""}
    done = run("status", env=env)
    assert (done.status, done.out) == (2, "")
    assert "no target given" in done.err
