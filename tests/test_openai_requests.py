"""A request for the Messages API as one for chat completions."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import openai_shapes
from tests.openai_shapes import call, text, tool_use, user
from twisted_proxy.wire.openai import to_anthropic, to_openai, tools
from twisted_proxy.wire.openai.refusal import Untranslatable
from twisted_proxy.wire.openai.to_openai import translate_request

JSON = dict[str, Any]

HI = [{"role": "user", "content": "Hi"}]


def request(**members: Any) -> bytes:
    """A request with these members; the rest is as small as it can be."""
    return json.dumps({"model": "claude-opus-5", "max_tokens": 100, "messages": HI} | members).encode()


def translated(model: str = "gpt-4o", **members: Any) -> Any:
    """What such a request comes to, valid by the official SDK's types."""
    body = translate_request(request(**members), model=model).body
    return openai_shapes.chat_request(body)


def conversation(*messages: JSON, **members: Any) -> Any:
    """The messages that these come to."""
    return translated(messages=list(messages), **members)["messages"]


def refused(model: str = "gpt-4o", **members: Any) -> str:
    """How such a request is refused."""
    with pytest.raises(Untranslatable) as caught:
        translate_request(request(**members), model=model)
    assert caught.value.status == 400
    assert caught.value.error_type == "invalid_request_error"
    return caught.value.message


def assistant(*blocks: Any) -> JSON:
    return {"role": "assistant", "content": list(blocks)}


def tool_result(call_id: str, content: Any = "done", **members: Any) -> JSON:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, **members}


PNG: JSON = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
PNG_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
TOOL = {"name": "f", "description": "Does f.", "input_schema": {"type": "object"}}


def test_the_smallest_request() -> None:
    """What an Anthropic request needs is what the other one has, and nothing more."""
    assert translated() == {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_completion_tokens": 100,
    }


def test_members_that_are_null_are_not_there() -> None:
    """As the API takes them."""
    assert translated(tools=None, tool_choice=None, temperature=None, container=None, system=None) == translated()


def test_a_stream_is_asked_for_its_usage() -> None:
    """Always: without it there would be no usage at all."""
    found = translate_request(request(stream=True), model="gpt-4o")
    assert found.stream
    assert json.loads(found.body)["stream_options"] == {"include_usage": True}
    assert not translate_request(request(stream=False), model="gpt-4o").stream
    assert "stream" not in translated(stream=False)


class TestSystem:
    @pytest.mark.parametrize(
        ("system", "said"),
        [
            ("Be brief.", "Be brief."),
            ([text("Be brief.")], "Be brief."),
            ([text("One."), text(""), {**text("Two."), "cache_control": {"type": "ephemeral"}}], "One.\n\nTwo."),
        ],
    )
    def test_it_is_the_first_message(self, system: Any, said: str) -> None:
        """A string, which every compatible server takes."""
        assert translated(system=system)["messages"] == [{"role": "system", "content": said}, *HI]

    @pytest.mark.parametrize("system", ["", []])
    def test_an_empty_one_is_none(self, system: Any) -> None:
        """There is no message that says nothing."""
        assert translated(system=system)["messages"] == HI

    def test_claude_codes_billing_header_is_a_hint(self) -> None:
        """It is another in each request, and stands first: no cache would know the prompt again."""
        header = text("x-anthropic-billing-header: cc_version=2.1.330; cch=a1b2c;")
        assert translated(system=[header, text("Be brief.")])["messages"][0]["content"] == "Be brief."

    def test_in_the_middle_it_stays_there(self) -> None:
        """As a system message in its place."""
        assert conversation(*HI, {"role": "system", "content": [text("Now in French.")]}, user(text("Go on."))) == [
            *HI,
            {"role": "system", "content": "Now in French."},
            {"role": "user", "content": "Go on."},
        ]

    def test_in_the_middle_of_results_it_comes_after_them(self) -> None:
        """OpenAI demands a call's results right behind it."""
        assert conversation(
            *HI,
            assistant(tool_use("a")),
            {"role": "system", "content": "Hurry."},
            user(tool_result("a"), text("Well?")),
        )[2:] == [
            {"role": "tool", "tool_call_id": "a", "content": "done"},
            {"role": "system", "content": "Hurry."},
            {"role": "user", "content": "Well?"},
        ]

    def test_one_for_its_own_turn_is_gone_in_the_next(self) -> None:
        """``clear_at`` says how long it is shown."""
        passing = {"role": "system", "content": "Hurry.", "clear_at": "next_user_message"}
        assert conversation(*HI, passing)[-1] == {"role": "system", "content": "Hurry."}
        later = conversation(*HI, passing, assistant(text("Ok.")), user(text("Go on.")))
        assert [message["role"] for message in later] == ["user", "assistant", "user"]

    def test_its_effort_counts_for_its_turn(self) -> None:
        """And for that one alone."""
        quick = {"role": "system", "output_config": {"effort": "low"}}
        config = {"effort": "high"}
        assert translated("o3", messages=[*HI, quick], output_config=config)["reasoning_effort"] == "low"
        later = [*HI, quick, assistant(text("Ok.")), user(text("Go on."))]
        assert translated("o3", messages=later, output_config=config)["reasoning_effort"] == "high"

    def test_a_change_of_tools_is_refused(self) -> None:
        """The set of tools is the request's, and no message's."""
        added = {"role": "system", "content": [{"type": "tool_addition", "tool": {"name": "f"}}]}
        assert "tool_addition" in refused(messages=[*HI, added])


class TestUser:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("Hi", "Hi"),
            ([text("Hi")], "Hi"),
            ([text("One."), text("Two.")], "One.\n\nTwo."),
            ([text("Look:"), PNG], [text("Look:"), PNG_PART]),
            ([PNG, text("")], [PNG_PART]),
            (
                [{"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}],
                [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}],
            ),
            (
                [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Words."}}],
                "Words.",
            ),
            (
                [
                    {
                        "type": "document",
                        "title": "A title",
                        "context": "A context",
                        "citations": {"enabled": False},
                        "source": {"type": "content", "content": [text("One."), PNG]},
                    },
                    text("Well?"),
                ],
                [text("A title"), text("A context"), text("One."), PNG_PART, text("Well?")],
            ),
            ([{"type": "document", "title": None, "source": {"type": "content", "content": "Words."}}], "Words."),
            (
                [
                    {
                        "type": "search_result",
                        "title": "A page",
                        "source": "https://example.org",
                        "content": [text("One."), text("Two.")],
                    }
                ],
                "A page\n\nhttps://example.org\n\nOne.\n\nTwo.",
            ),
        ],
    )
    def test_each_kind_of_block(self, content: Any, expected: Any) -> None:
        """Text is a string, and parts only where an image is among them."""
        assert conversation({"role": "user", "content": content}) == [{"role": "user", "content": expected}]

    @pytest.mark.parametrize(
        ("block", "word"),
        [
            (
                {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}},
                "base64",
            ),
            ({"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}}, "url"),
            ({"type": "document", "source": {"type": "file", "file_id": "file_1"}}, "file"),
            ({"type": "image", "source": {"type": "file", "file_id": "file_1"}}, "file"),
            (
                {"type": "document", "citations": {"enabled": True}, "source": {"type": "text", "data": "Words."}},
                "citations",
            ),
            ({"type": "container_upload", "file_id": "file_1"}, "container_upload"),
            ({"type": "hologram"}, "hologram"),
            ({"type": "text", "text": 5}, "string"),
            ({"type": "text"}, "string"),
            ({"type": 5}, "type"),
            ({}, "type"),
            ("text", "messages.0.content"),
        ],
    )
    def test_what_has_no_counterpart_is_refused(self, block: Any, word: str) -> None:
        """The message says where it is and what."""
        message = refused(messages=[user(block)])
        assert "messages.0.content" in message
        assert word in message

    def test_two_turns_in_a_row_are_one(self) -> None:
        """As the API joins them."""
        assert conversation(*HI, user(text("And again."))) == [{"role": "user", "content": "Hi\n\nAnd again."}]


class TestTools:
    def test_calls_and_their_results(self) -> None:
        """Ids are kept; the results stand right behind the calls; what else there is comes after them, in order."""
        assert conversation(
            *HI,
            assistant(text("Let me see."), tool_use("toolu_1", "f", a=1), tool_use("toolu_2", "g")),
            user(tool_result("toolu_2", "two"), tool_result("toolu_1", [text("one"), text("1")]), text("Now?"), PNG),
        )[1:] == [
            {
                "role": "assistant",
                "content": "Let me see.",
                "tool_calls": [call("toolu_1", "f", '{"a": 1}'), call("toolu_2", "g")],
            },
            {"role": "tool", "tool_call_id": "toolu_2", "content": "two"},
            {"role": "tool", "tool_call_id": "toolu_1", "content": "one\n\n1"},
            {"role": "user", "content": [text("Now?"), PNG_PART]},
        ]

    def test_a_text_before_a_result_comes_after_it(self) -> None:
        """There is no other place for it."""
        assert conversation(*HI, assistant(tool_use("a")), user(text("Well?"), tool_result("a")))[1:] == [
            {"role": "assistant", "content": None, "tool_calls": [call("a")]},
            {"role": "tool", "tool_call_id": "a", "content": "done"},
            {"role": "user", "content": "Well?"},
        ]

    def test_calls_and_results_that_come_in_several_messages(self) -> None:
        """Consecutive messages of a role are one turn, which is all that OpenAI can take."""
        assert conversation(
            *HI,
            assistant(tool_use("a")),
            assistant(tool_use("b")),
            user(tool_result("a"), text("One.")),
            user(tool_result("b"), text("Two.")),
        )[1:] == [
            {"role": "assistant", "content": None, "tool_calls": [call("a"), call("b")]},
            {"role": "tool", "tool_call_id": "a", "content": "done"},
            {"role": "tool", "tool_call_id": "b", "content": "done"},
            {"role": "user", "content": "One.\n\nTwo."},
        ]

    @pytest.mark.parametrize(
        ("result", "said"),
        [
            (tool_result("a", "no such file", is_error=True), "Error: no such file"),
            (tool_result("a", "Error: no such file", is_error=True), "Error: no such file"),
            (tool_result("a", [text("no")], is_error=True), "Error: no"),
            (tool_result("a", "", is_error=True), "Error: "),
            (tool_result("a", "fine", is_error=False), "fine"),
            (tool_result("a", []), ""),
            ({"type": "tool_result", "tool_use_id": "a"}, ""),
            (tool_result("a", None), ""),
            (tool_result("a", [{"type": "tool_reference", "tool_name": "g"}]), "The tool g is available."),
        ],
    )
    def test_results(self, result: JSON, said: str) -> None:
        """OpenAI has no member for an error: its text says so."""
        assert conversation(*HI, assistant(tool_use("a")), user(result))[2] == {
            "role": "tool",
            "tool_call_id": "a",
            "content": said,
        }

    def test_images_of_results(self) -> None:
        """A tool message holds text only: they stand in the user's message after all results, each with its call."""
        assert conversation(
            *HI,
            assistant(tool_use("a"), tool_use("b")),
            user(tool_result("a", [text("See:"), PNG]), tool_result("b", [PNG], is_error=True), text("Now?")),
        )[2:] == [
            {
                "role": "tool",
                "tool_call_id": "a",
                "content": "See:\n\n(The result has images: they are in the next user message.)",
            },
            {
                "role": "tool",
                "tool_call_id": "b",
                "content": "Error: (The result has images: they are in the next user message.)",
            },
            {
                "role": "user",
                "content": [
                    text("From the result of tool call a:"),
                    PNG_PART,
                    text("From the result of tool call b:"),
                    PNG_PART,
                    text("Now?"),
                ],
            },
        ]

    @pytest.mark.parametrize(
        ("messages", "word"),
        [
            ([*HI, assistant(tool_use("a")), user(text("Well?"))], "'a'"),
            ([*HI, assistant(tool_use("a"), tool_use("b")), user(tool_result("a"))], "'b'"),
            ([*HI, assistant(tool_use("a")), user(text("?")), assistant(text("!")), user(tool_result("a"))], "'a'"),
            ([user(tool_result("a"))], "'a'"),
            ([*HI, assistant(tool_use("a")), user(tool_result("a"), tool_result("a"))], "'a'"),
            ([*HI, assistant(tool_use("a"), tool_use("a")), user(tool_result("a"))], "'a'"),
            ([*HI, assistant(tool_use("a")), user({"type": "tool_result", "content": "done"})], "tool_use_id"),
            ([*HI, assistant({"type": "tool_use", "id": "a", "name": "f"}), user(tool_result("a"))], "input"),
            ([*HI, assistant({"type": "tool_use", "id": "a", "name": "f", "input": []})], "input"),
            ([*HI, assistant(tool_use("a")), user(tool_result("a", [{"type": "browser_state"}]))], "browser_state"),
        ],
    )
    def test_calls_and_results_that_do_not_fit(self, messages: list[JSON], word: str) -> None:
        """Neither API would take them, and here is said why."""
        assert word in refused(messages=messages)

    def test_definitions(self) -> None:
        """Schemas byte for byte, ``strict`` where it is asked for; hints go."""
        schema = b'{"type":"object", "maximum":1208925819614629174706176, "x":1.0, "y":1e400, "z":"\\u00e9"}'
        body = request(
            tools=[
                {
                    "name": "f",
                    "input_schema": "SCHEMA",
                    "cache_control": {"type": "ephemeral"},
                    "eager_input_streaming": True,
                    "defer_loading": True,
                    "input_examples": [{}],
                    "allowed_callers": ["direct"],
                },
                {**TOOL, "type": "custom", "strict": True},
            ]
        ).replace(b'"SCHEMA"', schema)
        found = translate_request(body, model="gpt-4o").body
        assert schema in found
        first, second = json.loads(found.replace(schema, b"{}"))["tools"]
        assert first == {"type": "function", "function": {"name": "f", "parameters": {}}}
        assert second["function"] == {
            "name": "f",
            "description": "Does f.",
            "parameters": {"type": "object"},
            "strict": True,
        }

    @pytest.mark.parametrize(
        ("tool", "word"),
        [
            ({"type": "web_search_20260318", "name": "web_search"}, "web_search_20260318"),
            ({"type": "code_execution_20260521", "name": "code_execution"}, "code_execution"),
            ({"type": "bash_20250124", "name": "bash"}, "bash_20250124"),
            ({"type": "mcp_toolset", "name": "x"}, "mcp_toolset"),
            ({**TOOL, "allowed_callers": ["code_execution_20260521"]}, "allowed_callers"),
            ({"name": "f"}, "input_schema"),
            ({"input_schema": {}}, "name"),
        ],
    )
    def test_tools_of_anthropics_are_refused(self, tool: JSON, word: str) -> None:
        """The other provider has no such tool; to leave it out would be another request."""
        message = refused(tools=[TOOL, tool])
        assert word in message
        assert message.startswith("tools")

    @pytest.mark.parametrize(
        ("choice", "expected"),
        [
            ({"type": "auto"}, {"tool_choice": "auto"}),
            ({"type": "any"}, {"tool_choice": "required"}),
            ({"type": "none"}, {"tool_choice": "none"}),
            ({"type": "tool", "name": "f"}, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
            (
                {"type": "auto", "disable_parallel_tool_use": True},
                {"tool_choice": "auto", "parallel_tool_calls": False},
            ),
            ({"type": "any", "disable_parallel_tool_use": False}, {"tool_choice": "required"}),
        ],
    )
    def test_choice(self, choice: JSON, expected: JSON) -> None:
        """Each kind, with and without parallel calls."""
        found = translated(tools=[TOOL], tool_choice=choice)
        assert {name: found[name] for name in ("tool_choice", "parallel_tool_calls") if name in found} == expected

    def test_a_model_that_makes_one_call_at_a_time_is_not_told_so(self) -> None:
        """The o-series refuses the parameter."""
        serial = {"type": "auto", "disable_parallel_tool_use": True}
        assert "parallel_tool_calls" not in translated("o3", tools=[TOOL], tool_choice=serial)

    def test_choice_without_tools(self) -> None:
        """OpenAI refuses it: one that changes nothing goes, the others are refused here."""
        assert translated(tool_choice={"type": "auto"}, tools=[]) == translated()
        assert "tool_choice" in refused(tool_choice={"type": "any"})
        assert "'some'" in refused(tools=[TOOL], tool_choice={"type": "some"})

    def test_long_names(self) -> None:
        """OpenAI takes 64 characters, Anthropic 128: shortened everywhere alike, and known for the way back."""
        name = "mcp__" + "a_rather_long_server_name__" * 3 + "tool"
        found = translate_request(
            request(
                tools=[{**TOOL, "name": name}, TOOL],
                tool_choice={"type": "tool", "name": name},
                messages=[*HI, assistant(tool_use("a", name)), user(tool_result("a"))],
            ),
            model="gpt-4o",
        )
        body = json.loads(found.body)
        short = body["tools"][0]["function"]["name"]
        assert len(short) <= 64
        assert short.startswith("mcp__a_rather_long")
        assert body["tool_choice"]["function"]["name"] == short
        assert body["messages"][1]["tool_calls"][0]["function"]["name"] == short
        assert found.tool_names == {short: name}

    def test_long_ids(self) -> None:
        """OpenAI takes 40 characters: a longer id is the same shorter one in the call and in its result."""
        found = conversation(*HI, assistant(tool_use("toolu_" + "x" * 40)), user(tool_result("toolu_" + "x" * 40)))
        short = found[1]["tool_calls"][0]["id"]
        assert len(short) == 40
        assert found[2]["tool_call_id"] == short

    @pytest.mark.parametrize(
        "value", ['{"n":1208925819614629174706176}', '{ "a" : [1.0, 1e400, -0], "é":"\\u00e9\\ud83d\\ude00" }', "{}"]
    )
    def test_input_passes_as_text(self, value: str) -> None:
        """``arguments`` is the text of ``input``: no digit, blank or escape is another."""
        body = request(messages=[*HI, assistant(tool_use("a")), user(tool_result("a"))])
        body = body.replace(b'"input": {}', b'"input": ' + value.encode())
        found = json.loads(translate_request(body, model="gpt-4o").body)
        assert found["messages"][1]["tool_calls"][0]["function"]["arguments"] == value

    def test_arguments_that_were_none_go_back_as_they_came(self) -> None:
        """What an answer's arguments are kept as, if they are no JSON, is undone."""
        kept = tool_use("a", **{tools.UNPARSED: '{"path": "/tmp/a'})
        found = conversation(*HI, assistant(kept), user(tool_result("a")))
        assert found[1]["tool_calls"][0]["function"]["arguments"] == '{"path": "/tmp/a'


class TestAssistant:
    def test_texts_cut_up_by_citations_are_one(self) -> None:
        """They follow each other; around something else there are paragraphs."""
        cited = {**text("the sky is blue"), "citations": [{"type": "char_location", "cited_text": "blue"}]}
        thought = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
        turn = assistant(thought, text("I read that "), cited, text("."), thought, text("So it is."))
        assert conversation(*HI, turn, user(text("Ok.")))[1] == {
            "role": "assistant",
            "content": "I read that the sky is blue.\n\nSo it is.",
        }

    @pytest.mark.parametrize(
        "block",
        [
            {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "ZGF0YQ=="},
            {"type": "fallback", "from": {"model": "a"}, "to": {"model": "b"}},
        ],
    )
    def test_thinking_is_left_out(self, block: JSON) -> None:
        """It is sealed for the provider that thought it."""
        assert conversation(*HI, assistant(block, text("Ok.")), *HI)[1] == {"role": "assistant", "content": "Ok."}
        assert conversation(*HI, assistant(block), *HI)[1] == {"role": "assistant", "content": ""}

    @pytest.mark.parametrize(
        "block",
        [
            {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
            {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
            {"type": "mcp_tool_use", "id": "a", "name": "f", "server_name": "s", "input": {}},
            {"type": "compaction", "content": "Summary", "encrypted_content": "x"},
            {"type": "image"},
        ],
    )
    def test_what_only_anthropic_can_read_is_refused(self, block: JSON) -> None:
        """It says what the block is, and what to do."""
        message = refused(messages=[*HI, assistant(block), *HI])
        assert block["type"] in message
        assert "Anthropic" in message

    def test_prefill_is_refused(self) -> None:
        """OpenAI's models would begin anew."""
        assert "continue" in refused(messages=[*HI, assistant(text("The answer is"))])


class TestParameters:
    @pytest.mark.parametrize(
        ("model", "expected"),
        [
            ("gpt-4o", {"temperature": 0.5, "top_p": 0.9}),
            ("gpt-4.1-mini", {"temperature": 0.5, "top_p": 0.9}),
            ("llama3.3:70b", {"temperature": 0.5, "top_p": 0.9}),
            ("gpt-5-chat-latest", {"temperature": 0.5, "top_p": 0.9}),
            ("gpt-5", {}),
            ("openai/gpt-5.2-mini", {}),
            ("gpt-6-astra", {}),
            ("o1", {}),
            ("o3-mini", {}),
            ("o4-mini", {}),
        ],
    )
    def test_sampling_goes_where_the_model_takes_it(self, model: str, expected: JSON) -> None:
        """A model that reasons refuses it; ``top_k`` has no counterpart and only tunes."""
        found = translated(model, temperature=0.5, top_p=0.9, top_k=40)
        assert {name: found[name] for name in ("temperature", "top_p", "top_k") if name in found} == expected

    def test_stop_sequences(self) -> None:
        """Up to four, to a model that takes any; it would be another answer without them."""
        assert translated(stop_sequences=["a", "é"])["stop"] == ["a", "é"]
        assert "stop" not in translated("o3", stop_sequences=[])
        assert "at most 4" in refused(stop_sequences=list("abcde"))
        assert "'o3'" in refused("o3", stop_sequences=["a"])
        assert "string" in refused(stop_sequences=[1])

    @pytest.mark.parametrize(
        ("model", "tokens"),
        [
            ("gpt-4o", 16_384),
            ("gpt-4o-2024-05-13", 4096),
            ("gpt-4.1", 32_768),
            ("gpt-4-turbo", 4096),
            ("gpt-4", 8192),
            ("gpt-3.5-turbo", 4096),
            ("o3", 64_000),
            ("gpt-5", 64_000),
            ("qwen3", 64_000),
        ],
    )
    def test_max_tokens(self, model: str, tokens: int) -> None:
        """At most what the model can make: Claude Code asks for more, and OpenAI would refuse."""
        assert translated(model, max_tokens=64_000)["max_completion_tokens"] == tokens

    @pytest.mark.parametrize("value", [0, -1, "5", 1.5, True])
    def test_max_tokens_that_make_no_answer(self, value: Any) -> None:
        """Nothing is made of them."""
        assert "max_tokens" in refused(max_tokens=value)

    def test_what_a_request_needs(self) -> None:
        """Both are said by name."""
        assert "messages" in refused(messages=None)
        assert "messages" in refused(messages=[])
        assert "max_tokens" in refused(max_tokens=None)

    @pytest.mark.parametrize(
        ("model", "members", "effort"),
        [
            ("o3", {}, None),
            ("o3", {"thinking": {"type": "adaptive"}}, None),
            ("o3", {"thinking": {"type": "adaptive"}, "output_config": {"effort": "medium"}}, "medium"),
            ("o3", {"output_config": {"effort": "max"}}, "high"),
            ("o3", {"output_config": {"effort": "xhigh"}}, "high"),
            ("o3", {"thinking": {"type": "disabled"}}, "low"),
            ("gpt-5", {"thinking": {"type": "disabled"}}, "minimal"),
            ("gpt-5.1", {"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, "none"),
            ("gpt-5.2", {"output_config": {"effort": "xhigh"}}, "xhigh"),
            ("gpt-5.4", {"output_config": {"effort": "max"}}, "xhigh"),
            ("gpt-5.6-terra", {"output_config": {"effort": "max"}}, "max"),
            ("gpt-5-pro", {"output_config": {"effort": "low"}}, "high"),
            ("gpt-5.1-codex", {"thinking": {"type": "disabled"}}, "low"),
            ("gpt-5.1-codex-max", {"output_config": {"effort": "max"}}, "xhigh"),
            ("gpt-5", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
            ("gpt-5", {"thinking": {"type": "enabled", "budget_tokens": 4096}}, "medium"),
            ("gpt-5", {"thinking": {"type": "enabled", "budget_tokens": 31_999}}, "high"),
            (
                "gpt-5",
                {"thinking": {"type": "enabled", "budget_tokens": 1024}, "output_config": {"effort": "high"}},
                "high",
            ),
            ("gpt-4o", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, None),
            ("llama3.3", {"output_config": {"effort": "high"}}, None),
            ("gpt-5", {"tools": [TOOL], "output_config": {"effort": "high"}}, "high"),
            ("gpt-5.4", {"tools": [TOOL], "output_config": {"effort": "high"}}, None),
            ("gpt-5.6", {"tools": [TOOL], "output_config": {"effort": "high"}}, "none"),
            ("gpt-5.6", {"tools": [TOOL]}, "none"),
        ],
    )
    def test_effort(self, model: str, members: JSON, effort: str | None) -> None:
        """The nearest that the model takes; with tools, newer ones take none in chat completions."""
        assert translated(model, **members).get("reasoning_effort") == effort

    def test_an_effort_that_is_none(self) -> None:
        """It is not taken for silence."""
        assert "'extreme'" in refused(output_config={"effort": "extreme"})

    @pytest.mark.parametrize("member", ["output_config", "output_format"])
    def test_a_format(self, member: str) -> None:
        """The schema as it came. Anthropic keeps to it, so OpenAI is told to."""
        form = {"type": "json_schema", "schema": {"type": "object", "maximum": 2**80}}
        members: JSON = {member: {"format": form} if member == "output_config" else form}
        found = translated(**members)
        assert found["response_format"] == {
            "type": "json_schema",
            "json_schema": {"name": "response", "schema": {"type": "object", "maximum": 2**80}, "strict": True},
        }
        assert "json_schema" in refused(output_config={"format": {"type": "grammar"}})

    def test_the_user_is_hashed(self) -> None:
        """What identifies a person to Anthropic is not told to another provider."""
        body = translate_request(request(metadata={"user_id": "ada@example.org"}), model="gpt-4o").body
        assert b"ada" not in body
        assert json.loads(body)["safety_identifier"] == hashlib.sha256(b"ada@example.org").hexdigest()
        assert "safety_identifier" not in translated(metadata={"user_id": None})

    def test_hints_are_left_out(self) -> None:
        """What caches, bills, places or tunes the request."""
        hints: JSON = {name: {"type": "x"} for name in to_openai.HINTS}
        assert translated(**hints, mcp_servers=[], thread={"type": "create"}) == translated()

    @pytest.mark.parametrize("name", ["container", "mcp_servers", "compaction", "something_newer"])
    def test_what_is_no_hint_is_refused(self, name: str) -> None:
        """By its name. A member that is not known may be anything."""
        members: JSON = {name: ["x"]}
        assert repr(name) in refused(**members)
        body = request(**members)
        assert translate_request(body, model="gpt-4o", ignore=[name]) == translate_request(request(), model="gpt-4o")

    def test_a_thread_that_goes_on(self) -> None:
        """Clients know the code, and send the whole conversation."""
        with pytest.raises(Untranslatable) as caught:
            translate_request(
                request(thread={"type": "continue", "previous_message_id": "msg_1"}, messages=[]), model="gpt-4o"
            )
        assert json.loads(caught.value.anthropic_body("req_1")) == {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": caught.value.message,
                "details": {"error_code": "thread_unsupported_request"},
            },
            "request_id": "req_1",
        }


class TestBodies:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"[]",
            b"null",
            b'{"messages":[],}',
            b'{"max_tokens":NaN}',
            b'{"a":"\\ud800"}',
            b'{"a":"\xff"}',
            b"[" * 100_000,
            b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"messages":"Hi","max_tokens":1}',
            b'{"messages":[{"content":"Hi"}],"max_tokens":1}',
            b'{"messages":[{"role":"user"}],"max_tokens":1}',
            b'{"messages":[{"role":"narrator","content":"Hi"}],"max_tokens":1}',
        ],
    )
    def test_what_cannot_be_read_is_refused(self, body: bytes) -> None:
        """As the API would."""
        with pytest.raises(Untranslatable) as caught:
            translate_request(body, model="gpt-4o")
        assert caught.value.status == 400

    def test_text_keeps_its_escapes(self) -> None:
        """Strings are not spelled anew."""
        body = request(messages=[user(text("X"))]).replace(b'"X"', b'"\\u00e9\\/\\ud83d\\ude00\\u0000"')
        assert b'"\\u00e9\\/\\ud83d\\ude00\\u0000"' in translate_request(body, model="gpt-4o").body

    def test_memory(self) -> None:
        """A request with a large image takes a few times its size."""
        body = request(messages=[user({"type": "image", "source": {**PNG["source"], "data": "A" * 8_000_000}})])
        tracemalloc.start()
        try:
            translate_request(body, model="gpt-4o")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 6 * len(body)


# -- there and back

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda said: bool(said.strip())
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
INPUTS = st.dictionaries(WORDS, VALUES, max_size=3)
IMAGES = st.sampled_from([PNG, {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}])


@st.composite
def conversations(draw: st.DrawFn) -> list[JSON]:
    """Conversations of what both APIs have: a text to each user's turn, images, calls with their results."""
    messages: list[JSON] = []
    calls = 0
    for _ in range(draw(st.integers(0, 4))):
        messages.append(user(text(draw(WORDS)), *draw(st.lists(IMAGES, max_size=2))))
        names = draw(st.lists(st.sampled_from(["f", "g"]), max_size=3))
        ids = [f"toolu_{calls + number}" for number in range(len(names))]
        calls += len(names)
        uses = [tool_use(each, name, **draw(INPUTS)) for each, name in zip(ids, names, strict=True)]
        said = [text(draw(WORDS))] if draw(st.booleans()) or not uses else []
        messages.append(assistant(*said, *uses))
        if uses:
            results = [tool_result(each, draw(WORDS)) for each in ids]
            messages += [user(*results), assistant(text(draw(WORDS)))]
    return [*messages, user(text(draw(WORDS)))]


@settings(max_examples=50)
@given(conversations(), st.text(st.characters(exclude_categories=["Cs"])).filter(lambda said: bool(said.strip())))
def test_there_and_back(messages: list[JSON], system: str) -> None:
    """What both APIs have comes back as it was: texts, images, calls, their ids, input and results, in order."""
    there = translate_request(request(messages=messages, system=system, tools=[TOOL]), model="gpt-4o").body
    openai_shapes.chat_request(there)
    back = json.loads(to_anthropic.translate_request(there, model="claude-opus-5").body)
    assert back["messages"] == messages
    assert back["system"] == [text(system)]
    assert back["tools"] == [TOOL]
    assert back["max_tokens"] == 100
