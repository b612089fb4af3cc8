"""The front door, in memory: limits, timeouts, health, pages, and what is counted."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.logger import LogEvent

from twisted_proxy import __version__
from twisted_proxy.relay.streaming import Relay

from .memory import LAST_CHUNK, STREAM_HEAD, InMemoryProxy, captured, chunk, event, read_answer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


# Health


def test_livez_shows_the_gauge() -> None:
    """`in_flight` and the oldest's age are live, and asking does not count. Nothing says who asks for what."""
    proxy = InMemoryProxy()
    for expected in (0, 1, 2):
        answer = proxy.get("/livez")
        assert answer.status == 200
        assert answer.json == {
            "status": "ok",
            "version": __version__,
            "in_flight": expected,
            "oldest_seconds": 2.5 * expected if expected else None,
            "draining": False,
            "drain_seconds_left": None,
            "recording": {"status": "off"},
            "timestamp": "2023-11-14T22:13:20.000Z",
        }
        assert answer.header("cache-control") == "no-store"
        assert answer.header("x-proxy-request-id") is not None
        proxy.asked()
        proxy.clock.advance(2.5)


def test_health_while_serving_and_while_draining() -> None:
    """200, then 503 with `Retry-After` on connections old and new, while requests are still served."""
    proxy = InMemoryProxy()
    old = proxy.client()
    old.request("GET", "/health", body=None)
    assert old.answer("GET").json == {"status": "healthy", "timestamp": "2023-11-14T22:13:20.000Z"}
    proxy.asked()
    proxy.service.drain.begin()
    old.request("GET", "/health", body=None)
    for answer in (old.answers(2)[1], proxy.get("/health")):
        assert answer.status == 503
        assert answer.json == {"status": "draining", "in_flight": 1, "timestamp": "2023-11-14T22:13:20.000Z"}
        assert int(answer.header("retry-after") or "") > 0
        assert answer.header("connection") == "close"
    live = proxy.get("/livez").json
    assert (live["draining"], live["drain_seconds_left"]) == (True, 1920.0)
    client, upstream = proxy.asked()
    upstream.send(OK)
    assert (client.answer().body, client.answer().header("connection")) == (b"ok", "close")


@pytest.mark.parametrize("target", ["/", "/health", "/livez"])
def test_head_works_on_pages(target: str) -> None:
    """SDKs probe a base URL with HEAD; some balancers their health checks."""
    proxy = InMemoryProxy()
    client = proxy.client()
    client.request("HEAD", target, body=None)
    answer = client.answer("HEAD")
    assert (answer.status, answer.outcome) == (200, "complete")
    assert client.written.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/nope", 404),
        ("POST", "/health", 405),
        ("GET", "/v10/x", 404),
        ("CONNECT", "/v1/x", 405),
        ("GET", "/%76%31/models", 404),
    ],
)
def test_pages_that_are_not_there(method: str, target: str, status: int) -> None:
    """JSON in the envelope, never HTML; nothing goes upstream."""
    proxy = InMemoryProxy()
    client = proxy.client()
    client.request(method, target, body=None if method == "GET" else b"")
    answer = client.answer()
    assert (answer.status, answer.json["type"]) == (status, "error")
    assert answer.json["request_id"] == answer.header("x-proxy-request-id")
    assert answer.header("content-type") == "application/json"
    assert proxy.endpoint.attempts == 0


# The gauge


def test_a_request_counts_from_its_headers_to_its_last_byte(logs: list[dict[str, Any]]) -> None:
    """Uploading, waiting, streaming: in flight. One access line at the end."""
    proxy = InMemoryProxy()
    client = proxy.client()
    client.send(b"POST /v1/messages?beta=true HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n")
    assert proxy.in_flight == 0
    client.send(b"\r\n")
    assert proxy.in_flight == 1
    client.send(b"0123456789")
    proxy.clock.advance(2)
    proxy.upstream.send(STREAM_HEAD + chunk(b"data"))
    proxy.clock.advance(3)
    assert proxy.in_flight == 1
    assert captured(logs, "access") == []
    proxy.upstream.send(LAST_CHUNK)
    assert proxy.in_flight == 0
    (line,) = captured(logs, "access")
    assert line.split(" ", 2)[2] == (
        "method=POST path=/v1/messages status=200 bytes=4 ttft=2.000 elapsed=5.000 verdict=complete "
        "demoted=false body_bytes=10"
    )


@pytest.mark.parametrize(("where", "outcome"), [("__init__", "complete"), ("connectionMade", "cut")])
def test_a_handler_that_raises_cannot_strand_the_count(
    where: str, outcome: str, logs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first byte: 500 in the envelope. After it: a visible cut, nothing appended."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a mistake of ours")

    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    monkeypatch.setattr(Relay, where, broken)
    upstream.send(STREAM_HEAD)
    answer = client.answer()
    assert answer.outcome == outcome
    if outcome == "complete":
        assert (answer.status, answer.json["error"]["type"]) == (500, "api_error")
    else:
        assert (answer.status, answer.body, client.closed_by) == (200, b"", "fin")
    assert b"mistake" not in client.written
    proxy.pump()
    assert proxy.in_flight == 0
    assert upstream.closed_by == "reset"
    assert "verdict=failed" in captured(logs, "access")[0]
    assert any("log_failure" in entry for entry in logs)


def test_no_credential_in_any_log(logs: list[dict[str, Any]]) -> None:
    """Neither of headers, nor of the query, whatever happens."""
    secret = "sk-ant-s3cr3t"
    headers = [("authorization", f"Bearer {secret}"), ("x-api-key", secret), ("cookie", f"session={secret}")]
    for how in ("complete", "refused", "cut", "bad", "page", "gone"):
        proxy = InMemoryProxy(anthropic_max_retries=0)
        client = proxy.client()
        target = {"bad": f"/v1/../{secret}", "page": f"/nope?key={secret}"}.get(
            how, f"/v1/messages?key={secret}&{secret}"
        )
        if how == "refused":
            proxy.endpoint.failures = [OSError(111, "refused")]
        client.request(target=target, headers=headers)
        if how in ("complete", "cut", "gone"):
            proxy.upstream.send(STREAM_HEAD + chunk(b"data"))
            {
                "complete": lambda p: p.upstream.send(LAST_CHUNK),
                "cut": lambda p: p.upstream.reset(),
                "gone": client.leave,
            }[how](*([proxy] if how != "gone" else []))
        proxy.pump()
    from twisted.logger import eventAsText

    text = "\n".join(eventAsText(entry) for entry in logs)
    assert len(captured(logs, "access")) == 6
    assert secret not in text


# Limits


@pytest.mark.parametrize("target", ["/v1/messages", "/v1/messages?beta=true", "/v1/messages/count_tokens"])
def test_a_message_that_is_too_large_is_refused_before_it_is_read(target: str) -> None:
    """413 on the headers alone; `100 Continue` is not sent."""
    proxy = InMemoryProxy()
    client = proxy.client()
    client.send(
        f"POST {target} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
        f"Content-Length: {32 * 2**20 + 1}\r\n\r\n".encode()
    )
    answer = client.answer()
    assert (answer.status, answer.json["error"]["type"]) == (413, "request_too_large")
    assert answer.json["request_id"] == answer.header("x-proxy-request-id")
    assert answer.header("connection") == "close"
    assert proxy.in_flight == 0
    client.send(b"x" * 100_000)
    proxy.clock.advance(11)
    assert client.closed_by is not None
    proxy.pump()
    assert proxy.clock.getDelayedCalls() == []


def test_other_bodies_may_be_larger_than_messages() -> None:
    """Files and batches have the API's own limits."""
    proxy = InMemoryProxy(max_body_bytes=2000, max_message_bytes=1000)
    _, upstream = proxy.asked(target="/v1/files", body=b"x" * 2000)
    assert upstream.written.endswith(b"x" * 2000)
    client = proxy.client()
    client.request(target="/v1/files", body=b"x" * 2001)
    assert client.answer().status == 413


def test_chunks_beyond_the_limit_are_refused_in_the_middle() -> None:
    """They did not say how many they would be."""
    proxy = InMemoryProxy(max_body_bytes=1000)
    client = proxy.client()
    client.send(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"x" * 600))
    assert client.written == b""
    client.send(chunk(b"x" * 600))
    assert client.answer().status == 413
    client.send(chunk(b"x" * 600) + LAST_CHUNK)
    assert client.answer().rest == b""
    assert proxy.endpoint.attempts == 0
    assert proxy.in_flight == 0


def test_100_continue_is_answered_here() -> None:
    """The upstream is not asked before the body is here, and is not told to wait."""
    proxy = InMemoryProxy()
    client = proxy.client()
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert client.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"{}")
    assert b"Expect" not in proxy.upstream.written


def test_large_headers_pass_and_too_large_ones_do_not() -> None:
    """Claude Code's can be larger than 16 KiB; 431 in the envelope beyond 64 KiB."""
    proxy = InMemoryProxy()
    _, upstream = proxy.asked(headers=[(f"x-{number}", "y" * 9_000) for number in range(6)])
    assert upstream.written.count(b"y" * 9_000) == 6
    for headers in ([(f"x-{number}", "y" * 9_000) for number in range(8)], [("x", "y" * 70_000)]):
        client = proxy.client()
        client.request(headers=headers)
        assert (client.answer().status, client.answer().json["type"]) == (431, "error")
    assert proxy.in_flight == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"NONSENSE\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nbad header: x\r\n\r\n",
        b"POST /v1/files HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_request_is_told_so(raw: bytes) -> None:
    """400 in the envelope, then the connection is closed; nothing goes upstream, nothing stays counted."""
    proxy = InMemoryProxy()
    client = proxy.client()
    client.send(raw)
    answer = client.answer()
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
    assert answer.json["request_id"] == answer.header("x-proxy-request-id")
    assert (proxy.endpoint.attempts, proxy.in_flight) == (0, 0)
    client.send(b"GET /health HTTP/1.1\r\n\r\n")
    assert client.answer().rest == b""


# Timeouts


def test_a_body_that_stalls_is_a_408(logs: list[dict[str, Any]]) -> None:
    """`READ_TIMEOUT` without a byte; while some come it does not matter how long it takes."""
    proxy = InMemoryProxy(read_timeout=10.0)
    client = proxy.client()
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n")
    for _ in range(50):
        proxy.clock.advance(9)
        client.send(b"x")
    assert client.written == b""
    proxy.clock.advance(11)
    assert (client.answer().status, client.answer().json["error"]["type"]) == (408, "timeout_error")
    assert proxy.in_flight == 0
    assert "status=408" in captured(logs, "access")[0]
    assert "verdict=refused" in captured(logs, "access")[0]


def test_an_idle_connection_is_closed_after_the_idle_timeout() -> None:
    """Not before: a balancer's keep-alive must be shorter than ours."""
    proxy = InMemoryProxy(idle_timeout=100.0, read_timeout=10.0)
    client, upstream = proxy.asked()
    proxy.clock.advance(200)
    upstream.send(OK)
    proxy.clock.advance(99)
    assert client.closed_by is None
    proxy.clock.advance(2)
    assert client.closed_by == "fin"
    assert client.answer().rest == b""


def test_a_closing_connection_does_not_wait_for_ever() -> None:
    """A client that never takes the rest is let go."""
    proxy = InMemoryProxy(write_timeout=10.0)
    client, upstream = proxy.asked(headers=[("Connection", "close")])
    upstream.send(OK)
    assert client.closed_by == "fin"
    proxy.clock.advance(11)
    proxy.pump()
    proxy.clock.advance(60)
    assert proxy.clock.getDelayedCalls() == []


def test_pipelined_requests_are_answered_in_order() -> None:
    """One at a time, as HTTP/1.1 wants it."""
    proxy = InMemoryProxy()
    client = proxy.client()
    client.send(b"GET /v1/a HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/b HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"/v1/b" not in proxy.upstream.written
    proxy.upstream.send(OK)
    proxy.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo")
    assert [answer.body for answer in client.answers(2)] == [b"ok", b"two"]


def test_connection_close_is_heeded_wherever_it_stands() -> None:
    """`Connection` is a list, in any case, in several fields."""
    for value in ("close", "Close", "x, close", "x,close"):
        proxy = InMemoryProxy()
        client, upstream = proxy.asked(headers=[("Connection", value)])
        upstream.send(OK)
        assert client.answer().header("connection") == "close"
        assert client.closed_by == "fin"


def test_an_answer_that_begins_while_draining_closes_its_connection() -> None:
    """The request came before; the next one must go to another process."""
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    proxy.service.drain.begin()
    upstream.send(OK)
    assert client.answer().header("connection") == "close"
    assert client.closed_by == "fin"


def test_request_ids_are_unique_and_in_order_of_time() -> None:
    """They sort as the requests came, to the millisecond."""
    proxy = InMemoryProxy()
    ids = {proxy.get("/health").header("x-proxy-request-id") for _ in range(100)}
    assert len(ids) == 100
    assert {str(value)[:16] for value in ids} == {"req_018bcfe56800"}


def test_who_was_cut_by_hand_is_told_so_and_need_not_try_again(logs: list[LogEvent]) -> None:
    """Before there is an answer, by an error that clients do not repeat; in a stream by an event."""
    proxy = InMemoryProxy()
    client, _ = proxy.asked()
    proxy.service.gauge.oldest()[0].cut_by_hand("Somebody has cut it.")
    answer = client.answer()
    assert (answer.status, answer.header("x-should-retry")) == (500, "false")
    assert answer.json["error"] == {"type": "api_error", "message": "Somebody has cut it."}
    client, upstream = proxy.asked()
    upstream.send(STREAM_HEAD + chunk(event("ping")))
    proxy.service.gauge.oldest()[0].cut_by_hand("Somebody has cut it.")
    answer = read_answer(client.written, closed=True)
    assert answer.outcome == "cut"
    assert b"event: error\n" in answer.body
    assert b'"api_error","message":"Somebody has cut it."' in answer.body
    proxy.pump()
    client = proxy.client()
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
    proxy.service.gauge.oldest()[0].cut_by_hand("Somebody has cut it.")
    assert client.answer().status == 500
    proxy.pump()
    assert ["verdict=cut" in line for line in captured(logs, "access")] == [True] * 3
    assert proxy.in_flight == 0


def test_the_last_event_before_a_cut_is_what_came() -> None:
    """Nothing invented, nothing lost: what was relayed can be read up to the cut."""
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    upstream.send(STREAM_HEAD + chunk(event("ping")) + chunk(event("ping"))[:9])
    upstream.reset()
    answer = read_answer(client.written, closed=True)
    assert answer.body == event("ping") + b"event"
