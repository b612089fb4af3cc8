"""The stand-in upstream: an HTTP/1.1 server that does exactly what a request asks for, well or badly.

    python -m tests.standin [--port N] [--control-port N] [--tls CA_FILE]

The first line of its output is ``{"port": …, "control": …}``. With ``--tls`` it serves TLS for ``localhost`` and
``127.0.0.1``, with a certificate whose authority is written to CA_FILE.

It shares no code with the proxy, and reads and writes the protocol by hand, as it has to be wrong in ways that no
library allows. What it plays is in `tests.standin_plan`; what it answers in `tests.standin_api`.

Beside the port there is a control port (plain HTTP, JSON): ``GET /requests?since=N`` and ``GET /connections`` tell what
came and how it ended, ``POST /release?gate=NAME`` opens a gate, ``POST /accept?how=rst|fin&times=N`` ends the next N
connections as soon as they are open, ``POST /reset`` forgets everything but the open connections.

Times are `time.monotonic()`, which on Linux is one clock for all processes. The process ends when its standard input
does, so that it never outlives whoever started it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import fcntl
import hashlib
import json
import socket
import ssl
import struct
import sys
import termios
import time
from typing import Any, Final, cast
from urllib.parse import parse_qs

import attrs

from tests.standin_api import Request, answer, refusal, scenario_of
from tests.standin_plan import End, Gate, Pause, Scenario, ScenarioError, Send, parse_scenario, plan

LINGER: Final = 10.0
"""Seconds that a connection which we have closed our half of is still read from."""
TCP_ESTABLISHED: Final = 1
KEPT_BODY: Final = 1 << 18
"""Bytes of a request body that the control plane can show."""


@attrs.define(kw_only=True, eq=False)
class Record:
    """One request as the stand-in saw it. Times are monotonic seconds; ``None``: has not happened."""

    number: int
    connection: int
    head: bytes
    request: Request
    head_at: float
    body_length: int = 0
    body_digest: Any = attrs.field(factory=hashlib.sha256)
    body_kept: bytearray = attrs.field(factory=bytearray)
    body_at: float | None = None
    first_byte_at: float | None = None
    finished_at: float | None = None
    written: int = 0
    scenario: str = ""
    closed_at: float | None = None
    closed_by: str | None = None

    def as_json(self) -> dict[str, Any]:
        """What the control plane tells of it."""
        return {
            "number": self.number,
            "connection": self.connection,
            "head": base64.b64encode(self.head).decode(),
            "method": self.request.method,
            "target": self.request.target,
            "headers": [list(pair) for pair in self.request.headers],
            "body_length": self.body_length,
            "body_sha256": self.body_digest.hexdigest(),
            "body": base64.b64encode(self.body_kept).decode(),
            "head_at": self.head_at,
            "body_at": self.body_at,
            "first_byte_at": self.first_byte_at,
            "finished_at": self.finished_at,
            "written": self.written,
            "scenario": self.scenario,
            "closed_at": self.closed_at,
            "closed_by": self.closed_by,
        }


class BadRequest(Exception):
    """The peer does not speak HTTP/1.1."""


class Reader:
    """Requests out of bytes. States: head → body (by length, or in chunks) → head.

    Lenient where that is harmless, for what is under test is the peer, and everything is recorded raw.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._left = 0
        self._chunked = False
        self._state = "head"

    @property
    def between_requests(self) -> bool:
        """Whether nothing of a next request has come."""
        return self._state == "head" and not self._buffer

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """What `data` completes: ``("head", raw)``, ``("body", part)``, ``("end", b"")``. Raises `BadRequest`."""
        self._buffer += data
        found: list[tuple[str, bytes]] = []
        while (event := self._next()) is not None:
            if event[0]:
                found.append(event)
        return found

    def _next(self) -> tuple[str, bytes] | None:
        match self._state:
            case "head":
                return self._head()
            case "length" | "chunk":
                return self._counted()
            case "size":
                return self._size()
            case _:
                return self._trailer()

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _head(self) -> tuple[str, bytes] | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        raw = self._take(end + 4)
        length, self._chunked = 0, False
        for line in raw.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length":
                length = int(value)
            elif name.strip().lower() == b"transfer-encoding" and b"chunked" in value.lower():
                self._chunked = True
        self._left = length
        self._state = "size" if self._chunked else "length"
        return "head", raw

    def _counted(self) -> tuple[str, bytes] | None:
        if self._left:
            if not self._buffer:
                return None
            part = self._take(min(self._left, len(self._buffer)))
            self._left -= len(part)
            return "body", part
        if self._state == "length":
            self._state = "head"
            return "end", b""
        if len(self._buffer) < 2:
            return None
        if self._take(2) != b"\r\n":
            raise BadRequest("a chunk is longer than its size says")
        self._state = "size"
        return "", b""

    def _size(self) -> tuple[str, bytes] | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return None
        try:
            self._left = int(self._take(end + 2).partition(b";")[0], 16)
        except ValueError as error:
            raise BadRequest("a chunk's size is no number") from error
        self._state = "chunk" if self._left else "trailer"
        return "", b""

    def _trailer(self) -> tuple[str, bytes] | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return None
        if self._take(end + 2) != b"\r\n":
            return "", b""
        self._state = "head"
        return "end", b""


def parse_head(raw: bytes) -> Request:
    """A request without its body. Raises `BadRequest`."""
    first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    try:
        method, target, _version = first.split(" ")
    except ValueError as error:
        raise BadRequest(f"not a request line: {first!r}") from error
    headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
    return Request(method=method, target=target, headers=headers)


@attrs.define(eq=False)
class World:
    """What all connections share."""

    records: list[Record] = attrs.field(factory=list)
    connections: list[Connection] = attrs.field(factory=list)
    gates: dict[str, asyncio.Event] = attrs.field(factory=dict)
    seen: dict[str, int] = attrs.field(factory=dict)
    requests: int = 0
    opened: int = 0
    accept_how: str = ""
    accept_times: int = 0

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    def attempt(self, key: str) -> int:
        """The number, from 0, of this request among those with its key."""
        self.seen[key] = self.seen.get(key, -1) + 1
        return self.seen[key]

    def reset(self) -> None:
        self.records.clear()
        self.connections = [each for each in self.connections if each.closed_at is None]
        self.gates.clear()
        self.seen.clear()
        self.accept_times = 0


class Connection(asyncio.Protocol):
    """One connection. It always reads, so that it knows at once when the peer goes; requests are played in order."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._reader = Reader()
        self._waiting: asyncio.Queue[tuple[Record, Scenario]] = asyncio.Queue()
        self._records: list[Record] = []
        self._current: Record | None = None
        self._kept: Record | None = None
        self._body_in = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.Event()
        self._player: asyncio.Task[None] | None = None
        self._holder: asyncio.Task[None] | None = None
        self._eat = False
        self._closing = False
        self._ended_us = ""
        self._written = 0
        self.number = 0
        self.requests = 0
        self.opened_at = 0.0
        self.closed_at: float | None = None
        self.closed_by: str | None = None
        self.problem: str | None = None

    # the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=1, low=0)
        self.opened_at = time.monotonic()
        self.number = self._world.opened
        self._world.opened += 1
        self._world.connections.append(self)
        if self._world.accept_times:
            self._world.accept_times -= 1
            self._end_now(self._world.accept_how)
            return
        self._player = asyncio.get_running_loop().create_task(self._play_all())

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def eof_received(self) -> bool:
        self._peer_gone("fin")
        # Keep our half open after we have shut it down ourselves, else close it: a proxy never half-closes.
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._peer_gone("rst" if isinstance(exc, OSError) else "fin")
        if self._player is not None:
            self._player.cancel()

    def _peer_gone(self, how: str) -> None:
        if self.closed_at is not None:
            return
        self.closed_at = time.monotonic()
        self.closed_by = f"us-{self._ended_us}" if self._ended_us else how
        for record in self._records:
            record.closed_at, record.closed_by = self.closed_at, self.closed_by
        self.refresh()
        self._gone.set()
        self._writable.set()

    def refresh(self) -> None:
        """Bring the record of the answer that is going out up to date."""
        if self._kept is not None and self._kept.finished_at is None:
            self._kept.written = self.sent

    @property
    def sent(self) -> int:
        """Bytes of the current answer that the kernel has taken."""
        return self._written - self._transport.get_write_buffer_size()

    # the requests

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            for kind, part in self._reader.feed(data):
                if kind == "head":
                    self._head(part)
                elif self._current is not None and kind == "body":
                    self._body(self._current, part)
                elif self._current is not None:
                    self._complete(self._current)
        except BadRequest as error:
            self.problem = str(error)
            self._end_now("fin")

    def _head(self, raw: bytes) -> None:
        request = parse_head(raw)
        record = Record(
            number=self._world.requests,
            connection=self.number,
            head=raw,
            request=request,
            head_at=time.monotonic(),
        )
        self._world.requests += 1
        self.requests += 1
        self._world.records.append(record)
        self._records.append(record)
        self._current = record
        if (request.header("expect") or "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        line = request.header("x-standin")
        if line is None:
            return
        record.scenario = line
        try:
            scenario = parse_scenario(line)
        except ScenarioError:
            return
        if scenario.read_gate:
            self._holder = asyncio.get_running_loop().create_task(self._hold(scenario.read_gate))
        if scenario.early:
            self._current = None
            self._waiting.put_nowait((record, scenario))

    async def _hold(self, gate: str) -> None:
        """Stop reading until the gate opens. A peer that goes meanwhile shows in the state of the TCP connection."""
        self._transport.pause_reading()
        sock = self._transport.get_extra_info("socket")
        while not self._world.gate(gate).is_set() and self.closed_at is None:
            if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != TCP_ESTABLISHED:
                break
            await asyncio.sleep(0.01)
        if self.closed_at is None:
            self._transport.resume_reading()

    def _body(self, record: Record, part: bytes) -> None:
        record.body_length += len(part)
        record.body_digest.update(part)
        record.body_kept += part

    def _complete(self, record: Record) -> None:
        record.body_at = time.monotonic()
        record.request = attrs.evolve(record.request, body=bytes(record.body_kept))
        del record.body_kept[KEPT_BODY:]
        self._current = None
        try:
            scenario = scenario_of(record.request)
        except ScenarioError:
            scenario = Scenario()
        self._waiting.put_nowait((record, scenario))

    # the answers

    async def _play_all(self) -> None:
        while self.closed_at is None and not self._closing:
            record, scenario = await self._waiting.get()
            if self._eat:
                self._end_now("notify")
                return
            try:
                await self._play(record, scenario)
            except Exception as error:
                self.problem = repr(error)
                self._end_now("rst")
                raise

    async def _play(self, record: Record, scenario: Scenario) -> None:
        request = record.request
        if scenario.times and self._world.attempt(scenario.key) >= scenario.times:
            scenario = Scenario()
        try:
            scenario_of(request)
            response = answer(request, scenario)
        except (ScenarioError, ValueError) as error:
            problem = error if isinstance(error, ScenarioError) else ScenarioError(str(error))
            response = refusal(request, problem)
        close = "close" in (request.header("connection") or "").lower()
        record.request = attrs.evolve(request, body=b"")
        self._kept, self._written = record, 0
        for step in plan(scenario, response, method=request.method, close=close):
            if self.closed_at is not None:
                return
            match step:
                case Send():
                    await self._send(record, step.data)
                case Pause():
                    await self._wait(asyncio.sleep(step.seconds))
                case Gate():
                    await self._wait(self._world.gate(step.name).wait())
                case End():
                    record.written = self.sent
                    record.finished_at = time.monotonic()
                    await self._end(step.how)

    async def _wait(self, what: Any) -> None:
        """Wait for `what`, or for the peer to go."""
        tasks = [asyncio.ensure_future(what), asyncio.ensure_future(self._gone.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    async def _send(self, record: Record, data: bytes) -> None:
        if record.first_byte_at is None:
            record.first_byte_at = time.monotonic()
        self._written += len(data)
        self._transport.write(data)
        await self._writable.wait()
        # `wait` does not yield when it need not; the peer's bytes, and its leaving, have to come in meanwhile.
        await asyncio.sleep(0)

    async def _end(self, how: str) -> None:
        match how:
            case "keep":
                pass
            case "eat":
                self._eat = True
            case "hang":
                await self._gone.wait()
            case "rst":
                await self._delivered()
                self._end_now("rst")
            case _:
                self._end_now(how)

    async def _delivered(self) -> None:
        """Wait until the peer's kernel has everything, so that a reset cannot overtake it."""
        sock = self._transport.get_extra_info("socket")
        for _ in range(2000):
            if self.closed_at is not None:
                return
            (unsent,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))
            if not unsent and not self._transport.get_write_buffer_size():
                return
            await asyncio.sleep(0.001)

    def _end_now(self, how: str) -> None:
        """End the connection by RST, by FIN, or (``notify``) by FIN after TLS's close_notify.

        With FIN only our half is shut: what the peer still sends is read and thrown away, as a close with unread bytes
        would be a reset.
        """
        self._closing = True
        self._ended_us = how
        if self.closed_at is not None:
            return
        sock = self._transport.get_extra_info("socket")
        tls = self._transport.get_extra_info("ssl_object") is not None
        if how == "rst":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
            return
        if tls and how == "notify":
            self._transport.close()
            return
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            # The peer has reset the connection; the transport will say so.
            return
        asyncio.get_running_loop().call_later(LINGER, self._transport.abort)

    def as_json(self) -> dict[str, Any]:
        """What the control plane tells of it."""
        return {
            "number": self.number,
            "requests": self.requests,
            "opened_at": self.opened_at,
            "closed_at": self.closed_at,
            "closed_by": self.closed_by,
            "between_requests": self._reader.between_requests,
            "problem": self.problem,
        }


class Control:
    """The control plane. One short request a connection."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        _method, target, _version = head.partition(b"\r\n")[0].decode().split(" ")
        path, _, query = target.partition("?")
        try:
            value: Any = self._answer(path, {key: values[0] for key, values in parse_qs(query).items()})
            status = "200 OK"
        except (KeyError, ValueError) as error:
            value, status = {"error": repr(error)}, "400 Bad Request"
        body = json.dumps(value).encode()
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    def _answer(self, path: str, query: dict[str, str]) -> Any:
        world = self._world
        match path:
            case "/requests":
                since = int(query.get("since", "0"))
                for connection in world.connections:
                    if connection.closed_at is None:
                        connection.refresh()
                return [record.as_json() for record in world.records if record.number >= since]
            case "/connections":
                since = int(query.get("since", "0"))
                return [each.as_json() for each in world.connections if each.number >= since]
            case "/counts":
                return {"requests": world.requests, "connections": world.opened}
            case "/release":
                world.gate(query["gate"]).set()
                return {}
            case "/accept":
                if query["how"] not in ("fin", "rst", "notify"):
                    raise ValueError(query["how"])
                world.accept_how, world.accept_times = query["how"], int(query["times"])
                return {}
            case "/reset":
                world.reset()
                return {}
        raise ValueError(path)


def tls_context(ca_file: str) -> ssl.SSLContext:
    """A server context with a new certificate, whose authority is written to `ca_file`."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(ca_file)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


async def serve(port: int, control_port: int, tls: str | None) -> None:
    """Listen on both ports until the process ends."""
    world = World()
    loop = asyncio.get_running_loop()
    context = tls_context(tls) if tls else None
    server = await loop.create_server(lambda: Connection(world), "127.0.0.1", port, ssl=context, backlog=1000)
    control = await asyncio.start_server(Control(world), "127.0.0.1", control_port)
    ports = {
        "port": server.sockets[0].getsockname()[1],
        "control": control.sockets[0].getsockname()[1],
    }
    sys.stdout.write(json.dumps(ports) + "\n")
    sys.stdout.flush()
    async with server, control:
        # Whoever started us holds our standard input open; when it closes, nobody needs us any more.
        await loop.run_in_executor(None, sys.stdin.buffer.read)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="An upstream that misbehaves on request.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--control-port", type=int, default=0)
    parser.add_argument("--tls", metavar="CA_FILE")
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.control_port, options.tls))


if __name__ == "__main__":
    main()
