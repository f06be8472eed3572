"""`tables`, `status` and `cleanup`: the matrix with live counts, and the target's ledger.

Imports pg, look, matrix and the words.
"""

from __future__ import annotations

from mishika_migrate import matrix, model
from mishika_migrate.operations import look
from mishika_migrate.pg import connect, ledger

_NAME = "mishika-migrate/books"


def tables(rules: matrix.Matrix, source: model.Endpoint | None) -> tuple[model.Listed, ...]:
    """The matrix in its order, then what else the source has."""
    there = look.one(rules, source) if source is not None else None
    known = [_listed(entry, rules, there) for entry in rules.entries]
    names = {entry.table for entry in rules.entries} | {rules.migrations}
    others = [
        model.Listed(
            table=table.name,
            need="unknown",
            stage="",
            flag=f"--include {table.name}",
            why="not in the matrix",
            rows=table.rows,
            bytes=table.bytes,
        )
        for table in (there.tables if there else ())
        if table.name not in names
    ]
    return (*known, *others)


def _listed(entry: matrix.Entry, rules: matrix.Matrix, there: model.Catalog | None) -> model.Listed:
    table = there.table(entry.table) if there else None
    group = rules.group(entry.group or "")
    return model.Listed(
        table=entry.table,
        need=entry.need,
        stage=entry.stage,
        flag=group.flag if group else "",
        why=entry.why,
        rows=table.rows if table else None,
        bytes=table.bytes if table else None,
    )


def runs(target: model.Endpoint) -> tuple[model.Run, ...]:
    """All runs of the target's ledger, the latest first."""
    with connect.session(target, name=_NAME) as session:
        return ledger.runs(session)


def has_ledger(target: model.Endpoint) -> bool:
    with connect.session(target, name=_NAME) as session:
        return ledger.exists(session)


def cleanup(target: model.Endpoint) -> None:
    """Drops the ledger; refused while a run holds the target."""
    with connect.session(target, name=_NAME) as session:
        ledger.lock(session, target)
        ledger.drop(session)
