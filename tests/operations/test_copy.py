"""`copy` between two real servers, end to end: what arrives, who sees it when, and what it costs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.fix_faults import LOGS, Start, ask, blocked, locked, measured, wait_until
from tests.fix_program import Run
from tests.fix_servers import KEYS as KEY_COUNT
from tests.fix_servers import Clone, Pair, assert_equal, tables_of

LEFT = {"MishikaLLM_CronJob", "_prisma_migrations"}
KEYS = "MishikaLLM_VerificationToken"
MB = 1024 * 1024

TEXTS = (
    "",
    " ",
    "\t\n\r\v\f\b",
    "a\tb\nc\\d",
    "\\N",
    "\\.",
    "\\\\.\n\\.\n",
    "NULL",
    "'single' \"double\" `back` $$dollar$$",
    "{not,an,array}",
    "😀 é e\u0301 \u202e \ufeff \U0010ffff \x01\x7f",
    "x" * MB,
    "\\\n\t\"'" * (MB // 5),
)
ARRAYS: tuple[list[str | None] | None, ...] = (
    None,
    [],
    [None],
    ["NULL", None, "null", ""],
    ["a,b", 'c"d', "e'f", "\\N", "{}", "{", "\n\t", " lead and trail ", "😀"],
)
FLOATS: tuple[float, ...] = (
    0.0,
    -0.0,
    5e-324,
    -5e-324,
    2.2250738585072014e-308,
    1.7976931348623157e308,
    0.1 + 0.2,
    1 / 3,
)
FLOATS += (float("nan"), float("inf"), float("-inf"), 123456789.12345679)
TIMES: tuple[str, ...] = (
    "infinity",
    "-infinity",
    "4713-11-24 00:00:00 BC",
    "0044-03-15 12:00:00 BC",
    "294276-12-31 23:59:59.999",
)
TIMES += ("2000-01-01 00:00:00", "1969-12-31 23:59:59.999", "2025-03-30 02:30:00")


def deep(levels: int) -> Any:
    value: Any = "bottom"
    for _ in range(levels):
        value = [{'\\u0000 \\ " / \b\f\n\r\t': value}]
    return value


JSONS: tuple[Any, ...] = (
    {},
    [],
    None,
    "text",
    "\\u0000",
    {"\t": "\n", '"': "\\", "\\N": None, "😀": ["\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")]},
    {"big": 10**400, "small": 1e-300, "zero": -0.0, "float": 0.1},
    deep(200),
    {"long": "\\" * MB},
)


def hostile_rows() -> Iterator[dict[str, Any]]:
    """Each value once, the others of its row in turn."""
    for n in range(max(map(len, (TEXTS, ARRAYS, FLOATS, TIMES, JSONS)))):
        yield {
            "text": TEXTS[n % len(TEXTS)],
            "array": ARRAYS[n % len(ARRAYS)],
            "float": FLOATS[n % len(FLOATS)],
            "time": TIMES[n % len(TIMES)],
            "json": Jsonb(JSONS[n % len(JSONS)]),
        }


def add_hostile_rows(url: str) -> None:
    with psycopg.connect(url) as session:
        for n, row in enumerate(hostile_rows()):
            values = {**row, "id": f"hostile {n}\t\\N"}
            session.execute(
                f'INSERT INTO "{KEYS}" (token, key_alias, models, spend, expires, metadata, max_budget, config)'
                " VALUES (%(id)s, %(text)s, %(array)s, %(float)s, %(time)s::text::timestamp, %(json)s, %(float)s,"
                " '{}')",
                values,
            )
            session.execute(
                f'INSERT INTO "{LOGS}" (request_id, call_type, "startTime", "endTime", spend, messages, response,'
                ' "user", cache_key, metadata) VALUES (%(id)s, %(text)s, %(time)s::text::timestamp,'
                " %(time)s::text::timestamp, %(float)s, %(json)s, %(json)s, %(text)s, %(text)s, '{}')",
                values,
            )


def copied(source: str) -> list[str]:
    return [table for table in tables_of(source) if table not in LEFT]


def arguments(source: str, target: str, *more: str) -> tuple[str, ...]:
    return ("copy", "--everything", "--yes", "--json", "--source", source, "--target", target, *more)


def forms(run: Run, source: str, target: str) -> dict[str, bool]:
    """Whether each table would go in binary form."""
    (plan,) = run("plan", "--everything", "--json", "--source", source, "--target", target).lines()
    steps = [step for stage in plan["stages"] for step in stage["steps"] if step["kind"] == "CopyTable"]
    return {step["target"]["name"]: step["binary"] for step in steps}


# Other types on the target, which only the text form serves.
WIDER = f"""
ALTER TABLE "{KEYS}" ALTER max_parallel_requests TYPE bigint;
ALTER TABLE "{LOGS}" ALTER total_tokens TYPE bigint;
"""


@pytest.mark.parametrize("form", ["binary", "text"])
def test_every_table_arrives_row_for_row_with_hostile_values(
    form: str, source_url: str, target_url: str, run: Run
) -> None:
    add_hostile_rows(source_url)
    if form == "text":
        ask(target_url, WIDER)
    found = forms(run, source_url, target_url)
    assert (found[KEYS], found[LOGS]) == (form == "binary", form == "binary")
    done = run(*arguments(source_url, target_url))
    assert done.status == 0, done.err
    assert_equal(source_url, target_url, copied(source_url))


OWN_TYPES = """
CREATE TYPE mood AS ENUM ('so so', 'a,b', 'happy "quoted"');
CREATE TYPE pair AS (x int, y text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN some_moods AS mood[];
CREATE TYPE floats AS RANGE (subtype = float8);
CREATE TABLE things (
  id int PRIMARY KEY, mood mood, moods mood[], pair pair, pairs pair[], positive positive, positives positive[],
  several some_moods, range floats, bytes bytea, numeric numeric, uuid uuid, inet inet, bits varbit, day date,
  moment timestamptz, span interval, json json, xml text, dims int[][], "Mixed ""Case" text,
  doubled int GENERATED ALWAYS AS (id * 2) STORED, counted int GENERATED BY DEFAULT AS IDENTITY
);
"""
OWN_ROWS = """
INSERT INTO things (id) VALUES (1);
INSERT INTO things VALUES (
  2, 'so so', ARRAY['a,b', NULL, 'happy "quoted"']::mood[], ROW(1, 'a "b" ,c'), ARRAY[ROW(NULL, '')::pair, NULL],
  3, ARRAY[1, 2], ARRAY['a,b']::mood[], '[-infinity,1.5)', '\\x00ff5c', 'NaN', gen_random_uuid(), '::1/64', B'0101',
  '-infinity', '4713-01-01 BC', '-1 mons +2 days -03:04:05.000006', '{"b": 1,  "a": 1, "a": 2}', E'\\t\\\\',
  '[2:3][-1:0]={{1,NULL},{3,4}}', 'yes', DEFAULT, DEFAULT
);
"""


def test_types_of_the_schemas_own_arrive(pair: Pair, clone: Clone, run: Run, tmp_path: Path) -> None:
    source, target = clone(pair.old, "template0"), clone(pair.new, "template0")
    ask(target, "CREATE TYPE other AS ENUM ('x')")  # so that no OID is the same by chance
    ask(source, OWN_TYPES + OWN_ROWS)
    ask(target, OWN_TYPES)
    matrix = tmp_path / "things.yaml"
    entry = "{need: required, why: a test, stage: core, loses: x, written: never}"
    matrix.write_text(f"matrix: 1\nname: things\ntables:\n  things: {entry}\n")
    done = run(*arguments(source, target, "--matrix", str(matrix)))
    assert done.status == 0, done.err
    assert_equal(source, target, ["things"])


LOOK = f"""
SELECT count(*), count(*) FILTER (WHERE
  team_id IS NOT NULL AND NOT EXISTS (SELECT FROM "MishikaLLM_TeamTable" t WHERE t.team_id = v.team_id)
  OR user_id IS NOT NULL AND NOT EXISTS (SELECT FROM "MishikaLLM_UserTable" u WHERE u.user_id = v.user_id)
  OR budget_id IS NOT NULL AND NOT EXISTS (SELECT FROM "MishikaLLM_BudgetTable" b WHERE b.budget_id = v.budget_id))
FROM "{KEYS}" v
"""


def look(url: str) -> tuple[int, int]:
    """Keys, and how many of them lack their team, user or budget."""
    with psycopg.connect(url) as session:
        row = session.execute(LOOK.encode()).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def polling(url: str, over: threading.Event, seen: list[tuple[int, int]]) -> Callable[[], None]:
    def poll() -> None:
        while not over.is_set():
            seen.append(look(url))

    return poll


def test_reader_never_sees_a_key_without_its_team_user_or_budget(
    source_url: str, target_url: str, start: Start
) -> None:
    seen: list[tuple[int, int]] = []
    over = threading.Event()
    poller = threading.Thread(target=polling(target_url, over, seen))
    poller.start()
    try:
        with locked(target_url, "MishikaLLM_InvitationLink"):  # after keys, teams, users and budgets
            program = start(*arguments(source_url, target_url))
            wait_until(lambda: blocked(target_url))
            looked = len(seen)
            wait_until(lambda: len(seen) >= looked + 3)
            assert set(seen) == {(0, 0)}
        assert program.ended().status == 0
    finally:
        over.set()
        poller.join()
    seen.append(look(target_url))
    assert set(seen) == {(0, 0), look(source_url)}
    assert seen[-1][0] == KEY_COUNT


def test_row_of_64_mb_arrives_in_three_times_its_memory(source_url: str, target_url: str, tmp_path: Path) -> None:
    size = 64 * MB
    ask(
        source_url,
        f"UPDATE \"{LOGS}\" SET api_base = repeat('x', {size})"
        f' WHERE request_id IN (SELECT request_id FROM "{LOGS}" LIMIT 2)',
    )
    done, peak = measured(tmp_path, *arguments(source_url, target_url), "--verify")
    assert done.status == 0, done.err
    assert_equal(source_url, target_url, [LOGS])
    print(f"peak {peak / MB:.0f} MB")
    assert peak <= 3 * size


def test_bulk_copy_stays_below_120_mb(source_url: str, target_url: str, tmp_path: Path) -> None:
    enlarge(source_url, 60 * MB)
    done, peak = measured(tmp_path, *arguments(source_url, target_url), "--verify")
    assert done.status == 0, done.err
    print(f"peak {peak / MB:.0f} MB")
    assert peak < 120 * MB
    count = f'SELECT count(*) FROM "{LOGS}"'
    assert ask(target_url, count) == ask(source_url, count)


@pytest.mark.soak
def test_bulk_copy_stays_below_120_mb_at_300_mb(source_url: str, target_url: str, tmp_path: Path) -> None:
    enlarge(source_url, 300 * MB)
    done, peak = measured(tmp_path, *arguments(source_url, target_url), "--verify")
    assert done.status == 0, done.err
    print(f"peak {peak / MB:.0f} MB")
    assert peak < 120 * MB


def enlarge(url: str, size: int) -> None:
    """Log rows of 1 to 200 KB that do not compress well, `size` bytes in all."""
    ask(
        url,
        f'INSERT INTO "{LOGS}" (request_id, call_type, "startTime", "endTime", messages, metadata)'
        " SELECT 'large ' || n, 'x', now(), now(), to_jsonb("
        "   (SELECT string_agg(md5((n * m)::text), '')"
        "    FROM generate_series(1, CASE WHEN n % 10 = 0 THEN 6000 ELSE 30 END) m)"
        f" ), '{{}}' FROM generate_series(1, {size // 20_000}) n",
    )


def test_compression_that_the_target_has_not_is_refused_before_anything_is_written(
    source_url: str, target_url: str, run: Run
) -> None:
    known = ask(target_url, "SELECT enumvals FROM pg_settings WHERE name = 'default_toast_compression'")
    status = 0 if "lz4" in known else 4
    done = run("copy", "--yes", "--source", source_url, "--target", target_url, "--toast-compression", "lz4")
    assert done.status == status, done.err
    assert ask(target_url, f'SELECT count(*) FROM "{KEYS}"') == (KEY_COUNT if status == 0 else 0)
