"""A headless Chromium before a real proxy: what the browser tests share.

Debian's ``chromium`` is used where it is, as Playwright's own would have to be downloaded.
"""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import attrs
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.processes import Proxy, wait_for

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")
LIMIT_MS: Final = 20_000
"""How long the browser waits for anything: generous, as a loaded machine is not a failure."""
KEY: Final = "sk-ant-api03-browser-test"

expect.set_options(timeout=LIMIT_MS)


@contextmanager
def chromium(*arguments: str) -> Iterator[Browser]:
    """A running browser, with more arguments. Fails where there is none: a test that is not run shows nothing."""
    assert CHROMIUM, "The browser tests need Chromium. On Debian: apt install chromium"
    with sync_playwright() as playwright:
        # Its sandbox needs rights that a container does not give; nothing but our own page is opened.
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *arguments]
        )
        try:
            yield browser
        finally:
            browser.close()


@attrs.define(eq=False, slots=False)  # Playwright marks the objects whose methods it calls.
class Complaints:
    """What a page complained of: errors of scripts, refusals of its policy, requests to anywhere else."""

    origin: str
    said: list[str] = attrs.field(factory=list)

    def watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on("console", self._console)
        page.on("request", lambda request: self._asked(request.url))

    def _console(self, message: ConsoleMessage) -> None:
        # What the API refuses is said on the page; the browser says it here as well.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.said.append(f"console: {message.text}")

    def _asked(self, url: str) -> None:
        if not url.startswith((f"{self.origin}/", "data:", "blob:")):
            self.said.append(f"request: {url}")


def go(page: Page, address: str) -> None:
    """Another address of the page that is open, such as ``#/requests``: nothing is loaded anew."""
    page.evaluate("(address) => { location.hash = address; }", address)


@contextmanager
def opened(browser: Browser, proxy: Proxy, address: str = "", **context: Any) -> Iterator[Page]:
    """The dashboard at an address such as ``#/requests``. Nothing it complains of is overlooked."""
    complaints = Complaints(proxy.url)
    within = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **context})
    within.set_default_timeout(LIMIT_MS)
    try:
        page = within.new_page()
        complaints.watch(page)
        page.goto(f"{proxy.url}/{address}")
        yield page
        assert complaints.said == []
    finally:
        within.close()


def ask(
    proxy: Proxy, body: Mapping[str, Any], headers: Mapping[str, str] | None = None, path: str = "/v1/messages"
) -> tuple[int, bytes]:
    """One request through the proxy, to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
    fields = {"content-type": "application/json", "x-api-key": KEY, "anthropic-version": "2023-06-01"}
    try:
        connection.request("POST", path, json.dumps(body), {**fields, **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def question(text: str, **more: Any) -> dict[str, Any]:
    """A request body."""
    messages = [{"role": "user", "content": text}]
    return {"model": "claude-opus-4-5", "max_tokens": 100, "stream": True, "messages": messages, **more}


def recorded(proxy: Proxy, count: int) -> list[Mapping[str, Any]]:
    """The newest requests, as soon as so many have ended and are recorded; the newest first."""

    def there() -> list[Mapping[str, Any]] | None:
        found = proxy.get(f"/api/requests?limit={count}&inFlight=false")[1]["requests"]
        return found if len(found) >= count else None

    found: list[Mapping[str, Any]] = wait_for(there, f"{count} requests are recorded", timeout=30)
    return found


@contextmanager
def speaker(content: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """An upstream that answers every request with a message of these blocks. Its address."""
    message = {
        "id": "msg_speaker", "type": "message", "role": "assistant", "model": "claude-opus-4-5", "content": content,
        "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 10, "output_tokens": 20},
    }  # fmt: skip
    data = json.dumps(message).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def recording(directory: Path, **settings: str) -> dict[str, str]:
    """Settings of a proxy that records into a directory, and reads no transcripts of whoever runs the tests."""
    projects = directory / "projects"
    projects.mkdir(exist_ok=True)
    return {
        "RECORD": "full",
        "DB_PATH": str(directory / "requests.db"),
        "CLAUDE_PROJECTS_DIR": str(projects),
        **settings,
    }
