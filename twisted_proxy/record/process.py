"""The recorder as a child process, seen from the proxy: started, woken, started again when it dies, seen out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

import attrs
import msgspec
from twisted.internet.error import ConnectionDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport, IPushProducer
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import InvalidLogLevelError, Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from ..children import Delay, LastWords, blocked, environment, fate
from ..runtime import Waiters
from ..tally import Histogram
from . import control
from .usage_counts import UsageCounts

log = Logger()

WAKE_EVERY = 0.05

MODULE = "twisted_proxy.record.main"


@attrs.frozen(kw_only=True)
class RecorderStatus:
    """
    How recording is. Counts are since the proxy started; a recorder that had to be replaced may have counted what was
    not settled when it died, and the next one counts it, too.

    :ivar running: whether there is a recorder.
    :ivar recorded: exchanges that are in the store with their end.
    :ivar behind_bytes: what is in the spool and was not read yet, as of the recorder's last word.
    :ivar problem: why nothing is stored at present, in words; ``None`` if all is well.
    :ivar incomplete: exchanges stored of which something was lost.
    :ivar interrupted: exchanges whose process ended before they did.
    :ivar damaged: files with something that could not be read.
    :ivar restarts: how often a recorder died.
    """

    running: bool = False
    recorded: int = 0
    behind_bytes: int = 0
    problem: str | None = None
    incomplete: int = 0
    interrupted: int = 0
    damaged: int = 0
    restarts: int = 0


class RecorderProcess:
    """
    Keeps a recorder running.

    none → running ⇄ waiting (to start it again) → closing → closed.

    :param reactor: provides ``IReactorTime`` and ``IReactorProcess``.
    :param on_written: told the ids of exchanges that are in the store now, or anew. What it raises is logged.
    :param command: what to run instead of the recorder.
    """

    def __init__(
        self,
        reactor: Any,
        settings: control.Settings,
        *,
        on_written: Callable[[Sequence[str]], None] = lambda ids: None,
        command: Sequence[str] = (sys.executable, "-P", "-m", MODULE),
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._on_written = on_written
        self._command = command
        self._child: _Child | None = None
        self._waiting: IDelayedCall | None = None
        self._waking: IDelayedCall | None = None
        self._delay = Delay(reactor.seconds)
        self._restarts = 0
        self._stored = control.Status()
        self._before = control.Status()
        self._death: str | None = None
        self._closing = False
        self._grace = 0.0
        self._progress_at = 0.0
        self._ended = Waiters()

    @property
    def pid(self) -> int | None:
        """Of the recorder; ``None`` while there is none."""
        return None if self._child is None else self._child.pid

    @property
    def status(self) -> RecorderStatus:
        now, before = self._stored, self._before
        return RecorderStatus(
            running=self._child is not None,
            recorded=before.recorded + now.recorded,
            behind_bytes=now.behind_bytes,
            problem=self._death if self._child is None else now.problem,
            incomplete=before.incomplete + now.incomplete,
            interrupted=before.interrupted + now.interrupted,
            damaged=before.damaged + now.damaged,
            restarts=self._restarts,
        )

    @property
    def usage(self) -> tuple[control.Usage, ...]:
        """What the recorded answers were, since the proxy started."""
        return _usage_of(self._before, self._stored)

    @property
    def store_writes(self) -> Histogram:
        """Seconds that the store took for each batch that it has kept, since the proxy started."""
        return _writes_of(self._before, self._stored)

    def start(self) -> None:
        """Start it. Never raises: what does not start is tried again."""
        if self._child is None and self._waiting is None and not self._closing:
            self._spawn()

    def wake(self) -> None:
        """There is more to read. Cheap, and may be called often."""
        if self._waking is None and self._child is not None and not self._closing:
            self._waking = self._reactor.callLater(WAKE_EVERY, self._wake)

    async def close(self, patience: float) -> None:
        """
        Let it store what is there, and end it: after ``patience`` seconds at the latest, or after half of them without
        progress. What is left then stays in the spool, and the log says so.
        """
        if not self._closing:
            self._closing = True
            self._grace = patience / 2
            for call in (self._waiting, self._waking):
                if call is not None:
                    call.cancel()
            waiting, self._waiting, self._waking = self._waiting, None, None
            self._progress_at = self._reactor.seconds()
            if self._child is not None:
                self._child.send(control.Close(grace=self._grace))
            elif waiting is not None:
                # It is between two lives, and there is something to store.
                self._spawn()
        if self._child is None:
            return
        ended = self._ended.wait()
        late = self._reactor.callLater(patience, self._give_up, f"after {patience:g} s")
        stalled = self._reactor.callLater(self._grace, self._check_progress)
        self._limits = [late, stalled]
        try:
            await ended
        finally:
            for call in self._limits:
                if call.active():
                    call.cancel()

    _limits: list[IDelayedCall]

    def _check_progress(self) -> None:
        since = self._reactor.seconds() - self._progress_at
        # The recorder itself gives up after as long, and says more about it: let it be first.
        allowed = self._grace * 1.2
        if since >= allowed:
            self._give_up(f"after {since:.0f} s without progress")
        else:
            self._limits[1] = self._reactor.callLater(max(allowed - since, 0.001), self._check_progress)

    def _give_up(self, when: str) -> None:
        if self._child is None:
            return
        log.warn(
            "the recorder (pid {pid}) is ended {when}; about {bytes} bytes stay in {spool}, the next start stores them",
            pid=self._child.pid,
            when=when,
            bytes=self._stored.behind_bytes,
            spool=self._settings.spool,
        )
        self._child.kill()

    # The child

    def _spawn(self) -> None:
        self._waiting = None
        self._delay.started()
        child = _Child(self)
        try:
            # It outlives this process by what is left to store.
            with blocked():
                self._reactor.spawnProcess(child, self._command[0], list(self._command), env=environment(), path=None)
        except OSError as problem:
            self._plan_restart(f"the recorder cannot be started: {problem}")
            return
        self._child = child
        child.send(self._settings)
        if self._closing:
            child.send(control.Close(grace=self._grace))

    def _wake(self) -> None:
        self._waking = None
        if self._child is not None:
            self._child.wake()

    def _took(self, message: control.FromRecorder) -> None:
        match message:
            case control.Status():
                was, self._stored = self._stored, message
                if (was.recorded, was.behind_bytes) != (message.recorded, message.behind_bytes):
                    self._progress_at = self._reactor.seconds()
            case control.Written():
                try:
                    self._on_written(message.ids)
                except Exception:  # noqa: BLE001 - whoever watches must not stop recording
                    log.failure("telling of what was recorded failed")
            case control.Logged():
                line = message.text if message.traceback is None else f"{message.text}\n{message.traceback}"
                log.emit(_level(message.level), "recorder: {text}", text=line.rstrip("\n"))

    def _lost(self, child: _Child, fate: str, *, well: bool) -> None:
        self._child = None
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        now = self._stored
        self._before = control.Status(
            recorded=self._before.recorded + now.recorded,
            incomplete=self._before.incomplete + now.incomplete,
            interrupted=self._before.interrupted + now.interrupted,
            damaged=self._before.damaged + now.damaged,
            usage=_usage_of(self._before, now),
            writes=tuple(_writes_of(self._before, now).counts),
            writes_seconds=self._before.writes_seconds + now.writes_seconds,
        )
        self._stored = control.Status(behind_bytes=now.behind_bytes, problem=now.problem)
        if self._closing:
            if not well and not child.killed:
                log.warn(
                    "the recorder {fate} before it was done; the next start stores what stays in {spool}{words}",
                    fate=fate,
                    spool=self._settings.spool,
                    words=child.last_words,
                )
            self._ended.fire()
            return
        self._restarts += 1
        self._plan_restart(f"the recorder {fate}", child.last_words)

    def _plan_restart(self, why: str, words: str = "") -> None:
        self._death = why
        delay = self._delay.next()
        log.error("{why}; it is started again in {delay:g} s{words}", why=why, delay=delay, words=words)
        self._waiting = self._reactor.callLater(delay, self._spawn)


@implementer(IPushProducer)
class _Child(ProcessProtocol):
    """One recorder's pipes."""

    def __init__(self, owner: RecorderProcess) -> None:
        self._owner = owner
        self._line = bytearray()
        self._words = LastWords(lambda text: log.warn("recorder: {text}", text=text))
        self._paused = False
        self._wanted = False
        self._transport: Any = None
        self.killed = False
        self.pid: int | None = None

    def connectionMade(self) -> None:
        self._transport = self.transport
        self.pid = self._transport.pid
        self._transport.registerProducer(self, True)

    def send(self, message: control.ToRecorder) -> None:
        self._transport.write(control.encode(message) + b"\n")

    def wake(self) -> None:
        """Nothing where it does not read: it will look by itself when it goes on."""
        if not self._paused:
            self.send(control.Flushed())

    def kill(self) -> None:
        self.killed = True
        with suppress(ProcessExitedAlready):
            cast("IProcessTransport", self._transport).signalProcess("KILL")

    @property
    def last_words(self) -> str:
        return str(self._words)

    # What its standard input can take

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False

    def stopProducing(self) -> None:
        self._paused = True

    # What it says

    def outReceived(self, data: bytes) -> None:
        self._line += data
        *lines, rest = self._line.split(b"\n")
        self._line = rest
        if len(rest) > control.MAX_LINE:
            self._line.clear()
        for line in lines:
            try:
                message = control.from_recorder(bytes(line))
            except msgspec.MsgspecError:
                # Somebody's print(), or the end of a line that was too long.
                self._words.say(line)
                continue
            self._owner._took(message)

    def errReceived(self, data: bytes) -> None:
        self._words.feed(data)

    def processEnded(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008 - as in the base class
        self._words.end()
        end, well = fate(reason)
        self._owner._lost(self, end, well=well)


def _usage_of(*statuses: control.Status) -> tuple[control.Usage, ...]:
    counts = UsageCounts()
    for status in statuses:
        counts.add_all(status.usage)
    return counts.told()


def _writes_of(*statuses: control.Status) -> Histogram:
    writes = Histogram(control.STORE_BOUNDS)
    for status in statuses:
        for place, count in enumerate(status.writes[: len(writes.counts)]):
            writes.counts[place] += count
        writes.sum += status.writes_seconds
    return writes


def _level(name: str) -> LogLevel:
    try:
        return cast("LogLevel", LogLevel.levelWithName(name))
    except InvalidLogLevelError:
        return cast("LogLevel", LogLevel.warn)
