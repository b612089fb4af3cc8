"""Fields of messages, as Twisted holds them."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.web.http_headers import Headers, _nameEncoder


def announces_body(headers: Headers) -> bool:
    """Whether a request has a body, an empty one included (RFC 9112 §6)."""
    return headers.hasHeader(b"Content-Length") or headers.hasHeader(b"Transfer-Encoding")


def headers_of(fields: Iterable[tuple[bytes, bytes]]) -> Headers:
    """
    `Headers` of fields that a parser of ours has let pass.

    ``addRawHeader`` would check each value for line ends once more, which is most of its cost.
    """
    headers = Headers()
    held = headers._rawHeaders
    encode = _nameEncoder.encode
    for name, value in fields:
        held.setdefault(encode(name), []).append(value)
    return headers
