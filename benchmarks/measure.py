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
from typing import IO, Any

from machine import BenchmarkError, Cores, cpu_seconds, memory_bytes, started
from servers import BUILD, Recorder, Server, Upstream, ask

LIMIT_SECONDS = 90.0  # no measurement takes that long; one that does is stuck
STORE_SECONDS = 60.0  # a recorder that is still behind so long after the last answer is not up to the load
LEAVE_SECONDS = 10.0  # when streams are still open upstream so long after their clients have left, they leak


class MeasurementError(Exception):
    """Something was not as it had to be, so that there is no result."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """A sample of times, in milliseconds."""

    median: float
    p99: float
    p999: float
    max: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What the recorder did about all requests of a measurement, also those outside of its window."""

    requests: int
    late_seconds: float  # from the last answer until all was stored
    cpu_seconds: float  # of the recorder, until then
    stored_bytes: int | None  # None where the database is not a file


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run of the load client has shown."""

    seconds: float
    answers: int
    events: int
    cpu_seconds: float | None  # of the proxy; None where there is none
    recorder_cpu_seconds: float  # of its recorder, in the same time
    ttfb: Times | None
    delay: Times | None
    beside: Times | None  # of the requests of the load beside: from when they were due to their answers
    bytes_a_stream: float | None
    leave_seconds: float | None  # from when all clients of held streams leave, until none is open upstream
    upstream_connections: int
    recorded: Recorded | None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One load.

    `seconds` is the window's length in a full run, `quick_seconds` in a quick one.  With `every_us`, a request is due
    so often; else a client begins the next one when it has the answer.  `beside` is a load of its own that is there
    from before the window to after it.  Before one of `crowds` comes after another, or the other way round, proxies are
    started anew: what thousands of streams leave behind, as garbage in cycles for one, is not to be cleaned up while
    something else is measured.
    """

    name: str
    title: str
    connections: int = 1
    size: int = 1_024
    events: int = 0
    gap_us: int = 0
    burst: int = 1
    every_us: int = 0
    warmup: float = 0.2
    seconds: float
    quick_seconds: float = 0.3
    hold: bool = False
    optional: bool = False
    crowds: bool = False
    beside: Measurement | None = None

    def arguments(self, server: Server, *, quick: bool) -> list[str]:
        words = [
            str(BUILD / "load"),
            f"--port={server.port}",
            f"--connections={self.connections}",
            f"--size={self.size}",
            f"--warmup={self.warmup / 2 if quick else self.warmup}",
            f"--seconds={self.quick_seconds if quick else self.seconds}",
            *(f"--pid={pid}" for pid in server.all_pids),
        ]
        if self.every_us:
            words.append(f"--every-us={self.every_us}")
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
        crowds=True,
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
        crowds=True,
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
        crowds=True,
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
    Measurement(
        name="lag",
        title="one stream, an event each ms, beside 20 requests of 2 MB a second",
        events=FOREVER,
        gap_us=1_000,
        warmup=1.0,
        seconds=6.0,
        quick_seconds=2.0,
        hold=True,
        beside=Measurement(
            name="2 MB",
            title="20 requests of 2 MB a second",
            connections=8,
            size=2 * 1_048_576,
            every_us=50_000,
            warmup=0.0,
            seconds=7.5,
            quick_seconds=3.0,
        ),
    ),
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


def _times(value: dict[str, float] | None) -> Times | None:
    if value is None:
        return None
    return Times(
        median=value["median"], p99=value["p99"], p999=value["p999"], max=value["max"], count=int(value["count"])
    )


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


class _Client:
    """A load client that runs: what it says, and what it is told (see load.c)."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors
        self._line = ""

    @classmethod
    @contextlib.contextmanager
    def started(cls, arguments: list[str], cores: Cores) -> Iterator[_Client]:
        with (
            tempfile.TemporaryFile() as errors,
            started(
                arguments, cores=cores.load, output=errors, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as process,
        ):
            watchdog = threading.Timer(LIMIT_SECONDS, process.kill)
            watchdog.start()
            try:
                yield cls(process, errors)
            finally:
                watchdog.cancel()

    def reaches(self, word: str) -> bool:
        """Wait for its next line, and say whether it is `word`; it is its result else, or nothing where it died."""
        self._line = self._read_line()
        return self._line == word

    def tell(self, word: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, and has said why
            self._process.stdin.write(f"{word}\n".encode())
            self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """What it has measured, when it has ended; raises MeasurementError where something was wrong."""
        line = self._line if self._line.startswith("{") else self._read_line()
        status = self._process.wait()
        self._errors.seek(0)
        complaint = self._errors.read().decode(errors="replace").strip()
        if status != 0:
            count = f"errors: {json.loads(line)['errors']}; " if line.startswith("{") else ""
            raise MeasurementError(f"{count}{complaint or f'the load client ended with {status}'}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()


def run(measurement: Measurement, server: Server, upstream: Upstream, cores: Cores, *, quick: bool) -> Result:
    """Put the load on `server` and wait until both are at rest again, and all is recorded where it records.

    Raises MeasurementError where an answer was not byte by byte what the upstream had sent, where the
    upstream saw anything but what the clients had sent, where streams stayed open upstream after their
    clients had left, where a paced load was not carried, or where something was not recorded.
    """
    before = upstream.stats()
    watch = None if server.recorder is None else _Watch(server, server.recorder)
    leaving: float | None = None
    idle_bytes = memory_bytes(server.all_pids)
    open_bytes = idle_bytes
    beside: dict[str, Any] | None = None
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(_Client.started(measurement.arguments(server, quick=quick), cores))
        other: _Client | None = None
        if measurement.hold and client.reaches("open"):
            open_bytes = memory_bytes(server.all_pids)
            if measurement.beside is not None:
                arguments = measurement.beside.arguments(server, quick=quick)
                other = stack.enter_context(_Client.started(arguments, cores))
            upstream.go()
            client.tell("go")
            if client.reaches("window"):
                # what a stream comes to cost after a while counts, too
                open_bytes = max(open_bytes, memory_bytes(server.all_pids))
                leaving = time.monotonic()
                client.tell("end")
        raw = client.result()
        if other is not None:
            beside = other.result()
    ended = time.monotonic()
    after = _check_upstream(measurement, before, upstream)
    left = time.monotonic()
    if beside is not None and measurement.beside is not None:
        _check_pace(measurement.beside, beside)
    recorded = None if watch is None else watch.until_stored(after["requests"] - before["requests"], ended)
    server.settle()
    own, recorders = raw["cpu_seconds"][: len(server.pids)], raw["cpu_seconds"][len(server.pids) :]
    result = Result(
        seconds=raw["seconds"],
        answers=raw["answers"],
        events=raw["events"],
        cpu_seconds=sum(own) if own else None,
        recorder_cpu_seconds=sum(recorders),
        ttfb=_times(raw["ttfb_ms"]),
        delay=_times(raw["delay_ms"]),
        beside=None if beside is None else _times(beside["ttfb_ms"]),
        bytes_a_stream=(open_bytes - idle_bytes) / measurement.connections
        if measurement.hold and server.pids
        else None,
        leave_seconds=None if leaving is None else left - leaving,
        upstream_connections=after["accepted"] - before["accepted"],
        recorded=recorded,
    )
    if result.events == 0:
        raise MeasurementError("nothing was answered within the window")
    return result


def _check_pace(measurement: Measurement, raw: dict[str, Any]) -> None:
    due = raw["seconds"] * 1e6 / measurement.every_us
    if raw["answers"] < 0.95 * due - 1:
        raise MeasurementError(f"of {due:.0f} requests that were due beside, {raw['answers']} were answered in time")


class _Watch:
    """Follows a recorder through a measurement, which finds it at rest."""

    def __init__(self, server: Server, recorder: Recorder) -> None:
        self._server = server
        self._recorder = recorder
        self._cpu_seconds = cpu_seconds(recorder.pids)
        self._stored_bytes = recorder.stored_bytes()
        self._before = self._ask()

    def _ask(self) -> dict[str, Any]:
        told: dict[str, Any] = ask(self._server, "/livez")["recording"]
        return told

    def until_stored(self, requests: int, ended: float) -> Recorded:
        """Wait until so many requests are in the database, and nothing is on its way there."""
        deadline = time.monotonic() + STORE_SECONDS
        while True:
            told = self._ask()
            count = told["recorded"] - self._before["recorded"]
            bodies, exchanges = (told[name] - self._before[name] for name in ("lost_bodies", "lost_exchanges"))
            if bodies or exchanges:
                why = told["problem"] or self._server.explain()
                raise MeasurementError(f"{exchanges} requests are not recorded, and {bodies} not whole: {why}")
            if count >= requests and not told["behind_bytes"]:
                break
            if time.monotonic() > deadline:
                message = f"{count} of {requests} requests are stored {STORE_SECONDS:.0f} s after the last answer"
                raise MeasurementError(f"{message}; {told['behind_bytes']} bytes are behind: {told['problem']}")
            time.sleep(0.02)
        late = time.monotonic() - ended
        if count != requests:
            raise MeasurementError(f"the upstream saw {requests} requests, and {count} are recorded")
        stored = self._recorder.stored_bytes()
        return Recorded(
            requests=requests,
            late_seconds=late,
            cpu_seconds=cpu_seconds(self._recorder.pids) - self._cpu_seconds,
            stored_bytes=None if stored is None or self._stored_bytes is None else stored - self._stored_bytes,
        )


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
