"""What requests and answers say, whatever their bytes."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import corpus
from twisted_proxy.record import digest, pricing
from twisted_proxy.record.chat import ChatFold
from twisted_proxy.record.digest import (
    MAX_TEXT,
    AnswerDigest,
    RequestDigest,
    read_answer,
    read_request,
    text_of_answer,
    text_of_exchange,
    text_of_messages,
)
from twisted_proxy.record.usage import Charge
from twisted_proxy.wire.claude_code import Origin

OPUS = "claude-opus-5-5"
STREAM = "text/event-stream; charset=utf-8"
JSON = "application/json"


def dump(value: object) -> bytes:
    return json.dumps(value).encode()


def event(name: str, **data: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), dump({"type": name, **data}))


START = event(
    "message_start",
    message={
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": OPUS,
        "content": [],
        "stop_reason": None,
        "usage": {
            "input_tokens": 10,
            "cache_read_input_tokens": 200,
            "cache_creation_input_tokens": 30,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
            "output_tokens": 1,
            "service_tier": "standard",
        },
    },
)
TEXT = (
    event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    + event("ping")
    + event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello"})
    + event("content_block_delta", index=0, delta={"type": "text_delta", "text": " there"})
)
END = (
    event("content_block_stop", index=0)
    + event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7})
    + event("message_stop")
)
CHARGE = Charge(
    model=OPUS,
    input_tokens=10,
    output_tokens=7,
    cache_read_tokens=200,
    cache_write_5m_tokens=10,
    cache_write_1h_tokens=20,
)


def stream(data: bytes, *, path: str = "/v1/messages", status: int = 200) -> AnswerDigest:
    return read_answer(data, STREAM, status, path)


def answer(value: object, *, status: int = 200, path: str = "/v1/messages") -> AnswerDigest:
    return read_answer(dump(value), JSON, status, path)


class TestRequest:
    """A request's body."""

    def test_messages_api(self) -> None:
        """What of it has a place; the messages as the bytes that they are."""
        messages = b'[ {"role":"user","content":"1.0, 1e400"} , {"role": "assistant", "content": []}]'
        body = b"".join(
            [
                b' {"model":"claude-opus-5-5","stream":true,"thinking":{"type":"adaptive"},"messages":',
                messages,
                b',"metadata":{"user_id":"user_a_account_b_session_c-1"},"n":1e999,"big":123456789012345678901234567890}',
            ]
        )
        assert read_request(body, JSON) == RequestDigest(
            model=OPUS,
            stream=True,
            has_thinking=True,
            origin=Origin(session="c-1"),
            messages=(b'{"role":"user","content":"1.0, 1e400"}', b'{"role": "assistant", "content": []}'),
        )

    def test_a_thread(self) -> None:
        """Its kind, and behind which answer it goes on."""
        body = dump({"thread": {"type": "continue", "previous_message_id": "msg_01"}, "messages": [1]})
        assert read_request(body) == RequestDigest(
            stream=False, thread="continue", previous_message_id="msg_01", messages=(b"1",)
        )
        assert read_request(dump({"thread": {"type": "create"}})).thread == "create"
        assert read_request(dump({"thread": "continue"})).thread is None

    @pytest.mark.parametrize(
        ("thinking", "expected"),
        [({"type": "enabled"}, True), ({}, True), ({"type": "disabled"}, False), (None, False), ("yes", False)],
    )
    def test_thinking(self, thinking: object, expected: bool) -> None:
        """Unless it is disabled, or nothing that could be meant."""
        assert read_request(dump({"thinking": thinking})).has_thinking is expected

    def test_chat_completions(self) -> None:
        """The same members."""
        body = dump({"model": "gpt-5", "stream": True, "messages": [{"role": "user", "content": "x"}]})
        assert read_request(body, JSON) == RequestDigest(
            model="gpt-5", stream=True, messages=(b'{"role": "user", "content": "x"}',)
        )

    def test_wrong_types(self) -> None:
        """A member that is none does not hide the others."""
        body = dump({"model": 5, "stream": "yes", "messages": {}, "thread": [], "metadata": 1, "system": {"a": 1}})
        assert read_request(body) == RequestDigest(model="5", stream=False)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"[]",
            b'"model"',
            b"{",
            b'{"model": "m"',
            b'{"model": NaN}',
            b'{"model": "m", "x": "\\ud800"}',
            b"\xef\xbb\xbf{}",
            b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
            b"--boundary\r\n",
            b"\x1f\x8b",
        ],
    )
    def test_no_request(self, body: bytes) -> None:
        """What the API does not read says nothing."""
        assert read_request(body, JSON) == RequestDigest()

    def test_content_types(self) -> None:
        """A body is read for what it is: some clients call JSON a form. A form in parts is none."""
        assert read_request(b'{"model":"m"}', "application/x-www-form-urlencoded").model == "m"
        assert read_request(b'{"model":"m"}', "multipart/form-data; boundary=x") == RequestDigest()

    def test_names_are_untrusted(self) -> None:
        """Printable ASCII of bounded length."""
        assert read_request(dump({"model": "caf\u00e9\x1b" + "m" * 9999})).model == "caf" + "m" * 253
        assert read_request(dump({"model": "\u00e9"})).model is None


class TestMessage:
    """An answer in JSON."""

    def test_a_message(self) -> None:
        """What of it has a place; it is a body itself, and no message that a stream tells."""
        told = answer(
            {
                "id": "msg_01",
                "type": "message",
                "model": OPUS,
                "stop_reason": "tool_use",
                "content": [],
                "usage": {"input_tokens": 10, "output_tokens": 7, "unheard_of": {"n": [1]}},
            }
        )
        assert told == AnswerDigest(
            message_id="msg_01",
            model=OPUS,
            stop_reason="tool_use",
            usage={"input_tokens": 10, "output_tokens": 7, "unheard_of": {"n": [1]}},
            charges=(Charge(model=OPUS, input_tokens=10, output_tokens=7),),
        )
        assert (told.input_tokens, told.output_tokens) == (10, 7)
        assert (told.cache_read_tokens, told.cache_write_5m_tokens, told.cache_write_1h_tokens) == (0, 0, 0)

    def test_a_chat_completion(self) -> None:
        """In OpenAI's words."""
        told = answer(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "model": "gpt-5-2025-08-07",
                "service_tier": "flex",
                "choices": [{"index": 0, "finish_reason": "length", "message": {"content": "x"}}],
                "usage": {
                    "prompt_tokens": 9,
                    "completion_tokens": 3,
                    "prompt_tokens_details": {"cached_tokens": 4},
                },
            },
            path="/v1/chat/completions",
        )
        assert (told.message_id, told.model, told.stop_reason) == ("chatcmpl-1", "gpt-5-2025-08-07", "length")
        assert told.charges == (
            Charge(
                model="gpt-5-2025-08-07",
                input_tokens=5,
                output_tokens=3,
                cache_read_tokens=4,
                modes=frozenset({"flex"}),
            ),
        )

    def test_iterations(self) -> None:
        """The columns are sums over them."""
        usage = {"input_tokens": 5, "iterations": [{"input_tokens": 5}, {"input_tokens": 40, "output_tokens": 2}]}
        told = answer({"model": OPUS, "usage": usage})
        assert (told.input_tokens, told.output_tokens) == (45, 2)
        assert told.usage == usage

    @pytest.mark.parametrize(
        "value",
        [
            {"input_tokens": 2095},
            {"data": [{"id": "claude-opus-5-5", "type": "model"}], "has_more": False},
            {"id": "msgbatch_01", "type": "message_batch", "processing_status": "ended", "request_counts": {}},
            {},
        ],
    )
    def test_other_answers(self, value: dict[str, Any]) -> None:
        """Counted tokens, models, batches: they cost nothing, and nothing is missing."""
        told = answer(value)
        assert (told.charges, told.usage, told.complete, told.error_type) == ((), None, True, None)
        assert told.input_tokens is None

    def test_numbers_of_any_size(self) -> None:
        """Usage is kept as columns take it: no infinity, no NUL, no surrogate, no integer of more than 64 bits."""
        data = (
            b'{"usage":{"a":1e400,"b":123456789012345678901234567890,"c":"\\u0000\\ud800","d":-1.5,"e":NaN,'
            b'"f":[true,null],"\\ud800":9223372036854775807,"g":%b},"id":"\\ud83dmsg_1"}' % (b"9" * 2000)
        )
        told = read_answer(data, JSON, 200, "/v1/messages")
        assert told.usage == {
            "a": None,
            "b": "123456789012345678901234567890",
            "c": "\ufffd\ufffd",
            "d": -1.5,
            "e": None,
            "f": [True, None],
            "\ufffd": 9223372036854775807,
            "g": None,
        }
        assert told.message_id == "msg_1"
        assert msgspec.json.decode(msgspec.json.encode(told.usage)) == told.usage

    def test_a_usage_beyond_measure(self) -> None:
        """Is not kept; what it counts is."""
        told = answer({"model": OPUS, "usage": {"input_tokens": 5, "x": "y" * 100_000}})
        assert told.usage is None
        assert told.input_tokens == 5

    def test_cut(self) -> None:
        """JSON that ends early says so, and nothing else."""
        data = dump({"id": "msg_01", "usage": {"input_tokens": 5}})
        assert read_answer(data[:-1], JSON, 200, "/v1/messages") == AnswerDigest(complete=False)

    @pytest.mark.parametrize("data", [b"", b"id,n\n1,2\n", b"\x89PNG\r\n"])
    def test_other_bodies(self, data: bytes) -> None:
        """Files and such: nothing is missing that could be seen."""
        assert read_answer(data, "application/octet-stream", 200, "/v1/files/file_1/content") == AnswerDigest()
        assert read_answer(data, None, None, "/") == AnswerDigest()


class TestErrors:
    """Answers that say what went wrong."""

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ({"type": "error", "error": {"type": "overloaded_error", "message": "Busy"}}, ("overloaded_error", "Busy")),
            ({"error": {"message": "No", "type": "api_error", "code": None}}, ("api_error", "No")),
            ({"error": {"message": "No", "type": None, "code": "bad_model"}}, ("bad_model", "No")),
            ({"error": {"message": "No", "code": 429}}, ("429", "No")),
            ({"error": "Not here"}, ("api_error", "Not here")),
            ({"error": {}}, ("api_error", None)),
            ({"error": {"message": 5}}, ("api_error", None)),
            ({"error": {"message": "\x00\ud800" + "x" * 9999}}, ("api_error", "\ufffd\ufffd" + "x" * 1998)),
        ],
    )
    def test_json(self, value: object, expected: tuple[str, str | None]) -> None:
        """In the envelopes of both APIs, and of others."""
        told = answer(value, status=529)
        assert (told.error_type, told.error_message) == expected
        assert told.complete

    @pytest.mark.parametrize(
        ("status", "kind"), [(400, "invalid_request_error"), (404, "not_found_error"), (502, "api_error")]
    )
    def test_text(self, status: int, kind: str) -> None:
        """What somebody in between says."""
        told = read_answer(b"<html>\x00Bad</html>" + b"x" * 9999, "text/html", status, "/v1/messages")
        assert told.error_type == kind
        assert told.error_message is not None
        assert told.error_message.startswith("<html>\ufffdBad</html>")
        assert len(told.error_message) == digest.MAX_ERROR_MESSAGE
        assert read_answer(b"", None, status, "/v1/messages").error_type == kind

    def test_a_status_without_an_error(self) -> None:
        """Below 400 nothing went wrong; above, something did."""
        assert answer({"id": "x"}, status=399).error_type is None
        assert answer({"id": "x"}, status=400).error_type == "invalid_request_error"

    def test_in_a_stream(self) -> None:
        """The error, and the message as far as it came."""
        failed = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
        told = stream(START + TEXT + failed)
        assert (told.error_type, told.error_message) == ("overloaded_error", "Overloaded")
        assert not told.complete
        assert told.message is not None
        assert json.loads(told.message)["content"] == [{"type": "text", "text": "Hello there"}]
        assert told.input_tokens == 10
        at_once = stream(failed)
        assert (at_once.error_type, at_once.message, at_once.complete) == ("overloaded_error", None, False)

    def test_in_openais_stream(self) -> None:
        """The same."""
        told = stream(b'data: {"error":{"message":"Gone","type":"server_error"}}\n\n', path="/v1/chat/completions")
        assert (told.error_type, told.error_message, told.complete) == ("server_error", "Gone", False)


class TestStream:
    """An event stream of the Messages API."""

    def test_whole(self) -> None:
        """What the same answer without `stream` says, and that message."""
        told = stream(START + TEXT + END)
        assert told.message is not None
        assert json.loads(told.message)["content"] == [{"type": "text", "text": "Hello there"}]
        assert (told.message_id, told.model, told.stop_reason) == ("msg_01", OPUS, "end_turn")
        assert told.charges == (CHARGE,)
        assert told.usage is not None
        assert told.usage["output_tokens"] == 7
        assert told.usage["service_tier"] == "standard"
        assert told.complete

    @pytest.mark.parametrize("length", [len(START), len(START + TEXT), len(START + TEXT + END) - 1])
    def test_cut(self, length: int) -> None:
        """As far as it came, and that this is not all."""
        told = stream((START + TEXT + END)[:length])
        assert not told.complete
        assert told.message is not None
        assert (told.message_id, told.model) == ("msg_01", OPUS)
        assert told.input_tokens == 10

    @pytest.mark.parametrize("data", [b"", START[:-1], b": comment\n\n", event("ping")])
    def test_before_the_message(self, data: bytes) -> None:
        """Nothing, and that it is missing."""
        assert stream(data) == AnswerDigest(complete=False)

    def test_another_kind_of_stream(self) -> None:
        """Of events that nobody knows here, nobody knows the end."""
        told = stream(event("agent.message", text="x"), path="/v1/sessions/sesn_1/events/stream")
        assert told == AnswerDigest()

    def test_a_zero_that_comes_late(self) -> None:
        """Some gateways put zeroes in the last event: the counts of the first are right."""
        zero = {"output_tokens": 7, "input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
        told = stream(START + TEXT + event("message_delta", delta={}, usage=zero) + event("message_stop"))
        assert told.charges == (CHARGE,)
        assert told.usage is not None
        assert told.usage["input_tokens"] == 0
        more = {"output_tokens": 7, "input_tokens": 11}
        told = stream(START + TEXT + event("message_delta", delta={}, usage=more) + event("message_stop"))
        assert told.input_tokens == 11

    def test_tool_input_that_is_no_json(self) -> None:
        """Is no reason to call the rest incomplete."""
        block = event("content_block_start", index=0, content_block={"type": "tool_use", "name": "Bash", "input": {}})
        delta = event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": '{"a": no'})
        told = stream(START + block + delta + END)
        assert told.complete
        assert told.stop_reason == "end_turn"
        assert told.message is not None

    @pytest.mark.parametrize("entry", corpus.CORPUS, ids=lambda entry: entry.name)
    def test_the_corpus(self, entry: corpus.Entry) -> None:
        """Messages of all kinds, streamed: each is found, and complete."""
        told = stream(entry.stream)
        assert told.complete
        assert told.message is not None


def chunk(**members: Any) -> bytes:
    whole = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "gpt-5", **members}
    return b"data: %b\n\n" % dump(whole)


def choice(**delta: Any) -> bytes:
    return chunk(choices=[{"index": 0, "delta": delta}])


class TestChatStream:
    """A stream of chat completion chunks."""

    BEGINNING = choice(role="assistant", content="") + choice(content="Hel") + choice(content="lo")
    CALLS = (
        choice(
            tool_calls=[{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]
        )
        + choice(tool_calls=[{"index": 0, "function": {"arguments": '{"a":'}}])
        + choice(tool_calls=[{"index": 1, "id": "call_2", "function": {"name": "g", "arguments": "{}"}}])
        + choice(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}])
    )
    FINISH = chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "tool_calls"}])
    USAGE = chunk(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 3}, service_tier="priority")
    DONE = b"data: [DONE]\n\n"

    def test_whole(self) -> None:
        """The completion that it tells."""
        told = stream(self.BEGINNING + self.CALLS + self.FINISH + self.USAGE + self.DONE, path="/v1/chat/completions")
        assert (told.message_id, told.model, told.stop_reason) == ("chatcmpl-1", "gpt-5", "tool_calls")
        assert told.complete
        assert told.charges == (Charge(model="gpt-5", input_tokens=9, output_tokens=3, modes=frozenset({"priority"})),)
        assert told.message is not None
        completion = json.loads(told.message)
        assert completion["object"] == "chat.completion"
        assert completion["choices"] == [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "message": {
                    "role": "assistant",
                    "content": "Hello",
                    "tool_calls": [
                        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                        {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                    ],
                },
            }
        ]

    def test_the_end(self) -> None:
        """Is `[DONE]`, or that all choices are finished; without usage, nothing is known of tokens."""
        path = "/v1/chat/completions"
        assert not stream(self.BEGINNING, path=path).complete
        assert stream(self.BEGINNING + self.DONE, path=path).complete
        assert stream(self.BEGINNING + self.FINISH, path=path).complete
        assert stream(self.BEGINNING + self.FINISH, path=path).charges == ()

    def test_split_pairs(self) -> None:
        """Two halves of a surrogate pair in two chunks are one character."""
        told = stream(
            chunk(choices=[{"delta": {"content": "\ud83d"}}]) + chunk(choices=[{"delta": {"content": "\ude00"}}])
        )
        assert told.message is not None
        assert json.loads(told.message)["choices"][0]["message"]["content"] == "\U0001f600"

    @given(st.lists(st.binary(max_size=30) | st.sampled_from([BEGINNING, CALLS, FINISH, USAGE]), max_size=6))
    def test_any_data(self, pieces: list[bytes]) -> None:
        """Nothing raises."""
        fold = ChatFold()
        for piece in pieces:
            fold.event(piece.removeprefix(b"data: ").strip())
        assert fold.completion()["object"] == "chat.completion"


def message(role: str, *content: Any) -> bytes:
    return dump({"role": role, "content": list(content)})


class TestText:
    """What a search should find."""

    def test_messages(self) -> None:
        """Texts, thinking, tools' names and inputs, and what they gave; in order."""
        messages = [
            dump({"role": "user", "content": "Fix the test"}),
            message(
                "assistant",
                {"type": "thinking", "thinking": "Which one?", "signature": "c2ln"},
                {"type": "redacted_thinking", "data": "ZGF0YQ=="},
                {"type": "text", "text": "Let me look.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
                {
                    "type": "tool_use",
                    "id": "toolu_1",
                    "name": "Grep",
                    "input": {"pattern": "def test", "type": "py", "data": "x", "limit": 5, "more": [{"id": "y"}]},
                },
            ),
            message(
                "user",
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "test_a.py:1", "is_error": False},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": [{"type": "text", "text": "found"}]},
                {"type": "web_search_tool_result", "content": [{"title": "A page", "encrypted_content": "ZW5j"}]},
            ),
        ]
        assert text_of_messages(messages).split("\n") == [
            "Fix the test",
            "Which one?",
            "Let me look.",
            "Grep",
            "def test",
            "py",
            "x",
            "5",
            "y",
            "test_a.py:1",
            "found",
            "A page",
        ]

    def test_chat_completions(self) -> None:
        """In OpenAI's shapes; arguments are JSON in a string."""
        messages = [
            message("user", {"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "https://a"}}),
            dump(
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"id": "é"}'}},
                        {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": '{"cut'}},
                    ],
                }
            ),
            dump({"role": "tool", "tool_call_id": "call_1", "content": "done"}),
        ]
        assert text_of_messages(messages).split("\n") == ["Look", "https://a", "f", "é", "g", '{"cut', "done"]

    @pytest.mark.parametrize(
        "block",
        [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "{}"}},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,{}"}},
            {"type": "input_audio", "input_audio": {"data": "{}", "format": "wav"}},
            {"type": "file", "file": {"file_data": "{}"}},
            {"type": "tool_use", "name": "Write", "input": {"content": "{}"}},
            {"type": "text", "text": "<img src='data:image/png;base64,{}'>"},
            {"type": "text", "text": "see {} there"},
        ],
    )
    def test_no_encoded_data(self, block: dict[str, Any]) -> None:
        """Wherever it stands, and whichever of the alphabets it is in."""
        data = bytes(range(256)) * 8
        for encoded in (base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()):
            text = text_of_messages([dump({"role": "user", "content": [block]}).replace(b"{}", encoded.encode())])
            assert encoded[:100] not in text
            assert len(text) < 100

    def test_short_data_urls(self) -> None:
        """Also those that are short."""
        short = {"type": "text", "text": "a data:image/gif;base64,R0lG b"}
        assert text_of_messages([message("user", short)]) == "a   b"

    def test_no_nul_and_no_surrogate(self) -> None:
        """What columns refuse is replaced."""
        assert text_of_messages([b'{"content":"a\\u0000b\\ud800c"}', b'{"content":"\xff\\ud83d\\ude00"}']) == (
            "a\ufffdb\ufffdc\n\ufffd\U0001f600"
        )

    def test_no_more_than_that(self) -> None:
        """Of more than 256 KB, the last; whole characters."""
        messages = [dump({"content": f"number {number} " + "\u00fc" * 1000}) for number in range(1000)]
        text = text_of_messages(messages)
        assert MAX_TEXT - 4000 < len(text.encode()) <= MAX_TEXT
        assert text.endswith("\u00fc")
        assert "number 999 " in text
        assert "number 1 " not in text
        assert len(text_of_messages([dump({"content": "\U0001f600" * MAX_TEXT})]).encode()) == MAX_TEXT
        assert text_of_messages(messages, limit=5) == "numbe"
        assert text_of_messages(messages, limit=0) == ""

    def test_depth(self) -> None:
        """Is the client's to choose."""
        deep = b'{"content":' + b"[" * 900 + b'"x"' + b"]" * 900 + b"}"
        assert text_of_messages([deep]) == "x"
        assert text_of_messages([b'{"content":' + b"[" * 100_000]) == ""

    def test_answers(self) -> None:
        """Of messages, completions and errors; of a stream, its message."""
        whole = {"id": "msg_1", "content": [{"type": "text", "text": "Hi"}], "usage": {"n": 5}}
        assert text_of_answer(dump(whole)) == "Hi"
        assert text_of_answer(dump({"choices": [{"message": {"role": "assistant", "content": "Hi"}}]})) == "Hi"
        assert text_of_answer(dump({"type": "error", "error": {"type": "x", "message": "Busy"}})) == "Busy"
        assert text_of_answer(stream(START + TEXT).message or b"") == "Hello there"
        for nothing in (b"", b"[]", b"<html>", b'{"data":[]}'):
            assert text_of_answer(nothing) == ""

    def test_both(self) -> None:
        """The answer has its place, whatever was asked."""
        asked = [dump({"content": "q" * 100}), dump({"content": "w " * MAX_TEXT})]
        text = text_of_exchange(asked, dump({"content": "a " * 100_000}))
        assert len(text.encode()) <= MAX_TEXT
        assert text.count("a") == 100_000
        assert text.startswith("w w")
        assert text_of_exchange(asked[:1], None) == "q" * 100
        assert text_of_exchange([], None) == ""


class TestFields:
    """What becomes a row."""

    def test_of_a_request(self) -> None:
        """Headers before body."""
        request = read_request(dump({"model": OPUS, "metadata": {"user_id": "_session_b"}}))
        fields = digest.request_fields(Origin(prompt="p", agent="a", agent_type="Plan"), request)
        assert fields == {
            "model": OPUS,
            "stream": False,
            "session": "b",
            "prompt": "p",
            "agent": "a",
            "parent_agent": None,
            "request_class": None,
            "agent_type": "Plan",
        }

    def test_of_an_answer(self) -> None:
        """With what it cost; of a stream that was cut, that this is a lower bound."""
        prices = pricing.shipped()
        at = 1_793_000_000_000_000
        whole = digest.answer_fields(stream(START + TEXT + END), prices, at=at, model=OPUS)
        of_the_prompt = 40_000 + 40_000 + 50_000 + 160_000
        assert (whole["cost_nanousd"], whole["cost_is_partial"]) == (of_the_prompt + 140_000, False)
        assert (whole["message_id"], whole["stop_reason"], whole["cache_write_1h_tokens"]) == ("msg_01", "end_turn", 20)
        cut = digest.answer_fields(stream(START + TEXT), prices, at=at, model=OPUS)
        assert (cut["cost_nanousd"], cut["cost_is_partial"]) == (of_the_prompt + 20_000, True)
        none = digest.answer_fields(answer({"input_tokens": 5}), prices, at=at, model=OPUS)
        assert (none["cost_nanousd"], none["cost_is_partial"], none["input_tokens"]) == (None, False, None)


REQUEST = dump(
    {
        "model": OPUS,
        "thread": {"type": "continue", "previous_message_id": "msg_1"},
        "metadata": {"user_id": '{"session_id":"s"}'},
        "messages": [{"role": "user", "content": [{"type": "text", "text": "\u00e9\U0001f600"}]}],
    }
)
MUTATIONS: tuple[Callable[[bytes, int, bytes], bytes], ...] = (
    lambda data, at, new: data[:at] + new + data[at:],
    lambda data, at, new: data[:at] + new + data[at + len(new) :],
    lambda data, at, new: data[:at],
    lambda data, at, new: data[:at] + data[at + len(new) + 1 :],
    lambda data, at, new: data[:at] + data[: len(data) - at],
)
ODD = st.sampled_from(
    [b"\\ud800", b"\0", b"1e400", b"NaN", b"null", b'"', b"[[[[", b"}", b"\r", b"\n\n", b"\xff", b"-1", b"9" * 5000]
)


def mutated(data: bytes, changes: list[tuple[int, float, bytes]]) -> bytes:
    for kind, where, new in changes:
        data = MUTATIONS[kind](data, int(where * len(data)), new)
    return data


CHANGES = st.lists(
    st.tuples(st.integers(0, len(MUTATIONS) - 1), st.floats(0, 1), ODD | st.binary(max_size=5)), min_size=1, max_size=4
)


def storable(value: object) -> bool:
    """Whether every JSON column takes it."""
    if isinstance(value, str):
        return "\0" not in value and value.encode("utf-8", "replace") == value.encode("utf-8", "surrogatepass")
    if isinstance(value, dict):
        return all(storable(key) and storable(each) for key, each in value.items())
    if isinstance(value, list):
        return all(storable(each) for each in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or -(2**63) <= value < 2**63


class TestAnyBytes:
    """Nothing here raises, and what it gives can be stored."""

    @given(CHANGES)
    def test_requests(self, changes: list[tuple[int, float, bytes]]) -> None:
        """Mutated requests."""
        told = read_request(mutated(REQUEST, changes))
        for word in (told.model, told.thread, told.previous_message_id, told.origin.session):
            assert word is None or (word.isascii() and word.isprintable())
        assert storable(text_of_messages(told.messages))

    @given(
        st.sampled_from(
            [
                (START + TEXT + END, STREAM),
                (TestChatStream.BEGINNING + TestChatStream.CALLS + TestChatStream.USAGE, STREAM),
                (corpus.BY_NAME["usage"].expected, JSON),
                (dump({"error": {"type": "x", "message": "y"}, "choices": [{"finish_reason": "z"}]}), JSON),
            ]
        ),
        CHANGES,
        st.sampled_from([200, 529, None]),
    )
    def test_answers(
        self, whole: tuple[bytes, str], changes: list[tuple[int, float, bytes]], status: int | None
    ) -> None:
        """Mutated answers."""
        data = mutated(whole[0], changes)
        told = read_answer(data, whole[1], status, "/v1/messages")
        assert storable(told.usage)
        assert storable([told.message_id, told.model, told.stop_reason, told.error_type, told.error_message])
        assert all(count is None or count >= 0 for count in (told.input_tokens, told.output_tokens))
        assert storable(text_of_answer(told.message or data))
        json.loads(told.message or b"{}")

    @given(st.binary(), st.binary(max_size=20).map(lambda each: each.decode("latin-1")), st.integers(0, 999))
    def test_bytes(self, data: bytes, content_type: str, status: int) -> None:
        """Any bytes of any type."""
        for kind in (content_type, STREAM, JSON, None):
            read_answer(data, kind, status, content_type)
            read_request(data, kind)
        assert storable(text_of_exchange([data, b'{"content":' + data], data))
