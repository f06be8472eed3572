"""One state of the source for all readers: a holder exports it, every worker imports it.

Imports pg.connect and the words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import sql

from mishika_migrate import errors, model
from mishika_migrate.pg import connect


class Holder:
    """Keeps a snapshot of the source alive until `release`; it pins vacuum there meanwhile.

    `name` is what workers import. `horizon` is `txid_current_snapshot()` in text, which tells
    later, when the snapshot itself is long gone, whether a row was visible in it.
    """

    def __init__(self, endpoint: model.Endpoint, *, run: str) -> None:
        self._endpoint = endpoint
        self._session = connect.open(endpoint, name=f"mishika-migrate/{run}/snapshot")
        with connect.translated(endpoint):
            self._session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            row = self._session.execute("SELECT pg_export_snapshot(), txid_current_snapshot()::text").fetchone()
        assert row is not None
        self.name, self.horizon = str(row[0]), str(row[1])

    @property
    def session(self) -> connect.Session:
        """Reads through this session see the snapshot; one caller at a time."""
        return self._session

    def release(self) -> None:
        """Ends it; harmless when it ended by itself."""
        self._session.close()


@contextmanager
def reading(session: connect.Session, name: str) -> Iterator[None]:
    """A read-only transaction in the exported snapshot; `errors.SnapshotLost` when it is gone."""
    session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    session.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(name)))
    yield
    session.execute("COMMIT")


def changed_since(
    session: connect.Session, table: model.TableName, *, horizon: str, partitioned: bool
) -> tuple[int, int]:
    """Rows of `table` as this session sees it, and how many of them `horizon` could not see.

    When none is new and the count is what it was, the table has not changed at all: an update
    leaves a new row version behind, a delete a smaller count.

    A 32-bit xmin is read as the latest transaction with those bits. That is exact for anything
    within 2^31 transactions; an older, frozen row may be taken for new, never a new one for old.
    """
    only = sql.SQL("") if partitioned else sql.SQL("ONLY ")
    query = sql.SQL(
        "WITH now AS (SELECT txid_snapshot_xmax(txid_current_snapshot()) AS next)"
        " SELECT count(*), count(*) FILTER (WHERE NOT txid_visible_in_snapshot("
        "   now.next - ((now.next - t.xmin::text::bigint) & 4294967295), {horizon}::txid_snapshot))"
        " FROM {only}{table} t, now"
    ).format(horizon=sql.Literal(horizon), only=only, table=sql.Identifier(table.schema, table.name))
    row = session.execute(query).fetchone()
    if row is None:
        raise errors.Error(f"table {table} could not be counted")
    return int(str(row[0])), int(str(row[1]))
