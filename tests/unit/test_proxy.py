"""What the proxy's own file adds: four keys, read by the proxy's rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from mishika_migrate import errors
from mishika_migrate.settings import proxy

SECRET = "postgresql://u:hunter22@h/d"


def read(directory: Path, text: str, environ: dict[str, str] | None = None, *, needed: bool = True) -> proxy.Config:
    path = directory / "proxy_config.yaml"
    path.write_text(text)
    return proxy.read(path, environ or {}, needed=needed)


FULL = """
model_list:
  - model_name: gpt
    mishikallm_params: {model: openai/gpt, api_key: os.environ/KEY}
general_settings:
  master_key: sk-1234
  database_url: "postgresql://u:hunter22@old/db?connection_limit=10"
  disable_spend_logs: true
  disable_error_logs: true
  store_model_in_db: true
"""


def test_the_four_keys_are_read_and_all_others_left_alone(tmp_path: Path) -> None:
    made = read(tmp_path, FULL)
    assert made.database_url == "postgresql://u:hunter22@old/db?connection_limit=10"
    assert (made.disable_spend_logs, made.disable_error_logs, made.store_model_in_db) == (True, True, True)
    assert "hunter22" not in repr(made)
    assert made.path.endswith("proxy_config.yaml")


@pytest.mark.parametrize("text", ["model_list: []\n", "general_settings:\n", "general_settings: {database_url: }\n"])
def test_a_proxy_file_may_say_nothing(tmp_path: Path, text: str) -> None:
    made = read(tmp_path, text)
    assert made.database_url is None
    assert made.store_model_in_db is None
    assert proxy.implications(made) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("general_settings: []\n", ":1: general_settings"),
        ("general_settings:\n  database_url: 5\n", ":2: general_settings.database_url"),
        ("general_settings:\n  disable_spend_logs: 'on it'\n", ":2: general_settings.disable_spend_logs"),
        ("general_settings:\n\n  disable_error_logs: 1\n", ":3: general_settings.disable_error_logs"),
        ("general_settings:\n  store_model_in_db: []\n", ":2: general_settings.store_model_in_db"),
        ("general_settings:\n  database_url: os.environ/\n", ":2: database_url names"),
    ],
)
def test_a_wrong_type_in_the_proxy_file_has_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        read(tmp_path, text)
    assert message in caught.value.message


def test_references_to_the_environment_are_resolved(tmp_path: Path) -> None:
    text = "general_settings:\n  database_url: os.environ/URL\n  disable_spend_logs: os.environ/OFF\n"
    made = read(tmp_path, text, {"URL": SECRET, "OFF": "True"})
    assert made.database_url == SECRET
    assert made.disable_spend_logs
    assert "URL" in made.database_origin


@pytest.mark.parametrize("environ", [{}, {"URL": ""}])
def test_a_missing_variable_is_named(tmp_path: Path, environ: dict[str, str]) -> None:
    text = "general_settings:\n  database_url: os.environ/URL\n"
    with pytest.raises(errors.ConfigurationError, match=r":2: .*variable URL") as caught:
        read(tmp_path, text, environ)
    assert "--source" in caught.value.hint
    assert read(tmp_path, text, environ, needed=False).database_url is None


@pytest.mark.parametrize(
    ("key", "variable", "expected"),
    [
        (None, None, None), (None, "True", True), (None, "false", False), (None, "perhaps", None),
        ("false", "TRUE", True), ("true", "False", True), ("false", None, False), ("true", None, True),
    ],
)  # fmt: skip
def test_the_variable_switches_models_in_the_database_on_only(
    tmp_path: Path, key: str | None, variable: str | None, expected: bool | None
) -> None:
    text = f"general_settings: {{store_model_in_db: {key or 'null'}}}\n"
    environ = {} if variable is None else {"STORE_MODEL_IN_DB": variable}
    assert read(tmp_path, text, environ).store_model_in_db is expected


def test_an_included_file_replaces_the_general_settings(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("general_settings: {database_url: 'host=included'}\n")
    (tmp_path / "models.yaml").write_text("model_list: []\n")
    text = "include: [more.yaml, models.yaml]\ngeneral_settings: {database_url: 'host=main'}\n"
    made = read(tmp_path, text)
    assert made.database_url == "host=included"
    assert "more.yaml:1" in made.database_origin


def test_what_the_proxys_settings_imply_is_noted() -> None:
    on = proxy.Config(path="p", disable_spend_logs=True, disable_error_logs=True, store_model_in_db=True)
    notes = proxy.implications(on)
    assert [note.code for note in notes] == [
        "proxy-spend-logs-off",
        "proxy-error-logs-off",
        "proxy-models-in-database",
    ]
    assert all(note.severity == "note" and note.fix and note.subject in note.message for note in notes)
    off = proxy.Config(path="p", store_model_in_db=False)
    assert [note.code for note in proxy.implications(off)] == ["proxy-models-in-file"]
