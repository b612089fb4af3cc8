"""Conversations: recorded ones, and Claude Code's transcripts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard import Dashboard, dashboard, full
from tests.store_contract import BEGIN, SECOND, awaited, exchange_id
from twisted_proxy.config import DashboardConfig
from twisted_proxy.record.exchange import Link
from twisted_proxy.web.api.calls import show_time
from twisted_proxy.web.api.transcripts import MOST_LINE, Transcripts, default_directory

PROJECT = "-home-me-thing"


def line(text: object, *, kind: str = "user", at: str = "2026-11-23T06:00:00.000Z", **more: Any) -> bytes:
    message = {"role": kind, "content": text}
    known = {"type": kind, "sessionId": "s1", "uuid": "u", "timestamp": at, "cwd": "/home/me", "message": message}
    return json.dumps({**known, **more}).encode() + b"\n"


@pytest.fixture
def projects(tmp_path: Path) -> Path:
    directory = tmp_path / "projects" / PROJECT
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def board(tmp_path: Path, projects: Path) -> Iterator[Dashboard]:
    with dashboard(tmp_path, dashboard=DashboardConfig(projects_dir=str(projects.parent))) as made:
        yield made


def touch(path: Path, at: int) -> None:
    """Let a file have changed then."""
    os.utime(path, ns=(at * 1000, at * 1000))


class TestList:
    """``GET /api/conversations``."""

    @awaited
    async def test_both_kinds(self, board: Dashboard, projects: Path) -> None:
        """Together, the latest activity first, in the Go program's shape."""
        (projects / "s1.jsonl").write_bytes(
            line("Do it") + b"{damaged\n" + line("Done", kind="assistant", at="2026-11-23T06:00:09.000Z")
        )
        touch(projects / "s1.jsonl", BEGIN + 5 * SECOND)
        await board.store.write([full(1, "What now?"), full(9, "And now?")])
        found = await board.get("/api/conversations")
        assert [(each["source"], each["firstMessage"]) for each in found["conversations"]] == [
            ("recorded", "And now?"),
            ("transcript", "Do it"),
            ("recorded", "What now?"),
        ]
        transcript = found["conversations"][1]
        assert {
            "id": "s1",
            "requestCount": 2,
            "startTime": "2026-11-23T06:00:00.000Z",
            "duration": 9000,
            "damagedLines": 1,
            "lastActivity": "2026-11-23T06:00:09.000Z",
            "projectName": PROJECT,
        }.items() <= transcript.items()
        assert (found["nextCursor"], found["problems"]) == (None, [])
        for source, count in (("recorded", 2), ("transcript", 1)):
            assert len((await board.get(f"/api/conversations?source={source}"))["conversations"]) == count
        assert len((await board.get("/api/conversations?session=session-1"))["conversations"]) == 2

    @awaited
    async def test_pages(self, board: Dashboard, projects: Path) -> None:
        """By number and by cursor all are there once, in the same order."""
        for n in range(6):
            path = projects / f"t{n}.jsonl"
            path.write_bytes(line("x"))
            touch(path, BEGIN + 2 * n * SECOND + SECOND // 2)
        await board.store.write([full(2 * n) for n in range(6)])
        whole = [each["id"] for each in (await board.get("/api/conversations?limit=50"))["conversations"]]
        assert (len(whole), whole[0], whole[1]) == (12, "t5", exchange_id(10))
        by_number, by_cursor, cursor = [], [], ""
        for page in (1, 2, 3):
            listed = await board.get(f"/api/conversations?limit=5&page={page}")
            by_number += [each["id"] for each in listed["conversations"]]
        while cursor is not None:
            listed = await board.get(f"/api/conversations?limit=5{cursor and '&cursor=' + cursor}")
            by_cursor += [each["id"] for each in listed["conversations"]]
            cursor = listed["nextCursor"]
        assert by_number == by_cursor == whole

    @pytest.fixture
    def unrecorded(self, tmp_path: Path, projects: Path) -> Iterator[Dashboard]:
        (projects / "s1.jsonl").write_bytes(line("Do it"))
        options = {"dashboard": DashboardConfig(projects_dir=str(projects.parent))}
        with dashboard(tmp_path, recorded=False, **options) as made:
            yield made

    @awaited
    async def test_one_kind_alone(self, unrecorded: Dashboard) -> None:
        """Where the records cannot be read, transcripts are shown all the same, and words say what is missing."""
        found = await unrecorded.get("/api/conversations")
        assert [each["id"] for each in found["conversations"]] == ["s1"]
        assert "RECORD=off" in found["problems"][0]
        await unrecorded.get("/api/conversations?source=recorded", 503)


class TestRecorded:
    """``GET /api/conversations/{id}`` of a recorded one."""

    @awaited
    async def test_thread(self, board: Dashboard) -> None:
        """Its requests in the order of time, with how each follows another."""
        first = exchange_id(1)
        await board.store.write(
            [
                full(1, "Q"),
                full(2, "Q", "A", "Q2", conversation=first, parent=first, link=Link.CONTINUES),
                full(3, "Q", "A", "Other", conversation=first, parent=first, link=Link.FORKS),
            ]
        )
        found = await board.get(f"/api/conversations/{first}")
        assert (found["source"], found["requestCount"], found["costNanousd"]) == ("recorded", 3, 3_000_000)
        assert [each["link"] for each in found["requests"]] == [None, "continues", "forks"]
        await board.get(f"/api/conversations/{exchange_id(5)}", 404)


class TestTranscripts:
    """Claude Code's own files."""

    @awaited
    async def test_one(self, board: Dashboard, projects: Path) -> None:
        """In the Go program's shape; damaged lines are skipped and counted, half a line at the end is not there yet."""
        (projects / "s1.jsonl").write_bytes(
            line("Do it", parentUuid="p", version="2.1", userType="external", isSidechain=True)
            + b"\n[1]\nnonsense\n"
            + line([{"type": "text", "text": "Done"}], kind="assistant")
            + b'{"type":"user"'
        )
        found = await board.get(f"/api/conversations/s1?project={PROJECT}")
        assert (found["messageCount"], found["damagedLines"], found["truncated"]) == (2, 2, False)
        first = found["messages"][0]
        assert first == {
            "parentUuid": "p",
            "isSidechain": True,
            "userType": "external",
            "cwd": "/home/me",
            "sessionId": "s1",
            "version": "2.1",
            "type": "user",
            "uuid": "u",
            "timestamp": "2026-11-23T06:00:00.000Z",
            "message": {"role": "user", "content": "Do it"},
        }
        listed = await board.get(f"/api/conversations/project?project={PROJECT}")
        assert listed == [found]

    @pytest.mark.parametrize(
        "target",
        [
            "/api/conversations/s1?project=../..",
            "/api/conversations/s1?project=/etc",
            "/api/conversations/passwd?project=",
            "/api/conversations/s2?project=-home-me-thing",
            "/api/conversations/project?project=nothing",
            "/api/conversations/s1?project=.",
            "/api/conversations/..%5cx?project=-home-me-thing",
            "/api/conversations/secret?project=-home-me-thing",
        ],
    )
    @awaited
    async def test_nothing_else_is_read(self, board: Dashboard, projects: Path, target: str) -> None:
        """Names lead to no other file, and links to none at all."""
        (projects / "s1.jsonl").write_bytes(line("Do it"))
        (projects.parent.parent / "secret").write_bytes(line("secret"))
        (projects / "secret.jsonl").symlink_to(projects.parent.parent / "secret")
        answer = await board.ask(target)
        assert answer.status in (400, 404)
        assert b"Do it" not in answer.body

    @awaited
    async def test_large(self, board: Dashboard, projects: Path) -> None:
        """A megabyte at a time, all of it in the end; a message that is larger is left out, and says so."""
        lines = [line("x" * 100_000, uuid=f"u{n}") for n in range(30)]
        lines.insert(3, line("y" * 1_000_000, uuid="huge"))
        (projects / "s1.jsonl").write_bytes(b"".join(lines))
        seen: list[str] = []
        cursor = ""
        while cursor is not None:
            found = await board.get(f"/api/conversations/s1?project={PROJECT}{cursor and '&cursor=' + cursor}")
            for message in found["messages"]:
                seen.append(message["uuid"])
                assert (message["message"] is None) == (message["uuid"] == "huge")
                assert message.get("tooLarge", False) == (message["uuid"] == "huge")
            cursor = found["nextCursor"]
        assert (len(seen), len(set(seen))) == (31, 31)
        (listed,) = await board.get(f"/api/conversations/project?project={PROJECT}")
        assert listed["truncated"] is True
        await board.get(f"/api/conversations/s1?project={PROJECT}&cursor=x", 400)

    def test_growing(self, projects: Path) -> None:
        """Of a file that has grown only the rest is read; of one that is another, all."""
        transcripts = Transcripts(lambda: projects.parent)
        path = projects / "s1.jsonl"
        path.write_bytes(line("First") + b'{"type":')
        (file,) = transcripts.files()
        assert (transcripts.sketch(file).lines, transcripts.sketch(file).damaged) == (1, 0)
        path.write_bytes(line("First") + line("Second", at="2026-11-23T07:00:00Z"))
        (file,) = transcripts.files()
        sketch = transcripts.sketch(file)
        assert (sketch.lines, sketch.first_message) == (2, "First")
        path.write_bytes(line("New"))
        (file,) = transcripts.files()
        assert transcripts.sketch(file).first_message == "New"

    def test_strange_lines(self, projects: Path) -> None:
        """Too long, no text, lone surrogates, other types: nothing of it stops what is behind it."""
        path = projects / "s1.jsonl"
        path.write_bytes(
            b"x" * (MOST_LINE + 5)
            + b"\n"
            + b'{"type":7,"timestamp":[]}\n'
            + b"\xff\xfe\n"
            + b'{"type":"user","message":{"content":"\\ud83d lone"}}\n'
            + line("On")
        )
        transcripts = Transcripts(lambda: projects.parent)
        (file,) = transcripts.files()
        sketch = transcripts.sketch(file)
        assert (sketch.lines, sketch.damaged) == (3, 2)
        assert "lone" in sketch.first_message
        assert json.dumps(transcripts.transcript(file))

    def test_what_is_put_in_front(self, projects: Path) -> None:
        """The first message is what somebody typed."""
        texts = [{"type": "text", "text": text} for text in ("<system-reminder>x</system-reminder>", "Real " * 100)]
        (projects / "s1.jsonl").write_bytes(line(texts))
        transcripts = Transcripts(lambda: projects.parent)
        (file,) = transcripts.files()
        assert transcripts.sketch(file).first_message == ("Real " * 40)[:200] + "..."

    def test_no_directory(self, tmp_path: Path) -> None:
        """Where Claude Code was never used, there is nothing, and nothing wrong."""
        transcripts = Transcripts(lambda: tmp_path / "none")
        assert (transcripts.files(), transcripts.problems) == ([], ())
        assert Transcripts(lambda: None).files() == []

    def test_where(self) -> None:
        """As configured, or in Claude Code's directory."""
        assert default_directory("/x", {}) == Path("/x")
        assert default_directory(None, {"CLAUDE_CONFIG_DIR": "/c"}) == Path("/c/projects")
        assert str(default_directory(None, {})).endswith("/.claude/projects")


def test_time_of_a_file_without_times(projects: Path) -> None:
    """It is when the file changed."""
    (projects / "s1.jsonl").write_bytes(b"{}\n")
    touch(projects / "s1.jsonl", BEGIN)
    transcripts = Transcripts(lambda: projects.parent)
    assert transcripts.summary(transcripts.files()[0])["lastActivity"] == show_time(BEGIN)
