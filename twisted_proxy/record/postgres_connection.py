"""
One connection to PostgreSQL, through txpostgres and in the reactor's thread.

What txpostgres is not asked to do: its pool does not recover from a server that restarts, its reconnecting hides what
a transaction has to know, and cancelling its Deferreds raises out of ``cancel()``. A connection of ours is made, used
by one transaction at a time, and thrown away at the first sign of trouble, its socket closed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar

import attrs
import psycopg2
from psycopg2 import extensions
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IReactorFDSet, IReactorPluggableNameResolver, IReactorTime
from twisted.python.failure import Failure
from txpostgres import txpostgres

from .postgres_address import Address, Place, look_up
from .store import StoreError, StoreUnavailable
from .threads import Clock

T = TypeVar("T")

SHOWN = 300
"""Characters of an error's own text that a message repeats."""


class Reactor(Clock, IReactorFDSet, IReactorPluggableNameResolver):
    """What of a reactor is needed. Every one for sockets is all of these."""


# What went wrong

_RECORDS_OWN_FAULT = ("21", "22", "23", "54", "XX000")
"""
Beginnings of SQLSTATEs that the same statement meets again whenever it is asked: its values are not taken. All others
are the server's state. https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

_SHOWING_VALUES = ("21", "22", "23", "42601", "54", "XX000")
"""Beginnings of SQLSTATEs whose texts may show what was to be stored."""

_TRY_AGAIN = {"40001", "40P01"}
"""A serialization failure, a deadlock: nothing was done, and doing it again is the remedy."""

_ADVICE = {
    "08": "Check the network and the server.",
    "25006": "It is a standby, or was made read-only: name the primary in DATABASE_URL, or make room there.",
    "28": "Check user and password in DATABASE_URL, and the server's pg_hba.conf.",
    "3D": "Create the database, or name another in DATABASE_URL.",
    "42501": "Grant DATABASE_URL's user what it lacks.",
    "42P01": "claude-proxy makes its tables when it starts; where somebody removed one, restore it.",
    "53100": "Make room on the server's disk.",
    "53300": "Raise max_connections, or let fewer clients in: a proxy takes up to 5 connections.",
    "55P03": "Another transaction holds what it needs; if that stays so, look for it in pg_stat_activity.",
    "57014": "The server is slow or busy; if that stays so, look at pg_stat_activity.",
    "58": "Look at the server's log.",
    "XX": "Look at the server's log.",
}
"""By the beginning of the SQLSTATE."""

_CHECK = "Check that the server runs, and what DATABASE_URL says."


class Lost(Exception):
    """The connection has gone, or was given up."""


def again(error: BaseException) -> bool:
    """Whether the transaction may succeed when it is simply done again."""
    return isinstance(error, psycopg2.Error) and error.pgcode in _TRY_AGAIN


def _text(error: BaseException, address: Address) -> str:
    """What an error says, in one line, without the password whoever repeats it, and without what was to be stored."""
    code = (error.pgcode or "") if isinstance(error, psycopg2.Error) else ""
    if code.startswith(_SHOWING_VALUES):
        return type(error).__name__
    diagnosis = getattr(error, "diag", None)
    # Not the details: they show rows.
    primary = getattr(diagnosis, "message_primary", None) or str(error) or type(error).__name__
    text = primary.strip().partition("\n")[0]
    if address.password:
        text = text.replace(address.password, "…")
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def in_words(error: BaseException, address: Address) -> StoreError:
    """What a person is to read about an error of psycopg2 or of a connection."""
    if isinstance(error, StoreError):
        return error
    text = _text(error, address)
    code = (error.pgcode or "") if isinstance(error, psycopg2.Error) else ""
    unsent = isinstance(error, (ValueError, psycopg2.ProgrammingError)) and not code
    if unsent or code.startswith(_RECORDS_OWN_FAULT):
        return StoreError(f"{address.name} refused what was to be stored: {text} (SQLSTATE {code or 'none'}).")
    advice = next((_ADVICE[code[:size]] for size in (5, 2) if code[:size] in _ADVICE), _CHECK)
    state = f" (SQLSTATE {code})" if code else ""
    return StoreUnavailable(f"{address.name} cannot be used: {text.rstrip('.')}{state}. {advice}")


# Time


class Patience(Generic[T]):
    """
    Waits for something, as long as there are signs of life.

    Nothing is cancelled: what is waited for is made to end, and what it says after that is dropped.

    :param seconds: without a sign, after which it gives up.
    :param error: is what the waiting ends with then.
    :param end: makes that end which is waited for.
    """

    def __init__(self, clock: IReactorTime, seconds: float, error: Exception, end: Callable[[], None]) -> None:
        self._seconds = seconds
        self._end = end
        self._result: Deferred[T] | None = Deferred()
        self._timer = clock.callLater(seconds, self._expire, error)

    def _expire(self, error: Exception) -> None:
        result, self._result = self._result, None
        assert result is not None
        self._end()
        result.errback(error)

    def sign(self) -> None:
        """There was one."""
        if self._timer.active():
            self._timer.reset(self._seconds)

    def give_up(self, error: Exception) -> None:
        """Now; nothing if it is over."""
        if self._timer.active():
            self._timer.cancel()
            self._expire(error)

    def wait(self, work: Coroutine[Any, Any, T]) -> Deferred[T]:
        """What ``work`` gives. Once."""
        result = self._result
        assert result is not None

        def settle(outcome: T | Failure) -> None:
            if self._timer.active():
                self._timer.cancel()
                result.callback(outcome)

        Deferred.fromCoroutine(work).addBoth(settle)
        return result


# Statements


@lru_cache(maxsize=512)
def placeholders(statement: str) -> str:
    """A statement with ``?`` for its parameters as psycopg2 writes it."""
    return statement.replace("?", "%s")


def _bytes(value: str | None, cursor: object) -> bytes | None:
    view = psycopg2.BINARY(value, cursor)
    return None if view is None else bytes(view)


_BYTEA = extensions.new_type(psycopg2.BINARY.values, "BYTEA", _bytes)


@attrs.frozen
class Answer:
    """What a statement gave: its rows, and how many it concerned."""

    rows: Sequence[tuple[Any, ...]]
    count: int


def _as_it_is(self: object, failure: Failure) -> Failure:
    """In place of what makes a server's own "query canceled", for one that took too long, a `CancelledError`."""
    return failure


class _Cursor(txpostgres.Cursor):  # type: ignore[misc] # it is not typed
    """One statement, under way."""

    _handleCancellation = _as_it_is

    def doRead(self) -> None:
        self._connection.moved()
        super().doRead()

    def doWrite(self) -> None:
        self._connection.moved()
        super().doWrite()


class Connection(txpostgres.Connection):  # type: ignore[misc] # it is not typed
    """
    connecting → open → closed; once closed it stays so.

    :ivar lost: called once, when it closes, whoever closed it.
    :ivar notified: called with the payload of each notice that comes.
    :ivar moving: called whenever a part of a statement has gone out, or something of an answer has come.
    :ivar why: it is closed; ``None`` while it is not.
    """

    cursorFactory = _Cursor
    _handleCancellation = _as_it_is

    def __init__(self, reactor: Reactor) -> None:
        super().__init__(reactor)
        self.lost: Callable[[], None] | None = None
        self.notified: Callable[[str], None] | None = None
        self.moving: Callable[[], None] | None = None
        self.why: str | None = None

    @property
    def usable(self) -> bool:
        return self.why is None and self._connection is not None and not self._connection.closed

    async def enter(self, address: Address, place: Place) -> None:
        """Connect and log in. Takes as long as the server does: see to a limit."""
        where = {"host": place.host, "hostaddr": place.hostaddr, "port": place.port}
        if self.why is not None:
            raise Lost(self.why)
        try:
            await self.connect(**address.parameters, **{name: value for name, value in where.items() if value})
        except BaseException:
            self.drop()
            raise
        if self.why is not None:
            raise Lost(self.why)
        extensions.register_type(_BYTEA, self._connection)

    async def execute(self, statement: str, parameters: Sequence[object] | None = None) -> Answer:
        """
        One statement, as psycopg2 writes them; without parameters it may be several with semicolons.

        :raises psycopg2.Error: it failed. :attr:`usable` tells whether the connection did.
        :raises Lost: the connection did.
        """
        if not self.usable:
            raise Lost(self.why or "the connection is closed")
        cursor = self.cursor()
        try:
            await cursor.execute(statement, parameters)
            rows = cursor.fetchall() if cursor.description else []
            return Answer(rows, max(cursor.rowcount, 0))
        except ConnectionAborted:
            raise Lost(self.why or "the connection was closed while it waited for an answer") from None
        finally:
            cursor.close()

    def drop(self, why: str = "the connection was given up") -> None:
        """
        Close it at once, whatever it is doing, and without waiting for anybody. Idempotent.

        Whoever waits for an answer gets `Lost`.
        """
        if self.why is not None:
            return
        self.why = why
        if self._connection is not None:
            # The reactor knows the socket by its number, which the next connection may get: nothing of this one may
            # stay registered. txpostgres forgets its cursors, and a connection that psycopg2 has found dead.
            for each in (*self._cursors, self):
                self.reactor.removeReader(each)
                self.reactor.removeWriter(each)
            self._connection.close()
            for each in (*self._cursors, self):
                txpostgres._PollingMixin.connectionLost(each, Failure(ConnectionAborted()))
        if self.lost is not None:
            self.lost()

    def _drop_without_socket(self) -> None:
        """
        To be called before txpostgres goes on to watch a connection.

        Where the server hangs up on a login, libpq has closed the socket; psycopg2 does not call that closed.
        """
        if not self._connection.closed and self._connection.fileno() < 0:
            self.drop("the server has closed the connection")

    def moved(self) -> None:
        if self.moving is not None:
            self.moving()

    # txpostgres and the reactor call these

    def doRead(self) -> None:
        # Nobody waits: a notice, or the end. The latter is an exception, which the reactor would log as a bug.
        try:
            super().doRead()
        except psycopg2.Error as error:
            # Why the server ends a connection that waits for nothing, it says in a notice.
            last = [notice for notice in self._connection.notices if notice.startswith("FATAL")][-1:]
            self.drop((last or [str(error)])[0] or "the server has closed the connection")

    def connectionLost(self, reason: Failure) -> None:
        # While one waits for an answer, the connection is asked what the matter is, which may be no more than that it
        # logs in another way.
        super().connectionLost(reason)
        if self._connection.closed or not (self._pollingD or self._cursors):
            self.drop("the server has closed the connection")

    def cursorFinished(self, cursor: _Cursor) -> None:
        self._drop_without_socket()
        super().cursorFinished(cursor)

    def checkForNotifies(self) -> None:
        self._drop_without_socket()
        if self._connection.closed:
            self.drop("the server has closed the connection")
            return
        notices, self._connection.notifies[:] = list(self._connection.notifies), []
        for notice in notices:
            if self.notified is not None:
                self.notified(notice.payload)


async def connect(
    reactor: Reactor,
    address: Address,
    seconds: float,
    made: Callable[[Connection], None],
) -> Connection:
    """
    Enter the first place that lets us in.

    :param seconds: to look names up, and again as many for all places together.
    :param made: is told of each connection before it is tried, so that it can be dropped. What it raises ends it all.
    :raises StoreUnavailable: none does. The text says of each why not.
    """
    unknown = StoreUnavailable(
        f"{address.name} cannot be reached: looking its host up took more than {seconds:g} s. Check the name servers."
    )
    places = await Patience[list[Place]](reactor, seconds, unknown, lambda: None).wait(look_up(reactor, address.places))
    if not places:
        raise StoreUnavailable(f"{address.name} cannot be reached: no name server knows its host. {_CHECK}")
    each = seconds / len(places)
    problems = []
    for place in places:
        connection = Connection(reactor)
        made(connection)
        slow = TimeoutError(f"no answer within {each:g} s")
        try:
            await Patience[None](reactor, each, slow, connection.drop).wait(connection.enter(address, place))
        except (psycopg2.Error, Lost, TimeoutError) as error:
            problems.append(f"{place}: {_text(error, address).rstrip('.')}")
        else:
            return connection
    raise StoreUnavailable(f"{address.name} cannot be reached: {'; '.join(dict.fromkeys(problems))}. {_CHECK}")
