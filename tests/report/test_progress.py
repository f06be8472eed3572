"""How far a run is, from its events alone."""

from __future__ import annotations

import pytest

from mishika_migrate import events, model
from mishika_migrate.report import progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plan(**sizes: tuple[float, int]) -> model.Plan:
    """Tables by name, each with its expected rows and bytes."""
    chosen = tuple(
        model.Chosen(table=name, stage="bulk", reason="", rows=rows, bytes=size) for name, (rows, size) in sizes.items()
    )
    return model.Plan(source="s", target="t", chosen=chosen, left=(), stages=(), findings=())


def finished(table: str, rows: int = 0, size: int = 0, *, kind: str = "CopyTable") -> events.StepFinished:
    return events.StepFinished(
        step=f"public.{table}", stage="bulk", table=table, kind=kind, rows=rows, bytes=size, seconds=2.0
    )


def test_shares_are_weighted_by_bytes() -> None:
    course = progress.Course(plan(small=(1000, 100), large=(10, 900)), clock=Clock())
    assert course.share == 0
    course.hear(finished("small", 1000, 50))
    assert course.share == pytest.approx(0.1)
    course.hear(events.Progress(table="large", rows=5, bytes=70))
    assert course.share == pytest.approx(0.1 + 0.45)
    assert course.bytes == 120


def test_table_is_whole_only_when_it_is_committed() -> None:
    course = progress.Course(plan(a=(10, 100)), clock=Clock())
    course.hear(events.Progress(table="a", rows=1000, bytes=10**9))
    assert course.share < 1
    course.hear(finished("a", 1000, 10**9))
    assert course.share == 1


def test_time_left_follows_from_the_share() -> None:
    clock = Clock()
    course = progress.Course(plan(a=(100, 100)), clock=clock)
    assert course.left is None
    clock.now += 10
    course.hear(events.Progress(table="a", rows=25, bytes=1))
    assert course.left == pytest.approx(30)


def test_what_an_earlier_attempt_did_makes_this_one_no_faster() -> None:
    clock = Clock()
    course = progress.Course(plan(a=(100, 100), b=(100, 100)), clock=clock)
    course.hear(events.StepKept(step="public.a", table="a", rows=100))
    assert course.share == pytest.approx(0.5)
    clock.now += 10
    assert course.left is None
    course.hear(events.Progress(table="b", rows=50, bytes=1))
    assert course.left == pytest.approx(10)


def test_retried_table_starts_from_nothing() -> None:
    course = progress.Course(plan(a=(100, 100), ba=(100, 100)), clock=Clock())
    for table in ("a", "ba"):
        course.hear(events.Progress(table=table, rows=50, bytes=50))
    course.hear(events.StepRetried(step="public.a", attempt=2, error="", wait=1.0))
    assert (course.rows["a"].rows, course.rows["ba"].rows) == (0, 50)
    course.hear(events.StepRetried(step="core (2 steps)", attempt=2, error="", wait=1.0))
    assert course.rows["ba"].began is None


def test_views_and_statistics_are_counted() -> None:
    course = progress.Course(plan(a=(1, 1)), clock=Clock())
    for title, steps in (("views", 2), ("statistics", 3)):
        course.hear(events.StageStarted(name="finish", title=title, steps=steps))
        course.hear(finished("", kind="CreateView"))
    assert [(chore.title, chore.done, chore.steps) for chore in course.chores] == [
        ("views", 2, 2),
        ("statistics", 1, 3),
    ]
    assert course.title == "statistics"


def test_rows_without_a_size_and_nothing_at_all() -> None:
    course = progress.Course(plan(a=(0, 0)), clock=Clock())
    assert course.share == 0
    course.hear(events.Progress(table="stranger", rows=5, bytes=5))
    course.hear(finished("a"))
    assert 0 <= course.share <= 1
    assert progress.Course(plan(), clock=Clock()).share == 1


def test_rate_of_a_table() -> None:
    clock = Clock()
    course = progress.Course(plan(a=(1, 1)), clock=clock)
    assert course.rate(course.rows["a"]) == 0
    course.hear(events.Progress(table="a", rows=1, bytes=100))
    clock.now += 4
    assert course.rate(course.rows["a"]) == pytest.approx(25)
    course.hear(finished("a", 1, 100))
    assert course.rate(course.rows["a"]) == pytest.approx(50)
