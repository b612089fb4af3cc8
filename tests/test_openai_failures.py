"""Errors, lists of models and estimates between Anthropic's shapes and OpenAI's, and what a model takes."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from anthropic.types import ModelInfo
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Model

from twisted_proxy.wire import errors
from twisted_proxy.wire.openai import estimate, failures, listing, models, tools
from twisted_proxy.wire.openai.refusal import Untranslatable

JSON = dict[str, Any]


def to_anthropic(status: int, body: bytes) -> tuple[int, JSON]:
    """An error answer as an Anthropic client gets it."""
    found, answer = failures.translate_to_anthropic(status, body, "req_1")
    parsed = json.loads(answer)
    assert (parsed["type"], parsed["request_id"]) == ("error", "req_1")
    return found, parsed["error"]


def openai_error(message: str = "Oops.", kind: str | None = None, code: Any = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


class TestToAnthropic:
    @pytest.mark.parametrize(
        ("status", "kind", "code", "expected", "error_type"),
        [
            (400, "invalid_request_error", None, 400, "invalid_request_error"),
            (401, "invalid_request_error", "invalid_api_key", 401, "authentication_error"),
            (403, "request_forbidden", None, 403, "permission_error"),
            (404, "invalid_request_error", "model_not_found", 404, "not_found_error"),
            (408, None, None, 408, "timeout_error"),
            (409, None, None, 409, "conflict_error"),
            (413, None, None, 413, "request_too_large"),
            (422, None, None, 400, "invalid_request_error"),
            (429, "requests", "rate_limit_exceeded", 429, "rate_limit_error"),
            (429, "insufficient_quota", "insufficient_quota", 402, "billing_error"),
            (418, None, None, 418, "invalid_request_error"),
            (500, "server_error", None, 500, "api_error"),
            (502, None, None, 502, "api_error"),
            (503, "server_error", None, 529, "overloaded_error"),
            (504, None, None, 504, "timeout_error"),
            (302, None, None, 502, "api_error"),
        ],
    )
    def test_status_and_type(
        self, status: int, kind: str | None, code: str | None, expected: int, error_type: str
    ) -> None:
        """The status that Anthropic gives for the same, so that clients repeat what is worth repeating."""
        found, error = to_anthropic(status, openai_error("Oops.", kind, code))
        assert (found, error["type"]) == (expected, error_type)
        assert "Oops." in error["message"]

    @pytest.mark.parametrize(
        "body",
        [
            openai_error(),
            b'{"error":"Oops."}',
            b'{"object":"error","message":"Oops.","type":"BadRequestError","code":400}',
            b'{"detail":"Oops."}',
            b'[{"error":{"code":400,"message":"Oops.","status":"INVALID_ARGUMENT"}}]',
            b"Oops.",
            b" Oops.\n",
            b'"Oops."',
        ],
    )
    def test_shapes(self, body: bytes) -> None:
        """Compatible servers have several."""
        assert to_anthropic(400, body)[1]["message"] == "Oops."

    @pytest.mark.parametrize("body", [b"", b"<html>Bad Gateway</html>", b"{}", b"[]", b"null", b'{"error":{}}', b"{"])
    def test_without_words(self, body: bytes) -> None:
        """Then the status is what can be said."""
        assert to_anthropic(502, body)[1]["message"] == "The provider answered 502 and did not say why."

    @pytest.mark.parametrize(
        "message",
        [
            "This model's maximum context length is 128000 tokens. However, your messages resulted in 130000 tokens.",
            "This model's maximum context length is 128000 tokens. However, you requested 130000 tokens (…).",
        ],
    )
    def test_a_conversation_that_is_too_long(self, message: str) -> None:
        """In the words that Anthropic's clients know, and compact it."""
        found, error = to_anthropic(400, openai_error(message, "invalid_request_error", "context_length_exceeded"))
        assert (found, error["type"]) == (400, "invalid_request_error")
        assert error["message"].startswith("prompt is too long: 130000 tokens > 128000 maximum")
        assert to_anthropic(400, openai_error("Too long.", None, "context_length_exceeded"))[1]["message"] == (
            "prompt is too long (Too long.)"
        )

    def test_keys_are_not_told(self) -> None:
        """A provider may quote the key that it was given, which is not the client's."""
        body = openai_error(
            "Incorrect API key provided: sk-proj-ab****wxyz. Or: Bearer abcdef.", None, "invalid_api_key"
        )
        message = to_anthropic(401, body)[1]["message"]
        assert "wxyz" not in message
        assert "abcdef" not in message
        assert message.startswith("Incorrect API key provided: …")

    def test_long_words_are_cut(self) -> None:
        """An error is no page."""
        assert len(to_anthropic(400, openai_error("x" * 100_000))[1]["message"]) <= 2000
        assert len(to_anthropic(400, b"x" * 100_000)[1]["message"]) <= 2000

    def test_the_sdk_raises_what_it_should(self) -> None:
        """By the status."""

        def handle(request: httpx2.Request) -> httpx2.Response:
            status, body = failures.translate_to_anthropic(429, openai_error("Slow down."), None)
            return httpx2.Response(status, content=body, headers={"content-type": "application/json"})

        client = anthropic.Anthropic(
            api_key="sk-ant-x", max_retries=0, http_client=httpx2.Client(transport=httpx2.MockTransport(handle))
        )
        with pytest.raises(anthropic.RateLimitError, match="Slow down"):
            client.messages.create(model="m", max_tokens=5, messages=[{"role": "user", "content": "Hi"}])

    @given(st.integers(100, 599), st.binary(max_size=60))
    def test_anything_is_an_error(self, status: int, body: bytes) -> None:
        """Whatever comes, the answer is one, with a status of one."""
        found, error = to_anthropic(status, body)
        assert 400 <= found < 600
        assert error["message"]


class TestToOpenAI:
    @pytest.mark.parametrize(
        ("status", "error_type", "expected", "kind", "code"),
        [
            (400, "invalid_request_error", 400, "invalid_request_error", None),
            (401, "authentication_error", 401, "invalid_request_error", "invalid_api_key"),
            (402, "billing_error", 429, "insufficient_quota", "insufficient_quota"),
            (403, "permission_error", 403, "invalid_request_error", "permission_denied"),
            (404, "not_found_error", 404, "invalid_request_error", "not_found"),
            (409, "conflict_error", 409, "invalid_request_error", "conflict"),
            (413, "request_too_large", 413, "invalid_request_error", "request_too_large"),
            (429, "rate_limit_error", 429, "rate_limit_error", "rate_limit_exceeded"),
            (500, "api_error", 500, "server_error", None),
            (502, "api_error", 502, "server_error", None),
            (504, "timeout_error", 504, "server_error", "timeout"),
            (529, "overloaded_error", 503, "server_error", "overloaded"),
            (529, "something_newer", 503, "server_error", "overloaded"),
            (418, "something_newer", 418, "invalid_request_error", None),
        ],
    )
    def test_status_and_type(self, status: int, error_type: str, expected: int, kind: str, code: str | None) -> None:
        """Each of Anthropic's, as OpenAI's clients know it."""
        found, body = failures.translate_to_openai(status, errors.envelope(error_type, "Oops.", "req_1"))
        assert found == expected
        assert json.loads(body) == {"error": {"message": "Oops.", "type": kind, "param": None, "code": code}}

    def test_a_conversation_that_is_too_long(self) -> None:
        """OpenAI has a code for it, which clients know."""
        body = errors.envelope("invalid_request_error", "prompt is too long: 5 tokens > 4 maximum", None)
        assert json.loads(failures.translate_to_openai(400, body)[1])["error"]["code"] == "context_length_exceeded"

    @pytest.mark.parametrize("body", [b"", b"<html>", b"{}"])
    def test_without_words(self, body: bytes) -> None:
        """Something is said all the same."""
        status, answer = failures.translate_to_openai(502, body)
        assert status == 502
        assert json.loads(answer)["error"]["message"]

    def test_the_sdk_raises_what_it_should(self) -> None:
        """By the status, with the code."""

        def handle(request: httpx2.Request) -> httpx2.Response:
            status, body = failures.translate_to_openai(402, errors.envelope("billing_error", "No more.", None))
            return httpx2.Response(status, content=body, headers={"content-type": "application/json"})

        client = openai.OpenAI(
            api_key="x", max_retries=0, http_client=httpx2.Client(transport=httpx2.MockTransport(handle))
        )
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
        assert caught.value.code == "insufficient_quota"


OPENAI_LIST = {
    "object": "list",
    "data": [
        {"id": "gpt-4o", "object": "model", "created": 1_715_367_049, "owned_by": "system"},
        {"id": "o3", "object": "model", "created": 1_744_133_301, "owned_by": "system"},
        {"id": "whisper-1", "object": "model", "created": 1_677_532_384, "owned_by": "openai-internal"},
    ],
}
CLAUDE = {
    "type": "model",
    "id": "claude-opus-5",
    "display_name": "Claude Opus 5",
    "created_at": "2026-02-04T00:00:00Z",
    "lifecycle": "active",
    "max_tokens": 128_000,
}
ANTHROPIC_LIST = {"data": [CLAUDE], "has_more": False, "first_id": "claude-opus-5", "last_id": "claude-opus-5"}


def routed(name: str) -> bool:
    return name.startswith(("gpt-", "o3"))


class TestListing:
    def test_models_are_added(self) -> None:
        """Anthropic's first, as they came, then those that would be routed, in Anthropic's shape."""
        body = json.dumps(ANTHROPIC_LIST).encode()
        found = json.loads(listing.add_to_anthropic_list(body, json.dumps(OPENAI_LIST).encode(), is_routed=routed))
        assert found == {
            "data": [
                CLAUDE,
                {
                    "type": "model",
                    "id": "gpt-4o",
                    "display_name": "gpt-4o",
                    "created_at": "2024-05-10T18:50:49Z",
                    "lifecycle": "active",
                },
                {
                    "type": "model",
                    "id": "o3",
                    "display_name": "o3",
                    "created_at": "2025-04-08T17:28:21Z",
                    "lifecycle": "active",
                },
            ],
            "has_more": False,
            "first_id": "claude-opus-5",
            "last_id": "o3",
        }
        for model in found["data"]:
            ModelInfo.model_validate(model)

    def test_each_model_once(self) -> None:
        """On the last page, and not beside one of the same name."""
        more = json.dumps({**ANTHROPIC_LIST, "has_more": True}).encode()
        others = json.dumps(OPENAI_LIST).encode()
        assert listing.add_to_anthropic_list(more, others, is_routed=routed) == more
        body = json.dumps(ANTHROPIC_LIST).encode()
        same = json.dumps({"data": [{"id": "claude-opus-5"}]}).encode()
        assert listing.add_to_anthropic_list(body, same, is_routed=lambda name: True) == body

    def test_an_empty_list_and_odd_dates(self) -> None:
        """Compatible servers have models without a date."""
        body = b'{"data":[],"has_more":false,"first_id":null,"last_id":null}'
        others = b'{"data":[{"id":"a"},{"id":"b","created":1e30},{"created":1},{"id":5}]}'
        found = json.loads(listing.add_to_anthropic_list(body, others, is_routed=lambda name: True))
        assert [model["id"] for model in found["data"]] == ["a", "b"]
        assert {model["created_at"] for model in found["data"]} == {"1970-01-01T00:00:00Z"}
        assert (found["first_id"], found["last_id"]) == ("a", "b")

    def test_in_openais_shape(self) -> None:
        """For a client that is one."""
        found = json.loads(listing.to_openai_list(json.dumps(ANTHROPIC_LIST).encode()))
        assert found == {
            "object": "list",
            "data": [{"id": "claude-opus-5", "object": "model", "created": 1_770_163_200, "owned_by": "anthropic"}],
        }
        Model.model_validate(found["data"][0])
        odd = json.loads(listing.to_openai_list(b'{"data":[{"id":"a"},{"id":"b","created_at":"1970-01-01T00:00:05"}]}'))
        assert [model["created"] for model in odd["data"]] == [0, 5]

    def test_joined(self) -> None:
        """Both providers' models in OpenAI's shape."""
        claude = listing.to_openai_list(json.dumps(ANTHROPIC_LIST).encode())
        found = json.loads(listing.join_openai_lists(claude, json.dumps(OPENAI_LIST).encode(), claude))
        assert [model["id"] for model in found["data"]] == ["claude-opus-5", "gpt-4o", "o3", "whisper-1"]

    @pytest.mark.parametrize("body", [b"", b"[]", b'{"data":5}', b'{"data":[5]}'])
    def test_what_is_no_list(self, body: bytes) -> None:
        """Is said so."""
        good = json.dumps(ANTHROPIC_LIST).encode()
        for make in (
            lambda: listing.to_openai_list(body),
            lambda: listing.add_to_anthropic_list(body, good, is_routed=routed),
            lambda: listing.add_to_anthropic_list(good, body, is_routed=routed),
            lambda: listing.join_openai_lists(good, body),
        ):
            with pytest.raises(Untranslatable, match="list of models"):
                make()


def count(**members: Any) -> int:
    """The estimate for a request."""
    body = json.dumps({"model": "gpt-4o"} | members, ensure_ascii=False).encode()
    found = json.loads(estimate.count_tokens(body))
    assert list(found) == ["input_tokens"]
    tokens: int = found["input_tokens"]
    return tokens


def user(*blocks: Any) -> list[JSON]:
    return [{"role": "user", "content": list(blocks)}]


PROSE = "The quick brown fox jumps over the lazy dog. " * 100
"""1001 tokens for o200k_base."""


class TestEstimate:
    def test_prose(self) -> None:
        """Somewhat more than there are, never fewer, a string like a block."""
        tokens = count(messages=[{"role": "user", "content": PROSE}])
        assert 1001 <= tokens <= 1400
        assert count(messages=user({"type": "text", "text": PROSE})) == tokens
        assert count(system=PROSE) == count(system=[{"type": "text", "text": PROSE}]) == tokens - 4

    @pytest.mark.parametrize(
        ("said", "least", "most"), [("中" * 300, 300, 320), ("привет " * 100, 200, 500), ("😀" * 90, 120, 190)]
    )
    def test_other_scripts(self, said: str, least: int, most: int) -> None:
        """By their bytes; escaped or not."""
        body = {"messages": [{"role": "user", "content": said}]}
        plain = json.loads(estimate.count_tokens(json.dumps(body, ensure_ascii=False).encode()))["input_tokens"]
        escaped = json.loads(estimate.count_tokens(json.dumps(body).encode()))["input_tokens"]
        assert least <= plain <= most
        assert plain * 0.9 <= escaped <= plain * 2

    def test_images_and_documents(self) -> None:
        """An image is not its base64."""
        source = {"type": "base64", "media_type": "image/png", "data": "A" * 1_000_000}
        one = count(messages=user({"type": "image", "source": source}))
        assert 1600 <= one < 1700
        inside = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image", "source": source}]}
        assert 1600 <= count(messages=user(inside)) < 1700
        pdf = {"type": "document", "source": {**source, "media_type": "application/pdf"}}
        assert 10_000 < count(messages=user(pdf)) < 30_000
        plain = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": PROSE}}
        content = {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": PROSE}]}}
        assert count(messages=user(plain)) == count(messages=user(content)) == count(messages=user(PROSE_BLOCK))

    def test_tools_and_calls(self) -> None:
        """Schemas, descriptions, input and results all count; what was thought does not."""
        bare = count()
        tool = {"name": "f", "description": PROSE, "input_schema": {"type": "object"}}
        assert count(tools=[tool]) > bare + 1000
        call = {"type": "tool_use", "id": "a", "name": "f", "input": {"said": PROSE}}
        assert count(messages=user(call)) > bare + 1000
        result = {"type": "tool_result", "tool_use_id": "a", "content": PROSE}
        assert count(messages=user(result)) > bare + 1000
        thinking = {"type": "thinking", "thinking": PROSE, "signature": PROSE}
        assert count(messages=user(thinking)) < bare + 10

    @pytest.mark.parametrize(
        "members",
        [
            {"messages": 5},
            {"messages": [5]},
            {"messages": user({"type": "hologram", "beam": PROSE})},
            {"messages": user({"type": "document"})},
            {"messages": user({"type": "text", "text": 5})},
            {"messages": user(5)},
            {"tools": 5},
            {"tools": [5]},
            {"system": 5},
        ],
    )
    def test_any_shape_is_counted(self, members: JSON) -> None:
        """A count is no place to be strict: an editor asks for it all the time."""
        assert count(**members) >= 3

    def test_more_is_more(self) -> None:
        """What is not known counts by its length."""
        assert count(messages=user({"type": "hologram", "beam": PROSE})) > 1000

    def test_what_is_no_request(self) -> None:
        """Is refused."""
        with pytest.raises(Untranslatable):
            estimate.count_tokens(b"[]")


PROSE_BLOCK = {"type": "text", "text": PROSE}


class TestModels:
    @pytest.mark.parametrize(
        ("name", "reasons", "limit"),
        [
            ("gpt-4o", False, 16_384),
            ("gpt-4o-mini", False, 16_384),
            ("GPT-4o", False, 16_384),
            ("ft:gpt-4o-2024-08-06:acme::abc", False, 16_384),
            ("openrouter/openai/gpt-5", True, 128_000),
            ("gpt-6-astra", True, None),
            ("gpt-5-chat-latest", False, 16_384),
            ("gpt-oss-120b", False, None),
            ("o1", True, 100_000),
            ("o4-mini-2025-04-16", True, 100_000),
            ("olmo-2", False, None),
            ("mistral-large", False, None),
            ("", False, None),
        ],
    )
    def test_what_an_openai_model_takes(self, name: str, reasons: bool, limit: int | None) -> None:
        """Reasoning and sampling exclude each other; what is not known takes what all did before reasoning."""
        model = models.openai_model(name)
        assert (bool(model.efforts), model.sampling, model.stop) == (reasons, not reasons, not reasons)
        assert model.max_output == limit

    def test_the_nearest_effort(self) -> None:
        """The lower of two."""
        model = models.OpenAIModel(efforts=("low", "high"))
        assert [model.effort(each) for each in models.EFFORTS] == ["low", "low", "low", "low", "high", "high", "high"]
        assert model.effort(None) is None
        assert models.OpenAIModel().effort("high") is None


class TestTools:
    @given(
        st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.lists(st.text(max_size=3)), max_size=3), st.data()
    )
    def test_where_an_object_ends(self, value: JSON, data: st.DataObject) -> None:
        """Known at its last brace, and not before, however it is cut."""
        said = json.dumps(value, ensure_ascii=data.draw(st.booleans()))
        end = tools.ObjectEnd()
        cuts = sorted(data.draw(st.lists(st.integers(0, len(said) - 1), max_size=5)))
        for start, stop in zip([0, *cuts], [*cuts, len(said) - 1], strict=True):
            end.follow(said[start:stop])
            assert not end.reached
        end.follow(said[-1])
        assert end.reached

    @given(st.text())
    def test_arguments_are_never_lost(self, said: str) -> None:
        """Whatever a model wrote is in the input, and comes back from it; or it is the same JSON object."""
        found = tools.input_of(said)
        assert isinstance(json.loads(found), dict)
        if said.strip(" \t\n\r") not in ("", "null"):
            back = json.loads(tools.arguments_of(found))
            assert back in (said, said.strip(" \t\n\r")) or json.loads(json.loads(said)) == json.loads(back)

    @pytest.mark.parametrize("name", ["f", "x" * 64, "x" * 65, "mcp__" + "é" * 100])
    def test_names(self, name: str) -> None:
        """Short ones stay; long ones differ where their names do."""
        assert len(tools.openai_name(name)) <= 64
        assert (tools.openai_name(name) == name) is (len(name) <= 64)
        assert tools.openai_name("x" * 100 + name) != tools.openai_name("x" * 100 + name + "y")
