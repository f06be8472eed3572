"""Equal rows are equal, however the two servers are set up, and whatever has become of the target's tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import hypothesis
import psycopg
import pytest
from hypothesis import strategies as st
from psycopg import sql

from mishika_migrate import model
from mishika_migrate.sandbox import sample, schema, servers
from tests import oddities, proving
from tests.fix_servers import Clone, Pair
from tests.looking import carry_out, execute, see
from tests.proving import NOTHING, Templates, prove, written

HOSTILE = r"""
INSERT INTO odd (id, list, text, doc, json, raw) VALUES
  (101, ARRAY['a,b', '"', '\', '{}', '', ' ', NULL, 'NULL', E'\n', E'\t', '🦊', 'a''b', '\\x'],
   E'\\', '"\\u0041"', '""', ''),
  (102, ARRAY[NULL, NULL]::text[], 'NULL', '{"": {"": [[], {}, null, ""]}}', '{"a":1,"a":2}', '\x5c5c27'),
  (103, ARRAY[['a', 'b'], ['c', NULL]], '{"a"}', '[1e400, -0, 0.10, 1E+2]', ' [ ] ', '\x00'),
  (104, '[5:6]={a,b}', '''', '"\ud83d\ude00 \\u0000"', '"\u0000"', '\xff');
INSERT INTO odd (id, float, single, number, moment, naive, day, span) VALUES
  (111, 1e-320, 1e-40, 1e-100, '0044-03-15 12:00:00+00 BC', '294276-12-31', '5874897-12-31', '-178000000 years'),
  (112, 5e-324, 3.4e38, 'Infinity', '2026-03-29 01:30:00.000001+00', '2026-10-25 02:30', '0001-01-01', '1 mon -1 day');
UPDATE odd SET number = 'NaN' WHERE number = 'Infinity';
INSERT INTO odd (id, text) SELECT n, repeat(md5(n::text), 1000) FROM generate_series(200, 220) n;
INSERT INTO odd (id, doc)
SELECT n, (SELECT jsonb_object_agg(m, repeat(md5((m * n)::text), 9)) FROM generate_series(1, 30) m)
FROM generate_series(300, 320) n;
"""

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "TimeZone": ("UTC", "Asia/Kolkata", "America/St_Johns", "Pacific/Apia", "Europe/Berlin"),
    "DateStyle": ("ISO, MDY", "German", "SQL, DMY", "Postgres, YMD"),
    "IntervalStyle": ("postgres", "postgres_verbose", "sql_standard", "iso_8601"),
    "extra_float_digits": ("-15", "0", "1", "3"),
    "bytea_output": ("escape", "hex"),
    "lc_monetary": ("C", "POSIX", "C.UTF-8"),
    "lc_numeric": ("C", "POSIX", "C.UTF-8"),
    "lc_time": ("C", "POSIX", "C.UTF-8"),
    "default_transaction_isolation": ("serializable", "read uncommitted", "repeatable read"),
    "default_transaction_read_only": ("on", "off"),
    "default_transaction_deferrable": ("on", "off"),
    "search_path": ("nowhere", "pg_catalog", "mishika_migrate, public"),
    "client_encoding": ("LATIN1", "SQL_ASCII"),
    "standard_conforming_strings": ("off", "on"),
    "array_nulls": ("off", "on"),
    "transform_null_equals": ("on", "off"),
    "quote_all_identifiers": ("on", "off"),
    "session_replication_role": ("replica", "local"),
    "statement_timeout": ("500ms", "0"),
    "enable_seqscan": ("off", "on"),
    "enable_hashagg": ("off", "on"),
    "enable_sort": ("off", "on"),
    "enable_hashjoin": ("off", "on"),
    "enable_indexscan": ("off", "on"),
    "jit": ("on", "off"),
    "jit_above_cost": ("0", "100000"),
    "work_mem": ("64kB", "64MB"),
    "max_parallel_workers_per_gather": ("0", "4"),
    "parallel_setup_cost": ("0", "1000"),
    "min_parallel_table_scan_size": ("0", "8MB"),
    "from_collapse_limit": ("1", "8"),
    "cursor_tuple_fraction": ("0.0001", "1"),
    "row_security": ("off", "on"),
    "xmloption": ("document", "content"),
}

SHAPES: Mapping[str, str] = {
    "columns in another order": """
        CREATE TABLE other AS SELECT text, flag, range, code, padded, mood, raw, span, clock, day, naive, moment, big,
            number, single, float, grid, list, json, doc, id FROM odd;
        DROP TABLE odd; ALTER TABLE other RENAME TO odd; ALTER TABLE odd ADD PRIMARY KEY (id)
    """,
    "a column that was dropped": """
        ALTER TABLE odd ADD gone text DEFAULT 'x'; ALTER TABLE odd DROP gone; ALTER TABLE $TeamTable ADD gone int;
        ALTER TABLE $TeamTable DROP gone
    """,
    "an enum that was made anew": """
        ALTER TYPE mood RENAME TO old_mood; CREATE TYPE mood AS ENUM ('calm', 'cross');
        ALTER TABLE odd ALTER mood TYPE mood USING mood::text::mood; DROP TYPE old_mood
    """,
    "rows in another order": "CREATE TABLE other AS SELECT * FROM odd ORDER BY id DESC; TRUNCATE odd;"
    " INSERT INTO odd SELECT * FROM other; DROP TABLE other; UPDATE $SpendLogs SET spend = spend",
    "values stored otherwise": """
        ALTER TABLE odd ALTER text SET STORAGE EXTERNAL, ALTER doc SET STORAGE EXTERNAL; UPDATE odd SET id = id;
        ALTER TABLE $SpendLogs ALTER messages SET STORAGE EXTERNAL; UPDATE $SpendLogs SET messages = messages::text::jsonb
    """,
    "other names of indexes": """
        ALTER INDEX odd_pkey RENAME TO "some (other) name"; ALTER INDEX $SpendLogs_startTime_idx RENAME TO x
    """,
    "partitions": """
        ALTER TABLE odd RENAME TO whole; ALTER INDEX odd_pkey RENAME TO whole_pkey;
        CREATE TABLE odd (LIKE whole INCLUDING ALL) PARTITION BY RANGE (id);
        CREATE TABLE odd_1 PARTITION OF odd FOR VALUES FROM (0) TO (20);
        CREATE TABLE odd_2 PARTITION OF odd DEFAULT;
        INSERT INTO odd SELECT * FROM whole; DROP TABLE whole
    """,
    "a child with rows of its own": "CREATE TABLE child () INHERITS (keyless); INSERT INTO child VALUES (1, 'x')",
    "an index more": "CREATE INDEX ON odd (text); CREATE INDEX ON $SpendLogs (spend)",
    "statistics": "ANALYZE",
}  # fmt: skip


@pytest.fixture(scope="module")
def clean(pair: Pair) -> Iterator[Templates]:
    with proving.templates(pair, "clean", oddities.ROWS, HOSTILE) as made:
        yield made


SET = st.dictionaries(st.sampled_from(sorted(SETTINGS)), st.integers(0, 4), max_size=12).map(
    lambda some: {name: SETTINGS[name][choice % len(SETTINGS[name])] for name, choice in some.items()}
)
METHODS: tuple[model.Method, ...] = ("fast", "exact", "sha256")
_numbers = itertools.count()


@pytest.mark.parametrize("examples", [8, pytest.param(50, marks=pytest.mark.soak)])
def test_no_setting_and_no_shape_is_a_difference(pair: Pair, clean: Templates, examples: int) -> None:
    looked = []

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(
        ours=SET,
        theirs=SET,
        shapes=st.lists(st.sampled_from(sorted(SHAPES)), unique=True, max_size=4),
        method=st.sampled_from(METHODS),
    )
    def check(ours: dict[str, str], theirs: dict[str, str], shapes: list[str], method: model.Method) -> None:
        alone = set(shapes) >= {"partitions", "columns in another order"}
        hypothesis.assume(not alone)  # both make table `odd` anew
        with ExitStack() as stack:
            name = f"clean_{next(_numbers)}"
            execute(pair.new.url(), f"CREATE DATABASE {name} TEMPLATE {clean.copy}")
            stack.callback(execute, pair.new.url(), f"DROP DATABASE {name} WITH (FORCE)")
            execute(pair.new.url(name), *(written(SHAPES[shape]) for shape in shapes))
            stack.callback(execute, pair.old.url(), f"ALTER DATABASE {clean.copy} RESET ALL")
            for server, database, settings in ((pair.old, clean.copy, ours), (pair.new, name, theirs)):
                _set(server, database, settings)
            proof = prove(clean.source, pair.new.url(name), allowed=("decryption",), method=method)
            assert proving.found(proof) == NOTHING
            assert (proof.state, proof.method) == ("ok", method), proof.unproven
            assert proof.keys is not None
            assert proof.keys.count("unchanged") == 300
        looked.append(shapes)

    check()
    assert len(looked) >= examples


def _set(server: servers.Server, database: str, settings: Mapping[str, str]) -> None:
    with psycopg.connect(server.url(), autocommit=True) as session:
        for name, value in settings.items():
            listed = name in ("search_path", "DateStyle")
            session.execute(
                sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                    sql.Identifier(database),
                    sql.Identifier(name),
                    sql.SQL(", ").join(sql.Literal(part.strip()) for part in value.split(","))
                    if listed
                    else sql.Literal(value),
                )
            )


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_alone_is_no_difference(pair: Pair, clean: Templates, name: str) -> None:
    """Of either side; the other one has its default."""
    for value in SETTINGS[name][:1]:
        for server in (pair.old, pair.new):
            try:
                _set(server, clean.copy, {name: value})
                proof = prove(clean.source, pair.new.url(clean.copy), allowed=("decryption",))
                assert proving.found(proof) == NOTHING
                assert proof.state == "ok", proof.unproven
            finally:
                execute(server.url(), f"ALTER DATABASE {clean.copy} RESET ALL")


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_alone_is_no_difference(pair: Pair, clone: Clone, clean: Templates, name: str) -> None:
    target = clone(pair.new, clean.copy)
    execute(target, written(SHAPES[name]))
    for method in METHODS:
        proof = prove(clean.source, target, allowed=("decryption",), method=method)
        assert proving.found(proof) == NOTHING
        assert proof.state == "ok", proof.unproven


def test_other_encodings_and_collations_are_no_difference(pair: Pair) -> None:
    """LATIN1 to UTF8; and by ICU's rules to plain bytes, where the servers have them."""
    with ExitStack() as stack:
        locales = {pair.old: "ENCODING 'LATIN1'", pair.new: "ENCODING 'UTF8' LOCALE 'C'"}
        for server, locale in locales.items():
            execute(server.url(), f"CREATE DATABASE elsewhere TEMPLATE template0 {locale}")
            stack.callback(execute, server.url(), "DROP DATABASE elsewhere WITH (FORCE)")
            schema.apply(server.url("elsewhere"))
            execute(server.url("elsewhere"), "SET client_encoding = 'UTF8'", oddities.TABLES)
        source, target = (server.url("elsewhere") for server in (pair.old, pair.new))
        schema.create_views(source)
        execute(source, "SET client_encoding = 'UTF8'", oddities.ROWS)
        carry_out(see(source, target, everything=True), source, target)
        proof = prove(source, target, method="fast", allowed=("decryption",))
        assert (proof.method, proving.found(proof), len(proof.contents) > 2) == ("sha256", NOTHING, True)
        execute(target, "UPDATE odd SET text = 'Zoe' WHERE id = 1")
        assert proving.found(prove(source, target)).rows == {"odd": (0, 0, 1)}


def test_other_rules_of_order_are_no_difference(pair: Pair) -> None:
    with ExitStack() as stack:
        for server in (pair.old, pair.new):
            with psycopg.connect(server.url()) as session:
                row = session.execute("SELECT count(*) FROM pg_collation WHERE collname = 'und-x-icu'").fetchone()
                version = session.info.server_version
            assert row is not None
            rules = (
                "LOCALE_PROVIDER icu ICU_LOCALE 'de' LOCALE 'C'"
                if row[0] and version >= 15_00_00
                else "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'"
                if server is pair.new
                else "LOCALE 'C'"
            )
            execute(server.url(), f"CREATE DATABASE elsewhere TEMPLATE template0 ENCODING 'UTF8' {rules}")
            stack.callback(execute, server.url(), "DROP DATABASE elsewhere WITH (FORCE)")
            schema.apply(server.url("elsewhere"))
            execute(server.url("elsewhere"), oddities.TABLES)
        source, target = (server.url("elsewhere") for server in (pair.old, pair.new))
        schema.create_views(source)
        sample.fill(source, keys=30, logs=60, usage=10)
        execute(source, oddities.ROWS, HOSTILE)
        carry_out(see(source, target, everything=True), source, target)
        for method in METHODS:
            proof = prove(source, target, method=method, allowed=("decryption",))
            assert (proof.method, proving.found(proof)) == (method, NOTHING)
