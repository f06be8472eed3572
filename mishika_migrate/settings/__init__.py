"""What the operator wants, from flags and environment, then `mishika-migrate.yaml`, then defaults.

Imports `statements`, `errors`, `model`, `addresses`, `proxy` and `matrix.document`, which reads YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from mishika_migrate import errors, model
from mishika_migrate.matrix import document
from mishika_migrate.settings import addresses, statements
from mishika_migrate.settings import proxy as proxies

FILE = "mishika-migrate.yaml"
PREFIX = statements.PREFIX
GROUPS = ("spendlogs", "errorlogs", "usage", "auditlogs")
NAMES = (
    "source", "target", "matrix", "proxy_config", *(f"include_{group}" for group in GROUPS), "include",
    "exclude", "only", "on_existing", "order", "everything", "create_schema", "jobs", "dry_run", "resume", "yes",
    "json", "quiet", "verbose",
    "retries", "retry_seconds", "lock_timeout", "batch_size", "defer_indexes", "toast_compression",
    "spendlogs_since", "spendlogs_last", "spendlogs_before",
    "executor", "max_rate", "pause_if_lag", "verify", "level", "hash", "sample", "max_differences", "snapshot",
    "fenced", "recheck", "recheck_wait", "view_timeout", "allow_unchecked", "report", "sample_keys", "salt_key_env",
    "master_key_env", "proxy", "delete_extra", "every",
    "overwrite_live_target", "watch", "interval", "until_quiet",
    "follow", "source_from_target", "target_from_source", "method", "on_switch", "timeout", "max_lag", "margin",
    "way_back", "abort", "lost",
)  # fmt: skip
"""The options, as `load` takes them; flags and the file write them with dashes."""

Defer = Literal["auto", "always", "never"]
Compression = Literal["auto", "lz4", "pglz", "server"]
Order = Literal["size", "newest"]
Hash = Literal["fast", "exact"]
Method = Literal["auto", "replication", "sync"]
Lost = Literal["", "source", "target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a command may ask. `retries` counts attempts of one step, times are in seconds.

    `lock_timeout` 0 waits without a limit; `retry_seconds` bounds all attempts of a step together.
    `groups` are those of `GROUPS` that are wanted. `on_existing` names tables and groups, "" means all others.
    `batch_size` is in bytes. `executor` is `threads`,
    `processes` or `dask=ADDRESS`; `max_rate` is in bytes a second, None without a limit.
    `pause_if_lag` is None where no standby is waited for. `sample` is a share of rows. `sample_keys` is
    a file's path or `-`; `source_from_target` is the source's address as the target's server sees it, `timeout`
    the seconds from fence to switch, and of `lost` nothing is asked any more. `salt_key_env` and
    `master_key_env` name variables. `warnings` are for the operator, whatever happens.
    """

    source: model.Endpoint | None = None
    target: model.Endpoint | None = None
    matrix: Path | None = None
    proxy: proxies.Config | None = None
    groups: frozenset[str] = frozenset()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    on_existing: tuple[tuple[str, model.Existing], ...] = ()
    order: Order = "size"
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
    delete_extra: bool = False
    every: float | None = None
    overwrite_live_target: bool = False
    watch: bool = False
    interval: float = 2.0
    until_quiet: float | None = None
    follow: bool = False
    source_from_target: model.Endpoint | None = None
    target_from_source: model.Endpoint | None = None
    method: Method = "auto"
    on_switch: str | None = None
    timeout: float = 30.0
    max_lag: float | None = None
    margin: int = 1000
    way_back: bool = True
    abort: bool = False
    lost: Lost = ""
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
    said = statements.Statements(given, environ, _file(config, directory), names=NAMES)
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
        on_existing=said.existing("on_existing"),
        order=said.choice("order", get_args(Order)),
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
        allow_unchecked=said.some("allow_unchecked", among=model.CHECKS),
        reports=said.paths("report"),
        sample_keys=said.word("sample_keys", "the path of a file, or -"),
        salt_key_env=said.word("salt_key_env", "the name of a variable"),
        master_key_env=said.word("master_key_env", "the name of a variable"),
        delete_extra=said.flag("delete_extra"),
        every=said.seconds("every", default=0.0) if said.has("every") else None,
        overwrite_live_target=said.flag("overwrite_live_target"),
        watch=said.flag("watch"),
        interval=said.seconds("interval", default=2.0),
        until_quiet=said.seconds("until_quiet", default=0.0) if said.has("until_quiet") else None,
        proxy_url=said.word("proxy", "the URL of a proxy"),
        follow=said.flag("follow"),
        source_from_target=said.endpoint("source", "source_from_target"),
        target_from_source=said.endpoint("target", "target_from_source"),
        method=said.choice("method", get_args(Method)),
        on_switch=said.word("on_switch", "a command, or wait"),
        timeout=said.seconds("timeout", default=30.0),
        max_lag=said.seconds("max_lag", default=0.0) if said.has("max_lag") else None,
        margin=said.whole("margin", default=1000, most=10**9, least=0),
        way_back=said.flag("way_back", default=True),
        abort=said.flag("abort"),
        lost=said.choice("lost", get_args(Lost)),
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


def _refuse_conflicts(settings: Settings, said: statements.Statements) -> None:
    if settings.snapshot and settings.recheck:
        raise errors.ConfigurationError(
            f"{said.origin('recheck')}: recheck and snapshot exclude each other",
            hint="Leave recheck out: in one snapshot nothing settles.",
        )
    since, before = settings.spendlogs_since, settings.spendlogs_before
    if since is not None and before is not None and since >= before:
        raise errors.ConfigurationError(
            f"{said.origin('spendlogs_before')}: spendlogs-before {before} is not later than spendlogs-since {since}",
            hint="Nothing lies between them: give a later one.",
        )
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
