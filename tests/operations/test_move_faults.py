"""A move that is disturbed: killed programs, servers that restart, rows in the way, a network that is cut.

Each ends with a known state, and with every write that anybody was told of.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping

import pytest

from tests.fix_faults import ask, state
from tests.fix_moves import COPY, Move, Taps, Traffic, killed
from tests.fix_program import Ended

Drive = Callable[[Move], Traffic]
KILL, INT = signal.SIGKILL, signal.SIGINT

MANY = (5, 15, 25, 45, 55, 62, 75, 80, 84, 88, 93, 96, 98, 100)


def instants(*few: int) -> list[object]:
    """Of all messages from a command's begin to its end, in percent; `few` are for ordinary runs."""
    return [
        *(pytest.param(share, KILL) for share in few),
        *(pytest.param(share, KILL, marks=pytest.mark.soak) for share in MANY if share not in few),
        *(pytest.param(share, INT, marks=pytest.mark.soak) for share in MANY),
    ]


# -- the program is killed ------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "how"), instants(35, 99))
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


@pytest.mark.parametrize(("share", "how"), instants(45, 75, 96))
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


@pytest.mark.parametrize(("share", "how"), instants(55, 98))
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
    """A program that was only interrupted has put everything right, and says what is true."""
    if done.status == -KILL:
        return
    assert done.status in (0, 7, 130), done.err
    if done.status == 0:
        assert move.switch == "finished"
        assert move.refusal(away) == "25006"
    else:
        assert move.switch in ("", "aborted", "finished", "undone"), done.err
        assert (move.refusal(away), move.address.read_text()) == ("", away), done.err
    assert move.refusal(toward) == ""


@pytest.mark.parametrize(("share", "how"), instants(62, 88))
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
