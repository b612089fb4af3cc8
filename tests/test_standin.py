"""The stand-in upstream does what its scenarios say: what other tests conclude from it rests on this."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tests.corpus import BY_NAME
from tests.processes import StandIn, standin
from tests.standin import BadRequest, Reader
from tests.standin_messages import Dialect, compact, message, message_events
from tests.standin_plan import Answer, End, Scenario, ScenarioError, Send, Step, parse_scenario, plan

EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def wire(steps: Iterator[Step]) -> bytes:
    """Everything that steps send."""
    return b"".join(step.data for step in steps if isinstance(step, Send))


class Client:
    """A raw connection to the stand-in."""

    def __init__(self, upstream: StandIn) -> None:
        self.socket = socket.create_connection(("127.0.0.1", upstream.port), timeout=10)
        if upstream.ca_file is not None:
            context = ssl.create_default_context(cafile=str(upstream.ca_file))
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost", suppress_ragged_eofs=False)

    def ask(
        self, scenario: str, *, target: str = "/v1/messages", body: bytes = b'{"stream":true}', rest: str = ""
    ) -> None:
        """Send a whole request."""
        self.begin(scenario, target=target, length=len(body), rest=rest)
        self.socket.sendall(body)

    def begin(self, scenario: str, *, target: str = "/v1/messages", length: int, rest: str = "") -> None:
        """Send the head of a request."""
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\nx-standin: {scenario}\r\nContent-Length: {length}\r\n{rest}\r\n"
        self.socket.sendall(head.encode())

    def read_until(self, mark: bytes) -> bytes:
        """What comes, up to and with `mark`."""
        found = b""
        while not found.endswith(mark):
            part = self.socket.recv(1)
            assert part, f"the connection ended after {found!r}"
            found += part
        return found

    def read_all(self) -> bytes:
        """What comes before FIN."""
        found = b""
        while part := self.socket.recv(65536):
            found += part
        return found


@contextmanager
def connected(upstream: StandIn) -> Iterator[Client]:
    """A raw connection, closed at the end."""
    client = Client(upstream)
    with client.socket:
        yield client


class TestScenario:
    """A scenario line as a value."""

    def test_parameters(self) -> None:
        """Numbers, flags, lists and repeated parameters are read as what they are."""
        scenario = parse_scenario("cut?at=120&how=rst&gzip&interim=100,103&gate=a@1&gate=b@2&delay=0.5")
        assert scenario == Scenario(
            name="cut", at=120, how="rst", gzip=True, interim=(100, 103), gate=("a@1", "b@2"), delay=0.5
        )

    @pytest.mark.parametrize("line", ["nothing", "cut?where=1", "cut?at=x", "cut?how=softly", "cut?name=error"])
    def test_refused(self, line: str) -> None:
        """A name, parameter or value that means nothing is refused, not ignored."""
        with pytest.raises(ScenarioError):
            parse_scenario(line)


class TestMessages:
    """A message and its stream are the same thing."""

    @pytest.mark.parametrize("size", [1, 5, 1000])
    @pytest.mark.parametrize("say", ["text", "unicode", "tools", "thinking", "citations", "refusal"])
    def test_stream_folds_to_the_message(self, say: str, size: int) -> None:
        """The SDK's own accumulator makes the message out of the events."""
        whole = message(say, count=4, model="claude", message_id="msg_1")
        folded: Any = None
        buffers: dict[int, bytes] = {}
        for event in message_events(whole, size=size):
            if event["type"] != "ping":
                parsed = EVENTS.validate_python(event)
                folded = accumulate_event(event=parsed, current_snapshot=folded, json_bufs=buffers)
        found = folded.to_dict(mode="json")
        assert found["content"] == whole["content"]
        assert found["stop_reason"] == whole["stop_reason"]
        assert found["usage"]["output_tokens"] == whole["usage"]["output_tokens"]

    def test_dialect(self) -> None:
        """Comments, ids, retry, line ends and the missing last blank line are written as said."""
        events = iter([("a", "1"), (None, "2")])
        dialect = Dialect(eol="\r\n", comments=True, ids=True, retry=5, unterminated=True)
        assert list(dialect.encode(events)) == [
            b"retry: 5\r\n\r\n: comment 0\r\nid: 0\r\nevent: a\r\ndata: 1\r\n\r\n",
            b": comment 1\r\nid: 1\r\ndata: 2\r\n",
        ]


class TestPlan:
    """Steps."""

    ANSWER = Answer(headers=(("A", "b"),), pieces=(b"one", b"two"), stream=True)
    WHOLE = b"HTTP/1.1 200 OK\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"

    def test_whole(self) -> None:
        """Each piece is a chunk, and a write."""
        assert wire(plan(Scenario(), self.ANSWER)) == self.WHOLE

    @pytest.mark.parametrize("framing", ["chunked", "length", "close"])
    def test_cut_at_every_offset_of_the_body(self, framing: str) -> None:
        """A cut leaves exactly so many bytes of the body, says nothing of an end, and keeps the head as it was."""
        for at in range(7):
            scenario = Scenario(at=at, how="fin", framing=framing)
            head, _, body = wire(plan(scenario, self.ANSWER)).partition(b"\r\n\r\n")
            assert (b"Content-Length: 6" in head) == (framing == "length")
            if framing == "chunked":
                assert b"0\r\n" not in body
                body = b"".join(part for part in body.split(b"\r\n")[1::2])
            assert body == b"onetwo"[:at]

    def test_cut_at_every_offset_of_the_wire(self) -> None:
        """The same of the whole answer, head and framing included."""
        for at in range(len(self.WHOLE) + 1):
            steps = list(plan(Scenario(wire_at=at, how="rst"), self.ANSWER))
            assert wire(iter(steps)) == self.WHOLE[:at]
            assert steps[-1] == End("rst")

    @pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
    def test_bodiless(self, method: str, status: int) -> None:
        """HEAD, 204 and 304 have no body; HEAD and 304 tell the length that there would be."""
        answer = Answer(status=status, pieces=(b"body",))
        head, _, body = wire(plan(Scenario(), answer, method=method)).partition(b"\r\n\r\n")
        assert body == b""
        assert (b"Content-Length: 4" in head) == (status != 204)


class TestReader:
    """Requests out of bytes."""

    STREAM = (
        b"POST /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
        b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\none\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n"
        b"GET /c HTTP/1.1\r\n\r\n"
    )

    @staticmethod
    def joined(events: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        found: list[tuple[str, bytes]] = []
        for kind, data in events:
            if kind == "body" and found[-1][0] == "body":
                found[-1] = ("body", found[-1][1] + data)
            else:
                found.append((kind, data))
        return found

    @given(st.lists(st.integers(0, len(STREAM))))
    def test_any_split(self, cuts: list[int]) -> None:
        """However the bytes are split, the requests are the same."""
        edges = [0, *sorted(cuts), len(self.STREAM)]
        reader = Reader()
        events = [event for start, end in pairwise(edges) for event in reader.feed(self.STREAM[start:end])]
        assert [data for kind, data in self.joined(events) if kind == "body"] == [b"hello", b"one0123456789"]
        assert [kind for kind, _ in events].count("end") == 3
        assert reader.between_requests

    def test_nonsense(self) -> None:
        """A chunk without a size is an error."""
        with pytest.raises(BadRequest):
            Reader().feed(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")


class TestProcess:
    """The process, by sockets."""

    def test_record(self, upstream: StandIn) -> None:
        """A request is recorded: head raw, body by digest, and how its connection ended."""
        mark = upstream.mark()
        with connected(upstream) as client:
            client.ask("auto", body=b'{"model":"m"}', rest="X-Two: 1\r\nx-two: 2\r\n")
            client.read_until(b"\r\n\r\n")
        seen = upstream.wait_closed(since=mark)
        assert seen.head.startswith(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\n")
        assert seen.header("x-two") == ["1", "2"]
        assert (seen.body, seen.body_length) == (b'{"model":"m"}', 13)
        assert seen.body_sha256 == hashlib.sha256(seen.body).hexdigest()
        assert seen.closed_by in ("fin", "rst")

    def test_scenario_by_model(self, upstream: StandIn) -> None:
        """The model of a body chooses a scenario, for clients that send no header of ours."""
        with socket.create_connection(("127.0.0.1", upstream.port), timeout=10) as sock:
            body = compact({"model": "standin-error?status=529"}).encode()
            sock.sendall(b"POST /v1/messages HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            assert sock.recv(65536).startswith(b"HTTP/1.1 529 Overloaded\r\n")

    def test_unknown_scenario(self, upstream: StandIn) -> None:
        """A scenario that nobody can play is answered with a status that no test expects."""
        with connected(upstream) as client:
            client.ask("cut?where=1")
            assert client.read_until(b"\r\n").startswith(b"HTTP/1.1 599 ")

    def test_fin(self, upstream: StandIn) -> None:
        """``how=fin`` ends by FIN after exactly so many bytes."""
        with connected(upstream) as client:
            client.ask("bytes?size=500&at=100&how=fin")
            _, _, body = client.read_all().partition(b"\r\n\r\n")
            assert body == bytes(range(100))

    def test_rst(self, upstream: StandIn) -> None:
        """``how=rst`` ends by RST."""
        with connected(upstream) as client:
            client.ask("bytes?size=500&at=100&how=rst")
            with pytest.raises(ConnectionResetError):
                client.read_all()

    def test_hang(self, upstream: StandIn) -> None:
        """``how=hang`` stays silent until the client goes, and knows at once when it does."""
        mark = upstream.mark()
        with connected(upstream) as client:
            client.ask("bytes?size=500&at=100&how=hang")
            client.read_until(bytes(range(90, 100)))
        assert upstream.wait_closed(since=mark).closed_by in ("fin", "rst")

    def test_gate(self, upstream: StandIn) -> None:
        """A gate holds the piece behind it back until it is released."""
        gate = f"gate-{upstream.mark()}"
        with connected(upstream) as client:
            client.ask(f"auto?gate={gate}@1")
            client.read_until(b"message_start\n")
            client.read_until(b"\n\n\r\n")
            client.socket.settimeout(0.05)
            with pytest.raises(TimeoutError):
                client.socket.recv(1)
            client.socket.settimeout(10)
            upstream.release(gate)
            client.read_until(b"0\r\n\r\n")

    def test_interim(self, upstream: StandIn) -> None:
        """1xx answers come before the real one."""
        with connected(upstream) as client:
            client.ask("auto?interim=100,103")
            found = client.read_until(b"0\r\n\r\n")
        statuses = [line for line in found.split(b"\r\n") if line.startswith(b"HTTP/1.1")]
        assert statuses == [b"HTTP/1.1 100 Continue", b"HTTP/1.1 103 Early Hints", b"HTTP/1.1 200 OK"]

    def test_early(self, upstream: StandIn) -> None:
        """``early`` answers before the body is in, and ends by FIN although bytes are still coming."""
        with connected(upstream) as client:
            client.begin("error?status=413&early=1", length=1 << 20)
            client.socket.sendall(b"x" * 1000)
            assert b"413" in client.read_until(b"\r\n")
            client.socket.sendall(b"x" * 1000)
            client.read_all()

    def test_read_gate(self, upstream: StandIn) -> None:
        """``read_gate`` leaves the body unread until released; a client that goes meanwhile is noticed."""
        mark = upstream.mark()
        gate = f"read-{mark}"
        with connected(upstream) as client:
            client.begin(f"echo?read_gate={gate}", length=1 << 20)
            upstream.wait_for(len, "the head is in", since=mark)
            client.socket.sendall(b"x" * 1000)
            assert upstream.requests(mark)[0].body_length <= 1000
            client.socket.sendall(b"x" * ((1 << 20) - 2000))
            upstream.release(gate)
            client.socket.sendall(b"x" * 1000)
            assert b"200 OK" in client.read_until(b"\r\n")
        mark = upstream.mark()
        with connected(upstream) as client:
            client.begin("echo?read_gate=never", length=1000)
            upstream.wait_for(len, "the head is in", since=mark)
        upstream.wait_closed(since=mark)

    @pytest.mark.parametrize("after", ["drop", "close"])
    def test_after(self, upstream: StandIn, after: str) -> None:
        """A connection that was told to end after its answer does; only ``close`` announces it."""
        with connected(upstream) as client:
            client.ask(f"error?after={after}")
            assert (b"Connection: close" in client.read_all()) == (after == "close")

    def test_eat(self, upstream: StandIn) -> None:
        """``eat`` takes the next request and ends the connection without an answer."""
        mark = upstream.mark()
        with connected(upstream) as client:
            client.ask("error?after=eat")
            client.read_until(b"}")
            client.ask("auto")
            # The rest of the first answer, and nothing of a second.
            assert b"HTTP/1.1" not in client.read_all()
        assert len(upstream.requests(mark)) == 2

    def test_times(self, upstream: StandIn) -> None:
        """``times`` plays a scenario for the first requests of a key only."""
        statuses = []
        for _ in range(3):
            with connected(upstream) as client:
                client.ask(f"error?status=529&times=2&key=times-{id(self)}", rest="Connection: close\r\n")
                statuses.append(client.read_all().split(b" ")[1])
        assert statuses == [b"529", b"529", b"200"]

    def test_stalled_reader(self, upstream: StandIn) -> None:
        """`written` counts what the kernel has taken: a client that does not read holds the rest back."""
        mark = upstream.mark()
        with connected(upstream) as client:
            client.ask("bytes?size=50000000")
            client.read_until(b"\r\n\r\n")
            (seen,) = upstream.wait_for(lambda all_of_them: all_of_them[0].written > 100_000, "it writes", since=mark)
            assert seen.written < 50_000_000
            assert seen.finished_at is None

    def test_refused_connections(self, upstream: StandIn) -> None:
        """Connections are ended as soon as they are open, as often as asked."""
        upstream.refuse_next(1)
        address = ("127.0.0.1", upstream.port)
        with pytest.raises(ConnectionResetError), socket.create_connection(address, timeout=10) as sock:
            sock.recv(1)
        with connected(upstream) as client:
            client.ask("auto")
            client.read_until(b"200 OK")

    def test_corpus(self, upstream: StandIn) -> None:
        """A stream of the corpus is sent byte for byte, an event a chunk."""
        name = "tools"
        with connected(upstream) as client:
            client.ask(f"message?say=corpus/{name}&framing=close")
            _, _, body = client.read_all().partition(b"\r\n\r\n")
        assert body == BY_NAME[name].stream

    def test_monotonic(self, upstream: StandIn) -> None:
        """The stand-in's clock is the test's."""
        before, mark = time.monotonic(), upstream.mark()
        with connected(upstream) as client:
            client.ask("auto")
            client.read_until(b"\r\n")
        assert before < upstream.requests(mark)[0].head_at < time.monotonic()

    def test_reset(self, tmp_path: Path) -> None:
        """`reset` forgets requests and gates; numbers go on. The process ends with its input."""
        with standin(tmp_path) as own:
            own.release("gate")
            with connected(own) as client:
                client.ask("auto?gate=gate@1", rest="Connection: close\r\n")
                client.read_all()
            own.reset()
            assert own.requests() == []
            assert own.mark() == 1
            with connected(own) as client:
                client.ask("auto?header_gate=gate")
                client.socket.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    client.socket.recv(1)


class TestTLS:
    """Ends over TLS, where a FIN alone is an attack and close_notify is an end."""

    def test_fin(self, tls_upstream: StandIn) -> None:
        """``how=fin`` leaves out close_notify."""
        with connected(tls_upstream) as client:
            client.ask("bytes?size=500&at=100&how=fin")
            with pytest.raises(ssl.SSLEOFError):
                client.read_all()

    def test_notify(self, tls_upstream: StandIn) -> None:
        """``how=notify`` sends it."""
        with connected(tls_upstream) as client:
            client.ask("bytes?size=500&at=100&how=notify")
            assert client.read_all().endswith(bytes(range(100)))

    def test_rst(self, tls_upstream: StandIn) -> None:
        """``how=rst`` resets."""
        with connected(tls_upstream) as client:
            client.ask("bytes?size=500&at=100&how=rst")
            # Read below TLS, which calls every ragged end by the same name.
            client.socket = socket.socket(fileno=client.socket.detach())
            client.socket.settimeout(10)
            with client.socket, pytest.raises(ConnectionResetError):
                client.read_all()

    def test_message(self, tls_upstream: StandIn) -> None:
        """A whole message, and the client's leaving noticed."""
        mark = tls_upstream.mark()
        with connected(tls_upstream) as client:
            client.ask("auto", body=b"{}")
            head = client.read_until(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = b""
            while len(body) < length:
                body += client.socket.recv(65536)
            assert json.loads(body)["type"] == "message"
        assert tls_upstream.wait_closed(since=mark).closed_by in ("fin", "rst")
