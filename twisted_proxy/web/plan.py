"""What becomes of a request: where it goes, in which form, and how the answer comes down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import attrs
import msgspec
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from ..relay import demotion
from ..relay.routing import RequestFacts, Route, Router
from ..relay.upstream import Upstream
from ..wire import body as wire_body
from ..wire import claude_code
from ..wire.openai import estimate
from ..wire.openai import to_anthropic as messages_request
from ..wire.openai import to_openai as chat_request
from ..wire.openai.refusal import Untranslatable
from ..wire.target import Target
from . import credentials, translating
from .answers import is_openai_path
from .folding import fold
from .passage import Passage
from .relaying import is_event_stream, relay
from .request_fields import keep_what_goes_up, new_fields, set_version

MESSAGES = b"/v1/messages"
COUNT_TOKENS = b"/v1/messages/count_tokens"
CHAT_COMPLETIONS = b"/v1/chat/completions"

ESTIMATED = b"X-Proxy-Estimated"
"""``true`` in an answer of ``count_tokens`` that nobody has counted."""

Answer = Callable[[Passage, IResponse], Awaitable[None]]
"""
Makes a response the client's answer.

Raises `UpstreamError` or `Untranslatable` where it cannot, while there is a status to choose; `CancelledError`.
"""


@attrs.frozen(kw_only=True)
class Plan:
    """A request as it goes upstream, and what makes the response the client's answer."""

    upstream: Upstream
    target: bytes
    fields: Headers
    body: bytes | None
    answer: Answer


@attrs.frozen(kw_only=True)
class OwnAnswer:
    """An answer that no upstream is asked for: JSON, and fields of its head."""

    body: bytes
    fields: Mapping[bytes, bytes]


class Planner:
    """
    Makes plans.

    :param upstreams: by the name of their provider.
    :param wall_clock: seconds since the Unix epoch.
    """

    def __init__(self, upstreams: Mapping[str, Upstream], router: Router, wall_clock: Callable[[], float]) -> None:
        self._upstreams = upstreams
        self._router = router
        self._wall_clock = wall_clock

    def plan(self, passage: Passage, local: Target, body: bytes | None) -> Plan | OwnAnswer:
        """
        What becomes of a request.

        :param body: as it came; where it can be read, `Flight.readable` is it, too.
        :raises Untranslatable: nothing, and why.
        """
        route = self.choose(passage, local)
        if route is None:
            return self._native(passage, local, body, self._upstreams["anthropic"], None)
        upstream = self._upstreams[route.provider]
        kind = upstream.provider.kind
        if kind == "openai" and local.path == COUNT_TOKENS:
            return OwnAnswer(body=estimate.count_tokens(_readable(passage)), fields={ESTIMATED: b"true"})
        if kind == "openai" and local.path == MESSAGES:
            return self._to_openai(passage, upstream, route)
        if kind == "anthropic" and is_openai_path(local.path):
            return self._to_anthropic(passage, upstream, route)
        return self._native(passage, local, body, upstream, route)

    def choose(self, passage: Passage, local: Target) -> Route | None:
        """
        Where a request goes; ``None``: to Anthropic, as it is.

        :raises Untranslatable: nowhere, as a rule says.
        """
        if self._router.trivial and not is_openai_path(local.path):
            return None
        flight, fields = passage.flight, passage.request.requestHeaders
        origin = claude_code.from_headers(lambda name: fields.getRawHeaders(name, [None])[0])
        body = flight.readable
        route = self._router.choose(
            RequestFacts(
                path=local.path.decode("ascii"),
                model=flight.model,
                session=origin.session,
                request_class=origin.request_class,
                agent_type=origin.agent_type,
                system=lambda: None if body is None else wire_body.get_member(body, "system"),
            )
        )
        if route.refusal is not None:
            raise Untranslatable(route.refusal, status=403, error_type="permission_error")
        return route

    # As it came

    def _native(
        self, passage: Passage, local: Target, body: bytes | None, upstream: Upstream, route: Route | None
    ) -> Plan:
        flight, provider = passage.flight, upstream.provider
        sent = passage.request.requestHeaders
        fields = sent if route is None else sent.copy()
        keep_what_goes_up(fields)
        if provider.kind == "openai":
            ours = passage.openai_client or credentials.is_openai_client(sent)
            credentials.for_openai(sent, fields, upstream, from_openai_client=ours)
        else:
            credentials.set_own(fields, provider)
            if local.root == b"/v1":
                set_version(fields, provider)
        going = body
        if route is not None:
            _add_fields(fields, route)
            if route.model is not None and body:
                going = self._with_model(passage, body, route.model)
        answer: Answer = relay
        summary = flight.summary if self._may_demote(passage, local, upstream) else None
        demoted = None if summary is None or going is None else demotion.rewrite(going, summary)
        if demoted is not None:
            flight.demoted = True
            going, answer = demoted, _fold
        if going is not body and going is not None:
            passage.forwards(going)
        return Plan(upstream=upstream, target=local.raw, fields=fields, body=going, answer=answer)

    def _with_model(self, passage: Passage, body: bytes, model: str) -> bytes:
        flight = passage.flight
        if flight.readable is None:
            raise Untranslatable(
                f"The request is to be routed to {model}, and its body is encoded. Send it as plain JSON."
            )
        replaced = wire_body.replace_member(flight.readable, "model", msgspec.json.encode(model))
        if replaced is None:
            # It is no JSON object: whoever gets it says so.
            return body
        flight.routed_model = model
        return replaced

    def leaves_alone(self, passage: Passage, local: Target) -> bool:
        """
        Whether a request goes to Anthropic as it is.

        :raises Untranslatable: it goes nowhere, as a rule says.
        """
        route = self.choose(passage, local)
        return route is None or (route.provider == "anthropic" and not route.headers)

    def _may_demote(self, passage: Passage, local: Target, upstream: Upstream) -> bool:
        provider = upstream.provider
        return provider.demote_nonstreaming and demotion.applies_to(passage.request.method, local.path)

    # An Anthropic client, a model of another provider

    def _to_openai(self, passage: Passage, upstream: Upstream, route: Route) -> Plan:
        flight = passage.flight
        readable, model = _readable(passage), _model(passage, route)
        summary = flight.summary
        demoted = None
        if upstream.provider.demote_nonstreaming and summary is not None:
            demoted = demotion.rewrite(readable, summary)
            flight.demoted = demoted is not None
        asked = chat_request.translate_request(demoted or readable, model=model)
        body, asked = asked.body, attrs.evolve(asked, body=b"")
        sent = passage.request.requestHeaders
        fields = _new_fields(sent)
        credentials.for_openai(sent, fields, upstream, from_openai_client=False)

        async def answer(passage: Passage, response: IResponse) -> None:
            await translating.to_anthropic(
                passage, response, asked, model=model, streamed=asked.stream and not flight.demoted
            )

        return self._translated(passage, upstream, route, CHAT_COMPLETIONS, fields, body, answer)

    # An OpenAI client, a Claude model

    def _to_anthropic(self, passage: Passage, upstream: Upstream, route: Route) -> Plan:
        asked = messages_request.translate_request(_readable(passage), model=_model(passage, route))
        body, asked = asked.body, attrs.evolve(asked, body=b"")
        sent = passage.request.requestHeaders
        fields = _new_fields(sent, b"Anthropic-Version", b"Anthropic-Beta")
        set_version(fields, upstream.provider)
        credentials.for_anthropic(sent, fields, upstream)
        created = int(self._wall_clock())

        async def answer(passage: Passage, response: IResponse) -> None:
            await translating.to_openai(passage, response, asked, created=created)

        return self._translated(passage, upstream, route, MESSAGES, fields, body, answer)

    def _translated(
        self,
        passage: Passage,
        upstream: Upstream,
        route: Route,
        target: bytes,
        fields: Headers,
        body: bytes,
        answer: Answer,
    ) -> Plan:
        passage.flight.routed_model = route.model
        _add_fields(fields, route)
        passage.forwards(body)
        return Plan(upstream=upstream, target=target, fields=fields, body=body, answer=answer)


async def _fold(passage: Passage, response: IResponse) -> None:
    if response.code == 200 and is_event_stream(response):
        await fold(passage, response)
    else:
        await relay(passage, response)


def _readable(passage: Passage) -> bytes:
    """
    :raises Untranslatable: the body cannot be read.
    """
    if passage.request.method != b"POST":
        raise Untranslatable("This path takes POST alone.", status=405)
    body = passage.flight.readable
    if body is None:
        raise Untranslatable(
            "The request has no body, or one that is encoded: what is to be translated must be plain JSON."
        )
    return body


def _model(passage: Passage, route: Route) -> str:
    model = route.model or passage.flight.model
    if model is None:
        raise Untranslatable("model: the request needs it, as a string.")
    return model


def _new_fields(sent: Headers, *more: bytes) -> Headers:
    """The fields of a request that is ours: of the client's, who it is and what it is traced by; and these."""
    fields = new_fields()
    fields.setRawHeaders(b"Content-Type", [b"application/json"])
    for name in (b"User-Agent", b"Traceparent", b"Tracestate", *more):
        values = sent.getRawHeaders(name)
        if values is not None:
            fields.setRawHeaders(name, values)
    return fields


def _add_fields(fields: Headers, route: Route) -> None:
    for name, value in route.headers.items():
        fields.setRawHeaders(name.encode("ascii"), [value.encode("latin-1")])
