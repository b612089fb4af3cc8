"""The dashboard of a real ``twistd`` process: a listener of its own, and live text from the very beginning."""

from __future__ import annotations

import http.client
import json
import re
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.processes import StandIn, proxy, wait_for
from tests.sockets import Client, call, play, prompt

WATCH = b"GET /api/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


def ask(port: int, path: str, accept: str = "*/*") -> tuple[int, str | None]:
    """Status and content type, of who asks at a loopback address."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", path, headers={"Accept": accept})
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type")


def events(client: Client, name: str) -> list[Any]:
    """The data of the events of one name that have come so far, after the first of them."""
    data = client.read_until(f"event: {name}\n".encode()) + client.read_until(b"\n\n")
    return [json.loads(each) for each in re.findall(rb"event: %b\ndata: (.*)\n\n" % name.encode(), data)]


def test_listener_of_its_own(tmp_path: Path, upstream: StandIn) -> None:
    """With `DASHBOARD_LISTEN`, page and API are there and nowhere else; the proxy is not there."""
    listen = "tcp:0:interface=127.0.0.1"
    with proxy(tmp_path, upstream, DASHBOARD_LISTEN=listen, CLAUDE_PROJECTS_DIR=str(tmp_path)) as running:
        port = int(running.wait_for_line(r"dashboard listening on \S*?:(\d+)\b").group(1))
        assert ask(port, "/api/in-flight")[0] == 200
        assert ask(port, "/", "text/html") == (200, "text/html; charset=utf-8")
        assert call(port, "GET", "/health").status == 200
        refused = call(port, "POST", "/v1/messages", (), prompt())
        assert (refused.status, refused.json()["error"]["type"]) == (404, "not_found_error")
        assert ask(running.port, "/api/in-flight")[0] == 404
        assert call(running.port, "POST", "/v1/messages", (), prompt()).status == 200
        with Client(port) as watching:
            watching.send(WATCH)
            watching.read_until(b"event: hello")
            assert running.stop() == -signal.SIGTERM


def test_text_from_the_beginning(tmp_path: Path, upstream: StandIn) -> None:
    """Who begins to watch in the middle of an answer soon sees all of it: what came before is in the spool."""
    scenario = "auto?gate=dashboard-stream@8&count=20"
    settings = {"RECORD": "full", "CLAUDE_PROJECTS_DIR": str(tmp_path)}
    with (
        proxy(tmp_path, upstream, **settings) as running,
        Client(running.port) as stream,
        Client(running.port) as viewer,
    ):
        stream.ask("POST", "/v1/messages", [play(scenario)], prompt("Hello", stream=True))
        start = stream.read_until(b"text_delta")
        viewer.send(WATCH)
        viewer.read_until(b"event: flight\n")
        whole: list[Any] = []

        def told_whole() -> bool:
            whole[:] = [each for each in events(viewer, "flight") if not each["textIsPartial"]]
            return bool(whole)

        wait_for(told_whole, "the whole text was told")
        told = "".join(block["text"] for block in whole[-1]["blocks"])
        upstream.release("dashboard-stream")
        body = start + stream.read_until(b"message_stop")
        said = "".join(
            each["delta"]["text"]
            for line in re.findall(rb"data: (.*)", body)
            if b"text_delta" in line and (each := json.loads(line))
        )
        assert told
        assert said.startswith(told)
