"""A proof as JUnit XML, which every CI system shows: a case a table, a reason, a sample key and a check.

Imports sentences and the words. Attributes are those that Jenkins' schema (junit-10.xsd) knows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree

import mishika_migrate
from mishika_migrate import model, words
from mishika_migrate.report import sentences

_NAME: Final = "mishika-migrate verify"
# All but the characters that XML 1.0 (production 2) has.
_FORBIDDEN: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """Passed unless it says otherwise. `detail` is shown on demand, also of a passed one."""

    name: str
    seconds: float = 0.0
    failure: str = ""
    kind: str = "different"
    skipped: str = ""
    detail: Sequence[str] = ()


def text(proof: model.Proof) -> str:
    """A whole document. It fails where the exit status is not 0, and a check that was not made is a failure too."""
    tables = [_content(each) for each in proof.contents]
    if not proof.compared:
        tables.append(_Case(name="tables", kind="unchecked", failure="no table was compared"))
    content = _suite("content", tables, sum(each.seconds for each in proof.contents))
    keys = _suite("keys", list(_keys(proof.keys)), proof.keys.seconds if proof.keys else 0.0)
    checks = _suite("checks", [_check(each, proof) for each in proof.checks], 0.0)
    suites = (content, keys, checks)
    root = ElementTree.Element("testsuites", name=_NAME)
    for number in ("tests", "failures", "errors"):
        root.set(number, str(sum(int(suite.get(number, "0")) for suite in suites)))
    root.set("time", _time(proof.seconds))
    for suite in suites:
        suite.set("timestamp", proof.at[:19])
        suite.insert(0, _properties(proof))
        root.append(suite)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


# -- what the cases are ---------------------------------------------------------------------------


def _content(content: model.Content) -> _Case:
    sampled = " (sampled)" if content.sampled is not None else ""
    differences = [f"{each.row}: {sentences.fate(each)}" for each in content.differences]
    listed = sum(each.copies for each in content.differences)
    detail = [
        f"{content.rows_source:,} rows on the source, {content.rows_target:,} on the target",
        *differences,
        *_some(sentences.more(listed, listed, content.different)),
        *_some(f"only rows of {content.within} were compared" if content.within else ""),
        *(f"not compared: {name}" for name in content.not_compared),
    ]
    return _Case(
        name=f"{content.table}{sampled}",
        seconds=content.seconds,
        failure=sentences.amounts(content) if content.state == "different" else "",
        detail=detail,
    )


def _keys(keys: model.Keys | None) -> Iterable[_Case]:
    """Every reason that is known, so that a case that begins to fail was there before."""
    if keys is None:
        yield _Case(name="verdicts", skipped="not asked for, or the matrix describes no keys")
        return
    sampled = " (sampled)" if keys.sampled is not None else ""
    groups = {group.code: group for group in sentences.groups(keys)}
    for code in dict.fromkeys((*keys.weights, *keys.reasons)):
        group = groups.get(code)
        if group is None:
            yield _Case(name=f"{code}{sampled}")
            continue
        yield _Case(
            name=f"{code}{sampled}",
            failure=group.title if group.weight == "error" else "",
            kind=code,
            detail=_members(group),
        )
    for verdict in keys.samples:
        told = [f"{reason.code}: {reason.message}" for reason in verdict.reasons]
        yield _Case(
            name=f"sample key {verdict.key}",
            failure=sentences.outcome(verdict) if sentences.bad(verdict) else "",
            kind=verdict.outcome,
            detail=[sentences.outcome(verdict), *told],
        )


def _members(group: sentences.Group) -> list[str]:
    keys = [f"{verdict.key}: {reason.message}{_fields(reason.fields)}" for verdict, reason in group.members]
    listed = len(keys)
    count = f"{words.count(group.count, 'key')} ({group.weight})"
    return [count, *keys, *_some(sentences.more(listed, listed, group.count))]


def _fields(fields: Sequence[str]) -> str:
    return f" ({', '.join(fields)})" if fields else ""


def _check(check: model.Check, proof: model.Proof) -> _Case:
    detail = [*check.problems, *_some(f"not checked: {check.why_not}" if check.why_not else ""), *check.notes]
    name = f"{check.code}: {check.title}"
    if check.problems:
        more = f" (and {len(check.problems) - 1:,} more)" if len(check.problems) > 1 else ""
        return _Case(name=name, failure=f"{check.problems[0]}{more}", detail=detail)
    if check in proof.unproven:
        return _Case(name=name, failure=f"not checked: {check.why_not}", kind="unchecked", detail=detail)
    return _Case(
        name=name, skipped=f"not checked, which was allowed: {check.why_not}" if check.why_not else "", detail=detail
    )


def _some(line: str) -> list[str]:
    return [line] if line else []


# -- XML ------------------------------------------------------------------------------------------


def _suite(name: str, cases: Sequence[_Case], seconds: float) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=name, tests=str(len(cases)))
    suite.set("failures", str(sum(bool(case.failure) for case in cases)))
    suite.set("errors", "0")
    suite.set("skipped", str(sum(bool(case.skipped) for case in cases)))
    suite.set("time", _time(seconds))
    seen: Counter[str] = Counter()
    for case in cases:
        called = _plain(sentences.line(case.name))
        seen[called] += 1
        # Two cases of one name would be one to most readers.
        unique = called if seen[called] == 1 else f"{called} #{seen[called]}"
        _append(suite, unique, case)
    return suite


def _append(suite: ElementTree.Element, name: str, case: _Case) -> None:
    made = ElementTree.SubElement(suite, "testcase", name=name, classname=f"mishika-migrate.{suite.get('name')}")
    made.set("time", _time(case.seconds))
    detail = _plain("\n".join(sentences.line(each, 2000) for each in case.detail))
    if case.failure:
        failure = ElementTree.SubElement(made, "failure", message=_plain(sentences.line(case.failure)), type=case.kind)
        failure.text = detail
    elif case.skipped:
        ElementTree.SubElement(made, "skipped", message=_plain(sentences.line(case.skipped)))
    elif detail:
        ElementTree.SubElement(made, "system-out").text = detail


def _properties(proof: model.Proof) -> ElementTree.Element:
    properties = ElementTree.Element("properties")
    said = {
        "tool": f"mishika-migrate {mishika_migrate.__version__}",
        "verdict": sentences.verdict(proof),
        "status": str(proof.status),
        "source": proof.source,
        "target": proof.target,
        "scope": proof.scope,
        "level": proof.level,
        "hash": proof.method,
        "blind": "; ".join(proof.blind),
    }
    for name, value in said.items():
        ElementTree.SubElement(properties, "property", name=name, value=_plain(sentences.line(value, 2000)))
    return properties


def _time(seconds: float) -> str:
    return f"{seconds:.3f}"


def _plain(what: str) -> str:
    """Without what XML 1.0 forbids; a parser would refuse the whole file."""
    return _FORBIDDEN.sub("\ufffd", what)
