"""Levels tables of the target with a snapshot of the source: finds what differs, applies it, compares again.

Imports pg, comparing, plan, selection, history, matrix, events and the words.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import mishika_migrate
from mishika_migrate import errors, events, matrix, model, plan
from mishika_migrate.pg import connect, ddl, digest, interrupt, ledger, merge, sides, snapshot, transfer
from mishika_migrate.plan import history, selection
from mishika_migrate.proof import comparing

Emit = Callable[[events.Event], None]
Span = history.Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What both sides have, and what of it is to be the same. `core` is applied together, parents first.

    `wanted` and `span` are what was asked for, or what the ledger's runs have copied.
    """

    rules: matrix.Matrix
    source: model.Catalog
    target: model.Catalog
    todo: model.Plan
    said: str
    core: tuple[model.CopyTable, ...]
    history: tuple[model.CopyTable, ...]
    sequences: tuple[model.SetSequence, ...]
    wanted: selection.Wanted = field(default_factory=selection.Wanted)
    span: Span | None = None

    def comparison(self, step: model.CopyTable) -> model.Comparison:
        within = {step.target.name: step.within} if step.within else {}
        (found,) = comparing.of_selection(self.rules, self.source, self.target, [step.source.name], within=within)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    places: array[int]
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    seconds: float = 0.0


def difference(asked: digest.Look, both: sides.Both) -> Difference:
    """Where the rows of both sides differ, and by how many rows."""
    began, what = time.monotonic(), f"table {asked.what.table}"
    sums = both.ask(lambda session, role: digest.sums(session, asked, role), what)
    places, counts = array("q"), (0, 0, 0)
    if buckets := digest.differing(*sums):
        streams = {role: _rows(both, asked, role, buckets) for role in sides.ROLES}
        # Both servers put them in order at the same time.
        heads = both.ask(lambda _, role: list(itertools.islice(streams[role], 1)), what)
        ours, theirs = (itertools.chain(head, streams[role]) for head, role in zip(heads, sides.ROLES, strict=True))
        places, counts = merge.places(digest.compare(ours, theirs))
    inserted, updated, deleted = counts
    return Difference(
        places=places, inserted=inserted, updated=updated, deleted=deleted, seconds=time.monotonic() - began
    )


def _rows(both: sides.Both, asked: digest.Look, role: model.Role, buckets: Sequence[int]) -> Iterator[digest.Row]:
    with connect.translated(both.end(role), f"table {asked.what.table}"):
        yield from digest.rows(both.sessions[role], asked, role, buckets)


def foreseen(step: model.CopyTable, found: Difference, *, delete: bool) -> model.Synced:
    return model.Synced(
        table=step.target.name,
        how="buckets",
        inserted=found.inserted,
        updated=found.updated,
        deleted=found.deleted if delete else 0,
        extra=0 if delete else found.deleted,
        seconds=found.seconds,
    )


def outsiders(scene: Scene, session: connect.Session, deleting: Sequence[model.TableName]) -> Iterator[tuple[str, str]]:
    """What of tables that are not synced would change with rows of `deleting`, and what to do about it."""
    inside = [step.target for step in scene.core]
    for each in merge.outsiders(session, deleting, inside):
        message = (
            f"rows of {each.references} on {scene.target.endpoint.label} are to go, and {each.table} ({each.name}),"
            " which is not synced, would change with them"
        )
        known = scene.source.table(each.table) is not None
        yield message, f"Add --include {each.table}." if known else _UNTIE


_UNTIE = "On the target, remove its rows that reference them, or drop the foreign key."
_STILL_REFERENCED = "23503"


@contextlib.contextmanager
def _referenced(target: model.Endpoint) -> Iterator[None]:
    """Rows of tables that are not synced keep those that they reference."""
    try:
        with connect.translated(target):
            yield
    except errors.ServerError as error:
        if error.sqlstate != _STILL_REFERENCED:
            raise
        raise errors.Refused(
            f"{error.message}; nothing was changed",
            hint=f"Sync the other table too, if the source has it (--include NAME). {_UNTIE}",
        ) from error


_COLLIDES = "23505"


@contextlib.contextmanager
def _colliding(target: model.Endpoint, what: str) -> Iterator[None]:
    """Rows of history that only the target has may hold unique values of the source's."""
    try:
        with connect.translated(target, what):
            yield
    except errors.ServerError as error:
        if error.sqlstate == _COLLIDES:
            error.hint = "A row that only the target has is in the way: remove it, or add --delete-extra."
        raise


@contextlib.contextmanager
def _swapping(target: model.Endpoint) -> Iterator[None]:
    """Values under indexes over expressions, and exclusions, cannot be taken out of the way."""
    try:
        with connect.translated(target):
            yield
    except errors.ServerError as error:
        if error.sqlstate in (_COLLIDES, "23P01"):
            error.hint = (
                "Rows of the source have exchanged what must be unique: drop that index or constraint on the target,"
                " sync, and make it again; or copy the table anew (copy --on-existing replace)."
            )
        raise


class Pass:
    """One pass: its snapshot of the source and its sessions on the target. With `delete` rows of history go that only
    the target has."""

    def __init__(
        self,
        scene: Scene,
        seen: sides.Sides,
        source: model.Endpoint,
        target: model.Endpoint,
        *,
        run: str,
        name: str,
        waits: Mapping[str, str],
        holder: snapshot.Holder,
        emit: Emit,
        delete: bool,
    ) -> None:
        self._scene, self._seen = scene, seen
        self._ends: dict[model.Role, model.Endpoint] = {"source": source, "target": target}
        self._run, self._name, self._waits = run, name, waits
        self._holder, self._emit, self._delete = holder, emit, delete
        self._method = digest.method(seen.first, "fast")

    def core(self, *, check: Callable[[], object]) -> list[model.Synced]:
        """All core tables: what is missing, other and too much, in one transaction.

        `check` raises when that must not be; it is called when nobody else can write to them any more.
        """
        with self._writing("core") as both:
            session = both.sessions["target"]
            if self._scene.core:
                with connect.translated(self._ends["target"], "the lock on the core tables"):
                    merge.lock(session, [step.target for step in self._scene.core])
            check()
            self._enter(session)
            merges = [self._merge(number, step, both) for number, step in enumerate(self._scene.core)]
            changes = self._apply(both, [(each, found) for each, found in merges if found.places])
            for step in self._scene.sequences:
                with connect.translated(self._ends["source"], step.id):
                    value, called = ddl.last_value(both.sessions["source"], step)
                ddl.set_sequence(session, step, value, called)
            done = [changes.get(each.step.target, _unchanged(each.step, found)) for each, found in merges]
            for (each, _), change in zip(merges, done, strict=True):
                self._record(session, each.step, change)
        for change in done:
            self._emit(events.TableSynced(change=change))
        return done

    def _enter(self, session: connect.Session) -> None:
        end, todo = self._ends["target"], self._scene.todo
        try:
            with connect.translated(end, "the ledger"):
                ledger.enter(session, run=self._run, plan=todo, text=plan.dumps(todo), tool=tool(delete=self._delete))
        except errors.Denied as error:
            error.hint = f"GRANT ALL ON ALL TABLES IN SCHEMA {ledger.SCHEMA} TO this role on the target."
            raise

    def _merge(self, number: int, step: model.CopyTable, both: sides.Both) -> tuple[merge.Merge, Difference]:
        asked = digest.Look(what=self._scene.comparison(step), method=self._method, fine=True)
        found = difference(asked, both)
        return self._of(number, step, asked, found.places), found

    def _of(self, number: int, step: model.CopyTable, asked: digest.Look, places: array[int]) -> merge.Merge:
        place = self._scene.target.table(step.target.name)
        assert place is not None, "the plan has it"
        return merge.Merge(
            look=asked,
            step=step,
            places=places,
            number=number,
            uniques=tuple(_uniques(place, step.columns, asked.what.key)),
            columns=place.columns,
            bound=frozenset(asked.what.key).union(*(key.columns for key in place.foreign_keys)),
        )

    def _apply(
        self, both: sides.Both, merges: Sequence[tuple[merge.Merge, Difference]]
    ) -> dict[model.TableName, model.Synced]:
        """Applies all of it, then compares everything again."""
        session, began = both.sessions["target"], time.monotonic()
        deleting = [each.step.target for each, found in merges if found.deleted]
        for message, hint in outsiders(self._scene, session, deleting):
            raise errors.Refused(f"{message}; nothing was changed", hint=hint)
        way = self._way(both)
        sizes = {each.step.target: merge.bring(way, each) for each, _ in merges}
        with _referenced(self._ends["target"]), _swapping(self._ends["target"]):
            merge.apply(session, [each for each, _ in merges])
        for each, _ in merges:
            self._check(both, each.look)
        share = (time.monotonic() - began) / max(len(merges), 1)
        return {
            each.step.target: model.Synced(
                table=each.step.target.name,
                how="buckets",
                inserted=found.inserted,
                updated=found.updated,
                deleted=found.deleted,
                bytes=sizes[each.step.target],
                seconds=found.seconds + share,
            )
            for each, found in merges
        }

    def _way(self, both: sides.Both) -> transfer.Way:
        return transfer.Way(
            source=both.sessions["source"],
            target=both.sessions["target"],
            endpoints=(self._ends["source"], self._ends["target"]),
            stopping=connect.never,
        )

    def _check(self, both: sides.Both, asked: digest.Look) -> None:
        what = f"table {asked.what.table}"
        ours, theirs = both.ask(lambda session, role: digest.sums(session, asked, role), what)
        if digest.differing(ours, theirs):
            raise errors.Different(
                f"{what} of {self._ends['target'].label} does not become what the source holds; nothing was changed",
                hint="A trigger or a rule of the target changes rows that are written: see \\d in psql, disable it.",
            )

    # -- history ----------------------------------------------------------------------------------

    def history(self, watch: connect.Session, *, jobs: int) -> list[model.Synced]:
        """Each table in its own transaction, next to whoever else writes there."""
        seen = {step.target: "" if self._delete else self._horizon(watch, step) for step in self._scene.history}

        def one(numbered: tuple[int, model.CopyTable]) -> model.Synced:
            number, step = numbered
            change = self._follow(number, step, seen[step.target])
            self._emit(events.TableSynced(change=change))
            return change

        with ThreadPoolExecutor(jobs, thread_name_prefix="sync") as pool, interrupt.given_up(self._name):
            return sides.results([pool.submit(one, numbered) for numbered in enumerate(self._scene.history)])

    def _horizon(self, watch: connect.Session, step: model.CopyTable) -> str:
        """What the last run has seen of a table whose rows are never changed; empty where that cannot be used."""
        entry = self._scene.rules.entry(step.target.name)
        if entry is None or not entry.insert_only:
            return ""
        before = ledger.seen(watch, table=step.target.name)
        if before is None:
            return ""
        horizons, text = before
        same = plan.loads(text).intervals.get(step.target) == step.within
        usable = same and len(horizons) == 1 and self._holder.continues(horizons[0], step)
        return horizons[0] if usable else ""

    def _follow(self, number: int, step: model.CopyTable, horizon: str) -> model.Synced:
        began = time.monotonic()
        asked = digest.Look(what=self._scene.comparison(step), method=self._method, fine=True)
        found = Difference(places=array("q"))
        if not horizon:
            with self._seen.pair() as both:
                found = difference(asked, both)
        with self._writing(f"{number}") as both:
            if horizon:
                change = self._newer(both, self._of(number, step, asked, found.places), horizon)
            else:
                change = self._add(both, self._of(number, step, asked, found.places), found)
            change = dataclasses.replace(change, seconds=time.monotonic() - began)
            self._record(both.sessions["target"], step, change)
        return change

    def _newer(self, both: sides.Both, each: merge.Merge, horizon: str) -> model.Synced:
        """Rows that came after the horizon. Where older ones are missing on the target, all are compared."""
        way, name = self._way(both), each.step.target.name
        size = merge.bring_newer(way, each, horizon)
        with _colliding(self._ends["target"], f"table {name}"):
            inserted, updated = merge.upsert(way.target, each)
        change = model.Synced(table=name, how="visibility", inserted=inserted, updated=updated, bytes=size)
        count = functools.partial(_count, each.look)
        ours, theirs = both.ask(count, f"table {name}")
        if theirs >= ours:
            return change
        found = difference(each.look, both)
        # The first one's temporary table is there until the transaction ends.
        other = dataclasses.replace(each, number=each.number + _SECOND, places=found.places)
        more = self._add(both, other, found)
        return dataclasses.replace(
            more,
            inserted=more.inserted + change.inserted,
            updated=more.updated + change.updated,
            bytes=more.bytes + change.bytes,
        )

    def _add(self, both: sides.Both, each: merge.Merge, found: Difference) -> model.Synced:
        way, delete = self._way(both), self._delete
        if not found.places:
            return _unchanged(each.step, found)
        if delete and found.deleted:
            for message, hint in outsiders(self._scene, way.target, [each.step.target]):
                raise errors.Refused(f"{message}; nothing of it was changed", hint=hint)
        size = merge.bring(way, each)
        with _colliding(self._ends["target"], f"table {each.step.target.name}"):
            if each.key:
                merge.make_way(way.target, each, known=not delete)
            if delete and found.deleted:
                merge.delete(way.target, each)
            if each.key:
                merge.upsert(way.target, each)
            elif delete:
                merge.insert(way.target, each)
            else:
                merge.add(way.target, each)
        return dataclasses.replace(foreseen(each.step, found, delete=delete), bytes=size)

    # -- both -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[sides.Both]:
        """A transaction that may write on the target, beside a session in the snapshot of the source."""
        end = self._ends["target"]
        with (
            self._seen.pair() as both,
            connect.session(end, name=f"{self._name}/{name}", answered=True, settings=self._waits) as session,
            connect.transaction(session),
        ):
            session.execute("SET CONSTRAINTS ALL DEFERRED")
            yield sides.Both({"source": both.sessions["source"], "target": session}, self._ends, name=self._name)

    def _record(self, session: connect.Session, step: model.CopyTable, change: model.Synced) -> None:
        rows = change.inserted + change.updated
        ledger.claim(session, run=self._run, step=step.id)
        landed = model.Landed(
            step=step.id,
            table=change.table,
            rows_out=rows,
            rows_in=rows,
            bytes=change.bytes,
            seconds=change.seconds,
        )
        ledger.record(session, run=self._run, landed=landed, horizon=self._holder.horizon(step))


_SECOND = 10_000

_NAME = f"mishika-migrate {mishika_migrate.__version__} sync"


def tool(*, delete: bool) -> str:
    """How the ledger names such a pass; one that deletes has left no row of history that only the target has."""
    return f"{_NAME} --delete-extra" if delete else _NAME


def _count(asked: digest.Look, session: connect.Session, role: model.Role) -> int:
    return digest.count(session, asked, role)


def _unchanged(step: model.CopyTable, found: Difference) -> model.Synced:
    return model.Synced(table=step.target.name, how="buckets", seconds=found.seconds)


def _uniques(place: model.Table, columns: Sequence[str], key: Sequence[str]) -> Iterator[model.Index]:
    """Its unique indexes beside the key over columns that are copied, those of a part of its rows included."""
    for index in place.indexes:
        if index.unique and set(index.columns) <= set(columns) and not set(key) <= set(index.columns):
            yield index
