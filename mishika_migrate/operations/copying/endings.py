"""What is true when a run ends early, and what to do next: clauses, hints, the right error.

Imports engine, pg and the words.
"""

from __future__ import annotations

from mishika_migrate import errors, model
from mishika_migrate.operations.copying import engine
from mishika_migrate.pg import connect, interrupt

AGAIN = "Run the same command again."


def true_now(error: Exception, landed: str, *, touched: bool, sure: bool, resume: str, reset: str) -> tuple[str, str]:
    """A clause for the message, and what to do next.

    `landed` says how much has, `touched` whether anything did, `sure` whether the target itself says so.
    """
    first = "Mend what the message names, then r" if rejected(error) else "R"
    again = f"{first}un the same command again."
    if touched:
        then = "Mend what the message names, then continue" if rejected(error) else "Continue"
        undo = f" Or undo the run: `{reset}`." if rejected(error) else ""
        return landed, f"{then}: `{resume}`.{undo}"
    if sure:
        return "nothing was written", again
    return "nothing is known to have landed", f"{again} If something has landed, it says how to continue."


def rejected(error: Exception) -> bool:
    """Whether a server does not take these rows, now or later (SQLSTATE classes 22, data, and 23, constraints)."""
    return isinstance(error, errors.ServerError) and (error.sqlstate or "")[:2] in ("22", "23")


def own(error: errors.Error | engine.Interruption) -> errors.Error:
    return error if isinstance(error, errors.Error) else errors.Error("interrupted")


def interrupted(signal: int, what: str, hint: str) -> errors.Interrupted:
    return errors.Interrupted(f"interrupted; {what}", hint=hint, signal=signal)


def both(error: Exception, hint: str) -> str:
    """The error's own hint, and this one."""
    first = error.hint if isinstance(error, errors.Error) else ""
    return first if hint in first else f"{first} {hint}".strip()


def end_sessions(endpoint: model.Endpoint, prefix: str, seconds: float) -> None:
    """Ends what other processes' sessions do, by asking first; in vain where the server cannot be reached."""
    try:
        with connect.session(endpoint, name="mishika-migrate/end", answered=True) as session:
            interrupt.cancel_leftovers(session, prefix, seconds=seconds)
            interrupt.end_leftovers(session, prefix)
    except errors.ServerError:
        pass  # a server that cannot be reached finds out by itself that its clients are gone
