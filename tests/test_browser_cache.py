"""Where a conversation's prompt parts from the one before, in a browser, from a real proxy and what it recorded.

These tests take seconds: a browser and a proxy start for real.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import attrs
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import chromium, go, opened, recorded
from tests.coding import FOLLOWS, Agent, Json, Teller, Told, recording_proxy, text
from tests.processes import Proxy

PROMPT = "prompt-1"
LONG = "The relay holds a slow client's upstream back, and leaves the upstream when its client leaves. " * 60
"""More tokens than a break must miss to be listed."""


@attrs.frozen
class History:
    """A proxy, what it was asked, and the ids of requests that say something: by the name of what they show."""

    proxy: Proxy
    teller: Teller
    ids: dict[str, str]

    def agent(self, session: str) -> Agent:
        return Agent(proxy=self.proxy, teller=self.teller, session=session, prompt=PROMPT)


def answer(words: str, reason: Json | None = None) -> Told:
    return Told(content=[text(words)], diagnostics={"cache_miss_reason": reason})


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """Conversations whose last turn differs from the one before in what is their name."""
    directory = tmp_path_factory.mktemp("cache")
    with Teller() as teller, recording_proxy(directory, teller) as proxy:
        history = History(proxy, teller, {})
        for name in ("appended", "system", "message", "first", "tool", "parameter", "compaction"):
            agent = history.agent(f"{name}-0000-4000-8000-000000000000")
            agent.ask(f"What does the relay do? This is about {name}. {LONG}", told=answer("It relays."))
            reason = None
            match name:
                case "system":
                    agent.system[1] = agent.system[1].replace("software", "hardware", 1)
                    reason = {"type": "system_changed", "cache_missed_input_tokens": 2345}
                case "message":
                    agent.ask(f"Why? {LONG}", told=answer("Because."))
                    agent.messages[1]["content"] = [text("It delays.")]
                case "first":
                    agent.messages[0]["content"] += " Today is Tuesday."
                case "tool":
                    agent.tools[3] = {**agent.tools[3], "description": "Finds <script>alert(1)</script>."}
                    reason = {"type": "something_new", "detail": {"tool": "Grep"}}
                case "parameter":
                    agent.parameters = {"thinking": {"type": "disabled"}, "tool_choice": {"type": "auto"}}
                case "compaction":
                    told = Told(content=[text("<summary>The relay relays, in short.</summary>")])
                    agent.ask("Your task is to write a summary of the conversation so far.", told=told)
                    agent.messages[:] = []
            if name == "compaction":
                question = f"{FOLLOWS} The conversation is summarized below: The relay relays, in short."
            else:
                question = "And then?"
            history.ids[name] = agent.ask(question, told=answer("Then it ends.", reason))
        recorded(proxy, 16)
        yield history


def explained(page: Page) -> str:
    words = page.locator(".explained")
    expect(words).to_be_visible()
    return " ".join(words.inner_text().split())


def test_what_was_only_added_to_is_read(history: History, browser: Browser) -> None:
    """Nothing broke: all that was left is read, and the prompt goes on behind it."""
    with opened(browser, history.proxy, f"#/requests/{history.ids['appended']}?tab=tokens") as page:
        said = explained(page)
    assert "All that" in said
    assert "goes on behind the previous one" in said


@pytest.mark.parametrize(
    ("name", "block", "before", "after"),
    [
        ("system", "system[2]", "software", "hardware"),
        ("message", "messages[1].content[0] (assistant)", "relays.", "delays."),
        ("first", "messages[0].content (user)", '"', " Today is Tuesday."),
        ("tool", "tools[3]", "Searches files", "Finds <script>"),
    ],
)
def test_a_break_names_block_and_byte(
    history: History, browser: Browser, name: str, block: str, before: str, after: str
) -> None:
    """Where the two bodies part, to the byte; both sides; what was missed, and what it cost."""
    request = history.ids[name]
    status, report = history.proxy.get(f"/api/requests/{request}/cache")
    assert status == 200
    byte = report["divergence"]["byte"]
    sent = next(body for body, _ in reversed(history.teller.bodies) if f"about {name}.".encode() in body)
    assert sent[byte:].startswith(after.encode()), sent[byte - 40 : byte + 40]
    with opened(browser, history.proxy, f"#/requests/{request}?tab=tokens") as page:
        said = explained(page)
        assert f"The prompts part at {block}, byte {byte:,} of the body" in said
        assert f"{report['missedTokens']:,} tokens missed of {report['expectedTokens']:,}" in said
        assert re.search(rf"which cost \${report['extraCostNanousd'] / 1e9:.3f}\d* more", said)
        expect(page.locator("pre.removed mark")).to_contain_text(before)
        expect(page.locator("pre.added mark")).to_contain_text(after)


def test_the_apis_own_reason_is_told(history: History, browser: Browser) -> None:
    """In words where it is known, as it stands where it is not; nothing where the API said nothing."""
    with opened(browser, history.proxy, f"#/requests/{history.ids['system']}?tab=tokens") as page:
        said = explained(page)
        assert "The API's reason: system_changed, the system prompt is not the same; about 2,345 tokens missed." in said
        go(page, f"#/requests/{history.ids['tool']}?tab=tokens")
        expect(page.locator(".explained")).to_contain_text("tools[3]")
        assert "The API's reason: something_new" in explained(page)
        go(page, f"#/requests/{history.ids['message']}?tab=tokens")
        expect(page.locator(".explained")).to_contain_text("messages[1]")
        assert "The API's reason" not in explained(page)


def test_other_parameters_are_named(history: History, browser: Browser) -> None:
    """Where the prompt is the same, what else differs is what the cache may depend on."""
    with opened(browser, history.proxy, f"#/requests/{history.ids['parameter']}?tab=tokens") as page:
        said = explained(page)
    assert "goes on behind the previous one" in said
    assert "Not as before: thinking, tool_choice." in said


def test_breaks_are_listed_and_open(history: History, browser: Browser) -> None:
    """The newest first, with what each cost; one opens to its reason, and leads to its request; j and Enter do it."""
    listed = history.proxy.get("/api/cache-breaks")[1]["breaks"]
    assert [one["request"]["requestId"] for one in listed] == [
        history.ids[name] for name in ("tool", "first", "message", "system")
    ]
    with opened(browser, history.proxy, "#/cache") as page:
        rows = page.get_by_role("region", name="Breaks").get_by_role("button")
        expect(rows).to_have_count(4)
        lost = sum(one["extraCostNanousd"] for one in listed) / 1e9
        expect(page.get_by_role("heading", name="Breaks")).to_contain_text(f"together ${lost:.3f}")
        for _ in range(4):
            page.keyboard.press("j")
        page.keyboard.press("Enter")
        expect(rows.nth(3)).to_have_attribute("aria-expanded", "true")
        assert "system_changed" in explained(page)
        page.get_by_role("link", name="all that changed").click()
        changed = page.get_by_role("region", name="system")
        expect(changed.locator(".removed")).to_contain_text("software")
        expect(changed.locator(".added")).to_contain_text("hardware")


def test_a_compaction_is_called_so(history: History, browser: Browser) -> None:
    """What a summary takes the place of is no accident."""
    with opened(browser, history.proxy, f"#/requests/{history.ids['compaction']}?tab=tokens") as page:
        assert "The conversation was compacted" in explained(page)


def test_a_new_break_shows_by_itself(history: History, browser: Browser) -> None:
    """On a page that is open already, without a reload."""
    with opened(browser, history.proxy, "#/cache") as page:
        rows = page.get_by_role("region", name="Breaks").get_by_role("button")
        expect(rows).to_have_count(4)
        agent = history.agent("live-0000-4000-8000-000000000000")
        agent.ask(f"Now? {LONG}", told=answer("Now."))
        agent.system[0] = "You are somebody else."
        agent.ask("Still?", told=answer("Still."))
        expect(rows).to_have_count(5)
        expect(rows.first).to_contain_text("missed")


def test_share_of_each_request(history: History, browser: Browser) -> None:
    """For each request a bar that says in words what was read, written and neither."""
    newest = json.loads(json.dumps(recorded(history.proxy, 1)[0]))
    usage = newest["usage"]
    with opened(browser, history.proxy, "#/cache") as page:
        bar = page.get_by_role("region", name="Each request").get_by_role("img").first
        expect(bar).to_have_attribute(
            "aria-label",
            f"Prompt: {usage['cacheReadTokens']:,} read from cache, {usage['cacheWrite5mTokens']:,} written, "
            f"{usage['inputTokens']:,} uncached",
        )
