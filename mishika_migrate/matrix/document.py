"""A YAML file as plain values that remember their lines, so that every complaint names file and line.

Imports `errors` only, and yaml: its safe loader alone. The matrix and the settings read their files
through here. A file may hold passwords: no error quotes a value, nor a key that does not look like a name.
"""

from __future__ import annotations

import difflib
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn, TypeVar, overload

import yaml
from yaml.constructor import SafeConstructor
from yaml.reader import ReaderError

from mishika_migrate import errors

Key = str | int
T = TypeVar("T")
Word = TypeVar("Word", bound=str)


class _Absent:
    """Stands for a key that the file does not have; None is a value that it may have."""


_ABSENT: Final = _Absent()
_SCALARS: Final = frozenset(
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp")
)
_MAPPING: Final = "tag:yaml.org,2002:map"
_LIST: Final = "tag:yaml.org,2002:seq"
_MERGE: Final = "tag:yaml.org,2002:merge"
_TAGGED: Final = "a value with a tag that is not plain data"
_TEXT: Final = "tag:yaml.org,2002:str"
_MOST: Final = 1_000_000
# Path() has made one slash of the two.
_ADDRESS: Final = re.compile(":/|@")
_NAME: Final = re.compile(r"[A-Za-z_-]{1,40}")
_WORD: Final = re.compile(r"[\w.$ -]{1,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A parsed file: `path` is its display name, `value` its top-level mapping as plain values.

    `repr` shows no value, because a settings file may hold a password.
    """

    path: str
    value: object = field(repr=False)
    lines: Mapping[tuple[Key, ...], int] = field(repr=False, compare=False)

    def line(self, *keys: Key) -> int:
        """The line, from 1, of what the keys lead to: a mapping's key or a list's item.

        Where the file has no such thing, the line of the nearest thing around it.
        """
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.lines:
                return self.lines[keys[:end]]
        return self.lines.get((), 1)

    def where(self, *keys: Key) -> str:
        """The place as `file.yaml:12`."""
        return f"{self.path}:{self.line(*keys)}"

    def error(self, message: str, *keys: Key, hint: str) -> errors.ConfigurationError:
        """An error whose message starts with the place; the caller raises it."""
        return errors.ConfigurationError(f"{self.where(*keys)}: {message}", hint=hint)


# -- reading --------------------------------------------------------------------------------------


def read(path: Path) -> Document:
    """The file as a document; whatever is wrong with it is a `ConfigurationError`."""
    content = _content(path)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise errors.ConfigurationError(
            f"{path}:{line}: not UTF-8 text", hint="Save the file in the encoding UTF-8."
        ) from None
    return parse(text, name=str(path))


def _content(path: Path) -> bytes:
    try:
        # Known before it is opened: the open of a pipe waits for a writer.
        kind = path.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise errors.ConfigurationError(f"{path}: not a regular file", hint="Name a file.")
        with path.open("rb") as file:
            content = file.read(_MOST + 1)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise errors.ConfigurationError(
                f"{path}: a link to a file that does not exist", hint="Mend the link or remove it."
            ) from error
        if _ADDRESS.search(str(path)):  # perhaps with a password
            raise errors.ConfigurationError(
                "an address was given where a file is expected: no such file",
                hint="Servers are given as --source and --target.",
            ) from None
        raise errors.ConfigurationError(
            f"{path}: no such file", hint="Check the path; it counts from the current directory."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        shown = "the file" if _ADDRESS.search(str(path)) else path
        raise errors.ConfigurationError(
            f"{shown}: cannot be read: {reason.lower()}", hint="Name a file that this user may read."
        ) from None
    if len(content) > _MOST:
        raise errors.ConfigurationError(f"{path}: larger than 1 MB", hint="Name a settings or matrix file.")
    return content


def parse(text: str, *, name: str) -> Document:
    """The text as a document that calls itself `name`; raises nothing but `ConfigurationError`."""
    # No error is chained here: the parser's own messages quote lines that may hold a password.
    try:
        return _Reading(name).document(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _refuse(name, mark.line + 1 if mark else 1, f"not valid YAML: {_problem(error)}")
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        _refuse(name, line, f"not valid YAML: the character U+{error.character:04X} is not allowed")
    except RecursionError:
        _refuse(name, 1, "nested too deeply")
    except (ValueError, OverflowError):  # an escape in quotes beyond the last character, "\UFFFFFFFF"
        _refuse(name, 1, "not valid YAML: an escape in a quoted text names no character")


def _refuse(name: str, line: int, message: str) -> NoReturn:
    raise errors.ConfigurationError(
        f"{name}:{line}: {message}", hint="Correct the file; a value with special characters needs quotes."
    ) from None


def _problem(error: yaml.MarkedYAMLError) -> str:
    """What is wrong, without the names that the file gave: half a password can look like an alias."""
    problem = error.problem or error.context or "it cannot be read"
    return re.sub(r"\b(alias|anchor|tag|handle) ['\"].*", r"\1", problem, flags=re.DOTALL)


class _Reading:
    """One pass over the nodes of a file: remembers lines, refuses what would be lost or go wrong."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[tuple[Key, ...], int] = {}
        self.constructor = SafeConstructor()
        self.done: set[int] = set()

    def document(self, node: yaml.Node | None) -> Document:
        if not isinstance(node, yaml.MappingNode):
            found = "a list" if isinstance(node, yaml.SequenceNode) else "a single value" if node else "nothing"
            line = node.start_mark.line + 1 if node else 1
            _refuse(self.name, line, f"expected a mapping (key: value), found {found}")
        self.lines[()] = 1
        self.visit(node, (), frozenset())
        value = self.constructor.construct_document(node)
        return Document(path=self.name, value=value, lines=self.lines)

    def visit(self, node: yaml.Node, keys: tuple[Key, ...], above: frozenset[int]) -> None:
        line = node.start_mark.line + 1
        self.lines.setdefault(keys, line)
        if id(node) in above:
            _refuse(self.name, line, "a value contains itself")
        if id(node) in self.done:  # an alias: looked at already, and twenty of them would be 2**20 visits
            return
        if isinstance(node, yaml.ScalarNode):
            self.scalar(node)
        elif node.tag == _MAPPING and isinstance(node, yaml.MappingNode):
            self.mapping(node, keys, above | {id(node)})
        elif node.tag == _LIST and isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.visit(item, (*keys, index), above | {id(node)})
        else:
            _refuse(self.name, line, _TAGGED)
        self.done.add(id(node))

    def mapping(self, node: yaml.MappingNode, keys: tuple[Key, ...], above: frozenset[int]) -> None:
        first: dict[object, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _MERGE:
                self.visit(value_node, (*keys, "<<"), above)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                _refuse(self.name, line, "a key that is not a single word")
            key = self.scalar(key_node)
            if key in first:
                raise errors.ConfigurationError(
                    f"{self.name}:{line}: {named(key_node.value)} is given twice, first in line {first[key]}",
                    hint="Keep one of the two.",
                )
            first[key] = line
            path = (*keys, key if isinstance(key, str | int) else key_node.value)
            self.lines[path] = line
            self.visit(value_node, path, above)

    def scalar(self, node: yaml.ScalarNode) -> object:
        line = node.start_mark.line + 1
        if node.tag not in _SCALARS:
            _refuse(self.name, line, _TAGGED)
        try:
            node.value.encode()  # half a surrogate pair, which nothing could print
            if node.tag == _TEXT:
                return node.value
            return self.constructor.construct_object(node)
        except (ValueError, OverflowError, LookupError, AttributeError):
            # PyYAML lets all of these through: 2024-13-45, !!float "", !!bool perhaps, !!timestamp soon
            kind = node.tag.rpartition(":")[2]
            _refuse(self.name, line, f"a value that looks like {kind} but cannot be read as one")


# -- asking ---------------------------------------------------------------------------------------


def fields(
    document: Document, *keys: Key, allowed: Collection[str], required: Collection[str] = ()
) -> Mapping[str, object]:
    """The mapping at the keys, which has all of `required` and nothing but `allowed`."""
    found = _mapping(document, keys)
    for key in found:
        if key not in allowed:
            raise document.error(unknown(key, *keys), *keys, key, hint=nearest(key, allowed, what="keys"))
    for key in required:
        if key not in found:
            raise document.error(
                f"{_path(keys) or 'the file'} lacks {key}", *keys, hint=f"Add a line '{key}: …' there."
            )
    return found


def unknown(key: str, *above: Key) -> str:
    """The complaint about a key; quotes it only where it looks like one, for a lost half of a password does not."""
    if _NAME.fullmatch(key):
        return f"unknown key {_path((*above, key))}"
    return f"an unknown key in {_path(above)}" if above else "an unknown key"


def named(text: str, *, otherwise: str = "a key") -> str:
    """The text if it can be a name of a table or the like."""
    return text if _WORD.fullmatch(text) else otherwise


def names(document: Document, *keys: Key) -> tuple[str, ...]:
    """The keys of the mapping there, in the file's order; empty where the file has none."""
    return () if _at(document, keys) is _ABSENT else tuple(_mapping(document, keys))


def count(document: Document, *keys: Key) -> int:
    """How many items the list there has; 0 where the file has none."""
    found = _at(document, keys)
    if found is _ABSENT:
        return 0
    if not isinstance(found, list):
        raise _unexpected(document, keys, "a list", found)
    return len(found)


@overload
def text(document: Document, *keys: Key) -> str: ...
@overload
def text(document: Document, *keys: Key, default: T) -> str | T: ...
def text(document: Document, *keys: Key, default: object = _ABSENT) -> object:
    """The text there; `default` where the file has none, an error without a default."""
    found = _at(document, keys)
    if found is _ABSENT:
        return _instead(document, keys, default, "text")
    if not isinstance(found, str):
        raise _unexpected(document, keys, "text", found)
    return found


@overload
def flag(document: Document, *keys: Key) -> bool: ...
@overload
def flag(document: Document, *keys: Key, default: T) -> bool | T: ...
def flag(document: Document, *keys: Key, default: object = _ABSENT) -> object:
    """True or false; `default` where the file has none, an error without a default."""
    found = _at(document, keys)
    if found is _ABSENT:
        return _instead(document, keys, default, "true or false")
    if not isinstance(found, bool):
        raise _unexpected(document, keys, "true or false", found)
    return found


@overload
def number(document: Document, *keys: Key, least: int | None = None) -> int: ...
@overload
def number(document: Document, *keys: Key, least: int | None = None, default: T) -> int | T: ...
def number(document: Document, *keys: Key, least: int | None = None, default: object = _ABSENT) -> object:
    """The whole number there, not below `least`; `default` where the file has none."""
    expected = "a whole number" if least is None else f"a whole number from {least}"
    found = _at(document, keys)
    if found is _ABSENT:
        return _instead(document, keys, default, expected)
    if not isinstance(found, int) or isinstance(found, bool):
        raise _unexpected(document, keys, expected, found)
    if least is not None and found < least:
        raise document.error(
            f"{_path(keys)}: expected {expected}, found {found}", *keys, hint=f"Write {expected} there."
        )
    return found


@overload
def texts(document: Document, *keys: Key) -> tuple[str, ...]: ...
@overload
def texts(document: Document, *keys: Key, default: T) -> tuple[str, ...] | T: ...
def texts(document: Document, *keys: Key, default: object = _ABSENT) -> object:
    """The list of texts there, none of them twice; `default` where the file has none."""
    found = _at(document, keys)
    if found is _ABSENT:
        return _instead(document, keys, default, "a list of texts")
    if not isinstance(found, list):
        raise _unexpected(document, keys, "a list of texts", found)
    items: list[str] = []
    for index, item in enumerate(found):
        if not isinstance(item, str):
            raise _unexpected(document, (*keys, index), "text", item)
        if item in items:
            raise document.error(
                f"{_path((*keys, index))} repeats an earlier item",
                *keys,
                index,
                hint="Remove one of the two.",
            )
        items.append(item)
    return tuple(items)


def choice(document: Document, *keys: Key, among: Sequence[Word]) -> Word:
    """The one of `among` that the file names there."""
    found = text(document, *keys)
    for word in among:
        if word == found:
            return word
    raise document.error(
        f"{_path(keys)}: expected one of {', '.join(among)}, found {named(found, otherwise='something else')}",
        *keys,
        hint=nearest(found, among, what="words"),
    )


def nearest(name: str, known: Collection[str], *, what: str) -> str:
    """A hint: the known name that was probably meant, else all of them."""
    if close := difflib.get_close_matches(name, known, n=1):
        return f"Did you mean {close[0]}?"
    return f"The {what} allowed there are: {', '.join(sorted(known))}."


def _at(document: Document, keys: Sequence[Key]) -> object:
    found = document.value
    for key in keys:
        match found, key:
            case dict(), _ if key in found:
                found = found[key]
            case list(), int() if 0 <= key < len(found):
                found = found[key]
            case _:
                return _ABSENT
    return found


def _instead(document: Document, keys: tuple[Key, ...], default: object, expected: str) -> object:
    if default is _ABSENT:
        raise document.error(
            f"{_path(keys)} is missing, expected {expected}", *keys, hint=f"Add '{keys[-1]}: …' there."
        )
    return default


def _mapping(document: Document, keys: tuple[Key, ...]) -> Mapping[str, object]:
    found = _at(document, keys)
    if not isinstance(found, dict):
        raise _unexpected(document, keys, "a mapping (key: value)", found)
    for key in found:
        if not isinstance(key, str):
            raise document.error(
                f"{_path(keys) or 'the file'}: a key that is not text",
                *keys,
                key,
                hint="Put it in quotes.",
            )
    return found


def _unexpected(document: Document, keys: tuple[Key, ...], expected: str, found: object) -> errors.ConfigurationError:
    return document.error(
        f"{_path(keys) or 'the file'}: expected {expected}, found {_kind(found)}",
        *keys,
        hint=f"Write {expected} there; text that looks like something else needs quotes."
        if expected == "text"
        else f"Write {expected} there.",
    )


def _kind(value: object) -> str:
    if value is None or value is _ABSENT:
        return "nothing"
    kinds = {bool: "true or false", int: "a number", float: "a fraction", str: "text", list: "a list"}
    return kinds.get(type(value), "a mapping" if isinstance(value, dict) else "a date")


def _path(keys: Sequence[Key]) -> str:
    """The keys as a person writes them: `tables.orders.references[0].key`."""
    steps = (f"[{key}]" if isinstance(key, int) else f".{named(key, otherwise='…')}" for key in keys)
    return "".join(steps).removeprefix(".")
