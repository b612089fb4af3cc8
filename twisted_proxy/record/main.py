"""
The recorder's process: reads the spool of the proxy that started it, and of proxies that died, and stores records.

Its settings come as the first line on its standard input, see `control`. When that ends, the proxy has died: what it
left is stored, exchanges that were in flight as interrupted, and the process ends.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from twisted.internet import stdio
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.internet.task import LoopingCall, deferLater, react
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, globalLogBeginner
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from ..children import NOT_FOR_CHILDREN
from ..logs import level_of, text_of, traceback_of
from ..runtime import Waiters
from . import control, pricing
from .conversations import Conversations
from .exchange import Instance
from .opening import store_of
from .pump import FIRST_PAUSE, LAST_PAUSE, REMIND_EVERY, Pump
from .recorder import Counts, Recorder
from .slots import Slot
from .spool import SlotReader
from .store import Keep, RecordStore, Retention, SchemaTooNew, StoreError
from .threads import Crew

log = Logger()

T = TypeVar("T")

NICENESS: Final = 19
STATUS_EVERY: Final = 1.0
ALIVE_EVERY: Final = 15.0
ADOPT_EVERY: Final = 30.0
SWEEP_EVERY: Final = 60.0
"""Seconds between two looks for what died, or is past its time."""
SILENT_FOR: Final = 600.0
"""Seconds after which a proxy that was not heard of is taken for dead."""
EXPIRE_PAUSE: Final = 0.05
MAX_PAUSED: Final = 1000
"""Log lines that are kept while the proxy does not read."""
CLOSE_STORE: Final = 5.0
SLOW: Final = 5.0
"""Seconds after which a store that does not answer is told of as a problem. It gives up itself only much later."""
TROUBLED: Final = 4.0
"""Seconds for which the proxy's end is put off while there is a problem: the next start stores what is left."""


@implementer(IPushProducer)
class Lines(LineOnlyReceiver):
    """
    The pipe to the proxy, as lines.

    While the proxy does not read, only the newest status is kept, and no ids.

    :param settings: takes the first message. :param took: takes those after it. :param ended: the proxy is gone.
    """

    delimiter = b"\n"
    MAX_LENGTH = control.MAX_LINE

    def __init__(self, took: Callable[[control.ToRecorder], None], ended: Callable[[], None]) -> None:
        self._took = took
        self._ended = ended
        self._open = False
        self._paused = False
        self._status: control.Status | None = None
        self._logged: list[control.Logged] = []
        self._gone = Waiters()

    def connectionMade(self) -> None:
        self._open = True
        transport: Any = self.transport
        transport.registerProducer(self, True)

    def lineReceived(self, line: bytes) -> None:
        try:
            message = control.to_recorder(line)
        except msgspec.MsgspecError as problem:
            # Without the line: it may hold the settings.
            log.warn("a message of {size} bytes was not understood: {problem}", size=len(line), problem=problem)
            return
        self._took(message)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._open = False
        self._gone.fire()
        self._ended()

    def send(self, message: control.FromRecorder) -> None:
        """Write a message, if somebody is there."""
        if not self._open:
            return
        if not self._paused:
            transport: Any = self.transport
            transport.write(control.encode(message) + b"\n")
        elif isinstance(message, control.Status):
            self._status = message
        elif isinstance(message, control.Logged) and len(self._logged) < MAX_PAUSED:
            self._logged.append(message)

    async def close(self) -> None:
        """Write what is left; end."""
        if self._open and self.transport is not None:
            gone = self._gone.wait()
            transport: Any = self.transport
            transport.unregisterProducer()
            transport.loseConnection()
            await gone

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        logged, self._logged = self._logged, []
        status, self._status = self._status, None
        for message in logged:
            self.send(message)
        if status is not None:
            self.send(status)

    def stopProducing(self) -> None:
        self._paused = True


@implementer(ILogObserver)
class Forward:
    """Sends log events to the proxy."""

    def __init__(self, send: Callable[[control.Logged], None]) -> None:
        self._send = send

    def __call__(self, event: LogEvent) -> None:
        level = level_of(event)
        if level == LogLevel.debug.name:
            return
        self._send(control.Logged(level=level, text=text_of(event), traceback=traceback_of(event)))


class RecorderMain:
    """
    All that a recorder's process does, from its settings to its end.

    :param wall_clock: seconds since the Unix epoch.
    """

    def __init__(
        self, reactor: Any, settings: control.Settings, lines: Lines, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._lines = lines
        self._wall_clock = wall_clock
        self._root = Path(settings.spool)
        self._store: RecordStore = store_of(reactor, db_path=settings.db_path, database_url=settings.database_url)
        self._prices = prices_of(settings.prices_file)
        self._conversations = Conversations(self._store)
        self._counts = Counts()
        self._crew = Crew(reactor, "digest")
        self._pump = Pump(reactor, done=self._done, changed=self._changed)
        self._slots: dict[Recorder, tuple[Slot, SlotReader]] = {}
        self._live: Recorder | None = None
        self._live_is_done = False
        self._damaged = 0
        self._burying = 0
        self._told = control.Status()
        self._told_at = 0.0
        self._problem: str | None = "the store is not open yet"
        self._heartbeat: str | None = None
        # When the store was asked for what it has not done yet.
        self._asked_at: dict[object, float] = {}
        self._is_open = False
        self._closing: float | None = None
        self._closing_troubled = 0.0
        self._told_to_close = Waiters()
        self._loops: list[LoopingCall] = []
        retention = Retention(
            bodies=Keep(seconds=settings.keep_bodies_seconds, bytes=settings.keep_bodies_bytes),
            metadata=Keep(seconds=settings.keep_metadata_seconds, bytes=settings.keep_metadata_bytes),
        )
        self._retention = None if retention == Retention() else retention

    def wake(self) -> None:
        """There is more to read."""
        if self._live is None:
            self._attach()
        self._pump.wake()

    def close(self, grace: float, troubled: float | None = None) -> None:
        """
        Nothing more is written into our slot: store what is there, unless nothing moves for ``grace`` seconds.

        :param troubled: as many seconds, while there is a problem.
        """
        if self._closing is None:
            self._closing = grace
            self._closing_troubled = grace if troubled is None else min(grace, troubled)
            self._told_to_close.fire()

    async def run(self) -> None:
        """Until all is stored, or given up, after :meth:`close`."""
        closing = self._told_to_close.wait()
        opened = Deferred.fromCoroutine(self._open_store())
        opened.addCallbacks(self._begin, lambda failure: log.failure("the recorder cannot start", failure))
        self._attach()
        self._every(STATUS_EVERY, self._tell)
        await closing
        assert self._closing is not None
        await self._drain(self._closing)
        for loop in self._loops:
            loop.stop()
        self._pump.stop()
        self._tell()
        await self._bounded(self._store.close())
        for slot, reader in self._slots.values():
            reader.close()
            slot.release()

    async def _bounded(self, work: Awaitable[None]) -> None:
        done = Deferred.fromCoroutine(_as_coroutine(work))
        done.addTimeout(CLOSE_STORE, self._reactor, onTimeoutCancel=lambda result, _: None)
        try:
            await done
        except Exception:  # noqa: BLE001 - it is the last thing that is done
            log.failure("closing the store failed")

    # Starting

    async def _open_store(self) -> None:
        pause, failed_at, reminded_at = FIRST_PAUSE, None, 0.0
        while True:
            try:
                await self._store.open()
            except SchemaTooNew as problem:
                # Never with this version: whoever installs the right one finds everything in the spool.
                log.critical("nothing is recorded, it waits in the spool: {problem}", problem=problem)
                self._fail(str(problem))
                await Deferred()
            except StoreError as problem:
                now = self._reactor.seconds()
                if failed_at is None or now - reminded_at >= REMIND_EVERY:
                    failed_at, reminded_at = failed_at or now, now
                    text = "nothing is recorded at present, it waits in the spool: {problem}"
                    log.error(text, problem=problem)  # noqa: TRY400 - not the standard library's
                self._fail(str(problem))
            else:
                break
            await deferLater(self._reactor, pause, lambda: None)
            pause = min(pause * 2, LAST_PAUSE)
        if failed_at is not None:
            log.info("the store is open, after {seconds:.0f} s", seconds=self._reactor.seconds() - failed_at)
        self._is_open = True
        self._problem = None
        self._changed()

    def _fail(self, problem: str) -> None:
        self._problem = problem
        self._changed()

    def _begin(self, _: object) -> None:
        self._adopt()
        Deferred.fromCoroutine(self._pump.run()).addErrback(
            lambda failure: log.failure("the recorder stopped", failure)
        )
        self._every(ALIVE_EVERY, self._be_alive)
        self._every(ADOPT_EVERY, self._adopt, now=False)
        self._every(SWEEP_EVERY, self._sweep)

    def _every(self, seconds: float, function: Callable[[], object], *, now: bool = True) -> None:
        async def guarded() -> None:
            try:
                result = function()
                if isinstance(result, Awaitable):
                    await result
            except StoreError as problem:
                # Whoever writes says so, and tries again.
                log.debug("{what} not now: {problem}", what=function.__name__, problem=problem)
            except Exception:  # noqa: BLE001 - the next time it may work
                log.failure("{what} failed", what=function.__name__)

        loop = LoopingCall(lambda: Deferred.fromCoroutine(guarded()))
        loop.clock = self._reactor
        self._loops.append(loop)
        loop.start(seconds, now=now)

    # Slots

    def _attach(self) -> None:
        """Read our own slot, as soon as it is there."""
        if self._live is not None or self._live_is_done:
            return
        try:
            slot = Slot.attach(self._root, self._settings.instance)
        except OSError as problem:
            self._fail(f"{self._root / self._settings.instance} cannot be read: {problem.strerror}")
            return
        if slot is None:
            return
        self._live = self._take_on(slot, live=self._closing is None)
        if self._live is not None:
            self._problem = None
            self._pump.add(self._live)

    def _adopt(self) -> None:
        """Take on the slots of the dead."""
        for slot in Slot.adoptable(self._root):
            recorder = self._take_on(slot, live=False)
            if recorder is not None:
                log.info(
                    "a proxy that is gone left records in {path}: {bytes} bytes", path=slot.path, bytes=recorder.behind
                )
                self._pump.add(recorder, first=True)

    def _take_on(self, slot: Slot, *, live: bool) -> Recorder | None:
        try:
            reader = SlotReader(slot, live=live)
        except OSError as problem:
            log.warn("{path} cannot be read: {problem}", path=slot.path, problem=problem)
            slot.release()
            return None
        recorder = Recorder(
            self._store,
            reader,
            slot.instance,
            conversations=self._conversations,
            prices=self._prices,
            counts=self._counts,
            compute=lambda function: self._crew.run(lambda progress: function()),
            written=self._written,
            seconds=self._reactor.seconds,
        )
        self._slots[recorder] = (slot, reader)
        return recorder

    def _written(self, ids: Sequence[str]) -> None:
        self._heartbeat = None
        self._lines.send(control.Written(tuple(ids)))

    def _done(self, recorder: Recorder) -> None:
        slot, reader = self._slots.pop(recorder)
        self._damaged += reader.damaged
        reader.close()
        if recorder is self._live:
            self._live, self._live_is_done = None, True
        Deferred.fromCoroutine(self._bury(slot)).addErrback(
            lambda failure: log.failure("{path} cannot be removed", failure, path=slot.path)
        )

    async def _bury(self, slot: Slot) -> None:
        self._burying += 1
        try:
            # What the store has in flight of it, and the spool knows nothing of.
            await self._wait(self._store.interrupt([slot.instance], self._now(), 0))
        except StoreError as problem:
            log.debug("interrupt not now: {problem}", problem=problem)
        try:
            slot.remove()
        except OSError as problem:
            log.warn("{path} is not needed any more and cannot be removed: {problem}", path=slot.path, problem=problem)
            slot.release()
        finally:
            self._burying -= 1

    async def _wait(self, work: Awaitable[T]) -> T:
        """The result of what the store does."""
        asked = object()
        self._asked_at[asked] = self._reactor.seconds()
        try:
            return await work
        finally:
            del self._asked_at[asked]

    # Regularly

    def _now(self) -> int:
        return int(self._wall_clock() * 1e6)

    async def _be_alive(self) -> None:
        settings = self._settings
        instance = Instance(id=settings.instance, host=settings.host, pid=settings.pid, started_at=settings.started_at)
        # Where there is nothing to write, this is how trouble shows.
        try:
            await self._wait(self._store.alive(instance, self._now()))
        except StoreError as problem:
            self._heartbeat = str(problem)
        else:
            self._heartbeat = None
        self._changed()

    async def _sweep(self) -> None:
        count = await self._wait(self._store.interrupt(None, self._now(), SILENT_FOR))
        if count:
            log.info("{count} exchanges of proxies that are gone are interrupted", count=count)
        while self._retention is not None and self._closing is None:
            if not await self._store.expire(self._retention, self._now()):
                break
            await deferLater(self._reactor, EXPIRE_PAUSE, lambda: None)

    # Ending

    async def _drain(self, grace: float) -> None:
        began = self._reactor.seconds()
        if self._live is not None:
            self._slots[self._live][1].owner_ended()
        else:
            self._attach()
        self._pump.hurry()
        while self._is_left:
            idle = self._reactor.seconds() - max(began, self._pump.progress_at)
            if idle >= grace or (idle >= self._closing_troubled and self._status().problem is not None):
                if self._pump.recorders or not self._is_open:
                    log.warn(
                        "nothing was recorded for {idle:.0f} s; about {bytes} bytes stay in {spool}: the next start"
                        " stores them",
                        idle=idle,
                        bytes=self._pump.behind,
                        spool=self._root,
                    )
                return
            # Should all else fail, the kernel ends us.
            signal.alarm(int(grace - idle) + 60)
            await deferLater(self._reactor, 0.05, lambda: None)

    @property
    def _is_left(self) -> bool:
        """Whether there is something to store, for all we know."""
        if not self._is_open and self._live is not None:
            return self._live.behind > 0
        if self._pump.recorders or self._burying:
            return True
        return not self._live_is_done and (self._root / self._settings.instance).exists()

    # What the proxy is told

    def _changed(self) -> None:
        status = self._status()
        soon = self._reactor.seconds() - self._told_at >= STATUS_EVERY
        if soon or status.problem != self._told.problem or status.opened != self._told.opened:
            self._tell()

    def _tell(self) -> None:
        if self._live is None:
            self._attach()
        status = self._status()
        if status != self._told:
            self._told = status
            self._told_at = self._reactor.seconds()
            self._lines.send(status)

    @property
    def _slowness(self) -> str | None:
        """That the store does not answer, and does not say that it cannot."""
        waiting = [recorder.waiting_since for recorder in self._pump.recorders]
        since = min([each for each in (*waiting, *self._asked_at.values()) if each is not None], default=None)
        if since is None or self._reactor.seconds() - since < SLOW:
            return None
        where = "DATABASE_URL" if self._settings.database_url else f"{self._settings.db_path}, DB_PATH"
        return f"the store ({where}) has not answered for more than {SLOW:g} s: see what its host is doing"

    def _status(self) -> control.Status:
        return control.Status(
            recorded=self._counts.recorded,
            behind_bytes=self._pump.behind,
            problem=self._problem or self._pump.problem or self._heartbeat or self._slowness,
            incomplete=self._counts.incomplete,
            interrupted=self._counts.interrupted,
            damaged=self._damaged + sum(reader.damaged for _, reader in self._slots.values()),
            opened=self._is_open,
            usage=self._counts.usage.told(),
            writes=tuple(self._counts.writes.counts),
            writes_seconds=self._counts.writes.sum,
        )


async def _as_coroutine(work: Awaitable[T]) -> T:
    return await work


def prices_of(file: str | None) -> pricing.Prices:
    """The prices that are to be used. Those of a file that cannot be read are left out, with words in the log."""
    if file is None:
        return pricing.shipped()
    try:
        return pricing.load(Path(file))
    except ValueError as problem:
        log.warn("the prices that are shipped are used: {problem}", problem=problem)
        return pricing.shipped()


async def run(reactor: Any) -> None:
    """Record until there is nothing left to do."""
    first: Deferred[control.Settings | None] = Deferred()
    recorder: RecorderMain | None = None

    def took(message: control.ToRecorder) -> None:
        match message:
            case control.Settings():
                if not first.called:
                    first.callback(message)
            case control.Flushed():
                if recorder is not None:
                    recorder.wake()
            case control.Close():
                waiting.append(message.grace)
                if recorder is not None:
                    recorder.close(message.grace, TROUBLED)

    def ended() -> None:
        if not first.called:
            first.callback(None)
        elif recorder is not None:
            recorder.close(settings.orphan_grace if settings is not None else 0)
        else:
            waiting.append(0)

    waiting: list[float] = []
    settings: control.Settings | None = None
    lines = Lines(took, ended)
    globalLogBeginner.beginLoggingTo([Forward(lines.send)], redirectStandardIO=False, discardBuffer=True)
    stdio.StandardIO(lines, reactor=reactor)
    settings = await first
    if settings is None:
        return
    recorder = RecorderMain(reactor, settings, lines)
    for grace in waiting:
        recorder.close(grace, TROUBLED)
    await recorder.run()
    await lines.close()


def main() -> None:
    """The process's entry."""
    signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_CHILDREN)
    # As much as is allowed.
    with suppress(OSError):
        os.nice(NICENESS)
    react(run)


if __name__ == "__main__":
    main()
