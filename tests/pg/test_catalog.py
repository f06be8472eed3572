"""A catalog holds what the server has, whatever its tables look like, at the same price for any number of them."""

from __future__ import annotations

from typing import Any, ClassVar

import psycopg
import pytest

from mishika_migrate import model
from mishika_migrate.pg import catalog, connect
from tests.fix_servers import Clone, Pair, endpoint


class Counting(psycopg.Cursor[Any]):
    """A cursor that counts what it sends."""

    sent: ClassVar[int] = 0

    def execute(self, *given: Any, **more: Any) -> Any:
        type(self).sent += 1
        return super().execute(*given, **more)


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as session:
        for statement in statements:
            session.execute(statement.encode())


def read(url: str, migrations: str | None = None) -> model.Catalog:
    end = endpoint(url, "source")
    with connect.session(end, name="test") as session:
        return catalog.read(session, end, migrations=migrations)


def table(found: model.Catalog, name: str) -> model.Table:
    one = found.table(name)
    assert one is not None
    return one


@pytest.fixture
def url(pair: Pair, clone: Clone) -> str:
    """An empty database on the old server."""
    return clone(pair.old, "template0")


def queries(url: str) -> tuple[int, int]:
    """How many tables a catalog has, and how many queries it took."""
    end = endpoint(url, "source")
    with connect.session(end, name="test") as session:
        session.cursor_factory = Counting
        Counting.sent = 0
        found = catalog.read(session, end, migrations="_prisma_migrations")
        return len(found.tables), Counting.sent


def test_a_hundred_tables_cost_as_many_queries_as_one(source_url: str, url: str) -> None:
    tables, price = queries(source_url)
    assert tables == 24  # the proxy's 23 and its migrations
    assert price <= 21
    make = "CREATE TABLE t{0} (id serial PRIMARY KEY, up int REFERENCES t{0}, note text UNIQUE)"
    execute(url, *(make.format(n) for n in range(101)))
    execute(
        url,
        "CREATE TABLE _prisma_migrations AS SELECT '' AS migration_name, '' AS checksum, now() AS started_at,"
        " now() AS finished_at, now() AS rolled_back_at",
    )
    assert queries(url) == (102, price)


def test_names_of_any_kind_are_read_as_they_are(url: str) -> None:
    name, column = 'a "b" {c} %s ☃\'; --', "% \"x\" 'y'"
    quoted = '"' + name.replace('"', '""') + '"'
    execute(url, f'CREATE TABLE {quoted} ("% ""x"" \'y\'" int PRIMARY KEY)', f"INSERT INTO {quoted} VALUES (1), (2)")
    found = table(read(url), name)
    assert (found.rows, found.occupied, found.primary_key) == (2.0, True, (column,))


def test_mixed_case_keys_are_names_and_expressions_are_text(url: str) -> None:
    execute(
        url,
        'CREATE TABLE t ("requestId" text, "startTime" int, note text, PRIMARY KEY ("startTime", "requestId"))',
        'CREATE UNIQUE INDEX low ON t (lower(note), note) INCLUDE ("startTime")',
    )
    found = table(read(url), "t")
    assert found.primary_key == ("startTime", "requestId")
    assert next(index.columns for index in found.indexes if index.name == "low") == ("lower(note)", "note")


def test_columns_say_what_they_are_and_dropped_ones_are_gone(url: str) -> None:
    execute(
        url,
        "CREATE TYPE mood AS ENUM ('b', 'a'); CREATE TYPE pair AS (x int, y int)",
        "CREATE TABLE t (gone int, id int GENERATED ALWAYS AS IDENTITY, n numeric(5,2) NOT NULL DEFAULT 1.5,"
        " twice numeric GENERATED ALWAYS AS (n * 2) STORED, m mood, ms mood[], p pair, ps pair[], d date)",
        "ALTER TABLE t DROP gone; CREATE TABLE nothing (); INSERT INTO nothing DEFAULT VALUES",
    )
    found = read(url)
    columns = {column.name: column for column in table(found, "t").columns}
    assert list(columns) == ["id", "n", "twice", "m", "ms", "p", "ps", "d"]
    assert (columns["id"].identity, columns["id"].nullable) == (True, False)
    assert (columns["n"].type, columns["n"].nullable, columns["n"].default) == ("numeric(5,2)", False, "1.5")
    assert columns["twice"].generated
    assert columns["m"].labels == columns["ms"].labels == ("b", "a")
    assert {name for name, column in columns.items() if not column.binary} == {"ms", "p", "ps"}
    assert (table(found, "nothing").columns, table(found, "nothing").rows) == ((), 1.0)


def test_partitions_are_part_of_their_table(url: str) -> None:
    execute(
        url,
        "CREATE SCHEMA old; CREATE TABLE logs (day int, id int, PRIMARY KEY (day, id)) PARTITION BY RANGE (day)",
        "CREATE TABLE logs_1 PARTITION OF logs FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE old.logs_2 PARTITION OF logs FOR VALUES FROM (10) TO (20) PARTITION BY LIST (id)",
        "CREATE TABLE old.logs_2_1 PARTITION OF old.logs_2 FOR VALUES IN (1)",
        "CREATE TABLE child_of (LIKE logs) ; CREATE TABLE heir () INHERITS (child_of)",
        "INSERT INTO logs VALUES (1, 1), (2, 1), (12, 1); INSERT INTO heir VALUES (1, 1)",
    )
    found = read(url)
    assert {each.name for each in found.tables} == {"logs", "child_of", "heir"}
    logs = table(found, "logs")
    assert (logs.partitioned, logs.rows, logs.occupied) == (True, 3.0, True)
    assert {str(piece.name) for piece in logs.pieces} == {"public.logs_1", "old.logs_2_1"}
    assert logs.bytes > 0
    assert table(found, "child_of").occupied is False  # an heir's rows are its own


def test_large_tables_are_estimated_whether_or_not_they_were_analyzed(url: str) -> None:
    execute(
        url,
        "CREATE TABLE big WITH (autovacuum_enabled = off) AS SELECT n, repeat('x', 200) AS text"
        " FROM generate_series(1, 100000) n",
    )
    sampled = table(read(url), "big").rows
    execute(url, "ANALYZE big")
    analyzed = table(read(url), "big").rows
    assert sampled == pytest.approx(100_000, rel=0.3)
    assert analyzed == pytest.approx(100_000, rel=0.05)


def test_sequences_belong_to_the_column_that_owns_or_uses_them(url: str) -> None:
    execute(
        url,
        "CREATE TABLE t (a serial, b int GENERATED BY DEFAULT AS IDENTITY)",
        "CREATE SEQUENCE used; CREATE SEQUENCE free; ALTER TABLE t ADD c int DEFAULT nextval('used')",
        "CREATE SCHEMA other; CREATE SEQUENCE astray; CREATE TABLE other.t (a int DEFAULT nextval('astray'))",
    )
    owners = {sequence.name: (sequence.table, sequence.column) for sequence in read(url).sequences}
    assert owners == {
        "t_a_seq": ("t", "a"),
        "t_b_seq": ("t", "b"),
        "used": ("t", "c"),
        "free": (None, None),
        "astray": (None, None),
    }


def test_foreign_keys_name_their_table_and_whether_they_can_wait(url: str) -> None:
    execute(
        url,
        "CREATE SCHEMA other; CREATE TABLE other.far (id int PRIMARY KEY)",
        "CREATE TABLE near (a int, b int, PRIMARY KEY (a, b))",
        "CREATE TABLE t (x int, y int REFERENCES other.far, FOREIGN KEY (y, x) REFERENCES near (a, b) DEFERRABLE)",
    )
    keys = {key.references: key for key in table(read(url), "t").foreign_keys}
    assert set(keys) == {"other.far", "near"}
    assert (keys["near"].columns, keys["near"].referenced_columns) == (("y", "x"), ("a", "b"))
    assert (keys["near"].deferrable, keys["other.far"].deferrable) == (True, False)


def test_texts_mean_the_same_in_a_schema_of_another_name(url: str) -> None:
    execute(
        url,
        'CREATE SCHEMA "My Schema"; CREATE TYPE "My Schema".mood AS ENUM (\'a\')',
        'CREATE TABLE "My Schema".t (m "My Schema".mood DEFAULT \'a\', n serial)',
        'CREATE VIEW "My Schema".v AS SELECT m FROM "My Schema".t',
    )
    found = read(f"{url}&schema=My%20Schema")
    columns = table(found, "t").columns
    assert [(column.type, column.default) for column in columns] == [
        ("mood", "'a'::mood"),
        ("integer", "nextval('t_n_seq'::regclass)"),
    ]
    assert "My Schema" not in found.views[0].definition
    assert (found.views[0].reads, found.views[0].columns) == (("t",), (("t", "m"),))
    assert [str(each) for each in read(url).elsewhere] == ["My Schema.t"]


def test_schema_that_does_not_exist_is_a_catalog_without_tables(url: str) -> None:
    found = read(f"{url}&schema=nowhere", "_prisma_migrations")
    assert (found.schema_exists, found.may_use_schema, found.tables, found.migrations) == (False, False, (), None)


def test_migration_table_of_another_layout_is_not_read(url: str) -> None:
    execute(url, "CREATE TABLE schema_migrations (version text)")
    assert read(url, "schema_migrations").migrations is None


# -- what stands in the way of rows ---------------------------------------------------------------


def test_triggers_are_those_that_fire_for_rows_of_the_table_and_say_where_they_are(url: str) -> None:
    execute(
        url,
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE SCHEMA old; CREATE TABLE logs (day int) PARTITION BY RANGE (day)",
        "CREATE TABLE old.leaf PARTITION OF logs DEFAULT",
        "CREATE TRIGGER of_root AFTER INSERT ON logs FOR EACH ROW EXECUTE FUNCTION f()",
        "CREATE TRIGGER once AFTER INSERT OR DELETE ON logs FOR EACH STATEMENT EXECUTE FUNCTION f()",
        "CREATE TRIGGER of_leaf BEFORE INSERT ON old.leaf FOR EACH ROW EXECUTE FUNCTION f()",
        "CREATE TRIGGER never AFTER INSERT ON old.leaf FOR EACH STATEMENT EXECUTE FUNCTION f()",
        "CREATE TRIGGER other AFTER UPDATE ON logs FOR EACH ROW EXECUTE FUNCTION f()",
        "CREATE TABLE t (n int)",
        "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
        " EXECUTE FUNCTION f()",
        "ALTER TABLE t ENABLE ALWAYS TRIGGER late",
    )
    found = read(url)
    on = {trigger.name: (str(trigger.on), trigger.on_insert) for trigger in table(found, "logs").triggers}
    assert on == {
        "of_root": ("public.logs", True), "once": ("public.logs", True), "of_leaf": ("old.leaf", True),
        "other": ("public.logs", False),
    }  # fmt: skip
    (late,) = table(found, "t").triggers
    assert (late.name, late.always) == ("late", True)
    execute(url, "ALTER TABLE logs DISABLE TRIGGER of_root")
    assert {trigger.name for trigger in table(read(url), "logs").triggers} == {"once", "of_leaf", "other"}


def test_constraints_of_a_table_and_of_its_partitions_are_read_once(url: str) -> None:
    execute(
        url,
        "CREATE TABLE t (n int CONSTRAINT small CHECK (n < 9), CONSTRAINT one EXCLUDE USING btree (n WITH =))",
        "CREATE TABLE logs (day int CONSTRAINT positive CHECK (day > 0)) PARTITION BY RANGE (day)",
        "CREATE TABLE leaf PARTITION OF logs (CONSTRAINT odd CHECK (day % 2 = 1)) DEFAULT",
    )
    found = read(url)
    assert {each.name: each.definition for each in table(found, "t").constraints} == {
        "small": "CHECK ((n < 9))",
        "one": "EXCLUDE USING btree (n WITH =)",
    }
    assert {each.name: each.on.name for each in table(found, "logs").constraints} == {
        "positive": "logs",
        "odd": "leaf",
    }


def test_partitions_say_what_they_take_and_where_nothing_takes_the_rest(url: str) -> None:
    execute(
        url,
        "CREATE TABLE logs (day int, id int) PARTITION BY RANGE (day)",
        "CREATE TABLE logs_1 PARTITION OF logs FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE logs_2 PARTITION OF logs DEFAULT PARTITION BY LIST (id)",
        "CREATE TABLE hashed (id int) PARTITION BY HASH (id); CREATE TABLE t (n int)",
    )
    found = read(url)
    logs = table(found, "logs")
    assert logs.bounds == ("DEFAULT LIST (id)", "FOR VALUES FROM (0) TO (10)", "RANGE (day)")
    assert [str(gap) for gap in logs.gaps] == ["public.logs_2"]
    assert not table(found, "hashed").gaps
    assert not table(found, "t").bounds


def test_types_that_hold_oids_have_no_binary_form(url: str) -> None:
    execute(
        url,
        "CREATE DOMAIN named AS regclass; CREATE DOMAIN several AS regrole[]; CREATE DOMAIN plain AS int",
        "CREATE TYPE span AS RANGE (subtype = regtype)",
        "CREATE TABLE t (a regclass, b regproc[], c named, d named[], e several, f span, g oid, h plain, i name)",
    )
    assert {column.name: column.binary for column in table(read(url), "t").columns} == {
        **dict.fromkeys("abcdef", False),
        **dict.fromkeys("ghi", True),
    }


def test_types_are_those_that_columns_are_of_however_deep(url: str) -> None:
    execute(
        url,
        "CREATE DOMAIN price AS numeric(8,2) NOT NULL CHECK (VALUE > 0); CREATE DOMAIN unused AS int",
        "CREATE TYPE item AS (name text, price price); CREATE TYPE basket AS (items item[], n int)",
        "CREATE TABLE t (b basket, n int)",
    )
    found = {each.name: each for each in read(url).types}
    assert found["basket"].parts == (("items", "item[]"), ("n", "integer"))
    assert found["item"].parts == (("name", "text"), ("price", "price"))
    assert found["price"].parts == (("", "numeric(8,2)"),)
    assert found["price"].checks == ("CHECK ((VALUE > (0)::numeric))", "NOT NULL")
    assert set(found) == {"basket", "item", "price"}


def test_what_is_no_table_is_named_with_its_kind(url: str) -> None:
    execute(
        url,
        "CREATE MATERIALIZED VIEW sums AS SELECT 1 AS a; CREATE VIEW v AS SELECT 1 AS a",
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE far (a int)"
        " SERVER s",
    )
    found = read(url)
    assert {name: found.kind(name) for name in ("sums", "far", "v", "none")} == {
        "sums": "materialized view",
        "far": "foreign table",
        "v": "view",
        "none": "",
    }


def test_extensions_are_found_in_columns_of_any_dimension_and_in_indexes(url: str) -> None:
    # No contrib module comes with the embedded server: plpgsql stands in for one.
    execute(
        url,
        "CREATE TYPE hs AS (a int); CREATE FUNCTION made() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1'",
        "ALTER EXTENSION plpgsql ADD TYPE hs; ALTER EXTENSION plpgsql ADD FUNCTION made()",
        "CREATE TABLE many (a hs[]); CREATE TABLE given (a int DEFAULT made()); CREATE TABLE t (a int)",
        "CREATE TABLE indexed (a int); CREATE INDEX ON indexed ((a + made()))",
    )
    found = read(url)
    assert {each.name: each.extensions for each in found.tables} == {
        "many": ("plpgsql",),
        "given": ("plpgsql",),
        "indexed": ("plpgsql",),
        "t": (),
    }
    assert model.Extension(name="plpgsql", schema="pg_catalog") in found.extensions
