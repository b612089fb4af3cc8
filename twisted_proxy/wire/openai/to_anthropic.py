"""
A request for chat completions → one for the Messages API.

Refused is what asks for another kind of answer: ``n`` above 1, ``logprobs``, audio, ``json_object`` (there is no
JSON mode without a schema), custom tools, ``logit_bias``. Left out are the hints (``HINTS``), and what a model does
not take: sampling parameters for the newest ones, reasoning for old ones. As in Anthropic's own layer for OpenAI's
SDKs, system and developer messages all stand before the conversation, and a temperature above 1 is 1.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from typing import Any

import attrs
import msgspec
from msgspec import Raw

from twisted_proxy.wire.openai import models, raw, tools
from twisted_proxy.wire.openai.models import ClaudeModel
from twisted_proxy.wire.openai.raw import ABSENT
from twisted_proxy.wire.openai.reading import Members, literal, named, optional_literal, read, text
from twisted_proxy.wire.openai.refusal import Untranslatable

DEFAULT_MAX_TOKENS = 32_000
"""``max_tokens`` of a request that does not say; less for a model that cannot make as many."""

HINTS = frozenset(
    (
        "frequency_penalty",
        "metadata",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "seed",
        "service_tier",
        "store",
        "top_logprobs",
        "verbosity",
    )
)
"""Members of a request that tune, cache, bill or observe it, and are left out. (``top_logprobs`` says nothing
without ``logprobs``, which is refused.)"""

_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16_384, "xhigh": 24_576, "max": 31_999}
"""``budget_tokens`` for the models that are told so."""
_LEAST_BUDGET = 1024

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)
_BLANK = re.compile(rb'"(?:[ ]|\\[ntrf]|\\u00(?:20|09|0[aA]|0[dD]))*"')


@attrs.frozen(kw_only=True)
class MessagesRequest:
    """A request for ``POST /v1/messages``, and what has to be known to translate its answer back."""

    body: bytes
    stream: bool
    include_usage: bool
    """Whether the client wants a chunk with the usage at the end of the stream."""
    functions: bool
    """Whether the client knows ``function_call`` alone, not ``tool_calls``."""


class _Function(msgspec.Struct):
    name: str | None = None
    description: Raw = ABSENT
    parameters: Raw = ABSENT
    strict: bool | None = None
    arguments: Raw = ABSENT


class _Call(msgspec.Struct):
    id: str | None = None
    type: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct):
    role: str
    content: Raw = ABSENT
    refusal: Raw = ABSENT
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None
    tool_call_id: str | None = None
    name: str | None = None
    audio: Raw = ABSENT
    thinking_blocks: list[dict[str, Raw]] | None = None


class _File(msgspec.Struct):
    file_data: str | None = None
    filename: str | None = None


class _ImageUrl(msgspec.Struct):
    url: str


class _Part(msgspec.Struct):
    type: str
    text: Raw = ABSENT
    refusal: Raw = ABSENT
    image_url: _ImageUrl | None = None
    file: _File | None = None


class _Tool(msgspec.Struct):
    type: str
    function: _Function | None = None


class _Named(msgspec.Struct):
    name: str


class _Allowed(msgspec.Struct):
    mode: str
    tools: list[_Tool]


class _ToolChoice(msgspec.Struct):
    type: str | None = None
    function: _Named | None = None
    name: str | None = None
    allowed_tools: _Allowed | None = None


class _Schema(msgspec.Struct):
    schema: Raw = ABSENT


class _ResponseFormat(msgspec.Struct):
    type: str
    json_schema: _Schema | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


_MESSAGES = msgspec.json.Decoder(list[_Message]).decode
_PARTS = msgspec.json.Decoder(list[_Part]).decode
_TOOLS = msgspec.json.Decoder(list[_Tool]).decode
_FUNCTIONS = msgspec.json.Decoder(list[_Function]).decode
_TOOL_CHOICE = msgspec.json.Decoder(_ToolChoice).decode
_RESPONSE_FORMAT = msgspec.json.Decoder(_ResponseFormat).decode
_STREAM_OPTIONS = msgspec.json.Decoder(_StreamOptions).decode
_INTEGER = msgspec.json.Decoder(int).decode
_NUMBER = msgspec.json.Decoder(int | float).decode
_BOOLEAN = msgspec.json.Decoder(bool).decode
_STRING = msgspec.json.Decoder(str).decode
_STRINGS = msgspec.json.Decoder(list[Raw]).decode
_NAMES = msgspec.json.Decoder(list[str]).decode


def translate_request(
    body: bytes, *, model: str, takes: ClaudeModel | None = None, ignore: Collection[str] = ()
) -> MessagesRequest:
    """
    The same request for the Messages API.

    :param body: for ``POST /v1/chat/completions``, not compressed.
    :param model: Anthropic's name of the model.
    :param takes: what the model takes; by default, what its name says.
    :param ignore: more members of the request that may be left out.
    :raises Untranslatable: with a status of 400.
    """
    return _Translation(Members(body), model, takes or models.claude_model(model), ignore).result()


class _Translation:
    """One request."""

    def __init__(self, members: Members, model: str, takes: ClaudeModel, ignore: Collection[str]) -> None:
        self._members = members
        self._model = model
        self._takes = takes
        self._ignore = ignore
        self._knows_functions = "functions" in members

    def result(self) -> MessagesRequest:
        self._refuse_other_answers()
        conversation = _Conversation()
        conversation.add(self._members.require("messages", _MESSAGES))
        if not conversation.turns:
            raise Untranslatable("messages: at least one has to say something, beside system and developer messages.")
        max_tokens = self._max_tokens()
        out = {"model": raw.quote(self._model), "max_tokens": raw.number(max_tokens)}
        if conversation.system:
            blocks = (raw.obj({"type": b'"text"', "text": each}) for each in conversation.system)
            out["system"] = raw.array(blocks)
        out["messages"] = raw.array(turn.message() for turn in conversation.turns)
        chosen, forced = self._tools()
        out |= chosen
        thinking = self._thinking(max_tokens, forced=forced, calls_go_on=conversation.calls_go_on)
        out |= thinking
        out |= self._sampling(thinks="thinking" in thinking)
        out |= self._stop()
        out |= self._user()
        stream = self._members.read("stream", _BOOLEAN) or False
        options = self._members.read("stream_options", _STREAM_OPTIONS)
        include_usage = options is not None and options.include_usage is True
        if stream:
            out["stream"] = b"true"
        self._refuse_what_is_left()
        return MessagesRequest(
            body=raw.obj(out),
            stream=stream,
            include_usage=stream and include_usage,
            functions=self._knows_functions,
        )

    def _refuse_other_answers(self) -> None:
        if self._members.read("n", _INTEGER) not in (None, 1):
            raise Untranslatable("n: Claude gives one answer to a request. Send the request as many times.")
        if self._members.read("logprobs", _BOOLEAN):
            raise Untranslatable("logprobs: Claude does not give any.")
        if set(self._members.read("modalities", _NAMES) or ()) - {"text"}:
            raise Untranslatable("modalities: Claude answers in text only.")

    def _max_tokens(self) -> int:
        older, newer = self._members.take("max_tokens"), self._members.take("max_completion_tokens")
        value = older if newer is None else newer
        if value is None:
            return int(min(DEFAULT_MAX_TOKENS, self._takes.max_output))
        wanted = read(_INTEGER, value, "max_tokens" if newer is None else "max_completion_tokens")
        if wanted < 1:
            raise Untranslatable("max_tokens: it has to be at least 1.")
        return wanted

    def _sampling(self, *, thinks: bool) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for name in ("temperature", "top_p"):
            value = self._members.take(name)
            if value is None:
                continue
            number = read(_NUMBER, value, name)
            if number < 0:
                raise Untranslatable(f"{name}: it has to be at least 0.")
            # Both together, and either one with thinking, are refused by the API.
            if self._takes.sampling and not thinks and not found:
                found[name] = text(value) if number <= 1 else b"1"
        return found

    def _stop(self) -> dict[str, bytes]:
        value = self._members.take("stop")
        if value is None:
            return {}
        sequences = [value] if text(value, 1) == b'"' else read(_STRINGS, value, "stop")
        literals = [literal(each, "stop") for each in sequences]
        if any(_is_blank(each) for each in literals):
            raise Untranslatable("stop: Claude does not take a sequence of blanks alone.")
        return {"stop_sequences": raw.array(literals)} if literals else {}

    def _user(self) -> dict[str, bytes]:
        newer, older = self._members.take("safety_identifier"), self._members.take("user")
        value = older if newer is None else newer
        if value is None:
            return {}
        user = read(_STRING, value, "user").encode()
        return {"metadata": raw.obj({"user_id": raw.quote(hashlib.sha256(user).hexdigest())})}

    # -- tools

    def _tools(self) -> tuple[dict[str, bytes], bool]:
        """``tools`` and ``tool_choice``, and whether a call is forced."""
        functions = self._functions()
        choice = self._choice()
        serial = self._members.read("parallel_tool_calls", _BOOLEAN) is False
        if choice.allowed is not None:
            functions = {name: tool for name, tool in functions.items() if name in choice.allowed}
        if not functions:
            if choice.forced:
                raise Untranslatable("tool_choice: a tool is asked for, and there are no tools.")
            return {}, False
        out = {"tools": raw.array(functions.values())}
        chosen = dict(choice.members)
        if (serial or choice.legacy or self._knows_functions) and chosen.get("type") != b'"none"':
            chosen = {"type": b'"auto"', **chosen, "disable_parallel_tool_use": b"true"}
        if chosen:
            out["tool_choice"] = raw.obj(chosen)
        return out, choice.forced

    def _functions(self) -> dict[str, bytes]:
        found = {}
        for index, tool in enumerate(self._members.read("tools", _TOOLS) or ()):
            where = f"tools.{index}"
            if tool.type != "function" or tool.function is None:
                raise Untranslatable(f"{where}: a tool of the type {named(tool.type)} has no counterpart.")
            name, definition = _definition(tool.function, f"{where}.function")
            found[name] = definition
        for index, function in enumerate(self._members.read("functions", _FUNCTIONS) or ()):
            name, definition = _definition(function, f"functions.{index}")
            found[name] = definition
        return found

    def _choice(self) -> _Choice:
        newer, older = self._members.take("tool_choice"), self._members.take("function_call")
        value = older if newer is None else newer
        if value is None:
            return _Choice()
        legacy = newer is None
        if text(value, 1) == b'"':
            match read(_STRING, value, "tool_choice"):
                case "auto":
                    return _Choice(members={"type": b'"auto"'}, legacy=legacy)
                case "none":
                    return _Choice(members={"type": b'"none"'}, legacy=legacy)
                case "required":
                    return _Choice(members={"type": b'"any"'}, forced=True)
                case word:
                    raise Untranslatable(f"tool_choice: {named(word)} has no counterpart.")
        chosen = read(_TOOL_CHOICE, value, "tool_choice")
        name = chosen.function.name if chosen.function is not None else chosen.name if legacy else None
        if name is not None:
            return _Choice(members={"type": b'"tool"', "name": raw.quote(name)}, forced=True, legacy=legacy)
        if chosen.allowed_tools is None:
            raise Untranslatable(f"tool_choice: {named(chosen.type)} has no counterpart.")
        allowed = {tool.function.name or "" for tool in chosen.allowed_tools.tools if tool.function is not None}
        if chosen.allowed_tools.mode == "required":
            return _Choice(members={"type": b'"any"'}, forced=True, allowed=allowed)
        return _Choice(members={"type": b'"auto"'}, allowed=allowed)

    # -- thinking and format

    def _thinking(self, max_tokens: int, *, forced: bool, calls_go_on: bool) -> dict[str, bytes]:
        out = {}
        config = self._format()
        effort = self._members.read("reasoning_effort", _STRING)
        if effort is not None and effort not in models.EFFORTS:
            raise Untranslatable(f"reasoning_effort: {named(effort)} has no counterpart.")
        given = self._members.take("thinking")
        if effort is not None and self._takes.efforts:
            config["effort"] = raw.quote(self._takes.effort(effort))
        if given is not None:
            # An extension that Anthropic's own layer for OpenAI's SDKs knows as well.
            out["thinking"] = text(given)
        elif effort is not None and effort != "none" and not forced:
            # With a tool that must be called the API refuses to think.
            budget = min(_BUDGETS[effort], max_tokens - 1)
            if self._takes.efforts:
                out["thinking"] = b'{"type":"adaptive"}'
            elif self._takes.budget and budget >= _LEAST_BUDGET and not calls_go_on:
                out["thinking"] = b'{"type":"enabled","budget_tokens":%d}' % budget
        if config:
            out["output_config"] = raw.obj(config)
        return out

    def _format(self) -> dict[str, bytes]:
        wanted = self._members.read("response_format", _RESPONSE_FORMAT)
        if wanted is None or wanted.type == "text":
            return {}
        if wanted.type != "json_schema" or wanted.json_schema is None:
            raise Untranslatable(
                f"response_format: {named(wanted.type)} has no counterpart. Claude keeps to a schema: send one, as "
                "json_schema."
            )
        schema = text(wanted.json_schema.schema)
        if not schema.startswith(b"{"):
            raise Untranslatable("response_format.json_schema.schema: it has to be a JSON schema.")
        return {"format": raw.obj({"type": b'"json_schema"', "schema": schema})}

    def _refuse_what_is_left(self) -> None:
        for name in self._members.left({"model", *HINTS, *self._ignore}):
            raise Untranslatable(
                f"{named(name)}: it is not known to have a counterpart in Anthropic's API, which serves "
                f"{named(self._model)}. Leave it out."
            )


@attrs.frozen(kw_only=True)
class _Choice:
    """``tool_choice``, in Anthropic's terms."""

    members: dict[str, bytes] = attrs.field(factory=dict)
    forced: bool = False
    legacy: bool = False
    allowed: set[str] | None = None


def _definition(function: _Function, where: str) -> tuple[str, bytes]:
    if not function.name:
        raise Untranslatable(f"{where}: it has no name.")
    tool = {"name": raw.quote(function.name)}
    if description := optional_literal(function.description, f"{where}.description"):
        tool["description"] = description
    tool["input_schema"] = _schema(function.parameters, f"{where}.parameters")
    if function.strict:
        tool["strict"] = b"true"
    return function.name, raw.obj(tool)


def _schema(value: Raw, where: str) -> bytes:
    """A tool's schema as it came; an object's, where it does not say so."""
    schema = text(value)
    if schema in (b"", b"null"):
        return b'{"type":"object","properties":{}}'
    if not schema.startswith(b"{"):
        raise Untranslatable(f"{where}: it has to be a JSON schema.")
    found = raw.members(schema)
    if "type" in found:
        return schema
    return b'{"type":"object"%b%b' % (b"," if found else b"", schema[1:].lstrip())


# -- the conversation


class _Turn:
    """What one side says, until the other one does."""

    def __init__(self, role: bytes) -> None:
        self.role = role
        self.results: list[bytes] = []
        self.blocks: list[bytes] = []
        self.thinks = False
        """Whether it begins with a thinking block."""

    def message(self) -> bytes:
        # The results of tools have to come first.
        return raw.obj({"role": self.role, "content": raw.array(self.results + self.blocks)})


class _Conversation:
    """Messages as Anthropic takes them: turns of user and assistant, results of tools first in the turn after."""

    def __init__(self) -> None:
        self.system: list[bytes] = []
        """Texts, as JSON strings."""
        self.turns: list[_Turn] = []
        self._function_calls = 0
        self._last_function: str | None = None
        self._where = ""

    @property
    def calls_go_on(self) -> bool:
        """Whether the model is to go on behind a call of a tool that it did not begin with thinking."""
        return len(self.turns) > 1 and bool(self.turns[-1].results) and not self.turns[-2].thinks

    def add(self, messages: list[_Message]) -> None:
        for index, message in enumerate(messages):
            self._where = f"messages.{index}"
            match message.role:
                case "system" | "developer":
                    self.system += self._texts(message.content)
                case "user":
                    self._add(b'"user"', list(self._user(message.content)))
                case "assistant":
                    self._add(b'"assistant"', list(self._assistant(message)))
                    if message.thinking_blocks and len(self.turns[-1].blocks) >= len(message.thinking_blocks):
                        self.turns[-1].thinks = True
                case "tool":
                    if not message.tool_call_id:
                        raise Untranslatable(f"{self._where}.tool_call_id: a tool's message needs it.")
                    self._result(tools.claude_id(message.tool_call_id), message.content)
                case "function":
                    if self._last_function is None:
                        raise Untranslatable(f"{self._where}: there is no function_call before it.")
                    self._result(self._last_function, message.content)
                    self._last_function = None
                case role:
                    raise Untranslatable(f"{self._where}.role: {named(role)} is not known.")

    def _turn(self, role: bytes) -> _Turn:
        if not self.turns or self.turns[-1].role != role:
            self.turns.append(_Turn(role))
        return self.turns[-1]

    def _add(self, role: bytes, blocks: list[bytes]) -> None:
        # What says nothing is not taken by the API, in a conversation.
        if blocks:
            self._turn(role).blocks += blocks

    def _result(self, call_id: str, content: Raw) -> None:
        said = raw.concatenate(self._texts(content), b"\\n\\n")
        result = {"type": b'"tool_result"', "tool_use_id": raw.quote(call_id), "content": said}
        self._turn(b'"user"').results.append(raw.obj(result))

    def _texts(self, content: Raw) -> list[bytes]:
        """The texts of a content of texts alone, those that say something."""
        found = []
        for part, where in self._parts(content):
            if part.type != "text":
                raise Untranslatable(f"{where}: only text has a counterpart here, not {named(part.type)}.")
            found.append(literal(part.text, f"{where}.text"))
        return [each for each in found if not _is_blank(each)]

    def _parts(self, content: Raw) -> Iterable[tuple[_Part, str]]:
        where = f"{self._where}.content"
        if text(content, 1) == b'"':
            yield _Part(type="text", text=content), where
        elif text(content, 5) not in (b"", b"null"):
            for index, part in enumerate(read(_PARTS, content, where)):
                yield part, f"{where}.{index}"

    def _user(self, content: Raw) -> Iterable[bytes]:
        for part, where in self._parts(content):
            match part.type:
                case "text":
                    yield from _text_block(literal(part.text, f"{where}.text"))
                case "image_url" if part.image_url is not None:
                    yield raw.obj({"type": b'"image"', "source": _source(part.image_url.url, where)})
                case "file" if part.file is not None:
                    yield _document(part.file, where)
                case kind:
                    raise Untranslatable(f"{where}: a part of the type {named(kind)} has no counterpart.")

    def _assistant(self, message: _Message) -> Iterable[bytes]:
        if text(message.audio, 5) not in (b"", b"null"):
            raise Untranslatable(f"{self._where}.audio: Claude did not say that, and cannot hear it.")
        for block in message.thinking_blocks or ():
            # What answers here give beside reasoning_content, and what Claude needs to think on.
            yield raw.obj({name: text(value) for name, value in block.items() if name in _OF_THINKING})
        for part, where in self._parts(message.content):
            said = part.refusal if part.type == "refusal" else part.text
            if part.type not in ("text", "refusal"):
                raise Untranslatable(f"{where}: a part of the type {named(part.type)} has no counterpart.")
            yield from _text_block(literal(said, where))
        if refusal := optional_literal(message.refusal, f"{self._where}.refusal"):
            yield from _text_block(refusal)
        for index, call in enumerate(message.tool_calls or ()):
            where = f"{self._where}.tool_calls.{index}"
            if call.function is None or not call.id:
                raise Untranslatable(f"{where}: only a call of a function, with an id, has a counterpart.")
            yield self._tool_use(tools.claude_id(call.id), call.function, where)
        if message.function_call is not None:
            self._last_function = f"call_{self._function_calls}"
            self._function_calls += 1
            yield self._tool_use(self._last_function, message.function_call, f"{self._where}.function_call")

    def _tool_use(self, call_id: str, function: _Function, where: str) -> bytes:
        if not function.name:
            raise Untranslatable(f"{where}: the function has no name.")
        arguments = optional_literal(function.arguments, f"{where}.arguments") or b'""'
        return raw.obj(
            {
                "type": b'"tool_use"',
                "id": raw.quote(call_id),
                "name": raw.quote(function.name),
                "input": tools.input_of(raw.string(arguments)),
            }
        )


_OF_THINKING = frozenset(("type", "thinking", "signature", "data"))


def _is_blank(said: bytes) -> bool:
    return _BLANK.fullmatch(said) is not None


def _text_block(said: bytes) -> Iterable[bytes]:
    if not _is_blank(said):
        yield raw.obj({"type": b'"text"', "text": said})


def _source(url: str, where: str) -> bytes:
    """An image's source."""
    if url.startswith(("https://", "http://")):
        return raw.obj({"type": b'"url"', "url": raw.quote(url)})
    found = _DATA_URL.match(url)
    if found is None:
        raise Untranslatable(f"{where}.image_url.url: neither an http(s) URL nor a data URL in base64.")
    media_type = found[1].lower().replace("image/jpg", "image/jpeg")
    return _base64(media_type, url[found.end() :])


def _base64(media_type: str, data: str) -> bytes:
    return raw.obj({"type": b'"base64"', "media_type": raw.quote(media_type), "data": raw.quote(data)})


def _document(file: _File, where: str) -> bytes:
    data = file.file_data or ""
    found = _DATA_URL.match(data)
    if found is None or found[1].lower() != "application/pdf":
        raise Untranslatable(f"{where}.file: only a PDF in file_data, as a data URL in base64, has a counterpart.")
    document: dict[str, Any] = {"type": b'"document"', "source": _base64("application/pdf", data[found.end() :])}
    if file.filename:
        document["title"] = raw.quote(file.filename)
    return raw.obj(document)
