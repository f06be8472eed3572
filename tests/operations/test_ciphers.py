"""Every encrypted value is opened with the secret that the proxy would use, or it is told that none does."""

from __future__ import annotations

import base64
import builtins
import hashlib
import json
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import nacl.secret
import psycopg
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg import sql

from mishika_migrate import errors, matrix, model
from mishika_migrate.operations.verifying import ciphers
from mishika_migrate.pg import catalog, connect
from tests.fix_servers import endpoint
from tests.looking import execute

RULES = matrix.load()
MODELS, CREDENTIALS, CONFIG = (f"MishikaLLM_{name}" for name in ("ProxyModelTable", "CredentialsTable", "Config"))
ALL = (MODELS, CREDENTIALS, CONFIG)
SALT, MASTER, OTHER = "sk-salt-geheim-0123456789", "sk-master-geheim-0123456789", "sk-other-geheim-0123456789"
PLAIN = "hunter2 is a secret of a provider"


def box(text: str | bytes, secret: str, *, urlsafe: bool = False) -> str:
    """As the proxy writes it; `urlsafe` as LiteLLM since does, and then with a sign that tells the two apart."""
    sealer = nacl.secret.SecretBox(hashlib.sha256(secret.encode()).digest())
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    while True:
        plain = text.encode() if isinstance(text, str) else text
        sealed = encode(bytes(sealer.encrypt(plain))).decode()
        if not urlsafe or set(sealed) & set("-_"):
            return sealed


def gcm(text: str, secret: str) -> str:
    nonce = os.urandom(12)
    sealed = AESGCM(hashlib.sha256(secret.encode()).digest()).encrypt(nonce, text.encode(), None)
    return "v2:gcm:" + base64.urlsafe_b64encode(nonce + sealed).decode()


def plant(url: str, name: str, values: object, *, table: str = MODELS) -> None:
    """One row whose encrypted column holds `values`."""
    rows = {
        MODELS: ("model_id, model_name, mishikallm_params, created_by, updated_by", [name, name, values, "me", "me"]),
        CREDENTIALS: (
            "credential_id, credential_name, credential_values, created_by, updated_by",
            [name, name, values, "me", "me"],
        ),
        CONFIG: ("param_name, param_value", [name, values]),
    }
    columns, row = rows[table]
    query = f'INSERT INTO "{table}" ({columns}) VALUES ({", ".join(["%s"] * len(row))})'
    with psycopg.connect(url, autocommit=True) as session:
        session.execute(query.encode(), [json.dumps(each) if each is values else each for each in row])


def inspect(
    url: str,
    *,
    salt: str | None = None,
    master: str | None = None,
    tables: Sequence[str] = ALL,
    rules: matrix.Matrix = RULES,
) -> model.Check:
    at = endpoint(url, "target")
    with connect.session(at, name="test") as session:
        found = catalog.read(session, at, migrations=rules.migrations)
        check = ciphers.inspect(rules, found, session, salt_key=salt, master_key=master, tables=tables)
        assert session.execute("SELECT 1").fetchone() == (1,), "the session is free again"
    said = repr(check)
    for secret in (SALT, MASTER, OTHER, PLAIN, "geheim", "hunter2"):
        assert secret not in said
    return check


@pytest.fixture
def planted(target_url: str) -> str:
    """A proxy's rows under the salt key, with everything beside that is not encrypted."""
    plant(target_url, "gpt", {"model": box("azure/gpt", SALT), "api_key": box(PLAIN, SALT), "rpm": 600, "tags": ["x"]})
    plant(target_url, "claude", {"model": box("claude", SALT), "nested": {"api_key": "in clear"}, "stream": False})
    plant(target_url, "azure", {"api_key": box(PLAIN, SALT)}, table=CREDENTIALS)
    plant(target_url, "environment_variables", {"SLACK": box("", SALT), "U": box("ü" * 50_000, SALT)}, table=CONFIG)
    plant(target_url, "router_settings", {"routing_strategy": "simple-shuffle", "a": ["b"]}, table=CONFIG)
    plant(target_url, "some_list", ["plain"], table=CONFIG)
    return target_url


def test_the_right_salt_opens_everything(planted: str) -> None:
    check = inspect(planted, salt=SALT)
    assert (check.code, check.state, check.looked) == ("decryption", "ok", 6)
    assert check.notes == (
        f"{CREDENTIALS}.credential_values: 1 ok, 0 fail, 0 plain, 0 in a newer format",
        f"{MODELS}.mishikallm_params: 3 ok, 0 fail, 0 plain, 0 in a newer format",
        f"{CONFIG}.param_value: 2 ok, 0 fail, 0 plain, 0 in a newer format",
        "the salt key opens 6 values",
    )


def test_a_wrong_salt_opens_nothing_and_every_row_is_named(planted: str) -> None:
    check = inspect(planted, salt=OTHER)
    assert check.state == "different"
    assert check.problems == (
        f"no secret that was given opens 1 value of {CREDENTIALS}.credential_values in 1 row: azure",
        f"no secret that was given opens 3 values of {MODELS}.mishikallm_params in 2 rows: gpt, claude",
        f"no secret that was given opens 2 values of {CONFIG}.param_value in 1 row: environment_variables",
    )


def test_without_a_secret_it_says_so_with_counts(planted: str) -> None:
    check = inspect(planted)
    assert (check.state, check.problems, check.notes, check.looked) == ("unchecked", (), (), 6)
    assert check.why_not == (
        f"1 encrypted value in {CREDENTIALS}.credential_values, 3 encrypted values in {MODELS}.mishikallm_params,"
        f" 2 encrypted values in {CONFIG}.param_value were not decrypted: give --salt-key-env NAME, or"
        " --master-key-env NAME for a proxy without a salt key"
    )


def test_the_master_key_alone_opens_what_was_written_without_a_salt(target_url: str) -> None:
    plant(target_url, "gpt", {"model": box("azure/gpt", MASTER)})
    assert inspect(target_url, master=MASTER).notes[-1] == "the master key opens 1 value"
    both = inspect(target_url, salt=SALT, master=MASTER)
    assert both.state == "ok"
    assert both.notes[-1] == (
        "the salt key opens none; the master key opens 1 value; the proxy must run without a salt key"
    )


def test_both_secrets_given_and_the_salt_key_opens(planted: str) -> None:
    check = inspect(planted, salt=SALT, master=MASTER)
    assert check.state == "ok"
    assert check.notes[-1] == "the salt key opens 6 values; the master key opens none"


def test_values_of_both_secrets_cannot_be_read_by_one_proxy(planted: str) -> None:
    plant(planted, "late", {"model": box("azure/gpt", MASTER), "api_base": box("b", SALT)})
    check = inspect(planted, salt=SALT, master=MASTER)
    assert check.problems == (
        f"the master key, not the salt key, opens 1 value of {MODELS}.mishikallm_params in 1 row, and a proxy uses one"
        " of them only: late",
    )


@pytest.mark.parametrize("secrets", [{}, {"salt": SALT}])
@pytest.mark.parametrize(
    "text", [PLAIN, "", "azure/gpt-4o", "sk-" + "aB3-" * 40, "https://x.example/y", "0f" * 40, "ü" * 60, "YWJj"]
)
def test_plain_text_is_a_note(text: str, secrets: dict[str, str], target_url: str) -> None:
    plant(target_url, "gpt", {"model": text, "api_base": text})
    check = inspect(target_url, **secrets)  # type: ignore[arg-type]
    assert (check.state, check.looked) == ("ok", 2)
    assert check.notes[-1] == (
        f"plain text where ciphertext is expected: 2 values of {MODELS}.mishikallm_params in 1 row: gpt"
    )


def test_a_cut_or_changed_ciphertext_fails(target_url: str) -> None:
    sealed = box(PLAIN, SALT)
    other = "B" if sealed[60] == "A" else "A"
    plant(target_url, "cut", {"model": sealed[:-3]})
    plant(target_url, "changed", {"model": sealed[:60] + other + sealed[61:]})
    plant(target_url, "twice", {"model": base64.b64encode(sealed.encode()).decode()})
    plant(target_url, "bytes", {"model": box(b"\xff\xfe", SALT)})
    (problem,) = inspect(target_url, salt=SALT).problems
    assert problem == (
        f"no secret that was given opens 4 values of {MODELS}.mishikallm_params in 4 rows: cut, changed, twice, bytes"
    )


def test_the_newer_format_is_opened_and_told(planted: str) -> None:
    plant(planted, "new", {"model": gcm("azure/gpt", SALT), "api_key": gcm(PLAIN, SALT)})
    check = inspect(planted, salt=SALT)
    assert check.state == "ok"
    assert f"{MODELS}.mishikallm_params: 3 ok, 0 fail, 0 plain, 2 in a newer format" in check.notes
    assert f"2 values of {MODELS}.mishikallm_params can be read by a proxy that knows v2:gcm: only" in check.notes
    assert "5 values of" in inspect(planted, salt=OTHER).problems[1]
    assert "5 encrypted values in" in inspect(planted).why_not


@pytest.mark.parametrize("text", ["v2:gcm:", "v2:gcm:AAAA", "v2:gcm:***", "v2:gcm:ü"])
def test_a_broken_value_of_the_newer_format_fails(text: str, target_url: str) -> None:
    plant(target_url, "new", {"model": text})
    assert "opens 1 value" in inspect(target_url, salt=SALT).problems[0]


def test_a_format_of_the_future_is_not_opened_and_not_passed_over(target_url: str) -> None:
    plant(target_url, "new", {"model": "v3:gcm:" + "A" * 80})
    check = inspect(target_url, salt=SALT)
    assert check.state == "unchecked"
    assert check.why_not == f"a newer format, not opened: 1 value of {MODELS}.mishikallm_params in 1 row: new"


def test_base64url_is_opened_and_told(target_url: str) -> None:
    plant(target_url, "new", {"model": box(PLAIN, SALT, urlsafe=True)})
    check = inspect(target_url, salt=SALT)
    assert check.state == "ok"
    assert f"1 value of {MODELS}.mishikallm_params can be read by a proxy that knows base64url only" in check.notes
    assert "1 encrypted value in" in inspect(target_url).why_not


@pytest.mark.parametrize("secrets", [{}, {"salt": SALT}])
def test_a_double_encoded_column_is_a_problem(secrets: dict[str, str], target_url: str) -> None:
    plant(target_url, "twice", json.dumps({"model": box(PLAIN, SALT)}))
    plant(target_url, "environment_variables", json.dumps({"A": box(PLAIN, SALT)}), table=CONFIG)
    plant(target_url, "null", None, table=CREDENTIALS)
    check = inspect(target_url, **secrets)  # type: ignore[arg-type]
    assert check.problems == (
        f"{MODELS}.mishikallm_params is no JSON object in 1 row, so nothing in it is decrypted: twice",
        f"{CONFIG}.param_value is no JSON object in 1 row, so nothing in it is decrypted: environment_variables",
    )


@pytest.mark.parametrize("secrets", [{}, {"salt": SALT}])
def test_no_encrypted_rows_is_ok(secrets: dict[str, str], target_url: str) -> None:
    check = inspect(target_url, **secrets)  # type: ignore[arg-type]
    assert (check.state, check.looked, check.why_not) == ("ok", 0, "")
    # A secret that had nothing to open is not proven by that.
    assert ["no secret was tried" in note for note in check.notes] == [True] * bool(secrets)


def test_only_selected_tables_are_looked_at(planted: str) -> None:
    assert inspect(planted, salt=OTHER, tables=["MishikaLLM_TeamTable", "no such table"]).looked == 0
    assert inspect(planted, salt=SALT, tables=[CONFIG]).looked == 2


def test_a_column_that_the_target_lacks_is_told(planted: str) -> None:
    execute(planted, f'ALTER TABLE "{MODELS}" RENAME mishikallm_params TO litellm_params')
    check = inspect(planted, salt=SALT)
    assert f"{MODELS} has no column mishikallm_params on" in check.why_not
    assert check.looked == 3


def test_a_condition_on_a_column_that_the_target_lacks_is_told(planted: str) -> None:
    where = matrix.Where(column="no_such", values=("x",))
    entries = tuple(replace(each, encrypted_where=where) if each.table == CONFIG else each for each in RULES.entries)
    check = inspect(planted, salt=SALT, rules=replace(RULES, entries=entries))
    assert f"{CONFIG} has no column no_such on" in check.why_not


def test_many_rows_are_counted_and_five_are_named(target_url: str) -> None:
    for number in range(8):
        plant(target_url, f"model-{number}", {"model": box("m", OTHER), "api_key": box("k", OTHER)})
    (problem,) = inspect(target_url, salt=SALT).problems
    assert problem.endswith("in 8 rows: model-0, model-1, model-2, model-3, model-4 and 3 more")
    assert "opens 16 values" in problem


def test_a_row_is_never_named_by_a_whole_secret(target_url: str) -> None:
    plant(target_url, "sk-abcdefghijklmnopqrstuvwxyz", {"model": box("m", OTHER)})
    (problem,) = inspect(target_url, salt=SALT).problems
    assert "sk-abcd…" in problem
    assert "efghij" not in problem


def test_a_row_without_a_name_is_known_by_the_start_of_its_key(planted: str) -> None:
    entries = tuple(replace(each, names=()) for each in RULES.entries)
    problems = inspect(planted, salt=OTHER, rules=replace(RULES, entries=entries)).problems
    assert problems[2].endswith("in 1 row: environm")


def test_partitions_of_a_table_are_looked_at_once(target_url: str) -> None:
    execute(
        target_url,
        "CREATE TABLE parts (id int PRIMARY KEY, secrets json) PARTITION BY RANGE (id)",
        "CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE high PARTITION OF parts FOR VALUES FROM (10) TO (20)",
    )
    with psycopg.connect(target_url, autocommit=True) as session:
        for number in (1, 2, 11):
            row = [number, json.dumps({"a": box("\0 \U0001f600", SALT)})]
            session.execute("INSERT INTO parts VALUES (%s, %s)", row)
    entry = matrix.Entry(
        table="parts", need="required", why="w", stage="core", written="rarely", encrypted=("secrets",)
    )
    check = inspect(target_url, salt=SALT, tables=["parts"], rules=replace(RULES, entries=(entry,)))
    assert (check.state, check.looked) == ("ok", 3)


@pytest.mark.parametrize("secrets", [{}, {"salt": SALT, "master": MASTER}])
def test_it_reads_within_a_snapshot(secrets: dict[str, Any], planted: str) -> None:
    at = endpoint(planted, "target")
    with connect.session(at, name="test") as session:
        found = catalog.read(session, at, migrations=None)
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        session.execute("SELECT 1")
        plant(planted, "later", {"model": box("m", OTHER)})
        check = ciphers.inspect(
            RULES, found, session, salt_key=secrets.get("salt"), master_key=secrets.get("master"), tables=ALL
        )
        assert check.looked == 6


def test_ciphertext_of_the_sample_data_has_the_shape(source_url: str) -> None:
    """Nothing opens it; without a secret all of it counts as encrypted."""
    without, tried = inspect(source_url), inspect(source_url, salt=SALT)
    assert without.looked == tried.looked > 10
    assert (without.state, without.notes) == ("unchecked", ())
    assert len(tried.problems) == 3


# -- the secrets ----------------------------------------------------------------------------------


def test_secret_is_read_from_the_variable_as_it_is() -> None:
    assert ciphers.secret({"A_SALT": " sk-1 \n"}, "A_SALT") == " sk-1 \n"


@pytest.mark.parametrize("environ", [{}, {"SALT": ""}])
def test_an_unset_variable_is_named(environ: dict[str, str]) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        ciphers.secret(environ, "SALT")
    assert caught.value.message == "the environment variable SALT is not set"


@pytest.mark.parametrize("mistake", ["sk-1234geheim", "geheim", "A B geheim", "Xgeheim" * 20])
def test_a_secret_given_for_its_name_is_not_repeated(mistake: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        ciphers.secret({}, mistake)
    assert "geheim" not in caught.value.message + caught.value.hint


def test_bytes_that_are_no_text_are_refused_without_them() -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        ciphers.secret({"SALT": OTHER + "\udcff"}, "SALT")
    assert OTHER not in "".join(traceback.format_exception(caught.value))


@pytest.fixture
def without_crypto(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "nacl":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    yield


@pytest.mark.usefixtures("without_crypto")
def test_without_the_packages_a_secret_is_refused_and_none_is_needed(planted: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        inspect(planted, salt=SALT)
    assert "pip install 'mishika-migrate[crypto]'" in caught.value.hint
    with pytest.raises(errors.ConfigurationError):
        ciphers.require()
    assert inspect(planted).state == "unchecked"


def test_no_error_carries_a_value(planted: str) -> None:
    """A session that is lost in the middle."""
    at = endpoint(planted, "target")
    with pytest.raises(errors.ServerError) as caught, connect.session(at, name="test") as session:
        found = catalog.read(session, at, migrations=None)
        execute(planted, sql.SQL("DROP TABLE {} CASCADE").format(sql.Identifier(CREDENTIALS)).as_string())
        ciphers.inspect(RULES, found, session, salt_key=SALT, master_key=MASTER, tables=ALL)
    said = "".join(traceback.format_exception(caught.value))
    assert not [secret for secret in (SALT, MASTER, PLAIN) if secret in said]
