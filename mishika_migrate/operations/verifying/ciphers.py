"""Whether a secret opens what is stored encrypted: in memory, value by value, and nothing of it is kept.

Imports pg, matrix and the words; nacl and cryptography (extra `crypto`) when a secret is given. No
plaintext and no secret gets into a message, a `repr` or an error.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mishika_migrate import errors, matrix, model, words
from mishika_migrate.pg import ciphertext, connect

CODE = "decryption"

Shape = Literal["box", "gcm", "later", "plain"]
_Open = Callable[[bytes], bool]

_SALT, _MASTER = "the salt key", "the master key"
_SHOWN_ROWS = 5
_BOX_BYTES = 24 + 16  # nonce and tag
_GCM_BYTES = 12 + 16
_GCM = "v2:gcm:"
_MARKED = re.compile(r"v[0-9]{1,3}:[a-z0-9-]{1,20}:")
# Random bytes have capitals and small letters: in 54 signs they lack one of the two once in 10^12 times.
_BASE64 = re.compile(r"(?=.*[A-Z])(?=.*[a-z])(?:[A-Za-z0-9+/]{53,}|[A-Za-z0-9_-]{53,})={0,2}")


def secret(environ: Mapping[str, str], name: str) -> str:
    """The value of that environment variable; `errors.ConfigurationError` for none, never with the value."""
    # Whoever takes the option for one that wants the secret itself gives it here.
    shown = f"the environment variable {name}" if re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name) else "that variable"
    found = environ.get(name, "")
    if not found:
        raise errors.ConfigurationError(
            f"{shown} is not set", hint="Give the name of an environment variable that holds the secret."
        )
    if found != found.encode(errors="replace").decode():
        raise errors.ConfigurationError(f"{shown} holds bytes that are not UTF-8", hint="Set it to the secret's text.")
    return found


def require() -> None:
    """`errors.ConfigurationError` without the packages that open ciphertext."""
    _boxes("")


def inspect(
    rules: matrix.Matrix,
    target: model.Catalog,
    session: connect.Session,
    *,
    salt_key: str | None,
    master_key: str | None,
    tables: Sequence[str],
) -> model.Check:
    """Decrypts every encrypted value of these tables, as far as secrets are given.

    Values without ciphertext are notes; those that no secret opens are problems that name their rows.
    """
    given = {_SALT: salt_key, _MASTER: master_key}
    safes = tuple(_safe(name, text) for name, text in given.items() if text is not None)
    counts, absent = [], []
    for entry, table in _tables(rules, target, tables):
        where = entry.encrypted_where
        for column in entry.encrypted:
            if missing := [each for each in (column, where.column if where else column) if not table.column(each)]:
                absent.append(f"{table.name} has no column {missing[0]} on {target.endpoint.label}")
                continue
            found = ciphertext.values(
                session,
                target.endpoint.schema,
                table,
                column,
                names=entry.names,
                where=(where.column, where.values) if where else None,
            )
            counts.append(_count(f"{table.name}.{column}", found, safes))
    looked = sum(count.looked for count in counts)
    untried = "no secret was tried: the tables that were compared hold nothing encrypted"
    return model.Check(
        code=CODE,
        title="Encrypted values can be decrypted",
        looked=looked,
        problems=tuple(problem for count in counts for problem in _problems(count)) + _mixture(counts),
        notes=(
            *(note for count in counts for note in _notes(count, bool(safes))),
            *_openers(counts, safes),
            *([untried] if safes and not looked else []),
        ),
        why_not="; ".join([*absent, *_closed(counts)]),
    )


def _tables(
    rules: matrix.Matrix, target: model.Catalog, tables: Sequence[str]
) -> Iterable[tuple[matrix.Entry, model.Table]]:
    """Those that hold ciphertext; one that the target lacks is another check's to tell."""
    for entry in rules.entries:
        table = target.table(entry.table)
        if entry.table in tables and entry.encrypted and table is not None:
            yield entry, table


# -- one column -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Some:
    """How many values of one kind, in how many rows, and the first rows by name."""

    values: int = 0
    rows: int = 0
    names: list[str] = field(default_factory=list)
    place: str = ""

    def add(self, value: ciphertext.Value) -> None:
        self.values += 1
        if value.place != self.place:
            self.place = value.place
            self.rows += 1
            if len(self.names) < _SHOWN_ROWS:
                self.names.append(value.row)

    def __str__(self) -> str:
        """`model a, model b and 3 more`."""
        more = self.rows - len(self.names)
        return ", ".join(name or "one without a name" for name in self.names) + (f" and {more:,} more" if more else "")


@dataclass(slots=True)
class _Count:
    """What came of the values of one column. `opened` is by the name of the secret."""

    column: str
    looked: int = 0
    boxes: int = 0
    newer: int = 0
    other_alphabet: int = 0
    opened: dict[str, _Some] = field(default_factory=dict)
    fails: _Some = field(default_factory=_Some)
    plain: _Some = field(default_factory=_Some)
    closed: _Some = field(default_factory=_Some)
    later: _Some = field(default_factory=_Some)
    no_object: _Some = field(default_factory=_Some)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Safe:
    """A secret by its name, and what it opens."""

    name: str
    box: _Open = field(repr=False)
    gcm: _Open = field(repr=False)


def _count(column: str, values: Iterable[ciphertext.Value], safes: Sequence[_Safe]) -> _Count:
    count = _Count(column=column)
    for value in values:
        if value.text is None:
            count.no_object.add(value)
            continue
        count.looked += 1
        kind, opener, other_alphabet = _look(value.text, safes)
        if opener:
            count.opened.setdefault(opener, _Some()).add(value)
            count.boxes += kind == "box"
            count.newer += kind == "gcm"
            count.other_alphabet += other_alphabet
        elif kind in ("plain", "later"):
            (count.plain if kind == "plain" else count.later).add(value)
        else:
            (count.fails if safes else count.closed).add(value)
    return count


def _look(text: str, safes: Sequence[_Safe]) -> tuple[Shape, str, bool]:
    """Its shape, the secret that opens it (empty for none), and whether only base64url reads it."""
    if text.startswith(_GCM):
        sealed = _decoded(text.removeprefix(_GCM), b"-_")
        return "gcm", next((safe.name for safe in safes if safe.gcm(sealed)), ""), False
    if _MARKED.match(text):
        return "later", "", False
    # The proxy writes and reads standard base64, LiteLLM since writes base64url (encrypt_decrypt_utils.py);
    # both skip signs that are not in their alphabet.
    standard = _decoded(text, b"+/")
    for sealed in dict.fromkeys([standard, _decoded(text, b"-_")]):
        for safe in safes:
            if safe.box(sealed):
                return "box", safe.name, sealed != standard
    return ("box" if _BASE64.fullmatch(text) and not text.startswith("sk-") else "plain"), "", False


def _decoded(text: str, others: bytes) -> bytes:
    try:
        return base64.b64decode(text, altchars=others)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        return b""


def _safe(name: str, text: str) -> _Safe:
    box, gcm = _boxes(text)
    return _Safe(name=name, box=box, gcm=gcm)


def _boxes(text: str) -> tuple[_Open, _Open]:
    """Whether the secret opens a NaCl box, nonce first, and whether it opens AES-256-GCM, nonce first."""
    try:
        import nacl.exceptions
        import nacl.secret
        from cryptography import exceptions
        from cryptography.hazmat.primitives.ciphers import aead
    except ImportError as error:
        raise errors.ConfigurationError(
            f"decryption needs the package {error.name or 'pynacl'}, which is not installed",
            hint="Run pip install 'mishika-migrate[crypto]', or leave the secrets out.",
        ) from None
    key = hashlib.sha256(text.encode()).digest()
    secret_box, cipher = nacl.secret.SecretBox(key), aead.AESGCM(key)

    def opens_box(sealed: bytes) -> bool:
        try:
            return len(sealed) >= _BOX_BYTES and _is_text(secret_box.decrypt(sealed))
        except nacl.exceptions.CryptoError:
            return False

    def opens_gcm(sealed: bytes) -> bool:
        try:
            return len(sealed) >= _GCM_BYTES and _is_text(cipher.decrypt(sealed[:12], sealed[12:], None))
        except exceptions.InvalidTag:
            return False

    return opens_box, opens_gcm


def _is_text(plaintext: bytes) -> bool:
    # The error would carry the whole plaintext, so it goes no further than here.
    try:
        plaintext.decode()
    except UnicodeDecodeError:
        return False
    return True


# -- what is said about it ------------------------------------------------------------------------


def _in_rows(some: _Some, column: str) -> str:
    return f"{words.count(some.values, 'value')} of {column} in {words.count(some.rows, 'row')}"


def _problems(count: _Count) -> Iterable[str]:
    if count.fails.values:
        yield f"no secret that was given opens {_in_rows(count.fails, count.column)}: {count.fails}"
    if count.no_object.rows:
        yield (
            f"{count.column} is no JSON object in {words.count(count.no_object.rows, 'row')}, so nothing in it is"
            f" decrypted: {count.no_object}"
        )


def _notes(count: _Count, tried: bool) -> Iterable[str]:
    opened = sum(some.values for some in count.opened.values())
    if tried and count.looked:
        yield (
            f"{count.column}: {count.boxes:,} ok, {count.fails.values:,} fail, {count.plain.values:,} plain,"
            f" {count.newer + count.later.values:,} in a newer format"
        )
    if count.plain.values:
        yield f"plain text where ciphertext is expected: {_in_rows(count.plain, count.column)}: {count.plain}"
    if opened and count.newer:
        yield f"{words.count(count.newer, 'value')} of {count.column} can be read by a proxy that knows {_GCM} only"
    if count.other_alphabet:
        yield (
            f"{words.count(count.other_alphabet, 'value')} of {count.column} can be read by a proxy that knows"
            " base64url only"
        )


def _openers(counts: Sequence[_Count], safes: Sequence[_Safe]) -> tuple[str, ...]:
    """Which secret opens what there is."""
    opened = {safe.name: 0 for safe in safes}
    for count in counts:
        for name, some in count.opened.items():
            opened[name] += some.values
    if not any(opened.values()):
        return ()
    told = [f"{name} opens {words.count(values, 'value') if values else 'none'}" for name, values in opened.items()]
    if opened.get(_SALT) == 0:
        told.append("the proxy must run without a salt key")
    return ("; ".join(told),)


def _mixture(counts: Sequence[_Count]) -> tuple[str, ...]:
    """A proxy that has a salt key never asks the master key (encrypt_decrypt_utils.py _get_salt_key)."""
    names = {name for count in counts for name in count.opened}
    if len(names) < 2:
        return ()
    return tuple(
        f"{_MASTER}, not {_SALT}, opens {_in_rows(some, count.column)}, and a proxy uses one of them only: {some}"
        for count in counts
        if (some := count.opened.get(_MASTER))
    )


def _closed(counts: Sequence[_Count]) -> Iterable[str]:
    """What was not decrypted: without any secret, or for a format of the future."""
    closed = [f"{words.count(count.closed.values, 'encrypted value')} in {count.column}"
              for count in counts if count.closed.values]  # fmt: skip
    if closed:
        were = "was" if sum(count.closed.values for count in counts) == 1 else "were"
        yield (
            f"{', '.join(closed)} {were} not decrypted: give --salt-key-env NAME, or --master-key-env NAME for a"
            " proxy without a salt key"
        )
    for count in counts:
        if count.later.values:
            yield f"a newer format, not opened: {_in_rows(count.later, count.column)}: {count.later}"
