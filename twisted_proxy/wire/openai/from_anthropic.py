"""
A message → a chat completion; a stream of events → a stream of chunks.

What Claude thinks goes on as ``reasoning_content``, and with its signature as ``thinking_blocks``: a client that sends
an assistant's message back as it got it lets Claude think on. Citations, and blocks that no request from
:mod:`~twisted_proxy.wire.openai.to_anthropic` can bring about, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from twisted_proxy.wire import sse
from twisted_proxy.wire.openai import failures, raw, tools
from twisted_proxy.wire.openai.refusal import bad_answer
from twisted_proxy.wire.utf8 import replace_invalid

DEFAULT_MAX_EVENT_BYTES = 64 * 1024 * 1024

_FINISH = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def translate_answer(body: bytes, *, created: int, functions: bool = False) -> bytes:
    """
    The chat completion that a message is, JSON in UTF-8.

    :param created: seconds since the epoch.
    :param functions: of :class:`~twisted_proxy.wire.openai.to_anthropic.MessagesRequest`.
    :raises Untranslatable: if the body is no message.
    """
    try:
        return _answer(replace_invalid(body), created, functions=functions)
    except raw.MalformedError as e:
        raise bad_answer(f"The answer of Anthropic's API is not a message: {e}.") from e


def _answer(body: bytes, created: int, *, functions: bool) -> bytes:
    found = raw.members(body)
    texts: list[bytes] = []
    reasoning: list[bytes] = []
    thinking: list[bytes] = []
    calls: list[dict[str, bytes]] = []
    if "content" not in found:
        raise raw.MalformedError("it has no content")
    for item in raw.items(found["content"]):
        block = raw.members(item)
        match raw.string_or(block.get("type")):
            case "text":
                texts.append(block.get("text", b'""'))
            case "thinking" | "redacted_thinking":
                reasoning.append(block.get("thinking", b'""'))
                thinking.append(item)
            case "tool_use":
                calls.append(
                    {
                        "id": block.get("id", b'""'),
                        "name": block.get("name", b'""'),
                        "arguments": tools.arguments_of(block.get("input", b"{}")),
                    }
                )
    message = {
        "role": b'"assistant"',
        "content": raw.concatenate(texts) if texts or not calls else b"null",
        "refusal": b"null",
    }
    if thinking:
        message["reasoning_content"] = raw.concatenate(reasoning)
        message["thinking_blocks"] = raw.array(thinking)
    if calls and functions:
        message["function_call"] = raw.obj({name: calls[0][name] for name in ("name", "arguments")})
    elif calls:
        message["tool_calls"] = raw.array(
            raw.obj(
                {
                    "id": call["id"],
                    "type": b'"function"',
                    "function": raw.obj({"name": call["name"], "arguments": call["arguments"]}),
                }
            )
            for call in calls
        )
    choice = {
        "index": b"0",
        "message": raw.obj(message),
        "logprobs": b"null",
        "finish_reason": _finish_reason(found.get("stop_reason"), functions=functions),
    }
    return raw.obj(
        {
            "id": found.get("id", b'""'),
            "object": b'"chat.completion"',
            "created": raw.number(created),
            "model": found.get("model", b'""'),
            "choices": raw.array([raw.obj(choice)]),
            "usage": _usage(raw.members(found.get("usage", b"{}"))),
        }
    )


def _finish_reason(stop_reason: bytes | None, *, functions: bool) -> bytes:
    reason = _FINISH.get(raw.string_or(stop_reason), "stop")
    return raw.quote("function_call" if functions and reason == "tool_calls" else reason)


def _usage(counts: Mapping[str, bytes]) -> bytes:
    """``prompt_tokens`` has in it what the cache gave and took; ``input_tokens`` does not."""

    def count(name: str, within: Mapping[str, bytes] = counts) -> int:
        return raw.whole_number(within.get(name)) or 0

    read, written = count("cache_read_input_tokens"), count("cache_creation_input_tokens")
    prompt = count("input_tokens") + read + written
    completion = count("output_tokens")
    details = counts.get("output_tokens_details", b"")
    thought = count("thinking_tokens", raw.members(details)) if details.startswith(b"{") else 0
    return raw.obj(
        {
            "prompt_tokens": raw.number(prompt),
            "completion_tokens": raw.number(completion),
            "total_tokens": raw.number(prompt + completion),
            "prompt_tokens_details": raw.obj(
                {"cached_tokens": raw.number(read), "cache_write_tokens": raw.number(written)}
            ),
            "completion_tokens_details": raw.obj({"reasoning_tokens": raw.number(thought)}),
        }
    )


_KNOWN = frozenset(
    (
        b"message_start",
        b"content_block_start",
        b"content_block_delta",
        b"content_block_stop",
        b"message_delta",
        b"message_stop",
        b"ping",
        b"error",
    )
)


class _Call:
    """A call whose block is open."""

    __slots__ = ("begun", "index", "input")

    def __init__(self, index: int, tool_input: bytes) -> None:
        self.index = index
        self.input = tool_input
        self.begun = False


class ChunkStream:
    """
    Feed it a message's events as bytes, get a chat completion's chunks as bytes, ``data: [DONE]`` behind them.
    However the bytes are split, the chunks are the same.

    It goes from *flowing* to *finished* once: by ``message_stop``, by an ``error`` event, by an event that cannot
    be read, by its size, or by :meth:`finish`. What comes after that is ignored.
    """

    def __init__(
        self,
        *,
        created: int,
        include_usage: bool = False,
        functions: bool = False,
        max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES,
    ) -> None:
        """
        :param created: seconds since the epoch.
        :param include_usage: of :class:`~twisted_proxy.wire.openai.to_anthropic.MessagesRequest`.
        :param functions: the same.
        :param max_event_bytes: what one unfinished event may take.
        """
        self._created = created
        self._include_usage = include_usage
        self._functions = functions
        self._parser = sse.Parser(max_event_bytes)
        self._max_event_bytes = max_event_bytes
        self._out: list[bytes] = []
        self._head: dict[str, bytes] | None = None
        self._usage: dict[str, bytes] = {}
        self._stop_reason: bytes | None = None
        self._calls: dict[int, _Call] = {}
        self._next_call = 0
        self._thinking: dict[int, int] = {}
        self._next_thinking = 0
        self._events = 0
        self.finished = False
        """Whether the chunks are all out."""
        self.failure: str | None = None
        """Why the completion is not whole, in words that quote nothing of it. What is last is then an error."""

    def feed(self, data: bytes) -> bytes:
        """The chunks that the stream's next bytes complete."""
        if self.finished:
            return b""
        try:
            events = self._parser.feed(data)
        except sse.EventTooLargeError:
            self._fail("api_error", f"an event of Anthropic's answer takes more than {self._max_event_bytes} bytes")
            return self._flush()
        for event in events:
            self._event(event)
            if self.finished:
                break
        return self._flush()

    def finish(self) -> bytes:
        """The stream has ended, or was cut: what is left. A completion that is not whole gets an error."""
        if not self.finished:
            place = f"(events: {self._events})" if self._events else "(it is empty)"
            self._fail("api_error", f"the stream of Anthropic's API ended before its answer did {place}")
        return self._flush()

    # -- in

    def _event(self, event: sse.Event) -> None:
        self._events += 1
        try:
            self._dispatch(replace_invalid(event.data), event.event)
        except raw.MalformedError as e:
            self._fail("api_error", f"event {self._events} of Anthropic's answer cannot be read: {e}")

    def _dispatch(self, data: bytes, name: bytes) -> None:
        if name not in _KNOWN:
            return  # as the SDKs do, also with one that has none
        found = raw.members(data)
        match raw.string_or(found.get("type")) or name.decode("ascii"):
            case "message_start":
                self._message_start(raw.members(found.get("message", b"{}")))
            case "content_block_start":
                self._block_start(_index(found), raw.members(found.get("content_block", b"{}")))
            case "content_block_delta":
                self._block_delta(_index(found), raw.members(found.get("delta", b"{}")))
            case "content_block_stop":
                self._block_stop(_index(found))
            case "message_delta":
                self._count(found.get("usage"))
                self._stop_reason = raw.members(found.get("delta", b"{}")).get("stop_reason", self._stop_reason)
            case "message_stop":
                self._message_stop()
            case "ping":
                # Data only, so no comment: a chunk that says nothing.
                if self._head is not None:
                    self._delta({})
            case "error":
                failure = failures.from_anthropic_error(data)
                self._fail(failure.error_type, failure.message, told=True)

    def _message_start(self, message: Mapping[str, bytes]) -> None:
        if self._head is not None:
            return
        self._head = {
            "id": message.get("id", b'""'),
            "object": b'"chat.completion.chunk"',
            "created": raw.number(self._created),
            "model": message.get("model", b'""'),
        }
        self._count(message.get("usage"))
        self._delta({"role": b'"assistant"', "content": b'""', "refusal": b"null"})

    def _count(self, usage: bytes | None) -> None:
        # Counts are cumulative.
        if usage is not None and usage.startswith(b"{"):
            self._usage |= {name: value for name, value in raw.members(usage).items() if value != b"null"}

    def _block_start(self, index: int, block: Mapping[str, bytes]) -> None:
        match raw.string_or(block.get("type")):
            case "text":
                self._say("content", block.get("text"))
            case "thinking":
                self._thinking[index] = self._next_thinking
                self._next_thinking += 1
                self._think(index, "thinking", block.get("thinking"))
                self._think(index, "signature", block.get("signature"))
            case "redacted_thinking":
                self._thinking[index] = self._next_thinking
                self._next_thinking += 1
                self._think(index, "data", block.get("data"), kind=b'"redacted_thinking"')
            case "tool_use":
                call = self._calls[index] = _Call(self._next_call, block.get("input", b"{}"))
                self._next_call += 1
                name = block.get("name", b'""')
                if self._functions:
                    self._delta({"function_call": raw.obj({"name": name, "arguments": b'""'})})
                else:
                    begun = {
                        "index": raw.number(call.index),
                        "id": block.get("id", b'""'),
                        "type": b'"function"',
                        "function": raw.obj({"name": name, "arguments": b'""'}),
                    }
                    self._delta({"tool_calls": raw.array([raw.obj(begun)])})

    def _block_delta(self, index: int, delta: Mapping[str, bytes]) -> None:
        match raw.string_or(delta.get("type")):
            case "text_delta":
                self._say("content", delta.get("text"))
            case "thinking_delta":
                self._think(index, "thinking", delta.get("thinking"))
            case "signature_delta":
                self._think(index, "signature", delta.get("signature"))
            case "input_json_delta" if index in self._calls:
                piece = delta.get("partial_json", b'""')
                if raw.string_or(piece):
                    self._calls[index].begun = True
                    self._arguments(self._calls[index], piece)

    def _block_stop(self, index: int) -> None:
        self._thinking.pop(index, None)
        call = self._calls.pop(index, None)
        if call is not None and not call.begun:
            # No fragments: the input is what the start had, "{}" of a call without arguments included.
            self._arguments(call, tools.arguments_of(call.input))

    def _message_stop(self) -> None:
        if self._head is None:
            self._fail("api_error", "Anthropic's stream has an end and no beginning")
            return
        for index in sorted(self._calls):
            self._block_stop(index)
        self._delta({}, finish_reason=_finish_reason(self._stop_reason, functions=self._functions))
        if self._include_usage:
            self._send({**self._head, "choices": b"[]", "usage": _usage(self._usage)})
        self._out.append(b"data: [DONE]\n\n")
        self.finished = True

    # -- out

    def _say(self, member: str, literal: bytes | None) -> None:
        if literal is not None and literal.startswith(b'"') and literal != b'""':
            self._delta({member: literal})

    def _think(self, index: int, member: str, literal: bytes | None, kind: bytes = b'"thinking"') -> None:
        if literal is None or literal in (b'""', b"null") or index not in self._thinking:
            return
        block = {"index": raw.number(self._thinking[index]), "type": kind, member: literal}
        delta = {"reasoning_content": literal} if member == "thinking" else {}
        self._delta({**delta, "thinking_blocks": raw.array([raw.obj(block)])})

    def _arguments(self, call: _Call, literal: bytes) -> None:
        if self._functions:
            self._delta({"function_call": raw.obj({"arguments": literal})})
        else:
            piece = {"index": raw.number(call.index), "function": raw.obj({"arguments": literal})}
            self._delta({"tool_calls": raw.array([raw.obj(piece)])})

    def _delta(self, delta: Mapping[str, bytes], finish_reason: bytes = b"null") -> None:
        if self._head is None:
            raise raw.MalformedError("it comes before message_start")
        choice = {"index": b"0", "delta": raw.obj(delta), "logprobs": b"null", "finish_reason": finish_reason}
        chunk = {**self._head, "choices": raw.array([raw.obj(choice)])}
        if self._include_usage:
            chunk["usage"] = b"null"
        self._send(chunk)

    def _send(self, chunk: Mapping[str, bytes]) -> None:
        self._out.append(b"data: %b\n\n" % raw.obj(chunk))

    def _fail(self, error_type: str, reason: str, *, told: bool = False) -> None:
        self.failure = "Anthropic's API sent an error" if told else reason
        message = reason if told else reason[:1].upper() + reason[1:] + "."
        self._out.append(b"data: %b\n\n" % failures.openai_event(error_type, message))
        self.finished = True

    def _flush(self) -> bytes:
        out, self._out = self._out, []
        return b"".join(out)


def _index(found: Mapping[str, bytes]) -> int:
    index = raw.whole_number(found.get("index"))
    if index is None:
        raise raw.MalformedError("it has no index")
    return index
