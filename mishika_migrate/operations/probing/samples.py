"""Keys that the operator gives to be tried: read, hashed here, never stored and never shown whole.

Imports pg, look, matrix and the words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TextIO

from mishika_migrate import errors, matrix, model, words
from mishika_migrate.operations import look
from mishika_migrate.pg import connect, standing

Expect = Literal["accepted", "refused", "unknown"]

STDIN = "-"
_MOST = 10_000_000
_LINES = "One key a line, as callers send it: sk-…; # starts a comment."
_BLOCKED, _EXPIRES = "blocked-differs", "expiry-differs"
"""The matrix's reasons whose columns say that a key is blocked, and until when it is valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A key, and what should come of it. `repr` does not show it."""

    key: str = field(repr=False)
    expect: Expect = "unknown"

    @property
    def token(self) -> str:
        """The hex SHA-256 by which the database knows it."""
        return hashlib.sha256(self.key.encode()).hexdigest()

    @property
    def name(self) -> str:
        """`sk-...1234 0a1b2c3d`: the key's end and 8 digits of its hash."""
        # The end of a short key would be most of it.
        end = self.key[-4:] if len(self.key) >= 16 else ""
        return f"sk-...{end} {self.token[:8]}"


def read(path: str, stdin: TextIO) -> tuple[Sample, ...]:
    """The keys of the file, or of stdin for `-`, each once; `errors.ConfigurationError` for any other line."""
    if path == STDIN:
        shown, text = "stdin", stdin.read(_MOST + 1)
    else:
        shown, text = path, _content(path)
    if len(text) > _MOST:
        raise errors.ConfigurationError(f"{shown}: larger than 10 MB", hint=f"Name a file with sample keys. {_LINES}")
    keys: dict[str, None] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        if key := re.sub(r"(^|\s)#.*", "", line).strip():
            _check(f"{shown}:{number}", key)
            keys[key] = None
    if not keys:
        raise errors.ConfigurationError(f"{shown}: holds no key", hint=_LINES)
    return tuple(Sample(key=key) for key in keys)


def _content(path: str) -> str:
    if path.startswith("sk-") and not Path(path).exists():
        raise errors.ConfigurationError(
            "a key was given where the name of a file is expected",
            hint="Write the keys into a file, or give - and pipe them in.",
        )
    try:
        # Not only regular files: <(command) of a shell is a pipe.
        with Path(path).open(encoding="utf-8", newline="\n") as file:
            return file.read(_MOST + 1)
    except UnicodeDecodeError:
        # Not chained: it carries the file's bytes.
        raise errors.ConfigurationError(f"{path}: not UTF-8 text", hint=_LINES) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or "no such file"
        raise errors.ConfigurationError(
            f"{path}: cannot be read: {reason.lower()}", hint="Name a file that this user may read, or - for stdin."
        ) from None


def _check(where: str, key: str) -> None:
    """Raises without quoting: a line that is no key may be half of one."""
    if re.fullmatch("[0-9a-fA-F]{64}", key):
        raise errors.ConfigurationError(f"{where}: a hash, not a key", hint=_LINES)
    # What else could not be sent in a header either.
    if not re.fullmatch("sk-[!-~]+", key):
        raise errors.ConfigurationError(f"{where}: no key: it is not of the form sk-…", hint=_LINES)


# -- what the database says -----------------------------------------------------------------------


def expected(
    rules: matrix.Matrix, target: model.Endpoint, samples: Sequence[Sample]
) -> tuple[tuple[Sample, ...], model.Check]:
    """The samples with what should come of them by the target's database, and whether it has them.

    One that it does not have should be refused; that it does not have it is a problem.
    """
    found = look.one(rules, target)
    title = "The target's database has the sample keys"
    if rules.keys is None or found.table(rules.keys.table) is None:
        what = "the matrix describes no keys" if rules.keys is None else f"{rules.keys.table} is not there"
        return tuple(samples), model.Check(code="probe-samples", title=title, why_not=f"{what}, so none was looked up")
    with connect.session(target, name="mishika-migrate/probe") as session:
        rows = _rows(rules.keys, found)
        refused = standing.refused(session, target.schema, rows, [sample.token for sample in samples])
    known = tuple(
        replace(sample, expect="refused" if refused.get(sample.token, True) else "accepted") for sample in samples
    )
    problems = tuple(
        f"{sample.name} is not in {rules.keys.table} of {target.label}"
        for sample in samples
        if sample.token not in refused
    )
    note = f"{words.count(sum(refused.values()), 'key')} of {len(samples):,} blocked or expired there"
    return known, model.Check(
        code="probe-samples", title=title, looked=len(samples), problems=problems, notes=(note,) if refused else ()
    )


def _rows(keys: model.Keyring, there: model.Catalog) -> standing.Rows:
    ring = keys.limited({table.name: [column.name for column in table.columns] for table in there.tables})

    def columns(reason: str, *types: str) -> tuple[str, ...]:
        named = (column for aspect in ring.aspects if aspect.reason == reason for column in aspect.columns)
        return tuple(column for column in named if _type(ring, there, column).startswith(types))

    blocked, expires = columns(_BLOCKED, "boolean"), columns(_EXPIRES, "timestamp")
    needed = {column.partition(".")[0] for column in (*blocked, *expires)}
    joins = []
    for join in reversed(ring.joins):
        if join.name in needed:
            needed |= {end.partition(".")[0] for _, end in join.by}
            joins.append((join.name, join.table, join.by))
    return standing.Rows(table=ring.table, key=ring.key, joins=tuple(reversed(joins)), blocked=blocked, expires=expires)


def _type(ring: model.Keyring, there: model.Catalog, column: str) -> str:
    name, _, bare = column.partition(".")
    table = there.table(ring.table_of(name))
    found = table.column(bare) if table else None
    return found.type if found else ""


def names(samples: Collection[Sample], *, most: int) -> str:
    """`sk-...1234 0a1b2c3d, sk-...` and how many more."""
    shown = [sample.name for sample in samples][:most]
    more = len(samples) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")
