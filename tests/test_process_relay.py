"""The relay between real sockets: cuts, backpressure, clients that leave, failures, limits and deadlines."""

from __future__ import annotations

import hashlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import attrs
import pytest

from tests.processes import Proxy, StandIn, proxy, wait_for
from tests.sockets import (
    Answer,
    Client,
    RawUpstream,
    call,
    events_logged,
    free_port,
    play,
    prompt,
    queues,
    read_request,
    request_bytes,
    reset,
    resident_bytes,
    wait_until_still,
)
from tests.standin_api import Request, answer
from tests.standin_plan import Send, parse_scenario, plan

MIB: Final = 1 << 20
HELD_AT_MOST: Final = 256 * 1024
"""Bytes of one stream that the proxy may hold for a client that does not read."""
WITHIN_A_SECOND: Final = 1.5
"""One second is promised; the rest is for a machine that has other things to do."""

_numbers = itertools.count()


def unique(path: str) -> str:
    """A path below /v1 that no other request of this run has."""
    return f"/v1/{path}/{next(_numbers)}"


def expected_wire(scenario: str, request: Request) -> bytes:
    """Every byte that the stand-in would send if it ended well."""
    steps = plan(parse_scenario(scenario), answer(request, parse_scenario(scenario)), method=request.method)
    return b"".join(step.data for step in steps if isinstance(step, Send))


def pattern(size: int) -> bytes:
    """What the stand-in's ``bytes`` sends."""
    return (bytes(range(256)) * (size // 256 + 1))[:size]


def logged(running: Proxy, event: str, **wanted: str) -> dict[str, str]:
    """The fields of the one line of `event` with these values, once it is there."""
    found = wait_for(lambda: events_logged(running.lines, event, **wanted), f"a line {event} with {wanted}")
    assert len(found) == 1, found
    fields: dict[str, str] = found[0]
    return fields


# -- truncation ------------------------------------------------------------------------------------------------

STREAM_PATH: Final = "/v1/sessions/short/events/stream"
STREAM_REQUEST: Final = Request(method="GET", target=STREAM_PATH, headers=())
SHORT: Final = "auto?count=1"


@attrs.frozen(kw_only=True)
class Cut:
    """One way in which an upstream fails in the middle, for every offset of `offsets`."""

    scenario: str
    """With ``{}`` for the offset."""
    wire: bool = False
    """The offset counts the bytes on the wire, framing included, and not those of the body."""


CUTS: Final = {
    "fin": Cut(scenario=SHORT + "&wire_at={}&how=fin", wire=True),
    "rst": Cut(scenario=SHORT + "&wire_at={}&how=rst", wire=True),
    "no last chunk": Cut(scenario=SHORT + "&at={}&how=fin"),
    "short of Content-Length": Cut(scenario=SHORT + "&framing=length&at={}&how=fin"),
    "Content-Length and RST": Cut(scenario=SHORT + "&framing=length&at={}&how=rst"),
    "close-delimited": Cut(scenario=SHORT + "&framing=close&at={}&how=fin"),
    "close-delimited and RST": Cut(scenario=SHORT + "&framing=close&at={}&how=rst"),
}


class TestTruncation:
    """An event stream that ends before its end never passes for whole."""

    WHOLE: Final = b"".join(answer(STREAM_REQUEST, parse_scenario(SHORT)).pieces)
    WIRE: Final = expected_wire(SHORT, STREAM_REQUEST)

    def ask(self, port: int, scenario: str) -> Answer:
        return call(port, "GET", STREAM_PATH, [play(scenario)])

    def test_control(self, proxied: Proxy) -> None:
        """The same stream with its end is whole, whatever frames it."""
        assert 250 < len(self.WHOLE) < 600
        for scenario in (SHORT, SHORT + "&framing=length", SHORT + "&dribble=1&dribble_interval=0"):
            got = self.ask(proxied.port, scenario)
            assert got.whole
            assert got.body == self.WHOLE

    @pytest.mark.parametrize("name", CUTS)
    def test_every_offset_of_the_body(self, proxied: Proxy, name: str) -> None:
        """Cut before each byte of the body, its framing included: what arrives is a prefix, and no end."""
        cut = CUTS[name]
        head_length = self.WIRE.index(b"\r\n\r\n") + 4
        offsets = range(head_length, len(self.WIRE)) if cut.wire else range(len(self.WHOLE))
        with ThreadPoolExecutor(4) as pool:
            answers = pool.map(lambda offset: self.ask(proxied.port, cut.scenario.format(offset)), offsets)
            for offset, got in zip(offsets, answers, strict=True):
                assert got.status == 200, (offset, got)
                assert not got.whole, (offset, got)
                assert self.WHOLE.startswith(got.body), (offset, got)
                if "rst" not in cut.scenario:
                    # Closing is FIN, and a FIN overtakes nothing: all that came is there.
                    came = _body_bytes(self.WIRE, offset) if cut.wire else offset
                    assert got.ending == "fin", (offset, got)
                    assert len(got.body) == came, (offset, got)

    @pytest.mark.parametrize("how", ["fin", "rst"])
    def test_offsets_of_the_head(self, proxied: Proxy, how: str) -> None:
        """Cut within the head there is no answer to relay: 502, whole, in the envelope."""
        head_length = self.WIRE.index(b"\r\n\r\n") + 4
        for offset in {0, 1, 12, 17, 18, head_length // 2, head_length - 3, head_length - 2, head_length - 1}:
            got = self.ask(proxied.port, f"{SHORT}&wire_at={offset}&how={how}")
            assert (got.status, got.whole) == (502, True), (offset, got)
            assert got.json()["error"]["type"] == "api_error"

    def test_close_delimited(self, proxied: Proxy) -> None:
        """Without framing only the last event shows that an event stream is whole: with it whole, else never."""
        body = prompt(stream=True)
        request = Request(method="POST", target="/v1/messages", headers=(), body=body)
        whole = b"".join(answer(request, parse_scenario("auto")).pieces)

        def ask(scenario: str) -> Answer:
            return call(proxied.port, "POST", "/v1/messages", [play(scenario)], body)

        got = ask("auto?framing=close")
        assert got.whole
        assert got.body == whole
        last = whole.rindex(b"event: message_stop")
        for offset in (*range(0, len(whole), 97), last, *range(last + 1, len(whole) - 2)):
            got = ask(f"auto?framing=close&at={offset}&how=fin")
            assert not got.whole, (offset, got)
            assert whole.startswith(got.body), (offset, got)

    def test_a_client_that_knows_no_chunks(self, proxied: Proxy) -> None:
        """An HTTP/1.0 client knows by the end of the connection alone: FIN where all is here, RST where it is cut."""

        def ask(scenario: str) -> tuple[bytes, str]:
            with Client(proxied.port) as client:
                client.send(f"GET {STREAM_PATH} HTTP/1.0\r\nx-standin: {scenario}\r\n\r\n".encode())
                raw, ending = client.read_to_end()
                return raw.partition(b"\r\n\r\n")[2], ending

        assert ask(SHORT) == (self.WHOLE, "fin")
        for offset in range(0, len(self.WHOLE), 20):
            for how in ("fin", "rst"):
                body, ending = ask(f"{SHORT}&at={offset}&how={how}")
                assert ending == "rst", (offset, how, body)
                assert self.WHOLE.startswith(body)

    def test_an_announced_length_that_is_never_reached(self, proxied: Proxy) -> None:
        """Content-Length is the upstream's, and one byte less than it is a cut, for JSON too."""
        body = prompt()
        request = Request(method="POST", target="/v1/messages", headers=(), body=body)
        size = len(b"".join(answer(request, parse_scenario("auto")).pieces))
        got = call(proxied.port, "POST", "/v1/messages", [play(f"auto?length={size + 1}&how=fin")], body)
        assert not got.whole
        assert len(got.body) == size
        assert got.header("content-length") == str(size + 1)

    def test_the_logs_tell_it(self, proxied: Proxy) -> None:
        """A cut is told once as ``forward_error`` with ``kind=truncated``, and in the access line."""
        path = unique("truncated")
        got = call(proxied.port, "POST", path, [play("bytes?size=5000&at=1000&how=fin")], b"{}")
        request_id = got.header("x-proxy-request-id") or "?"
        access = logged(proxied, "access", path=path)
        assert (access["verdict"], access["bytes"], access["status"]) == ("truncated", "1000", "200")
        assert access["request_id"] == request_id
        assert logged(proxied, "forward_error", request_id=request_id)["kind"] == "truncated"


def _body_bytes(wire: bytes, offset: int) -> int:
    """How many bytes of the chunked body are among the first `offset` on the wire."""
    position = wire.index(b"\r\n\r\n") + 4
    found = 0
    while position < offset:
        line_end = wire.index(b"\r\n", position) + 2
        size = int(wire[position:line_end], 16)
        found += max(0, min(size, offset - line_end))
        position = line_end + size + 2
    return found


# -- backpressure ----------------------------------------------------------------------------------------------


class TestBackpressure:
    @pytest.mark.parametrize("framing", ["chunked", "length"])
    def test_a_client_that_does_not_read(self, tmp_path: Path, proxied: Proxy, upstream: StandIn, framing: str) -> None:
        """Of 64 MiB the process holds at most 256 KiB; the rest waits with the upstream, and comes whole in the end."""
        size = 64 * MIB
        scenario = f"bytes?size={size}&framing={framing}"
        path = unique("held")
        assert call(proxied.port, "POST", path, [play("bytes?size=100000")], b"{}").whole
        mark = upstream.mark()
        before = resident_bytes(proxied.pid)
        with Client(proxied.port, receive_buffer=8192, limit=60) as client:
            client.ask("POST", path, [play(scenario)], b"{}")
            head = client.read_until(b"\r\n\r\n")

            def written() -> int:
                return sum(each.written for each in upstream.requests(mark))

            taken = wait_until_still(written)
            in_kernel = kernel_bytes(client, proxied, upstream)
            # Framing is written anew, and the heads differ a little; both are far below what is allowed.
            assert taken - in_kernel - client.buffered - len(head) <= HELD_AT_MOST
            assert resident_bytes(proxied.pid) - before < 8 * MIB
            assert taken < size // 2
            # Nobody else is held up.
            assert proxied.get("/health")[0] == 200
            assert call(proxied.port, "POST", "/v1/messages", (), prompt()).whole

            client.widen()
            got = client.answer(already=head)
        assert got.whole
        assert hashlib.sha256(got.body).digest() == hashlib.sha256(pattern(size)).digest()
        assert resident_bytes(proxied.pid) - before < 8 * MIB

    def test_an_upstream_that_does_not_read(self, proxied: Proxy, upstream: StandIn) -> None:
        """An upload waits for its upstream without a second copy of it in memory, and arrives whole."""
        body = pattern(48 * MIB)
        path = unique("upload")
        mark = upstream.mark()
        before = resident_bytes(proxied.pid)
        with Client(proxied.port, limit=60) as client:
            gate = path.replace("/", "-")
            client.ask("POST", path, [play(f"echo?read_gate={gate}")], body)
            upstream.wait_for(lambda seen: seen, "the request came", since=mark)
            growth = wait_until_still(lambda: resident_bytes(proxied.pid)) - before
            assert growth < len(body) + 12 * MIB
            assert upstream.requests(mark)[0].body_length < len(body) // 2
            assert proxied.get("/health")[0] == 200
            upstream.release(gate)
            echoed = client.answer().json()
        assert echoed["body_length"] == len(body)
        assert echoed["body_sha256"] == hashlib.sha256(body).hexdigest()
        wait_for(lambda: resident_bytes(proxied.pid) - before < 12 * MIB, "the body is let go")


def kernel_bytes(client: Client, running: Proxy, upstream: StandIn) -> int:
    """Bytes on their way down that the kernel holds, in both connections of the one request in flight."""
    known = queues()
    down = known[running.port, client.local_port].unsent + known[client.local_port, running.port].unread
    up = [
        known[upstream.port, remote].unsent + known[remote, upstream.port].unread
        for local, remote in known
        if local == upstream.port and (remote, local) in known
    ]
    # The idle connections have empty queues.
    return down + sum(up)


# -- clients that leave ----------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Phase:
    """A state of a request in which its client leaves."""

    scenario: str
    seen: bytes = b""
    """What the client reads before."""
    held: bool = False
    """It waits until nobody moves any more."""


PHASES: Final = {
    "before headers": Phase(scenario="auto?header_gate=never"),
    "in a quiet stream": Phase(scenario="message?gate=never@3", seen=b'"ping"}\n\n'),
    "before the first event": Phase(scenario="message?gate=never@0", seen=b"\r\n\r\n"),
    "held back": Phase(scenario=f"bytes?size={64 * MIB}", seen=b"\r\n\r\n", held=True),
    "in a lively stream": Phase(scenario="message?count=9999&delta=4&interval=0.01", seen=b'"ping"}\n\n'),
}


def leave(running: Proxy, upstream: StandIn, phase: Phase, how: str) -> None:
    """A client leaves in `phase`: the upstream sees it within a second, the gauge and the log too."""
    mark = upstream.mark()
    path = unique("leave")
    with Client(running.port, receive_buffer=8192) as client:
        client.ask("POST", path, [play(phase.scenario)], prompt(stream=True))
        if phase.seen:
            client.read_until(phase.seen)
        upstream.wait_for(lambda seen: seen and seen[0].body_at, "the request came", since=mark)
        if phase.held:
            wait_until_still(lambda: upstream.requests(mark)[0].written)
        assert upstream.requests(mark)[0].closed_at is None
        assert running.in_flight() == 1
        left = time.monotonic()
        client.leave(how)
        seen = upstream.wait_closed(since=mark)
    assert seen.closed_at is not None
    assert seen.closed_at - left < WITHIN_A_SECOND
    assert seen.closed_by in ("fin", "rst")
    wait_for(lambda: running.in_flight() == 0, "nothing is in flight")
    assert logged(running, "access", path=path)["verdict"] == "client_gone"


class TestLeaving:
    @pytest.mark.parametrize("how", ["fin", "rst"])
    @pytest.mark.parametrize("name", PHASES)
    def test_the_upstream_sees_it(self, proxied: Proxy, upstream: StandIn, name: str, how: str) -> None:
        """Whoever leaves, by FIN or RST, closes the upstream connection within a second."""
        leave(proxied, upstream, PHASES[name], how)

    @pytest.mark.parametrize("how", ["fin", "rst"])
    def test_while_uploading(self, proxied: Proxy, upstream: StandIn, how: str) -> None:
        """A request that never came whole is not sent, and counts no longer."""
        mark = upstream.mark()
        path = unique("leave")
        with Client(proxied.port) as client:
            client.send(request_bytes("POST", path, (), b"x" * 100_000)[:50_000])
            wait_for(lambda: proxied.in_flight() == 1, "it is counted")
            client.leave(how)
            wait_for(lambda: proxied.in_flight() == 0, "it is not counted")
        assert logged(proxied, "access", path=path)["verdict"] == "client_gone"
        assert upstream.requests(mark) == []

    @pytest.mark.parametrize("how", ["fin", "rst"])
    def test_while_the_upstream_reads_the_upload(self, proxied: Proxy, upstream: StandIn, how: str) -> None:
        """The same in the middle of a body on its way up to an upstream that has stopped reading."""
        mark = upstream.mark()
        path = unique("leave")
        with Client(proxied.port) as client:
            client.ask("POST", path, [play("echo?read_gate=never")], pattern(16 * MIB))
            upstream.wait_for(lambda seen: seen, "the request came", since=mark)
            assert proxied.in_flight() == 1
            left = time.monotonic()
            client.leave(how)
            seen = upstream.wait_closed(since=mark)
        assert seen.closed_at is not None
        assert seen.closed_at - left < WITHIN_A_SECOND
        wait_for(lambda: proxied.in_flight() == 0, "nothing is in flight")
        assert logged(proxied, "access", path=path)["verdict"] == "client_gone"

    @pytest.mark.parametrize("how", ["fin", "rst"])
    def test_with_a_next_request_sent_already(self, proxied: Proxy, upstream: StandIn, how: str) -> None:
        """A client that has sent more, which nobody reads yet, is missed as soon."""
        mark = upstream.mark()
        path = unique("leave")
        with Client(proxied.port) as client:
            first = request_bytes("POST", path, [play("message?gate=never@3")], prompt(stream=True))
            client.send(first)
            client.read_until(b'"ping"}\n\n')
            client.send(request_bytes("POST", unique("next"), (), b"x" * 200_000))
            left = time.monotonic()
            client.leave(how)
            seen = upstream.wait_closed(since=mark)
        assert seen.closed_at is not None
        assert seen.closed_at - left < WITHIN_A_SECOND
        wait_for(lambda: proxied.in_flight() == 0, "nothing is in flight")

    def test_while_connecting(self, tmp_path: Path) -> None:
        """A client that leaves while no connection to the upstream can be had ends the attempts."""
        with ExitStack() as stack:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            port = listener.getsockname()[1]
            # The queue of connections is full now; a further SYN is dropped.
            for _ in range(2):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.1", port))
            url = f"http://127.0.0.1:{port}"
            running = stack.enter_context(Proxy(tmp_path, ANTHROPIC_FORWARD_URL=url))
            for how in ("fin", "rst"):
                path = unique("leave")
                with Client(running.port) as client:
                    client.ask("POST", path, (), prompt())
                    wait_for(lambda: running.in_flight() == 1, "it is counted")
                    left = time.monotonic()
                    client.leave(how)
                    wait_for(lambda: running.in_flight() == 0, "it is not counted")
                    assert time.monotonic() - left < WITHIN_A_SECOND
                assert logged(running, "access", path=path)["verdict"] == "client_gone"
            # With nothing left behind that would hold up the end.
            running.stop()


# -- failures before the first byte ----------------------------------------------------------------------------


def assert_failure(running: Proxy, got: Answer, path: str, status: int, error_type: str, kind: str) -> None:
    """An answer is our own error, whole, and logged once under the same id, machine-readable and in words."""
    assert (got.status, got.whole) == (status, True), got
    value = got.json()
    assert value["type"] == "error"
    assert value["error"]["type"] == error_type
    assert value["error"]["message"]
    request_id = got.header("x-proxy-request-id")
    assert request_id
    assert value["request_id"] == request_id
    line = logged(running, "forward_error", request_id=request_id)
    # What is measured beside comes after these.
    assert list(line)[:11] == [
        "request_id", "model", "stream", "body_bytes", "has_thinking", "anthropic_beta", "query", "elapsed",
        "ctx_err", "kind", "status",
    ]  # fmt: skip
    assert (line["kind"], line["status"]) == (kind, str(status))
    access = logged(running, "access", path=path)
    assert (access["request_id"], access["status"], access["verdict"]) == (request_id, str(status), "failed")
    words = wait_for(
        lambda: [each for each in running.lines if request_id in each and "could not be forwarded" in each],
        "it is said in words",
    )
    assert len(words) == 1, words


GARBAGE: Final = {
    "another protocol": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n\r\n\r\n",
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" * 4,
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "no length": b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
    "unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, zstd\r\n\r\nhello",
    "bare LF in a value": b"HTTP/1.1 200 OK\r\nX-A: b\rc\r\n\r\n",
    "no colon": b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
    "endless head": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 2_000_000,
    "cut in the head": b"HTTP/1.1 200 OK\r\nX-A: ",
}


class TestFailures:
    @pytest.fixture(scope="class")
    @staticmethod
    def before_raw(raw: RawUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
        """A proxy before `raw` that does not wait long."""
        url = f"http://127.0.0.1:{raw.port}"
        directory = tmp_path_factory.mktemp("before-raw")
        with Proxy(directory, ANTHROPIC_FORWARD_URL=url, ANTHROPIC_RESPONSE_HEADER_TIMEOUT="1s") as running:
            yield running

    @pytest.mark.parametrize("name", GARBAGE)
    def test_malformed_answers(self, raw: RawUpstream, before_raw: Proxy, name: str) -> None:
        """What is no HTTP/1.1 response is 502, and no byte of it is relayed."""

        def handle(connection: socket.socket) -> None:
            read_request(connection)
            connection.sendall(GARBAGE[name])

        raw.handle = handle
        path = unique("garbage")
        got = call(before_raw.port, "POST", path, (), prompt())
        kind = "reset" if name == "cut in the head" else "protocol"
        assert_failure(before_raw, got, path, 502, "api_error", kind)
        assert b"hello" not in got.body

    @pytest.mark.parametrize(("when", "how"), [("at accept", "fin"), ("after the request", "fin"), ("after", "rst")])
    def test_hung_up_and_never_sent_twice(self, raw: RawUpstream, before_raw: Proxy, when: str, how: str) -> None:
        """A POST whose connection died may have been received: 502, and no second attempt."""

        def handle(connection: socket.socket) -> None:
            if when != "at accept":
                read_request(connection)
            if how == "rst":
                reset(connection)

        raw.handle = handle
        accepted = raw.accepted
        path = unique("hung-up")
        got = call(before_raw.port, "POST", path, (), prompt())
        assert_failure(before_raw, got, path, 502, "api_error", "reset")
        assert raw.accepted == accepted + 1

    def test_reset_at_accept(self, raw: RawUpstream, before_raw: Proxy) -> None:
        """The reset may come before the connection is seen to stand: only then is there another attempt."""
        raw.handle = reset
        accepted = raw.accepted
        path = unique("reset")
        got = call(before_raw.port, "POST", path, (), prompt())
        line = logged(before_raw, "forward_error", request_id=got.header("x-proxy-request-id") or "")
        assert_failure(before_raw, got, path, 502, "api_error", line["kind"])
        assert line["kind"] in ("reset", "unreachable")
        assert accepted < raw.accepted <= accepted + 4

    def test_no_headers(self, raw: RawUpstream, before_raw: Proxy) -> None:
        """An upstream that takes the request and says nothing: 504 ``timeout_error``, and it is left."""
        left = threading.Event()

        def handle(connection: socket.socket) -> None:
            read_request(connection)
            try:
                connection.recv(1)
            finally:
                left.set()

        raw.handle = handle
        path = unique("header-timeout")
        got = call(before_raw.port, "POST", path, (), prompt())
        assert_failure(before_raw, got, path, 504, "timeout_error", "header_timeout")
        assert left.wait(WITHIN_A_SECOND)

    def test_an_early_answer_to_an_upload(self, raw: RawUpstream, before_raw: Proxy) -> None:
        """An upstream that answers and closes before it has read the body: its answer is relayed."""
        refusal = b'{"type":"error","error":{"type":"request_too_large","message":"No."}}'

        def handle(connection: socket.socket) -> None:
            connection.recv(1000)
            connection.sendall(
                b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(refusal) + refusal
            )
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

        raw.handle = handle
        got = call(before_raw.port, "POST", unique("early"), (), pattern(8 * MIB))
        assert (got.status, got.whole, got.body) == (413, True, refusal)

    def test_refused_and_tried_again(self, tmp_path: Path) -> None:
        """A refused connection has received nothing: it is tried max_retries times more, and then 502."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        with Proxy(tmp_path, ANTHROPIC_FORWARD_URL=url, ANTHROPIC_MAX_RETRIES="2") as running:
            path = unique("refused")
            got = call(running.port, "POST", path, (), prompt())
            assert_failure(running, got, path, 502, "api_error", "refused")
            assert url in got.json()["error"]["message"]
            attempts = [line for line in running.lines if "no connection to" in line]
            assert ["attempt 1 of 3" in attempts[0], "attempt 2 of 3" in attempts[1], len(attempts)] == [True, True, 2]

            # The upstream comes up between two attempts.
            with Client(running.port) as client:
                start = len(running.lines)
                client.ask("POST", unique("refused"), (), prompt("late"))
                running.wait_for_line("no connection to", start=start)
                requests: list[bytes] = []

                def handle(connection: socket.socket) -> None:
                    requests.append(read_request(connection))
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

                with RawUpstream(handle, port=port):
                    got = client.answer()
            assert (got.status, got.body) == (200, b"hello")
            assert len(requests) == 1
            assert requests[0].endswith(prompt("late"))

    def test_no_such_name(self, tmp_path: Path) -> None:
        """An upstream whose name cannot be resolved: 502 that names it."""
        settings = {"ANTHROPIC_FORWARD_URL": "http://upstream.invalid:8080", "ANTHROPIC_MAX_RETRIES": "0"}
        with Proxy(tmp_path, **settings) as running:
            path = unique("dns")
            got = call(running.port, "POST", path, (), prompt(), limit=30)
            assert_failure(running, got, path, 502, "api_error", "dns")
            assert "upstream.invalid" in got.json()["error"]["message"]


# -- limits and deadlines --------------------------------------------------------------------------------------


class TestLimits:
    @pytest.fixture(scope="class")
    @staticmethod
    def limited(tmp_path_factory: pytest.TempPathFactory, upstream: StandIn) -> Iterator[Proxy]:
        """A proxy with little patience and small bodies."""
        settings = {
            "READ_TIMEOUT": "1s",
            "UPSTREAM_IDLE_TIMEOUT": "1s",
            "MAX_BODY_BYTES": "100000",
        }
        with proxy(tmp_path_factory.mktemp("limited"), upstream, **settings) as running:
            yield running

    @pytest.fixture(scope="class")
    @staticmethod
    def strict(tmp_path_factory: pytest.TempPathFactory, upstream: StandIn) -> Iterator[Proxy]:
        """A proxy that drops clients which neither take nor ask anything."""
        settings = {"WRITE_TIMEOUT": "1s", "IDLE_TIMEOUT": "1s"}
        with proxy(tmp_path_factory.mktemp("strict"), upstream, **settings) as running:
            yield running

    @pytest.mark.parametrize("framing", ["length", "chunked"])
    def test_too_large_a_body_is_refused_before_it_is_read(
        self, limited: Proxy, upstream: StandIn, framing: str
    ) -> None:
        """A client that sends on and on, and only then reads, reads the whole 413."""
        mark = upstream.mark()
        path = unique("large")
        with Client(limited.port) as client:
            if framing == "length":
                client.send(request_bytes("POST", path, [("Content-Length", str(20 * MIB))]))
                for _ in range(20):
                    client.send(b"x" * MIB)
            else:
                client.send(request_bytes("POST", path, [("Transfer-Encoding", "chunked")]))
                for _ in range(20):
                    client.send(b"100000\r\n" + b"x" * MIB + b"\r\n")
                client.send(b"0\r\n\r\n")
            got = client.answer()
            assert (got.status, got.whole) == (413, True)
            assert got.json()["error"]["type"] == "request_too_large"
            assert got.json()["request_id"] == got.header("x-proxy-request-id")
            assert got.header("connection") == "close"
            assert client.read_to_end() == (b"", "fin")
        assert logged(limited, "access", path=path)["status"] == "413"
        assert upstream.requests(mark) == []
        wait_for(lambda: limited.in_flight() == 0, "it is not counted")

    def test_the_largest_allowed_body(self, limited: Proxy) -> None:
        """The limit itself is allowed, a byte more is not."""
        assert call(limited.port, "POST", unique("limit"), (), b"x" * 100_000).status == 200
        assert call(limited.port, "POST", unique("limit"), (), b"x" * 100_001).status == 413

    def test_expect_continue(self, limited: Proxy) -> None:
        """Too long a body is not invited; one that is welcome is."""
        with Client(limited.port) as client:
            client.send(
                request_bytes("POST", unique("expect"), [("Content-Length", "100001"), ("Expect", "100-continue")])
            )
            assert client.read_until(b"\r\n") == b"HTTP/1.1 413 Content Too Large\r\n"
        with Client(limited.port) as client:
            client.send(request_bytes("POST", unique("expect"), [("Content-Length", "10"), ("Expect", "100-continue")]))
            assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(b"0123456789")
            got = client.answer()
            assert (got.status, got.interim) == (200, [])
            assert got.json()["body_length"] == 10

    @pytest.mark.parametrize(
        "bad",
        [
            b"nonsense\r\n",
            b"POST /v1/bad HTTP/1.1\r\nHost: x\r\nno colon\r\n",
            b"POST /v1/bad HTTP/1.1\r\nHost: x\r\nContent-Length: 1x\r\n",
            b"POST /v1/bad HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            b"POST /v1/bad HTTP/9.9\r\nHost: x\r\n",
        ],
    )
    def test_what_is_no_request(self, limited: Proxy, upstream: StandIn, bad: bytes) -> None:
        """400 in the envelope; what follows on the connection is nobody's request, and nothing stays in flight."""
        mark, start = upstream.mark(), len(limited.lines)
        with Client(limited.port) as client:
            client.send(bad + b"\r\n" + request_bytes("POST", unique("smuggled"), (), prompt()))
            got = client.answer()
            assert (got.status, got.whole) == (400, True)
            assert got.json()["error"]["type"] == "invalid_request_error"
            assert client.read_to_end() == (b"", "fin")
            # The client is still there.
            assert limited.in_flight() == 0
        assert upstream.requests(mark) == []
        assert not [line for line in limited.lines[start:] if "Traceback" in line]

    @pytest.mark.parametrize("sent", ["half a head", "half a body"])
    def test_a_request_that_stops_coming(self, limited: Proxy, upstream: StandIn, sent: str) -> None:
        """READ_TIMEOUT: 408 in the envelope, the connection closed, nothing sent upstream."""
        mark = upstream.mark()
        raw = request_bytes("POST", unique("stalled"), (), b"x" * 1000)
        with Client(limited.port) as client:
            client.send(raw[:30] if sent == "half a head" else raw[:-500])
            got = client.answer()
            assert (got.status, got.whole) == (408, True)
            assert got.json()["error"]["type"] == "timeout_error"
            assert client.read_to_end() == (b"", "fin")
        assert upstream.requests(mark) == []
        wait_for(lambda: limited.in_flight() == 0, "it is not counted")

    def test_a_body_that_makes_progress(self, limited: Proxy) -> None:
        """READ_TIMEOUT is no limit on a body that keeps coming, however long it takes altogether."""
        raw = request_bytes("POST", unique("slow"), (), b"x" * 1000)
        head, pieces = raw[:-1000], [raw[-1000:][start : start + 125] for start in range(0, 1000, 125)]
        with Client(limited.port) as client:
            began = time.monotonic()
            client.send(head)
            for piece in pieces:
                # What is shown takes longer than the limit: the pauses are the test.
                time.sleep(0.2)
                client.send(piece)
            assert time.monotonic() - began > 1.5
            assert client.answer().json()["body_length"] == 1000

    def test_a_silent_upstream(self, limited: Proxy, upstream: StandIn) -> None:
        """UPSTREAM_IDLE_TIMEOUT in the middle of a body: a visible cut, and the upstream is left."""
        mark = upstream.mark()
        path = unique("silent")
        got = call(limited.port, "POST", path, [play("message?gate=never@3")], prompt(stream=True))
        assert got.status == 200
        assert got.ending == "fin"
        assert got.body.endswith(b"\n\n")
        assert b"event: error" not in got.body
        upstream.wait_closed(since=mark)
        access = logged(limited, "access", path=path)
        assert access["verdict"] == "silent"
        assert logged(limited, "forward_error", request_id=access["request_id"])["ctx_err"] == "deadline_exceeded"

    def test_silence_that_the_client_wants(self, limited: Proxy) -> None:
        """A client that holds us back for longer than UPSTREAM_IDLE_TIMEOUT loses nothing by it."""
        size = 16 * MIB
        with Client(limited.port, receive_buffer=8192) as client:
            client.ask("POST", unique("wanted"), [play(f"bytes?size={size}")], b"{}")
            head = client.read_until(b"\r\n\r\n")
            wait_until_still(lambda: queues()[limited.port, client.local_port].unsent)
            # Twice as long as the limit, by the proxy's own clock.
            for _ in range(2):
                cut = call(limited.port, "POST", "/v1/messages", [play("auto?gate=never@3")], prompt(stream=True))
                assert cut.ending == "fin"
            client.widen()
            got = client.answer(already=head)
        assert got.whole
        assert got.body == pattern(size)

    def test_a_client_that_takes_nothing(self, strict: Proxy, upstream: StandIn) -> None:
        """WRITE_TIMEOUT: it is dropped, and the upstream with it."""
        mark = upstream.mark()
        path = unique("stalled")
        with Client(strict.port, receive_buffer=8192) as client:
            client.ask("POST", path, [play(f"bytes?size={64 * MIB}")], b"{}")
            head = client.read_until(b"\r\n\r\n")
            upstream.wait_closed(since=mark)
            assert not client.answer(already=head).whole
        assert logged(strict, "access", path=path)["verdict"] == "client_stalled"
        assert strict.in_flight() == 0

    def test_a_slow_client(self, strict: Proxy) -> None:
        """WRITE_TIMEOUT is no limit on a client that keeps reading, however long it takes altogether."""
        size = 24 * MIB
        began = time.monotonic()

        def slowly(count: int) -> None:
            if time.monotonic() - began < 2.5:
                time.sleep(count / (8 * MIB))

        with Client(strict.port, receive_buffer=65536) as client:
            client.ask("POST", unique("slow"), [play(f"bytes?size={size}")], b"{}")
            got = client.answer(pace=slowly)
        assert time.monotonic() - began > 1.5
        assert got.whole
        assert got.body == pattern(size)

    def test_an_idle_connection(self, strict: Proxy) -> None:
        """IDLE_TIMEOUT closes a kept connection, used or not, by FIN; one with a request in flight stays."""
        with Client(strict.port) as used, Client(strict.port) as unused, Client(strict.port) as busy:
            assert used.call("POST", "/v1/messages", (), prompt()).whole
            busy.ask("POST", "/v1/messages", [play("auto?silence=2@3")], prompt(stream=True))
            assert used.read_to_end() == (b"", "fin")
            assert unused.read_to_end() == (b"", "fin")
            assert busy.answer().whole


# -- connections to the upstream -------------------------------------------------------------------------------


class TestKeepAlive:
    def test_reuse(self, proxied: Proxy, upstream: StandIn) -> None:
        """Requests one after another share a connection to the upstream, whoever sends them."""
        mark = upstream.mark()
        for number in range(3):
            assert call(proxied.port, "POST", "/v1/messages", (), prompt(stream=number == 1)).whole
        assert len({each.connection for each in upstream.requests(mark)}) == 1

    @pytest.mark.parametrize("after", ["close", "drop"])
    def test_closed_by_the_upstream(self, proxied: Proxy, upstream: StandIn, after: str) -> None:
        """A connection that the upstream has closed, announced or not, is not used again: nobody gets a 502 for it."""
        for _ in range(5):
            mark = upstream.mark()
            assert call(proxied.port, "POST", "/v1/messages", [play(f"auto?after={after}")], prompt()).whole
            upstream.wait_closed(since=mark)
            assert call(proxied.port, "POST", "/v1/messages", (), prompt()).status == 200
            first, second = upstream.requests(mark)
            assert first.connection != second.connection

    def test_a_request_eaten_on_a_reused_connection(self, proxied: Proxy, upstream: StandIn) -> None:
        """A POST that an upstream read on a kept connection and left unanswered is 502, and is not sent again."""
        assert call(proxied.port, "POST", "/v1/messages", [play("auto?after=eat")], prompt()).whole
        mark = upstream.mark()
        path = unique("eaten")
        got = call(proxied.port, "POST", path, (), prompt())
        assert_failure(proxied, got, path, 502, "api_error", "reset")
        assert len(upstream.requests(mark)) == 1

    @pytest.mark.parametrize("junk", ["HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison", "x"])
    def test_bytes_that_nobody_asked_for(self, proxied: Proxy, upstream: StandIn, junk: str) -> None:
        """An upstream that sends more than its answer has its connection closed: no next request meets the rest."""
        asked = json.dumps(junk)[1:-1].replace("\\r\\n", "%0D%0A").replace(" ", "%20")
        for _ in range(3):
            mark = upstream.mark()
            got = call(proxied.port, "POST", "/v1/messages", [play(f"auto?junk={asked}")], prompt("one"))
            assert got.whole
            assert b"poison" not in got.body
            # Whoever sends such a thing is not spoken to again on this connection.
            assert upstream.wait_closed(since=mark).closed_by in ("fin", "rst")
            got = call(proxied.port, "POST", "/v1/messages", (), prompt("two"))
            assert (got.status, got.whole) == (200, True)
            assert b"poison" not in got.body

    def test_no_connection_is_left_behind(self, proxied: Proxy, upstream: StandIn) -> None:
        """After all of that nothing is in flight, and what connections remain open are idle."""
        wait_for(lambda: proxied.in_flight() == 0, "nothing is in flight")
        open_now: Callable[[], list[object]] = lambda: [  # noqa: E731
            each for each in upstream.connections() if each["closed_at"] is None and not each["between_requests"]
        ]
        wait_for(lambda: not open_now(), "no request is half sent")
        assert "Traceback" not in proxied.log
