"""`sync`: makes the target's tables what a new snapshot of the source holds, and says what that takes.

Imports levelling, keys, look, scopes, liveness, pg, plan and the words. Equal rows are not transferred:
differences are found by hashes (`pg.digest`), or for rows that are never changed by what the last run has seen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from mishika_migrate import errors, events, findings, matrix, model
from mishika_migrate.operations import look, scopes
from mishika_migrate.operations.syncing import levelling, liveness
from mishika_migrate.operations.verifying import keys
from mishika_migrate.pg import connect, digest, interrupt, ledger, merge, sides, snapshot
from mishika_migrate.plan import history, loading, selection
from mishika_migrate.preflight import obstacles, occupancy, privileges, views


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`delete_extra` removes rows of history that only the target has; those of core tables always go.

    `overwrite` goes on although the target looks live. `lock_timeout` is in seconds. `held` says that the caller
    has the target's lock already; `settings` are those of the sessions that write there. `former` is a pass over
    the same tables: this one takes its place in the ledger.
    """

    jobs: int = 4
    delete_extra: bool = False
    overwrite: bool = False
    lock_timeout: float = 10.0
    most: int = 100
    held: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    former: str = ""


def prepare(
    rules: matrix.Matrix,
    source: model.Endpoint,
    target: model.Endpoint,
    wanted: selection.Wanted | None,
    *,
    span: history.Span | None = None,
    options: Options,
) -> tuple[levelling.Scene, tuple[str, ...]]:
    """Reads both sides, and notes for the operator; writes nothing.

    Without `wanted` the tables are those of the ledger's runs. Raises `errors.Refused` with every finding that
    stands in the way, and with the evidence that the target is in use already.
    """
    said = "as asked for"
    if wanted is None:
        wanted, span, said = _last(rules, target, span)
    wanted = dataclasses.replace(wanted, use="either")
    return _prepared(rules, source, target, wanted, span, said, options)


def prepare_again(
    scene: levelling.Scene, source: model.Endpoint, target: model.Endpoint, *, options: Options
) -> tuple[levelling.Scene, tuple[str, ...]]:
    """The same for one more pass over the same tables, whose own passes the ledger has by now."""
    return _prepared(scene.rules, source, target, scene.wanted, scene.span, scene.said, options)


def _prepared(
    rules: matrix.Matrix,
    source: model.Endpoint,
    target: model.Endpoint,
    wanted: selection.Wanted,
    span: history.Span | None,
    said: str,
    options: Options,
) -> tuple[levelling.Scene, tuple[str, ...]]:
    found = look.both(rules, source, target, wanted, manner=loading.Manner(batch=_WHOLE, defer="never", span=span))
    ours, theirs = found.catalogs
    scene = dataclasses.replace(_scene(rules, ours, theirs, found.plan, said), wanted=wanted, span=span)
    # With such settings our own fence lets us through, and a switch has stopped what follows.
    passing = {"fenced", "target-follows"} if options.settings else set()
    noticed = (
        *(each for each in found.plan.findings if each.code not in _EXPECTED | passing),
        *(each for step in (*scene.core, *scene.history) for each in _privileges(step, theirs)),
        *(each for step in (*scene.core, *scene.history) for each in _firing(step, theirs)),
        *privileges.temporary(theirs),
    )
    if any(each.severity == "refuse" for each in noticed):
        raise errors.Refused(
            "the two servers cannot be made the same as they are; nothing was written",
            hint="Mend what is listed, then run the same command again.",
            findings=noticed,
        )
    if found.unfinished is not None:
        raise errors.Refused(
            f"run {found.unfinished.run} on {target.label} is unfinished",
            hint="Continue it: `mishika-migrate copy --resume`, or undo it: `mishika-migrate reset`.",
        )
    if occupancy.swapped(rules, ours, theirs):
        raise errors.Refused(
            f"the source {source.label} is empty and the target {target.label} is in use: they look swapped",
            hint="Give the server in use as --source and the new one as --target.",
        )
    warned = (*(each.message for each in noticed if each.severity == "warn"), *_views(ours, theirs))
    if options.held:
        return scene, warned
    tables = [step.target.name for step in (*scene.core, *scene.history)]
    told = liveness.guard(rules, source, target, tables, overwrite=options.overwrite, read=(ours, theirs))
    return scene, (*warned, *told)


def _refuse_live(
    scene: levelling.Scene, source: model.Endpoint, target: model.Endpoint, options: Options
) -> tuple[str, ...]:
    if options.held or options.overwrite:
        return ()
    tables = [step.target.name for step in (*scene.core, *scene.history)]
    return liveness.guard(scene.rules, source, target, tables, overwrite=False, read=(scene.source, scene.target))


_NAME = "mishika-migrate/sync"
_WHOLE = 10**15  # no table is cut

# Rows on the target are what sync is for.
_EXPECTED = frozenset(
    {
        "fenced",
        "target-has-rows",
        "unfinished-run",
        "left-behind",
        "dangling-reference",
        "view-missing",
    }
)


def _privileges(step: model.CopyTable, target: model.Catalog) -> Iterator[model.Finding]:
    """What a copy does not need: to read, change and remove rows of the target."""
    table = target.table(step.target.name)
    lacking = [each for each in ("SELECT", "UPDATE", "DELETE") if table and each not in table.privileges]
    if table and lacking:
        what = f"{', '.join(lacking)} ON {findings.qualified(table.name, target)}"
        yield findings.refuse(
            "privilege",
            table.name,
            f"{target.user} lacks {', '.join(lacking)} on {table.name} of the target {target.endpoint.label}",
            findings.grant(what, target),
        )


def _firing(step: model.CopyTable, target: model.Catalog) -> Iterator[model.Finding]:
    place = target.table(step.target.name)
    yield from obstacles.levelling(place) if place else ()


def _views(source: model.Catalog, target: model.Catalog) -> Iterator[str]:
    """A copy has made them; without one they are missing, and `verify` says so."""
    if names := sorted(view.name for view in views.missing(source, target)[0]):
        yield f"the target lacks views of the source, which sync does not create, but copy does: {', '.join(names)}"


def _last(
    rules: matrix.Matrix, target: model.Endpoint, span: history.Span | None
) -> tuple[selection.Wanted, history.Span | None, str]:
    """What the runs have copied, and what has come into use since; all that keeps keys working where there was none."""
    last = scopes.copied(target)
    if last is None:
        return selection.Wanted(), span, "what is required or in use: the target has no run in its ledger"
    within = next(iter(last.within.values()), None)
    # The history of migrations went with the schema, and is compared by every plan.
    tables = tuple(table for table in last.tables if table != rules.migrations)
    return selection.Wanted(only=tables, also=last.idle), history.span(within) if within else span, last.said


def _scene(
    rules: matrix.Matrix, source: model.Catalog, target: model.Catalog, todo: model.Plan, said: str
) -> levelling.Scene:
    core: dict[model.TableName, model.CopyTable] = {}
    others: dict[model.TableName, model.CopyTable] = {}
    for stage in todo.stages:
        for step in stage.steps:
            if isinstance(step, model.CopyTable):
                place = core if stage.name == "core" else others
                place.setdefault(step.target, _whole(step))
    # A table that references another one, or is referenced, is bound to its rows: they change together.
    names = {each.name for each in (*core, *others)}
    referenced = {other for name in names for other in _references(target, name)}
    tied = [each for each in others if each.name in referenced or _references(target, each.name) & names]
    core |= {name: others.pop(name) for name in tied}
    return levelling.Scene(
        rules=rules,
        source=source,
        target=target,
        todo=todo,
        said=said,
        core=tuple(core[name] for name in _parents_first(target, tuple(core))),
        history=tuple(others.values()),
        sequences=tuple(step for step in todo.steps if isinstance(step, model.SetSequence)),
    )


def _parents_first(target: model.Catalog, tables: Sequence[model.TableName]) -> list[model.TableName]:
    """As they are, but for tables that are referenced by one before them; circles stay as they are."""
    placed: dict[model.TableName, None] = {}
    open_: set[model.TableName] = set()

    def put(name: model.TableName) -> None:
        if name in placed or name in open_:
            return
        open_.add(name)
        for other in tables:
            if other.name in _references(target, name.name):
                put(other)
        placed[name] = None

    for name in tables:
        put(name)
    return list(placed)


def _whole(step: model.CopyTable) -> model.CopyTable:
    if step.root is None:
        return dataclasses.replace(step, pages=None, slice=None)
    return dataclasses.replace(step, source=step.root, root=None, partitioned=True, pages=None, slice=None)


def _references(catalog: model.Catalog, name: str) -> set[str]:
    table = catalog.table(name)
    return {key.references for key in table.foreign_keys} - {name} if table else set()


# -- what would be done ---------------------------------------------------------------------------


def foresee(
    scene: levelling.Scene, source: model.Endpoint, target: model.Endpoint, *, options: Options, emit: levelling.Emit
) -> model.Sync:
    """What `carry_out` would do now, and what that means for keys; writes nothing."""
    began = time.monotonic()
    with sides.Sides(source, target, name=_NAME) as seen:
        method = digest.method(seen.first, "fast")

        def one(step: model.CopyTable) -> model.Synced:
            with seen.pair() as both:
                found = levelling.difference(digest.Look(what=scene.comparison(step), method=method, fine=True), both)
            change = levelling.foreseen(step, found, delete=step in scene.core or options.delete_extra)
            emit(events.TableSynced(change=change, foreseen=True))
            return change

        with ThreadPoolExecutor(options.jobs, thread_name_prefix="sync") as pool, interrupt.given_up(_NAME):
            changes = sides.results([pool.submit(one, step) for step in (*scene.core, *scene.history)])
        judged = _keys(scene, seen.first, method, options)
        _warn(scene, seen.first, changes, emit)
    return model.Sync(
        source=source.label,
        target=target.label,
        said=scene.said,
        changes=tuple(changes),
        keys=judged,
        seconds=time.monotonic() - began,
    )


def _warn(scene: levelling.Scene, both: sides.Both, changes: Sequence[model.Synced], emit: levelling.Emit) -> None:
    """What keeps `carry_out` from doing it, as far as that is known without writing."""
    going = {change.table for change in changes if change.deleted}
    deleting = [step.target for step in scene.core if step.target.name in going]
    for message, hint in both.one("target", lambda session, _: list(levelling.outsiders(scene, session, deleting)), ""):
        emit(events.Noticed(message=f"this will be refused: {message}. {hint}"))


def _keys(scene: levelling.Scene, both: sides.Both, method: model.Method, options: Options) -> model.Keys | None:
    ring = scene.rules.keys
    if ring is None or all(step.target.name != ring.table for step in scene.core):
        return None
    asked = keys.question(scene.rules, scene.source, scene.target, method=method, share=1.0)
    return keys.inspect(asked, both, fenced=False, most=options.most)[0] if asked else None


# -- doing it -------------------------------------------------------------------------------------


def carry_out(
    scene: levelling.Scene, source: model.Endpoint, target: model.Endpoint, *, options: Options, emit: levelling.Emit
) -> model.Sync:
    """Applies the differences: core tables in one transaction, then each table of history in its own.

    The core tables are locked against other writers meanwhile, and compared once more before the
    commit: they are then what the snapshot holds, or nothing has changed.
    """
    began = time.monotonic()
    run = f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    waits = {"lock_timeout": f"{int(options.lock_timeout * 1000)}ms", **options.settings}
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(connect.session(target, name=f"mishika-migrate/{run}/watch", settings=waits))
        if not options.held:
            ledger.lock(watch, target)
        ledger.create(watch)
        holder = snapshot.Holder(source, run=run, steps=(*scene.core, *scene.history), settings=waits)
        stack.callback(holder.release)
        name = f"mishika-migrate/{run}/step/sync"
        seen = stack.enter_context(sides.Sides(source, target, name=name, snapshots={"source": holder.name}))
        work = levelling.Pass(
            scene,
            seen,
            source,
            target,
            run=run,
            name=name,
            waits=waits,
            holder=holder,
            emit=emit,
            delete=options.delete_extra,
        )
        # A proxy may have come while somebody was asked; from here on it has to wait for the lock.
        changes = work.core(check=lambda: _refuse_live(scene, source, target, options))
        changes += work.history(watch, jobs=options.jobs)
        if options.former:
            merge.forget(watch, options.former)
    return model.Sync(
        source=source.label,
        target=target.label,
        said=scene.said,
        run=run,
        changes=tuple(changes),
        seconds=time.monotonic() - began,
    )
