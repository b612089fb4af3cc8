"""How a real process starts, or says why it does not; where it listens; and what its output holds."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.processes import CHECKOUT, Process, Proxy, StandIn, clean_environment, proxy, wait_for
from tests.sockets import Client, call, events_logged, free_port, play, prompt, request_bytes

COMMANDS: Final = {
    "twistd": (sys.executable, Path(sys.executable).parent / "twistd", "-n", "--pidfile=", "claude-proxy"),
    "claude-proxy run": (sys.executable, "-m", "twisted_proxy.cli", "run"),
}


def start(directory: Path, *arguments: str, command: str = "twistd", **settings: str) -> Process:
    """A process that need not come to listen, nor on a port that anybody knows."""
    environment = clean_environment(PYTHONPATH=str(CHECKOUT)) | settings
    return Process((*COMMANDS[command], *arguments), environment=environment, cwd=directory)


class TestStarting:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_a_busy_port(self, tmp_path: Path, command: str) -> None:
        """A process that cannot listen is not to run on, deaf: it ends, names the address, and says what to do."""
        with socket.create_server(("127.0.0.1", 0)) as holder:
            port = str(holder.getsockname()[1])
            with start(tmp_path, "--port", port, command=command) as running:
                assert running.wait(30) not in (None, 0)
        assert port in running.log
        assert "--port" in running.log
        assert "Address already in use" in running.log
        assert "Traceback" not in running.log
        assert "listening on" not in running.log

    def test_one_of_two_ports_is_busy(self, tmp_path: Path) -> None:
        """Half an ear is deaf too."""
        free = free_port()
        with socket.create_server(("127.0.0.1", 0)) as holder:
            busy = holder.getsockname()[1]
            endpoints = [f"tcp:{port}:interface=127.0.0.1" for port in (free, busy)]
            with start(tmp_path, "--listen", endpoints[0], "--listen", endpoints[1]) as running:
                assert running.wait(30) not in (None, 0)
        assert endpoints[1] in running.log
        assert "Traceback" not in running.log

    @pytest.mark.parametrize("command", COMMANDS)
    def test_a_wrong_configuration(self, tmp_path: Path, command: str) -> None:
        """One message with every problem of every source, no secret in it, and exit status 1."""
        (tmp_path / "config.yaml").write_text("server:\n  timeouts:\n    read: never\n    raed: 5s\n")
        settings = {"PORT": "seventy", "ANTHROPIC_FORWARD_URL": "https://someone:hunter2@api.test"}
        with start(tmp_path, "--log-format", "xml", command=command, **settings) as running:
            assert running.wait(30) == 1
        (title, *problems) = running.lines
        assert "5 problems" in title
        assert len(problems) == 5
        for word in ("PORT", "ANTHROPIC_FORWARD_URL", "--log-format", "read", "raed"):
            assert any(word in problem for problem in problems), (word, problems)
        assert "hunter2" not in running.log
        assert "Traceback" not in running.log

    def test_a_signal_as_soon_as_it_listens(self, tmp_path: Path, upstream: StandIn) -> None:
        """Whoever reads in the log that it listens may send a signal: it is heeded."""
        with proxy(tmp_path, upstream) as running:
            running.signal(signal.SIGTERM)
            assert running.wait() == -signal.SIGTERM
        assert "nothing is in flight; 0 in flight" in running.log

    def test_the_short_command(self, tmp_path: Path, upstream: StandIn) -> None:
        """``claude-proxy run`` serves, and drains, like ``twistd -n claude-proxy``."""
        options = ("--port", "0", "--anthropic-forward-url", upstream.url)
        with start(tmp_path, *options, command="claude-proxy run") as running:
            port = int(running.wait_for_line(r"listening on 127\.0\.0\.1:(\d+)").group(1))
            assert call(port, "POST", "/v1/messages", (), prompt(stream=True)).whole
            assert running.stop() == -signal.SIGTERM
        assert not list(tmp_path.glob("*.pid"))


def at_unix(running: Proxy, path: Path) -> Client:
    """A connection to a proxy's Unix socket, once it listens there as well."""
    running.wait_for_line(rf"listening on \S*{re.escape(str(path))}")
    return Client(0, path=path)


class TestListening:
    def test_several_endpoints(self, tmp_path: Path, upstream: StandIn) -> None:
        """TCP and a Unix socket at once: one proxy, one gauge, one drain; the socket goes with the process."""
        path = tmp_path / "proxy.sock"
        listen = f"tcp:0:interface=127.0.0.1 unix:{path}"
        with proxy(tmp_path, upstream, LISTEN=listen) as running, at_unix(running, path) as client:
            got = client.call("POST", "/v1/messages", (), prompt())
            assert (got.status, got.whole) == (200, True)
            client.ask("POST", "/v1/messages", [play("auto?gate=several@3")], prompt(stream=True))
            begun = client.read_until(b'"ping"}\n\n')
            assert running.in_flight() == 1
            running.signal(signal.SIGTERM)
            wait_for(lambda: running.get("/health")[0] == 503, "/health answers 503")
            assert call(0, "GET", "/health", path=path).status == 503
            upstream.release("several")
            assert client.answer(already=begun).whole
            assert running.wait() == -signal.SIGTERM
        assert not path.exists()

    def test_a_client_of_the_unix_socket_leaves(self, tmp_path: Path, upstream: StandIn) -> None:
        """It is missed as a client over TCP is."""
        path = tmp_path / "proxy.sock"
        mark = upstream.mark()
        with proxy(tmp_path, upstream, LISTEN=f"tcp:0:interface=127.0.0.1 unix:{path}") as running:
            with at_unix(running, path) as client:
                client.ask("POST", "/v1/messages", [play("auto?gate=never@3")], prompt(stream=True))
                client.read_until(b'"ping"}\n\n')
            upstream.wait_closed(since=mark)
            wait_for(lambda: running.in_flight() == 0, "nothing is in flight")

    def test_a_socket_that_was_left_behind(self, tmp_path: Path, upstream: StandIn) -> None:
        """After a death without farewell the next process takes the Unix socket over."""
        path = tmp_path / "proxy.sock"
        listen = f"tcp:0:interface=127.0.0.1 unix:{path}"
        with proxy(tmp_path, upstream, LISTEN=listen) as first:
            at_unix(first, path).close()
            first.kill()
        assert path.exists()
        with proxy(tmp_path, upstream, LISTEN=listen) as second, at_unix(second, path) as client:
            assert client.call("GET", "/health").status == 200


# -- logs ------------------------------------------------------------------------------------------------------

SECRETS: Final = {
    "authorization": "sk-ant-oat01-authorization",
    "key": "sk-ant-api03-key",
    "cookie": "session-cookie-5821",
    "proxy": "proxy-authorization-8112",
    "query": "query-secret-9920",
    "body": "body-secret-7710",
    "answer": "answer-secret-3318",
    "user": "url-password-6671",
}
HEADERS: Final = (
    ("Authorization", f"Bearer {SECRETS['authorization']}"),
    ("x-api-key", SECRETS["key"]),
    ("Cookie", f"id={SECRETS['cookie']}"),
    ("Proxy-Authorization", f"Basic {SECRETS['proxy']}"),
    ("anthropic-beta", 'one-2026-01-01,"two" \\ three'),
)
QUERY: Final = f"?beta=true&api_key={SECRETS['query']}&token={SECRETS['query']}&{SECRETS['query']}"
BODY: Final = json.dumps(
    {
        "model": "claude\n2026-01-01T00:00:00.000Z info access request_id=forged",
        "stream": True,
        "thinking": {"type": "enabled"},
        "messages": [{"role": "user", "content": SECRETS["body"]}],
    }
).encode()


def ask(path: str, *scenario: str) -> bytes:
    """A request full of secrets."""
    return request_bytes("POST", path + QUERY, (*HEADERS, *(play(each) for each in scenario)), BODY)


ANSWER_HEADER: Final = f"header=Set-Cookie:id%3D{SECRETS['answer']}"
EVERYTHING: Final = {
    "success": ask("/v1/messages", f"auto?{ANSWER_HEADER}"),
    "an error of the upstream": ask("/v1/messages", f"error?status=401&message={SECRETS['answer']}&{ANSWER_HEADER}"),
    "cut": ask("/v1/messages", "auto?at=300&how=fin"),
    "reset before the head": ask("/v1/messages", "auto?wire_at=0&how=rst"),
    "cut in the head": ask("/v1/messages", f"auto?{ANSWER_HEADER}&wire_at=300&how=fin"),
    "no HTTP": ask("/v1/messages", f"auto?header=Content-Length:{SECRETS['answer']}"),
    "silence": ask("/v1/messages", "auto?gate=never@2"),
    "no head": ask("/v1/messages", "auto?header_gate=never"),
    "another path of ours": ask("/health"),
    "no path of ours": ask("/nothing"),
    "a way out": ask("/v1/../secret"),
    "absolute form": request_bytes("GET", f"http://x:{SECRETS['user']}@127.0.0.1/v1/models{QUERY}", HEADERS),
    "authority": request_bytes("GET", f"@{SECRETS['user']}/v1/models{QUERY}", HEADERS),
    "CONNECT": request_bytes("CONNECT", f"{SECRETS['user']}:443", HEADERS),
    "a header that is none": ask("/v1/messages").replace(b"x-api-key:", b"x-api-key"),
    "a request line that is none": f"POST /v1/messages{QUERY}\r\n\r\n".encode(),
    "TLS to a plain port": b"\x16\x03\x01\x02\x00\x01\x00" + SECRETS["key"].encode() * 20 + b"\r\n\r\n",
    "a length that is none": request_bytes("POST", f"/v1/messages{QUERY}", (*HEADERS, ("Content-Length", "x" * 9))),
    "too large a body": request_bytes("POST", f"/v1/files{QUERY}", (*HEADERS, ("Content-Length", "9999999"))),
    "too large a head": request_bytes("GET", f"/v1/models{QUERY}", (*HEADERS, ("X", "x" * 70_000))),
    "half a body": ask("/v1/messages")[:-20],
    "half a head": ask("/v1/messages")[:200],
    "bad chunks": request_bytes("POST", f"/v1/messages{QUERY}", (*HEADERS, ("Transfer-Encoding", "chunked")))
    + SECRETS["body"].encode()
    + b"\r\n\r\n",
}


def test_it_may_open_as_many_files_as_it_is_allowed(tmp_path: Path, upstream: StandIn) -> None:
    """A shell's soft limit does not bound the streams: each takes two descriptors."""
    with proxy(tmp_path, upstream) as running:
        limits = Path(f"/proc/{running.pid}/limits").read_text()
        soft, hard = re.findall(r"Max open files\s+(\S+)\s+(\S+)", limits)[0]
        assert soft == hard or int(soft) == 1 << 20


class TestLogs:
    @pytest.fixture(scope="class", params=["text", "json"])
    @staticmethod
    def output(
        request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upstream: StandIn
    ) -> Iterator[tuple[str, list[str]]]:
        """The format, and all lines."""
        settings = {
            "LOG_FORMAT": request.param,
            "READ_TIMEOUT": "1s",
            "UPSTREAM_IDLE_TIMEOUT": "1s",
            "ANTHROPIC_RESPONSE_HEADER_TIMEOUT": "1s",
            "MAX_BODY_BYTES": "100000",
        }
        directory = tmp_path_factory.mktemp("logs")
        with proxy(directory, upstream, **settings) as running, ExitStack() as stack:
            clients = {name: stack.enter_context(Client(running.port)) for name in EVERYTHING}
            for name, raw in EVERYTHING.items():
                clients[name].send(raw)
            for client in clients.values():
                client.finish_reading()
            gone = stack.enter_context(Client(running.port))
            gone.send(ask("/v1/messages", "auto?gate=never@3"))
            gone.read_until(b'"ping"}\n\n')
            gone.reset()
            wait_for(lambda: running.in_flight() == 0, "nothing is in flight")
            assert running.stop() == -signal.SIGTERM
            yield request.param, list(running.lines)

    def test_no_secret(self, output: tuple[str, list[str]]) -> None:
        """No credential, header value, query value or body is in any line, whatever went wrong."""
        _, lines = output
        found = {name: [line for line in lines if secret in line] for name, secret in SECRETS.items()}
        assert {name: kept for name, kept in found.items() if kept} == {}

    def test_one_event_a_line(self, output: tuple[str, list[str]]) -> None:
        """Each line is an event of its own, in the format that was asked for, and nobody can forge one."""
        name, lines = output
        if name == "json":
            events = [json.loads(line) for line in lines]
            assert all({"time", "level", "message"} <= event.keys() for event in events)
        else:
            assert [line for line in lines if not re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z [a-z]+ \S", line)] == []
        assert not any("Traceback" in line for line in lines)
        assert not any(line.startswith("2026-01-01T00:00:00") for line in lines)

    def test_nothing_is_missing(self, output: tuple[str, list[str]]) -> None:
        """Every failure to forward is told once, with its kind, and every request below /v1 has its access line."""
        name, lines = output
        if name == "json":
            events = [json.loads(line) for line in lines]
            kinds = [event["kind"] for event in events if event.get("event") == "forward_error"]
            verdicts = [event["verdict"] for event in events if event.get("event") == "access"]
        else:
            kinds = [line["kind"] for line in events_logged(lines, "forward_error")]
            verdicts = [line["verdict"] for line in events_logged(lines, "access")]
        assert sorted(kinds) == ["header_timeout", "protocol", "reset", "reset", "silent", "truncated"]
        assert {"complete", "truncated", "failed", "silent", "client_gone", "refused"} == set(verdicts)


def test_the_default_needs_nothing(tmp_path: Path) -> None:
    """Without any setting it forwards to Anthropic, from this machine only, and says so."""
    with Proxy(tmp_path) as running:
        running.wait_for_line(rf"listening on 127\.0\.0\.1:{running.port}, forwarding to https://api\.anthropic\.com$")
