"""What could go wrong, found before anything is written, all of it at once. Pure.

Imports collisions, creation, drift, obstacles, occupancy, privileges, views, findings, matrix and the words. Every
function looks at one subject and returns its findings; a finding's code is stable, its fix is SQL or a
command. docs/guide.md explains the severities: `refuse` stops the run, `warn` and `note` do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set

from mishika_migrate import matrix, model, words
from mishika_migrate.findings import few, major, note, qualified, quoted, refuse, warn
from mishika_migrate.preflight import collisions, creation, drift, obstacles, occupancy, privileges, views


def inspect(
    rules: matrix.Matrix,
    source: model.Catalog,
    target: model.Catalog,
    selection: model.Selection,
    survey: model.Survey,
    *,
    real_target: model.Catalog,
    create: model.CreateSchema | None = None,
    existing: Mapping[str, model.Existing],
    within: Set[str],
    followed: bool = False,
) -> tuple[model.Finding, ...]:
    """All findings. `target` is what it will be when the copy starts, `real_target` what it is now.

    `existing` says how the rows of each table meet those of the target; of those `within` only a part is copied.
    With `followed`, nothing can be merged.
    """
    findings = [*_servers(source, real_target, survey), *_schemas(source, real_target, create)]
    if create is not None:
        findings += creation.inspect(source, real_target, selection, survey, create)
    if min(source.version, target.version) < model.OLDEST_SERVER:
        return tuple(findings)  # one of the two could not be read
    findings += [
        *_selection(rules, source, real_target, selection),
        *_missing(rules, source, real_target, target, selection),
        *occupancy.inspect(rules, source, target, selection, survey, within, followed=followed),
        *_tables(source, target, selection, existing),
        *collisions.inspect(source, target, existing, survey),
        *_rows(source, survey),
        *drift.sequences(source, target, selection),
        *views.inspect(rules, source, target),
    ]
    if create is None:
        findings += drift.migrations(rules, source, real_target)
    return tuple(findings)


# -- servers --------------------------------------------------------------------------------------


def _servers(source: model.Catalog, target: model.Catalog, survey: model.Survey) -> Iterable[model.Finding]:
    if survey.same_database:
        yield refuse(
            "same-database",
            target.endpoint.label,
            f"source {source.endpoint.label} and target {target.endpoint.label} are the same database",
            "give --target the URL of the new server",
        )
    for role, catalog in (("source", source), ("target", target)):
        the = f"the {role} {catalog.endpoint.label}"
        if role in survey.pooled:
            yield refuse(
                "transaction-pooler",
                catalog.endpoint.label,
                f"{the} is behind a transaction pooler: snapshots and locks do not hold there",
                f"give --{role} the server's direct URL (not port 6543, not the -pooler host)",
            )
        if catalog.version < model.OLDEST_SERVER:
            yield refuse(
                "server-too-old",
                catalog.endpoint.label,
                f"{the} is PostgreSQL {major(catalog.version)}; 12 is the oldest that works",
                "upgrade the server, or dump and restore it to a newer one first",
            )
    if target.in_recovery:
        yield refuse(
            "read-only",
            target.endpoint.label,
            f"the target {target.endpoint.label} is a standby and accepts no writes",
            "give --target the URL of its primary",
        )
    if source.version // 1_00_00 > target.version // 1_00_00 >= model.OLDEST_SERVER // 1_00_00:
        yield note(
            "older-target",
            target.endpoint.label,
            f"the target runs PostgreSQL {major(target.version)}, the source {major(source.version)}",
        )
    yield from _encodings(source, target)
    yield from privileges.database(target)


def _encodings(source: model.Catalog, target: model.Catalog) -> Iterable[model.Finding]:
    if source.encoding == target.encoding:
        return
    if target.encoding != "UTF8":
        name = quoted(f"{target.database}_utf8")
        yield refuse(
            "encoding",
            target.endpoint.label,
            f"the target {target.endpoint.label} is encoded in {target.encoding}, the source in {source.encoding}:"
            " not every text has a place there",
            f"CREATE DATABASE {name} ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0;"
            " -- and name that one in --target",
        )
    elif source.encoding == "SQL_ASCII":
        yield warn(
            "encoding",
            source.endpoint.label,
            f"the source {source.endpoint.label} is SQL_ASCII: bytes that are not UTF-8 will stop the copy,"
            " nothing is replaced",
            f"mend such texts on the source, or CREATE DATABASE {quoted(f'{target.database}_bytes')} ENCODING"
            " 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0; -- on the target: it keeps the bytes",
        )
    else:
        yield note("encoding", source.endpoint.label, f"text of the source is converted from {source.encoding} to UTF8")


def _schemas(
    source: model.Catalog, target: model.Catalog, create: model.CreateSchema | None
) -> Iterable[model.Finding]:
    for role, catalog in (("source", source), ("target", target)):
        schema = catalog.endpoint.schema
        if not catalog.schema_exists:
            if role == "target" and create is not None:
                continue
            yield refuse(
                "schema-missing",
                schema,
                f"the {role} {catalog.endpoint.label} has no schema {schema}",
                f"CREATE SCHEMA {quoted(schema)};" if role == "target" else "name it in the URL: ?schema=NAME",
            )
        elif not catalog.may_use_schema:
            yield privileges.schema(catalog)


# -- tables ---------------------------------------------------------------------------------------


def _selection(
    rules: matrix.Matrix, source: model.Catalog, target: model.Catalog, selection: model.Selection
) -> Iterable[model.Finding]:
    if selection.only:
        yield from _named(source, selection)
        return
    required = [entry.table for entry in rules.entries if entry.need == "required"]
    absent = [table for table in required if source.table(table) is None and not source.kind(table)]
    if absent and len(absent) == len(required):
        yield _nothing(rules, source, required)
        return
    if absent:
        yield refuse(
            "not-on-source",
            ", ".join(absent),
            f"the source {source.endpoint.label} lacks {len(absent)} required tables of {rules.name} in schema"
            f" {source.endpoint.schema}: {', '.join(absent)}",
            "let the migrations of the source's application finish first",
        )
    elif required and not (
        any(_occupied(source, table) for table in required) or occupancy.swapped(rules, source, target)
    ):
        yield warn(
            "source-empty",
            source.endpoint.label,
            f"all required tables of the source {source.endpoint.label} are empty; is this the right database?",
            "give --source the URL of the server that is in use",
        )
    for left in selection.left:
        yield from _left(left, rules, source)


def _named(source: model.Catalog, selection: model.Selection) -> Iterable[model.Finding]:
    """What --only names must be there."""
    for name in selection.only:
        if source.table(name) is None and not source.kind(name):
            yield refuse(
                "not-on-source",
                name,
                f"the source {source.endpoint.label} has no table {name} in schema {source.endpoint.schema}",
                f"leave out --only {name}",
            )


def _nothing(rules: matrix.Matrix, source: model.Catalog, required: Sequence[str]) -> model.Finding:
    """The wrong database, the wrong schema, or tables of another brand of the application."""
    at = f"the source {source.endpoint.label}"
    message = f"{at} has no table of {rules.name} in schema {source.endpoint.schema}"
    schema, tables = _schema_with(required, source)
    if tables:
        fix = f"add ?schema={schema} to the URL of --source: there are {few(tables)}"
    elif alike := _alike(rules, source):
        message += f", but {len(alike)} tables whose names end like them: {few(alike)}"
        fix = "give --matrix FILE, with these names in it"
    else:
        fix = "check database and schema in --source"
    return refuse("not-on-source", ", ".join(required), message, fix)


def _schema_with(tables: Iterable[str], catalog: model.Catalog) -> tuple[str, list[str]]:
    """The other schema of the database that has most of these tables, and which."""
    wanted = set(tables)
    found = [table for table in catalog.elsewhere if table.name in wanted]
    best = Counter(table.schema for table in found).most_common(1)
    schema = best[0][0] if best else ""
    return schema, [table.name for table in found if table.schema == schema]


def _alike(rules: matrix.Matrix, source: model.Catalog) -> list[str]:
    """Tables that differ from the matrix's in what stands before the first underscore."""
    tails = {tail for entry in rules.entries if (tail := entry.table.partition("_")[2])}
    return [table.name for table in source.tables if table.name.partition("_")[2] in tails]


def _occupied(source: model.Catalog, name: str) -> bool:
    table = source.table(name)
    return table is not None and table.occupied is not False


def _left(left: model.Left, rules: matrix.Matrix, source: model.Catalog) -> Iterable[model.Finding]:
    entry = rules.entry(left.table)
    if not _occupied(source, left.table):
        return
    many = "an unknown number of rows" if left.rows is None else f"about {words.count(left.rows, 'row')}"
    if not left.known and left.reason != "excluded":
        yield warn(
            "unknown-table",
            left.table,
            f"{left.table} of the source ({many}) is not in the matrix and stays behind",
            f"--include {left.table}, if it should go too",
        )
    elif entry is not None and entry.need == "required":
        yield warn(
            "required-excluded",
            left.table,
            f"{left.table} of the source is required and excluded: the target loses {left.loses}",
            f"leave out --exclude {left.table}",
        )
    else:
        yield note(
            "left-behind",
            left.table,
            f"{left.table} of the source stays behind with {many} ({left.reason}): loses {left.loses}",
        )


def _missing(
    rules: matrix.Matrix,
    source: model.Catalog,
    now: model.Catalog,
    target: model.Catalog,
    selection: model.Selection,
) -> Iterable[model.Finding]:
    gone = [chosen.table for chosen in selection.chosen if target.table(chosen.table) is None]
    if not gone or not now.schema_exists:
        return
    at = f"the target {now.endpoint.label} has"
    schema, found = _schema_with(gone, now)
    if len(gone) == len(selection.chosen) and not any(now.kind(name) for name in gone):
        what = f"{at} none of the {len(gone)} tables in schema {now.endpoint.schema}"
        fix = f"start the application there once, or use --create-schema: {few(gone)} are missing"
        if found:
            fix = f"add ?schema={schema} to the URL of --target: there are {few(found)}"
        yield refuse("table-missing", now.endpoint.label, what, fix)
        return
    for name in gone:
        if kind := now.kind(name):
            yield _not_a_table(name, kind, now)
        elif rules.entry(name) is None:
            yield refuse(
                "table-missing",
                name,
                f"{at} no table {name} in schema {now.endpoint.schema}, and the application will not create it",
                f"--exclude {name}, or create it: pg_dump --schema-only --no-owner --table='{qualified(name, source)}'"
                " SOURCE | psql TARGET",
            )
        else:
            fix = "let the migrations of the target's application finish first"
            yield refuse("table-missing", name, f"{at} no table {name} in schema {now.endpoint.schema}", fix)


def _not_a_table(name: str, kind: str, target: model.Catalog) -> model.Finding:
    return refuse(
        "not-a-table",
        name,
        f"{name} on the target {target.endpoint.label} is a {kind}, not a table that rows can be copied into",
        f"DROP {kind.upper()} {qualified(name, target)}; -- then let the application's migrations create the table",
    )


def _tables(
    source: model.Catalog, target: model.Catalog, selection: model.Selection, existing: Mapping[str, model.Existing]
) -> Iterable[model.Finding]:
    places: list[model.Table] = []
    for chosen in selection.chosen:
        origin, place = source.table(chosen.table), target.table(chosen.table)
        if origin is not None:
            yield from privileges.readable(origin, source)
        if origin is not None and place is not None:
            yield from privileges.writable(place, target, existing[place.name])
            yield from drift.columns(origin, place, source, target)
            yield from obstacles.inspect(origin, place, source, target)
            places.append(place)
    yield from privileges.analyzing(places, target)


# -- what the rows said ---------------------------------------------------------------------------


def _rows(source: model.Catalog, survey: model.Survey) -> Iterable[model.Finding]:
    for dangling in survey.dangling:
        subject = f"{dangling.table}.{dangling.column}"
        values = f"{words.count(dangling.rows, 'value')} of {subject} on the source pointing at rows"
        if dangling.absent and source.table(dangling.references) is not None:
            yield warn(
                "reference-left-behind",
                subject,
                f"{values} of {dangling.references}, which stays behind",
                f"--include {dangling.references}",
            )
        else:
            yield note(
                "dangling-reference",
                subject,
                f"{values} that {dangling.references} of the source does not have; it will be the same on the target",
            )
    for misfit in survey.unparseable:
        subject = f"{misfit.table}.{misfit.column}"
        names = ", ".join(name for name in misfit.examples if name)
        more = " and others" if names and misfit.rows > len(misfit.examples) else ""
        yield warn(
            "unparseable",
            subject,
            f"{subject} of the source is {misfit.fault} in {words.count(misfit.rows, 'row')}, which the application"
            f" rejects on both servers{f': {names}{more}' if names else ''}",
            "mend these rows on the source first, with the application itself where it lets you",
        )
    for table in survey.unlooked:
        yield note("not-searched", table, f"{table} of the source is large; its rows were not looked through")
