"""
The site: its connections, and how requests are read from them.

What cannot be parsed, takes too long or is too large is answered in Anthropic's envelope; then the connection is
closed in a way that lets the client read the answer although it is still sending.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, ITransport
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource

from ..relay.fields import headers_of
from ..relay.flight import Verdict
from ..relay.transports import abort, unsent_bytes, write_now
from ..runtime import Waiters
from ..wire import errors, request_head
from ..wire.headers import connection_options
from ..wire.http1 import ProtocolError, parse_fields
from .answers import REQUEST_ID, SERVER, reason_phrase
from .front import Front
from .request import ProxyRequest

MAX_HEADER_BYTES = 64 * 1024
"""Request line and header block. Claude Code's headers can pass Twisted's 16 KiB."""

MAX_PIPELINED_BYTES = 1024 * 1024
"""What a client may send before its last request is answered. Who sends more is cut off."""

LINGER = 10.0
"""Seconds that a refused client may go on sending before the connection is closed under it (RFC 9112 §9.6)."""

LOOK_EVERY = 0.25
"""Seconds between two looks at a connection that has something to be sent, or waits for TLS to close."""

CHUNKS_AT_ONCE = 64 * 1024
"""So many bytes of a chunked body are decoded in one go: what is not of it is copied."""


class Channel(http.HTTPChannel):
    """
    One client's connection.

    idle → receiving → handling → (idle | closing); or receiving → lingering, when it was refused.
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
        self._lingering = False
        self._closed = False
        self._receiving = False
        self._watch: IDelayedCall | None = None
        self._unsent = 0
        self._moved_at = 0.0

    # Twisted calls these

    def connectionMade(self) -> None:
        self.site.channels.add(self)
        self.timeOut = self.site.front.config.idle_timeout or None
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        if self._lingering or self._closed:
            # TLS goes on reading after it was told to close: nobody could be answered.
            return
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
        receiving = not self._handlingRequest and (bool(self._unread) or self._transferDecoder is not None)
        if receiving != self._receiving and not self._lingering:
            # It may have begun with the first half of a blank line, which is no request.
            self._receiving = receiving
            config = self.site.front.config
            self.setTimeout((config.read_timeout if receiving else config.idle_timeout) or None)

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
            self._bad_request(str(fault))
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
            self.refuse(*refusal)
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
        if self._pipelined > MAX_PIPELINED_BYTES:
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
                parse_fields(b"".join(b"\r\n" + line for line in decoder._trailerHeaders), 0)
        except ProtocolError as fault:
            self._bad_request(f"{fault} (in a trailer)")
        else:
            self.allContentReceived()

    def allContentReceived(self) -> None:
        if not self._lingering:
            self._receiving = False
            self._pipelined = 0
            self.setTimeout(None)
            # Twisted keeps this aside, and sets it anew when the request is done.
            self.timeOut = self.site.front.config.idle_timeout or None
            super().allContentReceived()

    def checkPersistence(self, request: ProxyRequest, version: bytes) -> bool:
        options = connection_options(request.requestHeaders.getRawHeaders(b"Connection", []))
        # A balancer that keeps connections must not put the next request on a process that goes away.
        if version == b"HTTP/1.1" and b"close" not in options and not self.site.front.drain.draining:
            return True
        request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        return False

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """Keep the head for what is written next, so that both go out in one piece; or for `flush_head`."""
        lines = [b"%b %b %b\r\n" % (version, code, reason)]
        for name, values in headers.getAllRawHeaders():
            lines += [b"%b: %b\r\n" % (name, value) for value in values]
        self._head = b"".join([self._head, *lines, b"\r\n"])

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
        super().requestDone(request)

    def resumeProducing(self) -> None:
        super().resumeProducing()
        if not self._closed:
            self._stop_watching()
        self._tell(Verdict.COMPLETE)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_watching()
        super().connectionLost(reason)
        if not unsent_bytes(self.transport):
            self._tell(Verdict.COMPLETE)
        else:
            self._tell(Verdict.CLIENT_STALLED if self._stalled else Verdict.CLIENT_GONE)
        self.site.channel_lost(self)

    def timeoutConnection(self) -> None:
        if self._receiving:
            self.refuse(
                408,
                "timeout_error",
                f"No byte of the request came for {self.site.front.config.read_timeout:g} s (READ_TIMEOUT).",
            )
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
        self.refuse(400, "invalid_request_error", f"This is no valid HTTP/1.1 request: {why}.")

    def _headers_too_large(self) -> None:
        self.refuse(431, "invalid_request_error", f"The request's headers are larger than {MAX_HEADER_BYTES} bytes.")

    @property
    def busy(self) -> bool:
        """Whether a request has begun to arrive and its answer is not written."""
        return self._receiving or bool(self.requests)

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

    def refuse(self, status: int, error_type: str, message: str) -> None:
        """Answer instead of a resource, while the request may still be arriving, and close."""
        if self._lingering:
            return
        self._lingering = True
        self._receiving = False
        self.setTimeout(None)
        if not self.requests:
            # Refused before its head was read; it is logged as any other.
            self.requests.append(self.requestFactory(self, 0))
        request = self.requests[-1]
        body = errors.envelope(error_type, message, request.request_id)
        told = b"" if request.method == b"HEAD" else body
        head = [
            b"HTTP/1.1 %d %b" % (status, reason_phrase(status)),
            b"Content-Type: application/json",
            b"Content-Length: %d" % len(body),
            b"Server: " + SERVER,
            REQUEST_ID + b": " + request.request_id.encode("ascii"),
            b"Connection: close",
            b"",
            told,
        ]
        self.transport.write(b"\r\n".join(head))
        request.refused(status, error_type, message, told)
        # Closing with unread input would reset the connection, and the answer would be lost.
        self._stop_watching()
        self._watch = self.callLater(LINGER, self.abort)
        if isinstance(self.transport, Connection) and not self.transport.TLS:
            self.transport.loseWriteConnection()
        else:
            # TLS sends its close_notify, and reads on until the client's.
            self._closed = True
            super().loseConnection()

    def shut(self) -> None:
        """Close as soon as nothing is lost by it: an idle connection now, a busy one after its answer."""
        if self._lingering and not unsent_bytes(self.transport):
            self.abort()
        elif self.busy:
            self.persistent = False
        else:
            self.loseConnection()

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


class ProxySite(server.Site):
    """The factory of our own listening ports: knows its connections, so that each can be seen out."""

    requestFactory = ProxyRequest
    protocol = Channel  # type: ignore[assignment]
    noisy = False

    def __init__(self, resource: IResource, front: Front) -> None:
        super().__init__(resource, reactor=front.clock, parsePOSTFormSubmission=False)
        self.front = front
        self.channels: set[Channel] = set()
        self._empty = Waiters()

    def log(self, request: http.Request) -> None:
        """Twisted's access log shows whole URIs. Ours is written by the requests."""

    def acceptableProtocols(self) -> list[bytes]:
        return [b"http/1.1"]

    def channel_lost(self, channel: Channel) -> None:
        self.channels.discard(channel)
        if not self.channels:
            self._empty.fire()

    def flush(self) -> Deferred[None]:
        """Let every connection finish what it owes its client, and close it. Fires when all are closed."""
        empty = self._empty.wait()
        if not self.channels:
            self._empty.fire()
        for channel in list(self.channels):
            channel.shut()
        return empty

    def abort(self) -> None:
        """Close every connection now."""
        for channel in list(self.channels):
            channel.abort()
