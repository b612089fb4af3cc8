"""TLS, on either side of a real process: leaving, cuts, backpressure, and connections that cannot be made."""

from __future__ import annotations

import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trustme

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
    reset,
    resident_bytes,
    wait_until_still,
)
from tests.standin_api import Request, answer
from tests.standin_plan import parse_scenario
from tests.test_process_relay import MIB, PHASES, WITHIN_A_SECOND, assert_failure, leave, pattern, unique


class TestUpstream:
    """The upstream speaks TLS, as the API does."""

    @pytest.mark.parametrize("how", ["fin", "rst"])
    @pytest.mark.parametrize("name", PHASES)
    def test_leaving(self, tls_proxied: Proxy, tls_upstream: StandIn, name: str, how: str) -> None:
        """A client that leaves closes the TLS connection to the upstream within a second, in any phase."""
        leave(tls_proxied, tls_upstream, PHASES[name], how)

    @pytest.mark.parametrize("how", ["fin", "rst"])
    def test_leaving_while_the_upstream_reads_the_upload(
        self, tls_proxied: Proxy, tls_upstream: StandIn, how: str
    ) -> None:
        """The same with megabytes of a body queued for an upstream that has stopped reading."""
        mark = tls_upstream.mark()
        with Client(tls_proxied.port) as client:
            client.ask("POST", unique("leave"), [play("echo?read_gate=never")], pattern(16 * MIB))
            tls_upstream.wait_for(lambda seen: seen, "the request came", since=mark)
            left = time.monotonic()
            client.leave(how)
            seen = tls_upstream.wait_closed(since=mark)
        assert seen.closed_at is not None
        assert seen.closed_at - left < WITHIN_A_SECOND
        wait_for(lambda: tls_proxied.in_flight() == 0, "nothing is in flight")

    @pytest.mark.parametrize("framing", ["chunked", "length", "close"])
    @pytest.mark.parametrize("how", ["fin", "notify", "rst"])
    def test_truncation(self, tls_proxied: Proxy, framing: str, how: str) -> None:
        """A cut stream is a cut one, whether the upstream said goodbye in TLS or not."""
        body = prompt(stream=True)
        request = Request(method="POST", target="/v1/messages", headers=(), body=body)
        whole = b"".join(answer(request, parse_scenario("auto")).pieces)
        for offset in (*range(0, len(whole), 61), len(whole) - 2, len(whole) - 1):
            scenario = f"auto?framing={framing}&at={offset}&how={how}"
            got = call(tls_proxied.port, "POST", "/v1/messages", [play(scenario)], body)
            assert not got.whole, (offset, got)
            assert whole.startswith(got.body), (offset, got)
        got = call(tls_proxied.port, "POST", "/v1/messages", [play(f"auto?framing={framing}")], body)
        assert got.whole
        assert got.body == whole

    def test_close_delimited_without_close_notify(self, tls_proxied: Proxy) -> None:
        """An end that TLS does not vouch for does not make a close-delimited JSON answer whole (RFC 8446 §6.1)."""
        body = prompt()
        scenario = "auto?framing=close&at={}&how={}"
        request = Request(method="POST", target="/v1/messages", headers=(), body=body)
        whole = b"".join(answer(request, parse_scenario("auto")).pieces)
        got = call(tls_proxied.port, "POST", "/v1/messages", [play(scenario.format(200, "fin"))], body)
        assert not got.whole
        assert whole.startswith(got.body)

    def test_backpressure(self, tls_proxied: Proxy, tls_upstream: StandIn) -> None:
        """A client that does not read holds 64 MiB back through TLS too, and gets all of it in the end."""
        size = 64 * MIB
        mark = tls_upstream.mark()
        before = resident_bytes(tls_proxied.pid)
        with Client(tls_proxied.port, receive_buffer=8192, limit=60) as client:
            client.ask("POST", unique("held"), [play(f"bytes?size={size}")], b"{}")
            head = client.read_until(b"\r\n\r\n")
            taken = wait_until_still(lambda: sum(each.written for each in tls_upstream.requests(mark)))
            assert taken < size // 2
            assert resident_bytes(tls_proxied.pid) - before < 8 * MIB
            client.widen()
            got = client.answer(already=head)
        assert got.whole
        assert got.body == pattern(size)

    def test_reuse(self, tls_proxied: Proxy, tls_upstream: StandIn) -> None:
        """One handshake serves many requests; a connection that was closed meanwhile costs nobody a 502."""
        mark = tls_upstream.mark()
        for _ in range(3):
            assert call(tls_proxied.port, "POST", "/v1/messages", (), prompt()).whole
        assert len({each.connection for each in tls_upstream.requests(mark)}) == 1
        for _ in range(5):
            mark = tls_upstream.mark()
            assert call(tls_proxied.port, "POST", "/v1/messages", [play("auto?after=drop")], prompt()).whole
            tls_upstream.wait_closed(since=mark)
            assert call(tls_proxied.port, "POST", "/v1/messages", (), prompt()).status == 200

    def test_what_remains(self, tls_proxied: Proxy) -> None:
        """After all of that nothing is in flight, and nothing went wrong in an unforeseen way."""
        wait_for(lambda: tls_proxied.in_flight() == 0, "nothing is in flight")
        assert "Traceback" not in tls_proxied.log
        assert "unforeseen" not in tls_proxied.log


class TestHandshake:
    """No TLS connection, no request: each failure is told as what it is."""

    @pytest.fixture(scope="class")
    @staticmethod
    def before_raw(raw: RawUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
        """A proxy that takes `raw` for a TLS server, and tries once more."""
        settings = {"ANTHROPIC_FORWARD_URL": f"https://127.0.0.1:{raw.port}", "ANTHROPIC_MAX_RETRIES": "1"}
        with Proxy(tmp_path_factory.mktemp("before-raw"), **settings) as running:
            yield running

    def test_an_unknown_authority(self, tmp_path: Path, tls_upstream: StandIn) -> None:
        """A certificate of an authority that this machine does not trust: 502, and no byte of the request is sent."""
        mark = tls_upstream.mark()
        settings = {"ANTHROPIC_FORWARD_URL": tls_upstream.url, "ANTHROPIC_MAX_RETRIES": "0"}
        with Proxy(tmp_path, **settings) as running:
            path = unique("untrusted")
            got = call(running.port, "POST", path, (), prompt())
            assert_failure(running, got, path, 502, "api_error", "tls")
            assert "certificate" in got.json()["error"]["message"]
        assert tls_upstream.requests(mark) == []

    def test_another_name(self, tmp_path: Path) -> None:
        """A certificate of a trusted authority for another name: the same."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("other.test").configure_cert(context)
        received: list[bytes] = []

        def handle(connection: socket.socket) -> None:
            with context.wrap_socket(connection, server_side=True) as secured:
                received.append(secured.recv(1000))

        with RawUpstream(handle) as raw:
            settings = {
                "ANTHROPIC_FORWARD_URL": f"https://localhost:{raw.port}",
                "ANTHROPIC_MAX_RETRIES": "0",
                "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
            }
            with Proxy(tmp_path, **settings) as running:
                path = unique("other-name")
                got = call(running.port, "POST", path, (), prompt())
                assert_failure(running, got, path, 502, "api_error", "tls")
        assert not any(received)

    def test_a_server_without_tls(self, raw: RawUpstream, before_raw: Proxy) -> None:
        """A plain HTTP server on the port: 502."""

        def handle(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            connection.recv(65536)

        raw.handle = handle
        path = unique("plain")
        got = call(before_raw.port, "POST", path, (), prompt())
        assert_failure(before_raw, got, path, 502, "api_error", "tls")

    @pytest.mark.parametrize("how", ["fin", "rst"])
    def test_hung_up_in_the_handshake(self, raw: RawUpstream, before_raw: Proxy, how: str) -> None:
        """Nothing of the request was sent: it is tried again, and then 502."""

        def handle(connection: socket.socket) -> None:
            connection.recv(65536)
            if how == "rst":
                reset(connection)

        raw.handle = handle
        accepted = raw.accepted
        path = unique("handshake")
        got = call(before_raw.port, "POST", path, (), prompt())
        assert_failure(before_raw, got, path, 502, "api_error", "tls")
        assert raw.accepted == accepted + 2

    @pytest.mark.parametrize("how", ["fin", "rst"])
    def test_leaving_in_the_handshake(self, raw: RawUpstream, before_raw: Proxy, how: str) -> None:
        """A client that leaves while the upstream is silent in the handshake: its connection closes within a second."""
        begun, ended = threading.Event(), threading.Event()

        def handle(connection: socket.socket) -> None:
            connection.recv(65536)
            begun.set()
            try:
                connection.recv(65536)
            finally:
                ended.set()

        raw.handle = handle
        path = unique("leave")
        with Client(before_raw.port) as client:
            client.ask("POST", path, (), prompt())
            assert begun.wait(10)
            client.leave(how)
            assert ended.wait(WITHIN_A_SECOND)
        wait_for(lambda: before_raw.in_flight() == 0, "nothing is in flight")
        (access,) = wait_for(lambda: events_logged(before_raw.lines, "access", path=path), "the access line")
        assert access["verdict"] == "client_gone"


@attrs.frozen(kw_only=True)
class Secured:
    """A proxy that listens with TLS, and what its clients trust."""

    proxy: Proxy
    port: int
    context: ssl.SSLContext

    def client(self, **options: Any) -> Client:
        return Client(self.port, host="127.0.0.1", context=self.context, **options)


class TestListening:
    """Clients speak TLS to the proxy."""

    ENDPOINT: Final = "ssl:{port}:interface=127.0.0.1:privateKey={key}:certKey={certificate}"

    @pytest.fixture
    def secured(self, tmp_path: Path, upstream: StandIn) -> Iterator[Secured]:
        """A proxy with a TLS port and, for health checks, a plain one."""
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
        issued.cert_chain_pems[0].write_to_path(str(tmp_path / "certificate.pem"))
        context = ssl.create_default_context()
        authority.configure_trust(context)
        port = free_port()
        listening = self.ENDPOINT.format(port=port, key=tmp_path / "key.pem", certificate=tmp_path / "certificate.pem")
        # One setting, two endpoints: the plain one is told first.
        with proxy(tmp_path, upstream, LISTEN=f"tcp:0:interface=127.0.0.1 {listening}") as running:
            running.wait_for_line(rf"listening on \S*\b{port}\b")
            yield Secured(proxy=running, port=port, context=context)

    def test_relay_leave_and_drain(self, secured: Secured, upstream: StandIn) -> None:
        """Over TLS answers come whole, cuts are visible, leaving is noticed, and the drain cuts nothing."""
        with secured.client() as client:
            for stream in (False, True):
                body = prompt(stream=stream)
                request = Request(method="POST", target="/v1/messages", headers=(), body=body)
                got = client.call("POST", "/v1/messages", (), body)
                assert got.whole
                assert got.body == b"".join(answer(request, parse_scenario("auto")).pieces)
        with secured.client() as client:
            got = client.call("POST", unique("cut"), [play("bytes?size=5000&at=1000&how=fin")], b"{}")
            assert not got.whole
            assert got.body == pattern(1000)

        for how in ("fin", "rst"):
            mark = upstream.mark()
            with secured.client() as client:
                client.ask("POST", unique("leave"), [play("message?gate=never@3")], prompt(stream=True))
                client.read_until(b'"ping"}\n\n')
                left = time.monotonic()
                client.leave(how)
                seen = upstream.wait_closed(since=mark)
            assert seen.closed_at is not None
            assert seen.closed_at - left < WITHIN_A_SECOND
        wait_for(lambda: secured.proxy.in_flight() == 0, "nothing is in flight")

        size = 8 * MIB
        with secured.client(receive_buffer=8192) as client:
            client.ask("POST", unique("last"), [play(f"bytes?size={size}")], b"{}")
            head = client.read_until(b"\r\n\r\n")
            secured.proxy.signal(signal.SIGTERM)
            secured.proxy.wait_for_line("draining: 1 in flight")
            got = client.answer(already=head, pace=lambda count: time.sleep(count / (32 * MIB)))
            assert got.whole
            assert got.body == pattern(size)
            # The client keeps its side open, and does not answer the close_notify.
            assert secured.proxy.wait() == -signal.SIGTERM
        assert "Traceback" not in secured.proxy.log

    def test_a_client_that_does_not_read(self, secured: Secured, upstream: StandIn) -> None:
        """Of 64 MiB for a TLS client that does not read, little is in this process; it gets all in the end."""
        size = 64 * MIB
        with secured.client() as client:
            assert client.call("POST", unique("held"), [play("bytes?size=100000")], b"{}").whole
        mark = upstream.mark()
        before = resident_bytes(secured.proxy.pid)
        with secured.client(receive_buffer=8192, limit=60) as client:
            client.ask("POST", unique("held"), [play(f"bytes?size={size}")], b"{}")
            head = client.read_until(b"\r\n\r\n")
            taken = wait_until_still(lambda: sum(each.written for each in upstream.requests(mark)))
            assert taken < size // 2
            assert resident_bytes(secured.proxy.pid) - before < 8 * MIB
            client.widen()
            got: Answer = client.answer(already=head)
        assert got.whole
        assert got.body == pattern(size)

    def test_too_large_a_body(self, secured: Secured) -> None:
        """A refusal in the middle of an upload is read whole over TLS too."""
        with secured.client() as client:
            client.send(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 99000000\r\n\r\n")
            for _ in range(8):
                client.send(b"x" * MIB)
            got = client.answer()
        assert (got.status, got.whole) == (413, True)
        assert got.json()["error"]["type"] == "request_too_large"
