"""Real processes for the tests that need them: the stand-in upstream, the proxy under ``twistd``, any other script.

A process's output is collected line by line from the start, and every wait has a limit whose error shows that output.
All processes end with the ``with`` block that started them.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final
from urllib.parse import urlencode

import attrs

from twisted_proxy import config

CHECKOUT: Final = Path(__file__).resolve().parent.parent
START_LIMIT: Final = 30.0
"""Seconds for a process to say that it is ready: generous, as a loaded machine is not a failure."""
WAIT_LIMIT: Final = 10.0
"""Seconds that a `wait_for` waits unless told otherwise."""
FOREIGN: Final = re.compile(r"ANTHROPIC_|CLAUDE|OPENAI_|OTEL_|DRAIN_|SSL_CERT|PYTHON|\w+_PROXY$", re.IGNORECASE)
SETTINGS: Final = frozenset(setting.env for setting in config.SETTINGS if setting.env)
"""What configures the proxy; `FOREIGN` has what configures clients of it, or Python."""


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without anything that configures the proxy or a client of it, with `more` added."""
    kept = {name: value for name, value in os.environ.items() if not FOREIGN.match(name) and name not in SETTINGS}
    return {**kept, "NO_PROXY": "*", "PYTHONUNBUFFERED": "1", **more}


def wait_for(promise: Callable[[], object], what: str, timeout: float = WAIT_LIMIT) -> Any:
    """Ask `promise` until it gives something true, and return that. Raises `AssertionError` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        found = promise()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(0.01)


class Process:
    """A child process with its output in `lines` (standard error included). A context manager: leaving it kills."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        cwd: Path,
        stdin: bool = False,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.arguments = [str(each) for each in arguments]
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._popen = subprocess.Popen(
            self.arguments,
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            pass_fds=pass_fds,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
        )
        assert self._popen.stdout is not None
        self._collector = threading.Thread(target=self._collect, args=(self._popen.stdout,), daemon=True)
        self._collector.start()

    def _collect(self, output: IO[str]) -> None:
        for line in output:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, ``-N`` for a death by signal N, or ``None`` while it runs."""
        return self._popen.poll()

    @property
    def log(self) -> str:
        """Everything that it has written."""
        with self._changed:
            return "\n".join(self.lines)

    def describe(self) -> str:
        """Its command, its fate and its output, for an error that a person reads."""
        fate = "runs" if self.returncode is None else f"exited with {self.returncode}"
        return f"{' '.join(self.arguments)} ({fate}) wrote:\n{self.log or '(nothing)'}"

    def write_line(self, line: str) -> None:
        """Send a line to its standard input."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(line + "\n")
        self._popen.stdin.flush()

    def wait_for_line(self, pattern: str, *, timeout: float = START_LIMIT, start: int = 0) -> re.Match[str]:
        """The match of `pattern` in the first line, from line `start` on, that has it. Raises `AssertionError`."""
        compiled = re.compile(pattern)
        deadline = time.monotonic() + timeout
        position = start
        with self._changed:
            while True:
                while position < len(self.lines):
                    found = compiled.search(self.lines[position])
                    position += 1
                    if found:
                        return found
                if self._ended:
                    raise AssertionError(f"no line with {pattern!r} came: {self.describe()}")
                if not self._changed.wait(deadline - time.monotonic()):
                    raise AssertionError(f"no line with {pattern!r} within {timeout:g} s: {self.describe()}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._popen.send_signal(number)

    def wait(self, timeout: float = WAIT_LIMIT) -> int:
        """The exit status, once it has exited and all its output is in. Raises `AssertionError`."""
        try:
            status = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout:g} s: {self.describe()}") from None
        self._collector.join(WAIT_LIMIT)
        return status

    def stop(self, timeout: float = WAIT_LIMIT) -> int:
        """SIGTERM, and the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """End it at once, whatever it does."""
        if self._popen.poll() is None:
            self._popen.kill()
        self._popen.wait()
        self._collector.join(WAIT_LIMIT)
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                pipe.close()


@attrs.frozen(kw_only=True)
class Seen:
    """A request as the stand-in saw it. Times are seconds of `time.monotonic`, in whichever process of this machine."""

    number: int
    connection: int
    head: bytes
    """The request line and headers, raw."""
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    """The first 256 KiB of the body, decoded from its framing."""
    body_length: int
    body_sha256: str
    head_at: float
    body_at: float | None
    """When the last byte of the body was in."""
    first_byte_at: float | None
    """When the first byte of the answer went out."""
    finished_at: float | None
    """When the last byte of the answer was taken by the kernel."""
    written: int
    """Bytes of the answer, head included, that the kernel has taken."""
    scenario: str
    closed_at: float | None
    """When the connection was found closed."""
    closed_by: str | None
    """How: ``fin`` or ``rst`` by the peer, ``us-…`` by the stand-in."""

    def header(self, name: str) -> list[str]:
        """All values of a header, by its lower-case name, in order."""
        return [value for key, value in self.headers if key.lower() == name]


class StandIn:
    """The stand-in upstream as a test holds it: `url` to send to, and the control plane as methods."""

    def __init__(self, process: Process, ca_file: Path | None) -> None:
        self.process = process
        self.ca_file = ca_file
        ports = json.loads(process.wait_for_line(r"^\{.*\}$").group())
        self.port = int(ports["port"])
        self.url = f"{'https' if ca_file else 'http'}://{'localhost' if ca_file else '127.0.0.1'}:{self.port}"
        self.control_port = int(ports["control"])
        self.control_url = f"http://127.0.0.1:{self.control_port}"

    def _control(self, method: str, path: str, **query: object) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.control_port, timeout=WAIT_LIMIT)
        try:
            connection.request(method, f"{path}?{urlencode(query)}")
            response = connection.getresponse()
            value = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise AssertionError(f"the stand-in's control plane refused {method} {path} {query}: {value}")
        return value

    def mark(self) -> int:
        """The number that the next request will have: give it to `requests` to see only what comes from now on."""
        return int(self._control("GET", "/counts")["requests"])

    def connection_mark(self) -> int:
        """The number that the next connection will have."""
        return int(self._control("GET", "/counts")["connections"])

    def requests(self, since: int = 0) -> list[Seen]:
        """The requests whose heads have come, in order."""
        found = []
        for each in self._control("GET", "/requests", since=since):
            each["head"] = base64.b64decode(each["head"])
            each["body"] = base64.b64decode(each["body"])
            each["headers"] = [(name, value) for name, value in each["headers"]]
            found.append(Seen(**each))
        return found

    def wait_for(
        self, promise: Callable[[list[Seen]], object], what: str, *, since: int = 0, timeout: float = WAIT_LIMIT
    ) -> list[Seen]:
        """The requests since a mark, as soon as `promise` holds for them. Raises `AssertionError`."""

        def asked() -> list[Seen] | None:
            seen = self.requests(since)
            return seen if promise(seen) else None

        found: list[Seen] = wait_for(asked, what, timeout)
        return found

    def wait_closed(self, *, since: int, timeout: float = WAIT_LIMIT) -> Seen:
        """The one request since a mark, once its connection is closed. Raises `AssertionError`."""
        (only,) = self.wait_for(
            lambda seen: len(seen) == 1 and seen[0].closed_at is not None,
            "one request came and its connection closed",
            since=since,
            timeout=timeout,
        )
        return only

    def connections(self, since: int = 0) -> list[dict[str, Any]]:
        """The connections, in order: ``number requests opened_at closed_at closed_by between_requests problem``."""
        found: list[dict[str, Any]] = self._control("GET", "/connections", since=since)
        return found

    def release(self, gate: str) -> None:
        """Open a gate; it stays open."""
        self._control("POST", "/release", gate=gate)

    def refuse_next(self, times: int, how: str = "rst") -> None:
        """End the next connections as soon as they are open, by ``rst`` or ``fin``."""
        self._control("POST", "/accept", how=how, times=times)

    def reset(self) -> None:
        """Forget the requests, the closed connections, the gates and the counts of ``times``."""
        self._control("POST", "/reset")


@contextmanager
def standin(directory: Path, *, tls: bool = False) -> Iterator[StandIn]:
    """A running stand-in; with `tls`, its `ca_file` is written to `directory`."""
    ca_file = directory / "standin-ca.pem" if tls else None
    more = ("--tls", ca_file) if ca_file else ()
    environment = clean_environment(PYTHONPATH=str(CHECKOUT))
    arguments = (sys.executable, "-m", "tests.standin", *more)
    with Process(arguments, environment=environment, cwd=directory, stdin=True) as process:
        yield StandIn(process, ca_file)


LISTENING: Final = r"claude-proxy listening on \S*?:(\d+)\b"
"""The line in which the proxy says which port it got."""


class Proxy(Process):
    """
    ``twistd -n claude-proxy`` from this checkout, listening. It records nothing unless `settings` say so.

    :param wrapper: a command that becomes (``exec``) the command that follows it.
    :param descriptors: that it inherits, by the same numbers.
    """

    def __init__(
        self,
        directory: Path,
        descriptors: Sequence[int] = (),
        /,
        *,
        wrapper: Sequence[str | Path] = (),
        **settings: str,
    ) -> None:
        environment = clean_environment(PYTHONPATH=str(CHECKOUT), HOST="127.0.0.1", PORT="0", RECORD="off") | settings
        twistd = Path(sys.executable).parent / "twistd"
        arguments = (*wrapper, sys.executable, twistd, "-n", "--pidfile=", "claude-proxy")
        super().__init__(arguments, environment=environment, cwd=directory, pass_fds=descriptors)
        try:
            self.port = int(self.wait_for_line(LISTENING).group(1))
        except BaseException:
            self.kill()
            raise
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Proxy:
        return self

    def get(self, path: str) -> tuple[int, Any]:
        """The status and the JSON body of a GET, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_LIMIT)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def in_flight(self) -> int:
        """The gauge, as ``/livez`` tells it."""
        return int(self.get("/livez")[1]["in_flight"])


def proxy(directory: Path, upstream: StandIn, **settings: str) -> Proxy:
    """A proxy before a stand-in, whose authority it trusts; `settings` are more environment. A context manager."""
    more = {"SSL_CERT_FILE": str(upstream.ca_file)} if upstream.ca_file else {}
    return Proxy(directory, **{"ANTHROPIC_FORWARD_URL": upstream.url, **more, **settings})
