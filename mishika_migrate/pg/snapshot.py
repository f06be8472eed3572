"""One state of the source for all readers: a holder exports it, every worker imports it.

Imports pg.connect and the words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

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
    is the same one: a server that was restarted gives the same names again.

    The tables of `steps` are locked against what no snapshot protects from (TRUNCATE, VACUUM FULL,
    ALTER TABLE): rows of another file would be missed or read twice. Readers and writers pass.

    With `importing` it is the snapshot that this makes, after the locks, and keeps while it is open.
    """

    def __init__(
        self,
        endpoint: model.Endpoint,
        *,
        run: str,
        steps: Sequence[model.CopyTable],
        settings: Mapping[str, str] | None = None,
        stopping: Callable[[], bool] = connect.never,
        importing: Callable[[], AbstractContextManager[str]] | None = None,
    ) -> None:
        self._session = connect.open(endpoint, name=name(run), settings=settings, stopping=stopping)
        try:
            with connect.translated(endpoint):
                self._history = _history(self._session)
                self._session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                self._lock(endpoint, steps)
                with importing() if importing else nullcontext("") as given:
                    if given:
                        self._session.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(given)))
                    self.name, self.state = self._export()
                self._check_leaves(endpoint, steps)
                self._files = self._look_at_files(steps)
        except BaseException:
            self.release()
            raise

    def _lock(self, endpoint: model.Endpoint, steps: Sequence[model.CopyTable]) -> None:
        """Before the first query, so that the snapshot is younger than the locks."""
        wanted = dict.fromkeys((step.root or step.source, step.partitioned or step.root is not None) for step in steps)
        for table, leaves in wanted:
            # One by one: the server does not say which of several it waited for.
            with connect.translated(endpoint, f"table {table.name}"):
                self._session.execute(
                    sql.SQL("LOCK TABLE {}{} IN ACCESS SHARE MODE").format(
                        sql.SQL("" if leaves else "ONLY "), sql.Identifier(table.schema, table.name)
                    )
                )

    def _export(self) -> tuple[str, str]:
        row = self._session.execute("SELECT pg_export_snapshot(), txid_current_snapshot()::text").fetchone()
        assert row is not None
        return str(row[0]), str(row[1])

    def _look_at_files(self, steps: Sequence[model.CopyTable]) -> dict[model.TableName, str]:
        """The file of each table; of a partitioned one, which has none, a word for those of all its leaves."""
        tables = list(dict.fromkeys(step.source for step in steps))
        names = [sql.Identifier(table.schema, table.name).as_string() for table in tables]
        found = self._session.execute(
            "SELECT coalesce(nullif(pg_relation_filenode(name::regclass), 0)::text,"
            "  (SELECT encode(sha256(coalesce(string_agg(pg_relation_filenode(relid)::text, ',' ORDER BY relid), '')"
            "     ::bytea), 'hex') FROM pg_partition_tree(name::regclass)))"
            " FROM unnest(%s::text[]) WITH ORDINALITY u (name, n) ORDER BY n",
            [names],
        )
        return {table: str(row[0]) for table, row in zip(tables, found, strict=True)}

    def _check_leaves(self, endpoint: model.Endpoint, steps: Sequence[model.CopyTable]) -> None:
        """A leaf that came or went since the plan would be missed, or be asked for in vain."""
        planned: dict[model.TableName, set[model.TableName]] = {}
        for step in steps:
            if step.root is not None:
                planned.setdefault(step.root, set()).add(step.source)
        for root, leaves in planned.items():
            found = self._session.execute(
                "SELECT n.nspname::text, c.relname::text FROM pg_partition_tree(%s::regclass) t"
                " JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE t.isleaf",
                [sql.Identifier(root.schema, root.name).as_string()],
            )
            if {model.TableName(schema=str(row[0]), name=str(row[1])) for row in found} != leaves:
                raise errors.Refused(
                    f"the partitions of {root} on {endpoint.label} are other ones than when the plan was made",
                    hint="Run the same command again; undo an unfinished run first: `mishika-migrate reset`.",
                )

    def horizon(self, step: model.CopyTable) -> str:
        """By which `delta` can tell, when the snapshot is long gone, which of the step's rows were visible in it."""
        return f"{self._history} {self._files[step.source]} {self.state}"

    def continues(self, horizon: str, step: model.CopyTable) -> bool:
        """Whether transaction numbers and row addresses of that horizon still mean the same."""
        return horizon.split(" ")[:2] == [self._history, self._files[step.source]]

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


def rows_of(step: model.CopyTable) -> sql.Composed:
    """The FROM clause of the step's rows; ONLY keeps rows of inheriting tables out, which are not ours."""
    table = sql.SQL("{}{}").format(
        sql.SQL("" if step.partitioned else "ONLY "), sql.Identifier(step.source.schema, step.source.name)
    )
    bounds: list[sql.Composable] = []
    if step.pages is not None:
        bounds.append(sql.SQL("ctid >= {}").format(_place(step.pages.low)))
        if step.pages.high is not None:
            bounds.append(sql.SQL("ctid < {}").format(_place(step.pages.high)))
    if (interval := step.slice or step.within) is not None:
        bounds.append(inside(interval))
    if not bounds:
        return table
    return sql.SQL("{} WHERE {}").format(table, sql.SQL(" AND ").join(bounds))


def inside(interval: model.Interval | None) -> sql.Composable:
    """A condition on a table's rows, true for all without an interval."""
    if interval is None:
        return sql.SQL("true")
    column = sql.Identifier(interval.column)
    bounds = [
        sql.SQL("{} {} {}").format(column, sql.SQL(sign), sql.Literal(value))
        for sign, value in ((">=", interval.since), ("<", interval.before))
        if value is not None
    ]
    return sql.SQL(" AND ").join(bounds) if bounds else sql.SQL("{} IS NOT NULL").format(column)


def _place(page: int) -> sql.Composed:
    return sql.SQL("{}::tid").format(sql.Literal(f"({page},0)"))
