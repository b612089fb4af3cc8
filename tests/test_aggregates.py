"""What many exchanges come to, asked of both databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import blockon
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred

from tests.postgresql import Database
from tests.store_contract import BEGIN, SECOND, awaited, body, exchange_id, record
from twisted_proxy.record.aggregates import _TOTALS
from twisted_proxy.record.database import Transaction
from twisted_proxy.record.exchange import Link, Role
from twisted_proxy.record.postgres import postgres_store
from twisted_proxy.record.sql import SqlStore
from twisted_proxy.record.sqlite import SqliteDriver
from twisted_proxy.record.store import Query

reactor: Any = installed_reactor


class AggregatesContract:
    """The promises. Each test has an empty database."""

    @pytest.fixture
    def new_store(self) -> Callable[[], SqlStore]:
        raise NotImplementedError

    @pytest.fixture
    def store(self, new_store: Callable[[], SqlStore]) -> Iterator[SqlStore]:
        store = new_store()
        blockon(Deferred.fromCoroutine(store.open()))
        yield store
        blockon(Deferred.fromCoroutine(store.close()))

    @awaited
    async def test_nothing(self, store: SqlStore) -> None:
        """Of an empty store everything is empty."""
        found = store.aggregates
        assert await found.exchanges([exchange_id(1)]) == ()
        assert await found.sizes(exchange_id(1)) == ()
        assert await found.models() == ()
        assert await found.sessions(limit=5) == ()
        assert await found.conversations(limit=5) == ()
        assert await found.session("s") is None
        assert await found.conversation("c") is None
        assert await found.members("session", "s", limit=5) == ()
        assert await found.spans(since=0, until=BEGIN, step=SECOND, by=None) == ()
        assert await found.paces(since=0, until=BEGIN, step=SECOND, model=None, limit=5) == ()
        assert await found.limits(since=0, until=BEGIN, step=SECOND, limit=5) == ()
        assert await found.cache_breaks(since=0, until=BEGIN, limit=5) == ()

    @awaited
    async def test_exchanges_and_sizes(self, store: SqlStore) -> None:
        """Several exchanges at once; and how large the bodies of one are, in the order of roles."""
        await store.write([record(1, body(b"ab", Role.ANSWER, content_type="t"), body(b"abc")), record(2)])
        found = await store.aggregates.exchanges([exchange_id(2), exchange_id(1), exchange_id(9)])
        assert {each.id for each in found} == {exchange_id(1), exchange_id(2)}
        sizes = await store.aggregates.sizes(exchange_id(1))
        assert [(each.role, each.size, each.content_type) for each in sizes] == [
            (Role.REQUEST, 3, None),
            (Role.ANSWER, 2, "t"),
        ]

    @awaited
    async def test_models(self, store: SqlStore) -> None:
        """Each model once, asked for or routed to; and pages of any of several."""
        await store.write([record(n, model=f"m{n % 3}", routed_model="routed" if n == 4 else None) for n in range(9)])
        await store.write([record(9)])
        assert await store.aggregates.models() == ("m0", "m1", "m2", "routed")
        page = await store.page(Query(models=("m0", "routed")), limit=9)
        assert [each.id for each in page.exchanges] == [exchange_id(n) for n in (6, 4, 3, 0)]
        assert await store.count(Query(models=("m0", "routed", "m1")), at_most=99) == 6
        assert (await store.page(Query(models=()), limit=9)).exchanges == ()
        assert await store.count(Query(models=("m0", "m1"), model="m1"), at_most=99) == 3

    @awaited
    async def test_skip(self, store: SqlStore) -> None:
        """A page may begin behind the newest ones, also among those of a model."""
        await store.write([record(n, model="a" if n % 2 else "b", routed_model="a") for n in range(10)])
        page = await store.page(Query(), limit=3, skip=4)
        assert ([each.id for each in page.exchanges], page.more) == ([exchange_id(n) for n in (5, 4, 3)], True)
        page = await store.page(Query(model="a"), limit=3, skip=8)
        assert ([each.id for each in page.exchanges], page.more) == ([exchange_id(n) for n in (1, 0)], False)

    @awaited
    async def test_sessions(self, store: SqlStore) -> None:
        """The session with the latest request comes first; pages go on behind the last of one."""
        await store.write(
            [
                record(1, session="a", prompt="p1", model="m", cost_nanousd=5, output_tokens=7, status=200),
                record(2, session="b", verdict="truncated", status=200),
                record(3, session="a", prompt="p2", agent="x", routed_model="n", output_tokens=1, status=200),
                record(4, session="a", prompt="p2", agent="x", verdict=None),
                record(5, session="a", status=500),
                record(6),
            ]
        )
        first, second = await store.aggregates.sessions(limit=9)
        assert (first.key, second.key) == ("a", "b")
        assert (first.prompts, first.agents, first.models) == (2, 1, ("m", "n"))
        assert (first.first_at, first.last_at) == (BEGIN + SECOND, BEGIN + 5 * SECOND)
        totals = first.totals
        assert (totals.requests, totals.errors, totals.in_flight, totals.unpriced) == (4, 1, 1, 1)
        assert (totals.cost_nanousd, totals.output_tokens) == (5, 8)
        assert second.totals.errors == 1
        assert [each.key for each in await store.aggregates.sessions(limit=1)] == ["a"]
        assert [each.key for each in await store.aggregates.sessions(limit=9, before=first.last)] == ["b"]
        assert [each.key for each in await store.aggregates.sessions(limit=9, since=BEGIN + 3 * SECOND)] == ["a"]
        assert [each.key for each in await store.aggregates.sessions(limit=9, until=BEGIN + 2 * SECOND)] == ["a"]
        assert await store.aggregates.session("a") == first

    @awaited
    async def test_members(self, store: SqlStore) -> None:
        """All of a session in the order of time, a page at a time."""
        await store.write([record(n, session="a", conversation="c" if n < 3 else "d") for n in range(5)])
        members = await store.aggregates.members("session", "a", limit=3)
        assert [each.id for _, each in members] == [exchange_id(n) for n in (0, 1, 2)]
        rest = await store.aggregates.members("session", "a", limit=3, after=members[-1][0])
        assert [each.id for _, each in rest] == [exchange_id(n) for n in (3, 4)]
        assert len(await store.aggregates.members("conversation", "c", limit=9)) == 3
        groups = await store.aggregates.conversations(limit=9, session="a")
        assert [(each.key, each.session, each.totals.requests) for each in groups] == [("d", "a", 2), ("c", "a", 3)]
        assert await store.aggregates.conversations(limit=9, session="b") == ()

    @awaited
    async def test_spans(self, store: SqlStore) -> None:
        """Sums for each span and key; what is outside of the range is in none."""
        await store.write(
            [
                record(n, model="m", routed_model="n" if n > 3 else None, input_tokens=n, cost_nanousd=10**12)
                for n in range(6)
            ]
        )
        since, until = BEGIN + SECOND, BEGIN + 5 * SECOND
        spans = await store.aggregates.spans(since=since, until=until, step=2 * SECOND, by="model")
        assert sorted((each.index, each.key, each.totals.requests, each.totals.input_tokens) for each in spans) == [
            (0, "m", 2, 3),
            (1, "m", 1, 3),
            (1, "n", 1, 4),
        ]
        (whole,) = await store.aggregates.spans(since=since, until=until, step=9 * SECOND, by=None)
        assert (whole.key, whole.totals.cost_nanousd, type(whole.totals.cost_nanousd)) == (None, 4 * 10**12, int)
        for by in ("session", "agent", "agent_type", "request_class"):
            (nobody,) = await store.aggregates.spans(since=since, until=until, step=9 * SECOND, by=by)
            assert nobody.key == ""

    @awaited
    async def test_paces(self, store: SqlStore) -> None:
        """How quick complete answers were, span by span; of those the newest, if there are too many."""
        quick: dict[str, Any] = {"status": 200, "first_event_us": 5, "last_byte_us": 9, "stream": True, "model": "m"}
        await store.write(
            [
                record(1, **quick, output_tokens=3),
                record(2, **{**quick, "stream": False, "routed_model": "n"}),
                record(3, **{**quick, "status": 500}),
                record(4, **{**quick, "verdict": "truncated"}),
                record(5, **{**quick, "first_event_us": None}),
                record(6, **{**quick, "demoted": True}),
                record(7, **{**quick, "first_event_us": 7}, output_tokens=1),
            ]
        )

        async def told(model: str | None, limit: int = 9) -> list[tuple[int, list[int], tuple[float, ...]]]:
            found = await store.aggregates.paces(
                since=BEGIN, until=BEGIN + 9 * SECOND, step=3 * SECOND, model=model, limit=limit
            )
            return [(each.index, sorted(each.first_event_us), each.speeds) for each in found]

        assert await told(None) == [(0, [5, 5], (750_000.0,)), (2, [7], (500_000.0,))]
        assert await told("n") == [(0, [5], ())]
        assert await told(None, limit=2) == [(0, [5], ()), (2, [7], (500_000.0,))]

    @awaited
    async def test_what_was_stored_before_usage_had_an_index(self, new_store: Callable[[], SqlStore]) -> None:
        """A database of the first version is brought up to date as it is opened, with all that is in it."""
        old = new_store()
        old._steps = old._steps[:1]
        await old.open()
        await old.write([record(n, model="m", cost_nanousd=n, status=200) for n in range(3)])
        await old.close()
        store = new_store()
        await store.open()
        (span,) = await store.aggregates.spans(since=BEGIN, until=BEGIN + 9 * SECOND, step=9 * SECOND, by="model")
        assert (span.key, span.totals.requests, span.totals.cost_nanousd) == ("m", 3, 3)
        assert await store.count(Query(status=200), at_most=9) == 3
        await store.close()

    @awaited
    async def test_limits(self, store: SqlStore) -> None:
        """The last word of each span and credential, in order."""
        await store.write(
            [
                record(n, credential="a" if n % 2 else "b", rate_limits={"anthropic-ratelimit-x": str(n)})
                for n in range(6)
            ]
        )
        await store.write([record(9, credential="a")])
        seen = await store.aggregates.limits(since=BEGIN, until=BEGIN + 10 * SECOND, step=4 * SECOND, limit=9)
        assert [(each.credential, each.limits["anthropic-ratelimit-x"]) for each in seen] == [
            ("b", "2"),
            ("a", "3"),
            ("b", "4"),
            ("a", "5"),
        ]

    @awaited
    async def test_cache_breaks(self, store: SqlStore) -> None:
        """A request is told of that reads much less than its parent left; pages go on behind it."""
        left: dict[str, Any] = {"cache_read_tokens": 1000, "cache_write_5m_tokens": 2000, "cache_write_1h_tokens": 500}
        await store.write(
            [
                record(1, **left),
                record(2, parent=exchange_id(1), cache_read_tokens=3500, cache_write_5m_tokens=4000),
                record(3, parent=exchange_id(2), cache_read_tokens=1000, cache_write_5m_tokens=9000),
                record(4, parent=exchange_id(2), cache_read_tokens=7000, input_tokens=2000),
                record(5, parent=exchange_id(2), cache_read_tokens=0, input_tokens=2000),
                record(6, parent=exchange_id(2)),
                # As short as this there is little to be missed: a summary, or a step back.
                record(7, parent=exchange_id(2), cache_read_tokens=3000, cache_write_5m_tokens=1000),
            ]
        )
        everything: dict[str, Any] = {"since": BEGIN, "until": BEGIN + 9 * SECOND}
        found = await store.aggregates.cache_breaks(**everything, limit=9)
        assert [(each.exchange.id, each.expected, each.missed) for each in found] == [
            (exchange_id(5), 7500, 2000),
            (exchange_id(3), 7500, 6500),
        ]
        assert (found[0].previous, found[0].previous_at) == (exchange_id(2), BEGIN + 2 * SECOND)
        rest = await store.aggregates.cache_breaks(**everything, limit=9, before=exchange_id(5))
        assert [each.exchange.id for each in rest] == [exchange_id(3)]
        assert await store.aggregates.cache_breaks(**everything, limit=9, before="nobody") == ()

    @awaited
    async def test_cache_break_without_parent(self, store: SqlStore) -> None:
        """
        Where an earlier message was changed, no request is known that this one follows: the latest of its kind is what
        left something for it.
        """
        alike: dict[str, Any] = {"session": "s", "model": "m", "cache_read_tokens": 0, "cache_write_5m_tokens": 9000}
        await store.write(
            [
                record(1, messages=1, **alike),
                record(
                    2, messages=3, parent=exchange_id(1), link=Link.CONTINUES, **alike | {"cache_read_tokens": 9000}
                ),
                # Of another kind, and nothing to compare with.
                record(3, messages=3, agent="a", **alike),
                record(4, messages=3, request_class="auxiliary", **alike),
                record(5, messages=3, **alike | {"model": "other"}),
                record(6, messages=3, **alike | {"session": "other"}),
                # One question is no conversation that was changed.
                record(7, messages=1, **alike),
                record(8, messages=5, parent=exchange_id(1), link=Link.FORKS, **alike),
                record(9, messages=5, **alike),
            ]
        )
        found = await store.aggregates.cache_breaks(since=BEGIN, until=BEGIN + 20 * SECOND, limit=9)
        assert [(each.exchange.id, each.previous, each.missed) for each in found] == [
            (exchange_id(9), exchange_id(8), 9000),
            (exchange_id(8), exchange_id(7), 9000),
        ]
        assert await store.aggregates.previous(exchange_id(2)) == exchange_id(1)
        assert await store.aggregates.previous(exchange_id(9)) == exchange_id(8)
        assert await store.aggregates.previous(exchange_id(7)) is None
        assert await store.aggregates.previous("nobody") is None


class TestSqlite(AggregatesContract):
    """In SQLite."""

    @pytest.fixture
    def new_store(self, tmp_path: Path) -> Callable[[], SqlStore]:
        return lambda: SqlStore(SqliteDriver(reactor, tmp_path / "records.db"))

    @awaited
    async def test_sums_are_made_of_an_index(self, store: SqlStore) -> None:
        """Rows, which are thirty times as large, are not read."""

        async def plan(transaction: Transaction) -> str:
            source, _ = store._dialect.source(search=False, index=None)
            rows = await transaction.execute(
                "EXPLAIN QUERY PLAN SELECT (received_at - 1) / 2 AS span, COALESCE(routed_model, model) AS grouped, "
                f"{_TOTALS} FROM {source} WHERE number >= 1 AND number < 2 GROUP BY span, grouped"
            )
            return str(rows.rows[0][3])

        assert "COVERING INDEX exchanges_filters" in await store._driver.read(plan)


class TestPostgres(AggregatesContract):
    """In PostgreSQL."""

    @pytest.fixture
    def new_store(self, database: Database) -> Callable[[], SqlStore]:
        return lambda: postgres_store(reactor, database.socket_url)
