"""
Anthropic stream events → the message that the same request without ``stream`` would have brought.

https://docs.claude.com/en/docs/build-with-claude/streaming. Types are open: events, blocks, deltas and members
which are not known here are kept where they have a place, and counted where they have none.

Values pass through as the JSON text that they came in, so integers keep their digits, ``1.0`` and ``1e400``
their spelling, and strings their escapes. Of a stream, what is held is the message so far and one unfinished
event.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping

import attrs
import msgspec
from msgspec import Raw

from twisted_proxy.wire import errors, partial_json, sse
from twisted_proxy.wire.utf8 import replace_invalid

DEFAULT_MAX_BYTES = 64 * 1024 * 1024


@attrs.frozen(kw_only=True)
class Complete:
    """The stream told a whole message."""

    message: bytes
    """The message, JSON in UTF-8. What has no place in a message that we know of is not in it."""


@attrs.frozen(kw_only=True)
class ErrorEvent:
    """The stream ended in an ``error`` event."""

    status: int
    """The status that the API gives with such an error."""
    error_type: str
    """As ``overloaded_error``; ``api_error`` where the event does not say."""
    message: str
    error: bytes
    """The whole ``error`` object as it came, JSON in UTF-8."""
    request_id: str | None

    @property
    def body(self) -> bytes:
        """The body of an answer that says the same, ``{"type":"error","error":…,"request_id":…}``."""
        members = {"type": b'"error"', "error": self.error}
        if self.request_id is not None:
            members["request_id"] = msgspec.json.encode(self.request_id)
        return _object(members)


@attrs.frozen(kw_only=True)
class Truncated:
    """The stream ended, or was cut, before its message did."""

    detail: str
    """What happened and how far it had come, in words. None of these quotes what the model said."""


@attrs.frozen(kw_only=True)
class Malformed:
    """An event that the message depends on cannot be read."""

    detail: str


@attrs.frozen(kw_only=True)
class BadToolInput:
    """The message is whole, but a tool's input is no JSON, and ``max_tokens`` does not explain it."""

    detail: str


@attrs.frozen(kw_only=True)
class TooLarge:
    """The message passed the limit."""

    detail: str


Outcome = Complete | ErrorEvent | Truncated | Malformed | BadToolInput | TooLarge


class _Event(msgspec.Struct):
    type: str = ""


class _MessageStart(msgspec.Struct):
    message: dict[str, Raw]


class _BlockStart(msgspec.Struct):
    index: int
    content_block: dict[str, Raw]


_ABSENT = Raw(b"")


class _Delta(msgspec.Struct):
    type: str = ""
    text: Raw = _ABSENT
    thinking: Raw = _ABSENT
    partial_json: Raw = _ABSENT
    signature: Raw = _ABSENT
    citation: Raw = _ABSENT
    content: Raw = _ABSENT
    encrypted_content: Raw = _ABSENT


class _BlockDelta(msgspec.Struct):
    type: str = ""
    index: int | None = None
    delta: _Delta | None = None


class _Members(msgspec.Struct):
    delta: dict[str, Raw] | None = None
    usage: dict[str, Raw] | None = None


class _Model(msgspec.Struct):
    model: str


class _Error(msgspec.Struct):
    type: str = "api_error"
    message: str = ""


class _ErrorData(msgspec.Struct):
    error: Raw
    request_id: str | None = None


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_start = msgspec.json.Decoder(_MessageStart).decode
_decode_block_start = msgspec.json.Decoder(_BlockStart).decode
_decode_block_delta = msgspec.json.Decoder(_BlockDelta).decode
_decode_message_delta = msgspec.json.Decoder(_Members).decode
_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_items = msgspec.json.Decoder(list[Raw]).decode
_decode_string = msgspec.json.Decoder(str).decode

# What the decoders raise on what they do not take.
_REFUSED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)

_KNOWN = frozenset(
    (
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    )
)

# What a member costs beside its value: its place in a dictionary, and the objects' heads.
_MEMBER_OVERHEAD = 128
_BLOCK_OVERHEAD = 512


class _Block:
    """A content block as it grows."""

    __slots__ = ("citations", "index", "input", "members", "strings", "type")

    def __init__(self, index: int, members: dict[str, bytes]) -> None:
        self.index = index
        self.members = members
        self.type = _string(members.get("type", b"")) or "unknown"
        self.strings: dict[str, bytearray] = {}
        """What is appended to: the inside of JSON strings, escaped, so that two halves of a pair may meet."""
        self.citations: list[bytes] | None = None
        self.input = bytearray()
        """``partial_json``, the inside of a JSON string as well."""

    def describe(self) -> str:
        return f"content block {self.index} ({_printable(self.type)})"


class _NotJsonError(Exception):
    """Tool input that does not parse."""

    def __init__(self, block: _Block) -> None:
        super().__init__(f"the input of {block.describe()} is not JSON")


class MessageFold:
    """
    Feed it a stream's bytes (or its events); ask for the result at the end. It never raises: whatever
    comes is an :data:`Outcome`.

    It goes from *growing* to *settled* (``finished``) once, by ``message_stop``, by an ``error`` event, by an
    event that cannot be read, or by its size; what comes after that is ignored.
    """

    def __init__(self, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """
        :param max_bytes: what the message may take here: its text, some overhead for its members, and the
            event that is not finished yet.
        """
        self._max_bytes = max_bytes
        self._parser = sse.Parser(max_bytes)
        self._message: dict[str, bytes] | None = None
        self._usage: dict[str, bytes] = {}
        self._blocks: list[_Block] = []
        self._by_index: dict[int, _Block] = {}
        self._held = 0
        self._received = 0
        self._events = 0
        self._place = "before message_start"  # how far it has come, unless in the middle of a block
        self._inside: _Block | None = None
        self._stopped = False
        self._outcome: Outcome | None = None

    @property
    def finished(self) -> bool:
        """Whether the result is settled, and more bytes cannot change it."""
        return self._stopped or self._outcome is not None

    def feed(self, data: bytes) -> None:
        """The stream's next bytes."""
        if self.finished:
            return
        self._received += len(data)
        try:
            events = self._parser.feed(data)
        except sse.EventTooLargeError:
            self._too_large()
            return
        for event in events:
            self.event(event)
            if self.finished:
                return
        if self._held + self._parser.held > self._max_bytes:
            self._too_large()

    def event(self, event: sse.Event) -> None:
        """
        The stream's next event. As in the SDKs, one without a name and a ``ping`` are passed over, and what
        an event is, its data's ``type`` says before its name does.
        """
        name = event.event
        if not name or name == b"ping" or self.finished:
            return
        self._events += 1
        try:
            if name == b"content_block_delta":
                self._content_block_delta(event.data)
            elif name == b"error":
                self._error(event.data)
            else:
                self._dispatch(name.decode("ascii", "replace"), event.data)
        except _REFUSED:
            self._outcome = Malformed(
                detail=f"event {self._events} of the stream ({_printable(name.decode('ascii', 'replace'))}) "
                "is not JSON in the shape of such an event"
            )
        if self._held > self._max_bytes and self._outcome is None:
            self._too_large()

    def result(self) -> Outcome:
        """What the stream comes to, if it ends here."""
        if self._outcome is None:
            if not self._stopped:
                return Truncated(detail=self._how_far())
            self._outcome = self._conclude()
            if isinstance(self._outcome, Complete):
                self._release()
        return self._outcome

    def partial(self) -> bytes | None:
        """
        The message as far as it has come, JSON in UTF-8, with tool input as far as it is complete: what there
        is of a stream that was cut or ended in an error. ``None`` without ``message_start``, and where
        the result is :class:`Complete` or :class:`TooLarge`.
        """
        return None if self._message is None else self._build(self._message, lenient=True)

    # -- events

    def _dispatch(self, name: str, data: bytes) -> None:
        try:
            kind = (data and _decode_event(data).type) or name
        except _REFUSED:
            if name in _KNOWN:
                raise
            kind = ""
        match kind:
            case "message_start":
                self._message_start(data)
            case "content_block_start":
                self._content_block_start(data)
            case "content_block_delta":
                self._content_block_delta(data)
            case "content_block_stop":
                self._content_block_stop()
            case "message_delta":
                self._message_delta(data)
            case "message_stop":
                self._stopped = True
            case "error":
                self._error(data)

    def _message_start(self, data: bytes) -> None:
        if self._message is not None:
            return
        raw = _decode_start(data).message
        message: dict[str, bytes] = {}
        for name, value in raw.items():
            self._put(message, name, bytes(value))
        # Both are written anew at the end, in this place.
        usage = message.setdefault("usage", b"{}")
        if usage.startswith(b"{"):
            for name, value in _decode_members(usage).items():
                self._put(self._usage, name, bytes(value))
        content = message.setdefault("content", b"[]")
        for index, block in enumerate(_decode_items(content) if content.startswith(b"[") else ()):
            self._open(index, _decode_members(block))
        message["usage"] = message["content"] = b""
        self._message = message
        self._place = "after message_start"

    def _content_block_start(self, data: bytes) -> None:
        start = _decode_block_start(data)
        block = self._open(start.index, start.content_block)
        self._inside = block
        if block.type == "fallback" and self._message is not None:
            # The block names the model that serves the answer from here on.
            try:
                model = msgspec.json.decode(block.members.get("to", b""), type=_Model).model
            except _REFUSED:
                return
            self._put(self._message, "model", msgspec.json.encode(model))

    def _open(self, index: int, raw: Mapping[str, Raw]) -> _Block:
        members: dict[str, bytes] = {}
        for name, value in raw.items():
            self._put(members, name, bytes(value))
        block = _Block(index, members)
        # An index that comes again makes another block, behind the first: nothing is lost.
        self._blocks.append(block)
        self._by_index[index] = block
        self._held += _BLOCK_OVERHEAD
        return block

    def _content_block_delta(self, data: bytes) -> None:
        try:
            event = _decode_block_delta(data)
        except msgspec.DecodeError:
            event = _decode_split_pair(data)
        if event.type not in ("", "content_block_delta"):
            self._dispatch(event.type, data)
            return
        delta = event.delta
        if delta is None or event.index is None:
            raise msgspec.ValidationError("a delta without a place")
        kind = delta.type
        block = self._by_index.get(event.index)
        if block is None:
            # Its start is missing. Where the delta says all that there is to a block, nothing is lost.
            if kind not in ("text_delta", "thinking_delta"):
                return
            name = kind.removesuffix("_delta")
            block = self._open(event.index, {"type": Raw(b'"%s"' % name.encode())})
        self._inside = block
        if kind == "text_delta":
            self._append(block, "text", bytes(delta.text))
        elif kind == "thinking_delta":
            self._append(block, "thinking", bytes(delta.thinking))
        elif kind == "input_json_delta":
            piece = bytes(delta.partial_json)
            if piece.startswith(b'"'):
                block.input += piece[1:-1]
                self._held += len(piece) - 2
        elif kind == "signature_delta":
            if signature := bytes(delta.signature):
                self._put(block.members, "signature", signature)
        elif kind == "citations_delta":
            self._cite(block, bytes(delta.citation))
        elif kind == "compaction_delta":
            for name, raw in (("content", delta.content), ("encrypted_content", delta.encrypted_content)):
                if value := bytes(raw):
                    self._put(block.members, name, value)

    def _append(self, block: _Block, name: str, piece: bytes) -> None:
        if not piece.startswith(b'"'):
            return
        string = block.strings.get(name)
        if string is None:
            start = block.members.get(name, b"")
            string = block.strings[name] = bytearray(start[1:-1] if start.startswith(b'"') else b"")
            block.members[name] = b""  # its place; the value is what has grown
        string += piece[1:-1]
        self._held += len(piece) - 2

    def _cite(self, block: _Block, citation: bytes) -> None:
        if not citation:
            return
        if block.citations is None:
            start = block.members.get("citations", b"")
            block.citations = [bytes(item) for item in _decode_items(start)] if start.startswith(b"[") else []
            block.members["citations"] = b""
        block.citations.append(citation)
        self._held += len(citation) + _MEMBER_OVERHEAD

    def _content_block_stop(self) -> None:
        # Tool input is parsed once, at the end: only message_delta says whether max_tokens cut it off.
        if self._inside is not None:
            self._place = f"after {self._inside.describe()}"
            self._inside = None

    def _message_delta(self, data: bytes) -> None:
        if self._message is None:
            return
        event = _decode_message_delta(data)
        for name, value in (event.delta or {}).items():
            raw = bytes(value)
            if name != "container" or raw != b"null":
                self._put(self._message, name, raw)
        for name, value in _decode_members(data).items():
            raw = bytes(value)
            if name not in ("type", "delta", "usage") and raw != b"null":
                self._put(self._message, name, raw)
        for name, value in (event.usage or {}).items():
            raw = bytes(value)
            if raw != b"null":
                # Counts are cumulative: they overwrite what message_start estimated.
                self._put(self._usage, name, raw)
        self._place = "after message_delta"

    def _error(self, data: bytes) -> None:
        try:
            told = msgspec.json.decode(data, type=_ErrorData)
            error, request_id = bytes(told.error), told.request_id
            known = msgspec.json.decode(error, type=_Error)
            error_type, message = known.type, known.message
        except _REFUSED:
            # It is an error all the same, and what there is of it is for the client to read.
            error_type, message, request_id = "api_error", data.decode("utf-8", "replace"), None
            error = msgspec.json.encode({"type": error_type, "message": message})
        self._outcome = ErrorEvent(
            status=errors.status_of_type(error_type),
            error_type=error_type,
            message=message,
            error=replace_invalid(error),
            request_id=request_id,
        )

    # -- memory

    def _put(self, members: dict[str, bytes], name: str, value: bytes) -> None:
        before = members.get(name)
        if before is None:
            self._held += len(name) + _MEMBER_OVERHEAD
        else:
            self._held -= len(before)
        self._held += len(value)
        members[name] = value

    def _too_large(self) -> None:
        self._outcome = TooLarge(detail=f"the message takes more than {self._max_bytes} bytes")
        self._release()

    def _release(self) -> None:
        self._message = None
        self._usage = {}
        self._blocks = []
        self._by_index = {}

    # -- the end

    def _how_far(self) -> str:
        if not self._received and not self._events:
            return "the stream is empty"
        place = self._place if self._inside is None else f"in {self._inside.describe()}"
        unfinished = " and in the middle of an event" if self._parser.held else ""
        return (
            f"the stream ended without message_stop, {place}{unfinished} "
            f"(events: {self._events}, bytes: {self._received})"
        )

    def _conclude(self) -> Outcome:
        if self._message is None:
            return Truncated(detail="the stream has a message_stop, but no message_start")
        try:
            return Complete(message=self._build(self._message, lenient=False))
        except _NotJsonError as e:
            reason = _printable(_string(self._message.get("stop_reason", b"")) or "none")
            return BadToolInput(detail=f"{e} (stop_reason: {reason})")

    def _build(self, message: Mapping[str, bytes], *, lenient: bool) -> bytes:
        cut_off = _string(message.get("stop_reason", b"")) == "max_tokens"
        content = []
        for block in sorted(self._blocks, key=operator.attrgetter("index")):
            members = dict(block.members)
            for name, string in block.strings.items():
                members[name] = b'"%b"' % bytes(string)
            if block.citations is not None:
                members["citations"] = _array(block.citations)
            # Tokens run out in the block that was begun last; an earlier one is as the model wanted it.
            may_be_cut = lenient or (cut_off and block is self._blocks[-1])
            tool_input = _tool_input(block, may_be_cut, lenient)
            if tool_input is not None:
                members["input"] = tool_input
            content.append(_object(members))
        return replace_invalid(_object({**message, "content": _array(content), "usage": _object(self._usage)}))


def _tool_input(block: _Block, may_be_cut: bool, lenient: bool) -> bytes | None:
    """The value that a block's ``input_json_delta`` events make, ``None`` for the one that its start had."""
    if not block.input:
        return None
    text = _text(b'"%b"' % bytes(block.input))
    if text is not None:
        text = text.strip(b" \t\n\r")
        if not text or _is_json(text):
            return text or None
        closed = partial_json.close(text) if may_be_cut else None
        if closed is not None:
            return closed
    if lenient:
        return None
    raise _NotJsonError(block)


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=Raw)
    except _REFUSED:
        return False
    return True


def _text(quoted: bytes) -> bytes | None:
    """What a JSON string says, in UTF-8; ``None`` if there is no UTF-8 for it, because of a lone surrogate."""
    try:
        return _decode_string(replace_invalid(quoted)).encode()
    except _REFUSED:
        return None


def _decode_split_pair(data: bytes) -> _BlockDelta:
    r"""
    A delta with half of a surrogate pair: a server that cuts text by UTF-16 units sends ``"\ud83d"`` and then
    ``"\ude00"``. msgspec refuses both; put together they are what was meant.
    """
    try:
        event = json.loads(replace_invalid(data))
        delta = {name: Raw(json.dumps(value, allow_nan=False).encode()) for name, value in event["delta"].items()}
        event["delta"] = {**delta, "type": event["delta"]["type"]}
        return msgspec.convert(event, _BlockDelta)
    except (ValueError, TypeError, LookupError, AttributeError) as e:
        raise msgspec.DecodeError("not a delta") from e


def _string(raw: bytes) -> str | None:
    try:
        return _decode_string(raw)
    except _REFUSED:
        return None


def _printable(text: str) -> str:
    """A name out of the stream, fit for a log or an error's message."""
    return "".join(char for char in text[:64] if char.isascii() and char.isprintable())


def _object(members: Mapping[str, bytes]) -> bytes:
    return b"{%b}" % b",".join(msgspec.json.encode(name) + b":" + value for name, value in members.items())


def _array(items: list[bytes]) -> bytes:
    return b"[%b]" % b",".join(items)
