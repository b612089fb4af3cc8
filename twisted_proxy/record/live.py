"""
What passes just now, for those who watch.

Nobody watches, most of the time: then the tap of a request is the recorder's, without as much as a call between. While
somebody does, it puts pieces aside, and they are read later, a few times a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from twisted.internet.interfaces import IAddress
from twisted.web.http_headers import Headers

from ..wire import claude_code
from ..wire.claude_code import Origin
from ..wire.headers import is_event_stream
from .exchange import Role
from .live_text import LiveText
from .recording import Passing
from .so_far import SoFar

MOST_FOLLOWED = 100
"""Requests of which the text is followed at a time."""
MOST_ASIDE = 1024 * 1024
"""Bytes that one request's tap puts aside between two looks; more is not looked at."""


class _Inner(Protocol):
    """A tap as `relay.flight.Tap` has it."""

    def asked(self, data: bytes) -> None: ...
    def read(self, now: float) -> None: ...
    def forwarded(self, data: bytes) -> None: ...
    def routed(self, provider: str, model: str | None) -> None: ...
    def connected(self, now: float) -> None: ...
    def head(self, status: int, fields: Headers, now: float) -> None: ...
    def received(self, data: bytes, now: float) -> None: ...
    def answered(self, data: bytes, now: float) -> None: ...
    def closed(self, passing: Any, now: float) -> None: ...


def _nothing(*_: object) -> None:
    """Nothing is recorded."""


class LiveTap:
    """
    A tap that can be listened to, before the one that records, if there is one.

    What is called for each piece of an answer is the recorder's own method, until somebody watches.

    :ivar status: of the upstream's answer; ``None`` before its head is here.
    :ivar text: what the answer says, while it is followed.
    """

    __slots__ = (
        "_aside",
        "_closed",
        "_fields",
        "_head",
        "_held",
        "_joined_us",
        "_missing",
        "_origin",
        "_read",
        "_record_answered",
        "_record_received",
        "_since",
        "answered",
        "asked",
        "connected",
        "event_stream",
        "forwarded",
        "lost",
        "passing",
        "read_at",
        "received",
        "routed",
        "status",
        "text",
    )

    def __init__(
        self, passing: Passing, fields: Headers, inner: _Inner | None, closed: Callable[[LiveTap], None]
    ) -> None:
        self.passing = passing
        self._fields = fields
        self._origin: Origin | None = None
        self._closed = (closed, _nothing if inner is None else inner.closed)
        self._head = _nothing if inner is None else inner.head
        self._read = _nothing if inner is None else inner.read
        self._record_answered: Callable[[bytes, float], None] = _nothing if inner is None else inner.answered
        self._record_received: Callable[[bytes, float], None] = _nothing if inner is None else inner.received
        # As attributes: to call these is to call the recorder's.
        self.asked: Callable[[bytes], None] = _nothing if inner is None else inner.asked
        self.forwarded: Callable[[bytes], None] = _nothing if inner is None else inner.forwarded
        self.routed: Callable[[str, str | None], None] = _nothing if inner is None else inner.routed
        self.connected: Callable[[float], None] = _nothing if inner is None else inner.connected
        self.answered: Callable[[bytes, float], None] = self._record_answered
        self.received: Callable[[bytes, float], None] = self._record_received
        self.status: int | None = None
        self.event_stream = False
        self.read_at: float | None = None
        self.text: LiveText | None = None
        self.lost = False
        self._aside: list[bytes] = []
        self._held = 0
        # Of an answer that was joined in its middle, until what came before is known: its size, when, what came since.
        self._missing = 0
        self._joined_us = 0
        self._since: list[bytes] | None = None

    @property
    def origin(self) -> Origin:
        """Session, agent and so on, as the headers say; read when it is first asked for."""
        if self._origin is None:
            fields = self._fields
            self._origin = claude_code.from_headers(lambda name: fields.getRawHeaders(name, [None])[0])
        return self._origin

    # As a tap

    def read(self, now: float) -> None:
        self.read_at = now
        self._read(now)

    def head(self, status: int, fields: Headers, now: float) -> None:
        self.status = status
        self.event_stream = is_event_stream(fields.getRawHeaders(b"Content-Type", [b""])[0])
        self._head(status, fields, now)

    def closed(self, passing: Any, now: float) -> None:
        tell, record = self._closed
        try:
            record(passing, now)
        finally:
            tell(self)

    # Following

    def follow(self, now: float) -> None:
        """Put aside what comes from now on."""
        begun = self.passing.sent_bytes > 0 or (self.passing.demoted and self.status is not None)
        self.text = LiveText(from_start=not begun)
        self._missing = self.passing.sent_bytes
        self._joined_us = int((now - self.passing.received_at) * 1e6)
        self._since = [] if begun else None
        self.answered = self._note_answered
        self.received = self._note_received

    def leave(self) -> None:
        """Follow it no longer."""
        self.text = None
        self._since = None
        self._aside = []
        self._held = 0
        self.answered = self._record_answered
        self.received = self._record_received

    def _note_answered(self, data: bytes, now: float) -> None:
        self._record_answered(data, now)
        # A demoted request's answer is one message at the end, which was told piece by piece before.
        if not self.passing.demoted:
            self._put_aside(data)

    def _note_received(self, data: bytes, now: float) -> None:
        self._record_received(data, now)
        if self.passing.demoted:
            self._put_aside(data)

    def _put_aside(self, data: bytes) -> None:
        if self._held <= MOST_ASIDE:
            self._aside.append(data)
            self._held += len(data)
        else:
            self.lost = True

    def look(self) -> None:
        """Read what was put aside."""
        if not self._aside or self.text is None:
            return
        aside, self._aside, self._held = self._aside, [], 0
        lost, self.lost = self.lost, False
        if self.event_stream:
            data = b"".join(aside)
            self.text.feed(data)
            if self._since is not None:
                self._since.append(data)
            if lost:
                self._since = None
                self.text.miss()

    @property
    def wants_beginning(self) -> Role | None:
        """In which body stands what came before it was followed; ``None``: nothing did, or it is given up."""
        if self._since is None or not self.event_stream:
            return None
        return Role.RECEIVED if self.passing.demoted else Role.ANSWER

    def begin_with(self, so_far: SoFar) -> None:
        """Learn what came before it was followed, if that is all of it."""
        if self._since is None or self.text is None:
            return
        if self.passing.demoted:
            before = so_far.until(self._joined_us)
        else:
            if len(so_far.data) < self._missing:
                return
            before = bytes(so_far.data[: self._missing])
        self.look()
        if self._since is None:
            return
        self.text = LiveText(from_start=True)
        self.text.feed(before + b"".join(self._since))
        self._since = None

    def give_up(self) -> None:
        """What came before it was followed stays unknown."""
        self._since = None


Record = Callable[[Any, Headers, IAddress], "_Inner | None"]


class Live:
    """
    The requests that are in flight, as far as they are recorded or could be; and those of them that are followed.

    :param record: begins to record a request (`Keeper.begin`).
    :param seconds: the reactor's clock.
    :ivar on_landed: called with each tap that is over, while somebody watches.
    """

    def __init__(self, record: Record, seconds: Callable[[], float]) -> None:
        self._record = record
        self._seconds = seconds
        self._taps: dict[str, LiveTap] = {}
        self._followed: dict[str, LiveTap] = {}
        self._watching = False
        self.on_landed: Callable[[LiveTap], None] = _nothing

    def begin(self, passing: Any, fields: Headers, peer: IAddress) -> LiveTap:
        """The tap of a request whose header block is in."""
        tap = LiveTap(passing, fields, self._record(passing, fields, peer), self._landed)
        self._taps[passing.request_id] = tap
        if self._watching:
            self._follow(tap)
        return tap

    def find(self, request_id: str) -> LiveTap | None:
        return self._taps.get(request_id)

    def watch(self) -> None:
        """Somebody watches from now on."""
        if not self._watching:
            self._watching = True
            for tap in list(self._taps.values()):
                self._follow(tap)

    def unwatch(self) -> None:
        """Nobody watches any more."""
        self._watching = False
        for tap in self._followed.values():
            tap.leave()
        self._followed.clear()

    def look(self) -> None:
        """Read what was put aside."""
        for tap in self._followed.values():
            tap.look()

    def followed(self) -> Iterator[LiveTap]:
        return iter(self._followed.values())

    def _follow(self, tap: LiveTap) -> None:
        if len(self._followed) < MOST_FOLLOWED:
            self._followed[tap.passing.request_id] = tap
            tap.follow(self._seconds())

    def _landed(self, tap: LiveTap) -> None:
        request_id = tap.passing.request_id
        self._taps.pop(request_id, None)
        if self._watching:
            tap.look()
            self.on_landed(tap)
        if self._followed.pop(request_id, None) is not None:
            tap.leave()
