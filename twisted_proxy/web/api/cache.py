"""What the prompt cache gave and took; where a prefix broke, and what that cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ...record import coding
from ...record.aggregates import CacheBreak, missed
from ...record.exchange import Exchange, Role, StoredBody
from ...record.pricing import Prices
from ...record.sql import SqlStore
from ...record.usage import Charge
from . import shapes
from .app import Route
from .calls import Call, Reply, answer_json, fit, show_time, valid_id
from .divergence import Divergence, diverge
from .records import Records
from .requests import not_found

DAY = 24 * 3600 * 1_000_000


class Cache:
    """
    ``/api/cache-breaks`` and ``/api/requests/{id}/cache``.

    :param prices: of tokens.
    :param now: microseconds since the Unix epoch.
    """

    def __init__(self, records: Records, prices: Callable[[], Prices], now: Callable[[], int]) -> None:
        self._records = records
        self._prices = prices
        self._now = now

    def routes(self) -> Sequence[Route]:
        one = "/api/requests/<exchange_id>/cache"
        return (
            Route(method="GET", rule="/api/cache-breaks", name="listCacheBreaks", handler=self.breaks),
            Route(method="GET", rule=one, name="explainCache", handler=self.explain),
        )

    async def breaks(self, call: Call) -> Reply:
        limit = call.limit()
        cursor = call.cursor()
        if cursor is not None:
            valid_id(cursor)
        until = call.time("until")
        until = self._now() + DAY if until is None else until
        since = call.time("since")
        since = min(until, self._now()) - 7 * DAY if since is None else since
        found = await self._records.ask(
            lambda store: store.aggregates.cache_breaks(since=since, until=until, limit=limit + 1, before=cursor)
        )
        items, more = fit(found, self._break, most=limit)
        following = items[-1]["request"]["requestId"] if more else None
        return answer_json({"breaks": items, "nextCursor": following})

    def _break(self, found: CacheBreak) -> dict[str, Any]:
        return {
            "request": shapes.summary(found.exchange),
            "previous": found.previous,
            "secondsBetween": (found.exchange.received_at - found.previous_at) // 1_000_000,
            "expectedTokens": found.expected,
            "missedTokens": found.missed,
            "extraCostNanousd": self._extra(found.exchange, found.missed),
        }

    async def explain(self, call: Call, exchange_id: str) -> Reply:
        valid_id(exchange_id)

        async def read(store: SqlStore) -> Reply:
            exchange = await store.get(exchange_id)
            if exchange is None:
                raise not_found(exchange_id)
            before = await store.aggregates.previous(exchange_id)
            previous = None if before is None else await store.get(before)
            divergence = None
            if previous is not None:
                if _model(previous) != _model(exchange):
                    divergence = Divergence(kind="model")
                else:
                    one, other = await _sent(store, previous.id), await _sent(store, exchange.id)
                    if one is not None and other is not None:
                        divergence = await store.compute(_compare, one, other)
            answer = await store.body(exchange_id, Role.MESSAGE) or await store.body(exchange_id, Role.ANSWER)
            reason = None if answer is None else await store.compute(_miss_reason, answer)
            expected = None if previous is None else _left_by(previous)
            lost = None
            if expected is not None and exchange.cache_read_tokens is not None:
                lost = missed(exchange, expected)
            return answer_json(
                {
                    "requestId": exchange.id,
                    "usage": shapes.usage(exchange),
                    "previous": None
                    if previous is None
                    else {
                        "requestId": previous.id,
                        "timestamp": show_time(previous.received_at),
                        "usage": shapes.usage(previous),
                    },
                    "link": None if exchange.link is None else exchange.link.value,
                    "expectedTokens": expected,
                    "missedTokens": lost,
                    "extraCostNanousd": self._extra(exchange, lost) if lost else lost,
                    "missReason": reason,
                    "divergence": None if divergence is None else _shape(divergence),
                }
            )

        return await self._records.ask(read)

    def _extra(self, exchange: Exchange, tokens: int) -> int | None:
        """What tokens that were written anew, or read as plain input, cost more than if they had been in the cache."""
        long, short = exchange.cache_write_1h_tokens or 0, exchange.cache_write_5m_tokens or 0
        in_long = min(tokens, long)
        in_short = min(tokens - in_long, short)
        model = _model(exchange)
        paid = Charge(
            model=model,
            cache_write_1h_tokens=in_long,
            cache_write_5m_tokens=in_short,
            input_tokens=tokens - in_long - in_short,
        )
        prices = self._prices()
        dear = prices.cost([paid], exchange.received_at)
        cheap = prices.cost([Charge(model=model, cache_read_tokens=tokens)], exchange.received_at)
        return None if dear is None or cheap is None else dear.nanousd - cheap.nanousd


def _model(exchange: Exchange) -> str | None:
    return exchange.routed_model or exchange.model


def _left_by(exchange: Exchange) -> int | None:
    """Tokens that are in the cache behind an exchange."""
    if exchange.cache_read_tokens is None:
        return None
    return exchange.cache_read_tokens + (exchange.cache_write_5m_tokens or 0) + (exchange.cache_write_1h_tokens or 0)


async def _sent(store: SqlStore, exchange_id: str) -> StoredBody | None:
    """What the upstream was sent."""
    return await store.body(exchange_id, Role.FORWARDED) or await store.body(exchange_id, Role.REQUEST)


def _compare(one: StoredBody, other: StoredBody) -> Divergence | None:
    return diverge(
        coding.decode(one.data, one.content_encoding).data, coding.decode(other.data, other.content_encoding).data
    )


def _miss_reason(answer: StoredBody) -> Any:
    data = coding.decode(answer.data, answer.content_encoding).data
    if b"cache_miss_reason" not in data:
        return None
    try:
        message = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    for place in (message, *(message.get(name) for name in ("diagnostics", "usage") if isinstance(message, dict))):
        if isinstance(place, dict) and "cache_miss_reason" in place:
            return place["cache_miss_reason"]
    return None


def _shape(divergence: Divergence) -> dict[str, Any]:
    return {
        "kind": divergence.kind,
        "path": divergence.path,
        "role": divergence.role,
        "byte": divergence.byte,
        "commonBytes": divergence.common_bytes,
        "before": divergence.before,
        "after": divergence.after,
        "parameters": list(divergence.parameters),
    }
