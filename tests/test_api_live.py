"""Live events, and what is in flight."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet import reactor as installed_reactor
from twisted.internet.task import deferLater

from tests import corpus
from tests.dashboard import Dashboard, dashboard, full
from tests.memory import LAST_CHUNK, STREAM_HEAD, Client, chunk, event, read_answer
from tests.store_contract import awaited, exchange_id
from twisted_proxy import __version__
from twisted_proxy.config import DashboardConfig
from twisted_proxy.record.live_text import MOST_KEPT, LiveText
from twisted_proxy.web.api.hub import HELD_TOO_LONG, LINGER, MOST_VIEWERS, TICK
from twisted_proxy.web.api.news import MOST_NOTED

reactor: Any = installed_reactor

BODY = b'{"model":"claude-test","stream":true,"messages":[]}'
CLAUDE_CODE = [
    ("X-Claude-Code-Session-Id", "session-7"),
    ("X-Claude-Code-Agent-Id", "agent-3"),
]


@attrs.define
class Told:
    name: str
    data: Any
    id: str | None


class Viewer:
    """Somebody who watches, and what came of it."""

    def __init__(self, board: Dashboard, **headers: str) -> None:
        self.client: Client = board.send("GET", "/api/live", {**board.headers, **headers})
        self._taken = 0

    def events(self) -> list[Told]:
        """What came since the last time."""
        answer = read_answer(self.client.written, method="GET")
        assert answer.status == 200, answer.body
        assert answer.header("Content-Type") == "text/event-stream"
        data = answer.body[self._taken :]
        self._taken = len(answer.body)
        assert not data or data.endswith(b"\n\n")
        found = []
        for part in data.split(b"\n\n")[:-1]:
            fields = dict(line.split(b": ", 1) for line in part.split(b"\n") if not line.startswith(b":"))
            if fields:
                name = fields[b"event"].decode()
                value = json.loads(fields[b"data"])
                found.append(Told(name, value, fields[b"id"].decode() if b"id" in fields else None))
        return found

    def named(self, name: str) -> list[Any]:
        return [each.data for each in self.events() if each.name == name]


def stream(board: Dashboard, headers: list[tuple[str, str]] | None = None) -> tuple[Client, Any]:
    """A request whose answer has begun."""
    client, upstream = board.proxy.asked(body=BODY, headers=headers)
    upstream.send(STREAM_HEAD)
    return client, upstream


def tick(board: Dashboard, seconds: float = TICK) -> None:
    for _ in range(round(seconds / TICK)):
        board.proxy.clock.advance(TICK)


class TestText:
    """The text of what is in flight grows."""

    def test_all_kinds_grow(self, board: Dashboard) -> None:
        """Text, thinking and tool input, in the pieces in which they came; then it has landed."""
        viewer = Viewer(board)
        assert [each.name for each in viewer.events()] == ["hello", "status"]
        client, upstream = stream(board, CLAUDE_CODE)
        tick(board)
        events = viewer.events()
        assert [each.name for each in events] == ["flight", "status"]
        flight = events[0].data
        assert (flight["session"], flight["model"], flight["phase"]) == ("session-7", "claude-test", "answering")
        assert (flight["blocks"], flight["textIsPartial"], flight["stream"]) == ([], False, True)
        upstream.send(chunk(corpus.start() + corpus.block(0, '{"type":"thinking","thinking":""}')))
        upstream.send(chunk(corpus.delta(0, '{"type":"thinking_delta","thinking":"Hm."}') + corpus.stop(0)))
        upstream.send(chunk(corpus.block(1, corpus.TEXT_BLOCK) + corpus.text(1, "Hel", "lo")))
        upstream.send(chunk(corpus.block(2, '{"type":"tool_use","id":"t","name":"Bash","input":{}}')))
        upstream.send(chunk(corpus.partial_json(2, '{"comm')))
        tick(board)
        assert [(each["index"], each["kind"], each["name"], each["text"]) for each in viewer.named("text")] == [
            (0, "thinking", None, "Hm."),
            (1, "text", None, "Hello"),
            (2, "tool_use", "Bash", '{"comm'),
        ]
        upstream.send(chunk(corpus.partial_json(2, 'and":1}') + corpus.stop(2) + corpus.end()) + LAST_CHUNK)
        assert client.answer().outcome == "complete"
        tick(board)
        events = [each for each in viewer.events() if each.name in ("text", "landed")]
        assert [each.name for each in events] == ["text", "landed"]
        assert events[0].data["text"] == 'and":1}'
        assert events[1].data == {"requestId": flight["requestId"], "verdict": "complete", "status": 200}

    def test_numbers(self, board: Dashboard) -> None:
        """Each second age, bytes and speed."""
        viewer = Viewer(board)
        _, upstream = stream(board)
        tick(board, 0.5)
        upstream.send(chunk(corpus.start() + corpus.block(0, corpus.TEXT_BLOCK) + corpus.text(0, "x" * 400)))
        tick(board, 2.6)
        (*_, last) = viewer.named("numbers")
        (numbers,) = last["requests"]
        assert (numbers["ttftMs"], numbers["outputTokens"], numbers["ageMs"]) == (500.0, 100, 3000)
        assert numbers["tokensPerSecond"] == 40.0
        assert numbers["responseBytes"] > 400

    def test_joining_late(self, board: Dashboard) -> None:
        """Who comes in the middle is told that something is missing, and from then on nothing is."""
        _, upstream = stream(board)
        upstream.send(chunk(corpus.start() + corpus.block(0, corpus.TEXT_BLOCK) + corpus.text(0, "Before")))
        half = corpus.text(0, "Half")
        upstream.send(chunk(half[:20]))
        viewer = Viewer(board)
        (flight,) = viewer.named("flight")
        assert (flight["textIsPartial"], flight["blocks"]) == (True, [])
        upstream.send(chunk(half[20:] + corpus.text(0, "Whole")))
        tick(board)
        assert [each["text"] for each in viewer.named("text")] == ["Whole"]
        other = Viewer(board)
        assert [each["text"] for each in other.named("flight")[0]["blocks"]] == ["Whole"]

    def test_nobody_watches(self, board: Dashboard) -> None:
        """Then what is called for each piece is the recorder's own method; and again when all have left."""
        calls: list[bytes] = []

        class Recorder:
            def __getattr__(self, name: str) -> Any:
                return lambda *_: None

            def answered(self, data: bytes, now: float) -> None:
                calls.append(data)

        inner = Recorder()
        inner_answered = inner.answered
        live = board.proxy.service.dashboards.hub._live
        live._record = lambda *_: inner
        _, upstream = stream(board)
        (tap,) = live._taps.values()
        assert tap.answered == inner_answered
        viewer = Viewer(board)
        assert tap.answered != inner_answered
        upstream.send(chunk(b"while watched"))
        viewer.client.leave()
        assert tap.answered == inner_answered
        upstream.send(chunk(b"after"))
        assert b"".join(calls) == b"while watchedafter"

    def test_demoted(self, tmp_path: Path, demoting: Dashboard) -> None:
        """Of a request that is demoted, the stream behind it is shown."""
        viewer = Viewer(demoting)
        body = b'{"model":"claude-test","messages":[]}'
        _, upstream = demoting.proxy.asked(body=body)
        upstream.send(STREAM_HEAD + chunk(corpus.start() + corpus.block(0, corpus.TEXT_BLOCK) + corpus.text(0, "Hi")))
        tick(demoting)
        told = viewer.events()
        (flight,) = [each.data for each in told if each.name == "flight"]
        assert flight["demoted"] is True
        assert [block["text"] for block in flight["blocks"]] == ["Hi"]
        upstream.send(chunk(corpus.text(0, " there")))
        tick(demoting)
        assert [each["text"] for each in viewer.named("text")] == [" there"]

    @pytest.fixture
    def demoting(self, tmp_path: Path) -> Iterator[Dashboard]:
        with dashboard(tmp_path, anthropic_demote_nonstreaming=True) as made:
            yield made


class TestSlow:
    """A viewer that is slow gets less, and costs nobody anything."""

    def test_what_it_gets(self, board: Dashboard) -> None:
        """Nothing while it holds; then in one piece what it missed. The stream itself goes on."""
        viewer, quick = Viewer(board), Viewer(board)
        client, upstream = stream(board)
        upstream.send(chunk(corpus.start() + corpus.block(0, corpus.TEXT_BLOCK) + corpus.text(0, "a")))
        tick(board)
        viewer.events()
        viewer.client.hold()
        before = len(viewer.client.written)
        for _ in range(50):
            upstream.send(chunk(corpus.text(0, "b")))
            tick(board)
        assert len(viewer.client.written) == before
        assert client.written.count(b'"b"') == 50
        assert sum(len(each["text"]) for each in quick.named("text")) == 51 - 1
        viewer.client.go_on()
        tick(board)
        assert [each["text"] for each in viewer.named("text")] == ["b" * 50]

    def test_whole_again_where_its_place_is_gone(self, board: Dashboard) -> None:
        """Of a long text the end is kept: who is too far behind gets that."""
        viewer = Viewer(board)
        _, upstream = stream(board)
        upstream.send(chunk(corpus.start() + corpus.block(0, corpus.TEXT_BLOCK) + corpus.text(0, "a")))
        tick(board)
        viewer.events()
        viewer.client.hold()
        upstream.send(chunk(corpus.text(0, "b" * 2 * MOST_KEPT)))
        tick(board)
        viewer.client.go_on()
        tick(board)
        (flight,) = viewer.named("flight")
        assert set(flight["blocks"][0]["text"]) == {"b"}

    def test_cut_off(self, board: Dashboard) -> None:
        """Who takes nothing at all for long is let go, and all is as if nobody watched."""
        viewer = Viewer(board)
        viewer.client.hold()
        tick(board, HELD_TOO_LONG + 1)
        board.proxy.pump()
        assert viewer.client.closed_by is not None
        assert not board.proxy.service.dashboards.hub._watchers

    @awaited
    async def test_too_many(self, board: Dashboard) -> None:
        """503 for one more than there is room for."""
        viewers = [Viewer(board) for _ in range(MOST_VIEWERS)]
        answer = await board.ask("/api/live")
        assert (answer.status, answer.header("Retry-After")) == (503, "30")
        viewers[0].client.leave()
        assert Viewer(board).named("hello")


class TestRecords:
    """What was recorded is told."""

    async def until(self, board: Dashboard, viewer: Viewer, name: str, at_least: int = 1) -> list[Told]:
        found: list[Told] = []
        deadline = reactor.seconds() + 10
        while len([each for each in found if each.name == name]) < at_least:
            assert reactor.seconds() < deadline, found
            await deferLater(reactor, 0.005)
            tick(board)
            found += viewer.events()
        return [each for each in found if each.name == name]

    @awaited
    async def test_told_and_resumed(self, board: Dashboard) -> None:
        """A record comes with an id; who comes back with it is told what it missed, and nothing twice."""
        viewer = Viewer(board)
        assert viewer.named("hello") == [{"version": __version__, "resumed": False}]
        # Records are watched from now on, and what was before is to be fetched.
        await self.until(board, viewer, "reset")
        await deferLater(reactor, 0.1)
        await board.store.write([full(1)])
        (first,) = await self.until(board, viewer, "request")
        assert (first.data["requestId"], first.data["costNanousd"]) == (exchange_id(1), 1_000_000)
        assert first.id is not None
        viewer.client.leave()
        await board.store.write([full(2), full(3)])
        await deferLater(reactor, 0.1)
        back = Viewer(board, **{"Last-Event-ID": first.id})
        hello = back.named("hello")
        assert hello[0]["resumed"] is True
        missed = await self.until(board, back, "request", 2)
        assert [each.data["requestId"] for each in missed] == [exchange_id(2), exchange_id(3)]

    @awaited
    async def test_not_known_any_more(self, board: Dashboard) -> None:
        """An id of another process, or from before nobody watched for long: `reset`, and lists are to be fetched."""
        for last_id in ("abcdef-1", "x", "-", f"{board.proxy.service.dashboards.hub._news._name}-99"):
            viewer = Viewer(board, **{"Last-Event-ID": last_id})
            names = [each.name for each in viewer.events()]
            assert names[:2] == ["hello", "reset"]
            viewer.client.leave()
        board.proxy.clock.advance(LINGER + 1)
        assert board.proxy.service.dashboards.hub._news._stop is None

    @awaited
    async def test_many_at_once(self, board: Dashboard) -> None:
        """More than can be told one by one: a `reset` in their place."""
        viewer = Viewer(board)
        await self.until(board, viewer, "reset")
        board.proxy.service.dashboards.hub._news._note([exchange_id(n) for n in range(MOST_NOTED + 1)])
        (reset,) = await self.until(board, viewer, "reset")
        assert "More was recorded" in reset.data["reason"]

    def test_heartbeat(self, board: Dashboard) -> None:
        """Where nothing happens, something is sent all the same."""
        viewer = Viewer(board)
        viewer.events()
        before = len(viewer.client.written)
        tick(board, 20)
        assert len(viewer.client.written) > before


class TestInFlight:
    """``GET /api/in-flight``, and cutting."""

    @awaited
    async def test_listed(self, board: Dashboard) -> None:
        """The oldest first, with who asks; what is still arriving, too."""
        stream(board, CLAUDE_CODE)
        board.proxy.clock.advance(3)
        late = board.proxy.client()
        late.send(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        found = await board.get("/api/in-flight")
        first, second = found["requests"]
        assert (found["total"], found["status"]["inFlight"]) == (2, 2)
        assert (first["agent"], first["ageMs"], first["phase"]) == ("agent-3", 3000, "answering")
        assert (second["phase"], second["requestBytes"], second["model"]) == ("receiving", 1, None)

    @awaited
    async def test_cut(self, board: Dashboard) -> None:
        """Its client sees it end; a second time changes nothing; what is not in flight is 404."""
        client, upstream = stream(board)
        upstream.send(chunk(event("ping")))
        (flight,) = (await board.get("/api/in-flight"))["requests"]
        headers = await board.csrf()
        target = f"/api/in-flight/{flight['requestId']}/cut"
        assert (await board.ask(target, "POST", headers=headers)).json == {"requestId": flight["requestId"]}
        assert client.closed_by is not None
        board.proxy.pump()
        assert board.proxy.in_flight == 0
        assert (await board.ask(target, "POST", headers=headers)).status == 404

    @awaited
    async def test_drain(self, board: Dashboard) -> None:
        """While it drains, viewers see that and who holds it up; at the end they are let go, and hold up nothing."""
        viewer = Viewer(board)
        client, upstream = stream(board)
        tick(board)
        viewer.events()
        stopped: list[object] = []
        board.proxy.service.startService()
        board.proxy.service.stopService().addCallback(stopped.append)
        tick(board)
        (status,) = viewer.named("status")
        assert (status["draining"], status["inFlight"]) == (True, 1)
        assert status["drainSecondsLeft"] > 1000
        upstream.send(chunk(corpus.start() + corpus.end()) + LAST_CHUNK)
        assert client.answer().outcome == "complete"
        board.proxy.clock.advance(1)
        assert read_answer(viewer.client.written, method="GET").outcome == "complete"
        deadline = reactor.seconds() + 10
        while not stopped:
            assert reactor.seconds() < deadline
            await deferLater(reactor, 0.005)


class TestSessions:
    """A viewer's session."""

    @pytest.fixture
    def guarded(self, tmp_path: Path) -> Iterator[Dashboard]:
        with dashboard(tmp_path, dashboard=DashboardConfig(password="correct horse")) as made:
            yield made

    @awaited
    async def test_logging_out_ends_what_is_watched(self, guarded: Dashboard) -> None:
        """With the session ends what was begun in it."""
        answer = await guarded.ask("/api/login", "POST", value={"password": "correct horse"})
        guarded.headers["Cookie"] = (answer.header("Set-Cookie") or "").split(";")[0]
        viewer = Viewer(guarded)
        assert viewer.named("hello")
        headers = {**guarded.headers, "X-CSRF-Token": answer.json["csrfToken"]}
        assert (await guarded.ask("/api/logout", "POST", headers=headers)).status == 204
        assert read_answer(viewer.client.written, method="GET").outcome == "complete"


class TestLiveText:
    """What a stream says so far."""

    def test_any_split(self) -> None:
        """However the bytes are split, it says the same."""
        data = b"".join(
            [corpus.start(), corpus.block(0, corpus.TEXT_BLOCK), corpus.text(0, "Hel", "lo"), corpus.PING, corpus.end()]
        )
        for size in (1, 7, 1000):
            text = LiveText(from_start=True)
            for start in range(0, len(data), size):
                text.feed(data[start : start + size])
            assert [(block.kind, block.text) for block in text.blocks] == [("text", "Hello")]
            assert (text.output_tokens, text.partial) == (20, False)

    def test_chat(self) -> None:
        """OpenAI's chunks, too."""
        text = LiveText(from_start=True)
        for delta in (
            '{"role":"assistant","content":""}',
            '{"content":"Hi"}',
            '{"tool_calls":[{"index":0,"id":"c","function":{"name":"Bash","arguments":"{"}}]}',
            '{"tool_calls":[{"index":0,"function":{"arguments":"}"}}]}',
        ):
            text.feed(b'data: {"choices":[{"index":0,"delta":%b}]}\n\n' % delta.encode())
        text.feed(b"data: [DONE]\n\n")
        assert [(block.kind, block.name, block.text) for block in text.blocks] == [
            ("text", None, "Hi"),
            ("tool_use", "Bash", "{}"),
        ]

    def test_hostile(self) -> None:
        """What makes no sense is passed over, and memory is bounded."""
        text = LiveText(from_start=True)
        text.feed(b"event: x\ndata: {nonsense\n\ndata: []\n\ndata: 7\n\n")
        text.feed(corpus.delta(5, '{"type":"text_delta","text":"found"}'))
        assert [block.text for block in text.blocks] == ["found"]
        for index in range(1000):
            text.feed(corpus.block(index, '{"type":"text","text":"x"}'))
        assert len(text.blocks) == 200
        text.feed(b"data: " + b"x" * 2_000_000)
        assert text.partial
        text.feed(b"\n\n" + corpus.text(999, "on"))
        assert text.blocks[-1].text == "xon"
