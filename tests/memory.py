"""
The whole proxy in memory: real channels, requests, relays and upstream connections; no socket, no waiting.

A test holds the three ends: the clients' wires, the upstream's wires, and the clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
import h11
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.corpus import event as event
from twisted_proxy.config import Config, ProviderConfig, RecordConfig
from twisted_proxy.relay.connection import OriginAgent
from twisted_proxy.service import ProxyService
from twisted_proxy.web.channel import Channel, ProxySite

ORIGIN = "http://upstream.test"


class Wire(StringTransport):
    """
    A transport that keeps what is written, and knows how it was closed.

    :ivar closed_by: ``None``, ``"fin"`` or ``"reset"``, as its owner closed it.
    """

    def __init__(self) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "127.0.0.1", 54321))
        self.closed_by: str | None = None
        self.protocol: Any = None
        # As the reactor's transports are: asked to resume while closing, they do nothing.
        self._lenient = True

    def loseConnection(self) -> None:
        self.closed_by = self.closed_by or "fin"
        super().loseConnection()

    def abortConnection(self) -> None:
        self.closed_by = self.closed_by or "reset"
        super().loseConnection()

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing is delayed here."""

    @property
    def written(self) -> bytes:
        return bytes(self.value())

    def deliver_close(self) -> None:
        """What the reactor does a turn after its owner has closed it."""
        if self.closed_by is not None and self.protocol is not None:
            reason = ConnectionDone() if self.closed_by == "fin" else ConnectionLost()
            protocol, self.protocol = self.protocol, None
            if self.producer is not None and self.closed_by == "reset":
                self.producer.stopProducing()
            protocol.connectionLost(Failure(reason))

    def lose(self, reason: Exception) -> None:
        """The other side, or the network, ends it."""
        protocol, self.protocol = self.protocol, None
        if self.producer is not None:
            self.producer.stopProducing()
        protocol.connectionLost(Failure(reason))


class UpstreamPeer(Wire):
    """The upstream's end of one connection."""

    def send(self, data: bytes) -> None:
        if self.protocol is not None and self.closed_by is None:
            self.protocol.dataReceived(data)

    def finish(self) -> None:
        """FIN."""
        if self.protocol is not None:
            self.lose(ConnectionDone())

    def reset(self) -> None:
        """RST."""
        if self.protocol is not None:
            self.lose(ConnectionLost())

    @property
    def paused(self) -> bool:
        return bool(self.producerState == "paused")


@implementer(IStreamClientEndpoint)
class FakeEndpoint:
    """
    Accepts connections at once, unless ``failures`` says what to fail with, or ``hang`` is set.

    :ivar peers: the connections that were made, in order.
    """

    def __init__(self) -> None:
        self.peers: list[UpstreamPeer] = []
        self.failures: list[Exception] = []
        self.hang = False
        self.attempts = 0
        self.cancelled = 0

    def connect(self, factory: Any) -> Deferred[Any]:
        self.attempts += 1
        connected: Deferred[Any] = Deferred(self._cancelled)
        if self.hang:
            return connected
        if self.failures:
            connected.errback(Failure(self.failures.pop(0)))
            return connected
        peer = UpstreamPeer()
        peer.protocol = factory.buildProtocol(None)
        self.peers.append(peer)
        peer.protocol.makeConnection(peer)
        connected.callback(peer.protocol)
        return connected

    def _cancelled(self, _: object) -> None:
        self.cancelled += 1


class Client(Wire):
    """A client's end of one connection."""

    channel: Channel

    def send(self, data: bytes) -> None:
        if self.closed_by != "reset" and self.protocol is not None:
            self.protocol.dataReceived(data)

    def request(
        self,
        method: str = "POST",
        target: str = "/v1/messages",
        body: bytes | None = b'{"model":"claude-test","stream":true}',
        headers: list[tuple[str, str]] | None = None,
    ) -> None:
        lines = [f"{method} {target} HTTP/1.1", "Host: proxy.test"]
        lines += [f"{name}: {value}" for name, value in headers or []]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    def leave(self, reason: Exception | None = None) -> None:
        """By FIN, or as the reason says."""
        if self.protocol is not None:
            self.lose(reason or ConnectionDone())

    def hold(self) -> None:
        """Take nothing more."""
        assert self.producer is not None
        self.producer.pauseProducing()

    def go_on(self) -> None:
        assert self.producer is not None
        self.producer.resumeProducing()

    def answer(self, method: str = "POST") -> Answer:
        """What was written so far, as h11 reads it."""
        return read_answer(self.written, method=method, closed=self.closed_by is not None)

    def answers(self, count: int) -> list[Answer]:
        found, rest = [], self.written
        for _ in range(count):
            answer = read_answer(rest, closed=self.closed_by is not None)
            found.append(answer)
            rest = answer.rest
        return found


@attrs.frozen
class Answer:
    """
    An answer as a strict client sees it.

    :ivar outcome: ``complete``, ``incomplete`` (more may come) or ``cut`` (the connection was closed in the middle).
    """

    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    outcome: str
    rest: bytes = b""

    def all(self, name: str) -> list[str]:
        return [value.decode("latin-1") for key, value in self.headers if key == name.lower().encode()]

    def header(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) < 2, f"{name} stands {len(values)} times"
        return values[0] if values else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def read_answer(data: bytes, *, method: str = "POST", closed: bool = False) -> Answer:
    """Read one answer with h11, which takes nothing cut for whole."""
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method=method, target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(data)
    if closed:
        reader.receive_data(b"")
    head: Any = None
    body = b""
    outcome = "incomplete"
    while True:
        try:
            event = reader.next_event()
        except h11.RemoteProtocolError:
            outcome = "cut"
            break
        if isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            outcome = "complete"
            break
        elif event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
            break
    if head is None:
        return Answer(0, b"", [], b"", outcome)
    return Answer(
        head.status_code, bytes(head.reason), list(head.headers), body, outcome, bytes(reader.trailing_data[0])
    )


class InMemoryProxy:
    """
    A proxy with its site, and whoever speaks to it.

    :param keeper: records, if there is one. :param store: makes the store that the dashboard reads.
    :param compute: runs what would block, in place of the dashboard's threads.
    :param tracing: makes what traces.
    :param options: fields of `Config`; those of `ProviderConfig` with ``anthropic_`` before them.
    :ivar endpoint: Anthropic's. :ivar others: those of other providers, by base URL.
    """

    def __init__(
        self,
        *,
        keeper: Any = None,
        store: Any = None,
        compute: Any = None,
        tracing: Callable[[Clock, Config], Any] | None = None,
        **options: Any,
    ) -> None:
        provider = {key.removeprefix("anthropic_"): options.pop(key) for key in list(options) if "anthropic_" in key}
        provider.setdefault("base_url", ORIGIN)
        self.clock = Clock()
        self.endpoint = FakeEndpoint()
        self.others: dict[str, FakeEndpoint] = {}
        base_url: str = provider["base_url"]
        self.agent = OriginAgent(self.clock, self.endpoint, "/".join(base_url.split("/")[:3]).encode())
        options.setdefault("record", RecordConfig(mode="off"))
        self.config = Config(anthropic=ProviderConfig(**provider), **options)
        self.service = ProxyService(
            self.config,
            self.clock,
            agent=self._agent,
            keeper=keeper,
            store=store,
            compute=compute,
            tracing=None if tracing is None else tracing(self.clock, self.config),
            wall_clock=lambda: 1_700_000_000.0,
        )
        self.site = ProxySite(self.service.resource(), self.service.front)

    def _agent(self, provider: ProviderConfig) -> OriginAgent:
        if provider is self.config.anthropic:
            return self.agent
        endpoint = self.others.setdefault(provider.base_url, FakeEndpoint())
        return OriginAgent(self.clock, endpoint, "/".join(provider.base_url.split("/")[:3]).encode())

    def client(self) -> Client:
        wire = Client()
        channel: Any = self.site.buildProtocol(wire.getPeer())
        channel.callLater = self.clock.callLater
        wire.protocol = wire.channel = channel
        channel.makeConnection(wire)
        return wire

    @property
    def upstream(self) -> UpstreamPeer:
        """The newest connection to the upstream."""
        return self.endpoint.peers[-1]

    @property
    def in_flight(self) -> int:
        return self.service.gauge.in_flight

    def get(self, target: str) -> Answer:
        client = self.client()
        client.request("GET", target, body=None)
        return client.answer("GET")

    def asked(self, **request: Any) -> tuple[Client, UpstreamPeer]:
        """A client whose request has reached the upstream."""
        client = self.client()
        client.request(**request)
        return client, self.upstream

    def pump(self) -> None:
        """Let closed connections be gone."""
        for channel in list(self.site.channels):
            channel.transport.deliver_close()  # type: ignore[attr-defined]
        for peer in self.endpoint.peers:
            peer.deliver_close()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def captured(logs: list[dict[str, Any]], starts: str) -> list[str]:
    """The logged lines that begin with ``starts``."""
    from twisted.logger import formatEvent

    return [line for entry in logs if (line := formatEvent(entry)).startswith(starts)]


Observer = Callable[[dict[str, Any]], None]
