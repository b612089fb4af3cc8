"""
The upstream side of the wire: an `IAgent` for one origin, over persistent HTTP/1.1 connections.

It differs from ``twisted.web.client.Agent`` where a proxy needs it to: a connection attempt that sent nothing
is told apart from a request that may have been received (a TLS handshake counts to the former); nothing is
retried, followed, decoded or added; ``HEAD`` and 304 keep their ``Content-Length``; leaving closes at once,
in every phase and over TLS; and all chunks of one read are delivered as one.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import cast

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IHandshakeListener,
    IProducer,
    IProtocol,
    IPushProducer,
    IReactorTime,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from twisted.web.client import (
    RequestGenerationFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from ..fields import headers_of, lines_of
from ..wire.http1 import Framing, Head, ProtocolError, Received, ResponseReader
from .transports import abort, chunk, write_now

IDLE_TIMEOUT = 50.0
"""Seconds that an unused connection is kept: below the 60 s that common servers and balancers keep theirs."""

MAX_IDLE = 256
"""Unused connections that are kept. There is no limit on those in use."""

CONNECT_TIMEOUT = 10.0
"""Seconds for name look-up, TCP and TLS handshake of one connection attempt."""

CLOSE_TIMEOUT = 1.0
"""Seconds that closing waits for the peers' close_notify."""


# Computed once: flags are an enumeration, and combining its members is slow.
_LOOK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)


class ConnectTimeout(Exception):
    """No connection within `CONNECT_TIMEOUT`. Nothing was sent."""


@implementer(IResponse, IPushProducer)
class Response:
    """
    One answer, and the transport of whoever takes its body.

    What arrives before ``deliverBody`` waits here while the connection is paused.

    :ivar length: what ``Content-Length`` said, also for HEAD and 304, or ``UNKNOWN_LENGTH``.
    """

    request = None
    previousResponse = None
    tells_end_of_read = True
    """Protocols with a method ``read_ended`` are called there, once, behind the head and what came with it."""

    def __init__(self, connection: UpstreamConnection, head: Head, length: int | None) -> None:
        self._connection: UpstreamConnection | None = connection
        self._protocol: IProtocol | None = None
        self._early: list[bytes] = []
        self._ended: Failure | None = None
        self.version = (b"HTTP", 1, head.minor_version)
        self.code = head.status
        self.phrase = head.reason
        self.headers = headers_of(head.fields)
        self.length = UNKNOWN_LENGTH if length is None else length

    def setPreviousResponse(self, response: IResponse) -> None:
        raise NotImplementedError("redirects are not followed")

    def deliverBody(self, protocol: IProtocol) -> None:
        """Give the body to a protocol; another one that takes over gets what is still to come."""
        self._protocol = protocol
        protocol.makeConnection(cast("ITransport", self))
        early, self._early = self._early, []
        for data in early:
            protocol.dataReceived(data)
        if self._ended is not None:
            self._tell_end(self._ended)
        elif early:
            self.resumeProducing()

    # From the connection

    def data_received(self, data: bytes) -> None:
        if not data:
            return
        if self._protocol is not None:
            self._protocol.dataReceived(data)
        else:
            self._early.append(data)
            self.pauseProducing()

    def read_ended(self) -> None:
        tell = getattr(self._protocol, "read_ended", None)
        if tell is not None:
            tell()

    def ended(self, reason: Failure) -> None:
        self._connection = None
        self._ended = reason
        self._tell_end(reason)

    def _tell_end(self, reason: Failure) -> None:
        # It has us for its transport: to know it any longer would keep both until garbage is collected.
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.connectionLost(reason)

    # To the connection; after the end there is nothing left to pause or stop.

    def pauseProducing(self) -> None:
        if self._connection is not None:
            self._connection.pause_reading()

    def resumeProducing(self) -> None:
        if self._connection is not None:
            self._connection.resume_reading()

    def stopProducing(self) -> None:
        if self._connection is not None:
            self._connection.abort()

    loseConnection = stopProducing
    abortConnection = stopProducing


_RESPONSE_DONE = Failure(ResponseDone("the response is complete"))


@implementer(IHandshakeListener, IConsumer)
class UpstreamConnection(Protocol):
    """
    One connection: connecting → idle ⇄ (sending → waiting for the head → body) → closed.

    :param established: called once, when requests can be sent: connected, and over TLS with a finished handshake.
    :param released: called when a response is complete and another request may follow.
    :param lost: called when the connection is gone.
    """

    transport: ITransport

    def __init__(
        self,
        *,
        tls: bool,
        established: Callable[[UpstreamConnection], None],
        released: Callable[[UpstreamConnection], None],
        lost: Callable[[UpstreamConnection, Failure], None],
    ) -> None:
        self._tls = tls
        self._established = established
        self._released = released
        self._lost = lost
        self._reader: ResponseReader | None = None
        self._answer: Deferred[IResponse] | None = None
        self._response: Response | None = None
        self._uploading: IBodyProducer | None = None
        self._chunked = False
        self._head = b""
        self._registered = False
        self._paused = False
        self._closed = False
        self.idle_since = 0.0

    # Twisted calls these

    def connectionMade(self) -> None:
        set_no_delay = getattr(self.transport, "setTcpNoDelay", None)
        if set_no_delay is not None:
            set_no_delay(True)
        if not self._tls:
            if isinstance(self.transport, Connection):
                # The endpoint's wrapper has done its work; every read would go through it.
                self.transport.protocol = self
            self._established(self)

    def handshakeCompleted(self) -> None:
        self._established(self)

    def dataReceived(self, data: bytes) -> None:
        reader = self._reader
        if reader is None:
            # Nobody asked: the next answer could not be told from this one.
            self.abort()
            return
        try:
            received = reader.receive(data)
        except ProtocolError as fault:
            if fault.received is not None:
                self._take(reader, fault.received)
            self._fail(Failure(fault))
        else:
            response = self._response
            if response is not None and not received.complete:
                # In the middle of a body.
                response.data_received(received.body)
            else:
                self._take(reader, received)

    def _take(self, reader: ResponseReader, received: Received) -> None:
        head, body, complete = received
        if head is not None:
            length = None if reader.framing is Framing.CHUNKED else reader.content_length
            self._response = response = Response(self, head, length)
            answer, self._answer = self._answer, None
            assert answer is not None
            answer.callback(response)
        if self._response is not None:
            self._response.data_received(body)
        if complete and self._response is not None:
            self._complete(reader)
        elif head is not None and self._response is not None:
            self._response.read_ended()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._closed = True
        reader, self._reader = self._reader, None
        if reader is not None and self._response is not None and reader.eof() and reason.check(ConnectionDone):
            self._stop_upload()
            response, self._response = self._response, None
            response.ended(Failure(PotentialDataLoss()))
        else:
            self._fail(reason)
        self._lost(self, reason)

    # IConsumer, for the body's producer

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._registered = True
        cast("IConsumer", self.transport).registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        if self._registered:
            self._registered = False
            cast("IConsumer", self.transport).unregisterProducer()

    def write(self, data: bytes) -> None:
        if self._uploading is None or not data:
            return
        pieces: tuple[bytes, ...] = chunk(data) if self._chunked else (data,)
        if self._head:
            pieces = (self._head, *pieces)
            self._head = b""
        write_now(self.transport, pieces)

    # The agent calls these

    def send(self, method: bytes, target: bytes, fields: bytes, body: IBodyProducer | None) -> Deferred[IResponse]:
        """
        Send one request. To cancel the Deferred closes the connection.

        :param fields: the header lines, each with its CRLF; framing is added here.
        """
        assert self._reader is None
        self._reader = ResponseReader(method=method)
        self._response = None
        answer: Deferred[IResponse] = Deferred(lambda _: self._fail(Failure(CancelledError())))
        self._answer = answer
        self._chunked = False
        if body is None:
            framing = b"" if method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE") else b"Content-Length: 0\r\n"
        elif body.length is UNKNOWN_LENGTH:
            framing, self._chunked = b"Transfer-Encoding: chunked\r\n", True
        else:
            framing = b"Content-Length: %d\r\n" % (body.length,)
        head = b"%b %b HTTP/1.1\r\n%b%b\r\n" % (method, target, fields, framing)
        if body is None:
            write_now(self.transport, (head,))
        else:
            self._head = head
            self._uploading = body
            body.startProducing(cast("IConsumer", self)).addCallbacks(self._uploaded, self._upload_failed, (body,))
        return answer

    def is_stale(self) -> bool:
        """Whether an idle connection turns out to be closed, or to hold bytes that nobody asked for."""
        handle = getattr(self.transport, "getHandle", lambda: None)()
        if self._closed or handle is None:
            return self._closed
        if isinstance(handle, SSL.Connection):
            # What waits there may be a close_notify that nobody has read yet.
            handle = getattr(getattr(self.transport, "transport", None), "socket", None)
        if not isinstance(handle, socket.socket):
            return False
        try:
            handle.recv(1, _LOOK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        """Close an idle connection politely."""
        self.transport.loseConnection()

    def abort(self) -> None:
        """Close at once, whatever is under way, and never wait for the peer: over TLS neither."""
        self._fail(Failure(ConnectionDone("closed by the proxy")))

    def pause_reading(self) -> None:
        if not self._paused and not self._closed:
            self._paused = True
            cast("IPushProducer", self.transport).pauseProducing()

    def resume_reading(self) -> None:
        if self._paused and not self._closed:
            self._paused = False
            cast("IPushProducer", self.transport).resumeProducing()

    # Inside

    def _uploaded(self, _: object, body: IBodyProducer) -> None:
        if self._uploading is not body:
            return
        last = self._head if not self._chunked else self._head + b"0\r\n\r\n"
        self._head = b""
        if last:
            write_now(self.transport, (last,))
        self._uploading = None
        self.unregisterProducer()

    def _upload_failed(self, reason: Failure) -> None:
        if self._uploading is not None:
            self._fail(reason, RequestGenerationFailed)

    def _stop_upload(self) -> None:
        body, self._uploading = self._uploading, None
        if body is not None:
            self.unregisterProducer()
            body.stopProducing()

    def _abort_transport(self) -> None:
        if not self._closed:
            self._closed = True
            abort(self.transport)

    def _complete(self, reader: ResponseReader) -> None:
        uploading = self._uploading is not None
        self._stop_upload()
        self._reader = None
        response, self._response = self._response, None
        if uploading or not reader.keep_alive or reader.unread:
            self._abort_transport()
        else:
            self.resume_reading()
            self._released(self)
        assert response is not None
        response.ended(_RESPONSE_DONE)

    def _fail(self, reason: Failure, wrapper: type[Exception] | None = None) -> None:
        self._stop_upload()
        self._reader = None
        self._abort_transport()
        answer, self._answer = self._answer, None
        response, self._response = self._response, None
        if answer is not None and not answer.called:
            answer.errback(Failure((wrapper or ResponseNeverReceived)([reason])))
        if response is not None:
            response.ended(Failure(ResponseFailed([reason])))


@implementer(IAgent)
class OriginAgent:
    """
    Sends requests to one origin.

    Fails with the endpoint's own error or `ConnectTimeout` when nothing was sent, with ``ResponseNeverReceived`` or
    ``RequestGenerationFailed`` when the request may have been received.

    :param origin: scheme and authority, as the URIs of requests begin; the authority is sent as ``Host``.
    """

    def __init__(self, clock: IReactorTime, endpoint: IStreamClientEndpoint, origin: bytes) -> None:
        self._clock = clock
        self._endpoint = endpoint
        self._origin = origin
        self._tls = origin.startswith(b"https:")
        self._host = b"Host: " + origin.partition(b"://")[2] + b"\r\n"
        self._idle: deque[UpstreamConnection] = deque()
        self._all: set[UpstreamConnection] = set()
        self._sweeper: IDelayedCall | None = None
        self._closed = False
        self._all_lost: Deferred[None] | None = None

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        if not uri.startswith(self._origin + b"/"):
            return fail(ValueError(f"this agent speaks to {self._origin.decode('ascii')} only"))
        target = uri[len(self._origin) :]
        fields = b"".join([self._host, *([] if headers is None else lines_of(headers))])
        while self._idle:
            # The one that was used last is the least likely to be closed by the peer.
            connection = self._idle.pop()
            if not connection.is_stale():
                return connection.send(method, target, fields, bodyProducer)
            connection.abort()
        return self._connect().addCallback(lambda connected: connected.send(method, target, fields, bodyProducer))

    @property
    def connections(self) -> dict[str, int]:
        """How many are ``in_use``, those included that are about to be, and how many ``idle``."""
        return {"in_use": len(self._all) - len(self._idle), "idle": len(self._idle)}

    def close(self) -> Deferred[None]:
        """Close every connection; fires when they are gone."""
        self._closed = True
        done: Deferred[None] = Deferred()
        if not self._all:
            done.callback(None)
            return done
        self._all_lost = done
        for connection in list(self._all):
            if connection in self._idle:
                connection.close()
            else:
                connection.abort()
        self._idle.clear()
        late = self._clock.callLater(CLOSE_TIMEOUT, self._abort_all)
        return done.addCallback(lambda _: late.cancel() if late.active() else None)

    def _abort_all(self) -> None:
        for connection in list(self._all):
            connection.abort()

    def _connect(self) -> Deferred[UpstreamConnection]:
        # What may have to be given up. Each knows these functions: it is forgotten as soon as that is settled.
        opened: list[UpstreamConnection] = []

        def stop_timer() -> None:
            if timer.active():
                timer.cancel()

        def abandon() -> None:
            stop_timer()
            attempt.cancel()
            for connection in opened:
                connection.abort()

        def time_out() -> None:
            connected.errback(Failure(ConnectTimeout("no connection, or no TLS handshake, in time")))
            abandon()

        def cancelled(_: object) -> None:
            # First, as some endpoints fail otherwise when they are: with a name that they did not find.
            connected.errback(Failure(CancelledError()))
            abandon()

        def established(connection: UpstreamConnection) -> None:
            if connected.called:
                connection.abort()
                return
            stop_timer()
            opened.clear()
            connected.callback(connection)

        def failed(reason: Failure) -> None:
            if not connected.called:
                stop_timer()
                connected.errback(reason)

        def lost(connection: UpstreamConnection, reason: Failure) -> None:
            # Before it was established: the TLS handshake failed.
            failed(reason)
            opened.clear()
            self._forget(connection)

        def build() -> UpstreamConnection:
            connection = UpstreamConnection(tls=self._tls, established=established, released=self._release, lost=lost)
            opened.append(connection)
            self._all.add(connection)
            return connection

        connected: Deferred[UpstreamConnection] = Deferred(cancelled)
        timer = self._clock.callLater(CONNECT_TIMEOUT, time_out)
        factory = Factory.forProtocol(build)
        factory.noisy = False
        attempt = self._endpoint.connect(factory)
        attempt.addCallbacks(lambda _: None, failed)
        return connected

    def _release(self, connection: UpstreamConnection) -> None:
        if self._closed:
            connection.close()
            return
        connection.idle_since = self._clock.seconds()
        self._idle.append(connection)
        if len(self._idle) > MAX_IDLE:
            self._idle.popleft().close()
        if self._sweeper is None:
            self._sweeper = self._clock.callLater(IDLE_TIMEOUT, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        now = self._clock.seconds()
        while self._idle and now - self._idle[0].idle_since >= IDLE_TIMEOUT:
            self._idle.popleft().close()
        if self._idle:
            self._sweeper = self._clock.callLater(self._idle[0].idle_since + IDLE_TIMEOUT - now, self._sweep)

    def _forget(self, connection: UpstreamConnection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if not self._idle and self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        if self._closed and not self._all and self._all_lost is not None:
            done, self._all_lost = self._all_lost, None
            done.callback(None)
