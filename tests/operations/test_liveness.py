"""Signs that a target is in use already, and that what is no sign is not taken for one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from mishika_migrate import errors, matrix
from mishika_migrate.operations.syncing import liveness
from tests.fix_faults import ask
from tests.fix_servers import LOGS, Clone, Pair, endpoint
from tests.looking import RULES, TEAM, TOKEN, as_role, carry_out, execute, role, see

SPENDLOGS = "MishikaLLM_SpendLogs"
MEMBERS = '"MishikaLLM_TeamMembership"'
TABLES = (*(entry.table for entry in RULES.entries), "_prisma_migrations")
SHOP = Path(__file__).parents[1] / "unit"

NEW_KEY = f"INSERT INTO {TOKEN} (token, key_alias, created_at) VALUES (md5('{{}}') || md5('x'), '{{}}', {{}})"
NEW_LOG = (
    f'INSERT INTO "{SPENDLOGS}" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens,'
    " completion_tokens, \"startTime\", \"endTime\") VALUES ('{0}', '', '', 0, 0, 0, 0, {1}, {1})"
)
NOW = "clock_timestamp() AT TIME ZONE 'UTC'"
CUTOVER = (
    "INSERT INTO mishika_migrate.cutover (id, run, way, method, state, finished)"
    " SELECT count(*) + 1, 'r', '{}', 'sync', '{}', {} FROM mishika_migrate.cutover"
)


@pytest.fixture
def copied(source_url: str, target_url: str) -> tuple[str, str]:
    """Both sides after a copy of everything."""
    carry_out(see(source_url, target_url, everything=True), source_url, target_url)
    return source_url, target_url


def signs(urls: tuple[str, str], *, tables: Sequence[str] = TABLES, rules: matrix.Matrix = RULES) -> dict[str, str]:
    """Messages by code; a code that comes twice has both."""
    found: dict[str, str] = {}
    source, target = endpoint(urls[0], "source"), endpoint(urls[1], "target")
    for sign in liveness.evidence(rules, source, target, tables=tables):
        found[sign.code] = f"{found[sign.code]}\n{sign.message}" if sign.code in found else sign.message
    return found


def guard(urls: tuple[str, str], *, overwrite: bool = False) -> tuple[str, ...]:
    return liveness.guard(RULES, endpoint(urls[0], "source"), endpoint(urls[1], "target"), TABLES, overwrite=overwrite)


# -- what is none ---------------------------------------------------------------------------------


def test_target_that_was_copied_to_and_rests_has_no_signs(copied: tuple[str, str]) -> None:
    assert signs(copied) == {}
    assert guard(copied) == ()


def test_source_that_moved_on_is_no_sign(copied: tuple[str, str]) -> None:
    source, _ = copied
    execute(
        source,
        f"DELETE FROM {TOKEN} WHERE token IN (SELECT token FROM {TOKEN} LIMIT 20)",
        f"UPDATE {TOKEN} SET spend = spend + 1",
        NEW_KEY.format("late", "late", NOW),
        NEW_LOG.format("late", NOW),
        f'DELETE FROM "{SPENDLOGS}" WHERE "startTime" < \'2026-01-01\'',
    )
    assert signs(copied) == {}


def test_budgets_that_begin_anew_on_the_source_are_no_sign(copied: tuple[str, str]) -> None:
    source, _ = copied
    execute(source, f"UPDATE {TOKEN} SET spend = 0, budget_reset_at = '2099-01-01'")
    execute(source, f"UPDATE {TEAM} SET spend = 0, updated_at = {NOW}", f"UPDATE {MEMBERS} SET spend = -1")
    assert signs(copied) == {}


def test_rows_of_a_later_time_that_the_source_has_too_are_no_sign(copied: tuple[str, str]) -> None:
    """The proxy's clock may be ahead of the target's."""
    for url in copied:
        execute(url, NEW_KEY.format("both", "both", "'2099-01-01'"), NEW_LOG.format("both", "'2099-01-01'"))
    assert signs(copied) == {}


def test_target_without_a_run_that_is_behind_its_source_has_no_signs(pair: Pair, clone: Clone) -> None:
    one = clone(pair.old, "filled"), clone(pair.old, "filled")
    execute(one[0], NEW_KEY.format("late", "late", NOW), NEW_LOG.format("late", NOW))
    execute(one[1], NEW_KEY.format("old", "old", "'2001-01-01'"))
    assert signs(one) == {}


def test_target_without_tables_has_no_signs(source_url: str, pair: Pair, clone: Clone) -> None:
    assert signs((source_url, clone(pair.new, "template0"))) == {}


# -- what is one ----------------------------------------------------------------------------------


def test_keys_created_on_the_target_are_a_sign(copied: tuple[str, str]) -> None:
    _, target = copied
    for name in "abcde":
        execute(target, NEW_KEY.format(name, f"new {name}", NOW))
    execute(target, NEW_KEY.format("revoked", "revoked", "'2001-01-01'"))
    found = signs(copied)
    assert list(found) == ["target-has-newer-keys"]
    run = ask(target, "SELECT id FROM mishika_migrate.run")
    message = found["target-has-newer-keys"]
    assert message.startswith(f"5 keys that the source does not have were created after run {run} had copied the table")
    assert message.endswith(" and 2 more")
    assert "new e " in message
    token = str(ask(target, f"SELECT token FROM {TOKEN} WHERE key_alias = 'new e'"))
    assert f"{token[:8]}..." in message
    assert token[:9] not in message


def test_only_the_tables_that_would_be_written_are_looked_at(copied: tuple[str, str]) -> None:
    _, target = copied
    execute(target, NEW_KEY.format("a", "a", NOW), f"UPDATE {TEAM} SET spend = spend + 1", NEW_LOG.format("a", NOW))
    assert set(signs(copied)) == {"target-has-newer-keys", "target-spend-ahead", "target-has-newer-history"}
    assert set(signs(copied, tables=[SPENDLOGS])) == {"target-has-newer-history"}
    assert set(signs(copied, tables=["MishikaLLM_TeamTable"])) == {"target-spend-ahead"}


def test_keys_count_from_the_run_that_copied_them_on_and_not_from_a_later_one(source_url: str, target_url: str) -> None:
    both = source_url, target_url
    carry_out(see(*both), *both)
    execute(target_url, NEW_KEY.format("between", "between", NOW))
    carry_out(see(*both, only=("spendlogs",)), *both)
    assert list(signs(both)) == ["target-has-newer-keys"]


def test_spend_that_is_ahead_is_a_sign(copied: tuple[str, str]) -> None:
    _, target = copied
    execute(
        target,
        f"UPDATE {TOKEN} SET spend = spend + 0.01 WHERE token IN (SELECT token FROM {TOKEN} ORDER BY 1 LIMIT 2)",
        f"UPDATE {TEAM} SET spend = spend + 1, updated_at = {NOW}",
    )
    message = signs(copied)["target-spend-ahead"]
    ours, theirs = message.splitlines()
    assert ours.startswith("2 rows of MishikaLLM_VerificationToken are ahead of the source in spend: ")
    assert theirs.startswith(f"{ask(target, f'SELECT count(*) FROM {TEAM}')} rows of MishikaLLM_TeamTable are ahead")


def test_requests_on_the_target_are_a_sign(copied: tuple[str, str]) -> None:
    _, target = copied
    execute(target, NEW_LOG.format("one", "'2098-01-01 01:02:03.999'"))
    message = signs(copied)["target-has-newer-history"]
    assert message.startswith(f"1 row of {SPENDLOGS} that the source does not have is dated after run ")
    assert message.endswith("; the latest is of 2098-01-01 01:02:04 UTC")
    execute(target, "; ".join(NEW_LOG.format(f"r{number}", NOW) for number in range(1500)))
    assert signs(copied)["target-has-newer-history"].startswith("at least 1,000 rows of ")


def test_without_a_run_the_newest_of_the_source_is_the_measure(pair: Pair, clone: Clone) -> None:
    one = clone(pair.old, "filled"), clone(pair.old, "filled")
    execute(one[1], NEW_KEY.format("new", "new", "'2099-01-01'"), NEW_LOG.format("new", "'2099-01-01'"))
    found = signs(one)
    assert set(found) == {"target-has-newer-keys", "target-has-newer-history"}
    assert "created after the newest that the source has (" in found["target-has-newer-keys"]


def test_empty_source_makes_every_key_a_sign(pair: Pair, clone: Clone) -> None:
    found = signs((clone(pair.new, "bare"), clone(pair.old, "filled")))
    assert "were created after the newest that the source has (it has none): " in found["target-has-newer-keys"]
    assert f"\n{LOGS} rows of {SPENDLOGS} that" in found["target-has-newer-history"]


def test_sessions_of_others_are_a_sign_and_our_own_are_not(copied: tuple[str, str]) -> None:
    with (
        closing(psycopg.connect(copied[1], application_name="mishika-migrate/x")),
        closing(psycopg.connect(copied[1])),
    ):
        message = signs(copied)["target-has-sessions"]
    assert message.startswith("1 other session is connected to it: without a name as postgres from local for 0 s")


@pytest.fixture
def mover(copied: tuple[str, str], pair: Pair) -> str:
    """A role that may read all of the target, and see nothing of other roles' sessions."""
    name, schemas = role(pair.new), ("public", "mishika_migrate")
    execute(
        copied[1],
        f'GRANT USAGE ON SCHEMA {", ".join(schemas)} TO "{name}"',
        *(f'GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO "{name}"' for schema in schemas),
    )
    return name


def test_sessions_of_superusers_that_may_not_be_seen_are_a_note(copied: tuple[str, str], mover: str) -> None:
    source, target = copied
    with closing(psycopg.connect(target, application_name="prisma")):
        (note,) = guard((source, as_role(target, mover)))
        assert note.startswith("1 session on the target may be a proxy's")
        assert f'prisma as postgres; `GRANT pg_monitor TO "{mover}"` on the target shows it' in note
        execute(target, f'GRANT pg_monitor TO "{mover}"')
        assert list(signs((source, as_role(target, mover)))) == ["target-has-sessions"]


def test_sessions_that_may_write_are_a_sign_though_no_more_is_seen_of_them(
    copied: tuple[str, str], mover: str, pair: Pair
) -> None:
    source, target = copied
    proxy = role(pair.new)
    execute(target, f'GRANT UPDATE (spend) ON {TOKEN} TO "{proxy}"')
    with closing(psycopg.connect(as_role(target, proxy))):
        message = signs((source, as_role(target, mover)))["target-has-sessions"]
    assert message == f"1 other session is connected to it: without a name as {proxy}"


def test_sessions_that_may_not_write_are_a_note(copied: tuple[str, str], mover: str, pair: Pair) -> None:
    _, target = copied
    watcher = role(pair.new)
    execute(target, f'GRANT pg_monitor, pg_read_all_data TO "{watcher}"')
    with closing(psycopg.connect(as_role(target, watcher), application_name="exporter")):
        (note,) = guard(copied)
        assert note.startswith(
            f"1 other session on the target is not taken for a proxy's: exporter as {watcher} from local for "
        )
        for grant in (f'GRANT "{mover}" TO "{watcher}"', f'GRANT DELETE ON {TEAM} TO "{mover}"'):
            execute(target, f'ALTER ROLE "{watcher}" NOINHERIT', grant)
        assert list(signs(copied)) == ["target-has-sessions"], "it may become the other role"


@pytest.mark.parametrize(
    ("name", "application", "kind"),
    [
        ("rdsadmin", "", "other"),
        ("cloudsqladmin", "", "other"),
        ("supabase_admin", "postgres_exporter", "other"),
        ("supabase_admin", "", "suspect"),
        ("somebody", "postgres_exporter", "suspect"),
    ],
)
def test_sessions_of_a_service_are_notes_where_one_is_no_superuser(
    name: str, application: str, kind: str, copied: tuple[str, str], mover: str, pair: Pair
) -> None:
    source, target = copied
    execute(target, f"CREATE ROLE {name} LOGIN SUPERUSER", f'GRANT pg_monitor TO "{mover}"')
    try:
        with closing(psycopg.connect(as_role(target, name), application_name=application, autocommit=True)) as session:
            assert list(signs(copied)) == ["target-has-sessions"], "a superuser may give any role such a name"
            both = source, as_role(target, mover)
            assert list(signs(both)) == (["target-has-sessions"] if kind == "suspect" else [])
            if kind == "other":
                assert guard(both)[0].startswith("1 other session on the target is not taken for a proxy's: ")
            session.execute("BEGIN; SELECT pg_current_xact_id()")
            assert list(signs(both)) == ["target-has-sessions"], "it writes"
    finally:
        execute(target, f"DROP ROLE {name}")


def test_cutover_is_a_sign_once_it_is_completed(copied: tuple[str, str]) -> None:
    _, target = copied
    execute(target, CUTOVER.format("forward", "proved", "NULL"))
    assert signs(copied) == {}
    execute(target, CUTOVER.format("forward", "finished", "'2026-01-02 03:04:05+00'"))
    assert signs(copied) == {"target-cut-over": "a cutover to it was completed (2026-01-02 03:04:05 UTC)"}
    execute(
        target,
        "UPDATE mishika_migrate.cutover SET state = 'undone' WHERE state = 'finished'",
        CUTOVER.format("back", "finished", "'2026-01-03 03:04:05+00'"),
    )
    assert signs(copied) == {}, "whoever went back has left the target"


# -- the guard ------------------------------------------------------------------------------------


def test_guard_refuses_with_the_evidence_and_names_the_way_on(copied: tuple[str, str]) -> None:
    source, target = copied
    execute(target, NEW_KEY.format("a", "a", NOW), NEW_LOG.format("a", NOW))
    with pytest.raises(errors.Refused) as caught:
        guard(copied)
    assert caught.value.message.startswith(f"the target {endpoint(target, 'target').label} looks as if it were in use")
    assert "--overwrite-live-target" in caught.value.hint
    codes = [(each.code, each.severity) for each in caught.value.findings]
    assert codes == [("target-has-newer-keys", "refuse"), ("target-has-newer-history", "refuse")]
    notes = guard(copied, overwrite=True)
    assert [note.partition(": ")[0] for note in notes] == ["the target looks as if it were in use"] * 2
    assert not ask(source, "SELECT to_regnamespace('mishika_migrate') IS NOT NULL")


def test_times_that_nothing_tells_are_a_note(copied: tuple[str, str]) -> None:
    for url in copied:
        for column in ("created_at", "updated_at"):
            execute(url, f"ALTER TABLE {TOKEN} ALTER {column} DROP DEFAULT")
    (note,) = guard(copied)
    assert note.startswith("when a row of MishikaLLM_VerificationToken was created is not known")


def test_large_history_without_an_index_is_not_read_for_a_sign(
    copied: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "_CHEAP_BYTES", 0)
    execute(copied[1], NEW_LOG.format("a", NOW), f"DELETE FROM {TOKEN}")
    assert list(signs(copied)) == ["target-has-newer-history"]
    notes = guard(copied, overwrite=True)[1:]
    assert [note.partition(" on the target")[0] for note in notes] == [
        f"newer rows of MishikaLLM_{name}" for name in ("AuditLog", "ErrorLogs")
    ]
    assert notes[0].endswith("were not looked for: no index begins with its updated_at")


def test_matrix_without_keys_looks_at_history_and_sessions(pair: Pair, clone: Clone) -> None:
    rules = matrix.load(SHOP / "shop.yaml")
    urls = clone(pair.old, "template0"), clone(pair.new, "template0")
    for url in urls:
        execute(url, (SHOP / "shop.sql").read_text())
    tables = [entry.table for entry in rules.entries]
    assert signs(urls, tables=tables, rules=rules) == {}
    execute(urls[1], "INSERT INTO events (id, kind, happened) VALUES (gen_random_uuid(), 'click', now())")
    assert list(signs(urls, tables=tables, rules=rules)) == ["target-has-newer-history"]
