"""Sessions as trees, conversations as threads, transcripts beside them: in a browser, from a real proxy.

These tests take seconds: a browser and a proxy start for real.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import chromium, go, opened, recorded
from tests.coding import FOLLOWS, Agent, Teller, Told, call, recording_proxy, result, text
from tests.processes import Proxy

SESSION = "0b9d5c1e-7a60-4b7e-9a55-3f6c0f6d7a20"
PROJECT = "-home-somebody-relay"
SUMMARY = "The relay was read, and its end was found."


@attrs.frozen
class History:
    """A proxy that a session has passed; `ids` of requests by the name of what they are."""

    proxy: Proxy
    main: Agent
    ids: dict[str, str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def line(kind: str, message: object, second: int, **more: object) -> str:
    known = {
        "type": kind,
        "message": message,
        "timestamp": f"2026-11-02T10:00:{second:02}.000Z",
        "sessionId": SESSION,
        "cwd": "/home/somebody/relay",
        "uuid": f"00000000-0000-4000-8000-0000000000{second:02}",
    }
    return json.dumps({**known, **more})


def write_transcript(projects: Path) -> None:
    """Claude Code's own file of the session: seven lines, two of which are damaged, and half a line."""
    directory = projects / PROJECT
    directory.mkdir()
    said = [text("I **look**."), call("Bash", "toolu_t", command="ls -l")]
    lines = [
        line("user", {"role": "user", "content": "<system-reminder>hidden</system-reminder>"}, 0, isMeta=True),
        line("user", {"role": "user", "content": "What does the transcript say?"}, 1),
        "{ damaged",
        line("assistant", {"role": "assistant", "content": said}, 2),
        '{"type": "user", "message": ',
        line("user", {"role": "user", "content": [result("toolu_t", "total 0")]}, 3),
        line("assistant", {"role": "assistant", "content": [text("Aside.")]}, 4, isSidechain=True),
    ]
    (directory / f"{SESSION}.jsonl").write_text("\n".join(lines) + '\n{"type": "user", "mess')


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """
    A session of three prompts: in the first the main agent calls an agent, and that another one; in the second somebody
    goes a step back and asks something else; the third is behind a summary.
    """
    directory = tmp_path_factory.mktemp("conversations")
    with Teller() as teller, recording_proxy(directory, teller) as proxy:
        write_transcript(directory / "projects")
        ids: dict[str, str] = {}
        main = Agent(proxy=proxy, teller=teller, session=SESSION, prompt="prompt-1")

        task = call("Task", "toolu_1", description="Find the end", prompt="Where does it end?", subagent_type="Explore")
        ids["begin"] = main.ask("Where does the relay end?", told=Told(content=[task], stop_reason="tool_use"))
        explorer = Agent(
            proxy=proxy, teller=teller, session=SESSION, prompt="prompt-1", model="claude-haiku-4-5",
            request_class="subagent", agent="agent-explorer", agent_type="Explore", system=["You explore."],
        )  # fmt: skip
        grep = call("Grep", "toolu_2", pattern="end")
        ids["explore"] = explorer.ask("Where does it end?", told=Told(content=[grep], stop_reason="tool_use"))
        helper = Agent(
            proxy=proxy, teller=teller, session=SESSION, prompt="prompt-1", model="claude-haiku-4-5",
            request_class="subagent", agent="agent-helper", parent="agent-explorer", agent_type="custom",
            system=["You help."],
        )  # fmt: skip
        ids["help"] = helper.ask("Look there.", told=Told(content=[text("Nothing there.")]))
        explorer.ask(result("toolu_2", "relay.py:7: end"), told=Told(content=[text("In line 7.")]))
        ids["answer"] = main.ask(result("toolu_1", "In line 7."), told=Told(content=[text("It ends in line 7.")]))

        main.prompt = "prompt-2"
        before = list(main.messages)
        ids["left"] = main.ask("And where does it begin?", told=Told(content=[text("In line 1.")]))
        left = list(main.messages)
        main.messages[:] = before
        ids["fork"] = main.ask("Is that tested?", told=Told(content=[text("It is, in test_relay.py.")]))

        main.prompt = "prompt-3"
        main.request_class = "compaction"
        told = Told(content=[text(f"<summary>{SUMMARY}</summary>")])
        ids["summary"] = main.ask("Your task is to write a summary of the conversation so far.", told=told)
        main.request_class = "main"
        main.messages[:] = []
        ids["after"] = main.ask(
            f"{FOLLOWS} It is summarized below: {SUMMARY}", told=Told(content=[text("Let us go on.")])
        )
        assert left
        recorded(proxy, len(main.teller.bodies))
        yield History(proxy, main, ids)


def rows(page: Page) -> list[str]:
    return [" ".join(each.split()) for each in page.get_by_role("main").locator("a[data-row]").all_inner_texts()]


def test_sessions_are_listed(history: History, browser: Browser) -> None:
    """Each with its project, as its transcript tells it, and what it came to; j and Enter open it, Esc leads back."""
    (session,) = history.proxy.get("/api/sessions")[1]["sessions"]
    with opened(browser, history.proxy, "#/sessions") as page:
        row = page.get_by_role("main").locator("a[data-row]")
        expect(row).to_have_count(1)
        expect(row).to_contain_text(PROJECT)
        expect(row).to_contain_text("3 prompts")
        expect(row).to_contain_text("9 requests")
        expect(row).to_contain_text(f"${session['totals']['costNanousd'] / 1e9:.3f}")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        expect(page).to_have_url(re.compile(f"#/sessions/{SESSION}"))
        expect(page.get_by_role("heading", name=re.compile(SESSION))).to_be_visible()
        page.keyboard.press("Escape")
        expect(page).to_have_url(re.compile("#/sessions$"))


def test_a_session_is_a_tree_with_time_and_money(history: History, browser: Browser) -> None:
    """Prompts, in each its agents below the ones that called them, in each its requests; sums on every level."""
    tree = history.proxy.get(f"/api/sessions/{SESSION}")[1]
    with opened(browser, history.proxy, f"#/sessions/{SESSION}") as page:
        for number in (1, 2, 3):
            expect(page.get_by_role("heading", name=f"Prompt {number}")).to_be_visible()
        first = page.get_by_role("region", name="Prompt 1")
        main = first.get_by_role("group", name="Agent main")
        explorer = main.get_by_role("group", name="Agent Explore")
        helper = explorer.get_by_role("group", name="Agent custom")
        expect(main.locator("[data-row]")).to_have_count(5)
        expect(explorer.locator("[data-row]")).to_have_count(3)
        expect(helper.locator("[data-row]")).to_have_count(1)
        expect(explorer.get_by_text("2 requests ·")).to_be_visible()
        (prompt,) = [one for one in tree["prompts"] if one["prompt"] == "prompt-1"]
        cost = sum(each["costNanousd"] for agent in prompt["agents"] for each in agent["requests"])
        expect(first.locator("header")).to_contain_text(f"${cost / 1e9:.3f}")
        expect(page.locator("dl")).to_contain_text(f"${tree['totals']['costNanousd'] / 1e9:.3f}")
        second, third = (page.get_by_role("region", name=f"Prompt {number}") for number in (2, 3))
        expect(second.locator("[data-row]").nth(1)).to_contain_text("fork")
        expect(third.locator("[data-row]").nth(1)).to_contain_text("compaction")
        main.locator("[data-row]").first.click()
        expect(page).to_have_url(re.compile(f"#/requests/{history.ids['begin']}"))


def test_conversations_of_a_session(history: History, browser: Browser) -> None:
    """The main one and those of its agents, apart from others; each tells how it began."""
    with opened(browser, history.proxy, f"#/sessions/{SESSION}") as page:
        page.get_by_role("link", name="conversations", exact=True).click()
        expect(page.get_by_text("of one session")).to_be_visible()
        listed = page.get_by_role("main").locator("a[data-row]")
        expect(listed).to_have_count(3)
        expect(listed.filter(has_text="Where does the relay end?")).to_contain_text("6 requests")
        expect(listed.filter(has_text="subagent")).to_have_count(2)


def test_a_thread_with_a_fork_and_a_compaction(history: History, browser: Browser) -> None:
    """
    What was said as one thread, across the summary; what was left behind is a line of its own, and so is no part of it.
    """
    conversation = history.proxy.get(f"/api/requests/{history.ids['begin']}")[1]["conversation"]
    with opened(browser, history.proxy, f"#/conversations/{conversation}") as page:
        thread = page.locator(".thread")
        side = page.get_by_role("complementary", name="Requests of the conversation")
        expect(side).to_contain_text("6 requests")
        expect(thread).to_contain_text("Compacted: the conversation goes on behind a summary.")
        expect(thread).to_contain_text("Let us go on.")
        lines = side.get_by_role("group", name="Lines").get_by_role("button")
        expect(lines).to_have_count(2)
        expect(side.locator("[data-row]")).to_have_count(5)
        expect(side.get_by_text("compaction", exact=True)).to_be_visible()
        thread.get_by_role("button", name=re.compile(r"Show \d+ messages")).click()
        thread.get_by_role("button", name=re.compile(r"Show \d+ earlier messages")).click()
        expect(thread).to_contain_text("Where does the relay end?")
        expect(thread).to_contain_text("It is, in test_relay.py.")
        expect(thread).to_contain_text(SUMMARY)
        expect(thread).not_to_contain_text("And where does it begin?")
        lines.nth(1).click()
        expect(thread).to_contain_text("And where does it begin?")
        expect(thread).not_to_contain_text("Is that tested?")


def test_differences_between_turns(history: History, browser: Browser) -> None:
    """What a turn adds, what a fork leaves behind, what a compaction takes away."""
    proxy, ids = history.proxy, history.ids
    with opened(browser, proxy, f"#/requests/{ids['answer']}?tab=changes") as page:
        expect(page.get_by_text("1 message in common, 2 new.")).to_be_visible()
        added = page.get_by_role("group", name="Messages that are new")
        expect(added.get_by_role("region", name="Tool call Task")).to_contain_text("In line 7.")
        go(page, f"#/requests/{ids['fork']}?tab=changes")
        expect(page.get_by_text("This request forks from")).to_be_visible()
        expect(page.get_by_text("3 messages in common, 2 new.")).to_be_visible()
        expect(page.get_by_role("group", name="Messages that are new")).to_contain_text("Is that tested?")
        go(page, f"#/requests/{ids['after']}?tab=changes")
        expect(page.get_by_text("This request compacts")).to_be_visible()
        expect(page.get_by_text(re.compile(r"0 messages in common, \d gone, 1 new\."))).to_be_visible()
        expect(page.get_by_role("group", name="Messages that are gone")).to_contain_text("Where does the relay end?")
        page.get_by_role("link", name=ids["summary"][-6:]).first.click()
        expect(page).to_have_url(re.compile(f"#/requests/{ids['summary']}"))


def test_a_transcript_beside_the_records(history: History, browser: Browser) -> None:
    """Claude Code's own file is listed with what could not be read, opens as a thread, and leads to its session."""
    with opened(browser, history.proxy, "#/conversations") as page:
        expect(page.get_by_role("main").locator("a[data-row]")).to_have_count(4)
        page.get_by_role("link", name="Transcripts").click()
        row = page.get_by_role("main").locator("a[data-row]")
        expect(row).to_have_count(1)
        expect(row).to_contain_text("What does the transcript say?")
        expect(row).to_contain_text("2 damaged lines")
        expect(row).to_contain_text(PROJECT)
        row.click()
        expect(page.get_by_role("heading", name=re.compile(PROJECT))).to_be_visible()
        expect(page.get_by_text("2 lines of the file could not be read.")).to_be_visible()
        expect(page.locator("strong", has_text="look")).to_be_visible()
        tool = page.get_by_role("region", name="Tool call Bash")
        expect(tool).to_contain_text("ls -l")
        expect(tool).to_contain_text("total 0")
        expect(page.get_by_text("sidechain")).to_be_visible()
        page.get_by_role("link", name=SESSION).click()
        expect(page.get_by_role("heading", name="Prompt 1")).to_be_visible()


def test_more_is_offered_not_forced(history: History, browser: Browser) -> None:
    """Nothing moves under who reads; what came since is shown when it is asked for."""
    conversation = history.proxy.get(f"/api/requests/{history.ids['begin']}")[1]["conversation"]
    with opened(browser, history.proxy, f"#/conversations/{conversation}") as page:
        expect(page.locator(".thread")).to_contain_text("Let us go on.")
        history.main.ask("Go on.", told=Told(content=[text("Gone on.")]))
        more = page.get_by_role("button", name="Something happened since")
        more.click()
        expect(page.locator(".thread")).to_contain_text("Gone on.")
        expect(more).to_have_count(0)
