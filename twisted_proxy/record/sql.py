"""Records in a SQL database: the whole contract of a store, over a `Driver`."""

# ruff: noqa: S608 - what is put into a statement is placeholders, and names of our own

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import attrs

from . import blobs, words
from .aggregates import Aggregates
from .bodies import Bodies, Split, Tally, chunks, compress_unknown, find, insert, known_parts, marks, split
from .database import Dialect, Driver, Phrases, Rows, Transaction, Words
from .exchange import INTERRUPTED, Exchange, Instance, Record, Role, StoredBody, Turn
from .filters import Filter, Way, choose, filters_of
from .migrations import check, migrate, migrations, version_of
from .rows import (
    COLUMNS,
    TURN_COLUMNS,
    first_number,
    from_row,
    is_id,
    next_number,
    number_of,
    number_of_id,
    storable,
    to_row,
    to_turn,
)
from .store import Keep, Page, Query, Retention, StoreError, StoreUnavailable

__all__ = ["Dialect", "Driver", "Phrases", "Rows", "SqlStore", "Transaction", "Words"]

T = TypeVar("T")

MOST_TEXT = 8 * 1024 * 1024
"""Characters that are kept of a text; the rest of a longer one is not found."""

DELETED_AT_ONCE = 100
"""Exchanges, in one transaction."""

DELETED_BETWEEN_LOOKS = 8
"""Exchanges that go before it is looked again how much there still is: so many go too many, at most."""

FORGOTTEN_AFTER = 30 * 24 * 3600
"""Seconds after which an instance that is gone is not listed any more."""

_ALL = ", ".join(COLUMNS)
_TURN = ", ".join(TURN_COLUMNS)
_WRITTEN = ("number", "revision", "holds", "weight", *COLUMNS)
_REPLACED = ", ".join(f"{name} = excluded.{name}" for name in _WRITTEN if name not in ("number", "id"))


@attrs.define
class _Ready:
    """A record that is ready to be written."""

    exchange: Exchange
    row: list[object]
    weight: int
    bodies: list[Split]
    text: bytes | None
    words: list[str]


@attrs.frozen
class _There:
    """What is stored of an exchange, as far as a writer needs it."""

    number: int
    verdict: str | None
    weight: int


class SqlStore:
    """
    A `RecordStore` over one database.

    :param driver: the way to it; the store opens and closes it.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._dialect = driver.dialect
        self._steps = migrations(driver.dialect.name)

    async def open(self) -> None:
        await self._driver.open(partial(migrate, steps=self._steps, label=self._driver.label))

    async def open_to_read(self) -> None:
        """
        Instead of :meth:`open`, for who only reads: nothing is made, and nothing is brought up to date.

        :raises StoreError: there is no store, or it is one of another version.
        """
        version = await self._driver.read(version_of)
        check(version, self._steps, self._driver.label)
        if version < len(self._steps):
            raise StoreError(
                f"{self._driver.label} has schema version {version}, and this program reads {len(self._steps)}: start "
                "claude-proxy with it once, which brings it up to date"
            )

    async def close(self) -> None:
        await self._driver.close()

    # Writing

    async def write(self, records: Sequence[Record]) -> None:
        try:
            ready = await self._driver.compute(_prepare, records)
            compressed = await self._compressed([body for each in ready for body in each.bodies])
            await self._transact(partial(self._write, ready=ready, compressed=compressed))
        except blobs.Damaged as e:
            raise StoreError(f"A body cannot be stored: {e}") from e

    async def _compressed(self, bodies: Sequence[Split]) -> Mapping[bytes, bytes]:
        """Compress before the transaction what seems not to be there, so that it is short."""
        if not bodies:
            return {}
        try:
            known = await self._driver.read(partial(known_parts, bodies=bodies))
        except StoreUnavailable:
            return {}  # the transaction finds out what there is to say about it
        return await self._driver.compute(compress_unknown, bodies, known)

    async def _write(
        self, transaction: Transaction, ready: Sequence[_Ready], compressed: Mapping[bytes, bytes]
    ) -> None:
        there: dict[str, _There] = {}
        for some in chunks([each.exchange.id for each in ready]):
            for exchange_id, *found in await transaction.execute(
                f"SELECT id, number, verdict, weight FROM exchanges WHERE id IN ({marks(some)}) "
                f"ORDER BY number{self._dialect.for_update}",
                *some,
            ):
                there[exchange_id] = _There(*found)
        taken = [
            each
            for each in ready
            if each.exchange.id not in there or _replaces(each.exchange.verdict, there[each.exchange.id].verdict)
        ]
        if not taken:
            return
        numbers = await self._numbers(transaction, taken, {each_id: found.number for each_id, found in there.items()})
        tally = Tally(others=sum(each.weight for each in taken))
        replaced = []
        for each in taken:
            if each.exchange.id in there:
                replaced.append(there[each.exchange.id].number)
                tally.others -= there[each.exchange.id].weight
        bodies = Bodies(transaction, self._dialect.for_update, tally)
        recipes = await bodies.take_recipes(replaced)
        await self._remove_texts(transaction, replaced, tally)
        await bodies.write([(numbers[each.exchange.id], body) for each in taken for body in each.bodies], compressed)
        await bodies.release(recipes)
        await self._write_texts(transaction, taken, numbers, tally)
        revision = await self._add_up(transaction, tally)
        for existing, then in ((False, ""), (True, f"ON CONFLICT (number) DO UPDATE SET {_REPLACED}")):
            rows = [
                (
                    numbers[each.exchange.id],
                    revision,
                    int(bool(each.bodies or each.text is not None)),
                    each.weight,
                    *each.row,
                )
                for each in taken
                if (each.exchange.id in there) is existing
            ]
            await insert(transaction, f"exchanges ({', '.join(_WRITTEN)})", rows, then, size=lambda row: row[3])
        await self._dialect.announce(transaction, [each.exchange.id for each in taken])

    async def _numbers(
        self, transaction: Transaction, ready: Sequence[_Ready], there: Mapping[str, int]
    ) -> dict[str, int]:
        """The number of each exchange: the one that it has, or one that is free."""
        numbers = {each.exchange.id: there[each.exchange.id] for each in ready if each.exchange.id in there}
        wanted = {each.exchange.id: number_of(each.exchange) for each in ready if each.exchange.id not in there}
        while wanted:
            used = set(numbers.values())
            for some in chunks(sorted(wanted.values())):
                used.update(
                    row[0]
                    for row in await transaction.execute(
                        f"SELECT number FROM exchanges WHERE number IN ({marks(some)})", *some
                    )
                )
            for exchange_id, number in list(wanted.items()):
                if number in used:
                    wanted[exchange_id] = next_number(number)
                else:
                    numbers[exchange_id] = number
                    used.add(number)
                    del wanted[exchange_id]
        return numbers

    async def _write_texts(
        self, transaction: Transaction, ready: Sequence[_Ready], numbers: Mapping[str, int], tally: Tally
    ) -> None:
        rows = []
        documents = []
        for each in ready:
            if each.text is not None:
                # The index takes about as much as what it indexes.
                weight = len(each.text) + sum(len(word) + 1 for word in each.words)
                rows.append((numbers[each.exchange.id], weight, each.text))
                documents.append(Words(numbers[each.exchange.id], each.words))
                tally.others += weight
        if rows:
            await insert(transaction, "texts (exchange, weight, data)", rows)
            await self._dialect.index(transaction, documents)

    async def _remove_texts(self, transaction: Transaction, numbers: Sequence[int], tally: Tally) -> None:
        for some in chunks(numbers):
            removed = await transaction.execute(
                f"DELETE FROM texts WHERE exchange IN ({marks(some)}) RETURNING exchange, weight, data", *some
            )
            if removed:
                tally.others -= sum(row[1] for row in removed)
                await self._dialect.unindex(transaction, await transaction.compute(_documents, removed))

    async def _add_up(self, transaction: Transaction, tally: Tally) -> int:
        """Bring the totals up to date. Returns the number of this revision."""
        row = (
            await transaction.execute(
                "UPDATE totals SET revision = revision + 1, bodies = bodies + ?, others = others + ? "
                "RETURNING revision",
                tally.bodies,
                tally.others,
            )
        ).first
        tally.bodies = tally.others = 0
        assert row is not None  # the first migration made it
        revision: int = row[0]
        return revision

    async def alive(self, instance: Instance, now: int) -> None:
        await self._transact(
            lambda transaction: transaction.execute(
                "INSERT INTO instances (id, host, pid, started_at, alive_at) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET alive_at = excluded.alive_at",
                storable(instance.id),
                storable(instance.host),
                instance.pid,
                instance.started_at,
                now,
            )
        )

    async def interrupt(self, instances: Sequence[str] | None, now: int, silent_for: float) -> int:
        return await self._transact(
            partial(self._interrupt, instances=instances, now=now, silent_for=int(silent_for * 1e6))
        )

    async def _interrupt(
        self, transaction: Transaction, instances: Sequence[str] | None, now: int, silent_for: int
    ) -> int:
        revision = await self._add_up(transaction, Tally())
        update = "UPDATE exchanges SET verdict = ?, revision = ? WHERE verdict IS NULL AND instance"
        interrupted: list[str] = []
        if instances is None:
            interrupted += [
                row[0]
                for row in await transaction.execute(
                    f"{update} NOT IN (SELECT id FROM instances WHERE alive_at > ?) RETURNING id",
                    INTERRUPTED,
                    revision,
                    now - silent_for,
                )
            ]
            await transaction.execute(
                "DELETE FROM instances WHERE alive_at < ?", now - silent_for - FORGOTTEN_AFTER * 1_000_000
            )
        else:
            for some in chunks([storable(instance) for instance in instances]):
                interrupted += [
                    row[0]
                    for row in await transaction.execute(
                        f"{update} IN ({marks(some)}) RETURNING id", INTERRUPTED, revision, *some
                    )
                ]
        if interrupted:
            await self._dialect.announce(transaction, interrupted)
        return len(interrupted)

    # Reading

    @property
    def aggregates(self) -> Aggregates:
        return Aggregates(self._driver)

    async def compute(self, function: Callable[..., T], *arguments: object) -> T:
        """Run what takes time in a thread of the store's."""
        return await self._driver.compute(function, *arguments)

    async def page(self, query: Query, *, limit: int, before: str | None = None, skip: int = 0) -> Page:
        ways = self._ways(query)
        if not ways or (before is not None and not is_id(before)):
            return Page(exchanges=(), more=False)
        return await self._driver.read(partial(self._page, ways=ways, limit=limit, before=before, skip=skip))

    async def _page(
        self, transaction: Transaction, ways: Sequence[Way], limit: int, before: str | None, skip: int
    ) -> Page:
        bounds: list[Filter] = []
        if before is not None:
            number = await self._number(transaction, before)
            bounds.append(Filter("{number} < ?", (number_of_id(before) if number is None else number,)))
        numbers: set[int] = set()
        for way in ways:
            chosen = await choose(transaction, self._dialect, way.narrowed(bounds))
            numbers.update(
                row[0]
                for row in await transaction.execute(
                    f"SELECT {chosen.number} FROM {chosen.source} WHERE {chosen.condition} "
                    f"ORDER BY {chosen.number} DESC LIMIT ?",
                    *chosen.parameters,
                    skip + limit + 1,
                )
            )
        newest = sorted(numbers, reverse=True)[skip:]
        rows: dict[int, Exchange] = {}
        for some in chunks(newest[:limit]):
            found = await transaction.execute(
                f"SELECT number, {_ALL} FROM exchanges WHERE number IN ({marks(some)})", *some
            )
            rows.update(await transaction.compute(lambda found=found: {row[0]: from_row(row[1:]) for row in found}))
        return Page(exchanges=tuple(rows[number] for number in newest[:limit]), more=len(newest) > limit)

    async def count(self, query: Query, *, at_most: int) -> int:
        ways = self._ways(query)
        return await self._driver.read(partial(self._count, ways=ways, at_most=at_most))

    async def _count(self, transaction: Transaction, ways: Sequence[Way], at_most: int) -> int:
        found = 0
        for way in ways:
            chosen = await choose(transaction, self._dialect, way)
            row = (
                await transaction.execute(
                    f"SELECT count(*) FROM (SELECT {chosen.number} FROM {chosen.source} WHERE {chosen.condition} "
                    "LIMIT ?) AS found",
                    *chosen.parameters,
                    at_most,
                )
            ).first
            found += 0 if row is None else row[0]
        return min(found, at_most)

    def _ways(self, query: Query) -> Sequence[Way]:
        """What is to be looked for; what is found in several is meant once. Nothing can be found in none."""
        match: str | None = None
        if query.text is not None and query.text.strip():
            sought = words.phrases(query.text)
            if not sought:
                return ()
            match = self._dialect.match(sought)
        return filters_of(query, match)

    async def get(self, exchange_id: str) -> Exchange | None:
        found = await self._select("id = ?", storable(exchange_id))
        return found[0] if found else None

    async def body(self, exchange_id: str, role: Role) -> StoredBody | None:
        async def read(transaction: Transaction) -> StoredBody | None:
            number = await self._number(transaction, exchange_id)
            found = None if number is None else await find(transaction, number, role)
            return None if found is None else await transaction.compute(found.assemble)

        try:
            return await self._driver.read(read)
        except blobs.Damaged as e:
            raise StoreError(
                f"{self._driver.label}: the {role.value} body of {exchange_id} is damaged ({e}). The others are not "
                "touched by that; look at the disk, and restore a backup if it matters"
            ) from e

    async def snippet(self, exchange_id: str, text: str, *, around: int = 80) -> str | None:
        sought = words.phrases(text)
        if not sought:
            return None

        async def read(transaction: Transaction) -> str | None:
            number = await self._number(transaction, exchange_id)
            row = (await transaction.execute("SELECT data FROM texts WHERE exchange = ?", number)).first
            if row is None:
                return None
            return await transaction.compute(lambda: words.snippet(_unpacked(row[0]), sought, around))

        return await self._driver.read(read)

    async def conversation(self, conversation: str) -> tuple[Exchange, ...]:
        return await self._select("conversation = ? ORDER BY number", storable(conversation))

    async def turns_at(self, chains: Sequence[bytes]) -> tuple[Turn, ...]:
        if not chains:
            return ()
        return await self._turns(f"chain IN ({marks(chains)}) ORDER BY number DESC LIMIT 100", *chains)

    async def turn_of_message(self, message_id: str) -> Turn | None:
        found = await self._turns("message_id = ? ORDER BY number DESC LIMIT 1", storable(message_id))
        return found[0] if found else None

    async def latest_turn(self, session: str, agent: str | None, before: str) -> Turn | None:
        async def read(transaction: Transaction) -> Turn | None:
            number = await self._number(transaction, before)
            row = (
                await transaction.execute(
                    f"SELECT {_TURN} FROM exchanges WHERE session = ? "
                    f"AND {'agent IS NULL' if agent is None else 'agent = ?'} AND messages > 0 AND number < ? "
                    "ORDER BY number DESC LIMIT 1",
                    storable(session),
                    *(() if agent is None else (storable(agent),)),
                    number_of_id(before) if number is None else number,
                )
            ).first
            return None if row is None else to_turn(row)

        return await self._driver.read(read) if is_id(before) else None

    async def followers(self, exchange_id: str) -> tuple[Turn, ...]:
        return await self._turns("parent = ? ORDER BY number", storable(exchange_id))

    async def stored_bytes(self) -> Mapping[str, int]:
        bodies, others = await self._driver.read(_totals)
        return {"bodies": bodies, "total": bodies + others}

    async def _select(self, condition: str, *parameters: object) -> tuple[Exchange, ...]:
        async def read(transaction: Transaction) -> tuple[Exchange, ...]:
            found = await transaction.execute(f"SELECT {_ALL} FROM exchanges WHERE {condition}", *parameters)
            return await transaction.compute(lambda: tuple(map(from_row, found)))

        return await self._driver.read(read)

    async def _turns(self, condition: str, *parameters: object) -> tuple[Turn, ...]:
        rows = await self._driver.read(
            lambda transaction: transaction.execute(f"SELECT {_TURN} FROM exchanges WHERE {condition}", *parameters)
        )
        return tuple(to_turn(row) for row in rows)

    async def _number(self, transaction: Transaction, exchange_id: str) -> int | None:
        row = (await transaction.execute("SELECT number FROM exchanges WHERE id = ?", storable(exchange_id))).first
        return None if row is None else row[0]

    # Letting go

    async def delete(self, exchange_ids: Sequence[str]) -> int:
        deleted = 0
        for some in chunks([storable(exchange_id) for exchange_id in exchange_ids], DELETED_AT_ONCE):
            deleted += await self._transact(
                partial(self._delete_selected, condition=f"id IN ({marks(some)})", parameters=some)
            )
        return deleted

    async def delete_all(self) -> int:
        deleted = 0
        while some := await self._transact(
            partial(
                self._delete_selected,
                condition="verdict IS NOT NULL ORDER BY number LIMIT ?",
                parameters=(DELETED_AT_ONCE,),
            )
        ):
            deleted += some
            await self._driver.shrink()
        return deleted

    async def expire(self, retention: Retention, now: int, *, limit: int = 100) -> int:
        done = await self._transact(partial(self._expire, retention=retention, now=now, limit=limit))
        await self._driver.shrink()
        return done

    async def _expire(self, transaction: Transaction, retention: Retention, now: int, limit: int) -> int:
        done = await self._expire_kind(
            transaction,
            retention.metadata,
            now,
            limit,
            condition="verdict IS NOT NULL",
            let_go=self._delete,
            size=lambda bodies, others: bodies + others,
        )
        return done + await self._expire_kind(
            transaction,
            retention.bodies,
            now,
            limit - done,
            condition="holds = 1 AND verdict IS NOT NULL",
            let_go=self._empty,
            size=lambda bodies, others: bodies,
        )

    async def _expire_kind(
        self,
        transaction: Transaction,
        keep: Keep,
        now: int,
        limit: int,
        *,
        condition: str,
        let_go: Callable[[Transaction, Sequence[int]], Awaitable[None]],
        size: Callable[[int, int], int],
    ) -> int:
        done = 0
        if keep.seconds is not None and limit > 0:
            before = now - int(keep.seconds * 1e6)
            numbers = await self._oldest(
                transaction,
                f"{condition} AND received_at < ? AND number < ?",
                (before, first_number(before + 1000)),
                limit,
            )
            await let_go(transaction, numbers)
            done = len(numbers)
        while keep.bytes is not None and done < limit and size(*await _totals(transaction)) > keep.bytes:
            numbers = await self._oldest(transaction, condition, (), min(DELETED_BETWEEN_LOOKS, limit - done))
            if not numbers:
                break
            await let_go(transaction, numbers)
            done += len(numbers)
        return done

    async def _oldest(
        self, transaction: Transaction, condition: str, parameters: Sequence[object], limit: int
    ) -> list[int]:
        rows = await transaction.execute(
            f"SELECT number FROM exchanges WHERE {condition} ORDER BY number LIMIT ?{self._dialect.for_update}",
            *parameters,
            limit,
        )
        return [row[0] for row in rows]

    async def _delete_selected(self, transaction: Transaction, condition: str, parameters: Sequence[object]) -> int:
        rows = await transaction.execute(
            f"SELECT number FROM exchanges WHERE {condition}{self._dialect.for_update}", *parameters
        )
        await self._delete(transaction, sorted(row[0] for row in rows))
        return len(rows)

    async def _delete(self, transaction: Transaction, numbers: Sequence[int]) -> None:
        """Delete exchanges with all that belongs to them."""
        tally = Tally()
        await self._remove_texts(transaction, numbers, tally)
        await Bodies(transaction, self._dialect.for_update, tally).remove(numbers)
        for some in chunks(numbers):
            tally.others -= sum(
                row[0]
                for row in await transaction.execute(
                    f"DELETE FROM exchanges WHERE number IN ({marks(some)}) RETURNING weight", *some
                )
            )
        await self._add_up(transaction, tally)

    async def _empty(self, transaction: Transaction, numbers: Sequence[int]) -> None:
        """Delete the bodies and texts of exchanges."""
        tally = Tally()
        await self._remove_texts(transaction, numbers, tally)
        await Bodies(transaction, self._dialect.for_update, tally).remove(numbers)
        for some in chunks(numbers):
            await transaction.execute(f"UPDATE exchanges SET holds = 0 WHERE number IN ({marks(some)})", *some)
        await self._add_up(transaction, tally)

    # Watching

    def watch(self, notice: Callable[[Sequence[str]], None]) -> Callable[[], None]:
        return self._driver.watch(notice)

    async def _transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        async def checked(transaction: Transaction) -> T:
            # Another process may have brought it up to a version that this one does not know.
            check(await version_of(transaction), self._steps, self._driver.label)
            return await work(transaction)

        return await self._driver.transact(checked)


async def _totals(transaction: Transaction) -> tuple[int, int]:
    """Bytes that bodies take, and all else."""
    row = (await transaction.execute("SELECT bodies, others FROM totals")).first
    assert row is not None  # the first migration made it
    return row[0], row[1]


def _replaces(verdict: str | None, there: str | None) -> bool:
    """Whether a record with this verdict is written over one that has another."""
    return there is None or (there == INTERRUPTED and verdict is not None)


def _prepare(records: Sequence[Record]) -> list[_Ready]:
    last: dict[str, Record] = {}
    for record in records:
        before = last.get(record.exchange.id)
        if before is None or _replaces(record.exchange.verdict, before.exchange.verdict):
            last[record.exchange.id] = record
    return [_ready(record) for record in last.values()]


def _ready(record: Record) -> _Ready:
    try:
        row, weight = to_row(record.exchange)
    except ValueError as e:
        raise StoreError(f"An exchange cannot be stored: {e}") from e
    text = None if record.text is None else record.text[:MOST_TEXT]
    return _Ready(
        exchange=record.exchange,
        row=row,
        weight=weight,
        bodies=[split(body) for body in record.bodies],
        text=None if text is None else blobs.compress(text.encode("utf-8", "surrogatepass")),
        words=[] if text is None else words.indexed(text),
    )


def _unpacked(text: bytes) -> str:
    return blobs.decompress(text, 4 * MOST_TEXT).decode("utf-8", "surrogatepass")


def _documents(rows: Iterable[tuple[int, int, bytes]]) -> list[Words]:
    return [Words(number, words.indexed(_unpacked(data))) for number, _, data in rows]
