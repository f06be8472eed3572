"""Everything that can go wrong, as one tree; each class carries the exit status it ends with.

Imports nothing of ours. `mishika_migrate.cli.main` turns an `Error` into one sentence, a hint
and its status; docs/exit-codes.md is the promise that the numbers stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mishika_migrate.model import Finding


class Error(Exception):
    """A failure this tool foresaw: `message` names the object and the server, `hint` what to do."""

    status = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Workers may be other processes; BaseException's own reduce forgets keyword arguments.
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(kind: type[Error], args: tuple[object, ...], state: dict[str, object]) -> Error:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(Error):
    """A flag, an environment variable or a file says something that cannot be used."""

    status = 2


class Different(Error):
    """Both sides were read, and are not the same."""

    status = 3


class Refused(Error):
    """Preflight found a reason not to start; nothing was written."""

    status = 4

    def __init__(self, message: str, *, hint: str = "", findings: Sequence[Finding] = ()) -> None:
        super().__init__(message, hint=hint)
        self.findings = tuple(findings)


class Incomplete(Error):
    """A run stopped after something landed; the hint holds the command that continues it."""

    status = 5


class ServerError(Error):
    """A server said no, or said nothing any more.

    `sqlstate` is None where libpq had no answer to quote. `transient` is true where the same
    step may succeed when it is tried again as it is.
    """

    status = 6

    def __init__(self, message: str, *, hint: str = "", sqlstate: str | None = None, transient: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.sqlstate = sqlstate
        self.transient = transient


class Unreachable(ServerError):
    """No session could be had: no such host, nobody listening, a wrong password, no such database."""


class Denied(ServerError):
    """The role lacks a privilege (SQLSTATE 42501)."""


class OutOfSpace(ServerError):
    """The server's disk is full (SQLSTATE 53100); the same step succeeds once there is room."""


class SnapshotLost(ServerError):
    """The source no longer knows the snapshot: its holder's session ended."""


class GateNotMet(Refused):
    """A switch was not made: a gate was closed, or something failed behind the fence, which is lifted again."""

    status = 7


class ResultLost(Error):
    """Everything was done, but stdout did not take what there is to say about it."""

    status = 8


class WorkerLost(ServerError):
    """A process or a machine that worked for the run is gone; its step was rolled back, and goes to another one."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, transient=True)


class Interrupted(Error):
    """SIGINT, SIGTERM or SIGHUP; what was open was rolled back."""

    status = 130

    def __init__(self, message: str, *, hint: str = "", signal: int = 2) -> None:
        super().__init__(message, hint=hint)
        self.status = 128 + signal
