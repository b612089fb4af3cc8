"""
One upstream: a request goes out, the head of its answer comes back, or a failure that knows its kind.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping

import attrs
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse

from ..config import ProviderConfig
from ..wire.http1 import ProtocolError
from .body import BytesProducer
from .connection import CONNECT_TIMEOUT, ConnectTimeout

log = Logger()

_VERSION = b"/v1"

FIRST_RETRY_DELAY = 0.1
"""Seconds before the second connection attempt; each further one waits twice as long."""


class FailureKind(enum.Enum):
    """What went wrong between us and the upstream, as the log names it."""

    REFUSED = "refused"
    DNS = "dns"
    UNREACHABLE = "unreachable"
    CONNECT_TIMEOUT = "connect_timeout"
    TLS = "tls"
    RESET = "reset"
    PROTOCOL = "protocol"
    UPLOAD_STALLED = "upload_stalled"
    HEADER_TIMEOUT = "header_timeout"
    INTERNAL = "internal"
    # Of an answer that was to be folded into one message:
    SILENT = "silent"
    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    BAD_TOOL_INPUT = "bad_tool_input"
    TOO_LARGE = "too_large"
    ENCODED = "encoded"


_TIMEOUTS = frozenset(
    {FailureKind.CONNECT_TIMEOUT, FailureKind.UPLOAD_STALLED, FailureKind.HEADER_TIMEOUT, FailureKind.SILENT}
)

_NOTHING_SENT = frozenset(
    {
        FailureKind.REFUSED,
        FailureKind.DNS,
        FailureKind.UNREACHABLE,
        FailureKind.CONNECT_TIMEOUT,
        FailureKind.TLS,
    }
)


class UpstreamError(Exception):
    """
    No answer can be relayed.

    :ivar kind: what went wrong.
    :ivar message: what happened, to what, and what to do, for the client.
    """

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message

    @property
    def timed_out(self) -> bool:
        return self.kind in _TIMEOUTS

    @property
    def status(self) -> int:
        return 504 if self.timed_out else 502

    @property
    def error_type(self) -> str:
        return "timeout_error" if self.timed_out else "api_error"


def origin_of(base_url: str) -> bytes:
    """Scheme and authority of a base URL, without its path."""
    scheme, _, rest = base_url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}".encode("ascii")


def endpoint_for(reactor: object, base_url: str) -> IStreamClientEndpoint:
    """Where connections for a base URL go: one host and port, over TLS with verified certificates for https."""
    uri = URI.fromBytes(base_url.encode("ascii"))
    host = uri.host.decode("ascii").strip("[]")
    endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, host, uri.port, timeout=CONNECT_TIMEOUT)
    if uri.scheme == b"https":
        endpoint = wrapClientTLS(optionsForClientTLS(host), endpoint)
    return endpoint


@attrs.define
class _Attempt:
    """The timers of one attempt, and what they did."""

    kind: FailureKind | None = None
    timer: IDelayedCall | None = None

    def stop(self) -> None:
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        self.timer = None


@attrs.define
class _Body:
    """A request's body, for as long as it may have to be sent."""

    data: bytes


class Upstream:
    """
    Sends requests to one provider.

    :param agent: is not to retry, follow, decode or add anything.
    :param provider_name: as the configuration calls it.
    :ivar name: its origin, for words.
    :ivar retries: connection attempts that were made again, so far.
    """

    def __init__(
        self, clock: IReactorTime, agent: IAgent, provider: ProviderConfig, provider_name: str = "anthropic"
    ) -> None:
        self._clock = clock
        self._agent = agent
        self.provider = provider
        self.provider_name = provider_name
        self._base = provider.base_url.rstrip("/").encode("ascii")
        # As OpenAI's SDKs want it in OPENAI_BASE_URL: with the version that each of our targets begins with.
        self._has_version = provider.kind == "openai" and self._base.endswith(_VERSION)
        self.name = origin_of(provider.base_url).decode("ascii")
        self.retries = 0

    @property
    def connections(self) -> Mapping[str, int]:
        """How many are ``in_use``, and how many ``idle``; empty where the agent does not tell."""
        found: Mapping[str, int] = getattr(self._agent, "connections", {})
        return found

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes | None,
        *,
        connected: Callable[[], None] = lambda: None,
        sent: Callable[[], None] = lambda: None,
    ) -> IResponse:
        """
        Send one request and wait for the head of its answer.

        Connection attempts that sent nothing are repeated up to ``max_retries`` times. The body of the response must
        be taken or stopped by the caller.

        :param headers: all that go up but ``Host`` and the framing.
        :param target: path and query, which go on byte for byte behind the base URL.
        :param body: ``None`` where the client sent no body at all.
        :param connected: called when a body begins to go out, once an attempt.
        :param sent: called when it is out, and not held here any more.
        :raises UpstreamError: there will be no answer.
        :raises CancelledError: when cancelled; the connection is closed.
        """
        if self._has_version and target.startswith(_VERSION + b"/"):
            target = target[len(_VERSION) :]
        held = None if body is None else _Body(body)
        del body
        attempts = 0
        while True:
            attempts += 1
            try:
                return await self._attempt(method, self._base + target, headers, held, connected, sent)
            except UpstreamError as failure:
                if failure.kind not in _NOTHING_SENT or attempts > self.provider.max_retries:
                    raise
                self.retries += 1
                delay = FIRST_RETRY_DELAY * 2 ** (attempts - 1)
                log.warn(
                    "no connection to {upstream} ({kind}), attempt {attempt} of {attempts}; again in {delay:g}s",
                    upstream=self.name,
                    kind=failure.kind.value,
                    attempt=attempts,
                    attempts=self.provider.max_retries + 1,
                    delay=delay,
                )
            await deferLater(self._clock, delay)

    async def _attempt(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers,
        body: _Body | None,
        connected: Callable[[], None],
        sent: Callable[[], None],
    ) -> IResponse:
        attempt = _Attempt()
        pending: Deferred[IResponse]

        def give_up(kind: FailureKind) -> None:
            attempt.kind = kind
            pending.cancel()

        def await_head() -> None:
            attempt.stop()
            if self.provider.response_header_timeout:
                attempt.timer = self._clock.callLater(
                    self.provider.response_header_timeout, give_up, FailureKind.HEADER_TIMEOUT
                )

        def body_sent() -> None:
            assert body is not None
            body.data = b""
            sent()
            await_head()

        def upload_progress(moving: bool) -> None:
            attempt.stop()
            if not moving and self.provider.idle_timeout:
                attempt.timer = self._clock.callLater(self.provider.idle_timeout, give_up, FailureKind.UPLOAD_STALLED)

        producer = None
        if body is None:
            await_head()
        else:
            producer = BytesProducer(body.data, begun=connected, sent=body_sent, progress=upload_progress)
        try:
            pending = self._agent.request(method, uri, headers, producer)
            return await pending
        except Exception as problem:  # noqa: BLE001 - whatever a transport raises is a kind of failure; the unforeseen is logged
            if attempt.kind is None and _is_cancelled(problem):
                raise CancelledError() from None
            kind = attempt.kind or _classify(problem)
            if kind is FailureKind.INTERNAL:
                log.failure("the request to {upstream} failed in an unforeseen way", upstream=self.name)
            raise UpstreamError(kind, self._explain(kind, problem)) from None
        finally:
            attempt.stop()

    def _explain(self, kind: FailureKind, problem: Exception) -> str:
        if kind is FailureKind.INTERNAL:
            return "The proxy failed to forward the request. Its log says more."
        return f"The upstream {self.name} {self._complain(kind, problem)}"

    def _setting(self, name: str) -> str:
        """What a person sets to change this."""
        if self.provider_name == "anthropic":
            return {"idle_timeout": "UPSTREAM_IDLE_TIMEOUT"}.get(name, f"ANTHROPIC_{name.upper()}")
        return f"providers.{self.provider_name}.{name}"

    def _complain(self, kind: FailureKind, problem: Exception) -> str:
        match kind:
            case FailureKind.REFUSED:
                return "refused the connection. Is it running, and is its URL right?"
            case FailureKind.DNS:
                return "has a name that could not be resolved. Check its URL, and this machine's DNS."
            case FailureKind.UNREACHABLE:
                return f"could not be reached ({_words(problem)}). Check this machine's network."
            case FailureKind.CONNECT_TIMEOUT:
                return f"made no connection (TLS included) within {CONNECT_TIMEOUT:g} s."
            case FailureKind.TLS:
                return f"could not be spoken to over TLS: {_words(problem)}"
            case FailureKind.RESET:
                return "closed the connection without answering. It may have received the request."
            case FailureKind.PROTOCOL:
                return f"sent something that is no HTTP/1.1 response: {_words(problem)}"
            case FailureKind.UPLOAD_STALLED:
                limit = f"{self.provider.idle_timeout:g} s ({self._setting('idle_timeout')})"
                return f"took no byte of the request body for {limit}."
            case _:
                return (
                    f"did not begin to answer within {self.provider.response_header_timeout:g} s "
                    f"({self._setting('response_header_timeout')}). It may still be working on the request."
                )


def _reasons(problem: BaseException) -> list[BaseException]:
    """A failure and those that it wraps, the innermost last."""
    found: list[BaseException] = [problem]
    wrapped = (ResponseNeverReceived, RequestGenerationFailed, RequestTransmissionFailed, ResponseFailed)
    if isinstance(problem, wrapped):
        reasons: list[Failure] = problem.reasons
        for reason in reasons:
            if reason.value is not None:
                found += _reasons(reason.value)
    return found


def _is_cancelled(problem: BaseException) -> bool:
    return any(isinstance(reason, CancelledError | error.ConnectingCancelledError) for reason in _reasons(problem))


def _classify(problem: BaseException) -> FailureKind:
    reasons = _reasons(problem)
    sent = len(reasons) > 1
    for reason in reversed(reasons):
        match reason:
            case ProtocolError():
                return FailureKind.PROTOCOL
            case ConnectTimeout() | error.TimeoutError() if not sent:
                return FailureKind.CONNECT_TIMEOUT
            case error.ConnectionRefusedError() if not sent:
                return FailureKind.REFUSED
            case error.DNSLookupError() | error.UnknownHostError() if not sent:
                return FailureKind.DNS
            case SSL.Error() | VerificationError() if not sent:
                return FailureKind.TLS
            case error.ConnectError() if not sent:
                return FailureKind.UNREACHABLE
            case error.ConnectionClosed() | SSL.Error():
                # Before a request was sent, this is a peer that hung up in the middle of the TLS handshake.
                return FailureKind.RESET if sent else FailureKind.TLS
    return FailureKind.INTERNAL


def _words(problem: BaseException) -> str:
    """A failure in words; OpenSSL's come as a list of (library, function, reason)."""
    innermost = _reasons(problem)[-1]
    if isinstance(innermost, SSL.Error) and innermost.args and isinstance(innermost.args[0], list):
        return "; ".join(str(entry[-1]) for entry in innermost.args[0]) or "the handshake was cut off"
    return str(innermost) or type(innermost).__name__
