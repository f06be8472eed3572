"""What one server has, read once: one query a fact, never one a table.

Imports pg.connect, pg.facts and the words. All texts the server prints (types, defaults, view and index
definitions) are printed with the endpoint's schema in the search path, so that they mean the same
in a schema of another name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from psycopg import rows, sql

from mishika_migrate import model
from mishika_migrate.pg import connect, facts

# Tables whose heap (without TOAST) has at most this many bytes are counted. Larger ones are estimated from
# their statistics, and where they were never analyzed, from a sample of about as much.
_COUNTED_BYTES = 8 * 1024 * 1024

Record = dict[str, Any]


def read(session: connect.Session, endpoint: model.Endpoint, *, migrations: str | None = None) -> model.Catalog:
    """Everything about the endpoint's schema, in one read-only transaction.

    `migrations` names the table of deployed schema changes (Prisma's layout), if there is one.
    What the role may not look at is left out, never an error.
    """
    session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    session.execute("SELECT set_config('search_path', quote_ident(%s), true)", [endpoint.schema])
    reader = _Reader(session, endpoint.schema)
    server = reader.all(facts.SERVER)[0]
    countable = server.pop("may_count_sessions")
    if server["version"] < model.OLDEST_SERVER:
        session.execute("COMMIT")
        return model.Catalog(endpoint=endpoint, tables=(), **server)
    found = reader.all(facts.TABLES)
    reader.oids = [table["oid"] for table in found]
    looked = [row for row in found if _open(server, row)]
    tables = _tables(reader, found, looked)
    catalog = model.Catalog(
        endpoint=endpoint,
        tables=tables,
        sequences=tuple(model.Sequence(**row) for row in reader.all(facts.SEQUENCES)),
        views=tuple(_view(row) for row in reader.all(facts.VIEWS)),
        migrations=_migrations(reader, tables, looked, migrations),
        elsewhere=tuple(model.TableName(**row) for row in reader.all(facts.ELSEWHERE)),
        types=tuple(_own_type(row) for row in reader.all(facts.TYPES)),
        others=tuple(model.Relation(**row) for row in reader.all(facts.OTHERS)),
        limits=tuple(model.Limit(**row) for row in reader.all(facts.LIMITS)) if countable else (),
        extensions=tuple(model.Extension(**row) for row in reader.all(facts.EXTENSIONS)),
        **server,
    )
    session.execute("COMMIT")
    return catalog


def _open(server: Record, table: Record) -> bool:
    """Whether the role can read the table's rows, all of them."""
    return bool(server["may_use_schema"]) and "SELECT" in table["privileges"] and not table["hidden"]


class _Reader:
    def __init__(self, session: connect.Session, schema: str) -> None:
        self._cursor = session.cursor(row_factory=rows.dict_row)
        self.schema = schema
        self.oids: list[int] = []

    def all(self, query: str | sql.Composed) -> list[Record]:
        # A composed query has its values in it, and perhaps a table's name with a percent sign.
        values = {"schema": self.schema, "oids": self.oids} if isinstance(query, str) else None
        return self._cursor.execute(query, values).fetchall()

    def by_table(self, query: str) -> dict[int, list[Record]]:
        grouped: dict[int, list[Record]] = {oid: [] for oid in self.oids}
        for row in self.all(query):
            grouped[row.pop("oid")].append(row)
        return grouped


def _tables(reader: _Reader, found: list[Record], looked: list[Record]) -> tuple[model.Table, ...]:
    columns = reader.by_table(facts.COLUMNS)
    foreign_keys = reader.by_table(facts.FOREIGN_KEYS)
    indexes = reader.by_table(facts.INDEXES)
    triggers = reader.by_table(facts.TRIGGERS)
    constraints = reader.by_table(facts.CONSTRAINTS)
    partitions = reader.by_table(facts.PARTITIONS)
    extensions = reader.by_table(facts.NEEDED_EXTENSIONS)
    counted, occupied = _look_inside(reader, looked)
    return tuple(
        model.Table(
            name=table["name"],
            columns=tuple(model.Column(**{**row, "labels": tuple(row["labels"])}) for row in columns[table["oid"]]),
            rows=counted.get(table["name"], max(table["rows"] or 0.0, 0.0)),
            bytes=table["bytes"] or 0,
            occupied=occupied.get(table["name"]),
            pieces=tuple(_piece(row) for row in table["pieces"]),
            partitioned=table["partitioned"],
            foreign_keys=tuple(_foreign_key(row) for row in foreign_keys[table["oid"]]),
            indexes=tuple(model.Index(**{**row, "columns": tuple(row["columns"])}) for row in indexes[table["oid"]]),
            triggers=tuple(model.Trigger(**_on(row)) for row in triggers[table["oid"]]),
            constraints=tuple(model.Constraint(**_on(row)) for row in constraints[table["oid"]]),
            bounds=tuple(row["bound"] for row in partitions[table["oid"]]),
            gaps=tuple(_on(row)["on"] for row in partitions[table["oid"]] if row["gap"]),
            extensions=tuple(row["name"] for row in extensions[table["oid"]]),
            privileges=frozenset(table["privileges"]),
            hidden=table["hidden"],
            forced=table["forced"],
            owner=table["owner"],
        )
        for table in found
    )


def _piece(row: Mapping[str, Any]) -> model.Piece:
    return model.Piece(
        name=model.TableName(schema=row["schema"], name=row["name"]),
        pages=row["pages"],
        bytes=row["bytes"],
        rows=row["rows"],
        readable=row["readable"],
    )


def _on(row: Mapping[str, Any]) -> Record:
    """The row with its schema and table as one name."""
    others = {name: value for name, value in row.items() if name not in ("schema", "table")}
    return {**others, "on": model.TableName(schema=row["schema"], name=row["table"])}


def _own_type(row: Mapping[str, Any]) -> model.OwnType:
    parts = tuple((name, kind) for name, kind in row["parts"])
    return model.OwnType(name=row["name"], parts=parts, checks=tuple(row["checks"]))


def _foreign_key(row: Mapping[str, Any]) -> model.ForeignKey:
    return model.ForeignKey(
        name=row["name"],
        columns=tuple(row["columns"]),
        references=row["references"],
        referenced_columns=tuple(row["referenced"]),
        deferrable=row["deferrable"],
    )


def _view(row: Record) -> model.View:
    return model.View(
        name=row["name"],
        definition=row["definition"],
        reads=tuple(row["reads"]),
        columns=tuple((table, column) for table, column in row["columns"]),
        foreign=tuple(row["foreign"]),
    )


def _look_inside(reader: _Reader, looked: Iterable[Record]) -> tuple[dict[str, float], dict[str, bool]]:
    """Rows of small tables, and for every table whether it holds any: one query."""
    selects = [
        sql.SQL("SELECT {name}, ({count})::float8, EXISTS (SELECT FROM {table})").format(
            name=sql.Literal(row["name"]), count=_count(row, table), table=table
        )
        for row in looked
        for table in [_rows_of(reader.schema, row)]
    ]
    if not selects:
        return {}, {}
    query = sql.SQL("SELECT * FROM ({}) x (name, rows, occupied)").format(sql.SQL(" UNION ALL ").join(selects))
    answers = reader.all(query)
    return (
        {row["name"]: float(row["rows"]) for row in answers if row["rows"] is not None},
        {row["name"]: row["occupied"] for row in answers},
    )


def _rows_of(schema: str, table: Record) -> sql.Composed:
    """ONLY keeps rows of inheriting tables out: they are tables of their own."""
    only = sql.SQL("" if table["partitioned"] else "ONLY ")
    return sql.SQL("{}{}").format(only, sql.Identifier(schema, table["name"]))


def _count(row: Record, table: sql.Composed) -> sql.Composable:
    heap = row["heap"] or 0
    if heap <= _COUNTED_BYTES:
        return sql.SQL("(SELECT count(*) FROM {})").format(table)
    if row["rows"] is not None:
        return sql.SQL("NULL")
    percent = 100.0 * _COUNTED_BYTES / heap
    return sql.SQL("(SELECT count(*) * {factor} FROM {table} TABLESAMPLE SYSTEM ({percent}))").format(
        factor=sql.Literal(100.0 / percent), table=table, percent=sql.Literal(percent)
    )


_PRISMA = frozenset({"migration_name", "checksum", "started_at", "finished_at", "rolled_back_at"})


def _migrations(
    reader: _Reader, tables: Iterable[model.Table], looked: Iterable[Record], name: str | None
) -> tuple[model.Migration, ...] | None:
    table = next((table for table in tables if table.name == name), None)
    if table is None or table.name not in {row["name"] for row in looked}:
        return None
    if not {column.name for column in table.columns} >= _PRISMA:
        return None
    # One that was rolled back may have been deployed again since; it counts for nothing.
    query = sql.SQL(
        "SELECT DISTINCT ON (migration_name) migration_name AS name, checksum,"
        " finished_at IS NOT NULL AS finished FROM {}"
        " WHERE rolled_back_at IS NULL ORDER BY migration_name, started_at DESC"
    ).format(sql.Identifier(reader.schema, table.name))
    return tuple(model.Migration(**row) for row in reader.all(query))
