"""A proof as JSON: one document, or one line a table, key and check. The contract is in docs/json.md.

Imports sentences and the words. Unlike the pages for people it holds everything that the proof has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Final

import mishika_migrate
from mishika_migrate import model
from mishika_migrate.report import sentences

FORMAT: Final = 1
"""Fields may be added to it; a field that is renamed, removed or means something else makes another one."""


def document(proof: model.Proof) -> dict[str, Any]:
    """All of it, of plain values that `json` takes."""
    keys = None
    if proof.keys is not None:
        keys = {
            **_keys(proof.keys),
            "verdicts": [_verdict(verdict) for verdict in proof.keys.verdicts],
            "samples": [_verdict(verdict) for verdict in proof.keys.samples],
        }
    return {
        "format": FORMAT,
        "tool": mishika_migrate.__version__,
        **_proof(proof),
        "tables": [_content(content) for content in proof.contents],
        "keys": keys,
        "checks": [_check(check, proof) for check in proof.checks],
    }


def lines(proof: model.Proof) -> Iterable[tuple[str, dict[str, Any]]]:
    """Names and fields for `jsonl.Lines.write`; the last one has the verdict."""
    for content in proof.contents:
        yield "content", _content(content)
    if proof.keys is not None:
        yield "keys", _keys(proof.keys)
        for sample, verdicts in ((False, proof.keys.verdicts), (True, proof.keys.samples)):
            for verdict in verdicts:
                yield "verdict", {**_verdict(verdict), "sample": sample}
    for check in proof.checks:
        yield "check", _check(check, proof)
    yield "proof", {"format": FORMAT, "tool": mishika_migrate.__version__, **_proof(proof)}


def _proof(proof: model.Proof) -> dict[str, Any]:
    return {
        "verdict": sentences.verdict(proof),
        "status": proof.status,
        "headline": sentences.headline(proof),
        "source": proof.source,
        "target": proof.target,
        "at": proof.at,
        "scope": proof.scope,
        "level": proof.level,
        "hash": proof.method,
        "blind": list(proof.blind),
        "sample": proof.sample,
        "snapshot": proof.snapshot,
        "unproven": [check.code for check in proof.unproven],
        "allowed": list(proof.allowed),
        "seconds": proof.seconds,
    }


def _content(content: model.Content) -> dict[str, Any]:
    return {
        "table": content.table,
        "state": content.state,
        "level": content.level,
        "rows_source": content.rows_source,
        "rows_target": content.rows_target,
        "source_only": content.source_only,
        "target_only": content.target_only,
        "differing": content.differing,
        "in_flight": content.in_flight,
        "existing": content.existing,
        "extra": content.extra,
        "differences": [
            {"row": each.row, "kind": each.kind, "columns": list(each.columns), "copies": each.copies}
            for each in content.differences
        ],
        "not_listed": content.capped,
        "not_compared": list(content.not_compared),
        "within": content.within,
        "sampled": content.sampled,
        "seconds": content.seconds,
    }


def _keys(keys: model.Keys) -> dict[str, Any]:
    codes = dict.fromkeys((*keys.weights, *keys.reasons))
    return {
        "state": keys.state,
        "headline": keys.headline,
        "total": keys.total,
        "outcomes": dict(keys.outcomes),
        "reasons": [
            {"code": code, "weight": sentences.weight(keys, code), "count": keys.reasons.get(code, 0)} for code in codes
        ],
        "not_listed": keys.capped,
        "notes": list(keys.notes),
        "in_flight": keys.in_flight,
        "sampled": keys.sampled,
        "seconds": keys.seconds,
    }


def _verdict(verdict: model.Verdict) -> dict[str, Any]:
    return {
        "key": verdict.key,
        "outcome": verdict.outcome,
        "reasons": [{**dataclasses.asdict(reason), "fields": list(reason.fields)} for reason in verdict.reasons],
    }


def _check(check: model.Check, proof: model.Proof) -> dict[str, Any]:
    return {
        "code": check.code,
        "title": check.title,
        "state": check.state,
        "allowed": check.code in proof.allowed,
        "looked": check.looked,
        "problems": list(check.problems),
        "notes": list(check.notes),
        "why_not": check.why_not,
    }
