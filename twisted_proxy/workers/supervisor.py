"""
The parent of several workers: holds the listening sockets, and keeps that many processes on them.

It accepts no connection and parses no request: what it does not do cannot fail. Workers ask and tell each other through
it.
"""

from __future__ import annotations

import secrets
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, TextIO

import attrs
import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.error import ConnectionDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IListeningPort, IPushProducer
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.logger import Logger
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from ..children import Delay, LastWords, blocked, environment, fate
from ..config import Config
from ..listening import listen_all, listener
from ..logs import use_observer
from ..notify import STOPPING, notify
from ..runtime import Waiters, branch
from ..service import announce
from ..siblings import JOINED, LEFT
from ..signals import StopSignals
from . import control
from .counts import METRICS, Retired, of_workers

log = Logger()

MODULE: Final = "twisted_proxy.workers.main"

ANSWER_WITHIN: Final = 1.0
"""Seconds that workers have to answer a question."""
CLOSING: Final = 90.0
"""Seconds that a worker has, beyond the drain, to store what it has recorded and to exit."""
MOST_UNANSWERED: Final = 100
"""Questions beyond which one that does not answer is not asked any more."""
MOST_QUEUED: Final = 32 * 1024 * 1024
"""Bytes for a worker that does not read, beyond which it is not told any more what others tell."""


class Supervisor(Service):
    """
    The proxy as several processes.

    serving → draining → done. While it serves, a worker that ends is replaced; ``stopService`` has all of them drain,
    and fires when all are gone.

    Starting fails with ``SystemExit`` and words where a port cannot be had.

    :param reactor: provides ``IReactorTime``, ``IReactorTCP`` and ``IReactorProcess``.
    :param log_file: where the log goes, in the configured format; ``None`` leaves it to ``twistd``.
    :param command: what to run instead of a worker.
    """

    def __init__(
        self,
        config: Config,
        reactor: Any,
        *,
        log_file: TextIO | None = None,
        command: Sequence[str] = (sys.executable, "-P", "-m", MODULE),
    ) -> None:
        self.config = config
        self._reactor = reactor
        self._log_file = log_file
        self._command = command
        self._secret = secrets.token_urlsafe(32)
        self._places = [_Place(number, Delay(reactor.seconds)) for number in range(config.workers)]
        self._made = 0
        self._gathered = 0
        self._gathering: dict[int, _Gathering] = {}
        self._retired = Retired()
        self._gone = Waiters()
        self._announced = False
        self._lame_duck = True
        self._stopping: Deferred[None] | None = None
        self.ports: list[IListeningPort] = []
        self.dashboard_ports: list[IListeningPort] = []
        self.restarts = 0

    def setServiceParent(self, parent: Any) -> None:
        super().setServiceParent(parent)
        use_observer(parent, self.config.log_format, self._log_file)

    # Starting

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        wanted = [*self.config.listen, *self.config.dashboard.listen]
        nobody = Factory()
        nobody.noisy = False
        ports = listen_all([(description, nobody) for description in wanted], listener(self._reactor))
        for port in ports:
            # The workers accept.
            port.stopReading()  # type: ignore[attr-defined] # not in the interface; each port of a reactor has it
        count = len(self.config.listen)
        self.ports, self.dashboard_ports = ports[:count], ports[count:]
        self._reactor.callWhenRunning(self._started)

    def _started(self) -> None:
        StopSignals(
            self._reactor,
            is_stopping=lambda: self._stopping is not None,
            told=self._told_to_stop,
            hurry=self.hurry,
        ).take()
        for place in self._places:
            self._spawn(place)

    def _told_to_stop(self, number: signal.Signals) -> None:
        notify(STOPPING)
        # With SIGINT, somebody sits there: no balancer has to see us leave.
        self._lame_duck = number != signal.SIGINT

    def _spawn(self, place: _Place) -> None:
        place.waiting = None
        place.delay.started()
        self._made += 1
        worker = _Worker(self, place, self._made)
        sockets = tuple(self._sockets())
        child_descriptors: dict[int, int | str] = {
            control.FROM_SUPERVISOR: "w",
            # Its log: straight to where ours goes, or by way of us into a file that is rotated.
            # (twistd has put something else in the place of `sys.stdout`.)
            1: 1 if self._log_file is sys.__stdout__ else "r",
            2: "r",
            control.TO_SUPERVISOR: "r",
        }
        for socket, (port, _) in zip(sockets, self._all_ports(), strict=True):
            child_descriptors[socket.descriptor] = port.fileno()  # type: ignore[attr-defined] # as stopReading
        try:
            with blocked():
                self._reactor.spawnProcess(
                    worker,
                    self._command[0],
                    list(self._command),
                    env=environment(),
                    path=None,
                    childFDs=child_descriptors,
                )
        except OSError as problem:
            self._plan_restart(place, f"worker {place.number} cannot be started: {problem}")
            return
        place.worker = worker
        worker.send(
            control.Start(
                config=control.dump_config(share_of(self.config)),
                member=worker.member,
                place=place.number,
                size=len(self._places),
                secret=self._secret,
                sockets=sockets,
            )
        )

    def _all_ports(self) -> Iterator[tuple[IListeningPort, str]]:
        yield from zip(self.ports, self.config.listen, strict=True)
        yield from zip(self.dashboard_ports, self.config.dashboard.listen, strict=True)

    def _sockets(self) -> Iterator[control.Socket]:
        for number, (_, description) in enumerate(self._all_ports()):
            yield control.Socket(control.FIRST_SOCKET + number, description, number >= len(self.ports))

    def _plan_restart(self, place: _Place, why: str, words: str = "") -> None:
        self.restarts += 1
        delay = place.delay.next()
        log.error("{why}; it is started again in {delay:g} s{words}", why=why, delay=delay, words=words)
        place.waiting = self._reactor.callLater(delay, self._spawn, place)

    # Stopping

    def stopService(self) -> Deferred[None]:
        """Drain all workers, and see them out. Idempotent: each caller's Deferred fires at the end."""
        if self._stopping is None:
            super().stopService()
            self._stopping = Deferred.fromCoroutine(self._stop())
        return branch(self._stopping)

    def hurry(self) -> None:
        """Wait no longer."""
        for worker in self._workers():
            worker.send(control.Hurry())

    async def _stop(self) -> None:
        for place in self._places:
            if place.waiting is not None:
                place.waiting.cancel()
                place.waiting = None
        workers = list(self._workers())
        log.info("draining {workers} workers", workers=len(workers))
        for worker in workers:
            worker.send(control.Drain(lame_duck=self._lame_duck))
        late = self._reactor.callLater(self.config.drain_timeout + CLOSING, self._kill)
        while any(self._workers()):
            await self._gone.wait()
        if late.active():
            late.cancel()
        ports = (*self.ports, *self.dashboard_ports)
        await DeferredList([maybeDeferred(port.stopListening) for port in ports], consumeErrors=True)

    def _kill(self) -> None:
        for worker in self._workers():
            log.error(
                "worker {place} (pid {pid}) does not end: it is killed", place=worker.place.number, pid=worker.pid
            )
            worker.kill()

    # Workers

    def _workers(self) -> Iterator[_Worker]:
        return (place.worker for place in self._places if place.worker is not None)

    def _others(self, member: int) -> Iterator[_Worker]:
        return (worker for worker in self._workers() if worker.member != member and worker.ready)

    def took(self, worker: _Worker, message: control.FromWorker) -> None:
        """A worker says something."""
        match message:
            case control.Ready():
                worker.ready = True
                for other in self._others(worker.member):
                    other.send(control.Told(worker.member, JOINED, None))
                    worker.send(control.Told(other.member, JOINED, None))
                if not self._announced and all(each.ready for each in self._workers()):
                    self._announced = True
                    log.info("{workers} workers serve", workers=len(self._places))
                    announce(self.config, self.ports, self.dashboard_ports)
            case control.Ask():
                self._gather(worker, message)
            case control.Answer():
                gathering = self._gathering.get(message.number)
                if gathering is not None:
                    gathering.take(worker, message.found)
            case control.Tell():
                told = control.Told(worker.member, message.topic, message.message)
                for other in self._others(worker.member):
                    if message.to is None or message.to == other.member:
                        other.tell(told)

    def lost(self, worker: _Worker, end: str, *, well: bool) -> None:
        """A worker is gone."""
        place = worker.place
        place.worker = None
        if worker.ready:
            for other in self._others(worker.member):
                other.send(control.Told(worker.member, LEFT, None))
        self._retired.add(worker.last_answers.get(METRICS, []))
        for gathering in list(self._gathering.values()):
            gathering.take(worker, [])
        if self._stopping is None:
            self._plan_restart(place, f"worker {place.number} (pid {worker.pid}) {end}", str(worker.words))
        elif not well:
            log.error(
                "worker {place} (pid {pid}) {end} before it had drained{words}",
                place=place.number,
                pid=worker.pid,
                end=end,
                words=str(worker.words),
            )
        self._gone.fire()

    def pass_on(self, data: bytes) -> None:
        """Log lines of a worker, where they cannot go straight to our log."""
        if self._log_file is not None:
            self._log_file.write(data.decode("utf-8", "backslashreplace"))
            self._log_file.flush()
            return
        for line in data.splitlines():
            log.info("{line}", line=line.decode("utf-8", "backslashreplace"))

    # Questions

    def _gather(self, asker: _Worker, ask: control.Ask) -> None:
        self._gathered += 1
        number = self._gathered
        workers = [worker for worker in self._workers() if worker.ready]
        waiting = {worker.member for worker in workers}

        def over(answers: list[Any]) -> None:
            del self._gathering[number]
            if ask.question == METRICS:
                running = sum(1 for _ in self._workers())
                answers += [*self._retired.answer(), *of_workers(running, len(self._places), self.restarts)]
            asker.send(control.Answered(ask.number, answers))

        gathering = self._gathering[number] = _Gathering(
            question=ask.question,
            waiting=waiting,
            over=over,
            late=self._reactor.callLater(ANSWER_WITHIN, self._late, number),
        )
        if not waiting:
            gathering.end()
        for worker in workers:
            worker.ask(control.Question(number, ask.question, ask.argument))

    def _late(self, number: int) -> None:
        gathering = self._gathering[number]
        for worker in list(self._workers()):
            gathering.take(worker, worker.last_answers.get(gathering.question, []))


@attrs.define(eq=False)
class _Place:
    """Where there is to be a worker."""

    number: int
    delay: Delay
    worker: _Worker | None = None
    waiting: IDelayedCall | None = None


@attrs.define(eq=False, kw_only=True)
class _Gathering:
    """The answers to one question, as they come."""

    question: str
    waiting: set[int]
    over: Any
    late: IDelayedCall
    answers: list[Any] = attrs.Factory(list)

    def take(self, worker: _Worker, found: list[Any]) -> None:
        if worker.member not in self.waiting:
            return
        self.waiting.discard(worker.member)
        self.answers += found
        if not self.waiting:
            self.end()

    def end(self) -> None:
        if self.late.active():
            self.late.cancel()
        self.over(self.answers)


class _Messages(Int32StringReceiver):
    """What comes from a worker."""

    MAX_LENGTH = control.MAX_MESSAGE

    def __init__(self, worker: _Worker) -> None:
        self._worker = worker

    def stringReceived(self, string: bytes) -> None:
        try:
            message = control.from_worker(string)
        except msgspec.MsgspecError as problem:
            log.warn("a message of {size} bytes was not understood: {problem}", size=len(string), problem=problem)
            return
        self._worker.took(message)

    def lengthLimitExceeded(self, length: int) -> None:
        log.error("worker {place} has lost the thread: it is killed", place=self._worker.place.number)
        self._worker.kill()


@implementer(IPushProducer)
class _Worker(ProcessProtocol):
    """
    One worker's process.

    :ivar ready: whether it serves. :ivar last_answers: what it answered last to questions without an argument.
    """

    def __init__(self, owner: Supervisor, place: _Place, member: int) -> None:
        self._owner = owner
        self._messages = _Messages(self)
        self._transport: Any = None
        self._paused = False
        self._queued = 0
        self._deaf = False
        self._log_line = b""
        self._unanswered: dict[int, str] = {}
        self.place = place
        self.member = member
        self.ready = False
        self.pid: int | None = None
        self.last_answers: dict[str, list[Any]] = {}
        self.words = LastWords(lambda text: log.warn("worker {place}: {text}", place=place.number, text=text))

    def connectionMade(self) -> None:
        self._transport = self.transport
        self.pid = self._transport.pid
        self._transport.registerProducer(self, True)

    def send(self, message: control.ToWorker) -> None:
        data = control.framed(message)
        if self._paused:
            self._queued += len(data)
        self._transport.write(data)

    def ask(self, question: control.Question) -> None:
        if len(self._unanswered) >= MOST_UNANSWERED:
            # It is late with so many that one more changes nothing.
            return
        if question.argument is None:
            self._unanswered[question.number] = question.question
        self.send(question)

    def tell(self, told: control.Told) -> None:
        """Pass on what another one tells; not to one that has stopped reading long ago."""
        if self._queued > MOST_QUEUED:
            if not self._deaf:
                self._deaf = True
                log.warn("worker {place} takes nothing: what others tell is kept from it", place=self.place.number)
            return
        self.send(told)

    def took(self, message: control.FromWorker) -> None:
        if isinstance(message, control.Answer):
            question = self._unanswered.pop(message.number, None)
            if question is not None:
                self.last_answers[question] = message.found
        self._owner.took(self, message)

    def kill(self) -> None:
        with suppress(ProcessExitedAlready):
            self._transport.signalProcess("KILL")

    # What its standard input can take

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._queued = 0
        self._deaf = False

    def stopProducing(self) -> None:
        self._paused = True

    # What it says

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD == control.TO_SUPERVISOR:
            self._messages.dataReceived(data)
        elif childFD == 1:
            *lines, rest = (self._log_line + data).split(b"\n")
            self._log_line = rest
            if lines:
                self._owner.pass_on(b"\n".join([*lines, b""]))
        else:
            self.words.feed(data)

    def processEnded(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008 - as in the base class
        self.words.end()
        end, well = fate(reason)
        self._owner.lost(self, end, well=well)


def share_of(config: Config) -> Config:
    """What each of the workers is allowed, of what all are."""
    count = config.workers
    return attrs.evolve(
        config,
        workers=1,
        max_connections=-(-config.max_connections // count),
        max_bodies_bytes=-(-config.max_bodies_bytes // count),
        record=attrs.evolve(config.record, spool_max_bytes=-(-config.record.spool_max_bytes // count)),
    )
