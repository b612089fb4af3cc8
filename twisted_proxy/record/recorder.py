"""
Entries in, records out: follows a slot, makes a `Record` of each exchange that is over, and has the store keep it.

Of what is open there are entries and places in files in memory, and no bodies. An exchange is settled in the spool when
the store has it; whatever happens before that, the same entries are read again, and make the same records.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Protocol, TypeVar

import attrs
from twisted.logger import Logger

from ..tally import Histogram
from . import facts
from .control import STORE_BOUNDS
from .conversations import Asked, Conversations, Place, role_of
from .digest import text_of_answer, text_of_messages
from .entries import Closed, Noted, Opened
from .exchange import INTERRUPTED, Exchange, Record, Role
from .identity import chains_of
from .pricing import Prices
from .spool import Bulk, DamagedContent, Entry, Extent, SpoolContent
from .store import RecordStore, SchemaTooNew, StoreError, StoreUnavailable
from .usage_counts import UsageCounts

log = Logger()

T = TypeVar("T")

BATCH_EXCHANGES: Final = 64
BATCH_BYTES: Final = 16 * 1024 * 1024
"""Of bodies. A batch may have more by its last exchange."""
READ_AT_ONCE: Final = 256
"""Entries."""
REFUSED_IN_A_ROW: Final = 8
"""Exchanges that a store may refuse, one after the other, before it is taken for the one that is at fault."""
TEXT_TO_KEEP: Final = 8 * 1024
"""Characters of a request's text that are kept while it is in flight; longer ones are read again."""


_NOT_NOW: Final = (StoreUnavailable, SchemaTooNew)


class Source(Protocol):
    """Where entries come from (`spool.SlotReader`)."""

    def read(self, at_most: int = ...) -> list[Entry]: ...
    @property
    def ended(self) -> bool: ...
    @property
    def unread(self) -> int: ...
    def settle(self, exchanges: Iterable[str]) -> None: ...
    def compact(self) -> bool: ...


class Compute(Protocol):
    """Runs what takes time, where it blocks nobody."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]: ...


async def at_once(function: Callable[[], T], /) -> T:
    """`Compute` that blocks."""
    return function()


@attrs.frozen(kw_only=True)
class _Asked:
    """What became of a request's body."""

    fields: facts.Fields
    place: Place | None
    text: str | None
    """``None``: it is to be read again."""
    problem: str | None


@attrs.define(eq=False, kw_only=True)
class _Open:
    """An exchange that is not settled."""

    id: str
    opened: Opened
    notes: dict[str, Any] = attrs.field(factory=dict)
    extents: dict[Role, list[Extent]] = attrs.field(factory=dict)
    size: int = 0
    closed: Closed | None = None
    asked: _Asked | None = None

    @property
    def contents(self) -> dict[Role, SpoolContent]:
        return {role: SpoolContent(tuple(extents)) for role, extents in self.extents.items()}

    @property
    def response_headers(self) -> facts.Headers:
        headers: facts.Headers = self.notes.get("response_headers") or ()
        return headers

    @property
    def status(self) -> int | None:
        status: int | None = self.notes.get("status")
        return status if self.closed is None or self.closed.status is None else self.closed.status


@attrs.define(kw_only=True)
class Counts:
    """
    Since the start.

    :ivar recorded: exchanges stored that were over.
    :ivar incomplete: those of them of which something was lost.
    :ivar interrupted: those of them whose process ended before they did.
    :ivar refused: exchanges that the store would not take in any form.
    :ivar usage: what the answers of ``recorded`` were.
    :ivar writes: seconds that the store took for each batch that it has kept.
    """

    recorded: int = 0
    incomplete: int = 0
    interrupted: int = 0
    refused: int = 0
    usage: UsageCounts = attrs.field(factory=UsageCounts, eq=False)
    writes: Histogram = attrs.field(factory=lambda: Histogram(STORE_BOUNDS), eq=False)


class Recorder:
    """
    Records what is in one slot, batch by batch: :meth:`step` after :meth:`step`.

    :param source: the slot's entries.
    :param instance: the process that they are of.
    :param conversations: shared by all recorders on one store.
    :param written: told the ids of exchanges that are in the store now, or anew.
    :param seconds: a clock that never goes back.
    """

    def __init__(
        self,
        store: RecordStore,
        source: Source,
        instance: str,
        *,
        conversations: Conversations,
        prices: Prices,
        counts: Counts,
        compute: Compute = at_once,
        written: Callable[[Sequence[str]], None] = lambda ids: None,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._source = source
        self._instance = instance
        self._conversations = conversations
        self._prices = prices
        self._counts = counts
        self._compute = compute
        self._written = written
        self._seconds = seconds
        self._open: dict[str, _Open] = {}
        # What a batch goes through. A step that fails is continued by the next one.
        self._fresh: dict[str, None] = {}
        self._over: deque[_Open] = deque()
        self._records: deque[Record] = deque()
        self._waiting_since: float | None = None
        self._careful = False
        self._refused: list[Record] = []
        self._recorded_then = 0
        self._settled: list[str] = []

    @property
    def behind(self) -> int:
        """Bytes that are not in the store: those that were not read, and those of bodies in the batch at hand."""
        made = sum(body.content.size for record in self._records for body in record.bodies)
        return self._source.unread + sum(exchange.size for exchange in self._over) + made

    @property
    def waiting_since(self) -> float | None:
        """When the store was asked for what it has not done yet, by the clock; ``None``: it has done all."""
        return self._waiting_since

    @property
    def open(self) -> int:
        """How many exchanges are in flight."""
        return len(self._open)

    @property
    def done(self) -> bool:
        """Whether the slot's owner has ended, and all that it left is in the store."""
        return self._source.ended and not (self._open or self._over or self._records or self._refused)

    async def step(self) -> bool:
        """
        Read some entries, and store what they make.

        What is open when the slot's owner has ended is over, as `INTERRUPTED`.

        :return: whether something was stored; then there may be more to do.
        :raises StoreUnavailable: nothing is lost; another step tries again.
        """
        if not self._over and not self._records:
            self._read()
        while self._over:
            self._records.append(await self._record(self._over[0]))
            self._over.popleft()
        while self._fresh:
            exchange = self._open.get(next(iter(self._fresh)))
            if exchange is not None:
                self._records.append(await self._record(exchange))
            del self._fresh[next(iter(self._fresh))]
        did_something = bool(self._records)
        await self._store_records()
        self._judge_refused()
        if self._settled:
            self._source.settle(self._settled)
            self._settled = []
        self._source.compact()
        return did_something

    # Reading

    def _read(self) -> None:
        count = size = 0
        while count < BATCH_EXCHANGES and size < BATCH_BYTES:
            entries = self._source.read(READ_AT_ONCE)
            if not entries:
                break
            for entry in entries:
                exchange = self._take(entry)
                if exchange is not None and exchange.closed is not None:
                    self._end(exchange)
                    count += 1
                    size += exchange.size
        if self._source.ended:
            while self._open and count < BATCH_EXCHANGES and size < BATCH_BYTES:
                exchange = next(iter(self._open.values()))
                exchange.closed = Closed(verdict=INTERRUPTED, status=exchange.notes.get("status"))
                self._end(exchange)
                count += 1
                size += exchange.size

    def _take(self, entry: Entry) -> _Open | None:
        what = entry.what
        if isinstance(what, Opened):
            exchange = self._open.setdefault(entry.exchange, _Open(id=entry.exchange, opened=what))
            self._fresh[entry.exchange] = None
            return exchange
        exchange_or_none = self._open.get(entry.exchange)
        if exchange_or_none is None:
            # It is over already.
            return None
        exchange = exchange_or_none
        if isinstance(what, Noted):
            if "body_read_us" in what.fields:
                self._fresh[entry.exchange] = None
            exchange.notes.update(what.fields)
        elif isinstance(what, Closed):
            exchange.closed = what
        elif isinstance(what, Bulk):
            exchange.extents.setdefault(what.role, []).append(what.extent)
            exchange.size += what.extent.size
        return exchange

    def _end(self, exchange: _Open) -> None:
        del self._open[exchange.id]
        self._fresh.pop(exchange.id, None)
        self._over.append(exchange)

    # Making records

    async def _record(self, exchange: _Open) -> Record:
        """
        What is known of an exchange, now. One that cannot be understood is recorded with what is understood of it.

        :raises StoreUnavailable: the store had to be asked for its conversation.
        """
        problems: list[str] = []
        fields: dict[str, Any] = facts.of_headers(exchange.opened, exchange.response_headers)
        text: str | None = None
        if exchange.closed is not None or "body_read_us" in exchange.notes:
            asked = await self._ask(exchange)
            fields |= asked.fields
            if asked.problem is not None:
                problems.append(asked.problem)
            text = asked.text
            if asked.place is not None:
                fields |= {
                    "conversation": asked.place.conversation,
                    "parent": asked.place.parent,
                    "link": asked.place.link,
                    "messages": asked.place.messages,
                    "chain": asked.place.chain,
                }
        bodies: tuple[Any, ...] = ()
        events = 0
        if exchange.closed is not None:
            answer = await self._understand(exchange, "answer", problems, self._answer, exchange)
            if answer is not None:
                fields |= answer.fields
                events = answer.events
                told = await self._understand(exchange, "text", problems, self._text, exchange, text, answer)
                text = text if told is None else told
                if fields.get("conversation") is not None:
                    self._conversations.answered(exchange.id, fields.get("message_id"), answer.message)
            kept = await self._understand(exchange, "bodies", problems, self._bodies, exchange, answer)
            bodies = kept or ()
        fields |= self._told(exchange, problems)
        if exchange.opened.keep == "metadata" and fields.get("usage") is not None:
            fields |= facts.of_usage(
                fields["usage"],
                fields.get("routed_model") or fields.get("model"),
                exchange.opened.received_at,
                self._prices,
                complete=not fields.get("cost_is_partial"),
            )
        return Record(
            exchange=Exchange(id=exchange.id, instance=self._instance, **fields),
            bodies=bodies,
            text=text or None,
            events=events,
        )

    def _told(self, exchange: _Open, problems: list[str]) -> dict[str, Any]:
        """What the proxy's process says itself is right, whatever the bodies say."""
        told = {name: value for name, value in exchange.notes.items() if value is not None}
        if exchange.opened.keep == "metadata":
            told.pop("request_headers", None)
            told.pop("response_headers", None)
        if exchange.closed is not None:
            closed = {name: getattr(exchange.closed, name) for name in exchange.closed.__struct_fields__}
            del closed["incomplete"]
            told |= {name: value for name, value in closed.items() if value is not None}
        lost = [each for each in (told.get("lost"), *problems) if each]
        told["lost"] = "; ".join(dict.fromkeys(lost)) or None
        # Who it is about is said by the frame, and by the slot.
        return {name: value for name, value in told.items() if name not in ("id", "instance")}

    async def _ask(self, exchange: _Open) -> _Asked:
        """What an exchange's request says, and where it belongs. Found out once."""
        if exchange.asked is not None:
            return exchange.asked
        problems: list[str] = []
        request = await self._understand(
            exchange, "request", problems, facts.of_request, exchange.opened, exchange.contents
        )
        if request is None:
            asked = _Asked(fields={}, place=None, text="", problem=problems[0])
        else:
            place = await self._place(exchange, request, problems)
            text = await self._understand(exchange, "text", problems, _text_of_new, request, place)
            if exchange.closed is None and text is not None and len(text) > TEXT_TO_KEEP:
                text = None
            asked = _Asked(
                fields=request.fields, place=place, text=text, problem="; ".join(problems) if problems else None
            )
        exchange.asked = asked
        return asked

    async def _place(self, exchange: _Open, request: facts.RequestFacts, problems: list[str]) -> Place | None:
        if not request.messages:
            return None
        chains = await self._understand(exchange, "conversation", problems, chains_of, request.messages)
        if chains is None:
            return None
        try:
            asked = Asked(
                id=exchange.id,
                session=request.fields.get("session"),
                agent=request.fields.get("agent"),
                messages=request.messages,
                chains=chains,
                behind=request.behind,
                compacted=request.compacted,
            )
            return await self._wait(self._conversations.place(asked))
        except _NOT_NOW:
            raise
        except Exception:  # noqa: BLE001 - one exchange must not stop the others
            log.failure("recording {id}: its conversation was not found", id=exchange.id)
            return None

    def _answer(self, exchange: _Open) -> facts.AnswerFacts:
        asked = {} if exchange.asked is None else exchange.asked.fields
        return facts.of_answer(
            exchange.opened,
            exchange.contents,
            exchange.response_headers,
            exchange.status,
            self._prices,
            exchange.notes.get("routed_model") or asked.get("model"),
        )

    def _bodies(self, exchange: _Open, answer: facts.AnswerFacts | None) -> tuple[Any, ...]:
        streamed = None if answer is None else answer.streamed
        return facts.bodies(exchange.opened, exchange.contents, exchange.response_headers, streamed)

    def _text(self, exchange: _Open, asked: str | None, answer: facts.AnswerFacts) -> str:
        if asked is None:
            assert exchange.asked is not None
            request = facts.of_request(exchange.opened, exchange.contents)
            asked = _text_of_new(request, exchange.asked.place)
        said = "" if answer.message is None else text_of_answer(answer.message)
        return "\n".join([text for text in (asked, said) if text])

    async def _understand(
        self, exchange: _Open, what: str, problems: list[str], function: Callable[..., T], *arguments: Any
    ) -> T | None:
        """The result of a function that reads bodies; ``None``, a line in the log and a problem if it fails."""
        try:
            return await self._compute(lambda: function(*arguments))
        except (DamagedContent, OSError) as error:
            log.warn("recording {id}: {what} cannot be read: {error}", id=exchange.id, what=what, error=error)
            problems.append(f"the spool was damaged: {error}" if isinstance(error, DamagedContent) else str(error))
        except Exception as error:  # noqa: BLE001 - one exchange must not stop the others
            log.failure("recording {id}: {what} was not understood", id=exchange.id, what=what)
            problems.append(f"its {what} was not understood here ({type(error).__name__})")
        return None

    # Storing

    async def _store_records(self) -> None:
        if self._records and not self._careful:
            try:
                await self._write(tuple(self._records))
            except _NOT_NOW:
                raise
            except Exception:  # noqa: BLE001 - one of them is at fault; which, shows below
                log.failure("recording a batch of {count} failed; now one by one", count=len(self._records))
                self._careful = True
            else:
                self._have_stored(tuple(self._records))
                self._records.clear()
                self._judge_refused()
        while self._records:
            kept = await self._store_alone(self._records[0])
            record = self._records.popleft()
            if kept is not None:
                self._have_stored((kept,))
                self._judge_refused()
                continue
            if not self._refused:
                self._recorded_then = self._counts.recorded
            self._refused.append(record)
            if len(self._refused) >= REFUSED_IN_A_ROW:
                self._records.extendleft(reversed(self._refused))
                self._refused.clear()
                raise StoreUnavailable("it refuses every record; the log says why")
        self._careful = False

    async def _write(self, records: Sequence[Record]) -> None:
        began = self._seconds()
        await self._wait(self._store.write(records))
        self._counts.writes.observe(self._seconds() - began)

    async def _wait(self, work: Awaitable[T]) -> T:
        """The result of what the store does."""
        self._waiting_since = self._seconds()
        try:
            return await work
        finally:
            self._waiting_since = None

    async def _store_alone(self, record: Record) -> Record | None:
        """Store a record, with less and less of it until the store takes it. ``None``: it takes nothing."""
        for less in (_whole, _without_unreadable, _without_bodies, _bare):
            reduced = less(record)
            try:
                await self._write((reduced,))
            except _NOT_NOW:
                raise
            except Exception as error:  # noqa: BLE001 - as above
                known = isinstance(error, StoreError | DamagedContent | OSError)
                (log.warn if known else log.failure)(
                    "recording {id}: the store refused it {how}: {error}",
                    id=record.exchange.id,
                    how=less.__name__.strip("_").replace("_", " "),
                    error=error,
                )
            else:
                return reduced
        return None

    def _judge_refused(self) -> None:
        """
        Give up exchanges that the store took in no form, once it has taken others since: so they are at fault, not it.

        Until then they stay in the spool.
        """
        if not self._refused or self._counts.recorded == self._recorded_then:
            return
        refused, self._refused = self._refused, []
        for record in refused:
            log.error("recording {id}: it is lost, the store took it in no form", id=record.exchange.id)
            self._counts.refused += 1
            if record.exchange.verdict is not None:
                self._settled.append(record.exchange.id)

    def _have_stored(self, records: Sequence[Record]) -> None:
        for record in records:
            exchange = record.exchange
            if exchange.verdict is None:
                continue
            self._counts.recorded += 1
            self._counts.interrupted += exchange.verdict == INTERRUPTED
            self._counts.incomplete += exchange.lost is not None
            self._counts.usage.add(exchange, record.events)
            self._settled.append(exchange.id)
        self._written([record.exchange.id for record in records])


def _text_of_new(request: facts.RequestFacts, place: Place | None) -> str:
    """What a search finds of the messages that the exchange before it did not have."""
    known = 0 if place is None else place.known
    new = request.messages[known:]
    if known and new and role_of(new[0]) == "assistant":
        # The answer of the one before, where it is found already.
        new = new[1:]
    return text_of_messages(new)


def _whole(record: Record) -> Record:
    return record


def _without_unreadable(record: Record) -> Record:
    """Without the bodies whose bytes are not there any more as they were written."""
    readable = []
    problems: list[str] = []
    for body in record.bodies:
        try:
            for _ in body.content.pieces():
                pass
        except (DamagedContent, OSError) as error:
            problems.append(f"{body.role.value}: {error}")
        else:
            readable.append(body)
    return attrs.evolve(record, exchange=_lost(record.exchange, problems), bodies=tuple(readable))


def _without_bodies(record: Record) -> Record:
    exchange = _lost(record.exchange, ["the store did not take its bodies"])
    return attrs.evolve(record, exchange=exchange, bodies=(), text=None)


def _bare(record: Record) -> Record:
    full = record.exchange
    exchange = Exchange(
        id=full.id,
        instance=full.instance,
        received_at=full.received_at,
        method=full.method,
        path=full.path,
        verdict=full.verdict,
        status=full.status,
        lost="the store took no more of it than that it was there",
    )
    return Record(exchange=exchange)


def _lost(exchange: Exchange, problems: list[str]) -> Exchange:
    lost = "; ".join([each for each in (exchange.lost, *problems) if each])
    return attrs.evolve(exchange, lost=lost or None)
