"""A proof as Markdown, as GitHub would read it."""

from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from mishika_migrate import model
from mishika_migrate.report import markdown
from tests import fix_proofs

ALL = pytest.mark.parametrize(
    "make",
    [
        fix_proofs.equal, fix_proofs.different, fix_proofs.unproven, fix_proofs.sampled, fix_proofs.probed,
        fix_proofs.hostile, fix_proofs.huge,
    ],
)  # fmt: skip


def tokens(text: str) -> list[Token]:
    """Tables and inline parts too; the reader that comes with rich."""
    parsed = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return [part for token in parsed for part in (token, *(token.children or ()))]


@ALL
def test_page_is_below_githubs_limit(make: fix_proofs.Make) -> None:
    assert len(markdown.text(make()).encode()) <= markdown.LIMIT


def test_page_with_more_tables_than_there_is_room_for_is_cut_in_the_open() -> None:
    text = markdown.text(fix_proofs.huge(rows=1, tables=3000))
    assert len(text.encode()) <= markdown.LIMIT
    assert text.endswith("`--report FILE.json` has all of it.\n")
    assert text.count("<details") == text.count("</details>")
    equal = markdown.text(fix_proofs.proof(contents=tuple(fix_proofs.content(f"T{n}") for n in range(3000))))
    assert len(equal.encode()) <= markdown.LIMIT
    assert equal.count("<details") == equal.count("</details>")


def test_fewer_are_listed_rather_than_too_much() -> None:
    text = markdown.text(fix_proofs.huge())
    assert re.search(r"and \d+ more, not listed here; \d+ of them with --report FILE", text)
    assert all(f"`MishikaLLM_T{number}`" in text for number in range(101))


def test_verdict_tables_keys_checks_and_gaps_follow_each_other() -> None:
    text = markdown.text(fix_proofs.different())
    assert text.startswith("## ❌ Different: 1,003 rows differ in 2 of 6 tables")
    parts = [
        "**20,000 keys: ", "Also not proven: 2 checks", "### Tables that differ", "| `MishikaLLM_UserTable` |",
        "### Keys that differ, by reason", "### Sample keys", "### Checks that failed", "### Not checked",
        "### What the fast hash cannot see", "Tables that are the same", "Checks that passed",
    ]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "- **and 900 more, not listed**" in text


@pytest.mark.parametrize(
    ("make", "sign"),
    [(fix_proofs.equal, "✅ Equal"), (fix_proofs.sampled, "⚠️ Sampled"), (fix_proofs.unproven, "❌ Not proven")],
)
def test_sign_says_whether_anything_is_proven(make: fix_proofs.Make, sign: str) -> None:
    assert markdown.text(make()).startswith(f"## {sign}: ")


@ALL
def test_table_has_as_many_cells_in_every_row(make: fix_proofs.Make) -> None:
    found = tokens(markdown.text(make()))
    rows = [sum(token.type in ("td_open", "th_open") for token in row) for row in _rows(found)]
    assert set(rows) <= {6}
    different = [content for content in make().contents if content.state == "different"]
    assert len(rows) == (len(different) + 1 if different else 0)


def _rows(found: list[Token]) -> list[list[Token]]:
    starts = [number for number, token in enumerate(found) if token.type == "tr_open"]
    ends = [number for number, token in enumerate(found) if token.type == "tr_close"]
    return [found[start:end] for start, end in zip(starts, ends, strict=True)]


@ALL
def test_names_make_no_markup(make: fix_proofs.Make) -> None:
    text = markdown.text(make())
    found = tokens(text)
    assert not {token.type for token in found} & {
        "link_open",
        "image",
        "em_open",
        "s_open",
        "fence",
        "code_block",
        "hr",
    }
    tags = {token.content.strip() for token in found if token.type == "html_inline"}
    assert tags <= {"<code>", "</code>", "<br>"}
    for token in found:
        if token.type == "html_block":
            assert re.fullmatch(r"<details( open)?><summary>[^<>]*</summary>|</details>", token.content.strip())
    assert text.isprintable() or all(sign.isprintable() or sign == "\n" for sign in text.replace("️", ""))


def test_names_neither_call_anybody_nor_link() -> None:
    blind = ("@everyone see #12 at https://example.com or www.example.com", "1. not a list", "- nor this")
    text = markdown.text(fix_proofs.proof(blind=blind))
    assert not re.search(r"@\w|(?<!&)#\d|://|www\.", re.sub(r"`[^`]*`", "", text))
    bullets = [token for token in tokens(text) if token.type in ("ordered_list_open", "bullet_list_open")]
    assert {token.level for token in bullets} == {0}


def test_name_reads_as_it_is() -> None:
    """What the Markdown reader gets back out of a code span or cell is the name itself."""
    name = fix_proofs.HOSTILE[0]
    contents = (fix_proofs.content("T", differing=1, differences=(model.Difference(row=name, kind="differs"),)),)
    found = tokens(markdown.text(fix_proofs.proof(contents=contents)))
    item = next(token for token in found if token.type == "inline" and "differs" in token.content and token.level > 1)
    said = "".join(child.content for child in item.children or () if child.type != "html_inline")
    assert said == f"{name}: differs"
