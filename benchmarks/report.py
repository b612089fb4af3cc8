"""From results to lines, a table, and targets that are met or not."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from measure import Recorded, Result, Times
from servers import RECORDING

# (measurement, server) -> the results of the rounds
Results = Mapping[tuple[str, str], Sequence[Result]]

ADDED, RATE, COST = "added", "rate", "cost"
NGINX, WITHOUT = "nginx", "without"
TOO_LITTLE = 0.01  # ms: what is added is not divided by less

IDLE_NOTE = (
    "* on its core for less than 90 % of the time: the load side, or a neighbour, is the limit; "
    "read the line of CPU below it"
)


@dataclass(frozen=True, kw_only=True)
class Names:
    """The servers: `subject` is compared with nginx, `recording` is the subject that records."""

    others: tuple[str, ...]
    subject: str
    recording: str | None

    @classmethod
    def of(cls, names: Sequence[str]) -> Names:
        """Of servers in their order: the subject comes last, but for the one that records."""
        recording = RECORDING if RECORDING in names else None
        *others, subject = (name for name in names if name != recording)
        return cls(others=tuple(others), subject=subject, recording=recording)

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.others, self.subject, *(() if self.recording is None else (self.recording,)))


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


def _of_ttfb(number: Callable[[Times], float]) -> Callable[[Result], float | None]:
    return lambda result: None if result.ttfb is None else number(result.ttfb)


def _of_delay(number: Callable[[Times], float]) -> Callable[[Result], float | None]:
    return lambda result: None if result.delay is None else number(result.delay)


def _of_beside(number: Callable[[Times], float]) -> Callable[[Result], float | None]:
    return lambda result: None if result.beside is None else number(result.beside)


def _of_recorded(number: Callable[[Recorded], float | None]) -> Callable[[Result], float | None]:
    return lambda result: None if result.recorded is None else number(result.recorded)


def _median(times: Times) -> float:
    return times.median


def _p99(times: Times) -> float:
    return times.p99


def _p999(times: Times) -> float:
    return times.p999


def _recorder_cpu_a_request(recorded: Recorded) -> float:
    return recorded.cpu_seconds * 1e6 / recorded.requests


def _stored_kilobytes_a_request(recorded: Recorded) -> float | None:
    return None if recorded.stored_bytes is None else recorded.stored_bytes / 1e3 / recorded.requests


def _late(recorded: Recorded) -> float:
    return recorded.late_seconds


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


def _cpu_of_the_core(result: Result) -> float | None:
    return None if result.cpu_seconds is None else result.cpu_seconds * 100 / result.seconds


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
            value=_of_delay(_median),
        ),
        Line(
            name=f"{measurement} delay p99",
            measurement=measurement,
            label=f"delay of an event, {what}, p99",
            unit="ms",
            kind=ADDED,
            digits=3,
            value=_of_delay(_p99),
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
            value=_of_ttfb(_p99 if p99 else _median),
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


def _recorded(measurement: str, one: str) -> list[Line]:
    kinds: tuple[tuple[str, str, str, int, Callable[[Recorded], float | None]], ...] = (
        ("recorder cpu", f"recorder: CPU {one}, until it is stored", "µs", 0, _recorder_cpu_a_request),
        ("stored", f"recorder: stored of {one}", "KB", 2, _stored_kilobytes_a_request),
        ("late", "recorder: all is stored, after the last answer", "s", 1, _late),
    )
    return [
        Line(
            name=f"{measurement} {name}",
            measurement=measurement,
            label=label,
            unit=unit,
            kind=COST,
            digits=digits,
            value=_of_recorded(value),
        )
        for name, label, unit, digits, value in kinds
    ]


def _lag(measurement: str, what: str) -> list[Line]:
    numbers = (("median", _median), ("p99", _p99), ("p99.9", _p999))
    return [
        *(
            Line(
                name=f"{measurement} {name}",
                measurement=measurement,
                label=f"delay of an event beside {what}, {name}",
                unit="ms",
                kind=COST,
                digits=2,
                value=_of_delay(number),
            )
            for name, number in numbers
        ),
        Line(
            name=f"{measurement} beside",
            measurement=measurement,
            label="time of such a request, median",
            unit="ms",
            kind=COST,
            digits=1,
            value=_of_beside(_median),
        ),
        Line(
            name=f"{measurement} cpu",
            measurement=measurement,
            label="CPU of both",
            unit="%",
            kind=COST,
            digits=1,
            value=_cpu_of_the_core,
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
    *_recorded("streams-2000", "a stream"),
    *_paced("streams-2000-fast", "2,000 streams, 20,000/s", cpu=True, memory=False),
    *_paced("streams-500-100k", "500 streams, 100 KB bodies", cpu=True, memory=True),
    *_throughput("bursts", "streams of 200 events", "a stream of 200 events", 16),
    *_recorded("bursts", "a stream of 200 events"),
    *_throughput("requests-1k", "requests, 1 KB bodies", "a request, 1 KB body", 32),
    *_recorded("requests-1k", "a request, 1 KB body"),
    *_throughput("requests-100k", "requests, 100 KB bodies", "a request, 100 KB body", 16),
    *_recorded("requests-100k", "a request, 100 KB body"),
    *_lag("lag", "20 requests of 2 MB/s"),
    *_recorded("lag", "a request, 2 MB body"),
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


def _in_rounds(line: Line, server: str, results: Results) -> list[float] | None:
    """The value of a line for a server, round by round; of an ADDED one, what it adds to "direct" in the same round."""
    values = [line.value(result) for result in results.get((line.measurement, server), ())]
    if line.kind == ADDED and server != "direct":
        base = [line.value(result) for result in results.get((line.measurement, "direct"), ())]
        if len(base) != len(values):
            return None
        pairs = zip(values, base, strict=True)
        values = [None if value is None or other is None else value - other for value, other in pairs]
    numbers = [value for value in values if value is not None]
    return numbers if numbers and len(numbers) == len(values) else None


def _is_at_limit(line: Line, server: str, results: Results) -> bool:
    busy = [
        (result.cpu_seconds + result.recorder_cpu_seconds) / result.seconds
        for result in results.get((line.measurement, server), ())
        if result.cpu_seconds is not None
    ]
    return line.kind != RATE or not busy or statistics.median(busy) > 0.9


def _summed_up(numbers: Sequence[float], *, at_limit: bool) -> Cell:
    median = statistics.median(numbers)
    spread = (max(numbers) - min(numbers)) / 2 / abs(median) if len(numbers) > 1 and median else None
    return Cell(value=median, spread=spread, at_limit=at_limit)


def cell(line: Line, server: str, results: Results) -> Cell | None:
    """The value of a line for a server."""
    numbers = _in_rounds(line, server, results)
    return None if numbers is None else _summed_up(numbers, at_limit=_is_at_limit(line, server, results))


def ratio(line: Line, own: Cell | None, base: Cell | None) -> Cell | None:
    """How many times `base` it is; None where there is no such value, or where that adds too little to divide by."""
    if own is None or base is None or base.value <= _least(line):
        return None
    return Cell(value=own.value / base.value, spread=None, at_limit=own.at_limit and base.at_limit)


def cost_of_recording(line: Line, names: Names, results: Results) -> Cell | None:
    """How many times the value without recording is the one with it, in the same round: the median over the rounds."""
    if names.recording is None:
        return None
    of = _in_rounds(line, names.recording, results)
    over = _in_rounds(line, names.subject, results)
    if of is None or over is None or len(of) != len(over) or min(over) <= _least(line):
        return None
    at_limit = all(_is_at_limit(line, server, results) for server in (names.subject, names.recording))
    return _summed_up([one / other for one, other in zip(of, over, strict=True)], at_limit=at_limit)


def _least(line: Line) -> float:
    return TOO_LITTLE if line.kind == ADDED else 0.0


def table(names: Names, results: Results, failed: set[tuple[str, str]]) -> str:
    """The lines that have been measured, aligned."""
    head = ["", "", *names.others, names.subject, "/ nginx", "noise"]
    if names.recording is not None:
        head += [names.recording, "/ without", "noise"]
    rows: list[list[str]] = []
    notes: set[str] = set()
    for line in LINES:
        if not any(
            (line.measurement, server) in results or (line.measurement, server) in failed for server in names.all
        ):
            continue
        cells = {server: cell(line, server, results) for server in names.all}

        shown = {server: _shown(line, server, cells[server], failed) for server in names.all}
        if any(text.endswith("*") for text in shown.values()):
            notes.add(IDLE_NOTE)
        own = cells[names.subject]
        row = [line.label, line.unit, *(shown[server] for server in (*names.others, names.subject))]
        row += [_times(ratio(line, own, cells.get(NGINX))), _noise(own)]
        if names.recording is not None:
            times = cost_of_recording(line, names, results)
            row += [shown[names.recording], _times(times), _noise(times)]
        rows.append(row)
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    aligned = []
    for row in [head, *rows]:
        left = [row[column].ljust(widths[column]) for column in (0, 1)]
        right = [row[column].rjust(widths[column]) for column in range(2, len(head))]
        aligned.append("  ".join([*left, *right]).rstrip())
    aligned.insert(1, "-" * max(len(row) for row in aligned))
    return "\n".join([*aligned, *sorted(notes)])


def _shown(line: Line, server: str, found: Cell | None, failed: set[tuple[str, str]]) -> str:
    if (line.measurement, server) in failed:
        return "failed"
    if found is None:
        return "–"
    sign = "+" if line.kind == ADDED and server != "direct" else ""
    return f"{found.value:{sign},.{line.digits}f}{'' if found.at_limit else '*'}"


def _times(found: Cell | None) -> str:
    return "–" if found is None else f"{found.value:.2f}"


def _noise(found: Cell | None) -> str:
    return "–" if found is None or found.spread is None else f"±{found.spread:.0%}"


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
    """A bound for a line's value; of a rate it is a lower one.

    `recording`: it is for the subject that records.  `beside`: the bound is for how many times nginx's value it is, or
    that of the subject without recording.  Where one of two rates was not the proxy's limit, the CPU time that
    one answer takes is compared in its place, with the recorder's: what a whole core would give.
    """

    text: str
    line: str
    limit: float
    recording: bool = False
    beside: str | None = None

    def judge(self, names: Names, results: Results, failed: set[tuple[str, str]]) -> Verdict:
        line = _line(self.line)
        server = names.recording if self.recording else names.subject
        if (line.measurement, server) in failed:
            return Verdict(target=self.text, met=False, detail="the measurement failed")
        own = None if server is None else cell(line, server, results)
        if server is None or own is None:
            return Verdict(target=self.text, met=None, detail="not measured")
        value, detail = own.value, f"{own.value:,.{line.digits}f} {line.unit}"
        if self.beside is not None:
            other = names.subject if self.beside == WITHOUT else self.beside
            base = cell(line, other, results)
            times = cost_of_recording(line, names, results) if self.beside == WITHOUT else ratio(line, own, base)
            if times is None or base is None:
                detail += f"; there is no {other} to compare it with"
                return Verdict(target=self.text, met=None, detail=detail)
            value = times.value
            detail = f"{value:.2f} ({detail}, {other} {base.value:,.{line.digits}f} {line.unit})"
            if not times.at_limit:
                value = _whole_cpu(line, other, results) / _whole_cpu(line, server, results)
                detail = f"{value:.2f} by CPU time; by rates that were not at their limit {detail}"
        met = value >= self.limit if line.kind == RATE else value <= self.limit
        return Verdict(target=self.text, met=met, detail=detail)


def _whole_cpu(line: Line, server: str, results: Results) -> float:
    """CPU seconds an answer, of a proxy and its recorder."""
    return statistics.median(
        ((result.cpu_seconds or 0.0) + result.recorder_cpu_seconds) / max(result.answers, 1)
        for result in results[line.measurement, server]
    )


_RATES = (
    ("requests-100k", "requests/s with 100 KB bodies"),
    ("requests-1k", "requests/s with 1 KB bodies"),
    ("bursts", "streams of 200 events a second"),
)

TARGETS = (
    Target(
        text="requests/s with 100 KB bodies are at least 0.1 of nginx's",
        line="requests-100k",
        limit=0.1,
        beside=NGINX,
    ),
    Target(
        text="time to first byte, median, 1 KB bodies: at most 2 ms added",
        line="ttfb-1k median",
        limit=2.0,
    ),
    Target(
        text="time to first byte, median, 100 KB bodies: at most 2 ms added",
        line="ttfb-100k median",
        limit=2.0,
    ),
    Target(
        text="CPU a paced event, 2,000 streams, 5,000 events/s: at most twice nginx's",
        line="streams-2000 cpu",
        limit=2.0,
        beside=NGINX,
    ),
    Target(
        text="CPU a paced event, 2,000 streams, 20,000 events/s: at most twice nginx's",
        line="streams-2000-fast cpu",
        limit=2.0,
        beside=NGINX,
    ),
    Target(
        text="memory an open stream, 2,000 streams: at most 40 KB",
        line="streams-2000 memory",
        limit=40.0,
    ),
    *(
        Target(
            text=f"recording: {what} are at least 0.6 of those without",
            line=line,
            limit=0.6,
            recording=True,
            beside=WITHOUT,
        )
        for line, what in _RATES
    ),
    Target(
        text="recording: delay of an event beside 20 requests of 2 MB a second, p99.9: below 20 ms",
        line="lag p99.9",
        limit=20.0,
        recording=True,
    ),
)
