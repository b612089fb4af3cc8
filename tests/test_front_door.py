"""The front door: malformed requests, slow clients, too many of them, too much of what they send."""

from __future__ import annotations

import re
import resource
import shutil
import socket
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.task import Clock
from twisted.logger import eventAsText
from twisted.web.server import Site

from tests.processes import Proxy, wait_for
from tests.sockets import Client as SocketClient
from tests.sockets import RawUpstream, read_request, request_bytes
from twisted_proxy.web import limits
from twisted_proxy.web.channel import GUEST_PATIENCE, LINGER
from twisted_proxy.web.limits import BodyMemory, CredentialLimits, Hold, Refusal, Room

from .exchange import OK, begun_by_h11, exchange, is_beginning
from .memory import STREAM_HEAD, Client, InMemoryProxy, captured, chunk
from .request_table import CHUNKED, EXPECTED, GET, MAX_BODY_BYTES, PAGE, PAGE_PASSES, PASSES, POST

SECOND = "1s"


# The table


@pytest.mark.parametrize("number", range(len(EXPECTED)))
def test_h11_reads_the_same(number: int) -> None:
    """Of each request of the table: what is forwarded is what h11 reads, method, target, fields and body."""
    raw, expected = EXPECTED[number]
    forwarded = exchange([raw], max_body_bytes=MAX_BODY_BYTES, max_message_bytes=MAX_BODY_BYTES).forwarded
    assert len(forwarded) == (expected == PASSES)
    assert is_beginning(forwarded, raw)
    if expected == PASSES:
        assert begun_by_h11(raw) != []


@attrs.define
class Counter:
    """Answers everything, and keeps the targets."""

    targets: list[bytes] = attrs.field(factory=list)

    def __call__(self, connection: socket.socket) -> None:
        while request := read_request(connection):
            self.targets.append(request.split(b" ", 2)[1])
            connection.sendall(OK)


@pytest.fixture
def upstream() -> Iterator[tuple[RawUpstream, Counter]]:
    counter = Counter()
    with RawUpstream(counter) as running:
        yield running, counter


def door(directory: Path, upstream: RawUpstream, **settings: str) -> Proxy:
    """A real process before this upstream."""
    return Proxy(directory, ANTHROPIC_FORWARD_URL=f"http://127.0.0.1:{upstream.port}", **settings)


def mistakes(proxy: Proxy) -> str:
    """What it logged of those, the first one whole."""
    log = proxy.log
    at = log.find("Traceback")
    return "" if at < 0 else log[max(0, at - 500) : at + 10_000]


def test_the_table_over_sockets(tmp_path: Path, upstream: tuple[RawUpstream, Counter]) -> None:
    """
    The same answers from the real process, to clients that all are there at once, and the same number forwarded.

    Two seconds, because some of the answers are given by the clock.
    """
    running, counter = upstream
    settings = {"HEADER_TIMEOUT": SECOND, "READ_TIMEOUT": SECOND, "IDLE_TIMEOUT": "2s"}
    with ExitStack() as stack:
        proxy = stack.enter_context(door(tmp_path, running, MAX_BODY_BYTES=str(MAX_BODY_BYTES), **settings))
        clients = [stack.enter_context(SocketClient(proxy.port)) for _ in EXPECTED]
        for client, (raw, _) in zip(clients, EXPECTED, strict=True):
            client.send(raw)
        wrong = []
        for client, (raw, expected) in zip(clients, EXPECTED, strict=True):
            found: object
            wanted: object
            if expected == "silence":
                found, wanted = client.read_to_end(), (b"", "fin")
            else:
                answer = client.answer()
                found = answer.status, answer.ending
                wanted = 200 if isinstance(expected, str) else expected, "whole"
                if answer.status >= 400:
                    assert answer.json()["type"] == "error"
                    assert answer.json()["request_id"] == answer.header("x-proxy-request-id")
            if found != wanted:
                wrong.append((raw[:200], wanted, found))
        assert wrong == []
        assert len(counter.targets) == sum(expected == PASSES for _, expected in EXPECTED)
        assert sum(expected == PAGE_PASSES for _, expected in EXPECTED) > 0
        assert proxy.in_flight() == 0
        assert mistakes(proxy) == ""


# Time


def test_headers_have_fifteen_seconds() -> None:
    """From their first byte on, however often another one comes; then 408."""
    proxy = InMemoryProxy()
    client = proxy.client()
    proxy.clock.advance(100)
    for byte in GET[:14]:
        client.send(bytes([byte]))
        proxy.clock.advance(1)
    assert client.written == b""
    client.send(GET[14:15])
    proxy.clock.advance(1)
    answer = client.answer()
    assert (answer.status, answer.json["error"]["type"], answer.header("connection")) == (408, "timeout_error", "close")
    assert "HEADER_TIMEOUT" in answer.json["error"]["message"]


def test_each_request_has_its_own_fifteen_seconds() -> None:
    """Also where it began to come behind another one: from when that is answered."""
    proxy = InMemoryProxy()
    client = proxy.client()
    for _ in range(3):
        client.send(GET + b"\r\n" + GET)
        proxy.clock.advance(60)
        proxy.upstream.send(OK)
        proxy.clock.advance(14)
        client.send(b"\r\n")
        proxy.upstream.send(OK)
        proxy.clock.advance(14)
    client.send(b"G")
    proxy.clock.advance(15)
    assert client.written.endswith(b"}")
    assert client.written.count(b"HTTP/1.1 408 ") == 1


def test_who_sends_nothing_is_closed_as_idle() -> None:
    """Without an answer, as it has asked nothing."""
    proxy = InMemoryProxy(idle_timeout=100.0)
    client = proxy.client()
    proxy.clock.advance(99)
    assert client.closed_by is None
    proxy.clock.advance(1)
    assert client.channel._closed
    assert client.written == b""


def test_a_body_that_is_slow_but_comes() -> None:
    """Takes as long as it takes."""
    proxy = InMemoryProxy(read_timeout=10.0)
    client = proxy.client()
    size = 100
    client.send(POST + b"Content-Length: %d\r\n\r\n" % size)
    for _ in range(100):
        proxy.clock.advance(1)
        client.send(b"x")
    assert proxy.upstream.written.endswith(b"x" * size)


# Connections


def roomy(connections: int, guests: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> InMemoryProxy:
    monkeypatch.setattr(Room, "of_process", lambda _: Room(connections, guests))
    return InMemoryProxy(**options)


@pytest.mark.parametrize("target", ["/v1/messages", "/v1/chat/completions", "/nope", "/"])
def test_one_connection_too_many(target: str, monkeypatch: pytest.MonkeyPatch, logs: list[dict[str, Any]]) -> None:
    """503 with `Retry-After` in its API's envelope, once it has asked; nothing is forwarded or counted."""
    proxy = roomy(1, 5, monkeypatch)
    first, _ = proxy.asked()
    client = proxy.client()
    client.send(f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode())
    answer = client.answer()
    assert (answer.status, answer.header("retry-after"), answer.header("connection")) == (503, "5", "close")
    if "chat" in target:
        assert answer.json["error"].keys() >= {"message", "type", "code"}
    else:
        assert answer.json["error"]["type"] == "overloaded_error"
        assert answer.json["request_id"] == answer.header("x-proxy-request-id")
    assert (proxy.in_flight, proxy.endpoint.attempts) == (1, 1)
    assert len(captured(logs, "access")) == 1
    (warning,) = captured(logs, "all 1 connections")
    assert "MAX_CONNECTIONS" in warning
    proxy.upstream.send(OK)
    assert first.answer().status == 200


def test_health_is_told_to_one_more() -> None:
    """A full house is no reason to be restarted, or taken out: `/health` and `/livez` are answered, and closed."""
    proxy = InMemoryProxy(max_connections=1)
    proxy.asked()
    for target in ("/health", "/livez", "/livez?verbose"):
        answer = proxy.get(target)
        assert (answer.status, answer.header("connection")) == (200, "close")
    assert proxy.get("/").status == 503


def test_there_is_room_again() -> None:
    """As soon as one has left, whoever it was; guests do not count."""
    proxy = InMemoryProxy(max_connections=2)
    clients = [proxy.client() for _ in range(4)]
    for client in (clients[3], clients[0]):
        client.leave()
    newest = proxy.client()
    newest.send(PAGE)
    assert newest.answer("GET").header("connection") is None
    assert proxy.get("/").status == 503
    for client in (*clients[1:3], newest):
        client.leave()
    proxy.pump()
    proxy.clock.advance(LINGER)
    proxy.pump()
    assert proxy.site._served == 0
    assert proxy.site._guests == {}
    assert proxy.site.channels == set()


def test_a_guest_that_says_nothing() -> None:
    """Has five seconds, drops or not; then it is told, and closed. Where it spoke half, as well."""
    for raw in (b"", b"GET /livez HTTP/1.1\r\n", b"POST /v1/chat/completions HTTP/1.1\r\n"):
        proxy = InMemoryProxy(max_connections=1)
        proxy.client()
        guest = proxy.client()
        for byte in raw[:4]:
            guest.send(bytes([byte]))
            proxy.clock.advance(GUEST_PATIENCE / 8)
        guest.send(raw[4:])
        proxy.clock.advance(GUEST_PATIENCE / 8 * (8 - len(raw[:4])))
        answer = guest.answer()
        assert (answer.status, answer.header("retry-after"), guest.closed_by) == (503, "5", "fin")
        assert ("code" in answer.json["error"]) == (b"chat" in raw)


def test_too_many_guests(monkeypatch: pytest.MonkeyPatch, logs: list[dict[str, Any]]) -> None:
    """The one that came first has to go, at once and with an answer; there are never more. They fill no log."""
    proxy = roomy(1, 3, monkeypatch)
    proxy.client()
    guests = [proxy.client() for _ in range(1000)]
    assert [guest.closed_by for guest in guests] == ["fin"] * 997 + [None] * 3
    assert {guest.answer().status for guest in guests[:997]} == {503}
    assert len(proxy.site._guests) == 3
    proxy.pump()
    assert len(proxy.site.channels) == 4
    assert (captured(logs, "access"), len(captured(logs, "all 1 connections"))) == ([], 1)
    assert proxy.site.turned_away == 997
    guests[-1].send(PAGE)
    assert guests[-1].answer("GET").status == 200


def test_a_refused_guest_lingers_only_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may still be sending, and is to read its answer; but not instead of others."""
    proxy = roomy(1, 1, monkeypatch)
    proxy.client()
    refused = proxy.client()
    refused.send(GET + b"\r\n")
    assert refused.answer().status == 503
    proxy.client()
    assert refused.closed_by is not None
    proxy.pump()
    assert len(proxy.site.channels) == 2


@pytest.mark.parametrize(
    ("descriptors", "connections", "expected"),
    [
        (256, 0, Room(80, 32)),
        (1024, 0, Room(416, 128)),
        (65536, 0, Room(16384, 512)),
        (65536, 30000, Room(30000, 512)),
        (1024, 5, Room(5, 128)),
        (8, 0, Room(1, 1)),
        (resource.RLIM_INFINITY, 0, Room(16384, 512)),
    ],
)
def test_room_for_what_the_descriptors_allow(
    descriptors: int, connections: int, expected: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two for each client, one of them to an upstream; some for guests, and some for the rest."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
    assert Room.of_process(connections) == expected


def test_the_process_takes_the_descriptors_that_it_may_have(
    tmp_path: Path, upstream: tuple[RawUpstream, Counter]
) -> None:
    """A soft limit of 1024, which shells and systemd set, is not what the machine allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    try:
        proxy = door(tmp_path, upstream[0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with proxy:
        allowed = limits.RAISE_TO if hard == resource.RLIM_INFINITY else min(limits.RAISE_TO, hard)
        assert resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE) == (allowed, hard)


def test_thousands_of_attempts(tmp_path: Path, upstream: tuple[RawUpstream, Counter]) -> None:
    """Beyond the limit each is told so; health checks, and the connections that are there, are served."""
    running, _ = upstream
    with ExitStack() as stack:
        proxy = stack.enter_context(door(tmp_path, running, MAX_CONNECTIONS="20"))
        served = [stack.enter_context(SocketClient(proxy.port)) for _ in range(20)]
        for client in served:
            client.ask("GET", "/v1/models")
            assert client.answer().status == 200
        for _ in range(10):
            crowd = [stack.enter_context(SocketClient(proxy.port)) for _ in range(200)]
            for client in crowd[100:]:
                client.ask("GET", "/v1/models")
            assert proxy.get("/health")[0] == 200
            served[0].ask("GET", "/v1/models")
            assert served[0].answer().status == 200
            assert {client.answer().status for client in crowd[100:]} == {503}
            for client in crowd:
                client.close()
        for client in served:
            client.close()

        def asked() -> bool:
            with SocketClient(proxy.port) as client:
                client.ask("GET", "/v1/models")
                return client.answer().status == 200

        wait_for(asked, "there is room again")
        assert proxy.in_flight() == 0
        assert mistakes(proxy) == ""


# Bodies


def test_hold_and_memory() -> None:
    """What is held is counted once, and let go once; who is alone may have more than the limit."""
    memory = BodyMemory(100)
    first, second = Hold(memory), Hold(memory)
    assert memory.fits(1000)
    assert first.grow(1000)
    assert not memory.fits(1)
    assert not second.grow(1)
    second.release()
    assert first.grow(1)
    first.release()
    first.release()
    assert memory.used == 0
    assert first.grow(60)
    assert memory.fits(40)
    assert not memory.fits(41)
    assert second.grow(40)
    assert not second.grow(1)


@pytest.mark.parametrize("target", ["/v1/messages", "/v1/chat/completions"])
def test_a_body_for_which_there_is_no_room_is_not_read(target: str, logs: list[dict[str, Any]]) -> None:
    """529 (OpenAI's clients: 503) with `Retry-After` on its headers alone. What is only announced takes no room."""
    proxy = InMemoryProxy(max_bodies_bytes=1000)
    for _ in range(10):
        proxy.client().send(POST + b"Content-Length: 900\r\n\r\n")
    holder = proxy.client()
    holder.send(POST + b"Content-Length: 601\r\n\r\n" + b"x" * 600)
    client = proxy.client()
    client.send(f"POST {target} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 401\r\n\r\n".encode())
    answer = client.answer()
    assert (answer.status, answer.header("retry-after")) == (503 if "chat" in target else 529, "5")
    assert "MAX_BODIES_BYTES" in answer.json["error"]["message"]
    assert b"100 Continue" not in client.written
    small = proxy.client()
    small.send(POST + b"Content-Length: 400\r\n\r\n" + b"x" * 399)
    assert (small.written, proxy.service.front.bodies.used) == (b"", 999)
    small.send(b"x")
    holder.send(b"x")
    assert len(proxy.endpoint.peers) == 2
    assert len(captured(logs, "access")) == 1


def test_a_body_that_grows_too_much() -> None:
    """Chunks announce nothing: the one that passes the limit is refused, the others are not."""
    proxy = InMemoryProxy(max_bodies_bytes=1000)
    first, second = proxy.client(), proxy.client()
    for client in (first, second):
        client.send(CHUNKED + chunk(b"x" * 490))
    second.send(chunk(b"x" * 21))
    assert (second.answer().status, second.answer().header("retry-after")) == (529, "5")
    assert proxy.service.front.bodies.used == 490
    first.send(chunk(b"x" * 5000) + b"0\r\n\r\n")
    assert proxy.upstream.written.endswith(b"x" * 490 + b"x" * 5000)


@pytest.mark.parametrize("end", ["answered", "stream", "left", "refused", "timed out", "page", "upstream lost"])
def test_memory_is_let_go(end: str) -> None:
    """Whatever becomes of the request."""
    proxy = InMemoryProxy(read_timeout=10.0, anthropic_max_retries=0)
    bodies = proxy.service.front.bodies
    client = proxy.client()
    target = b"/nope" if end == "page" else b"/v1/files"
    client.send(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" % target + b"x" * 60)
    assert bodies.used == 60
    if end == "left":
        client.leave()
    elif end == "timed out":
        proxy.clock.advance(10)
    elif end == "refused":
        proxy.service.gauge.oldest()[0].cut("The proxy goes away.")
    else:
        client.send(b"x" * 40)
    if end in ("answered", "stream", "upstream lost"):
        # It is out: nothing of it is here.
        assert bodies.used == 0
    if end == "answered":
        proxy.upstream.send(OK)
    elif end == "stream":
        proxy.upstream.send(STREAM_HEAD)
    elif end == "upstream lost":
        proxy.upstream.reset()
    assert bodies.used == 0


def test_a_body_stays_while_it_may_have_to_be_sent_again() -> None:
    """As long as no connection to the upstream is there."""
    proxy = InMemoryProxy()
    proxy.endpoint.hang = True
    client = proxy.client()
    client.send(POST + b"Content-Length: 100\r\n\r\n" + b"x" * 100)
    assert proxy.service.front.bodies.used == 100
    client.leave()
    assert proxy.service.front.bodies.used == 0


def test_a_body_that_is_sent_is_not_in_memory() -> None:
    """What is counted as gone is gone, however long the answer takes."""
    size = 8 * 2**20
    proxy = InMemoryProxy()
    client = proxy.client()
    tracemalloc.start()
    try:
        client.send(POST + b"Content-Length: %d\r\n\r\n" % size)
        for _ in range(size // 65536):
            client.send(bytes(65536))
        assert proxy.service.front.bodies.used == 0
        proxy.upstream.clear()
        assert tracemalloc.get_traced_memory()[0] < 2**20
    finally:
        tracemalloc.stop()
    proxy.upstream.send(OK)
    assert client.answer().status == 200


def test_what_is_pipelined_counts() -> None:
    """What waits behind a request is memory, too; who fills it so is cut off."""
    proxy = InMemoryProxy(max_bodies_bytes=1000)
    other, client = proxy.client(), proxy.client()
    other.send(POST + b"Content-Length: 600\r\n\r\n" + b"x" * 500)
    client.send(GET + b"\r\n")
    client.send(b"x" * 400)
    assert proxy.service.front.bodies.used == 900
    client.send(b"x" * 101)
    assert client.closed_by == "reset"
    proxy.pump()
    assert proxy.service.front.bodies.used == 500
    last = proxy.client()
    last.send(GET + b"\r\n" + GET + b"\r\n")
    for _ in range(2):
        proxy.upstream.send(OK)
    assert proxy.service.front.bodies.used == 500


# Credentials

KEYS = (("x-api-key", "sk-ant-one"), ("authorization", "Bearer sk-ant-one"))


def asks(proxy: InMemoryProxy, credential: tuple[str, str] | None, target: str = "/v1/messages") -> Client:
    client = proxy.client()
    client.request(target=target, headers=[] if credential is None else [credential])
    return client


def test_without_a_setting_there_is_no_limit() -> None:
    """Off by default: nothing is kept of any credential."""
    proxy = InMemoryProxy()
    for _ in range(50):
        asks(proxy, KEYS[0])
    assert proxy.in_flight == 50
    assert len(proxy.service.front.limits) == 0


@pytest.mark.parametrize("target", ["/v1/messages", "/v1/chat/completions"])
def test_requests_of_one_credential_at_a_time(target: str, logs: list[dict[str, Any]]) -> None:
    """429 in its API's words with `retry-after`, until one has ended; in whichever field the key is."""
    proxy = InMemoryProxy(limit_concurrent=2)
    first = asks(proxy, KEYS[0])
    upstream = proxy.upstream
    asks(proxy, KEYS[1])
    refused = asks(proxy, KEYS[1], target)
    answer = refused.answer()
    assert (answer.status, answer.header("retry-after")) == (429, "5")
    error = answer.json["error"]
    assert "LIMIT_CONCURRENT" in error["message"]
    if "chat" in target:
        assert error["type"] in ("requests", "rate_limit_error", "rate_limit_exceeded")
        assert "request_id" not in answer.json
    else:
        assert (error["type"], answer.json["request_id"]) == ("rate_limit_error", answer.header("x-proxy-request-id"))
    for other in (("x-api-key", "sk-ant-two"), None):
        assert asks(proxy, other).written == b""
    assert proxy.in_flight == 4
    upstream.send(OK)
    assert first.answer().status == 200
    assert asks(proxy, KEYS[0]).written == b""
    assert all("sk-ant" not in eventAsText(entry) for entry in logs)
    assert "sk-ant" not in repr(vars(proxy.service.front.limits))


@pytest.mark.parametrize("how", ["left", "cut", "too large", "no upstream"])
def test_a_request_that_fails_is_over(how: str) -> None:
    """However it ends, another one may come."""
    proxy = InMemoryProxy(limit_concurrent=1, anthropic_max_retries=0, max_message_bytes=100)
    for _ in range(3):
        if how == "no upstream":
            proxy.endpoint.failures = [OSError(111, "refused")]
        client = proxy.client()
        client.request(body=b"x" * 101 if how == "too large" else b"x", headers=[KEYS[0]])
        if how == "left":
            assert client.written == b""
            client.leave()
        elif how == "cut":
            proxy.upstream.reset()
        assert b"HTTP/1.1 429" not in client.written
        assert proxy.in_flight == 0


def test_requests_within_a_minute() -> None:
    """No more in any 60 seconds, streams or not; `retry-after` is when the next one passes, below a minute."""
    proxy = InMemoryProxy(limit_requests_per_minute=3)
    for _ in range(3):
        asks(proxy, KEYS[0])
        proxy.upstream.send(OK)
        proxy.clock.advance(10)
    answer = asks(proxy, KEYS[0]).answer()
    assert (answer.status, answer.header("retry-after")) == (429, "30")
    assert "LIMIT_REQUESTS_PER_MINUTE" in answer.json["error"]["message"]
    proxy.clock.advance(29)
    assert asks(proxy, KEYS[0]).answer().header("retry-after") == "1"
    proxy.clock.advance(1)
    assert asks(proxy, KEYS[0]).written == b""
    assert asks(proxy, KEYS[0]).answer().header("retry-after") == "10"


def test_pages_are_not_limited() -> None:
    """Only what is forwarded counts."""
    proxy = InMemoryProxy(limit_concurrent=1, limit_requests_per_minute=1)
    for _ in range(5):
        assert proxy.get("/livez").status == 200
    assert len(proxy.service.front.limits) == 0


def make_limits(concurrent: int = 0, per_minute: int = 0) -> tuple[CredentialLimits, Clock]:
    clock = Clock()
    return CredentialLimits(concurrent, per_minute, clock.seconds), clock


def entered(result: Refusal | Callable[[], None]) -> Callable[[], None]:
    assert not isinstance(result, Refusal)
    return result


def test_retry_after_is_at_most_59() -> None:
    """And at least 1: SDKs take nothing else."""
    table, clock = make_limits(per_minute=1)
    entered(table.enter(b"a"))
    seen = set()
    for _ in range(240):
        refused = table.enter(b"a")
        assert isinstance(refused, Refusal)
        seen.add(refused.retry_after)
        clock.advance(0.25)
    assert seen == set(range(1, 60))
    entered(table.enter(b"a"))


def test_the_table_of_credentials_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was not seen for longest is forgotten, rather than who has something in flight."""
    monkeypatch.setattr(limits, "MAX_CREDENTIALS", 10)
    table, _ = make_limits(concurrent=1)
    entered(table.enter(b"busy"))
    for number in range(1000):
        entered(table.enter(b"%d" % number))()
        assert len(table) <= 10
    assert isinstance(table.enter(b"busy"), Refusal)
    leaves = [entered(table.enter(b"busy %d" % number)) for number in range(1000)]
    assert len(table) == 10
    for leave in leaves:
        leave()
    assert all(use.in_flight == 0 for use in table._uses.values())


def test_limits_hold_on_another_s_site() -> None:
    """Where the resource hangs in a site of somebody else."""
    proxy = InMemoryProxy(limit_concurrent=1)
    site = Site(proxy.service.resource(), reactor=proxy.clock)

    def ask(target: str) -> Client:
        wire: Any = Client()
        wire.protocol = site.buildProtocol(wire.getPeer())
        wire.protocol.callLater = proxy.clock.callLater
        wire.protocol.makeConnection(wire)
        wire.request(target=target, headers=[KEYS[0]])
        client: Client = wire
        return client

    first = ask("/v1/messages")
    for target in ("/v1/messages", "/v1/chat/completions"):
        answer = ask(target).answer()
        assert (answer.status, answer.header("retry-after")) == (429, "5")
        assert ("request_id" in answer.json) == ("chat" not in target)
    proxy.upstream.send(OK)
    assert first.answer().status == 200
    assert ask("/v1/messages").written == b""
    assert proxy.in_flight == 1


# Many slow clients

BIG = 2**24
"""More bytes than any kernel keeps for a connection."""
SLOW = 200
"""Connections of each kind; `test_slowhttptest` opens 2,000."""


def sends_much(connection: socket.socket) -> None:
    while request := read_request(connection):
        size = re.search(rb" /v1/bytes/(\d+) ", request)
        body = b"x" * int(size[1]) if size else b"ok"
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def is_served(proxy: Proxy) -> None:
    """Somebody who is not slow: a page, an answer, one with a body."""
    assert proxy.get("/health")[0] == 200
    with SocketClient(proxy.port) as client:
        for _ in range(3):
            client.ask("POST", "/v1/messages", body=b'{"model":"claude-test"}')
            answer = client.answer()
            assert (answer.status, answer.body) == (200, b"ok")


@pytest.mark.parametrize("kind", ["headers", "body", "read"])
def test_slow_clients_leave_others_served(kind: str, tmp_path: Path) -> None:
    """Slow headers, a slow body, slow readers, hundreds of each: all others are served, and these come to an end."""
    timeouts = {"HEADER_TIMEOUT": "2s", "READ_TIMEOUT": "2s", "WRITE_TIMEOUT": "2s"}
    with ExitStack() as stack:
        upstream = stack.enter_context(RawUpstream(sends_much))
        proxy = stack.enter_context(door(tmp_path, upstream, **timeouts))
        begin = {
            "headers": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: ",
            "body": request_bytes("POST", "/v1/messages", [("content-length", "5000")]),
            "read": request_bytes("GET", f"/v1/bytes/{BIG}"),
        }[kind]
        slow = [stack.enter_context(SocketClient(proxy.port, receive_buffer=4096)) for _ in range(SLOW)]
        for client in slow:
            client.send(begin)
        is_served(proxy)
        open_yet = list(slow)
        rounds = 0
        while kind != "read" and open_yet:
            rounds += 1
            assert rounds < 1000
            for client in open_yet if kind == "headers" or rounds == 1 else ():
                client.send(b"y")
            is_served(proxy)
            ended = [client for client in open_yet if has_answer(client)]
            for client in ended:
                assert client.answer().status == 408
            open_yet = [client for client in open_yet if client not in ended]
        wait_for(lambda: proxy.in_flight() == 0, "nothing is in flight", 60.0)
        is_served(proxy)
        if kind == "read":
            assert proxy.log.count("verdict=client_stalled") == SLOW
        assert mistakes(proxy) == ""


def has_answer(client: SocketClient) -> bool:
    client.socket.setblocking(False)
    try:
        return bool(client.socket.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        client.socket.settimeout(15.0)


@pytest.mark.skipif(shutil.which("slowhttptest") is None, reason="slowhttptest is not installed (Debian has it)")
@pytest.mark.parametrize(
    "attack",
    [
        ("-H", "-i", "1", "-u", "{url}/v1/messages"),
        ("-B", "-i", "1", "-s", "1000000", "-u", "{url}/v1/messages"),
        ("-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "32", "-k", "3", "-u", "{url}/v1/bytes/200000"),
    ],
    ids=["headers", "body", "read"],
)
def test_slowhttptest(attack: tuple[str, ...], tmp_path: Path) -> None:
    """2,000 connections: the attacker itself finds the service available, to the end. Ten seconds each."""
    with RawUpstream(sends_much) as upstream, door(tmp_path, upstream) as proxy:
        command = ["slowhttptest", "-c", "2000", "-r", "1000", "-l", "8", "-p", "3"]
        command += [part.format(url=proxy.url) for part in attack]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as attacker:
            assert attacker.stdout is not None
            try:
                while attacker.poll() is None:
                    is_served(proxy)
                output = attacker.stdout.read()
            finally:
                attacker.kill()
        assert "YES" in output
        assert "NO\n" not in output
        is_served(proxy)
        assert mistakes(proxy) == ""
