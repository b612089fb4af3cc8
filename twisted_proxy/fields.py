"""Fields of messages, as Twisted holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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


def fields_of(headers: Headers) -> Iterator[tuple[bytes, bytes]]:
    """Each field, name and value."""
    return ((name, value) for name, values in headers.getAllRawHeaders() for value in values)


def lines_of(headers: Headers) -> list[bytes]:
    """Each field as a line, with its CRLF."""
    return [b"%b: %b\r\n" % field for field in fields_of(headers)]


def remove_fields(headers: Headers, names: frozenset[bytes]) -> None:
    """Remove the fields whose lower-case names are given."""
    for name, _ in list(headers.getAllRawHeaders()):
        if name.lower() in names:
            headers.removeHeader(name)
