"""docs/commands.md says what the app says."""

from __future__ import annotations

import pytest

from tests.cli import commands_page


def test_page_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stale = "docs/commands.md is stale: run python -m tests.cli.commands_page"
    assert commands_page.PAGE.read_text(encoding="utf-8") == commands_page.page(), stale


def test_page_names_every_option_with_its_variable() -> None:
    page = commands_page.page()
    for words in ("## `plan`", "## `demo`", "`--jobs N`, `-j`", "`MISHIKA_MIGRATE_JOBS`", "`--no-yes`"):
        assert words in page
    assert "None" not in page
    assert page.endswith("\n") and not page.endswith("\n\n")
