"""The packaged matrix is true to the real schema; a matrix with any fault in it is refused by line."""

from __future__ import annotations

import pickle
import re
from importlib import resources
from pathlib import Path

import pytest

from mishika_migrate import errors, matrix

HERE = Path(__file__).parent
SHOP = HERE / "shop.yaml"


# -- the packaged matrix --------------------------------------------------------------------------


def columns_of_the_real_schema() -> dict[str, dict[str, str]]:
    """Table → column → Prisma type, as the package that deploys the schema has it."""
    text = (resources.files("mishikallm_proxy_extras") / "schema.prisma").read_text(encoding="utf-8")
    tables: dict[str, dict[str, str]] = {}
    for table, body in re.findall(r"^model (\w+) \{(.*?)^\}", text, flags=re.MULTILINE | re.DOTALL):
        columns = tables.setdefault(table, {})
        for line in body.splitlines():
            if found := re.match(r"\s*(\w+)\s+(\w+(?:\[\])?\??)", line.partition("//")[0]):
                mapped = re.search(r'@map\("(\w+)"\)', line)
                columns[mapped[1] if mapped else found[1]] = found[2]
    return tables


@pytest.fixture(scope="module")
def packaged() -> matrix.Matrix:
    return matrix.load()


@pytest.fixture(scope="module")
def schema() -> dict[str, dict[str, str]]:
    return columns_of_the_real_schema()


def test_packaged_matrix_has_exactly_the_real_tables(
    packaged: matrix.Matrix, schema: dict[str, dict[str, str]]
) -> None:
    assert len(schema) == 23
    assert {entry.table for entry in packaged.entries} == set(schema)
    assert packaged.migrations == "_prisma_migrations"
    assert packaged.path == "mishikallm.yaml"


def test_packaged_matrix_names_only_real_columns_of_the_right_type(
    packaged: matrix.Matrix, schema: dict[str, dict[str, str]]
) -> None:
    for entry in packaged.entries:
        types = schema[entry.table]
        for column in (*entry.encrypted, *entry.objects):
            assert types[column].rstrip("?") == "Json", (entry.table, column)
        for column in entry.present:
            assert types[column].endswith(("?", "[]")), f"{entry.table}.{column} is NOT NULL in the schema"
        assert set(entry.names) <= types.keys()
        assert entry.time_column is None or entry.time_column in types
        assert entry.encrypted_where is None or types[entry.encrypted_where.column] == "String"
        for reference in entry.references:
            assert types[reference.column].endswith("[]") == reference.each, (entry.table, reference)
            assert reference.key in schema[reference.table]


def test_tables_come_after_what_their_foreign_keys_name(packaged: matrix.Matrix) -> None:
    order = [entry.table for entry in packaged.entries]
    text = (resources.files("mishikallm_proxy_extras") / "schema.prisma").read_text(encoding="utf-8")
    pairs = [
        (table, referenced)
        for table, body in re.findall(r"^model (\w+) \{(.*?)^\}", text, flags=re.MULTILINE | re.DOTALL)
        for referenced in re.findall(r"\s(\w+)\??\s+@relation\([^)]*fields:", body)
    ]
    assert len(pairs) >= 13
    assert all(order.index(referenced) < order.index(table) for table, referenced in pairs)


def test_packaged_needs(packaged: matrix.Matrix) -> None:
    required = {entry.table.removeprefix("MishikaLLM_") for entry in packaged.entries if entry.need == "required"}
    assert required == {"BudgetTable", "UserTable", "TeamTable", "VerificationToken", "TeamMembership"}
    assert [entry.table for entry in packaged.entries if entry.need == "never"] == ["MishikaLLM_CronJob"]
    assert {group.name: group.flag for group in packaged.groups} == {
        "spendlogs": "--include-spendlogs",
        "errorlogs": "--include-errorlogs",
        "usage": "--include-usage",
        "auditlogs": "--include-auditlogs",
    }
    bulk = {entry.table for entry in packaged.entries if entry.stage == "bulk"}
    assert bulk == {entry.table for entry in packaged.entries if entry.need == "if-wanted"}
    assert all(entry.loses for entry in packaged.entries if entry.need != "never")


def test_packaged_views_are_the_eight_of_the_proxy(packaged: matrix.Matrix) -> None:
    assert [view.name for view in packaged.views] == [
        "MishikaLLM_VerificationTokenView",
        "MonthlyGlobalSpend",
        "Last30dKeysBySpend",
        "Last30dModelsBySpend",
        "MonthlyGlobalSpendPerKey",
        "MonthlyGlobalSpendPerUserPerKey",
        "DailyTagSpend",
        "Last30dTopEndUsersSpend",
    ]


def test_packaged_tokens_say_what_opens(packaged: matrix.Matrix) -> None:
    tokens = packaged.entry("MishikaLLM_VerificationToken")
    assert tokens is not None
    team, user = tokens.references
    assert (team.table, team.exempt) == ("MishikaLLM_TeamTable", ("mishikallm-dashboard",))
    assert (user.table, user.exempt) == (
        "MishikaLLM_UserTable",
        ("default_user_id", "mishikallm-proxy-budget"),
    )
    assert "block" in team.opens
    assert "budget" in user.opens


def test_packaged_ciphertext_is_all_that_the_proxy_decrypts(packaged: matrix.Matrix) -> None:
    found = {entry.table: (entry.encrypted, entry.encrypted_where) for entry in packaged.entries if entry.encrypted}
    assert found == {
        "MishikaLLM_ProxyModelTable": (("mishikallm_params",), None),
        "MishikaLLM_CredentialsTable": (("credential_values",), None),
        "MishikaLLM_Config": (
            ("param_value",),
            matrix.Where(column="param_name", values=("environment_variables",)),
        ),
    }


def test_lookups(packaged: matrix.Matrix) -> None:
    group = packaged.group("usage")
    assert group is not None
    assert group.flag == "--include-usage"
    assert packaged.group("nothing") is None
    assert packaged.entry("nothing") is None


def test_matrix_is_a_value(packaged: matrix.Matrix) -> None:
    assert pickle.loads(pickle.dumps(packaged)) == packaged
    assert hash(packaged) == hash(matrix.load())


# -- any other matrix -----------------------------------------------------------------------------


def test_shop_matrix_loads_from_a_file() -> None:
    shop = matrix.load(SHOP)
    assert shop.path == str(SHOP)
    assert shop.migrations is None
    assert [entry.table for entry in shop.entries] == [
        "customers",
        "categories",
        "products",
        "orders",
        "order_lines",
        "events",
    ]
    events = shop.entry("events")
    assert events is not None
    assert (events.stage, events.insert_only, events.time_column) == ("bulk", True, "happened")
    assert events.references[0].opens


def test_shop_matrix_describes_shop_sql() -> None:
    sql = (HERE / "shop.sql").read_text(encoding="utf-8")
    shop = matrix.load(SHOP)
    assert {entry.table for entry in shop.entries} == set(re.findall(r"CREATE TABLE (\w+)", sql))
    assert [view.name for view in shop.views] == re.findall(r"CREATE VIEW (\w+)", sql)


HEAD = "matrix: 1\nname: n\ntables:\n"


def table(name: str, more: str = "", *, need: str = "required") -> str:
    """One table in five lines, `more` from the sixth."""
    body = f"need: {need}\nwhy: w\nstage: core\nwritten: rarely\n{more}"
    return f"  {name}:\n" + "".join(f"    {line}\n" for line in body.splitlines())


A = HEAD + table("a")  # a is in line 4, its stage in line 7; what follows starts in line 9
LONG = "é" * 32  # 64 bytes
WANTED = HEAD + table("a", "group: g", need="if-wanted")

FAULTS = {
    "unknown key at the top": (A + "veiws: {}\n", 9, "unknown key veiws", "Did you mean views?"),
    "unknown key of a table": (HEAD + table("a", "nead: x"), 9, "unknown key tables.a.nead", "need"),
    "the table's name is its key": (HEAD + table("a", "table: b"), 9, "unknown key tables.a.table", ""),
    "no version": ("name: n\ntables:\n" + table("a"), 1, "the file lacks matrix", ""),
    "other version": (A.replace("matrix: 1", "matrix: 2"), 1, "matrix format 2 is unknown", ""),
    "version is text": (A.replace("matrix: 1", "matrix: one"), 1, "matrix: expected a whole number", ""),
    "no tables": ("matrix: 1\nname: n\n", 1, "the file lacks tables", ""),
    "empty tables": ("matrix: 1\nname: n\ntables: {}\n", 3, "tables is empty", ""),
    "tables are a list": ("matrix: 1\nname: n\ntables: [a]\n", 3, "tables: expected a mapping", ""),
    "table is text": (HEAD + "  a: required\n", 4, "tables.a: expected a mapping", ""),
    "table twice": (A + table("a"), 9, "a is given twice, first in line 4", ""),
    "no need": (A.replace("    need: required\n", ""), 4, "tables.a lacks need", ""),
    "unknown need": (HEAD + table("a", need="requird"), 5, "found requird", "required"),
    "unknown stage": (A.replace("core", "bulky"), 7, "found bulky", "bulk"),
    "finish is no table's stage": (A.replace("core", "finish"), 7, "found finish", ""),
    "empty why": (A.replace("why: w", 'why: " "'), 6, "why is empty", ""),
    "why is a list": (A.replace("why: w", "why: [w]"), 6, "tables.a.why: expected text", ""),
    "insert_only is text": (HEAD + table("a", "insert_only: yess"), 9, "expected true or false", ""),
    "columns are text": (HEAD + table("a", "names: b"), 9, "tables.a.names: expected a list", ""),
    "column twice": (HEAD + table("a", "names: [b, b]"), 9, "tables.a.names[1] repeats", ""),
    "column too long": (HEAD + table("a", f"objects:\n  - b\n  - {LONG}"), 11, "has 64 bytes", "63"),
    "column empty": (HEAD + table("a", 'objects: [""]'), 9, "a name that is empty", ""),
    "time column too long": (HEAD + table("a", f"time_column: {LONG}"), 9, "has 64 bytes", ""),
    "table too long": (A + table(LONG), 9, "has 64 bytes", ""),
    "migrations too long": (A + f"migrations: {LONG}\n", 9, "has 64 bytes", ""),
    "migrations is a table": (A + "migrations: a\n", 9, "a is both a table and", ""),
    "goes with no table": (HEAD + table("abc", "goes_with: abd"), 9, "abd is no table", "abc"),
    "goes with itself": (HEAD + table("a", "goes_with: a"), 9, "circle: a → a", ""),
    "reference to no table": (
        HEAD + table("abc", "references:\n  - column: c\n    table: abd\n    key: k"),
        11,
        "abd is no table of this matrix",
        "abc",
    ),
    "reference without key": (
        HEAD + table("a", "references:\n  - {column: c, table: a}"),
        10,
        "tables.a.references[0] lacks key",
        "",
    ),
    "reference with unknown key": (
        HEAD + table("a", "references:\n  - {column: c, table: a, key: k, exemt: []}"),
        10,
        "unknown key tables.a.references[0].exemt",
        "exempt",
    ),
    "encrypted_where without columns": (
        HEAD + table("a", "encrypted_where: {column: c, values: [v]}"),
        9,
        "a has encrypted_where but no encrypted columns",
        "encrypted:",
    ),
    "encrypted_where without values": (
        HEAD + table("a", "encrypted: [b]\nencrypted_where: {column: c, values: []}"),
        10,
        "values of a is empty",
        "",
    ),
    "encrypted_where with unknown key": (
        HEAD + table("a", "encrypted: [b]\nencrypted_where: {colum: c, values: [v]}"),
        10,
        "unknown key tables.a.encrypted_where.colum",
        "column",
    ),
    "encrypted_where without column": (
        HEAD + table("a", "encrypted: [b]\nencrypted_where: {values: [v]}"),
        10,
        "tables.a.encrypted_where lacks column",
        "",
    ),
    "encrypted_where is a list": (
        HEAD + table("a", "encrypted: [b]\nencrypted_where: [c]"),
        10,
        "tables.a.encrypted_where: expected a mapping",
        "",
    ),
    "encrypted_where of too long a column": (
        HEAD + table("a", f"encrypted: [b]\nencrypted_where: {{column: {LONG}, values: [v]}}"),
        10,
        "has 64 bytes",
        "",
    ),
    "references are a mapping": (HEAD + table("a", "references: {}"), 9, "expected a list", ""),
    "view of no table": (A + "views:\n  v:\n    why: w\n    reads: [b]\n", 12, "b is no table", ""),
    "view twice": (A + "views:\n  v: {why: w, reads: [a]}\n  v: {}\n", 11, "v is given twice", ""),
    "view is a table": (A + "views:\n  a: {why: w, reads: [a]}\n", 10, "both a table and a view", ""),
    "view too long": (A + f"views:\n  {LONG}: {{why: w, reads: [a]}}\n", 10, "has 64 bytes", ""),
    "view without reads": (A + "views:\n  v: {why: w}\n", 10, "views.v lacks reads", ""),
    "group unknown": (WANTED, 9, "table a is in the unknown group g", ""),
    "wanted without group": (HEAD + table("a", need="if-wanted"), 4, "is if-wanted but in no group", ""),
    "group unused": (A + "groups:\n  g: {flag: --include-g, why: w}\n", 10, "no table uses group g", ""),
    "group twice": (
        WANTED + "groups:\n  g: {flag: --include-g, why: w}\n  g: {flag: --include-h, why: w}\n",
        12,
        "g is given twice",
        "",
    ),
    "flag twice": (
        WANTED
        + table("b", "group: h")
        + "groups:\n  g: {flag: --include-g, why: w}\n  h: {flag: --include-g, why: w}\n",
        18,
        "the flag --include-g of group h is also the one of group g",
        "",
    ),
    "flag of another form": (WANTED + "groups:\n  g: {flag: --with-g, why: w}\n", 11, "'--with-g' of", ""),
    "flag with capitals": (WANTED + "groups:\n  g: {flag: --include-G, why: w}\n", 11, "not of the form", ""),
    "syntax": (A + "views: [\n", 10, "not valid YAML", ""),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_refused_with_file_and_line(fault: str, tmp_path: Path) -> None:
    text, line, message, hint = FAULTS[fault]
    path = tmp_path / "m.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(errors.ConfigurationError) as caught:
        matrix.load(path)
    assert caught.value.message.startswith(f"{path}:{line}: ")
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.hint


def test_circle_is_named_with_all_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    text = table("Z", "goes_with: A") + table("A", "goes_with: B") + table("B", "goes_with: A")
    path.write_text(HEAD + text, encoding="utf-8")
    with pytest.raises(errors.ConfigurationError) as caught:
        matrix.load(path)
    assert caught.value.message == f"{path}:15: goes_with runs in a circle: A → B → A"


def test_a_group_may_hold_a_table_that_is_not_if_wanted(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(HEAD + table("a", "group: g", need="if-used") + "groups:\n  g: {flag: --include-g, why: w}\n")
    assert matrix.load(path).entries[0].group == "g"
