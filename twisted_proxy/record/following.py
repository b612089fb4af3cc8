"""What came behind what, lately: a conversation repeats itself up to where it goes on."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")

_OVERHEAD = 300
"""Bytes that a value takes beside its own."""


class Following(Generic[V]):
    """
    The values that stood behind others, each found by a hash of all that stood before it. Of these the ones that were
    asked for last. May be used by several threads.

    :param most: values that are kept behind the same ones.
    :param most_bytes: that all of them may take.
    """

    def __init__(self, *, most: int = 64, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        # The last of the dictionary, and the first of each list, were of use last.
        self._behind: OrderedDict[bytes, list[tuple[int, V]]] = OrderedDict()
        self._bytes = 0

    def find(self, before: bytes, is_wanted: Callable[[V], bool]) -> V | None:
        """The value behind `before` that is wanted."""
        with self._lock:
            values = self._behind.get(before, [])
            for place, (_, value) in enumerate(values):
                if is_wanted(value):
                    if place:
                        values.insert(0, values.pop(place))
                    self._behind.move_to_end(before)
                    return value
        return None

    def add(self, before: bytes, value: V, size: int) -> None:
        """Keep a value that was not found. `size` is in bytes."""
        with self._lock:
            values = self._behind.setdefault(before, [])
            values.insert(0, (size, value))
            self._behind.move_to_end(before)
            self._bytes += size + _OVERHEAD
            if len(values) > self._most:
                self._forget([values.pop()])
            while self._bytes > self._most_bytes:
                self._forget(self._behind.popitem(last=False)[1])

    def _forget(self, values: list[tuple[int, V]]) -> None:
        self._bytes -= sum(size + _OVERHEAD for size, _ in values)
