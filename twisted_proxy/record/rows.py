"""Exchanges as rows: numbers, columns, and values that every database takes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import msgspec

from .exchange import Exchange, Link, Mark, Turn

COLUMNS = tuple(field.name for field in attrs.fields(Exchange))
"""The fields of an exchange; in a row they stand in this order."""

TURN_COLUMNS = tuple(field.name for field in attrs.fields(Turn))

ROW_WEIGHT = 1400
"""Bytes that a row takes beside its text: numbers, and its entries in indexes. Measured, for SQLite."""

_BIGGEST = 2**63 - 1
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_MOST_MILLISECONDS = 2**42 - 1
_RANDOM_BITS = 21
_MOST_NUMBER = _MOST_MILLISECONDS << _RANDOM_BITS | (1 << _RANDOM_BITS) - 1
_decode_fields = msgspec.json.Decoder(tuple[tuple[str, str], ...]).decode
_ID = re.compile("req_[0-9a-f]{32}")

S = TypeVar("S", str, str | None)
T = TypeVar("T")


def storable(text: S) -> S:
    """Text that every database takes: what none can hold (NUL, lone surrogates) is U+FFFD."""
    return text if text is None or (text.isascii() and "\0" not in text) else _UNSTORABLE.sub("\ufffd", text)


def whole(number: int) -> int:
    """A number that every database takes: 64 bits."""
    return max(-_BIGGEST, min(_BIGGEST, number))


def is_id(exchange_id: str) -> bool:
    return _ID.fullmatch(exchange_id) is not None


def first_number(microseconds: int) -> int:
    """The lowest number of an exchange received at that time since the Unix epoch, or in the same millisecond."""
    return max(0, min(_MOST_MILLISECONDS, microseconds // 1000)) << _RANDOM_BITS


def number_of(exchange: Exchange) -> int:
    """Where an exchange is among all: by its time; among those of one millisecond by its id."""
    return first_number(exchange.received_at) | _tail(exchange.id)


def number_of_id(exchange_id: str) -> int:
    """Where an exchange would be that is not there, by the time that its id has."""
    return first_number(int(exchange_id[4:16], 16) * 1000) | _tail(exchange_id)


def next_number(number: int) -> int:
    """The number for an exchange whose own is another's: the next, and behind the last the one before it."""
    return number + 1 if number < _MOST_NUMBER else number - 1


def _tail(exchange_id: str) -> int:
    # The highest of the bits behind time and version: they are random, or a finer part of the time.
    tail = int(exchange_id[4:], 16)
    return (tail >> 64 & 0xFFF) << 9 | tail >> 53 & 0x1FF


def to_row(exchange: Exchange) -> tuple[list[object], int]:
    """
    The values of `COLUMNS`, and how many bytes they are reckoned to take.

    :raises ValueError: its id is not one.
    """
    if not is_id(exchange.id):
        raise ValueError(f"{exchange.id!r} is not req_ and 32 hexadecimal digits")
    row = [encode(getattr(exchange, name)) for name, encode in _ENCODERS]
    weight = ROW_WEIGHT + sum(len(value) for value in row if isinstance(value, str | bytes))
    return row, weight


def from_row(row: Sequence[Any]) -> Exchange:
    """The exchange whose `COLUMNS` these are."""
    values = list(row)
    for index, decode in _DECODERS:
        values[index] = decode(values[index])
    return Exchange(**dict(zip(COLUMNS, values, strict=True)))


def _whole_or_none(value: int | None) -> int | None:
    return None if value is None else whole(value)


def _fields_to_json(value: Sequence[tuple[str, str]]) -> str | None:
    return _to_json(value) if value else None


def _map_to_json(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else _to_json(dict(value))


def _to_json(value: object) -> str | None:
    # ASCII: what no database can hold as text stands there as \u0000 and \ud800.
    try:
        return json.dumps(value, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return None


def _fields_from_json(value: str | None) -> tuple[tuple[str, str], ...]:
    if not value:
        return ()
    try:
        return _decode_fields(value)
    except msgspec.DecodeError:  # a lone surrogate
        return tuple((name, text) for name, text in json.loads(value))


def _map_from_json(value: str | None) -> Any:
    return None if value is None else json.loads(value)


def _same(value: T) -> T:
    return value


_KINDS: dict[str, tuple[Callable[[Any], object], Callable[[Any], object]]] = {
    "rate_limits": (_map_to_json, _map_from_json),
    "usage": (_map_to_json, _map_from_json),
    "request_headers": (_fields_to_json, _fields_from_json),
    "response_headers": (_fields_to_json, _fields_from_json),
    "link": (lambda link: link and link.value, lambda value: value and Link(value)),
    "stream": (_same, lambda value: None if value is None else bool(value)),
    "demoted": (_same, bool),
    "cost_is_partial": (_same, bool),
    "chain": (_same, _same),
}
"""How a field becomes a column, and back, where it is neither text nor a number."""

_ENCODERS = tuple(
    (
        field.name,
        _KINDS[field.name][0] if field.name in _KINDS else storable if "str" in str(field.type) else _whole_or_none,
    )
    for field in attrs.fields(Exchange)
)
_DECODERS = tuple(
    (index, _KINDS[name][1]) for index, name in enumerate(COLUMNS) if name in _KINDS and _KINDS[name][1] is not _same
)


def to_turn(row: Sequence[Any]) -> Turn:
    """The turn whose `TURN_COLUMNS` these are."""
    turn = dict(zip(TURN_COLUMNS, row, strict=True))
    return Turn(**{**turn, "conversation": turn["conversation"] or turn["id"]})


def pack_marks(marks: Sequence[Mark]) -> bytes:
    """Marks as bytes: by how much each exceeds the one before it, as base-128 numbers."""
    packed = bytearray()
    end = us = 0
    for mark in marks:
        for step in (mark.end - end, mark.us - us):
            # Times may go back, where a clock was set: the lowest bit is the sign.
            value = step << 1 if step >= 0 else (-step << 1) - 1
            while value > 0x7F:
                packed.append(value & 0x7F | 0x80)
                value >>= 7
            packed.append(value)
        end, us = mark.end, mark.us
    return bytes(packed)


def unpack_marks(packed: bytes) -> tuple[Mark, ...]:
    """What :func:`pack_marks` made bytes of."""
    steps: list[int] = []
    value = shift = 0
    for byte in packed:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            steps.append(-(value + 1 >> 1) if value & 1 else value >> 1)
            value = shift = 0
    marks = []
    end = us = 0
    for index in range(0, len(steps), 2):
        end += steps[index]
        us += steps[index + 1]
        marks.append(Mark(end=end, us=us))
    return tuple(marks)
