"""
What a model takes, by its name.

The names are matched by family and version, so that a model of next month is taken for the newest one that is
known. What an OpenAI-compatible server serves under other names is taken for a model without reasoning.

https://platform.openai.com/docs/guides/reasoning, https://docs.claude.com/en/docs/build-with-claude/effort.
"""

from __future__ import annotations

import math
import re
from typing import Literal

import attrs

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""Every degree of reasoning that either API knows, least first."""

_LOW_TO_HIGH = ("low", "medium", "high")


@attrs.frozen(kw_only=True)
class OpenAIModel:
    """What a chat completions model takes."""

    sampling: bool = True
    """``temperature`` and ``top_p``."""
    stop: bool = True
    """``stop``."""
    parallel_tool_calls: bool = True
    """The parameter of that name. A model that does not take it makes one call at a time."""
    efforts: tuple[str, ...] = ()
    """The values of ``reasoning_effort``; none where the parameter is not known."""
    effort_with_tools: Literal["any", "absent", "none"] = "any"
    """What ``reasoning_effort`` may be in a request with tools: any of them, not there at all, or there and
    ``none``."""
    max_output: int | None = None
    """The most that ``max_completion_tokens`` may be, ``None`` if that is not known."""

    def effort(self, wanted: str | None) -> str | None:
        """The value that comes nearest to `wanted`, the lower of two; ``None`` if there is none to give."""
        if wanted not in EFFORTS or not self.efforts:
            return None
        degree = EFFORTS.index(wanted)
        return min(self.efforts, key=lambda each: (abs(EFFORTS.index(each) - degree), EFFORTS.index(each)))


_GPT = re.compile(r"gpt-(\d+)(?:\.(\d+))?(o?)(?![\d.])")
_O_SERIES = re.compile(r"o(\d+)(?!\d)")

_MAX_OUTPUT_OF_OLD = (
    ("gpt-4o-2024-05-13", 4096),
    ("gpt-4o", 16_384),
    ("chatgpt-4o", 16_384),
    ("gpt-4.1", 32_768),
    ("gpt-4.5", 16_384),
    ("gpt-4-32k", None),
    ("gpt-4-0613", 8192),
    ("gpt-4-0314", 8192),
    ("gpt-4-", 4096),
    ("gpt-4", 8192),
    ("gpt-3.5", 4096),
)


def openai_model(name: str) -> OpenAIModel:
    """By the last part of a name as ``openai/gpt-5.2`` or ``ft:gpt-4o:acme::1``, in any case."""
    name = name.lower().removeprefix("ft:").rpartition("/")[2]
    if _O_SERIES.match(name):
        return OpenAIModel(
            sampling=False, stop=False, parallel_tool_calls=False, efforts=_LOW_TO_HIGH, max_output=100_000
        )
    found = _GPT.match(name)
    if found is None or int(found[1]) < 5:
        limits = (limit for prefix, limit in _MAX_OUTPUT_OF_OLD if name.startswith(prefix))
        return OpenAIModel(max_output=next(limits, None))
    if "-chat" in name:
        return OpenAIModel(max_output=16_384)
    version = int(found[1]), int(found[2] or 0)
    # Since 5.2 these models reason about tools in the Responses API alone; since 5.6 that has to be said.
    with_tools: Literal["any", "absent", "none"] = "any"
    if version >= (5, 2):
        with_tools = "absent" if version < (5, 6) else "none"
    return OpenAIModel(
        sampling=False,
        stop=False,
        efforts=_efforts(version, name),
        effort_with_tools=with_tools,
        max_output=128_000 if version < (6, 0) else None,
    )


def _efforts(version: tuple[int, int], name: str) -> tuple[str, ...]:
    if "-pro" in name:
        return ("high",) if version == (5, 0) else ("medium", "high", "xhigh")
    if "-codex" in name:
        return _LOW_TO_HIGH if version < (5, 2) and "-max" not in name else (*_LOW_TO_HIGH, "xhigh")
    if version == (5, 0):
        return ("minimal", *_LOW_TO_HIGH)
    if version == (5, 1):
        return ("none", *_LOW_TO_HIGH)
    return ("none", *_LOW_TO_HIGH, "xhigh") if version < (5, 6) else ("none", *_LOW_TO_HIGH, "xhigh", "max")


@attrs.frozen(kw_only=True)
class ClaudeModel:
    """What a Claude model takes."""

    sampling: bool = False
    """``temperature`` and ``top_p``."""
    efforts: tuple[str, ...] = ("low", "medium", "high", "xhigh", "max")
    """The values of ``output_config.effort``, with ``thinking`` of the type ``adaptive``; none where the model has
    neither."""
    budget: bool = False
    """``thinking`` of the type ``enabled``, with ``budget_tokens``."""
    max_output: float = math.inf
    """The most that ``max_tokens`` may be."""

    def effort(self, wanted: str) -> str:
        """The value that comes nearest to `wanted`, the lower of two. Only where there is one."""
        degree = EFFORTS.index(wanted)
        return min(self.efforts, key=lambda each: (abs(EFFORTS.index(each) - degree), EFFORTS.index(each)))


_CLAUDE = re.compile(r"claude-(?:[a-z]+-)?(\d+)(?:[.-](\d)(?!\d))?")


def claude_model(name: str) -> ClaudeModel:
    """By a name as ``claude-opus-4-6``, ``claude-3-5-haiku-20241022`` or one with a provider's prefix before it."""
    found = _CLAUDE.search(name.lower())
    if found is None:
        return ClaudeModel()
    version = int(found[1]), int(found[2] or 0)
    if version >= (4, 7):
        return ClaudeModel()
    if version >= (4, 6):
        return ClaudeModel(sampling=True, efforts=("low", "medium", "high", "max"))
    if version >= (3, 7):
        opus_4 = "opus" in name.lower() and version < (4, 5)
        return ClaudeModel(sampling=True, efforts=(), budget=True, max_output=32_000 if opus_4 else 64_000)
    return ClaudeModel(sampling=True, efforts=(), max_output=8192 if version >= (3, 5) else 4096)
