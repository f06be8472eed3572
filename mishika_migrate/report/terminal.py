"""What a person reads: plans, results, lists and errors, on any width, with or without colours.

Imports names, screen, sentences, selection and the words. The first line of every page is the most important one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mishika_migrate import errors, model
from mishika_migrate.plan import selection
from mishika_migrate.report import names, screen, sentences

_MARKS = {"refuse": ("✗", "bold red"), "warn": ("!", "bold yellow"), "note": ("·", "cyan")}
_STAGES = {
    "schema": "Schema",
    "core": "Keys and configuration: all of it in one transaction",
    "bulk": "History: afterwards, each table on its own",
    "finish": "At the end",
}


def _grid(*columns: str, right: Sequence[str] = (), least: Sequence[int] = ()) -> Table:
    """Numbers are never wrapped; `least` are the widths of the first columns, to align two tables."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, column in enumerate(columns):
        width = least[number] if number < len(least) else None
        if column in right:
            table.add_column(column, justify="right", no_wrap=True, min_width=width)
        else:
            table.add_column(column, overflow="fold", min_width=width)
    return table


def _fits(to: screen.Screen, table: Table) -> bool:
    return to.measure(table, options=to.options.update(width=10_000)).maximum <= to.width


# -- plan -----------------------------------------------------------------------------------------


def plan(to: screen.Screen, what: model.Plan, *, effects: Sequence[model.Effect] = ()) -> None:
    """The verdict, then tables, what becomes of rows that the target has, what stays behind, and the findings.

    Those come worst last, where one looks first.
    """
    short = _names(to, what)
    if what.refused:
        many = len(what.refused)
        it = "finding below" if many == 1 else "findings below"
        screen.say(to, f"Refused: {many} {it} must be mended first. Nothing was written.", "bold red")
    else:
        screen.say(to, f"Ready: {amount(what)}. Plan {what.digest}.", "bold green")
    _ends(to, what)
    to.print()
    _chosen(to, what, short)
    _effects(to, effects, short)
    _left(to, what.left, short)
    # The table above says it of each.
    findings(to, _worst_last(finding for finding in what.findings if finding.code != "left-behind"))


def brief(to: screen.Screen, what: model.Plan) -> None:
    """What must be known before saying yes: how much, what stays behind, warnings."""
    _ends(to, what)
    screen.say(to, f"Copy  {amount(what)}")
    if left := missed(what):
        short = _names(to, what)
        counted = ((item, "rows unknown" if item.rows is None else screen.count(item.rows, "row")) for item in left)
        screen.say(to, f"Not   {', '.join(f'{short.short(item.table)} ({rows})' for item, rows in counted)}")
    to.print()
    findings(to, [finding for finding in what.findings if finding.severity == "warn"])


def missed(what: model.Plan) -> list[model.Left]:
    """Tables that stay behind with rows that somebody may miss."""
    left = (item for item in what.left if item.rows is None or item.rows > 0)
    return [item for item in left if not item.loses.startswith("nothing")]


def continued(to: screen.Screen, what: model.Plan, *, run: str) -> None:
    """What a resumed run goes on with."""
    screen.say(to, f"Continuing run {run}: {amount(what)} in all")
    _ends(to, what)
    to.print()


def _ends(to: screen.Screen, what: model.Plan) -> None:
    screen.say(to, f"From  {what.source}")
    screen.say(to, f"To    {what.target}")


def amount(what: model.Plan) -> str:
    """`17 tables, about 2,670 rows, 5.3 MB`."""
    return (
        f"{screen.count(len(what.chosen), 'table')}, about {screen.count(what.rows, 'row')}, {screen.size(what.bytes)}"
    )


def _names(to: screen.Screen, what: model.Plan) -> names.Names:
    tables = [chosen.table for chosen in what.chosen] + [left.table for left in what.left]
    return names.Names(tables, unicode=to.unicode)


def _chosen(to: screen.Screen, what: model.Plan, short: names.Names) -> None:
    """One table a stage, their columns aligned."""
    rows = [(short.short(c.table), f"{c.rows:,.0f}", screen.size(c.bytes), c.reason) for c in what.chosen]
    least = [max((len(row[n]) for row in rows), default=0) for n in range(3)]
    least[0] = max(least[0], len(short.title))
    for stage, title in _STAGES.items():
        members = [row for row, chosen in zip(rows, what.chosen, strict=True) if chosen.stage == stage]
        if members:
            _listing(to, title, (short.title, "rows", "size", "why"), members, least=least)


# Columns of text narrower than this are harder to read than lines of their own.
_READABLE = 22


def _listing(
    to: screen.Screen,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    least: Sequence[int] = (),
) -> None:
    """A table whose `rows` and `size` are numbers; on a narrow screen the texts beneath each row instead."""
    numbers = [n for n, column in enumerate(columns) if column in ("rows", "size")]
    texts = range(numbers[-1] + 1, len(columns))
    fixed = sum(max(least[n] if n < len(least) else 0, *(len(row[n]) for row in rows)) for n in range(texts[0]))
    if to.width - fixed - 3 * len(columns) < _READABLE * len(texts):
        _stack(to, title, rows, texts)
        return
    table = _grid(*columns, right=("rows", "size"), least=least)
    to.print(Text(title, "bold"))
    for row in rows:
        table.add_row(*map(screen.text, row))
    to.print(table)
    to.print()


def _stack(to: screen.Screen, title: str, rows: Sequence[Sequence[str]], texts: range) -> None:
    to.print(Text(title, "bold"))
    for row in rows:
        name, rows_, *size = row[: texts[0]]
        screen.say(to, ", ".join([f"{name}: {rows_} {'row' if rows_ == '1' else 'rows'}", *size]))
        for n in texts:
            to.print(Padding(screen.text(row[n]), (0, 0, 0, 4)))
    to.print()


def _effects(to: screen.Screen, effects: Sequence[model.Effect], short: names.Names) -> None:
    if not effects:
        return
    numbers = ("insert", "update", "leave", "delete")
    table = _grid(short.title, "rows there", *numbers, right=numbers)
    for effect in effects:
        cells = (effect.insert, effect.update, effect.leave, effect.delete)
        table.add_row(screen.text(short.short(effect.table)), effect.existing, *(f"{cell:,}" for cell in cells))
    to.print(Text("Rows on the target: what the copy would do, as of now", "bold"))
    to.print(table)
    to.print()


def _left(to: screen.Screen, left: Sequence[model.Left], short: names.Names) -> None:
    others = [item for item in left if item.reason == selection.OTHERS]
    known = [item for item in left if item not in others]
    if lost := [item for item in known if item.rows is None or item.rows > 0]:
        rows = [(short.short(i.table), _or_unknown(i.rows), i.reason, f"loses {i.loses}") for i in lost]
        _listing(to, "Stays behind", (short.title, "rows", "why", "what that means"), rows)
    empty = [item for item in known if item.rows is not None and item.rows <= 0]
    for what, items in (("Empty, so nothing is lost", empty), ("Left as they are", others)):
        if items:
            screen.say(to, f"{what}: {', '.join(short.short(item.table) for item in items)}.")
            to.print()


def _or_unknown(rows: float | None) -> str:
    return "unknown" if rows is None else f"{rows:,.0f}"


def _worst_last(found: Iterable[model.Finding]) -> list[model.Finding]:
    rank = {"note": 0, "warn": 1, "refuse": 2}
    return sorted(found, key=lambda finding: rank[finding.severity])


def findings(to: screen.Screen, found: Sequence[model.Finding]) -> None:
    """What and where, and beneath it how to mend it; GRANTs of one cause in one block, to be copied as a whole."""
    blocks: dict[tuple[str, str], list[model.Finding]] = {}
    for number, finding in enumerate(found):
        block = finding.code if finding.fix.startswith("GRANT ") else str(number)
        blocks.setdefault((finding.severity, block), []).append(finding)
    for members in blocks.values():
        for finding in members:
            _finding(to, *_MARKS[finding.severity], finding)
        for fix in dict.fromkeys(finding.fix for finding in members if finding.fix):
            screen.quote(to, fix)
    if found:
        to.print()


def _finding(to: screen.Screen, mark: str, style: str, finding: model.Finding) -> None:
    label = Text(f"{mark} {finding.severity}", style)
    if to.on_terminal:
        paragraph = Table.grid(padding=(0, 2, 0, 0))
        paragraph.add_row(label, screen.text(finding.message))
        to.print(paragraph)
    else:
        screen.say(to, Text.assemble(label, "  ", screen.text(finding.message)))


# -- results --------------------------------------------------------------------------------------


def accounts(
    to: screen.Screen, books: Sequence[model.Account], *, seconds: float, proof: model.Proof | None = None
) -> None:
    """Rows out, rows in, rows in the ledger: three counts by three witnesses; and what `proof` adds to them.

    What an earlier attempt brought counts for neither the time nor the rate of this one.
    """
    kept = sum(account.kept for account in books)
    rows = sum(account.rows_in for account in books) - kept
    amount = sum(account.bytes - account.kept_bytes for account in books)
    tables = sum(account.rows_in > account.kept or not account.kept for account in books)
    screen.say(
        to,
        f"Done: {screen.count(rows, 'row')} in {screen.count(tables, 'table')}, {screen.size(amount)}"
        f" in {screen.duration(seconds)}.",
        "bold green",
    )
    if kept:
        before = sum(account.kept > 0 for account in books)
        screen.say(to, f"Kept of an earlier attempt: {screen.count(kept, 'row')} in {screen.count(before, 'table')}.")
    screen.say(to, "Rows out = rows in = ledger, for every table.")
    if proof is not None:
        screen.say(to, f"Compared with the snapshot: {proof.headline[:1].lower()}{proof.headline[1:]}")
        if proof.keys is not None:
            screen.say(to, f"{proof.keys.headline}.")
        for words in sentences.merged(proof):
            screen.say(to, f"{words}.")
    to.print()
    shapes = (
        ("rows out", "rows in", "ledger", "size", "time", "rate"),
        ("rows", "size", "time", "rate"),
        ("rows", "time"),
        ("rows",),
    )
    made = [_books(to, books, shape) for shape in shapes]
    to.print(next((table for table in made if _fits(to, table)), made[-1]))


def _books(to: screen.Screen, books: Sequence[model.Account], columns: Sequence[str]) -> Table:
    """`rows` stands for all three counts: they are equal, or the run would have failed."""
    short = names.Names([account.table for account in books], unicode=to.unicode)
    table = _grid(short.title, *columns, right=columns)
    for account in books:
        fresh = account.bytes - account.kept_bytes
        cells = {
            "rows": f"{account.rows_in:,}",
            "rows out": f"{account.rows_out:,}",
            "rows in": f"{account.rows_in:,}",
            "ledger": f"{account.rows_ledger:,}",
            "size": screen.size(account.bytes),
            "time": "kept" if account.kept and not account.seconds else screen.duration(account.seconds),
            "rate": f"{screen.size(fresh / account.seconds)}/s" if account.seconds >= 0.05 else "",
        }
        table.add_row(screen.text(short.short(account.table)), *(cells[column] for column in columns))
    return table


def panel(to: screen.Screen, title: str, lines: Iterable[str], commands: Iterable[str] = ()) -> None:
    """The end of a demonstration; what can be copied stands outside of the frame."""
    to.print(Panel(Text("\n".join(lines)), title=title, title_align="left", expand=False, border_style="green"))
    for command in commands:
        screen.quote(to, command)


def runs(
    to: screen.Screen,
    target: str,
    what: Sequence[model.Run],
    *,
    working: str,
    waiting: Sequence[str],
    tables: Sequence[model.Tally],
) -> None:
    """The ledger: what is true now and what to do, all runs, the tables of the latest that landed something.

    `working` is what holds the target just now, empty when nothing does; `waiting` are the tables
    that the unfinished run has still to copy.
    """
    for number, words in enumerate(_standing(target, what, working, waiting)):
        screen.say(to, words, "bold" if number == 0 else "")
    if not what:
        return
    to.print()
    table = _grid("run", "state", "began (UTC)", "steps", "rows", right=("steps", "rows"))
    for run in what:
        style = {"finished": "green", "running": "yellow", "stopped": "red"}.get(run.state, "")
        rows = sum(step.rows_in for step in run.steps)
        began = run.started.replace("T", " ").removesuffix("Z")
        table.add_row(run.id, Text(run.state, style), began, f"{len(run.steps)} of {run.planned}", f"{rows:,}")
    to.print(table)
    to.print()
    shown = next((run for run in what if run.steps), None)
    if shown is not None and tables:
        _tallies(to, tables, shown.id)


def _standing(target: str, what: Sequence[model.Run], working: str, waiting: Sequence[str]) -> Iterable[str]:
    if not what:
        yield f"No runs on {target}."
        return
    latest = next((run for run in what if run.steps and run.state != "finished"), what[0])
    landed = f"{len(latest.steps)} of {latest.planned} steps have landed"
    if working and latest.state == "running":
        yield f"Running: {working}."
        yield f"{landed} of run {latest.id}."
    elif latest.steps and latest.state != "finished":
        yield f"Unfinished: {landed} of run {latest.id}."
        yield "Continue it, with the same --source and --target: `mishika-migrate copy --resume`"
    elif latest.state == "finished":
        yield f"Finished: run {latest.id} copied everything that it had planned."
    elif latest.state == "abandoned":
        yield f"Abandoned: nothing of run {latest.id} is on the target."
    else:
        yield f"Nothing landed: run {latest.id} ended before its first step."
        yield "Start anew: `mishika-migrate copy`."
    yield f"From  {latest.source}"
    yield f"To    {latest.target}"
    if latest.message and latest.state == "finished":
        yield f"{latest.message[:1].upper()}{latest.message[1:]}"
    elif latest.message and latest.state != "abandoned":
        yield f"It ended with: {latest.message}"
    if waiting:
        yield f"Still to copy: {', '.join(waiting)}"


def _tallies(to: screen.Screen, what: Sequence[model.Tally], run: str) -> None:
    """One line a table, however many ranges it was cut into."""
    short = names.Names([tally.table for tally in what], unicode=to.unicode)
    table = _grid(short.title, "steps", "rows", "size", right=("steps", "rows", "size"))
    to.print(Text(f"Tables of {run}", "bold"))
    for tally in what:
        table.add_row(
            screen.text(short.short(tally.table)),
            f"{tally.steps:,} of {tally.planned:,}" if tally.planned else f"{tally.steps:,}",
            f"{tally.rows:,}",
            screen.size(tally.bytes),
        )
    to.print(table)


def damaged(to: screen.Screen, target: str, missing: Sequence[str]) -> None:
    """A ledger that cannot be read."""
    tables = screen.count(len(missing), "table").partition(" ")[2]
    screen.say(to, f"The ledger on {target} is incomplete: {tables} {', '.join(missing)} missing.", "bold")
    screen.say(to, "It was damaged, or another version wrote it. What has landed is not known.")
    screen.say(to, "Remove what is left of it: `mishika-migrate cleanup`.")


def tables(to: screen.Screen, listed: Sequence[model.Listed], *, source: str) -> None:
    """The matrix: table, need, why; with a `source` its rows and sizes too."""
    needs = ("required", "if-used", "if-wanted", "never", "unknown")
    counted = [(need, sum(row.need == need for row in listed)) for need in needs]
    told = ", ".join(f"{number} {need}" for need, number in counted if number)
    where = f"; {sum(row.bytes is not None for row in listed)} of them on {source}" if source else ""
    screen.say(to, f"{screen.count(len(listed), 'table')}: {told}{where}.", "bold")
    to.print()
    short = names.Names([row.table for row in listed], unicode=to.unicode)
    numbers = ("rows", "size") if source else ()
    table = _grid(short.title, "need", *numbers, "why", right=numbers)
    table.columns[1].no_wrap = True
    for row in listed:
        why = f"{row.why} ({row.flag})" if row.flag else row.why
        rows = "–" if row.bytes is None else _or_unknown(row.rows)
        counts = (rows, "–" if row.bytes is None else screen.size(row.bytes)) if source else ()
        table.add_row(screen.text(short.short(row.table)), row.need, *counts, screen.text(why))
    to.print(table)


def error(to: screen.Screen, failure: errors.Error) -> None:
    """One sentence and a hint; before them what refused, and what was only a warning. `plan` has the notes."""
    if isinstance(failure, errors.Refused):
        findings(to, _worst_last(finding for finding in failure.findings if finding.severity != "note"))
    screen.say(to, Text.assemble(("error: ", "bold red"), screen.text(failure.message)))
    if failure.hint:
        screen.say(to, Text.assemble(("hint: ", "bold"), screen.text(failure.hint)))
