"""
JSON text that was cut off: keep what is complete, and close what is open.

What jiter does with ``partial_mode=True`` in the SDKs, but on the text itself, so that ``1e400``, ``1.0`` and
integers of any size stay as they were written.
"""

from __future__ import annotations

import re

_SPACE = re.compile(rb"[ \t\n\r]*+")
_STRING = re.compile(
    rb"""
    " (?: [^"\\\x00-\x1f]++
        | \\ (?: ["\\/bfnrt]
               | u (?: [0-9a-cefA-CEF][0-9a-fA-F]{3} | [dD][0-7][0-9a-fA-F]{2} )
               | u[dD][89abAB][0-9a-fA-F]{2} \\u[dD][c-fC-F][0-9a-fA-F]{2}
             )
      )*+ "
    """,
    re.VERBOSE,
)
_CUT_STRING = re.compile(
    _STRING.pattern.rstrip().removesuffix(b'"')
    + rb"""
    (?: \\ (?: u (?: [0-9a-fA-F]{0,3}
                   | [dD][89abAB][0-9a-fA-F]{2} (?: \\ (?: u (?: [dD] (?: [c-fC-F] [0-9a-fA-F]? )? )? )? )?
                 )
           )?
    )? \Z
    """,
    re.VERBOSE,
)
_SCALAR = re.compile(rb"true|false|null|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
# What a number or a literal may lack at the end of the text. After a whole number: the rest of a longer one.
_CUT_SCALAR = re.compile(rb"(?:-|t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?)\Z")
_CUT_NUMBER = re.compile(rb"(?:\.|[eE][+-]?)\Z")

_CLOSING = {b"{": b"}", b"[": b"]"}


class _MalformedError(Exception):
    pass


def close(text: bytes) -> bytes | None:
    """
    `text`, the beginning of a JSON value in UTF-8, up to the end of the last value that is complete, with
    everything that is open there closed. A number at the very end counts as complete; a string without
    its end, a name without its value do not. A whole value comes back as it is.

    ``None`` if `text` is not how JSON begins, or if nothing of it is complete. Linear, at any depth.
    """
    try:
        return _close(text)
    except _MalformedError:
        return None


def _close(text: bytes) -> bytes | None:
    open_: list[bytes] = []
    safe = 0  # all that is open in text[:safe] is what `open_` holds
    position = 0
    # What may come: a value, a name, at a container's start also its end; a colon; what follows a value.
    want = "value"
    while True:
        space = _SPACE.match(text, position)
        assert space is not None
        position = space.end()
        if position == len(text):
            break
        char = text[position : position + 1]
        if want == "next":
            if not open_:
                raise _MalformedError
            position += 1
            if char == _CLOSING[open_[-1]]:
                open_.pop()
                safe = position
            elif char == b",":
                want = "name" if open_[-1] == b"{" else "value"
            else:
                raise _MalformedError
        elif want == "colon":
            if char != b":":
                raise _MalformedError
            position += 1
            want = "value"
        elif char in (b"}", b"]"):
            # Only right behind the bracket that opened it: a trailing comma is no JSON.
            if not (want.startswith("first") and char == _CLOSING[open_[-1]]):
                raise _MalformedError
            open_.pop()
            position += 1
            safe, want = position, "next"
        elif want in ("name", "first name"):
            end = _string(text, position)
            if end is None:
                break
            position, want = end, "colon"
        elif char in (b"{", b"["):
            open_.append(char)
            position += 1
            safe, want = position, "first name" if char == b"{" else "first value"
        else:
            end = _string(text, position) if char == b'"' else _scalar(text, position)
            if end is None:
                break
            safe, position, want = end, end, "next"
    if not safe:
        return None
    if not open_ and want == "next":
        return text
    return text[:safe] + b"".join(_CLOSING[bracket] for bracket in reversed(open_))


def _string(text: bytes, position: int) -> int | None:
    """Where the string at `position` ends; ``None`` if the text does before."""
    whole = _STRING.match(text, position)
    if whole is not None:
        return whole.end()
    if _CUT_STRING.match(text, position) is None:
        raise _MalformedError
    return None


def _scalar(text: bytes, position: int) -> int | None:
    """Where the number or literal at `position` ends; ``None`` if the text does before."""
    whole = _SCALAR.match(text, position)
    if whole is None:
        if _CUT_SCALAR.match(text, position) is None:
            raise _MalformedError
        return None
    end = whole.end()
    if text[end - 1] in b"0123456789" and _CUT_NUMBER.match(text, end) is not None:
        return None
    return end
