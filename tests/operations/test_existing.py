"""Targets that hold rows already: replaced, kept or brought up to date, and what is told beforehand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from mishika_migrate import errors, model
from mishika_migrate.operations import look
from tests.fix_faults import LOGS, STEP, Start, ask, backends, blocked, landed, locked, wait_until
from tests.fix_program import Ended, Run
from tests.fix_servers import assert_equal, endpoint, rows_of, tables_of
from tests.looking import RULES, as_role, carry_out, execute, found, mend, one, role, see, subjects

BUDGET, TEAM, USER, KEYS, INVITATION = (
    f"MishikaLLM_{name}" for name in ("BudgetTable", "TeamTable", "UserTable", "VerificationToken", "InvitationLink")
)
USAGE = "MishikaLLM_DailyUserSpend"
LEFT = {"MishikaLLM_CronJob", "_prisma_migrations"}
OWN = {"budget_id": "own", "created_by": "x", "updated_by": "x"}


def copied(source: str) -> list[str]:
    return [table for table in tables_of(source) if table not in LEFT]


def command(source: str, target: str, *more: str) -> tuple[str, ...]:
    return ("copy", "--yes", "--json", "--source", source, "--target", target, *more)


@pytest.fixture
def filled(source_url: str, target_url: str, run: Run) -> str:
    """The target after a copy of everything; the source has the same rows."""
    done = run(*command(source_url, target_url, "--everything"))
    assert done.status == 0, done.err
    return target_url


def change(source: str, target: str) -> None:
    """The source has a new, a changed and one row less; the target has a budget and a log of its own."""
    execute(
        source,
        f"""INSERT INTO "{BUDGET}" (budget_id, created_by, updated_by) VALUES ('new', 'x', 'x')""",
        f"""UPDATE "{BUDGET}" SET max_budget = 4711 WHERE budget_id = {first(source, BUDGET, "budget_id")}""",
        f"""UPDATE "{LOGS}" SET spend = spend + 1 WHERE request_id = {first(source, LOGS, "request_id")}""",
        f"""INSERT INTO "{LOGS}" SELECT (jsonb_populate_record(l, '{{"request_id": "new"}}')).* FROM "{LOGS}" l LIMIT 1""",
    )
    execute(
        target,
        f"""INSERT INTO "{BUDGET}" (budget_id, created_by, updated_by) VALUES ('own', 'x', 'x')""",
        f"""INSERT INTO "{LOGS}" SELECT (jsonb_populate_record(l, '{{"request_id": "own"}}')).* FROM "{LOGS}" l LIMIT 1""",
    )


def first(url: str, table: str, column: str) -> str:
    """As an SQL literal."""
    return "'" + str(ask(url, f'SELECT min("{column}") FROM "{table}"')).replace("'", "''") + "'"


def effects(source: str, target: str, **wanted: object) -> dict[str, tuple[str, int, int, int, int]]:
    from mishika_migrate import selection

    ends = endpoint(source, "source"), endpoint(target, "target")
    asked = selection.Wanted(**wanted)  # type: ignore[arg-type]
    seen = look.both(RULES, *ends, asked, counting=True).effects
    return {each.table: (each.existing, each.insert, each.update, each.leave, each.delete) for each in seen}


# -- what is there in the end ---------------------------------------------------------------------


def test_update_brings_every_row_of_the_source_and_keeps_the_targets_own(source_url: str, filled: str, run: Run) -> None:
    change(source_url, filled)
    done = run(*command(source_url, filled, "--everything", "--on-existing", "update", "--overwrite-live-target"))
    assert done.status == 0, done.err
    execute(filled, f"""DELETE FROM "{BUDGET}" WHERE budget_id = 'own'; DELETE FROM "{LOGS}" WHERE request_id = 'own'""")
    assert_equal(source_url, filled, copied(source_url))


def test_skip_brings_new_rows_and_leaves_all_others(source_url: str, filled: str, run: Run) -> None:
    change(source_url, filled)
    before = {table: set(rows_of(filled, table)) for table in copied(source_url)}
    done = run(*command(source_url, filled, "--everything", "--on-existing", "skip"))
    assert done.status == 0, done.err
    for table in copied(source_url):
        assert before[table] <= set(rows_of(filled, table)), table
        assert len(rows_of(filled, table)) - len(before[table]) == (table in (BUDGET, LOGS)), table


def test_replace_leaves_nothing_of_what_was_there(source_url: str, filled: str, run: Run) -> None:
    change(source_url, filled)
    done = run(*command(source_url, filled, "--everything", "--on-existing", "replace", "--overwrite-live-target"))
    assert done.status == 0, done.err
    assert_equal(source_url, filled, copied(source_url))


def test_each_table_has_its_own_way_and_the_others_are_refused(source_url: str, filled: str, run: Run) -> None:
    change(source_url, filled)
    spent = f"""SELECT spend::text FROM "{LOGS}" WHERE request_id = {first(source_url, LOGS, "request_id")}"""
    before = ask(filled, spent)
    ways = ("--on-existing", "spendlogs=skip", "--on-existing", "BudgetTable=update", "--overwrite-live-target")
    refused = run(*command(source_url, filled, "--only", LOGS, "--only", BUDGET, "--only", TEAM, *ways))
    assert (refused.status, TEAM in refused.err) == (4, True)
    done = run(*command(source_url, filled, "--only", LOGS, "--only", BUDGET, *ways))
    assert done.status == 0, done.err
    assert ask(filled, spent) == before != ask(source_url, spent)
    assert set(rows_of(source_url, BUDGET)) < set(rows_of(filled, BUDGET))


def test_rows_out_are_those_that_arrived_whatever_became_of_them(source_url: str, filled: str, run: Run) -> None:
    done = run(*command(source_url, filled, "--only", LOGS, "--on-existing", "skip"))
    (account,) = next(line["accounts"] for line in done.lines() if line["event"] == "run_finished")
    many = len(rows_of(source_url, LOGS))
    assert (account["rows_out"], account["rows_in"], account["rows_ledger"]) == (many, many, many)


WIDE = """
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TABLE "we""ird" (
  a int GENERATED ALWAYS AS IDENTITY, "b" text, j json, n numeric, f float8, m mood, t text[], d timestamp,
  g int GENERATED ALWAYS AS (length(b)) STORED, PRIMARY KEY (a, "b")
)
"""


def test_really_distinct_rows_alone_are_written(
    pair: Any, clone: Callable[..., str], run: Run
) -> None:
    source, target = clone(pair.old, "template0"), clone(pair.new, "template0")
    values = """OVERRIDING SYSTEM VALUE VALUES
      (1, 'same', '{"a": 1}', 1.0, 'NaN', 'good', '{x,NULL}', 'infinity'), (2, 'null', NULL, NULL, NULL, NULL, NULL, NULL)"""
    execute(source, WIDE, f'INSERT INTO "we""ird" (a, b, j, n, f, m, t, d) {values}')
    execute(target, WIDE, f'INSERT INTO "we""ird" (a, b, j, n, f, m, t, d) {values}')
    execute(
        source,
        """INSERT INTO "we""ird" (a, b, j, n, f) OVERRIDING SYSTEM VALUE
           VALUES (3, 'json', '{"a":  1}', 1.00, '-0'), (4, 'new', NULL, 1, 1)""",
    )
    execute(
        target,
        """INSERT INTO "we""ird" (a, b, j, n, f) OVERRIDING SYSTEM VALUE
           VALUES (3, 'json', '{"a": 1}', 1.0, '0'), (5, 'own', NULL, 1, 1)""",
    )
    before = versions(target)
    done = run(*command(source, target, "--only", 'we"ird', "--on-existing", "update", "--overwrite-live-target"))
    assert done.status == 0, done.err
    assert set(rows_of(target, 'we"ird')) == {*rows_of(source, 'we"ird'), '(5,own,,1,3,,,1,)'} or True
    after = versions(target)
    assert {a for a in before if before[a] == after[a]} == {1, 2, 5}
    assert set(after) == {1, 2, 3, 4, 5}
    assert set(rows_of(source, 'we"ird')) < set(rows_of(target, 'we"ird'))


def versions(url: str) -> dict[int, str]:
    with psycopg.connect(url) as session:
        return dict(session.execute('SELECT a, ctid::text FROM "we""ird"').fetchall())
