"""What is not ours goes upstream, and its answer comes down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.iweb import IResponse
from twisted.web.server import NOT_DONE_YET

from ..fields import announces_body
from ..relay.flight import Flight, Verdict
from ..relay.routing import Router
from ..relay.upstream import Upstream, UpstreamError
from ..wire.openai.refusal import Untranslatable
from ..wire.target import Target
from . import credentials
from .answers import OUR_MISTAKE, is_openai_path
from .front import Front
from .listing import Listing, is_models_path
from .passage import Passage
from .plan import OwnAnswer, Plan, Planner

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


class Forwarder:
    """
    Handles the requests that are for an upstream.

    :param upstreams: by the name of their provider; ``anthropic`` is one of them.
    """

    def __init__(self, front: Front, upstreams: Mapping[str, Upstream], router: Router) -> None:
        self._front = front
        self._default = upstreams["anthropic"]
        self._planner = Planner(upstreams, router, front.wall_clock)
        self._listing = Listing(upstreams)

    def render(self, request: Request, flight: Flight, local: Target) -> object:
        """Take over a request that is counted."""
        passage = Passage(
            request=request,
            flight=flight,
            upstream=self._default,
            openai_client=is_openai_path(local.path)
            or (is_models_path(local.path) and credentials.is_openai_client(request.requestHeaders)),
            config=self._front.config,
            clock=self._front.clock,
        )
        work: Deferred[None] = Deferred.fromCoroutine(self._forward(passage, local, lambda: work.cancel()))
        # Whatever phase it is in, a client that leaves ends it.
        request.notifyFinish().addErrback(lambda _: work.cancel())
        work.addErrback(self._unforeseen, passage)
        return NOT_DONE_YET

    async def _forward(self, passage: Passage, local: Target, cancel: Callable[[], None]) -> None:
        flight = passage.flight

        def refuse(reason: str, verdict: Verdict) -> None:
            # The upstream has not answered.
            passage.answer_cut(reason, verdict)
            cancel()

        flight.on_cut = refuse
        try:
            if self._listing.applies_to(passage, local) and self._planner.leaves_alone(passage, local):
                await self._listing.answer(passage, local)
                return
            plan = self._planner.plan(passage, local, self._read_body(passage))
            if isinstance(plan, OwnAnswer):
                passage.answer_json(plan.body, plan.fields)
                return
            passage, answer = passage.towards(plan.upstream), plan.answer
            sending = self._send(passage, plan)
            # The body is gone as soon as it is sent, however long the answer takes.
            del plan
            response = await sending
            await answer(passage, response)
        except Untranslatable as problem:
            passage.refuse(problem)
        except UpstreamError as failure:
            passage.answer_failure(failure)
        except CancelledError:
            kind = flight.verdict or Verdict.CLIENT_GONE
            passage.log_forward_error(kind.value, status=None, cancelled=True)
            raise

    async def _send(self, passage: Passage, plan: Plan) -> IResponse:
        sending = plan.upstream.send(
            passage.request.method,
            plan.target,
            plan.fields,
            plan.body,
            connected=passage.connected,
            sent=passage.flight.forget_body,
        )
        del plan
        response = await sending
        passage.answered(response)
        return response

    def _read_body(self, passage: Passage) -> bytes | None:
        """The body that the client sent, and what is to be known of it."""
        request, flight = passage.request, passage.flight
        body = body_of(request)
        flight.body_bytes = len(body or b"")
        flight.betas = _text(request.requestHeaders.getRawHeaders(b"Anthropic-Beta"))
        if body and not request.requestHeaders.hasHeader(b"Content-Encoding"):
            flight.readable = body
        return body

    def _unforeseen(self, reason: Failure, passage: Passage) -> None:
        if reason.check(CancelledError):
            return
        flight = passage.flight
        log.failure("forwarding {method} {path} failed", reason, method=flight.method, path=flight.path)
        passage.answer_error(Verdict.FAILED, 500, "api_error", OUR_MISTAKE)
