"""
The site: its connections, and how requests are read from them.

What cannot be parsed, takes too long or is too large is answered in its API's envelope; then the connection is
closed in a way that lets the client read the answer although it is still sending.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, ITransport
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource

from ..fields import headers_of, lines_of
from ..relay.flight import Verdict
from ..relay.transports import abort, has_unread, unsent_bytes, write_now
from ..runtime import DrainEnd, Waiters
from ..wire import request_head
from ..wire.headers import connection_options
from ..wire.http1 import ProtocolError, parse_fields
from .answers import REQUEST_ID, SERVER, error_body, is_openai_path, reason_phrase
from .front import Front
from .limits import RETRY_SOON, Hold, Refusal, Room
from .request import ProxyRequest

log = Logger()

MAX_HEADER_BYTES = 64 * 1024
"""Request line and header block. Claude Code's headers can pass Twisted's 16 KiB."""

MAX_TARGET_BYTES = 8 * 1024
"""The request target."""

MAX_REQUEST_LINE_BYTES = MAX_TARGET_BYTES + 256
"""The request line: beside the target, a method and a version."""

MAX_PIPELINED_BYTES = 1024 * 1024
"""What a client may send before its last request is answered. Who sends more is cut off."""

LINGER = 10.0
"""Seconds that a refused client may go on sending before the connection is closed under it (RFC 9112 §9.6)."""

GUEST_PATIENCE = 5.0
"""Seconds in which a client for whom there is no room may say that it only asks how the process is."""

COMPLAIN_EVERY = 10.0
"""Seconds between two lines that say how many connections were turned away."""

LAST_CALL = 1.0
"""
Seconds without a request after which a drained process closes a connection: its client may have one on the way.

Who uses a connection again within this time is answered, and told to use it no more. (nginx: `keepalive_min_timeout`.)
"""

LOOK_EVERY = 0.25
"""Seconds between two looks at a connection that has something to be sent, or waits for TLS to close."""

MAX_TARGET_SHOWN = 1024
"""Bytes at the beginning of a refused head in which its path is looked for."""

CHUNKS_AT_ONCE = 64 * 1024
"""So many bytes of a chunked body are decoded in one go: what is not of it is copied."""


class _Phase(enum.Enum):
    """What is expected of the client."""

    IDLE = enum.auto()
    """Nothing: it has no request under way, or waits for the answer."""
    HEAD = enum.auto()
    BODY = enum.auto()


# Looked at for each piece.
_IDLE, _HEAD, _BODY = _Phase


class Channel(http.HTTPChannel):
    """
    One client's connection.

    idle → head → body → handling → (idle | closing); or head or body → lingering, when it was refused.

    :ivar is_guest: whether it is one more than there is room for: it is told so, unless it asks for a page that says
        how the process is.
    """

    site: ProxySite
    requestFactory = ProxyRequest  # type: ignore[assignment]
    requests: list[ProxyRequest]
    transport: ITransport
    timeOut: float | None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self._told_when_sent: list[Callable[[Verdict], None]] = []
        self._stalled = False
        self._unread: bytes | bytearray = b""
        # So many bytes of it are read, and so many behind them were searched for the end of a head.
        self._position = 0
        self._searched = 0
        self._blank_line = False
        self._reading = False
        self._peer: IAddress | None = None
        self._host: IAddress | None = None
        self._head = b""
        self._pipelined = 0
        self._pipelined_hold: Hold | None = None
        self._lingering = False
        self._closed = False
        self._phase = _IDLE
        self.is_guest = False
        self._idle_since = 0.0
        self._watch: IDelayedCall | None = None
        self._unsent = 0
        self._moved_at = 0.0

    # Twisted calls these

    def connectionMade(self) -> None:
        self._idle_since = self.site.front.clock.seconds()
        self.timeOut = self.site.front.config.idle_timeout or None
        self.site.channel_made(self)
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        if self._lingering or self._closed:
            # TLS goes on reading after it was told to close: nobody could be answered.
            return
        if self._phase is _BODY:
            self.resetTimeout()
        if not self._unread:
            self._unread = data
        else:
            if not isinstance(self._unread, bytearray):
                self._unread = bytearray(self._unread)
            self._unread += data
        if self._reading:
            # Called back with what was pipelined, from within an answer: the loop below goes on with it.
            return
        self._reading = True
        try:
            while self._position < len(self._unread) and not self._lingering:
                if self._handlingRequest or self._transferDecoder is not None:
                    self.rawDataReceived(self._next_piece())
                elif not self._read_head():
                    break
        finally:
            self._reading = False
        if self._position:
            # What remains came with this piece: nothing is moved here again for each piece.
            self._unread, self._position = self._unread[self._position :], 0
        if self._handlingRequest:
            return
        # A head may have begun with the first half of a blank line, which is no request.
        phase = _BODY if self._transferDecoder is not None else _HEAD if self._unread else _IDLE
        if phase is not self._phase and not self._lingering:
            self._enter(phase)

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        if self.is_guest:
            # Has one time for all.
            return
        config = self.site.front.config
        if phase is _HEAD:
            self.setTimeout(self._head_timeout or None)
        elif phase is _BODY:
            self.setTimeout(config.read_timeout or None)
        else:
            self.setTimeout(config.idle_timeout or None)

    @property
    def _head_timeout(self) -> float:
        """Seconds for a head. It belongs to the request, whose time may be shorter. 0: no limit."""
        config = self.site.front.config
        return min(filter(None, (config.header_timeout, config.read_timeout)), default=0.0)

    def _next_piece(self) -> bytes:
        """What comes next, to be read by others; of a body, not much beyond its end, which they would copy."""
        decoder = self._transferDecoder
        end = len(self._unread)
        if decoder is not None:
            end = min(end, self._position + (CHUNKS_AT_ONCE if self.length is None else decoder.contentLength))
        piece = self._unread[self._position : end]
        self._position = end
        return bytes(piece)

    def _read_head(self) -> bool:
        """
        Take the next request's head, if all of it is here.

        Twisted's own reader goes line by line, copying the rest of the buffer for each, and is less strict.
        """
        unread = self._unread
        if unread.startswith(b"\r\n", self._position) and not self._blank_line:
            # RFC 9112 §2.2: one is ignored.
            self._position += 2
            self._searched, self._blank_line = 0, True
        begin = self._position
        searched = begin + self._searched
        end = unread.find(b"\r\n\r\n", max(begin, searched - 3))
        # Looked at once for a head, when it has become as long.
        is_long = self._searched <= MAX_REQUEST_LINE_BYTES < len(unread) - begin
        if is_long and unread.find(b"\n", begin, begin + MAX_REQUEST_LINE_BYTES) < 0:
            self._target_too_long()
            return False
        # Where the end is not here, up to three bytes of the blank line may be.
        if (len(unread) - 3 if end < 0 else end) - begin > MAX_HEADER_BYTES:
            self._headers_too_large()
            return False
        if end < 0:
            if unread.count(b"\n", searched) != unread.count(b"\r\n", max(begin, searched - 1)):
                self._bad_request("its lines do not end in CRLF")
            self._searched = len(unread) - begin
            return False
        self._position, self._searched, self._blank_line = end + 4, 0, False
        request = self.requestFactory(self, len(self.requests))
        self.requests.append(request)
        try:
            head = request_head.parse(bytes(unread[begin:end]))
        except ProtocolError as fault:
            self._position = begin
            self._bad_request(str(fault))
            return False
        if len(head.target) > MAX_TARGET_BYTES:
            self._position = begin
            self._target_too_long()
            return False
        request.requestHeaders = headers_of(head.fields)
        self._command, self._path, self._version = head.method, head.target, head.version
        self.length = head.length
        if head.length is None:
            self._maybeChooseTransferDecoder(b"Transfer-Encoding", b"chunked")
        elif head.length:
            self._maybeChooseTransferDecoder(b"Content-Length", b"%d" % head.length)
        self.allHeadersReceived()
        if head.length == 0 and not self._lingering:
            self.allContentReceived()
        return True

    def getPeer(self) -> IAddress:
        # Each request asks, and each answer would be a system call and an object.
        if self._peer is None:
            self._peer = super().getPeer()
        return self._peer

    def getHost(self) -> IAddress:
        if self._host is None:
            self._host = super().getHost()
        return self._host

    def allHeadersReceived(self) -> None:
        request = self.requests[-1]
        self.persistent = self.checkPersistence(request, self._version)
        refusal = request.headers_received(self._command, self._path, self.length)
        if refusal is not None:
            self.refuse(refusal)
            return
        request.gotLength(self.length)
        expected = request.requestHeaders.getRawHeaders(b"Expect", [])
        if self._version == b"HTTP/1.1" and [value.lower() for value in expected] == [b"100-continue"]:
            self._send100Continue()

    def rawDataReceived(self, data: bytes) -> None:
        if self._lingering:
            return
        if not self._handlingRequest:
            super().rawDataReceived(data)
            return
        # Twisted stops reading when too much was pipelined, and so would not see the client leave.
        self._pipelined += len(data)
        if self._pipelined_hold is None:
            self._pipelined_hold = Hold(self.site.front.bodies)
        if not self._pipelined_hold.grow(len(data)) or self._pipelined > MAX_PIPELINED_BYTES:
            self.abort()
        else:
            self._dataBuffer.append(data)

    def _finishRequestBody(self, data: bytes) -> None:
        # Twisted would put aside, uncounted, what is behind the body.
        self._position -= len(data)
        decoder = self._transferDecoder
        try:
            if isinstance(decoder, http._ChunkedTransferDecoder):
                # Nobody is told of them; but who reads on does so from where they end.
                trailers = parse_fields(b"".join(b"\r\n" + line for line in decoder._trailerHeaders), 0)
                if any(name.lower() in (b"content-length", b"transfer-encoding", b"host") for name, _ in trailers):
                    # It must not come so late (RFC 9110 §6.5.1), and somebody might heed it.
                    raise ProtocolError("what frames or routes a request stands in its head alone")
        except ProtocolError as fault:
            self._bad_request(f"{fault} (in a trailer)")
        else:
            self.allContentReceived()

    def allContentReceived(self) -> None:
        if not self._lingering:
            self._phase = _IDLE
            self._pipelined = 0
            self._release_pipelined()
            self.setTimeout(None)
            # Twisted keeps this aside, and sets it anew when the request is done.
            self.timeOut = self.site.front.config.idle_timeout or None
            super().allContentReceived()

    def checkPersistence(self, request: ProxyRequest, version: bytes) -> bool:
        options = connection_options(request.requestHeaders.getRawHeaders(b"Connection", []))
        # A balancer that keeps connections must not put the next request on a process that goes away.
        leaving = self.is_guest or self.site.front.drain.draining
        if version == b"HTTP/1.1" and b"close" not in options and not leaving:
            return True
        request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        return False

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """Keep the head for what is written next, so that both go out in one piece; or for `flush_head`."""
        status = b"%b %b %b\r\n" % (version, code, reason)
        self._head = b"".join([self._head, status, *lines_of(headers), b"\r\n"])

    def write(self, data: bytes) -> None:
        self.write_pieces((data,))

    def writeSequence(self, iovec: Any) -> None:
        self.write_pieces(tuple(iovec))

    def write_pieces(self, pieces: tuple[bytes, ...]) -> None:
        """Write, behind the head if that is still here."""
        if self._head:
            pieces = (self._head, *pieces)
            self._head = b""
        write_now(self.transport, pieces)

    def flush_head(self) -> None:
        """Write the head of an answer whose body is not there yet."""
        if self._head:
            self.write_pieces(())

    def requestDone(self, request: http.Request) -> None:
        self.flush_head()
        self._idle_since = self.site.front.clock.seconds()
        super().requestDone(request)

    def resumeProducing(self) -> None:
        super().resumeProducing()
        if not self._closed:
            self._stop_watching()
        self._tell(Verdict.COMPLETE)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_watching()
        self._release_pipelined()
        super().connectionLost(reason)
        # Of a body that did not come to its end; it calls us.
        self._transferDecoder = None
        if not unsent_bytes(self.transport):
            self._tell(Verdict.COMPLETE)
        else:
            self._tell(Verdict.CLIENT_STALLED if self._stalled else Verdict.CLIENT_GONE)
        self.site.channel_lost(self)

    def timeoutConnection(self) -> None:
        if self.is_guest:
            self.turn_away()
        elif self._phase is _HEAD:
            what = f"The request's headers were not here after {self._head_timeout:g} s (HEADER_TIMEOUT)."
            self.refuse(Refusal(408, "timeout_error", what))
        elif self._phase is _BODY:
            patience = self.site.front.config.read_timeout
            what = f"No byte of the request's body came for {patience:g} s (READ_TIMEOUT)."
            self.refuse(Refusal(408, "timeout_error", what))
        elif has_unread(self.transport) and not unsent_bytes(self.transport):
            # The next request is here: it is read in this turn of the reactor. Closing would reset the connection.
            self.setTimeout(LOOK_EVERY)
        else:
            self.loseConnection()

    def loseConnection(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.flush_head()
        super().loseConnection()
        self._watch_unsent()

    def _respondToBadRequestAndDisconnect(self) -> None:
        self._bad_request("a chunk of its body is malformed")

    # Ours

    def _bad_request(self, why: str) -> None:
        self.refuse(Refusal(400, "invalid_request_error", f"This is no valid HTTP/1.1 request: {why}."))

    def _headers_too_large(self) -> None:
        what = f"The request's headers are larger than {MAX_HEADER_BYTES} bytes."
        self.refuse(Refusal(431, "invalid_request_error", what))

    def _target_too_long(self) -> None:
        what = f"The request's target (its URL without the host) is longer than {MAX_TARGET_BYTES} bytes."
        self.refuse(Refusal(414, "invalid_request_error", what))

    def _release_pipelined(self) -> None:
        if self._pipelined_hold is not None:
            self._pipelined_hold.release()
            self._pipelined_hold = None

    @property
    def busy(self) -> bool:
        """Whether a request has begun to arrive and its answer is not written."""
        return self._phase is not _IDLE or bool(self.requests)

    def when_sent(self, act: Callable[[Verdict], None]) -> None:
        """
        Call when the client holds back nothing of what was written: at once, if it does not.

        :param act: is told `COMPLETE`; or `CLIENT_STALLED` or `CLIENT_GONE`, when it will not take the rest.
        """
        if self._waitingForTransport and self in self.site.channels:
            self._told_when_sent.append(act)
            self._watch_unsent()
        else:
            act(Verdict.COMPLETE)

    def _tell(self, verdict: Verdict) -> None:
        self._told_when_sent, acts = [], self._told_when_sent
        for act in acts:
            act(verdict)

    def turn_away(self) -> None:
        """There is no room, and this guest has said nothing, or all: tell it, and close without waiting."""
        self.site.guest_gone(self)
        if self._lingering or self.requests:
            self.abort()
            return
        self._lingering = self._closed = True
        self.setTimeout(None)
        refusal, request_id = self.site.full(), self.site.front.new_request_id()
        self.site.count_refusal(refusal.status)
        status, body = error_body(
            refusal.status, refusal.error_type, refusal.message, request_id, openai_client=self._asks_openai()
        )
        self.transport.write(_whole_answer(status, body, request_id, refusal.retry_after))
        self.transport.loseConnection()
        tcp = getattr(self.transport, "transport", None)
        if tcp is not None:
            # TLS would wait for a handshake, or for the client's close_notify.
            tcp.loseConnection()

    def refuse(self, refusal: Refusal) -> None:
        """Answer instead of a resource, while the request may still be arriving, and close."""
        if self._lingering:
            return
        self._lingering = True
        self.site.count_refusal(refusal.status)
        self._phase = _IDLE
        self.setTimeout(None)
        if not self.requests:
            # Refused before its head was read; it is logged as any other.
            self.requests.append(self.requestFactory(self, 0))
        request = self.requests[-1]
        openai_client = self._asks_openai() if request.method == b"-" else request.from_openai_client
        status, error_type, message, retry_after = refusal
        status, body = error_body(status, error_type, message, request.request_id, openai_client=openai_client)
        answer = _whole_answer(status, body, request.request_id, retry_after)
        if request.method == b"HEAD":
            answer, body = answer[: len(answer) - len(body)], b""
        self.transport.write(answer)
        request.refused(status, error_type, message, body)
        # Closing with unread input would reset the connection, and the answer would be lost.
        self._stop_watching()
        self._watch = self.callLater(LINGER, self.abort)
        if isinstance(self.transport, Connection) and not self.transport.TLS:
            self.transport.loseWriteConnection()
        else:
            # TLS sends its close_notify, and reads on until the client's.
            self._closed = True
            super().loseConnection()

    def _asks_openai(self) -> bool:
        """Whether a head that is not read, or cannot be, begins as a request of OpenAI's API does."""
        words = bytes(self._unread[self._position : self._position + MAX_TARGET_SHOWN]).split(b" ", 2)
        return len(words) == 3 and is_openai_path(words[1].partition(b"?")[0])

    def shut(self, last_call: float) -> None:
        """
        Close as soon as nothing is lost by it: a busy connection after its answer, an idle one without a request on it.

        :param last_call: seconds for which it must have been idle.
        """
        left = self._idle_since + last_call - self.site.front.clock.seconds()
        if self._lingering and not unsent_bytes(self.transport):
            self.abort()
        elif self.busy:
            self.persistent = False
        elif left > 0:
            self.setTimeout(left)
        else:
            self.timeoutConnection()

    def abort(self) -> None:
        """Close now, whatever is under way."""
        abort(self.transport)

    def _watch_unsent(self) -> None:
        """
        Look, while the client takes the rest of what was written, whether it does; not for longer than that.

        The time without progress is `WRITE_TIMEOUT`; where nothing is left to be taken, `LINGER`.
        """
        if self._watch is not None or self not in self.site.channels:
            return
        self._unsent = unsent_bytes(self.transport)
        self._moved_at = self.site.front.clock.seconds()
        self._watch = self.callLater(LOOK_EVERY, self._check_unsent)

    def _check_unsent(self) -> None:
        self._watch = None
        now = self.site.front.clock.seconds()
        before, self._unsent = self._unsent, unsent_bytes(self.transport)
        if self._unsent < before:
            self._moved_at = now
        tcp = getattr(self.transport, "transport", None)
        if self._closed and not self._unsent and tcp is not None:
            # All is out, the close_notify too. Its answer need not be waited for (RFC 8446 §6.1).
            tcp.loseConnection()
        limit = self.site.front.config.write_timeout if self._unsent else LINGER
        if limit and now - self._moved_at >= limit:
            self._stalled = True
            self.abort()
        else:
            self._watch = self.callLater(LOOK_EVERY, self._check_unsent)

    def _stop_watching(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None and watch.active():
            watch.cancel()


def _whole_answer(status: int, body: bytes, request_id: str, retry_after: int | None) -> bytes:
    """An answer after which the connection is closed."""
    head = [
        b"HTTP/1.1 %d %b" % (status, reason_phrase(status)),
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        b"Server: " + SERVER,
        REQUEST_ID + b": " + request_id.encode("ascii"),
        b"Connection: close",
    ]
    if retry_after is not None:
        head.append(b"Retry-After: %d" % retry_after)
    return b"\r\n".join([*head, b"", body])


class ProxySite(server.Site):
    """
    The factory of our own listening ports: knows its connections, so that each can be seen out.

    :ivar turned_away: so many times there was no room for a connection.
    :ivar refused: how many requests were answered by their connection, by status.
    """

    requestFactory = ProxyRequest
    protocol = Channel  # type: ignore[assignment]
    noisy = False

    def __init__(self, resource: IResource, front: Front) -> None:
        super().__init__(resource, reactor=front.clock, parsePOSTFormSubmission=False)
        self.front = front
        self.channels: set[Channel] = set()
        self.turned_away = 0
        self.refused: dict[int, int] = {}
        self._served = 0
        # The one that has been here longest comes first.
        self._guests: dict[Channel, None] = {}
        self._complained_at: float | None = None
        self._empty = Waiters()

    def log(self, request: http.Request) -> None:
        """Twisted's access log shows whole URIs. Ours is written by the requests."""

    def acceptableProtocols(self) -> list[bytes]:
        return [b"http/1.1"]

    @property
    def room(self) -> Room:
        return Room.of_process(self.front.config.max_connections)

    # For the metrics

    @property
    def connections(self) -> int:
        """How many are open, guests included."""
        return len(self.channels)

    @property
    def max_connections(self) -> int:
        """How many are served at a time."""
        return self.room.connections

    @property
    def bodies_bytes(self) -> int:
        """Bytes of request bodies in memory."""
        return self.front.bodies.used

    @property
    def max_bodies_bytes(self) -> int:
        """How many there may be."""
        return self.front.bodies.limit

    @property
    def credentials(self) -> int:
        """How many credentials are counted towards their limits."""
        return len(self.front.limits)

    def count_refusal(self, status: int) -> None:
        self.refused[status] = self.refused.get(status, 0) + 1

    # Connections

    def channel_made(self, channel: Channel) -> None:
        """A connection is there. It is a guest where there is no room; of too many of these, the first has to go."""
        self.channels.add(channel)
        room = self.room
        if self._served < room.connections:
            self._served += 1
            return
        channel.is_guest = True
        channel.timeOut = GUEST_PATIENCE
        self._guests[channel] = None
        if len(self._guests) > room.guests:
            next(iter(self._guests)).turn_away()

    def guest_gone(self, channel: Channel) -> None:
        self._guests.pop(channel, None)

    def full(self) -> Refusal:
        """What a guest is told."""
        self.turned_away += 1
        now = self.front.clock.seconds()
        if self._complained_at is None or now - self._complained_at >= COMPLAIN_EVERY:
            self._complained_at = now
            log.warn(
                "all {connections} connections (MAX_CONNECTIONS) are taken; turned away so far: {turned_away}",
                connections=self.room.connections,
                turned_away=self.turned_away,
            )
        message = "The proxy has as many connections as it may (MAX_CONNECTIONS). Try again soon."
        return Refusal(503, "overloaded_error", message, RETRY_SOON)

    def channel_lost(self, channel: Channel) -> None:
        if channel in self.channels:
            self.channels.discard(channel)
            if channel.is_guest:
                self.guest_gone(channel)
            else:
                self._served -= 1
        if not self.channels:
            self._empty.fire()

    def flush(self) -> Deferred[None]:
        """
        Let every connection finish what it owes its client, and close it. Fires when all are closed.

        One that was used within `LAST_CALL` may be used once more, unless the drain ended before its time.
        """
        empty = self._empty.wait()
        if not self.channels:
            self._empty.fire()
        last_call = LAST_CALL if self.front.drain.end is DrainEnd.IDLE else 0.0
        for channel in list(self.channels):
            channel.shut(last_call)
        return empty

    def abort(self) -> None:
        """Close every connection now."""
        for channel in list(self.channels):
            channel.abort()
