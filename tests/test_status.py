"""``claude-proxy status``: what it shows of an answer, and what it says when none comes."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from twisted_proxy import cli, status
from twisted_proxy.config import Config, load
from twisted_proxy.config.values import endpoint_url

pytestmark = pytest.mark.usefixtures("here")

LIVE: Mapping[str, Any] = {
    "status": "ok",
    "version": "9.8.7",
    "in_flight": 0,
    "oldest_seconds": None,
    "draining": False,
    "drain_seconds_left": None,
    "recording": {"status": "off"},
    "timestamp": "2023-11-14T22:13:20.000Z",
}
FLIGHT: Mapping[str, Any] = {
    "requestId": "req_1",
    "ageMs": 72_000,
    "ttftMs": 700.4,
    "phase": "answering",
    "outputTokens": 42,
    "model": "claude-test",
    "endpoint": "/v1/messages",
}


class Pretender(ThreadingHTTPServer):
    """
    Answers as it is told.

    :ivar answers: status and body, by path. :ivar asked: paths, and their ``Authorization``.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def tell(self, path: str, value: object, code: int = 200) -> None:
        self.answers[path] = (code, json.dumps(value).encode())


class _Handler(BaseHTTPRequestHandler):
    server: Pretender

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        code, body = self.server.answers[self.path]
        self.send_response(code)
        if code == 302:
            self.send_header("Location", f"{self.server.url}/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not into the tests' output."""


@pytest.fixture
def pretender() -> Iterator[Pretender]:
    with Pretender() as server:
        server.tell("/livez", LIVE)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class TestShowing:
    def test_nothing_to_do(self, pretender: Pretender, capsys: pytest.CaptureFixture[str]) -> None:
        """What is in flight is not asked for, as nothing is."""
        assert cli.main(["status", pretender.url]) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"claude-proxy 9.8.7 at {pretender.url} is serving",
            "in flight: 0",
            "recording: off",
        ]
        assert pretender.asked == [("/livez", None)]

    def test_what_is_in_flight(
        self, pretender: Pretender, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The oldest first; the token goes where they are, and not to `/livez`."""
        monkeypatch.setenv("DASHBOARD_TOKEN", "hunter2-hunter2-hunter2-hunter2")
        recording = {"status": "failing", "problem": "no room", "recorded": 5, "behind_bytes": 2048, "lost_bodies": 3}
        live = {**LIVE, "in_flight": 25, "oldest_seconds": 72.25, "recording": recording}
        pretender.tell("/livez", live)
        others = [{**FLIGHT, "requestId": f"req_{number}", "ageMs": 500, "ttftMs": None} for number in range(2, 26)]
        pretender.tell("/api/in-flight", {"requests": [FLIGHT, *others], "total": 25, "status": {}})
        assert cli.main(["status", pretender.url.removeprefix("http://")]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[1] == "in flight: 25, the oldest for 1m12s"
        assert lines[2] == (
            "recording: failing (no room), 5 recorded, 2.0 KiB to be stored, 3 without all of their bodies"
        )
        assert [line.split() for line in lines[4:7]] == [
            ["AGE", "TTFT", "PHASE", "TOKENS", "MODEL", "ENDPOINT", "REQUEST"],
            ["1m12s", "0.7s", "answering", "42", "claude-test", "/v1/messages", "req_1"],
            ["0.5s", "-", "answering", "42", "claude-test", "/v1/messages", "req_2"],
        ]
        assert lines[-1] == "and 5 more"
        assert len(lines) == 5 + status.SHOWN + 1
        assert pretender.asked == [("/livez", None), ("/api/in-flight", "Bearer hunter2-hunter2-hunter2-hunter2")]

    def test_draining(self, pretender: Pretender, capsys: pytest.CaptureFixture[str]) -> None:
        """Exit status 2: a script that waits for the end can tell."""
        pretender.tell("/livez", {**LIVE, "draining": True, "drain_seconds_left": 4000.5})
        assert cli.main(["status", pretender.url]) == 2
        assert capsys.readouterr().out.startswith(
            f"claude-proxy 9.8.7 at {pretender.url} is draining, for 1h06m at most\n"
        )

    @pytest.mark.parametrize(
        ("code", "body", "words"),
        [
            (401, {}, "DASHBOARD_TOKEN"),
            (403, {}, "its own host"),
            (404, {}, "DASHBOARD_LISTEN"),
            (500, {}, "status 500"),
            (302, {}, "status 302"),
            (200, {"requests": 5}, "does not answer as it should"),
            (200, ["x"], "does not answer as it should"),
        ],
    )
    def test_who_may_not_look(
        self, pretender: Pretender, capsys: pytest.CaptureFixture[str], code: int, body: object, words: str
    ) -> None:
        """All else is shown, and why that is not. Nobody is followed elsewhere."""
        pretender.tell("/livez", {**LIVE, "in_flight": 1, "oldest_seconds": 3.0})
        pretender.tell("/api/in-flight", body, code)
        assert cli.main(["status", pretender.url]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[1] == "in flight: 1, the oldest for 3.0s"
        assert words in lines[-1]
        assert [path for path, _ in pretender.asked] == ["/livez", "/api/in-flight"]

    def test_a_terminal_is_written_no_controls(self, pretender: Pretender, capsys: pytest.CaptureFixture[str]) -> None:
        """Any client can name a model, and send that to a proxy that somebody watches."""
        pretender.tell("/livez", {**LIVE, "in_flight": 1})
        hostile = {"model": "\x1b]0;owned\x07\x9b2J\u202e", "endpoint": None, "ageMs": "x", "phase": ["\n"]}
        pretender.tell("/api/in-flight", {"requests": [hostile]})
        assert cli.main(["status", pretender.url]) == 0
        out = capsys.readouterr().out
        assert all(each.isprintable() or each == "\n" for each in out)
        assert len(out.splitlines()) == 6

    def test_a_narrow_terminal(self) -> None:
        """Lines are cut, not wrapped."""
        proxy = status.target(Config(), None)
        for line in status.describe(proxy, status.Seen(live=LIVE, requests=[FLIGHT]), width=20):
            assert len(line) <= 20


class TestUnreachable:
    def test_nothing_listens(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Exit status 1, and what to look at."""
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        assert cli.main(["status", f"127.0.0.1:{port}"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err == (
            f"claude-proxy status: http://127.0.0.1:{port} cannot be reached: nothing listens there. Is it running?\n"
        )

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (b"", "cannot be reached: the connection ended without an answer that is HTTP"),
            (b"SSH-2.0-x\r\n", "cannot be reached: the connection ended without an answer that is HTTP"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "answers, but not as a claude-proxy does"),
        ],
    )
    def test_no_http(self, answer: bytes, words: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Whatever it is, there is a sentence for it."""
        with socket.create_server(("127.0.0.1", 0)) as server:

            def serve() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            assert cli.main(["status", f"http://127.0.0.1:{server.getsockname()[1]}"]) == 1
            thread.join()
        err = capsys.readouterr().err
        assert words in err
        assert "Traceback" not in err

    def test_no_answer_in_time(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """A process that is stopped, or stuck, has its port open."""
        monkeypatch.setattr(status, "TIMEOUT", 0.05)
        with socket.create_server(("127.0.0.1", 0)) as server:
            assert cli.main(["status", f"http://127.0.0.1:{server.getsockname()[1]}"]) == 1
        assert "no answer within 0.05 s" in capsys.readouterr().err

    @pytest.mark.parametrize("code", [200, 302, 404, 502])
    @pytest.mark.parametrize("value", [{"status": "ok"}, []])
    def test_another_program(
        self, pretender: Pretender, code: int, value: object, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It gets no token."""
        pretender.tell("/livez", value, code)
        assert cli.main(["status", pretender.url]) == 1
        assert "not as a claude-proxy does" in capsys.readouterr().err
        assert [path for path, _ in pretender.asked] == ["/livez"]

    def test_a_page(self, pretender: Pretender, capsys: pytest.CaptureFixture[str]) -> None:
        """Not JSON at all."""
        pretender.answers["/livez"] = (200, b"<html>")
        assert cli.main(["status", pretender.url]) == 1
        assert "not as a claude-proxy does" in capsys.readouterr().err


class TestWhichOne:
    @pytest.mark.parametrize(
        ("endpoint", "url"),
        [
            ("tcp:3001:interface=127.0.0.1", "http://127.0.0.1:3001"),
            ("tcp:80", "http://127.0.0.1:80"),
            ("tcp:port=80:interface=0.0.0.0", "http://127.0.0.1:80"),
            (r"tcp:80:interface=\:\:", "http://[::1]:80"),
            (r"tcp:80:interface=fd00\:\:7", "http://[fd00::7]:80"),
            ("ssl:443:interface=10.0.0.1:privateKey=x", "https://10.0.0.1:443"),
            ("tcp:0", None),
            ("unix:/run/x", None),
            ("systemd:domain=INET:index=0", None),
        ],
    )
    def test_where_an_endpoint_is(self, endpoint: str, url: str | None) -> None:
        """For who is on the same host."""
        assert endpoint_url(endpoint) == url

    def test_that_of_the_configuration(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Without a URL, by the same settings as the proxy's."""
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        assert cli.main(["status", "--port", str(port)]) == 1
        assert f"http://127.0.0.1:{port} cannot be reached" in capsys.readouterr().err

    def test_the_dashboard_may_be_elsewhere(self) -> None:
        """With DASHBOARD_LISTEN; a URL stands for both."""
        config = load(["--dashboard-listen", "tcp:3002"]).config
        assert status.target(config, None).api_url == "http://127.0.0.1:3002"
        assert status.target(config, "https://proxy.test/below/").api_url == "https://proxy.test/below"

    def test_one_that_has_no_url(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What to do is said."""
        assert cli.main(["status", "--listen", "unix:/run/x"]) == 1
        assert "unix:/run/x, which is no URL: name one" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "url", ["ftp://x", "http://", "http://x:0", "http://x:99999", "http://u:hunter2@x", "http://x?hunter2", "a b"]
    )
    def test_no_url(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        """It is not repeated: it may hold a password."""
        assert cli.main(["status", url]) == 1
        err = capsys.readouterr().err
        assert "no URL of a proxy" in err
        assert "hunter2" not in err

    def test_a_wrong_configuration(self, capsys: pytest.CaptureFixture[str]) -> None:
        """As of every command."""
        assert cli.main(["status", "--prot=1"]) == 1
        assert "did you mean --port" in capsys.readouterr().err


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestWatching:
    def watch(self, pretender: Pretender, out: io.StringIO, *lives: Mapping[str, Any] | None) -> int:
        """One look after the other, then Ctrl-C. ``None``: another program."""
        left = list(lives)

        def sleep(seconds: float) -> None:
            assert seconds == 1
            if not left:
                raise KeyboardInterrupt
            pretender.tell("/livez", left.pop(0))

        sleep(1)
        return status.watch(status.target(Config(), pretender.url), out, sleep=sleep)

    def test_in_a_terminal(self, pretender: Pretender) -> None:
        """Each look in the place of the last; the exit status is that of the last one."""
        out = _Terminal()
        draining = {**LIVE, "draining": True}
        assert self.watch(pretender, out, LIVE, None, draining) == 2
        _, *looks = out.getvalue().split(status.CLEAR)
        assert ["serving" in looks[0], "not as a" in looks[1], "draining" in looks[2]] == [True, True, True]
        assert out.getvalue().endswith("recording: off\n")

    def test_into_a_file(self, pretender: Pretender) -> None:
        """No control sequences."""
        out = io.StringIO()
        assert self.watch(pretender, out, LIVE, LIVE) == 0
        assert out.getvalue().count("is serving") == 2
        assert "\x1b" not in out.getvalue()

    def test_it_went_away(self, pretender: Pretender) -> None:
        """It is said, and looked for again."""
        assert self.watch(pretender, io.StringIO(), LIVE, None) == 1


def test_it_needs_no_twisted() -> None:
    """A script that asks each second does not load a reactor."""
    code = (
        "import sys; from twisted_proxy import cli; assert cli.main(['status', '127.0.0.1:1']) == 1; "
        "assert not [name for name in sys.modules if name.split('.')[0] == 'twisted'], 'twisted is loaded'"
    )
    root = str(Path(status.__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
