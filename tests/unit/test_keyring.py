"""How an application decides about its keys is read from the matrix, and any fault in it refused by line."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

from mishika_migrate import errors, matrix, model

# tables end in line 13, what follows starts in line 14.
HEAD = "matrix: 1\nname: n\ntables:\n" + "".join(
    f"  {name}:\n    need: required\n    why: w\n    stage: core\n    written: rarely\n" for name in ("pass", "club")
)
KEYS = """\
keys:
  table: pass
  key: hash
  joins:
    club:
      table: club
      by: {id: key.club}
      opens: its fence no longer holds
  decides:
    shut-differs:
      columns: [key.shut, club.shut]
      says: the door
"""


def load(text: str, folder: Path) -> matrix.Matrix:
    path = folder / "m.yaml"
    path.write_text(text, encoding="utf-8")
    return matrix.load(path)


def test_a_keyring_is_read(tmp_path: Path) -> None:
    assert load(HEAD + KEYS, tmp_path).keys == model.Keyring(
        table="pass",
        key="hash",
        joins=(
            model.Join(
                name="club",
                table="club",
                by=(("id", "key.club"),),
                missing="club-missing",
                opens="its fence no longer holds",
            ),
        ),
        aspects=(
            model.Aspect(reason="shut-differs", columns=("key.shut", "club.shut"), says="the door"),
        ),
    )  # fmt: skip


def test_everything_can_be_said(tmp_path: Path) -> None:
    text = KEYS.replace("    club:\n", "    first:\n").replace("club.shut", "first.shut")
    text = text.replace("      opens: its", "      missing: gone\n      refuses: true\n      opens: its")
    text = text.replace("      says: the door\n", "      says: the door\n      moving: true\n")
    more = "    second: {table: club, by: {a: key.a, b: first.b}, opens: o}\n  decides:"
    ring = load(HEAD + text.replace("  decides:", more), tmp_path).keys
    assert ring is not None
    first, second = ring.joins
    assert (first.name, first.missing, first.refuses) == ("first", "gone", True)
    assert (second.by, second.missing) == ((("a", "key.a"), ("b", "first.b")), "second-missing")
    assert ring.aspects[0].moving
    assert (ring.tables, ring.columns) == (("pass", "club"), ("key.shut", "first.shut"))
    assert ring.ends == ("key.hash", "first.id", "key.club", "second.a", "key.a", "second.b", "first.b",
                         "key.shut", "first.shut")  # fmt: skip


def test_without_the_section_there_are_no_keys(tmp_path: Path) -> None:
    assert load(HEAD, tmp_path).keys is None


FAULTS = {
    "unknown key": (KEYS.replace("  key: hash", "  kee: hash"), "unknown key keys.kee"),
    "no table": (KEYS.replace("  table: pass\n", "", 1), "keys lacks table"),
    "no key": (KEYS.replace("  key: hash\n", ""), "keys lacks key"),
    "no joins": (KEYS[: KEYS.index("  joins")] + KEYS[KEYS.index("  decides") :], "keys lacks joins"),
    "nothing decides": (KEYS[: KEYS.index("  decides")], "keys lacks decides"),
    "keys are a list": ("keys: [pass]\n", "keys: expected a mapping"),
    "table of another matrix": (KEYS.replace("  table: pass", "  table: pas"), "pas is no table of this matrix"),
    "key is a list": (KEYS.replace("key: hash", "key: [hash]"), "keys.key: expected text"),
    "joins are a list": (KEYS.replace("  joins:\n", "  joins: []\n  jons:\n"), "unknown key keys.jons"),
    "join with unknown key": (KEYS.replace("      opens:", "      open:"), "unknown key keys.joins.club.open"),
    "join without opens": (
        KEYS.replace("      opens: its fence no longer holds\n", ""), "keys.joins.club lacks opens",
    ),
    "join of another matrix": (KEYS.replace("      table: club", "      table: clubs"), "clubs is no table of this"),
    "join called key": (KEYS.replace("    club:\n", "    key:\n"), "key is the name of the key's own row"),
    "join by nothing": (KEYS.replace("{id: key.club}", "{}"), "by of club is empty"),
    "join by a bare column": (KEYS.replace("key.club}", "club}"), "club names no column of the key or of a join"),
    "join by an unknown row": (KEYS.replace("key.club}", "kee.club}"), "kee.club names no column of the key"),
    "join by itself": (KEYS.replace("key.club}", "club.id}"), "club.id names no column of the key"),
    "join by no column": (KEYS.replace("key.club}", "key.}"), "key. names no column of the key"),
    "refuses is text": (KEYS.replace("      opens:", "      refuses: yess\n      opens:"), "expected true or false"),
    "aspect without columns": (
        KEYS.replace("      columns: [key.shut, club.shut]\n", ""), "keys.decides.shut-differs lacks columns",
    ),
    "aspect without says": (KEYS.replace("      says: the door\n", ""), "keys.decides.shut-differs lacks says"),
    "aspect with unknown key": (KEYS + "      move: true\n", "unknown key keys.decides.shut-differs.move"),
    "aspect of an unknown row": (KEYS.replace("club.shut]", "house.shut]"), "house.shut names no column of the key"),
    "columns are text": (KEYS.replace("[key.shut, club.shut]", "key.shut"), "expected a list"),
}  # fmt: skip
LINES = {
    "unknown key": 16, "no table": 14, "no key": 14, "no joins": 14, "nothing decides": 14, "keys are a list": 14,
    "table of another matrix": 15, "key is a list": 16, "joins are a list": 18, "join with unknown key": 21,
    "join without opens": 18, "join of another matrix": 19, "join called key": 18, "join by nothing": 20,
    "join by a bare column": 20, "join by an unknown row": 20, "join by itself": 20, "join by no column": 20,
    "refuses is text": 21, "aspect without columns": 23, "aspect without says": 23, "aspect with unknown key": 26,
    "aspect of an unknown row": 24, "columns are text": 24,
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_refused_with_file_and_line(fault: str, tmp_path: Path) -> None:
    text, message = FAULTS[fault]
    with pytest.raises(errors.ConfigurationError) as caught:
        load(HEAD + text, tmp_path)
    assert message in caught.value.message
    assert caught.value.message.startswith(f"{tmp_path / 'm.yaml'}:{LINES[fault]}: "), caught.value.message
    assert caught.value.hint


# -- the packaged one -----------------------------------------------------------------------------


def packaged() -> model.Keyring:
    ring = matrix.load().keys
    assert ring is not None
    return ring


def columns_of_the_real_schema() -> dict[str, set[str]]:
    text = (resources.files("mishikallm_proxy_extras") / "schema.prisma").read_text(encoding="utf-8")
    tables: dict[str, set[str]] = {}
    for table, body in re.findall(r"^model (\w+) \{(.*?)^\}", text, flags=re.MULTILINE | re.DOTALL):
        for line in body.splitlines():
            if found := re.match(r"\s*(\w+)\s+\w+", line.partition("//")[0]):
                mapped = re.search(r'@map\("(\w+)"\)', line)
                tables.setdefault(table, set()).add(mapped[1] if mapped else found[1])
    return tables


def test_the_packaged_keyring_names_real_columns_only() -> None:
    ring, schema = packaged(), columns_of_the_real_schema()
    ends = [(ring.table_of(end.partition(".")[0]), end.partition(".")[2]) for end in ring.ends]
    assert [f"{table}.{column}" for table, column in ends if column not in schema[table]] == []


def test_the_packaged_keyring_follows_the_proxy_s_join() -> None:
    ring = packaged()
    assert (ring.table, ring.key) == ("MishikaLLM_VerificationToken", "token")
    found = {join.name: dict(join.by) for join in ring.joins}
    assert found["team"] == {"team_id": "key.team_id"}
    assert found["membership"] == {"user_id": "key.user_id", "team_id": "key.team_id"}
    assert found["aliases"] == {"id": "team.model_id"}
    assert found["budget"] == {"budget_id": "key.budget_id"}
    assert [aspect.reason for aspect in ring.aspects if aspect.moving] == ["spend-differs"]
    assert ring.table_of("member_budget") == ring.table_of("budget") == "MishikaLLM_BudgetTable"
    assert ring.table_of("key") == ring.table


def test_a_join_goes_with_the_columns_that_lead_to_it() -> None:
    ring = packaged()
    there = {table: columns_of_the_real_schema()[table] for table in ring.tables}
    assert ring.limited(there).joins == ring.joins
    there["MishikaLLM_TeamTable"] = there["MishikaLLM_TeamTable"] - {"model_id"}
    assert {join.name for join in ring.joins} - {join.name for join in ring.limited(there).joins} == {"aliases"}
    there.pop("MishikaLLM_TeamMembership")
    limited = ring.limited(there)
    assert not {"membership", "member_budget"} & {join.name for join in limited.joins}
    assert not [column for column in limited.columns if column.startswith(("membership.", "member_budget."))]
