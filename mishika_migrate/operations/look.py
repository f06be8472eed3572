"""Reads both servers and makes the plan; writes nothing.

Imports foresight, pg, plan, matrix and the words.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mishika_migrate import errors, matrix, model, plan
from mishika_migrate.operations import foresight
from mishika_migrate.pg import catalog, connect, dump, fence, journal, ledger, replication, survey
from mishika_migrate.plan import history, loading, selection
from mishika_migrate.preflight import creation, following, privileges


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The plan, and the run that an earlier `copy` left unfinished on the target, if any.

    `catalogs` are those of source and target that it was made from. `effects` are what would become of
    rows that the target has, where that was asked for. Rows of `overwritten` tables of the target would
    go or become others.
    """

    plan: model.Plan
    catalogs: tuple[model.Catalog, model.Catalog]
    unfinished: model.Unfinished | None
    effects: tuple[model.Effect, ...] = ()

    @property
    def overwritten(self) -> tuple[str, ...]:
        codes = ("rows-replaced", "rows-updated")
        return tuple(finding.subject for finding in self.plan.findings if finding.code in codes)


def both(
    rules: matrix.Matrix,
    source: model.Endpoint,
    target: model.Endpoint,
    wanted: selection.Wanted,
    *,
    manner: loading.Manner | None = None,
    implied: Sequence[model.Finding] = (),
    counting: bool = False,
    jobs: int = 4,
) -> Look:
    """Connects to both at once. Raises `errors.Unreachable` for the first side that cannot be had.

    `counting` compares tables that have rows on the target, to say what would become of those. `jobs` is how many
    steps are to be carried out at once.
    """
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        sessions = _sessions(stack, pool, source, target)
        ends = (source, target)
        reading = [pool.submit(_catalog, sessions[end.role][0], end, rules) for end in ends]
        ours, theirs = (future.result() for future in reading)
        chosen = selection.select(rules, ours, wanted, target=theirs)
        books = _ledger(sessions["target"][0], ours, theirs)
        left = _left(sessions, ends, books.follow)
        answers = _survey(sessions, source, target, rules, ours, chosen, wanted)
        answers = dataclasses.replace(answers, unfinished=books.unfinished, finished=books.finished)
        span = manner.span if manner else None
        answers = dataclasses.replace(answers, **_times(sessions, rules, ours, theirs, chosen, span))
    seen = foresight.Foresight()
    if not (answers.same_database or answers.pooled) and min(ours.version, theirs.version) >= model.OLDEST_SERVER:
        seen = foresight.look(rules, ours, theirs, chosen, span=span, counting=counting)
        answers = dataclasses.replace(answers, collisions=seen.collisions)
    crowds = (privileges.sessions(each, jobs=jobs, followed=wanted.use == "any") for each in (ours, theirs))
    implied = [*books.denied, *left, *implied, *itertools.chain.from_iterable(crowds)]
    made = plan.build(rules, ours, theirs, chosen, answers, wanted, manner=manner, implied=implied)
    return Look(plan=made, catalogs=(ours, theirs), unfinished=books.unfinished, effects=seen.effects)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Books:
    """What the target's ledger tells: the run left unfinished, the last that finished from this source."""

    unfinished: model.Unfinished | None = None
    finished: str = ""
    follow: model.Follow | None = None
    denied: tuple[model.Finding, ...] = ()


def _ledger(session: connect.Session, source: model.Catalog, target: model.Catalog) -> _Books:
    """Or why nobody can tell."""
    try:
        with connect.translated(target.endpoint):
            runs = (run for run in ledger.runs(session) if run.state == "finished")
            return _Books(
                unfinished=ledger.unfinished(session),
                finished=next((run.id for run in runs if run.source == source.endpoint.label), ""),
                follow=journal.follow(session),
            )
    except errors.Denied:
        return _Books(denied=(privileges.ledger_denied(target, ledger.SCHEMA),))


def _left(sessions: Sessions, ends: Sequence[model.Endpoint], follow: model.Follow | None) -> tuple[model.Finding, ...]:
    """What a move that is under way, or was left so, means for whatever would be done now."""
    found: list[model.Finding] = []
    for end in reversed(ends):
        session = sessions[end.role][0]
        with connect.translated(end):
            found += following.left(end, replication.slots(session), fence.standing(session), follow)
    return tuple(found)


def one(rules: matrix.Matrix, endpoint: model.Endpoint) -> model.Catalog:
    """What one server has."""
    with connect.session(endpoint, name="mishika-migrate/look") as session:
        return catalog.read(session, endpoint, migrations=rules.migrations)


def _times(
    sessions: Sessions,
    rules: matrix.Matrix,
    ours: model.Catalog,
    theirs: model.Catalog,
    chosen: model.Selection,
    span: history.Span | None,
) -> dict[str, Any]:
    """What is known of the times of those tables of which an interval is asked for."""
    spread: dict[str, tuple[datetime, ...]] = {}
    vacant: set[str] = set()
    for table in (table for table in ours.tables if chosen.has(table.name)):
        within = history.interval(rules.entry(table.name), table, span)
        if within is None:
            continue
        with connect.translated(ours.endpoint):
            spread[table.name] = survey.times(sessions["source"][0], ours.endpoint.schema, table.name, within.column)
        place = theirs.table(table.name)
        if place is None or place.column(within.column) is None or not place.occupied:
            continue
        with connect.translated(theirs.endpoint):
            if not survey.holds(sessions["target"][0], theirs.endpoint.schema, table.name, within):
                vacant.add(table.name)
    return {"spread": spread, "vacant": frozenset(vacant)}


# A table that VACUUM FULL or a migration holds is an error with a name (55P03), not a silent wait.
_LOCK_TIMEOUT = "10s"

Sessions = dict[model.Role, tuple[connect.Session, connect.Session]]


def _sessions(stack: ExitStack, pool: ThreadPoolExecutor, source: model.Endpoint, target: model.Endpoint) -> Sessions:
    """Two of each side: whether two sessions share a backend tells a transaction pooler."""
    opening = [
        pool.submit(connect.open, endpoint, name="mishika-migrate/plan", settings={"lock_timeout": _LOCK_TIMEOUT})
        for endpoint in (source, source, target, target)
    ]
    failure: Exception | None = None
    opened: list[connect.Session] = []
    for future in opening:
        try:
            session = future.result()
        except Exception as error:
            failure = failure or error
        else:
            stack.callback(session.close)
            opened.append(session)
    if failure is not None:
        raise failure
    return {"source": (opened[0], opened[1]), "target": (opened[2], opened[3])}


def _catalog(session: connect.Session, endpoint: model.Endpoint, rules: matrix.Matrix) -> model.Catalog:
    with connect.translated(endpoint):
        return catalog.read(session, endpoint, migrations=rules.migrations)


def _survey(
    sessions: Sessions,
    source: model.Endpoint,
    target: model.Endpoint,
    rules: matrix.Matrix,
    ours: model.Catalog,
    chosen: model.Selection,
    wanted: selection.Wanted,
) -> model.Survey:
    reader = sessions["source"][0]
    pointers, shapes, unlooked = selection.questions(rules, ours, chosen)
    pooled: list[model.Role] = []
    for end in (source, target):
        with connect.translated(end):
            if survey.pooled(*sessions[end.role]):
                pooled.append(end.role)
    with connect.translated(source), survey.marked(reader) as mark, connect.translated(target):
        same_database = survey.has_mark(sessions["target"][0], mark)
    with connect.translated(source):
        return model.Survey(
            same_database=same_database,
            pooled=tuple(pooled),
            dangling=survey.dangling(reader, source.schema, pointers),
            unparseable=survey.unparseable(reader, source.schema, shapes),
            unlooked=unlooked,
            pg_dump=dump.version() if wanted.create_schema else None,
            owner=_owner(sessions["target"][0], target, creation.owner(ours, chosen)) if wanted.create_schema else None,
        )


def _owner(session: connect.Session, target: model.Endpoint, name: str) -> model.Owner:
    with connect.translated(target):
        return survey.owner(session, target.schema, name)
