"""One request's life as values: what is kept of it, in whichever store."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import attrs

PIECE = 1024 * 1024
"""Bytes of a body that are handled at a time where it need not be in memory whole."""


class Role(enum.Enum):
    """Which of an exchange's bodies."""

    REQUEST = "request"
    """From the client, as it came."""
    FORWARDED = "forwarded"
    """To the upstream, where that is not the client's."""
    RECEIVED = "received"
    """From the upstream, where that is not what the client got."""
    ANSWER = "answer"
    """To the client, as it was written."""
    MESSAGE = "message"
    """The message that a streamed answer tells, JSON; of one that was cut, as far as it came."""


class Link(enum.Enum):
    """How an exchange follows the one that is its :attr:`Exchange.parent`."""

    CONTINUES = "continues"
    """Its messages are the parent's, and more."""
    REPEATS = "repeats"
    """Its messages are the parent's: a retry, or the same asked twice."""
    FORKS = "forks"
    """It continues the parent as another exchange already did, with other messages."""
    COMPACTS = "compacts"
    """It goes on behind a summary of the parent's conversation."""
    THREADS = "threads"
    """It names the parent's answer as ``thread.previous_message_id``."""


INTERRUPTED = "interrupted"
"""The verdict on an exchange whose process ended before it did. A verdict that comes later replaces it."""


@attrs.frozen(kw_only=True)
class Exchange:
    """
    What is known of one exchange. ``None`` is unknown, or not yet known.

    Each field is a column of the same name in both stores. Times are microseconds: ``received_at`` since the Unix
    epoch, the others since ``received_at``.
    """

    id: str
    """``req_`` and a UUIDv7 in hexadecimal digits: sorts by time."""
    instance: str
    """The process that served it (`Instance.id`)."""
    received_at: int
    """When the request's headers were in."""
    body_read_us: int | None = None
    connected_us: int | None = None
    """The upstream's connection could be written to."""
    headers_us: int | None = None
    """The upstream's status and headers were in."""
    first_event_us: int | None = None
    """The first byte of the answer's body was in."""
    last_byte_us: int | None = None
    """The exchange was over: the last byte was out, or nobody was there to take it."""

    method: str
    path: str
    query: str | None = None
    """Names, and values of names that are known to carry no secret."""
    client: str | None = None
    """The peer's address."""
    status: int | None = None
    verdict: str | None = None
    """``None`` while in flight; a value of `relay.flight.Verdict`, or `INTERRUPTED`."""
    request_bytes: int = 0
    response_bytes: int = 0

    model: str | None = None
    """As the client asked for it."""
    routed_model: str | None = None
    """As it was sent upstream, where that differs."""
    provider: str | None = None
    stream: bool | None = None
    demoted: bool = False

    session: str | None = None
    prompt: str | None = None
    agent: str | None = None
    parent_agent: str | None = None
    request_class: str | None = None
    agent_type: str | None = None
    user_agent: str | None = None
    credential: str | None = None
    """A keyed hash: equal for equal credentials of one store, and no way back."""

    upstream_request_id: str | None = None
    rate_limits: Mapping[str, str] | None = None
    """The answer's ``anthropic-ratelimit-*`` fields by lower-case name."""
    request_headers: tuple[tuple[str, str], ...] = ()
    """Those that may be kept (`wire.headers.recorded_request`), in order."""
    response_headers: tuple[tuple[str, str], ...] = ()

    message_id: str | None = None
    """The answer's ``id``."""
    stop_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    """The answer's ``usage`` as it stands there, all counters."""
    input_tokens: int | None = None
    """Without what the cache gave or took."""
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_5m_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    cost_nanousd: int | None = None
    """10⁻⁹ US dollars; ``None`` where the model's price is not known."""
    cost_is_partial: bool = False
    """The answer was cut, or priced in part: the cost is a lower bound."""
    error_type: str | None = None
    error_message: str | None = None

    conversation: str | None = None
    """The id of the conversation's first exchange."""
    parent: str | None = None
    link: Link | None = None
    messages: int | None = None
    """How many messages the request has."""
    chain: bytes | None = None
    """A hash of the identities of all of the request's messages, in order."""

    lost: str | None = None
    """Why not all of it was kept, in words."""


@attrs.frozen(kw_only=True)
class Mark:
    """When a part of a body was there."""

    end: int
    """How many bytes of the body were there."""
    us: int
    """Microseconds since the exchange's ``received_at``."""


class Content(Protocol):
    """Bytes that need not be in memory."""

    @property
    def size(self) -> int: ...
    def pieces(self) -> Iterator[bytes]:
        """All of it, in order, at most `PIECE` bytes at a time."""

    def read(self) -> bytes:
        """All of it."""


@attrs.frozen
class BytesContent:
    """`Content` that is in memory."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def pieces(self) -> Iterator[bytes]:
        for start in range(0, len(self.data), PIECE):
            yield self.data[start : start + PIECE]

    def read(self) -> bytes:
        return self.data


@attrs.frozen(kw_only=True)
class Body:
    """A body of an exchange, exactly as it was."""

    role: Role
    content: Content
    content_type: str | None = None
    content_encoding: str | None = None
    """As the header said it; the bytes are encoded so."""
    marks: tuple[Mark, ...] = ()
    """When its bytes were there, where that is of interest: of answers."""


@attrs.frozen(kw_only=True)
class Record:
    """
    An exchange as a store is to take it.

    :ivar bodies: each role at most once; none while the exchange is in flight.
    :ivar text: what a search should find it by.
    :ivar events: server-sent events of the answer. Counted for the metrics, and not stored.
    """

    exchange: Exchange
    bodies: tuple[Body, ...] = ()
    text: str | None = None
    events: int = 0


@attrs.frozen(kw_only=True)
class StoredBody:
    """A body as a store gives it back."""

    role: Role
    data: bytes
    content_type: str | None
    content_encoding: str | None
    marks: tuple[Mark, ...]


@attrs.frozen(kw_only=True)
class Turn:
    """What is known of an exchange where conversations are put together."""

    id: str
    conversation: str
    session: str | None
    agent: str | None
    chain: bytes | None
    messages: int | None
    message_id: str | None
    parent: str | None


@attrs.frozen(kw_only=True)
class Instance:
    """A process that records into a store."""

    id: str
    host: str
    pid: int
    started_at: int
    """Microseconds since the Unix epoch."""
