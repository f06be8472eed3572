"""A proof as Markdown, for a pull request or a job summary on GitHub or GitLab.

Imports sentences and the words. Names of rows and keys come from a database: they make no markup,
no HTML, no link and no mention of anybody.
"""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Iterable, Sequence
from typing import Final

from mishika_migrate import model, words
from mishika_migrate.report import sentences

LIMIT: Final = 60_000
"""Bytes. GitHub takes 65,536 characters in a comment and 1 MiB in the summary of a step."""

# How many rows, keys and problems a list has: the first that keeps a page below the limit.
_STEPS: Final = (1000, 100, 30, 10, 3, 1, 0)
_FEW: Final = 10
_SIGNS: Final = {"equal": "✅", "sampled": "⚠️", "different": "❌", "unproven": "❌"}
_WEIGHTS: Final[dict[model.Weight, str]] = {"error": "❌", "warning": "⚠️", "note": "·"}
_CUT: Final = "\n\n**Cut here: the page is longer than GitHub takes.** `--report FILE.json` has all of it.\n"


def text(proof: model.Proof) -> str:
    """The verdict first, then what differs and what was not checked; below `LIMIT`, by listing fewer."""
    page = ""
    for most in _STEPS:
        page = _page(proof, most)
        if len(_bytes(page)) <= LIMIT:
            return page
    return _cut(page)


def _cut(page: str) -> str:
    """Whole lines; what says so stands in no closed section."""
    kept = _bytes(page)[: LIMIT - len(_bytes(_CUT)) - 100].decode("utf-8", "ignore").rpartition("\n")[0]
    inside = kept.count("<details") - kept.count("</details>")
    return kept + "\n\n</details>" * inside + _CUT


def _bytes(page: str) -> bytes:
    return page.encode("utf-8", "backslashreplace")


def _page(proof: model.Proof, most: int) -> str:
    parts = [
        _verdict(proof),
        _differing(proof, most),
        *(_rows(content, most) for content in proof.contents if content.state == "different"),
        _keys(proof.keys, most) if proof.keys else "",
        _samples(proof.keys.samples) if proof.keys else "",
        _failed(proof.checks, most),
        _gaps(proof),
        _section(f"What the {proof.method} hash cannot see", _items(proof.blind, most)),
        _folded("Tables that are the same", _same(proof.contents)),
        _folded("Checks that passed", [_check(check) for check in proof.checks if check.state == "ok"]),
        _folded("Notes", _items(sentences.notes(proof), most)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict(proof: model.Proof) -> str:
    lines = [f"## {_SIGNS[sentences.verdict(proof)]} {_prose(sentences.headline(proof))}"]
    if proof.keys is not None:
        lines.append(f"**{_prose(proof.keys.headline)}**")
    if proof.unproven and proof.state == "different":
        lines.append(f"**Also not proven: {words.count(len(proof.unproven), 'check')} could not be made.**")
    snapshot = f", snapshot {_code(proof.snapshot)}" if proof.snapshot else ""
    lines.append(
        f"{' → '.join(_code(end) for end in (proof.source, proof.target) if end)}"
        f" as of {sentences.when(proof)}{snapshot}:"
        f" {_prose(sentences.how(proof))}; {_prose(proof.scope)}."
    )
    return "\n\n".join(lines)


# -- tables ---------------------------------------------------------------------------------------


def _differing(proof: model.Proof, most: int) -> str:
    contents = [content for content in proof.contents if content.state == "different"]
    if not contents:
        return ""
    columns = ("table", "rows on the source", "on the target", "only on the source", "only on the target", "differ")
    rows = (
        (
            content.rows_source,
            content.rows_target,
            *(number or "" for number in (content.source_only, content.target_only, content.differing)),
        )
        for content in contents
    )
    lines = [
        "### Tables that differ",
        "",
        f"| {' | '.join(columns)} |",
        f"|---|{'--:|' * (len(columns) - 1)}",
        *(f"| {_table(content)} | {_cells(row)} |" for content, row in zip(contents, rows, strict=True)),
    ]
    if same := sentences.equal(proof):
        lines += ["", _prose(same)]
    return "\n".join(lines)


def _cells(row: Sequence[int | str]) -> str:
    return " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in row)


def _table(content: model.Content) -> str:
    return _code(content.table) + (" (sampled)" if content.sampled is not None else "")


def _rows(content: model.Content, most: int) -> str:
    shown = content.differences[:most]
    lines: list[str] = []
    for each in shown:
        what = sentences.fate(dataclasses.replace(each, columns=()))
        lines.append(f"- {_code(each.row)}: {what}{_fields(each.columns, most)}")
    if content.level == "counts":
        lines.append("- only counted; `--level content` names the rows")
    else:
        listed = sum(each.copies for each in content.differences)
        lines += _more(listed, sum(each.copies for each in shown), content.different)
    title = f"{html.escape(sentences.line(content.table))}: {sentences.amounts(content)}"
    return _folded(title, lines, unfolded=len(shown) <= _FEW)


def _same(contents: Iterable[model.Content]) -> list[str]:
    return [
        f"- {_table(content)}: {words.count(content.rows_source, 'row')}"
        for content in contents
        if content.state == "ok"
    ]


# -- keys -----------------------------------------------------------------------------------------


def _keys(keys: model.Keys, most: int) -> str:
    lines: list[str] = []
    for group in sentences.groups(keys):
        lines.append(f"- {_WEIGHTS[group.weight]} **{_prose(group.code)}**: {_prose(group.title)}")
        room = most
        for message, members in group.by_message.items():
            if room <= 0:
                break
            several = len(group.by_message) > 1
            lines += [f"  - {_prose(message)}"] if several else []
            indent = "    " if several else "  "
            lines += [f"{indent}- {_code(key)}{_fields(fields, most)}" for key, fields in members[:room]]
            room -= len(members)
        shown = min(most, len(group.members))
        lines += [f"  {line}" for line in _more(len(group.members), shown, group.count)]
    return _section("Keys that differ, by reason", lines)


def _fields(fields: Sequence[str], most: int) -> str:
    if not fields or not most:
        return ""
    return f" ({', '.join(map(_code, fields[:most]))}{_rest(len(fields), most)})"


def _samples(samples: Sequence[model.Verdict]) -> str:
    lines = []
    for verdict in samples:
        sign = "❌" if sentences.bad(verdict) else "✅" if verdict.outcome == "unchanged" else "⚠️"
        why = "".join(f"; {_prose(reason.code)}: {_prose(reason.message)}" for reason in verdict.reasons)
        lines.append(f"- {sign} {_code(verdict.key)}: {sentences.outcome(verdict)}{why}")
    return _section("Sample keys", lines)


# -- checks ---------------------------------------------------------------------------------------


def _check(check: model.Check) -> str:
    return f"- {_code(check.code)} {_prose(check.title)}"


def _failed(checks: Iterable[model.Check], most: int) -> str:
    lines: list[str] = []
    for check in checks:
        if check.state == "different":
            lines.append(_check(check))
            lines += [f"  - {_prose(problem)}" for problem in check.problems[:most]]
            listed = len(check.problems)
            lines += [f"  {line}" for line in _more(listed, min(most, listed), listed)]
    return _section("Checks that failed", lines)


def _gaps(proof: model.Proof) -> str:
    lines = []
    for gap in sentences.gaps(proof):
        more = "".join(f"<br>{_prose(each)}" for each in (gap.why, gap.remedy) if each)
        what = _prose(gap.what)
        lines.append(f"- ❌ **{what}**{more}" if gap.open else f"- ⚠️ {what}{more}")
    return _section("Not checked", lines)


# -- Markdown -------------------------------------------------------------------------------------


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"### {title}", "", *lines]) if lines else ""


def _folded(title: str, lines: Sequence[str], *, unfolded: bool = False) -> str:
    """To be opened and closed; `title` is HTML, and the blank lines make the rest Markdown."""
    if not lines:
        return ""
    how = " open" if unfolded else ""
    return "\n".join([f"<details{how}><summary>{title}</summary>", "", *lines, "", "</details>"])


def _items(items: Sequence[str], most: int) -> list[str]:
    return [f"- {_prose(item)}" for item in items[:most]] + _more(len(items), min(most, len(items)), len(items))


def _more(listed: int, shown: int, total: int) -> list[str]:
    left = sentences.more(listed, shown, total)
    return [f"- **{left}**"] if left else []


def _rest(number: int, most: int) -> str:
    return f" and {number - most} more" if number > most else ""


def _code(what: str) -> str:
    """A name as code. What could end a code span or a cell of a table is written as HTML instead."""
    what = sentences.line(what)
    if what and not re.search(r"[`|\\]|^\s|\s$", what):
        return f"`{what}`"
    return f"<code>{_PUNCTUATION.sub(lambda found: f'&#{ord(found[0])};', what)}</code>"


_PUNCTUATION: Final = re.compile(r"[!-/:-@\[-`{-~]")
_MARKUP: Final = re.compile(r"[\\`*_{}\[\]<>|~$&]")
_LIST: Final = re.compile(r"^(\d+)(?=[.)])|^(?=[-+=#])")


def _prose(what: str) -> str:
    """A sentence with names in it: nothing in it is markup, a mention, a reference or a link."""
    escaped = _MARKUP.sub(lambda found: f"\\{found[0]}", sentences.line(what.strip()))
    escaped = _LIST.sub(lambda found: f"{found[1] or ''}\\", escaped)
    # GitHub looks for these in what has been rendered, where an escape no longer helps.
    return re.sub(r"@(?=\w)|#(?=\d)|:(?=//)|(?<=\bwww)(?=\.)", lambda found: f"{found[0]}&#8203;", escaped)
