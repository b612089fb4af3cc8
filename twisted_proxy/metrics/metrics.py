"""What is counted, what is looked up when somebody asks, and all of it in Prometheus's words."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Final, Protocol, cast

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder
from twisted.copyright import version as twisted_version
from twisted.internet.interfaces import IReactorTime

from .. import __version__
from ..record.control import Usage
from ..record.journal import JournalStats
from ..record.process import RecorderStatus
from ..relay.flight import Flight, Verdict
from ..runtime import Drain, Gauge
from ..tally import Histogram
from . import families
from .families import Family
from .lag import LagMonitor
from .merging import Snapshot, merge, snapshot
from .models import NONE, ModelLabels

TTFT_BOUNDS: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 60.0, 120.0, 300.0)
DURATION_BOUNDS: Final = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 300.0, 600.0, 1200.0, 1800.0)
"""Seconds. Answers with extended thinking take minutes."""

ENDPOINTS: Final = {
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "count_tokens",
    "/v1/chat/completions": "chat_completions",
    "/v1/models": "models",
}
OTHER_ENDPOINT: Final = "other"

_UPSTREAM_VERDICTS: Final = frozenset({Verdict.TRUNCATED, Verdict.SILENT})


class Pool(Protocol):
    """What is asked of an upstream (`relay.upstream.Upstream`)."""

    @property
    def retries(self) -> int: ...
    @property
    def connections(self) -> Mapping[str, int]: ...


class Records(Protocol):
    """What is asked of what records (`record.keeper.Keeper`)."""

    @property
    def mode(self) -> str: ...
    @property
    def spool_max_bytes(self) -> int: ...
    @property
    def journal_stats(self) -> JournalStats: ...
    @property
    def recorder_status(self) -> RecorderStatus: ...
    @property
    def usage(self) -> Sequence[Usage]: ...
    @property
    def store_writes(self) -> Histogram: ...


class Door(Protocol):
    """What is asked of a site of ours (`web.channel.ProxySite`)."""

    turned_away: int

    @property
    def connections(self) -> int: ...
    @property
    def max_connections(self) -> int: ...
    @property
    def refused(self) -> Mapping[int, int]: ...
    @property
    def bodies_bytes(self) -> int: ...
    @property
    def max_bodies_bytes(self) -> int: ...
    @property
    def credentials(self) -> int: ...


class _Merged:
    """Snapshots, as the library's encoders ask for them."""

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        self._snapshots = snapshots

    def collect(self) -> Iterator[Metric]:
        return merge(self._snapshots)


def expose(snapshots: Sequence[Snapshot], accept: str) -> tuple[str, bytes]:
    """
    What one process says, or several, as a page.

    :param accept: the ``Accept`` field of who asks.
    :return: content type, and body.
    """
    encode, content_type = choose_encoder(accept)
    return content_type, encode(cast("CollectorRegistry", _Merged(snapshots)))


class _Series:
    """What is counted of requests of one provider, model and endpoint."""

    __slots__ = ("duration", "ends", "request_bytes", "response_bytes", "ttft")

    def __init__(self) -> None:
        self.ends: dict[tuple[int | None, Verdict | None], int] = {}
        self.ttft = Histogram(TTFT_BOUNDS)
        self.duration = Histogram(DURATION_BOUNDS)
        self.request_bytes = 0
        self.response_bytes = 0


Labels = Sequence[str]
Sample = tuple[Labels, float]


class Metrics:
    """
    One proxy's metrics, in a registry of their own.

    :meth:`count` is all that a request pays. Whatever else there is to know is looked up by :meth:`expose`.

    :param upstreams: by the name of their provider.
    :param records: ``None`` where nothing is recorded.
    :ivar doors: the sites of ours, by what they are for: ``proxy``, ``dashboard``. Whoever makes one adds it.
    :ivar spans: how many there were, by what became of them.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        gauge: Gauge,
        drain: Drain,
        upstreams: Mapping[str, Pool],
        records: Records | None,
    ) -> None:
        self._clock = clock
        self._gauge = gauge
        self._drain = drain
        self._upstreams = upstreams
        self._records = records
        self._models = ModelLabels()
        self._series: dict[tuple[str, str, str], _Series] = {}
        self._errors: dict[tuple[str, str], int] = {}
        self.doors: dict[str, Door] = {}
        self.spans: Callable[[], Mapping[str, int]] = dict
        self.lag = LagMonitor(clock)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def count(self, flight: Flight, now: float) -> None:
        """
        A request is over.

        :param now: seconds, by the reactor's clock.
        """
        status = flight.status
        answered = flight.provider is not None and status is not None and 200 <= status < 300
        key = (
            flight.provider or NONE,
            self._models.label(flight.routed_model or flight.model, taken=answered),
            ENDPOINTS.get(flight.path, OTHER_ENDPOINT),
        )
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = _Series()
        end = (status, flight.verdict)
        series.ends[end] = series.ends.get(end, 0) + 1
        series.duration.observe(now - flight.received_at)
        if answered and flight.first_byte_at is not None:
            series.ttft.observe(flight.first_byte_at - flight.received_at)
        series.request_bytes += flight.body_bytes
        series.response_bytes += flight.sent_bytes
        kind = flight.failure
        if kind is None and flight.verdict in _UPSTREAM_VERDICTS:
            assert flight.verdict is not None
            kind = flight.verdict.value
        if kind is not None:
            error = (key[0], kind)
            self._errors[error] = self._errors.get(error, 0) + 1

    def snapshot(self, worker: int | None) -> Snapshot:
        """
        All of it, now, for `expose`.

        :param worker: the place of this process among others like it.
        """
        return snapshot(self.registry.collect(), worker)

    # For the registry

    def collect(self) -> Iterator[Metric]:
        """Each family, with what there is of it now."""
        yield from self._of_requests()
        yield from self._of_the_front_door()
        yield from self._of_upstreams()
        yield from self._of_usage()
        yield from self._of_recording()
        yield _metric(families.SPANS, (((outcome,), count) for outcome, count in self.spans().items()))
        yield from self._of_the_process()

    def _of_requests(self) -> Iterator[Metric]:
        oldest = self._gauge.oldest(1)
        yield _metric(families.IN_FLIGHT, [((), self._gauge.in_flight)])
        yield _metric(families.OLDEST, [((), self._clock.seconds() - oldest[0].received_at if oldest else 0)])
        series = self._series.items()
        yield _metric(
            families.REQUESTS,
            (
                ((*key, NONE if status is None else str(status), (verdict or Verdict.FAILED).value), count)
                for key, each in series
                for (status, verdict), count in each.ends.items()
            ),
        )
        yield _histogram(families.TTFT, ((key, each.ttft) for key, each in series))
        yield _histogram(families.DURATION, ((key, each.duration) for key, each in series))
        yield _metric(families.REQUEST_BYTES, ((key, each.request_bytes) for key, each in series))
        yield _metric(families.RESPONSE_BYTES, ((key, each.response_bytes) for key, each in series))

    def _of_the_front_door(self) -> Iterator[Metric]:
        doors = self.doors.items()
        yield _metric(families.CLIENT_CONNECTIONS, (((site,), door.connections) for site, door in doors))
        yield _metric(families.CLIENT_CONNECTIONS_MAX, (((site,), door.max_connections) for site, door in doors))
        yield _metric(families.TURNED_AWAY, (((site,), door.turned_away) for site, door in doors))
        yield _metric(
            families.REFUSALS,
            (((site, str(status)), count) for site, door in doors for status, count in door.refused.items()),
        )
        yield _metric(families.BODIES, (((site,), door.bodies_bytes) for site, door in doors))
        yield _metric(families.BODIES_MAX, (((site,), door.max_bodies_bytes) for site, door in doors))
        yield _metric(families.CREDENTIALS, (((site,), door.credentials) for site, door in doors))

    def _of_upstreams(self) -> Iterator[Metric]:
        yield _metric(families.UPSTREAM_ERRORS, self._errors.items())
        upstreams = self._upstreams.items()
        yield _metric(families.UPSTREAM_RETRIES, (((name,), upstream.retries) for name, upstream in upstreams))
        yield _metric(
            families.UPSTREAM_CONNECTIONS,
            (((name, state), count) for name, upstream in upstreams for state, count in upstream.connections.items()),
        )

    def _of_usage(self) -> Iterator[Metric]:
        tokens: dict[tuple[str, str, str], int] = {}
        nanousd: dict[tuple[str, str], int] = {}
        unpriced: dict[tuple[str, str], int] = {}
        events: dict[tuple[str, str], int] = {}
        for usage in () if self._records is None else self._records.usage:
            # That there is usage to be read of an answer shows that the model was taken.
            key = (usage.provider or NONE, self._models.label(usage.model, taken=True))
            for kind, count in usage.tokens.items():
                tokens[*key, kind] = tokens.get((*key, kind), 0) + count
            nanousd[key] = nanousd.get(key, 0) + usage.cost_nanousd
            unpriced[key] = unpriced.get(key, 0) + usage.unpriced
            events[key] = events.get(key, 0) + usage.events
        yield _metric(families.TOKENS, tokens.items())
        yield _metric(families.COST, ((key, amount / 1e9) for key, amount in nanousd.items()))
        yield _metric(families.UNPRICED, unpriced.items())
        yield _metric(families.EVENTS, events.items())

    def _of_recording(self) -> Iterator[Metric]:
        records = self._records
        yield _metric(families.RECORDING, [(("off" if records is None else records.mode,), 1)])
        if records is None:
            return
        journal, recorder = records.journal_stats, records.recorder_status
        problem = journal.problem or recorder.problem
        for family, value in (
            (families.RECORDING_UP, int(problem is None)),
            (families.RECORDED, recorder.recorded),
            (families.INCOMPLETE, recorder.incomplete),
            (families.INTERRUPTED, recorder.interrupted),
            (families.LOST_BODIES, journal.lost_bodies),
            (families.LOST_EXCHANGES, journal.lost_exchanges),
            (families.JOURNAL_PENDING, journal.pending_bytes),
            (families.SPOOL, journal.spool_bytes),
            (families.SPOOL_MAX, records.spool_max_bytes),
            (families.BEHIND, recorder.behind_bytes),
            (families.RECORDER_RESTARTS, recorder.restarts),
        ):
            yield _metric(family, [((), value)])
        yield _histogram(families.STORE_WRITES, [((), records.store_writes)])

    def _of_the_process(self) -> Iterator[Metric]:
        yield _metric(families.DRAINING, [((), int(self._drain.draining))])
        yield _metric(families.DRAIN_LEFT, [((), self._drain.remaining)])
        yield _histogram(families.LAG, [((), self.lag.lag)])
        yield _metric(families.BUILD, [((__version__, platform.python_version(), twisted_version), 1)])


def _metric(family: Family, samples: Iterable[Sample]) -> Metric:
    metric = _empty(family)
    for values, value in samples:
        metric.add_sample(family.name, dict(zip(family.labels, values, strict=True)), value)
    return metric


def _histogram(family: Family, samples: Iterable[tuple[Labels, Histogram]]) -> Metric:
    metric = _empty(family)
    for values, histogram in samples:
        labels = dict(zip(family.labels, values, strict=True))
        count = 0
        for bound, more in zip((*histogram.bounds, inf), histogram.counts, strict=True):
            count += more
            metric.add_sample(f"{family.name}_bucket", {**labels, "le": "+Inf" if bound == inf else str(bound)}, count)
        metric.add_sample(f"{family.name}_count", labels, count)
        metric.add_sample(f"{family.name}_sum", labels, histogram.sum)
    return metric


def _empty(family: Family) -> Metric:
    # The library puts the ending of counters behind the name itself.
    return Metric(family.name.removesuffix("_total"), family.meaning, family.kind)
