"""Signs that a target is in use already, so that writing to it would go backwards.

Imports pg, plan, findings, matrix and the words. No sign is a proof, so whoever knows better may go on
(`--overwrite-live-target`). Nothing is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from mishika_migrate import errors, findings, matrix, model, plan, words
from mishika_migrate.pg import activity, catalog, connect, ledger, liveness, sides, survey

FLAG = "--overwrite-live-target"

_NAME = "mishika-migrate/liveness"
_MOST = 1000
_CHEAP_BYTES = 64 * 1024 * 1024
_BUCKETS_AT_ONCE = 64
_NUMBERS = re.compile(r"smallint|integer|bigint|real|double precision|numeric(\(.*\))?")
_TIMES = re.compile(r"timestamp.*|date")
# What a server fills in when a row is made, in any of its spellings.
_NOW = re.compile(r"\b(now|current_timestamp|localtimestamp|(clock|statement|transaction)_timestamp)\b", re.I)


Catalogs = tuple[model.Catalog, model.Catalog]
"""What source and target have."""


def guard(
    rules: matrix.Matrix,
    source: model.Endpoint,
    target: model.Endpoint,
    tables: Sequence[str],
    *,
    overwrite: bool,
    read: Catalogs | None = None,
) -> tuple[str, ...]:
    """Notes for the operator; `errors.Refused` lists the evidence, unless it is to be overwritten.

    `tables` are those whose rows would be deleted or overwritten; `read` what both sides have, where
    that is known. To be called before anything is written, and before one's own run is in the ledger.
    """
    signs, notes = _look(rules, source, target, tables, read)
    if signs and not overwrite:
        raise refusal(signs, target)
    return (*(f"the target looks as if it were in use: {sign.message}" for sign in signs), *notes)


def evidence(
    rules: matrix.Matrix,
    source: model.Endpoint,
    target: model.Endpoint,
    *,
    tables: Sequence[str],
    read: Catalogs | None = None,
) -> tuple[model.Sign, ...]:
    """The signs alone."""
    return _look(rules, source, target, tables, read)[0]


def refusal(signs: Sequence[model.Sign], target: model.Endpoint) -> errors.Refused:
    """The error that lists them, one finding a sign."""
    told = [findings.refuse(sign.code, target.label, sign.message, "") for sign in signs]
    more = ""
    if any(sign.code == "target-has-newer-history" for sign in signs):
        more = " With --delete-extra those rows of history go, too, and are no sign any more."
    return errors.Refused(
        f"the target {target.label} looks as if it were in use already; nothing was written",
        hint=f"Make sure that no proxy uses it. If what has happened there may be lost, add {FLAG}.{more}",
        findings=told,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scene:
    """Both sides, and what the target's ledger says of runs from this source, by table."""

    rules: matrix.Matrix
    both: sides.Both
    catalogs: Mapping[model.Role, model.Catalog]
    landings: Mapping[str, liveness.Landing]
    tables: frozenset[str]

    def columns(self, table: str, role: model.Role) -> Mapping[str, model.Column]:
        found = self.catalogs[role].table(table)
        return {column.name: column for column in found.columns} if found else {}

    def shared(self, table: str, kinds: re.Pattern[str]) -> tuple[str, ...]:
        """Columns of such types that the table has on both sides."""
        ours, theirs = (self.columns(table, role) for role in sides.ROLES)
        return tuple(
            name
            for name, column in ours.items()
            if name in theirs and kinds.fullmatch(column.type) and kinds.fullmatch(theirs[name].type)
        )

    def rows(
        self, table: str, key: Sequence[str], *, times: Sequence[str], values: Sequence[str] = ()
    ) -> liveness.Rows | None:
        """None where a side lacks a column of the key."""
        there = {role: self.columns(table, role) for role in sides.ROLES}
        if not key or any(name not in columns for columns in there.values() for name in key):
            return None
        entry = self.rules.entry(table)
        return liveness.Rows(
            table={role: model.TableName(schema=self.both.end(role).schema, name=table) for role in sides.ROLES},
            key=tuple(key),
            types={role: tuple(columns[name].type for name in key) for role, columns in there.items()},
            names=tuple(
                name for name in (entry.names if entry else ()) if all(name in each for each in there.values())
            ),
            times=tuple(times),
            values=tuple(values),
        )


def _look(
    rules: matrix.Matrix,
    source: model.Endpoint,
    target: model.Endpoint,
    tables: Sequence[str],
    read: Catalogs | None,
) -> tuple[tuple[model.Sign, ...], tuple[str, ...]]:
    """Signs, and notes about what could not be seen."""
    ends: dict[model.Role, model.Endpoint] = {"source": source, "target": target}
    with ExitStack() as stack:
        sessions = {
            role: stack.enter_context(
                # Types of the schema's own are spelled as in its search path.
                connect.session(
                    end, name=_NAME, settings={**sides.PATIENCE, "search_path": findings.quoted(end.schema)}
                )
            )
            for role, end in ends.items()
        }
        both = sides.Both(sessions, ends, name=_NAME)
        scene = _Scene(
            rules=rules,
            both=both,
            catalogs=dict(zip(sides.ROLES, read or _read(both), strict=True)),
            landings=both.one("target", lambda one, _: _landings(one, source), "the ledger"),
            tables=frozenset(tables),
        )
        signs, notes = list(_cutover(scene)), []
        for found in (_visitors(scene), _keys(scene), _spend(scene), _history(scene)):
            for each in found:
                if isinstance(each, model.Sign):
                    signs.append(each)
                else:
                    notes.append(each)
    return tuple(signs), tuple(notes)


def _read(both: sides.Both) -> Catalogs:
    return both.ask(lambda session, role: catalog.read(session, both.end(role)), "")


def _landings(session: connect.Session, source: model.Endpoint) -> Mapping[str, liveness.Landing]:
    """By table, the last landing after which the target had no rows of its own any more.

    Rows of a proxy that was at work there stay when others are merged into theirs, however late that is.
    """
    if ledger.missing(session) != ():
        return {}
    texts = dict(ledger.plans(session))
    plans: dict[str, model.Plan | None] = {}
    found: dict[str, liveness.Landing] = {}
    for landing in liveness.landings(session, source.label):
        if landing.run not in plans:
            plans[landing.run] = _plan(texts.get(landing.run, ""))
        todo = plans[landing.run]
        if landing.table not in found and todo is not None and _alone(todo, landing):
            found[landing.table] = landing
    return found


def _plan(text: str) -> model.Plan | None:
    """None for that of another version of this tool."""
    try:
        return plan.loads(text)
    except errors.Error:
        return None


def _alone(todo: model.Plan, landing: liveness.Landing) -> bool:
    if " sync" in landing.tool:
        stages = {chosen.table: chosen.stage for chosen in todo.chosen}
        return stages.get(landing.table) == "core" or "--delete-extra" in landing.tool
    return all(table.name != landing.table for table in todo.merged)


def _cutover(scene: _Scene) -> Iterator[model.Sign]:
    if at := scene.both.one("target", lambda session, _: liveness.cutover(session), "the ledger"):
        yield model.Sign(code="target-cut-over", message=f"a cutover to it was completed ({_moment(at)})")


# -- sessions -------------------------------------------------------------------------------------

# Roles by which providers of Postgres look after it, and whose passwords no customer has: RDS, Cloud SQL, AlloyDB,
# Azure, Neon. A server whose superuser one is may have roles of any name.
_PROVIDERS = frozenset({"rdsadmin", "rdsrepladmin", "cloudsqladmin", "alloydbadmin", "azuresu", "cloud_admin"})

# Supabase's own. Whoever runs it himself has their passwords, so they must also come from the server itself and
# say who they are: the proxy's client gives no application_name.
_TENANTS = frozenset(
    {"supabase_admin", "supabase_auth_admin", "supabase_storage_admin", "supabase_replication_admin", "authenticator"}
)
_SAME_HOST = frozenset({"local", "127.0.0.1", "::1"})


def _visitors(scene: _Scene) -> Iterator[model.Sign | str]:
    """Sessions that may be a proxy's are a sign; others, and those of which nobody can tell, are notes."""
    found = scene.both.one("target", lambda session, _: activity.visitors(session), "its sessions")
    if not found:
        return
    schema = scene.both.end("target").schema
    roles = scene.both.one("target", lambda session, _: liveness.roles(session, schema), "its roles")
    kinds = {each.pid: _kind(each, roles) for each in found}
    if suspects := [each for each in found if kinds[each.pid] == "suspect"]:
        who = findings.few([_shown(each) for each in suspects])
        verb = "is" if len(suspects) == 1 else "are"
        message = f"{words.count(len(suspects), 'other session')} {verb} connected to it: {who}"
        yield model.Sign(code="target-has-sessions", message=message)
    if unknown := [each for each in found if kinds[each.pid] == "unknown"]:
        user = scene.catalogs["target"].user
        who = findings.few([_shown(each) for each in unknown])
        yield (
            f"{words.count(len(unknown), 'session')} on the target may be a proxy's, and {user} may not see more"
            f" of it: {who}; `GRANT pg_monitor TO {findings.quoted(user)}` on the target shows it"
        )
    if others := [each for each in found if kinds[each.pid] == "other"]:
        who = findings.few([_shown(each) for each in others])
        verb = "is" if len(others) == 1 else "are"
        yield f"{words.count(len(others), 'other session')} on the target {verb} not taken for a proxy's: {who}"


def _kind(visitor: model.Visitor, roles: liveness.Roles) -> Literal["suspect", "unknown", "other"]:
    """A proxy writes: whoever may not write a single table is none. Of superusers one has to see more.

    When in doubt it is one: a session that goes on writing to a target that is set back is worse than a question.
    """
    if visitor.user not in roles.writers:
        return "other"
    if visitor.writing:
        return "suspect"
    if not roles.own_superuser and _of_a_provider(visitor):
        return "other"
    return "unknown" if visitor.hidden and visitor.user in roles.superusers else "suspect"


def _of_a_provider(visitor: model.Visitor) -> bool:
    tenant = visitor.user in _TENANTS and visitor.client in _SAME_HOST and bool(visitor.application)
    return visitor.user in _PROVIDERS or tenant


def _shown(visitor: model.Visitor) -> str:
    name = words.masked(visitor.application) or "without a name"
    if visitor.hidden:
        return f"{name} as {visitor.user}"
    return f"{name} as {visitor.user} from {visitor.client} for {_duration(visitor.connected or 0.0)}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


# -- rows that came later -------------------------------------------------------------------------


def _keys(scene: _Scene) -> Iterator[model.Sign | str]:
    ring = scene.rules.keys
    if ring is None or not _on_both(scene, ring.table):
        return
    times = _born(scene, ring.table)
    rows = scene.rows(ring.table, [ring.key], times=times)
    if rows is None or not times:
        yield f"when a row of {ring.table} was created is not known, so keys created on the target are not looked for"
        return
    found, since = _later(scene, ring.table, rows)
    if found:
        who = findings.few([survey.person(each.name) for each in found])
        verb = "was" if len(found) == 1 else "were"
        message = f"{_many(found, 'key')} that the source does not have {verb} created {since}: {who}"
        yield model.Sign(code="target-has-newer-keys", message=message)


def _history(scene: _Scene) -> Iterator[model.Sign | str]:
    for entry in scene.rules.entries:
        table, column = entry.table, entry.time_column
        if not entry.insert_only or column is None or not _on_both(scene, table):
            continue
        place = scene.catalogs["target"].table(table)
        rows = scene.rows(table, place.primary_key if place else (), times=[column])
        if rows is None or column not in scene.shared(table, _TIMES):
            continue
        if not all(_cheap(scene.catalogs[role].table(table), column) for role in sides.ROLES):
            yield f"newer rows of {table} on the target were not looked for: no index begins with its {column}"
            continue
        found, since = _later(scene, table, rows, ageing=True)
        if found:
            verb = "is" if len(found) == 1 else "are"
            message = (
                f"{_many(found, 'row')} of {table} that the source does not have {verb} dated {since};"
                f" the latest is of {_moment(found[0].at)}"
            )
            yield model.Sign(code="target-has-newer-history", message=message)


def _later(
    scene: _Scene, table: str, rows: liveness.Rows, *, ageing: bool = False
) -> tuple[tuple[liveness.Newer, ...], str]:
    """Rows of the target that came to be after the last that the source can have brought, and since when.

    Where rows are `ageing`, what is older than all of the source's was removed there for its age.
    """
    what = f"table {table}"
    if landing := scene.landings.get(table):
        after, since = landing.at, f"after run {landing.run} had copied the table ({_moment(landing.at)})"
    elif after := scene.both.one("source", lambda session, role: liveness.newest(session, rows, role), what):
        since = f"after the newest that the source has ({_moment(after)})"
    else:
        after, since = "-infinity", "after the newest that the source has (it has none)"
    oldest = "-infinity"
    if ageing and landing:
        # Without any row on the source all of them were removed there.
        oldest = scene.both.one("source", lambda one, role: liveness.oldest(one, rows, role), what) or "infinity"
    found = scene.both.one(
        "target", lambda session, _: liveness.newer(session, rows, after, since=oldest, most=_MOST), what
    )
    keys = [each.key for each in found]
    # A clock that is ahead, or a run that is resumed, brings rows of a later time too.
    absent = scene.both.one("source", lambda session, _: liveness.absent(session, rows, keys), what) if keys else ()
    return tuple(each for number, each in enumerate(found) if number in absent), since


def _born(scene: _Scene, table: str) -> tuple[str, ...]:
    """The matrix's time column; else what the server itself fills in when a row is made, the earliest of them."""
    there = scene.shared(table, _TIMES)
    entry = scene.rules.entry(table)
    if entry is not None and entry.time_column in there:
        return (entry.time_column,)
    columns = scene.columns(table, "target")
    return tuple(name for name in there if _NOW.search(columns[name].default or ""))


def _on_both(scene: _Scene, table: str) -> bool:
    return table in scene.tables and all(scene.columns(table, role) for role in sides.ROLES)


def _cheap(table: model.Table | None, column: str) -> bool:
    assert table is not None, "both sides have it"
    whole = (index for index in table.indexes if " WHERE " not in index.definition)
    return table.bytes <= _CHEAP_BYTES or any(index.columns[:1] == (column,) for index in whole)


# -- counters that are ahead ----------------------------------------------------------------------


def _spend(scene: _Scene) -> Iterator[model.Sign | str]:
    """Rows that have counted more on the target than on the source, and were not written later on the source.

    There a counter is set back when its budget begins anew, and that row then has a later time.
    """
    for table, key, values in _moving(scene):
        times = scene.shared(table, _TIMES)
        rows = scene.rows(table, key, times=times, values=values)
        if rows is None or not times:
            continue
        if ahead := _ahead(scene.both, rows):
            verb = "is" if len(ahead) == 1 else "are"
            message = (
                f"{words.count(len(ahead), 'row')} of {table} {verb} ahead of the source in {' or '.join(values)}:"
                f" {findings.few([survey.person(name) for name in ahead])}"
            )
            yield model.Sign(code="target-spend-ahead", message=message)


def _moving(scene: _Scene) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Table, key and counting columns, by what the matrix says of decisions."""
    ring = scene.rules.keys
    if ring is None:
        return []
    keys = {model.KEY: (ring.key,)} | {join.name: tuple(column for column, _ in join.by) for join in ring.joins}
    found: dict[tuple[str, tuple[str, ...]], dict[str, None]] = {}
    for end in (column for aspect in ring.aspects if aspect.moving for column in aspect.columns):
        name, _, column = end.partition(".")
        table = ring.table_of(name)
        if _on_both(scene, table) and column in scene.shared(table, _NUMBERS):
            found.setdefault((table, keys[name]), {})[column] = None
    return [(table, key, tuple(columns)) for (table, key), columns in found.items()]


def _ahead(both: sides.Both, rows: liveness.Rows) -> list[bytes]:
    """Their names. Values are fetched of those buckets alone that differ, some at a time."""
    what = f"table {rows.table['target'].name}"
    ours, theirs = (both.one(role, lambda session, at: liveness.sums(session, rows, at), what) for role in sides.ROLES)
    buckets = [bucket for bucket in theirs if ours.get(bucket) != theirs[bucket]]
    found: list[bytes] = []
    for start in range(0, len(buckets), _BUCKETS_AT_ONCE):
        part = buckets[start : start + _BUCKETS_AT_ONCE]
        here, there = (
            both.one(role, lambda session, at: list(liveness.counters(session, rows, at, part)), what)  # noqa: B023
            for role in sides.ROLES
        )
        known = {each.key: each for each in here}
        found += [each.name for each in there if (one := known.get(each.key)) and _is_ahead(each, one)]
    return found


def _is_ahead(theirs: liveness.Counters, ours: liveness.Counters) -> bool:
    more = any((there or 0.0) > (here or 0.0) for there, here in zip(theirs.values, ours.values, strict=True))
    return more and not any(
        (here or 0.0) > (there or 0.0) for here, there in zip(ours.times, theirs.times, strict=True)
    )


# -- words ----------------------------------------------------------------------------------------


def _many(found: Sequence[object], noun: str) -> str:
    return f"{'at least ' if len(found) == _MOST else ''}{words.count(len(found), noun)}"


def _moment(text: str) -> str:
    """A server's text of a time, to the second."""
    return f"{re.split('[.+]', text)[0].replace('T', ' ')} UTC"
