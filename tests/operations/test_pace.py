"""The arithmetic of the bucket, by a clock of the test's own, and who is let through. No server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import cast

import pytest

from mishika_migrate import model
from mishika_migrate.operations.copying import pace
from mishika_migrate.pg import connect, control
from tests.fix_faults import wait_until

MB = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def bucket(rate: float | None) -> tuple[pace.Bucket, Clock]:
    clock = Clock()
    made = pace.Bucket(clock=clock)
    made.set(rate)
    return made, clock


def test_bytes_pass_at_the_rate_whatever_their_portions() -> None:
    for portion in (1_000, 128 * 1024, 5 * MB):
        made, clock = bucket(10 * MB)
        began, size = clock.now, 0
        while size < 100 * MB:
            made.take(portion)
            size += portion
            clock.now += made.wait
        assert size / (clock.now - began) == pytest.approx(10 * MB, rel=0.001)


def test_several_takers_wait_for_all_that_was_taken() -> None:
    made, clock = bucket(10 * MB)
    for _ in range(4):
        made.take(MB)
    assert made.wait == pytest.approx(0.4)
    clock.now += 0.4
    assert made.wait == 0


def test_a_lull_saves_a_fifth_of_a_second_and_no_more() -> None:
    made, clock = bucket(10 * MB)
    clock.now += 3600
    made.take(3 * MB)
    assert made.wait == pytest.approx(0.1)


def test_new_rate_counts_from_now_on_and_none_forgets_what_is_owed() -> None:
    made, clock = bucket(1 * MB)
    made.take(10 * MB)
    clock.now += 5
    made.set(5 * MB)
    assert made.wait == pytest.approx(1.0)
    made.set(None)
    assert made.wait == 0
    made.take(10 * MB)
    made.set(5 * MB)
    assert made.wait == pytest.approx(2.0)


RUN = "a run"


@pytest.fixture(autouse=True)
def led() -> Iterator[None]:
    yield
    pace.end(RUN)


class Taker(threading.Thread):
    """Takes one block of the run in a thread of its own, in the process that leads it: no server is asked."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stop, self.passed, self.stopped = threading.Event(), threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        nowhere = model.Endpoint(role="target", conninfo="", label="nowhere")
        try:
            with pace.kept(RUN, nowhere, cast(connect.Session, None), stopping=self.stop.is_set) as take:
                take(MB)
        except connect.Stopped:
            self.stopped.set()
        else:
            self.passed.set()


@pytest.mark.parametrize(
    "held", [control.Orders(paused=True), control.Orders(waiting=True), control.Orders(rate=1, share=1)]
)
def test_held_block_passes_once_it_may(held: control.Orders) -> None:
    pace.lead(RUN, held)
    taker = Taker()
    assert not taker.passed.is_set()
    pace.lead(RUN, control.Orders())
    wait_until(taker.passed.is_set)


def test_held_block_is_given_up_when_the_task_is_to_end() -> None:
    pace.lead(RUN, control.Orders(paused=True))
    taker = Taker()
    taker.stop.set()
    wait_until(taker.stopped.is_set)
