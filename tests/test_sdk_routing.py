"""
The official SDKs through a real proxy that routes: each talks to a provider of the other kind, and to its own.

Two stand-ins listen: one is Anthropic, the other an API of OpenAI's kind. Behind every test stands that neither was
sent a key of the other, in whatever place.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import anthropic
import attrs
import httpx2
import openai
import pydantic
import pytest

from tests import openai_shapes
from tests.processes import Proxy, Seen, StandIn, proxy
from tests.recorded import Reader, Records
from tests.sdk_contract import CUT_WAYS, JSON, Driver, driver
from tests.standin_api import MODELS, OPENAI_MODELS
from tests.standin_messages import BIG_NUMBER, TOOL_INPUT, compact
from twisted_proxy.record.exchange import Role

OPENAI_KEY: Final = "sk-proj-of-the-proxy-0123456789"
CLAUDE_KEY: Final = "sk-ant-api03-of-the-client-0123456789"
CLAUDE_TOKEN: Final = "sk-ant-oat01-of-the-client-0123456789"
QUESTION: Final[Any] = [{"role": "user", "content": "How warm is it in Oslo and in Rome?"}]
SCHEMA: Final[Any] = {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}}
TOO_LONG: Final = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."
PIXEL: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Weather(pydantic.BaseModel):
    degrees: int


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("routing")


@pytest.fixture(scope="module")
def routed(home: Path, upstream: StandIn, provider: StandIn) -> Iterator[Proxy]:
    """A proxy that has a key for the provider, and records."""
    settings = {"OPENAI_BASE_URL": f"{provider.url}/v1", "OPENAI_API_KEY": OPENAI_KEY, "RECORD": "full"}
    with proxy(home, upstream, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def keyless(tmp_path_factory: pytest.TempPathFactory, upstream: StandIn, provider: StandIn) -> Iterator[Proxy]:
    """A proxy that has none."""
    with proxy(tmp_path_factory.mktemp("keyless"), upstream, OPENAI_BASE_URL=provider.url) as running:
        yield running


@attrs.frozen(kw_only=True)
class Sides:
    """What the two upstreams were sent since the test began."""

    upstream: StandIn
    provider: StandIn
    upstream_mark: int
    provider_mark: int

    def anthropic(self) -> list[Seen]:
        return self.upstream.requests(self.upstream_mark)

    def openai(self) -> list[Seen]:
        return self.provider.requests(self.provider_mark)

    def asked_openai(self, key: str | None = OPENAI_KEY) -> list[JSON]:
        """The bodies of what only OpenAI was asked, each a request by its SDK's types, with this key."""
        assert not self.anthropic()
        for seen in self.openai():
            assert (seen.method, seen.target) == ("POST", "/v1/chat/completions")
            assert credentials(seen) == ([] if key is None else [("authorization", f"Bearer {key}")])
        return [openai_shapes.chat_request(seen.body) for seen in self.openai()]

    def asked_anthropic(self, *credential: tuple[str, str]) -> list[JSON]:
        """The same of Anthropic."""
        assert not self.openai()
        for seen in self.anthropic():
            assert (seen.method, seen.target) == ("POST", "/v1/messages")
            assert credentials(seen) == list(credential or (("x-api-key", CLAUDE_KEY),))
        return [openai_shapes.messages_request(seen.body) for seen in self.anthropic()]


def credentials(seen: Seen) -> list[tuple[str, str]]:
    """The fields of a request that hold a key, names in lower case."""
    named = ("authorization", "x-api-key", "cookie", "proxy-authorization")
    return [(name.lower(), value) for name, value in seen.headers if name.lower() in named]


@pytest.fixture(autouse=True)
def sides(upstream: StandIn, provider: StandIn, transport: httpx2.Client) -> Iterator[Sides]:
    transport.cookies.clear()
    found = Sides(upstream=upstream, provider=provider, upstream_mark=upstream.mark(), provider_mark=provider.mark())
    yield found
    for seen in found.anthropic():
        assert OPENAI_KEY.encode() not in seen.head + seen.body
    for seen in found.openai():
        assert b"sk-ant-" not in seen.head + seen.body


@pytest.fixture(scope="module")
def transport() -> Iterator[httpx2.Client]:
    """One for all clients: each of its own would read all certificates that the system trusts."""
    with httpx2.Client(verify=False, trust_env=False, timeout=30) as client:
        yield client


def client_of(url: str, transport: httpx2.Client, **options: Any) -> anthropic.Anthropic:
    if not options:
        options = {"api_key": CLAUDE_KEY}
    return anthropic.Anthropic(base_url=url, http_client=transport, max_retries=0, **options)


@pytest.fixture
def claude(routed: Proxy, transport: httpx2.Client) -> anthropic.Anthropic:
    """Anthropic's SDK with a key of Anthropic."""
    return client_of(routed.url, transport)


@pytest.fixture
def gpt(routed: Proxy, transport: httpx2.Client) -> openai.OpenAI:
    """OpenAI's SDK with a key of Anthropic."""
    return openai.OpenAI(base_url=f"{routed.url}/v1", api_key=CLAUDE_KEY, http_client=transport, max_retries=0)


def message(client: anthropic.Anthropic, scenario: str, *, streamed: bool, **more: Any) -> anthropic.types.Message:
    asked: Any = {"model": f"gpt-standin-{scenario}", "max_tokens": 100, "messages": QUESTION, **more}
    if not streamed:
        found: anthropic.types.Message = client.messages.create(**asked)
        return found
    with client.messages.stream(**asked) as stream:
        return stream.get_final_message()


def completion(client: openai.OpenAI, scenario: str, *, streamed: bool, **more: Any) -> Any:
    asked: Any = {"model": f"claude-standin-{scenario}", "messages": QUESTION, **more}
    if not streamed:
        return client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion()


both_ways = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])


class TestAnthropicSdk:
    """It asks for models of OpenAI's kind."""

    @both_ways
    def test_message(self, claude: anthropic.Anthropic, sides: Sides, streamed: bool) -> None:
        """Text and usage, asked for with the provider's key alone."""
        found = message(
            claude, "auto?delta=4", streamed=streamed, system="Be brief.", metadata={"user_id": "ada@example.org"}
        )
        (text,) = found.content
        assert isinstance(text, anthropic.types.TextBlock)
        assert (text.text, found.stop_reason) == ("word0 word1 word2 ", "end_turn")
        assert (found.usage.input_tokens, found.usage.output_tokens) == (25, 13)
        (asked,) = sides.asked_openai()
        assert [each["role"] for each in asked["messages"]] == ["system", "user"]
        assert asked["max_completion_tokens"] == 100
        assert "ada@" not in json.dumps(asked)

    @both_ways
    def test_tools_over_turns(self, claude: anthropic.Anthropic, sides: Sides, streamed: bool) -> None:
        """Parallel calls with integers past 2**64, their results, and the answer that quotes both."""
        tools: Any = [{"name": "get_weather", "description": "The weather.", "input_schema": SCHEMA}]
        messages: list[Any] = list(QUESTION)

        def ask() -> anthropic.types.Message:
            return message(claude, "auto?say=parallel&delta=5", streamed=streamed, tools=tools, messages=messages)

        first = ask()
        assert first.stop_reason == "tool_use"
        uses = [block for block in first.content if isinstance(block, anthropic.types.ToolUseBlock)]
        assert [(use.id, use.input) for use in uses] == [
            ("call_Oslo", {"city": "Oslo", "n": BIG_NUMBER}),
            ("call_Rome", {"city": "Rome", "n": -BIG_NUMBER}),
        ]
        results = [
            {"type": "tool_result", "tool_use_id": use.id, "content": f"{use.input['city']} 21"}
            for use in reversed(uses)
        ]
        messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
        second = ask()
        assert second.stop_reason == "end_turn"
        assert isinstance(second.content[0], anthropic.types.TextBlock)
        asked = sides.asked_openai()[1]["messages"]
        assert [each["role"] for each in asked] == ["user", "assistant", "tool", "tool"]
        calls = {call["id"]: json.loads(call["function"]["arguments"]) for call in asked[1]["tool_calls"]}
        assert calls == {use.id: use.input for use in uses}
        told = {each["tool_call_id"]: each["content"] for each in asked[2:]}
        assert told == {"call_Oslo": "Oslo 21", "call_Rome": "Rome 21"}
        assert all(content in second.content[0].text for content in told.values())

    def test_images(self, claude: anthropic.Anthropic, sides: Sides) -> None:
        """In base64, by URL, and in the result of a tool."""
        in_base64 = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
        by_url = {"type": "image", "source": {"type": "url", "url": "https://images.test/a.png"}}
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [in_base64]}
        messages = [
            {"role": "user", "content": [{"type": "text", "text": "Look."}, in_base64, by_url]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "see", "input": {}}]},
            {"role": "user", "content": [result]},
        ]
        message(claude, "auto", streamed=False, messages=messages)
        (asked,) = sides.asked_openai()
        data = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
        assert asked["messages"][0]["content"] == [
            {"type": "text", "text": "Look."},
            data,
            {"type": "image_url", "image_url": {"url": "https://images.test/a.png"}},
        ]
        assert data in asked["messages"][-1]["content"]

    def test_schema(self, claude: anthropic.Anthropic, sides: Sides) -> None:
        """``parse`` gets what it asks for."""
        model = "gpt-standin-auto?say=degrees"
        found = claude.messages.parse(model=model, max_tokens=100, messages=QUESTION, output_format=Weather)
        assert found.parsed_output == Weather(degrees=21)
        (asked,) = sides.asked_openai()
        assert asked["response_format"]["json_schema"]["schema"]["properties"]["degrees"]["type"] == "integer"

    @both_ways
    def test_rate_limit(self, claude: anthropic.Anthropic, sides: Sides, streamed: bool) -> None:
        """Raises what Anthropic's does, and says when to come again; the SDK alone repeats it."""
        scenario = "error?status=429&type=rate_limit_exceeded&retry_after=7&message=Slow%20down"
        with pytest.raises(anthropic.RateLimitError) as raised:
            message(claude, scenario, streamed=streamed)
        assert raised.value.response.headers["retry-after"] == "7"
        assert raised.value.body["error"] == {"type": "rate_limit_error", "message": "Slow down"}  # type: ignore[index]
        sides.asked_openai()
        retrying = claude.with_options(max_retries=1)
        with pytest.raises(anthropic.RateLimitError):
            message(retrying, scenario.replace("retry_after=7", "retry_after_ms=1"), streamed=streamed)
        assert len(sides.openai()) == 3

    def test_too_long(self, claude: anthropic.Anthropic, sides: Sides) -> None:
        """In the words by which Claude Code knows that it has to compact."""
        scenario = f"error?status=400&type=context_length_exceeded&message={quote(TOO_LONG)}"
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long: 9000 tokens > 8192 maximum"):
            message(claude, scenario, streamed=False)
        sides.asked_openai()

    def test_wrong_key(self, claude: anthropic.Anthropic) -> None:
        """A provider that says which key it was given does not tell the client."""
        said = quote(f"Incorrect API key provided: {OPENAI_KEY}.")
        with pytest.raises(anthropic.AuthenticationError) as raised:
            message(claude, f"error?status=401&type=invalid_api_key&message={said}", streamed=False)
        assert OPENAI_KEY not in raised.value.response.text

    def test_error_inside_a_stream(self, claude: anthropic.Anthropic) -> None:
        """Raises, with its type."""
        with pytest.raises(anthropic.APIStatusError) as raised:
            message(claude, "auto?count=9&delta=6&error_at=4&type=rate_limit_exceeded", streamed=True)
        assert raised.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index]

    @pytest.mark.parametrize("way", [*CUT_WAYS, "how=last"])
    def test_cut(self, claude: anthropic.Anthropic, way: str) -> None:
        """A stream that ends before its answer does raises, wherever it ends."""
        for at in (0, 1, 150, 300, 900):
            with pytest.raises((anthropic.APIError, httpx2.HTTPError)):
                message(claude, f"cut?count=9&delta=6&at={at}&{way}", streamed=True)

    def test_leaving_a_stream(self, claude: anthropic.Anthropic, provider: StandIn, sides: Sides) -> None:
        """Ends the provider's connection."""
        asked: Any = {"model": "gpt-standin-auto?count=9&delta=6&gate=never@5", "max_tokens": 9, "messages": QUESTION}
        with claude.messages.stream(**asked) as stream:
            assert next(iter(stream)).type == "message_start"
        assert provider.wait_closed(since=sides.provider_mark).closed_by == "rst"

    def test_count_tokens(self, claude: anthropic.Anthropic, sides: Sides) -> None:
        """An estimate that says it is one; nobody is asked. Claude's are counted by Anthropic."""
        raw = claude.messages.with_raw_response.count_tokens(model="gpt-4o", messages=QUESTION)
        assert raw.headers["x-proxy-estimated"] == "true"
        assert 10 < raw.parse().input_tokens < 30
        assert not sides.openai() + sides.anthropic()
        raw = claude.messages.with_raw_response.count_tokens(model=MODELS[0], messages=QUESTION)
        assert "x-proxy-estimated" not in raw.headers
        assert len(sides.anthropic()) == 1

    def test_models(self, claude: anthropic.Anthropic, sides: Sides) -> None:
        """Anthropic's, over pages, and those of the other that a request would reach."""
        found = {model.id: model.type for model in claude.models.list(limit=2)}
        assert list(found) == [*MODELS, *OPENAI_MODELS[:2]]
        assert [claude.models.retrieve(name).id for name in (MODELS[0], "gpt-4o")] == [MODELS[0], "gpt-4o"]
        assert set(found.values()) == {"model"}
        for seen in sides.anthropic():
            assert ("authorization", f"Bearer {CLAUDE_KEY}") in credentials(seen)
        assert {tuple(credentials(seen)) for seen in sides.openai()} == {(("authorization", f"Bearer {OPENAI_KEY}"),)}

    def test_thread(self, claude: anthropic.Anthropic, sides: Sides) -> None:
        """A conversation that Anthropic holds is refused in the way that clients act upon."""
        thread = {"thread": {"type": "continue", "previous_message_id": "msg_1"}}
        with pytest.raises(anthropic.BadRequestError) as raised:
            message(claude, "auto", streamed=False, extra_body=thread)
        error = raised.value.body["error"]  # type: ignore[index]
        assert error["type"] == "invalid_request_error"
        assert error["details"] == {"error_code": "thread_unsupported_request"}
        assert not sides.openai() + sides.anthropic()

    @pytest.mark.parametrize(
        "credential", [{"auth_token": CLAUDE_TOKEN}, {"api_key": CLAUDE_KEY}, {"auth_token": "gw"}]
    )
    def test_credentials(
        self, routed: Proxy, keyless: Proxy, transport: httpx2.Client, sides: Sides, credential: Any
    ) -> None:
        """Whatever a client sends goes to Anthropic with what is Anthropic's, and never to the provider."""
        message(client_of(routed.url, transport, **credential), "auto", streamed=False)
        sides.asked_openai()
        message(client_of(keyless.url, transport, **credential), "auto", streamed=False)
        assert credentials(sides.openai()[1]) == []
        assert not sides.anthropic()
        client = client_of(routed.url, transport, **credential)
        client.messages.create(model=MODELS[0], max_tokens=9, messages=QUESTION)
        (seen,) = sides.anthropic()
        (value,) = credential.values()
        assert credentials(seen) == [("authorization", f"Bearer {value}")]

    @both_ways
    def test_a_claude_model_is_left_alone(
        self, claude: anthropic.Anthropic, upstream: StandIn, transport: httpx2.Client, sides: Sides, streamed: bool
    ) -> None:
        """Its request is what the SDK wrote, byte for byte, and so is its answer."""
        answers = []
        for client in (claude, client_of(upstream.url, transport)):
            create = client.messages.with_raw_response.create
            raw = create(model="claude-standin-auto", max_tokens=9, messages=QUESTION, stream=streamed)
            answers.append(raw.http_response.read())
        assert answers[0] == answers[1]
        behind, direct = sides.anthropic()
        assert (behind.target, behind.body) == (direct.target, direct.body)
        assert not sides.openai()

    @both_ways
    def test_recorded(
        self, claude: anthropic.Anthropic, home: Path, reader: Reader, sides: Sides, streamed: bool
    ) -> None:
        """Both sides' bytes, each as they were on its wire, and who was asked; no key."""
        model = "gpt-standin-auto?say=parallel&delta=100"
        create = claude.messages.with_raw_response.create
        raw = create(model=model, max_tokens=100, messages=QUESTION, stream=streamed)
        answer = raw.http_response.read()
        kept = Records(reader, home / "requests.db").wait_over(raw.headers["x-proxy-request-id"])
        (seen,) = sides.openai()
        request = json.loads(kept.data(Role.REQUEST) or b"")
        assert (request["model"], request["messages"]) == (model, QUESTION)
        assert kept.data(Role.FORWARDED) == seen.body
        assert kept.data(Role.ANSWER) == answer
        received = kept.data(Role.RECEIVED) or b""
        assert received.startswith(b'data: {"id":"chatcmpl_' if streamed else b'{"id":"chatcmpl_')
        assert str(BIG_NUMBER).encode() in answer
        exchange = kept.exchange
        assert (exchange.provider, exchange.model, exchange.verdict) == ("openai", model, "complete")
        assert (exchange.input_tokens, exchange.output_tokens, exchange.stop_reason) == (25, 13, "tool_use")
        assert OPENAI_KEY not in repr(exchange)
        assert CLAUDE_KEY not in repr(exchange)


class TestOpenAISdk:
    """It asks for Claude."""

    @both_ways
    def test_completion(self, gpt: openai.OpenAI, sides: Sides, streamed: bool) -> None:
        """Text and usage, asked for with the client's key as Anthropic wants it."""
        found = completion(gpt, "auto?delta=4", streamed=streamed, reasoning_effort="low", user="ada@example.org")
        choice = found.choices[0]
        assert (choice.message.content, choice.finish_reason) == ("word0 word1 word2 ", "stop")
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (1032, 13)
        assert found.usage.prompt_tokens_details.cached_tokens == 1000
        (asked,) = sides.asked_anthropic()
        assert asked["max_tokens"] > 1000
        assert "ada@" not in json.dumps(asked)
        (seen,) = sides.anthropic()
        assert seen.header("anthropic-version") == ["2023-06-01"]

    def test_chunks(self, gpt: openai.OpenAI) -> None:
        """Without the wish for usage, each chunk has a choice; the request's id is Anthropic's."""
        with gpt.chat.completions.with_streaming_response.create(
            model="claude-standin-auto", messages=QUESTION, stream=True
        ) as raw:
            lines = [line for line in raw.iter_lines() if line]
            assert raw.headers["x-request-id"].startswith("req_")
        assert lines[-1] == "data: [DONE]"
        assert all(line.startswith("data: ") for line in lines)
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        assert all(len(chunk["choices"]) == 1 and "usage" not in chunk for chunk in chunks)

    @both_ways
    def test_tools_over_turns(self, gpt: openai.OpenAI, sides: Sides, streamed: bool) -> None:
        """Parallel calls with integers past 2**64, their results, and the answer that quotes both."""
        tools: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}]
        messages: list[Any] = [{"role": "system", "content": "Be brief."}, *QUESTION]

        def ask() -> Any:
            found = completion(gpt, "auto?say=parallel&delta=5", streamed=streamed, tools=tools, messages=messages)
            return found.choices[0]

        first = ask()
        assert first.finish_reason == "tool_calls"
        calls = {call.id: json.loads(call.function.arguments) for call in first.message.tool_calls}
        assert calls == {
            "call_Oslo": {"city": "Oslo", "n": BIG_NUMBER},
            "call_Rome": {"city": "Rome", "n": -BIG_NUMBER},
        }
        messages.append(first.message.to_dict())
        messages += [
            {"role": "tool", "tool_call_id": name, "content": f"{value['city']} 21"} for name, value in calls.items()
        ]
        second = ask()
        assert second.finish_reason == "stop"
        assert "Oslo 21" in second.message.content
        assert "Rome 21" in second.message.content
        asked = sides.asked_anthropic()[1]
        assert [each["role"] for each in asked["messages"]] == ["user", "assistant", "user"]
        uses = [block for block in asked["messages"][1]["content"] if block["type"] == "tool_use"]
        assert {use["id"]: use["input"] for use in uses} == calls
        assert [block["tool_use_id"] for block in asked["messages"][2]["content"]] == list(calls)

    def test_images(self, gpt: openai.OpenAI, sides: Sides) -> None:
        """As data and by URL."""
        parts = [
            {"type": "text", "text": "Look."},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
            {"type": "image_url", "image_url": {"url": "https://images.test/a.png"}},
        ]
        completion(gpt, "auto", streamed=False, messages=[{"role": "user", "content": parts}])
        (asked,) = sides.asked_anthropic()
        assert [block.get("source") for block in asked["messages"][0]["content"]] == [
            None,
            {"type": "base64", "media_type": "image/png", "data": PIXEL},
            {"type": "url", "url": "https://images.test/a.png"},
        ]

    @both_ways
    def test_schema(self, gpt: openai.OpenAI, sides: Sides, streamed: bool) -> None:
        """``parse`` gets what it asks for."""
        asked: Any = {
            "model": "claude-standin-auto?say=degrees",
            "messages": QUESTION,
            "response_format": Weather,
        }
        if streamed:
            with gpt.chat.completions.stream(**asked) as stream:
                found = stream.get_final_completion()
        else:
            found = gpt.chat.completions.parse(**asked)
        assert found.choices[0].message.parsed == Weather(degrees=21)
        (sent,) = sides.asked_anthropic()
        assert sent["output_config"]["format"]["type"] == "json_schema"

    @pytest.mark.parametrize(
        ("scenario", "status", "code"),
        [
            ("error?status=429&retry_after=7", 429, "rate_limit_exceeded"),
            ("error?status=400&message=prompt%20is%20too%20long:%209%20tokens", 400, "context_length_exceeded"),
            ("error?status=401", 401, "invalid_api_key"),
            ("error?status=404", 404, "not_found"),
            ("error?status=413", 413, "request_too_large"),
            ("error?status=500", 500, None),
            ("error?status=529", 503, "overloaded"),
        ],
    )
    @both_ways
    def test_error(
        self, gpt: openai.OpenAI, sides: Sides, scenario: str, status: int, code: str | None, streamed: bool
    ) -> None:
        """Raises what OpenAI's own does, with its code and when to come again."""
        with pytest.raises(openai.APIStatusError) as raised:
            completion(gpt, scenario, streamed=streamed)
        error = raised.value
        assert (error.status_code, error.code) == (status, code)
        assert error.response.headers.get("retry-after") == ("7" if status == 429 else None)
        sides.asked_anthropic()

    def test_refusals_of_ours(self, gpt: openai.OpenAI, sides: Sides) -> None:
        """In OpenAI's envelope, in words; nobody is asked."""
        with pytest.raises(openai.BadRequestError, match="n: "):
            completion(gpt, "auto", streamed=False, n=2)
        with pytest.raises(openai.BadRequestError, match="modalities: "):
            completion(gpt, "auto", streamed=False, modalities=["text", "audio"])
        with pytest.raises(openai.APIStatusError) as raised:
            gpt.get("/chat/completions", cast_to=object)
        assert raised.value.status_code == 405
        assert not sides.openai() + sides.anthropic()

    def test_error_inside_a_stream(self, gpt: openai.OpenAI) -> None:
        """Raises, with its words."""
        with pytest.raises(openai.APIError, match="was asked to fail"):
            completion(gpt, "auto?count=9&delta=6&error_at=4", streamed=True)

    @pytest.mark.parametrize("way", [*CUT_WAYS, "how=last"])
    def test_cut(self, gpt: openai.OpenAI, way: str) -> None:
        """A stream that ends before its answer does raises, wherever it ends."""
        for at in (0, 1, 150, 300, 900):
            with pytest.raises((openai.APIError, httpx2.HTTPError)):
                completion(gpt, f"cut?count=9&delta=6&at={at}&{way}", streamed=True)

    def test_leaving_a_stream(self, gpt: openai.OpenAI, upstream: StandIn, sides: Sides) -> None:
        """Ends Anthropic's connection."""
        with gpt.chat.completions.create(
            model="claude-standin-auto?count=9&delta=6&gate=never@5", messages=QUESTION, stream=True
        ) as stream:
            assert next(iter(stream)).choices[0].delta.role == "assistant"
        assert upstream.wait_closed(since=sides.upstream_mark).closed_by == "rst"

    def test_models(self, gpt: openai.OpenAI, sides: Sides) -> None:
        """All that it can ask for, in its shape."""
        found = list(gpt.models.list())
        assert [model.id for model in found] == [*MODELS, *OPENAI_MODELS]
        assert {model.object for model in found} == {"model"}
        assert [gpt.models.retrieve(name).id for name in (MODELS[0], "gpt-4o")] == [MODELS[0], "gpt-4o"]
        assert [credentials(seen) for seen in sides.anthropic()] == [[("x-api-key", CLAUDE_KEY)]] * 2
        assert [credentials(seen) for seen in sides.openai()] == [[("authorization", f"Bearer {OPENAI_KEY}")]] * 2

    def test_token(self, routed: Proxy, transport: httpx2.Client, sides: Sides) -> None:
        """An OAuth token goes on as one, with the beta that it needs."""
        client = openai.OpenAI(base_url=f"{routed.url}/v1", api_key=CLAUDE_TOKEN, http_client=transport, max_retries=0)
        completion(client, "auto", streamed=False)
        sides.asked_anthropic(("authorization", f"Bearer {CLAUDE_TOKEN}"))
        (seen,) = sides.anthropic()
        assert seen.header("anthropic-beta") == ["oauth-2025-04-20"]

    @both_ways
    def test_recorded(self, gpt: openai.OpenAI, home: Path, reader: Reader, sides: Sides, streamed: bool) -> None:
        """Both sides' bytes, and what the message was and cost."""
        create = gpt.chat.completions.with_raw_response.create
        model = "claude-standin-auto?say=parallel"
        raw = create(model=model, messages=QUESTION, stream=streamed)
        answer = raw.http_response.read()
        kept = Records(reader, home / "requests.db").wait_over(raw.headers["x-proxy-request-id"])
        (seen,) = sides.anthropic()
        assert json.loads(kept.data(Role.REQUEST) or b"")["messages"] == QUESTION
        assert kept.data(Role.FORWARDED) == seen.body
        assert kept.data(Role.ANSWER) == answer
        received = kept.data(Role.RECEIVED) or b""
        assert received.startswith(b"event: message_start" if streamed else b'{"id":"msg_')
        assert (kept.exchange.provider, kept.exchange.verdict) == ("anthropic", "complete")


@pytest.fixture(scope="module")
def sdk(provider: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    runner = Path(__file__).with_name("sdk_runner.py")
    with driver((sys.executable, runner, "openai"), tmp_path_factory.mktemp("sdk"), provider) as running:
        yield running


class TestOpenAIModel:
    """OpenAI's SDK asks for OpenAI's models: nothing is translated, and it finds what it finds without the proxy."""

    @pytest.fixture
    def both(self, sdk: Driver, provider: StandIn, keyless: Proxy) -> Callable[..., JSON]:
        """Plays a scenario directly and through the proxy; gives what both showed, which must be the same."""

        def play(scenario: str, /, **arguments: object) -> JSON:
            direct = sdk.play(provider.url, scenario, **arguments)
            behind = sdk.play(keyless.url, scenario, **arguments)
            assert behind == direct
            return direct

        return play

    def test_completion(self, both: Callable[..., JSON], sides: Sides) -> None:
        """Request and answer are what they are without, the client's key included, where the proxy has none."""
        value = both("create", scenario="auto")["value"]
        assert value["completion"]["choices"][0]["message"]["content"] == "word0 word1 word2 "
        assert value["request_id"].startswith("req_")
        direct, behind = sides.openai()
        assert (behind.target, behind.body) == (direct.target, direct.body)
        assert credentials(behind) == credentials(direct) == [("authorization", "Bearer sk-stand-in")]
        assert not sides.anthropic()

    def test_with_the_proxys_key(self, sdk: Driver, routed: Proxy, sides: Sides) -> None:
        """It replaces the client's."""
        assert "value" in sdk.play(routed.url, "create", scenario="auto")
        sides.asked_openai()

    def test_stream(self, both: Callable[..., JSON]) -> None:
        """Data-only events arrive, and the usage chunk when it was asked for."""
        chunks = both("stream", scenario="auto?delta=6", include_usage=True)["value"]["chunks"]
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
        assert text == "word0 word1 word2 "
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] == 13

    def test_tools(self, both: Callable[..., JSON]) -> None:
        """Calls of tools arrive, whole and in pieces."""
        whole = both("create", scenario="auto", tools=True)["value"]["completion"]["choices"][0]
        assert whole["message"]["tool_calls"][0]["function"]["arguments"] == compact(TOOL_INPUT)
        chunks = both("stream", scenario="auto?delta=5", tools=True)["value"]["chunks"]
        calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
        arguments = "".join(call["function"]["arguments"] for call in calls if call["index"] == 0)
        assert arguments == compact(TOOL_INPUT)
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 500, 529])
    def test_error(self, both: Callable[..., JSON], status: int) -> None:
        """Each status raises what it raises without the proxy."""
        assert both("create", scenario=f"error?status={status}")["raised"]["status"] == status

    def test_retried_by_the_sdk_alone(self, both: Callable[..., JSON], sides: Sides) -> None:
        """A rate limit reaches the upstream three times on either way, as the SDK tries three times."""
        assert both("create", scenario="error?status=429&retry_after_ms=1", retries=2)["raised"]["status"] == 429
        assert len(sides.openai()) == 6

    @pytest.mark.parametrize("way", CUT_WAYS)
    def test_truncated(self, sdk: Driver, keyless: Proxy, way: str) -> None:
        """A stream that is cut raises."""
        raised = sdk.play(keyless.url, "stream", scenario=f"cut?at=300&{way}")["raised"]
        assert raised["class"] in ("RemoteProtocolError", "ReadError", "APIConnectionError")

    def test_leaving_a_stream(self, sdk: Driver, provider: StandIn, keyless: Proxy, sides: Sides) -> None:
        """A client that closes a quiet stream ends the upstream's connection within a second."""
        sdk.play(keyless.url, "leave", scenario="auto?count=9&delta=6&gate=never@5", events=3)
        provider.wait_closed(since=sides.provider_mark, timeout=1)
