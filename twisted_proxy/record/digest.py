"""
What a request and an answer say, as far as a record has a place for it.

Messages API of Anthropic and chat completions of OpenAI; of everything else, and of what cannot be read, what is there
to be found. Bodies come without content codings (`coding.decode`). Nothing here raises, whatever the bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import msgspec
from msgspec import Raw

from ..wire import claude_code, errors, sse
from ..wire.body import MAX_MODEL_LENGTH
from ..wire.claude_code import Origin
from ..wire.headers import is_event_stream
from ..wire.message import BadToolInput, Complete, ErrorEvent, MessageFold
from .chat import ChatFold
from .exchange import PIECE
from .pricing import Prices
from .usage import Charge, read_usage

MAX_MESSAGE_ID = 256
MAX_ERROR_MESSAGE = 2000
"""Characters that are kept of an error's message."""
MAX_USAGE = 64 * 1024
"""Bytes of a ``usage`` that is kept as it stands."""

_NOT_PRINTABLE_ASCII = re.compile(r"[^ -~]+")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
# What msgspec raises on what it does not take.
_REFUSED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
_ABSENT = Raw()
_OBJECT = re.compile(rb"[ \t\n\r]*+\{")

# Requests


@attrs.frozen(kw_only=True)
class RequestDigest:
    """What a request says; of a body that is no JSON object, nothing."""

    model: str | None = None
    """Printable ASCII, at most 256 characters."""
    stream: bool | None = None
    """``None`` where the body is nothing that could ask for a stream."""
    has_thinking: bool = False
    origin: Origin = attrs.field(factory=Origin)
    """What only the body says; to be merged with what the headers do."""
    messages: tuple[bytes, ...] = ()
    """Each as the JSON that it is in the body."""
    thread: str | None = None
    """``create`` or ``continue``."""
    previous_message_id: str | None = None
    """Of the answer behind which a thread is continued."""


class _Request(msgspec.Struct):
    model: Raw = _ABSENT
    stream: Raw = _ABSENT
    thinking: Raw = _ABSENT
    metadata: Raw = _ABSENT
    messages: Raw = _ABSENT
    thread: Raw = _ABSENT


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_items = msgspec.json.Decoder(list[Raw]).decode
_decode = msgspec.json.Decoder().decode


def read_request(body: bytes, content_type: str | None = None) -> RequestDigest:
    """
    What a request says.

    :param content_type: where it names something other than JSON, ``body`` is looked at all the same if it begins like
        an object: clients forget the field.
    """
    if _OBJECT.match(body) is None or (content_type or "").lower().lstrip().startswith("multipart/"):
        return RequestDigest()
    try:
        read = _decode_request(body)
    except _REFUSED:
        return RequestDigest()
    thread = _value(read.thread)
    thinking = _value(read.thinking)
    try:
        messages = tuple([bytes(each) for each in _decode_items(read.messages)])
    except _REFUSED:
        messages = ()
    return RequestDigest(
        model=_word(_value(read.model), MAX_MODEL_LENGTH),
        stream=_value(read.stream) is True,
        has_thinking=isinstance(thinking, dict) and thinking.get("type") != "disabled",
        origin=claude_code.from_metadata(read.metadata),
        messages=messages,
        thread=_word(_member(thread, "type"), 64),
        previous_message_id=_word(_member(thread, "previous_message_id"), MAX_MESSAGE_ID),
    )


# Answers


@attrs.frozen(kw_only=True)
class AnswerDigest:
    """What an answer says."""

    message: bytes | None = None
    """The message that a stream tells, JSON; as far as it came. ``None`` where the answer is no such stream."""
    message_id: str | None = None
    model: str | None = None
    """That answered; the one that the last of it came from."""
    stop_reason: str | None = None
    """Also OpenAI's ``finish_reason``, in its words."""
    usage: Mapping[str, Any] | None = None
    """As it stands; what JSON or text columns refuse is replaced: integers of more than 64 bits by their digits, NUL
    and lone surrogates in strings by U+FFFD, infinite numbers by ``None``."""
    charges: tuple[Charge, ...] = ()
    """What is to be paid, for `pricing`; empty where the answer tells of no tokens."""
    complete: bool = True
    """``False``: the body shows that it ended early, so that usage is a lower bound."""
    error_type: str | None = None
    error_message: str | None = None

    @property
    def input_tokens(self) -> int | None:
        """Without what the cache gave or took. These five: over all iterations; ``None`` if the answer tells none."""
        return self._total("input_tokens")

    @property
    def output_tokens(self) -> int | None:
        return self._total("output_tokens")

    @property
    def cache_read_tokens(self) -> int | None:
        return self._total("cache_read_tokens")

    @property
    def cache_write_5m_tokens(self) -> int | None:
        return self._total("cache_write_5m_tokens")

    @property
    def cache_write_1h_tokens(self) -> int | None:
        return self._total("cache_write_1h_tokens")

    def _total(self, name: str) -> int | None:
        return sum([getattr(charge, name) for charge in self.charges]) if self.charges else None


class _Answer(msgspec.Struct):
    id: Raw = _ABSENT
    type: Raw = _ABSENT
    model: Raw = _ABSENT
    stop_reason: Raw = _ABSENT
    usage: Raw = _ABSENT
    error: Raw = _ABSENT
    choices: Raw = _ABSENT
    service_tier: Raw = _ABSENT


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_choices = msgspec.json.Decoder(list[_Choice]).decode


def read_answer(data: bytes, content_type: str | None, status: int | None, path: str) -> AnswerDigest:
    """
    What an answer says.

    :param data: its body; of one that was cut, as far as it came.
    :param path: of the request.
    """
    if is_event_stream((content_type or "").encode("latin-1", "replace")):
        return _read_stream(data, path)
    digest = _read_message(data) if _OBJECT.match(data) else None
    if digest is None:
        # Cut JSON, or none at all.
        digest = AnswerDigest(complete=not (data and _is_json(content_type)))
    if status is not None and status >= 400 and digest.error_type is None:
        message = digest.error_message or _clean(data[:MAX_ERROR_MESSAGE].decode("utf-8", "replace").strip())
        digest = attrs.evolve(digest, error_type=errors.type_of_status(status), error_message=message or None)
    return digest


def _is_json(content_type: str | None) -> bool:
    kind = (content_type or "").partition(";")[0].strip().lower()
    return kind == "application/json"


def _read_message(data: bytes) -> AnswerDigest | None:
    """``None``: it is no JSON object."""
    members = _answer_members(data)
    if members is None:
        return None
    choices = members.pop("choices", None)
    finish_reason = None
    if isinstance(choices, Raw):
        try:
            finish_reason = next((each.finish_reason for each in _decode_choices(choices)), None)
        except _REFUSED:
            choices = _value(choices)
    if isinstance(choices, list) and choices:
        finish_reason = _member(choices[0], "finish_reason")
    return _digest(members, finish_reason=finish_reason)


def _answer_members(data: bytes) -> dict[str, Any] | None:
    """The members of an answer that are of interest; ``choices`` may still be `Raw`."""
    try:
        read = _decode_answer(data)
    except _REFUSED:
        return _lenient_object(data)
    members: dict[str, Any] = {
        name: _value(raw) for name in _Answer.__struct_fields__ if name != "choices" and (raw := getattr(read, name))
    }
    if read.choices:
        members["choices"] = read.choices
    return members


def _digest(members: Mapping[str, Any], *, finish_reason: object = None) -> AnswerDigest:
    error = members.get("error")
    error_type, error_message = _error(error) if error is not None else (None, None)
    model = _word(members.get("model"), MAX_MODEL_LENGTH)
    usage = members.get("usage")
    charges: tuple[Charge, ...] = ()
    if isinstance(usage, dict):
        charges = read_usage(usage, model, service_tier=members.get("service_tier"))
    return AnswerDigest(
        message_id=_word(members.get("id"), MAX_MESSAGE_ID),
        model=model,
        stop_reason=_word(members.get("stop_reason") or finish_reason, 64),
        usage=_usage(usage),
        charges=charges,
        error_type=error_type,
        error_message=error_message,
    )


def _error(error: object) -> tuple[str | None, str | None]:
    if isinstance(error, str):
        return "api_error", _clean(error[:MAX_ERROR_MESSAGE])
    message = _member(error, "message")
    return (
        # OpenAI's ``type`` may be null, its ``code`` a number.
        _word(_member(error, "type") or _member(error, "code"), 128) or "api_error",
        _clean(message[:MAX_ERROR_MESSAGE]) if isinstance(message, str) else None,
    )


def _read_stream(data: bytes, path: str) -> AnswerDigest:
    parser = sse.Parser()
    fold, chat = MessageFold(), ChatFold()
    started = None
    whole = True
    view = memoryview(data)
    for start in range(0, len(data), PIECE):
        try:
            events = parser.feed(bytes(view[start : start + PIECE]))
        except sse.EventTooLargeError:
            whole = False
            break
        for event in events:
            if event.event:
                fold.event(event)
                if event.event == b"message_start" and started is None:
                    started = event.data
            elif started is None:
                chat.event(event.data)
    outcome = fold.result()
    if started is None and not isinstance(outcome, ErrorEvent):
        return _read_chat(chat, path, whole)
    message = outcome.message if isinstance(outcome, Complete) else fold.partial()
    digest = AnswerDigest() if message is None else _read_folded(message, started)
    if isinstance(outcome, ErrorEvent):
        digest = attrs.evolve(
            digest,
            error_type=_word(outcome.error_type, 128) or "api_error",
            error_message=_clean(outcome.message[:MAX_ERROR_MESSAGE]),
        )
    # Of a message whose tool input is no JSON nothing is missing.
    return attrs.evolve(digest, message=message, complete=isinstance(outcome, Complete | BadToolInput))


_COUNTS_OF_THE_START = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def _read_folded(message: bytes, started: bytes | None) -> AnswerDigest:
    members = _answer_members(message) or {}
    members.pop("choices", None)
    usage = members.get("usage")
    digest = _digest(members)
    if not isinstance(usage, dict):
        return digest
    # A zero that comes late says nothing new: Claude Code, too, goes by the counts of the start then.
    of_start = _member(_member(_lenient_object(started or b"") or {}, "message"), "usage")
    missing = {name: _member(of_start, name) for name in _COUNTS_OF_THE_START if not usage.get(name)}
    if any(missing.values()):
        usage = {**usage, **{name: count for name, count in missing.items() if count}}
        return attrs.evolve(digest, charges=read_usage(usage, digest.model, service_tier=members.get("service_tier")))
    return digest


def _read_chat(chat: ChatFold, path: str, whole: bool) -> AnswerDigest:
    if not chat.started:
        # Events of another kind, which nothing here knows the end of; or a message that did not begin.
        return AnswerDigest(complete=whole and not path.rstrip("/").endswith(("/messages", "/completions")))
    completion = chat.completion()
    choices = completion.pop("choices")
    digest = _digest(completion, finish_reason=choices[0]["finish_reason"] if choices else None)
    message = _plain({**completion, "choices": choices}) if choices else None
    error_type, error_message = _error(chat.error) if chat.error is not None else (None, None)
    return attrs.evolve(
        digest,
        message=None if message is None else json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode(),
        complete=whole and chat.error is None and chat.finished,
        error_type=error_type,
        error_message=error_message,
    )


# Fields of `Exchange`, by name


def request_fields(origin: Origin, request: RequestDigest) -> dict[str, Any]:
    """
    What a request fills.

    :param origin: what the headers say.
    """
    merged = origin.merge(request.origin)
    return {
        "model": request.model,
        "stream": request.stream,
        **origin_fields(merged),
    }


def origin_fields(origin: Origin) -> dict[str, Any]:
    """What is known of who asks."""
    return {name: getattr(origin, name) for name in _OF_ORIGIN}


def answer_fields(answer: AnswerDigest, prices: Prices, *, at: int, model: str | None) -> dict[str, Any]:
    """
    What an answer fills.

    :param at: the request's time, microseconds since the Unix epoch.
    :param model: that was asked for upstream, to price an answer which names none.
    """
    cost = prices.cost(answer.charges, at, model=model)
    return {
        **{name: getattr(answer, name) for name in _OF_ANSWER},
        "cost_nanousd": None if cost is None else cost.nanousd,
        "cost_is_partial": cost is not None and (cost.partial or not answer.complete),
    }


_OF_ORIGIN = ("session", "prompt", "agent", "parent_agent", "request_class", "agent_type")
_OF_ANSWER = (
    "message_id",
    "stop_reason",
    "usage",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "error_type",
    "error_message",
)

# What a search finds

MAX_TEXT = 256 * 1024
"""Bytes in UTF-8 that a search looks through of one exchange."""

# Members whose strings nobody looks for: identifiers, and what is encoded or encrypted.
_OPAQUE = frozenset(
    {
        "cache_control",
        "data",
        "encrypted_content",
        "encrypted_index",
        "encrypted_stdout",
        "file_data",
        "file_id",
        "id",
        "media_type",
        "role",
        "signature",
        "tool_call_id",
        "tool_use_id",
        "type",
    }
)
_LONG_WORD = 256
_ENCODED = re.compile(rf"data:[\w.+-]+/[\w.+-]+;base64,\S*|[A-Za-z0-9+/_-]{{{_LONG_WORD},}}+={{0,2}}")


def text_of_messages(messages: Sequence[bytes], *, limit: int = MAX_TEXT) -> str:
    """
    What a search should find in messages: texts, thinking, names and inputs of tools, results of tools.

    No encoded data. At most ``limit`` bytes in UTF-8, by default 256 KB; of more, the last messages. NUL and lone
    surrogates are replaced by U+FFFD.
    """
    texts: list[str] = []
    room = limit
    for message in reversed(messages):
        if room <= 0:
            break
        text = _text(_lenient(message), room)
        texts.append(text)
        room -= len(text.encode()) + 1
    return _cut("\n".join([text for text in reversed(texts) if text]), limit)


def text_of_answer(answer: bytes, *, limit: int = MAX_TEXT) -> str:
    """
    The same of a message, a completion or an error, as JSON: of a stream, what `AnswerDigest.message` has.

    Nothing of what is no JSON object.
    """
    value = _lenient_object(answer)
    if value is None:
        return ""
    told = [value[name] for name in ("content", "choices", "error") if name in value]
    return _cut(_text(told, limit), limit)


def text_of_exchange(messages: Sequence[bytes], answer: bytes | None) -> str:
    """Both together, 256 KB in all: the answer, and as much of the messages as there is room for."""
    said = "" if answer is None else text_of_answer(answer)
    asked = text_of_messages(messages, limit=MAX_TEXT - len(said.encode()) - 1)
    return "\n".join([text for text in (asked, said) if text])


def _text(value: object, limit: int) -> str:
    """At most ``limit`` characters."""
    texts: list[str] = []
    room = limit
    # Not recursive: depth is the client's to choose. The last says whether it stands in a tool's input, where a name
    # like "data" means what the tool wants.
    pending: list[tuple[str, object, bool]] = [("", value, False)]
    while pending and room > 0:
        name, item, free = pending.pop()
        if isinstance(item, str):
            if name == "arguments" and item[:1] == "{" and not free:
                arguments = _lenient(item.encode("utf-8", "surrogatepass"))
                if isinstance(arguments, dict):
                    pending.append((name, arguments, True))
                    continue
            # Some of it may turn out to be encoded data.
            text = _without_encoded(_clean(item[: 4 * room])).strip()[:room]
            if text:
                texts.append(text)
                room -= len(text) + 1
        elif isinstance(item, list):
            pending += [(name, each, free) for each in reversed(item)]
        elif isinstance(item, dict):
            pending += [
                (key, each, free or key == "input")
                for key, each in reversed(item.items())
                if free or key not in _OPAQUE
            ]
        elif isinstance(item, int | float) and not isinstance(item, bool) and abs(item) < _LARGE:
            texts.append(str(item))
            room -= len(texts[-1]) + 1
    return "\n".join(texts)


def _without_encoded(text: str) -> str:
    # Most texts have no word of that length, and to see that is much cheaper.
    if ";base64," in text or (len(text) >= _LONG_WORD and max(map(len, text.split()), default=0) >= _LONG_WORD):
        return _ENCODED.sub(" ", text)
    return text


_LARGE = 1e15


def _cut(text: str, limit: int) -> str:
    if len(text) * 4 <= limit:
        return text
    return text.encode()[:limit].decode("utf-8", "ignore")


# Values


def _lenient(data: bytes) -> object:
    """JSON as far as anybody could have meant it; ``None`` for what is none."""
    try:
        return _decode(data)
    except _REFUSED:
        pass
    try:
        # Takes lone surrogates, NaN, and numbers of any size.
        return json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _lenient_object(data: bytes) -> dict[str, Any] | None:
    value = _lenient(data)
    return value if isinstance(value, dict) else None


def _value(raw: Raw) -> Any:
    return _lenient(bytes(raw)) if raw else None


def _member(value: object, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _word(value: object, limit: int) -> str | None:
    """A string that is a name, fit for columns and logs."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if abs(value) < _LARGE else None
    if not isinstance(value, str):
        return None
    return _NOT_PRINTABLE_ASCII.sub("", value[: 4 * limit])[:limit] or None


def _clean(text: str) -> str:
    if text.isascii() and "\0" not in text:
        return text
    return _NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", text)


def _usage(value: object) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    plain = _plain(value)
    try:
        size = len(json.dumps(plain))
    except (ValueError, RecursionError):
        return None
    return plain if size <= MAX_USAGE else None


_MAX_DEPTH = 64


def _plain(value: Any, depth: int = 0) -> Any:
    """As every JSON column takes it."""
    if depth > _MAX_DEPTH:
        return None
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, dict):
        return {_clean(name): _plain(each, depth + 1) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each, depth + 1) for each in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        # More digits than Python will write are nobody's count.
        return value if -(2**63) <= value < 2**63 else (str(value) if value.bit_length() < 4096 else None)
    return value if math.isfinite(value) else None
