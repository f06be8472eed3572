"""What an exported snapshot promises, and which later one still speaks of the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import psycopg
import pytest

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, snapshot
from tests.fix_faults import HOLDER, ask, backends, locked, terminate, wait_until
from tests.fix_servers import Pair, endpoint


def step(name: str = "t", *, leaf: str = "", partitioned: bool = False) -> model.CopyTable:
    table = model.TableName(schema="public", name=name)
    return model.CopyTable(
        source=model.TableName(schema="public", name=leaf) if leaf else table,
        target=table,
        columns=("n",),
        binary=True,
        partitioned=partitioned,
        rows=0.0,
        bytes=0,
        root=table if leaf else None,
    )


@pytest.fixture
def url(source_url: str) -> str:
    ask(source_url, "CREATE TABLE t (n int PRIMARY KEY, v int DEFAULT 0); INSERT INTO t SELECT generate_series(1, 10)")
    return source_url


@contextmanager
def held(url: str, *steps: model.CopyTable, **settings: str) -> Iterator[snapshot.Holder]:
    holder = snapshot.Holder(endpoint(url, "source"), run="test", steps=steps or (step(),), settings=settings)
    try:
        yield holder
    finally:
        holder.release()


@pytest.fixture
def holder(url: str) -> Iterator[snapshot.Holder]:
    with held(url) as opened:
        yield opened


def reading(url: str, holder: snapshot.Holder) -> AbstractContextManager[connect.Session]:
    return snapshot.reader(endpoint(url, "source"), name="test", snapshot=holder.name, state=holder.state, settings={})


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
    with (
        held(url) as later,
        pytest.raises(errors.SnapshotLost, match="another one by now"),
        snapshot.reader(endpoint(url, "source"), name="test", snapshot=str(row[0]), state=later.state, settings={}),
    ):
        pass
    other.close()


# -- locks ----------------------------------------------------------------------------------------

GRANTED = "SELECT count(*) FROM pg_locks WHERE relation = %(table)s::regclass AND mode = %(mode)s AND granted"


@pytest.mark.parametrize("statement", ["TRUNCATE t", "VACUUM FULL t", "ALTER TABLE t ADD w int", "DROP TABLE t"])
def test_what_no_snapshot_protects_from_waits_until_it_is_released(
    statement: str, url: str, holder: snapshot.Holder
) -> None:
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            session.execute(statement.encode())
        session.execute("INSERT INTO t VALUES (11)")
        holder.release()
        session.execute("SET lock_timeout = '10s'")
        session.execute(statement.encode())


def test_snapshot_is_younger_than_its_locks(url: str) -> None:
    """Whoever had the table alone and wrote to it has been waited for, and is seen."""
    with psycopg.connect(url) as writer:
        writer.execute("TRUNCATE t")
        with pytest.raises(errors.ServerError, match="lock timeout"), held(url, lock_timeout="50ms"):
            pass
        assert backends(url, HOLDER) == 0
    with held(url) as holder, reading(url, holder) as session:
        assert session.execute("SELECT count(*) FROM public.t").fetchone() == (0,)


def test_lock_that_does_not_come_is_told_with_its_table(url: str) -> None:
    ask(url, "CREATE TABLE free (n int)")
    with (
        locked(url, "t", "ACCESS EXCLUSIVE"),
        pytest.raises(errors.ServerError, match=r"table t: canceling statement due to lock timeout") as raised,
        held(url, step("free"), step(), lock_timeout="50ms"),
    ):
        pass
    assert "Another session holds a lock on the table" in raised.value.hint


def test_only_the_tables_that_are_read_are_locked_with_their_leaves(url: str) -> None:
    ask(
        url,
        "CREATE TABLE parent (n int); CREATE TABLE heir () INHERITS (parent);"
        "CREATE TABLE parts (n int) PARTITION BY RANGE (n); CREATE TABLE part PARTITION OF parts DEFAULT;"
        "CREATE TABLE roots (n int) PARTITION BY RANGE (n); CREATE TABLE leaf PARTITION OF roots DEFAULT",
    )
    with held(url, step("parent"), step("parts", partitioned=True), step("roots", leaf="leaf")):
        tables = ("parent", "heir", "parts", "part", "roots", "leaf", "t")
        found = {table: ask(url, GRANTED, {"table": table, "mode": "AccessShareLock"}) for table in tables}
    assert found == {"parent": 1, "heir": 0, "parts": 1, "part": 1, "roots": 1, "leaf": 1, "t": 0}


LEAVES = """
CREATE TABLE roots (n int PRIMARY KEY) PARTITION BY RANGE (n);
CREATE TABLE leaf PARTITION OF roots FOR VALUES FROM (0) TO (10);
"""


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE another PARTITION OF roots FOR VALUES FROM (10) TO (20)",
        "DROP TABLE leaf",
        "ALTER TABLE roots DETACH PARTITION leaf",
    ],
)
def test_leaves_other_than_those_of_the_plan_are_refused(statement: str, url: str) -> None:
    ask(url, LEAVES)
    leaf = step("roots", leaf="leaf")
    with held(url, leaf):
        pass
    ask(url, statement)
    with pytest.raises(errors.Refused, match=r"the partitions of public\.roots on .* are other ones"), held(url, leaf):
        pass
    assert backends(url, HOLDER) == 0


# -- what goes on ---------------------------------------------------------------------------------


def horizon(url: str, what: model.CopyTable) -> str:
    with held(url, what) as holder:
        return holder.horizon(what)


def continues(url: str, then: str, what: model.CopyTable) -> bool:
    with held(url, what) as holder:
        return holder.continues(then, what)


@pytest.mark.parametrize("statement", ["UPDATE t SET v = 1", "VACUUM FREEZE t", "ANALYZE t", "ALTER TABLE t ADD w int"])
def test_horizon_goes_on_while_the_file_is_the_same(statement: str, url: str) -> None:
    then = horizon(url, step())
    ask(url, statement)
    assert continues(url, then, step())


@pytest.mark.parametrize(
    "statement",
    [
        "VACUUM FULL t",
        "CLUSTER t USING t_pkey",
        "TRUNCATE t",
        "ALTER TABLE t ALTER v TYPE bigint",
        "DROP TABLE t; CREATE TABLE t (n int)",
        "ALTER TABLE t RENAME TO old; CREATE TABLE t (n int)",
    ],
)
def test_horizon_does_not_go_on_in_another_file(statement: str, url: str) -> None:
    """Rows have other addresses there; a range means other rows."""
    then = horizon(url, step())
    ask(url, statement)
    assert not continues(url, then, step())


@pytest.mark.parametrize("statement", ["VACUUM FULL leaf", "TRUNCATE roots"])
@pytest.mark.parametrize("what", [step("roots", leaf="leaf"), step("roots", partitioned=True)], ids=["leaf", "whole"])
def test_horizon_of_a_partitioned_table_depends_on_the_files_of_its_leaves(
    statement: str, what: model.CopyTable, url: str
) -> None:
    ask(url, LEAVES)
    then = horizon(url, what)
    assert continues(url, then, what)
    ask(url, statement)
    assert not continues(url, then, what)


def test_old_rows_that_come_with_a_partition_are_noticed(url: str) -> None:
    """They are older than the horizon, and were not there: their number tells nothing."""
    ask(
        url,
        LEAVES + "CREATE TABLE another (n int NOT NULL); INSERT INTO another VALUES (1); INSERT INTO leaf VALUES (2)",
    )
    then = horizon(url, step("roots", partitioned=True))
    ask(url, "ALTER TABLE roots DETACH PARTITION leaf; ALTER TABLE roots ATTACH PARTITION another DEFAULT")
    assert not continues(url, then, step("roots", partitioned=True))


def test_restored_or_promoted_server_does_not_go_on(url: str, holder: snapshot.Holder) -> None:
    history, file, state = holder.horizon(step()).split(" ")
    system, timeline, database = history.split(".")
    for other in (f"{system}.{int(timeline) + 1}.{database}", f"1.{timeline}.{database}", f"{system}.{timeline}.1", ""):
        assert not holder.continues(f"{other} {file} {state}", step())
    assert not holder.continues("", step())
    assert holder.continues(f"{history} {file} 1:1:", step())


def test_role_that_may_not_know_the_history_compares_by_file(url: str, pair: Pair) -> None:
    ask(url, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    ask(url, "GRANT SELECT ON t TO PUBLIC")
    with psycopg.connect(pair.old.url(), autocommit=True) as session:
        session.execute("DROP ROLE IF EXISTS plain")
        session.execute("CREATE ROLE plain LOGIN")
    try:
        plain = url.replace("postgres@", "plain@")
        then = horizon(plain, step())
        assert then.startswith(" ")
        assert continues(plain, then, step())
        ask(url, "VACUUM FULL t")
        assert not continues(plain, then, step())
    finally:
        with psycopg.connect(url, autocommit=True) as session:
            session.execute("DROP OWNED BY plain")
            session.execute("DROP ROLE plain")


# -- rows -----------------------------------------------------------------------------------------


def test_ranges_of_pages_are_the_whole_table(url: str) -> None:
    ask(url, "INSERT INTO t SELECT generate_series(100, 2000)")
    pages = [model.PageRange(low=low, high=high) for low, high in ((0, 1), (1, 4), (4, None))]
    counts = []
    with psycopg.connect(url) as session:
        session.execute("SET search_path = ''")
        for each in pages:
            query = b"SELECT count(*), min(ctid)::text FROM " + snapshot.rows_of(replace(step(), pages=each)).as_bytes()
            row = session.execute(query).fetchone()
            assert row is not None
            assert row[1] == f"({each.low},1)"
            counts.append(row[0])
    assert all(counts)
    assert sum(counts) == 1911
