"""Catalogs made of plain values, for the decisions that touch no server."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mishika_migrate import matrix, model, plan
from mishika_migrate.plan import selection

ALL = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "OWNER", "MAINTAIN"})


def column(name: str = "id", kind: str = "text", **more: object) -> model.Column:
    return model.Column(**{"name": name, "type": kind, "nullable": False, **more})  # type: ignore[arg-type]


def key(references: str, *, deferrable: bool = False, name: str = "") -> model.ForeignKey:
    return model.ForeignKey(
        name=name or f"to_{references}",
        columns=(f"{references}_id",),
        references=references,
        referenced_columns=("id",),
        deferrable=deferrable,
    )


def table(name: str, *keys: model.ForeignKey, **more: object) -> model.Table:
    """A table with a key `id`, a column for each foreign key, and 10 rows."""
    fields = {
        "columns": (column(), *(column(each.columns[0], nullable=True) for each in keys)),
        "rows": 10.0,
        "bytes": 8192,
        "occupied": True,
        "foreign_keys": keys,
        "privileges": ALL,
        "owner": "postgres",
        **more,
    }
    return model.Table(name=name, **fields)  # type: ignore[arg-type]


def catalog(role: model.Role, tables: Iterable[model.Table], **more: object) -> model.Catalog:
    """A server of version 16 on which everything is allowed. A target's tables are empty."""
    fields = {
        "endpoint": model.Endpoint(role=role, conninfo="", label=f"me@{role}/db"),
        "database": "db",
        "version": 16_00_00,
        "encoding": "UTF8",
        "user": "me",
        "in_recovery": False,
        "schema_exists": True,
        "may_create_schema": True,
        "may_use_schema": True,
        "may_create_in_schema": True,
        "tables": tuple(each if role == "source" else replace(each, occupied=False) for each in tables),
        **more,
    }
    return model.Catalog(**fields)  # type: ignore[arg-type]


def entry(name: str, need: model.Need = "required", **more: object) -> matrix.Entry:
    fields = {"why": f"why {name}", "loses": f"what {name} holds", "stage": "core", "written": "rarely", **more}
    return matrix.Entry(table=name, need=need, **fields)  # type: ignore[arg-type]


def rules(*entries: matrix.Entry, groups: Iterable[str] = (), **more: object) -> matrix.Matrix:
    made = tuple(matrix.Group(name=name, flag=f"--include-{name}", why="why") for name in groups)
    fields = {"name": "Test", "views": (), "migrations": None, "path": "test.yaml", **more}
    return matrix.Matrix(entries=entries, groups=made, **fields)  # type: ignore[arg-type]


def build(
    given: matrix.Matrix,
    source: model.Catalog,
    target: model.Catalog,
    *,
    survey: model.Survey | None = None,
    **asked: object,
) -> model.Plan:
    """The plan for these catalogs, selection included."""
    wanted = selection.Wanted(**asked)  # type: ignore[arg-type]
    chosen = selection.select(given, source, wanted, target=target)
    return plan.build(given, source, target, chosen, survey or model.Survey(pg_dump=18), wanted)
