"""One exchange with all that can be in it, in a browser, from a real proxy.

These tests take seconds: a browser and a proxy start for real.
"""

from __future__ import annotations

import base64
import re
import struct
import threading
import zlib
from collections.abc import Iterator

import attrs
import pytest
from playwright.sync_api import Browser, expect

from tests.browser import KEY, ask, chromium, go, opened, question, recorded
from tests.coding import Agent, Teller, Told, call, recording_proxy, result, text, thinking
from tests.processes import Proxy

SESSION = "77e1a0de-0f5c-4c38-bb0e-5a1d0f2c9b11"
FREEZE_MS = 5000
"""A page that does nothing for so long is frozen, however slow the machine is."""
HEARTBEAT = """() => {
    window.longest = 0;
    let last = performance.now();
    setInterval(() => {
        const now = performance.now();
        window.longest = Math.max(window.longest, now - last);
        last = now;
    }, 20);
}"""


def png(width: int, height: int) -> str:
    """A picture of one colour, in base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = (b"\0" + b"\x30\x80\xc0" * width) * height
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


def image(media_type: str, data: str) -> dict[str, object]:
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


@attrs.frozen
class History:
    """A proxy with a conversation; `ids` of requests by the name of what they are."""

    proxy: Proxy
    teller: Teller
    ids: dict[str, str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """A turn with many tools, one that failed, and a body of 5 MB; the answer to the first pauses in the middle."""
    directory = tmp_path_factory.mktemp("exchange")
    with Teller() as teller, recording_proxy(directory, teller) as proxy:
        agent = Agent(proxy=proxy, teller=teller, session=SESSION, prompt="prompt-1")
        edits = [{"old_string": "one", "new_string": "two"}, {"old_string": "three", "new_string": "four\nfive"}]
        todos = [
            {"content": "Look", "status": "completed"},
            {"content": "Write", "status": "in_progress"},
            {"content": "Rest", "status": "pending"},
        ]
        calls = [
            call("Edit", "toolu_edit", file_path="/src/a.py", old_string="x = 1\ny = 2", new_string="x = 1\ny = 3"),
            call("MultiEdit", "toolu_many", file_path="/src/b.py", edits=edits),
            call("TodoWrite", "toolu_todo", todos=todos),
            call("Bash", "toolu_bash", command="pytest -q", description="Run the tests"),
            call("Read", "toolu_read", file_path="/src/picture.png"),
        ]
        gate = threading.Event()
        told = Told(
            content=[thinking("Let me **think**."), *calls], stop_reason="tool_use", gate=gate, at=9, before=0.05
        )
        # Longer than the half second from which on a silence is told.
        timer = threading.Timer(0.8, gate.set)
        timer.start()
        pasted = image("image/png", png(40, 30))
        first = agent.ask({"type": "text", "text": "See this."}, pasted, told=told)
        timer.join()
        results = [
            result("toolu_edit", "edited a.py"),
            result("toolu_many", "edited b.py"),
            result("toolu_todo", "noted"),
            result("toolu_bash", "1 failed", is_error=True),
            result("toolu_read", [image("image/png", png(64, 48)), image("text/html", "PGI+")]),
        ]
        last = agent.ask(*results, told=Told(content=[text("Now it is `three`.\n\n```python\ny = 3\n```")]))
        refused = {"type": "overloaded_error", "message": "Overloaded, come again."}
        error = agent.send(Told(status=529, error=refused, headers={"retry-after": "7"}))
        line = "All work and no play makes a long line.\n"
        ask(proxy, question(line * (5_000_000 // len(line))))
        found = recorded(proxy, 4)
        yield History(proxy, teller, {"first": first, "last": last, "error": error, "large": found[0]["requestId"]})


def test_tools_of_a_turn(history: History, browser: Browser) -> None:
    """Edits as differences, todos as a list, commands as code; each result beside its call, also one that failed."""
    with opened(browser, history.proxy, f"#/requests/{history.ids['last']}") as page:
        edit = page.get_by_role("region", name="Tool call Edit", exact=True)
        expect(edit.locator(".removed")).to_have_text(re.compile("y = 2"))
        expect(edit.locator(".added")).to_have_text(re.compile("y = 3"))
        expect(edit).to_contain_text("edited a.py")
        many = page.get_by_role("region", name="Tool call MultiEdit")
        expect(many.get_by_role("region", name="Edit of /src/b.py")).to_have_count(2)
        todo = page.get_by_role("region", name="Tool call TodoWrite")
        for status in ("completed", "in progress", "pending"):
            expect(todo.get_by_role("img", name=status)).to_be_visible()
        bash = page.get_by_role("region", name="Tool call Bash")
        expect(bash).to_contain_text("pytest -q")
        expect(bash.get_by_text("failed", exact=True)).to_be_visible()
        expect(bash).to_contain_text("1 failed")
        page.get_by_text("Thinking").first.click()
        expect(page.locator("strong", has_text="think")).to_be_visible()
        answer = page.locator("article.assistant").last
        expect(answer.locator("code", has_text="three")).to_be_visible()
        expect(answer.get_by_role("region", name="python")).to_have_text("y = 3")


def test_pictures_are_seen(history: History, browser: Browser) -> None:
    """What was pasted, and what a tool gave, if it is a picture; anything else that says so is only named."""
    with opened(browser, history.proxy, f"#/requests/{history.ids['last']}") as page:
        read = page.get_by_role("region", name="Tool call Read")
        expect(read.get_by_role("img")).to_have_count(1)
        pictures = page.locator("img")
        expect(pictures).to_have_count(2)
        for at, size in enumerate([[40, 30], [64, 48]]):
            pictures.nth(at).scroll_into_view_if_needed()
            page.wait_for_function("(at) => document.querySelectorAll('img')[at].naturalWidth > 0", arg=at)
            seen = pictures.nth(at).evaluate("(image) => [image.naturalWidth, image.naturalHeight]")
            assert seen == size


def test_where_the_time_went(history: History, browser: Browser) -> None:
    """A waterfall of its phases, with its events; silences, and what came after them."""
    with opened(browser, history.proxy, f"#/requests/{history.ids['first']}?tab=timing") as page:
        for phase in ("connect", "headers", "answer", "events", "total"):
            expect(page.locator(".fall .name", has_text=re.compile(f"^{phase}$"))).to_be_visible()
        assert page.locator(".fall i").count() > 2
        silence = page.get_by_role("row").filter(has_text="content_block")
        expect(silence).to_have_count(1)
        expect(page.locator(".event").first).to_contain_text("message_start")


def test_bytes_and_headers_as_they_were(history: History, browser: Browser) -> None:
    """The body to the byte, as a tree and as text, to be copied and kept; headers without what nobody may see."""
    sent = history.teller.bodies[1][0]
    permissions = ["clipboard-read", "clipboard-write"]
    with opened(browser, history.proxy, f"#/requests/{history.ids['last']}?tab=raw", permissions=permissions) as page:
        expect(page.get_by_role("button", name="messages")).to_be_visible()
        page.get_by_role("button", name="As bytes").click()
        expect(page.get_by_text('"x-anthropic-billing-header', exact=False).first).to_be_visible()
        page.get_by_role("button", name="Copy", exact=True).click()
        expect(page.get_by_text("Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()").encode() == sent
        with page.expect_download() as waiting:
            page.get_by_role("link", name="Download").click()
        assert waiting.value.path().read_bytes() == sent
        page.get_by_role("button", name=re.compile("^Answer ")).click()
        expect(page.get_by_text("event: message_start").first).to_be_visible()
        page.get_by_role("tab", name="Headers").click()
        expect(page.get_by_role("row", name=re.compile("anthropic-version 2023-06-01"))).to_be_visible()
        expect(page.get_by_role("row", name=re.compile("x-claude-code-session-id"))).to_be_visible()
        assert KEY not in page.content()
        assert "x-api-key" not in page.content()


def test_an_error_is_told(history: History, browser: Browser) -> None:
    """Status, kind and words of it; its answer as it was."""
    with opened(browser, history.proxy, f"#/requests/{history.ids['error']}") as page:
        note = page.get_by_role("status").filter(has_text="Overloaded, come again.")
        expect(note).to_contain_text("overloaded_error")
        shown = page.get_by_role("region", name=f"Request {history.ids['error']}")
        expect(shown.get_by_text("529")).to_be_visible()
        go(page, f"#/requests/{history.ids['error']}?tab=headers")
        expect(page.get_by_role("row", name="retry-after 7")).to_be_visible()


def test_5_mb_do_not_freeze_the_page(history: History, browser: Browser) -> None:
    """However such a body is looked at, the page goes on answering: its clock never stands still."""
    large = history.ids["large"]
    with opened(browser, history.proxy, "#/requests") as page:
        page.evaluate(HEARTBEAT)
        go(page, f"#/requests/{large}")
        page.get_by_role("button", name="Show it").click()
        page.get_by_role("button", name="Show all").click()
        expect(page.get_by_text("All work and no play").first).to_be_visible()
        go(page, f"#/requests/{large}?tab=raw")
        expect(page.get_by_role("button", name="messages")).to_be_visible()
        page.get_by_role("button", name="As bytes").click()
        expect(page.get_by_text("All work and no play").first).to_be_visible()
        longest = page.evaluate("window.longest")
        assert 0 < longest < FREEZE_MS
        assert page.evaluate("document.body.textContent.length") < 500_000
