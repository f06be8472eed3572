"""Which tables there are, why they matter and how they refer to each other: data, read from YAML.

Imports only `errors`, `model` and its own `document` and `keyring`. The packaged matrix describes the proxy's
database; `load` reads any other one just as strictly, since the engine knows no table by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Final, Literal, get_args

from mishika_migrate import model
from mishika_migrate.matrix import document, keyring

FORMAT: Final = 1
PACKAGED: Final = "mishikallm.yaml"

Stage = Literal["core", "bulk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftReference:
    """A column that names rows of another table without a foreign key.

    `each` says that the column is a text[] and every element is a reference. `exempt` values point
    nowhere by design. `opens` says in plain words which limit disappears when the row is missing.
    """

    column: str
    table: str
    key: str
    each: bool = False
    exempt: tuple[str, ...] = ()
    opens: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Those rows whose `column` has one of these values."""

    column: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is known about one table.

    `loses` says what is lost when it stays behind; `goes_with` names the table it is selected with.
    `encrypted` columns hold JSON objects whose strings are ciphertext, in the rows of `encrypted_where`
    alone where it is set. `objects` are jsonb columns in which the application accepts only a JSON
    object, `present` columns in which it does not accept NULL although the schema does.
    `names` are the columns by which a person recognises a row, never secrets.
    """

    table: str
    need: model.Need
    why: str
    loses: str = ""
    stage: Stage
    group: str | None = None
    goes_with: str | None = None
    written: str
    insert_only: bool = False
    time_column: str | None = None
    references: tuple[SoftReference, ...] = ()
    encrypted: tuple[str, ...] = ()
    encrypted_where: Where | None = None
    objects: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A set of if-wanted tables and the flag that selects it."""

    name: str
    flag: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixView:
    """A view that the application needs, and the tables it reads."""

    name: str
    why: str
    reads: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """All tables in the order of the file.

    `migrations` is the schema's own journal, `keys` how the application decides about its keys; None without.
    """

    name: str
    entries: tuple[Entry, ...]
    groups: tuple[Group, ...]
    views: tuple[MatrixView, ...]
    migrations: str | None
    keys: model.Keyring | None = None
    path: str

    def entry(self, table: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.table == table), None)

    def group(self, name: str) -> Group | None:
        return next((group for group in self.groups if group.name == name), None)


def load(path: Path | None = None) -> Matrix:
    """The matrix in that file, or the packaged one; any fault in it is a `ConfigurationError`."""
    if path is not None:
        return _matrix(document.read(path))
    text = (resources.files(__name__) / PACKAGED).read_text(encoding="utf-8")
    return _matrix(document.parse(text, name=PACKAGED))


# -- one after the other --------------------------------------------------------------------------


def _matrix(doc: document.Document) -> Matrix:
    document.fields(
        doc,
        allowed=("matrix", "name", "migrations", "groups", "tables", "views", "keys"),
        required=("matrix", "name", "tables"),
    )
    version = document.number(doc, "matrix")
    if version != FORMAT:
        raise doc.error(
            f"matrix format {version} is unknown",
            "matrix",
            hint=f"This version of the tool reads 'matrix: {FORMAT}'.",
        )
    matrix = Matrix(
        name=_sentence(doc, "name"),
        entries=tuple(_entry(doc, table) for table in document.names(doc, "tables")),
        groups=tuple(_group(doc, name) for name in document.names(doc, "groups")),
        views=tuple(_view(doc, name) for name in document.names(doc, "views")),
        migrations=_optional_name(doc, "migrations"),
        keys=keyring.read(doc, document.names(doc, "tables")),
        path=doc.path,
    )
    if not matrix.entries:
        raise doc.error("tables is empty", "tables", hint="Describe at least one table.")
    _check_groups(doc, matrix)
    _check_tables_exist(doc, matrix)
    _check_cycles(doc, matrix)
    _check_relation_names(doc, matrix)
    return matrix


def _entry(doc: document.Document, table: str) -> Entry:
    at = ("tables", table)
    allowed = [field.name for field in fields(Entry) if field.name != "table"]
    document.fields(doc, *at, allowed=allowed, required=("need", "why", "stage", "written"))
    needs: tuple[model.Need, ...] = get_args(model.Need)
    stages: tuple[Stage, ...] = get_args(Stage)
    return Entry(
        table=_identifier(doc, table, *at),
        need=document.choice(doc, *at, "need", among=needs),
        why=_sentence(doc, *at, "why"),
        loses=document.text(doc, *at, "loses", default=""),
        stage=document.choice(doc, *at, "stage", among=stages),
        group=document.text(doc, *at, "group", default=None),
        goes_with=document.text(doc, *at, "goes_with", default=None),
        written=_sentence(doc, *at, "written"),
        insert_only=document.flag(doc, *at, "insert_only", default=False),
        time_column=_optional_name(doc, *at, "time_column"),
        references=tuple(_reference(doc, table, index) for index in range(document.count(doc, *at, "references"))),
        encrypted=_columns(doc, *at, "encrypted"),
        encrypted_where=_encrypted_where(doc, table),
        objects=_columns(doc, *at, "objects"),
        present=_columns(doc, *at, "present"),
        names=_columns(doc, *at, "names"),
    )


def _reference(doc: document.Document, table: str, index: int) -> SoftReference:
    at = ("tables", table, "references", index)
    allowed = [field.name for field in fields(SoftReference)]
    document.fields(doc, *at, allowed=allowed, required=("column", "table", "key"))
    return SoftReference(
        column=_name(doc, *at, "column"),
        table=document.text(doc, *at, "table"),
        key=_name(doc, *at, "key"),
        each=document.flag(doc, *at, "each", default=False),
        exempt=document.texts(doc, *at, "exempt", default=()),
        opens=document.text(doc, *at, "opens", default=""),
    )


def _encrypted_where(doc: document.Document, table: str) -> Where | None:
    at = ("tables", table, "encrypted_where")
    if at[-1] not in document.names(doc, *at[:-1]):
        return None
    document.fields(doc, *at, allowed=("column", "values"), required=("column", "values"))
    values = document.texts(doc, *at, "values")
    if not values:
        raise doc.error(f"values of {table} is empty", *at, "values", hint="Name at least one value.")
    if not document.texts(doc, *at[:-1], "encrypted", default=()):
        raise doc.error(
            f"{table} has encrypted_where but no encrypted columns", *at, hint="Add 'encrypted: [COLUMN]' there."
        )
    return Where(column=_name(doc, *at, "column"), values=values)


def _group(doc: document.Document, name: str) -> Group:
    at = ("groups", name)
    document.fields(doc, *at, allowed=("flag", "why"), required=("flag", "why"))
    flag = document.text(doc, *at, "flag")
    if not re.fullmatch(r"--include-[a-z-]+", flag):
        raise doc.error(
            f"the flag {flag!r} of group {name} is not of the form --include-…",
            *at,
            "flag",
            hint="Write --include- and then small letters and dashes.",
        )
    return Group(name=name, flag=flag, why=_sentence(doc, *at, "why"))


def _view(doc: document.Document, name: str) -> MatrixView:
    at = ("views", name)
    document.fields(doc, *at, allowed=("why", "reads"), required=("why", "reads"))
    return MatrixView(
        name=_identifier(doc, name, *at),
        why=_sentence(doc, *at, "why"),
        reads=document.texts(doc, *at, "reads"),
    )


def _sentence(doc: document.Document, *at: document.Key) -> str:
    found = document.text(doc, *at)
    if not found.strip():
        raise doc.error(f"{at[-1]} is empty", *at, hint="Say it in a few words.")
    return found


def _columns(doc: document.Document, *at: document.Key) -> tuple[str, ...]:
    found = document.texts(doc, *at, default=())
    return tuple(_identifier(doc, name, *at, index) for index, name in enumerate(found))


def _name(doc: document.Document, *at: document.Key) -> str:
    return _identifier(doc, document.text(doc, *at), *at)


def _optional_name(doc: document.Document, *at: document.Key) -> str | None:
    found = document.text(doc, *at, default=None)
    return None if found is None else _identifier(doc, found, *at)


def _identifier(doc: document.Document, name: str, *at: document.Key) -> str:
    """The name, if a server can have it: Postgres cuts identifiers at 63 bytes (NAMEDATALEN - 1)."""
    size = len(name.encode())
    if size > 63:
        raise doc.error(
            f"the name {name} has {size} bytes, more than 63",
            *at,
            hint="Write it as the server has it, cut at 63 bytes.",
        )
    if not name or "\0" in name:
        raise doc.error(
            "a name that is empty or holds a NUL character", *at, hint="Write the name as the server has it."
        )
    return name


# -- one against the other ------------------------------------------------------------------------


def _check_groups(doc: document.Document, matrix: Matrix) -> None:
    known = [group.name for group in matrix.groups]
    for entry in matrix.entries:
        at = ("tables", entry.table)
        if entry.group is not None and entry.group not in known:
            raise doc.error(
                f"table {entry.table} is in the unknown group {entry.group}",
                *at,
                "group",
                hint=document.nearest(entry.group, known, what="groups"),
            )
        if entry.need == "if-wanted" and entry.group is None:
            raise doc.error(
                f"table {entry.table} is if-wanted but in no group, so no flag selects it",
                *at,
                hint="Add 'group: NAME' there and describe the group under groups.",
            )
    flags: dict[str, str] = {}
    for group in matrix.groups:
        if other := flags.get(group.flag):
            raise doc.error(
                f"the flag {group.flag} of group {group.name} is also the one of group {other}",
                *("groups", group.name, "flag"),
                hint="Give each group a flag of its own.",
            )
        flags[group.flag] = group.name
        if not any(entry.group == group.name for entry in matrix.entries):
            raise doc.error(
                f"no table uses group {group.name}",
                "groups",
                group.name,
                hint="Remove it, or name it at a table.",
            )


def _check_tables_exist(doc: document.Document, matrix: Matrix) -> None:
    named: list[tuple[str, tuple[document.Key, ...]]] = []
    for entry in matrix.entries:
        at = ("tables", entry.table)
        if entry.goes_with is not None:
            named.append((entry.goes_with, (*at, "goes_with")))
        for index, reference in enumerate(entry.references):
            named.append((reference.table, (*at, "references", index, "table")))
    for view in matrix.views:
        named += [(table, ("views", view.name, "reads", index)) for index, table in enumerate(view.reads)]
    known = {entry.table for entry in matrix.entries}
    for table, keys in named:
        if table not in known:
            hint = document.nearest(table, known, what="tables")
            raise doc.error(f"{table} is no table of this matrix", *keys, hint=hint)


def _check_cycles(doc: document.Document, matrix: Matrix) -> None:
    after = {entry.table: entry.goes_with for entry in matrix.entries}
    for start in after:
        chain = [start]
        while (table := after[chain[-1]]) is not None:
            if table in chain:
                cycle = [*chain[chain.index(table) :], table]
                raise doc.error(
                    f"goes_with runs in a circle: {' → '.join(cycle)}",
                    *("tables", cycle[0], "goes_with"),
                    hint="Remove one goes_with of the circle.",
                )
            chain.append(table)


def _check_relation_names(doc: document.Document, matrix: Matrix) -> None:
    """Tables and views share one name space in a server's schema."""
    tables = {entry.table for entry in matrix.entries}
    for view in matrix.views:
        if view.name in tables:
            raise doc.error(
                f"{view.name} is both a table and a view", "views", view.name, hint="Remove one of the two."
            )
    if matrix.migrations in tables:
        raise doc.error(
            f"{matrix.migrations} is both a table and the migrations journal",
            "migrations",
            hint="Remove it from the tables; it is never merged.",
        )
