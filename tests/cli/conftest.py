"""One filled source for all tests of the commands, which only read it: a database of its own takes 0.35 s."""

from __future__ import annotations

import psycopg
import pytest

from tests.fix_servers import Pair


@pytest.fixture(scope="session")
def common_source(pair: Pair) -> str:
    with psycopg.connect(pair.old.url(), autocommit=True) as session:
        session.execute("CREATE DATABASE common TEMPLATE filled")
    return pair.old.url("common")


@pytest.fixture
def source_url(common_source: str) -> str:
    """The same for every test of a worker: whoever changes a source makes one of his own with `clone`."""
    return common_source
