"""The messages that the stand-in upstream tells, whole or as an event stream.

One value gives both forms: ``message(...)`` is the JSON that a non-streaming call returns, and ``events(...)`` are the
server-sent events of the same message, so a client that folds the stream must arrive at the JSON. No I/O, no clock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import attrs

JSON = dict[str, Any]
Event = tuple[str | None, str]
"""The name of a server-sent event (``None``: no ``event:`` line) and its data."""


def compact(value: object) -> str:
    """JSON as the API writes it: no spaces, not escaped to ASCII."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def identifier(prefix: str, seed: bytes) -> str:
    """An id that is the same for the same seed, so that two clients that ask the same thing read the same answer."""
    return f"{prefix}_{hashlib.sha256(seed).hexdigest()[:24]}"


TOOL_INPUT: JSON = {
    "city": "Zürich",
    "days": [1, 2, 3],
    "nested": {"quote": 'a "b" \\ c', "empty": "", "emoji": "🌦️"},
}

BIG_NUMBER = 2**80 + 1

DEGREES = '{"degrees":21}'

CITATIONS: list[JSON] = [
    {
        "type": "char_location",
        "cited_text": "The grass is green.",
        "document_index": 0,
        "document_title": "Colours",
        "start_char_index": 0,
        "end_char_index": 19,
        "file_id": None,
    },
    {
        "type": "char_location",
        "cited_text": "The sky is blue.",
        "document_index": 0,
        "document_title": None,
        "start_char_index": 20,
        "end_char_index": 36,
        "file_id": None,
    },
]


def blocks(name: str, count: int) -> tuple[list[JSON], str]:
    """The content blocks and the stop reason of a named message; `count` is the number of words of its text."""
    words = "".join(f"word{n} " for n in range(count))
    match name:
        case "text":
            return [{"type": "text", "text": words, "citations": None}], "end_turn"
        case "unicode":
            words = "naïve 🌍 \u2028 \u0000 line\nfeed\r\n " + words
            return [{"type": "text", "text": words, "citations": None}], "end_turn"
        case "tools":
            return [
                {"type": "text", "text": "I look at the weather. ", "citations": None},
                {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": TOOL_INPUT},
                {"type": "tool_use", "id": "toolu_2", "name": "get_time", "input": {}},
            ], "tool_use"
        case "parallel":
            return [
                {"type": "text", "text": "Let me look.", "citations": None},
                *(
                    {"type": "tool_use", "id": f"call_{city}", "name": "get_weather", "input": {"city": city, "n": big}}
                    for city, big in (("Oslo", BIG_NUMBER), ("Rome", -BIG_NUMBER))
                ),
            ], "tool_use"
        case "degrees":
            return [{"type": "text", "text": DEGREES, "citations": None}], "end_turn"
        case "thinking":
            return [
                {"type": "thinking", "thinking": "Let me think. " + words, "signature": "c2lnbmF0dXJl" * 20},
                {"type": "redacted_thinking", "data": "cmVkYWN0ZWQ="},
                {"type": "text", "text": "Done thinking.", "citations": None},
            ], "end_turn"
        case "citations":
            return [
                {"type": "text", "text": "According to the document, ", "citations": None},
                {"type": "text", "text": "the grass is green and the sky is blue. ", "citations": CITATIONS},
            ], "end_turn"
        case "refusal":
            return [], "refusal"
    raise ValueError(f"no message is named {name!r}")


def usage(count: int) -> JSON:
    """What a message of `count` words cost."""
    return {
        "input_tokens": 25,
        "cache_creation_input_tokens": 7,
        "cache_read_input_tokens": 1000,
        "cache_creation": {"ephemeral_5m_input_tokens": 7, "ephemeral_1h_input_tokens": 0},
        "output_tokens": 10 + count,
        "service_tier": "standard",
        "server_tool_use": None,
    }


def message(name: str, *, count: int, model: str, message_id: str) -> JSON:
    """The whole answer, as a call without ``"stream": true`` returns it."""
    content, stop_reason = blocks(name, count)
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": usage(count),
    }


def pieces(text: str, size: int) -> Iterator[str]:
    """`text` cut into parts of `size` characters."""
    for start in range(0, len(text), size):
        yield text[start : start + size]


def block_events(index: int, block: JSON, size: int) -> Iterator[JSON]:
    """The events of one content block, its text in deltas of `size` characters."""

    def delta(**value: object) -> JSON:
        return {"type": "content_block_delta", "index": index, "delta": value}

    start = dict(block)
    deltas: list[JSON] = []
    match block["type"]:
        case "text":
            start["text"] = ""
            if block["citations"] is not None:
                start["citations"] = []
                deltas += [delta(type="citations_delta", citation=each) for each in block["citations"]]
            deltas += [delta(type="text_delta", text=part) for part in pieces(block["text"], size)]
        case "thinking":
            start["thinking"] = start["signature"] = ""
            deltas += [delta(type="thinking_delta", thinking=part) for part in pieces(block["thinking"], size)]
            deltas.append(delta(type="signature_delta", signature=block["signature"]))
        case "tool_use":
            start["input"] = {}
            text = compact(block["input"]) if block["input"] else ""
            deltas += [delta(type="input_json_delta", partial_json=part) for part in ("", *pieces(text, size))]
    yield {"type": "content_block_start", "index": index, "content_block": start}
    yield from deltas
    yield {"type": "content_block_stop", "index": index}


def message_events(whole: JSON, *, size: int = 24) -> Iterator[JSON]:
    """The stream of the message `whole`, as the API tells it, its texts in deltas of `size` characters."""
    start = {**whole, "content": [], "stop_reason": None, "usage": {**whole["usage"], "output_tokens": 1}}
    yield {"type": "message_start", "message": start}
    yield {"type": "ping"}
    for index, block in enumerate(whole["content"]):
        yield from block_events(index, block, size)
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": whole["stop_reason"], "stop_sequence": whole["stop_sequence"]},
        "usage": {"output_tokens": whole["usage"]["output_tokens"]},
    }
    yield {"type": "message_stop"}


def anthropic_events(whole: JSON, *, size: int = 24) -> Iterator[Event]:
    """The same, named by their type as Anthropic's streams name them."""
    for event in message_events(whole, size=size):
        yield event["type"], compact(event)


def openai_completion(content: list[JSON], *, count: int, model: str, completion_id: str) -> JSON:
    """Blocks of text and of calls in the shape of OpenAI's chat completions."""
    texts = [block["text"] for block in content if block["type"] == "text"]
    choice: JSON = {"role": "assistant", "content": "".join(texts) if texts else None, "refusal": None}
    finish = "stop"
    calls = [block for block in content if block["type"] == "tool_use"]
    if calls:
        choice["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": compact(call["input"])},
            }
            for call in calls
        ]
        finish = "tool_calls"
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": 1_793_613_600,
        "model": model,
        "choices": [{"index": 0, "message": choice, "logprobs": None, "finish_reason": finish}],
        "usage": {"prompt_tokens": 25, "completion_tokens": 10 + count, "total_tokens": 35 + count},
    }


def openai_events(whole: JSON, *, size: int = 24, include_usage: bool) -> Iterator[Event]:
    """The stream of a completion: data-only events and ``[DONE]``."""
    choice = whole["choices"][0]
    head = {"id": whole["id"], "object": "chat.completion.chunk", "created": whole["created"], "model": whole["model"]}

    def chunk(delta: JSON, finish: str | None = None) -> Event:
        choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        return None, compact({**head, "choices": choices})

    yield chunk({"role": "assistant", "content": "" if choice["message"]["content"] is not None else None})
    if choice["message"]["content"] is not None:
        for part in pieces(choice["message"]["content"], size):
            yield chunk({"content": part})
    for index, call in enumerate(choice["message"].get("tool_calls", ())):
        first = {**call["function"], "arguments": ""}
        yield chunk({"tool_calls": [{"index": index, "id": call["id"], "type": "function", "function": first}]})
        for part in pieces(call["function"]["arguments"], size):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
    yield chunk({}, choice["finish_reason"])
    if include_usage:
        yield None, compact({**head, "choices": [], "usage": whole["usage"]})
    yield None, "[DONE]"


@attrs.frozen(kw_only=True)
class Dialect:
    """How events are written: everything here is legal, and a relay keeps every byte of it."""

    eol: str = "\n"
    comments: bool = False
    ids: bool = False
    retry: int = 0
    unterminated: bool = False

    def encode(self, events: Iterator[Event]) -> Iterator[bytes]:
        """The bytes of each event, one value an event; a comment goes with the event that follows it."""
        eol = self.eol
        previous: str | None = None
        for number, (name, data) in enumerate(events):
            if previous is not None:
                yield (previous + eol).encode()
            lines = []
            if self.retry and number == 0:
                lines.append(f"retry: {self.retry}{eol}{eol}")
            if self.comments:
                lines.append(f": comment {number}{eol}")
            if self.ids:
                lines.append(f"id: {number}{eol}")
            if name is not None:
                lines.append(f"event: {name}{eol}")
            lines.append(f"data: {data}{eol}")
            previous = "".join(lines)
        if previous is not None:
            yield previous.encode() if self.unterminated else (previous + eol).encode()
