"""The program as a user runs it: a child process with its own environment and exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a run of the program left: its status and both streams."""

    status: int
    out: str
    err: str

    def lines(self) -> list[dict[str, Any]]:
        """stdout as JSON lines; fails when anything else is among them."""
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Ended]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mishika_migrate", *arguments]


# A copy's proof has tests of its own, which say --verify; with all others it would cost the suite minutes.
_UNPROVEN = {"MISHIKA_MIGRATE_VERIFY": "false"}


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The test's environment without anything that would speak for the program's options but the proof."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MISHIKA_MIGRATE_", "PG"))}
    return {**kept, **_UNPROVEN, "COLUMNS": "120", **(extra or {})}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run("plan", "--source", …, env={…})` in an empty folder."""

    def call(*arguments: str, env: Mapping[str, str] | None = None, input: str | None = None) -> Ended:
        done = subprocess.run(
            command(*arguments),
            env=environment(env),
            cwd=tmp_path,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Ended(status=done.returncode, out=done.stdout, err=done.stderr)

    return call
