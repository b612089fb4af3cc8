"""
The head of an HTTP/1.1 request, as a server reads it (RFC 9112 §3, §5, §6).

As strict as `http1` is with answers: whatever two readers could take for different messages is refused.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .http1 import ProtocolError, parse_fields

MAX_FIELDS = 500

_HOST = re.compile(
    rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})+(?::[0-9]{0,5})?|\[[0-9A-Za-z:.\-_~%]+\](?::[0-9]{0,5})?"
)
"""RFC 3986 §3.2: a name, an IPv4 address, or an IP literal in brackets; with a port, perhaps."""

_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\x7e\x80-\xff]+) (HTTP/1\.[01])")


class RequestHead(NamedTuple):
    """
    Request line and fields, as they came.

    :ivar length: of the body, in bytes; 0 where there is none; ``None`` where it comes in chunks.
    """

    method: bytes
    target: bytes
    version: bytes
    fields: list[tuple[bytes, bytes]]
    length: int | None


def parse(block: bytes) -> RequestHead:
    """
    Read a head without the blank line that ends it.

    :raises ProtocolError: a line is malformed, or how the body ends cannot be known for sure. The text is meant for
        the client; it quotes nothing.
    """
    end = block.find(b"\r\n")
    request_line = _REQUEST_LINE.fullmatch(block, 0, len(block) if end < 0 else end)
    if request_line is None:
        raise ProtocolError("the request line is malformed")
    method, target, version = request_line.groups()
    fields = parse_fields(block, end) if end >= 0 else []
    if len(fields) > MAX_FIELDS:
        raise ProtocolError(f"there are more than {MAX_FIELDS} header lines")
    length: int | None = 0
    framed = False
    hosts = 0
    for name, value in fields:
        # Two names have more letters than most.
        if len(name) < 14:
            if len(name) == 4 and name.lower() == b"host":
                hosts += 1
                if _HOST.fullmatch(value) is None:
                    raise ProtocolError("Host is not a host with, perhaps, a port")
            continue
        lowered = name.lower()
        if lowered not in (b"content-length", b"transfer-encoding"):
            continue
        if framed:
            raise ProtocolError("Content-Length and Transfer-Encoding stand there more than once, or together")
        framed = True
        if lowered == b"content-length":
            if not value.isdigit() or len(value) > 18:
                raise ProtocolError("Content-Length is not a number")
            length = int(value)
        elif value.lower() != b"chunked" or version != b"HTTP/1.1":
            raise ProtocolError("Transfer-Encoding is something else than 'chunked', or not of HTTP/1.1")
        else:
            length = None
    if hosts > 1 or (not hosts and version == b"HTTP/1.1"):
        # RFC 9112 §3.2
        raise ProtocolError("Host is missing, or stands there more than once")
    return RequestHead(method, target, version, fields, length)
