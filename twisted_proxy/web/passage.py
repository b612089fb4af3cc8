"""One request on its way through: the client's side of it, whatever the upstream's side is."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.http import Request
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse

from ..config import Config
from ..fields import remove_fields
from ..relay.flight import TOLD_WHEN_CUT, Flight, Verdict
from ..relay.streaming import cut
from ..relay.upstream import FailureKind, Upstream, UpstreamError
from ..wire import errors, headers
from ..wire.openai import failures
from ..wire.openai.refusal import Untranslatable
from .answers import REQUEST_ID, error_body, set_error_head, set_json_head

log = Logger()


@attrs.frozen(kw_only=True)
class Passage:
    """A request, its flight, and the upstream that it goes to."""

    request: Request
    flight: Flight
    upstream: Upstream
    config: Config
    clock: IReactorTime
    openai_client: bool = False
    """Whether errors are told in OpenAI's envelope."""

    def towards(self, upstream: Upstream) -> Passage:
        """The same, to another upstream; from now on it is known where it goes."""
        flight = self.flight
        flight.provider = upstream.provider_name
        if flight.tap is not None:
            flight.tap.routed(upstream.provider_name, flight.routed_model)
        return self if upstream is self.upstream else attrs.evolve(self, upstream=upstream)

    def forwards(self, body: bytes) -> None:
        """The upstream is to be sent another body than the client's."""
        if self.flight.tap is not None:
            self.flight.tap.forwarded(body)

    @property
    def now(self) -> float:
        return self.clock.seconds()

    def connected(self) -> None:
        """The request begins to go upstream."""
        if self.flight.tap is not None:
            self.flight.tap.connected(self.now)

    def answered(self, response: IResponse) -> None:
        """The upstream's head is here."""
        if self.flight.tap is not None:
            self.flight.tap.head(response.code, response.headers, self.now)

    def received(self, body: bytes) -> None:
        """The upstream's body is here whole, and the client is to get another one."""
        if self.flight.tap is not None:
            self.flight.tap.received(body, self.now)

    def copy_head(self, response: IResponse) -> Headers:
        """
        Give the answer the status and fields of a response: nothing that the upstream does not say, but our id.

        :return: the fields of the answer.
        """
        request = self.request
        request.setResponseCode(response.code, response.phrase)
        # The channel may have decided to close.
        closing = request.responseHeaders.getRawHeaders(b"Connection")
        fields: Headers = response.headers
        request.responseHeaders = fields
        remove_fields(fields, headers.not_downstream(fields.getRawHeaders(b"Connection", ())))
        if response.length is UNKNOWN_LENGTH or response.code == 204:
            # It may have stood beside chunks, which override it (RFC 9112 §6.3); 204 has none (RFC 9110 §8.6).
            fields.removeHeader(b"Content-Length")
        else:
            fields.setRawHeaders(b"Content-Length", [b"%d" % (response.length,)])
        fields.setRawHeaders(REQUEST_ID, [self.flight.request_id.encode("ascii")])
        if closing is not None:
            fields.setRawHeaders(b"Connection", closing)
        # Of `server.Request`, which would say what it thinks that this is.
        request.defaultContentType = None  # type: ignore[attr-defined]
        return fields

    def write(self, data: bytes) -> None:
        """Write a piece of an answer of ours."""
        if self.flight.tap is not None and self.request.method != b"HEAD":
            self.flight.tap.answered(data, self.now)
        self.request.write(data)

    def answer_json(self, body: bytes, fields: Mapping[bytes, bytes], status: int = 200) -> None:
        """Answer with JSON of ours."""
        set_json_head(self.request, status)
        for name, value in {**fields, REQUEST_ID: self.flight.request_id.encode("ascii")}.items():
            self.request.responseHeaders.setRawHeaders(name, [value])
        self.answer(body)

    def answer(self, body: bytes) -> None:
        """Write a whole body behind the head that is set, and finish."""
        if not self.request.startedWriting:
            self.request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
        self.flight.first_byte_at = self.now
        self.write(body)
        self.request.finish()

    def answer_error(self, verdict: Verdict, status: int, error_type: str, message: str) -> None:
        """Tell what is wrong while there is a status to choose; after that, only that something is."""
        if getattr(self.request, "channel", None) is None or self.request.finished:
            return
        self.flight.verdict = verdict
        status, body = error_body(status, error_type, message, self.flight.request_id, openai_client=self.openai_client)
        self._answer_error(status, body, error_type, message)

    def refuse(self, problem: Untranslatable) -> None:
        """Tell that a request, or its answer, has no counterpart in the other API."""
        if getattr(self.request, "channel", None) is None or self.request.finished:
            return
        self.flight.verdict = Verdict.REFUSED
        if problem.status >= 500:
            self.flight.verdict = Verdict.FAILED
            self._log_failure(FailureKind.MALFORMED, problem.status, problem.message)
        if self.openai_client:
            status, body = problem.openai_answer()
        else:
            status, body = problem.status, problem.anthropic_body(self.flight.request_id)
        if status == 405:
            # RFC 9110 §15.5.6: it says what would do.
            self.request.responseHeaders.setRawHeaders(b"Allow", [b"POST"])
        self._answer_error(status, body, problem.error_type, problem.message)

    def _answer_error(self, status: int, body: bytes, error_type: str, message: str) -> None:
        self.flight.error = (error_type, message)
        if self.request.startedWriting:
            cut(self.request)
            return
        set_error_head(self.request, status, self.flight.request_id)
        self.answer(body)

    def answer_cut(self, reason: str, verdict: Verdict) -> None:
        """Tell why there is no answer to wait for any more."""
        if verdict is Verdict.CUT and not self.request.startedWriting:
            # Clients repeat by themselves what ends so; somebody wanted it to end.
            self.request.responseHeaders.setRawHeaders(b"X-Should-Retry", [b"false"])
        self.answer_error(verdict, *TOLD_WHEN_CUT[verdict], reason)

    def farewell(self, reason: str, verdict: Verdict) -> bytes:
        """The event that ends an event stream in the middle, and says why."""
        _, error_type = TOLD_WHEN_CUT[verdict]
        if self.openai_client:
            return b"data: %b\n\n" % failures.openai_event(error_type, reason)
        return errors.event(error_type, reason, self.flight.request_id)

    def answer_failure(self, failure: UpstreamError) -> None:
        """Tell, and log, that the upstream gives no answer."""
        self._log_failure(failure.kind, failure.status, failure.message, timed_out=failure.timed_out)
        self.answer_error(Verdict.FAILED, failure.status, failure.error_type, failure.message)

    def _log_failure(self, kind: FailureKind, status: int, message: str, *, timed_out: bool = False) -> None:
        self.flight.failure = kind.value
        self.log_forward_error(kind.value, status=status, timed_out=timed_out)
        log.warn(
            "{request_id}: {method} {path} could not be forwarded: {message}",
            request_id=self.flight.request_id,
            method=self.flight.method,
            path=self.flight.path,
            message=message,
        )

    def log_incomplete(self, verdict: Verdict, status: int) -> None:
        """Log that an answer was cut, after its client has been shown so."""
        self.log_forward_error(verdict.value, status=status, timed_out=verdict is Verdict.SILENT)
        log.warn(
            "{request_id}: the answer of {upstream} to {method} {path} is incomplete ({verdict}) "
            "after {sent} bytes; the client's connection was cut so that it can see that",
            request_id=self.flight.request_id,
            upstream=self.upstream.name,
            method=self.flight.method,
            path=self.flight.path,
            verdict=verdict.value,
            sent=self.flight.sent_bytes,
        )

    def log_forward_error(
        self, kind: str, *, status: int | None, timed_out: bool = False, cancelled: bool = False
    ) -> None:
        """The one line of a request that was not forwarded, or not to its end."""
        ctx_err = "canceled" if cancelled else "deadline_exceeded" if timed_out else ""
        self.flight.log_forward_error(self.now, kind=kind, ctx_err=ctx_err, status=status)
