"""
Top-level members of a JSON request body as the bytes they are: look at a few, set one, leave the rest alone.

A body here is what the API would read: one JSON object (RFC 8259) in UTF-8, no BOM, no NaN, no lone
surrogate. Whatever is not goes up as it came, and the API says what is wrong with it. No value is parsed into
Python objects.
"""

from __future__ import annotations

import re

import attrs
import msgspec

from twisted_proxy.wire.spans import REFUSED, Member, members
from twisted_proxy.wire.utf8 import is_utf8

MAX_MODEL_LENGTH = 256
"""Characters of a model's name that are kept."""

_NOT_PRINTABLE_ASCII = re.compile(r"[^ -~]+")


class _Thinking(msgspec.Struct):
    type: str = ""


class _Head(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    thinking: _Thinking | None = None


_HEAD = msgspec.json.Decoder(_Head)


@attrs.frozen(kw_only=True)
class Summary:
    """What routing and logs need to know of a request body."""

    model: str | None = None
    """At most 256 characters of printable ASCII; what else the client sent is dropped."""
    stream: bool = False
    """``"stream": true``."""
    has_thinking: bool = False
    """``thinking`` is there and not ``null`` or ``{"type": "disabled"}``."""
    well_formed: bool = False
    """A JSON object in which those three, where present, are of the type that the API takes. With ``False``
    the others say nothing, and the API will refuse the body."""


def peek(body: bytes) -> Summary:
    """What `body` says. Never raises: what is no JSON object, or has a wrong type, gives ``Summary()``."""
    try:
        head = _HEAD.decode(body)
    except REFUSED:
        return Summary()
    model = head.model and _NOT_PRINTABLE_ASCII.sub("", head.model[: 4 * MAX_MODEL_LENGTH])[:MAX_MODEL_LENGTH]
    return Summary(
        model=model or None,
        stream=head.stream is True,
        has_thinking=head.thinking is not None and head.thinking.type != "disabled",
        well_formed=True,
    )


def get_member(body: bytes, name: str) -> bytes | None:
    """The value of a top-level member as raw JSON, the last one if there are several. ``None`` if there is
    none, or if the body is not one that :func:`replace_member` would change."""
    values = [body[member.start : member.end] for member in _members(body) or () if member.name == name]
    return values[-1] if values else None


def replace_member(body: bytes, name: str, value: bytes) -> bytes | None:
    """
    `body` with the top-level member `name` set to `value`, which is raw JSON, and every other byte as it was.

    If the member stands there more than once, however its name is escaped, each is set: receivers disagree
    whether the first or the last counts. If it is not there, it becomes the first.

    ``None`` if the body is not a JSON object in UTF-8, or has more than 1024 members (the API knows some
    thirty, and refuses others): it should then go up as it is.
    """
    found = _members(body)
    if found is None:
        return None
    view = memoryview(body)
    parts: list[bytes | memoryview] = []
    done = 0
    for member in found:
        if member.name == name:
            parts += (view[done : member.start], value)
            done = member.end
    if not parts:
        done = body.index(b"{") + 1
        comma = b"," if found else b""
        parts = [view[:done], msgspec.json.encode(name), b":", value, comma]
    parts.append(view[done:])
    return b"".join(parts)


def _members(body: bytes) -> list[Member] | None:
    """All members in order; ``None`` if it is not an object as above."""
    found = members(body)
    # msgspec has checked all of the grammar, but not that what is in the strings is UTF-8.
    return found if found is not None and is_utf8(body) else None
