"""
What is in flight, and how the process comes to its end.

State belongs to the instances: two proxies in one process have two gauges and two drains.
"""

from __future__ import annotations

import enum
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

log = Logger()


class ReceivedRequest(Protocol):
    """What is known of a request when its headers are in."""

    @property
    def request_id(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def received_at(self) -> float:
        """When that was, by the reactor's clock, in seconds."""


class InFlightRequest(ReceivedRequest, Protocol):
    """What the gauge knows of a request that it counts."""

    @property
    def model(self) -> str | None: ...

    def cut(self, reason: str) -> None:
        """End it now, visibly to its client. Called at most once, by the drain."""

    def cut_by_hand(self, reason: str) -> None:
        """The same, for somebody who wants this one to end."""


class Waiters:
    """Deferreds of everybody who waits for one thing to happen."""

    def __init__(self) -> None:
        self._waiting: list[Deferred[None]] = []

    def wait(self) -> Deferred[None]:
        waiter: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        return waiter

    def fire(self) -> None:
        self._waiting, waiting = [], self._waiting
        for waiter in waiting:
            waiter.callback(None)


def branch(source: Deferred[None]) -> Deferred[None]:
    """A Deferred of its own for one more who waits for another one to end, however that does."""
    done: Deferred[None] = Deferred()

    def ended(result: Failure | None) -> Failure | None:
        done.callback(None)
        return result

    source.addBoth(ended)
    return done


class Gauge:
    """How many requests are in flight, which ones, and when there are none."""

    def __init__(self) -> None:
        # A dict for its order: the oldest comes first.
        self._requests: dict[InFlightRequest, None] = {}
        self._idle = Waiters()

    @property
    def in_flight(self) -> int:
        return len(self._requests)

    def enter(self, request: InFlightRequest) -> None:
        """Count a request from now on."""
        self._requests[request] = None

    def leave(self, request: InFlightRequest) -> None:
        """Count it no longer. Leaving twice, or without having entered, changes nothing."""
        if request not in self._requests:
            return
        del self._requests[request]
        if not self._requests:
            self._idle.fire()

    def oldest(self, count: int | None = None) -> list[InFlightRequest]:
        """The requests in flight, the oldest first."""
        return list(self._requests)[:count]

    def when_idle(self) -> Deferred[None]:
        """Fires, each caller its own, as soon as nothing is in flight: at once if that is so now."""
        waiter = self._idle.wait()
        if not self._requests:
            self._idle.fire()
        return waiter


class DrainState(enum.Enum):
    SERVING = "serving"
    DRAINING = "draining"
    DONE = "done"


class DrainEnd(enum.Enum):
    """Why a drain ended."""

    IDLE = "nothing is in flight"
    DEADLINE = "the drain timeout has passed"
    HURRIED = "it was told to stop at once"


TICK = 1.0
REPORT_EVERY = 10.0
REPORTED_REQUESTS = 5
_SHORTEST_WAIT = 0.001
"""A rest of time that rounding left may be too small to move the clock."""


class Drain:
    """
    serving → draining → done.

    Draining ends when the lame-duck time has passed *and* nothing is in flight, when ``timeout`` has passed, or
    when :meth:`hurry` is called. Then :attr:`end` says which.

    :param timeout: seconds from :meth:`begin` to the end at the latest.
    :param lame_duck: seconds that draining lasts at least, so that a balancer's health check sees it.
    """

    def __init__(self, clock: IReactorTime, gauge: Gauge, *, timeout: float, lame_duck: float) -> None:
        self._clock = clock
        self._gauge = gauge
        self._timeout = timeout
        self._lame_duck = lame_duck
        self._began = 0.0
        self._reported = 0.0
        self._tick: IDelayedCall | None = None
        self._done = Waiters()
        self._watching = False
        self.state = DrainState.SERVING
        self.end: DrainEnd | None = None

    @property
    def draining(self) -> bool:
        """Whether this process is on its way out."""
        return self.state is not DrainState.SERVING

    @property
    def remaining(self) -> float:
        """Seconds to the deadline; the whole timeout before draining began."""
        if not self.draining:
            return self._timeout
        return max(0.0, self._began + self._timeout - self._clock.seconds())

    def begin(self) -> Deferred[None]:
        """Start draining, if that has not been done. Fires, each caller its own, when it is over."""
        waiter = self._done.wait()
        if self.state is DrainState.SERVING:
            self.state = DrainState.DRAINING
            self._began = self._reported = self._clock.seconds()
            log.info(
                "draining: {in_flight} in flight, for at least {lame_duck:g}s and at most {timeout:g}s",
                in_flight=self._gauge.in_flight,
                lame_duck=self._lame_duck,
                timeout=self._timeout,
            )
            self._check()
        elif self.state is DrainState.DONE:
            self._done.fire()
        return waiter

    def skip_lame_duck(self) -> None:
        """Nobody watches our health: end as soon as nothing is in flight, now if that is so."""
        self._lame_duck = 0.0
        if self.state is DrainState.DRAINING and self._tick is not None:
            self._tick.cancel()
            self._check()

    def hurry(self) -> None:
        """End a drain that has begun, whatever is in flight."""
        if self.state is DrainState.DRAINING:
            self._finish(DrainEnd.HURRIED)

    def _check(self) -> None:
        self._tick = None
        now = self._clock.seconds()
        elapsed = now - self._began
        if elapsed >= self._timeout:
            self._finish(DrainEnd.DEADLINE if self._gauge.in_flight else DrainEnd.IDLE)
            return
        if elapsed >= self._lame_duck and not self._watching:
            self._watching = True
            self._gauge.when_idle().addCallback(self._became_idle)
            if self.end is not None:
                return
        if now - self._reported >= REPORT_EVERY:
            self._reported = now
            self._report(now)
        next_event = min(TICK, self._timeout - elapsed)
        if elapsed < self._lame_duck:
            next_event = min(next_event, self._lame_duck - elapsed)
        self._tick = self._clock.callLater(max(next_event, _SHORTEST_WAIT), self._check)

    def _became_idle(self, _: object) -> None:
        # The deadline may have come first.
        if self.state is DrainState.DRAINING:
            self._finish(DrainEnd.IDLE)

    def _report(self, now: float) -> None:
        log.info("draining: {in_flight} in flight", in_flight=self._gauge.in_flight)
        for request in self._gauge.oldest(REPORTED_REQUESTS):
            log.info(
                "draining: waiting for {request_id} {method} {path} model={model} age={age:.0f}s",
                request_id=request.request_id,
                method=request.method,
                path=request.path,
                model=request.model or "-",
                age=now - request.received_at,
            )

    def _finish(self, end: DrainEnd) -> None:
        self.state = DrainState.DONE
        self.end = end
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        log.info(
            "drained after {elapsed:.1f}s: {why}; {in_flight} in flight",
            elapsed=self._clock.seconds() - self._began,
            why=end.value,
            in_flight=self._gauge.in_flight,
        )
        self._done.fire()
