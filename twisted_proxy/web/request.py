"""
Requests of our own site: seen from their headers on, with their bodies in memory.

A request's limit holds before its body is read.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, server

from ..fields import announces_body
from ..relay.flight import TOLD_WHEN_CUT, Flight, Verdict
from ..relay.streaming import cut
from ..relay.transports import chunk
from ..wire import target
from .answers import OUR_MISTAKE, REQUEST_ID, answer_error, is_openai_path
from .limits import Hold, Refusal

if TYPE_CHECKING:
    from .channel import Channel, ProxySite

log = Logger()

LARGE_BODY = 1024 * 1024
"""From so many bytes on, a body is put together as it comes."""

UNCOUNTED_PAGES = frozenset({"/health", "/livez", "/metrics"})
"""Asked every few seconds by balancers and monitoring systems: neither counted nor logged."""


class MemoryBody:
    """
    The pieces of a body, put together once.

    A large body is put together as it comes: to join it at the end would need its size twice.
    """

    def __init__(self) -> None:
        self._size = 0
        self._pieces: list[bytes] = []
        self._large: BytesIO | None = None

    def append(self, piece: bytes) -> int:
        """Add a piece; return the size so far, in bytes."""
        self._size += len(piece)
        if self._large is None and self._size > LARGE_BODY:
            self._large = BytesIO()
            self._large.writelines(self._pieces)
            self._pieces.clear()
        if self._large is not None:
            self._large.write(piece)
        else:
            self._pieces.append(piece)
        return self._size

    def take(self) -> bytes:
        """All of it; nothing is kept."""
        large, self._large = self._large, None
        pieces, self._pieces = self._pieces, []
        # Of a buffer that nobody else holds, CPython gives the bytes without copying them.
        return b"".join(pieces) if large is None else large.getvalue()


class ProxyRequest(server.Request):
    """
    A request whose body is in memory, counted from its headers to its last byte.

    :ivar flight: of a request that is forwarded, else ``None``.
    :ivar body: the body's bytes; ``None`` where the client sent neither ``Content-Length`` nor chunks.
    """

    channel: Channel
    site: ProxySite
    defaultContentType = None
    # Of a request that was refused before its head was read.
    method = b"-"

    def __init__(self, channel: Channel, *args: Any, **kwargs: Any) -> None:
        super().__init__(channel, *args, **kwargs)
        self.front = channel.site.front
        self.request_id = self.front.new_request_id()
        self.received_at = self.front.clock.seconds()
        self.flight: Flight | None = None
        self.body: bytes | None = None
        self._local: target.Target | None = None
        self._received = MemoryBody()
        self._hold = Hold(self.front.bodies)
        self._limit = 0
        self.responseHeaders.setRawHeaders(REQUEST_ID, [self.request_id.encode("ascii")])

    @property
    def from_openai_client(self) -> bool:
        """Whether its client speaks OpenAI's API, as far as its path says."""
        return self._local is not None and is_openai_path(self._local.path)

    # The channel's side

    def headers_received(self, method: bytes, raw_target: bytes, length: int | None) -> Refusal | None:
        """
        The header block is in; the body is not.

        :param length: of the body; ``None`` for chunks.
        :return: ``None`` to go on.
        """
        self.method, self.uri = method, raw_target
        try:
            local = target.parse(raw_target)
        except target.BadTarget:
            # Rendering says so, to a client that has sent its whole request.
            local = None
        self._local = local
        if self.channel.is_guest and (local is None or local.path.decode("ascii") not in UNCOUNTED_PAGES):
            return self.channel.site.full()
        if local is not None and self.front.forwards(local):
            self.flight = self.front.new_flight(
                method, local, self.request_id, self.requestHeaders, self.channel.getPeer(), self._cut
            )
            self.flight.body_gone = self._hold.release
        self._limit = self.front.body_limit(local)
        if length is not None and length > self._limit:
            return self._too_large()
        if length and not self.front.bodies.fits(length):
            return self.front.bodies.refusal()
        return None if self.flight is None else self.front.limit(self.flight, self.requestHeaders)

    def gotLength(self, length: int | None) -> None:
        # Twisted would open a temporary file for a large body.
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        size = self._received.append(data)
        if size > self._limit:
            self.channel.refuse(self._too_large())
        elif not self._hold.grow(len(data)):
            self.channel.refuse(self.front.bodies.refusal())
        elif self.flight is not None:
            self.flight.body_bytes = size
            if self.flight.tap is not None:
                self.flight.tap.asked(data)

    def _too_large(self) -> Refusal:
        return Refusal(
            413,
            "request_too_large",
            f"The request body is larger than this proxy takes ({self._limit} bytes, MAX_BODY_BYTES).",
        )

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.body = self._received.take() if announces_body(self.requestHeaders) else None
        self.method, self.uri, self.clientproto = command, path, version
        self.path, _, query = path.partition(b"?")
        if self.flight is None:
            self.parseCookies()
            self.content = BytesIO(self.body or b"")
            self.args = http.parse_qs(query, 1)
        else:
            self.args = {}
            if self.flight.tap is not None:
                self.flight.tap.read(self.front.clock.seconds())
        self.process()

    def process(self) -> None:
        if self.flight is None and self.uri != b"*":
            super().process()
            return
        # What Twisted does on the way to a resource, the answers of upstreams have no use for: `Date`, `Server`,
        # percent-decoded segments.
        self.site = self.channel.site
        self.prepath = []
        self.postpath = []
        try:
            self.site.resource.render(self)
        except Exception:  # noqa: BLE001 - as in `server.Request.process`
            self.processingFailed(Failure())

    def processingFailed(self, reason: Failure) -> Failure:
        """Twisted's answer is HTML; and once the answer has begun, it would look whole."""
        log.failure("handling {method} {path} failed", reason, method=self.method, path=self.path)
        if self.flight is not None:
            self.flight.verdict = self.flight.verdict or Verdict.FAILED
        if self.startedWriting:
            cut(self)
        elif not self._disconnected:
            answer_error(self, 500, "api_error", OUR_MISTAKE, self.request_id, openai_client=self.from_openai_client)
        return reason

    def write(self, data: bytes) -> None:
        if not self.startedWriting:
            if self.front.drain.draining:
                self.responseHeaders.setRawHeaders(b"Connection", [b"close"])
                self.channel.persistent = False
            super().write(data)
        elif data and not self._disconnected:
            # What Twisted does for a piece of a body that has begun, without the questions about its beginning. (Where
            # there is to be no body, it has put a function that does nothing in the place of this one.)
            self.sentLength += len(data)
            self.channel.write_pieces(chunk(data) if self.chunked else (data,))

    def finish(self) -> None:
        channel = self.channel
        super().finish()
        if self.flight is None:
            self._hold.release()
            self._log_page(self.code, self.sentLength)
            return
        flight = self.flight
        flight.status = self.code
        if not flight.sent_bytes:
            flight.sent_bytes = self.sentLength
        # All of it is written: nothing is left to be cut, but some of it may have to be waited for.
        flight.on_cut = lambda reason, verdict: None
        channel.when_sent(lambda verdict: self._sent(flight, verdict))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        # It has this request for its consumer.
        self.producer = None
        self._received.take()
        self._hold.release()
        if self.flight is not None:
            if self.startedWriting:
                self.flight.status = self.code
            self._over(self.flight, Verdict.CLIENT_GONE)

    def refused(self, status: int, error_type: str, message: str, body: bytes) -> None:
        """The channel has answered in our place."""
        self._received.take()
        self._hold.release()
        sent = len(body)
        if self.flight is not None:
            self.flight.status = status
            self.flight.error = (error_type, message)
            self.flight.sent_bytes = sent
            if self.flight.tap is not None:
                self.flight.tap.answered(body, self.front.clock.seconds())
            self._over(self.flight, Verdict.REFUSED)
        else:
            self._log_page(status, sent)

    # Inside

    def _cut(self, reason: str, verdict: Verdict) -> None:
        """Until it is forwarded: the request is still arriving."""
        if self.flight is not None:
            self.flight.verdict = verdict
        self.channel.refuse(Refusal(*TOLD_WHEN_CUT[verdict], reason))

    def _sent(self, flight: Flight, verdict: Verdict) -> None:
        """What was written is out; or it never will be, whatever was found before."""
        if verdict is not Verdict.COMPLETE:
            flight.verdict = verdict
        self._over(flight, Verdict.COMPLETE)

    def _over(self, flight: Flight, verdict: Verdict) -> None:
        """The last byte is out, or nobody is there to take it."""
        self.flight = None
        self.front.close(flight, verdict)

    def _log_page(self, status: int, sent: int) -> None:
        """The access line of a request that is not forwarded. A target that none can be may hold anything: `-`."""
        path = "-" if self._local is None else self._local.path.decode("ascii")
        if path in UNCOUNTED_PAGES:
            return
        now = self.front.clock.seconds()
        Flight(
            request_id=self.request_id,
            method=self.method.decode("ascii", "replace"),
            path=path,
            query=None,
            received_at=self.received_at,
            on_cut=self._cut,
            status=status,
            sent_bytes=sent,
            first_byte_at=now,
            verdict=Verdict.COMPLETE if status < 400 else Verdict.REFUSED,
        ).log_access(now)
