"""A move by roles that are no superusers, between servers that ask for passwords, as in most places."""

from __future__ import annotations

import itertools
import tempfile
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mishika_migrate.sandbox import sample, schema, servers
from tests.fix_faults import ask, wait_until
from tests.fix_moves import NAMED
from tests.fix_program import Ended, Run
from tests.fix_servers import Pair, assert_equal, binaries

TOKENS = "MishikaLLM_VerificationToken"
SECRET = "S3cret/@ of {}"
SIDES = ("source", "target")
WRITE = f'UPDATE "{TOKENS}" SET spend = spend + 1'
_numbers = itertools.count(1)


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as session:
        for statement in statements:
            session.execute(statement.encode())


@pytest.fixture(scope="module")
def guarded() -> Iterator[Pair]:
    """Two servers on TCP that ask for passwords. Templates `filled` and `bare` belong to role `proxy`."""
    before, after = binaries("MISHIKA_TEST_OLD"), binaries("MISHIKA_TEST_NEW")
    if min(before.version, after.version) < 16:
        pytest.skip("only superusers may subscribe before 16")
    with tempfile.TemporaryDirectory(prefix="mm-") as folder, ExitStack() as stack:
        made = [
            stack.enter_context(servers.Server.create(Path(folder) / name, binaries=kind, tcp=True))
            for name, kind in (("old", before), ("new", after))
        ]
        for server, name in zip(made, ("filled", "bare"), strict=True):
            hba = server.directory / "pg_hba.conf"
            hba.write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n", encoding="utf-8")
            execute(
                server.url(),
                "SELECT pg_reload_conf()",
                f"CREATE ROLE proxy LOGIN PASSWORD '{SECRET.format('proxy')}'",
                f"CREATE DATABASE {name} OWNER proxy",
            )
            url = address(server, "proxy", name)
            wait_until(lambda url=url: ask(url, "SELECT true"))  # type: ignore[misc]
            schema.apply(url)
            if name == "filled":
                schema.create_views(url)
                sample.fill(url, keys=60, logs=60, usage=20)
        yield Pair(old=made[0], new=made[1])


def address(server: servers.Server, user: str, database: str) -> str:
    password = urllib.parse.quote(SECRET.format(user), safe="")
    return f"postgresql://{user}:{password}@127.0.0.1:{server.port}/{database}"


class Plain:
    """A database of `proxy` on either side, and a role that is a member of it and may follow, but is no superuser."""

    def __init__(self, pair: Pair, run: Run) -> None:
        number = next(_numbers)
        self.user, self.database = f"mover{number}", f"litellm{number}"
        self.servers = dict(zip(SIDES, (pair.old, pair.new), strict=True))
        self._run = run
        for server in self.servers.values():
            execute(
                server.url(),
                f"CREATE ROLE {self.user} LOGIN REPLICATION PASSWORD '{SECRET.format(self.user)}'",
                f"GRANT proxy, pg_create_subscription TO {self.user}",
            )

    def create(self, target: str = "bare", *, owner: str = "proxy") -> None:
        """The databases: the source has rows, the target is a clone of that template. Whose they are may create."""
        for side, template in zip(SIDES, ("filled", target), strict=True):
            execute(
                self.servers[side].url(),
                f"CREATE DATABASE {self.database} TEMPLATE {template} OWNER {owner}",
                f"GRANT CREATE ON DATABASE {self.database} TO {self.user}",
            )

    def url(self, side: str, user: str = "") -> str:
        return address(self.servers[side], user or self.user, self.database)

    def admin(self, side: str, *statements: str) -> None:
        execute(self.servers[side].url(self.database), *statements)

    def told(self, side: str, query: str) -> Any:
        return ask(self.servers[side].url(self.database), query)

    def __call__(self, *words: str, **more: Any) -> Ended:
        asks = words[0] in ("copy", "cutover", "rollback", "complete") and "--dry-run" not in words
        ends = ("--source", self.url("source"), "--target", self.url("target"))
        return self._run(*words, *ends, *(["--yes"] if asks else []), **more)

    def well(self, *words: str) -> None:
        done = self(*words)
        assert done.status == 0, done.err

    def findings(self, *words: str, status: int = 0, **more: Any) -> list[dict[str, Any]]:
        """What `plan` refuses or warns about."""
        done = self("plan", "--json", *words, **more)
        assert done.status == status, done.err
        (plan,) = (line for line in done.lines() if line["event"] == "plan")
        return [each for each in plan["findings"] if each["severity"] != "note"]

    def gates(self, *words: str, status: int = 0) -> list[dict[str, Any]]:
        """Those that are not met."""
        done = self("cutover", "--dry-run", "--json", *words)
        assert done.status == status, done.err
        (found,) = (line for line in done.lines() if line["event"] == "cutover")
        return [each for each in found["gates"] if not each["passed"]]

    def paste(self, found: list[dict[str, Any]]) -> None:
        """The fixes, each into a psql of the server that it names."""
        for fix in {line for each in found for line in each["fix"].splitlines()}:
            (side,) = (side for side in SIDES if f"-- on the {side}" in fix)
            self.admin(side, fix)

    def writable(self, side: str) -> bool:
        """Whether the proxy can write there."""
        try:
            execute(self.url(side, "proxy"), WRITE)
        except (psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.InsufficientPrivilege):
            return False
        return True


@pytest.fixture
def plain(guarded: Pair, run: Run) -> Plain:
    return Plain(guarded, run)


def test_plain_roles_go_there_and_back_and_leave_nothing(plain: Plain) -> None:
    plain.create()
    assert plain.findings("--follow") == []
    plain.well("copy", "--follow", "--everything", "--verify")
    assert plain.writable("source")

    # What the way back needs may be taken away after the copy.
    plain.admin("source", f"REVOKE pg_create_subscription FROM {plain.user}")
    plain.admin("target", f"ALTER ROLE {plain.user} NOREPLICATION")
    closed = plain.gates(status=7)
    assert [each["code"] for each in closed] == ["way-back", "way-back"]
    plain.paste(closed)

    plain.well("cutover", "--on-switch", "true")
    assert (plain.writable("source"), plain.writable("target")) == (False, True)
    plain.well("rollback", "--on-switch", "true")
    assert (plain.writable("source"), plain.writable("target")) == (True, False)
    plain.well("follow", "status")
    assert_equal(plain.url("source"), plain.url("target"), [TOKENS])
    plain.well("complete")
    assert [plain.told(side, NAMED) for side in SIDES] == ["", ""]


def test_every_privilege_that_lacks_is_told_at_once_and_can_be_pasted(plain: Plain, guarded: Pair) -> None:
    plain.create(owner="postgres")
    for side in SIDES:
        plain.admin(
            side,
            f"REVOKE CREATE ON DATABASE {plain.database} FROM {plain.user}",
            f"REVOKE pg_create_subscription, proxy FROM {plain.user}",
            f"ALTER ROLE {plain.user} NOREPLICATION",
            # Rows are applied as the owner: the rights of the role are not enough.
            f"GRANT proxy TO {plain.user} WITH INHERIT TRUE, SET FALSE",
        )
    found = plain.findings("--follow", status=4)
    assert {f"{each['severity']} {each['code']}" for each in found} == {
        "refuse privilege", "refuse no-replication", "refuse may-not-publish", "refuse may-not-subscribe",
        "refuse not-owner", "warn no-way-back",
    }  # fmt: skip
    assert [each["code"] for each in found].count("not-owner") == 1
    assert SECRET.format(plain.user) not in guarded.new.log.read_text(encoding="utf-8", errors="replace")
    plain.paste(found)
    assert plain.findings("--follow") == []


def test_row_stops_nothing_where_the_member_may_not_inherit_at_first(plain: Plain) -> None:
    plain.create()
    plain.admin("target", f"REVOKE proxy FROM {plain.user}", f"GRANT proxy TO {plain.user} WITH INHERIT FALSE")
    plain.admin("target", f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {plain.user}")
    found = [each for each in plain.findings("--follow", status=4) if each["code"] == "not-owner"]
    assert found[0]["fix"] == f'GRANT "proxy" TO "{plain.user}" WITH INHERIT TRUE, SET TRUE; -- on the target'
    plain.paste(found)
    assert plain.findings("--follow") == []


def test_password_must_be_in_the_address_and_asked_for(plain: Plain, tmp_path: Path) -> None:
    plain.create()
    bare = f"postgresql://{plain.user}@127.0.0.1:{plain.servers['source'].port}/{plain.database}"
    (found,) = plain.findings("--follow", "--source-from-target", bare, status=4)
    assert found["message"].endswith("cannot reach the source: password is required")
    assert found["fix"].startswith("name the source with its password in the address: --source-from-target URL;")
    wrong = bare.replace("@", ":wrong@", 1)
    (found,) = plain.findings("--follow", "--source-from-target", wrong, status=4)
    assert found["fix"] == "check user and password in the address: --source-from-target URL"


def test_created_tables_belong_to_whom_they_belong_on_the_source(plain: Plain) -> None:
    plain.create("template0")
    plain.well("copy", "--create-schema", "--follow")
    owners = "SELECT string_agg(DISTINCT pg_get_userbyid(relowner), ' ') FROM pg_class WHERE relnamespace = {}"
    assert plain.told("target", owners.format("'public'::regnamespace")) == "proxy"
    assert plain.gates() == []
    assert plain.writable("target")
    plain.well("complete")


def test_owner_that_is_shut_out_closes_the_gate_until_it_is_let_in(plain: Plain) -> None:
    plain.create("template0", owner="postgres")
    plain.admin(
        "target", f"REVOKE proxy FROM {plain.user}", f"GRANT CREATE ON SCHEMA public TO {plain.user} WITH GRANT OPTION"
    )
    (found,) = plain.findings("--create-schema", "--follow")
    assert (found["code"], found["severity"]) == ("table-owner", "warn")
    plain.well("copy", "--create-schema", "--follow")
    (gate,) = plain.gates(status=7)
    assert (gate["code"], gate["said"].startswith("proxy owns MishikaLLM_")) == ("owner", True)
    assert not plain.writable("target")
    done = plain("cutover", "--on-switch", "true")
    assert (done.status, plain.writable("source")) == (7, True)
    plain.paste([gate])
    assert plain.gates() == []
    plain.well("cutover", "--on-switch", "true")
    assert (plain.writable("source"), plain.writable("target")) == (False, True)
    plain.well("complete")


def test_owner_is_not_asked_after_where_the_new_side_has_another(plain: Plain) -> None:
    """Tables of a role that can log in were made for the application; one of the old name has nothing to do there."""
    plain.create()
    app = f"app_of_{plain.user}"
    plain.admin("target", f"CREATE ROLE {app} LOGIN", f"GRANT {app}, proxy TO {plain.user}")
    plain.admin("target", f"GRANT ALL ON SCHEMA public TO {app}")
    tables = plain.told("target", "SELECT json_agg(relname) FROM pg_class WHERE relkind = 'r' AND relname LIKE 'M%'")
    plain.admin("target", *(f'ALTER TABLE "{table}" OWNER TO {app}' for table in tables))
    plain.well("copy")
    assert not plain.writable("target")
    assert plain.gates("--method", "sync") == []


def test_limit_of_sessions_is_met_by_a_warning_first(plain: Plain) -> None:
    plain.create()
    plain.admin("source", f"ALTER ROLE {plain.user} CONNECTION LIMIT 5")
    plain.admin("target", f"ALTER DATABASE {plain.database} CONNECTION LIMIT 6")
    found = plain.findings("--follow")
    assert [each["code"] for each in found] == ["too-few-sessions", "too-few-sessions"]
    assert "takes 5 more (a limit of 5)" in found[0]["message"]
    plain.well("copy", "--jobs", "3", "--verify")
