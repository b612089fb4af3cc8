"""Writing to a transport without waiting for the reactor's next turn."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from twisted.internet.interfaces import ITransport
from twisted.internet.tcp import Connection

LARGE = 16 * 1024
"""From so many bytes on, to copy them costs more than to hand over several pieces."""


def unsent_bytes(transport: object) -> int:
    """
    How much a TCP transport still holds because the kernel does not take it, in bytes.

    TLS is looked through; a transport of another kind does not show it: 0.
    """
    while transport is not None and not isinstance(transport, Connection):
        transport = getattr(transport, "transport", None)
    if transport is None:
        return 0
    return len(transport.dataBuffer) - transport.offset + transport._tempDataLen


def has_unread(transport: object) -> bool:
    """
    Whether the peer has sent something that the reactor has not read yet; TLS is looked through.

    A transport that is not TCP does not show it: ``False``.
    """
    while transport is not None and not isinstance(transport, Connection):
        transport = getattr(transport, "transport", None)
    if transport is None or not transport.connected:
        return False
    try:
        return bool(transport.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        # Nothing is there, or nothing ever will be.
        return False


def chunk(data: bytes) -> tuple[bytes, bytes, bytes]:
    """The pieces of one chunk of a body (RFC 9112 §7.1); an empty one would end it."""
    return b"%x\r\n" % len(data), data, b"\r\n"


def abort(transport: ITransport) -> None:
    """Close at once; what is queued is lost. Transports in memory have no way to, and close."""
    getattr(transport, "abortConnection", transport.loseConnection)()


def write_now(transport: ITransport, pieces: Sequence[bytes]) -> None:
    """
    Write, and hand the bytes to the kernel at once where nothing is queued before them.

    Twisted's transports queue what is written and send it on the next turn of the reactor, after two changes to
    the set of watched descriptors. For a stream of small events those are most of the system calls. What the
    kernel does not take, every error and every other kind of transport go the ordinary way.
    """
    if (
        isinstance(transport, Connection)
        and not transport._tempDataLen
        and not transport.dataBuffer
        and not transport.TLS
        and transport.connected
        and not transport.disconnecting
        and not transport._writeDisconnecting
    ):
        size = len(pieces[0]) if len(pieces) == 1 else sum(map(len, pieces))
        try:
            sent = transport.socket.send(b"".join(pieces)) if size < LARGE else transport.socket.sendmsg(pieces)
        except OSError:
            # Full, or broken: the reactor finds out which.
            sent = 0
        if sent < size:
            transport.write(b"".join(pieces)[sent:])
    else:
        transport.write(b"".join(pieces))
