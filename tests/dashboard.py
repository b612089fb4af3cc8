"""A proxy in memory whose dashboard reads a real store; and records to fill that with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_twisted import blockon
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests import corpus
from tests.memory import Answer, Client, InMemoryProxy, read_answer
from tests.store_contract import BEGIN, body, exchange, exchange_id
from twisted_proxy.record.exchange import Body, Mark, Record, Role
from twisted_proxy.record.sql import SqlStore
from twisted_proxy.record.sqlite import Limits, SqliteDriver
from twisted_proxy.wire.message import MessageFold

__all__ = ["BEGIN", "exchange_id"]

reactor: Any = installed_reactor

LOCAL = (("Host", "localhost:3001"),)


async def directly(function: Any, *arguments: Any) -> Any:
    """In place of a thread."""
    return function(*arguments)


def sqlite(path: Path) -> SqlStore:
    return SqlStore(SqliteDriver(reactor, path, Limits(watch=0.01)))


class Dashboard:
    """
    A proxy whose dashboard reads a store of its own.

    :param recorded: whether there is anything to read. :param options: as of `InMemoryProxy`.
    :ivar headers: of requests that say no others.
    """

    def __init__(self, directory: Path, *, recorded: bool = True, **options: Any) -> None:
        self.store = sqlite(directory / "records.db")
        blockon(Deferred.fromCoroutine(self.store.open()))
        make = (lambda: sqlite(directory / "records.db")) if recorded else None
        self.proxy = InMemoryProxy(store=make, compute=directly, **options)
        self.headers: dict[str, str] = dict(LOCAL)

    def close(self) -> None:
        blockon(Deferred.fromCoroutine(self.proxy.service.dashboards.close()))
        blockon(Deferred.fromCoroutine(self.store.close()))

    def send(
        self, method: str, target: str, headers: dict[str, str] | None = None, content: bytes | None = None
    ) -> Client:
        client = self.proxy.client()
        lines = [f"{method} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in (self.headers if headers is None else headers).items()]
        if content is not None:
            lines.append(f"Content-Length: {len(content)}")
        client.send("\r\n".join([*lines, "", ""]).encode("latin-1") + (content or b""))
        return client

    async def ask(
        self,
        target: str,
        method: str = "GET",
        *,
        headers: dict[str, str] | None = None,
        content: bytes | None = None,
        value: object = None,
    ) -> Answer:
        """An answer, whole. ``value`` is sent as JSON."""
        if value is not None:
            content = json.dumps(value).encode()
            headers = {"Content-Type": "application/json", **(self.headers if headers is None else headers)}
        client = self.send(method, target, headers, content)
        deadline = reactor.seconds() + 20
        while True:
            answer = read_answer(client.written, method=method, closed=client.closed_by is not None)
            if answer.outcome == "complete" or client.closed_by is not None:
                return answer
            assert reactor.seconds() < deadline, f"{method} {target}: no answer, but {client.written[:500]!r}"
            await deferLater(reactor, 0.002)

    async def get(self, target: str, status: int = 200) -> Any:
        """The JSON of an answer."""
        answer = await self.ask(target)
        assert answer.status == status, (target, answer.status, answer.body[:500])
        assert len(answer.body) < 1024 * 1024, target
        return answer.json

    async def csrf(self) -> dict[str, str]:
        """The fields of a request that changes something."""
        viewer = await self.get("/api/viewer")
        return {**self.headers, "X-CSRF-Token": viewer["csrfToken"]}


@contextmanager
def dashboard(directory: Path, **options: Any) -> Iterator[Dashboard]:
    made = Dashboard(directory, **options)
    try:
        yield made
    finally:
        made.close()


# Records


def request_body(*texts: str, model: str = "claude-opus-5", system: str = "Be brief.") -> bytes:
    """A request whose messages alternate between user and assistant."""
    messages = [
        {"role": ("user", "assistant")[index % 2], "content": [{"type": "text", "text": text}]}
        for index, text in enumerate(texts)
    ]
    return json.dumps(
        {"model": model, "max_tokens": 64, "stream": True, "system": system, "messages": messages},
        separators=(",", ":"),
    ).encode()


STREAM = b"".join(
    [
        corpus.start(),
        corpus.block(0, corpus.TEXT_BLOCK),
        corpus.text(0, "Hello", " there"),
        corpus.stop(0),
        corpus.end(),
    ]
)


def answered(stream: bytes = STREAM) -> tuple[Body, Body]:
    """A streamed answer, an event each millisecond from the tenth on; and the message that it tells."""
    fold = MessageFold()
    fold.feed(stream)
    message = fold.result()
    ends, end = [], 0
    for part in stream.split(b"\n\n")[:-1]:
        end += len(part) + 2
        ends.append(end)
    marks = tuple(Mark(end=end, us=10_000 + 1000 * index) for index, end in enumerate(ends))
    return (
        body(stream, Role.ANSWER, content_type="text/event-stream", marks=marks),
        body(getattr(message, "message", b"{}"), Role.MESSAGE, content_type="application/json"),
    )


def full(number: int, *texts: str, text: str | None = None, **fields: Any) -> Record:
    """A record of a message that was streamed, with its bodies."""
    asked = request_body(*(texts or (f"Question {number}",)))
    known: dict[str, Any] = {
        "status": 200,
        "model": "claude-opus-5",
        "stream": True,
        "session": "session-1",
        "prompt": "prompt-1",
        "conversation": exchange_id(number),
        "messages": max(1, len(texts)),
        "body_read_us": 100,
        "connected_us": 200,
        "headers_us": 9_000,
        "first_event_us": 10_000,
        "last_byte_us": 1_010_000,
        "request_bytes": len(asked),
        "response_bytes": len(STREAM),
        "input_tokens": 10,
        "output_tokens": 20,
        "cache_read_tokens": 0,
        "cache_write_5m_tokens": 5000,
        "cost_nanousd": 1_000_000,
        "request_headers": (("content-type", "application/json"), ("anthropic-version", "2023-06-01")),
        "response_headers": (("content-type", "text/event-stream"),),
    }
    return Record(
        exchange=exchange(number, **{**known, **fields}),
        bodies=(body(asked, content_type="application/json"), *answered()),
        text=text,
    )
