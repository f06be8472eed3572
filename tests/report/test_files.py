"""Report files: the form by suffix, whole or not there; and the JSON that is documented."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import pytest

import mishika_migrate
from mishika_migrate import errors
from mishika_migrate.model import proofs
from mishika_migrate.report import document, files, jsonl
from tests import fix_proofs

ALL = pytest.mark.parametrize(
    "make",
    [
        fix_proofs.equal,
        fix_proofs.different,
        fix_proofs.unproven,
        fix_proofs.sampled,
        fix_proofs.probed,
        fix_proofs.hostile,
    ],
)


def test_suffix_says_the_form(tmp_path: Path) -> None:
    for name in ("a.json", "a.MD", "a.xml"):
        files.check(tmp_path / name)
        files.write(tmp_path / name, fix_proofs.different())
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))["verdict"] == "different"
    assert (tmp_path / "a.MD").read_text("utf-8").startswith("## ❌ Different")
    assert ElementTree.parse(tmp_path / "a.xml").getroot().tag == "testsuites"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.MD", "a.json", "a.xml"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("report", "the report {} has no suffix that says its form"),
        ("report.html", "the report {} has no suffix that says its form"),
        ("there.json", "the report {} is no plain file"),
        ("gone/report.xml", "the folder {parent} of the report {} is not there"),
        ("plain/report.xml", "the folder {parent} of the report {} is not there"),
    ],
)
def test_what_could_not_be_written_is_refused_before_the_work(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "there.json").mkdir()
    (tmp_path / "plain").touch()
    path = tmp_path / name
    for work in (files.check, lambda where: files.write(where, fix_proofs.equal())):
        with pytest.raises(errors.ConfigurationError) as raised:
            work(path)
        assert raised.value.message == message.format(path, parent=path.parent)
        assert raised.value.hint


def test_device_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.json").symlink_to("/dev/null")
    with pytest.raises(errors.ConfigurationError, match="no plain file"):
        files.check(tmp_path / "a.json")


def test_folder_that_takes_no_file_is_an_error() -> None:
    """/proc takes none: nobody may but root, and for root it fails."""
    with pytest.raises((errors.ConfigurationError, errors.ResultLost), match=r"report /proc/a\.json"):
        files.write(Path("/proc/a.json"), fix_proofs.equal())


def test_failure_to_write_leaves_the_old_report_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.md"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.ResultLost) as raised:
        files.write(path, fix_proofs.equal())
    assert raised.value.message == f"the report {path} could not be written: No space left on device"
    assert [each.name for each in tmp_path.iterdir()] == ["a.md"]
    assert path.read_text() == "old"


def test_link_stays_one_and_the_file_behind_it_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "behind").mkdir()
    link = tmp_path / "a.json"
    link.symlink_to(tmp_path / "behind" / "b.json")
    files.write(link, fix_proofs.equal())
    assert link.is_symlink()
    assert json.loads((tmp_path / "behind" / "b.json").read_text("utf-8"))["verdict"] == "equal"


def test_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    files.write(tmp_path / "a.xml", fix_proofs.equal())
    assert (tmp_path / "a.xml").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("suffix", [".json", ".md", ".xml"])
def test_names_of_strangers_are_written_in_every_form(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    files.write(path, fix_proofs.hostile())
    assert "🦊" in path.read_bytes().decode("utf-8")
    if suffix == ".json":
        said = json.loads(path.read_text("utf-8"))
        assert tuple(said["tables"][0]["differences"][n]["row"] for n in range(4)) == fix_proofs.HOSTILE


# -- the documented JSON --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "verdict", "status"),
    [
        (fix_proofs.equal, "equal", 0), (fix_proofs.sampled, "sampled", 0),
        (fix_proofs.different, "different", 3), (fix_proofs.unproven, "unproven", 3),
    ],
)  # fmt: skip
def test_verdict_and_status(make: fix_proofs.Make, verdict: str, status: int) -> None:
    said = document.document(make())
    assert (said["format"], said["tool"]) == (1, mishika_migrate.__version__)
    assert (said["verdict"], said["status"]) == (verdict, status)


@ALL
def test_lines_and_document_say_the_same(make: fix_proofs.Make) -> None:
    stream = io.StringIO()
    out = jsonl.Lines(stream)
    for name, fields in document.lines(make()):
        out.write(name, fields)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    whole = json.loads(json.dumps(document.document(make())))

    def of(event: str) -> list[dict[str, object]]:
        found = [line for line in lines if line.get("event") == event]
        return [{key: value for key, value in line.items() if key != "event"} for line in found]

    assert of("content") == whole["tables"]
    assert of("check") == whole["checks"]
    keys = whole["keys"]
    verdicts = [] if keys is None else [(keys.pop(kind), kind == "samples") for kind in ("verdicts", "samples")]
    assert of("verdict") == [{**each, "sample": sample} for found, sample in verdicts for each in found]
    assert of("keys") == ([] if keys is None else [keys])
    assert lines[-1]["event"] == "proof"
    assert of("proof") == [{key: value for key, value in whole.items() if key not in ("tables", "keys", "checks")}]


def test_capped_lists_say_how_much_is_missing() -> None:
    said = document.document(fix_proofs.different())
    users = next(table for table in said["tables"] if table["table"] == "MishikaLLM_UserTable")
    assert (len(users["differences"]), users["not_listed"], users["differing"]) == (100, 900, 1000)
    assert (len(said["keys"]["verdicts"]), said["keys"]["not_listed"]) == (4, 912)
    assert {"code": "team-missing", "weight": "error", "count": 902} in said["keys"]["reasons"]
    assert {"code": "extra", "weight": "error", "count": 0} in said["keys"]["reasons"]


def test_every_field_is_documented_and_every_documented_field_is_there() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "json.md").read_text("utf-8").partition("## `verify`")[2]
    parts = re.split(r"\n\n(?=\| )", docs)
    said = document.document(fix_proofs.different())
    (verdict, *_), (check, *_), (table, *_) = said["keys"]["verdicts"], said["checks"], said["tables"]
    top = {**said, **said}
    for fields, part in (
        ({key: top[key] for key in top if key not in ("tables", "keys", "checks")}, parts[1]),
        (table, parts[2]), (said["keys"], parts[3]), (check, parts[4]),
    ):  # fmt: skip
        rows = [line for line in part.splitlines() if line.startswith("| `")]
        named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
        assert set(fields) <= named
        assert named - set(fields) <= {"tables", "keys", "checks", "content", "check", "proof"}
    difference = next(each for each in said["tables"] if each["differences"])["differences"][0]
    for name in (*verdict, *verdict["reasons"][0], *difference, *get_args(proofs.Outcome), *get_args(proofs.Kind)):
        assert f"`{name}`" in docs
