"""What becomes of a key on the target: from what counts on both sides to reasons and an outcome. Pure.

Imports the words. Rows that are missing make the proxy fail open (MishikaLLM 1.68
proxy/utils.py get_data): no team row means no block, no budget and all models. So what matters is not
whether rows are there, but whether the decision is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mishika_migrate import model, words

_OUTCOMES: Mapping[str, model.Outcome] = {"missing": "lost", "unparseable": "lost", "extra": "revived"}


def judge(
    ring: model.Keyring, ours: model.Decision | None, theirs: model.Decision | None, *, fenced: bool
) -> model.Verdict:
    """The verdict about one key of which at least one side knows. `fenced`: the source does not move."""
    one = ours or theirs
    assert one is not None
    reasons = tuple(_reasons(ring, ours, theirs, fenced))
    return model.Verdict(key=shown(one), outcome=_outcome(ring, reasons, theirs), reasons=reasons)


def weights(ring: model.Keyring, *, fenced: bool) -> dict[str, model.Weight]:
    """Every reason that `judge` can give, in order of weight."""
    codes: dict[str, model.Weight] = dict.fromkeys(("missing", "extra", "unparseable"), "error")
    codes |= dict.fromkeys((join.missing for join in ring.joins), "error")
    codes |= dict.fromkeys((_appeared(join) for join in ring.joins), "error")
    return codes | {aspect.reason: _weight(aspect, fenced) for aspect in ring.aspects}


def _weight(aspect: model.Aspect, fenced: bool) -> model.Weight:
    return "warning" if aspect.moving and not fenced else "error"


_MISSING = "calls with it will be refused (401)"
_EXTRA = "revoked on the source, it is alive on the target"
_UNPARSEABLE = "the proxy cannot read its row on the target, so calls with it will be refused (401)"


def _reasons(
    ring: model.Keyring, ours: model.Decision | None, theirs: model.Decision | None, fenced: bool
) -> Iterable[model.Reason]:
    if ours is None or theirs is None:
        code, says = ("missing", _MISSING) if theirs is None else ("extra", _EXTRA)
        yield model.Reason(code=code, weight="error", message=says)
        return
    apart: set[str] = set()  # rows of which nothing more is to be said
    if not _alike(model.KEY, ours.reads, theirs.reads):
        apart.add(model.KEY)
        yield _unreadable(model.KEY, ours, theirs)
    for join in ring.joins:
        if any(end.partition(".")[0] in apart - {model.KEY} for _, end in join.by):
            apart.add(join.name)  # the row that leads to it is another one already
        elif (reason := _of_join(join, ours, theirs)) is not None:
            apart.add(join.name)
            yield reason
    for aspect in ring.aspects:
        fields = tuple(
            column
            for column in aspect.columns
            if ours.hashes[column] != theirs.hashes[column] and column.partition(".")[0] not in apart
        )
        if fields:
            yield model.Reason(code=aspect.reason, weight=_weight(aspect, fenced), message=aspect.says, fields=fields)


def _of_join(join: model.Join, ours: model.Decision, theirs: model.Decision) -> model.Reason | None:
    if ours.there[join.name] and not theirs.there[join.name]:
        return model.Reason(code=join.missing, weight="error", message=join.opens, fields=(join.name,))
    if theirs.there[join.name] and not ours.there[join.name]:
        says = f"a row of {join.table} decides on the target only"
        return model.Reason(code=_appeared(join), weight="error", message=says, fields=(join.name,))
    if _alike(join.name, ours.reads, theirs.reads):
        return None
    if join.refuses or theirs.reads[join.name]:
        return _unreadable(join.name, ours, theirs)
    return model.Reason(code=join.missing, weight="error", message=join.opens, fields=(join.name,))


def _appeared(join: model.Join) -> str:
    return join.missing.removesuffix("-missing") + "-extra"


def _alike(name: str, ours: Mapping[str, bool], theirs: Mapping[str, bool]) -> bool:
    return ours.get(name) == theirs.get(name)


def _unreadable(name: str, ours: model.Decision, theirs: model.Decision) -> model.Reason:
    says = _UNPARSEABLE if ours.reads[name] else "the proxy can read its row on the target only"
    return model.Reason(code="unparseable", weight="error", message=says, fields=(name,))


def _outcome(ring: model.Keyring, reasons: tuple[model.Reason, ...], theirs: model.Decision | None) -> model.Outcome:
    """The worst of what the reasons mean."""
    meant = {_meaning(ring, reason, theirs) for reason in reasons}
    order: tuple[model.Outcome, ...] = ("lost", "revived", "opened", "changed", "moved")
    return next((outcome for outcome in order if outcome in meant), "unchanged")


def _meaning(ring: model.Keyring, reason: model.Reason, theirs: model.Decision | None) -> model.Outcome:
    if reason.code == "unparseable" and theirs is not None and all(theirs.reads[name] for name in reason.fields):
        return "changed"  # it is refused on the source, where the row cannot be read
    if reason.code in _OUTCOMES:
        return _OUTCOMES[reason.code]
    if any(reason.code == join.missing for join in ring.joins):
        return "opened"
    moving = any(reason.code == aspect.reason and aspect.moving for aspect in ring.aspects)
    return "moved" if moving else "changed"


# -- names ----------------------------------------------------------------------------------------


def shown(key: model.Decision) -> str:
    """`Ada's laptop, sk-...a1b2, 8f3c2d19…`: by what its owner and its admin know it, never the whole of it."""
    parts = [words.masked(text)[:60] for text in key.label if text]
    return ", ".join([*parts, f"{key.token[:8]}…"])
