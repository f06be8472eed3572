"""What an exported snapshot promises, and how a later one tells what has changed since."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import psycopg
import pytest

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, snapshot
from tests.fix_faults import HOLDER, ask, backends, terminate, wait_until
from tests.fix_servers import Pair, endpoint

T = model.TableName(schema="public", name="t")


@pytest.fixture
def url(source_url: str) -> str:
    ask(source_url, "CREATE TABLE t (n int PRIMARY KEY, v int DEFAULT 0); INSERT INTO t SELECT generate_series(1, 10)")
    return source_url


@pytest.fixture
def holder(url: str) -> Iterator[snapshot.Holder]:
    held = snapshot.Holder(endpoint(url, "source"), run="test")
    yield held
    held.release()


def reading(url: str, holder: snapshot.Holder) -> AbstractContextManager[connect.Session]:
    return snapshot.reader(endpoint(url, "source"), name="test", snapshot=holder.name, state=holder.state, settings={})


def changed(url: str, horizon: str) -> tuple[int, int]:
    with connect.session(endpoint(url, "source"), name="test") as session:
        return snapshot.changed_since(session, T, horizon=horizon, partitioned=False)


def test_reader_sees_what_the_holder_saw(url: str, holder: snapshot.Holder) -> None:
    ask(url, "DELETE FROM t")
    with reading(url, holder) as session:
        assert session.execute("SELECT count(*) FROM public.t").fetchone() == (10,)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            session.execute("DELETE FROM public.t")
    assert backends(url, "test") == 0


def test_reader_of_a_snapshot_that_is_gone_says_so(url: str, holder: snapshot.Holder) -> None:
    assert terminate(url, HOLDER) == 1
    wait_until(lambda: backends(url, HOLDER) == 0)
    with pytest.raises(errors.SnapshotLost), reading(url, holder):
        pass
    holder.release()


def test_reader_of_another_snapshot_with_the_same_name_says_so(url: str, holder: snapshot.Holder) -> None:
    """As after a restart of the server, which counts its names from the beginning."""
    other = psycopg.connect(url)
    other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    row = other.execute("SELECT pg_export_snapshot()").fetchone()
    assert row is not None
    ask(url, "UPDATE t SET v = 1")
    later = snapshot.Holder(endpoint(url, "source"), run="test")
    with (
        pytest.raises(errors.SnapshotLost, match="another one by now"),
        snapshot.reader(endpoint(url, "source"), name="test", snapshot=str(row[0]), state=later.state, settings={}),
    ):
        pass
    later.release()
    other.close()


def test_nothing_has_changed_while_nobody_wrote(url: str, holder: snapshot.Holder) -> None:
    assert changed(url, holder.horizon) == (10, 0)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("INSERT INTO t VALUES (11)", (11, 1)),
        ("UPDATE t SET v = 1 WHERE n = 3", (10, 1)),
        ("UPDATE t SET v = v", (10, 10)),
        ("DELETE FROM t WHERE n = 3", (9, 0)),
        ("DELETE FROM t WHERE n = 3; INSERT INTO t VALUES (3)", (10, 1)),
        ("TRUNCATE t; INSERT INTO t SELECT generate_series(1, 10)", (10, 10)),
    ],
)
def test_every_write_shows(statement: str, expected: tuple[int, int], url: str, holder: snapshot.Holder) -> None:
    ask(url, statement)
    assert changed(url, holder.horizon) == expected


def test_transaction_that_was_open_then_shows_when_it_has_committed(url: str) -> None:
    with psycopg.connect(url) as open_then:
        open_then.execute("UPDATE t SET v = 1 WHERE n = 1")
        holder = snapshot.Holder(endpoint(url, "source"), run="test")
        open_then.commit()
    assert changed(url, holder.horizon) == (10, 1)
    holder.release()


def test_subtransaction_of_one_that_was_open_then_shows(url: str) -> None:
    """`txid_current_snapshot` does not list subtransactions: they look finished."""
    with psycopg.connect(url) as open_then:
        open_then.execute("INSERT INTO t VALUES (100)")
        open_then.execute("DELETE FROM t WHERE n = 100")
        open_then.execute("SAVEPOINT s")
        open_then.execute("UPDATE t SET v = 1 WHERE n = 1")
        ask(url, "CREATE TABLE other ()")  # a later transaction, finished: the subtransaction is not the last number
        holder = snapshot.Holder(endpoint(url, "source"), run="test")
        open_then.commit()
    rows, new = changed(url, holder.horizon)
    assert (rows, new >= 1) == (10, True)
    holder.release()


@pytest.mark.parametrize("rewrite", ["VACUUM FREEZE t", "VACUUM FULL t", "CLUSTER t USING t_pkey", "ANALYZE t"])
def test_maintenance_is_no_change(rewrite: str, url: str, holder: snapshot.Holder) -> None:
    horizon = holder.horizon
    holder.release()
    ask(url, rewrite)
    assert changed(url, horizon) == (10, 0)


def test_restored_or_promoted_server_counts_as_changed(url: str, holder: snapshot.Holder, pair: Pair) -> None:
    history, _, state = holder.horizon.rpartition(" ")
    system, timeline, database = history.split(".")
    assert changed(url, f"{system}.{int(timeline) + 1}.{database} {state}") == (10, 10)
    assert changed(url, f"1.{timeline}.{database} {state}") == (10, 10)
    assert changed(url, f"{system}.{timeline}.1 {state}") == (10, 10)
    assert changed(url, "") == (10, 10)


def test_role_that_may_not_know_the_history_still_compares(url: str, pair: Pair) -> None:
    ask(url, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    ask(url, "GRANT SELECT ON t TO PUBLIC")
    with psycopg.connect(pair.old.url(), autocommit=True) as session:
        session.execute("DROP ROLE IF EXISTS plain")
        session.execute("CREATE ROLE plain LOGIN")
    try:
        plain = url.replace("postgres@", "plain@")
        holder = snapshot.Holder(endpoint(plain, "source"), run="test")
        assert holder.horizon.startswith(" ")
        ask(url, "UPDATE t SET v = 1 WHERE n = 1")
        assert changed(plain, holder.horizon) == (10, 1)
        holder.release()
    finally:
        with psycopg.connect(url, autocommit=True) as session:
            session.execute("DROP OWNED BY plain")
            session.execute("DROP ROLE plain")
