"""The matrix with live counts, and what a target's ledger says."""

from __future__ import annotations

import pytest

from mishika_migrate import errors, matrix, model
from mishika_migrate.operations import books
from mishika_migrate.pg import connect, ledger
from tests.fix_faults import ask
from tests.fix_program import Run
from tests.fix_servers import endpoint


def test_tables_without_a_source_have_no_counts() -> None:
    listed = books.tables(matrix.load(None), None)
    assert len(listed) == 23
    assert {row.rows for row in listed} == {None}


def test_tables_of_a_source_lists_strangers_last_and_no_migrations(source_url: str) -> None:
    ask(source_url, "CREATE TABLE a_stranger (id int)")
    listed = books.tables(matrix.load(None), endpoint(source_url, "source"))
    assert [row.table for row in listed[23:]] == ["a_stranger"]
    assert listed[23].need == "unknown"


def test_table_that_the_source_lacks_has_no_count(source_url: str) -> None:
    ask(source_url, 'DROP TABLE "MishikaLLM_ErrorLogs"')
    listed = {row.table: row for row in books.tables(matrix.load(None), endpoint(source_url, "source"))}
    assert listed["MishikaLLM_ErrorLogs"].rows is None


def test_status_of_a_target_without_a_ledger(target: model.Endpoint) -> None:
    assert books.status(target) == books.Status(exists=False, runs=())


def test_run_whose_plan_another_version_wrote_is_still_told(
    source_url: str, target_url: str, target: model.Endpoint, run: Run
) -> None:
    assert run("copy", "--yes", "--source", source_url, "--target", target_url).status == 0
    ask(target_url, "UPDATE mishika_migrate.run SET state = 'stopped', plan = '{}'")
    found = books.status(target)
    assert found.unfinished == found.runs[0].id
    assert found.waiting == ()


def test_lock_of_another_session_is_told_and_spared(
    source_url: str, target_url: str, target: model.Endpoint, run: Run
) -> None:
    assert run("copy", "--yes", "--source", source_url, "--target", target_url).status == 0
    ask(target_url, "UPDATE mishika_migrate.run SET state = 'running'")
    assert books.status(target).working == ""
    with connect.session(target, name="mishika-migrate/other/watch") as session:
        ledger.lock(session, target)
        assert "mishika-migrate/other/watch" in books.status(target).working
        for forbidden in (books.cleanup, books.refuse_while_working):
            with pytest.raises(errors.Refused, match="another run is working"):
                forbidden(target)
    books.cleanup(target)  # the server may not have heard yet that the other one has ended
    assert not books.status(target).exists


def test_tables_of_an_unfinished_run_are_counted_in_steps(
    source_url: str, target_url: str, target: model.Endpoint, run: Run
) -> None:
    done = run("copy", "--yes", "--include-spendlogs", "--source", source_url, "--target", target_url)
    assert done.status == 0, done.err
    tallies = {tally.table: tally for tally in books.status(target).tables}
    assert (tallies["MishikaLLM_SpendLogs"].rows, tallies["MishikaLLM_SpendLogs"].planned) == (600, 1)
    ask(target_url, "UPDATE mishika_migrate.run SET state = 'stopped'")
    ask(target_url, "DELETE FROM mishika_migrate.step WHERE \"table\" = 'MishikaLLM_SpendLogs'")
    found = books.status(target)
    assert found.waiting == ("MishikaLLM_SpendLogs",)
    tallies = {tally.table: tally for tally in found.tables}
    assert (tallies["MishikaLLM_SpendLogs"].rows, tallies["MishikaLLM_SpendLogs"].steps) == (0, 0)
    assert tallies["MishikaLLM_VerificationToken"] == model.Tally(
        table="MishikaLLM_VerificationToken", rows=300, bytes=tallies["MishikaLLM_VerificationToken"].bytes,
        steps=1, planned=1,
    )  # fmt: skip


# -- what others have put there, and what is not there any more -----------------------------------


@pytest.fixture
def kept(target_url: str, target: model.Endpoint) -> str:
    """A target with a ledger in which nothing has happened."""
    with connect.session(target, name="test") as session:
        ledger.create(session)
    return target_url


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("CREATE TABLE mishika_migrate.mine (id serial PRIMARY KEY)", "sequence mishika_migrate.mine_id_seq, table"),
        ("CREATE VIEW mishika_migrate.v AS SELECT 1", "view mishika_migrate.v"),
        ("CREATE FUNCTION mishika_migrate.f() RETURNS int RETURN 1", "function mishika_migrate.f()"),
        ("CREATE TYPE mishika_migrate.mood AS ENUM ('ok')", "type mishika_migrate.mood"),
        ("CREATE VIEW public.runs AS SELECT id FROM mishika_migrate.run", "view runs"),
        (
            "CREATE TABLE public.note (run text REFERENCES mishika_migrate.run)",
            "constraint note_run_fkey on table note",
        ),
    ],
)
def test_cleanup_takes_nothing_of_others_along(
    made: str, words: str, kept: str, target: model.Endpoint, run: Run
) -> None:
    ask(kept, made)
    with pytest.raises(errors.Refused, match="what is not this tool's: ") as caught:
        books.cleanup(target)
    assert words in caught.value.message.replace("public.", "")
    done = run("cleanup", "--yes", "--target", kept)
    assert done.status == 4
    assert ask(kept, "SELECT count(*) FROM mishika_migrate.run") == 0


def test_own_indexes_and_statistics_are_no_strangers(kept: str, target: model.Endpoint) -> None:
    ask(kept, "CREATE INDEX ON mishika_migrate.step (finished)")
    books.cleanup(target)
    assert ask(kept, "SELECT to_regnamespace('mishika_migrate') IS NULL")


@pytest.mark.parametrize("table", ledger.TABLES)
def test_ledger_that_lacks_a_table_is_told_and_removed(table: str, kept: str, target: model.Endpoint, run: Run) -> None:
    ask(kept, f"DROP TABLE mishika_migrate.{table} CASCADE")
    assert books.status(target) == books.Status(exists=True, runs=(), missing=(table,))
    told = run("status", "--target", kept)
    assert told.out.startswith("The ledger on ")
    assert f"is incomplete: table {table} missing." in told.out
    assert run("status", "--json", "--target", kept).lines()[0]["missing"] == [table]
    done = run("cleanup", "--yes", "--target", kept)
    assert done.status == 0, done.err
    assert "whether a run is unfinished is not known" in done.err
    assert ask(kept, "SELECT to_regnamespace('mishika_migrate') IS NULL")


def test_empty_schema_of_that_name_is_removed(target_url: str, target: model.Endpoint) -> None:
    ask(target_url, "CREATE SCHEMA mishika_migrate")
    assert books.status(target).missing == ledger.TABLES
    books.cleanup(target)
    assert not books.status(target).exists
