"""Moves rows of one table from source to target, or none of them.

Imports pg.connect, pg.snapshot and the words. Values are never parsed: the stream that the source sends is
the stream that the target gets, only cut into larger blocks.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg import pq, sql

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, snapshot

# 64 to 128 KiB halves the client's cost for narrow rows against one write a row; larger blocks
# are slower again, because psycopg cuts them up for libpq.
_BLOCK = 128 * 1024
_POLL_SECONDS = 0.5


def _at_once(size: int) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """From the source's transaction into the target's, both open; the caller commits.

    Whatever goes wrong is blamed on the side that failed. `connect.Stopped` comes within half a
    second of `stopping()` becoming true. `pace` is called with the size of each block before it
    goes into the target, and may wait.
    """

    source: connect.Session
    target: connect.Session
    endpoints: tuple[model.Endpoint, model.Endpoint]
    stopping: Callable[[], bool] = connect.never
    pace: Callable[[int], None] = _at_once

    def relay(self, out: sql.Composed, into: sql.Composed, *, table: model.TableName) -> tuple[int, int]:
        """The rows of one COPY TO STDOUT into one COPY FROM STDIN: how many, and the stream's bytes."""
        stream = Stream(
            self.source,
            out,
            what=f"table {table.name}",
            endpoint=self.endpoints[0],
            stopping=self.stopping,
            pace=self.pace,
        )
        with connect.translated(self.endpoints[1], f"table {table.name}"):
            cursor = self.target.cursor()
            with cursor.copy(into) as sink:
                # No name for a block here: it would keep a row of 64 MB while the next one comes.
                for _ in map(sink.write, stream):
                    pass
        if stream.rows != cursor.rowcount:
            raise errors.Error(f"table {table}: the source sent {stream.rows} rows, {cursor.rowcount} arrived")
        return stream.rows, stream.bytes


def copy(way: Way, step: model.CopyTable, *, into: sql.Identifier | None = None) -> model.Landed:
    """The step's rows, and what both servers counted; into another table where `into` names one."""
    began = time.monotonic()
    rows, size = way.relay(copy_out(step), copy_in(step, into=into), table=step.target)
    return model.Landed(
        step=step.id,
        table=step.target.name,
        rows_out=rows,
        rows_in=rows,
        bytes=size,
        seconds=time.monotonic() - began,
    )


def copy_out(step: model.CopyTable) -> sql.Composed:
    """`COPY (SELECT …) TO STDOUT`; ONLY keeps rows of inheriting tables out, which are not ours."""
    return sql.SQL("COPY (SELECT {columns} FROM {rows}) TO STDOUT {options}").format(
        columns=columns(step), rows=snapshot.rows_of(step), options=options(step)
    )


def copy_in(step: model.CopyTable, *, into: sql.Identifier | None = None) -> sql.Composed:
    """Into the step's target, or into another table with its columns."""
    return sql.SQL("COPY {table} ({columns}) FROM STDIN {options}").format(
        table=into or sql.Identifier(step.target.schema, step.target.name),
        columns=columns(step),
        options=options(step),
    )


def columns(step: model.CopyTable) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, step.columns))


def options(step: model.CopyTable) -> sql.SQL:
    return sql.SQL("(FORMAT binary)") if step.binary else sql.SQL("(FORMAT text, ENCODING 'UTF8')")


class Stream:
    """The bytes of one COPY TO STDOUT in blocks of about 128 KiB; a larger row comes by itself.

    `bytes` counts them; `rows` holds the server's command tag once the stream has ended. Iterating
    reads libpq's buffer directly: psycopg's own iterator costs a generator and a wait for every row.
    """

    def __init__(
        self,
        session: connect.Session,
        query: sql.Composed,
        *,
        what: str,
        endpoint: model.Endpoint,
        stopping: Callable[[], bool],
        pace: Callable[[int], None] = _at_once,
    ) -> None:
        self.rows = -1
        self.bytes = 0
        self._session = session
        self._query = query
        self._what = what
        self._endpoint = endpoint
        self._stopping = stopping
        self._pace = pace

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
            self._pace(len(block))
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


def compress(session: connect.Session, method: Literal["auto", "lz4", "pglz", "server"]) -> None:
    """How the session stores long values from now on; `auto` is lz4 where the server was built with it.

    Compressing with pglz is most of what a target does while it loads prompts.
    """
    wanted = {"auto": "lz4"}.get(method, method)
    session.execute(
        "SELECT set_config(name, %(wanted)s, false) FROM pg_settings"
        " WHERE name = 'default_toast_compression' AND (%(wanted)s = ANY (enumvals) OR %(method)s <> 'auto')"
        " AND %(wanted)s <> 'server'",
        {"wanted": wanted, "method": method},
    )


def refuse_method(session: connect.Session, endpoint: model.Endpoint, method: str) -> None:
    """`errors.Refused` where the server was built without this compression of long values."""
    row = session.execute("SELECT enumvals FROM pg_settings WHERE name = 'default_toast_compression'").fetchone()
    known = row[0] if row and isinstance(row[0], list) else ["pglz"]  # the setting came with 14
    if method not in (*known, "auto", "server"):
        raise errors.Refused(
            f"{endpoint.label} cannot compress with {method}, only with {', '.join(map(str, known))}",
            hint="Leave --toast-compression out: auto takes what the server has.",
        )


def occupied(session: connect.Session, table: model.TableName, within: model.Interval | None = None) -> bool:
    """Whether the table has rows, or such rows; no for one that is not there yet, or whose rows nobody may see."""
    place = sql.Identifier(table.schema, table.name)
    seen = session.execute("SELECT has_table_privilege(to_regclass(%s)::oid, 'SELECT')", [place.as_string()]).fetchone()
    if not (seen and seen[0]):
        return False
    row = session.execute(
        sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {})").format(place, snapshot.inside(within))
    ).fetchone()
    return bool(row and row[0])


def empty(
    session: connect.Session, table: model.TableName, *, truncate: bool, within: model.Interval | None = None
) -> None:
    """Removes all rows, or those within an interval: by TRUNCATE where it is wanted, possible and permitted.

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
    if truncate and within is None and row and row[0]:
        session.execute(sql.SQL("TRUNCATE {}").format(name))
    else:
        session.execute(sql.SQL("DELETE FROM {} WHERE {}").format(name, snapshot.inside(within)))


def truncate(session: connect.Session, step: model.Empty) -> None:
    """All rows of the step's tables, by one TRUNCATE that reaches no other table.

    Refuses when an `idle` table has rows by now. SQLSTATE 0A000, and nothing is removed, where yet
    another table references one of them.
    """
    for table in step.idle:
        name = sql.Identifier(table.schema, table.name)
        session.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(name))
        row = session.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(name)).fetchone()
        if row and row[0]:
            raise errors.Refused(
                f"{table.name} was empty when the plan was made, has rows by now, and references a table that is to be"
                " replaced",
                hint="Run the same command again.",
            )
    session.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(_alone(session, (*step.tables, *step.idle)))))


def _alone(session: connect.Session, tables: Sequence[model.TableName]) -> list[sql.Composed]:
    """Without tables that inherit from them, which are not ours; the partitions of one are its rows."""
    wanted = [sql.Identifier(table.schema, table.name) for table in tables]
    found = session.execute(
        "SELECT relkind = 'p' FROM unnest(%s::text[]) WITH ORDINALITY u (name, n)"
        " JOIN pg_class c ON c.oid = name::regclass ORDER BY n",
        [[name.as_string() for name in wanted]],
    ).fetchall()
    return [
        sql.SQL("{}{}").format(sql.SQL("" if row[0] else "ONLY "), name)
        for name, row in zip(wanted, found, strict=True)
    ]


def empty_all(session: connect.Session, tables: Sequence[model.TableName]) -> None:
    """Removes all rows of these tables, children first.

    By one TRUNCATE of them all, which fails where a table references one of them that is not among
    them (0A000) or the role may not (42501); then by DELETE.
    """
    if not tables:
        return
    names = sql.SQL(", ").join(sql.Identifier(table.schema, table.name) for table in tables)
    try:
        with session.transaction():
            session.execute(sql.SQL("TRUNCATE {}").format(names))
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.InsufficientPrivilege):
        for table in tables:
            empty(session, table, truncate=False)
