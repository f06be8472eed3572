"""How far a run is, from its events alone."""

from __future__ import annotations

from dataclasses import replace

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


def landed(table: str, rows: int = 0, size: int = 0, *, kind: str = "CopyTable", step: str = "") -> events.StepFinished:
    return events.StepFinished(
        step=step or f"public.{table}", stage="bulk", table=table, kind=kind, rows=rows, bytes=size, seconds=2.0
    )


def step(table: str, rows: int = 0, size: int = 0, *, kind: str = "CopyTable") -> events.StepFinished:
    return events.StepFinished(
        step=f"public.{table}", stage="bulk", table=table, kind=kind, rows=rows, bytes=size, seconds=2.0
    )


def finished(table: str, rows: int = 0, size: int = 0) -> events.TableFinished:
    return events.TableFinished(table=table, stage="bulk", rows=rows, bytes=size, seconds=2.0)


def test_shares_are_weighted_by_bytes() -> None:
    course = progress.Course(plan(small=(1000, 100), large=(10, 900)), clock=Clock())
    assert course.share == 0
    course.hear(step("small", 1000, 50))
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
    course.hear(events.TableKept(table="a", rows=100, steps=3, whole=True))
    assert course.share == pytest.approx(0.5)
    clock.now += 10
    assert course.left is None
    course.hear(events.Progress(table="b", rows=50, bytes=1))
    assert course.left == pytest.approx(10)


def test_kept_ranges_make_this_attempt_no_faster_either() -> None:
    clock = Clock()
    course = progress.Course(plan(a=(100, 100)), clock=clock)
    course.hear(events.TableKept(table="a", rows=60, steps=3, whole=False))
    assert course.share == pytest.approx(0.6)
    assert not course.rows["a"].done
    clock.now += 10
    assert course.left is None
    course.hear(events.Progress(table="a", rows=80, bytes=1))
    assert course.left == pytest.approx(10)


def test_ranges_add_up_and_never_count_less_than_the_server_did() -> None:
    """The server's numbers come twice a second, and only from PostgreSQL 14 on."""
    course = progress.Course(plan(a=(100, 100)), clock=Clock())
    course.hear(step("a", 20, 200))
    course.hear(events.Progress(table="a", rows=50, bytes=500))
    course.hear(step("a", 20, 200))
    assert (course.rows["a"].rows, course.rows["a"].bytes, course.rows["a"].done) == (50, 500, False)
    course.hear(step("a", 60, 600))
    assert (course.rows["a"].rows, course.share) == (100, 0.99)
    course.hear(finished("a", 100, 1000))
    assert course.share == 1


def test_retried_table_starts_from_what_has_landed() -> None:
    course = progress.Course(plan(a=(100, 100), ba=(100, 100)), clock=Clock())
    course.hear(step("a", 10, 10))
    for table in ("a", "ba"):
        course.hear(events.Progress(table=table, rows=50, bytes=50))
    course.hear(events.StepRetried(step="public.a[8,16)", attempt=2, error="", wait=1.0))
    assert (course.rows["a"].rows, course.rows["ba"].rows) == (10, 50)
    course.hear(events.StepRetried(step="public.ba(public.leaf)[0,8)", attempt=2, error="", wait=1.0))
    assert (course.rows["ba"].rows, course.rows["ba"].began) == (0, None)
    course.hear(events.Progress(table="ba", rows=50, bytes=50))
    course.hear(events.StepRetried(step="core (2 steps)", attempt=2, error="", wait=1.0))
    assert (course.rows["a"].rows, course.rows["ba"].rows, course.rows["ba"].began) == (10, 0, None)
    assert course.rows["a"].began is not None


def test_views_and_statistics_are_counted() -> None:
    course = progress.Course(plan(a=(1, 1)), clock=Clock())
    for title, steps in (("views", 2), ("statistics", 3)):
        course.hear(events.StageStarted(name="finish", title=title, steps=steps))
        course.hear(landed("", kind="CreateView"))
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
    course.hear(events.Progress(table="a", rows=1, bytes=1000))
    clock.now += 4
    assert course.rate(course.rows["a"]) == 0
    course.hear(events.Progress(table="a", rows=2, bytes=1100))
    assert course.rate(course.rows["a"]) == pytest.approx(25)
    course.hear(finished("a", 1, 2000))
    assert course.rate(course.rows["a"]) == pytest.approx(1000)


def test_ranges_of_a_table_are_one_line() -> None:
    course = progress.Course(plan(a=(100, 100)), clock=Clock())
    course.hear(landed("a", 30, 30, step="public.a[0,8)"))
    course.hear(events.Progress(table="a", rows=40, bytes=40))
    course.hear(landed("a", 30, 30, step="public.a[8,)"))
    assert list(course.rows) == ["a"]
    assert (course.rows["a"].rows, course.rows["a"].done) == (60, False)
    course.hear(events.StepRetried(step="public.a[0,8)", attempt=2, error="", wait=1.0))
    assert course.rows["a"].rows == 60
    course.hear(finished("a", 100, 100))
    assert course.rows["a"].done


def test_indexes_are_building_until_they_are_built() -> None:
    builds = tuple(model.BuildIndex(target=model.TableName(schema="public", name="a"), name=f"{n} idx") for n in "xy")
    stage = model.Stage(name="indexes", title="building", atomic=False, steps=builds)
    course = progress.Course(replace(plan(a=(1, 1)), stages=(stage,)), clock=Clock())
    course.hear(finished("a", 1, 1))
    course.hear(events.StageStarted(name="indexes", title="building", steps=2))
    for build, share in zip(builds, (0.5, 0.1), strict=True):
        course.hear(events.Building(step=build.id, share=share))
    assert course.building == {"x idx": 0.5, "y idx": 0.1}
    assert course.share == 1
    assert course.stage_share == pytest.approx(0.3)
    course.hear(landed("", kind="BuildIndex", step=builds[0].id))
    course.hear(events.Building(step=builds[0].id, share=0.9))  # from before it ended
    assert course.building == {"y idx": 0.1}
    course.hear(events.StageStarted(name="finish", title="views", steps=1))
    assert course.building == {}
