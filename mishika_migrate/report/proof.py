"""The page that `verify` ends with: the verdict, what differs, and what was not checked, said as loudly.

Imports names, screen, sentences and the words. Rows and keys never begin a line: one that begins
with `::` would be a command to a CI runner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mishika_migrate import model
from mishika_migrate.report import names, screen, sentences

# Longer lists push the verdict out of sight; a log is searched rather than read.
_ON_TERMINAL: Final = 10
_IN_LOG: Final = 1_000_000
_COLOURS: Final = {"equal": "bold green", "sampled": "bold yellow", "different": "bold red", "unproven": "bold red"}
_MARKS: Final[dict[str, tuple[str, str]]] = {
    "error": ("✗", "bold red"),
    "warning": ("!", "bold yellow"),
    "note": ("·", "cyan"),
    "ok": ("✓", "bold green"),
}
_SIGNS: Final[dict[model.Kind, tuple[str, str]]] = {
    "source-only": ("-", "red"),
    "target-only": ("+", "yellow"),
    "differs": ("~", "magenta"),
}
_IN: Final = 4


def show(to: screen.Screen, proof: model.Proof, *, most: int | None = None) -> None:
    """Lists at most `most` rows a table and keys a reason: by default 10 on a terminal, all in a file."""
    if most is None:
        most = _ON_TERMINAL if to.on_terminal else _IN_LOG
    if not to.on_terminal:
        _page(to, proof, most)
        return
    with to.capture() as page:
        _page(to, proof, most)
    to.file.write(page.get())
    if page.get().count("\n") >= to.size.height:
        # The first line has scrolled away.
        to.print()
        _verdict(to, proof)


def _page(to: screen.Screen, proof: model.Proof, most: int) -> None:
    _verdict(to, proof)
    for word, where in (("From", proof.source), ("To  ", proof.target)):
        if where:
            screen.say(to, f"{word}  {sentences.line(where)}")
    _hang(to, "What ", "", sentences.line(proof.scope))
    view = f", snapshot {proof.snapshot}" if proof.snapshot else ""
    how = f"{sentences.how(proof)}, as of {sentences.when(proof)}{view}, in {screen.duration(proof.seconds)}"
    _hang(to, "How  ", "", how)
    _tables(to, proof, most)
    if proof.keys is not None:
        _keys(to, proof.keys, most)
        _samples(to, proof.keys.samples)
    _checks(to, proof.checks, most)
    _gaps(to, proof, most)
    if proof.blind:
        _title(to, f"What the {proof.method} hash cannot see")
        _list(to, proof.blind, most)
    if notes := sentences.notes(proof):
        _title(to, "Notes")
        _list(to, notes, most)


def _verdict(to: screen.Screen, proof: model.Proof) -> None:
    screen.say(to, sentences.headline(proof), _COLOURS[sentences.verdict(proof)])
    if proof.keys is not None:
        style = {"ok": "", "different": "bold red"}.get(proof.keys.state, "")
        screen.say(to, proof.keys.headline, style)
    if proof.unproven and proof.state == "different":
        # The headline has no room for it.
        screen.say(to, f"Also not proven: {screen.count(len(proof.unproven), 'check')} could not be made.", "bold red")


# -- tables ---------------------------------------------------------------------------------------


def _tables(to: screen.Screen, proof: model.Proof, most: int) -> None:
    """Those that differ, with their rows; all of them where none does, as that is then what one wants to see."""
    short = names.Names([content.table for content in proof.contents], unicode=to.unicode)
    different = [content for content in proof.contents if content.state == "different"]
    if different:
        _title(to, "Tables that differ")
        _counts(to, short, different)
        for content in different:
            _rows(to, short, content, most)
        if same := sentences.equal(proof):
            to.print()
            screen.say(to, same)
    elif proof.contents:
        _title(to, sentences.equal(proof).removesuffix("."))
        rows = [f"{content.rows_source:,}" for content in proof.contents]
        to.print(_grid(short.title, [("rows", rows)], short, proof.contents))


def _counts(to: screen.Screen, short: names.Names, contents: Sequence[model.Content]) -> None:
    """As many columns as there is room for: the rows beneath say the rest."""
    sides = [
        ("source", [f"{each.rows_source:,}" for each in contents]),
        ("target", [f"{each.rows_target:,}" for each in contents]),
    ]
    kinds = [
        ("only source", [_some(each.source_only) for each in contents]),
        ("only target", [_some(each.target_only) for each in contents]),
        ("differ", [_some(each.differing) for each in contents]),
    ]
    for columns in ([*sides, *kinds], kinds, [("differ", [_some(each.different) for each in contents])]):
        table = _grid(short.title, columns, short, contents)
        if to.measure(table, options=to.options.update(width=10_000)).maximum <= to.width:
            break
    to.print(table)


def _some(number: int) -> str:
    """Nothing for nothing, so that what is there can be seen."""
    return f"{number:,}" if number else ""


def _grid(
    title: str, columns: Sequence[tuple[str, Sequence[str]]], short: names.Names, contents: Sequence[model.Content]
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(title, overflow="fold")
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for number, content in enumerate(contents):
        sampled = " (sampled)" if content.sampled is not None else ""
        called = screen.text(sentences.line(short.short(content.table)) + sampled)
        table.add_row(called, *(cells[number] for _, cells in columns))
    return table


def _rows(to: screen.Screen, short: names.Names, content: model.Content, most: int) -> None:
    to.print()
    name = sentences.line(short.short(content.table))
    screen.say(to, Text.assemble((name, "bold"), f": {sentences.amounts(content)}"))
    if content.level == "counts":
        _indented(to, "only counted; --level content names the rows")
        return
    shown = content.differences[:most]
    for each in shown:
        _hang(to, *_SIGNS[each.kind], f"{sentences.line(each.row)}: {sentences.line(sentences.fate(each))}", _IN)
    listed = sum(each.copies for each in content.differences)
    _more(to, listed, sum(each.copies for each in shown), content.different)


# -- keys -----------------------------------------------------------------------------------------


def _keys(to: screen.Screen, keys: model.Keys, most: int) -> None:
    if not (groups := sentences.groups(keys)):
        return
    _title(to, "Keys that differ, by reason")
    for group in groups:
        mark, style = _MARKS[group.weight]
        _hang(to, mark, style, Text.assemble((group.code, "bold"), f"  {sentences.line(group.title)}"))
        room = most
        for message, members in group.by_message.items():
            if room <= 0:
                break
            if len(group.by_message) > 1:
                _indented(to, message)
            for key, fields in members[:room]:
                what = f" ({', '.join(fields)})" if fields else ""
                _hang(to, "-", "", f"{sentences.line(key)}{sentences.line(what)}", _IN)
            room -= len(members)
        _more(to, len(group.members), min(most, len(group.members)), group.count)


def _samples(to: screen.Screen, samples: Sequence[model.Verdict]) -> None:
    """All of them: the operator asked for each."""
    if not samples:
        return
    _title(to, "Your sample keys")
    for verdict in samples:
        weight = "error" if sentences.bad(verdict) else "ok" if verdict.outcome == "unchanged" else "warning"
        _hang(to, *_MARKS[weight], f"{sentences.line(verdict.key)}: {sentences.outcome(verdict)}")
        for reason in verdict.reasons:
            _indented(to, f"{reason.code}: {reason.message}")


# -- checks and gaps ------------------------------------------------------------------------------


def _checks(to: screen.Screen, checks: Sequence[model.Check], most: int) -> None:
    if failed := [check for check in checks if check.state == "different"]:
        _title(to, "Checks that failed")
        for check in failed:
            _hang(to, *_MARKS["error"], Text.assemble((check.code, "bold"), f"  {sentences.line(check.title)}"))
            for problem in check.problems[:most]:
                _hang(to, "-", "", sentences.line(problem), _IN)
            _more(to, len(check.problems), min(most, len(check.problems)), len(check.problems))
    if passed := [check.code for check in checks if check.state == "ok"]:
        to.print()
        _hang(to, *_MARKS["ok"], f"{screen.count(len(passed), 'check')} passed: {', '.join(passed)}")


def _gaps(to: screen.Screen, proof: model.Proof, most: int) -> None:
    gaps = sentences.gaps(proof)
    if not gaps:
        return
    to.print()
    if gaps[0].open:
        screen.say(to, f"NOT CHECKED, so nothing is proven (exit status {proof.status})", "bold red")
    else:
        screen.say(to, "NOT CHECKED", "bold yellow")
    for number, gap in enumerate(gaps):
        # Open ones decide the exit status.
        if not gap.open and number >= max(most, sum(each.open for each in gaps)):
            _more(to, len(gaps), number, len(gaps))
            break
        mark, style = _MARKS["error" if gap.open else "warning"]
        _hang(to, mark, style, Text(sentences.line(gap.what), "bold" if gap.open else ""))
        for words in (gap.why, gap.remedy):
            if words:
                _indented(to, words)


# -- lines ----------------------------------------------------------------------------------------


def _title(to: screen.Screen, what: str) -> None:
    to.print()
    screen.say(to, what, "bold")


def _list(to: screen.Screen, items: Sequence[str], most: int) -> None:
    for item in items[:most]:
        _hang(to, "-", "", sentences.line(item))
    _more(to, len(items), min(most, len(items)), len(items))


def _more(to: screen.Screen, listed: int, shown: int, total: int) -> None:
    if left := sentences.more(listed, shown, total):
        screen.say(to, Text(f"{' ' * _IN}{left}", "bold"))


def _indented(to: screen.Screen, what: str) -> None:
    _hang(to, "", "", sentences.line(what), _IN - 1)


def _hang(to: screen.Screen, mark: str, style: str, what: str | Text, indent: int = 0) -> None:
    """A mark and words behind it, also where they are wrapped; one line where nobody says a width."""
    words = screen.text(what) if isinstance(what, str) else what
    if not to.on_terminal:
        screen.say(to, Text.assemble(" " * indent, (mark, style), " ", words))
        return
    paragraph = Table.grid(padding=(0, 1, 0, 0))
    paragraph.add_column(no_wrap=True)
    paragraph.add_column(overflow="fold")
    paragraph.add_row(Text(mark, style), words)
    to.print(Padding(paragraph, (0, 0, 0, indent), expand=False))
