"""What stands in the way of following a server by its own replication: findings from what both sides allow.

Imports findings and the words. Pure: it touches no network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence, Set

from mishika_migrate import model, words
from mishika_migrate.findings import act_as, few, literal, major, note, placed, quoted, refuse, warn

OLDEST = 15_00_00
"""Older servers have neither `disable_on_error` nor counts of what could not be applied."""


def inspect(
    source: model.Footing, target: model.Footing, *, schema: str, target_schema: str
) -> tuple[model.Finding, ...]:
    """All findings for following `source` on `target`. `schema` is the source's."""
    found = [
        *_versions(source, target),
        *publisher(source),
        *subscriber(target),
        *unreached(target, source),
        *_limits(source),
        *_tables(source, target, schema, target_schema),
        *_writers(source),
    ]
    return (*found, *_no_way_back(source, target, target_schema, {each.fix for each in found}))


def way_back(publisher_: model.Footing, subscriber_: model.Footing, *, schema: str) -> Iterable[model.Finding]:
    """What keeps the side that traffic leaves from following the new one, in whose `schema` the tables lie."""
    yield from publisher(publisher_)
    yield from grounds(publisher_, schema)
    yield from subscriber(subscriber_, instead="")
    yield from _appliers(subscriber_)


def left(
    end: model.Endpoint, slots: Sequence[model.Slot], fenced: str, follow: model.Follow | None
) -> tuple[model.Finding, ...]:
    """What a move on its way, or one that nobody ended, means for a copy or a sync."""
    current = "" if follow is None else model.object_name(follow.run, follow.way)
    found = list(abandoned(slots, end, current=current))
    if fenced:
        make = refuse if end.role == "target" else warn
        fix = "mishika-migrate cutover --abort, rollback or complete"
        found.append(make("fenced", end.label, f"the {end.role} {end.label} is fenced: {fenced}", fix))
    if follow is not None and follow.ready and end.role == "target":
        found.append(
            refuse(
                "target-follows",
                end.label,
                f"the target {end.label} {'follows' if follow.way == 'forward' else 'is followed by'} the source"
                f" since run {follow.run}, which writing to it would disturb",
                f"mishika-migrate {'cutover' if follow.way == 'forward' else 'rollback'}, or mishika-migrate complete,"
                " which ends the following",
            )
        )
    return tuple(found)


def abandoned(slots: Sequence[model.Slot], end: model.Endpoint, *, current: str) -> Iterable[model.Finding]:
    """Slots that nobody reads from: each keeps all WAL since. The `current` one is still of use."""
    for slot in slots:
        if slot.active:
            continue
        by_hand = f"mishika-migrate complete, or by hand SELECT pg_drop_replication_slot({literal(slot.name)});"
        yield warn(
            "abandoned-slot",
            slot.name,
            f"nobody reads from slot {slot.name} of the {end.role} {end.label}, which holds back"
            f" {words.size(slot.retained)} of WAL and fills its disk",
            "mishika-migrate follow status, which says why" if slot.name == current else by_hand,
        )


def unread(
    slot: model.Slot, subscription: model.Subscription | None, end: model.Endpoint, reader: model.Endpoint
) -> Iterable[model.Finding]:
    """The slot that is followed has no reader: why, as far as it is known."""
    for each in abandoned([slot], end, current=slot.name):
        fix = each.fix
        if subscription is not None and subscription.enabled:
            fix = (
                f"the log of the {reader.role}'s server says why it cannot connect; after a change of address or"
                " password: mishika-migrate follow start"
            )
        elif subscription is not None:
            fix = "mishika-migrate follow start"
        yield warn(each.code, each.subject, each.message, fix)


MUCH_WAL = 1_000_000_000
"""From so many bytes on WAL that is kept for a slot is a warning."""


def worries(
    end: model.Endpoint,
    slot: model.Slot | None,
    subscription: model.Subscription | None,
    *,
    delay: float | None,
    waited: float | None,
) -> Iterable[model.Finding]:
    """Warnings about what still moves. `end` is the server that is followed; `delay` and `waited` are those of
    `model.Following`, the latter None where nothing was waited for."""
    if slot is None:
        return
    if delay is None and waited is not None:
        yield warn(
            "behind",
            slot.name,
            f"a change of the {end.role} {end.label} takes longer than {waited:g} s",
            "look on the other side for who holds locks (pg_locks), and here for a transaction that writes much",
        )
    if subscription is not None and subscription.unready:
        yield warn(
            "tables-not-ready",
            slot.name,
            f"{words.count(subscription.unready, 'table')} of {subscription.name} do not follow yet",
            "SELECT srrelid::regclass, srsubstate FROM pg_subscription_rel WHERE srsubstate <> 'r';",
        )
    if slot.retained >= MUCH_WAL:
        yield warn(
            "much-wal-kept",
            slot.name,
            f"the {end.role} {end.label} keeps {words.size(slot.retained)} of WAL for slot {slot.name}",
            "mishika-migrate cutover as soon as it has caught up, or mishika-migrate complete, which frees the disk",
        )
    if slot.safe is not None and slot.safe < slot.retained:
        yield warn(
            "slot-in-danger",
            slot.name,
            f"the {end.role} {end.label} gives the slot up after {words.size(max(slot.safe, 0))} more of WAL",
            "ALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf(); -- and watch its disk",
        )


def selection(todo: model.Plan) -> Iterable[model.Finding]:
    """What of a plan cannot be followed."""
    for table, existing in todo.merged.items():
        yield refuse(
            "merged-and-followed",
            table.name,
            f"rows of {table.name} are to be merged into the target's (--on-existing {existing}), which would differ"
            " from the source from the start",
            f"leave out --follow, or --on-existing replace for {table.name}",
        )
    for table, interval in todo.intervals.items():
        if interval.before is not None:
            yield refuse(
                "ended-and-followed",
                table.name,
                f"of {table.name} only rows before {interval.before} are asked for, and newer ones would follow",
                "leave out --follow or --spendlogs-before",
            )


def fingerprint(catalog: model.Catalog, tables: Sequence[str]) -> str:
    """Changes when a column or the key of one of the tables does."""
    shape = [
        [table.name, [[column.name, column.type, column.nullable] for column in table.columns], table.primary_key]
        for name in sorted(tables)
        if (table := catalog.table(name))
    ]
    return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:16]


# -- servers --------------------------------------------------------------------------------------


def _versions(source: model.Footing, target: model.Footing) -> Iterable[model.Finding]:
    for server in (source, target):
        if server.version < OLDEST:
            yield refuse(
                "too-old-to-follow",
                server.label,
                f"the {server.role} {server.label} is PostgreSQL {major(server.version)}; following needs 15",
                "copy without --follow, and move with `cutover --method sync`",
            )
    if source.in_recovery:
        yield refuse(
            "standby",
            source.label,
            f"the source {source.label} is a standby, which cannot be followed",
            "give --source the URL of its primary",
        )


def publisher(server: model.Footing) -> Iterable[model.Finding]:
    """What keeps a server from being followed."""
    at, role = f"the {server.role} {server.label}", server.role
    if server.wal_level != "logical":
        yield refuse(
            "wal-level",
            server.label,
            f"wal_level of {at} is {server.wal_level}; following needs logical",
            f"ALTER SYSTEM SET wal_level = logical; -- on the {role}, then restart it; a managed service has a"
            " parameter of its own, such as rds.logical_replication or cloudsql.logical_decoding",
        )
    if server.slots < 1:
        yield refuse(
            "no-free-slot",
            server.label,
            f"all replication slots of {at} are taken",
            f"ALTER SYSTEM SET max_replication_slots = 20; -- on the {role}, then restart it, or drop a slot that is"
            " unused",
        )
    if server.senders < 1:
        yield refuse(
            "no-free-sender",
            server.label,
            f"all WAL senders of {at} are busy",
            f"ALTER SYSTEM SET max_wal_senders = 20; -- on the {role}, then restart it",
        )
    elif server.replicates:
        yield refuse(
            "no-replication",
            server.label,
            f"{server.user} may not replicate from {at}: {server.replicates.rpartition(': ')[2]}",
            f"ALTER ROLE {quoted(server.user)} REPLICATION; -- on the {role}; on RDS GRANT rds_replication TO"
            f" {quoted(server.user)}",
        )
    if not server.creates:
        yield refuse(
            "may-not-publish",
            server.label,
            f"{server.user} may create neither a schema nor a publication in the database of {at}",
            _create_on(server),
        )


def subscriber(server: model.Footing, *, instead: str = "move with `cutover --method sync`") -> Iterable[model.Finding]:
    """What keeps a server from following. `instead` is what to do where only a superuser may."""
    at, role = f"the {server.role} {server.label}", server.role
    if not server.subscribes:
        fix = (
            f"GRANT pg_create_subscription TO {quoted(server.user)}; -- on the {role}"
            if server.version >= 16_00_00
            else f"connect to the {role} as a superuser{instead and f', or {instead}'}"
        )
        yield refuse("may-not-subscribe", server.label, f"{server.user} may not create a subscription on {at}", fix)
    if not server.creates:
        yield refuse(
            "may-not-subscribe",
            server.label,
            f"{server.user} may not create anything in the database of {at}, and so no subscription",
            _create_on(server),
        )
    if server.workers < 1:
        yield refuse(
            "no-free-worker",
            server.label,
            f"no worker for a subscription is free on {at}",
            f"ALTER SYSTEM SET max_logical_replication_workers = 8; -- on the {role}, then restart it",
        )
    if server.slots < 1 and server.version < 18_00_00:
        # A subscription needs a replication origin, which are counted by this setting before 18.
        yield refuse(
            "no-free-origin",
            server.label,
            f"all replication slots of {at} are taken; a subscription needs one for its origin",
            f"ALTER SYSTEM SET max_replication_slots = 20; -- on the {role}, then restart it, or drop a slot that is"
            " unused",
        )


def _create_on(server: model.Footing) -> str:
    return f"GRANT CREATE ON DATABASE {quoted(server.database)} TO {quoted(server.user)}; -- on the {server.role}"


def unreached(subscriber_: model.Footing, publisher_: model.Footing) -> Iterable[model.Finding]:
    """Why the server that is to follow cannot connect to the other one, where that was tried."""
    here, there, user = subscriber_.role, publisher_.role, publisher_.user
    if not subscriber_.reaches:
        return
    said = subscriber_.reaches.rpartition("could not connect to the publisher: ")[2]
    said = said.removeprefix(f"{here} {subscriber_.label}: ")
    option = f"--{there}-from-{here} URL"
    # The first that the server says; the last one fits everything.
    fixes = {
        # Of a role that is no superuser, also where there is one and nobody asks for it.
        "password is required": f"name the {there} with its password in the address: {option}; a file or PGPASSWORD is"
        f" not enough. If it is there, the {there} does not ask for it: pg_hba.conf must say scram-sha-256 for"
        f" {user} from the {here}, not trust",
        "password": f"check user and password in the address: {option}",
        "no pg_hba.conf entry": f"give pg_hba.conf of the {there} a line for the address that the {here} comes from:"
        f" host {quoted(publisher_.database)} {quoted(user)} ADDRESS scram-sha-256; then SELECT pg_reload_conf();",
        "permission denied for database": f"GRANT CONNECT ON DATABASE {quoted(publisher_.database)} TO"
        f" {quoted(user)}; -- on the {there}",
        "": f"give the {there}'s address as the {here}'s server sees it: {option}; then check firewall and"
        f" listen_addresses of the {there}",
    }
    yield refuse(
        f"{here}-cannot-reach-{there}",
        subscriber_.label,
        f"the {here} {subscriber_.label} cannot reach the {there}: {said}",
        next(fix for mark, fix in fixes.items() if mark in said),
    )


_WITHOUT = "or cutover --no-way-back"


def _no_way_back(
    source: model.Footing, target: model.Footing, target_schema: str, told: Set[str]
) -> Iterable[model.Finding]:
    """What a cutover would stumble over later; a move without a way back is one all the same.

    Not what is mended by what is `told` already.
    """
    if min(source.version, target.version) < OLDEST or source.in_recovery:
        return
    for each in way_back(target, source, schema=target_schema):
        if each.severity == "refuse" and each.fix not in told:
            yield warn(
                "no-way-back", each.subject, f"no way back after a cutover: {each.message}", f"{each.fix}; {_WITHOUT}"
            )


def _limits(source: model.Footing) -> Iterable[model.Finding]:
    if source.keeps is not None:
        yield warn(
            "slot-wal-limit",
            source.label,
            f"the source {source.label} gives a slot up that holds back more than"
            f" {source.keeps // 1024 // 1024:,} MB of WAL: should the target fall behind, the copy begins anew",
            "ALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf(); -- and watch its disk",
        )
    else:
        yield note(
            "slot-keeps-wal",
            source.label,
            f"the source {source.label} keeps all WAL that the target has not confirmed; `follow status` shows it",
        )
    if source.idles is not None:
        yield warn(
            "slot-idle-limit",
            source.label,
            f"the source {source.label} gives a slot up that is idle for {source.idles:.0f} s; during the copy it is",
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf(); -- on the source",
        )


# -- tables ---------------------------------------------------------------------------------------


def grounds(server: model.Footing, schema: str) -> Iterable[model.Finding]:
    """What keeps tables of a server from being followed."""
    yield from _strangers(
        server, [ground for ground in server.grounds if not ground.owned], "only their owner can publish and fence them"
    )
    for ground in server.grounds:
        name = placed(model.TableName(schema=schema, name=ground.table))
        if not ground.identified:
            yield refuse(
                "no-replica-identity",
                ground.table,
                f"{ground.table} of the {server.role} {server.label} has no primary key as its replica identity: once"
                " it is published, UPDATE and DELETE on it fail",
                f"ALTER TABLE {name} REPLICA IDENTITY FULL; -- on the {server.role}, or --exclude {ground.table}",
            )
        if not ground.logged:
            yield refuse(
                "unlogged",
                ground.table,
                f"{ground.table} of the {server.role} {server.label} is UNLOGGED and leaves no trace to follow",
                f"ALTER TABLE {name} SET LOGGED; -- on the {server.role}, or --exclude {ground.table}",
            )


def _appliers(server: model.Footing) -> Iterable[model.Finding]:
    """From 16 on rows are applied as the owner of their table: membership alone does not let the role SET ROLE."""
    if server.version >= 16_00_00:
        lacking = [ground for ground in server.grounds if not (ground.owned and ground.settable)]
        yield from _strangers(server, lacking, "rows are applied there as the owner of their table")


def _strangers(server: model.Footing, lacking: Sequence[model.Ground], why: str) -> Iterable[model.Finding]:
    """One finding for each owner that the role may not act as, however many tables it has."""
    for owner in dict.fromkeys(ground.owner for ground in lacking):
        mine = [ground for ground in lacking if ground.owner == owner]
        does = "may not SET ROLE to" if all(ground.owned for ground in mine) else "has not the rights of"
        yield refuse(
            "not-owner",
            owner,
            f"{server.user} {does} {owner}, who owns {few([ground.table for ground in mine])} of the {server.role}"
            f" {server.label}; {why}",
            act_as(owner, server.user, version=server.version, role=server.role),
        )


def _tables(source: model.Footing, target: model.Footing, schema: str, target_schema: str) -> Iterable[model.Finding]:
    if schema != target_schema:
        yield refuse(
            "other-schema",
            target.label,
            f"the tables lie in schema {schema} on the source and in {target_schema} on the target: replication goes"
            " by name",
            "use the same ?schema= on both sides, or move with `cutover --method sync`",
        )
    yield from grounds(source, schema)
    yield from _appliers(target)
    for ground in target.grounds:
        if ground.always:
            trigger = ground.always[0]
            yield refuse(
                "trigger-always",
                ground.table,
                f"trigger {few(ground.always)} of {ground.table} on the target {target.label} fires for replicated rows"
                " too, and would change them",
                f"ALTER TABLE {placed(model.TableName(schema=target_schema, name=ground.table))} ENABLE TRIGGER"
                f" {quoted(trigger)}; -- on the target: an ordinary trigger does not",
            )


def _writers(source: model.Footing) -> Iterable[model.Finding]:
    for writer in source.writers:
        fix = (
            f"COMMIT PREPARED or ROLLBACK PREPARED it: {literal(writer.who)}"
            if writer.prepared
            else "end it, or wait until it ends"
        )
        yield warn(
            "long-transaction",
            source.label,
            f"on the source {source.label} a transaction has been open for {writer.seconds:.0f} s ({writer.who}):"
            " a slot is made when it ends",
            fix,
        )
