"""Finished ranges follow the source: whatever happened to it, the target equals one state of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import hypothesis
import psycopg
import pytest
from hypothesis import strategies as st

from mishika_migrate import model
from mishika_migrate.operations.copying import work
from mishika_migrate.pg import connect, delta, ledger, snapshot, transfer
from tests.fix_faults import ask
from tests.fix_servers import Pair, assert_equal, endpoint, rows_of

T = model.TableName(schema="public", name="t")
WHOLE = model.CopyTable(
    source=T, target=T, columns=("v", "n", "name", "pad"), binary=True, partitioned=False, rows=0.0, bytes=0
)


def ranges(step: model.CopyTable, *bounds: int) -> tuple[model.CopyTable, ...]:
    highs = [*bounds[1:], None]
    return tuple(
        replace(step, pages=model.PageRange(low=low, high=high)) for low, high in zip(bounds, highs, strict=True)
    )


# -- one change at a time -------------------------------------------------------------------------


@pytest.fixture
def url(source_url: str) -> str:
    ask(source_url, "CREATE TABLE t (n int PRIMARY KEY, v int DEFAULT 0); INSERT INTO t SELECT generate_series(1, 10)")
    return source_url


@contextmanager
def held(url: str, *steps: model.CopyTable) -> Iterator[snapshot.Holder]:
    holder = snapshot.Holder(endpoint(url, "source"), run="test", steps=steps)
    try:
        yield holder
    finally:
        holder.release()


def horizon(url: str) -> str:
    with held(url, WHOLE) as holder:
        return holder.horizon(WHOLE)


def changed(url: str, then: str) -> tuple[int, int]:
    with held(url, WHOLE) as holder:
        assert holder.continues(then, WHOLE)
        found = delta.change(holder.session, WHOLE, horizon=then, landed=10)
    assert found.nothing == (found.newer == 0 and found.rows == 10)
    return found.rows, found.newer


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT FROM t FOR UPDATE", (10, 0)),
        ("VACUUM FREEZE t", (10, 0)),
        ("ANALYZE t", (10, 0)),
        ("INSERT INTO t VALUES (11)", (11, 1)),
        ("UPDATE t SET v = 1 WHERE n = 3", (10, 1)),
        ("UPDATE t SET v = v", (10, 10)),
        ("DELETE FROM t WHERE n = 3", (9, 0)),
        ("DELETE FROM t WHERE n = 3; INSERT INTO t VALUES (3)", (10, 1)),
        ("DELETE FROM t; INSERT INTO t SELECT generate_series(1, 10)", (10, 10)),
    ],
)
def test_every_write_shows_and_nothing_else(statement: str, expected: tuple[int, int], url: str) -> None:
    then = horizon(url)
    ask(url, statement)
    assert changed(url, then) == expected


def test_transaction_that_was_open_then_shows_when_it_has_committed(url: str) -> None:
    with psycopg.connect(url) as open_then:
        open_then.execute("UPDATE t SET v = 1 WHERE n = 1")
        then = horizon(url)
        open_then.commit()
    assert changed(url, then) == (10, 1)


def test_transaction_that_has_never_committed_does_not_show(url: str) -> None:
    with psycopg.connect(url) as open_then:
        open_then.execute("UPDATE t SET v = 1 WHERE n = 1")
        then = horizon(url)
        open_then.rollback()
    assert changed(url, then) == (10, 0)


def test_subtransaction_of_one_that_was_open_then_shows(url: str) -> None:
    """`txid_current_snapshot` does not list subtransactions: they look finished."""
    with psycopg.connect(url) as open_then:
        open_then.execute("INSERT INTO t VALUES (100)")
        open_then.execute("DELETE FROM t WHERE n = 100")
        open_then.execute("SAVEPOINT s")
        open_then.execute("UPDATE t SET v = 1 WHERE n = 1")
        ask(url, "CREATE TABLE other ()")  # a later transaction, finished: the subtransaction is not the last number
        then = horizon(url)
        open_then.commit()
    rows, new = changed(url, then)
    assert (rows, new >= 1) == (10, True)


def test_what_committed_beside_an_open_transaction_is_taken_for_new_and_for_landed(url: str) -> None:
    """Nobody can tell it from a subtransaction; so it goes and comes again."""
    with psycopg.connect(url) as open_then:
        open_then.execute("INSERT INTO t VALUES (0)")
        ask(url, "UPDATE t SET v = 1 WHERE n = 1")
        with held(url, WHOLE) as holder:
            found = delta.change(holder.session, WHOLE, horizon=holder.horizon(WHOLE), landed=10)
    assert (found.rows, found.newer, found.nothing, found.only_new) == (10, 1, False, False)


def test_rows_of_one_range_say_nothing_of_another(url: str) -> None:
    ask(url, "INSERT INTO t SELECT generate_series(11, 1000)")
    first, rest = ranges(WHOLE, 0, 2)
    with held(url, first) as holder:
        then = holder.horizon(first)
        landed = [delta.change(holder.session, each, horizon=then, landed=0).rows for each in (first, rest)]
    ask(url, "UPDATE t SET v = 1 WHERE n = 1")  # no room on its page: the new version goes to the end
    with held(url, first) as holder:
        found = [
            delta.change(holder.session, each, horizon=then, landed=rows)
            for each, rows in zip((first, rest), landed, strict=True)
        ]
    assert [(each.rows - each.landed, each.newer, each.only_new) for each in found] == [(-1, 0, False), (1, 1, True)]


@pytest.mark.parametrize(
    ("ddl", "key"),
    [
        ("PRIMARY KEY (b, a)", ("b", "a")),
        ("PRIMARY KEY (a) INCLUDE (b)", ("a",)),
        ("UNIQUE (a)", ()),
    ],
)
def test_primary_key_in_its_own_order(ddl: str, key: tuple[str, ...], source_url: str) -> None:
    ask(source_url, f"CREATE TABLE t (a int, gone int, b int, {ddl}); ALTER TABLE t DROP gone")
    with connect.session(endpoint(source_url, "source"), name="test") as session:
        assert delta.primary_key(session, T) == key


# -- all changes at once --------------------------------------------------------------------------

NASTY = ("", "'", '"', "\\", "\\N", "\\.", "é", "😀", "\t", "a\nb", "{,}", "NULL ")
ROWS = 30
KINDS = {
    "text key": "CREATE TABLE t (name text PRIMARY KEY, n int, v text, pad text)",
    "composite key": "CREATE TABLE t (n int, name text, v text, pad text, PRIMARY KEY (name, n))",
    "leaves": "CREATE TABLE t (name text, n int, v text, pad text, PRIMARY KEY (n, name)) PARTITION BY HASH (name);"
    "CREATE TABLE t0 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
    "CREATE TABLE t1 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
}


def name(n: int) -> str:
    return f"{NASTY[n % len(NASTY)]}{n}"


def steps_of(kind: str) -> tuple[model.CopyTable, ...]:
    """About ten rows a page."""
    if kind != "leaves":
        return ranges(WHOLE, 0, 1, 2)
    leaves = (replace(WHOLE, source=replace(T, name=leaf), root=T) for leaf in ("t0", "t1"))
    return tuple(part for leaf in leaves for part in ranges(leaf, 0, 1))


@dataclass(frozen=True)
class Op:
    """What somebody does to the row with number `n`; `to` is another one's."""

    what: str
    n: int
    to: int

    def do(self, session: psycopg.Connection[Any]) -> None:
        session.execute(
            {
                "insert": "INSERT INTO t VALUES (%(n)s, %(name)s, NULL, repeat('x', 700)) ON CONFLICT DO NOTHING",
                "update": "UPDATE t SET v = coalesce(v || '\\', '''') WHERE n = %(n)s AND name = %(name)s",
                "null": "UPDATE t SET v = NULL WHERE n = %(n)s AND name = %(name)s",
                "delete": "DELETE FROM t WHERE n = %(n)s AND name = %(name)s",
                "rekey": "UPDATE t SET n = %(to)s, name = %(other)s WHERE n = %(n)s AND name = %(name)s"
                " AND NOT EXISTS (SELECT FROM t WHERE n = %(to)s AND name = %(other)s)",
                "all": "UPDATE t SET pad = pad WHERE n %% 4 = %(n)s %% 4",
                "vacuum": "VACUUM (TRUNCATE false) t",
                "freeze": "VACUUM (FREEZE, TRUNCATE false) t",
                "savepoint": "SAVEPOINT s",
                "back": "SAVEPOINT s; ROLLBACK TO s",
            }[self.what].replace("INTO t VALUES", "INTO t (n, name, v, pad) VALUES"),
            {"n": self.n, "name": name(self.n), "to": self.to, "other": name(self.to)},
            prepare=False,
        )


def ops(kinds: Sequence[str], parity: int, most: int) -> st.SearchStrategy[list[Op]]:
    """Of one parity, so that no transaction waits for another: the test has one thread."""
    number = st.integers(0, ROWS - 1).map(lambda n: 2 * n + parity)
    return st.lists(st.builds(Op, st.sampled_from(kinds), number, number), max_size=most)


WRITES = ("insert", "update", "null", "delete", "rekey", "all")
HISTORY = st.fixed_dictionaries(
    {
        "before": ops((*WRITES, "savepoint", "back"), 1, 6),
        "beside": ops(WRITES, 0, 2),
        "after": ops((*WRITES, "savepoint", "back"), 1, 4),
        "others": ops((*WRITES, "vacuum", "freeze"), 0, 8),
        "ends": st.sampled_from(["commit", "commit", "rollback", "stays open"]),
        "early": st.booleans(),
        "finished": st.sets(st.integers(0, 3), min_size=1),
        "binary": st.booleans(),
    }
)


@pytest.fixture(scope="module")
def databases(pair: Pair) -> Iterator[tuple[str, str]]:
    """One pair for all examples."""
    urls = []
    for server in (pair.old, pair.new):
        with psycopg.connect(server.url(), autocommit=True) as session:
            session.execute("CREATE DATABASE followed TEMPLATE template0")
        urls.append(server.url("followed"))
    yield urls[0], urls[1]
    for server in (pair.old, pair.new):
        with psycopg.connect(server.url(), autocommit=True) as session:
            session.execute("DROP DATABASE followed WITH (FORCE)")


@dataclass
class Target:
    """What a run knows of it: rows and horizon of each finished step."""

    ends: tuple[model.Endpoint, model.Endpoint]
    landed: dict[str, tuple[int, str]]

    def catch_up(self, holder: snapshot.Holder, steps: Sequence[model.CopyTable]) -> None:
        """As a resumed run does it: finished steps follow, the others are copied, all in one state of the source."""
        with connect.session(self.ends[1], name="test") as session, connect.transaction(session):
            way = transfer.Way(source=holder.session, target=session, endpoints=self.ends)
            old = [step for step in steps if step.id in self.landed]
            assert all(holder.continues(self.landed[step.id][1], step) for step in old)
            changes = [
                delta.change(holder.session, step, horizon=self.landed[step.id][1], landed=self.landed[step.id][0])
                for step in old
            ]
            if any(not change.nothing for change in changes):
                delta.follow(way, changes, key=delta.primary_key(holder.session, T))
                self.landed.update({each.step.id: (each.rows, holder.horizon(each.step)) for each in changes})
            for step in steps:
                if step.id not in self.landed:
                    self.landed[step.id] = (transfer.copy(way, step).rows_in, holder.horizon(step))


def do(history: dict[str, Any], other: psycopg.Connection[Any], late: psycopg.Connection[Any]) -> None:
    def end() -> None:
        for op in history["after"]:
            op.do(late)
        if history["ends"] != "stays open":
            late.commit() if history["ends"] == "commit" else late.rollback()

    if history["early"]:
        end()
    for op in history["others"]:
        op.do(other)
    if not history["early"]:
        end()


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.settings(
    max_examples=12, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
@hypothesis.given(rounds=st.lists(HISTORY, min_size=1, max_size=2))
def test_target_equals_one_state_of_the_source_whatever_happened_meanwhile(
    kind: str, databases: tuple[str, str], rounds: list[dict[str, Any]]
) -> None:
    source, target = databases
    for url in databases:
        ask(url, f"DROP TABLE IF EXISTS t; {KINDS[kind]}")
    ask(source, "ALTER TABLE t SET (fillfactor = 90)" if kind != "leaves" else "SELECT 1")
    with psycopg.connect(source) as session:
        for n in range(ROWS):
            Op("insert", n, n).do(session)
    steps = tuple(replace(step, binary=rounds[0]["binary"]) for step in steps_of(kind))
    there = Target((endpoint(source, "source"), endpoint(target, "target")), {})
    for history in rounds:
        with psycopg.connect(source, autocommit=True) as other, psycopg.connect(source) as late:
            for op in history["before"]:
                op.do(late)
            for op in history["beside"]:
                op.do(other)
            finished = {steps[number % len(steps)].id for number in history["finished"]} | set(there.landed)
            with held(source, *steps) as holder:
                there.catch_up(holder, [step for step in steps if step.id in finished])
            do(history, other, late)
            with held(source, *steps) as holder:
                there.catch_up(holder, steps)
            assert_equal(source, target, ["t"])
            late.rollback()
    assert sum(rows for rows, _ in there.landed.values()) == len(rows_of(target, "t"))


# -- once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement", ["INSERT INTO t VALUES (11)", "UPDATE t SET v = 1 WHERE n = 3; DELETE FROM t WHERE n = 4"]
)
def test_follow_whose_commit_was_not_answered_may_be_done_again(statement: str, url: str, target_url: str) -> None:
    ask(target_url, "CREATE TABLE t (n int PRIMARY KEY, v int)")
    step = replace(WHOLE, columns=("n", "v"))
    ends = (endpoint(url, "source"), endpoint(target_url, "target"))

    def task(holder: snapshot.Holder, what: work.Step) -> work.Task:
        return work.Task(
            run="r",
            number=0,
            stage="prepare",
            steps=(what,),
            source=ends[0],
            target=ends[1],
            snapshot=work.Snapshot(name=holder.name, state=holder.state),
            horizons={step.id: holder.horizon(step)},
        )

    with connect.session(ends[1], name="test") as session:
        ledger.create(session)
        plan = model.Plan(source="", target="", chosen=(), left=(), stages=(), findings=())
        ledger.begin(session, run="r", plan=plan, text="", tool="")
        with held(url, step) as holder:
            work.perform(task(holder, step))
        ask(url, statement)
        with held(url, step) as holder:
            then = ledger.horizons(session, run="r")[step.id]
            change = delta.change(holder.session, step, horizon=then, landed=10)
            follow = work.Follow(table=T, changes=(change,), horizons={step.id: holder.horizon(step)}, key=("n",))
            for attempt in (1, 2):
                work.perform(task(holder, follow), attempt=attempt)
                assert_equal(url, target_url, ["t"])
                assert ledger.horizons(session, run="r") == {step.id: holder.horizon(step)}
                assert ledger.landed(session, run="r")[step.id].rows_in == change.rows
