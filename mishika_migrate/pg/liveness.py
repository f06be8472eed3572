"""What a target holds that its source has not brought: rows that came later, and counters that are ahead.

Imports pg.connect and the words. Which columns tell comes from the matrix and the catalog, by way of the
caller. Times are texts of the server's own, in UTC, because it knows more of them than Python (infinity).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import LiteralString

from psycopg import sql

from mishika_migrate import model
from mishika_migrate.pg import connect

BUCKETS = 256
"""Few enough to be compared in some kilobytes, many enough that one changed row is found among few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """How the rows of a table are told apart on both servers, and what is asked of them.

    `key` are its columns, `types` theirs by role. Of `times` the earliest says when a row came to be.
    `names` are columns by which people recognise a row; of the key they see 8 characters.
    """

    table: Mapping[model.Role, model.TableName]
    key: tuple[str, ...]
    types: Mapping[model.Role, tuple[str, ...]]
    names: tuple[str, ...] = ()
    times: tuple[str, ...] = ()
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    """When a run, named by its tool, has brought the last rows of a table."""

    run: str
    tool: str
    table: str
    at: str


def landings(session: connect.Session, source: str) -> tuple[Landing, ...]:
    """Every run's from that source, the latest first."""
    found = session.execute(
        "SELECT r.id, r.tool, l.name, l.at::text FROM mishika_migrate.run r, LATERAL ("
        '  SELECT s."table" AS name, max(s.finished) AS at FROM mishika_migrate.step s'
        "  WHERE s.run = r.id AND s.\"table\" <> '' GROUP BY 1) l"
        " WHERE r.source = %s AND r.state <> 'abandoned' ORDER BY l.at DESC",
        [source],
    )
    return tuple(Landing(run=str(row[0]), tool=str(row[1]), table=str(row[2]), at=str(row[3])) for row in found)


def cutover(session: connect.Session) -> str:
    """When a cutover to this database was completed, or begun to switch; empty where none was.

    By whatever the ledger's table of them holds, be it of another version.
    """
    if not _one(session, "SELECT to_regclass('mishika_migrate.cutover') IS NOT NULL"):
        return ""
    found = _one(
        session,
        # One that went back has left the target again.
        "SELECT max(coalesce(to_jsonb(c) ->> 'finished', to_jsonb(c) ->> 'started')) FROM mishika_migrate.cutover c"
        " WHERE to_jsonb(c) ->> 'state' IN ('finished', 'switching')"
        " AND to_jsonb(c) ->> 'way' IS DISTINCT FROM 'back'",
    )
    return str(found) if found else ""


# -- roles ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Who is connected to the database, by what the roles may do there; `own_superuser` says it of the asking one."""

    writers: frozenset[str]
    superusers: frozenset[str]
    own_superuser: bool


# A role that logs in may become any of which it is a member, by itself or by ALTER ROLE … SET role. Privileges on
# single columns count. Who is not known any more may have written everything.
_ROLES = """
WITH here AS (
  SELECT DISTINCT usesysid AS role, coalesce(usename::text, '') AS name FROM pg_stat_activity
  WHERE datname = current_database() AND usesysid IS NOT NULL
), place AS (
  SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE n.nspname = %s AND c.relkind IN ('r', 'p')
)
SELECT h.name, coalesce(r.rolsuper, false),
       r.oid IS NULL OR r.rolsuper OR EXISTS (
         SELECT FROM pg_roles m, place p
         WHERE pg_has_role(h.role, m.oid, 'MEMBER')
           AND (has_table_privilege(m.oid, p.oid, 'INSERT, UPDATE, DELETE')
                OR has_any_column_privilege(m.oid, p.oid, 'INSERT, UPDATE')))
FROM here h LEFT JOIN pg_roles r ON r.oid = h.role
"""


def roles(session: connect.Session, schema: str) -> Roles:
    """Those of this database's sessions; a writer may change rows of any table of the schema."""
    found = session.execute(_ROLES, [schema]).fetchall()
    own = _one(session, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    return Roles(
        writers=frozenset(str(name) for name, _, writes in found if writes),
        superusers=frozenset(str(name) for name, superuser, _ in found if superuser),
        own_superuser=bool(own),
    )


# -- rows that came later -------------------------------------------------------------------------


def newest(session: connect.Session, rows: Rows, role: model.Role) -> str:
    """When the last of its rows came to be; empty without rows."""
    return _extreme(session, rows, role, "max")


def oldest(session: connect.Session, rows: Rows, role: model.Role) -> str:
    """When the first of its rows came to be; empty without rows."""
    return _extreme(session, rows, role, "min")


def _extreme(session: connect.Session, rows: Rows, role: model.Role, which: LiteralString) -> str:
    query = sql.SQL("SELECT {}({})::timestamptz::text FROM {}").format(sql.SQL(which), _born(rows), _place(rows, role))
    return str(_one(session, query) or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Newer:
    """A row of the target; `name` is for people, as bytes: in SQL_ASCII a text need not be text."""

    key: tuple[str, ...]
    name: bytes
    at: str


def newer(session: connect.Session, rows: Rows, after: str, *, since: str, most: int) -> tuple[Newer, ...]:
    """The target's rows that came to be after that moment and not before the other, the latest first, `most` at
    most."""
    query = sql.SQL(
        "SELECT {key}, {name}, ({born})::timestamptz(0)::text FROM {table} r"
        " WHERE {born} > {after}::timestamptz AND {born} >= {since}::timestamptz ORDER BY {born} DESC LIMIT {most}"
    ).format(
        since=sql.Literal(since),
        key=_key(rows),
        name=_name(rows),
        born=_born(rows),
        table=_place(rows, "target"),
        after=sql.Literal(after),
        most=sql.Literal(most),
    )
    return tuple(Newer(key=_texts(row[0]), name=_bytes(row[1]), at=str(row[2])) for row in session.execute(query))


def absent(session: connect.Session, rows: Rows, keys: Sequence[Sequence[str]]) -> frozenset[int]:
    """Which of these keys the source does not have, by their place in the list."""
    columns = [sql.Identifier(f"k{number}") for number in range(len(rows.key))]
    query = sql.SQL(
        "SELECT u.n FROM unnest({lists}) WITH ORDINALITY u ({columns}, n)"
        " WHERE NOT EXISTS (SELECT FROM {table} r WHERE {same})"
    ).format(
        lists=sql.SQL(", ").join(sql.SQL("%s::text[]") for _ in columns),
        columns=sql.SQL(", ").join(columns),
        table=_place(rows, "source"),
        same=sql.SQL(" AND ").join(
            # The type is the server's own spelling, quoted where it has to be.
            sql.SQL("r.{} = u.{}::{}").format(sql.Identifier(name), column, sql.SQL(kind))
            for name, column, kind in zip(rows.key, columns, rows.types["source"], strict=True)
        ),
    )
    lists = [[key[number] for key in keys] for number in range(len(columns))]
    return frozenset(int(str(row[0])) - 1 for row in session.execute(query, lists))


# -- counters that are ahead ----------------------------------------------------------------------


def sums(session: connect.Session, rows: Rows, role: model.Role) -> dict[int, tuple[int, str]]:
    """By bucket of keys, how many rows there are and a sum of hashes of their values."""
    query = sql.SQL(
        "SELECT {bucket}, count(*), sum(hashtextextended(v, 1)::numeric)::text"
        " FROM (SELECT {key}::text AS k, {all}::text AS v FROM {table} r OFFSET 0) x GROUP BY 1"
    ).format(
        bucket=_bucket(sql.SQL("k")),
        key=_key(rows),
        all=_array([*rows.key, *rows.values]),
        table=_place(rows, role),
    )
    return {int(str(row[0])): (int(str(row[1])), str(row[2])) for row in session.execute(query)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """The `values` of a row, and its `times` in seconds; None is NULL."""

    key: tuple[str, ...]
    name: bytes
    values: tuple[float | None, ...]
    times: tuple[float | None, ...]


def counters(session: connect.Session, rows: Rows, role: model.Role, buckets: Sequence[int]) -> Iterator[Counters]:
    """Those of the rows in these buckets."""
    values = [sql.SQL("r.{}::float8").format(sql.Identifier(name)) for name in rows.values]
    times = [sql.SQL("extract(epoch FROM r.{})::float8").format(sql.Identifier(name)) for name in rows.times]
    query = sql.SQL(
        "SELECT {key}, {name}, ARRAY[{values}]::float8[], ARRAY[{times}]::float8[] FROM {table} r"
        " WHERE {bucket} = ANY ({buckets})"
    ).format(
        key=_key(rows),
        name=_name(rows),
        values=sql.SQL(", ").join(values),
        times=sql.SQL(", ").join(times),
        table=_place(rows, role),
        bucket=_bucket(sql.SQL("{}::text").format(_key(rows))),
        buckets=sql.Literal(list(buckets)),
    )
    for row in session.execute(query):
        yield Counters(key=_texts(row[0]), name=_bytes(row[1]), values=_numbers(row[2]), times=_numbers(row[3]))


# -- parts of queries -----------------------------------------------------------------------------


def _place(rows: Rows, role: model.Role) -> sql.Identifier:
    return sql.Identifier(rows.table[role].schema, rows.table[role].name)


def _array(columns: Sequence[str]) -> sql.Composed:
    parts = sql.SQL(", ").join(sql.SQL("r.{}::text").format(sql.Identifier(name)) for name in columns)
    return sql.SQL("ARRAY[{}]").format(parts)


def _key(rows: Rows) -> sql.Composed:
    return _array(rows.key)


def _bucket(text: sql.Composable) -> sql.Composed:
    return sql.SQL("(hashtextextended({}, 0) & {})::int").format(text, sql.Literal(BUCKETS - 1))


def _born(rows: Rows) -> sql.Composable:
    """One column alone stays bare, so that an index on it can be used."""
    columns = [sql.Identifier(name) for name in rows.times]
    return columns[0] if len(columns) == 1 else sql.SQL("least({})").format(sql.SQL(", ").join(columns))


def _name(rows: Rows) -> sql.Composed:
    """As `pg.survey` shows rows: columns for people, and no more than the beginning of a key."""
    parts = [
        *(sql.SQL("r.{}::text").format(sql.Identifier(name)) for name in rows.names),
        *(sql.SQL("left(r.{}::text, 8) || '...'").format(sql.Identifier(name)) for name in rows.key),
    ]
    return sql.SQL(
        "convert_to(concat_ws(' ', {}), CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END)"
    ).format(sql.SQL(", ").join(parts))


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _numbers(value: object) -> tuple[float | None, ...]:
    return tuple(value) if isinstance(value, list) else ()


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else b""


def _one(session: connect.Session, query: str | sql.Composed) -> object:
    row = session.execute(query).fetchone()
    return row[0] if row else None
