"""A recorded request, sent again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.web.http_headers import Headers

from tests import corpus
from tests.dashboard import Dashboard, dashboard, full, request_body
from tests.memory import LAST_CHUNK, STREAM_HEAD, chunk
from tests.store_contract import awaited, exchange_id, record

SECRET = "sk-ant-0123456789abcdef0123"


async def replay(board: Dashboard, number: int = 1, **value: Any) -> Any:
    headers = await board.csrf()
    return await board.ask(f"/api/requests/{exchange_id(number)}/replay", "POST", value=value, headers=headers)


@awaited
async def test_goes_through_the_proxy(board: Dashboard, logs: list[dict[str, Any]]) -> None:
    """Body and headers as they were, with the credential of whoever asks; counted, recorded, and seen to its end."""
    seen: list[tuple[str, Headers]] = []
    live = board.proxy.service.dashboards.hub._live
    live._record = lambda flight, fields, peer: seen.append((flight.request_id, fields.copy()))
    await board.store.write([full(1, query="beta=true")])
    answer = await replay(board, apiKey=SECRET)
    assert answer.status == 202
    upstream = board.proxy.upstream
    head, _, sent = upstream.written.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/messages?beta=true HTTP/1.1")
    assert sent == request_body("Question 1")
    assert f"x-api-key: {SECRET}".encode() in head.lower()
    assert b"anthropic-version: 2023-06-01" in head.lower()
    assert [each[0] for each in seen] == [answer.json["requestId"]]
    assert board.proxy.in_flight == 1
    upstream.send(STREAM_HEAD + chunk(corpus.start() + corpus.end()) + LAST_CHUNK)
    board.proxy.clock.advance(1)
    assert board.proxy.in_flight == 0
    assert SECRET not in repr(logs)


@awaited
async def test_another_model(board: Dashboard) -> None:
    """Its name is replaced, and nothing else."""
    await board.store.write([full(1)])
    assert (await replay(board, bearer="token", model="claude-haiku-5")).status == 202
    head, _, sent = board.proxy.upstream.written.partition(b"\r\n\r\n")
    assert sent == request_body("Question 1", model="claude-haiku-5")
    assert b"authorization: bearer token" in head.lower()


@pytest.mark.parametrize(
    "value",
    [{"apiKey": "a\r\nx-evil: 1"}, {"bearer": "a b"}, {"apiKey": 7}, {"model": "\n"}, {"model": ""}, {"bearer": ""}],
)
@awaited
async def test_nothing_smuggled(board: Dashboard, value: dict[str, Any]) -> None:
    """What could be read as more than a credential, or a name, is refused; nothing is sent."""
    await board.store.write([full(1)])
    assert (await replay(board, **value)).status == 400
    assert board.proxy.endpoint.attempts == 0


@awaited
async def test_cannot_be_sent_again(board: Dashboard) -> None:
    """What is not kept whole: words say what is missing."""
    await board.store.write([record(1, request_bytes=5), full(2, query="key=***")])
    assert (await replay(board)).status == 404
    assert (await replay(board, 2)).status == 400
    assert (await replay(board, 3)).status == 404
    assert board.proxy.endpoint.attempts == 0


@awaited
async def test_while_draining(board: Dashboard) -> None:
    """503: nothing is begun any more."""
    await board.store.write([full(1)])
    headers = await board.csrf()
    board.proxy.service.drain.begin()
    answer = await board.ask(f"/api/requests/{exchange_id(1)}/replay", "POST", value={}, headers=headers)
    assert answer.status == 503


@awaited
async def test_refused_by_the_proxy(tmp_path: Path, small: Dashboard) -> None:
    """It is refused as any client's would be, and that is what is recorded of it."""
    await small.store.write([full(1)])
    assert (await replay(small)).status == 202
    assert small.proxy.endpoint.attempts == 0
    assert small.proxy.in_flight == 0


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Dashboard]:
    with dashboard(tmp_path, max_body_bytes=10, max_message_bytes=10) as made:
        yield made
