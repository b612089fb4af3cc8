"""
Clients and upstreams that send anything, and go at any time: what the proxy makes of it, in memory.

`scenarios` invents them, `play` plays one and says what must hold whatever happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.logger import eventAsText

from twisted_proxy.config import ProviderConfig

from .exchange import OK, Forwarded, Upstreams, begun_by_h11, listening, unchanged
from .memory import Client, InMemoryProxy, UpstreamPeer, read_answer
from .request_table import EXPECTED

TIMEOUT = 20.0
LONG = 10_000.0
"""Longer than everything that anybody waits for."""
OPENAI = ProviderConfig(
    kind="openai",
    base_url="http://openai.test",
    api_key="sk-test",
    idle_timeout=TIMEOUT,
    response_header_timeout=TIMEOUT,
    max_retries=1,
)


@attrs.frozen
class Reply:
    """
    What the upstream does with one request.

    :ivar pieces: of the answer, as they are sent. :ivar ending: ``stay``, ``fin`` or ``reset``.
    """

    pieces: list[bytes]
    ending: str


@attrs.frozen
class Scenario:
    """
    One client's connection, with what is behind it.

    :ivar pieces: of all that the client sends. :ivar acts: what happens after each piece, by its number.
    :ivar replies: of the upstream, one a request; then it answers plainly.
    """

    pieces: list[bytes]
    acts: dict[int, str]
    replies: list[Reply]
    options: dict[str, Any]


# What is sent

EVENTS = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant",'
    b'"model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}}\n\n',
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"Hi"}}\n\n',
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},'
    b'"usage":{"output_tokens":2}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    b'event: ping\ndata: {"type":"ping"}\n\n',
    b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"x"}}\n\n',
    b": comment\n\n",
    b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n',
    b"data: [DONE]\n\n",
)

BODIES = (
    b"",
    b"hello",
    b'{"model":"claude-test","max_tokens":5,"messages":[{"role":"user","content":"x"}]}',
    b'{"model":"claude-test","max_tokens":5,"stream":true,"messages":[{"role":"user","content":"x"}]}',
    b'{"model":"gpt-4o","messages":[{"role":"user","content":"x"}],"stream":true}',
    b'{"model":"claude-test","max_tokens":5,"stream":true,"stream":false,"messages":[]}',
    b'{"model":' + b"[" * 50,
    b"\xff\xfe{}",
    b'{"model":"claude-test","messages":' + b" " * 3000 + b"[]}",
)

_LINES = tuple(
    f"{method} {target} HTTP/1.1".encode()
    for method in ("POST", "GET", "HEAD")
    for target in (
        *("/v1/messages", "/v1/messages?beta=true", "/v1/messages/count_tokens", "/v1/chat/completions", "/v1/models"),
        *("/v1/files", "/api/x", "/nope", "/livez", "/health", "/", "/v1/../x"),
    )
)
_FIELDS = (
    *(b"A: b", b"Accept: */*", b"X-Api-Key: sk-ant-a", b"Authorization: Bearer sk-ant-b", b"Anthropic-Beta: x"),
    *(b"Expect: 100-continue", b"Connection: close", b"Content-Encoding: gzip", b"X: " + b"y" * 9000),
    *(b"Content-Type: application/json", b"Accept-Encoding: gzip"),
)
_NOISE = (
    *(b"", b"\r", b"\n", b"\r\n", b"\x00", b" ", b"\t", b":", b";", b"0", b"5", b"f", b"x", b"\xff", b"{", b'"'),
    *(b"0\r\n\r\n", b"\r\n\r\n", b"\r\nContent-Length: 3", b"\r\nTransfer-Encoding: chunked", b"\r\nHost: y"),
    *(b"\r\nConnection: close", b"GET /v1/z HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\r\n b"),
    *(b"a" * 5000, b"data: ", b"\n\n", b"HTTP/1.1 103 Hints\r\n\r\n", b"HTTP/1.1 101 Up\r\n\r\n"),
)
_STATUSES = (b"200 OK", b"200 OK", b"200 OK", b"204 No", b"304 No", b"400 Bad", b"429 Slow", b"529 x")
_ACTS = ("nothing", "hold", "go on", "wait", "wait long", "fin", "reset", "drain")


def _chunked(draw: st.DrawFn, data: bytes) -> bytes:
    at = draw(st.integers(0, len(data)))
    pieces = [piece for piece in (data[:at], data[at:]) if piece]
    extension = draw(st.sampled_from([b"", b"", b";a", b"; b=c"]))
    trailer = draw(st.sampled_from([b"", b"", b"T: u\r\n"]))
    return (
        b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"
    )


def _framed(draw: st.DrawFn, head: list[bytes], body: bytes, ways: Sequence[str]) -> bytes:
    match draw(st.sampled_from(ways)):
        case "length":
            return b"\r\n".join([*head, b"Content-Length: %d" % len(body), b"", body])
        case "chunks":
            return b"\r\n".join([*head, b"Transfer-Encoding: chunked", b"", _chunked(draw, body)])
        case _:
            return b"\r\n".join([*head, b"", body])


def _noisy(draw: st.DrawFn, raw: bytes) -> bytes:
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.sampled_from(_NOISE)) + raw[at + draw(st.integers(0, 3)) :]
    return raw


def _cut(draw: st.DrawFn, raw: bytes) -> list[bytes]:
    places = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=4)))
    return [raw[start:end] for start, end in zip([0, *places], [*places, len(raw)], strict=True)]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request, more or less valid."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(EXPECTED))[0][:20_000]
    line, body = draw(st.sampled_from(_LINES)), draw(st.sampled_from(BODIES))
    fields = draw(st.lists(st.sampled_from(_FIELDS), max_size=3, unique=True))
    ways = ("length", "length", "chunks") if line.startswith(b"POST") else ("none", "length")
    return _noisy(draw, _framed(draw, [line, b"Host: x", *fields], b"" if ways[0] == "none" else body, ways))


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    """What an upstream sends for one request."""
    status = draw(st.sampled_from(_STATUSES))
    streamed = draw(st.booleans())
    if streamed:
        kind, body = b"text/event-stream", b"".join(draw(st.lists(st.sampled_from(EVENTS), max_size=8)))
        if draw(st.booleans()):
            body = b"".join(EVENTS[:6])
    else:
        kind, body = b"application/json", draw(st.sampled_from(BODIES))
    head = [b"HTTP/1.1 " + status, b"Content-Type: " + kind, *draw(st.lists(st.sampled_from(_FIELDS), max_size=2))]
    raw = _noisy(draw, _framed(draw, head, body, ("length", "chunks", "chunks", "none")))
    if draw(st.integers(0, 3)) == 0:
        raw = raw[: draw(st.integers(0, len(raw)))]
    return Reply(_cut(draw, raw), draw(st.sampled_from(["stay", "stay", "fin", "reset"])))


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """A whole connection."""
    pieces = _cut(draw, b"".join(draw(st.lists(requests(), min_size=1, max_size=3))))
    acts = draw(st.dictionaries(st.integers(0, len(pieces) - 1), st.sampled_from(_ACTS), max_size=2))
    options = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "anthropic_demote_nonstreaming": st.just(True),
                "demote_heartbeat": st.just(1.0),
                "limit_concurrent": st.just(1),
                "limit_requests_per_minute": st.just(1),
                "max_bodies_bytes": st.just(100),
                "max_response_bytes": st.just(200),
                "openai": st.just(OPENAI),
            },
        )
    )
    return Scenario(pieces, acts, draw(st.lists(replies(), max_size=3)), options)


# What must hold


class _Upstream:
    """Plays the replies, and keeps what was said to whom."""

    def __init__(self, replies: list[Reply]) -> None:
        self._replies = iter(replies)
        self.said: list[tuple[bytes, str]] = []

    def answer(self, peer: UpstreamPeer) -> None:
        reply = next(self._replies, Reply([OK], "stay"))
        self.said.append((b"".join(reply.pieces), reply.ending))
        for piece in reply.pieces:
            peer.send(piece)
        if reply.ending == "fin":
            peer.finish()
        elif reply.ending == "reset":
            peer.reset()


def play(scenario: Scenario) -> Upstreams:
    """
    Play it to its end, and look at what is left.

    Nothing may be logged as a mistake of ours. In the end no request is counted, no timer is set, no connection open,
    no byte of a body held. What was forwarded is what h11 reads in the client's bytes, and what a client can take for
    a whole answer is one.

    :return: what was forwarded.
    """
    with listening() as logs:
        proxy = InMemoryProxy(
            header_timeout=TIMEOUT,
            read_timeout=TIMEOUT,
            write_timeout=TIMEOUT,
            idle_timeout=TIMEOUT,
            anthropic_idle_timeout=TIMEOUT,
            anthropic_response_header_timeout=TIMEOUT,
            anthropic_max_retries=1,
            **scenario.options,
        )
        upstream = _Upstream(scenario.replies)
        upstreams = Upstreams(proxy, upstream.answer)
        client = proxy.client()
        for number, piece in enumerate(scenario.pieces):
            client.send(piece)
            upstreams.answer_all()
            _act(proxy, client, scenario.acts.get(number, "nothing"))
            proxy.pump()
            upstreams.answer_all()
        leaves = {"fin", "reset"} & set(scenario.acts.values())
        _end(proxy, client, leaves=bool(leaves))
    assert [eventAsText(event) for event in logs if "log_failure" in event] == []
    assert proxy.in_flight == 0
    assert proxy.site.channels == set()
    assert proxy.service.front.bodies.used == 0
    assert all(not use.in_flight for use in proxy.service.front.limits._uses.values())
    assert proxy.clock.getDelayedCalls() == []
    raw = b"".join(scenario.pieces)
    demotes = "anthropic_demote_nonstreaming" in scenario.options
    _check_forwarded(upstreams.forwarded, raw, demotes=demotes)
    if not upstreams.forwarded_elsewhere:
        _check_answer(client, upstreams.forwarded, upstream, raw, demotes=demotes)
    return upstreams


def _act(proxy: InMemoryProxy, client: Client, act: str) -> None:
    match act:
        case "hold" if client.producer is not None and client.protocol is not None:
            client.hold()
        case "go on" if client.producer is not None and client.protocol is not None:
            client.go_on()
        case "wait":
            proxy.clock.advance(1.0)
        case "wait long":
            proxy.clock.advance(TIMEOUT * 1.5)
        case "fin":
            client.leave(ConnectionDone())
        case "reset":
            client.leave(ConnectionLost())
        case "drain":
            proxy.service.drain.begin()


def _end(proxy: InMemoryProxy, client: Client, *, leaves: bool) -> None:
    """Let all time pass that anybody waits for; then everybody is gone, a client that did not leave being sent away."""
    for _ in range(20):
        if client.producer is not None and client.protocol is not None and client.producerState == "paused":
            client.go_on()
        proxy.clock.advance(TIMEOUT)
        proxy.pump()
    proxy.clock.advance(LONG)
    proxy.pump()
    assert leaves or client.closed_by is not None
    for peer in proxy.endpoint.peers:
        peer.finish()
    for endpoint in proxy.others.values():
        for peer in endpoint.peers:
            peer.finish()
    proxy.pump()
    client.leave()


def _made_anew(request: Forwarded, theirs: list[Forwarded], *, demotes: bool) -> bool:
    """Whether a request may go upstream with another body than its client's, or as another one."""
    if request.target.startswith(b"/v1/messages"):
        return demotes or any(each.target.startswith(b"/v1/chat/completions") for each in theirs)
    return request.target.startswith((b"/v1/chat/completions", b"/v1/models"))


def _check_forwarded(forwarded: list[Forwarded], raw: bytes, *, demotes: bool) -> None:
    """Each request that goes up as it is stands among those that h11 reads, in their order."""
    # Of a target that is not ASCII we say what is wrong, and read on; h11 does not.
    theirs = begun_by_h11(raw.translate(_TO_ASCII))
    left = iter([_translated(unchanged(request)) for request in theirs])
    for request in forwarded:
        if not _made_anew(request, theirs, demotes=demotes):
            assert _translated(unchanged(request)) in left


_TO_ASCII = bytes([*range(128), *[ord("z")] * 128])


def _translated(request: Forwarded) -> Forwarded:
    fields = [(name, value.translate(_TO_ASCII)) for name, value in request.fields]
    return attrs.evolve(request, fields=sorted(fields), body=request.body.translate(_TO_ASCII))


def _check_answer(
    client: Client, forwarded: list[Forwarded], upstream: _Upstream, raw: bytes, *, demotes: bool
) -> None:
    """Where one request was forwarded as it is, and its answer is whole for h11: h11 reads the same upstream."""
    theirs = begun_by_h11(raw.translate(_TO_ASCII))
    if len(forwarded) != 1 or _made_anew(forwarded[0], theirs, demotes=demotes):
        return
    method = forwarded[0].method.decode()
    ours = read_answer(client.written, method=method, closed=True)
    if ours.outcome == "complete" and not (ours.header("server") or "").startswith("claude-proxy"):
        said, ending = upstream.said[0]
        sent = read_answer(said, method=method, closed=ending == "fin")
        assert (ours.status, ours.body, ours.outcome) == (sent.status, sent.body, sent.outcome)
