"""
What Claude Code says of itself: session, prompt, agent, kind of request, out of headers and body.

https://code.claude.com/docs/en/llm-gateway for the headers; the body's forms are as its versions send them. The
headers are there at once, the body comes later: each part is read for itself, and :meth:`Origin.merge` joins them.

Every value is a client's: printable ASCII of it is kept, and no more than a limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import attrs
import msgspec
from msgspec import Raw

MAX_ID_LENGTH = 128
"""Characters that are kept of an identifier."""
MAX_NAME_LENGTH = 64
"""Characters that are kept of a class or a type."""

_NOT_PRINTABLE_ASCII = re.compile(r"[^ -~]+")
# Since 2.1.247 a JSON object in a string, before that one word.
_WORD = re.compile(r"_session_([0-9A-Za-z-]+)")

# What msgspec raises on what it does not take.
_REFUSED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


@attrs.frozen(kw_only=True)
class Origin:
    """Where a request comes from. ``None`` is what the client did not say."""

    session: str | None = None
    """A UUID as a rule. ``/clear`` makes a new one, ``--resume`` and compaction keep it."""
    prompt: str | None = None
    """Of all requests that one prompt of the user led to."""
    agent: str | None = None
    """On subagents only; those of one process share its session."""
    parent_agent: str | None = None
    request_class: str | None = None
    """``main``, ``subagent``, ``workflow``, ``compaction``, ``auxiliary``, or whatever comes next."""
    agent_type: str | None = None
    """``Explore``, ``Plan``, ``general-purpose``, ``custom``, ``teammate``, ``fork``, …"""
    context_compacted: str | None = None
    """``auto``, ``manual`` or ``reactive``: the conversation goes on behind a summary of it."""

    def merge(self, body: Origin) -> Origin:
        """This, of the headers, with what only the body says."""
        return attrs.evolve(self, session=self.session or body.session)


def from_headers(first: Callable[[bytes], bytes | None]) -> Origin:
    """
    What the headers say.

    :param first: a field's first value by its lower-case name, as the ``get`` of a mapping.
    """

    def text(name: str, limit: int) -> str | None:
        for prefix in (b"x-claude-code-", b"x-claude-1p-"):
            value = first(prefix + name.encode())
            if value and (kept := _printable(value.decode("latin-1"), limit)):
                return kept
        return None

    return Origin(
        session=text("session-id", MAX_ID_LENGTH),
        prompt=text("prompt-id", MAX_ID_LENGTH),
        agent=text("agent-id", MAX_ID_LENGTH),
        parent_agent=text("parent-agent-id", MAX_ID_LENGTH),
        request_class=text("request-class", MAX_NAME_LENGTH),
        agent_type=text("agent-type", MAX_NAME_LENGTH),
        context_compacted=text("context-compacted", MAX_NAME_LENGTH),
    )


def from_recorded(fields: Iterable[tuple[str, str]]) -> Origin:
    """The same from fields as `wire.headers.recorded_request` gives them."""
    values: dict[bytes, bytes] = {}
    for name, value in fields:
        values.setdefault(name.encode("ascii", "ignore"), value.encode("latin-1", "ignore"))
    return from_headers(values.get)


class _Body(msgspec.Struct):
    metadata: Raw = Raw()


class _UserId(msgspec.Struct):
    session_id: Raw = Raw()


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_user_id = msgspec.json.Decoder(_UserId).decode
_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_string = msgspec.json.Decoder(str).decode


def from_body(body: bytes) -> Origin:
    """What a Messages API request says. Never raises: of a body that is no JSON object, nothing."""
    try:
        read = _decode_body(body)
    except _REFUSED:
        return Origin()
    return from_metadata(read.metadata)


def from_metadata(metadata: bytes | Raw) -> Origin:
    """The same from the body's member ``metadata``, JSON; empty where there is none."""
    session = None
    user_id = _string(_members(metadata).get("user_id", Raw()))
    if user_id is not None and user_id.lstrip().startswith("{"):
        try:
            ids = _decode_user_id(user_id)
        except _REFUSED:
            pass
        else:
            session = _string(ids.session_id)
    elif user_id is not None:
        words = _WORD.findall(user_id)
        session = words[-1] if words else None
    return Origin(session=_printable(session or "", MAX_ID_LENGTH))


def _members(raw: bytes | Raw) -> Mapping[str, Raw]:
    try:
        return _decode_members(raw)
    except _REFUSED:
        return {}


def _string(raw: bytes | Raw) -> str | None:
    try:
        return _decode_string(raw)
    except _REFUSED:
        return None


def _printable(text: str, limit: int) -> str | None:
    return _NOT_PRINTABLE_ASCII.sub("", text[: 4 * limit]).strip()[:limit] or None
