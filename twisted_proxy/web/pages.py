"""The pages that are ours: health, and the root."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from klein import Klein
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from werkzeug.exceptions import HTTPException

from .. import __version__, logs
from ..metrics.merging import Snapshot
from ..runtime import Drain
from ..wire import errors
from .answers import set_json, to_json
from .api.calls import Refusal
from .family import Family
from .metrics import answer_metrics, answer_refusal

RETRY_AFTER = 5
"""Seconds after which a client of a draining process may come again: by then a balancer has another one."""


class Pages:
    """
    Klein's part of the tree. Nothing here is counted or slow; the metrics are not for everybody.

    :param metrics: gives those of all processes.
    :param wall_clock: seconds since the Unix epoch.
    :param admit: raises a `Refusal` for who may not read the metrics.
    """

    app = Klein()

    def __init__(
        self,
        drain: Drain,
        family: Family,
        metrics: Callable[[], Awaitable[Sequence[Snapshot]]],
        wall_clock: Callable[[], float],
        *,
        admit: Callable[[Request], object],
    ) -> None:
        self._drain = drain
        self._family = family
        self._metrics = metrics
        self._wall_clock = wall_clock
        self._admit = admit

    def resource(self) -> IResource:
        resource: IResource = self.app.resource()
        return resource

    @app.route("/", methods=["GET", "HEAD"])
    def root(self, request: IRequest) -> bytes:
        """Who is here. SDKs and editors probe a base URL with ``HEAD /``."""
        return self._answer(
            request,
            200,
            {"name": "claude-proxy", "version": __version__, "health": "/health", "live": "/livez"},
        )

    @app.route("/livez", methods=["GET", "HEAD"])
    async def livez(self, request: IRequest) -> bytes:
        """
        ``{"status": "ok", "version": "…", "in_flight": n, "oldest_seconds": s, "draining": bool,
        "drain_seconds_left": s, "recording": …, "timestamp": RFC 3339}``, always 200. With workers it speaks for all of
        them, and has ``"workers": {"configured": n, "running": n}``.

        ``oldest_seconds`` is the age of the oldest request in flight, ``null`` if there is none; ``drain_seconds_left``
        is the time until what is in flight is cut, ``null`` while nobody has told this process to stop. Nothing here
        says who asks for what: everybody may read it.

        ``recording`` is `Keeper.describe`, or ``{"status": "off"}``. Trouble there is no reason to restart a process:
        it serves, and what it cannot store waits.
        """
        state = await self._family.state()
        return self._answer(
            request, 200, {"status": "ok", "version": __version__, **state, "timestamp": self._timestamp()}
        )

    @app.route("/health", methods=["GET", "HEAD"])
    async def health(self, request: IRequest) -> bytes:
        """200 while new requests are welcome; 503 while draining, though requests are still served."""
        if not self._drain.draining:
            return self._answer(request, 200, {"status": "healthy", "timestamp": self._timestamp()})
        state = await self._family.state()
        request.responseHeaders.setRawHeaders(b"Retry-After", [b"%d" % RETRY_AFTER])
        return self._answer(
            request,
            503,
            {"status": "draining", "in_flight": state["in_flight"], "timestamp": self._timestamp()},
        )

    @app.route("/metrics", methods=["GET", "HEAD"])
    async def metrics(self, request: IRequest) -> bytes:
        """What Prometheus reads, for those who may look."""
        try:
            self._admit(cast("Request", request))
        except Refusal as refusal:
            return answer_refusal(request, refusal)
        return answer_metrics(request, await self._metrics())

    @app.handle_errors(HTTPException)
    def not_ours(self, request: IRequest, failure: Failure) -> bytes:
        """Klein's own answers are HTML."""
        problem = cast("HTTPException", failure.value)
        status = problem.code or 500
        for name, value in problem.get_headers():
            if name.lower() in ("allow", "location"):
                request.responseHeaders.setRawHeaders(name.encode("ascii"), [value.encode("ascii")])
        message = {
            404: "There is nothing at this path. The API is proxied below /v1; see also /health and /livez.",
            405: "This path does not take that method.",
        }.get(status, problem.name)
        request_id = request.responseHeaders.getRawHeaders(b"X-Proxy-Request-Id", [b""])[0].decode("ascii")
        body = errors.envelope(errors.type_of_status(status), message, request_id)
        set_json(request, status, body)
        return body

    def _answer(self, request: IRequest, status: int, value: dict[str, object]) -> bytes:
        body = to_json(value)
        set_json(request, status, body)
        return body

    def _timestamp(self) -> str:
        return logs.rfc3339(self._wall_clock())
