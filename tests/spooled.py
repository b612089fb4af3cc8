"""Slots as a proxy leaves them, written entry by entry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted_proxy.record import entries
from twisted_proxy.record.entries import Closed, Kind, Noted, Opened
from twisted_proxy.record.exchange import Role
from twisted_proxy.record.slots import JOURNAL, Slot, file_name
from twisted_proxy.record.spool import SlotReader

BEGAN = 1_790_000_000_000_000
"""When the first exchange was received, in microseconds since the Unix epoch."""
INSTANCE = "01990000000070008000000000000001"


def exchange_id(number: int) -> str:
    """The id of the exchange with a number; a later number sorts later."""
    return f"req_{number:032x}"


class Spooled:
    """
    A slot and its owner. Each method appends to the newest segment at once.

    :param root: where slots are.
    """

    def __init__(self, root: Path, instance: str = INSTANCE) -> None:
        self.slot = Slot.create(root, instance)
        self._root = root
        self._segment = 0
        self.rotate()

    @property
    def path(self) -> Path:
        return self.slot.path

    def rotate(self) -> None:
        """Begin the next segment."""
        self._segment += 1
        self._append(b"")

    def die(self) -> None:
        """Let go of the owner's lock, as a process does that ends."""
        self.slot.release()

    def reader(self, *, live: bool = True) -> SlotReader:
        """A reader that begins at the beginning, as after a restart. The lock is not taken."""
        return SlotReader(Slot(self.path, []), live=live)

    def segments(self) -> list[str]:
        """The names of the files with entries that are there."""
        return sorted(path.name for path in self.path.iterdir() if path.suffix in (".journal", ".checkpoint"))

    def _append(self, data: bytes) -> None:
        with (self.path / file_name(self._segment, JOURNAL)).open("ab") as file:
            file.write(data)

    def _entry(self, number: int, kind: Kind, entry: entries.Small) -> None:
        key = entries.exchange_key(exchange_id(number))
        self._append(b"".join(entries.frame(kind, key, entries.encode(entry))))

    # Entries

    def opened(
        self,
        number: int,
        *,
        path: str = "/v1/messages",
        headers: Sequence[tuple[str, str]] = (),
        **fields: Any,
    ) -> None:
        opened = Opened(
            received_at=BEGAN + number * 1_000_000, method="POST", path=path, request_headers=tuple(headers), **fields
        )
        self._entry(number, Kind.OPENED, opened)

    def noted(self, number: int, **fields: Any) -> None:
        self._entry(number, Kind.NOTED, Noted(fields))

    def bulk(self, number: int, role: Role, *pieces: bytes, times: Sequence[int] | None = None) -> None:
        key = entries.exchange_key(exchange_id(number))
        for frame in entries.bulk_frames(entries.KINDS[role], key, pieces, times):
            self._append(b"".join(frame))

    def closed(self, number: int, verdict: str = "complete", **fields: Any) -> None:
        self._entry(number, Kind.CLOSED, Closed(verdict=verdict, **{"status": 200, **fields}))

    # Whole exchanges

    def asked(
        self,
        number: int,
        messages: Sequence[object],
        *,
        session: str | None = "s1",
        agent: str | None = None,
        **body: Any,
    ) -> None:
        """A request of which all is in."""
        names = {"x-claude-code-session-id": session, "x-claude-code-agent-id": agent}
        headers = [(name, value) for name, value in names.items() if value is not None]
        self.opened(number, headers=[("content-type", "application/json"), *headers])
        self.bulk(number, Role.REQUEST, json.dumps({"model": "claude-opus-4-5", "messages": messages, **body}).encode())
        self.noted(number, body_read_us=100)

    def answered(self, number: int, text: str, **closed: Any) -> None:
        """Its answer, and its end."""
        answer = message(number, text)
        self.noted(number, status=200, headers_us=200, response_headers=(("content-type", "application/json"),))
        self.bulk(number, Role.ANSWER, json.dumps(answer).encode(), times=[300])
        self.closed(number, last_byte_us=400, **closed)

    def exchanged(self, number: int, messages: Sequence[object], text: str, **request: Any) -> None:
        """A whole one."""
        self.asked(number, messages, **request)
        self.answered(number, text)


def message(number: int, text: str) -> dict[str, Any]:
    """An answer of the Messages API."""
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-4-5",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def stream(answer: dict[str, Any], text: str) -> list[bytes]:
    """The events of a streamed answer, each in bytes of its own."""
    start = {**answer, "content": [], "stop_reason": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]
