"""What the stand-in upstream does with one request: a scenario, the answer it stands for, and the steps that send it.

A scenario is a line of text, ``NAME?parameter=value&parameter=value``. It comes in the header ``x-standin``, or as the
``model`` of a JSON body with ``standin-`` before it, so that an SDK can ask for one. `Scenario` lists the parameters.

The steps are exact: every byte that goes out stands in a `Send`. No I/O, no clock.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

import attrs

Headers = tuple[tuple[str, str], ...]


class ScenarioError(ValueError):
    """A scenario that nobody can play; the message says which word of it is wrong."""


ENDS: Final = ("", "fin", "rst", "last", "hang", "notify")
FRAMINGS: Final = ("", "chunked", "length", "close")
AFTERS: Final = ("keep", "close", "drop", "eat")
EOLS: Final = {"lf": "\n", "crlf": "\r\n", "cr": "\r"}


def marks(text: str) -> tuple[str, int]:
    """``value@index``; without ``@index`` the index is 0."""
    value, _, index = text.partition("@")
    return value, int(index or 0)


@attrs.frozen(kw_only=True)
class Scenario:
    """One request's treatment. Times are seconds; an index counts the pieces of a body (events, or blocks) from 0."""

    name: str = attrs.field(default="auto")
    """What is answered: ``auto`` (by the path), ``message`` (a message, wherever asked), ``error``, ``bytes``,
    ``echo``, ``empty``, ``redirect``. ``cut`` and ``slow`` say ``auto`` for the reader's sake."""

    @name.validator
    def _known(self, _attribute: Any, value: str) -> None:
        if value not in ("auto", "cut", "slow", "message", "error", "bytes", "echo", "empty", "redirect"):
            raise ScenarioError(f"no scenario is named {value!r}")

    key: str = ""
    """Requests with the same key are counted together, for `times`."""
    times: int = 0
    """The scenario holds for the first so many requests of its key; later ones get the plain answer. 0: for all."""

    # the answer
    status: int = 0
    type: str = ""
    message: str = "The stand-in was asked to fail."
    body: str = ""
    """The literal body of an ``error``, instead of the envelope."""
    retry_after: str = ""
    retry_after_ms: str = ""
    should_retry: str = ""
    say: str = "text"
    """The named message that is told: see `tests.standin_messages.blocks`, or ``corpus/NAME`` or ``failure/NAME`` of
    `tests.corpus`."""
    whole: bool = False
    """The message comes as JSON even where a stream was asked for."""
    count: int = 3
    delta: int = 24
    """Characters in each delta of a stream."""
    size: int = 1000
    """Length of a ``bytes`` answer."""
    location: str = ""
    cookie: str = ""
    header: tuple[str, ...] = ()
    """More headers, ``Name:value``; may be repeated."""
    gzip: bool = False

    # the dialect of an event stream
    eol: str = attrs.field(default="lf", validator=attrs.validators.in_(EOLS))
    comments: bool = False
    ids: bool = False
    retry: int = 0
    unterminated: bool = False
    huge: int = 0
    """An event more, whose data line holds so many bytes."""
    error_at: int = -1
    """In place of the event with this index: ``event: error``, and the clean end of the body."""

    # the transfer
    interim: tuple[int, ...] = ()
    framing: str = attrs.field(default="", validator=attrs.validators.in_(FRAMINGS))
    length: int = -1
    """The value of ``Content-Length``, instead of the true one."""
    at: int = -1
    """The body is cut before the byte with this offset."""
    wire_at: int = -1
    """The whole answer, its head included, is cut before the byte with this offset."""
    how: str = attrs.field(default="", validator=attrs.validators.in_(ENDS))
    """What follows the cut, or the body if there is no cut: ``fin`` (over TLS without close_notify), ``rst``, ``hang``
    (nothing, until the peer goes), ``notify`` (as ``fin``, with close_notify over TLS), ``last`` (a clean end). The
    chunk that ends a chunked body is sent with ``last`` only."""
    delay: float = 0
    """Before the first byte."""
    header_gate: str = ""
    """Before the first byte, until the control plane releases the gate of this name."""
    whole_gate: str = ""
    """The same, unless the answer is a stream: what comes whole begins when all of it is there."""
    interval: float = 0
    """Between two pieces."""
    silence: tuple[str, ...] = ()
    """``SECONDS@INDEX``, before the piece with that index; may be repeated."""
    gate: tuple[str, ...] = ()
    """``NAME@INDEX``, before the piece with that index; may be repeated."""
    dribble: int = 0
    """Bytes in each write."""
    dribble_interval: float = 0.001
    junk: str = ""
    """Bytes on the wire after the end of the answer."""
    after: str = attrs.field(default="keep", validator=attrs.validators.in_(AFTERS))
    """Of the connection, after a whole answer: ``keep``, ``close`` (announced), ``drop`` (closed without a word),
    ``eat`` (the next request on it is read, and the connection closed without an answer)."""

    # the request; these are read from the header x-standin only, as they act before the body is in
    early: bool = False
    """The answer goes out when the head is in, the connection closes, and what comes of the body is thrown away."""
    read_gate: str = ""
    """The body is not read before this gate is released."""


def parse_scenario(line: str) -> Scenario:
    """A scenario line as a value. Raises `ScenarioError` for an unknown name, parameter or value."""
    name, _, query = line.partition("?")
    fields = {field.name: field for field in attrs.fields(Scenario)}
    values: dict[str, Any] = {}
    for parameter, text in parse_qsl(query, keep_blank_values=True):
        if parameter not in fields or parameter == "name":
            raise ScenarioError(f"no parameter is named {parameter!r}")
        try:
            match fields[parameter].type:
                case "int":
                    values[parameter] = int(text)
                case "float":
                    values[parameter] = float(text)
                case "bool":
                    values[parameter] = {"1": True, "0": False, "": True}[text]
                case "tuple[int, ...]":
                    values[parameter] = tuple(int(each) for each in text.split(","))
                case "tuple[str, ...]":
                    values[parameter] = (*values.get(parameter, ()), text)
                case _:
                    values[parameter] = text
        except (ValueError, KeyError) as error:
            raise ScenarioError(f"{parameter}={text!r} is not a value of {parameter}") from error
    try:
        return Scenario(name=name or "auto", **values)
    except ScenarioError:
        raise
    except ValueError as error:
        raise ScenarioError(str(error)) from error


@attrs.frozen(kw_only=True)
class Answer:
    """A response before it is framed: the body's pieces are what a real upstream would write at once."""

    status: int = 200
    headers: Headers = ()
    pieces: Iterable[bytes] = ()
    stream: bool = False
    """Whether the length is unknown at the start: such a body is chunked unless the scenario says otherwise."""


@attrs.frozen
class Send:
    """Write these bytes, and wait until the kernel has taken them."""

    data: bytes


@attrs.frozen
class Pause:
    """Wait so many seconds."""

    seconds: float


@attrs.frozen
class Gate:
    """Wait until the control plane releases this gate."""

    name: str


@attrs.frozen
class End:
    """The connection's fate: ``keep``, ``eat``, ``fin``, ``notify``, ``rst`` or ``hang``."""

    how: str


Step = Send | Pause | Gate | End


def reason(status: int) -> str:
    """The reason phrase of a status; Anthropic's own 529 has none in the registry."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Overloaded" if status == 529 else "Unknown"


def head(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    """A status line and headers on the wire."""
    lines = [f"HTTP/1.1 {status} {reason(status)}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def cut_pieces(pieces: Iterable[bytes], at: int) -> Iterator[bytes]:
    """The first `at` bytes of `pieces`."""
    for piece in pieces:
        if at <= 0:
            return
        yield piece[:at]
        at -= len(piece)


def at_index(marked: Iterable[str]) -> dict[int, list[str]]:
    """``value@index`` words, by index."""
    found: dict[int, list[str]] = {}
    for each in marked:
        value, index = marks(each)
        found.setdefault(index, []).append(value)
    return found


def body_steps(scenario: Scenario, pieces: Iterable[bytes], *, chunked: bool) -> Iterator[Step]:
    """The pieces as they go out, with what happens between them."""
    silences, gates = at_index(scenario.silence), at_index(scenario.gate)
    for index, piece in enumerate(pieces):
        if index and scenario.interval:
            yield Pause(scenario.interval)
        for seconds in silences.get(index, ()):
            yield Pause(float(seconds))
        for name in gates.get(index, ()):
            yield Gate(name)
        if chunked and piece:
            yield Send(b"%x\r\n%s\r\n" % (len(piece), piece))
        elif piece:
            yield Send(piece)


def dribbled(steps: Iterable[Step], size: int, interval: float) -> Iterator[Step]:
    """The same bytes in writes of `size`, `interval` seconds apart."""
    for step in steps:
        if not isinstance(step, Send):
            yield step
            continue
        for start in range(0, len(step.data), size):
            yield Send(step.data[start : start + size])
            yield Pause(interval)


def cut_steps(steps: Iterable[Step], at: int) -> Iterator[Step]:
    """The steps until `at` bytes have gone out."""
    for step in steps:
        if isinstance(step, End):
            return
        if isinstance(step, Send):
            if at <= len(step.data):
                yield Send(step.data[:at])
                return
            at -= len(step.data)
        yield step


def plan(scenario: Scenario, answer: Answer, *, method: str = "POST", close: bool = False) -> Iterator[Step]:
    """The steps that play `scenario` with `answer`. `close`: the request asked for the connection to be closed."""
    bodiless = method == "HEAD" or answer.status in (204, 304)
    headers = list(answer.headers)
    pieces = answer.pieces
    if scenario.gzip:
        pieces = [gzip.compress(b"".join(pieces), mtime=0)]
        headers.append(("Content-Encoding", "gzip"))
    framing = scenario.framing or ("chunked" if answer.stream else "length")
    after = "close" if close or framing == "close" or scenario.early else scenario.after
    if answer.status == 204:
        pass
    elif framing == "length":
        pieces = pieces if isinstance(pieces, (list, tuple)) else list(pieces)
        length = scenario.length if scenario.length >= 0 else sum(len(piece) for piece in pieces)
        headers.append(("Content-Length", str(length)))
    elif framing == "chunked":
        headers.append(("Transfer-Encoding", "chunked"))
    if after == "close":
        headers.append(("Connection", "close"))

    def whole() -> Iterator[Step]:
        if scenario.delay:
            yield Pause(scenario.delay)
        if scenario.header_gate:
            yield Gate(scenario.header_gate)
        if scenario.whole_gate and not answer.stream:
            yield Gate(scenario.whole_gate)
        for status in scenario.interim:
            yield Send(head(status, (("Link", "</early>; rel=preload"),) if status == 103 else ()))
        yield Send(head(answer.status, headers))
        if not bodiless:
            kept = pieces if scenario.at < 0 else cut_pieces(pieces, scenario.at)
            yield from body_steps(scenario, kept, chunked=framing == "chunked")
            if scenario.how not in ("", "last") and scenario.wire_at < 0:
                yield End(scenario.how)
                return
            if framing == "chunked":
                yield Send(b"0\r\n\r\n")
        if scenario.junk:
            yield Send(scenario.junk.encode("latin-1"))
        yield End({"keep": "keep", "eat": "eat", "close": "notify", "drop": "notify"}[after])

    steps: Iterator[Step] = whole()
    if scenario.wire_at >= 0:
        steps = iter([*cut_steps(steps, scenario.wire_at), End(scenario.how or "fin")])
    if scenario.dribble:
        steps = dribbled(steps, scenario.dribble, scenario.dribble_interval)
    return steps
