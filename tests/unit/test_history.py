"""A part of history: what is asked for, about how much that is, and slices that lose nothing."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mishika_migrate import model
from mishika_migrate.plan import history
from tests.values import entry

BEGIN = datetime(2026, 1, 1)
MOMENTS = st.datetimes(min_value=datetime(2025, 6, 1), max_value=datetime(2027, 6, 1)).map(
    lambda moment: moment.replace(microsecond=0)
)
SPREADS = st.lists(MOMENTS, min_size=2, max_size=40, unique=True).map(sorted)


def column(name: str) -> model.Column:
    return model.Column(name=name, type="timestamp(3) without time zone", nullable=False)


def table(*, indexed: bool = True) -> model.Table:
    index = model.Index(name="i", definition="", columns=("at",), unique=False, primary=False)
    return model.Table(
        name="t", columns=(column("at"),), rows=1000.0, bytes=10**9, occupied=True, indexes=(index,) if indexed else ()
    )


def step(within: model.Interval | None = None, *, size: int = 10**9) -> model.CopyTable:
    name = model.TableName(schema="public", name="t")
    return model.CopyTable(
        source=name, target=name, columns=("at",), binary=True, partitioned=False, rows=1e3, bytes=size, within=within
    )


def interval(since: datetime | None, before: datetime | None) -> model.Interval:
    texts = (moment.isoformat(timespec="milliseconds") if moment else None for moment in (since, before))
    return model.Interval(column="at", since=next(texts), before=next(texts))


def test_only_the_group_of_the_request_log_has_an_interval() -> None:
    span = history.Span(since=BEGIN)
    logs = entry("t", stage="bulk", group="spendlogs", time_column="at")
    assert history.interval(logs, table(), span) == interval(BEGIN, None)
    assert history.interval(logs, table(), None) is None
    assert history.interval(None, table(), span) is None
    assert history.interval(entry("t", stage="bulk", group="usage", time_column="at"), table(), span) is None
    assert history.interval(entry("t", stage="bulk", group="spendlogs", time_column="then"), table(), span) is None


@given(spread=SPREADS, since=st.none() | MOMENTS, before=st.none() | MOMENTS, count=st.integers(1, 30))
def test_slices_are_adjacent_and_cover_the_interval(
    spread: list[datetime], since: datetime | None, before: datetime | None, count: int
) -> None:
    within = interval(since, before)
    found = history.slices(step(within, size=count * 10), table(), spread, batch=10)
    if not found:
        return
    parts = [part.slice for part in found]
    assert all(part is not None for part in parts)
    assert parts[0].since == within.since  # type: ignore[union-attr]
    assert parts[-1].before == within.before  # type: ignore[union-attr]
    for one, next_one in itertools.pairwise(parts):
        assert one.before == next_one.since is not None  # type: ignore[union-attr]
    bounds = [part.since for part in parts[1:]]  # type: ignore[union-attr]
    assert bounds == sorted(set(map(str, bounds)))
    assert len({part.id for part in found}) == len(found)


def test_slices_follow_the_rows_not_the_calendar() -> None:
    """Nine tenths of the rows in one day, of a year."""
    spread = [BEGIN, *(BEGIN + timedelta(days=300, hours=hour) for hour in range(10)), BEGIN + timedelta(days=365)]
    within = interval(BEGIN + timedelta(days=300, hours=7), None)
    found = history.slices(step(within, size=300), table(), spread, batch=100)
    assert len(found) == 3
    assert found[0].slice == model.Interval(
        column="at",
        since="2026-10-28T07:00:00.000",
        before=found[1].slice.since,  # type: ignore[union-attr]
    )
    assert found[1].slice.since < "2026-10-28T10:00"  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("reason", ["no index", "no statistics", "most of the table", "no interval"])
def test_pages_serve_where_times_do_not(reason: str) -> None:
    spread = [] if reason == "no statistics" else [BEGIN + timedelta(days=day) for day in range(101)]
    since = BEGIN + timedelta(days=10 if reason == "most of the table" else 90)
    given_step = step(None if reason == "no interval" else interval(since, None))
    assert history.slices(given_step, table(indexed=reason != "no index"), spread, batch=10**8) == ()


def test_estimates_shrink_with_the_interval() -> None:
    spread = [BEGIN + timedelta(days=day) for day in range(101)]
    narrowed = history.narrowed(step(), interval(BEGIN + timedelta(days=75), None), spread)
    assert (round(narrowed.rows), round(narrowed.bytes / 10**7)) == (250, 25)
    unknown = history.narrowed(step(), interval(BEGIN, None), ())
    assert (unknown.rows, unknown.bytes) == (1e3, 10**9)
