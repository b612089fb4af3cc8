"""
Which fields cross the proxy, in each direction.

A field set is what Twisted's ``Headers.getAllRawHeaders()`` gives: names with the list of their values,
repeated fields kept apart and in order. Names may come in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Fields = Iterable[tuple[bytes, Sequence[bytes]]]

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

_REQUEST_ONLY = HOP_BY_HOP | {
    # Ours to write: the upstream's name, the length of what we send.
    b"host",
    b"content-length",
    # Answers must come as bytes that every client and the record can read; replaced by `identity`.
    b"accept-encoding",
    # 100-continue was answered here, with the body read here (RFC 9110 §10.1.1).
    b"expect",
}

IDENTITY = (b"Accept-Encoding", (b"identity",))


def connection_options(values: Iterable[bytes]) -> frozenset[bytes]:
    """The options of all ``Connection`` fields, in lower case (RFC 9110 §7.6.1)."""
    return frozenset(option for value in values for part in value.split(b",") if (option := part.strip(b" \t").lower()))


def _crossing(fields: Fields, dropped: frozenset[bytes]) -> list[tuple[bytes, Sequence[bytes]]]:
    fields = list(fields)
    for name, values in fields:
        # Read before `Connection` itself is dropped.
        if name.lower() == b"connection":
            dropped = dropped | connection_options(values)
    return [(name, values) for name, values in fields if name.lower() not in dropped]


def to_upstream(fields: Fields, *, version: str | None = None) -> list[tuple[bytes, Sequence[bytes]]]:
    """
    The fields of a request as they go upstream.

    All but the hop-by-hop ones, ``Host``, ``Content-Length`` and ``Expect``; with ``Accept-Encoding: identity``.

    :param version: the ``anthropic-version`` to add where the client sent none.
    """
    crossing = _crossing(fields, _REQUEST_ONLY)
    crossing.append(IDENTITY)
    if version is not None and not any(name.lower() == b"anthropic-version" for name, _ in crossing):
        crossing.append((b"Anthropic-Version", (version.encode("ascii"),)))
    return crossing


def to_downstream(fields: Fields) -> list[tuple[bytes, Sequence[bytes]]]:
    """The fields of an answer as they go to the client: all but the hop-by-hop ones."""
    return _crossing(fields, HOP_BY_HOP)


def is_event_stream(content_type: bytes | None) -> bool:
    """Whether a ``Content-Type`` names server-sent events."""
    return content_type is not None and content_type.partition(b";")[0].strip().lower() == b"text/event-stream"
