"""What the two roles may not do, each with the GRANT that lets them. Pure.

Imports findings and the words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mishika_migrate import model
from mishika_migrate.findings import grant, note, qualified, quoted, refuse, warn

_MAINTAIN_SINCE = 17_00_00


def ledger_denied(target: model.Catalog, schema: str) -> model.Finding:
    """The target has a ledger, but this role may not look into it."""
    name, user = quoted(schema), quoted(target.user)
    return refuse(
        "privilege",
        schema,
        f"{target.user} may not read the ledger of earlier runs, schema {schema} on the target {target.endpoint.label}",
        f"GRANT USAGE ON SCHEMA {name} TO {user}; {grant(f'ALL ON ALL TABLES IN SCHEMA {name}', target)}",
    )


def database(target: model.Catalog) -> Iterable[model.Finding]:
    if not (target.may_create_schema or target.in_recovery):
        yield refuse(
            "privilege",
            target.endpoint.label,
            f"{target.user} may not create the ledger's schema on the target",
            grant(f"CREATE ON DATABASE {quoted(target.database)}", target),
        )


_SWITCH_SESSIONS = 4
_COPY_SESSIONS = 2


def sessions(catalog: model.Catalog, *, jobs: int, followed: bool) -> Iterable[model.Finding]:
    """Whether a run would be turned away in its middle for too many sessions.

    [tried with limits on the role, 18] A copy takes two more than jobs while it proves itself, one of them for the
    snapshot or the books; the switch that follows takes four more, and its WAL sender counts before 18.
    """
    needed = jobs + (_SWITCH_SESSIONS + (catalog.version < 18_00_00) if followed else _COPY_SESSIONS)
    side, user = catalog.endpoint.role, quoted(catalog.user)
    for limit in catalog.limits:
        if limit.left >= needed:
            continue
        more = limit.used + needed
        whose, fix = {
            "role": (f"role {catalog.user}", f"ALTER ROLE {user} CONNECTION LIMIT {more}; -- on the {side}"),
            "database": (
                f"database {catalog.database}",
                f"ALTER DATABASE {quoted(catalog.database)} CONNECTION LIMIT {more}; -- on the {side}",
            ),
            "server": ("the server", f"ALTER SYSTEM SET max_connections = {more}; -- on the {side}, then restart it"),
        }[limit.of]
        spare = limit.left - (needed - jobs)
        yield warn(
            "too-few-sessions",
            catalog.endpoint.label,
            f"{'copy and cutover take' if followed else 'a copy takes'} up to {needed} sessions on the {side}"
            f" {catalog.endpoint.label}, and {whose} takes {limit.left} more (a limit of {limit.allowed})",
            f"{fix}{f', or --jobs {spare}' if spare > 0 else ''}",
        )


def schema(catalog: model.Catalog) -> model.Finding:
    name = catalog.endpoint.schema
    return refuse(
        "privilege",
        name,
        f"{catalog.user} may not use schema {name} on the {catalog.endpoint.role}",
        grant(f"USAGE ON SCHEMA {quoted(name)}", catalog),
    )


def creating(target: model.Catalog, what: str) -> model.Finding:
    """`what`, such as tables or views, may not be created in the target's schema."""
    name = target.endpoint.schema
    return refuse(
        "privilege",
        name,
        f"{target.user} may not create {what} in schema {name} on the target",
        grant(f"CREATE ON SCHEMA {quoted(name)}", target),
    )


def letting_in(role: str, schema: str, side: model.Role) -> str:
    """What lets a role of the application work with tables that are not its own."""
    inside = f"IN SCHEMA {quoted(schema)} TO {quoted(role)}"
    return (
        f"GRANT USAGE ON SCHEMA {quoted(schema)} TO {quoted(role)};"
        f" GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES {inside};"
        f" GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES {inside}; -- on the {side}"
    )


def reading(table: model.Table, source: model.Catalog, why: str = "") -> model.Finding:
    return refuse(
        "privilege",
        table.name,
        f"{source.user} may not read {table.name} on the source{why}",
        grant(f"SELECT ON {qualified(table.name, source)}", source),
    )


def readable(table: model.Table, source: model.Catalog) -> Iterable[model.Finding]:
    if "SELECT" not in table.privileges:
        yield reading(table, source)
    if table.hidden:
        yield _row_security(table, source, "hides rows from")


def writable(table: model.Table, target: model.Catalog, existing: model.Existing = "refuse") -> Iterable[model.Finding]:
    """`existing` says how its rows meet those that are there."""
    needed = ("SELECT", "INSERT", "UPDATE") if existing == "update" else ("SELECT", "INSERT")
    lacking = [privilege for privilege in needed if privilege not in table.privileges]
    if lacking:
        yield refuse(
            "privilege",
            table.name,
            f"{target.user} lacks {' and '.join(lacking)} on {table.name} of the target",
            grant(f"{', '.join(lacking)} ON {qualified(table.name, target)}", target),
        )
    if "DELETE" not in table.privileges and existing in ("refuse", "replace"):
        yield note(
            "privilege-to-resume",
            table.name,
            f"{target.user} lacks DELETE on {table.name} of the target: `copy --resume` could not replace rows"
            " that the source has changed since",
            grant(f"DELETE ON {qualified(table.name, target)}", target),
        )
    if table.hidden:
        yield _row_security(table, target, "applies to")


def emptiable(table: model.Table, target: model.Catalog) -> Iterable[model.Finding]:
    if "TRUNCATE" not in table.privileges:
        yield refuse(
            "privilege",
            table.name,
            f"{target.user} lacks TRUNCATE on {table.name} of the target, which replacing rows needs",
            grant(f"TRUNCATE ON {qualified(table.name, target)}", target),
        )


def temporary(target: model.Catalog) -> Iterable[model.Finding]:
    """Rows that are merged wait in a temporary table."""
    if not target.may_use_temporary:
        yield refuse(
            "privilege",
            target.endpoint.label,
            f"{target.user} may not create temporary tables on the target, which merging rows needs",
            grant(f"TEMPORARY ON DATABASE {quoted(target.database)}", target),
        )


def _row_security(table: model.Table, catalog: model.Catalog, does: str) -> model.Finding:
    otherwise = (
        f"ALTER TABLE {qualified(table.name, catalog)} NO FORCE ROW LEVEL SECURITY;"
        if table.owner == catalog.user
        else f"connect as the table's owner, {table.owner}"
    )
    role = catalog.endpoint.role
    return refuse(
        "row-security",
        table.name,
        f"row security on {table.name} of the {role} {does} {catalog.user}",
        f"ALTER ROLE {quoted(catalog.user)} BYPASSRLS; -- on the {role}, or {otherwise}",
    )


def analyzing(tables: Sequence[model.Table], target: model.Catalog) -> Iterable[model.Finding]:
    """The server only warns about a table that the role may not analyze, and goes on without statistics."""
    closed = [table for table in tables if "MAINTAIN" not in table.privileges]
    if not closed:
        return
    names = ", ".join(qualified(table.name, target) for table in closed)
    owners = ", ".join(sorted({table.owner for table in closed}))
    if target.version >= _MAINTAIN_SINCE:
        fix = grant(f"MAINTAIN ON {names}", target)
    else:
        fix = f"ANALYZE {names}; -- on the target after the copy, as {owners}"
    yield note(
        "privilege-to-analyze",
        target.user,
        f"{target.user} may not gather statistics on {len(closed)} tables of the target, so the first queries there may"
        " be slow",
        fix,
    )
