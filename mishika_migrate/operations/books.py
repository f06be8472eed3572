"""`tables`, `status` and `cleanup`: the matrix with live counts, and the target's ledger.

Imports pg, look, plan, matrix and the words.
"""

from __future__ import annotations

from dataclasses import dataclass

from mishika_migrate import errors, matrix, model, plan
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the target's ledger says. `runs` has the latest first.

    `unfinished` is the run that `copy --resume` would continue, empty without one, and `waiting`
    are the tables that it has still to copy. `working` names who holds the target just now.
    """

    exists: bool
    runs: tuple[model.Run, ...]
    unfinished: str = ""
    waiting: tuple[str, ...] = ()
    working: str = ""


def status(target: model.Endpoint) -> Status:
    """Reads the ledger; writes nothing."""
    with connect.session(target, name=_NAME) as session:
        runs = ledger.runs(session)
        before = ledger.unfinished(session)
        return Status(
            exists=ledger.exists(session),
            runs=runs,
            unfinished=before.run if before else "",
            waiting=_waiting(before, runs) if before else (),
            # The lock is tried only when somebody says that he works: it could turn a new run away.
            working=_working(session, target) if any(run.state == "running" for run in runs) else "",
        )


def _waiting(before: model.Unfinished, runs: tuple[model.Run, ...]) -> tuple[str, ...]:
    try:
        todo = plan.loads(before.plan)
    except errors.ConfigurationError:
        return ()  # of another version of the tool, which alone can continue it
    landed = {step.step for run in runs if run.id == before.run for step in run.steps}
    copies = (step for step in todo.steps if isinstance(step, model.CopyTable) and step.id not in landed)
    return tuple(dict.fromkeys(step.target.name for step in copies))


def _working(session: connect.Session, target: model.Endpoint) -> str:
    try:
        ledger.lock(session, target)
    except errors.Refused as error:
        return error.message
    return ""


def refuse_while_working(target: model.Endpoint) -> None:
    """`errors.Refused` names the session that holds the target just now."""
    with connect.session(target, name=_NAME) as session:
        ledger.lock(session, target)


def cleanup(target: model.Endpoint) -> None:
    """Drops the ledger; refused while a run holds the target."""
    with connect.session(target, name=_NAME) as session:
        ledger.lock(session, target)
        ledger.drop(session)
