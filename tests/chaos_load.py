"""
The clients of a chaos run: what they ask, how they behave, and what they saw of each answer.

What must come is known to the byte from the request alone (`tests.standin_api` answers the same to the same), so each
client can tell by itself whether what came is that, a beginning of it, or something else.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import attrs
import h11

from tests.load import ECHO, gone
from tests.sockets import Answer, Client, play, request_bytes
from tests.standin_api import Request, answer
from tests.standin_plan import parse_scenario

PATIENCE: Final = 30.0
"""Seconds without a byte after which a request hangs. Nothing that happens here takes half as long."""
SLOW: Final = 0.01
"""Seconds that a slow reader rests after each piece."""
REQUEST_ID: Final = "x-proxy-request-id"
WORDS: Final = [f"{a}{b}{c}" for a in "bdfklmnprst" for b in "aeiou" for c in ("n", "st", "rk", "ll", "mp")]


@attrs.frozen(kw_only=True)
class Ask:
    """
    A request.

    :ivar name: like no other's; it stands in the body, and as the ``User-Agent`` in the record.
    :ivar scenario: what the upstream is to play.
    :ivar size: bytes of its prompt.
    :ivar faulty: whether the scenario is one that a visible error may follow from.
    :ivar leaves: when the client goes: ``connected``, ``head``, ``upload``, ``waiting`` (for the answer), ``answer``.
    :ivar how: it goes, ``fin`` or ``rst``.
    :ivar read: of the answer before it goes, bytes.
    """

    name: str
    scenario: str
    stream: bool
    size: int
    faulty: bool = False
    slow_upload: bool = False
    slow_reader: bool = False
    leaves: str = ""
    how: str = "fin"
    read: int = 0

    @property
    def body(self) -> bytes:
        """The same each time."""
        words = random.Random(self.name)
        block = " ".join(words.choices(WORDS, k=400)) + " "
        text = f"{self.name}: " + (block * (self.size // len(block) + 1))[: self.size]
        messages = [{"role": "user", "content": text}]
        value = {"model": "claude-opus-4-7", "max_tokens": 100, "stream": self.stream, "messages": messages}
        return json.dumps(value).encode()

    def expected(self) -> tuple[int, bytes]:
        """The status and the body that must come, where nothing happens to them."""
        return self.answers(self.body)

    def answers(self, body: bytes) -> tuple[int, bytes]:
        """What the upstream answers to another body in this scenario."""
        request = Request(method="POST", target="/v1/messages", headers=(play(self.scenario),), body=body)
        found = answer(request, parse_scenario(self.scenario))
        return found.status, b"".join(found.pieces)


def invent(dice: random.Random, name: str, *, faults: bool = True) -> Ask:
    """
    A request as the dice have it.

    :param faults: whether the upstream may misbehave, and the client go.
    """
    largest = dice.choices((8_000, 100_000, 1_000_000, 4_000_000), (74, 20, 5, 1))[0]
    size = dice.randrange(1000, largest)
    stream = dice.random() < 0.7
    kind = dice.choices(("events", "echo", "bytes", "fault"), (60, 8, 12, 20 if faults else 0))[0]
    events = dice.choice((8, 30, 100))
    seconds = dice.choice((0.0, 0.3, 1.0, 3.0))
    paced = f"auto?count={events}&delta=6&interval={seconds / events:.4f}"
    slow_reader = False
    match kind:
        case "events":
            scenario = paced if stream else f"{paced}&delay={dice.random() / 2:.3f}"
        case "echo":
            # A stream is asked for, so that nobody asks for one in its stead: the answer tells what arrived.
            scenario, stream = ECHO, True
        case "bytes":
            framing = dice.choice(("length", "chunked"))
            scenario, stream = f"bytes?size={dice.randrange(1000, 600_000)}&framing={framing}", True
            slow_reader = dice.random() < 0.5
        case _:
            scenario = dice.choice(FAULTS).format(
                paced=paced,
                at=dice.randrange(1, 4000),
                event=dice.randrange(events),
                how=dice.choice(("fin", "rst")),
                status=dice.choice((400, 429, 500, 529)),
            )
            # Where the end of the connection is the end of the body, only an event stream shows that it was cut.
            stream = stream or scenario.startswith("bytes") or "framing=close" in scenario
    leaves = dice.choice(LEAVING) if faults and dice.random() < 0.12 else ""
    return Ask(
        name=name,
        scenario=scenario,
        stream=stream,
        size=size,
        faulty=kind == "fault",
        slow_upload=dice.random() < 0.06,
        slow_reader=slow_reader,
        leaves=leaves,
        how=dice.choice(("fin", "rst")),
        read=dice.randrange(1, 20_000) if leaves == "answer" else 0,
    )


FAULTS: Final = (
    "{paced}&at={at}&how={how}",
    "{paced}&at={at}&how={how}&framing=close",
    "{paced}&wire_at={at}&how={how}",
    "{paced}&error_at={event}",
    "{paced}&silence=60@{event}",
    "{paced}&delay=60",
    "{paced}&after=drop",
    "error?status={status}",
    "bytes?size=300000&at={at}00&how={how}",
    "bytes?size=300000&framing=chunked&at={at}00&how={how}",
)
LEAVING: Final = ("connected", "head", "upload", "waiting", "waiting", "answer", "answer", "answer")


@attrs.frozen(kw_only=True)
class Attempt:
    """
    What a client saw of one request.

    :ivar slot: the port that it asked.
    :ivar kept: whether on a connection that had served another request.
    :ivar began: and ``ended``, of `time.monotonic`.
    :ivar ending: ``whole``; ``cut``: the answer's framing, or a reset, shows that there should be more; ``nothing``:
        not even a status came; ``refused``: no connection; ``left``: by the client; ``hang``: nothing came for
        `PATIENCE`; ``nonsense``: no HTTP.
    :ivar equal: all of what must come has come, and no more.
    :ivar wrong: what of it could never be right, in words.
    :ivar length: and ``digest``: of the body, as it came.
    """

    ask: Ask
    number: int
    slot: int
    kept: bool
    began: float
    ended: float
    ending: str
    status: int = 0
    id: str | None = None
    equal: bool = False
    wrong: str = ""
    length: int = 0
    digest: str = ""
    error: str = ""
    """The type of the error that was told, and by whom: ``upstream``, ``proxy``, ``balancer``."""

    @property
    def name(self) -> str:
        """What the ``User-Agent`` said."""
        return f"chaos/{self.ask.name}.{self.number}"

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.id}) at :{self.slot}, {'kept' if self.kept else 'new'} connection: {self.ending}, "
            f"status {self.status}, {self.length} bytes{f', {self.error}' if self.error else ''}"
            f"{f', {self.wrong}' if self.wrong else ''}; {self.ask}"
        )


def seen(ask: Ask, got: Answer) -> dict[str, Any]:
    """What an answer is beside what it should be: fields of an `Attempt`."""
    fields: dict[str, Any] = {
        "status": got.status,
        "id": got.header(REQUEST_ID),
        "length": len(got.body),
        "digest": hashlib.sha256(got.body).hexdigest(),
        "ending": "whole" if got.whole else "cut" if got.status else "nothing",
    }
    if not got.status:
        return fields
    status, expected = ask.expected()
    if got.status == status and got.whole:
        fields["equal"] = is_expected(ask, got.body, expected)
    if fields.get("equal"):
        if status >= 400:
            fields["error"] = f"{told(got.body)} by the upstream"
        return fields
    if got.status >= 400:
        error = told(got.body)
        # A balancer's own has no id: it has met no proxy.
        by = "balancer" if got.header(REQUEST_ID) is None else "proxy"
        fields["error"] = f"{error} by the {by}"
        if got.whole and by == "proxy" and not error:
            fields["wrong"] = f"an error without its envelope: {got.body[:200]!r}"
    elif got.status != status:
        fields["wrong"] = f"status {got.status} instead of {status}"
    elif got.whole:
        fields["wrong"] = f"looks complete, and is not what must come: {len(got.body)} of {len(expected)} bytes"
    elif not is_beginning(got.body, expected):
        fields["wrong"] = f"the beginning of something else: {got.body[-200:]!r}"
    return fields


def is_expected(ask: Ask, body: bytes, expected: bytes) -> bool:
    """Whether a whole body is the one that must come. Of a message that came as JSON, its value."""
    with suppress(ValueError):
        return _is_expected(ask, body, expected)
    return False


def _is_expected(ask: Ask, body: bytes, expected: bytes) -> bool:
    if ask.scenario == ECHO:
        return bool(json.loads(body)["body_sha256"] == hashlib.sha256(ask.body).hexdigest())
    if body == expected:
        return True
    if ask.stream or not body.strip().startswith(b"{"):
        return False
    return bool(json.loads(body) == json.loads(expected))


FAREWELL: Final = re.compile(rb"event: error\ndata: (\{.*\})\n\n", re.DOTALL)


def is_beginning(body: bytes, expected: bytes) -> bool:
    """Whether a body that was cut is a beginning of what must come, with words about the cut behind it or without."""
    if expected.startswith(body) or not body.strip():
        return True
    start = body.rfind(b"event: error\n")
    farewell = FAREWELL.fullmatch(body[start:]) if start >= 0 else None
    return farewell is not None and expected.startswith(body[:start]) and bool(told(farewell[1]))


def told(body: bytes) -> str:
    """The type of error in Anthropic's envelope; empty: there is none."""
    try:
        value = json.loads(body)
        return str(value["error"]["type"]) if value["type"] == "error" and value["error"]["message"] else ""
    except (ValueError, KeyError, TypeError):
        return ""


class Hung(Exception):
    """It goes on and on."""


class Person:
    """
    One client: a connection at a time, and a request at a time on it.

    :param port: where to ask, looked up for each connection.
    :param keep: whether a connection is used again.
    """

    def __init__(self, port: Callable[[], int], *, keep: bool, tell: Callable[[Attempt], None]) -> None:
        self._port = port
        self._keep = keep
        self._tell = tell
        self._connection: Client | None = None

    def ask(self, ask: Ask) -> None:
        """Ask until there is an outcome: every client asks again where an idle connection closed while it wrote."""
        number = 0
        while True:
            attempt = self._attempt(ask, number)
            self._tell(attempt)
            if not (attempt.kept and attempt.ending == "nothing"):
                return
            number += 1

    def leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _attempt(self, ask: Ask, number: int) -> Attempt:
        began = time.monotonic()
        if self._connection is not None and gone(self._connection):
            self.leave()
        kept = self._connection is not None
        port = 0
        try:
            if self._connection is None:
                port = self._port()
                self._connection = Client(port, limit=PATIENCE, receive_buffer=4096 if ask.slow_reader else None)
            client = self._connection
            port = client.socket.getpeername()[1]
            fields = _exchange(client, ask, f"chaos/{ask.name}.{number}", began)
        except (TimeoutError, Hung):
            fields = {"ending": "hang"}
        except ConnectionRefusedError:
            fields = {"ending": "refused"}
        except OSError as error:
            fields = {"ending": "nothing", "error": repr(error)}
        except h11.RemoteProtocolError as error:
            fields = {"ending": "nonsense", "wrong": f"no HTTP: {error}"}
        if not (self._keep and fields["ending"] == "whole" and not fields.pop("closes", False)):
            self.leave()
        fields.pop("closes", None)
        return Attempt(ask=ask, number=number, slot=port, kept=kept, began=began, ended=time.monotonic(), **fields)


def _exchange(client: Client, ask: Ask, agent: str, began: float) -> dict[str, Any]:
    """Send it and see what comes, or go: fields of an `Attempt`, and ``closes``: whether the connection is to close."""
    body = ask.body
    fields = [play(ask.scenario), ("Content-Type", "application/json"), ("User-Agent", agent)]
    sent = request_bytes("POST", "/v1/messages", fields, body)
    end = {"connected": 0, "head": 100, "upload": len(sent) - len(body) // 2}.get(ask.leaves, len(sent))
    try:
        for piece in _pieces(sent[:end], slow=ask.slow_upload):
            client.send(piece)
    except (BrokenPipeError, ConnectionResetError):
        if ask.leaves:
            return {"ending": "left"}
        # There may be an answer that did not wait for all of it.
    if ask.leaves:
        return {"ending": "left", "id": _left(client, ask)}
    pieces = 0

    def pace(_size: int) -> None:
        nonlocal pieces
        pieces += 1
        if time.monotonic() - began > 2 * PATIENCE:
            raise Hung
        if ask.slow_reader and pieces % 8 == 0:
            time.sleep(SLOW)

    got = client.answer(pace=pace)
    return {**seen(ask, got), "closes": got.header("connection") == "close"}


def _pieces(data: bytes, *, slow: bool) -> Iterator[bytes]:
    if not slow:
        yield data
        return
    size = max(100, len(data) // 20)
    for start in range(0, len(data), size):
        yield data[start : start + size]
        time.sleep(SLOW * 5)


def _left(client: Client, ask: Ask) -> str | None:
    """Read as much as it wanted to, if so much comes, and go. The id of the answer, if it was seen."""
    got = b""
    client.socket.settimeout(1.0 if ask.leaves == "answer" else 0.1)
    try:
        while len(got) < ask.read and (more := client.receive()):
            got += more
        if ask.leaves == "waiting":
            client.receive(1)
        client.leave(ask.how)
    except OSError:
        # It waited for long enough, or the other side was faster.
        client.close()
    found = re.search(rb"(?i)\r\nx-proxy-request-id: *(\S+)\r\n", got)
    return found[1].decode() if found else None


class Load:
    """
    Clients that ask without much of a pause. A context manager: leaving it waits for the end of what has begun.

    :param port: where to ask.
    :param pause: seconds that a client rests, at most.
    :ivar attempts: all that are over. :ivar broken: what went wrong with the clients themselves.
    """

    def __init__(
        self,
        port: Callable[[], int],
        *,
        clients: int,
        seed: int,
        pause: float = 0.4,
        invent: Callable[[random.Random, str], Ask] = invent,
    ) -> None:
        self._port = port
        self._seed = seed
        self._pause = pause
        self._invent = invent
        self._over = threading.Event()
        self.attempts: list[Attempt] = []
        self.broken: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        deadline = time.monotonic() + 3 * PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        alive = sum(thread.is_alive() for thread in self._threads)
        if alive:
            self.broken.append(f"{alive} clients never got to the end of their request")

    def _run(self, number: int) -> None:
        dice = random.Random(f"{self._seed} client {number}")
        person = Person(self._port, keep=number % 2 == 0, tell=self.attempts.append)
        asked = 0
        try:
            while not self._over.is_set():
                person.ask(self._invent(dice, f"{self._seed}-{number}-{asked}"))
                asked += 1
                self._over.wait(dice.random() * self._pause)
        except Exception:  # noqa: BLE001 - it is told
            self.broken.append(f"client {number}, request {asked}: {traceback.format_exc()}")
        finally:
            person.leave()
