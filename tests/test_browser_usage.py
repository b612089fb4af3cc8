"""What was used over time, in a browser, from a real proxy.

These tests take seconds: a browser and a proxy start for real.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.browser import chromium, go, opened, recorded
from tests.coding import Agent, Teller, Told, recording_proxy, text
from tests.processes import Proxy

SESSION = "c2d0a7be-14f7-4c5b-8d4a-0f3b9e6a5d21"
PROJECT = "-home-somebody-relay"
LIMITS = {
    "anthropic-ratelimit-unified-status": "allowed_warning",
    "anthropic-ratelimit-unified-5h-status": "allowed",
    "anthropic-ratelimit-unified-5h-utilization": "0.42",
    "anthropic-ratelimit-unified-5h-reset": "1900000000",
    "anthropic-ratelimit-unified-7d-status": "allowed_warning",
    "anthropic-ratelimit-unified-7d-utilization": "0.91",
    "anthropic-ratelimit-unified-7d-reset": "1900400000",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Two models, an agent, a project, an error."""
    directory = tmp_path_factory.mktemp("usage")
    with Teller() as teller, recording_proxy(directory, teller) as proxy:
        (directory / "projects" / PROJECT).mkdir()
        (directory / "projects" / PROJECT / f"{SESSION}.jsonl").write_text("")
        main = Agent(proxy=proxy, teller=teller, session=SESSION, prompt="prompt-1")
        main.ask("One", told=Told(content=[text("Two")], headers=LIMITS, between=0.002))
        explorer = Agent(
            proxy=proxy, teller=teller, session=SESSION, prompt="prompt-1", model="claude-haiku-4-5", agent="agent-1",
            agent_type="Explore", request_class="subagent",
        )  # fmt: skip
        explorer.ask("Three", told=Told(content=[text("Four")], between=0.002))
        main.send(Told(status=529, error={"type": "overloaded_error", "message": "Overloaded"}))
        recorded(proxy, 3)
        yield proxy


@pytest.mark.parametrize(
    ("by", "title", "names"),
    [
        ("model", "model", ["claude-opus-4-5", "claude-haiku-4-5"]),
        ("project", "project", [PROJECT]),
        ("session", "session", [SESSION]),
        ("agentType", "agent type", ["Explore", "none told"]),
        ("agent", "agent", ["agent-1", "none told"]),
        ("requestClass", "class", ["main", "subagent"]),
    ],
)
def test_money_by(history: Proxy, browser: Browser, by: str, title: str, names: list[str]) -> None:
    """A chart in words for those who do not see it, and a row of the table for each."""
    with opened(browser, history, f"#/usage?by={by}") as page:
        chart = page.get_by_role("img", name=re.compile(f"^Cost by {title}: "))
        for name in names:
            expect(chart).to_have_attribute("aria-label", re.compile(re.escape(name)))
            row = page.get_by_role("row", name=re.compile(rf"^{re.escape(name)} \d"))
            expect(row).to_contain_text(re.compile(r"\$0\.\d"))


def test_speed_errors_and_windows(history: Proxy, browser: Browser) -> None:
    """Percentiles, what failed, and how much of each window of the plan is used up."""
    with opened(browser, history, "#/usage") as page:
        expect(
            page.get_by_role("img", name=re.compile(r"^Time to the first byte: half \(p50\) .*p99 \d"))
        ).to_be_visible()
        expect(page.get_by_role("img", name=re.compile(r"^Tokens a second: half \(p50\) \d"))).to_be_visible()
        expect(page.get_by_role("img", name=re.compile("^Requests: answered 2, failed 1"))).to_be_visible()
        expect(page.get_by_role("img", name=re.compile("^Read from the cache"))).to_be_visible()
        windows = page.get_by_role("region", name="Plan windows")
        for name, used, status in (("5h", "42 %", "allowed"), ("7d", "91 %", "allowed_warning")):
            window = windows.locator(".window").filter(has_text=name)
            expect(window).to_contain_text(used)
            expect(window).to_contain_text(status)
            expect(window).to_contain_text("begins anew")
        expect(windows.get_by_role("meter", name="Used of 7d")).to_have_js_property("value", 0.91)
        go(page, "#/usage?range=30d")
        expect(page.get_by_role("link", name="30 days")).to_have_attribute("aria-current", "true")
        expect(page.get_by_role("img", name=re.compile("^Requests: answered 2, failed 1"))).to_be_visible()
