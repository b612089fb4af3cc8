"""What happens, as server-sent events to everybody who watches; and what is in flight, to be cut."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request
from zope.interface import implementer

from ... import __version__
from ...record.exchange import Role
from ...record.keeper import Keeper
from ...record.live import Block, Live, LiveTap
from ...record.so_far import SoFar, read_so_far
from ...relay.flight import Flight
from ...relay.streaming import cut
from ...runtime import Drain, Gauge, InFlightRequest
from ..answers import to_json
from . import shapes
from .access import Guard
from .app import Route, set_head
from .calls import Call, Refusal, Reply, answer_json, fit, show_time, valid_id
from .records import Records

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
MOST_SHOWN = 500
"""Requests in flight that are shown."""
SHOWN_TEXT = 16 * 1024
"""Characters of a block's text that are shown when its request is shown as a whole."""
MOST_NOTED = 1000
"""Records of which it is noted that they were written, and not yet told."""
FETCHED_AT_ONCE = 100
MOST_TOLD = 2000
MOST_TOLD_BYTES = 4 * 1024 * 1024
"""Of what was told of records, for those who come back."""

CATCH_UP_AFTER = (0.4, 1.0)
"""Seconds until it is looked what came before somebody began to watch; and until that is tried again."""
MOST_BEFORE = 8 * 1024 * 1024
"""Bytes of an answer of which that is done."""

CUT_REASON = "The request was cut from the proxy's dashboard. Send it again if it is still wanted."


def frame(event: str, data: object, event_id: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if event_id is None else b"id: %b\n" % event_id.encode("ascii")
    return b"%bevent: %b\ndata: %b\n\n" % (head, event.encode("ascii"), to_json(data))


@attrs.frozen
class _Told:
    number: int
    data: bytes


@implementer(IPushProducer)
class Watcher:
    """
    Somebody who watches.

    Nothing waits here for one that is slow: what it is behind is known by what it was told last.

    :ivar position: the number of the record that it was told last.
    :ivar texts: how much of each block of each flight it was told.
    """

    def __init__(self, request: Request, now: float) -> None:
        self.request = request
        self.done: Deferred[None] = Deferred()
        self.position = 0
        self.texts: dict[str, dict[int, int]] = {}
        self.shown: dict[str, tuple[object, ...]] = {}
        self.landed: deque[tuple[str, bytes]] = deque(maxlen=MOST_SHOWN)
        self.held_since: float | None = None
        self.heard_at = now
        self.seconds: Callable[[], float] = lambda: now

    def pauseProducing(self) -> None:
        if self.held_since is None:
            self.held_since = self.seconds()

    def resumeProducing(self) -> None:
        self.held_since = None

    def stopProducing(self) -> None:
        self.held_since = self.seconds()

    def write(self, frames: Iterable[bytes]) -> None:
        data = b"".join(frames)
        if data:
            self.request.write(data)

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
        gauge: Gauge,
        drain: Drain,
        keeper: Keeper | None,
        records: Records,
        wall_clock: Callable[[], float],
        compute: Callable[..., Awaitable[Any]],
    ) -> None:
        self._clock = clock
        self._live = live
        self._gauge = gauge
        self._drain = drain
        self._keeper = keeper
        self._records = records
        self._wall_clock = wall_clock
        self._compute = compute
        self._catching_up: IDelayedCall | None = None
        self._watchers: dict[Watcher, None] = {}
        self._ticking: IDelayedCall | None = None
        self._ticks = 0
        self._status: Json = {}
        self._closed = False
        # Records: what was told, and what is to be.
        self._name = secrets.token_hex(4)
        self._number = 0
        self._told: deque[_Told] = deque()
        self._told_bytes = 0
        self._noted: dict[str, None] = {}
        self._fetching = False
        self._stop_watching: Callable[[], None] | None = None
        self._subscribing = False
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
        position = self._position_of(last_id)
        watcher.position = self._number if position is None else position
        self._watchers[watcher] = None
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        if self._ticking is None:
            self._live.watch()
            self._ticking = self._clock.callLater(TICK, self._tick)
            self._catch_up_later(list(CATCH_UP_AFTER))
        self._subscribe()
        self._live.look()
        self._status = self.status()
        first = [frame("hello", {"version": __version__, "resumed": position is not None})]
        if last_id is not None and position is None:
            first.append(frame("reset", {"reason": "It is not known any more what was told before."}))
        first.append(frame("status", self._status))
        watcher.write([*first, *self._records_for(watcher), *self._flights_for(watcher, {})])

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
        if self._lingering is None and not self._closed:
            self._lingering = self._clock.callLater(LINGER, self._unsubscribe)

    def close(self) -> None:
        """End all that is told."""
        self._closed = True
        for watcher in list(self._watchers):
            watcher.end()
        if self._lingering is not None:
            self._lingering.cancel()
        self._unsubscribe()

    # What is told

    def status(self) -> Json:
        """``Status``."""
        draining = self._drain.draining
        return {
            "inFlight": self._gauge.in_flight,
            "draining": draining,
            "drainSecondsLeft": round(self._drain.remaining, 1) if draining else None,
            "recording": {"status": "off"} if self._keeper is None else self._keeper.describe(),
            "now": self._now(),
        }

    def flights(self) -> list[Json]:
        """``Flight`` of what is in flight, the oldest first."""
        self._live.look()
        return [self._flight(request) for request in self._gauge.oldest(MOST_SHOWN)]

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
        self._fetch()
        if self._stop_watching is None and self._ticks % STATUS_EVERY == 0:
            self._subscribe()
        common: list[bytes] = []
        status = self.status()
        changed = any(status[name] != self._status.get(name) for name in ("inFlight", "draining"))
        if changed or self._ticks % STATUS_EVERY == 0:
            self._status = status
            common.append(frame("status", status))
        if self._ticks % NUMBERS_EVERY == 0 and self._gauge.in_flight:
            shown = self._gauge.oldest(MOST_SHOWN)
            common.append(frame("numbers", {"requests": [self._numbers(each) for each in shown]}))
        made: dict[object, bytes] = {}
        now = self._clock.seconds()
        in_flight = frozenset([each.request_id for each in self._gauge.oldest()])
        for watcher in list(self._watchers):
            if watcher.held_since is not None:
                if now - watcher.held_since > HELD_TOO_LONG:
                    self._cut_off(watcher)
                continue
            frames = [
                *self._landed_for(watcher, in_flight),
                *self._flights_for(watcher, made),
                *self._records_for(watcher),
                *common,
            ]
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
        cut(watcher.request)

    # The beginning of what was joined in its middle

    def _catch_up_later(self, after: list[float]) -> None:
        """Look into the spool for what came before anybody watched: it takes a moment until all of that is there."""
        wanting = [tap for tap in self._live.followed() if tap.wants_beginning is not None]
        if self._keeper is None or self._keeper.mode != "full" or not after:
            for tap in wanting:
                tap.give_up()
        elif wanting:
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
        for request in self._gauge.oldest(MOST_SHOWN):
            request_id = request.request_id
            tap = self._live.find(request_id)
            text = None if tap is None else tap.text
            state = self._state(request, tap)
            known = watcher.texts.get(request_id)
            gap = known is None or (text is not None and _has_gap(text.blocks, known))
            if known is None or gap or watcher.shown.get(request_id) != state:
                key: object = (request_id, state, None if text is None else tuple([block.end for block in text.blocks]))
                if key not in made:
                    made[key] = frame("flight", self._flight(request))
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

    def _state(self, request: InFlightRequest, tap: LiveTap | None) -> tuple[object, ...]:
        """What a watcher is shown anew for when it changes."""
        flight = cast("Flight", request)
        return (
            self._phase(flight, tap),
            flight.provider,
            flight.routed_model,
            flight.demoted,
            tap is not None and tap.text is not None and tap.text.partial,
        )

    def _phase(self, flight: Flight, tap: LiveTap | None) -> str:
        if flight.first_byte_at is not None or (tap is not None and tap.status is not None):
            return "answering"
        if flight.provider is not None or (tap is not None and tap.read_at is not None):
            return "waiting"
        return "receiving"

    def _numbers(self, request: InFlightRequest) -> Json:
        flight = cast("Flight", request)
        tap = self._live.find(flight.request_id)
        now = self._clock.seconds()
        first = flight.first_byte_at
        tokens = None if tap is None or tap.text is None else tap.text.tokens
        speed = None
        if first is not None and tokens and now - first >= 0.2:
            speed = round(tokens / (now - first), 1)
        return {
            "requestId": flight.request_id,
            "ageMs": round((now - flight.received_at) * 1000),
            "phase": self._phase(flight, tap),
            "status": flight.status or (None if tap is None else tap.status),
            "ttftMs": None if first is None else round((first - flight.received_at) * 1000, 3),
            "responseBytes": flight.sent_bytes,
            "outputTokens": tokens,
            "tokensPerSecond": speed,
        }

    def _flight(self, request: InFlightRequest) -> Json:
        flight = cast("Flight", request)
        tap = self._live.find(flight.request_id)
        text = None if tap is None else tap.text
        origin = None if tap is None else tap.origin
        summary = flight.summary
        age = self._clock.seconds() - flight.received_at
        model = flight.model
        return self._numbers(flight) | {
            "timestamp": show_time(int((self._wall_clock() - age) * 1e6)),
            "method": flight.method,
            "endpoint": flight.path,
            "model": flight.routed_model or model,
            "originalModel": model,
            "provider": flight.provider,
            "session": None if origin is None else origin.session,
            "prompt": None if origin is None else origin.prompt,
            "agent": None if origin is None else origin.agent,
            "parentAgent": None if origin is None else origin.parent_agent,
            "agentType": None if origin is None else origin.agent_type,
            "requestClass": None if origin is None else origin.request_class,
            "stream": None if summary is None else summary.stream,
            "demoted": flight.demoted,
            "requestBytes": flight.body_bytes,
            "textIsPartial": text is not None and text.partial,
            "blocks": [] if text is None else [_block(block) for block in text.blocks],
        }

    # Records

    def _position_of(self, last_id: str | None) -> int | None:
        """The number behind which somebody goes on; ``None`` where that is not possible."""
        name, _, number = (last_id or "").partition("-")
        if name != self._name or not number.isascii() or not number.isdigit() or len(number) > 15:
            return None
        position = int(number)
        oldest = self._told[0].number if self._told else self._number + 1
        return position if oldest - 1 <= position <= self._number and self._stop_watching is not None else None

    def _records_for(self, watcher: Watcher) -> list[bytes]:
        if watcher.position == self._number:
            return []
        oldest = self._told[0].number if self._told else self._number + 1
        frames: list[bytes] = []
        if watcher.position < oldest - 1:
            frames.append(frame("reset", {"reason": "More was recorded than this viewer could be told."}))
        frames += [told.data for told in self._told if told.number > watcher.position]
        watcher.position = self._number
        return frames

    def _note(self, ids: Sequence[str]) -> None:
        """These were written."""
        self._noted.update(dict.fromkeys(ids))
        if len(self._noted) > MOST_NOTED:
            self._noted.clear()
            self._reset("More was recorded than can be told one by one.")

    def _reset(self, reason: str) -> None:
        """From here on nobody can go on from what was told before."""
        self._number += 1
        self._told.clear()
        self._told_bytes = 0
        self._keep(frame("reset", {"reason": reason}))

    def _keep(self, data: bytes) -> None:
        self._told.append(_Told(self._number, data))
        self._told_bytes += len(data)
        while len(self._told) > MOST_TOLD or self._told_bytes > MOST_TOLD_BYTES:
            self._told_bytes -= len(self._told.popleft().data)

    def _fetch(self) -> None:
        if self._fetching or not self._noted:
            return
        ids = list(self._noted)[:FETCHED_AT_ONCE]
        for each in ids:
            del self._noted[each]
        self._fetching = True
        fetched = self._records.ask_later(lambda store: store.aggregates.exchanges(ids))

        def tell(exchanges: Any) -> None:
            for exchange in sorted(exchanges, key=lambda each: each.id):
                self._number += 1
                self._keep(frame("request", shapes.summary(exchange), f"{self._name}-{self._number}"))

        def failed(failure: Failure) -> None:
            self._reset("The records could not be read for a while.")
            if failure.check(Refusal) is None:
                log.failure("reading what was recorded failed", failure)

        def over(_: object) -> None:
            self._fetching = False

        fetched.addCallbacks(tell, failed)
        fetched.addBoth(over)

    def _subscribe(self) -> None:
        if self._stop_watching is not None or self._subscribing or self._closed:
            return

        async def watch(store: Any) -> Callable[[], None]:
            stop: Callable[[], None] = store.watch(self._note)
            return stop

        def begun(stop: Callable[[], None]) -> None:
            self._subscribing = False
            if self._closed or not self._watchers:
                stop()
                return
            self._stop_watching = stop
            # What was written since they came, nobody told them.
            self._reset("Records are watched from now on.")

        def failed(failure: Failure) -> None:
            # Tried again; the lists say why nothing is shown.
            self._subscribing = False
            if failure.check(Refusal) is None:
                log.failure("watching what is recorded failed", failure)

        self._subscribing = True
        self._records.ask_later(watch).addCallbacks(begun, failed)

    def _unsubscribe(self) -> None:
        self._lingering = None
        stop, self._stop_watching = self._stop_watching, None
        if stop is not None:
            stop()
        self._noted.clear()


def _has_gap(blocks: Sequence[Block], known: dict[int, int]) -> bool:
    """Whether something is missing between what was told of a block and what is kept of it."""
    return any(block.start > known.get(block.index, 0) or block.end < known.get(block.index, 0) for block in blocks)


def _block(block: Block) -> Json:
    return {
        "index": block.index,
        "kind": block.kind,
        "name": block.name,
        "text": block.text[-SHOWN_TEXT:],
    }


class _Stream:
    """The answer of ``/api/live``."""

    def __init__(self, hub: Hub, guard: Guard, call: Call, seconds: Callable[[], float]) -> None:
        self._hub = hub
        self._guard = guard
        self._call = call
        self._seconds = seconds

    async def send(self, request: Request) -> None:
        watcher = Watcher(request, self._seconds())
        last_id = request.requestHeaders.getRawHeaders(b"Last-Event-ID", [b""])[0].decode("latin-1")
        if request.method == b"HEAD":
            set_head(request, 200, "text/event-stream", {"X-Accel-Buffering": "no"})
            request.finish()
            return
        set_head(request, 200, "text/event-stream", {"X-Accel-Buffering": "no"})
        undo = self._guard.when_ended(self._call.viewer, watcher.end)
        request.registerProducer(watcher, True)
        try:
            self._hub.enter(watcher, last_id or None)
            await watcher.done
            request.unregisterProducer()
            request.finish()
        finally:
            undo()
            self._hub.leave(watcher)


class LiveApi:
    """``/api/live`` and ``/api/in-flight``."""

    def __init__(self, hub: Hub, guard: Guard, gauge: Gauge, clock: IReactorTime) -> None:
        self._hub = hub
        self._guard = guard
        self._gauge = gauge
        self._clock = clock
        self._cut: WeakSet[InFlightRequest] = WeakSet()

    def routes(self) -> Sequence[Route]:
        return (
            Route(method="GET", rule="/api/live", name="live", handler=self.stream),
            Route(method="GET", rule="/api/in-flight", name="listInFlight", handler=self.in_flight),
            Route(method="POST", rule="/api/in-flight/<exchange_id>/cut", name="cutRequest", handler=self.cut),
        )

    async def stream(self, call: Call) -> _Stream:
        self._hub.check()
        return _Stream(self._hub, self._guard, call, self._clock.seconds)

    async def in_flight(self, call: Call) -> Reply:
        requests, _ = fit(self._hub.flights(), lambda flight: flight)
        return answer_json({"requests": requests, "total": self._gauge.in_flight, "status": self._hub.status()})

    async def cut(self, call: Call, exchange_id: str) -> Reply:
        valid_id(exchange_id)
        request = next((each for each in self._gauge.oldest() if each.request_id == exchange_id), None)
        if request is None:
            raise Refusal(404, f"{exchange_id} is not in flight, or not any more.")
        log.info("{request_id} is cut from the dashboard", request_id=exchange_id)
        if request not in self._cut:
            # Once is enough: it may take a while until it is gone.
            self._cut.add(request)
            request.cut(CUT_REASON)
        return answer_json({"requestId": exchange_id}, 202)
