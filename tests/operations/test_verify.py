"""Every planted fault is found, for the right reason, and nothing beside it; a copy without one is equal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mishika_migrate import errors, matrix, model
from mishika_migrate.operations.verifying import verify
from mishika_migrate.plan import history, selection
from tests import oddities, proving
from tests.fix_faults import ask, wait_until
from tests.fix_servers import Clone, Pair
from tests.looking import as_role, execute, role
from tests.oddities import Found
from tests.proving import NOTHING, SALT, Templates, plant, prove, written

OTHER = "sk-other-geheim-0123456789"


@pytest.fixture(scope="module")
def templates(pair: Pair) -> Templates:
    return proving.templates(pair)


@pytest.fixture
def ends(pair: Pair, clone: Clone, templates: Templates) -> tuple[str, str]:
    """A source and its copy; the source belongs to all tests of this module."""
    return templates.source, clone(pair.new, templates.copy)


def test_a_copy_is_equal(ends: tuple[str, str]) -> None:
    for method in ("fast", "exact", "sha256"):
        proof = prove(*ends, salt=SALT, method=method)
        assert (proof.method, proof.state, proof.status, proving.found(proof)) == (method, "ok", 0, NOTHING)
        assert proof.keys is not None
        assert proof.keys.headline == "300 keys: 300 continue unchanged"
        assert proof.unchecked == ()
        assert sum(content.rows_source for content in proof.contents) > 1500


# -- rows and what belongs to them ----------------------------------------------------------------

NAMED = (
    "one bit of a float8",
    "{} becomes NULL",
    "{} becomes []",
    "order of a text[]",
    "two rows' values are swapped",
    "two equal extra rows without a key",
)
"""Changes of the odd tables that the ordinary run proves; tests/pg/test_digest.py has them all."""

FAULTS: Mapping[str, tuple[str, Found]] = {
    "a key changes its case": (
        "UPDATE $EndUserTable SET user_id = upper(user_id) WHERE user_id = (SELECT min(user_id) FROM $EndUserTable)",
        Found(rows={"EndUserTable": (1, 1, 0)}),
    ),
    "a key gets a trailing space": (
        "UPDATE $EndUserTable SET user_id = user_id || ' ' WHERE user_id = (SELECT min(user_id) FROM $EndUserTable)",
        Found(rows={"EndUserTable": (1, 1, 0)}),
    ),
    "one bit of a request's spend": (
        "UPDATE $SpendLogs SET spend = 0.10000000000000002"
        " WHERE request_id = (SELECT min(request_id) FROM $SpendLogs)",
        Found(rows={"SpendLogs": (0, 0, 1)}, columns={"SpendLogs": {"spend"}}),
    ),
    "one sign in the middle of 1 MB of JSON": (
        "UPDATE $SpendLogs SET messages = replace(messages::text, 'xyx', 'xzx')::jsonb"
        " WHERE request_id = (SELECT max(request_id) FROM $SpendLogs)",
        Found(rows={"SpendLogs": (0, 0, 1)}, columns={"SpendLogs": {"messages"}}),
    ),
    "a log row twice": (
        "ALTER TABLE $SpendLogs DROP CONSTRAINT $SpendLogs_pkey;"
        " INSERT INTO $SpendLogs SELECT * FROM $SpendLogs ORDER BY request_id LIMIT 1",
        Found(rows={"SpendLogs": (0, 1, 0)}, problems={"indexes": 1}),
    ),
    "a log row twice, by another name": (
        "CREATE TEMP TABLE again AS SELECT * FROM $SpendLogs ORDER BY request_id LIMIT 1;"
        " UPDATE again SET request_id = request_id || '2'; INSERT INTO $SpendLogs SELECT * FROM again",
        Found(rows={"SpendLogs": (0, 1, 0)}),
    ),
    "a log row is lost": (
        "DELETE FROM $SpendLogs WHERE request_id = (SELECT min(request_id) FROM $SpendLogs)",
        Found(rows={"SpendLogs": (1, 0, 0)}),
    ),
    "a table is empty": ("DELETE FROM $ErrorLogs", Found(rows={"ErrorLogs": (6, 0, 0)})),
    "a view": ('DROP VIEW "MonthlyGlobalSpend"', Found(problems={"views": 1})),
    "an index": ("DROP INDEX $SpendLogs_startTime_idx", Found(problems={"indexes": 1})),
    "a unique constraint": ("DROP INDEX $UserTable_sso_user_id_key", Found(problems={"indexes": 1})),
    "a default": ("ALTER TABLE $TeamTable ALTER blocked SET DEFAULT true", Found(problems={"columns": 1})),
    "a sequence behind": ("SELECT setval('$ModelTable_id_seq', 1)", Found(problems={"sequences": 1})),
    "the schema's journal": (
        "DELETE FROM _prisma_migrations WHERE migration_name = (SELECT max(migration_name) FROM _prisma_migrations)",
        Found(problems={"migrations": 1}),
    ),
    "ciphertext": (
        "UPDATE $ProxyModelTable SET mishikallm_params = jsonb_set(mishikallm_params, '{model}', '\"gpt\"')",
        Found(
            rows={"ProxyModelTable": (0, 0, 1)},
            columns={"ProxyModelTable": {"mishikallm_params"}},
            problems={"ciphertext": 1},
        ),
    ),
}  # fmt: skip

soak = pytest.mark.soak
EXACTLY = pytest.mark.parametrize("method", ["fast", pytest.param("exact", marks=soak)])


@EXACTLY
@pytest.mark.parametrize(
    "name", [*FAULTS, *(pytest.param(name, marks=() if name in NAMED else soak) for name in oddities.CHANGES)]
)
def test_one_planted_fault_is_found_and_nothing_else(ends: tuple[str, str], name: str, method: str) -> None:
    statement, expected = FAULTS.get(name) or oddities.CHANGES[name]
    plant(ends[1], statement)
    proof = prove(*ends, salt=SALT, method=method)
    assert proving.found(proof) == expected
    assert (proof.state, proof.status) == ("different", 3)
    assert proof.keys is not None
    assert proof.keys.count("unchanged") == 300


# -- keys -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Decided:
    """A fault that counts for `keys`: by reason how many, as SQL that the source answers. `rows` are one table's."""

    plant: str
    table: str = "VerificationToken"
    rows: tuple[int, int, int] = (0, 0, 1)
    columns: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    outcomes: dict[model.Outcome, str] = field(default_factory=dict)
    problems: dict[str, int] = field(default_factory=dict)
    fenced: bool = False
    status: int = 3

    def expected(self, source: str) -> Found:
        return Found(
            rows={self.table: self.rows},
            columns={self.table: set(self.columns.split())} if self.columns else {},
            keys={reason: int(ask(source, written(f"SELECT {query}"))) for reason, query in self.keys.items()},
            problems=self.problems,
        )


K = "VerificationToken"

FIRST = "(SELECT min(token) FROM $VerificationToken WHERE models <> '{}')"
TEAM = "(SELECT min(team_id) FROM $VerificationToken JOIN $TeamTable USING (team_id))"
LINKED = "(SELECT min(team_id) FROM $VerificationToken JOIN $TeamTable USING (team_id) WHERE model_id IS NOT NULL)"
MEMBER = "(SELECT min(user_id) FROM $VerificationToken JOIN $TeamMembership USING (user_id, team_id))"
SHARED = "(SELECT min(budget_id) FROM $VerificationToken)"


def counted(where: str) -> str:
    """How many keys of the source that are."""
    return f"(SELECT count(*) FROM $VerificationToken k WHERE {where})"


OF_TEAM, OF_MEMBER = counted(f"team_id = {TEAM}"), counted(f"user_id = {MEMBER}")
BUDGETED = counted(
    f"budget_id = {SHARED} OR (user_id, team_id) IN (SELECT user_id, team_id FROM $TeamMembership"
    f" WHERE budget_id = {SHARED})"
    f" OR organization_id IN (SELECT organization_id FROM $OrganizationTable WHERE budget_id = {SHARED})"
)


def of_key(
    change: str, columns: str, reason: str, outcome: model.Outcome = "changed", *, where: str = "", **more: object
) -> Decided:
    """A change of one key's own row."""
    which = f"(SELECT min(token) FROM $VerificationToken WHERE {where})" if where else FIRST
    return Decided(
        plant=f"UPDATE $VerificationToken SET {change} WHERE token = {which}",
        columns=columns,
        keys={reason: "1"} if reason else {},
        outcomes={outcome: "1"} if reason else {},
        **more,  # type: ignore[arg-type]
    )


def of_team(change: str, columns: str, reason: str, outcome: model.Outcome = "changed") -> Decided:
    """A change of the row of a team."""
    return Decided(
        plant=f"UPDATE $TeamTable SET {change} WHERE team_id = {TEAM}",
        table="TeamTable",
        columns=columns,
        keys={reason: OF_TEAM},
        outcomes={outcome: OF_TEAM},
    )


DECIDED: Mapping[str, Decided] = {
    "a key is lost": Decided(
        plant=f"DELETE FROM $VerificationToken WHERE token = {FIRST}",
        rows=(1, 0, 0),
        keys={"missing": "1"},
        outcomes={"lost": "1"},
    ),
    "a revoked key lives again": Decided(
        plant="INSERT INTO $VerificationToken (token, models) VALUES (repeat('ab', 32), '{}')",
        rows=(0, 1, 0),
        keys={"extra": "1"},
        outcomes={"revived": "1"},
    ),
    "a key has another hash": Decided(
        plant=f"UPDATE $VerificationToken SET token = upper(token) WHERE token = {FIRST}",
        rows=(1, 1, 0),
        keys={"missing": "1", "extra": "1"},
        outcomes={"lost": "1", "revived": "1"},
    ),
    "a team is lost": Decided(
        plant=f"DELETE FROM $TeamTable WHERE team_id = {TEAM}",
        table="TeamTable",
        rows=(1, 0, 0),
        keys={"team-missing": OF_TEAM},
        outcomes={"opened": OF_TEAM},
        problems={"soft-references": 3},  # those of keys, of memberships and of users
    ),
    "a user is lost": Decided(
        plant=f"DELETE FROM $UserTable WHERE user_id = {MEMBER}",
        table="UserTable",
        rows=(1, 0, 0),
        keys={"user-missing": OF_MEMBER},
        outcomes={"opened": OF_MEMBER},
        problems={"soft-references": 5},  # those of keys, memberships, notifications, and two lists of teams
    ),
    "memberships are lost": Decided(
        plant=f"DELETE FROM $TeamMembership WHERE team_id = {TEAM}",
        table="TeamMembership",
        rows=(4, 0, 0),
        keys={"membership-missing": counted(f"team_id = {TEAM} AND user_id IS NOT NULL")},
        outcomes={"opened": counted(f"team_id = {TEAM} AND user_id IS NOT NULL")},
    ),
    "a budget is lost": Decided(
        plant=f"DELETE FROM $BudgetTable WHERE budget_id = {SHARED}",
        table="BudgetTable",
        rows=(1, 0, 0),
        keys={"budget-missing": BUDGETED},
        outcomes={"opened": BUDGETED},
        problems={"foreign-keys": 4},  # those of keys, end users, organizations and memberships
    ),
    "aliases are lost": Decided(
        plant=f"DELETE FROM $ModelTable WHERE id = (SELECT model_id FROM $TeamTable WHERE team_id = {LINKED})",
        table="ModelTable",
        rows=(1, 0, 0),
        keys={"aliases-missing": counted(f"team_id = {LINKED}")},
        outcomes={"opened": counted(f"team_id = {LINKED}")},
        problems={"foreign-keys": 1},
    ),
    "a key's block is lifted": of_key("blocked = false", "blocked", "blocked-differs", where="blocked"),
    "a key's block is not known": of_key("blocked = NULL", "blocked", "blocked-differs", where="NOT blocked"),
    "a team's block is lifted": of_team("blocked = NOT blocked", "blocked", "blocked-differs"),
    "a key expires an hour later": of_key(
        "expires = expires + interval '1 hour'", "expires", "expiry-differs", where="expires IS NOT NULL"
    ),
    "a key never expires": of_key("expires = NULL", "expires", "expiry-differs", where="expires IS NOT NULL"),
    "all models instead of some": of_key("models = '{}'", "models", "models-differ"),
    "no list of models": of_key("models = NULL", "models", "unparseable", "lost"),
    "a team's models with a NULL": of_team("models = array_append(models, NULL)", "models", "models-differ"),
    "other rates": of_key("tpm_limit = 7, rpm_limit = 8", "tpm_limit rpm_limit", "limits-differ"),
    "another budget": of_key("max_budget = 7", "max_budget", "budget-differs"),
    "metadata is encoded twice": of_key("metadata = to_jsonb(metadata::text)", "metadata", "unparseable", "lost"),
    "metadata becomes a list": of_key("metadata = '[]'", "metadata", "unparseable", "lost"),
    "{} becomes NULL": of_key(
        "allowed_cache_controls = NULL",
        "allowed_cache_controls",
        "permissions-differ",
        where="allowed_cache_controls = '{}'",
    ),
    "a team's metadata is encoded twice": of_team(
        "metadata = to_jsonb(metadata::text)", "metadata", "unparseable", "lost"
    ),
    "a user's metadata is encoded twice": Decided(
        plant=f"UPDATE $UserTable SET metadata = to_jsonb(metadata::text) WHERE user_id = {MEMBER}",
        table="UserTable",
        columns="metadata",
        keys={"user-missing": OF_MEMBER},
        outcomes={"opened": OF_MEMBER},
    ),
    "what only people read": of_key("key_alias = 'other ', key_name = 'sk-...'", "key_alias key_name", ""),
    "the last digit of a key's spend, on a source in use": of_key(
        "spend = spend + 1e-9", "spend", "spend-differs", "moved", where="spend > 1"
    ),
    "the last digit of a key's spend, behind a fence": of_key(
        "spend = spend + 1e-9", "spend", "spend-differs", "moved", where="spend > 1", fenced=True
    ),
    "a team's spend": of_team("spend = spend + 1", "spend", "spend-differs", "moved"),
}


LATER = (
    "a key has another hash",
    "a key's block is not known",
    "a team's block is lifted",
    "a key never expires",
    "a team's models with a NULL",
    "metadata becomes a list",
    "a team's metadata is encoded twice",
    "what only people read",
    "a team's spend",
)
"""What is like another one of them."""


@EXACTLY
@pytest.mark.parametrize("name", [pytest.param(name, marks=soak if name in LATER else ()) for name in DECIDED])
def test_one_planted_fault_of_keys_is_judged(ends: tuple[str, str], name: str, method: str) -> None:
    source, target = ends
    fault = DECIDED[name]
    plant(target, fault.plant)
    proof = prove(source, target, salt=SALT, method=method, fenced=fault.fenced)
    assert proving.found(proof) == fault.expected(source)
    assert proof.status == 3  # the row itself is another one
    keys = proof.keys
    assert keys is not None
    outcomes = {outcome: int(ask(source, written(f"SELECT {query}"))) for outcome, query in fault.outcomes.items()}
    assert {outcome: count for outcome, count in keys.outcomes.items() if outcome != "unchanged"} == outcomes
    assert keys.total == 300
    assert keys.count("unchanged") == 300 - sum(count for name, count in outcomes.items() if name != "revived")
    moved_only = set(outcomes) <= {"moved"} and not fault.fenced
    assert keys.state == ("ok" if moved_only else "different")
    assert len(keys.verdicts) == sum(outcomes.values())
    assert keys.capped == 0
    for verdict in keys.verdicts:
        assert len(verdict.key) < 150
        assert not re.search(r"[0-9a-f]{9}", verdict.key)


def doubled(table: str, where: str, change: str = "") -> str:
    """The table loses its key, and one row is there twice, the second time changed."""
    return (
        f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey CASCADE;"
        f" CREATE TEMP TABLE again AS SELECT * FROM {table} WHERE {where}; {change};"
        f" INSERT INTO {table} SELECT * FROM again"
    )


def test_a_key_that_is_there_twice_is_not_called_revoked(ends: tuple[str, str]) -> None:
    plant(ends[1], doubled("$VerificationToken", f"token = {FIRST}"))
    proof = prove(*ends, salt=SALT)
    assert proving.found(proof) == Found(rows={K: (0, 1, 0)}, problems={"indexes": 1})
    assert proof.keys is not None
    assert proof.keys.headline == "300 keys: 300 continue unchanged"


def test_a_team_that_is_there_twice_counts_where_it_decides_otherwise(ends: tuple[str, str]) -> None:
    plant(ends[1], doubled("$TeamTable", f"team_id = {TEAM}", "UPDATE again SET blocked = NOT blocked"))
    proof = prove(*ends, salt=SALT)
    keys = {"blocked-differs": int(ask(ends[0], written(f"SELECT {OF_TEAM}")))}
    assert proving.found(proof) == Found(rows={"TeamTable": (0, 1, 0)}, keys=keys, problems={"indexes": 1})


# -- secrets, samples, limits ---------------------------------------------------------------------


def test_a_wrong_salt_key_opens_nothing(ends: tuple[str, str]) -> None:
    proof = prove(*ends, salt=OTHER)
    assert proving.found(proof) == Found(problems={"decryption": 1})
    assert proof.status == 3


def test_without_a_secret_nothing_is_called_proven(ends: tuple[str, str]) -> None:
    proof = prove(*ends)
    assert (proof.state, proof.status, [check.code for check in proof.unproven]) == ("unchecked", 3, ["decryption"])
    assert prove(*ends, allowed=("decryption",)).status == 0
    assert prove(*ends, allowed=("views",)).status == 3


def test_keys_of_the_operator_get_a_verdict_each(ends: tuple[str, str]) -> None:
    source, target = ends
    tokens = [str(ask(source, f'SELECT token FROM "MishikaLLM_{K}" ORDER BY token OFFSET {n} LIMIT 1')) for n in (3, 5)]
    samples = (("one", tokens[0]), ("two", tokens[1]), ("made up", "ab" * 32))
    plant(target, f"DELETE FROM $VerificationToken WHERE token = '{tokens[1]}'")
    keys = prove(source, target, samples=samples).keys
    assert keys is not None
    judged = [(each.outcome, [reason.code for reason in each.reasons]) for each in keys.samples]
    assert judged == [("unchanged", []), ("lost", ["missing"]), ("lost", ["unknown"])]
    assert keys.samples[2].key == "made up"
    assert not any(token in repr(keys) for token in tokens)
    plant(target, "DELETE FROM $VerificationToken")
    plant(target, "DELETE FROM $SpendLogs")
    assert all(token not in repr(prove(source, target)) for token in tokens)


def test_only_the_list_is_capped(ends: tuple[str, str]) -> None:
    plant(ends[1], "UPDATE $SpendLogs SET spend = -1", "DELETE FROM $VerificationToken", "DELETE FROM keyless")
    proof = prove(*ends, most=5)
    found = {proving.bare(each.table): each for each in proof.contents if each.state == "different"}
    assert (found["SpendLogs"].differing, len(found["SpendLogs"].differences), found["SpendLogs"].capped) == (
        600,
        5,
        595,
    )
    assert (found[K].source_only, len(found[K].differences), found[K].capped) == (300, 5, 295)
    assert (found["keyless"].source_only, found["keyless"].capped) == (6, 0)
    assert proof.keys is not None
    assert (proof.keys.count("lost"), len(proof.keys.verdicts), proof.keys.capped) == (300, 5, 295)
    everything = prove(*ends, most=0)
    assert everything.different
    assert {each.capped for each in everything.contents if each.different} == {600, 300, 6}


def test_a_sample_is_called_one_and_sees_its_rows_only(ends: tuple[str, str]) -> None:
    source, target = ends
    proof = prove(source, target, salt=SALT, share=0.2)
    assert (proof.state, proof.sample, proof.headline.split()[0]) == ("ok", 0.2, "Sampled:")
    assert proof.keys is not None
    assert proof.keys.sampled == 0.2
    assert 20 < proof.keys.total < 120
    logs = next(each for each in proof.contents if each.table.endswith("SpendLogs"))
    assert logs.sampled == 0.2
    assert 60 < logs.rows_source == logs.rows_target < 200
    plant(target, "UPDATE $SpendLogs SET spend = -1")
    found = prove(source, target, salt=SALT, share=0.2, most=1000)
    assert proving.found(found).rows == {"SpendLogs": (0, 0, logs.rows_source)}
    (seen,) = (each.differences for each in found.contents if each.differences)
    listed = ", ".join(f"'{each.row}'" for each in seen)
    origin = f"(SELECT array_agg(request_id || ' ' || spend) FROM $SpendLogs WHERE request_id IN ({listed}))"
    for text in ask(source, written(f"SELECT {origin}")):
        request, spend = text.rsplit(" ", 1)
        plant(target, f"UPDATE $SpendLogs SET spend = {spend} WHERE request_id = '{request}'")
    again = prove(source, target, salt=SALT, share=0.2)
    assert (again.state, again.headline.split()[0]) == ("ok", "Sampled:")  # 480 rows or so are wrong
    assert prove(source, target, salt=SALT).status == 3


@pytest.mark.parametrize(("level", "word"), [("counts", "Same counts:"), ("keys", "Same row keys:")])
def test_a_lower_level_says_what_it_looked_at(ends: tuple[str, str], level: model.Level, word: str) -> None:
    plant(ends[1], "UPDATE $SpendLogs SET spend = -1", "UPDATE $TeamTable SET blocked = true")
    proof = prove(*ends, level=level)
    assert (proof.status, proof.level, proof.keys, proof.blind) == (0, level, None, ())
    assert proof.headline.startswith(word)
    assert [check.code for check in proof.checks] == ["tables"]
    plant(ends[1], "UPDATE $SpendLogs SET request_id = request_id || 'x' WHERE request_id = (SELECT min(request_id)"
                   " FROM $SpendLogs)")  # fmt: skip
    assert prove(*ends, level=level).status == (0 if level == "counts" else 3)
    plant(ends[1], "DELETE FROM keyless")
    assert proving.found(prove(*ends, level=level)).rows["keyless"] == (6, 0, 0)


# -- tables of other shapes -----------------------------------------------------------------------


def test_a_table_that_the_target_lacks_is_no_equal_one(ends: tuple[str, str]) -> None:
    execute(ends[1], 'DROP TABLE "MishikaLLM_ErrorLogs"')
    proof = prove(*ends, salt=SALT)
    assert proving.found(proof) == Found(problems={"tables": 1})
    (text,) = next(check.problems for check in proof.checks if check.problems)
    assert text.startswith("MishikaLLM_ErrorLogs is not there on the target ")
    execute(ends[1], 'CREATE VIEW "MishikaLLM_ErrorLogs" AS SELECT 1 AS one')
    (text,) = next(check.problems for check in prove(*ends, salt=SALT).checks if check.problems)
    assert text.startswith("MishikaLLM_ErrorLogs is a view there on the target ")


def test_a_table_that_the_source_has_lost_is_missed(pair: Pair, clone: Clone, ends: tuple[str, str]) -> None:
    source = clone(pair.old, "filled")
    execute(source, f'DROP TABLE "MishikaLLM_{K}" CASCADE')
    proof = prove(source, clone(pair.new, "bare"))
    assert proof.status == 3
    assert proof.keys is None
    assert f"MishikaLLM_{K} is not there on the source" in str(proof.checks[0].problems)


@pytest.mark.parametrize("table", ["VerificationToken", "TeamTable"])
def test_without_a_table_of_the_decision_no_key_is_called_unchanged(ends: tuple[str, str], table: str) -> None:
    execute(ends[1], f'DROP TABLE "MishikaLLM_{table}" CASCADE')
    proof = prove(*ends, salt=SALT)
    assert proof.status == 3
    assert proof.keys is None
    (check,) = (each for each in proof.checks if each.code == "keys")
    assert f"MishikaLLM_{table}" in check.why_not


def test_a_column_of_the_decision_that_the_target_lacks_is_said(ends: tuple[str, str]) -> None:
    execute(ends[1], 'ALTER TABLE "MishikaLLM_UserTable" DROP COLUMN allowed_cache_controls')
    proof = prove(*ends, salt=SALT, allowed=("columns",))
    assert proving.found(proof) == NOTHING
    (check,) = proof.unproven
    assert (proof.status, check.code, "no MishikaLLM_UserTable.allowed_cache_controls," in check.why_not) == (
        3,
        "keys",
        True,
    )
    assert prove(*ends, salt=SALT, allowed=("columns", "keys")).status == 0


def test_columns_of_one_side_are_not_compared_and_said(ends: tuple[str, str]) -> None:
    execute(ends[1], "ALTER TABLE odd DROP COLUMN text, ADD COLUMN more int DEFAULT 5")
    proof = prove(*ends, salt=SALT)
    content = next(each for each in proof.contents if each.table == "odd")
    assert (content.state, content.not_compared) == ("ok", ("text", "more"))
    assert (proof.state, proof.status, [check.code for check in proof.unproven]) == ("unchecked", 3, ["columns"])


def test_a_table_that_lost_its_key_is_told_by_the_source_s(ends: tuple[str, str]) -> None:
    execute(ends[1], "ALTER TABLE odd DROP CONSTRAINT odd_pkey")
    assert proving.found(prove(*ends, salt=SALT)) == Found(problems={"indexes": 1})
    execute(ends[1], "INSERT INTO odd SELECT * FROM odd WHERE id = 3; UPDATE odd SET big = 5 WHERE id = 4")
    found = proving.found(prove(*ends, salt=SALT))
    assert (found.rows, found.columns) == ({"odd": (0, 1, 1)}, {"odd": {"big"}})


def test_a_table_without_its_key_s_column_is_compared_by_all_the_others(ends: tuple[str, str]) -> None:
    execute(ends[1], "ALTER TABLE odd DROP COLUMN id")
    proof = prove(*ends, salt=SALT)
    content = next(each for each in proof.contents if each.table == "odd")
    assert (content.state, content.not_compared, content.rows_target) == ("ok", ("id",), 40)
    assert proof.status == 3
    execute(ends[1], "UPDATE odd SET big = 5 WHERE doc = '{}'")
    assert proving.found(prove(*ends, salt=SALT)).rows == {"odd": (1, 1, 0)}


SHOP = matrix.load(Path(__file__).parents[1] / "unit" / "shop.yaml")


def test_another_application_has_no_keys_but_is_compared(pair: Pair, clone: Clone) -> None:
    urls = clone(pair.old, "template0"), clone(pair.new, "template0")
    for url in urls:
        execute(url, (Path(__file__).parents[1] / "unit" / "shop.sql").read_text())
        execute(
            url,
            "INSERT INTO customers (id, name, country, photo, joined) OVERRIDING SYSTEM VALUE"
            " VALUES (1, 'Zoë', 'NL', '\\x00', '2026-03-29 01:30+00'); SELECT setval('customers_id_seq', 1)",
            "INSERT INTO products VALUES ('p', NULL, 'Tea', 0.10, '-0', '[1,5)', '{p,NULL}', '1 mon')",
            "INSERT INTO orders SELECT 'north', n, 1, 'open', '2026-01-01', true FROM generate_series(1, 50) n",
            "INSERT INTO order_lines SELECT region, number, 1, 'p', 1.50 FROM orders",
        )
    proof = prove(*urls, rules=SHOP)
    assert (proof.status, proof.keys, proving.found(proof)) == (0, None, NOTHING)
    plant(
        urls[1],
        "UPDATE order_lines SET quantity = 1.5 WHERE number = 7",
        "UPDATE orders SET state = 'sent' WHERE number = 8",
        "DELETE FROM order_lines WHERE number = 9",
        "UPDATE products SET weight = 0, lead = '30 days'",
        "UPDATE customers SET country = 'BE'",
    )
    proof = prove(*urls, rules=SHOP)
    assert proving.found(proof) == Found(
        rows={"order_lines": (1, 0, 1), "orders": (0, 0, 1), "products": (0, 0, 1), "customers": (0, 0, 1)},
        columns={
            "order_lines": {"quantity"},
            "orders": {"state"},
            "products": {"weight", "lead"},
            "customers": {"country"},
        },
    )
    lines = next(each.differences for each in proof.contents if each.table == "order_lines")
    assert {(each.kind, each.row) for each in lines} == {("differs", "north, 7, 1"), ("source-only", "north, 9, 1")}


# -- what is compared -----------------------------------------------------------------------------


def test_without_a_selection_it_is_that_of_the_last_run(ends: tuple[str, str]) -> None:
    events: list[object] = []
    proof = prove(*ends, None, salt=SALT, emit=events.append)
    run = ask(ends[1], "SELECT id FROM mishika_migrate.run ORDER BY 1 DESC LIMIT 1")
    assert (proof.status, proof.scope) == (0, f"as run {run} copied")
    assert {each.table for each in proof.contents} >= {"odd", "keyless", "MishikaLLM_SpendLogs"}
    assert len(events) == len(proof.contents)


def test_without_a_run_it_is_what_is_required_or_in_use(ends: tuple[str, str]) -> None:
    execute(ends[1], "DROP SCHEMA mishika_migrate CASCADE")
    proof = prove(*ends, None, salt=SALT)
    assert proof.status == 0
    assert "the target has no run in its ledger" in proof.scope
    tables = {proving.bare(each.table) for each in proof.contents}
    assert {"VerificationToken", "TeamTable", "ProxyModelTable"} <= tables
    assert not tables & {"SpendLogs", "odd", "CronJob"}


def test_a_part_of_history_is_compared_with_that_part(ends: tuple[str, str]) -> None:
    source, target = ends
    moment = ask(source, written('SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY "startTime") FROM $SpendLogs'))
    plant(target, f"""DELETE FROM $SpendLogs WHERE "startTime" < '{moment}'""")
    asked = selection.Wanted(groups=frozenset({"spendlogs"}))
    proof = prove(source, target, asked, salt=SALT, span=history.Span(since=moment))
    logs = next(each for each in proof.contents if each.table.endswith("SpendLogs"))
    assert (proof.status, logs.state) == (0, "ok")
    assert 200 < logs.rows_source == logs.rows_target < 400
    assert str(moment.date()) in logs.within
    older = proving.found(prove(source, target, asked, salt=SALT, span=history.Span(before=moment)))
    assert older.rows == {"SpendLogs": (600 - logs.rows_source, 0, 0)}


def test_a_database_is_not_compared_with_itself(ends: tuple[str, str]) -> None:
    with pytest.raises(errors.Refused, match="are the same database"):
        prove(ends[1], ends[1])


def test_a_schema_that_is_not_there_is_not_equal(ends: tuple[str, str]) -> None:
    with pytest.raises(errors.Refused, match="has no schema nowhere"):
        prove(ends[0], f"{ends[1]}&schema=nowhere")


# -- a side that cannot be read -------------------------------------------------------------------


def test_a_table_that_may_not_be_read_is_an_error(pair: Pair, ends: tuple[str, str]) -> None:
    name = role(pair.new)
    execute(ends[1], f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{name}"')
    execute(ends[1], f'REVOKE SELECT ON "MishikaLLM_SpendLogs" FROM "{name}"')
    with pytest.raises(errors.Denied, match="MishikaLLM_SpendLogs"):
        prove(ends[0], as_role(ends[1], name))


def test_rows_that_row_security_hides_are_an_error(pair: Pair, ends: tuple[str, str]) -> None:
    name = role(pair.new)
    execute(
        ends[1],
        f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{name}"',
        "ALTER TABLE keyless ENABLE ROW LEVEL SECURITY",
    )
    with pytest.raises(errors.ServerError) as caught:
        prove(ends[0], as_role(ends[1], name))
    assert caught.value.status == 6


def test_a_server_that_goes_away_is_an_error(pair: Pair, ends: tuple[str, str]) -> None:
    """At the first table: no other is waited for, and none is called equal."""

    def ending(event: object) -> None:
        ask(
            pair.new.url(),
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = %(name)s",
            {"name": verify.NAME},
        )

    with pytest.raises(errors.ServerError) as caught:
        prove(*ends, emit=ending, jobs=1)
    assert caught.value.status == 6
    name = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %(name)s"
    for server in (pair.old, pair.new):
        wait_until(lambda server=server: ask(server.url(), name, {"name": verify.NAME}) == 0)  # type: ignore[misc]
