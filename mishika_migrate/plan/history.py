"""A part of history by time: which rows are asked for, how many that may be, and slices of it. Pure.

Imports matrix and the words. What the planner's statistics know of a time column (the bounds of
equally full buckets) is enough to size slices without reading a row.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from mishika_migrate import matrix, model

GROUP = "spendlogs"
"""The group of the matrix that the options are about."""

# An index that reads more of the table than this costs more than the pages themselves.
_BY_INDEX = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Rows not before `since` and before `before`, in naive UTC as the proxy writes them; None is open."""

    since: datetime | None = None
    before: datetime | None = None


def interval(entry: matrix.Entry | None, table: model.Table, span: Span | None) -> model.Interval | None:
    """What the span means for a table, None where it means nothing."""
    if span is None or entry is None or entry.group != GROUP or entry.time_column is None:
        return None
    if table.column(entry.time_column) is None:
        return None
    return model.Interval(column=entry.time_column, since=_text(span.since), before=_text(span.before))


def span(within: model.Interval) -> Span:
    """The span that an interval was made of."""
    return Span(since=_parsed(within.since), before=_parsed(within.before))


def narrowed(step: model.CopyTable, within: model.Interval | None, spread: Sequence[datetime]) -> model.CopyTable:
    """The step for the rows of an interval alone, with about their number and size."""
    if within is None:
        return step
    part = share(within, spread)
    return dataclasses.replace(step, within=within, rows=step.rows * part, bytes=int(step.bytes * part))


def share(within: model.Interval, spread: Sequence[datetime]) -> float:
    """About which share of the table's rows that is; 1 where nothing is known."""
    if len(spread) < 2:
        return 1.0
    low = _place(spread, within.since, default=0.0)
    high = _place(spread, within.before, default=1.0)
    return max(high - low, 1 / len(spread))  # rows newer than the statistics are in no bucket


def slices(
    step: model.CopyTable, table: model.Table, spread: Sequence[datetime], *, batch: int
) -> tuple[model.CopyTable, ...]:
    """The step in slices of about `batch` bytes, read by the time column's index.

    Empty where pages are cheaper, or where there is no such index or nothing is known of the times.
    The first slice begins and the last one ends where the interval does.
    """
    within = step.within
    indexed = within is not None and any(index.columns[:1] == (within.column,) for index in table.indexes)
    if within is None or not indexed or len(spread) < 2 or share(within, spread) > _BY_INDEX:
        return ()
    count = max(round(step.bytes / batch), 1)
    cuts = [None, *dict.fromkeys(_text(moment) for moment in _cuts(within, spread, count)), None]
    bounds = [within.since, *cuts[1:-1], within.before]
    return tuple(
        dataclasses.replace(
            step,
            slice=model.Interval(column=within.column, since=low, before=high),
            rows=step.rows / (len(bounds) - 1),
            bytes=step.bytes // (len(bounds) - 1),
        )
        for low, high in itertools.pairwise(bounds)
    )


def _cuts(within: model.Interval, spread: Sequence[datetime], count: int) -> Iterator[datetime]:
    """Moments that divide the interval's rows equally, as far as the buckets tell."""
    low = _place(spread, within.since, default=0.0)
    high = _place(spread, within.before, default=1.0)
    for n in range(1, count):
        moment = _moment(spread, low + (high - low) * n / count)
        if _inside(moment, within):
            yield moment


def _inside(moment: datetime, within: model.Interval) -> bool:
    since, before = _parsed(within.since), _parsed(within.before)
    return (since is None or moment > since) and (before is None or moment < before)


def _place(spread: Sequence[datetime], text: str | None, *, default: float) -> float:
    """The share of rows before a moment."""
    moment = _parsed(text)
    if moment is None:
        return default
    n = bisect.bisect_left(spread, moment)
    if n in (0, len(spread)):
        return n / len(spread)
    before, after = spread[n - 1], spread[n]
    part = (moment - before) / (after - before) if after > before else 0.0
    return (n - 1 + part) / (len(spread) - 1)


def _moment(spread: Sequence[datetime], place: float) -> datetime:
    exact = min(max(place, 0.0), 1.0) * (len(spread) - 1)
    n = min(int(exact), len(spread) - 2)
    return spread[n] + (spread[n + 1] - spread[n]) * (exact - n)


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="milliseconds") if moment is not None else None


def _parsed(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text is not None else None
