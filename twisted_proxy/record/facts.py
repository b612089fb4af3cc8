"""
What the headers and bodies of an exchange say, as fields of `Exchange`.

Bodies are read one at a time, and no more of one is in memory than `DIGEST_LIMIT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

from ..wire import claude_code
from ..wire.headers import is_event_stream, rate_limits
from . import coding, digest
from .entries import Opened
from .exchange import Body, BytesContent, Content, Mark, Role
from .pricing import Prices
from .spool import SpoolContent
from .usage import read_usage

DIGEST_LIMIT: Final = coding.DEFAULT_LIMIT
"""Bytes of a body that is larger are kept, and not looked into."""

Fields = Mapping[str, Any]
Contents = Mapping[Role, SpoolContent]
Headers = tuple[tuple[str, str], ...]


@attrs.frozen(kw_only=True)
class RequestFacts:
    """
    What a request says.

    :ivar fields: of `Exchange`.
    :ivar messages: of a request that continues a conversation or begins one, each as JSON.
    :ivar behind: as `conversations.Asked.behind`. :ivar compacted: as `conversations.Asked.compacted`.
    """

    fields: Fields
    messages: tuple[bytes, ...] = ()
    behind: str | None = None
    compacted: bool = False


@attrs.frozen(kw_only=True)
class AnswerFacts:
    """
    What an answer says.

    :ivar fields: of `Exchange`.
    :ivar streamed: the message that a stream tells.
    :ivar message: the answer as JSON, streamed or not.
    :ivar events: server-sent events that the client was sent.
    """

    fields: Fields
    streamed: bytes | None = None
    message: bytes | None = None
    events: int = 0


def _first(fields: Headers, *names: str) -> str | None:
    return next((value for wanted in names for name, value in fields if name == wanted), None)


def of_headers(opened: Opened, response_headers: Headers) -> dict[str, Any]:
    """What the headers say; themselves only where bodies are kept, too."""
    found: dict[str, Any] = {
        "received_at": opened.received_at,
        "method": opened.method,
        "path": opened.path,
        "query": opened.query,
        "client": opened.client,
        "credential": opened.credential,
        "user_agent": _first(opened.request_headers, "user-agent"),
        "upstream_request_id": _first(response_headers, "request-id", "x-request-id"),
        "rate_limits": rate_limits(response_headers),
        **digest.origin_fields(claude_code.from_recorded(opened.request_headers)),
    }
    if opened.keep == "full":
        found["request_headers"] = opened.request_headers
        found["response_headers"] = response_headers
    return found


def has_conversation(opened: Opened) -> bool:
    """
    Whether the messages of a request are a conversation's.

    Counting their tokens is none: a client counts what it may send next.
    """
    return opened.method == "POST" and opened.path.endswith(("/messages", "/chat/completions"))


def of_request(opened: Opened, contents: Contents) -> RequestFacts:
    """
    What a request says, headers included.

    :raises DamagedContent: its body is not there as it was written. :raises OSError: it cannot be read now.
    """
    origin = claude_code.from_recorded(opened.request_headers)
    read = digest.RequestDigest()
    for role in (Role.REQUEST, Role.FORWARDED):
        content = contents.get(role)
        if content is None or content.size > DIGEST_LIMIT:
            continue
        encoding, kind = None, None
        if role is Role.REQUEST:
            encoding = _first(opened.request_headers, "content-encoding")
            kind = _first(opened.request_headers, "content-type")
        read = digest.read_request(coding.decode(content.read(), encoding).data, kind)
        if read.model is not None or read.messages:
            break
    fields = digest.request_fields(origin, read)
    if not has_conversation(opened):
        return RequestFacts(fields=fields)
    return RequestFacts(
        fields=fields,
        messages=read.messages,
        behind=read.previous_message_id if read.thread == "continue" else None,
        compacted=origin.context_compacted is not None,
    )


def of_answer(
    opened: Opened,
    contents: Contents,
    response_headers: Headers,
    status: int | None,
    prices: Prices,
    model: str | None,
) -> AnswerFacts:
    """
    What the client was told; and what the upstream said, where the client was not told of the tokens.

    :param model: that was asked for upstream.
    :raises DamagedContent: a body is not there as it was written. :raises OSError: it cannot be read now.
    """
    found: AnswerFacts | None = None
    for role in (Role.ANSWER, Role.RECEIVED):
        content = contents.get(role)
        if content is None or not 0 < content.size <= DIGEST_LIMIT:
            continue
        kind, encoding = _kind_of(role, contents, response_headers)
        data = coding.decode(content.read(), encoding).data
        read = digest.read_answer(data, kind, status, opened.path)
        fields = digest.answer_fields(read, prices, at=opened.received_at, model=model)
        if found is None:
            events = _count_events(data, kind) if role is Role.ANSWER else 0
            found = AnswerFacts(fields=fields, streamed=read.message, message=read.message or data, events=events)
        else:
            told = {name: value for name, value in found.fields.items() if value is not None}
            found = attrs.evolve(found, fields={**fields, **told, "cost_is_partial": fields["cost_is_partial"]})
        if read.charges:
            break
    return found or AnswerFacts(fields={})


def _count_events(data: bytes, kind: str | None) -> int:
    """Events that have ended: each by a blank line, which no sender writes twice."""
    if not is_event_stream((kind or "").encode("latin-1", "replace")):
        return 0
    return data.count(b"\n\n") or data.count(b"\r\n\r\n")


def of_usage(
    usage: Mapping[str, Any], model: str | None, received_at: int, prices: Prices, *, complete: bool
) -> Fields:
    """
    What an answer cost of which nothing else is kept.

    :param complete: whether that is the usage of the whole answer.
    """
    cost = prices.cost(read_usage(usage, model), received_at)
    if cost is None:
        return {"cost_nanousd": None, "cost_is_partial": False}
    return {"cost_nanousd": cost.nanousd, "cost_is_partial": cost.partial or not complete}


def _kind_of(role: Role, contents: Contents, response_headers: Headers) -> tuple[str | None, str | None]:
    """
    Content type and content encoding of an answer.

    The headers are of what the upstream sent. Where that is not what the client got, or where there was no such
    answer, we wrote the latter, without coding: an event stream or JSON.
    """
    if role is Role.RECEIVED or (response_headers and Role.RECEIVED not in contents):
        return _first(response_headers, "content-type"), _first(response_headers, "content-encoding")
    start = next(contents[role].pieces(), b"")
    return ("text/event-stream" if start.startswith((b"event:", b"data:", b":")) else "application/json"), None


def bodies(opened: Opened, contents: Contents, response_headers: Headers, streamed: bytes | None) -> tuple[Body, ...]:
    """
    The bodies to be kept.

    :raises DamagedContent: one is not there as it was written. :raises OSError: it cannot be read now.
    """
    found = []
    for role, content in contents.items():
        kind: str | None = "application/json"
        encoding = None
        marks: tuple[Mark, ...] = ()
        if role in (Role.ANSWER, Role.RECEIVED):
            kind, encoding = _kind_of(role, contents, response_headers)
            marks = content.marks()
        elif role is Role.REQUEST:
            kind = _first(opened.request_headers, "content-type")
            encoding = _first(opened.request_headers, "content-encoding")
        found.append(Body(role=role, content=content, content_type=kind, content_encoding=encoding, marks=marks))
    if streamed is not None:
        message: Content = BytesContent(streamed)
        found.append(Body(role=Role.MESSAGE, content=message, content_type="application/json"))
    return tuple(found)
