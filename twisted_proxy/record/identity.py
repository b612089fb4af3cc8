"""
Whether two messages are the same in a conversation, and how far two conversations are.

A client does not send a conversation in the same bytes each time. So a message here is its role, its content blocks
and what other members it has, as values: the order of members, white space and escapes do not count. Nor do
``cache_control`` markers; a string is a list of one plain text; and messages of one role that follow each other are
one, for a client that sends them one by one may merge them in the next request.
"""

from __future__ import annotations

import decimal
import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec

from .following import Following
from .markers import MARKER, take_markers

SIZE = 16
"""Bytes of a chain."""

_REMEMBERED = 32 * 1024 * 1024
"""Bytes of messages of which it is known what they make of a chain."""

# Numbers keep the digits that they have: integers are Python's, others are decimal. msgspec recurses; what is deeper
# than about 1000 is unreadable, as is an integer of more than 4300 digits.
_decode = msgspec.json.Decoder(float_hook=decimal.Decimal).decode
_encode = msgspec.json.Encoder(decimal_format="number", order="sorted").encode
_UNREADABLE = (msgspec.MsgspecError, RecursionError, UnicodeError, decimal.DecimalException, TypeError, ValueError)


def chains_of(messages: Iterable[bytes]) -> tuple[bytes, ...]:
    """
    For each of a request's messages a hash of all up to it: 16 bytes, equal where these say the same.

    A request goes on where another one ended if the other's last hash is among its own.

    :param messages: each as the JSON that it is in the request. What is no JSON object is the same as what has the
        same bytes.
    """
    chains = []
    chain = bytes(SIZE)
    for message in messages:
        chain = _behind(chain, message)
        chains.append(chain)
    return tuple(chains)


_known: Following[tuple[bytes, bytes]] = Following(most_bytes=_REMEMBERED)
"""Behind a chain, a message and the chain that it makes."""


def _behind(chain: bytes, message: bytes) -> bytes:
    """The chain that ends in the message."""
    # Most messages are those of the request before, in the same bytes.
    known = _known.find(chain, lambda each: each[0] == message)
    if known is not None:
        return known[1]
    longer = chain
    for step in _steps(take_markers(message)[0]):
        longer = hashlib.blake2b(longer + step, digest_size=SIZE).digest()
    _known.add(chain, (message, longer), len(message))
    return longer


def _steps(message: bytes) -> tuple[bytes, ...]:
    """The hashes of what a message consists of, each with its role; at least one."""
    try:
        members = _decode(message)
        if not isinstance(members, dict):
            return (_hash(b"bytes", message),)
        if MARKER in message:
            members = _without_markers(members)
        role = _encode(members.pop("role", None))
        content = members.pop("content", None)
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        # The API knows no other members; OpenAI's tool_calls and tool_call_id are as much as a content.
        steps = [_hash(b"members", role, _encode(members))] if members else []
        if isinstance(content, list):
            steps += [_hash(b"block", role, _encode(block)) for block in content]
        elif content is not None:
            steps.append(_hash(b"content", role, _encode(content)))
    except _UNREADABLE:
        return (_hash(b"bytes", message),)
    return tuple(steps) or (_hash(b"nothing", role),)


def _without_markers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_markers(each) for name, each in value.items() if name != "cache_control"}
    if isinstance(value, list):
        return [_without_markers(each) for each in value]
    return value


def _hash(*pieces: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=SIZE)
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.digest()
