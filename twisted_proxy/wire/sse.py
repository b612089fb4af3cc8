"""
Bytes → server-sent events, incrementally.

WHATWG HTML §9.2.6, https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.

Three readers of the same bytes, by how much they need to know: :class:`Boundary` (does the stream stand
between two events?), :class:`Ending` (has it said all that it had to say?) and :class:`Parser` (the events).
None of them minds how the bytes are split.
"""

from __future__ import annotations

from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"
_CR, _LF = 0x0D, 0x0A

DEFAULT_MAX_EVENT_BYTES = 64 * 1024 * 1024


class EventTooLargeError(Exception):
    """One unfinished event has passed what it may hold. The parser that raised it is of no more use."""

    def __init__(self, max_event_bytes: int) -> None:
        super().__init__(f"a server-sent event holds more than {max_event_bytes} bytes")


class Event(NamedTuple):
    """One dispatched event."""

    event: bytes
    """The last ``event:`` field; empty where the stream had none (a browser then says ``message``)."""
    data: bytes
    """The ``data:`` fields, joined with LF."""
    id: bytes | None
    """The last ``id:`` of the stream so far, this event's or an earlier one's; ``None`` before the first."""


class _Lines:
    """Bytes → complete lines without their ends, which are CR, LF or CRLF. A BOM at the start is dropped."""

    __slots__ = ("_after_cr", "_head", "partial")

    def __init__(self) -> None:
        self._head: bytes | None = b""  # what may still become a BOM; None once that is decided
        self._after_cr = False  # the last byte was CR: an LF now belongs to it
        self.partial = bytearray()  # the line that has no end yet

    def feed(self, data: bytes) -> list[bytes]:
        if self._head is not None:
            data = self._head + data
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._head = data
                return []
            self._head = None
            data = data.removeprefix(_BOM)
        if self._after_cr and data:
            self._after_cr = False
            if data[0] == _LF:
                data = data[1:]
        if not data:
            return []
        # bytes.splitlines knows CR, LF and CRLF only; str.splitlines would know ten more.
        lines = data.splitlines()
        last = data[-1]
        self._after_cr = last == _CR
        unfinished = b"" if last in (_LF, _CR) else lines.pop()
        if self.partial:
            if not lines:
                self.partial += unfinished
                return []
            lines[0] = bytes(self.partial) + lines[0]
            self.partial.clear()
        if unfinished:
            self.partial += unfinished
        return lines


def _field(line: bytes) -> tuple[bytes, bytes]:
    """A line's field name and value; a comment has an empty name."""
    name, _, value = line.partition(b":")
    return name, value.removeprefix(b" ")


class Parser:
    """
    Feed it bytes, get the events that they complete. The work is linear in the bytes, however small the
    pieces, and what one unfinished event may hold is capped.

    ``retry:`` and unknown fields are ignored; an event without data is not dispatched.
    """

    __slots__ = ("_data", "_event", "_failed", "_held", "_id", "_lines", "_max_event_bytes")

    def __init__(self, max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._lines = _Lines()
        self._event = b""
        self._data: list[bytes] = []
        self._id: bytes | None = None
        self._held = 0
        self._failed = False

    @property
    def held(self) -> int:
        """Bytes kept of the event that is not finished yet."""
        return self._held + len(self._lines.partial)

    @property
    def pending(self) -> Event | None:
        """
        What the stream would still dispatch if it went on with a line end and a blank line; ``None`` if
        nothing. At the end of a stream this is the event that was cut, or that its sender did not terminate.
        """
        event, data, last_id = self._event, list(self._data), self._id
        name, value = _field(bytes(self._lines.partial))
        if name == b"data":
            data.append(value)
        elif name == b"event":
            event = value
        elif name == b"id" and b"\0" not in value:
            last_id = value
        return Event(event, b"\n".join(data), last_id) if data else None

    def feed(self, data: bytes) -> list[Event]:
        """
        The events that end in `data`, in order.

        Raises :class:`EventTooLargeError` if one event takes more than `max_event_bytes`, then and ever after.
        The events that ended in the same `data` before it are lost with it.
        """
        if self._failed:
            raise EventTooLargeError(self._max_event_bytes)
        events: list[Event] = []
        for line in self._lines.feed(data):
            if not line:
                if self._data:
                    values = self._data
                    joined = values[0] if len(values) == 1 else b"\n".join(values)
                    events.append(Event(self._event, joined, self._id))
                    self._data = []
                self._event = b""
                self._held = 0
                continue
            name, value = _field(line)
            if name == b"data":
                self._data.append(value)
                # Empty lines cost memory too.
                self._held += len(value) + 1
                if self._held > self._max_event_bytes:
                    self._fail()
            elif name == b"event":
                self._event = value
            elif name == b"id" and b"\0" not in value:
                self._id = value
        if self.held > self._max_event_bytes:
            self._fail()
        return events

    def _fail(self) -> None:
        self._failed = True
        self._data = []
        self._lines.partial = bytearray()
        raise EventTooLargeError(self._max_event_bytes)


class Boundary:
    """
    Follows a stream, in constant time a chunk, to know whether an event could be put in here: nothing has
    been sent yet, or the last line was blank.

    A CR at the very end may be half of a CRLF, and a client that knows CRLF alone would not take it for a
    line end. So it ends a blank line only after another CR, from a sender that has just ended a line with CR
    alone. (A BOM with a blank line right behind it is not taken for a boundary either. No is always safe.)
    """

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b"\n\n"

    def follow(self, chunk: bytes) -> None:
        """`chunk` has been sent, too."""
        self._tail = chunk[-3:] if len(chunk) > 2 else (self._tail + chunk)[-3:]

    @property
    def at_boundary(self) -> bool:
        return self._tail.endswith((b"\n\n", b"\n\r\n", b"\r\r\n", b"\r\r"))


_LONGEST_LINE_OF_AN_END = 64


class Ending:
    """
    Follows a stream of which no framing shows whether it is whole (close-delimited), to know whether its end
    is a proper one: the last event, pings aside, was Anthropic's ``message_stop`` or ``error``, or OpenAI's
    ``data: [DONE]``. It holds some sixty bytes, whatever the size of an event.
    """

    __slots__ = ("_done", "_event", "_has_data", "_lines", "proper")

    def __init__(self) -> None:
        self._lines = _Lines()
        self._event = b""
        self._has_data = False
        self._done = False
        self.proper = False

    def follow(self, chunk: bytes) -> None:
        """`chunk` has arrived, too."""
        for line in self._lines.feed(chunk):
            if not line:
                if self._has_data and self._event != b"ping":
                    self.proper = self._done or self._event in (b"message_stop", b"error")
                self._event = b""
                self._has_data = self._done = False
                continue
            name, value = _field(line)
            if name == b"data":
                self._done = value == b"[DONE]" and not self._has_data
                self._has_data = True
            elif name == b"event":
                self._event = value
        # A longer line is none of those above, and its first bytes already show it.
        del self._lines.partial[_LONGEST_LINE_OF_AN_END:]
