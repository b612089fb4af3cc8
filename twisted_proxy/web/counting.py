"""The wrapper that counts what it delegates."""

from __future__ import annotations

from collections.abc import Callable

from twisted.web.http import Request
from twisted.web.server import NOT_DONE_YET

from ..relay.flight import Flight, Verdict
from ..wire.target import Target
from .answers import answer_error, is_openai_path
from .front import Front
from .limits import Refusal

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
                lambda *_: request.loseConnection(),
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
            refusal = self._front.limit(flight, request.requestHeaders)
            if refusal is not None:
                self._refuse(request, flight, refusal)
                return NOT_DONE_YET
        return self._delegate(request, flight, local)

    def _refuse(self, request: Request, flight: Flight, refusal: Refusal) -> None:
        flight.verdict = Verdict.REFUSED
        flight.error = (refusal.error_type, refusal.message)
        request.responseHeaders.setRawHeaders(b"Retry-After", [b"%d" % (refusal.retry_after or 0)])
        openai_client = is_openai_path(flight.path.encode("ascii"))
        answer_error(
            request,
            refusal.status,
            refusal.error_type,
            refusal.message,
            flight.request_id,
            openai_client=openai_client,
        )

    def _over(self, _: object, request: Request, flight: Flight) -> None:
        flight.status = request.code
        self._front.close(flight, Verdict.COMPLETE)

    def _gone(self, _: object, request: Request, flight: Flight) -> None:
        if request.startedWriting:
            flight.status = request.code
        self._front.close(flight, Verdict.CLIENT_GONE)
