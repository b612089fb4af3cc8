"""
The beginning and the end of an answer, in bounded memory.

Where bodies are not to be kept, not even for a moment on a disk, this is enough to learn what an answer cost.
"""

from __future__ import annotations

import re
from collections import deque

HEAD = 16 * 1024
TAIL = 16 * 1024
WHOLE = 256 * 1024
"""A JSON answer of at most so many bytes is looked at whole."""

_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
# Events that say who answered, how it ended and what was used; of a message, nothing of what the model said.
_OF_A_MESSAGE = re.compile(rb"event: ?(?:message_start|message_delta|message_stop|error)\r?\n")
_OF_A_COMPLETION = re.compile(rb'data: ?\[DONE\]|"(?:usage|error)"\s*:\s*\{|"finish_reason"\s*:\s*"')


def _is_telling(event: bytes) -> bool:
    if event.startswith(b"data:"):
        return _OF_A_COMPLETION.search(event) is not None
    return _OF_A_MESSAGE.match(event) is not None


class Excerpt:
    """
    :param event_stream: whether the answer is server-sent events.
    """

    def __init__(self, *, event_stream: bool) -> None:
        self._event_stream = event_stream
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._dropped = False

    def append(self, data: bytes) -> None:
        """Take the next piece of the answer."""
        room = (HEAD if self._event_stream else WHOLE) - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if not data:
            return
        if not self._event_stream:
            self._dropped = True
            return
        self._tail.append(data)
        self._tail_size += len(data)
        while self._tail_size - len(self._tail[0]) >= TAIL:
            self._tail_size -= len(self._tail.popleft())
            self._dropped = True

    def read(self) -> bytes:
        """
        An answer that tells as much as this one does but its content: of a stream, some of its events.

        Empty where that cannot be said.
        """
        if not self._event_stream:
            return b"" if self._dropped else bytes(self._head)
        head, tail = bytes(self._head), b"".join(self._tail)
        # Where something is missing between the two, so is the rest of the event before it and of that behind it.
        events = _BLANK_LINE.split(head)[:-1] + _BLANK_LINE.split(tail)[1:] if self._dropped else _split(head + tail)
        return b"".join(event + b"\n\n" for event in events if _is_telling(event))


def _split(stream: bytes) -> list[bytes]:
    *events, rest = _BLANK_LINE.split(stream)
    return events if not rest.strip() else [*events, rest]
