"""
Which request targets may reach an upstream (RFC 9112 §3.2, RFC 3986 §3.3).

An upstream sees the target byte for byte, so whatever two parsers could read differently stops here:
only the origin form, only segments that mean the same to everybody.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import unquote_to_bytes

import attrs

from .headers import may_hold_key

_CHARACTERS = re.compile(rb"[\x21-\x7e]+")
_PATH = re.compile(rb"(?:/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})*)+")
# `..;x` is `..` to servers that know path parameters (RFC 3986 §3.3).
_DOT = re.compile(rb"(?:\.|%2[Ee]){1,2}(?:;.*)?")
_FORBIDDEN_ESCAPE = re.compile(rb"%(?:2[Ff]|5[Cc]|[01][0-9A-Fa-f]|7[Ff])")

_HARMLESS_VALUE = re.compile(r"[A-Za-z0-9_.:,-]{0,128}")

QUERY_NAMES_TO_SHOW = frozenset(
    {"after_id", "before_id", "beta", "limit", "order", "page", "purpose", "scope_id", "stream"}
)


class BadTarget(ValueError):
    """The request target is none that may go on; the text says why, and is meant for the client."""


@attrs.frozen
class Target:
    """
    A request target that passed: ``path`` and ``query`` are the client's bytes.

    :ivar raw: path and query as they came, ``?`` included where it came.
    :ivar root: the path's first segment, with its slash: ``/v1``.
    :ivar query: what follows the first ``?``; ``None`` where there is none.
    """

    raw: bytes
    path: bytes
    query: bytes | None
    root: bytes = attrs.field(init=False)

    @root.default
    def _find_root(self) -> bytes:
        return b"/" + self.path[1:].partition(b"/")[0]

    def below(self, depth: int) -> Target:
        """This target without its first ``depth`` segments, as a resource that hangs there sees it."""
        if not depth:
            return self
        rest = b"/" + b"/".join(self.path.split(b"/")[depth + 1 :])
        return Target(rest if self.query is None else rest + b"?" + self.query, rest, self.query)


def parse(raw: bytes) -> Target:
    """
    :raises BadTarget: not in origin form, an empty, ``.`` or ``..`` segment (also in percent encoding), an encoded
        slash, backslash or control character, or bytes that RFC 3986 does not allow in a path.
    """
    return _parse_often(raw) if len(raw) <= _SHORT else _parse(raw)


def _parse(raw: bytes) -> Target:
    if not raw.startswith(b"/"):
        raise BadTarget("the request target must begin with a single '/' (origin form)")
    if _CHARACTERS.fullmatch(raw) is None:
        raise BadTarget("the request target holds bytes that are not printable ASCII; percent-encode them")
    if b"#" in raw:
        raise BadTarget("the request target holds a fragment ('#')")
    path, mark, query = raw.partition(b"?")
    segments = path.split(b"/")[1:]
    if b"" in segments[:-1]:
        raise BadTarget("the path holds an empty segment ('//'): does the base URL end in a slash?")
    if _PATH.fullmatch(path) is None:
        raise BadTarget("the path holds a character that must be percent-encoded, or a broken percent encoding")
    if _FORBIDDEN_ESCAPE.search(path) is not None:
        raise BadTarget("the path holds an encoded slash, backslash or control character")
    if any(_DOT.fullmatch(segment) for segment in segments):
        raise BadTarget("the path holds a '.' or '..' segment")
    return Target(raw, path, query if mark else None)


_SHORT = 256
# Most requests have one of a handful of targets.
_parse_often = lru_cache(maxsize=256)(_parse)


_SECRET_RESOURCES = frozenset({b"environments", b"oauth", b"organizations", b"tunnels", b"vaults"})


def keeps_bodies(path: bytes) -> bool:
    """
    Whether bodies below this path may be recorded: not where they carry secrets as a rule. That is below
    ``/v1/oauth``, ``/v1/organizations``, ``/v1/vaults``, ``/v1/tunnels`` and ``/v1/environments`` (the secrets of work
    that a server hands out), and below the same names in any other root.

    A server may read ``/V1/%6fAuth;x/`` as one of these, so it counts as one here.
    """
    # Some decode twice; more often than that it is nobody's path.
    for _ in range(3 if b"%" in path else 0):
        path = unquote_to_bytes(path)
    segments = [segment.partition(b";")[0].strip().lower() for segment in path.split(b"/")]
    return not _SECRET_RESOURCES.intersection([segment for segment in segments if segment][:2])


def loggable_query(query: bytes | None) -> str:
    """
    A query for the log: names, and values only of names that are known to carry no secret.

    ``beta=true&api_key=…`` gives ``beta=true&api_key=***``.
    """
    if not query:
        return ""
    return "&".join(_loggable_part(part) for part in query[:2048].decode("ascii", "replace").split("&"))


def _loggable_part(part: str) -> str:
    name, equals, value = part.partition("=")
    if name not in QUERY_NAMES_TO_SHOW:
        # A bare word may itself be the secret, also one in base64 with its padding.
        return f"{name}=***" if value.strip("=") else "***"
    # `beta=true;api_key=…` and `beta=true?api_key=…` hold a second name for some readers.
    harmless = _HARMLESS_VALUE.fullmatch(value) is not None and not may_hold_key(value)
    return f"{name}{equals}{value if harmless else '***'}"
