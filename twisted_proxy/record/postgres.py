"""
Records in PostgreSQL: connections that are few and replaceable, transactions with limits, and notices.

Nothing blocks the reactor's thread: txpostgres works in it without waiting, and names are looked up by the reactor's
resolver. A server that is down, full, read-only or silent is a `StoreUnavailable`; the next call tries again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar, cast

import attrs
import psycopg2
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.task import LoopingCall, deferLater

from .bodies import chunks, insert, marks
from .database import Dialect, Phrases, Rows, Transaction, Words
from .postgres_address import parse_address
from .postgres_connection import Connection, Lost, Patience, Reactor, again, connect, in_words, placeholders
from .postgres_notices import CHANNEL, Notices, payloads
from .postgres_words import literals, query
from .sql import SqlStore
from .store import StoreUnavailable
from .threads import Closed, Crew

T = TypeVar("T")

WRITING = 0x636C61756465
"""
The advisory lock ("claude") of whoever writes, or changes the schema: one transaction at a time in a database.

Writers share parts, totals and the order of revisions. Row by row they would lock these in different orders, and meet
in deadlocks; this way no row needs to be locked, and a transaction is short.
"""

OLDEST = 120000
"""The oldest server whose SQL has all that is said here, as ``server_version_num``."""

READERS = 3
"""Connections for reading. With one for writing and one for notices that makes 5 a process, if all are needed."""

THREADS = 2
"""Threads for what takes time: compressing, hashing."""

CLOSING = 5.0
"""Seconds that closing waits for those."""

WRITE = "READ WRITE"
READ = "ISOLATION LEVEL REPEATABLE READ, READ ONLY"

ATTEMPTS = 5
"""How often a transaction is tried that meets a deadlock or a conflict: with something else than our writers."""


@attrs.frozen(kw_only=True)
class Limits:
    """
    Seconds. The contract of a store allows 30 until it has to say that it cannot.

    :ivar connect: to look the host up, and again to connect and log in.
    :ivar silence: of the server, while a call waits for its turn, a connection or an answer.
    :ivar statement: that the server works on one statement.
    :ivar lock: that one statement waits for other transactions.
    :ivar idle: that the server waits for our next statement, while others wait for our transaction.
    :ivar migration: that one step of a migration takes.
    :ivar reconnect: the shortest and the longest pause before the connection for notices is made again.
    """

    connect: float = 10.0
    silence: float = 25.0
    statement: float = 20.0
    lock: float = 10.0
    idle: float = 15.0
    migration: float = 3600.0
    reconnect: tuple[float, float] = (0.5, 10.0)


class _Transaction:
    """`Transaction` on one connection."""

    def __init__(self, driver: PostgresDriver, connection: Connection, sign: Callable[[], None]) -> None:
        self._driver = driver
        self._connection = connection
        self.sign = sign
        self.error: Exception | None = None

    async def execute(self, statement: str, *parameters: object) -> Rows:
        values = [int(each) if each is True or each is False else each for each in parameters]
        try:
            answer = await self._connection.execute(placeholders(statement), values or None)
        except (psycopg2.Error, Lost, ValueError) as error:
            self.error = error
            # Without the original: its text, and so a traceback, may show what was to be stored.
            raise in_words(error, self._driver.address) from None
        return Rows(answer.rows, answer.count)

    async def compute(self, function: Callable[..., T], *arguments: object) -> T:
        result = await self._driver.compute(function, *arguments)
        self.sign()
        return result


def _nothing() -> None:
    pass


class _Lane:
    """Connections of one purpose, each for one transaction at a time; made when there is need of them."""

    def __init__(self, size: int) -> None:
        self._turns = DeferredSemaphore(size)
        self._idle: list[Connection] = []

    def turn(self) -> Deferred[object]:
        """Fires when a connection may be taken or made. Cancel it, or call :meth:`release` after it."""
        return cast("Deferred[object]", self._turns.acquire())

    def release(self) -> None:
        self._turns.release()

    def take(self) -> Connection | None:
        """A connection that was put back, or ``None``."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.drop()
        return None

    def put_back(self, connection: Connection) -> None:
        self._idle.append(connection)

    def drop(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.drop()


class _Call:
    """
    What one call is waiting for, so that it can be made to end.

    :ivar begin: begins its transaction.
    :ivar sign: is called at each sign of life that its server gives.
    """

    def __init__(self, lane: _Lane, begin: str) -> None:
        self.lane = lane
        self.begin = begin
        self.sign: Callable[[], None] = _nothing
        self._turn: Deferred[object] | None = None
        self._connection: Connection | None = None
        self.given_up = False

    def give_up(self) -> None:
        self.given_up = True
        if self._turn is not None:
            self._turn.cancel()
        if self._connection is not None:
            self._connection.drop()

    async def wait_for_turn(self) -> None:
        """Raises `Lost` if it is to end; otherwise the lane is to be released."""
        self._turn = self.lane.turn()
        try:
            await self._turn
        except CancelledError:
            raise Lost("it was given up") from None
        finally:
            self._turn = None

    def holds(self, connection: Connection) -> None:
        """It uses this one from now on. Raises `Lost` if it is to end."""
        self._connection = connection
        connection.moving = self.sign
        if self.given_up:
            connection.drop()
            raise Lost("it was given up")

    def lets_go(self) -> None:
        if self._connection is not None:
            self._connection.moving = None
            self._connection = None


class PostgresDriver:
    """
    `sql.Driver` for PostgreSQL.

    :param url: a connection URI; see `parse_address`, also for what it raises.
    """

    def __init__(self, reactor: Reactor, url: str, limits: Limits | None = None) -> None:
        self._reactor = reactor
        self._limits = limits or Limits()
        self.address = parse_address(url)
        self.label = self.address.name
        self.dialect: Dialect = PostgresDialect()
        self._writer = _Lane(1)
        self._readers = _Lane(READERS)
        self._threads = self._crew()
        self._calls: set[Patience[object]] = set()
        self._notices = Notices(
            reactor,
            self.address,
            connect=self._limits.connect,
            silence=self._limits.silence,
            pauses=self._limits.reconnect,
        )
        self._closed = False

    def _crew(self) -> Crew:
        return Crew(self._reactor, "postgres-values", size=THREADS)

    # sql.Driver

    async def open(self, migrate: Callable[[Transaction], Awaitable[None]]) -> None:
        if self._closed:
            self._closed = False
            self._threads = self._crew()
        # With the usual limits first: a server that does not answer is not one that migrates.
        await self._call(self._writer, self._begin(READ), self._check)
        await self._call(self._writer, self._begin(WRITE, self._limits.migration), partial(self._attended, migrate))

    async def _attended(self, migrate: Callable[[Transaction], Awaitable[None]], transaction: _Transaction) -> None:
        """A step may take longer than a server may be silent: while it answers somebody else, it is at work."""

        async def ask() -> None:
            await self.read(lambda other: other.execute("SELECT 1"))
            transaction.sign()

        asking = LoopingCall(lambda: Deferred.fromCoroutine(ask()))
        asking.clock = self._reactor
        # Where it fails, nothing is to be done: the silence is noticed.
        asking.start(self._limits.silence / 5, now=False).addErrback(lambda _: None)
        try:
            await migrate(transaction)
        finally:
            if asking.running:
                asking.stop()

    async def transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        return await self._call(self._writer, self._begin(WRITE), work)

    async def read(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        return await self._call(self._readers, self._begin(READ), work)

    async def compute(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return await self._threads.run(lambda _: function(*arguments))
        except Closed:
            raise self._is_closed() from None

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._notices.close()
        for call in tuple(self._calls):
            call.give_up(self._is_closed())
        for lane in (self._writer, self._readers):
            lane.drop()
        await self._threads.close(CLOSING)

    async def shrink(self) -> None:
        """Autovacuum does that."""

    def watch(self, notice: Callable[[Sequence[str]], None]) -> Callable[[], None]:
        return self._notices.watch(notice)

    # Transactions

    def _is_closed(self) -> StoreUnavailable:
        return StoreUnavailable(f"{self.label} is not open. Open it before it is used, and use it before it is closed.")

    def _begin(self, mode: str, statement: float | None = None) -> str:
        """
        The statements that begin a transaction, in one round trip.

        What they set is of the transaction, not of the session: so it holds also behind a pooler that lends sessions.
        """
        limits = {
            "statement_timeout": self._limits.statement if statement is None else statement,
            "lock_timeout": self._limits.lock,
            "idle_in_transaction_session_timeout": self._limits.idle,
        }
        statements = [f"BEGIN {mode}"]
        statements += [f"SET LOCAL {name} = {round(seconds * 1000)}" for name, seconds in limits.items()]
        # To compile a plan would cost more than any of ours.
        statements.append("SET LOCAL jit = off")
        if mode == WRITE:
            statements.append(f"SELECT pg_advisory_xact_lock({WRITING})")
        return "; ".join(statements)

    async def _check(self, transaction: Transaction) -> None:
        rows = await transaction.execute(
            "SELECT current_setting('server_version_num')::int, current_setting('server_version'), "
            "current_setting('server_encoding')"
        )
        ((number, version, encoding),) = rows
        if number < OLDEST:
            raise StoreUnavailable(f"{self.label} is of PostgreSQL {version}. Use {OLDEST // 10000} or a later one.")
        if encoding != "UTF8":
            raise StoreUnavailable(
                f"{self.label} has the encoding {encoding}, which cannot hold all characters. "
                "Create one with ENCODING 'UTF8' and name it in DATABASE_URL."
            )

    async def _call(self, lane: _Lane, begin: str, work: Callable[[_Transaction], Awaitable[T]]) -> T:
        if self._closed:
            raise self._is_closed()
        call = _Call(lane, begin)
        silence = self._limits.silence
        silent = StoreUnavailable(
            f"{self.label} cannot be used: it has not answered for {silence:g} s. Check the network and the server."
        )
        patience: Patience[T] = Patience(self._reactor, silence, silent, call.give_up)
        call.sign = patience.sign
        self._calls.add(cast("Patience[object]", patience))
        try:
            return await patience.wait(self._attempts(call, work))
        finally:
            self._calls.discard(cast("Patience[object]", patience))

    async def _attempts(self, call: _Call, work: Callable[[_Transaction], Awaitable[T]]) -> T:
        """The whole of a call. What it raises is a `StoreError`, or what ``work`` raises by itself."""
        try:
            await call.wait_for_turn()
        except Lost as error:
            raise in_words(error, self.address) from None
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    return await self._attempt(call, work)
                except _Conflict as error:
                    conflict = error
                await deferLater(self._reactor, 0.02 * attempt)
            raise StoreUnavailable(
                f"{self.label} cannot be used: {ATTEMPTS} attempts met a conflict with another writer ({conflict}). "
                "If that stays so, look at pg_stat_activity for what else writes there."
            )
        finally:
            call.lane.release()

    async def _attempt(self, call: _Call, work: Callable[[_Transaction], Awaitable[T]]) -> T:
        connection = await self._begun(call)
        call.sign()
        transaction = _Transaction(self, connection, call.sign)
        clean = False
        try:
            try:
                result = await work(transaction)
                # PostgreSQL would answer ROLLBACK to a COMMIT behind an error that `work` did not mind.
                if transaction.error is not None:
                    raise in_words(transaction.error, self.address)
                await transaction.execute("COMMIT")
                clean = True
                return result
            except Exception:
                clean = await _rolled_back(connection)
                if transaction.error is not None and again(transaction.error):
                    raise _Conflict(str(in_words(transaction.error, self.address))) from None
                raise
        finally:
            call.lets_go()
            if clean and not self._closed:
                call.lane.put_back(connection)
            else:
                connection.drop()

    async def _begun(self, call: _Call) -> Connection:
        """A connection with an open transaction."""
        while True:
            known = call.lane.take()
            try:
                if known is not None:
                    call.holds(known)
                connection = known or await connect(self._reactor, self.address, self._limits.connect, call.holds)
                await connection.execute(call.begin)
            except (psycopg2.Error, Lost) as error:
                call.lets_go()
                if known is not None:
                    known.drop()
                    # It may have died unnoticed while it was not in use.
                    if not call.given_up:
                        continue
                raise in_words(error, self.address) from None
            else:
                return connection


async def _rolled_back(connection: Connection) -> bool:
    """Whether a connection is out of its transaction."""
    try:
        await connection.execute("ROLLBACK")
    except (psycopg2.Error, Lost):
        return False
    return True


class _Conflict(Exception):
    """The transaction met others in a way that the server resolved by ending it."""


class PostgresDialect:
    """`sql.Dialect` for PostgreSQL."""

    name = "postgres"
    for_update = ""
    match_condition = "exchanges.number IN (SELECT exchange FROM search WHERE words @@ ?::tsquery)"
    gather = "json_agg"
    indexes: Mapping[str, str] = {}

    def source(self, *, search: bool, index: str | None) -> tuple[str, str]:
        return "exchanges", "exchanges.number"

    def match(self, phrases: Phrases) -> str:
        return query(phrases)

    async def index(self, transaction: Transaction, documents: Sequence[Words]) -> None:
        rows = await transaction.compute(
            lambda: [(document.number, words) for document in documents for words in literals(document.words)]
        )
        await insert(transaction, "search (exchange, words)", rows)

    async def unindex(self, transaction: Transaction, documents: Sequence[Words]) -> None:
        for some in chunks([document.number for document in documents]):
            await transaction.execute(
                f"DELETE FROM search WHERE exchange IN ({marks(some)})",  # noqa: S608 - placeholders
                *some,
            )

    async def announce(self, transaction: Transaction, exchange_ids: Sequence[str]) -> None:
        for payload in payloads(exchange_ids):
            await transaction.execute("SELECT pg_notify(?, ?)", CHANNEL, payload)


def postgres_store(reactor: Reactor, url: str, limits: Limits | None = None) -> SqlStore:
    """
    The store in a PostgreSQL database.

    :raises ValueError: the URL is none; see `parse_address`.
    """
    return SqlStore(PostgresDriver(reactor, url, limits))
