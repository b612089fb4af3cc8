"""Each view of the dashboard, in a browser, from a real proxy with a stand-in upstream.

These tests take seconds: a browser and a proxy start for real.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.browser import ask, chromium, opened, question, recorded, recording
from tests.processes import Proxy, StandIn, proxy

SESSION = "5f0c1f9e-3d52-4d51-9a55-0c6c0f6d7a11"
HEADERS = {
    "x-claude-code-session-id": SESSION,
    "x-claude-code-prompt-id": "prompt-1",
    "x-claude-code-request-class": "main",
}
ANSWER = 'The tool said "edited 1"'
"""Of the stand-in, to the last of the requests."""
EDIT = {
    "file_path": "/src/relay.py",
    "old_string": "done = True\nreturn None",
    "new_string": "done = True\nreturn done",
}
TODOS = [{"content": "Read the relay", "status": "completed"}, {"content": "Write the verdict", "status": "pending"}]


def conversation(turns: int) -> list[dict[str, Any]]:
    """Messages that begin alike, whatever their number."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Where does the relay end?"}]
    for number in range(turns):
        messages += [
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": f"Step **{number}**."},
                    {"type": "tool_use", "id": f"toolu_e{number}", "name": "Edit", "input": EDIT},
                    {"type": "tool_use", "id": f"toolu_t{number}", "name": "TodoWrite", "input": {"todos": TODOS}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": f"toolu_e{number}", "content": f"edited {number}"},
                    {"type": "tool_result", "tool_use_id": f"toolu_t{number}", "content": "noted"},
                ],
            },
        ]
    return messages


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, upstream: StandIn) -> Iterator[Proxy]:
    """A proxy that a session of three requests has passed, the second and third of which go on the one before."""
    directory = tmp_path_factory.mktemp("views")
    with proxy(directory, upstream, **recording(directory)) as running:
        for turns in range(3):
            body = question("", messages=conversation(turns), system="You are terse.", tools=[{"name": "Edit"}])
            assert ask(running, body, HEADERS)[0] == 200
            recorded(running, turns + 1)
        yield running


def test_empty_page_says_how_to_start(tmp_path: Path, upstream: StandIn, browser: Browser) -> None:
    """Before anything has passed, the page names the variables that Claude Code needs, with its own address."""
    with proxy(tmp_path, upstream, **recording(tmp_path)) as empty, opened(browser, empty) as page:
        expect(page.get_by_text(f"ANTHROPIC_BASE_URL={empty.url}")).to_be_visible()
        expect(page.get_by_text("CLAUDE_CODE_GATEWAY_HINT_HEADERS=1").first).to_be_visible()


def test_requests_are_listed_and_open(history: Proxy, browser: Browser) -> None:
    """A list, the newest first; j, Enter and Esc go through it; the open request is in the address."""
    with opened(browser, history, "#/requests") as page:
        rows = page.get_by_role("list").get_by_role("link")
        expect(rows).to_have_count(3)
        expect(page.get_by_role("status").filter(has_text="3 requests")).to_be_visible()
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        newest = recorded(history, 3)[0]["requestId"]
        expect(page).to_have_url(re.compile(f"#/requests/{newest}"))
        expect(page.get_by_role("heading", name="claude-opus-4-5")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page).to_have_url(re.compile("#/requests$"))


def test_search_finds_words_of_a_prompt(history: Proxy, browser: Browser) -> None:
    """``/`` leads to the search; what does not match is not listed, and the address carries the search."""
    with opened(browser, history, "#/requests") as page:
        expect(page.get_by_role("list").get_by_role("link")).to_have_count(3)
        page.keyboard.press("/")
        page.keyboard.type('"edited 1"')
        expect(page.get_by_role("list").get_by_role("link")).to_have_count(1)
        expect(page).to_have_url(re.compile("q="))
        page.get_by_role("searchbox").fill("nothingsaysthis")
        expect(page.get_by_text("No request matches.")).to_be_visible()


def test_an_exchange_is_rendered(history: Proxy, browser: Browser) -> None:
    """Markdown, the diff of an edit, todos, results beside their calls, and the answer."""
    request = recorded(history, 3)[0]["requestId"]
    with opened(browser, history, f"#/requests/{request}") as page:
        edit = page.get_by_role("region", name="Tool call Edit").last
        expect(edit.locator(".removed")).to_have_text(re.compile("return None"))
        expect(edit.locator(".added")).to_have_text(re.compile("return done"))
        expect(edit.get_by_text("edited 1")).to_be_visible()
        expect(page.get_by_role("img", name="completed").last).to_be_visible()
        expect(page.locator("strong", has_text=re.compile("^1$"))).to_be_visible()
        expect(page.locator("article.assistant").last).to_contain_text(ANSWER)


def test_sides_of_an_exchange(history: Proxy, browser: Browser) -> None:
    """Changes, raw bytes, headers, times, tokens: each under an address of its own."""
    request = recorded(history, 3)[0]["requestId"]
    with opened(browser, history, f"#/requests/{request}?tab=changes") as page:
        expect(page.get_by_text("3 messages in common")).to_be_visible()
        expect(page.get_by_text("2 new")).to_be_visible()
        page.get_by_role("tab", name="Raw").click()
        expect(page.get_by_role("button", name="messages")).to_be_visible()
        page.get_by_role("tab", name="Headers").click()
        expect(page.get_by_text(SESSION).first).to_be_visible()
        page.get_by_role("tab", name="Timing").click()
        expect(page.get_by_text("message_stop")).to_be_visible()
        page.get_by_role("tab", name="Tokens & cache").click()
        expect(page.get_by_role("cell", name="1,000", exact=True)).to_be_visible()
        expect(page).to_have_url(re.compile("tab=tokens"))


def test_a_session_is_a_tree(history: Proxy, browser: Browser) -> None:
    """Session, prompt, agent, request."""
    with opened(browser, history, "#/sessions") as page:
        page.get_by_role("link").filter(has_text=SESSION[-8:]).click()
        expect(page.get_by_role("heading", name="Prompt 1")).to_be_visible()
        group = page.get_by_role("group", name="Agent main")
        expect(group.locator("[data-row]")).to_have_count(3)


def test_a_conversation_is_one_thread(history: Proxy, browser: Browser) -> None:
    """Its requests at the side, its messages as one thread."""
    with opened(browser, history, "#/conversations") as page:
        page.get_by_role("link").filter(has_text="Where does the relay end?").first.click()
        expect(page.get_by_text("3 requests")).to_be_visible()
        expect(page.locator("article.assistant").last).to_contain_text(ANSWER)


def test_cache_and_usage_are_shown(history: Proxy, browser: Browser) -> None:
    """What was read, written and missed; totals and charts."""
    with opened(browser, history, "#/cache") as page:
        expect(page.get_by_role("img", name=re.compile("1,000 read from cache, 7 written")).first).to_be_visible()
        page.get_by_role("link", name="Usage").click()
        expect(page.get_by_role("img", name=re.compile("^Tokens: "))).to_be_visible()
        expect(page.locator("canvas").first).to_be_visible()


@pytest.mark.parametrize("width", [360, 3840])
@pytest.mark.parametrize("view", ["now", "requests", "sessions", "conversations", "cache", "usage"])
def test_nothing_is_wider_than_the_window(history: Proxy, browser: Browser, view: str, width: int) -> None:
    """From a telephone to a wall."""
    with opened(browser, history, f"#/{view}", viewport={"width": width, "height": 900}) as page:
        page.get_by_role("main").wait_for()
        page.wait_for_load_state("load")
        expect(page.get_by_text("Loading…")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_and_light(history: Proxy, browser: Browser) -> None:
    """As the system says, until somebody chooses; the choice is remembered."""
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    with opened(browser, history, color_scheme="dark") as page:
        dark = page.evaluate(ground)
        page.get_by_role("button", name="Colours: system").click()
        assert page.evaluate(ground) != dark
        page.reload()
        expect(page.get_by_role("button", name="Colours: light")).to_be_visible()
        assert page.evaluate(ground) != dark
