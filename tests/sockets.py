"""A client of bare, blocking sockets: it sends any bytes, stops reading, leaves by FIN or RST, and believes nothing.

Answers are parsed by h11, which accepts no end of a body that is not one. Every wait has a limit.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

import attrs
import h11

LIMIT: Final = 15.0
"""Seconds that one operation on a socket may take, unless told otherwise."""

Ending = Literal["whole", "fin", "rst"]
Fields = Iterable[tuple[str, str]]


@attrs.frozen(kw_only=True)
class Answer:
    """What arrived of an answer, as a strict client understands it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    """Decoded from its framing; of a cut answer what came until then."""
    ending: Ending
    """``whole``: the framing says that all is here. ``fin``, ``rst``: how the connection ended before that."""
    interim: list[int]
    """Status codes of 1xx answers that came before."""

    @property
    def whole(self) -> bool:
        return self.ending == "whole"

    def header(self, name: str) -> str | None:
        """The first value of a header, by its lower-case name."""
        return next((value for key, value in self.headers if key.lower() == name), None)

    def json(self) -> Any:
        """The body of a whole answer as JSON."""
        assert self.whole, self
        return json.loads(self.body)


def request_bytes(method: str, target: str, headers: Fields = (), body: bytes | None = None) -> bytes:
    """A request on the wire, with Host, and with Content-Length where there is a body."""
    lines = [f"{method} {target} HTTP/1.1", "Host: proxy.test", *(f"{name}: {value}" for name, value in headers)]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


class Client:
    """One connection. A context manager: leaving it closes.

    :param receive_buffer: for SO_RCVBUF, bytes: a small one lets the peer feel soon that nobody reads.
    """

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        path: str | Path | None = None,
        context: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
        limit: float = LIMIT,
    ) -> None:
        plain = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX)
        try:
            plain.settimeout(limit)
            if receive_buffer is not None:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            plain.connect((host, port) if path is None else str(path))
            if path is None:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket = plain if context is None else context.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise
        self._ahead = b""
        self.local_port: int = self.socket.getsockname()[1] if path is None else 0

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # sending

    def send(self, data: bytes) -> None:
        """Send all of it. Raises `OSError` where the peer is gone."""
        self.socket.sendall(data)

    def ask(self, method: str, target: str, headers: Fields = (), body: bytes | None = None) -> None:
        """Send a request."""
        self.send(request_bytes(method, target, headers, body))

    def widen(self) -> None:
        """Take back a small `receive_buffer`: from now on the kernel may take much at once."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    @property
    def buffered(self) -> int:
        """Bytes that were read from the kernel, and not by the test."""
        return len(self._ahead)

    # leaving

    def finish(self) -> None:
        """Send a FIN (over TLS without close_notify), and leave what comes unread, so that no reset follows it."""
        # The method of a TLS socket would give up TLS as well.
        socket.socket.shutdown(self.socket, socket.SHUT_WR)

    def reset(self) -> None:
        """Leave by RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        """Close. With unread bytes the kernel makes it a reset."""
        self.socket.close()

    def leave(self, how: str) -> None:
        """Go, by ``fin`` or ``rst``."""
        if how == "fin":
            self.finish()
        else:
            self.reset()

    # reading

    def receive(self, size: int = 65536) -> bytes:
        """Some bytes; empty at a FIN. Raises `ConnectionResetError` at a reset."""
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        return self.socket.recv(size)

    def read_until(self, marker: bytes) -> bytes:
        """All bytes up to and with `marker`, raw. Raises `AssertionError` where the connection ends before it."""
        data = b""
        while marker not in data:
            more = self.receive()
            assert more, f"the connection ended before {marker!r} came, after {data!r}"
            data += more
        end = data.index(marker) + len(marker)
        self._ahead = data[end:] + self._ahead
        return data[:end]

    def read_exactly(self, size: int) -> bytes:
        """So many bytes, raw. Raises `AssertionError` where the connection ends before."""
        data = bytearray()
        while len(data) < size:
            more = self.receive(min(65536, size - len(data)))
            assert more, f"the connection ended after {len(data)} of {size} bytes"
            data += more
        return bytes(data)

    def read_to_end(self) -> tuple[bytes, Ending]:
        """Everything until the connection ends, raw, and how it ended."""
        data = bytearray()
        while True:
            try:
                more = self.receive()
            except (ConnectionResetError, ssl.SSLError):
                return bytes(data), "rst"
            if not more:
                return bytes(data), "fin"
            data += more

    def finish_reading(self) -> None:
        """Wait for an answer, if any comes, or for the end of the connection; of what came, nothing is kept."""
        try:
            self.receive()
        except ConnectionResetError:
            return

    def answer(
        self, method: str = "POST", *, already: bytes = b"", pace: Callable[[int], None] | None = None
    ) -> Answer:
        """The next answer, whole or not. Raises `h11.RemoteProtocolError` where it is no HTTP.

        :param method: of the request: after HEAD there is no body.
        :param already: bytes of the answer that were read from the connection before.
        :param pace: called with the size of each read, for a slow reader.
        """
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())
        if already:
            parser.receive_data(already)
        head: h11.Response | None = None
        body = bytearray()
        interim: list[int] = []
        ending: Ending | None = None
        cut: Ending = "fin"
        while ending is None:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError:
                if cut == "rst" or parser.trailing_data[1]:
                    # h11 says "peer closed connection without sending complete message body".
                    ending = cut
                    break
                raise
            if event is h11.NEED_DATA:
                try:
                    data = self.receive()
                except (ConnectionResetError, ssl.SSLError):
                    # A reset is no end of a body, however it is framed.
                    ending = "rst"
                    break
                if pace is not None:
                    pace(len(data))
                parser.receive_data(data)
            elif isinstance(event, h11.InformationalResponse):
                interim.append(event.status_code)
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                ending = "whole"
                self._ahead = parser.trailing_data[0] + self._ahead
            else:
                assert isinstance(event, h11.ConnectionClosed), event
                ending = "fin"
        return Answer(
            status=head.status_code if head is not None else 0,
            headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers.raw_items()]
            if head is not None
            else [],
            body=bytes(body),
            ending=ending,
            interim=interim,
        )

    def call(self, method: str, target: str, headers: Fields = (), body: bytes | None = None) -> Answer:
        """Send a request and read its answer."""
        self.ask(method, target, headers, body)
        return self.answer(method)


def call(
    port: int, method: str, target: str, headers: Fields = (), body: bytes | None = None, **options: Any
) -> Answer:
    """One request on a connection of its own."""
    with Client(port, **options) as client:
        return client.call(method, target, headers, body)


def prompt(text: str = "Hello", *, stream: bool = False) -> bytes:
    """The body of a ``POST /v1/messages``."""
    messages = [{"role": "user", "content": text}]
    value = {"model": "claude-opus-4-7", "max_tokens": 100, "stream": stream, "messages": messages}
    return json.dumps(value).encode()


def id_of(answer: Answer) -> str:
    """The id that the proxy gave to its request."""
    found = answer.header("x-proxy-request-id")
    assert found is not None
    return found


def play(scenario: str) -> tuple[str, str]:
    """The header that asks the stand-in for a scenario."""
    return ("x-standin", scenario)


# -- logs ------------------------------------------------------------------------------------------------------

_PAIR = re.compile(r'([A-Za-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"]*)(?: |$)')


def logfmt_fields(line: str, event: str) -> dict[str, str]:
    """The pairs of ``… event key=value key="quoted value"``. Raises `AssertionError` where they are none."""
    _, found, rest = line.partition(f"{event} ")
    assert found, line
    fields: dict[str, str] = {}
    position = 0
    while position < len(rest):
        match = _PAIR.match(rest, position)
        assert match, f"no logfmt at {rest[position:]!r} in {line!r}"
        name, value = match.groups()
        assert name not in fields, line
        fields[name] = json.loads(value) if value.startswith('"') else value
        position = match.end()
    return fields


def events_logged(lines: Iterable[str], event: str, **wanted: str) -> list[dict[str, str]]:
    """The fields of each line ``TIME LEVEL event …`` (``access``, ``forward_error``) that has the `wanted` values."""
    marker = re.compile(rf"\S+ [a-z]+ {event} request_id=")
    found = [logfmt_fields(line, event) for line in list(lines) if marker.match(line)]
    return [fields for fields in found if all(fields.get(name) == value for name, value in wanted.items())]


# -- what the kernel knows -------------------------------------------------------------------------------------


@attrs.frozen
class Queues:
    """Bytes in the kernel for one end of a TCP connection: written but not acknowledged; arrived but not read."""

    unsent: int
    unread: int


def queues() -> Mapping[tuple[int, int], Queues]:
    """The queues of every IPv4 connection of this machine, by local and remote port."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
        unsent, unread = (int(count, 16) for count in fields[4].split(":"))
        found[local, remote] = Queues(unsent, unread)
    return found


def resident_bytes(pid: int) -> int:
    """The resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wait_until_still(measure: Callable[[], int], *, quiet: float = 0.5, limit: float = LIMIT) -> int:
    """The value of `measure` once it is above zero and has not changed for `quiet` seconds. Raises `AssertionError`."""
    deadline = time.monotonic() + limit
    value, since = measure(), time.monotonic()
    while not value or time.monotonic() - since < quiet:
        assert time.monotonic() < deadline, f"still changing after {limit:g} s: {value}"
        time.sleep(0.02)
        now = measure()
        if now != value:
            value, since = now, time.monotonic()
    return value


# -- an upstream of a few lines --------------------------------------------------------------------------------


class RawUpstream:
    """A TCP server in this process that treats each connection with `handle`, for what no HTTP server would do.

    A context manager: leaving it closes the port and every connection.

    :ivar handle: called in a thread of its own with a connection, which is closed when it returns.
    :ivar accepted: connections so far.
    """

    def __init__(self, handle: Callable[[socket.socket], None], *, port: int = 0) -> None:
        self.handle = handle
        self.accepted = 0
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=100)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(LIMIT)
            self.accepted += 1
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                self.handle(connection)
        except OSError:
            # The peer went, or the test is over: what matters is told by the handler.
            return
        finally:
            self._open.discard(connection)

    def __enter__(self) -> RawUpstream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing alone would not wake the thread that waits in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            connection.close()
        self._thread.join(LIMIT)


def read_request(connection: socket.socket) -> bytes:
    """A request as a `RawUpstream` gets it: head and the body that its Content-Length announces."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    while length and len(body) < int(length[1]):
        more = connection.recv(65536)
        if not more:
            break
        body += more
        data += more
    return data


def reset(connection: socket.socket) -> None:
    """Close by RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
