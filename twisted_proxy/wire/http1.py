"""
HTTP/1.1 responses as a client reads them: bytes in, head and body bytes out (RFC 9112).

Strict where leniency lets two readers disagree about where a message ends: lines end in CRLF, field
names are tokens, there is no obs-fold, ``Content-Length`` is digits and agrees with itself,
``Transfer-Encoding`` is ``chunked`` and nothing else. What is not so is a :class:`ProtocolError`;
nothing is guessed.
"""

from __future__ import annotations

import enum
import re
from typing import NamedTuple

MAX_HEAD_BYTES = 64 * 1024
"""A status line and its fields, together, may take so many bytes."""

MAX_CHUNK_LINE_BYTES = 4 * 1024
"""One chunk-size line, extensions included."""

MAX_TRAILER_BYTES = 64 * 1024

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([\t \x21-\x7e\x80-\xff]*))?")
_FIELD_LINE = re.compile(rb"\r\n([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_CONTROL_BUT_LINE_ENDS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]+")
_HEX_DIGITS = b"0123456789abcdefABCDEF"
# Blanks before the extensions are RFC 9112's BWS; without extensions, they are what some servers pad the size with.
_CHUNK_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")


class ProtocolError(Exception):
    """
    The bytes are no HTTP/1.1 response, or one whose end cannot be known for sure.

    :ivar received: what the same input brought before the fault: how the bytes were split must not decide it.
    """

    received: Received | None = None


class Head(NamedTuple):
    """A final (not 1xx) status line with its fields, in the order and spelling in which they came."""

    minor_version: int
    status: int
    reason: bytes
    fields: list[tuple[bytes, bytes]]


class Framing(enum.Enum):
    """How the end of a body is known (RFC 9112 §6.3)."""

    NONE = "no body"
    LENGTH = "content-length"
    CHUNKED = "chunked"
    CLOSE = "close-delimited"


class Received(NamedTuple):
    """What one piece of input brought: the head (once), decoded body bytes, and whether the message is whole."""

    head: Head | None
    body: bytes
    complete: bool


class _State(enum.Enum):
    HEAD = enum.auto()
    LENGTH = enum.auto()
    CHUNK_LINE = enum.auto()
    CHUNK_DATA = enum.auto()
    CHUNK_END = enum.auto()
    TRAILER = enum.auto()
    CLOSE = enum.auto()
    COMPLETE = enum.auto()


_AT_CHUNK_LINE = _State.CHUNK_LINE


class ResponseReader:
    """
    Reads one final response, and skips the 1xx ones before it.

    After ``complete``, :attr:`unread` holds what came beyond the end: a client that did not pipeline
    must not use that connection again if there is any.

    Linear in what it is fed, however that is cut into pieces: no byte is searched or moved again for each piece.

    :ivar framing: how the body ends; ``None`` before the head is in.
    :ivar content_length: the ``Content-Length`` field's value, also where there is no body to come (HEAD, 304);
        ``None`` where ``Transfer-Encoding`` overrides it.
    :ivar keep_alive: whether the connection may carry another request (RFC 9112 §9.3).
    """

    def __init__(self, *, method: bytes) -> None:
        self._method = method
        self._state = _State.HEAD
        # The beginning of a head, line or CRLF of which the end has not come; after the end, what is beyond.
        self._buffer = bytearray()
        # So many bytes of the buffer have been searched for that end.
        self._searched = 0
        self._remaining = 0
        self._trailer_bytes = 0
        self.framing: Framing | None = None
        self.content_length: int | None = None
        self.keep_alive = False

    @property
    def unread(self) -> bytes:
        return bytes(self._buffer)

    def receive(self, data: bytes) -> Received:
        """
        Take the next bytes of the connection.

        :raises ProtocolError: the response is malformed; the connection is of no more use.
        """
        if self._state is _AT_CHUNK_LINE and not self._buffer:
            # An event, most often: one chunk, whole, in one piece.
            end = data.find(b"\r\n", 0, 10)
            if end > 0 and _CHUNK_SIZE.fullmatch(data, 0, end) is not None:
                stop = end + 2 + int(data[:end], 16)
                if len(data) == stop + 2 and stop > end + 2 and data.endswith(b"\r\n"):
                    return Received(None, data[end + 2 : stop], False)
        head: Head | None = None
        if self._state is _State.HEAD:
            head, data = self._read_head(data)
            if head is None:
                return Received(None, b"", False)
        if self._state is _State.LENGTH:
            body = self._read_length(data)
        elif self._state is _State.CLOSE:
            body = data
        elif self._state is _State.COMPLETE:
            body = b""
            self._buffer += data
        else:
            pieces: list[bytes | bytearray] = []
            try:
                self._read_chunks(data, pieces)
            except ProtocolError as fault:
                fault.received = Received(head, b"".join(pieces), False)
                raise
            body = bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
        return Received(head, body, self._state is _State.COMPLETE)

    def eof(self) -> bool:
        """
        The peer has closed.

        :return: ``True`` where that is how this body ends, which does not show whether it is whole;
            ``False`` where the message is cut short.
        """
        return self._state is _State.CLOSE

    # Input

    def _with_pending(self, data: bytes) -> tuple[bytes | bytearray, int]:
        """What is to be read now, and how far it has been searched. It is the buffer itself, if there is anything."""
        if not self._buffer:
            return data, 0
        self._buffer += data
        return self._buffer, self._searched

    def _keep(self, data: bytes | bytearray, position: int, *, searched: bool) -> None:
        """All from ``position`` waits for what comes next."""
        if data is self._buffer:
            del self._buffer[:position]
        else:
            self._buffer += memoryview(data)[position:]
        self._searched = len(self._buffer) if searched else 0

    # Head

    def _read_head(self, new: bytes) -> tuple[Head | None, bytes]:
        data, searched = self._with_pending(new)
        position = 0
        while True:
            end = data.find(b"\r\n\r\n", max(searched - 3, position))
            if end < 0:
                self._check_unfinished_head(data, position, searched)
                self._keep(data, position, searched=True)
                return None, b""
            if end - position > MAX_HEAD_BYTES:
                raise ProtocolError(f"the response head is longer than {MAX_HEAD_BYTES} bytes")
            head = _parse_head(bytes(data[position:end]))
            position = searched = end + 4
            if head.status >= 200:
                rest = bytes(data[position:])
                self._buffer.clear()
                self._frame(head)
                return head, rest
            if head.status == 101:
                raise ProtocolError("101 Switching Protocols, which nobody asked for")

    def _check_unfinished_head(self, data: bytes | bytearray, position: int, searched: int) -> None:
        """Refuse early what no further byte can make a head."""
        # Up to three bytes of the blank line may be there.
        if len(data) - position > MAX_HEAD_BYTES + 3:
            raise ProtocolError(f"the response head is longer than {MAX_HEAD_BYTES} bytes")
        if not b"HTTP/1.".startswith(data[position : position + 7]):
            raise ProtocolError("the answer does not begin with an HTTP/1 status line")
        searched = max(searched, position)
        # A CR that was searched may go with an LF that was not.
        if data.count(b"\n", searched) != data.count(b"\r\n", max(searched - 1, position)):
            raise ProtocolError("the lines of the response head do not end in CRLF")

    def _frame(self, head: Head) -> None:
        lengths: list[bytes] = []
        codings: list[bytes] = []
        connection: list[bytes] = []
        for name, value in head.fields:
            lowered = name.lower()
            if lowered == b"content-length":
                lengths += [part.strip(b" \t") for part in value.split(b",")]
            elif lowered == b"transfer-encoding":
                codings += [part.strip(b" \t").lower() for part in value.split(b",")]
            elif lowered == b"connection":
                connection += [part.strip(b" \t").lower() for part in value.split(b",")]
        if lengths:
            if len(set(lengths)) != 1 or not lengths[0].isdigit() or len(lengths[0]) > 18:
                raise ProtocolError("Content-Length is not one number")
            self.content_length = int(lengths[0])
        if codings and codings != [b"chunked"]:
            raise ProtocolError("Transfer-Encoding is something else than 'chunked'")
        persistent = b"close" not in connection and (head.minor_version == 1 or b"keep-alive" in connection)
        if codings:
            # RFC 9112 §6.3: Transfer-Encoding overrides Content-Length; §6.1: such a connection, and one on
            # which HTTP/1.0 was chunked, is not used again.
            persistent = persistent and not lengths and head.minor_version == 1
            self.content_length = None
        if self._method == b"HEAD" or head.status in (204, 304):
            if head.status == 204 and (codings or self.content_length):
                # Not allowed (RFC 9110 §8.6), and who announces a body there may also send it: into the next answer.
                persistent = False
            self.framing, self._state = Framing.NONE, _State.COMPLETE
        elif codings:
            self.framing, self._state = Framing.CHUNKED, _State.CHUNK_LINE
        elif self.content_length is not None:
            self.framing, self._remaining = Framing.LENGTH, self.content_length
            self._state = _State.LENGTH if self._remaining else _State.COMPLETE
        else:
            persistent = False
            self.framing, self._state = Framing.CLOSE, _State.CLOSE
        self.keep_alive = persistent

    # Body

    def _read_length(self, data: bytes) -> bytes:
        if len(data) > self._remaining:
            self._buffer += memoryview(data)[self._remaining :]
            data = data[: self._remaining]
        self._remaining -= len(data)
        if not self._remaining:
            self._state = _State.COMPLETE
        return data

    def _read_chunks(self, new: bytes, pieces: list[bytes | bytearray]) -> None:
        """Decode what is there; a line or CRLF of which the end is missing waits in the buffer."""
        data: bytes | bytearray = new
        searched = 0
        if self._buffer:
            data, searched = self._with_pending(new)
        position, size = 0, len(data)
        while True:
            if self._state is _State.CHUNK_DATA:
                end = min(position + self._remaining, size)
                if end > position:
                    pieces.append(data[position:end])
                    self._remaining -= end - position
                    position = end
                if self._remaining:
                    break
                self._state = _State.CHUNK_END
            if self._state is _State.CHUNK_END:
                if not b"\r\n".startswith(data[position : position + 2]):
                    raise ProtocolError("a chunk is longer than its size line says")
                if size - position < 2:
                    break
                position += 2
                self._state = _State.CHUNK_LINE
            if self._state is _State.CHUNK_LINE:
                end = data.find(b"\r\n", searched - 1 if searched > position else position)
                if end < 0:
                    # The CR may be there.
                    if size - position > MAX_CHUNK_LINE_BYTES + 1:
                        raise ProtocolError(f"a chunk-size line is longer than {MAX_CHUNK_LINE_BYTES} bytes")
                    if data.find(b"\n", max(searched, position)) >= 0:
                        raise ProtocolError("a chunk-size line does not end in CRLF")
                    if position < size and data[position] not in _HEX_DIGITS:
                        # A body that was never chunked: its line end may never come.
                        raise ProtocolError("a chunk-size line is malformed")
                    break
                match = _CHUNK_SIZE_LINE.fullmatch(data, position, end)
                if match is None or end - position > MAX_CHUNK_LINE_BYTES:
                    raise ProtocolError("a chunk-size line is malformed")
                position = end + 2
                self._remaining = int(match[1], 16)
                self._state = _State.CHUNK_DATA if self._remaining else _State.TRAILER
            if self._state is _State.TRAILER:
                end = data.find(b"\r\n", searched - 1 if searched > position else position)
                length = size - position - 1 if end < 0 else end - position
                if self._trailer_bytes + length > MAX_TRAILER_BYTES:
                    raise ProtocolError(f"the trailer section is longer than {MAX_TRAILER_BYTES} bytes")
                if end < 0:
                    if data.find(b"\n", max(searched, position)) >= 0:
                        raise ProtocolError("a line of the trailer section does not end in CRLF")
                    break
                line = bytes(data[position:end])
                position = end + 2
                if not line:
                    self._state = _State.COMPLETE
                    break
                self._trailer_bytes += length
                parse_fields(b"\r\n" + line, 0)
        if position < size or data is not new:
            self._keep(data, position, searched=self._state in (_State.CHUNK_LINE, _State.TRAILER))


def _parse_head(block: bytes) -> Head:
    end = block.find(b"\r\n")
    status_line = _STATUS_LINE.fullmatch(block, 0, len(block) if end < 0 else end)
    if status_line is None:
        raise ProtocolError("the status line is malformed")
    fields = parse_fields(block, end) if end >= 0 else []
    return Head(int(status_line[1]), int(status_line[2]), status_line[3] or b"", fields)


def parse_fields(block: bytes, position: int) -> list[tuple[bytes, bytes]]:
    """
    Names and values of field lines (RFC 9112 §5), as they came, without the blanks around the values.

    :param block: a head without the blank line that ends it.
    :param position: of the CRLF before the first field line.
    :raises ProtocolError: no token for a name, a blank before the colon, a folded line, a control character.
    """
    lines = block.count(b"\r\n", position)
    found = _FIELD_LINE.findall(block, position)
    # Each line has matched, and up to its end: nothing but a control character stops a match before that.
    if len(found) != lines or _CONTROL_BUT_LINE_ENDS.search(block) is not None:
        raise ProtocolError("a header line is malformed")
    if block.count(b"\r", position) != lines or block.count(b"\n", position) != lines:
        raise ProtocolError("a header line does not end in CRLF")
    return [(name, value.rstrip(b" \t")) for name, value in found]
