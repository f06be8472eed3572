"""`probe` as a pipeline runs it: statuses, streams, reports, and no key in any of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.fix_program import Ended, Run
from tests.fix_proxy import Proxy, keys_of
from tests.fix_servers import Clone, Pair
from tests.looking import TOKEN

GOOD, BLOCKED, LOST = (f"sk-geheim-{name}-0123456789-abcd" for name in ("good", "blocked", "lost"))
Probe = Callable[..., Ended]


@pytest.fixture
def probe(run: Run, llm_proxy: Proxy) -> Probe:
    """Whatever is written is free of keys and hashes."""

    def call(*arguments: str, keys: str = GOOD, env: dict[str, str] | None = None) -> Ended:
        clear = {name: "" for each in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY") for name in (each, each.lower())}
        ended = run(
            "probe",
            "--proxy",
            llm_proxy.url,
            "--sample-keys",
            "-",
            *arguments,
            env={**clear, **(env or {})},
            input=keys,
        )
        for key in {GOOD, BLOCKED, LOST, llm_proxy.master, *keys_of(llm_proxy)}:
            for secret in (key, hashlib.sha256(key.encode()).hexdigest()):
                assert secret not in ended.out + ended.err
        return ended

    llm_proxy.keys = {GOOD: "good", BLOCKED: "blocked"}
    return call


@pytest.fixture
def target(pair: Pair, clone: Clone) -> str:
    """Knows one good key and a blocked one."""
    url = clone(pair.new, "bare")
    with psycopg.connect(url, autocommit=True) as session:
        for key, blocked in ((GOOD, False), (BLOCKED, True)):
            token = hashlib.sha256(key.encode()).hexdigest()
            session.execute(f"INSERT INTO {TOKEN} (token, blocked) VALUES (%s, %s)".encode(), [token, blocked])
    return url


def test_a_sound_proxy_ends_with_0(probe: Probe, target: str, llm_proxy: Proxy) -> None:
    ended = probe(
        "--target", target, "--master-key-env", "MK", keys=f"{GOOD}\n{BLOCKED}\n", env={"MK": llm_proxy.master}
    )
    assert ended.status == 0, ended.err + ended.out
    assert "probe-refusals" in ended.out or "Keys that should be refused are refused" in ended.out


def test_a_lost_key_and_an_open_proxy_end_with_3(probe: Probe, llm_proxy: Proxy) -> None:
    assert probe(keys=LOST).status == 3
    llm_proxy.open = True
    ended = probe()
    assert ended.status == 3
    assert "a made-up key is accepted" in " ".join(ended.out.split())


def test_what_could_not_be_checked_may_be_allowed(probe: Probe, llm_proxy: Proxy) -> None:
    llm_proxy.keys[GOOD] = "limited"
    assert probe().status == 3
    assert probe("--allow-unchecked", "probe-keys").status == 0


def test_json_lines_and_reports(probe: Probe, target: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"proof.{suffix}" for suffix in ("json", "md", "xml")]
    reports = [word for path in paths for word in ("--report", str(path))]
    ended = probe("--target", target, "--json", *reports, keys=f"{GOOD}\n{BLOCKED}\n{LOST}\n")
    assert ended.status == 3
    lines = ended.lines()
    checks = {line["code"]: line for line in lines if line["event"] == "check"}
    assert list(checks) == ["probe-samples", "probe-ready", "probe-refusals", "probe-keys", "probe-database"]
    assert lines[-1]["event"] == "proof"
    assert lines[-1]["scope"].startswith("probe of http://127.0.0.1:")
    assert json.loads(paths[0].read_text())["status"] == 3
    for path in paths:
        assert "geheim" not in path.read_text()
        assert "sk-...abcd" in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--master-key-env", "NO_SUCH"], "the environment variable NO_SUCH is not set"),
        (["--master-key-env", GOOD], "that variable is not set"),
        (["--proxy", "http://me:geheim@h"], "holds a user or a password"),
        (["--report", "proof.txt"], "no suffix"),
        (["--sample-keys", GOOD], "a key was given"),
    ],
)
def test_usage_ends_with_2_before_anything_is_asked(
    arguments: list[str], says: str, probe: Probe, llm_proxy: Proxy
) -> None:
    ended = probe(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert says in " ".join(ended.err.split())
    assert llm_proxy.seen == []


def test_without_an_address_it_says_how_to_give_one(run: Run) -> None:
    ended = run("probe")
    assert ended.status == 2
    assert "--proxy URL" in ended.err


def test_a_bug_prints_no_key(probe: Probe, llm_proxy: Proxy) -> None:
    """Not even with a traceback."""
    ended = probe("--verbose", "--target", "postgresql://me:hunter2@127.0.0.1:1/x")
    assert ended.status == 6
    assert "hunter2" not in ended.err
