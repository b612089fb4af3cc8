"""
How much the front door takes: connections, request bodies in memory, requests of one credential.

What is beyond a limit is refused with words, a status that clients repeat after, and the time to wait.
"""

from __future__ import annotations

import hashlib
import math
import os
import resource
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

import attrs

RAISE_TO = 65536
"""As many descriptors as the process asks for, where the hard limit lets it."""

_OTHER_DESCRIPTORS = 64
"""Logs, listening sockets, the store."""

_MOST_BY_DEFAULT = 16384
_MOST_GUESTS = 512

WINDOW = 60.0
"""Seconds over which requests are counted."""

MAX_CREDENTIALS = 10_000
"""So many credentials are counted at a time; beyond, the one that was seen longest ago is forgotten."""

RETRY_SOON = 5
"""Seconds after which what is refused for want of room may be tried again."""


class Refusal(NamedTuple):
    """
    What a client is told instead of an answer.

    :ivar retry_after: seconds, where trying again helps.
    """

    status: int
    error_type: str
    message: str
    retry_after: int | None = None


# Connections


def raise_descriptor_limit() -> None:
    """Take what the system's administrator allows: the soft limit is often 1024, for programs that use ``select``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = RAISE_TO if hard == resource.RLIM_INFINITY else min(RAISE_TO, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return RAISE_TO if soft == resource.RLIM_INFINITY else soft


@attrs.frozen
class Room:
    """
    For how many connections there is room.

    :ivar connections: that are served.
    :ivar guests: beyond those: they may ask for the pages that say how the process is.
    """

    connections: int
    guests: int

    @classmethod
    def of_process(cls, connections: int) -> Room:
        """
        What this process's descriptors allow: each connection may need a second one, to an upstream.

        :param connections: as configured; 0 leaves it to the descriptors.
        """
        descriptors = _descriptors()
        guests = min(_MOST_GUESTS, max(1, descriptors // 8))
        allowed = max(1, (descriptors - guests - _OTHER_DESCRIPTORS) // 2)
        return cls(connections or min(allowed, _MOST_BY_DEFAULT), guests)


# Bodies


class BodyMemory:
    """
    How many bytes of request bodies are in memory.

    What counts is what came: who only announces much takes nothing from others. What is announced beyond what is left,
    though, is not begun to be read. A body that is alone always fits.

    :param limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def fits(self, size: int) -> bool:
        """Whether there is room for a body of so many bytes now."""
        return not self.used or self.used + size <= self.limit

    def refusal(self) -> Refusal:
        return Refusal(
            529,
            "overloaded_error",
            f"The proxy holds as many request bodies as it may ({self.limit} bytes, MAX_BODIES_BYTES). Try again soon.",
            RETRY_SOON,
        )


class Hold:
    """The part of a `BodyMemory` that one request, or one connection, has."""

    __slots__ = ("_memory", "_size")

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._size = 0

    def grow(self, size: int) -> bool:
        """So many bytes more are held; ``False`` where they are too many, with those of others."""
        memory = self._memory
        self._size += size
        memory.used += size
        return memory.used <= memory.limit or memory.used == self._size

    def release(self) -> None:
        """They are gone. Releasing twice changes nothing."""
        self._memory.used -= self._size
        self._size = 0


# Credentials


class _Use:
    """What one credential did."""

    __slots__ = ("in_flight", "times")

    def __init__(self) -> None:
        self.in_flight = 0
        self.times: deque[float] = deque()


class CredentialLimits:
    """
    How many requests of one credential may be in flight, and may come within a minute.

    Requests without any are limited together. What is refused does not count. Credentials are kept only as hashes whose
    key never leaves the process, at most `MAX_CREDENTIALS` of them.

    :param concurrent: 0: no limit. :param per_minute: in any 60 seconds; 0: no limit.
    :param now: a clock that does not jump, in seconds.
    """

    def __init__(self, concurrent: int, per_minute: int, now: Callable[[], float]) -> None:
        self._concurrent = concurrent
        self._per_minute = per_minute
        self._now = now
        self._key = os.urandom(32)
        # The one that was seen longest ago comes first.
        self._uses: OrderedDict[bytes, _Use] = OrderedDict()

    @property
    def active(self) -> bool:
        return bool(self._concurrent or self._per_minute)

    def __len__(self) -> int:
        """How many credentials are counted."""
        return len(self._uses)

    def enter(self, credential: bytes | None) -> Refusal | Callable[[], None]:
        """
        A request has come.

        :return: why it is refused, or what to call, once, when it is over.
        """
        key = hashlib.blake2b(credential or b"", key=self._key, digest_size=16).digest()
        use = self._uses.get(key)
        if use is None:
            self._make_room()
            use = self._uses[key] = _Use()
        else:
            self._uses.move_to_end(key)
        if self._concurrent and use.in_flight >= self._concurrent:
            return self._refuse(f"{self._concurrent} at a time (LIMIT_CONCURRENT)", RETRY_SOON)
        if self._per_minute:
            now = self._now()
            times = use.times
            while times and now - times[0] >= WINDOW:
                times.popleft()
            if len(times) >= self._per_minute:
                wait = math.ceil(times[0] + WINDOW - now)
                what = f"{self._per_minute} within a minute (LIMIT_REQUESTS_PER_MINUTE)"
                # SDKs disregard what is longer than a minute.
                return self._refuse(what, min(max(wait, 1), int(WINDOW) - 1))
            times.append(now)
        use.in_flight += 1

        def leave() -> None:
            use.in_flight -= 1

        return leave

    def _refuse(self, what: str, retry_after: int) -> Refusal:
        return Refusal(
            429,
            "rate_limit_error",
            f"This proxy takes no more requests of one credential than {what}. Try again in {retry_after} s.",
            retry_after,
        )

    def _make_room(self) -> None:
        """Forget one credential, if there are too many: rather one of which nothing is in flight."""
        if len(self._uses) < MAX_CREDENTIALS:
            return
        # The oldest hardly ever has anything in flight; if it has, its neighbours are asked, not all of them.
        for _ in range(16):
            key, use = next(iter(self._uses.items()))
            if not use.in_flight:
                break
            self._uses.move_to_end(key)
        else:
            key = next(iter(self._uses))
        del self._uses[key]
