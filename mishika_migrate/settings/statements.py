"""What was said about each option, by whom, and what type it must have.

Imports `errors`, `model`, `addresses` and `matrix.document`. `settings` makes one value of it.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

from mishika_migrate import errors, model
from mishika_migrate.matrix import document
from mishika_migrate.settings import addresses

PREFIX = "MISHIKA_MIGRATE_"

_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
_DAY = 86_400.0
_SIZES = {"": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9}
RATE = "bytes a second from 1kB/s to 1000GB/s, such as 50MB/s"


def rate(value: object) -> int | None:
    """Bytes a second of `50MB/s`, `50 MB` or 50000000; None for what is no rate."""
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]{1,13}(?:\.[0-9]{1,6})?) ?(k|kb|m|mb|g|gb|b)?(?:/s)?", value.lower(), re.ASCII)
        value = int(float(found[1]) * _SIZES[(found[2] or "").removesuffix("b")]) if found else None
    if not isinstance(value, int) or isinstance(value, bool) or not 10**3 <= value <= 10**12:
        return None
    return value


class Statements:
    """What was said about each option, by whom, and what type it must have."""

    def __init__(
        self,
        given: Mapping[str, object],
        environ: Mapping[str, str],
        file: document.Document | None,
        *,
        names: Collection[str],
    ) -> None:
        self.environ = environ
        self.given = {name: value for name, value in given.items() if value not in (None, (), [])}
        self.file = file
        content = file.value if file and isinstance(file.value, dict) else {}
        self.keys = {key.replace("-", "_"): key for key in content}
        self.content = {name: content[key] for name, key in self.keys.items()}
        for name in self.given:
            if name not in names:
                raise errors.ConfigurationError(
                    f"{_flag(name)}: no such option",
                    hint=document.nearest(_flag(name), [_flag(known) for known in names], what="options"),
                )

    def has(self, name: str) -> bool:
        return name in self.given or name in self.content

    def origin(self, name: str) -> str:
        """The variable, the flag, or file and line."""
        variable = PREFIX + name.upper()
        if name in self.given:
            return variable if self.environ.get(variable) == str(self.given[name]) else _flag(name)
        return self.file.where(self.keys[name]) if self.file and name in self.keys else _flag(name)

    def wrong(self, name: str, expected: str) -> errors.ConfigurationError:
        option = name.replace("_", "-")
        return errors.ConfigurationError(
            f"{self.origin(name)}: {option} must be {expected}",
            hint=f"Give {option} as {expected}.",
        )

    def value(self, name: str, default: object) -> object:
        return self.given.get(name, self.content.get(name, default))

    def flag(self, name: str, *, default: bool = False) -> bool:
        value = self.value(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def whole(self, name: str, *, default: int, most: int, least: int = 1) -> int:
        value = self.value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(name, f"a whole number from {least} to {most}")
        return value

    def share(self, name: str) -> float:
        """A share of all rows, written with a percent sign."""
        value = self.value(name, "100%")
        found = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,4})?) ?%", str(value), re.ASCII)
        if not found or not 0 < float(found[1]) <= 100:
            raise self.wrong(name, "a share of the rows such as 1% or 0.1%")
        return float(found[1]) / 100

    def word(self, name: str, expected: str) -> str | None:
        value = self.value(name, None)
        if value is not None and (not isinstance(value, str) or not value.strip() or not value.isprintable()):
            raise self.wrong(name, expected)
        return value if isinstance(value, str) else None

    def seconds(self, name: str, *, default: float) -> float:
        """Seconds as a number, or as text with a unit as Postgres writes it."""
        value = self.value(name, default)
        if isinstance(value, str):
            found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(ms|s|min|h)?", value, re.ASCII)
            value = float(found[1]) * _UNITS[found[2] or ""] if found else math.nan
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _DAY:
            raise self.wrong(name, "0 to 86400 seconds, such as 10, 500ms or 2min")
        return float(value)

    def size(self, name: str, *, default: int) -> int:
        """Bytes as a number, or as text with a unit."""
        value = self.value(name, default)
        if isinstance(value, str):
            found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([kmg]?b?)", value.lower(), re.ASCII)
            value = int(float(found[1]) * _SIZES[found[2].removeprefix("b")]) if found else -1
        if not isinstance(value, int) or isinstance(value, bool) or not 10**6 <= value <= 10**12:
            raise self.wrong(name, "a size from 1MB to 1000GB, such as 64MB")
        return value

    def rate(self, name: str) -> int | None:
        """Bytes a second as a number, or as text with a unit."""
        if not self.has(name):
            return None
        found = rate(self.value(name, None))
        if found is None:
            raise self.wrong(name, RATE)
        return found

    def executor(self, name: str) -> str:
        value = self.value(name, "threads")
        if not isinstance(value, str) or not re.fullmatch(r"threads|processes|dask=[a-z]+://\S+", value):
            raise self.wrong(name, "threads, processes or dask=ADDRESS, such as dask=tcp://host:8786")
        return value

    def implies(self, group: str) -> bool:
        """A part of a group cannot be wanted without the group."""
        return any(self.has(f"{group}_{part}") for part in ("since", "last", "before"))

    def moment(self, name: str) -> datetime | None:
        """A date or a time as the proxy writes them: UTC without a zone. One with a zone is converted."""
        value = self.value(name, None)
        try:
            found = datetime.fromisoformat(str(value)) if value is not None else None
            return found.astimezone(UTC).replace(tzinfo=None) if found is not None and found.tzinfo else found
        except (ValueError, OverflowError):
            raise self.wrong(name, "a date or time such as 2026-08-01 or 2026-08-01T12:00") from None

    def since(self, now: datetime) -> datetime | None:
        """The begin of the request log's part: a moment, or so long before now."""
        if not self.has("spendlogs_last"):
            return self.moment("spendlogs_since")
        if self.has("spendlogs_since"):
            raise errors.ConfigurationError(
                f"{self.origin('spendlogs_last')}: spendlogs-last and spendlogs-since exclude each other",
                hint="Give one of the two.",
            )
        found = re.fullmatch(r"([0-9]{1,5}) ?(h|d|w)", str(self.value("spendlogs_last", "")), re.ASCII)
        if not found:
            raise self.wrong("spendlogs_last", "a time such as 90d, 12h or 4w")
        hours = int(found[1]) * {"h": 1, "d": 24, "w": 168}[found[2]]
        return (now - timedelta(hours=hours)).replace(tzinfo=None, microsecond=0)

    def choice(self, name: str, choices: tuple[str, ...]) -> Any:
        """One of `choices`, the first by default; an empty one stands for none."""
        value = self.value(name, choices[0])
        if value not in choices:
            raise self.wrong(name, f"one of {', '.join(filter(None, choices))}")
        return value

    def some(self, name: str, *, among: Collection[str]) -> tuple[str, ...]:
        """A list of words that are known."""
        found = self.texts(name)
        if unknown := [word for word in found if word not in among]:
            option = name.replace("_", "-")
            raise errors.ConfigurationError(
                f"{self.origin(name)}: {option} takes no {document.named(unknown[0], otherwise='such check')}",
                hint=f"It takes {', '.join(among)}.",
            )
        return found

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.value(name, ())
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
            raise self.wrong(name, "a list of names")
        return tuple(dict.fromkeys(value))

    def existing(self, name: str) -> tuple[tuple[str, model.Existing], ...]:
        """Pairs of a table or group and what becomes of its rows on the target; "" means all others."""
        value = self.value(name, ())
        found: dict[str, model.Existing] = {}
        for item in [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]:
            table, _, wish = str(item).rpartition("=")
            existing = next((known for known in get_args(model.Existing) if known == wish), None)
            if existing is None or (str(item).startswith("=")):
                raise self.wrong(name, f"{', '.join(get_args(model.Existing))}, or one of them for a table: NAME=skip")
            if found.get(table, existing) != existing:
                whose = document.named(table, otherwise="a table") if table else "all tables"
                raise errors.ConfigurationError(
                    f"{self.origin(name)}: on-existing says two things about {whose}", hint="Keep one of the two."
                )
            found[table] = existing
        return tuple(found.items())

    def path(self, name: str) -> Path | None:
        if not self.has(name):
            return None
        value = self.value(name, None)
        if not isinstance(value, str | Path) or not str(value):
            raise self.wrong(name, "the path of a file")
        from_file = self.file if name not in self.given else None
        return Path(from_file.path).parent / value if from_file else Path(value)

    def paths(self, name: str) -> tuple[Path, ...]:
        value = self.value(name, ())
        many = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(each, str | Path) and str(each) for each in many):
            raise self.wrong(name, "paths of files")
        base = Path(self.file.path).parent if self.file and name not in self.given else Path()
        return tuple(base / str(each) for each in many)

    def endpoint(self, role: model.Role, name: str = "") -> model.Endpoint | None:
        """That side's address, as this machine or, under another `name`, somebody else sees it."""
        name = name or role
        if not self.has(name):
            return None
        value = self.value(name, None)
        if not isinstance(value, str):
            raise self.wrong(name, "a connection string")
        return addresses.endpoint(value, role=role, origin=self.origin(name), environ=self.environ)

    def warnings(self) -> tuple[str, ...]:
        """Passwords that lie open: in a process list, or in a file that others can read."""
        found = []
        sides: tuple[tuple[model.Role, str], ...] = (
            ("source", "source"),
            ("target", "target"),
            ("source", "source_from_target"),
            ("target", "target_from_source"),
        )
        for side, role in sides:
            endpoint = self.endpoint(side, role)
            if endpoint is None or not addresses.has_secret(endpoint):
                continue
            if self.origin(role) == _flag(role):
                found.append(
                    f"{_flag(role)} carries a password, which other users can read in the process list: "
                    f"set {PREFIX}{role.upper()} instead, or keep the password in ~/.pgpass"
                )
            elif role not in self.given and self.file and _open_to_others(Path(self.file.path)):
                found.append(
                    f"{self.origin(role)}: {role} holds a password, and other users can read the file: "
                    f"chmod 600 {self.file.path}"
                )
        return tuple(found)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _open_to_others(path: Path) -> bool:
    # Windows has no such bits, and Python shows 0o666 for every file there.
    return os.name == "posix" and bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
