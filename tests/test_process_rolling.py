"""Two slots behind a real balancer, restarted one after the other while clients ask without a pause.

A roll of one slot takes the lame duck (1 s here: the health check's interval and timeout), the end of its last stream,
the start of a process and the balancer's next check. Ten rolls of both slots are a minute, and cannot be much less.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

import pytest

from tests.balancers import LAME_DUCK, Balancer, haproxy, traefik
from tests.load import ECHO, Ask, Clients, stream
from tests.processes import Proxy, StandIn, proxy, wait_for
from tests.recorded import Reader, Records
from tests.sockets import Client, events_logged, free_port, play, prompt
from tests.test_process_drain import sent_body

Before = Callable[[Path, list[int]], AbstractContextManager[Balancer]]

ROLLS: Final = 10

STREAMS: Final = [stream(8, 0.1), stream(30, 0.6), stream(12, 1.2), stream(100, 0.5)]
PLAIN: Final = [Ask(scenario="auto"), Ask(scenario="auto", delay=0.3), Ask(scenario="bytes?size=300000")]
UPLOADS: Final = [Ask(scenario="auto", size=100_000), Ask(scenario=ECHO, size=300_000), Ask(scenario="auto", delay=0.2)]
MIXES: Final = [STREAMS, STREAMS[::-1], PLAIN, [*PLAIN, *STREAMS], UPLOADS, [*UPLOADS, *STREAMS]]


class Slot:
    """A proxy on a port that it keeps through all its processes. A context manager."""

    def __init__(self, directory: Path, upstream: StandIn, *, records: bool) -> None:
        directory.mkdir()
        self.directory = directory
        self.port = free_port()
        self._upstream = upstream
        self._record = "full" if records else "off"
        self.logs: list[list[str]] = []
        self.start()

    def start(self) -> None:
        """Start a process, and wait until it listens."""
        self.running: Proxy = proxy(
            self.directory,
            self._upstream,
            PORT=str(self.port),
            DRAIN_LAME_DUCK=f"{LAME_DUCK:g}s",
            RECORD=self._record,
        )
        self.logs.append(self.running.lines)

    def end(self) -> None:
        """Wait for the end of what was told to stop."""
        assert self.running.wait(60) == -signal.SIGTERM, self.running.describe()
        self.running.kill()

    def __enter__(self) -> Slot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.running.kill()

    def access(self) -> list[dict[str, str]]:
        """The access lines of all its processes."""
        return [line for lines in self.logs for line in events_logged(lines, "access")]


@pytest.fixture(params=[traefik, haproxy], ids=["traefik", "haproxy"])
def before(request: pytest.FixtureRequest) -> Before:
    """What starts a balancer before slots."""
    found: Before = request.param
    return found


class HeldStream:
    """A stream that has begun on a connection of its own, and ends when it is told to. A context manager."""

    def __init__(self, port: int, upstream: StandIn, gate: str) -> None:
        self._upstream, self._gate = upstream, gate
        self._scenario = f"auto?count=4&gate={gate}@3"
        self.client = Client(port, limit=60)
        self.client.ask("POST", "/v1/messages", [play(self._scenario)], prompt(stream=True))
        self._start = self.client.read_until(b"event: message_start")

    def end(self) -> None:
        """Let it go on, and see that it comes to its end."""
        self._upstream.release(self._gate)
        got = self.client.answer(already=self._start)
        assert (got.whole, got.body) == (True, sent_body(self._scenario, prompt(stream=True)))

    def __enter__(self) -> HeldStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()


@pytest.mark.timeout(400)
def test_ten_rolls_of_two_slots(before: Before, tmp_path: Path, upstream: StandIn, reader: Reader) -> None:
    """0 failed and 0 truncated requests; and what the slot that records has served is in its store, complete.

    Into each roll of a slot there is a stream that began in the other one's, and ends after this slot has left.
    """
    with ExitStack() as stack:
        blue = stack.enter_context(Slot(tmp_path / "blue", upstream, records=True))
        green = stack.enter_context(Slot(tmp_path / "green", upstream, records=False))
        ports = [blue.port, green.port]
        balancer = stack.enter_context(before(tmp_path, ports))
        clients = Clients(lambda: balancer.port, MIXES, keep=lambda number: number % 2 == 0, pause=0.05)
        held: HeldStream | None = None
        with clients:
            for roll in range(ROLLS):
                for slot, other in ((blue, green), (green, blue)):
                    served = clients.answered
                    slot.running.signal(signal.SIGTERM)
                    wait_for(lambda: balancer.up() == {other.port}, "the balancer sees that the slot leaves")  # noqa: B023
                    if held is not None:
                        held.end()
                        held.client.close()
                    # Only the other slot can have got it.
                    gate = f"{tmp_path.name}-{roll}-{slot.port}"
                    held = stack.enter_context(HeldStream(balancer.port, upstream, gate))
                    slot.end()
                    slot.start()
                    wait_for(lambda: balancer.up() == set(ports), "the balancer sees that the slot is back")
                    assert clients.answered > served
            assert held is not None
            held.end()
        logged = [line for slot in (blue, green) for line in slot.access() if line["verdict"] != "complete"]
        assert not clients.failures, f"{clients}\n{logged}\n{balancer.process.describe()}"
        assert not logged
        assert blue.running.stop(60) == -signal.SIGTERM
        served_by_blue = {line["request_id"]: line["verdict"] for line in blue.access()}
        assert set(served_by_blue.values()) == {"complete"}
        assert Records(reader, blue.directory / "requests.db").verdicts() == served_by_blue
        assert not any("Traceback" in line for slot in (blue, green) for lines in slot.logs for line in lines)


def test_a_kept_connection_of_a_process_that_has_drained(tmp_path: Path, upstream: StandIn) -> None:
    """The stream that a drain waited for ends, its client asks again at once, on the same connection: it is answered.

    The stream began before the drain, so that its head could not say that the connection would close.
    """
    with proxy(tmp_path, upstream) as running, HeldStream(running.port, upstream, tmp_path.name) as held:
        running.signal(signal.SIGTERM)
        running.wait_for_line("draining: 1 in flight")
        held.end()
        again = held.client.call("POST", "/v1/messages", (), prompt("again"))
        assert (again.status, again.body) == (200, sent_body("auto", prompt("again")))
        assert again.header("connection") == "close"
        assert running.wait() == -signal.SIGTERM
