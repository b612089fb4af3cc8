"""The page for those who do not see it, or only see it large: what axe-core finds in each view, in both colours.

These tests take seconds: a browser and a proxy start for real.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser import ask, chromium, opened, question, recorded, recording
from tests.processes import Proxy, StandIn, proxy

AXE = Path(__file__).parent.parent / "svelte" / "node_modules" / "axe-core" / "axe.min.js"
RUN = """async () => (await axe.run()).violations
    .filter((found) => ["serious", "critical"].includes(found.impact))
    .map((found) => `${found.id}: ${found.nodes.map((node) => node.html.slice(0, 160)).join(" | ")}`)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, upstream: StandIn) -> Iterator[Proxy]:
    """A proxy that a few requests have passed, well and badly."""
    directory = tmp_path_factory.mktemp("axe")
    session = {"x-claude-code-session-id": "5f0c1f9e-3d52-4d51-9a55-0c6c0f6d7a11"}
    with proxy(directory, upstream, **recording(directory)) as running:
        ask(running, question("one", system="Be brief.", tools=[{"name": "Edit"}]), session)
        ask(running, question("two"), {"x-standin": "error?status=529&type=overloaded_error"})
        ask(running, question("three"), {**session, "x-standin": "message?say=thinking"})
        recorded(running, 3)
        yield running


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "view",
    [
        "now",
        "requests",
        "sessions",
        "conversations",
        "cache",
        "usage",
        "ID",
        "ID?tab=raw",
        "ID?tab=timing",
        "ID?tab=tokens",
    ],
)
def test_axe_finds_nothing_serious(history: Proxy, browser: Browser, view: str, scheme: str) -> None:
    """Names, roles, contrast."""
    assert AXE.is_file(), "axe-core is not there. Run: make test (or npm ci, in svelte/)"
    newest = recorded(history, 3)[0]["requestId"]
    address = f"#/requests/{view.replace('ID', newest)}" if view.startswith("ID") else f"#/{view}"
    with opened(browser, history, address, color_scheme=scheme) as page:
        page.get_by_role("main").wait_for()
        page.wait_for_function("() => !document.body.textContent.includes('Loading…')")
        page.evaluate(AXE.read_text())
        assert page.evaluate(RUN) == []
