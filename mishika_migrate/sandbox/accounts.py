"""Postgres refuses to run as root: which user it runs as instead, and what that user may reach.

Imports `errors` only. Everywhere in here None stands for "not root: run as who we are".
"""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from mishika_migrate import errors

_NAME = "mishika_sandbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user of this machine other than root."""

    name: str
    uid: int
    gid: int


class RunAs(TypedDict, total=False):
    """Keyword arguments of `subprocess.run` and `Popen`."""

    user: int
    group: int
    extra_groups: list[int]


def unprivileged() -> Account | None:
    """Who servers run as: `postgres`, else `mishika_sandbox`, which is added when missing."""
    if os.geteuid() != 0:
        return None
    found = _look_up("postgres") or _look_up(_NAME)
    if found is None:
        _add()
        found = _look_up(_NAME)
    if found is None:
        raise errors.ConfigurationError(f"user {_NAME} was added but cannot be found")
    return found


def run_as(account: Account | None) -> RunAs:
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def own(directory: Path, account: Account | None) -> None:
    """Makes `directory`, private to the account, and a way to it.

    Raises ConfigurationError, with nothing changed, where it is a file or holds something, where a
    parent is closed and is not ours to open, and, as root, where it exists outside the temporary
    directory: an empty /srv must not change hands.
    """
    try:
        _require_free(directory, account)
        _make(directory, account)
    except OSError as error:
        raise errors.ConfigurationError(
            f"directory {directory} cannot be used: {error.strerror}", hint="Name another directory."
        ) from error


def _require_free(directory: Path, account: Account | None) -> None:
    if not directory.exists():
        return
    if not directory.is_dir() or any(directory.iterdir()):
        raise errors.ConfigurationError(
            f"{directory} is not an empty directory", hint="Name a directory that does not exist yet."
        )
    if account is not None and not directory.is_relative_to(_temporary()):
        raise errors.ConfigurationError(
            f"directory {directory} exists, and root would have to give it to user {account.name}",
            hint="Name a directory that does not exist yet.",
        )


def _make(directory: Path, account: Account | None) -> None:
    missing = [place for place in directory.parents if not place.exists()]
    open_way(missing[-1] if missing else directory, account)
    for place in reversed(missing):
        place.mkdir()
        place.chmod(0o711)  # whatever the umask says: what we make is ours to open
    directory.mkdir(mode=0o700, exist_ok=True)
    if account is not None:
        directory.chmod(0o700)
        os.chown(directory, account.uid, account.gid, follow_symlinks=False)


def _temporary() -> Path:
    return Path(tempfile.gettempdir()).resolve()


def open_way(directory: Path, account: Account | None) -> None:
    """Lets the account walk through our own temporary directories down to `directory`.

    Others, such as /root, are left as they are and named in the error: opening them is the
    operator's decision.
    """
    if account is None:
        return
    temporary = _temporary()
    for place in reversed(directory.resolve().parents):
        known = place.stat()
        # pytest and mkdtemp make private directories, which an unprivileged server cannot enter.
        if place.is_relative_to(temporary) and known.st_uid == os.geteuid() and not _may_enter(known, account):
            place.chmod(stat.S_IMODE(known.st_mode) | stat.S_IXOTH)
    require_access(directory.parent, account)


def require_access(directory: Path, account: Account | None) -> None:
    """Raises ConfigurationError naming the first directory on the way that the account cannot enter."""
    if account is None:
        return
    for place in reversed((directory.resolve(), *directory.resolve().parents)):
        if not _may_enter(place.stat(), account):
            raise errors.ConfigurationError(
                f"Postgres runs as user {account.name}, who cannot enter {place} on the way to {directory}",
                hint=f"Run chmod o+x {place}, choose another place, or run as a user other than root.",
            )


def _may_enter(known: os.stat_result, account: Account) -> bool:
    if known.st_uid == account.uid:
        return bool(known.st_mode & stat.S_IXUSR)
    if known.st_gid == account.gid:
        return bool(known.st_mode & stat.S_IXGRP)
    return bool(known.st_mode & stat.S_IXOTH)


def _look_up(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid)


def _add() -> None:
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/bin/false", _NAME]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise errors.ConfigurationError(
            f"Postgres does not run as root, and user {_NAME} cannot be added",
            hint="Run as a user other than root, or add a user named postgres.",
        ) from error
