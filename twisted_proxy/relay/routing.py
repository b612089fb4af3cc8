"""
Where a request goes: to which provider, asking which model, with which headers, or nowhere.

The rules of ``config.yaml`` come first, then the models that agents are mapped to, then the model's prefix. This only
decides; it sends nothing, and of a body it reads what it needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase, translate
from pathlib import Path
from typing import Protocol

import attrs
import msgspec

from ..config import Config, RouteRule
from ..config.routes import MODEL_PATHS
from ..wire import body as wire_body
from ..wire import claude_code
from .agents import Definition

OPENAI_PATHS = ("/v1/chat/completions",)
"""Requests in OpenAI's form: their clients bring an OpenAI key, or a Claude one."""

_OPENAI_MODELS = ("gpt-", "o1", "o3", "o4")

BUILT_IN_AGENTS = frozenset({"Explore", "Plan", "general-purpose"})
"""Agents that Claude Code has without a definition, and names as agent types."""
_TYPES_OF_MANY = frozenset({"custom", "teammate", "fork"})


def provider_of(model: str | None) -> str:
    """The built-in provider of a model, by the prefix of its name."""
    return "openai" if model is not None and model.startswith(_OPENAI_MODELS) else "anthropic"


@attrs.frozen(kw_only=True)
class RequestFacts:
    """What is known of a request. ``None`` is what it does not say."""

    path: str
    """Without the query."""
    model: str | None = None
    session: str | None = None
    request_class: str | None = None
    """``main``, ``subagent``, …, as Claude Code's header has it."""
    agent_type: str | None = None
    """``Explore``, ``custom``, …, as Claude Code's header has it."""
    system: Callable[[], bytes | None] = attrs.field(default=lambda: None, eq=False, repr=False)
    """The member ``system`` of the body, raw JSON. Called at most once for a decision, and only if it depends on it."""


@attrs.frozen(kw_only=True)
class Route:
    """What was decided."""

    provider: str
    """The provider's name. Of no meaning where the request is refused."""
    kind: str
    """The provider's kind: ``anthropic`` or ``openai``."""
    model: str | None = None
    """To be asked instead of the client's; ``None`` leaves the body as it is."""
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """To be sent upstream instead of the client's of these names. Values may be credentials."""
    refusal: str | None = None
    """What the client is told; the request goes nowhere."""
    agent: str | None = None
    """The name of the agent, where it was looked for and known."""
    why: str
    """The rule that won, and what matched, for people. Holds no credential."""


class KnowsAgents(Protocol):
    """What a router needs of :class:`agents.Agents`."""

    @property
    def directories(self) -> Sequence[Path]: ...
    def named(self, name: str) -> Definition | None: ...
    def identify(self, system: bytes) -> Definition | None: ...


@attrs.frozen
class Tried:
    """A rule, and how it fared with a request."""

    rule: RouteRule
    number: int
    matched: bool
    why: str


@attrs.frozen
class _Agent:
    name: str | None
    why: str


class _Request:
    """The facts of one request as the rules ask for them; its agent is looked for when the first one does."""

    def __init__(self, facts: RequestFacts, agents: KnowsAgents | None) -> None:
        self.facts = facts
        self._agents = agents
        self._agent: _Agent | None = None

    @property
    def agent(self) -> _Agent:
        if self._agent is None:
            self._agent = self._find_agent()
        return self._agent

    def _find_agent(self) -> _Agent:
        kind, request_class = self.facts.agent_type, self.facts.request_class
        if kind in _TYPES_OF_MANY:
            kind = None
        elif kind is not None and self._is_name(kind):
            return _Agent(kind, "its agent type says so")
        elif kind is None and request_class in ("main", "auxiliary"):
            return _Agent(None, f"its request class is {request_class}")
        found = self._by_prompt()
        if found is not None:
            return _Agent(found.name, f"its system prompt is that of {found.path}")
        if kind is not None:
            return _Agent(kind, "its agent type says so")
        return _Agent(None, "no defined agent has its system prompt")

    def _is_name(self, kind: str) -> bool:
        return kind in BUILT_IN_AGENTS or (self._agents is not None and self._agents.named(kind) is not None)

    def _by_prompt(self) -> Definition | None:
        if self._agents is None:
            return None
        system = self.facts.system()
        return None if system is None else self._agents.identify(system)

    @property
    def found_agent(self) -> str | None:
        """The agent's name, if one was looked for and found."""
        return self._agent.name if self._agent is not None else None

    def get(self, criterion: str) -> str | None:
        if criterion == "agent":
            return self.agent.name
        value: str | None = getattr(self.facts, criterion)
        return value


class _Criterion:
    def __init__(self, name: str, patterns: Sequence[str]) -> None:
        self.name = name
        self.patterns = patterns
        self.fits = re.compile("|".join(map(translate, patterns))).match

    def fitting(self, value: str | None) -> str | None:
        """The pattern that ``value`` fits, if there is one."""
        if value is None:
            return None
        return next((pattern for pattern in self.patterns if fnmatchcase(value, pattern)), None)


_IN_WORDS = {"request_class": "request class", "agent_type": "agent type"}


class _CompiledRule:
    def __init__(self, number: int, rule: RouteRule) -> None:
        self.number = number
        self.rule = rule
        self.place = rule.where or f"routes.{number}"
        criteria = {"path": MODEL_PATHS, **dict(rule.match.criteria())}
        # What costs nothing first, the agent last: it may take a look into the body.
        self.criteria = sorted(
            (_Criterion(name, patterns) for name, patterns in criteria.items()),
            key=lambda criterion: criterion.name == "agent",
        )

    def matches(self, request: _Request) -> bool:
        for criterion in self.criteria:
            value = request.get(criterion.name)
            if value is None or not criterion.fits(value):
                return False
        return True

    def try_on(self, request: _Request) -> Tried:
        """The same in words."""
        reasons = []
        for criterion in self.criteria:
            value = request.get(criterion.name)
            fits = criterion.fitting(value)
            name = _IN_WORDS.get(criterion.name, criterion.name)
            wanted = " or ".join(criterion.patterns)
            if fits is None:
                what = f"{name} {value} is not {wanted}" if value is not None else f"it has no {name}"
                return Tried(self.rule, self.number, matched=False, why=what)
            if criterion.name != "path" or self.rule.match.path:
                reasons.append(f"{name} is {value}" if fits == value else f"{name} {value} is like {fits}")
        return Tried(self.rule, self.number, matched=True, why=" and ".join(reasons) or "it matches anything")


class Router:
    """
    Decides where requests go.

    :param agents: the defined agents; ``None``: an agent is known by its headers alone.
    """

    def __init__(self, config: Config, agents: KnowsAgents | None = None) -> None:
        self._config = config
        self._kinds = {name: provider.kind for name, provider in config.providers.items()}
        self._agents = agents
        self._rules = [_CompiledRule(number, rule) for number, rule in enumerate(config.routes, 1)]
        self._mappings = config.subagents.active

    @property
    def trivial(self) -> bool:
        """
        Whether nothing is configured that depends on what a request says.

        Then all requests but those on `OPENAI_PATHS` go to ``anthropic`` as they are, and `choose` would say so.
        """
        return not (self._rules or self._mappings or self._config.openai.is_set_up)

    def choose(self, facts: RequestFacts) -> Route:
        """Where the request goes."""
        return self._choose(_Request(facts, self._agents))

    def explain(self, facts: RequestFacts) -> str:
        """What `choose` decides, and how it came to that: lines for people, without the values of headers."""
        request = _Request(facts, self._agents)
        lines = [("path", facts.path), ("model", facts.model or "none")]
        lines += [
            (_IN_WORDS.get(name, name), request.get(name) or "not said")
            for name in ("session", "request_class", "agent_type")
        ]
        lines.append(("agent", f"{request.agent.name or 'unknown'}: {request.agent.why}"))
        for rule in self._rules:
            tried = rule.try_on(request)
            lines.append((f"routes.{rule.number}", f"{'yes' if tried.matched else 'no'}: {tried.why}"))
            if tried.matched:
                break
        route = self._choose(request)
        if route.refusal is not None:
            lines.append(("refused", route.refusal))
        else:
            url = self._config.providers[route.provider].base_url
            lines.append(("provider", f"{route.provider} ({route.kind}, {url})"))
            lines.append(("asks for", route.model or f"{facts.model or 'none'}, as the client does"))
            if route.headers:
                lines.append(("sets", ", ".join(route.headers)))
        lines.append(("because", route.why))
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)

    def warnings(self) -> list[str]:
        """What is configured and will not work as it stands, in sentences."""
        return [*self._undefined_agents(), *self._wrong_providers()]

    def _undefined_agents(self) -> Iterator[str]:
        looked = (
            "no directory"
            if self._agents is None
            else ", ".join(str(directory.absolute()) for directory in self._agents.directories)
        )
        for agent, model in self._mappings.items():
            if not self._is_defined(agent):
                yield (
                    f"subagents.mappings has no effect for {agent} ({model}): no file in {looked} defines that agent"
                )
        for rule in self._rules:
            for pattern in rule.rule.match.agent:
                if not re.search(r"[*?\[]", pattern) and not self._is_defined(pattern):
                    yield f"{rule.place} has no effect for {pattern}: no file in {looked} defines that agent"

    def _wrong_providers(self) -> Iterator[str]:
        # Who leads to a provider, and the model that is asked there.
        users: list[tuple[str, str, str | None]] = [
            (f"subagents.mappings, {agent}", provider_of(model), model) for agent, model in self._mappings.items()
        ]
        users += [(rule.place, *self._by_rule(rule.rule, None)) for rule in self._rules if not rule.rule.refuse]
        named = {rule.place for rule in self._rules if rule.rule.provider is not None}
        for place, provider, model in users:
            if provider == "openai" and not self._config.openai.is_set_up:
                yield (
                    f"{place}: the provider openai has no key, so that requests of Anthropic clients fail there; "
                    "set OPENAI_API_KEY, or OPENAI_BASE_URL to a server that needs none"
                )
            elif place not in named and model is not None and provider == "anthropic" and "claude" not in model:
                yield (
                    f"{place}: {model} is asked of anthropic, as its name begins like that of no other provider's "
                    "models; a rule in routes can name another provider"
                )

    def _is_defined(self, agent: str) -> bool:
        return agent in BUILT_IN_AGENTS or (self._agents is not None and self._agents.named(agent) is not None)

    def _choose(self, request: _Request) -> Route:
        facts = request.facts
        for rule in self._rules:
            if rule.matches(request):
                return self._route_of(rule, rule.try_on(request), request)
        if self._mappings and facts.path in MODEL_PATHS:
            name = request.agent.name
            if name is not None and name in self._mappings:
                model = self._mappings[name]
                why = f"subagents.mappings: the agent is {name}, as {request.agent.why}"
                return self._route(provider_of(model), model, request, why=why)
        return self._by_prefix(request)

    def _route_of(self, rule: _CompiledRule, tried: Tried, request: _Request) -> Route:
        provider, model = self._by_rule(rule.rule, request.facts.model)
        return self._route(
            provider,
            model,
            request,
            headers=rule.rule.headers,
            refusal=rule.rule.refuse,
            why=f"{rule.place}: {tried.why}",
        )

    def _by_rule(self, rule: RouteRule, asked: str | None) -> tuple[str, str | None]:
        model = rule.model or asked
        return rule.provider or provider_of(model), model

    def _by_prefix(self, request: _Request) -> Route:
        model = request.facts.model
        provider = provider_of(model)
        if request.facts.path not in MODEL_PATHS:
            provider, why = "anthropic", "no rule is about this path"
        elif provider == "openai" and request.facts.path not in OPENAI_PATHS and not self._config.openai.is_set_up:
            provider, why = "anthropic", f"no rule matched, and for {model} there is no key of openai (OPENAI_API_KEY)"
        else:
            why = f"no rule matched, and {'its model' if model is None else model} is of {provider}"
        return self._route(provider, None, request, why=why)

    def _route(
        self,
        provider: str,
        model: str | None,
        request: _Request,
        *,
        why: str,
        headers: Mapping[str, str] | None = None,
        refusal: str | None = None,
    ) -> Route:
        return Route(
            provider=provider,
            kind=self._kinds[provider],
            model=None if model == request.facts.model else model,
            headers=headers or {},
            refusal=refusal,
            agent=request.found_agent,
            why=why,
        )


def request_facts(path: str, headers: Iterable[tuple[str, str]], body: bytes) -> RequestFacts:
    """
    What is known of a request that is at hand whole.

    :param path: with or without a query.
    :param headers: as they were sent, or as they are recorded.
    """
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        fields.setdefault(name.lower().encode("ascii", "ignore"), value.encode("latin-1", "ignore"))
    origin = claude_code.from_headers(fields.get).merge(claude_code.from_body(body))
    return RequestFacts(
        path=path.partition("?")[0],
        model=wire_body.peek(body).model,
        session=origin.session,
        request_class=origin.request_class,
        agent_type=origin.agent_type,
        system=lambda: wire_body.get_member(body, "system"),
    )


class BadRequestFile(Exception):
    """A file holds no request; ``str()`` says why."""


class _File(msgspec.Struct):
    body: msgspec.Raw
    path: str = "/v1/messages"
    headers: dict[str, str] | list[tuple[str, str]] = {}


def read_request(content: bytes) -> tuple[str, list[tuple[str, str]], bytes]:
    """
    Path, headers and body out of a file: a request's body, or ``{"path": …, "headers": …, "body": …}`` in JSON.

    Raises `BadRequestFile`.
    """
    try:
        members = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequestFile(f"is no JSON object: {error}") from None
    if "body" not in members or "messages" in members:
        path = "/v1/messages"
        return path, [], content
    try:
        read = msgspec.json.decode(content, type=_File)
        # A body in a string is one that was written as text.
        body = bytes(read.body)
        if body.startswith(b'"'):
            body = msgspec.json.decode(body, type=str).encode()
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise BadRequestFile(f"is not of the form {{path, headers, body}}: {error}") from None
    headers = read.headers.items() if isinstance(read.headers, dict) else read.headers
    return read.path, list(headers), body
