"""Content codings undone (RFC 9110 §8.4.1), within bounds, of bytes that nobody vouches for."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import attrs
import brotli  # type: ignore[import-untyped]
import zstandard

DEFAULT_LIMIT = 64 * 1024 * 1024
"""Bytes that a body may grow to."""
MAX_CODINGS = 4
"""How often a body may have been encoded."""

_ZSTD_WINDOW = 8 * 1024 * 1024
"""The largest window that an encoder may use (RFC 9659 §3)."""
_STEP = 64 * 1024


@attrs.frozen(kw_only=True)
class Decoded:
    """
    A body without its codings.

    :ivar data: all of it, or as much as came out before the problem.
    :ivar problem: why that is not all, in words; ``None`` if it is.
    """

    data: bytes
    problem: str | None = None


def decode(data: bytes, content_encoding: str | None, *, limit: int = DEFAULT_LIMIT) -> Decoded:
    """
    Undo what a ``Content-Encoding`` names: ``gzip``, ``x-gzip``, ``deflate``, ``br``, ``zstd``, ``identity``, also
    several in a row. Never raises.

    ``deflate`` is read as RFC 9110 has it, in the zlib format, and as some send it, without.

    :param limit: bytes that it, and each step on the way, may grow to.
    """
    codings = [each for part in (content_encoding or "").split(",") if (each := part.strip().lower())]
    codings = [each for each in codings if each != "identity"]
    if len(codings) > MAX_CODINGS:
        return Decoded(data=b"", problem=f"it is encoded {len(codings)} times; {MAX_CODINGS} are undone")
    problem = None
    if not data:
        # HEAD and 304 tell of a body that is not there.
        return Decoded(data=data)
    for coding in reversed(codings):
        decoder = _DECODERS.get(coding)
        if decoder is None:
            return Decoded(data=b"", problem=f"its content coding {coding[:32]!a} is not known here")
        try:
            # A body that was cut is cut at every step.
            data, whole = decoder(data, limit)
        except _BrokenError as e:
            data, whole = e.data, True
            problem = f"it is not {coding}, from byte {len(e.data)} of what is decoded on"
        if len(data) > limit:
            return Decoded(data=data[:limit], problem=f"decoded it is larger than {limit} bytes")
        if not whole:
            problem = problem or f"it ends in the middle of its {coding} data"
    return Decoded(data=data, problem=problem)


class _BrokenError(Exception):
    """What came is not in the coding; :ivar data: what could be decoded before that."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data


def _gzip(data: bytes, limit: int) -> tuple[bytes, bool]:
    # Several members in a row are one body (RFC 1952 §2.2).
    parts: list[bytes] = []
    size = 0
    while True:
        part, rest, whole = _inflate(data, limit - size, zlib.MAX_WBITS | 16, parts)
        parts.append(part)
        size += len(part)
        # Zeroes behind the last member are padding.
        if size > limit or not whole or not rest.strip(b"\0"):
            return b"".join(parts), whole
        data = rest


def _deflate(data: bytes, limit: int) -> tuple[bytes, bool]:
    try:
        part, _, whole = _inflate(data, limit, zlib.MAX_WBITS, [])
    except _BrokenError as e:
        if e.data:
            raise
        part, _, whole = _inflate(data, limit, -zlib.MAX_WBITS, [])
    return part, whole


def _inflate(data: bytes, limit: int, wbits: int, before: list[bytes]) -> tuple[bytes, bytes, bool]:
    """At most one byte more than the limit; what follows the stream's end; and whether that end was there."""
    inflater = zlib.decompressobj(wbits)
    parts: list[bytes] = []
    size = 0
    while size <= limit and not inflater.eof:
        try:
            # In steps: what came before an error is lost with the call that finds it.
            part = inflater.decompress(data, min(_STEP, limit + 1 - size))
        except zlib.error:
            raise _BrokenError(b"".join(before + parts)) from None
        data = inflater.unconsumed_tail
        parts.append(part)
        size += len(part)
        if not part and not data:
            break
    return b"".join(parts), inflater.unused_data, inflater.eof or size > limit


def _brotli(data: bytes, limit: int) -> tuple[bytes, bool]:
    decompressor = brotli.Decompressor()
    parts: list[bytes] = []
    size = 0
    try:
        while size <= limit and not decompressor.is_finished():
            part = decompressor.process(data, output_buffer_limit=min(_STEP, limit + 1 - size))
            parts.append(part)
            size += len(part)
            if not part and decompressor.can_accept_more_data():
                break
            data = b""
    except brotli.error:
        raise _BrokenError(b"".join(parts)) from None
    return b"".join(parts), decompressor.is_finished() or size > limit


def _zstd(data: bytes, limit: int) -> tuple[bytes, bool]:
    # Several frames in a row are one body (RFC 8878 §3.1).
    parts: list[bytes] = []
    size = 0
    while True:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj(write_size=_STEP)
        consumed = 0
        try:
            while size <= limit and not decompressor.eof and consumed < len(data):
                # It takes all that it is given, so it is given little: 32 KB may hold a gigabyte, these 16 MB.
                part = decompressor.decompress(data[consumed : consumed + _ZSTD_STEP])
                consumed += _ZSTD_STEP
                parts.append(part)
                size += len(part)
        except zstandard.ZstdError:
            raise _BrokenError(b"".join(parts)) from None
        rest = decompressor.unused_data + data[consumed:]
        if size > limit or not decompressor.eof or not rest:
            return b"".join(parts), decompressor.eof or size > limit
        data = rest


_ZSTD_STEP = 512

_DECODERS: dict[str, Callable[[bytes, int], tuple[bytes, bool]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
