"""Numbers that are counted up as things happen, and cheap to count."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """
    How many values there were, up to each of some bounds.

    :param bounds: ascending; a value that equals one is not above it.
    :ivar counts: of the values up to each bound and above the one before it; the last: of those above all.
    :ivar sum: of all values.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
