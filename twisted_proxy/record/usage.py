"""
What an answer's ``usage`` says of tokens, in the APIs' different ways of counting.

Anthropic: https://docs.claude.com/en/api/messages; ``input_tokens`` is without what the cache gave or took. OpenAI:
https://platform.openai.com/docs/api-reference/chat/object; ``prompt_tokens`` is with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

MAX_COUNT = 10**9
"""A larger number is no count of one answer's tokens."""
MAX_ITERATIONS = 1000

_NOT_IN_THE_SUM = ("compaction", "advisor_message")


@attrs.frozen(kw_only=True)
class Charge:
    """
    What one model's sampling used; an answer has one or more.

    :ivar input_tokens: without what the cache gave or took.
    :ivar modes: what changes the price of tokens: ``batch``, ``fast``, ``us`` (inference in the US only), ``priority``,
        ``flex``.
    """

    model: str | None
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    web_search_requests: int = 0
    modes: frozenset[str] = frozenset()

    @property
    def prompt_tokens(self) -> int:
        """All that the model read."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_5m_tokens + self.cache_write_1h_tokens


def read_usage(usage: Mapping[str, Any], model: str | None, *, service_tier: object = None) -> tuple[Charge, ...]:
    """
    What is to be paid; nothing where `usage` has no counts that we know.

    With ``iterations`` it is what each of them used, at its own model. What stands above them is their sum without
    compaction and the advisor (https://docs.claude.com/en/docs/build-with-claude/compaction), so it counts only where
    there are no others.

    :param model: that answered; of an iteration which names none.
    :param service_tier: where it stands beside ``usage``.
    """
    modes = _modes(usage, service_tier)
    searches = _count(_mapping(usage.get("server_tool_use")).get("web_search_requests")) or 0
    iterations = usage.get("iterations")
    charges = []
    summed_up = False
    for each in iterations[:MAX_ITERATIONS] if isinstance(iterations, list) else ():
        if isinstance(each, Mapping) and (counts := _counts(each)) is not None:
            name = each.get("model")
            charges.append(Charge(model=name if isinstance(name, str) else model, modes=modes, **counts))
            summed_up = summed_up or each.get("type") not in _NOT_IN_THE_SUM
    if not summed_up and (counts := _counts(usage)) is not None:
        charges.insert(0, Charge(model=model, modes=modes, **counts))
    if charges and searches:
        charges[0] = attrs.evolve(charges[0], web_search_requests=searches)
    return tuple(charges)


def _counts(usage: Mapping[str, Any]) -> dict[str, int] | None:
    prompt = _count(usage.get("prompt_tokens"))
    details = usage.get("prompt_tokens_details")
    if prompt is None and "input_tokens_details" in usage:
        prompt, details = _count(usage.get("input_tokens")), usage.get("input_tokens_details")
    if prompt is not None:
        read = min(_count(_mapping(details).get("cached_tokens")) or 0, prompt)
        written = min(_count(_mapping(details).get("cache_write_tokens")) or 0, prompt - read)
        output = _count(usage.get("completion_tokens")) or _count(usage.get("output_tokens")) or 0
        return {
            "input_tokens": prompt - read - written,
            "output_tokens": output,
            "cache_read_tokens": read,
            "cache_write_5m_tokens": written,
        }
    known = {name: _count(usage.get(name)) for name in ("input_tokens", "output_tokens")}
    if all(count is None for count in known.values()):
        return None
    of_an_hour = _count(_mapping(usage.get("cache_creation")).get("ephemeral_1h_input_tokens")) or 0
    of_minutes = _count(_mapping(usage.get("cache_creation")).get("ephemeral_5m_input_tokens")) or 0
    written = _count(usage.get("cache_creation_input_tokens")) or 0
    return {
        **{name: count or 0 for name, count in known.items()},
        "cache_read_tokens": _count(usage.get("cache_read_input_tokens")) or 0,
        # What the breakdown does not tell is of the default kind.
        "cache_write_5m_tokens": max(of_minutes, written - of_an_hour),
        "cache_write_1h_tokens": of_an_hour,
    }


def _modes(usage: Mapping[str, Any], service_tier: object) -> frozenset[str]:
    modes = set()
    for tier in (usage.get("service_tier"), service_tier):
        if tier in ("batch", "priority", "flex"):
            modes.add(str(tier))
    if usage.get("speed") == "fast":
        modes.add("fast")
    if usage.get("inference_geo") == "us":
        modes.add("us")
    return frozenset(modes)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_COUNT:
        return None
    return int(value)
