"""`plan` and `copy`.

Imports face, operations, report and the words; the heavy ones inside the commands, because
`--help` should not wait for psycopg.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import typer

from mishika_migrate.cli import manner, options, switches

if TYPE_CHECKING:
    from mishika_migrate import model
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations import look
    from mishika_migrate.operations.moving import follow


def plan(
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
    on_existing: manner.OnExisting = None,
    everything: options.Everything = None,
    create_schema: manner.CreateSchema = None,
    proxy_config: options.ProxyConfig = None,
    matrix: options.Matrix = None,
    config: options.Config = None,
    batch_size: manner.BatchSize = None,
    order: manner.Order = None,
    defer_indexes: manner.DeferIndexes = None,
    follow: manner.Follow = None,
    source_from_target: switches.SourceFromTarget = None,
    json: options.Json = None,
    quiet: options.Quiet = None,
    verbose: options.Verbose = None,
) -> None:
    """Show what `copy` would do, and what stands in its way. Changes nothing.

    Ends with status 4 when a finding refuses the copy.
    """
    given = locals()
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations import look
    from mishika_migrate.operations.copying import copy

    face = Face(given)
    found = look.both(
        face.rules(),
        face.settings.need_source(),
        face.settings.need_target(),
        face.wanted(),
        manner=face.manner(),
        implied=face.implied(),
        counting=True,
        jobs=face.settings.jobs,
    )
    found, _ = _followable(face, found)
    _show(face, found)
    if found.plan.refused:
        raise typer.Exit(copy.refusal(found.plan).status)


def copy(
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
    on_existing: manner.OnExisting = None,
    everything: options.Everything = None,
    create_schema: manner.CreateSchema = None,
    proxy_config: options.ProxyConfig = None,
    matrix: options.Matrix = None,
    config: options.Config = None,
    jobs: options.Jobs = None,
    batch_size: manner.BatchSize = None,
    order: manner.Order = None,
    defer_indexes: manner.DeferIndexes = None,
    toast_compression: manner.ToastCompression = None,
    executor: manner.Executor = None,
    max_rate: manner.MaxRate = None,
    pause_if_lag: manner.PauseIfLag = None,
    verify: manner.Verify = None,
    overwrite_live_target: options.OverwriteLiveTarget = None,
    follow: manner.Follow = None,
    source_from_target: switches.SourceFromTarget = None,
    dry_run: options.DryRun = None,
    resume: manner.Resume = None,
    retries: manner.Retries = None,
    retry_seconds: manner.RetrySeconds = None,
    lock_timeout: options.LockTimeout = None,
    yes: options.Yes = None,
    json: options.Json = None,
    quiet: options.Quiet = None,
    verbose: options.Verbose = None,
) -> None:
    """Copy the keys, and all that keeps them working, to another server.

    Keys, teams, users and budgets arrive in one transaction: all of them, or none. Logs follow,
    many tables at once. Whatever interrupts a run, `copy --resume` continues it.
    """
    given = locals()
    from mishika_migrate.cli.face import Face

    face = Face(given)
    if face.settings.resume:
        _resume(face)
    else:
        _begin(face)


def _begin(face: Face) -> None:
    from mishika_migrate import errors
    from mishika_migrate.operations import books, look
    from mishika_migrate.operations.copying import copy
    from mishika_migrate.report import terminal

    source, target = face.settings.need_source(), face.settings.need_target()
    found = look.both(
        face.rules(),
        source,
        target,
        face.wanted(),
        manner=face.manner(),
        implied=face.implied(),
        counting=face.settings.dry_run,
        jobs=face.settings.jobs,
    )
    found, following = _followable(face, found)
    if face.settings.dry_run:
        _show(face, found)
        if found.plan.refused:
            raise typer.Exit(copy.refusal(found.plan).status)
        return
    if found.unfinished is not None:
        books.refuse_while_working(target)
        raise errors.Incomplete(
            f"run {found.unfinished.run} on {target.label} is unfinished",
            hint=f"Continue it: `{face.command(copy.RESUME)}`, or undo it: `{face.command(copy.RESET)}`.",
        )
    if found.plan.refused:
        raise copy.refusal(found.plan)
    for told in _guard(face, found):
        face.warn(told)
    if face.lines is None:
        terminal.brief(face.err, found.plan)
    else:
        for finding in found.plan.findings:
            if finding.severity == "warn":
                face.warn(finding.message)
    what = f"{terminal.amount(found.plan)} " if face.settings.quiet or face.lines else ""
    face.confirm(f"Copy {what}to {target.label}?", otherwise="nothing was written")
    if not face.settings.yes:
        _guard(face, found)  # a proxy may have come while somebody was asked
    execute(face, found.plan, functools.partial(copy.begin, found.plan), following=following)


def _guard(face: Face, found: look.Look) -> tuple[str, ...]:
    """Notes; refuses where rows of a target that looks live would go or become others."""
    from mishika_migrate.operations.syncing import liveness

    if not found.overwritten:
        return ()
    source, target = face.settings.need_source(), face.settings.need_target()
    overwrite = face.settings.overwrite_live_target
    return liveness.guard(face.rules(), source, target, found.overwritten, overwrite=overwrite)


def _followable(face: Face, found: look.Look) -> tuple[look.Look, follow.Wanted | None]:
    """With what stands in the way of following among the findings, and what following needs; None where it is not
    asked for."""
    from mishika_migrate.cli import following as sides
    from mishika_migrate.operations.moving import follow
    from mishika_migrate.preflight import following

    if not face.settings.follow:
        return found, None
    both, what = sides.servers(face), found.plan
    tables = tuple(chosen.table for chosen in what.chosen)
    more = (*following.selection(what), *follow.obstacles(both["source"], both["target"], tables))
    wanted = follow.Wanted(
        reaching=both["source"].reaching,
        tables=tables,
        fingerprint=following.fingerprint(found.catalogs[0], tables),
    )
    return dataclasses.replace(found, plan=dataclasses.replace(what, findings=(*what.findings, *more))), wanted


# What a resumed run has decided at its start.
_DECIDED = (
    "include_spendlogs", "include_errorlogs", "include_usage", "include_auditlogs", "include", "exclude", "only",
    "on_existing", "everything", "create_schema", "matrix", "batch_size", "order", "defer_indexes", "spendlogs_since",
    "spendlogs_last", "spendlogs_before",
)  # fmt: skip


def _resume(face: Face) -> None:
    from mishika_migrate import errors
    from mishika_migrate.operations.copying import copy, resuming
    from mishika_migrate.report import terminal

    if face.settings.dry_run:
        raise errors.ConfigurationError(
            "resume and dry-run exclude each other",
            hint="`mishika-migrate status` shows what has landed and what is still to copy.",
        )
    if ignored := [f"--{name.replace('_', '-')}" for name in _DECIDED if name in face.given]:
        face.warn(f"{', '.join(ignored)} changes nothing: a resumed run keeps the plan that it began with")
    todo, before = resuming.resumable(face.settings.need_source(), face.settings.need_target())
    if face.lines is None:
        terminal.continued(face.err, todo, run=before.run)
    execute(face, todo, functools.partial(copy.resume, todo, before), following=_followed_again(face, todo, before.run))


def _followed_again(face: Face, todo: model.Plan, run: str) -> follow.Wanted | None:
    """What the run was begun with, so that its target follows, too."""
    from mishika_migrate.cli import following as sides
    from mishika_migrate.operations.moving import follow

    before = follow.begun(face.settings.need_target(), run=run)
    if before is None:
        return None
    reaching = sides.servers(face)["source"].reaching
    return follow.Wanted(reaching=reaching, tables=before.tables, fingerprint=before.fingerprint)


def execute(
    face: Face,
    todo: model.Plan,
    run: Callable[..., tuple[model.Account, ...]],
    *,
    ended: str = "",
    following: follow.Wanted | None = None,
) -> tuple[model.Account, ...]:
    """Runs it under the signals, shows its progress, then the books.

    `ended` is said when a second signal ends the process at once. `following` goes on afterwards.
    """
    from mishika_migrate import events
    from mishika_migrate.cli.signals import Stop
    from mishika_migrate.operations.copying import copy, engine
    from mishika_migrate.report import terminal

    wanted = face.settings
    proofs: list[model.Proof] = []
    ended = ended or f"ended at once; `{face.command(copy.RESUME)}` continues"
    began = time.monotonic()
    with face.watching(todo) as emit, Stop(emit.notice, lambda: emit.last(ended)) as stop, _telling(face, proofs):

        def hear(event: events.Event) -> None:
            if isinstance(event, events.Proven):
                proofs.append(event.proof)
            emit(event)

        accounts = run(
            wanted.need_source(),
            wanted.need_target(),
            options=copy.Options(
                resume=face.command(copy.RESUME),
                reset=face.command(copy.RESET),
                jobs=wanted.jobs,
                compression=wanted.toast_compression,
                policy=engine.Policy(attempts=wanted.retries, seconds=wanted.retry_seconds),
                lock_timeout=wanted.lock_timeout,
                executor=wanted.executor,
                max_rate=wanted.max_rate,
                pause_if_lag=wanted.pause_if_lag,
                proving=face.rules() if wanted.verify else None,
                following=following,
            ),
            emit=hear,
            stopping=stop,
        )
    face.is_done("the copy is complete", hint="`mishika-migrate status` shows it.")
    if face.lines is None:
        proof = proofs[-1] if proofs else None
        terminal.accounts(face.out, accounts, seconds=time.monotonic() - began, proof=proof)
    return accounts


@contextlib.contextmanager
def _telling(face: Face, proofs: Sequence[model.Proof]) -> Iterator[None]:
    """What differs comes before the error that says so."""
    from mishika_migrate import errors
    from mishika_migrate.report import proof as page

    try:
        yield
    except errors.Different:
        if face.lines is None:
            page.show(face.out, proofs[-1])
        raise


def _show(face: Face, found: look.Look) -> None:
    from mishika_migrate import plan as plans
    from mishika_migrate.operations.copying import copy
    from mishika_migrate.operations.syncing import liveness
    from mishika_migrate.report import terminal

    what = found.plan
    if found.unfinished is not None:
        again = face.command(copy.RESUME)
        face.warn(f"run {found.unfinished.run} on {what.target} is unfinished; `{again}` continues it")
    if found.overwritten and not what.refused:
        ends = face.settings.need_source(), face.settings.need_target()
        for sign in liveness.evidence(face.rules(), *ends, tables=found.overwritten):
            face.warn(f"the target looks as if it were in use: {sign.message}")
    face.result(
        "plan",
        {
            **plans.as_dict(what),
            "digest": what.digest,
            "refused": bool(what.refused),
            "effects": [dataclasses.asdict(effect) for effect in found.effects],
        },
        lambda to: terminal.plan(to, what, effects=found.effects),
    )
