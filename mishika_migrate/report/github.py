"""Inside GitHub Actions: the summary of the step, and annotations of the run.

Imports markdown, sentences and the words. The rules are those of GitHub's page "Workflow commands for
GitHub Actions" and of the runner's own ActionCommand.cs; elsewhere nothing happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, Literal

from mishika_migrate import model, words
from mishika_migrate.report import markdown, sentences

_Command = Literal["error", "warning", "notice"]

_COMMANDS: Final[dict[model.Weight, _Command]] = {"error": "error", "warning": "warning", "note": "notice"}
_VERDICTS: Final[dict[str, _Command]] = {
    "equal": "notice",
    "sampled": "warning",
    "different": "error",
    "unproven": "error",
}
_TITLE: Final = 100
# GitHub shows 10 of each a step and drops the rest without a word.
_SHOWN: Final = 10
# GitHub refuses the summary of a step that is longer, all of it.
_SUMMARY: Final = 1024 * 1024


def publish(proof: model.Proof, environ: Mapping[str, str], stream: IO[str]) -> None:
    """Appends to the step's summary and writes annotations to `stream`, which may be stderr: the runner reads both.

    Never fails: the exit status says what matters. A summary that cannot be written is a warning.
    """
    if environ.get("GITHUB_ACTIONS") != "true":
        return
    said: list[tuple[_Command, str, str]] = [*_found(proof)]
    if (path := environ.get("GITHUB_STEP_SUMMARY")) and (problem := _summarize(Path(path), proof)):
        said.insert(0, ("warning", "verify: no step summary", problem))
    for command in ("error", "warning", "notice"):
        _annotate(stream, command, [(title, message) for each, title, message in said if each == command])
    stream.flush()


# -- the summary ----------------------------------------------------------------------------------


def _summarize(path: Path, proof: model.Proof) -> str:
    """Why it could not be written, or nothing. Steps append: what is there stays."""
    page = f"{markdown.text(proof)}\n".encode("utf-8", "backslashreplace")
    try:
        there = path.stat().st_size if path.exists() else 0
        if there + len(page) > _SUMMARY:
            return "the step's summary is nearly full already: GitHub takes 1 MiB"
        with path.open("ab") as file:
            # A line of somebody else may still be open.
            file.write(b"\n" + page if there else page)
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return ""


# -- annotations ----------------------------------------------------------------------------------


def _found(proof: model.Proof) -> Iterable[tuple[_Command, str, str]]:
    """The verdict first, then what is behind it, the worst first: GitHub drops the end."""
    parts = [sentences.headline(proof), *([proof.keys.headline] if proof.keys else [])]
    if proof.unproven and proof.state == "different":
        parts.append(f"Also not proven: {words.count(len(proof.unproven), 'check')} could not be made.")
    command = _VERDICTS[sentences.verdict(proof)]
    yield command, "verify", "\n".join(parts)
    for group in sentences.groups(proof.keys) if proof.keys else ():
        yield _COMMANDS[group.weight], f"keys: {group.code}", _group(group)
    for content in proof.contents:
        if content.state == "different":
            yield "error", f"table {content.table}", sentences.amounts(content)
    for check in proof.checks:
        if check.problems:
            yield "error", f"check {check.code}", _problems(check)
    for gap in sentences.gaps(proof):
        message = "\n".join(sentences.line(part) for part in (gap.what, gap.why, gap.remedy) if part)
        yield "error" if gap.open else "notice", "not checked", message


def _group(group: sentences.Group) -> str:
    keys = ", ".join(sentences.line(verdict.key) for verdict, _ in group.members[:_SHOWN])
    listed = len(group.members)
    left = sentences.more(listed, min(listed, _SHOWN), group.count)
    return "\n".join(part for part in (sentences.line(group.title), keys, left) if part)


def _problems(check: model.Check) -> str:
    listed = len(check.problems)
    shown = [sentences.line(problem) for problem in check.problems[:_SHOWN]]
    left = sentences.more(listed, len(shown), listed)
    return "\n".join([sentences.line(check.title), *shown, *([left] if left else [])])


def _annotate(stream: IO[str], command: _Command, said: Sequence[tuple[str, str]]) -> None:
    shown = list(said)
    if len(said) > _SHOWN:
        left = len(said) - _SHOWN + 1
        shown = [*said[: _SHOWN - 1], ("verify", f"and {left} more, which the step's summary and the log have")]
    for title, message in shown:
        stream.write(f"::{command} title={_property(sentences.line(title, _TITLE))}::{_data(message)}\n")


def _data(what: str) -> str:
    return what.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(what: str) -> str:
    return _data(what).replace(":", "%3A").replace(",", "%2C")
