"""Tool calls: their names, ids and input in the one API, and their names, ids and arguments in the other."""

from __future__ import annotations

import hashlib
import re

from twisted_proxy.wire.openai import raw

UNPARSED = "_unparsed_arguments"
"""The one member of an ``input`` that stands for arguments which are no JSON object, with their text for its value."""

_MAX_NAME = 64
_MAX_CALL_ID = 40
_CLAUDE_ID = re.compile(r"[a-zA-Z0-9_-]+")


def openai_name(name: str) -> str:
    """A tool's name in at most the 64 characters that OpenAI takes; Anthropic takes 128."""
    if len(name) <= _MAX_NAME:
        return name
    return f"{name[: _MAX_NAME - 9]}_{_digest(name, 8)}"


def openai_id(call_id: str) -> str:
    """A call's id in at most the 40 characters that OpenAI takes."""
    return call_id if len(call_id) <= _MAX_CALL_ID else f"call_{_digest(call_id, 35)}"


def claude_id(call_id: str) -> str:
    """A call's id in the characters that Anthropic takes; some servers write ``functions.bash:0``."""
    return call_id if _CLAUDE_ID.fullmatch(call_id) else f"toolu_{_digest(call_id, 24)}"


def _digest(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]


def arguments_of(tool_input: bytes) -> bytes:
    """``input`` as the JSON string ``arguments``; the text in it is the one that came."""
    if UNPARSED.encode() in tool_input[:64]:
        members = raw.members(tool_input)
        if len(members) == 1 and members.get(UNPARSED, b"").startswith(b'"'):
            return members[UNPARSED]
    return raw.quote(tool_input.decode())


def input_of(arguments: str) -> bytes:
    """
    ``arguments`` as the JSON object ``input``.

    ``{}`` only where there were none: blank, or ``null``. An object that was encoded twice is taken out of its
    string. What is no JSON object, because it was cut off or never was one, is kept whole and cannot be taken
    for a call that is fit to run: ``{"_unparsed_arguments": "…"}``.
    """
    # Half of a surrogate pair is spelled as JSON spells it; it is refused with the others.
    text = arguments.strip(" \t\n\r").encode("utf-8", "backslashreplace")
    if text in (b"", b"null"):
        return b"{}"
    if raw.is_object(text):
        return text
    if text.startswith(b'"'):
        inner = raw.string_or(text).strip(" \t\n\r").encode("utf-8", "backslashreplace")
        if raw.is_object(inner):
            return inner
    return raw.obj({UNPARSED: raw.quote(arguments)})


class ObjectEnd:
    """Follows text that begins with ``{``, in pieces of any size, to know when that object is closed."""

    __slots__ = ("_depth", "_escaped", "_in_string", "reached")

    _IN_STRING = re.compile(r'["\\]')
    _OUTSIDE = re.compile(r'["{}\[\]]')

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.reached = False

    def follow(self, text: str) -> None:
        """`text` comes next."""
        position = 0
        while True:
            if self._escaped and position < len(text):
                self._escaped = False
                position += 1
            found = (self._IN_STRING if self._in_string else self._OUTSIDE).search(text, position)
            if found is None:
                return
            char, position = found[0], found.end()
            if char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = not self._in_string
            elif char in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 0:
                    self.reached = True
