"""Entries in, records out: what is in them, what a broken store or a broken exchange does, and replays."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent

from tests.memory_store import MemoryStore
from tests.spooled import BEGAN, INSTANCE, Spooled, assistant, exchange_id, message, stream, user
from twisted_proxy.record import facts, recorder
from twisted_proxy.record.conversations import Conversations
from twisted_proxy.record.exchange import INTERRUPTED, Link, Mark, Record, Role
from twisted_proxy.record.pricing import shipped
from twisted_proxy.record.pump import GATHER, LAST_PAUSE, LOOK_EVERY, REMIND_EVERY, Pump
from twisted_proxy.record.recorder import BATCH_EXCHANGES, Counts, Recorder
from twisted_proxy.record.spool import SlotReader
from twisted_proxy.record.store import SchemaTooNew, StoreError, StoreUnavailable

HELLO = [user("hello")]


class Recording:
    """A recorder over a slot, with a clock and a store that fails when it is told to."""

    def __init__(self, root: Path) -> None:
        self.clock = Clock()
        self.store = MemoryStore()
        self.spooled = Spooled(root)
        self.written: list[str] = []
        self.start()

    def start(self) -> None:
        """What a new recorder process does: forget all, and read from the beginning."""
        self.counts = Counts()
        self.reader: SlotReader = self.spooled.reader()
        self.recorder = Recorder(
            self.store,
            self.reader,
            INSTANCE,
            conversations=Conversations(self.store),
            prices=shipped(),
            counts=self.counts,
            written=self.written.extend,
            seconds=self.clock.seconds,
        )
        self.done: list[Recorder] = []
        self.pump = Pump(self.clock, done=self.done.append)
        self.pump.add(self.recorder)
        self.running = Deferred.fromCoroutine(self.pump.run())

    def restart(self) -> None:
        self.pump.stop()
        self.reader.close()
        self.start()

    def go(self, seconds: float = 2 * LOOK_EVERY) -> None:
        """Let time go by, in steps."""
        self.pump.wake()
        for _ in range(int(seconds / 0.25)):
            self.clock.advance(0.25)

    def end(self) -> None:
        """The slot's owner has ended."""
        self.reader.owner_ended()
        self.go()

    def exchange(self, number: int) -> Any:
        return self.store.exchanges[exchange_id(number)]

    def body(self, number: int, role: Role) -> bytes:
        return self.store.bodies[exchange_id(number), role].data

    def text(self, number: int) -> str | None:
        return self.store.texts[exchange_id(number)]


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    """A recorder that runs."""
    running = Recording(tmp_path / "spool")
    yield running
    running.pump.stop()
    running.reader.close()


def lines(logs: list[LogEvent], *, level: str | None = None) -> list[str]:
    return [formatEvent(event) for event in logs if level in (None, event["log_level"].name)]


class TestWhatIsRecorded:
    def test_an_exchange_of_claude_code(self, recording: Recording) -> None:
        """Who asked, what came of it, what it cost; both bodies; text to be found by."""
        headers = [
            ("content-type", "application/json"),
            ("user-agent", "claude-cli/2.1"),
            ("x-claude-code-session-id", "s1"),
            ("x-claude-code-agent-id", "a1"),
            ("x-claude-code-prompt-id", "p1"),
            ("x-claude-code-request-class", "subagent"),
        ]
        response = (
            ("content-type", "application/json"),
            ("request-id", "req_011"),
            ("anthropic-ratelimit-unified-status", "allowed"),
        )
        request = json.dumps({"model": "claude-opus-4-5", "messages": HELLO}).encode()
        answer = json.dumps(message(1, "hi there")).encode()
        slot = recording.spooled
        slot.opened(1, headers=headers, client="127.0.0.1", query="beta=true", credential="c0ffee")
        slot.bulk(1, Role.REQUEST, request[:10], request[10:])
        slot.noted(1, body_read_us=10, connected_us=20)
        slot.noted(1, status=200, headers_us=30, response_headers=response, provider="anthropic")
        slot.bulk(1, Role.ANSWER, answer, times=[40])
        slot.closed(1, last_byte_us=50, first_event_us=40, request_bytes=len(request), response_bytes=len(answer))
        recording.go()
        exchange = recording.exchange(1)
        assert attrs.asdict(exchange) | {
            "id": exchange_id(1),
            "instance": INSTANCE,
            "received_at": BEGAN + 1_000_000,
            "body_read_us": 10,
            "connected_us": 20,
            "headers_us": 30,
            "first_event_us": 40,
            "last_byte_us": 50,
            "method": "POST",
            "path": "/v1/messages",
            "query": "beta=true",
            "client": "127.0.0.1",
            "status": 200,
            "verdict": "complete",
            "request_bytes": len(request),
            "response_bytes": len(answer),
            "model": "claude-opus-4-5",
            "provider": "anthropic",
            "stream": False,
            "session": "s1",
            "agent": "a1",
            "prompt": "p1",
            "request_class": "subagent",
            "user_agent": "claude-cli/2.1",
            "credential": "c0ffee",
            "upstream_request_id": "req_011",
            "rate_limits": {"anthropic-ratelimit-unified-status": "allowed"},
            "request_headers": tuple(headers),
            "response_headers": response,
            "message_id": "msg_1",
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 10, "output_tokens": 5},
            "input_tokens": 10,
            "output_tokens": 5,
            "cost_nanousd": 10 * 5000 + 5 * 25000,
            "cost_is_partial": False,
            "conversation": exchange_id(1),
            "messages": 1,
            "lost": None,
        } == attrs.asdict(exchange)
        assert recording.body(1, Role.REQUEST) == request
        assert recording.body(1, Role.ANSWER) == answer
        assert (exchange_id(1), Role.MESSAGE) not in recording.store.bodies
        assert recording.store.bodies[exchange_id(1), Role.ANSWER].marks == (Mark(end=len(answer), us=40),)
        assert recording.text(1) == "hello\nhi there"
        assert recording.counts == Counts(recorded=1)

    def test_a_stream_has_its_message_and_its_pace(self, recording: Recording) -> None:
        """The bytes as they came and when, and the message that they tell."""
        events = stream(message(1, ""), "hi there")
        recording.spooled.asked(1, HELLO, stream=True)
        recording.spooled.noted(1, response_headers=(("content-type", "text/event-stream"),))
        recording.spooled.bulk(1, Role.ANSWER, *events, times=range(100, 100 + len(events)))
        recording.spooled.closed(1)
        recording.go()
        stored = recording.store.bodies[exchange_id(1), Role.ANSWER]
        assert stored.data == b"".join(events)
        assert [mark.us for mark in stored.marks] == list(range(100, 100 + len(events)))
        assert stored.marks[-1].end == len(stored.data)
        assert json.loads(recording.body(1, Role.MESSAGE))["content"] == [{"type": "text", "text": "hi there"}]
        assert (recording.exchange(1).stream, recording.exchange(1).message_id) == (True, "msg_1")
        assert recording.text(1) == "hello\nhi there"

    def test_a_stream_that_was_cut_costs_at_least_so_much(self, recording: Recording) -> None:
        """What came is kept, told and counted; that it is not all is said."""
        events = stream(message(1, ""), "hi there")[:3]
        recording.spooled.asked(1, HELLO)
        recording.spooled.noted(1, response_headers=(("content-type", "text/event-stream"),))
        recording.spooled.bulk(1, Role.ANSWER, *events, times=[1, 2, 3])
        recording.spooled.closed(1, "client_gone")
        recording.go()
        exchange = recording.exchange(1)
        assert (exchange.verdict, exchange.cost_is_partial) == ("client_gone", True)
        assert exchange.cost_nanousd > 0
        assert json.loads(recording.body(1, Role.MESSAGE))["content"][0]["text"] == "hi there"

    def test_codings_are_undone_to_read_and_not_to_keep(self, recording: Recording) -> None:
        """The bodies stay as they were on the wire."""
        request = gzip.compress(json.dumps({"model": "m", "messages": HELLO}).encode())
        answer = gzip.compress(json.dumps(message(1, "hi")).encode())
        slot = recording.spooled
        slot.opened(1, headers=[("content-encoding", "gzip")])
        slot.bulk(1, Role.REQUEST, request)
        slot.noted(1, response_headers=(("content-type", "application/json"), ("content-encoding", "gzip")))
        slot.bulk(1, Role.ANSWER, answer, times=[1])
        slot.closed(1)
        recording.go()
        assert (recording.exchange(1).model, recording.exchange(1).message_id) == ("m", "msg_1")
        for role, data in ((Role.REQUEST, request), (Role.ANSWER, answer)):
            stored = recording.store.bodies[exchange_id(1), role]
            assert (stored.data, stored.content_encoding) == (data, "gzip")

    @pytest.mark.parametrize("told", [True, False])
    def test_a_demoted_answer_is_what_the_client_got(self, recording: Recording, told: bool) -> None:
        """Both are kept. Where the client got nothing, the upstream's stream says what it cost."""
        events = stream(message(1, ""), "hi")
        recording.spooled.asked(1, HELLO)
        recording.spooled.noted(1, demoted=True, response_headers=(("content-type", "text/event-stream"),))
        recording.spooled.bulk(1, Role.RECEIVED, *events, times=range(len(events)))
        if told:
            recording.spooled.bulk(1, Role.ANSWER, json.dumps(message(1, "hi")).encode(), times=[50])
        recording.spooled.closed(1, "complete" if told else "client_gone")
        recording.go()
        exchange = recording.exchange(1)
        assert (exchange.demoted, exchange.message_id, exchange.output_tokens) == (True, "msg_1", 5)
        received = recording.store.bodies[exchange_id(1), Role.RECEIVED]
        assert (received.data, received.content_type) == (b"".join(events), "text/event-stream")
        if told:
            assert recording.store.bodies[exchange_id(1), Role.ANSWER].content_type == "application/json"

    def test_an_error_has_type_and_message(self, recording: Recording) -> None:
        """Those of the answer, unless the proxy says its own."""
        error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        for number in (1, 2):
            recording.spooled.asked(number, HELLO)
            recording.spooled.noted(number, response_headers=(("content-type", "application/json"),))
            recording.spooled.bulk(number, Role.ANSWER, json.dumps(error).encode(), times=[1])
        recording.spooled.closed(1, status=529)
        recording.spooled.closed(2, "failed", status=502, error_type="api_error", error_message="no connection")
        recording.go()
        assert (recording.exchange(1).error_type, recording.exchange(1).error_message) == (
            "overloaded_error",
            "Overloaded",
        )
        assert (recording.exchange(2).error_type, recording.exchange(2).error_message) == ("api_error", "no connection")

    def test_of_metadata_neither_bodies_nor_headers_are_kept(self, recording: Recording) -> None:
        """Only what has a field; what the bodies said is noted by whoever saw them."""
        recording.spooled.opened(
            1, headers=[("x-claude-code-session-id", "s1"), ("user-agent", "x"), ("x-app", "cli")], keep="metadata"
        )
        recording.spooled.noted(
            1, model="m", output_tokens=7, response_headers=(("request-id", "r"), ("server", "cloudflare"))
        )
        recording.spooled.closed(1)
        recording.go()
        exchange = recording.exchange(1)
        assert (exchange.request_headers, exchange.response_headers) == ((), ())
        assert (exchange.session, exchange.user_agent, exchange.upstream_request_id) == ("s1", "x", "r")
        assert (exchange.model, exchange.output_tokens, exchange.conversation) == ("m", 7, None)
        assert recording.store.bodies == {}
        assert recording.text(1) is None

    def test_of_metadata_the_cost_is_reckoned_from_what_was_noted(self, recording: Recording) -> None:
        """Of an answer that was cut it is a lower bound; of an unknown model there is none."""
        for number, model, partial in ((1, "claude-opus-4-5", False), (2, "claude-opus-4-5", True), (3, "?", True)):
            recording.spooled.opened(number, keep="metadata")
            recording.spooled.noted(number, model=model, usage={"output_tokens": 7}, cost_is_partial=partial)
            recording.spooled.closed(number)
        recording.go()
        known = [(each.cost_nanousd, each.cost_is_partial) for each in map(recording.exchange, (1, 2, 3))]
        assert known[0][0]
        assert known == [(known[0][0], False), (known[0][0], True), (None, False)]

    def test_what_the_journal_lost_is_told(self, recording: Recording) -> None:
        """With what there is."""
        recording.spooled.exchanged(1, HELLO, "hi")
        recording.spooled.asked(2, HELLO)
        recording.spooled.answered(2, "hi", lost="20 bytes of the answer body not kept", incomplete=("answer",))
        recording.go()
        assert recording.exchange(2).lost == "20 bytes of the answer body not kept"
        assert recording.counts == Counts(recorded=2, incomplete=1)

    def test_counting_tokens_is_no_conversation(self, recording: Recording) -> None:
        """Or what is then sent would repeat it."""
        recording.spooled.opened(1, path="/v1/messages/count_tokens", headers=[("x-claude-code-session-id", "s1")])
        recording.spooled.bulk(1, Role.REQUEST, json.dumps({"model": "m", "messages": HELLO}).encode())
        recording.spooled.closed(1)
        recording.spooled.exchanged(2, HELLO, "hi")
        recording.go()
        assert (recording.exchange(1).model, recording.exchange(1).conversation) == ("m", None)
        assert recording.exchange(2).link is None

    @pytest.mark.parametrize("body", [b"", b"\x00\xff", b"{", b"[" * 5000, b'{"messages":[1e400]}', b'{"messages":7}'])
    def test_any_body_is_recorded(self, recording: Recording, body: bytes, logs: list[LogEvent]) -> None:
        """Whatever a client sends."""
        recording.spooled.opened(1)
        recording.spooled.bulk(1, Role.REQUEST, body)
        recording.spooled.bulk(1, Role.ANSWER, body, times=[1])
        recording.spooled.closed(1)
        recording.go()
        assert recording.exchange(1).lost is None
        if body:
            assert recording.body(1, Role.REQUEST) == body
        assert not lines(logs)


class TestConversations:
    def test_a_batch_may_hold_a_whole_conversation(self, recording: Recording) -> None:
        """Parents need not be in the store."""
        messages = HELLO
        for number in range(1, 6):
            recording.spooled.exchanged(number, messages, f"answer {number}")
            messages = [*messages, assistant(f"answer {number}"), user(f"question {number}")]
        recording.go()
        assert len(recording.store.batches) == 1
        for number in range(2, 6):
            exchange = recording.exchange(number)
            assert (exchange.parent, exchange.link) == (exchange_id(number - 1), Link.CONTINUES)
            assert exchange.conversation == exchange_id(1)

    def test_a_search_finds_what_is_new(self, recording: Recording) -> None:
        """What was asked before, or answered before, is found with the exchange that brought it."""
        recording.spooled.exchanged(1, HELLO, "an answer")
        recording.spooled.exchanged(2, [*HELLO, assistant("an answer"), user("more")], "another")
        recording.spooled.exchanged(3, [*HELLO, assistant("an answer"), user("more")], "a third")
        recording.go()
        assert [recording.text(number) for number in (1, 2, 3)] == ["hello\nan answer", "more\nanother", "a third"]

    def test_compaction_and_threads_by_what_the_request_says(self, recording: Recording) -> None:
        """Header and body are read for it."""
        recording.spooled.exchanged(1, [*HELLO, assistant("hi"), user("x")], "y")
        recording.spooled.opened(
            2, headers=[("x-claude-code-session-id", "s1"), ("x-claude-code-context-compacted", "auto")]
        )
        recording.spooled.bulk(2, Role.REQUEST, json.dumps({"messages": [user("summary")]}).encode())
        recording.spooled.answered(2, "ok")
        thread = {"type": "continue", "previous_message_id": "msg_2"}
        recording.spooled.exchanged(3, [user("next")], "z", thread=thread)
        recording.go()
        assert (recording.exchange(2).parent, recording.exchange(2).link) == (exchange_id(1), Link.COMPACTS)
        assert (recording.exchange(3).parent, recording.exchange(3).link) == (exchange_id(2), Link.THREADS)


class TestInFlight:
    def test_it_is_seen_from_its_headers_on(self, recording: Recording) -> None:
        """With its session; and with its model as soon as its body is in."""
        recording.spooled.opened(1, headers=[("x-claude-code-session-id", "s1")])
        recording.go()
        exchange = recording.exchange(1)
        assert (exchange.verdict, exchange.session, exchange.model) == (None, "s1", None)
        recording.spooled.bulk(1, Role.REQUEST, json.dumps({"model": "m", "messages": HELLO}).encode())
        recording.spooled.noted(1, body_read_us=100)
        recording.go()
        exchange = recording.exchange(1)
        assert (exchange.verdict, exchange.model, exchange.conversation) == (None, "m", exchange_id(1))
        assert recording.store.bodies == {}
        recording.spooled.answered(1, "hi")
        recording.go()
        assert recording.exchange(1).verdict == "complete"
        assert recording.body(1, Role.REQUEST)
        assert recording.store.batches == [[exchange_id(1)]] * 3
        assert recording.written == [exchange_id(1)] * 3

    def test_its_request_is_understood_once(self, recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
        """It keeps its place, and what it says; only a long text is read again."""
        read: list[object] = []
        of_request = facts.of_request

        def counting(*arguments: Any) -> facts.RequestFacts:
            read.append(None)
            return of_request(*arguments)

        monkeypatch.setattr(facts, "of_request", counting)
        long_text = "word " * 4000
        recording.spooled.asked(1, HELLO)
        recording.spooled.asked(2, [user(long_text)])
        recording.go()
        recording.spooled.answered(1, "hi")
        recording.go()
        assert len(read) == 2
        recording.spooled.answered(2, "hi")
        recording.go()
        assert len(read) == 3
        assert recording.text(1) == "hello\nhi"
        assert recording.text(2) == f"{long_text.strip()}\nhi"

    def test_of_thousands_little_is_in_memory(self, recording: Recording) -> None:
        """Places in files, and no bodies."""
        body = json.dumps({"messages": [user("x" * 100_000)]}).encode()
        for number in range(300):
            recording.spooled.opened(number)
            recording.spooled.bulk(number, Role.REQUEST, body)
            recording.spooled.noted(number, body_read_us=1)
        recording.go(10)
        assert recording.recorder.open == 300
        held = [attrs.asdict(each, recurse=False) for each in recording.recorder._open.values()]
        assert max(len(repr(each)) for each in held) < 3000

    def test_what_is_open_when_its_process_ended_is_interrupted(self, recording: Recording) -> None:
        """With all that there is of it."""
        recording.spooled.asked(1, HELLO)
        recording.spooled.noted(1, status=200, response_headers=(("content-type", "text/event-stream"),))
        recording.spooled.bulk(1, Role.ANSWER, *stream(message(1, ""), "hi")[:3], times=[1, 2, 3])
        recording.go()
        assert recording.exchange(1).verdict is None
        recording.end()
        exchange = recording.exchange(1)
        assert (exchange.verdict, exchange.status, exchange.message_id) == (INTERRUPTED, 200, "msg_1")
        assert recording.body(1, Role.ANSWER).startswith(b"event: message_start")
        assert recording.counts == Counts(recorded=1, interrupted=1)
        assert recording.done == [recording.recorder]


class TestBatches:
    def test_what_comes_within_half_a_second_is_one_batch(self, recording: Recording) -> None:
        """However often the recorder is woken."""
        recording.go()
        for number in range(4):
            recording.spooled.exchanged(number, HELLO, "hi")
            recording.pump.wake()
            recording.clock.advance(GATHER / 10)
        recording.clock.advance(GATHER)
        assert len(recording.store.batches) <= 2
        assert len(recording.store.exchanges) == 4

    def test_a_batch_has_a_limit(self, recording: Recording) -> None:
        """What is more is in the next one, at once."""
        for number in range(3 * BATCH_EXCHANGES):
            recording.spooled.exchanged(number, [user(str(number))], "hi")
        recording.pump.wake()
        recording.clock.advance(GATHER)
        assert len(recording.store.batches) > 1
        assert max(len(batch) for batch in recording.store.batches) < 2 * BATCH_EXCHANGES
        assert len(recording.store.exchanges) == 3 * BATCH_EXCHANGES

    def test_large_bodies_make_small_batches(self, recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
        """By bytes."""
        monkeypatch.setattr(recorder, "BATCH_BYTES", 100_000)
        monkeypatch.setattr(recorder, "READ_AT_ONCE", 6)
        for number in range(4):
            recording.spooled.exchanged(number, [user("x" * 60_000)], "hi")
        recording.go()
        assert [len(batch) for batch in recording.store.batches] == [2, 2]

    def test_exchanges_are_recorded_in_the_order_of_their_ends(self, recording: Recording) -> None:
        """So a parent is there before its child."""
        recording.spooled.asked(1, HELLO)
        recording.spooled.exchanged(2, [user("other")], "x")
        recording.spooled.answered(1, "hi")
        recording.go()
        assert recording.store.batches == [[exchange_id(2), exchange_id(1)]]

    def test_without_being_woken_it_looks_after_a_while(self, recording: Recording) -> None:
        """A message that got lost costs a second."""
        recording.go()
        recording.spooled.exchanged(1, HELLO, "hi")
        recording.clock.advance(GATHER)
        recording.clock.advance(LOOK_EVERY)
        assert recording.exchange(1).verdict == "complete"


class TestSettling:
    def test_segments_are_deleted_when_all_in_them_is_stored(self, recording: Recording) -> None:
        """Not before."""
        recording.store.problem = StoreUnavailable("down")
        recording.spooled.exchanged(1, HELLO, "hi")
        recording.spooled.rotate()
        recording.go()
        assert len(recording.spooled.segments()) == 2
        recording.store.problem = None
        recording.go(LAST_PAUSE)
        assert recording.spooled.segments() == ["000000000002.journal"]

    def test_a_long_stream_does_not_hold_back_the_segments_of_others(self, recording: Recording) -> None:
        """A checkpoint takes their place, and it can still be read from there."""
        recording.spooled.asked(1, HELLO)
        for number in range(2, 12):
            recording.spooled.exchanged(number, [user("x" * 10_000)], "hi")
            recording.spooled.rotate()
            recording.go()
        names = recording.spooled.segments()
        assert len(names) <= 6
        assert names[0].endswith(".checkpoint")
        recording.spooled.answered(1, "hi")
        recording.go()
        assert json.loads(recording.body(1, Role.REQUEST))["messages"] == HELLO

    def test_read_again_the_same_segments_make_the_same_store(self, recording: Recording) -> None:
        """A recorder that died before it could delete them."""
        recording.reader.settle = lambda exchanges: None  # type: ignore[method-assign]
        messages = HELLO
        for number in range(1, 5):
            recording.spooled.exchanged(number, messages, f"answer {number}")
            messages = [*messages, assistant(f"answer {number}"), user("more")]
        recording.spooled.asked(5, messages)
        recording.go()
        before = dict(recording.store.exchanges), dict(recording.store.bodies), dict(recording.store.texts)
        recording.restart()
        recording.go()
        assert recording.store.batches == [recording.store.batches[0]] * 2
        assert (recording.store.exchanges, recording.store.bodies, recording.store.texts) == before

    def test_a_recorder_that_died_in_the_middle_is_gone_on_for(self, recording: Recording) -> None:
        """What was open is known, what was settled does not come again."""
        recording.spooled.exchanged(1, HELLO, "hi")
        recording.spooled.rotate()
        recording.spooled.asked(2, [*HELLO, assistant("hi"), user("x")])
        recording.go()
        recording.restart()
        recording.spooled.answered(2, "y")
        recording.go()
        assert (recording.exchange(2).verdict, recording.exchange(2).parent) == ("complete", exchange_id(1))
        assert recording.counts == Counts(recorded=1)


class TestBrokenStore:
    def test_what_it_does_not_take_is_kept_and_tried_again(self, recording: Recording, logs: list[LogEvent]) -> None:
        """Nothing more is read meanwhile. It is said once, each minute, and at the end."""
        recording.store.problem = StoreUnavailable("the database is down")
        recording.spooled.exchanged(1, HELLO, "hi")
        recording.go()
        recording.spooled.exchanged(2, [user("later")], "hi")
        recording.go(3 * REMIND_EVERY)
        assert recording.pump.problem == "the database is down"
        assert recording.pump.behind > 0
        assert recording.reader.unread > 0
        said = lines(logs, level="error")
        assert said[0] == "nothing is recorded at present, it waits in the spool: the database is down"
        assert 2 <= len(said[1:]) <= 3
        assert all("the database is down" in line and "bytes wait in the spool" in line for line in said[1:])
        recording.store.problem = None
        recording.go(LAST_PAUSE)
        assert recording.pump.problem is None
        assert sorted(recording.store.exchanges) == [exchange_id(1), exchange_id(2)]
        assert recording.store.batches == [[exchange_id(1)], [exchange_id(2)]]
        assert [line for line in lines(logs) if line.startswith("recording goes on")]

    def test_pauses_grow_to_ten_seconds(self, recording: Recording) -> None:
        """A store that is down is not asked all the time."""
        recording.store.problem = StoreUnavailable("down")
        recording.spooled.exchanged(1, HELLO, "hi")
        recording.go(60)
        asked = len(recording.store.asked)
        recording.go(60)
        assert 5 <= len(recording.store.asked) - asked <= 7

    def test_while_it_does_not_answer_that_shows(self, recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
        """Since when it was not heard of; and what it was given counts as not stored."""
        answered: Deferred[None] = Deferred()
        write = recording.store.write

        async def late(records: Sequence[Record]) -> None:
            await answered
            await write(records)

        monkeypatch.setattr(recording.store, "write", late)
        recording.spooled.exchanged(1, HELLO, "hi")
        recording.go()
        asked_at = recording.recorder.waiting_since
        assert asked_at is not None
        assert asked_at < recording.clock.seconds()
        assert recording.recorder.behind > 100
        answered.callback(None)
        assert recording.exchange(1).verdict == "complete"
        assert (recording.recorder.waiting_since, recording.recorder.behind) == (None, 0)

    def test_a_question_that_is_not_answered_is_asked_again(self, recording: Recording) -> None:
        """Where a conversation is looked up; the rest of the batch is not lost."""
        recording.spooled.exchanged(1, HELLO, "hi")
        recording.go()
        recording.restart()
        recording.store.problem = StoreUnavailable("down")
        recording.spooled.exchanged(2, [user("x")], "y", session=None)
        recording.spooled.exchanged(3, [*HELLO, assistant("hi"), user("x")], "y")
        recording.go()
        recording.store.problem = None
        recording.go(LAST_PAUSE)
        assert recording.exchange(2).verdict == "complete"
        assert recording.exchange(3).parent == exchange_id(1)

    def test_a_newer_schema_is_left_alone(self, recording: Recording) -> None:
        """And no exchange is taken for one that cannot be stored."""
        recording.store.problem = SchemaTooNew("version 9")
        recording.spooled.exchanged(1, HELLO, "hi")
        recording.go(30)
        assert recording.pump.problem == "version 9"
        recording.store.problem = None
        recording.go(LAST_PAUSE)
        assert recording.exchange(1).lost is None

    def test_one_that_it_refuses_does_not_keep_the_others(self, recording: Recording, logs: list[LogEvent]) -> None:
        """It is stored with as much as the store takes, and says what is missing."""

        def refuse(record: Record) -> None:
            if record.exchange.id == exchange_id(2) and record.bodies:
                raise StoreError("a body is too large")

        recording.store.refuse = refuse
        for number in (1, 2, 3):
            recording.spooled.exchanged(number, [user(str(number))], "hi")
        recording.go()
        assert recording.exchange(1).lost is recording.exchange(3).lost is None
        assert recording.exchange(2).lost == "the store did not take its bodies"
        assert recording.exchange(2).message_id == "msg_2"
        assert (exchange_id(2), Role.REQUEST) not in recording.store.bodies
        assert any("a body is too large" in line for line in lines(logs))
        assert recording.counts == Counts(recorded=3, incomplete=1)

    def test_of_one_that_it_takes_in_no_form_the_log_tells(self, recording: Recording, logs: list[LogEvent]) -> None:
        """It is counted, and does not come again."""

        def refuse(record: Record) -> None:
            if record.exchange.id == exchange_id(1):
                raise ValueError("never")

        recording.store.refuse = refuse
        recording.spooled.exchanged(1, HELLO, "hi")
        recording.spooled.exchanged(2, [user("x")], "y")
        recording.spooled.rotate()
        recording.go()
        assert list(recording.store.exchanges) == [exchange_id(2)]
        assert recording.counts == Counts(recorded=1, refused=1)
        assert any("it is lost" in line for line in lines(logs, level="error"))
        assert recording.spooled.segments() == ["000000000002.journal"]

    def test_a_store_that_refuses_everything_is_waited_for(self, recording: Recording) -> None:
        """Then it is the store that is at fault: nothing is given up."""

        def refuse(record: Record) -> None:
            raise StoreError("permission denied for table exchanges")

        recording.store.refuse = refuse
        for number in range(20):
            recording.spooled.exchanged(number, [user(str(number))], "hi")
        recording.go(30)
        assert recording.pump.problem is not None
        assert "refuses every record" in recording.pump.problem
        recording.store.refuse = lambda record: None
        recording.go(2 * LAST_PAUSE)
        assert len(recording.store.exchanges) == 20
        assert all(exchange.lost is None for exchange in recording.store.exchanges.values())
        assert recording.counts == Counts(recorded=20)

    def test_what_the_dead_left_and_nobody_takes_does_not_keep_the_living(self, recording: Recording) -> None:
        """It is given up when others were stored since, and its slot is done."""

        def refuse(record: Record) -> None:
            if record.exchange.id == exchange_id(1):
                raise StoreError("never")

        recording.store.refuse = refuse
        other = Spooled(recording.spooled.path.parent, "0" * 31 + "9")
        other.exchanged(1, HELLO, "hi")
        dead = Recorder(
            recording.store,
            other.reader(live=False),
            "0" * 31 + "9",
            conversations=Conversations(recording.store),
            prices=shipped(),
            counts=recording.counts,
        )
        recording.pump.add(dead, first=True)
        recording.go(10)
        assert recording.pump.recorders == (dead, recording.recorder)
        recording.spooled.exchanged(2, HELLO, "hi")
        recording.go()
        assert recording.done == [dead]
        assert recording.counts == Counts(recorded=1, refused=1)


class TestBrokenExchanges:
    @pytest.mark.parametrize("function", ["of_request", "of_answer", "bodies"])
    @pytest.mark.parametrize("error", [ValueError, MemoryError, RecursionError])
    def test_one_that_is_not_understood_is_recorded_all_the_same(
        self,
        recording: Recording,
        monkeypatch: pytest.MonkeyPatch,
        logs: list[LogEvent],
        function: str,
        error: Callable[[], Exception],
    ) -> None:
        """With what is understood of it; the others do not notice."""
        original: Callable[..., Any] = getattr(facts, function)

        def broken(opened: Any, *arguments: Any) -> Any:
            if opened.received_at == BEGAN + 2_000_000:
                raise error()
            return original(opened, *arguments)

        monkeypatch.setattr(facts, function, broken)
        for number in (1, 2, 3):
            recording.spooled.exchanged(number, [user(str(number))], "hi")
        recording.go()
        assert recording.exchange(1).lost is recording.exchange(3).lost is None
        assert recording.exchange(2).verdict == "complete"
        assert "was not understood here" in recording.exchange(2).lost
        (event,) = [event for event in logs if "log_failure" in event]
        assert exchange_id(2) in formatEvent(event)

    def test_damage_in_a_body_costs_that_body(self, recording: Recording, logs: list[LogEvent]) -> None:
        """And is said, with its place."""
        recording.store.problem = StoreUnavailable("down")
        recording.spooled.exchanged(1, [user("SPOILT")], "an answer")
        recording.spooled.exchanged(2, [user("sound")], "hi")
        # One byte, on the disk.
        segment = recording.spooled.path / "000000000001.journal"
        segment.write_bytes(segment.read_bytes().replace(b"SPOILT", b"SPOILD", 1))
        recording.store.problem = None
        recording.go(LAST_PAUSE)
        assert "000000000001.journal is damaged at byte" in recording.exchange(1).lost
        assert (exchange_id(1), Role.REQUEST) not in recording.store.bodies
        assert json.loads(recording.body(1, Role.ANSWER))["id"] == "msg_1"
        assert recording.exchange(2).lost is None
        assert recording.counts == Counts(recorded=2, incomplete=1)
        assert any("is damaged at byte" in line for line in lines(logs))


def test_several_slots_are_read_side_by_side(recording: Recording, tmp_path: Path) -> None:
    """That of a proxy that died goes first; when it is done the others go on."""
    other = Spooled(tmp_path / "spool", "0" * 31 + "9")
    other.exchanged(1, HELLO, "hi")
    other.asked(3, [user("open")])
    reader = other.reader(live=False)
    dead = Recorder(
        recording.store,
        reader,
        "0" * 31 + "9",
        conversations=recording.recorder._conversations,
        prices=shipped(),
        counts=recording.counts,
    )
    recording.spooled.exchanged(2, [*HELLO, assistant("hi"), user("x")], "y")
    recording.pump.add(dead, first=True)
    recording.go()
    assert recording.exchange(2).parent == exchange_id(1)
    assert recording.exchange(3).verdict == INTERRUPTED
    assert recording.exchange(1).instance != recording.exchange(2).instance
    assert recording.done == [dead]
    assert recording.pump.recorders == (recording.recorder,)
