"""Request bodies of coding sessions, as a client sends them turn by turn. The same on each run."""

from __future__ import annotations

import base64
import functools
import json
import pydoc_data.topics
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

Json = dict[str, Any]

_MARKER = {"type": "ephemeral", "ttl": "1h"}


@functools.cache
def code() -> str:
    """Source text, a megabyte: the standard library's."""
    library = Path(sysconfig.get_path("stdlib"))
    text = ""
    for path in sorted(library.glob("*.py")):
        text += path.read_text(encoding="utf-8", errors="replace")
        if len(text) > 1_000_000:
            break
    return text


@functools.cache
def prose() -> str:
    """English text, half a megabyte: the language's reference."""
    return "\n\n".join(pydoc_data.topics.topics.values())


def dump(value: object) -> bytes:
    """JSON as a browser's ``JSON.stringify`` writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@attrs.define
class Session:
    """
    A conversation of an agent with tools.

    Each turn adds what the model said and what its tools answered. Between turns the ``cache_control`` marker
    moves to the newest block, a mid-conversation system message turns from a list into a string, what the model said
    in two messages is merged into one, and the first system block, a checksum in it, changes.

    :ivar tool_result: characters of a tool's result, on average.
    """

    tool_result: int
    tools: int = 16
    system: int = 24_000
    seed: int = 1
    _random: random.Random = attrs.field(init=False)
    _messages: list[Json] = attrs.field(init=False, factory=list)
    _turn: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def bodies(self, turns: int) -> Iterator[bytes]:
        """The request bodies of so many turns."""
        head: Json = {"model": "claude-opus-5-20260901"}
        system = [self._prose(200), self._prose(self.system)]
        tail: Json = {
            "tools": [self._tool(number) for number in range(self.tools)],
            "metadata": {
                "user_id": dump(
                    {"device_id": self._hex(64), "account_uuid": self._uuid(), "session_id": self._uuid()}
                ).decode()
            },
            "max_tokens": 64000,
            "thinking": {"type": "adaptive"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "output_config": {"effort": "high"},
        }
        self._messages.append(
            {"role": "user", "content": [_text(self._prose(3000)), _text("Please find out why the test fails.")]}
        )
        previous = None
        for _ in range(turns):
            billing = f"x-anthropic-billing-header: cc_version=2.1.330.{self._hex(3)}; cch={self._hex(5)};"
            blocks = [_text(billing), *({**_text(text), "cache_control": _MARKER} for text in system)]
            more: Json = {"diagnostics": {"previous_message_id": previous}} if previous else {}
            yield dump({**head, "messages": self._marked(), "system": blocks, **tail, **more, "stream": True})
            previous = f"msg_{self._hex(24)}"
            self._answer()

    def _marked(self) -> list[Json]:
        """The messages, with the marker on the last block of the last one."""
        last = self._messages[-1]
        content = [_text(last["content"])] if isinstance(last["content"], str) else last["content"]
        marked = {**last, "content": [*content[:-1], {**content[-1], "cache_control": _MARKER}]}
        return [*self._messages[:-1], marked]

    def _answer(self) -> None:
        """What the model says, and what comes next."""
        self._turn += 1
        # What came in two messages a turn ago is one from now on.
        if len(self._messages) > 3 and self._messages[-3]["role"] == self._messages[-2]["role"] == "assistant":
            second = self._messages.pop(-2)
            first = self._messages[-2]
            self._messages[-2] = {**first, "content": [*first["content"], *second["content"]]}
        tool_use = f"toolu_{self._hex(24)}"
        thinking: Json = {
            "type": "thinking",
            "thinking": self._prose(self._random.randrange(100, 600)),
            "signature": base64.b64encode(self._random.randbytes(240)).decode(),
        }
        path = f"/home/somebody/src/project/module_{self._random.randrange(40)}.py"
        call: Json = {
            "type": "tool_use",
            "id": tool_use,
            "name": "Read",
            "input": {"file_path": path, "offset": self._random.randrange(900), "limit": 200},
        }
        said = _text(self._prose(self._random.randrange(60, 400)))
        if self._turn % 3:
            self._messages.append({"role": "assistant", "content": [thinking, said, call]})
        else:
            self._messages.append({"role": "assistant", "content": [thinking, said]})
            self._messages.append({"role": "assistant", "content": [call]})
        result = self._code(self._random.randrange(self.tool_result // 8, 2 * self.tool_result - self.tool_result // 8))
        self._messages.append(
            {"role": "user", "content": [{"tool_use_id": tool_use, "type": "tool_result", "content": result}]}
        )
        if self._turn % 7 == 0:
            self._messages.append({"role": "system", "content": self._prose(300)})
        if self._turn % 9 == 0:
            self._messages.append({"role": "assistant", "content": [_text(self._prose(500))]})
            self._messages.append({"role": "user", "content": self._prose(200)})

    def _tool(self, number: int) -> Json:
        properties = {
            f"{self._random.choice(('path', 'pattern', 'command', 'limit'))}_{place}": {
                "type": "string",
                "description": self._prose(80),
            }
            for place in range(4)
        }
        return {
            "name": f"Tool{number}",
            "description": self._prose(900),
            "input_schema": {"type": "object", "properties": properties, "required": list(properties)[:1]},
        }

    def _code(self, size: int) -> str:
        """A place in some file, its lines numbered."""
        start = self._random.randrange(len(code()) - size)
        lines = code()[start : start + size].split("\n")
        return "\n".join(f"{number:6}\t{line}" for number, line in enumerate(lines, self._random.randrange(900)))

    def _prose(self, size: int) -> str:
        start = self._random.randrange(len(prose()) - size)
        return prose()[start : start + size]

    def _hex(self, digits: int) -> str:
        return f"{self._random.getrandbits(4 * digits):0{digits}x}"

    def _uuid(self) -> str:
        return "-".join(map(self._hex, (8, 4, 4, 4, 12)))


def _text(text: str) -> Json:
    return {"type": "text", "text": text}
