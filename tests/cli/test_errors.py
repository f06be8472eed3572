"""Every mistake is one sentence, a hint that can be acted on, and the documented status; never a traceback."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.fix_faults import Start, ask
from tests.fix_program import Ended, Run, environment
from tests.fix_servers import Clone, Pair

NOBODY = "postgresql://u@127.0.0.1:1/x"


def refused(done: Ended, status: int, *words: str) -> None:
    assert "Traceback" not in done.err
    assert done.status == status, done.err
    told = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, done.err
    assert done.err.count("\nhint: ") == 1, done.err
    assert done.out == ""
    for word in words:
        assert word in done.err, done.err


# -- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan"], ["no source given", "--source", "MISHIKA_MIGRATE_SOURCE"]),
        (["copy"], ["no source given"]),
        (["status"], ["no target given", "MISHIKA_MIGRATE_TARGET"]),
        (["cleanup"], ["no target given"]),
        (["copy", "--jbos", "3"], ["no such option: --jbos", "Did you mean --jobs?"]),
        (["cpoy"], ["no such command cpoy", "Did you mean copy?"]),
        (["copy", "--jobs", "x"], ["--jobs", "MISHIKA_MIGRATE_JOBS", "copy --help"]),
        (["copy", "--jobs"], ["--jobs"]),
        (["copy", "--jobs", "0"], ["a whole number from 1 to 64"]),
        (["copy", "--jobs", "-3"], ["a whole number from 1 to 64"]),
        (["copy", "--jobs", "1000000000000000000000"], ["a whole number from 1 to 64"]),
        (["copy", "--lock-timeout", "soon"], ["0 to 86400 seconds"]),
        (["copy", "--resume", "--dry-run"], ["resume and dry-run exclude each other", "mishika-migrate status"]),
        (["copy", "--include", "A", "--exclude", "A"], ["A is in both include and exclude"]),
        (["plan", "--matrix", "."], ["is a directory"]),
        (["tables", "--matrix", "nowhere.yaml"], ["no such file"]),
        (["tables", "--config", "nowhere.yaml"], ["no such file"]),
        (["tables", "--proxy-config", "nowhere.yaml"], ["no such file"]),
        (["demo", "--keys", "0"], ["--keys"]),
        (["demo", "--keep", "/dev/null/x"], ["cannot create", "folder"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_command_line_that_cannot_be_used(arguments: list[str], words: list[str], run: Run) -> None:
    ends = ["--source", NOBODY, "--target", NOBODY] if len(arguments) > 1 and arguments[0] in ("plan", "copy") else []
    refused(run(*arguments, *ends), 2, *words)


ADDRESS = "postgresql://u:hunter2@h/d"


@pytest.mark.parametrize(
    "arguments",
    [
        ["copy", ADDRESS], [ADDRESS], [f"copy{ADDRESS}"], ["copy", f"--{ADDRESS}"], ["copy", f"--yes={ADDRESS}"],
        ["tables", "--matrix", ADDRESS], ["tables", "--config", ADDRESS], ["tables", "--proxy-config", ADDRESS],
        ["copy", "--jobs", ADDRESS], ["copy", "--batch-size", ADDRESS], ["demo", "--keep", ADDRESS],
    ],
)  # fmt: skip
def test_stray_address_is_not_repeated(arguments: list[str], run: Run) -> None:
    done = run(*arguments)
    refused(done, 2)
    assert "hunter2" not in done.err


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", ["the connection string is empty"]),
        ("postgresql://u@h/d?pgbouncer=true", ["a transaction pooler", "DIRECT_URL"]),
        ("postgresql://u@h/d?conection_limit=3", ["unknown connection parameter", "connection_limit"]),
        ("host=h bogus", ["neither a URI nor a list of key=value"]),
    ],
)
def test_address_that_cannot_be_read(url: str, words: list[str], run: Run) -> None:
    refused(run("status", "--target", url), 2, "--target: ", *words)


def test_prisma_parameters_are_understood(source_url: str, target_url: str, run: Run) -> None:
    prisma = "&schema=public&connection_limit=5&pool_timeout=10&socket_timeout=3&statement_cache_size=0&pgbouncer=false"
    done = run("plan", "--source", source_url + prisma, "--target", target_url + prisma)
    assert done.status == 0, done.err


def test_typo_in_a_matrix_names_file_and_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("matrix: 1\nname: Shop\ntables:\n  A:\n    ned: required\n")
    refused(run("tables", "--matrix", "m.yaml"), 2, "m.yaml:5: ", "ned", "Did you mean need?")


def test_typo_in_the_settings_names_file_and_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mishika-migrate.yaml").write_text("source: host=x\njbos: 3\n")
    refused(run("plan"), 2, "mishika-migrate.yaml:2: ", "jbos", "Did you mean jobs?")


def test_settings_that_are_no_yaml_stop_all_but_the_demo(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mishika-migrate.yaml").write_text("source: [\n")
    refused(run("tables"), 2, "mishika-migrate.yaml")
    done = run("demo", "--keys", "5", "--logs", "5", "--json")
    assert done.status == 0, done.err
    assert done.lines()[-1]["event"] == "demo"


# -- servers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://u@nowhere.invalid/d", ["u@nowhere.invalid:5432/d", "Check the host name."]),
        (NOBODY, ["u@127.0.0.1:1/x: Connection refused", "Check host and port"]),
        ("postgresql://u@/d?host=/nowhere", ["No such file or directory"]),
    ],
)
def test_server_that_is_not_there(url: str, words: list[str], run: Run) -> None:
    refused(run("tables", "--source", url), 6, *words)


def test_no_such_database_and_no_such_role(pair: Pair, run: Run) -> None:
    refused(run("cleanup", "--target", pair.new.url("nope")), 6, 'database "nope" does not exist')
    nobody = pair.new.url("bare").replace("postgres@", "nobody@")
    refused(run("plan", "--source", nobody, "--target", nobody), 6, 'role "nobody" does not exist', "Check the name")


def test_source_that_is_the_target(source_url: str, run: Run) -> None:
    done = run("copy", "--yes", "--source", source_url, "--target", source_url)
    refused(done, 4, "are the same database", "nothing was written")


def test_empty_source_and_empty_target(pair: Pair, clone: Clone, source_url: str, target_url: str, run: Run) -> None:
    empty = clone(pair.new, "template0")
    refused(run("copy", "--yes", "--source", empty, "--target", target_url), 4, "has no table of MishikaLLM")
    refused(run("copy", "--yes", "--source", source_url, "--target", empty), 4, "--create-schema")
    bare = run("copy", "--yes", "--source", clone(pair.old, "bare"), "--target", target_url)
    assert (bare.status, "are empty; is this the right database?" in bare.err) == (0, True)


def test_table_that_the_target_lacks(source_url: str, target_url: str, run: Run) -> None:
    ask(target_url, 'DROP TABLE "MishikaLLM_TeamMembership" CASCADE')
    done = run("copy", "--yes", "--source", source_url, "--target", target_url)
    refused(done, 4, "has no table MishikaLLM_TeamMembership")


def test_plan_that_is_refused_is_still_a_result(source_url: str, run: Run) -> None:
    done = run("plan", "--source", source_url, "--target", source_url)
    assert done.status == 4
    assert done.out.startswith("Refused: ")
    assert done.err == ""


@pytest.fixture
def poor(pair: Pair, source_url: str, target_url: str) -> Iterator[tuple[str, str]]:
    """Both databases, as a role that may log in and nothing else."""
    for url in (source_url, target_url):
        with psycopg.connect(url, autocommit=True) as session:
            session.execute("DROP ROLE IF EXISTS poor")
            session.execute("CREATE ROLE poor LOGIN")
            session.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    yield source_url.replace("postgres@", "poor@"), target_url.replace("postgres@", "poor@")
    for url in (source_url, target_url):
        with psycopg.connect(url, autocommit=True) as session:
            session.execute("DROP OWNED BY poor; DROP ROLE poor")


def test_missing_privileges_come_with_their_grants(poor: tuple[str, str], source_url: str, run: Run) -> None:
    done = run("copy", "--yes", "--source", source_url, "--target", poor[1])
    refused(done, 4, "MishikaLLM_TeamTable of the target", 'GRANT SELECT, INSERT ON "public"."MishikaLLM_TeamTable"')
    assert "note" not in done.err
    refused(run("copy", "--yes", "--source", poor[0], "--target", poor[1]), 4, "GRANT SELECT ON")


def test_read_only_target(source_url: str, target_url: str, run: Run) -> None:
    # The tool lifts default_transaction_read_only for itself, so the database's own setting is no obstacle.
    name = ask(target_url, "SELECT current_database()")
    with psycopg.connect(target_url, autocommit=True) as session:
        session.execute(
            sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(sql.Identifier(name))
        )
    assert run("copy", "--yes", "--source", source_url, "--target", target_url).status == 0


# -- questions and runs ---------------------------------------------------------------------------


def test_without_a_terminal_only_yes_answers(source_url: str, target_url: str, run: Run) -> None:
    done = run("copy", "--source", source_url, "--target", target_url)
    refused(done, 2, "there is no terminal to ask on; nothing was written", "Add --yes")
    assert run("copy", "--yes", "--source", source_url, "--target", target_url).status == 0
    refused(run("cleanup", "--target", target_url, input="y\n"), 2, "no terminal", "nothing was removed", "--yes")


def test_resume_without_an_unfinished_run(source_url: str, target_url: str, run: Run) -> None:
    done = run("copy", "--resume", "--source", source_url, "--target", target_url)
    refused(done, 4, "there is no unfinished run on", "mishika-migrate copy")


@pytest.mark.parametrize("command", ["plan", "tables", "cleanup"])
def test_errors_are_json_too(command: str, run: Run) -> None:
    role = "--source" if command in ("plan", "copy", "tables") else "--target"
    other = ["--target", NOBODY] if command in ("plan", "copy") else []
    done = run(command, role, NOBODY, *other, "--json")
    assert done.status == 6
    (line,) = done.lines()
    assert (line["event"], line["status"]) == ("error", 6)
    assert "Connection refused" in line["message"]
    assert line["hint"]
    assert done.err.startswith("error: ")


def test_json_is_heard_wherever_it_was_said(run: Run, tmp_path: Path) -> None:
    assert run("status", "--jbos", "--json").lines()[0]["status"] == 2
    assert run("status", env={"MISHIKA_MIGRATE_JSON": "1"}).lines()[0]["status"] == 2
    (tmp_path / "mishika-migrate.yaml").write_text("json: true\n")
    assert run("status").lines()[0]["status"] == 2
    assert run("status", "--no-json").out == ""


def test_findings_of_a_refusal_are_in_its_json(source_url: str, run: Run) -> None:
    done = run("copy", "--yes", "--json", "--source", source_url, "--target", source_url)
    assert done.lines()[-1]["event"] == "error"
    assert "same-database" in [finding["code"] for finding in done.lines()[-1]["findings"]]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_while_a_server_does_not_answer(number: signal.Signals, status: int, start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        program = start("status", "--target", f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/d")
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(8)
            program.signal(number)
            done = program.ended(seconds=15)
    refused(done, status, "interrupted; nothing was written")


def test_bug_is_one_sentence_and_a_traceback_for_those_who_ask(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import mishika_migrate.settings as s\ndef load(*a, **k): raise ZeroDivisionError('no')\ns.load = load\n"
    )
    spoiled = {"PYTHONPATH": str(tmp_path) + ":" + environment().get("PYTHONPATH", "")}
    refused(run("status", env=spoiled), 1, "a bug in mishika-migrate: ZeroDivisionError: no", "--verbose")
    for flag in ("-v", "--verbose"):
        done = run("status", flag, env=spoiled)
        assert done.status == 1
        assert "Traceback" in done.err


@pytest.mark.parametrize("flags", [["-v"], ["-yv"], []])
def test_traceback_is_for_those_who_asked_in_any_way(flags: list[str], run: Run, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import mishika_migrate.pg.connect as c\n"
        "def session(*a, **k): raise ZeroDivisionError('no')\n"
        "c.session = session\n"
    )
    if not flags:
        (tmp_path / "mishika-migrate.yaml").write_text("verbose: true\n")
    spoiled = {"PYTHONPATH": str(tmp_path) + ":" + environment().get("PYTHONPATH", "")}
    done = run("cleanup" if "-yv" in flags else "status", "--target", NOBODY, *flags, env=spoiled)
    assert done.status == 1
    assert "Traceback" in done.err
