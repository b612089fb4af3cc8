"""What is not ours goes upstream, and its answer comes down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse
from twisted.web.server import NOT_DONE_YET

from ..relay import demotion
from ..relay.fields import announces_body
from ..relay.flight import Flight, Verdict
from ..relay.streaming import Relay, stop_body
from ..relay.upstream import Upstream, UpstreamError
from ..wire import body as wire_body
from ..wire import headers
from ..wire.target import Target
from .answers import OUR_MISTAKE
from .folding import fold
from .front import Front
from .passage import Passage, remove_fields

log = Logger()


def body_of(request: Request) -> bytes | None:
    """The body of a request, on our own site or another's; ``None`` where the client sent none."""
    if hasattr(request, "body"):
        body: bytes | None = request.body
        request.body = None
        return body
    if announces_body(request.requestHeaders):
        return b"" if request.content is None else bytes(request.content.read())
    return None


def _text(values: Sequence[bytes] | None) -> str | None:
    return None if values is None else b",".join(values).decode("ascii", "replace")[:1024]


def _is_event_stream(response: IResponse) -> bool:
    return headers.is_event_stream(response.headers.getRawHeaders(b"Content-Type", [b""])[0])


class Forwarder:
    """Handles the requests that are for an upstream."""

    def __init__(self, front: Front, upstream: Upstream) -> None:
        self._front = front
        self._upstream = upstream

    def render(self, request: Request, flight: Flight, local: Target) -> object:
        """Take over a request that is counted."""
        passage = Passage(
            request=request,
            flight=flight,
            upstream=self._upstream,
            config=self._front.config,
            clock=self._front.clock,
        )
        work: Deferred[None] = Deferred.fromCoroutine(self._forward(passage, local, lambda: work.cancel()))
        # Whatever phase it is in, a client that leaves ends it.
        request.notifyFinish().addErrback(lambda _: work.cancel())
        work.addErrback(self._unforeseen, passage)
        return NOT_DONE_YET

    async def _forward(self, passage: Passage, local: Target, cancel: Callable[[], None]) -> None:
        request, flight = passage.request, passage.flight
        body = self._read_request(request, flight, local)
        self._choose_fields(request.requestHeaders, local)

        def refuse(reason: str) -> None:
            # The drain is over, and the upstream has not answered.
            passage.answer_error(Verdict.DRAINED, 529, "overloaded_error", reason)
            cancel()

        flight.on_cut = refuse
        flight.provider = self._upstream.provider_name
        try:
            response = await self._upstream.send(
                request.method, local.raw, request.requestHeaders, body, connected=passage.connected
            )
            del body
            passage.answered(response)
            if _is_event_stream(response):
                # A conversation of a megabyte need not stay for as long as its answer grows.
                flight.forget_body()
                if flight.demoted and response.code == 200:
                    await fold(passage, response)
                    return
        except UpstreamError as failure:
            passage.answer_failure(failure)
        except CancelledError:
            kind = flight.verdict or Verdict.CLIENT_GONE
            passage.log_forward_error(kind.value, status=None, cancelled=True)
            raise
        else:
            await self._relay(passage, response)

    def _read_request(self, request: Request, flight: Flight, local: Target) -> bytes | None:
        """The body to send, and what is to be known of it."""
        body = body_of(request)
        fields = request.requestHeaders
        flight.body_bytes = len(body or b"")
        flight.betas = _text(fields.getRawHeaders(b"Anthropic-Beta"))
        if not body or fields.hasHeader(b"Content-Encoding"):
            return body
        flight.readable = body
        if self._upstream.provider.demote_nonstreaming and demotion.applies_to(request.method, local.path):
            rewritten = demotion.rewrite(body, wire_body.peek(body))
            if rewritten is not None:
                flight.demoted = True
                if flight.tap is not None:
                    flight.tap.forwarded(rewritten)
                return rewritten
        return body

    def _choose_fields(self, fields: Headers, local: Target) -> None:
        """Leave of a request's fields those that go upstream."""
        remove_fields(fields, headers.not_upstream(fields.getRawHeaders(b"Connection", ())))
        # Answers must be bytes that every client can read, and the record.
        fields.setRawHeaders(b"Accept-Encoding", [b"identity"])
        if local.root == b"/v1" and not fields.hasHeader(b"Anthropic-Version"):
            fields.setRawHeaders(b"Anthropic-Version", [self._upstream.provider.version.encode("ascii")])

    async def _relay(self, passage: Passage, response: IResponse) -> None:
        try:
            relay = self._begin_answer(passage, response)
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
            passage.log_incomplete(verdict, response.code)

    def _begin_answer(self, passage: Passage, response: IResponse) -> Relay:
        """Set the head of the answer, and let its body flow."""
        event_stream = _is_event_stream(response)
        framed = response.length is not UNKNOWN_LENGTH or response.headers.hasHeader(b"Transfer-Encoding")
        passage.copy_head(response)
        relay = Relay(
            self._front.clock,
            passage.request,
            passage.flight,
            silence=self._upstream.provider.idle_timeout,
            stall=self._front.config.write_timeout,
            event_stream=event_stream,
            framed=framed,
        )
        passage.flight.on_cut = relay.kill
        # The head goes out with the bytes that came with it, and does not wait for later ones: `Relay.read_ended`.
        passage.request.write(b"")
        response.deliverBody(relay)
        return relay

    def _unforeseen(self, reason: Failure, passage: Passage) -> None:
        if reason.check(CancelledError):
            return
        flight = passage.flight
        log.failure("forwarding {method} {path} failed", reason, method=flight.method, path=flight.path)
        passage.answer_error(Verdict.FAILED, 500, "api_error", OUR_MISTAKE)
