"""
The part of the Docker Engine's API, on a Unix socket, that Traefik asks to watch containers.

The containers are what a test says; their addresses are those of processes that run without Docker.
"""

from __future__ import annotations

import contextlib
import json
import queue
import re
import socketserver
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final

import attrs

VERSION: Final = "1.51"


@attrs.define(kw_only=True)
class Container:
    """One container. ``health`` is what Docker thinks of its HEALTHCHECK: ``starting``, ``healthy``, ``unhealthy``."""

    name: str
    labels: Mapping[str, str]
    network: str
    address: str
    health: str = "starting"

    @property
    def inspected(self) -> dict[str, Any]:
        """As ``GET /containers/ID/json`` tells it."""
        return {
            "Id": self.name,
            "Name": f"/{self.name}",
            "Created": "2026-01-01T00:00:00Z",
            "State": {"Status": "running", "Running": True, "Health": {"Status": self.health}},
            "Config": {"Labels": dict(self.labels), "ExposedPorts": {"3001/tcp": {}}},
            "HostConfig": {"NetworkMode": self.network},
            "NetworkSettings": {
                "Ports": {"3001/tcp": None},
                "Networks": {self.network: {"IPAddress": self.address, "NetworkID": self.network}},
            },
        }

    @property
    def listed(self) -> dict[str, Any]:
        """As ``GET /containers/json`` tells it."""
        whole = self.inspected
        return {
            "Id": self.name,
            "Names": [whole["Name"]],
            "State": "running",
            "Labels": whole["Config"]["Labels"],
            "HostConfig": whole["HostConfig"],
            "NetworkSettings": {"Networks": whole["NetworkSettings"]["Networks"]},
        }


class DockerApi:
    """
    The containers that run, and who is told of them.

    :ivar asked: the paths of the requests, without their version.
    """

    def __init__(self) -> None:
        self._containers: dict[str, Container] = {}
        self._listeners: list[queue.Queue[dict[str, Any]]] = []
        self._lock = threading.Lock()
        self.asked: list[str] = []

    def start(self, container: Container) -> None:
        """A container begins to run."""
        with self._lock:
            self._containers[container.name] = container
        self._tell(container, "start")

    def set_health(self, name: str, health: str) -> None:
        """Its HEALTHCHECK has another outcome."""
        container = self._containers[name]
        container.health = health
        self._tell(container, f"health_status: {health}")

    def stop(self, name: str) -> None:
        """Its first process has been told to go."""
        self._tell(self._containers[name], "kill")

    def die(self, name: str) -> None:
        """Its first process has ended."""
        with self._lock:
            container = self._containers.pop(name)
        self._tell(container, "die")

    def _tell(self, container: Container, action: str) -> None:
        now = time.time_ns()
        actor = {"ID": container.name, "Attributes": {"name": container.name}}
        event = {"Type": "container", "Action": action, "Actor": actor, "time": now // 10**9, "timeNano": now}
        with self._lock:
            for listener in self._listeners:
                listener.put({"status": action, "id": container.name, **event})

    def answer(self, path: str) -> Any:
        """The answer to a GET; `KeyError`: there is none."""
        with self._lock:
            if path == "/version":
                return {
                    "ApiVersion": VERSION,
                    "MinAPIVersion": "1.24",
                    "Version": "28.0.0",
                    "Os": "linux",
                    "Arch": "amd64",
                }
            if path == "/containers/json":
                return [container.listed for container in self._containers.values()]
            found = re.fullmatch(r"/containers/([\w.-]+)/json", path)
            return self._containers[found[1] if found else ""].inspected

    @contextmanager
    def listening(self) -> Iterator[queue.Queue[dict[str, Any]]]:
        """The events from now on."""
        mine: queue.Queue[dict[str, Any]] = queue.Queue()
        with self._lock:
            self._listeners.append(mine)
        try:
            yield mine
        finally:
            with self._lock:
                self._listeners.remove(mine)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: DockerApi
    over: threading.Event

    def log_message(self, format: str, *args: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = re.sub(r"^/v[\d.]+(?=/)", "", self.path).partition("?")[0]
        self.api.asked.append(path)
        if path == "/_ping":
            self._send(200, b"OK", "text/plain")
        elif path == "/events":
            self._stream()
        else:
            try:
                self._send(200, json.dumps(self.api.answer(path)).encode(), "application/json")
            except KeyError:
                self._send(404, json.dumps({"message": f"{path} is not here"}).encode(), "application/json")

    def _send(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Api-Version", VERSION)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.flush()
        with self.api.listening() as events, contextlib.suppress(OSError):
            while not self.over.is_set():
                try:
                    event = events.get(timeout=0.1)
                except queue.Empty:
                    continue
                self.wfile.write(json.dumps(event).encode() + b"\n")
                self.wfile.flush()
        self.close_connection = True


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextmanager
def docker_api(path: Path) -> Iterator[DockerApi]:
    """The API, served at a Unix socket."""
    api, over = DockerApi(), threading.Event()
    handler = type("Handler", (_Handler,), {"api": api, "over": over})
    with _Server(str(path), handler) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        serving.start()
        try:
            yield api
        finally:
            over.set()
            server.shutdown()
            serving.join()
