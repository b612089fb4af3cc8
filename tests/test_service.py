"""The proxy as a service: drain and stop, in order; and as a guest in another's tree."""

from __future__ import annotations

from typing import Any, cast
from unittest import mock

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.web.resource import Resource
from twisted.web.server import Site

from twisted_proxy.config import Config, ProviderConfig, RecordConfig
from twisted_proxy.relay.connection import OriginAgent
from twisted_proxy.service import ProxyServer, ProxyService
from twisted_proxy.web.channel import LAST_CALL, ProxySite

from .memory import LAST_CHUNK, STREAM_HEAD, Client, FakeEndpoint, InMemoryProxy, chunk, event

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def fired(deferred: Deferred[Any]) -> list[Any]:
    """A list that has an element once the Deferred has fired."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    return results


class Server:
    """A `ProxyServer` on a reactor in memory, and its first port's connections."""

    def __init__(self, **options: Any) -> None:
        self.reactor = MemoryReactorClock()
        # No signal of the test's own process is to be taken.
        self.reactor.callWhenRunning = mock.Mock()  # type: ignore[method-assign]
        self.endpoint = FakeEndpoint()
        agent = OriginAgent(self.reactor, self.endpoint, b"http://upstream.test")
        config = Config(
            anthropic=ProviderConfig(base_url="http://upstream.test"), record=RecordConfig(mode="off"), **options
        )
        self.service = ProxyServer(config, self.reactor, agent=lambda _: agent)
        self.service.privilegedStartService()
        self.service.startService()

    @property
    def site(self) -> ProxySite:
        return self.service.site

    def client(self) -> Client:
        wire = Client()
        channel: Any = self.site.buildProtocol(wire.getPeer())
        channel.callLater = self.reactor.callLater
        wire.protocol = wire.channel = channel
        channel.makeConnection(wire)
        return wire

    @property
    def listening(self) -> bool:
        return all(cast("Port", port).listening for port in self.service.ports)


class Port:
    """A listening port that knows whether it still is one."""

    def __init__(self, port: Any) -> None:
        self.listening = True
        self._port = port

    def stopListening(self) -> None:
        self.listening = False


@pytest.fixture
def server() -> Server:
    """Without lame duck, with a drain timeout of 100 s."""
    made = Server(drain_timeout=100.0)
    made.service.ports[:] = [Port(port) for port in made.service.ports]  # type: ignore[misc]
    return made


def test_stopping_with_nothing_in_flight_ends_at_once(server: Server) -> None:
    """No tick is waited for."""
    idle = server.client()
    server.reactor.advance(LAST_CALL)
    stopped = fired(server.service.stopService())
    assert not server.listening
    assert idle.closed_by == "fin"
    assert stopped == []
    idle.deliver_close()
    assert stopped == [None]
    assert server.reactor.getDelayedCalls() == []


def test_it_listens_and_serves_until_the_last_answer_is_out(server: Server) -> None:
    """Draining, then closed port, then flushed connections, in this order."""
    client = server.client()
    client.request()
    stopped = fired(server.service.stopService())
    server.reactor.advance(1)
    assert server.listening
    late = server.client()
    late.request("GET", "/v1/models", body=None)
    server.endpoint.peers[1].send(OK)
    assert late.answer().outcome == "complete"
    late.deliver_close()
    server.endpoint.peers[0].send(STREAM_HEAD + chunk(event("ping")) + LAST_CHUNK)
    assert not server.listening
    assert client.answer().outcome == "complete"
    assert stopped == []
    server.reactor.advance(LAST_CALL)
    client.deliver_close()
    assert stopped == [None]


def test_the_lame_duck_is_waited_for() -> None:
    """So that a balancer sees the 503 before the port closes."""
    server = Server(lame_duck=5.0)
    server.service.ports[:] = [Port(port) for port in server.service.ports]  # type: ignore[misc]
    stopped = fired(server.service.stopService())
    server.reactor.advance(4.9)
    assert server.listening
    server.reactor.advance(0.2)
    assert stopped == [None]


@pytest.mark.parametrize("how", ["deadline", "hurry"])
def test_what_remains_at_the_end_is_cut_visibly(server: Server, how: str) -> None:
    """A stream between two events is told in-band; one within an event is not; what has no answer gets a 529."""
    between, within, waiting, uploading = (server.client() for _ in range(4))
    for client in (between, within, waiting):
        client.request()
    uploading.send(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
    peers = server.endpoint.peers
    peers[0].send(STREAM_HEAD + chunk(event("ping")))
    peers[1].send(STREAM_HEAD + chunk(event("ping")[:-1]))
    stopped = fired(server.service.stopService())
    if how == "hurry":
        server.service.hurry()
    else:
        for _ in range(100):
            server.reactor.advance(1)
    assert not server.listening
    assert (between.answer().outcome, within.answer().outcome) == ("cut", "cut")
    told = between.answer().body
    assert told.startswith(event("ping") + b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"')
    assert told.endswith(b"}\n\n")
    assert within.answer().body == event("ping")[:-1]
    for refused in (waiting, uploading):
        assert (refused.answer().status, refused.answer().json["error"]["type"]) == (529, "overloaded_error")
    assert [peer.closed_by for peer in peers] == ["reset"] * 3
    for client in (between, within, waiting, uploading):
        client.deliver_close()
    server.reactor.advance(5)
    for client in (between, within, waiting, uploading):
        client.deliver_close()
    for peer in peers:
        peer.deliver_close()
    assert stopped == [None]
    assert server.service.gauge.in_flight == 0


def test_a_slow_reader_of_the_last_answer_gets_all_of_it(server: Server) -> None:
    """The gauge is not zero while the client holds us back, and the process waits for its connection after that."""
    client = server.client()
    client.request()
    server.endpoint.peers[0].send(STREAM_HEAD + chunk(b"x" * 1000))
    client.hold()
    server.endpoint.peers[0].send(LAST_CHUNK)
    stopped = fired(server.service.stopService())
    for _ in range(50):
        server.reactor.advance(1)
    assert server.listening
    client.go_on()
    assert client.answer().outcome == "complete"
    server.reactor.advance(LAST_CALL)
    client.deliver_close()
    assert stopped == [None]


def test_hurrying_after_the_drain_closes_what_is_still_open(server: Server) -> None:
    """Clients that take their time are not waited for by somebody who asks twice."""
    client = server.client()
    stopped = fired(server.service.stopService())
    assert stopped == []
    server.service.hurry()
    assert client.closed_by is not None
    client.deliver_close()
    assert stopped == [None]


def test_each_caller_of_stop_service_is_told(server: Server) -> None:
    """twistd's trigger and an embedding application may both ask."""
    server.client().request()
    both = [fired(server.service.stopService()), fired(server.service.stopService())]
    server.endpoint.peers[0].send(OK)
    for channel in list(server.site.channels):
        channel.transport.deliver_close()  # type: ignore[attr-defined]
    assert both == [[None], [None]]


def test_a_port_that_cannot_be_had_stops_the_start() -> None:
    """With words that name it, and without those that could be had."""
    reactor = MemoryReactorClock()

    def busy(port: int, *_: Any, **__: Any) -> Any:
        raise CannotListenError("127.0.0.1", port, OSError(98, "Address already in use"))

    reactor.listenTCP = busy  # type: ignore[method-assign]
    service = ProxyServer(
        Config(record=RecordConfig(mode="off"), listen=("tcp:3001:interface=127.0.0.1", "tcp:3002")), reactor
    )
    with pytest.raises(SystemExit) as stopped:
        service.privilegedStartService()
    message = str(stopped.value)
    assert "tcp:3001:interface=127.0.0.1" in message
    assert "tcp:3002" in message
    assert "already in use" in message
    assert "--port" in message


# In another's tree


def embedded(depth: int) -> tuple[Clock, ProxyService, FakeEndpoint, Any]:
    clock = Clock()
    endpoint = FakeEndpoint()
    agent = OriginAgent(clock, endpoint, b"http://upstream.test")
    service = ProxyService(
        Config(record=RecordConfig(mode="off"), anthropic=ProviderConfig(base_url="http://upstream.test")),
        clock,
        agent=lambda _: agent,
    )
    root = here = Resource()
    for level in range(depth - 1):
        below = Resource()
        here.putChild(f"level{level}".encode(), below)
        here = below
    here.putChild(b"claude", service.resource())

    def connect() -> Client:
        site = Site(root)
        wire = Client()
        channel: Any = site.buildProtocol(wire.getPeer())
        channel.callLater = clock.callLater
        wire.protocol = channel
        channel.makeConnection(wire)
        return wire

    return clock, service, endpoint, connect


@pytest.mark.parametrize("depth", [1, 3])
def test_it_works_at_any_depth_of_a_tree(depth: int) -> None:
    """The upstream sees the path below it, byte for byte; pages and errors are its own as well."""
    _, service, endpoint, connect = embedded(depth)
    prefix = "/" + "".join(f"level{level}/" for level in range(depth - 1)) + "claude"
    client = connect()
    client.request(target=f"{prefix}/v1/messages?beta=true&x=%2F", body=b'{"a": 1.0}')
    assert service.gauge.in_flight == 1
    assert endpoint.peers[0].written.startswith(b"POST /v1/messages?beta=true&x=%2F HTTP/1.1\r\n")
    assert endpoint.peers[0].written.endswith(b'\r\n\r\n{"a": 1.0}')
    endpoint.peers[0].send(STREAM_HEAD + chunk(event("ping")) + LAST_CHUNK)
    answer = client.answer()
    assert (answer.status, answer.body, answer.outcome) == (200, event("ping"), "complete")
    assert answer.header("x-proxy-request-id") is not None
    assert service.gauge.in_flight == 0
    for target, status in (("/livez", 200), ("/health", 200), ("/nope", 404), ("/v1/../x", 400), ("/v1//x", 400)):
        page = connect()
        page.request("GET", prefix + target, body=None)
        assert page.answer("GET").status == status, target
        assert page.answer("GET").header("x-proxy-request-id") is not None
        assert page.answer("GET").header("content-type") == "application/json"


def test_a_guest_is_counted_drained_and_cut_as_at_home() -> None:
    """`stopService` of the guest is the drain; its host serves on meanwhile."""
    clock, service, endpoint, connect = embedded(1)
    streaming, leaving = connect(), connect()
    for client in (streaming, leaving):
        client.request(target="/claude/v1/messages")
    endpoint.peers[0].send(STREAM_HEAD + chunk(event("ping")))
    leaving.leave()
    assert endpoint.peers[1].closed_by == "reset"
    stopped = fired(service.stopService())
    clock.advance(10)
    page = connect()
    page.request("GET", "/claude/health", body=None)
    assert (page.answer("GET").status, page.answer("GET").json["in_flight"]) == (503, 1)
    assert stopped == []
    service.hurry()
    assert b"overloaded_error" in streaming.answer().body
    assert streaming.answer().outcome == "cut"
    streaming.deliver_close()
    for peer in endpoint.peers:
        peer.deliver_close()
    assert stopped == [None]
    assert service.gauge.in_flight == 0


def test_the_proxy_in_memory_leaves_nothing_behind() -> None:
    """After its requests and its stop, no call is scheduled and no connection open."""
    proxy = InMemoryProxy()
    client, upstream = proxy.asked()
    upstream.send(OK)
    client.leave()
    stopped = fired(proxy.service.stopService())
    fired(proxy.agent.close())
    proxy.pump()
    assert stopped == [None]
    assert proxy.clock.getDelayedCalls() == []
