"""What of this tool's a session's role may not remove, and the statements by which a person removes it.

Imports pg.connect, pg.ledger, pg.replication and the words. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from psycopg import sql

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, ledger, replication


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An object that the role may not remove: why, as the end of a sentence, and what mends it."""

    what: str
    why: str
    fix: str


_OWNED = """
SELECT what, pg_get_userbyid(owner)::text, fix FROM (
  SELECT 1, 'subscription ' || subname, subowner,
      CASE WHEN current_setting('server_version_num')::int >= 160000
        THEN format('ALTER SUBSCRIPTION %I OWNER TO %I;', subname, current_user) ELSE '' END
    FROM pg_subscription WHERE starts_with(subname, 'mishika_migrate_')
      AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
  UNION ALL SELECT 2, 'publication ' || pubname, pubowner,
      format('ALTER PUBLICATION %I OWNER TO %I;', pubname, current_user)
    FROM pg_publication WHERE starts_with(pubname, 'mishika_migrate_')
  UNION ALL SELECT 3, 'trigger ' || t.tgname || ' on ' || count(*) || ' tables', c.relowner,
      format('GRANT %I TO %I;', pg_get_userbyid(c.relowner), current_user)
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    WHERE t.tgname = 'mishika_migrate_fence' AND NOT t.tgisinternal AND t.tgparentid = 0 GROUP BY t.tgname, c.relowner
  UNION ALL SELECT 4, 'schema mishika_migrate', nspowner,
      format('ALTER SCHEMA mishika_migrate OWNER TO %I;', current_user)
    FROM pg_namespace WHERE nspname = 'mishika_migrate'
  UNION ALL SELECT 5, 'function mishika_migrate.fence', proowner,
      format('ALTER FUNCTION mishika_migrate.fence() OWNER TO %I;', current_user)
    FROM pg_proc WHERE pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'mishika_migrate')
      AND proname = 'fence' AND pronargs = 0
  UNION ALL SELECT 6, 'table mishika_migrate.' || relname, relowner,
      format('ALTER TABLE mishika_migrate.%I OWNER TO %I;', relname, current_user)
    FROM pg_class WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'mishika_migrate')
      AND relkind = 'r'
) o (place, what, owner, fix) WHERE NOT pg_has_role(owner, 'USAGE') ORDER BY place, what
"""


def kept(session: connect.Session, endpoint: model.Endpoint) -> Iterator[Kept]:
    """All of it that is there and would stay, because the role lacks a right or because it is not this tool's alone."""
    if replication.slots(session) and (denied := _denied(session, endpoint)):
        yield denied
    schema = True
    for row in session.execute(_OWNED.encode()).fetchall():
        what, owner, fix = map(str, row)
        schema = schema and what != "schema mishika_migrate"
        yield Kept(what=what, why=f"is owned by {owner}", fix=fix or f"connect as {owner}")
    # Who may not look into the schema is told 42501 by the question.
    if schema and (strangers := ledger.strangers(session)):
        more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
        yield Kept(
            what="schema mishika_migrate",
            why=f"holds what is not this tool's: {', '.join(strangers[:5])}{more}",
            fix="move it to another schema, or drop it",
        )


def _denied(session: connect.Session, endpoint: model.Endpoint) -> Kept | None:
    """Slots. Tried for real with one that is not there, because services have roles of their own for it: the right is
    asked for before the name (42501, then 42704; slotfuncs.c)."""
    try:
        with connect.translated(endpoint):
            session.execute("SELECT pg_drop_replication_slot('mishika_migrate_none')")
    except errors.Denied:
        user = sql.Identifier(session.info.user).as_string()
        row = session.execute("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_replication')").fetchone()
        fix = f"GRANT rds_replication TO {user};" if row and row[0] else f"ALTER ROLE {user} REPLICATION;"
        names = ", ".join(slot.name for slot in replication.slots(session))
        return Kept(what=f"slot {names}", why="needs a role that may replicate", fix=fix)
    except errors.ServerError:
        pass  # there is none of that name
    return None


def by_hand(subscriptions: Sequence[str], publications: Sequence[str]) -> tuple[str, ...]:
    """The statements that remove everything from a server that does not answer just now, for when it does."""
    said = []
    for name in subscriptions:
        quoted = sql.Identifier(name).as_string()
        said.append(
            f"ALTER SUBSCRIPTION {quoted} DISABLE; ALTER SUBSCRIPTION {quoted} SET (slot_name = NONE);"
            f" DROP SUBSCRIPTION {quoted};"
        )
    said.append(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
        " WHERE slot_name LIKE 'mishika\\_migrate\\_%' AND database = current_database();"
    )
    said += [f"DROP PUBLICATION IF EXISTS {sql.Identifier(name).as_string()};" for name in publications]
    return (*said, "DROP SCHEMA IF EXISTS mishika_migrate CASCADE; -- with it go the fence's triggers")
