"""What the target's server tells of a run: rows of open COPYs, and shares of index builds."""

from __future__ import annotations

from contextlib import ExitStack, closing

import psycopg
import pytest

from mishika_migrate.pg import connect, progress
from tests.fix_faults import ask, wait_until
from tests.fix_servers import Clone, Pair, endpoint


@pytest.fixture
def url(pair: Pair, clone: Clone) -> str:
    return clone(pair.new, "template0")


def test_moving_counts_the_copies_of_this_run_only(url: str) -> None:
    ask(url, "CREATE TABLE t (n int)")
    end = endpoint(url, "target")
    with connect.session(end, name="mishika-migrate/a run/watch") as session:
        with ExitStack() as stack:
            for run in ("a run", "b"):
                other = stack.enter_context(connect.session(end, name=f"mishika-migrate/{run}/step/0"))
                copy = stack.enter_context(other.cursor().copy("COPY public.t FROM STDIN"))
                copy.write(b"1\n" * 4_000_000)
            wait_until(lambda: "t" in progress.moving(session, run="a run"))
            rows, size = progress.moving(session, run="a run")["t"]
            assert 0 < rows <= 4_000_000
            assert 2 * rows <= size <= 8_000_000
        assert progress.moving(session, run="a run") == {}


def test_building_tells_the_steps_of_this_run_only(url: str) -> None:
    """Both builds wait for a writer: their phase has not begun, and they are known all the same."""
    ask(url, "CREATE TABLE t (n int); CREATE TABLE u (n int)")
    builds = {"a run/step/17": "CREATE INDEX CONCURRENTLY ON t (n)", "b/step/3": "CREATE INDEX CONCURRENTLY ON u (n)"}
    end = endpoint(url, "target")
    with connect.session(end, name="mishika-migrate/a run/watch") as session:
        with ExitStack() as stack:
            writer = stack.enter_context(psycopg.connect(url))
            writer.execute("LOCK TABLE t, u IN ROW EXCLUSIVE MODE")
            for name, build in builds.items():
                builder = psycopg.connect(url, autocommit=True, application_name=f"mishika-migrate/{name}")
                other = stack.enter_context(closing(builder))
                other.pgconn.send_query(build.encode())
                stack.callback(other.pgconn.get_cancel().cancel)
            count = "SELECT count(*) FROM pg_stat_progress_create_index"
            wait_until(lambda: ask(url, count) == 2)
            assert progress.building(session, run="a run") == {17: 0.0}
        wait_until(lambda: progress.building(session, run="a run") == {})
