"""``/api/live`` and ``/api/in-flight``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Final
from weakref import WeakSet

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.http import Request

from ...runtime import InFlightRequest
from ...siblings import Siblings
from ..family import Family
from .access import Guard
from .app import Route, set_head
from .calls import Call, Refusal, Reply, answer_json, fit, valid_id
from .fan_in import FanIn
from .hub import Hub, Watcher
from .in_flight import MOST_SHOWN, InFlight

log = Logger()

CUT_REASON = "The request was cut from the proxy's dashboard. Send it again if it is still wanted."

_FLIGHTS: Final = "flights"
_CUT: Final = "cut"
"""Questions."""


class _Stream:
    """The answer of ``/api/live``."""

    def __init__(self, fan_in: FanIn, guard: Guard, call: Call, seconds: Callable[[], float]) -> None:
        self._fan_in = fan_in
        self._guard = guard
        self._call = call
        self._seconds = seconds

    async def send(self, request: Request) -> None:
        watcher = Watcher(request, self._seconds())
        last_id = request.requestHeaders.getRawHeaders(b"Last-Event-ID", [b""])[0].decode("latin-1")
        if request.method == b"HEAD":
            set_head(request, 200, "text/event-stream", {"X-Accel-Buffering": "no"})
            request.finish()
            return
        set_head(request, 200, "text/event-stream", {"X-Accel-Buffering": "no"})
        undo = self._guard.when_ended(self._call.viewer, watcher.end)
        request.registerProducer(watcher, True)
        try:
            self._fan_in.enter(watcher, last_id or None)
            await watcher.done
            request.unregisterProducer()
            request.finish()
        finally:
            undo()
            self._fan_in.leave(watcher)


class LiveApi:
    """``/api/live`` and ``/api/in-flight``."""

    def __init__(
        self,
        hub: Hub,
        fan_in: FanIn,
        guard: Guard,
        in_flight: InFlight,
        family: Family,
        siblings: Siblings,
        clock: IReactorTime,
    ) -> None:
        self._hub = hub
        self._fan_in = fan_in
        self._guard = guard
        self._in_flight = in_flight
        self._family = family
        self._siblings = siblings
        self._clock = clock
        self._cut: WeakSet[InFlightRequest] = WeakSet()
        siblings.answer(_FLIGHTS, lambda _: hub.flights())
        siblings.answer(_CUT, self._cut_here)

    def routes(self) -> Sequence[Route]:
        return (
            Route(method="GET", rule="/api/live", name="live", handler=self.stream),
            Route(method="GET", rule="/api/in-flight", name="listInFlight", handler=self.in_flight),
            Route(method="POST", rule="/api/in-flight/<exchange_id>/cut", name="cutRequest", handler=self.cut),
        )

    async def stream(self, call: Call) -> _Stream:
        self._hub.check()
        return _Stream(self._fan_in, self._guard, call, self._clock.seconds)

    async def in_flight(self, call: Call) -> Reply:
        flights = [flight for flights in await self._siblings.ask(_FLIGHTS) for flight in flights]
        flights.sort(key=itemgetter("ageMs"), reverse=True)
        requests, _ = fit(flights[:MOST_SHOWN], lambda flight: flight)
        status = self._hub.in_words(await self._family.state())
        return answer_json({"requests": requests, "total": status["inFlight"], "status": status})

    async def cut(self, call: Call, exchange_id: str) -> Reply:
        valid_id(exchange_id)
        if not any(await self._siblings.ask(_CUT, exchange_id)):
            raise Refusal(404, f"{exchange_id} is not in flight, or not any more.")
        return answer_json({"requestId": exchange_id}, 202)

    def _cut_here(self, exchange_id: str) -> bool:
        request = self._in_flight.find(exchange_id)
        if request is None:
            return False
        log.info("{request_id} is cut from the dashboard", request_id=exchange_id)
        if request not in self._cut:
            # Once is enough: it may take a while until it is gone.
            self._cut.add(request)
            request.cut_by_hand(CUT_REASON)
        return True
