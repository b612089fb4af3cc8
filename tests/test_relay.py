"""Forwarding, in memory: what crosses, what does not, and how each request ends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.testing import MemoryReactorClock
from zope.interface import implementer

from .memory import LAST_CHUNK, STREAM_HEAD, InMemoryProxy, captured, chunk, event

EVENTS = [event("message_start", '{"type":"message_start"}'), event("ping"), event("message_stop")]


# Upwards


def test_body_path_and_query_go_up_byte_for_byte() -> None:
    """Nothing is parsed, normalised or re-encoded on the way up."""
    proxy = InMemoryProxy(anthropic_base_url="http://upstream.test/some/prefix")
    body = b'\xef\xbb\xbf{ "a" : 1e400,\t"a":"\\ud800" }\r\n\x00'
    _, upstream = proxy.asked(target="/v1/messages/a%20b;c=d?beta=true&x=%2F..%2f&&y", body=body)
    head, _, sent = upstream.written.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"POST /some/prefix/v1/messages/a%20b;c=d?beta=true&x=%2F..%2f&&y HTTP/1.1"
    assert sent == body


def test_all_headers_but_hop_by_hop_go_up_in_order() -> None:
    """Repeated fields stay apart, what `Connection` names goes with it, framing and Host are ours, once."""
    proxy = InMemoryProxy()
    _, upstream = proxy.asked(
        headers=[
            ("anthropic-beta", "one"),
            ("x-api-key", "key"),
            ("anthropic-beta", "two, three"),
            ("Connection", "keep-alive, X-Private"),
            ("x-private", "for the next hop only"),
            ("Keep-Alive", "timeout=5"),
            ("TE", "trailers"),
            ("Accept-Encoding", "gzip, br"),
            ("Content-Encoding", "zstd"),
            ("anthropic-version", "2026-10-21"),
            ("Cookie", "a=b; c=d"),
        ]
    )
    lines = upstream.written.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    fields = [(name.lower(), value) for name, value in (line.split(b": ", 1) for line in lines)]
    assert [value for name, value in fields if name == b"anthropic-beta"] == [b"one", b"two, three"]
    assert sorted(fields) == sorted(
        [
            (b"host", b"upstream.test"),
            (b"anthropic-beta", b"one"),
            (b"anthropic-beta", b"two, three"),
            (b"x-api-key", b"key"),
            (b"content-encoding", b"zstd"),
            (b"anthropic-version", b"2026-10-21"),
            (b"cookie", b"a=b; c=d"),
            (b"accept-encoding", b"identity"),
            (b"content-length", b"37"),
        ]
    )


def test_a_chunked_body_goes_up_whole_with_its_length() -> None:
    """The chunks of the first hop are not those of the second."""
    proxy = InMemoryProxy()
    client = proxy.client()
    client.send(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.send(chunk(b"hello ") + chunk(b"world")[:4])
    assert proxy.endpoint.attempts == 0
    assert proxy.in_flight == 1
    client.send(chunk(b"world")[4:] + LAST_CHUNK)
    assert b"Content-Length: 11\r\n" in proxy.upstream.written
    assert proxy.upstream.written.endswith(b"\r\n\r\nhello world")


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD", "OPTIONS", "PATCH", "PUT", "PROPFIND"])
def test_every_method_is_forwarded(method: str) -> None:
    """No body is invented: only methods that expect one get `Content-Length: 0`."""
    proxy = InMemoryProxy()
    client = proxy.client()
    client.request(method, "/v1/files/file_1", body=None)
    assert proxy.upstream.written.startswith(f"{method} /v1/files/file_1 HTTP/1.1\r\n".encode())
    assert (b"Content-Length: 0" in proxy.upstream.written) == (method in ("PATCH", "PUT", "PROPFIND"))
    proxy.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + (b"" if method == "HEAD" else b"ok"))
    answer = client.answer(method)
    assert (answer.status, answer.outcome) == (200, "complete")
    assert answer.header("content-length") == "2"


@pytest.mark.parametrize("target", ["/api/hello", "/api", "/v1", "/v1/"])
def test_what_is_below_v1_or_api_is_forwarded(target: str) -> None:
    """Claude Code's own paths beside /v1 work as well."""
    proxy = InMemoryProxy()
    proxy.asked(method="HEAD", target=target, body=None)
    assert proxy.upstream.written.startswith(f"HEAD {target} HTTP/1.1".encode())


@pytest.mark.parametrize(
    "target",
    [
        "@evil.test/v1/messages",
        "//evil.test/v1/messages",
        "/v1//evil",
        "/v1/../admin",
        "/v1/%2e%2E/admin",
        "/v1/a%2fb",
        "/v1/a%5Cb",
        "/v1/a\\b",
        "http://evil.test/v1/messages",
        "/v1/%00",
        "/v1/%zz",
        "/v1/x#y",
        "*",
    ],
)
def test_a_target_that_could_mean_another_place_is_refused(target: str) -> None:
    """400 in the envelope, and nothing is sent anywhere."""
    proxy = InMemoryProxy()
    answer = proxy.get(target)
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
    assert answer.json["request_id"] == answer.header("x-proxy-request-id")
    assert proxy.endpoint.attempts == 0
    assert proxy.in_flight == 0


# Downwards


def test_an_answer_comes_down_as_it_is() -> None:
    """Status, reason, repeated headers and body bytes; nothing is added but the proxy's request id."""
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    upstream.send(
        b"HTTP/1.1 429 Slow Down\r\nretry-after: 7\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nconnection: x-hop\r\n"
        b"x-hop: 1\r\nkeep-alive: timeout=4\r\nanthropic-ratelimit-unified-5h-utilization: 0.5\r\n"
        b"request-id: req_up\r\ncontent-type: application/json\r\nX-Proxy-Request-Id: other\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    answer = client.answer()
    assert (answer.status, answer.reason, answer.body, answer.outcome) == (429, b"Slow Down", b"{}", "complete")
    own = answer.header("x-proxy-request-id")
    assert own is not None
    assert own.startswith("req_")
    assert sorted(answer.headers) == sorted(
        [
            (b"retry-after", b"7"),
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            (b"anthropic-ratelimit-unified-5h-utilization", b"0.5"),
            (b"request-id", b"req_up"),
            (b"content-type", b"application/json"),
            (b"content-length", b"2"),
            (b"x-proxy-request-id", own.encode()),
        ]
    )


def test_each_piece_is_written_when_it_comes() -> None:
    """The head before the first event, each event before the next: nothing waits for anything."""
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    upstream.send(STREAM_HEAD)
    assert client.answer().status == 200
    body = b""
    for piece in [
        b": comment\r\n\r\n",
        b"id: 7\r\nretry: 10\r\n",
        b"event: x\rdata: 1\r\r",
        b"data: " + b"y" * 70_000,
        b"\n",
    ]:
        upstream.send(chunk(piece))
        body += piece
        assert client.answer().body == body
    upstream.send(LAST_CHUNK)
    assert client.answer().outcome == "complete"


@pytest.mark.parametrize(
    ("method", "head", "status", "length"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", 200, "1234"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, None),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204, None),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\nETag: x\r\n\r\n", 304, "77"),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "0"),
    ],
)
def test_answers_without_a_body_are_right(method: str, head: bytes, status: int, length: str | None) -> None:
    """No body follows, `Content-Length` says what it said, and the connection serves the next request."""
    proxy = InMemoryProxy()
    client = proxy.client()
    client.request(method, "/v1/models", body=None)
    proxy.upstream.send(head)
    answer = client.answer(method)
    assert (answer.status, answer.outcome, answer.body) == (status, "complete", b"")
    assert answer.header("content-length") == length
    assert client.written.endswith(b"\r\n\r\n")
    assert client.closed_by is None
    assert proxy.in_flight == 0


def test_interim_answers_are_swallowed() -> None:
    """1xx concern the hop between proxy and upstream."""
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    upstream.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
    assert client.written == b""
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert client.answer().body == b"ok"


def test_a_redirect_is_not_followed_and_a_cookie_not_kept() -> None:
    """They are the client's to handle; nothing of one client reaches another."""
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    upstream.send(b"HTTP/1.1 302 Found\r\nLocation: http://evil.test/\r\nSet-Cookie: s=1\r\nContent-Length: 0\r\n\r\n")
    answer = client.answer()
    assert (answer.status, answer.header("location"), answer.header("set-cookie")) == (302, "http://evil.test/", "s=1")
    seen = len(upstream.written)
    proxy.asked()
    assert len(proxy.endpoint.peers) == 1
    assert b"s=1" not in upstream.written[seen:]


def test_an_http_1_0_client_gets_a_close_delimited_answer() -> None:
    """It knows no chunks."""
    proxy = InMemoryProxy()
    client = proxy.client()
    client.send(b"GET /v1/models HTTP/1.0\r\n\r\n")
    proxy.upstream.send(STREAM_HEAD + chunk(b"data: x\n\n") + LAST_CHUNK)
    assert b"Transfer-Encoding" not in client.written
    assert client.written.endswith(b"\r\n\r\ndata: x\n\n")
    assert client.closed_by == "fin"


# Ends


@given(st.binary(min_size=1, max_size=40), st.data())
def test_any_split_of_the_answer_gives_the_same_answer(body: bytes, data: st.DataObject) -> None:
    """How the network cuts the bytes is of no consequence."""
    raw = STREAM_HEAD + chunk(body[: len(body) // 2] or b"x") + chunk(body) + LAST_CHUNK
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    position = 0
    while position < len(raw):
        step = data.draw(st.integers(1, 30))
        upstream.send(raw[position : position + step])
        position += step
    answer = client.answer()
    assert answer.outcome == "complete"
    assert answer.body == (body[: len(body) // 2] or b"x") + body


FRAMINGS = {
    "chunked": STREAM_HEAD + b"".join(chunk(piece) for piece in EVENTS) + LAST_CHUNK,
    "length": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b"
    % (len(b"".join(EVENTS)), b"".join(EVENTS)),
    "close": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + b"".join(EVENTS),
}


@pytest.mark.parametrize("how", ["finish", "reset"])
@pytest.mark.parametrize("framing", sorted(FRAMINGS))
def test_a_stream_cut_at_any_byte_is_never_whole(framing: str, how: str) -> None:
    """Before the head: 502. After it: a visible cut by FIN, of a prefix of what came; nothing invented."""
    raw = FRAMINGS[framing]
    whole = b"".join(EVENTS)
    for offset in range(len(raw)):
        proxy = InMemoryProxy()
        client, upstream = proxy.asked()
        upstream.send(raw[:offset])
        getattr(upstream, how)()
        answer = client.answer()
        if offset < raw.index(b"\r\n\r\n") + 4:
            assert (answer.status, answer.json["error"]["type"]) == (502, "api_error")
            assert answer.outcome == "complete"
        else:
            assert (answer.status, answer.outcome, client.closed_by) == (200, "cut", "fin"), offset
            assert whole.startswith(answer.body)
            assert len(answer.body) < len(whole) or framing == "chunked"
        proxy.pump()
        assert proxy.in_flight == 0
        assert proxy.clock.getDelayedCalls() == [] or answer.status == 502


def test_a_close_delimited_stream_with_its_last_event_is_whole() -> None:
    """Then, and only then, the end of the connection is the end of the answer."""
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    upstream.send(FRAMINGS["close"])
    upstream.finish()
    assert client.answer().outcome == "complete"
    assert client.answer().body == b"".join(EVENTS)


def test_a_close_delimited_file_is_whole_by_fin_and_cut_by_reset() -> None:
    """Nothing else can be known of it."""
    for how, outcome in (("finish", "complete"), ("reset", "cut")):
        proxy = InMemoryProxy()
        client, upstream = proxy.asked(method="GET", target="/v1/files/x/content", body=None)
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nsome bytes")
        getattr(upstream, how)()
        assert client.answer("GET").outcome == outcome


def test_a_cut_answer_to_an_http_1_0_client_is_reset() -> None:
    """A FIN would be the end that it expects."""
    proxy = InMemoryProxy()
    client = proxy.client()
    client.send(b"GET /v1/models HTTP/1.0\r\n\r\n")
    proxy.upstream.send(STREAM_HEAD + chunk(b"data: x\n\n"))
    proxy.upstream.reset()
    assert client.closed_by == "reset"


def test_a_malformed_chunk_cuts_the_answer(logs: list[dict[str, Any]]) -> None:
    """What came before it was relayed; what came after it is not guessed."""
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    upstream.send(STREAM_HEAD + chunk(b"data: x\n\n") + b"zz\r\nrest")
    assert client.answer().outcome == "cut"
    assert client.answer().body == b"data: x\n\n"
    assert upstream.closed_by == "reset"
    assert len(captured(logs, "forward_error")) == 1


@pytest.mark.parametrize("reason", [ConnectionDone(), ConnectionLost()])
@pytest.mark.parametrize("phase", ["uploading", "connecting", "before the head", "quiet", "held back"])
def test_a_client_that_leaves_ends_the_upstream(phase: str, reason: Exception, logs: list[dict[str, Any]]) -> None:
    """In every phase, at once: nobody pays for tokens that nobody reads."""
    proxy = InMemoryProxy()
    proxy.endpoint.hang = phase == "connecting"
    client = proxy.client()
    if phase == "uploading":
        client.send(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nsome")
        assert proxy.in_flight == 1
    else:
        client.request()
    if phase in ("quiet", "held back"):
        proxy.upstream.send(STREAM_HEAD + chunk(event("ping")))
    if phase == "held back":
        client.hold()
    client.leave(reason)
    assert proxy.in_flight == 0
    if phase == "connecting":
        assert proxy.endpoint.cancelled == 1
    elif phase != "uploading":
        assert proxy.upstream.closed_by == "reset"
    proxy.pump()
    assert proxy.clock.getDelayedCalls() == []
    (line,) = captured(logs, "access")
    assert "verdict=client_gone" in line
    # What had not been answered yet could not be forwarded; a stream that was left was.
    assert len(captured(logs, "forward_error")) == (phase in ("connecting", "before the head"))


@implementer(IHostnameResolver)
class Unanswered:
    """A resolver that takes its time."""

    def resolveHostName(self, resolutionReceiver: object, *_: object, **__: object) -> Any:
        """Nothing comes of it."""


def test_a_client_that_leaves_while_a_name_is_looked_up(
    logs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Nothing is tried again for it.

    Twisted's endpoint, when it is cancelled then, does not say so, but that there is no such name.
    """
    proxy = InMemoryProxy()
    reactor: Any = MemoryReactorClock()
    reactor.installNameResolver(Unanswered())
    monkeypatch.setattr(proxy.agent, "_endpoint", HostnameEndpoint(reactor, "upstream.test", 80))
    client = proxy.client()
    client.request()
    assert proxy.in_flight == 1
    client.leave()
    assert proxy.in_flight == 0
    assert "verdict=client_gone" in captured(logs, "access")[0]
    assert not captured(logs, "no connection")
    assert proxy.clock.getDelayedCalls() == []


def test_a_client_that_holds_back_holds_the_upstream() -> None:
    """Backpressure: reading stops and goes on; the end waits until what was written is out, and so does the gauge."""
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    upstream.send(STREAM_HEAD + chunk(b"a" * 1000))
    client.hold()
    assert upstream.paused
    client.go_on()
    assert not upstream.paused
    client.hold()
    upstream.send(chunk(b"b") + LAST_CHUNK)
    assert proxy.in_flight == 1
    assert client.answer().outcome == "incomplete"
    client.go_on()
    assert proxy.in_flight == 0
    assert client.answer().outcome == "complete"
    assert not upstream.paused


def test_the_connection_of_a_held_answer_serves_the_next_request() -> None:
    """It was paused when it became idle; it must not stay so."""
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    upstream.send(STREAM_HEAD + chunk(b"a"))
    client.hold()
    upstream.send(LAST_CHUNK)
    other, same = proxy.asked()
    assert same is upstream
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert other.answer().body == b"ok"


def test_silence_in_the_middle_is_cut_visibly(logs: list[dict[str, Any]]) -> None:
    """`UPSTREAM_IDLE_TIMEOUT` counts from the last byte."""
    proxy = InMemoryProxy(anthropic_idle_timeout=10.0)
    client, upstream = proxy.asked()
    upstream.send(STREAM_HEAD + chunk(event("ping")))
    for _ in range(5):
        proxy.clock.advance(9)
        upstream.send(chunk(event("ping")))
    proxy.clock.advance(9.9)
    assert client.answer().outcome == "incomplete"
    proxy.clock.advance(0.2)
    assert client.answer().outcome == "cut"
    assert (client.closed_by, upstream.closed_by) == ("fin", "reset")
    proxy.pump()
    assert "verdict=silent" in captured(logs, "access")[0]
    assert "kind=silent" in captured(logs, "forward_error")[0]


def test_a_client_that_holds_back_is_no_silent_upstream() -> None:
    """One clock stops while the other runs."""
    proxy = InMemoryProxy(anthropic_idle_timeout=10.0, write_timeout=100.0)
    client, upstream = proxy.asked()
    upstream.send(STREAM_HEAD + chunk(event("ping")))
    client.hold()
    proxy.clock.advance(50)
    client.go_on()
    assert client.answer().outcome == "incomplete"
    upstream.send(LAST_CHUNK)
    assert client.answer().outcome == "complete"


def test_a_client_that_takes_nothing_is_dropped(logs: list[dict[str, Any]]) -> None:
    """`WRITE_TIMEOUT` without progress."""
    proxy = InMemoryProxy(write_timeout=10.0)
    client, upstream = proxy.asked()
    upstream.send(STREAM_HEAD + chunk(event("ping")))
    client.hold()
    proxy.clock.advance(11)
    assert (client.closed_by, upstream.closed_by) == ("reset", "reset")
    proxy.pump()
    assert proxy.in_flight == 0
    assert "verdict=client_stalled" in captured(logs, "access")[0]
    assert proxy.clock.getDelayedCalls() == []


def test_a_body_that_makes_progress_has_no_wall_clock_limit() -> None:
    """Hours, if it takes hours."""
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    upstream.send(STREAM_HEAD)
    for _ in range(100):
        proxy.clock.advance(500)
        upstream.send(chunk(event("ping")))
    upstream.send(LAST_CHUNK)
    assert client.answer().outcome == "complete"


# Failures before the first byte


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (error.ConnectionRefusedError(), "refused"),
        (error.DNSLookupError("no such host"), "dns"),
        (error.NoRouteError(), "unreachable"),
        (error.TimeoutError(), "connect_timeout"),
        (SSL.Error([("SSL routines", "", "certificate verify failed")]), "tls"),
    ],
)
def test_a_connection_that_cannot_be_made(problem: Exception, kind: str, logs: list[dict[str, Any]]) -> None:
    """Tried again as often as configured, for nothing was sent; then told in the envelope and in one line."""
    proxy = InMemoryProxy(anthropic_max_retries=2)
    proxy.endpoint.failures = [problem] * 5
    client = proxy.client()
    client.request(target="/v1/messages?beta=true&api_key=sekrit", headers=[("anthropic-beta", "a,b")])
    assert proxy.endpoint.attempts == 1
    for _ in range(20):
        proxy.clock.advance(0.1)
    assert proxy.endpoint.attempts == 3
    answer = client.answer()
    timed_out = kind == "connect_timeout"
    assert answer.status == (504 if timed_out else 502)
    assert answer.json["type"] == "error"
    assert answer.json["error"]["type"] == ("timeout_error" if timed_out else "api_error")
    assert answer.json["request_id"] == answer.header("x-proxy-request-id")
    (line,) = captured(logs, "forward_error")
    assert f"request_id={answer.json['request_id']} model=claude-test stream=true body_bytes=37 " in line
    assert 'has_thinking=false anthropic_beta=a,b query="beta=true&api_key=***" elapsed=' in line
    assert f"kind={kind} status={answer.status}" in line
    assert "verdict=failed" in captured(logs, "access")[0]
    assert proxy.in_flight == 0


def test_a_connection_attempt_that_fails_once_is_made_again() -> None:
    """The client learns nothing of it."""
    proxy = InMemoryProxy()
    proxy.endpoint.failures = [error.ConnectionRefusedError()]
    client = proxy.client()
    client.request()
    proxy.clock.advance(0.1)
    proxy.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert client.answer().body == b"ok"


@pytest.mark.parametrize("how", ["finish", "reset"])
def test_a_request_that_may_have_been_received_is_never_sent_again(how: str) -> None:
    """Not on a fresh connection, and not on a used one."""
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    client.request()
    getattr(upstream, how)()
    proxy.clock.pump([1] * 10)
    first, second = client.answers(2)
    assert (first.status, second.status) == (200, 502)
    assert proxy.endpoint.attempts == 1


def test_an_upstream_that_does_not_begin_to_answer(logs: list[dict[str, Any]]) -> None:
    """504 after the response-header timeout, counted from the last byte of the request."""
    proxy = InMemoryProxy(anthropic_response_header_timeout=30.0)
    client = proxy.client()
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
    proxy.clock.advance(100)
    client.send(b"cd")
    upstream = proxy.upstream
    proxy.clock.advance(29)
    assert client.written == b""
    proxy.clock.advance(1)
    answer = client.answer()
    assert (answer.status, answer.json["error"]["type"]) == (504, "timeout_error")
    assert upstream.closed_by == "reset"
    assert "ctx_err=deadline_exceeded kind=header_timeout status=504" in captured(logs, "forward_error")[0]
    proxy.pump()
    # The client's connection may serve on; only its keep-alive limit is left.
    assert len(proxy.clock.getDelayedCalls()) == 1


def test_no_header_timeout_when_it_is_zero() -> None:
    """Long thinking may take as long as it takes."""
    proxy = InMemoryProxy(anthropic_response_header_timeout=0.0)
    client, upstream = proxy.asked()
    proxy.clock.advance(100_000)
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert client.answer().body == b"ok"


def test_a_connection_that_hangs_is_given_up() -> None:
    """Each attempt has its own limit; then 504."""
    proxy = InMemoryProxy(anthropic_max_retries=1)
    proxy.endpoint.hang = True
    client = proxy.client()
    client.request()
    for _ in range(25):
        proxy.clock.advance(1)
    assert (proxy.endpoint.attempts, proxy.endpoint.cancelled) == (2, 2)
    assert client.answer().status == 504


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 101 X\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_a_502(garbage: bytes, logs: list[dict[str, Any]]) -> None:
    """And its connection is closed."""
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    upstream.send(garbage)
    assert client.answer().status == 502
    assert upstream.closed_by == "reset"
    assert "kind=protocol" in captured(logs, "forward_error")[0]


def test_an_early_answer_ends_the_upload() -> None:
    """A refusal that does not wait for the body comes down; the rest of the body stays here."""
    proxy = InMemoryProxy()
    client = proxy.client()
    original = proxy.endpoint.connect

    def slow(factory: Any) -> Any:
        connected = original(factory)
        # Takes one slice, then nothing.
        write = proxy.upstream.write

        def hold(data: bytes) -> None:
            write(data)
            if proxy.upstream.producer is not None:
                proxy.upstream.producer.pauseProducing()

        proxy.upstream.write = hold  # type: ignore[method-assign]
        return connected

    proxy.endpoint.connect = slow  # type: ignore[method-assign]
    client.request(target="/v1/files", body=b"x" * 1_000_000)
    assert len(proxy.upstream.written) < 600_000
    proxy.upstream.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n{}")
    assert (client.answer().status, client.answer().outcome) == (413, "complete")
    assert proxy.upstream.closed_by == "reset"
    proxy.pump()
    assert len(proxy.clock.getDelayedCalls()) == 1


def test_an_upstream_that_takes_no_bytes_is_given_up() -> None:
    """An upload without progress ends as silence does."""
    proxy = InMemoryProxy(anthropic_idle_timeout=10.0)
    client = proxy.client()
    original = proxy.endpoint.connect

    def full(factory: Any) -> Any:
        connected = original(factory)
        register = proxy.upstream.registerProducer

        def hold(producer: Any, streaming: bool) -> None:
            register(producer, streaming)
            producer.pauseProducing()

        proxy.upstream.registerProducer = hold  # type: ignore[method-assign]
        return connected

    proxy.endpoint.connect = full  # type: ignore[method-assign]
    client.request(target="/v1/files", body=b"x" * 1_000_000)
    proxy.clock.advance(11)
    assert client.answer().status == 504
    assert "took no byte" in client.answer().json["error"]["message"]


# Connections to the upstream


def test_idle_connections_are_used_again_and_then_closed() -> None:
    """Below the idle timeout that upstreams commonly have."""
    proxy = InMemoryProxy()
    for _ in range(3):
        client, upstream = proxy.asked()
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert client.answer().outcome == "complete"
    assert len(proxy.endpoint.peers) == 1
    proxy.clock.advance(51)
    assert upstream.closed_by == "fin"


def test_a_connection_closed_by_the_upstream_is_not_used() -> None:
    """Its FIN was seen: the next request goes on a new one."""
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    upstream.finish()
    client.request()
    assert len(proxy.endpoint.peers) == 2


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n",
    ],
)
def test_a_connection_that_may_not_be_used_again_is_not(head: bytes) -> None:
    """Asked to close, too old to persist, or with bytes that nobody asked for."""
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    upstream.send(head)
    assert client.answer().body == b"ok"
    assert upstream.closed_by is not None


def test_bytes_on_an_idle_connection_close_it() -> None:
    """They would be taken for the next answer."""
    proxy = InMemoryProxy()
    _, upstream = proxy.asked()
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    assert upstream.closed_by == "reset"


def test_two_proxies_do_not_mix() -> None:
    """State belongs to an instance."""
    one, other = InMemoryProxy(), InMemoryProxy()
    one.asked()
    assert (one.in_flight, other.in_flight) == (1, 0)
