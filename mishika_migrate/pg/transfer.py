"""Moves the rows of one table from source to target, or none of them.

Imports pg.connect and the words. Values are never parsed: the stream that the source sends is
the stream that the target gets, only cut into larger blocks.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Iterator

import psycopg
from psycopg import pq, sql

from mishika_migrate import errors, model
from mishika_migrate.pg import connect

# 64 to 128 KiB halves the client's cost for narrow rows against one write a row; larger blocks
# are slower again, because psycopg cuts them up for libpq.
_BLOCK = 128 * 1024
_POLL_SECONDS = 0.5


class Stopped(Exception):
    """The caller's `stopping` said so; nothing of the step remains."""


def copy(
    source: connect.Session,
    target: connect.Session,
    step: model.CopyTable,
    *,
    endpoints: tuple[model.Endpoint, model.Endpoint],
    stopping: Callable[[], bool],
) -> model.Landed:
    """Streams the step's rows into the target's open transaction.

    Returns what both servers counted; the caller commits. Raises `errors.ServerError` blamed on
    the side that failed, and `Stopped` within half a second of `stopping()` becoming true.
    """
    began = time.monotonic()
    moved = 0
    with connect.translated(endpoints[1]):
        stream = Stream(source, copy_out(step), endpoint=endpoints[0], stopping=stopping)
        cursor = target.cursor()
        with cursor.copy(copy_in(step)) as sink:
            for block in stream:
                sink.write(block)
                moved += len(block)
        rows_in = cursor.rowcount
    if stream.rows != rows_in:
        raise errors.Error(f"table {step.target}: the source sent {stream.rows} rows, {rows_in} arrived")
    return model.Landed(
        step=step.id,
        table=step.target.name,
        rows_out=stream.rows,
        rows_in=rows_in,
        bytes=moved,
        seconds=time.monotonic() - began,
    )


def copy_out(step: model.CopyTable) -> sql.Composed:
    """`COPY (SELECT …) TO STDOUT`; ONLY keeps rows of inheriting tables out, which are not ours."""
    return sql.SQL("COPY (SELECT {columns} FROM {only}{table}) TO STDOUT {options}").format(
        columns=_columns(step),
        only=sql.SQL("" if step.partitioned else "ONLY "),
        table=sql.Identifier(step.source.schema, step.source.name),
        options=_options(step),
    )


def copy_in(step: model.CopyTable) -> sql.Composed:
    return sql.SQL("COPY {table} ({columns}) FROM STDIN {options}").format(
        table=sql.Identifier(step.target.schema, step.target.name),
        columns=_columns(step),
        options=_options(step),
    )


def _columns(step: model.CopyTable) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, step.columns))


def _options(step: model.CopyTable) -> sql.SQL:
    return sql.SQL("(FORMAT binary)") if step.binary else sql.SQL("(FORMAT text, ENCODING 'UTF8')")


class Stream:
    """The bytes of one COPY TO STDOUT in blocks of about 128 KiB; a larger row comes by itself.

    `rows` holds the server's command tag once the stream has ended. Iterating reads libpq's
    buffer directly: psycopg's own iterator costs a generator and a wait for every row.
    """

    def __init__(
        self,
        session: connect.Session,
        query: sql.Composed,
        *,
        endpoint: model.Endpoint,
        stopping: Callable[[], bool],
    ) -> None:
        self.rows = -1
        self._session = session
        self._query = query
        self._endpoint = endpoint
        self._stopping = stopping

    def __iter__(self) -> Iterator[bytes | memoryview]:
        # Only reading is blamed on this endpoint: what the consumer of a block raises is not ours.
        blocks = self._blocks()
        while True:
            try:
                with connect.translated(self._endpoint):
                    block = next(blocks)
            except StopIteration:
                return
            yield block

    def _blocks(self) -> Iterator[bytes | memoryview]:
        pgconn = self._session.pgconn
        self._begin(pgconn)
        pending: list[memoryview] = []
        size = 0
        for row in self._rows(pgconn):
            if len(row) >= _BLOCK:
                yield b"".join(pending)
                yield row
                pending, size = [], 0
                continue
            pending.append(row)
            size += len(row)
            if size >= _BLOCK:
                yield b"".join(pending)
                pending, size = [], 0
        yield b"".join(pending)

    def _begin(self, pgconn: pq.abc.PGconn) -> None:
        result = pgconn.exec_(self._query.as_bytes(self._session))
        if result.status != pq.ExecStatus.COPY_OUT:
            raise _failure(pgconn, result)

    def _rows(self, pgconn: pq.abc.PGconn) -> Iterator[memoryview]:
        with selectors.DefaultSelector() as selector:
            selector.register(pgconn.socket, selectors.EVENT_READ)
            while True:
                length, row = pgconn.get_copy_data(1)
                if length > 0:
                    yield row
                elif length == 0:
                    self._wait(pgconn, selector)
                else:
                    break
        self.rows = self._end(pgconn)

    def _wait(self, pgconn: pq.abc.PGconn, selector: selectors.BaseSelector) -> None:
        while not selector.select(_POLL_SECONDS):
            if self._stopping():
                raise Stopped
        if self._stopping():
            raise Stopped
        pgconn.consume_input()

    def _end(self, pgconn: pq.abc.PGconn) -> int:
        tag = None
        while (result := pgconn.get_result()) is not None:
            if result.status != pq.ExecStatus.COMMAND_OK:
                raise _failure(pgconn, result)
            tag = result.command_tuples
        if tag is None:
            raise psycopg.OperationalError("the stream ended without a command tag")
        return tag


def _failure(pgconn: pq.abc.PGconn, result: pq.abc.PGresult) -> psycopg.Error:
    if result.error_field(pq.DiagnosticField.SQLSTATE) is None:
        text = (pgconn.error_message or b"").decode(errors="replace").strip()
        return psycopg.OperationalError(text or "server closed the connection unexpectedly")
    return psycopg.errors.error_from_result(result)


def empty(session: connect.Session, table: model.TableName) -> None:
    """Removes all rows: TRUNCATE where nothing references the table and the role may, else DELETE."""
    name = sql.Identifier(table.schema, table.name)
    row = session.execute(
        "SELECT NOT EXISTS (SELECT FROM pg_constraint WHERE confrelid = c.oid)"
        " AND has_table_privilege(c.oid, 'TRUNCATE')"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %s AND relname = %s",
        [table.schema, table.name],
    ).fetchone()
    if row and row[0]:
        session.execute(sql.SQL("TRUNCATE {}").format(name))
    else:
        session.execute(sql.SQL("DELETE FROM {}").format(name))
