"""What a server tells of itself: rows written, sums, and the sessions of others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal

import psycopg
import pytest

from mishika_migrate import model
from mishika_migrate.pg import activity, connect
from tests.fix_faults import ask, wait_until
from tests.fix_servers import Clone, Pair, endpoint
from tests.looking import as_role, role


@pytest.fixture
def url(pair: Pair, clone: Clone) -> str:
    return clone(pair.old, "template0")


@pytest.fixture
def session(url: str) -> Iterator[connect.Session]:
    with connect.session(endpoint(url, "source"), name="mishika-migrate/test") as opened:
        yield opened


# -- rows and sums --------------------------------------------------------------------------------


def test_counters_add_up_all_writes_and_those_of_partitions(url: str, session: connect.Session) -> None:
    ask(url, "CREATE TABLE plain (n int); CREATE TABLE still (n int)")
    ask(url, "CREATE TABLE whole (n int) PARTITION BY RANGE (n)")
    ask(url, "CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (9)")
    ask(url, "CREATE TABLE other PARTITION OF whole DEFAULT")
    ask(url, "INSERT INTO plain VALUES (1), (2), (3); UPDATE plain SET n = 4; DELETE FROM plain WHERE n = 4")
    ask(url, "INSERT INTO whole VALUES (1), (10)")
    wanted = {"plain": 9, "still": 0, "whole": 2}
    tables = [*wanted, "missing"]
    wait_until(lambda: activity.counters(session, "public", tables) == wanted)


def test_counters_are_new_ones_within_one_transaction_too(url: str, session: connect.Session) -> None:
    ask(url, "CREATE TABLE t (n int)")
    with connect.transaction(session):
        assert activity.counters(session, "public", ["t"]) == {"t": 0}
        ask(url, "INSERT INTO t VALUES (1)")
        wait_until(lambda: activity.counters(session, "public", ["t"]) == {"t": 1})


def test_sums_are_of_numbers_that_may_be_read_and_take_no_offence(pair: Pair, url: str) -> None:
    reader = role(pair.old)
    ask(url, "CREATE TABLE t (f float8, n numeric, i int, words text, secret int)")
    ask(url, "INSERT INTO t VALUES (0.1, 1, 1), (0.2, 2, NULL), ('NaN', 'NaN', 3), ('Infinity', 3, 4)")
    ask(url, "INSERT INTO t VALUES ('-Infinity', NULL, NULL)")
    ask(url, 'CREATE TABLE closed (n int); CREATE TABLE "per%cent" (n int)')
    ask(url, f'GRANT SELECT (f, n, i, words) ON t TO "{reader}"; GRANT SELECT ON "per%cent" TO "{reader}"')
    asked = [("t", name) for name in ("f", "n", "i", "words", "secret", "gone")]
    with connect.session(endpoint(as_role(url, reader), "source"), name="mishika-migrate/test") as session:
        columns = activity.summable(session, "public", [*asked, ("closed", "n"), ("per%cent", "n"), ("gone", "n")])
        assert set(columns) == {("t", "f"), ("t", "n"), ("t", "i"), ("per%cent", "n")}
        assert activity.sums(session, "public", columns) == {
            ("t", "f"): Decimal("0.3"),
            ("t", "n"): 6,
            ("t", "i"): 8,
            ("per%cent", "n"): 0,
        }
        assert activity.sums(session, "public", ()) == {}


# -- sessions -------------------------------------------------------------------------------------


def test_visitors_are_others_of_this_database_and_what_they_ask_is_not_told(
    pair: Pair, url: str, session: connect.Session
) -> None:
    assert activity.visitors(session) == ()
    with (
        closing(psycopg.connect(url, application_name="writer")) as writer,
        closing(psycopg.connect(url, application_name="mishika-migrate/x/watch")),
        closing(psycopg.connect(pair.old.url(), application_name="elsewhere")),
    ):
        (waiting,) = activity.visitors(session)
        assert (waiting.application, waiting.user, waiting.client) == ("writer", "postgres", "local")
        assert (waiting.pid, waiting.hidden) == (writer.info.backend_pid, False)
        writer.execute("CREATE TABLE secret_name (n int)")
        (busy,) = activity.visitors(session)
        assert (busy.state, busy.writing, waiting.writing) == ("idle in transaction", True, False)
        assert busy.asked is not None and busy.connected is not None and 0 <= busy.asked <= busy.connected
        assert "secret_name" not in repr(busy)
    wait_until(lambda: activity.visitors(session) == ())


def only_visitor(session: connect.Session) -> model.Visitor:
    """Once those that have just left are gone: a backend ends a moment after its client."""
    wait_until(lambda: len(activity.visitors(session)) == 1)
    (seen,) = activity.visitors(session)
    return seen


def test_visitors_of_another_role_are_hidden_without_pg_monitor(pair: Pair, url: str) -> None:
    reader = role(pair.old)
    with (
        closing(psycopg.connect(url, application_name="proxy")),
        connect.session(endpoint(as_role(url, reader), "source"), name="mishika-migrate/test") as session,
    ):
        seen = only_visitor(session)
        assert (seen.application, seen.user, seen.hidden) == ("proxy", "postgres", True)
        assert (seen.client, seen.state, seen.connected, seen.asked) == ("", "", None, None)
        ask(url, f'GRANT pg_monitor TO "{reader}"')
        seen = only_visitor(session)
        assert (seen.client, seen.hidden) == ("local", False)
