"""The Go program's database, taken over."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tests.memory_store import MemoryStore
from twisted_proxy.record import importing
from twisted_proxy.record.exchange import INTERRUPTED, Exchange, Link, Record, Role
from twisted_proxy.record.importing import INSTANCE, REMADE, NotImportable, Summary, import_database
from twisted_proxy.record.store import StoreError, StoreUnavailable

SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    id TEXT PRIMARY KEY,
    timestamp DATETIME DEFAULT CURRENT_TIMESTAMP,
    method TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    headers TEXT NOT NULL,
    body TEXT NOT NULL,
    user_agent TEXT,
    content_type TEXT,
    prompt_grade TEXT,
    response TEXT,
    model TEXT,
    original_model TEXT,
    routed_model TEXT,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX IF NOT EXISTS idx_timestamp ON requests(timestamp DESC);
CREATE INDEX IF NOT EXISTS idx_endpoint ON requests(endpoint);
CREATE INDEX IF NOT EXISTS idx_model ON requests(model);
"""
"""As `proxy/internal/service/storage_sqlite.go` of the Go program has it."""

KEY = "sk-ant-api03-canary-0123456789abcdefghijklmnop"
SONNET = "claude-sonnet-4-20250514"
HEADERS = {
    "Authorization": [f"Bearer {KEY}"],
    "X-Api-Key": [KEY],
    "Cookie": [f"session={KEY}"],
    "Content-Encoding": ["gzip"],
    "Content-Length": ["99999"],
    "Content-Type": ["application/json"],
    "User-Agent": ["claude-cli/1.0.60 (external, cli)"],
    "X-Claude-Code-Session-Id": ["session-1"],
    "X-Something-Else": ["private"],
}
FIRST = {"role": "user", "content": [{"type": "text", "text": "What is in <this> directory?"}]}
BODY = {"model": SONNET, "messages": [FIRST], "max_tokens": 32000, "stream": True}
CHUNKS = [
    "data: " + json.dumps(data)
    for data in (
        {
            "type": "message_start",
            "message": {
                "id": "msg_01",
                "type": "message",
                "role": "assistant",
                "model": SONNET,
                "content": [],
                "stop_reason": None,
                "usage": {"input_tokens": 4, "cache_creation_input_tokens": 1000, "output_tokens": 1},
            },
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Swifts & swallows"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 20}},
        {"type": "message_stop"},
    )
]
STREAMED = {
    "statusCode": 200,
    "headers": {
        "Content-Type": ["text/event-stream; charset=utf-8"],
        "Content-Encoding": ["gzip"],
        "Request-Id": ["req_011C"],
        "Anthropic-Ratelimit-Unified-5h-Utilization": ["0.25"],
        "Set-Cookie": [f"__cf_bm={KEY}"],
    },
    "body": {
        "content": [{"type": "text", "text": "Swifts & swallows"}],
        "id": "msg_01",
        "model": SONNET,
        "role": "assistant",
        "stop_reason": "end_turn",
        "type": "message",
        "usage": {"input_tokens": 0, "output_tokens": 20},
    },
    "responseTime": 1234,
    "streamingChunks": CHUNKS,
    "isStreaming": True,
    "completedAt": "2025-11-28T13:03:30-08:00",
}
ROW: dict[str, Any] = {
    "id": "0123456789abcdef",
    "timestamp": "2025-11-28T13:03:29-08:00",
    "method": "POST",
    "endpoint": "/v1/messages",
    "headers": HEADERS,
    "body": BODY,
    "user_agent": "claude-cli/1.0.60 (external, cli)",
    "content_type": "application/json",
    "prompt_grade": {"score": 5},
    "response": STREAMED,
    "model": SONNET,
    "original_model": SONNET,
    "routed_model": SONNET,
}
RECEIVED_AT = 1_764_363_809_000_000

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives that waits for nothing."""
    results: list[T | Failure] = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    (result,) = results
    if isinstance(result, Failure):
        result.raiseException()
    assert not isinstance(result, Failure)
    return result


def column(value: object) -> object:
    """As the program stores it: Go escapes what HTML would read."""
    if not isinstance(value, dict):
        return value
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def insert(path: Path, *rows: dict[str, Any]) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        for row in rows:
            names = ", ".join(row)
            marks = ", ".join("?" * len(row))
            database.execute(
                f"INSERT INTO requests ({names}) VALUES ({marks})", [column(each) for each in row.values()]
            )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database of the Go program, empty."""
    path = tmp_path / "requests.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.executescript(SCHEMA)
    return path


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def bring(path: Path, store: MemoryStore) -> Summary:
    return run(import_database(path, store, lambda words: None))


def only(store: MemoryStore) -> Exchange:
    (exchange,) = store.exchanges.values()
    return exchange


def body(store: MemoryStore, role: Role) -> bytes | None:
    kept = store.bodies.get((only(store).id, role))
    return None if kept is None else kept.data


class TestRecords:
    """What a row becomes."""

    def test_a_stream(self, path: Path, store: MemoryStore) -> None:
        """All that the program knew of it, and what its bodies say."""
        insert(path, ROW)
        assert bring(path, store) == Summary(rows=1, imported=1, skipped={})
        exchange = only(store)
        assert (exchange.received_at, exchange.last_byte_us, exchange.instance) == (RECEIVED_AT, 1_234_000, INSTANCE)
        assert (exchange.method, exchange.path, exchange.status) == ("POST", "/v1/messages", 200)
        assert (exchange.verdict, exchange.stream, exchange.model) == ("complete", True, SONNET)
        assert exchange.routed_model is None
        assert (exchange.session, exchange.user_agent) == ("session-1", "claude-cli/1.0.60 (external, cli)")
        assert (exchange.message_id, exchange.stop_reason) == ("msg_01", "end_turn")
        assert (exchange.input_tokens, exchange.output_tokens, exchange.cache_write_5m_tokens) == (4, 20, 1000)
        assert (exchange.cost_nanousd, exchange.cost_is_partial) == (4 * 3000 + 20 * 15000 + 1000 * 3750, False)
        assert exchange.upstream_request_id == "req_011C"
        assert exchange.rate_limits == {"anthropic-ratelimit-unified-5h-utilization": "0.25"}
        assert exchange.lost == REMADE
        assert store.texts[exchange.id] == "What is in <this> directory?\nSwifts & swallows"

    def test_bodies_of_a_stream(self, path: Path, store: MemoryStore) -> None:
        """The events have the names again that the program cut off; of them the message is made."""
        insert(path, ROW)
        bring(path, store)
        kept = {role: store.bodies[only(store).id, role] for role in (Role.REQUEST, Role.ANSWER, Role.MESSAGE)}
        assert len(store.bodies) == 3
        assert json.loads(kept[Role.REQUEST].data) == BODY
        assert kept[Role.ANSWER].data.startswith(b'event: message_start\ndata: {"type": "message_start"')
        assert kept[Role.ANSWER].data.endswith(b'event: message_stop\ndata: {"type": "message_stop"}\n\n')
        assert kept[Role.ANSWER].data.count(b"\n\n") == len(CHUNKS)
        message = json.loads(kept[Role.MESSAGE].data)
        assert message["content"] == [{"type": "text", "text": "Swifts & swallows"}]
        kinds = [each.content_type for each in kept.values()]
        assert kinds == ["application/json", "text/event-stream", "application/json"]
        assert {each.content_encoding for each in kept.values()} == {None}
        exchange = only(store)
        assert exchange.request_bytes == len(kept[Role.REQUEST].data)
        assert exchange.response_bytes == len(kept[Role.ANSWER].data)

    def test_no_credential(self, path: Path, store: MemoryStore) -> None:
        """Headers by the list alone, and none that spoke of the bytes on the wire."""
        insert(path, ROW)
        bring(path, store)
        exchange = only(store)
        assert dict(exchange.request_headers) == {
            "content-type": "application/json",
            "user-agent": "claude-cli/1.0.60 (external, cli)",
            "x-claude-code-session-id": "session-1",
        }
        assert "set-cookie" not in dict(exchange.response_headers)
        assert KEY not in repr(exchange)
        assert not any(KEY.encode() in each.data for each in store.bodies.values())

    def test_a_message(self, path: Path, store: MemoryStore) -> None:
        """An answer that is JSON."""
        response = {**STREAMED, "streamingChunks": None, "isStreaming": False, "headers": {}}
        insert(path, {**ROW, "response": response})
        bring(path, store)
        assert json.loads(body(store, Role.ANSWER) or b"") == STREAMED["body"]
        assert body(store, Role.MESSAGE) is None
        assert store.bodies[only(store).id, Role.ANSWER].content_type == "application/json"
        assert (only(store).verdict, only(store).output_tokens) == ("complete", 20)

    def test_text_before_json(self, path: Path, store: MemoryStore) -> None:
        """Where an older version kept both, the text is as it came."""
        text = '{ "id": "msg_9",  "n": 1.0 }'
        insert(path, {**ROW, "response": {"statusCode": 200, "bodyText": text, "body": {"id": "msg_9", "n": 1}}})
        bring(path, store)
        assert body(store, Role.ANSWER) == text.encode()
        assert only(store).message_id == "msg_9"

    @pytest.mark.parametrize(
        ("text", "kind", "expected"),
        [
            ('{"type":"error","error":{"type":"odd_error","message":"Busy"}}', "application/json", "odd_error"),
            ("<html>Bad gateway</html>", "text/html", "api_error"),
            ("upstream connect error", "application/json", "api_error"),
        ],
    )
    def test_an_error(self, path: Path, store: MemoryStore, text: str, kind: str, expected: str) -> None:
        """Was answered to its end, whatever its form."""
        headers = {"Content-Type": [kind]}
        insert(
            path, {**ROW, "response": {"statusCode": 502, "headers": headers, "bodyText": text, "isStreaming": True}}
        )
        bring(path, store)
        exchange = only(store)
        assert (exchange.status, exchange.verdict, exchange.error_type) == (502, "complete", expected)
        assert body(store, Role.ANSWER) == text.encode()
        told = store.bodies[exchange.id, Role.ANSWER].content_type
        assert told == ("text/plain" if text.startswith("upstream") else kind)

    def test_a_stream_that_was_cut(self, path: Path, store: MemoryStore) -> None:
        """Says so, and that it cost at least that."""
        insert(path, {**ROW, "response": {**STREAMED, "streamingChunks": CHUNKS[:4]}})
        bring(path, store)
        assert (only(store).verdict, only(store).cost_is_partial) == ("truncated", True)
        assert body(store, Role.MESSAGE) is not None

    @pytest.mark.parametrize("response", [None, "", "not json", "[]", '{"statusCode":"200"}'])
    def test_without_an_answer(self, path: Path, store: MemoryStore, response: str | None) -> None:
        """Nobody knows how it ended; one that is there and cannot be read is mentioned."""
        insert(path, {**ROW, "response": response})
        bring(path, store)
        exchange = only(store)
        assert (exchange.verdict, exchange.status, exchange.cost_nanousd) == (INTERRUPTED, None, None)
        assert [role for _, role in store.bodies] == [Role.REQUEST]
        assert exchange.lost == (f"{REMADE}; its answer could not be read" if response else REMADE)

    def test_routed(self, path: Path, store: MemoryStore) -> None:
        """What was asked for, what was asked of the other, and the price of what answered."""
        chunks = [chunk.replace(SONNET, "gpt-4o-2024-08-06") for chunk in CHUNKS]
        response = {**STREAMED, "streamingChunks": chunks}
        insert(path, {**ROW, "model": "gpt-4o", "routed_model": "gpt-4o", "response": response})
        bring(path, store)
        assert (only(store).model, only(store).routed_model) == (SONNET, "gpt-4o")
        assert only(store).cost_nanousd == 4 * 2500 + 20 * 10_000 + 1000 * 2500

    @pytest.mark.parametrize(
        ("timestamp", "microseconds"),
        [
            ("2025-11-28T13:03:29-08:00", 0),
            ("2025-11-28T21:03:29Z", 0),
            ("2025-11-28T21:03:29.123456789Z", 123_456),
            ("2025-11-28 21:03:29", 0),
            ("2025-11-28 22:03:29.5+01:00", 500_000),
            ("2025-11-28 22:03:29.5 +0100 CET m=+0.1", 500_000),
        ],
    )
    def test_times(self, path: Path, store: MemoryStore, timestamp: str, microseconds: int) -> None:
        """As Go, its SQLite driver and SQLite itself write them."""
        insert(path, {**ROW, "timestamp": timestamp})
        bring(path, store)
        assert only(store).received_at == RECEIVED_AT + microseconds
        assert only(store).id.startswith(f"req_{RECEIVED_AT // 1000 + microseconds // 1000:012x}7")

    def test_created_at(self, path: Path, store: MemoryStore) -> None:
        """Says when it was, where nothing else does."""
        insert(path, {**ROW, "timestamp": "soon", "created_at": "2025-11-28 21:03:29"})
        bring(path, store)
        assert only(store).received_at == RECEIVED_AT

    def test_a_path_with_secrets(self, path: Path, store: MemoryStore) -> None:
        """Its bodies are not kept here either."""
        insert(path, {**ROW, "endpoint": "/v1/oauth/token?code=secret&beta=true"})
        bring(path, store)
        assert (only(store).path, only(store).query) == ("/v1/oauth/token", "code=***&beta=true")
        assert (store.bodies, store.texts) == ({}, {only(store).id: None})

    def test_conversations(self, path: Path, store: MemoryStore) -> None:
        """A request that goes on where another ended follows it, and is found by what is new in it."""
        said = {"role": "assistant", "content": [{"type": "text", "text": "Swifts & swallows"}]}
        then = {"role": "user", "content": "And herons?"}
        second = {**ROW, "id": "2", "timestamp": "2025-11-28T13:04:00-08:00"}
        insert(path, ROW, {**second, "body": {**BODY, "messages": [FIRST, said, then]}})
        bring(path, store)
        one, two = sorted(store.exchanges.values(), key=lambda exchange: exchange.id)
        assert (one.conversation, one.parent, one.messages) == (one.id, None, 1)
        assert (two.conversation, two.parent, two.link, two.messages) == (one.id, one.id, Link.CONTINUES, 3)
        assert "And herons?" in (store.texts[two.id] or "")
        assert "directory" not in (store.texts[two.id] or "")


class TestDamage:
    """Rows and files that are not as they should be."""

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"id": ""}, "it has no id"),
            ({"timestamp": "soon", "created_at": ""}, "its timestamp cannot be read"),
            ({"timestamp": "2025-13-41T00:00:00Z", "created_at": None}, "its timestamp cannot be read"),
            ({"timestamp": "1901-01-01T00:00:00Z", "created_at": None}, "its timestamp cannot be read"),
            ({"headers": "{"}, "its headers are not JSON"),
            ({"headers": "[1]"}, "its headers are not JSON"),
            ({"body": '{"model":'}, "its body is not JSON"),
            ({"body": b"\xff\xfe\x00"}, "its body is not JSON"),
            ({"body": ""}, "its body is not JSON"),
            ({"endpoint": "v1 messages"}, "its method or endpoint is none"),
            ({"method": "GET /"}, "its method or endpoint is none"),
        ],
    )
    def test_a_row(self, path: Path, store: MemoryStore, change: dict[str, Any], reason: str) -> None:
        """Is skipped and counted, and the others come."""
        insert(path, {**ROW, **change}, {**ROW, "id": "other"})
        assert bring(path, store) == Summary(rows=2, imported=1, skipped={reason: 1})
        assert len(store.exchanges) == 1

    def test_odd_text(self, path: Path, store: MemoryStore) -> None:
        """What is no UTF-8, in columns of text, is no reason to leave a row."""
        odd = {"user_agent": b"\xff", "content_type": b"caf\xe9", "model": b"\xfe", "original_model": None}
        insert(path, {**ROW, **odd})
        assert bring(path, store).imported == 1
        assert store.bodies[only(store).id, Role.REQUEST].content_type == "caf"
        assert only(store).model == SONNET

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "has no table 'requests'"),
            (b"not a database at all, but long enough to look at it" * 100, "is no SQLite database"),
        ],
    )
    def test_another_file(self, tmp_path: Path, store: MemoryStore, content: bytes, words: str) -> None:
        """It is said what it is."""
        path = tmp_path / "else.db"
        path.write_bytes(content)
        with pytest.raises(NotImportable, match=rf"else\.db: {words}"):
            bring(path, store)

    def test_no_file(self, tmp_path: Path, store: MemoryStore) -> None:
        """None is made, either."""
        with pytest.raises(NotImportable, match=r"none\.db: there is no such file"):
            bring(tmp_path / "none.db", store)
        assert not (tmp_path / "none.db").exists()

    def test_another_table(self, tmp_path: Path, store: MemoryStore) -> None:
        """It is said what it lacks."""
        path = tmp_path / "other.db"
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE requests (id TEXT, timestamp TEXT, method TEXT, url TEXT)")
        with pytest.raises(NotImportable, match="has no column endpoint, headers, body; is it the Go program's"):
            bring(path, store)

    def test_an_older_table(self, tmp_path: Path, store: MemoryStore) -> None:
        """The first versions had fewer columns, and a newer one adds none to a table that is there."""
        path = tmp_path / "old.db"
        columns = ("id", "timestamp", "method", "endpoint", "headers", "body", "response")
        with closing(sqlite3.connect(path)) as database:
            database.execute(f"CREATE TABLE requests ({', '.join(columns)})")
        insert(path, {name: ROW[name] for name in columns})
        assert bring(path, store).imported == 1
        assert (only(store).model, only(store).output_tokens) == (SONNET, 20)

    def test_a_page_that_is_damaged(self, path: Path, store: MemoryStore) -> None:
        """The rows on it are counted; those on others come."""
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA journal_mode=DELETE")
        filler = {**BODY, "system": [{"type": "text", "text": "x" * 20_000}]}
        insert(path, *[{**ROW, "id": str(number), "body": filler} for number in range(20)])
        data = bytearray(path.read_bytes())
        # Of one row's pages, those that only it has.
        at = data.index(b"x" * 4000, len(data) // 2) + 4096
        data[at - at % 4096 : at - at % 4096 + 4] = b"\xff\xff\xff\xff"
        path.write_bytes(data)
        summary = bring(path, store)
        assert summary.rows == 20
        assert summary.imported == 19
        ((reason, count),) = summary.skipped.items()
        assert count == 1
        assert reason.startswith(("the database cannot read it: ", "its body is not JSON"))

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
    @given(
        st.dictionaries(
            st.sampled_from([name for name in ROW if name != "id"]),
            st.text(max_size=20) | st.binary(max_size=20) | st.integers(-5, 2**40) | st.floats(),
        )
    )
    def test_any_values(self, path: Path, change: dict[str, Any]) -> None:
        """Nothing raises; each row is imported, or skipped for a reason."""
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("DELETE FROM requests")
        # A column that must have a value has one.
        insert(path, {**ROW, **{name: "" if value != value else value for name, value in change.items()}})
        summary = bring(path, MemoryStore())
        assert summary.imported + sum(summary.skipped.values()) == summary.rows == 1


class TestTheFile:
    """What becomes of it."""

    def test_it_stays_as_it_is(self, path: Path, store: MemoryStore) -> None:
        """Not a byte of it is changed."""
        insert(path, ROW)
        before = hashlib.sha256(path.read_bytes()).digest()
        bring(path, store)
        assert hashlib.sha256(path.read_bytes()).digest() == before

    @pytest.mark.parametrize("mode", ["WAL", "DELETE"])
    def test_beside_the_program(self, path: Path, mode: str) -> None:
        """It goes on writing while its rows are imported, at once; what it had not yet put into the file comes, too."""
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as program:
            program.execute(f"PRAGMA journal_mode={mode}")
            insert(path, *[{**ROW, "id": str(number)} for number in range(200)])

            class Store(MemoryStore):
                async def write(self, records: Any) -> None:
                    await super().write(records)
                    program.execute("UPDATE requests SET prompt_grade = '{}'")

            store = Store()
            assert bring(path, store).imported == len(store.exchanges) == 200
            assert len(store.batches) > 1

    def test_in_a_directory_without_write_permission(self, path: Path, store: MemoryStore) -> None:
        """As on a medium that was mounted read-only: what was in WAL mode can be read all the same."""
        insert(path, ROW)
        path.parent.chmod(0o500)
        try:
            if os.access(path.parent, os.W_OK):
                pytest.skip("this user may write anywhere")
            assert bring(path, store).imported == 1
        finally:
            path.parent.chmod(0o700)

    def test_twice(self, path: Path, store: MemoryStore) -> None:
        """The same ids: nothing is there twice."""
        insert(path, ROW, {**ROW, "id": "2"})
        assert bring(path, store) == bring(path, store) == Summary(rows=2, imported=2, skipped={})
        assert len(store.exchanges) == 2

    def test_again_later(self, path: Path, store: MemoryStore) -> None:
        """Answers that were missing come with the next import."""
        insert(path, {**ROW, "response": None})
        bring(path, store)
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE requests SET response = ?", (column(STREAMED),))
        bring(path, store)
        assert (only(store).verdict, only(store).output_tokens) == ("complete", 20)
        assert body(store, Role.MESSAGE) is not None


class TestTheStore:
    """Where it goes."""

    def test_in_batches(self, path: Path, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the order of the rows, and it is said how far it is."""
        monkeypatch.setattr(importing, "_SAY_EVERY", 100)
        insert(path, *[{**ROW, "id": str(number), "response": None} for number in range(210)])
        said: list[str] = []
        run(import_database(path, store, said.append))
        assert said == [f"{path}: 210 requests", "100 of 210", "200 of 210"]
        assert [len(batch) for batch in store.batches] == [64, 64, 64, 18]

    def test_large_rows(self, path: Path, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """A batch is bounded in bytes, too."""
        large = {**BODY, "system": [{"type": "text", "text": "x" * 600_000}]}
        monkeypatch.setattr(importing, "_BATCH_BYTES", 1_600_000)
        insert(path, *[{**ROW, "id": str(number), "body": large} for number in range(4)])
        bring(path, store)
        assert [len(batch) for batch in store.batches] == [3, 1]

    def test_one_that_it_refuses(self, path: Path, store: MemoryStore) -> None:
        """Is counted; the others come."""

        def refuse(record: Record) -> None:
            if record.exchange.user_agent == "odd":
                raise StoreError("it is odd")

        store.refuse = refuse
        odd = {**HEADERS, "User-Agent": ["odd"]}
        insert(path, *[{**ROW, "id": str(number), "headers": odd if number == 3 else HEADERS} for number in range(10)])
        assert bring(path, store) == Summary(rows=10, imported=9, skipped={"the store refuses it: it is odd": 1})

    def test_out_of_reach(self, path: Path, store: MemoryStore) -> None:
        """Whoever imports is told, and may try again."""
        insert(path, ROW)
        store.problem = StoreUnavailable("it is down")
        with pytest.raises(StoreUnavailable, match="it is down"):
            bring(path, store)
        store.problem = None
        assert bring(path, store).imported == 1
