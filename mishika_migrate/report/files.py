"""Report files: the suffix says the form, and a file is whole or is not there.

Imports document, junit, markdown and the words.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mishika_migrate import errors, model
from mishika_migrate.report import document, junit, markdown


def _json(proof: model.Proof) -> str:
    return json.dumps(document.document(proof), ensure_ascii=False, indent=2) + "\n"


_FORMS: Final[dict[str, Callable[[model.Proof], str]]] = {".json": _json, ".md": markdown.text, ".xml": junit.text}


def check(path: Path) -> None:
    """Refuses what could not be written, before there is anything to write; changes nothing.

    Raises `errors.ConfigurationError`.
    """
    try:
        _check(path)
    except OSError as error:
        raise errors.ConfigurationError(
            f"the report {path}: {error.strerror or error}", hint="Name another file."
        ) from error


def _check(path: Path) -> None:
    if path.suffix.lower() not in _FORMS:
        raise errors.ConfigurationError(
            f"the report {path} has no suffix that says its form",
            hint="Name it .json, .md (Markdown) or .xml (JUnit).",
        )
    place = _place(path)
    if place.exists() and not place.is_file():
        raise errors.ConfigurationError(f"the report {path} is no plain file", hint="Name another file.")
    if not place.parent.is_dir():
        raise errors.ConfigurationError(
            f"the folder {place.parent} of the report {path} is not there", hint="Create it, or name another file."
        )
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise errors.ConfigurationError(
            f"the folder {place.parent} of the report {path} is not writable", hint="Name a file in another folder."
        )


def write(path: Path, proof: model.Proof) -> None:
    """Replaces the file as a whole, on disk when this returns.

    Raises `errors.ConfigurationError` as `check` does, and `errors.ResultLost` when it cannot be written.
    """
    check(path)
    place = _place(path)
    # A lone surrogate has no UTF-8; its escape is valid JSON, and people can read it.
    made = _FORMS[path.suffix.lower()](proof).encode("utf-8", "backslashreplace")
    try:
        _replace(place, made)
    except OSError as error:
        raise errors.ResultLost(
            f"the report {path} could not be written: {error.strerror or error}",
            hint="Everything was compared; only this file is missing. Mend its folder and run `verify` again.",
        ) from error


def _place(path: Path) -> Path:
    """Where the bytes are: a link stays one."""
    return Path(os.path.realpath(path))


def _replace(place: Path, made: bytes) -> None:
    draft = place.with_name(f".{place.name[:100]}.{secrets.token_hex(4)}")
    try:
        with draft.open("xb") as file:
            file.write(made)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(place)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
