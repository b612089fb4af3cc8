"""The configuration as a value: what the rest of the program reads."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import attrs

from twisted_proxy.config import values
from twisted_proxy.config.values import Kind

T = TypeVar("T")

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 3001


def _read(kind: Kind[Any], value: object) -> Any:
    if not kind.many:
        return kind.parse(value)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError("is not a list")
    items = tuple(kind.parse(item) for item in value)
    if not items:
        raise ValueError("is empty")
    return items


def _field(kind: Kind[Any], default: T) -> T:
    # For a type checker this is the default, as with attrs.field itself: `x: float = _field(...)` is a float.
    def check(value: object, _: object, field: attrs.Attribute[Any]) -> Any:
        try:
            return _read(kind, value)
        except ValueError as error:
            # The value is not repeated: it may be a secret, or hold one.
            raise ValueError(f"{field.name}: the value {kind.explain(str(error))}") from None

    converter = attrs.Converter(check, takes_self=True, takes_field=True)
    made: T = attrs.field(default=default, converter=converter)
    return made


@attrs.frozen(kw_only=True)
class ProviderConfig:
    """One upstream. Times are in seconds.

    A field takes what its setting takes: ``idle_timeout="10m"`` works too. Anything else is a `ValueError`.
    """

    base_url: str = _field(values.BASE_URL, "https://api.anthropic.com")
    """``http`` or ``https``; its path, kept without trailing slash, is put before each request's path."""

    version: str = _field(values.VERSION, "2023-06-01")
    """``anthropic-version`` of requests whose client sent none."""

    response_header_timeout: float = _field(values.SECONDS, 300.0)
    """From the last byte of the request to the response's headers. 0: no limit."""

    max_retries: int = _field(values.RETRIES, 3)
    """How often connecting is tried again, as long as nothing of the request has been sent."""

    idle_timeout: float = _field(values.SECONDS, 600.0)
    """Silence in the middle of a body, while the client reads. 0: no limit."""

    demote_nonstreaming: bool = _field(values.SWITCH, False)
    """Send a non-streaming ``POST /v1/messages`` upstream as a stream, and fold that into one message."""


@attrs.frozen(kw_only=True)
class Config:
    """All of the configuration. ``Config()`` holds the defaults. Times are in seconds, sizes in bytes.

    A field takes what its setting takes: ``read_timeout="10m"`` works too. Anything else is a `ValueError`.
    """

    listen: tuple[str, ...] = _field(values.ENDPOINT, (values.tcp_endpoint(DEFAULT_HOST, DEFAULT_PORT),))
    """Twisted endpoint strings."""

    read_timeout: float = _field(values.SECONDS, 600.0)
    """A whole request, from its first byte to its last. 0: no limit."""

    write_timeout: float = _field(values.SECONDS, 600.0)
    """No progress towards a client that has something to receive. 0: no limit."""

    idle_timeout: float = _field(values.SECONDS, 600.0)
    """A kept-alive connection without a request. 0: no limit."""

    max_body_bytes: int = _field(values.SIZE, 512 * 2**20)
    """Of a request."""

    max_message_bytes: int = _field(values.SIZE, 32 * 2**20)
    """Of a request to ``/v1/messages``. ``MAX_BODY_BYTES``, where it is set, sets this too."""

    max_response_bytes: int = _field(values.SIZE, 64 * 2**20)
    """Of an answer that is folded into one message."""

    demote_heartbeat: float = _field(values.SECONDS, 0.0)
    """While an answer is folded, a blank goes to the client each so many seconds. 0: none."""

    drain_timeout: float = _field(values.SECONDS, 1920.0)
    """The longest that a drain may take."""

    lame_duck: float = _field(values.SECONDS, 0.0)
    """The shortest time in which a draining proxy still listens and answers ``/health`` with 503."""

    log_format: str = _field(values.choice("text", "json"), "text")

    anthropic: ProviderConfig = attrs.field(
        factory=ProviderConfig, validator=attrs.validators.instance_of(ProviderConfig)
    )

    def __attrs_post_init__(self) -> None:
        for rule in RULES:
            if rule.broken(*(getattr(self, name) for name in rule.fields)):
                raise ValueError(rule.text)


@attrs.frozen(kw_only=True)
class Rule:
    """Something that two fields of a `Config` must observe together."""

    fields: tuple[str, str]
    broken: Callable[[Any, Any], bool]
    """Given the values of the two fields."""
    text: str


RULES = (
    Rule(
        fields=("lame_duck", "drain_timeout"),
        broken=operator.gt,
        text="the lame-duck time is longer than the drain may take",
    ),
)
