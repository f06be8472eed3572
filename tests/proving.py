"""Proves two real servers as `verify` does, and tells what came of it in a form that can be written down."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import nacl.secret

from mishika_migrate import events, matrix, model
from mishika_migrate.operations import scopes
from mishika_migrate.operations.verifying import ciphers, continuity, verify
from mishika_migrate.pg import sides
from mishika_migrate.plan import history, selection
from tests import oddities
from tests.fix_faults import ask
from tests.fix_servers import Pair, endpoint
from tests.looking import ALL, RULES, carry_out, execute, see
from tests.oddities import Found


def prove(
    source: str,
    target: str,
    wanted: selection.Wanted | None = ALL,
    *,
    rules: matrix.Matrix = RULES,
    salt: str | None = None,
    span: history.Span | None = None,
    emit: Callable[[events.Event], None] = lambda event: None,
    checked: bool = True,
    **options: object,
) -> model.Proof:
    """With the checks that the program makes, unless `checked` says otherwise."""

    def checks(
        ours: model.Catalog, theirs: model.Catalog, scope: scopes.Scope, both: sides.Both
    ) -> Sequence[model.Check]:
        tables = [table for table in scope.tables if ours.table(table) and theirs.table(table)]
        return (
            *continuity.inspect(rules, ours, theirs, tables, both.sessions),
            ciphers.inspect(
                rules, theirs, both.sessions["target"], salt_key=salt, master_key=None, tables=tables
            ),
        )  # fmt: skip

    return verify.prove(
        rules,
        endpoint(source, "source"),
        endpoint(target, "target"),
        wanted,
        span=span,
        options=verify.Options(**options),  # type: ignore[arg-type]
        checks=checks if checked and options.get("level", "content") == "content" else lambda *_: (),
        emit=emit,
    )


def only(*tables: str) -> selection.Wanted:
    return selection.Wanted(only=tables)


NOTHING = Found()


def found(proof: model.Proof) -> Found:
    """Tables without the prefix that all of the proxy's have."""
    different = [each for each in proof.contents if each.state == "different"]
    for content in proof.contents:
        assert content.capped >= 0
        assert sum(each.copies for each in content.differences) + content.capped == content.different
    columns = {
        bare(content.table): set().union(*(each.columns for each in content.differences)) for content in different
    }
    return Found(
        rows={bare(each.table): (each.source_only, each.target_only, each.differing) for each in different},
        columns={table: names for table, names in columns.items() if names},
        keys=dict(proof.keys.reasons) if proof.keys else {},
        problems={check.code: len(check.problems) for check in proof.checks if check.problems},
    )


def bare(table: str) -> str:
    return table.removeprefix("MishikaLLM_")


SALT = "sk-salt-geheim-0123456789"

_ROWS = """
DELETE FROM $ProxyModelTable; DELETE FROM $CredentialsTable; DELETE FROM $Config;
UPDATE $SpendLogs SET spend = 0.1 WHERE request_id = (SELECT min(request_id) FROM $SpendLogs);
UPDATE $SpendLogs
SET messages = jsonb_build_array(jsonb_build_object('content', repeat('x', 500000) || 'y' || repeat('x', 500000)))
WHERE request_id = (SELECT max(request_id) FROM $SpendLogs);
INSERT INTO $ProxyModelTable (model_id, model_name, mishikallm_params, model_info, created_by, updated_by)
"""


@dataclass(frozen=True, kw_only=True)
class Templates:
    """A source that nobody changes, and the name of a template of its copy."""

    source: str
    copy: str


def templates(pair: Pair) -> Templates:
    """Template `filled` with the odd tables, something encrypted, 1 MB of JSON, and a copy of all that.

    Made once; it lasts as long as the servers.
    """
    made = Templates(source=pair.old.url("proven"), copy="proven")
    if ask(pair.new.url(), "SELECT count(*) FROM pg_database WHERE datname = 'proven'"):
        return made
    for server, origin in ((pair.old, "filled"), (pair.new, "bare")):
        execute(server.url(), f"CREATE DATABASE proven TEMPLATE {origin}")
        execute(server.url("proven"), oddities.TABLES)
    sealed = json.dumps({"model": _box("azure/gpt"), "api_key": _box("hunter2"), "rpm": 600})
    model_row = f"VALUES ('m1', 'gpt', '{sealed}', '{{}}', 'me', 'me')"
    execute(made.source, oddities.ROWS, oddities.HOSTILE, written(f"{_ROWS} {model_row}"))
    target = pair.new.url(made.copy)
    carry_out(see(made.source, target, everything=True), made.source, target)
    return made


def _box(text: str) -> str:
    """As the proxy encrypts with its salt key."""
    sealer = nacl.secret.SecretBox(hashlib.sha256(SALT.encode()).digest())
    return base64.b64encode(bytes(sealer.encrypt(text.encode()))).decode()


def plant(url: str, *statements: str) -> None:
    """As a faulty tool would leave it: foreign keys and triggers do not object."""
    execute(url, *(f"SET session_replication_role = replica; {written(each)}" for each in statements))


def written(text: str) -> str:
    """SQL with `$TeamTable` for "MishikaLLM_TeamTable"."""
    return re.sub(r"\$(\w+)", r'"MishikaLLM_\1"', text)
