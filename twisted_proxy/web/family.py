"""How it is with all processes of one proxy, out of what each of them says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime

from ..record.keeper import Keeper
from ..runtime import Drain, Gauge
from ..siblings import Siblings

Json = dict[str, Any]

_STATE: Final = "state"
"""The question."""


class Family:
    """
    The state of one proxy, whether it is one process or several.

    :param clock: the reactor's.
    """

    def __init__(
        self, gauge: Gauge, drain: Drain, keeper: Keeper | None, clock: IReactorTime, siblings: Siblings
    ) -> None:
        self._gauge = gauge
        self._drain = drain
        self._keeper = keeper
        self._clock = clock
        self._siblings = siblings
        siblings.answer(_STATE, lambda _: self.own_state())

    @property
    def size(self) -> int:
        """How many processes there are to be."""
        return self._siblings.size

    def own_state(self) -> Json:
        """
        Of this process: ``{"in_flight": n, "oldest_seconds": s | null, "draining": bool, "drain_seconds_left": s |
        null, "recording": `Keeper.describe` or {"status": "off"}}``.
        """
        oldest, draining = self._gauge.oldest(1), self._drain.draining
        return {
            "in_flight": self._gauge.in_flight,
            "oldest_seconds": round(self._clock.seconds() - oldest[0].received_at, 3) if oldest else None,
            "draining": draining,
            "drain_seconds_left": round(self._drain.remaining, 3) if draining else None,
            "recording": {"status": "off"} if self._keeper is None else self._keeper.describe(),
        }

    async def state(self) -> Json:
        """Of all of them, as `own_state` has it; where they may be several, with ``"workers"`` as in ``/livez``."""
        states = await self._siblings.ask(_STATE)
        state = together(states)
        if self.size > 1:
            state["workers"] = {"configured": self.size, "running": len(states)}
        return state


def together(states: Sequence[Json]) -> Json:
    """Several states as one."""
    first = states[0]
    if len(states) == 1:
        return dict(first)
    return {
        "in_flight": sum(state["in_flight"] for state in states),
        "oldest_seconds": _largest(states, "oldest_seconds"),
        "draining": any(state["draining"] for state in states),
        "drain_seconds_left": _largest(states, "drain_seconds_left"),
        "recording": _recordings_together([state["recording"] for state in states]),
    }


def _recordings_together(recordings: Sequence[Json]) -> Json:
    first = recordings[0]
    if first["status"] == "off":
        return first
    problem = next((each["problem"] for each in recordings if each["problem"] is not None), None)
    counts = {name: sum(each[name] for each in recordings) for name in first if name not in ("status", "problem")}
    return {"status": "ok" if problem is None else "failing", "problem": problem, **counts}


def _largest(states: Sequence[Json], name: str) -> Any:
    return max((state[name] for state in states if state[name] is not None), default=None)
