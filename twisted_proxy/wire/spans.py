"""
Where the members of a JSON object and the elements of a JSON array stand in its bytes.

No value is parsed into Python objects. What counts as JSON here is what msgspec takes (RFC 8259, and no lone
surrogate), except that strings need not be UTF-8. It recurses, so that depth ends at the interpreter's recursion
limit, about 1000; the API's own limit is of that order.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

MAX_MEMBERS = 1024
"""A body of 32 MB has room for millions of members, at a hundred bytes each; the API knows some thirty."""
MAX_ELEMENTS = 10_000
"""Elements of one array."""

REFUSED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
"""What is raised for what is refused."""

# These read what is known to be valid.
_OPENING = re.compile(rb"[ \t\n\r]*+[\[{]")
_BEFORE_VALUE = re.compile(rb'[ \t\n\r,]*+"(?:[^"\\]++|\\.)*+"[ \t\n\r]*+:[ \t\n\r]*+', re.DOTALL)
_BETWEEN = re.compile(rb"[ \t\n\r,]*+")

_COUNTED_FIRST = 1024 * 1024
"""Bytes of an array from which on its elements are counted before they are looked at."""


class Member(NamedTuple):
    """A member of an object: its value is ``data[start:end]``."""

    name: str
    start: int
    end: int


class _TooManyError(Exception):
    """Found out before all of them are in memory."""


class _Key:
    """A member's name, as a dictionary key that equals no other, so that members of one name stay apart."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def members(data: bytes, at_most: int = MAX_MEMBERS) -> list[Member] | None:
    """All members of the object that `data` is, in order. ``None`` if it is no object, or has more than `at_most`."""
    count = 0

    def key(_: type, name: str) -> _Key:
        nonlocal count
        count += 1
        if count > at_most:
            raise _TooManyError
        return _Key(name)

    try:
        values = msgspec.json.decode(data, type=dict[_Key, msgspec.Raw], dec_hook=key)
    except (*REFUSED, _TooManyError):
        return None
    found = []
    position = _end(_OPENING, data, 0)
    # msgspec gives each value, but not where it is: walk from one to the next.
    for name, value in values.items():
        start = _end(_BEFORE_VALUE, data, position)
        position = start + len(memoryview(value))
        found.append(Member(name.name, start, position))
    return found


def elements(
    data: bytes, start: int = 0, end: int | None = None, at_most: int = MAX_ELEMENTS
) -> list[tuple[int, int]] | None:
    """
    Where each element of the array ``data[start:end]`` starts and ends, in order. ``None`` if it is no array, or has
    more than `at_most` elements, or has a megabyte and elements that are no objects.
    """
    view = memoryview(data)[start:end]
    try:
        if len(view) > _COUNTED_FIRST:
            _count(view, at_most)
        values = _decode_items(view)
    except (*REFUSED, _TooManyError):
        return None
    if len(values) > at_most:
        return None
    found = []
    position = _end(_OPENING, data, start)
    for value in values:
        if data[position] != 0x7B:  # "{", the most frequent
            position = _end(_BETWEEN, data, position)
        after = position + len(memoryview(value))
        found.append((position, after))
        # Most often there is a comma, and then the next one.
        position = after + 1 if data[after] == 0x2C else after
    return found


_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


def _count(array: memoryview, at_most: int) -> None:
    """Raise on an array of more elements, or other elements, than :func:`elements` takes."""
    left = at_most

    class Counted(msgspec.Struct):
        def __post_init__(self) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise _TooManyError

    msgspec.json.decode(array, type=list[Counted])


def _end(pattern: re.Pattern[bytes], data: bytes, position: int) -> int:
    found = pattern.match(data, position)
    assert found is not None  # the data is known to be valid
    return found.end()
