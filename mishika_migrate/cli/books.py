"""`tables`, `status`, `reset` and `cleanup`: what there is to know, the way back, and the ledger.

Imports face, operations, report and the words, the heavy ones inside the commands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mishika_migrate.cli import options, watching

if TYPE_CHECKING:
    from mishika_migrate import model
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations.copying.reset import Undo


def tables(
    source: options.Source = None,
    proxy_config: options.ProxyConfig = None,
    matrix: options.Matrix = None,
    config: options.Config = None,
    json: options.Json = None,
    verbose: options.Verbose = None,
) -> None:
    """List the tables that the matrix knows: which are needed, which only when used, which never.

    With a source it also shows their rows, and tables that the matrix does not know.
    """
    given = locals()
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations import books
    from mishika_migrate.report import terminal

    face = Face(given)
    source_endpoint = face.settings.source
    listed = books.tables(face.rules(), source_endpoint)
    if face.lines is not None:
        for row in listed:
            face.lines.write("table", dataclasses.asdict(row))
        return
    terminal.tables(face.out, listed, source=source_endpoint.label if source_endpoint else "")


def status(
    source: options.Source = None,
    target: options.Target = None,
    matrix: options.Matrix = None,
    config: options.Config = None,
    watch: options.Watch = None,
    interval: options.Interval = None,
    until_quiet: options.UntilQuiet = None,
    json: options.Json = None,
    verbose: options.Verbose = None,
) -> None:
    """Show what the target's ledger says: whether a run is under way, unfinished or done, and its tables.

    Works from any machine that reaches the target. Names the command that continues an unfinished run.

    With --watch it shows instead what moves: rows written a second, the counted spend, and who else is
    connected, of each side that is given. Spend is exact; rows come from the server's statistics, which
    lag behind, after a burst by ten seconds and more. So --until-quiet should be 15s at least; the proxy
    itself holds spend back for ten seconds, too.
    """
    given = locals()
    from mishika_migrate import errors
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations import books
    from mishika_migrate.report import following, terminal

    face = Face(given)
    if face.settings.watch:
        with watching.watching():
            _watch(face)
        return
    if "until_quiet" in face.given:
        raise errors.ConfigurationError(
            "until-quiet is a part of --watch, which was not given", hint="Add --watch, or leave --until-quiet out."
        )
    endpoint = face.settings.need_target()
    found = books.status(endpoint)
    if face.lines is not None:
        summary = {name: getattr(found, name) for name in ("unfinished", "waiting", "working", "missing", "tables")}
        move = {
            "follow": None if found.follow is None else dataclasses.asdict(found.follow),
            "switch": None if found.switch is None else dataclasses.asdict(found.switch),
            "settled": None if found.settled is None else dataclasses.asdict(found.settled),
        }
        face.lines.write("status", {"target": endpoint.label, **summary, **move, "runs": len(found.runs)})
        for run in found.runs:
            face.lines.write("run", dataclasses.asdict(run))
        return
    if found.missing:
        terminal.damaged(face.out, endpoint.label, found.missing)
        return
    terminal.runs(
        face.out, endpoint.label, found.runs, working=found.working, waiting=found.waiting, tables=found.tables
    )
    following.standing(
        face.out,
        found.follow,
        found.switch,
        found.settled,
        working=bool(found.working),
        goes_on=found.following,
    )


_PROVES_LITTLE = 15.0


def _watch(face: Face) -> None:
    from datetime import UTC, datetime

    from mishika_migrate import errors
    from mishika_migrate.operations import books
    from mishika_migrate.report import activity, screen

    wanted = face.settings
    ends = [end for end in (wanted.source, wanted.target) if end is not None]
    if not ends:
        raise errors.ConfigurationError(
            "no server to watch is given", hint="Give --source, --target or both, or set MISHIKA_MIGRATE_SOURCE."
        )
    if wanted.until_quiet is not None and wanted.until_quiet < _PROVES_LITTLE:
        face.warn(f"{wanted.until_quiet:g} s prove little: servers count rows late, and the proxy buffers spend")
    page = activity.Page(face.out)

    def show(pulses: tuple[model.Pulse, ...]) -> None:
        if face.lines is None:
            page.show(pulses)
        else:
            at = datetime.now(UTC).isoformat(timespec="seconds")
            sides = [dataclasses.asdict(pulse) for pulse in pulses]
            face.lines.write("activity", {"at": at, "quiet": min(pulse.quiet for pulse in pulses), "sides": sides})
        watching.refuse_unheard()

    books.watch(face.rules(), ends, interval=wanted.interval, until=wanted.until_quiet, show=show)
    if face.lines is None:
        screen.say(
            face.out, f"Quiet: nothing has moved for {screen.duration(wanted.until_quiet or 0.0)}.", "bold green"
        )


def reset(
    target: options.Target = None,
    config: options.Config = None,
    lock_timeout: options.LockTimeout = None,
    yes: options.Yes = None,
    json: options.Json = None,
    verbose: options.Verbose = None,
) -> None:
    """Undo an unfinished run: remove the rows that it brought and put back the indexes that it took away.

    All or nothing, in one transaction on the target.
    """
    given = locals()
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations.copying import reset as resets
    from mishika_migrate.report import screen

    face = Face(given)
    endpoint = face.settings.need_target()
    undo = resets.look(endpoint)
    where = f"{screen.count(len(undo.tables), 'table')} of {endpoint.label}"
    if undo.foreign:
        face.warn(f"{screen.count(undo.foreign, 'row')} in these tables came from elsewhere and will go too")
    for told in _lasting(undo):
        face.warn(told)
    face.confirm(
        f"Remove {screen.count(undo.rows, 'row')} from {where} and put back"
        f" {screen.count(undo.indexes, 'index', 'indexes')}?",
        otherwise="nothing was removed",
    )
    undo = resets.carry_out(endpoint, run=undo.run, lock_timeout=face.settings.lock_timeout)
    face.is_done("the run is undone", hint="Nothing is left to do.")
    text = f"Run {undo.run} is undone: {screen.count(undo.rows, 'row')} removed from {where}."
    face.result("reset", {"target": endpoint.label, **_undone(undo)}, lambda to: screen.say(to, text))


def _lasting(undo: Undo) -> Iterator[str]:
    """What a reset cannot undo."""
    if undo.merged:
        yield f"rows that the run has merged into {_names(undo.merged)} stay there"
    if undo.emptied:
        yield f"rows that {_names(undo.emptied)} had before the run are gone: it was to replace them"
    if undo.objects:
        there = ", ".join(undo.objects)
        yield f"what was made for following stays until `mishika-migrate complete`; a slot fills a disk: {there}"


def _names(tables: Sequence[model.TableName]) -> str:
    return ", ".join(table.name for table in tables)


def _undone(undo: Undo) -> dict[str, object]:
    tables = [str(table) for table in undo.tables]
    return {
        "run": undo.run,
        "tables": tables,
        "indexes": undo.indexes,
        "rows": undo.rows,
        "foreign": undo.foreign,
        "merged": [str(table) for table in undo.merged],
        "emptied": [str(table) for table in undo.emptied],
    }


def cleanup(
    target: options.Target = None,
    config: options.Config = None,
    yes: options.Yes = None,
    json: options.Json = None,
    verbose: options.Verbose = None,
) -> None:
    """Remove the ledger from the target. The copied rows stay; an unfinished run cannot be resumed."""
    given = locals()
    from mishika_migrate import errors
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations import books
    from mishika_migrate.report import screen

    face = Face(given)
    endpoint = face.settings.need_target()
    found = books.status(endpoint)
    if found.working:
        raise errors.Refused(found.working, hint="Wait for it, or stop it; `mishika-migrate status` shows it.")
    if found.exists:
        books.refuse_strangers(endpoint)
        if found.missing:
            face.warn("the ledger is incomplete: whether a run is unfinished is not known")
        if found.unfinished:
            face.warn(f"run {found.unfinished} is unfinished and cannot be resumed afterwards")
        face.confirm(
            f"Remove schema mishika_migrate with {screen.count(len(found.runs), 'run')} from {endpoint.label}?",
            otherwise="nothing was removed",
        )
        books.cleanup(endpoint)
        face.is_done("the ledger is removed", hint="Nothing is left to do.")
        text = f"Removed schema mishika_migrate from {endpoint.label}."
    else:
        text = f"Nothing to remove on {endpoint.label}."
    face.result(
        "cleanup",
        {"target": endpoint.label, "removed": found.exists, "message": text},
        lambda to: screen.say(to, text),
    )
