"""The write fence: a trigger on every table of the schema that turns each write away with 25006.

Imports pg.connect, pg.ddl and the words. `default_transaction_read_only` would be none: BEGIN READ WRITE
walks through it. A trigger binds owners and superusers too, but not the apply workers of a
subscription, which fire no ordinary triggers.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from mishika_migrate import model
from mishika_migrate.pg import connect, ddl

TRIGGER = "mishika_migrate_fence"
PASS, WORD = "mishika_migrate.pass", "on"
"""The setting by which a session of ours writes behind the fence, and its value."""

_STATE = "25006"  # read_only_sql_transaction, which clients know from standbys

# Not to_regproc: a role without a right to the schema is told 42501 by it.
_OID = (
    "(SELECT f.oid FROM pg_proc f JOIN pg_namespace s ON s.oid = f.pronamespace"
    " WHERE s.nspname = 'mishika_migrate' AND f.proname = 'fence')"
)

_FUNCTION = """
CREATE OR REPLACE FUNCTION mishika_migrate.fence() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS {body}
"""

_CLOSED = """
BEGIN
  IF pg_catalog.current_setting('{setting}', true) = '{word}' THEN
    RETURN NULL;
  END IF;
  RAISE EXCEPTION USING ERRCODE = '{state}', MESSAGE = {message}, HINT = {hint};
END
"""

_OPEN = "BEGIN RETURN NULL; END"
_REOPENED = "BEGIN RETURN NULL; END /* without the other side, which may have writes that this one has not */"


def tables(session: connect.Session, schema: str) -> tuple[model.TableName, ...]:
    """All that a write can go to: every table of the schema, partitions too."""
    found = session.execute(
        "SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(%s))"
        " AND relkind IN ('r', 'p') ORDER BY oid",
        [schema],
    )
    return tuple(model.TableName(schema=schema, name=str(row[0])) for row in found)


def placeable(session: connect.Session) -> bool:
    """Whether the role may make the fence's function: in our schema, or with it."""
    row = session.execute(
        "SELECT coalesce(has_schema_privilege(to_regnamespace('mishika_migrate')::oid, 'CREATE'),"
        " has_database_privilege(current_database(), 'CREATE'))"
    ).fetchone()
    return bool(row and row[0])


def unfenceable(session: connect.Session, schema: str) -> tuple[str, ...]:
    """Tables that the role can give no trigger, or not lock against writers."""
    found = session.execute(
        "SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(%s))"
        " AND relkind IN ('r', 'p') AND NOT pg_has_role(relowner, 'USAGE') ORDER BY 1",
        [schema],
    )
    return tuple(str(row[0]) for row in found)


def raise_(
    session: connect.Session, fenced: Sequence[model.TableName], *, message: str, hint: str, patience: float
) -> None:
    """Waits until nobody writes, `patience` seconds at most for each table (55P03), and from then on nobody can.

    When it returns, every write that was acknowledged before is committed. Table by table, because who holds one
    lock while waiting for the next one meets a proxy that does so in another order: locking all at once ended in
    deadlocks (40P01) under 300 requests a second. What a transaction wrote before it met the fence is rolled back.
    """
    body = _CLOSED.format(setting=PASS, word=WORD, state=_STATE, message=_literal(message), hint=_literal(hint))
    ddl.make_schema(session)
    session.execute(_FUNCTION.format(body=_literal(body)).encode())
    # CREATE OR REPLACE TRIGGER came with 14; a DROP waits for readers, too.
    replacing = session.info.server_version >= 14_00_00
    for table in fenced:
        names = {"trigger": sql.Identifier(TRIGGER), "table": _name(table)}
        with connect.transaction(session):
            session.execute(f"SET LOCAL lock_timeout = {int(patience * 1000)}".encode())
            session.execute("SET LOCAL client_min_messages = error")
            if not replacing:
                session.execute(sql.SQL("DROP TRIGGER IF EXISTS {trigger} ON {table}").format(**names))
            session.execute(
                sql.SQL(
                    "CREATE {replace} TRIGGER {trigger} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table}"
                    " FOR EACH STATEMENT EXECUTE FUNCTION mishika_migrate.fence()"
                ).format(replace=sql.SQL("OR REPLACE" if replacing else ""), **names)
            )


def lift(session: connect.Session, *, alone: bool = False) -> None:
    """Everybody may write again, at once: it waits for no lock. The triggers stay, and let everything through.

    `alone` notes in its text that the other side was not asked (see `reopened`).
    """
    if exists(session):
        session.execute(_FUNCTION.format(body=_literal(_REOPENED if alone else _OPEN)).encode())


def reopened(session: connect.Session) -> bool:
    """Whether it was lifted without the other side, which may have writes that this one has not."""
    row = session.execute(
        (f"SELECT prosrc LIKE '%/* without the other side%' FROM pg_proc WHERE oid = {_OID}").encode()
    ).fetchone()
    return bool(row and row[0])


def exists(session: connect.Session) -> bool:
    row = session.execute(f"SELECT {_OID} IS NOT NULL".encode()).fetchone()
    return bool(row and row[0])


def standing(session: connect.Session) -> str:
    """The message with which writes are turned away; empty when they are not."""
    row = session.execute(
        (
            "SELECT substring(prosrc FROM 'MESSAGE = ''(([^'']|'''')*)''') FROM pg_proc"
            f" WHERE oid = {_OID}"
            " AND EXISTS (SELECT FROM pg_trigger WHERE tgfoid = pg_proc.oid AND tgenabled <> 'D')"
        ).encode()
    ).fetchone()
    return str(row[0]).replace("''", "'") if row and row[0] else ""


def remove(session: connect.Session, *, patience: float) -> None:
    """Takes the triggers away, each as soon as nobody uses its table (55P03 after `patience` seconds)."""
    found = session.execute(
        (
            "SELECT n.nspname::text, c.relname::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            f" WHERE t.tgfoid = {_OID} AND t.tgparentid = 0"
        ).encode()
    ).fetchall()
    for schema, table in found:
        with connect.transaction(session):
            session.execute(f"SET LOCAL lock_timeout = {int(patience * 1000)}".encode())
            session.execute(
                sql.SQL("DROP TRIGGER {} ON {}").format(
                    sql.Identifier(TRIGGER), sql.Identifier(str(schema), str(table))
                )
            )
    session.execute("DROP FUNCTION IF EXISTS mishika_migrate.fence()")


def _name(table: model.TableName) -> sql.Identifier:
    return sql.Identifier(table.schema, table.name)


def _literal(text: str) -> str:
    return sql.Literal(text).as_string()
