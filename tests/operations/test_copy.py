"""`copy` between two real servers, end to end."""

from __future__ import annotations

from tests.fix_program import Run
from tests.fix_servers import assert_equal, tables_of

LEFT = {"MishikaLLM_CronJob", "_prisma_migrations"}


def test_every_table_arrives_row_for_row(source_url: str, target_url: str, run: Run) -> None:
    done = run("copy", "--everything", "--yes", "--source", source_url, "--target", target_url)
    assert done.status == 0, done.err
    assert_equal(source_url, target_url, [table for table in tables_of(source_url) if table not in LEFT])
