"""The contract that every store keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import attrs

from .exchange import Exchange, Instance, Record, Role, StoredBody, Turn


class StoreError(Exception):
    """
    A store did not do what it was asked to. Asked again later, it may.

    The text says what happened, to which store, and what to do; it holds no credential.
    """


class StoreUnavailable(StoreError):
    """It cannot be reached, or cannot read or write: down, full, locked, damaged."""


class SchemaTooNew(StoreError):
    """A newer version of the program has changed it, maybe just now: this one must not touch it."""


@attrs.frozen(kw_only=True)
class Query:
    """
    Which exchanges. All that is given must hold.

    ``model``, ``session``, ``agent``, ``verdict``, … are compared whole. ``in_flight`` is for those without a verdict.
    """

    text: str | None = None
    """Words, and phrases in double quotes: all must be there; case and accents of Latin letters do not matter."""
    since: int | None = None
    """``received_at`` at least so many microseconds since the Unix epoch."""
    until: int | None = None
    """``received_at`` less than that."""
    model: str | None = None
    """As asked for, or as routed."""
    models: tuple[str, ...] | None = None
    """Any of these, as asked for or as routed."""
    session: str | None = None
    agent: str | None = None
    conversation: str | None = None
    request_class: str | None = None
    status: int | None = None
    verdict: str | None = None
    in_flight: bool | None = None
    path: str | None = None
    cost_at_least: int | None = None
    """10⁻⁹ US dollars."""
    cost_at_most: int | None = None


@attrs.frozen(kw_only=True)
class Page:
    """Exchanges, the newest first; ``more`` tells whether older ones follow the last of them."""

    exchanges: tuple[Exchange, ...]
    more: bool


@attrs.frozen(kw_only=True)
class Keep:
    """How long something is kept: until it is so old, or until there is so much. ``None``: no limit."""

    seconds: float | None = None
    bytes: int | None = None


@attrs.frozen(kw_only=True)
class Retention:
    bodies: Keep = attrs.field(factory=Keep)
    """Bodies and what a search finds."""
    metadata: Keep = attrs.field(factory=Keep)
    """Exchanges, and with them all that belongs to them."""


class RecordStore(Protocol):
    """
    Keeps exchanges.

    Every method may be called at any time after :meth:`open`, from the reactor's thread, and never blocks it. What a
    store cannot do now is a `StoreUnavailable`, within 30 s unless it goes on with it; nothing of it is done then,
    and it may be asked again at once.
    """

    async def open(self) -> None:
        """
        Connect, create or migrate the schema. After a failure it may be called again.

        :raises StoreUnavailable: not now.
        :raises SchemaTooNew: never, with this version.
        """

    async def close(self) -> None:
        """Let go of everything. Idempotent; also after a failed :meth:`open`."""

    # Writing

    async def write(self, records: Sequence[Record]) -> None:
        """
        Keep these, all or none, durably.

        Idempotent. Of one id, any record replaces one without a verdict, and one with a verdict replaces one that is
        `INTERRUPTED`; any other second record of an id changes nothing.

        :raises StoreError: one of them cannot be stored as it is; none was.
        """

    async def alive(self, instance: Instance, now: int) -> None:
        """Note that an instance records here, at ``now`` (microseconds since the Unix epoch)."""

    async def interrupt(self, instances: Sequence[str] | None, now: int, silent_for: float) -> int:
        """
        Give the verdict `INTERRUPTED` to what is in flight in these instances; ``None``: in all that were not
        :meth:`alive` for so many seconds.

        :return: how many there were.
        """

    # Reading

    async def page(self, query: Query, *, limit: int, before: str | None = None, skip: int = 0) -> Page:
        """
        The newest exchanges that are meant; with ``before``, those older than the exchange with that id.

        :param skip: how many of these are left out, the newest of them.
        """

    async def count(self, query: Query, *, at_most: int) -> int:
        """How many exchanges are meant; counting stops at ``at_most``."""

    async def get(self, exchange_id: str) -> Exchange | None: ...

    async def body(self, exchange_id: str, role: Role) -> StoredBody | None:
        """A body, bit for bit as it was; ``None`` if there is none, or none any more."""

    async def snippet(self, exchange_id: str, text: str, *, around: int = 80) -> str | None:
        """So many characters on both sides of the first place where one of the words of a `Query.text` stands."""

    async def conversation(self, conversation: str) -> tuple[Exchange, ...]:
        """All exchanges of a conversation, the oldest first."""

    async def turns_at(self, chains: Sequence[bytes]) -> tuple[Turn, ...]:
        """Exchanges whose `Exchange.chain` is one of these; the newest first, at most 100."""

    async def turn_of_message(self, message_id: str) -> Turn | None:
        """The newest exchange whose answer has this id."""

    async def latest_turn(self, session: str, agent: str | None, before: str) -> Turn | None:
        """The newest exchange with messages of a session and agent, older than the exchange with the id ``before``."""

    async def followers(self, exchange_id: str) -> tuple[Turn, ...]:
        """Exchanges whose parent this one is, the oldest first."""

    async def stored_bytes(self) -> Mapping[str, int]:
        """``{"bodies": n, "total": n}``: bytes that the bodies take, compressed, and an estimate for everything."""

    # Letting go

    async def delete(self, exchange_ids: Sequence[str]) -> int:
        """Delete exchanges with all that belongs to them; what others share with them stays. How many there were."""

    async def delete_all(self) -> int:
        """Delete every exchange that has a verdict."""

    async def expire(self, retention: Retention, now: int, *, limit: int = 100) -> int:
        """
        A small step: delete what is past its time, at most ``limit`` exchanges or exchanges' bodies, the oldest first.
        What is in flight stays.

        :return: how many there were; 0 when nothing is left to do.
        """

    # Watching

    def watch(self, notice: Callable[[Sequence[str]], None]) -> Callable[[], None]:
        """
        Be told the ids of exchanges that were written, by whichever process, within about a second.

        Notices may come twice, and are missed while the store is out of reach.

        :return: ends it.
        """
