"""Bytes → server-sent events, and the two cheap followers of the same bytes."""

from __future__ import annotations

import collections
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.corpus import CORPUS, Entry
from tests.pieces import split
from twisted_proxy.wire.sse import Boundary, Ending, Event, EventTooLargeError, Parser

# Few letters, so that fields, line ends and their splits come up often.
PIECES = st.sampled_from(
    [b"\n", b"\r", b"\r\n", b"\n\n", b":", b" ", b"data", b"data:", b"data: x", b"event: e", b"id: 7", b"id", b"x"]
)
STREAMS = st.lists(PIECES, max_size=30).map(b"".join)


def parse(*chunks: bytes) -> list[Event]:
    parser = Parser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def model(stream: bytes) -> list[Event]:
    """The specification's algorithm (§9.2.6), line by line, on the whole stream."""
    events = []
    name, data, last_id = b"", b"", None
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for line in text.split(b"\n")[:-1]:
        if line == b"":
            if data != b"":
                events.append(Event(name, data[:-1], last_id))
            name, data = b"", b""
        elif line.startswith(b":"):
            continue
        else:
            field, colon, value = line.partition(b":")
            if colon and value.startswith(b" "):
                value = value[1:]
            if field == b"event":
                name = value
            elif field == b"data":
                data += value + b"\n"
            elif field == b"id" and b"\0" not in value:
                last_id = value
    return events


class TestParser:
    """Events come out as the specification says."""

    @pytest.mark.parametrize(
        ("stream", "events"),
        [
            (b"", []),
            (b"\n\n\r\r\r\n", []),
            (b"data: a\n\n", [Event(b"", b"a", None)]),
            (b"data:a\n\n", [Event(b"", b"a", None)]),
            (b"data:  a\n\n", [Event(b"", b" a", None)]),
            (b"data\n\n", [Event(b"", b"", None)]),
            (b"data:\n\n", [Event(b"", b"", None)]),
            (b"data\ndata\n\n", [Event(b"", b"\n", None)]),
            (b"data: a\ndata: b\n\n", [Event(b"", b"a\nb", None)]),
            (b"data: a: b\n\n", [Event(b"", b"a: b", None)]),
            (b" data: a\n\n", []),
            (b"Data: a\n\n", []),
            (b"event: e\ndata: a\n\n", [Event(b"e", b"a", None)]),
            (b"event: e\nevent: f\ndata: a\n\n", [Event(b"f", b"a", None)]),
            (b"event: e\nevent\ndata: a\n\n", [Event(b"", b"a", None)]),
            (b"event: e\n\ndata: a\n\n", [Event(b"", b"a", None)]),
            (b": comment\ndata: a\n:\n\n", [Event(b"", b"a", None)]),
            (b"retry: 10\nfoo: bar\nfoo\ndata: a\n\n", [Event(b"", b"a", None)]),
            (b"id: 1\ndata: a\n\ndata: b\n\n", [Event(b"", b"a", b"1"), Event(b"", b"b", b"1")]),
            (b"id: 1\n\nid\ndata: b\n\n", [Event(b"", b"b", b"")]),
            (b"id: 1\nid: \0\ndata: a\n\n", [Event(b"", b"a", b"1")]),
            (b"data: a\r\rdata: b\r\r", [Event(b"", b"a", None), Event(b"", b"b", None)]),
            (b"data: a\r\n\r\ndata: b\r\n\r\n", [Event(b"", b"a", None), Event(b"", b"b", None)]),
            (b"data: a\r\n\ndata: b\n\r", [Event(b"", b"a", None), Event(b"", b"b", None)]),
            (b"\xef\xbb\xbfdata: a\n\n", [Event(b"", b"a", None)]),
            (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
            (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [Event(b"", b"a", None)]),
            (b"\xef\xbbdata: a\n\n", []),
            (b"data: a\x0b\x0c\x1c\x85\xe2\x80\xa8b\n\n", [Event(b"", b"a\x0b\x0c\x1c\x85\xe2\x80\xa8b", None)]),
            (b"data: \xff\0\n\n", [Event(b"", b"\xff\0", None)]),
            (b"data: a\n", []),
            (b"data: a", []),
        ],
    )
    def test_table(self, stream: bytes, events: list[Event]) -> None:
        """Each rule, whole and byte by byte."""
        assert parse(stream) == events
        assert parse(*(stream[i : i + 1] for i in range(len(stream)))) == events

    @given(STREAMS, st.booleans())
    def test_as_the_specification(self, stream: bytes, bom: bool) -> None:
        """Any stream gives what the specification's own algorithm gives."""
        stream = b"\xef\xbb\xbf" * bom + stream
        assert parse(stream) == model(stream)

    @given(STREAMS, st.booleans(), st.lists(st.integers(0, 200), max_size=8))
    def test_any_split(self, stream: bytes, bom: bool, cuts: list[int]) -> None:
        """No split changes the events, or what is pending."""
        stream = b"\xef\xbb\xbf" * bom + stream
        whole, pieces = Parser(), Parser()
        expected = whole.feed(stream)
        got = [event for chunk in split(stream, cuts) for event in pieces.feed(chunk)]
        assert got == expected
        assert pieces.pending == whole.pending
        assert pieces.held == whole.held

    @given(STREAMS)
    def test_pending_is_what_two_line_ends_would_dispatch(self, stream: bytes) -> None:
        """The unterminated last event is not dispatched, but can be asked for."""
        parser = Parser()
        parser.feed(stream)
        pending = parser.pending
        assert [pending] * (pending is not None) == parse(stream + b"\n\n")[len(parse(stream)) :]

    def test_an_event_comes_with_its_last_byte(self) -> None:
        """A CR that ends the blank line dispatches at once; the LF behind it is part of the same line end."""
        parser = Parser()
        assert parser.feed(b"data: a\r\n") == []
        assert parser.feed(b"\r") == [Event(b"", b"a", None)]
        assert parser.feed(b"\ndata: b\n\n") == [Event(b"", b"b", None)]

    @pytest.mark.parametrize(
        "chunks",
        [
            [b"data: " + b"x" * 100],
            [b"data: ", *[b"x"] * 100],
            [b"data: x\n"] * 60,
            [b"data\n"] * 101,
            [b":" * 101],
            [b"data: " + b"x" * 101 + b"\n\n"],
        ],
    )
    def test_cap(self, chunks: list[bytes]) -> None:
        """One event cannot take more than the cap, in any form; the parser then stays failed and holds nothing."""
        parser = Parser(max_event_bytes=100)
        with pytest.raises(EventTooLargeError, match="more than 100 bytes") as raised:
            collections.deque(map(parser.feed, chunks), maxlen=0)
        assert "more than 100 bytes" in str(raised.value)
        with pytest.raises(EventTooLargeError):
            parser.feed(b"\n\ndata: a\n\n")
        assert parser.pending is None

    def test_cap_is_for_one_event(self) -> None:
        """Many small events, in one chunk or in several, never reach it."""
        parser = Parser(max_event_bytes=100)
        event = b": comment\ndata: " + b"x" * 80 + b"\n\n"
        assert len(parser.feed(event * 50)) == 50
        assert len([e for _ in range(50) for e in parser.feed(event)]) == 50
        assert parser.held == 0

    def test_a_long_line_in_small_pieces_is_linear(self) -> None:
        """A megabyte in pieces of 16 bytes: one buffer grows, and the line so far is not copied for each piece."""
        parser = Parser()
        parser.feed(b"data: ")
        buffer = parser._lines.partial
        for _ in range(65536):
            parser.feed(b"0123456789abcdef")
        assert parser._lines.partial is buffer
        assert parser.held == 6 + (1 << 20)
        [event] = parser.feed(b"\n\n")
        assert len(event.data) == 1 << 20

    @pytest.mark.parametrize("entry", CORPUS, ids=lambda entry: entry.name)
    def test_corpus_has_nothing_pending(self, entry: Entry) -> None:
        """Each stream of the corpus is whole events."""
        parser = Parser()
        assert parser.feed(entry.stream)
        assert parser.pending is None


def at_boundary(stream: bytes) -> bool:
    """By the definition: all lines are ended, the last of them blank, and a CR at the end cannot be half of a CRLF."""
    if stream.endswith(b"\r") and not stream.endswith(b"\r\r"):
        return False
    lines = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return stream == b"" or (lines[-1] == b"" and lines[-2] == b"")


class TestBoundary:
    """Whether something can be put between two events here."""

    @pytest.mark.parametrize(
        ("stream", "expected"),
        [
            (b"", True),
            (b"\n", True),
            (b"\r\n", True),
            (b"\r", False),
            (b"x", False),
            (b"data: x\n", False),
            (b"data: x\n\n", True),
            (b"data: x\n\n: ping", False),
            (b"data: x\n\n: ping\n", False),
            (b"data: x\n\n\n", True),
            (b"data: x\r", False),
            (b"data: x\r\n", False),
            (b"data: x\r\n\r", False),
            (b"data: x\r\n\r\n", True),
            (b"data: x\r\r", True),
            (b"data: x\r\r\n", True),
            (b"data: x\n\r", False),
            (b"data: x\n\r\n", True),
            (b"data: x\r\n\n", True),
        ],
    )
    def test_table(self, stream: bytes, expected: bool) -> None:
        """Each line end, whole and byte by byte."""
        boundary = Boundary()
        boundary.follow(stream)
        assert boundary.at_boundary is expected
        boundary = Boundary()
        for i in range(len(stream)):
            boundary.follow(stream[i : i + 1])
        assert boundary.at_boundary is expected

    @given(STREAMS, st.lists(st.integers(0, 200), max_size=8))
    def test_any_split(self, stream: bytes, cuts: list[int]) -> None:
        """The answer follows the definition, however the stream was cut."""
        boundary = Boundary()
        for chunk in split(stream, cuts):
            boundary.follow(chunk)
        assert boundary.at_boundary is at_boundary(stream)

    @given(STREAMS)
    def test_what_it_is_for(self, stream: bytes) -> None:
        """Where it says yes, an event put in is read as itself, and none before it changes or is lost."""
        boundary = Boundary()
        boundary.follow(stream)
        if boundary.at_boundary:
            last_id = ([None] + [event.id for event in parse(stream + b"\ndata\n\n")])[-1]
            assert parse(stream + b"event: error\ndata: {}\n\n") == [*parse(stream), Event(b"error", b"{}", last_id)]

    def test_constant_memory(self) -> None:
        """It keeps three bytes of whatever came."""
        boundary = Boundary()
        boundary.follow(b"x" * 1_000_000)
        assert sys.getsizeof(boundary._tail) < 64


class TestEnding:
    """Whether a stream without framing has come to its own end."""

    @pytest.mark.parametrize(
        ("stream", "proper"),
        [
            (b"", False),
            (b"event: message_stop\ndata: {}\n\n", True),
            (b"event: message_stop\r\ndata: {}\r\n\r\n", True),
            (b"event: error\ndata: {}\n\n", True),
            (b"event: error\ndata: {}\n\n: bye\n\n", True),
            (b"event: message_stop\ndata: {}\n\nevent: ping\ndata: {}\n\n", True),
            (b"event: message_stop\ndata: {}\n\nevent: message_start\ndata: {}\n\n", False),
            (b"event: message_stop\ndata: {}\n", False),
            (b"event: message_stop\n\n", False),
            (b"event: message_stop_\ndata: {}\n\n", False),
            (b"event: message_delta\ndata: {}\n\n", False),
            (b'data: {"type":"message_stop"}\n\n', False),
            (b"data: [DONE]\n\n", True),
            (b"data:[DONE]\n\n", True),
            (b'data: {"x":1}\n\ndata: [DONE]\n\n', True),
            (b"data: [DONE]\n", False),
            (b"data: [DONE]\ndata: x\n\n", False),
            (b"data: x\ndata: [DONE]\n\n", False),
            (b"data: [DONE] \n\n", False),
            (b'data: {"x":1}\n\n', False),
        ],
    )
    def test_table(self, stream: bytes, proper: bool) -> None:
        """Each end that counts, and those that do not, whole and byte by byte."""
        ending = Ending()
        ending.follow(stream)
        assert ending.proper is proper
        ending = Ending()
        for i in range(len(stream)):
            ending.follow(stream[i : i + 1])
        assert ending.proper is proper

    def test_a_long_event_is_not_kept(self) -> None:
        """Of an event of any size it holds some sixty bytes, and it still finds the end behind it."""
        ending = Ending()
        ending.follow(b"event: content_block_delta\ndata: ")
        for _ in range(1000):
            ending.follow(b"event: message_stop " * 50)
        assert len(ending._lines.partial) <= 64
        ending.follow(b"\n\nevent: message_stop\ndata: {}\n\n")
        assert ending.proper

    @pytest.mark.parametrize("entry", CORPUS, ids=lambda entry: entry.name)
    def test_corpus(self, entry: Entry) -> None:
        """A whole stream ends properly, and no shorter one does but for what stands behind message_stop."""
        stream: bytes = entry.stream
        ending = Ending()
        for i in range(len(stream)):
            assert not ending.proper
            ending.follow(stream[i : i + 1])
        assert ending.proper
