"""From results to lines, a table, and targets that are met or not."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from measure import Result

# (measurement, server) -> the results of the rounds
Results = Mapping[tuple[str, str], Sequence[Result]]

ADDED, RATE, COST = "added", "rate", "cost"

IDLE_NOTE = (
    "* on its core for less than 90 % of the time: the load side, or a neighbour, is the limit; "
    "read the line of CPU below it"
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the table.

    ADDED: a time of which a proxy is charged what it adds to going direct.  RATE: more is better.  COST: less
    is.
    """

    name: str
    measurement: str
    label: str
    unit: str
    kind: str
    digits: int
    value: Callable[[Result], float | None]


def _ttfb(result: Result) -> float | None:
    return result.ttfb.median if result.ttfb else None


def _ttfb_p99(result: Result) -> float | None:
    return result.ttfb.p99 if result.ttfb else None


def _delay(result: Result) -> float | None:
    return result.delay.median if result.delay else None


def _delay_p99(result: Result) -> float | None:
    return result.delay.p99 if result.delay else None


def _answers_a_second(result: Result) -> float | None:
    return result.answers / result.seconds


def _cpu_an_event(result: Result) -> float | None:
    return None if result.cpu_seconds is None else result.cpu_seconds * 1e6 / result.events


def _cpu_an_answer(result: Result) -> float | None:
    return None if result.cpu_seconds is None or not result.answers else result.cpu_seconds * 1e6 / result.answers


def _upstream_connections(result: Result) -> float | None:
    return result.upstream_connections


def _kilobytes_a_stream(result: Result) -> float | None:
    return None if result.bytes_a_stream is None else result.bytes_a_stream / 1e3


def _leave(result: Result) -> float | None:
    return None if result.leave_seconds is None else result.leave_seconds * 1e3


def _paced(measurement: str, what: str, *, cpu: bool, memory: bool) -> list[Line]:
    lines = [
        Line(
            name=f"{measurement} delay",
            measurement=measurement,
            label=f"delay of an event, {what}, median",
            unit="ms",
            kind=ADDED,
            digits=3,
            value=_delay,
        ),
        Line(
            name=f"{measurement} delay p99",
            measurement=measurement,
            label=f"delay of an event, {what}, p99",
            unit="ms",
            kind=ADDED,
            digits=3,
            value=_delay_p99,
        ),
    ]
    if cpu:
        lines.append(
            Line(
                name=f"{measurement} cpu",
                measurement=measurement,
                label=f"CPU an event, {what}",
                unit="µs",
                kind=COST,
                digits=1,
                value=_cpu_an_event,
            )
        )
    if memory:
        lines.append(
            Line(
                name=f"{measurement} memory",
                measurement=measurement,
                label=f"memory an open stream, {what}",
                unit="KB",
                kind=COST,
                digits=1,
                value=_kilobytes_a_stream,
            )
        )
    return lines


def _sequential(measurement: str, what: str) -> list[Line]:
    return [
        Line(
            name=f"{measurement} {'p99' if p99 else 'median'}",
            measurement=measurement,
            label=f"time to first byte, {what}, {'p99' if p99 else 'median'}",
            unit="ms",
            kind=ADDED,
            digits=3,
            value=_ttfb_p99 if p99 else _ttfb,
        )
        for p99 in (False, True)
    ]


def _throughput(measurement: str, label: str, one: str, clients: int) -> list[Line]:
    return [
        Line(
            name=measurement,
            measurement=measurement,
            label=label,
            unit="/s",
            kind=RATE,
            digits=0,
            value=_answers_a_second,
        ),
        Line(
            name=f"{measurement} cpu",
            measurement=measurement,
            label=f"CPU {one}",
            unit="µs",
            kind=COST,
            digits=0,
            value=_cpu_an_answer,
        ),
        Line(
            name=f"{measurement} connections",
            measurement=measurement,
            label=f"upstream connections opened, {clients} clients",
            unit="",
            kind=COST,
            digits=0,
            value=_upstream_connections,
        ),
    ]


LINES = (
    *_sequential("ttfb-1k", "1 KB bodies"),
    *_sequential("ttfb-100k", "100 KB bodies"),
    *_paced("stream-1", "1 stream, 400/s", cpu=False, memory=False),
    *_paced("streams-100", "100 streams, 5,000/s", cpu=True, memory=False),
    *_paced("streams-2000", "2,000 streams, 5,000/s", cpu=True, memory=True),
    Line(
        name="streams-2000 leave",
        measurement="streams-2000",
        label="2,000 clients leave at once: the last stream is closed after",
        unit="ms",
        kind=COST,
        digits=0,
        value=_leave,
    ),
    *_paced("streams-2000-fast", "2,000 streams, 20,000/s", cpu=True, memory=False),
    *_paced("streams-500-100k", "500 streams, 100 KB bodies", cpu=True, memory=True),
    *_throughput("bursts", "streams of 200 events", "a stream of 200 events", 16),
    *_throughput("requests-1k", "requests, 1 KB bodies", "a request, 1 KB body", 32),
    *_throughput("requests-100k", "requests, 100 KB bodies", "a request, 100 KB body", 16),
)


def _line(name: str) -> Line:
    return next(line for line in LINES if line.name == name)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The median over the rounds.

    `spread` is half the range over it, as a fraction; None with a single round.  `at_limit` is False where a
    rate was not limited by the proxy, which was on its core for less than 90 % of the time.
    """

    value: float
    spread: float | None
    at_limit: bool = True


def cell(line: Line, server: str, results: Results) -> Cell | None:
    """The value of a line for a server; of an ADDED one, what it adds to "direct" in the same round."""
    own = results.get((line.measurement, server), ())
    values = [line.value(result) for result in own]
    if line.kind == ADDED and server != "direct":
        base = [line.value(result) for result in results.get((line.measurement, "direct"), ())]
        if len(base) != len(values):
            return None
        pairs = zip(values, base, strict=True)
        values = [None if value is None or other is None else value - other for value, other in pairs]
    numbers = [value for value in values if value is not None]
    if not numbers or len(numbers) != len(values):
        return None
    median = statistics.median(numbers)
    spread = (max(numbers) - min(numbers)) / 2 / abs(median) if len(numbers) > 1 and median else None
    busy = [result.cpu_seconds / result.seconds for result in own if result.cpu_seconds is not None]
    at_limit = line.kind != RATE or not busy or statistics.median(busy) > 0.9
    return Cell(value=median, spread=spread, at_limit=at_limit)


def ratio(line: Line, cell_of_server: Cell | None, cell_of_nginx: Cell | None) -> float | None:
    """How many times nginx's value; None where there is none, or where nginx adds too little to divide by."""
    if cell_of_server is None or cell_of_nginx is None:
        return None
    too_little = 0.01 if line.kind == ADDED else 0.0
    return cell_of_server.value / cell_of_nginx.value if cell_of_nginx.value > too_little else None


def table(servers: Sequence[str], subject: str, results: Results, failed: set[tuple[str, str]]) -> str:
    """The lines that have been measured, aligned; `subject` is the server that is compared with nginx."""
    head = ["", "", *servers, "/ nginx", "noise"]
    rows: list[list[str]] = []
    notes: set[str] = set()
    for line in LINES:
        if not any((line.measurement, server) in results or (line.measurement, server) in failed for server in servers):
            continue
        cells = {server: cell(line, server, results) for server in servers}
        row = [line.label, line.unit]
        for server in servers:
            found = cells[server]
            if (line.measurement, server) in failed:
                row.append("failed")
            elif found is None:
                row.append("–")
            else:
                sign = "+" if line.kind == ADDED and server != "direct" else ""
                text = f"{found.value:{sign},.{line.digits}f}"
                if not found.at_limit:
                    text += "*"
                    notes.add(IDLE_NOTE)
                row.append(text)
        times = ratio(line, cells.get(subject), cells.get("nginx"))
        spread = found.spread if (found := cells.get(subject)) is not None else None
        row += ["–" if times is None else f"{times:.2f}", "–" if spread is None else f"±{spread:.0%}"]
        rows.append(row)
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    aligned = []
    for row in [head, *rows]:
        left = [row[column].ljust(widths[column]) for column in (0, 1)]
        right = [row[column].rjust(widths[column]) for column in range(2, len(head))]
        aligned.append("  ".join([*left, *right]).rstrip())
    aligned.insert(1, "-" * max(len(row) for row in aligned))
    return "\n".join([*aligned, *sorted(notes)])


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A target and whether it is met; `met` is None where it was not measured."""

    target: str
    met: bool | None
    detail: str

    def __str__(self) -> str:
        word = {True: "PASS", False: "FAIL", None: "----"}[self.met]
        return f"{word}  {self.target}: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A bound for a line's value; `beside_nginx`: for how many times nginx's value it is.

    Of a rate the bound is a lower one.  Where one of the two rates was not the proxy's limit, the CPU time that
    one answer takes is compared in its place: what a whole core of it would give.
    """

    text: str
    line: str
    limit: float
    beside_nginx: bool

    def judge(self, subject: str, results: Results, failed: set[tuple[str, str]]) -> Verdict:
        line = _line(self.line)
        if (line.measurement, subject) in failed:
            return Verdict(target=self.text, met=False, detail="the measurement failed")
        own = cell(line, subject, results)
        if own is None:
            return Verdict(target=self.text, met=None, detail="not measured")
        value, detail = own.value, f"{own.value:,.{line.digits}f} {line.unit}"
        if self.beside_nginx:
            nginx = cell(line, "nginx", results)
            times = ratio(line, own, nginx)
            if times is None or nginx is None:
                detail += "; there is no nginx to compare it with"
                return Verdict(target=self.text, met=None, detail=detail)
            value, detail = times, f"{times:.2f} ({detail}, nginx {nginx.value:,.{line.digits}f} {line.unit})"
            if line.kind == RATE and not (own.at_limit and nginx.at_limit):
                cost = _line(f"{self.line} cpu")
                times = ratio(cost, cell(cost, subject, results), cell(cost, "nginx", results))
                value = 0.0 if times is None else 1 / times
                detail = f"{value:.2f} by CPU time; by rates that were not at their limit {detail}"
        met = value >= self.limit if line.kind == RATE else value <= self.limit
        return Verdict(target=self.text, met=met, detail=detail)


TARGETS = (
    Target(
        text="requests/s with 100 KB bodies are at least 0.1 of nginx's",
        line="requests-100k",
        limit=0.1,
        beside_nginx=True,
    ),
    Target(
        text="time to first byte, median, 1 KB bodies: at most 2 ms added",
        line="ttfb-1k median",
        limit=2.0,
        beside_nginx=False,
    ),
    Target(
        text="time to first byte, median, 100 KB bodies: at most 2 ms added",
        line="ttfb-100k median",
        limit=2.0,
        beside_nginx=False,
    ),
    Target(
        text="CPU a paced event, 2,000 streams, 5,000 events/s: at most twice nginx's",
        line="streams-2000 cpu",
        limit=2.0,
        beside_nginx=True,
    ),
    Target(
        text="CPU a paced event, 2,000 streams, 20,000 events/s: at most twice nginx's",
        line="streams-2000-fast cpu",
        limit=2.0,
        beside_nginx=True,
    ),
    Target(
        text="memory an open stream, 2,000 streams: at most 40 KB",
        line="streams-2000 memory",
        limit=40.0,
        beside_nginx=False,
    ),
)
