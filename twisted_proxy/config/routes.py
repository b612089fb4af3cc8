"""Rules that say where a request goes: what each matches, what it sets, and what can be wrong with them together."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase

import attrs

from twisted_proxy.config import values
from twisted_proxy.config.fields import checked

MODEL_PATHS = ("/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions")
"""The requests that ask a model, each for itself."""


@attrs.frozen(kw_only=True)
class Match:
    """What a request must be like: each criterion is a list of patterns, of which one must fit; an empty one is none.

    A request that does not have what a criterion is about, such as a session, does not fit.
    """

    model: tuple[str, ...] = checked(values.GLOB, ())
    """As the client named it."""
    agent_type: tuple[str, ...] = checked(values.GLOB, ())
    """As Claude Code's header says: ``Explore``, ``Plan``, ``general-purpose``, ``custom``, …"""
    agent: tuple[str, ...] = checked(values.GLOB, ())
    """The agent's name, as its definition has it."""
    request_class: tuple[str, ...] = checked(values.GLOB, ())
    """As Claude Code's header says: ``main``, ``subagent``, ``compaction``, …"""
    session: tuple[str, ...] = checked(values.GLOB, ())
    path: tuple[str, ...] = checked(values.GLOB, ())
    """Without the query. Without this criterion a rule concerns `MODEL_PATHS`, and no others."""

    def criteria(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Those that there are, by name."""
        for name in CRITERIA:
            patterns: tuple[str, ...] = getattr(self, name)
            if patterns:
                yield name, patterns

    def __str__(self) -> str:
        return ", ".join(f"{name} {' or '.join(patterns)}" for name, patterns in self.criteria()) or "anything"


CRITERIA: tuple[str, ...] = tuple(field.name for field in attrs.fields(Match))


@attrs.frozen(kw_only=True)
class RouteRule:
    """One rule: what it matches, and what it then sets. `None` leaves things as they are."""

    match: Match = attrs.field(factory=Match, validator=attrs.validators.instance_of(Match))
    provider: str | None = checked(values.PROVIDER, None)
    model: str | None = checked(values.MODEL, None)
    """Asked for instead of the client's."""
    headers: Mapping[str, str] = checked(values.HEADER, {}, secret=True)
    """Sent upstream instead of the client's of these names. Their values may be credentials."""
    refuse: str | None = checked(values.REFUSAL, None)
    """The request goes nowhere, and its client is told this."""
    where: str = attrs.field(default="", eq=False)
    """Where the rule is written, for people."""

    def __str__(self) -> str:
        return f"{self.match} → {self.effect()}"

    def effect(self) -> str:
        """What it sets, for people: of headers only the names."""
        if self.refuse:
            return f"refuse: {self.refuse}"
        parts = [f"{name} {value}" for name, value in (("provider", self.provider), ("model", self.model)) if value]
        if self.headers:
            parts.append(f"header{'s' if len(self.headers) > 1 else ''} {', '.join(self.headers)}")
        return ", ".join(parts)


@attrs.frozen
class Fault:
    """Something that is wrong with a rule: its number, counted from 1, the key that it is about or ``""``, and what."""

    number: int
    key: str
    what: str


def faults(rules: Mapping[int, RouteRule], providers: Collection[str]) -> Iterator[Fault]:
    """What is wrong with ``rules``, by their numbers in order, although each value is allowed.

    ``providers`` has the names of all.
    """
    for number, rule in rules.items():
        others = rule.provider or rule.model or rule.headers
        if rule.refuse and others:
            yield Fault(number, "refuse", "stands beside provider, model or headers; a refused request goes nowhere")
        elif not rule.refuse and not others:
            yield Fault(number, "", "has no effect; it must set provider, model, headers or refuse")
        if rule.provider is not None and rule.provider not in providers:
            yield Fault(number, "provider", f"there is no provider {rule.provider}; there are {', '.join(providers)}")
        for earlier, before in rules.items():
            if earlier >= number:
                break
            if before.effect() and covers(before.match, rule.match):
                yield Fault(number, "", f"has no effect; whatever it matches, rule {earlier} matches first")
                break


def covers(wide: Match, narrow: Match) -> bool:
    """Whether ``wide`` surely matches all that ``narrow`` does. What only a closer look would show is not seen."""
    wide, narrow = (attrs.evolve(match, path=match.path or MODEL_PATHS) for match in (wide, narrow))
    return all(
        (inner := getattr(narrow, name)) and all(any(_wider(pattern, each) for pattern in patterns) for each in inner)
        for name, patterns in wide.criteria()
    )


_SPECIAL = re.compile(r"[*?\[]")


def _wider(pattern: str, other: str) -> bool:
    if pattern in ("*", other):
        return True
    head = _SPECIAL.split(other, maxsplit=1)[0]
    if head == other:
        return fnmatchcase(other, pattern)
    # "claude-*" is wider than "claude-opus-*".
    return pattern.endswith("*") and not _SPECIAL.search(pattern[:-1]) and head.startswith(pattern[:-1])
