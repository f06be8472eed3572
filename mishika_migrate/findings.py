"""How a finding is worded: its makers, and the SQL names for statements that a person will paste.

Imports the words only.
"""

from __future__ import annotations

from collections.abc import Sequence

from mishika_migrate import model


def major(version: int) -> str:
    """`180006` is 18; before version 10 the second number counts too: `90624` is 9.6."""
    return str(version // 1_00_00) if version >= 10_00_00 else f"{version // 1_00_00}.{version // 100 % 100}"


def quoted(name: str) -> str:
    """An SQL identifier, for a statement that a person will paste."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string; every server we read has standard_conforming_strings."""
    return "'" + text.replace("'", "''") + "'"


def qualified(name: str, catalog: model.Catalog) -> str:
    return f"{quoted(catalog.endpoint.schema)}.{quoted(name)}"


def placed(name: model.TableName) -> str:
    return f"{quoted(name.schema)}.{quoted(name.name)}"


def alter(table: str, catalog: model.Catalog) -> str:
    return f"ALTER TABLE {qualified(table, catalog)}"


def grant(what: str, catalog: model.Catalog) -> str:
    """The statements that give `what` to the role of that server: `SELECT ON …`, or several.

    GRANTs for both servers are listed in one block, so each line says where it belongs.
    """
    return f"GRANT {what} TO {quoted(catalog.user)}; -- on the {catalog.endpoint.role}"


def act_as(owner: str, user: str, *, version: int, role: model.Role) -> str:
    """The statements after which `user` has the rights of `owner` and may SET ROLE to it, on a server of that version.

    Only since 16 GRANT says both; one of these options that is left out keeps the value of an earlier GRANT. Before,
    whether rights are inherited is the member's own attribute.
    """
    if version >= 16_00_00:
        return f"GRANT {quoted(owner)} TO {quoted(user)} WITH INHERIT TRUE, SET TRUE; -- on the {role}"
    return f"GRANT {quoted(owner)} TO {quoted(user)}; ALTER ROLE {quoted(user)} INHERIT; -- on the {role}"


def few(names: Sequence[str]) -> str:
    """`a, b, c and 2 more`."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def refuse(code: str, subject: str, message: str, fix: str) -> model.Finding:
    return model.Finding(code=code, severity="refuse", subject=subject, message=message, fix=fix)


def warn(code: str, subject: str, message: str, fix: str = "") -> model.Finding:
    return model.Finding(code=code, severity="warn", subject=subject, message=message, fix=fix)


def note(code: str, subject: str, message: str, fix: str = "") -> model.Finding:
    return model.Finding(code=code, severity="note", subject=subject, message=message, fix=fix)
