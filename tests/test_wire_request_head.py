"""Heads of requests: what is read, what is refused, and that a second strict reader agrees."""

from __future__ import annotations

from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.web.http_headers import Headers

from twisted_proxy.relay.fields import headers_of
from twisted_proxy.wire.http1 import ProtocolError
from twisted_proxy.wire.request_head import MAX_FIELDS, RequestHead, parse

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
        (lines(b"X http://y/ HTTP/1.1", b"Host:"), (b"X", b"http://y/", b"HTTP/1.1", [(b"Host", b"")], 0)),
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


