"""A running proxy is asked what it must answer; whatever it says instead is told, and no key is ever repeated."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from mishika_migrate import errors, model
from mishika_migrate.operations.probing import probe, samples
from tests import fix_proxy
from tests.fix_proxy import Proxy

GOOD, ANOTHER, BLOCKED, EXPIRED = (f"sk-geheim-{name}-0123456789" for name in ("good", "another", "blocked", "expired"))


def sample(key: str, expect: samples.Expect = "accepted") -> samples.Sample:
    return samples.Sample(key=key, expect=expect)


def inspect(
    at: Proxy | str, *keys: samples.Sample, master: str | None = None, timeout: float = 20.0
) -> dict[str, model.Check]:
    """The checks by code; fails when any of them repeats a key or a hash."""
    url = at if isinstance(at, str) else at.url
    checks = probe.inspect(url, keys=keys, master_key=master, timeout=timeout)
    said = repr(checks)
    sent = fix_proxy.keys_of(at) if isinstance(at, Proxy) else []
    for key in {*sent, *(each.key for each in keys), *([master] if master else [])}:
        assert key not in said
        assert sample(key).token not in said
    assert "geheim" not in said
    assert [check.code for check in checks] == ["probe-ready", "probe-refusals", "probe-keys", "probe-database"]
    return {check.code.removeprefix("probe-"): check for check in checks}


def states(checks: dict[str, model.Check]) -> dict[str, str]:
    return {name: check.state for name, check in checks.items() if check.state != "ok"}


@pytest.fixture(autouse=True)
def no_proxy_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def proxy(llm_proxy: Proxy) -> Proxy:
    llm_proxy.keys = {GOOD: "good", ANOTHER: "good", BLOCKED: "blocked", EXPIRED: "expired"}
    return llm_proxy


EVERY = (sample(GOOD), sample(ANOTHER), sample(BLOCKED, "refused"), sample(EXPIRED, "refused"))


# -- a proxy as it should be ----------------------------------------------------------------------


def test_a_sound_proxy_passes_every_check(proxy: Proxy) -> None:
    checks = inspect(proxy, *EVERY, master=proxy.master)
    assert states(checks) == {}
    assert not [check for check in checks.values() if check.why_not]
    assert {name: check.looked for name, check in checks.items()} == {
        "ready": 1,
        "refusals": 3,  # blocked, expired and made up
        "keys": 3,  # two and the master key
        "database": 4,  # readiness, the made-up key and two rows
    }
    assert checks["ready"].notes == ("version 1.68.0",)
    asked = [(path, key) for path, key in proxy.seen if key and key.removeprefix("Bearer ") in (GOOD, BLOCKED)]
    assert asked == [
        ("/v1/models", f"Bearer {GOOD}"),
        ("/v1/models", f"Bearer {BLOCKED}"),
        ("/key/info", f"Bearer {GOOD}"),
    ]
    assert proxy.seen[0] == ("/health/readiness", None)


def test_the_made_up_key_is_another_one_each_time(proxy: Proxy) -> None:
    inspect(proxy)
    inspect(proxy)
    one, other = fix_proxy.keys_of(proxy)
    assert one != other
    assert one.startswith("sk-")
    assert len(one) > 30


def test_a_proxy_below_a_path(proxy: Proxy) -> None:
    proxy.prefix = "/llm"
    assert states(inspect(f"{proxy.url}/", *EVERY)) == {}
    assert {path for path, _ in proxy.seen} == {"/llm/health/readiness", "/llm/v1/models", "/llm/key/info"}


@pytest.mark.parametrize("standing", ["blocked", "team-blocked", "expired", "expired-401"])
def test_every_kind_of_refusal_counts_as_one(standing: fix_proxy.Standing, proxy: Proxy) -> None:
    proxy.keys[BLOCKED] = standing
    assert states(inspect(proxy, sample(GOOD), sample(BLOCKED, "refused"))) == {}


@pytest.mark.parametrize(
    ("standing", "note"),
    [("over-budget", "over its budget (400)"), ("routes", "accepted, but not for this route (401)")],
)
def test_a_good_key_that_may_not_do_this_is_a_note(standing: fix_proxy.Standing, note: str, proxy: Proxy) -> None:
    proxy.keys[GOOD] = standing
    checks = inspect(proxy, sample(GOOD))
    assert states(checks) == {}
    assert checks["keys"].notes[0] == f"{note}: {sample(GOOD).name}"


def test_a_key_whose_row_it_may_not_see_is_good(proxy: Proxy) -> None:
    proxy.keys[GOOD] = "private"
    assert states(inspect(proxy, sample(GOOD))) == {}


# -- keys that are answered otherwise -------------------------------------------------------------


@pytest.mark.parametrize(
    ("standing", "says"),
    [
        (None, "refused: the proxy does not know it (401)"),
        ("blocked", "refused: it or its team is blocked (401)"),
        ("team-blocked", "refused: it or its team is blocked (401)"),
        ("expired", "refused: it has expired (400)"),
    ],
)
def test_a_key_that_should_work_and_is_refused(standing: fix_proxy.Standing | None, says: str, proxy: Proxy) -> None:
    if standing:
        proxy.keys[GOOD] = standing
    else:
        del proxy.keys[GOOD]
    checks = inspect(proxy, *EVERY)
    assert states(checks) == {"keys": "different"}
    assert checks["keys"].problems == (f"{says}: {sample(GOOD).name}",)


def test_without_the_databases_word_a_blocked_key_is_a_note_and_an_unknown_one_a_problem(proxy: Proxy) -> None:
    checks = inspect(proxy, sample(BLOCKED, "unknown"), sample(EXPIRED, "unknown"), sample(GOOD, "unknown"))
    assert states(checks) == {}
    assert checks["keys"].notes == (
        f"refused: it or its team is blocked (401); --target URL tells whether it should be: {sample(BLOCKED).name}",
        f"refused: it has expired (400); --target URL tells whether it should be: {sample(EXPIRED).name}",
    )
    del proxy.keys[GOOD]
    assert states(inspect(proxy, sample(GOOD, "unknown"))) == {"keys": "different"}


@pytest.mark.parametrize("standing", ["good", "routes"])
def test_a_key_that_should_be_refused_and_is_accepted(standing: fix_proxy.Standing, proxy: Proxy) -> None:
    proxy.keys[BLOCKED] = standing
    checks = inspect(proxy, *EVERY)
    assert states(checks) == {"refusals": "different"}
    (problem,) = checks["refusals"].problems
    assert problem.startswith("accepted")
    assert problem.endswith(f"says blocked, expired or not there: {sample(BLOCKED).name}")


def test_a_key_that_only_the_cache_knows(proxy: Proxy) -> None:
    proxy.keys[GOOD] = "cached"
    checks = inspect(proxy, *EVERY)
    assert states(checks) == {"keys": "different"}
    assert checks["keys"].problems == (
        f"/v1/models accepts, /key/info is not in the proxy's database (404): {sample(GOOD).name}",
    )


def test_many_keys_with_one_answer_are_one_sentence(proxy: Proxy) -> None:
    lost = [sample(f"sk-geheim-lost-{number:04}-abcd") for number in range(25)]
    (problem,) = inspect(proxy, *lost)["keys"].problems
    assert problem.endswith(" and 15 more")
    assert problem.count("sk-...") == 10


def test_a_key_that_is_turned_away_is_not_checked(proxy: Proxy) -> None:
    proxy.keys[GOOD] = proxy.keys[BLOCKED] = "limited"
    checks = inspect(proxy, *EVERY)
    assert states(checks) == {"keys": "unchecked", "refusals": "unchecked"}
    assert "turned away for asking too often (429)" in checks["keys"].why_not


def test_a_wrong_master_key_is_a_problem(proxy: Proxy) -> None:
    checks = inspect(proxy, master="sk-geheim-wrong-master-key")
    assert checks["keys"].problems == ("the master key is refused: the proxy does not know it (401)",)


def test_without_keys_it_says_so(proxy: Proxy) -> None:
    checks = inspect(proxy)
    assert states(checks) == {"keys": "unchecked"}
    assert checks["keys"].why_not == "no key that should work was given: --sample-keys FILE"
    assert checks["refusals"].notes == (
        "no sample key is known to be blocked or expired: only a made-up key was tried",
    )


# -- proxies that let anyone in -------------------------------------------------------------------


def test_a_proxy_without_a_master_key_lets_a_made_up_key_in(proxy: Proxy) -> None:
    proxy.open = True
    checks = inspect(proxy, *EVERY)
    assert checks["refusals"].state == "different"
    assert "a made-up key is accepted (200): the proxy lets anyone in" in checks["refusals"].problems[0]
    assert "without a master key" in checks["refusals"].problems[0]
    assert len(checks["refusals"].problems) == 2
    assert checks["keys"].why_not == "a made-up key is accepted as well, so these answers prove nothing"


def test_a_proxy_that_lost_its_database_and_lets_everyone_in(proxy: Proxy) -> None:
    """Every sample key answers 200: only the made-up one tells."""
    proxy.database = "down"
    checks = inspect(proxy, sample(GOOD))
    assert states(checks) == {"refusals": "different", "database": "different", "keys": "unchecked"}
    assert "allow_requests_on_db_unavailable" in checks["refusals"].problems[0]
    assert checks["database"].problems == (
        "/health/readiness says that the database is not connected",
        "1 question with a key was answered with an error of the proxy (500)",
    )


@pytest.mark.parametrize(("database", "says"), [("none", "(400)"), ("lost", "(401)")])
def test_a_proxy_without_a_database_that_lets_nobody_in(database: str, says: str, proxy: Proxy) -> None:
    proxy.database = database  # type: ignore[assignment]
    checks = inspect(proxy, sample(GOOD))
    assert checks["refusals"].state == "ok"
    assert checks["keys"].state == "different"
    assert checks["database"].state == "different"
    assert f"refused: the proxy has no database {says}" in checks["database"].problems[-1]
    assert checks["ready"].state == ("ok" if database == "none" else "different")


# -- misbehaviour ---------------------------------------------------------------------------------


def test_a_proxy_that_is_not_ready(proxy: Proxy) -> None:
    proxy.instead["/health/readiness"] = fix_proxy.says(503, {"detail": "Service Unhealthy"})
    checks = inspect(proxy, *EVERY)
    assert states(checks) == {"ready": "different"}
    assert checks["ready"].problems == ("/health/readiness is answered with an error of the proxy (503)",)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"<html>hello</html>", b"[1]", b"null", b"[" * 200_000, b"\xff\xfe", b'{"other": 1}']
)
def test_answers_that_are_not_the_proxys(body: bytes, proxy: Proxy) -> None:
    for path in ("/health/readiness", "/v1/models"):
        proxy.instead[path] = fix_proxy.says(200, body)
    checks = inspect(proxy, *EVERY)
    assert states(checks) == {
        "ready": "different",
        "refusals": "different",
        "keys": "different",
        "database": "unchecked",
    }
    assert "answered with something that is not the proxy's (200)" in checks["ready"].problems[0]


@pytest.mark.parametrize("status", [500, 502, 418, 404])
def test_any_other_status_is_neither_good_nor_a_refusal(status: int, proxy: Proxy) -> None:
    proxy.instead["/v1/models"] = fix_proxy.says(status, {"error": {"message": GOOD, "type": ["x"]}})
    checks = inspect(proxy, *EVERY)
    assert checks["refusals"].state == checks["keys"].state == "different"
    assert f"({status}) instead of refused (401)" in checks["refusals"].problems[0]


@pytest.mark.parametrize("odd", ["error text", {"error": "text"}, {"error": {"message": 5}}, [], None])
def test_a_refusal_without_the_proxys_words_is_one(odd: object, proxy: Proxy) -> None:
    proxy.instead["/v1/models"] = fix_proxy.says(403, odd)
    checks = inspect(proxy, *EVERY)
    assert checks["refusals"].state == "ok"
    assert checks["keys"].problems == (f"refused (403): {sample(GOOD).name}, {sample(ANOTHER).name}",)


@pytest.mark.parametrize("path", ["/health/readiness", "/v1/models"])
def test_a_redirection_is_told_and_never_followed(path: str, proxy: Proxy) -> None:
    elsewhere = Proxy()
    try:
        proxy.instead[path] = fix_proxy.says(307, b"", Location=f"{elsewhere.url}/x?key={GOOD}")
        checks = inspect(proxy, *EVERY)
    finally:
        elsewhere.close()
    assert elsewhere.seen == []
    said = checks["ready" if path == "/health/readiness" else "keys"].problems[0]
    assert f"sent to another address (307 to http://127.0.0.1:{elsewhere.port}; give the final address" in said


@pytest.mark.parametrize("location", ["", f"//{GOOD}", f"http://{GOOD}@h/", "http://[", "/x", "http://h:99999/"])
def test_a_redirection_to_nowhere_quotes_nothing(location: str, proxy: Proxy) -> None:
    proxy.instead["/v1/models"] = fix_proxy.says(302, b"", Location=location)
    assert "sent to another address (302" in inspect(proxy, sample(GOOD))["keys"].problems[0]


def test_a_proxy_that_never_answers_is_given_up_at_once(proxy: Proxy) -> None:
    proxy.instead["/health/readiness"] = fix_proxy.hangs(proxy)
    checks = inspect(proxy, *EVERY, timeout=0.2)
    assert checks["ready"].problems == ("/health/readiness is not answered (nothing within 0.2 s)",)
    assert states(checks) == {
        "ready": "different",
        "refusals": "unchecked",
        "keys": "unchecked",
        "database": "unchecked",
    }
    assert fix_proxy.keys_of(proxy) == []


@pytest.mark.parametrize("misdeed", [fix_proxy.hangs, fix_proxy.stops_midway])
def test_silence_about_keys_ends_after_three(misdeed: Callable[[Proxy], fix_proxy.Misdeed], proxy: Proxy) -> None:
    proxy.instead["/v1/models"] = misdeed(proxy)
    many = [sample(f"sk-geheim-{number:04}-abcdefgh") for number in range(10)]
    checks = inspect(proxy, *many, timeout=0.2)
    assert len(fix_proxy.keys_of(proxy)) == 1 + 3
    assert states(checks) == {"refusals": "unchecked", "keys": "different"}
    assert checks["keys"].problems[0].startswith("not answered (nothing within 0.2 s): sk-...efgh ")
    assert checks["keys"].why_not == "after 3 silences in a row 7 keys were not tried"


def test_an_answer_without_an_end_is_cut_off(proxy: Proxy) -> None:
    proxy.instead["/v1/models"] = fix_proxy.never_ends(proxy)
    checks = inspect(proxy, sample(GOOD))
    assert "not the proxy's (200, without an end)" in checks["keys"].problems[0]


@pytest.mark.parametrize("misdeed", [fix_proxy.speaks_no_http, fix_proxy.hangs_up])
def test_a_broken_connection_is_silence(misdeed: fix_proxy.Misdeed, proxy: Proxy) -> None:
    proxy.instead["/v1/models"] = misdeed
    checks = inspect(proxy, sample(GOOD))
    assert "(the connection broke, or speaks no HTTP)" in checks["keys"].problems[0]


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    checks = inspect(f"http://127.0.0.1:{port}", sample(GOOD))
    assert checks["ready"].problems == ("/health/readiness is not answered (connection refused)",)


# -- TLS and the environment ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key."""
    folder = tmp_path_factory.mktemp("tls")
    made = folder / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    made.write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return made


@pytest.fixture
def over_tls(proxy: Proxy, authority: Path) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority)
    proxy.encrypt(context)
    return f"https://127.0.0.1:{proxy.port}"


def test_a_certificate_of_nobody_is_refused_before_any_key_is_sent(over_tls: str, proxy: Proxy) -> None:
    checks = inspect(over_tls, *EVERY)
    assert checks["ready"].problems == (
        "/health/readiness is not answered (its certificate is not trusted; SSL_CERT_FILE names another authority)",
    )
    assert proxy.seen == []


def test_ssl_cert_file_names_the_authority(over_tls: str, authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    assert states(inspect(over_tls, *EVERY)) == {}


def test_a_proxy_of_the_environment_is_used(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for the whole address: the host itself does not exist."""
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    checks = inspect("http://llm.invalid:4000", *EVERY)
    assert states(checks) == {}
    assert checks["ready"].notes[-1] == "http://llm.invalid: keys are sent over the network unencrypted"
    assert proxy.seen[0][0] == "http://llm.invalid:4000/health/readiness"


@pytest.mark.parametrize(
    ("name", "value"),
    [("HTTP_PROXY", "nonsense://me:geheim@h"), ("ALL_PROXY", "socks5://me:geheim@h"), ("SSL_CERT_FILE", "/no/geheim")],
)
def test_an_environment_that_cannot_be_used(
    name: str, value: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(errors.ConfigurationError) as caught:
        inspect(proxy)
    assert "geheim" not in "".join(traceback.format_exception(caught.value))


# -- what is given --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["", "proxy:4000", "ftp://h", "http://", "http:///x", "https://me:geheim@h", "https://geheim@h", "http://h?geheim",
     "http://h/#geheim", "http://h/?", "http://[geheim", "http://h:geheim", "http://h:0", "http://h/\ngeheim"],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_not_quoted(url: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        probe.inspect(url, keys=(), master_key=None)
    assert caught.value.hint
    assert "geheim" not in "".join(traceback.format_exception(caught.value)) + caught.value.hint


@pytest.mark.parametrize("master", ["", "sk-geheim\n", "geheim ü", "sk geheim"])
def test_a_master_key_that_no_header_can_carry(master: str, proxy: Proxy) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        probe.inspect(proxy.url, keys=(), master_key=master)
    assert "geheim" not in caught.value.message + caught.value.hint
    assert proxy.seen == []


def test_address_as_shown() -> None:
    assert probe.shown("https://h:4000/llm/") == "https://h:4000/llm"


def test_without_httpx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(errors.ConfigurationError) as caught:
        probe.inspect("http://h", keys=(), master_key=None)
    assert "pip install 'mishika-migrate[probe]'" in caught.value.hint


def test_no_thread_and_no_connection_is_left(proxy: Proxy) -> None:
    before = threading.active_count()
    inspect(proxy, *EVERY)
    assert threading.active_count() <= before + 1  # the server's own, of the one connection
