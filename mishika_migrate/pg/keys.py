"""The application's decision about every key, as rows that `pg.digest` can compare.

Imports pg.digest, pg.connect and the words. One row a key: the columns that count, of the key's own row
and of those that it is joined with, whether each of those is there, and whether the application can read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from psycopg import sql

from mishika_migrate import model
from mishika_migrate.pg import connect, digest

LABEL = "label"
"""How the names of the relation's columns begin that only people read; they are not compared."""


def relation(
    ring: model.Keyring,
    comparison: model.Comparison,
    shapes: Mapping[str, model.Shape],
    role: model.Role,
    *,
    names: Sequence[str] = (),
) -> sql.Composed:
    """`name.column` for each column of the comparison; `name.` says that the row is there, `name!` that it reads.

    `names` are columns of the key's own row by which people recognise it.
    """
    columns = [(_column(ring, shapes, column.name), column.name) for column in comparison.columns]
    columns += [(sql.Identifier(model.KEY, name), f"{LABEL} {name}") for name in names]
    made = sql.SQL(", ").join(sql.SQL("{} AS {}").format(value, sql.Identifier(name)) for value, name in columns)
    return sql.SQL("SELECT {} FROM {}").format(made, _joined(ring, comparison.on(role).schema))


def _joined(ring: model.Keyring, schema: str) -> sql.Composed:
    joins = [
        sql.SQL(" LEFT JOIN {} {} ON {}").format(
            sql.Identifier(schema, join.table),
            sql.Identifier(join.name),
            sql.SQL(" AND ").join(
                sql.SQL("{} = {}").format(sql.Identifier(join.name, column), _end(end)) for column, end in join.by
            ),
        )
        for join in ring.joins
    ]
    first = sql.SQL("{} {}").format(sql.Identifier(schema, ring.table), sql.Identifier(model.KEY))
    return sql.SQL("{}{}").format(first, sql.SQL("").join(joins))


def _end(end: str) -> sql.Identifier:
    name, _, column = end.partition(".")
    return sql.Identifier(name, column)


def _column(ring: model.Keyring, shapes: Mapping[str, model.Shape], name: str) -> sql.Composable:
    if name.endswith("!"):
        return _reads(ring, shapes[ring.table_of(name[:-1])], name[:-1])
    if name.endswith("."):
        return _present(ring, name[:-1])
    return _end(name)


def _present(ring: model.Keyring, name: str) -> sql.Composed:
    """A join's row is there when the columns are not NULL by which it was found."""
    join = next(join for join in ring.joins if join.name == name)
    return sql.SQL("({} IS NOT NULL)").format(sql.Identifier(name, join.by[0][0]))


def _reads(ring: model.Keyring, shape: model.Shape, name: str) -> sql.Composed:
    """Whether the application can read the row; true where there is none."""
    wants = [
        # json_typeof(to_json(…)) takes json and jsonb; json with \u0000 in it has no jsonb form.
        sql.SQL("coalesce(json_typeof(to_json({})), 'object') = 'object'").format(sql.Identifier(name, column))
        for column in shape.objects
    ]
    wants += [sql.SQL("{} IS NOT NULL").format(sql.Identifier(name, column)) for column in shape.present]
    fine = sql.SQL("({})").format(sql.SQL(" AND ").join(wants))
    return fine if name == model.KEY else sql.SQL("(NOT {} OR {})").format(_present(ring, name), fine)


# -- what differs ---------------------------------------------------------------------------------


def decisions(
    session: connect.Session,
    look: digest.Look,
    role: model.Role,
    *,
    names: Sequence[str],
    wanted: digest.Condition,
) -> Iterator[model.Decision]:
    """The `wanted` keys (`digest.among`, `digest.at`, `having`) ordered by `place`.

    `names` are those that the relation was made with.
    """
    columns = [column.name for column in look.what.columns]
    flags = [name for name in columns if name.endswith((".", "!"))]
    values = [name for name in columns if name not in flags]
    where = digest.place(look, role)
    query = sql.SQL(
        "SELECT kh, token, label, flags, hashes FROM (SELECT {place} AS kh, {token} AS token, {label} AS label,"
        " ARRAY[{flags}]::bool[] AS flags, ARRAY[{hashes}] AS hashes FROM ({rows}) r) h WHERE {wanted} ORDER BY kh"
    ).format(
        place=where,
        token=sql.SQL("r.{}").format(sql.Identifier(look.what.key[0])),
        label=_label(names),
        flags=sql.SQL(", ").join(sql.SQL("r.{}").format(sql.Identifier(name)) for name in flags),
        hashes=digest.column_hashes(look, role),
        rows=look.relations[role],
        wanted=wanted,
    )
    order = {name: n for n, name in enumerate(columns)}
    for row in digest.streamed(session, query):
        said = dict(zip(flags, row[3] if isinstance(row[3], list) else [], strict=True))
        found = list(map(int, row[4])) if isinstance(row[4], list) else []
        yield model.Decision(
            place=int(str(row[0])),
            token=str(row[1]),
            label=digest.texts(row[2]),
            there={name[:-1]: bool(said[name]) for name in flags if name.endswith(".")},
            reads={name[:-1]: bool(said[name]) for name in flags if name.endswith("!")},
            hashes={name: found[order[name]] for name in values},
        )


def having(tokens: Sequence[str]) -> digest.Condition:
    """Whether a key's hash is one of these."""
    return sql.SQL("token = ANY ({})").format(sql.Literal(list(tokens)))


def _label(names: Sequence[str]) -> sql.Composed:
    parts = [sql.SQL("r.{}::text").format(sql.Identifier(f"{LABEL} {name}")) for name in names]
    return sql.SQL("ARRAY[{}]::text[]").format(sql.SQL(", ").join(parts))


def faults(session: connect.Session, look: digest.Look, role: model.Role) -> tuple[int, Mapping[str, int]]:
    """How many keys there are, and by `name!` how many whose row there cannot be read."""
    flags = [column.name for column in look.what.columns if column.name.endswith("!")]
    counts = [sql.SQL("count(*) FILTER (WHERE NOT r.{})").format(sql.Identifier(name)) for name in flags]
    query = sql.SQL("SELECT {} FROM ({}) r").format(
        sql.SQL(", ").join([sql.SQL("count(*)"), *counts]), look.relations[role]
    )
    row = session.execute(query).fetchone() or ()
    numbers = [int(str(value)) for value in row]
    return numbers[0], dict(zip(flags, numbers[1:], strict=True))
