"""What the operator wants, from flags and environment, then `mishika-migrate.yaml`, then defaults.

Imports `errors`, `model`, `addresses`, `proxy` and `matrix.document`, which reads YAML.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from mishika_migrate import addresses, errors, model
from mishika_migrate import proxy as proxies
from mishika_migrate.matrix import document

FILE = "mishika-migrate.yaml"
PREFIX = "MISHIKA_MIGRATE_"
GROUPS = ("spendlogs", "errorlogs", "usage", "auditlogs")
NAMES = (
    "source", "target", "matrix", "proxy_config", *(f"include_{group}" for group in GROUPS), "include",
    "exclude", "only", "everything", "create_schema", "jobs", "dry_run", "resume", "yes", "json", "quiet", "verbose",
    "retries", "retry_seconds", "lock_timeout", "batch_size", "defer_indexes", "toast_compression",
    "spendlogs_since", "spendlogs_last", "spendlogs_before",
    "executor", "max_rate", "pause_if_lag", "verify", "level", "hash", "sample", "max_differences", "snapshot",
    "fenced", "recheck", "recheck_wait", "view_timeout", "allow_unchecked", "report", "sample_keys", "salt_key_env",
    "master_key_env", "proxy",
)  # fmt: skip
"""The options, as `load` takes them; flags and the file write them with dashes."""

_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
_DAY = 86_400.0
_SIZES = {"": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9}
Defer = Literal["auto", "always", "never"]
Compression = Literal["auto", "lz4", "pglz", "server"]
Hash = Literal["fast", "exact"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a command may ask. `retries` counts attempts of one step, times are in seconds.

    `lock_timeout` 0 waits without a limit; `retry_seconds` bounds all attempts of a step together.
    `groups` are those of `GROUPS` that are wanted. `batch_size` is in bytes. `executor` is `threads`,
    `processes` or `dask=ADDRESS`; `max_rate` is in bytes a second, None without a limit.
    `pause_if_lag` is None where no standby is waited for. `sample` is a share of rows. `sample_keys` is
    a file's path or `-`; `salt_key_env` and `master_key_env` name variables. `warnings` are for the
    operator, whatever happens.
    """

    source: model.Endpoint | None = None
    target: model.Endpoint | None = None
    matrix: Path | None = None
    proxy: proxies.Config | None = None
    groups: frozenset[str] = frozenset()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    everything: bool = False
    create_schema: bool = False
    jobs: int = 4
    spendlogs_since: datetime | None = None
    spendlogs_before: datetime | None = None
    batch_size: int = 64_000_000
    defer_indexes: Defer = "auto"
    toast_compression: Compression = "auto"
    dry_run: bool = False
    resume: bool = False
    yes: bool = False
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    retries: int = 5
    retry_seconds: float = 120.0
    lock_timeout: float = 10.0
    executor: str = "threads"
    max_rate: int | None = None
    pause_if_lag: float | None = None
    verify: bool = True
    level: model.Level = "content"
    hash: Hash = "fast"
    sample: float = 1.0
    max_differences: int = 100
    snapshot: str = ""
    fenced: bool = False
    recheck: int = 0
    recheck_wait: float = 5.0
    view_timeout: float = 30.0
    allow_unchecked: tuple[str, ...] = ()
    reports: tuple[Path, ...] = ()
    sample_keys: str | None = None
    salt_key_env: str | None = None
    master_key_env: str | None = None
    proxy_url: str | None = None
    warnings: tuple[str, ...] = ()

    def need_source(self) -> model.Endpoint:
        """The source, or a `ConfigurationError` that says how to name one."""
        return _needed(self.source, "source")

    def need_target(self) -> model.Endpoint:
        """The target, or a `ConfigurationError` that says how to name one."""
        return _needed(self.target, "target")


def load(
    given: Mapping[str, object],
    *,
    environ: Mapping[str, str],
    config: Path | None = None,
    directory: Path = Path(),
) -> Settings:
    """The settings: `given` (flags, else environment; None is not given) > the file > defaults.

    The file is `config`, which must exist, or `mishika-migrate.yaml` in `directory` if there is one.
    Its relative paths count from its own folder. Whatever is wrong is a `ConfigurationError`.
    """
    said = _Said(given, environ, _file(config, directory))
    now = datetime.now(UTC)
    proxy_path = said.path("proxy_config")
    needed = not said.has("source")
    proxy = proxies.read(proxy_path, environ, needed=needed) if proxy_path else None
    settings = Settings(
        source=said.endpoint("source") or _proxy_source(proxy, environ),
        target=said.endpoint("target"),
        matrix=said.path("matrix"),
        proxy=proxy,
        groups=frozenset(group for group in GROUPS if said.flag(f"include_{group}") or said.implies(group)),
        include=said.texts("include"),
        exclude=said.texts("exclude"),
        only=said.texts("only"),
        everything=said.flag("everything"),
        create_schema=said.flag("create_schema"),
        jobs=said.whole("jobs", default=4, most=64),
        spendlogs_since=said.since(now),
        spendlogs_before=said.moment("spendlogs_before"),
        batch_size=said.size("batch_size", default=64_000_000),
        defer_indexes=said.choice("defer_indexes", get_args(Defer)),
        toast_compression=said.choice("toast_compression", get_args(Compression)),
        dry_run=said.flag("dry_run"),
        resume=said.flag("resume"),
        yes=said.flag("yes"),
        json=said.flag("json"),
        quiet=said.flag("quiet"),
        verbose=said.flag("verbose"),
        retries=said.whole("retries", default=5, most=100),
        retry_seconds=said.seconds("retry_seconds", default=120.0),
        lock_timeout=said.seconds("lock_timeout", default=10.0),
        executor=said.executor("executor"),
        max_rate=said.rate("max_rate"),
        pause_if_lag=said.seconds("pause_if_lag", default=0.0) if said.has("pause_if_lag") else None,
        verify=said.flag("verify", default=True),
        level=said.choice("level", ("content", "keys", "counts")),
        hash=said.choice("hash", get_args(Hash)),
        sample=said.share("sample"),
        max_differences=said.whole("max_differences", default=100, most=100_000),
        snapshot=said.word("snapshot", "a snapshot's name, as pg_export_snapshot() gives it") or "",
        fenced=said.flag("fenced"),
        recheck=said.whole("recheck", default=0, most=1000, least=0),
        recheck_wait=said.seconds("recheck_wait", default=5.0),
        view_timeout=said.seconds("view_timeout", default=30.0),
        allow_unchecked=said.texts("allow_unchecked"),
        reports=said.paths("report"),
        sample_keys=said.word("sample_keys", "the path of a file, or -"),
        salt_key_env=said.word("salt_key_env", "the name of a variable"),
        master_key_env=said.word("master_key_env", "the name of a variable"),
        proxy_url=said.word("proxy", "the URL of a proxy"),
        warnings=said.warnings(),
    )
    _refuse_conflicts(settings, said)
    return settings


RATE = "bytes a second from 1kB/s to 1000GB/s, such as 50MB/s"


def rate(value: object) -> int | None:
    """Bytes a second of `50MB/s`, `50 MB` or 50000000; None for what is no rate."""
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]{1,13}(?:\.[0-9]{1,6})?) ?(k|kb|m|mb|g|gb|b)?(?:/s)?", value.lower(), re.ASCII)
        value = int(float(found[1]) * _SIZES[(found[2] or "").removesuffix("b")]) if found else None
    if not isinstance(value, int) or isinstance(value, bool) or not 10**3 <= value <= 10**12:
        return None
    return value


def _file(config: Path | None, directory: Path) -> document.Document | None:
    path = config or directory / FILE
    if config is None and not _exists(path):
        return None
    found = document.read(path)
    if isinstance(found.value, dict) and True in found.value:
        # YAML 1.1 reads a bare yes, on and true alike; consent is not a thing to guess.
        raise found.error("a bare yes is no key in YAML", True, hint="Write it in quotes, as in '\"yes\": true'.")
    seen: dict[str, str] = {}
    for key in document.names(found):
        name = key.replace("-", "_")
        if name not in NAMES:
            known = [known.replace("_", "-") for known in NAMES]
            raise found.error(document.unknown(key), key, hint=document.nearest(key, known, what="keys"))
        if name in seen:
            raise found.error(f"{key} and {seen[name]} are the same key", key, hint="Keep one of the two.")
        seen[name] = key
    return found


def _exists(path: Path) -> bool:
    try:
        return path.exists() or path.is_symlink()  # one that leads nowhere was meant to lead somewhere
    except OSError:  # a folder that may not be searched; reading the file says so
        return True


def _needed(endpoint: model.Endpoint | None, role: model.Role) -> model.Endpoint:
    if endpoint is None:
        hint = f"Give --{role}, set {PREFIX}{role.upper()}, or write '{role}: …' into {FILE}."
        raise errors.ConfigurationError(f"no {role} given", hint=hint)
    return endpoint


def _proxy_source(proxy: proxies.Config | None, environ: Mapping[str, str]) -> model.Endpoint | None:
    if proxy is None or proxy.database_url is None:
        return None
    return addresses.endpoint(proxy.database_url, role="source", origin=proxy.database_origin, environ=environ)


def _refuse_conflicts(settings: Settings, said: _Said) -> None:
    both = [name for name in settings.include if name in settings.exclude]
    if both:
        raise errors.ConfigurationError(
            f"{said.origin('exclude')}: {document.named(both[0], otherwise='a table')} is in both include and exclude",
            hint="Name a table in one of the two.",
        )
    for name in ("include", "everything", "create_schema", *(f"include_{group}" for group in GROUPS)):
        if settings.only and said.value(name, None):
            other = name.replace("_", "-")
            raise errors.ConfigurationError(
                f"{said.origin('only')}: only and {other} exclude each other",
                hint=f"Leave {other} out: only names all that is copied.",
            )
    if settings.everything and settings.include:
        raise errors.ConfigurationError(
            f"{said.origin('include')}: include and everything exclude each other",
            hint="Leave include out: everything takes those tables too.",
        )


class _Said:
    """What was said about each option, by whom, and what type it must have."""

    def __init__(self, given: Mapping[str, object], environ: Mapping[str, str], file: document.Document | None) -> None:
        self.environ = environ
        self.given = {name: value for name, value in given.items() if value not in (None, (), [])}
        self.file = file
        content = file.value if file and isinstance(file.value, dict) else {}
        self.keys = {key.replace("-", "_"): key for key in content}
        self.content = {name: content[key] for name, key in self.keys.items()}
        for name in self.given:
            if name not in NAMES:
                raise errors.ConfigurationError(
                    f"{_flag(name)}: no such option",
                    hint=document.nearest(_flag(name), [_flag(known) for known in NAMES], what="options"),
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
        if not isinstance(value, str) or not re.fullmatch(r"threads|processes|dask=\S+", value):
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
        except ValueError:
            raise self.wrong(name, "a date or time such as 2026-08-01 or 2026-08-01T12:00") from None
        return found.astimezone(UTC).replace(tzinfo=None) if found is not None and found.tzinfo else found

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
        """One of `choices`, the first by default."""
        value = self.value(name, choices[0])
        if value not in choices:
            raise self.wrong(name, f"one of {', '.join(choices)}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.value(name, ())
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
            raise self.wrong(name, "a list of names")
        return tuple(dict.fromkeys(value))

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

    def endpoint(self, role: model.Role) -> model.Endpoint | None:
        if not self.has(role):
            return None
        value = self.value(role, None)
        if not isinstance(value, str):
            raise self.wrong(role, "a connection string")
        return addresses.endpoint(value, role=role, origin=self.origin(role), environ=self.environ)

    def warnings(self) -> tuple[str, ...]:
        """Passwords that lie open: in a process list, or in a file that others can read."""
        found = []
        for role in ("source", "target"):
            endpoint = self.endpoint(role)
            if endpoint is None or not addresses.has_secret(endpoint):
                continue
            if self.origin(role) == _flag(role):
                found.append(
                    f"--{role} carries a password, which other users can read in the process list: "
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
