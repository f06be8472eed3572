"""Numbers and names as people read them, and what streams do to them."""

from __future__ import annotations

import io

import pytest

from mishika_migrate import errors, events, model
from mishika_migrate.report import jsonl, live, names, screen, terminal
from tests.fix_faults import wait_until


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_940, "99.9 kB"), (99_960, "100 kB"), (999_400, "999 kB"),
        (999_600, "1.0 MB"), (26e9, "26.0 GB"), (450e9, "450 GB"), (1.5e12, "1.5 TB"), (2e15, "2,000.0 TB"),
    ],
)  # fmt: skip
def test_size(amount: float, text: str) -> None:
    assert screen.size(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "<1 ms"), (0.0042, "4 ms"), (0.4, "0.4 s"), (9.94, "9.9 s"), (9.96, "10 s"), (8, "8 s"), (119, "119 s"),
        (120, "2 min 00 s"), (185, "3 min 05 s"), (7199, "119 min 59 s"), (7200, "2 h 00 min"), (7800, "2 h 10 min"),
    ],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert screen.duration(seconds) == text


def test_count_knows_the_singular() -> None:
    assert [screen.count(n, "row") for n in (0, 1, 2, 1234)] == ["0 rows", "1 row", "2 rows", "1,234 rows"]


def test_shared_prefix_is_said_once() -> None:
    found = names.Names(["Shop_A", "Shop_B"])
    assert (found.title, found.short("Shop_A")) == ("table (Shop_…)", "A")


def test_strangers_are_told_from_those_that_share_the_prefix() -> None:
    found = names.Names(["Shop_A", "Shop_B", "Shop_C", "_prisma_migrations"])
    assert found.short("Shop_A") == "…A"
    assert found.short("_prisma_migrations") == "_prisma_migrations"
    assert names.Names(["Shop_A", "Shop_B", "x"], unicode=False).short("Shop_A") == "...A"


@pytest.mark.parametrize("tables", [[], ["one"], ["Shop_A"], ["a_1", "b_1", "c_1"], ["a", "b"], ["_x", "_y"]])
def test_names_that_share_nothing_stay_as_they_are(tables: list[str]) -> None:
    found = names.Names(tables)
    assert found.title == "table"
    assert [found.short(table) for table in tables] == tables


def test_no_two_tables_get_one_name() -> None:
    tables = ["Shop_A", "Shop_B", "Shop_C", "A"]
    found = names.Names(tables)
    assert len({found.short(table) for table in tables}) == 4


def shown(width: int) -> tuple[screen.Screen, io.StringIO]:
    stream = io.StringIO()
    to = screen.screen(stream)
    to.width = width
    return to, stream


def test_control_characters_of_a_name_do_not_reach_the_terminal() -> None:
    to, stream = shown(80)
    terminal.error(to, errors.Error("table a\x1b[2Jb\r\x07 [bold]c[/bold]", hint="h"))
    assert stream.getvalue() == "error: table a\\x1b[2Jb\\r\\x07 [bold]c[/bold]\nhint: h\n"


ACCOUNTS = tuple(
    model.Account(
        table=f"MishikaLLM_{name}", rows_out=rows, rows_in=rows, rows_ledger=rows, bytes=rows * 2500, seconds=rows / 1e4
    )
    for name, rows in (("OrganizationMembership", 7), ("SpendLogs", 123_456_789))
)


@pytest.mark.parametrize(("width", "columns"), [(120, "rows out"), (80, "rate"), (60, "time"), (45, "rows")])
def test_result_fits_and_wraps_no_number(width: int, columns: str) -> None:
    to, stream = shown(width)
    terminal.accounts(to, ACCOUNTS, seconds=1e4)
    table = stream.getvalue().splitlines()[3:]
    assert max(map(len, table)) <= width
    assert columns in table[0]
    assert "123,456,789" in stream.getvalue()
    assert "OrganizationMembership" in stream.getvalue()
    assert len(table) == 4


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_plan_fits_and_loses_no_word(width: int) -> None:
    why = "Required to ensure existing virtual keys continue working"
    chosen = tuple(
        model.Chosen(table=a.table, stage="core", reason=why, rows=a.rows_in, bytes=a.bytes) for a in ACCOUNTS
    )
    left = (model.Left(table="MishikaLLM_AuditLog", reason="not asked for (--include-auditlogs)", loses="x", rows=5),)
    what = model.Plan(source="s", target="t", chosen=chosen, left=left, stages=(), findings=())
    to, stream = shown(width)
    terminal.plan(to, what)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("Ready: 2 tables, about 123,456,796 rows, 309 GB.")
    assert max(len(line.rstrip()) for line in lines[3:]) <= width
    for word in (*why.split(), "123,456,789", "309 GB", "OrganizationMembership"):
        assert word in stream.getvalue()


def test_grants_of_one_cause_stand_in_one_block() -> None:
    def finding(table: str) -> model.Finding:
        return model.Finding(
            code="privilege", severity="refuse", subject=table, message=f"no {table}", fix=f"GRANT SELECT ON {table};"
        )

    to, stream = shown(80)
    terminal.findings(to, [finding("a"), finding("b")])
    assert stream.getvalue().splitlines() == [
        "✗ refuse  no a", "✗ refuse  no b", "    GRANT SELECT ON a;", "    GRANT SELECT ON b;", "",
    ]  # fmt: skip


def test_stopped_run_names_tables_once_whatever_their_ranges() -> None:
    def stopped(*waiting: str) -> str:
        return live.line(events.RunStopped(run="r", landed=("x",), open=waiting, message="", hint=""))

    assert stopped("public.A[0,8)", "public.A[8,)", "analyze public.A") == "still to copy: public.A"
    assert stopped("view public.V", "analyze public.A") == "all rows have landed; still to do: 2 steps"


def test_json_is_escaped_where_the_stream_is_not_utf_8() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "latin-1")
    jsonl.Lines(stream).write("x", {"a": "→"})
    assert raw.getvalue() == b'{"event": "x", "a": "\\u2192"}\n'


def test_result_of_a_resumed_run_tells_kept_rows_from_copied_ones() -> None:
    books = (
        model.Account(table="a", rows_out=70, rows_in=70, rows_ledger=70, bytes=7000, seconds=0.0, kept=70,
                      kept_bytes=7000),
        model.Account(table="b", rows_out=31, rows_in=31, rows_ledger=31, bytes=3100, seconds=2.0, kept=30,
                      kept_bytes=1100),
    )  # fmt: skip
    to, stream = shown(120)
    terminal.accounts(to, books, seconds=2.5)
    lines = stream.getvalue().splitlines()
    assert lines[:2] == [
        "Done: 1 row in 1 table, 2.0 kB in 2.5 s.",
        "Kept of an earlier attempt: 100 rows in 2 tables.",
    ]
    assert lines[-2].split()[-3:] == ["7.0", "kB", "kept"]
    assert lines[-1].split()[-2:] == ["1.0", "kB/s"]


def test_title_of_a_small_table_is_not_wrapped_to_its_width() -> None:
    chosen = (model.Chosen(table="a", stage="core", reason="x", rows=1, bytes=1),)
    to, stream = shown(120)
    terminal.plan(to, model.Plan(source="s", target="t", chosen=chosen, left=(), stages=(), findings=()))
    assert "Keys and configuration: all of it in one transaction" in stream.getvalue().splitlines()
    assert "Ready: 1 table, about 1 row, 1 B." in stream.getvalue()


@pytest.mark.parametrize(("rows", "words"), [(1, "a: 1 row, "), (2, "a: 2 rows, ")])
def test_one_row_is_one_row(rows: int, words: str) -> None:
    event = events.TableFinished(table="a", stage="core", rows=rows, bytes=1, seconds=1.0)
    assert live.line(event).startswith(words)


def test_built_index_gets_a_line_in_a_log() -> None:
    event = events.StepFinished(
        step="index public.a a_idx", stage="indexes", table="", kind="BuildIndex", rows=0, bytes=0, seconds=3.0
    )
    assert live.line(event) == "index public.a a_idx: built in 3 s"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_display_shows_each_index_under_way_on_a_line_of_its_own(width: int) -> None:
    names_ = ("Shop_logs_a_very_long_name_that_a_narrow_terminal_has_no_room_for_at_all_idx", "Shop_logs_pkey")
    table = model.TableName(schema="public", name="Shop_logs")
    builds = tuple(model.BuildIndex(target=table, name=name) for name in names_)
    what = model.Plan(
        source="s", target="t", left=(), findings=(),
        chosen=tuple(model.Chosen(table=f"Shop_{n}", stage="bulk", reason="", rows=1, bytes=1) for n in ("logs", "x")),
        stages=(model.Stage(name="indexes", title="building indexes", atomic=False, steps=builds),),
    )  # fmt: skip
    to, stream = shown(width)
    with live.Display(to, what) as display:
        display(events.StageStarted(name="indexes", title="building indexes", steps=2))
        for build, share in zip(builds, (0.43, 1.0), strict=True):
            display(events.Building(step=build.id, share=share))
        wait_until(lambda: "100 %" in stream.getvalue())
    frame = [line.split("\x1b")[0] for line in stream.getvalue().splitlines()]
    at = frame.index("› building indexes: 0 of 2")
    assert frame[at + 1].startswith("› index logs_a_very_long_name") and frame[at + 1].endswith("   43 %")
    assert frame[at + 2].startswith("› index logs_pkey ") and frame[at + 2].endswith("  100 %")
    assert max(map(len, frame)) < width


def test_log_of_a_resumed_run_tells_how_much_of_a_table_was_copied_now() -> None:
    to, stream = shown(120)
    what = model.Plan(source="s", target="t", chosen=(), left=(), stages=(), findings=())
    plain = live.Plain(to, what)
    plain(events.TableKept(table="a", rows=60, bytes=6000, steps=2, whole=False))
    plain(events.TableFinished(table="a", stage="bulk", rows=61, bytes=7000, seconds=1.0))
    assert stream.getvalue().splitlines() == [
        "a: 60 rows kept of an earlier attempt", "a: 1 row, 1.0 kB in 1 s; 61 with those kept",
    ]  # fmt: skip
