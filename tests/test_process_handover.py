"""A listening socket that outlives its processes, as systemd holds one: handed from an old process to a new one.

The test holds the socket in the place of systemd, and tells each process of it as systemd does (sd_listen_fds(3)).
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.balancers import program
from tests.load import Ask, Clients, stream
from tests.processes import CHECKOUT, Process, Proxy, StandIn, clean_environment, wait_for
from tests.recorded import Reader, Records
from tests.sockets import Client, call, events_logged, free_port, prompt
from tests.test_process_drain import open_stream, sent_body

SIGTERM: Final = signal.SIGTERM

ACTIVATE: Final = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="claude-proxy")
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Becomes a command that gets a socket as systemd passes it: the process that is named keeps its number."""

PLAIN: Final = Ask(scenario="auto")
MIXES: Final = [
    [stream(8, 0.1), PLAIN],
    [stream(20, 0.4), stream(12, 0.8)],
    [PLAIN],
    [Ask(scenario="auto", size=100_000), Ask(scenario="auto", delay=0.2)],
    [stream(30, 0.3), Ask(scenario="bytes?size=300000")],
] * 2


TWISTD: Final = (
    sys.executable,
    str(Path(sys.executable).parent / "twistd"),
    "--nodaemon",
    "--pidfile=",
    "claude-proxy",
)


def activate(listener: socket.socket) -> tuple[str, ...]:
    """What passes a socket to the command that follows."""
    return (sys.executable, "-c", ACTIVATE, str(listener.fileno()))


def activated(directory: Path, upstream: StandIn, listener: socket.socket, **settings: str) -> Proxy:
    """A proxy that listens on an inherited socket. A context manager."""
    return Proxy(
        directory,
        (listener.fileno(),),
        wrapper=activate(listener),
        ANTHROPIC_FORWARD_URL=upstream.url,
        **{"LISTEN": "systemd:domain=INET:index=0", **settings},
    )


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """The socket."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as made:
        yield made


def answered(running: Proxy) -> int:
    """So many requests came to their end there."""
    return len(events_logged(running.lines, "access"))


@pytest.mark.timeout(300)
def test_from_old_to_new_under_load(tmp_path: Path, upstream: StandIn, listener: socket.socket, reader: Reader) -> None:
    """Three hand-overs without a balancer: 0 refused, 0 cut; and each old process comes to its end under load.

    It finishes a stream that began before the new one, and leaves what is new to that. Both record into one file.
    """
    port = listener.getsockname()[1]
    processes: list[Proxy] = []

    def start() -> Proxy:
        processes.append(stack.enter_context(activated(tmp_path, upstream, listener, RECORD="full")))
        return processes[-1]

    with contextlib.ExitStack() as stack:
        new = start()
        with Clients(lambda: port, MIXES, keep=lambda number: number % 2 == 0, pause=0.02) as clients:
            for turn in range(3):
                scenario = f"auto?count=4&gate={tmp_path.name}-{turn}@3"
                held, head = open_stream(new, scenario)
                with held:
                    old, new = new, start()
                    old.signal(SIGTERM)
                    old.wait_for_line("draining: ")
                    # Until all who keep their connections have been told to leave it.
                    hand_over(new, 40)
                    before = answered(old)
                    hand_over(new, 150)
                    assert answered(old) - before < 40
                    assert old.returncode is None
                    upstream.release(f"{tmp_path.name}-{turn}")
                    got = held.answer(already=head)
                    assert (got.whole, got.body) == (True, sent_body(scenario, prompt(stream=True)))
                assert old.wait(60) == -SIGTERM
        assert not clients.failures, str(clients)
        assert new.stop(60) == -SIGTERM
    access = {line["request_id"]: line["verdict"] for each in processes for line in events_logged(each.lines, "access")}
    assert set(access.values()) == {"complete"}
    assert Records(reader, tmp_path / "requests.db").verdicts() == access
    assert not any("Traceback" in each.log for each in processes)


def hand_over(new: Proxy, count: int) -> None:
    """Wait until the new process has answered so many requests more."""
    enough = answered(new) + count
    wait_for(lambda: answered(new) >= enough, "the new process answers", 60)


def test_alone_it_goes_on(tmp_path: Path, upstream: StandIn, listener: socket.socket) -> None:
    """Where nobody else accepts, a process that drains does; and who comes after its end waits for the next."""
    port = listener.getsockname()[1]
    with activated(tmp_path, upstream, listener) as old:
        held, head = open_stream(old, f"auto?gate={tmp_path.name}@3")
        with held:
            old.signal(SIGTERM)
            old.wait_for_line("draining: ")
            health = call(port, "GET", "/health")
            assert (health.status, health.json()["status"]) == (503, "draining")
            for stream_it in (False, True):
                body = prompt("still", stream=stream_it)
                got = call(port, "POST", "/v1/messages", (), body)
                assert (got.status, got.header("connection"), got.body) == (200, "close", sent_body("auto", body))
            upstream.release(tmp_path.name)
            assert held.answer(already=head).whole
        assert old.wait() == -SIGTERM
    with Client(port, limit=60) as early:
        # The kernel has taken the connection: systemd would start a process for it.
        early.ask("POST", "/v1/messages", (), prompt("early"))
        with activated(tmp_path, upstream, listener) as new:
            got = early.answer()
            assert (got.status, got.body) == (200, sent_body("auto", prompt("early")))
            assert new.stop() == -SIGTERM


def test_a_unix_socket_stays(tmp_path: Path, upstream: StandIn) -> None:
    """Neither its path nor its mode is touched, and one who leaves does not close it for the others."""
    path = Path(tempfile.mkdtemp(prefix="handover-")) / "socket"
    settings = {"LISTEN": "systemd:domain=UNIX:name=claude-proxy", "ANTHROPIC_FORWARD_URL": upstream.url}
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, path.parent)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        path.chmod(0o660)
        listener.listen(100)

        def start() -> Process:
            running = stack.enter_context(
                Process(
                    (*activate(listener), *TWISTD),
                    environment=clean_environment(PYTHONPATH=str(CHECKOUT), RECORD="off", **settings),
                    cwd=tmp_path,
                    pass_fds=(listener.fileno(),),
                )
            )
            running.wait_for_line("claude-proxy listening on ")
            return running

        old, new = start(), start()
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert old.stop() == -SIGTERM
        with Client(0, path=path) as client:
            got = client.call("POST", "/v1/messages", (), prompt())
        assert (got.status, got.body) == (200, sent_body("auto", prompt()))
        assert new.stop() == -SIGTERM
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_activated_by_systemds_own_program(tmp_path: Path, upstream: StandIn) -> None:
    """The first connection starts the process, which answers it."""
    activator = str(program("systemd-socket-activate", "On Debian: apt install systemd."))
    port = free_port()
    environment = clean_environment(
        PYTHONPATH=str(CHECKOUT),
        RECORD="off",
        LISTEN="systemd:domain=INET:name=claude-proxy",
        ANTHROPIC_FORWARD_URL=upstream.url,
    )
    passed = [f"--setenv={name}" for name in environment]
    arguments = (activator, f"--listen=127.0.0.1:{port}", "--fdname=claude-proxy", *passed, *TWISTD)
    with Process(arguments, environment=environment, cwd=tmp_path) as running:
        running.wait_for_line("Listening on ")
        got = call(port, "POST", "/v1/messages", (), prompt(), limit=60)
        assert (got.status, got.body) == (200, sent_body("auto", prompt()))
        assert running.stop() == -SIGTERM
