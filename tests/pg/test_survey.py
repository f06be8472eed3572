"""What only a look at the rows, or at both servers at once, can tell."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mishika_migrate import model
from mishika_migrate.pg import connect, survey
from tests.fix_servers import Clone, Pair, endpoint


@pytest.fixture
def url(pair: Pair, clone: Clone) -> str:
    """A database on the old server with a table that refers to another in every way."""
    made = clone(pair.old, "template0")
    with psycopg.connect(made, autocommit=True) as session:
        session.execute("CREATE TABLE other (id text PRIMARY KEY); CREATE TABLE numbers (id int8 PRIMARY KEY)")
        session.execute("CREATE TABLE t (id text PRIMARY KEY, one text, many text[], number int4, j json, b jsonb)")
    return made


@pytest.fixture
def session(url: str) -> Iterator[connect.Session]:
    with connect.session(endpoint(url, "source"), name="test") as opened:
        opened.execute("SET search_path = public")
        yield opened


def fill(session: connect.Session, *statements: str) -> None:
    for statement in statements:
        session.execute(statement.encode())


def pointer(column: str, references: str = "other", **more: object) -> model.Pointer:
    fields = {"table": "t", "column": column, "references": references, "key": "id", **more}
    return model.Pointer(**fields)  # type: ignore[arg-type]


KEYS = st.sampled_from(["a", "b", "c", "", "exempt", "x,y", '"', "\\", "{}"])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(there=st.sets(KEYS), one=st.lists(KEYS | st.none()), many=st.lists(st.lists(KEYS | st.none()) | st.none()))
def test_dangling_counts_are_those_of_a_plain_set(
    session: connect.Session, there: set[str], one: list[str | None], many: list[list[str | None] | None]
) -> None:
    fill(session, "TRUNCATE t, other")
    with session.cursor() as cursor:
        cursor.executemany("INSERT INTO other VALUES (%s)", [[key] for key in there])
        cursor.executemany("INSERT INTO t (id, one) VALUES (%s, %s)", [[f"o{n}", v] for n, v in enumerate(one)])
        cursor.executemany("INSERT INTO t (id, many) VALUES (%s, %s)", [[f"m{n}", v] for n, v in enumerate(many)])
    counted = [value for value in one if value not in (None, "", "exempt")]
    each = [value for values in many for value in values or () if value not in (None, "", "exempt")]
    pointers = [
        pointer("one", exempt=("exempt",)),
        pointer("many", each=True, exempt=("exempt",)),
        pointer("one", references="gone", exempt=("exempt",), absent=True),
    ]
    found = [(answer.column, answer.references, answer.rows) for answer in survey.dangling(session, "public", pointers)]
    assert found == [
        answer
        for answer in (
            ("one", "other", sum(value not in there for value in counted)),
            ("many", "other", sum(value not in there for value in each)),
            ("one", "gone", len(counted)),
        )
        if answer[2]
    ]


def test_keys_of_another_type_are_compared_as_text(session: connect.Session) -> None:
    fill(session, "INSERT INTO numbers VALUES (1)", "INSERT INTO t (id, number) VALUES ('a', 1), ('b', 2)")
    (answer,) = survey.dangling(session, "public", [pointer("number", references="numbers")])
    assert answer.rows == 1


def test_values_that_are_no_object_are_found_in_json_and_jsonb(session: connect.Session) -> None:
    fill(
        session,
        "INSERT INTO t (id, j, b) VALUES ('1', '{\"a\": \"\\u0000\"}', '{}'), ('2', NULL, NULL), ('3', '[]', '[]'),"
        " ('4', '\"{}\"', '\"{}\"'), ('5', ' 1', 'null'), ('6', '\"\\u0000\"', 'true')",
    )
    shape = model.Shape(table="t", objects=("j", "b"), present=("b",), key=("id",))
    answers = {(each.column, each.fault): each for each in survey.unparseable(session, "public", [shape])}
    assert answers["j", "not a JSON object"].rows == 4
    assert answers["b", "not a JSON object"].rows == 4
    assert answers["b", "NULL"].rows == 1
    assert answers["b", "not a JSON object"].examples == ("3...", "4...", "5...")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(token=st.text("0123456789abcdef", min_size=64, max_size=64), around=st.text("a ☃\n'%{}", max_size=20))
def test_no_whole_token_leaves_the_server_in_a_name(session: connect.Session, token: str, around: str) -> None:
    fill(session, "TRUNCATE t")
    name = f"{around}{token}{around}"
    session.execute("INSERT INTO t (id, one, b) VALUES (%s, %s, '[]')", [token, name])
    shape = model.Shape(table="t", objects=("b",), names=("one",), key=("id",))
    (answer,) = survey.unparseable(session, "public", [shape])
    (example,) = answer.examples
    assert token[:20] not in example
    assert example.isprintable()
    assert len(example) <= 80


def test_mark_is_seen_in_the_same_database_only(pair: Pair, clone: Clone, url: str, session: connect.Session) -> None:
    other = clone(pair.old, "template0")
    with (
        survey.marked(session) as mark,
        connect.session(endpoint(url, "target"), name="test") as same,
        connect.session(endpoint(other, "target"), name="test") as another,
    ):
        assert survey.has_mark(same, mark)
        assert not survey.has_mark(another, mark)
    with connect.session(endpoint(url, "target"), name="test") as later:
        assert not survey.has_mark(later, mark)
        locks = later.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()
    assert locks == (0,)


def test_sessions_of_their_own_are_not_pooled(url: str, session: connect.Session) -> None:
    assert survey.pooled(session, session)
    with connect.session(endpoint(url, "source"), name="test") as other:
        assert not survey.pooled(session, other)
