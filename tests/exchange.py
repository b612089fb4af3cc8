"""A client's bytes in, all that comes of them out, in memory; and beside that, what h11 reads in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import h11
from twisted.logger import LogEvent, globalLogPublisher

from twisted_proxy.web.channel import LINGER

from .memory import Answer, InMemoryProxy, UpstreamPeer, captured, read_answer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HEADER_TIMEOUT = 8.0
READ_TIMEOUT = 10.0
IDLE_TIMEOUT = 100.0


@contextmanager
def listening() -> Iterator[list[LogEvent]]:
    """What is logged meanwhile; for tests that hypothesis runs many times."""
    kept: list[LogEvent] = []
    keep: Any = kept.append
    globalLogPublisher.addObserver(keep)
    try:
        yield kept
    finally:
        globalLogPublisher.removeObserver(keep)


def answers_in(data: bytes, *, closed: bool, methods: Sequence[str] = ()) -> list[Answer]:
    """All answers of a connection, in order; the last one may be incomplete."""
    found: list[Answer] = []
    while data:
        method = methods[len(found)] if len(found) < len(methods) else "POST"
        answer = read_answer(data, method=method, closed=closed)
        found.append(answer)
        data = answer.rest
        assert answer.outcome == "complete" or not data
    return found


@attrs.frozen
class Forwarded:
    """One request as the upstream received it, read by h11."""

    method: bytes
    target: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes


def answer_ok(peer: UpstreamPeer) -> None:
    peer.send(OK)


class Upstreams:
    """
    Answers each request as soon as it is whole, whichever provider it went to.

    :param answer: does so.
    :ivar forwarded: what Anthropic received. :ivar forwarded_elsewhere: what others did.
    """

    def __init__(self, proxy: InMemoryProxy, answer: Callable[[UpstreamPeer], None] = answer_ok) -> None:
        self._proxy = proxy
        self._answer = answer
        self._readers: dict[UpstreamPeer, tuple[h11.Connection, int]] = {}
        self.forwarded: list[Forwarded] = []
        self.forwarded_elsewhere: list[Forwarded] = []

    def answer_all(self) -> None:
        while self._answer_some():
            pass

    def _answer_some(self) -> bool:
        others = [peer for endpoint in self._proxy.others.values() for peer in endpoint.peers]
        return any(self._answer_one(peer) for peer in (*self._proxy.endpoint.peers, *others))

    def _answer_one(self, peer: UpstreamPeer) -> bool:
        """Whether a peer had a request that was not answered."""
        fresh = (h11.Connection(h11.SERVER, max_incomplete_event_size=2**20), 0)
        reader, read = self._readers.setdefault(peer, fresh)
        written = peer.written
        if len(written) > read:
            reader.receive_data(written[read:])
            self._readers[peer] = (reader, len(written))
        if reader.their_state is not h11.IDLE or (request := reader.next_event()) is h11.NEED_DATA:
            return False
        assert isinstance(request, h11.Request)
        to_anthropic = peer in self._proxy.endpoint.peers
        (self.forwarded if to_anthropic else self.forwarded_elsewhere).append(self._rest(reader, request))
        # Whatever the answer is, h11 has to see one before it reads on.
        reader.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
        reader.send(h11.EndOfMessage())
        reader.start_next_cycle()
        self._answer(peer)
        return True

    def _rest(self, reader: h11.Connection, request: h11.Request) -> Forwarded:
        body = b""
        while not isinstance(event := reader.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Data)
            body += bytes(event.data)
        return Forwarded(request.method, request.target, list(request.headers), body)


@attrs.frozen
class Outcome:
    """
    Everything that a client's bytes have caused, up to the last timeout.

    :ivar statuses: of the answers, by themselves and then by the clock.
    :ivar bodies: of the answers, without what is new each time.
    :ivar access: the lines, sorted: of pipelined requests the last may be written first.
    """

    forwarded: list[Forwarded]
    statuses: list[int]
    late: list[int]
    bodies: list[bytes]
    access: list[str]


def exchange(pieces: Sequence[bytes], *, methods: Sequence[str] = (), **options: Any) -> Outcome:
    """Send these pieces, with an upstream that answers each request at once; then let the clock run."""
    with listening() as logs:
        proxy = InMemoryProxy(read_timeout=READ_TIMEOUT, idle_timeout=IDLE_TIMEOUT, **options)
        upstreams = Upstreams(proxy)
        client = proxy.client()
        for piece in pieces:
            client.send(piece)
            upstreams.answer_all()
        before = answers_in(client.written, closed=client.closed_by is not None, methods=methods)
        proxy.clock.advance(READ_TIMEOUT + 0.1)
        answers = answers_in(client.written, closed=client.closed_by is not None, methods=methods)
        assert all(answer.outcome == "complete" for answer in answers)
        assert proxy.in_flight == 0
        proxy.clock.advance(IDLE_TIMEOUT)
        proxy.clock.advance(LINGER)
        assert client.closed_by is not None
        proxy.pump()
        for peer in proxy.endpoint.peers:
            peer.finish()
        assert proxy.clock.getDelayedCalls() == []
        assert proxy.site.channels == set()
    access = sorted(
        " ".join(part for part in line.split(" ") if part.startswith(("method=", "path=", "status=", "verdict=")))
        for line in captured(logs, "access")
    )
    return Outcome(
        upstreams.forwarded,
        [answer.status for answer in before],
        [answer.status for answer in answers[len(before) :]],
        [stable(answer.body) for answer in answers],
        access,
    )


def stable(body: bytes) -> bytes:
    """
    A body without its request id, and without what an error says beside its type.

    What is wrong with a line may be told sooner, and so in other words, where it comes in pieces.
    """
    return re.sub(rb'"request_id":"\w+"', b"", re.sub(rb'"message":"[^"]*"', b"", body))


# Beside h11


def by_h11(raw: bytes) -> list[Forwarded] | None:
    """The requests as h11's server reads them; ``None`` where it refuses any, or waits for more."""
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    reader.receive_data(raw)
    found: list[Forwarded] = []
    try:
        while (request := reader.next_event()) is not h11.NEED_DATA:
            if not isinstance(request, h11.Request):
                return None
            body = b""
            while not isinstance(event := reader.next_event(), h11.EndOfMessage):
                if not isinstance(event, h11.Data):
                    return None
                body += bytes(event.data)
            found.append(Forwarded(request.method, request.target, list(request.headers), body))
            reader.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            reader.send(h11.EndOfMessage())
            if reader.our_state is not h11.DONE or reader.their_state is not h11.DONE:
                return found
            reader.start_next_cycle()
    except h11.RemoteProtocolError:
        return None
    return found if reader.trailing_data[0] == b"" else None


CHANGED = {b"host", b"content-length", b"transfer-encoding", b"accept-encoding", b"connection", b"anthropic-version"}
"""Fields of which the upstream gets others."""


def unchanged(request: Forwarded) -> Forwarded:
    fields = sorted(item for item in request.fields if item[0] not in CHANGED | {b"expect"})
    return attrs.evolve(request, fields=fields)


def begun_by_h11(raw: bytes) -> list[Forwarded]:
    """The requests that h11's server reads, up to the first that it refuses or waits for."""
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    # RFC 9112 §2.2 has a server ignore a blank line before each request; h11 does not.
    reader.receive_data(raw)
    found: list[Forwarded] = []
    try:
        while isinstance(request := next_request(reader), h11.Request):
            body = b""
            while not isinstance(event := reader.next_event(), h11.EndOfMessage):
                if not isinstance(event, h11.Data):
                    break
                body += bytes(event.data)
            if not isinstance(event, h11.EndOfMessage):
                break
            found.append(Forwarded(request.method, request.target, list(request.headers), body))
            if request.method == b"CONNECT":
                # A 200 would make a tunnel of it.
                break
            reader.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            reader.send(h11.EndOfMessage())
            if reader.our_state is not h11.DONE or reader.their_state is not h11.DONE:
                break
            reader.start_next_cycle()
    except h11.RemoteProtocolError:
        pass
    return found


def is_beginning(ours: Sequence[Forwarded], raw: bytes) -> bool:
    """Whether what was forwarded is what h11 reads first: never another request, never one more."""
    theirs = [request for request in begun_by_h11(raw) if re.match(rb"/(v1|api)([/?]|$)", request.target)]
    return [unchanged(request) for request in ours] == [unchanged(request) for request in theirs[: len(ours)]]


def next_request(reader: h11.Connection) -> object:
    """The next request, a blank line before it ignored."""
    rest = reader.trailing_data[0]
    if rest.startswith(b"\r\n"):
        del reader._receive_buffer._data[:2]
    return reader.next_event()
