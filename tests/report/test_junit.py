"""JUnit XML, as Jenkins' schema and the readers of CI systems want it."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mishika_migrate import model
from mishika_migrate.report import junit
from tests import fix_proofs

ALL = pytest.mark.parametrize(
    "make",
    [
        fix_proofs.equal, fix_proofs.different, fix_proofs.unproven, fix_proofs.sampled, fix_proofs.probed,
        fix_proofs.hostile, fix_proofs.huge,
    ],
)  # fmt: skip

# junit-10.xsd of Jenkins' xunit plug-in: what an element may hold and must have.
_CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"properties", "testcase"},
    "properties": {"property"},
    "testcase": {"skipped", "failure", "system-out"},
}
_ATTRIBUTES = {
    "testsuites": {"name", "tests", "failures", "errors", "time"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
    "property": {"name", "value"},
    "testcase": {"name", "classname", "time"},
    "failure": {"message", "type"},
    "skipped": {"message"},
}


TEAM = "the team's block, budget, rate limits and model list no longer hold"


def read(proof: model.Proof) -> ElementTree.Element:
    return ElementTree.fromstring(junit.text(proof).encode())


def suite(root: ElementTree.Element, name: str) -> ElementTree.Element:
    (found,) = [each for each in root if each.get("name") == name]
    return found


def case(root: ElementTree.Element, name: str) -> ElementTree.Element:
    (found,) = [each for each in root.iter("testcase") if each.get("name") == name]
    return found


def failure(found: ElementTree.Element) -> ElementTree.Element:
    (child,) = found
    assert child.tag == "failure"
    return child


@ALL
def test_structure_is_the_schemas(make: fix_proofs.Make) -> None:
    text = junit.text(make())
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n')
    root = read(make())
    assert root.tag == "testsuites"
    for element in root.iter():
        assert set(element.attrib) == _ATTRIBUTES.get(element.tag, set()), element.tag
        assert {child.tag for child in element} <= _CHILDREN.get(element.tag, set())
    for each in root.iter("testcase"):
        assert len(each) <= 1
    for each in root:
        assert [child.tag for child in each][:1] == ["properties"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", each.attrib["timestamp"])
        names = [child.get("name") for child in each.iter("testcase")]
        assert len(set(names)) == len(names)


@ALL
def test_numbers_are_those_of_the_cases(make: fix_proofs.Make) -> None:
    root = read(make())
    for element in (root, *root):
        assert int(element.attrib["tests"]) == len([*element.iter("testcase")])
        assert int(element.attrib["failures"]) == len([*element.iter("failure")])
        assert element.attrib["errors"] == "0"
        assert float(element.attrib["time"]) >= 0
    for each in root:
        assert int(each.attrib["skipped"]) == len([*each.iter("skipped")])
    assert [each.get("name") for each in root] == ["content", "keys", "checks"]


@ALL
def test_fails_exactly_when_the_exit_status_does(make: fix_proofs.Make) -> None:
    proof = make()
    assert (read(proof).get("failures") != "0") == (proof.status != 0)


@given(
    contents=st.lists(st.integers(0, 1), max_size=2),
    counts=st.dictionaries(st.sampled_from([*fix_proofs.WEIGHTS, "strange"]), st.integers(0, 2), max_size=3),
    checks=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=3),
    sampled=st.booleans(),
)
def test_fails_exactly_when_the_exit_status_does_whatever_was_found(
    contents: list[int], counts: dict[str, int], checks: list[tuple[bool, bool, bool]], sampled: bool
) -> None:
    made = [
        model.Check(code=str(n), title="t", problems=("p",) if bad else (), why_not="w" if unmade else "")
        for n, (bad, unmade, _) in enumerate(checks)
    ]
    proof = fix_proofs.proof(
        contents=tuple(fix_proofs.content(str(n), differing=many) for n, many in enumerate(contents)),
        keys=model.Keys(
            total=9, outcomes={}, reasons=counts, weights=fix_proofs.WEIGHTS,
            samples=(fix_proofs.LOST,) if sampled else (),
        ),
        checks=tuple(made),
        allowed=tuple(check.code for check, (_, _, allowed) in zip(made, checks, strict=True) if allowed),
    )  # fmt: skip
    assert (read(proof).get("failures") != "0") == (proof.status != 0)


def test_every_table_reason_sample_and_check_is_a_case() -> None:
    root = read(fix_proofs.different())
    assert [each.get("name") for each in suite(root, "content").iter("testcase")] == [
        f"MishikaLLM_{name}" for name in fix_proofs.TABLES
    ]
    assert [each.get("name") for each in suite(root, "keys").iter("testcase")] == [
        *fix_proofs.WEIGHTS, "sample key kept sk-...4321 89abcdef", "sample key ci-bot sk-...1234 0a1b2c3d",
    ]  # fmt: skip
    assert len([*suite(root, "checks").iter("testcase")]) == 6


def test_failures_say_what_differs_and_what_is_not_listed() -> None:
    root = read(fix_proofs.different())
    users = failure(case(root, "MishikaLLM_UserTable"))
    assert users.attrib == {"message": "1,000 differ", "type": "different"}
    assert users.text is not None
    assert "user_id=u99: differs in max_budget, spend\nand 900 more, not listed" in users.text
    team = failure(case(root, "team-missing"))
    assert team.attrib == {"message": f"902 keys fail open: {TEAM}", "type": "team-missing"}
    assert "prod-app sk-...9876 deadbeef: the team's block" in (team.text or "")
    spend = case(root, "spend-differs")
    assert [child.tag for child in spend] == ["system-out"], "a warning is no failure"
    assert "13 keys (warning)" in (spend[0].text or "")
    assert len(case(root, "extra")) == 0


def test_unchecked_is_a_failure_unless_it_was_allowed() -> None:
    root = read(fix_proofs.unproven())
    unmade = failure(case(root, "secrets: Encrypted values can be decrypted on the target"))
    assert unmade.get("type") == "unchecked"
    assert "no secret was given" in unmade.attrib["message"]
    (skipped,) = case(root, "standby: A standby answers")
    assert skipped.tag == "skipped" and "there is none" in skipped.attrib["message"]
    assert case(root, "verdicts")[0].tag == "skipped"


def test_half_made_check_with_a_problem_says_both() -> None:
    half = failure(case(read(fix_proofs.different()), "indexes: Indexes are equal by definition"))
    assert half.get("type") == "different"
    assert half.attrib["message"].endswith("is missing on the target (and 1 more)")
    assert "not checked: the role may not see" in (half.text or "")


def test_sampled_cases_are_named_so() -> None:
    names = [each.attrib["name"] for each in suite(read(fix_proofs.sampled()), "content").iter("testcase")]
    assert names == [f"MishikaLLM_{name} (sampled)" for name in fix_proofs.TABLES]
    keys = replace(fix_proofs.different().keys or fail(), sampled=0.1)
    assert case(read(fix_proofs.proof(keys=keys)), "missing (sampled)") is not None


def fail() -> model.Keys:
    raise AssertionError("no keys")


def test_characters_that_xml_forbids_do_not_reach_it() -> None:
    text = junit.text(fix_proofs.hostile())
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]", text)
    assert len(text) < 500_000
    assert "🦊" in text and "sk-...1234 0a1b2c3d" in text


@given(st.text())
def test_any_name_can_be_read_back(name: str) -> None:
    contents = (fix_proofs.content("T", differing=1, differences=(model.Difference(row=name, kind="differs"),)),)
    assert len([*read(fix_proofs.proof(contents=contents)).iter("failure")]) == 1
