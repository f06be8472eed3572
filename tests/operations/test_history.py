"""Recent history first, old history later: together they are all of it, and each row is there once."""

from __future__ import annotations

import psycopg
import pytest

from tests.fix_faults import LOGS, Start, ask, backends, blocked, locked, wait_until
from tests.fix_program import Run
from tests.fix_servers import assert_equal, rows_of, tables_of

MOMENTS = f'SELECT percentile_disc(0.8) WITHIN GROUP (ORDER BY "startTime")::text FROM "{LOGS}"'


@pytest.fixture
def moment(source_url: str) -> str:
    """A fifth of the logs are not older than this."""
    with psycopg.connect(source_url, autocommit=True) as session:
        session.execute(f'ANALYZE "{LOGS}"'.encode())
    return str(ask(source_url, MOMENTS)).replace(" ", "T")


def share(url: str, condition: str) -> list[str]:
    query = f'SELECT array_agg(t::text ORDER BY request_id COLLATE "C") FROM "{LOGS}" t WHERE "startTime" {condition}'
    return list(ask(url, query) or [])


def arguments(source: str, target: str, *more: str) -> tuple[str, ...]:
    return ("copy", "--yes", "--json", "--batch-size", "1MB", "--source", source, "--target", target, *more)


def test_recent_history_first_and_the_rest_later(source_url: str, target_url: str, run: Run, moment: str) -> None:
    done = run(*arguments(source_url, target_url, "--spendlogs-since", moment))
    assert done.status == 0, done.err
    recent = share(source_url, f">= '{moment}'")
    assert share(target_url, "IS NOT NULL") == recent
    assert recent
    later = run(*arguments(source_url, target_url, "--only", "spendlogs", "--spendlogs-before", moment))
    assert later.status == 0, later.err
    assert_equal(source_url, target_url, [LOGS])
    again = run(*arguments(source_url, target_url, "--only", "spendlogs", "--spendlogs-before", moment))
    assert again.status == 4


def test_plan_says_what_stays_behind_and_reads_by_time(source_url: str, target_url: str, run: Run, moment: str) -> None:
    done = run("plan", "--json", "--source", source_url, "--target", target_url, "--spendlogs-since", moment)
    assert done.status == 0, done.err
    plan = done.lines()[0]
    chosen = next(each for each in plan["chosen"] if each["table"] == LOGS)
    assert chosen["within"] == {
        "column": "startTime",
        "since": moment if "." in moment else f"{moment}.000",
        "before": None,
    }
    whole = ask(source_url, f'SELECT count(*) FROM "{LOGS}"')
    assert 0.1 * whole < chosen["rows"] < 0.3 * whole
    steps = [step for stage in plan["stages"] for step in stage["steps"] if step.get("target", {}).get("name") == LOGS]
    assert all(step["pages"] is None for step in steps if step["kind"] == "CopyTable")


@pytest.mark.parametrize("change", ["DELETE FROM", pytest.param("UPDATE", marks=pytest.mark.soak)])
def test_resume_of_a_part_leaves_the_other_part_alone(
    change: str, source_url: str, target_url: str, run: Run, start: Start, moment: str
) -> None:
    first = run(*arguments(source_url, target_url, "--spendlogs-since", moment))
    assert first.status == 0, first.err
    with locked(target_url, LOGS, "SHARE UPDATE EXCLUSIVE"):  # ANALYZE wants it too
        program = start(*arguments(source_url, target_url, "--only", "spendlogs", "--spendlogs-before", moment))
        wait_until(lambda: blocked(target_url))
        program.kill()
        wait_until(lambda: backends(target_url) == 0)
    some = f'(SELECT min(request_id) FROM "{LOGS}" WHERE "startTime" < \'{moment}\')'
    changed = f'{change} "{LOGS}" {"SET spend = -1" if change == "UPDATE" else ""} WHERE request_id = {some}'
    with psycopg.connect(source_url) as session:
        session.execute(changed.encode())
    done = run("copy", "--resume", "--json", "--source", source_url, "--target", target_url)
    assert done.status == 0, done.err
    assert_equal(source_url, target_url, [LOGS])


@pytest.mark.soak
def test_reset_of_a_part_leaves_the_other_part_alone(
    source_url: str, target_url: str, run: Run, start: Start, moment: str
) -> None:
    first = run(*arguments(source_url, target_url, "--spendlogs-since", moment))
    assert first.status == 0, first.err
    before = {table: rows_of(target_url, table) for table in tables_of(target_url)}
    with locked(target_url, LOGS, "SHARE UPDATE EXCLUSIVE"):
        program = start(*arguments(source_url, target_url, "--only", "spendlogs", "--spendlogs-before", moment))
        wait_until(lambda: blocked(target_url))
        program.kill()
        wait_until(lambda: backends(target_url) == 0)
    done = run("reset", "--yes", "--target", target_url)
    assert done.status == 0, done.err
    assert {table: rows_of(target_url, table) for table in tables_of(target_url)} == before
