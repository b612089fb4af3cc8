"""Clients that ask without a pause while something happens to what they ask, and account for every answer.

Each client is a thread with a mix of requests that it goes round and round. What the stand-in answers to a request is
known beforehand, byte for byte: an answer that is not that is a `Failure`, and so is none.
"""

from __future__ import annotations

import hashlib
import select
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from types import TracebackType
from typing import Final

import attrs

from tests.sockets import Answer, Client, play, prompt
from tests.test_process_drain import sent_body

PATIENCE: Final = 30.0
"""Seconds that a client waits for the next bytes of an answer."""
ECHO: Final = "echo"
"""The scenario whose answer tells what arrived."""
THOUGHT: Final = 0.1
"""
Seconds before an answer begins, which no real upstream is faster than.

Go's HTTP/1 server closes a request's body when the answer begins. Where Traefik has sent the body, but not seen its end
yet, it takes that for an error and cuts the answer (golang/go issue 40747): on a busy machine, one within milliseconds.
"""


@attrs.frozen(kw_only=True)
class Ask:
    """A request: what the stand-in is to play, and what is sent."""

    scenario: str
    stream: bool = False
    size: int = 0
    """Bytes that the prompt has at least."""
    delay: float = THOUGHT
    """Seconds before the answer begins."""

    @property
    def played(self) -> str:
        """The scenario, with the delay."""
        return f"{self.scenario}{'&' if '?' in self.scenario else '?'}delay={self.delay}"

    @property
    def body(self) -> bytes:
        return prompt("x" * self.size or "Hello", stream=self.stream)

    def wrong(self, answer: Answer) -> str:
        """What is wrong with its answer; empty: nothing."""
        if not answer.status:
            return f"no answer: the connection ended by {answer.ending}"
        if answer.status != 200:
            return f"status {answer.status}: {answer.body[:300]!r}"
        if self.scenario == ECHO:
            # It tells what arrived, headers of balancers included.
            arrived = answer.json()["body_sha256"] if answer.whole else None
            return "" if arrived == hashlib.sha256(self.body).hexdigest() else f"another request arrived: {answer}"
        expected = _expected(self.played, self.body)
        if not answer.whole:
            return f"truncated by {answer.ending} after {len(answer.body)} of {len(expected)} bytes"
        if answer.body != expected:
            return f"another body: {len(answer.body)} of {len(expected)} bytes, {answer.body[:100]!r}"
        return ""


@cache
def _expected(scenario: str, body: bytes) -> bytes:
    return sent_body(scenario, body)


def stream(events: int, seconds: float) -> Ask:
    """An event stream of about so many events that takes about so long."""
    return Ask(scenario=f"auto?count={max(1, events - 6)}&delta=6&interval={seconds / events:.4f}", stream=True)


@attrs.frozen(kw_only=True)
class Failure:
    """A request that was not answered as it should."""

    client: int
    asked: int
    """How many requests this client had sent before."""
    ask: Ask
    kept: bool
    """Whether it went out on a connection that had been used before."""
    began: float
    ended: float
    """Seconds since the clients began."""
    what: str

    def __str__(self) -> str:
        where = "a kept connection" if self.kept else "a new connection"
        when = f"{self.began:.2f} to {self.ended:.2f} s"
        return f"client {self.client}, request {self.asked} on {where}, {when}: {self.what} ({self.ask.played})"


class Clients:
    """
    A context manager: they begin when it is entered, and come to the end of their last request when it is left.

    :param port: which port to ask, looked up for each connection.
    :param mixes: what each client asks, in turn.
    :param keep: whether a client keeps its connection as long as the answers let it.
    :param pause: seconds that a client rests between two requests.
    :ivar failures: so far. :ivar answered: requests that were answered as they should.
    :ivar longest: seconds that the longest answer took.
    """

    def __init__(
        self,
        port: Callable[[], int],
        mixes: Sequence[Sequence[Ask]],
        *,
        keep: Callable[[int], bool],
        pause: float = 0.0,
    ) -> None:
        self._port = port
        self._mixes = mixes
        self._keep = keep
        self._pause = pause
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self.failures: list[Failure] = []
        self.answered = 0
        self.longest = 0.0
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(len(mixes))
        ]

    def __enter__(self) -> Clients:
        for mix in self._mixes:
            for ask in mix:
                # Worked out before anybody waits for it.
                _expected(ask.played, ask.body)
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE * 2)
        assert not any(thread.is_alive() for thread in self._threads), "a client never got to the end of its request"

    def __str__(self) -> str:
        """What came of it, for an error that a person reads."""
        return f"{len(self.failures)} of {len(self.failures) + self.answered} requests failed\n" + "\n".join(
            map(str, self.failures[:20])
        )

    def _run(self, number: int) -> None:
        mix, keep = self._mixes[number], self._keep(number)
        client: Client | None = None
        asked = 0
        try:
            while not self._over.is_set():
                ask = mix[asked % len(mix)]
                if client is not None and gone(client):
                    client.close()
                    client = None
                kept = client is not None
                began = time.monotonic() - self._began
                what, answer = "", None
                try:
                    client = client or Client(self._port(), limit=PATIENCE)
                    headers = [play(ask.played), ("Content-Type", "application/json")]
                    answer = client.call("POST", "/v1/messages", headers, ask.body)
                    what = ask.wrong(answer)
                except OSError as problem:
                    what = f"{type(problem).__name__}: {problem}"
                ended = time.monotonic() - self._began
                with self._lock:
                    if what:
                        self.failures.append(
                            Failure(client=number, asked=asked, ask=ask, kept=kept, began=began, ended=ended, what=what)
                        )
                    else:
                        self.answered += 1
                        self.longest = max(self.longest, ended - began)
                asked += 1
                leaves = answer is None or not answer.whole or answer.header("connection") == "close"
                if client is not None and (leaves or not keep):
                    client.close()
                    client = None
                self._over.wait(self._pause)
        finally:
            if client is not None:
                client.close()


def gone(client: Client) -> bool:
    """Whether the other side has closed an idle connection: every client's pool looks before it uses one."""
    return bool(select.select([client.socket], [], [], 0)[0])
