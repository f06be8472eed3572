"""`verify`: the proof that both sides hold the same, as a gate for pipelines.

Imports face, operations, report and the words, the heavy ones inside the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mishika_migrate.cli import options, proofs

if TYPE_CHECKING:
    from mishika_migrate import model
    from mishika_migrate.cli.face import Face
    from mishika_migrate.operations import scopes
    from mishika_migrate.pg import sides


def verify(
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
    level: proofs.Level = None,
    hash: proofs.Hash = None,
    sample: proofs.Sample = None,
    max_differences: proofs.MaxDifferences = None,
    fenced: proofs.Fenced = None,
    recheck: proofs.Recheck = None,
    recheck_wait: proofs.RecheckWait = None,
    view_timeout: proofs.ViewTimeout = None,
    snapshot: proofs.Snapshot = None,
    sample_keys: proofs.SampleKeys = None,
    salt_key_env: proofs.SaltKeyEnv = None,
    master_key_env: proofs.MasterKeyEnv = None,
    allow_unchecked: proofs.AllowUnchecked = None,
    proxy: proofs.Proxy = None,
    jobs: options.Jobs = None,
    report: proofs.Report = None,
    json: options.Json = None,
    quiet: options.Quiet = None,
    verbose: options.Verbose = None,
) -> int:
    """Prove that both sides hold the same, and that every key is decided alike. Changes nothing.

    Without options that select tables it compares what the last run has copied. Ends with 0 only if
    everything was compared and equal, with 3 on any difference and on any check that could not be made.
    """
    given = locals()
    from mishika_migrate.cli.face import Face
    from mishika_migrate.report import files

    face = Face(given)
    for path in face.settings.reports:
        files.check(path)
    proof = _proof(face)
    tell(face, proof)
    return proof.status


def tell(face: Face, proof: model.Proof) -> None:
    """Shows a proof in the form that was asked for, and writes its reports."""
    import os
    import sys

    from mishika_migrate import errors
    from mishika_migrate.report import document, files, github
    from mishika_migrate.report import proof as page

    face.is_done(proof.headline.rstrip("."), hint="--report FILE keeps the result.")
    if face.lines is None:
        page.show(face.out, proof)
    else:
        for name, fields in document.lines(proof):
            face.lines.write(name, fields)
    github.publish(proof, os.environ, sys.stderr)
    for path in face.settings.reports:
        try:
            files.write(path, proof)
        except errors.Error as error:
            if proof.status == 0:
                raise
            face.warn(error.message)  # what differs matters more than where it is written


def _proof(face: Face) -> model.Proof:
    import os
    import sys

    from mishika_migrate.operations.moving import follow
    from mishika_migrate.operations.probing import probe, samples
    from mishika_migrate.operations.verifying import ciphers
    from mishika_migrate.operations.verifying import verify as verifying

    wanted = face.settings
    source, target = wanted.need_source(), wanted.need_target()
    for each in follow.forgotten(source, target):
        face.warn(each.message)
    rules = face.rules()
    salt_key = ciphers.secret(os.environ, wanted.salt_key_env) if wanted.salt_key_env else None
    master_key = ciphers.secret(os.environ, wanted.master_key_env) if wanted.master_key_env else None
    if salt_key or master_key:
        ciphers.require()
    keys = samples.read(wanted.sample_keys, sys.stdin) if wanted.sample_keys else ()

    def checks(
        ours: model.Catalog, theirs: model.Catalog, scope: scopes.Scope, both: sides.Both
    ) -> Sequence[model.Check]:
        from mishika_migrate.operations.verifying import continuity

        tables = [table for table in scope.tables if ours.table(table) and theirs.table(table)]
        made: list[model.Check] = []
        if wanted.level == "content":
            made += continuity.inspect(rules, ours, theirs, tables, both.sessions, view_seconds=wanted.view_timeout)
        if wanted.level == "content" or salt_key or master_key:
            session = both.sessions["target"]
            made.append(
                ciphers.inspect(rules, theirs, session, salt_key=salt_key, master_key=master_key, tables=tables)
            )
        return made

    proof = verifying.prove(
        rules,
        source,
        target,
        face.asked(),
        span=face.manner().span,
        options=verifying.Options(
            level=wanted.level,
            method=wanted.hash,
            share=wanted.sample,
            jobs=wanted.jobs,
            most=wanted.max_differences,
            fenced=wanted.fenced,
            rechecks=wanted.recheck,
            recheck_wait=wanted.recheck_wait,
            snapshot=wanted.snapshot,
            allowed=wanted.allow_unchecked,
            samples=tuple((key.name, key.token) for key in keys),
        ),
        checks=checks,
        emit=face.noting(),
    )
    if wanted.proxy_url is None:
        return proof
    import dataclasses

    known: tuple[model.Check, ...] = ()
    if keys:
        keys, check = samples.expected(rules, target, keys)
        known = (check,)
    answers = probe.inspect(wanted.proxy_url, keys=keys, master_key=master_key)
    return dataclasses.replace(proof, checks=(*proof.checks, *known, *answers))
