"""Recorded requests as the API gives them."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard import STREAM, Dashboard, dashboard, full, request_body
from tests.store_contract import BEGIN, SECOND, awaited, body, exchange_id, record
from twisted_proxy.record.exchange import Link, Role
from twisted_proxy.web.api.calls import parse_time, show_time


class TestList:
    """``GET /api/requests``."""

    @awaited
    async def test_items_have_the_go_programs_names(self, board: Dashboard) -> None:
        """And those of what that program did not know."""
        routed: dict[str, Any] = {
            "routed_model": "gpt-5",
            "user_agent": "cli/2",
            "link": Link.CONTINUES,
            "parent": exchange_id(1),
        }
        await board.store.write([full(2, **routed)])
        listed = await board.get("/api/requests")
        assert (listed["total"], listed["totalIsAtLeast"], listed["nextCursor"]) == (1, False, None)
        (item,) = listed["requests"]
        expected = {
            "requestId": exchange_id(2),
            "timestamp": show_time(BEGIN + 2 * SECOND),
            "method": "POST",
            "endpoint": "/v1/messages",
            "model": "gpt-5",
            "originalModel": "claude-opus-5",
            "routedModel": "gpt-5",
            "userAgent": "cli/2",
            "contentType": "application/json",
            "response": {
                "statusCode": 200,
                "responseTime": 1010,
                "isStreaming": True,
                "completedAt": show_time(BEGIN + 2 * SECOND + 1_010_000),
            },
            "link": "continues",
            "ttftMs": 10.0,
            "tokensPerSecond": 20.0,
            "costNanousd": 1_000_000,
        }
        assert expected.items() <= item.items()
        assert "body" not in item

    @awaited
    async def test_in_flight(self, board: Dashboard) -> None:
        """A request that is in flight has no response yet."""
        await board.store.write([record(1, verdict=None)])
        (item,) = (await board.get("/api/requests?inFlight=true"))["requests"]
        assert (item["verdict"], "response" in item, "model" in item) == (None, False, False)
        assert (await board.get("/api/requests?inFlight=false"))["requests"] == []

    @awaited
    async def test_pages(self, board: Dashboard) -> None:
        """By number, ten each, as the Go program has it; or by cursor. Both go through all, the newest first."""
        await board.store.write([record(n) for n in range(25)])
        newest = [exchange_id(n) for n in range(24, -1, -1)]
        found: list[str] = []
        for page in (1, 2, 3):
            listed = await board.get(f"/api/requests?page={page}")
            assert listed["total"] == 25
            found += [item["requestId"] for item in listed["requests"]]
        assert found == newest
        found, cursor = [], ""
        while cursor is not None:
            listed = await board.get(f"/api/requests?limit=7{cursor and '&cursor=' + cursor}")
            assert ("total" in listed) == (not cursor)
            found += [item["requestId"] for item in listed["requests"]]
            cursor = listed["nextCursor"]
        assert found == newest
        assert (await board.get("/api/requests?page=4"))["requests"] == []

    @awaited
    async def test_filters(self, board: Dashboard) -> None:
        """Each filter alone, and the model by a part of its name."""
        fields: dict[str, Any] = {
            "session": "s",
            "agent": "a",
            "conversation": "c",
            "request_class": "main",
            "status": 404,
            "verdict": "failed",
            "path": "/v1/models",
            "cost_nanousd": 7,
        }
        await board.store.write([record(1, model="claude-Opus-5", **fields), record(2, model="gpt-5"), record(3)])
        for query in (
            "model=opus",
            "session=s",
            "agent=a",
            "conversation=c",
            "requestClass=main",
            "status=404",
            "verdict=failed",
            "endpoint=/v1/models",
            "costAtLeast=7&costAtMost=7",
            f"until={show_time(BEGIN + 2 * SECOND)}",
        ):
            listed = await board.get(f"/api/requests?{query}")
            assert [item["requestId"] for item in listed["requests"]] == [exchange_id(1)], query
            assert listed["total"] == 1
        assert (await board.get("/api/requests?model=all"))["total"] == 3
        assert (await board.get("/api/requests?model=5"))["total"] == 2
        assert (await board.get("/api/requests?model=none-such"))["total"] == 0
        assert (await board.get(f"/api/requests?since={show_time(BEGIN + 3 * SECOND)}"))["total"] == 1

    @awaited
    async def test_search(self, board: Dashboard) -> None:
        """What was found stands in its item."""
        await board.store.write([full(1, text="The needle lies here."), full(2, text="Only hay.")])
        (item,) = (await board.get("/api/requests?q=needle"))["requests"]
        assert item["requestId"] == exchange_id(1)
        assert "needle lies" in item["snippet"]
        assert "snippet" not in (await board.get("/api/requests"))["requests"][0]

    @awaited
    async def test_never_a_megabyte(self, board: Dashboard) -> None:
        """A page is cut short where it would be larger, and the cursor goes on behind what it has."""
        long = "x" * 4000
        await board.store.write([record(n, user_agent=long, error_type="e", error_message=long) for n in range(300)])
        found, cursor = 0, ""
        while cursor is not None:
            listed = await board.get(f"/api/requests?limit=500{cursor and '&cursor=' + cursor}")
            found += len(listed["requests"])
            cursor = listed["nextCursor"]
        assert found == 300

    @pytest.mark.parametrize(
        "query",
        [
            "page=0",
            "page=x",
            "limit=0",
            "limit=-1",
            "limit=",
            "cursor=x",
            "status=1",
            "inFlight=yes",
            "since=today",
            "since=2026-02-30T00:00:00Z",
            "until=2026-01-01T00:00:00",
            "costAtLeast=-1",
            "model=%ff",
            f"q={'x' * 501}",
            "page=99999&limit=500",
        ],
    )
    @awaited
    async def test_bad_parameters(self, board: Dashboard, query: str) -> None:
        """400, with words that name the parameter."""
        answer = await board.get(f"/api/requests?{query}", 400)
        assert answer["type"] == "error"
        assert query.split("=")[0] in answer["error"]["message"] or "req_" in answer["error"]["message"]

    @awaited
    async def test_delete(self, board: Dashboard) -> None:
        """All but what is in flight; the words are the Go program's."""
        await board.store.write([full(1), full(2), record(3, verdict=None)])
        answer = await board.ask("/api/requests", "DELETE", headers=await board.csrf())
        assert answer.json == {"message": "Request history cleared", "deleted": 2}
        assert (await board.get("/api/requests"))["total"] == 1


class TestOne:
    """``GET /api/requests/{id}`` and what is below."""

    @awaited
    async def test_detail(self, board: Dashboard) -> None:
        """All that is known, and which bodies there are."""
        await board.store.write([full(1, client="10.0.0.1", query="beta=true"), full(2, parent=exchange_id(1))])
        found = await board.get(f"/api/requests/{exchange_id(1)}")
        assert found["timings"] == {
            "bodyReadUs": 100,
            "connectedUs": 200,
            "headersUs": 9000,
            "firstEventUs": 10_000,
            "lastByteUs": 1_010_000,
        }
        assert [each["role"] for each in found["bodies"]] == ["request", "answer", "message"]
        assert found["bodies"][1]["size"] == len(STREAM)
        assert found["followers"] == [exchange_id(2)]
        assert {"name": "anthropic-version", "value": "2023-06-01"} in found["requestHeaders"]
        assert (found["client"], found["query"]) == ("10.0.0.1", "beta=true")

    @pytest.mark.parametrize("below", ["", "/request-body", "/response-body", "/message", "/events", "/cache"])
    @awaited
    async def test_nothing_there(self, board: Dashboard, below: str) -> None:
        """404 in words for one that is not there, 400 for what is no id."""
        assert exchange_id(7) in (await board.get(f"/api/requests/{exchange_id(7)}{below}", 404))["error"]["message"]
        await board.get(f"/api/requests/seven{below}", 400)

    @awaited
    async def test_bodies_as_they_were(self, board: Dashboard) -> None:
        """Bit for bit, with their type and encoding, and sandboxed."""
        zipped = gzip.compress(b'{"model":"m"}')
        await board.store.write(
            [
                record(
                    1,
                    body(zipped, content_type="application/json", content_encoding="gzip"),
                    body(b"<script>alert(1)</script>", Role.ANSWER, content_type="text/html; charset=utf-8"),
                    body(b"{}", Role.FORWARDED, content_type="application/json"),
                )
            ]
        )
        base = f"/api/requests/{exchange_id(1)}"
        answer = await board.ask(f"{base}/request-body")
        assert (answer.body, answer.header("Content-Encoding")) == (zipped, "gzip")
        assert answer.header("Content-Type") == "application/json"
        assert (await board.ask(f"{base}/request-body?of=upstream")).body == b"{}"
        answer = await board.ask(f"{base}/response-body")
        assert answer.body == b"<script>alert(1)</script>"
        assert answer.header("Content-Type") == "text/html; charset=utf-8"
        assert answer.header("Content-Security-Policy") == "sandbox; default-src 'none'"
        assert (answer.header("X-Content-Type-Options"), answer.header("Content-Disposition") or "")[0] == "nosniff"
        assert (answer.header("Content-Disposition") or "").startswith("attachment")
        # Where nothing else came down, that is what the upstream sent, too.
        assert (await board.ask(f"{base}/response-body?of=upstream")).body == answer.body

    @awaited
    async def test_message(self, board: Dashboard) -> None:
        """A stream folded; JSON as it was; nothing of anything else."""
        json_answer = body(b'{"type":"message"}', Role.ANSWER, content_type="application/json")
        html = body(b"<p>", Role.ANSWER, content_type="text/html")
        await board.store.write([full(1), record(2, json_answer), record(3, html)])
        found = await board.get(f"/api/requests/{exchange_id(1)}/message")
        assert found["content"] == [{"type": "text", "text": "Hello there"}]
        assert (await board.get(f"/api/requests/{exchange_id(2)}/message")) == {"type": "message"}
        await board.get(f"/api/requests/{exchange_id(3)}/message", 404)

    @awaited
    async def test_events(self, board: Dashboard) -> None:
        """Each with its time, and where it stands in the body; a page at a time."""
        await board.store.write([full(1)])
        base = f"/api/requests/{exchange_id(1)}/events"
        found = await board.get(base)
        assert (found["of"], found["total"], found["nextCursor"]) == ("client", 7, None)
        assert [(each["event"], each["detail"], each["us"]) for each in found["events"]] == [
            ("message_start", None, 10_000),
            ("content_block_start", "text", 11_000),
            ("content_block_delta", "text_delta", 12_000),
            ("content_block_delta", "text_delta", 13_000),
            ("content_block_stop", None, 14_000),
            ("message_delta", "end_turn", 15_000),
            ("message_stop", None, 16_000),
        ]
        third = found["events"][2]
        assert b"Hello" in STREAM[third["offset"] : third["offset"] + third["length"]]
        first = await board.get(f"{base}?limit=4")
        rest = await board.get(f"{base}?limit=4&cursor={first['nextCursor']}")
        assert first["events"] + rest["events"] == found["events"]
        assert rest["nextCursor"] is None
        await board.get(f"{base}?cursor=x", 400)

    @awaited
    async def test_cache(self, board: Dashboard) -> None:
        """Where a prefix broke: the block, the byte, what it cost."""
        one = full(1, "Question", model="claude-opus-4-1-20250805", received_at=BEGIN)
        other = full(
            2,
            "Question",
            "Answer",
            "More",
            parent=exchange_id(1),
            conversation=exchange_id(1),
            model="claude-opus-4-1-20250805",
            cache_read_tokens=1000,
            cache_write_5m_tokens=4000,
        )
        changed = request_body("Question", "Another answer", "More", "And", "more")
        broken = full(3, parent=exchange_id(2), model="claude-opus-4-1-20250805", cache_write_5m_tokens=5000)
        await board.store.write([one, other])
        await board.store.write([broken])
        kept = [each for each in broken.bodies if each.role is not Role.REQUEST]
        await board.store.write(
            [
                record(
                    4,
                    body(changed),
                    *kept,
                    parent=exchange_id(2),
                    cache_read_tokens=0,
                    cache_write_5m_tokens=5000,
                    model="claude-opus-4-1-20250805",
                    status=200,
                )
            ]
        )
        found = await board.get(f"/api/requests/{exchange_id(2)}/cache")
        assert found["divergence"]["kind"] == "appended"
        assert found["divergence"]["path"] == "messages[1].content[0]"
        assert (found["expectedTokens"], found["missedTokens"]) == (5000, 4000)
        assert found["extraCostNanousd"] > 0
        found = await board.get(f"/api/requests/{exchange_id(4)}/cache")
        divergence = found["divergence"]
        assert (divergence["kind"], divergence["path"], divergence["role"]) == (
            "changed",
            "messages[1].content[0]",
            "assistant",
        )
        assert changed[divergence["byte"] - 1 :].startswith(b"Another") or changed[divergence["byte"] :].startswith(
            b"other"
        )
        assert "Answer" in divergence["before"]
        assert "Another answer" in divergence["after"]
        assert (await board.get(f"/api/requests/{exchange_id(1)}/cache"))["previous"] is None
        listed = await board.get(f"/api/cache-breaks?since={show_time(BEGIN)}&until={show_time(BEGIN + 99 * SECOND)}")
        assert [each["request"]["requestId"] for each in listed["breaks"]] == [exchange_id(n) for n in (4, 3, 2)]
        assert listed["breaks"][0]["missedTokens"] == 5000


class TestStore:
    """What happens while the store cannot be read."""

    @pytest.fixture
    def unrecorded(self, tmp_path: Path) -> Iterator[Dashboard]:
        with dashboard(tmp_path, recorded=False) as made:
            yield made

    @awaited
    async def test_not_recorded(self, unrecorded: Dashboard) -> None:
        """503, in words."""
        answer = await unrecorded.get("/api/requests", 503)
        assert "RECORD=off" in answer["error"]["message"]

    @awaited
    async def test_comes_back(self, board: Dashboard, tmp_path: Path) -> None:
        """A store that cannot be opened is tried again, some seconds later; until then 503 says why."""
        await board.store.close()
        for file in list(tmp_path.glob("records.db*")):  # noqa: ASYNC240
            file.rename(file.with_name(file.name.replace("records", "away")))
        (tmp_path / "records.db").mkdir()
        answer = await board.ask("/api/requests")
        assert answer.status == 503
        assert "records.db" in answer.json["error"]["message"]
        assert answer.header("Retry-After") == "5"
        (tmp_path / "records.db").rmdir()
        for file in list(tmp_path.glob("away.db*")):  # noqa: ASYNC240
            file.rename(file.with_name(file.name.replace("away", "records")))
        assert (await board.ask("/api/requests")).status == 503
        board.proxy.clock.advance(6)
        await board.get("/api/requests")


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000),
        ("1970-01-01T00:00:01.5z", 1_500_000),
        ("1970-01-01T01:00:00.123456789+01:00", 123_456),
        ("1969-12-31T23:00:00-01:00", 0),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000_000),
    ],
)
def test_times(text: str, micros: int) -> None:
    """RFC 3339, with any offset, fraction and a leap second."""
    assert parse_time(text) == micros


def test_times_shown() -> None:
    """With milliseconds, also those that no calendar has."""
    assert show_time(1_500_000) == "1970-01-01T00:00:01.500Z"
    assert show_time(2**62).startswith("9999-")
