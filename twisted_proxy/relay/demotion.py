"""
Demotion: an event stream upstream, one JSON message downstream.

Long non-streaming requests die of the silence before their answer. Streamed, the upstream answers at once and goes on
answering; the events are folded into the message that the client asked for.
"""

from __future__ import annotations

from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss

from ..wire import body as wire_body
from ..wire.message import BadToolInput, Complete, ErrorEvent, Malformed, MessageFold, TooLarge, Truncated
from .flight import Tap
from .translation import TAIL_TIMEOUT
from .upstream import FailureKind, UpstreamError

MESSAGES = b"/v1/messages"

_KINDS = {
    Truncated: FailureKind.TRUNCATED,
    Malformed: FailureKind.MALFORMED,
    BadToolInput: FailureKind.BAD_TOOL_INPUT,
    TooLarge: FailureKind.TOO_LARGE,
}


def _words(reason: Failure) -> str:
    if reason.check(PotentialDataLoss):
        return "closed"
    failure = reason.value
    if isinstance(failure, ResponseFailed) and any(why.check(ConnectionDone) is None for why in failure.reasons):
        return "reset"
    return "cut short"


def applies_to(method: bytes, path: bytes) -> bool:
    """Whether requests of this kind can be demoted."""
    return method == b"POST" and path == MESSAGES


def rewrite(body: bytes, summary: wire_body.Summary) -> bytes | None:
    """
    The body of a request that is to be demoted, with ``"stream": true`` and every other byte as it was.

    ``None`` where it is a stream already, or no JSON object that the API takes; it goes up as it is.
    """
    if summary.stream or not summary.well_formed:
        return None
    return wire_body.replace_member(body, "stream", b"true")


class Demotion(Protocol):
    """
    Takes the body of an event stream, and folds it.

    Fires :attr:`outcome` once: with `Complete` or `ErrorEvent`, as soon as the last event is in, or with an
    `UpstreamError` that says why there is no message.

    :param silence: seconds without a byte; 0 = no limit.
    :param tap: is handed the stream as it comes.
    """

    def __init__(self, clock: IReactorTime, fold: MessageFold, *, silence: float, tap: Tap | None = None) -> None:
        self._clock = clock
        self._fold = fold
        self._silence = silence
        self._tap = tap
        self._timer: IDelayedCall | None = None
        self._ended = False
        self.outcome: Deferred[Complete | ErrorEvent] = Deferred(lambda _: self.stop())

    def connectionMade(self) -> None:
        if self._silence:
            self._timer = self._clock.callLater(self._silence, self._silent)

    def dataReceived(self, data: bytes) -> None:
        if self._tap is not None:
            self._tap.received(data, self._clock.seconds())
        if self._fold.finished:
            return
        self._fold.feed(data)
        if self._fold.finished:
            self._set_timer(TAIL_TIMEOUT)
            self._conclude()
        elif self._timer is not None:
            self._timer.reset(self._silence)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._ended:
            # By `stop`: whoever called it knows why.
            return
        self._ended = True
        self._set_timer(0)
        # That the stream ended too early, it tells itself; how its connection did, only this does.
        self._conclude("" if reason.check(ResponseDone) else f"; the connection ended before it ({_words(reason)})")

    def stop(self) -> None:
        """Take no more of the body, and close its connection."""
        self._set_timer(0)
        if not self._ended:
            self._ended = True
            cast("IPushProducer", self.transport).stopProducing()

    def _set_timer(self, delay: float) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = self._clock.callLater(delay, self.stop) if delay else None

    def _silent(self) -> None:
        self._fail(
            FailureKind.SILENT,
            f"The upstream sent nothing for {self._silence:g} s in the middle of its answer (UPSTREAM_IDLE_TIMEOUT).",
        )
        self.stop()

    def _conclude(self, how: str = "") -> None:
        if self.outcome.called:
            return
        result = self._fold.result()
        if isinstance(result, Complete | ErrorEvent):
            self.outcome.callback(result)
            return
        if isinstance(result, TooLarge):
            how = " (MAX_RESPONSE_BYTES)"
        self._fail(_KINDS[type(result)], f"The upstream's answer makes no message: {result.detail}{how}.")
        self.stop()

    def _fail(self, kind: FailureKind, message: str) -> None:
        if not self.outcome.called:
            self.outcome.errback(Failure(UpstreamError(kind, message)))
