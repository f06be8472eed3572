"""What is under way comes to an end, at once and nothing else with it, whatever the network does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, interrupt
from mishika_migrate.sandbox import servers
from tests.fix_faults import ask, backends, wait_until
from tests.fix_network import Proxy
from tests.fix_servers import Clone, Pair, endpoint


@pytest.fixture
def url(pair: Pair, clone: Clone) -> str:
    return clone(pair.new, "template0")


@pytest.fixture
def target(url: str) -> model.Endpoint:
    return endpoint(url, "target")


class Asleep:
    """A session that waits in the server, in a thread, and what it ended with."""

    def __init__(self, end: model.Endpoint, name: str, query: str = "SELECT pg_sleep(60)") -> None:
        self.error: BaseException | None = None
        self.session = connect.open(end, name=name)
        self._end, self._query = end, query
        self.thread = threading.Thread(target=self._wait)
        self.thread.start()

    def _wait(self) -> None:
        try:
            with connect.translated(self._end):
                self.session.execute(self._query.encode())
        except errors.Error as error:
            self.error = error
        finally:
            connect.close(self.session)


def active(url: str, name: str) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %(name)s AND wait_event = 'PgSleep'"
    return bool(ask(url, query, {"name": name}))


def test_cancel_ends_what_sessions_of_that_name_wait_for(url: str, target: model.Endpoint) -> None:
    ours, theirs = Asleep(target, "mishika-migrate/a/step/1"), Asleep(target, "mishika-migrate/b/step/1")
    idle = connect.open(target, name="mishika-migrate/a/idle")
    wait_until(lambda: active(url, "mishika-migrate/a/step/1") and active(url, "mishika-migrate/b/step/1"))
    interrupt.cancel("mishika-migrate/a/")
    ours.thread.join(5)
    assert isinstance(ours.error, errors.ServerError)
    assert ours.error.sqlstate == "57014"
    assert theirs.thread.is_alive()
    assert idle.execute("SELECT 1").fetchone() == (1,)
    connect.close(idle)
    interrupt.sever("mishika-migrate/b/")
    theirs.thread.join(5)
    assert isinstance(theirs.error, errors.ServerError)
    assert (theirs.error.sqlstate, theirs.error.transient) == (None, True)
    # The server notices that its client has gone while it still sleeps.
    wait_until(lambda: backends(url, "mishika-migrate/%") == 0, seconds=10)


def test_cancel_and_sever_may_meet_sessions_that_end_just_then(target: model.Endpoint) -> None:
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            try:
                with connect.session(target, name="mishika-migrate/x/step/1") as session:
                    session.execute("SELECT pg_sleep(0.002)")
            except errors.ServerError:
                pass  # cancelled, or cut off

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        interrupt.cancel("mishika-migrate/x/")
        interrupt.sever("mishika-migrate/x/")
        over.wait(0.002)
    over.set()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


def test_leftovers_of_runs_are_ended_and_nothing_else(url: str, target: model.Endpoint, pair: Pair) -> None:
    names = ["mishika-migrate/a/step/1", "mishika-migrate/a/step/12", "mishika-migrate/a/watch", "mishika-migrate/plan"]
    names += ["psql"]
    others = {name: connect.open(target, name=name) for name in names}
    elsewhere = connect.open(endpoint(pair.new.url(), "target"), name="mishika-migrate/a/step/1")

    def alive() -> list[str]:
        return [name for name in names if backends(url, name)]

    with connect.session(target, name="mishika-migrate/b/watch") as session:
        assert interrupt.end_leftovers(session, "mishika-migrate/a/step/12") == 1
        assert alive() == [name for name in names if name != "mishika-migrate/a/step/12"]
        assert interrupt.end_leftovers(session, "mishika-migrate/") == 1
        assert alive() == ["mishika-migrate/a/watch", "mishika-migrate/plan", "psql"]
        pid = others["mishika-migrate/a/watch"].info.backend_pid
        assert interrupt.end_leftovers(session, "mishika-migrate/a/watch", pid=pid) == 1
        assert interrupt.end_leftovers(session, "mishika-migrate/") == 0
    assert elsewhere.execute("SELECT 1").fetchone() == (1,)
    for other in (*others.values(), elsewhere):
        connect.close(other)


def test_stalled_cancel_does_not_hold_up_the_program(
    url: str, pair: Pair, proxy: Callable[[servers.Server], Proxy]
) -> None:
    way = proxy(pair.new)
    asleep = Asleep(endpoint(way.url(url), "target"), "mishika-migrate/a/step/1")
    wait_until(lambda: active(url, "mishika-migrate/a/step/1"))
    way.stall()
    began = time.monotonic()
    interrupt.cancel("mishika-migrate/a/")
    interrupt.sever("mishika-migrate/a/")
    asleep.thread.join(5)
    assert time.monotonic() - began < 1
    assert isinstance(asleep.error, errors.ServerError)
