"""
From the hot path to the spool: appended to lists in the reactor's thread, written to files by a thread of its own.

The reactor's thread never waits for a disk. What is appended is in a file, or on its way to one, a quarter of a second
later; what is not in a file is bounded, and what passes the bounds is counted, logged and told in the record.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from . import entries
from .entries import KINDS, Closed, Kind, Opened
from .exchange import Role
from .writer import Batch, Item, Order, Report, Writer, create_file

log = Logger()

MIB: Final = 1024 * 1024
FLUSH_AT: Final = MIB
"""Bytes that are pending which are handed over at once: when they are still in a cache of the processor."""
RESERVE: Final = 16 * MIB
"""Bytes beyond each bound that are kept for entries that are no bulk data."""
MIN_FREE: Final = 256 * MIB
SEGMENT_BYTES: Final = 64 * MIB
ROTATE_EVERY: Final = 300.0
"""Seconds after which a segment gets a successor: it can be deleted then, when what is in it is stored."""
RETRY_EVERY: Final = 1.0
HANGING_AFTER: Final = 5.0
REPORT_EVERY: Final = 10.0
MISTAKE: Final = "a mistake in the program"
PIECE_COST: Final = 96
"""Bytes of memory that a piece takes beside its data: the object, its time, their places in lists."""
ENTRY_COST: Final = 256

# By identity: to hash a member of an enumeration takes a call.
_KINDS: Final = {id(role): kind for role, kind in KINDS.items()}


class Reactor(Protocol):
    """What a journal needs of a reactor: `IReactorTime`, and `IReactorFromThreads`."""

    def seconds(self) -> float: ...
    def callLater(self, delay: float, callable: Callable[..., object], /, *args: object) -> IDelayedCall: ...
    def callFromThread(self, callable: Callable[..., object], /, *args: object) -> object: ...


@attrs.frozen(kw_only=True)
class JournalStats:
    """
    How a journal is. Counts are since it was made.

    :ivar pending_bytes: in memory, not in a file.
    :ivar spool_bytes: in the slot's files, as of the last write.
    :ivar lost_bodies: exchanges of which bytes, or notes, were not kept.
    :ivar lost_exchanges: exchanges of which nothing was kept.
    :ivar problem: why something cannot be kept at present, or could not in the last ten seconds, in words; ``None`` if
        all is well.
    """

    pending_bytes: int
    spool_bytes: int
    lost_bodies: int
    lost_exchanges: int
    problem: str | None


class Tap:
    """
    Takes what passes of one exchange. No method raises or blocks, and after :meth:`close` none does anything.

    What is appended must not be changed afterwards.
    """

    __slots__ = ("_add", "_journal", "_key", "_lost", "_lost_notes", "_noted", "_over", "_role", "_time", "_why")

    def __init__(self, journal: Journal, key: bytes, *, over: bool) -> None:
        self._journal = journal
        self._key = key
        self._over = over
        # The role that can be appended to as it is: none after each flush.
        self._role: Role | None = None
        self._add: Callable[[bytes], None]
        self._time: Callable[[int], None]
        # Of all notes since the last flush, if there are any.
        self._noted: dict[str, Any] | None = None
        # Bytes, by role.
        self._lost: dict[Role, int] = {}
        self._lost_notes = 0
        self._why: str | None = None

    def bulk(self, role: Role, data: bytes) -> None:
        """
        Append to a body of which nobody asks when its bytes were there.

        Nothing is copied. So one piece is taken as long as anything is, however large: its memory is in use already.
        """
        if data and self._admits(role, len(data)):
            self._role = None
            self._journal._append((_KINDS[id(role)], self._key, (data,), None), len(data) + PIECE_COST)
            self._journal._look()

    def marked(self, role: Role, data: bytes, us: int) -> None:
        """Append to a body, ``us`` microseconds after the exchange's ``received_at``."""
        if role is not self._role and not self._begin(role, len(data)):
            return
        self._add(data)
        self._time(us)
        journal = self._journal
        journal._held = held = journal._held + len(data) + PIECE_COST
        if held > journal._watermark:
            journal._look()

    def note(self, **fields: Any) -> None:
        """
        What became known: fields of `Exchange`. A later note is right.

        Notes become one entry at the next flush, or at the end: most exchanges have a handful of them at once.
        """
        if self._over:
            return
        if self._noted is not None:
            self._noted.update(fields)
        elif self._admits_entry():
            self._noted = fields
            journal = self._journal
            journal._dirty.append(self)
            journal._arm()

    def close(self, closed: Closed) -> None:
        """The exchange is over. This entry is taken even where others are not: there is one for each that is open."""
        if self._over:
            return
        self._role = None
        self._settle()
        if self._why is not None:
            lost = f"{self._name_lost()}: {self._why}"
            closed = msgspec.structs.replace(
                closed,
                lost=lost if closed.lost is None else f"{closed.lost}; {lost}",
                incomplete=tuple(role.value for role in self._lost),
            )
        if self._admits_entry(last=True):
            self._append(Kind.CLOSED, closed)
        self._over = True

    def _begin(self, role: Role, size: int) -> bool:
        """Make room for marked pieces of a role, to be appended until the next flush. False: they are not taken."""
        if not size or not self._admits(role, size):
            return False
        pieces: list[bytes] = []
        times: list[int] = []
        self._add = pieces.append
        self._time = times.append
        self._role = role
        self._journal._append((_KINDS[id(role)], self._key, pieces, times), 0)
        self._journal._dirty.append(self)
        return True

    def _admits(self, role: Role, size: int) -> bool:
        if self._over:
            return False
        # Once something is missing, what follows is of little use: better all of others.
        if self._lost or not self._journal._takes(size):
            self._lost[role] = self._lost.get(role, 0) + size
            self._miss(size)
            return False
        return True

    def _settle(self) -> None:
        """What was noted becomes an entry. A field that has no form costs none of the others."""
        noted, self._noted = self._noted, None
        if noted is not None and not self._append(Kind.NOTED, noted, missed=len(noted) == 1) and len(noted) > 1:
            for name, value in noted.items():
                self._append(Kind.NOTED, {name: value})

    def _admits_entry(self, *, last: bool = False) -> bool:
        if self._journal._takes_entry(last=last):
            return True
        self._lost_notes += 1
        self._miss()
        return False

    def _append(self, kind: Kind, entry: dict[str, Any] | Closed, *, missed: bool = True) -> bool:
        """
        Whether it has a form.

        :param missed: whether it counts as lost where it has none.
        """
        try:
            payload = entries.encode(entry) if isinstance(entry, Closed) else entries.encode_note(entry)
        except (ValueError, TypeError, OverflowError):
            # A mistake of ours. The request has nothing to do with it.
            if missed:
                log.failure("journal: an entry of {exchange} has no form", exchange=entries.exchange_id(self._key))
                self._lost_notes += 1
                self._miss(why=MISTAKE)
            return False
        self._journal._append((kind, self._key, payload, None), len(payload) + ENTRY_COST)
        return True

    def _miss(self, size: int = 0, why: str | None = None) -> None:
        journal = self._journal
        first = self._why is None
        self._why = self._why or why or journal._shortage()
        journal._miss(self._why, bodies=int(first), size=size)

    def _name_lost(self) -> str:
        """What is missing, in words."""
        missing = [f"{size} bytes of the {role.value} body" for role, size in self._lost.items()]
        if self._lost_notes:
            missing.append(f"{self._lost_notes} notes")
        return f"{' and '.join(missing)} not kept"


class Journal:
    """
    Collects what the taps of all exchanges take, and has it written into a slot of its own.

    :param root: where slots are.
    :param instance: this process; the slot's name.
    :param memory: bytes that may be in memory. Beyond it bulk data is not taken; other entries have a `RESERVE`.
    :param limit: bytes that the slot may have; the same beyond it.
    :param flush_every: seconds that something may be pending.
    :param min_free: bytes of the disk that are left alone; a tenth of it, if that is less.
    :param create: makes a new file.
    :ivar on_flushed: called when something has been written.
    """

    def __init__(
        self,
        clock: Reactor,
        root: Path,
        instance: str,
        *,
        memory: int = 64 * MIB,
        limit: int,
        flush_every: float = 0.25,
        min_free: int = MIN_FREE,
        create: Callable[[Path], int] = create_file,
    ) -> None:
        self._clock = clock
        self._memory = memory
        self._limit = limit
        self._flush_every = flush_every
        self.on_flushed: Callable[[], None] = lambda: None
        self._writer = Writer(
            root,
            instance,
            min_free=min_free,
            # The last one is not deleted before there is another: it must not fill the slot.
            segment_bytes=min(SEGMENT_BYTES, limit // 8),
            create=create,
            tell=self._tell,
            warn=self._warn,
        )
        self._thread: threading.Thread | None = None
        self._closing = False
        self._ended: Deferred[None] | None = None

        self._items: deque[Item] = deque()
        self._dirty: list[Tap] = []
        self._batches: deque[Batch] = deque()
        # Bytes: of all that is in memory; of what of it is in batches.
        self._held = 0
        self._queued = 0
        self._spool_bytes = 0
        # Bytes that may be held, in view of disk and memory; and where taps must look whether to go on.
        self._disk_room = self._ceiling = self._watermark = 0
        self._set_bounds()

        self._flush_timer: IDelayedCall | None = None
        self._retry_timer: IDelayedCall | None = None
        self._rotate_timer: IDelayedCall | None = None
        self._hanging_timer: IDelayedCall | None = None
        self._lost_timer: IDelayedCall | None = None
        self._heard_at = 0.0
        self._problem: str | None = None
        self._problem_since = 0.0

        self._lost_bodies = 0
        self._lost_exchanges = 0
        self._lost_bytes = 0
        self._lost_why = ""
        self._lost_at = -REPORT_EVERY
        self._lost_reported = (0, 0, 0)
        self._lost_reported_at = -REPORT_EVERY

    def start(self) -> None:
        """Make the slot, or go on trying until it can be made; what comes before that is kept in memory."""
        self._thread = threading.Thread(target=self._writer.run, name="journal", daemon=True)
        self._thread.start()

    def open(self, exchange_id: str, opened: Opened) -> Tap:
        """Begin to keep an exchange. Never raises: where nothing can be kept, the tap does nothing."""
        try:
            key = entries.exchange_key(exchange_id)
            payload = entries.encode(opened)
        except (ValueError, TypeError, OverflowError):
            log.failure("journal: {exchange} cannot be kept", exchange=exchange_id)
            self._miss(MISTAKE, exchanges=1)
            return Tap(self, b"", over=True)
        if not self._takes_entry():
            self._miss(self._shortage(), exchanges=1)
            return Tap(self, key, over=True)
        self._append((Kind.OPENED, key, payload, None), len(payload) + ENTRY_COST)
        return Tap(self, key, over=False)

    @property
    def stats(self) -> JournalStats:
        return JournalStats(
            pending_bytes=self._held,
            spool_bytes=self._spool_bytes,
            lost_bodies=self._lost_bodies,
            lost_exchanges=self._lost_exchanges,
            problem=self._problem or self._lost_lately or (None if self._takes(0) else self._shortage()),
        )

    async def close(self, patience: float = 5.0) -> None:
        """
        Write what is pending, or give up after ``patience`` seconds. Taps do nothing from now on.

        The slot stays this process's until :meth:`release`, or its end.
        """
        if self._closing:
            return
        self.flush()
        self._closing = True
        self._writer.use_all()
        if self._thread is not None:
            self._ended = Deferred()
            if self._problem is not None:
                self._order(Order.RETRY)
            self._end_when_written()
            given_up = self._clock.callLater(patience, self._give_up)
            await self._ended
            if given_up.active():
                given_up.cancel()
        self._count_unwritten()
        for timer in (self._retry_timer, self._rotate_timer, self._hanging_timer):
            _cancel(timer)
        if _cancel(self._lost_timer):
            self._report_lost()

    def release(self) -> None:
        """Let go of the slot, after :meth:`close`."""
        self._writer.release()

    def flush(self) -> None:
        """Hand over what is pending to be written."""
        dirty, self._dirty = self._dirty, []
        for tap in dirty:
            tap._role = None
            tap._settle()
        _cancel(self._flush_timer)
        self._flush_timer = None
        if not self._items:
            return
        batch = Batch(self._items, self._held - self._queued)
        self._items = deque()
        self._queued = self._held
        self._set_watermark()
        if not self._batches:
            self._heard_at = self._clock.seconds()
        self._batches.append(batch)
        self._writer.queue.put(batch)
        if self._rotate_timer is None:
            self._rotate_timer = self._clock.callLater(ROTATE_EVERY, self._rotate)
        if self._hanging_timer is None and self._thread is not None:
            self._hanging_timer = self._clock.callLater(HANGING_AFTER, self._look_for_life)

    # For taps

    def _append(self, item: Item, size: int) -> None:
        self._items.append(item)
        self._held += size
        self._arm()

    def _arm(self) -> None:
        if self._flush_timer is None:
            self._flush_timer = self._clock.callLater(self._flush_every, self._flush_late)

    def _flush_late(self) -> None:
        self._flush_timer = None
        self.flush()

    def _look(self) -> None:
        """Much is pending, or there is no room: taps that go on must ask again."""
        if self._held > self._watermark:
            self.flush()

    def _takes_entry(self, *, last: bool = False) -> bool:
        """
        Whether an entry that is no bulk data is taken.

        :param last: whether it is its exchange's last. Of those there is one for each that is open, and without it that
            would be open for ever.
        """
        return not self._closing and (last or self._held <= self._ceiling + RESERVE)

    def _takes(self, size: int) -> bool:
        """Whether bulk data is taken: the memory's bound may be passed by one piece, a disk's may not."""
        return not self._closing and self._held <= self._ceiling and self._held + size <= self._disk_room

    def _shortage(self) -> str:
        """Why something is not taken, in words."""
        if self._closing:
            return "the process was ending"
        if self._problem is not None:
            return self._problem
        spool_room = self._limit - self._spool_bytes
        if spool_room < self._memory:
            return f"the spool is full ({self._spool_bytes} bytes; SPOOL_MAX_BYTES is {self._limit})"
        return f"the disk of the spool (SPOOL_DIR) is too slow: {self._held} bytes are waiting in memory"

    @property
    def _lost_lately(self) -> str | None:
        """Why something was not kept just now. Something smaller may find room."""
        return self._lost_why if self._clock.seconds() - self._lost_at < REPORT_EVERY else None

    def _miss(self, why: str, *, bodies: int = 0, size: int = 0, exchanges: int = 0) -> None:
        self._lost_why = why
        self._lost_at = self._clock.seconds()
        self._lost_bodies += bodies
        self._lost_bytes += size
        self._lost_exchanges += exchanges
        if self._lost_timer is None:
            delay = self._lost_reported_at + REPORT_EVERY - self._clock.seconds()
            self._lost_timer = self._clock.callLater(max(0.0, delay), self._report_lost)

    # Inside

    def _set_bounds(self) -> None:
        # What is held now must find room later.
        self._disk_room = self._limit - self._spool_bytes
        self._ceiling = min(self._memory, self._disk_room)
        self._set_watermark()

    def _set_watermark(self) -> None:
        self._watermark = min(self._ceiling, self._queued + FLUSH_AT)

    def _order(self, order: Order) -> None:
        self._writer.queue.put(order)

    def _rotate(self) -> None:
        self._rotate_timer = None
        self._order(Order.ROTATE)

    def _retry(self) -> None:
        self._retry_timer = None
        self._order(Order.RETRY)

    def _tell(self, report: Report) -> None:
        self._clock.callFromThread(self._told, report)

    def _warn(self, text: str, failure: Failure | None) -> None:
        self._clock.callFromThread(self._warned, text, failure)

    def _warned(self, text: str, failure: Failure | None) -> None:
        if failure is None:
            log.warn("journal: {text}", text=text)
        else:
            log.failure("journal: {text}", failure=failure, text=text)

    def _told(self, report: Report) -> None:
        self._heard_at = self._clock.seconds()
        for _ in range(report.batches):
            size = self._batches.popleft().size
            self._queued -= size
            self._held -= size
        if report.spool_bytes is not None:
            self._spool_bytes = report.spool_bytes
        self._set_bounds()
        if report.ended:
            self._finish()
            return
        self._set_problem(report.problem)
        # Of a spool that fills, only a look tells that its reader has made room.
        fills = self._spool_bytes > self._limit // 2
        if (report.problem is not None or fills) and self._retry_timer is None:
            self._retry_timer = self._clock.callLater(RETRY_EVERY, self._retry)
        self._end_when_written()
        if report.batches:
            self.on_flushed()

    def _set_problem(self, problem: str | None) -> None:
        before, self._problem = self._problem, problem
        now = self._clock.seconds()
        if problem is not None and before is None:
            self._problem_since = now
            log.error(
                "journal: {problem}. What passes is kept in memory, up to {memory} bytes, until that is mended.",
                problem=problem,
                memory=self._memory,
            )
        elif problem is None and before is not None:
            log.info("journal: written again after {seconds:.0f}s", seconds=now - self._problem_since)

    def _look_for_life(self) -> None:
        self._hanging_timer = None
        if not self._batches:
            return
        silent = self._clock.seconds() - self._heard_at
        if silent >= HANGING_AFTER and self._problem is None:
            self._set_problem(f"the disk of the spool (SPOOL_DIR) has not answered for {silent:.0f} seconds")
        self._hanging_timer = self._clock.callLater(HANGING_AFTER, self._look_for_life)

    def _report_lost(self) -> None:
        self._lost_timer = None
        self._lost_reported_at = self._clock.seconds()
        now = (self._lost_bodies, self._lost_bytes, self._lost_exchanges)
        bodies, size, exchanges = (new - old for new, old in zip(now, self._lost_reported, strict=True))
        self._lost_reported = now
        log.error(
            "journal: {exchanges} requests are not recorded, {bodies} not whole ({size} bytes): {why}",
            exchanges=exchanges,
            bodies=bodies,
            size=size,
            why=self._lost_why,
        )

    # The end

    def _end_when_written(self) -> None:
        if self._ended is not None and not self._batches:
            self._order(Order.STOP)

    def _finish(self) -> None:
        self._ended, ended = None, self._ended
        if ended is not None:
            ended.callback(None)

    def _give_up(self) -> None:
        # A writer that can hear it will stop.
        self._order(Order.STOP)
        self._finish()

    def _count_unwritten(self) -> None:
        # Items that the writer takes meanwhile are counted or not; nothing runs between the two ends of `list()`.
        items = [item for batch in self._batches for item in list(batch.items)]
        if not items and not self._batches:
            return
        opened = {key for kind, key, _, _ in items if kind is Kind.OPENED}
        touched = {key for _, key, _, _ in items}
        self._lost_exchanges += len(opened)
        self._lost_bodies += len(touched - opened)
        log.error(
            "journal: given up with {size} bytes of {count} requests that are not written: {why}",
            size=self._queued,
            count=len(touched),
            why=self._problem or "the disk of the spool (SPOOL_DIR) is too slow",
        )


def _cancel(timer: IDelayedCall | None) -> bool:
    """Whether there was something to cancel."""
    if timer is None or not timer.active():
        return False
    timer.cancel()
    return True
