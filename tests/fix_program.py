"""The program as a user runs it: a child process with its own environment and exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
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


# What Python reads when it starts, so that a fork comes too late for it.
_AT_START = ("PYTHON", "LC_", "LANG", "TZ")
_PATIENCE = 120.0


class Forker:
    """See `tests.forked`: one a test worker, started at the first run."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forked.py"))],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, arguments: tuple[str, ...], folder: Path, env: Mapping[str, str], input: Path, streams: Path
    ) -> Ended:
        """In `folder`; the files of its streams are in `streams`."""
        out, err = streams / "out", streams / "err"
        asked = {
            "arguments": arguments,
            "folder": str(folder),
            "environment": dict(env),
            "in": str(input),
            "out": str(out),
            "err": str(err),
        }
        sending, answers = self._server.stdin, self._server.stdout
        assert sending is not None
        assert answers is not None
        sending.write(f"{json.dumps(asked)}\n")
        sending.flush()
        pid = int(answers.readline())
        late = threading.Timer(_PATIENCE, os.kill, [pid, signal.SIGKILL])
        late.start()
        status = int(answers.readline())
        late.cancel()
        assert status != -signal.SIGKILL, f"ended after {_PATIENCE:.0f} s: {arguments}"
        return Ended(status=status, out=out.read_text(encoding="utf-8"), err=err.read_text(encoding="utf-8"))

    def close(self) -> None:
        self._server.communicate()


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    made = Forker()
    yield made
    made.close()


@pytest.fixture
def run(tmp_path: Path, forker: Forker) -> Run:
    """`run("plan", "--source", …, env={…})` in an empty folder."""
    streams = tmp_path.with_name(f"{tmp_path.name}-streams")
    streams.mkdir()

    def call(*arguments: str, env: Mapping[str, str] | None = None, input: str | None = None) -> Ended:
        given = streams / "in"
        given.write_text(input or "", encoding="utf-8")
        if any(name.startswith(_AT_START) for name in env or {}):
            return _started(arguments, tmp_path, environment(env), given)
        return forker.run(arguments, tmp_path, environment(env), given, streams)

    return call


def _started(arguments: tuple[str, ...], folder: Path, env: Mapping[str, str], input: Path) -> Ended:
    """In a process of its own from the first instruction on."""
    with input.open("rb") as given:
        done = subprocess.run(
            command(*arguments),
            env=env,
            cwd=folder,
            stdin=given,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    return Ended(status=done.returncode, out=done.stdout, err=done.stderr)
