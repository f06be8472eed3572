"""The books of a run: what has landed, table by table.

Imports events and the words.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from mishika_migrate import events, model


class Accounts:
    """What has landed, table by table: a table may take many steps, and be the work of several attempts."""

    def __init__(self, todo: model.Plan) -> None:
        self._steps: dict[str, list[str]] = {}
        self._stages: dict[str, str] = {}
        for stage in todo.stages:
            for step in (step for step in stage.steps if isinstance(step, model.CopyTable)):
                self._steps.setdefault(step.target.name, []).append(step.id)
                self._stages[step.target.name] = stage.name
        self._open = {table: set(steps) for table, steps in self._steps.items()}
        self._sums: dict[str, tuple[int, int]] = {}
        self._before: dict[str, tuple[int, int]] = {}
        self._began: dict[str, float] = {}
        self._seconds: dict[str, float] = {}

    def kept(self, landed: Mapping[str, model.Landed]) -> Iterator[events.TableKept]:
        """Tables of which an earlier attempt has done something that stays."""
        for table, steps in self._steps.items():
            mine = [landed[step] for step in steps if step in landed]
            self._open[table].difference_update(step.step for step in mine)
            if mine:
                rows = sum(each.rows_in for each in mine)
                size = sum(each.bytes for each in mine)
                self._sums[table] = self._before[table] = (rows, size)
                yield events.TableKept(table=table, rows=rows, bytes=size, steps=len(mine), whole=not self._open[table])

    def finished(self, step: events.StepFinished) -> events.TableFinished | None:
        """The table's end, when that was its last step."""
        now = time.monotonic()
        rows, size = self._sums.get(step.table, (0, 0))
        self._sums[step.table] = (rows + step.rows, size + step.bytes)
        self._began[step.table] = min(self._began.get(step.table, now), now - step.seconds)
        self._open[step.table].discard(step.step)
        if self._open[step.table]:
            return None
        # Steps of an atomic stage land together: each table took what its own COPY took.
        alone = len(self._steps[step.table]) == 1
        self._seconds[step.table] = step.seconds if alone else now - self._began[step.table]
        rows, size = self._sums[step.table]
        return events.TableFinished(
            table=step.table, stage=step.stage, rows=rows, bytes=size, seconds=self._seconds[step.table]
        )

    def all(self, landed: Mapping[str, model.Landed], entries: Mapping[str, model.Landed]) -> tuple[model.Account, ...]:
        """What the workers saw beside what the ledger holds; every step has landed."""
        return tuple(
            model.Account(
                table=table,
                rows_out=sum(landed[step].rows_out for step in steps),
                rows_in=sum(landed[step].rows_in for step in steps),
                rows_ledger=sum(entries[step].rows_in for step in steps),
                bytes=sum(landed[step].bytes for step in steps),
                seconds=self._seconds.get(table, 0.0),
                kept=self._before.get(table, (0, 0))[0],
                kept_bytes=self._before.get(table, (0, 0))[1],
            )
            for table, steps in self._steps.items()
        )
