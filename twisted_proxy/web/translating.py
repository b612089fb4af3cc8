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


async def collect(passage: Passage, response: IResponse) -> bytes:
    """
    The body of a response, whole.

    :raises UpstreamError: it cannot be had, or not read.
    """
    require_plain(response)
    collected = Collected(
        passage.clock,
        limit=passage.config.max_response_bytes,
        silence=passage.upstream.provider.idle_timeout,
        tap=passage.flight.tap,
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
    request_id = passage.flight.request_id
    message_id = f"msg_{request_id.removeprefix('req_')}"
    if response.code != 200:
        status, body = failures.translate_to_anthropic(response.code, await collect(passage, response), request_id)
        _answer(passage, response, status, body)
        return
    if asked.stream:
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
