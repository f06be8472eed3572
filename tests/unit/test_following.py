"""What stands in the way of following, decided from plain values."""

from __future__ import annotations

import dataclasses

import pytest

from mishika_migrate import model
from mishika_migrate.preflight import following

SOURCE = model.Footing(
    role="source", label="app@old:5432/proxy", database="proxy", version=18_00_00, user="app", in_recovery=False,
    wal_level="logical", slots=5, senders=5, workers=4, superuser=False, subscribes=True, creates=True,
    replicates="", grounds=(model.Ground(table="Keys", owner="proxy", identified=True, owned=True),),
)  # fmt: skip
TARGET = dataclasses.replace(SOURCE, role="target", label="app@new:5432/proxy", reaches="")


def codes(source: model.Footing = SOURCE, target: model.Footing = TARGET, *, schema: str = "public") -> list[str]:
    """Of what refuses or warns."""
    found = following.inspect(source, target, schema="public", target_schema=schema)
    return [f"{each.severity} {each.code}" for each in found if each.severity != "note"]


def test_nothing_stands_in_the_way_of_two_good_servers() -> None:
    assert codes() == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"version": 14_00_05}, "refuse too-old-to-follow"),
        ({"in_recovery": True}, "refuse standby"),
        ({"wal_level": "replica"}, "refuse wal-level"),
        ({"slots": 0}, "refuse no-free-slot"),
        ({"senders": 0}, "refuse no-free-sender"),
        ({"replicates": "cannot connect: must be superuser or replication role"}, "refuse no-replication"),
        ({"creates": False}, "refuse may-not-publish"),
        ({"keeps": 1 << 30}, "warn slot-wal-limit"),
        ({"idles": 600.0}, "warn slot-idle-limit"),
        (
            {"grounds": (model.Ground(table="Keys", owner="proxy", identified=False, owned=True),)},
            "refuse no-replica-identity",
        ),
        ({"grounds": (model.Ground(table="Keys", owner="proxy", identified=True, owned=False),)}, "refuse not-owner"),
        (
            {"grounds": (model.Ground(table="Keys", owner="proxy", identified=True, owned=True, logged=False),)},
            "refuse unlogged",
        ),
        ({"writers": (model.Writer(who="report", seconds=99.0),)}, "warn long-transaction"),
        ({"writers": (model.Writer(who="prepared", seconds=99.0, prepared=True),)}, "warn long-transaction"),
    ],
)
def test_each_lack_of_the_source_is_a_finding(change: dict[str, object], code: str) -> None:
    assert codes(dataclasses.replace(SOURCE, **change)) == [code]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"version": 14_00_05}, "refuse too-old-to-follow"),
        ({"subscribes": False}, "refuse may-not-subscribe"),
        ({"creates": False}, "refuse may-not-subscribe"),
        ({"workers": 0}, "refuse no-free-worker"),
        ({"wal_level": "replica"}, "warn no-way-back"),
        ({"reaches": "could not connect to the publisher: timeout"}, "refuse target-cannot-reach-source"),
        (
            {"grounds": (model.Ground(table="Keys", owner="proxy", identified=True, owned=True, always=("t",)),)},
            "refuse trigger-always",
        ),
    ],
)
def test_each_lack_of_the_target_is_a_finding(change: dict[str, object], code: str) -> None:
    assert codes(target=dataclasses.replace(TARGET, **change)) == [code]  # type: ignore[arg-type]


def told(source: model.Footing = SOURCE, target: model.Footing = TARGET) -> list[model.Finding]:
    found = following.inspect(source, target, schema="public", target_schema="public")
    return [each for each in found if each.severity != "note"]


def tables(
    *owners: str, identified: bool = True, owned: bool = False, settable: bool = True
) -> tuple[model.Ground, ...]:
    return tuple(
        model.Ground(table=f"T{number}", owner=owner, identified=identified, owned=owned, settable=settable)
        for number, owner in enumerate(owners)
    )


def test_one_finding_an_owner_names_its_tables_and_mends_it() -> None:
    target = dataclasses.replace(TARGET, grounds=tables("proxy", "proxy", "Other", "proxy", "proxy", "proxy"))
    proxy, other = told(target=target)
    assert (proxy.severity, proxy.code, proxy.subject) == ("refuse", "not-owner", "proxy")
    assert "who owns T0, T1, T3 and 2 more of the target" in proxy.message
    assert other.fix == 'GRANT "Other" TO "app" WITH INHERIT TRUE, SET TRUE; -- on the target'


def test_membership_before_16_is_inherited_by_the_member() -> None:
    (found,) = told(dataclasses.replace(SOURCE, version=15_00_00, grounds=tables("proxy")))
    assert found.fix == 'GRANT "proxy" TO "app"; ALTER ROLE "app" INHERIT; -- on the source'


def test_rows_are_applied_by_who_may_set_role() -> None:
    grounds = tables("proxy", owned=True, settable=False)
    (found,) = told(target=dataclasses.replace(TARGET, grounds=grounds))
    assert (found.severity, "may not SET ROLE to proxy" in found.message) == ("refuse", True)
    # On the source nothing is applied before traffic has moved.
    (found,) = told(dataclasses.replace(SOURCE, grounds=grounds))
    assert (found.severity, found.code) == ("warn", "no-way-back")
    assert found.fix.startswith('GRANT "proxy" TO "app" WITH INHERIT TRUE, SET TRUE; -- on the source')


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        ({"subscribes": False}, 'GRANT pg_create_subscription TO "app"; -- on the source'),
        ({"subscribes": False, "version": 15_00_00}, "connect to the source as a superuser; or cutover --no-way-back"),
        ({"workers": 0}, "ALTER SYSTEM SET max_logical_replication_workers = 8; -- on the source, then restart it"),
    ],
)
def test_the_source_must_be_able_to_follow_back(change: dict[str, object], fix: str) -> None:
    (found,) = told(dataclasses.replace(SOURCE, **change))  # type: ignore[arg-type]
    assert (found.severity, found.code) == ("warn", "no-way-back")
    assert found.message.startswith("no way back after a cutover: ")
    assert found.fix.startswith(fix)


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        ({"replicates": "x: permission denied to start WAL sender"}, 'ALTER ROLE "app" REPLICATION; -- on the target'),
        ({"senders": 0}, "ALTER SYSTEM SET max_wal_senders = 20; -- on the target"),
        ({"grounds": tables("app", owned=True, identified=False)}, 'ALTER TABLE "public"."T0" REPLICA IDENTITY FULL'),
    ],
)
def test_the_target_must_be_able_to_be_followed_back(change: dict[str, object], fix: str) -> None:
    (found,) = told(target=dataclasses.replace(TARGET, **change))  # type: ignore[arg-type]
    assert (found.severity, found.code) == ("warn", "no-way-back")
    assert found.fix.startswith(fix)


def test_what_stands_in_both_ways_is_told_once_and_can_be_pasted() -> None:
    poor = {"creates": False, "grounds": tables("proxy")}
    found = told(dataclasses.replace(SOURCE, **poor), dataclasses.replace(TARGET, **poor))  # type: ignore[arg-type]
    assert [f"{each.severity} {each.code}" for each in found] == [
        "refuse may-not-publish", "refuse may-not-subscribe", "refuse not-owner", "refuse not-owner"
    ]  # fmt: skip
    assert found[0].fix == 'GRANT CREATE ON DATABASE "proxy" TO "app"; -- on the source'
    assert found[1].fix == 'GRANT CREATE ON DATABASE "proxy" TO "app"; -- on the target'


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("password is required", "name the source with its password in the address: --source-from-target URL;"),
        ('password authentication failed for user "app"', "check user and password in the address"),
        ('no pg_hba.conf entry for host "10.0.0.7", user "app"', "give pg_hba.conf of the source a line"),
        ('permission denied for database "proxy"', 'GRANT CONNECT ON DATABASE "proxy" TO "app"; -- on the source'),
        ("Connection refused", "give the source's address as the target's server sees it: --source-from-target URL"),
    ],
)
def test_each_reason_not_to_be_reached_has_its_own_remedy(said: str, fix: str) -> None:
    (found,) = told(target=dataclasses.replace(TARGET, reaches=f"target {TARGET.label}: {said}"))
    assert found.message == f"the target {TARGET.label} cannot reach the source: {said}"
    assert found.fix.startswith(fix)


def test_slots_of_an_older_target_are_origins_too() -> None:
    full = dataclasses.replace(TARGET, slots=0)
    assert codes(target=full) == ["warn no-way-back"]
    assert codes(target=dataclasses.replace(full, version=15_00_00)) == ["refuse no-free-origin"]


def test_replication_goes_by_name() -> None:
    assert codes(schema="other") == ["refuse other-schema"]


def test_all_findings_come_at_once_each_with_a_remedy() -> None:
    poor = dataclasses.replace(SOURCE, wal_level="replica", slots=0, creates=False)
    found = following.inspect(poor, TARGET, schema="public", target_schema="public")
    assert len([each for each in found if each.severity == "refuse"]) == 3
    assert all(each.fix for each in found if each.severity != "note")


END = model.Endpoint(role="target", conninfo="", label="app@new:5432/proxy")
SLOT = model.Slot(name="mishika_migrate_x", active=False, lag=0, retained=5_000_000, status="reserved")


def test_what_a_move_has_left_is_told_and_stops_a_copy() -> None:
    follow = model.Follow(run="r", way="forward", tables=("Keys",), fingerprint="", ready=True)
    found = following.left(END, (SLOT,), "no writes here", follow)
    assert [(each.severity, each.code) for each in found] == [
        ("warn", "abandoned-slot"), ("refuse", "fenced"), ("refuse", "target-follows")
    ]  # fmt: skip
    assert "5.0 MB" in found[0].message
    assert following.left(END, (dataclasses.replace(SLOT, active=True),), "", None) == ()


WORKING = model.Subscription(name="mishika_migrate_x", enabled=True, working=True)


@pytest.mark.parametrize(
    ("slot", "subscription", "delay", "codes"),
    [
        ({}, {}, 0.2, []),
        ({}, {}, None, ["behind"]),
        ({}, {"unready": 2}, 0.2, ["tables-not-ready"]),
        ({"retained": following.MUCH_WAL}, {}, 0.2, ["much-wal-kept"]),
        ({"retained": 5_000, "safe": 5_000}, {}, 0.2, []),
        ({"retained": 5_000, "safe": 4_999}, {}, 0.2, ["slot-in-danger"]),
        ({"retained": following.MUCH_WAL, "safe": -5}, {}, None, ["behind", "much-wal-kept", "slot-in-danger"]),
    ],
)
def test_what_moves_badly_is_a_warning(
    slot: dict[str, int], subscription: dict[str, int], delay: float | None, codes: list[str]
) -> None:
    here = dataclasses.replace(SLOT, active=True, **slot)  # type: ignore[arg-type]
    there = dataclasses.replace(WORKING, **subscription)  # type: ignore[arg-type]
    found = list(following.worries(END, here, there, delay=delay, waited=5.0))
    assert [each.code for each in found] == codes
    assert {each.severity for each in found} <= {"warn"}
    assert all(each.fix for each in found)


def test_what_is_broken_is_not_called_late() -> None:
    assert not list(following.worries(END, SLOT, None, delay=None, waited=None))
    assert not list(following.worries(END, None, WORKING, delay=None, waited=5.0))
