"""`probe`: what a running proxy answers to keys, as a gate of its own.

Imports face, operations, report and the words, the heavy ones inside the command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mishika_migrate.cli import options, proofs

if TYPE_CHECKING:
    from mishika_migrate import model
    from mishika_migrate.cli.face import Face


def probe(
    proxy: proofs.Proxy = None,
    sample_keys: proofs.SampleKeys = None,
    master_key_env: proofs.MasterKeyEnv = None,
    target: options.Target = None,
    matrix: options.Matrix = None,
    config: options.Config = None,
    allow_unchecked: proofs.AllowUnchecked = None,
    report: proofs.Report = None,
    json: options.Json = None,
    verbose: options.Verbose = None,
) -> int:
    """Ask a running proxy whether keys work that should, and whether it refuses those that should not.

    With --target the database says which of them are blocked or expired. Changes nothing; ends with
    status 3 if anything is not as it should be.
    """
    given = locals()
    from mishika_migrate.cli import verifying
    from mishika_migrate.cli.face import Face
    from mishika_migrate.report import files

    face = Face(given)
    for path in face.settings.reports:
        files.check(path)
    proof = _proof(face)
    verifying.tell(face, proof)
    return proof.status


def _proof(face: Face) -> model.Proof:
    import os
    import sys
    import time
    from datetime import UTC, datetime

    from mishika_migrate import errors, model
    from mishika_migrate.operations.probing import probe, samples
    from mishika_migrate.operations.verifying import ciphers

    settings = face.settings
    if settings.proxy_url is None:
        raise errors.ConfigurationError("no proxy given", hint="Give --proxy URL, or set MISHIKA_MIGRATE_PROXY.")
    begin, at = time.monotonic(), datetime.now(UTC)
    master_key = ciphers.secret(os.environ, settings.master_key_env) if settings.master_key_env else None
    keys = samples.read(settings.sample_keys, sys.stdin) if settings.sample_keys else ()
    before: tuple[model.Check, ...] = ()
    if settings.target is not None and keys:
        keys, check = samples.expected(face.rules(), settings.target, keys)
        before = (check,)
    checks = probe.inspect(settings.proxy_url, keys=keys, master_key=master_key)
    return model.Proof(
        source="",
        target=settings.target.label if settings.target else "",
        at=at.isoformat(timespec="seconds"),
        scope=f"probe of {probe.shown(settings.proxy_url)}",
        level="keys",
        method="fast",
        checks=(*before, *checks),
        allowed=settings.allow_unchecked,
        seconds=round(time.monotonic() - begin, 3),
    )
