"""What stands in the way of following a server by its own replication: findings from what both sides allow.

Imports findings and the words. Pure: it touches no network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

from mishika_migrate import model, words
from mishika_migrate.findings import few, literal, major, note, placed, quoted, refuse, warn

OLDEST = 15_00_00
"""Older servers have neither `disable_on_error` nor counts of what could not be applied."""


def inspect(
    source: model.Footing, target: model.Footing, *, schema: str, target_schema: str
) -> tuple[model.Finding, ...]:
    """All findings for following `source` on `target`. `schema` is the source's."""
    return (
        *_versions(source, target),
        *publisher(source),
        *subscriber(target),
        *_limits(source),
        *_tables(source, target, schema, target_schema),
        *_writers(source),
    )


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


def publisher(source: model.Footing) -> Iterable[model.Finding]:
    """What keeps a server from being followed."""
    at = f"the {source.role} {source.label}"
    if source.wal_level != "logical":
        yield refuse(
            "wal-level",
            source.label,
            f"wal_level of {at} is {source.wal_level}; following needs logical",
            "ALTER SYSTEM SET wal_level = logical; -- on the source, then restart it; a managed service has a"
            " parameter of its own, such as rds.logical_replication or cloudsql.logical_decoding",
        )
    if source.slots < 1:
        yield refuse(
            "no-free-slot",
            source.label,
            f"all replication slots of {at} are taken",
            "ALTER SYSTEM SET max_replication_slots = 20; -- then restart the server, or drop a slot that is unused",
        )
    if source.senders < 1:
        yield refuse(
            "no-free-sender",
            source.label,
            f"all WAL senders of {at} are busy",
            "ALTER SYSTEM SET max_wal_senders = 20; -- on the source, then restart it",
        )
    elif source.replicates:
        yield refuse(
            "no-replication",
            source.label,
            f"{source.user} may not replicate from {at}: {source.replicates.rpartition(': ')[2]}",
            f"ALTER ROLE {quoted(source.user)} REPLICATION; -- on the source; on RDS GRANT rds_replication TO"
            f" {quoted(source.user)}",
        )
    if not source.creates:
        yield refuse(
            "may-not-publish",
            source.label,
            f"{source.user} may create neither a schema nor a publication in the database of {at}",
            f"GRANT CREATE ON DATABASE … TO {quoted(source.user)}; -- on the source",
        )


def subscriber(target: model.Footing) -> Iterable[model.Finding]:
    """What keeps a server from following."""
    at = f"the {target.role} {target.label}"
    if not target.subscribes:
        fix = (
            f"GRANT pg_create_subscription TO {quoted(target.user)}; -- on the target"
            if target.version >= 16_00_00
            else "connect as a superuser, or move with `cutover --method sync`"
        )
        yield refuse("may-not-subscribe", target.label, f"{target.user} may not create a subscription on {at}", fix)
    if target.workers < 1:
        yield refuse(
            "no-free-worker",
            target.label,
            f"no worker for a subscription is free on {at}",
            "ALTER SYSTEM SET max_logical_replication_workers = 8; -- on the target, then restart it",
        )
    if target.slots < 1 and target.version < 18_00_00:
        # A subscription needs a replication origin, which are counted by this setting before 18.
        yield refuse(
            "no-free-origin",
            target.label,
            f"all replication slots of {at} are taken; a subscription needs one for its origin",
            "ALTER SYSTEM SET max_replication_slots = 20; -- on the target, then restart it",
        )
    if target.wal_level != "logical":
        yield warn(
            "no-way-back",
            target.label,
            f"wal_level of {at} is {target.wal_level}: after a cutover nothing could flow back to the source",
            "ALTER SYSTEM SET wal_level = logical; -- on the target, then restart it",
        )
    if target.reaches:
        yield refuse(
            "target-cannot-reach-source",
            target.label,
            f"{at} cannot reach the source: {target.reaches.rpartition('could not connect to the publisher: ')[2]}",
            "give the source's address as the target sees it: --source-from-target URL; then check firewall and"
            " pg_hba.conf",
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
        if not ground.owned:
            yield refuse(
                "not-owner",
                ground.table,
                f"{server.user} does not own {ground.table} of the {server.role} {server.label}, and only its owner can"
                " publish and fence it",
                f"GRANT the owner's role TO {quoted(server.user)}; -- on the {server.role}",
            )
        if not ground.logged:
            yield refuse(
                "unlogged",
                ground.table,
                f"{ground.table} of the {server.role} {server.label} is UNLOGGED and leaves no trace to follow",
                f"ALTER TABLE {name} SET LOGGED; -- on the {server.role}, or --exclude {ground.table}",
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
    for ground in target.grounds:
        if not ground.owned and target.version >= 16_00_00:
            # From 16 on rows are applied as the owner of their table.
            yield refuse(
                "not-owner",
                ground.table,
                f"{target.user} does not own {ground.table} of the target {target.label}, and rows are applied there as"
                " its owner",
                f"GRANT the owner's role TO {quoted(target.user)}; -- on the target",
            )
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
