"""Levels tables of the target with a snapshot of the source: finds what differs, applies it, compares again.

Imports pg, comparing, plan, matrix, events and the words.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mishika_migrate
from mishika_migrate import comparing, errors, events, matrix, model, plan
from mishika_migrate.pg import connect, ddl, digest, ledger, merge, sides, snapshot, transfer

Emit = Callable[[events.Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What both sides have, and what of it is to be the same. `core` is applied together, parents first."""

    rules: matrix.Matrix
    source: model.Catalog
    target: model.Catalog
    todo: model.Plan
    said: str
    core: tuple[model.CopyTable, ...]
    history: tuple[model.CopyTable, ...]
    sequences: tuple[model.SetSequence, ...]

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
    ours, theirs = both.ask(lambda session, role: digest.sums(session, asked, role), what)
    places, counts = array("q"), (0, 0, 0)
    if buckets := digest.differing(ours, theirs):
        streams = (_rows(both, asked, role, buckets) for role in sides.ROLES)
        places, counts = merge.places(digest.compare(*streams))
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


class Pass:
    """One pass: its snapshot of the source and its sessions on the target."""

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
    ) -> None:
        self._scene, self._seen = scene, seen
        self._ends: dict[model.Role, model.Endpoint] = {"source": source, "target": target}
        self._run, self._name, self._waits = run, name, waits
        self._holder, self._emit = holder, emit
        self._method = digest.method(seen.first, "fast")

    def core(self) -> list[model.Synced]:
        """All core tables: what is missing, other and too much, in one transaction."""
        with self._writing("core") as both, connect.transaction(both.sessions["target"]):
            session = both.sessions["target"]
            if self._scene.core:
                merge.lock(session, [step.target for step in self._scene.core])
            ledger.enter(session, run=self._run, plan=self._scene.todo, text=plan.dumps(self._scene.todo), tool=_TOOL)
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

    def _merge(self, number: int, step: model.CopyTable, both: sides.Both) -> tuple[merge.Merge, Difference]:
        asked = digest.Look(what=self._scene.comparison(step), method=self._method)
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
            uniques=tuple(_uniques(place, asked.what.key)),
            columns=place.columns,
        )

    def _apply(
        self, both: sides.Both, merges: Sequence[tuple[merge.Merge, Difference]]
    ) -> dict[model.TableName, model.Synced]:
        """Applies all of it, then compares everything again."""
        session, began = both.sessions["target"], time.monotonic()
        merge.refuse_outsiders(
            session,
            [each.step.target for each, found in merges if found.deleted],
            [step.target for step in self._scene.core],
            self._ends["target"],
        )
        way = self._way(both)
        sizes = {each.step.target: merge.bring(way, each) for each, _ in merges}
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

    def history(self, watch: connect.Session, *, delete: bool, jobs: int) -> list[model.Synced]:
        """Each table in its own transaction, next to whoever else writes there."""
        seen = {step.target: "" if delete else self._horizon(watch, step) for step in self._scene.history}

        def one(numbered: tuple[int, model.CopyTable]) -> model.Synced:
            number, step = numbered
            change = self._follow(number, step, seen[step.target], delete=delete)
            self._emit(events.TableSynced(change=change))
            return change

        with ThreadPoolExecutor(jobs, thread_name_prefix="sync") as pool, connect.given_up(self._name):
            return list(pool.map(one, enumerate(self._scene.history)))

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

    def _follow(self, number: int, step: model.CopyTable, horizon: str, *, delete: bool) -> model.Synced:
        began = time.monotonic()
        asked = digest.Look(what=self._scene.comparison(step), method=self._method)
        found = Difference(places=array("q"))
        if not horizon:
            with self._seen.pair() as both:
                found = difference(asked, both)
        with self._writing(f"{number}") as both, connect.transaction(both.sessions["target"]):
            each = self._of(number, step, asked, found.places)
            change = self._add(self._way(both), each, found, horizon, delete=delete)
            change = dataclasses.replace(change, seconds=time.monotonic() - began)
            self._record(both.sessions["target"], step, change)
        return change

    def _add(
        self, way: transfer.Way, each: merge.Merge, found: Difference, horizon: str, *, delete: bool
    ) -> model.Synced:
        name = each.step.target.name
        if horizon:
            size = merge.bring_newer(way, each, horizon)
            return model.Synced(table=name, how="visibility", inserted=merge.upsert(way.target, each), bytes=size)
        if not found.places:
            return _unchanged(each.step, found)
        size = merge.bring(way, each)
        delete = delete or not each.key
        if each.key:
            merge.upsert(way.target, each)
        if delete:
            merge.delete(way.target, each)
        if not each.key:
            merge.insert(way.target, each)
        return dataclasses.replace(foreseen(each.step, found, delete=delete), bytes=size)

    # -- both -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[sides.Both]:
        """A session that may write on the target, beside one in the snapshot of the source."""
        end = self._ends["target"]
        with (
            self._seen.pair() as both,
            connect.session(end, name=f"{self._name}/{name}", answered=True, settings=self._waits) as session,
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


_TOOL = f"mishika-migrate {mishika_migrate.__version__} sync"


def _unchanged(step: model.CopyTable, found: Difference) -> model.Synced:
    return model.Synced(table=step.target.name, how="buckets", seconds=found.seconds)


def _uniques(place: model.Table, key: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The columns of its unique indexes beside the key, those of a part of its rows included."""
    names = {column.name for column in place.columns}
    for index in place.indexes:
        if index.unique and set(index.columns) <= names and not set(key) <= set(index.columns):
            yield index.columns
