"""Recorded requests as files."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor as installed_reactor
from twisted.internet.task import deferLater

from tests.dashboard import Dashboard, answered, full, request_body
from tests.memory import read_answer
from tests.store_contract import awaited, body, exchange, exchange_id
from twisted_proxy.record.exchange import Record, Role
from twisted_proxy.web.api.formats import FORMATS

reactor: Any = installed_reactor

HOSTILE = (
    "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\n```\n# not a heading \\u0000 'quote' $(reboot) `id`"
)


class Tags(HTMLParser):
    """What elements a page has, and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data: str) -> None:
        self.text += data


def with_tools(number: int) -> Record:
    """A request with all kinds of blocks."""
    asked = {
        "model": "m",
        "system": [{"type": "text", "text": HOSTILE}],
        "messages": [
            {"role": "user", "content": HOSTILE},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm."},
                    {"type": "tool_use", "name": HOSTILE, "input": {"command": HOSTILE}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "content": [{"type": "text", "text": HOSTILE}], "is_error": True},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                    {"type": "x", "y": HOSTILE},
                    7,
                ],
            },
        ],
    }
    return Record(
        exchange=exchange(
            number,
            status=200,
            session="s",
            model=HOSTILE,
            request_bytes=9,
            last_byte_us=5_000_000,
            headers_us=2_000_000,
            query="beta=true",
            cost_nanousd=5,
            output_tokens=3,
            error_type="e",
            error_message=HOSTILE,
            request_headers=(("content-type", "application/json"), ("x-test", "it's")),
        ),
        bodies=(body(json.dumps(asked).encode(), content_type="application/json"), *answered()),
    )


class TestOne:
    """``GET /api/requests/{id}/export``."""

    @pytest.mark.parametrize("form", sorted(FORMATS))
    @awaited
    async def test_a_file(self, board: Dashboard, form: str) -> None:
        """Each has its type and name, is sandboxed, and holds no credential."""
        await board.store.write([with_tools(1)])
        answer = await board.ask(f"/api/requests/{exchange_id(1)}/export?format={form}")
        assert answer.status == 200
        assert answer.header("Content-Type") == FORMATS[form].content_type
        assert f'filename="{exchange_id(1)}.' in (answer.header("Content-Disposition") or "")
        assert answer.header("Content-Security-Policy") == "sandbox; default-src 'none'"
        assert b"authorization" not in answer.body.lower()

    @awaited
    async def test_bad(self, board: Dashboard) -> None:
        """A format is needed, one that there is; and a request."""
        await board.get(f"/api/requests/{exchange_id(1)}/export", 400)
        await board.get(f"/api/requests/{exchange_id(1)}/export?format=pdf", 400)
        await board.get(f"/api/requests/{exchange_id(1)}/export?format=har", 404)
        await board.get("/api/sessions/s/export?format=har", 404)

    @awaited
    async def test_html_has_nothing_to_run(self, board: Dashboard) -> None:
        """Everything that anybody said is text."""
        await board.store.write([with_tools(1)])
        page = (await board.ask(f"/api/requests/{exchange_id(1)}/export?format=html")).body.decode()
        read = Tags()
        read.feed(page)
        assert not read.tags & {"script", "img", "iframe", "a", "link", "object", "form", "svg"}
        assert not {name for name in read.attributes if name.startswith("on") or name in ("href", "src", "style")}
        assert "default-src 'none'" in page
        assert read.text.count("<script>alert(1)</script>") >= 5

    @awaited
    async def test_markdown_fences_hold(self, board: Dashboard) -> None:
        """A fence is longer than any that is in the code, and no title breaks its line."""
        await board.store.write([with_tools(1)])
        text = (await board.ask(f"/api/requests/{exchange_id(1)}/export?format=markdown")).body.decode()
        assert "````" in text
        titles = [line for line in text.splitlines() if line.startswith("**Tool:")]
        assert titles
        assert "`" not in titles[0]

    @awaited
    async def test_har(self, board: Dashboard) -> None:
        """HAR 1.2: its timings add up."""
        await board.store.write([full(1)])
        har = (await board.ask(f"/api/requests/{exchange_id(1)}/export?format=har")).json
        assert har["log"]["version"] == "1.2"
        (entry,) = har["log"]["entries"]
        assert entry["request"]["postData"]["text"] == request_body("Question 1").decode()
        assert entry["response"]["content"]["mimeType"] == "text/event-stream"
        timings = entry["timings"]
        assert sum(each for each in timings.values() if each > 0) == pytest.approx(entry["time"])
        for name in ("cookies", "headers", "queryString"):
            assert isinstance(entry["request"][name], list)

    @awaited
    async def test_jsonl(self, board: Dashboard) -> None:
        """A line with all: what is known, what was asked, what was answered."""
        await board.store.write([full(1)])
        (line,) = (await board.ask(f"/api/requests/{exchange_id(1)}/export?format=jsonl")).body.splitlines()
        value = json.loads(line)
        assert value["request"]["model"] == "claude-opus-5"
        assert value["answer"]["content"][0]["text"] == "Hello there"
        assert value["requestId"] == exchange_id(1)

    @pytest.mark.skipif(shutil.which("sh") is None, reason="no shell")
    @awaited
    async def test_curl_runs(self, board: Dashboard, tmp_path: Path) -> None:
        """The shell gives curl the bytes that were recorded, and runs nothing of what they say."""
        await board.store.write([with_tools(1)])
        script = (await board.ask(f"/api/requests/{exchange_id(1)}/export?format=curl")).body
        fake = tmp_path / "curl"
        fake.write_text('#!/bin/sh\nfor each; do printf "%s\\n" "$each"; done > "$OUT.args"\ncat > "$OUT.body"\n')
        fake.chmod(0o755)
        done = subprocess.run(  # noqa: ASYNC221 (it takes milliseconds)
            ["sh"],
            input=script,
            capture_output=True,
            check=True,
            timeout=20,
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "OUT": str(tmp_path / "out"), "ANTHROPIC_API_KEY": "key"},
        )
        assert (done.stdout, done.stderr) == (b"", b"")
        sent = (tmp_path / "out.body").read_bytes()
        assert sent == next(each for each in with_tools(1).bodies if each.role is Role.REQUEST).content.read() + b"\n"
        arguments = (tmp_path / "out.args").read_text().splitlines()
        assert "https://api.anthropic.com/v1/messages?beta=true" in arguments
        assert {"x-test: it's", "x-api-key: key"} <= set(arguments)


class TestSession:
    """``GET /api/sessions/{id}/export``."""

    @awaited
    async def test_all_of_it(self, board: Dashboard) -> None:
        """Each request is in it, in the order of time, in every format."""
        await board.store.write([full(n, session="s") for n in range(60)])
        for form in FORMATS:
            answer = await board.ask(f"/api/sessions/s/export?format={form}")
            assert answer.outcome == "complete"
            positions = [answer.body.find(exchange_id(n).encode()) for n in range(60)]
            assert -1 not in positions, form
            assert positions == sorted(positions)
        har = (await board.ask("/api/sessions/s/export?format=har")).json
        assert len(har["log"]["entries"]) == 60

    @awaited
    async def test_what_was_said_before_is_not_repeated(self, board: Dashboard) -> None:
        """For reading, a request that goes on behind another one shows what is new."""
        await board.store.write(
            [
                full(1, "First question", session="s"),
                full(2, "First question", "An answer", "Second question", session="s", parent=exchange_id(1)),
            ]
        )
        text = (await board.ask("/api/sessions/s/export?format=markdown")).body
        assert (text.count(b"First question"), text.count(b"Second question")) == (1, 1)

    @awaited
    async def test_slow_client(self, board: Dashboard) -> None:
        """Who takes it slowly holds up only himself: nothing is made that is not taken."""
        await board.store.write([full(n, session="s") for n in range(20)])
        client = board.send("GET", "/api/sessions/s/export?format=jsonl")
        while not client.written:
            await _turn()
        client.hold()
        before = len(client.written)
        for _ in range(50):
            await _turn()
        assert len(client.written) <= before + 20_000
        client.go_on()
        while read_answer(client.written, method="GET").outcome != "complete":
            await _turn()
        assert read_answer(client.written, method="GET").body.count(b"\n") == 20

    @awaited
    async def test_store_fails_in_the_middle(self, board: Dashboard) -> None:
        """A file that cannot be whole is seen to be cut."""
        await board.store.write([full(n, session="s") for n in range(60)])
        client = board.send("GET", "/api/sessions/s/export?format=har")
        while not client.written:
            await _turn()
        await board.proxy.service.dashboards._records.close()
        while client.closed_by is None:
            await _turn()
        assert client.answer("GET").outcome == "cut"


async def _turn() -> None:
    await deferLater(reactor, 0.002)
