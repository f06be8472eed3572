"""Indexes that are taken away for the load: every one is there again, whatever came in between."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from tests import fix_faults
from tests.fix_faults import ADORNED, IN_RANGES, LOGS, FullDisk, Gate, Start, ask, indexes_of, ranges_landed, wait_until
from tests.fix_program import Ended, Run
from tests.fix_servers import Pair, assert_equal, tables_of

LEFT = {"MishikaLLM_CronJob", "_prisma_migrations"}

PUBLIC = """
SELECT string_agg(concat_ws(' ', kind, name), E'\n' ORDER BY kind, name) FROM (
  SELECT 'relation', relname FROM pg_class WHERE relnamespace = 'public'::regnamespace UNION ALL
  SELECT 'function', proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace UNION ALL
  SELECT 'type', typname FROM pg_type WHERE typnamespace = 'public'::regnamespace UNION ALL
  SELECT 'trigger', tgname FROM pg_trigger WHERE NOT tgisinternal UNION ALL
  SELECT 'constraint', conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace) found (kind, name)
"""


def arguments(source: str, target: str, *more: str) -> tuple[str, ...]:
    return ("copy", "--everything", "--yes", "--json", "--source", source, "--target", target, *IN_RANGES, *more)


def resumed(run: Run, source: str, target: str) -> Ended:
    return run("copy", "--resume", "--json", "--source", source, "--target", target)


def copied(source: str) -> list[str]:
    return [table for table in tables_of(source) if table not in LEFT]


def things(url: str) -> set[str]:
    return set(str(ask(url, PUBLIC)).splitlines())


def kept_definitions(target: str) -> int:
    return int(ask(target, "SELECT count(*) FROM mishika_migrate.index"))


def test_everything_is_as_before(long_url: str, target_url: str, start: Start, gate: Callable[[str], Gate]) -> None:
    ask(target_url, ADORNED)
    closed = gate("copy")
    before, public = indexes_of(target_url), things(target_url)
    program = start(*arguments(long_url, target_url))
    wait_until(closed.reached)
    during = indexes_of(target_url)
    closed.open()
    done = program.ended()
    assert done.status == 0, done.err
    assert '"a b"' not in during
    assert "EXCLUDE" in during  # no index can be made into an exclusion constraint
    assert_equal(long_url, target_url, copied(long_url))
    assert indexes_of(target_url) == before
    assert things(target_url) - public <= things(long_url)  # the views
    assert public <= things(target_url)
    assert kept_definitions(target_url) == 0
    names = [line["step"] for line in done.lines() if line["event"] == "step_finished" and line["kind"] == "BuildIndex"]
    assert f"index public.{LOGS} a b" in names


def test_data_that_an_index_cannot_hold_ends_with_5_and_all_that_is_needed_to_mend_it(
    long_url: str, target_url: str, run: Run
) -> None:
    ask(target_url, f"CREATE UNIQUE INDEX once ON \"{LOGS}\" (call_type) WHERE request_id LIKE 'long 1%'")
    before = indexes_of(target_url)
    done = run(*arguments(long_url, target_url))
    said = " ".join(done.err.split())
    assert done.status == 5, done.err
    definition = (
        f"CREATE UNIQUE INDEX once ON public.\"{LOGS}\" USING btree (call_type) WHERE (request_id ~~ 'long 1%'::text)"
    )
    assert f"index once, which is {definition}" in said
    assert "mishika-migrate copy --resume" in said
    assert "once" not in indexes_of(target_url)
    assert_equal(long_url, target_url, copied(long_url))
    again = resumed(run, long_url, target_url)
    assert again.status == 5, again.err
    ask(long_url, f"UPDATE \"{LOGS}\" SET call_type = request_id WHERE request_id LIKE 'long 1%'")
    again = resumed(run, long_url, target_url)
    assert again.status == 0, again.err
    assert_equal(long_url, target_url, copied(long_url))
    assert indexes_of(target_url) == before
    assert kept_definitions(target_url) == 0


@pytest.mark.soak
def test_row_that_came_twice_meanwhile_is_named_and_mended_on_the_target(
    long_url: str, target_url: str, start: Start, run: Run, gate: Callable[[str], Gate]
) -> None:
    """The primary key is away during the load: a proxy that writes to the target already may double a row."""
    before = indexes_of(target_url)
    closed = gate("copy")
    program = start(*arguments(long_url, target_url))
    wait_until(lambda: closed.reached() and ranges_landed(target_url) > 1)
    ask(
        target_url,
        f'INSERT INTO "{LOGS}" (request_id, call_type, "startTime", "endTime") SELECT request_id, \'twice\','
        f' now(), now() FROM "{LOGS}" LIMIT 1',
    )
    closed.open()
    done = program.ended()
    assert done.status == 5, done.err
    said = " ".join(done.err.split())
    assert f"index {LOGS}_pkey, which is CREATE UNIQUE INDEX" in said and "copy --resume" in said
    ask(target_url, f"DELETE FROM \"{LOGS}\" WHERE call_type = 'twice'")
    again = resumed(run, long_url, target_url)
    assert again.status == 0, again.err
    assert_equal(long_url, target_url, copied(long_url))
    assert indexes_of(target_url) == before
    assert fix_faults.state(target_url) == "finished"


# More than a kilobyte a row, and by its fill factor a page each: more than there is room for.
WIDE = f"""
CREATE FUNCTION wide(text) RETURNS text IMMUTABLE AS $$
  SELECT string_agg(md5($1 || n), '') FROM generate_series(1, 40) n $$ LANGUAGE sql;
CREATE INDEX wide ON "{LOGS}" (wide(request_id)) WITH (fillfactor = 10);
COMMENT ON INDEX wide IS 'the largest'
"""


def test_full_disk_under_an_index_names_it_and_goes_on_once_there_is_room(
    long_url: str, target_url: str, full_disk: Callable[[str], FullDisk], run: Run
) -> None:
    ask(target_url, WIDE)
    disk = full_disk("wide")
    before = indexes_of(target_url)
    done = run(*arguments(long_url, target_url))
    said = " ".join(done.err.split())
    assert done.status == 5, done.err
    definition = f"CREATE INDEX wide ON public.\"{LOGS}\" USING btree (public.wide(request_id)) WITH (fillfactor='10')"
    assert f"index wide, which is {definition}" in said
    assert "Free space on the server." in said and "mishika-migrate copy --resume" in said
    assert "wide" not in indexes_of(target_url)
    assert_equal(long_url, target_url, copied(long_url))
    disk.make_room()
    again = resumed(run, long_url, target_url)
    assert again.status == 0, again.err
    kinds = {line["kind"] for line in again.lines() if line["event"] == "step_finished"}
    assert kinds.isdisjoint({"CopyTable", "DropIndexes"})
    assert_equal(long_url, target_url, copied(long_url))
    assert indexes_of(target_url) == before
    assert kept_definitions(target_url) == 0


@pytest.fixture
def writer(pair: Pair, target_url: str) -> str:
    """A role that may write every row and owns no table."""
    with psycopg.connect(target_url, autocommit=True) as session:
        session.execute("DROP ROLE IF EXISTS writer")
        session.execute("CREATE ROLE writer LOGIN")
        session.execute("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO writer")
        session.execute("GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA public TO writer")
        session.execute("GRANT USAGE, CREATE ON SCHEMA public TO writer")
        name = session.info.dbname
        session.execute(f'GRANT CREATE ON DATABASE "{name}" TO writer'.encode())
    return target_url.replace("postgres@", "writer@")


def test_who_does_not_own_the_tables_keeps_their_indexes_and_says_so(
    long_url: str, target_url: str, writer: str, run: Run
) -> None:
    before = "SELECT array_agg(oid ORDER BY oid) FROM pg_class WHERE relkind = 'i' AND relname ~ 'Mishika'"
    oids = ask(target_url, before)
    done = run(*arguments(long_url, writer))
    assert done.status == 0, done.err
    assert f"writer does not own {LOGS} on the target" in " ".join(done.err.split())
    assert ask(target_url, before) == oids
    assert_equal(long_url, target_url, copied(long_url))


@pytest.fixture
def halfway(long_url: str, target_url: str, start: Start, gate: Callable[[str], Gate]) -> tuple[str, str]:
    """A run that was killed while indexes were away; source and target."""
    closed = gate("copy")
    program = start(*arguments(long_url, target_url))
    wait_until(lambda: closed.reached() and ranges_landed(target_url) > 1)
    program.kill()
    closed.open()
    return long_url, target_url


@pytest.mark.parametrize("verb", ["cleanup", "complete"])
def test_ledger_that_alone_knows_indexes_is_not_dropped(verb: str, halfway: tuple[str, str], run: Run) -> None:
    source, target = halfway
    kept = kept_definitions(target)
    assert kept > 0
    done = run(verb, "--yes", "--target", target, *(["--source", source] if verb == "complete" else []))
    assert (done.status, "only the ledger knows what they were" in done.err) == (4, True), done.err
    assert kept_definitions(target) == kept
    assert resumed(run, source, target).status == 0
    assert run("cleanup", "--yes", "--target", target).status == 0


def test_invalid_index_of_the_right_name_is_built_anew(halfway: tuple[str, str], run: Run) -> None:
    source, target = halfway
    name = "MishikaLLM_SpendLogs_end_user_idx"
    ask(
        target,
        str(ask(target, f"SELECT definition::json ->> 'create' FROM mishika_migrate.index WHERE name = '{name}'")),
    )
    ask(target, f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '\"{name}\"'::regclass")
    again = resumed(run, source, target)
    assert again.status == 0, again.err
    assert ask(target, f"SELECT indisvalid FROM pg_index WHERE indexrelid = '\"{name}\"'::regclass")
    assert_equal(source, target, copied(source))


def test_index_with_another_definition_is_named_and_refused(halfway: tuple[str, str], run: Run) -> None:
    source, target = halfway
    ask(target, f'CREATE INDEX "MishikaLLM_SpendLogs_end_user_idx" ON "{LOGS}" (end_user, spend)')
    for words, status in ((("reset", "--yes", "--target", target), 4), (("copy", "--resume"), 5)):
        ends = ("--source", source, "--target", target) if status == 5 else ()
        done = run(*words, *ends)
        assert (done.status, "is there with another definition" in done.err) == (status, True), done.err
    ask(target, 'DROP INDEX "MishikaLLM_SpendLogs_end_user_idx"')
    assert resumed(run, source, target).status == 0


def test_who_may_not_create_in_the_schema_keeps_the_indexes(
    long_url: str, target_url: str, writer: str, run: Run
) -> None:
    views = "SELECT string_agg(format('CREATE VIEW %%I AS %%s', viewname, definition), ' ') FROM pg_views WHERE"
    ask(target_url, str(ask(long_url, f"{views} schemaname = 'public'", {})))
    ask(target_url, "REVOKE CREATE ON SCHEMA public FROM writer, PUBLIC")
    ask(target_url, f'ALTER TABLE "{LOGS}" OWNER TO writer')
    done = run(*arguments(long_url, writer))
    assert "may create nothing in schema public" in " ".join(done.err.split()), done.err
    assert done.status == 0, done.err
