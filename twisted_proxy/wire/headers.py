"""Which fields cross the proxy, in each direction, and which stop here."""

from __future__ import annotations

from collections.abc import Iterable

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that concern one connection (RFC 9110 §7.6.1), and those that name the trailers, which stop here."""

_NOT_UPSTREAM = HOP_BY_HOP | {
    # Ours to write: the upstream's name, the length of what we send.
    b"host",
    b"content-length",
    # Answers must come as bytes that every client and the record can read; replaced by `identity`.
    b"accept-encoding",
    # 100-continue was answered here, with the body read here (RFC 9110 §10.1.1).
    b"expect",
}


def connection_options(values: Iterable[bytes]) -> frozenset[bytes]:
    """The options of all ``Connection`` fields, in lower case (RFC 9110 §7.6.1)."""
    return frozenset(option for value in values for part in value.split(b",") if (option := part.strip(b" \t").lower()))


def not_upstream(connection: Iterable[bytes]) -> frozenset[bytes]:
    """
    The fields of a request that do not go upstream, in lower case.

    :param connection: the values of its ``Connection`` fields.
    """
    return _NOT_UPSTREAM | connection_options(connection) if connection else _NOT_UPSTREAM


def not_downstream(connection: Iterable[bytes]) -> frozenset[bytes]:
    """
    The fields of an answer that do not go to the client, in lower case.

    :param connection: the values of its ``Connection`` fields.
    """
    return HOP_BY_HOP | connection_options(connection) if connection else HOP_BY_HOP


def is_event_stream(content_type: bytes | None) -> bool:
    """Whether a ``Content-Type`` names server-sent events."""
    return content_type is not None and content_type.partition(b";")[0].strip().lower() == b"text/event-stream"
