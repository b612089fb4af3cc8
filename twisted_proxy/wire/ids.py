"""Identifiers of requests."""

from __future__ import annotations


def uuid7(milliseconds: int, random: bytes) -> int:
    """
    A time-ordered UUID (RFC 9562 §5.7), as the number that it is.

    :param milliseconds: since the Unix epoch.
    :param random: ten random bytes.
    """
    number = (milliseconds & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(random[:10], "big")
    number = number & ~(0xF << 76) | 0x7 << 76
    return number & ~(0x3 << 62) | 0x2 << 62


def request_id(milliseconds: int, random: bytes) -> str:
    """An identifier in the shape of the API's own: ``req_`` and a time-ordered UUID in hexadecimal digits."""
    return f"req_{uuid7(milliseconds, random):032x}"
