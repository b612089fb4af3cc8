"""The strict reader of HTTP/1.1 responses: framing, limits, splits, and agreement with h11."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import attrs
import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pieces import bytewise, split
from twisted_proxy.wire import http1
from twisted_proxy.wire.http1 import Framing, Head, ProtocolError, ResponseReader

LIMIT = http1.MAX_HEAD_BYTES
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@attrs.frozen(kw_only=True)
class Outcome:
    """All that a reader says of what it was fed."""

    head: Head | None
    body: bytes
    complete: bool
    refused: bool
    closes: bool
    framing: Framing | None
    content_length: int | None
    keep_alive: bool
    unread: bytes


def read(pieces: Iterable[bytes], method: bytes = b"GET") -> Outcome:
    """Feed a reader, take what it gives, and look at it at the end."""
    reader = ResponseReader(method=method)
    head, body, complete, refused = None, b"", False, False
    for piece in pieces:
        try:
            received = reader.receive(piece)
        except ProtocolError as fault:
            refused = True
            if fault.received is None:
                break
            received = fault.received
            assert not received.complete
        assert received.head is None or head is None, "a head is given once"
        assert not complete or received.complete, "what is complete stays so"
        assert not complete or not received.body, "nothing follows a complete body"
        head = received.head or head
        body += received.body
        complete = received.complete
        assert type(received.body) is bytes
        if refused:
            break
    unread = reader.unread
    assert type(unread) is bytes
    return Outcome(
        head=head,
        body=body,
        complete=complete,
        refused=refused,
        closes=not refused and reader.eof(),
        framing=reader.framing,
        content_length=reader.content_length,
        keep_alive=reader.keep_alive,
        unread=unread if complete else b"",
    )


def refuses(raw: bytes, method: bytes = b"GET") -> bool:
    """Whether it is refused; in one piece and byte by byte, or the test fails."""
    whole, single = read([raw], method).refused, read(bytewise(raw), method).refused
    assert whole is single
    return whole


# What hypothesis makes of it

TOKENS = st.text("!#$%&'*+-.^_`|~0123456789ABCXYZabcxyz", min_size=1, max_size=12).map(str.encode)
_TEXT = "\t " + "".join(map(chr, [*range(0x21, 0x7F), *range(0x80, 0x100)]))
TEXTS = st.text(_TEXT, max_size=16).map(lambda text: text.strip("\t ").encode("latin-1"))
OWS = st.sampled_from([b"", b" ", b"\t", b"  \t "])
FRAMING_NAMES = {b"content-length", b"transfer-encoding", b"connection", b"upgrade"}


@attrs.frozen(kw_only=True)
class Message:
    """A valid response, and the request that it answers."""

    method: bytes
    raw: bytes
    extra: bytes
    """Sent beyond the end, where the message has one."""


@st.composite
def field_lines(draw: st.DrawFn) -> bytes:
    names = TOKENS.filter(lambda name: name.lower() not in FRAMING_NAMES)
    fields = draw(st.lists(st.tuples(names, OWS, TEXTS, OWS), max_size=4))
    return b"".join(b"%b:%b%b%b\r\n" % field for field in fields)


@st.composite
def chunked_bodies(draw: st.DrawFn) -> bytes:
    chunks = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=5))
    sizes = st.sampled_from([b"%x", b"%X", b"0%x", b"000%X"])
    extensions = st.sampled_from([b"", b";a", b";a=b", b'; a="b c"', b";a=\xff; \tb", b" ", b"\t", b";"])
    lines = [draw(sizes) % len(chunk) + draw(extensions) + b"\r\n" + chunk + b"\r\n" for chunk in chunks]
    last = draw(st.sampled_from([b"0", b"000"])) + draw(extensions) + b"\r\n"
    return b"".join(lines) + last + draw(field_lines()) + b"\r\n"


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Valid responses of every framing, with interim ones before and bytes beyond."""
    method = draw(st.sampled_from([b"GET", b"GET", b"POST", b"HEAD"]))
    minor = draw(st.sampled_from([b"1", b"1", b"1", b"0"]))
    status = draw(st.sampled_from([200, 200, 200, 201, 204, 206, 301, 304, 400, 404, 429, 500, 529, 599, 999]))
    interims = draw(
        st.lists(
            st.builds(
                lambda code, lines: b"HTTP/1.1 %d Wait\r\n%b\r\n" % (code, lines),
                st.sampled_from([100, 102, 103, 199]),
                field_lines(),
            ),
            max_size=2,
        )
    )
    reason = draw(st.sampled_from([b"", b" ", b" OK", b" Not  so\tfine", b" \xc3\xa9"]))
    connection = draw(st.sampled_from([b"", b"", b"close", b"Close", b"keep-alive", b"x, close", b"keep-alive, CLOSE"]))
    lines = [draw(field_lines()), b"Connection: %b\r\n" % connection if connection else b"", draw(field_lines())]
    kind = draw(st.sampled_from(["length", "length", "chunked", "chunked", "close"]))
    body = draw(st.binary(max_size=60))
    length_line = b"Content-Length: %d\r\n" % len(body)
    coding_line = b"transfer-encoding:%b\r\n" % draw(st.sampled_from([b"chunked", b" Chunked ", b"\tCHUNKED"]))
    if kind == "chunked":
        lines.insert(draw(st.integers(0, 3)), coding_line)
        if draw(st.booleans()):
            lines.insert(draw(st.integers(0, 4)), length_line)
        body = draw(chunked_bodies())
    elif kind == "length":
        lines.insert(draw(st.integers(0, 3)), length_line)
    bodiless = method == b"HEAD" or status in (204, 304)
    if bodiless:
        body = b""
    head = b"HTTP/1.%b %d%b\r\n%b\r\n" % (minor, status, reason, b"".join(lines))
    extra = b"" if kind == "close" and not bodiless else draw(st.sampled_from([b"", b"", b"x", b"\r\n", OK + b"\r\n"]))
    return Message(method=method, raw=b"".join(interims) + head + body, extra=extra)


@st.composite
def broken_messages(draw: st.DrawFn) -> Message:
    """Responses with a few bytes lost, added, changed or swapped; some of them still valid."""
    message = draw(messages())
    raw = bytearray(message.raw + message.extra)
    some = st.sampled_from(
        [b"\r", b"\n", b"\r\n", b" ", b"\t", b"\0", b":", b";", b",", b"0", b"9", b"f", b"x", b"\x7f"]
    )
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(raw)))
        match draw(st.sampled_from(["insert", "delete", "replace", "repeat"])):
            case "insert":
                raw[place:place] = draw(some)
            case "delete":
                del raw[place : place + draw(st.integers(1, 4))]
            case "replace":
                raw[place : place + 1] = draw(some)
            case "repeat":
                raw[place:place] = raw[place : place + draw(st.integers(1, 30))]
    return Message(method=message.method, raw=bytes(raw), extra=b"")


class TestAnySplit:
    """How the network cuts the bytes changes nothing."""

    @settings(deadline=None)
    @given(messages(), st.lists(st.integers(0, 500), max_size=6))
    def test_of_valid_responses(self, message: Message, cuts: list[int]) -> None:
        """Whole, byte by byte and in any pieces, a response is the same, and valid ones are taken."""
        raw = message.raw + message.extra
        whole = read([raw], message.method)
        assert not whole.refused
        assert whole.head is not None
        assert whole.complete or whole.closes
        assert whole.unread == message.extra
        assert read(bytewise(raw), message.method) == whole
        assert read(split(raw, cuts), message.method) == whole

    @settings(deadline=None, max_examples=200)
    @given(broken_messages(), st.lists(st.integers(0, 500), max_size=6))
    def test_of_broken_responses(self, message: Message, cuts: list[int]) -> None:
        """Also what comes out before the fault, and that there is one, do not depend on the split."""
        whole = read([message.raw], message.method)
        assert read(bytewise(message.raw), message.method) == whole
        assert read(split(message.raw, cuts), message.method) == whole

    @given(
        st.lists(st.sampled_from([OK, b"\r\n", b"HTTP/1.1 100\r\n\r\n", b"0", b"a", b"\r", b"\n", CHUNKED]), max_size=9)
    )
    def test_of_anything(self, pieces: list[bytes]) -> None:
        """Nor for input that is no response at all; and nothing but `ProtocolError` is raised."""
        raw = b"".join(pieces)
        assert read(pieces) == read([raw]) == read(bytewise(raw))

    def test_nothing(self) -> None:
        """Empty pieces are no input."""
        reader = ResponseReader(method=b"GET")
        assert reader.receive(b"") == (None, b"", False)
        assert not reader.eof()


# h11 as the second opinion


@attrs.frozen(kw_only=True)
class SecondOpinion:
    status: int | None
    reason: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes
    complete: bool
    closes: bool
    keep_alive: bool
    unread: bytes


def ask_h11(raw: bytes, method: bytes) -> SecondOpinion | None:
    """What h11 makes of an answer; ``None`` if it refuses it."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 24)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    response: h11.Response | None = None
    body = b""
    complete = closes = keep_alive = False
    unread = b""
    if raw:
        connection.receive_data(raw)
    try:
        while True:
            event: Any = connection.next_event()
            if isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                complete = True
                keep_alive = connection.their_state is h11.DONE
                unread = connection.trailing_data[0]
                break
            elif event is h11.NEED_DATA:
                break
    except h11.RemoteProtocolError:
        return None
    if not complete:
        try:
            connection.receive_data(b"")
            closes = isinstance(connection.next_event(), h11.EndOfMessage)
        except h11.RemoteProtocolError:
            closes = False
    return SecondOpinion(
        status=None if response is None else response.status_code,
        reason=b"" if response is None else bytes(response.reason),
        fields=[] if response is None else [(bytes(a), bytes(b)) for a, b in response.headers.raw_items()],
        body=body,
        complete=complete,
        closes=closes,
        keep_alive=keep_alive,
        unread=unread,
    )


def assert_agreement(ours: Outcome, theirs: SecondOpinion) -> None:
    assert (ours.complete, ours.closes, ours.body, ours.unread) == (
        theirs.complete,
        theirs.closes,
        theirs.body,
        theirs.unread,
    )
    if ours.head is None:
        assert theirs.status is None
        return
    assert (ours.head.status, ours.head.reason) == (theirs.status, theirs.reason)
    # h11 folds repeated lengths into one: `5, 5` and a second `5` become one `5`. Compare what it leaves alone.
    assert [field for field in ours.head.fields if field[0].lower() not in FRAMING_NAMES] == [
        field for field in theirs.fields if field[0].lower() not in FRAMING_NAMES
    ]
    if ours.complete and ours.head.minor_version == 1 and ours.keep_alive is not theirs.keep_alive:
        # Where we are more careful with the next request: see `TestReuse`.
        names = {name.lower() for name, _ in ours.head.fields}
        assert not ours.keep_alive
        assert {b"content-length", b"transfer-encoding"} <= names or ours.head.status == 204


class TestAgreementWithH11:
    """Another strict reader, written by others, sees the same."""

    @settings(deadline=None)
    @given(messages())
    def test_on_valid_responses(self, message: Message) -> None:
        """Status, fields, body, end, reuse and what is beyond."""
        raw = message.raw + message.extra
        theirs = ask_h11(raw, message.method)
        assert theirs is not None
        assert_agreement(read([raw], message.method), theirs)

    @settings(deadline=None, max_examples=200)
    @given(broken_messages())
    def test_on_broken_responses(self, message: Message) -> None:
        """What h11 refuses we refuse; what both take, both read alike."""
        ours, theirs = read([message.raw], message.method), ask_h11(message.raw, message.method)
        if theirs is None:
            assert ours.refused or more_lenient(message.raw)
        elif not ours.refused:
            assert_agreement(ours, theirs)

    @settings(deadline=None)
    @given(messages(), st.data())
    def test_on_truncated_responses(self, message: Message, data: st.DataObject) -> None:
        """Cut anywhere, both say the same of what is there and of its end."""
        raw = message.raw[: data.draw(st.integers(0, len(message.raw)))]
        theirs = ask_h11(raw, message.method)
        assert theirs is not None
        assert_agreement(read([raw], message.method), theirs)

    @pytest.mark.parametrize(
        ("raw", "why"),
        [
            (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", "a bare LF ends a line for some readers only"),
            (b"HTTP/1.1 200 OK\r\nA: b\nContent-Length: 0\r\n\r\n", "the same in the middle"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n", "the same before the blank line"),
            (OK + b"A: b\r\n c\r\nContent-Length: 0\r\n\r\n", "obs-fold (RFC 9112 §5.2)"),
            (OK + b"A: b\x01c\r\nContent-Length: 0\r\n\r\n", "controls are not allowed in a value (RFC 9110 §5.5)"),
            (OK + b"A: b\x7f\r\nContent-Length: 0\r\n\r\n", "DEL neither"),
            (b"HTTP/1.1 200 O\x01K\r\nContent-Length: 0\r\n\r\n", "nor in a reason (RFC 9112 §4)"),
            (b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", "another major version is framed otherwise"),
            (b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n", "there were no heads in 0.9"),
            (b"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n", "there is no such version"),
            (OK + b"Content-Length: 0000000000000000005\r\n\r\nhello", "19 digits: more than fit everywhere"),
            (CHUNKED + b"00000000000000005\r\nhello\r\n0\r\n\r\n", "17 digits: more than fit into 64 bits"),
            (CHUNKED + b"5;a\rb\r\nhello\r\n0\r\n\r\n", "a bare CR ends a line for some readers"),
            (CHUNKED + b"5;a\0\r\nhello\r\n0\r\n\r\n", "controls are not allowed in an extension"),
            (CHUNKED + b"5\r\nhello\r\n0\r\nA: b\r\n c\r\n\r\n", "obs-fold in a trailer"),
            (CHUNKED + b"5\r\nhello\r\n0\r\nA: b\n\r\n", "a bare LF in a trailer"),
            (CHUNKED + b"5\r\nhello\r\n0\r\n\n", "a bare LF for the blank line"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_stricter(self, raw: bytes, why: str) -> None:
        """Where h11 is lenient and we are not."""
        assert ask_h11(raw, b"GET") is not None
        assert refuses(raw)

    @pytest.mark.parametrize(
        ("raw", "body", "why"),
        [
            (CHUNKED + b"5 ;a=b\r\nhello\r\n0\t;c\r\n\r\n", b"hello", "bad blanks MUST be parsed (RFC 9112 §7.1.1)"),
            (
                b"HTTP/1.1 103 Hints\r\nContent-Length: x\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nhi",
                b"hi",
                "an interim answer ends with its head, whatever its fields say (RFC 9112 §6.3)",
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_more_lenient(self, raw: bytes, body: bytes, why: str) -> None:
        """Where the standard is, and h11 is not."""
        assert ask_h11(raw, b"GET") is None
        assert more_lenient(raw)
        outcome = read([raw])
        assert outcome.complete
        assert outcome.body == body


def more_lenient(raw: bytes) -> bool:
    """Whether it is one of `TestAgreementWithH11.test_more_lenient`."""
    lines = raw.lower().split(b"\r\n")
    blanks = any(b" ;" in line or b"\t;" in line for line in lines)
    interim = raw[9:10] == b"1" and any(line.startswith((b"content-length", b"transfer-encoding")) for line in lines)
    return blanks or interim


class TestFraming:
    """Each way for a body to end (RFC 9112 §6.3)."""

    @pytest.mark.parametrize(
        ("method", "raw", "framing", "length", "body"),
        [
            (b"GET", OK + b"Content-Length: 5\r\n\r\nhello", Framing.LENGTH, 5, b"hello"),
            (b"GET", OK + b"Content-Length: 0\r\n\r\n", Framing.LENGTH, 0, b""),
            (b"GET", OK + b"content-LENGTH:\t5 \r\n\r\nhello", Framing.LENGTH, 5, b"hello"),
            (b"GET", OK + b"Content-Length: 5, 5\r\n\r\nhello", Framing.LENGTH, 5, b"hello"),
            (b"GET", OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", Framing.LENGTH, 5, b"hello"),
            (b"GET", OK + b"Content-Length: 005\r\n\r\nhello", Framing.LENGTH, 5, b"hello"),
            (b"GET", CHUNKED + b"0\r\n\r\n", Framing.CHUNKED, None, b""),
            (b"GET", CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", Framing.CHUNKED, None, b"hello"),
            (
                b"GET",
                CHUNKED + b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n",
                Framing.CHUNKED,
                None,
                b"0123456789" * 2,
            ),
            (b"GET", CHUNKED + b"0005\r\nhello\r\n00\r\n\r\n", Framing.CHUNKED, None, b"hello"),
            (b"GET", CHUNKED + b'5;a="b;c"\r\nhello\r\n0;x\r\n\r\n', Framing.CHUNKED, None, b"hello"),
            (b"GET", CHUNKED + b"5  \r\nhello\r\n0\t\r\n\r\n", Framing.CHUNKED, None, b"hello"),
            (b"GET", CHUNKED + b"5\r\nhello\r\n0\r\nA: b\r\nC:\r\n\r\n", Framing.CHUNKED, None, b"hello"),
            (b"GET", CHUNKED + b"2\r\n\r\n\r\n0\r\n\r\n", Framing.CHUNKED, None, b"\r\n"),
            (b"GET", CHUNKED + b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", Framing.CHUNKED, None, b"0\r\n\r\n"),
            (
                b"GET",
                OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                Framing.CHUNKED,
                None,
                b"hello",
            ),
            (b"HEAD", OK + b"Content-Length: 5\r\n\r\n", Framing.NONE, 5, b""),
            (b"HEAD", CHUNKED, Framing.NONE, None, b""),
            (b"HEAD", OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", Framing.NONE, None, b""),
            (b"HEAD", OK + b"\r\n", Framing.NONE, None, b""),
            (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", Framing.NONE, None, b""),
            (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", Framing.NONE, 5, b""),
            (b"GET", b"HTTP/1.1 304 Not Modified\r\n\r\n", Framing.NONE, None, b""),
            (b"GET", b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", Framing.LENGTH, 0, b""),
            (
                b"GET",
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nhi",
                Framing.LENGTH,
                2,
                b"hi",
            ),
            (
                b"HEAD",
                b"HTTP/1.1 103 Early Hints\r\nContent-Length: 7\r\n\r\nHTTP/1.1 200\r\n\r\n",
                Framing.NONE,
                None,
                b"",
            ),
        ],
    )
    def test_complete(self, method: bytes, raw: bytes, framing: Framing, length: int | None, body: bytes) -> None:
        """The body, and that it is whole; what follows is left unread."""
        for pieces in ([raw], bytewise(raw), [raw + b"beyond"], [*bytewise(raw), b"be", b"yond"]):
            outcome = read(pieces, method)
            assert (outcome.framing, outcome.content_length, outcome.body) == (framing, length, body)
            assert outcome.complete
            assert not outcome.closes
            assert outcome.unread in (b"", b"beyond")
        assert read([raw + b"beyond"], method).unread == b"beyond"

    @pytest.mark.parametrize("version", [b"1.1", b"1.0"])
    def test_close_delimited(self, version: bytes) -> None:
        """Without a length, all there is until the end belongs to the body, and the connection is not used again."""
        raw = b"HTTP/%b 200 OK\r\nConnection: keep-alive\r\n\r\n" % version
        outcome = read([raw, b"some", b"", b"\r\n0\r\n\r\n"])
        assert outcome.framing is Framing.CLOSE
        assert outcome.body == b"some\r\n0\r\n\r\n"
        assert outcome.closes
        assert not outcome.complete
        assert not outcome.keep_alive
        assert outcome.unread == b""

    def test_head(self) -> None:
        """Version, status, reason, and the fields as they came: order, case, repeats; blanks around values gone."""
        raw = b"HTTP/1.0 429 Too \tmany \r\nB: 2\r\nset-Cookie: a\r\nA:1\r\n"
        raw += b"Set-Cookie:\tb, c \r\nEmpty:\r\nX: \xff y\r\n\r\n"
        head = read([raw]).head
        assert head == Head(
            0,
            429,
            b"Too \tmany ",
            [
                (b"B", b"2"),
                (b"set-Cookie", b"a"),
                (b"A", b"1"),
                (b"Set-Cookie", b"b, c"),
                (b"Empty", b""),
                (b"X", b"\xff y"),
            ],
        )

    @pytest.mark.parametrize("line", [b"HTTP/1.1 200", b"HTTP/1.1 200 "])
    def test_without_reason(self, line: bytes) -> None:
        """Servers leave it out, some with its blank."""
        head = read([line + b"\r\n\r\n"]).head
        assert head is not None
        assert head.reason == b""

    def test_the_head_is_given_at_once(self) -> None:
        """Not only with the first byte of the body: an event stream may be quiet for long."""
        reader = ResponseReader(method=b"GET")
        assert reader.receive(CHUNKED[:-1]).head is None
        received = reader.receive(CHUNKED[-1:])
        assert received.head is not None
        assert received.body == b""

    def test_body_bytes_are_given_at_once(self) -> None:
        """Also a part of a chunk, and all chunks of one piece in one."""
        reader = ResponseReader(method=b"GET")
        reader.receive(CHUNKED)
        assert reader.receive(b"5\r\nhe").body == b"he"
        assert reader.receive(b"llo\r\n1\r\n!\r\n2\r\nyo").body == b"llo!yo"
        assert reader.receive(b"\r\n0\r\n\r\n") == (None, b"", True)

    @pytest.mark.parametrize("raw", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\nHT", OK])
    def test_not_complete(self, raw: bytes) -> None:
        """An interim answer is not the answer, nor is the beginning of one."""
        assert not read([raw]).complete


class TestReuse:
    """Whether the connection may carry another request (RFC 9112 §9.3)."""

    @pytest.mark.parametrize(
        ("method", "raw", "expected"),
        [
            (b"GET", OK + b"Content-Length: 0\r\n\r\n", True),
            (b"GET", CHUNKED + b"0\r\n\r\n", True),
            (b"HEAD", OK + b"\r\n", True),
            (b"GET", b"HTTP/1.1 304 X\r\nContent-Length: 5\r\n\r\n", True),
            (b"GET", b"HTTP/1.1 204 X\r\nContent-Length: 0\r\n\r\n", True),
            (b"GET", OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n", False),
            (b"GET", OK + b"Connection: CLOSE\r\nContent-Length: 0\r\n\r\n", False),
            (b"GET", OK + b"Connection: x\r\nConnection: y ,close\r\nContent-Length: 0\r\n\r\n", False),
            (b"GET", OK + b"Connection: keep-alive, close\r\nContent-Length: 0\r\n\r\n", False),
            (b"GET", OK + b"Connection: closed\r\nContent-Length: 0\r\n\r\n", True),
            (b"GET", OK + b"Proxy-Connection: close\r\nContent-Length: 0\r\n\r\n", True),
            (b"GET", OK + b"\r\n", False),
            (b"HEAD", OK + b"Connection: close\r\n\r\n", False),
            (b"GET", b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
            (b"GET", b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n", True),
            # §9.3: `close` comes first.
            (b"GET", b"HTTP/1.0 200 OK\r\nConnection: keep-alive, close\r\nContent-Length: 0\r\n\r\n", False),
            # §6.1: chunks in 1.0 are a fault; §6.3: so are both framings in one message, also where no body follows.
            (
                b"GET",
                b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                False,
            ),
            (b"GET", OK + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", False),
            (b"HEAD", OK + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n", False),
            # RFC 9110 §8.6: a 204 announces no body. Who does may send it, too.
            (b"GET", b"HTTP/1.1 204 X\r\nContent-Length: 5\r\n\r\n", False),
            (b"GET", b"HTTP/1.1 204 X\r\nTransfer-Encoding: chunked\r\n\r\n", False),
        ],
    )
    def test_reuse(self, method: bytes, raw: bytes, expected: bool) -> None:
        """As the standard has it, and no where a second reader could see another end."""
        assert read([raw], method).keep_alive is expected
        assert read(bytewise(raw), method).keep_alive is expected


class TestRefused:
    """What is no response, or one whose end is not sure."""

    @pytest.mark.parametrize(
        "raw",
        [
            b"\r\n" + OK + b"\r\n",
            b" " + OK + b"\r\n",
            b"\n",
            b"hello",
            b"\x16\x03\x01\x02\x00",
            b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
            b"SSH-2.0-OpenSSH\r\n",
            b"<html>",
            b"http/1.1 200 OK\r\n\r\n",
            b"HTTP/1.10 200 OK\r\n\r\n",
            b"HTTP/1.1  200 OK\r\n\r\n",
            b"HTTP/1.1\t200 OK\r\n\r\n",
            b"HTTP/1.1 200OK\r\n\r\n",
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"HTTP/1.1 2000 OK\r\n\r\n",
            b"HTTP/1.1 099 OK\r\n\r\n",
            b"HTTP/1.1 -20 OK\r\n\r\n",
            b"HTTP/1.1 \xb2\xb2\xb2 OK\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 200 a\rb\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 X\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nhello",
            b"HTTP/1.1 100 Continue\r\nno colon\r\n\r\n",
            OK + b"no colon\r\n\r\n",
            OK + b": no name\r\n\r\n",
            OK + b"A : blank before colon\r\n\r\n",
            OK + b"A\t: tab before colon\r\n\r\n",
            OK + b"A B: c\r\n\r\n",
            OK + b"A\xff: c\r\n\r\n",
            OK + b'"A": c\r\n\r\n',
            OK + b" A: leading blank\r\n\r\n",
            OK + b"A: b\rc\r\n\r\n",
            OK + b"A: b\0\r\n\r\n",
            OK + b"\tfolded: x\r\n\r\n",
            OK + b"Content-Length:\r\n\r\n",
            OK + b"Content-Length: -1\r\n\r\n",
            OK + b"Content-Length: +1\r\n\r\n",
            OK + b"Content-Length: 1.0\r\n\r\n",
            OK + b"Content-Length: 0x10\r\n\r\n",
            OK + b"Content-Length: 1_0\r\n\r\n",
            OK + b"Content-Length: 1 0\r\n\r\n",
            OK + b"Content-Length: 5, 6\r\n\r\n",
            OK + b"Content-Length: 5,\r\n\r\n",
            OK + b"Content-Length: 5, 05\r\n\r\n",
            OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
            OK + b"Content-Length: \xb2\r\n\r\n",
            OK + b"Content-Length: 99999999999999999999999\r\n\r\n",
            OK + b"Transfer-Encoding: gzip\r\n\r\n",
            OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
            OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n",
            OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n",
            OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            OK + b"Transfer-Encoding: identity\r\n\r\n",
            OK + b"Transfer-Encoding: xchunked\r\n\r\n",
            OK + b"Transfer-Encoding: \x0bchunked\r\n\r\n",
            OK + b"Transfer-Encoding: chunked;a=b\r\n\r\n",
            OK + b"Transfer-Encoding:\r\n\r\n",
            OK + b"Transfer-Encoding: chunked,\r\n\r\n",
            OK + b"Transfer-Encoding: x\r\nContent-Length: 5\r\n\r\nhello",
            CHUNKED + b"\r\n",
            CHUNKED + b" 5\r\nhello\r\n",
            CHUNKED + b"-5\r\nhello\r\n",
            CHUNKED + b"+5\r\nhello\r\n",
            CHUNKED + b"0x5\r\nhello\r\n",
            CHUNKED + b"5_0\r\nhello\r\n",
            CHUNKED + b"g\r\nhello\r\n",
            CHUNKED + b"5 5\r\nhello\r\n",
            CHUNKED + b";a\r\nhello\r\n",
            CHUNKED + b"5\nhello\r\n",
            CHUNKED + b"5\r\nhelloX\r\n",
            CHUNKED + b"5\r\nhello\n0\r\n\r\n",
            CHUNKED + b"5\r\nhello\r0\r\n\r\n",
            CHUNKED + b"5\r\nhello0\r\n\r\n",
            CHUNKED + b"4\r\nhello\r\n0\r\n\r\n",
            CHUNKED + b"FFFFFFFFFFFFFFFFF\r\n",
            CHUNKED + b"0\r\nno colon\r\n\r\n",
            CHUNKED + b"0\r\n: no name\r\n\r\n",
            CHUNKED + b"0\r\nA: b\rc\r\n\r\n",
        ],
    )
    def test_refused(self, raw: bytes) -> None:
        """With a `ProtocolError` that says what is wrong; and h11 refuses it as well, or waits for more."""
        assert refuses(raw)
        with pytest.raises(ProtocolError, match=r"[a-z]{3}"):
            ResponseReader(method=b"GET").receive(raw)
        theirs = ask_h11(raw, b"GET")
        assert theirs is None or not theirs.complete

    def test_what_came_before_a_fault_is_not_lost(self) -> None:
        """The head and the chunks before it are there for the client, who then sees a cut."""
        with pytest.raises(ProtocolError) as caught:
            ResponseReader(method=b"GET").receive(CHUNKED + b"5\r\nhello\r\n3\r\nyouX")
        received = caught.value.received
        assert received is not None
        assert received.head is not None
        assert received.head.status == 200
        assert received.body == b"helloyou"
        assert not received.complete

    def test_a_size_that_only_just_fits(self) -> None:
        """Sixteen hexadecimal digits are a size, though no such chunk will ever be whole."""
        outcome = read([CHUNKED + b"FFFFFFFFFFFFFFFF\r\nhello"])
        assert outcome.body == b"hello"
        assert not outcome.complete


EVERY_FRAMING = {
    "length": (b"GET", OK + b"Content-Length: 11\r\n\r\nhello world"),
    "chunked": (b"GET", CHUNKED + b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nA: b\r\n\r\n"),
    "close": (b"GET", OK + b"A: b\r\n\r\nhello world"),
    "interim": (b"POST", b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nhi"),
    "HEAD": (b"HEAD", OK + b"Content-Length: 11\r\n\r\n"),
    "204": (b"GET", b"HTTP/1.1 204 No Content\r\nA: b\r\n\r\n"),
    "304": (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 11\r\n\r\n"),
}


class TestTruncation:
    """Cut short, nothing looks whole."""

    @pytest.mark.parametrize("name", EVERY_FRAMING)
    def test_at_every_offset(self, name: str) -> None:
        """No beginning of a message is complete; and only a body without length may end with the connection."""
        method, raw = EVERY_FRAMING[name]
        end_of_head = raw.rindex(b"\r\n\r\n") + 4 if name != "chunked" else len(CHUNKED)
        for offset in range(len(raw)):
            for pieces in ([raw[:offset]], bytewise(raw[:offset])):
                outcome = read(pieces, method)
                assert not outcome.complete
                assert not outcome.refused
                assert outcome.closes is (name == "close" and offset >= end_of_head)
                assert (outcome.head is not None) is (offset >= end_of_head)
        outcome = read([raw], method)
        assert outcome.complete is (name != "close")
        assert outcome.closes is (name == "close")

    @settings(deadline=None)
    @given(messages())
    def test_of_any_message(self, message: Message) -> None:
        """The same of whatever hypothesis invents, one byte at a time."""
        reader = ResponseReader(method=message.method)
        for byte in bytewise(message.raw)[:-1]:
            assert not reader.receive(byte).complete
            assert reader.eof() is (reader.framing is Framing.CLOSE)
        last = reader.receive(message.raw[-1:])
        assert last.complete is (reader.framing is not Framing.CLOSE)
        assert reader.eof() is (reader.framing is Framing.CLOSE)


def head_of(size: int) -> bytes:
    """A head that takes so many bytes before its blank line."""
    start = OK + b"Content-Length: 0\r\nA: "
    return start + b"x" * (size - len(start)) + b"\r\n\r\n"


def trailers_of(size: int, lines: int) -> bytes:
    """So many trailer lines, of so many bytes together without their line ends."""
    sizes = [size // lines] * (lines - 1)
    sizes.append(size - sum(sizes))
    return CHUNKED + b"0\r\n" + b"".join(b"A:" + b"x" * (each - 2) + b"\r\n" for each in sizes) + b"\r\n"


def around_the_end(raw: bytes) -> list[list[bytes]]:
    """In one piece, and cut at each of the last bytes."""
    return [[raw], *([raw[:-back], *bytewise(raw[-back:])] for back in range(1, 9))]


class TestLimits:
    """What the peer may make us hold is bounded, and the bound does not depend on the split."""

    def test_head(self) -> None:
        """`MAX_HEAD_BYTES` pass, one more does not."""
        for pieces in around_the_end(head_of(LIMIT)):
            assert read(pieces).complete
        for pieces in around_the_end(head_of(LIMIT + 1)):
            assert read(pieces).refused

    def test_head_without_end(self) -> None:
        """It is refused as soon as it is too long, not when it ends."""
        reader = ResponseReader(method=b"GET")
        reader.receive(OK + b"A: ")
        for _ in range(LIMIT // 1024 - 1):
            reader.receive(b"x" * 1024)
        with pytest.raises(ProtocolError, match=f"longer than {LIMIT} bytes"):
            reader.receive(b"x" * 1024)

    def test_interim_heads_count_each_for_itself(self) -> None:
        """Not together: a long wait may bring many of them."""
        interim = b"HTTP/1.1 102 Processing\r\nA: " + b"x" * (LIMIT - 60) + b"\r\n\r\n"
        assert read([interim] * 3 + [OK + b"Content-Length: 0\r\n\r\n"]).complete
        assert read([interim * 3 + OK + b"Content-Length: 0\r\n\r\n"]).complete

    def test_chunk_line(self) -> None:
        """`MAX_CHUNK_LINE_BYTES` pass, one more does not."""
        limit = http1.MAX_CHUNK_LINE_BYTES
        for size, passes in ((limit, True), (limit + 1, False)):
            raw = CHUNKED + b"1;" + b"x" * (size - 2) + b"\r\n"
            for pieces in around_the_end(raw):
                outcome = read([*pieces, b"!\r\n0\r\n\r\n"])
                assert outcome.complete is passes
                assert outcome.refused is not passes

    @pytest.mark.parametrize("lines", [1, 2, 100])
    def test_trailers(self, lines: int) -> None:
        """`MAX_TRAILER_BYTES` pass, one more does not, in however many lines."""
        limit = http1.MAX_TRAILER_BYTES
        for pieces in around_the_end(trailers_of(limit, lines)):
            assert read(pieces).complete
        for pieces in around_the_end(trailers_of(limit + 1, lines)):
            assert read(pieces).refused

    @pytest.mark.parametrize(
        ("start", "limit"),
        [(CHUNKED + b"1;", http1.MAX_CHUNK_LINE_BYTES), (CHUNKED + b"0\r\nA: ", http1.MAX_TRAILER_BYTES)],
    )
    def test_lines_without_end(self, start: bytes, limit: int) -> None:
        """They are refused as soon as they are too long."""
        reader = ResponseReader(method=b"GET")
        reader.receive(start)
        for _ in range(limit // 1024 - 1):
            reader.receive(b"x" * 1024)
        with pytest.raises(ProtocolError, match=f"longer than {limit} bytes"):
            reader.receive(b"x" * 1024)


class Meter:
    """Counts the bytes that are searched or moved, in what it makes."""

    def __init__(self) -> None:
        self.touched = 0

    def piece(self, data: bytes) -> bytes:
        made = MeteredBytes(data)
        made.meter = self
        return made

    def buffer(self) -> bytearray:
        made = MeteredArray()
        made.meter = self
        return made

    def search(self, data: bytes | bytearray, sub: Any, start: int, found: int) -> None:
        self.touched += (len(data) if found < 0 else found + len(sub)) - start


class MeteredBytes(bytes):
    meter: Meter

    def find(self, sub: Any, start: Any = 0, end: Any = None, /) -> int:
        found = super().find(sub, start, end)
        self.meter.search(self, sub, start, found)
        return found

    def count(self, sub: Any, start: Any = 0, end: Any = None, /) -> int:
        self.meter.search(self, sub, start, -1)
        return super().count(sub, start, end)

    def __getitem__(self, index: Any, /) -> Any:
        part = super().__getitem__(index)
        self.meter.touched += len(part) if isinstance(part, bytes) else 1
        return part


class MeteredArray(bytearray):
    meter: Meter

    def find(self, sub: Any, start: Any = 0, end: Any = None, /) -> int:
        found = super().find(sub, start, end)
        self.meter.search(self, sub, start, found)
        return found

    def count(self, sub: Any, start: Any = 0, end: Any = None, /) -> int:
        self.meter.search(self, sub, start, -1)
        return super().count(sub, start, end)

    def __getitem__(self, index: Any, /) -> Any:
        part = super().__getitem__(index)
        self.meter.touched += len(part) if isinstance(part, bytearray) else 1
        return part

    def __iadd__(self, more: Any, /) -> Self:  # type: ignore[misc]
        self.meter.touched += len(more)
        return super().__iadd__(more)

    def __delitem__(self, index: Any, /) -> None:
        before = len(self)
        super().__delitem__(index)
        # At worst, what is left is moved.
        self.meter.touched += len(self) if len(self) != before else 0


def field_block(size: int) -> bytes:
    return b"".join(b"A%d: b\r\n" % number for number in range(size // 9))


LONG = {
    "one long field": head_of(LIMIT),
    "many fields": OK + field_block(LIMIT // 2) + b"Content-Length: 0\r\n\r\n",
    "many interim heads": b"HTTP/1.1 102 X\r\n\r\n" * 2000 + OK + b"Content-Length: 0\r\n\r\n",
    "long interim heads": (b"HTTP/1.1 102 X\r\nA: " + b"x" * 30000 + b"\r\n\r\n") * 3
    + OK
    + b"Content-Length: 0\r\n\r\n",
    "one long trailer": trailers_of(http1.MAX_TRAILER_BYTES, 1),
    "many trailers": trailers_of(http1.MAX_TRAILER_BYTES, 4000),
    "long chunk lines": CHUNKED + (b"1;" + b"x" * 4000 + b"\r\n!\r\n") * 8 + b"0\r\n\r\n",
    "blanks in chunk lines": CHUNKED + (b"1" + b" " * 2000 + b";" + b" " * 2000 + b"\r\n!\r\n") * 8 + b"0\r\n\r\n",
    "tiny chunks": CHUNKED + b"1\r\n!\r\n" * 5000 + b"0\r\n\r\n",
    "one chunk": CHUNKED + b"c350\r\n" + b"\r\n" * 25000 + b"\r\n0\r\n\r\n",
    "a length": OK + b"Content-Length: 50000\r\n\r\n" + b"\n" * 50000,
}


class TestCost:
    """No input makes the reader work more than in proportion: counted in bytes touched, not by the clock."""

    @pytest.mark.parametrize("size", [1, 1000, 1 << 30])
    @pytest.mark.parametrize("name", LONG)
    def test_is_linear(self, name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """However long the unfinished thing is and however small the pieces, a byte is looked at a few times."""
        raw = LONG[name]
        meter = Meter()
        monkeypatch.setattr(http1, "bytearray", meter.buffer, raising=False)
        reader = ResponseReader(method=b"GET")
        complete = False
        for start in range(0, len(raw), size):
            complete = reader.receive(meter.piece(raw[start : start + size])).complete
        assert complete
        # Some 15 for the bytes of a head that come one by one. Looking at all again for each would be 32,000.
        assert 0 < meter.touched < 25 * len(raw)

    def test_the_meter_sees_a_quadratic_reader(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that searches from the beginning each time, that is."""
        meter = Meter()
        buffer = meter.buffer()
        raw = LONG["one long field"][:4000]
        for byte in bytewise(raw):
            buffer += byte
            buffer.find(b"\r\n\r\n")
        assert meter.touched > 1000 * len(raw)

    @pytest.mark.parametrize("piece", [64 * 1024, 1 << 30])
    def test_a_huge_chunk_is_copied_once(self, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Eight megabytes of body, in one chunk, are not moved around."""
        meter = Meter()
        monkeypatch.setattr(http1, "bytearray", meter.buffer, raising=False)
        size = 8 * 1024 * 1024
        raw = CHUNKED + b"%x\r\n" % size + bytes(size) + b"\r\n0\r\n\r\n"
        reader = ResponseReader(method=b"GET")
        bodies: Sequence[bytes] = [
            reader.receive(meter.piece(raw[start : start + piece])).body for start in range(0, len(raw), piece)
        ]
        assert sum(map(len, bodies)) == size
        # In one piece, once more: behind the head.
        assert meter.touched < (2.1 if piece > size else 1.1) * size
