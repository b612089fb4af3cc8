"""JSON as text: taken apart one level at a time, and put together again, with what is inside left as it was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw

REFUSED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
"""What msgspec raises on what it does not take."""

ABSENT = Raw(b"")
"""The default of a member that is kept as text."""

_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_items = msgspec.json.Decoder(list[Raw]).decode
_decode_string = msgspec.json.Decoder(str).decode
_decode_number = msgspec.json.Decoder(int | float).decode
_decode_raw = msgspec.json.Decoder(Raw).decode


class MalformedError(Exception):
    """Text that is no JSON, or not of the type that was asked for."""


def members(data: bytes) -> dict[str, bytes]:
    """
    An object's members as text; of several with one name, the last.

    Half of a surrogate pair in a string is let pass: servers that cut text by UTF-16 units send ``"\\ud83d"``, and
    ``"\\ude00"`` in the next event. Such a value is spelled anew, in ASCII.

    Raises :class:`MalformedError`.
    """
    try:
        return {name: bytes(value) for name, value in _decode_members(data).items()}
    except REFUSED:
        value = _with_surrogates(data)
    if not isinstance(value, dict):
        raise MalformedError("not a JSON object")
    return {name: _spell(each) for name, each in value.items()}


def items(data: bytes) -> list[bytes]:
    """An array's items as text; the rest as :func:`members`."""
    try:
        return [bytes(value) for value in _decode_items(data)]
    except REFUSED:
        value = _with_surrogates(data)
    if not isinstance(value, list):
        raise MalformedError("not a JSON array")
    return [_spell(each) for each in value]


def string(data: bytes) -> str:
    """What a string says; halves of surrogate pairs are kept. Raises :class:`MalformedError`."""
    try:
        return _decode_string(data)
    except REFUSED:
        value = _with_surrogates(data)
    if not isinstance(value, str):
        raise MalformedError("not a JSON string")
    return value


def string_or(data: bytes | None, default: str = "") -> str:
    """What a string says, `default` for anything else, a missing member included."""
    if data is None or not data.startswith(b'"'):
        return default
    try:
        return string(data)
    except MalformedError:
        return default


def whole_number(data: bytes | None) -> int | None:
    """A whole number (``3``, and ``3.0``), ``None`` for anything else, a missing member included."""
    if not data:
        return None
    try:
        value = _decode_number(data)
    except REFUSED:
        return None
    return int(value) if value == value // 1 else None


def is_valid(data: bytes) -> bool:
    """Whether `data` is one JSON value without lone surrogates."""
    try:
        _decode_raw(data)
    except REFUSED:
        return False
    return True


def is_object(data: bytes) -> bool:
    """Whether `data` is a JSON object without lone surrogates, blanks around it allowed."""
    return data.lstrip(b" \t\n\r")[:1] == b"{" and is_valid(data)


def quote(text: str) -> bytes:
    """A JSON string."""
    try:
        return msgspec.json.encode(text)
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(text).encode()


def number(value: int) -> bytes:
    """A JSON number."""
    return b"%d" % value


def obj(values: Mapping[str, bytes]) -> bytes:
    """A JSON object of these members, whose names are plain ASCII."""
    pieces = [piece for name, value in values.items() for piece in (b",", b'"%b":' % name.encode(), value)]
    return _enclose(b"{", pieces, b"}")


def array(values: Iterable[bytes]) -> bytes:
    """A JSON array."""
    return _enclose(b"[", [piece for value in values for piece in (b",", value)], b"]")


def concatenate(literals: Iterable[bytes], between: bytes = b"") -> bytes:
    """One JSON string of several; `between` is the inside of one, as it is escaped in JSON."""
    given = list(literals)
    if len(given) == 1:
        return given[0]
    return _enclose(b'"', [piece for each in given for piece in (between, memoryview(each)[1:-1])], b'"')


def _enclose(begin: bytes, pieces: Sequence[bytes | memoryview], end: bytes) -> bytes:
    """Pieces without the separator that they begin with. All is copied once: it may be a whole conversation."""
    return b"".join((begin, *pieces[1:], end))


def _with_surrogates(data: bytes) -> Any:
    try:
        return json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as e:
        raise MalformedError("not JSON") from e


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _spell(value: object) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode()
    except ValueError as e:  # 1e400, which is no float
        raise MalformedError("a number out of range") from e
