"""A request for chat completions as one for the Messages API; a message as a chat completion, streamed and not."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests import corpus, openai_shapes
from tests.corpus import CORPUS, Entry
from tests.openai_shapes import call, text, tool_use, user
from tests.pieces import split
from tests.standin_messages import message_events
from twisted_proxy.wire import sse
from twisted_proxy.wire.openai import from_anthropic, models, to_anthropic, tools
from twisted_proxy.wire.openai.from_anthropic import ChunkStream
from twisted_proxy.wire.openai.refusal import Untranslatable
from twisted_proxy.wire.openai.to_anthropic import translate_request

JSON = dict[str, Any]

HI = [{"role": "user", "content": "Hi"}]
CUTS = st.lists(st.integers(0, 10_000), max_size=12)
CREATED = 1_793_613_600


def request(**members: Any) -> bytes:
    return json.dumps({"model": "gpt-4o", "messages": HI} | members).encode()


def translated(model: str = "claude-opus-5", **members: Any) -> Any:
    """What such a request comes to, valid by the official SDK's types."""
    body = translate_request(request(**members), model=model).body
    return openai_shapes.messages_request(body)


def conversation(*messages: JSON) -> Any:
    """The messages that these come to."""
    return translated(messages=list(messages))["messages"]


def refused(**members: Any) -> str:
    with pytest.raises(Untranslatable) as caught:
        translate_request(request(**members), model="claude-opus-5")
    status, body = caught.value.openai_answer()
    assert status == 400
    assert json.loads(body) == {
        "error": {"message": caught.value.message, "type": "invalid_request_error", "param": None, "code": None}
    }
    return caught.value.message


def tool_result(call_id: str, content: str) -> JSON:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content}


def calling(*calls: JSON, **members: Any) -> JSON:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)} | members


def image(url: str) -> JSON:
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


TOOL = {"type": "function", "function": {"name": "f", "description": "Does f.", "parameters": {"type": "object"}}}
CLAUDE_TOOL = {"name": "f", "description": "Does f.", "input_schema": {"type": "object"}}
OTHER = {"type": "function", "function": {"name": "g"}}
CLAUDE_OTHER = {"name": "g", "input_schema": {"type": "object", "properties": {}}}


class TestRequest:
    def test_the_smallest_request(self) -> None:
        """``max_tokens`` is what Anthropic's API needs beside."""
        assert translated() == {
            "model": "claude-opus-5",
            "max_tokens": to_anthropic.DEFAULT_MAX_TOKENS,
            "messages": [user(text("Hi"))],
        }

    @pytest.mark.parametrize(
        ("model", "members", "tokens"),
        [
            ("claude-opus-5", {"max_tokens": 5}, 5),
            ("claude-opus-5", {"max_tokens": 5, "max_completion_tokens": 6}, 6),
            ("claude-opus-5", {"max_tokens": None}, 32_000),
            ("claude-3-5-haiku-20241022", {}, 8192),
            ("claude-3-haiku-20240307", {}, 4096),
            ("claude-opus-4-1-20250805", {}, 32_000),
        ],
    )
    def test_max_tokens(self, model: str, members: JSON, tokens: int) -> None:
        """The client's, or as many as are safe to ask for."""
        assert translated(model, **members)["max_tokens"] == tokens

    def test_system_and_developer(self) -> None:
        """All of them, in order, before the conversation: as Anthropic's own layer has it."""
        found = translated(
            messages=[
                {"role": "system", "content": "One."},
                {"role": "developer", "content": [text("Two."), text("Three.")]},
                *HI,
                {"role": "system", "content": "Four."},
                {"role": "system", "content": ""},
            ]
        )
        assert found["system"] == [text("One."), text("Two."), text("Three."), text("Four.")]
        assert found["messages"] == [user(text("Hi"))]

    @pytest.mark.parametrize(
        ("parts", "blocks"),
        [
            ([text("Hi"), text("Ho")], [text("Hi"), text("Ho")]),
            (
                [text("See:"), image("data:image/png;base64,iVBORw0KGgo=")],
                [
                    text("See:"),
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
                    },
                ],
            ),
            (
                [image("data:image/JPG;charset=x;base64,/9j/")],
                [{"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "/9j/"}}],
            ),
            (
                [image("https://example.org/a.png")],
                [{"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}],
            ),
            (
                [{"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBE"}}],
                [
                    {
                        "type": "document",
                        "title": "a.pdf",
                        "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"},
                    }
                ],
            ),
            ([text("Hi"), text(" \n")], [text("Hi")]),
        ],
    )
    def test_parts(self, parts: list[JSON], blocks: list[JSON]) -> None:
        """Each kind; what says nothing is not taken by the API, and left out."""
        assert conversation(user(*parts)) == [user(*blocks)]

    @pytest.mark.parametrize(
        "part",
        [
            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
            {"type": "file", "file": {"file_id": "file-1"}},
            {"type": "file", "file": {"file_data": "data:text/csv;base64,YQ=="}},
            image("data:image/png,raw"),
            image("file:///etc/passwd"),
            {"type": "hologram"},
            {"type": "text", "text": 5},
        ],
    )
    def test_parts_without_a_counterpart(self, part: JSON) -> None:
        """The message says where."""
        assert "messages.0.content.0" in refused(messages=[user(part)])

    def test_calls_and_their_results(self) -> None:
        """Results are blocks of one user's message, before what else the user says."""
        assert conversation(
            *HI,
            calling(call("call_a", "f", '{"n":1}'), call("call_b", "g", ""), content="Let me see."),
            {"role": "tool", "tool_call_id": "call_b", "content": "two"},
            {"role": "tool", "tool_call_id": "call_a", "content": [text("one"), text("1")]},
            {"role": "user", "content": "Well?"},
        )[1:] == [
            {
                "role": "assistant",
                "content": [text("Let me see."), tool_use("call_a", n=1), tool_use("call_b", "g")],
            },
            user(tool_result("call_b", "two"), tool_result("call_a", "one\n\n1"), text("Well?")),
        ]

    def test_a_user_in_between(self) -> None:
        """Anthropic demands the results first."""
        assert conversation(
            *HI,
            calling(call("a")),
            {"role": "user", "content": "Well?"},
            {"role": "tool", "tool_call_id": "a", "content": ""},
        )[2] == user(tool_result("a", ""), text("Well?"))

    def test_ids_that_anthropic_does_not_take(self) -> None:
        """They are others, and the same in call and result."""
        found = conversation(
            *HI, calling(call("functions.f:0")), {"role": "tool", "tool_call_id": "functions.f:0", "content": "x"}
        )
        made = found[1]["content"][0]["id"]
        assert made.startswith("toolu_")
        assert found[2]["content"][0]["tool_use_id"] == made

    @pytest.mark.parametrize(
        "arguments", ['{"n":1208925819614629174706176}', '{ "a" : [1.0, 1e400], "é":"\\u00e9" }', "{}"]
    )
    def test_arguments_pass_as_text(self, arguments: str) -> None:
        """``input`` is the text of ``arguments``."""
        messages = [*HI, calling(call("a", "f", arguments)), {"role": "tool", "tool_call_id": "a", "content": ""}]
        assert b'"input":' + arguments.encode() in translate_request(request(messages=messages), model="c").body

    def test_arguments_that_are_no_object(self) -> None:
        """A model can have written them; the conversation goes on, and nothing of it is lost."""
        found = conversation(
            *HI, calling(call("a", "f", "{oops")), {"role": "tool", "tool_call_id": "a", "content": "?"}
        )
        assert found[1]["content"] == [tool_use("a", **{tools.UNPARSED: "{oops"})]

    def test_functions(self) -> None:
        """The old names for the same."""
        found = translate_request(
            request(
                functions=[TOOL["function"]],
                function_call={"name": "f"},
                messages=[
                    *HI,
                    {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
                    {"role": "function", "name": "f", "content": "done"},
                ],
            ),
            model="claude-opus-5",
        )
        assert found.functions
        body = json.loads(found.body)
        assert body["tools"] == [CLAUDE_TOOL]
        assert body["tool_choice"] == {"type": "tool", "name": "f", "disable_parallel_tool_use": True}
        assert body["messages"][1:] == [
            {"role": "assistant", "content": [tool_use("call_0")]},
            user(tool_result("call_0", "done")),
        ]
        assert "function_call" in refused(messages=[{"role": "function", "name": "f", "content": "done"}])

    def test_what_an_assistant_says(self) -> None:
        """Refusals are text; what it thought goes back with its signature, and without one nowhere."""
        thinking = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
        found = conversation(
            *HI,
            {
                "role": "assistant",
                "content": [text("Ok."), {"type": "refusal", "refusal": "But no."}],
                "reasoning_content": "Hm.",
                "thinking_blocks": [{"index": 0, **thinking}],
            },
            *HI,
            {"role": "assistant", "content": "", "refusal": "No."},
            *HI,
        )
        assert found[1]["content"] == [thinking, text("Ok."), text("But no.")]
        assert found[3]["content"] == [text("No.")]

    @pytest.mark.parametrize(
        "message",
        [
            {"role": "narrator", "content": "x"},
            {"role": "tool", "content": "x"},
            {"role": "tool", "tool_call_id": "a", "content": [image("https://example.org")]},
            {"role": "assistant", "audio": {"id": "x"}},
            {"role": "assistant", "content": [image("https://example.org")]},
            {"role": "assistant", "tool_calls": [{"id": "a", "type": "custom", "custom": {"name": "f", "input": ""}}]},
            {"role": "assistant", "tool_calls": [{"id": "", "function": {"name": "f", "arguments": ""}}]},
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"arguments": ""}}]},
            {"content": "x"},
        ],
    )
    def test_messages_without_a_counterpart(self, message: JSON) -> None:
        """Each is refused in words."""
        assert refused(messages=[*HI, message])

    def test_a_conversation_that_says_nothing(self) -> None:
        """Anthropic needs a message beside the system's."""
        assert "messages" in refused(messages=[{"role": "system", "content": "x"}, {"role": "user", "content": ""}])
        assert "messages" in refused(messages=None)

    @pytest.mark.parametrize(
        ("members", "expected"),
        [
            ({"tools": [TOOL]}, {"tools": [CLAUDE_TOOL]}),
            ({"tools": [OTHER]}, {"tools": [CLAUDE_OTHER]}),
            ({"tools": []}, {}),
            ({"tools": [TOOL], "tool_choice": "auto"}, {"tools": [CLAUDE_TOOL], "tool_choice": {"type": "auto"}}),
            ({"tools": [TOOL], "tool_choice": "none"}, {"tools": [CLAUDE_TOOL], "tool_choice": {"type": "none"}}),
            ({"tools": [TOOL], "tool_choice": "required"}, {"tools": [CLAUDE_TOOL], "tool_choice": {"type": "any"}}),
            (
                {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
                {"tools": [CLAUDE_TOOL], "tool_choice": {"type": "tool", "name": "f"}},
            ),
            (
                {"tools": [TOOL], "parallel_tool_calls": False},
                {"tools": [CLAUDE_TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            ),
            (
                {"tools": [TOOL], "parallel_tool_calls": False, "tool_choice": "none"},
                {"tools": [CLAUDE_TOOL], "tool_choice": {"type": "none"}},
            ),
            ({"tools": [TOOL], "parallel_tool_calls": True}, {"tools": [CLAUDE_TOOL]}),
            (
                {
                    "tools": [TOOL, OTHER],
                    "tool_choice": {
                        "type": "allowed_tools",
                        "allowed_tools": {
                            "mode": "required",
                            "tools": [{"type": "function", "function": {"name": "g"}}],
                        },
                    },
                },
                {"tools": [CLAUDE_OTHER], "tool_choice": {"type": "any"}},
            ),
            ({"tool_choice": "auto"}, {}),
        ],
    )
    def test_tools_and_choice(self, members: JSON, expected: JSON) -> None:
        """Each kind of choice, with and without parallel calls."""
        found = translated(**members)
        assert {name: found[name] for name in ("tools", "tool_choice") if name in found} == expected

    @pytest.mark.parametrize(
        "members",
        [
            {"tools": [{"type": "custom", "custom": {"name": "f"}}]},
            {"tools": [{"type": "function", "function": {}}]},
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            {"tools": [TOOL], "tool_choice": "some"},
            {"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "f"}}},
            {"tool_choice": "required"},
        ],
    )
    def test_tools_and_choices_without_a_counterpart(self, members: JSON) -> None:
        """Each is refused in words."""
        assert "tool" in refused(**members)

    def test_schemas(self) -> None:
        """Byte for byte; a tool's that does not say that it is an object's is told to be one."""
        schema = b'{"type":"object", "maximum":1208925819614629174706176, "x":1.0, "y":1e400}'
        untyped = b'{ "$ref":"#/x" }'
        body = request(
            tools=[
                {"type": "function", "function": {"name": "f", "parameters": "A", "strict": True}},
                {"type": "function", "function": {"name": "g", "parameters": "B", "strict": False}},
            ],
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": "A", "strict": True}},
        )
        body = body.replace(b'"A"', schema).replace(b'"B"', untyped)
        found = translate_request(body, model="claude-opus-5").body
        assert found.count(schema) == 2
        assert json.loads(found)["tools"][0]["strict"] is True
        assert json.loads(found)["tools"][1] == {"name": "g", "input_schema": {"type": "object", "$ref": "#/x"}}
        assert json.loads(found)["output_config"]["format"]["type"] == "json_schema"

    @pytest.mark.parametrize("form", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x"}}])
    def test_formats_without_a_counterpart(self, form: JSON) -> None:
        """There is no JSON mode without a schema."""
        assert "schema" in refused(response_format=form)

    def test_the_format_that_is_none(self) -> None:
        """Text is what comes anyway."""
        assert translated(response_format={"type": "text"}) == translated()

    @pytest.mark.parametrize(
        ("model", "members", "expected"),
        [
            ("claude-sonnet-4-5", {"temperature": 0.5}, {"temperature": 0.5}),
            ("claude-sonnet-4-5", {"temperature": 1.7}, {"temperature": 1}),
            ("claude-sonnet-4-5", {"top_p": 0.9}, {"top_p": 0.9}),
            ("claude-sonnet-4-5", {"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5}),
            ("claude-sonnet-4-5", {"temperature": 0.5, "reasoning_effort": "high"}, {}),
            ("claude-opus-4-7", {"temperature": 0.5, "top_p": 0.9}, {}),
            ("claude-opus-5", {"temperature": 0.5}, {}),
            ("claude-something", {"temperature": 0.5}, {}),
        ],
    )
    def test_sampling(self, model: str, members: JSON, expected: JSON) -> None:
        """Where the model takes it, in Anthropic's range, one of the two, and not while it thinks."""
        found = translated(model, **members)
        assert {name: found[name] for name in ("temperature", "top_p") if name in found} == expected

    @pytest.mark.parametrize(
        ("model", "members", "thinking", "effort"),
        [
            ("claude-opus-5", {}, None, None),
            ("claude-opus-5", {"reasoning_effort": "high"}, {"type": "adaptive"}, "high"),
            ("claude-opus-5", {"reasoning_effort": "minimal"}, {"type": "adaptive"}, "low"),
            ("claude-opus-5", {"reasoning_effort": "none"}, None, "low"),
            ("claude-opus-4-6", {"reasoning_effort": "xhigh"}, {"type": "adaptive"}, "high"),
            ("claude-opus-4-6", {"reasoning_effort": "max"}, {"type": "adaptive"}, "max"),
            ("claude-sonnet-4-5", {"reasoning_effort": "low"}, {"type": "enabled", "budget_tokens": 2048}, None),
            (
                "claude-sonnet-4-5",
                {"reasoning_effort": "high", "max_tokens": 2000},
                {"type": "enabled", "budget_tokens": 1999},
                None,
            ),
            ("claude-sonnet-4-5", {"reasoning_effort": "high", "max_tokens": 1000}, None, None),
            ("claude-sonnet-4-5", {"reasoning_effort": "none"}, None, None),
            ("claude-3-5-haiku-20241022", {"reasoning_effort": "high"}, None, None),
            (
                "claude-opus-5",
                {"reasoning_effort": "high", "tools": [TOOL], "tool_choice": "required"},
                None,
                "high",
            ),
            ("claude-opus-5", {"thinking": {"type": "adaptive"}}, {"type": "adaptive"}, None),
        ],
    )
    def test_effort(self, model: str, members: JSON, thinking: JSON | None, effort: str | None) -> None:
        """Adaptive thinking where the model has it, a budget where it had that, never with a forced call."""
        found = translated(model, **members)
        assert found.get("thinking") == thinking
        assert found.get("output_config", {}).get("effort") == effort
        assert "'extreme'" in refused(reasoning_effort="extreme")

    def test_a_budget_in_the_middle_of_calls(self) -> None:
        """Anthropic wants to see what was thought before a call, to think on after it."""
        calls = [*HI, calling(call("a")), {"role": "tool", "tool_call_id": "a", "content": "x"}]
        members = {"reasoning_effort": "low", "messages": calls}
        assert "thinking" not in translated("claude-sonnet-4-5", **members)
        calls[1] |= {"thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}]}
        assert "thinking" in translated("claude-sonnet-4-5", **members)

    @pytest.mark.parametrize(
        ("stop", "sequences"), [("END", ["END"]), (["a", "\u00e9"], ["a", "é"]), ([], None), (None, None)]
    )
    def test_stop(self, stop: Any, sequences: list[str] | None) -> None:
        """One or several."""
        assert translated(stop=stop).get("stop_sequences") == sequences

    @pytest.mark.parametrize("stop", ["\n", [" \t"], [5], 5])
    def test_stop_that_anthropic_does_not_take(self, stop: Any) -> None:
        """Blanks alone are refused there."""
        assert "stop" in refused(stop=stop)

    def test_the_user_is_hashed(self) -> None:
        """Under the older name and the newer one."""
        digest = hashlib.sha256(b"ada@example.org").hexdigest()
        assert translated(user="ada@example.org")["metadata"] == {"user_id": digest}
        assert translated(user="x", safety_identifier="ada@example.org")["metadata"] == {"user_id": digest}

    def test_hints_are_left_out(self) -> None:
        """What tunes, caches, bills or observes."""
        hints: JSON = dict.fromkeys(to_anthropic.HINTS, 1)
        assert translated(**hints, n=1, logprobs=False, modalities=["text"], logit_bias={}) == translated()

    @pytest.mark.parametrize(
        "members",
        [
            {"n": 2},
            {"logprobs": True},
            {"modalities": ["text", "audio"]},
            {"audio": {"voice": "x"}},
            {"logit_bias": {"50256": -100}},
            {"web_search_options": {"search_context_size": "low"}},
            {"moderation": {"model": "x"}},
            {"something_newer": 5},
            {"max_tokens": 0},
            {"temperature": -1},
            {"temperature": "warm"},
        ],
    )
    def test_what_asks_for_another_answer_is_refused(self, members: JSON) -> None:
        """By its name."""
        assert next(iter(members)) in refused(**members)

    def test_what_may_be_ignored(self) -> None:
        """As the one who runs the proxy says."""
        found = translate_request(request(something_newer=5), model="claude-opus-5", ignore=["something_newer"])
        assert json.loads(found.body) == translated()

    @pytest.mark.parametrize(
        ("members", "stream", "include_usage"),
        [
            ({}, False, False),
            ({"stream": False, "stream_options": {"include_usage": True}}, False, False),
            ({"stream": True}, True, False),
            ({"stream": True, "stream_options": {"include_obfuscation": False}}, True, False),
            ({"stream": True, "stream_options": {"include_usage": True}}, True, True),
        ],
    )
    def test_streams(self, members: JSON, stream: bool, include_usage: bool) -> None:
        """Usage is for those who ask."""
        found = translate_request(request(**members), model="claude-opus-5")
        assert (found.stream, found.include_usage, found.functions) == (stream, include_usage, False)
        assert json.loads(found.body).get("stream", False) is stream

    @pytest.mark.parametrize("body", [b"", b"[]", b'{"a":NaN}', b'{"a":"\\ud800"}', b'{"a":"\xff"}', b"[" * 100_000])
    def test_what_cannot_be_read_is_refused(self, body: bytes) -> None:
        """As the API would."""
        with pytest.raises(Untranslatable):
            translate_request(body, model="claude-opus-5")

    def test_text_keeps_its_escapes(self) -> None:
        """Strings are not spelled anew, but for what has to be looked into."""
        body = request(messages=[user(text("X"), image("data:image/png;base64,a/b"))])
        body = body.replace(b'"X"', b'"\\u00e9\\/\\ud83d\\ude00"').replace(b"a/b", b"a\\/b")
        found = translate_request(body, model="claude-opus-5").body
        assert b'"\\u00e9\\/\\ud83d\\ude00"' in found
        assert b'"data":"a/b"' in found


def message(content: list[JSON], stop_reason: str = "end_turn", **members: Any) -> JSON:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-5",
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 30,
            "cache_creation_input_tokens": 10,
            "cache_read_input_tokens": 60,
            "output_tokens": 20,
            "output_tokens_details": {"thinking_tokens": 5},
        },
    } | members


USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
    "completion_tokens_details": {"reasoning_tokens": 5},
}


def answer(whole: JSON, **members: Any) -> Any:
    """The chat completion that it comes to, valid by the official SDK's types."""
    found = from_anthropic.translate_answer(json.dumps(whole).encode(), created=CREATED, **members)
    ChatCompletion.model_validate_json(found)
    return json.loads(found)


def events(whole: JSON, size: int = 5) -> bytes:
    """A message as a stream."""
    content = [{"citations": None, **block} for block in whole["content"]]
    return b"".join(
        f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode()
        for each in message_events({**whole, "content": content}, size=size)
    )


def chunks(stream: bytes, **members: Any) -> list[JSON]:
    """What a stream comes to, valid by the official SDK's types, without its ``[DONE]``."""
    machine = ChunkStream(created=CREATED, **members)
    out = machine.feed(stream) + machine.finish()
    found = sse.Parser().feed(out)
    assert out.count(b"\n") == 2 * len(found)
    assert all(event.event == b"" for event in found)
    assert found[-1].data == b"[DONE]"
    parsed = [json.loads(event.data) for event in found[:-1]]
    for each in parsed:
        ChatCompletionChunk.model_validate(each)
        assert (each["object"], each["created"]) == ("chat.completion.chunk", CREATED)
    return parsed


def accumulate(parsed: list[JSON]) -> JSON:
    """The message that the chunks come to, as OpenAI's SDKs put it together."""
    whole: JSON = {}
    for each in parsed:
        for choice in each["choices"]:
            _merge(whole, choice["delta"])
            if choice["finish_reason"] is not None:
                whole["finish_reason"] = choice["finish_reason"]
        if each.get("usage"):
            whole["usage"] = each["usage"]
    for each in (*whole.get("tool_calls", ()), *whole.get("thinking_blocks", ())):
        del each["index"]
    return whole


def _merge(whole: JSON, delta: JSON) -> None:
    for name, value in delta.items():
        before = whole.get(name)
        if before is None or name in ("index", "type"):
            whole[name] = json.loads(json.dumps(value))
        elif isinstance(value, str):
            whole[name] = before + value
        elif isinstance(value, dict):
            _merge(before, value)
        elif isinstance(value, list):
            for item in value:
                if item["index"] < len(before):
                    _merge(before[item["index"]], item)
                else:
                    before.append(json.loads(json.dumps(item)))


MESSAGES = [
    message([text("Hello, world")]),
    message([text("Hel"), text("lo")]),
    message([]),
    message([text("Hi"), tool_use("toolu_1", n=2**80), tool_use("toolu_2", "g")], "tool_use"),
    message([tool_use("toolu_1", a={"b": [1, "}"]})], "tool_use"),
    message(
        [
            {"type": "thinking", "thinking": "Let me see.", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "ZGF0YQ=="},
            text("So:"),
            {"type": "thinking", "thinking": "And more.", "signature": "bW9y"},
        ]
    ),
    message([text("Hi")], "max_tokens"),
    message([text("Hi")], "refusal"),
]


class TestAnswer:
    def test_text(self) -> None:
        """Nothing is there that OpenAI does not have, nothing is missing."""
        assert answer(message([text("Hi")])) == {
            "id": "msg_1",
            "object": "chat.completion",
            "created": CREATED,
            "model": "claude-opus-5",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hi", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": USAGE,
        }

    def test_calls(self) -> None:
        """Without text there is no content; the arguments are the text of the input."""
        whole = json.dumps(message([tool_use("toolu_1")], "tool_use")).encode()
        whole = whole.replace(b'"input": {}', b'"input": { "n" : 1208925819614629174706176 }')
        choice = json.loads(from_anthropic.translate_answer(whole, created=CREATED))["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"] == {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [call("toolu_1", "f", '{ "n" : 1208925819614629174706176 }')],
        }

    def test_functions(self) -> None:
        """A client that knows those alone gets one."""
        choice = answer(message([tool_use("toolu_1", a=1)], "tool_use"), functions=True)["choices"][0]
        assert choice["finish_reason"] == "function_call"
        assert choice["message"]["function_call"] == {"name": "f", "arguments": '{"a": 1}'}
        assert "tool_calls" not in choice["message"]

    def test_thinking(self) -> None:
        """In words for people, and whole for Claude."""
        blocks = MESSAGES[5]["content"]
        found = answer(MESSAGES[5])["choices"][0]["message"]
        assert found["reasoning_content"] == "Let me see.And more."
        assert found["thinking_blocks"] == [blocks[0], blocks[1], blocks[3]]
        assert found["content"] == "So:"

    @pytest.mark.parametrize(
        ("stop_reason", "finish_reason"),
        [
            ("end_turn", "stop"),
            ("stop_sequence", "stop"),
            ("pause_turn", "stop"),
            ("max_tokens", "length"),
            ("model_context_window_exceeded", "length"),
            ("refusal", "content_filter"),
            ("tool_use", "tool_calls"),
            ("something_newer", "stop"),
        ],
    )
    def test_finish_reasons(self, stop_reason: str, finish_reason: str) -> None:
        """Each, streamed and not."""
        whole = message([text("Hi")], stop_reason)
        assert answer(whole)["choices"][0]["finish_reason"] == finish_reason
        assert accumulate(chunks(events(whole)))["finish_reason"] == finish_reason

    @pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"content":5}', b'{"content":[5]}', b"<html>"])
    def test_what_is_no_message(self, body: bytes) -> None:
        """A 502."""
        with pytest.raises(Untranslatable) as caught:
            from_anthropic.translate_answer(body, created=CREATED)
        assert caught.value.openai_answer()[0] == 502


class TestStream:
    def test_a_stream(self) -> None:
        """The role first, then what comes as it comes, the finish reason, the usage, the end."""
        whole = message([text("Hello"), tool_use("toolu_1", a=1)], "tool_use")
        found = chunks(events(whole, size=3), include_usage=True)
        assert [each["choices"][0]["delta"] for each in found[:-1] if each["choices"][0]["delta"]] == [
            {"role": "assistant", "content": "", "refusal": None},
            {"content": "Hel"},
            {"content": "lo"},
            {"tool_calls": [{"index": 0, **call("toolu_1", "f", "")}]},
            *({"tool_calls": [{"index": 0, "function": {"arguments": each}}]} for each in ('{"a', '":1', "}")),
        ]
        assert [each["usage"] for each in found[:-1]] == [None] * (len(found) - 1)
        assert found[-2]["choices"][0]["finish_reason"] == "tool_calls"
        assert (found[-1]["choices"], found[-1]["usage"]) == ([], USAGE)

    @pytest.mark.parametrize(
        ("whole", "functions"), [*((whole, False) for whole in MESSAGES), *((MESSAGES[at], True) for at in (0, 4))]
    )
    def test_chunks_come_to_what_the_answer_is(self, whole: JSON, functions: bool) -> None:
        """Put together as OpenAI's SDKs do."""
        choice = answer(whole, functions=functions)["choices"][0]
        expected = choice["message"] | {"finish_reason": choice["finish_reason"], "usage": USAGE}
        found = accumulate(chunks(events(whole), include_usage=True, functions=functions))
        for each in (expected, found):
            # The stand-in spells a call's input without blanks.
            for one in each.get("tool_calls", ()):
                one["function"]["arguments"] = json.loads(one["function"]["arguments"])
            if "function_call" in each:
                each["function_call"]["arguments"] = json.loads(each["function_call"]["arguments"])
        assert found == {**expected, "content": expected["content"] or ""}

    def test_usage_for_those_who_ask(self) -> None:
        """Others never see the member."""
        assert all("usage" not in each for each in chunks(events(MESSAGES[0])))

    @pytest.mark.parametrize("start", ["{}", '{"a":1208925819614629174706176}'])
    def test_input_without_fragments(self, start: str) -> None:
        """It is what the block's start has, ``{}`` included: the client parses it."""
        stream = (
            corpus.start()
            + corpus.whole(0, f'{{"type":"tool_use","id":"toolu_1","name":"f","input":{start}}}')
            + corpus.end('"tool_use"')
        )
        assert accumulate(chunks(stream))["tool_calls"] == [call("toolu_1", "f", start)]

    def test_pings(self) -> None:
        """A chunk that says nothing keeps the client's side alive: there are no comments in a stream of data."""
        machine = ChunkStream(created=CREATED)
        assert machine.feed(corpus.PING) == b""
        machine.feed(corpus.start())
        found = json.loads(machine.feed(corpus.PING).removeprefix(b"data: "))
        assert found["choices"][0]["delta"] == {}

    @pytest.mark.parametrize("entry", CORPUS, ids=lambda entry: entry.name)
    def test_every_stream_that_anthropic_has(self, entry: Entry) -> None:
        """Whatever blocks and deltas are in it, the chunks are chunks, and have its text."""
        machine = ChunkStream(created=CREATED)
        machine.feed(entry.stream)
        assert machine.failure is None
        assert machine.finished
        whole = json.loads(from_anthropic.translate_answer(entry.expected, created=CREATED))["choices"][0]["message"]
        if "compaction" not in entry.name:
            assert accumulate(chunks(entry.stream))["content"] == (whole["content"] or "")

    EVERYTHING = events(MESSAGES[3] | {"content": MESSAGES[5]["content"] + MESSAGES[3]["content"]}).replace(
        b"event: content_block_stop", b": comment\r\n\r\n" + corpus.PING + b"event: content_block_stop", 1
    )

    @given(CUTS)
    def test_any_split_gives_the_same(self, cuts: list[int]) -> None:
        """The very same bytes, however they come."""
        machine = ChunkStream(created=CREATED, include_usage=True)
        out = b"".join(machine.feed(piece) for piece in split(self.EVERYTHING, cuts)) + machine.finish()
        assert out == ChunkStream(created=CREATED, include_usage=True).feed(self.EVERYTHING)

    def test_byte_by_byte(self) -> None:
        """The same for the smallest pieces."""
        machine = ChunkStream(created=CREATED)
        stream = self.EVERYTHING
        out = b"".join(machine.feed(stream[at : at + 1]) for at in range(len(stream)))
        assert out == ChunkStream(created=CREATED).feed(stream)


class TestEnds:
    BEGUN = corpus.start() + corpus.block(0, corpus.TEXT_BLOCK) + corpus.text(0, "Half a")

    def failed(self, stream: bytes, **members: Any) -> JSON:
        """The error that the chunks end in, without ``[DONE]``."""
        machine = ChunkStream(created=CREATED, **members)
        out = machine.feed(stream) + machine.finish()
        assert machine.finished
        assert machine.failure is not None
        assert b"[DONE]" not in out
        assert machine.feed(corpus.end()) == machine.finish() == b""
        last = json.loads(sse.Parser().feed(out)[-1].data)
        assert list(last) == ["error"]
        found: JSON = last["error"]
        assert sorted(found) == ["code", "message", "param", "type"]
        return found

    @pytest.mark.parametrize("stream", [b"", BEGUN, BEGUN + corpus.stop(0), corpus.PING, BEGUN + corpus.end()[:-40]])
    def test_an_answer_that_was_cut(self, stream: bytes) -> None:
        """OpenAI's SDKs raise on what they get then."""
        assert "ended before" in self.failed(stream)["message"]

    @pytest.mark.parametrize(
        ("error_type", "kind", "code"),
        [
            ("overloaded_error", "server_error", "overloaded"),
            ("rate_limit_error", "rate_limit_error", "rate_limit_exceeded"),
            ("api_error", "server_error", None),
            ("something_newer", "server_error", None),
        ],
    )
    def test_an_error_in_the_middle(self, error_type: str, kind: str, code: str | None) -> None:
        """In OpenAI's envelope."""
        error = corpus.event("error", json.dumps({"type": "error", "error": {"type": error_type, "message": "Oops."}}))
        found = self.failed(self.BEGUN + error)
        assert found == {"message": "Oops.", "type": kind, "param": None, "code": code}

    @pytest.mark.parametrize(
        "event",
        [
            corpus.event("content_block_delta", "{"),
            corpus.event("content_block_delta", "[]"),
            corpus.event("content_block_delta", '{"delta":{"type":"text_delta","text":"x"}}'),
            corpus.event("content_block_start", '{"index":1,"content_block":5}'),
        ],
    )
    def test_what_cannot_be_read(self, event: bytes) -> None:
        """An error, and no guess."""
        assert "cannot be read" in self.failed(self.BEGUN + event + corpus.end())["message"]

    @pytest.mark.parametrize("stream", [corpus.text(0, "x"), corpus.event("message_stop", '{"type":"message_stop"}')])
    def test_a_stream_without_its_start(self, stream: bytes) -> None:
        """It is no answer."""
        assert self.failed(stream)

    def test_too_large(self) -> None:
        """What is held is limited."""
        assert "1000 bytes" in self.failed(b"data: " + b"x" * 2000, max_event_bytes=1000)["message"]

    def test_events_that_are_not_known(self) -> None:
        """They are passed over, whatever is in them."""
        found = chunks(self.BEGUN + corpus.event("something_newer", "{") + corpus.end())
        assert accumulate(found)["content"] == "Half a"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("claude-3-haiku-20240307", models.ClaudeModel(sampling=True, efforts=(), max_output=4096)),
        ("claude-3-5-sonnet-20241022", models.ClaudeModel(sampling=True, efforts=(), max_output=8192)),
        ("claude-3-7-sonnet-20250219", models.ClaudeModel(sampling=True, efforts=(), budget=True, max_output=64_000)),
        ("claude-opus-4-20250514", models.ClaudeModel(sampling=True, efforts=(), budget=True, max_output=32_000)),
        ("claude-opus-4-1", models.ClaudeModel(sampling=True, efforts=(), budget=True, max_output=32_000)),
        ("claude-haiku-4-5-20251001", models.ClaudeModel(sampling=True, efforts=(), budget=True, max_output=64_000)),
        ("claude-opus-4-6", models.ClaudeModel(sampling=True, efforts=("low", "medium", "high", "max"))),
        ("anthropic/claude-opus-4.6", models.ClaudeModel(sampling=True, efforts=("low", "medium", "high", "max"))),
        ("claude-opus-4-8", models.ClaudeModel()),
        ("claude-sonnet-5-5", models.ClaudeModel()),
        ("claude-mythos-preview", models.ClaudeModel()),
    ],
)
def test_what_a_claude_takes(name: str, expected: models.ClaudeModel) -> None:
    """By family and version; a name that says neither is taken for a new one."""
    assert models.claude_model(name) == expected
