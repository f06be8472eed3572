"""Runs the program in children of one process that has imported it: a run without half a second of imports.

A child is as a user's process is: its own pid, arguments, environment, folder, streams and exit
status. Only what Python itself reads at its start (PYTHON*, LC_*, LANG) is this process's, so a
run that sets such a variable needs a process of its own. Started by `fix_program` as a script;
imports nothing of the tests.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import pkgutil
import sys
from typing import Any


def serve() -> None:
    """One JSON line in, one process; its pid as a line out, then its status as another."""
    _import_all()
    # The program's streams are the run's; the requests' must not leak into it.
    requests, answers = (os.fdopen(os.dup(number), mode) for number, mode in ((0, "r"), (1, "w")))
    for line in requests:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            requests.close()
            answers.close()
            _become(asked)
            return
        for said in (pid, None):
            number = pid if said else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            answers.write(f"{number}\n")
            answers.flush()


def _import_all() -> None:
    """Everything that any command would, before the first fork."""
    import mishika_migrate

    for found in pkgutil.walk_packages(mishika_migrate.__path__, "mishika_migrate."):
        if not found.name.endswith("__main__") and ".sandbox" not in found.name:
            importlib.import_module(found.name)


def _become(asked: dict[str, Any]) -> None:
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    for number, name, flags in (
        (0, "in", os.O_RDONLY),
        (1, "out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, "err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        opened = os.open(asked[name], flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = _stream(0, "rb")
    sys.stdout = _stream(1, "wb")
    sys.stderr = _stream(2, "wb", line_buffering=True, errors="backslashreplace")
    sys.argv = ["mishika-migrate", *asked["arguments"]]

    from mishika_migrate.cli import main

    main.main()


def _stream(number: int, mode: str, **how: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(open(number, mode, closefd=False), encoding="utf-8", **how)


if __name__ == "__main__":
    serve()
