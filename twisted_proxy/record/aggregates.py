"""What many exchanges come to: sessions, conversations, sums over time, what the prompt cache missed."""

# ruff: noqa: S608 - what is put into a statement is placeholders, and names of our own

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import attrs

from .bodies import chunks, marks
from .database import Driver, Transaction
from .exchange import Exchange, Role
from .rows import COLUMNS, first_number, from_row, is_id, number_of_id, storable

MOST_MODELS = 1000
"""Names of models that are looked at."""

CACHE_BREAK = 1024
"""Tokens that the cache must have missed for it to be told: it takes no prompts that are shorter."""

_ALL = ", ".join(f"exchanges.{name}" for name in COLUMNS)

_FAILED = (
    "CASE WHEN verdict IS NOT NULL AND (verdict <> 'complete' OR (status IS NOT NULL AND status >= 400)) "
    "THEN 1 ELSE 0 END"
)
_UNPRICED = "CASE WHEN cost_nanousd IS NULL AND output_tokens IS NOT NULL THEN 1 ELSE 0 END"

_SUMS = {
    "requests": "1",
    "errors": _FAILED,
    "in_flight": "CASE WHEN verdict IS NULL THEN 1 ELSE 0 END",
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_read_tokens": "cache_read_tokens",
    "cache_write_5m_tokens": "cache_write_5m_tokens",
    "cache_write_1h_tokens": "cache_write_1h_tokens",
    "cost_nanousd": "cost_nanousd",
    "partial": "cost_is_partial",
    "unpriced": _UNPRICED,
}
# The sum of such numbers is of another type in PostgreSQL.
_TOTALS = ", ".join(f"CAST(COALESCE(SUM({value}), 0) AS bigint)" for value in _SUMS.values())


def _left(table: str) -> str:
    """Tokens that are in the cache behind an exchange."""
    names = ("cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")
    return " + ".join([f"COALESCE({table}.{name}, 0)" for name in names])


_SAME = ("agent", "model", "routed_model", "request_class")
_PREVIOUS = (
    "CASE WHEN exchanges.messages > 2 AND (exchanges.link IS NULL OR exchanges.link = 'forks') THEN COALESCE("
    "(SELECT latest.id FROM exchanges AS latest WHERE latest.session = exchanges.session "
    "AND latest.number < exchanges.number AND latest.messages > 0 AND latest.cache_read_tokens IS NOT NULL "
    + " ".join([f"AND COALESCE(latest.{name}, '') = COALESCE(exchanges.{name}, '')" for name in _SAME])
    + " ORDER BY latest.number DESC LIMIT 1), exchanges.parent) ELSE exchanges.parent END"
)
"""The id of the exchange before one; as `Aggregates.previous` says."""


@attrs.frozen(kw_only=True)
class Totals:
    """Sums over exchanges; what is not known of one adds nothing."""

    requests: int = 0
    errors: int = 0
    """Status 400 and above, or any verdict but ``complete``."""
    in_flight: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cost_nanousd: int = 0
    partial: int = 0
    """How many cost more than is known."""
    unpriced: int = 0
    """How many told of tokens that have no known price."""

    def __add__(self, other: Totals) -> Totals:
        return Totals(**{name: getattr(self, name) + getattr(other, name) for name in _SUMS})


def _to_totals(row: Sequence[Any]) -> Totals:
    return Totals(**dict(zip(_SUMS, row, strict=True)))


@attrs.frozen(kw_only=True)
class Group:
    """
    The exchanges of a session, or of a conversation.

    :ivar key: its id. :ivar last: the number of the last of them, to go on behind.
    :ivar first_at: microseconds since the Unix epoch, when the first was received. :ivar last_at: the last.
    """

    key: str
    last: int
    first_at: int
    last_at: int
    totals: Totals
    prompts: int = 0
    agents: int = 0
    models: tuple[str, ...] = ()
    session: str | None = None
    agent: str | None = None


@attrs.frozen(kw_only=True)
class Span:
    """The exchanges of a key in one of the spans of time that a range is divided into."""

    index: int
    key: str | None
    totals: Totals


@attrs.frozen(kw_only=True)
class Paces:
    """
    How quick the answers of a span of time were, in no order.

    :ivar first_event_us: microseconds to the first byte, of each.
    :ivar speeds: output tokens a second from the first byte to the last, of those that were streams.
    """

    index: int
    first_event_us: tuple[int, ...]
    speeds: tuple[float, ...]


@attrs.frozen(kw_only=True)
class LimitsSeen:
    """What an answer said about rate limits."""

    received_at: int
    credential: str | None
    provider: str | None
    limits: Mapping[str, str]


@attrs.frozen(kw_only=True)
class StoredSize:
    """A body that is kept, without it."""

    role: Role
    size: int
    content_type: str | None
    content_encoding: str | None


@attrs.frozen(kw_only=True)
class CacheBreak:
    """
    An exchange that read less from the cache than the one before it had left there.

    :ivar previous: the id of the one before. :ivar previous_at: when that was received, in microseconds since the Unix
        epoch. :ivar expected: tokens that it read and wrote.
    """

    exchange: Exchange
    previous: str
    previous_at: int
    expected: int

    @property
    def missed(self) -> int:
        return missed(self.exchange, self.expected)


def missed(exchange: Exchange, expected: int) -> int:
    """
    Tokens of an exchange's prompt that are paid for anew, and need not be: it reads less than was left for it.

    :param expected: tokens that were left.
    """
    read = exchange.cache_read_tokens or 0
    written = (exchange.cache_write_5m_tokens or 0) + (exchange.cache_write_1h_tokens or 0)
    return max(0, min(expected, read + written + (exchange.input_tokens or 0)) - read)


GROUPED = ("model", "session", "agent", "agent_type", "request_class")
"""Columns that :meth:`Aggregates.spans` takes."""


class Aggregates:
    """
    Questions about many exchanges. Like those of a store, they never block, and raise `StoreError`.

    Ranges are microseconds since the Unix epoch, from ``since`` to before ``until``.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        # An index has all that sums are made of; the way by it is prescribed where all ways are.
        self._all, _ = driver.dialect.source(search=False, index=None)
        self._gather = driver.dialect.gather

    async def exchanges(self, ids: Sequence[str]) -> tuple[Exchange, ...]:
        """Those of these that there are, in no order."""

        async def read(transaction: Transaction) -> tuple[Exchange, ...]:
            found: list[Exchange] = []
            for some in chunks([storable(each) for each in ids]):
                rows = await transaction.execute(f"SELECT {_ALL} FROM exchanges WHERE id IN ({marks(some)})", *some)
                found += await transaction.compute(lambda rows=rows: [from_row(row) for row in rows])
            return tuple(found)

        return await self._driver.read(read)

    async def sizes(self, exchange_id: str) -> tuple[StoredSize, ...]:
        """The bodies of an exchange that are kept."""

        async def read(transaction: Transaction) -> tuple[StoredSize, ...]:
            rows = await transaction.execute(
                "SELECT role, size, content_type, content_encoding FROM bodies "
                "WHERE exchange = (SELECT number FROM exchanges WHERE id = ?)",
                storable(exchange_id),
            )
            found = [
                StoredSize(role=Role(role), size=size, content_type=kind, content_encoding=encoding)
                for role, size, kind, encoding in rows
            ]
            return tuple(sorted(found, key=lambda each: list(Role).index(each.role)))

        return await self._driver.read(read)

    async def models(self) -> tuple[str, ...]:
        """The models that were asked for or routed to, at most `MOST_MODELS`, in the order of their names."""

        async def read(transaction: Transaction) -> tuple[str, ...]:
            found: set[str] = set()
            for column in ("model", "routed_model"):
                # From one name to the next: a row for each name, not for each exchange.
                rows = await transaction.execute(
                    f"WITH RECURSIVE names (name) AS (SELECT MIN({column}) FROM exchanges WHERE {column} IS NOT NULL "
                    f"UNION ALL SELECT (SELECT MIN({column}) FROM exchanges WHERE {column} > names.name) "
                    "FROM names WHERE names.name IS NOT NULL) "
                    "SELECT name FROM names WHERE name IS NOT NULL LIMIT ?",
                    MOST_MODELS,
                )
                found.update(row[0] for row in rows)
            return tuple(sorted(found)[:MOST_MODELS])

        return await self._driver.read(read)

    # Sessions and conversations

    async def sessions(
        self, *, limit: int, before: int | None = None, since: int | None = None, until: int | None = None
    ) -> tuple[Group, ...]:
        """
        Sessions, the latest activity first.

        :param before: `Group.last` of the one behind which it goes on.
        """
        return await self._driver.read(
            partial(self._groups, column="session", limit=limit, before=before, since=since, until=until)
        )

    async def conversations(
        self, *, limit: int, before: int | None = None, session: str | None = None
    ) -> tuple[Group, ...]:
        """The same of conversations, of all sessions or of one."""
        return await self._driver.read(
            partial(self._groups, column="conversation", limit=limit, before=before, session=session)
        )

    async def session(self, session: str) -> Group | None:
        """All of a session."""

        async def read(transaction: Transaction) -> Group | None:
            found = await self._described(transaction, "session", [storable(session)])
            return found[0] if found else None

        return await self._driver.read(read)

    async def conversation(self, conversation: str) -> Group | None:
        """All of a conversation."""

        async def read(transaction: Transaction) -> Group | None:
            found = await self._described(transaction, "conversation", [storable(conversation)])
            return found[0] if found else None

        return await self._driver.read(read)

    async def members(
        self, column: str, key: str, *, limit: int, after: int | None = None
    ) -> tuple[tuple[int, Exchange], ...]:
        """
        Exchanges of a session or a conversation with their numbers, the oldest first.

        :param column: ``session`` or ``conversation``. :param after: the number behind which it goes on.
        """
        assert column in ("session", "conversation")

        async def read(transaction: Transaction) -> tuple[tuple[int, Exchange], ...]:
            rows = await transaction.execute(
                f"SELECT number, {_ALL} FROM exchanges WHERE {column} = ? AND number > ? ORDER BY number LIMIT ?",
                storable(key),
                -1 if after is None else after,
                limit,
            )
            return await transaction.compute(lambda: tuple((row[0], from_row(row[1:])) for row in rows))

        return await self._driver.read(read)

    async def _groups(
        self,
        transaction: Transaction,
        column: str,
        limit: int,
        before: int | None,
        since: int | None = None,
        until: int | None = None,
        session: str | None = None,
    ) -> tuple[Group, ...]:
        conditions = [f"{column} IS NOT NULL"]
        parameters: list[object] = []
        if until is not None:
            conditions.append("number < ?")
            parameters.append(first_number(until))
        if session is not None:
            conditions.append("session = ?")
            parameters.append(storable(session))
        having: list[str] = []
        for bound, how in ((before, "<"), (None if since is None else first_number(since), ">=")):
            if bound is not None:
                having.append(f"MAX(number) {how} ?")
                parameters.append(bound)
        # An index has all that this needs; the rows are read of the few groups that are wanted.
        rows = await transaction.execute(
            f"SELECT {column} FROM exchanges WHERE {' AND '.join(conditions)} GROUP BY {column}"
            f"{' HAVING ' + ' AND '.join(having) if having else ''} ORDER BY MAX(number) DESC LIMIT ?",
            *parameters,
            limit,
        )
        return await self._described(transaction, column, [row[0] for row in rows])

    async def _described(self, transaction: Transaction, column: str, keys: Sequence[str]) -> tuple[Group, ...]:
        found: dict[str, Group] = {}
        for some in chunks(keys):
            rows = await transaction.execute(
                f"SELECT {column}, MAX(number), MIN(received_at), MAX(received_at), COUNT(DISTINCT prompt), "
                f"COUNT(DISTINCT agent), MIN(session), MIN(agent), {_TOTALS} FROM exchanges "
                f"WHERE {column} IN ({marks(some)}) GROUP BY {column}",
                *some,
            )
            for key, last, first_at, last_at, prompts, agents, session, agent, *totals in rows:
                found[key] = Group(
                    key=key,
                    last=last,
                    first_at=first_at,
                    last_at=last_at,
                    prompts=prompts,
                    agents=agents,
                    session=session,
                    agent=agent,
                    totals=_to_totals(totals),
                )
            models: dict[str, list[str]] = {}
            for key, model in await transaction.execute(
                f"SELECT {column}, COALESCE(routed_model, model) FROM exchanges "
                f"WHERE {column} IN ({marks(some)}) GROUP BY 1, 2 ORDER BY MIN(number)",
                *some,
            ):
                if model is not None:
                    models.setdefault(key, []).append(model)
            for key, names in models.items():
                found[key] = attrs.evolve(found[key], models=tuple(names[:10]))
        return tuple(found[key] for key in keys if key in found)

    # Over time

    async def spans(self, *, since: int, until: int, step: int, by: str | None) -> tuple[Span, ...]:
        """
        Sums for each span of ``step`` microseconds, and for each value of a column (`GROUPED`). Empty spans are left
        out.

        An exchange without a value has the key ``""``; without ``by`` the key of all is ``None``. A model is the one
        that was asked upstream.
        """
        assert by is None or by in GROUPED
        key = "COALESCE(routed_model, model, '')" if by == "model" else f"COALESCE({by}, '')"

        async def read(transaction: Transaction) -> tuple[Span, ...]:
            rows = await transaction.execute(
                f"SELECT (received_at - ?) / ? AS span{'' if by is None else f', {key} AS grouped'}, {_TOTALS} "
                f"FROM {self._all} WHERE number >= ? AND number < ? AND received_at >= ? AND received_at < ? "
                f"GROUP BY span{'' if by is None else ', grouped'}",
                since,
                step,
                first_number(since),
                first_number(until + 999),
                since,
                until,
            )
            if by is None:
                return tuple(Span(index=row[0], key=None, totals=_to_totals(row[1:])) for row in rows)
            return tuple(Span(index=row[0], key=row[1], totals=_to_totals(row[2:])) for row in rows)

        return await self._driver.read(read)

    async def paces(self, *, since: int, until: int, step: int, model: str | None, limit: int) -> tuple[Paces, ...]:
        """
        How quick complete answers were in each span of ``step`` microseconds, in order. Empty spans are left out.

        :param limit: answers that are looked at, the newest.
        """
        gather = self._gather

        async def read(transaction: Transaction) -> tuple[Paces, ...]:
            # A row for each span: so many rows would keep the reactor's thread waiting while they become Python's.
            rows = await transaction.execute(
                f"SELECT span, CAST({gather}(first) AS text), CAST({gather}(speed) AS text) FROM ("
                "SELECT (received_at - ?) / ? AS span, first_event_us AS first, "
                "CASE WHEN stream = 1 AND output_tokens > 0 AND last_byte_us > first_event_us "
                "THEN output_tokens * 1000000.0 / (last_byte_us - first_event_us) END AS speed "
                f"FROM {self._all} WHERE number >= ? AND number < ? AND received_at >= ? AND received_at < ? "
                "AND verdict = 'complete' AND first_event_us IS NOT NULL AND last_byte_us IS NOT NULL AND status < 400 "
                f"AND demoted = 0 {'' if model is None else 'AND COALESCE(routed_model, model) = ? '}"
                "ORDER BY number DESC LIMIT ?) AS told GROUP BY span ORDER BY span",
                since,
                step,
                first_number(since),
                first_number(until + 999),
                since,
                until,
                *(() if model is None else (storable(model),)),
                limit,
            )
            return await transaction.compute(
                lambda: tuple(
                    Paces(
                        index=index,
                        first_event_us=tuple(json.loads(firsts)),
                        speeds=tuple([speed for speed in json.loads(speeds) if speed is not None]),
                    )
                    for index, firsts, speeds in rows
                )
            )

        return await self._driver.read(read)

    async def limits(self, *, since: int, until: int, step: int, limit: int) -> tuple[LimitsSeen, ...]:
        """What was said last about rate limits in each span of ``step`` microseconds, to each credential; in order."""

        async def read(transaction: Transaction) -> tuple[LimitsSeen, ...]:
            rows = await transaction.execute(
                "SELECT received_at, credential, provider, rate_limits FROM exchanges WHERE number IN ("
                "SELECT MAX(number) FROM exchanges WHERE number >= ? AND number < ? AND received_at >= ? "
                "AND received_at < ? AND rate_limits IS NOT NULL GROUP BY (received_at - ?) / ?, credential, provider) "
                "ORDER BY number DESC LIMIT ?",
                first_number(since),
                first_number(until + 999),
                since,
                until,
                since,
                step,
                limit,
            )
            return tuple(
                LimitsSeen(received_at=at, credential=credential, provider=provider, limits=json.loads(limits))
                for at, credential, provider, limits in reversed(rows.rows)
            )

        return await self._driver.read(read)

    # The prompt cache

    async def cache_breaks(
        self, *, since: int, until: int, limit: int, before: str | None = None
    ) -> tuple[CacheBreak, ...]:
        """Exchanges that missed `CACHE_BREAK` tokens or more of what the one before left; the newest first."""
        upper = first_number(until + 999)
        if before is not None:
            if not is_id(before):
                return ()
            upper = min(upper, number_of_id(before))
        left, read = _left("earlier"), "exchanges.cache_read_tokens"
        prompt = f"{_left('exchanges')} + COALESCE(exchanges.input_tokens, 0)"

        async def select(transaction: Transaction) -> tuple[CacheBreak, ...]:
            rows = await transaction.execute(
                f"SELECT earlier.id, earlier.received_at, {left}, {_ALL} FROM exchanges "
                f"JOIN exchanges AS earlier ON earlier.id = {_PREVIOUS} "
                "WHERE exchanges.number >= ? AND exchanges.number < ? "
                "AND exchanges.received_at >= ? AND exchanges.received_at < ? "
                f"AND {read} IS NOT NULL AND {left} - {read} >= ? AND {prompt} - {read} >= ? "
                "ORDER BY exchanges.number DESC LIMIT ?",
                first_number(since),
                upper,
                since,
                until,
                CACHE_BREAK,
                CACHE_BREAK,
                limit,
            )
            return await transaction.compute(
                lambda: tuple(
                    CacheBreak(exchange=from_row(row[3:]), previous=row[0], previous_at=row[1], expected=row[2])
                    for row in rows
                )
            )

        return await self._driver.read(select)

    async def previous(self, exchange_id: str) -> str | None:
        """
        The id of the exchange that had left in the cache what this one could read; ``None``: there was none.

        It is the one that this one follows. One that follows none, or forks, but tells of several turns, has had a
        message changed: it is compared with the latest of the same session, agent, model and class.
        """

        async def select(transaction: Transaction) -> str | None:
            row = (
                await transaction.execute(
                    f"SELECT {_PREVIOUS} FROM exchanges WHERE exchanges.id = ?", storable(exchange_id)
                )
            ).first
            return None if row is None else row[0]

        return await self._driver.read(select)
