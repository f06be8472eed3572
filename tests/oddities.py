"""Tables with values of every kind, and what can become of one of them on its way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Found:
    """All that a proof holds against a target.

    `rows` are by table how many are on the source only, on the target only, and not the same;
    `columns` those that differ; `keys` counts reasons; `problems` counts those of each check.
    """

    rows: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    columns: dict[str, set[str]] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    problems: dict[str, int] = field(default_factory=dict)


TABLES = """
CREATE TYPE mood AS ENUM ('calm', 'cross');
CREATE TABLE keyless (a int, b text);
CREATE TABLE odd (
    id int PRIMARY KEY, doc jsonb, json json, list text[], grid int[], float float8, single real, number numeric,
    big bigint, moment timestamptz, naive timestamp, day date, clock time, span interval, raw bytea, mood mood,
    padded char(5), code uuid, range int4range, flag boolean, text text
);
CREATE TABLE hostile (LIKE odd INCLUDING ALL);
"""

ROWS = """
INSERT INTO keyless VALUES (1, 'a'), (1, 'a'), (2, NULL), (NULL, NULL), (3, 'c'), (4, 'd');
INSERT INTO odd (id, doc, json, list, grid, float, single, number, big, moment, naive, day, clock, span, raw, mood,
                 padded, code, range, flag, text)
SELECT n, '{"a": {"b": 1}, "c": [[2], [3]]}', '{"a":  1, "a": 2}', '{a,b}', '{1,2}', 0, 0.1, 1.0, -1,
       '2026-03-29 01:30+00', '2026-03-29 01:30', '2026-03-29', '01:30', '1 day', '\\x00ff', 'calm', 'ab',
       'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '[1,5)', false, 'Zoë'
FROM generate_series(1, 40) n;
UPDATE odd SET doc = '{}' WHERE id = 1;
UPDATE odd SET doc = '[]' WHERE id = 2;
UPDATE odd SET doc = NULL WHERE id = 3;
UPDATE odd SET list = '{}', doc = '[true, false, null]' WHERE id = 4;
UPDATE odd SET list = NULL, doc = '[1.0]' WHERE id = 5;
UPDATE odd SET list = '{a,b,c,d}', grid = '{{1,2},{3,4}}' WHERE id = 6;
UPDATE odd SET float = 'NaN', single = 'NaN', number = 'NaN' WHERE id = 7;
UPDATE odd SET float = 'Infinity', moment = 'infinity', naive = '-infinity', day = 'infinity' WHERE id = 8;
UPDATE odd SET float = 0.1, text = '' WHERE id = 9;
UPDATE odd SET float = NULL, text = NULL, flag = NULL WHERE id = 10;
UPDATE odd SET text = id::text, number = id, naive = naive + id * interval '1 hour' WHERE id > 10;
"""


HOSTILE = r"""
INSERT INTO hostile (id, list, text, doc, json, raw) VALUES
  (101, ARRAY['a,b', '"', '\', '{}', '', ' ', NULL, 'NULL', E'\n', E'\t', '🦊', 'a''b', '\\x'],
   E'\\', '"\\u0041"', '""', ''),
  (102, ARRAY[NULL, NULL]::text[], 'NULL', '{"": {"": [[], {}, null, ""]}}', '{"a":1,"a":2}', '\x5c5c27'),
  (103, ARRAY[['a', 'b'], ['c', NULL]], '{"a"}', '[1e400, -0, 0.10, 1E+2]', ' [ ] ', '\x00'),
  (104, '[5:6]={a,b}', '''', '"\ud83d\ude00 \\u0000"', '"\u0000"', '\xff');
INSERT INTO hostile (id, float, single, number, moment, naive, day, span) VALUES
  (111, 1e-320, 1e-40, 1e-100, '0044-03-15 12:00:00+00 BC', '294276-12-31', '5874897-12-31', '-178000000 years'),
  (112, 5e-324, 3.4e38, 'Infinity', '2026-03-29 01:30:00.000001+00', '2026-10-25 02:30', '0001-01-01', '1 mon -1 day');
UPDATE hostile SET number = 'NaN' WHERE number = 'Infinity';
INSERT INTO hostile (id, text) SELECT n, repeat(md5(n::text), 1000) FROM generate_series(200, 220) n;
INSERT INTO hostile (id, doc)
SELECT n, (SELECT jsonb_object_agg(m, repeat(md5((m * n)::text), 9)) FROM generate_series(1, 30) m)
FROM generate_series(300, 320) n;
"""


def _value(column: str, new: str, where: str) -> tuple[str, Found]:
    return (
        f"UPDATE odd SET {column} = {new} WHERE {where}",
        Found(rows={"odd": (0, 0, 1)}, columns={"odd": {column}}),
    )


CHANGES: Mapping[str, tuple[str, Found]] = {
    "one bit of a float8": _value("float", "0.10000000000000002", "id = 9"),
    "0 becomes -0": _value("float", "'-0'", "id = 20"),
    "0 becomes -0 in a real": _value("single", "'-0'", "id = 20"),
    "0 becomes NULL": _value("float", "NULL", "id = 20"),
    "NULL becomes 0": _value("float", "0", "id = 10"),
    "NaN becomes NULL": _value("float", "NULL", "id = 7"),
    "NaN becomes 0": _value("float", "0", "id = 7"),
    "NaN of a numeric becomes 0": _value("number", "0", "id = 7"),
    "infinity becomes the largest": _value("float", "1.7976931348623157e308", "id = 8"),
    "a real loses a digit": _value("single", "0.1000001", "id = 20"),
    "1.0 becomes 1.00": _value("number", "1.00", "id = 9"),
    "1.0 becomes 1": _value("number", "1", "id = 9"),
    "-1 becomes 4294967295": _value("big", "4294967295", "id = 20"),
    "{} becomes NULL": _value("doc", "NULL", "id = 1"),
    "{} becomes []": _value("doc", "'[]'", "id = 1"),
    "[] becomes NULL": _value("doc", "NULL", "id = 2"),
    "[] becomes {}": _value("doc", "'{}'", "id = 2"),
    "[] becomes [[]]": _value("doc", "'[[]]'", "id = 2"),
    "NULL becomes {}": _value("doc", "'{}'", "id = 3"),
    "NULL becomes []": _value("doc", "'[]'", "id = 3"),
    "NULL becomes null": _value("doc", "'null'", "id = 3"),
    "an inner value becomes {}": _value("doc", """'{"a": {"b": {}}, "c": [[2], [3]]}'""", "id = 20"),
    "an object ends later": _value("doc", """'{"a": {"b": 1, "c": [[2], [3]]}}'""", "id = 20"),
    "a list ends later": _value("doc", """'{"a": {"b": 1}, "c": [[2, [3]]]}'""", "id = 20"),
    "two lists become one": _value("doc", """'{"a": {"b": 1}, "c": [[2, 3]]}'""", "id = 20"),
    "true, false, null become null, true, null": _value("doc", "'[null, true, null]'", "id = 4"),
    "1.0 becomes 1.00 in a document": _value("doc", "'[1.00]'", "id = 5"),
    "a json number becomes a text": _value("doc", """'{"a": {"b": "1"}, "c": [[2], [3]]}'""", "id = 20"),
    "a document is encoded twice": _value("doc", "to_jsonb(doc::text)", "id = 20"),
    "a space in json": _value("json", """'{"a": 1, "a": 2}'""", "id = 20"),
    "a duplicate key of json is lost": _value("json", """'{"a": 2}'""", "id = 20"),
    "order of a text[]": _value("list", "'{b,a}'", "id = 20"),
    "two elements become one": _value("list", """'{"a,b"}'""", "id = 20"),
    "an element becomes NULL": _value("list", "'{a,NULL}'", "id = 20"),
    "an element becomes a quoted NULL": _value("list", """'{a,"NULL"}'""", "id = 20"),
    "an empty element is added": _value("list", """'{a,b,""}'""", "id = 20"),
    "{} of a text[] becomes NULL": _value("list", "NULL", "id = 4"),
    "{} of a text[] becomes {NULL}": _value("list", "'{NULL}'", "id = 4"),
    "NULL of a text[] becomes {}": _value("list", "'{}'", "id = 5"),
    "a list becomes a grid": _value("list", "'{{a,b},{c,d}}'", "id = 6"),
    "a grid becomes a list": _value("grid", "'{1,2,3,4}'", "id = 6"),
    "a grid is turned": _value("grid", "'{{1,3},{2,4}}'", "id = 6"),
    "a list counts from 0": _value("list", "'[0:1]={a,b}'", "id = 20"),
    "an hour later": _value("naive", "naive + interval '1 hour'", "id = 20"),
    "an hour later, with a zone": _value("moment", "moment + interval '1 hour'", "id = 20"),
    "a microsecond later": _value("naive", "naive + interval '1 us'", "id = 20"),
    "a day later": _value("day", "day + 1", "id = 20"),
    "the other infinity": _value("moment", "'-infinity'", "id = 8"),
    "a minute earlier": _value("clock", "clock - interval '1 minute'", "id = 20"),
    "a day is not 24 hours": _value("span", "'24 hours'", "id = 20"),
    "one bit of bytes": _value("raw", r"'\x00fe'", "id = 20"),
    "a zero byte is lost": _value("raw", r"'\xff'", "id = 20"),
    "another label": _value("mood", "'cross'", "id = 20"),
    "another range": _value("range", "'[1,5]'", "id = 20"),
    "one digit of a uuid": _value("code", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12'", "id = 20"),
    "false becomes NULL": _value("flag", "NULL", "id = 20"),
    "NULL becomes false": _value("flag", "false", "id = 10"),
    "a trailing space": _value("text", "'20 '", "id = 20"),
    "letter case": _value("text", "'zoë'", "id = 8"),
    "an accent in two signs": _value("text", "'Zoe\u0308'", "id = 8"),
    "the empty text becomes NULL": _value("text", "NULL", "id = 9"),
    "NULL becomes the empty text": _value("text", "''", "id = 10"),
    "NULL becomes 'NULL'": _value("text", "'NULL'", "id = 10"),
    "a line's end": _value("text", "E'20\\n'", "id = 20"),
    "two rows' values are swapped": (
        "UPDATE odd SET text = (23 - id)::text WHERE id IN (11, 12)",
        Found(rows={"odd": (0, 0, 2)}, columns={"odd": {"text"}}),
    ),
    "two columns' values are swapped": (
        "UPDATE odd SET text = float::text, float = text::float8 WHERE id = 20",
        Found(rows={"odd": (0, 0, 1)}, columns={"odd": {"text", "float"}}),
    ),
    "the rows move on by one": (
        "UPDATE odd SET number = number + 1 WHERE id > 10 AND number < 'NaN'",
        Found(rows={"odd": (0, 0, 30)}, columns={"odd": {"number"}}),
    ),
    "one row goes, another comes": (
        "UPDATE odd SET id = 99 WHERE id = 20",
        Found(rows={"odd": (1, 1, 0)}),
    ),
    "two equal extra rows without a key": (
        "INSERT INTO keyless VALUES (1, 'a'), (1, 'a')",
        Found(rows={"keyless": (0, 2, 0)}),
    ),
    "two equal rows of NULLs without a key": (
        "INSERT INTO keyless VALUES (NULL, NULL), (NULL, NULL)",
        Found(rows={"keyless": (0, 2, 0)}),
    ),
    "one of two equal rows is lost": (
        "DELETE FROM keyless WHERE ctid = (SELECT min(ctid) FROM keyless WHERE a = 1)",
        Found(rows={"keyless": (1, 0, 0)}),
    ),
    "a row without a key changes": ("UPDATE keyless SET b = 'C' WHERE a = 3", Found(rows={"keyless": (1, 1, 0)})),
    "two rows without a key swap a value": (
        "UPDATE keyless SET b = CASE b WHEN 'c' THEN 'd' ELSE 'c' END WHERE b IN ('c', 'd')",
        Found(rows={"keyless": (2, 2, 0)}),
    ),
}  # fmt: skip
"""What is planted into one side, and what must be found."""

UNSEEN = frozenset({"an object ends later", "a list ends later", "1.0 becomes 1.00 in a document"})
"""What the fast hash does not see in a table of more than 256 MB, and says so."""
