"""What others record: NOTIFY, and a connection that LISTENs as long as somebody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import psycopg2
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from .postgres_address import Address
from .postgres_connection import Connection, Lost, Patience, Reactor, connect, in_words
from .store import StoreError, StoreUnavailable

log = Logger()

CHANNEL = "claude_proxy_exchanges"
"""What is notified of exchanges that were written: their ids, parted by blanks."""

PAYLOAD = 7999
"""Bytes of one notice at most. https://www.postgresql.org/docs/current/sql-notify.html"""


def payloads(exchange_ids: Sequence[str]) -> Iterator[str]:
    """The notices for these ids, as few as there can be."""
    waiting: list[str] = []
    size = 0
    for exchange_id in exchange_ids:
        if waiting and size + len(exchange_id) > PAYLOAD:
            yield " ".join(waiting)
            waiting, size = [], 0
        waiting.append(exchange_id)
        size += len(exchange_id) + 1
    if waiting:
        yield " ".join(waiting)


class Notices:
    """
    idle → connecting ⇄ (listening | pausing) → idle.

    Listens while there is a watcher. A connection that is lost is made again; what is notified meanwhile is missed.

    :param connect: seconds to make a connection.
    :param silence: seconds that the server has to begin.
    :param pauses: the shortest and the longest pause between attempts, in seconds.
    """

    def __init__(
        self, reactor: Reactor, address: Address, *, connect: float, silence: float, pauses: tuple[float, float]
    ) -> None:
        self._reactor = reactor
        self._address = address
        self._connect = connect
        self._silence = silence
        self._pauses = pauses
        self._watchers: dict[object, Callable[[Sequence[str]], None]] = {}
        self._running = False
        self._connection: Connection | None = None
        self._pause: Deferred[None] | None = None

    def watch(self, notice: Callable[[Sequence[str]], None]) -> Callable[[], None]:
        """Call ``notice`` with the ids of each notice, until what this returns is called."""
        key = object()
        self._watchers[key] = notice
        if not self._running:
            self._running = True
            Deferred.fromCoroutine(self._run()).addErrback(self._failed)

        def end() -> None:
            self._watchers.pop(key, None)
            if not self._watchers:
                self._stop()

        return end

    def close(self) -> None:
        """Nobody watches any more."""
        self._watchers.clear()
        self._stop()

    def _stop(self) -> None:
        self._drop()
        if self._pause is not None:
            self._pause.cancel()

    def _failed(self, failure: Failure) -> None:
        self._running = False
        log.failure("listening for what others record has ended by a mistake of ours", failure)

    async def _run(self) -> None:
        shortest, longest = self._pauses
        pause = shortest
        lost_before = False
        while self._watchers:
            gone: Deferred[None] = Deferred()
            try:
                await self._listen(gone)
            except StoreError as error:
                problem = str(error)
            else:
                if lost_before:
                    log.info("{store}: told again what others record", store=self._address.name)
                pause, lost_before = shortest, False
                await gone
                problem = str(in_words(Lost(self._why()), self._address))
            if not self._watchers:
                break
            if not lost_before:
                log.warn("not told what others record, trying again: {problem}", problem=problem)
                lost_before = True
            self._pause = deferLater(self._reactor, pause)
            try:
                await self._pause
            except CancelledError:
                pass
            finally:
                self._pause = None
            pause = min(2 * pause, longest)
        self._running = False

    async def _listen(self, gone: Deferred[None]) -> None:
        """Returns when notices come; then ``gone`` fires when they end."""
        silent = StoreUnavailable(
            f"{self._address.name} cannot be reached: it has not answered for {self._silence:g} s."
        )
        try:
            await Patience[None](self._reactor, self._silence, silent, self._drop).wait(self._begin(gone))
        except (psycopg2.Error, Lost) as error:
            self._drop()
            raise in_words(error, self._address) from None

    async def _begin(self, gone: Deferred[None]) -> None:
        connection = await connect(self._reactor, self._address, self._connect, self._hold)
        connection.lost = lambda: gone.callback(None)
        connection.notified = self._notified
        await connection.execute(f"LISTEN {CHANNEL}")

    def _hold(self, connection: Connection) -> None:
        self._connection = connection
        if not self._watchers:
            raise Lost("nobody watches any more")

    def _why(self) -> str:
        return (self._connection.why if self._connection is not None else None) or "the connection is closed"

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.drop()

    def _notified(self, payload: str) -> None:
        ids = tuple(payload.split())
        for notice in tuple(self._watchers.values()):
            try:
                notice(ids)
            except Exception:  # noqa: BLE001 - whatever it is, the others are told
                log.failure("somebody who watches what is recorded has failed")
