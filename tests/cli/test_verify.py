"""`verify` as pipelines run it: statuses, reports, roles that may only read, and what it never shows."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import psycopg
import pytest

from tests.fix_faults import Start, ask, backends, locked, terminate, wait_until
from tests.fix_program import Run, command, environment
from tests.fix_servers import KEYS, Clone, Pair

TOKEN, TEAM, LOGS = (f'"MishikaLLM_{name}"' for name in ("VerificationToken", "TeamTable", "SpendLogs"))
ALLOWED = ("--allow-unchecked", "decryption")
OURS = "mishika-migrate/verify"
WAITING = f"SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = '{OURS}' AND wait_event_type = 'Lock')"
DOCS = Path(__file__).parents[2] / "docs"


def change(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("SET session_replication_role = replica")
        for statement in statements:
            session.execute(statement.encode())


@pytest.fixture(scope="module")
def copied(pair: Pair, common_source: str) -> Iterator[str]:
    """A template of a target that holds all that the source does, with its ledger."""
    with psycopg.connect(pair.new.url(), autocommit=True) as session:
        session.execute("DROP DATABASE IF EXISTS copied WITH (FORCE)")
        session.execute("CREATE DATABASE copied TEMPLATE bare")
    url = pair.new.url("copied")
    ends = ["--source", common_source, "--target", url]
    done = subprocess.run(
        command("copy", "--include-spendlogs", "--yes", "--quiet", "--verify", *ends),
        env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Compared with the snapshot: equal" in done.stdout
    assert f"{KEYS:,} keys: {KEYS:,} continue unchanged" in done.stdout
    yield "copied"


@pytest.fixture
def target_url(pair: Pair, clone: Clone, copied: str) -> str:
    return clone(pair.new, copied)


@pytest.fixture
def ends(source_url: str, target_url: str) -> list[str]:
    return ["--source", source_url, "--target", target_url]


# -- statuses -------------------------------------------------------------------------------------


def test_equal_sides_end_with_0_once_the_unchecked_is_allowed(ends: list[str], run: Run) -> None:
    done = run("verify", *ends)
    assert done.status == 3
    assert "decryption" in done.out and "--allow-unchecked decryption" in done.out
    done = run("verify", *ends, *ALLOWED)
    assert done.status == 0, done.out
    assert done.out.startswith("Equal: ")
    assert f"{KEYS:,} keys: {KEYS:,} continue unchanged" in done.out


def test_difference_ends_with_3_and_says_which_key_loses_what(ends: list[str], target_url: str, run: Run) -> None:
    change(target_url, f"DELETE FROM {TEAM} WHERE team_id = (SELECT min(team_id) FROM {TOKEN})")
    done = run("verify", *ends, *ALLOWED)
    assert done.status == 3
    first, second, *_ = done.out.splitlines()
    assert first.startswith("Different: ")
    assert "would become unlimited" in second
    assert "the team's block, budget, rate limits and model list no longer hold" in done.out


def test_selection_is_the_last_run_s_or_what_is_asked_for(ends: list[str], target_url: str, run: Run) -> None:
    change(target_url, f"UPDATE {LOGS} SET spend = spend + 1 WHERE request_id = (SELECT min(request_id) FROM {LOGS})")
    assert "as run " in run("verify", *ends, *ALLOWED).out
    done = run("verify", *ends, *ALLOWED, "--exclude", "spendlogs")
    assert done.status == 0, done.out
    assert "as asked for" in done.out
    done = run("verify", *ends, "--only", "spendlogs", "--json")
    (proof,) = [line for line in done.lines() if line["event"] == "proof"]
    (content,) = [line for line in done.lines() if line["event"] == "content"]
    assert (done.status, proof["verdict"], content["differing"]) == (3, "different", 1)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--level", "deep"], 2, "one of content, keys, counts"),
        (["--sample", "1"], 2, "such as 1%"),
        (["--sample", "0%"], 2, "such as 1%"),
        (["--recheck", "-1"], 2, "a whole number from 0 to 1000"),
        (["--report", "x.txt"], 2, "no suffix that says its form"),
        (["--report", "nowhere/x.md"], 2, "is not there"),
        (["--salt-key-env", "NOT_THERE"], 2, "NOT_THERE is not set"),
        (["--sample-keys", "nowhere.txt"], 2, "nowhere.txt"),
        (["--snapshot", "00000003-00000001-1"], 6, "snapshot"),
        (["--include", "NoSuchTable"], 2, "there is no table or group"),
        (["--allow-unchecked", "decrypton"], 2, "It takes tables, keys"),
        (["--recheck", "2", "--snapshot", "x"], 2, "exclude each other"),
        (["--report", f"{'x' * 300}.json"], 2, "File name too long"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_what_cannot_be_used_is_one_sentence(
    arguments: list[str], status: int, words: str, ends: list[str], run: Run
) -> None:
    done = run("verify", *ends, *arguments)
    assert (done.status, done.out) == (status, ""), done.err
    assert "Traceback" not in done.err
    assert words in done.err
    assert done.err.count("error: ") == done.err.count("hint: ") == 1


def test_database_is_not_proven_by_itself(source_url: str, run: Run) -> None:
    done = run("verify", "--source", source_url, "--target", source_url)
    assert done.status == 4
    assert "are the same database" in done.err


def test_side_that_cannot_be_read_ends_with_6(ends: list[str], target_url: str, run: Run) -> None:
    assert run("verify", "--source", ends[1], "--target", "postgresql://u@127.0.0.1:1/x").status == 6
    change(target_url, f"REVOKE ALL ON {TOKEN} FROM PUBLIC", "DROP ROLE IF EXISTS blind", "CREATE ROLE blind LOGIN")
    done = run("verify", *ends[:2], "--target", target_url.replace("postgres@", "blind@"), "--exclude", "spendlogs")
    assert done.status == 6
    assert "permission denied" in done.err and "Traceback" not in done.err


def test_backend_that_is_ended_ends_with_6(ends: list[str], target_url: str, start: Start) -> None:
    with locked(target_url, "MishikaLLM_SpendLogs", "ACCESS EXCLUSIVE"):
        child = start("verify", *ends, *ALLOWED)
        wait_until(lambda: ask(target_url, WAITING))
        terminate(target_url, OURS)
        done = child.ended()
    assert done.status == 6, done.err
    assert "Traceback" not in done.err and not done.out


def test_interrupted_verification_ends_with_130(ends: list[str], target_url: str, start: Start) -> None:
    with locked(target_url, "MishikaLLM_SpendLogs", "ACCESS EXCLUSIVE"):
        child = start("verify", *ends, *ALLOWED)
        wait_until(lambda: ask(target_url, WAITING))
        child.signal(signal.SIGINT)
        done = child.ended()
    assert done.status == 130, done.err
    assert "Traceback" not in done.err
    wait_until(lambda: not backends(target_url, OURS))


def test_scope_is_all_that_runs_have_copied(source_url: str, pair: Pair, clone: Clone, run: Run) -> None:
    ends = ["--source", source_url, "--target", clone(pair.new, "bare")]
    assert run("copy", "--yes", *ends).status == 0
    assert run("copy", "--yes", "--only", "spendlogs", *ends).status == 0
    change(ends[3], f"UPDATE {TEAM} SET blocked = NOT blocked")
    done = run("verify", *ends, *ALLOWED)
    assert done.status == 3
    assert "as 2 runs copied" in done.out and "TeamTable" in done.out


def test_sample_keys_without_verdicts_are_refused(ends: list[str], run: Run) -> None:
    done = run("verify", *ends, "--level", "keys", "--sample-keys", "-", input="sk-0123456789abcdefghij\n")
    assert done.status == 2
    assert "sample keys get a verdict only where all keys do" in done.err


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (f"ALTER TABLE {TOKEN} ENABLE ROW LEVEL SECURITY", "row security"),
        (f"CREATE RULE away AS ON INSERT TO {LOGS} DO INSTEAD NOTHING", "rule away"),
        (f"ALTER TABLE {LOGS} SET UNLOGGED", "unlogged"),
        (
            "CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
            f" CREATE TRIGGER never BEFORE UPDATE ON {TOKEN} FOR EACH ROW EXECUTE FUNCTION never()",
            "trigger never",
        ),
    ],
)
def test_target_that_could_not_serve_the_proxy_is_different(
    statement: str, words: str, ends: list[str], target_url: str, run: Run
) -> None:
    change(target_url, statement)
    done = run("verify", *ends, *ALLOWED)
    assert done.status == 3, done.out
    assert words in done.out


def test_rows_of_ciphertext_on_one_side_only_are_other_ciphertext(ends: list[str], target_url: str, run: Run) -> None:
    change(target_url, 'DELETE FROM "MishikaLLM_CredentialsTable"')
    done = run("verify", *ends, *ALLOWED, "--json")
    (check,) = [line for line in done.lines() if line["event"] == "check" and line["code"] == "ciphertext"]
    assert check["state"] == "different"
    assert "on one side only" in check["problems"][0]


def test_settings_of_a_database_change_nothing(pair: Pair, ends: list[str], target_url: str, run: Run) -> None:
    name = target_url.partition("?")[0].rpartition("/")[2]
    for setting in ("quote_all_identifiers = on", "standard_conforming_strings = off"):
        change(target_url, f"ALTER DATABASE {name} SET {setting}")
    done = run("verify", *ends, *ALLOWED)
    assert done.status == 0, done.out


def test_signal_is_heard_while_differences_are_read(
    source_url: str, pair: Pair, clone: Clone, start: Start, tmp_path: Path
) -> None:
    """A table that nobody lets be read: the first signal ends it, whichever phase waits."""
    target = clone(pair.new, "bare")
    with locked(target, "MishikaLLM_TeamTable", "ACCESS EXCLUSIVE"):
        child = start("verify", "--source", source_url, "--target", target)
        wait_until(lambda: ask(target, WAITING))
        child.signal(signal.SIGTERM)
        done = child.ended(seconds=20)
    assert done.status == 143, done.err


# -- reports --------------------------------------------------------------------------------------


def test_reports_and_lines_tell_the_same(ends: list[str], target_url: str, tmp_path: Path, run: Run) -> None:
    change(target_url, f"UPDATE {TOKEN} SET blocked = true WHERE token = (SELECT min(token) FROM {TOKEN})")
    files = [tmp_path / name for name in ("proof.json", "proof.md", "proof.xml")]
    summary = tmp_path / "summary.md"
    summary.touch()
    done = run(
        "verify", *ends, *ALLOWED, "--json", *(word for file in files for word in ("--report", str(file))),
        env={"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)},
    )  # fmt: skip
    assert done.status == 3
    document = json.loads(files[0].read_text())
    assert (document["format"], document["verdict"], document["status"]) == (1, "different", 3)
    assert {each["code"]: each["count"] for each in document["keys"]["reasons"] if each["count"]} == {
        "blocked-differs": 1
    }
    assert "blocked-differs" in files[1].read_text() and files[1].read_text() in summary.read_text() + "\n"
    suites = ElementTree.parse(files[2]).getroot()
    assert int(suites.attrib["failures"]) >= 2
    assert "::error" in done.err
    assert done.lines()[-1]["event"] == "proof"


def test_no_whole_token_is_shown(ends: list[str], target_url: str, tmp_path: Path, run: Run) -> None:
    change(
        target_url,
        f"DELETE FROM {TOKEN} WHERE token IN (SELECT token FROM {TOKEN} ORDER BY token LIMIT 3)",
        f"UPDATE {TOKEN} SET spend = spend + 1 WHERE token IN (SELECT token FROM {TOKEN} ORDER BY token DESC LIMIT 3)",
    )
    report = tmp_path / "proof.md"
    done = run("verify", *ends, "--json", "--verbose", "--report", str(report))
    shown = done.out + done.err + report.read_text()
    assert done.status == 3
    assert not re.search(r"\b[0-9a-f]{64}\b", shown)


def test_sample_keys_get_verdicts_and_stay_secret(
    pair: Pair, source_url: str, target_url: str, clone: Clone, run: Run
) -> None:
    mine, gone, unknown = (f"sk-{name}-0123456789abcdef" for name in ("mine", "gone", "nobody"))
    source = clone(pair.old, "filled")
    for url, keys in ((source, (mine, gone)), (target_url, (mine,))):
        for key in keys:
            hashed = hashlib.sha256(key.encode()).hexdigest()
            change(
                url, f"INSERT INTO {TOKEN} (token, key_name, models) VALUES ('{hashed}', 'sk-...{key[-4:]}', '{{}}')"
            )
    done = run(
        "verify", "--source", source, "--target", target_url, "--sample-keys", "-", "--json",
        input=f"{mine}\n{gone} # was here\n\n{unknown}\n",
    )  # fmt: skip
    verdicts = {line["key"]: line for line in done.lines() if line["event"] == "verdict" and line["sample"]}
    assert [each["outcome"] for each in verdicts.values()] == ["unchanged", "lost", "lost"]
    assert done.status == 3
    for key in (mine, gone, unknown):
        assert key not in done.out + done.err
        assert hashlib.sha256(key.encode()).hexdigest() not in done.out + done.err


# -- roles and places -----------------------------------------------------------------------------


def grants() -> list[str]:
    """The SQL of docs/ci.md, word for word."""
    text = (DOCS / "ci.md").read_text()
    return re.findall(r"```sql\n(.*?)```", text, re.DOTALL)


def test_role_that_may_only_read_is_enough_on_both_sides(pair: Pair, clone: Clone, target_url: str, run: Run) -> None:
    source = clone(pair.old, "filled")
    given = grants()
    assert len(given) == 2, "one for both sides, one for the ledger"
    for url, blocks in ((source, given[:1]), (target_url, given)):
        change(url, "DROP ROLE IF EXISTS verifier", *(block.replace("'…'", "'x'") for block in blocks))
    done = run(
        "verify", *ALLOWED,
        "--source", source.replace("postgres@", "verifier@"), "--target", target_url.replace("postgres@", "verifier@"),
    )  # fmt: skip
    for url in (source, target_url):
        change(url, "DROP OWNED BY verifier", "DROP ROLE verifier")
    assert done.status == 0, done.out + done.err


def test_role_that_may_not_read_the_ledger_is_told_so(pair: Pair, clone: Clone, target_url: str, run: Run) -> None:
    source = clone(pair.old, "filled")
    change(target_url, "DROP ROLE IF EXISTS outsider", "CREATE ROLE outsider LOGIN")
    change(target_url, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO outsider")
    done = run("verify", "--source", source, "--target", target_url.replace("postgres@", "outsider@"))
    change(target_url, "DROP OWNED BY outsider", "DROP ROLE outsider")
    assert done.status == 6
    assert "the ledger on" in done.err and "GRANT USAGE ON SCHEMA mishika_migrate" in done.err


def test_reader_that_goes_away_changes_no_status(ends: list[str]) -> None:
    program = subprocess.Popen(
        command("verify", *ends, *ALLOWED), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None and program.stderr is not None
    os.close(os.dup(program.stdout.fileno()))
    program.stdout.close()
    err = program.stderr.read().decode()
    program.stderr.close()
    assert program.wait(timeout=60) == 0, err
    assert "Traceback" not in err


def test_hint_of_no_ledger_is_the_default_selection(source_url: str, pair: Pair, clone: Clone, run: Run) -> None:
    done = run("verify", "--source", source_url, "--target", clone(pair.new, "bare"))
    assert done.status == 3
    assert "the target has no run in its ledger" in done.out
