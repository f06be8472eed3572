"""Equal rows are equal, however the two servers are set up, and whatever has become of the target's tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import hypothesis
import psycopg
import pytest
from hypothesis import strategies as st
from psycopg import sql

from mishika_migrate import model
from mishika_migrate.sandbox import sample, schema
from tests import oddities, proving
from tests.fix_servers import Clone, Pair
from tests.looking import carry_out, execute, see
from tests.proving import NOTHING, SALT, Templates, prove, written

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
            number, single, float, grid, list, json, doc, id FROM hostile;
        DROP TABLE hostile; ALTER TABLE other RENAME TO hostile; ALTER TABLE hostile ADD PRIMARY KEY (id)
    """,
    "a column that was dropped": """
        ALTER TABLE hostile ADD gone text DEFAULT 'x'; ALTER TABLE hostile DROP gone;
        ALTER TABLE $TeamTable ADD gone int; ALTER TABLE $TeamTable DROP gone
    """,
    "an enum that was made anew": """
        ALTER TYPE mood RENAME TO old_mood; CREATE TYPE mood AS ENUM ('calm', 'cross');
        ALTER TABLE hostile ALTER mood TYPE mood USING mood::text::mood;
        ALTER TABLE odd ALTER mood TYPE mood USING mood::text::mood; DROP TYPE old_mood
    """,
    "rows in another order": "CREATE TABLE other AS SELECT * FROM hostile ORDER BY id DESC; TRUNCATE hostile;"
    " INSERT INTO hostile SELECT * FROM other; DROP TABLE other; UPDATE $SpendLogs SET spend = spend",
    "values stored otherwise": """
        ALTER TABLE hostile ALTER text SET STORAGE EXTERNAL, ALTER doc SET STORAGE EXTERNAL; UPDATE hostile SET id = id;
        ALTER TABLE $SpendLogs ALTER messages SET STORAGE EXTERNAL;
        UPDATE $SpendLogs SET messages = messages::text::jsonb
    """,
    "other names of indexes": """
        ALTER INDEX IF EXISTS hostile_pkey RENAME TO "some (other) name";
        ALTER INDEX $SpendLogs_startTime_idx RENAME TO x
    """,
    "partitions": """
        ALTER TABLE hostile RENAME TO whole; ALTER INDEX IF EXISTS hostile_pkey RENAME TO whole_pkey;
        CREATE TABLE hostile (LIKE whole INCLUDING ALL) PARTITION BY RANGE (id);
        CREATE TABLE hostile_1 PARTITION OF hostile FOR VALUES FROM (0) TO (20);
        CREATE TABLE hostile_2 PARTITION OF hostile DEFAULT;
        INSERT INTO hostile SELECT * FROM whole; DROP TABLE whole
    """,
    "a child with rows of its own": "CREATE TABLE child () INHERITS (keyless); INSERT INTO child VALUES (1, 'x')",
    "an index more": "CREATE INDEX ON hostile (text); CREATE INDEX ON $SpendLogs (spend)",
    "statistics": "ANALYZE",
}  # fmt: skip


@pytest.fixture(scope="module")
def clean(pair: Pair) -> Templates:
    return proving.templates(pair)


SET = st.dictionaries(st.sampled_from(sorted(SETTINGS)), st.integers(0, 4), max_size=12).map(
    lambda some: {name: SETTINGS[name][choice % len(SETTINGS[name])] for name, choice in some.items()}
)
METHODS: tuple[model.Method, ...] = ("fast", "exact", "sha256")
NONE: Mapping[str, str] = {}
_numbers = itertools.count()


@pytest.mark.parametrize("examples", [5, pytest.param(50, marks=pytest.mark.soak)])
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
            stack.enter_context(set_up(pair, clean.copy, name, old=ours, new=theirs))
            assert_equal(clean.source, pair.new.url(name), method=method)
        looked.append(shapes)

    check()
    assert len(looked) >= examples


@contextmanager
def set_up(
    pair: Pair, database: str, other: str = "", *, old: Mapping[str, str] = NONE, new: Mapping[str, str] = NONE
) -> Iterator[None]:
    """Both databases have these settings for new sessions; the new server's is `other`, or of the same name."""
    sides = ((pair.old, database, old), (pair.new, other or database, new))
    for server, name, settings in sides:
        with psycopg.connect(server.url(), autocommit=True) as session:
            for key, value in settings.items():
                parts = value.split(", ") if key in ("search_path", "DateStyle") else [value]
                session.execute(
                    sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                        sql.Identifier(name), sql.Identifier(key), sql.SQL(", ").join(map(sql.Literal, parts))
                    )
                )
    try:
        yield
    finally:
        for server, name, _ in sides:
            execute(server.url(), f"ALTER DATABASE {name} RESET ALL")


def assert_equal(source: str, target: str, *, method: model.Method = "fast") -> None:
    proof = prove(source, target, salt=SALT, method=method)
    assert proving.found(proof) == NOTHING
    assert (proof.state, proof.method) == ("ok", method), proof.unproven
    assert proof.keys is not None
    assert proof.keys.count("unchanged") == 300


@pytest.mark.soak
@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_alone_is_no_difference(pair: Pair, clean: Templates, name: str) -> None:
    """Of either side; the other one has its default."""
    wanted = {name: SETTINGS[name][0]}
    for ours, theirs in ((wanted, NONE), (NONE, wanted)):
        with set_up(pair, clean.copy, old=ours, new=theirs):
            assert_equal(clean.source, pair.new.url(clean.copy))


def test_all_settings_at_once_are_no_difference(pair: Pair, clean: Templates) -> None:
    first, last = ({name: values[at] for name, values in SETTINGS.items()} for at in (0, -1))
    for ours, theirs in ((first, last), (last, first)):
        with set_up(pair, clean.copy, old=ours, new=theirs):
            assert_equal(clean.source, pair.new.url(clean.copy))


def test_all_shapes_at_once_are_no_difference(pair: Pair, clone: Clone, clean: Templates) -> None:
    """But that both of two make the same table anew."""
    target = clone(pair.new, clean.copy)
    names = [name for name in SHAPES if name != "columns in another order"]
    execute(target, *(written(SHAPES[name]) for name in sorted(names, key=lambda name: name == "partitions")))
    for method in METHODS:
        assert_equal(clean.source, target, method=method)


@pytest.mark.soak
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_each_shape_alone_is_no_difference(
    pair: Pair, clone: Clone, clean: Templates, name: str, method: model.Method
) -> None:
    target = clone(pair.new, clean.copy)
    execute(target, written(SHAPES[name]))
    assert_equal(clean.source, target, method=method)


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
        execute(source, oddities.ROWS, oddities.HOSTILE)
        carry_out(see(source, target, everything=True), source, target)
        for method in METHODS:
            proof = prove(source, target, method=method, allowed=("decryption",))
            assert (proof.method, proving.found(proof)) == (method, NOTHING)
