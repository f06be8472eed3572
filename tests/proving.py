"""Proves two real servers as `verify` does, and tells what came of it in a form that can be written down."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from mishika_migrate import events, history, matrix, model, selection
from mishika_migrate.operations import ciphers, continuity, verify
from mishika_migrate.pg import sides
from tests import oddities
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
        ours: model.Catalog, theirs: model.Catalog, scope: verify.Scope, both: sides.Both
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


@dataclass(frozen=True, kw_only=True)
class Templates:
    """The source itself, and the name of a template of its copy; both are on their servers."""

    source: str
    copy: str


@contextmanager
def templates(pair: Pair, name: str, *rows: str) -> Iterator[Templates]:
    """Template `filled` with the odd tables, these rows added, and a copy of all that."""
    with ExitStack() as stack:
        for server, origin in ((pair.old, "filled"), (pair.new, "bare")):
            execute(server.url(), f"CREATE DATABASE {name} TEMPLATE {origin}")
            stack.callback(execute, server.url(), f"DROP DATABASE {name} WITH (FORCE)")
            execute(server.url(name), oddities.TABLES)
        source, target = pair.old.url(name), pair.new.url(name)
        execute(source, *map(written, rows))
        carry_out(see(source, target, everything=True), source, target)
        yield Templates(source=source, copy=name)


def plant(url: str, *statements: str) -> None:
    """As a faulty tool would leave it: foreign keys and triggers do not object."""
    execute(url, *(f"SET session_replication_role = replica; {written(each)}" for each in statements))


def written(text: str) -> str:
    """SQL with `$TeamTable` for "MishikaLLM_TeamTable"."""
    return re.sub(r"\$(\w+)", r'"MishikaLLM_\1"', text)
