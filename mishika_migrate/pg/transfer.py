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
    the side that failed, and `connect.Stopped` within half a second of `stopping()` becoming true.
    """
    began = time.monotonic()
    stream = Stream(source, step, endpoint=endpoints[0], stopping=stopping)
    with connect.translated(endpoints[1], f"table {step.target.name}"):
        cursor = target.cursor()
        with cursor.copy(copy_in(step)) as sink:
            # No name for a block here: it would keep a row of 64 MB while the next one comes.
            for _ in map(sink.write, stream):
                pass
        rows_in = cursor.rowcount
    if stream.rows != rows_in:
        raise errors.Error(f"table {step.target}: the source sent {stream.rows} rows, {rows_in} arrived")
    return model.Landed(
        step=step.id,
        table=step.target.name,
        rows_out=stream.rows,
        rows_in=rows_in,
        bytes=stream.bytes,
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

    `bytes` counts them; `rows` holds the server's command tag once the stream has ended. Iterating
    reads libpq's buffer directly: psycopg's own iterator costs a generator and a wait for every row.
    """

    def __init__(
        self,
        session: connect.Session,
        step: model.CopyTable,
        *,
        endpoint: model.Endpoint,
        stopping: Callable[[], bool],
    ) -> None:
        self.rows = -1
        self.bytes = 0
        self._session = session
        self._query = copy_out(step)
        self._what = f"table {step.source.name}"
        self._endpoint = endpoint
        self._stopping = stopping

    def __iter__(self) -> Iterator[bytes | memoryview]:
        # Only reading is blamed on this endpoint: what the consumer of a block raises is not ours.
        blocks = self._blocks()
        while True:
            try:
                with connect.translated(self._endpoint, self._what):
                    block = next(blocks)
            except StopIteration:
                return
            self.bytes += len(block)
            yield block
            del block  # it may be a row of 64 MB, and the next one is on its way

    def _blocks(self) -> Iterator[bytes | memoryview]:
        pgconn = self._session.pgconn
        self._begin(pgconn)
        pending: list[memoryview] = []
        size = 0
        for row in self._rows(pgconn):
            if len(row) < _BLOCK:
                pending.append(row)
                size += len(row)
            if pending and (size >= _BLOCK or len(row) >= _BLOCK):
                yield b"".join(pending)
                pending, size = [], 0
            if len(row) >= _BLOCK:
                yield row
            del row
        if pending:
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
                del row
        self.rows = self._end(pgconn)

    def _wait(self, pgconn: pq.abc.PGconn, selector: selectors.BaseSelector) -> None:
        while not selector.select(_POLL_SECONDS):
            if self._stopping():
                raise connect.Stopped
        if self._stopping():
            raise connect.Stopped
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


def empty(session: connect.Session, table: model.TableName, *, truncate: bool) -> None:
    """Removes all rows: by TRUNCATE where it is wanted, possible and permitted, else by DELETE.

    TRUNCATE is quick, but shuts readers out until COMMIT, and those with an older snapshot see an
    empty table after it.
    """
    name = sql.Identifier(table.schema, table.name)
    row = session.execute(
        "SELECT NOT EXISTS (SELECT FROM pg_constraint WHERE confrelid = c.oid)"
        " AND has_table_privilege(c.oid, 'TRUNCATE')"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %s AND relname = %s",
        [table.schema, table.name],
    ).fetchone()
    if truncate and row and row[0]:
        session.execute(sql.SQL("TRUNCATE {}").format(name))
    else:
        session.execute(sql.SQL("DELETE FROM {}").format(name))
