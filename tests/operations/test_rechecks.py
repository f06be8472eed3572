"""A source that moves: what was on its way is no difference, what stays is; and a million of them need no memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from mishika_migrate import errors, events, model
from mishika_migrate.operations.copying import copy
from tests import proving
from tests.fix_faults import ask, measured, wait_until
from tests.fix_servers import Clone, Pair, endpoint
from tests.looking import ALL, RULES, execute, see
from tests.oddities import Found
from tests.proving import NOTHING, SALT, Templates, plant, prove, written


@pytest.fixture(scope="module")
def templates(pair: Pair) -> Templates:
    return proving.templates(pair)


@pytest.fixture
def ends(pair: Pair, clone: Clone, templates: Templates) -> tuple[str, str]:
    """A source of one's own, and its copy."""
    return clone(pair.old, "proven"), clone(pair.new, templates.copy)


def at_recheck(*happenings: Callable[[], None]) -> tuple[Callable[[events.Event], None], list[str]]:
    """Carries out the first before the first reading again, and so on; and the list of what was said."""
    waiting, said = list(happenings), []

    def emit(event: events.Event) -> None:
        if isinstance(event, events.Noticed):
            said.append(event.message)
            if waiting:
                waiting.pop(0)()

    return emit, said


def content(proof: model.Proof, table: str) -> model.Content:
    return next(each for each in proof.contents if proving.bare(each.table) == table)


# -- recheck --------------------------------------------------------------------------------------


def new_keys(*numbers: int) -> str:
    rows = ", ".join(f"('new {number}', '{{}}', '2026-01-01', '2026-01-01')" for number in numbers)
    return f"INSERT INTO $VerificationToken (token, models, created_at, updated_at) VALUES {rows}"


NEW_KEYS = new_keys(1, 2, 3)
NEW_LOGS = """
    INSERT INTO $SpendLogs (request_id, call_type, "startTime", "endTime")
    SELECT 'new ' || n, 'x', '2026-01-01', '2026-01-01' FROM generate_series(1, 5) n
"""


def test_what_arrives_was_in_flight_and_what_does_not_is_a_difference(ends: tuple[str, str]) -> None:
    source, target = ends
    plant(source, NEW_KEYS, "UPDATE $TeamTable SET spend = spend + 1", "INSERT INTO keyless VALUES (7, 'new')")
    plant(source, NEW_LOGS, "DELETE FROM odd WHERE id < 3", "UPDATE odd SET big = 5 WHERE id IN (20, 21)")

    def first() -> None:
        plant(target, new_keys(1))
        plant(target, "INSERT INTO keyless VALUES (7, 'new')", "UPDATE odd SET big = 5 WHERE id = 20")

    def second() -> None:
        plant(target, new_keys(2))
        plant(target, "UPDATE $TeamTable SET spend = spend + 1", "DELETE FROM odd WHERE id = 1")

    emit, said = at_recheck(first, second)
    proof = prove(source, target, checked=False, rechecks=3, recheck_wait=0, emit=emit, most=2)
    assert len(said) == 3
    assert proving.found(proof) == Found(
        rows={"VerificationToken": (1, 0, 0), "SpendLogs": (5, 0, 0), "odd": (0, 1, 1)},
        columns={"odd": {"big"}},
        keys={"missing": 1},
    )
    assert {proving.bare(each.table): each.in_flight for each in proof.contents if each.in_flight} == {
        "VerificationToken": 2,
        "TeamTable": 15,
        "keyless": 1,
        "odd": 2,
    }
    assert content(proof, "SpendLogs").capped == 3
    keys = proof.keys
    assert keys is not None
    moved = ask(source, written("SELECT count(*) FROM $VerificationToken JOIN $TeamTable USING (team_id)"))
    assert keys.in_flight == 2 + moved
    assert (keys.total, keys.count("unchanged"), keys.count("lost"), keys.count("moved")) == (303, 302, 1, 0)
    assert proof.status == 3


def test_it_stops_reading_when_all_has_arrived(ends: tuple[str, str]) -> None:
    source, target = ends
    plant(source, NEW_LOGS, NEW_KEYS)
    emit, said = at_recheck(lambda: plant(target, NEW_KEYS), lambda: plant(target, NEW_LOGS))
    proof = prove(source, target, rechecks=9, recheck_wait=0, emit=emit, salt=SALT)
    assert (proof.status, proving.found(proof), len(said)) == (0, NOTHING, 2)
    assert (content(proof, "SpendLogs").in_flight, content(proof, "VerificationToken").in_flight) == (5, 3)
    assert proof.keys is not None
    assert proof.keys.headline == "303 keys: 303 continue unchanged"


def test_without_a_difference_nothing_is_read_again(ends: tuple[str, str]) -> None:
    emit, said = at_recheck()
    assert prove(*ends, rechecks=3, recheck_wait=0, emit=emit, salt=SALT).status == 0
    assert said == []


def test_a_row_that_moves_on_is_told_as_it_is_at_last(ends: tuple[str, str]) -> None:
    source, target = ends
    plant(source, "UPDATE odd SET id = 77 WHERE id = 20", "UPDATE odd SET big = 1 WHERE id = 21")

    def later() -> None:
        plant(target, "INSERT INTO odd (id, big) VALUES (77, 9)", "DELETE FROM odd WHERE id = 20")
        plant(source, "DELETE FROM odd WHERE id = 21", "UPDATE odd SET big = 2 WHERE id = 22")  # 22 was equal

    emit, _ = at_recheck(later)
    proof = prove(source, target, checked=False, rechecks=1, recheck_wait=0, emit=emit)
    assert {(each.kind, each.row) for each in content(proof, "odd").differences} == {
        ("differs", "77"),
        ("target-only", "21"),
    }
    assert content(proof, "odd").in_flight == 1


def test_too_many_to_remember_are_counted_and_not_read_again(pair: Pair, clone: Clone) -> None:
    urls = clone(pair.old, "template0"), clone(pair.new, "template0")
    for url, rows in zip(urls, (10_050, 20), strict=True):
        execute(url, NUMBERS, f"INSERT INTO numbers SELECT n, n FROM generate_series(1, {rows}) n")
    emit, said = at_recheck(lambda: execute(urls[1], "INSERT INTO numbers SELECT n, n FROM generate_series(21, 99) n"))
    proof = prove(*urls, proving.only("numbers"), checked=False, rechecks=2, recheck_wait=0, emit=emit)
    (only,) = proof.contents
    assert (only.source_only, only.in_flight, only.capped, said) == (10_030, 0, 9_930, [])


def test_spend_alone_warns_on_a_source_in_use(ends: tuple[str, str]) -> None:
    """The row differs all the same; the verdict about the keys is what an operator of a live proxy reads."""
    source, target = ends
    first = "(SELECT min(token) FROM $VerificationToken)"
    plant(source, f"UPDATE $VerificationToken SET spend = spend + 1 WHERE token = {first}")
    for fenced, weight in ((False, "warning"), (True, "error")):
        keys = prove(source, target, checked=False, fenced=fenced).keys
        assert keys is not None
        assert (keys.weights["spend-differs"], keys.state) == (weight, "different" if fenced else "ok")
        ((reason,),) = (each.reasons for each in keys.verdicts)
        assert (reason.code, reason.weight, reason.fields) == ("spend-differs", weight, ("key.spend",))
        assert keys.headline == "300 keys: 299 continue unchanged, 1 differ in spend only"


# -- snapshots ------------------------------------------------------------------------------------


@contextmanager
def exported(url: str) -> Iterator[str]:
    with psycopg.connect(url) as session:
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        row = session.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        yield row[0]


def test_a_snapshot_is_compared_while_the_source_moves_on(ends: tuple[str, str]) -> None:
    source, target = ends
    with exported(source) as name:
        plant(source, NEW_KEYS, NEW_LOGS, "DELETE FROM $TeamTable", "UPDATE odd SET big = 5")
        emit, said = at_recheck()
        proof = prove(source, target, snapshot=name, rechecks=2, emit=emit, salt=SALT)
        assert (proof.status, proving.found(proof), said) == (0, NOTHING, [])
        plant(target, "UPDATE odd SET big = 5 WHERE id = 20")
        again = prove(source, target, snapshot=name, emit=emit, checked=False)
        assert (proving.found(again).rows, said) == ({"odd": (0, 0, 1)}, [])
    assert proving.found(prove(source, target, checked=False)).rows["TeamTable"] == (0, 15, 0)


def test_a_snapshot_that_is_gone_is_an_error(ends: tuple[str, str]) -> None:
    with exported(ends[0]) as name:
        pass
    for gone in (name, "no such snapshot"):
        with pytest.raises(errors.ServerError) as caught:
            prove(*ends, snapshot=gone)
        assert caught.value.status == 6
        assert gone in caught.value.message


# -- copy proves itself ---------------------------------------------------------------------------


def begin(source: str, target: str, emit: Callable[[events.Event], None]) -> None:
    copy.begin(
        see(source, target, everything=True),
        endpoint(source, "source"),
        endpoint(target, "target"),
        options=copy.Options(proving=RULES, jobs=2),
        emit=emit,
        stopping=lambda: 0,
    )


def test_a_copy_is_proven_against_its_snapshot_under_writes(pair: Pair, clone: Clone, target_url: str) -> None:
    source = clone(pair.old, "filled")
    done, wrote = threading.Event(), threading.Event()

    def write() -> None:
        with psycopg.connect(source, autocommit=True) as session:
            number = 0
            while not done.is_set():
                number += 1
                session.execute(written("UPDATE $VerificationToken SET spend = spend + 1").encode())
                session.execute(written("UPDATE $TeamTable SET spend = spend + 1, blocked = NOT blocked").encode())
                log = written('INSERT INTO $SpendLogs (request_id, call_type, "startTime", "endTime")')
                session.execute(f"{log} VALUES ('live {number}', 'x', now(), now())".encode())
                wrote.set()

    seen: list[events.Event] = []

    def emit(event: events.Event) -> None:
        seen.append(event)
        if isinstance(event, events.RunStarted | events.StageStarted):
            wrote.clear()
            wait_until(wrote.is_set)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        begin(source, target_url, emit)
    finally:
        done.set()
        writer.join()
    (proof,) = (event.proof for event in seen if isinstance(event, events.Proven))
    assert (proof.state, proving.found(proof)) == ("ok", NOTHING)
    assert proof.keys is not None
    assert proof.keys.headline == "300 keys: 300 continue unchanged"
    names = [type(event).__name__ for event in seen]
    assert names.index("Proven") < names.index("SnapshotReleased") < names.index("RunFinished")
    rows = proving.found(prove(source, target_url, ALL, checked=False)).rows
    assert (rows["VerificationToken"], rows["TeamTable"]) == ((0, 0, 300), (0, 0, 15))
    assert rows["SpendLogs"][0] > 2


def test_a_target_that_somebody_else_writes_to_ends_the_copy_with_3(source_url: str, target_url: str) -> None:
    seen: list[events.Event] = []

    def emit(event: events.Event) -> None:
        seen.append(event)
        if isinstance(event, events.StageStarted) and event.name == "verify":
            plant(target_url, "UPDATE $VerificationToken SET blocked = true WHERE NOT blocked")

    with pytest.raises(errors.Different) as caught:
        begin(source_url, target_url, emit)
    assert caught.value.status == 3
    assert "is not what was copied: different: " in caught.value.message
    (proof,) = (event.proof for event in seen if isinstance(event, events.Proven))
    count = ask(source_url, written("SELECT count(*) FROM $VerificationToken WHERE NOT blocked"))
    assert proving.found(proof) == Found(
        rows={"VerificationToken": (0, 0, count)},
        columns={"VerificationToken": {"blocked"}},
        keys={"blocked-differs": count},
    )
    assert any(isinstance(event, events.RunFinished) for event in seen)


# -- memory ---------------------------------------------------------------------------------------

NUMBERS = "CREATE TABLE numbers (k bigint PRIMARY KEY, v int)"
MATRIX = """
matrix: 1
name: Numbers
tables:
  numbers:
    need: required
    why: there is nothing else
    stage: bulk
    written: never
  sand:
    need: required
    why: it has no key
    stage: bulk
    written: never
"""
PEAK = 100_000_000


@pytest.mark.parametrize("rows", [30_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("hash", ["fast", pytest.param("exact", marks=pytest.mark.soak)])
def test_memory_does_not_grow_with_the_differences(
    pair: Pair, clone: Clone, tmp_path: Path, rows: int, hash: str
) -> None:
    urls = clone(pair.old, "template0"), clone(pair.new, "template0")
    for url, shift in zip(urls, (0, 1), strict=True):
        execute(
            url,
            NUMBERS,
            "CREATE TABLE sand (v int)",
            f"INSERT INTO numbers SELECT n, n + {shift} FROM generate_series(1, {rows}) n",
            f"INSERT INTO sand SELECT n + {shift} * {rows} FROM generate_series(1, {rows // 5}) n",
        )
    execute(urls[1], "DELETE FROM numbers WHERE k <= 7", "ANALYZE")
    (tmp_path / "numbers.yaml").write_text(MATRIX)
    ends = ("--source", urls[0], "--target", urls[1])
    done, peak = measured(tmp_path, "verify", "--json", "--matrix", "numbers.yaml", "--hash", hash, *ends)
    assert done.status == 3, done.err
    found = {line["table"]: line for line in done.lines() if "rows_source" in line}
    numbers, sand = found["numbers"], found["sand"]
    assert (numbers["differing"], numbers["source_only"], numbers["target_only"]) == (rows - 7, 7, 0)
    assert (len(numbers["differences"]), numbers["not_listed"]) == (100, rows - 100)
    assert (sand["source_only"], sand["target_only"], sand["differing"]) == (rows // 5, rows // 5, 0)
    assert peak <= PEAK, f"{peak:,} bytes"
