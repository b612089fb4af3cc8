"""
What a request's spans need of it while it passes.

Tokens are read in an excerpt of the answer, a few kilobytes at its beginning and its end, when the request is over:
that takes an append for each piece of a stream. The recorder reads them, too, in whole bodies and in a process of its
own; but it may be off, or behind for as long as its store is away, and a span that comes an hour late is of no use. A
request that is not sampled has none of this: its tap is the recorder's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.web.http_headers import Headers

from ..record.digest import AnswerDigest, read_answer
from ..record.excerpt import Excerpt
from ..relay.flight import Flight, Tap, Verdict
from ..wire.headers import is_event_stream
from .attributes import Asked, is_inference


class NoTap:
    """Nothing is recorded."""

    def asked(self, *_: Any) -> None:
        """Not kept."""

    read = forwarded = routed = connected = head = received = answered = closed = asked


class TraceTap:
    """
    A tap before the one that records.

    :param inner: that one. :param seconds: the reactor's clock.
    :param over: is called when the request is over, with it, this, and the time.
    """

    __slots__ = (
        "_begun_at",
        "_content_type",
        "_excerpt",
        "_first",
        "_folded",
        "_inference",
        "_last",
        "_over",
        "_provider",
        "_record_answered",
        "_record_closed",
        "_record_head",
        "_record_received",
        "_record_routed",
        "_seconds",
        "_status",
        "asked",
        "connected",
        "forwarded",
        "read",
    )

    def __init__(
        self,
        flight: Flight,
        inner: Tap,
        seconds: Callable[[], float],
        over: Callable[[Flight, TraceTap, float], None],
    ) -> None:
        self._seconds = seconds
        self._over = over
        self._inference = is_inference(flight.method, flight.path)
        self._provider: str | None = None
        self._begun_at = 0.0
        self._status: int | None = None
        self._content_type = ""
        self._excerpt: Excerpt | None = None
        self._folded = False
        # When the first and the last of the answer's body came.
        self._first: float | None = None
        self._last = 0.0
        # As attributes: to call these is to call the recorder's.
        self.asked, self.read = inner.asked, inner.read
        self.forwarded, self.connected = inner.forwarded, inner.connected
        self._record_routed, self._record_head = inner.routed, inner.head
        self._record_received, self._record_answered = inner.received, inner.answered
        self._record_closed = inner.closed

    def routed(self, provider: str, model: str | None) -> None:
        self._provider = provider
        self._begun_at = self._seconds()
        self._record_routed(provider, model)

    def head(self, status: int, fields: Headers, now: float) -> None:
        self._status = status
        self._last = now
        self._content_type = fields.getRawHeaders(b"Content-Type", [b""])[0].decode("latin-1")
        if self._inference:
            self._excerpt = Excerpt(event_stream=self._streamed)
        self._record_head(status, fields, now)

    def received(self, data: bytes, now: float) -> None:
        if not self._folded:
            # What the client was told until now, if anything, were blanks to keep it waiting.
            self._folded = True
            if self._excerpt is not None:
                self._excerpt = Excerpt(event_stream=self._streamed)
        self._note(data, now)
        self._record_received(data, now)

    def answered(self, data: bytes, now: float) -> None:
        # The hot path: what `_note` does, without the call.
        if not self._folded:
            self._last = now
            if self._first is None:
                self._first = now
            if self._excerpt is not None:
                self._excerpt.append(data)
        self._record_answered(data, now)

    def closed(self, flight: Flight, now: float) -> None:
        try:
            self._record_closed(flight, now)
        finally:
            self._over(flight, self, now)

    def _note(self, data: bytes, now: float) -> None:
        self._last = now
        if self._first is None:
            self._first = now
        if self._excerpt is not None:
            self._excerpt.append(data)

    @property
    def _streamed(self) -> bool:
        return is_event_stream(self._content_type.encode("latin-1"))

    # When it is over

    @property
    def was_routed(self) -> bool:
        """Whether an upstream was to be asked."""
        return self._provider is not None

    def found(self, path: str) -> Asked | None:
        """The upstream's side, if there is one: reads what the answer says."""
        if self._provider is None:
            return None
        answer: AnswerDigest | None = None
        if self._excerpt is not None:
            answer = read_answer(self._excerpt.read(), self._content_type, self._status, path)
        answered = self._status is not None
        return Asked(
            provider=self._provider,
            status=self._status,
            streamed=answered and self._streamed,
            waited=self._first - self._begun_at if answered and self._first is not None else None,
            answer=answer,
        )

    def times(self, flight: Flight, now: float) -> tuple[float, float]:
        """
        When the upstream was asked, and when it had answered, by the reactor's clock.

        A client that takes its time is no matter of the upstream's. What did not come to its end ended now.
        """
        whole = self._status is not None and flight.verdict is Verdict.COMPLETE
        return self._begun_at, max(self._last, self._begun_at) if whole else now
