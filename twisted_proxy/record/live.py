"""
What passes just now, for those who watch.

Nobody watches, most of the time: then the tap of a request is the recorder's, without as much as a call between. While
somebody does, it puts pieces aside, and they are read later, a few times a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import attrs
import msgspec
from twisted.internet.interfaces import IAddress
from twisted.web.http_headers import Headers

from ..wire import claude_code, sse
from ..wire.claude_code import Origin
from ..wire.headers import is_event_stream
from .exchange import Role
from .so_far import SoFar

MOST_FOLLOWED = 100
"""Requests of which the text is followed at a time."""
MOST_ASIDE = 1024 * 1024
"""Bytes that one request's tap puts aside between two looks; more is not looked at."""
MOST_EVENT = 1024 * 1024
"""Bytes of one event."""
MOST_KEPT = 64 * 1024
"""Characters that are kept of a block's text: of a longer one, its end."""
MOST_BLOCKS = 200
"""Blocks that are kept of an answer: of more, the last ones."""

CHARACTERS_PER_TOKEN = 4
"""Of English and of code, about."""

_REFUSED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


class Passing(Protocol):
    """
    What is asked about a request in flight: `relay.flight.Flight` knows it.

    Times are of the reactor's clock, in seconds.
    """

    demoted: bool
    sent_bytes: int
    received_at: float

    @property
    def request_id(self) -> str: ...


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


@attrs.define
class Block:
    """
    A block of an answer, as far as it is here.

    :ivar kind: ``text``, ``thinking``, ``tool_use``, …
    :ivar start: how many characters are missing before `text`.
    """

    index: int
    kind: str
    name: str | None
    text: str = ""
    start: int = 0
    _pieces: list[str] = attrs.Factory(list)

    @property
    def end(self) -> int:
        """How many characters it has in all."""
        return self.start + len(self.text)

    def add(self, piece: str) -> None:
        self._pieces.append(piece)

    def settle(self) -> bool:
        """Put together what was added. False: nothing was."""
        if not self._pieces:
            return False
        text = self.text + "".join(self._pieces)
        self._pieces.clear()
        cut = max(0, len(text) - MOST_KEPT)
        self.text = text[cut:]
        self.start += cut
        return True


class _Inside(msgspec.Struct):
    type: str = ""
    name: str | None = None
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    function: _Function | None = None


class _ChatDelta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _ChatDelta | None = None


class _Usage(msgspec.Struct):
    output_tokens: int | None = None


class _Data(msgspec.Struct):
    type: str = ""
    index: int | None = None
    delta: _Inside | None = None
    content_block: _Inside | None = None
    usage: _Usage | None = None
    choices: list[_Choice] | None = None


_decode = msgspec.json.Decoder(_Data).decode


class LiveText:
    """
    What a stream says so far: Anthropic's events, or chunks of a chat completion.

    :param from_start: whether the first byte that comes is the stream's first.
    :ivar partial: something before or between is missing.
    :ivar output_tokens: as the stream tells them, else ``None``.
    """

    def __init__(self, *, from_start: bool) -> None:
        self.partial = not from_start
        self.output_tokens: int | None = None
        self._parser = sse.Parser(max_event_bytes=MOST_EVENT)
        self._blocks: dict[int, Block] = {}
        self._characters = 0
        # Until the next blank line: what comes before it is half of an event.
        self._joining = not from_start
        self._tail = b""

    @property
    def blocks(self) -> list[Block]:
        return list(self._blocks.values())

    @property
    def tokens(self) -> int:
        """Output tokens: told, or estimated."""
        return self.output_tokens or -(-self._characters // CHARACTERS_PER_TOKEN)

    def miss(self) -> None:
        """What comes next does not follow what came last."""
        self.partial = self._joining = True
        self._tail = b""
        self._parser = sse.Parser(max_event_bytes=MOST_EVENT)

    def feed(self, data: bytes) -> None:
        """The stream's next bytes."""
        if self._joining:
            data = self._tail + data
            found = _blank_line(data)
            if found is None:
                self._tail = data[-3:]
                return
            self._joining, self._tail = False, b""
            data = data[found:]
        try:
            events = self._parser.feed(data)
        except sse.EventTooLargeError:
            self.miss()
            return
        for event in events:
            self._take(event.data)
        for block in self._blocks.values():
            block.settle()
        while len(self._blocks) > MOST_BLOCKS:
            del self._blocks[next(iter(self._blocks))]
            self.partial = True

    def _take(self, data: bytes) -> None:
        try:
            told = _decode(data)
        except _REFUSED:
            return  # not for us; whoever folds it for good says what is wrong with it
        if told.choices is not None:
            for choice in told.choices:
                if choice.index == 0 and choice.delta is not None:
                    self._take_chat(choice.delta)
        elif told.type == "content_block_start" and told.content_block is not None and told.index is not None:
            inside = told.content_block
            self._blocks[told.index] = Block(told.index, inside.type or "text", inside.name)
            self._add(told.index, inside.type, inside.text or inside.thinking)
        elif told.type == "content_block_delta" and told.delta is not None and told.index is not None:
            inside = told.delta
            kind = _KINDS.get(inside.type)
            if kind is not None:
                self._add(told.index, kind, inside.text or inside.thinking or inside.partial_json)
        elif told.type == "message_delta" and told.usage is not None and told.usage.output_tokens is not None:
            self.output_tokens = told.usage.output_tokens

    def _take_chat(self, delta: _ChatDelta) -> None:
        self._add(_CHAT_THINKING, "thinking", delta.reasoning_content)
        self._add(_CHAT_TEXT, "text", delta.content)
        for call in delta.tool_calls or ():
            if call.function is not None and 0 <= call.index < MOST_BLOCKS:
                index = _CHAT_TOOLS + call.index
                if index not in self._blocks:
                    self._blocks[index] = Block(index, "tool_use", call.function.name)
                self._add(index, "tool_use", call.function.arguments)

    def _add(self, index: int, kind: str, text: str | None) -> None:
        if not text:
            return
        block = self._blocks.get(index)
        if block is None:
            # Its start was missed.
            block = self._blocks[index] = Block(index, kind, None)
        block.add(text)
        self._characters += len(text)


_KINDS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "tool_use"}
_CHAT_THINKING, _CHAT_TEXT, _CHAT_TOOLS = range(3)


def _blank_line(data: bytes) -> int | None:
    """Where the first event begins behind a blank line."""
    ends = [found + len(end) for end in (b"\n\n", b"\r\n\r\n", b"\r\r") if (found := data.find(end)) >= 0]
    return min(ends) if ends else None


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
