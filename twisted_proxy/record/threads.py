"""Threads of our own, beside the reactor's pool: that one must be free for name look-ups."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.python.failure import Failure

T = TypeVar("T")


class Clock(IReactorTime, IReactorFromThreads):
    """What of a reactor threads need."""


class Closed(Exception):
    """The threads were let go before they came to it."""


class Late(Exception):
    """
    It was not done in time.

    :ivar begun: whether a thread is at it: then it goes on, for all we know.
    """

    def __init__(self, *, begun: bool) -> None:
        super().__init__("under way" if begun else "not begun")
        self.begun = begun


class Progress(Protocol):
    """What a function that runs in a thread is given."""

    def beat(self) -> None:
        """
        Say that it goes on.

        :raises Late: nobody waits for it any more. :raises Closed: as little.
        """


@attrs.define(eq=False)
class _Job:
    function: Callable[[_Job], Any]
    done: Deferred[Any]
    on_late: Callable[[], None]
    begun: bool = False
    beats: int = 0
    over: BaseException | None = None
    timer: IDelayedCall | None = None

    def beat(self) -> None:
        self.beats += 1
        if self.over is not None:
            raise self.over


class Crew:
    """
    Some threads that take from one queue.

    They are daemons: one that hangs in the kernel keeps nobody from exiting.

    :param limit: seconds that a call may wait for its turn, and then may take without a `Progress.beat`. What does
        neither is noticed after twice as long.
    """

    def __init__(self, clock: Clock, name: str, *, size: int = 1, limit: float | None = None) -> None:
        self._clock = clock
        self._name = name
        self._size = size
        self._limit = limit
        self._queue: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._changed = threading.Condition()
        self._idle = 0
        self._threads = 0
        self._closed = False
        self._gone: list[Deferred[None]] = []

    @property
    def threads(self) -> int:
        """How many there are: after :meth:`close`, those that hang."""
        return self._threads

    def run(self, function: Callable[[Progress], T], *, on_late: Callable[[], None] = lambda: None) -> Deferred[T]:
        """
        Call ``function`` in a thread.

        :param on_late: called in this thread when time is up for a function that runs.
        :return: what it gives. Fails with `Late` and `Closed`, too.
        """
        done: Deferred[Any] = Deferred()
        job = _Job(function, done, on_late)
        with self._changed:
            if self._closed:
                done.errback(Failure(Closed()))
                return done
            self._queue.append(job)
            self._changed.notify()
            if len(self._queue) > self._idle and self._threads < self._size:
                self._threads += 1
                threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()
        if self._limit is not None:
            job.timer = self._clock.callLater(self._limit, self._check, job, 0)
        return done

    def close(self, wait: float) -> Deferred[None]:
        """
        Let go of the threads. What is in the queue fails with `Closed`; what runs is told so at its next beat.

        :return: fires when they have ended, or after ``wait`` seconds: what still runs then fails with `Closed`, too.
        """
        ended: Deferred[None] = Deferred()
        with self._changed:
            self._closed = True
            waiting = list(self._queue)
            self._queue.clear()
            for job in self._running:
                job.over = job.over or Closed()
            self._changed.notify_all()
            if self._threads:
                self._gone.append(ended)
            else:
                ended.callback(None)
        for job in waiting:
            self._finish(job, Failure(Closed()))
        if not ended.called:
            timer = self._clock.callLater(wait, self._give_up, ended)

            def stop_waiting(result: None) -> None:
                if timer.active():
                    timer.cancel()

            ended.addCallback(stop_waiting)
        return ended

    def _give_up(self, ended: Deferred[None]) -> None:
        for job in list(self._running):
            self._finish(job, Failure(Closed()))
        if ended in self._gone:
            self._gone.remove(ended)
            ended.callback(None)

    def _check(self, job: _Job, beats: int) -> None:
        job.timer = None
        with self._changed:
            begun = job.begun
            if begun and job.beats != beats:
                assert self._limit is not None
                job.timer = self._clock.callLater(self._limit, self._check, job, job.beats)
                return
            late = Late(begun=begun)
            job.over = late
            if not begun and job in self._queue:
                self._queue.remove(job)
        if begun:
            job.on_late()
        self._finish(job, Failure(late))

    def _finish(self, job: _Job, result: object) -> None:
        """In the reactor's thread. Whoever comes second has nothing to say any more."""
        if job.timer is not None:
            job.timer.cancel()
            job.timer = None
        if not job.done.called:
            job.done.callback(result)

    # In the threads

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                if not self._queue:
                    break
                job = self._queue.popleft()
                job.begun = True
                self._running.add(job)
            try:
                result: object = job.function(job)
            except BaseException:  # noqa: BLE001 - it is handed on
                result = Failure()
            with self._changed:
                self._running.discard(job)
            self._clock.callFromThread(self._finish, job, result)
            del job, result
        self._leave()

    def _leave(self) -> None:
        with self._changed:
            self._threads -= 1
            gone: list[Deferred[None]] = []
            if not self._threads:
                gone, self._gone = self._gone, gone
        for ended in gone:
            self._clock.callFromThread(ended.callback, None)
