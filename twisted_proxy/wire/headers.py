"""Which fields cross the proxy, in each direction, which stop here, and which may be recorded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

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


MAX_RECORDED_VALUE = 4096
"""Characters that are recorded of a field's value."""
MAX_RECORDED_NAME = 128
MAX_RECORDED_FIELDS = 128

_RATE_LIMIT = "anthropic-ratelimit-"

# What is not listed is not recorded, and no name is listed under which a credential is sent.
_RECORDED_OF_REQUESTS = frozenset(
    {
        "accept",
        "accept-encoding",
        "anthropic-beta",
        "anthropic-dangerous-direct-browser-access",
        "anthropic-version",
        "content-encoding",
        "content-length",
        "content-type",
        # Ties the attempts of one call together; made up for that by the SDK.
        "idempotency-key",
        "traceparent",
        "transfer-encoding",
        "user-agent",
        "x-app",
        "x-client-request-id",
    }
)
_RECORDED_PREFIXES_OF_REQUESTS = ("x-claude-1p-", "x-claude-code-", "x-stainless-")

_RECORDED_OF_ANSWERS = frozenset(
    {
        "anthropic-organization-id",
        "cf-ray",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "request-id",
        "retry-after",
        "retry-after-ms",
        "server",
        "server-timing",
        "transfer-encoding",
        "x-request-id",
        "x-should-retry",
    }
)
_RECORDED_PREFIXES_OF_ANSWERS = (
    "anthropic-fast-",
    "anthropic-priority-",
    _RATE_LIMIT,
    "openai-",
    "x-ratelimit-",
)

_NOT_PRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# In the shape of an API key or of an OAuth token, wherever somebody put it.
_KEY = re.compile(r"(?<![a-z0-9])sk-[a-z0-9_-]{16,}|\bbearer\s")


def recorded_request(fields: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    """
    The fields of a request that may be recorded: names in lower case, values of at most 4096 printable characters.

    Only what is listed here; never ``Authorization``, ``X-Api-Key`` or ``Cookie``, and no value that holds something
    in the shape of an API key.
    """
    return _recorded(fields, _recorded_name_of_request)


def recorded_response(fields: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    """The same of an answer; never ``Set-Cookie``."""
    return _recorded(fields, _recorded_name_of_answer)


# The same few names come with every request.
@lru_cache(maxsize=512)
def _recorded_name_of_request(raw: bytes) -> str | None:
    name = raw.decode("latin-1").lower()
    listed = name in _RECORDED_OF_REQUESTS or name.startswith(_RECORDED_PREFIXES_OF_REQUESTS)
    return name[:MAX_RECORDED_NAME] if listed else None


@lru_cache(maxsize=512)
def _recorded_name_of_answer(raw: bytes) -> str | None:
    name = raw.decode("latin-1").lower()
    listed = name in _RECORDED_OF_ANSWERS or name.startswith(_RECORDED_PREFIXES_OF_ANSWERS)
    return name[:MAX_RECORDED_NAME] if listed else None


def _recorded(
    fields: Iterable[tuple[bytes, bytes]], recorded_name: Callable[[bytes], str | None]
) -> tuple[tuple[str, str], ...]:
    kept = [
        (name, value.decode("latin-1")) for raw_name, value in fields if (name := recorded_name(raw_name)) is not None
    ]
    # This is on every request's way, and hardly ever is there more to do than to look at all of them at once.
    together = "|".join([value for _, value in kept])
    if len(together) > MAX_RECORDED_VALUE or not together.isprintable() or may_hold_key(together):
        kept = [(name, _printable(value[:MAX_RECORDED_VALUE])) for name, value in kept if not may_hold_key(value)]
    return tuple(kept[:MAX_RECORDED_FIELDS])


def _printable(value: str) -> str:
    return value if value.isprintable() else _NOT_PRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value)


def may_hold_key(value: str) -> bool:
    """Whether something in a value has the shape of an API key or of a bearer token."""
    folded = value.lower()
    return ("sk-" in folded or "bearer" in folded) and _KEY.search(folded) is not None


def rate_limits(recorded: Iterable[tuple[str, str]]) -> dict[str, str] | None:
    """The ``anthropic-ratelimit-*`` fields of what :func:`recorded_response` gave; ``None`` if there are none."""
    return {name: value for name, value in recorded if name.startswith(_RATE_LIMIT)} or None


def credential_of(fields: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """
    The credential of a request, only to be hashed: ``X-Api-Key``, else the token of ``Authorization``.

    The same key gives the same bytes in either field.
    """
    token = None
    for name, value in fields:
        match name.lower():
            case b"x-api-key" if value.strip():
                return value.strip()
            case b"authorization" if token is None:
                scheme, _, rest = value.strip().partition(b" ")
                token = rest.strip() or scheme or None
    return token
