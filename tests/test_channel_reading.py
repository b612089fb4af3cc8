"""Requests as the front reads them off a connection: what passes, what is refused, in whatever pieces they come."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_proxy.web import channel as channel_module
from twisted_proxy.web import request as request_module
from twisted_proxy.web.channel import LINGER, MAX_HEADER_BYTES, MAX_PIPELINED_BYTES
from twisted_proxy.web.request import LARGE_BODY, MemoryBody

from .exchange import (
    HEADER_TIMEOUT,
    IDLE_TIMEOUT,
    OK,
    READ_TIMEOUT,
    Outcome,
    answers_in,
    by_h11,
    exchange,
    is_beginning,
    listening,
    unchanged,
)
from .memory import LAST_CHUNK, STREAM_HEAD, Client, InMemoryProxy, captured, chunk
from .request_table import CHUNKED, EXPECTED, GET, PAGE, PAGE_PASSES, PASSES, POST, field, head_of


def splits(raw: bytes) -> list[list[bytes]]:
    """Whole, byte by byte, and once at each place; only around the ends of what is long."""
    if len(raw) > 1024:
        end = raw.find(b"\r\n\r\n") % len(raw)
        cuts = {at for near in (0, end, len(raw)) for at in range(near - 3, near + 9) if 0 < at < len(raw)}
        return [[raw], *([raw[:at], raw[at:]] for at in sorted(cuts))]
    middle = [[raw[:at], raw[at:]] for at in range(1, len(raw))]
    return [[raw], [raw[at : at + 1] for at in range(len(raw))], *middle]


# One request, and what becomes of it


@pytest.mark.parametrize("number", range(len(EXPECTED)))
def test_what_becomes_of_it(number: int) -> None:
    """
    Whole, byte by byte and cut at each place: the same.

    What passes is forwarded once and answered; what does not is refused by one answer, or by the clock where more
    could come. There is one access line for each answer, nothing stays counted, no timer is left.
    """
    raw, expected = EXPECTED[number]
    first: Outcome | None = None
    for pieces in splits(raw):
        outcome = exchange(pieces, max_body_bytes=1000, max_message_bytes=1000)
        if expected == PASSES:
            assert (outcome.statuses, outcome.late, len(outcome.forwarded)) == ([200], [], 1)
        elif expected == PAGE_PASSES:
            assert (outcome.statuses, outcome.late, outcome.forwarded) == ([200], [], [])
        elif expected == "silence":
            assert (outcome.statuses, outcome.late, outcome.forwarded) == ([], [], [])
        elif expected == 408:
            assert (outcome.statuses, outcome.late, outcome.forwarded) == ([], [408], [])
        else:
            assert (outcome.statuses, outcome.late, outcome.forwarded) == ([expected], [], [])
        unlogged = expected in (PAGE_PASSES, "silence")
        assert len(outcome.access) == (0 if unlogged else 1)
        first = first or outcome
        assert outcome == first


def test_a_refusal_is_an_envelope_and_closes() -> None:
    """For every refusal of the table: JSON of ours, our id, `Connection: close`, and FIN after it."""
    types = {
        400: "invalid_request_error",
        408: "timeout_error",
        413: "request_too_large",
        431: "invalid_request_error",
    }
    seen = set()
    for raw, expected in EXPECTED:
        if expected not in types:
            continue
        proxy = InMemoryProxy(read_timeout=READ_TIMEOUT, max_body_bytes=1000)
        client = proxy.client()
        client.send(raw)
        proxy.clock.advance(READ_TIMEOUT if expected == 408 else 0)
        answer = client.answer()
        assert (answer.status, answer.outcome, answer.rest) == (expected, "complete", b"")
        assert answer.json["error"]["type"] == types[answer.status]
        assert answer.json["request_id"] == answer.header("x-proxy-request-id")
        assert answer.header("content-type") == "application/json"
        closing = client.closed_by is not None
        # A target that may not go on is no fault of the framing: that connection stays.
        assert (answer.header("connection") == "close") == closing
        seen.add((expected, closing))
    assert seen == {(400, True), (400, False), (408, True), (413, True), (431, True)}


# Beside h11


body_text = st.binary(max_size=12)
extra_fields = st.lists(st.sampled_from([b"A: b", b"a:c", b"X-Y: z ", b"Accept: */*", b"Expect: 100-continue"]))


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One valid request, for the upstream or for a page."""
    line = draw(
        st.sampled_from(
            [b"POST /v1/files HTTP/1.1", b"GET /v1/models?x HTTP/1.1", b"PUT /v1/a HTTP/1.1", b"GET /nope HTTP/1.1"]
        )
    )
    head = b"\r\n".join([line, b"Host: x", *draw(extra_fields)]) + b"\r\n"
    how = draw(st.sampled_from(["none", "length", "chunks"]))
    body = draw(body_text)
    if how == "none":
        return head + b"\r\n"
    if how == "length":
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunks = b"".join(
        b"%x" % len(piece) + draw(st.sampled_from([b"", b";a", b"; b=c"])) + b"\r\n" + piece + b"\r\n"
        for piece in (body[:5], body[5:])
        if piece
    )
    trailer = draw(st.sampled_from([b"", b"", b"T: u\r\n"]))
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + trailer + b"\r\n"


@settings(deadline=None, max_examples=100)
@given(st.lists(requests(), min_size=1, max_size=4))
def test_what_h11_reads_is_forwarded(raws: list[bytes]) -> None:
    """Method, target, fields and body of each request, in their order; pages are answered between them."""
    expected = by_h11(b"".join(raws))
    assert expected is not None
    assert len(expected) == len(raws)
    outcome = exchange([b"".join(raws)])
    assert outcome.statuses == [200 if request.target.startswith(b"/v1") else 404 for request in expected]
    assert [unchanged(request) for request in outcome.forwarded] == [
        unchanged(request) for request in expected if request.target.startswith(b"/v1")
    ]


noise = st.tuples(
    st.integers(0, 400),
    st.integers(0, 3),
    st.sampled_from(
        [
            *(b"", b"\r", b"\n", b"\r\n", b"\x00", b" ", b":", b";", b"0", b"5", b"x", b"0\r\n\r\n"),
            *(b"\r\nContent-Length: 3", b"\r\nTransfer-Encoding: chunked", b"\r\nHost: y", b"GET /v1/z HTTP/1.1\r\n"),
        ]
    ),
)


def noisy(raw: bytes, mutations: list[tuple[int, int, bytes]]) -> bytes:
    for where, removed, what in mutations:
        at = where % (len(raw) + 1)
        raw = raw[:at] + what + raw[at + removed :]
    return raw


@settings(deadline=None, max_examples=200)
@given(st.lists(requests(), min_size=1, max_size=3), st.lists(noise, min_size=1, max_size=3))
def test_nothing_is_forwarded_that_h11_does_not_read(
    raws: list[bytes], mutations: list[tuple[int, int, bytes]]
) -> None:
    """Whatever is forwarded is a beginning of what h11 reads: never another request, never one more."""
    raw = noisy(b"".join(raws), mutations)
    assert is_beginning(exchange([raw]).forwarded, raw)


@st.composite
def cut(draw: st.DrawFn, raw: bytes) -> list[bytes]:
    places = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    return [raw[start:end] for start, end in zip([0, *places], [*places, len(raw)], strict=True)]


@settings(deadline=None, max_examples=60)
@given(st.lists(requests(), min_size=1, max_size=3), st.lists(noise, max_size=2), st.data())
def test_how_it_is_cut_does_not_matter(
    raws: list[bytes], mutations: list[tuple[int, int, bytes]], data: st.DataObject
) -> None:
    """Whole, byte by byte and in any pieces: the same requests upstream, the same answers and access lines."""
    raw = noisy(b"".join(raws), mutations)
    whole = exchange([raw])
    for pieces in ([raw[at : at + 1] for at in range(len(raw))], data.draw(cut(raw))):
        outcome = exchange(pieces)
        assert outcome == whole


# Several requests on one connection


def page(body: bytes) -> bytes:
    return b"POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def chunked_page(body: bytes) -> bytes:
    return b"POST /nope HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(body) + LAST_CHUNK


@pytest.mark.parametrize(("make", "count"), [(page, 10_000), (chunked_page, 2_000)])
def test_thousands_of_requests_in_one_piece(make: Any, count: int) -> None:
    """Answered one after the other, not one within the other. Seconds, because it is that many."""
    proxy = InMemoryProxy()
    client = proxy.client()
    client.send(b"".join(make(b"%d" % number) for number in range(count)))
    assert client.written.count(b"HTTP/1.1 404 ") == count
    client.send(PAGE)
    assert client.written.count(b"HTTP/1.1 200 ") == 1
    assert client.closed_by is None


@pytest.mark.parametrize("make", [page, chunked_page])
def test_thousands_of_requests_behind_one_that_waits(make: Any) -> None:
    """The same where they were put aside, and are read from within the end of an answer."""
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    behind = b"".join(make(b"%d" % number) for number in range(2_000))
    for at in range(0, len(behind), 65536):
        client.send(behind[at : at + 65536])
    assert client.written == b""
    upstream.send(OK)
    assert client.written.count(b"HTTP/1.1 404 ") == 2_000


class Counted(bytes):
    """Bytes of which each copied part is counted, and each part of a part."""

    copied = 0

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        if not isinstance(key, slice):
            return part
        if len(part) != len(self):
            Counted.copied += len(part)
        return Counted(part)


def test_many_requests_in_one_piece_cost_what_they_cost_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the piece is not copied for each: no more than each byte a few times."""
    for number in (10, 1000):
        monkeypatch.setattr(Counted, "copied", 0)
        raw = Counted(PAGE * number + page(b"body") * number)
        # The piece as it is handed to the decoders keeps the count.
        monkeypatch.setattr(channel_module, "bytes", lambda part: part, raising=False)
        client = InMemoryProxy().client()
        client.send(raw)
        assert client.written.count(b"HTTP/1.1 ") == 2 * number
        assert 0 < Counted.copied <= 4 * len(raw)


def test_half_a_request_behind_a_whole_one() -> None:
    """Waits for its other half, and is a request that is being received."""
    proxy = InMemoryProxy(read_timeout=READ_TIMEOUT, idle_timeout=IDLE_TIMEOUT)
    client = proxy.client()
    second = b"POST /v1/b HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
    for at in range(1, len(second)):
        client.send(b"GET /v1/a HTTP/1.1\r\nHost: x\r\n\r\n" + second[:at])
        assert proxy.upstream.written.count(b"GET /v1/a") == at
        proxy.upstream.send(OK)
        assert client.channel.busy
        assert timers(proxy) == [READ_TIMEOUT]
        client.send(second[at:])
        assert proxy.upstream.written.count(b"POST /v1/b") == at
        proxy.upstream.send(OK)
        assert not client.channel.busy
        assert timers(proxy) == [IDLE_TIMEOUT]
    assert proxy.endpoint.attempts == 1


@pytest.mark.parametrize(
    "refused",
    [
        b"GET /v1/models\r\n\r\n",
        field(b"A : b"),
        POST + b"Content-Length: x\r\n\r\n",
        POST + b"Content-Length: 1001\r\n\r\n" + b"x" * 1001,
        CHUNKED + b"zz\r\n",
        CHUNKED + chunk(b"x" * 1001) + LAST_CHUNK,
        CHUNKED + b"0\r\nA\r\n\r\n",
        head_of(MAX_HEADER_BYTES + 1),
        b"GET / HTTP/1.1\n\r\n\r\n",
        GET + b"Connection: close\r\n\r\n",
        b"GET /v1/models HTTP/1.0\r\n\r\n",
        b"GET /nope HTTP/1.0\r\n\r\n",
    ],
)
def test_behind_a_refused_or_last_one_nothing_is_read(refused: bytes) -> None:
    """Where the next request begins is not known, or it was said that there is none: it is not guessed."""
    hidden = b"DELETE /v1/hidden HTTP/1.1\r\nHost: x\r\n\r\n"
    for pieces in ([refused + hidden], [refused, hidden], [GET + b"\r\n" + refused + hidden], [refused[:-1], hidden]):
        outcome = exchange(pieces, max_body_bytes=1000)
        assert b"DELETE" not in [request.method for request in outcome.forwarded]
        assert len(outcome.statuses + outcome.late) == len(outcome.access) == 1 + pieces[0].startswith(GET + b"\r\n")


def test_what_comes_while_a_refused_client_lingers() -> None:
    """Is dropped, and does not put off the end."""
    proxy = InMemoryProxy(read_timeout=READ_TIMEOUT, idle_timeout=IDLE_TIMEOUT)
    client = proxy.client()
    client.send(b"x\r\n\r\n")
    written = client.written
    for _ in range(int(LINGER) - 1):
        client.send(PAGE)
        proxy.clock.advance(1)
    assert client.closed_by == "fin"
    proxy.clock.advance(1)
    assert client.written == written


@pytest.mark.parametrize("first", ["GET", "POST", "chunked"])
@pytest.mark.parametrize("step", [1000, 65536])
def test_how_much_may_be_pipelined(first: str, step: int) -> None:
    """`MAX_PIPELINED_BYTES` behind a request that waits; one byte more, and the client is cut off."""
    begin = {"GET": GET + b"\r\n", "POST": POST + b"Content-Length: 3\r\n\r\nabc", "chunked": CHUNKED + b"0\r\n\r\n"}
    for extra in (0, 1):
        proxy = InMemoryProxy()
        client = proxy.client()
        raw = begin[first] + b"x" * (MAX_PIPELINED_BYTES + extra)
        for at in range(0, len(raw), step):
            client.send(raw[at : at + step])
        assert client.closed_by == ("reset" if extra else None)
        proxy.pump()
        assert proxy.in_flight == 1 - extra
        assert proxy.endpoint.attempts == 1


@pytest.mark.parametrize("first", ["length", "chunks"])
def test_how_much_may_be_pipelined_does_not_grow(first: str) -> None:
    """What waits behind the next request counts as well, however it came there."""
    proxy = InMemoryProxy()
    client = proxy.client()
    waits = POST + b"Content-Length: 3\r\n\r\nabc" if first == "length" else CHUNKED + b"1\r\nx\r\n0\r\n\r\n"
    client.send(waits + waits + b"x" * 600_000)
    assert client.closed_by is None
    proxy.upstream.send(OK)
    assert client.closed_by is None
    client.send(b"x" * 600_000)
    assert client.closed_by == "reset"


def test_pipelined_bytes_are_counted_anew() -> None:
    """A client that always has some requests under way may send for ever."""
    proxy = InMemoryProxy()
    client = proxy.client()
    one = POST + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000
    client.send(one)
    for _ in range(50):
        client.send(one)
        proxy.upstream.send(OK)
    assert client.closed_by is None
    assert proxy.upstream.written.count(b"POST /v1/files") == 51


@pytest.mark.parametrize(
    ("raw", "method", "answer", "status"),
    [
        (PAGE, "GET", b"", 200),
        (b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD", b"", 200),
        (b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n", "GET", b"", 404),
        (b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", "POST", b"", 405),
        (chunked_page(b"x"), "POST", b"", 404),
        (b"GET /v1//x HTTP/1.1\r\nHost: x\r\n\r\n", "GET", b"", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS", b"", 400),
        (b"CONNECT /v1/x HTTP/1.1\r\nHost: x\r\n\r\n", "POST", b"", 405),
        (GET + b"\r\n", "GET", OK, 200),
        (b"\r\n" + GET + b"\r\n", "GET", OK, 200),
        (b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", 200),
        (GET + b"\r\n", "GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        (GET + b"\r\n", "GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", 304),
        (GET + b"\r\n", "GET", STREAM_HEAD + chunk(b"data: x\n\n") + LAST_CHUNK, 200),
        (GET + b"\r\n", "GET", b"HTTP/1.1 429 Slow\r\nContent-Length: 1\r\n\r\nx", 429),
        (POST + b"Content-Length: 1\r\n\r\nx", "POST", b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", 502),
        (CHUNKED + LAST_CHUNK, "POST", OK, 200),
        (POST + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx", "POST", OK, 200),
    ],
)
def test_the_connection_stays_after_an_answer(raw: bytes, method: str, answer: bytes, status: int) -> None:
    """Of every kind: the next request is read, under the idle timeout until it begins."""
    proxy = InMemoryProxy(read_timeout=READ_TIMEOUT, idle_timeout=IDLE_TIMEOUT, anthropic_max_retries=0)
    client = proxy.client()
    for count in (1, 2):
        client.send(raw)
        if answer:
            assert timers(proxy) == [] or proxy.endpoint.attempts
            proxy.upstream.send(answer)
        assert client.closed_by is None
        read = answers_in(client.written, closed=False, methods=[method] * count)
        assert [(one.status, one.outcome) for one in read] == [(status, "complete")] * count
        assert all(one.header("connection") is None for one in read)
        assert channel_timer(client) == IDLE_TIMEOUT
    assert proxy.in_flight == 0


# Timeouts


def channel_timer(client: Client) -> float | None:
    """In how many seconds this connection's timeout comes; ``None`` where there is none."""
    call = client.channel._TimeoutMixin__timeoutCall  # type: ignore[attr-defined]
    return None if call is None else call.getTime() - client.channel.site.front.clock.seconds()


def timers(proxy: InMemoryProxy) -> list[float]:
    """When the clients' timeouts come, in seconds from now."""
    found = [channel_timer(channel.transport) for channel in proxy.site.channels]  # type: ignore[arg-type]
    return [seconds for seconds in found if seconds is not None]


@pytest.mark.parametrize("idle", [IDLE_TIMEOUT, 0.0])
@pytest.mark.parametrize("read", [READ_TIMEOUT, 0.0])
@pytest.mark.parametrize("header", [HEADER_TIMEOUT, 0.0])
def test_which_timeout_is_armed(idle: float, read: float, header: float) -> None:
    """
    Idle: the idle one. In a head: the header one, from its first byte on, or the read one if that is shorter.

    In a body: the read one, anew with each byte. Waiting for the answer: none. 0 is none.
    """
    proxy = InMemoryProxy(read_timeout=read, idle_timeout=idle, header_timeout=header)
    client = proxy.client()
    whole = min(header or 1000.0, read or 1000.0)
    head = POST + b"Content-Length: 3\r\n\r\n"
    for _ in range(3):
        assert channel_timer(client) == (idle or None)
        for at in range(len(head) - 1):
            client.send(head[at : at + 1])
            left = whole - 0.0625 * at
            assert channel_timer(client) == (left if header or read else None)
            assert client.channel.busy
            proxy.clock.advance(0.0625)
        for byte in (b"\n", b"a", b"b"):
            client.send(byte)
            assert channel_timer(client) == (read or None)
            assert client.channel.busy
            proxy.clock.advance(1)
        client.send(b"c")
        assert channel_timer(client) is None
        client.send(b"P")
        assert channel_timer(client) is None
        proxy.upstream.send(OK)
        assert channel_timer(client) == (whole if header or read else None)
        client.send(CHUNKED[1:] + b"1\r\nx\r\n0\r\n")
        assert channel_timer(client) == (read or None)
        client.send(b"\r\n")
        assert channel_timer(client) is None
        proxy.upstream.send(OK)
        assert not client.channel.busy
    client.send(b"nonsense\r\n\r\n")
    assert channel_timer(client) is None
    proxy.clock.advance(LINGER)
    proxy.pump()
    for peer in proxy.endpoint.peers:
        peer.finish()
    assert proxy.clock.getDelayedCalls() == []


@pytest.mark.parametrize("pieces", [[b"\r\n"], [b"\r", b"\n"]])
def test_a_blank_line_alone_is_no_request(pieces: list[bytes]) -> None:
    """Old clients send one behind a body: it asks for no answer, so it is owed no 408, and holds no drain up."""
    for before in (b"", PAGE):
        proxy = InMemoryProxy(read_timeout=READ_TIMEOUT, idle_timeout=IDLE_TIMEOUT)
        client = proxy.client()
        client.send(before)
        written = client.written
        for piece in pieces:
            proxy.clock.advance(1)
            client.send(piece)
        assert not client.channel.busy
        assert channel_timer(client) in (IDLE_TIMEOUT, IDLE_TIMEOUT - 1)
        client.send(PAGE)
        assert client.written.count(b"HTTP/1.1 200 OK") == 1 + bool(before)
        proxy.clock.advance(IDLE_TIMEOUT)
        assert client.closed_by == "fin"
        assert b"HTTP/1.1 408" not in client.written[len(written) :]


@pytest.mark.parametrize(
    "raw", [b"G", GET, GET[:-2], b"\r", b"\r\n\r\n", b"\r\nG", POST + b"Content-Length: 1\r\n\r\n"]
)
def test_who_leaves_while_sending_leaves_nothing(raw: bytes) -> None:
    """No timer, no count; and an access line only where there was a request that counted."""
    with listening() as logs:
        proxy = InMemoryProxy()
        client = proxy.client()
        client.send(raw)
        client.leave()
        assert proxy.clock.getDelayedCalls() == []
        assert proxy.in_flight == 0
        assert len(captured(logs, "access")) == raw.startswith(b"POST")


def test_what_comes_after_the_idle_timeout() -> None:
    """What a client sends after its connection was closed under it is not forwarded: it could not be answered."""
    proxy = InMemoryProxy(idle_timeout=IDLE_TIMEOUT)
    client = proxy.client()
    proxy.clock.advance(IDLE_TIMEOUT)
    assert client.closed_by == "fin"
    # TLS reads on until the other side has closed as well.
    client.send(GET + b"\r\n")
    assert proxy.endpoint.attempts == 0
    assert client.written == b""


@pytest.mark.parametrize("raw", [b"GET /v1", GET + b"A: b\r\n", head_of(MAX_HEADER_BYTES + 1), b"GET /\n"])
def test_a_head_that_is_refused_unread_is_logged(raw: bytes) -> None:
    """As every answer, under the id that its client was given."""
    with listening() as logs:
        proxy = InMemoryProxy(read_timeout=READ_TIMEOUT)
        client = proxy.client()
        client.send(raw)
        proxy.clock.advance(READ_TIMEOUT)
        answer = client.answer()
        (line,) = captured(logs, "access")
        assert f"request_id={answer.header('x-proxy-request-id')} " in line
        assert f" status={answer.status} bytes={len(answer.body)} " in line
        assert "path=- " in line
        assert "verdict=refused" in line


# What reading costs


class Searched(bytearray):
    """A buffer that counts how many bytes are looked at."""

    looked_at = 0

    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        found = super().find(sub, start) if end is None else super().find(sub, start, end)
        Searched.looked_at += (len(self) if found < 0 else found) - start
        return found

    def count(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        Searched.looked_at += (len(self) if end is None else end) - start
        return super().count(sub, start) if end is None else super().count(sub, start, end)


def byte_by_byte(client: Client, head: bytes) -> int:
    """Send it, without its last byte; return how many bytes of memory that took, over all calls."""
    allocated = 0
    tracemalloc.start()
    try:
        for at in range(len(head) - 1):
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            client.send(head[at : at + 1])
            allocated += tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    return allocated


def test_a_head_byte_by_byte_is_not_copied_for_each() -> None:
    """Some hundred bytes for each call, whatever came before it; copies would be 8 KiB for each."""
    head = head_of(16 * 1024)
    assert byte_by_byte(InMemoryProxy().client(), head) < 1024 * len(head)


def test_a_head_byte_by_byte_is_not_searched_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte is looked at a few times."""
    head = head_of(16 * 1024)
    monkeypatch.setattr(Searched, "looked_at", 0)
    client = InMemoryProxy().client()
    client.send(head[:2])
    client.channel._unread = Searched(client.channel._unread)
    byte_by_byte(client, head[2:])
    assert isinstance(client.channel._unread, Searched)
    assert len(client.channel._unread) == len(head) - 1
    assert len(head) < Searched.looked_at < 16 * len(head)


# Bodies in memory


@pytest.mark.parametrize("size", [0, 1, LARGE_BODY - 1, LARGE_BODY, LARGE_BODY + 1, 3 * LARGE_BODY + 7])
@pytest.mark.parametrize("step", [1000, 65536, LARGE_BODY, 4 * LARGE_BODY])
def test_a_body_is_put_together(size: int, step: int) -> None:
    """In order, whole, and once."""
    content = bytes(range(251)) * (size // 251 + 1)
    content = content[:size]
    body = MemoryBody()
    for at in range(0, size, step):
        assert body.append(content[at : at + step]) == min(at + step, size)
    taken = body.take()
    assert type(taken) is bytes
    assert taken == content
    assert body.take() == b""


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(0, 200))
def test_a_body_of_any_pieces(pieces: list[bytes], large: int) -> None:
    """Also where it becomes a large one in the middle of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request_module, "LARGE_BODY", large)
        body = MemoryBody()
        sizes = [body.append(piece) for piece in pieces]
        assert sizes == [sum(map(len, pieces[: number + 1])) for number in range(len(pieces))]
        assert body.take() == b"".join(pieces)
        assert body.take() == b""


def peak_of(send: Any, piece: bytes, count: int) -> int:
    tracemalloc.start()
    try:
        for _ in range(count):
            send(bytes(bytearray(piece)))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_large_body_is_in_memory_once() -> None:
    """While it comes, and when it is taken: about its own size."""
    size = 32 * 2**20
    body = MemoryBody()
    taken = []

    def append(piece: bytes) -> None:
        if body.append(piece) == size:
            taken.append(body.take())

    assert size < peak_of(append, bytes(65536), size // 65536) < size * 1.25
    assert [len(whole) for whole in taken] == [size]


@pytest.mark.parametrize("how", ["length", "chunks"])
def test_a_large_request_is_in_memory_once(how: str) -> None:
    """Through the connection as well."""
    count = 256
    size = count * 65536
    proxy = InMemoryProxy()
    client = proxy.client()
    if how == "length":
        client.send(POST + b"Content-Length: %d\r\n\r\n" % (size + 1))
        piece = bytes(65536)
    else:
        client.send(CHUNKED)
        piece = chunk(bytes(65536))
    assert size < peak_of(client.send, piece, count) < size * 1.25
    client.leave()
    assert proxy.in_flight == 0


def test_what_is_left_of_a_refused_body() -> None:
    """Nothing is kept of it while its client lingers."""
    proxy = InMemoryProxy(max_body_bytes=8 * 2**20)
    client = proxy.client()
    client.send(CHUNKED)
    piece = chunk(bytes(65536))
    tracemalloc.start()
    try:
        for _ in range(200):
            client.send(piece)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert client.answer().status == 413
    assert kept < 2**20
