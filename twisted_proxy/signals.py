"""SIGTERM and SIGINT: the first ends the process in good order, the second at once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from twisted.logger import Logger

log = Logger()


class StopSignals:
    """
    Learns which signal comes, and takes the second one for "now".

    Twisted's own handlers stay in charge of the first: they stop the reactor, which stops its services.

    :param is_stopping: whether the first one has had its effect.
    :param told: called with the first one before that has an effect.
    :param hurry: called with each one that comes while it has an effect.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        is_stopping: Callable[[], bool],
        told: Callable[[signal.Signals], None],
        hurry: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._is_stopping = is_stopping
        self._told = told
        self._hurry = hurry
        self._handlers: dict[int, Any] = {}
        self._told_to_stop = False

    def take(self) -> None:
        """Take the place of the handlers that are there now."""
        for number in (signal.SIGTERM, signal.SIGINT):
            previous = signal.getsignal(number)
            if callable(previous):
                self._handlers[number] = previous
                signal.signal(number, self._signalled)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._heed, signal.Signals(number), frame)

    def _heed(self, number: signal.Signals, frame: FrameType | None) -> None:
        if self._is_stopping():
            log.info("received {signal} while draining: stopping now", signal=number.name)
            self._hurry()
            return
        if self._told_to_stop:
            # A terminal and a wrapper tell it twice at once: that is no second thought.
            return
        self._told_to_stop = True
        log.info("received {signal}", signal=number.name)
        self._told(number)
        self._handlers[number](number, frame)
