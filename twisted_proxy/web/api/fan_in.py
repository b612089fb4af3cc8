"""
Those who watch meet one worker, and watch all of them: each of the others tells that one what passes through it, for
each viewer, as it would tell a viewer of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import Any, Final

from ...siblings import JOINED, LEFT, Siblings
from .hub import Hub, Watcher

_WATCH: Final = "watch"
_UNWATCH: Final = "watch no more"
_HOLD: Final = "hold"
_GO_ON: Final = "go on"
"""Topics, with the number of a viewer."""
_FRAMES: Final = "frames"
"""With that, and what it is to be told."""
_STATE: Final = "watched state"
"""With `Family.own_state`."""


class RemoteWatcher(Watcher):
    """A viewer of another worker, as far as it is told what passes here."""

    whole = False

    def __init__(self, siblings: Siblings, member: int, number: int, now: float) -> None:
        super().__init__(None, now)
        self._siblings = siblings
        self._member = member
        self._number = number

    def write(self, frames: Iterable[bytes]) -> None:
        data = b"".join(frames)
        if data:
            self._siblings.tell(_FRAMES, [self._number, data], to=self._member)

    def tell_state(self, state: dict[str, Any]) -> None:
        self._siblings.tell(_STATE, state, to=self._member)


class FanIn:
    """
    Brings together what viewers here, and those of other workers, are told.

    Where there are no others, it does nothing.
    """

    def __init__(self, hub: Hub, siblings: Siblings) -> None:
        self._hub = hub
        self._siblings = siblings
        self._numbers = count()
        self._viewers: dict[int, Watcher] = {}
        self._remote: dict[tuple[int, int], RemoteWatcher] = {}
        siblings.hear(_WATCH, self._watched)
        siblings.hear(_UNWATCH, self._left_alone)
        siblings.hear(_HOLD, lambda member, number: self._flow(member, number, held=True))
        siblings.hear(_GO_ON, lambda member, number: self._flow(member, number, held=False))
        siblings.hear(_FRAMES, lambda member, told: self._told(*told))
        siblings.hear(_STATE, hub.heard)
        siblings.hear(JOINED, self._joined)
        siblings.hear(LEFT, self._left)

    # For viewers here

    def enter(self, watcher: Watcher, last_id: str | None) -> None:
        """Begin to tell a viewer what passes, here and elsewhere."""
        self._hub.enter(watcher, last_id)
        number = next(self._numbers)
        self._viewers[number] = watcher
        watcher.on_flow = lambda held: self._siblings.tell(_HOLD if held else _GO_ON, number)
        self._siblings.tell(_WATCH, number)

    def leave(self, watcher: Watcher) -> None:
        self._hub.leave(watcher)
        for number in [number for number, each in self._viewers.items() if each is watcher]:
            del self._viewers[number]
            self._siblings.tell(_UNWATCH, number)

    def _told(self, number: int, data: bytes) -> None:
        watcher = self._viewers.get(number)
        if watcher is not None:
            watcher.write([data])

    def _joined(self, member: int, _: object) -> None:
        for number in self._viewers:
            self._siblings.tell(_WATCH, number, to=member)

    def _left(self, member: int, _: object) -> None:
        self._hub.heard(member, None)
        for gone in [key for key in self._remote if key[0] == member]:
            self._hub.leave(self._remote.pop(gone))
        # What was in flight there is not any more, and nobody says so: who comes again is told what is.
        for watcher in list(self._viewers.values()):
            watcher.end()

    # For those of others

    def _watched(self, member: int, number: int) -> None:
        watcher = RemoteWatcher(self._siblings, member, number, self._hub.now)
        self._remote[member, number] = watcher
        self._hub.enter(watcher, None)

    def _left_alone(self, member: int, number: int) -> None:
        watcher = self._remote.pop((member, number), None)
        if watcher is not None:
            self._hub.leave(watcher)

    def _flow(self, member: int, number: int, *, held: bool) -> None:
        watcher = self._remote.get((member, number))
        if watcher is None:
            return
        if held:
            watcher.pauseProducing()
        else:
            watcher.resumeProducing()
