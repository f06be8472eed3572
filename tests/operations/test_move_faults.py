"""A move that is disturbed: killed programs, servers that restart, rows in the way, a network that is cut.

Each ends with a known state, and with every write that anybody was told of.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping

import pytest

from tests.fix_faults import ask, state
from tests.fix_moves import COPY, Move, Taps, Traffic, killed

Drive = Callable[[Move], Traffic]
KILL, INT = signal.SIGKILL, signal.SIGINT

# Of all messages from a command's begin to its end, in percent.
FEW = (35, 70, 97)
MANY = (5, 15, 25, 45, 55, 62, 80, 88, 93, 100)
INSTANTS = [
    *((share, KILL) for share in FEW),
    *(pytest.param(share, KILL, marks=pytest.mark.soak) for share in MANY),
    *(pytest.param(share, INT, marks=pytest.mark.soak) for share in (*FEW, *MANY)),
]


# -- the program is killed ------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "how"), INSTANTS)
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
    tapped.well("cutover", "--dry-run")


_CONTINUED = {"nothing": COPY, "some": ("copy", "--resume"), "all": ("follow", "start")}


def _left(target: str) -> str:
    """How much of the copy has landed, by its ledger."""
    found = state(target)
    if found == "finished":
        return "all"
    some = found is not None and ask(target, "SELECT count(*) FROM mishika_migrate.step WHERE NOT stale")
    return "some" if some else "nothing"
