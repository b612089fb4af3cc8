"""
Listening sockets: our own, and those that another process has made and may use as well.

Twisted's endpoints make and adopt them. What they do with an adopted Unix socket at its end, shut it down and delete
its name, is not ours to do: whoever made it goes on with it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from twisted.internet import endpoints, fdesc, tcp, unix
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

BACKLOG: Final = 1024
"""Connections that the kernel keeps until they are accepted. Twisted's 50 are too few for a burst of agents."""

ACCEPTED_AT_ONCE: Final = 2
"""Connections that a process takes in one turn of its reactor where others listen as well: the rest is for them."""

LEFT_OVER: Final = 0.1
"""Seconds between two looks at what nobody else has accepted, by a process that goes."""

Listen = Callable[[str, IProtocolFactory], Deferred[IListeningPort]]
"""Begins to listen where an endpoint string says."""


def with_backlog(description: str) -> str:
    """An endpoint string with our backlog, where it can have one and says none."""
    if description.startswith(("tcp:", "ssl:", "unix:")) and ":backlog=" not in description:
        return f"{description}:backlog={BACKLOG}"
    return description


def address_of(port: IListeningPort) -> str:
    """For people."""
    host: Any = port.getHost()
    number = getattr(host, "port", None)
    return f"{host.host}:{number}" if number is not None else os.fsdecode(host.name or b"?")


def listener(reactor: Any) -> Listen:
    """Makes sockets, or adopts those of ``systemd:`` endpoints."""

    def listen(description: str, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        adopting = _Adopting(reactor, None) if description.startswith("systemd:") else reactor
        return _endpoint(adopting, with_backlog(description)).listen(factory)

    return listen


def inheritor(reactor: Any, descriptors: dict[str, int]) -> Listen:
    """
    Listens on sockets that are there.

    :param descriptors: by endpoint string, which says what is spoken there: TLS, or not.
    """

    def listen(description: str, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        adopting = _Adopting(reactor, descriptors[description])
        if description.startswith("systemd:"):
            # Its descriptor has another number here.
            return succeed(adopt(reactor, descriptors[description], factory))
        return _endpoint(adopting, description).listen(factory)

    return listen


def _endpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    endpoint: IStreamServerEndpoint = endpoints.serverFromString(reactor, description)
    return endpoint


def listen_all(wanted: Sequence[tuple[str, IProtocolFactory]], listen: Listen) -> list[IListeningPort]:
    """
    Listen on all of them.

    :param wanted: endpoint strings, and what answers there.
    :raises SystemExit: with words, and with no port open; a process that is deaf must not run on.
    """
    ports: list[IListeningPort] = []
    problems: list[str] = []

    def failed(why: Failure, description: str) -> None:
        problems.append(f"  {description}: {why.value}")

    for description, factory in wanted:
        try:
            listening = listen(description, factory)
        except Exception as problem:  # noqa: BLE001 - each of several addresses has its own problem
            problems.append(f"  {description}: {problem}")
            continue
        # Listening on what is local is done at once, or fails at once.
        listening.addCallbacks(ports.append, failed, errbackArgs=(description,))
    if problems:
        for port in ports:
            port.stopListening()
        raise SystemExit(
            "claude-proxy cannot listen:\n"
            + "\n".join(problems)
            + "\nAnother program, perhaps another claude-proxy, may hold the address: "
            "stop it, or choose another one with --port, --host or --listen."
        )
    return ports


def stand_back(port: IListeningPort) -> None:
    """Accept only what nobody else accepts on the same socket, where it is one that others may use as well."""
    if isinstance(port, _Shared):
        port.stand_back()


class _Adopting:
    """
    A reactor that listens on an inherited socket wherever it is to listen.

    :param descriptor: ``None``: the one that it is given.
    """

    def __init__(self, reactor: Any, descriptor: int | None) -> None:
        self._reactor = reactor
        self._descriptor = descriptor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: IProtocolFactory, *_: Any, **__: Any) -> IListeningPort:
        assert self._descriptor is not None
        return adopt(self._reactor, self._descriptor, factory)

    def listenUNIX(self, address: str, factory: IProtocolFactory, *_: Any, **__: Any) -> IListeningPort:
        assert self._descriptor is not None
        return adopt(self._reactor, self._descriptor, factory)

    def listenSSL(
        self, port: int, factory: IProtocolFactory, contextFactory: Any, *_: Any, **__: Any
    ) -> IListeningPort:
        assert self._descriptor is not None
        return adopt(self._reactor, self._descriptor, TLSMemoryBIOFactory(contextFactory, False, factory))

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: IProtocolFactory) -> IListeningPort:
        return adopt(self._reactor, fileDescriptor if self._descriptor is None else self._descriptor, factory)


def adopt(reactor: Any, descriptor: int, factory: IProtocolFactory) -> IListeningPort:
    """Listen on a socket that others may use as well; the descriptor stays open, and is not needed any more."""
    fdesc.setNonBlocking(descriptor)
    with socket.socket(fileno=os.dup(descriptor)) as found:
        family = found.family
    if family == socket.AF_UNIX:
        port: Any = _SharedUNIXPort._fromListeningDescriptor(reactor, descriptor, factory)
    else:
        port = _SharedTCPPort._fromListeningDescriptor(reactor, descriptor, family, factory)
    port.startListening()
    return cast("IListeningPort", port)


class _Shared:
    """Leaves connections for the others who listen. Twisted adapts the number to what it found, up to hundreds."""

    reactor: Any
    stopReading: Callable[[], None]
    doRead: Callable[[], None]
    _look: IDelayedCall | None = None

    @property
    def numberAccepts(self) -> int:
        return ACCEPTED_AT_ONCE if self._look is None else BACKLOG

    @numberAccepts.setter
    def numberAccepts(self, number: int) -> None:
        """It is as it is."""

    def stand_back(self) -> None:
        """
        From now on, accept only what nobody else does.

        A process that goes would not come to its end while it takes its share of all that is new. But it may be alone:
        its successor starts when it is gone, or cannot start.
        """
        if self._look is None:
            self.stopReading()
            self._look = self.reactor.callLater(LEFT_OVER, self._take_what_is_left)

    def _take_what_is_left(self) -> None:
        self.doRead()
        self._look = self.reactor.callLater(LEFT_OVER, self._take_what_is_left)

    def _stop_looking(self) -> None:
        if self._look is not None and self._look.active():
            self._look.cancel()


class _SharedTCPPort(_Shared, tcp.Port):
    def connectionLost(self, reason: Failure) -> None:
        self._stop_looking()
        super().connectionLost(reason)


class _SharedUNIXPort(_Shared, unix.Port):
    def startListening(self) -> None:
        """It listens already; its mode and its backlog are its maker's."""
        tcp._reservedFD.reserve()
        assert self._preexistingSocket is not None
        self.socket, self._preexistingSocket = self._preexistingSocket, None
        self._shouldShutdown = False
        assert self.factory is not None
        self.factory.doStart()
        self.connected = True
        self.fileno = self.socket.fileno  # type: ignore[method-assign] # as the base class does
        self.startReading()

    def connectionLost(self, reason: Failure) -> None:
        self._stop_looking()
        # Past the base class, which deletes the name.
        tcp.Port.connectionLost(self, reason)
