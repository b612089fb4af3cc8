"""
The store in PostgreSQL, on a real server: the contract, what only PostgreSQL has, and what goes wrong with it.

The server is one for all tests; those that stop or freeze it leave it running.
"""

from __future__ import annotations

import random
import select
import socket
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import attrs
import psycopg2
import pytest
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import LogEvent, formatEvent

from tests.postgresql import Database, Server
from tests.sockets import RawUpstream
from tests.store_contract import StoreContract, awaited, check_sharing
from twisted_proxy.record.database import Rows, Transaction
from twisted_proxy.record.exchange import Body, BytesContent, Exchange, Record, Role
from twisted_proxy.record.postgres import Limits, PostgresDriver, postgres_store
from twisted_proxy.record.postgres_notices import CHANNEL, PAYLOAD, payloads
from twisted_proxy.record.sql import SqlStore
from twisted_proxy.record.store import SchemaTooNew, StoreError, StoreUnavailable

reactor: Any = installed_reactor

USUAL = Limits(reconnect=(0.02, 0.1))
SHORT = attrs.evolve(USUAL, connect=1.0, silence=1.0)
"""For servers that do not answer."""
LATE = 0.5
"""Seconds that the reactor may be late on a machine with other work. A call that blocks would wait for longer."""


# What the tests are made of


def exchange_id(number: int) -> str:
    return f"req_{0x0190_0000_0000_7000_8000_0000_0000_0000 + (number << 80):032x}"


def record(number: int, body: bytes | None = None, **fields: Any) -> Record:
    """A finished exchange with this number, and a request body if one is given."""
    received_at = (0x0190_0000_0000 + number) * 1000
    known: dict[str, Any] = {"instance": "here", "method": "POST", "path": "/v1/messages", "verdict": "complete"}
    return Record(
        exchange=Exchange(id=exchange_id(number), received_at=received_at, **{**known, **fields}),
        bodies=() if body is None else (Body(role=Role.REQUEST, content=BytesContent(body)),),
        text=f"words of {number}",
    )


def conversation(turns: int, of: str = "") -> bytes:
    """A request body with so many messages. Those of one conversation share theirs."""
    messages = ",".join(
        f'{{"role":"{"user" if turn % 2 == 0 else "assistant"}","content":"{of}{turn} {"text " * 200}"}}'
        for turn in range(turns)
    )
    return f'{{"model":"claude","messages":[{messages}]}}'.encode()


@asynccontextmanager
async def opened(database: Database, limits: Limits = USUAL, *, url: str | None = None) -> AsyncIterator[SqlStore]:
    store = postgres_store(reactor, url or database.url, limits)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def driven(database: Database, limits: Limits = USUAL) -> AsyncIterator[PostgresDriver]:
    """A driver, and a table ``things`` with a column ``n``."""
    database.query("CREATE TABLE IF NOT EXISTS things (n bigint UNIQUE)")
    database.query("GRANT ALL ON things TO PUBLIC")
    driver = PostgresDriver(reactor, database.url, limits)
    try:
        yield driver
    finally:
        await driver.close()


def statement(text: str, *parameters: object) -> Callable[[Transaction], Awaitable[Rows]]:
    return lambda transaction: transaction.execute(text, *parameters)


def things(database: Database) -> list[int]:
    return [row[0] for row in database.query("SELECT n FROM things ORDER BY n")]


def sessions(database: Database) -> int:
    """How many connections of the database's owner the server has."""
    found = database.query("SELECT count(*) FROM pg_stat_activity WHERE usename = %s", [database.user])
    return int(found[0][0])


async def until(promise: Callable[[], object], what: str, limit: float = 10.0) -> None:
    deadline = time.monotonic() + limit
    while not promise():
        assert time.monotonic() < deadline, f"not within {limit:g} s: {what}"
        await deferLater(reactor, 0.005)


def running(work: Any) -> Deferred[Any]:
    return Deferred.fromCoroutine(work)


async def failing(work: Any, database: Database, kind: type[StoreError] = StoreUnavailable) -> str:
    """The text of the error that this ends with. It says which database, and nothing of it shows the password."""
    with pytest.raises(StoreError) as raised:
        await work
    assert type(raised.value) is kind, raised.value
    shown = "".join(traceback.format_exception(raised.value))
    assert database.password not in shown
    assert database.password not in repr(raised.value)
    assert database.name in str(raised.value)
    return str(raised.value)


@contextmanager
def unblocked() -> Iterator[None]:
    """Within, the reactor's thread is not blocked."""
    late = 0.0
    before = time.monotonic()

    def tick() -> None:
        nonlocal late, before
        now = time.monotonic()
        late = max(late, now - before - 0.01)
        before = now

    ticking = LoopingCall(tick)
    ticking.start(0.01)
    try:
        yield
    finally:
        ticking.stop()
        tick()
    assert late < LATE, f"the reactor was {late:.3f} s late"


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


class TestPostgres(StoreContract):
    """PostgreSQL keeps the contract."""

    @pytest.fixture
    def new_store(self, database: Database) -> Callable[[], SqlStore]:
        # Over TCP, with a password, each connection would cost as much as a test.
        return lambda: postgres_store(reactor, database.socket_url)


# Statements and values


@awaited
async def test_values(database: Database) -> None:
    """Every kind of value comes back as it was; a flag as 0 or 1."""
    values = [None, 0, 1 - 2**63, 2**63 - 1, 1.5, b"", bytes(range(256)), "", "a'b\\c%s {} é 🙂 \x01\x7f", True, False]
    types = ["text", *["bigint"] * 3, "float8", *["bytea"] * 2, *["text"] * 2, *["smallint"] * 2]
    columns = ", ".join(f"?::{each}" for each in types)
    async with driven(database) as driver:
        got = await driver.read(statement(f"SELECT {columns}", *values))
    assert got.first == tuple(values)
    assert [type(each) for each in got.first or ()][5:7] == [bytes, bytes]


@awaited
async def test_what_cannot_be_stored(database: Database) -> None:
    """
    A value that the database does not take is the record's fault, not the database's: asking again is no use. The
    error does not show it.
    """
    odd = [
        ("text", "private\0"),
        ("text", "private\ud800"),
        ("bigint", "private"),
        ("bigint", 2**70),
        ("bytea", "\\private"),
    ]
    async with driven(database) as driver:
        for kind, value in odd:
            said = await failing(driver.transact(statement(f"SELECT ?::{kind}", value)), database, StoreError)
            assert "refused what was to be stored" in said
            assert "private" not in said
        assert (await driver.read(statement("SELECT 1"))).first == (1,)


@awaited
async def test_all_or_nothing(database: Database) -> None:
    """A transaction whose function fails, or goes on behind a statement that failed, leaves nothing behind."""

    async def raises(transaction: Transaction) -> None:
        await transaction.execute("INSERT INTO things VALUES (1)")
        raise LookupError("a mistake")

    async def goes_on(transaction: Transaction) -> None:
        await transaction.execute("INSERT INTO things VALUES (2)")
        with pytest.raises(StoreError):
            await transaction.execute("SELECT 1 / 0")

    async with driven(database) as driver:
        with pytest.raises(LookupError):
            await driver.transact(raises)
        await failing(driver.transact(goes_on), database, StoreError)
        await driver.transact(statement("INSERT INTO things VALUES (3)"))
        assert things(database) == [3]
        # With the connection that was there from the beginning.
        assert sessions(database) == 1


@awaited
async def test_a_read_is_one_snapshot(database: Database) -> None:
    """What is written meanwhile is not seen, and writing is refused."""
    async with driven(database) as driver:

        async def counts_twice(transaction: Transaction) -> tuple[int, int]:
            before = await transaction.execute("SELECT count(*) FROM things")
            await driver.transact(statement("INSERT INTO things VALUES (1)"))
            after = await transaction.execute("SELECT count(*) FROM things")
            return before.rows[0][0], after.rows[0][0]

        assert await driver.read(counts_twice) == (0, 0)
        said = await failing(driver.read(statement("INSERT INTO things VALUES (2)")), database)
        assert "read-only" in said


@awaited
async def test_writers_of_several_processes_take_turns(database: Database) -> None:
    """What one writer has read in its transaction is so until it commits."""
    async with driven(database) as one, driven(database) as other:

        async def adds(transaction: Transaction) -> None:
            found = await transaction.execute("SELECT count(*) FROM things")
            await transaction.compute(time.sleep, 0.001)
            await transaction.execute("INSERT INTO things VALUES (?)", found.rows[0][0])

        await gatherResults([running(each.transact(adds)) for _ in range(10) for each in (one, other)])
    assert things(database) == list(range(20))


@awaited
async def test_a_conflict_with_another_program(database: Database) -> None:
    """A transaction that the server ends to resolve a deadlock is done again, from its beginning."""
    database.query("CREATE TABLE others AS SELECT 1 AS n")
    database.query("GRANT ALL ON others TO PUBLIC")
    program = psycopg2.connect(database.url)
    attempts = 0
    async with driven(database) as driver:

        async def locks_both(transaction: Transaction) -> None:
            nonlocal attempts
            attempts += 1
            await transaction.execute("SET LOCAL lock_timeout = 5000")
            # So that it is us whom the server chooses.
            await transaction.execute("LOCK TABLE things")
            if attempts == 1:
                await transaction.execute("DO 'BEGIN RAISE deadlock_detected; END'")
            await transaction.execute("INSERT INTO things VALUES (1)")

        with program, program.cursor() as cursor:
            cursor.execute("SELECT 1")
            await driver.transact(locks_both)
    program.close()
    assert attempts == 2
    assert things(database) == [1]


@awaited
async def test_a_conflict_that_stays(database: Database) -> None:
    """After some attempts it is not tried any more."""
    attempts = 0
    async with driven(database) as driver:

        async def conflicts(transaction: Transaction) -> None:
            nonlocal attempts
            attempts += 1
            await transaction.execute("DO 'BEGIN RAISE serialization_failure; END'")

        said = await failing(driver.transact(conflicts), database)
    assert "conflict" in said
    assert attempts == 5


# What a server says no to


@pytest.mark.parametrize(
    ("condition", "advice"),
    [
        ("disk_full", "Make room"),
        ("read_only_sql_transaction", "standby"),
        ("undefined_table", "restore"),
        ("insufficient_privilege", "Grant"),
        ("io_error", "log"),
        ("query_canceled", "pg_stat_activity"),
        ("out_of_memory", "DATABASE_URL"),
    ],
)
@awaited
async def test_the_servers_own_trouble(database: Database, condition: str, advice: str) -> None:
    """What has nothing to do with what is stored may be asked again, and the error says what to do."""
    async with driven(database) as driver:
        said = await failing(driver.transact(statement(f"DO 'BEGIN RAISE {condition}; END'")), database)
        assert advice in said
        await driver.transact(statement("INSERT INTO things VALUES (1)"))
    assert things(database) == [1]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (lambda at: at.at("127.0.0.1:1"), "Connection refused"),
        (lambda at: at.at("localhost:1"), "Connection refused"),
        (lambda at: at.at("nowhere.invalid"), "no name server knows its host"),
        (lambda at: at.at("") + "?host=/nowhere", "No such file or directory"),
        (lambda at: at.url.replace("sekret", "wrong"), "password authentication failed"),
        (lambda at: at.url + "_gone", "does not exist"),
        (lambda at: at.url + "?sslmode=require", "SSL"),
        (lambda at: at.url + "?sslmode=odd", "sslmode"),
    ],
)
@awaited
async def test_no_way_in(database: Database, url: Callable[[Database], str], said: str) -> None:
    """Whatever keeps us out is said in words, at once."""
    with unblocked():
        store = postgres_store(reactor, url(database), USUAL)
        text = await failing(store.open(), database)
        assert said in text
        assert "DATABASE_URL" in text
        await failing(store.get(exchange_id(1)), database)
        await store.close()


@awaited
async def test_ways_in(database: Database) -> None:
    """By name, by the Unix socket, and past a place where nobody is."""
    port = database.server.port
    for url in (database.at(f"localhost:{port}"), database.socket_url, database.at(f"127.0.0.1:1,localhost:{port}")):
        async with opened(database, url=url) as store:
            await store.write([record(1)])
            assert await store.get(exchange_id(1)) == record(1).exchange


@awaited
async def test_over_tls(database: Database) -> None:
    """``sslmode`` and its kin are libpq's: certificates are verified where that is asked for, and nothing blocks."""
    with database.server.tls() as authority:
        url = database.at(f"localhost:{database.server.port}") + "?sslmode=verify-full"
        with unblocked():
            store = postgres_store(reactor, url, USUAL)
            assert "certificate" in await failing(store.open(), database)
            await store.close()
            async with opened(database, SHORT, url=f"{url}&sslrootcert={authority}") as store:
                await store.write([record(1)])
                assert database.query(
                    "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = %s",
                    [database.user],
                ) == [(True,)]
                with frozen(database.server):
                    await failing(store.write([record(2, random.Random(1).randbytes(5_000_000))]), database)
                assert await store.get(exchange_id(1)) is not None


@awaited
async def test_a_database_that_cannot_hold_all_characters(postgresql: Server, database: Database) -> None:
    """Another encoding than UTF-8 is refused at the beginning."""
    latin = attrs.evolve(database, name="latin")
    postgresql.query("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1'")
    store = postgres_store(reactor, latin.url, USUAL)
    assert "encoding LATIN1" in await failing(store.open(), latin)
    await store.close()
    postgresql.query("DROP DATABASE latin WITH (FORCE)")


@awaited
async def test_too_many_connections(database: Database) -> None:
    """A server that lets nobody else in is one that cannot be used now; when it can, it is."""
    database.query(f"ALTER ROLE {database.user} CONNECTION LIMIT 1")
    async with opened(database) as store:
        # The one that there is writes; reading needs another.
        said = await failing(store.get(exchange_id(1)), database)
        assert "too many connections" in said
        database.query(f"ALTER ROLE {database.user} CONNECTION LIMIT -1")
        assert await store.get(exchange_id(1)) is None


@awaited
async def test_a_database_that_was_made_read_only(database: Database) -> None:
    """As providers do when a disk is full, and a primary that became a standby is. It may be read."""
    async with opened(database) as store:
        await store.write([record(1)])
    database.query(f"ALTER ROLE {database.user} SET default_transaction_read_only = on")
    async with opened(database) as store:
        assert await store.get(exchange_id(1)) is not None
    database.query(f"ALTER ROLE {database.user} RESET ALL")


@awaited
async def test_statements_have_limits(database: Database) -> None:
    """The server ends a statement that takes too long, or waits too long for others; the connection goes on."""
    async with driven(database, attrs.evolve(USUAL, statement=0.1)) as driver:
        assert "statement timeout" in await failing(driver.read(statement("SELECT pg_sleep(10)")), database)
        assert (await driver.read(statement("SELECT 1"))).first == (1,)
    async with driven(database, attrs.evolve(USUAL, lock=0.1)) as one, driven(database) as other:

        async def waits(transaction: Transaction) -> None:
            assert "lock timeout" in await failing(one.transact(statement("SELECT 1")), database)

        await other.transact(waits)
        await one.transact(statement("SELECT 1"))


@awaited
async def test_a_writer_that_stops_does_not_stop_others(database: Database) -> None:
    """A transaction whose process says nothing any more is ended by the server."""
    async with driven(database, attrs.evolve(USUAL, idle=0.1)) as one, driven(database) as other:

        async def stops(transaction: Transaction) -> None:
            await transaction.execute("INSERT INTO things VALUES (1)")
            await deferLater(reactor, 0.3)
            await transaction.execute("INSERT INTO things VALUES (2)")

        stopped = running(failing(one.transact(stops), database))
        await deferLater(reactor, 0.05)
        await other.transact(statement("INSERT INTO things VALUES (3)"))
        assert "idle" in await stopped
        assert things(database) == [3]


# Servers that come and go


@awaited
async def test_down_at_the_start(database: Database) -> None:
    """Opening fails at once, in words, and works when the server does."""
    database.server.stop()
    store = postgres_store(reactor, database.url, USUAL)
    for _ in range(2):
        assert "Connection refused" in await failing(store.open(), database)
    database.server.start()
    await store.open()
    await store.write([record(1)])
    assert await store.get(exchange_id(1)) == record(1).exchange
    await store.close()


@awaited
async def test_gone_while_it_lets_us_in(database: Database, logs: list[LogEvent]) -> None:
    """
    A server that hangs up in the middle of a login is one that cannot be reached, and no mistake of ours.

    libpq has no socket then, and psycopg2 a connection that it does not call closed.
    """

    def hang_up(connection: socket.socket) -> None:
        connection.recv(65536)

    with RawUpstream(hang_up) as server:
        store = postgres_store(reactor, database.at(f"127.0.0.1:{server.port}") + "?sslmode=disable", USUAL)
        assert "closed the connection" in await failing(store.open(), database)
        await store.close()
    assert [formatEvent(event) for event in logs if event.get("isError") or "log_failure" in event] == []


@pytest.mark.parametrize("mode", ["fast", "immediate"])
@awaited
async def test_restarted_between_calls(database: Database, logs: list[LogEvent], mode: str) -> None:
    """Nobody notices; nothing is logged as a mistake of ours."""
    async with opened(database) as store:
        await store.write([record(1)])
        database.server.restart(mode)
        await store.write([record(2)])
        database.server.restart(mode)
        assert await store.get(exchange_id(1)) is not None
        assert await store.get(exchange_id(2)) is not None
        database.server.stop(mode)
        await failing(store.get(exchange_id(1)), database)
        await failing(store.write([record(3)]), database)
        database.server.start()
        await store.write([record(3)])
    assert [formatEvent(event) for event in logs if event.get("isError")] == []


@awaited
async def test_restarted_in_the_middle_of_a_write(database: Database) -> None:
    """Nothing of it is there; asked again, all of it is, once."""
    records = [record(number, conversation(number)) for number in range(1, 6)]
    # The last statement of a write is the one that is waited for.
    async with opened(database) as store:
        database.query(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(30); RETURN NULL; END'"
        )
        database.query("CREATE TRIGGER wait AFTER INSERT ON exchanges EXECUTE FUNCTION wait()")
        writing = running(failing(store.write(records), database))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'INSERT INTO exchanges%%' AND state = 'active'"
        await until(lambda: database.query(waiting), "a write that waits")
        database.server.restart("immediate")
        await writing
        assert database.query("SELECT count(*) FROM parts") == [(0,)]
        assert database.query("SELECT revision, bodies, others FROM totals") == [(0, 0, 0)]
        database.query("DROP TRIGGER wait ON exchanges")
        await store.write(records)
        await store.write(records)
        for each in records:
            body = await store.body(each.exchange.id, Role.REQUEST)
            assert body is not None
            assert body.data == each.bodies[0].content.read()
    await as_if_written_once(database, records)


async def as_if_written_once(database: Database, records: Sequence[Record]) -> None:
    """A database holds exactly what one write of each of these would make."""
    tables = {
        "exchanges": "number, id, verdict",
        "parts": "encode(hash, 'hex'), refs, run",
        "bodies": "exchange, role, size",
        "texts": "exchange, weight",
        "search": "exchange, words::text",
    }

    def contents(of: Database) -> dict[str, list[Any]]:
        return {name: sorted(of.query(f"SELECT {columns} FROM {name}")) for name, columns in tables.items()}

    with database.server.database() as other:
        async with opened(other) as store:
            for each in records:
                await store.write([each])
        assert contents(database) == contents(other)
    async with opened(database) as store:
        await check_sharing(store)


@awaited
async def test_frozen(database: Database) -> None:
    """
    A server that is stopped where it is fails each call within the limit, whatever it was waiting for, and blocks
    nothing. When it goes on, so do we; what it did meanwhile counts once.
    """
    large = record(2, bytes(range(256)) * 20_000)
    async with opened(database, SHORT) as store:
        await store.write([record(1)])
        with unblocked(), frozen(database.server):
            began = time.monotonic()
            calls = [
                store.write([large]),  # which the sockets' buffers do not take
                store.write([record(3)]),  # which waits for its turn
                *[store.get(exchange_id(1)) for _ in range(5)],  # more than there are connections
            ]
            said = await gatherResults([running(failing(call, database)) for call in calls])
            assert time.monotonic() - began < 5 * SHORT.silence
            assert all("answer" in each for each in said)
            await failing(store.get(exchange_id(1)), database)
        assert await store.get(exchange_id(1)) is not None
        await store.write([large, record(3)])
        body = await store.body(exchange_id(2), Role.REQUEST)
        assert body is not None
        assert body.data == large.bodies[0].content.read()
    await as_if_written_once(database, [record(1), large, record(3)])


@awaited
async def test_frozen_at_the_start(database: Database) -> None:
    """As a server that is down, only later; closing does not wait for it."""
    store = postgres_store(reactor, database.url, SHORT)
    with unblocked(), frozen(database.server):
        await failing(store.open(), database)
        opening = running(failing(store.open(), database))
        await deferLater(reactor, 0.05)
        await store.close()
        assert "not open" in await opening


@awaited
async def test_frozen_while_it_migrates(database: Database) -> None:
    """A step of a migration may take longer than a call; but not if the server does not answer anybody."""

    async def migrates(seconds: float, transaction: Transaction) -> None:
        await transaction.execute("SELECT pg_sleep(?)", seconds)

    async with driven(database, attrs.evolve(SHORT, silence=0.4)) as driver:
        await driver.open(partial(migrates, 1))
        opening = running(failing(driver.open(partial(migrates, 20)), database))
        await deferLater(reactor, 0.2)
        with frozen(database.server):
            assert "has not answered" in await opening


@awaited
async def test_connections(database: Database) -> None:
    """One for writing and up to three for reading; none is left when the store is closed, which may be done twice."""
    async with opened(database) as store:
        await gatherResults([running(store.get(exchange_id(1))) for _ in range(20)])
        assert sessions(database) <= 4
        calls = [running(failing(call, database)) for call in (store.write([record(1)]), store.get(exchange_id(1)))]
        await store.close()
        await store.close()
        for call in calls:
            assert "not open" in await call
        await failing(store.get(exchange_id(1)), database)
    await until(lambda: sessions(database) == 0, "no connection")


# Several proxies


@awaited
async def test_two_write_the_same_parts(database: Database) -> None:
    """Overlapping conversations, some of them the same exchanges: each part is there once, and counted exactly."""
    records = [record(number, conversation(1 + number % 7, of=str(number % 3))) for number in range(60)]
    async with opened(database) as one, opened(database) as other:
        batches = [records[start : start + 6] for start in range(0, 60, 4)]
        await gatherResults([running(store.write(batch)) for batch in batches for store in (one, other)])
        await as_if_written_once(database, records)
        assert (await gatherResults([running(one.delete_all()), running(other.delete_all())]))[0] >= 0
        assert database.query("SELECT count(*) FROM parts") == [(0,)]
        assert database.query("SELECT bodies, others FROM totals") == [(0, 0)]


@awaited
async def test_all_open_an_empty_database_at_once(database: Database) -> None:
    """One makes the tables, the others find them."""
    stores = [postgres_store(reactor, database.url, USUAL) for _ in range(4)]
    await gatherResults([running(store.open()) for store in stores])
    assert database.query("SELECT revision FROM totals") == [(0,)]
    for store in stores:
        await store.close()


@awaited
async def test_a_newer_schema(database: Database) -> None:
    """Is refused in words; also by one that had it open."""
    async with opened(database) as store:
        database.query("INSERT INTO schema_version VALUES (99)")
        with pytest.raises(SchemaTooNew, match="newer"):
            await store.write([record(1)])
    with pytest.raises(SchemaTooNew, match="99"):
        async with opened(database):
            pass


# Notices


def test_notices_are_short_enough() -> None:
    """Ids are in as few notices as hold them, in order."""
    ids = [exchange_id(number) for number in range(1000)]
    made = list(payloads(ids))
    assert [each for payload in made for each in payload.split()] == ids
    assert [len(payload) for payload in made[:-1]] == [216 * 37 - 1] * (len(made) - 1)
    assert 216 * 37 - 1 <= PAYLOAD < 217 * 37 - 1
    assert list(payloads([])) == []


@awaited
async def test_what_another_process_writes(database: Database, logs: list[LogEvent]) -> None:
    """Watchers learn of it, each of them, until they end it; one that fails hurts no other."""
    got: list[str] = []
    failed: list[object] = []

    def fails(ids: Sequence[str]) -> None:
        failed.append(ids)
        raise LookupError("a mistake")

    async with opened(database) as one, opened(database) as other:
        one.watch(fails)
        end = one.watch(got.extend)
        await until(lambda: sessions(database) == 3, "a connection that listens")
        await until(lambda: listening(database), "a connection that listens")
        many = [record(number) for number in range(500)]
        await other.write(many)
        await until(lambda: len(got) == 500, "all notices")
        assert got == [each.exchange.id for each in many]
        end()
        end()
        await other.write([record(501)])
        await until(lambda: len(failed) == 4, "a notice")
        assert len(got) == 500
    assert [event["log_failure"].type for event in logs if event.get("log_failure")] == [LookupError] * 4


def listening(database: Database) -> bool:
    found = database.query(
        "SELECT 1 FROM pg_stat_activity WHERE usename = %s AND query LIKE 'LISTEN%%' AND state = 'idle'",
        [database.user],
    )
    return bool(found)


@awaited
async def test_what_another_program_receives(database: Database) -> None:
    """A plain connection that listens gets the ids once the write is committed, and nothing of one that is not."""
    program = psycopg2.connect(database.url)
    program.autocommit = True
    with program.cursor() as cursor:
        cursor.execute(f"LISTEN {CHANNEL}")
    async with opened(database) as store:
        database.query("ALTER TABLE exchanges ADD CHECK (status <> 418)")
        await failing(store.write([record(1), record(2, status=418)]), database, StoreError)
        await store.write([record(3), record(4)])
    assert select.select([program], [], [], 5.0)[0]
    program.poll()
    assert [notice.payload for notice in program.notifies] == [f"{exchange_id(3)} {exchange_id(4)}"]
    program.close()


@awaited
async def test_listening_survives(database: Database, logs: list[LogEvent]) -> None:
    """A restart of the server: it is logged once that notices are missed, and once that they come again."""
    got: list[str] = []
    async with opened(database) as store:
        end = store.watch(got.extend)
        await until(lambda: listening(database), "a connection that listens")
        database.server.stop()
        await deferLater(reactor, 0.3)
        database.server.start()
        await until(lambda: listening(database), "a connection that listens again")
        await store.write([record(1)])
        await until(lambda: got == [exchange_id(1)], "a notice")
        end()
        await until(lambda: not listening(database), "no connection that listens")
    said = [formatEvent(event) for event in logs if event["log_namespace"].endswith("postgres_notices")]
    assert len(said) == 2
    assert "not told" in said[0]
    assert "told again" in said[1]
    assert database.password not in "".join(said)
