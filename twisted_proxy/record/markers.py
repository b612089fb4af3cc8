"""
``cache_control``: the markers that a client sets into a conversation, at other places from turn to turn.

https://docs.claude.com/en/docs/build-with-claude/prompt-caching
"""

from __future__ import annotations

import re

MARKER = b'"cache_control"'
"""The member's name as it stands in JSON."""

_MAX_MARKERS = 64
"""The API takes four."""
_MEMBER = re.compile(
    rb'"cache_control"[ \t\n\r]{0,64}+:[ \t\n\r]{0,64}+(?:\{(?:[^{}"\\]{1,64}+|"[^"\\]{0,64}+"){0,32}+\}|null)'
)
_COMMA_BEHIND = re.compile(rb"[ \t\n\r]{0,64}+,[ \t\n\r]{0,64}+")
_SPACE_AROUND = 64


def take_markers(body: bytes) -> tuple[bytes, list[tuple[int, bytes]]]:
    """
    `body` without the members ``cache_control`` of its objects, each with its comma; and what was taken, by where it
    was in the rest. No more than 64; those beyond stay where they are.
    """
    inserts: list[tuple[int, bytes]] = []
    kept: list[memoryview] = []
    view = memoryview(body)
    done = offset = 0
    found = body.find(MARKER)
    for _ in range(_MAX_MARKERS):
        if found < 0:
            break
        span = _marker_at(body, done, found)
        if span is not None:
            start, end = span
            kept.append(view[done:start])
            offset += start - done
            inserts.append((offset, body[start:end]))
            done = end
        found = body.find(MARKER, max(done, found + 1))
    if not inserts:
        return body, inserts
    kept.append(view[done:])
    return b"".join(kept), inserts


def _marker_at(body: bytes, done: int, found: int) -> tuple[int, int] | None:
    """Where the marker starts and ends whose name was found; ``None`` if it is something else."""
    marker = _MEMBER.match(body, found)
    if marker is None:
        return None
    floor = max(done, found - _SPACE_AROUND)
    before = floor + len(body[floor:found].rstrip(b" \t\n\r")) - 1
    if before < floor:
        return None
    if body[before] == 0x2C:  # ","
        return before, marker.end()
    if body[before] == 0x7B:  # "{"
        behind = _COMMA_BEHIND.match(body, marker.end())
        return found, behind.end() if behind else marker.end()
    return None
