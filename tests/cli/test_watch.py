"""`status --watch`: a writer is seen while it writes, and quiet is said when it has stopped."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.cli.test_streams import shell
from tests.fix_faults import LOGS, Program, Start, ask, wait_until
from tests.fix_program import Run
from tests.fix_servers import Clone, Pair
from tests.fix_terminal import Open
from tests.looking import TOKEN

KEYS = "MishikaLLM_VerificationToken"
FAST = ("--watch", "--interval", "100ms")
LOG = (
    f'INSERT INTO "{LOGS}" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens,'
    " \"startTime\", \"endTime\") VALUES (gen_random_uuid()::text, '', '', 0, 0, 0, 0, now(), now())"
)


@pytest.fixture
def source_url(pair: Pair, clone: Clone) -> str:
    """One of its own: it is written to."""
    return clone(pair.old, "filled")


@contextmanager
def writer(url: str) -> Iterator[None]:
    """A forgotten proxy: counts spend and logs requests as fast as it can."""
    over = threading.Event()

    def write() -> None:
        with closing(psycopg.connect(url, autocommit=True, application_name="old proxy")) as session:
            while not over.is_set():
                session.execute(
                    f"UPDATE {TOKEN} SET spend = spend + 1 WHERE token = (SELECT min(token) FROM {TOKEN})".encode()
                )
                session.execute(LOG.encode())

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def looks(program: Program) -> list[dict[str, Any]]:
    """What it has said so far, without a line that is still being written."""
    return [json.loads(line) for line in program.said().splitlines() if line.endswith("}")]


def side(program: Program, role: str = "source") -> dict[str, Any]:
    last = looks(program)[-1:]
    return next((each for line in last for each in line["sides"] if each["role"] == role), {})


def test_writer_is_seen_and_its_end_too(source_url: str, target_url: str, start: Start) -> None:
    program = start("status", *FAST, "--json", "--source", source_url, "--target", target_url)
    with writer(source_url):
        wait_until(lambda: {KEYS, LOGS} <= set(side(program).get("rows", ())))
        wait_until(lambda: side(program)["spend"] and side(program)["visitors"])
        (who,) = side(program)["visitors"]
        assert (who["application"], who["client"], who["hidden"]) == ("old proxy", "local", False)
        wait_until(lambda: side(program, "target").get("quiet", 0) > 0)
        assert not side(program, "target")["visitors"]
    wait_until(lambda: side(program)["quiet"] > 0.3)
    assert (side(program)["rows"], side(program)["spend"]) == ({}, 0)
    program.signal(signal.SIGINT)
    done = program.ended()
    assert (done.status, done.err) == (130, "")
    last = done.lines()[-1]
    assert last["event"] == "activity"
    assert last["quiet"] == min(each["quiet"] for each in last["sides"])
    assert "gen_random_uuid" not in done.out


def test_until_quiet_ends_with_0_once_nobody_writes(source_url: str, target_url: str, start: Start) -> None:
    program = start("status", *FAST, "--until-quiet", "500ms", "--source", source_url, "--target", target_url)
    with writer(source_url):
        wait_until(lambda: "rows/s" in program.said() and "old proxy as postgres from local" in program.said())
        assert program.running
    done = program.ended()
    assert done.status == 0
    *lines, last = done.out.splitlines()
    assert last == "Quiet: nothing has moved for 0.5 s."
    assert all(line.startswith("source postgres@") and " | target postgres@" in line for line in lines)
    assert "quiet for less than 1 s" in lines[-1]
    assert "0.5 s prove little" in done.err


def test_open_transaction_that_has_written_is_not_quiet(source_url: str, start: Start) -> None:
    with closing(psycopg.connect(source_url)) as session:
        session.execute(f"UPDATE {TOKEN} SET spend = spend + 1".encode())
        program = start("status", *FAST, "--until-quiet", "300ms", "--source", source_url)
        wait_until(lambda: program.said().count("a session has written and not committed") > 10)
        assert program.running
        session.rollback()
    assert program.ended().status == 0


def test_quiet_side_is_said_to_be_quiet_in_seconds(source_url: str, start: Start) -> None:
    program = start("status", *FAST, "--source", source_url)
    wait_until(lambda: "quiet for 1 s" in program.said())
    program.signal(signal.SIGTERM)
    assert program.ended().status == 143


def test_terminal_shows_a_line_a_side_and_its_sessions_once(source_url: str, target_url: str, terminal: Open) -> None:
    with closing(psycopg.connect(source_url, application_name="forgotten")):
        shown = terminal("status", *FAST, "--source", source_url, "--target", target_url, columns=200, rows=100)
        shown.until("quiet for 1 s; 1 other session")
        shown.type("\x03")
        assert shown.ended() == 130
    assert shown.screen.text.count("forgotten as postgres from local, idle") == 1


def test_watch_needs_a_server_and_until_quiet_needs_watch(source_url: str, target_url: str, run: Run) -> None:
    nowhere = run("status", "--watch")
    assert (nowhere.status, "no server to watch" in nowhere.err) == (2, True)
    alone = run("status", "--until-quiet", "30s", "--target", target_url)
    assert (alone.status, "Add --watch" in alone.err) == (2, True)
    assert run("status", "--source", source_url, "--target", target_url).out.startswith("No runs on ")


def test_reset_statistics_are_no_error(source_url: str, start: Start) -> None:
    ask(source_url, f"UPDATE {TOKEN} SET spend = spend")
    wait_until(lambda: ask(source_url, f"SELECT n_tup_upd > 0 FROM pg_stat_all_tables WHERE relname = '{KEYS}'"))
    program = start("status", *FAST, "--json", "--source", source_url)
    wait_until(lambda: looks(program))
    ask(source_url, "SELECT pg_stat_reset()")
    wait_until(lambda: any(each["rows"] for line in looks(program) for each in line["sides"]))
    (seen,) = [each for line in looks(program) for each in line["sides"] if each["rows"]]
    assert (seen["quiet"], seen["rows"]) == (0, {KEYS: 0})
    assert program.running


@pytest.fixture
def following(source_url: str, target_url: str, run: Run) -> tuple[str, str]:
    """Addresses of a source, and of a target that follows it."""
    ends = ("--source", source_url, "--target", target_url)
    assert run("copy", "--follow", "--yes", *ends).status == 0
    return source_url, target_url


@pytest.mark.parametrize("words", ["status", "follow status", "status --json", "follow status --json"])
def test_watch_ends_with_its_reader(words: str, following: tuple[str, str], tmp_path: Path) -> None:
    source, target = following
    env = {"MISHIKA_MIGRATE_SOURCE": source, "MISHIKA_MIGRATE_TARGET": target}
    done = shell(f"mm {words} --watch --interval 100ms | head -1", tmp_path, env)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, b"", 1)


@pytest.mark.parametrize("words", [("status",), ("follow", "status"), ("follow", "status", "--json")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_is_the_end_of_a_watch_and_no_error(
    words: tuple[str, ...], number: signal.Signals, following: tuple[str, str], start: Start
) -> None:
    source, target = following
    program = start(*words, *FAST, "--source", source, "--target", target)
    wait_until(lambda: program.said().count("\n") > 2)
    program.signal(number)
    done = program.ended()
    assert (done.status, done.err) == (128 + number, "")
    assert '"event": "error"' not in done.out


def test_watch_that_fails_says_why(following: tuple[str, str], start: Start) -> None:
    source, target = following
    program = start("follow", "status", *FAST, "--json", "--source", source, "--target", target)
    wait_until(lambda: program.said().count("\n") > 2)
    ask(
        source,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mishika-migrate/follow'",
    )
    done = program.ended()
    assert (done.status, done.lines()[-1]["event"]) == (6, "error")
