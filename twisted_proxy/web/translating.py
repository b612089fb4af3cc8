"""Answers of one API for clients of the other."""

from __future__ import annotations

from twisted.web.iweb import IResponse

from ..relay.streaming import stop_body
from ..relay.translation import Collected
from ..wire.openai import failures, from_anthropic, from_openai
from ..wire.openai.refusal import bad_answer
from ..wire.openai.to_anthropic import MessagesRequest
from ..wire.openai.to_openai import ChatRequest
from .folding import fold
from .passage import Passage
from .relaying import is_event_stream, relay, require_plain

_ANTHROPIC_ID = b"Request-Id"
_OPENAI_ID = b"X-Request-Id"


async def collect(passage: Passage, response: IResponse, *, recorded: bool = True) -> bytes:
    """
    The body of a response, whole.

    :param recorded: whether it is the answer that is recorded of the passage.
    :raises UpstreamError: it cannot be had, or not read.
    """
    require_plain(response)
    collected = Collected(
        passage.clock,
        limit=passage.config.max_response_bytes,
        silence=passage.upstream.provider.idle_timeout,
        tap=passage.flight.tap if recorded else None,
    )
    response.deliverBody(collected)
    return await collected.body


async def to_anthropic(
    passage: Passage, response: IResponse, asked: ChatRequest, *, model: str, streamed: bool
) -> None:
    """
    Give an Anthropic client what an API of OpenAI's kind answers.

    :param model: that was asked. :param streamed: whether the client asked for a stream.
    :raises UpstreamError: it cannot be had. :raises Untranslatable: it is no such answer.
    """
    _adapt_head(response, _OPENAI_ID, _ANTHROPIC_ID)
    request_id = passage.flight.request_id
    message_id = f"msg_{request_id.removeprefix('req_')}"
    if response.code != 200:
        status, body = failures.translate_to_anthropic(response.code, await collect(passage, response), request_id)
        _answer(passage, response, status, body)
        return
    if asked.stream and (streamed or is_event_stream(response)):
        _require_stream(response)
        events = from_openai.AnswerStream(
            model=model,
            message_id=message_id,
            tool_names=asked.tool_names,
            request_id=request_id,
            max_bytes=passage.config.max_response_bytes,
        )
        if streamed:
            require_plain(response)
            await relay(passage, response, events)
        else:
            await fold(passage, response, events)
        return
    completion = await collect(passage, response)
    message = from_openai.translate_answer(completion, model=model, message_id=message_id, tool_names=asked.tool_names)
    _answer(passage, response, 200, message)


async def to_openai(passage: Passage, response: IResponse, asked: MessagesRequest, *, created: int) -> None:
    """
    Give an OpenAI client what Anthropic's API answers.

    :param created: seconds since the Unix epoch.
    :raises UpstreamError: it cannot be had. :raises Untranslatable: it is no such answer.
    """
    _adapt_head(response, _ANTHROPIC_ID, _OPENAI_ID)
    if response.code != 200:
        status, body = failures.translate_to_openai(response.code, await collect(passage, response))
        _answer(passage, response, status, body)
    elif asked.stream:
        _require_stream(response)
        require_plain(response)
        chunks = from_anthropic.ChunkStream(
            created=created,
            include_usage=asked.include_usage,
            functions=asked.functions,
            max_event_bytes=passage.config.max_response_bytes,
        )
        await relay(passage, response, chunks)
    else:
        message = await collect(passage, response)
        body = from_anthropic.translate_answer(message, created=created, functions=asked.functions)
        _answer(passage, response, 200, body)


def _adapt_head(response: IResponse, theirs: bytes, ours: bytes) -> None:
    """
    Make the head of an answer one for a client of the other API.

    :param theirs: the field of the request's id at the upstream. :param ours: where the client's SDK looks for it.
    """
    fields = response.headers
    values = fields.getRawHeaders(theirs)
    if values is not None:
        fields.setRawHeaders(ours, values)
    # No request that is translated sends them back, and others must not take them to another provider.
    fields.removeHeader(b"Set-Cookie")


def _require_stream(response: IResponse) -> None:
    if not is_event_stream(response):
        stop_body(response)
        raise bad_answer("The provider was asked for a stream, and its answer is none.")


def _answer(passage: Passage, response: IResponse, status: int, body: bytes) -> None:
    """Answer with JSON of ours, and with what the response's head says beside its body."""
    fields = passage.copy_head(response)
    passage.request.setResponseCode(status)
    fields.removeHeader(b"Content-Encoding")
    fields.setRawHeaders(b"Content-Type", [b"application/json"])
    passage.answer(body)
