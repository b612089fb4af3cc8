"""The measurements: which load is put on a server, and what is taken down meanwhile."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from machine import BenchmarkError, Cores, memory_bytes, started
from servers import BUILD, Server, Upstream

LIMIT_SECONDS = 90.0  # no measurement takes that long; one that does is stuck
LEAVE_SECONDS = 10.0  # when streams are still open upstream so long after their clients have left, they leak


class MeasurementError(Exception):
    """Something was not as it had to be, so that there is no result."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """A sample of times, in milliseconds."""

    median: float
    p99: float
    max: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run of the load client has shown."""

    seconds: float
    answers: int
    events: int
    cpu_seconds: float | None  # of the proxy; None where there is none
    ttfb: Times | None
    delay: Times | None
    bytes_a_stream: float | None
    leave_seconds: float | None  # from when all clients of held streams leave, until none is open upstream
    upstream_connections: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One load.  `seconds` is the window's length in a full run, `quick_seconds` in a quick one."""

    name: str
    title: str
    connections: int = 1
    size: int = 1_024
    events: int = 0
    gap_us: int = 0
    burst: int = 1
    warmup: float = 0.2
    seconds: float
    quick_seconds: float = 0.3
    hold: bool = False
    optional: bool = False

    def arguments(self, server: Server, *, quick: bool) -> list[str]:
        words = [
            str(BUILD / "load"),
            f"--port={server.port}",
            f"--connections={self.connections}",
            f"--size={self.size}",
            f"--warmup={self.warmup / 2 if quick else self.warmup}",
            f"--seconds={self.quick_seconds if quick else self.seconds}",
            *(f"--pid={pid}" for pid in server.pids),
        ]
        if self.events:
            words += [f"--events={self.events}", f"--gap-us={self.gap_us}", f"--burst={self.burst}"]
        return [*words, "--hold"] if self.hold else words


FOREVER = 999_999  # events; a stream that is held does not end by itself

# The first one opens the most streams in a process that has seen nothing but the warm-up: memory that an
# earlier load has left behind would make the streams look cheaper.
MEASUREMENTS = (
    Measurement(
        name="streams-2000",
        title="2,000 streams, an event each 400 ms",
        connections=2_000,
        events=FOREVER,
        gap_us=400_000,
        warmup=0.6,
        seconds=2.5,
        quick_seconds=0.8,
        hold=True,
    ),
    Measurement(
        name="streams-2000-fast",
        title="2,000 streams, an event each 100 ms",
        connections=2_000,
        events=FOREVER,
        gap_us=100_000,
        warmup=0.4,
        seconds=2.0,
        quick_seconds=0.6,
        hold=True,
    ),
    Measurement(
        name="streams-500-100k",
        title="500 streams after 100 KB bodies, an event each 400 ms",
        connections=500,
        size=102_400,
        events=FOREVER,
        gap_us=400_000,
        seconds=1.0,
        hold=True,
        optional=True,
    ),
    Measurement(
        name="streams-100",
        title="100 streams, an event each 20 ms",
        connections=100,
        events=FOREVER,
        gap_us=20_000,
        seconds=1.5,
        hold=True,
    ),
    Measurement(
        name="stream-1",
        title="one stream, an event each 2.5 ms",
        events=FOREVER,
        gap_us=2_500,
        seconds=1.5,
        hold=True,
    ),
    Measurement(
        name="ttfb-1k",
        title="one stream after another, 1 KB bodies",
        events=6,
        gap_us=1_000,
        burst=5,
        seconds=0.8,
    ),
    Measurement(
        name="ttfb-100k",
        title="one stream after another, 100 KB bodies",
        size=102_400,
        events=6,
        gap_us=1_000,
        burst=5,
        seconds=0.8,
    ),
    Measurement(name="bursts", title="bursty streams of 200 events", connections=16, events=200, burst=10, seconds=1.0),
    Measurement(name="requests-1k", title="requests with 1 KB bodies", connections=32, seconds=1.0),
    Measurement(name="requests-100k", title="requests with 100 KB bodies", connections=16, size=102_400, seconds=1.0),
)

_WARM_UP = (
    Measurement(name="warm-up", title="", connections=8, warmup=0, seconds=0.2, quick_seconds=0.2),
    Measurement(
        name="warm-up",
        title="",
        connections=8,
        events=50,
        burst=5,
        gap_us=1_000,
        warmup=0,
        seconds=0.3,
        quick_seconds=0.2,
    ),
)


def warm_up(server: Server, upstream: Upstream, cores: Cores) -> None:
    """Let a new process do a little of everything: what it loads and caches is not a stream's memory."""
    for measurement in _WARM_UP:
        run(measurement, server, upstream, cores, quick=True)


def _read_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def _write_line(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended, and has said why
        process.stdin.write(f"{line}\n".encode())
        process.stdin.flush()


def _times(value: dict[str, float] | None) -> Times | None:
    if value is None:
        return None
    return Times(median=value["median"], p99=value["p99"], max=value["max"], count=int(value["count"]))


def py_spy() -> str | None:
    """The profiler, from the interpreter's own directory or the path; None where it is not installed."""
    return shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")


@contextlib.contextmanager
def profiled(server: Server, path: Path) -> Iterator[None]:
    """Write a flame graph of the server's first process, while the context lasts, to `path`."""
    program = py_spy()
    assert program is not None
    command = [program, "record", "--pid", str(server.pids[0]), "--output", str(path), "--threads"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)  # it writes its graph then
            _, said = process.communicate()
    if process.returncode:
        raise BenchmarkError(f"py-spy ended with {process.returncode}: {said.strip()}")


def run(measurement: Measurement, server: Server, upstream: Upstream, cores: Cores, *, quick: bool) -> Result:
    """Put the load on `server` and wait until both are at rest again.

    Raises MeasurementError where an answer was not byte by byte what the upstream had sent, where the
    upstream saw anything but what the clients had sent, or where streams stayed open upstream after their
    clients had left.
    """
    before = upstream.stats()
    leaving: float | None = None
    idle_bytes = memory_bytes(server.pids)
    open_bytes = idle_bytes
    with (
        tempfile.TemporaryFile() as errors,
        started(
            measurement.arguments(server, quick=quick),
            cores=cores.load,
            output=errors,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process,
    ):
        watchdog = threading.Timer(LIMIT_SECONDS, process.kill)
        watchdog.start()
        try:
            line = _read_line(process)
            if line == "open":
                open_bytes = memory_bytes(server.pids)
                upstream.go()
                _write_line(process, "go")
                line = _read_line(process)
            if line == "window":
                # what a stream comes to cost after a while counts, too
                open_bytes = max(open_bytes, memory_bytes(server.pids))
                leaving = time.monotonic()
                _write_line(process, "end")
                line = _read_line(process)
            status = process.wait()
        finally:
            watchdog.cancel()
        errors.seek(0)
        complaint = errors.read().decode(errors="replace").strip()
    if status != 0:
        count = f"errors: {json.loads(line)['errors']}; " if line.startswith("{") else ""
        raise MeasurementError(f"{count}{complaint or f'the load client ended with {status}'}")
    raw = json.loads(line)
    after = _check_upstream(measurement, before, upstream)
    left = time.monotonic()
    server.settle()
    result = Result(
        seconds=raw["seconds"],
        answers=raw["answers"],
        events=raw["events"],
        cpu_seconds=raw["cpu_seconds"],
        ttfb=_times(raw["ttfb_ms"]),
        delay=_times(raw["delay_ms"]),
        bytes_a_stream=(open_bytes - idle_bytes) / measurement.connections
        if measurement.hold and server.pids
        else None,
        leave_seconds=None if leaving is None else left - leaving,
        upstream_connections=after["accepted"] - before["accepted"],
    )
    if result.events == 0:
        raise MeasurementError("nothing was answered within the window")
    return result


def _check_upstream(measurement: Measurement, before: dict[str, int], upstream: Upstream) -> dict[str, int]:
    deadline = time.monotonic() + LEAVE_SECONDS
    while (after := upstream.stats())["open_streams"] > before["open_streams"] and time.monotonic() < deadline:
        time.sleep(0.02)
    left = after["open_streams"] - before["open_streams"]
    if left > 0:
        raise MeasurementError(f"{left} streams are open upstream {LEAVE_SECONDS:.0f} s after their clients have left")
    if after["bad"] > before["bad"]:
        raise MeasurementError(f"the upstream answered 400 to {after['bad'] - before['bad']} requests")
    broken = after["broken"] - before["broken"]
    expected = measurement.connections if measurement.hold else 0
    if broken != expected:
        raise MeasurementError(f"the upstream saw {broken} broken connections, and not {expected}")
    return after
