"""Writing to a transport at once, and how much of it the kernel has not taken."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.internet.testing import StringTransport

from twisted_proxy.relay.transports import unsent_bytes, write_now


class Watching:
    """What a transport asks of its reactor: which descriptors to watch."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def addWriter(self, writer: IReadWriteDescriptor) -> None:
        self.asked.append("writing")

    def removeWriter(self, writer: IReadWriteDescriptor) -> None:
        self.asked.append("not writing")

    def addReader(self, reader: IReadWriteDescriptor) -> None:
        self.asked.append("reading")

    def removeReader(self, reader: IReadWriteDescriptor) -> None:
        self.asked.append("not reading")


@attrs.define
class Pair:
    """One of Twisted's TCP transports over a real socket, and the other end of it."""

    transport: Any
    peer: socket.socket
    reactor: Watching

    def fill(self) -> int:
        """Until the kernel takes no more; how much it has taken."""
        filled = 0
        while True:
            try:
                filled += self.transport.socket.send(bytes(64 * 1024))
            except BlockingIOError:
                return filled

    def drain(self, size: int) -> bytes:
        """Read so much at the other end."""
        taken = bytearray()
        while len(taken) < size:
            piece = self.peer.recv(min(size - len(taken), 1 << 20))
            assert piece
            taken += piece
        return bytes(taken)


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    peer.settimeout(10)
    reactor: Any = Watching()
    transport: Any = Connection(ours, Protocol(), reactor)
    transport.connected = 1
    yield Pair(transport, peer, reactor)
    ours.close()
    peer.close()


class TestWriteNow:
    """Without waiting for the reactor's next turn."""

    def test_at_once(self, pair: Pair) -> None:
        """It has left when the call returns, and the reactor was not asked for anything."""
        write_now(pair.transport, (b"hello",))
        write_now(pair.transport, (b" world",))
        assert pair.peer.recv(100) == b"hello world"
        assert pair.reactor.asked == []
        assert unsent_bytes(pair.transport) == 0

    def test_nothing(self, pair: Pair) -> None:
        """No bytes are no bytes."""
        write_now(pair.transport, (b"",))
        assert pair.reactor.asked == []
        assert unsent_bytes(pair.transport) == 0

    def test_what_the_kernel_does_not_take(self, pair: Pair) -> None:
        """Waits for the reactor, in order, with what is written after it, even when there is room again."""
        filled = pair.fill()
        write_now(pair.transport, (b"first,",))
        assert pair.reactor.asked == ["writing"]
        assert unsent_bytes(pair.transport) == 6
        pair.drain(filled)
        write_now(pair.transport, (b"second",))
        assert unsent_bytes(pair.transport) == 12
        pair.transport.doWrite()
        assert pair.peer.recv(100) == b"first,second"
        assert unsent_bytes(pair.transport) == 0
        write_now(pair.transport, (b"third",))
        assert pair.peer.recv(100) == b"third"

    def test_a_part_of_it(self, pair: Pair) -> None:
        """What the kernel takes goes, the rest waits; no byte is lost or sent twice."""
        data = bytes(range(251)) * 40000
        write_now(pair.transport, (data,))
        rest = unsent_bytes(pair.transport)
        assert 0 < rest < len(data)
        assert pair.reactor.asked == ["writing"]
        taken = pair.drain(len(data) - rest)
        while unsent_bytes(pair.transport):
            before = unsent_bytes(pair.transport)
            pair.transport.doWrite()
            taken += pair.drain(before - unsent_bytes(pair.transport))
        assert taken == data

    def test_backpressure_is_kept(self, pair: Pair) -> None:
        """A producer that is registered is paused by what waits."""
        paused: list[str] = []

        class Producer:
            def pauseProducing(self) -> None:
                paused.append("paused")

        pair.transport.producer, pair.transport.streamingProducer = Producer(), True
        write_now(pair.transport, (b"little",))
        assert paused == []
        write_now(pair.transport, (bytes(1 << 24),))
        assert paused == ["paused"]
        pair.transport.producer = None

    def test_a_peer_that_is_gone(self, pair: Pair) -> None:
        """Is no exception: the transport finds out in its own way."""
        pair.peer.close()
        write_now(pair.transport, (b"x",))
        write_now(pair.transport, (b"y",))
        assert pair.reactor.asked[0] == "writing"

    def test_a_transport_that_is_closed(self, pair: Pair) -> None:
        """Takes nothing, quietly."""
        pair.transport.connected = 0
        write_now(pair.transport, (b"x",))
        assert unsent_bytes(pair.transport) == 0
        assert pair.reactor.asked == []

    def test_a_transport_that_closes(self, pair: Pair) -> None:
        """What is written after `loseConnection` goes the ordinary way: it is for the transport to say."""
        pair.transport.loseConnection()
        pair.reactor.asked.clear()
        write_now(pair.transport, (b"x",))
        assert pair.reactor.asked == ["writing"]

    def test_tls(self, pair: Pair) -> None:
        """Never past the encryption."""
        pair.transport.TLS = True
        went: list[bytes] = []
        pair.transport.write = went.append
        write_now(pair.transport, (b"secret",))
        assert went == [b"secret"]
        pair.peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            pair.peer.recv(1)

    def test_other_transports(self) -> None:
        """Are written to as ever."""
        transport = StringTransport()
        write_now(transport, (b"hello",))
        assert transport.value() == b"hello"


class TestUnsentBytes:
    """What a TCP transport still holds."""

    def test_in_both_of_its_buffers(self, pair: Pair) -> None:
        """What it is about to send, and what came since."""
        filled = pair.fill()
        pair.transport.write(b"12345")
        pair.transport.doWrite()
        pair.transport.write(b"678")
        assert unsent_bytes(pair.transport) == 8
        pair.drain(filled)
        pair.transport.doWrite()
        assert unsent_bytes(pair.transport) == 0
        assert pair.peer.recv(100) == b"12345678"

    def test_through_wrappers(self, pair: Pair) -> None:
        """TLS, and a channel that is its request's transport, are looked through."""
        pair.fill()
        pair.transport.write(b"12345")

        class Wrapper:
            def __init__(self, transport: object) -> None:
                self.transport = transport

        assert unsent_bytes(Wrapper(Wrapper(pair.transport))) == 5

    @pytest.mark.parametrize("transport", [None, object(), StringTransport()])
    def test_others(self, transport: object) -> None:
        """Do not show it."""
        assert unsent_bytes(transport) == 0
