"""Tables that come into use, are emptied, have no key, are bound to others, or are written to by a proxy: `sync`."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from mishika_migrate import errors, model
from mishika_migrate.operations.syncing import sync
from mishika_migrate.plan import selection
from tests.fix_faults import LOGS, ask
from tests.fix_program import Run
from tests.fix_servers import Clone, Pair, assert_equal, endpoint, rows_of
from tests.looking import RULES, TEAM, TOKEN, carry_out, execute, see

Sync = Callable[..., model.Sync]
CREDENTIALS, END_USERS = '"MishikaLLM_CredentialsTable"', '"MishikaLLM_EndUserTable"'
DAILY = '"MishikaLLM_DailyUserSpend"'
END_USER = f"INSERT INTO {END_USERS} (user_id, blocked) VALUES ('{{}}', true)"
NEW_KEY = f"INSERT INTO {TOKEN} (token, key_alias, created_at) VALUES (md5('{{0}}') || md5('x'), '{{0}}', now())"
NEW_LOG = (
    f'INSERT INTO "{LOGS}" (request_id, call_type, api_key, "startTime", "endTime")'
    " VALUES ('{}', 'a', 'b', {}, now() AT TIME ZONE 'UTC')"
)
NOW = "clock_timestamp() AT TIME ZONE 'UTC'"


@pytest.fixture
def level(source_url: str, target_url: str) -> Sync:
    """One pass between source and target; the words are those of `selection.Wanted`, or of `sync.Options`."""

    def call(**words: object) -> model.Sync:
        asked = {name: words.pop(name) for name in list(words) if name in selection.Wanted.__slots__}
        ends = endpoint(source_url, "source"), endpoint(target_url, "target")
        options = sync.Options(**{"overwrite": True, **words})  # type: ignore[arg-type]
        wanted = selection.Wanted(**asked) if asked else None  # type: ignore[arg-type]
        scene, _ = sync.prepare(RULES, *ends, wanted, options=options)
        return sync.carry_out(scene, *ends, options=options, emit=lambda event: None)

    return call


def of(done: model.Sync, table: str) -> model.Synced:
    return next(each for each in done.changes if each.table == table.strip('"'))


def names(table: str) -> list[str]:
    return [table.strip('"')]


# -- which tables ---------------------------------------------------------------------------------


def test_table_that_has_come_into_use_since_the_copy_is_level_too(
    source_url: str, target_url: str, level: Sync, run: Run
) -> None:
    execute(source_url, f"DELETE FROM {END_USERS}")
    carry_out(see(source_url, target_url), source_url, target_url)
    execute(source_url, END_USER.format("blocked one"))
    ends = ("--source", source_url, "--target", target_url)
    assert run("verify", *ends, "--allow-unchecked", "decryption").status == 3
    assert of(level(), END_USERS).inserted == 1
    assert run("verify", *ends, "--allow-unchecked", "decryption").status == 0
    assert_equal(source_url, target_url, names(END_USERS))


def test_table_that_is_used_no_more_is_emptied(source_url: str, target_url: str, level: Sync) -> None:
    carry_out(see(source_url, target_url, groups=frozenset({"spendlogs"})), source_url, target_url)
    count = int(ask(source_url, f"SELECT count(*) FROM {CREDENTIALS}"))
    execute(source_url, f"DELETE FROM {CREDENTIALS}")
    done = level(groups=frozenset({"spendlogs"}))
    assert (of(done, CREDENTIALS).deleted, count > 0) == (count, True)
    assert rows_of(target_url, "MishikaLLM_CredentialsTable") == rows_of(source_url, "MishikaLLM_CredentialsTable")


def test_table_that_was_left_out_stays_so(source_url: str, target_url: str, level: Sync) -> None:
    carry_out(see(source_url, target_url, exclude=("CredentialsTable",)), source_url, target_url)
    assert "MishikaLLM_CredentialsTable" not in {change.table for change in level().changes}


def test_schema_that_the_copy_has_made_is_level_by_itself(pair: Pair, clone: Clone, source_url: str, run: Run) -> None:
    execute(source_url, 'CREATE TABLE IF NOT EXISTS "_prisma_migrations" (id text PRIMARY KEY, name text)')
    target = clone(pair.new, "template0")
    ends = ("--source", source_url, "--target", target, "--yes")
    done = run("copy", "--create-schema", *ends)
    assert done.status == 0, done.err
    execute(source_url, NEW_KEY.format("later"))
    done = run("sync", *ends)
    assert done.status == 0, done.err
    assert ask(target, f"SELECT count(*) FROM {TOKEN} WHERE key_alias = 'later'") == 1
    execute(source_url, NEW_KEY.format("last"))
    done = run("cutover", *ends, "--method", "sync")
    assert done.status == 0, done.err
    assert ask(target, f"SELECT count(*) FROM {TOKEN} WHERE key_alias = 'last'") == 1


@pytest.mark.parametrize("created", [False, True])
def test_table_that_comes_into_use_while_the_target_follows_arrives(
    created: bool, pair: Pair, clone: Clone, source_url: str, target_url: str, run: Run
) -> None:
    target_url = clone(pair.new, "template0") if created else target_url
    ends = ("--source", source_url, "--target", target_url)
    execute(source_url, f"DELETE FROM {END_USERS}")
    assert run("copy", "--follow", *ends, "--yes", *(["--create-schema"] if created else [])).status == 0
    execute(source_url, END_USER.format("blocked one"))
    done = run("cutover", *ends, "--yes")
    assert done.status == 0, done.err
    assert_equal(source_url, target_url, names(END_USERS))
    execute(target_url, END_USER.format("blocked two"))
    done = run("rollback", *ends, "--yes")
    assert done.status == 0, done.err
    assert_equal(source_url, target_url, names(END_USERS))


def test_switch_by_sync_takes_what_has_come_into_use(source_url: str, target_url: str, run: Run) -> None:
    ends = ("--source", source_url, "--target", target_url)
    execute(source_url, f"DELETE FROM {END_USERS}")
    carry_out(see(source_url, target_url), source_url, target_url)
    execute(source_url, END_USER.format("blocked one"))
    done = run("cutover", *ends, "--yes")
    assert done.status == 0, done.err
    assert_equal(source_url, target_url, names(END_USERS))


# -- a target that is written to ------------------------------------------------------------------


def test_proxy_that_comes_while_somebody_is_asked_is_noticed_behind_the_lock(source_url: str, target_url: str) -> None:
    carry_out(see(source_url, target_url), source_url, target_url)
    ends, options = (endpoint(source_url, "source"), endpoint(target_url, "target")), sync.Options()
    scene, _ = sync.prepare(RULES, *ends, None, options=options)
    execute(source_url, f"UPDATE {TOKEN} SET blocked = true")
    execute(target_url, NEW_KEY.format("new"))
    with pytest.raises(errors.Refused) as caught:
        sync.carry_out(scene, *ends, options=options, emit=lambda event: None)
    assert [each.code for each in caught.value.findings] == ["target-has-newer-keys"]
    assert ask(target_url, f"SELECT count(*) FROM {TOKEN} WHERE key_alias = 'new' AND blocked IS NOT TRUE") == 1


def test_rows_of_a_proxy_are_remembered_over_runs_that_merge(source_url: str, target_url: str, run: Run) -> None:
    carry_out(see(source_url, target_url, groups=frozenset({"spendlogs"})), source_url, target_url)
    execute(target_url, NEW_KEY.format("mine"), NEW_LOG.format("mine", NOW))
    for options in ((), ("--only", "spendlogs")):
        done = run("copy", "--on-existing", "skip", "--source", source_url, "--target", target_url, "--yes", *options)
        assert done.status == 0, done.err
    done = run("sync", "--source", source_url, "--target", target_url, "--yes", "--delete-extra")
    assert done.status == 4, done.err
    assert "keys that the source does not have" in done.err or "1 key that the source does not have" in done.err
    assert "SpendLogs that the source does not have" in done.err


def test_rows_that_the_source_has_dropped_for_their_age_are_no_sign(source_url: str, target_url: str, run: Run) -> None:
    ends = ("--source", source_url, "--target", target_url, "--yes")
    carry_out(see(source_url, target_url, groups=frozenset({"spendlogs"})), source_url, target_url)
    execute(source_url, NEW_LOG.format("aged", NOW), NEW_LOG.format("kept", "'2999-01-01'"))
    assert run("sync", *ends).status == 0
    execute(source_url, f"DELETE FROM \"{LOGS}\" WHERE request_id <> 'kept'")
    done = run("sync", *ends)
    assert done.status == 0, done.err


def test_switch_by_sync_does_not_undo_what_a_proxy_has_written(source_url: str, target_url: str, run: Run) -> None:
    ends = ("--source", source_url, "--target", target_url)
    carry_out(see(source_url, target_url), source_url, target_url)
    execute(target_url, NEW_KEY.format("mine"))
    done = run("cutover", *ends, "--yes")
    assert (done.status, "has been written to" in done.err) == (7, True), done.err
    assert ask(target_url, f"SELECT count(*) FROM {TOKEN} WHERE key_alias = 'mine'") == 1


# -- what is written ------------------------------------------------------------------------------


def test_rows_of_an_open_transaction_are_not_written_twice(source_url: str, target_url: str, level: Sync) -> None:
    logs = selection.Wanted(groups=frozenset({"spendlogs"}))
    carry_out(see(source_url, target_url, groups=logs.groups), source_url, target_url)
    level(groups=logs.groups)
    with psycopg.connect(source_url) as other:
        other.execute("SELECT pg_current_xact_id()")
        execute(source_url, NEW_LOG.format("one", NOW), NEW_LOG.format("two", NOW))
        first = of(level(groups=logs.groups), LOGS)
        second = of(level(groups=logs.groups), LOGS)
    assert (first.how, first.inserted, first.updated) == ("visibility", 2, 0)
    assert (second.how, second.inserted, second.updated) == ("visibility", 0, 0)
    execute(source_url, f"UPDATE \"{LOGS}\" SET spend = spend + 1 WHERE request_id = 'one'")
    third = of(level(groups=logs.groups), LOGS)
    assert (third.inserted, third.updated) == (0, 1)
    assert_equal(source_url, target_url, [LOGS])


def test_rows_without_a_key_that_only_the_target_has_stay(source_url: str, target_url: str, level: Sync) -> None:
    for url in (source_url, target_url):
        execute(
            url, "CREATE TABLE notes (a int, b json)", """INSERT INTO notes SELECT 1, '{"x": 1}' FROM repeat('x', 2)"""
        )
    execute(source_url, """INSERT INTO notes VALUES (1, '{"x": 1}'), (1, '{"x": 1}'), (2, NULL)""")
    execute(target_url, "INSERT INTO notes VALUES (3, NULL), (3, NULL)")
    done = of(level(include=("notes",)), "notes")
    assert (done.inserted, done.deleted, done.extra) == (3, 0, 2)
    count = "SELECT string_agg(a::text, '' ORDER BY a) FROM notes"
    assert (ask(source_url, count), ask(target_url, count)) == ("1112", "111233")
    done = of(level(include=("notes",), delete_extra=True), "notes")
    assert (done.inserted, done.deleted) == (0, 2)
    assert_equal(source_url, target_url, ["notes"])


@pytest.mark.parametrize(
    ("kind", "one", "two"),
    [
        ("varchar(12)", "'a'", "'b'"),
        pytest.param("varchar", "'a'", "'b'", marks=pytest.mark.soak),
        ("numeric(10,2)", "1", "2"),
        pytest.param("date", "'2026-01-01'", "'2026-01-02'", marks=pytest.mark.soak),
        ("timestamp(3)", "'2026-01-01'", "'2026-01-02'"),
        pytest.param("bytea", "'a'", "'b'", marks=pytest.mark.soak),
        pytest.param("uuid", "md5('a')::uuid", "md5('b')::uuid", marks=pytest.mark.soak),
        pytest.param("bigint", "-4", "9", marks=pytest.mark.soak),
    ],
)
def test_values_of_every_type_change_places(
    kind: str, one: str, two: str, source_url: str, target_url: str, level: Sync
) -> None:
    for url in (source_url, target_url):
        execute(url, f"CREATE TABLE seats (id int PRIMARY KEY, team text NOT NULL REFERENCES {TEAM},"
                     f" place {kind} NOT NULL, UNIQUE (team, place))")  # fmt: skip
    team = f"(SELECT min(team_id) FROM {TEAM})"
    carry_out(see(source_url, target_url), source_url, target_url)
    execute(source_url, f"INSERT INTO seats VALUES (1, {team}, {one}), (2, {team}, {two})")
    level(include=("seats",))
    execute(source_url, "DELETE FROM seats", f"INSERT INTO seats VALUES (1, {team}, {two}), (2, {team}, {one})")
    assert of(level(include=("seats",)), "seats").updated == 2
    assert_equal(source_url, target_url, ["seats"])


def test_values_that_cannot_change_places_are_refused_only_when_they_do(
    source_url: str, target_url: str, level: Sync
) -> None:
    for url in (source_url, target_url):
        execute(url, "CREATE TABLE flags (id int PRIMARY KEY, up boolean NOT NULL UNIQUE, note text)")
    execute(source_url, "INSERT INTO flags VALUES (1, true), (2, false)")
    level(include=("flags",))
    execute(source_url, "UPDATE flags SET note = 'x'")
    assert of(level(include=("flags",)), "flags").updated == 2
    execute(source_url, "DELETE FROM flags", "INSERT INTO flags VALUES (1, false), (2, true)")
    with pytest.raises(errors.Refused, match="exchange values under flags_up_key"):
        level(include=("flags",), delete_extra=True)


def test_unique_column_of_the_target_alone_is_no_matter(source_url: str, target_url: str, level: Sync) -> None:
    carry_out(see(source_url, target_url), source_url, target_url)
    execute(target_url, f"ALTER TABLE {TOKEN} ADD COLUMN serial_number text UNIQUE")
    execute(source_url, f"UPDATE {TOKEN} SET blocked = NOT coalesce(blocked, false)")
    assert of(level(), TOKEN).updated > 0


def test_tables_of_history_that_reference_each_other_change_together(
    source_url: str, target_url: str, level: Sync
) -> None:
    for url in (source_url, target_url):
        execute(
            url,
            "CREATE TABLE a_orders (id int PRIMARY KEY, customer int NOT NULL)",
            "CREATE TABLE b_customers (id int PRIMARY KEY)",
            "ALTER TABLE a_orders ADD FOREIGN KEY (customer) REFERENCES b_customers",
        )
    both = ("a_orders", "b_customers")
    execute(source_url, "INSERT INTO b_customers VALUES (1), (2)", "INSERT INTO a_orders VALUES (1, 1), (2, 2)")
    level(include=both)
    assert_equal(source_url, target_url, list(both))
    execute(source_url, "DELETE FROM a_orders WHERE id = 1", "DELETE FROM b_customers WHERE id = 1")
    level(include=both)
    assert_equal(source_url, target_url, list(both))


def test_day_that_is_counted_anew_under_other_ids_arrives(source_url: str, target_url: str, level: Sync) -> None:
    usage = frozenset({"usage"})
    carry_out(see(source_url, target_url, groups=usage), source_url, target_url)
    # Two rows exchange all that makes them unique.
    execute(
        source_url,
        f"CREATE TEMP TABLE two AS SELECT * FROM {DAILY} ORDER BY id LIMIT 2;"
        f"DELETE FROM {DAILY} WHERE id IN (SELECT id FROM two);"
        "UPDATE two SET id = (SELECT id FROM two t WHERE t.id <> two.id);"
        f"INSERT INTO {DAILY} SELECT * FROM two",
    )
    assert of(level(groups=usage), DAILY).updated == 2
    assert_equal(source_url, target_url, names(DAILY))


def test_trigger_for_changed_rows_is_refused(source_url: str, target_url: str, level: Sync) -> None:
    execute(
        target_url,
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        f"CREATE TRIGGER touch BEFORE UPDATE ON {TOKEN} FOR EACH ROW EXECUTE FUNCTION touch()",
    )
    carry_out(see(source_url, target_url), source_url, target_url)
    with pytest.raises(errors.Refused) as caught:
        level()
    (finding,) = [each for each in caught.value.findings if each.severity == "refuse"]
    assert "fires for changed or removed rows" in finding.message
    execute(target_url, finding.fix)
    level()


def test_rows_that_hang_on_history_are_not_removed_with_it(source_url: str, target_url: str, level: Sync) -> None:
    execute(target_url, NEW_LOG.format("mine", NOW))
    execute(target_url, f'CREATE TABLE notes (log text REFERENCES "{LOGS}" ON DELETE CASCADE)')
    execute(target_url, "INSERT INTO notes VALUES ('mine')")
    with pytest.raises(errors.Refused, match="notes"):
        level(groups=frozenset({"spendlogs"}), delete_extra=True)
    assert ask(target_url, "SELECT count(*) FROM notes") == 1
