"""`complete`: looks first whether it may, says what is true when it fails half way, and goes on from there."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.fix_faults import LOGS, Start, ask, locked, terminate, wait_until
from tests.fix_moves import KEYS, NAMED, Move
from tests.fix_program import Run
from tests.fix_servers import Pair
from tests.looking import as_role, role

COMPLETE = "mishika-migrate/complete"


def waits(url: str) -> bool:
    """Whether it waits for a lock there."""
    return bool(
        ask(
            url,
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
            f" AND application_name = '{COMPLETE}' AND wait_event_type = 'Lock')",
        )
    )


@contextmanager
def forbidden(url: str, tag: str) -> Iterator[None]:
    """That statement fails there, whoever gives it."""
    raising = "CREATE FUNCTION public.no() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''not now''; END'"
    ask(url, raising)
    ask(url, f"CREATE EVENT TRIGGER no ON ddl_command_start WHEN TAG IN ('{tag}') EXECUTE FUNCTION public.no()")
    try:
        yield
    finally:
        ask(url, "DROP EVENT TRIGGER no")
        ask(url, "DROP FUNCTION public.no()")


@pytest.fixture
def mover(pair: Pair, source_url: str, target_url: str, tmp_path: Path, run: Run, start: Start) -> Move:
    """One by a role of its own, a superuser at first, with a target that follows."""
    source = as_role(source_url, role(pair.old, options="SUPERUSER REPLICATION"))
    target = as_role(target_url, role(pair.new, options="SUPERUSER REPLICATION"))
    move = Move(source_url, target_url, tmp_path, run, start, seen=(source, target))
    move.follow()
    return move


def name_on(url: str) -> str:
    """Its role, as SQL has it."""
    return str(ask(url, "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'mishika_migrate'"))


# -- what the roles may ---------------------------------------------------------------------------


def test_role_that_lost_its_rights_is_told_all_of_it_before_anything_goes(mover: Move) -> None:
    name, there = name_on(mover.source), name_on(mover.target)
    before = [ask(url, NAMED) for url in (mover.source, mover.target)]
    publication = ask(mover.source, "SELECT pubname FROM pg_publication")
    ask(mover.source, f"ALTER PUBLICATION {publication} OWNER TO postgres")
    ask(mover.target, "ALTER SCHEMA mishika_migrate OWNER TO postgres")
    ask(mover.source, f"ALTER ROLE {name} NOSUPERUSER NOREPLICATION")
    ask(mover.target, f"ALTER ROLE {there} NOSUPERUSER")
    done = mover("complete")
    assert done.status == 4, done.err
    mends = (
        (mover.source, f"ALTER ROLE {name} REPLICATION;"),
        (mover.source, f"ALTER PUBLICATION {publication} OWNER TO {name};"),
        (mover.target, f"ALTER SCHEMA mishika_migrate OWNER TO {there};"),
    )
    for url, statement in mends:
        assert f"{statement} -- on the {'source' if url == mover.source else 'target'}" in done.err
        ask(url, statement)
    assert "nothing was removed" in done.err
    assert [ask(url, NAMED) for url in (mover.source, mover.target)] == before
    mover.well("complete")
    mover.assert_gone()


def test_tables_of_others_keep_the_fence_from_going(mover: Move) -> None:
    name = name_on(mover.source)
    mover.well(*mover.over())
    ask(mover.source, f"ALTER ROLE {name} NOSUPERUSER")
    done = mover("complete")
    assert (done.status, f"GRANT postgres TO {name}; -- on the source" in done.err) == (4, True), done.err
    assert mover.refusal("source") == "25006"
    ask(mover.source, f"ALTER ROLE {name} SUPERUSER")
    mover.well("complete")
    mover.assert_gone()


def test_what_others_have_put_into_the_schema_is_told_before_anything_goes(following: Move) -> None:
    ask(following.source, "CREATE TABLE mishika_migrate.mine (a int)")
    done = following("complete")
    assert (done.status, "table mishika_migrate.mine" in done.err) == (4, True), done.err
    assert following.follows()
    ask(following.source, "DROP TABLE mishika_migrate.mine")
    following.well("complete")


# -- half way -------------------------------------------------------------------------------------


def test_failure_half_way_says_what_is_gone_and_what_is_left(following: Move) -> None:
    following.well(*following.over())
    with forbidden(following.source, "DROP FUNCTION"):
        done = following("complete", "--json")
        error = done.lines()[-1]
        assert (done.status, error["status"]) == (5, 5), done.err
        gone, _, left = error["message"].partition("; left: ")
        assert "not now; removed: " in gone
        assert "subscription mishika_migrate_" in gone
        assert "schema mishika_migrate" in left
        assert "`mishika-migrate complete` again" in error["hint"]
        assert ask(following.target, "SELECT state FROM mishika_migrate.cutover") == "finished", (
            "the ledger is the last"
        )
        assert following.refusal("source") == ""
        # Both sides may be written to now.
        for verb in ("cutover", "rollback"):
            assert following(verb).status == 4
        assert following("complete").status == 5
    following.well("complete")
    following.assert_gone()


def test_failure_at_the_last_step_of_a_move_amid_a_switch_is_repeated(following: Move) -> None:
    following.well(*following.over())
    ask(following.target, "UPDATE mishika_migrate.cutover SET state = 'proved', finished = NULL")
    following.well("rollback", "--lost", "target")
    with forbidden(following.target, "DROP TABLE"):
        assert following("complete").status == 5
        assert ask(following.source, NAMED) == ""
    following.well("complete")
    following.assert_gone()


def test_server_that_lets_nobody_in_any_more_leaves_unknown_what_is_there(mover: Move) -> None:
    mover.well(*mover.over())
    name = name_on(mover.source)
    with locked(mover.source, KEYS, "ACCESS SHARE"):
        program = mover.start("complete")
        wait_until(lambda: waits(mover.source))
        ask(mover.source, f"ALTER ROLE {name} NOLOGIN")
        assert terminate(mover.source, COMPLETE) == 1
        done = program.ended()
    assert (done.status, "what is not known" in done.err) == (5, True), done.err
    assert "removed: " in done.err
    ask(mover.source, f"ALTER ROLE {name} LOGIN")
    mover.well("complete")
    mover.assert_gone()


def test_interrupted_command_says_what_is_gone(following: Move) -> None:
    following.well(*following.over())
    with locked(following.source, KEYS, "ACCESS SHARE"):
        program = following.start("complete")
        wait_until(lambda: waits(following.source))
        program.signal(signal.SIGINT)
        done = program.ended()
    assert (done.status, "interrupted; removed: " in done.err) == (130, True), done.err
    assert "nothing was written" not in done.err
    following.well("complete")
    following.assert_gone()


# -- what is said ---------------------------------------------------------------------------------


def test_another_command_at_work_is_told_as_such(following: Move) -> None:
    following.well(*following.over())
    ask(following.target, "UPDATE mishika_migrate.cutover SET state = 'fenced', finished = NULL")
    with closing(psycopg.connect(following.target, autocommit=True)) as other:
        other.execute(f"SELECT pg_advisory_lock({0x6D69_7368_696B_61})".encode())
        done = following("complete")
        assert (done.status, "another run is working" in done.err) == (4, True), done.err
    done = following("complete")
    assert (done.status, "has come to no end" in done.err) == (4, True), done.err


def test_json_lists_what_would_go_before_anybody_agrees(following: Move, run: Run) -> None:
    done = run("complete", "--json", "--source", following.source, "--target", following.target)
    remains, error = done.lines()
    assert (done.status, remains["event"], error["event"]) == (2, "remains", "error")
    assert any(name.startswith("slot mishika_migrate_") for name in remains["source"])
    assert any(name.startswith("subscription mishika_migrate_") for name in remains["target"])
    assert (remains["unfinished"], remains["followed"]) == ("", "traffic is on the source")


def test_unfinished_copy_is_told_to_end_with_it(move: Move) -> None:
    ask(move.target, f'ALTER TABLE "{LOGS}" ADD CONSTRAINT never CHECK (false) NOT VALID')
    assert move("copy", "--follow", "--everything").status == 5
    done = move.well("complete")
    assert "is unfinished, and `copy --resume` cannot continue it afterwards" in done.err


@pytest.mark.parametrize(
    ("gone", "switched"),
    [
        ("target", True),
        *(
            pytest.param(gone, switched, marks=pytest.mark.soak)
            for gone, switched in (("source", True), ("source", False), ("target", False))
        ),
    ],
)
def test_statements_for_the_lost_side_are_to_be_pasted(gone: str, switched: bool, following: Move) -> None:
    if switched:
        following.well(*following.over())
    statements = following.well("complete", "--lost", gone, "--json").lines()[-1]["left"]
    other = "target" if gone == "source" else "source"
    assert ask(following.url(other), NAMED) == ""
    assert "…" not in "".join(statements)
    with closing(psycopg.connect(following.url(gone), autocommit=True)) as session:
        for statement in statements:
            for each in statement.partition(" --")[0].rstrip(";").split("; "):
                session.execute(each.encode())
    following.assert_gone()
