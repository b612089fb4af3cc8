"""Reading a request's JSON a level at a time, with refusals that say where."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TypeVar

import msgspec
from msgspec import Raw

from twisted_proxy.wire.openai import raw
from twisted_proxy.wire.openai.refusal import Untranslatable
from twisted_proxy.wire.utf8 import is_utf8

T = TypeVar("T")

_MEMBERS = msgspec.json.Decoder(dict[str, Raw]).decode


def top_level(body: bytes) -> dict[str, Raw]:
    """
    A request's members, without those that are ``null``.

    Raises :class:`Untranslatable` for what the API would refuse as well: no JSON object, NaN, a lone surrogate, a
    depth of a thousand, no UTF-8.
    """
    try:
        members = _MEMBERS(body)
    except raw.REFUSED as e:
        raise Untranslatable(f"The request is not a JSON object that can be read: {e}") from e
    if not is_utf8(body):
        raise Untranslatable("The request is not UTF-8.")
    return {name: value for name, value in members.items() if text(value, 5) != b"null"}


def read(decode: Callable[[bytes], T], value: Raw, where: str) -> T:
    """`value` as what `decode` makes of it; `where` it is, the refusal says."""
    try:
        return decode(value)
    except raw.REFUSED as e:
        raise Untranslatable(f"{where}: {e}") from e


class Members:
    """
    A request's members, as :func:`top_level` gives them; each is taken once, and something must become of all.

    Reading one raises :class:`Untranslatable` where it is not of its type.
    """

    def __init__(self, body: bytes) -> None:
        self._found = top_level(body)

    def __contains__(self, name: str) -> bool:
        """Whether it is there, and not taken."""
        return name in self._found

    def take(self, name: str) -> Raw | None:
        return self._found.pop(name, None)

    def read(self, name: str, decode: Callable[[bytes], T]) -> T | None:
        """``None`` where it is not there."""
        value = self.take(name)
        return None if value is None else read(decode, value, name)

    def require(self, name: str, decode: Callable[[bytes], T]) -> T:
        value = self.take(name)
        if value is None:
            raise Untranslatable(f"{name}: the request needs it.")
        return read(decode, value, name)

    def left(self, known: Collection[str]) -> Iterator[str]:
        """Those that say something, nobody has taken, and are none of these."""
        for name, value in self._found.items():
            if name not in known and text(value, 3) not in (b"[]", b"{}"):
                yield name


def text(value: Raw, length: int | None = None) -> bytes:
    """The JSON text of a value, or how it begins; empty where there is none."""
    return bytes(memoryview(value)[:length])


def literal(value: Raw, where: str) -> bytes:
    """A JSON string, as it came."""
    if text(value, 1) != b'"':
        raise Untranslatable(f"{where}: it has to be a string.")
    return text(value)


def optional_literal(value: Raw, where: str) -> bytes:
    """The same; empty where there is none, or ``null``."""
    return b"" if text(value, 5) in (b"", b"null") else literal(value, where)


def joined(literals: Iterable[bytes]) -> bytes:
    """One JSON string of several, those that say something, a blank line between them."""
    return raw.concatenate((each for each in literals if len(each) > 2), b"\\n\\n")


def named(word: str | None) -> str:
    """A client's word, fit for an error's message."""
    return repr("".join(char for char in (word or "")[:128] if char.isprintable()))
