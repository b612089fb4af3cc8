"""
A request for the Messages API → one for chat completions.

What the conversation has no counterpart for is refused. What is left out: the hints (``HINTS``), ``top_k``,
``temperature`` and ``top_p`` for a model that does not take them, the thinking of earlier turns, which only its own
provider can read, and Claude Code's billing header in the system prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import NoReturn

import attrs
import msgspec
from msgspec import Raw

from twisted_proxy.wire.openai import models, raw, tools
from twisted_proxy.wire.openai.models import OpenAIModel
from twisted_proxy.wire.openai.raw import ABSENT
from twisted_proxy.wire.openai.reading import Members, joined, literal, named, optional_literal, read, text
from twisted_proxy.wire.openai.refusal import Untranslatable

HINTS = frozenset(
    (
        "betas",
        "billing_policy",
        "cache_control",
        "context_management",
        "diagnostics",
        "fallback_credit_token",
        "fallbacks",
        "inference_geo",
        "service_tier",
        "speed",
        "top_k",
        "user_profile_id",
    )
)
"""Members of a request that cache, bill, place or tune it, and are left out."""

_REFUSED = {
    "compaction": "the summary would have to be signed by Anthropic",
    "container": "code runs in Anthropic's containers only",
    "mcp_servers": "Anthropic's servers would have to call them",
}

_MAX_STOP = 4

# What Claude Code writes for Anthropic's accounts, at the very beginning and another in each request: with it no
# other provider's cache would know a prompt again.
_BILLING = b'"x-anthropic-billing-header:'


@attrs.frozen(kw_only=True)
class ChatRequest:
    """A request for ``POST /v1/chat/completions``, and what has to be known to translate its answer back."""

    body: bytes
    stream: bool
    tool_names: Mapping[str, str]
    """The names of tools that had to be shortened, from the short one to the client's."""


class _Message(msgspec.Struct):
    role: str
    content: Raw = ABSENT
    clear_at: str | None = None
    output_config: Raw = ABSENT


class _Block(msgspec.Struct):
    type: str
    text: Raw = ABSENT
    source: Raw = ABSENT
    content: Raw = ABSENT
    title: Raw = ABSENT
    context: Raw = ABSENT
    citations: Raw = ABSENT
    input: Raw = ABSENT
    id: str | None = None
    name: str | None = None
    tool_use_id: str | None = None
    tool_name: str | None = None
    is_error: bool | None = None


class _Source(msgspec.Struct):
    type: str
    media_type: Raw = ABSENT
    data: Raw = ABSENT
    url: Raw = ABSENT
    content: Raw = ABSENT


class _Tool(msgspec.Struct):
    name: str
    type: str | None = None
    description: Raw = ABSENT
    input_schema: Raw = ABSENT
    strict: bool | None = None
    allowed_callers: list[str] | None = None


class _ToolChoice(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinking(msgspec.Struct):
    type: str
    budget_tokens: int | None = None


class _Format(msgspec.Struct):
    type: str
    schema: Raw = ABSENT


class _OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: _Format | None = None


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _Thread(msgspec.Struct):
    type: str


class _Citations(msgspec.Struct):
    enabled: bool | None = None


_MESSAGES = msgspec.json.Decoder(list[_Message]).decode
_BLOCKS = msgspec.json.Decoder(list[_Block]).decode
_SOURCE = msgspec.json.Decoder(_Source).decode
_TOOLS = msgspec.json.Decoder(list[_Tool]).decode
_TOOL_CHOICE = msgspec.json.Decoder(_ToolChoice).decode
_THINKING = msgspec.json.Decoder(_Thinking).decode
_OUTPUT_CONFIG = msgspec.json.Decoder(_OutputConfig).decode
_FORMAT = msgspec.json.Decoder(_Format).decode
_METADATA = msgspec.json.Decoder(_Metadata).decode
_THREAD = msgspec.json.Decoder(_Thread).decode
_CITATIONS = msgspec.json.Decoder(_Citations).decode
_INTEGER = msgspec.json.Decoder(int).decode
_NUMBER = msgspec.json.Decoder(int | float).decode
_BOOLEAN = msgspec.json.Decoder(bool).decode
_STRINGS = msgspec.json.Decoder(list[Raw]).decode


def translate_request(
    body: bytes, *, model: str, takes: OpenAIModel | None = None, ignore: Collection[str] = ()
) -> ChatRequest:
    """
    The same request for chat completions.

    :param body: for ``POST /v1/messages``, not compressed.
    :param model: the provider's name of the model.
    :param takes: what the model takes; by default, what its name says.
    :param ignore: more members of the request that may be left out.
    :raises Untranslatable: with a status of 400.
    """
    return _Translation(Members(body), model, takes or models.openai_model(model), ignore).result()


class _Translation:
    """One request."""

    def __init__(self, members: Members, model: str, takes: OpenAIModel, ignore: Collection[str]) -> None:
        self._members = members
        self._model = model
        self._takes = takes
        self._ignore = ignore
        self._names: dict[str, str] = {}

    def result(self) -> ChatRequest:
        self._check_thread()
        out = {"model": raw.quote(self._model)}
        chosen = self._tools()
        conversation = _Conversation()
        if (system := self._members.take("system")) is not None:
            conversation.system(system, "system")
        messages = self._members.require("messages", _MESSAGES)
        if not messages:
            raise Untranslatable("messages: at least one message is required.")
        conversation.add(messages)
        out["messages"] = raw.array(conversation.out)
        out["max_completion_tokens"] = raw.number(self._max_tokens())
        out |= self._sampling() | self._stop()
        stream = self._members.read("stream", _BOOLEAN) or False
        if stream:
            out |= {"stream": b"true", "stream_options": b'{"include_usage":true}'}
        out |= chosen
        out |= self._output(conversation.effort, has_tools="tools" in chosen)
        metadata = self._members.read("metadata", _METADATA)
        if metadata is not None and metadata.user_id:
            out["safety_identifier"] = raw.quote(hashlib.sha256(metadata.user_id.encode()).hexdigest())
        self._refuse_what_is_left()
        return ChatRequest(body=raw.obj(out), stream=stream, tool_names=self._names)

    def _check_thread(self) -> None:
        thread = self._members.read("thread", _THREAD)
        if thread is not None and thread.type != "create":
            # Anthropic holds the history. Clients know this code, and send the whole conversation.
            raise Untranslatable(
                f"thread: the conversation is held by Anthropic, and {named(self._model)} is served by another "
                "provider. Send the full conversation without thread.",
                details={"error_code": "thread_unsupported_request"},
            )

    def _max_tokens(self) -> int:
        wanted = self._members.require("max_tokens", _INTEGER)
        if wanted < 1:
            raise Untranslatable("max_tokens: it has to be at least 1. (0 warms Anthropic's cache.)")
        # No answer is longer than the model can make it: to ask for more is an error there, and no wish here.
        return wanted if self._takes.max_output is None else min(wanted, self._takes.max_output)

    def _sampling(self) -> dict[str, bytes]:
        found = {}
        for name in ("temperature", "top_p"):
            if (value := self._members.take(name)) is not None:
                read(_NUMBER, value, name)
                if self._takes.sampling:
                    found[name] = text(value)
        return found

    def _stop(self) -> dict[str, bytes]:
        sequences = self._members.read("stop_sequences", _STRINGS)
        if not sequences:
            return {}
        if not self._takes.stop:
            raise Untranslatable(f"stop_sequences: {named(self._model)} takes none.")
        if len(sequences) > _MAX_STOP:
            raise Untranslatable(
                f"stop_sequences: {len(sequences)} of them, and OpenAI's API takes at most {_MAX_STOP}."
            )
        return {"stop": raw.array(literal(each, "stop_sequences") for each in sequences)}

    # -- tools

    def _tools(self) -> dict[str, bytes]:
        defined = self._members.read("tools", _TOOLS) or ()
        functions = [self._tool(tool, f"tools.{index}") for index, tool in enumerate(defined)]
        chosen = self._members.read("tool_choice", _TOOL_CHOICE)
        if not functions:
            if chosen is not None and chosen.type not in ("auto", "none"):
                raise Untranslatable("tool_choice: a tool is asked for, and there are no tools.")
            return {}
        out = {"tools": raw.array(functions)}
        if chosen is not None:
            out["tool_choice"] = self._choice(chosen)
            if chosen.disable_parallel_tool_use and chosen.type != "none" and self._takes.parallel_tool_calls:
                out["parallel_tool_calls"] = b"false"
        return out

    def _tool(self, tool: _Tool, where: str) -> bytes:
        if tool.type not in (None, "custom"):
            raise Untranslatable(
                f"{where}: {named(tool.type)} is a tool of Anthropic's, and {named(self._model)} does not have it. "
                "Leave it out, or route the request to Anthropic."
            )
        if tool.allowed_callers and "direct" not in tool.allowed_callers:
            raise Untranslatable(f"{where}.allowed_callers: only Anthropic's code execution could call this tool.")
        function = {"name": raw.quote(self._tool_name(tool.name))}
        if description := optional_literal(tool.description, f"{where}.description"):
            function["description"] = description
        schema = text(tool.input_schema)
        if not schema.startswith(b"{"):
            raise Untranslatable(f"{where}.input_schema: it has to be a JSON schema.")
        function["parameters"] = schema
        if tool.strict:
            function["strict"] = b"true"
        return raw.obj({"type": b'"function"', "function": raw.obj(function)})

    def _tool_name(self, name: str) -> str:
        short = tools.openai_name(name)
        if short != name:
            self._names[short] = name
        return short

    def _choice(self, chosen: _ToolChoice) -> bytes:
        match chosen.type:
            case "auto" | "none":
                return raw.quote(chosen.type)
            case "any":
                return b'"required"'
            case "tool" if chosen.name is not None:
                name = raw.quote(tools.openai_name(chosen.name))
                return raw.obj({"type": b'"function"', "function": raw.obj({"name": name})})
            case _:
                raise Untranslatable(f"tool_choice: {named(chosen.type)} has no counterpart.")

    # -- thinking and format

    def _output(self, effort_of_turn: str | None, *, has_tools: bool) -> dict[str, bytes]:
        out = {}
        config = self._members.read("output_config", _OUTPUT_CONFIG) or _OutputConfig()
        older = self._members.take("output_format")
        wanted = config.format or (None if older is None else read(_FORMAT, older, "output_format"))
        if wanted is not None:
            schema = text(wanted.schema)
            if wanted.type != "json_schema" or not schema.startswith(b"{"):
                raise Untranslatable("output_config.format: only a json_schema has a counterpart.")
            # Anthropic keeps to a schema; of OpenAI that has to be asked.
            form = {"name": b'"response"', "schema": schema, "strict": b"true"}
            out["response_format"] = raw.obj({"type": b'"json_schema"', "json_schema": raw.obj(form)})
        asked = effort_of_turn or config.effort
        if asked is not None and asked not in models.EFFORTS:
            raise Untranslatable(f"output_config.effort: {named(asked)} has no counterpart.")
        effort = self._effort(asked)
        if has_tools and self._takes.effort_with_tools != "any":
            effort = "none" if self._takes.effort_with_tools == "none" else None
        if effort is not None:
            out["reasoning_effort"] = raw.quote(effort)
        return out

    def _effort(self, effort: str | None) -> str | None:
        thinking = self._members.read("thinking", _THINKING)
        if thinking is not None and thinking.type in ("disabled", "between_tools"):
            return self._takes.effort("none")
        if effort is None and thinking is not None and thinking.type == "enabled":
            effort = effort_of_budget(thinking.budget_tokens or 0)
        # Without either, and with "adaptive" alone, the model decides.
        return self._takes.effort(effort)

    def _refuse_what_is_left(self) -> None:
        for name in self._members.left({"model", *HINTS, *self._ignore}):
            reason = _REFUSED.get(name, "it is not known to have a counterpart in OpenAI's API")
            raise Untranslatable(
                f"{named(name)}: cannot be translated for {named(self._model)}, {reason}. Leave it out, or route the "
                "request to Anthropic."
            )


def effort_of_budget(tokens: int) -> str:
    """The degree of reasoning for a budget of thinking: below 4096 tokens low, below 16384 medium, else high."""
    return "low" if tokens < 4096 else "medium" if tokens < 16_384 else "high"


# -- the conversation


class _Assistant:
    """An assistant's turn: consecutive messages of the role are one."""

    def __init__(self) -> None:
        self.text: list[bytes] = []
        self.calls: dict[str, bytes] = {}
        self._after_text = False

    def add_text(self, literal: bytes) -> None:
        if len(literal) > 2:
            # The texts of one paragraph, cut up by citations, follow each other; others have something between them.
            if self.text and not self._after_text:
                self.text.append(b'"\\n\\n"')
            self.text.append(literal)
            self._after_text = True

    def add_other(self) -> None:
        self._after_text = False

    def message(self) -> bytes:
        out = {"role": b'"assistant"', "content": raw.concatenate(self.text)}
        if self.calls:
            if not self.text:
                out["content"] = b"null"
            out["tool_calls"] = raw.array(self.calls.values())
        return raw.obj(out)


class _User:
    """A user's turn, or what of it comes after the results of tools."""

    def __init__(self) -> None:
        self.parts: list[tuple[bytes, bytes]] = []
        """Text as a JSON string, or an image as a part; the other of the two is empty."""

    def message(self) -> bytes:
        # A turn of text alone is one string: not every compatible server takes parts.
        if all(not image for _, image in self.parts):
            content = joined(said for said, _ in self.parts)
        else:
            parts = (
                image or raw.obj({"type": b'"text"', "text": said})
                for said, image in self.parts
                if image or said != b'""'
            )
            content = raw.array(parts)
        return raw.obj({"role": b'"user"', "content": content})


class _Conversation:
    """
    Messages in the order that OpenAI's API demands: behind an assistant's message with calls, a ``tool`` message
    for each of them, and everything else after these.
    """

    def __init__(self) -> None:
        self.out: list[bytes] = []
        self.effort: str | None = None
        """What a system message of the last turn says about it."""
        self._assistant: _Assistant | None = None
        self._unanswered: dict[str, None] = {}
        self._later: list[_User | bytes] = []
        self._where = ""

    def add(self, messages: list[_Message]) -> None:
        last_user = max((index for index, each in enumerate(messages) if each.role == "user"), default=-1)
        for index, message in enumerate(messages):
            self._where = f"messages.{index}"
            match message.role:
                case "user":
                    self._end_assistant()
                    for where, block in self._blocks(message.content):
                        self._user_block(block, where)
                case "assistant":
                    self._begin_assistant()
                    for where, block in self._blocks(message.content):
                        self._assistant_block(block, where)
                case "system":
                    self._end_assistant()
                    self._system_message(message, shown=message.clear_at != "next_user_message" or index > last_user)
                case role:
                    raise Untranslatable(f"{self._where}.role: {named(role)} is not user, assistant or system.")
        if self._assistant is not None:
            raise Untranslatable(
                "messages: the last one is the assistant's, and OpenAI's models do not continue it. Let it end with "
                "a user's message."
            )
        self._settle()

    def system(self, content: Raw, where: str) -> None:
        said = self._system_text(content, where)
        if len(said) > 2:
            self.out.append(raw.obj({"role": b'"system"', "content": said}))

    def _blocks(self, content: Raw) -> Iterable[tuple[str, _Block]]:
        where = f"{self._where}.content"
        if text(content, 1) == b'"':
            yield where, _Block(type="text", text=content)
            return
        for index, block in enumerate(read(_BLOCKS, content, where)):
            yield f"{where}.{index}", block

    # -- the user's side

    def _user_block(self, block: _Block, where: str) -> None:
        if block.type == "tool_result":
            self._tool_result(block, where)
            return
        user = self._user()
        user.parts += _parts(block, where)

    def _user(self) -> _User:
        if not self._later or not isinstance(self._later[-1], _User):
            self._later.append(_User())
        user = self._later[-1]
        assert isinstance(user, _User)
        return user

    def _tool_result(self, block: _Block, where: str) -> None:
        call_id = block.tool_use_id
        if call_id not in self._unanswered:
            raise Untranslatable(
                f"{where}.tool_use_id: {named(call_id)} is no tool_use of the assistant's message before it that is "
                "still without a result."
            )
        del self._unanswered[call_id]
        short = raw.quote(tools.openai_id(call_id))
        texts: list[bytes] = []
        images: list[bytes] = []
        if text(block.content, 1) == b'"':
            texts.append(text(block.content))
        elif text(block.content) not in (b"", b"null"):
            for index, inner in enumerate(read(_BLOCKS, block.content, f"{where}.content")):
                for said, image in _parts(inner, f"{where}.content.{index}"):
                    (images if image else texts).append(image or said)
        content = joined(texts)
        if images:
            # A tool message holds text only.
            content = joined((content, b'"(The result has images: they are in the next user message.)"'))
            label = raw.concatenate((b'"From the result of tool call "', short, b'":"'))
            self._user().parts += [(label, b""), *((b"", image) for image in images)]
        if block.is_error and not content.startswith(b'"Error'):
            content = raw.concatenate((b'"Error: "', content))
        self.out.append(raw.obj({"role": b'"tool"', "tool_call_id": short, "content": content}))

    def _system_message(self, message: _Message, *, shown: bool) -> None:
        if text(message.output_config) not in (b"", b"null"):
            self.effort = read(_OUTPUT_CONFIG, message.output_config, f"{self._where}.output_config").effort
        if not shown or not text(message.content):
            return
        said = self._system_text(message.content, f"{self._where}.content")
        if len(said) > 2:
            self._later.append(raw.obj({"role": b'"system"', "content": said}))

    def _system_text(self, content: Raw, where: str) -> bytes:
        if text(content, 1) == b'"':
            return text(content)
        texts = []
        for index, block in enumerate(read(_BLOCKS, content, where)):
            if block.type != "text":
                _refuse(block, f"{where}.{index}")
            texts.append(literal(block.text, f"{where}.{index}.text"))
        return joined(each for each in texts if not each.startswith(_BILLING))

    # -- the assistant's side

    def _begin_assistant(self) -> None:
        if self._assistant is None:
            self._settle()
            self._assistant = _Assistant()
            self.effort = None

    def _end_assistant(self) -> None:
        if self._assistant is not None:
            self.out.append(self._assistant.message())
            self._unanswered = dict.fromkeys(self._assistant.calls)
            self._assistant = None

    def _settle(self) -> None:
        """The user's turn is over."""
        if self._unanswered:
            ids = ", ".join(named(call_id) for call_id in self._unanswered)
            raise Untranslatable(f"messages: the tool_use with these ids has no tool_result right after it: {ids}.")
        self.out += [each.message() if isinstance(each, _User) else each for each in self._later]
        self._later = []

    def _assistant_block(self, block: _Block, where: str) -> None:
        assert self._assistant is not None
        if block.type == "text":
            self._assistant.add_text(literal(block.text, f"{where}.text"))
            return
        self._assistant.add_other()
        if block.type in ("thinking", "redacted_thinking", "fallback"):
            return
        if block.type != "tool_use":
            _refuse(block, where)
        if not block.id or not block.name or not text(block.input).startswith(b"{"):
            raise Untranslatable(f"{where}: a tool_use needs an id, a name and an input, which is an object.")
        if block.id in self._assistant.calls:
            raise Untranslatable(f"{where}.id: {named(block.id)} is the id of an earlier tool_use, too.")
        function = {
            "name": raw.quote(tools.openai_name(block.name)),
            "arguments": tools.arguments_of(text(block.input)),
        }
        self._assistant.calls[block.id] = raw.obj(
            {
                "id": raw.quote(tools.openai_id(block.id)),
                "type": b'"function"',
                "function": raw.obj(function),
            }
        )


def _parts(block: _Block, where: str) -> Iterable[tuple[bytes, bytes]]:
    """A block of the user's, or of a tool's result, as texts and images."""
    match block.type:
        case "text":
            yield literal(block.text, f"{where}.text"), b""
        case "image":
            yield b"", _image(read(_SOURCE, block.source, f"{where}.source"), f"{where}.source")
        case "document":
            yield from _document(block, where)
        case "search_result":
            texts = (literal(each.text, where) for each in read(_BLOCKS, block.content, f"{where}.content"))
            head = (optional_literal(block.title, where), optional_literal(block.source, where))
            yield joined((*(each for each in head if each), *texts)), b""
        case "tool_reference":
            yield raw.quote(f"The tool {block.tool_name or block.name} is available."), b""
        case _:
            _refuse(block, where)


def _image(source: _Source, where: str) -> bytes:
    if source.type == "base64":
        media_type, data = literal(source.media_type, where), literal(source.data, where)
        url = raw.concatenate((b'"data:"', media_type, b'";base64,"', data))
    elif source.type == "url":
        url = literal(source.url, where)
    else:
        raise Untranslatable(f"{where}: an image of the type {named(source.type)} is not here. Send it in base64.")
    return raw.obj({"type": b'"image_url"', "image_url": raw.obj({"url": url})})


def _document(block: _Block, where: str) -> Iterable[tuple[bytes, bytes]]:
    source = read(_SOURCE, block.source, f"{where}.source")
    if text(block.citations) not in (b"", b"null") and read(_CITATIONS, block.citations, where).enabled:
        raise Untranslatable(f"{where}.citations: chat completions do not cite. Send the document without.")
    inner: list[tuple[bytes, bytes]]
    if source.type == "text":
        inner = [(literal(source.data, f"{where}.source.data"), b"")]
    elif source.type == "content" and text(source.content, 1) == b'"':
        inner = [(text(source.content), b"")]
    elif source.type == "content":
        blocks = read(_BLOCKS, source.content, f"{where}.source.content")
        inner = [part for index, each in enumerate(blocks) for part in _parts(each, f"{where}.source.content.{index}")]
    else:
        raise Untranslatable(
            f"{where}.source: a document of the type {named(source.type)} cannot be translated. Send its text."
        )
    head = [optional_literal(each, where) for each in (block.title, block.context)]
    yield from ((each, b"") for each in head if each)
    yield from inner


def _refuse(block: _Block, where: str) -> NoReturn:
    raise Untranslatable(
        f"{where}: a block of the type {named(block.type)} has no counterpart in OpenAI's API. Leave it out, or route "
        "the request to Anthropic."
    )
