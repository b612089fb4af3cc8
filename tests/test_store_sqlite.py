"""The store in SQLite: the contract, and what only a file has."""

from __future__ import annotations

import itertools
import os
import re
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests.conversations import Session
from tests.store_contract import (
    BEGIN,
    SECOND,
    StoreContract,
    awaited,
    body_of,
    check_sharing,
    exchange_id,
    ids,
    record,
    rows,
    until,
)
from twisted_proxy.record.database import Rows, Transaction
from twisted_proxy.record.exchange import Instance, Record, Role
from twisted_proxy.record.sql import SqlStore
from twisted_proxy.record.sqlite import Limits, SqliteDriver
from twisted_proxy.record.store import Keep, Query, Retention, StoreError, StoreUnavailable

reactor: Any = installed_reactor

SHORT = Limits(busy=0.1, silence=0.3, close=0.1, watch=0.02)
"""What the tests show is what happens when these are reached."""


class TestSqlite(StoreContract):
    """SQLite keeps the contract."""

    @pytest.fixture
    def new_store(self, tmp_path: Path) -> Callable[[], SqlStore]:
        return lambda: SqlStore(SqliteDriver(reactor, tmp_path / "records.db", Limits(watch=0.02)))


@asynccontextmanager
async def opened(path: Path, limits: Limits | None = None) -> AsyncIterator[SqlStore]:
    store = SqlStore(SqliteDriver(reactor, path, limits))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def modes(directory: Path) -> dict[str, int]:
    """The files of a directory and their modes."""
    return {each.name: stat.S_IMODE(each.stat().st_mode) for each in directory.iterdir()}


def started(work: Coroutine[Deferred[Any], Any, Any]) -> Deferred[Any]:
    return Deferred.fromCoroutine(work)


async def failing(work: Coroutine[Deferred[Any], Any, Any], path: Path, *words: str) -> None:
    """It is unavailable for now; the text names the file, and has these words."""
    with pytest.raises(StoreUnavailable) as raised:
        await work
    for word in (str(path), *words):
        assert word in str(raised.value)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


class TestFile:
    """The file, and what SQLite puts beside it."""

    @pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
    @awaited
    async def test_only_its_owner_reads_it(self, tmp_path: Path, mask: int) -> None:
        """Whatever the umask, from the first moment on; a file that others could read is changed."""
        path = tmp_path / "records.db"
        with umask(mask):
            async with opened(path) as store:
                await store.write([record(1, b"secret" * 100)])
                assert modes(tmp_path) == {"records.db": 0o600, "records.db-wal": 0o600, "records.db-shm": 0o600}
            path.chmod(0o644)
            async with opened(path) as store:
                await store.write([record(2)])
                assert set(modes(tmp_path).values()) == {0o600}

    @awaited
    async def test_an_end_leaves_one_file(self, tmp_path: Path) -> None:
        """When the last process has closed it, all is in the database itself."""
        path = tmp_path / "records.db"
        async with opened(path) as store, opened(path) as other:
            await store.write([record(1)])
            await ids(other, Query())
        assert list(modes(tmp_path)) == ["records.db"]

    @awaited
    async def test_its_settings(self, tmp_path: Path) -> None:
        """It has a write-ahead log, and gives pages back that are free."""
        async with opened(tmp_path / "a file? with #odd %20 name.db") as store:
            assert await rows(store, "PRAGMA journal_mode") == [("wal",)]
            assert await rows(store, "PRAGMA auto_vacuum") == [(2,)]

            def pragma(name: str) -> Callable[[Transaction], Coroutine[Any, Any, Rows]]:
                return lambda transaction: transaction.execute(f"PRAGMA {name}")

            assert (await store._driver.transact(pragma("synchronous"))).first == (2,)
            assert (await store._driver.transact(pragma("temp_store"))).first == (2,)
        assert list(modes(tmp_path)) == ["a file? with #odd %20 name.db"]

    @awaited
    async def test_it_becomes_smaller(self, tmp_path: Path) -> None:
        """What is deleted is given back to the file system, in steps."""
        path = tmp_path / "records.db"
        async with opened(path) as store:
            await store.write([record(number, os.urandom(100_000)) for number in range(60)])
            retention = Retention(bodies=Keep(seconds=0))
            while await store.expire(retention, BEGIN + 1000 * SECOND, limit=7):
                pass
        assert path.stat().st_size < 1_000_000

    @awaited
    async def test_the_index_becomes_smaller(self, tmp_path: Path) -> None:
        """What can no longer be found takes no room, but for what went last."""
        async with opened(tmp_path / "records.db") as store:
            texts = [" ".join(f"{word}x{number % 7}" for word in range(300)) for number in range(300)]
            for start in range(0, 300, 50):
                await store.write([record(n, text=texts[n]) for n in range(start, start + 50)])
            size = "SELECT sum(length(block)) FROM search_data"
            before = (await rows(store, size))[0][0]
            for start in range(0, 300, 10):
                await store.delete([exchange_id(number) for number in range(start, start + 10)])
            assert (await rows(store, size))[0][0] < before / 4

    @awaited
    async def test_tables_of_others_are_left_alone(self, tmp_path: Path) -> None:
        """In a file that has tables of another program, ours are beside them."""
        path = tmp_path / "requests.db"
        theirs = sqlite3.connect(path)
        theirs.execute("CREATE TABLE requests (id TEXT PRIMARY KEY, body TEXT)")
        theirs.execute("INSERT INTO requests VALUES ('a', 'b')")
        theirs.commit()
        theirs.close()
        async with opened(path) as store:
            await store.write([record(1)])
            await store.delete_all()
            assert await rows(store, "SELECT * FROM requests") == [("a", "b")]


class TestOthers:
    """Others who use the file."""

    @awaited
    async def test_the_reactor_goes_on_while_another_process_writes(self, tmp_path: Path) -> None:
        """A write waits its turn; reads do not wait, and the reactor not at all."""
        path = tmp_path / "records.db"
        async with opened(path) as store:
            await store.write([record(1)])
            other = sqlite3.connect(path, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            writing = started(store.write([record(2)]))
            for _ in range(20):
                assert await ids(store, Query()) == [exchange_id(1)]
                await deferLater(reactor, 0.001)
            assert not writing.called
            other.execute("ROLLBACK")
            other.close()
            await writing
            assert await ids(store, Query()) == [exchange_id(2), exchange_id(1)]

    @awaited
    async def test_another_process_does_not_let_go(self, tmp_path: Path) -> None:
        """Then the store says so, with what to do; and works again afterwards."""
        path = tmp_path / "records.db"
        async with opened(path, SHORT) as store:
            other = sqlite3.connect(path, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            await failing(store.write([record(1)]), path, "another process", "fuser")
            await failing(store.delete([exchange_id(1)]), path)
            await failing(store.alive(Instance(id="i", host="h", pid=1, started_at=0), 0), path)
            other.execute("ROLLBACK")
            other.close()
            await store.write([record(1)])
            assert await ids(store, Query()) == [exchange_id(1)]

    @awaited
    async def test_two_processes_write(self, tmp_path: Path) -> None:
        """Bodies that share parts, written by two processes at a time: all there, all shared."""
        path = tmp_path / "records.db"
        turns = list(Session(tool_result=400, tools=3, system=1000).bodies(20))
        async with opened(path) as store:
            process = writer(path)
            try:
                for number, data in enumerate(turns):
                    await store.write([record(number, data)])
                await until(lambda: process.poll() is not None, limit=30.0)
                assert process.returncode == 0
            finally:
                process.kill()
                process.wait()
            for number, data in enumerate(turns):
                assert await body_of(store, number) == data
                assert await body_of(store, 1000 + number) == data
            await check_sharing(store)

    @awaited
    async def test_one_is_killed(self, tmp_path: Path) -> None:
        """Of a process that is killed while it writes, whole batches are there, and nothing else."""
        path = tmp_path / "records.db"
        async with opened(path) as store:
            process = writer(path, "for ever")
            try:
                while await store.count(Query(), at_most=30) < 30:
                    assert process.poll() is None
                    await deferLater(reactor, 0.01)
            finally:
                process.kill()
                process.wait()
            await store.write([record(1, b"mine" * 100)])
            assert await body_of(store, 1) == b"mine" * 100
            await check_sharing(store)
            assert await rows(store, "PRAGMA integrity_check") == [("ok",)]


WRITER = """
import sys
from pathlib import Path
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from tests.conversations import Session
from tests.store_contract import record
from twisted_proxy.record.sql import SqlStore
from twisted_proxy.record.sqlite import SqliteDriver

async def write():
    store = SqlStore(SqliteDriver(reactor, Path(sys.argv[1])))
    await store.open()
    turns = list(Session(tool_result=400, tools=3, system=1000).bodies(20))
    start = 1000
    while True:
        for number, data in enumerate(turns):
            await store.write([record(start + number, data)])
        start += 1000
        if len(sys.argv) < 3:
            break
    await store.close()

failed = []
Deferred.fromCoroutine(write()).addErrback(failed.append).addBoth(lambda _: reactor.callLater(0, reactor.stop))
reactor.run()
sys.exit(str(failed[0]) if failed else 0)
"""


def writer(path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Another process that writes a session of 20 turns; or such sessions, until it is killed."""
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), *arguments], cwd=Path(__file__).parent.parent)


class TestFaults:
    """What goes wrong with a file: it is said, and once it is mended the next call works."""

    @pytest.mark.parametrize("how", ["the disk", "the file"])
    @awaited
    async def test_full(self, tmp_path: Path, how: str) -> None:
        """Nothing of what finds no room is kept; what is there can be read."""
        path = tmp_path / "records.db"
        async with opened(path) as store:
            await store.write([record(1, b"before" * 100)])
            batch = [record(number, os.urandom(200_000)) for number in range(2, 10)]
            with limited(store, path, how):
                for _ in range(2):
                    await failing(store.write(batch), path, "room" if how == "the file" else "disk")
                assert await body_of(store, 1) == b"before" * 100
            await store.write(batch)
            assert len(await ids(store, Query())) == 9
            await check_sharing(store)

    @awaited
    async def test_no_directory(self, tmp_path: Path) -> None:
        """A directory that is missing is not made; when it is there, the store opens."""
        path = tmp_path / "missing" / "records.db"
        store = SqlStore(SqliteDriver(reactor, path, SHORT))
        await failing(store.open(), path, "directory")
        await failing(store.page(Query(), limit=1), path)
        path.parent.mkdir()
        await store.open()
        await store.write([record(1)])
        await store.close()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    @awaited
    async def test_not_allowed(self, tmp_path: Path) -> None:
        """A file of somebody else is told as such."""
        path = tmp_path / "records.db"
        path.touch(0o000)
        store = SqlStore(SqliteDriver(reactor, path, SHORT))
        await failing(store.open(), path, "user")
        await store.close()

    @awaited
    async def test_something_else(self, tmp_path: Path) -> None:
        """A file that is no database is not touched."""
        path = tmp_path / "records.db"
        path.write_bytes(b"This is a letter. " * 1000)
        store = SqlStore(SqliteDriver(reactor, path, SHORT))
        await failing(store.open(), path, "something else", "DB_PATH")
        await failing(store.write([record(1)]), path)
        await failing(store.page(Query(), limit=1), path)
        assert path.read_bytes() == b"This is a letter. " * 1000
        path.unlink()
        await store.open()
        await store.write([record(1)])
        await store.close()

    @pytest.mark.parametrize("where", [0.1, 1, 3])
    @awaited
    async def test_damaged(self, tmp_path: Path, where: float) -> None:
        """A file that is damaged is told as such; once it is moved away, all works with a new one."""
        path = tmp_path / "records.db"
        async with opened(path) as store:
            await store.write([record(number, os.urandom(5000), text=f"text {number}") for number in range(100)])
        data = bytearray(path.read_bytes())
        start = int(4096 * where)
        data[start : start + 60_000] = b"damage" * 10_000
        path.write_bytes(data)
        store = SqlStore(SqliteDriver(reactor, path, SHORT))
        more = [record(number, os.urandom(100), text="more", session="s", chain=b"c") for number in range(200, 300)]
        for _ in range(2):
            await failing(written(store, more), path, "damaged", "move it away")
        path.rename(tmp_path / "damaged.db")
        await store.write([record(200, b"new" * 100)])
        assert await body_of(store, 200) == b"new" * 100
        await store.close()

    @awaited
    async def test_a_damaged_body(self, tmp_path: Path) -> None:
        """One body that is damaged is told as such, and does not keep anything from being deleted."""
        async with opened(tmp_path / "records.db") as store:
            await store.write([record(1, b"x" * 500), record(2, b"y" * 500)])

            async def damage(transaction: Transaction) -> None:
                await transaction.execute("UPDATE bodies SET recipe = ? WHERE size = 500", b"\1junk")

            await store._driver.transact(damage)
            with pytest.raises(StoreError, match="damaged"):
                await body_of(store, 1)
            assert await store.delete_all() == 2

    @pytest.mark.parametrize("what", ["moved", "deleted", "replaced", "copied over"])
    @awaited
    async def test_moved_away(self, tmp_path: Path, what: str) -> None:
        """
        Where another file has the path, or none, that one is used from the next call on; the one that was moved is
        whole, and neither is taken for the other.
        """
        path, moved = tmp_path / "records.db", tmp_path / "moved.db"
        backup = tmp_path / "backup.db"
        async with opened(backup) as store:
            await store.write([record(9, b"backup" * 100)])
        async with opened(path, SHORT) as store, opened(path, SHORT) as other:
            await store.write([record(1, b"first" * 100)])
            assert await body_of(other, 1) == b"first" * 100
            await other.write([record(2, b"second" * 100)])
            if what == "deleted":
                path.unlink()
            else:
                path.rename(moved)
            if what == "replaced":
                backup.rename(path)
            elif what == "copied over":
                shutil.copy(backup, path)
            else:
                await failing(other.page(Query(), limit=1), path)
            there = [exchange_id(9)] if path.exists() else []
            for number, each in ((3, other), (4, store), (5, other)):
                await each.write([record(number, b"third" * 100)])
            for each in (store, other):
                assert await ids(each, Query()) == sorted(there + [exchange_id(n) for n in (3, 4, 5)], reverse=True)
                assert await body_of(each, 3) == b"third" * 100
                await check_sharing(each)
                assert await rows(each, "PRAGMA integrity_check") == [("ok",)]
        async with opened(path) as store:
            assert await ids(store, Query()) == sorted(there + [exchange_id(n) for n in (3, 4, 5)], reverse=True)
            assert await rows(store, "PRAGMA integrity_check") == [("ok",)]
        if what != "deleted":
            async with opened(moved) as store:
                assert await ids(store, Query()) == [exchange_id(2), exchange_id(1)]
                assert await rows(store, "PRAGMA integrity_check") == [("ok",)]

    @awaited
    async def test_moved_while_it_is_written_to(self, tmp_path: Path) -> None:
        """A write to a file that no longer has the path is not taken for done."""
        path = tmp_path / "records.db"
        async with opened(path) as store:

            async def work(transaction: Transaction) -> None:
                await transaction.compute(path.rename, tmp_path / "moved.db")
                await transaction.execute("UPDATE totals SET revision = revision + 1")

            await failing(store._driver.transact(work), path, "moved away")
            await store.write([record(1)])
            assert await ids(store, Query()) == [exchange_id(1)]

    @awaited
    async def test_a_disk_that_hangs(self, tmp_path: Path) -> None:
        """A call that gets no answer ends, and those behind it; what it was about is not done later either."""
        path = tmp_path / "records.db"
        hanging = threading.Event()
        async with opened(path, SHORT) as store:

            async def work(transaction: Transaction) -> None:
                await transaction.execute("UPDATE totals SET revision = revision + 1000")
                await transaction.compute(hanging.wait, 30)

            first = started(store._driver.transact(work))
            second = started(store.write([record(1)]))
            for each, words in ((first, "does not end"), (second, "others come first")):
                with pytest.raises(StoreUnavailable, match=words):
                    await each
            assert await ids(store, Query()) == []
            hanging.set()
            await store.write([record(2)])
            assert await ids(store, Query()) == [exchange_id(2)]
            assert (await rows(store, "SELECT revision FROM totals"))[0][0] < 1000

    @awaited
    async def test_closing_does_not_wait_for_a_disk_that_hangs(self, tmp_path: Path) -> None:
        """It ends all the same; who waits for an answer is told, and who asks later."""
        path = tmp_path / "records.db"
        hanging = threading.Event()
        store = SqlStore(SqliteDriver(reactor, path, Limits(close=0.05)))
        await store.open()

        async def work(transaction: Transaction) -> None:
            await transaction.compute(hanging.wait, 30)

        first = started(store._driver.transact(work))
        second = started(store.write([record(1)]))
        await deferLater(reactor, 0.01)
        await store.close()
        await failing(store.write([record(1)]), path, "closed")
        for each in (first, second):
            with pytest.raises(StoreUnavailable, match="closed"):
                await each
        hanging.set()
        await store.open()
        await store.write([record(1)])
        await store.close()

    @awaited
    async def test_a_long_statement_is_not_a_silent_one(self, tmp_path: Path) -> None:
        """What takes longer than the limit, but goes on, is not given up."""
        async with opened(tmp_path / "records.db", Limits(silence=0.5)) as store:

            async def work(transaction: Transaction) -> Rows:
                return await transaction.execute(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) "
                    "SELECT max(i) FROM n"
                )

            assert (await store._driver.transact(work)).first == (3_000_000,)

    @awaited
    async def test_a_transaction_waits_for_itself_alone(self, tmp_path: Path) -> None:
        """One that waits for something else is a mistake in the program, told as such; nothing of it is done."""
        async with opened(tmp_path / "records.db") as store:

            async def work(transaction: Transaction) -> None:
                await transaction.execute("UPDATE totals SET revision = 1000")
                await Deferred()

            with pytest.raises(RuntimeError, match="await"):
                await store._driver.transact(work)
            assert (await rows(store, "SELECT revision FROM totals"))[0][0] < 1000

    @awaited
    async def test_an_error_in_a_transaction(self, tmp_path: Path) -> None:
        """It is handed on as it is, and nothing was done; a mistake in a statement is no outage."""
        async with opened(tmp_path / "records.db") as store:

            async def work(transaction: Transaction) -> None:
                await transaction.execute("UPDATE totals SET revision = 1000")
                raise LookupError("mine")

            with pytest.raises(LookupError, match="mine"):
                await store._driver.transact(work)
            assert (await rows(store, "SELECT revision FROM totals"))[0][0] < 1000
            with pytest.raises(StoreError) as raised:
                await rows(store, "SELECT nonsense FROM totals")
            assert not isinstance(raised.value, StoreUnavailable)


async def written(store: SqlStore, batch: list[Record]) -> None:
    await store.open()
    await store.write(batch)


@contextmanager
def limited(store: SqlStore, path: Path, how: str) -> Iterator[None]:
    """No room for more."""
    if how == "the disk":
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    driver: Any = store._driver
    configure = driver._writer._configure

    def configure_small(connection: sqlite3.Connection) -> None:
        configure(connection)
        connection.execute("PRAGMA max_page_count = 100")

    driver._writer.close()
    driver._writer._configure = configure_small
    yield
    driver._writer.close()
    driver._writer._configure = configure


@attrs.frozen
class Noting:
    """A transaction whose statements are noted."""

    transaction: Transaction
    asked: list[tuple[str, tuple[object, ...]]]

    async def execute(self, statement: str, *parameters: object) -> Rows:
        self.asked.append((statement, parameters))
        return await self.transaction.execute(statement, *parameters)

    async def compute(self, function: Callable[..., Any], *arguments: object) -> Any:
        return await self.transaction.compute(function, *arguments)


class TestPlans:
    """The way to exchanges, as SQLite tells it: never past all rows, and never sorted but a few."""

    @awaited
    async def test_no_filter_goes_through_the_rows(self, tmp_path: Path) -> None:
        """Each filter, and each two: an index has all that it needs."""
        values: dict[str, Any] = {
            "text": "word",
            "since": BEGIN,
            "until": BEGIN + SECOND,
            "model": "m0",
            "session": "s0",
            "agent": "a",
            "conversation": "c",
            "request_class": "main",
            "status": 200,
            "verdict": "complete",
            "in_flight": False,
            "path": "/v1/messages",
            "cost_at_least": 1,
            "cost_at_most": 9,
        }
        async with opened(tmp_path / "records.db") as store:
            many = [record(n, model="m0", session="s0", status=200, cost_nanousd=5, text="word") for n in range(600)]
            for start in range(0, 600, 100):
                await store.write(many[start : start + 100])
            await store.write([record(601, agent="a", conversation="c", request_class="main", model="m1")])
            asked: list[tuple[str, tuple[object, ...]]] = []
            execute = store._driver.read

            async def read(work: Any) -> Any:
                async def noted(transaction: Transaction) -> Any:
                    return await work(Noting(transaction, asked))

                return await execute(noted)

            monkey: Any = store._driver
            monkey.read = read
            for names in [(), *itertools.combinations(values, 1), *itertools.combinations(values, 2)]:
                query = Query(**{name: values[name] for name in names})
                await store.page(query, limit=50, before=exchange_id(590))
                await store.count(query, at_most=100)
            await store.get(exchange_id(1))
            await store.conversation("c")
            await store.turns_at([b"chain"])
            await store.turn_of_message("m")
            await store.latest_turn("s0", None, exchange_id(5))
            await store.latest_turn("s0", "a", exchange_id(5))
            await store.followers(exchange_id(5))
            await store.body(exchange_id(5), Role.REQUEST)
            await store.snippet(exchange_id(5), "word")
            del monkey.read
            assert len(asked) > 400
            for statement, parameters in dict(asked).items():
                plan = await rows(store, f"EXPLAIN QUERY PLAN {statement}", *parameters)
                for *_, detail in plan:
                    assert not re.search(r"SCAN exchanges(?! USING COVERING INDEX exchanges_filters)", detail), (
                        statement
                    )
                    assert "SCAN parts" not in detail
                    assert "SCAN bodies" not in detail
                    if "TEMP B-TREE" in detail:
                        # Few are left: the store has looked.
                        assert "exchanges_cost" in str(plan), (statement, plan)
