"""The proxy's real schema, from its own migrations, and the views it makes at its first start.

Imports `errors` and the sandbox's `session`; reads the PyPI package `<brand>-proxy-extras` as files,
without running its code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from mishika_migrate import errors
from mishika_migrate.sandbox import session

if TYPE_CHECKING:
    from mishika_migrate.sandbox.session import Connection

# Prisma's own table, as `prisma migrate deploy` creates it.
_LEDGER = """
    CREATE TABLE IF NOT EXISTS _prisma_migrations (
        id varchar(36) PRIMARY KEY,
        checksum varchar(64) NOT NULL,
        finished_at timestamptz,
        migration_name varchar(255) NOT NULL,
        logs text,
        rolled_back_at timestamptz,
        started_at timestamptz NOT NULL DEFAULT now(),
        applied_steps_count integer NOT NULL DEFAULT 0
    )
"""

# Same names, columns and meaning as MishikaLLM 1.68 proxy/db/create_views.py: pg_get_viewdef() gives the
# same text. USER is the session's role, as there, not the column "user".
_VIEWS = {
    "MishikaLLM_VerificationTokenView": """
        SELECT v.*, t.spend AS team_spend, t.max_budget AS team_max_budget,
               t.tpm_limit AS team_tpm_limit, t.rpm_limit AS team_rpm_limit
        FROM "MishikaLLM_VerificationToken" AS v
        LEFT JOIN "MishikaLLM_TeamTable" AS t ON v.team_id = t.team_id
    """,
    "MonthlyGlobalSpend": """
        SELECT date("startTime") AS date, sum(spend) AS spend
        FROM "MishikaLLM_SpendLogs"
        WHERE "startTime" >= current_date - interval '30 days'
        GROUP BY 1
    """,
    "Last30dKeysBySpend": """
        SELECT l.api_key, v.key_alias, v.key_name, sum(l.spend) AS total_spend
        FROM "MishikaLLM_SpendLogs" AS l
        LEFT JOIN "MishikaLLM_VerificationToken" AS v ON l.api_key = v.token
        WHERE l."startTime" >= current_date - interval '30 days'
        GROUP BY 1, 2, 3
        ORDER BY total_spend DESC
    """,
    "Last30dModelsBySpend": """
        SELECT model, sum(spend) AS total_spend
        FROM "MishikaLLM_SpendLogs"
        WHERE "startTime" >= current_date - interval '30 days' AND model <> ''
        GROUP BY 1
        ORDER BY total_spend DESC
    """,
    "MonthlyGlobalSpendPerKey": """
        SELECT date("startTime") AS date, sum(spend) AS spend, api_key
        FROM "MishikaLLM_SpendLogs"
        WHERE "startTime" >= current_date - interval '30 days'
        GROUP BY 1, 3
    """,
    "MonthlyGlobalSpendPerUserPerKey": """
        SELECT date("startTime") AS date, sum(spend) AS spend, api_key, "user"
        FROM "MishikaLLM_SpendLogs"
        WHERE "startTime" >= current_date - interval '30 days'
        GROUP BY 1, 4, 3
    """,
    "DailyTagSpend": """
        SELECT jsonb_array_elements_text(request_tags) AS individual_request_tag,
               date(s."startTime") AS spend_date, count(*) AS log_count, sum(spend) AS total_spend
        FROM "MishikaLLM_SpendLogs" AS s
        GROUP BY 1, 2
    """,
    "Last30dTopEndUsersSpend": """
        SELECT end_user, count(*) AS total_events, sum(spend) AS total_spend
        FROM "MishikaLLM_SpendLogs"
        WHERE end_user <> '' AND end_user <> USER
          AND "startTime" >= current_date - interval '30 days'
        GROUP BY 1
        ORDER BY total_spend DESC
        LIMIT 100
    """,
}


def apply(conninfo: str, *, brand: str = "mishikallm") -> None:
    """Every migration of the brand, in order, recorded the way Prisma does; done ones are skipped."""
    scripts = _scripts(brand)
    with session.connect(conninfo, autocommit=True) as connection:
        connection.execute(_LEDGER)
        rows = connection.execute("SELECT migration_name FROM _prisma_migrations WHERE finished_at IS NOT NULL")
        done = {name for (name,) in rows}
        for script in scripts:
            if script.parent.name not in done:
                _migrate(connection, script)


def create_views(conninfo: str) -> None:
    """The eight views of the Usage page and of the spend checks."""
    with session.connect(conninfo) as connection:
        for name, query in _VIEWS.items():
            connection.execute(f'CREATE OR REPLACE VIEW "{name}" AS {query}'.encode())


def _scripts(brand: str) -> list[Path]:
    spec = importlib.util.find_spec(f"{brand}_proxy_extras")
    if spec is None or spec.origin is None:
        raise errors.ConfigurationError(
            f"the sandbox needs the package {brand}-proxy-extras, which is not installed",
            hint="Run pip install 'mishika-migrate[demo]'.",
        )
    return sorted((Path(spec.origin).parent / "migrations").glob("*/migration.sql"))


def _migrate(connection: Connection, script: Path) -> None:
    text = script.read_bytes()
    connection.execute(text)  # without parameters: one simple query, so one transaction, as Prisma sends it
    connection.execute(
        "INSERT INTO _prisma_migrations (id, checksum, migration_name, finished_at, applied_steps_count)"
        " VALUES (%s, %s, %s, clock_timestamp(), 1)",
        (str(uuid.uuid4()), hashlib.sha256(text).hexdigest(), script.parent.name),
    )
