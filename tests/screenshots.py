"""
The pictures of ``docs/``: the page before a real proxy, with data that are made up.

    python -m tests.screenshots docs/images

A week of requests is written into a store; then a session passes a proxy that records into it. It takes about a minute.
"""

from __future__ import annotations

import json
import math
import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from playwright.sync_api import Browser, Page, expect
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tests.browser import chromium, opened, recorded
from tests.coding import TOOLS, Agent, Json, Teller, Told, call, recording_proxy, result, text, thinking
from tests.processes import Proxy
from twisted_proxy.record.exchange import Exchange, Record
from twisted_proxy.record.sql import SqlStore
from twisted_proxy.record.sqlite import SqliteDriver
from twisted_proxy.wire.ids import request_id

reactor: Any = installed_reactor

WIDTH: Final = 1120
SESSION: Final = "1f6a2c0e-5b1d-4f5e-9c41-7d0b8a3e2f60"
HOUR: Final = 3600 * 1_000_000
PROJECTS: Final = ("-home-dev-importer", "-home-dev-storefront", "-home-dev-website")
PRICES: Final = {"claude-opus-4-5": (5, 25), "claude-sonnet-4-5": (3, 15), "claude-haiku-4-5": (1, 5)}
"""US dollars for a million tokens, in and out."""


# -- the week before


def sessions(chance: random.Random) -> Iterator[tuple[str, str]]:
    """Each with its project."""
    while True:
        yield str(UUID(int=chance.getrandbits(128), version=4)), chance.choices(PROJECTS, (5, 3, 1))[0]


def belong(directory: Path, project: str, session: str) -> None:
    """Have a transcript of Claude Code say what project a session is of."""
    (directory / project).mkdir(parents=True, exist_ok=True)
    (directory / project / f"{session}.jsonl").touch()


def week(now: int, directory: Path) -> Iterator[Record]:
    """Requests of seven days, by night fewer; `now` in microseconds since the Unix epoch."""
    chance = random.Random(7)
    fresh = sessions(chance)
    at = now - 7 * 24 * HOUR
    session, project = next(fresh)
    while True:
        busy = 9 if 8 <= at // HOUR % 24 < 18 else 0.4
        at += int(chance.expovariate(busy / HOUR))
        if at > now - HOUR // 4:
            return
        if chance.random() < 0.06:
            session, project = next(fresh)
            belong(directory, project, session)
        yield Record(exchange=_past(chance, at, session), bodies=())


def _past(chance: random.Random, at: int, session: str) -> Exchange:
    agent = chance.random() < 0.3
    model = "claude-haiku-4-5" if agent else chance.choices(("claude-opus-4-5", "claude-sonnet-4-5"), (3, 1))[0]
    prompt = int(chance.lognormvariate(10.3, 0.6))
    read = int(prompt * min(0.99, chance.betavariate(12, 1.2)))
    written, output = prompt - read, int(chance.lognormvariate(5.6, 0.9))
    price, output_price = PRICES[model]
    first = int(chance.lognormvariate(14.1, 0.35))
    failed = chance.random() < 0.012
    used = 0.08 + 0.8 * abs(math.sin(at / HOUR / 5 * math.pi)) * (0.9 if 8 <= at // HOUR % 24 < 18 else 0.1)
    spent = (at // HOUR % (7 * 24)) / (7 * 24)
    usage: Json = {} if failed else {
        "input_tokens": 4, "output_tokens": output, "cache_read_tokens": read, "cache_write_5m_tokens": written,
        "cost_nanousd": int(1000 * (price * (4 + read * 0.1 + written * 1.25) + output_price * output)),
    }  # fmt: skip
    return Exchange(
        id=request_id(at // 1000, chance.randbytes(10)),
        instance="here",
        received_at=at,
        method="POST",
        path="/v1/messages",
        stream=True,
        status=529 if failed else 200,
        verdict="complete",
        error_type="overloaded_error" if failed else None,
        model=model,
        session=session,
        agent=f"agent-{chance.randrange(4)}" if agent else None,
        agent_type="Explore" if agent else None,
        request_class="subagent" if agent else "main",
        credential="5f0c1f9e",
        first_event_us=first,
        last_byte_us=first + int(output / chance.uniform(45, 85) * 1e6),
        rate_limits={
            "anthropic-ratelimit-unified-5h-status": "allowed",
            "anthropic-ratelimit-unified-5h-utilization": f"{used:.2f}",
            "anthropic-ratelimit-unified-5h-reset": str((at // HOUR + 3) * 3600),
            "anthropic-ratelimit-unified-7d-status": "allowed",
            "anthropic-ratelimit-unified-7d-utilization": f"{0.1 + 0.6 * spent:.2f}",
            "anthropic-ratelimit-unified-7d-reset": str((at // HOUR + 90) * 3600),
        },
        **usage,
    )


def fill(database: Path, records: Iterator[Record]) -> None:
    """Write them into a new store."""

    async def write() -> None:
        store = SqlStore(SqliteDriver(reactor, database))
        await store.open()
        await store.write(list(records))
        await store.close()

    def done(outcome: object) -> None:
        if isinstance(outcome, Failure):
            outcome.printTraceback()
        reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(write()).addBoth(done))
    reactor.run()


# -- a session

ROOT: Final = "/home/dev/importer"
SOURCE: Final = '''class Importer:
    """Rows of a file into the database, in batches."""

    def __init__(self, store: Store, size: int = 500) -> None:
        self._store = store
        self._size = size
        self._batch: list[Row] = []

    def add(self, row: Row) -> None:
        self._batch.append(row)
        if len(self._batch) == self._size:
            self.flush()

    def run(self, rows: Iterable[Row]) -> int:
        count = 0
        for row in rows:
            self.add(row)
            count += 1
        return count
'''
QUESTION: Final = (
    "The nightly import sometimes loses rows at the end of a file. Find out why, fix it, and add a test that would "
    "have failed."
)
FOUND: Final = """Found it. `run()` never writes the **last batch**: `add()` flushes only when a batch is *full*, so
whatever is left when the file ends is dropped.

| rows in the file | written | lost |
|---|---|---|
| 500 | 500 | 0 |
| 501 | 500 | 1 |
| 999 | 500 | 499 |

That is why it happens only *sometimes*: files whose length is a multiple of the batch size are complete. I'll flush
once more at the end, in a `finally`, so that rows are kept when the source fails half-way, too."""
DONE: Final = """All 42 tests pass, and the new one fails without the fix.

- `importer/run.py`: the last batch is flushed, also when the source raises.
- `tests/test_run.py`: 0, 1, 499, 500, 501 and 1,000 rows, and a source that fails after 750.

```python
@pytest.mark.parametrize("count", [0, 1, 499, 500, 501, 1000])
def test_nothing_is_lost(count: int) -> None:
    store = MemoryStore()
    assert Importer(store).run(rows(count)) == count
    assert len(store) == count
```"""
BEFORE: Final = """        count = 0
        for row in rows:
            self.add(row)
            count += 1
        return count"""
AFTER: Final = """        count = 0
        try:
            for row in rows:
                self.add(row)
                count += 1
        finally:
            self.flush()
        return count"""
CALLERS: Final = "Find all callers of `Importer`, and say which of them rely on the count that `run()` returns."
CALLED: Final = "Two callers, `nightly.py` and `cli.py`; both log the count."
HISTORY: Final = "When did `run()` change last?"
CHANGED: Final = "`run()` lost its final flush in b71e0c2, *Write in batches*."
PROSE: Final = "Prefer small changes. Read before you write. Say what you did not do. " * 12


def todos(done: int) -> list[Json]:
    items = ("Find where rows are lost", "Flush the last batch", "Write a test that fails without it", "Run all tests")
    return [
        {
            "content": item,
            "status": "completed" if number < done else "in_progress" if number == done else "pending",
            "activeForm": item,
        }
        for number, item in enumerate(items)
    ]


def numbered(source: str) -> str:
    return "\n".join(f"{number:6}\t{line}" for number, line in enumerate(source.splitlines(), 1))


def session(proxy: Proxy, teller: Teller) -> dict[str, str]:
    """A bug is found, mended and tested, with agents. Ids of requests by the name of what they show."""
    kinds = [{**tool, "description": f"{tool['description']} {PROSE * 8}"} for tool in TOOLS]
    mcp = [
        {"name": f"mcp__tracker__{name}", "description": PROSE * 3, "input_schema": {"type": "object"}}
        for name in ("list_issues", "get_issue", "comment")
    ]
    system = ["You are Claude Code, Anthropic's official CLI for Claude.", PROSE * 40]
    known: Json = {"proxy": proxy, "teller": teller, "session": SESSION}
    main = Agent(**known, prompt="prompt-1", system=system, tools=[*mcp, *kinds])
    ids: dict[str, str] = {}
    pace: Json = {"between": 0.01, "stop_reason": "tool_use"}

    look = [
        thinking("Rows at the end of a file: that smells of a batch that is not flushed. The importer first."),
        text("I'll look at how batches are written, and have the callers and the history searched meanwhile."),
        call("Read", "toolu_01read", file_path=f"{ROOT}/importer/run.py"),
        call("Task", "toolu_01task", description="Find the callers", prompt=CALLERS, subagent_type="Explore"),
        call("Task", "toolu_02task", description="Search the history", prompt=HISTORY, subagent_type="Explore"),
    ]
    main.ask(QUESTION, told=Told(content=look, before=0.5, **pace))

    def explore(number: int, question: str, tool: Json, came: str, said: str) -> None:
        agent = Agent(
            **known, prompt="prompt-1", model="claude-haiku-4-5", request_class="subagent", agent_type="Explore",
            agent=f"a1f7c91e04b{number}d", system=["You are a file search specialist.", PROSE * 20], tools=kinds[:4],
        )  # fmt: skip
        agent.ask(question, told=Told(content=[tool], before=0.2 + 0.2 * number, **pace))
        told = Told(content=[text(said)], before=0.3, between=0.03)
        agent.ask(result(tool["id"], came), told=told)

    grep = call("Grep", "toolu_0grep", pattern="Importer\\(", path=ROOT)
    log = call("Bash", "toolu_0bash", command="git log -3 --oneline importer/run.py")
    agents = [
        threading.Thread(target=explore, args=arguments)
        for arguments in (
            (1, CALLERS, grep, "importer/nightly.py:31\nimporter/cli.py:12", CALLED),
            (2, HISTORY, log, "b71e0c2 Write in batches\n09ac1d4 First import", CHANGED),
        )
    ]
    for agent in agents:
        agent.start()
    for agent in agents:
        agent.join()

    mend = [
        text(FOUND),
        call("TodoWrite", "toolu_01todo", todos=todos(1)),
        call("Edit", "toolu_01edit", file_path=f"{ROOT}/importer/run.py", old_string=BEFORE, new_string=AFTER),
    ]
    ids["found"] = main.ask(
        result("toolu_01read", numbered(SOURCE)),
        result("toolu_01task", CALLED),
        result("toolu_02task", CHANGED),
        told=Told(content=mend, before=0.6, **pace),
    )
    test = [
        call("Bash", "toolu_02bash", command="pytest -q tests/test_run.py", description="Run the new test"),
        call("TodoWrite", "toolu_02todo", todos=todos(3)),
    ]
    # A server of tools was connected anew, and told them in another order.
    main.tools[:3] = [mcp[0], mcp[2], mcp[1]]
    reason = {"type": "tools_changed", "cache_missed_input_tokens": 16_900}
    ids["mend"] = main.ask(
        result("toolu_01todo", "Todos have been modified successfully."),
        result("toolu_01edit", f"The file {ROOT}/importer/run.py has been updated."),
        told=Told(content=test, before=0.4, diagnostics={"cache_miss_reason": reason}, **pace),
    )
    ids["done"] = main.ask(
        result("toolu_02bash", "..........................................  [100%]\n42 passed in 1.31s"),
        result("toolu_02todo", "Todos have been modified successfully."),
        told=Told(content=[text(DONE)], before=0.5, between=0.008),
    )
    main.prompt = "prompt-2"
    main.send(Told(status=529, error={"type": "overloaded_error", "message": "Overloaded"}))
    main.ask("Does `cli.py` need a change, too?", told=Told(content=[text("No: it only logs the count.")], before=0.3))
    return ids


def in_flight(proxy: Proxy, teller: Teller, gate: threading.Event) -> list[threading.Thread]:
    """Requests that are answered slowly, until a gate is opened."""
    known: Json = {
        "proxy": proxy,
        "teller": teller,
        "session": "8c0e7a14-2d3b-4b6f-8a5e-9b1c2d3e4f50",
        "prompt": "prompt-9",
    }
    review = (
        "The change is right, and small. Three remarks:\n\n"
        "1. `flush()` runs in `finally`, so an error of the store while the source has failed already would hide the "
        "first one. Python chains them (`__context__`), so nothing is lost, but the log shows the second first.\n"
        "2. With `size=1` every row is a transaction. Nobody does that, but nothing forbids it either: I would check "
        "for it in `__init__`.\n3. The count that `run()` returns is of rows that were *added*"
    )
    search = [
        thinking("The template cache is keyed by path alone. If two themes share a path, the second would get "),
        call("Grep", "toolu_09grep", pattern="template_cache\\[", path="/home/dev/storefront"),
    ]
    explorer: Json = {"agent": "a5d1e07c92", "agent_type": "Explore", "request_class": "subagent"}
    told: list[tuple[Json, list[Json], int]] = [
        ({"model": "claude-opus-4-5"}, [text(f"{review} and not of rows that were written.")], 4 + len(review) // 12),
        ({"model": "claude-haiku-4-5", **explorer}, search, 11),
    ]
    threads = []
    for more, content, at in told:
        agent = Agent(**known, **more)
        answer = Told(content=content, before=0.4, between=0.03, gate=gate, at=at)
        threads.append(threading.Thread(target=agent.ask, args=("Review the change.",), kwargs={"told": answer}))
    for thread in threads:
        thread.start()
    return threads


# -- pictures


def look(scheme: str, height: int = 700, width: int = WIDTH) -> dict[str, Any]:
    viewport = {"width": width, "height": height}
    return {"viewport": viewport, "timezone_id": "UTC", "locale": "en-US", "color_scheme": scheme}


def shoot(page: Page, file: Path) -> None:
    """Take the picture when nothing is being fetched any more."""
    expect(page.get_by_text("Loading…")).to_have_count(0)
    page.mouse.move(0, 0)
    page.screenshot(path=file)


def take(browser: Browser, proxy: Proxy, directory: Path, ids: dict[str, str]) -> None:
    """What has ended."""
    with opened(browser, proxy, "#/requests", **look("dark", 640)) as page:
        expect(page.get_by_role("list").get_by_role("link").nth(9)).to_be_visible()
        shoot(page, directory / "requests.png")
    with opened(browser, proxy, f"#/requests/{ids['mend']}", **look("light", 690, 1200)) as page:
        page.get_by_role("region", name="Tool call Edit").scroll_into_view_if_needed()
        expect(page.get_by_text("Run all tests").last).to_be_visible()
        shoot(page, directory / "exchange.png")
    with opened(browser, proxy, f"#/requests/{ids['found']}?tab=timing", **look("dark", 520)) as page:
        expect(page.locator(".fall i").first).to_be_visible()
        shoot(page, directory / "timing.png")
    with opened(browser, proxy, f"#/requests/{ids['done']}?tab=changes", **look("dark", 520)) as page:
        expect(page.get_by_text("5 messages in common")).to_be_visible()
        shoot(page, directory / "changes.png")
    with opened(browser, proxy, f"#/sessions/{SESSION}", **look("light", 560)) as page:
        expect(page.get_by_role("heading", name="Prompt 2")).to_be_visible()
        shoot(page, directory / "session.png")
    with opened(browser, proxy, "#/cache", **look("light")) as page:
        page.get_by_role("region", name="Breaks").get_by_role("button").first.click()
        expect(page.locator("pre.added mark")).to_be_visible()
        expect(page.get_by_role("region", name="Each request").get_by_role("link").nth(9)).to_be_visible()
        shoot(page, directory / "cache.png")
    with opened(browser, proxy, "#/usage?range=7d", **look("light")) as page:
        expect(page.get_by_role("img", name=re.compile("^Tokens a second"))).to_be_visible()
        expect(page.locator("canvas").nth(3)).to_be_visible()
        shoot(page, directory / "usage.png")


def take_now(browser: Browser, proxy: Proxy, directory: Path) -> None:
    """What goes on."""
    with opened(browser, proxy, **look("light", 640)) as page:
        expect(page.get_by_role("article")).to_have_count(2)
        expect(page.get_by_text("rows that were")).to_be_visible()
        expect(page.get_by_text("the second would get")).to_be_visible()
        shoot(page, directory / "now.png")


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    gate = threading.Event()
    with tempfile.TemporaryDirectory() as scratch, Teller() as teller:
        place = Path(scratch)
        belong(place / "projects", PROJECTS[0], SESSION)
        fill(place / "requests.db", week(time.time_ns() // 1000, place / "projects"))
        with recording_proxy(place, teller) as proxy, chromium() as browser:
            ids = session(proxy, teller)
            recorded(proxy, len(teller.bodies))
            take(browser, proxy, directory, ids)
            threads = in_flight(proxy, teller, gate)
            try:
                take_now(browser, proxy, directory)
            finally:
                gate.set()
                for thread in threads:
                    thread.join()
    sys.stdout.write(json.dumps({file.name: file.stat().st_size for file in sorted(directory.glob("*.png"))}) + "\n")


if __name__ == "__main__":
    main()
