"""Indexes come back exactly as they were."""

from __future__ import annotations

import psycopg
import pytest

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, indexes
from tests.fix_servers import Clone, Pair, endpoint

TABLE = model.TableName(schema="public", name="Log Table")

SCHEMA = """
CREATE TABLE "Log Table" (id text, n int NOT NULL, part int NOT NULL, at timestamp(3), tags jsonb, name text,
  CONSTRAINT "Log Table_pkey" PRIMARY KEY (id),
  CONSTRAINT "n, unique" UNIQUE (n) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT later UNIQUE (n, part) DEFERRABLE,
  CONSTRAINT referenced UNIQUE (part, name),
  EXCLUDE USING btree (name WITH =));
CREATE INDEX at_index ON "Log Table" (at DESC NULLS LAST) INCLUDE (n) WITH (fillfactor = 70);
CREATE INDEX expression ON "Log Table" (lower(name) text_pattern_ops) WHERE n > 0;
CREATE INDEX tags ON "Log Table" USING gin (tags jsonb_path_ops);
CREATE UNIQUE INDEX identity ON "Log Table" (n, part, id) ;
ALTER TABLE "Log Table" ALTER id SET NOT NULL, REPLICA IDENTITY USING INDEX identity, CLUSTER ON at_index;
COMMENT ON INDEX at_index IS 'it''s the time';
COMMENT ON INDEX "Log Table_pkey" IS 'the index';
COMMENT ON CONSTRAINT "Log Table_pkey" ON "Log Table" IS 'the key';
CREATE INDEX counted ON "Log Table" (n, lower(name), (n + part)) INCLUDE (at);
ALTER INDEX counted ALTER COLUMN 2 SET STATISTICS 777;
ALTER INDEX counted ALTER COLUMN 3 SET STATISTICS 0;
CREATE EXTENSION "insert_username";
ALTER INDEX counted DEPENDS ON EXTENSION plpgsql;
ALTER INDEX counted DEPENDS ON EXTENSION "insert_username";
ALTER INDEX "Log Table_pkey" DEPENDS ON EXTENSION plpgsql;
CREATE TABLE child (part int, name text, FOREIGN KEY (part, name) REFERENCES "Log Table" (part, name));
"""

STATE = """
SELECT c.relname, pg_get_indexdef(c.oid), pg_get_constraintdef(k.oid), k.conname, obj_description(c.oid, 'pg_class'),
       obj_description(k.oid, 'pg_constraint'), i.indisclustered, i.indisreplident, i.indisprimary, i.indisvalid,
       c.reltablespace, c.reloptions,
       ARRAY (SELECT (attnum, attstattarget)::text FROM pg_attribute WHERE attrelid = c.oid ORDER BY attnum),
       ARRAY (SELECT (extname, deptype)::text FROM pg_depend JOIN pg_extension e ON e.oid = refobjid
              WHERE objid = c.oid ORDER BY 1)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid LEFT JOIN pg_constraint k ON k.conindid = c.oid
  AND k.conrelid = i.indrelid
WHERE i.indrelid = '"Log Table"'::regclass ORDER BY 1
"""


INDEXES = ("Log Table_pkey", "n, unique", "later", "at_index", "expression", "tags", "identity", "counted")
NAMES = (*INDEXES, "no such index")


@pytest.fixture
def database(pair: Pair, clone: Clone) -> str:
    url = clone(pair.new, "template0")
    with psycopg.connect(url) as session:
        session.execute(SCHEMA)
    return url


def state(url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as session:
        return session.execute(STATE).fetchall()


def test_dropped_indexes_come_back_with_everything_they_had(database: str) -> None:
    before = state(database)
    with connect.session(endpoint(database, "target"), name="test") as session:
        found = [indexes.loads(indexes.dumps(definition)) for definition in indexes.read(session, TABLE, NAMES)]
        with session.transaction():
            for definition in found:
                indexes.drop(session, TABLE, definition)
        assert {row[0] for row in state(database)} == {"referenced", "Log Table_name_excl"}
        for definition in found:
            with session.transaction():
                indexes.build(session, TABLE, definition)
        with session.transaction():
            for definition in found:
                indexes.complete(session, TABLE, definition)
    assert state(database) == before


def test_a_definition_of_an_earlier_version_is_read() -> None:
    """A run begun by 0.1 may be continued or undone by its successor."""
    earlier = (
        '{"name": "i", "create": "CREATE INDEX i ON t (a)", "constraint": "", "deferrable": false, "deferred": false,'
        ' "tablespace": "", "comment": null, "constraint_comment": null, "clustered": false,'
        ' "replica_identity": false}'
    )
    read = indexes.loads(earlier)
    assert (read.name, read.statistics, read.extensions) == ("i", (), ())


def test_an_index_that_is_there_is_not_built_again(database: str) -> None:
    with connect.session(endpoint(database, "target"), name="test") as session:
        found = indexes.read(session, TABLE, NAMES)
        before = session.execute("SELECT oid FROM pg_class WHERE relkind = 'i' ORDER BY 1").fetchall()
        for definition in found:
            with session.transaction():
                indexes.build(session, TABLE, definition)
                indexes.complete(session, TABLE, definition)
        assert session.execute("SELECT oid FROM pg_class WHERE relkind = 'i' ORDER BY 1").fetchall() == before


def test_another_index_of_that_name_is_an_error_that_tells_both_definitions(database: str) -> None:
    with connect.session(endpoint(database, "target"), name="test") as session:
        definition = next(found for found in indexes.read(session, TABLE, NAMES) if found.name == "at_index")
        indexes.drop(session, TABLE, definition)
        session.execute('CREATE INDEX at_index ON public."Log Table" (name)')
        with pytest.raises(errors.Error, match=r"another definition: .*\(name\)") as caught:
            indexes.build(session, TABLE, definition)
        assert definition.create in caught.value.hint
