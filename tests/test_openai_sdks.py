"""
The official SDKs over the translation: anthropic's talks to chat completions, openai's to the Messages API.

Between them stands what a proxy does, without a network: the SDK's request is translated, answered by a small
provider of the other kind that checks it by the other SDK's types, and the answer translated back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pydantic
import pytest

from tests import openai_shapes
from tests.standin_messages import message_events, openai_events
from twisted_proxy.wire.openai import from_anthropic, from_openai, to_anthropic, to_openai

JSON = dict[str, Any]

BIG = 2**80 + 1


class Pieces(httpx2.SyncByteStream):
    """A body in pieces of seven bytes."""

    def __init__(self, feed: Callable[[bytes], bytes], finish: Callable[[], bytes], body: bytes) -> None:
        self._feed, self._finish, self._body = feed, finish, body

    def __iter__(self) -> Iterator[bytes]:
        for at in range(0, len(self._body), 7):
            if out := self._feed(self._body[at : at + 7]):
                yield out
        yield self._finish()


STREAM = {"content-type": "text/event-stream"}
PLAIN = {"content-type": "application/json"}


class ChatProvider:
    """An OpenAI-compatible provider for Anthropic's SDK: asks for the weather in two places at once, then sums up."""

    def __init__(self) -> None:
        self.requests: list[JSON] = []

    def handle(self, request: httpx2.Request) -> httpx2.Response:
        assert request.url.path == "/v1/messages"
        translated = to_openai.translate_request(request.content, model="gpt-4o")
        body = openai_shapes.chat_request(translated.body)
        self.requests.append(body)
        whole = self._answer(body)
        known: Any = {"model": "gpt-4o", "message_id": "msg_1", "tool_names": translated.tool_names}
        if not translated.stream:
            answer = from_openai.translate_answer(json.dumps(whole).encode(), **known)
            return httpx2.Response(200, content=answer, headers=PLAIN)
        stream = "".join(f"data: {data}\n\n" for _, data in openai_events(whole, size=5, include_usage=True))
        machine = from_openai.AnswerStream(**known)
        return httpx2.Response(200, stream=Pieces(machine.feed, machine.finish, stream.encode()), headers=STREAM)

    def _answer(self, body: JSON) -> JSON:
        results = [each["content"] for each in body["messages"] if each["role"] == "tool"]
        message: JSON = {"role": "assistant", "content": None, "refusal": None}
        if body.get("response_format"):
            message["content"] = '{"degrees": 21}'
        elif not results and body.get("tools"):
            name = body["tools"][0]["function"]["name"]
            message["content"] = "Let me look."
            message["tool_calls"] = [
                {
                    "id": f"call_{place}",
                    "type": "function",
                    "function": {"name": name, "arguments": json.dumps({"place": place, "n": BIG})},
                }
                for place in ("Oslo", "Rome")
            ]
        else:
            message["content"] = " ".join(["It is", *results])
        finish = "tool_calls" if "tool_calls" in message else "stop"
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-4o-2024-08-06",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
            "usage": {
                "prompt_tokens": 50,
                "completion_tokens": 9,
                "total_tokens": 59,
                "prompt_tokens_details": {"cached_tokens": 20},
            },
        }


WEATHER: Any = {
    "name": "get_weather_" * 7,
    "description": "The weather at a place.",
    "input_schema": {
        "type": "object",
        "properties": {"place": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["place"],
    },
}


@pytest.mark.parametrize("streamed", [False, True])
def test_anthropics_sdk_over_several_turns(streamed: bool) -> None:
    """Parallel calls with integers past 2**64, results, text: the conversation goes on as with a Claude model."""
    provider = ChatProvider()
    client = anthropic.Anthropic(
        api_key="sk-ant-x",
        max_retries=0,
        http_client=httpx2.Client(transport=httpx2.MockTransport(provider.handle)),
    )

    def ask(messages: Any) -> anthropic.types.Message:
        arguments: Any = {
            "model": "claude-opus-5",
            "max_tokens": 1000,
            "system": "Be brief.",
            "messages": messages,
            "tools": [WEATHER],
            "metadata": {"user_id": "ada"},
        }
        if not streamed:
            found: anthropic.types.Message = client.messages.create(**arguments)
            return found
        with client.messages.stream(**arguments) as stream:
            return stream.get_final_message()

    messages: list[Any] = [{"role": "user", "content": "How warm is it in Oslo and in Rome?"}]
    first = ask(messages)
    assert (first.stop_reason, first.model) == ("tool_use", "gpt-4o-2024-08-06")
    assert (first.usage.input_tokens, first.usage.cache_read_input_tokens, first.usage.output_tokens) == (30, 20, 9)
    said, *calls = first.content
    assert isinstance(said, anthropic.types.TextBlock)
    assert said.text == "Let me look."
    uses = [call for call in calls if isinstance(call, anthropic.types.ToolUseBlock)]
    assert [(use.id, use.name, use.input) for use in uses] == [
        ("call_Oslo", WEATHER["name"], {"place": "Oslo", "n": BIG}),
        ("call_Rome", WEATHER["name"], {"place": "Rome", "n": BIG}),
    ]
    messages.append({"role": "assistant", "content": first.content})
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": f"{use.input['place']} 21"} for use in uses]
    messages.append({"role": "user", "content": [*results, {"type": "text", "text": "Well?"}]})
    second = ask(messages)
    assert second.stop_reason == "end_turn"
    assert isinstance(second.content[0], anthropic.types.TextBlock)
    assert second.content[0].text == "It is Oslo 21 Rome 21"
    assert [each["role"] for each in provider.requests[1]["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "user",
    ]
    assert json.loads(provider.requests[1]["messages"][2]["tool_calls"][0]["function"]["arguments"])["n"] == BIG


def test_anthropics_sdk_with_a_schema() -> None:
    """``messages.parse`` gets what it asks for."""

    class Weather(pydantic.BaseModel):
        degrees: int

    provider = ChatProvider()
    client = anthropic.Anthropic(
        api_key="sk-ant-x", http_client=httpx2.Client(transport=httpx2.MockTransport(provider.handle))
    )
    found = client.messages.parse(
        model="claude-opus-5",
        max_tokens=100,
        messages=[{"role": "user", "content": "How warm is it?"}],
        output_format=Weather,
    )
    assert found.parsed_output == Weather(degrees=21)
    schema = provider.requests[0]["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["properties"]["degrees"]["type"] == "integer"


class MessagesProvider:
    """Anthropic's API for OpenAI's SDK, with the same manners."""

    def __init__(self) -> None:
        self.requests: list[JSON] = []

    def handle(self, request: httpx2.Request) -> httpx2.Response:
        assert request.url.path == "/v1/chat/completions"
        translated = to_anthropic.translate_request(request.content, model="claude-opus-5")
        body = openai_shapes.messages_request(translated.body)
        self.requests.append(body)
        whole = self._answer(body)
        if not translated.stream:
            answer = from_anthropic.translate_answer(json.dumps(whole).encode(), created=1)
            return httpx2.Response(200, content=answer, headers=PLAIN)
        stream = "".join(
            f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in message_events(whole, size=5)
        )
        machine = from_anthropic.ChunkStream(created=1, include_usage=translated.include_usage)
        return httpx2.Response(200, stream=Pieces(machine.feed, machine.finish, stream.encode()), headers=STREAM)

    def _answer(self, body: JSON) -> JSON:
        results = [
            block["content"] for each in body["messages"] for block in each["content"] if block["type"] == "tool_result"
        ]
        content: list[JSON] = [{"type": "thinking", "thinking": "Hm, the weather.", "signature": "c2ln"}]

        def text(said: str) -> JSON:
            return {"type": "text", "text": said, "citations": None}

        if body.get("output_config", {}).get("format"):
            content.append(text('{"degrees": 21}'))
        elif not results and body.get("tools"):
            content.append(text("Let me look."))
            content += [
                {
                    "type": "tool_use",
                    "id": f"toolu_{place}",
                    "name": body["tools"][0]["name"],
                    "input": {"place": place, "n": BIG},
                }
                for place in ("Oslo", "Rome")
            ]
        else:
            content.append(text(" ".join(["It is", *results])))
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-opus-5",
            "content": content,
            "stop_reason": "tool_use" if content[-1]["type"] == "tool_use" else "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 30, "cache_read_input_tokens": 20, "output_tokens": 9},
        }


FUNCTION: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": WEATHER["input_schema"],
    },
}


def openai_client(provider: MessagesProvider) -> openai.OpenAI:
    return openai.OpenAI(
        api_key="sk-ant-x",
        max_retries=0,
        http_client=httpx2.Client(transport=httpx2.MockTransport(provider.handle)),
    )


@pytest.mark.parametrize("streamed", [False, True])
def test_openais_sdk_over_several_turns(streamed: bool) -> None:
    """The same conversation from the other side; Claude gets its own thoughts back."""
    provider = MessagesProvider()
    client = openai_client(provider)

    def ask(messages: Any) -> Any:
        arguments: Any = {
            "model": "claude-opus-5",
            "messages": messages,
            "tools": [FUNCTION],
            "temperature": 0.2,
            "reasoning_effort": "high",
        }
        if not streamed:
            return client.chat.completions.create(**arguments)
        with client.chat.completions.stream(**arguments, stream_options={"include_usage": True}) as stream:
            for _ in stream:
                pass
            return stream.get_final_completion()

    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How warm is it in Oslo and in Rome?"},
    ]
    first = ask(messages)
    choice = first.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (50, 9)
    assert first.usage.prompt_tokens_details.cached_tokens == 20
    assert choice.message.content == "Let me look."
    assert choice.message.reasoning_content == "Hm, the weather."
    assert [(call.id, call.function.name) for call in choice.message.tool_calls] == [
        ("toolu_Oslo", "get_weather"),
        ("toolu_Rome", "get_weather"),
    ]
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"place": "Oslo", "n": BIG}
    messages.append(choice.message.to_dict())
    messages += [
        {
            "role": "tool",
            "tool_call_id": call.id,
            "content": json.loads(call.function.arguments)["place"] + " 21",
        }
        for call in choice.message.tool_calls
    ]
    second = ask(messages)
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content == "It is Oslo 21 Rome 21"
    sent = provider.requests[1]
    assert sent["messages"][1]["content"][0] == {
        "type": "thinking",
        "thinking": "Hm, the weather.",
        "signature": "c2ln",
    }
    assert sent["messages"][1]["content"][2]["input"]["n"] == BIG
    assert [block["tool_use_id"] for block in sent["messages"][2]["content"]] == ["toolu_Oslo", "toolu_Rome"]


@pytest.mark.parametrize("streamed", [False, True])
def test_openais_sdk_with_a_schema(streamed: bool) -> None:
    """``parse`` gets what it asks for."""

    class Weather(pydantic.BaseModel):
        degrees: int

    provider = MessagesProvider()
    client = openai_client(provider)
    arguments: Any = {
        "model": "claude-opus-5",
        "messages": [{"role": "user", "content": "How warm is it?"}],
        "response_format": Weather,
    }
    if streamed:
        with client.chat.completions.stream(**arguments) as stream:
            found = stream.get_final_completion()
    else:
        found = client.chat.completions.parse(**arguments)
    assert found.choices[0].message.parsed == Weather(degrees=21)
    form = provider.requests[0]["output_config"]["format"]
    assert form["type"] == "json_schema"
    assert form["schema"]["required"] == ["degrees"]


def test_openais_sdk_without_usage() -> None:
    """Chunks as they come, none without a choice."""
    client = openai_client(MessagesProvider())
    found = list(
        client.chat.completions.create(
            model="claude-opus-5", messages=[{"role": "user", "content": "Hi"}], stream=True, max_completion_tokens=50
        )
    )
    assert all(len(chunk.choices) == 1 for chunk in found)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in found) == "It is"
    assert found[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("cut", [0, 1, 40, -40])
def test_a_cut_stream_raises_in_both(cut: int) -> None:
    """Neither SDK takes what is not whole for a success."""
    whole = "".join(
        f"data: {data}\n\n" for _, data in openai_events(ChatProvider()._answer({"messages": []}), include_usage=True)
    ).encode()
    whole = whole[: whole.index(b'"finish_reason":"stop"')]
    chunks = from_openai.AnswerStream(model="gpt-4o", message_id="msg_1")

    def chat(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, stream=Pieces(chunks.feed, chunks.finish, whole[:cut]), headers=STREAM)

    client = anthropic.Anthropic(
        api_key="x", max_retries=0, http_client=httpx2.Client(transport=httpx2.MockTransport(chat))
    )
    with (
        pytest.raises(anthropic.APIStatusError, match="provider's stream"),
        client.messages.stream(model="m", max_tokens=5, messages=[{"role": "user", "content": "Hi"}]) as stream,
    ):
        stream.get_final_message()

    answer = MessagesProvider()._answer({"messages": []})
    events = "".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in message_events(answer)).encode()
    events = events[: events.index(b"event: message_stop")]
    machine = from_anthropic.ChunkStream(created=1)

    def messages(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, stream=Pieces(machine.feed, machine.finish, events[:cut]), headers=STREAM)

    other = openai.OpenAI(
        api_key="x", max_retries=0, http_client=httpx2.Client(transport=httpx2.MockTransport(messages))
    )
    with pytest.raises(openai.APIError, match="ended before"):
        list(other.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}], stream=True))
