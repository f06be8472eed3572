"""`sync`: brings a target that already holds rows level with the source.

Imports face, operations, report and the words, the heavy ones inside the command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mishika_migrate.cli import options

if TYPE_CHECKING:
    from mishika_migrate import model
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations.syncing import levelling


def sync(
    source: options.Source = None,
    target: options.Target = None,
    include_spendlogs: options.SpendLogs = None,
    spendlogs_since: options.SpendLogsSince = None,
    spendlogs_last: options.SpendLogsLast = None,
    spendlogs_before: options.SpendLogsBefore = None,
    include_errorlogs: options.ErrorLogs = None,
    include_usage: options.Usage = None,
    include_auditlogs: options.AuditLogs = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    only: options.Only = None,
    everything: options.Everything = None,
    proxy_config: options.ProxyConfig = None,
    matrix: options.Matrix = None,
    config: options.Config = None,
    delete_extra: options.DeleteExtra = None,
    overwrite_live_target: options.OverwriteLiveTarget = None,
    every: options.Every = None,
    dry_run: options.DryRun = None,
    jobs: options.Jobs = None,
    lock_timeout: options.LockTimeout = None,
    yes: options.Yes = None,
    json: options.Json = None,
    quiet: options.Quiet = None,
    verbose: options.Verbose = None,
) -> None:
    """Make the target's tables what the source holds now: rows that are new, changed or gone, and no others.

    Keys, teams, users and budgets change in one transaction; a key that was revoked on the source does not
    survive. Rows of history that only the target has stay unless --delete-extra. Without options that select
    tables it takes those of the last run. --dry-run shows what would change, and for which keys.
    """
    given = locals()
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations.syncing import sync as syncing

    face = Face(given)
    wanted = face.settings
    source_end, target_end = wanted.need_source(), wanted.need_target()
    how = syncing.Options(
        jobs=wanted.jobs,
        delete_extra=wanted.delete_extra,
        # What is only shown may be shown of a target in use, too: its signs are warnings then.
        overwrite=wanted.overwrite_live_target or wanted.dry_run,
        lock_timeout=wanted.lock_timeout,
    )

    def prepare(scene: levelling.Scene | None = None) -> levelling.Scene:
        if scene is None:
            span = face.manner().span
            made, notes = syncing.prepare(face.rules(), source_end, target_end, face.asked(), span=span, options=how)
        else:
            made, notes = syncing.prepare_again(scene, source_end, target_end, options=how)
        for note in notes:
            if note not in told:
                face.warn(note)
        told[:] = notes
        return made

    def one(scene: levelling.Scene, former: str = "") -> model.Sync:
        options = dataclasses.replace(how, former=former)
        with _wholly():
            return syncing.carry_out(scene, source_end, target_end, options=options, emit=face.noting())

    told: list[str] = []
    scene = prepare()
    if wanted.dry_run:
        _show(face, syncing.foresee(scene, source_end, target_end, options=how, emit=face.noting()))
        return
    face.confirm(
        f"Make {len(scene.core) + len(scene.history)} tables of {target_end.label} what {source_end.label} holds?",
        otherwise="nothing was changed",
    )
    done = one(scene)
    face.is_done("the target is in sync", hint="`mishika-migrate verify` compares both sides.")
    _show(face, done)
    if wanted.every is not None:
        with _wholly():
            _repeat(face, wanted.every, done, lambda former: one(prepare(scene), former))


# So long a server may take to notice that a session is lost, which holds the target's lock until then.
_UNNOTICED_SECONDS = 120.0


def _repeat(face: Face, seconds: float, first: model.Sync, one: Callable[[str], model.Sync]) -> None:
    """A pass every so many seconds, until a signal. What passes by itself is said, and the next pass tries again."""
    from mishika_migrate import errors
    from mishika_migrate.report import sync as page

    former, number, lost = first.run, 1, 0.0
    while True:
        time.sleep(seconds)
        number += 1
        try:
            done = one(former)
        except errors.ServerError as error:
            if not (error.transient or isinstance(error, errors.Unreachable | errors.SnapshotLost)):
                raise
            lost = time.monotonic()
            face.warn(f"pass {number}: {error.message}; trying again in {seconds:g} s")
        except errors.Refused as error:
            # One's own lost session may be the other run that works on the target.
            if error.findings or not lost or time.monotonic() - lost > _UNNOTICED_SECONDS:
                raise
            face.warn(f"pass {number}: {error.message}; trying again in {seconds:g} s")
        else:
            former, lost = done.run, 0.0
            if face.lines is None:
                page.beat(face.out, number, done)
            else:
                _show(face, done)


@contextlib.contextmanager
def _wholly() -> Iterator[None]:
    """What is true when a signal or a server ends it."""
    from mishika_migrate import errors

    try:
        yield
    except errors.Interrupted as error:
        raise errors.Interrupted(
            f"interrupted; {_TRUE}", hint="Run the same command again.", signal=error.status - 128
        ) from error
    except errors.ServerError as error:
        if _TRUE[1:] not in error.hint:
            error.hint = f"{error.hint} {_TRUE.capitalize()}: run the same command again.".strip()
        raise


_TRUE = "every table is as it was or in sync, and the core tables are so together"


def _show(face: Face, done: model.Sync) -> None:
    from mishika_migrate.report import sync as page

    if face.lines is None:
        page.show(face.out, done)
        return
    fields = {
        "source": done.source,
        "target": done.target,
        "scope": done.said,
        "run": done.run,
        "changes": [dataclasses.asdict(change) for change in done.changes],
        "total": done.total,
        "seconds": done.seconds,
        "keys": None if done.keys is None else {"headline": done.keys.headline, "reasons": dict(done.keys.reasons)},
    }
    face.lines.write("sync", fields)
