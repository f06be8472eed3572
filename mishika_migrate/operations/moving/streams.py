"""One direction of replication between the two servers: made, waited for and removed.

Imports pg and the words. Every object is entered in the ledger before it is made, and its entry
goes when it is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from mishika_migrate import errors, model
from mishika_migrate.pg import connect, journal, replication

_T = TypeVar("_T")
Sessions = Mapping[model.Role, connect.Session]

_POLL_SECONDS = 0.01
_LOOK_SECONDS = 0.25


class Ask(Protocol):
    """Asks the target in the session that keeps the ledger."""

    def __call__(self, question: Callable[[connect.Session], _T]) -> _T: ...


def asking(session: connect.Session, target: model.Endpoint) -> Ask:
    """Asks in that session of the target."""

    def ask(question: Callable[[connect.Session], _T]) -> _T:
        with connect.translated(target, "the ledger"):
            return question(session)

    return ask


class Stream:
    """The changes of `tables` on one side, applied on the other.

    `reaching` gives the connection string by which the subscriber's server reaches the publisher's. `faults` are
    the errors of its subscription that are known already (see `model.Follow`).
    """

    def __init__(
        self,
        *,
        run: str,
        way: model.Way,
        ends: Mapping[model.Role, model.Endpoint],
        tables: Sequence[str],
        reaching: Callable[[], str],
        ask: Ask,
        faults: int = 0,
    ) -> None:
        self.run, self.way, self.name = run, way, model.object_name(run, way)
        self.publisher: model.Role = "source" if way == "forward" else "target"
        self.subscriber: model.Role = "target" if way == "forward" else "source"
        self._ends, self._tables, self._reaching, self._ask = ends, tables, reaching, ask
        self._faults = faults

    # -- making -----------------------------------------------------------------------------------

    def publish(self, sessions: Sessions, *, narrow: bool = False) -> None:
        """A `narrow` publication has the heartbeat alone, until it is widened."""
        for role in ("source", "target"):
            with self._blamed(role, "heartbeat"):
                self._note(role, "heartbeat", "mishika_migrate.heartbeat")
                replication.make_heartbeat(sessions[role], self.publisher)
        tables = [] if narrow else self._places()
        with self._blamed(self.publisher, f"publication {self.name}"):
            self._note(self.publisher, "publication", self.name)
            replication.unpublish(sessions[self.publisher], self.name)
            replication.publish(sessions[self.publisher], self.name, [*tables, replication.HEARTBEAT])

    def widen(self, sessions: Sessions) -> None:
        """From now on changes of the tables go, too."""
        with self._blamed(self.publisher, f"publication {self.name}"):
            replication.widen(sessions[self.publisher], self.name, self._places())
        with self._blamed(self.subscriber, f"subscription {self.name}"):
            replication.refresh(sessions[self.subscriber], self.name)

    def _places(self) -> list[model.TableName]:
        schema = self._ends[self.publisher].schema
        return [model.TableName(schema=schema, name=table) for table in self._tables]

    @contextlib.contextmanager
    def snapshot(self, sessions: Sessions, *, session: str, stopping: Callable[[], bool]) -> Iterator[str]:
        """A new slot, and the snapshot from which on it has every change."""
        self._note(self.publisher, "slot", self.name)
        with self._blamed(self.publisher, f"slot {self.name}"):
            replication.drop_slot(sessions[self.publisher], self.name)
        with replication.slot(self._ends[self.publisher], self.name, session=session, stopping=stopping) as made:
            yield made

    def slot(self, sessions: Sessions) -> None:
        """A new one, from now on."""
        self._note(self.publisher, "slot", self.name)
        with self._blamed(self.publisher, f"slot {self.name}"):
            replication.drop_slot(sessions[self.publisher], self.name)
            replication.new_slot(sessions[self.publisher], self.name)

    def subscribe(self, sessions: Sessions, *, enabled: bool = True) -> None:
        self._note(self.subscriber, "subscription", self.name)
        with self._blamed(self.subscriber, f"subscription {self.name}"):
            replication.subscribe(
                sessions[self.subscriber],
                self.name,
                slot=self.name,
                publication=self.name,
                reaching=self._reaching(),
                enabled=enabled,
            )

    # -- looking ----------------------------------------------------------------------------------

    def drain(
        self, sessions: Sessions, *, seconds: float, stopping: Callable[[], bool] = connect.never
    ) -> float | None:
        """Until everything that is committed on the publisher by now is on the subscriber; how long that took.

        None when it did not arrive within `seconds`. `errors.ServerError` when it cannot arrive any more.
        """
        publisher, subscriber = sessions[self.publisher], sessions[self.subscriber]
        with self._blamed(self.publisher, "heartbeat"):
            number = replication.beat(publisher, self.publisher)
        began = looked = time.monotonic()
        while True:
            with self._blamed(self.subscriber, "heartbeat"):
                if replication.heard(subscriber, self.publisher) >= number:
                    return time.monotonic() - began
            now = time.monotonic()
            if now - looked > _LOOK_SECONDS:
                looked = now
                self.refuse_broken(sessions)
            if now - began > seconds:
                return None
            if stopping():
                raise connect.Stopped
            time.sleep(_POLL_SECONDS)

    def state(self, sessions: Sessions) -> tuple[model.Slot | None, model.Subscription | None]:
        """None for what is not there, and for a side without a session. Of errors only those that are new."""
        slot = subscription = None
        if self.publisher in sessions:
            with self._blamed(self.publisher, ""):
                slot = next(
                    (each for each in replication.slots(sessions[self.publisher]) if each.name == self.name), None
                )
                if slot is not None and self.name not in replication.publications(sessions[self.publisher]):
                    # From 18 on changes are skipped and confirmed meanwhile, so making it again does not help.
                    slot = dataclasses.replace(slot, reason=slot.reason or "its publication was dropped")
        if self.subscriber in sessions and (subscription := self._subscription(sessions)) is not None:
            known = self._faults if self._faults <= subscription.errors else 0  # statistics do not survive a crash
            subscription = dataclasses.replace(subscription, errors=subscription.errors - known)
        return slot, subscription

    def _subscription(self, sessions: Sessions) -> model.Subscription | None:
        with self._blamed(self.subscriber, ""):
            found = replication.subscriptions(sessions[self.subscriber])
        return next((each for each in found if each.name == self.name), None)

    def read(self, sessions: Sessions, *, seconds: float) -> bool:
        """Whether the subscriber reads from the slot within that time, or has met an error that stops it."""
        until = time.monotonic() + seconds
        while True:
            slot, subscription = self.state(sessions)
            if slot is None or subscription is None or slot.active or not subscription.enabled:
                return True
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK_SECONDS)

    def refuse_broken(self, sessions: Sessions) -> None:
        """Raises when what is missing will never come."""
        slot, subscription = self.state(sessions)
        if broken := trouble(self._ends[self.publisher], self._ends[self.subscriber], slot, subscription):
            raise errors.ServerError(broken, hint="`mishika-migrate follow status` shows more.")

    # -- stopping and going on --------------------------------------------------------------------

    def revive(self, sessions: Sessions) -> bool:
        """Starts a subscription again that an error has stopped, and says whether it did.

        It also stops when its connection ends: each of ten restarts of a server that was followed has stopped it
        (`disable_on_error`, 15 and 18). A row that cannot be applied stops it again at once.
        """
        slot, subscription = self.state(sessions)
        if slot is None or slot.lost or subscription is None or subscription.enabled or not subscription.errors:
            return False
        self.forgive(sessions)
        self.enable(sessions, enabled=True)
        return True

    def forgive(self, sessions: Sessions) -> None:
        """What has stopped it up to now is known."""
        if (found := self._subscription(sessions)) is not None:
            self._faults = found.errors
            self._ask(lambda session: journal.set_faults(session, found.errors))

    def readdress(self, sessions: Sessions) -> None:
        """The subscriber connects to today's address from now on, if that leads to this publisher.

        Raises what the server says when it connects there, and `errors.Refused` where another server answers.
        """
        with self._blamed(self.subscriber, f"subscription {self.name}"):
            self.refuse_stranger(sessions)
            replication.readdress(sessions[self.subscriber], self.name, self._reaching())

    def refuse_stranger(self, sessions: Sessions) -> None:
        """Raises unless the subscriber's server finds the publication at the address that it is given."""
        publisher, subscriber = self._ends[self.publisher], self._ends[self.subscriber]
        with self._blamed(self.subscriber, ""):
            found = replication.reaches(
                sessions[self.subscriber],
                f"{replication.PREFIX}probe",
                publication=self.name,
                reaching=self._reaching(),
            )
        if not found:
            raise errors.Refused(
                f"the address by which {subscriber.label} is to reach {publisher.label} leads to another database",
                hint=f"Give the one that the {subscriber.role}'s server can use:"
                f" --{publisher.role}-from-{subscriber.role} URL.",
            )

    # -- removing ---------------------------------------------------------------------------------

    def enable(self, sessions: Sessions, *, enabled: bool) -> None:
        with self._blamed(self.subscriber, f"subscription {self.name}"):
            replication.enable(sessions[self.subscriber], self.name, enabled)

    def remove(self, sessions: Sessions) -> None:
        """All of it that is there; of a side without a session nothing."""
        kinds: tuple[tuple[model.Role, str, Callable[[connect.Session, str], None]], ...] = (
            (self.subscriber, "subscription", replication.unsubscribe),
            (self.publisher, "slot", replication.drop_slot),
            (self.publisher, "publication", replication.unpublish),
        )
        for role, kind, drop in kinds:
            if role in sessions:
                with self._blamed(role, f"{kind} {self.name}"):
                    drop(sessions[role], self.name)
                self._ask(lambda ledger: journal.forget(ledger, run=self.run, side=role, kind=kind, name=self.name))  # noqa: B023

    # -- inside -----------------------------------------------------------------------------------

    def _note(self, side: model.Role, kind: str, name: str) -> None:
        self._ask(lambda session: journal.note(session, run=self.run, side=side, kind=kind, name=name))

    def _blamed(self, role: model.Role, what: str) -> contextlib.AbstractContextManager[None]:
        return connect.translated(self._ends[role], what)


def trouble(
    publisher: model.Endpoint,
    subscriber: model.Endpoint,
    slot: model.Slot | None,
    subscription: model.Subscription | None,
) -> str:
    """Why nothing arrives any more; empty where nothing says so."""
    if slot is None:
        return f"the {publisher.role} {publisher.label} has no slot for it any more"
    if slot.lost:
        why = f" ({slot.reason})" if slot.reason else ""
        return f"the {publisher.role} {publisher.label} has given the slot {slot.name} up{why}: changes are lost to it"
    if subscription is None:
        return f"the {subscriber.role} {subscriber.label} has no subscription any more"
    if not subscription.enabled and subscription.errors:
        return (
            f"the subscription {subscription.name} of the {subscriber.role} {subscriber.label} has stopped at an error,"
            " such as a row that cannot be applied: its log says which"
        )
    if not subscription.enabled:
        return f"the subscription {subscription.name} of the {subscriber.role} {subscriber.label} is stopped"
    return ""
