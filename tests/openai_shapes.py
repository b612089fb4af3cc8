"""
Parts of conversations in both APIs; and whether a request is one by the official SDKs' own types, each message, block,
part and tool included.
"""

from __future__ import annotations

import json
from typing import Any

from anthropic.types import ContentBlockParam, MessageParam, TextBlockParam, ToolUnionParam
from anthropic.types.message_create_params import MessageCreateParams
from openai.types.chat import (
    ChatCompletionContentPartParam,
    ChatCompletionMessageFunctionToolCallParam,
    ChatCompletionMessageParam,
    ChatCompletionToolUnionParam,
)
from openai.types.chat.completion_create_params import CompletionCreateParams
from pydantic import TypeAdapter

_CHAT: TypeAdapter[Any] = TypeAdapter(CompletionCreateParams)
_CHAT_MESSAGE: TypeAdapter[Any] = TypeAdapter(ChatCompletionMessageParam)
_CHAT_PART: TypeAdapter[Any] = TypeAdapter(ChatCompletionContentPartParam)
_CHAT_CALL: TypeAdapter[Any] = TypeAdapter(ChatCompletionMessageFunctionToolCallParam)
_CHAT_TOOL: TypeAdapter[Any] = TypeAdapter(ChatCompletionToolUnionParam)
_MESSAGES: TypeAdapter[Any] = TypeAdapter(MessageCreateParams)
_MESSAGE: TypeAdapter[Any] = TypeAdapter(MessageParam)
_BLOCK: TypeAdapter[Any] = TypeAdapter(ContentBlockParam)
_TEXT: TypeAdapter[Any] = TypeAdapter(TextBlockParam)
_TOOL: TypeAdapter[Any] = TypeAdapter(ToolUnionParam)

JSON = dict[str, Any]


def text(said: str) -> JSON:
    return {"type": "text", "text": said}


def user(*blocks: Any) -> JSON:
    return {"role": "user", "content": list(blocks)}


def tool_use(call_id: str, name: str = "f", **values: Any) -> JSON:
    return {"type": "tool_use", "id": call_id, "name": name, "input": values}


def call(call_id: str, name: str = "f", arguments: str = "{}") -> JSON:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def chat_request(body: bytes) -> Any:
    """A request for chat completions, parsed. Pydantic checks what is ``Iterable`` no deeper than that."""
    request = json.loads(body)
    _CHAT.validate_python(request)
    for message in request["messages"]:
        _CHAT_MESSAGE.validate_python(message)
        if isinstance(message["content"], list):
            for part in message["content"]:
                _CHAT_PART.validate_python(part)
        for call in message.get("tool_calls", ()):
            _CHAT_CALL.validate_python(call)
    for tool in request.get("tools", ()):
        _CHAT_TOOL.validate_python(tool)
    return request


def messages_request(body: bytes) -> Any:
    """A request for the Messages API, parsed."""
    request = json.loads(body)
    _MESSAGES.validate_python(request)
    for message in request["messages"]:
        _MESSAGE.validate_python(message)
        for block in message["content"]:
            _BLOCK.validate_python(block)
    for block in request.get("system", ()):
        _TEXT.validate_python(block)
    for tool in request.get("tools", ()):
        _TOOL.validate_python(tool)
    return request
