"""Tokens, money and speed over time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import attrs

from ...record.aggregates import GROUPED, Paces, Span, Totals
from ...record.sql import SqlStore
from . import shapes
from .app import Route
from .calls import Call, Refusal, Reply, answer_json, fit, show_time
from .records import Records
from .transcripts import Transcripts

Json = dict[str, Any]

SECOND = 1_000_000
MOST_POINTS = 1000
MOST_POINTS_OF_SERIES = 300
"""Of each, where there are several."""
POINTS = 100
"""Where nobody says how many."""
MOST_SERIES = 20
MOST_PACES = 50_000
MOST_LIMITS = 2000

_BY = {
    "none": None,
    "model": "model",
    "session": "session",
    "agent": "agent",
    "agentType": "agent_type",
    "requestClass": "request_class",
    "project": "session",
}
assert set(_BY.values()) <= {None, *GROUPED}

_STEPS = (1, 5, 10, 30, 60, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400, 604800)


@attrs.frozen(kw_only=True)
class _Range:
    """Times are microseconds since the Unix epoch; the step is in seconds."""

    since: int
    until: int
    step: int

    @property
    def times(self) -> list[int]:
        return [(self.since + index * self.step * SECOND) // SECOND for index in range(self.points)]

    @property
    def points(self) -> int:
        return -(-(self.until - self.since) // (self.step * SECOND))

    def shape(self) -> Json:
        return {"since": show_time(self.since), "until": show_time(self.until), "bucket": self.step}


class Usage:
    """
    ``/api/usage``.

    :param compute: runs what reads files, where it blocks nobody.
    :param now: microseconds since the Unix epoch.
    """

    def __init__(
        self,
        records: Records,
        transcripts: Transcripts,
        compute: Callable[..., Awaitable[Any]],
        now: Callable[[], int],
    ) -> None:
        self._records = records
        self._transcripts = transcripts
        self._compute = compute
        self._now = now

    def routes(self) -> Sequence[Route]:
        return (
            Route(method="GET", rule="/api/usage", name="getUsage", handler=self.sums),
            Route(method="GET", rule="/api/usage/speed", name="getSpeed", handler=self.speed),
            Route(method="GET", rule="/api/usage/limits", name="getLimits", handler=self.limits),
        )

    def _range(self, call: Call, most: int = MOST_POINTS) -> _Range:
        until = call.time("until")
        until = self._now() + 1 if until is None else until
        since = call.time("since")
        since = until - 24 * 3600 * SECOND if since is None else since
        if since >= until:
            raise Refusal(400, "since: the parameter must be before until, which is now by default.")
        step = call.integer("bucket", least=1, most=365 * 86400)
        if step is None:
            wanted = (until - since) // (POINTS * SECOND)
            step = next((each for each in _STEPS if each >= wanted), wanted)
        found = _Range(since=since, until=until, step=step)
        if found.points > most:
            raise Refusal(400, f"bucket: that makes {found.points} points, and {most} is the most; take a larger one.")
        return found

    async def sums(self, call: Call) -> Reply:
        by = call.choice("by", _BY) or "none"
        range_ = self._range(call, MOST_POINTS if by == "none" else MOST_POINTS_OF_SERIES)
        spans = await self._records.ask(
            lambda store: store.aggregates.spans(
                since=range_.since, until=range_.until, step=range_.step * SECOND, by=_BY[by]
            )
        )
        if by == "project":
            projects = await self._compute(self._transcripts.projects)
            spans = tuple(attrs.evolve(span, key=projects.get(span.key or "", "")) for span in spans)
        total = sum([span.totals for span in spans], Totals())
        return answer_json(
            {
                **range_.shape(),
                "by": by,
                "times": range_.times,
                "totals": shapes.totals(total),
                "series": _series(spans, range_.points, grouped=by != "none"),
            }
        )

    async def speed(self, call: Call) -> Reply:
        range_ = self._range(call)
        model = call.text("model", most=256)

        async def read(store: SqlStore) -> Reply:
            paces = await store.aggregates.paces(
                since=range_.since, until=range_.until, step=range_.step * SECOND, model=model, limit=MOST_PACES
            )
            counted = sum(len(each.first_event_us) for each in paces)
            percentiles = await store.compute(_percentiles, paces, range_)
            return answer_json({**range_.shape(), "times": range_.times, "counted": counted, **percentiles})

        return await self._records.ask(read)

    async def limits(self, call: Call) -> Reply:
        range_ = self._range(call)
        found = await self._records.ask(
            lambda store: store.aggregates.limits(
                since=range_.since, until=range_.until, step=range_.step * SECOND, limit=MOST_LIMITS
            )
        )
        # If it is too much, the newest are wanted.
        points, _ = fit(
            found[::-1],
            lambda seen: {
                "timestamp": show_time(seen.received_at),
                "credential": seen.credential,
                "provider": seen.provider,
                "limits": dict(seen.limits),
            },
        )
        return answer_json({**range_.shape(), "points": points[::-1]})


def _series(spans: Sequence[Span], points: int, *, grouped: bool) -> list[Json]:
    """One for each of the keys that cost most, and one for the rest, with ``None`` as its key."""
    whole: dict[str | None, Totals] = {}
    for span in spans:
        whole[span.key] = whole.get(span.key, Totals()) + span.totals
    ranked = sorted(whole, key=lambda key: (whole[key].cost_nanousd, whole[key].requests), reverse=True)
    shown = set(ranked[:MOST_SERIES])
    order: list[str | None] = [*ranked[:MOST_SERIES], *([None] if len(ranked) > MOST_SERIES else [])]
    if not order and not grouped:
        order = [None]
    cells: dict[str | None, dict[int, Totals]] = {key: {} for key in order}
    for span in spans:
        cell = cells[span.key if span.key in shown else None]
        cell[span.index] = cell.get(span.index, Totals()) + span.totals
    found = []
    nothing = Totals()
    for key in order:
        row = [cells[key].get(index, nothing) for index in range(points)]
        found.append(
            {
                "key": key,
                "totals": shapes.totals(sum(cells[key].values(), Totals())),
                "requests": [each.requests for each in row],
                "errors": [each.errors for each in row],
                "inputTokens": [each.input_tokens for each in row],
                "outputTokens": [each.output_tokens for each in row],
                "cacheReadTokens": [each.cache_read_tokens for each in row],
                "cacheWriteTokens": [each.cache_write_5m_tokens + each.cache_write_1h_tokens for each in row],
                "costNanousd": [each.cost_nanousd for each in row],
            }
        )
    return found


def _percentiles(paces: Sequence[Paces], range_: _Range) -> Json:
    firsts = {each.index: sorted(us / 1000 for us in each.first_event_us) for each in paces}
    speeds = {each.index: sorted(each.speeds) for each in paces}
    return {"ttftMs": _rows(firsts, range_.points), "tokensPerSecond": _rows(speeds, range_.points)}


def _rows(ordered: Mapping[int, Sequence[float]], points: int) -> Json:
    return {
        f"p{percent}": [_rank(ordered.get(index, ()), percent) for index in range(points)] for percent in (50, 90, 99)
    }


def _rank(ordered: Sequence[float], percent: int) -> float | None:
    """The nearest rank."""
    if not ordered:
        return None
    return round(ordered[-(-len(ordered) * percent // 100) - 1], 2)
