"""
Spans of what passes: one of kind SERVER for each request below ``/v1``, and a child of kind CLIENT where an upstream
was asked.

What goes up stays as it came: the client's ``traceparent``, if it sent one, and none of ours. What an upstream traces
is therefore a child of the client's span, beside ours.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.web.http_headers import Headers

from ..config import ProviderConfig
from ..relay.flight import Flight, Tap
from ..wire import claude_code
from .attributes import (
    at_end,
    at_start,
    client_error,
    client_name,
    for_sampler,
    of_upstream,
    server_error,
    server_name,
)
from .environment import TracingConfig
from .tap import NoTap, TraceTap

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from .export import Spans

log = Logger()

STOP_TIMEOUT = 3.0
"""Seconds that the collector has, at the end, to take what is left."""

Record = Callable[[Any, Headers, IAddress], Tap | None]


def is_installed() -> bool:
    """Whether the extra ``otel`` is there, without importing it."""
    try:
        return all(importlib.util.find_spec(f"opentelemetry.{name}") is not None for name in _NEEDED)
    except ModuleNotFoundError:
        return False


_NEEDED = ("sdk.trace", "exporter.otlp.proto.http")


class Tracing:
    """
    Traces requests, from :meth:`start` to :meth:`stop`, where that is configured.

    :param reactor: provides ``IReactorTime`` and ``IReactorFromThreads``.
    :param providers: by their names.
    :param wall_clock: seconds since the Unix epoch.
    :param exporter: makes what replaces OTLP over HTTP.
    """

    def __init__(
        self,
        reactor: Any,
        config: TracingConfig,
        providers: Mapping[str, ProviderConfig],
        wall_clock: Callable[[], float],
        *,
        exporter: Callable[[], SpanExporter] | None = None,
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._providers = providers
        self._wall_clock = wall_clock
        self._exporter = exporter
        self._spans: Spans | None = None

    @classmethod
    def of_environment(
        cls,
        reactor: Any,
        environ: Mapping[str, str],
        providers: Mapping[str, ProviderConfig],
        wall_clock: Callable[[], float],
    ) -> Tracing:
        """As OpenTelemetry's variables have it."""
        return cls(reactor, TracingConfig.read(environ, is_installed), providers, wall_clock)

    @property
    def counts(self) -> Mapping[str, int]:
        """
        Spans, by what became of them: ``exported``; ``failed``, the collector did not take them; ``dropped``, too many
        were waiting. Empty where nothing is traced.
        """
        return {} if self._spans is None else self._spans.counts

    def start(self) -> None:
        """Begin. Never fails: requests are served without being traced, and the log says why."""
        for problem in self._config.problems:
            log.warn("{problem}", problem=problem)
        if self._config.endpoint is None:
            return
        try:
            # Not before it is needed: it takes a quarter of a second.
            from .export import Spans

            self._spans = Spans(self._reactor, self._config, self._exporter)
        except Exception:  # noqa: BLE001 - whatever is wrong with it is no reason not to serve
            log.failure("requests are not traced: OpenTelemetry cannot be started")
            return
        log.info("requests are traced; spans go to {endpoint}", endpoint=self._config.endpoint)

    def stop(self) -> Deferred[None]:
        """Trace no more. Fires when the collector has what is left, or after `STOP_TIMEOUT`."""
        if self._spans is None or not self._spans.open:
            return succeed(None)
        return self._spans.stop(STOP_TIMEOUT)

    def tracing(self, record: Record) -> Record:
        """
        What begins to trace, and to record, a request.

        :param record: begins to record one; where nothing is to be traced, it is what is returned.
        """
        if self._config.endpoint is None:
            return record

        def begin(flight: Flight, fields: Headers, peer: IAddress) -> Tap | None:
            inner = record(flight, fields, peer)
            spans = self._spans
            if spans is None or not spans.open:
                return inner
            try:
                return self._begin(spans, flight, fields, peer, inner)
            except Exception:  # noqa: BLE001 - a request that cannot be traced is served all the same
                log.failure("a request cannot be traced")
                return inner

        return begin

    def _begin(self, spans: Spans, flight: Flight, fields: Headers, peer: IAddress, inner: Tap | None) -> Tap | None:
        def get(name: bytes) -> str | None:
            value = fields.getRawHeaders(name, [None])[0]
            return None if value is None else value.decode("latin-1")

        # Sampling is decided here, and what is not sampled costs nothing more.
        span = spans.begin(
            server_name(flight.method, flight.path),
            for_sampler(flight.method, flight.path),
            int(self._wall_clock() * 1e9),
            [value.decode("latin-1") for value in fields.getRawHeaders(b"Traceparent", ())],
            [value.decode("latin-1") for value in fields.getRawHeaders(b"Tracestate", ())],
        )
        if span is None:
            return inner
        origin = claude_code.from_headers(lambda name: fields.getRawHeaders(name, [None])[0])
        scheme = (get(b"X-Forwarded-Proto") or "").lower()
        # Now: fields are removed before the request goes up.
        known = at_start(
            flight,
            origin,
            host=get(b"Host"),
            peer=getattr(peer, "host", None),
            scheme=scheme if scheme in ("http", "https") else None,
            user_agent=get(b"User-Agent"),
        )
        received_at, session = flight.received_at, origin.session

        def over(flight: Flight, tap: TraceTap, now: float) -> None:
            try:
                if not spans.admit(2 if tap.was_routed else 1):
                    return
                asked, child = tap.found(flight.path), None
                if asked is not None:
                    wrong = client_error(flight, asked)
                    told = of_upstream(flight, asked, self._providers.get(asked.provider), session, wrong)
                    begun, ended = (time - received_at for time in tap.times(flight, now))
                    child = (client_name(flight), told, wrong, begun, ended)
                error = server_error(flight, asked)
                spans.end(span, {**known, **at_end(flight, asked, error)}, error, now - received_at, child)
            except Exception:  # noqa: BLE001 - as above
                log.failure("a request cannot be traced")

        return TraceTap(flight, inner or NoTap(), self._reactor.seconds, over)
