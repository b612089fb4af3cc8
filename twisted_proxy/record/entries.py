"""
What a journal consists of: frames, and the entries that are in them.

A frame is ``<IIB16s``: payload length, CRC-32 of what follows this number, `Kind`, exchange; then the payload. An
exchange is the 16 bytes of its id. The payload of `Opened`, `Closed` and of notes is MessagePack. That of bulk data is
``<I`` number of marks, so many ``<I`` lengths, so many ``<Q`` microseconds, then data. The lengths are of the pieces as
they came, in order, and add up to the data; data whose times nobody asks for has no marks.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, get_type_hints

import attrs
import msgspec

from .exchange import PIECE, Exchange, Role

Buffer = bytes | memoryview
Frame = tuple[Buffer, ...]
"""A frame in one piece or two, to be written one after the other."""


class Kind(enum.IntEnum):
    OPENED = 1
    NOTED = 2
    CLOSED = 3
    REQUEST = 16
    FORWARDED = 17
    RECEIVED = 18
    ANSWER = 19


KINDS: Final[Mapping[Role, Kind]] = {
    Role.REQUEST: Kind.REQUEST,
    Role.FORWARDED: Kind.FORWARDED,
    Role.RECEIVED: Kind.RECEIVED,
    Role.ANSWER: Kind.ANSWER,
}
"""The kind of frame that holds each body that is on a wire."""
ROLES: Final[Mapping[int, Role]] = {kind: role for role, kind in KINDS.items()}

HEADER: Final = struct.Struct("<IIB16s")
_PREFIX: Final = struct.Struct("<II")
_TAGS: Final = tuple(bytes((number,)) for number in range(256))
"""Kinds as they stand in frames, by number."""
_COUNT: Final = struct.Struct("<I")
_MARK: Final = 12
"""Bytes of one mark."""
MAX_MARKS: Final = 64 * 1024
COPIED: Final = 8 * 1024
"""Bytes of data up to which to copy them once more costs less than to handle them apart."""
MAX_PAYLOAD: Final = 2 * 1024 * 1024
"""No frame has more: a length above it is damage."""
assert _COUNT.size + MAX_MARKS * _MARK + PIECE <= MAX_PAYLOAD


class Opened(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    The first entry of an exchange: what its headers say. Fields as in `Exchange`.

    :ivar keep: ``metadata`` for those whose bodies are not to be kept.
    """

    received_at: int
    method: str
    path: str
    query: str | None = None
    client: str | None = None
    request_headers: tuple[tuple[str, str], ...] = ()
    credential: str | None = None
    keep: Literal["full", "metadata"] = "full"


class Closed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    The last entry of an exchange. Fields as in `Exchange`.

    :ivar incomplete: the values of the roles whose data is not all in the journal; then ``lost`` says why.
    """

    verdict: str
    status: int | None = None
    first_event_us: int | None = None
    last_byte_us: int | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    error_type: str | None = None
    error_message: str | None = None
    lost: str | None = None
    incomplete: tuple[str, ...] = ()


@attrs.frozen
class Noted:
    """What became known of an exchange: names and values of fields of `Exchange`. A later note is right."""

    fields: Mapping[str, Any]


Small = Opened | Noted | Closed

FIELDS: Final = frozenset(field.name for field in attrs.fields(Exchange))
"""What a note may be about."""

_Fields = msgspec.defstruct(
    "_Fields",
    [(name, hint | msgspec.UnsetType, msgspec.UNSET) for name, hint in get_type_hints(Exchange).items()],
)

_encoder = msgspec.msgpack.Encoder()
_decode_opened = msgspec.msgpack.Decoder(Opened).decode
_decode_closed = msgspec.msgpack.Decoder(Closed).decode
_decode_fields = msgspec.msgpack.Decoder(_Fields).decode


class BadEntry(ValueError):
    """A whole frame whose payload is not what its kind says: another version's, or a mistake of ours."""


def exchange_key(exchange_id: str) -> bytes:
    """
    The 16 bytes of ``req_`` and 32 hexadecimal digits.

    :raises ValueError: it is not that.
    """
    key = bytes.fromhex(exchange_id.removeprefix("req_"))
    if len(key) != 16:
        raise ValueError(f"{exchange_id!r} is not req_ and 32 hexadecimal digits")
    return key


def exchange_id(key: bytes) -> str:
    """The id that has this key."""
    return f"req_{key.hex()}"


def encode(entry: Small) -> bytes:
    """
    The payload of an entry. Halves of surrogate pairs become question marks: UTF-8 has none.

    :raises ValueError: a note is about something that is no field, or the payload would be longer than `MAX_PAYLOAD`.
    :raises TypeError: a value has no such form. :raises OverflowError: a number has not.
    """
    return encode_note(entry.fields) if isinstance(entry, Noted) else _encode(entry)


def encode_note(fields: Mapping[str, Any]) -> bytes:
    """The payload of a `Noted`, as :func:`encode` makes it."""
    if not FIELDS.issuperset(fields):
        raise ValueError(f"an exchange has no {', '.join(sorted(fields.keys() - FIELDS))}")
    return _encode(fields)


def _encode(value: Opened | Closed | Mapping[str, Any]) -> bytes:
    try:
        payload = _encoder.encode(value)
    except UnicodeEncodeError:
        payload = _encoder.encode(_mended(msgspec.to_builtins(value)))
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"an entry of {len(payload)} bytes is longer than {MAX_PAYLOAD}")
    return payload


def _mended(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {_mended(name): _mended(each) for name, each in value.items()}
        case list() | tuple():
            return [_mended(each) for each in value]
        case _:
            return value


def decode(kind: int, payload: Buffer) -> Small:
    """
    The entry that :func:`encode` made into ``payload``. Fields that this version does not know are left out.

    :raises BadEntry: there is none.
    """
    try:
        match kind:
            case Kind.OPENED:
                return _decode_opened(payload)
            case Kind.CLOSED:
                return _decode_closed(payload)
            case Kind.NOTED:
                fields = msgspec.structs.asdict(_decode_fields(payload))
                return Noted({name: value for name, value in fields.items() if value is not msgspec.UNSET})
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadEntry(f"the payload of {Kind(kind).name} cannot be read: {error}") from error
    raise BadEntry(f"{kind} is no kind of entry")


def frame(kind: Kind, key: bytes, payload: bytes) -> Frame:
    """A frame of an entry that is encoded."""
    checked = b"".join((_TAGS[kind], key, payload))
    return (_PREFIX.pack(len(payload), zlib.crc32(checked)) + checked,)


def bulk_frames(kind: Kind, key: bytes, pieces: Sequence[bytes], times: Sequence[int] | None) -> Iterator[Frame]:
    """
    Frames of at most `PIECE` bytes of data each. Of a large piece nothing is copied.

    :param times: microseconds, one for each piece; ``None`` for data without marks.
    """
    size = sum(map(len, pieces))
    if len(pieces) <= MAX_MARKS and size <= PIECE:
        if size <= COPIED:
            yield frame(kind, key, b"".join((_marks(pieces, times), *pieces)))
        else:
            yield _large_frame(kind, key, pieces, times)
        return
    group: list[Buffer] = []
    stamps: list[int] = []
    room = PIECE
    for index, piece in enumerate(pieces):
        rest: Buffer = piece
        while True:
            taken = rest if len(rest) <= room else memoryview(rest)[:room]
            group.append(taken)
            if times is not None:
                stamps.append(times[index])
            room -= len(taken)
            if room == 0 or len(group) == MAX_MARKS:
                yield _large_frame(kind, key, group, stamps)
                group, stamps, room = [], [], PIECE
            if len(taken) == len(rest):
                break
            rest = memoryview(rest)[len(taken) :]
    if group:
        yield _large_frame(kind, key, group, stamps)


def _marks(pieces: Sequence[Buffer], times: Sequence[int] | None) -> bytes:
    if not times:
        return _NO_MARKS
    count = len(times)
    try:
        return struct.pack(f"<I{count}I{count}Q", count, *map(len, pieces), *times)
    except struct.error:
        # A clock that was set back must not cost the data.
        return struct.pack(f"<I{count}I{count}Q", count, *map(len, pieces), *(max(each, 0) for each in times))


_NO_MARKS: Final = _COUNT.pack(0)


def _large_frame(kind: Kind, key: bytes, group: Sequence[Buffer], stamps: Sequence[int] | None) -> Frame:
    marks = _marks(group, stamps)
    data = group[0] if len(group) == 1 else b"".join(group)
    crc = zlib.crc32(data, zlib.crc32(b"".join((_TAGS[kind], key, marks))))
    return HEADER.pack(len(marks) + len(data), crc, kind, key) + marks, data


@attrs.frozen
class Head:
    """The header of a frame that is possible: its kind is known and its length is allowed."""

    length: int
    crc: int
    kind: Kind
    key: bytes

    @property
    def size(self) -> int:
        """Bytes of the whole frame."""
        return HEADER.size + self.length


def read_head(buffer: Buffer, offset: int = 0) -> Head | None:
    """The header at ``offset``, where `HEADER.size` bytes must be; ``None``: this is no header of a frame."""
    length, crc, kind, key = HEADER.unpack_from(buffer, offset)
    if length > MAX_PAYLOAD or kind not in _KINDS:
        return None
    if kind in ROLES and length < _COUNT.size:
        return None
    return Head(length, crc, Kind(kind), key)


_KINDS: Final = frozenset(map(int, Kind))


def is_intact(head: Head, *payload: Buffer) -> bool:
    """Whether this payload, in one piece or several, is the one that the frame was written with."""
    crc = zlib.crc32(head.key, zlib.crc32(_TAGS[head.kind]))
    for piece in payload:
        crc = zlib.crc32(piece, crc)
    return sum(map(len, payload)) == head.length and crc == head.crc


def marks_size(buffer: Buffer, offset: int = 0) -> int:
    """How many bytes of a bulk payload come before its data. More than it has: it is damaged."""
    (count,) = _COUNT.unpack_from(buffer, offset)
    size: int = _COUNT.size + count * _MARK
    return size


def read_marks(payload: Buffer) -> tuple[tuple[int, int], ...]:
    """Length and time of each piece that a whole bulk payload consists of."""
    (count,) = _COUNT.unpack_from(payload)
    numbers = struct.unpack_from(f"<{count}I{count}Q", payload, _COUNT.size)
    return tuple(zip(numbers[:count], numbers[count:], strict=True))
