"""Several worker processes on one port, below a supervisor: spoken for, replaced, drained, recorded as one proxy."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest
import trustme

from tests.processes import WAIT_LIMIT, Proxy, StandIn, proxy, wait_for
from tests.recorded import Reader, Records
from tests.sockets import Client, call, prompt
from tests.test_process_dashboard import WATCH, events
from tests.test_process_drain import begin_drain, draining, open_stream, sent_body
from tests.test_process_metrics import scrape, status

SIGTERM = signal.SIGTERM
TWO = {"WORKERS": "2"}


def workers(running: Proxy) -> list[int]:
    """The pids of the workers, in the order in which they were started."""
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    with suppress(FileNotFoundError):
        return [int(pid) for pid in children.read_text().split()]
    return []


@contextmanager
def alone(running: Proxy, pid: int) -> Iterator[None]:
    """Only this worker runs: whatever is accepted meanwhile is its."""
    others = [each for each in workers(running) if each != pid]
    for other in others:
        os.kill(other, signal.SIGSTOP)
    wait_for(lambda: all(state(other) == "T" for other in others), "they are stopped")
    try:
        yield
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)


def state(pid: int) -> str:
    """A process's state, as the kernel calls it: R, S, T, Z…; empty: there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def stream_on(running: Proxy, pid: int, scenario: str, text: str = "Hello") -> tuple[Client, bytes]:
    """A stream that passes through one worker, as `open_stream` gives it."""
    with alone(running, pid):
        return open_stream(running, scenario, text)


def client_of(running: Proxy, pid: int) -> Client:
    """A connection to one worker."""
    with alone(running, pid):
        client = Client(running.port)
        assert client.call("GET", "/health").status in (200, 503)
    return client


def ask_on(
    running: Proxy, pid: int, path: str, body: dict[str, str] | None = None, **fields: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """What one worker answers to a GET, or with a body to a POST, of who asks at a loopback address."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=WAIT_LIMIT)
    with closing(connection):
        with alone(running, pid):
            # Until it is accepted, whoever runs may take it.
            connection.request("GET", "/health")
            connection.getresponse().read()
        sent = None if body is None else json.dumps(body)
        connection.request("POST" if sent else "GET", path, sent, {"Content-Type": "application/json", **fields})
        response = connection.getresponse()
        return response, response.read()


def test_one_proxy(tmp_path: Path, upstream: StandIn, reader: Reader) -> None:
    """
    Whichever worker is asked, it speaks for all: ``/livez``, ``/health``, ``/metrics``, ``claude-proxy status`` and the
    dashboard, where each request in flight is shown and can be cut. At the end, all is in one store.
    """
    scenario = "auto?gate=workers-one@3"
    with proxy(tmp_path, upstream, RECORD="full", CLAUDE_PROJECTS_DIR=str(tmp_path), **TWO) as running:
        assert "2 workers serve" in running.log
        pids = workers(running)
        assert len(pids) == 2
        with ExitStack() as stack:
            streams = []
            for pid in pids * 2:
                stream, start = stream_on(running, pid, scenario)
                streams.append((stack.enter_context(stream), start))
            for pid in pids:
                live = json.loads(ask_on(running, pid, "/livez")[1])
                assert (live["in_flight"], live["draining"]) == (4, False)
                assert live["workers"] == {"configured": 2, "running": 2}
                shown = json.loads(ask_on(running, pid, "/api/in-flight")[1])
                assert (len(shown["requests"]), shown["total"], shown["status"]["inFlight"]) == (4, 4, 4)
                ages = [each["ageMs"] for each in shown["requests"]]
                assert ages == sorted(ages, reverse=True)
                ids = [each["requestId"] for each in shown["requests"]]
            code, text = status(running, tmp_path)
            assert code == 0
            assert "in flight: 4" in text
            assert "workers: 2 of 2" in text

            # Cut from the dashboard, two of them, through one and the same worker.
            here, there = pids
            csrf = {"X-CSRF-Token": json.loads(ask_on(running, there, "/api/viewer")[1])["csrfToken"]}
            for identifier in ids[:2]:
                cut, _ = ask_on(running, here, f"/api/in-flight/{identifier}/cut", {}, **csrf)
                assert cut.status == 202
            missing, _ = ask_on(running, here, f"/api/in-flight/req_{'0' * 32}/cut", {}, **csrf)
            assert missing.status == 404
            for stream, start in streams[:2]:
                assert not stream.answer(already=start).body.endswith(b"message_stop")
            upstream.release("workers-one")
            for stream, start in streams[2:]:
                whole = stream.answer(already=start)
                assert whole.whole
                assert whole.body == sent_body(scenario, prompt(stream=True))
        wait_for(lambda: running.in_flight() == 0, "nothing is in flight")
        seen = scrape(running)
        assert seen("claude_proxy_requests_total", endpoint="messages") == 4
        assert seen("claude_proxy_workers", state="running") == 2
        assert {seen("process_cpu_seconds_total", worker=place) > 0 for place in ("0", "1")} == {True}
        # Nothing is said twice.
        assert seen("claude_proxy_build_info") == 1
        assert running.stop(60) == -SIGTERM
        assert not any(state(pid) for pid in pids)
        assert "Traceback" not in running.log
    verdicts = Records(reader, tmp_path / "requests.db").verdicts()
    assert sorted(filter(None, verdicts.values())) == ["complete", "complete", "cut", "cut"]


def test_watching(tmp_path: Path, upstream: StandIn) -> None:
    """A viewer sees what passes through any worker, from its first text to its end, and how many are in flight."""
    scenario = "auto?gate=workers-watch@4&count=12"
    with proxy(tmp_path, upstream, CLAUDE_PROJECTS_DIR=str(tmp_path), **TWO) as running:
        here, there = workers(running)
        with client_of(running, here) as viewer:
            viewer.send(WATCH)
            viewer.read_until(b"event: hello")
            stream, start = stream_on(running, there, scenario, "from there")
            with stream:
                (flight,) = events(viewer, "flight")
                assert flight["endpoint"] == "/v1/messages"
                identifier = flight["requestId"]
                viewer.read_until(b'"inFlight":1')
                upstream.release("workers-watch")
                assert stream.answer(already=start).whole
                said = viewer.read_until(b"event: landed\n") + viewer.read_until(b"\n\n")
            landed = json.loads(said.rpartition(b"data: ")[2])
            assert (landed["requestId"], landed["verdict"]) == (identifier, "complete")
            told = [json.loads(each) for each in re.findall(rb"event: text\ndata: (.*)\n\n", said)]
            assert {each["requestId"] for each in told} == {identifier}


def test_login_holds_everywhere(tmp_path: Path, upstream: StandIn) -> None:
    """Who logs in at one worker is known to the other at once, and to one that comes later, and so is who logs out."""
    with proxy(tmp_path, upstream, DASHBOARD_PASSWORD="correct horse", **TWO) as running:
        here, there = workers(running)

        answer, body = ask_on(running, here, "/api/login", {"password": "correct horse"})
        assert answer.status == 200
        cookie = (answer.getheader("Set-Cookie") or "").split(";")[0]
        csrf = json.loads(body)["csrfToken"]

        def seen_at(pid: int) -> int:
            return ask_on(running, pid, "/api/in-flight", Cookie=cookie)[0].status

        assert seen_at(there) == 200

        os.kill(there, signal.SIGKILL)
        running.wait_for_line(r"worker 1 .*killed by signal 9")
        wait_for(lambda: len(workers(running)) == 2, "there is another one")
        (new,) = {*workers(running)} - {here}
        wait_for(lambda: running.get("/livez")[1]["workers"]["running"] == 2, "it serves", 30)
        wait_for(lambda: seen_at(new) == 200, "it knows who has logged in")

        left, _ = ask_on(running, here, "/api/logout", {}, Cookie=cookie, **{"X-CSRF-Token": csrf})
        assert left.status == 204
        wait_for(lambda: seen_at(new) == 401, "it knows who has logged out")


def test_a_worker_that_dies(tmp_path: Path, upstream: StandIn) -> None:
    """It is replaced; streams of the others go on; what it counted stays counted; its clients see a cut."""
    scenario = "auto?gate=workers-death@3"
    with proxy(tmp_path, upstream, RECORD="full", **TWO) as running:
        first, second = workers(running)
        dying, dying_start = stream_on(running, first, scenario)
        living, start = stream_on(running, second, scenario)
        with dying, living:
            with alone(running, first):
                assert call(running.port, "POST", "/v1/messages", (), prompt()).whole
            assert running.in_flight() == 2
            assert scrape(running)("claude_proxy_requests_total", endpoint="messages") == 1
            os.kill(first, signal.SIGKILL)
            assert not dying.answer(already=dying_start).whole
            running.wait_for_line(r"worker 0 \(pid \d+\) was killed by signal 9; it is started again in 0.5 s")
            assert call(running.port, "POST", "/v1/messages", (), prompt()).whole
            wait_for(lambda: running.get("/livez")[1]["workers"]["running"] == 2, "it is replaced", 30)
            assert first not in workers(running)
            assert running.in_flight() == 1
            seen = scrape(running)
            assert seen("claude_proxy_requests_total", endpoint="messages") == 2
            assert seen("claude_proxy_worker_restarts_total") == 1
            upstream.release("workers-death")
            assert living.answer(already=start).whole
        assert running.stop(60) == -SIGTERM


def test_drained_together(tmp_path: Path, upstream: StandIn) -> None:
    """
    SIGTERM, to the supervisor or the whole group: every worker says so and still serves; all leave when their gauges
    are zero; no stream is cut, no connection refused while any is there.
    """
    scenario = "auto?gate=workers-drain@3"
    with proxy(tmp_path, upstream, DRAIN_LAME_DUCK="500ms", **TWO) as running:
        pids = workers(running)
        streams = [stream_on(running, pid, scenario) for pid in pids]
        # As systemd does it, and a shell: they are told by the supervisor, and do not take it for a second one.
        for pid in pids:
            os.kill(pid, SIGTERM)
        begin_drain(running)
        for pid in pids:
            with alone(running, pid):
                assert draining(running)
                assert call(running.port, "POST", "/v1/messages", (), prompt()).whole
        live = running.get("/livez")[1]
        assert (live["in_flight"], live["draining"]) == (2, True)
        upstream.release("workers-drain")
        for stream, start in streams:
            with stream:
                assert stream.answer(already=start).whole
        assert running.wait(30) == -SIGTERM
        assert "Traceback" not in running.log
        with pytest.raises(ConnectionRefusedError):
            Client(running.port)


def test_twice_is_now(tmp_path: Path, upstream: StandIn) -> None:
    """A second signal ends the streams of all workers at once, visibly."""
    with proxy(tmp_path, upstream, **TWO) as running:
        streams = [stream_on(running, pid, "auto?gate=never@3") for pid in workers(running)]
        begin_drain(running)
        running.signal(SIGTERM)
        for stream, start in streams:
            with stream:
                answer = stream.answer(already=start)
                assert b"overloaded_error" in answer.body or not answer.whole
        assert running.wait(30) == -SIGTERM


def test_the_supervisor_dies(tmp_path: Path, upstream: StandIn) -> None:
    """Workers without a supervisor finish what they have, and go."""
    scenario = "auto?gate=workers-orphans@3"
    with proxy(tmp_path, upstream, **TWO) as running:
        pids = workers(running)
        streams = [stream_on(running, pid, scenario) for pid in pids]
        running.signal(signal.SIGKILL)
        running.wait_for_line("the supervisor of this worker is gone: draining")
        upstream.release("workers-orphans")
        for stream, start in streams:
            with stream:
                assert stream.answer(already=start).whole
        wait_for(lambda: not any(state(pid).strip("Z") for pid in pids), "they are gone", 30)


def test_one_that_hangs(tmp_path: Path, upstream: StandIn) -> None:
    """A worker that does not answer holds nobody up for more than a second, and what it had in flight is still told."""
    with proxy(tmp_path, upstream, **TWO) as running:
        first, second = workers(running)
        stream, _ = stream_on(running, first, "auto?gate=never@3")
        with stream:
            assert running.in_flight() == scrape(running)("claude_proxy_requests_in_flight") == 1
            with alone(running, second):
                assert running.in_flight() == 1
                assert scrape(running)("claude_proxy_requests_in_flight") == 1
        assert running.stop(30) == -SIGTERM


def test_other_sockets(tmp_path: Path, upstream: StandIn) -> None:
    """TLS, and Unix sockets, whose names go when the proxy does."""
    ca = trustme.CA()
    issued = ca.issue_cert("localhost")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    issued.private_key_pem.write_to_path(key)
    chain.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    name = tmp_path / "proxy.sock"
    listen = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={chain} unix:{name}"
    context = ssl.create_default_context()
    ca.configure_trust(context)
    with proxy(tmp_path, upstream, LISTEN=listen, **TWO) as running:
        running.wait_for_line(f"claude-proxy listening on {re.escape(str(name))}")
        for pid in workers(running):
            with alone(running, pid):
                secure = http.client.HTTPSConnection("localhost", running.port, timeout=WAIT_LIMIT, context=context)
                secure.request("POST", "/v1/messages", prompt(), {"Content-Type": "application/json"})
                assert secure.getresponse().status == 200
                secure.close()
                local = http.client.HTTPConnection("localhost", timeout=WAIT_LIMIT)
                local.sock = unix_connection(name)
                local.request("GET", "/health")
                assert local.getresponse().status == 200
                local.close()
        first, _ = workers(running)
        os.kill(first, signal.SIGKILL)
        running.wait_for_line("it is started again")
        assert name.exists()
        assert running.stop(30) == -SIGTERM
        assert not name.exists()


def unix_connection(name: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(WAIT_LIMIT)
    connection.connect(str(name))
    return connection
