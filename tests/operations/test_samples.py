"""Sample keys are read from anywhere, hashed here, and never shown."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import traceback
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from mishika_migrate import errors, matrix, model
from mishika_migrate.operations.probing import samples
from mishika_migrate.pg import standing
from tests.fix_servers import endpoint
from tests.looking import TEAM, TOKEN, execute

RULES = matrix.load()
KEY, OTHER = "sk-geheim-0123456789-abcd", "sk-geheim-9876543210-efgh"


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def read(text: str) -> tuple[samples.Sample, ...]:
    return samples.read("-", io.StringIO(text))


def refused(path: str, stdin: str = "") -> errors.ConfigurationError:
    with pytest.raises(errors.ConfigurationError) as caught:
        samples.read(path, io.StringIO(stdin))
    assert caught.value.hint
    said = "".join(traceback.format_exception(caught.value)) + caught.value.hint
    assert KEY not in said
    assert "geheim" not in caught.value.message + caught.value.hint
    return caught.value


def test_keys_comments_and_blank_lines() -> None:
    found = read(f"\ufeff# keys of today\r\n\n  {KEY} \r\n{OTHER}\t# of the team\n{KEY}\n   # end")
    assert [sample.key for sample in found] == [KEY, OTHER]
    assert {sample.expect for sample in found} == {"unknown"}


def test_a_sample_is_known_by_its_end_and_its_hash_and_shows_no_more() -> None:
    (sample,) = read(KEY)
    assert sample.token == hashed(KEY)
    assert sample.name == f"sk-...abcd {hashed(KEY)[:8]}"
    assert KEY not in f"{sample!r} {sample} {sample.name}"
    assert sample.token not in f"{sample!r} {sample.name}"


def test_a_short_key_does_not_show_its_end() -> None:
    (sample,) = read("sk-1234")
    assert sample.name == f"sk-... {hashed('sk-1234')[:8]}"


def test_a_file_and_a_pipe_are_read(tmp_path: Path) -> None:
    path, pipe = tmp_path / "keys", tmp_path / "pipe"
    path.write_text(f"{KEY}\n")
    assert samples.read(str(path), io.StringIO())[0].key == KEY
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=[f"{KEY}\n"])
    writer.start()
    assert samples.read(str(pipe), io.StringIO())[0].key == KEY
    writer.join()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("geheim-without-prefix-0123", "stdin:2: no key: it is not of the form sk-…"),
        ("sk-geheim 0123", "stdin:2: no key: it is not of the form sk-…"),
        ("sk-geheim\u200b0123", "stdin:2: no key: it is not of the form sk-…"),
        ("sk-gehéim", "stdin:2: no key: it is not of the form sk-…"),
        ("sk-", "stdin:2: no key: it is not of the form sk-…"),
        ("sk-geheim\r0123", "stdin:2: no key: it is not of the form sk-…"),
        ('"sk-geheim-0123"', "stdin:2: no key: it is not of the form sk-…"),
        (hashed(KEY), "stdin:2: a hash, not a key"),
    ],
)
def test_any_other_line_is_refused_by_number_and_not_quoted(line: str, message: str) -> None:
    assert refused("-", f"{KEY}\n{line}\n").message == message


@pytest.mark.parametrize("text", ["", "\n\n", "# sk-nothing\n"])
def test_a_file_without_keys_is_refused(text: str) -> None:
    assert refused("-", text).message == "stdin: holds no key"


def test_a_file_that_is_too_large_is_refused() -> None:
    assert "larger than 10 MB" in refused("-", "#" * 10_000_001).message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert refused(str(tmp_path / "no")).message.endswith("/no: cannot be read: no such file or directory")
    assert "is a directory" in refused(str(tmp_path)).message
    assert "cannot be read" in refused("a\0b").message
    (tmp_path / "bytes").write_bytes(KEY.encode() + b"\n\xff\n")
    assert refused(str(tmp_path / "bytes")).message.endswith("bytes: not UTF-8 text")


def test_a_key_given_for_a_file_is_not_repeated() -> None:
    assert "a key was given" in refused(KEY).message


# -- what the database says -----------------------------------------------------------------------


def plant(url: str, key: str, **columns: object) -> samples.Sample:
    names = "".join(f', "{name}"' for name in columns)
    marks = ", %s" * len(columns)
    with psycopg.connect(url, autocommit=True) as session:
        session.execute(
            f"INSERT INTO {TOKEN} (token{names}) VALUES (%s{marks})".encode(), [hashed(key), *columns.values()]
        )
    return samples.Sample(key=key)


def expected(
    url: str, *given: samples.Sample, rules: matrix.Matrix = RULES
) -> tuple[list[samples.Expect], model.Check]:
    found, check = samples.expected(rules, endpoint(url, "target"), given)
    assert [sample.key for sample in found] == [sample.key for sample in given]
    assert "geheim" not in repr((found, check))
    return [sample.expect for sample in found], check


def test_blocked_and_expired_keys_are_expected_to_be_refused(target_url: str) -> None:
    execute(
        target_url,
        f"INSERT INTO {TEAM} (team_id, blocked) VALUES ('open', false), ('shut', true)",
        "ALTER ROLE postgres SET TimeZone = 'Pacific/Auckland'",
    )
    try:
        given = [
            plant(target_url, "sk-geheim-plain"),
            plant(target_url, "sk-geheim-blocked", blocked=True),
            plant(target_url, "sk-geheim-free", blocked=False, team_id="open"),
            plant(target_url, "sk-geheim-team", team_id="shut"),
            plant(target_url, "sk-geheim-lost-team", team_id="gone"),
            plant(target_url, "sk-geheim-old", expires="2020-01-01"),
            plant(target_url, "sk-geheim-new", expires="2999-01-01"),
        ]
        expect, check = expected(target_url, *given)
    finally:
        execute(target_url, "ALTER ROLE postgres RESET TimeZone")
    assert expect == ["accepted", "refused", "accepted", "refused", "accepted", "refused", "accepted"]
    assert (check.code, check.state, check.looked) == ("probe-samples", "ok", 7)
    assert check.notes == ("3 keys of 7 blocked or expired there",)


def test_expiry_is_read_as_utc(target_url: str) -> None:
    with psycopg.connect(target_url) as session:
        row = session.execute(
            "SELECT now() AT TIME ZONE 'UTC' - interval '10 min', now() AT TIME ZONE 'UTC' + interval '10 min'"
        ).fetchone()
    assert row is not None
    past, future = plant(target_url, "sk-geheim-1", expires=row[0]), plant(target_url, "sk-geheim-2", expires=row[1])
    assert expected(target_url, past, future)[0] == ["refused", "accepted"]


def test_a_key_that_the_database_lacks_is_a_problem(target_url: str) -> None:
    sample = samples.Sample(key=KEY)
    expect, check = expected(target_url, sample)
    assert expect == ["refused"]
    (problem,) = check.problems
    assert problem.startswith(f"{sample.name} is not in MishikaLLM_VerificationToken of ")


def test_without_a_description_of_keys_nothing_is_known(target_url: str) -> None:
    expect, check = expected(target_url, samples.Sample(key=KEY), rules=replace(RULES, keys=None))
    assert (expect, check.state) == (["unknown"], "unchecked")
    execute(target_url, f"DROP TABLE {TOKEN} CASCADE")
    expect, check = expected(target_url, samples.Sample(key=KEY))
    assert (expect, check.why_not) == (["unknown"], "MishikaLLM_VerificationToken is not there, so none was looked up")


def test_columns_that_an_older_schema_lacks_are_left_out(target_url: str) -> None:
    execute(target_url, f"ALTER TABLE {TOKEN} DROP blocked CASCADE, DROP team_id CASCADE")
    old = plant(target_url, KEY, expires="2020-01-01")
    assert expected(target_url, old, plant(target_url, OTHER))[0] == ["refused", "accepted"]


def test_without_any_column_that_says_so_a_key_is_as_good_as_there(target_url: str) -> None:
    from mishika_migrate.pg import connect

    plant(target_url, KEY, blocked=True)
    with connect.session(endpoint(target_url, "target"), name="test") as session:
        rows = standing.Rows(table="MishikaLLM_VerificationToken", key="token")
        assert standing.refused(session, "public", rows, [hashed(KEY), hashed(OTHER)]) == {hashed(KEY): False}
