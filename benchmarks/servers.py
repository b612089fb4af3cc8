"""What is measured, and what is behind it: how each server is built, configured and started."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from machine import (
    BenchmarkError,
    Cores,
    cpu_seconds,
    file_limit,
    free_port,
    listening,
    process_tree,
    started,
)

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
MAX_CONNECTIONS = 8_192  # of one proxy, with either side; nginx and HAProxy set their tables up for that many
START_SECONDS = 20.0
CLAUDE_PROXY, RECORDING = "claude-proxy", "recording"
_TWISTD = Path(sys.executable).parent / "twistd"


def ask(server: Server, path: str) -> dict[str, Any]:
    """The JSON that a server of ours answers; raises BenchmarkError where it does not."""
    url = f"http://127.0.0.1:{server.port}{path}"
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except OSError as error:
        raise BenchmarkError(f"{server.name} does not answer: {error}{server.explain()}") from error


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """What keeps the records beside a proxy: its process, and its database where that is a file."""

    pids: tuple[int, ...]
    database: Path | None

    def stored_bytes(self) -> int | None:
        """What the database holds, its write-ahead log included, without pages that are free again."""
        if self.database is None:
            return None
        with contextlib.closing(sqlite3.connect(f"{self.database.as_uri()}?mode=ro", uri=True)) as connection:
            size, pages, free = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_size", "page_count", "freelist_count")
            )
        return int(size * (pages - free))


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server.

    `pids` are the processes whose CPU time and memory are counted, none of "direct"; `recorder` has others.
    """

    name: str
    port: int
    pids: tuple[int, ...] = ()
    recorder: Recorder | None = None
    log: Path | None = None

    @property
    def all_pids(self) -> tuple[int, ...]:
        return self.pids if self.recorder is None else (*self.pids, *self.recorder.pids)

    def explain(self) -> str:
        """The end of its log, for the report of a failure."""
        if self.log is None or not self.log.exists():
            return ""
        lines = self.log.read_text(errors="replace").splitlines()[-4:]
        return "".join(f"\n    {self.name}: {line[:300]}" for line in lines)

    def settle(self, seconds: float = 3.0) -> None:
        """Wait until it does nothing more, `seconds` at the most: left-over work is not the next one's."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            before = cpu_seconds(self.all_pids)
            while time.monotonic() < deadline:
                time.sleep(0.05)
                now = cpu_seconds(self.all_pids)
                if now - before < 0.003:
                    return
                before = now


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """The upstream, which counts what it sees."""

    server: Server

    def stats(self) -> dict[str, int]:
        """What the upstream has seen since its start, but for the connections on which it was asked this.

        `requests`; `bad` of them, which were answered 400; `open_streams`; connections `accepted`, and
        `broken`: closed in the middle of a request or an answer.
        """
        return ask(self.server, "/stats")

    def go(self) -> None:
        """Let the streams that are held go on after their first event."""
        ask(self.server, "/go")


def build() -> None:
    """Compile the upstream and the load client, where they are older than their sources."""
    compiler = os.environ.get("CC") or "cc"
    if shutil.which(compiler) is None:
        raise BenchmarkError(f"the benchmarks need a C compiler, and there is no {compiler}: install gcc, or set CC")
    BUILD.mkdir(exist_ok=True)
    for name in ("upstream", "load"):
        sources = [HERE / f"{name}.c", HERE / "common.h"]
        binary = BUILD / name
        if binary.exists() and binary.stat().st_mtime > max(source.stat().st_mtime for source in sources):
            continue
        done = subprocess.run(
            [compiler, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-o", str(binary), str(sources[0])],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchmarkError(f"{sources[0].name} does not compile:\n{done.stderr}")


def _until_listening(process: subprocess.Popen[bytes], server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not listening(server.port):
        if process.poll() is not None:
            raise BenchmarkError(f"{server.name} ended with {process.returncode} at its start{server.explain()}")
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{server.name} does not listen after {START_SECONDS:.0f} s{server.explain()}")
        time.sleep(0.02)


@contextlib.contextmanager
def upstream(directory: Path, cores: Cores) -> Iterator[Upstream]:
    port = free_port()
    log = directory / "upstream.log"
    server = Server(name="upstream", port=port, log=log)
    with (
        log.open("wb") as output,
        started([str(BUILD / "upstream"), str(port)], cores=cores.upstream, output=output) as process,
    ):
        _until_listening(process, server)
        yield Upstream(server=server)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of server to measure.

    `start(directory, upstream_port, cores, problems)` is a context manager that gives a Server which listens;
    `problems` takes what went wrong at its end.
    """

    name: str
    version: str
    start: Callable[[Path, int, Cores, list[str]], AbstractContextManager[Server]]


@contextlib.contextmanager
def _run(
    name: str,
    command: list[str],
    *,
    port: int,
    directory: Path,
    cores: Cores,
    problems: list[str],
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    log = directory / f"{name}.log"
    with (
        log.open("ab") as output,
        started(
            command,
            cores=cores.proxy,
            output=output,
            environment=environment,
            directory=directory,
            on_killed=lambda: problems.append(f"{name} did not end within 10 s of SIGTERM, with no client left"),
        ) as process,
    ):
        _until_listening(process, Server(name=name, port=port, log=log))
        yield Server(name=name, port=port, pids=tuple(process_tree(process.pid)), log=log)


def _fill(template: str, directory: Path, values: Mapping[str, object]) -> Path:
    text = (HERE / template).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    path = directory / template.removesuffix(".in")
    path.write_text(text)
    return path


def direct() -> Kind:
    @contextlib.contextmanager
    def start(_directory: Path, upstream_port: int, _cores: Cores, _problems: list[str]) -> Iterator[Server]:
        yield Server(name="direct", port=upstream_port)

    return Kind(name="direct", version="no proxy", start=start)


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"


def _installed(name: str) -> str | None:
    # Debian has both in /usr/sbin, which is not on everyone's path
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin")


def nginx() -> Kind | None:
    """nginx with one worker, or None where it is not installed."""
    program = _installed("nginx")
    if program is None:
        return None

    @contextlib.contextmanager
    def start(directory: Path, upstream_port: int, cores: Cores, problems: list[str]) -> Iterator[Server]:
        port = free_port()
        values = {
            "directory": directory,
            "port": port,
            "upstream_port": upstream_port,
            "nofile": file_limit(),
            "connections": min(file_limit(), 2 * MAX_CONNECTIONS),
            "user": "user root;" if os.geteuid() == 0 else "",
        }
        config = _fill("nginx.conf.in", directory, values)
        command = [program, "-p", str(directory), "-e", str(directory / "nginx.log"), "-c", str(config)]
        with _run("nginx", command, port=port, directory=directory, cores=cores, problems=problems) as server:
            yield server

    return Kind(name="nginx", version=_first_line([program, "-v"]), start=start)


def haproxy() -> Kind | None:
    """HAProxy with one thread, or None where it is not installed."""
    program = _installed("haproxy")
    if program is None:
        return None

    @contextlib.contextmanager
    def start(directory: Path, upstream_port: int, cores: Cores, problems: list[str]) -> Iterator[Server]:
        port = free_port()
        values = {
            "port": port,
            "upstream_port": upstream_port,
            "connections": min(file_limit() // 2 - 100, MAX_CONNECTIONS),
        }
        config = _fill("haproxy.cfg.in", directory, values)
        command = [program, "-db", "-f", str(config)]
        with _run("haproxy", command, port=port, directory=directory, cores=cores, problems=problems) as server:
            yield server

    return Kind(name="haproxy", version=_first_line([program, "-v"]), start=start)


def proxy(command: str | None, settings: Mapping[str, str]) -> Kind:
    """claude-proxy out of this checkout, which records nothing, or what `command` runs.

    Both get PORT, HOST and ANTHROPIC_FORWARD_URL in the environment, and `settings`; in `command`, `{port}`
    and `{upstream_url}` stand for the same.  Nothing of the caller's own settings reaches them.
    """
    name = CLAUDE_PROXY if command is None else "proxy"

    @contextlib.contextmanager
    def start(directory: Path, upstream_port: int, cores: Cores, problems: list[str]) -> Iterator[Server]:
        with _proxy(name, command, {**settings, "RECORD": "off"}, directory, upstream_port, cores, problems) as server:
            yield server

    return Kind(
        name=name,
        version=f"{_TWISTD}, RECORD=off: nginx and HAProxy record nothing either" if command is None else command,
        start=start,
    )


def recording(settings: Mapping[str, str]) -> Kind:
    """claude-proxy out of this checkout, which records all, into a new SQLite file or where `settings` say."""

    @contextlib.contextmanager
    def start(directory: Path, upstream_port: int, cores: Cores, problems: list[str]) -> Iterator[Server]:
        complete = {"DB_PATH": "requests.db", **settings, "RECORD": "full"}
        database = None if complete.get("DATABASE_URL") else directory / complete["DB_PATH"]
        with _proxy(RECORDING, None, complete, directory, upstream_port, cores, problems) as server:
            yield _with_recorder(server, database)

    return Kind(name=RECORDING, version=f"{_TWISTD}, RECORD=full", start=start)


def _with_recorder(server: Server, database: Path | None) -> Server:
    """Wait for the recorder, and count it apart from its proxy."""
    deadline = time.monotonic() + START_SECONDS
    while len(pids := process_tree(server.pids[0])) < 2 or (database is not None and not database.exists()):
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{server.name} has no recorder after {START_SECONDS:.0f} s{server.explain()}")
        time.sleep(0.02)
    server = replace(server, pids=tuple(pids[:1]), recorder=Recorder(pids=tuple(pids[1:]), database=database))
    server.settle()
    return server


@contextlib.contextmanager
def _proxy(
    name: str,
    command: str | None,
    settings: Mapping[str, str],
    directory: Path,
    upstream_port: int,
    cores: Cores,
    problems: list[str],
) -> Iterator[Server]:
    home = directory / f"home-{name}"
    home.mkdir()
    port = free_port()
    upstream_url = f"http://127.0.0.1:{upstream_port}"
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(HERE.parent),
        "PORT": str(port),
        "HOST": "127.0.0.1",
        "ANTHROPIC_FORWARD_URL": upstream_url,
        **settings,
    }
    if command is None:
        words = [str(_TWISTD), "-n", "--pidfile=", f"--logfile={directory / f'{name}.log'}", "claude-proxy"]
    else:
        words = [word.format(port=port, upstream_url=upstream_url) for word in shlex.split(command)]
        if not words:
            raise BenchmarkError("--proxy-command is empty")
    with _run(
        name,
        words,
        port=port,
        directory=directory,
        cores=cores,
        problems=problems,
        environment=environment,
    ) as server:
        yield server
