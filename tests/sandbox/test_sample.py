"""The sample: the real schema, filled, on a real server."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest

from mishika_migrate import errors
from mishika_migrate.sandbox import __main__ as command
from mishika_migrate.sandbox import sample, schema, servers

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS, LOGS, USAGE = 120, 700, 1100


@pytest.fixture(scope="module")
def server() -> Iterator[servers.Server]:
    # Not tmp_path: another pytest session closes its parent to the server's user again.
    with (
        tempfile.TemporaryDirectory(prefix="mishika-test-") as directory,
        servers.Server.create(Path(directory) / "data", binaries=servers.embedded()) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def empty(server: servers.Server) -> str:
    """The URL of a database with the schema and no rows; used as a template."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE empty")
    schema.apply(server.url("empty"))
    schema.create_views(server.url("empty"))
    return server.url("empty")


@pytest.fixture(scope="module")
def filled(server: servers.Server, empty: str) -> Database:
    return Database(server, "filled")


class Database:
    """A copy of the empty one, filled with seed 1 or another."""

    def __init__(self, server: servers.Server, name: str, seed: int = 1) -> None:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE empty".encode())
        self.url = server.url(name)
        self.heard: list[tuple[str, int]] = []
        self.counts = sample.fill(
            self.url,
            keys=KEYS,
            logs=LOGS,
            usage=USAGE,
            seed=seed,
            progress=lambda table, rows: self.heard.append((table, rows)),
        )

    def ask(self, question: LiteralString) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(question).fetchall()

    def digest(self) -> dict[str, str]:
        with psycopg.connect(self.url) as connection:
            query = "SELECT md5(string_agg(row::text, '|' ORDER BY row::text)) FROM \"{}\" AS row"
            return {table: connection.execute(query.format(table).encode()).fetchall()[0][0] for table in self.counts}


def test_the_schema_is_recorded_as_prisma_does_and_applied_once(empty: str) -> None:
    schema.apply(empty)
    with psycopg.connect(empty) as connection:
        done = connection.execute(
            "SELECT migration_name, checksum, applied_steps_count FROM _prisma_migrations"
            " WHERE finished_at >= started_at AND rolled_back_at IS NULL ORDER BY 1"
        ).fetchall()
        views = connection.execute("SELECT count(*) FROM pg_views WHERE schemaname = 'public'").fetchone()
    assert len(done) == 14
    assert done[0][0].endswith("_baseline")
    assert {len(checksum) for _, checksum, _ in done} == {64}
    assert {steps for _, _, steps in done} == {1}
    assert views == (8,)


def test_a_missing_package_is_a_configuration_error_with_the_extra(empty: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        schema.apply(empty, brand="nosuchbrand")
    assert "mishika-migrate[demo]" in caught.value.hint


def test_every_table_of_the_schema_has_rows(filled: Database) -> None:
    tables = filled.ask("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'Mishika%'")
    assert set(filled.counts) == {name for (name,) in tables}
    assert all(filled.counts.values())
    assert filled.counts["MishikaLLM_VerificationToken"] == KEYS
    assert filled.counts["MishikaLLM_SpendLogs"] == LOGS
    assert filled.counts["MishikaLLM_DailyUserSpend"] == USAGE
    assert dict(filled.heard) == filled.counts


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(server: servers.Server, filled: Database) -> None:
    same, other = Database(server, "same").digest(), Database(server, "other", seed=2).digest()
    assert same == filled.digest()
    assert not set(other.values()) & set(same.values())


def test_sample_key_is_the_secret_of_a_stored_token(filled: Database) -> None:
    stored = dict(filled.ask('SELECT token, key_name FROM "MishikaLLM_VerificationToken"'))
    for number in (0, KEYS - 1):
        key = sample.sample_key(1, number)
        assert stored[hashlib.sha256(key.encode()).hexdigest()] == f"sk-...{key[-4:]}"


def test_soft_references_hold_but_for_the_designed_ones(filled: Database) -> None:
    assert filled.ask(
        'SELECT DISTINCT v.team_id FROM "MishikaLLM_VerificationToken" v'
        ' LEFT JOIN "MishikaLLM_TeamTable" t USING (team_id)'
        " WHERE v.team_id IS NOT NULL AND t.team_id IS NULL"
    ) == [("mishikallm-dashboard",)]
    assert filled.ask(
        'SELECT DISTINCT v.user_id FROM "MishikaLLM_VerificationToken" v'
        ' LEFT JOIN "MishikaLLM_UserTable" u USING (user_id)'
        " WHERE v.user_id IS NOT NULL AND u.user_id IS NULL"
    ) == [("default_user_id",)]
    assert filled.ask(
        'SELECT (SELECT count(*) FROM "MishikaLLM_SpendLogs" WHERE api_key NOT IN'
        '          (SELECT token FROM "MishikaLLM_VerificationToken")),'
        '       (SELECT count(*) FROM "MishikaLLM_SpendLogs" WHERE team_id NOT IN'
        '          (SELECT team_id FROM "MishikaLLM_TeamTable")),'
        "       (SELECT count(*) FROM \"MishikaLLM_SpendLogs\" WHERE end_user <> '' AND end_user NOT IN"
        '          (SELECT user_id FROM "MishikaLLM_EndUserTable")),'
        "       (SELECT count(*) FROM \"MishikaLLM_SpendLogs\" WHERE model_id <> '' AND model_id NOT IN"
        '          (SELECT model_id FROM "MishikaLLM_ProxyModelTable")),'
        '       (SELECT count(*) FROM "MishikaLLM_TeamTable", unnest(members || admins) AS m WHERE m NOT IN'
        '          (SELECT user_id FROM "MishikaLLM_UserTable")),'
        '       (SELECT count(*) FROM "MishikaLLM_UserTable", unnest(teams) AS t WHERE t NOT IN'
        '          (SELECT team_id FROM "MishikaLLM_TeamTable"))'
    ) == [(0, 0, 0, 0, 0, 0)]


def test_keys_are_of_every_kind(filled: Database) -> None:
    (row,) = filled.ask(
        "SELECT count(*) FILTER (WHERE models IS NULL), count(*) FILTER (WHERE models = '{}'),"
        " count(DISTINCT blocked), count(*) FILTER (WHERE blocked IS NULL),"
        " count(*) FILTER (WHERE expires < '2027-01-01'), count(*) FILTER (WHERE expires > '2027-01-01'),"
        " count(budget_id), count(organization_id), count(team_id), count(user_id)"
        ' FROM "MishikaLLM_VerificationToken"'
    )
    assert row[0] == 0
    assert row[2] == 2
    assert all(row[1:])


def test_logs_are_awkward_and_a_tenth_is_long(filled: Database) -> None:
    (row,) = filled.ask(
        "SELECT count(*) FILTER (WHERE length(l::text) > 8000), count(*) FILTER (WHERE messages IS NULL),"
        " count(*) FILTER (WHERE request_tags IS NULL), count(*) FILTER (WHERE end_user LIKE E'%\\t%'),"
        " count(*) FILTER (WHERE messages::text LIKE '%🙂%')"
        ' FROM "MishikaLLM_SpendLogs" l'
    )
    assert row[0] == LOGS // 10
    assert all(row)
    assert filled.ask('SELECT count(*) > 0 FROM "DailyTagSpend"') == [(True,)]


def test_many_usage_rows_leave_the_same_indexes(
    server: servers.Server, filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "_MANY", USAGE)
    later = Database(server, "later")
    listed = "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'MishikaLLM_DailyUserSpend' ORDER BY 1"
    constraints = (
        "SELECT conname, contype FROM pg_constraint WHERE conrelid = '\"MishikaLLM_DailyUserSpend\"'::regclass"
    )
    with psycopg.connect(later.url) as one, psycopg.connect(filled.url) as other:
        for query in (listed, constraints):
            assert one.execute(query.encode()).fetchall() == other.execute(query.encode()).fetchall() != []
    assert later.digest() == filled.digest()


def test_daily_usage_holds_twins_that_only_a_null_tells_apart(filled: Database) -> None:
    twins = filled.ask(
        'SELECT count(*) FROM "MishikaLLM_DailyUserSpend" WHERE custom_llm_provider IS NULL'
        " GROUP BY user_id, date, api_key, model HAVING count(*) > 1"
    )
    assert twins == [(2,), (2,)]


def test_team_aliases_come_through_the_sequence(filled: Database) -> None:
    assert filled.ask(
        'SELECT last_value >= (SELECT max(model_id) FROM "MishikaLLM_TeamTable") FROM "MishikaLLM_ModelTable_id_seq"'
    ) == [(True,)]


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--dsn", "postgresql://u:secret@%zz/x"], 2, "cannot be read"),
        (["--dsn", "postgresql://u:secret@127.0.0.1:1/x"], 6, "refused"),
        (["--dsn", "FILLED"], 2, "without rows"),
        (["--dsn", "SERVER"], 2, "--schema"),
        (["--dsn", "FILLED", "--long-logs", "5", "--logs", "4"], 2, "more than logs"),
    ],
)
def test_foreseeable_failures_are_one_sentence(
    server: servers.Server,
    filled: Database,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    says: str,
) -> None:
    urls = {"FILLED": filled.url, "SERVER": server.url()}
    assert command.main(["fill", *(urls.get(argument, argument) for argument in arguments)]) == status
    said = capsys.readouterr().err
    assert says in said
    assert "secret" not in said
    assert said.count("\n") == 1


def test_fill_applies_the_schema_and_reports_rows(server: servers.Server, capsys: pytest.CaptureFixture[str]) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE fresh")
    arguments = ["fill", "--schema", "--dsn", server.url("fresh"), "--keys", "0", "--logs", "50"]
    assert command.main(arguments) == 0
    said = capsys.readouterr().out
    assert "50  MishikaLLM_SpendLogs" in said
    assert "rows/s" in said
