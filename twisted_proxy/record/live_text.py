"""What a stream says so far, for those who watch: texts that grow, within bounds."""

from __future__ import annotations

import attrs
import msgspec

from ..wire import sse

MOST_EVENT = 1024 * 1024
"""Bytes of one event."""
MOST_KEPT = 64 * 1024
"""Characters that are kept of a block's text: of a longer one, its end."""
MOST_BLOCKS = 200
"""Blocks that are kept of an answer: of more, the last ones."""

CHARACTERS_PER_TOKEN = 4
"""Of English and of code, about."""

_REFUSED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


@attrs.define
class Block:
    """
    A block of an answer, as far as it is here.

    :ivar kind: ``text``, ``thinking``, ``tool_use``, …
    :ivar start: how many characters are missing before `text`.
    """

    index: int
    kind: str
    name: str | None
    text: str = ""
    start: int = 0
    _pieces: list[str] = attrs.Factory(list)

    @property
    def end(self) -> int:
        """How many characters it has in all."""
        return self.start + len(self.text)

    def add(self, piece: str) -> None:
        self._pieces.append(piece)

    def settle(self) -> bool:
        """Put together what was added. False: nothing was."""
        if not self._pieces:
            return False
        text = self.text + "".join(self._pieces)
        self._pieces.clear()
        cut = max(0, len(text) - MOST_KEPT)
        self.text = text[cut:]
        self.start += cut
        return True


class _Inside(msgspec.Struct):
    type: str = ""
    name: str | None = None
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    function: _Function | None = None


class _ChatDelta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _ChatDelta | None = None


class _Usage(msgspec.Struct):
    output_tokens: int | None = None


class _Data(msgspec.Struct):
    type: str = ""
    index: int | None = None
    delta: _Inside | None = None
    content_block: _Inside | None = None
    usage: _Usage | None = None
    choices: list[_Choice] | None = None


_decode = msgspec.json.Decoder(_Data).decode


class LiveText:
    """
    What a stream says so far: Anthropic's events, or chunks of a chat completion.

    :param from_start: whether the first byte that comes is the stream's first.
    :ivar partial: something before or between is missing.
    :ivar output_tokens: as the stream tells them, else ``None``.
    """

    def __init__(self, *, from_start: bool) -> None:
        self.partial = not from_start
        self.output_tokens: int | None = None
        self._parser = sse.Parser(max_event_bytes=MOST_EVENT)
        self._blocks: dict[int, Block] = {}
        self._characters = 0
        # Until the next blank line: what comes before it is half of an event.
        self._joining = not from_start
        self._tail = b""

    @property
    def blocks(self) -> list[Block]:
        return list(self._blocks.values())

    @property
    def tokens(self) -> int:
        """Output tokens: told, or estimated."""
        return self.output_tokens or -(-self._characters // CHARACTERS_PER_TOKEN)

    def miss(self) -> None:
        """What comes next does not follow what came last."""
        self.partial = self._joining = True
        self._tail = b""
        self._parser = sse.Parser(max_event_bytes=MOST_EVENT)

    def feed(self, data: bytes) -> None:
        """The stream's next bytes."""
        if self._joining:
            data = self._tail + data
            found = _blank_line(data)
            if found is None:
                self._tail = data[-3:]
                return
            self._joining, self._tail = False, b""
            data = data[found:]
        try:
            events = self._parser.feed(data)
        except sse.EventTooLargeError:
            self.miss()
            return
        for event in events:
            self._take(event.data)
        for block in self._blocks.values():
            block.settle()
        while len(self._blocks) > MOST_BLOCKS:
            del self._blocks[next(iter(self._blocks))]
            self.partial = True

    def _take(self, data: bytes) -> None:
        try:
            told = _decode(data)
        except _REFUSED:
            return  # not for us; whoever folds it for good says what is wrong with it
        if told.choices is not None:
            for choice in told.choices:
                if choice.index == 0 and choice.delta is not None:
                    self._take_chat(choice.delta)
        elif told.type == "content_block_start" and told.content_block is not None and told.index is not None:
            inside = told.content_block
            self._blocks[told.index] = Block(told.index, inside.type or "text", inside.name)
            self._add(told.index, inside.type, inside.text or inside.thinking)
        elif told.type == "content_block_delta" and told.delta is not None and told.index is not None:
            inside = told.delta
            kind = _KINDS.get(inside.type)
            if kind is not None:
                self._add(told.index, kind, inside.text or inside.thinking or inside.partial_json)
        elif told.type == "message_delta" and told.usage is not None and told.usage.output_tokens is not None:
            self.output_tokens = told.usage.output_tokens

    def _take_chat(self, delta: _ChatDelta) -> None:
        self._add(_CHAT_THINKING, "thinking", delta.reasoning_content)
        self._add(_CHAT_TEXT, "text", delta.content)
        for call in delta.tool_calls or ():
            if call.function is not None and 0 <= call.index < MOST_BLOCKS:
                index = _CHAT_TOOLS + call.index
                if index not in self._blocks:
                    self._blocks[index] = Block(index, "tool_use", call.function.name)
                self._add(index, "tool_use", call.function.arguments)

    def _add(self, index: int, kind: str, text: str | None) -> None:
        if not text:
            return
        block = self._blocks.get(index)
        if block is None:
            # Its start was missed.
            block = self._blocks[index] = Block(index, kind, None)
        block.add(text)
        self._characters += len(text)


_KINDS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "tool_use"}
_CHAT_THINKING, _CHAT_TEXT, _CHAT_TOOLS = range(3)


def _blank_line(data: bytes) -> int | None:
    """Where the first event begins behind a blank line."""
    ends = [found + len(end) for end in (b"\n\n", b"\r\n\r\n", b"\r\r") if (found := data.find(end)) >= 0]
    return min(ends) if ends else None
