"""Takes a table's indexes away before a bulk load and puts them back exactly as they were.

Imports pg.connect and the words. A definition holds everything that DROP INDEX loses: text, constraint
and its timing, tablespace, comments, clustering, replica identity, statistics targets, dependence on
extensions. It is JSON in the ledger, written in the transaction that drops the index, so it can be put
back from any machine.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, LiteralString

from psycopg import rows, sql

from mishika_migrate import errors, model
from mishika_migrate.pg import connect


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One index. `create` is `pg_get_indexdef()`; `constraint` is `p`, `u` or empty for a plain index.

    `tablespace` is empty for the database's own. `statistics` are those columns, by number, that have a
    target of their own; `extensions` are those with which the index is to be dropped.
    """

    name: str
    create: str
    constraint: str
    deferrable: bool
    deferred: bool
    tablespace: str
    comment: str | None
    constraint_comment: str | None
    clustered: bool
    replica_identity: bool
    statistics: tuple[tuple[int, int], ...] = ()
    extensions: tuple[str, ...] = ()


def dumps(definition: Definition) -> str:
    return json.dumps(asdict(definition), ensure_ascii=False)


def loads(text: str) -> Definition:
    """Also what a version wrote that knew less."""
    return _definition(json.loads(text))


def _definition(found: dict[str, Any]) -> Definition:
    """Neither JSON nor the server has tuples."""
    statistics = tuple((int(column), int(target)) for column, target in found.pop("statistics", ()))
    return Definition(**{**found, "extensions": tuple(found.get("extensions", ()))}, statistics=statistics)


# attstattarget is NULL by default since 17 and -1 before.
_READ = """
SELECT c.relname::text AS name, pg_get_indexdef(i.indexrelid) AS create,
       coalesce(k.contype::text, '') AS constraint,
       coalesce(k.condeferrable, false) AS deferrable, coalesce(k.condeferred, false) AS deferred,
       coalesce(s.spcname::text, '') AS tablespace,
       obj_description(i.indexrelid, 'pg_class') AS comment,
       obj_description(k.oid, 'pg_constraint') AS constraint_comment,
       i.indisclustered AS clustered, i.indisreplident AS replica_identity,
       ARRAY (SELECT ARRAY[a.attnum, a.attstattarget] FROM pg_attribute a
              WHERE a.attrelid = i.indexrelid AND a.attstattarget >= 0 ORDER BY a.attnum) AS statistics,
       ARRAY (SELECT e.extname::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
              WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid AND d.deptype = 'x'
                AND d.refclassid = 'pg_extension'::regclass ORDER BY 1) AS extensions
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace
LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x')
WHERE i.indrelid = %(table)s::regclass AND i.indisvalid AND c.relname = ANY (%(names)s)
ORDER BY c.relname
"""


# A build sorts in this much memory: what is set already, or a quarter of the shared buffers if that is more,
# because those were sized for the machine. Several builds run at once.
_ROOM = """
SELECT set_config('maintenance_work_mem', greatest(
  pg_size_bytes(current_setting('maintenance_work_mem')),
  least(pg_size_bytes(current_setting('shared_buffers')) / 4, 1073741824)) / 1024 || 'kB', false)
"""


def make_room(session: connect.Session) -> None:
    """Memory for builds in this session."""
    session.execute(_ROOM)


def read(session: connect.Session, table: model.TableName, names: Collection[str]) -> tuple[Definition, ...]:
    """Those of the named indexes that the table has."""
    cursor = session.cursor(row_factory=rows.dict_row)
    found = cursor.execute(_READ, {"table": _name(table).as_string(), "names": list(names)})
    return tuple(map(_definition, found))


def drop(session: connect.Session, table: model.TableName, definition: Definition) -> None:
    """In the caller's transaction, after the definition is in the ledger."""
    if definition.constraint:
        session.execute(
            sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(_name(table), sql.Identifier(definition.name))
        )
    else:
        session.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(table.schema, definition.name)))


def build(session: connect.Session, table: model.TableName, definition: Definition) -> None:
    """Creates the bare index, unless it is there already with this very definition.

    Builds of one table run side by side; what needs the table alone is left to `complete`.
    """
    present, usable = _present(session, table, definition.name)
    if present == definition.create and usable:
        return
    if present == definition.create:
        # What a CREATE INDEX CONCURRENTLY leaves that was ended: it is kept up to date at best, and never used.
        session.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(table.schema, definition.name)))
    elif present is not None:
        raise errors.Refused(
            f"index {definition.name} on {table} is there with another definition: {present}",
            hint=f"Drop it, then continue; it should be: {definition.create}",
        )
    session.execute(
        sql.SQL("SELECT set_config('default_tablespace', {}, true)").format(sql.Literal(definition.tablespace))
    )
    session.execute(sql.SQL(_trusted(definition.create)))


def complete(session: connect.Session, table: model.TableName, definition: Definition) -> None:
    """Makes the built index what it was: constraint, comments, clustering and whatever else it had."""
    name, index = _name(table), sql.Identifier(definition.name)
    if definition.constraint and not _has_constraint(session, table, definition.name):
        session.execute(
            sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {} USING INDEX {} {}").format(
                name,
                index,
                sql.SQL("PRIMARY KEY" if definition.constraint == "p" else "UNIQUE"),
                index,
                sql.SQL(_timing(definition)),
            )
        )
    qualified = sql.Identifier(table.schema, definition.name)
    if definition.comment is not None:
        session.execute(sql.SQL("COMMENT ON INDEX {} IS {}").format(qualified, sql.Literal(definition.comment)))
    if definition.constraint_comment is not None:
        text = sql.Literal(definition.constraint_comment)
        session.execute(sql.SQL("COMMENT ON CONSTRAINT {} ON {} IS {}").format(index, name, text))
    if definition.clustered:
        session.execute(sql.SQL("ALTER TABLE {} CLUSTER ON {}").format(name, index))
    if definition.replica_identity:
        session.execute(sql.SQL("ALTER TABLE {} REPLICA IDENTITY USING INDEX {}").format(name, index))
    for column, target in definition.statistics:
        session.execute(sql.SQL("ALTER INDEX {} ALTER COLUMN {} SET STATISTICS {}").format(qualified, column, target))
    for extension in definition.extensions:
        session.execute(sql.SQL("ALTER INDEX {} DEPENDS ON EXTENSION {}").format(qualified, sql.Identifier(extension)))


def _timing(definition: Definition) -> LiteralString:
    if not definition.deferrable:
        return ""
    return "DEFERRABLE INITIALLY DEFERRED" if definition.deferred else "DEFERRABLE"


def _present(session: connect.Session, table: model.TableName, name: str) -> tuple[str | None, bool]:
    """Its definition, None where there is none of that name, and whether it can be used."""
    row = session.execute(
        "SELECT pg_get_indexdef(i.indexrelid), i.indisvalid AND i.indisready FROM pg_index i"
        " JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = %s::regclass AND c.relname = %s",
        [_name(table).as_string(), name],
    ).fetchone()
    return (str(row[0]), bool(row[1])) if row else (None, False)


def _has_constraint(session: connect.Session, table: model.TableName, name: str) -> bool:
    row = session.execute(
        "SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = %s::regclass AND conname = %s)",
        [_name(table).as_string(), name],
    ).fetchone()
    return bool(row and row[0])


def _name(table: model.TableName) -> sql.Identifier:
    return sql.Identifier(table.schema, table.name)


def _trusted(text: str) -> LiteralString:
    # The server's own text of one of its objects.
    return text
