"""What is asked of a server about its foreign keys, sequences and views."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mishika_migrate import model
from mishika_migrate.pg import connect, continuity
from tests.fix_servers import Clone, Pair, endpoint
from tests.looking import execute

SCHEMA = 'A "schema" 100%'


@pytest.fixture
def url(pair: Pair, clone: Clone) -> str:
    """An empty database on the old server with a schema that needs quotes."""
    made = clone(pair.old, "template0")
    quoted = SCHEMA.replace('"', '""')
    execute(
        made,
        f'CREATE SCHEMA "{quoted}"; ALTER DATABASE {made.split("/")[3].split("?")[0]} SET search_path = "{quoted}"',
    )
    return made


@pytest.fixture
def session(url: str) -> Iterator[connect.Session]:
    with connect.session(endpoint(url, "target"), name="test") as opened:
        yield opened


def name(bare: str) -> model.TableName:
    return model.TableName(schema=SCHEMA, name=bare)


def keys(session: connect.Session, *tables: str) -> dict[str, continuity.Key]:
    return {key.name: key for key in continuity.keys(session, SCHEMA, tables)}


# -- foreign keys ---------------------------------------------------------------------------------

VALUES = st.lists(st.tuples(st.none() | st.integers(0, 2), st.none() | st.sampled_from(["a", "b", "A"])), max_size=6)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(there=st.sets(st.tuples(st.integers(0, 2), st.sampled_from(["a", "b", "A"]))), rows=VALUES)
def test_broken_rows_are_those_of_the_sql_standard(
    url: str, there: set[tuple[int, str]], rows: list[tuple[int | None, str | None]]
) -> None:
    with psycopg.connect(url, autocommit=True) as writer:
        writer.execute(
            'DROP TABLE IF EXISTS simple, "full", "Parent";'
            ' CREATE TABLE "Parent" ("A n" int8, b text, UNIQUE (b, "A n"))'
        )
        for kind in ("simple", "full"):
            writer.execute(
                f'CREATE TABLE "{kind}" (x int, y varchar, CONSTRAINT "{kind}" FOREIGN KEY (x, y)'.encode()
                + f' REFERENCES "Parent" ("A n", b) MATCH {kind})'.encode()
            )
        writer.execute("SET session_replication_role = replica")
        with writer.cursor() as cursor:
            cursor.executemany('INSERT INTO "Parent" VALUES (%s, %s)', list(there))
            cursor.executemany("INSERT INTO simple VALUES (%s, %s)", rows)
            cursor.executemany('INSERT INTO "full" VALUES (%s, %s)', rows)
    with connect.session(endpoint(url, "target"), name="test") as session:
        found = keys(session, "Parent")
        counts = {kind: continuity.broken(session, key) for kind, key in found.items()}
    whole = sum(None not in row and row not in there for row in rows)
    half = sum(row.count(None) == 1 for row in rows)
    assert counts == {"simple": whole, "full": whole + half}


def test_rows_of_partitions_are_looked_at_and_those_of_inheriting_tables_are_not(
    url: str, session: connect.Session
) -> None:
    execute(
        url,
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE p1 PARTITION OF p DEFAULT",
        "CREATE TABLE c (id int CONSTRAINT k REFERENCES p) PARTITION BY LIST (id)",
        "CREATE TABLE c1 PARTITION OF c DEFAULT",
        "CREATE TABLE o (id int CONSTRAINT o REFERENCES p); CREATE TABLE heir () INHERITS (o)",
        "INSERT INTO p VALUES (1); INSERT INTO heir VALUES (7)",
        "SET session_replication_role = replica; INSERT INTO c VALUES (1), (2), (3), (NULL); INSERT INTO o VALUES (1)",
    )
    found = keys(session, "c", "o")
    assert {each: continuity.broken(session, key) for each, key in found.items()} == {"k": 2, "o": 0}


def test_keys_tell_how_they_are_kept(url: str, session: connect.Session) -> None:
    execute(
        url,
        "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (a int, b int, d int)",
        "ALTER TABLE c ADD CONSTRAINT a FOREIGN KEY (a) REFERENCES p ON DELETE CASCADE DEFERRABLE,"
        " ADD CONSTRAINT b FOREIGN KEY (b) REFERENCES p NOT VALID,"
        " ADD CONSTRAINT d FOREIGN KEY (d) REFERENCES p ON UPDATE SET NULL DEFERRABLE INITIALLY DEFERRED",
    )
    found = keys(session, "p")
    assert {each: (key.manner, key.valid, key.active) for each, key in found.items()} == {
        "a": ("ON UPDATE NO ACTION ON DELETE CASCADE DEFERRABLE", True, True),
        "b": ("ON UPDATE NO ACTION ON DELETE NO ACTION", False, True),
        "d": ("ON UPDATE SET NULL ON DELETE NO ACTION INITIALLY DEFERRED", True, True),
    }
    execute(url, "ALTER TABLE c DISABLE TRIGGER ALL")
    assert not any(key.active for key in keys(session, "c").values())
    assert keys(session, "elsewhere") == {}


def test_key_of_an_extension_type_is_compared_by_its_own_operator(url: str, session: connect.Session) -> None:
    quoted = SCHEMA.replace('"', '""')
    execute(
        url,
        f'CREATE EXTENSION citext SCHEMA "{quoted}"',
        "CREATE TABLE p (id citext PRIMARY KEY); CREATE TABLE c (id citext CONSTRAINT k REFERENCES p)",
        "INSERT INTO p VALUES ('a'); INSERT INTO c VALUES ('A')",
        "SET session_replication_role = replica; INSERT INTO c VALUES ('b')",
    )
    assert continuity.broken(session, keys(session, "c")["k"]) == 1


# -- sequences ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "calls", "given", "step"),
    [("", 0, 1, 1), ("", 3, 4, 1), ("START 5 INCREMENT 10", 2, 25, 10), ("INCREMENT -1", 2, -3, -1)],
)
def test_standing_is_what_nextval_gives(
    options: str, calls: int, given: int, step: int, url: str, session: connect.Session
) -> None:
    execute(url, f'CREATE SEQUENCE "a ""s" {options}', *(['SELECT nextval(\'"a ""s"\')'] * calls))
    assert continuity.standing(session, name('a "s')) == continuity.Standing(next=given, step=step)
    with psycopg.connect(url, autocommit=True) as writer:
        assert writer.execute('SELECT nextval(\'"a ""s"\')').fetchone() == (given,)


def test_last_number_of_all_is_no_overflow(url: str, session: connect.Session) -> None:
    execute(url, "CREATE SEQUENCE s; SELECT setval('s', 9223372036854775807)")
    assert continuity.standing(session, name("s")).next == 2**63


def test_furthest_follows_the_direction(url: str, session: connect.Session) -> None:
    execute(url, "CREATE TABLE t (id int)")
    assert continuity.furthest(session, name("t"), "id", step=1) is None
    execute(url, "INSERT INTO t VALUES (-3), (NULL), (8)")
    assert continuity.furthest(session, name("t"), "id", step=1) == 8
    assert continuity.furthest(session, name("t"), "id", step=-2) == -3


# -- views ----------------------------------------------------------------------------------------


def test_views_tell_their_columns_with_bare_types(url: str, session: connect.Session) -> None:
    execute(
        url,
        "CREATE TYPE mood AS ENUM ('fine'); CREATE TABLE t (a mood, \"B c\" numeric(9,2))",
        'CREATE VIEW v AS SELECT "B c", a FROM t; CREATE VIEW nothing AS SELECT',
    )
    assert continuity.views(session, SCHEMA) == {
        "v": continuity.View(columns=(("B c", "numeric(9,2)"), ("a", "mood")), open=True),
        "nothing": continuity.View(columns=(), open=True),
    }


@pytest.mark.parametrize("option", ["true", "on", "1"])
def test_view_with_its_invokers_rights_is_not_open(option: str, url: str, session: connect.Session) -> None:
    if session.info.server_version < 15_00_00:
        pytest.skip("PostgreSQL 15 has security_invoker")
    execute(url, f"CREATE VIEW v WITH (security_invoker = {option}, security_barrier) AS SELECT 1 AS a")
    assert not continuity.views(session, SCHEMA)["v"].open


def test_answer_leaves_the_session_as_it_was_whatever_happens(url: str, session: connect.Session) -> None:
    execute(
        url,
        "CREATE TABLE t (a timestamp); CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1 FROM t'",
        "INSERT INTO t VALUES ('infinity'); CREATE VIEW good AS SELECT f(), a FROM t",
        "CREATE VIEW bad AS SELECT 1 / (SELECT count(*) - 1 FROM t) AS a",
        "CREATE VIEW slow AS SELECT pg_sleep(600)::text",
    )
    settings = (
        "SELECT current_setting('search_path'), current_setting('row_security'), current_setting('statement_timeout')"
    )
    before = session.execute(settings).fetchone()
    session.execute("BEGIN READ ONLY")
    for view, error in (("good", None), ("bad", "22012"), ("slow", "57014"), ("none", "42P01"), ("good", None)):
        assert _failure(session, view) == error
        assert session.execute(settings).fetchone() == before
    session.execute("COMMIT")


def _failure(session: connect.Session, view: str) -> str | None:
    try:
        with continuity.aside(session):
            continuity.answer(session, name(view), seconds=0.2)
    except psycopg.Error as error:
        return error.sqlstate
    return None
