"""The gates of a switch: everything that must be true before anybody is kept from writing.

Imports moves, streams, sync, liveness, pg, following, privileges and the words. Only heartbeats are written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mishika_migrate import errors, findings, model, words
from mishika_migrate.operations.moving import moves, streams
from mishika_migrate.operations.syncing import liveness
from mishika_migrate.operations.syncing import sync as syncing
from mishika_migrate.pg import connect, fence, footing, replication
from mishika_migrate.preflight import following, privileges


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """`max_lag` is how long a change may take, `patience` the age of transactions that a fence would wait for, both in
    seconds. `way_back` is for replication from the new side to the old one, before traffic moves."""

    max_lag: float = 5.0
    patience: float = 5.0
    way_back: bool = True
    jobs: int = 4
    lock_timeout: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """`delay` is how many seconds the last changes take to the other side, None where that is not known."""

    all: tuple[model.Gate, ...]
    delay: float | None = None

    @property
    def unmet(self) -> tuple[model.Gate, ...]:
        return tuple(gate for gate in self.all if not gate.passed)


def pass_all(move: moves.Move, wanted: Wanted) -> Found:
    """All of them, met or not."""
    found: list[model.Gate] = []
    delay = None
    if move.method == "replication":
        found.append(_alive(move))
        if found[0].passed:
            lag, delay = _lag(move, wanted.max_lag)
            found.append(lag)
        found += [_proof(move), _columns(move), _removable(move)]
        if wanted.way_back:
            found += list(_way_back(move))
    else:
        gate, delay = _level(move, wanted)
        found.append(gate)
        if move.way == "forward":
            found.append(_unused(move))
    if move.way == "forward":  # the old side's roles could write to it before, and can again
        found.append(_owner(move))
    found += [_new_tables(move), _fenceable(move), _quiet(move, wanted.patience)]
    return Found(all=tuple(found), delay=delay)


def not_met(gates: Sequence[model.Gate]) -> errors.GateNotMet:
    return errors.GateNotMet(
        f"{len(gates)} {'gate is' if len(gates) == 1 else 'gates are'} not met; nothing was fenced or switched",
        hint="Mend what is listed, then run the same command again.",
        findings=[findings.refuse(gate.code, gate.code, gate.said, gate.fix) for gate in gates],
    )


def _passed(code: str, said: str) -> model.Gate:
    return model.Gate(code=code, passed=True, said=said)


# -- what follows ---------------------------------------------------------------------------------


def _alive(move: moves.Move) -> model.Gate:
    stream = move.stream(move.way)
    if stream.revive(move.sessions):
        with contextlib.suppress(errors.ServerError):  # told below
            stream.drain(move.sessions, seconds=_REVIVED_SECONDS)
    slot, subscription = stream.state(move.sessions)
    if broken := streams.trouble(move.away, move.toward, slot, subscription):
        return model.Gate(code="following", passed=False, said=broken, fix="mishika-migrate follow status")
    if subscription is not None and subscription.unready:
        said = f"{subscription.unready} tables do not follow yet"
        return model.Gate(code="following", passed=False, said=said, fix="mishika-migrate follow status --watch")
    return _passed("following", f"{move.toward.label} follows {move.away.label}")


def _lag(move: moves.Move, max_lag: float) -> tuple[model.Gate, float | None]:
    try:
        delay = move.stream(move.way).drain(move.sessions, seconds=max_lag)
    except errors.ServerError as error:
        return model.Gate(code="lag", passed=False, said=error.message, fix=error.hint), None
    if delay is None:
        said = f"a change takes longer than {max_lag:g} s to {move.toward.label}"
        fix = "wait until it has caught up: mishika-migrate follow status --watch"
        slot, _ = move.stream(move.way).state(move.sessions)
        if slot is not None and not slot.active:
            said += f", whose server does not read from slot {slot.name}"
            fix = "its log says why; after a change of address or password: mishika-migrate follow start"
        return model.Gate(code="lag", passed=False, said=said, fix=fix), None
    return _passed("lag", f"a change takes {delay:.2f} s to {move.toward.label}"), delay


def _proof(move: moves.Move) -> model.Gate:
    assert move.follow is not None
    if move.follow.proved:
        return _passed("proof", f"all rows of both sides were equal at {move.follow.proved} UTC")
    return _passed("proof", "the copy was made without a proof: all history is compared before the fence")


def _columns(move: moves.Move) -> model.Gate:
    assert move.follow is not None
    shapes = [following.fingerprint(catalog, move.follow.tables) for catalog in move.catalogs]
    # The fingerprint is that of the side that is followed, which a switch that is taken back has not turned round.
    role: model.Role = "source" if move.follow.way == "forward" else "target"
    here, there = shapes if role == "source" else reversed(shapes)
    # What was changed on both sides alike is the same again.
    since = "copy" if role == "source" else "cutover"
    if here not in (move.follow.fingerprint, there):
        said = f"columns or keys of the {role} {move.end(role).label} have changed since the {since}"
        fix = "make the same change on the other side, or take it back; or begin anew: complete, copy --follow"
        return model.Gate(code="schema", passed=False, said=said, fix=fix)
    return _passed("schema", f"no table has changed since the {since}")


def _new_tables(move: moves.Move) -> model.Gate:
    """Whether the side that traffic leaves has tables that no run has seen: an upgraded proxy makes them."""
    ours, theirs = move.catalogs if move.away.role == "source" else reversed(move.catalogs)
    more = [
        table.name
        for table in ours.tables
        # After a cutover the new side may have had tables of its own all along: those with rows would be left behind.
        if table.name not in {*move.known, move.rules.migrations}
        and (move.way == "forward" or table.occupied is not False)
    ]
    if not more:
        return _passed("new-tables", f"{move.away.label} has no table that the copy did not know")
    said = f"{move.away.label} has {findings.few(more)} since the copy, which would be left behind"
    there = all(theirs.table(name) for name in more)
    fix = (
        f"mishika-migrate copy {' '.join(f'--only {name}' for name in more)}" if there else "make the same change there"
    )
    if move.follow is not None:
        fix = "begin anew with it (complete, copy --follow), or drop it where nothing needs it"
    return model.Gate(code="new-tables", passed=False, said=said, fix=fix)


def _removable(move: moves.Move) -> model.Gate:
    """Whether the slot that traffic leaves can go afterwards: an abandoned one fills the disk of its server."""
    with connect.translated(move.away):
        refused = replication.may_replicate(move.away, session=moves.NAME)
    if refused:
        said = f"the slot on {move.away.label} could not be removed afterwards: {refused.rpartition(': ')[2]}"
        ours, theirs = move.catalogs
        user = (ours if move.away.role == "source" else theirs).user
        fix = f"ALTER ROLE {findings.quoted(user)} REPLICATION; -- on the {move.away.role}"
        return model.Gate(code="slot", passed=False, said=said, fix=fix)
    return _passed("slot", f"the slot on {move.away.label} can be removed afterwards")


def _level(move: moves.Move, wanted: Wanted) -> tuple[model.Gate, float | None]:
    """Whether one pass of sync can make both sides the same, and how long looking takes."""
    if move.origin not in (move.end("source").label, move.end("target").label):
        said = f"the last run has copied from {move.origin}, not from {move.end('source').label}"
        return model.Gate(code="sync", passed=False, said=said, fix="give the same --source as to the copy"), None
    try:
        level, how = move.level(jobs=wanted.jobs, lock_timeout=wanted.lock_timeout)
        seen = syncing.foresee(level, move.as_source, move.as_target, options=how, emit=lambda _: None)
    except errors.Refused as error:
        told = "; ".join(each.message for each in error.findings if each.severity == "refuse")
        said = f"{error.message}{f': {told}' if told else ''}"
        return model.Gate(code="sync", passed=False, said=said, fix=error.hint), None
    said = f"one pass of sync would change {words.count(seen.total, 'row')} of {move.toward.label}"
    return _passed("sync", said), seen.seconds


_ROWS = ("target-has-newer-keys", "target-spend-ahead", "target-has-newer-history")


def _unused(move: moves.Move) -> model.Gate:
    """Whether nobody has written there: a pass of sync would undo it."""
    seen = liveness.evidence(move.rules, move.away, move.toward, tables=move.tables, read=move.catalogs)
    if told := "; ".join(sign.message for sign in seen if sign.code in _ROWS):
        said = f"{move.toward.label} has been written to: {told}"
        fix = "make sure that no proxy uses it; mishika-migrate sync --overwrite-live-target undoes what it has written"
        return model.Gate(code="unused", passed=False, said=said, fix=fix)
    return _passed("unused", f"nobody has written to {move.toward.label}")


# -- the way back ---------------------------------------------------------------------------------


_PROBE = f"{replication.PREFIX}probe"
_REVIVED_SECONDS = 7.0  # PostgreSQL 15 may take 5 s to start a worker


def _way_back(move: moves.Move) -> Iterator[model.Gate]:
    """Whether the old side could follow the new one: tried for real, and taken back. A gate for each lack."""
    publisher, subscriber = move.toward, move.away
    there = move.sessions[publisher.role]
    with connect.translated(publisher):
        ours = footing.read(there, publisher, move.tables, patience=60.0, name=moves.NAME)
    here = move.sessions[subscriber.role]
    with connect.translated(subscriber):
        theirs = footing.read(here, subscriber, move.tables, patience=60.0, name=moves.NAME)
    lacks = [each for each in following.way_back(ours, theirs, schema=publisher.schema) if each.severity == "refuse"]
    wrong = [(each.message, each.fix) for each in lacks]
    wrong += [(said, "add the columns there") for said in _unknown_columns(move)]
    if not wrong:
        reaching = move.servers[publisher.role].reaching
        try:
            with connect.translated(subscriber):
                replication.reaches(here, _PROBE, publication=_PROBE, reaching=reaching)
        except errors.ServerError as error:
            lacks = list(following.unreached(dataclasses.replace(theirs, reaches=error.message), ours))
            wrong = [(each.message, each.fix) for each in lacks]
    for said, fix in wrong:
        yield model.Gate(code="way-back", passed=False, said=said, fix=f"{fix}; or add --no-way-back")
    if not wrong:
        yield _passed("way-back", f"{subscriber.label} can follow {publisher.label}")


def _unknown_columns(move: moves.Move) -> Iterator[str]:
    """Columns of the new side that the old one has not: a row that has them cannot be applied there."""
    ours, theirs = move.catalogs if move.toward.role == "source" else reversed(move.catalogs)
    for name in move.tables:
        here, there = ours.table(name), theirs.table(name)
        if here is None or there is None:
            continue
        known = {column.name for column in there.columns}
        if more := [each.name for each in here.columns if each.name not in known and not each.generated]:
            yield f"{name} of {move.away.label} lacks {findings.few(more)}, which {move.toward.label} has"


# -- whose tables they are ------------------------------------------------------------------------


def _owner(move: moves.Move) -> model.Gate:
    """Whether the roles that own the tables of the old side, most likely the proxy's, can write to the new side's.

    Where the new side has no role of that name, nobody says which one the proxy uses there.
    """
    ours, _ = move.catalogs
    owners = {name: table.owner for name in move.tables if (table := ours.table(name)) is not None}
    with connect.translated(move.toward):
        found = footing.shut_out(move.sessions[move.toward.role], move.toward.schema, owners)
    if found:
        told = "; ".join(
            f"{role} owns {findings.few(tables)} of {move.away.label}, and may not read and write the same on"
            f" {move.toward.label}"
            for role, tables in found.items()
        )
        fix = "\n".join(privileges.letting_in(role, move.toward.schema, move.toward.role) for role in found)
        return model.Gate(code="owner", passed=False, said=told, fix=fix)
    return _passed("owner", f"no owner of the tables of {move.away.label} is shut out of those of {move.toward.label}")


# -- the fence ------------------------------------------------------------------------------------


def _fenceable(move: moves.Move) -> model.Gate:
    session = move.sessions[move.away.role]
    with connect.translated(move.away):
        lacking = fence.unfenceable(session, move.away.schema)
    with connect.translated(move.away):
        placeable = fence.placeable(session)
    catalog = move.catalogs[0 if move.away.role == "source" else 1]
    if not placeable:
        said = f"a fence needs schema mishika_migrate on {move.away.label}, which this role may not make or write to"
        database, user = findings.quoted(catalog.database), findings.quoted(catalog.user)
        fix = f"GRANT CREATE ON DATABASE {database} TO {user}; -- on the {move.away.role}"
        return model.Gate(code="fence", passed=False, said=said, fix=fix)
    if lacking:
        said = (
            f"a fence needs a trigger on every table of {move.away.label}, and {findings.few(lacking)} may not have one"
        )
        return model.Gate(code="fence", passed=False, said=said, fix="connect as the owner of the tables")
    return _passed("fence", f"every table of {move.away.label} can be fenced")


def _quiet(move: moves.Move, patience: float) -> model.Gate:
    with connect.translated(move.away):
        found = footing.writers(move.sessions[move.away.role], patience=patience)
        found = found or _unseen(move, patience)
    if found:
        worst = found[0]
        said = f"a transaction on {move.away.label} has been open for {worst.seconds:.0f} s: {worst.who}"
        return model.Gate(code="long-transaction", passed=False, said=said, fix="end it, or wait until it ends")
    return _passed("long-transaction", f"no transaction on {move.away.label} has been open for {patience:g} s")


_LOOK_SECONDS = 0.25


def _unseen(move: moves.Move, patience: float) -> tuple[model.Writer, ...]:
    """Transactions of roles whose sessions this one may not see, by the locks that they keep all the time."""
    session, began = move.sessions[move.away.role], time.monotonic()
    kept = footing.locking(session)
    while kept and (seconds := time.monotonic() - began) < patience:
        time.sleep(_LOOK_SECONDS)
        kept &= footing.locking(session)
    return tuple(
        model.Writer(who=f"backend {each.pid}, which has written to {each.table}", seconds=seconds)
        for each in sorted(kept, key=lambda each: each.pid)
    )
