"""Bytes as they may come: cut anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterable


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """`data` in pieces, some of them empty."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


def bytewise(data: bytes) -> list[bytes]:
    return [data[place : place + 1] for place in range(len(data))]
