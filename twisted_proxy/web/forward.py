"""What is not ours goes upstream, and its answer comes down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse
from twisted.web.server import NOT_DONE_YET

from ..relay import demotion
from ..relay.flight import Flight, Verdict
from ..relay.streaming import Relay, cut, stop_body
from ..relay.upstream import FailureKind, Upstream, UpstreamError
from ..wire import body as wire_body
from ..wire import headers
from ..wire.message import ErrorEvent, MessageFold
from ..wire.target import Target
from .answers import REQUEST_ID, answer_error
from .channel import Front

log = Logger()


def body_of(request: Request) -> bytes | None:
    """The body of a request, on our own site or another's; ``None`` where the client sent none."""
    if hasattr(request, "body"):
        body: bytes | None = request.body
        request.body = None
        return body
    if request.requestHeaders.hasHeader(b"Content-Length") or request.requestHeaders.hasHeader(b"Transfer-Encoding"):
        return b"" if request.content is None else bytes(request.content.read())
    return None


def _text(values: Sequence[bytes] | None) -> str | None:
    return None if values is None else b",".join(values).decode("ascii", "replace")[:1024]


_OF_A_STREAM = (b"Cache-Control", b"Content-Encoding", b"X-Accel-Buffering")
"""What upstreams say of event streams, beside type and framing."""


def _is_event_stream(response: IResponse) -> bool:
    return headers.is_event_stream(response.headers.getRawHeaders(b"Content-Type", [b""])[0])


def _remove(fields: Headers, names: frozenset[bytes]) -> None:
    for name, _ in list(fields.getAllRawHeaders()):
        if name.lower() in names:
            fields.removeHeader(name)


class Forwarder:
    """Handles the requests that are for an upstream."""

    def __init__(self, front: Front, upstream: Upstream) -> None:
        self._front = front
        self._upstream = upstream

    def render(self, request: Request, flight: Flight, local: Target) -> object:
        work: Deferred[None] = Deferred.fromCoroutine(self._forward(request, flight, local, lambda: work.cancel()))
        # Whatever phase it is in, a client that leaves ends it.
        request.notifyFinish().addErrback(lambda _: work.cancel())
        work.addErrback(self._unforeseen, request, flight)
        return NOT_DONE_YET

    async def _forward(self, request: Request, flight: Flight, local: Target, cancel: Callable[[], None]) -> None:
        body = body_of(request)
        fields = request.requestHeaders
        flight.body_bytes = len(body or b"")
        flight.betas = _text(fields.getRawHeaders(b"Anthropic-Beta"))
        if body and not fields.hasHeader(b"Content-Encoding"):
            summary = wire_body.peek(body)
            flight.model, flight.stream, flight.has_thinking = (
                summary.model,
                summary.stream,
                summary.has_thinking,
            )
            if self._upstream.provider.demote_nonstreaming:
                rewritten = demotion.rewrite(request.method, local.path, body, summary)
                if rewritten is not None:
                    body, flight.demoted = rewritten, True
        self._choose_fields(fields, local)
        flight.on_cut = lambda reason: self._refuse_while_draining(cancel, request, flight, reason)
        try:
            response = await self._upstream.send(request.method, local.raw, fields, body)
            # A conversation of a megabyte need not wait for the answer to end.
            del body
            if flight.demoted and response.code == 200 and _is_event_stream(response):
                await self._fold(request, flight, response)
                return
        except UpstreamError as failure:
            self._answer_failure(request, flight, failure)
        except CancelledError:
            kind = flight.verdict or Verdict.CLIENT_GONE
            flight.log_forward_error(self._now, kind=kind.value, ctx_err="canceled", status=None)
            raise
        else:
            await self._relay(request, flight, response)

    @property
    def _now(self) -> float:
        return self._front.clock.seconds()

    async def _relay(self, request: Request, flight: Flight, response: IResponse) -> None:
        try:
            relay = self._begin_answer(request, flight, response)
        except Exception:
            # Nobody takes the body: its connection would stay, paused, for ever.
            stop_body(response)
            raise
        try:
            verdict = await relay.verdict
        except CancelledError:
            relay.stopProducing()
            verdict = Verdict.CLIENT_GONE
        if verdict in (Verdict.TRUNCATED, Verdict.SILENT):
            self._log_incomplete(flight, verdict, response.code)

    def _begin_answer(self, request: Request, flight: Flight, response: IResponse) -> Relay:
        """Set the head of the answer, and let its body flow."""
        event_stream = _is_event_stream(response)
        framed = response.length is not UNKNOWN_LENGTH or response.headers.hasHeader(b"Transfer-Encoding")
        self._copy_head(request, flight, response)
        relay = Relay(
            self._front.clock,
            request,
            flight,
            silence=self._upstream.provider.idle_timeout,
            stall=self._front.config.write_timeout,
            event_stream=event_stream,
            framed=framed,
        )
        flight.on_cut = relay.kill
        # The head goes out with the first bytes that are here already, and does not wait for later ones.
        request.write(b"")
        response.deliverBody(relay)
        return relay

    async def _fold(self, request: Request, flight: Flight, response: IResponse) -> None:
        """
        Answer with the message that an event stream tells.

        :raises UpstreamError: there is none.
        """
        if response.headers.getRawHeaders(b"Content-Encoding", [b"identity"]) != [b"identity"]:
            stop_body(response)
            raise UpstreamError(
                FailureKind.ENCODED, "The upstream encoded its answer, although it was asked for identity."
            )
        self._copy_head(request, flight, response)
        fields = request.responseHeaders
        for name in _OF_A_STREAM:
            fields.removeHeader(name)
        fields.setRawHeaders(b"Content-Type", [b"application/json"])
        folding = demotion.Demotion(
            self._front.clock,
            MessageFold(max_bytes=self._front.config.max_response_bytes),
            silence=self._upstream.provider.idle_timeout,
        )
        heartbeat = LoopingCall(request.write, b" ")
        heartbeat.clock = self._front.clock
        if self._front.config.demote_heartbeat:
            # The status is out with the first one: what goes wrong from then on can only be a visible cut.
            heartbeat.start(self._front.config.demote_heartbeat, now=False)
        response.deliverBody(folding)
        try:
            outcome = await folding.outcome
        finally:
            if heartbeat.running:
                heartbeat.stop()
        if isinstance(outcome, ErrorEvent):
            self._answer_error_event(request, flight, outcome)
        else:
            self._answer_whole(request, flight, outcome.message)

    def _answer_error_event(self, request: Request, flight: Flight, outcome: ErrorEvent) -> None:
        flight.log_forward_error(self._now, kind=outcome.error_type, ctx_err="", status=outcome.status)
        if request.startedWriting:
            flight.verdict = Verdict.FAILED
            cut(request)
            return
        request.setResponseCode(outcome.status)
        self._answer_whole(request, flight, outcome.body)

    def _answer_whole(self, request: Request, flight: Flight, body: bytes) -> None:
        if not request.startedWriting:
            request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
        flight.first_byte_at = self._now
        request.write(body)
        request.finish()

    def _log_incomplete(self, flight: Flight, verdict: Verdict, status: int) -> None:
        timed_out = verdict is Verdict.SILENT
        flight.log_forward_error(
            self._now, kind=verdict.value, ctx_err="deadline_exceeded" if timed_out else "", status=status
        )
        log.warn(
            "{request_id}: the answer of {upstream} to {method} {path} is incomplete ({verdict}) "
            "after {sent} bytes; the client's connection was cut so that it can see that",
            request_id=flight.request_id,
            upstream=self._upstream.name,
            method=flight.method,
            path=flight.path,
            verdict=verdict.value,
            sent=flight.sent_bytes,
        )

    def _choose_fields(self, fields: Headers, local: Target) -> None:
        """Leave of a request's fields those that go upstream."""
        _remove(fields, headers.not_upstream(fields.getRawHeaders(b"Connection", ())))
        # Answers must be bytes that every client can read, and the record.
        fields.setRawHeaders(b"Accept-Encoding", [b"identity"])
        if local.is_below(b"/v1") and not fields.hasHeader(b"Anthropic-Version"):
            fields.setRawHeaders(b"Anthropic-Version", [self._upstream.provider.version.encode("ascii")])

    def _copy_head(self, request: Request, flight: Flight, response: IResponse) -> None:
        """Status and fields of the answer, and nothing that the upstream does not say, but our id."""
        request.setResponseCode(response.code, response.phrase)
        # The channel may have decided to close.
        closing = request.responseHeaders.getRawHeaders(b"Connection")
        request.responseHeaders = fields = response.headers
        _remove(fields, headers.not_downstream(fields.getRawHeaders(b"Connection", ())))
        if response.length is UNKNOWN_LENGTH or response.code == 204:
            # It may have stood beside chunks, which override it (RFC 9112 §6.3); 204 has none (RFC 9110 §8.6).
            fields.removeHeader(b"Content-Length")
        else:
            fields.setRawHeaders(b"Content-Length", [b"%d" % (response.length,)])
        fields.setRawHeaders(REQUEST_ID, [flight.request_id.encode("ascii")])
        if closing is not None:
            fields.setRawHeaders(b"Connection", closing)
        # Of `server.Request`, which would say what it thinks that this is.
        request.defaultContentType = None  # type: ignore[attr-defined]

    def _answer_failure(self, request: Request, flight: Flight, failure: UpstreamError) -> None:
        flight.verdict = Verdict.FAILED
        timed_out = failure.error_type == "timeout_error"
        flight.log_forward_error(
            self._now,
            kind=failure.kind.value,
            ctx_err="deadline_exceeded" if timed_out else "",
            status=failure.status,
        )
        log.warn(
            "{request_id}: {method} {path} could not be forwarded: {message}",
            request_id=flight.request_id,
            method=flight.method,
            path=flight.path,
            message=failure.message,
        )
        self._answer_error(request, flight, failure.status, failure.error_type, failure.message)

    def _answer_error(self, request: Request, flight: Flight, status: int, error_type: str, message: str) -> None:
        """Tell what is wrong while there is a status to choose; after that, only that something is."""
        if request.startedWriting:
            cut(request)
            return
        flight.first_byte_at = self._now
        answer_error(request, status, error_type, message, flight.request_id)

    def _refuse_while_draining(self, cancel: Callable[[], None], request: Request, flight: Flight, reason: str) -> None:
        """The drain is over, and the upstream has not answered."""
        flight.verdict = Verdict.DRAINED
        self._answer_error(request, flight, 529, "overloaded_error", reason)
        cancel()

    def _unforeseen(self, reason: Failure, request: Request, flight: Flight) -> None:
        if reason.check(CancelledError):
            return
        log.failure("forwarding {method} {path} failed", reason, method=flight.method, path=flight.path)
        if getattr(request, "channel", None) is None or request.finished:
            return
        flight.verdict = Verdict.FAILED
        self._answer_error(request, flight, 500, "api_error", "The proxy failed on this request. Its log says more.")
