"""A schema that has nothing to do with the proxy: the engine knows no table by name."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.fix_program import Run
from tests.fix_servers import Clone, Pair, assert_equal, tables_of

UNIT = Path(__file__).parents[1] / "unit"
MATRIX = str(UNIT / "shop.yaml")
TABLES = ["categories", "customers", "order_lines", "orders", "products"]

ROWS = r"""
INSERT INTO customers (name, country, born, preferences, photo, last_seen) VALUES
  (E'Zoë\t\\N "x"', 'NL', '0044-03-15 BC', '{"deep": [{"a": null}]}', '\x00ff', '::1'),
  ('plain', NULL, 'infinity', '{}', NULL, '10.0.0.0/8');
INSERT INTO customers (name, country, preferences)
  SELECT 'c' || n, 'DE', '{}' FROM generate_series(1, 2000) n;
DELETE FROM customers WHERE id = 2002;
INSERT INTO categories VALUES ('a', 'b', 'child before its parent'), ('b', NULL, 'root'), ('c', 'c', 'its own');
INSERT INTO products VALUES
  ('p1', 'a', 'Tea', 0.10, '-0', '[1,5)', ARRAY['p2', NULL, 'gift-card', 'gone'], '1 mon 2 days 03:04:05.6'),
  ('p2', NULL, 'Cup', 9999999999.99, 'NaN', 'empty', '{}', NULL);
INSERT INTO orders SELECT 'north', n, 1 + n % 2000, (ARRAY['open', 'packed', 'sent'])[1 + n % 3]::order_state,
  '2024-02-29 23:59:59.999999', n % 2 = 0 FROM generate_series(1, 3000) n;
INSERT INTO order_lines SELECT region, number, 1, 'p1', number / 7.0, E'line\none' FROM orders;
INSERT INTO events SELECT md5(n::text)::uuid, n, 'click', '{"a":  1, "a": 2}', n / 3.0, now()
  FROM generate_series(1, 1000) n;
"""


def shop(url: str, *, filled: bool) -> str:
    with psycopg.connect(url, autocommit=True) as session:
        session.execute((UNIT / "shop.sql").read_bytes())
        if filled:
            session.execute(ROWS.encode())
    return url


@pytest.fixture
def source(pair: Pair, clone: Clone) -> str:
    return shop(clone(pair.old, "template0"), filled=True)


@pytest.fixture
def target(pair: Pair, clone: Clone) -> str:
    return shop(clone(pair.new, "template0"), filled=False)


def test_plan_of_another_matrix_speaks_of_its_tables_only(source: str, target: str, run: Run) -> None:
    done = run("plan", "--json", "--matrix", MATRIX, "--source", source, "--target", target)
    assert done.status == 0, done.err
    (plan,) = done.lines()
    assert [chosen["table"] for chosen in plan["chosen"]] == [
        "customers",
        "categories",
        "products",
        "orders",
        "order_lines",
    ]
    assert [left["table"] for left in plan["left"]] == ["events"]
    findings = {finding["code"]: finding for finding in plan["findings"]}
    assert findings["dangling-reference"]["subject"] == "products.related"
    assert findings["dangling-reference"]["message"].startswith("1 value of ")
    assert findings["left-behind"]["subject"] == "events"
    assert "MishikaLLM" not in done.out


def test_shop_is_copied_row_for_row_with_its_sequence(source: str, target: str, run: Run) -> None:
    done = run("copy", "--yes", "--matrix", MATRIX, "--source", source, "--target", target)
    assert done.status == 0, done.err
    assert_equal(source, target, TABLES)
    with psycopg.connect(target) as session:
        assert session.execute("SELECT nextval('customers_id_seq')").fetchone() == (2003,)  # 2002 was deleted
        assert session.execute("SELECT count(*) FROM events").fetchone() == (0,)


def test_group_of_another_matrix_is_asked_for_by_its_name(source: str, target: str, run: Run) -> None:
    done = run("copy", "--yes", "--include", "events", "--matrix", MATRIX, "--source", source, "--target", target)
    assert done.status == 0, done.err
    assert_equal(source, target, tables_of(source))


def test_tables_of_every_shape_are_copied(source: str, target: str, run: Run) -> None:
    """Partitioned, without a key, without columns, generated, identity, dropped columns, odd names, cycles."""
    both = r"""
    CREATE TABLE parts (day int, id int, note text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
    CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20);
    CREATE TABLE keyless (a int, b text);
    CREATE TABLE nothing ();
    CREATE TABLE made (gone int, id int GENERATED ALWAYS AS IDENTITY, a int, twice int GENERATED ALWAYS AS (a * 2)
      STORED);
    ALTER TABLE made DROP gone;
    CREATE TABLE "it's 100% ""odd"" ☃" ("%s" int, "a ""b"" c" text);
    CREATE TABLE hen (id int PRIMARY KEY, egg int);
    CREATE TABLE egg (id int PRIMARY KEY, hen int REFERENCES hen DEFERRABLE);
    ALTER TABLE hen ADD FOREIGN KEY (egg) REFERENCES egg DEFERRABLE;
    """
    rows = r"""
    INSERT INTO parts SELECT n % 20, n, 'x' FROM generate_series(1, 500) n;
    INSERT INTO keyless VALUES (1, 'a'), (1, 'a'), (NULL, NULL);
    INSERT INTO made (a) VALUES (1), (2);
    INSERT INTO "it's 100% ""odd"" ☃" VALUES (1, 'x');
    BEGIN; SET CONSTRAINTS ALL DEFERRED;
    INSERT INTO hen VALUES (1, 1); INSERT INTO egg VALUES (1, 1);
    COMMIT;
    """
    for url, text in ((source, both + rows), (target, both)):
        with psycopg.connect(url, autocommit=True) as session:
            session.execute(text.encode())
    with psycopg.connect(target, autocommit=True) as session:
        session.execute("ALTER TABLE parts DETACH PARTITION parts_2; DROP TABLE parts_2")
        session.execute("CREATE TABLE parts_rest PARTITION OF parts DEFAULT")
    done = run("copy", "--yes", "--everything", "--matrix", MATRIX, "--source", source, "--target", target)
    assert done.status == 0, done.err
    assert_equal(source, target, tables_of(source))
    with psycopg.connect(target) as session:
        assert session.execute("INSERT INTO made (a) VALUES (3) RETURNING id").fetchone() == (3,)
