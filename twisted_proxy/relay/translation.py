"""
An answer in another API's terms: as it comes, or whole.
"""

from __future__ import annotations

from io import BytesIO
from typing import Protocol as Interface
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime, ITransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from zope.interface import implementer

from .flight import Tap
from .upstream import FailureKind, UpstreamError

TAIL_TIMEOUT = 5.0
"""Seconds that a stream has to end after its last event; then its connection is closed."""


class StreamTranslator(Interface):
    """Bytes in, bytes out; see `wire.openai`."""

    @property
    def finished(self) -> bool: ...
    @property
    def failure(self) -> str | None: ...
    def feed(self, data: bytes) -> bytes: ...
    def finish(self) -> bytes: ...


@implementer(IPushProducer)
class Translated(Protocol):
    """
    Takes the body of a response, and hands it on translated to who would have taken it.

    Backpressure and silence are the other's, which has us for its transport. A body that ended before its last event is
    one that was cut, also where HTTP shows no cut; of one that cannot be translated, or that tells of an error, no more
    is taken.

    :param inner: takes what comes out.
    :param tap: is handed the body as it comes.
    """

    def __init__(
        self, clock: IReactorTime, translator: StreamTranslator, inner: Protocol, tap: Tap | None = None
    ) -> None:
        self._clock = clock
        self._translator = translator
        # Until the end: it has us for its transport, and both would wait for the garbage collector.
        self._inner: Protocol | None = inner
        self._tap = tap
        self._ended = False
        self._tail: IDelayedCall | None = None

    def makeConnection(self, transport: ITransport) -> None:
        super().makeConnection(transport)
        if self._inner is not None:
            self._inner.makeConnection(cast("ITransport", self))

    @property
    def tells_end_of_read(self) -> bool:
        """As of our transport."""
        return bool(getattr(self.transport, "tells_end_of_read", False))

    def read_ended(self) -> None:
        """What came with the head was delivered."""
        read_ended = getattr(self._inner, "read_ended", None)
        if read_ended is not None:
            read_ended()

    def dataReceived(self, data: bytes) -> None:
        if self._tap is not None:
            self._tap.received(data, self._clock.seconds())
        if self._ended:
            return
        self._pass_on(self._translator.feed(data))
        if not self._translator.finished:
            return
        if self._translator.failure is None:
            self._tail = self._clock.callLater(TAIL_TIMEOUT, self._producer.stopProducing)
            # What is left to be read is not for the client, and need not wait for it.
            self._producer.resumeProducing()
            self._end(Failure(ResponseDone()))
        else:
            self._ended = True
            self._producer.stopProducing()
            self._end(Failure(ResponseFailed([])))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._tail is not None and self._tail.active():
            self._tail.cancel()
        if self._ended:
            return
        self._pass_on(self._translator.finish())
        whole = self._translator.failure is None
        self._end(Failure(ResponseDone()) if whole else Failure(ResponseFailed([reason])))

    def _pass_on(self, translated: bytes) -> None:
        if translated and self._inner is not None:
            self._inner.dataReceived(translated)

    def _end(self, reason: Failure) -> None:
        self._ended = True
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.connectionLost(reason)

    # For who takes what comes out

    def pauseProducing(self) -> None:
        self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        self._producer.resumeProducing()

    def stopProducing(self) -> None:
        """Nobody wants the rest: it is not translated, and its end is not told."""
        self._ended = True
        self._inner = None
        self._producer.stopProducing()

    @property
    def _producer(self) -> IPushProducer:
        return cast("IPushProducer", self.transport)


class Collected(Protocol):
    """
    Takes the body of a response whole.

    Fires :attr:`body` once: with its bytes, or with an `UpstreamError` that says why they are not all there. Cancelling
    it closes the response's connection.

    :param limit: bytes that it may have.
    :param silence: seconds without a byte; 0 = no limit.
    :param tap: is handed the body as it comes.
    """

    def __init__(self, clock: IReactorTime, *, limit: int, silence: float, tap: Tap | None = None) -> None:
        self._clock = clock
        self._limit = limit
        self._silence = silence
        self._tap = tap
        self._timer: IDelayedCall | None = None
        self._received = BytesIO()
        self._ended = False
        self.body: Deferred[bytes] = Deferred(lambda _: self._stop())

    def connectionMade(self) -> None:
        if self._silence:
            self._timer = self._clock.callLater(self._silence, self._silent)

    def dataReceived(self, data: bytes) -> None:
        if self._ended:
            return
        if self._tap is not None:
            self._tap.received(data, self._clock.seconds())
        self._received.write(data)
        if self._timer is not None:
            self._timer.reset(self._silence)
        if self._received.tell() > self._limit:
            self._fail(
                FailureKind.TOO_LARGE,
                f"The upstream's answer is larger than {self._limit} bytes (MAX_RESPONSE_BYTES); "
                "it cannot be translated.",
            )

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._ended:
            return
        # A body that ends with its connection may be whole; if it is not, it is no JSON, which is found out next.
        if reason.check(ResponseDone, PotentialDataLoss):
            self._end()
            self.body.callback(self._received.getvalue())
        else:
            self._fail(FailureKind.TRUNCATED, "The upstream's answer was cut short.")

    def _silent(self) -> None:
        self._fail(
            FailureKind.SILENT,
            f"The upstream sent nothing for {self._silence:g} s in the middle of its answer.",
        )

    def _fail(self, kind: FailureKind, message: str) -> None:
        self._stop()
        self.body.errback(Failure(UpstreamError(kind, message)))

    def _stop(self) -> None:
        if not self._ended:
            self._end()
            cast("IPushProducer", self.transport).stopProducing()

    def _end(self) -> None:
        self._ended = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
