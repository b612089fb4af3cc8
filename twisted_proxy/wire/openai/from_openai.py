"""
A chat completion → a message; a stream of chunks → a stream of events.

What compatible servers make of the format is taken as it is meant: calls whole in one chunk, without an index, all
with the same one, without an id, with their name in each fragment; arguments as an object; ``content: null``;
``stop`` behind calls; comments, CRLF, an end without ``[DONE]``. What is not forgiven is an answer without a
``finish_reason``: it may have been cut off.

Arguments go on in the fragments that they came in. They are held back only where they do not begin as an object
does, and where another call's are not finished yet: blocks come one after the other, as Anthropic sends them.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping

from twisted_proxy.wire import errors, sse
from twisted_proxy.wire.openai import failures, raw, tools
from twisted_proxy.wire.openai.refusal import Untranslatable, bad_answer
from twisted_proxy.wire.utf8 import replace_invalid

DEFAULT_MAX_BYTES = 64 * 1024 * 1024

_REASONING = ("reasoning_content", "reasoning")
"""Where compatible servers put what a model thinks; the first that says something counts."""

_FINISH = {
    "length": "max_tokens",
    "max_tokens": "max_tokens",
    "content_filter": "refusal",
    "refusal": "refusal",
    "stop_sequence": "stop_sequence",
}
_FAILED = frozenset(("error", "abort", "insufficient_system_resource"))
"""What servers say of an answer that they could not finish."""


def translate_answer(body: bytes, *, model: str, message_id: str, tool_names: Mapping[str, str] | None = None) -> bytes:
    """
    The message that a chat completion is, JSON in UTF-8.

    :param model: what it says where the completion does not name its own.
    :param message_id: the same for its id; it also makes the ids of calls that came without.
    :param tool_names: of :class:`~twisted_proxy.wire.openai.to_openai.ChatRequest`.
    :raises Untranslatable: if the body is something else, or an error.
    """
    try:
        return _answer(replace_invalid(body), model, message_id, tool_names or {})
    except raw.MalformedError as e:
        raise bad_answer(f"The provider's answer is not a chat completion: {e}.") from e


def _answer(body: bytes, model: str, message_id: str, tool_names: Mapping[str, str]) -> bytes:
    completion = raw.members(body)
    if not _nothing(completion.get("error")):
        failure = failures.from_openai_error(None, body)
        raise Untranslatable(failure.message, status=failure.status, error_type=failure.error_type)
    choices = raw.items(completion.get("choices", b"[]"))
    if not choices:
        raise bad_answer("The provider's answer is not a chat completion: it has no choices.")
    choice = raw.members(choices[0])
    message = raw.members(choice.get("message", b"{}"))
    finish = raw.string_or(choice.get("finish_reason"))
    if finish in _FAILED:
        raise bad_answer(f"The provider could not finish its answer ({finish}).")
    message_id = raw.string_or(completion.get("id")) or message_id
    content: list[bytes] = []
    for name in _REASONING:
        if thinking := _said(message.get(name)):
            whole = {"type": b'"thinking"', "thinking": raw.concatenate(thinking), "signature": b'""'}
            content.append(raw.obj(whole))
            break
    refused = _said(message.get("refusal"))
    content += (
        raw.obj({"type": b'"text"', "text": raw.concatenate(texts)})
        for texts in (_said(message.get("content")), refused)
        if texts
    )
    ids = _Ids(message_id)
    for call in _fragments(message):
        if not call.name:
            raise bad_answer("The provider's answer has a tool call without a name.")
        tool_use = {
            **_tool_use(ids.unique(call.id), call.name, tool_names),
            "input": tools.input_of(raw.string(call.arguments)),
        }
        content.append(raw.obj(tool_use))
    reason, sequence = _stop_reason(
        finish, has_calls=ids.used > 0, refused=bool(refused), matched=choice.get("stop_reason")
    )
    return raw.obj(
        {
            "id": raw.quote(message_id),
            "type": b'"message"',
            "role": b'"assistant"',
            "model": raw.quote(raw.string_or(completion.get("model")) or model),
            "content": raw.array(content),
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": raw.obj(_usage(completion.get("usage"))),
        }
    )


# -- parts of both


def _nothing(value: bytes | None) -> bool:
    return value is None or value in (b"null", b"false", b'""', b"{}")


def _said(value: bytes | None) -> list[bytes]:
    """The strings of ``content`` and its like: a string, or parts of the type text; none that is empty."""
    if value is None or value in (b"null", b'""'):
        return []
    if value.startswith(b'"'):
        return [value]
    found = []
    for part in raw.items(value):
        members = raw.members(part)
        literal = members.get("text", b"")
        if not literal.startswith(b'"'):
            raise raw.MalformedError("its content has a part that is no text")
        found.append(literal)
    return [literal for literal in found if literal != b'""']


def _stop_reason(finish: str, *, has_calls: bool, refused: bool, matched: bytes | None) -> tuple[bytes, bytes]:
    """``stop_reason`` and ``stop_sequence``. An answer that was cut off is that, also in the middle of a call."""
    reason = _FINISH.get(finish)
    if reason is None:
        reason = "tool_use" if has_calls else "refusal" if refused else "end_turn"
    if reason == "end_turn" and matched is not None and matched.startswith(b'"'):
        reason = "stop_sequence"  # vLLM says which one
    return raw.quote(reason), matched if reason == "stop_sequence" and matched else b"null"


def _usage(usage: bytes | None) -> dict[str, bytes]:
    """
    ``input_tokens`` leaves out what the cache gave or took; ``prompt_tokens`` has it in it. Without ``usage`` all
    counts are 0.
    """
    counts: dict[str, bytes] = {} if usage is None or not usage.startswith(b"{") else raw.members(usage)

    def count(name: str, within: Mapping[str, bytes] = counts) -> int:
        return max(raw.whole_number(within.get(name)) or 0, 0)

    prompt = _details(counts, "prompt_tokens_details")
    completion = _details(counts, "completion_tokens_details")
    read = count("cached_tokens", prompt) or count("prompt_cache_hit_tokens")
    written = count("cache_write_tokens", prompt)
    out = {
        "input_tokens": raw.number(max(count("prompt_tokens") - read - written, 0)),
        "cache_creation_input_tokens": raw.number(written),
        "cache_read_input_tokens": raw.number(read),
        "output_tokens": raw.number(count("completion_tokens")),
    }
    if thought := count("reasoning_tokens", completion):
        out["output_tokens_details"] = raw.obj({"thinking_tokens": raw.number(thought)})
    return out


def _details(counts: Mapping[str, bytes], name: str) -> Mapping[str, bytes]:
    value = counts.get(name, b"")
    return raw.members(value) if value.startswith(b"{") else {}


class _Fragment:
    """One item of ``tool_calls``, or ``function_call``."""

    __slots__ = ("arguments", "id", "index", "name")

    def __init__(self, members: Mapping[str, bytes], function: Mapping[str, bytes]) -> None:
        self.index = raw.whole_number(members.get("index"))
        self.id = raw.string_or(members.get("id"))
        self.name = raw.string_or(function.get("name"))
        arguments = function.get("arguments", b'""')
        if arguments.startswith(b"{"):
            arguments = raw.quote(arguments.decode())
        elif not arguments.startswith(b'"'):
            if arguments != b"null":
                raise raw.MalformedError("it has a call whose arguments are neither a string nor an object")
            arguments = b'""'
        self.arguments = arguments


def _fragments(delta: Mapping[str, bytes]) -> Iterable[_Fragment]:
    calls = delta.get("tool_calls")
    if calls is not None and calls != b"null":
        for item in raw.items(calls):
            members = raw.members(item)
            if members.get("type") == b'"custom"':
                raise raw.MalformedError("it calls a custom tool, and there is none")
            function = members.get("function", b"{}")
            yield _Fragment(members, raw.members(function) if function != b"null" else {})
    legacy = delta.get("function_call")
    if legacy is not None and legacy != b"null":
        yield _Fragment({"index": b"0"}, raw.members(legacy))


class _Ids:
    """Ids for the calls of one answer: the server's, unless it gave none or one twice."""

    def __init__(self, message_id: str) -> None:
        self._message_id = message_id
        self._given: set[str] = set()

    @property
    def used(self) -> int:
        return len(self._given)

    def unique(self, call_id: str) -> str:
        if not call_id or call_id in self._given:
            call_id = f"call_{self.used}_{self._message_id}"
        self._given.add(call_id)
        return call_id


def _tool_use(call_id: str, name: str, tool_names: Mapping[str, str]) -> dict[str, bytes]:
    return {
        "type": b'"tool_use"',
        "id": raw.quote(call_id),
        "name": raw.quote(tool_names.get(name, name)),
        "input": b"{}",
    }


# -- streams


_CALL_OVERHEAD = 512


class _Block:
    """A content block that has been begun upstream, and not been ended downstream."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.opened = False
        self.closed = False
        self.waiting: list[bytes] = []
        """The texts of its deltas that have not gone out, as JSON strings."""

    @property
    def complete(self) -> bool:
        """Whether it may be ended as soon as something else begins."""
        return True


class _Call(_Block):
    """A tool call as it grows."""

    def __init__(self, call_id: str, name: str) -> None:
        super().__init__("tool_use")
        self.id = call_id
        self.name = name
        self._end: tools.ObjectEnd | None = None
        self._is_object: bool | None = None  # None as long as there are blanks only
        self._held: list[str] = []

    @property
    def complete(self) -> bool:
        return self._end is not None and self._end.reached and bool(self.name)

    def add(self, literal: bytes) -> int:
        """More arguments, as a JSON string. Returns how many bytes are held for it."""
        if literal == b'""':
            return 0
        said = raw.string(literal)
        if self._is_object is None and (begun := said.lstrip(" \t\n\r")):
            self._is_object = begun[0] == "{"
            if self._is_object:
                self._end = tools.ObjectEnd()
                self.waiting += [raw.quote(each) for each in self._held]
        if self._end is None:
            self._held.append(said)
        else:
            self._end.follow(said)
            self.waiting.append(literal)
        return len(literal)

    def conclude(self) -> None:
        """There are no more arguments."""
        if self._is_object is False:
            self.waiting.append(raw.quote(tools.input_of("".join(self._held)).decode()))


class AnswerStream:
    """
    Feed it a chat completion's chunks as bytes, get a message's events as bytes. However the bytes are split, the
    events are the same.

    It goes from *flowing* to *finished* once: by ``[DONE]``, by an error in the stream, by a chunk that cannot be
    read, by its size, or by :meth:`finish`. What comes after that is ignored.

    Usage comes at the end of such a stream: ``message_start`` counts 0, and ``message_delta`` counts all.
    """

    def __init__(
        self,
        *,
        model: str,
        message_id: str,
        tool_names: Mapping[str, str] | None = None,
        request_id: str | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        """
        :param model: what the message says where the chunks do not name their own.
        :param message_id: the same for its id; it also makes the ids of calls that came without.
        :param tool_names: of :class:`~twisted_proxy.wire.openai.to_openai.ChatRequest`.
        :param request_id: for the ``error`` event, if there is one.
        :param max_bytes: what one unfinished chunk may take, and what arguments that are held back may.
        """
        self._model = model
        self._message_id = message_id
        self._tool_names = tool_names or {}
        self._request_id = request_id
        self._max_bytes = max_bytes
        self._parser = sse.Parser(max_bytes)
        self._at_line_start = True
        self._out: list[bytes] = []
        self._ids: _Ids | None = None  # as soon as the message has begun
        self._blocks: deque[_Block] = deque()
        self._next_index = 0
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}
        self._held = 0
        self._refused = False
        self._finish_reason = ""
        self._matched: bytes | None = None
        self._usage: bytes | None = None
        self._chunks = 0
        self.finished = False
        """Whether the events are all out."""
        self.failure: str | None = None
        """Why the message is not whole, in words that quote nothing of it. The last event is then an ``error``."""

    def feed(self, data: bytes) -> bytes:
        """The events that the stream's next bytes complete."""
        start = 0
        for comment in _comments(data, at_line_start=self._at_line_start):
            self._events(data[start:comment])
            # What keeps this side alive keeps the other one alive, too.
            if not self.finished:
                self._emit("ping", b'{"type":"ping"}')
            start = comment
        self._events(data[start:])
        if data:
            self._at_line_start = data[-1:] in (b"\r", b"\n")
        return self._flush()

    def finish(self) -> bytes:
        """The stream has ended, or was cut: the events that are left. A message that is not whole gets ``error``."""
        if not self.finished and (event := self._parser.pending) is not None and _is_whole(event.data):
            self._event(event)
        if not self.finished:
            self._end()
        return self._flush()

    # -- in

    def _events(self, data: bytes) -> None:
        if self.finished or not data:
            return
        try:
            events = self._parser.feed(data)
        except sse.EventTooLargeError:
            self._fail("api_error", f"a chunk of the provider's answer takes more than {self._max_bytes} bytes")
            return
        for event in events:
            if self.finished:
                return
            self._event(event)

    def _event(self, event: sse.Event) -> None:
        data = event.data.strip()
        if data == b"[DONE]":
            self._end()
            return
        if not data:
            return
        self._chunks += 1
        try:
            self._chunk(replace_invalid(data), is_error=event.event == b"error")
        except raw.MalformedError as e:
            self._fail("api_error", f"chunk {self._chunks} of the provider's answer cannot be read: {e}")
            return
        if self._held > self._max_bytes and not self.finished:
            self._fail("api_error", f"the provider's tool calls take more than {self._max_bytes} bytes")

    def _chunk(self, data: bytes, *, is_error: bool) -> None:
        chunk = raw.members(data)
        if is_error or not _nothing(chunk.get("error")):
            failure = failures.from_openai_error(None, data)
            self._fail(failure.error_type, failure.message, told=True)
            return
        usage = chunk.get("usage", b"null")
        if usage != b"null":
            self._usage = usage
        choices = chunk.get("choices", b"null")
        for item in raw.items(choices) if choices != b"null" else ():
            choice = raw.members(item)
            if raw.whole_number(choice.get("index")) in (None, 0):
                self._begin(chunk)
                self._choice(choice)
                break

    def _begin(self, chunk: Mapping[str, bytes]) -> None:
        if self._ids is not None:
            return
        message_id = raw.string_or(chunk.get("id")) or self._message_id
        self._ids = _Ids(message_id)
        message = {
            "id": raw.quote(message_id),
            "type": b'"message"',
            "role": b'"assistant"',
            "model": raw.quote(raw.string_or(chunk.get("model")) or self._model),
            "content": b"[]",
            "stop_reason": b"null",
            "stop_sequence": b"null",
            "usage": raw.obj(_usage(None)),
        }
        self._emit("message_start", raw.obj({"type": b'"message_start"', "message": raw.obj(message)}))
        self._emit("ping", b'{"type":"ping"}')

    def _choice(self, choice: Mapping[str, bytes]) -> None:
        delta = choice.get("delta", b"null")
        if delta != b"null":
            self._delta(raw.members(delta))
        reason = raw.string_or(choice.get("finish_reason"))
        if reason and not self.finished:
            self._finish_reason = reason
            self._matched = choice.get("stop_reason")
            if reason in _FAILED:
                self._fail("api_error", f"the provider could not finish its answer ({reason})")
            else:
                # A tool can start now; usage may take a while.
                self._conclude()

    def _delta(self, delta: Mapping[str, bytes]) -> None:
        for name in _REASONING:
            if thinking := _said(delta.get(name)):
                self._say("thinking", thinking)
                break
        self._say("text", _said(delta.get("content")))
        if refusal := _said(delta.get("refusal")):
            self._refused = True
            self._say("refusal", refusal)
        for fragment in _fragments(delta):
            self._fragment(fragment)
        self._advance()

    def _say(self, kind: str, literals: list[bytes]) -> None:
        if not literals:
            return
        if not self._blocks or self._blocks[-1].kind != kind:
            self._blocks.append(_Block(kind))
        self._blocks[-1].waiting += literals
        self._held += sum(map(len, literals))

    def _fragment(self, fragment: _Fragment) -> None:
        call = self._find(fragment)
        if call is None:
            assert self._ids is not None  # _begin comes before any delta
            call = _Call(self._ids.unique(fragment.id), fragment.name)
            self._calls.append(call)
            self._blocks.append(call)
            self._held += _CALL_OVERHEAD
        call.name = call.name or fragment.name
        if fragment.index is not None:
            self._by_index[fragment.index] = call
        if fragment.id:
            self._by_id[fragment.id] = call
        if not call.closed:
            self._held += call.add(fragment.arguments)
        elif raw.string(fragment.arguments).strip():
            raise raw.MalformedError("it goes on with the arguments of a call that were whole")

    def _find(self, fragment: _Fragment) -> _Call | None:
        """The call that a fragment goes on with, ``None`` if it begins another one."""
        if fragment.index is not None:
            call = self._by_index.get(fragment.index)
        else:
            call = self._by_id.get(fragment.id) or (self._calls[-1] if self._calls else None)
        if call is None or not fragment.name:
            # Without a name it begins nothing, whatever its id: there are servers that make one for each fragment.
            return call
        if fragment.id and fragment.id not in (call.id, ""):
            return None
        if call.complete and raw.string(fragment.arguments).strip():
            return None
        if fragment.index is None and call.name not in ("", fragment.name):
            return None
        return call

    # -- out

    def _advance(self) -> None:
        """Send what can be sent in order: one block after the other, each from its start to its end."""
        while self._blocks:
            block = self._blocks[0]
            if isinstance(block, _Call) and not block.name:
                return
            if not block.opened:
                self._open(block)
            kind, member = _DELTAS[block.kind]
            for literal in block.waiting:
                self._held -= len(literal)
                value = b'{"type":"%b","%b":%b}' % (kind, member, literal)
                self._emit(
                    "content_block_delta",
                    b'{"type":"content_block_delta","index":%d,"delta":%b}' % (self._next_index, value),
                )
            block.waiting = []
            if len(self._blocks) == 1 or not block.complete:
                return
            self._close()

    def _open(self, block: _Block) -> None:
        block.opened = True
        if isinstance(block, _Call):
            start = _tool_use(block.id, block.name, self._tool_names)
        elif block.kind == "thinking":
            start = {"type": b'"thinking"', "thinking": b'""', "signature": b'""'}
        else:
            start = {"type": b'"text"', "text": b'""'}
        self._emit(
            "content_block_start",
            b'{"type":"content_block_start","index":%d,"content_block":%b}' % (self._next_index, raw.obj(start)),
        )

    def _close(self) -> None:
        self._blocks.popleft().closed = True
        self._emit("content_block_stop", b'{"type":"content_block_stop","index":%d}' % self._next_index)
        self._next_index += 1

    def _conclude(self) -> None:
        """End every block."""
        while self._blocks and not self.finished:
            block = self._blocks[0]
            if isinstance(block, _Call):
                if not block.name:
                    raise raw.MalformedError("a tool call has no name")
                block.conclude()
            first = block
            self._advance()
            if self._blocks and self._blocks[0] is first:
                self._close()

    def _end(self) -> None:
        if not self._finish_reason or self._ids is None:
            self._fail("api_error", self._how_far())
            return
        try:
            self._conclude()
            usage = raw.obj(_usage(self._usage))
        except raw.MalformedError as e:
            self._fail("api_error", f"the provider's answer cannot be read: {e}")
            return
        reason, sequence = _stop_reason(
            self._finish_reason, has_calls=bool(self._calls), refused=self._refused, matched=self._matched
        )
        delta = raw.obj({"stop_reason": reason, "stop_sequence": sequence})
        self._emit("message_delta", raw.obj({"type": b'"message_delta"', "delta": delta, "usage": usage}))
        self._emit("message_stop", b'{"type":"message_stop"}')
        self._settle()

    def _how_far(self) -> str:
        if not self._chunks:
            return "the provider's stream is empty"
        return f"the provider's stream ended before its answer did (chunks: {self._chunks})"

    def _fail(self, error_type: str, reason: str, *, told: bool = False) -> None:
        self.failure = "the provider sent an error" if told else reason
        message = reason if told else reason[:1].upper() + reason[1:] + "."
        self._out.append(errors.event(error_type, message, self._request_id))
        self._settle()

    def _settle(self) -> None:
        self.finished = True
        self._blocks.clear()
        self._calls = []
        self._by_index = {}
        self._by_id = {}

    def _emit(self, name: str, data: bytes) -> None:
        self._out.append(b"event: %b\ndata: %b\n\n" % (name.encode(), data))

    def _flush(self) -> bytes:
        out, self._out = self._out, []
        return b"".join(out)


_DELTAS = {
    "thinking": (b"thinking_delta", b"thinking"),
    "text": (b"text_delta", b"text"),
    "refusal": (b"text_delta", b"text"),
    "tool_use": (b"input_json_delta", b"partial_json"),
}

_COMMENT = re.compile(rb"(?<=[\r\n]):")


def _comments(data: bytes, *, at_line_start: bool) -> Iterable[int]:
    """Where the comments in `data` begin."""
    if at_line_start and data.startswith(b":"):
        yield 0
    yield from (found.start() for found in _COMMENT.finditer(data))


def _is_whole(data: bytes) -> bool:
    """Whether an event that its sender did not terminate was not cut, either."""
    return data.strip() == b"[DONE]" or raw.is_object(data)
