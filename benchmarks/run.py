"""Measure claude-proxy beside going direct, nginx and HAProxy.  See README.md in this directory."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import servers
from machine import BenchmarkError, Cores, Neighbours, describe, file_limit
from measure import MEASUREMENTS, Measurement, MeasurementError, Result, profiled, py_spy, run, warm_up
from report import LINES, TARGETS, Names, Verdict, cell, cost_of_recording, table

FULL_ROUNDS, QUICK_ROUNDS = 3, 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = ", ".join(f"{m.name}{' (only when named)' if m.optional else ''}" for m in MEASUREMENTS)
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__, epilog=f"measurements: {names}")
    parser.add_argument("--quick", action="store_true", help="one round of short windows, for a first look")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"(default {FULL_ROUNDS}; with --quick {QUICK_ROUNDS})")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only this measurement; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument(
        "--proxy-command",
        metavar="COMMAND",
        help="measure this one in claude-proxy's place; it is told where in PORT, HOST and "
        "ANTHROPIC_FORWARD_URL, and by {port} and {upstream_url} in COMMAND",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting for the proxy's environment",
    )
    parser.add_argument("--profile", action="store_true", help="profile the proxy with py-spy; the numbers then suffer")
    options = parser.parse_args(arguments)
    known = {m.name for m in MEASUREMENTS}
    options.only = [name for word in options.only for name in word.split(",")]
    if unknown := [name for name in options.only if name not in known]:
        parser.error(f"there is no measurement {unknown[0]!r}; there are: {names}")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds is 1 or more")
    if wrong := [word for word in options.set if "=" not in word]:
        parser.error(f"--set is NAME=VALUE, not {wrong[0]!r}")
    if options.profile and py_spy() is None:
        parser.error("--profile wants py-spy: pip install py-spy")
    return options


def _kinds(options: argparse.Namespace) -> list[servers.Kind]:
    settings = dict(word.split("=", 1) for word in options.set)
    subject = servers.proxy(options.proxy_command, settings)
    recording = servers.recording(settings) if options.proxy_command is None else None
    found = (servers.direct(), servers.nginx(), servers.haproxy(), subject, recording)
    return [kind for kind in found if kind is not None]


def _chosen(options: argparse.Namespace, notes: list[str]) -> list[Measurement]:
    chosen = [m for m in MEASUREMENTS if (m.name in options.only if options.only else not m.optional)]
    # a proxy has two connections a stream, and keeps some files of its own
    possible = [m for m in chosen if 2 * m.connections + 100 <= file_limit()]
    notes += [
        f"{m.name} is left out: the limit of open files is {file_limit()} (ulimit -Hn)"
        for m in chosen
        if m not in possible
    ]
    return possible


class Bench:
    """The rounds.  `results` and `failed` are by measurement and server; `problems` is for people."""

    def __init__(
        self,
        kinds: Sequence[servers.Kind],
        measurements: Sequence[Measurement],
        *,
        quick: bool,
        profile: bool,
    ):
        self.results: dict[tuple[str, str], list[Result]] = {}
        self.failed: set[tuple[str, str]] = set()
        self.problems: list[str] = []
        self.names = Names.of([kind.name for kind in kinds])
        self._kinds = kinds
        self._measurements = measurements
        self._quick = quick
        self._profile = profile
        self._cores = Cores.plan()

    def round(self, number: int, upstream: servers.Upstream) -> None:
        """Start the proxies anew, and put each load on each of them, one after the other."""
        for _, together in itertools.groupby(self._measurements, key=lambda measurement: measurement.crowds):
            self._measure_together(number, list(together), upstream)

    def _measure_together(self, number: int, measurements: Sequence[Measurement], upstream: servers.Upstream) -> None:
        with tempfile.TemporaryDirectory(prefix="bench-") as name, contextlib.ExitStack() as stack:
            running = {}
            for kind in self._kinds:
                port = upstream.server.port
                server = stack.enter_context(kind.start(Path(name), port, self._cores, self.problems))
                if server.pids:
                    self._warm_up(server, upstream)
                running[kind.name] = server
            for measurement in measurements:
                # a different one begins in each round, so that none is always the first or the last
                first = (number + self._measurements.index(measurement)) % len(self._kinds)
                for kind in [*self._kinds[first:], *self._kinds[:first]]:
                    _progress(f"round {number + 1}: {measurement.title}: {kind.name}")
                    self._measure(measurement, running[kind.name], upstream)

    def _warm_up(self, server: servers.Server, upstream: servers.Upstream) -> None:
        try:
            warm_up(server, upstream, self._cores)
        except (MeasurementError, OSError) as error:
            message = f"{server.name} fails before anything is measured: {error}{server.explain()}"
            raise BenchmarkError(message) from error

    def _measure(self, measurement: Measurement, server: servers.Server, upstream: servers.Upstream) -> None:
        key = (measurement.name, server.name)
        if key in self.failed:
            return
        try:
            with self._profiling(measurement, server):
                result = run(measurement, server, upstream, self._cores, quick=self._quick)
        except (MeasurementError, OSError) as error:
            # OSError: the process whose memory or CPU time is asked for has gone
            self.failed.add(key)
            self.problems.append(f"{measurement.name}, {server.name}: {error}{server.explain()}")
        else:
            self.results.setdefault(key, []).append(result)

    @contextlib.contextmanager
    def _profiling(self, measurement: Measurement, server: servers.Server) -> Iterator[None]:
        if not self._profile or server.name not in (self.names.subject, self.names.recording):
            yield
            return
        with profiled(server, servers.BUILD / f"profile-{server.name}-{measurement.name}.svg"):
            yield


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks.

    Returns 0 where all was measured, 1 where something failed or (with --check) a target is missed, 130
    where it was interrupted.
    """
    options = _options(arguments)
    if platform.system() != "Linux":
        print("the benchmarks need Linux: epoll, /proc, and cores to pin to", file=sys.stderr)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BenchmarkError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    began = time.monotonic()
    notes: list[str] = []
    measurements = _chosen(options, notes)
    kinds = _kinds(options)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else FULL_ROUNDS)
    machine = describe()
    servers.build()
    neighbours = Neighbours()
    cores = Cores.plan()
    bench = Bench(kinds, measurements, quick=options.quick, profile=options.profile)
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        servers.upstream(Path(name), cores) as upstream,
    ):
        for number in range(rounds):
            bench.round(number, upstream)
    _progress("")

    verdicts = [
        target.judge(bench.names, bench.results, bench.failed)
        for target in TARGETS
        if bench.names.recording is not None or not target.recording
    ]
    others = neighbours.cores_used()
    for key, value in machine.items():
        print(f"{key + ':':14}{value}")
    print(f"{'cores:':14}{cores.describe()}")
    for kind in kinds:
        print(f"{kind.name + ':':14}{kind.version}")
    print(
        f"{'run:':14}{rounds} round{'s' if rounds > 1 else ''} in {time.monotonic() - began:.0f} s; "
        f"others kept {others:.2f} cores busy meanwhile"
    )
    if options.profile:
        print(f"{'profiles:':14}{servers.BUILD}/profile-*.svg; the profiler has slowed down what it watched")
    for note in notes:
        print(f"{'note:':14}{note}")
    print()
    print(table(bench.names, bench.results, bench.failed))
    print()
    for verdict in verdicts:
        print(verdict)
    for problem in bench.problems:
        print(f"\nPROBLEM  {problem}")
    if options.json is not None:
        _write_json(options.json, machine, rounds, others, bench, verdicts)
    missed = any(verdict.met is False or (verdict.met is None and not options.only) for verdict in verdicts)
    return 1 if bench.problems or (options.check and missed) else 0


def _write_json(
    path: Path, machine: dict[str, str], rounds: int, others: float, bench: Bench, verdicts: Sequence[Verdict]
) -> None:
    lines = []
    for line in LINES:
        cells = {name: found for name in bench.names.all if (found := cell(line, name, bench.results)) is not None}
        if cells:
            times = cost_of_recording(line, bench.names, bench.results)
            lines.append(
                {
                    "name": line.name,
                    "label": line.label,
                    "unit": line.unit,
                    "kind": line.kind,
                    "values": {name: dataclasses.asdict(found) for name, found in cells.items()},
                    "recording_over_without": None if times is None else dataclasses.asdict(times),
                }
            )
    report = {
        "machine": machine,
        "rounds": rounds,
        "cores_used_by_others": others,
        "lines": lines,
        "targets": [dataclasses.asdict(verdict) for verdict in verdicts],
        "problems": bench.problems,
        "results": [
            {
                "measurement": measurement,
                "server": server,
                "rounds": [dataclasses.asdict(result) for result in results],
            }
            for (measurement, server), results in bench.results.items()
        ],
    }
    path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
