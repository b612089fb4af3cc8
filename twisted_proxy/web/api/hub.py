"""Who watches, and what they are told."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request
from zope.interface import implementer

from ... import __version__
from ...record.exchange import Role
from ...record.keeper import Keeper
from ...record.live import Live, LiveTap
from ...record.live_text import Block
from ...record.so_far import SoFar, read_so_far
from ...relay.flight import Flight
from ...relay.streaming import cut
from ..family import Family, together
from .calls import Refusal, show_time
from .in_flight import MOST_SHOWN, InFlight
from .news import News, frame

log = Logger()

Json = dict[str, Any]

TICK = 0.1
"""Seconds between two looks at what passes, while somebody watches."""
NUMBERS_EVERY = 10
STATUS_EVERY = 50
HEARTBEAT_EVERY = 150
"""All in ticks."""
LINGER = 60.0
"""Seconds for which records are watched when nobody does any more: who comes back has missed nothing."""
MOST_VIEWERS = 100
HELD_TOO_LONG = 60.0
"""Seconds after which a viewer that takes nothing is cut off."""
CATCH_UP_AFTER = (0.4, 1.0)
"""Seconds until it is looked what came before somebody began to watch; and until that is tried again."""
MOST_BEFORE = 8 * 1024 * 1024
"""Bytes of an answer of which that is done."""


@implementer(IPushProducer)
class Watcher:
    """
    Somebody who watches.

    Nothing waits here for one that is slow: what it is behind is known by what it was told last.

    :param request: whose answer is written; ``None`` where `write` is another.
    :ivar whole: whether it is told everything, or only what passes here.
    :ivar position: the number of the record that it was told last.
    :ivar texts: how much of each block of each flight it was told.
    :ivar on_flow: told when it takes nothing any more, or something again.
    """

    whole = True

    def __init__(self, request: Request | None, now: float) -> None:
        self.request = request
        self.done: Deferred[None] = Deferred()
        self.position = 0
        self.texts: dict[str, dict[int, int]] = {}
        self.shown: dict[str, tuple[object, ...]] = {}
        self.landed: deque[tuple[str, bytes]] = deque(maxlen=MOST_SHOWN)
        self.held_since: float | None = None
        self.heard_at = now
        self.seconds: Callable[[], float] = lambda: now
        self.on_flow: Callable[[bool], None] = lambda held: None

    def pauseProducing(self) -> None:
        if self.held_since is None:
            self.held_since = self.seconds()
            self.on_flow(True)

    def resumeProducing(self) -> None:
        self.held_since = None
        self.on_flow(False)

    def stopProducing(self) -> None:
        self.held_since = self.seconds()

    def write(self, frames: Iterable[bytes]) -> None:
        data = b"".join(frames)
        if data and self.request is not None:
            self.request.write(data)

    def tell_state(self, state: Json) -> None:
        """How it is here, for one that is not told as a whole."""

    def end(self) -> None:
        """Finish the answer."""
        if not self.done.called:
            self.done.callback(None)


class Hub:
    """
    Who watches, and what they are told.

    :param wall_clock: seconds since the Unix epoch.
    :param compute: runs what reads files, where it blocks nobody.
    """

    def __init__(
        self,
        clock: IReactorTime,
        live: Live,
        in_flight: InFlight,
        news: News,
        family: Family,
        keeper: Keeper | None,
        wall_clock: Callable[[], float],
        compute: Callable[..., Awaitable[Any]],
    ) -> None:
        self._clock = clock
        self._live = live
        self._in_flight = in_flight
        self._news = news
        self._family = family
        self._elsewhere: dict[int, Json] = {}
        self._keeper = keeper
        self._wall_clock = wall_clock
        self._compute = compute
        self._catching_up: IDelayedCall | None = None
        self._watchers: dict[Watcher, None] = {}
        self._ticking: IDelayedCall | None = None
        self._ticks = 0
        self._status: Json = {}
        self._closed = False
        self._lingering: IDelayedCall | None = None
        live.on_landed = self._landed

    # Watchers

    def check(self) -> None:
        """
        :raises Refusal: nobody more can watch now.
        """
        if self._closed:
            raise Refusal(503, "The proxy is shutting down.", {"Retry-After": "5"})
        if len(self._watchers) >= MOST_VIEWERS:
            raise Refusal(503, f"{MOST_VIEWERS} are watching already, which is the most.", {"Retry-After": "30"})

    def enter(self, watcher: Watcher, last_id: str | None) -> None:
        """Begin to tell somebody."""
        watcher.seconds = self._clock.seconds
        position = self._news.position_of(last_id)
        watcher.position = self._news.number if position is None else position
        self._watchers[watcher] = None
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        if self._ticking is None:
            self._live.watch()
            self._ticking = self._clock.callLater(TICK, self._tick)
            self._catch_up_later(list(CATCH_UP_AFTER))
        self._live.look()
        if not watcher.whole:
            watcher.tell_state(self._family.own_state())
            watcher.write(self._flights_for(watcher, {}))
            return
        self._news.begin()
        self._status = self.status()
        first = [frame("hello", {"version": __version__, "resumed": position is not None})]
        if last_id is not None and position is None:
            first.append(frame("reset", {"reason": "It is not known any more what was told before."}))
        first.append(frame("status", self._status))
        watcher.write([*first, *self._news_for(watcher), *self._flights_for(watcher, {})])

    def leave(self, watcher: Watcher) -> None:
        self._watchers.pop(watcher, None)
        if self._watchers:
            return
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        if self._catching_up is not None:
            self._catching_up.cancel()
            self._catching_up = None
        self._live.unwatch()
        self._elsewhere.clear()
        if self._lingering is None and not self._closed:
            self._lingering = self._clock.callLater(LINGER, self._forget)

    def close(self) -> None:
        """End all that is told."""
        self._closed = True
        for watcher in list(self._watchers):
            watcher.end()
        if self._lingering is not None:
            self._lingering.cancel()
        self._forget()

    def _forget(self) -> None:
        self._lingering = None
        self._news.end()

    # What is told

    def status(self) -> Json:
        """``Status``, as far as it is known while somebody watches."""
        return self.in_words(together([self._family.own_state(), *self._elsewhere.values()]))

    def in_words(self, state: Json) -> Json:
        """A state as ``Status``."""
        left = state["drain_seconds_left"]
        return {
            "inFlight": state["in_flight"],
            "draining": state["draining"],
            "drainSecondsLeft": None if left is None else round(left, 1),
            "recording": state["recording"],
            "now": self._now(),
        }

    def heard(self, member: int, state: Json | None) -> None:
        """How it is with another worker; ``None``: there is none any more."""
        if state is None:
            self._elsewhere.pop(member, None)
        elif self._watchers:
            self._elsewhere[member] = state

    @property
    def now(self) -> float:
        """Seconds, by the reactor's clock."""
        return self._clock.seconds()

    def flights(self) -> list[Json]:
        """``Flight`` of what is in flight, the oldest first."""
        self._live.look()
        return [self._in_flight.describe(request) for request in self._in_flight.shown]

    def _now(self) -> str:
        return show_time(int(self._wall_clock() * 1e6))

    def _tick(self) -> None:
        self._ticking = self._clock.callLater(TICK, self._tick)
        self._ticks += 1
        try:
            self._tell()
        except Exception:  # noqa: BLE001 - the next tick may do better
            log.failure("telling those who watch failed")

    def _tell(self) -> None:
        self._live.look()
        self._news.fetch()
        if self._ticks % STATUS_EVERY == 0:
            self._news.begin()
        common: list[bytes] = []
        numbers: list[bytes] = []
        status = self.status()
        changed = any(status[name] != self._status.get(name) for name in ("inFlight", "draining"))
        if changed or self._ticks % STATUS_EVERY == 0:
            self._status = status
            common.append(frame("status", status))
            state = self._family.own_state()
            for watcher in self._watchers:
                watcher.tell_state(state)
        if self._ticks % NUMBERS_EVERY == 0 and (shown := self._in_flight.shown):
            numbers.append(frame("numbers", {"requests": [self._in_flight.numbers(each) for each in shown]}))
        made: dict[object, bytes] = {}
        now = self._clock.seconds()
        in_flight = self._in_flight.ids
        for watcher in list(self._watchers):
            if watcher.held_since is not None:
                if now - watcher.held_since > HELD_TOO_LONG:
                    self._cut_off(watcher)
                continue
            frames = [*self._landed_for(watcher, in_flight), *self._flights_for(watcher, made), *numbers]
            if not watcher.whole:
                watcher.write(frames)
                continue
            frames += [*self._news_for(watcher), *common]
            if frames:
                watcher.heard_at = now
            elif now - watcher.heard_at >= HEARTBEAT_EVERY * TICK:
                # So that it, and whatever stands between, sees that we are here.
                watcher.heard_at = now
                frames = [b": \n\n"]
            watcher.write(frames)

    def _cut_off(self, watcher: Watcher) -> None:
        log.info("dashboard: a viewer took nothing for {seconds:.0f}s and was cut off", seconds=HELD_TOO_LONG)
        self.leave(watcher)
        if watcher.request is not None:
            cut(watcher.request)

    # The beginning of what was joined in its middle

    def _catch_up_later(self, after: list[float]) -> None:
        """Look into the spool for what came before anybody watched: it takes a moment until all of that is there."""
        wanting = [tap for tap in self._live.followed() if tap.wants_beginning is not None]
        if self._keeper is None or self._keeper.mode != "full" or not after:
            for tap in wanting:
                tap.give_up()
        elif wanting and self._catching_up is None:
            self._catching_up = self._clock.callLater(after[0], self._catch_up, after[1:])

    def _catch_up(self, after: list[float]) -> None:
        self._catching_up = None
        assert self._keeper is not None
        wanted = {
            tap.passing.request_id: role for tap in self._live.followed() if (role := tap.wants_beginning) is not None
        }
        reading = Deferred.fromCoroutine(self._read_so_far(self._keeper.slot, wanted))

        def read(found: dict[str, SoFar]) -> None:
            if self._watchers:
                for request_id, so_far in found.items():
                    tap = self._live.find(request_id)
                    if tap is not None:
                        tap.begin_with(so_far)
                self._catch_up_later(after)

        def failed(failure: Failure) -> None:
            log.failure("reading the spool for those who watch failed", failure)

        reading.addCallback(read).addErrback(failed)

    async def _read_so_far(self, slot: Path, wanted: Mapping[str, Role]) -> dict[str, SoFar]:
        found: dict[str, SoFar] = await self._compute(read_so_far, slot, wanted, MOST_BEFORE)
        return found

    # Flights

    def _flights_for(self, watcher: Watcher, made: dict[object, bytes]) -> list[bytes]:
        """
        What a watcher does not know of what is in flight.

        :param made: frames that others were told, too.
        """
        frames: list[bytes] = []
        for request in self._in_flight.shown:
            request_id = request.request_id
            tap = self._live.find(request_id)
            text = None if tap is None else tap.text
            state = self._in_flight.state(request, tap)
            known = watcher.texts.get(request_id)
            gap = known is None or (text is not None and _has_gap(text.blocks, known))
            if known is None or gap or watcher.shown.get(request_id) != state:
                key: object = (request_id, state, None if text is None else tuple([block.end for block in text.blocks]))
                if key not in made:
                    made[key] = frame("flight", self._in_flight.describe(request))
                frames.append(made[key])
                watcher.shown[request_id] = state
                watcher.texts[request_id] = {} if text is None else {block.index: block.end for block in text.blocks}
                continue
            for block in () if text is None else text.blocks:
                told = known.get(block.index, 0)
                if block.end > told:
                    piece = (request_id, block.index, told, block.end)
                    if piece not in made:
                        made[piece] = frame(
                            "text",
                            {
                                "requestId": request_id,
                                "index": block.index,
                                "kind": block.kind,
                                "name": block.name,
                                "text": block.text[max(0, told - block.start) :],
                            },
                        )
                    frames.append(made[piece])
                    known[block.index] = block.end
        return frames

    def _news_for(self, watcher: Watcher) -> list[bytes]:
        frames = self._news.since(watcher.position)
        watcher.position = self._news.number
        return frames

    def _landed(self, tap: LiveTap) -> None:
        flight = cast("Flight", tap.passing)
        verdict = "failed" if flight.verdict is None else flight.verdict.value
        told = frame(
            "landed", {"requestId": flight.request_id, "verdict": verdict, "status": flight.status or tap.status}
        )
        # The last of its text comes before that.
        text = tap.text
        for watcher in self._watchers:
            known = watcher.texts.get(flight.request_id)
            last: list[bytes] = []
            for block in () if text is None or known is None or _has_gap(text.blocks, known) else text.blocks:
                behind = known.get(block.index, 0) if known is not None else 0
                if block.end > behind:
                    last.append(
                        frame(
                            "text",
                            {
                                "requestId": flight.request_id,
                                "index": block.index,
                                "kind": block.kind,
                                "name": block.name,
                                "text": block.text[max(0, behind - block.start) :],
                            },
                        )
                    )
            if known is not None:
                watcher.landed.append((flight.request_id, b"".join([*last, told])))

    def _landed_for(self, watcher: Watcher, in_flight: frozenset[str]) -> list[bytes]:
        frames = []
        while watcher.landed:
            request_id, told = watcher.landed.popleft()
            watcher.texts.pop(request_id, None)
            watcher.shown.pop(request_id, None)
            frames.append(told)
        # What nobody told of: requests that are not recorded, and those beyond what is kept of a slow viewer.
        gone = [each for each in watcher.texts if each not in in_flight]
        for request_id in gone:
            del watcher.texts[request_id]
            watcher.shown.pop(request_id, None)
            frames.append(frame("landed", {"requestId": request_id, "verdict": "unknown", "status": None}))
        return frames


def _has_gap(blocks: Sequence[Block], known: dict[int, int]) -> bool:
    """Whether something is missing between what was told of a block and what is kept of it."""
    return any(block.start > known.get(block.index, 0) or block.end < known.get(block.index, 0) for block in blocks)
