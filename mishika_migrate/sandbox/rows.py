"""Rows in the text format of COPY: how a value is written, and how many rows get into a table.

Imports the sandbox's `session` types only.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from mishika_migrate.sandbox.session import Connection

    Progress = Callable[[str, int], None]
    Value = str | int | float | None
    """`str` is written as it is by `line`: make it with `text`, `array`, `document` or `moment`."""

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_BLOCK = 256  # rows a write: about 64 KiB of narrow rows


def text(value: str) -> str:
    return value.translate(_ESCAPES)


def document(value: object) -> str:
    """JSON; beyond ASCII it stays UTF-8."""
    return json.dumps(value, ensure_ascii=False).translate(_ESCAPES)


def array(values: Sequence[str | None] | None) -> str | None:
    """text[]; None is NULL, an element None is a NULL element."""
    if values is None:
        return None
    quoted = (
        "NULL" if value is None else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values
    )
    return text("{" + ",".join(quoted) + "}")


def moment(value: datetime) -> str:
    """timestamp(3)."""
    return value.isoformat(sep=" ", timespec="milliseconds")


def flag(value: bool) -> str:
    return "t" if value else "f"


def line(values: Iterable[Value]) -> str:
    """One row, with its end."""
    return "\t".join(["\\N" if value is None else str(value) for value in values]) + "\n"


def table(records: Iterable[Mapping[str, Value]]) -> tuple[tuple[str, ...], Iterator[str]]:
    """Columns and lines of records that all have the keys of the first one, in its order.

    No records, no columns.
    """
    stream = iter(records)
    first = next(stream, None)
    if first is None:
        return (), iter(())

    def lines() -> Iterator[str]:
        yield line(first.values())
        for record in stream:
            yield line(record.values())

    return tuple(first), lines()


_INDEXES = """
    SELECT format('ALTER TABLE %%1$s DROP CONSTRAINT %%2$I', c.conrelid::regclass, c.conname),
           format('ALTER TABLE %%1$s ADD CONSTRAINT %%2$I %%3$s', c.conrelid::regclass, c.conname,
                  pg_get_constraintdef(c.oid))
    FROM pg_constraint c WHERE c.contype IN ('p', 'u') AND c.conrelid = %(table)s::regclass
    UNION ALL
    SELECT format('DROP INDEX %%1$s', i.indexrelid::regclass), pg_get_indexdef(i.indexrelid)
    FROM pg_index i WHERE i.indrelid = %(table)s::regclass
    AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid)
"""


@contextmanager
def indexed_later(connection: Connection, name: str, wanted: bool) -> Iterator[None]:
    """Where it is wanted, the table has no indexes within the block, and the same again after it."""
    quoted = sql.Identifier(name).as_string(connection)
    found = connection.execute(_INDEXES, {"table": quoted}).fetchall() if wanted else []
    for drop, _ in found:
        connection.execute(drop)
    yield
    if found:
        connection.execute("SET LOCAL maintenance_work_mem = '256MB'")
    for _, create in found:
        connection.execute(create)


def load(
    connection: Connection,
    name: str,
    columns: Sequence[str],
    lines: Iterable[str],
    progress: Progress | None = None,
) -> int:
    """Streams the lines into table `name`; returns how many rows the server took.

    `progress` hears the name and the rows so far, some hundreds of rows apart.
    """
    # COPY reads an empty list of columns as a syntax error; without any list it means all of them.
    target = sql.SQL("COPY {} {} FROM STDIN").format(
        sql.Identifier(name),
        sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Identifier, columns))) if columns else sql.SQL(""),
    )
    stream, sent = iter(lines), 0
    with connection.cursor() as cursor:
        with cursor.copy(target) as copy:
            while block := list(islice(stream, _BLOCK)):
                copy.write("".join(block).encode())
                sent += len(block)
                if progress is not None and sent % (4 * _BLOCK) == 0:
                    progress(name, sent)
        if progress is not None:
            progress(name, cursor.rowcount)
        return cursor.rowcount
