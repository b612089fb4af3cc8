"""What the benchmarks need of the machine: pinned processes, their CPU time and memory, who else is busy."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

MAX_FILES = 20_000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class BenchmarkError(Exception):
    """Something cannot be started or measured; the message says what, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Cores:
    """Which cores each kind of process may run on; the proxy shares its own with nothing that we start."""

    proxy: frozenset[int]
    upstream: frozenset[int]
    load: frozenset[int]

    @classmethod
    def plan(cls) -> Cores:
        """Divide the cores that this process may use: one for the proxy, the others for upstream and load."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) == 1:
            return cls(proxy=frozenset(cores), upstream=frozenset(cores), load=frozenset(cores))
        return cls(
            proxy=frozenset(cores[-1:]),
            upstream=frozenset(cores[:1]),
            load=frozenset(cores[: len(cores) - 1][-1:]),
        )

    def describe(self) -> str:
        if self.proxy == self.load:
            return "one core for all (rates mean little)"
        if self.upstream == self.load:
            return f"the proxy on core {min(self.proxy)}, upstream and load on core {min(self.load)}"
        return f"the proxy on core {min(self.proxy)}, upstream on {min(self.upstream)}, load on {min(self.load)}"


def file_limit() -> int:
    """How many open files a process that `started` makes may have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _before_exec(cores: frozenset[int], files: int) -> Callable[[], None]:
    def prepare() -> None:
        os.sched_setaffinity(0, cores)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        # a run that is killed outright leaves nothing behind
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return prepare


@contextlib.contextmanager
def started(
    command: Sequence[str],
    *,
    cores: frozenset[int],
    output: IO[bytes] | int | None,
    stdin: int = subprocess.DEVNULL,
    stdout: IO[bytes] | int | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    on_killed: Callable[[], None] = lambda: None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` on `cores` while the context lasts; afterwards stop it with all that it has started.

    `output` takes stderr, and stdout where that is not given.  `on_killed` is called where SIGTERM did not
    end it within ten seconds.  Raises BenchmarkError where the command cannot be run.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=output if stdout is None else stdout,
            stderr=output,
            env=environment,
            cwd=directory,
            # so that Ctrl-C reaches us alone, and that the children of a command can be stopped with it
            start_new_session=True,
            preexec_fn=_before_exec(cores, file_limit()),
        )
    except OSError as error:
        raise BenchmarkError(f"cannot run {command[0]}: {error}") from error
    try:
        yield process
    finally:
        _stop(process, on_killed)


def _stop(process: subprocess.Popen[bytes], on_killed: Callable[[], None]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    _signal_group(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        on_killed()
    finally:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _signal_group(group: int, number: int) -> None:
    # the group is gone where all of its processes are
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def process_tree(root: int) -> list[int]:
    """`root` and all processes that come from it, as far as they live."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # a process may end while we look
            with contextlib.suppress(OSError):
                # the name, in parentheses, may hold anything; the state and the parent come after it
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    tree = [root]
    for pid in tree:
        tree.extend(children.get(pid, ()))
    return tree


def cpu_seconds(pids: Sequence[int]) -> float:
    """The CPU time of all threads of `pids` so far, user and system; raises OSError where one has ended."""
    # the clock of another process, as clock_getcpuclockid(3) computes it (CPUCLOCK_SCHED)
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def memory_bytes(pids: Sequence[int]) -> int:
    """The memory of `pids` together: proportional set size, so that what they share is counted once."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


class Neighbours:
    """How much of the machine others have used since this was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy = self._machine_busy()
        self._own = self._own_seconds()

    @staticmethod
    def _machine_busy() -> float:
        # proc_stat(5); the two guest times that follow are in user and nice already
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(
            int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
        )
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _own_seconds() -> float:
        own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in own)

    def cores_used(self) -> float:
        """How many cores, on average, were busy with others' work; to be called when our children are done."""
        busy = self._machine_busy() - self._busy
        own = self._own_seconds() - self._own
        return max(0.0, busy - own) / (time.monotonic() - self._began)


def describe() -> dict[str, str]:
    """The machine, for the head of a report."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": f"{model}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load average": " ".join(f"{value:.2f}" for value in os.getloadavg()),
    }
