"""What systemd is told of the process."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import StandIn, proxy
from twisted_proxy.notify import READY, STOPPING, notify


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which systemd listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.settimeout(30)
        made.bind(str(tmp_path / "notify"))
        yield made


def test_by_path(manager: socket.socket) -> None:
    """The state is the whole datagram."""
    notify(READY, {"NOTIFY_SOCKET": manager.getsockname()})
    assert manager.recv(100) == b"READY=1"


def test_in_the_abstract_namespace(tmp_path: Path) -> None:
    """An ``@`` stands for the NUL at the beginning."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{tmp_path}")
        notify(STOPPING, {"NOTIFY_SOCKET": f"@{tmp_path}"})
        assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_nobody_wants_to_know(environ: dict[str, str], logs: list[dict[str, Any]]) -> None:
    """Nothing is sent, and nothing said."""
    notify(READY, environ)
    assert logs == []


def test_nobody_is_there(tmp_path: Path, logs: list[dict[str, Any]]) -> None:
    """A warning; the process runs on."""
    notify(READY, {"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    assert [entry["state"] for entry in logs] == [READY]


def test_a_process_says_when_it_listens_and_when_it_drains(
    manager: socket.socket, tmp_path: Path, upstream: StandIn
) -> None:
    """``READY=1``: it can be reached. ``STOPPING=1``: it was told to stop."""
    with proxy(tmp_path, upstream, NOTIFY_SOCKET=manager.getsockname()) as running:
        assert manager.recv(100) == b"READY=1"
        assert running.get("/health")[0] == 200
        running.signal(signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"
        assert running.wait() == -signal.SIGTERM
