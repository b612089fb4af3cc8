"""Records in SQLite: a file beside the program, one thread that writes, and a few that read."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from .bodies import chunks
from .database import Dialect, Phrases, Transaction, Words
from .sqlite_connection import Limits, Reader, Writer
from .store import StoreError, StoreUnavailable
from .threads import Clock, Closed, Crew, Late, Progress

__all__ = ["Limits", "SqliteDialect", "SqliteDriver"]

T = TypeVar("T")

READERS = 2

_INDEXES = {
    column: f"exchanges_{column}"
    for column in (
        "verdict",
        "status",
        "model",
        "routed_model",
        "session",
        "agent",
        "conversation",
        "request_class",
        "path",
    )
} | {"cost_nanousd": "exchanges_cost", "number": "exchanges_filters"}

_SEEN_AT_ONCE = 1000


class SqliteDialect:
    """How SQLite says it, with FTS5."""

    name = "sqlite"
    for_update = ""
    match_condition = "search MATCH ?"
    gather = "json_group_array"
    indexes: Mapping[str, str] = _INDEXES

    def source(self, *, search: bool, index: str | None) -> tuple[str, str]:
        # Its planner knows averages only, and nothing of how often a word occurs: the way is prescribed. CROSS JOIN
        # keeps the order of the tables. https://www.sqlite.org/optoverview.html#manual_control_of_query_plans_using_cross_join
        if not search:
            return f"exchanges INDEXED BY {index or self.indexes['number']}", "exchanges.number"
        if index is not None:
            source = f"exchanges INDEXED BY {index} CROSS JOIN search ON search.rowid = exchanges.number"
            return source, "exchanges.number"
        source = "search CROSS JOIN exchanges INDEXED BY exchanges_filters ON exchanges.number = search.rowid"
        return source, "search.rowid"

    def match(self, phrases: Phrases) -> str:
        # Words are letters and digits: nothing in a string needs to be escaped. A blank means AND.
        return " ".join(f'"{" ".join(phrase)}"' for phrase in phrases)

    async def index(self, transaction: Transaction, documents: Sequence[Words]) -> None:
        for document in documents:
            await transaction.execute(
                "INSERT INTO search (rowid, words) VALUES (?, ?)", document.number, " ".join(document.words)
            )

    async def unindex(self, transaction: Transaction, documents: Sequence[Words]) -> None:
        # The index does not keep what it indexes, so it has to be told again.
        # https://www.sqlite.org/fts5.html#the_delete_command
        for document in documents:
            await transaction.execute(
                "INSERT INTO search (search, rowid, words) VALUES ('delete', ?, ?)",
                document.number,
                " ".join(document.words),
            )
        # What was taken out takes room until the parts of the index that have it are merged: a page for each keeps up.
        # https://www.sqlite.org/fts5.html#the_merge_command
        if documents:
            await transaction.execute("INSERT INTO search (search, rank) VALUES ('merge', ?)", -len(documents))

    async def announce(self, transaction: Transaction, exchange_ids: Sequence[str]) -> None:
        """Nothing to do: whoever watches looks at ``exchanges.revision``."""


class SqliteDriver:
    """
    The way to one file.

    :param path: absolute; the file is made if it is not there, for its owner only. Its directory is not.
    """

    def __init__(self, clock: Clock, path: Path, limits: Limits | None = None) -> None:
        self.dialect: Dialect = SqliteDialect()
        self.label = f"the SQLite database {path}"
        self._clock = clock
        self._path = path
        self._limits = limits or Limits()
        self._open_crews()

    def _open_crews(self) -> None:
        silence = self._limits.silence
        self._closed = False
        self._writer = Writer(self._path, self._limits)
        self._writing = Crew(self._clock, "sqlite-write", limit=silence)
        self._readers = [Reader(self._path, self._limits) for _ in range(READERS)]
        self._free = list(self._readers)
        self._reading = Crew(self._clock, "sqlite-read", size=READERS, limit=silence)
        self._computing = Crew(self._clock, "sqlite-compute")
        self._watchers: list[_Watcher] = []

    async def open(self, migrate: Callable[[Transaction], Awaitable[None]]) -> None:
        if self._closed:
            self._open_crews()
        self._writer.migrate = migrate

        async def nothing(transaction: Transaction) -> None:
            await transaction.execute("SELECT 1")

        # With each new connection the schema is brought up to date: the file may be a new one.
        await self.transact(nothing)

    async def transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        return await self._wait(self._writing.run(partial(self._writer.transact, work), on_late=self._writer.interrupt))

    async def read(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        using: list[Reader] = []

        def read(progress: Progress) -> T:
            # As many readers as threads: there is always one. Taking from a list is atomic.
            reader = self._free.pop()
            using.append(reader)
            try:
                return reader.read(work, progress)
            finally:
                self._free.append(reader)

        return await self._wait(self._reading.run(read, on_late=lambda: using[0].interrupt() if using else None))

    async def compute(self, function: Callable[..., T], *arguments: object) -> T:
        return await self._wait(self._computing.run(lambda progress: function(*arguments)))

    async def shrink(self) -> None:
        await self._wait(self._writing.run(self._writer.shrink, on_late=self._writer.interrupt))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        wait = self._limits.close
        closing = [watcher.stop(wait) for watcher in self._watchers]
        closing += [crew.close(wait) for crew in (self._computing, self._reading, self._writing)]
        for closed in closing:
            await closed
        if not self._reading.threads:
            for reader in self._readers:
                reader.close()
        if not self._writing.threads:
            # The last one to close the file empties the write-ahead log.
            self._writer.close()

    def watch(self, notice: Callable[[Sequence[str]], None]) -> Callable[[], None]:
        watcher = _Watcher(self._clock, Reader(self._path, self._limits), notice, self._limits.watch)
        self._watchers.append(watcher)

        def stop() -> None:
            watcher.stop(self._limits.close)
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return stop

    async def _wait(self, done: Deferred[T]) -> T:
        try:
            return await done
        except Late as e:
            raise StoreUnavailable(
                f"{self._path} has not answered for {self._limits.silence:g} s "
                f"({'a statement does not end' if e.begun else 'others come first'}): look at the disk's load"
            ) from e
        except Closed as e:
            raise StoreUnavailable(f"{self._path} was closed") from e


class _Watcher:
    """Looks for what was written, in a thread of its own, until it is stopped."""

    def __init__(self, clock: Clock, reader: Reader, notice: Callable[[Sequence[str]], None], interval: float) -> None:
        self._clock = clock
        self._reader = reader
        self._notice = notice
        self._interval = interval
        self._stopped = threading.Event()
        self._version: int | None = None
        self._revision: int | None = None
        self._crew = Crew(clock, "sqlite-watch")
        self._crew.run(self._watch).addErrback(_ignore_end)

    def stop(self, wait: float) -> Deferred[None]:
        """Fires when it has stopped, or after ``wait`` seconds."""
        self._stopped.set()
        return self._crew.close(wait)

    def _watch(self, progress: Progress) -> None:
        while not self._stopped.is_set():
            with suppress(StoreError):  # whoever reads or writes is told why; here there is nothing to tell
                self._look(progress)
            self._stopped.wait(self._interval)
        self._reader.close()

    def _look(self, progress: Progress) -> None:
        before = self._reader.connection
        with self._reader.used(progress) as connection:
            # Changes when another connection has committed, of this process or of another.
            version = connection.execute("PRAGMA data_version").fetchone()[0]
            if connection is before and version == self._version:
                return
            self._version = version
            revision = connection.execute("SELECT revision FROM totals").fetchone()[0]
            if self._revision is None or revision < self._revision:
                self._revision = revision  # a new watcher, or a new file
                return
            rows = connection.execute(
                "SELECT id FROM exchanges WHERE revision > ? AND revision <= ? ORDER BY revision",
                (self._revision, revision),
            ).fetchall()
            self._revision = revision
        for some in chunks([row[0] for row in rows], _SEEN_AT_ONCE):
            self._clock.callFromThread(self._tell, some)

    def _tell(self, exchange_ids: Sequence[str]) -> None:
        if not self._stopped.is_set():
            self._notice(exchange_ids)


def _ignore_end(failure: Failure) -> None:
    failure.trap(Closed)
