"""Sequences, views and statistics of the target, schema text applied to an empty one, and the tool's own schema.

Imports pg.connect and the words.
"""

from __future__ import annotations

import re
from typing import LiteralString

from psycopg import sql

from mishika_migrate import model
from mishika_migrate.pg import connect


def make_schema(session: connect.Session) -> None:
    """The tool's own, where it is missing: to say IF NOT EXISTS takes CREATE on the database even where it is there."""
    if session.execute("SELECT to_regnamespace('mishika_migrate')").fetchone() == (None,):
        session.execute("CREATE SCHEMA IF NOT EXISTS mishika_migrate")


def last_value(source: connect.Session, step: model.SetSequence) -> tuple[int, bool]:
    """Where the source's sequence is, and whether that number has been handed out."""
    row = source.execute(sql.SQL("SELECT last_value, is_called FROM {}").format(_name(step.source))).fetchone()
    assert row is not None
    return int(str(row[0])), bool(row[1])


def set_sequence(
    target: connect.Session, step: model.SetSequence, value: int, called: bool, *, margin: int = 0
) -> None:
    """Gives the target's sequence the source's `last_value`, and `margin` more; one that is ahead already stays.

    Ahead is further down for one that counts down.
    `max(column)` would hand out the number of a deleted row again. setval is not undone by a
    rollback, which can only leave the sequence ahead: harmless.
    """
    target.execute(
        sql.SQL(
            "SELECT setval({regclass}, wanted, {called})"
            " FROM {sequence} t, pg_sequence s, sign(s.seqincrement::numeric) AS way,"
            " LATERAL (SELECT greatest(least({value} + {margin} * way, s.seqmax), s.seqmin)::int8 AS wanted) w"
            " WHERE s.seqrelid = {regclass}::regclass"
            " AND (t.last_value * way, t.is_called) < (wanted * way, {called})"
        ).format(
            margin=sql.Literal(margin),
            regclass=sql.Literal(_name(step.target).as_string()),
            value=sql.Literal(value),
            called=sql.Literal(called),
            sequence=_name(step.target),
        )
    )


def advance_sequences(session: connect.Session, schema: str, *, margin: int) -> tuple[str, ...]:
    """Takes every sequence of a column past the rows that are there, and `margin` more; their names.

    For a server whose rows came by replication, which leaves sequences alone, when the one that knows
    their values is lost.
    """
    found = session.execute(
        "SELECT s.relname::text, n.nspname::text, t.relname::text, a.attname::text FROM pg_class s"
        " JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.deptype IN ('a', 'i')"
        " JOIN pg_class t ON t.oid = d.refobjid JOIN pg_namespace n ON n.oid = t.relnamespace"
        " JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid"
        "   AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)"
        " WHERE s.relkind = 'S' AND s.relnamespace = to_regnamespace(quote_ident(%s))"
        "   AND d.refclassid = 'pg_class'::regclass ORDER BY 1",
        [schema],
    ).fetchall()
    for name, schema_of, table, column in found:
        place = model.TableName(schema=schema, name=str(name))
        furthest = session.execute(
            sql.SQL(
                "SELECT (CASE WHEN q.seqincrement > 0"
                " THEN greatest((SELECT max({column}) FROM {table}), s.last_value)"
                " ELSE least((SELECT min({column}) FROM {table}), s.last_value) END)::int8"
                " FROM pg_sequence q, {sequence} s WHERE q.seqrelid = {regclass}::regclass"
            ).format(
                column=sql.Identifier(str(column)),
                sequence=_name(place),
                table=sql.Identifier(str(schema_of), str(table)),
                regclass=sql.Literal(_name(place).as_string()),
            )
        ).fetchone()
        assert furthest is not None
        step = model.SetSequence(source=place, target=place)
        set_sequence(session, step, int(str(furthest[0])), True, margin=margin)
    return tuple(str(row[0]) for row in found)


def references(target: connect.Session) -> list[tuple[model.TableName, model.TableName]]:
    """Every foreign key of the database: the table that references, and the one that is referenced."""
    found = target.execute(
        "SELECT cn.nspname, c.relname, pn.nspname, p.relname FROM pg_constraint k"
        " JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace"
        " JOIN pg_class p ON p.oid = k.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace"
        " WHERE k.contype = 'f' ORDER BY 1, 2, 3, 4"
    )
    return [
        (
            model.TableName(schema=str(row[0]), name=str(row[1])),
            model.TableName(schema=str(row[2]), name=str(row[3])),
        )
        for row in found
    ]


def create_view(target: connect.Session, step: model.CreateView) -> None:
    """Creates the view in the caller's transaction and gives it to `owner` where the role may.

    A view that belongs to another role cannot be read by the proxy: where it cannot be given away,
    the owner is granted all privileges on it.
    """
    target.execute(
        sql.SQL("SELECT set_config('search_path', {}, true)").format(
            sql.Literal(sql.Identifier(step.target.schema).as_string())
        )
    )
    target.execute(
        sql.SQL("CREATE OR REPLACE VIEW {} AS {}").format(_name(step.target), sql.SQL(_trusted(step.definition)))
    )
    # PostgreSQL 16 told membership from the right to SET ROLE. The new owner must be allowed to create, too.
    way = "SET" if target.info.server_version >= 16_00_00 else "MEMBER"
    row = target.execute(
        "SELECT pg_has_role(r.oid, %(way)s) AND"
        " (has_schema_privilege(r.oid, %(schema)s, 'CREATE') OR me.rolsuper)"
        " FROM pg_roles r, pg_roles me WHERE me.rolname = current_user AND r.rolname = %(owner)s AND r.oid <> me.oid",
        {"owner": step.owner, "way": way, "schema": step.target.schema},
    ).fetchone()
    if row is None:
        return  # it is the creator's
    give = sql.SQL("ALTER VIEW {} OWNER TO {}" if row[0] else "GRANT ALL ON {} TO {}")
    target.execute(give.format(_name(step.target), sql.Identifier(step.owner)))


def analyze(target: connect.Session, step: model.Analyze) -> None:
    """Without the privilege the server warns and skips; that is no failure."""
    columns = sql.SQL(", ").join(map(sql.Identifier, step.columns))
    named = sql.SQL("ANALYZE {} ({})").format(_name(step.target), columns)
    target.execute(named if step.columns else sql.SQL("ANALYZE {}").format(_name(step.target)))


def apply(target: connect.Session, script: str, *, schema: str, owner: str = "") -> None:
    """Runs a dump's text in the caller's transaction, as `owner`: either the whole schema is there, or nothing."""
    target.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
    if owner:
        target.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(owner)))
    target.execute(sql.SQL(_trusted(script)))
    if owner:
        target.execute("RESET ROLE")


_META = re.compile(
    r"""^(\\(un)?restrict .*|SET transaction_timeout = 0;|CREATE SCHEMA (\w+|"([^"]|"")+");|COMMENT ON SCHEMA .*;)$""",
    re.M,
)


def plain(script: str) -> str:
    """A pg_dump script without what only psql understands, and without the schema itself.

    Newer pg_dump wraps its output in \\restrict, and sets transaction_timeout, which servers
    before 17 do not know. A comment on the schema takes its owner, who need not be us.
    """
    return _META.sub("", script)


def _trusted(text: str) -> LiteralString:
    # Text that a server printed about its own objects; there is no way to compose it.
    return text


def _name(name: model.TableName) -> sql.Identifier:
    return sql.Identifier(name.schema, name.name)
