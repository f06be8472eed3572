"""docs/commands.md, written from the app itself: `python -m tests.cli.commands_page`.

The page depends on the app alone: not on a terminal's width, the environment or Typer's own layout.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from mishika_migrate.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"

_TOP = """\
# Commands

<!-- Written by `python -m tests.cli.commands_page`; a test fails when it is stale. -->

{help}

`mishika-migrate --version` shows the versions of the tool, psycopg and libpq; `--install-completion` sets up the
shell's completion; `COMMAND --help` shows what stands here. Numbers and times in brackets are defaults. Every option
can also be said by its variable, and most of them in `mishika-migrate.yaml`: see [configuration](configuration.md).
Statuses are explained in [exit-codes](exit-codes.md), the lines of `--json` in [json](json.md).
"""


def page() -> str:
    """The whole page, as Markdown."""
    root: Any = typer.main.get_command(main.app)
    parts = [_TOP.format(help=root.help)]
    parts += ["\n".join(_command(name, command)) for name, command in _commands(root)]
    return "\n".join(parts)


def _commands(root: Any) -> Iterator[tuple[str, Any]]:
    """With those of groups, by their whole names."""
    for name, command in root.commands.items():
        yield name, command
        yield from ((f"{name} {part}", each) for part, each in getattr(command, "commands", {}).items())


def _command(name: str, command: Any) -> Iterator[str]:
    yield f"## `{name}`"
    yield ""
    yield inspect.cleandoc(command.help)
    yield ""
    groups: dict[str, list[Any]] = {}
    for given in command.params:
        if given.param_type_name == "argument":
            yield f"`{given.metavar}`: {given.help}"
            yield ""
    for option in command.params:
        if option.param_type_name == "argument":
            continue
        groups.setdefault(option.rich_help_panel, []).append(option)
    for title, options in groups.items():
        yield f"| {title} | variable | meaning |"
        yield "|---|---|---|"
        for option in options:
            yield f"| {_flags(option)} | `{option.envvar}` | {_cell(option.help)} |"
        yield ""


def _flags(option: Any) -> str:
    """`--jobs N`, `-j`; a switch also shows its opposite."""
    first, *others = option.opts
    value = f" {option.metavar}" if option.metavar else ""
    named = [f"`{first}{value}`", *(f"`{flag}`" for flag in others)]
    return ", ".join([*named, *(f"`{flag}`" for flag in option.secondary_opts)])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
