"""Demotion, in memory: what goes up, what comes down, and each way to fail."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogEvent

from .corpus import CORPUS, FAILURES, Entry, Failure
from .memory import LAST_CHUNK, STREAM_HEAD, Client, InMemoryProxy, UpstreamPeer, captured, chunk

BODY = b'{ "model":"claude-test", "max_tokens": 1e2,\n"n":123456789012345678901234567890 }'
STREAM = CORPUS[0].stream
EXPECTED = CORPUS[0].expected


def demoting(**options: Any) -> InMemoryProxy:
    return InMemoryProxy(anthropic_demote_nonstreaming=True, **options)


def asked(proxy: InMemoryProxy, body: bytes = BODY, **request: Any) -> tuple[Client, UpstreamPeer]:
    return proxy.asked(body=body, **request)


def sent_body(upstream: UpstreamPeer) -> bytes:
    return upstream.written.partition(b"\r\n\r\n")[2]


# Upwards


def test_the_request_goes_up_as_a_stream_and_otherwise_as_it_is() -> None:
    """One member is set; every other byte, number and blank is the client's."""
    _, upstream = asked(demoting())
    sent = sent_body(upstream)
    assert json.loads(sent)["stream"] is True
    assert sent.replace(b'"stream":true,', b"").replace(b'"stream":true', b"") == BODY
    assert f"Content-Length: {len(sent)}\r\n".encode() in upstream.written


@pytest.mark.parametrize(
    ("target", "body", "headers"),
    [
        ("/v1/messages", b'{"model":"m","stream":true}', []),
        ("/v1/messages", b'{"model":"m","stream":"yes"}', []),
        ("/v1/messages", b"[1,2]", []),
        ("/v1/messages", b'{"model":', []),
        ("/v1/messages", b"", []),
        ("/v1/messages/count_tokens", BODY, []),
        ("/v1/messages/batches", BODY, []),
        ("/v1/complete", BODY, []),
        ("/v1/messages", BODY, [("Content-Encoding", "gzip")]),
    ],
)
def test_what_is_not_to_be_demoted_goes_up_untouched(
    target: str, body: bytes, headers: list[tuple[str, str]], logs: list[LogEvent]
) -> None:
    """Streams, other endpoints, bodies that cannot be read; their answers are relayed, streams included."""
    proxy = demoting()
    client, upstream = asked(proxy, body, target=target, headers=headers)
    assert sent_body(upstream) == body
    upstream.send(STREAM_HEAD + chunk(STREAM) + LAST_CHUNK)
    assert client.answer().body == STREAM
    assert "demoted=false" in captured(logs, "access")[0]


def test_it_is_off_unless_asked_for() -> None:
    """The default is a faithful relay."""
    _, upstream = asked(InMemoryProxy())
    assert sent_body(upstream) == BODY


# Downwards


@pytest.mark.parametrize("entry", CORPUS, ids=lambda entry: entry.name)
def test_the_answer_is_the_message_that_the_stream_tells(entry: Entry) -> None:
    """For every kind of block and delta, byte for byte what the API would have answered."""
    proxy = demoting()
    client, upstream = asked(proxy)
    upstream.send(STREAM_HEAD + chunk(entry.stream) + LAST_CHUNK)
    answer = client.answer()
    assert (answer.status, answer.outcome) == (200, "complete")
    assert answer.body == entry.expected
    assert proxy.in_flight == 0


@given(st.data())
def test_the_split_of_the_stream_does_not_matter(data: st.DataObject) -> None:
    """Any chunks, any pieces of them."""
    raw = STREAM_HEAD
    position = 0
    while position < len(STREAM):
        step = data.draw(st.integers(1, 400))
        raw += chunk(STREAM[position : position + step])
        position += step
    client, upstream = asked(demoting())
    for start in range(0, len(raw), 313):
        upstream.send(raw[start : start + 313])
    upstream.send(LAST_CHUNK)
    assert client.answer().body == EXPECTED


def test_the_upstreams_headers_are_kept_and_those_of_a_stream_gone(logs: list[LogEvent]) -> None:
    """`request-id` and rate limits are the client's to read; it never learns that there was a stream."""
    client, upstream = asked(demoting())
    upstream.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
        b"Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\nrequest-id: req_up\r\n"
        b"anthropic-ratelimit-unified-5h-utilization: 0.5\r\n\r\n" + chunk(STREAM) + LAST_CHUNK
    )
    answer = client.answer()
    assert sorted(name for name, _ in answer.headers) == [
        b"anthropic-ratelimit-unified-5h-utilization",
        b"content-length",
        b"content-type",
        b"request-id",
        b"x-proxy-request-id",
    ]
    assert answer.header("content-type") == "application/json"
    assert answer.header("content-length") == str(len(EXPECTED))
    (line,) = captured(logs, "access")
    assert "demoted=true" in line
    assert f"bytes={len(EXPECTED)}" in line
    assert "verdict=complete" in line


def test_the_answer_is_there_with_the_last_event() -> None:
    """What may follow `message_stop` is not waited for; a stream that never ends is left."""
    proxy = demoting()
    client, upstream = asked(proxy)
    upstream.send(STREAM_HEAD + chunk(STREAM))
    assert client.answer().outcome == "complete"
    assert upstream.closed_by is None
    proxy.clock.advance(6)
    assert upstream.closed_by == "reset"


def test_the_connection_of_a_folded_stream_serves_the_next_request() -> None:
    """Its last chunk is read after the answer is out."""
    proxy = demoting()
    _, upstream = asked(proxy)
    upstream.send(STREAM_HEAD + chunk(STREAM))
    upstream.send(LAST_CHUNK)
    asked(proxy)
    assert len(proxy.endpoint.peers) == 1


@pytest.mark.parametrize("status", [400, 401, 429, 500, 529])
def test_an_error_before_the_stream_passes_verbatim(status: int) -> None:
    """Status, headers and body are the upstream's."""
    client, upstream = asked(demoting())
    body = b'{ "type": "error" }'
    head = (
        f"HTTP/1.1 {status} No\r\nContent-Type: application/json\r\nretry-after: 3\r\nContent-Length: {len(body)}\r\n"
    )
    upstream.send(head.encode() + b"\r\n" + body)
    answer = client.answer()
    assert (answer.status, answer.reason, answer.body) == (status, b"No", body)
    assert answer.header("retry-after") == "3"


def test_json_although_a_stream_was_asked_for_passes() -> None:
    """Some upstreams do not stream; the client gets what it wanted all the same."""
    client, upstream = asked(demoting())
    upstream.send(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{ "a":1 }')
    assert client.answer().body == b'{ "a":1 }'


# Failures


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
def test_a_stream_that_is_no_message_has_the_status_of_its_failure(failure: Failure, logs: list[LogEvent]) -> None:
    """An `error` event has its own; what is cut, empty or garbled is a 502 in words. One forward_error line each."""
    proxy = demoting()
    client, upstream = asked(proxy)
    upstream.send(STREAM_HEAD + (chunk(failure.stream) if failure.stream else b"") + LAST_CHUNK)
    answer = client.answer()
    assert (answer.status, answer.json["error"]["type"]) == (failure.status, failure.error_type)
    assert answer.json["type"] == "error"
    assert answer.json["error"]["message"]
    assert answer.outcome == "complete"
    (line,) = captured(logs, "forward_error")
    assert line.endswith("demoted=true")
    assert proxy.in_flight == 0


@pytest.mark.parametrize("how", ["finish", "reset"])
def test_a_stream_cut_at_any_byte_is_a_502_in_words(how: str) -> None:
    """Nothing of a message that is not whole is given out for one."""
    stream = STREAM_HEAD + chunk(STREAM)
    last = stream.rindex(b"\n\n")
    for offset in range(len(STREAM_HEAD), last + 1, 7):
        proxy = demoting()
        client, upstream = asked(proxy)
        upstream.send(stream[:offset])
        getattr(upstream, how)()
        answer = client.answer()
        assert (answer.status, answer.json["error"]["type"]) == (502, "api_error")
        assert proxy.in_flight == 0


def test_silence_in_the_middle_is_a_504() -> None:
    """`UPSTREAM_IDLE_TIMEOUT`, as for any stream; but here there still is a status to give."""
    proxy = demoting(anthropic_idle_timeout=10.0)
    client, upstream = asked(proxy)
    upstream.send(STREAM_HEAD + chunk(STREAM[: STREAM.index(b"\n\n") + 2]))
    for _ in range(3):
        proxy.clock.advance(9)
        upstream.send(chunk(b": ping\n\n"))
    proxy.clock.advance(11)
    assert (client.answer().status, client.answer().json["error"]["type"]) == (504, "timeout_error")
    assert upstream.closed_by == "reset"


def test_a_message_beyond_the_limit_is_a_502() -> None:
    """And its upstream is left."""
    proxy = demoting(max_response_bytes=100)
    client, upstream = asked(proxy)
    upstream.send(STREAM_HEAD + chunk(STREAM))
    assert (client.answer().status, upstream.closed_by) == (502, "reset")


def test_an_encoded_stream_is_a_502() -> None:
    """It was asked for identity, and cannot be read."""
    client, upstream = asked(demoting())
    upstream.send(STREAM_HEAD[:-2] + b"Content-Encoding: gzip\r\n\r\n" + chunk(b"\x1f\x8b"))
    assert client.answer().status == 502
    assert upstream.closed_by == "reset"


@pytest.mark.parametrize("phase", ["before the head", "in the stream", "while beating"])
def test_a_client_that_leaves_ends_the_upstream(phase: str, logs: list[LogEvent]) -> None:
    """As without demotion."""
    proxy = demoting(demote_heartbeat=1.0 if phase == "while beating" else 0.0)
    client, upstream = asked(proxy)
    if phase != "before the head":
        upstream.send(STREAM_HEAD + chunk(STREAM[:100]))
    proxy.clock.advance(3)
    client.leave()
    proxy.pump()
    assert upstream.closed_by == "reset"
    assert proxy.in_flight == 0
    assert proxy.clock.getDelayedCalls() == []
    assert "verdict=client_gone" in captured(logs, "access")[0]


def test_the_drain_waits_for_the_message_and_cuts_it_with_a_status() -> None:
    """At its end, nothing has been sent: a 529 can still say so."""
    proxy = demoting()
    client, upstream = asked(proxy)
    upstream.send(STREAM_HEAD + chunk(STREAM[:100]))
    proxy.service.stopService()
    proxy.clock.advance(60)
    assert proxy.in_flight == 1
    proxy.service.hurry()
    assert (client.answer().status, client.answer().json["error"]["type"]) == (529, "overloaded_error")
    assert upstream.closed_by == "reset"
    assert proxy.in_flight == 0


# Heartbeat


def test_the_heartbeat_is_white_space_before_the_message() -> None:
    """Status and head with the first beat, a blank each interval, and JSON that parses all the same."""
    proxy = demoting(demote_heartbeat=5.0)
    client, upstream = asked(proxy)
    proxy.clock.advance(20)
    assert client.written == b""
    upstream.send(STREAM_HEAD + chunk(STREAM[:100]))
    proxy.clock.advance(4.9)
    assert client.written == b""
    proxy.clock.advance(0.2)
    assert client.answer().status == 200
    proxy.clock.pump([5.0, 5.0])
    assert client.answer().body == b"   "
    upstream.send(chunk(STREAM[100:]) + LAST_CHUNK)
    answer = client.answer()
    assert (answer.outcome, answer.body) == ("complete", b"   " + EXPECTED)
    assert answer.header("content-length") is None


def test_a_message_that_is_quicker_than_the_heartbeat_has_none() -> None:
    """Then its length is known, and errors have their status."""
    client, upstream = asked(demoting(demote_heartbeat=5.0))
    upstream.send(STREAM_HEAD + chunk(STREAM) + LAST_CHUNK)
    assert client.answer().header("content-length") == str(len(EXPECTED))


@pytest.mark.parametrize("how", ["error event", "cut", "drained"])
def test_a_failure_after_the_first_beat_is_a_visible_cut(how: str, logs: list[LogEvent]) -> None:
    """The price of the heartbeat: a 200 is out already."""
    proxy = demoting(demote_heartbeat=5.0)
    client, upstream = asked(proxy)
    upstream.send(STREAM_HEAD + chunk(STREAM[:100]))
    proxy.clock.advance(6)
    if how == "error event":
        upstream.send(chunk(b"\n\n" + FAILURES[0].stream))
    elif how == "cut":
        upstream.reset()
    else:
        proxy.service.stopService()
        proxy.service.hurry()
    assert client.answer().outcome == "cut"
    assert client.answer().body.strip() == b""
    assert client.closed_by == "fin"
    proxy.pump()
    assert proxy.in_flight == 0
    assert "verdict=complete" not in captured(logs, "access")[0]
