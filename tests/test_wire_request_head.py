"""Heads of requests: what is read, what is refused, and that a second strict reader agrees."""

from __future__ import annotations

from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.web.http_headers import Headers

from twisted_proxy.fields import headers_of
from twisted_proxy.wire.http1 import ProtocolError
from twisted_proxy.wire.request_head import MAX_FIELDS, RequestHead, parse
from twisted_proxy.wire.target import BadTarget
from twisted_proxy.wire.target import parse as parse_target

HOST = (b"Host", b"x")
TOKEN_BYTES = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CONTROLS = [bytes([number]) for number in (*range(0x09), *range(0x0A, 0x20), 0x7F)]
"""All but HTAB."""


def lines(*head: bytes) -> bytes:
    return b"\r\n".join(head)


def post(*fields: bytes) -> bytes:
    return lines(b"POST /a HTTP/1.1", b"Host: x", *fields)


def by_h11(block: bytes) -> RequestHead | None:
    """The head as h11's server reads it; ``None`` where it refuses, or sees none."""
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    reader.receive_data(block + b"\r\n\r\n")
    try:
        event = reader.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, h11.Request):
        return None
    length: int | None = 0
    for name, value in event.headers:
        if name == b"transfer-encoding":
            length = None
        elif name == b"content-length":
            length = int(value)
    fields: list[tuple[bytes, bytes]] = list(event.headers.raw_items())
    return RequestHead(event.method, event.target, b"HTTP/" + event.http_version, fields, length)


# What is read


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (lines(b"GET / HTTP/1.1", b"Host: x"), (b"GET", b"/", b"HTTP/1.1", [HOST], 0)),
        (b"GET / HTTP/1.0", (b"GET", b"/", b"HTTP/1.0", [], 0)),
        (lines(b"get /a?b#c HTTP/1.1", b"hOsT:x"), (b"get", b"/a?b#c", b"HTTP/1.1", [(b"hOsT", b"x")], 0)),
        (lines(b"OPTIONS * HTTP/1.1", b"Host: x"), (b"OPTIONS", b"*", b"HTTP/1.1", [HOST], 0)),
        (lines(b"X http://y/ HTTP/1.1", b"Host: y:80"), (b"X", b"http://y/", b"HTTP/1.1", [(b"Host", b"y:80")], 0)),
        (post(b"A: 1", b"a: 2", b"A: 1"), [HOST, (b"A", b"1"), (b"a", b"2"), (b"A", b"1")]),
        (post(b"A:\t \tb\tc  d \t "), [HOST, (b"A", b"b\tc  d")]),
        (post(b"A:", b"B: \t", b"C: :"), [HOST, (b"A", b""), (b"B", b""), (b"C", b":")]),
        (post(b"A: \x80\xff"), [HOST, (b"A", b"\x80\xff")]),
        (post(b"Content-Length: 5"), 5),
        (post(b"Content-Length: 0"), 0),
        (post(b"Content-Length: 0007"), 7),
        (post(b"cOnTeNt-LeNgTh:\t5 "), 5),
        (post(b"Content-Length: " + b"9" * 18), 10**18 - 1),
        (post(b"Transfer-Encoding: chunked"), None),
        (post(b"TRANSFER-ENCODING: \tCHUNKED "), None),
        # Names of the same lengths, and names that only begin so.
        (post(b"Content-Lengti: +5", b"Transfer-Encodinh: x", b"Content-Length-: x", b"Content-Length: 1"), 1),
    ],
)
def test_what_is_read(block: bytes, expected: Any) -> None:
    """Method, target, version, fields in their order and spelling, and the length; and h11 reads the same."""
    head = parse(block)
    if isinstance(expected, tuple):
        assert head == RequestHead(*expected)
    elif isinstance(expected, list):
        assert head.fields == expected
    else:
        assert head.length == expected
    theirs = by_h11(block)
    assert theirs is not None
    assert normal(theirs) == normal(head)


@pytest.mark.parametrize("number", sorted(TOKEN_BYTES))
def test_every_byte_of_a_token(number: int) -> None:
    """In methods and names."""
    token = bytes([number])
    head = parse(lines(token + b" / HTTP/1.1", b"Host: x", token + b": y"))
    assert (head.method, head.fields[1]) == (token, (token, b"y"))


def test_no_other_byte_is_one_of_a_token() -> None:
    """Neither alone nor at the end of a name."""
    for number in set(range(256)) - set(TOKEN_BYTES):
        for token in (bytes([number]), b"A" + bytes([number])):
            with pytest.raises(ProtocolError):
                parse(lines(token + b" / HTTP/1.1", b"Host: x"))
            if number != ord(":"):
                with pytest.raises(ProtocolError):
                    parse(post(token + b": y"))


def test_as_many_fields_as_allowed_and_one_more() -> None:
    """500, of which one is `Host`."""
    fields = [b"x-%d: y" % number for number in range(MAX_FIELDS - 1)]
    assert len(parse(post(*fields)).fields) == MAX_FIELDS == 500
    with pytest.raises(ProtocolError, match="more than 500"):
        parse(post(*fields, b"z: z"))


# What is refused

BAD_REQUEST_LINES = [
    b"",
    b" ",
    b"GET",
    b"GET /",
    b"GET / ",
    b"GET  HTTP/1.1",
    b"/ HTTP/1.1",
    b" / HTTP/1.1",
    b" GET / HTTP/1.1",
    b"\tGET / HTTP/1.1",
    b"GET  / HTTP/1.1",
    b"GET /  HTTP/1.1",
    b"GET\t/ HTTP/1.1",
    b"GET /\tHTTP/1.1",
    b"GET / HTTP/1.1 ",
    b"GET / HTTP/1.1\t",
    b"GET / HTTP/1.1 x",
    b"GET /a b HTTP/1.1",
    b"GET /\x80\xa0b c HTTP/1.1",
    b"GET / HTTP/1",
    b"GET / HTTP/1.",
    b"GET / HTTP/.1",
    b"GET / HTTP/1.2",
    b"GET / HTTP/1.10",
    b"GET / HTTP/01.1",
    b"GET / HTTP/0.9",
    b"GET / HTTP/2",
    b"GET / HTTP/2.0",
    b"PRI * HTTP/2.0",
    b"GET / http/1.1",
    b"GET / HTTP/1,1",
    b"GET / HTTP/1.1\r",
    b"GET / HTTP/1.1\n",
    b"G(T / HTTP/1.1",
    b"GET: / HTTP/1.1",
    b"\xefGET / HTTP/1.1",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    *(b"GET /" + control + b" HTTP/1.1" for control in CONTROLS),
]

BAD_FIELDS = [
    b"A",
    b": b",
    b":",
    b" A: b",
    b"A : b",
    b"A\t: b",
    b"A b: c",
    b" folded",
    b"\tfolded",
    b" ",
    b"\x80: b",
    b"A\x00: b",
    b"A\rB: c",
    b"A: b\r",
    b"A: b\rB: c",
    b"A: b\nB: c",
    b"A: b\n c",
    b"\rA: b",
    b"(A): b",
    b'"A": b',
    b"A,B: c",
    *(b"A: b" + control + b"c" for control in CONTROLS),
]

BAD_FRAMING = [
    [b"Content-Length: "],
    [b"Content-Length: +5"],
    [b"Content-Length: -5"],
    [b"Content-Length: 5, 5"],
    [b"Content-Length: 5,"],
    [b"Content-Length: 5 5"],
    [b"Content-Length: 0x5"],
    [b"Content-Length: 5.0"],
    [b"Content-Length: 5e1"],
    [b"Content-Length: 1_000"],
    [b"Content-Length: '5'"],
    [b"Content-Length: \xb2"],
    [b"Content-Length: \xd9\xa5"],
    [b"Content-Length: " + b"9" * 19],
    [b"Content-Length: " + b"0" * 18 + b"5"],
    [b"Content-Length: " + b"9" * 5000],
    [b"Content-Length: 5", b"Content-Length: 5"],
    [b"Content-Length: 5", b"content-length: 6"],
    [b"Content-Length: 0", b"Content-Length: 0"],
    [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
    [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
    [b"Transfer-Encoding: chunked", b"Content-Length: 0"],
    [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
    [b"Transfer-Encoding: chunked", b"transfer-encoding: identity"],
    [b"Transfer-Encoding: gzip, chunked"],
    [b"Transfer-Encoding: chunked, chunked"],
    [b"Transfer-Encoding: chunked, gzip"],
    [b"Transfer-Encoding: chunked,"],
    [b"Transfer-Encoding: ,chunked"],
    [b"Transfer-Encoding: chunked;q=1"],
    [b"Transfer-Encoding: xchunked"],
    [b"Transfer-Encoding: chunke\xe4"],
    [b"Transfer-Encoding: identity"],
    [b"Transfer-Encoding: gzip"],
    [b"Transfer-Encoding:"],
    [b'Transfer-Encoding: "chunked"'],
    [b"Transfer-Encoding: \x0bchunked"],
    [b"Host: x"],
    [b"host: y"],
]


@pytest.mark.parametrize("line", BAD_REQUEST_LINES)
def test_a_request_line_that_is_none(line: bytes) -> None:
    """Three parts, one blank between them, HTTP/1.0 or HTTP/1.1; nothing before, behind or within."""
    with pytest.raises(ProtocolError):
        parse(lines(line, b"Host: x"))


@pytest.mark.parametrize("line", BAD_FIELDS)
def test_a_field_that_is_none(line: bytes) -> None:
    """Wherever it stands."""
    for block in (
        lines(b"GET / HTTP/1.1", line, b"Host: x"),
        lines(b"GET / HTTP/1.1", b"Host: x", line, b"Z: z"),
        lines(b"GET / HTTP/1.1", b"Host: x", line),
    ):
        with pytest.raises(ProtocolError):
            parse(block)


@pytest.mark.parametrize("fields", BAD_FRAMING)
def test_framing_that_two_readers_could_read_differently(fields: list[bytes]) -> None:
    """Also with other fields between; and two `Host` fields, of which two readers could choose different ones."""
    for block in (post(*fields), lines(b"POST /a HTTP/1.1", b"\r\nA: b\r\n".join([*fields, b"Host: x"]))):
        with pytest.raises(ProtocolError):
            parse(block)


def test_chunks_are_of_http_1_1() -> None:
    """RFC 9112 §6.1: who sends them in HTTP/1.0 did not mean them, or forwards what it did not read."""
    with pytest.raises(ProtocolError):
        parse(lines(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked"))
    assert parse(lines(b"POST / HTTP/1.0", b"Content-Length: 1")).length == 1


def test_http_1_1_has_a_host() -> None:
    """RFC 9112 §3.2: 400 without one; HTTP/1.0 need not have it."""
    with pytest.raises(ProtocolError, match="Host"):
        parse(b"GET / HTTP/1.1")
    with pytest.raises(ProtocolError, match="Host"):
        parse(lines(b"GET / HTTP/1.0", b"Host: x", b"Host: x"))
    assert parse(b"GET / HTTP/1.0").fields == []


def test_a_refusal_quotes_nothing() -> None:
    """It goes to whoever sent this, and may go to a log: a credential in the wrong place stays out of both."""
    secret = b"sk-ant-s3cr3t"
    for block in (
        secret,
        b"GET /%b HTTP/1.2" % secret,
        post(secret),
        post(b"X-Api-Key : " + secret),
        post(b"X-Api-Key: %b\x00" % secret),
        post(b"Content-Length: " + secret),
        post(b"Transfer-Encoding: " + secret),
    ):
        with pytest.raises(ProtocolError) as caught:
            parse(block)
        assert secret.decode() not in str(caught.value)


# Beside h11


def normal(head: RequestHead) -> RequestHead:
    """As h11 shows it: codings in lower case."""
    fields = [(name, value.lower() if name.lower() == b"transfer-encoding" else value) for name, value in head.fields]
    return head._replace(fields=fields)


STRICTER = [
    # h11 reads these; we do not: the head, and why.
    (post(b"A: b", b" c"), "obs-fold: RFC 9112 §5.2 has a server refuse it, or join it as every reader before it did"),
    (b"GET / HTTP/1.1\nHost: x", "LF for CRLF: RFC 9112 §2.2 lets it be, and readers differ in whether they do"),
    (post(b"A: b\x01c"), "control characters: RFC 9110 §5.5 calls the field invalid"),
    (post(b"A: b\x7fc"), "DEL is one"),
    (post(b"Content-Length: 5", b"Content-Length: 5"), "several lengths: RFC 9112 §6.3 lets either be done"),
    (post(b"Content-Length: 5, 5"), "the same in one field"),
    (post(b"Content-Length: " + b"9" * 19), "more bytes than there are: may overflow elsewhere"),
    (post(b"Content-Length: 5", b"Transfer-Encoding: chunked"), "RFC 9112 §6.1: ought to be handled as an error"),
    (lines(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked"), "RFC 9112 §6.1: the framing is faulty"),
    (lines(b"GET / HTTP/1.2", b"Host: x"), "a version that nobody has described"),
    (lines(b"GET / HTTP/2.0", b"Host: x"), "not the version of these bytes"),
    (lines(b"GET / HTTP/0.9", b"Host: x"), "HTTP/0.9 has no version, and no fields"),
    (post(*[b"x: y"] * 500), "more fields than anybody has"),
]

LAXER = [
    (lines(b"GET /\xc3\xa4 HTTP/1.1", b"Host: x"), "`wire.target` refuses it, and says what to do"),
]


@pytest.mark.parametrize(("block", "why"), STRICTER)
def test_where_we_are_stricter(block: bytes, why: str) -> None:
    """Each with its reason."""
    assert why
    assert by_h11(block) is not None
    with pytest.raises(ProtocolError):
        parse(block)


@pytest.mark.parametrize(("block", "why"), LAXER)
def test_where_we_are_not(block: bytes, why: str) -> None:
    """What passes here is refused by the next who reads it."""
    assert why
    assert by_h11(block) is None
    with pytest.raises(BadTarget):
        parse_target(parse(block).target)


token = st.text(TOKEN_BYTES.decode(), min_size=1, max_size=8).map(str.encode)
value = st.binary(max_size=12).map(
    lambda raw: bytes(byte for byte in raw if byte == 9 or (byte >= 32 and byte != 127)).strip(b" \t")
)
blanks = st.sampled_from([b"", b" ", b"\t", b" \t "])
request_target = st.text("/abcXYZ019?&=%~._-;:@", min_size=1, max_size=16).map(str.encode)
framing = st.sampled_from(
    [(), (), (b"Content-Length: 3",), (b"content-length:007",), (b"Transfer-Encoding: chunked",), (b"TE: trailers",)]
)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Heads that RFC 9112 allows, with at most one field that frames."""
    fields = [
        name + b":" + draw(blanks) + draw(value) + draw(blanks)
        for name in draw(st.lists(token, max_size=5))
        if name.lower() not in (b"host", b"content-length", b"transfer-encoding")
    ]
    fields += [b"Host: x", *draw(framing)]
    fields = draw(st.permutations(fields))
    return lines(draw(token) + b" " + draw(request_target) + b" HTTP/1.1", *fields)


mutation = st.tuples(
    st.sampled_from(["insert", "replace", "delete", "repeat"]),
    st.integers(0, 300),
    st.sampled_from(
        [
            *(
                b"\r",
                b"\n",
                b"\r\n",
                b"\x00",
                b" ",
                b"\t",
                b":",
                b",",
                b"\x0b",
                b"\x7f",
                b"\x80",
                b"0",
                b"x",
                b"HTTP/1.0",
            ),
            *(b"\r\nHost: y", b"\r\nContent-Length: 3", b"\r\nTransfer-Encoding: chunked", b"\r\n x", b"5, 5", b"+"),
        ]
    ),
)


def mutated(block: bytes, mutations: list[tuple[str, int, bytes]]) -> bytes:
    for how, where, what in mutations:
        at = where % (len(block) + 1)
        if how == "insert":
            block = block[:at] + what + block[at:]
        elif how == "replace":
            block = block[:at] + what + block[at + len(what) :]
        elif how == "delete":
            block = block[:at] + block[at + 1 :]
        else:
            block = block[:at] + block[max(0, at - 9) :]
    return block


@settings(deadline=None, max_examples=200)
@given(heads())
def test_what_is_valid_is_read_as_h11_reads_it(block: bytes) -> None:
    """Method, target, version, fields and framing."""
    assert normal(parse(block)) == by_h11(block)


@settings(deadline=None, max_examples=500)
@given(heads(), st.lists(mutation, min_size=1, max_size=3))
def test_what_h11_refuses_is_refused(block: bytes, mutations: list[tuple[str, int, bytes]]) -> None:
    """And what both read they read alike."""
    block = mutated(block, mutations)
    try:
        ours = parse(block)
    except ProtocolError:
        return
    if any(byte > 126 for byte in ours.target):
        return
    assert normal(ours) == by_h11(block)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_anything_else_is_no_request(block: bytes) -> None:
    """Bytes of any kind are refused in order, not with an error of ours."""
    with pytest.raises(ProtocolError):
        parse(block)


# As Twisted holds them


@settings(deadline=None)
@given(st.lists(st.tuples(st.one_of(token, st.sampled_from([b"ETAG", b"www-authenticate", b"x-A", b"X-a"])), value)))
def test_headers_of_fields(fields: list[tuple[bytes, bytes]]) -> None:
    """Those that Twisted's own methods would have made: names, case, order, repeats."""
    expected = Headers()
    for name, field_value in fields:
        expected.addRawHeader(name, field_value)
    headers = headers_of(fields)
    assert headers == expected
    assert list(headers.getAllRawHeaders()) == list(expected.getAllRawHeaders())
    for name, _ in fields:
        assert headers.getRawHeaders(name) == expected.getRawHeaders(name)


def test_headers_of_fields_can_be_changed() -> None:
    """They are nobody else's."""
    headers = headers_of([(b"a", b"1"), (b"A", b"2"), (b"b", b"3")])
    headers.addRawHeader(b"a", b"4")
    headers.removeHeader(b"B")
    headers.setRawHeaders(b"c", [b"5"])
    assert list(headers.getAllRawHeaders()) == [(b"A", [b"1", b"2", b"4"]), (b"C", [b"5"])]
    assert list(headers_of([]).getAllRawHeaders()) == []
