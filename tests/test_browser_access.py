"""Who sees the page and who does not, and how it is found again: in a browser, from a real proxy.

These tests take seconds: a browser and a proxy start for real.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import chromium, go, opened, recorded
from tests.coding import Agent, Teller, Told, call, recording_proxy, result, text
from tests.processes import Proxy

SESSION = "5a1d7c90-28aa-4a41-9c3e-2c1d7e9f0a44"
FOREIGN = "evil.example"
PASSWORD = "correct horse battery"


@attrs.frozen
class History:
    """A proxy that a session has passed."""

    proxy: Proxy
    request: str
    conversation: str

    def addresses(self) -> dict[str, str]:
        """Every view and side there is, and words that only it has."""
        return {
            "#/now": "Just ended",
            "#/requests?q=nothing-says-this": "No request matches.",
            f"#/requests/{self.request}": "toolu_1",
            f"#/requests/{self.request}?tab=changes": "in common",
            f"#/requests/{self.request}?tab=raw": "As bytes",
            f"#/requests/{self.request}?tab=headers": "Known of it",
            f"#/requests/{self.request}?tab=timing": "Waterfall",
            f"#/requests/{self.request}?tab=tokens": "read from the cache",
            "#/sessions": "1 prompt",
            f"#/sessions/{SESSION}": "Prompt 1",
            "#/conversations?source=recorded": "Where does it end?",
            f"#/conversations/{self.conversation}": "Where does it end?",
            "#/cache": "Each request",
            "#/usage?range=7d&by=session": "Cost by session",
        }


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(f"--host-resolver-rules=MAP {FOREIGN} 127.0.0.1") as running:
        yield running


@pytest.fixture(scope="module")
def teller() -> Iterator[Teller]:
    with Teller() as running:
        yield running


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, teller: Teller) -> Iterator[History]:
    directory = tmp_path_factory.mktemp("access")
    with recording_proxy(directory, teller) as proxy:
        agent = Agent(proxy=proxy, teller=teller, session=SESSION, prompt="prompt-1")
        edit = call("Edit", "toolu_1", file_path="/src/relay.py", old_string="a" * 300, new_string="b" * 300)
        agent.ask("Where does it end?", told=Told(content=[edit], stop_reason="tool_use"))
        request = agent.ask(result("toolu_1", "edited " * 80), told=Told(content=[text("There. " + "x" * 400)]))
        newest, _ = recorded(proxy, 2)
        yield History(proxy, request, newest["conversation"])


def seen(page: Page, words: str) -> None:
    expect(page.get_by_role("main")).to_contain_text(words)


def test_a_name_that_was_made_to_lead_here(history: History, browser: Browser) -> None:
    """A page of another name that resolves to this host sees neither page nor API, and is told why."""
    context = browser.new_context()
    try:
        page = context.new_page()
        answer = page.goto(f"http://{FOREIGN}:{history.proxy.port}/")
        assert answer is not None
        assert answer.status == 403
        expect(page.locator("body")).to_contain_text("DASHBOARD_PASSWORD")
        asked = "(path) => fetch(path).then(async (answer) => [answer.status, await answer.text()])"
        for path in ("/api/requests", "/api/live", f"/api/requests/{history.request}/request-body"):
            status, said = page.evaluate(asked, path)
            assert status == 403
            assert "Where does it end?" not in said
    finally:
        context.close()


def test_a_page_from_elsewhere_reads_and_changes_nothing(history: History, teller: Teller, browser: Browser) -> None:
    """Its script may not even read the refusal; the records stay."""
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(teller.url)
        address = f"{history.proxy.url}/api/requests"
        for options in ("{}", "{method: 'POST', mode: 'no-cors', body: 'x'}", "{method: 'DELETE'}"):
            said = page.evaluate(f"fetch('{address}', {options}).then((answer) => answer.type, (error) => error.name)")
            assert said == "TypeError"
    finally:
        context.close()
    assert history.proxy.get("/api/requests")[1]["total"] == 2


def test_changes_need_the_pages_token(history: History, browser: Browser) -> None:
    """What a script could send from the page's own origin without knowing the token is refused."""
    with opened(browser, history.proxy, "#/now") as page:
        seen(page, "Just ended")
        status = page.evaluate("fetch('/api/requests', {method: 'DELETE'}).then((answer) => answer.status)")
    assert status == 403
    assert history.proxy.get("/api/requests")[1]["total"] == 2


def test_a_shared_link_survives_the_login(
    browser: Browser, teller: Teller, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Who follows it logs in and is where it leads; no script sees the session; after its end the login is back."""
    directory = tmp_path_factory.mktemp("login")
    with (
        recording_proxy(directory, teller, DASHBOARD_PASSWORD=PASSWORD) as proxy,
        opened(browser, proxy, "#/usage?range=7d&by=agent") as page,
    ):
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Usage", exact=True)).to_be_visible()
        expect(page.get_by_role("link", name="Week")).to_have_attribute("aria-current", "true")
        assert page.evaluate("document.cookie") == ""
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        page.reload()
        expect(page.get_by_role("heading", name="Usage", exact=True)).to_be_visible()
        page.context.clear_cookies()
        go(page, "#/requests")
        expect(page.get_by_label("Password")).to_be_visible()


def test_each_address_leads_back(history: History, browser: Browser) -> None:
    """Opened anew, as from a link that somebody sent, every view and side of it is there as it was."""
    with opened(browser, history.proxy) as page:
        for number, (address, words) in enumerate(history.addresses().items()):
            page.goto(f"{history.proxy.url}/?{number}{address}")
            seen(page, words)


@pytest.mark.parametrize("width", [360, 3840])
def test_nothing_is_wider_than_the_window(history: History, browser: Browser, width: int) -> None:
    """No view and no side of it scrolls sideways as a whole, on a telephone or on a wall."""
    with opened(browser, history.proxy, viewport={"width": width, "height": 900}) as page:
        for address, words in history.addresses().items():
            go(page, address)
            seen(page, words)
            expect(page.get_by_text("Loading…")).to_have_count(0)
            wide = page.evaluate(
                "[...document.querySelectorAll('main, .page, .side, .thread, .rows')].filter((one) =>"
                " one.scrollWidth > one.clientWidth + 1).map((one) => one.className)"
            )
            assert (address, wide) == (address, [])
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_keys(history: History, browser: Browser) -> None:
    """Each view by its number, help by ``?``, the search by ``/`` from anywhere, Esc back."""
    with opened(browser, history.proxy) as page:
        seen(page, "Just ended")
        for key, view in enumerate(("now", "requests", "sessions", "conversations", "cache", "usage"), 1):
            page.keyboard.press(str(key))
            expect(page).to_have_url(re.compile(f"#/{view}"))
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
        page.keyboard.press("2")
        expect(page).to_have_url(re.compile("#/usage"))
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog", name="Keys")).not_to_be_visible()
        page.keyboard.press("/")
        expect(page.get_by_role("searchbox")).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.get_by_role("listitem").first).to_be_visible()
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("k")
        page.keyboard.press("Enter")
        expect(page).to_have_url(re.compile(f"#/requests/{history.request}"))
        page.keyboard.press("j")
        expect(page).not_to_have_url(re.compile(history.request))
        page.keyboard.press("Escape")
        expect(page).to_have_url(re.compile(r"#/requests(\?|$)"))


@pytest.mark.parametrize("view", ["now", "requests", "sessions", "conversations", "cache", "usage"])
def test_empty_views_say_how_to_begin(browser: Browser, empty: Proxy, view: str) -> None:
    """Each view that has nothing to show says what to type, with this proxy's own address."""
    with opened(browser, empty, f"#/{view}") as page:
        seen(page, f"export ANTHROPIC_BASE_URL={empty.url}")
        for words in ("CLAUDE_CODE_GATEWAY_HINT_HEADERS=1", "ENABLE_TOOL_SEARCH=true", f"curl {empty.url}/v1/messages"):
            seen(page, words)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, teller: Teller) -> Iterator[Proxy]:
    """A proxy that nothing has passed."""
    directory = tmp_path_factory.mktemp("empty")
    with recording_proxy(directory, teller) as proxy:
        yield proxy
