"""Who has logged in, and who tries to: known to all workers, whichever of them a browser's next connection meets."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import attrs

from ...siblings import JOINED, Siblings
from .calls import Refusal

SESSION_IDLE = 7 * 24 * 3600.0
"""Seconds after which a session ends that nobody uses."""
TOLD_EVERY = 3600.0
"""Seconds after which the others are told again that a session is used."""
MOST_SESSIONS = 1000
"""Beyond, the one that was used longest ago ends."""

WINDOW = 300.0
"""Seconds in which attempts are counted."""
MOST_ATTEMPTS = 10
"""Wrong passwords and tokens of one peer in that time."""
MOST_ATTEMPTS_OF_ALL = 100
MOST_PEERS = 10_000
"""That are remembered."""

_KNOWN = "sessions"
_BEGUN = "session begun"
"""Questions. That a session has begun is asked, not told: the answer says that everybody knows."""
_USED = "session used"
_ENDED = "session ended"
_TRIED = "login tried"
_SUCCEEDED = "login succeeded"
"""Topics."""


@attrs.define
class _Attempts:
    since: float
    count: int = 0


class Attempts:
    """
    How often somebody guessed wrong.

    :param seconds: the time, in seconds, of any clock that does not go back.
    """

    def __init__(self, seconds: Callable[[], float], siblings: Siblings) -> None:
        self._seconds = seconds
        self._siblings = siblings
        siblings.hear(_TRIED, lambda _, peer: self._begin(peer))
        siblings.hear(_SUCCEEDED, lambda _, peer: self._succeed(peer))
        self._peers: OrderedDict[str, _Attempts] = OrderedDict()
        self._all = _Attempts(since=0.0)

    def check(self, peer: str) -> None:
        """
        :raises Refusal: too many, from there or altogether.
        """
        now = self._seconds()
        for attempts, most in ((self._peers.get(peer), MOST_ATTEMPTS), (self._all, MOST_ATTEMPTS_OF_ALL)):
            if attempts is not None and attempts.count >= most and now < attempts.since + WINDOW:
                wait = int(attempts.since + WINDOW - now) + 1
                raise Refusal(429, f"Too many attempts. Try again in {wait} seconds.", {"Retry-After": str(wait)})

    def begin(self, peer: str) -> None:
        """One more. Counted before it is known to be wrong, as many may come at once."""
        self._begin(peer)
        self._siblings.tell(_TRIED, peer)

    def _begin(self, peer: str) -> None:
        now = self._seconds()
        of_peer = self._peers.setdefault(peer, _Attempts(since=now))
        self._peers.move_to_end(peer)
        if len(self._peers) > MOST_PEERS:
            self._peers.popitem(last=False)
        for attempts in (of_peer, self._all):
            if now >= attempts.since + WINDOW:
                attempts.since, attempts.count = now, 0
            attempts.count += 1

    def succeed(self, peer: str) -> None:
        """The last one was right: neither it nor those before it count."""
        self._succeed(peer)
        self._siblings.tell(_SUCCEEDED, peer)

    def _succeed(self, peer: str) -> None:
        self._peers.pop(peer, None)
        self._all.count = max(0, self._all.count - 1)


@attrs.define
class Session:
    """
    :ivar csrf: what must stand in ``X-CSRF-Token`` to change something.
    :ivar used_at: seconds, by this process's clock. :ivar told_at: when the others were told of that.
    """

    csrf: str
    used_at: float
    told_at: float
    on_end: dict[Callable[[], None], None] = attrs.Factory(dict)


class Sessions:
    """
    The sessions of browsers.

    They are known by a hash of what is in the cookie, so that no look-up tells how much of a guess is right.

    :param seconds: the time, in seconds, of any clock that does not go back.
    """

    def __init__(self, seconds: Callable[[], float], siblings: Siblings) -> None:
        self._seconds = seconds
        self._siblings = siblings
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()
        siblings.answer(_KNOWN, lambda _: [[key, session.csrf] for key, session in self._sessions.items()])
        siblings.answer(_BEGUN, lambda session: self._know(*session))
        siblings.hear(_USED, self._used)
        siblings.hear(_ENDED, self._ended)
        # One that replaces a dead worker knows what the others do.
        siblings.hear(JOINED, lambda *_: self._ask())
        self._ask()

    def _ask(self) -> None:
        self._siblings.ask(_KNOWN).addCallback(self._learn)

    def _learn(self, answers: list[Any]) -> None:
        for sessions in answers:
            for key, csrf in sessions:
                if key not in self._sessions:
                    self._know(key, csrf)

    def _know(self, key: bytes, csrf: str) -> bool:
        now = self._seconds()
        session = self._sessions.setdefault(key, Session(csrf=csrf, used_at=now, told_at=now))
        session.used_at = session.told_at = now
        self._sessions.move_to_end(key)
        while len(self._sessions) > MOST_SESSIONS:
            self._end(next(iter(self._sessions)))
        return True

    async def begin(self) -> tuple[str, bytes, Session]:
        """
        Begin a session.

        :return: the value of its cookie, its key, and it.
        """
        value = secrets.token_urlsafe(32)
        key = _key(value.encode("ascii"))
        self._know(key, secrets.token_urlsafe(32))
        session = self._sessions[key]
        await self._siblings.ask(_BEGUN, [key, session.csrf])
        return value, key, session

    def find(self, value: bytes) -> tuple[bytes, Session] | None:
        """The session of a cookie, which is used by that."""
        key = _key(value)
        session = self._sessions.get(key)
        if session is None:
            return None
        now = self._seconds()
        if now - session.used_at > SESSION_IDLE:
            self._end(key)
            return None
        session.used_at = now
        self._sessions.move_to_end(key)
        if now - session.told_at > TOLD_EVERY:
            session.told_at = now
            self._siblings.tell(_USED, [key, session.csrf])
        return key, session

    def end(self, key: bytes) -> None:
        """End it, everywhere."""
        self._end(key)
        self._siblings.tell(_ENDED, key)

    def _used(self, member: int, session: tuple[bytes, str]) -> None:
        self._know(*session)

    def _ended(self, member: int, key: bytes) -> None:
        self._end(key)

    def when_ended(self, key: bytes, act: Callable[[], None]) -> Callable[[], None]:
        """
        Call when a session ends.

        :return: what makes that undone.
        """
        session = self._sessions.get(key)
        if session is None:
            return lambda: None
        session.on_end[act] = None
        return lambda: session.on_end.pop(act, None)

    def _end(self, key: bytes) -> None:
        session = self._sessions.pop(key, None)
        if session is not None:
            for act in list(session.on_end):
                act()


def _key(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()
