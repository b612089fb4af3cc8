"""The page with much to show: 100,000 requests, a body of 5 MB. Only a part of it is ever made.

These tests take seconds: a browser and a proxy start for real, and a store is filled.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser import ask, chromium, opened, question, recorded, recording
from tests.many import multiply
from tests.processes import StandIn, proxy

ROWS = 100_000
SHOWN = 200
"""More rows than fit on any screen; far fewer than there are."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def test_a_list_of_100_000_makes_only_what_is_seen(tmp_path: Path, upstream: StandIn, browser: Browser) -> None:
    """However far somebody scrolls, a screenful of rows exists; what is scrolled to comes by pages."""
    settings = recording(tmp_path)
    with proxy(tmp_path, upstream, **settings) as first:
        ask(first, question("one of many"))
        recorded(first, 1)
        first.stop()
    multiply(tmp_path / "requests.db", ROWS, span=1000, bodies=False)
    with proxy(tmp_path, upstream, **settings) as running, opened(browser, running, "#/requests") as page:
        expect(page.get_by_role("status").filter(has_text="requests")).to_be_visible()
        rows = page.get_by_role("list").get_by_role("link")
        expect(rows.first).to_be_visible()
        frame = page.get_by_role("region", name="Requests, the newest first")
        for reached in (300, 1000, 2000):
            # The end of what is there, again and again, as somebody does who drags the bar.
            position = f"[aria-posinset='{reached}']"
            while page.locator(position).count() == 0:
                frame.evaluate(
                    "(frame, last) => { const row = frame.querySelector('.row').offsetHeight;"
                    " frame.scrollTop = Math.min(frame.scrollHeight, last * row - frame.clientHeight / 2); }",
                    reached,
                )
                page.wait_for_function("() => new Promise((done) => requestAnimationFrame(() => done(true)))")
            expect(page.locator(position)).to_be_visible()
            assert 0 < rows.count() < SHOWN


def test_a_body_of_5_mb_is_shown_in_slices(tmp_path: Path, upstream: StandIn, browser: Browser) -> None:
    """It is fetched when somebody asks for it, and its text is made as far as it is looked at."""
    line = "All work and no play makes a long line.\n"
    text = line * (5_000_000 // len(line))
    with proxy(tmp_path, upstream, **recording(tmp_path)) as running:
        ask(running, question(text))
        request = recorded(running, 1)[0]["requestId"]
        with opened(browser, running, f"#/requests/{request}") as page:
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            expect(page.locator("article.assistant")).to_contain_text("word0")
            assert not [url for url in asked if url.endswith("/request-body")]
            page.get_by_role("button", name="Show it").click()
            page.get_by_role("button", name="Show all").click()
            expect(page.get_by_text("All work and no play").first).to_be_visible()
            made = page.evaluate("document.body.textContent.length")
            assert made < 500_000
