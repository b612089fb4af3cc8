"""Connections to a SQLite file: what is set, who may read it, and what is said when it fails."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote

import attrs
from twisted.logger import Logger

from .database import Rows, Transaction
from .store import StoreError, StoreUnavailable
from .threads import Progress

log = Logger()

T = TypeVar("T")

OLDEST = (3, 35, 0)
"""The first version that has RETURNING."""

_SHRINK_PAGES = 256
_SHRINK_STEPS = 32
_CACHE_KIB = 16 * 1024
_WAL_KEPT = 64 * 1024 * 1024
_RETRY = 0.02
_STEPS_A_BEAT = 200_000


@attrs.frozen(kw_only=True)
class Limits:
    """
    Seconds. The contract of a store allows 30 until it has to say that it cannot.

    :ivar busy: that a transaction waits for another process to end its own.
    :ivar silence: that a call waits for its turn, and then for the next sign of progress.
    :ivar close: that closing waits for what still runs.
    :ivar watch: between two looks whether another process has written.
    """

    busy: float = 10.0
    silence: float = 12.0
    close: float = 5.0
    watch: float = 0.5


class _Transaction:
    """Statements on a connection, one after the other, in this thread."""

    def __init__(self, owner: _Connection, connection: sqlite3.Connection, progress: Progress) -> None:
        self._owner = owner
        self._connection = connection
        self._progress = progress

    async def execute(self, statement: str, *parameters: object) -> Rows:
        self._progress.beat()
        try:
            cursor = self._connection.execute(statement, cast("Any", parameters))
            return Rows(cursor.fetchall(), max(0, cursor.rowcount))
        except (sqlite3.Error, OverflowError) as e:
            raise self._owner.in_words(e) from e

    async def compute(self, function: Callable[..., T], *arguments: object) -> T:
        self._progress.beat()
        return function(*arguments)


def _finish(work: Awaitable[T]) -> T:
    """The result of a coroutine that waits for nothing."""
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration as e:
        return cast("T", e.value)
    steps.close()
    raise RuntimeError("a transaction must await nothing but its own statements")


class _Connection:
    """
    One connection for one thread: closed after each failure, and made again for the next call.

    It belongs to the file that had the path when it was made. Where there is another now, or none, SQLite would go on
    writing into the one that was moved away: then it is closed, too.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path = path
        self.limits = limits
        self.connection: sqlite3.Connection | None = None
        self._file: _Identity = None
        self._beside: dict[Path, _Identity] = {}

    def interrupt(self) -> None:
        """From any thread: what runs ends soon."""
        connection = self.connection
        if connection is not None:
            with suppress(sqlite3.ProgrammingError):  # it was closed just now
                connection.interrupt()

    def close(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    @property
    def has_moved(self) -> bool:
        return self._file != _identity(self.path)

    @contextmanager
    def used(self, progress: Progress) -> Iterator[sqlite3.Connection]:
        """
        The connection. It is closed if what it is used for finds the file unavailable.

        :raises StoreError: what SQLite, or the file system at opening, has to say.
        """
        try:
            yield self._get(progress)
        except sqlite3.Error as e:
            told = self.in_words(e)
            if isinstance(told, StoreUnavailable):
                self.close()
            raise told from e
        except StoreUnavailable:
            self.close()
            raise

    def in_words(self, error: sqlite3.Error | OSError | OverflowError) -> StoreError:
        return in_words(error, self.path, self.limits)

    def _get(self, progress: Progress) -> sqlite3.Connection:
        if self.connection is not None and self.has_moved:
            self._leave(self.connection)
        if self.connection is None:
            try:
                self.connection = self._connect()
            except OSError as e:
                raise self.in_words(e) from e
            try:
                self._file = _identity(self.path)
                self._prepare(self.connection, progress)
                self._beside = {path: _identity(path) for path in _beside(self.path)}
            except BaseException:
                self.close()
                raise
        return self.connection

    def _leave(self, connection: sqlite3.Connection) -> None:
        """
        Close the connection to a file that was moved. What is beside the path still belongs to that one: another file
        must not be opened with it.
        """
        log.warn("SQLite: {path} was moved away or replaced; it is opened anew", path=str(self.path))
        with suppress(sqlite3.Error):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        with suppress(OSError), _locked(self.path.parent):
            for path, identity in self._beside.items():
                if identity is not None and _identity(path) == identity:
                    path.unlink()
        self.close()

    def _connect(self) -> sqlite3.Connection:
        raise NotImplementedError

    def _prepare(self, connection: sqlite3.Connection, progress: Progress) -> None:
        raise NotImplementedError

    def _open(self, mode: str, timeout: float) -> sqlite3.Connection:
        # Used by one thread at a time; closed by another only when that one has ended.
        return sqlite3.connect(
            f"file:{quote(str(self.path))}?mode={mode}",
            uri=True,
            timeout=timeout,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )


class Writer(_Connection):
    """
    The connection that writes: it makes the file, sets what is to be set, and brings the schema up to date.

    :ivar migrate: does the latter, with each new connection: the file may be a new one.
    """

    migrate: Callable[[Transaction], Awaitable[None]] | None = None

    def transact(self, work: Callable[[Transaction], Awaitable[T]], progress: Progress) -> T:
        """`Driver.transact`, in this thread."""
        with self.used(progress) as connection:
            result = self._transact(connection, work, progress)
            if self.has_moved:
                raise StoreUnavailable(
                    f"{self.path} was moved away or replaced while it was written to: what was just written is in the "
                    "one that was moved. Nothing needs to be done: it is written again, to the one that is there now"
                )
            return result

    def shrink(self, progress: Progress) -> None:
        """Give free pages back to the file system, up to a bound."""
        with self.used(progress) as connection:
            for _ in range(_SHRINK_STEPS):
                progress.beat()
                if not connection.execute("PRAGMA freelist_count").fetchone()[0]:
                    break
                # It gives back a page a step, and `execute` takes only one of a statement without columns.
                connection.executescript(f"PRAGMA incremental_vacuum({_SHRINK_PAGES})")

    def _transact(
        self, connection: sqlite3.Connection, work: Callable[[Transaction], Awaitable[T]], progress: Progress
    ) -> T:
        self._when_free(lambda: connection.execute("BEGIN IMMEDIATE"), progress)

        def beat() -> int:
            progress.beat()
            return 0

        # A statement that takes long is at work as long as this is called.
        connection.set_progress_handler(beat, _STEPS_A_BEAT)
        try:
            result = _finish(work(_Transaction(self, connection, progress)))
            progress.beat()
            connection.execute("COMMIT")
        except BaseException:
            try:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            except sqlite3.Error:
                self.close()
            raise
        finally:
            if self.connection is not None:
                connection.set_progress_handler(None, 0)
        return result

    def _when_free(self, act: Callable[[], object], progress: Progress) -> None:
        """Wait for other processes here and not in SQLite, which cannot be told to stop."""
        deadline = time.monotonic() + self.limits.busy
        while True:
            progress.beat()
            try:
                act()
                return
            except sqlite3.OperationalError as e:
                if _code(e) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(_RETRY)

    def _connect(self) -> sqlite3.Connection:
        if sqlite3.sqlite_version_info < OLDEST:
            raise StoreError(
                f"This Python has SQLite {sqlite3.sqlite_version}, and {'.'.join(map(str, OLDEST))} or newer is needed "
                "to keep records: use another Python, or a PostgreSQL database (DATABASE_URL)"
            )
        _make_private(self.path)
        return self._open("rw", timeout=0.2)

    def _prepare(self, connection: sqlite3.Connection, progress: Progress) -> None:
        self._when_free(lambda: self._configure(connection), progress)
        if self.migrate is not None:
            self._transact(connection, self.migrate, progress)

    def _configure(self, connection: sqlite3.Connection) -> None:
        # Both take effect only in a file that has nothing in it yet. An exchange takes some 2 KB: of those, a page of
        # 4 KB would hold one.
        connection.execute("PRAGMA page_size = 8192")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StoreUnavailable(
                f"{self.path} cannot be used by several processes at a time (its journal mode is {mode}, not WAL): "
                "the file system may not allow it, as those of a network do not. Set DB_PATH to a local disk"
            )
        for pragma in (
            # What is committed is deleted from the spool next: not even a power cut may take it back.
            "synchronous = FULL",
            f"cache_size = -{_CACHE_KIB}",
            f"journal_size_limit = {_WAL_KEPT}",
            # Nothing of what is stored goes to files elsewhere.
            "temp_store = MEMORY",
            "secure_delete = FAST",
        ):
            connection.execute(f"PRAGMA {pragma}")


class Reader(_Connection):
    """A connection that only reads, beside whatever is written."""

    def read(self, work: Callable[[Transaction], Awaitable[T]], progress: Progress) -> T:
        """`Driver.read`, in this thread."""
        with self.used(progress) as connection:
            connection.execute("BEGIN")
            try:
                return _finish(work(_Transaction(self, connection, progress)))
            finally:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")

    def _connect(self) -> sqlite3.Connection:
        if not self.path.exists():
            raise StoreUnavailable(
                f"there is no SQLite database {self.path}: nothing was recorded there yet, or DB_PATH is to be set to "
                "another"
            )
        # Not even the last of these to be closed removes what is beside the file.
        return self._open("ro", timeout=self.limits.busy)

    def _prepare(self, connection: sqlite3.Connection, progress: Progress) -> None:
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


# -- the file

_Identity = tuple[int, int] | None


def _identity(path: Path) -> _Identity:
    """Which file has a path; ``None`` if none has."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _beside(path: Path) -> tuple[Path, Path]:
    """The write-ahead log of a database, and the index of that."""
    return path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")


def _make_private(path: Path) -> None:
    """
    See to it that there is a file, and that only its owner reads it. What SQLite makes beside it has the same mode.

    A file that is there is not opened for that: closing it would end the locks that SQLite has on it in this process.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            with suppress(PermissionError):  # somebody else's; whoever made it so wants it so
                path.chmod(0o600)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other processes out that do the same."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# -- errors


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary code; 0 if the error is not its own."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


_WORDS: Mapping[int, str] = {
    sqlite3.SQLITE_BUSY: "another process has locked it for more than {busy:g} s: see which one (fuser {path})",
    sqlite3.SQLITE_LOCKED: "it is locked: see which process uses it (fuser {path})",
    sqlite3.SQLITE_FULL: "there is no room for it: make room on its disk",
    sqlite3.SQLITE_IOERR: "the disk fails, is full or is gone ({error}): look at it, and at the system's log",
    sqlite3.SQLITE_CORRUPT: (
        "it is damaged ({error}): move it away with the files beside it, and a new one is made; "
        "what can be read of it, sqlite3 {path} .recover saves"
    ),
    sqlite3.SQLITE_NOTADB: "it is something else: move it away, and a new one is made, or set DB_PATH to another",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: see that its directory is there, and that this user may write in it",
    sqlite3.SQLITE_READONLY: "it cannot be written to: see that this user may, and that its disk is not read-only",
    sqlite3.SQLITE_PERM: "this user may not open it: change its owner or mode",
    sqlite3.SQLITE_NOMEM: "there is no memory left for it",
    sqlite3.SQLITE_INTERRUPT: "it took too long",
    sqlite3.SQLITE_PROTOCOL: "too many processes want its lock at a time",
    sqlite3.SQLITE_SCHEMA: "its tables are being changed",
}


def in_words(error: sqlite3.Error | OSError | OverflowError, path: Path, limits: Limits) -> StoreError:
    """What happened to which file, and what to do. `StoreUnavailable` if it may be otherwise later."""
    name = f"the SQLite database {path} cannot be used"
    if isinstance(error, OSError):
        return StoreUnavailable(
            f"{name}: {error.strerror or error}. See that its directory is there, and that this user may write in it"
        )
    code = _code(error) if isinstance(error, sqlite3.Error) else 0
    if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHORT_READ:
        # It ends before its pages do: somebody cut it, and the disk is well.
        code = sqlite3.SQLITE_CORRUPT
    if (words := _WORDS.get(code)) is not None:
        return StoreUnavailable(f"{name}: {words.format(path=path, error=error, busy=limits.busy)}")
    if isinstance(error, sqlite3.OperationalError) and str(error).startswith("no such table"):
        return StoreUnavailable(
            f"{name}: it has no tables of this program yet ({error}). They come with the next write"
        )
    if isinstance(error, sqlite3.OperationalError) and str(error).startswith("no such module"):
        return StoreError(
            f"{name}: the SQLite of this Python has no full-text search ({error}). Use another Python, or a PostgreSQL "
            "database (DATABASE_URL)"
        )
    return StoreError(f"the SQLite database {path} refused a statement: {error}")
