"""What the operator wants, from flags and environment, then `mishika-migrate.yaml`, then defaults.

Imports `errors`, `model`, `addresses` and `matrix.document`, which reads YAML. Also reads the proxy's
own configuration file, which is not ours: leniently, and only for the few keys that matter to a move.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mishika_migrate import addresses, errors, model
from mishika_migrate.matrix import document

FILE = "mishika-migrate.yaml"
PREFIX = "MISHIKA_MIGRATE_"
GROUPS = ("spendlogs", "errorlogs", "usage", "auditlogs")
NAMES = (
    "source", "target", "matrix", "proxy_config", *(f"include_{group}" for group in GROUPS), "include",
    "exclude", "everything", "create_schema", "jobs", "dry_run", "resume", "yes", "json", "quiet", "verbose",
    "retries", "retry_seconds", "lock_timeout",
)  # fmt: skip
"""The options, as `load` takes them; flags and the file write them with dashes."""

_REFERENCE = "os.environ/"
_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
_DAY = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """What the proxy's own file says about its database, with references to the environment resolved.

    `store_model_in_db` is None where neither the file nor the environment says it. `database_origin`
    is the place that the URL comes from, for errors.
    """

    path: str
    database_url: str | None = field(default=None, repr=False)
    database_origin: str = ""
    disable_spend_logs: bool = False
    disable_error_logs: bool = False
    store_model_in_db: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a command may ask. `retries` counts attempts of one step, times are in seconds.

    `lock_timeout` 0 waits without a limit; `retry_seconds` bounds all attempts of a step together.
    `groups` are those of `GROUPS` that are wanted. `warnings` are for the operator, whatever happens.
    """

    source: model.Endpoint | None = None
    target: model.Endpoint | None = None
    matrix: Path | None = None
    proxy: ProxyConfig | None = None
    groups: frozenset[str] = frozenset()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    everything: bool = False
    create_schema: bool = False
    jobs: int = 4
    dry_run: bool = False
    resume: bool = False
    yes: bool = False
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    retries: int = 5
    retry_seconds: float = 120.0
    lock_timeout: float = 10.0
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
    proxy_path = said.path("proxy_config")
    needed = not said.has("source")
    proxy = read_proxy_config(proxy_path, environ, needed=needed) if proxy_path else None
    settings = Settings(
        source=said.endpoint("source") or _proxy_source(proxy, environ),
        target=said.endpoint("target"),
        matrix=said.path("matrix"),
        proxy=proxy,
        groups=frozenset(group for group in GROUPS if said.flag(f"include_{group}")),
        include=said.texts("include"),
        exclude=said.texts("exclude"),
        everything=said.flag("everything"),
        create_schema=said.flag("create_schema"),
        jobs=said.whole("jobs", default=4, most=64),
        dry_run=said.flag("dry_run"),
        resume=said.flag("resume"),
        yes=said.flag("yes"),
        json=said.flag("json"),
        quiet=said.flag("quiet"),
        verbose=said.flag("verbose"),
        retries=said.whole("retries", default=5, most=100),
        retry_seconds=said.seconds("retry_seconds", default=120.0),
        lock_timeout=said.seconds("lock_timeout", default=10.0),
        warnings=said.warnings(),
    )
    _refuse_conflicts(settings, said)
    return settings


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
            raise found.error(f"unknown key {key}", key, hint=document.nearest(key, known, what="keys"))
        if name in seen:
            raise found.error(f"{key} and {seen[name]} are the same key", key, hint="Keep one of the two.")
        seen[name] = key
    return found


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder that may not be searched; reading the file says so
        return True


def _needed(endpoint: model.Endpoint | None, role: model.Role) -> model.Endpoint:
    if endpoint is None:
        hint = f"Give --{role}, set {PREFIX}{role.upper()}, or write '{role}: …' into {FILE}."
        raise errors.ConfigurationError(f"no {role} given", hint=hint)
    return endpoint


def _proxy_source(proxy: ProxyConfig | None, environ: Mapping[str, str]) -> model.Endpoint | None:
    if proxy is None or proxy.database_url is None:
        return None
    return addresses.endpoint(proxy.database_url, role="source", origin=proxy.database_origin, environ=environ)


def _refuse_conflicts(settings: Settings, said: _Said) -> None:
    both = [name for name in settings.include if name in settings.exclude]
    if both:
        raise errors.ConfigurationError(
            f"{said.origin('exclude')}: {both[0]} is in both include and exclude",
            hint="Name a table in one of the two.",
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

    def flag(self, name: str) -> bool:
        value = self.value(name, False)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def whole(self, name: str, *, default: int, most: int) -> int:
        value = self.value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self.wrong(name, f"a whole number from 1 to {most}")
        return value

    def seconds(self, name: str, *, default: float) -> float:
        """Seconds as a number, or as text with a unit as Postgres writes it."""
        value = self.value(name, default)
        if isinstance(value, str):
            found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(ms|s|min|h)?", value, re.ASCII)
            value = float(found[1]) * _UNITS[found[2] or ""] if found else math.nan
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _DAY:
            raise self.wrong(name, "0 to 86400 seconds, such as 10, 500ms or 2min")
        return float(value)

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.value(name, ())
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
            raise self.wrong(name, "a list of table names")
        return tuple(dict.fromkeys(value))

    def path(self, name: str) -> Path | None:
        if not self.has(name):
            return None
        value = self.value(name, None)
        if not isinstance(value, str | Path) or not str(value):
            raise self.wrong(name, "the path of a file")
        from_file = self.file if name not in self.given else None
        return Path(from_file.path).parent / value if from_file else Path(value)

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


# -- the proxy's own file -------------------------------------------------------------------------


def read_proxy_config(path: Path, environ: Mapping[str, str], *, needed: bool = True) -> ProxyConfig:
    """What `general_settings` says of the database, by the proxy's rules (MishikaLLM 1.68 proxy_cli.py).

    Unless `needed`, a `database_url` whose variable is not set here is no error but None: the proxy
    runs elsewhere, and the source has been named in another way.
    """
    found = _general_settings(path)
    stored = _proxy_flag(found, "store_model_in_db", environ)
    said = _bool(environ.get("STORE_MODEL_IN_DB"))
    url, origin = _database_url(found, environ, needed)
    return ProxyConfig(
        path=str(path),
        database_url=url,
        database_origin=origin,
        disable_spend_logs=_proxy_flag(found, "disable_spend_logs", environ) is True,
        disable_error_logs=_proxy_flag(found, "disable_error_logs", environ) is True,
        # proxy_server.py: the variable can switch it on, never off.
        store_model_in_db=True if said else said if stored is None else stored,
    )


def _general_settings(path: Path) -> document.Document:
    """The document whose `general_settings` counts: each included file replaces those before it."""
    found = document.read(path)
    for name in document.texts(found, "include", default=()):
        included = document.read(path.parent / name)
        if isinstance(included.value, dict) and "general_settings" in included.value:
            found = included
    return found


def _proxy_value(found: document.Document, name: str) -> object:
    content = found.value if isinstance(found.value, dict) else {}
    if content.get("general_settings") is None:
        return None
    document.names(found, "general_settings")  # raises unless it is a mapping
    return content["general_settings"].get(name)


def _proxy_flag(found: document.Document, name: str, environ: Mapping[str, str]) -> bool | None:
    value = _proxy_value(found, name)
    if value is None:
        return None
    if isinstance(value, str) and value.startswith(_REFERENCE):
        return _bool(environ.get(value.removeprefix(_REFERENCE)))
    return document.flag(found, "general_settings", name)


def _database_url(found: document.Document, environ: Mapping[str, str], needed: bool) -> tuple[str | None, str]:
    keys = ("general_settings", "database_url")
    if _proxy_value(found, "database_url") is None:
        return _environment_url(environ)
    text = document.text(found, *keys)
    if not text.startswith(_REFERENCE):
        return text, f"{found.where(*keys)}: database_url"
    name = text.removeprefix(_REFERENCE)
    value = environ.get(name)
    if not value and needed:
        raise found.error(
            f"database_url names the environment variable {name}, which is not set",
            *keys,
            hint=f"Set {name or 'it'} here as for the proxy, or give --source.",
        )
    return value or None, f"{found.where(*keys)}: environment variable {name}"


def _environment_url(environ: Mapping[str, str]) -> tuple[str | None, str]:
    """What the proxy takes where its file names no database; it escapes nothing, so neither do we."""
    names = ("DATABASE_USERNAME", "DATABASE_PASSWORD", "DATABASE_HOST", "DATABASE_NAME")
    user, password, host, database = (environ.get(name, "") for name in names)
    if user and password and host and database:
        return (
            f"postgresql://{user}:{password}@{host}/{database}",
            f"environment variables {', '.join(names)}",
        )
    return environ.get("DATABASE_URL") or None, "environment variable DATABASE_URL"


def _bool(text: str | None) -> bool | None:
    return {"true": True, "false": False}.get((text or "").strip().lower())


def implications(proxy: ProxyConfig) -> tuple[model.Finding, ...]:
    """Notes for the plan: what the proxy's settings say about its tables."""
    says = {
        "proxy-spend-logs-off": proxy.disable_spend_logs,
        "proxy-error-logs-off": proxy.disable_error_logs,
        "proxy-models-in-database": proxy.store_model_in_db is True,
        "proxy-models-in-file": proxy.store_model_in_db is False,
    }
    return tuple(
        model.Finding(code=code, severity="note", subject=subject, message=message, fix=fix)
        for code, subject, message, fix in _NOTES
        if says[code]
    )


_NOTES = (
    (
        "proxy-spend-logs-off",
        "disable_spend_logs",
        "disable_spend_logs is on: the proxy writes no spend logs, so SpendLogs holds at most old rows and "
        "the UI shows no usage since; the spend of keys, users and teams still counts",
        "Give --include-spendlogs only for the history from before.",
    ),
    (
        "proxy-error-logs-off",
        "disable_error_logs",
        "disable_error_logs is on: the proxy writes no error logs, so ErrorLogs holds at most old rows and "
        "the UI shows no errors since",
        "Give --include-errorlogs only for the history from before.",
    ),
    (
        "proxy-models-in-database",
        "store_model_in_db",
        "store_model_in_db is on: the proxy reads models, credentials and settings from its database, where "
        "they are encrypted with its salt key, or with its master key where it has no salt key",
        "Start the proxy on the target with STORE_MODEL_IN_DB=True and the same MISHIKALLM_SALT_KEY, or the "
        "same master key.",
    ),
    (
        "proxy-models-in-file",
        "store_model_in_db",
        "store_model_in_db is off: the proxy takes its models from its file alone and leaves those in the "
        "database unread",
        "Give the proxy on the target the models of the same file.",
    ),
)
