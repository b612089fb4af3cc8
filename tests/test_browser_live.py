"""What the page shows while it happens, in a browser, from a real proxy with a stand-in upstream.

These tests take seconds: a browser and a proxy start for real.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, expect

from tests.browser import ask, chromium, opened, question, recorded, recording
from tests.processes import Proxy, StandIn, proxy


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def running(tmp_path: Path, upstream: StandIn) -> Iterator[Proxy]:
    with proxy(tmp_path, upstream, **recording(tmp_path)) as started:
        yield started


@contextmanager
def streaming(running: Proxy, scenario: str, **more: Any) -> Iterator[threading.Thread]:
    """A request whose answer the stand-in plays in a thread; its end is waited for."""

    def go() -> None:
        # What the client sees of a cut is not of interest here.
        try:
            ask(running, question("go on", **more), {"x-standin": scenario})
        except OSError:
            pass
        except Exception as error:  # noqa: BLE001
            ended.append(error)

    ended: list[Exception] = []
    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    yield thread
    thread.join(30)
    assert not thread.is_alive()


def test_text_grows_while_it_comes(running: Proxy, upstream: StandIn, browser: Browser) -> None:
    """The words that have come are there, and no others; then more; then it is among those that ended."""
    first, last = f"first-{uuid4()}", f"last-{uuid4()}"
    with opened(browser, running) as page:
        page.get_by_text("Nothing has passed").wait_for()
        with streaming(running, f"message?say=text&count=60&gate={first}@8&gate={last}@14"):
            card = page.get_by_role("article")
            expect(card).to_contain_text("word0")
            expect(card.get_by_role("link", name="opus-4-5")).to_be_visible()
            expect(card).not_to_contain_text("word59")
            before = card.locator("pre").inner_text()
            upstream.release(first)
            expect(card.locator("pre")).not_to_have_text(before)
            upstream.release(last)
        expect(page.get_by_role("heading", name="Just ended")).to_be_visible()
        expect(page.get_by_role("article")).to_have_count(0)
        expect(page.get_by_role("list").get_by_role("link")).to_have_count(1)


def test_cut_asks_once_more_and_cuts(running: Proxy, upstream: StandIn, browser: Browser) -> None:
    """The button needs a second press, and the request ends."""
    gate = f"never-{uuid4()}"
    with opened(browser, running) as page:
        page.get_by_text("Nothing has passed").wait_for()
        with streaming(running, f"message?count=60&gate={gate}@8"):
            card = page.get_by_role("article")
            expect(card).to_contain_text("word0")
            card.get_by_role("button", name="Cut").click()
            expect(card).to_be_visible()
            card.get_by_role("button", name="sure").click()
            expect(page.get_by_role("article")).to_have_count(0)
        upstream.release(gate)


def test_new_requests_arrive_on_top(running: Proxy, browser: Browser) -> None:
    """Without a reload, the newest first."""
    ask(running, question("one", model="claude-haiku-4-5"))
    recorded(running, 1)
    with opened(browser, running, "#/requests") as page:
        rows = page.get_by_role("list").get_by_role("link")
        expect(rows).to_have_count(1)
        ask(running, question("two", model="claude-opus-4-5"))
        expect(rows).to_have_count(2)
        expect(rows.first).to_contain_text("opus-4-5")
        expect(rows.first).to_contain_text("200")


def test_banner_says_that_it_drains(running: Proxy, upstream: StandIn, browser: Browser) -> None:
    """Told to stop, it says so, for how long, and how many it waits for."""
    gate = f"drain-{uuid4()}"
    with opened(browser, running) as page:
        page.get_by_text("Nothing has passed").wait_for()
        with streaming(running, f"message?count=60&gate={gate}@8"):
            expect(page.get_by_role("article")).to_contain_text("word0")
            running.signal(signal.SIGTERM)
            banner = page.get_by_role("status").filter(has_text="Draining.")
            expect(banner).to_contain_text("one is still in flight")
            expect(banner).to_contain_text(re.compile(r"cut in \d+"))
            upstream.release(gate)
