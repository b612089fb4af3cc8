"""What a handler of the API is given, and what it gives back."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import attrs
from twisted.web.http import Request

from ...wire import errors
from ..answers import to_json

T = TypeVar("T")

MOST_IN_A_LIST = 900 * 1024
"""Bytes of JSON that a list's items may take. What is around them is small."""

MOST_ITEMS = 500
"""Items of a page, whatever is asked for."""

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

_NUMBER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?([Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
_ID = re.compile(r"req_[0-9a-f]{32}", re.ASCII)


class Refusal(Exception):
    """
    An answer that is an error.

    :ivar message: for whoever asked: what is wrong, and what to do.
    :ivar fields: of the answer's head.
    """

    def __init__(self, status: int, message: str, fields: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.fields = fields or {}

    @property
    def error_type(self) -> str:
        return errors.type_of_status(self.status)


@attrs.frozen(kw_only=True)
class Reply:
    """An answer that is in memory."""

    body: bytes = b""
    status: int = 200
    content_type: str | None = "application/json"
    fields: Mapping[str, str] = attrs.field(factory=dict)


class Streamed(Protocol):
    """An answer that comes piece by piece."""

    async def send(self, request: Request) -> None:
        """Set the head, write, finish. Cancelled when the client has left."""


Answer = Reply | Streamed


@attrs.frozen(kw_only=True)
class Viewer:
    """
    Who asks, having been let in.

    :ivar login: as `Viewer` of the OpenAPI document has it.
    :ivar csrf: what must stand in ``X-CSRF-Token`` to change something; ``None``: nothing has to.
    :ivar session: of a cookie.
    """

    login: str
    csrf: str | None
    session: str | None = None


@attrs.frozen(kw_only=True)
class Call:
    """One request of the API."""

    request: Request
    viewer: Viewer

    def text(self, name: str, *, most: int) -> str | None:
        """A parameter of the query, of at most so many characters; ``None`` where it is not there, or empty."""
        values = (self.request.args or {}).get(name.encode("ascii"))
        if not values or not values[0]:
            return None
        try:
            text: str = values[0].decode("utf-8")
        except UnicodeDecodeError:
            raise Refusal(400, f"{name}: the parameter is not UTF-8.") from None
        if len(text) > most:
            raise Refusal(400, f"{name}: the parameter is longer than {most} characters.")
        return text

    def integer(self, name: str, *, least: int, most: int) -> int | None:
        text = self.text(name, most=64)
        if text is None:
            if name.encode("ascii") in (self.request.args or {}):
                raise Refusal(400, f"{name}: the parameter is empty; it takes a whole number.")
            return None
        number = int(text) if _NUMBER.fullmatch(text) else None
        if number is None or not least <= number <= most:
            raise Refusal(400, f"{name}: the parameter takes a whole number from {least} to {most}.")
        return number

    def choice(self, name: str, words: Iterable[str]) -> str | None:
        text = self.text(name, most=64)
        known = tuple(words)
        if text is not None and text not in known:
            raise Refusal(400, f"{name}: the parameter takes one of {', '.join(known)}.")
        return text

    def truth(self, name: str) -> bool | None:
        text = self.choice(name, ("true", "false"))
        return None if text is None else text == "true"

    def time(self, name: str) -> int | None:
        """A time, as microseconds since the Unix epoch."""
        text = self.text(name, most=64)
        if text is None:
            return None
        try:
            return parse_time(text)
        except ValueError:
            raise Refusal(
                400, f"{name}: the parameter takes a time such as 2026-11-23T06:53:12Z (RFC 3339, with its zone)."
            ) from None

    def cursor(self) -> str | None:
        return self.text("cursor", most=256)

    def limit(self, default: int = 10, most: int = MOST_ITEMS) -> int:
        """How many items a page has at most; more than ``most`` is as much as ``most``."""
        return min(self.integer("limit", least=1, most=10**9) or default, most)

    def json(self) -> dict[str, Any]:
        """The body, a JSON object."""
        kind = self.request.requestHeaders.getRawHeaders(b"Content-Type", [b""])[0].partition(b";")[0].strip().lower()
        if kind != b"application/json":
            # A form, which any page can send anywhere, is none.
            raise Refusal(400, "The body must be JSON, with Content-Type: application/json.")
        assert self.request.content is not None
        try:
            value = json.loads(self.request.content.read().decode("utf-8"))
        except (ValueError, RecursionError):
            raise Refusal(400, "The body is not JSON.") from None
        if not isinstance(value, dict):
            raise Refusal(400, "The body must be a JSON object.")
        return value


Handler = Callable[..., Awaitable[Answer]]


def answer_json(value: object, status: int = 200, **fields: str) -> Reply:
    return Reply(body=to_json(value), status=status, fields={k.replace("_", "-"): v for k, v in fields.items()})


def fit(items: Sequence[T], shape: Callable[[T], object], *, most: int | None = None) -> tuple[list[Any], bool]:
    """
    As many items, in their shape, as a list may hold; at most ``most``, at least one. And whether some are left out.
    """
    taken: list[Any] = []
    room = MOST_IN_A_LIST
    for item in items[:most]:
        value = shape(item)
        room -= len(to_json(value)) + 1
        if taken and room < 0:
            break
        taken.append(value)
    return taken, len(taken) < len(items)


def valid_id(exchange_id: str) -> str:
    """
    :raises Refusal: it is none.
    """
    if _ID.fullmatch(exchange_id) is None:
        raise Refusal(400, "The id of a request is req_ and 32 hexadecimal digits.")
    return exchange_id


def parse_time(text: str) -> int:
    """
    RFC 3339, as microseconds since the Unix epoch.

    :raises ValueError: it is not.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("no time")
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    # A leap second is the next second here.
    at = datetime.datetime(year, month, day, hour, minute, min(second, 59), tzinfo=datetime.UTC)
    micros = (at - EPOCH) // datetime.timedelta(microseconds=1) + (second == 60) * 1_000_000
    if second > 60:
        raise ValueError("no time")
    micros += int((match[7] or "0").ljust(9, "0")[:6])
    if match[9]:
        offset = (int(match[10]) * 60 + int(match[11])) * 60_000_000
        micros += -offset if match[9] == "+" else offset
    return micros


def show_time(micros: int) -> str:
    """Microseconds since the Unix epoch, as RFC 3339 in UTC with milliseconds; what no calendar has, as its end."""
    try:
        at = EPOCH + datetime.timedelta(microseconds=micros)
    except OverflowError:
        at = datetime.datetime.max.replace(tzinfo=datetime.UTC) if micros > 0 else EPOCH
    return at.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
