"""What leads out of the page: files, a line for the shell, the request once more. In a browser, from a real proxy.

These tests take seconds: a browser and a proxy start for real.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from playwright.sync_api import Browser, Dialog, Page, expect

from tests.browser import KEY, chromium, opened, recorded
from tests.coding import Agent, Teller, Told, call, recording_proxy, result, text, thinking
from tests.processes import Proxy, clean_environment

SESSION = "3c8e4a52-91f7-4d0a-8f5e-6a1b2c3d4e5f"
HOSTILE = (
    "</pre><script>document.title = 'owned'</script><img src=https://example.invalid/p.png onerror=alert(1)> `id` $(id)"
)
ANOTHER_KEY = "sk-ant-api03-of-somebody-else"


@attrs.frozen
class History:
    """A proxy that a session of two requests has passed."""

    proxy: Proxy
    teller: Teller
    directory: Path
    ids: list[str]

    @property
    def last(self) -> str:
        return self.ids[-1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """What is said in it would do harm wherever it were taken for more than text."""
    directory = tmp_path_factory.mktemp("exports")
    with Teller() as teller, recording_proxy(directory, teller) as proxy:
        agent = Agent(proxy=proxy, teller=teller, session=SESSION, prompt="prompt-1")
        said = [thinking("Hm."), text(HOSTILE), call("Bash", "toolu_1", command=HOSTILE)]
        first = agent.ask(HOSTILE, told=Told(content=said, stop_reason="tool_use", between=0.001))
        last = agent.ask(result("toolu_1", f"é ☃ {HOSTILE}"), told=Told(content=[text("The end.")], between=0.001))
        recorded(proxy, 2)
        yield History(proxy, teller, directory, [first, last])


def download(page: Page, label: str, directory: Path) -> Path:
    """What a link of the menu gives, as a file under the name that it suggests."""
    page.get_by_text("Export", exact=True).click()
    with page.expect_download() as waiting:
        page.get_by_role("link", name=label, exact=True).click()
    page.get_by_text("Export", exact=True).click()
    file = directory / waiting.value.suggested_filename
    waiting.value.save_as(file)
    data = file.read_bytes()
    assert KEY.encode() not in data
    return file


# HAR 1.2, http://www.softwareishard.com/blog/har-12-spec/: the members that must be there, and of which kind.
NUMBER = (int, float)
HEADERS = [{"name": str, "value": str}]
ENTRY = {
    "startedDateTime": str,
    "time": NUMBER,
    "request": {
        "method": str, "url": str, "httpVersion": str, "cookies": [], "headers": HEADERS, "queryString": HEADERS,
        "postData": {"mimeType": str, "text": str}, "headersSize": int, "bodySize": int,
    },
    "response": {
        "status": int, "statusText": str, "httpVersion": str, "cookies": [], "headers": HEADERS,
        "content": {"size": int, "mimeType": str, "text": str}, "redirectURL": str, "headersSize": int,
        "bodySize": int,
    },
    "cache": {},
    "timings": {"send": NUMBER, "wait": NUMBER, "receive": NUMBER},
}  # fmt: skip
HAR: dict[str, Any] = {"log": {"version": str, "creator": {"name": str, "version": str}, "entries": [ENTRY]}}


def faults(value: Any, shape: Any, at: str = "") -> Iterator[str]:
    """What is not as it must be."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            yield f"{at}: no object"
            return
        for name, inner in shape.items():
            if name in value:
                yield from faults(value[name], inner, f"{at}.{name}")
            else:
                yield f"{at}.{name}: missing"
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{at}: no list"
            return
        for number, each in enumerate(value):
            for inner in shape:
                yield from faults(each, inner, f"{at}[{number}]")
    elif isinstance(value, bool) or not isinstance(value, shape):
        yield f"{at}: {value!r}"


def check_har(file: Path, history: History, count: int) -> None:
    har = json.loads(file.read_text())
    assert list(faults(har, HAR)) == []
    entries = har["log"]["entries"]
    assert (har["log"]["version"], len(entries)) == ("1.2", count)
    for entry, (sent, _) in zip(entries, history.teller.bodies[2 - count :], strict=False):
        assert datetime.datetime.fromisoformat(entry["startedDateTime"]).tzinfo is not None
        assert sum(each for each in entry["timings"].values() if each >= 0) == pytest.approx(entry["time"])
        assert entry["request"]["postData"]["text"].encode() == sent
        assert entry["request"]["bodySize"] == len(sent)
        assert entry["request"]["queryString"] == [{"name": "beta", "value": "true"}]
        assert entry["response"]["status"] == 200
        assert "message_stop" in entry["response"]["content"]["text"]


def check_jsonl(file: Path, history: History, count: int) -> None:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["requestId"] for line in lines] == history.ids[-count:]
    assert lines[-1]["request"] == json.loads(history.teller.bodies[1][0])
    assert lines[-1]["answer"]["content"][0]["text"] == "The end."


def check_markdown(file: Path, history: History, count: int) -> None:
    written = file.read_text()
    for request in history.ids[-count:]:
        assert f"# {request}" in written
    assert "## Assistant (answer)\n\nThe end." in written
    assert "**Tool: Bash**" in written


CHECKS = {"HAR": check_har, "JSONL": check_jsonl, "Markdown": check_markdown}


@pytest.mark.parametrize("of", ["request", "session"])
def test_files(history: History, browser: Browser, tmp_path: Path, of: str) -> None:
    """Each link of the menu gives a file that is what it is called, of a request and of a whole session."""
    address, count = (f"#/requests/{history.last}", 1) if of == "request" else (f"#/sessions/{SESSION}", 2)
    with opened(browser, history.proxy, address) as page:
        for label, check in CHECKS.items():
            check(download(page, label, tmp_path), history, count)


@pytest.mark.parametrize("of", ["request", "session"])
def test_html_needs_nobody_and_runs_nothing(history: History, browser: Browser, tmp_path: Path, of: str) -> None:
    """Opened from a disk it asks nobody for anything, and what a model wrote is text in it."""
    address = f"#/requests/{history.last}" if of == "request" else f"#/sessions/{SESSION}"
    with opened(browser, history.proxy, address) as page:
        file = download(page, "HTML", tmp_path)
    context = browser.new_context()
    try:
        alone = context.new_page()
        asked: list[str] = []
        said: list[str] = []

        def heard(dialog: Dialog) -> None:
            said.append(dialog.message)
            dialog.dismiss()

        alone.on("request", lambda request: asked.append(request.url))
        alone.on("dialog", heard)
        alone.goto(file.as_uri(), wait_until="networkidle")
        expect(alone.get_by_text("The end.")).to_be_visible()
        expect(alone.get_by_text(HOSTILE).first).to_be_visible()
        assert alone.title() == "claude-proxy"
        assert alone.locator("script, img, iframe, object, embed, link, form, [onerror]").count() == 0
        assert (asked, said) == ([file.as_uri()], [])
    finally:
        context.close()


def run(script: str, proxy: Proxy) -> subprocess.CompletedProcess[bytes]:
    environment = clean_environment(ANTHROPIC_BASE_URL=proxy.url, ANTHROPIC_API_KEY=ANOTHER_KEY)
    return subprocess.run(["bash"], input=script.encode(), capture_output=True, timeout=30, env=environment, check=True)


def test_curl_sends_what_was_sent(history: History, browser: Browser) -> None:
    """What is copied runs in a shell: the same bytes come to the upstream again, with the key of who runs it."""
    permissions = ["clipboard-read", "clipboard-write"]
    with opened(browser, history.proxy, f"#/requests/{history.last}", permissions=permissions) as page:
        page.get_by_role("button", name="Copy as curl").click()
        expect(page.get_by_text("Copied")).to_be_visible()
        script = page.evaluate("navigator.clipboard.readText()")
    assert KEY not in script
    sent, headers = history.teller.bodies[1]
    before = len(history.teller.bodies)
    done = run(script, history.proxy)
    assert b"message_stop" in done.stdout
    ((again, again_headers),) = history.teller.bodies[before:]
    assert again.rstrip(b"\n") == sent
    assert again_headers["x-api-key"] == ANOTHER_KEY
    for name in ("anthropic-version", "anthropic-beta", "user-agent", "x-app", "x-claude-code-session-id"):
        assert again_headers[name] == headers[name]


def test_session_as_a_script(history: History, browser: Browser, tmp_path: Path) -> None:
    """All requests of a session, one after the other."""
    with opened(browser, history.proxy, f"#/sessions/{SESSION}") as page:
        expect(page.get_by_role("heading", name="Prompt 1")).to_be_visible()
        file = download(page, "Shell script", tmp_path)
    before = len(history.teller.bodies)
    run(file.read_text(), history.proxy)
    sent = [body.rstrip(b"\n") for body, _ in history.teller.bodies[before:]]
    assert sent[:2] == [body for body, _ in history.teller.bodies[:2]]


def test_send_again(history: History, browser: Browser) -> None:
    """From the page, to another model, with a key that is asked for and kept nowhere; the new request opens."""
    before = len(history.teller.bodies)
    with opened(browser, history.proxy, f"#/requests/{history.last}") as page:
        page.get_by_role("button", name="Send again…").click()
        dialog = page.get_by_role("dialog", name="Send it again")
        dialog.get_by_label("Model").fill("claude-haiku-4-5")
        dialog.get_by_label("API key or token").fill(ANOTHER_KEY)
        dialog.get_by_role("button", name="Send", exact=True).click()
        expect(dialog).not_to_be_visible()
        expect(page).not_to_have_url(re.compile(history.last))
        expect(page.get_by_role("heading", name="claude-haiku-4-5")).to_be_visible()
        expect(page.locator("article.assistant").last).to_contain_text("The end.")
        request = page.url.rpartition("/")[2]
    ((body, headers),) = history.teller.bodies[before:]
    assert headers["x-api-key"] == ANOTHER_KEY
    first = json.loads(history.teller.bodies[1][0])
    assert json.loads(body) == {**first, "model": "claude-haiku-4-5"}
    assert history.proxy.get(f"/api/requests/{request}")[1]["model"] == "claude-haiku-4-5"
    for file in history.directory.rglob("*"):
        assert not file.is_file() or ANOTHER_KEY.encode() not in file.read_bytes(), file


def test_send_again_says_what_is_wrong(history: History, browser: Browser) -> None:
    """In the dialog, which stays; nothing is sent. Esc leaves it."""
    before = len(history.teller.bodies)
    with opened(browser, history.proxy, f"#/requests/{history.last}") as page:
        page.get_by_role("button", name="Send again…").click()
        dialog = page.get_by_role("dialog", name="Send it again")
        dialog.get_by_label("API key or token").fill("not a key")
        dialog.get_by_role("button", name="Send", exact=True).click()
        expect(dialog.get_by_role("alert")).to_contain_text("apiKey: printable characters")
        page.keyboard.press("Escape")
        expect(dialog).not_to_be_visible()
    assert len(history.teller.bodies) == before
