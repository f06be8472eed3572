"""A lost terminal, and a program that is to outlive one."""

from __future__ import annotations

import shlex
import signal
import subprocess
from pathlib import Path

from tests.fix_faults import LOGS, Start, blocked, locked, wait_until
from tests.fix_program import Run, command, environment


def test_hangup_stops_cleanly_and_says_in_the_log_how_to_go_on(
    source_url: str, target_url: str, start: Start, run: Run
) -> None:
    ends = ("--source", source_url, "--target", target_url)
    with locked(target_url, LOGS):
        program = start("copy", "--yes", "--include-spendlogs", "--lock-timeout", "0", *ends)
        wait_until(lambda: blocked(target_url))
        # The kernel tells a lost terminal's programs, and so does the shell.
        program.signal(signal.SIGHUP)
        program.signal(signal.SIGHUP)
        done = program.ended()
    assert done.status == 129, done.err
    assert "steps have landed" in done.err
    assert "mishika-migrate copy --resume" in done.err
    assert run("status", "--target", target_url).out.startswith("Unfinished: ")
    assert run("copy", "--resume", *ends).status == 0


def test_hangup_does_not_stop_what_was_started_to_outlive_the_terminal(
    source_url: str, target_url: str, tmp_path: Path
) -> None:
    words = command("copy", "--yes", "--include-spendlogs", "--lock-timeout", "0")
    ends = {"MISHIKA_MIGRATE_SOURCE": source_url, "MISHIKA_MIGRATE_TARGET": target_url}
    with locked(target_url, LOGS):
        program = subprocess.Popen(
            ["sh", "-c", f"trap '' HUP; exec {shlex.join(words)}"],
            env=environment(ends), cwd=tmp_path, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            wait_until(lambda: blocked(target_url))
            program.send_signal(signal.SIGHUP)
        except BaseException:
            program.kill()
            raise
    out, err = program.communicate(timeout=60)
    assert (program.returncode, out.startswith("Done: ")) == (0, True), err
