"""What was recorded, for those who watch; and what they missed, for those who come back."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..answers import to_json
from . import shapes
from .calls import Refusal
from .records import Records

log = Logger()

MOST_NOTED = 1000
"""Records of which it is noted that they were written, and not yet told."""
FETCHED_AT_ONCE = 100
MOST_TOLD = 2000
MOST_TOLD_BYTES = 4 * 1024 * 1024
"""Of what was told of records, for those who come back."""


def frame(event: str, data: object, event_id: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if event_id is None else b"id: %b\n" % event_id.encode("ascii")
    return b"%bevent: %b\ndata: %b\n\n" % (head, event.encode("ascii"), to_json(data))


@attrs.frozen
class _Told:
    number: int
    data: bytes


class News:
    """
    Records as they are written, while somebody wants to know.

    What is told has numbers; whoever knows the last that he was told goes on behind it.

    :ivar number: of what was told last.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._name = secrets.token_hex(4)
        self.number = 0
        self._told: deque[_Told] = deque()
        self._told_bytes = 0
        self._noted: dict[str, None] = {}
        self._fetching = False
        self._stop: Callable[[], None] | None = None
        self._beginning = False
        self._wanted = False

    def position_of(self, last_id: str | None) -> int | None:
        """The number behind which somebody goes on; ``None`` where that is not possible."""
        name, _, number = (last_id or "").partition("-")
        if name != self._name or not number.isascii() or not number.isdigit() or len(number) > 15:
            return None
        position = int(number)
        oldest = self._told[0].number if self._told else self.number + 1
        return position if oldest - 1 <= position <= self.number and self._stop is not None else None

    def since(self, position: int) -> list[bytes]:
        """What was told behind a number; before it, that something is missing, if that is so."""
        if position == self.number:
            return []
        oldest = self._told[0].number if self._told else self.number + 1
        frames: list[bytes] = []
        if position < oldest - 1:
            frames.append(frame("reset", {"reason": "More was recorded than this viewer could be told."}))
        return frames + [told.data for told in self._told if told.number > position]

    def _note(self, ids: Sequence[str]) -> None:
        """These were written."""
        self._noted.update(dict.fromkeys(ids))
        if len(self._noted) > MOST_NOTED:
            self._noted.clear()
            self._reset("More was recorded than can be told one by one.")

    def _reset(self, reason: str) -> None:
        """From here on nobody can go on from what was told before."""
        self.number += 1
        self._told.clear()
        self._told_bytes = 0
        self._keep(frame("reset", {"reason": reason}))

    def _keep(self, data: bytes) -> None:
        self._told.append(_Told(self.number, data))
        self._told_bytes += len(data)
        while len(self._told) > MOST_TOLD or self._told_bytes > MOST_TOLD_BYTES:
            self._told_bytes -= len(self._told.popleft().data)

    def fetch(self) -> None:
        """Read what was noted, to be told."""
        if self._fetching or not self._noted:
            return
        ids = list(self._noted)[:FETCHED_AT_ONCE]
        for each in ids:
            del self._noted[each]
        self._fetching = True
        fetched = self._records.ask_later(lambda store: store.aggregates.exchanges(ids))

        def tell(exchanges: Any) -> None:
            for exchange in sorted(exchanges, key=lambda each: each.id):
                self.number += 1
                self._keep(frame("request", shapes.summary(exchange), f"{self._name}-{self.number}"))

        def failed(failure: Failure) -> None:
            self._reset("The records could not be read for a while.")
            if failure.check(Refusal) is None:
                log.failure("reading what was recorded failed", failure)

        def over(_: object) -> None:
            self._fetching = False

        fetched.addCallbacks(tell, failed)
        fetched.addBoth(over)

    def begin(self) -> None:
        """Watch what is written; where the store does not answer now, this is to be called again."""
        self._wanted = True
        if self._stop is not None or self._beginning:
            return

        async def watch(store: Any) -> Callable[[], None]:
            stop: Callable[[], None] = store.watch(self._note)
            return stop

        def begun(stop: Callable[[], None]) -> None:
            self._beginning = False
            if not self._wanted:
                stop()
                return
            self._stop = stop
            # What was written since they came, nobody told them.
            self._reset("Records are watched from now on.")

        def failed(failure: Failure) -> None:
            # Tried again; the lists say why nothing is shown.
            self._beginning = False
            if failure.check(Refusal) is None:
                log.failure("watching what is recorded failed", failure)

        self._beginning = True
        self._records.ask_later(watch).addCallbacks(begun, failed)

    def end(self) -> None:
        """Nobody wants to know any more."""
        self._wanted = False
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()
        self._noted.clear()
