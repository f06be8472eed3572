"""What a person reads: plans, results, lists and errors, on any width, with or without colours.

Imports events and the words. Colours are the terminal's own sixteen, so light and dark both work.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import IO

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mishika_migrate import errors, model

_MARKS = {"refuse": ("✗", "bold red"), "warn": ("!", "yellow"), "note": ("·", "cyan")}


class Screen(Console):
    """A console that goes on silently when its reader has gone away (`| head`)."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # Python flushes at exit and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def screen(stream: IO[str] | None = None, *, quiet: bool = False) -> Screen:
    """On stdout unless told otherwise. Without a terminal lines are as long as they are."""
    stream = stream or sys.stdout
    width = None if stream.isatty() else max(int(os.environ.get("COLUMNS", "0") or 0), 120)
    return Screen(file=stream, width=width, highlight=False, soft_wrap=False, quiet=quiet, emoji=False)


def say(to: Console, text: str, style: str = "") -> None:
    """One line of ours; brackets in it are text, not markup."""
    to.print(Text(text, style=style))


def size(amount: float) -> str:
    """Bytes for people: 1,000-based, as disks and networks count."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(amount) < 1000:
            return f"{amount:,.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def _grid(*columns: str, right: Sequence[str] = (), title: str = "") -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        if column in right:
            table.add_column(column, justify="right", no_wrap=True)
        else:
            table.add_column(column, overflow="fold", ratio=None)
    return table


# -- plan -----------------------------------------------------------------------------------------


def plan(to: Console, what: model.Plan) -> None:
    """Tables, what stays behind, findings, and one line that sums it up."""
    say(to, f"From  {what.source}")
    say(to, f"To    {what.target}")
    to.print()
    to.print(_chosen(what))
    if what.left:
        to.print(_left(what.left))
    # The table above says it of each.
    findings(to, [finding for finding in what.findings if finding.code != "left-behind"])
    refused = len(what.refused)
    total = f"{len(what.chosen)} tables, about {what.rows:,.0f} rows, {size(what.bytes)}"
    if refused:
        say(
            to,
            f"Refused: {refused} of the findings above must be mended first. Nothing was written.",
            "bold red",
        )
    else:
        say(to, f"Ready: {total}. Plan {what.digest}.", "bold green")


def _chosen(what: model.Plan) -> Table:
    table = _grid("table", "rows", "size", "stage", "why", right=("rows", "size"), title="Will be copied")
    for chosen in what.chosen:
        table.add_row(Text(chosen.table), f"{chosen.rows:,.0f}", size(chosen.bytes), chosen.stage, Text(chosen.reason))
    return table


def _left(left: Iterable[model.Left]) -> Table:
    table = _grid("table", "rows", "why", "loses", right=("rows",), title="Stays behind")
    for item in left:
        table.add_row(
            Text(item.table),
            f"{item.rows:,.0f}",
            Text(item.reason),
            Text(item.loses if item.rows else "nothing"),
        )
    return table


def findings(to: Console, found: Sequence[model.Finding]) -> None:
    """One paragraph each: what, where, and how to mend it."""
    for finding in found:
        mark, style = _MARKS[finding.severity]
        text = Text.assemble((f"{mark} {finding.severity}", style), "  ", finding.message)
        if finding.fix:
            text.append(f"\n    {finding.fix}", "dim")
        to.print(text)
    if found:
        to.print()


# -- results --------------------------------------------------------------------------------------


def accounts(to: Console, books: Sequence[model.Account], *, seconds: float) -> None:
    """Rows out, rows in, rows in the ledger: three counts by three witnesses."""
    table = _grid(
        "table", "rows out", "rows in", "ledger", "size", "time", "MB/s",
        right=("rows out", "rows in", "ledger", "size", "time", "MB/s"),
    )  # fmt: skip
    for account in books:
        table.add_row(
            Text(account.table),
            f"{account.rows_out:,}",
            f"{account.rows_in:,}",
            f"{account.rows_ledger:,}",
            size(account.bytes),
            duration(account.seconds),
            f"{account.bytes / 1e6 / max(account.seconds, 1e-3):,.1f}",
        )
    to.print(table)
    rows, amount = sum(account.rows_in for account in books), sum(account.bytes for account in books)
    say(
        to,
        f"Done: {rows:,} rows in {len(books)} tables, {size(amount)} in {duration(seconds)};"
        " rows out = rows in = ledger for every table.",
        "bold green",
    )


def panel(to: Console, title: str, lines: Iterable[str]) -> None:
    to.print(Panel(Text("\n".join(lines)), title=title, title_align="left", expand=False, border_style="green"))


def runs(to: Console, what: Sequence[model.Run]) -> None:
    """The ledger, the latest run first, with the steps of the latest."""
    for run in what:
        state = {"finished": "green", "running": "yellow", "stopped": "red"}.get(run.state, "dim")
        to.print(
            Text.assemble((run.id, "bold"), "  ", (run.state, state), f"  {run.started} – {run.finished or 'open'}")
        )
        say(to, f"  {run.source} → {run.target}")
        say(to, f"  {len(run.steps)} of {run.planned} steps, {sum(step.rows_in for step in run.steps):,} rows")
        if run.message:
            say(to, f"  {run.message}", "dim")
    copied = [step for step in what[0].steps if step.table] if what else []
    if copied:
        table = _grid("step", "rows", "size", "time", right=("rows", "size", "time"))
        for step in copied:
            table.add_row(Text(step.step), f"{step.rows_in:,}", size(step.bytes), duration(step.seconds))
        to.print(table)


def tables(to: Console, listed: Iterable[model.Listed]) -> None:
    """The matrix: table, need, stage, rows on the source (empty without one), why."""
    table = _grid("table", "need", "stage", "rows", "why", right=("rows",))
    for row in listed:
        rows = "" if row.rows is None else f"{row.rows:,.0f}"
        why = f"{row.why} ({row.flag})" if row.flag else row.why
        table.add_row(Text(row.table), row.need, row.stage, rows, Text(why))
    to.print(table)


def error(to: Console, failure: errors.Error) -> None:
    """One sentence and a hint; the findings of a refusal before them."""
    if isinstance(failure, errors.Refused):
        findings(to, failure.findings)
    to.print(Text.assemble(("error: ", "bold red"), failure.message))
    if failure.hint:
        to.print(Text.assemble(("hint: ", "bold"), failure.hint))
