"""What a model wrote cannot act on the page, and who may not look does not see.

These tests take seconds: a browser and a proxy start for real.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.browser import ask, chromium, opened, question, recorded, recording, speaker
from tests.processes import Proxy, StandIn, proxy

MARKDOWN = """# Title <script>document.title = "owned"</script>

<script>document.title = "owned"</script>
<img src="x" onerror="document.title = 'owned'">
<iframe src="https://example.invalid/"></iframe>

[script](javascript:document.title='owned') [data](data:text/html,owned) [good](https://example.invalid/page)

![pixel](https://example.invalid/pixel.png)
"""
HOSTILE: list[dict[str, Any]] = [
    {"type": "text", "text": MARKDOWN},
    {
        "type": "tool_use",
        "id": "toolu_1",
        "name": "<img src=x onerror=alert(1)>",
        "input": {"<b>": "<svg onload=alert(1)>"},
    },
    {"type": "image", "source": {"type": "base64", "media_type": "image/svg+xml", "data": "PHN2Zy8+"}},
    {"type": "<script>", "text": "unknown"},
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def test_a_hostile_answer_is_only_text(tmp_path: Path, browser: Browser) -> None:
    """Scripts, frames and images of an answer are shown as what they are: text. Nothing is fetched, no link runs."""
    with speaker(HOSTILE) as address, Proxy(tmp_path, **recording(tmp_path, ANTHROPIC_FORWARD_URL=address)) as running:
        ask(running, question("hello", stream=False))
        request = recorded(running, 1)[0]["requestId"]
        with opened(browser, running, f"#/requests/{request}") as page:
            answer = page.locator("article.assistant")
            expect(answer).to_contain_text('<script>document.title = "owned"</script>')
            expect(answer).to_contain_text("onerror")
            assert answer.locator("script, iframe, img, svg, object, embed, [onerror], [onload]").count() == 0
            links = answer.get_by_role("link")
            assert {link.get_attribute("href") for link in links.all()} == {
                "https://example.invalid/page",
                "https://example.invalid/pixel.png",
            }
            for link in links.all():
                assert link.get_attribute("rel") == "noopener noreferrer"
                assert link.get_attribute("target") == "_blank"
            assert "owned" not in page.title()


def test_login_is_asked_for_and_let_go(tmp_path: Path, upstream: StandIn, browser: Browser) -> None:
    """Without the password nothing is shown; with it everything, until the viewer logs out."""
    settings = recording(tmp_path, DASHBOARD_PASSWORD="correct horse battery")
    with proxy(tmp_path, upstream, **settings) as running, opened(browser, running, "#/requests") as page:
        field = page.get_by_label("Password")
        field.fill("wrong horse battery")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).not_to_be_empty()
        expect(page.get_by_role("navigation")).to_have_count(0)
        field.fill("correct horse battery")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("navigation")).to_be_visible()
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Password")).to_be_visible()


def test_a_stranger_gets_words(tmp_path: Path, upstream: StandIn, browser: Browser) -> None:
    """A peer with forwarding headers, where no password is set, is told why it sees nothing."""
    with proxy(tmp_path, upstream, **recording(tmp_path)) as running:
        context = browser.new_context(extra_http_headers={"X-Forwarded-For": "203.0.113.7"})
        page = context.new_page()
        answer = page.goto(running.url)
        assert answer is not None
        assert answer.status == 403
        expect(page.locator("body")).to_contain_text("DASHBOARD_PASSWORD")
        context.close()
