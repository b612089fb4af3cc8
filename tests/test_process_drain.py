"""The drain of a real ``twistd`` process: signals, health checks, and what becomes of requests in flight."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Proxy, StandIn, proxy, wait_for
from tests.sockets import Answer, Client, call, events_logged, free_port, play, prompt, request_bytes, wait_until_still
from tests.standin_api import Request, answer
from tests.standin_plan import parse_scenario

SIGTERM, SIGINT = signal.SIGTERM, signal.SIGINT


def sent_body(scenario: str, body: bytes, *, method: str = "POST", path: str = "/v1/messages") -> bytes:
    """The body that the stand-in sends for a request, without its framing."""
    request = Request(method=method, target=path, headers=(play(scenario),), body=body)
    return b"".join(answer(request, parse_scenario(scenario)).pieces)


def draining(running: Proxy) -> bool:
    """Whether ``/health`` says so, on a new connection."""
    return running.get("/health")[0] == 503


def begin_drain(running: Proxy, number: signal.Signals = SIGTERM) -> None:
    """Send the signal, and wait until health checks see it."""
    # It answers: its reactor runs, and has its signal handlers.
    assert running.get("/health")[0] == 200
    running.signal(number)
    wait_for(lambda: draining(running), "/health answers 503")


def open_stream(running: Proxy, scenario: str, text: str = "Hello") -> tuple[Client, bytes]:
    """An event stream of which the first event has arrived, and all bytes so far."""
    client = Client(running.port)
    client.ask("POST", "/v1/messages", [play(scenario)], prompt(text, stream=True))
    return client, client.read_until(b"event: message_start") + client.read_until(b"\n\n")


class TestSigterm:
    def test_health_tells_it_while_everything_is_served(self, tmp_path: Path, upstream: StandIn) -> None:
        """From SIGTERM to gauge zero: 503 with Retry-After on old and new connections, while requests are served."""
        scenario = "auto?gate=sigterm-stream@3"
        with proxy(tmp_path, upstream) as running, Client(running.port) as probe, Client(running.port) as kept:
            before = probe.call("GET", "/health")
            assert (before.status, before.json()["status"]) == (200, "healthy")
            assert kept.call("POST", "/v1/messages", (), prompt()).header("connection") is None
            stream, start = open_stream(running, scenario)
            with stream:
                begin_drain(running)

                old = probe.call("GET", "/health")
                new = call(running.port, "GET", "/health")
                for health in (old, new):
                    assert health.status == 503
                    assert health.json()["status"] == "draining"
                    assert health.json()["in_flight"] == 1
                    assert int(health.header("retry-after") or "0") > 0
                    assert health.header("cache-control") == "no-store"
                head = call(running.port, "HEAD", "/health")
                assert (head.status, head.body) == (503, b"")
                status, live = running.get("/livez")
                assert status == 200
                assert (live["status"], live["in_flight"], live["draining"]) == ("ok", 1, True)

                # On a connection of before: the answer says that it is the last one there, and it is.
                last = kept.call("POST", "/v1/messages", (), prompt("old"))
                assert last.status == 200
                assert last.body == sent_body("auto", prompt("old"))
                assert last.header("connection") == "close"
                assert kept.read_to_end() == (b"", "fin")
                fresh = call(running.port, "POST", "/v1/messages", (), prompt("new", stream=True))
                assert fresh.status == 200
                assert fresh.body == sent_body("auto", prompt("new", stream=True))
                assert fresh.header("connection") == "close"

                assert running.returncode is None
                upstream.release("sigterm-stream")
                whole = stream.answer(already=start)
            assert whole.whole
            assert whole.body == sent_body(scenario, prompt(stream=True))
            assert running.wait() == -SIGTERM
            assert "draining: 1 in flight" in running.log
            assert "nothing is in flight; 0 in flight" in running.log
            assert "Traceback" not in running.log
            # The end of the drain comes after the end of the request that it waited for.
            streamed = next(line for line in running.lines if whole.header("x-proxy-request-id") in line)  # type: ignore[operator]
            drained = next(line for line in running.lines if "drained after" in line)
            assert running.lines.index(streamed) < running.lines.index(drained)
            with pytest.raises(ConnectionRefusedError):
                Client(running.port)

    def test_nothing_in_flight(self, tmp_path: Path, upstream: StandIn) -> None:
        """With nothing in flight idle connections hold nobody up: they are closed by FIN, and the process ends."""
        with proxy(tmp_path, upstream) as running, Client(running.port) as idle, Client(running.port) as silent:
            assert idle.call("POST", "/v1/messages", (), prompt()).whole
            running.signal(SIGTERM)
            assert idle.read_to_end() == (b"", "fin")
            assert silent.read_to_end() == (b"", "fin")
            assert running.wait() == -SIGTERM
            assert "draining: 0 in flight" in running.log

    def test_lame_duck(self, tmp_path: Path, upstream: StandIn) -> None:
        """Until the lame-duck time has passed an idle proxy listens, answers 503, and serves."""
        with proxy(tmp_path, upstream, DRAIN_LAME_DUCK="1s") as running:
            signalled = time.monotonic()
            begin_drain(running)
            assert call(running.port, "POST", "/v1/messages", (), prompt()).whole
            assert draining(running)
            assert running.wait() == -SIGTERM
            assert time.monotonic() - signalled >= 1.0

    def test_half_sent_request(self, tmp_path: Path, upstream: StandIn) -> None:
        """A request whose headers are still coming when nothing else is in flight is answered before the end."""
        request = request_bytes("POST", "/v1/messages", (), prompt())
        with proxy(tmp_path, upstream) as running, Client(running.port) as client, Client(running.port) as probe:
            client.send(request[:40])
            # The proxy reads its connections in turn: when it answers this, it has the half.
            assert probe.call("GET", "/livez").whole
            running.signal(SIGTERM)
            assert probe.read_to_end() == (b"", "fin")
            client.send(request[40:])
            got = client.answer()
            assert (got.status, got.whole) == (200, True)
            assert got.body == sent_body("auto", prompt())
            assert running.wait() == -SIGTERM

    def test_slow_readers(self, tmp_path: Path, upstream: StandIn) -> None:
        """The answers that end the drain arrive whole at readers that take their time, whatever their size."""
        sizes = (300_000, 8 << 20)
        with proxy(tmp_path, upstream) as running:
            clients = [Client(running.port, receive_buffer=4096) for _ in sizes]
            starts = []
            for client, size in zip(clients, sizes, strict=True):
                client.ask("POST", "/v1/blob", [play(f"bytes?size={size}")], b"{}")
                starts.append(client.read_until(b"\r\n\r\n"))
            running.signal(SIGTERM)
            running.wait_for_line("draining: ")

            def slowly(size: int) -> None:
                time.sleep(size / (16 << 20))

            for client, start, size in zip(clients, starts, sizes, strict=True):
                assert running.returncode is None
                got = client.answer(already=start, pace=slowly)
                assert got.whole
                assert got.body == sent_body(f"bytes?size={size}", b"{}", path="/v1/blob")
                client.close()
            assert running.wait() == -SIGTERM


class TestSigint:
    def test_skips_the_lame_duck_but_drains(self, tmp_path: Path, upstream: StandIn) -> None:
        """Ctrl-C waits for what is in flight, and not for a balancer."""
        scenario = "auto?gate=sigint-stream@3"
        with proxy(tmp_path, upstream, DRAIN_LAME_DUCK="5m") as running:
            stream, start = open_stream(running, scenario)
            with stream:
                begin_drain(running, SIGINT)
                upstream.release("sigint-stream")
                whole = stream.answer(already=start)
            assert whole.whole
            assert whole.body == sent_body(scenario, prompt(stream=True))
            assert running.wait() == -SIGINT

    @pytest.mark.parametrize(("first", "second"), [(SIGTERM, SIGTERM), (SIGTERM, SIGINT), (SIGINT, SIGINT)])
    def test_a_second_signal_means_now(
        self, tmp_path: Path, upstream: StandIn, first: signal.Signals, second: signal.Signals
    ) -> None:
        """A second signal of either kind cuts what is in flight, visibly and with words, and the process ends."""
        with proxy(tmp_path, upstream, DRAIN_LAME_DUCK="5m") as running:
            stream, start = open_stream(running, "auto?gate=never@3")
            with stream:
                begin_drain(running, first)
                assert running.in_flight() == 1
                running.signal(second)
                cut = stream.answer(already=start)
            assert not cut.whole
            assert cut.ending == "fin"
            assert cut.body.count(b"event: error\n") == 1
            assert running.wait() in (-SIGTERM, -SIGINT)
            assert events_logged(running.lines, "access", verdict="drained")

    def test_a_third_signal_leaves_who_takes_nothing(self, tmp_path: Path, upstream: StandIn) -> None:
        """A client that is cut still gets what is queued for it; one that takes nothing is left at the next signal."""
        mark = upstream.mark()
        with proxy(tmp_path, upstream) as running, Client(running.port, receive_buffer=4096) as client:
            client.ask("POST", "/v1/blob", [play("bytes?size=33554432")], b"{}")
            start = client.read_until(b"\r\n\r\n")
            wait_until_still(lambda: sum(each.written for each in upstream.requests(mark)))
            for line in ("draining: 1 in flight", "drained after"):
                running.signal(SIGTERM)
                running.wait_for_line(line)
            running.signal(SIGTERM)
            assert running.wait() == -SIGTERM
            assert not client.answer(already=start).whole


class TestCeiling:
    """What remains at the ceiling is cut; nothing of it passes for whole."""

    def test_streams_are_told_only_between_two_events(self, tmp_path: Path, upstream: StandIn) -> None:
        """A stream between two events is told why, by an event of ours; one within an event, and JSON, is not."""
        whole = sent_body("auto", prompt(stream=True))
        within = whole.index(b"content_block_delta") + 30
        json_body = sent_body("auto", prompt())
        mark = upstream.mark()
        with proxy(tmp_path, upstream, DRAIN_TIMEOUT="1s") as running, ExitStack() as stack:
            clients = [stack.enter_context(Client(running.port)) for _ in range(3)]
            between, middle, plain = clients
            between.ask("POST", "/v1/messages", [play("auto?gate=never@2")], prompt(stream=True))
            middle.ask("POST", "/v1/messages", [play(f"auto?at={within}&how=hang")], prompt(stream=True))
            plain.ask("POST", "/v1/messages", [play("auto?at=50&how=hang")], prompt())
            starts = [
                between.read_until(b'"ping"}\n\n'),
                middle.read_until(whole[within - 10 : within]),
                plain.read_until(json_body[:50]),
            ]
            running.signal(SIGTERM)
            told, untold, half = (client.answer(already=start) for client, start in zip(clients, starts, strict=True))
            assert running.wait() == -SIGTERM
        assert told.ending == untold.ending == half.ending == "fin"
        before, _, words = told.body.partition(b"event: error\n")
        assert whole.startswith(before)
        assert before.endswith(b"\n\n")
        assert words.startswith(b"data: {")
        assert b'"overloaded_error"' in words
        assert words.endswith(b"\n\n")
        assert (told.header("x-proxy-request-id") or "?").encode() in words
        assert untold.body == whole[:within]
        assert half.body == json_body[:50]
        assert "draining: 3 in flight" in running.log
        assert "the drain timeout has passed; 3 in flight" in running.log
        assert len(events_logged(running.lines, "access", verdict="drained", status="200")) == 3
        assert "Traceback" not in running.log
        upstream.wait_for(
            lambda seen: all(each.closed_at is not None for each in seen), "what was cut is cut upstream", since=mark
        )

    def test_no_words_where_they_would_be_taken_for_something_else(self, tmp_path: Path, upstream: StandIn) -> None:
        """Words of ours never fill up an announced length, nor stand within an encoded body."""
        whole = sent_body("auto", prompt(stream=True))
        with proxy(tmp_path, upstream, DRAIN_TIMEOUT="1s") as running, ExitStack() as stack:
            announced, packed = (stack.enter_context(Client(running.port)) for _ in range(2))
            announced.ask("POST", "/v1/messages", [play("auto?framing=length&gate=never@6")], prompt(stream=True))
            packed.ask(
                "POST",
                "/v1/messages",
                [play("auto?header=Content-Encoding:gzip&gate=never@2")],
                prompt(stream=True),
            )
            starts = [announced.read_until(b"content_block_stop"), packed.read_until(b'"ping"}\n\n')]
            running.signal(SIGTERM)
            results = [client.answer(already=start) for client, start in zip((announced, packed), starts, strict=True)]
            assert running.wait() == -SIGTERM
        assert [got.ending for got in results] == ["fin", "fin"]
        assert [whole.startswith(got.body) for got in results] == [True, True]

    def test_what_has_no_answer_yet_gets_one(self, tmp_path: Path, upstream: StandIn) -> None:
        """Requests that wait for the upstream, or are still arriving, are told 529 ``overloaded_error``."""
        mark = upstream.mark()
        with proxy(tmp_path, upstream, DRAIN_TIMEOUT="1s") as running, ExitStack() as stack:
            waiting, uploading = (stack.enter_context(Client(running.port)) for _ in range(2))
            waiting.ask("POST", "/v1/messages", [play("auto?header_gate=never")], prompt())
            uploading.send(request_bytes("POST", "/v1/messages", (), prompt())[:-5])
            wait_for(lambda: running.in_flight() == 2, "both are in flight")
            running.signal(SIGTERM)
            results = [client.answer() for client in (waiting, uploading)]
            assert running.wait() == -SIGTERM
        for got in results:
            assert (got.status, got.whole) == (529, True)
            assert got.header("connection") == "close"
            assert got.json()["error"]["type"] == "overloaded_error"
            assert got.json()["request_id"] == got.header("x-proxy-request-id")
        assert len(events_logged(running.lines, "access", verdict="drained", status="529")) == 2
        assert "Traceback" not in running.log
        upstream.wait_closed(since=mark)


STREAM = "auto?count=30&delta=6&interval=0.02&gate=two-hundred@{at}"
PLAIN = "auto?header_gate=two-hundred&delay=0.2"


class Balancer:
    """A client behind a balancer: it sends requests over kept connections as long as ``/health`` is 200."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: list[tuple[bytes, Answer]] = []
        self.problems: list[Exception] = []
        self.saw_draining = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            with Client(self.port) as probe:
                while probe.call("GET", "/health").status == 200:
                    body = prompt(f"balanced {len(self.answers)}", stream=len(self.answers) % 2 == 0)
                    self.answers.append((body, call(self.port, "POST", "/v1/messages", (), body)))
            self.saw_draining.set()
        except Exception as problem:  # noqa: BLE001
            # Told by the test, in its own thread.
            self.problems.append(problem)
            self.saw_draining.set()

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_two_hundred_requests(tmp_path: Path, upstream: StandIn) -> None:
    """100 streams, 50 plain requests and 50 uploads at SIGTERM: none truncated, none refused, every byte right."""
    begun = threading.Semaphore(0)
    go_on = threading.Event()

    def streaming(number: int, port: int) -> tuple[bytes, Answer]:
        scenario, body = STREAM.format(at=3 + number % 20), prompt(f"stream {number}", stream=True)
        with Client(port, limit=60) as client:
            client.ask("POST", "/v1/messages", [play(scenario)], body)
            start = client.read_until(b'"ping"}\n\n')
            begun.release()
            return sent_body(scenario, body), client.answer(already=start)

    def plain(number: int, port: int) -> tuple[bytes, Answer]:
        body = prompt(f"plain {number}")
        with Client(port, limit=60) as client:
            client.ask("POST", "/v1/messages", [play(PLAIN)], body)
            begun.release()
            return sent_body(PLAIN, body), client.answer()

    def uploading(number: int, port: int) -> tuple[bytes, Answer]:
        body = prompt(f"upload {number} " + "x" * 200_000, stream=number % 2 == 0)
        with Client(port, limit=60) as client:
            raw = request_bytes("POST", "/v1/messages", (), body)
            client.send(raw[:1000])
            begun.release()
            assert go_on.wait(60)
            for start in range(1000, len(raw), 40_000):
                client.send(raw[start : start + 40_000])
            return sent_body("auto", body), client.answer()

    jobs: list[Callable[[int, int], tuple[bytes, Answer]]] = [*[streaming] * 100, *[plain] * 50, *[uploading] * 50]
    with (
        proxy(tmp_path, upstream, DRAIN_LAME_DUCK="1s") as running,
        ThreadPoolExecutor(len(jobs)) as pool,
    ):
        balancer = Balancer(running.port)
        try:
            futures: list[Any] = [pool.submit(job, number, running.port) for number, job in enumerate(jobs)]
            for _ in jobs:
                assert begun.acquire(timeout=30)
            wait_for(lambda: running.in_flight() == 200, "200 are in flight", 30)
            balancer.start()
            wait_for(lambda: len(balancer.answers) >= 3 or balancer.problems, "the balancer's client is at work")
            running.signal(SIGTERM)
            assert balancer.saw_draining.wait(30)
            assert running.in_flight() == 200
        finally:
            upstream.release("two-hundred")
            go_on.set()
        balancer.join()
        results = [future.result(60) for future in futures]
        assert running.wait(30) == -SIGTERM

    truncated = [got for _, got in results if not got.whole]
    refused = [got for _, got in results if got.status != 200]
    assert (len(truncated), len(refused)) == (0, 0), (truncated[:1], refused[:1])
    assert all(got.body == expected for expected, got in results)
    assert not balancer.problems
    assert all(got.status == 200 and got.body == sent_body("auto", body) for body, got in balancer.answers)
    access = events_logged(running.lines, "access")
    assert {line["verdict"] for line in access} == {"complete"}
    assert len(access) == 200 + len(balancer.answers)
    assert "Traceback" not in running.log


def test_a_request_sent_as_the_drain_ends_is_not_lost(tmp_path: Path, upstream: StandIn) -> None:
    """Requests follow each other without a pause through the end of the process: no answer is cut.

    Each is answered whole, or refused, or its connection ends before the first byte of an answer.
    """
    with proxy(tmp_path, upstream) as running:
        ended: list[str] = []

        def hammer() -> None:
            while True:
                try:
                    client = Client(running.port)
                except OSError:
                    ended.append("refused")
                    return
                with client:
                    try:
                        got = client.call("POST", "/v1/messages", (), prompt())
                    except OSError:
                        ended.append("reset")
                        continue
                    if got.status:
                        ended.append("whole" if got.whole else "cut")
                    else:
                        ended.append("closed")

        threads = [threading.Thread(target=hammer, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(ended) > 40, "the clients are at work")
        running.signal(SIGTERM)
        assert running.wait() == -SIGTERM
        for thread in threads:
            thread.join(10)
    assert "cut" not in ended
    assert ended.count("refused") == 4


def test_a_drain_cannot_be_mistaken(tmp_path: Path, upstream: StandIn) -> None:
    """Two proxies before one upstream: the signal to one leaves the other healthy."""
    port = free_port()
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with proxy(tmp_path / "one", upstream) as one, proxy(tmp_path / "two", upstream, PORT=str(port)) as two:
        assert two.port == port
        stream, start = open_stream(one, "auto?gate=two-proxies@3")
        with stream:
            begin_drain(one)
            assert two.get("/health")[0] == 200
            assert two.in_flight() == 0
            assert call(two.port, "POST", "/v1/messages", (), prompt()).header("connection") is None
            upstream.release("two-proxies")
            assert stream.answer(already=start).whole
        assert one.wait() == -SIGTERM
        assert two.get("/health")[0] == 200
