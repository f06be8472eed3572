"""The target's book: one run at a time, each step once, and nothing true that did not happen."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, ledger
from tests.fix_faults import ask, wait_until
from tests.fix_servers import Clone, Pair, endpoint

PLAN = model.Plan(source="old", target="new", chosen=(), left=(), stages=(), findings=())
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


@pytest.fixture
def url(pair: Pair, clone: Clone) -> str:
    return clone(pair.new, "template0")


@pytest.fixture
def session(url: str) -> Iterator[connect.Session]:
    with connect.session(endpoint(url, "target"), name="mishika-migrate/a run/watch") as opened:
        ledger.create(opened)
        begin(opened, "a run")
        yield opened


def begin(session: connect.Session, run: str) -> None:
    ledger.begin(session, run=run, plan=PLAN, text="{}", tool="a test")


def landed(step: str, table: str = "t") -> model.Landed:
    return model.Landed(step=step, table=table, rows_out=3, rows_in=3, bytes=10, seconds=0.5)


def carry_out(session: connect.Session, step: str, run: str = "a run", table: str = "t") -> ledger.Claim:
    with connect.transaction(session):
        claim = ledger.claim(session, run=run, step=step)
        if claim.landed is None:
            ledger.record(session, run=run, landed=landed(step, table))
    return claim


def test_step_is_carried_out_once(session: connect.Session) -> None:
    assert carry_out(session, "s") == ledger.Claim()
    assert carry_out(session, "s") == ledger.Claim(landed=landed("s"))
    assert ledger.landed(session, run="a run") == {"s": landed("s")}


def test_step_that_was_rolled_back_has_not_happened(session: connect.Session) -> None:
    with pytest.raises(ZeroDivisionError), connect.transaction(session):
        ledger.claim(session, run="a run", step="s")
        raise ZeroDivisionError
    assert ledger.landed(session, run="a run") == {}
    assert not ledger.touched(session, run="a run")


def test_stale_step_is_carried_out_once_more_and_only_once(session: connect.Session) -> None:
    carry_out(session, "s")
    ledger.outdate(session, run="a run", steps={"s"})
    assert ledger.landed(session, run="a run") == {}
    assert ledger.touched(session, run="a run")
    assert carry_out(session, "s") == ledger.Claim(again=True)
    assert carry_out(session, "s") == ledger.Claim(landed=landed("s"))


def test_stale_step_that_was_rolled_back_stays_stale(session: connect.Session) -> None:
    carry_out(session, "s")
    ledger.outdate(session, run="a run", steps={"s"})
    with pytest.raises(ZeroDivisionError), connect.transaction(session):
        assert ledger.claim(session, run="a run", step="s").again
        raise ZeroDivisionError
    assert carry_out(session, "s") == ledger.Claim(again=True)


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("commits", [True, False])
def test_claim_waits_until_its_twin_is_decided(stale: bool, commits: bool, session: connect.Session, url: str) -> None:
    if stale:
        carry_out(session, "s")
        ledger.outdate(session, run="a run", steps={"s"})
    seen: list[ledger.Claim] = []

    def second() -> None:
        with connect.session(endpoint(url, "target"), name="test") as other:
            seen.append(carry_out(other, "s"))

    thread = threading.Thread(target=second)
    session.execute("BEGIN")
    ledger.claim(session, run="a run", step="s")
    ledger.record(session, run="a run", landed=landed("s"))
    thread.start()
    wait_until(lambda: ask(url, WAITING) == 1)
    session.execute("COMMIT" if commits else "ROLLBACK")
    thread.join()
    assert seen == [ledger.Claim(landed=landed("s")) if commits else ledger.Claim(again=stale)]


def test_record_of_a_step_that_was_not_claimed_is_an_error(session: connect.Session) -> None:
    with pytest.raises(errors.Error, match="step s of run a run is not in the ledger"):
        ledger.record(session, run="a run", landed=landed("s"))


def test_run_is_unfinished_once_something_landed(session: connect.Session) -> None:
    assert ledger.unfinished(session) is None
    carry_out(session, "s")
    carry_out(session, "view v", table="")
    found = ledger.unfinished(session)
    assert found == model.Unfinished(run="a run", plan="{}", tables=frozenset({"t"}))
    ledger.outdate(session, run="a run", steps={"s", "view v"})
    assert ledger.unfinished(session) == found
    ledger.end(session, run="a run", state="finished")
    assert ledger.unfinished(session) is None


def test_run_that_wrote_nothing_is_abandoned_by_the_next(session: connect.Session) -> None:
    begin(session, "another")
    assert {run.id: run.state for run in ledger.runs(session)} == {"a run": "abandoned", "another": "running"}


def test_begin_resume_and_end_may_be_said_twice(session: connect.Session) -> None:
    """Their answers may be lost, and then they are asked again."""
    begin(session, "a run")
    for state in ("stopped", "stopped"):
        ledger.end(session, run="a run", state=state, message="why")
    assert [(run.state, run.message, run.finished is None) for run in ledger.runs(session)] == [
        ("stopped", "why", False)
    ]
    for _ in range(2):
        ledger.resume(session, run="a run")
    assert [(run.state, run.message, run.finished) for run in ledger.runs(session)] == [("running", "", None)]


def test_lock_is_refused_with_the_name_of_who_has_it(session: connect.Session, url: str) -> None:
    end = endpoint(url, "target")
    ledger.lock(session, end)
    pid = session.info.backend_pid
    with (
        connect.session(end, name="mishika-migrate/other/watch") as other,
        pytest.raises(errors.Refused, match=rf"backend {pid}, mishika-migrate/a run/watch, since 20\d\d-.* UTC"),
    ):
        ledger.lock(other, end)


def test_lock_of_another_role_is_refused_with_what_may_be_seen(session: connect.Session, url: str, pair: Pair) -> None:
    with psycopg.connect(pair.new.url(), autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS stranger")
        admin.execute("CREATE ROLE stranger LOGIN")
    end = endpoint(url.replace("postgres@", "stranger@"), "target")
    ledger.lock(session, endpoint(url, "target"))
    with (
        connect.session(end, name="test") as other,
        pytest.raises(errors.Refused, match=r"\(backend \d+, mishika-migrate/a run/watch\)"),
    ):
        ledger.lock(other, end)


def test_lock_is_taken_back_from_the_runs_own_lost_session(session: connect.Session, url: str) -> None:
    end = endpoint(url, "target")
    name = "mishika-migrate/a run/watch"
    lost = connect.open(end, name=name)
    ledger.lock(lost, end)
    with pytest.raises(errors.Refused):
        ledger.lock(session, end, former=(lost.info.backend_pid + 1, name))
    with pytest.raises(errors.Refused):
        ledger.lock(session, end, former=(lost.info.backend_pid, "mishika-migrate/other/watch"))
    ledger.lock(session, end, former=(lost.info.backend_pid, name))
    connect.close(lost)


def test_newer_layout_is_refused(session: connect.Session) -> None:
    session.execute("UPDATE mishika_migrate.layout SET version = 99")
    with pytest.raises(errors.Refused, match="layout 99"):
        ledger.create(session)


def test_drop_leaves_nothing(session: connect.Session, url: str) -> None:
    ledger.drop(session)
    assert not ledger.exists(session)
    assert ledger.runs(session) == ()
    assert ask(url, "SELECT count(*) FROM pg_namespace WHERE nspname = 'mishika_migrate'") == 0


def test_each_step_knows_the_state_of_the_source_that_its_rows_come_from(session: connect.Session) -> None:
    with connect.transaction(session):
        for step in ("s", "r"):
            ledger.claim(session, run="a run", step=step)
            ledger.record(session, run="a run", landed=landed(step), horizon="h1")
    ledger.move(session, run="a run", step="s", rows=7, horizon="h2")
    ledger.outdate(session, run="a run", steps={"r"})
    assert ledger.horizons(session, run="a run") == {"s": "h2", "r": "h1"}
    assert ledger.landed(session, run="a run") == {"s": replace(landed("s"), rows_out=7, rows_in=7)}
    assert ledger.horizons(session, run="another") == {}


def test_steps_of_a_table_that_is_emptied_have_not_happened(session: connect.Session) -> None:
    carry_out(session, "s")
    carry_out(session, "r", table="u")
    ledger.forget(session, run="a run", tables=[model.TableName(schema="public", name="t")])
    assert ledger.landed(session, run="a run") == {"r": landed("r", "u")}
    assert carry_out(session, "s") == ledger.Claim()


def test_index_is_kept_from_its_drop_until_it_is_restored(session: connect.Session) -> None:
    t, u = (model.TableName(schema="public", name=name) for name in "tu")
    for table, name in ((t, "b"), (u, "a"), (t, "a")):
        ledger.keep_index(session, run="a run", table=table, name=name, definition=f"{table.name}'s {name}")
    assert list(ledger.kept_indexes(session, run="a run").items()) == [
        ((t, "a"), "t's a"),
        ((t, "b"), "t's b"),
        ((u, "a"), "u's a"),
    ]
    ledger.release_index(session, run="a run", table=t, name="a")
    assert set(ledger.kept_indexes(session, run="a run")) == {(t, "b"), (u, "a")}
    assert ledger.kept_indexes(session, run="another") == {}
