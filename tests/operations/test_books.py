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
    books.cleanup(target)
    assert not books.status(target).exists
