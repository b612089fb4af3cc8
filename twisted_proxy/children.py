"""What the processes that this one starts have in common: what they are started with, and what is said of their end."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.python.failure import Failure

NOT_FOR_CHILDREN: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""A terminal and systemd send them to the whole group; whoever started a child tells it when it is time."""

FIRST_RESTART: Final = 0.5
LAST_RESTART: Final = 30.0
"""Seconds between the end of a child and the next: the first time, and at most."""
LONG_ENOUGH: Final = 60.0
"""Seconds after which a child that ends is taken for one that had started well."""
LAST_WORDS: Final = 20
"""Lines of its standard error that are shown when it has died."""
MAX_WORD: Final = 2000
"""Characters of one of these."""


def environment(inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a child needs to import what this process does, wherever that came from."""
    # Before all: the package that runs, also where it was imported by way of something that is not in the path.
    ours = str(Path(__file__).resolve().parent.parent)
    path = [ours, *(str(Path(each).absolute()) for each in sys.path)]
    return {**inherited, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}


@contextmanager
def blocked(signals: Collection[signal.Signals] = NOT_FOR_CHILDREN) -> Iterator[None]:
    """A child that is started meanwhile has these blocked for good; here they come a little later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def fate(reason: Failure) -> tuple[str, bool]:
    """How a process ended, in words that follow its name; and whether it ended well."""
    value = reason.value
    if isinstance(value, ProcessDone):
        return "exited", True
    if isinstance(value, ProcessTerminated) and value.signal is not None:
        return f"was killed by signal {value.signal}", False
    return f"exited with status {getattr(value, 'exitCode', None)}", False


class Delay:
    """How long to wait with the next one: longer each time, unless the last one had started well."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._delay = FIRST_RESTART
        self._started_at = 0.0

    def started(self) -> None:
        self._started_at = self._seconds()

    def next(self) -> float:
        """Seconds."""
        if self._seconds() - self._started_at >= LONG_ENOUGH:
            self._delay = FIRST_RESTART
        delay, self._delay = self._delay, min(self._delay * 2, LAST_RESTART)
        return delay


class LastWords:
    """
    Lines that a process wrote where nobody expects any, and the last of them for when it has died.

    :param said: told each line.
    """

    def __init__(self, said: Callable[[str], None]) -> None:
        self._said = said
        self._line = bytearray()
        self._words: deque[str] = deque(maxlen=LAST_WORDS)

    def feed(self, data: bytes) -> None:
        """Some of its standard error."""
        self._line += data
        *lines, rest = self._line.split(b"\n")
        self._line = rest[-MAX_WORD:]
        for line in lines:
            self.say(line)

    def say(self, line: bytes | bytearray) -> None:
        """One line."""
        text = line.decode("utf-8", "backslashreplace").rstrip()[:MAX_WORD]
        if text:
            self._words.append(text)
            self._said(text)

    def end(self) -> None:
        """There is nothing more."""
        line, self._line = self._line, bytearray()
        self.say(line)

    def __str__(self) -> str:
        return "".join([f"\n{line}" for line in self._words])
