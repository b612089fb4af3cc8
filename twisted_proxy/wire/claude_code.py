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
"""Characters that are kept of a class, a type, a tool's name."""
MAX_TOOLS = 128
"""Tools of which a duration is kept."""

_NOT_PRINTABLE_ASCII = re.compile(r"[^ -~]+")
_DURATION = re.compile(r"[0-9]{1,10}")
# Since 2.1.247 a JSON object in a string, before that one word.
_WORD = re.compile(r"_session_([0-9A-Za-z-]+)")
_BILLING = "x-anthropic-billing-header:"
_SUBAGENT = re.compile(r"\bcc_is_subagent=true\b")

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
    parent_session: str | None = None
    request_class: str | None = None
    """``main``, ``subagent``, ``workflow``, ``compaction``, ``auxiliary``, or whatever comes next."""
    agent_type: str | None = None
    """``Explore``, ``Plan``, ``general-purpose``, ``custom``, ``teammate``, ``fork``, …"""
    compaction: str | None = None
    """``auto``, ``manual`` or ``reactive``: this request asks for a summary of its conversation."""
    context_compacted: str | None = None
    """The same words: the conversation goes on behind such a summary."""
    tool_durations: tuple[tuple[str, int], ...] = ()
    """The tools that ran since the previous request, each with its milliseconds, in order."""
    billed_as_subagent: bool = False
    """``cc_is_subagent=true`` in the first system block."""

    @property
    def is_subagent(self) -> bool:
        """The first of these that the request has decides: agent, request class, the system block, a parent session."""
        if self.agent is not None:
            return True
        if self.request_class is not None:
            return self.request_class == "subagent"
        return self.billed_as_subagent or self.parent_session is not None

    def merge(self, body: Origin) -> Origin:
        """This, of the headers, with what only the body says."""
        return attrs.evolve(
            self,
            session=self.session or body.session,
            parent_session=self.parent_session or body.parent_session,
            billed_as_subagent=self.billed_as_subagent or body.billed_as_subagent,
        )


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
        compaction=text("compaction", MAX_NAME_LENGTH),
        context_compacted=text("context-compacted", MAX_NAME_LENGTH),
        tool_durations=_tool_durations(first(b"x-claude-code-prev-tool-durations")),
    )


def from_recorded(fields: Iterable[tuple[str, str]]) -> Origin:
    """The same from fields as `wire.headers.recorded_request` gives them."""
    values: dict[bytes, bytes] = {}
    for name, value in fields:
        values.setdefault(name.encode("ascii", "ignore"), value.encode("latin-1", "ignore"))
    return from_headers(values.get)


class _Body(msgspec.Struct):
    metadata: Raw = Raw()
    system: Raw = Raw()


class _UserId(msgspec.Struct):
    session_id: Raw = Raw()
    parent_session_id: Raw = Raw()


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_user_id = msgspec.json.Decoder(_UserId).decode
_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_items = msgspec.json.Decoder(list[Raw]).decode
_decode_string = msgspec.json.Decoder(str).decode


def from_body(body: bytes) -> Origin:
    """What a Messages API request says. Never raises: of a body that is no JSON object, nothing."""
    try:
        read = _decode_body(body)
    except _REFUSED:
        return Origin()
    return from_members(metadata=read.metadata, system=read.system)


def from_members(*, metadata: bytes | Raw, system: bytes | Raw) -> Origin:
    """The same from the body's members ``metadata`` and ``system``, JSON; empty where there is none."""
    members = _members(metadata)
    session = parent = None
    user_id = _string(members.get("user_id", Raw()))
    if user_id is not None and user_id.lstrip().startswith("{"):
        try:
            ids = _decode_user_id(user_id)
        except _REFUSED:
            pass
        else:
            session, parent = _string(ids.session_id), _string(ids.parent_session_id)
    elif user_id is not None:
        words = _WORD.findall(user_id)
        session = words[-1] if words else None
    return Origin(
        session=_printable(session or "", MAX_ID_LENGTH),
        parent_session=_printable(parent or _string(members.get("parent_session_id", Raw())) or "", MAX_ID_LENGTH),
        billed_as_subagent=_is_billed_as_subagent(system),
    )


def _is_billed_as_subagent(system: bytes | Raw) -> bool:
    # Cheap to find in no place at all; and only the first block counts.
    if b"cc_is_subagent" not in memoryview(system)[:_FAR_ENOUGH].tobytes():
        return False
    first = _string(system)
    if first is None:
        try:
            blocks = _decode_items(system)
        except _REFUSED:
            return False
        first = _string(_members(blocks[0]).get("text", Raw())) if blocks else None
    return first is not None and first.startswith(_BILLING) and _SUBAGENT.search(first) is not None


_FAR_ENOUGH = 4096


def _tool_durations(value: bytes | None) -> tuple[tuple[str, int], ...]:
    """``Bash=742;Read=9``; what is not of that form is passed over."""
    durations = []
    for part in (value or b"")[:4096].decode("latin-1").split(";"):
        name, equals, milliseconds = part.rpartition("=")
        kept = _printable(name, MAX_NAME_LENGTH)
        if equals and kept and _DURATION.fullmatch(milliseconds.strip()):
            durations.append((kept, int(milliseconds)))
    return tuple(durations[:MAX_TOOLS])


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
