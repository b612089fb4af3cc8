"""What recorded answers were, in sums by provider and model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from .control import MAX_USAGES, Usage
from .exchange import Exchange

KINDS: Final = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")


@attrs.define
class _Sum:
    tokens: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(KINDS, 0))
    cost_nanousd: int = 0
    unpriced: int = 0
    events: int = 0


class UsageCounts:
    """Sums over exchanges. Beyond `MAX_USAGES` models, those of all others are one sum for each provider."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str | None, str | None], _Sum] = {}

    def add(self, exchange: Exchange, events: int = 0) -> None:
        """An exchange that is over, and the events of its answer; one without these and tokens changes nothing."""
        tokens = {kind: getattr(exchange, f"{kind}_tokens") or 0 for kind in KINDS}
        used = any(tokens.values())
        if not used and not events:
            return
        cost = exchange.cost_nanousd
        each = self._sum(exchange.provider, exchange.routed_model or exchange.model)
        _add(each, tokens, cost or 0, int(used and cost is None), events)

    def add_all(self, usages: Iterable[Usage]) -> None:
        """What another one has told."""
        for usage in usages:
            each = self._sum(usage.provider, usage.model)
            _add(each, usage.tokens, usage.cost_nanousd, usage.unpriced, usage.events)

    def told(self) -> tuple[Usage, ...]:
        """All of it."""
        return tuple(
            Usage(
                provider=provider,
                model=model,
                tokens=dict(each.tokens),
                cost_nanousd=each.cost_nanousd,
                unpriced=each.unpriced,
                events=each.events,
            )
            for (provider, model), each in self._sums.items()
        )

    def _sum(self, provider: str | None, model: str | None) -> _Sum:
        key = (provider, model)
        if key not in self._sums and len(self._sums) >= MAX_USAGES:
            key = (provider, None)
        return self._sums.setdefault(key, _Sum())


def _add(each: _Sum, tokens: Mapping[str, int], nanousd: int, unpriced: int, events: int) -> None:
    for kind in KINDS:
        each.tokens[kind] += tokens.get(kind, 0)
    each.cost_nanousd += nanousd
    each.unpriced += unpriced
    each.events += events
