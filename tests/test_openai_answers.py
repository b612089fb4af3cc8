"""A chat completion as a message, and a stream of chunks as a stream of events."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tests.openai_shapes import text, tool_use
from tests.pieces import split
from twisted_proxy.wire import sse
from twisted_proxy.wire.message import Complete, ErrorEvent, MessageFold
from twisted_proxy.wire.openai import tools
from twisted_proxy.wire.openai.from_openai import AnswerStream, translate_answer
from twisted_proxy.wire.openai.refusal import Untranslatable

JSON = dict[str, Any]

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
CUTS = st.lists(st.integers(0, 10_000), max_size=12)

DONE = b"data: [DONE]\n\n"
USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
    "completion_tokens_details": {"reasoning_tokens": 5},
}
COUNTS = {
    "input_tokens": 30,
    "cache_creation_input_tokens": 10,
    "cache_read_input_tokens": 60,
    "output_tokens": 20,
    "output_tokens_details": {"thinking_tokens": 5},
}
NO_COUNTS = {
    "input_tokens": 0,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 0,
}


def data(value: Any) -> bytes:
    """One event."""
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def chunk(delta: Any = None, finish_reason: str | None = None, **members: Any) -> bytes:
    """A chunk as OpenAI sends it."""
    choice = {"index": 0, "delta": delta or {}, "logprobs": None, "finish_reason": finish_reason}
    return data(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "gpt-4o-2024-08-06",
            "choices": [choice],
        }
        | members
    )


def call(index: int | None, arguments: Any = None, *, call_id: str | None = None, name: str | None = None) -> bytes:
    """A chunk with one fragment of one call."""
    function = {"name": name, "arguments": arguments}
    found: JSON = {"function": {key: value for key, value in function.items() if value is not None}}
    if index is not None:
        found["index"] = index
    if call_id is not None:
        found |= {"id": call_id, "type": "function"}
    return chunk({"tool_calls": [found]})


BEGIN = chunk({"role": "assistant", "content": "", "refusal": None})


def usage(counts: JSON = USAGE) -> bytes:
    return data({"id": "chatcmpl-1", "choices": [], "usage": counts})


def end(finish_reason: str = "stop") -> bytes:
    return chunk({}, finish_reason) + usage() + DONE


def stream(**members: Any) -> AnswerStream:
    return AnswerStream(**{"model": "gpt-4o", "message_id": "msg_1"} | members)


def events(chunks: bytes, **members: Any) -> list[JSON]:
    """What the chunks come to, each valid by the official SDK's types; pings left out."""
    machine = stream(**members)
    found = sse.Parser().feed(machine.feed(chunks) + machine.finish())
    parsed = [json.loads(event.data) for event in found]
    assert [event.event.decode() for event in found] == [each["type"] for each in parsed]
    for each in parsed:
        if each["type"] not in ("ping", "error"):
            EVENT.validate_python(each)
    return [each for each in parsed if each["type"] != "ping"]


def folded(chunks: bytes, **members: Any) -> Any:
    """The message that the events come to."""
    machine = stream(**members)
    fold = MessageFold()
    fold.feed(machine.feed(chunks) + machine.finish())
    outcome = fold.result()
    assert isinstance(outcome, Complete), outcome
    assert machine.failure is None
    Message.model_validate_json(outcome.message)
    return json.loads(outcome.message)


def failed(chunks: bytes, **members: Any) -> ErrorEvent:
    """The error that the events end in."""
    machine = stream(**members)
    fold = MessageFold()
    fold.feed(machine.feed(chunks) + machine.finish())
    outcome = fold.result()
    assert isinstance(outcome, ErrorEvent), outcome
    assert machine.failure is not None
    assert machine.finished
    return outcome


def completion(message: JSON, finish_reason: str | None = "stop", **members: Any) -> bytes:
    """A chat completion as OpenAI sends it."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": None, "refusal": None} | message,
        "logprobs": None,
        "finish_reason": finish_reason,
    }
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-4o-2024-08-06",
            "choices": [choice],
            "usage": USAGE,
        }
        | members
    ).encode()


def answer(body: bytes, **members: Any) -> Any:
    """The message that it comes to, valid by the official SDK's types."""
    found = translate_answer(body, **{"model": "gpt-4o", "message_id": "msg_1"} | members)
    Message.model_validate_json(found)
    return json.loads(found)


def message(content: list[JSON], stop_reason: str = "end_turn", **members: Any) -> JSON:
    return {
        "id": "chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": "gpt-4o-2024-08-06",
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": COUNTS,
    } | members


def test_a_stream_of_every_kind() -> None:
    """Thinking, text and two calls, each a block of its own, one after the other, in fragments as they come."""
    chunks = (
        BEGIN
        + chunk({"reasoning_content": "Let me"})
        + chunk({"reasoning_content": " see."})
        + chunk({"content": "Hel"})
        + chunk({"content": "lo"})
        + call(0, "", call_id="call_a", name="f")
        + call(0, '{"a"')
        + call(0, ":1}")
        + call(1, "", call_id="call_b", name="g")
        + call(1, "{}")
        + end("tool_calls")
    )

    def block(index: int, content_block: JSON, *deltas: JSON) -> list[JSON]:
        return [
            {"type": "content_block_start", "index": index, "content_block": content_block},
            *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
            {"type": "content_block_stop", "index": index},
        ]

    assert events(chunks) == [
        {
            "type": "message_start",
            "message": message([], usage=NO_COUNTS) | {"stop_reason": None},
        },
        *block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "Let me"},
            {"type": "thinking_delta", "thinking": " see."},
        ),
        *block(1, text(""), {"type": "text_delta", "text": "Hel"}, {"type": "text_delta", "text": "lo"}),
        *block(
            2,
            tool_use("call_a"),
            {"type": "input_json_delta", "partial_json": '{"a"'},
            {"type": "input_json_delta", "partial_json": ":1}"},
        ),
        *block(3, tool_use("call_b", "g"), {"type": "input_json_delta", "partial_json": "{}"}),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": COUNTS},
        {"type": "message_stop"},
    ]


def test_nothing_waits_that_can_go() -> None:
    """Each chunk brings its events at once; a call's block ends when the next one begins, or the answer does."""
    machine = stream()
    assert machine.feed(BEGIN).startswith(b"event: message_start\n")
    assert b'"text":"Hi"' in machine.feed(chunk({"content": "Hi"}))
    assert b'"name":"f"' in machine.feed(call(0, "", call_id="a", name="f"))
    assert b'"partial_json":"{\\"a\\""' in machine.feed(call(0, '{"a"'))
    assert machine.feed(call(0, ":1}")).count(b"event:") == 1
    begun = machine.feed(call(1, "", call_id="b", name="g"))
    assert begun.startswith(b"event: content_block_stop\n")
    assert b'"name":"g"' in begun
    assert b"content_block_stop" in machine.feed(call(1, "{}") + chunk({}, "tool_calls"))
    assert machine.feed(usage()) == b""
    assert b"message_stop" in machine.feed(DONE)
    assert machine.finished
    assert machine.feed(chunk({"content": "more"})) == machine.finish() == b""


@pytest.mark.parametrize(
    ("chunks", "whole"),
    [
        (
            chunk({"content": "Hi"}) + end(),
            completion({"content": "Hi"}),
        ),
        (
            chunk({"reasoning": "Hm."}) + chunk({"content": "Hi"}) + end(),
            completion({"reasoning": "Hm.", "content": "Hi"}),
        ),
        (
            chunk({"content": "é\u4e2d😀\u0000\u2028"}) + end(),
            completion({"content": "é\u4e2d😀\u0000\u2028"}),
        ),
        (
            call(0, '{"n": 1208925819614629174706176, "x": 1.0}', call_id="a", name="f") + end("tool_calls"),
            completion(
                {
                    "tool_calls": [
                        {
                            "id": "a",
                            "type": "function",
                            "function": {"name": "f", "arguments": '{"n": 1208925819614629174706176, "x": 1.0}'},
                        }
                    ]
                },
                "tool_calls",
            ),
        ),
        (
            chunk({"refusal": "I can"}) + chunk({"refusal": "not."}) + end(),
            completion({"refusal": "I cannot."}),
        ),
        (chunk({"content": "Hi"}) + end("length"), completion({"content": "Hi"}, "length")),
        (chunk({"content": "Hi"}) + end("content_filter"), completion({"content": "Hi"}, "content_filter")),
        (end(), completion({})),
        (
            chunk({"function_call": {"name": "f", "arguments": ""}})
            + chunk({"function_call": {"arguments": "{}"}})
            + end("function_call"),
            completion({"function_call": {"name": "f", "arguments": "{}"}}, "function_call"),
        ),
    ],
)
def test_a_stream_comes_to_what_the_answer_is(chunks: bytes, whole: bytes) -> None:
    """Folded, the events are the message that the whole completion is."""
    assert folded(BEGIN + chunks) == answer(whole)


@pytest.mark.parametrize(
    ("finish_reason", "message_members", "stop_reason"),
    [
        ("stop", {"content": "Hi"}, "end_turn"),
        ("length", {"content": "Hi"}, "max_tokens"),
        ("content_filter", {"content": "Hi"}, "refusal"),
        ("stop", {"refusal": "No."}, "refusal"),
        ("tool_calls", {"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}, "tool_use"),
        ("stop", {"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}, "tool_use"),
        ("length", {"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": '{"a'}}]}, "max_tokens"),
        ("tool_calls", {"content": "Hi", "tool_calls": []}, "end_turn"),
        ("something_newer", {"content": "Hi"}, "end_turn"),
        (None, {"content": "Hi"}, "end_turn"),
    ],
)
def test_finish_reasons(finish_reason: str | None, message_members: JSON, stop_reason: str) -> None:
    """An answer that was cut off is that, also inside a call; calls are called whatever the server says."""
    found = answer(completion(message_members, finish_reason))
    assert found["stop_reason"] == stop_reason
    if finish_reason is not None:
        delta = {key: value for key, value in message_members.items() if key != "tool_calls"}
        calls = [{"index": 0, **each} for each in message_members.get("tool_calls", ())]
        streamed = events(BEGIN + chunk({**delta, "tool_calls": calls}) + end(finish_reason))
        assert streamed[-2]["delta"]["stop_reason"] == stop_reason


def test_a_stop_sequence_is_named_where_the_server_names_it() -> None:
    """vLLM does; elsewhere it is the end of a turn."""
    choice = {"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop", "stop_reason": "END"}
    found = answer(completion({}, choices=[choice]))
    assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", "END")
    streamed = chunk(choices=[{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop", "stop_reason": "END"}])
    assert folded(streamed + usage() + DONE) == found


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "value"),
        [
            ("{}", "{}"),
            ("", "{}"),
            (" \n", "{}"),
            ("null", "{}"),
            ('{"n":1208925819614629174706176,"x":1.0,"y":1e400}', None),
            (' { "a" : "é" }\n', '{ "a" : "é" }'),
            ('"{\\"a\\": 1}"', '{"a": 1}'),
            ('{"a": "cut o', '{"_unparsed_arguments":"{\\"a\\": \\"cut o"}'),
            ("[1]", '{"_unparsed_arguments":"[1]"}'),
            ("ls -l", '{"_unparsed_arguments":"ls -l"}'),
            ('{"a":NaN}', '{"_unparsed_arguments":"{\\"a\\":NaN}"}'),
            ('"ls"', '{"_unparsed_arguments":"\\"ls\\""}'),
        ],
    )
    def test_as_input(self, arguments: str, value: str | None) -> None:
        """Byte for byte where they are an object, kept as text where they are not; ``{}`` only where none were."""
        found = tools.input_of(arguments)
        assert found.decode() == (arguments if value is None else value)
        if tools.UNPARSED.encode() in found:
            assert json.loads(tools.arguments_of(found)) == arguments

    @pytest.mark.parametrize("arguments", ["", " \n", "null", '"{\\"a\\": 1}"', "[1]", "ls -l", '"ls"', ' {"a":1}'])
    def test_those_that_are_no_object_wait_for_their_end(self, arguments: str) -> None:
        """Streamed in single characters, they come to the same input."""
        chunks = b"".join(call(0, char) for char in arguments)
        whole = folded(BEGIN + call(0, "", call_id="a", name="f") + chunks + end("tool_calls"))
        assert whole["content"] == [tool_use("a", **json.loads(tools.input_of(arguments)))]

    def test_those_that_break_off_go_on_as_they_came(self) -> None:
        """In a stream nobody can take back what is out: the client is told that the tokens ran out."""
        chunks = BEGIN + call(0, '{"a":1,"b":"c', call_id="a", name="f") + end("length")
        assert events(chunks)[2]["delta"]["partial_json"] == '{"a":1,"b":"c'
        assert events(chunks)[-2]["delta"]["stop_reason"] == "max_tokens"
        whole = completion(
            {"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": '{"a":1,"b":"c'}}]}, "length"
        )
        assert answer(whole)["content"] == [tool_use("a", **{tools.UNPARSED: '{"a":1,"b":"c'})]


ONE = '{"a": "}\\"{"}'
TWO = '{"b": [{}, 2]}'
TWO_CALLS = [tool_use("a", "f", a='}"{'), tool_use("b", "g", b=[{}, 2])]


@pytest.mark.parametrize(
    "chunks",
    [
        call(0, ONE, call_id="a", name="f") + call(1, TWO, call_id="b", name="g"),
        # Each call's fragments in turn, from a server that writes both at a time.
        b"".join(
            call(0, one, call_id="a", name="f") + call(1, two, call_id="b", name="g")
            for one, two in zip(ONE.ljust(20), TWO.ljust(20), strict=True)
        ),
        # All calls first, their arguments after that, the last one's first.
        call(0, "", call_id="a", name="f") + call(1, "", call_id="b", name="g") + call(1, TWO) + call(0, ONE),
        # Both in one chunk.
        chunk(
            {
                "tool_calls": [
                    {"index": 0, "id": "a", "function": {"name": "f", "arguments": ONE}},
                    {"index": 1, "id": "b", "function": {"name": "g", "arguments": TWO}},
                ]
            }
        ),
        # No index.
        call(None, ONE, call_id="a", name="f") + call(None, TWO, call_id="b", name="g"),
        call(None, "", call_id="a", name="f")
        + call(None, ONE)
        + call(None, "", call_id="b", name="g")
        + b"".join(call(None, char) for char in TWO),
        # No index, the id and the name in each fragment.
        b"".join(call(None, char, call_id="a", name="f") for char in ONE)
        + b"".join(call(None, char, call_id="b", name="g") for char in TWO),
        # No index, the fragments mixed.
        call(None, ONE[:3], call_id="a", name="f")
        + call(None, TWO[:3], call_id="b", name="g")
        + call(None, ONE[3:], call_id="a")
        + call(None, TWO[3:], call_id="b"),
        # One index for all.
        call(0, ONE, call_id="a", name="f") + call(0, TWO, call_id="b", name="g"),
        # The index as a number with a point, the name alone before its id, another id in each fragment.
        chunk({"tool_calls": [{"index": 0.0, "id": "a", "function": {"name": "f"}}]})
        + call(0, ONE[:3], call_id="x")
        + call(0, ONE[3:], call_id="y")
        + call(1, TWO, call_id="b", name="g"),
        # The id first, the name after it.
        call(0, "", call_id="a") + call(0, "", name="f") + call(0, ONE) + call(1, TWO, call_id="b", name="g"),
        # Arguments as an object, where the object's text is what counts.
        chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": json.loads(ONE)}}]})
        + chunk({"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g", "arguments": json.loads(TWO)}}]}),
        # Nulls where nothing is.
        chunk({"content": None, "reasoning_content": None, "tool_calls": None, "function_call": None})
        + call(0, ONE, call_id="a", name="f")
        + chunk(
            {"content": "", "tool_calls": [{"index": 0, "id": None, "function": {"name": None, "arguments": None}}]}
        )
        + call(1, TWO, call_id="b", name="g"),
    ],
)
def test_calls_as_servers_write_them(chunks: bytes) -> None:
    """Whole, in fragments, mixed, with an index or without: always the same two calls, one after the other."""
    found = folded(BEGIN + chunks + end("tool_calls"))
    assert found["content"] == TWO_CALLS
    assert found["stop_reason"] == "tool_use"
    kinds = [(each["type"], each["index"]) for each in events(BEGIN + chunks + end()) if "index" in each]
    assert [index for _, index in kinds] == sorted(index for _, index in kinds)


def test_ids_that_are_not_there() -> None:
    """They are made of the message's id, each once; a server's own is kept."""
    calls = [
        {"index": 0, "id": "", "function": {"name": "f", "arguments": "{}"}},
        {"index": 1, "id": "a", "function": {"name": "f", "arguments": "{}"}},
        {"index": 2, "id": "a", "function": {"name": "g", "arguments": "{}"}},
    ]
    found = folded(BEGIN + chunk({"tool_calls": calls}) + end())
    assert found == answer(completion({"tool_calls": calls}))
    assert [block["id"] for block in found["content"]] == ["call_0_chatcmpl-1", "a", "call_2_chatcmpl-1"]


def test_names_that_were_shortened() -> None:
    """The client sees its own."""
    chunks = BEGIN + call(0, "{}", call_id="a", name="short") + end()
    assert folded(chunks, tool_names={"short": "long"})["content"][0]["name"] == "long"
    whole = completion({"tool_calls": [{"id": "a", "function": {"name": "short", "arguments": "{}"}}]})
    assert answer(whole, tool_names={"short": "long"})["content"][0]["name"] == "long"


def test_text_after_a_call() -> None:
    """It has a block of its own, behind the call's, which is not broken by it."""
    chunks = BEGIN + call(0, ONE[:4], call_id="a", name="f") + chunk({"content": "Hm."}) + call(0, ONE[4:]) + end()
    assert folded(chunks)["content"] == [TWO_CALLS[0], text("Hm.")]


def test_content_in_parts() -> None:
    """Where a server sends parts of text, they are its text."""
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert folded(BEGIN + chunk({"content": parts}) + end()) == answer(completion({"content": parts}))
    assert answer(completion({"content": parts}))["content"] == [text("Hello")]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (USAGE, COUNTS),
        (None, NO_COUNTS),
        ({}, NO_COUNTS),
        ({"prompt_tokens": 10, "completion_tokens": 3}, NO_COUNTS | {"input_tokens": 10, "output_tokens": 3}),
        (
            {"prompt_tokens": 10, "completion_tokens": 3, "prompt_cache_hit_tokens": 4, "prompt_tokens_details": None},
            NO_COUNTS | {"input_tokens": 6, "cache_read_input_tokens": 4, "output_tokens": 3},
        ),
        (
            {"prompt_tokens": 10.0, "completion_tokens": None, "prompt_tokens_details": {"cached_tokens": 40}},
            NO_COUNTS | {"cache_read_input_tokens": 40},
        ),
    ],
)
def test_usage(counts: JSON | None, expected: JSON) -> None:
    """Cached tokens are taken out of ``input_tokens``, and no count is below zero."""
    assert answer(completion({"content": "Hi"}, usage=counts))["usage"] == expected
    chunks = BEGIN + chunk({"content": "Hi"}, "stop") + data({"choices": [], "usage": counts}) + DONE
    assert folded(chunks)["usage"] == expected


def test_usage_that_comes_with_the_last_choice() -> None:
    """Or in every chunk: the last one counts."""
    chunks = BEGIN + chunk({"content": "Hi"}, usage={"prompt_tokens": 1}) + chunk({}, "stop", usage=USAGE) + DONE
    assert folded(chunks)["usage"] == COUNTS


class TestEnds:
    WHOLE = BEGIN + chunk({"content": "Hi"}) + chunk({}, "stop")

    @pytest.mark.parametrize("tail", [b"", DONE, b"data: [DONE]\n", b"data: [DONE]", b"data:[DONE]\r\n\r\n", b": bye"])
    def test_a_whole_answer(self, tail: bytes) -> None:
        """What counts is ``finish_reason``; not every server says ``[DONE]``, or ends its last line."""
        assert folded(self.WHOLE + tail)["stop_reason"] == "end_turn"

    def test_a_last_chunk_without_its_blank_line(self) -> None:
        """It is whole if its JSON is."""
        assert folded(self.WHOLE.rstrip())["stop_reason"] == "end_turn"
        assert failed(self.WHOLE.rstrip()[:-1]).error_type == "api_error"

    @pytest.mark.parametrize(
        "chunks",
        [
            b"",
            DONE,
            BEGIN,
            BEGIN + chunk({"content": "Hi"}),
            BEGIN + chunk({"content": "Hi"}) + DONE,
            BEGIN + call(0, "{}", call_id="a", name="f"),
            BEGIN + chunk({"content": "Hi"}) + usage() + DONE,
            usage() + DONE,
            (BEGIN + chunk({"content": "Hi"}) + chunk({}, "stop"))[:-20],
        ],
    )
    def test_an_answer_that_was_cut_does_not_look_whole(self, chunks: bytes) -> None:
        """It ends in an ``error`` event, and has no ``message_stop``."""
        outcome = failed(chunks, request_id="req_1")
        assert (outcome.error_type, outcome.request_id) == ("api_error", "req_1")
        assert "ended before" in outcome.message or "empty" in outcome.message

    @pytest.mark.parametrize(
        ("error", "error_type", "word"),
        [
            (
                {"error": {"message": "Slow down.", "type": "rate_limit_error", "code": None}},
                "rate_limit_error",
                "Slow",
            ),
            ({"error": {"message": "Busy.", "code": 503}}, "overloaded_error", "Busy"),
            ({"error": {"message": "Oops.", "type": "server_error"}}, "api_error", "Oops"),
            ({"error": "Oops."}, "api_error", "Oops"),
            ({"id": "x", "choices": [], "error": {"code": 429, "message": "Slow down."}}, "rate_limit_error", "Slow"),
            ({"error": {"message": "No more.", "type": "insufficient_quota"}}, "billing_error", "No more"),
        ],
    )
    def test_an_error_in_the_middle(self, error: JSON, error_type: str, word: str) -> None:
        """It is an ``error`` event of the type that Anthropic's clients know."""
        outcome = failed(BEGIN + chunk({"content": "Hi"}) + data(error) + DONE)
        assert outcome.error_type == error_type
        assert word in outcome.message

    def test_an_event_named_error(self) -> None:
        """Also without an object of that name in it."""
        assert failed(BEGIN + b"event: error\n" + data({"message": "Oops."})).message == "Oops."

    @pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
    def test_an_answer_that_the_server_could_not_finish(self, reason: str) -> None:
        """It says so in its ``finish_reason``."""
        assert reason in failed(BEGIN + chunk({"content": "Hi"}, reason) + DONE).message
        with pytest.raises(Untranslatable, match=reason):
            answer(completion({"content": "Hi"}, reason))

    @pytest.mark.parametrize(
        "chunks",
        [
            data(b"{"),
            data(b"[]"),
            data(b'"x"'),
            data(b"NaN"),
            data(b'{"choices":5}'),
            data(b'{"choices":[5]}'),
            data(b'{"choices":[{"delta":5}]}'),
            chunk({"content": 5}),
            chunk({"content": [{"type": "image_url"}]}),
            chunk({"tool_calls": {}}),
            call(0, 5, call_id="a", name="f"),
            chunk({"tool_calls": [{"index": 0, "type": "custom", "custom": {"name": "f", "input": "x"}}]}),
            call(0, "{}", call_id="a") + end(),
            call(0, "{}", call_id="a", name="f") + call(1, "{}", call_id="b", name="g") + call(0, "}"),
        ],
    )
    def test_what_cannot_be_read(self, chunks: bytes) -> None:
        """An error, and no guess."""
        assert "cannot be read" in failed(BEGIN + chunks + end()).message

    def test_other_choices_are_not_for_this_client(self) -> None:
        """Nobody asked for them."""
        other = {"index": 1, "delta": {"content": "Ho"}, "finish_reason": None}
        assert folded(BEGIN + chunk({"content": "Hi"}) + chunk(choices=[other]) + end())["content"] == [text("Hi")]


class TestStream:
    def test_comments_and_crlf(self) -> None:
        """Line ends of any kind; a comment that keeps this side alive is a ping for the other one."""
        chunks = (BEGIN + b": OPENROUTER PROCESSING\n\n" + chunk({"content": "Hi"}) + end()).replace(b"\n", b"\r\n")
        assert folded(chunks)["content"] == [text("Hi")]
        machine = stream()
        assert machine.feed(b": OPENROUTER PROCESSING\n\n") == b'event: ping\ndata: {"type":"ping"}\n\n'
        assert machine.feed(b":\n") == b'event: ping\ndata: {"type":"ping"}\n\n'

    def test_chunks_before_the_first_choice(self) -> None:
        """Azure sends one with what its filters found, and without an id."""
        first = data({"id": "", "model": "", "choices": [], "prompt_filter_results": [{}]})
        assert folded(first + BEGIN + chunk({"content": "Hi"}) + end())["id"] == "chatcmpl-1"

    def test_a_server_that_names_neither_itself_nor_its_answer(self) -> None:
        """Then the proxy's own names stand there."""
        found = folded(data({"choices": [{"delta": {"content": "Hi"}, "finish_reason": "stop"}]}))
        assert (found["id"], found["model"]) == ("msg_1", "gpt-4o")
        whole = json.dumps({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}).encode()
        assert answer(whole) == found

    def test_halves_of_a_pair(self) -> None:
        """A server that cuts by UTF-16 units: put together they are what was meant."""
        chunks = BEGIN + chunk({"content": "\ud83d"}) + chunk({"content": "\ude00"}) + end()
        assert folded(chunks)["content"] == [text("😀")]
        half = BEGIN + call(0, '{"a":"\ud83d', call_id="a", name="f") + call(0, '\ude00"}') + end()
        assert folded(half)["content"] == [tool_use("a", a="😀")]

    def test_no_utf8(self) -> None:
        """What is no UTF-8 is replaced, as a browser does."""
        assert folded(BEGIN + chunk({"content": "X"}).replace(b"X", b"\xff") + end())["content"] == [text("\ufffd")]

    EVERYTHING = (
        b"\xef\xbb\xbf"
        + BEGIN
        + b": comment\n"
        + chunk({"reasoning": "Hm"})
        + b":\r\n\r\n"
        + chunk({"content": "é😀"}).replace(b"\n", b"\r\n")
        + call(0, "", call_id="a", name="f")
        + call(1, TWO[:3], call_id="b", name="g")
        + call(0, ONE)
        + call(1, TWO[3:])
        + end("tool_calls")
    )

    @given(CUTS)
    def test_any_split_gives_the_same(self, cuts: list[int]) -> None:
        """The very same bytes, however they come."""
        machine = stream()
        pieces = split(self.EVERYTHING, cuts)
        assert b"".join(machine.feed(piece) for piece in pieces) + machine.finish() == stream().feed(self.EVERYTHING)

    def test_byte_by_byte(self) -> None:
        """The same for the smallest pieces."""
        machine = stream()
        out = b"".join(machine.feed(self.EVERYTHING[at : at + 1]) for at in range(len(self.EVERYTHING)))
        assert out == stream().feed(self.EVERYTHING)
        assert machine.finished

    @pytest.mark.parametrize(
        "chunks",
        [
            data(b'"' + b"x" * 20_000 + b'"'),
            b"data: " + b"x" * 20_000,
            b"".join(call(0, "x" * 1000, call_id="a", name="f") for _ in range(20)),
            call(0, '{"a":"', call_id="a", name="f")
            + b"".join(call(1, "x" * 1000, call_id="b", name="g") for _ in range(20)),
            b"".join(call(index, "{", call_id=f"a{index}", name="f") for index in range(40)),
        ],
    )
    def test_too_large(self, chunks: bytes) -> None:
        """What is held is limited: an unfinished chunk, and arguments that have to wait."""
        assert "10000 bytes" in failed(BEGIN + chunks, max_bytes=10_000).message

    def test_memory(self) -> None:
        """What goes on is not held, however long it gets."""
        machine = stream()
        machine.feed(BEGIN + call(0, '{"a":"', call_id="a", name="f"))
        piece = call(0, "x" * 10_000)
        machine.feed(piece)
        tracemalloc.start()
        try:
            for _ in range(200):
                machine.feed(piece)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 200_000


class TestAnswers:
    def test_every_kind(self) -> None:
        """Thinking, text, calls, in this order."""
        calls = [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": ONE}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": json.loads(TWO)}},
        ]
        body = completion({"reasoning_content": "Hm.", "content": "Hi", "tool_calls": calls}, "tool_calls")
        thinking = {"type": "thinking", "thinking": "Hm.", "signature": ""}
        assert answer(body) == message([thinking, text("Hi"), *TWO_CALLS], "tool_use")

    @pytest.mark.parametrize(
        ("body", "status", "word"),
        [
            (b"", 502, "not a chat completion"),
            (b"<html>", 502, "not a chat completion"),
            (b"{}", 502, "choices"),
            (b'{"choices":[]}', 502, "choices"),
            (b'{"choices":[{"message":{"tool_calls":[{"id":"a","function":{}}]}}]}', 502, "name"),
            (b'{"choices":[{"message":{"content":5}}]}', 502, "not a chat completion"),
            (b'{"error":{"message":"Busy.","code":503}}', 529, "Busy"),
            (b'{"error":{"message":"Too much.","type":"rate_limit_error"}}', 429, "Too much"),
        ],
    )
    def test_what_is_none(self, body: bytes, status: int, word: str) -> None:
        """An error, with the status that fits."""
        with pytest.raises(Untranslatable, match=word) as caught:
            translate_answer(body, model="gpt-4o", message_id="msg_1")
        assert caught.value.status == status
        assert json.loads(caught.value.anthropic_body(None))["error"]["type"] == caught.value.error_type


# -- streams that nobody wrote

SAID = st.text(max_size=6)
OBJECTS = st.dictionaries(st.text(max_size=3), st.integers() | SAID | st.lists(st.integers(), max_size=2), max_size=2)


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """An answer as a stream whose calls are mixed at will, and as a whole."""
    texts = draw(st.lists(SAID, max_size=3))
    inputs = [json.dumps(each, ensure_ascii=draw(st.booleans())) for each in draw(st.lists(OBJECTS, max_size=3))]
    fragments = [call(index, "", call_id=f"call_{index}", name=f"tool_{index}") for index in range(len(inputs))]
    rest = [(index, piece) for index, each in enumerate(inputs) for piece in draw_pieces(draw, each)]
    if draw(st.booleans()):
        # Mixed, but for the order within each call.
        order = draw(st.permutations([index for index, _ in rest]))
        queues = {index: [piece for at, piece in rest if at == index] for index in range(len(inputs))}
        rest = [(index, queues[index].pop(0)) for index in order]
    fragments += [call(index, piece) for index, piece in rest]
    reason = "tool_calls" if inputs else "stop"
    chunks = BEGIN + b"".join(chunk({"content": each}) for each in texts) + b"".join(fragments) + end(reason)
    calls = [
        {"id": f"call_{index}", "type": "function", "function": {"name": f"tool_{index}", "arguments": each}}
        for index, each in enumerate(inputs)
    ]
    return chunks, completion({"content": "".join(texts) or None, "tool_calls": calls or None}, reason)


def draw_pieces(draw: st.DrawFn, said: str) -> list[str]:
    """`said` in pieces."""
    cuts = sorted(draw(st.lists(st.integers(0, len(said)), max_size=3)))
    return [said[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(said)], strict=True)]


@settings(max_examples=60)
@given(answers())
def test_any_stream_comes_to_what_the_answer_is(pair: tuple[bytes, bytes]) -> None:
    """Whatever order the fragments of calls come in, and each block whole before the next one begins."""
    chunks, whole = pair
    assert folded(chunks) == answer(whole)
    open_index = None
    for event in events(chunks):
        if event["type"] == "content_block_start":
            assert open_index is None
            open_index = event["index"]
        elif event["type"] == "content_block_delta":
            assert open_index == event["index"]
        elif event["type"] == "content_block_stop":
            assert open_index == event["index"]
            open_index = None
