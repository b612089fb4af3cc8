"""
``count_tokens`` without a tokenizer.

A token is taken for 3.5 characters of ASCII, or 3 bytes of anything else (one CJK character, one and a half Cyrillic
ones), which is somewhat too many for prose and about right for code and JSON: a client that compacts a conversation
at a limit should rather do so early. An image is 1600 tokens, about the most that one takes; a page of a PDF cannot
be seen, and its bytes are counted instead, 50 to a token. A message has 4 tokens of its own, a tool 12.
"""

from __future__ import annotations

import math

import msgspec
from msgspec import Raw

from twisted_proxy.wire.openai import raw
from twisted_proxy.wire.openai.reading import text, top_level

_ASCII = bytes(range(128))
_ASCII_TO_A_TOKEN = 3.5
_OTHER_BYTES_TO_A_TOKEN = 3.0
_IMAGE = 1600
_BASE64_TO_A_TOKEN = 50 * 4 / 3
_MESSAGE = 4
_TOOL = 12


class _Source(msgspec.Struct):
    type: str = ""
    media_type: str = ""
    data: Raw = raw.ABSENT
    content: Raw = raw.ABSENT


class _Block(msgspec.Struct):
    type: str = ""
    text: Raw = raw.ABSENT
    source: Raw = raw.ABSENT
    content: Raw = raw.ABSENT
    name: Raw = raw.ABSENT
    input: Raw = raw.ABSENT


class _Message(msgspec.Struct):
    content: Raw = raw.ABSENT


class _Tool(msgspec.Struct):
    name: Raw = raw.ABSENT
    description: Raw = raw.ABSENT
    input_schema: Raw = raw.ABSENT


_MESSAGES = msgspec.json.Decoder(list[_Message]).decode
_TOOLS = msgspec.json.Decoder(list[_Tool]).decode
_BLOCKS = msgspec.json.Decoder(list[Raw]).decode
_BLOCK = msgspec.json.Decoder(_Block).decode
_SOURCE = msgspec.json.Decoder(_Source).decode


def count_tokens(body: bytes) -> bytes:
    """
    ``{"input_tokens": n}`` for a request to ``POST /v1/messages/count_tokens`` or ``POST /v1/messages``.

    Whatever has another shape than it should is counted by its length. What is thought in earlier turns counts
    nothing: another provider's model does not get to see it.

    :raises Untranslatable: if the body is no JSON object.
    """
    members = top_level(body)
    tokens = 3.0
    if (system := members.get("system")) is not None:
        tokens += _content(system)
    if (messages := members.get("messages")) is not None:
        try:
            tokens += sum(_MESSAGE + _content(message.content) for message in _MESSAGES(messages))
        except raw.REFUSED:
            tokens += _plain(messages)
    if (tools := members.get("tools")) is not None:
        try:
            tokens += sum(
                _TOOL + _plain(tool.name) + _plain(tool.description) + _plain(tool.input_schema)
                for tool in _TOOLS(tools)
            )
        except raw.REFUSED:
            tokens += _plain(tools)
    return b'{"input_tokens":%d}' % math.ceil(tokens)


def _content(content: Raw) -> float:
    if text(content, 1) != b"[":
        return _plain(content)
    return sum(_block(item) for item in _BLOCKS(content))


def _block(item: Raw) -> float:
    try:
        block = _BLOCK(item)
        match block.type:
            case "text":
                return _plain(block.text)
            case "image":
                return _IMAGE
            case "document":
                return _document(_SOURCE(block.source))
            case "tool_use":
                return _MESSAGE + _plain(block.name) + _plain(block.input)
            case "tool_result":
                return _MESSAGE + _content(block.content)
            case "thinking" | "redacted_thinking":
                return 0
    except raw.REFUSED:
        pass
    return _plain(item)


def _document(source: _Source) -> float:
    if source.type == "base64":
        return _IMAGE + len(memoryview(source.data)) / _BASE64_TO_A_TOKEN
    if source.type == "content":
        return _content(source.content)
    return _plain(source.data) if source.type == "text" else _IMAGE


def _plain(value: Raw) -> float:
    r"""JSON text by its length; an escape as ``\n`` is one character, ``\u4e2d`` one of another script."""
    said = text(value)
    if not said or said == b"null":
        return 0
    escapes = said.count(b"\\u")
    ascii_only = said.isascii()
    others = 0 if ascii_only else len(said.translate(None, _ASCII))
    plain = len(said) - others - said.count(b"\\") - 5 * escapes
    return max(plain, 0) / _ASCII_TO_A_TOKEN + others / _OTHER_BYTES_TO_A_TOKEN + escapes
