"""The events of a recorded stream: what they are, where they stand, and when each was there."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator

import attrs
import msgspec

from ...record import coding
from ...record.exchange import StoredBody

_REFUSED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)

_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2,}")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_MOST_NAME = 64


@attrs.frozen(kw_only=True)
class Timed:
    """
    An event.

    :ivar us: microseconds since the request's headers were in, when its last byte was here; ``None`` where that is not
        known.
    :ivar detail: the type of the block or delta that it is about. :ivar index: of the block.
    :ivar offset: of its first byte. :ivar length: in bytes, without the blank line behind it.
    """

    us: int | None
    name: str
    detail: str | None
    index: int | None
    offset: int
    length: int


class _Typed(msgspec.Struct):
    type: str | None = None
    stop_reason: str | None = None


class _Data(msgspec.Struct):
    type: str | None = None
    index: int | None = None
    delta: _Typed | None = None
    content_block: _Typed | None = None
    object: str | None = None


_decode = msgspec.json.Decoder(_Data).decode


def read_events(body: StoredBody) -> list[Timed]:
    """All events of a body that is server-sent events, in order."""
    data = coding.decode(body.data, body.content_encoding).data
    # Times are of the bytes as they came.
    plain = len(data) == len(body.data)
    ends = [mark.end for mark in body.marks] if plain else []
    found = []
    for start, end, behind in _blocks(data):
        name, value = _read(data[start:end])
        if name is None and value is None:
            continue
        detail, index = None, None
        if value is not None:
            try:
                told = _decode(value)
            except _REFUSED:
                told = _Data()
            name = name or told.type or told.object or "message"
            inner = told.delta or told.content_block
            detail = None if inner is None else inner.type or inner.stop_reason
            index = told.index
        place = bisect_left(ends, behind)
        found.append(
            Timed(
                us=body.marks[min(place, len(ends) - 1)].us if ends else None,
                name=(name or "message")[:_MOST_NAME],
                detail=None if detail is None else detail[:_MOST_NAME],
                index=index,
                offset=start,
                length=end - start,
            )
        )
    return found


def _blocks(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Start, end, and end with the blank line, of what blank lines part."""
    start = 0
    for match in _END.finditer(data):
        if match.start() > start:
            yield start, match.start(), match.end()
        start = match.end()
    if start < len(data):
        yield start, len(data), len(data)


def _read(block: bytes) -> tuple[str | None, bytes | None]:
    """Name and data of an event; neither, where it is only a comment."""
    name: str | None = None
    values: list[bytes] = []
    for line in _LINE_END.split(block):
        field, _, value = line.partition(b":")
        if field == b"event":
            name = value.removeprefix(b" ").decode("utf-8", "replace")
        elif field == b"data":
            values.append(value.removeprefix(b" "))
    return name, b"\n".join(values) if values else None
