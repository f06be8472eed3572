"""Reads from a matrix how the application decides about a call by a key: one row, joined with others.

Imports `errors`, `model` and `document`. What the engine needs to give every key a verdict is data in
the matrix, so another application's keys can be described as well.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields

from mishika_migrate import model
from mishika_migrate.matrix import document


def read(doc: document.Document, tables: Collection[str]) -> model.Keyring | None:
    """The section `keys`, None without one; any fault in it is a `ConfigurationError`."""
    if "keys" not in document.names(doc):
        return None
    document.fields(
        doc, "keys", allowed=("table", "key", "joins", "decides"), required=("table", "key", "joins", "decides")
    )
    table = _table(doc, tables, "keys", "table")
    joins: list[model.Join] = []
    for name in document.names(doc, "keys", "joins"):
        joins.append(_join(doc, name, tables, known={model.KEY, *(join.name for join in joins)}))
    known = {model.KEY, *(join.name for join in joins)}
    return model.Keyring(
        table=table,
        key=document.text(doc, "keys", "key"),
        joins=tuple(joins),
        aspects=tuple(_aspect(doc, reason, known) for reason in document.names(doc, "keys", "decides")),
    )


def _join(doc: document.Document, name: str, tables: Collection[str], *, known: Collection[str]) -> model.Join:
    at = ("keys", "joins", name)
    allowed = [field.name for field in fields(model.Join) if field.name != "name"]
    document.fields(doc, *at, allowed=allowed, required=("table", "by", "opens"))
    if name in known:
        raise doc.error(f"{name} is the name of the key's own row", *at, hint="Call the join otherwise.")
    by = document.names(doc, *at, "by")
    if not by:
        raise doc.error(f"by of {name} is empty", *at, "by", hint="Name at least one column.")
    return model.Join(
        name=name,
        table=_table(doc, tables, *at, "table"),
        by=tuple((column, _column(doc, known, *at, "by", column)) for column in by),
        missing=document.text(doc, *at, "missing", default=f"{name}-missing"),
        opens=document.text(doc, *at, "opens"),
        refuses=document.flag(doc, *at, "refuses", default=False),
    )


def _aspect(doc: document.Document, reason: str, known: Collection[str]) -> model.Aspect:
    at = ("keys", "decides", reason)
    document.fields(doc, *at, allowed=("columns", "says", "moving"), required=("columns", "says"))
    return model.Aspect(
        reason=reason,
        columns=tuple(
            _checked(doc, column, known, *at, "columns", index)
            for index, column in enumerate(document.texts(doc, *at, "columns"))
        ),
        says=document.text(doc, *at, "says"),
        moving=document.flag(doc, *at, "moving", default=False),
    )


def _table(doc: document.Document, tables: Collection[str], *at: document.Key) -> str:
    name = document.text(doc, *at)
    if name not in tables:
        hint = document.nearest(name, list(tables), what="tables")
        raise doc.error(f"{name} is no table of this matrix", *at, hint=hint)
    return name


def _column(doc: document.Document, known: Collection[str], *at: document.Key) -> str:
    return _checked(doc, document.text(doc, *at), known, *at)


def _checked(doc: document.Document, column: str, known: Collection[str], *at: document.Key) -> str:
    name, dot, rest = column.partition(".")
    if not dot or not rest or name not in known:
        raise doc.error(
            f"{column} names no column of the key or of a join before it",
            *at,
            hint=f"Write it as NAME.COLUMN, with one of {', '.join(sorted(known))}.",
        )
    return column
