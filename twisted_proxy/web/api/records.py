"""The store as the dashboard has it: opened when it is first asked, and again after it failed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ...record.sql import SqlStore
from ...record.store import SchemaTooNew, StoreError, StoreUnavailable
from ...runtime import Waiters
from .calls import Refusal

log = Logger()

T = TypeVar("T")

RETRY_AFTER = 5.0
"""Seconds for which a store that could not be opened is not tried again."""

MOST_AT_ONCE = 64
"""Questions that wait for the store; who comes then is told to come again."""


class Records:
    """
    What is recorded, to be read.

    :param make: makes the store; ``None`` where nothing is recorded.
    """

    def __init__(self, clock: IReactorTime, make: Callable[[], SqlStore] | None) -> None:
        self._clock = clock
        self._make = make
        self._store: SqlStore | None = None
        self._opening = False
        self._opened = Waiters()
        self._problem: StoreError | None = None
        self._not_before = 0.0
        self._asking = 0
        self._closed = False

    async def ask(self, question: Callable[[SqlStore], Awaitable[T]]) -> T:
        """
        What the store answers.

        :raises Refusal: 503, with words: nothing is recorded, or the store does not answer now.
        """
        if self._asking >= MOST_AT_ONCE:
            raise Refusal(503, "Too many questions wait for the records. Ask again.", {"Retry-After": "1"})
        self._asking += 1
        try:
            store = await self._ready()
            return await question(store)
        except StoreError as problem:
            raise _unavailable(problem) from None
        finally:
            self._asking -= 1

    async def _ready(self) -> SqlStore:
        if self._make is None:
            raise Refusal(503, "Nothing is recorded (RECORD=off), so that there is nothing to show.")
        tried = self._problem is not None and self._clock.seconds() < self._not_before
        if self._store is None and not self._opening and not self._closed and not tried:
            self._opening = True
            # On its own: whoever asked first may leave.
            Deferred.fromCoroutine(self._open(self._make)).addErrback(self._unforeseen)
        while self._opening:
            await self._opened.wait()
        if self._closed:
            raise Refusal(503, "The proxy is shutting down.", {"Retry-After": "5"})
        if self._store is None:
            assert self._problem is not None
            raise self._problem
        return self._store

    def _unforeseen(self, failure: Failure) -> None:
        log.failure("opening the records for the dashboard failed", failure)

    async def _open(self, make: Callable[[], SqlStore]) -> None:
        # In case of what nobody has foreseen.
        self._problem = StoreUnavailable("the store could not be opened; the log says more")
        self._not_before = self._clock.seconds() + RETRY_AFTER
        store = make()
        try:
            await store.open()
        except StoreError as problem:
            self._problem = problem
            log.warn("the dashboard cannot open the records: {problem}", problem=str(problem))
            await store.close()
        else:
            self._problem = None
            if self._closed:
                await store.close()
            else:
                self._store = store
        finally:
            self._opening = False
            self._opened.fire()

    async def close(self) -> None:
        """Let go of the store."""
        self._closed = True
        store, self._store = self._store, None
        if store is not None:
            await store.close()

    def ask_later(self, question: Callable[[SqlStore], Awaitable[T]]) -> Deferred[T]:
        """The same, from where nobody can wait."""
        return Deferred.fromCoroutine(self.ask(question))


def _unavailable(problem: StoreError) -> Refusal:
    if isinstance(problem, SchemaTooNew):
        return Refusal(503, f"The records cannot be read: {problem}")
    if isinstance(problem, StoreUnavailable):
        return Refusal(503, f"The records cannot be read now: {problem}", {"Retry-After": "5"})
    return Refusal(503, f"This cannot be read: {problem}")
