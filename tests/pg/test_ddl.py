"""Sequences, views, statistics and schema text on a real target."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from mishika_migrate import model
from mishika_migrate.pg import connect, ddl
from tests.fix_faults import ask
from tests.fix_servers import Clone, Pair, endpoint


def name(text: str, schema: str = "public") -> model.TableName:
    return model.TableName(schema=schema, name=text)


@pytest.fixture
def url(pair: Pair, clone: Clone) -> str:
    return clone(pair.new, "template0")


@pytest.fixture
def session(url: str) -> Iterator[connect.Session]:
    with connect.session(endpoint(url, "target"), name="test") as opened:
        yield opened


SEQUENCE = model.SetSequence(source=name("Source's"), target=name('Target "s'))


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ((7, True), (1, False), 8),
        ((7, False), (1, False), 7),
        ((1, False), (1, False), 1),
        ((1, True), (1, False), 2),
        ((7, True), (9, True), 10),
        ((2**62, True), (1, True), 2**62 + 1),
    ],
)
def test_sequence_goes_on_where_the_sources_is_and_never_back(
    source: tuple[int, bool], target: tuple[int, bool], expected: int, session: connect.Session, url: str
) -> None:
    ask(url, """CREATE SEQUENCE "Source's"; CREATE SEQUENCE "Target ""s\"""")
    session.execute("SELECT setval(%s, %s, %s)", ['public."Source\'s"', *source])
    session.execute("SELECT setval(%s, %s, %s)", ['public."Target ""s"', *target])
    value, called = ddl.last_value(session, SEQUENCE)
    assert (value, called) == source
    ddl.set_sequence(session, SEQUENCE, value, called)
    ddl.set_sequence(session, SEQUENCE, value, called)
    assert ask(url, """SELECT nextval('"Target ""s"')""") == expected


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [((-7, True), (-1, False), -8), ((-7, False), (-1, False), -7), ((-7, True), (-9, True), -10)],
)
def test_sequence_that_counts_down_never_goes_up(
    source: tuple[int, bool], target: tuple[int, bool], expected: int, session: connect.Session, url: str
) -> None:
    ask(url, """CREATE SEQUENCE "Target ""s\" INCREMENT -1""")
    session.execute("SELECT setval(%s, %s, %s)", ['public."Target ""s"', *target])
    for _ in range(2):
        ddl.set_sequence(session, SEQUENCE, *source)
    assert ask(url, """SELECT nextval('"Target ""s"')""") == expected


def test_view_is_created_in_its_schema_and_given_to_the_tables_owner(
    session: connect.Session, url: str, pair: Pair
) -> None:
    with psycopg.connect(pair.new.url(), autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS owner")
        admin.execute("CREATE ROLE owner")
    ask(
        url,
        'CREATE SCHEMA "My ""S"; CREATE TABLE "My ""S".t (n int); GRANT USAGE ON SCHEMA "My ""S" TO owner;'
        ' GRANT SELECT ON "My ""S".t TO owner',
    )
    step = model.CreateView(target=name("V", 'My "S'), definition="SELECT n FROM t;", owner="owner")
    for _ in range(2):
        with connect.transaction(session):
            ddl.create_view(session, step)
    assert ask(url, 'SELECT count(*) FROM "My ""S"."V"') == 0
    assert ask(url, "SELECT viewowner FROM pg_views WHERE viewname = 'V'") == "owner"
    assert session.execute("SHOW search_path").fetchone() in [("",), ('""',)]


def test_view_stays_with_its_creator_where_the_owner_is_out_of_reach(url: str, pair: Pair) -> None:
    with psycopg.connect(pair.new.url(), autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS creator")
        admin.execute("CREATE ROLE creator LOGIN")
    ask(url, "GRANT CREATE, USAGE ON SCHEMA public TO creator; CREATE TABLE t (n int); GRANT SELECT ON t TO creator")
    step = model.CreateView(target=name("v"), definition="SELECT n FROM t;", owner="postgres")
    with (
        connect.session(endpoint(url.replace("postgres@", "creator@"), "target"), name="test") as creator,
        connect.transaction(creator),
    ):
        ddl.create_view(creator, step)
    assert ask(url, "SELECT viewowner FROM pg_views WHERE viewname = 'v'") == "creator"
    assert ask(url, "DROP OWNED BY creator") is None


def test_analyze_gives_statistics(session: connect.Session, url: str) -> None:
    ask(url, 'CREATE TABLE "T t" (n int); INSERT INTO "T t" SELECT generate_series(1, 100)')
    ddl.analyze(session, model.Analyze(target=name("T t"), columns=("n",)))
    assert ask(url, "SELECT reltuples::int FROM pg_class WHERE relname = 'T t'") == 100


def test_references_are_pairs_of_tables(session: connect.Session, url: str) -> None:
    ask(
        url,
        "CREATE SCHEMA s; CREATE TABLE s.a (n int PRIMARY KEY); CREATE TABLE b (n int REFERENCES s.a, m int PRIMARY KEY"
        " REFERENCES b)",
    )
    assert ddl.references(session) == [(name("b"), name("b")), (name("b"), name("a", "s"))]


def test_script_loses_what_only_psql_or_the_schemas_owner_may_say() -> None:
    script = "\n".join(
        [
            "\\restrict abc",
            "SET transaction_timeout = 0;",
            "CREATE SCHEMA public;",
            'CREATE SCHEMA "My ""Schema";',
            "COMMENT ON SCHEMA public IS 'standard public schema';",
            "CREATE TABLE public.t (n int);",
            "COMMENT ON TABLE public.t IS 'CREATE SCHEMA public;';",
            "\\unrestrict abc",
        ]
    )
    assert ddl.plain(script).split("\n") == [
        "",
        "",
        "",
        "",
        "",
        "CREATE TABLE public.t (n int);",
        "COMMENT ON TABLE public.t IS 'CREATE SCHEMA public;';",
        "",
    ]


def test_schema_is_applied_as_a_whole_or_not_at_all(session: connect.Session, url: str) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable), connect.transaction(session):
        ddl.apply(session, "CREATE TABLE s.t (n int); CREATE VIEW s.v AS SELECT * FROM s.missing;", schema="s")
    assert ask(url, "SELECT count(*) FROM pg_namespace WHERE nspname = 's'") == 0
    with connect.transaction(session):
        ddl.apply(session, "CREATE TABLE s.t (n int);", schema="s")
    assert ask(url, "SELECT count(*) FROM s.t") == 0
