"""
What finished requests leave to the garbage collector: nothing.

A collection stops every stream while it looks through all that is in memory. What is freed when its last reference
goes brings none about, however many requests come and go.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests import test_routes as routes
from tests.memory import LAST_CHUNK, STREAM_HEAD, Client, InMemoryProxy, UpstreamPeer, chunk
from tests.test_recording import STREAM, FakeKeeper

ASKED = json.dumps({**routes.ASKED, "model": "claude-test"}).encode()
ASKED_OPENAI = json.dumps({**routes.ASKED, "stream": True}).encode()
KEY = [("X-Api-Key", routes.CLAUDE_KEY)]

OK = b"HTTP/1.1 200"

Act = Callable[[InMemoryProxy], Client]


def _answered(proxy: InMemoryProxy) -> Client:
    client, upstream = proxy.asked(body=ASKED)
    routes.respond(upstream, {})
    return client


def _pieces(upstream: UpstreamPeer, *pieces: bytes) -> None:
    upstream.send(STREAM_HEAD)
    for piece in pieces:
        upstream.send(chunk(piece))


def _streamed(proxy: InMemoryProxy) -> Client:
    client, upstream = proxy.asked()
    _pieces(upstream, STREAM)
    upstream.send(LAST_CHUNK)
    return client


def _connection_closed(proxy: InMemoryProxy) -> Client:
    client = _streamed(proxy)
    proxy.upstream.finish()
    return client


def _held_at_its_end(proxy: InMemoryProxy) -> Client:
    client, upstream = proxy.asked()
    _pieces(upstream, STREAM)
    client.hold()
    upstream.send(LAST_CHUNK)
    client.go_on()
    return client


def _cut(proxy: InMemoryProxy) -> Client:
    client, upstream = proxy.asked()
    _pieces(upstream, STREAM)
    upstream.finish()
    return client


def _silent(proxy: InMemoryProxy) -> Client:
    client, upstream = proxy.asked()
    _pieces(upstream, STREAM)
    proxy.clock.advance(proxy.config.anthropic.idle_timeout)
    return client


def _left(proxy: InMemoryProxy) -> Client:
    client, upstream = proxy.asked()
    _pieces(upstream, STREAM)
    return client


def _left_in_its_body(proxy: InMemoryProxy) -> Client:
    client = proxy.client()
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: proxy.test\r\nContent-Length: 9\r\n\r\n{")
    return client


def _folded(proxy: InMemoryProxy) -> Client:
    client, upstream = proxy.asked(body=ASKED)
    _pieces(upstream, STREAM)
    upstream.send(LAST_CHUNK)
    return client


def _translated(proxy: InMemoryProxy) -> Client:
    client = routes.ask(proxy)
    routes.respond(routes.openai(proxy), routes.completion(content="Hello"))
    return client


def _translated_stream(proxy: InMemoryProxy) -> Client:
    client = routes.ask(proxy, stream=True)
    _pieces(routes.openai(proxy), *routes.pieces({"content": "Hello"}))
    routes.openai(proxy).send(LAST_CHUNK)
    return client


def _translation_left(proxy: InMemoryProxy) -> Client:
    client = routes.ask(proxy, stream=True)
    _pieces(routes.openai(proxy), routes.pieces({"content": "Hello"})[0])
    return client


def _chunks(proxy: InMemoryProxy) -> Client:
    client, upstream = proxy.asked(
        target="/v1/chat/completions", body=ASKED_OPENAI.replace(b"gpt", b"claude"), headers=KEY
    )
    _pieces(upstream, STREAM)
    upstream.send(LAST_CHUNK)
    return client


@pytest.mark.parametrize(
    ("act", "begins", "options"),
    [
        (_answered, OK, {}),
        (_streamed, OK, {}),
        (_connection_closed, OK, {}),
        (_held_at_its_end, OK, {}),
        (_cut, OK, {}),
        (_silent, OK, {}),
        (_left, OK, {}),
        (_left_in_its_body, b"", {}),
        (_folded, OK, {"anthropic_demote_nonstreaming": True}),
        (_translated, OK, {}),
        (_translated_stream, OK, {}),
        (_translation_left, OK, {}),
        (_chunks, OK, {}),
    ],
)
def test_nothing_is_left(act: Act, begins: bytes, options: dict[str, Any]) -> None:
    """Of a request and its client's connection: what they were made of is gone when they are."""
    keeper = FakeKeeper()
    proxy = routes.routed(keeper=keeper, **options)

    def once() -> None:
        client = act(proxy)
        assert client.written[:12] == begins
        client.deliver_close()
        client.leave()
        # What a reactor's transport forgets when it is closed.
        client.producer = None
        del client.channel
        for endpoint in (proxy.endpoint, *proxy.others.values()):
            for peer in endpoint.peers:
                peer.deliver_close()
                peer.clear()
            del endpoint.peers[:-1]
        keeper.taps.clear()
        proxy.clock.advance(0)

    # What is made at the first use stays: connections, caches.
    once()
    once()
    gc.collect()
    gc.disable()
    try:
        once()
        assert gc.collect() == 0
    finally:
        gc.enable()
    assert proxy.in_flight == 0
