"""How late the reactor is: the time for which whatever else it should do has to wait."""

from __future__ import annotations

from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..tally import Histogram

LOOK_EVERY: Final = 0.25
"""Seconds between two looks."""
BOUNDS: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class LagMonitor:
    """
    Measures, from :meth:`start` to :meth:`stop`, by how much calls come later than they were to.

    A `LoopingCall` would skip the intervals that a busy reactor missed; here a late call is as late as it was.

    :ivar lag: seconds.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._due = 0.0
        self._call: IDelayedCall | None = None
        self.lag = Histogram(BOUNDS)

    def start(self) -> None:
        if self._call is None:
            self._plan()

    def stop(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _plan(self) -> None:
        self._due = self._clock.seconds() + LOOK_EVERY
        self._call = self._clock.callLater(LOOK_EVERY, self._look)

    def _look(self) -> None:
        # Somebody may have set the host's clock back.
        self.lag.observe(max(0.0, self._clock.seconds() - self._due))
        self._plan()
