"""What has changed on the source since a snapshot that is long gone, and how the target follows.

Imports pg.connect, pg.snapshot, pg.transfer and the words. The rows of a finished step that are no
newer than its horizon are on the target already, unchanged: an update or a deletion would have left
fewer of them. So their number tells whether anything has to go, and their keys tell what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, snapshot, transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Of one finished step: its rows now, how many of them may be newer, and how many had landed."""

    step: model.CopyTable
    horizon: str
    rows: int
    newer: int
    landed: int

    @property
    def nothing(self) -> bool:
        return self.newer == 0 and self.rows == self.landed

    @property
    def only_new(self) -> bool:
        """Nothing that had landed was updated or removed."""
        return self.rows - self.newer == self.landed


def change(session: connect.Session, step: model.CopyTable, *, horizon: str, landed: int) -> Change:
    """Looks at the rows of `step` as this session sees them; `horizon` is that of when they landed.

    When none is newer and the count is what it was, nothing has changed at all: an update leaves a
    new row version behind, a delete a smaller count.
    """
    rows, newer = _count(session, step, horizon)
    return Change(step=step, horizon=horizon, rows=rows, newer=newer, landed=landed)


def _count(session: connect.Session, step: model.CopyTable, horizon: str) -> tuple[int, int]:
    query = sql.SQL("SELECT count(*), count(*) FILTER (WHERE {newer}) FROM (SELECT xmin FROM {rows}) t").format(
        newer=newer(horizon), rows=snapshot.rows_of(step)
    )
    row = session.execute(query).fetchone()
    if row is None:
        raise errors.Error(f"table {step.source} could not be counted")
    return int(str(row[0])), int(str(row[1]))


def newer(horizon: str) -> sql.Composed:
    """Whether `t.xmin` may be newer than the horizon.

    Newer is what was written by any transaction from the oldest then running one on: a snapshot
    does not list subtransactions, so a row of theirs cannot be told from an older one. A 32-bit
    xmin is read as the latest transaction with those bits: exact for anything within 2^31
    transactions; an older, frozen row may be taken for new, never a new one for old.
    """
    return sql.SQL(
        "(SELECT txid_snapshot_xmax(txid_current_snapshot()))"
        " - (((SELECT txid_snapshot_xmax(txid_current_snapshot())) - t.xmin::text::bigint) & 4294967295)"
        " >= txid_snapshot_xmin({}::txid_snapshot)"
    ).format(sql.Literal(horizon.rpartition(" ")[2]))


def count(session: connect.Session, table: model.TableName, within: model.Interval | None = None) -> int:
    """All rows of a table within an interval, those of its partitions too."""
    query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(
        sql.Identifier(table.schema, table.name), snapshot.inside(within)
    )
    row = session.execute(query).fetchone()
    return int(str(row[0])) if row else 0


def primary_key(session: connect.Session, table: model.TableName) -> tuple[str, ...]:
    """Its columns, empty without one."""
    row = session.execute(
        "SELECT array_agg(a.attname::text ORDER BY k.n) FROM pg_index i"
        " CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k (number, n)"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number"
        " WHERE i.indisprimary AND i.indrelid = %s::regclass AND k.n <= i.indnkeyatts",
        [sql.Identifier(table.schema, table.name).as_string()],
    ).fetchone()
    return tuple(map(str, row[0])) if row and isinstance(row[0], list) else ()


def follow(way: transfer.Way, changes: Sequence[Change], *, key: Sequence[str]) -> tuple[int, int]:
    """Makes the target's rows of these steps what the source's are now; how many went and how many came.

    `key` are the columns of the table's primary key. No rows but those of the steps may be in the target's table.
    """
    gone = 0 if all(each.only_new for each in changes) else _remove(way, changes, key)
    came = 0
    for each in changes:
        if each.newer:
            rows, _ = way.relay(_newer_rows(each), transfer.copy_in(each.step), table=each.step.target)
            came += rows
    return gone, came


def _remove(way: transfer.Way, changes: Sequence[Change], key: Sequence[str]) -> int:
    """Whatever the source no longer has, or has in a newer version."""
    table = changes[0].step.target
    name = sql.Identifier(table.schema, table.name)
    columns = sql.SQL(", ").join(map(sql.Identifier, key))
    way.target.execute(
        sql.SQL("CREATE TEMP TABLE mishika_kept ON COMMIT DROP AS SELECT {} FROM {} LIMIT 0").format(columns, name)
    )
    into = sql.SQL("COPY pg_temp.mishika_kept ({}) FROM STDIN").format(columns)
    for each in changes:
        way.relay(_older_keys(each, columns), into, table=each.step.target)
    way.target.execute("ANALYZE pg_temp.mishika_kept")
    same = sql.SQL(" AND ").join(sql.SQL("k.{0} = t.{0}").format(sql.Identifier(column)) for column in key)
    return way.target.execute(
        sql.SQL("DELETE FROM {} t WHERE {} AND NOT EXISTS (SELECT FROM pg_temp.mishika_kept k WHERE {})").format(
            name, snapshot.inside(changes[0].step.within), same
        )
    ).rowcount


def _older_keys(change: Change, columns: sql.Composable) -> sql.Composed:
    return sql.SQL(
        "COPY (SELECT {columns} FROM (SELECT xmin, {columns} FROM {rows}) t WHERE NOT {newer}) TO STDOUT"
    ).format(columns=columns, rows=snapshot.rows_of(change.step), newer=newer(change.horizon))


def _newer_rows(change: Change) -> sql.Composed:
    return sql.SQL(
        "COPY (SELECT {columns} FROM (SELECT xmin, {columns} FROM {rows}) t WHERE {newer}) TO STDOUT {options}"
    ).format(
        columns=transfer.columns(change.step),
        rows=snapshot.rows_of(change.step),
        newer=newer(change.horizon),
        options=transfer.options(change.step),
    )
