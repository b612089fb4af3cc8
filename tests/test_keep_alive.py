"""Kept connections of a process that goes: whoever uses one again is answered, and told to use it no more."""

from __future__ import annotations

import socket

import pytest
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactorClock

from twisted_proxy.relay.transports import has_unread
from twisted_proxy.web import channel
from twisted_proxy.web.channel import LAST_CALL, LOOK_EVERY

from .memory import LAST_CHUNK, STREAM_HEAD, Client, InMemoryProxy, chunk, event
from .test_service import OK, Server, fired, server

__all__ = ["server"]


def answer_next(server: Server, client: Client, *, before: int = 0) -> str | None:
    """Ask, let the upstream answer, and give the ``Connection`` of the answer, which is whole."""
    client.request()
    server.endpoint.peers[-1].send(OK)
    answer = client.answers(before + 1)[before]
    assert (answer.status, answer.outcome) == (200, "complete")
    return answer.header("connection")


def test_idle_connections_live_through_the_drain(server: Server) -> None:
    """Nothing closes them while something is in flight; each is good for one answer more, which says so."""
    kept = [server.client() for _ in range(3)]
    for client in kept:
        assert answer_next(server, client) is None
    long, upstream = server.client(), None
    long.request()
    upstream = server.endpoint.peers[-1]
    upstream.send(STREAM_HEAD + chunk(event("ping")))
    stopped = fired(server.service.stopService())
    for seconds, client in enumerate(kept):
        server.reactor.advance(20)
        assert client.closed_by is None, seconds
        assert answer_next(server, client, before=1) == "close"
        assert client.closed_by == "fin"
    assert stopped == []
    upstream.send(LAST_CHUNK)
    assert long.answer().outcome == "complete"


def test_every_answer_that_begins_in_the_drain_is_the_last_on_its_connection(server: Server) -> None:
    """Also one whose request came before; and pages, errors and answers without a body."""
    early, page, wrong, head, holder = (server.client() for _ in range(5))
    holder.request()
    early.request()
    early_upstream = server.endpoint.peers[-1]
    server.service.stopService()
    early_upstream.send(OK)
    page.request("GET", "/health", body=None)
    wrong.request("GET", "/nope", body=None)
    head.request("HEAD", "/livez", body=None)
    for client, method in ((early, "POST"), (page, "GET"), (wrong, "GET"), (head, "HEAD")):
        answer = client.answer(method)
        assert (answer.outcome, answer.header("connection")) == ("complete", "close")
        assert client.closed_by == "fin"


def test_a_connection_whose_last_answer_did_not_say_so_is_answered_once_more(server: Server) -> None:
    """The stream that the drain waited for began before it: its client does not know, and asks again at once."""
    client = server.client()
    client.request()
    upstream = server.endpoint.peers[-1]
    upstream.send(STREAM_HEAD + chunk(event("ping")))
    stopped = fired(server.service.stopService())
    upstream.send(LAST_CHUNK)
    assert not server.listening
    assert client.closed_by is None
    server.reactor.advance(LAST_CALL * 0.9)
    assert client.closed_by is None
    client.request()
    server.endpoint.peers[-1].send(OK)
    again = client.answers(2)[1]
    assert (again.status, again.outcome, again.header("connection")) == (200, "complete", "close")
    assert client.closed_by == "fin"
    client.deliver_close()
    assert stopped == [None]


def test_a_connection_that_was_just_made_is_answered(server: Server) -> None:
    """It was accepted, so nobody else will answer it: its request may be on the way."""
    client = server.client()
    stopped = fired(server.service.stopService())
    assert not server.listening
    assert client.closed_by is None
    server.reactor.advance(LAST_CALL / 2)
    assert answer_next(server, client) == "close"
    client.deliver_close()
    assert stopped == [None]


def test_who_says_nothing_more_is_closed(server: Server) -> None:
    """A last call later at the latest."""
    used, new = server.client(), server.client()
    assert answer_next(server, used) is None
    server.reactor.advance(LAST_CALL / 2)
    stopped = fired(server.service.stopService())
    server.reactor.advance(LAST_CALL / 2)
    assert (used.closed_by, new.closed_by) == ("fin", "fin")
    for client in (used, new):
        client.deliver_close()
    assert stopped == [None]


def test_a_request_that_begins_in_the_last_call_may_take_its_time(server: Server) -> None:
    """Its head comes in two pieces, and its answer after minutes."""
    client = server.client()
    stopped = fired(server.service.stopService())
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-")
    server.reactor.advance(LAST_CALL * 5)
    client.send(b"Length: 2\r\n\r\n{}")
    server.reactor.advance(80)
    server.endpoint.peers[-1].send(OK)
    assert (client.answer().status, client.answer().header("connection")) == (200, "close")
    client.deliver_close()
    assert stopped == [None]


@pytest.mark.parametrize("how", ["deadline", "hurry"])
def test_a_drain_that_ends_before_its_time_calls_nobody(server: Server, how: str) -> None:
    """What is idle then is closed at once."""
    idle, holder = server.client(), server.client()
    holder.request()
    server.service.stopService()
    if how == "hurry":
        assert answer_next(server, server.client()) == "close"
        kept = idle
        server.service.hurry()
    else:
        server.reactor.advance(99.5)
        kept = server.client()
        server.reactor.advance(1)
    assert kept.closed_by == "fin"


def test_what_is_there_and_unread() -> None:
    """Bytes that the kernel has are seen, and stay; its end of the connection is none."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport = Connection(ours, Protocol(), MemoryReactorClock())
        transport.connected = True
        assert not has_unread(transport)
        theirs.sendall(b"POST")
        assert has_unread(transport)
        assert ours.recv(10) == b"POST"
        assert not has_unread(transport)
        theirs.close()
        assert not has_unread(transport)


def test_a_request_that_came_as_its_connection_timed_out_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timers come before what the kernel has: to close then would answer a request by a reset."""
    unread = True
    monkeypatch.setattr(channel, "has_unread", lambda transport: unread)
    proxy = InMemoryProxy(idle_timeout=100.0)
    asking, silent = proxy.client(), proxy.client()
    proxy.clock.advance(100)
    assert (asking.closed_by, silent.closed_by) == (None, None)
    asking.request("GET", "/livez", body=None)
    assert asking.answer("GET").status == 200
    unread = False
    proxy.clock.advance(LOOK_EVERY)
    assert (asking.closed_by, silent.closed_by) == (None, "fin")
