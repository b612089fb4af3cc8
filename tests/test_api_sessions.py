"""Sessions as trees, and usage over time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard import Dashboard, dashboard, full
from tests.store_contract import BEGIN, SECOND, awaited, exchange_id, record
from twisted_proxy.config import DashboardConfig
from twisted_proxy.web.api.calls import show_time

SINCE = f"since={show_time(BEGIN)}&until={show_time(BEGIN + 100 * SECOND)}"


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Dashboard]:
    project = tmp_path / "projects" / "-home-me-thing"
    project.mkdir(parents=True)
    (project / "session-1.jsonl").write_text("{}\n")
    with dashboard(tmp_path, dashboard=DashboardConfig(projects_dir=str(tmp_path / "projects"))) as made:
        yield made


class TestSessions:
    """``/api/sessions``."""

    @awaited
    async def test_list(self, board: Dashboard) -> None:
        """The latest activity first, with what each came to, and its project, as a transcript says."""
        await board.store.write([full(1), full(2, session="session-2"), full(3, agent="a", prompt="p2", status=529)])
        found = await board.get("/api/sessions")
        first, second = found["sessions"]
        assert (first["session"], first["project"], first["prompts"], first["agents"]) == (
            "session-1",
            "-home-me-thing",
            2,
            1,
        )
        assert (first["totals"]["requests"], first["totals"]["errors"], first["totals"]["costNanousd"]) == (
            2,
            1,
            2_000_000,
        )
        assert first["models"] == ["claude-opus-5"]
        assert (second["session"], second["project"], found["nextCursor"]) == ("session-2", None, None)
        page = await board.get("/api/sessions?limit=1")
        assert [each["session"] for each in page["sessions"]] == ["session-1"]
        page = await board.get(f"/api/sessions?limit=1&cursor={page['nextCursor']}")
        assert [each["session"] for each in page["sessions"]] == ["session-2"]
        assert page["nextCursor"] is None
        await board.get("/api/sessions?cursor=x", 400)

    @awaited
    async def test_tree(self, board: Dashboard) -> None:
        """Prompts, in them agents, in them requests, each in the order of time."""
        await board.store.write(
            [
                full(1),
                full(2, agent="a", agent_type="Explore", parent_agent="main", cache_write_1h_tokens=7),
                full(3),
                full(4, prompt="p2", verdict=None, last_byte_us=None),
            ]
        )
        found = await board.get("/api/sessions/session-1")
        first, second = found["prompts"]
        assert (first["prompt"], second["prompt"]) == ("prompt-1", "p2")
        main, explore = first["agents"]
        assert (main["agent"], explore["agent"], explore["agentType"], explore["parentAgent"]) == (
            None,
            "a",
            "Explore",
            "main",
        )
        assert [each["requestId"] for each in main["requests"]] == [exchange_id(1), exchange_id(3)]
        assert explore["requests"][0]["cacheWriteTokens"] == 5007
        assert second["agents"][0]["requests"][0]["durationMs"] is None
        assert found["totals"]["inFlight"] == 1
        assert found["project"] == "-home-me-thing"
        await board.get("/api/sessions/nobody", 404)

    @awaited
    async def test_tree_in_pages(self, board: Dashboard) -> None:
        """A session of thousands comes in pages, each of which says what all of it came to."""
        many = [record(n, session="long", prompt=f"p{n // 1000}") for n in range(2500)]
        for start in range(0, 2500, 500):
            await board.store.write(many[start : start + 500])
        seen: list[str] = []
        cursor = ""
        while cursor is not None:
            page = await board.get(f"/api/sessions/long{cursor and '?cursor=' + cursor}")
            assert page["totals"]["requests"] == 2500
            seen += [
                each["requestId"]
                for prompt in page["prompts"]
                for agent in prompt["agents"]
                for each in agent["requests"]
            ]
            cursor = page["nextCursor"]
        assert seen == [exchange_id(n) for n in range(2500)]


class TestUsage:
    """``/api/usage``."""

    @awaited
    async def test_sums(self, board: Dashboard) -> None:
        """A point for each span; the series add up to the totals."""
        await board.store.write(
            [full(n, model="m1" if n % 2 else "m2", session="other" if n > 5 else "session-1") for n in range(8)]
        )
        found = await board.get(f"/api/usage?{SINCE}&bucket=10")
        assert (len(found["times"]), found["times"][0], found["bucket"]) == (10, BEGIN // SECOND, 10)
        (series,) = found["series"]
        assert series["requests"] == [8, *[0] * 9]
        assert series["costNanousd"][0] == found["totals"]["costNanousd"] == 8_000_000
        found = await board.get(f"/api/usage?{SINCE}&bucket=10&by=model")
        assert {each["key"]: each["totals"]["requests"] for each in found["series"]} == {"m1": 4, "m2": 4}
        found = await board.get(f"/api/usage?{SINCE}&bucket=10&by=project")
        assert {each["key"]: each["totals"]["requests"] for each in found["series"]} == {"-home-me-thing": 6, "": 2}
        for by in ("session", "agent", "agentType", "requestClass"):
            found = await board.get(f"/api/usage?{SINCE}&by={by}")
            assert sum(each["totals"]["requests"] for each in found["series"]) == 8

    @awaited
    async def test_the_rest_together(self, board: Dashboard) -> None:
        """The 20 that cost most, and all others in one."""
        await board.store.write([full(n, model=f"m{n}", cost_nanousd=n) for n in range(30)])
        found = await board.get(f"/api/usage?{SINCE}&by=model")
        assert [each["key"] for each in found["series"]] == [*[f"m{n}" for n in range(29, 9, -1)], None]
        assert found["series"][-1]["totals"]["requests"] == 10

    @awaited
    async def test_nothing(self, board: Dashboard) -> None:
        """Without records it is zeroes; without parameters the last day, in some hundred points."""
        found = await board.get("/api/usage")
        assert 90 <= len(found["times"]) <= 110
        (series,) = found["series"]
        assert set(series["requests"]) == {0}
        assert (await board.get("/api/usage?by=model"))["series"] == []

    @pytest.mark.parametrize(
        "query",
        [
            "by=colour",
            "bucket=0",
            "since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z",
            "since=2020-01-01T00:00:00Z&bucket=60",
        ],
    )
    @awaited
    async def test_bad(self, board: Dashboard, query: str) -> None:
        """400, also for more points than anybody looks at."""
        answer = await board.get(f"/api/usage?{query}", 400)
        assert answer

    @awaited
    async def test_speed(self, board: Dashboard) -> None:
        """Percentiles of the time to the first byte, and of tokens a second."""
        await board.store.write(
            [
                full(n, first_event_us=1000 * n, last_byte_us=1_000_000 + 1000 * n, output_tokens=n)
                for n in range(1, 101)
            ]
        )
        until = show_time(BEGIN + 200 * SECOND)
        found = await board.get(f"/api/usage/speed?since={show_time(BEGIN)}&until={until}&bucket=1000")
        assert found["counted"] == 100
        assert found["ttftMs"] == {"p50": [50.0], "p90": [90.0], "p99": [99.0]}
        assert found["tokensPerSecond"]["p50"] == [50.0]
        empty = await board.get(f"/api/usage/speed?since={show_time(BEGIN)}&until={until}&bucket=1000&model=none")
        assert (empty["counted"], empty["ttftMs"]["p50"]) == (0, [None])

    @awaited
    async def test_limits(self, board: Dashboard) -> None:
        """What the API said about plan windows."""
        said: dict[str, Any] = {"anthropic-ratelimit-unified-5h-utilization": "0.42"}
        await board.store.write([full(1, rate_limits=said, credential="c", provider="anthropic")])
        found = await board.get(f"/api/usage/limits?{SINCE}")
        assert found["points"] == [
            {"timestamp": show_time(BEGIN + SECOND), "credential": "c", "provider": "anthropic", "limits": said}
        ]
