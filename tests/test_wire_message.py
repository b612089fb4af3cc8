"""Anthropic stream events → the message, measured by the SDK's own accumulators and by messages written by hand."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import httpx2
import jiter
import pytest
from anthropic._streaming import SSEDecoder
from anthropic.lib.streaming import _beta_messages, _messages
from anthropic.types import ContentBlock
from anthropic.types.beta import BetaContentBlock, BetaRawContentBlockDelta, BetaRawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st

from tests import corpus
from tests.corpus import BY_NAME, CORPUS, FAILURES, Entry, Failure
from tests.pieces import split
from twisted_proxy.wire import message, partial_json
from twisted_proxy.wire.message import BadToolInput, Complete, ErrorEvent, Malformed, MessageFold, TooLarge, Truncated

CUTS = st.lists(st.integers(0, 10_000), max_size=12)


def fold(*chunks: bytes) -> message.Outcome:
    """What a stream comes to."""
    machine = MessageFold()
    for chunk in chunks:
        machine.feed(chunk)
    return machine.result()


def folded(*events: bytes) -> Any:
    """The message that these events come to, parsed."""
    outcome = fold(*events)
    assert isinstance(outcome, Complete)
    return json.loads(outcome.message)


def accumulate(stream: bytes, *, beta: bool) -> Any:
    """What the SDK makes of a stream: its own decoder of events, its own rule which of them count, its accumulator."""
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for sse in SSEDecoder().iter_bytes(iter([stream])):
        if sse.event in (None, "ping") or not sse.data:
            continue
        try:
            event: Any = sse.json()
        except ValueError:
            # The SDK dies of any named event that is no JSON; here one with an unknown name is passed over.
            assert sse.event == "something_newer"
            continue
        if beta:
            snapshot = _beta_messages.accumulate_event(
                event=event, current_snapshot=snapshot, json_bufs=buffers, request_headers=httpx2.Headers()
            )
        else:
            snapshot = _messages.accumulate_event(event=event, current_snapshot=snapshot, json_bufs=buffers)
    # Not mode="json", in which pydantic writes infinity (1e400) as null. It warns of what it does not know.
    value = snapshot.to_dict(mode="python", exclude_unset=True, warnings=False)
    return json.loads(json.dumps(value, default=lambda moment: moment.isoformat().replace("+00:00", "Z")))


def without_unknown(value: Any, names: tuple[str, ...]) -> Any:
    """`value` without what comes late in the stream under names that the SDK does not know, and hence drops."""
    usage = {name: count for name, count in value["usage"].items() if f"usage.{name}" not in names}
    return {name: member for name, member in {**value, "usage": usage}.items() if name not in names}


def without_added_nulls(value: Any, ours: Any) -> Any:
    """The SDK's snapshot without the optional members that message_delta did not have and that it set to null."""
    return {
        name: member
        for name, member in value.items()
        if not (member is None and name in ("stop_details", "stop_sequence") and name not in ours)
    }


class TestCorpus:
    """Every kind of block and delta."""

    @pytest.mark.parametrize("entry", CORPUS, ids=lambda entry: entry.name)
    def test_as_the_answer_without_stream(self, entry: Entry) -> None:
        """The result is the message that was written down for it, in every byte."""
        outcome = fold(entry.stream)
        assert isinstance(outcome, Complete)
        assert outcome.message == entry.expected
        json.loads(outcome.message)

    @pytest.mark.parametrize("beta", [False, True], ids=["messages", "beta"])
    @pytest.mark.parametrize("entry", CORPUS, ids=lambda entry: entry.name)
    def test_as_the_sdk(self, entry: Entry, beta: bool) -> None:
        """The result equals, as JSON, what the SDK's accumulators make of the same bytes."""
        if entry.beta and not beta:
            pytest.skip("only the beta accumulator knows what is in it")
        ours = folded(entry.stream)
        theirs = accumulate(entry.stream, beta=beta)
        assert without_added_nulls(theirs, ours) == without_unknown(ours, entry.unknown_to_sdk)

    @pytest.mark.parametrize("entry", CORPUS, ids=lambda entry: entry.name)
    def test_byte_by_byte(self, entry: Entry) -> None:
        """In the smallest pieces, inside of characters and escapes, the message is the same."""
        assert fold(*(entry.stream[i : i + 1] for i in range(len(entry.stream)))) == fold(entry.stream)

    @given(st.sampled_from(CORPUS), CUTS)
    def test_any_split(self, entry: Entry, cuts: list[int]) -> None:
        """Any split of the bytes gives the same message."""
        assert fold(*split(entry.stream, cuts)) == fold(entry.stream)

    @pytest.mark.parametrize("entry", CORPUS, ids=lambda entry: entry.name)
    def test_cut_anywhere(self, entry: Entry) -> None:
        """A stream that is cut at any byte is truncated, says how far it came, and has told a part of the message."""
        machine = MessageFold()
        for at in range(len(entry.stream) - 1):
            machine.feed(entry.stream[at : at + 1])
            outcome = machine.result()
            assert isinstance(outcome, Truncated)
            assert outcome.detail.startswith("the stream ended without message_stop, ")
            assert not machine.finished
            if entry.stream[at : at + 2] == b"\n\n":
                partial = machine.partial()
                assert partial is None or isinstance(json.loads(partial)["content"], list)

    def test_covers_every_kind(self) -> None:
        """No block and no delta that the SDK knows is missing from the corpus."""
        stream = b"".join(entry.stream for entry in CORPUS).decode()
        kinds = [
            *_types_of(BetaContentBlock),
            *_types_of(ContentBlock),
            *_types_of(BetaRawMessageStreamEvent),
            *_types_of(BetaRawContentBlockDelta),
        ]
        assert len(kinds) > 35
        assert [kind for kind in kinds if f'"type":"{kind}"' not in stream] == []


def _types_of(union: Any) -> list[str]:
    """The values of ``type`` of a union of models."""
    members = union.__args__[0].__args__ if hasattr(union.__args__[0], "__args__") else union.__args__
    models = [getattr(member, "__origin__", member) for member in members]
    return [model.model_fields["type"].annotation.__args__[0] for model in models]


class TestFailures:
    """Each way to be no message has its own outcome."""

    @pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
    def test_outcome(self, failure: Failure) -> None:
        """The outcome is the one that was written down, whole and byte by byte."""
        for chunks in ([failure.stream], [failure.stream[i : i + 1] for i in range(len(failure.stream))]):
            outcome = fold(*chunks)
            assert type(outcome).__name__ == failure.outcome
            if isinstance(outcome, ErrorEvent):
                assert (outcome.status, outcome.error_type) == (failure.status, failure.error_type)
            else:
                assert failure.status == 502

    def test_truncated_in_words(self) -> None:
        """How far the stream had come is said, without a word of what the model said."""
        details = {failure.name: getattr(fold(failure.stream), "detail", "") for failure in FAILURES}
        assert details["nothing"] == "the stream is empty"
        assert details["pings-only"].startswith(
            "the stream ended without message_stop, before message_start (events: 0,"
        )
        assert ", in content block 0 (text) (events: 3," in details["cut-in-a-block"]
        assert ", after content block 0 (text) and in the middle of an event (" in details["cut-in-an-event"]
        assert ", after message_delta (" in details["cut-before-message-stop"]
        assert ", after message_delta and in the middle of an event (" in details["message-stop-unterminated"]
        assert details["tool-input-that-just-stops"] == (
            "the input of content block 0 (tool_use) is not JSON (stop_reason: tool_use)"
        )
        assert details["event-that-is-no-json"].startswith("event 4 of the stream (content_block_delta) is not JSON")
        assert not any("Half" in detail or "path" in detail for detail in details.values())

    def test_names_out_of_the_stream_are_tamed(self) -> None:
        """A block's type and an event's name reach an error only as printable ASCII of bounded length."""
        name = "\\u001b[31m\\r\\n" + "x" * 500
        block = corpus.block(0, f'{{"type":"{name}"}}')
        outcome = fold(corpus.start() + block)
        assert isinstance(outcome, Truncated)
        assert outcome.detail.isprintable()
        assert len(outcome.detail) < 250

    def test_error_event(self) -> None:
        """The whole error object is kept, and so is the message so far."""
        machine = MessageFold()
        machine.feed(corpus.start() + corpus.block(0, corpus.TEXT_BLOCK) + corpus.text(0, "Half"))
        assert not machine.finished
        error = '{"type":"overloaded_error","message":"Over\\u00e9","details":{"n":12345678901234567890123,"f":1.0}}'
        machine.feed(corpus.event("error", f'{{"type":"error","error":{error},"request_id":"req_1"}}'))
        assert machine.finished
        outcome = machine.result()
        assert outcome == ErrorEvent(
            status=529,
            error_type="overloaded_error",
            message="Overé",
            error=error.encode(),
            request_id="req_1",
        )
        assert outcome.body == f'{{"type":"error","error":{error},"request_id":"req_1"}}'.encode()
        assert json.loads(machine.partial() or b"")["content"] == [{"type": "text", "text": "Half"}]

    @pytest.mark.parametrize(
        ("data", "error_type", "text"),
        [
            ("upstream connect error", "api_error", "upstream connect error"),
            ('"gone"', "api_error", '"gone"'),
            ('{"error":"gone"}', "api_error", '{"error":"gone"}'),
            ('{"error":{"message":"gone"}}', "api_error", "gone"),
            ('{"error":{"type":"rate_limit_error"}}', "rate_limit_error", ""),
            ('{"error":{"type":"rate_limit_error","message":null}}', "api_error", ""),
        ],
    )
    def test_error_event_of_another_shape(self, data: str, error_type: str, text: str) -> None:
        """An event named ``error`` is an error whatever it holds, and its words are not lost."""
        outcome = fold(corpus.event("error", data))
        assert isinstance(outcome, ErrorEvent)
        assert outcome.error_type == error_type
        assert text in outcome.message
        assert json.loads(outcome.body)["type"] == "error"

    @pytest.mark.parametrize(
        "bad",
        [
            corpus.event("content_block_start", "{"),
            corpus.event("content_block_start", "[]"),
            corpus.event("content_block_start", '{"type":"content_block_start","index":1}'),
            corpus.event("content_block_start", '{"type":"content_block_start","index":"1","content_block":{}}'),
            corpus.event("content_block_delta", '{"type":"content_block_delta","index":0,"delta":7}'),
            corpus.event("content_block_delta", '{"type":"content_block_delta","delta":{"type":"text_delta"}}'),
            corpus.event("content_block_delta", '{"index":0,"delta":{"type":"text_delta","text":"\\ud83d"}'),
            corpus.delta(0, '{"type":"citations_delta","citation":{"a":"\\ud83d","b":NaN}}'),
            corpus.delta(0, '{"type":"citations_delta","citation":{"a":"\\ud83d","b":1e400}}'),
            corpus.event("message_delta", '{"type":"message_delta","delta":[]}'),
            corpus.event("message_delta", '{"type":"message_delta","delta":{},"usage":3}'),
            corpus.event("message_delta", '{"type":"message_delta","x":' + "[" * 100_000 + "]" * 100_000 + "}"),
            corpus.event("message_stop", "nonsense"),
        ],
        ids=lambda bad: repr(bad[:90]),
    )
    def test_an_event_that_matters_cannot_be_read(self, bad: bytes) -> None:
        """What would lose a part of the message is an outcome of its own, and settles the fold."""
        machine = MessageFold()
        machine.feed(corpus.start() + corpus.block(0, corpus.TEXT_BLOCK) + bad)
        assert machine.finished
        machine.feed(corpus.stop(0) + corpus.end())
        assert isinstance(machine.result(), Malformed)

    def test_message_start_of_another_shape(self) -> None:
        """Without a message there is nothing to fold into."""
        assert isinstance(fold(corpus.event("message_start", '{"type":"message_start","message":null}')), Malformed)


class TestTolerance:
    """What is odd, but tells a message, is one."""

    def test_second_message_start(self) -> None:
        """Is ignored."""
        outcome = fold(corpus.start() + corpus.start("other-model") + corpus.end())
        assert isinstance(outcome, Complete)
        assert json.loads(outcome.message)["model"] == "claude-opus-5"

    def test_what_is_ignored(self) -> None:
        """Unknown events and deltas, and deltas without a block."""
        for odd in (
            corpus.event("strange", "no JSON"),
            corpus.event("strange", "{}"),
            corpus.delta(5, '{"type":"input_json_delta","partial_json":"{}"}'),
            corpus.delta(0, '{"type":"text_delta"}'),
            corpus.delta(0, '{"type":"text_delta","text":null}'),
            corpus.delta(0, '{"type":"citations_delta"}'),
            corpus.delta(0, '{"type":"signature_delta"}'),
            corpus.delta(0, '{"type":"input_json_delta"}'),
            corpus.delta(0, "{}"),
        ):
            outcome = fold(corpus.start() + corpus.block(0, corpus.TEXT_BLOCK) + odd + corpus.end())
            assert isinstance(outcome, Complete)
            assert json.loads(outcome.message)["content"] == [{"type": "text", "text": ""}]

    def test_order_of_blocks(self) -> None:
        """Content stands in the order of its indexes, in whatever order it came."""
        message = folded(
            corpus.start(),
            corpus.block(7, corpus.TEXT_BLOCK),
            corpus.block(2, corpus.TEXT_BLOCK),
            corpus.text(7, "last"),
            corpus.text(2, "first"),
            corpus.stop(7),
            corpus.stop(2),
            corpus.end(),
        )
        assert [block["text"] for block in message["content"]] == ["first", "last"]

    def test_an_index_that_comes_again(self) -> None:
        """Makes another block: nothing is lost."""
        message = folded(
            corpus.start(),
            corpus.block(0, corpus.TEXT_BLOCK) + corpus.text(0, "a"),
            corpus.block(0, corpus.TEXT_BLOCK) + corpus.text(0, "b"),
            corpus.end(),
        )
        assert [block["text"] for block in message["content"]] == ["a", "b"]

    def test_a_block_without_its_start(self) -> None:
        """Where deltas say all that there is to a block, they are enough."""
        message = folded(
            corpus.start(),
            corpus.text(0, "a", "b"),
            corpus.delta(1, '{"type":"thinking_delta","thinking":"hm"}'),
            corpus.delta(1, '{"type":"signature_delta","signature":"Eq"}'),
            corpus.end(),
        )
        assert message["content"] == [
            {"type": "text", "text": "ab"},
            {"type": "thinking", "thinking": "hm", "signature": "Eq"},
        ]

    def test_content_that_message_start_had(self) -> None:
        """Stays in front."""
        stream = corpus.start().replace(b'"content":[]', b'"content":[{"type":"text","text":"a"}]')
        message = folded(stream + corpus.text(0, "b") + corpus.whole(1, '{"type":"x"}') + corpus.end())
        assert message["content"] == [{"type": "text", "text": "ab"}, {"type": "x"}]

    def test_message_start_without_content_and_usage(self) -> None:
        """Both are there all the same."""
        start = corpus.event("message_start", '{"type":"message_start","message":{"id":"m","usage":null}}')
        assert folded(start + corpus.end()) == {
            "id": "m",
            "usage": {"output_tokens": 20},
            "content": [],
            "stop_reason": "end_turn",
            "stop_sequence": None,
        }

    def test_the_type_in_the_data_counts(self) -> None:
        """As in the SDKs: a name says that there is an event, ``type`` says which."""
        stream = corpus.start() + corpus.block(0, corpus.TEXT_BLOCK) + corpus.text(0, "a") + corpus.end()
        assert folded(stream.replace(b"event: content_block_delta", b"event: x")) == folded(stream)
        assert folded(stream.replace(b"event: message_stop", b"event: content_block_delta")) == folded(stream)
        assert folded(stream.replace(b'{"type":"content_block_delta",', b"{")) == folded(stream)
        assert folded(stream.replace(b'data: {"type":"message_stop"}', b"data")) == folded(stream)
        error = corpus.error("overloaded_error").replace(b"event: error", b"event: x")
        assert isinstance(fold(corpus.start() + error), ErrorEvent)

    def test_what_follows_the_end_is_ignored(self) -> None:
        """After message_stop or an error nothing changes the result."""
        entry = BY_NAME["text"]
        assert fold(entry.stream + corpus.error("api_error"), corpus.text(0, "more")) == fold(entry.stream)
        error = corpus.start() + corpus.error("overloaded_error")
        assert fold(error + corpus.error("api_error") + corpus.end()) == fold(error)

    def test_result_may_be_asked_for_twice(self) -> None:
        """It is the same; and while the stream grows, asking does no harm."""
        entry = BY_NAME["tools"]
        machine = MessageFold()
        for i in range(len(entry.stream)):
            assert isinstance(machine.result(), Truncated)
            machine.feed(entry.stream[i : i + 1])
        assert machine.result() is machine.result()
        assert machine.result() == fold(entry.stream)

    def test_surrogate_pair_in_two_deltas(self) -> None:
        """A sender that cuts text by UTF-16 units still gives the character, in text and in tool input."""
        message = folded(
            corpus.start(),
            corpus.block(0, corpus.TEXT_BLOCK) + corpus.text(0, "a\\ud83d", "\\ude00b"),
            corpus.block(1, '{"type":"tool_use","id":"t","name":"n","input":{}}'),
            corpus.delta(1, '{"type":"input_json_delta","partial_json":"{\\"a\\":\\"\\ud83d"}'),
            corpus.delta(1, '{"type":"input_json_delta","partial_json":"\\ude00\\"}"}'),
            corpus.end(),
        )
        assert message["content"][0]["text"] == "a😀b"
        assert message["content"][1]["input"] == {"a": "😀"}

    def test_half_a_pair_in_tool_input(self) -> None:
        """Alone it is no text at all: the input does not parse, and never becomes an empty one."""
        outcome = fold(
            corpus.start(),
            corpus.block(0, '{"type":"tool_use","id":"t","name":"n","input":{}}'),
            corpus.delta(0, '{"type":"input_json_delta","partial_json":"{\\"a\\":\\"\\ud83d\\"}"}'),
            corpus.end('"max_tokens"'),
        )
        assert isinstance(outcome, BadToolInput)

    def test_bytes_that_are_no_utf8(self) -> None:
        """Become U+FFFD, as in a browser, and the message is valid UTF-8."""
        stream = (
            corpus.start()
            + corpus.block(0, corpus.TEXT_BLOCK)
            + corpus.text(0, "a?b")
            + corpus.block(1, '{"type":"tool_use","id":"t","name":"n","input":{}}')
            + corpus.partial_json(1, '{"a": "c?d"}')
            + corpus.end()
        )
        message = folded(stream.replace(b"?", b"\xff"))
        assert message["content"][0]["text"] == "a\ufffdb"
        assert message["content"][1]["input"] == {"a": "c\ufffdd"}


class TestToolInput:
    """What ``input_json_delta`` comes to."""

    def outcome(self, *pieces: str, reason: str = "tool_use", kind: str = "tool_use") -> message.Outcome:
        return fold(
            corpus.start(),
            corpus.block(0, f'{{"type":"{kind}","id":"t","name":"n","input":{{"was":1}}}}'),
            corpus.partial_json(0, *pieces),
            corpus.stop(0),
            corpus.end(f'"{reason}"'),
        )

    def input(self, *pieces: str, reason: str = "tool_use", kind: str = "tool_use") -> Any:
        outcome = self.outcome(*pieces, reason=reason, kind=kind)
        assert isinstance(outcome, Complete)
        return json.loads(outcome.message)["content"][0]["input"]

    @pytest.mark.parametrize("pieces", [[], [""], ["", ""], [" ", "\\n".replace("\\n", " ")]])
    def test_blank(self, pieces: list[str]) -> None:
        """A blank buffer leaves what the start had."""
        assert self.input(*pieces) == {"was": 1}

    @pytest.mark.parametrize("kind", ["tool_use", "server_tool_use", "mcp_tool_use", "tool_of_tomorrow"])
    def test_any_block(self, kind: str) -> None:
        """Any block may have an input."""
        assert self.input('{"a"', ":1}", kind=kind) == {"a": 1}

    @pytest.mark.parametrize(
        "text", ['{"a":1', '{"a":1}}', '{"a":NaN}', "{'a':1}", '{"a":01}', "nope", '{"a":"\\ud800"}']
    )
    def test_what_does_not_parse(self, text: str) -> None:
        """Is an outcome that says so, never a silent ``{}``; also with ``max_tokens``, unless it was cut off."""
        assert isinstance(self.outcome(text), BadToolInput)
        if text != '{"a":1':
            assert isinstance(self.outcome(text, reason="max_tokens"), BadToolInput)

    def test_cut_off(self) -> None:
        """``max_tokens`` leaves the members that are complete, with their spelling."""
        outcome = self.outcome('{"a": 1.0, "b": [1e400, 123456789012345678901234567890', ', "x', reason="max_tokens")
        assert isinstance(outcome, Complete)
        assert b'"input":{"a": 1.0, "b": [1e400, 123456789012345678901234567890]}' in outcome.message

    def test_cut_off_without_content_block_stop(self) -> None:
        """Whether the block was stopped makes no difference."""
        block = corpus.block(0, '{"type":"tool_use","id":"t","name":"n","input":{}}')
        message = folded(corpus.start() + block + corpus.partial_json(0, '{"a":1,"b') + corpus.end('"max_tokens"'))
        assert message["content"][0]["input"] == {"a": 1}

    @given(st.data())
    def test_any_split(self, data: st.DataObject) -> None:
        """However the JSON is cut into deltas, and however the deltas are cut, the input is the same."""
        value = data.draw(JSON_VALUES)
        text = json.dumps({"v": value}, ensure_ascii=data.draw(st.booleans()))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert self.input(*pieces) == {"v": value}


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def jiter_partial(text: bytes) -> list[Any]:
    """The value that jiter makes of `text`, the SDK's way, in a list; an empty list if it refuses."""
    try:
        return [jiter.from_json(text, partial_mode=True)]
    except ValueError:
        return []


def closed(text: bytes) -> list[Any]:
    result = partial_json.close(text)
    return [] if result is None else [json.loads(result)]


class TestPartialJson:
    """`partial_json.close` against jiter's partial mode, which is what the SDK's accumulator uses."""

    @given(JSON_VALUES, st.booleans(), st.sampled_from([None, 1]))
    def test_every_prefix(self, value: Any, ascii_only: bool, indent: int | None) -> None:
        """Of every beginning of JSON it keeps what jiter keeps."""
        text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
        for end in range(len(text) + 1):
            try:
                text[:end].decode()
            except UnicodeDecodeError:
                continue  # a JSON string has been decoded before: there are no halves of characters
            assert closed(text[:end]) == jiter_partial(text[:end])

    @given(
        st.lists(
            st.sampled_from(
                [
                    *'{}[],:" \\',
                    '"a"',
                    '"a":',
                    "1",
                    "-",
                    "0",
                    ".",
                    "e",
                    "E+",
                    "true",
                    "nul",
                    "x",
                    "\n",
                    "\x01",
                    "u00",
                    "\\ud83d",
                ]
            ),
            max_size=12,
        )
    )
    def test_anything(self, pieces: list[str]) -> None:
        """What it keeps of any text, jiter keeps too. (jiter keeps more: it overlooks what stands behind a value.)"""
        text = "".join(pieces).encode()
        if ours := closed(text):
            assert jiter_partial(text) == ours

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (b'{"a": 1.0, "b": 1e400, "c": 1E+2, "d": -0', b'{"a": 1.0, "b": 1e400, "c": 1E+2, "d": -0}'),
            (b'{"a": 1.0, "b": 1e', b'{"a": 1.0}'),
            (b'{"a":1,"a":2,"a', b'{"a":1,"a":2}'),
            (b'{"a":"\\ud83d\\ude00","b":"\\ud83d\\u', b'{"a":"\\ud83d\\ude00"}'),
            (b'{"a":{"b":[{"c":[', b'{"a":{"b":[{"c":[]}]}}'),
            (b'{"a":1}', b'{"a":1}'),
            (b' {"a":1} ', b' {"a":1} '),
            (b'{"a":1} x', None),
            (b'{"a":NaN', None),
            (b'{"a":1,}', None),
            (b'{"a":1,,', None),
            (b"{]", None),
            (b"[}", None),
            (b'"abc', None),
            (b"tru", None),
            (b"", None),
        ],
    )
    def test_table(self, text: bytes, expected: bytes | None) -> None:
        """Spelling is kept; what is not the beginning of JSON is refused."""
        assert partial_json.close(text) == expected

    def test_depth(self) -> None:
        """Any depth, in linear time: nothing recurses."""
        assert partial_json.close(b"[" * 100_000) == b"[" * 100_000 + b"]" * 100_000


class TestMemory:
    """What is held is capped."""

    @pytest.mark.parametrize(
        "piece",
        [
            corpus.text(0, "x"),
            corpus.text(0, "x" * 500),
            corpus.partial_json(0, "x" * 500),
            corpus.delta(0, '{"type":"thinking_delta","thinking":"xxxxxxxx"}'),
            corpus.delta(0, '{"type":"citations_delta","citation":{}}'),
            corpus.whole(0, "{}"),
            corpus.text(0, "x" * 20_000),
            b": " + b"x" * 1000,
        ],
        ids=lambda piece: repr(piece[-70:-2]),
    )
    def test_cap(self, piece: bytes) -> None:
        """Whatever grows, it ends as too large, and what it took is about what the cap says, and is let go."""
        machine = MessageFold(max_bytes=20_000)
        tracemalloc.start()
        try:
            machine.feed(corpus.start() + corpus.block(0, corpus.TEXT_BLOCK))
            for _ in range(25_000):
                if machine.finished:
                    break
                machine.feed(piece)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert machine.finished
        assert machine.result() == TooLarge(detail="the message takes more than 20000 bytes")
        assert machine.partial() is None
        assert peak < 150_000
        machine.feed(corpus.end())
        assert isinstance(machine.result(), TooLarge)

    def test_replaced_values_do_not_add_up(self) -> None:
        """What replaces takes the place of what was there."""
        machine = MessageFold(max_bytes=10_000)
        machine.feed(corpus.start() + corpus.block(0, '{"type":"compaction","content":null}'))
        for _ in range(1000):
            machine.feed(corpus.delta(0, '{"type":"compaction_delta","content":"' + "x" * 1000 + '"}'))
        machine.feed(corpus.end())
        assert isinstance(machine.result(), Complete)
