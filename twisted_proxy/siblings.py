"""
The processes that make up one proxy, seen from one of them: what they are asked and told.

A proxy that is one process is `Alone`. Messages and answers are what msgpack can carry: ``None``, numbers, strings,
bytes, lists and dictionaries.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

log = Logger()

JOINED: Final = "joined"
LEFT: Final = "left"
"""Topics that nobody tells: a sibling can be told something from now on, or is gone. The message is ``None``."""

Answerer = Callable[[Any], Any]
"""Given the argument of a question, answers at once. What it raises is logged, and is no answer."""
Hearer = Callable[[int, Any], None]
"""Given who tells, and what."""


class Siblings(Protocol):
    """
    All processes of one proxy.

    :ivar place: of this one, from 0 on; the process that replaces a dead one has the same. ``None``: it is alone.
    :ivar size: how many processes there are to be.
    :ivar secret: is known to all of them and to nobody else, and is new each time the proxy starts.
    """

    @property
    def place(self) -> int | None: ...
    @property
    def size(self) -> int: ...
    @property
    def secret(self) -> str: ...

    def ask(self, question: str, argument: Any = None) -> Deferred[list[Any]]:
        """
        Ask all of them, this one, too. Never fails, and takes a second at most; who does not answer in time is left
        out, unless an older answer of his to a question without an argument is known.
        """

    def answer(self, question: str, by: Answerer) -> None:
        """Answer such questions from now on."""

    def tell(self, topic: str, message: Any, to: int | None = None) -> None:
        """Tell one of the others, or all. What one tells arrives in order."""

    def hear(self, topic: str, by: Hearer) -> None:
        """Be told from now on what others tell about a topic, beside whoever else is."""


class Answers:
    """What one process answers, by question."""

    def __init__(self) -> None:
        self._by: dict[str, Answerer] = {}

    def add(self, question: str, by: Answerer) -> None:
        self._by[question] = by

    def find(self, question: str, argument: Any) -> list[Any]:
        """The one answer; none where nobody knows it."""
        try:
            return [self._by[question](argument)]
        except Exception:  # noqa: BLE001 - whoever asks must not wait for it
            log.failure("answering {question} failed", question=question)
            return []


class Alone:
    """A proxy that is one process."""

    place: int | None = None
    size = 1

    def __init__(self) -> None:
        self.secret = secrets.token_urlsafe(32)
        self._answers = Answers()

    def ask(self, question: str, argument: Any = None) -> Deferred[list[Any]]:
        return succeed(self._answers.find(question, argument))

    def answer(self, question: str, by: Answerer) -> None:
        self._answers.add(question, by)

    def tell(self, topic: str, message: Any, to: int | None = None) -> None:
        """There is nobody."""

    def hear(self, topic: str, by: Hearer) -> None:
        """Nobody tells anything."""
