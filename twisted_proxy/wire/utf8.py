"""Whether bytes are UTF-8, without a string of four times their size."""

from __future__ import annotations

import codecs

_PIECE = 16 * 1024


def is_utf8(data: bytes) -> bool:
    """Whether `data` is UTF-8 (RFC 3629: no surrogates, no overlong forms). Takes no memory to speak of."""
    if data.isascii():
        return True
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(data)
    try:
        # In pieces: as one string, 32 MB with one emoji among them take 128 MB.
        for start in range(0, len(view), _PIECE):
            decoder.decode(view[start : start + _PIECE])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def replace_invalid(data: bytes) -> bytes:
    """`data` as a browser reads it: what is no UTF-8 becomes U+FFFD (WHATWG Encoding, "UTF-8 decode")."""
    return data if is_utf8(data) else data.decode("utf-8", "replace").encode()
