"""What following meets between the copy and the switch: restarts, new tables, other addresses, hands of others."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import closing

import psycopg
import pytest

from mishika_migrate.pg import connect, footing
from mishika_migrate.sandbox import servers
from tests.fix_faults import ask, wait_until
from tests.fix_moves import COPY, Move
from tests.fix_network import Proxy
from tests.fix_servers import Clone, Pair, endpoint

KEYS = "MishikaLLM_VerificationToken"


def stopped(move: Move) -> bool:
    return not move.follows()


def test_restarted_source_is_followed_on_by_the_cutover_itself(following: Move, pair: Pair) -> None:
    pair.old.restart("fast")
    wait_until(lambda: stopped(following) or following.follows())
    following.well("cutover", "--dry-run")
    assert following.follows()


def test_subscription_that_was_stopped_by_hand_is_left_alone(following: Move) -> None:
    name = str(ask(following.target, "SELECT subname FROM pg_subscription"))
    # An error of long ago is known, and not what stops it this time.
    ask(following.source, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication")
    following.arrived()
    ask(following.target, f"ALTER SUBSCRIPTION {name} DISABLE")
    wait_until(lambda: stopped(following))
    seen = following("follow", "status")
    assert seen.status == 7
    assert "is stopped" in seen.err
    assert stopped(following)
    following.well("follow", "start")
    following.arrived()


def test_new_table_of_the_source_closes_the_gate(following: Move) -> None:
    ask(following.source, 'CREATE TABLE "MishikaLLM_NewThing" (id text PRIMARY KEY)')
    done = following("cutover", "--dry-run")
    assert done.status == 7
    assert "has MishikaLLM_NewThing since the copy, which would be left behind" in done.err + done.out
    ask(following.source, 'DROP TABLE "MishikaLLM_NewThing"')
    following.well("cutover", "--dry-run")


def test_new_table_with_rows_closes_the_gate_back(following: Move) -> None:
    following.well(*following.over())
    ask(following.target, 'CREATE TABLE "MishikaLLM_NewThing" (id text PRIMARY KEY)')
    following.well("rollback", "--dry-run")
    ask(following.target, "INSERT INTO \"MishikaLLM_NewThing\" VALUES ('x')")
    done = following("rollback", "--dry-run")
    assert done.status == 7
    assert "MishikaLLM_NewThing" in done.err + done.out


def test_address_of_another_database_is_refused_before_the_first_row(move: Move, pair: Pair, clone: Clone) -> None:
    other = Move(move.source, move.target, move.address.parent, move._run, None, reaching=clone(pair.old, "template0"))
    done = other(*COPY)
    assert (done.status, "leads to another database" in done.err) == (4, True), done.err
    assert ask(move.target, f'SELECT count(*) FROM "{KEYS}"') == 0
    assert other.slots == []


@pytest.mark.soak
def test_started_again_by_todays_address(
    source_url: str, target_url: str, move: Move, pair: Pair, proxy: Callable[[servers.Server], Proxy]
) -> None:
    way = proxy(pair.old)
    far = Move(source_url, target_url, move.address.parent, move._run, None, reaching=way.url(source_url))
    far.follow()
    way.close()
    wait_until(lambda: stopped(far))
    seen = move("follow", "status")
    assert seen.status == 7
    move.well("follow", "start")
    move.arrived()
    far.arrived()


def test_dropped_publication_is_named(following: Move) -> None:
    name = str(ask(following.source, "SELECT pubname FROM pg_publication"))
    ask(following.source, f"DROP PUBLICATION {name}")
    seen = following("follow", "status")
    assert (seen.status, "its publication was dropped" in seen.err) == (7, True), seen.err
    done = following("cutover", "--dry-run")
    assert (done.status, "its publication was dropped" in done.out + done.err) == (7, True)


def test_difference_that_stays_closes_the_gate_of_a_dry_run(following: Move) -> None:
    ask(following.target, f'UPDATE "{KEYS}" SET blocked = true WHERE token = (SELECT min(token) FROM "{KEYS}")')
    done = following("cutover", "--dry-run")
    assert (done.status, "is not what" in done.out + done.err) == (7, True), done.err


def test_unfinished_copy_is_not_switched_to(move: Move) -> None:
    move.well("copy", "--everything")
    ask(move.target, "UPDATE mishika_migrate.run SET state = 'stopped'")
    done = move("cutover", "--dry-run")
    assert (done.status, "is unfinished" in done.err, "copy --resume" in done.err) == (4, True, True), done.err


@pytest.mark.parametrize("words", [("follow", "start"), pytest.param(("follow", "status"), marks=pytest.mark.soak)])
def test_lost_way_back_is_not_ended_by_advice(words: tuple[str, ...], following: Move) -> None:
    following.well(*following.over())
    name = str(ask(following.source, "SELECT subname FROM pg_subscription"))
    ask(following.source, f"ALTER SUBSCRIPTION {name} DISABLE")
    wait_until(lambda: stopped(following))
    wait_until(lambda: not ask(following.target, "SELECT bool_or(active) FROM pg_replication_slots"))
    ask(following.target, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    done = following(*words)
    assert "mishika-migrate rollback, which takes one pass of sync" in done.out + done.err
    assert "copy --follow anew" not in done.out + done.err


def test_transaction_that_may_not_be_seen_is_known_by_its_lock(source_url: str, pair: Pair) -> None:
    name = f"seer_{ask(source_url, 'SELECT current_database()')}"
    ask(source_url, f"CREATE ROLE {name} LOGIN")
    limited = source_url.replace("postgres@", f"{name}@", 1)
    with (
        closing(psycopg.connect(source_url)) as writer,
        connect.session(endpoint(limited, "source"), name="test") as session,
    ):
        assert footing.locking(session) == frozenset()
        writer.execute(f'UPDATE "{KEYS}" SET blocked = blocked')
        assert not footing.writers(session, patience=0)
        found = footing.locking(session)
        assert [(each.pid, each.table) for each in found] == [(writer.info.backend_pid, KEYS)]
        assert found == footing.locking(session)
        writer.rollback()
        assert footing.locking(session) == frozenset()


def test_switch_that_came_to_no_end_is_told(following: Move) -> None:
    program = following.start("cutover", "--on-switch", "sleep 60")
    wait_until(lambda: following.switch == "switching")
    seen = following("follow", "status")
    assert "a cutover is under way, or was ended amid its work (it is switching)" in seen.out
    assert "takes no writes" in seen.out
    assert "follow start" not in seen.out + seen.err
    program.signal(signal.SIGTERM)
    program.ended()
    following.well("cutover", "--abort")
    assert following.refusal("source") == ""
