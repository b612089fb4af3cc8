"""
What the spans of a request say: names, attributes, what counts as an error. Nothing here knows OpenTelemetry's SDK.

Names are of OpenTelemetry's semantic conventions 1.41, the last that have those of generative AI in them: HTTP
(https://opentelemetry.io/docs/specs/semconv/http/http-spans/), generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/) and Anthropic
(https://opentelemetry.io/docs/specs/semconv/gen-ai/anthropic/). What they have no name for is below ``claude_proxy.``.

No attribute holds what was said, nor any credential: of a query only what the log shows, of fields only those that are
named here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import attrs

from ..config import ProviderConfig
from ..record.digest import AnswerDigest
from ..relay.flight import Flight, Verdict
from ..wire.claude_code import Origin
from ..wire.target import loggable_query

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.41.0"

MAX_LENGTH: Final = 1024
"""Characters of a value that a client chose."""

INFERENCES: Final = frozenset({"/v1/messages", "/v1/chat/completions"})
"""Paths at which a model answers."""
_ROUTES: Final = INFERENCES | {"/v1/messages/count_tokens", "/v1/models"}
_METHODS: Final = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})

# Whole, or what the client did.
_NO_FAULTS: Final = frozenset({Verdict.COMPLETE, Verdict.CLIENT_GONE, Verdict.REFUSED})

Value = str | bool | int | float | Sequence[str]
Attributes = dict[str, Value]


@attrs.frozen(kw_only=True)
class Asked:
    """
    The upstream's side of a request, when it is over.

    :ivar provider: its name in the configuration.
    :ivar status: of its answer; ``None`` where none came.
    :ivar streamed: whether the answer is server-sent events.
    :ivar waited: seconds from the sending to the first byte of the answer's body.
    :ivar answer: what a model's answer says; ``None`` where it is nothing that a model says.
    """

    provider: str
    status: int | None
    streamed: bool
    waited: float | None
    answer: AnswerDigest | None


def is_inference(method: str, path: str) -> bool:
    """Whether a model is asked."""
    return method == "POST" and path in INFERENCES


# The request as it came


def server_name(method: str, path: str) -> str:
    """The name of the span of a request that came: its method and its path, if that is one of those that are known."""
    known = _method(method)
    name = "HTTP" if known == "_OTHER" else known
    return f"{name} {path}" if path in _ROUTES else name


def for_sampler(method: str, path: str) -> Attributes:
    """What a sampler may decide by."""
    made: Attributes = {"http.request.method": _method(method), "url.path": path[:MAX_LENGTH]}
    if path in _ROUTES:
        made["http.route"] = path
    return made


def at_start(
    flight: Flight, origin: Origin, *, host: str | None, peer: str | None, scheme: str | None, user_agent: str | None
) -> Attributes:
    """
    What else is known of a request when its headers are here.

    :param host: the field ``Host``. :param scheme: that the client used, if a proxy in front tells.
    """
    made: Attributes = {"claude_proxy.request_id": flight.request_id}
    address, port = _host(host)
    _add(
        made,
        {
            "http.request.method_original": None if flight.method in _METHODS else flight.method[:MAX_LENGTH],
            "url.query": loggable_query(flight.query)[:MAX_LENGTH] or None,
            "url.scheme": scheme,
            "server.address": address,
            "server.port": port,
            "client.address": peer,
            "user_agent.original": user_agent and user_agent[:MAX_LENGTH],
            "claude_proxy.agent": origin.agent,
            "claude_proxy.agent_type": origin.agent_type,
            "claude_proxy.parent_agent": origin.parent_agent,
            "claude_proxy.prompt": origin.prompt,
            "claude_proxy.request_class": origin.request_class,
        },
    )
    return made


def at_end(flight: Flight, asked: Asked | None, error: str | None) -> Attributes:
    """
    What is known of it when it is over.

    :param error: as :func:`server_error` has it.
    """
    first = flight.first_byte_at
    made: Attributes = {
        "claude_proxy.verdict": _verdict(flight).value,
        "http.request.body.size": flight.body_bytes,
        "http.response.body.size": flight.sent_bytes,
    }
    _add(
        made,
        {
            "http.response.status_code": flight.status,
            "error.type": error,
            "claude_proxy.provider": None if asked is None else asked.provider,
            "claude_proxy.time_to_first_byte": None if first is None else round(first - flight.received_at, 6),
            "claude_proxy.demoted": flight.demoted or None,
        },
    )
    return made


def server_error(flight: Flight, asked: Asked | None) -> str | None:
    """
    Why a request failed on our side, or upstream where the status does not show it; ``None``: it did not.

    As HTTP's conventions have it, an answer with a status 4xx is none of ours. Nor is a client that leaves.
    """
    if flight.failure is not None:
        return flight.failure
    fault = _fault(flight)
    if fault is not None:
        return fault
    status = flight.status
    if status is not None and status >= 500:
        return str(status)
    if asked is not None and asked.answer is not None and (asked.status or 0) < 400:
        return asked.answer.error_type
    return None


# The request as it was sent upstream


def client_name(flight: Flight) -> str:
    """The name of the span of what was asked upstream."""
    if not is_inference(flight.method, flight.path):
        return server_name(flight.method, "")
    model = _model(flight)
    return "chat" if model is None else f"chat {model}"


def of_upstream(
    flight: Flight, asked: Asked, provider: ProviderConfig | None, conversation: str | None, error: str | None
) -> Attributes:
    """
    What is known of what was asked upstream, when it is over.

    :param provider: that was asked. :param error: as :func:`client_error` has it.
    """
    made: Attributes = {"claude_proxy.provider": asked.provider}
    if provider is not None:
        base = urlsplit(provider.base_url)
        _add(made, {"server.address": base.hostname, "server.port": base.port or _PORTS.get(base.scheme)})
    _add(made, {"http.response.status_code": asked.status, "error.type": error})
    if not is_inference(flight.method, flight.path):
        made["http.request.method"] = _method(flight.method)
        return made
    summary, answer = flight.summary, asked.answer
    streams = flight.demoted or (summary is not None and summary.stream)
    made["gen_ai.operation.name"] = "chat"
    made["gen_ai.provider.name"] = asked.provider if provider is None else provider.kind
    _add(
        made,
        {
            "gen_ai.request.model": _model(flight),
            "gen_ai.request.stream": streams or None,
            "gen_ai.conversation.id": conversation,
            "gen_ai.response.time_to_first_chunk": asked.waited if asked.streamed else None,
        },
    )
    if answer is None:
        return made
    _add(
        made,
        {
            "gen_ai.response.id": answer.message_id,
            "gen_ai.response.model": answer.model,
            "gen_ai.response.finish_reasons": None if answer.stop_reason is None else (answer.stop_reason,),
            "gen_ai.usage.output_tokens": answer.output_tokens,
        },
    )
    if answer.charges:
        read = answer.cache_read_tokens or 0
        written = (answer.cache_write_5m_tokens or 0) + (answer.cache_write_1h_tokens or 0)
        # The conventions' sum is of all that the model read. Anthropic's number is without what the cache gave or took.
        made["gen_ai.usage.input_tokens"] = (answer.input_tokens or 0) + read + written
        made["gen_ai.usage.cache_read.input_tokens"] = read
        made["gen_ai.usage.cache_creation.input_tokens"] = written
    return made


def client_error(flight: Flight, asked: Asked) -> str | None:
    """What went wrong upstream, or between; ``None``: nothing."""
    if flight.failure is not None:
        return flight.failure
    told = None if asked.answer is None else asked.answer.error_type
    if asked.status is not None and asked.status >= 400:
        return told or str(asked.status)
    if told is not None:
        return told
    return _fault(flight)


_PORTS: Final = {"http": 80, "https": 443}


def _verdict(flight: Flight) -> Verdict:
    return flight.verdict or Verdict.FAILED


def _fault(flight: Flight) -> str | None:
    verdict = _verdict(flight)
    return None if verdict in _NO_FAULTS else verdict.value


def _model(flight: Flight) -> str | None:
    return flight.routed_model or (None if flight.summary is None else flight.summary.model)


def _method(method: str) -> str:
    return method if method in _METHODS else "_OTHER"


def _host(field: str | None) -> tuple[str | None, int | None]:
    if not field:
        return None, None
    host, colon, port = field.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit() and len(port) < 6):
        host, port = field, ""
    return host.strip("[]")[:MAX_LENGTH] or None, int(port) if port else None


def _add(made: Attributes, found: dict[str, Value | None]) -> None:
    """What is ``None`` is not known."""
    for name, value in found.items():
        if value is not None:
            made[name] = value
