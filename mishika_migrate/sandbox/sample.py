"""Fills every table of the proxy's schema with the same plausible rows for the same seed.

Imports the sandbox's own modules only. Awkward values are spread over all tables: quotes, tabs,
newlines, backslashes, emoji, NULL against empty, long prompts, all the digits of a float.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mishika_migrate import errors
from mishika_migrate.sandbox import logs, people, rows, session, things

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mishika_migrate.sandbox.people import Crowd
    from mishika_migrate.sandbox.rows import Value
    from mishika_migrate.sandbox.session import Connection

_PREFIX = "MishikaLLM_"
_MANY = 100_000  # from here on six indexes are built faster than filled: 40,000 rows/s otherwise


def sample_key(seed: int, n: int) -> str:
    """The secret of virtual key `n` (from 0) of `fill(…, seed=seed)`, as a caller sends it."""
    return people.secret(seed, n)


def fill(
    conninfo: str,
    *,
    keys: int = 2000,
    logs: int = 20_000,
    long_logs: int | None = None,
    usage: int = 300,
    seed: int = 1,
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, int]:
    """Rows per table, all of them in one transaction.

    `long_logs` of the `logs` rows (a tenth unless told) are about 10 KB, the others 1.3 KB. `usage`
    is the number of DailyUserSpend rows; the other two daily tables get `keys // 10`. `progress`
    hears a table's name and its rows so far. Dates lie before a day of 2025 or 2026 that the seed
    chooses. Soft references hold, but for the UI session's team and the default user.
    """
    long_logs = logs // 10 if long_logs is None else long_logs
    if min(keys, logs, long_logs, usage) < 0 or long_logs > logs:
        raise errors.ConfigurationError("row counts must not be negative, nor long logs more than logs")
    crowd = people.gather(seed=seed, keys=keys)
    with session.connect(conninfo) as connection:
        load = _Loader(connection, progress)
        _load_people(load, crowd)
        _load_things(load, crowd)
        _load_logs(load, crowd, count=logs, long=long_logs, usage=usage)
    return load.counts


class _Loader:
    """Loads tables by their bare name and keeps the counts."""

    def __init__(self, connection: Connection, progress: Callable[[str, int], None] | None) -> None:
        self.connection = connection
        self.counts: dict[str, int] = {}
        self._progress = progress

    def __call__(self, name: str, records: Iterable[Mapping[str, Value]]) -> None:
        self.lines(name, *rows.table(records))

    def lines(self, name: str, columns: tuple[str, ...], lines: Iterable[str]) -> None:
        table = _PREFIX + name
        self.counts[table] = rows.load(self.connection, table, columns, lines, self._progress)


def _load_people(load: _Loader, crowd: Crowd) -> None:
    """Parents before children."""
    load("BudgetTable", people.budgets(crowd))
    load("OrganizationTable", people.organizations(crowd))
    alias_ids = _load_model_aliases(load, crowd)
    load("TeamTable", people.teams(crowd, alias_ids))
    load("UserTable", people.users(crowd))
    load("VerificationToken", people.keys(crowd))
    load("TeamMembership", people.team_memberships(crowd))
    load("OrganizationMembership", people.organization_memberships(crowd))
    load("EndUserTable", people.end_users(crowd))
    load("InvitationLink", people.invitations(crowd))


def _load_model_aliases(load: _Loader, crowd: Crowd) -> list[int]:
    """The ids come from the table's own sequence, which thereby moves on."""
    table = f'"{_PREFIX}ModelTable"'
    known = load.connection.execute(f"SELECT coalesce(max(id), 0) FROM {table}".encode()).fetchall()[0][0]
    load("ModelTable", people.model_aliases(crowd))
    new = load.connection.execute(f"SELECT id FROM {table} WHERE id > %s ORDER BY id".encode(), (known,))
    return [number for (number,) in new]


def _load_things(load: _Loader, crowd: Crowd) -> None:
    load("CredentialsTable", things.credentials(crowd))
    load("ProxyModelTable", things.proxy_models(crowd))
    load("Config", things.config(crowd))
    load("UserNotifications", things.notifications(crowd))
    load("ManagedFileTable", things.files(crowd))
    load("ManagedVectorStoresTable", things.vector_stores(crowd))
    load("CronJob", things.leases(crowd))


def _load_logs(load: _Loader, crowd: Crowd, *, count: int, long: int, usage: int) -> None:
    load("ErrorLogs", logs.failures(crowd, count // 100))
    load("AuditLog", logs.audits(crowd, len(crowd.keys) // 4))
    with rows.indexed_later(load.connection, _PREFIX + "DailyUserSpend", usage >= _MANY):
        load.lines("DailyUserSpend", *logs.usage(crowd, "user_id", usage))
    load.lines("DailyTeamSpend", *logs.usage(crowd, "team_id", len(crowd.keys) // 10))
    load.lines("DailyTagSpend", *logs.usage(crowd, "tag", len(crowd.keys) // 10))
    spend = logs.spend(crowd, count=count, long=long, deployments=things.deployments(crowd))
    load.lines("SpendLogs", logs.SPEND_COLUMNS, spend)
