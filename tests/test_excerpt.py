"""What is looked at of answers whose bodies are not kept."""

from __future__ import annotations

import pytest

from tests.corpus import event
from twisted_proxy.record.excerpt import HEAD, TAIL, WHOLE, Excerpt

START = event("message_start", '{"type":"message_start"}')
DELTA = event("message_delta", '{"type":"message_delta"}')
STOP = event("message_stop", '{"type":"message_stop"}')


def excerpt(data: bytes, size: int, *, event_stream: bool = True) -> bytes:
    made = Excerpt(event_stream=event_stream)
    for start in range(0, len(data), size):
        made.append(data[start : start + size])
    return made.read()


@pytest.mark.parametrize("size", [1, 7, 1000, 20_000, 10**6])
@pytest.mark.parametrize("said", [b"", event("content_block_delta", "x" * 100) * 3, event("x", "y" * 50) * 5000])
def test_a_stream_is_reduced_to_what_frames_it(size: int, said: bytes) -> None:
    """However long it is and however it came, its first and its last events are there, and nothing of what was said."""
    assert excerpt(START + said + DELTA + STOP, size) == START + DELTA + STOP


def test_an_event_larger_than_what_is_kept_leaves_no_half() -> None:
    """The rest of an event whose beginning is gone is not taken for one."""
    hostile = event("content_block_delta", "z" * TAIL + "\\n\\nevent: message_stop")
    assert excerpt(START + hostile + DELTA + STOP, 4096) == START + DELTA + STOP


def test_memory_is_bounded() -> None:
    """Of a stream without end, no more than the head, the tail and one piece are held."""
    made = Excerpt(event_stream=True)
    for _ in range(10_000):
        made.append(b"x" * 1000)
    held = len(made._head) + sum(map(len, made._tail))
    assert held <= HEAD + TAIL + 1000


@pytest.mark.parametrize("size", [1000, WHOLE])
def test_a_small_json_answer_is_whole(size: int) -> None:
    """Its usage may stand anywhere."""
    data = b'{"usage":1}' + b" " * 10_000
    assert excerpt(data, size, event_stream=False) == data


def test_a_large_json_answer_tells_nothing() -> None:
    """A part of JSON is no JSON."""
    assert excerpt(b"x" * (WHOLE + 1), 5000, event_stream=False) == b""


@pytest.mark.parametrize("size", [1, 1000, 10**6])
def test_a_stream_of_completion_chunks(size: int) -> None:
    """Its events have no names: the end of the choice, usage and the mark of the end are found by what they hold."""

    def chunk(data: str) -> bytes:
        return f"data: {data}\n\n".encode()

    said = chunk(
        '{"choices":[{"delta":{"content":"say \\"usage\\": {} and \\"finish_reason\\": \\"x\\""}}],"usage":null}'
    )
    end = chunk('{"choices":[{"delta":{},"finish_reason":"stop"}]}')
    usage = chunk('{"choices":[], "usage" : {"prompt_tokens":1}}')
    done = chunk("[DONE]")
    assert excerpt(said * 3000 + end + usage + done, size) == end + usage + done
    assert excerpt(said + chunk('{"error":{"message":"m"}}'), size) == chunk('{"error":{"message":"m"}}')
