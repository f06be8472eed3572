"""The proxy's own configuration file, which is not ours: read leniently, and only for the few keys that matter here.

Imports `model` and `matrix.document`, which reads YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mishika_migrate import model
from mishika_migrate.matrix import document

_REFERENCE = "os.environ/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
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


def read(path: Path, environ: Mapping[str, str], *, needed: bool = True) -> Config:
    """What `general_settings` says of the database, by the proxy's rules (MishikaLLM 1.68 proxy_cli.py).

    Unless `needed`, a `database_url` whose variable is not set here is no error but None: the proxy
    runs elsewhere, and the source has been named in another way.
    """
    found = _general_settings(path)
    stored = _flag(found, "store_model_in_db", environ)
    said = _bool(environ.get("STORE_MODEL_IN_DB"))
    url, origin = _database_url(found, environ, needed)
    return Config(
        path=str(path),
        database_url=url,
        database_origin=origin,
        disable_spend_logs=_flag(found, "disable_spend_logs", environ) is True,
        disable_error_logs=_flag(found, "disable_error_logs", environ) is True,
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


def _value(found: document.Document, name: str) -> object:
    content = found.value if isinstance(found.value, dict) else {}
    if content.get("general_settings") is None:
        return None
    document.names(found, "general_settings")  # raises unless it is a mapping
    return content["general_settings"].get(name)


def _flag(found: document.Document, name: str, environ: Mapping[str, str]) -> bool | None:
    value = _value(found, name)
    if value is None:
        return None
    if isinstance(value, str) and value.startswith(_REFERENCE):
        return _bool(environ.get(value.removeprefix(_REFERENCE)))
    return document.flag(found, "general_settings", name)


def _database_url(found: document.Document, environ: Mapping[str, str], needed: bool) -> tuple[str | None, str]:
    keys = ("general_settings", "database_url")
    if _value(found, "database_url") is None:
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


def implications(found: Config) -> tuple[model.Finding, ...]:
    """Notes for the plan: what the proxy's settings say about its tables."""
    says = {
        "proxy-spend-logs-off": found.disable_spend_logs,
        "proxy-error-logs-off": found.disable_error_logs,
        "proxy-models-in-database": found.store_model_in_db is True,
        "proxy-models-in-file": found.store_model_in_db is False,
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
