"""One connection to a database that the sandbox fills; psycopg's errors become ours here.

Imports `errors` only.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import psycopg

from mishika_migrate import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    Connection = psycopg.Connection[tuple[Any, ...]]


@contextlib.contextmanager
def connect(conninfo: str, *, autocommit: bool = False) -> Iterator[Connection]:
    """One transaction, committed at the end of the block; with `autocommit`, one per statement.

    No message quotes `conninfo`, which may hold a password.
    """
    try:
        connection = psycopg.connect(
            conninfo,
            autocommit=autocommit,
            client_encoding="UTF8",
            application_name="mishika-migrate/sandbox",
        )
    except psycopg.ProgrammingError as error:
        # libpq quotes the whole string when it cannot read it: not in our message, nor as its cause.
        raise errors.ConfigurationError(
            "the connection string cannot be read", hint="Use postgresql://user@host:5432/dbname."
        ) from (None if error.sqlstate is None else error)
    except psycopg.OperationalError as error:
        raise errors.Unreachable(_sentence(error), sqlstate=error.sqlstate) from error
    try:
        with connection:
            yield connection
    except psycopg.Error as error:
        raise _ours(error) from error


def _ours(error: psycopg.Error) -> errors.Error:
    said = _sentence(error)
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
        return errors.ConfigurationError(said, hint="Apply the proxy's schema first: --schema.")
    if isinstance(error, psycopg.errors.UniqueViolation):
        return errors.ConfigurationError(said, hint="Fill a database without rows.")
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return errors.Denied(said, sqlstate=error.sqlstate)
    return errors.ServerError(said, sqlstate=error.sqlstate)


def _sentence(error: psycopg.Error) -> str:
    primary = error.diag.message_primary or str(error).strip().replace("\n", " ")
    return primary or type(error).__name__
