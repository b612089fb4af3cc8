"""The wrapper that counts what it delegates."""

from __future__ import annotations

from collections.abc import Callable

from twisted.web.http import Request

from ..relay.flight import Flight, Verdict
from ..wire.target import Target
from .front import Front

Delegate = Callable[[Request, Flight, Target], object]


class Counting:
    """
    Sees to it that a request is counted before it is handled.

    On our own site it is counted since its headers were in, and its `ProxyRequest` sees the end of it. On another's
    site, counting begins here, and ends when the request is finished or its client is gone.
    """

    def __init__(self, front: Front, delegate: Delegate) -> None:
        self._front = front
        self._delegate = delegate

    def render(self, request: Request, local: Target, request_id: str) -> object:
        flight: Flight | None = getattr(request, "flight", None)
        if flight is None:
            flight = self._front.new_flight(
                request.method,
                local,
                request_id,
                request.requestHeaders,
                request.getClientAddress(),
                lambda _: request.loseConnection(),
            )
            if flight.tap is not None:
                # On another's site, the body is here before the request is seen.
                if request.content is not None:
                    flight.tap.asked(request.content.read())
                    request.content.seek(0)
                flight.tap.read(self._front.clock.seconds())
            # Before delegating: a handler that raises must not strand the count.
            what = (request, flight)
            request.notifyFinish().addCallbacks(self._over, self._gone, callbackArgs=what, errbackArgs=what)
        return self._delegate(request, flight, local)

    def _over(self, _: object, request: Request, flight: Flight) -> None:
        flight.status = request.code
        self._front.close(flight, Verdict.COMPLETE)

    def _gone(self, _: object, request: Request, flight: Flight) -> None:
        if request.startedWriting:
            flight.status = request.code
        self._front.close(flight, Verdict.CLIENT_GONE)
