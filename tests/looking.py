"""Looks at two real servers as `plan` does, pastes the fixes that it prints, and carries the plan out."""

from __future__ import annotations

import os

import psycopg

from mishika_migrate import matrix, model
from mishika_migrate.operations import look
from mishika_migrate.operations.copying import copy
from mishika_migrate.plan import selection
from mishika_migrate.sandbox import servers
from tests.fix_servers import endpoint

RULES = matrix.load()
TEAM, TOKEN, USER, BUDGET = (
    f'"MishikaLLM_{name}"' for name in ("TeamTable", "VerificationToken", "UserTable", "BudgetTable")
)
ALL = selection.Wanted(everything=True)


def execute(url: str, *statements: str) -> None:
    """Each as if pasted: `--` comments and several statements in one included."""
    with psycopg.connect(url, autocommit=True) as session:
        for statement in statements:
            session.execute(statement.encode())


def see(source: str, target: str, **wanted: object) -> model.Plan:
    asked = selection.Wanted(**wanted)  # type: ignore[arg-type]
    return look.both(RULES, endpoint(source, "source"), endpoint(target, "target"), asked).plan


def found(plan: model.Plan, code: str, severity: str = "") -> list[model.Finding]:
    return [each for each in plan.findings if each.code == code and severity in ("", each.severity)]


def one(plan: model.Plan, code: str) -> model.Finding:
    (finding,) = found(plan, code)
    return finding


def subjects(plan: model.Plan, code: str) -> set[str]:
    return {finding.subject for finding in found(plan, code)}


def mend(plan: model.Plan, source: str, target: str, *codes: str) -> None:
    """Pastes the fix of every finding with one of these codes into the server that its message names."""
    for finding in plan.findings:
        if finding.code in codes and finding.fix:
            on_source = finding.code in _EITHER_SIDE and " the source" in finding.message.partition("target")[0]
            execute(source if on_source else target, finding.fix)


_EITHER_SIDE = ("privilege", "row-security", "migrations-unknown")


def carry_out(plan: model.Plan, source: str, target: str) -> tuple[model.Account, ...]:
    ends = endpoint(source, "source"), endpoint(target, "target")
    return copy.begin(plan, *ends, options=copy.Options(), emit=lambda event: None, stopping=lambda: 0)


_roles = iter(range(1_000_000))


def role(server: servers.Server, *, options: str = "") -> str:
    """A new role that may log in; it lasts as long as the server."""
    name = f"role {os.getpid()}-{next(_roles)}"
    execute(server.url(), f'CREATE ROLE "{name}" LOGIN {options}')
    return name


def as_role(url: str, name: str) -> str:
    return url.replace("postgresql://postgres@", f"postgresql://{name.replace(' ', '%20')}@")
