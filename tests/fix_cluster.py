"""A Dask cluster of two worker processes, and the processes that work for a program."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest


class Cluster:
    """A scheduler and two workers with two threads each, which a nanny starts again when one is killed."""

    def __init__(self) -> None:
        self._made: Any = distributed.LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address="127.0.0.1:0", silence_logs=False
        )
        self.client: Any = distributed.Client(self._made, set_as_default=False)  # type: ignore[no-untyped-call]
        self.address: str = self._made.scheduler_address

    def kill_busy(self) -> int:
        """SIGKILL to a worker that works on a task; its process id."""
        pids = self.client.run(os.getpid)
        pid = next(pids[worker] for worker, tasks in self.client.processing().items() if tasks)
        os.kill(pid, signal.SIGKILL)
        return int(pid)

    def complete(self) -> bool:
        """Whether both workers are there and idle."""
        busy = self.client.processing()
        return len(busy) == 2 and not any(busy.values())

    def said(self) -> str:
        """All that its logs and its scheduler's memory of tasks hold."""
        logs = {**self.client.get_worker_logs(), "scheduler": self.client.get_scheduler_logs()}
        return f"{logs} {self.client.run_on_scheduler(_memory)}"

    def close(self) -> None:
        self.client.close()
        self._made.close()


def _memory(dask_scheduler: Any) -> str:
    known = [(repr(task), repr(task.annotations), task.key) for task in dask_scheduler.tasks.values()]
    return f"{known} {list(dask_scheduler.transition_log)}"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.close()


def children(pid: int) -> list[int]:
    """The processes that this one has begun and that work for it."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(each) for each in (task / "children").read_text().split()]
    return [each for each in found if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]
