"""One state of the source for all readers: a holder exports it, every worker imports it.

Imports pg.connect and the words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from psycopg import sql

from mishika_migrate import errors, model
from mishika_migrate.pg import connect

# Transaction numbers mean something only within one history of one database: a restored backup
# counts them again, a promoted standby starts a new timeline.
_HISTORY = """
SELECT concat_ws('.', system_identifier, timeline_id, (SELECT oid FROM pg_database WHERE datname = current_database()))
FROM pg_control_system(), pg_control_checkpoint()
"""


def name(run: str) -> str:
    """The `application_name` of the run's holder."""
    return f"mishika-migrate/{run}/snapshot"


class Holder:
    """Keeps a snapshot of the source alive until `release`; it pins vacuum there meanwhile.

    `name` is what workers import. `state` is `txid_current_snapshot()`, by which they know that it
    is the same one: a server that was restarted gives the same names again. `horizon` tells later,
    when the snapshot itself is long gone, whether a row was visible in it.
    """

    def __init__(self, endpoint: model.Endpoint, *, run: str, stopping: Callable[[], bool] = connect.never) -> None:
        self._session = connect.open(endpoint, name=name(run), stopping=stopping)
        try:
            with connect.translated(endpoint):
                self.name, self.state, history = self._export()
        except BaseException:
            self.release()
            raise
        self.horizon = f"{history} {self.state}"

    def _export(self) -> tuple[str, str, str]:
        history = _history(self._session)
        self._session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        row = self._session.execute("SELECT pg_export_snapshot(), txid_current_snapshot()::text").fetchone()
        assert row is not None
        return str(row[0]), str(row[1]), history

    @property
    def session(self) -> connect.Session:
        """Reads through this session see the snapshot; one caller at a time."""
        return self._session

    def release(self) -> None:
        """Ends it; harmless when it ended by itself."""
        connect.close(self._session)


def _history(session: connect.Session) -> str:
    """Empty where the role may not know it."""
    row = session.execute(
        "SELECT has_function_privilege('pg_control_system()', 'EXECUTE')"
        " AND has_function_privilege('pg_control_checkpoint()', 'EXECUTE')"
    ).fetchone()
    if row is None or not row[0]:
        return ""
    row = session.execute(_HISTORY).fetchone()
    return str(row[0]) if row else ""


@contextmanager
def reader(
    endpoint: model.Endpoint,
    *,
    name: str,
    snapshot: str,
    state: str,
    settings: dict[str, str],
    stopping: Callable[[], bool] = connect.never,
) -> Iterator[connect.Session]:
    """A session in the exported snapshot; `errors.SnapshotLost` when it is gone.

    Errors inside the block are left alone: they may be those of another server.
    """
    session = connect.open(endpoint, name=name, answered=True, settings=settings, stopping=stopping)
    try:
        with connect.translated(endpoint):
            session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            session.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
            row = session.execute("SELECT txid_current_snapshot()::text").fetchone()
        if row is None or row[0] != state:
            raise errors.SnapshotLost(f"{endpoint.role} {endpoint.label}: snapshot {snapshot} is another one by now")
        yield session
    finally:
        connect.close(session)


def changed_since(
    session: connect.Session, table: model.TableName, *, horizon: str, partitioned: bool
) -> tuple[int, int]:
    """Rows of `table` as this session sees it, and how many of them may be newer than `horizon`.

    When none is newer and the count is what it was, the table has not changed at all: an update
    leaves a new row version behind, a delete a smaller count.

    Newer is what was written by any transaction from the oldest then running one on: a snapshot
    does not list subtransactions, so a row of theirs cannot be told from an older one. A 32-bit
    xmin is read as the latest transaction with those bits: exact for anything within 2^31
    transactions; an older, frozen row may be taken for new, never a new one for old.
    """
    history, _, state = horizon.rpartition(" ")
    if not state or history != _history(session):
        state = "1:1:"  # every transaction is newer than that
    only = sql.SQL("") if partitioned else sql.SQL("ONLY ")
    query = sql.SQL(
        "WITH now AS (SELECT txid_snapshot_xmax(txid_current_snapshot()) AS next)"
        " SELECT count(*), count(*) FILTER (WHERE"
        "   now.next - ((now.next - t.xmin::text::bigint) & 4294967295) >= txid_snapshot_xmin({state}::txid_snapshot))"
        " FROM {only}{table} t, now"
    ).format(state=sql.Literal(state), only=only, table=sql.Identifier(table.schema, table.name))
    row = session.execute(query).fetchone()
    if row is None:
        raise errors.Error(f"table {table} could not be counted")
    return int(str(row[0])), int(str(row[1]))
