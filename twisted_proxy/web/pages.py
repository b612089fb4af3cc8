"""The pages that are ours: health, and the root."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from klein import Klein
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from werkzeug.exceptions import HTTPException

from .. import __version__, logs
from ..record.keeper import Keeper
from ..runtime import Drain, Gauge
from ..wire import errors
from .answers import set_json, to_json

RETRY_AFTER = 5
"""Seconds after which a client of a draining process may come again: by then a balancer has another one."""


class Pages:
    """
    Klein's part of the tree. Nothing here is counted, authenticated or slow.

    :param wall_clock: seconds since the Unix epoch.
    """

    app = Klein()

    def __init__(self, gauge: Gauge, drain: Drain, keeper: Keeper | None, wall_clock: Callable[[], float]) -> None:
        self._gauge = gauge
        self._drain = drain
        self._keeper = keeper
        self._wall_clock = wall_clock

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
    def livez(self, request: IRequest) -> bytes:
        """
        ``{"status": "ok", "in_flight": n, "draining": bool, "recording": …, "timestamp": RFC 3339}``, always 200.

        ``recording`` is `Keeper.describe`, or ``{"status": "off"}``. Trouble there is no reason to restart a process:
        it serves, and what it cannot store waits.
        """
        return self._answer(
            request,
            200,
            {
                "status": "ok",
                "in_flight": self._gauge.in_flight,
                "draining": self._drain.draining,
                "recording": {"status": "off"} if self._keeper is None else self._keeper.describe(),
                "timestamp": self._timestamp(),
            },
        )

    @app.route("/health", methods=["GET", "HEAD"])
    def health(self, request: IRequest) -> bytes:
        """200 while new requests are welcome; 503 while draining, though requests are still served."""
        if not self._drain.draining:
            return self._answer(request, 200, {"status": "healthy", "timestamp": self._timestamp()})
        request.responseHeaders.setRawHeaders(b"Retry-After", [b"%d" % RETRY_AFTER])
        return self._answer(
            request,
            503,
            {"status": "draining", "in_flight": self._gauge.in_flight, "timestamp": self._timestamp()},
        )

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
