"""
Where two requests part, in the order in which the prompt cache reads them: tools, system, messages.

https://docs.claude.com/en/docs/build-with-claude/prompt-caching
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

import attrs

from ...record.markers import take_markers
from ...wire import spans

AROUND_BEFORE = 60
AROUND_AFTER = 160
"""Bytes that are shown before and behind the place where two requests part."""

_BILLING = b'"text":"x-anthropic-billing-header'
"""A block of Claude Code's that changes with each request, and of which the cache takes no notice."""


@attrs.frozen(kw_only=True)
class Divergence:
    """
    As in the OpenAPI document.

    :ivar byte: in the later request's body.
    """

    kind: str
    path: str | None = None
    role: str | None = None
    byte: int | None = None
    common_bytes: int = 0
    before: str | None = None
    after: str | None = None


@attrs.frozen
class _Block:
    path: str
    role: str | None
    start: int
    end: int


def diverge(earlier: bytes, later: bytes) -> Divergence | None:
    """
    Where a later request parts from an earlier one. Both are JSON; ``cache_control`` does not count.

    :return: ``None`` where one of them is no request that could be read.
    """
    before, after = _blocks(earlier), _blocks(later)
    if before is None or after is None:
        return None
    common = 0
    for old, new in zip_longest(before, after):
        if new is None:
            return Divergence(
                kind="removed",
                path=old.path,
                role=old.role,
                byte=None,
                common_bytes=common,
                before=_excerpt(earlier, old.start, old.end, 0),
            )
        if old is None:
            return Divergence(kind="appended", path=new.path, role=new.role, byte=new.start, common_bytes=common)
        one, _ = _plain(earlier[old.start : old.end])
        other, markers = _plain(later[new.start : new.end])
        if old.role == new.role and one == other:
            common += new.end - new.start
            continue
        at = _first_difference(one, other)
        # Where that is with the markers that were taken out.
        moved = at + sum([len(text) for place, text in markers if place <= at])
        return Divergence(
            kind="changed",
            path=new.path,
            role=new.role,
            byte=new.start + min(moved, new.end - new.start),
            common_bytes=common + moved,
            before=_excerpt(one, 0, len(one), at),
            after=_excerpt(other, 0, len(other), at),
        )
    return Divergence(kind="identical", common_bytes=common)


def _plain(block: bytes) -> tuple[bytes, list[tuple[int, bytes]]]:
    """A block in the form that is compared: a string is a list of one text; and what was taken out of it."""
    plain, markers = take_markers(block)
    if plain.startswith(b'"'):
        opening = b'{"type":"text","text":'
        return opening + plain + b"}", [(0, b"")]
    return plain, markers


def _first_difference(one: bytes, other: bytes) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _excerpt(data: bytes, start: int, end: int, at: int) -> str:
    first = max(start, start + at - AROUND_BEFORE)
    return data[first : min(end, start + at + AROUND_AFTER)].decode("utf-8", "replace")


def _blocks(body: bytes) -> list[_Block] | None:
    members = spans.members(body)
    if members is None:
        return None
    # Of two with one name, the last counts.
    named = {member.name: member for member in members}
    found: list[_Block] = []
    for name in ("tools", "system"):
        if name in named:
            found += _items(body, name, None, named[name].start, named[name].end)
    if "messages" in named:
        for index, (start, end) in enumerate(
            spans.elements(body, named["messages"].start, named["messages"].end) or ()
        ):
            found += _message(body, f"messages[{index}]", start, end)
    return [block for block in found if not _is_billing(body, block)]


def _items(body: bytes, path: str, role: str | None, start: int, end: int) -> Iterator[_Block]:
    """The elements of an array; or what stands in its place, as one."""
    inner = spans.elements(body, start, end)
    if inner is None:
        yield _Block(path, role, start, end)
        return
    for index, (first, last) in enumerate(inner):
        yield _Block(f"{path}[{index}]", role, first, last)


def _message(body: bytes, path: str, start: int, end: int) -> Iterator[_Block]:
    message = body[start:end]
    members = {member.name: member for member in spans.members(message) or ()}
    content = members.get("content")
    if content is None:
        yield _Block(path, None, start, end)
        return
    role = members.get("role")
    name = None if role is None else message[role.start : role.end].decode("utf-8", "replace").strip('"')
    yield from _items(body, f"{path}.content", name, start + content.start, start + content.end)


def _is_billing(body: bytes, block: _Block) -> bool:
    return block.path.startswith("system") and _BILLING in body[block.start : min(block.end, block.start + 200)]
