"""
Where two requests part, in the order in which the prompt cache reads them: tools, system, messages.

https://docs.claude.com/en/docs/build-with-claude/prompt-caching
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import zip_longest

import attrs

from ...record.markers import take_markers
from ...wire import spans
from ...wire.spans import Member

AROUND_BEFORE = 60
AROUND_AFTER = 160
"""Bytes that are shown before and behind the place where two requests part."""

MOST_PARAMETERS = 20
MOST_OF_NAME = 64

_WITHOUT_EFFECT = frozenset(
    {
        # Compared block by block, or by itself.
        "tools", "system", "messages", "model", "thread",
        # About the answer, or about the request.
        "diagnostics", "max_tokens", "metadata", "service_tier", "stop_sequences", "stream", "temperature", "top_k",
        "top_p",
    }
)  # fmt: skip
"""Members of which no prompt becomes another."""

_BILLING = b'"text":"x-anthropic-billing-header'
"""A block of Claude Code's that changes with each request, and of which the cache takes no notice."""


@attrs.frozen(kw_only=True)
class Divergence:
    """
    As in the OpenAPI document.

    :ivar byte: in the later request's body.
    :ivar parameters: names of members that differ, besides those, and that what is cached may depend on.
    """

    kind: str
    path: str | None = None
    role: str | None = None
    byte: int | None = None
    common_bytes: int = 0
    before: str | None = None
    after: str | None = None
    parameters: tuple[str, ...] = ()


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
    one, other = spans.members(earlier), spans.members(later)
    if one is None or other is None:
        return None
    found = _part(earlier, later, _blocks(earlier, one), _blocks(later, other))
    return attrs.evolve(found, parameters=_parameters(earlier, later, one, other))


def _part(earlier: bytes, later: bytes, before: list[_Block], after: list[_Block]) -> Divergence:
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
        one, _, _ = _plain(earlier[old.start : old.end])
        other, markers, added = _plain(later[new.start : new.end])
        if old.role == new.role and one == other:
            common += new.end - new.start
            continue
        at = _first_difference(one, other)
        # Where that is in the block as it came.
        moved = max(0, at - added) + sum([len(text) for place, text in markers if place <= at])
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


_OPENING = b'{"type":"text","text":'


def _plain(block: bytes) -> tuple[bytes, list[tuple[int, bytes]], int]:
    """
    A block in the form that is compared: a string is a list of one text.

    :return: that, what was taken out of it, and how many bytes were put in front of it.
    """
    plain, markers = take_markers(block)
    if plain.startswith(b'"'):
        return _OPENING + plain + b"}", [], len(_OPENING)
    return plain, markers, 0


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


def _parameters(earlier: bytes, later: bytes, one: list[Member], other: list[Member]) -> tuple[str, ...]:
    """Names of the members that differ, in the later request's order."""
    before = {member.name: earlier[member.start : member.end] for member in one}
    after = {member.name: later[member.start : member.end] for member in other}
    names = [name for name in {**after, **before} if name not in _WITHOUT_EFFECT]
    found = [name for name in names if not _same(before.get(name), after.get(name))]
    return tuple([name[:MOST_OF_NAME] for name in found[:MOST_PARAMETERS]])


def _same(one: bytes | None, other: bytes | None) -> bool:
    """Whether two values are the same, however they are written. One that is not there is none."""
    if one == other:
        return True
    try:
        return bool(json.loads(one or b"null") == json.loads(other or b"null"))
    except (ValueError, RecursionError):
        return False


def _blocks(body: bytes, members: list[Member]) -> list[_Block]:
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
