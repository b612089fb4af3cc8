"""Makes recorders go: what has come in half a second together, a pause that grows while the store takes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from .recorder import Recorder
from .store import StoreError

log = Logger()

GATHER: Final = 0.5
"""Seconds between one batch and the next, so that a busy proxy makes few large transactions."""
LOOK_EVERY: Final = 1.0
"""Seconds after which entries are looked for without being told of any."""
FIRST_PAUSE: Final = 0.5
LAST_PAUSE: Final = 10.0
REMIND_EVERY: Final = 60.0


class Pump:
    """
    Steps recorders, one after the other, the first ones first.

    :param done: called with each recorder that is done; it is stepped no more.
    :param changed: called when :attr:`problem` is another, and after each round that got something done.
    :ivar problem: why the store takes nothing, in words; ``None`` while it does.
    :ivar progress_at: when something was stored last, by the clock.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        done: Callable[[Recorder], None] = lambda recorder: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._done = done
        self._changed = changed
        self._recorders: list[Recorder] = []
        self._alarm: Deferred[None] | None = None
        self._woken = False
        self._hurried = False
        self._stopped = False
        self._pause = FIRST_PAUSE
        self._failed_at: float | None = None
        self._reminded_at = 0.0
        self.problem: str | None = None
        self.progress_at = clock.seconds()

    @property
    def recorders(self) -> tuple[Recorder, ...]:
        """Those that are not done."""
        return tuple(self._recorders)

    @property
    def behind(self) -> int:
        """Bytes that are not in the store."""
        return sum(recorder.behind for recorder in self._recorders)

    def add(self, recorder: Recorder, *, first: bool = False) -> None:
        """Step this one, too; ``first``: before the others."""
        self._recorders.insert(0 if first else len(self._recorders), recorder)
        self.wake()

    def wake(self) -> None:
        """There may be something to do."""
        self._woken = True
        self._ring()

    def hurry(self) -> None:
        """Gather no longer."""
        self._hurried = True
        self.wake()

    def stop(self) -> None:
        """Have :meth:`run` return after the step at hand."""
        self._stopped = True
        self.wake()

    async def run(self) -> None:
        """Until :meth:`stop`."""
        while not self._stopped:
            began = self._clock.seconds()
            self._woken = False
            try:
                more = await self._round()
            except StoreError as problem:
                if not self._stopped:
                    await self._wait_out(str(problem))
                continue
            except Exception as problem:  # noqa: BLE001 - whatever it is, what comes after it is to be recorded
                log.failure("recording failed")
                await self._wait_out(f"recording failed: {type(problem).__name__}")
                continue
            self._recovered()
            if not more:
                await self._rest(began)

    async def _round(self) -> bool:
        more = False
        problem: Exception | None = None
        for recorder in self.recorders:
            if self._stopped:
                return False
            try:
                did_something = await recorder.step()
            except Exception as error:  # noqa: BLE001 - what one cannot store another may
                problem = error
                continue
            if recorder.done:
                self._recorders.remove(recorder)
                self._done(recorder)
            elif did_something:
                more = True
            if did_something:
                self.progress_at = self._clock.seconds()
            self._changed()
        if problem is not None:
            raise problem
        return more

    async def _rest(self, began: float) -> None:
        await self._sleep(began + GATHER - self._clock.seconds(), lambda: self._hurried)
        await self._sleep(LOOK_EVERY, lambda: self._woken)

    async def _wait_out(self, problem: str) -> None:
        now = self._clock.seconds()
        if self._failed_at is None:
            self._failed_at = self._reminded_at = now
            log.error("nothing is recorded at present, it waits in the spool: {problem}", problem=problem)
        elif now - self._reminded_at >= REMIND_EVERY:
            self._reminded_at = now
            log.error(
                "nothing was recorded for {seconds:.0f} s, {behind} bytes wait in the spool: {problem}",
                seconds=now - self._failed_at,
                behind=self.behind,
                problem=problem,
            )
        self.problem = problem
        self._changed()
        await self._sleep(FIRST_PAUSE if self._hurried else self._pause)
        self._pause = min(self._pause * 2, LAST_PAUSE)

    def _recovered(self) -> None:
        if self._failed_at is None:
            return
        log.info("recording goes on, after {seconds:.0f} s", seconds=self._clock.seconds() - self._failed_at)
        self._failed_at = None
        self._pause = FIRST_PAUSE
        self.problem = None
        self._changed()

    # Waiting

    async def _sleep(self, seconds: float, awake: Callable[[], bool] = lambda: False) -> None:
        """So long; not when it is to stop, or ``awake``."""
        deadline = self._clock.seconds() + seconds
        while not self._stopped and not awake() and (left := deadline - self._clock.seconds()) > 0:
            self._alarm = Deferred()
            call = self._clock.callLater(left, self._ring)
            await self._alarm
            if call.active():
                call.cancel()

    def _ring(self) -> None:
        alarm, self._alarm = self._alarm, None
        if alarm is not None:
            alarm.callback(None)
