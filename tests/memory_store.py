"""A `RecordStore` in memory, which fails when it is told to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from twisted_proxy.record.exchange import INTERRUPTED, Exchange, Instance, Record, Role, StoredBody, Turn
from twisted_proxy.record.store import Page, Query, Retention


class MemoryStore:
    """
    Keeps records in a dict.

    :ivar problem: raised by every method while it is set.
    :ivar refuse: called with each record that is to be written; what it raises is raised, and nothing is written.
    :ivar asked: the names of the methods that were called, in order.
    :ivar batches: the ids of each :meth:`write`, in order.
    """

    def __init__(self) -> None:
        self.exchanges: dict[str, Exchange] = {}
        self.bodies: dict[tuple[str, Role], StoredBody] = {}
        self.texts: dict[str, str | None] = {}
        self.instances: dict[str, int] = {}
        self.problem: Exception | None = None
        self.refuse: Callable[[Record], None] = lambda record: None
        self.asked: list[str] = []
        self.batches: list[list[str]] = []
        self.is_open = False
        self._watching: list[Callable[[Sequence[str]], None]] = []

    def _ask(self, name: str) -> None:
        self.asked.append(name)
        if self.problem is not None:
            raise self.problem

    async def open(self) -> None:
        self._ask("open")
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False

    async def write(self, records: Sequence[Record]) -> None:
        self._ask("write")
        for record in records:
            self.refuse(record)
        # What is wrong with a body shows before anything is kept.
        bodies = {
            (record.exchange.id, body.role): StoredBody(
                role=body.role,
                data=body.content.read(),
                content_type=body.content_type,
                content_encoding=body.content_encoding,
                marks=body.marks,
            )
            for record in records
            for body in record.bodies
        }
        self.batches.append([record.exchange.id for record in records])
        for record in records:
            new, old = record.exchange, self.exchanges.get(record.exchange.id)
            if old is None or old.verdict is None or (old.verdict == INTERRUPTED and new.verdict is not None):
                self.exchanges[new.id] = new
                self.texts[new.id] = record.text
                self.bodies |= {key: body for key, body in bodies.items() if key[0] == new.id}
        for notice in self._watching:
            notice([record.exchange.id for record in records])

    async def alive(self, instance: Instance, now: int) -> None:
        self._ask("alive")
        self.instances[instance.id] = now

    async def interrupt(self, instances: Sequence[str] | None, now: int, silent_for: float) -> int:
        self._ask("interrupt")
        count = 0
        for exchange in list(self.exchanges.values()):
            if instances is None:
                meant = self.instances.get(exchange.instance, 0) < now - silent_for * 1e6
            else:
                meant = exchange.instance in instances
            if meant and exchange.verdict is None:
                self.exchanges[exchange.id] = attrs.evolve(exchange, verdict=INTERRUPTED)
                count += 1
        return count

    def _meant(self, query: Query) -> list[Exchange]:
        wanted: dict[str, Any] = attrs.asdict(query, filter=lambda _, value: value is not None)
        in_flight = wanted.pop("in_flight", None)
        return [
            exchange
            for _, exchange in sorted(self.exchanges.items(), reverse=True)
            if all(getattr(exchange, name) == value for name, value in wanted.items())
            and in_flight in (None, exchange.verdict is None)
        ]

    async def page(self, query: Query, *, limit: int, before: str | None = None, skip: int = 0) -> Page:
        self._ask("page")
        found = [exchange for exchange in self._meant(query) if before is None or exchange.id < before][skip:]
        return Page(exchanges=tuple(found[:limit]), more=len(found) > limit)

    async def count(self, query: Query, *, at_most: int) -> int:
        self._ask("count")
        return min(len(self._meant(query)), at_most)

    async def get(self, exchange_id: str) -> Exchange | None:
        self._ask("get")
        return self.exchanges.get(exchange_id)

    async def body(self, exchange_id: str, role: Role) -> StoredBody | None:
        self._ask("body")
        return self.bodies.get((exchange_id, role))

    async def snippet(self, exchange_id: str, text: str, *, around: int = 80) -> str | None:
        self._ask("snippet")
        kept = self.texts.get(exchange_id) or ""
        at = kept.find(text)
        return None if at < 0 else kept[max(0, at - around) : at + len(text) + around]

    async def conversation(self, conversation: str) -> tuple[Exchange, ...]:
        self._ask("conversation")
        return tuple(each for _, each in sorted(self.exchanges.items()) if each.conversation == conversation)

    def _turns(self, *, newest_first: bool) -> list[Turn]:
        return [
            Turn(
                id=each.id,
                conversation=each.conversation or each.id,
                session=each.session,
                agent=each.agent,
                chain=each.chain,
                messages=each.messages,
                message_id=each.message_id,
                parent=each.parent,
            )
            for _, each in sorted(self.exchanges.items(), reverse=newest_first)
        ]

    async def turns_at(self, chains: Sequence[bytes]) -> tuple[Turn, ...]:
        self._ask("turns_at")
        return tuple(turn for turn in self._turns(newest_first=True) if turn.chain in chains)[:100]

    async def turn_of_message(self, message_id: str) -> Turn | None:
        self._ask("turn_of_message")
        return next((turn for turn in self._turns(newest_first=True) if turn.message_id == message_id), None)

    async def latest_turn(self, session: str, agent: str | None, before: str) -> Turn | None:
        self._ask("latest_turn")
        found = [
            turn
            for turn in self._turns(newest_first=True)
            if (turn.session, turn.agent) == (session, agent) and turn.id < before and turn.messages
        ]
        return found[0] if found else None

    async def followers(self, exchange_id: str) -> tuple[Turn, ...]:
        self._ask("followers")
        return tuple(turn for turn in self._turns(newest_first=False) if turn.parent == exchange_id)

    async def stored_bytes(self) -> Mapping[str, int]:
        self._ask("stored_bytes")
        size = sum(len(body.data) for body in self.bodies.values())
        return {"bodies": size, "total": size}

    async def delete(self, exchange_ids: Sequence[str]) -> int:
        self._ask("delete")
        there = [each for each in exchange_ids if self.exchanges.pop(each, None) is not None]
        self.bodies = {key: body for key, body in self.bodies.items() if key[0] not in there}
        return len(there)

    async def delete_all(self) -> int:
        return await self.delete([each.id for each in self.exchanges.values() if each.verdict is not None])

    async def expire(self, retention: Retention, now: int, *, limit: int = 100) -> int:
        self._ask("expire")
        seconds = retention.metadata.seconds
        if seconds is None:
            return 0
        return await self.delete(
            [
                each.id
                for _, each in sorted(self.exchanges.items())
                if each.verdict is not None and each.received_at < now - seconds * 1e6
            ][:limit]
        )

    def watch(self, notice: Callable[[Sequence[str]], None]) -> Callable[[], None]:
        self._watching.append(notice)
        return lambda: self._watching.remove(notice)
