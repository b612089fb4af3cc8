"""
The only module that imports OpenTelemetry: makes spans, and sends them.

They are made in the reactor's thread, and encoded and sent in one of their own, by OpenTelemetry's batching processor.
Its queue is bounded: where the collector does not keep up, spans are dropped, before they are made.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import requests
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from .. import __version__
from .attributes import SCHEMA_URL, Attributes
from .environment import TracingConfig

log = Logger()

Child = tuple[str, Attributes, str | None, float, float]
"""A child's name, attributes and error, and when it began and ended, in seconds after the span above it began."""

_LOGGER: Final = logging.getLogger("opentelemetry")


class Spans:
    """
    Makes spans, and sends them to a collector until :meth:`stop`.

    :param reactor: provides ``IReactorTime`` and ``IReactorFromThreads``.
    :param exporter: makes what replaces OTLP over HTTP.
    :raises Exception: what OpenTelemetry says of its own variables.
    """

    def __init__(self, reactor: Any, config: TracingConfig, exporter: Callable[[], SpanExporter] | None) -> None:
        self._reactor = reactor
        self._queue = config.queue
        self._made = 0
        self._dropped = 0
        self._relay = _LogRelay(reactor.callFromThread)
        _LOGGER.addHandler(self._relay)
        try:
            self._delivery = _Delivery(exporter, str(config.endpoint), reactor.callFromThread)
            # Its own handler of the interpreter's exit would wait half a minute for a collector.
            self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
            self._provider.add_span_processor(
                BatchSpanProcessor(
                    self._delivery,
                    max_queue_size=config.queue,
                    max_export_batch_size=config.batch,
                    schedule_delay_millis=config.delay,
                )
            )
        except Exception:
            _LOGGER.removeHandler(self._relay)
            raise
        self._tracer = self._provider.get_tracer("claude-proxy", __version__, schema_url=SCHEMA_URL)
        self._propagator = TraceContextTextMapPropagator()
        self.open = True

    @property
    def counts(self) -> Mapping[str, int]:
        """As `Tracing.counts`."""
        delivery = self._delivery
        return {"exported": delivery.exported, "failed": delivery.failed, "dropped": self._dropped}

    @property
    def _waiting(self) -> int:
        return self._made - self._delivery.taken

    def begin(
        self, name: str, attributes: Attributes, start: int, traceparent: Sequence[str], tracestate: Sequence[str]
    ) -> Span | None:
        """
        A span of kind SERVER; ``None``: it is not sampled.

        :param start: nanoseconds since the Unix epoch.
        :param traceparent: fields of the request (https://www.w3.org/TR/trace-context/); of more than one, none counts.
        """
        context = Context()
        if len(traceparent) == 1:
            carrier = {"traceparent": list(traceparent), "tracestate": list(tracestate)}
            context = self._propagator.extract(carrier, context)
        span = self._tracer.start_span(name, context, SpanKind.SERVER, attributes, start_time=start)
        return cast("Span", span) if span.is_recording() else None

    def admit(self, count: int) -> bool:
        """Whether there is room for so many spans; where there is none, they count as dropped."""
        if self.open and self._waiting + count <= self._queue:
            return True
        self._dropped += count
        return False

    def end(self, span: Span, attributes: Attributes, error: str | None, seconds: float, child: Child | None) -> None:
        """
        A span for which there is room is over, and so is its child, if it has one.

        :param seconds: that it took.
        """
        start = span.start_time or 0
        if child is not None:
            name, told, wrong, begun, ended = child
            context = set_span_in_context(span, Context())
            began_at = start + max(0, int(begun * 1e9))
            asked = self._tracer.start_span(name, context, SpanKind.CLIENT, told, start_time=began_at)
            self._end(asked, wrong, max(began_at, start + int(ended * 1e9)))
        span.set_attributes(attributes)
        self._end(span, error, start + max(0, int(seconds * 1e9)))

    def _end(self, span: Any, error: str | None, at: int) -> None:
        if not span.is_recording():
            # A sampler may leave out a child.
            return
        if error is not None:
            span.set_status(Status(StatusCode.ERROR))
        self._made += 1
        span.end(at)

    def stop(self, timeout: float) -> Deferred[None]:
        """Make no more, and send what waits. Fires when that is done, or after so many seconds."""
        self.open = False
        done: Deferred[None] = Deferred()

        def finish() -> None:
            if late.active():
                late.cancel()
            if not done.called:
                self._close(done)

        def shut_down() -> None:
            # Waits for what is being sent, which may take half a minute.
            self._provider.shutdown()
            self._reactor.callFromThread(finish)

        late = self._reactor.callLater(timeout, self._close, done)
        # Not of the reactor's pool, whose threads the process waits for at its end.
        threading.Thread(target=shut_down, name="end of tracing", daemon=True).start()
        return done

    def _close(self, done: Deferred[None]) -> None:
        left = self._waiting
        if left > 0:
            log.warn("{left} spans did not reach the collector before the end", left=left)
        _LOGGER.removeHandler(self._relay)
        done.callback(None)


def _resource() -> Resource:
    """Of this process. What the standard variables say of it counts."""
    ours = Resource(
        {
            "service.name": "claude-proxy",
            "service.version": __version__,
            "service.instance.id": str(uuid.uuid4()),
        }
    )
    return Resource.create(ours.merge(OTELResourceDetector().detect()).attributes)


class _Delivery(SpanExporter):
    """
    Hands spans to an exporter, in the batching processor's thread; counts what becomes of them, and tells when that
    changes.

    :ivar taken: spans that came here. :ivar exported: that the collector took. :ivar failed: that it did not.
    """

    def __init__(
        self, exporter: Callable[[], SpanExporter] | None, endpoint: str, from_thread: Callable[..., None]
    ) -> None:
        self._session = _Session()
        self._exporter = OTLPSpanExporter(session=self._session) if exporter is None else exporter()
        self._endpoint = endpoint
        self._from_thread = from_thread
        self._failing = False
        self.taken = self.exported = self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        problem = None
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next batch may go
            result, problem = SpanExportResult.FAILURE, type(error).__name__
        if result is SpanExportResult.SUCCESS:
            self.exported += len(spans)
        else:
            self.failed += len(spans)
        # Only now: until then they count as waiting.
        self.taken += len(spans)
        failing = result is not SpanExportResult.SUCCESS
        if failing is not self._failing:
            self._failing = failing
            self._from_thread(self._tell, failing, problem or self._session.problem)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def _tell(self, failing: bool, problem: str | None) -> None:
        if failing:
            log.warn(
                "{endpoint} takes no spans ({problem}): they are lost until it does. Requests are not affected.",
                endpoint=self._endpoint,
                problem=problem or "no answer",
            )
        else:
            log.info("{endpoint} takes spans again", endpoint=self._endpoint)


class _Session(requests.Session):
    """
    Connections to the collector: directly, whatever the environment says of HTTP proxies, and without the credentials
    of a ``.netrc``.

    :ivar problem: with the last request, as far as it may be told: a status, or the name of an exception. Their texts
        may have URLs and fields in them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.problem: str | None = None

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        try:
            response = super().request(*args, **kwargs)
        except Exception as error:
            self.problem = type(error).__name__
            raise
        self.problem = None if response.ok else f"status {response.status_code}"
        return response


class _LogRelay(logging.Handler):
    """
    Brings what OpenTelemetry says of its configuration into our log.

    What it says of each failed attempt stays out: `_Delivery` tells, once. So does what quotes the fields that go to
    the collector, among them its credentials.
    """

    def __init__(self, from_thread: Callable[..., None]) -> None:
        super().__init__(logging.WARNING)
        self._from_thread = from_thread

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "opentelemetry.util.re":
            text = "a field of OTEL_EXPORTER_OTLP_HEADERS is not sent: they have the form name=value,name=value"
        elif record.name.startswith(_OF_THE_CONFIGURATION):
            text = record.getMessage()
        else:
            return
        self._from_thread(log.warn, "{text}", text=text)


_OF_THE_CONFIGURATION: Final = ("opentelemetry.sdk.trace", "opentelemetry.sdk.resources", "opentelemetry.attributes")
