"""`verify`: proves that both sides hold the same, or says which rows, columns and keys do not.

Imports contents, keys, scopes, pg, comparing, selection and the words. Each side is read in one snapshot for
everything; nothing is written on either.
"""

from __future__ import annotations

import dataclasses
import datetime
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from mishika_migrate import errors, events, matrix, model, words
from mishika_migrate.operations import scopes
from mishika_migrate.operations.verifying import contents, keys
from mishika_migrate.pg import catalog, connect, digest, interrupt, sides, survey
from mishika_migrate.plan import history, selection
from mishika_migrate.proof import comparing

NAME = "mishika-migrate/verify"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`share` of the rows is looked at; at most `most` differences are listed a table, and as many keys.

    `fenced` says that nobody writes to the source, which makes a difference in spend an error. What
    differs is read again up to `rechecks` times, `recheck_wait` seconds apart. `allowed` are codes of
    checks that may stay unchecked. `samples` are pairs of a name and a token's hash.
    """

    level: model.Level = "content"
    method: model.Method = "fast"
    share: float = 1.0
    jobs: int = 4
    most: int = 100
    fenced: bool = False
    rechecks: int = 0
    recheck_wait: float = 5.0
    snapshot: str = ""
    allowed: tuple[str, ...] = ()
    samples: tuple[tuple[str, str], ...] = field(default=(), repr=False)


Emit = Callable[[events.Event], None]
Checks = Callable[[model.Catalog, model.Catalog, scopes.Scope, sides.Both], Sequence[model.Check]]


def prove(
    rules: matrix.Matrix,
    source: model.Endpoint,
    target: model.Endpoint,
    wanted: selection.Wanted | None,
    *,
    span: history.Span | None = None,
    options: Options,
    checks: Checks,
    emit: Emit,
) -> model.Proof:
    """Everything that was found. Without `wanted` the scope is that of the ledger's runs.

    `checks` are made in the same snapshots. Raises `errors.ServerError` when a side cannot be read: what cannot be
    compared is never equal.
    """
    try:
        return _prove(
            rules,
            source,
            target,
            lambda ours, theirs: scopes.choose(rules, ours, theirs, target, wanted, span),
            options,
            checks,
            emit,
            name=NAME,
        )
    except errors.SnapshotLost as error:
        error.hint = "The session that exported it must stay open; give the name that pg_export_snapshot() returned."
        raise
    except errors.Denied as error:
        if error.hint == connect.DENIED:
            error.hint = "Give the role what docs/ci.md lists: SELECT on all tables; BYPASSRLS under row security."
        raise


def of_copy(
    rules: matrix.Matrix,
    todo: model.Plan,
    source: model.Endpoint,
    target: model.Endpoint,
    *,
    name: str,
    snapshot: str,
    jobs: int,
    emit: Emit,
) -> model.Proof:
    """Whether the target holds what the snapshot does of everything that the plan has copied.

    `name` is that of the sessions. Row content and keys only: what else belongs to a proof is made
    after the rows. Of merged tables every row of the source must be there: with its values where it
    was to update, by its primary key where it was to be skipped.
    """
    options = Options(jobs=jobs, snapshot=snapshot)
    within = {table.name: interval for table, interval in todo.intervals.items()}
    existing = {table.name: how for table, how in todo.merged.items()}
    tables = tuple(each.table for each in todo.chosen)
    scope = scopes.Scope(tables=tables, said="what was copied", within=within, existing=existing)
    return _prove(rules, source, target, lambda ours, theirs: scope, options, lambda *_: (), emit, name=name)


def of_switch(
    rules: matrix.Matrix,
    read: tuple[model.Catalog, model.Catalog],
    scope: scopes.Scope,
    source: model.Endpoint,
    target: model.Endpoint,
    *,
    name: str,
    jobs: int,
    fenced: bool,
    rechecks: int = 0,
    emit: Emit,
) -> model.Proof:
    """Rows and keys of both sides as they are now; `read` are their catalogs, which nobody has time to read again."""
    options = Options(jobs=jobs, fenced=fenced, rechecks=rechecks, recheck_wait=1.0)
    return _prove(rules, source, target, lambda *_: scope, options, lambda *_: (), emit, name=name, read=read)


def _prove(
    rules: matrix.Matrix,
    source: model.Endpoint,
    target: model.Endpoint,
    choose: Callable[[model.Catalog, model.Catalog], scopes.Scope],
    options: Options,
    checks: Checks,
    emit: Emit,
    *,
    name: str,
    read: tuple[model.Catalog, model.Catalog] | None = None,
) -> model.Proof:
    began, at = time.monotonic(), f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
    ours, theirs = read or catalogs(rules, source, target, name)
    scope = choose(ours, theirs)
    snapshots: dict[model.Role, str] = {"source": options.snapshot} if options.snapshot else {}
    with sides.Sides(source, target, name=name, snapshots=snapshots) as seen:
        _refuse_one(seen.first, source, target)
        found = compare(rules, ours, theirs, scope, seen, options=options, emit=emit)
        made = [
            comparing.absent(ours, theirs, scope.tables),
            *_undecided(rules, ours, theirs, scope, options),
            *checks(ours, theirs, scope, seen.first),
        ]
        state = seen.states["source"]
    if options.rechecks:
        found = _recheck(found, source, target, options, emit)
    return model.Proof(
        source=source.label,
        target=target.label,
        at=at,
        scope=scope.said,
        level=options.level,
        method=found.method,
        blind=digest.blind(table.look for table in found.contents),
        sample=options.share if options.share < 1 else None,
        snapshot=state,
        contents=tuple(each.content for each in found.contents),
        keys=found.judged,
        checks=(*made, *_ciphertext(rules, found)),
        allowed=options.allowed,
        seconds=time.monotonic() - began,
    )


def _refuse_one(both: sides.Both, source: model.Endpoint, target: model.Endpoint) -> None:
    """A database is always equal to itself."""
    with connect.translated(source), survey.marked(both.sessions["source"]) as mark:
        if both.one("target", lambda session, _: survey.has_mark(session, mark), ""):
            raise errors.Refused(
                f"source {source.label} and target {target.label} are the same database",
                hint="Give --target the URL of the new server.",
            )


def catalogs(
    rules: matrix.Matrix, source: model.Endpoint, target: model.Endpoint, name: str
) -> tuple[model.Catalog, model.Catalog]:
    with ThreadPoolExecutor(2) as pool, interrupt.given_up(name) as stopping:
        reading = [pool.submit(_catalog, rules, end, name, stopping) for end in (source, target)]
        ours, theirs = (each.result() for each in reading)
    for found in (ours, theirs):
        end = found.endpoint
        if found.version < model.OLDEST_SERVER:
            raise errors.Refused(
                f"the {end.role} {end.label} is too old to be read", hint="PostgreSQL 12 is the oldest that works."
            )
        if not found.schema_exists:
            raise errors.Refused(
                f"the {end.role} {end.label} has no schema {end.schema}", hint="Name it in the URL: ?schema=NAME."
            )
    return ours, theirs


def _catalog(rules: matrix.Matrix, endpoint: model.Endpoint, name: str, stopping: Callable[[], bool]) -> model.Catalog:
    with connect.session(endpoint, name=name, settings=sides.PATIENCE, stopping=stopping) as session:
        return catalog.read(session, endpoint, migrations=rules.migrations)


# -- comparing ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What comparing gave: in the order of the scope."""

    method: model.Method
    contents: tuple[contents.Table, ...]
    asked: keys.Question | None = None
    judged: model.Keys | None = None
    tally: keys.Tally | None = None


def compare(
    rules: matrix.Matrix,
    source: model.Catalog,
    target: model.Catalog,
    scope: scopes.Scope,
    seen: sides.Sides,
    *,
    options: Options,
    emit: Emit,
) -> Found:
    """Content of all tables of the scope, `jobs` at once, and the verdicts of all keys."""
    method = digest.method(seen.first, options.method)
    looks = [
        _look(dataclasses.replace(each, existing=scope.existing.get(each.table, "refuse")), method, options)
        for each in comparing.of_selection(rules, source, target, scope.tables, within=scope.within)
    ]
    asked = None
    if _judged(rules, scope, options):
        asked = keys.question(rules, source, target, method=method, share=options.share)
    elif rules.keys and rules.keys.table in scope.tables and (names := _skipped(rules.keys, scope)):
        emit(events.Noticed(message=f"keys get no verdict: rows of {', '.join(names)} stayed as they were"))
    if options.samples and asked is None:
        raise errors.ConfigurationError(
            "sample keys get a verdict only where all keys do",
            hint="Leave out --level, and compare the tables of the keys too.",
        )
    telling = threading.Lock()

    def one(look: digest.Look) -> contents.Table:
        with seen.pair() as both:
            table = contents.compare(look, both, most=options.most)
        with telling:
            emit(events.TableCompared(content=table.content))
        return table

    def all_keys(question: keys.Question) -> tuple[model.Keys, keys.Tally]:
        with seen.pair() as both:
            found, tally = keys.inspect(
                question, both, fenced=options.fenced, most=options.most, samples=options.samples
            )
            return (keys.lenient(found), tally) if scope.existing else (found, tally)

    with ThreadPoolExecutor(options.jobs, thread_name_prefix="verify") as pool, interrupt.given_up(seen.name):
        judging = pool.submit(all_keys, asked) if asked else None
        comparing_all = [pool.submit(one, look) for look in looks]
        _wait([*comparing_all, *([judging] if judging else [])])
        order = {table: n for n, table in enumerate(scope.tables)}
        tables = sorted((each.result() for each in comparing_all), key=lambda table: order[table.content.table])
        result, tally = judging.result() if judging else (None, None)
    return Found(method=method, contents=tuple(tables), asked=asked, judged=result, tally=tally)


def _look(what: model.Comparison, method: model.Method, options: Options) -> digest.Look:
    """Where rows of the target stayed as they were, their values are not the source's."""
    level = "keys" if what.existing == "skip" and options.level == "content" else options.level
    return digest.Look(what=what, method=method, level=level, share=options.share)


def _judged(rules: matrix.Matrix, scope: scopes.Scope, options: Options) -> model.Keyring | None:
    """The keys, where they are among what was asked for, and what decides about them was not to stay as it was."""
    ring = rules.keys
    if options.level != "content" or ring is None or ring.table not in scope.tables:
        return None
    return None if _skipped(ring, scope) else ring


def _skipped(ring: model.Keyring, scope: scopes.Scope) -> tuple[str, ...]:
    """Tables that decide about keys, and in which the target's rows stayed as they were."""
    return tuple(table for table in ring.tables if scope.existing.get(table) == "skip")


def _undecided(
    rules: matrix.Matrix, source: model.Catalog, target: model.Catalog, scope: scopes.Scope, options: Options
) -> Iterator[model.Check]:
    ring = _judged(rules, scope, options)
    if ring is not None and (found := comparing.undecided(ring, source, target)) is not None:
        yield found


def _wait(calls: Sequence[Future[Any]]) -> None:
    """Until all are done; at the first that fails, or a signal, those that have not begun never do."""
    try:
        if any(call.exception() for call in wait(calls, return_when=FIRST_EXCEPTION).done):
            raise sides.cause(calls)
    except BaseException:
        for call in calls:
            call.cancel()
        raise


# -- a source that moves --------------------------------------------------------------------------


def _recheck(found: Found, source: model.Endpoint, target: model.Endpoint, options: Options, emit: Emit) -> Found:
    """Reads what differs once more, in newer snapshots: what settles was on its way."""
    for number in range(options.rechecks):
        if not _worth_rereading(found):
            break
        emit(events.Noticed(message=f"reading what differs again, {number + 1} of {options.rechecks}"))
        time.sleep(options.recheck_wait)
        with sides.Sides(source, target, name=NAME) as seen:
            found = _again(found, seen.first, options)
    return found


def _worth_rereading(found: Found) -> bool:
    rows = any(table.places for table in found.contents)
    return rows or bool(found.tally and found.tally.places)


def _again(found: Found, both: sides.Both, options: Options) -> Found:
    tables = tuple(contents.again(table, both, most=options.most) for table in found.contents)
    result, tally = found.judged, found.tally
    if found.asked and result and tally and 0 < tally.total == len(tally.places):
        tally = keys.again(found.asked, both, tally, fenced=options.fenced)
        result = keys.settled(result, tally)
    if found.asked and result:
        result = keys.sampled(found.asked, both, result, options.samples, fenced=options.fenced)
    return dataclasses.replace(found, contents=tables, judged=result, tally=tally)


# -- what follows from the rows -------------------------------------------------------------------


def _ciphertext(rules: matrix.Matrix, found: Found) -> Iterator[model.Check]:
    """Encrypted columns are equal when nothing of them is among what differs."""
    columns = {entry.table: entry.encrypted for entry in rules.entries if entry.encrypted}
    asked = [
        table.content for table in found.contents if table.content.level == "content" and table.content.table in columns
    ]
    if asked:
        problems = [problem for content in asked for problem in _other_ciphertext(content, columns[content.table])]
        title = "Ciphertext is the same on both sides"
        yield model.Check(code="ciphertext", title=title, looked=len(asked), problems=tuple(problems))


def _other_ciphertext(content: model.Content, columns: Sequence[str]) -> Iterator[str]:
    if content.source_only or content.target_only:
        one_side = words.count(content.source_only + content.target_only, "row")
        yield f"{content.table}: {one_side} with ciphertext on one side only"
    for each in content.differences:
        if changed := [column for column in each.columns if column in columns]:
            yield f"{content.table}: the ciphertext of row {each.row} differs in {', '.join(changed)}"
    if content.capped:
        yield f"{content.table}: {words.count(content.capped, 'difference')} not listed may be of ciphertext"
