"""
What every store promises, as tests.

A store's own tests derive a class from `StoreContract` that gives the fixture ``new_store``.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_twisted import blockon, ensureDeferred
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import blockingCallFromThread, deferToThread

from tests.conversations import Session
from twisted_proxy.record import blobs
from twisted_proxy.record.bodies import BODY_WEIGHT, PART_WEIGHT
from twisted_proxy.record.exchange import (
    INTERRUPTED,
    PIECE,
    Body,
    BytesContent,
    Exchange,
    Instance,
    Link,
    Mark,
    Record,
    Role,
)
from twisted_proxy.record.migrations import migrations
from twisted_proxy.record.sql import SqlStore
from twisted_proxy.record.store import Keep, Query, Retention, SchemaTooNew, StoreError, StoreUnavailable
from twisted_proxy.wire.ids import request_id

T = TypeVar("T")
Test = TypeVar("Test", bound=Callable[..., Coroutine[Deferred[Any], Any, None]])

reactor: Any = installed_reactor

BEGIN = 1_790_000_000_000_000
"""When the first exchange of a test was received."""

SECOND = 1_000_000


# -- what the tests are made of


def exchange_id(number: int) -> str:
    """Ids that sort by ``number``; one second lies between two."""
    return request_id(BEGIN // 1000 + 1000 * number, number.to_bytes(10, "big"))


def exchange(number: int, **fields: Any) -> Exchange:
    """A finished exchange."""
    known: dict[str, Any] = {
        "id": exchange_id(number),
        "instance": "here",
        "received_at": BEGIN + SECOND * number,
        "method": "POST",
        "path": "/v1/messages",
        "verdict": "complete",
    }
    return Exchange(**{**known, **fields})


def body(data: bytes, role: Role = Role.REQUEST, **fields: Any) -> Body:
    return Body(role=role, content=BytesContent(data), **fields)


def record(number: int, *bodies: bytes | Body, text: str | None = None, **fields: Any) -> Record:
    """A record of a finished exchange. Bytes are the request's."""
    return Record(
        exchange=exchange(number, **fields),
        bodies=tuple(each if isinstance(each, Body) else body(each) for each in bodies),
        text=text,
    )


def full_exchange() -> Exchange:
    """One with a value in each field."""
    values: dict[str, Any] = {}
    fields: Sequence[Any] = attrs.fields(Exchange)
    for index, field in enumerate(fields):
        kind = str(field.type)
        if "bool" in kind:
            values[field.name] = True
        elif "int" in kind:
            values[field.name] = 1000 + index
        elif kind.startswith("str"):
            values[field.name] = f"the {field.name}"
    values |= {
        "id": exchange_id(1),
        "received_at": BEGIN,
        "rate_limits": {"anthropic-ratelimit-requests-remaining": "49"},
        "request_headers": (("user-agent", "test/1"), ("accept", "a"), ("accept", "b")),
        "response_headers": (("content-type", "text/event-stream"),),
        "usage": {"input_tokens": 3, "cache_creation": {"ephemeral_5m_input_tokens": 0.5}, "extra": [None, True]},
        "link": Link.FORKS,
        "chain": bytes(range(20)),
    }
    return Exchange(**values)


def messages(*texts: str) -> bytes:
    """A request body with these messages."""
    said = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
    return json.dumps({"model": "claude", "messages": said}).encode()


def awaited(test: Test) -> Test:
    """A test that is a coroutine: it runs in the reactor's thread."""
    return ensureDeferred(test)  # type: ignore[no-any-return]


async def with_examples(test: Callable[[], None]) -> None:
    """Run what hypothesis calls again and again, in a thread: there it may :func:`wait`."""
    await deferToThread(test)


def wait(work: Coroutine[Deferred[Any], Any, T]) -> T:
    """The result, in a thread."""
    result: Any = blockingCallFromThread(reactor, cast("Any", Deferred.fromCoroutine), work)
    return cast("T", result)


async def until(condition: Callable[[], object], limit: float = 10.0) -> None:
    """Until it holds."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit:g} s"
        await deferLater(reactor, 0.005)


async def rows(store: SqlStore, statement: str, *parameters: object) -> Sequence[tuple[Any, ...]]:
    """What a SELECT gives, past the store."""
    return (await store._driver.read(lambda transaction: transaction.execute(statement, *parameters))).rows


async def check_sharing(store: SqlStore) -> None:
    """Each part and run is there exactly as long and as often as something refers to it; the totals are right."""
    counted: Counter[int] = Counter()
    size = 0
    for recipe, marks in await rows(store, "SELECT recipe, marks FROM bodies"):
        counted.update(blobs.references(recipe))
        size += len(recipe) + len(marks or b"")
    parts = await rows(store, "SELECT id, refs, run, stored, data FROM parts")
    for _, _, run, stored, data in parts:
        assert len(data) == stored
        size += stored
        if run:
            counted.update(blobs.references(data))
    assert {part_id: refs for part_id, refs, *_ in parts} == counted
    others = await rows(
        store,
        "SELECT (SELECT count(*) FROM parts), (SELECT count(*) FROM bodies), "
        "(SELECT coalesce(sum(weight), 0) FROM exchanges), (SELECT coalesce(sum(weight), 0) FROM texts)",
    )
    part_rows, body_rows, exchanges, texts = others[0]
    total = size + part_rows * PART_WEIGHT + body_rows * BODY_WEIGHT + int(exchanges) + int(texts)
    assert await store.stored_bytes() == {"bodies": size, "total": total}


async def ids(store: SqlStore, query: Query, limit: int = 1000) -> list[str]:
    return [each.id for each in (await store.page(query, limit=limit)).exchanges]


async def body_of(store: SqlStore, number: int, role: Role = Role.REQUEST) -> bytes | None:
    found = await store.body(exchange_id(number), role)
    return None if found is None else found.data


class Streamed:
    """A content that is not in memory, and cannot be read as a whole."""

    def __init__(self, data: bytes, *, gone_after: int | None = None, changes: bool = False) -> None:
        self._data = data
        self._gone_after = gone_after
        self._changes = changes
        self.passes = 0

    @property
    def size(self) -> int:
        return len(self._data)

    def pieces(self) -> Iterator[bytes]:
        if self.passes == self._gone_after:
            raise FileNotFoundError("the spool is gone")
        self.passes += 1
        for start in range(0, len(self._data), PIECE):
            piece = self._data[start : start + PIECE]
            yield b"changed" + piece[7:] if self._changes and self.passes > 1 else piece

    def read(self) -> bytes:
        raise AssertionError("it is too large to be read as a whole")


DEEP = b"[" * 5000 + b"]" * 5000
ODD_BODIES = {
    "empty": b"",
    "a blank": b" ",
    "no JSON": b"\x00\x01\xfe\xff not JSON",
    "NUL": b'{"messages":[{"role":"user","content":"a\x00b ' + b"\x00" * 200 + b'"}]}',
    "escaped NUL": messages("a\u0000b" * 50),
    "lone surrogate, escaped": b'{"messages":[{"role":"user","content":"' + b"\\ud83d " * 50 + b'"}]}',
    "lone surrogate, raw": b'{"messages":[{"role":"user","content":"' + b"\xed\xa0\xbd" * 50 + b'"}]}',
    "NaN": b'{"temperature":NaN,"messages":[{"role":"user","content":"' + b"x" * 100 + b'"},-Infinity]}',
    "1e400": b'{"temperature":1e400,"messages":[1e400,{"role":"user","content":"' + b"x" * 100 + b'"}]}',
    "deep": DEEP,
    "deep within": b'{"messages":[{"role":"user","content":' + DEEP + b"}]}",
    "deep objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "twice the same name": b'{"messages":[],"messages":[{"role":"user","content":"' + b"y" * 100 + b'"}]}',
    "cut off": messages("x" * 300, "y" * 300)[:-40],
    "spaces": json.dumps(json.loads(messages("x" * 300, "y" * 300)), indent=3).encode() + b"\r\n\t ",
    "byte order mark": b"\xef\xbb\xbf" + messages("x" * 300),
    "UTF-16": messages("x" * 300).decode().encode("utf-16"),
    "gzip": gzip.compress(messages(*(str(number) * 100 for number in range(50)))),
    "markers": b'{"messages":[' + b'{"cache_control":{"type":"ephemeral"}},' * 100 + b'{"cache_control":null}]}',
    "many messages": messages(*(f"{number} " * 40 for number in range(100))),
    "all the same": messages(*["the same " * 20] * 100),
    "random, 5 MB": random.Random(1).randbytes(5_000_000),
}


SEARCHES: dict[str, tuple[str, list[str], list[str]]] = {
    "plain": (
        "The quick brown fox",
        ["quick", "QUICK", "fox the", '"quick brown"', "  fox  ", '"quick brown', 'fox"'],
        ["quic", "foxes", '"brown quick"', '"quick fox"', "quick dog"],
    ),
    "accents": (
        "Crème brûlée, İstanbul, Straße, naïve",
        ["creme", "CRÈME", "brulee", "istanbul", "strasse", "STRASSE", "naive", "Naïve"],
        ["crem", "stra"],
    ),
    "decomposed": (unicodedata.normalize("NFD", "Ångström"), ["angstrom", "Ångström"], ["ngstr"]),
    "without blanks": (
        "我們在北京大學讀書 and よみます",
        ["北京大學", "北京", "讀書", '"北京大學讀書"', "よみます", "and"],
        ["上海", "京北"],
    ),
    "Cyrillic and Greek": ("Привет, мир! Καλημέρα", ["привет", "МИР", "καλημερα"], ["при"]),
    "code": (
        "call foo_bar.baz('x') in /usr/lib/x.py at 127.0.0.1",
        ["foo_bar", "bar", "foo_bar.baz", "/usr/lib/x.py", "127.0.0.1", "x.py"],
        ["foo_baz", "lib.usr", "127.0.0.2"],
    ),
    "signs": (
        'don\'t panic -- 42% "quoted" a*b',
        ["don't", "42%", '"quoted"', "quoted", "a*b", "don"],
        ["dont", "panics"],
    ),
    "long": ("x" * 5000 + " tail", ["x" * 5000, "tail"], ["x", "y" * 5000]),
    "unstorable": ("one\0two\ud800three", ["one two", "three", '"one two three"'], ["onetwo"]),
    "operators": (
        "AND OR NOT NEAR words: rank* ^first {a b}",
        ["AND", "OR", "NOT", "NEAR", "and or not", "rank*", "^first", "{a b}", "words:", "near(words"],
        ["NOT words2", "search"],
    ),
}
"""Texts, what finds them, and what does not."""


class StoreContract:
    """The promises. Each test has an empty database."""

    @pytest.fixture
    def new_store(self) -> Callable[[], SqlStore]:
        """Makes stores, not yet open, over one database, which is empty at first."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, new_store: Callable[[], SqlStore]) -> Iterator[SqlStore]:
        store = new_store()
        blockon(Deferred.fromCoroutine(store.open()))
        yield store
        blockon(Deferred.fromCoroutine(store.close()))

    # Opening and closing

    @awaited
    async def test_opening_again_keeps_what_is_there(self, new_store: Callable[[], SqlStore]) -> None:
        """The schema is made once. A store may be closed, closed again, and opened again."""
        store = new_store()
        await store.open()
        await store.write([record(1, b"body")])
        await store.close()
        await store.close()
        await store.open()
        await store.open()
        assert await store.get(exchange_id(1)) == exchange(1)
        assert await body_of(store, 1) == b"body"
        await store.close()

    @awaited
    async def test_closing_what_was_never_open(self, new_store: Callable[[], SqlStore]) -> None:
        """does nothing."""
        await new_store().close()

    @awaited
    async def test_two_may_open_an_empty_database_at_once(self, new_store: Callable[[], SqlStore]) -> None:
        """One makes the schema, the other waits for that."""
        stores = [new_store() for _ in range(3)]
        opening = [Deferred.fromCoroutine(store.open()) for store in stores]
        for each in opening:
            await each
        for number, store in enumerate(stores):
            await store.write([record(number)])
        assert len(await ids(stores[0], Query())) == 3
        for store in stores:
            await store.close()

    @awaited
    async def test_who_only_reads_makes_nothing(self, new_store: Callable[[], SqlStore]) -> None:
        """What is not there is not made, and what is there is read as it is, if this program knows it."""
        reader, store = new_store(), new_store()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await reader.open_to_read()
        await store.open()
        await store.write([record(1, b"body")])
        await reader.open_to_read()
        assert await body_of(reader, 1) == b"body"
        newest = len(migrations(store._dialect.name))
        for statement, version, words in (
            ("INSERT INTO schema_version (version) VALUES (?)", newest + 1, "newer claude-proxy"),
            ("DELETE FROM schema_version WHERE version >= ?", newest, "brings it up to date"),
        ):
            said = (statement, version)
            await store._driver.transact(lambda transaction: transaction.execute(*said))  # noqa: B023 - called now
            with pytest.raises(StoreError, match=words):
                await reader.open_to_read()
        await reader.close()
        await store.close()

    @awaited
    async def test_a_newer_schema_is_left_alone(self, new_store: Callable[[], SqlStore]) -> None:
        """It is refused in words, at opening, and where it comes while the store is open: nothing is written then."""
        store = new_store()
        await store.open()
        newer = len(migrations(store._dialect.name)) + 1
        await store._driver.transact(
            lambda transaction: transaction.execute("INSERT INTO schema_version (version) VALUES (?)", newer)
        )
        for attempt in (store.write([record(1)]), store.delete_all(), new_store().open()):
            with pytest.raises(SchemaTooNew) as raised:
                await attempt
            assert f"schema version {newer}" in str(raised.value)
            assert f"knows {newer - 1}" in str(raised.value)
        assert await rows(store, "SELECT id FROM exchanges") == []
        await store.close()

    # Writing

    @awaited
    async def test_all_fields_come_back(self, store: SqlStore) -> None:
        """Each field of an exchange is given back as it was."""
        known = full_exchange()
        assert None not in attrs.astuple(known, recurse=False)
        await store.write([Record(exchange=known)])
        assert await store.get(known.id) == known
        assert (await store.page(Query(), limit=1)).exchanges == (known,)

    @awaited
    async def test_nothing_comes_back_as_nothing(self, store: SqlStore) -> None:
        """What is not known is not known afterwards either."""
        await store.write([record(1)])
        assert await store.get(exchange_id(1)) == exchange(1)
        assert await store.get(exchange_id(2)) is None
        assert await store.get("nonsense\0\ud800") is None

    @awaited
    async def test_any_text_and_number_can_be_stored(self, store: SqlStore) -> None:
        """What a database cannot hold as text is replaced; in JSON it stays; a number too large is the largest."""
        odd = "a\0b\ud83dc\U0001f600\x7f'\";--%?\\"
        known = exchange(
            1,
            model=odd,
            query=odd,
            error_message=odd,
            usage={odd: [odd, float("inf"), 10**400]},
            request_headers=((odd, odd),),
            rate_limits={odd: odd},
            input_tokens=10**30,
            status=-(10**30),
        )
        await store.write([Record(exchange=known, text=odd)])
        stored = await store.get(known.id)
        replaced = odd.replace("\0", "\ufffd").replace("\ud83d", "\ufffd")
        assert stored == attrs.evolve(
            known,
            model=replaced,
            query=replaced,
            error_message=replaced,
            input_tokens=2**63 - 1,
            status=-(2**63 - 1),
        )
        assert await ids(store, Query(model=odd)) == [known.id]

    @pytest.mark.parametrize(
        ("first", "second", "stays"),
        [
            (None, None, "second"),
            (None, "complete", "second"),
            (None, INTERRUPTED, "second"),
            (INTERRUPTED, "complete", "second"),
            (INTERRUPTED, INTERRUPTED, "second"),
            (INTERRUPTED, None, "first"),
            ("complete", None, "first"),
            ("complete", "client gone", "first"),
            ("complete", INTERRUPTED, "first"),
        ],
    )
    @pytest.mark.parametrize("at_once", [True, False], ids=["one batch", "two batches"])
    @awaited
    async def test_what_replaces_what(
        self, store: SqlStore, first: str | None, second: str | None, stays: str, at_once: bool
    ) -> None:
        """Any record replaces one in flight, one with a verdict one that was interrupted; bodies go with it."""
        before = record(1, b"body of the first" * 9, text="first", verdict=first, prompt="first")
        after = record(1, b"body of the second" * 9, text="second", verdict=second, prompt="second")
        for batch in [[before, after]] if at_once else [[before], [after]]:
            await store.write(batch)
        kept, other = (after, before) if stays == "second" else (before, after)
        assert await store.get(exchange_id(1)) == kept.exchange
        assert await body_of(store, 1) == kept.bodies[0].content.read()
        assert await ids(store, Query(text=kept.text)) == [exchange_id(1)]
        assert await ids(store, Query(text=other.text)) == []
        await check_sharing(store)

    @awaited
    async def test_writing_again_changes_nothing(self, store: SqlStore) -> None:
        """A batch may be written any number of times."""
        batch = [record(number, messages(*"abcdefgh" * number * 10), text=f"text {number}") for number in range(5)]
        await store.write(batch)
        stored = await store.stored_bytes()
        for _ in range(3):
            await store.write(batch)
        assert await store.stored_bytes() == stored
        assert len(await ids(store, Query())) == 5
        await check_sharing(store)
        await store.write([])

    @awaited
    async def test_all_or_none(self, store: SqlStore) -> None:
        """Of a batch with a record that cannot be stored, nothing is."""
        with pytest.raises(StoreError, match="req_"):
            await store.write([record(1, b"x" * 100), record(2, id="no id")])
        assert await ids(store, Query()) == []
        assert await store.stored_bytes() == {"bodies": 0, "total": 0}

    @awaited
    async def test_ids_of_one_moment(self, store: SqlStore) -> None:
        """Exchanges whose ids differ in their last bits only are told apart, and each is on one page."""
        first = int(exchange_id(1)[4:], 16)
        batch = [record(1, id=f"req_{first + low:032x}", prompt=str(low)) for low in range(30)]
        await store.write(batch[:10])
        await store.write(batch)
        for each in batch:
            assert await store.get(each.exchange.id) == each.exchange
        found: list[str] = []
        before = None
        while page := (await store.page(Query(), limit=7, before=before)).exchanges:
            found += [each.id for each in page]
            before = found[-1]
        assert sorted(found) == [each.exchange.id for each in batch]

    # Bodies

    @pytest.mark.parametrize("name", ODD_BODIES)
    @awaited
    async def test_any_body_comes_back(self, store: SqlStore, name: str) -> None:
        """Bit for bit, in each role, whatever it is; and goes without a trace."""
        data = ODD_BODIES[name]
        await store.write([record(1, *(body(data, role) for role in Role))])
        for role in Role:
            found = await store.body(exchange_id(1), role)
            assert found is not None
            assert found.data == data
            assert found.role is role
        await check_sharing(store)
        await store.delete([exchange_id(1)])
        assert await rows(store, "SELECT id FROM parts") == []
        assert await store.stored_bytes() == {"bodies": 0, "total": 0}

    @awaited
    async def test_what_is_known_of_a_body(self, store: SqlStore) -> None:
        """Content type and coding, and when its bytes were there."""
        marks = tuple(Mark(end=end, us=us) for end, us in [(0, 0), (10, 5), (10, 4), (3000, 2**40), (3001, 2**40 - 9)])
        told = {"content_type": "text/event-stream", "content_encoding": "gzip\0", "marks": marks}
        await store.write([record(1, body(b"a", Role.ANSWER, **told), body(b"b"))])
        found = await store.body(exchange_id(1), Role.ANSWER)
        assert found is not None
        assert found.marks == marks
        assert (found.content_type, found.content_encoding) == ("text/event-stream", "gzip\ufffd")
        other = await store.body(exchange_id(1), Role.REQUEST)
        assert other is not None
        assert (other.data, other.marks, other.content_type) == (b"b", (), None)
        assert await store.body(exchange_id(1), Role.MESSAGE) is None
        assert await store.body(exchange_id(2), Role.REQUEST) is None
        assert await store.body("nonsense\0", Role.REQUEST) is None
        await check_sharing(store)

    @awaited
    async def test_a_body_too_large_for_memory(self, store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is read piece by piece: once to find out what is known of it, once to store the rest."""
        monkeypatch.setattr(blobs, "MAX_SPLIT", 2 * PIECE)
        data = random.Random(2).randbytes(PIECE) * 3 + random.Random(3).randbytes(3 * PIECE + 5)
        streamed = Streamed(data)
        await store.write([record(1, Body(role=Role.REQUEST, content=streamed))])
        assert streamed.passes == 2
        assert await body_of(store, 1) == data
        await check_sharing(store)
        assert (await store.stored_bytes())["bodies"] < 4.1 * PIECE

    @awaited
    async def test_a_body_that_cannot_be_read(self, store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is no outage of the store; none of its batch is stored, and the store goes on."""
        monkeypatch.setattr(blobs, "MAX_SPLIT", PIECE)
        for passes in (0, 1):
            gone = Streamed(bytes(3 * PIECE), gone_after=passes)
            with pytest.raises(FileNotFoundError, match="spool"):
                await store.write([record(1, b"x" * 100), record(2, Body(role=Role.REQUEST, content=gone))])
        changed = Streamed(bytes(3 * PIECE), changes=True)
        with pytest.raises(StoreError, match="changed") as raised:
            await store.write([record(1, b"x" * 100), record(2, Body(role=Role.REQUEST, content=changed))])
        assert not isinstance(raised.value, StoreUnavailable)
        assert await ids(store, Query()) == []
        await check_sharing(store)
        await store.write([record(1, b"x" * 100)])
        assert await body_of(store, 1) == b"x" * 100

    @awaited
    async def test_a_session_is_stored_once(self, store: SqlStore) -> None:
        """
        The requests of a session of 60 turns take less than three times what the last one takes compressed, though
        the client changes earlier bytes from turn to turn.
        """
        turns = list(Session(tool_result=6000).bodies(60))
        for number, batch in enumerate(_eights(turns)):
            await store.write([record(8 * number + index, data) for index, data in enumerate(batch)])
        assert len(turns[-1]) > 300_000
        assert (await store.stored_bytes())["bodies"] < 3 * len(blobs.compress(turns[-1]))
        for number, data in enumerate(turns):
            assert await body_of(store, number) == data
        await check_sharing(store)
        for number in range(60):
            assert await store.delete([exchange_id(number)]) == 1
            if number % 12 == 0:
                await check_sharing(store)
                assert await body_of(store, 59) == (turns[59] if number < 59 else None)
        assert await store.stored_bytes() == {"bodies": 0, "total": 0}

    @awaited
    async def test_sharing_is_exact(self, store: SqlStore) -> None:
        """
        Whatever is written, written again, replaced and deleted: what is left comes back bit for bit, and with
        the last body the last part goes.
        """
        said = ["word " * 20, "\0 other " * 30, "third " * 15, "x" * 70, "fourth " * 40]
        conversations = st.lists(st.sampled_from(said), max_size=45).map(lambda texts: messages(*texts))
        anything = st.one_of(conversations, st.binary(max_size=300), st.sampled_from(list(ODD_BODIES.values())[:-1]))
        written = st.tuples(
            st.integers(0, 5), st.sampled_from([None, INTERRUPTED, "complete"]), st.lists(anything, max_size=3)
        )
        steps = st.lists(st.one_of(st.lists(written, max_size=4), st.lists(st.integers(0, 5), max_size=3)), max_size=8)

        @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(steps)
        def walk(steps: list[list[Any]]) -> None:
            wait(_walk(store, steps))

        await with_examples(walk)

    @awaited
    async def test_two_stores_write_at_once(self, new_store: Callable[[], SqlStore]) -> None:
        """Two processes may write into one database, bodies that share parts, and delete: nothing is lost or left."""
        stores = [new_store(), new_store()]
        for store in stores:
            await store.open()
        turns = list(Session(tool_result=400, tools=3, system=1000).bodies(24))

        async def writer(which: int) -> None:
            for start in range(0, len(turns), 3):
                batch = range(start, start + 3)
                await stores[which].write([record(1000 * which + number, turns[number]) for number in batch])
                if start % 2:
                    await stores[1 - which].delete([exchange_id(1000 * which + number) for number in batch])

        for done in [Deferred.fromCoroutine(writer(which)) for which in range(2)]:
            await done
        await check_sharing(stores[0])
        for which in range(2):
            for number in range(len(turns)):
                deleted = number // 3 % 2
                expected = None if deleted else turns[number]
                assert await body_of(stores[which], 1000 * which + number) == expected
        assert await stores[0].delete_all() == len(turns)
        assert await stores[1].stored_bytes() == {"bodies": 0, "total": 0}
        for store in stores:
            await store.close()

    # Pages

    @awaited
    async def test_pages(self, store: SqlStore) -> None:
        """The newest first, each once, whatever was written first; ``more`` tells whether older ones follow."""
        order = random.Random(1).sample(range(50), 50)
        for some in _eights(order):
            await store.write([record(number) for number in some])
        seen: list[str] = []
        before = None
        while True:
            page = await store.page(Query(), limit=7, before=before)
            assert len(page.exchanges) == min(7, 50 - len(seen))
            seen += [each.id for each in page.exchanges]
            assert page.more is (len(seen) < 50)
            if not page.more:
                break
            before = seen[-1]
        assert seen == [exchange_id(number) for number in reversed(range(50))]
        # It may have been deleted since.
        await store.delete([exchange_id(10)])
        page = await store.page(Query(), limit=2, before=exchange_id(10))
        assert [each.id for each in page.exchanges] == [exchange_id(9), exchange_id(8)]
        assert (await store.page(Query(), limit=2, before=exchange_id(0))).exchanges == ()
        assert (await store.page(Query(), limit=2, before="nonsense")).exchanges == ()

    @awaited
    async def test_filters(self, store: SqlStore) -> None:
        """Each filter, and each two together, find what they say, with and without words."""
        chance = random.Random(7)

        def pick(*values: Any) -> Any:
            return chance.choice(values)

        batch = [
            record(
                number,
                text=f"common {pick('red', 'green')} {number}",
                model=pick("opus", "sonnet", None),
                routed_model=pick("opus", "other", None),
                session=pick("s1", "s2", None),
                agent=pick("a1", None),
                conversation=pick("c1", "c2", None),
                request_class=pick("main", "subagent", None),
                status=pick(200, 429, 529, None),
                verdict=pick("complete", "client gone", None),
                path=pick("/v1/messages", "/v1/models"),
                cost_nanousd=pick(None, 0, 5, 50),
            )
            for number in range(120)
        ]
        await store.write(batch)
        asked: list[tuple[dict[str, Any], Callable[[Record], bool]]] = [
            ({}, lambda _: True),
            ({"text": "common RED"}, lambda each: "red" in (each.text or "")),
            ({"since": BEGIN + 30 * SECOND}, lambda each: each.exchange.received_at >= BEGIN + 30 * SECOND),
            ({"since": BEGIN + 30 * SECOND + 1}, lambda each: each.exchange.received_at > BEGIN + 30 * SECOND),
            ({"until": BEGIN + 60 * SECOND}, lambda each: each.exchange.received_at < BEGIN + 60 * SECOND),
            ({"until": BEGIN + 60 * SECOND + 1}, lambda each: each.exchange.received_at <= BEGIN + 60 * SECOND),
            ({"model": "opus"}, lambda each: "opus" in (each.exchange.model, each.exchange.routed_model)),
            ({"model": "nobody's"}, lambda _: False),
            ({"in_flight": True}, lambda each: each.exchange.verdict is None),
            ({"in_flight": False}, lambda each: each.exchange.verdict is not None),
            ({"cost_at_least": 5}, lambda each: (each.exchange.cost_nanousd or 0) >= 5),
            ({"cost_at_most": 5}, lambda each: each.exchange.cost_nanousd in (0, 5)),
        ]
        for name, value in {
            "session": "s1",
            "agent": "a1",
            "conversation": "c2",
            "request_class": "main",
            "status": 429,
            "verdict": "client gone",
            "path": "/v1/models",
        }.items():
            asked.append(({name: value}, partial(_has, name, value)))
        for (one, holds), (other, holds_too) in itertools.product(asked, repeat=2):
            if one.keys() & other.keys() and one is not other:
                continue
            query = Query(**{**one, **other})
            expected = [each.exchange.id for each in reversed(batch) if holds(each) and holds_too(each)]
            page = await store.page(query, limit=10)
            assert [each.id for each in page.exchanges] == expected[:10], query
            assert page.more is (len(expected) > 10), query
            if len(expected) > 10:
                page = await store.page(query, limit=1000, before=expected[9])
                assert [each.id for each in page.exchanges] == expected[10:], query
            assert await store.count(query, at_most=1000) == len(expected), query
            assert await store.count(query, at_most=3) == min(3, len(expected)), query

    # Search

    @pytest.mark.parametrize(("text", "finds", "does_not_find"), SEARCHES.values(), ids=SEARCHES)
    @awaited
    async def test_search(self, store: SqlStore, text: str, finds: list[str], does_not_find: list[str]) -> None:
        """All words, whole words, in any order; phrases as they stand; case and accents do not matter."""
        await store.write([record(1, text=text), record(2, text="nothing of that"), record(3)])
        for sought in finds:
            assert await ids(store, Query(text=sought)) == [exchange_id(1)], sought
            assert await store.snippet(exchange_id(1), sought) is not None, sought
        for sought in does_not_find:
            assert await ids(store, Query(text=sought)) == [], sought

    @awaited
    async def test_no_word_is_no_filter_only_if_nothing_is_asked(self, store: SqlStore) -> None:
        """Blanks ask for nothing; signs alone ask for what is nowhere."""
        await store.write([record(1, text="some - text !!!")])
        assert await ids(store, Query(text="  ")) == [exchange_id(1)]
        for sought in ("!!!", '"', "-", "\0", "'", "( )"):
            assert await ids(store, Query(text=sought)) == []
            assert await store.count(Query(text=sought), at_most=9) == 0

    @awaited
    async def test_no_search_is_a_mistake(self, store: SqlStore) -> None:
        """Whatever is sought, there is an answer, and it has what is there word by word."""
        await store.write([record(1, text="alpha beta 北京 gamma")])
        signs = st.lists(
            st.sampled_from([*"\"'*^(){}[]:+-&|!~<>@\\/%?_\0 aα北京", "\ud800", " OR ", " NOT ", " alpha "])
        ).map("".join)

        @settings(max_examples=150, deadline=None, database=None)
        @given(st.one_of(signs, st.text(max_size=40)))
        def ask(sought: str) -> None:
            wait(store.page(Query(text=sought), limit=3))
            wait(store.count(Query(text=sought), at_most=3))
            wait(store.snippet(exchange_id(1), sought))
            assert wait(ids(store, Query(text=f"{sought} "))) == wait(ids(store, Query(text=f" {sought}")))

        await with_examples(ask)

    @awaited
    async def test_long_searches_and_texts(self, store: SqlStore) -> None:
        """A page of words may be sought; of a text far too long, the beginning is found."""
        words = [f"word{number}" for number in range(70_000)]
        await store.write([record(1, text=" ".join(words))])
        assert await ids(store, Query(text=" ".join(words[:3000]))) == [exchange_id(1)]
        assert await ids(store, Query(text="word0 word49999")) == [exchange_id(1)]
        assert await ids(store, Query(text='"word49998 word49999"')) == [exchange_id(1)]
        assert await store.snippet(exchange_id(1), "word69999", around=9) == "ord69998 word69999"
        await store.delete([exchange_id(1)])
        assert await ids(store, Query(text="word0")) == []

    @awaited
    async def test_snippets(self, store: SqlStore) -> None:
        """The text around the first place, as it was written; for several words, around the first of them."""
        text = "a" * 200 + " Die Straße nach Zürich war lang " + "b" * 200
        await store.write([record(1, text=text), record(2)])
        assert await store.snippet(exchange_id(1), "zurich", around=5) == "nach Zürich war "
        assert await store.snippet(exchange_id(1), "lang STRASSE", around=4) == "Die Straße nac"
        assert await store.snippet(exchange_id(1), '"nach zurich"', around=1) == " nach "
        assert await store.snippet(exchange_id(1), "a" * 200, around=0) == "a" * 200
        assert await store.snippet(exchange_id(1), "nowhere") is None
        assert await store.snippet(exchange_id(1), "...") is None
        assert await store.snippet(exchange_id(2), "zurich") is None
        assert await store.snippet(exchange_id(3), "zurich") is None

    # Conversations

    @awaited
    async def test_conversations(self, store: SqlStore) -> None:
        """What conversations are put together from."""
        first = exchange_id(1)
        turns = [
            record(1, session="s", conversation="c", messages=1, chain=b"1" * 20, message_id="msg_1"),
            record(2, session="s", conversation="c", messages=3, chain=b"2" * 20, parent=first, link=Link.CONTINUES),
            record(3, session="s", conversation="c", messages=3, chain=b"2" * 20, parent=first, link=Link.FORKS),
            record(4, session="s", agent="a", conversation="d", messages=1, chain=b"4" * 20, message_id="msg_1"),
            record(5, session="s", messages=0),
            record(6, session="s"),
            record(7, session="t", messages=2, verdict=None),
        ]
        await store.write(turns)

        def numbers(found: Sequence[Any]) -> list[int]:
            return [next(n for n in range(10) if exchange_id(n) == each.id) for each in found]

        assert await store.conversation("c") == tuple(each.exchange for each in turns[:3])
        assert await store.conversation("e") == ()
        assert numbers(await store.turns_at([b"2" * 20, b"4" * 20, b"9" * 20])) == [4, 3, 2]
        assert await store.turns_at([]) == ()
        assert numbers(await store.followers(exchange_id(1))) == [2, 3]
        assert await store.followers(exchange_id(2)) == ()
        turn = await store.turn_of_message("msg_1")
        assert turn is not None
        assert turn.id == exchange_id(4)
        assert (turn.conversation, turn.session, turn.agent, turn.messages) == ("d", "s", "a", 1)
        assert (turn.chain, turn.message_id, turn.parent) == (b"4" * 20, "msg_1", None)
        assert await store.turn_of_message("msg_2") is None
        for session, agent, before, latest in (
            ("s", None, 7, 3),
            ("s", None, 3, 2),
            ("s", None, 1, None),
            ("s", "a", 7, 4),
            ("s", "a", 4, None),
            ("t", None, 9, 7),
            ("u", None, 9, None),
        ):
            found = await store.latest_turn(session, agent, exchange_id(before))
            assert (None if found is None else numbers([found])[0]) == latest
        alone = await store.latest_turn("t", None, exchange_id(9))
        assert alone is not None
        assert alone.conversation == exchange_id(7)

    @awaited
    async def test_turns_have_a_limit(self, store: SqlStore) -> None:
        """Of very many requests with the same messages, the newest hundred are told."""
        await store.write([record(number, chain=b"same", messages=1) for number in range(120)])
        found = await store.turns_at([b"same"])
        assert [each.id for each in found] == [exchange_id(number) for number in range(119, 19, -1)]

    # Instances

    @awaited
    async def test_interrupting(self, store: SqlStore) -> None:
        """What was in flight in an instance that is gone was interrupted; a verdict that comes all the same stands."""
        await store.write(
            [
                record(1, instance="gone", verdict=None),
                record(2, instance="gone"),
                record(3, instance="here", verdict=None),
                record(4, instance="never seen", verdict=None),
            ]
        )
        for name, at in (("gone", BEGIN), ("here", BEGIN), ("here", BEGIN + 60 * SECOND)):
            await store.alive(Instance(id=name, host="host", pid=1, started_at=BEGIN), at)
        assert await store.interrupt(["other"], BEGIN, 0) == 0
        assert await store.interrupt([], BEGIN, 0) == 0
        now = BEGIN + 70 * SECOND
        assert await store.interrupt(None, now, 30.0) == 2
        assert await store.interrupt(None, now, 30.0) == 0
        assert await ids(store, Query(verdict=INTERRUPTED)) == [exchange_id(4), exchange_id(1)]
        assert await ids(store, Query(in_flight=True)) == [exchange_id(3)]
        assert await store.interrupt(["gone", "here"], now, 30.0) == 1
        await store.write([record(1, b"its body", instance="gone"), record(3, verdict=None)])
        assert (await store.get(exchange_id(1))) == exchange(1, instance="gone")
        assert (await store.get(exchange_id(3))) == exchange(3, verdict=INTERRUPTED)
        assert await body_of(store, 1) == b"its body"

    # Letting go

    @awaited
    async def test_deleting(self, store: SqlStore) -> None:
        """All that belongs to an exchange goes, and nothing else; unknown ids do not matter."""
        turns = list(Session(tool_result=400, tools=3, system=1000).bodies(6))
        await store.write([record(number, data, text=f"turn {number}") for number, data in enumerate(turns)])
        assert await store.delete([exchange_id(1), exchange_id(3), exchange_id(77), "nonsense\0"]) == 2
        assert await store.delete([exchange_id(1)]) == 0
        assert await store.delete([]) == 0
        assert await ids(store, Query(text="turn")) == [exchange_id(number) for number in (5, 4, 2, 0)]
        assert [await body_of(store, number) for number in range(6)] == [
            None if number in (1, 3) else turns[number] for number in range(6)
        ]
        await check_sharing(store)

    @awaited
    async def test_deleting_all(self, store: SqlStore) -> None:
        """All that has a verdict goes, and with it what only that shared."""
        await store.write([record(number, messages("a" * 100, str(number) * 100), text="x") for number in range(250)])
        await store.write([record(300, b"in flight" * 20, verdict=None)])
        assert await store.delete_all() == 250
        assert await ids(store, Query()) == [exchange_id(300)]
        assert await body_of(store, 300) == b"in flight" * 20
        await check_sharing(store)
        await store.delete([exchange_id(300)])
        assert await store.stored_bytes() == {"bodies": 0, "total": 0}
        for table in ("exchanges", "bodies", "parts", "texts"):
            assert await rows(store, f"SELECT * FROM {table}") == []

    @awaited
    async def test_expiring_bodies_by_age(self, store: SqlStore) -> None:
        """What is older loses its bodies and is not found by its text any more; the exchange stays."""
        verdicts = [None if number == 2 else "complete" for number in range(9)]
        await store.write([record(n, b"body" * 50, text="text", verdict=verdict) for n, verdict in enumerate(verdicts)])
        retention = Retention(bodies=Keep(seconds=10))
        now = BEGIN + 15 * SECOND
        assert await store.expire(retention, now, limit=2) == 2
        assert await body_of(store, 0) is None
        assert await body_of(store, 3) is not None
        assert await store.expire(retention, now, limit=100) == 2
        assert await store.expire(retention, now, limit=100) == 0
        assert [number for number in range(9) if await body_of(store, number) is not None] == [2, 5, 6, 7, 8]
        assert await ids(store, Query(text="text")) == [exchange_id(number) for number in (8, 7, 6, 5, 2)]
        assert len(await ids(store, Query())) == 9
        await check_sharing(store)

    @awaited
    async def test_expiring_metadata_by_age(self, store: SqlStore) -> None:
        """What is older goes with all that belongs to it; what is in flight stays."""
        verdicts = [None if number == 2 else "complete" for number in range(9)]
        await store.write([record(n, b"body" * 50, text="text", verdict=verdict) for n, verdict in enumerate(verdicts)])
        retention = Retention(metadata=Keep(seconds=10))
        now = BEGIN + 15 * SECOND
        assert await store.expire(retention, now, limit=3) == 3
        assert await store.expire(retention, now, limit=3) == 1
        assert await store.expire(retention, now) == 0
        assert await ids(store, Query()) == [exchange_id(number) for number in (8, 7, 6, 5, 2)]
        await check_sharing(store)

    @awaited
    async def test_expiring_bodies_by_size(self, store: SqlStore) -> None:
        """The oldest bodies go until the rest is as small as wanted, and few more."""
        chance = random.Random(1)
        await store.write([record(number, chance.randbytes(10_000)) for number in range(60)])
        retention = Retention(bodies=Keep(bytes=300_000))
        done = 0
        while step := await store.expire(retention, BEGIN, limit=10):
            assert step <= 10
            done += step
        assert 200_000 < (await store.stored_bytes())["bodies"] <= 300_000
        assert len(await ids(store, Query())) == 60
        assert [number for number in range(60) if await body_of(store, number) is not None] == list(range(done, 60))
        await check_sharing(store)

    @awaited
    async def test_expiring_metadata_by_size(self, store: SqlStore) -> None:
        """The oldest exchanges go until all of the rest is as small as wanted; in the end nothing is left."""
        chance = random.Random(1)
        await store.write([record(number, chance.randbytes(10_000), text="some text") for number in range(60)])
        retention = Retention(metadata=Keep(bytes=300_000))
        done = 0
        while step := await store.expire(retention, BEGIN, limit=10):
            done += step
        assert 200_000 < (await store.stored_bytes())["total"] <= 300_000
        assert await ids(store, Query()) == [exchange_id(number) for number in range(59, done - 1, -1)]
        await check_sharing(store)
        while await store.expire(Retention(metadata=Keep(bytes=0)), BEGIN):
            pass
        assert await store.stored_bytes() == {"bodies": 0, "total": 0}

    @awaited
    async def test_both_kinds_expire(self, store: SqlStore) -> None:
        """Bodies go before the rest; a step is no larger than wanted in all."""
        await store.write([record(number, b"body" * 50) for number in range(30)])
        retention = Retention(bodies=Keep(seconds=5), metadata=Keep(seconds=20))
        now = BEGIN + 30 * SECOND
        steps = []
        while step := await store.expire(retention, now, limit=8):
            steps.append(step)
        assert steps == [8, 8, 8, 1]
        assert await ids(store, Query()) == [exchange_id(number) for number in range(29, 9, -1)]
        assert [number for number in range(30) if await body_of(store, number) is not None] == [25, 26, 27, 28, 29]
        assert await store.expire(Retention(), now) == 0

    # Watching

    @awaited
    async def test_watching(self, new_store: Callable[[], SqlStore]) -> None:
        """Whoever watches is told what this store and another write, until the end of it."""
        one, other = new_store(), new_store()
        await one.open()
        await other.open()
        await one.write([record(1)])
        seen: list[str] = []
        end = one.watch(seen.extend)
        second: list[str] = []
        end_second = one.watch(second.extend)
        number = 100

        async def until_told(store: SqlStore) -> None:
            # Until it listens, it may miss some.
            nonlocal number
            deadline = time.monotonic() + 10
            while not seen or seen[-1] != exchange_id(number):
                assert time.monotonic() < deadline
                number += 1
                await store.write([record(number)])
                with_pause = time.monotonic() + 1.5
                while time.monotonic() < with_pause and exchange_id(number) not in seen:
                    await deferLater(reactor, 0.01)

        await until_told(one)
        await until_told(other)
        await other.write([record(2, verdict=None), record(3, instance="gone", verdict=None)])
        await until(lambda: {exchange_id(2), exchange_id(3)} <= set(seen))
        seen.clear()
        await other.interrupt(["gone"], BEGIN, 0)
        await until(lambda: exchange_id(3) in seen)
        end()
        end()
        seen.clear()
        await other.write([record(4)])
        await until(lambda: exchange_id(4) in second)
        assert seen == []
        end_second()
        await one.close()
        await other.close()


def _has(name: str, value: object, each: Record) -> bool:
    return bool(getattr(each.exchange, name) == value)


def _eights(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), 8):
        yield values[start : start + 8]


async def _walk(store: SqlStore, steps: list[list[Any]]) -> None:
    """Do these to a store, and to a dict; compare, and leave the store empty."""
    there: dict[int, tuple[str | None, tuple[bytes, ...]]] = {}
    roles = list(Role)
    for step in steps:
        if step and isinstance(step[0], int):
            expected = {number for number in step if number in there}
            assert await store.delete([exchange_id(number) for number in step]) == len(expected)
            for number in expected:
                del there[number]
        else:
            await store.write(
                [
                    record(number, *map(body, bodies, roles), verdict=verdict, text="text" if bodies else None)
                    for number, verdict, bodies in step
                ]
            )
            for number, verdict, bodies in step:
                known = there.get(number)
                if known is None or known[0] is None or (known[0] == INTERRUPTED and verdict is not None):
                    there[number] = verdict, tuple(bodies)
        await check_sharing(store)
        for number, (_, bodies) in there.items():
            for role, data in itertools.zip_longest(roles, bodies):
                assert await body_of(store, number, role) == data
    await store.delete([exchange_id(number) for number in there])
    assert await rows(store, "SELECT id FROM parts") == []
    assert await store.stored_bytes() == {"bodies": 0, "total": 0}
