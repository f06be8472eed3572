"""A move that is disturbed: killed programs, servers that restart, rows in the way, a network that is cut.

Each ends with a known state, and with every write that anybody was told of.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mishika_migrate import model
from mishika_migrate.operations.moving import gates, moves
from mishika_migrate.sandbox import servers
from tests import looking
from tests.fix_faults import LOGS, Program, Start, ask, state, wait_until
from tests.fix_moves import COPY, NAMED, Move, Taps, Traffic, hold, killed
from tests.fix_network import Proxy
from tests.fix_program import Ended, Run
from tests.fix_servers import Pair, endpoint
from tests.looking import RULES

Drive = Callable[[Move], Traffic]
MODELS = "MishikaLLM_ModelTable"
KILL, INT = signal.SIGKILL, signal.SIGINT

MANY = (5, 15, 25, 35, 45, 55, 62, 75, 80, 84, 88, 93, 96, 98, 100)


def instants(*few: int) -> list[object]:
    """Of all messages from a command's begin to its end, in percent; `few` are for ordinary runs."""
    return [
        *(pytest.param(share, KILL) for share in few),
        *(pytest.param(share, KILL, marks=pytest.mark.soak) for share in MANY if share not in few),
        *(pytest.param(share, INT, marks=pytest.mark.soak) for share in MANY),
    ]


# -- the program is killed ------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "how"), instants(35))
def test_killed_copy_ends_following(
    share: int, how: signal.Signals, tapped: Move, taps: Taps, lengths: Mapping[str, int], traffic: Drive
) -> None:
    writes = traffic(tapped)
    killed(taps, tapped, COPY, lengths["copy"] * share // 100, how)
    left = _left(tapped.target)
    done = tapped(*_CONTINUED[left])
    assert done.status == 0, f"{left}: {done.err}"
    writes.goes_on("source")
    writes.stop()
    tapped.arrived()
    assert tapped.follows()
    assert len(tapped.slots) == 1, "one of an earlier attempt is left"
    tapped.assert_same()
    writes.assert_kept(tapped.target)
    tapped.well("cutover", "--dry-run", "--method", "replication")


_CONTINUED = {"nothing": COPY, "some": ("copy", "--resume"), "all": ("follow", "start")}


def _left(target: str) -> str:
    """How much of the copy has landed, by its ledger."""
    found = state(target)
    if found == "finished":
        return "all"
    some = found is not None and ask(target, "SELECT count(*) FROM mishika_migrate.step WHERE NOT stale")
    return "some" if some else "nothing"


@pytest.mark.parametrize(("share", "how"), instants(75))
def test_killed_cutover_is_given_up_or_ended(
    share: int, how: signal.Signals, tapped: Move, taps: Taps, lengths: Mapping[str, int], traffic: Drive
) -> None:
    tapped.follow()
    writes = traffic(tapped)
    done = killed(taps, tapped, tapped.over(), lengths["cutover"] * share // 100, how)
    _assert_told(tapped, done, "source", "target")
    if tapped("cutover", "--abort").status == 0 and tapped.switch != "finished":
        writes.goes_on("source")
        assert tapped.refusal("target") == ""
        tapped.arrived()
        assert tapped.follows()
        assert len(tapped.slots) == 1
    done = tapped(*tapped.over())
    assert done.status == 0 or "since the cutover of" in done.err, done.err
    writes.goes_on("target")
    assert tapped.refusal("source") == "25006"
    writes.stop()
    tapped.arrived()
    assert tapped.follows(way="back")
    assert len(tapped.slots) == 1
    tapped.assert_same()
    writes.assert_kept(tapped.target)


@pytest.mark.parametrize(("share", "how"), instants(98))
def test_killed_rollback_is_given_up_or_ended(
    share: int, how: signal.Signals, tapped: Move, taps: Taps, lengths: Mapping[str, int], traffic: Drive
) -> None:
    tapped.follow()
    writes = traffic(tapped)
    tapped.well(*tapped.over())
    writes.goes_on("target")
    done = killed(taps, tapped, tapped.back(), lengths["rollback"] * share // 100, how)
    _assert_told(tapped, done, "target", "source")
    if tapped("cutover", "--abort").status == 0 and tapped.switch != "finished":
        writes.goes_on("target")
        tapped.arrived()
        assert tapped.follows(way="back")
        assert len(tapped.slots) == 1
    done = tapped(*tapped.back())
    assert done.status == 0 or "there is no cutover to roll back" in done.err, done.err
    writes.goes_on("source")
    assert tapped.refusal("target") == "25006"
    writes.stop()
    tapped.arrived()
    assert tapped.follows()
    assert len(tapped.slots) == 1
    tapped.assert_same()
    writes.assert_kept(tapped.source)


def _assert_told(move: Move, done: Ended, away: str, toward: str) -> None:
    """A program that was only interrupted has put everything right, or says what is left to do."""
    if done.status == -KILL:
        return
    # A Ctrl-C after its last word meets the interpreter's end.
    assert done.status in (0, 7, 130) or (done.status == -INT and "Done: traffic is on" in done.out), done.err
    moved = move.address.read_text() == toward
    if move.switch == "switching":
        assert "has come to no end" in done.err or "is done" in done.err, done.err
    elif not moved:
        # It was heard before the program could enter anything, or while it did.
        assert move.switch in ("", "begun", "aborted", "finished"), done.err
        assert done.status != 0
    assert move.refusal(away) == ("25006" if moved or move.switch == "switching" else ""), done.err


@pytest.mark.parametrize(("share", "how"), instants(62))
def test_killed_complete_is_ended_by_another(
    share: int, how: signal.Signals, tapped: Move, taps: Taps, lengths: Mapping[str, int], traffic: Drive
) -> None:
    tapped.follow()
    writes = traffic(tapped)
    tapped.well(*tapped.over())
    writes.goes_on("target")
    killed(taps, tapped, ("complete",), lengths["complete"] * share // 100, how)
    writes.goes_on("target")
    tapped.well("complete")
    tapped.assert_gone()
    writes.goes_on("target")
    writes.assert_kept(tapped.target)


@pytest.mark.parametrize("side", ["source", "target"])
def test_slot_that_nobody_reads_is_told_on_either_side(side: str, following: Move) -> None:
    ask(following.url(side), "SELECT pg_create_logical_replication_slot('mishika_migrate_left', 'pgoutput')")
    seen = following.well("follow", "status")
    assert "slot mishika_migrate_left" in seen.out + seen.err


# -- servers restart ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["immediate", pytest.param("fast", marks=pytest.mark.soak)])
@pytest.mark.parametrize("side", ["source", pytest.param("target", marks=pytest.mark.soak)])
def test_restarted_server_is_followed_on(
    side: str, mode: servers.StopMode, following: Move, pair: Pair, traffic: Drive
) -> None:
    writes = traffic(following)
    writes.goes_on("source")
    (pair.new if side == "target" else pair.old).restart(mode)
    writes.goes_on("source")

    # A publisher that goes away is an error of the worker, which stops its subscription; a look starts it again.
    wait_until(lambda: following("follow", "status").status == 0)
    following.well(*following.over())
    writes.goes_on("target")
    writes.stop()
    following.arrived()
    following.assert_same()
    writes.assert_kept(following.target)


# -- what keeps a change from arriving ------------------------------------------------------------

ROW = f'INSERT INTO "{LOGS}" (request_id, call_type, "startTime", "endTime") VALUES (\'here\', \'{{}}\', now(), now())'
HERE = f"FROM \"{LOGS}\" WHERE request_id = 'here'"


def test_row_in_the_way_stops_it_until_it_is_removed(following: Move, traffic: Drive) -> None:
    writes = traffic(following)
    ask(following.target, ROW.format("planted"))
    ask(following.source, ROW.format("real"))
    wait_until(lambda: not following.follows())
    seen = following("follow", "status")
    assert seen.status == 7
    assert "has stopped at an error, such as a row that cannot be applied" in seen.err
    assert following(*following.over()).status == 7
    assert following.switch == "", "a closed gate comes before the fence"
    writes.goes_on("source")
    ask(following.target, f"DELETE {HERE}")
    following.well("follow", "start")
    following.arrived()
    assert ask(following.target, f"SELECT call_type {HERE}") == "real"
    following.well(*following.over())
    writes.goes_on("target")
    writes.stop()
    following.arrived()
    following.assert_same()
    writes.assert_kept(following.target)


@contextmanager
def held_at_the_fence(move: Move, *words: str) -> Iterator[tuple[Program, psycopg.Connection[Any]]]:
    """A cutover whose gates are passed and whose fence waits for a transaction that has written."""
    with closing(psycopg.connect(move.source)) as session:
        program = move.start(*move.over(), *words)
        hold(session, until=lambda: not program.running or move.switch == "begun")
        waits = (
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE 'mishika-migrate/switch%'"
            " AND wait_event_type = 'Lock' AND datname = current_database())"
        )
        wait_until(lambda: not program.running or ask(move.source, waits))
        assert program.running, program.said()
        yield program, session


@pytest.mark.parametrize("how", ["cut", pytest.param("stalled", marks=pytest.mark.soak)])
def test_network_cut_in_the_drain_lifts_the_fence(
    how: str, move: Move, tmp_path: Path, pair: Pair, proxy: Callable[[servers.Server], Proxy], run: Run,
    start: Start, traffic: Drive,
) -> None:  # fmt: skip
    way = proxy(pair.old)
    through = Move(move.source, move.target, tmp_path, run, start, reaching=way.url(move.source))
    through.follow()
    writes = traffic(through)
    with held_at_the_fence(through, "--timeout", "2s") as (program, session):
        if how == "cut":
            way.refuse = True
            way.cut()
        else:
            way.stall()
        session.commit()
        done = program.ended()
    assert done.status == 7, done.err
    assert "fence: no writes" in done.err
    assert "drain: " not in done.err, "it was to be cut before"
    assert "the fence is lifted, nothing was switched" in done.err
    assert through.switch == "aborted"
    writes.goes_on("source")
    way.refuse = False
    way.flow()
    through.arrived()
    through.well(*through.over())
    writes.goes_on("target")
    writes.stop()
    through.arrived()
    through.assert_same()
    writes.assert_kept(through.target)


@pytest.mark.parametrize("side", ["target", pytest.param("source", marks=pytest.mark.soak)])
def test_server_that_crashes_under_the_fence_does_not_keep_it_up(
    side: str, following: Move, pair: Pair, traffic: Drive
) -> None:
    writes = traffic(following)
    server = pair.new if side == "target" else pair.old
    with held_at_the_fence(following) as (program, session):
        server.stop("immediate")
        if side == "target":
            session.commit()
            writes.goes_on("source")  # without the target
        server.start()
        done = program.ended()
    assert (done.status, "nothing was switched" in done.err) == (7, True), done.err
    writes.goes_on("source")
    assert following("cutover", "--abort").status == 0
    if following("follow", "status").status:
        following.well("follow", "start")
    following.well(*following.over())
    writes.goes_on("target")
    writes.stop()
    following.arrived()
    following.assert_same()
    writes.assert_kept(following.target)


def test_transaction_that_does_not_end_lifts_the_fence(following: Move, traffic: Drive) -> None:
    writes = traffic(following)
    with held_at_the_fence(following, "--timeout", "2s") as (program, session):
        done = program.ended()
        assert done.status == 7, done.err
        assert "fence to switch took longer than 2 s" in done.err
        assert following.switch == "aborted"
        writes.goes_on("source")
        session.commit()
    assert following("cutover", "--abort").out.startswith("There is nothing to give up")
    following.well(*following.over())
    writes.goes_on("target")
    writes.assert_kept(following.target)


@pytest.mark.parametrize("what", ["UPDATE", pytest.param("LOCK", marks=pytest.mark.soak)])
def test_old_transaction_closes_the_gate(what: str, following: Move) -> None:
    ends: dict[model.Role, str] = {"source": following.source, "target": following.target}
    both = {role: moves.Server(end=endpoint(url, role)) for role, url in ends.items()}

    def closed() -> list[str]:
        with moves.opened(RULES, both, "forward", timeout=None) as move:
            return [gate.code for gate in gates.pass_all(move, gates.Wanted(patience=0.0)).unmet]

    with closing(psycopg.connect(following.source)) as session:
        if what == "UPDATE":
            session.execute('UPDATE "MishikaLLM_TeamTable" SET spend = spend + 1')
        else:
            session.execute('LOCK "MishikaLLM_TeamTable" IN SHARE MODE')
        assert closed() == ["long-transaction"]
    assert closed() == []


def test_changed_table_closes_the_gate_until_both_sides_have_the_change(following: Move, traffic: Drive) -> None:
    writes = traffic(following)
    change = 'ALTER TABLE "MishikaLLM_TeamTable" ADD COLUMN added int'
    ask(following.source, change)
    done = following(*following.over())
    assert done.status == 7
    assert "columns or keys of the source" in done.err
    assert following.switch == ""
    ask(following.source, 'UPDATE "MishikaLLM_TeamTable" SET added = 1')
    wait_until(lambda: not following.follows())
    assert following("follow", "status").status == 7
    ask(following.target, change)
    following.well("follow", "start")
    following.arrived()
    following.well(*following.over())
    writes.goes_on("target")
    writes.stop()
    following.arrived()
    following.assert_same()
    writes.assert_kept(following.target)


@contextmanager
def setting(server: servers.Server, name: str, value: str) -> Iterator[None]:
    looking.execute(server.url(), f"ALTER SYSTEM SET {name} = {value}", "SELECT pg_reload_conf()")
    try:
        wait_until(lambda: ask(server.url(), f"SELECT setting = '{value}' FROM pg_settings WHERE name = '{name}'"))
        yield
    finally:
        looking.execute(server.url(), f"ALTER SYSTEM RESET {name}", "SELECT pg_reload_conf()")


@pytest.mark.soak
def test_slot_that_the_source_gave_up_is_told_and_cleaned_up(following: Move, pair: Pair, traffic: Drive) -> None:
    writes = traffic(following)
    following.well("follow", "stop")
    lost = "SELECT wal_status = 'lost' FROM pg_replication_slots WHERE database = current_database()"
    with setting(pair.old, "max_slot_wal_keep_size", "1"):

        def fill() -> bool:
            looking.execute(following.source, "SELECT pg_switch_wal()", "CHECKPOINT")
            return bool(ask(following.source, lost))

        wait_until(fill)
    seen = following("follow", "status")
    assert seen.status == 7
    assert "has given the slot" in seen.err
    assert following(*following.over()).status == 7
    assert following("follow", "start").status == 4
    assert following.switch == ""
    writes.goes_on("source")
    following.well("complete")
    following.assert_gone()
    writes.goes_on("source")
    writes.assert_kept(following.source)


# -- the operator's command -----------------------------------------------------------------------


def test_command_that_fails_halfway_is_taken_back(following: Move, traffic: Drive, tmp_path: Path) -> None:
    writes = traffic(following)
    go = tmp_path / "go"
    program = following.start(
        "cutover", "--on-switch", f"{following.sending('target')}; while [ ! -e {go} ]; do sleep 0.05; done; exit 3"
    )
    writes.goes_on("target")
    go.touch()
    done = program.ended()
    assert done.status == 7, done.err
    assert "ended with status 3" in done.err
    assert "accepts writes again, with all that was written meanwhile" in done.err
    assert following.refusal("target") == "25006"
    following.address.write_text("source")
    writes.goes_on("source")
    following.arrived()
    assert following.follows()
    following.well(*following.over())
    writes.goes_on("target")
    writes.stop()
    following.arrived()
    following.assert_same()
    writes.assert_kept(following.target)


@pytest.mark.soak
def test_command_that_does_not_end_is_taken_back(following: Move, traffic: Drive, tmp_path: Path) -> None:
    writes = traffic(following)
    late = f"(sleep 4; {following.sending('target')}) & echo $! > {tmp_path}/child; wait"
    done = following("cutover", "--timeout", "3s", "--on-switch", late)
    assert done.status == 7, done.err
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    ended = not child.exists() or ") Z " in child.read_text()  # nobody may have waited for it
    assert ended, "what the command has begun would move traffic after all"
    assert "--on-switch took longer than" in done.err
    writes.goes_on("source")
    writes.stop()
    following.arrived()
    assert following.follows()
    assert len(following.slots) == 1
    following.assert_same()
    writes.assert_kept(following.source)


def test_second_cutover_is_refused(following: Move, traffic: Drive, tmp_path: Path) -> None:
    writes = traffic(following)
    go = tmp_path / "go"
    first = following.start(
        "cutover", "--on-switch", f"while [ ! -e {go} ]; do sleep 0.05; done; {following.sending('target')}"
    )
    wait_until(lambda: following.switch == "switching")
    second = following(*following.over())
    assert second.status == 4
    assert "another run is working" in second.err
    assert following("cutover", "--abort").status == 4
    assert following.refusal("source") == "25006"
    go.touch()
    assert first.ended().status == 0
    writes.goes_on("target")
    writes.assert_kept(following.target)


def test_command_that_fails_without_a_way_back_is_taken_back_by_sync(following: Move, traffic: Drive) -> None:
    writes = traffic(following)
    done = following("cutover", "--no-way-back", "--method", "replication", "--on-switch", "exit 3")
    assert done.status == 7, done.err
    assert "accepts writes again, with all that was written meanwhile" in done.err
    writes.goes_on("source")
    assert following.slots == []
    following.well(*following.over())
    writes.goes_on("target")
    following.well(*following.back())
    writes.goes_on("source")
    writes.assert_kept(following.source)


# -- one side is gone -----------------------------------------------------------------------------


@contextmanager
def down(server: servers.Server) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


@pytest.mark.parametrize("gone", ["target", pytest.param("source", marks=pytest.mark.soak)])
def test_complete_without_one_side_and_again_when_it_is_back(gone: str, following: Move, pair: Pair) -> None:
    left, other = ("target", "source") if gone == "source" else ("source", "target")
    following.well(*following.over())
    with down(pair.old if gone == "source" else pair.new):
        assert following("complete").status == 6
        assert following("complete", "--lost", left).status == 6, "that one is gone, not this one"
        done = following.well("complete", "--lost", gone)
        assert f"When the {gone} is back" in done.out
        assert ask(following.url(left), NAMED) == ""
    assert ask(following.url(other), NAMED) != ""
    following.well("complete")
    following.assert_gone()
    assert (following.refusal("source"), following.refusal("target")) == ("", "")


def test_rollback_from_a_lost_target(following: Move, pair: Pair, traffic: Drive) -> None:
    writes = traffic(following)
    following.well("cutover", "--margin", "0", "--on-switch", following.sending("target"))
    writes.goes_on("target")
    taken = ask(following.target, f'INSERT INTO "{MODELS}" (created_by, updated_by) VALUES (1, 1) RETURNING id')
    wait_until(lambda: ask(following.source, f'SELECT max(id) FROM "{MODELS}"') == taken)
    with down(pair.new):
        assert following.refusal("source") == "25006"
        assert following("rollback").status == 6
        assert following.refusal("source") == "25006"
        done = following.well("rollback", "--lost", "target")
        assert "The last sign of the target" in done.out
        following.address.write_text("source")
        writes.goes_on("source")
        alone = ask(
            following.source,
            "SELECT count(*) FROM pg_subscription WHERE subenabled AND subdbid = (SELECT oid"
            " FROM pg_database WHERE datname = current_database())",
        )
        assert alone == 0, "what comes from it later would overwrite what was written since"
        number = ask(following.source, f'INSERT INTO "{MODELS}" (created_by, updated_by) VALUES (1, 1) RETURNING id')
        assert number > taken, "the numbers of rows that came by replication are not given again"
    # The target is back, and with it what it has of its own.
    for words in (("cutover",), ("rollback",), ("follow", "start")):
        done = following(*words)
        assert (done.status, "both accept writes" in done.err) == (4, True), done.err
    assert following.refusal("source") == ""
    following.well("complete")
    following.assert_gone()
    writes.goes_on("source")
    writes.stop()
