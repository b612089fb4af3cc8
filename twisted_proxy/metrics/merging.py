"""
The metrics of several processes as those of one.

A snapshot is what one of them says: ``{"worker": its place, or null, "families": [[name, kind, meaning, [[sample,
labels, value], …]], …]}``, with names as `prometheus_client.Metric` and its samples have them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import Metric

from . import families
from .families import Family

Snapshot = Mapping[str, Any]

_OTHERWISE: Final[Mapping[str, Callable[[float, float], float]]] = {
    families.OLDEST.name: max,
    families.DRAINING.name: max,
    families.DRAIN_LEFT.name: max,
    families.RECORDING.name: max,
    families.RECORDING_UP.name: min,
    families.BUILD.name: max,
}
"""What becomes of two values. Those of everything else are added."""

_OF_PROCESS: Final = "process_"
"""Prometheus's own metrics of a process: to add them would say nothing, so each worker has its own."""

_LASTING: Final = ("counter", "histogram")


def snapshot(metrics: Iterable[Metric], worker: int | None) -> Snapshot:
    """What one process says."""
    return {
        "worker": worker,
        "families": [
            [
                each.name,
                each.type,
                each.documentation,
                [[name, labels, value] for name, labels, value, *_ in each.samples],
            ]
            for each in metrics
        ],
    }


def of_family(family: Family, samples: Iterable[tuple[Sequence[str], float]]) -> Snapshot:
    """What somebody says who has but one family."""
    metric = Metric(family.name.removesuffix("_total"), family.meaning, family.kind)
    for values, value in samples:
        metric.add_sample(family.name, dict(zip(family.labels, values, strict=True)), value)
    return snapshot([metric], None)


def merge(snapshots: Sequence[Snapshot]) -> Iterator[Metric]:
    """All of them as one process would say it."""
    merged: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, frozenset[tuple[str, str]]], tuple[dict[str, str], float]]] = {}
    for said in snapshots:
        worker = said["worker"]
        for name, kind, meaning, samples in said["families"]:
            own = name.startswith(_OF_PROCESS) and worker is not None
            combine = _OTHERWISE.get(name, _add)
            merged.setdefault(name, Metric(name, meaning, kind))
            found = values.setdefault(name, {})
            for sample, said_labels, value in samples:
                labels = {**said_labels, "worker": str(worker)} if own else dict(said_labels)
                key = (sample, frozenset(labels.items()))
                known = found.get(key)
                found[key] = (labels, value if known is None else combine(known[1], value))
    for name, metric in merged.items():
        for (sample, _), (labels, value) in values[name].items():
            metric.add_sample(sample, labels, value)
        yield metric


def lasting(snapshots: Sequence[Snapshot]) -> Snapshot:
    """What has been counted, without how things are: for a process that is gone, as counters must not go back."""
    return snapshot(
        [each for each in merge(snapshots) if each.type in _LASTING and not each.name.startswith(_OF_PROCESS)], None
    )


def _add(one: float, other: float) -> float:
    return one + other
