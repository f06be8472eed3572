"""What `plan` notices between two real servers, and that the fix it prints mends it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from mishika_migrate import errors, model
from mishika_migrate.sandbox import schema, servers
from tests.fix_network import Proxy
from tests.fix_servers import Clone, Pair, assert_equal
from tests.looking import (
    BUDGET,
    TEAM,
    TOKEN,
    USER,
    as_role,
    carry_out,
    execute,
    found,
    mend,
    one,
    role,
    see,
    subjects,
)

# -- privileges -----------------------------------------------------------------------------------


def test_grants_of_the_findings_are_all_that_a_role_with_half_of_its_privileges_needs(
    pair: Pair, source_url: str, target_url: str
) -> None:
    reader, writer = role(pair.old), role(pair.new)
    execute(source_url, f'GRANT SELECT ON {TEAM}, {TOKEN} TO "{reader}"')
    execute(target_url, f'GRANT SELECT ON {TEAM} TO "{writer}"; GRANT INSERT ON {BUDGET} TO "{writer}"')
    ours, theirs = as_role(source_url, reader), as_role(target_url, writer)

    before = see(ours, theirs)
    assert {finding.code for finding in before.refused} == {"privilege"}
    messages = [finding.message for finding in before.refused]
    assert f"{reader} may not read MishikaLLM_UserTable on the source" in messages
    assert f"{reader} may not read sequence MishikaLLM_ModelTable_id_seq on the source" in messages
    assert f"{writer} lacks INSERT on MishikaLLM_TeamTable of the target" in messages
    assert f"{writer} lacks SELECT on MishikaLLM_BudgetTable of the target" in messages
    assert f"{writer} may not set sequence MishikaLLM_ModelTable_id_seq on the target" in messages
    assert f"{writer} may not create these views in schema public on the target" in messages
    assert any("may not create the ledger's schema" in message for message in messages)
    assert not [message for message in messages if message.startswith(f"{reader} may not read MishikaLLM_TeamTable")]

    mend(before, source_url, target_url, "privilege", "privilege-to-resume")
    after = see(ours, theirs)
    assert not after.refused
    assert not found(after, "privilege-to-resume")
    accounts = carry_out(after, ours, theirs)
    assert_equal(source_url, target_url, [account.table for account in accounts])


def test_role_without_any_privilege_gets_all_findings_and_no_error(
    pair: Pair, source_url: str, target_url: str
) -> None:
    reader, writer = role(pair.old), role(pair.new)
    for url in (source_url, target_url):
        execute(url, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
    ours, theirs = as_role(source_url, reader), as_role(target_url, writer)

    before = see(ours, theirs, everything=True)
    assert f"{reader} may not use schema public on the source" in [finding.message for finding in before.refused]
    assert f"{writer} may not use schema public on the target" in [finding.message for finding in before.refused]
    assert {finding.code for finding in before.refused} == {"privilege"}

    mend(before, source_url, target_url, "privilege", "migrations-unknown")
    after = see(ours, theirs, everything=True)
    assert not after.refused
    assert not found(after, "migrations-unknown")


def test_role_that_may_not_look_into_pg_locks_still_gets_a_plan(pair: Pair, source_url: str, target_url: str) -> None:
    execute(target_url, "REVOKE SELECT ON pg_locks FROM PUBLIC; REVOKE SELECT ON pg_stat_activity FROM PUBLIC")
    writer = role(pair.new)
    execute(target_url, f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{writer}"')
    plan = see(source_url, as_role(target_url, writer))
    assert {finding.code for finding in plan.refused} == {"privilege"}


def test_ledger_of_another_role_is_a_finding_whose_grant_opens_it(pair: Pair, source_url: str, target_url: str) -> None:
    carry_out(see(source_url, target_url), source_url, target_url)
    writer = role(pair.new)
    ours = as_role(target_url, writer)
    before = see(source_url, ours)
    ledger = next(finding for finding in before.refused if finding.subject == "mishika_migrate")
    assert writer in ledger.message
    execute(target_url, ledger.fix)
    assert "mishika_migrate" not in {finding.subject for finding in see(source_url, ours).findings}


# -- row security, triggers -----------------------------------------------------------------------


def test_row_security_on_either_side_is_refused_until_the_role_may_bypass_it(
    pair: Pair, source_url: str, target_url: str
) -> None:
    reader, writer = role(pair.old), role(pair.new, options="CREATEROLE")
    for url, name in ((source_url, reader), (target_url, writer)):
        execute(
            url,
            f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{name}"; GRANT CREATE ON SCHEMA public TO "{name}"',
            f'GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO "{name}"',
            f"ALTER TABLE {TEAM} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON {TEAM} USING (team_id < 'm')",
        )
    execute(target_url, f'GRANT CREATE ON DATABASE {urlsplit(target_url).path[1:]} TO "{writer}"')
    ours, theirs = as_role(source_url, reader), as_role(target_url, writer)

    before = see(ours, theirs)
    assert [finding.code for finding in before.refused] == ["row-security", "row-security"]
    assert f"row security on MishikaLLM_TeamTable of the source hides rows from {reader}" in before.refused[0].message
    assert "of the target" in before.refused[1].message
    mend(before, source_url, target_url, "row-security")
    assert not see(ours, theirs).refused


def test_forced_row_security_names_the_statement_that_frees_the_owner(
    pair: Pair, source_url: str, target_url: str
) -> None:
    owner = role(pair.old)
    execute(
        source_url,
        f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{owner}"; ALTER TABLE {TEAM} OWNER TO "{owner}"',
        f"ALTER TABLE {TEAM} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    )
    finding = one(see(as_role(source_url, owner), target_url), "row-security")
    execute(source_url, finding.fix.partition(", or ")[2])
    assert not found(see(as_role(source_url, owner), target_url), "row-security")


def test_triggers_that_fire_are_findings_and_disabled_ones_are_not(source_url: str, target_url: str) -> None:
    execute(
        target_url,
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        f"CREATE TRIGGER before_row BEFORE INSERT ON {TEAM} FOR EACH ROW EXECUTE FUNCTION f()",
        f"CREATE TRIGGER always BEFORE INSERT ON {USER} FOR EACH ROW EXECUTE FUNCTION f()",
        f"ALTER TABLE {USER} ENABLE ALWAYS TRIGGER always",
        f'CREATE TRIGGER "after ""row""" AFTER INSERT ON {BUDGET} FOR EACH ROW EXECUTE FUNCTION f()',
        f"CREATE TRIGGER statement BEFORE INSERT ON {BUDGET} FOR EACH STATEMENT EXECUTE FUNCTION f()",
        f"CREATE TRIGGER off BEFORE INSERT ON {TOKEN} FOR EACH ROW EXECUTE FUNCTION f()",
        f"ALTER TABLE {TOKEN} DISABLE TRIGGER off",
        f"CREATE TRIGGER replica BEFORE INSERT ON {TOKEN} FOR EACH ROW EXECUTE FUNCTION f()",
        f"ALTER TABLE {TOKEN} ENABLE REPLICA TRIGGER replica",
        f"CREATE TRIGGER other BEFORE DELETE ON {TOKEN} FOR EACH ROW EXECUTE FUNCTION f()",
    )
    before = see(source_url, target_url)
    refused = {finding.message.partition(" on ")[0] for finding in found(before, "trigger", "refuse")}
    assert refused == {"trigger before_row", "trigger always", 'trigger after "row"', "trigger statement"}
    assert "ENABLE ALWAYS TRIGGER" in next(f.fix for f in found(before, "trigger") if "always" in f.message)
    mend(before, source_url, target_url, "trigger")
    after = see(source_url, target_url)
    assert not found(after, "trigger")
    carry_out(after, source_url, target_url)
    assert_equal(source_url, target_url, [chosen.table for chosen in after.chosen])


# -- drift ----------------------------------------------------------------------------------------


def test_column_drift_in_every_direction_is_found_and_mended_by_its_own_fixes(source_url: str, target_url: str) -> None:
    execute(
        source_url,
        "CREATE TYPE mood AS ENUM ('fine', 'it''s bad', 'worse'); CREATE TYPE \"Tone\" AS ENUM ('a', 'b')",
        "CREATE TYPE only_here AS ENUM ('x')",
        f"ALTER TABLE {TEAM} ADD lost text, ADD sole only_here[], ADD mood mood DEFAULT 'worse', ADD moods mood[],"
        ' ADD tone "Tone"',
        f"ALTER TABLE {USER} ADD exact numeric(12,4), ADD exacts numeric(12,4)[], ADD wide varchar(9), ADD tall int4",
        f"ALTER TABLE {USER} ADD odd text, ADD grew numeric(8,2), ADD named mood, ADD calc int4, ADD never_null text",
    )
    execute(
        target_url,
        "CREATE TYPE mood AS ENUM ('fine'); CREATE TYPE \"Tone\" AS ENUM ('a')",
        f'ALTER TABLE {TEAM} ADD mood mood, ADD moods mood[]; CREATE TABLE tones (tone "Tone")',
        f"ALTER TABLE {USER} ADD exact numeric(12,2), ADD exacts numeric(12,2)[], ADD wide varchar(5), ADD tall int8",
        f"ALTER TABLE {USER} ADD odd uuid, ADD grew numeric(12,3), ADD named text",
        f"ALTER TABLE {USER} ADD calc int4 GENERATED ALWAYS AS (1) STORED, ADD never_null text NOT NULL",
        f"ALTER TABLE {BUDGET} ADD fresh text NOT NULL, ADD kept text NOT NULL DEFAULT 'x', ADD free text,"
        " ADD number int4 GENERATED ALWAYS AS IDENTITY, ADD twice int4 GENERATED ALWAYS AS (2) STORED",
    )
    before = see(source_url, target_url)
    team, user, budget = "MishikaLLM_TeamTable", "MishikaLLM_UserTable", "MishikaLLM_BudgetTable"
    assert subjects(before, "column-missing") == {f"{team}.lost", f"{team}.tone", f"{team}.sole"}
    assert subjects(before, "enum-labels") == {f"{team}.mood", f"{team}.moods"}
    assert subjects(before, "column-generated") == {f"{user}.calc"}
    assert subjects(before, "column-not-null") == {f"{user}.never_null"}
    assert subjects(before, "column-without-default") == {f"{budget}.fresh"}
    assert subjects(before, "column-new") == {f"{budget}.{name}" for name in ("kept", "free", "number", "twice")}
    assert subjects(before, "sequence-new") == {f"{budget}.number"}
    types = {finding.subject.partition(".")[2]: finding.severity for finding in found(before, "column-type")}
    assert types == {
        "exact": "refuse",
        "exacts": "refuse",
        "odd": "refuse",
        "wide": "refuse",
        "tall": "note",
        "grew": "note",
        "named": "note",
    }

    execute(target_url, f"ALTER TABLE {USER} DROP odd, ADD odd text")
    refusals = ("column-missing", "column-without-default", "enum-labels", "column-type", "column-not-null")
    for _ in range(2):  # an added column may be of a type that lacks labels too
        fixes = [finding.fix for finding in see(source_url, target_url).findings if finding.code in refusals]
        execute(target_url, *(fix for fix in fixes if fix.startswith(("ALTER", "CREATE"))))
    after = see(source_url, target_url)
    assert not after.refused
    accounts = carry_out(after, source_url, target_url)
    assert all(account.balanced for account in accounts)


def test_columns_of_another_type_arrive_as_text(source_url: str, target_url: str) -> None:
    execute(source_url, f"ALTER TABLE {USER} ADD tall int4 DEFAULT 7, ADD mood varchar(9) DEFAULT 'fine'")
    execute(target_url, f"ALTER TABLE {USER} ADD tall int8, ADD mood varchar(10)")
    plan = see(source_url, target_url)
    step = next(s for s in plan.steps if isinstance(s, model.CopyTable) and s.target.name == "MishikaLLM_UserTable")
    assert not step.binary
    carry_out(plan, source_url, target_url)
    assert_equal(source_url, target_url, ["MishikaLLM_UserTable"])


def test_keys_that_only_the_target_has_are_warnings(source_url: str, target_url: str) -> None:
    execute(
        target_url,
        f"CREATE UNIQUE INDEX one_alias ON {TOKEN} (key_alias)",
        f"CREATE UNIQUE INDEX implied ON {TOKEN} (token, key_alias)",
        f"ALTER TABLE {TOKEN} ADD CONSTRAINT strict FOREIGN KEY (team_id) REFERENCES {TEAM}",
    )
    plan = see(source_url, target_url)
    assert subjects(plan, "unique-new") == {"MishikaLLM_VerificationToken.key_alias"}
    assert subjects(plan, "foreign-key-new") == {"MishikaLLM_VerificationToken.team_id"}
    execute(target_url, one(plan, "foreign-key-new").fix)
    assert not found(see(source_url, target_url), "foreign-key-new")


def test_missing_sequence_is_made_by_its_fix(source_url: str, target_url: str) -> None:
    execute(target_url, 'DROP SEQUENCE "MishikaLLM_ModelTable_id_seq" CASCADE')
    before = see(source_url, target_url)
    assert one(before, "sequence-missing").subject == "MishikaLLM_ModelTable.id"
    mend(before, source_url, target_url, "sequence-missing")
    after = see(source_url, target_url)
    assert not after.refused
    assert "sequence public.MishikaLLM_ModelTable_id_seq" in {step.id for step in after.steps}


def test_migrations_that_differ_are_named(source_url: str, target_url: str) -> None:
    with psycopg.connect(target_url) as session:
        names = [str(row[0]) for row in session.execute("SELECT migration_name FROM _prisma_migrations ORDER BY 1")]
    execute(
        target_url,
        f"DELETE FROM _prisma_migrations WHERE migration_name = '{names[0]}'",
        f"UPDATE _prisma_migrations SET checksum = 'other' WHERE migration_name = '{names[1]}'",
        f"UPDATE _prisma_migrations SET finished_at = NULL WHERE migration_name = '{names[2]}'",
        "INSERT INTO _prisma_migrations (id, checksum, migration_name, finished_at) VALUES ('1', '1', 'later', now())",
        "INSERT INTO _prisma_migrations (id, checksum, migration_name, rolled_back_at)"
        " VALUES ('2', '1', 'rolled back', now())",
    )
    plan = see(source_url, target_url)
    assert names[0] in one(plan, "migrations-behind").message
    assert names[1] in one(plan, "migrations-differ").message
    assert names[2] in one(plan, "migrations-failed").message
    assert "later" in one(plan, "migrations-ahead").message
    assert "rolled back" not in " ".join(finding.message for finding in plan.findings)

    execute(target_url, "DROP TABLE _prisma_migrations")
    assert one(see(source_url, target_url), "migrations-unknown").severity == "note"
    execute(target_url, "CREATE TABLE _prisma_migrations (version int)")
    assert one(see(source_url, target_url), "migrations-unknown").severity == "note"


# -- which tables ---------------------------------------------------------------------------------


def test_unknown_tables_are_named_and_can_be_asked_for(source_url: str, target_url: str) -> None:
    make = 'CREATE TABLE "my 100% ""table"" ☃ {0}" (id int PRIMARY KEY, "col %s" text)'
    execute(source_url, make, 'INSERT INTO "my 100% ""table"" ☃ {0}" VALUES (1, \'a\')', "CREATE TABLE void (a int)")
    execute(target_url, make)
    name = 'my 100% "table" ☃ {0}'
    plan = see(source_url, target_url)
    assert one(plan, "unknown-table").subject == name  # the empty one loses nothing
    assert {left.table for left in plan.left if not left.known} == {name, "void"}
    chosen = see(source_url, target_url, include=(name,))
    assert not chosen.refused
    carry_out(chosen, source_url, target_url)
    assert_equal(source_url, target_url, [name])


def test_excluded_unknown_table_stays_even_with_everything(source_url: str, target_url: str) -> None:
    execute(source_url, "CREATE TABLE extra AS SELECT 1 AS a")
    plan = see(source_url, target_url, everything=True, exclude=("extra",))
    assert next(left for left in plan.left if left.table == "extra").reason == "excluded"
    assert not plan.refused


def test_excluded_table_that_is_referenced_is_refused_with_both_ways_out(source_url: str, target_url: str) -> None:
    plan = see(source_url, target_url, exclude=("BudgetTable",))
    findings = found(plan, "excluded-but-referenced")
    assert {finding.subject for finding in findings} == {"MishikaLLM_BudgetTable"}
    assert any("--exclude MishikaLLM_VerificationToken" in finding.fix for finding in findings)
    assert found(plan, "required-excluded")


def test_extension_brings_its_own_tables_and_views(source_url: str, target_url: str) -> None:
    execute(
        source_url,
        "CREATE TABLE its_table AS SELECT 1 AS a; CREATE VIEW its_view AS SELECT 1 AS a",
        "ALTER EXTENSION plpgsql ADD TABLE its_table; ALTER EXTENSION plpgsql ADD VIEW its_view",
    )
    plan = see(source_url, target_url, everything=True)
    assert "its_" not in plan_text(plan)


def plan_text(plan: model.Plan) -> str:
    return repr(plan)


# -- what the rows say ----------------------------------------------------------------------------


def test_soft_references_that_dangle_are_counted_and_exempt_ones_are_not(source_url: str, target_url: str) -> None:
    execute(
        source_url,
        f"UPDATE {TOKEN} SET team_id = NULL, user_id = NULL; UPDATE {TEAM} SET admins = '{{}}', members = '{{}}'",
        f"UPDATE {TOKEN} SET team_id = 'gone', user_id = '' WHERE token = (SELECT min(token) FROM {TOKEN})",
        f"UPDATE {TOKEN} SET team_id = 'mishikallm-dashboard', user_id = 'default_user_id'"
        f" WHERE token = (SELECT max(token) FROM {TOKEN})",
        f"UPDATE {TEAM} SET members = ARRAY['nobody', NULL, 'ghost', 'default_user_id', (SELECT min(user_id) FROM"
        f" {USER})] WHERE team_id = (SELECT min(team_id) FROM {TEAM})",
        f"DELETE FROM {TEAM.replace('TeamTable', 'TeamMembership')}",
    )
    plan = see(source_url, target_url)
    counts = {f.subject: f.message.split()[0] for f in found(plan, "dangling-reference")}
    assert counts["MishikaLLM_VerificationToken.team_id"] == "1"
    assert counts["MishikaLLM_TeamTable.members"] == "2"
    assert "MishikaLLM_VerificationToken.user_id" not in counts
    assert "MishikaLLM_TeamTable.admins" not in counts


def test_soft_references_to_a_table_left_behind_are_warned_about_with_its_flag(
    source_url: str, target_url: str
) -> None:
    plan = see(source_url, target_url, exclude=("CredentialsTable",))
    finding = one(plan, "reference-left-behind")
    assert finding.subject == "MishikaLLM_ManagedVectorStoresTable.mishikallm_credential_name"
    assert finding.fix == "--include MishikaLLM_CredentialsTable"


def test_references_into_an_empty_table_dangle_on_the_source_and_are_not_left_behind(
    source_url: str, target_url: str
) -> None:
    execute(source_url, 'DELETE FROM "MishikaLLM_CredentialsTable"')
    plan = see(source_url, target_url, exclude=("CredentialsTable", "ProxyModelTable"))
    assert not found(plan, "reference-left-behind")
    assert "MishikaLLM_ManagedVectorStoresTable.mishikallm_credential_name" in subjects(plan, "dangling-reference")


def test_keys_that_cannot_be_parsed_are_named_without_their_token(source_url: str, target_url: str) -> None:
    with psycopg.connect(source_url, autocommit=True) as session:
        tokens = [str(row[0]) for row in session.execute(f"SELECT token FROM {TOKEN} ORDER BY 1 LIMIT 4".encode())]
        nameless, double, listed, aliased = tokens
        change = f"UPDATE {TOKEN} SET {{}}, key_alias = %s, key_name = %s WHERE token = %s"
        for what, alias, name, token in (
            ("models = NULL", None, None, nameless),
            ("metadata = '\"{}\"'", "an alias\twith\x1b[31m", "sk-...1234", double),
            ("config = '[]'", listed, "sk-abcdefghijklmnopqrstuvwxyz", listed),
            ("permissions = 'null'", None, "sk-...9876", aliased),
        ):
            session.execute(change.format(what).encode(), [alias, name, token])
    plan = see(source_url, target_url)
    said = {finding.subject.partition(".")[2]: finding.message for finding in found(plan, "unparseable")}
    assert said["models"].endswith(
        f"is NULL in 1 row, which the application rejects on both servers: {nameless[:8]}..."
    )
    assert said["metadata"].endswith(f": an alias·with·[31m sk-...1234 {double[:8]}...")
    assert said["config"].endswith(f": {listed[:8]}… sk-abcd… {listed[:8]}...")
    assert said["permissions"].endswith(f": sk-...9876 {aliased[:8]}...")
    assert not [token for token in tokens if token in plan_text(plan)]


def test_json_that_has_no_jsonb_form_and_bytes_that_are_no_text_do_not_stop_the_plan(
    pair: Pair, clone: Clone, target_url: str
) -> None:
    source = clone(pair.old, "template0")
    name = urlsplit(source).path[1:]
    execute(pair.old.url(), f"DROP DATABASE {name}")
    execute(pair.old.url(), f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0")
    schema.apply(source)
    execute(
        source,
        f"ALTER TABLE {TOKEN} ALTER metadata DROP DEFAULT, ALTER metadata TYPE json USING metadata::json",
        f"INSERT INTO {TOKEN} (token, key_alias, metadata, config) VALUES"
        " ('t', convert_from('\\xff41', 'SQL_ASCII'), '{\"a\": \"\\u0000\"}', '[]')",
    )
    plan = see(source, target_url)
    assert "�A" in next(f.message for f in found(plan, "unparseable") if f.subject.endswith(".config"))
    assert one(plan, "encoding").severity == "warn"


# -- servers --------------------------------------------------------------------------------------


def test_same_database_is_found_through_another_address(
    pair: Pair, source_url: str, proxy: Callable[[servers.Server], Proxy]
) -> None:
    for other in (source_url, proxy(pair.old).url(source_url)):
        plan = see(source_url, other)
        assert "are the same database" in one(plan, "same-database").message
        assert one(plan, "same-database").severity == "refuse"


def test_two_databases_of_one_server_are_not_the_same(pair: Pair, clone: Clone, source_url: str) -> None:
    plan = see(source_url, clone(pair.old, "bare"))
    assert not found(plan, "same-database")
    assert not plan.refused


@pytest.mark.parametrize(
    ("ours", "theirs", "severity"),
    [
        ("UTF8", "LATIN1", "refuse"),
        ("UTF8", "SQL_ASCII", "refuse"),
        ("LATIN1", "UTF8", "note"),
        ("LATIN1", "LATIN1", None),
        ("SQL_ASCII", "UTF8", "warn"),
    ],
)
def test_encodings_that_lose_text_are_refused_and_the_fix_makes_a_database_that_does_not(
    pair: Pair, clone: Clone, ours: str, theirs: str, severity: str | None
) -> None:
    source, target = clone(pair.old, "template0"), clone(pair.new, "template0")
    for server, url, encoding in ((pair.old, source, ours), (pair.new, target, theirs)):
        name = urlsplit(url).path[1:]
        execute(server.url(), f"DROP DATABASE {name}")
        execute(server.url(), f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0")
    plan = see(source, target)
    assert [finding.severity for finding in found(plan, "encoding")] == ([severity] if severity else [])
    if severity == "refuse":
        execute(target, one(plan, "encoding").fix)
        better = target.replace(urlsplit(target).path, f"{urlsplit(target).path}_utf8")
        assert not found(see(source, better), "encoding")
        execute(target, f"DROP DATABASE {urlsplit(better).path[1:]}")


def test_standby_as_target_is_refused(pair: Pair, source_url: str, tmp_path: Path) -> None:
    short = Path(f"/tmp/mm{os.getpid()}")
    with servers.Server.create(short, binaries=servers.embedded()) as server:
        execute(server.url(), "CREATE DATABASE bare")
    (short / "standby.signal").touch()
    short.chmod(0o700)
    with servers.Server.open(short, binaries=servers.embedded()) as standby:
        finding = one(see(source_url, standby.url("bare")), "read-only")
        assert "is a standby" in finding.message


def test_empty_source_is_a_warning(pair: Pair, clone: Clone, target_url: str) -> None:
    plan = see(clone(pair.old, "bare"), target_url)
    assert one(plan, "source-empty").severity == "warn"
    assert not plan.refused


def test_wrong_database_and_wrong_schema_and_another_brand_are_told_apart(
    pair: Pair, clone: Clone, source_url: str, target_url: str
) -> None:
    empty = clone(pair.old, "template0")
    assert one(see(empty, target_url), "not-on-source").fix == "check database and schema in --source"

    execute(empty, 'CREATE TABLE "LiteLLM_TeamTable" (a int); CREATE TABLE "LiteLLM_UserTable" (a int)')
    other = one(see(empty, target_url), "not-on-source")
    assert "LiteLLM_TeamTable, LiteLLM_UserTable" in other.message
    assert "--matrix" in other.fix

    lost = see(f"{source_url}&schema=nowhere", target_url)
    assert {finding.code for finding in lost.refused} == {"schema-missing", "not-on-source"}
    assert "?schema=public" in one(lost, "not-on-source").fix

    astray = see(source_url, f"{target_url}&schema=nowhere")
    assert [finding.code for finding in astray.refused] == ["schema-missing"]
    execute(target_url, astray.refused[0].fix)
    astray = see(source_url, f"{target_url}&schema=nowhere")
    assert [finding.code for finding in astray.refused] == ["table-missing"]
    assert "?schema=public" in astray.refused[0].fix


def test_target_without_tables_is_one_finding_and_with_some_one_each(
    pair: Pair, clone: Clone, source_url: str, target_url: str
) -> None:
    bare = see(source_url, clone(pair.new, "template0"))
    assert "none of the 16 tables" in one(bare, "table-missing").message
    execute(target_url, f"DROP TABLE {USER}, {TEAM} CASCADE")
    some = see(source_url, target_url)
    assert subjects(some, "table-missing") == {"MishikaLLM_UserTable", "MishikaLLM_TeamTable"}


def test_rows_on_the_target_are_refused_until_the_tables_are_emptied(source_url: str, target_url: str) -> None:
    plan = see(source_url, target_url)
    carry_out(plan, source_url, target_url)
    before = see(source_url, target_url)
    filled = {finding.subject for finding in found(before, "target-has-rows", "refuse")}
    assert filled == {chosen.table for chosen in plan.chosen if chosen.rows}
    mend(before, source_url, target_url, "target-has-rows")
    assert not see(source_url, target_url).refused


def test_findings_come_all_at_once_with_the_worst_first(source_url: str, target_url: str) -> None:
    execute(target_url, f"ALTER TABLE {TEAM} DROP metadata; DROP TABLE {TOKEN}")
    execute(source_url, f"UPDATE {TOKEN} SET models = NULL")
    plan = see(source_url, target_url)
    ranks = [("refuse", "warn", "note").index(finding.severity) for finding in plan.findings]
    assert ranks == sorted(ranks)
    codes = {finding.code for finding in plan.findings}
    assert {"column-missing", "table-missing", "unparseable", "left-behind"} <= codes


# -- views ----------------------------------------------------------------------------------------


def test_views_are_created_unless_something_they_need_is_not_there(source_url: str, target_url: str) -> None:
    execute(
        source_url,
        "CREATE FUNCTION f(text) RETURNS text LANGUAGE sql AS 'SELECT $1'; CREATE SCHEMA other",
        "CREATE TABLE other.t AS SELECT 1 AS a; CREATE TABLE unknown AS SELECT 1 AS a",
        f"CREATE VIEW fine AS SELECT team_id FROM {TEAM}; CREATE VIEW second AS SELECT * FROM fine",
        f"CREATE VIEW calls AS SELECT f(team_id) AS a FROM {TEAM}; CREATE VIEW beyond AS SELECT * FROM other.t",
        "CREATE VIEW without AS SELECT * FROM unknown; CREATE VIEW with_it AS SELECT * FROM without",
        f'CREATE VIEW lacking AS SELECT team_alias FROM "MishikaLLM_SpendLogs", {TEAM} WHERE "cache_key" IS NULL',
        "CREATE VIEW taken AS SELECT 1 AS a",
        "CREATE VIEW round AS SELECT 1 AS a; CREATE VIEW about AS SELECT * FROM round",
        "CREATE OR REPLACE VIEW round AS SELECT * FROM about",
    )
    execute(target_url, "CREATE TABLE taken (a int)", 'ALTER TABLE "MishikaLLM_SpendLogs" DROP cache_key CASCADE')
    plan = see(source_url, target_url)
    created = [step.target.name for step in plan.steps if isinstance(step, model.CreateView)]
    assert {"fine", "second"} <= set(created)
    assert created.index("fine") < created.index("second")
    reasons = {f.subject: f.message.partition("it needs ")[2] for f in found(plan, "view-not-creatable")}
    assert set(reasons) == {"calls", "beyond", "without", "with_it", "lacking", "taken", "round", "about"}
    assert reasons["calls"].startswith("function f(text)")
    assert reasons["beyond"].startswith("other.t")
    assert reasons["lacking"].startswith("MishikaLLM_SpendLogs.cache_key")
    assert not plan.refused
    carry_out(plan, source_url, target_url)


# -- schemas of other names -----------------------------------------------------------------------


def test_schemas_of_different_names_copy_with_views_sequences_and_enums(source_url: str, target_url: str) -> None:
    execute(source_url, 'ALTER SCHEMA public RENAME TO "Old proxy"')
    execute(target_url, 'ALTER SCHEMA public RENAME TO "new"')
    source, target = f"{source_url}&schema=Old%20proxy", f"{target_url}&schema=new"
    plan = see(source, target, everything=True)
    assert not plan.refused
    assert all(step.binary for step in plan.steps if isinstance(step, model.CopyTable))
    carry_out(plan, source, target)
    execute(source_url, 'ALTER SCHEMA "Old proxy" RENAME TO public')
    execute(target_url, 'ALTER SCHEMA "new" RENAME TO public')
    assert_equal(source_url, target_url, [chosen.table for chosen in plan.chosen])
    with psycopg.connect(source_url) as ours, psycopg.connect(target_url) as theirs:
        for query in (
            "SELECT table_name, column_name, data_type FROM information_schema.columns"
            " WHERE table_schema = 'public' ORDER BY 1, 2",
            'SELECT last_value, is_called FROM "MishikaLLM_ModelTable_id_seq"',
        ):
            assert ours.execute(query).fetchall() == theirs.execute(query).fetchall()


# -- a pooler in between --------------------------------------------------------------------------


@pytest.fixture
def pooler(pair: Pair) -> Iterator[Callable[[str], str]]:
    """A transaction pooler with one backend: whoever sends a query gets it until the server is idle again."""
    made: list[_Pooler] = []

    def make(url: str) -> str:
        made.append(_Pooler(pair.new.socket, urlsplit(url).path[1:]))
        return f"postgresql://postgres@127.0.0.1:{made[-1].port}{urlsplit(url).path}?sslmode=disable"

    yield make
    for each in made:
        each.close()


class _Pooler:
    def __init__(self, to: Path, database: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(str(to))
        words = b"user\0postgres\0database\0" + database.encode() + b"\0client_encoding\0UTF8\0\0"
        self._server.sendall((len(words) + 8).to_bytes(4, "big") + (196608).to_bytes(4, "big") + words)
        self._greeting = self._answer()
        self._turn = threading.Lock()
        self._clients: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in (self._listener, self._server, *self._clients):
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._clients.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            size = int.from_bytes(_exactly(client, 4), "big")
            _exactly(client, size - 4)
            client.sendall(self._greeting)
            while True:
                asked = [_message(client)]
                with self._turn:
                    while True:
                        while asked[-1][:1] not in b"QSX":
                            asked.append(_message(client))
                        if asked[-1][:1] == b"X":
                            return
                        self._server.sendall(b"".join(asked))
                        answer = self._answer()
                        client.sendall(answer)
                        if answer[-1:] == b"I":
                            break
                        asked = [_message(client)]
        except (OSError, EOFError):
            pass  # one of the ends has gone

    def _answer(self) -> bytes:
        answer = b""
        while True:
            message = _message(self._server)
            answer += message
            if message[:1] == b"Z":
                return answer


def _message(end: socket.socket) -> bytes:
    head = _exactly(end, 5)
    return head + _exactly(end, int.from_bytes(head[1:], "big") - 4)


def _exactly(end: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        block = end.recv(size - len(got))
        if not block:
            raise EOFError
        got += block
    return got


def test_transaction_pooler_in_between_is_refused(
    source_url: str, target_url: str, pooler: Callable[[str], str]
) -> None:
    plan = see(source_url, pooler(target_url))
    assert "is behind a transaction pooler" in one(plan, "transaction-pooler").message
    assert not found(see(source_url, target_url), "transaction-pooler")


def test_plan_that_has_grown_old_is_refused_where_rows_would_come_twice(source_url: str, target_url: str) -> None:
    """As when somebody answers the question of one run after another one has ended."""
    old = see(source_url, target_url)
    carry_out(old, source_url, target_url)
    with pytest.raises(errors.Refused, match="has rows by now, which it had not when the plan was made"):
        carry_out(old, source_url, target_url)
    assert_equal(source_url, target_url, ["MishikaLLM_VerificationToken"])
