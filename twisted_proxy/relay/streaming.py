"""
An answer on its way down: each chunk written as it came, backpressure, silence, and one verdict at the end.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime, ITransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss, Request
from twisted.web.iweb import IResponse
from zope.interface import implementer

from ..wire import sse
from .flight import Flight, Verdict
from .transports import abort, unsent_bytes

log = Logger()


SHORTEST_WAIT = 0.001
"""Seconds. Rounding may leave less than a timer can measure."""


class _Client(enum.Enum):
    FLOWING = enum.auto()
    HELD = enum.auto()
    GONE = enum.auto()


class _Upstream(enum.Enum):
    BODY = enum.auto()
    ENDED = enum.auto()
    """The whole answer is here, and the client still holds back its end."""
    CLOSED = enum.auto()


def cut(request: Request) -> None:
    """
    End an answer in the middle so that its client sees that it is not whole.

    What is queued still goes out; then the connection is closed by FIN, short of the last chunk or of
    Content-Length. An answer without either would look whole after a FIN: that one is reset.
    """
    if getattr(request, "channel", None) is None:
        return
    if request.startedWriting and not request.chunked and not request.responseHeaders.hasHeader(b"Content-Length"):
        abort(cast("ITransport", request.transport))
    else:
        request.loseConnection()


class _Refusal(Protocol):
    """Takes no body."""

    def connectionMade(self) -> None:
        cast("IPushProducer", self.transport).stopProducing()


def stop_body(response: IResponse) -> None:
    """Close the connection of a response whose body nobody takes, or nobody takes to its end."""
    response.deliverBody(_Refusal())


@implementer(IPushProducer)
class Relay(Protocol):
    """
    Takes the body of a response and writes it to a request whose head is set.

    Client: flowing ⇄ held → gone. Upstream: body → ended → closed. Fires :attr:`verdict` once; by then the answer is
    finished, or being cut.

    :param silence: seconds without a byte in the middle of the body, while the client takes what comes; 0 = no limit.
    :param stall: seconds without progress towards a client that holds us back; 0 = no limit.
    :param event_stream: whether the body is server-sent events.
    :param farewell: makes the event that tells a client why its stream ends in the middle.
    :param framed: whether chunks or a length show the end of the body, and not just the end of the connection.
    """

    def __init__(
        self,
        clock: IReactorTime,
        request: Request,
        flight: Flight,
        *,
        silence: float,
        stall: float,
        event_stream: bool,
        framed: bool,
        farewell: Callable[[str, Verdict], bytes],
    ) -> None:
        self._clock = clock
        self._request = request
        self._flight = flight
        self._tap = flight.tap
        self._silence = silence
        self._stall = stall
        self._farewell = farewell
        self._client = _Client.FLOWING
        self._upstream = _Upstream.BODY
        self._timer: IDelayedCall | None = None
        self._unsent = 0
        self._heard_at = 0.0
        self._boundary = sse.Boundary() if event_stream else None
        self._ending = sse.Ending() if event_stream and not framed else None
        self.verdict: Deferred[Verdict] = Deferred()

    # The upstream's body

    def connectionMade(self) -> None:
        self._request.registerProducer(self, True)
        if not getattr(self.transport, "tells_end_of_read", False):
            self.read_ended()

    def read_ended(self) -> None:
        """What came with the head was delivered. There will be silence, or more; the head does not wait for it."""
        if self._upstream is _Upstream.BODY and self._client is _Client.FLOWING:
            self._watch_silence()
        flush = getattr(getattr(self._request, "channel", None), "flush_head", None)
        if flush is not None:
            flush()

    def dataReceived(self, data: bytes) -> None:
        if self._upstream is not _Upstream.BODY:
            return
        flight = self._flight
        self._heard_at = now = self._clock.seconds()
        if flight.first_byte_at is None:
            flight.first_byte_at = now
        flight.sent_bytes += len(data)
        if self._tap is not None:
            self._tap.answered(data, now)
        if self._boundary is not None:
            self._boundary.follow(data)
            if self._ending is not None:
                self._ending.follow(data)
        self._request.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._upstream is not _Upstream.BODY:
            return
        if reason.check(ResponseDone) or (reason.check(PotentialDataLoss) and self._is_whole()):
            self._upstream = _Upstream.ENDED
            if self._client is _Client.FLOWING:
                self._finish()
            # Held: what was written is not out. The last chunk follows it.
            return
        self._end(Verdict.TRUNCATED)

    # The client, as a consumer

    def pauseProducing(self) -> None:
        if self._client is not _Client.FLOWING:
            return
        self._client = _Client.HELD
        if self._upstream is _Upstream.BODY:
            self._producer.pauseProducing()
        # A client that takes nothing looks like a silent upstream: one clock stops, the other starts.
        self._watch_stall()

    def resumeProducing(self) -> None:
        if self._client is not _Client.HELD:
            return
        self._client = _Client.FLOWING
        if self._upstream is _Upstream.ENDED:
            self._finish()
        elif self._upstream is _Upstream.BODY:
            self._watch_silence()
            self._producer.resumeProducing()

    def stopProducing(self) -> None:
        """The client's connection is lost. Also called by whoever else learns of it; the first call counts."""
        if self._client is not _Client.GONE:
            self._client = _Client.GONE
            self._end(Verdict.CLIENT_GONE)

    def kill(self, reason: str, verdict: Verdict) -> None:
        """
        Cut the answer now.

        An event stream that stands between two events is told why, by an event: unless that would be taken for a part
        of something else, of an encoded body or of one whose length was told.
        """
        if self._upstream is _Upstream.ENDED:
            # All of it is written, only not sent.
            self._finish()
        if self._upstream is _Upstream.CLOSED:
            return
        fields = self._request.responseHeaders
        plain = not fields.hasHeader(b"Content-Length") and not fields.hasHeader(b"Content-Encoding")
        if plain and self._boundary is not None and self._boundary.at_boundary:
            told = self._farewell(reason, verdict)
            if self._tap is not None:
                self._tap.answered(told, self._clock.seconds())
            self._request.write(told)
        self._end(verdict)

    # Inside

    @property
    def _producer(self) -> IPushProducer:
        return cast("IPushProducer", self.transport)

    def _is_whole(self) -> bool:
        """
        Whether a body that ended with its connection can be taken for whole.

        Nothing in HTTP shows it. Of an event stream the last event does.
        """
        return self._boundary is None or (self._ending is not None and self._ending.proper)

    def _set_timer(self, delay: float, act: Callable[[], None] | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay and act is not None:
            self._timer = self._clock.callLater(delay, act)

    def _watch_silence(self) -> None:
        self._heard_at = self._clock.seconds()
        self._set_timer(self._silence, self._silent)

    def _watch_stall(self) -> None:
        self._unsent = self._count_unsent()
        self._set_timer(self._stall, self._stalled)

    def _count_unsent(self) -> int:
        return unsent_bytes(getattr(self._request, "transport", None))

    def _silent(self) -> None:
        self._timer = None
        # Each piece leaves its time; to reset the timer for each would cost more.
        left = self._heard_at + self._silence - self._clock.seconds()
        if left > 0:
            self._set_timer(max(left, SHORTEST_WAIT), self._silent)
        else:
            self._end(Verdict.SILENT)

    def _stalled(self) -> None:
        self._timer = None
        before = self._unsent
        if self._count_unsent() < before:
            # Slow, but it takes something.
            self._watch_stall()
            return
        self._end(Verdict.CLIENT_STALLED)

    def _finish(self) -> None:
        self._upstream = _Upstream.CLOSED
        self._flight.verdict = Verdict.COMPLETE
        self._set_timer(0)
        self._request.unregisterProducer()
        self._request.finish()
        self.verdict.callback(Verdict.COMPLETE)

    def _end(self, verdict: Verdict) -> None:
        """Stop both sides; only what is whole is finished."""
        if self._upstream is _Upstream.CLOSED:
            return
        reading, self._upstream = self._upstream is _Upstream.BODY, _Upstream.CLOSED
        self._flight.verdict = verdict
        self._set_timer(0)
        if reading and verdict is not Verdict.TRUNCATED:
            self._producer.stopProducing()
        if self._client is not _Client.GONE:
            self._client = _Client.GONE
            self._request.unregisterProducer()
            if verdict is Verdict.CLIENT_STALLED:
                abort(cast("ITransport", self._request.transport))
            else:
                cut(self._request)
        self.verdict.callback(verdict)
