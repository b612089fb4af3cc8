"""Requests in flight, in the words of the API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.interfaces import IReactorTime

from ...record.live import Live, LiveTap
from ...record.live_text import Block
from ...relay.flight import Flight
from ...runtime import Gauge, InFlightRequest
from .calls import show_time

Json = dict[str, Any]

MOST_SHOWN = 500
"""Requests in flight that are shown."""
SHOWN_TEXT = 16 * 1024
"""Characters of a block's text that are shown when its request is shown as a whole."""


class InFlight:
    """
    What the gauge counts, as far as it is shown.

    :param wall_clock: seconds since the Unix epoch.
    """

    def __init__(self, clock: IReactorTime, live: Live, gauge: Gauge, wall_clock: Callable[[], float]) -> None:
        self._clock = clock
        self._live = live
        self._gauge = gauge
        self._wall_clock = wall_clock

    @property
    def shown(self) -> list[InFlightRequest]:
        """The oldest first."""
        return self._gauge.oldest(MOST_SHOWN)

    @property
    def ids(self) -> frozenset[str]:
        """Of all of them."""
        return frozenset([request.request_id for request in self._gauge.oldest()])

    def find(self, request_id: str) -> InFlightRequest | None:
        return next((each for each in self._gauge.oldest() if each.request_id == request_id), None)

    def state(self, request: InFlightRequest, tap: LiveTap | None) -> tuple[object, ...]:
        """What a watcher is shown anew for when it changes."""
        flight = cast("Flight", request)
        return (
            _phase(flight, tap),
            flight.provider,
            flight.routed_model,
            flight.demoted,
            tap is not None and tap.text is not None and tap.text.partial,
        )

    def numbers(self, request: InFlightRequest) -> Json:
        """As in ``LiveNumbers``."""
        flight = cast("Flight", request)
        tap = self._live.find(flight.request_id)
        now = self._clock.seconds()
        first = flight.first_byte_at
        tokens = None if tap is None or tap.text is None else tap.text.tokens
        speed = None
        if first is not None and tokens and now - first >= 0.2:
            speed = round(tokens / (now - first), 1)
        return {
            "requestId": flight.request_id,
            "ageMs": round((now - flight.received_at) * 1000),
            "phase": _phase(flight, tap),
            "status": flight.status or (None if tap is None else tap.status),
            "ttftMs": None if first is None else round((first - flight.received_at) * 1000, 3),
            "responseBytes": flight.sent_bytes,
            "outputTokens": tokens,
            "tokensPerSecond": speed,
        }

    def describe(self, request: InFlightRequest) -> Json:
        """``Flight``."""
        flight = cast("Flight", request)
        tap = self._live.find(flight.request_id)
        text = None if tap is None else tap.text
        origin = None if tap is None else tap.origin
        summary = flight.summary
        age = self._clock.seconds() - flight.received_at
        model = flight.model
        return self.numbers(flight) | {
            "timestamp": show_time(int((self._wall_clock() - age) * 1e6)),
            "method": flight.method,
            "endpoint": flight.path,
            "model": flight.routed_model or model,
            "originalModel": model,
            "provider": flight.provider,
            "session": None if origin is None else origin.session,
            "prompt": None if origin is None else origin.prompt,
            "agent": None if origin is None else origin.agent,
            "parentAgent": None if origin is None else origin.parent_agent,
            "agentType": None if origin is None else origin.agent_type,
            "requestClass": None if origin is None else origin.request_class,
            "stream": None if summary is None else summary.stream,
            "demoted": flight.demoted,
            "requestBytes": flight.body_bytes,
            "textIsPartial": text is not None and text.partial,
            "blocks": [] if text is None else [_block(block) for block in text.blocks],
        }


def _phase(flight: Flight, tap: LiveTap | None) -> str:
    if flight.first_byte_at is not None or (tap is not None and tap.status is not None):
        return "answering"
    if flight.provider is not None or (tap is not None and tap.read_at is not None):
        return "waiting"
    return "receiving"


def _block(block: Block) -> Json:
    return {
        "index": block.index,
        "kind": block.kind,
        "name": block.name,
        "text": block.text[-SHOWN_TEXT:],
    }
