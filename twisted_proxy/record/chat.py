"""
OpenAI chat completion chunks → the completion that the same request without ``stream`` would have brought.

https://platform.openai.com/docs/api-reference/chat-streaming. What a record needs of it: texts, tool calls, how it
ended, usage. Other members of a delta are kept where they are strings, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

MAX_CHOICES = 128
MAX_TOOL_CALLS = 1024

_decode = msgspec.json.Decoder().decode


class ChatFold:
    """
    Feed it the data of the stream's events. It never raises; what is no chunk is passed over.

    :ivar done: ``[DONE]`` has come.
    :ivar error: the ``error`` that came in the middle.
    """

    def __init__(self) -> None:
        self.done = False
        self.error: Mapping[str, Any] | None = None
        self._members: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}

    @property
    def started(self) -> bool:
        """Whether there was a chunk, or the end of chunks."""
        return self.done or self.error is not None or bool(self._members)

    @property
    def finished(self) -> bool:
        """Whether it has said all that it had to say."""
        choices = self._choices.values()
        return self.done or (bool(choices) and all(each.finish_reason is not None for each in choices))

    def event(self, data: bytes) -> None:
        """The data of the stream's next event."""
        if data.strip() == b"[DONE]":
            self.done = True
            return
        try:
            chunk = _decode(data)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            try:
                # Half of a surrogate pair: its other half may come in the next.
                chunk = json.loads(data)
            except (ValueError, RecursionError):
                return
        if not isinstance(chunk, dict):
            return
        if isinstance(chunk.get("error"), dict):
            self.error = chunk["error"]
        if not isinstance(chunk.get("choices"), list):
            return
        for name, value in chunk.items():
            if name not in ("choices", "object") and value is not None:
                self._members[name] = value
        self._members.setdefault("id", None)
        for choice in chunk["choices"]:
            if isinstance(choice, dict) and isinstance(index := choice.get("index", 0), int):
                if index not in self._choices and len(self._choices) >= MAX_CHOICES:
                    continue
                self._choices.setdefault(index, _Choice()).add(choice)

    def completion(self) -> dict[str, Any]:
        """The completion as far as it came."""
        choices = [{"index": index, **choice.told()} for index, choice in sorted(self._choices.items())]
        return {**self._members, "object": "chat.completion", "choices": choices}


def _joined(pieces: Sequence[str]) -> str:
    text = "".join(pieces)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Halves of surrogate pairs, that came apart between two chunks; one whose other half is missing is none.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class _Choice:
    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._strings: dict[str, list[str]] = {}
        self._calls: dict[int, _Call] = {}

    def add(self, choice: Mapping[str, Any]) -> None:
        if isinstance(reason := choice.get("finish_reason"), str):
            self.finish_reason = reason
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return
        for name, value in delta.items():
            if isinstance(value, str) and name != "role":
                self._strings.setdefault(name, []).append(value)
        calls = delta.get("tool_calls")
        for number, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict) and isinstance(index := call.get("index", number), int):
                if index not in self._calls and len(self._calls) >= MAX_TOOL_CALLS:
                    continue
                self._calls.setdefault(index, _Call()).add(call)

    def told(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None}
        message.update({name: _joined(pieces) for name, pieces in self._strings.items()})
        if self._calls:
            message["tool_calls"] = [call.told() for _, call in sorted(self._calls.items())]
        return {"message": message, "finish_reason": self.finish_reason}


class _Call:
    def __init__(self) -> None:
        self._id: str | None = None
        self._name = ""
        self._arguments: list[str] = []

    def add(self, call: Mapping[str, Any]) -> None:
        if isinstance(identifier := call.get("id"), str) and identifier:
            self._id = identifier
        function = call.get("function")
        if not isinstance(function, dict):
            return
        if isinstance(name := function.get("name"), str) and name:
            self._name = name
        if isinstance(arguments := function.get("arguments"), str):
            self._arguments.append(arguments)

    def told(self) -> dict[str, Any]:
        function = {"name": self._name, "arguments": _joined(self._arguments)}
        return {"id": self._id, "type": "function", "function": function}
