"""Where requests go, and what is said about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import pytest

from twisted_proxy.config import Config, Match, ProviderConfig, RouteRule, SubagentConfig
from twisted_proxy.relay.agents import Definition, texts_of
from twisted_proxy.relay.routing import (
    BadRequestFile,
    RequestFacts,
    Router,
    provider_of,
    read_request,
    request_facts,
)

OPENAI = ProviderConfig(kind="openai", api_key="hunter1")
LOCAL = ProviderConfig(kind="openai", base_url="http://127.0.0.1:8000", api_key="hunter2")


@attrs.define
class Known:
    """Agents by the very text of a block."""

    prompts: Mapping[str, str]
    directories: Sequence[Path] = (Path("/p/.claude/agents"), Path("/u/.claude/agents"))
    asked: int = 0

    def named(self, name: str) -> Definition | None:
        return Definition(name=name, prompt="", path=f"/p/{name}.md") if name in self.prompts.values() else None

    def identify(self, system: bytes) -> Definition | None:
        self.asked += 1
        return next((self.named(self.prompts[text]) for text in texts_of(system) if text in self.prompts), None)


AGENTS = Known({"You review.": "code-reviewer", "You plan.": "planner"})


def config(*rules: RouteRule, mappings: Mapping[str, str] | None = None, openai: ProviderConfig = OPENAI) -> Config:
    return Config(
        routes=rules,
        subagents=SubagentConfig(mappings=mappings or {}),
        openai=openai,
        other_providers={"local": LOCAL},
    )


def facts(
    model: str | None = "claude-opus-4-5", path: str = "/v1/messages", system: str | None = None, **said: str
) -> RequestFacts:
    raw = None if system is None else json.dumps(system).encode()
    return RequestFacts(path=path, model=model, system=lambda: raw, **said)


class TestPrefix:
    """The model's prefix."""

    @pytest.mark.parametrize(
        ("model", "provider"),
        [
            ("claude-opus-4-5", "anthropic"),
            ("gpt-4o", "openai"),
            ("o1", "openai"),
            ("o3-mini", "openai"),
            ("o4-mini", "openai"),
            ("qwen3", "anthropic"),
            ("GPT-4o", "anthropic"),
            ("my-gpt-4o", "anthropic"),
            ("", "anthropic"),
            (None, "anthropic"),
        ],
    )
    def test_provider(self, model: str | None, provider: str) -> None:
        """OpenAI's are known; everything else is Anthropic's."""
        assert provider_of(model) == provider
        route = Router(config()).choose(facts(model))
        assert (route.provider, route.kind) == (provider, provider)
        assert (route.model, route.refusal, dict(route.headers)) == (None, None, {})

    def test_openai_that_is_not_set_up(self) -> None:
        """An Anthropic client's request stays with Anthropic; an OpenAI client brings its own key."""
        router = Router(Config())
        assert router.choose(facts("gpt-4o")).provider == "anthropic"
        assert "OPENAI_API_KEY" in router.choose(facts("gpt-4o")).why
        assert router.choose(facts("gpt-4o", path="/v1/chat/completions")).provider == "openai"
        assert router.choose(facts("claude-x", path="/v1/chat/completions")).provider == "anthropic"

    @pytest.mark.parametrize("path", ["/v1/models", "/v1/files", "/api/hello", "/v1/messages/batches"])
    def test_other_paths(self, path: str) -> None:
        """What asks no model is Anthropic's, whatever it says."""
        assert Router(config(mappings={"planner": "gpt-4o"})).choose(facts("gpt-4o", path=path)).provider == "anthropic"


class TestTrivial:
    """Whether a body need not be looked into."""

    def test_nothing_configured(self) -> None:
        """Then all that asks in Anthropic's form goes there, and `choose` would say nothing else."""
        router = Router(Config(other_providers={"local": LOCAL}))
        assert router.trivial
        for model in ("gpt-4o", "claude-opus-4-5", None):
            assert router.choose(facts(model)).provider == "anthropic"

    @pytest.mark.parametrize(
        "made",
        [
            config(openai=ProviderConfig(kind="openai", base_url="http://127.0.0.1:8000")),
            config(),
            config(RouteRule(model="x"), openai=ProviderConfig(kind="openai")),
            config(mappings={"a": "b"}, openai=ProviderConfig(kind="openai")),
        ],
    )
    def test_something_configured(self, made: Config) -> None:
        """A second provider that can be reached, a rule, a mapping."""
        assert not Router(made).trivial

    def test_mappings_that_are_switched_off(self) -> None:
        """They are none."""
        router = Router(Config(subagents=SubagentConfig(enable=False, mappings={"planner": "gpt-4o"})), AGENTS)
        assert router.trivial
        assert router.warnings() == []
        assert router.choose(facts(system="You plan.")).provider == "anthropic"


class TestRules:
    """Rules of the configuration."""

    @pytest.mark.parametrize(
        ("match", "fits", "does_not"),
        [
            (Match(model=("claude-opus-*",)), facts(), facts("claude-haiku-4-5")),
            (Match(model=("claude-opus-*",)), facts(), facts("Claude-opus-4-5")),
            (Match(model=("a", "claude-*-4-[5-9]")), facts(), facts("claude-opus-4-1")),
            (Match(model=("*",)), facts(), facts(None)),
            (Match(agent_type=("Explore",)), facts(agent_type="Explore"), facts()),
            (Match(request_class=("compaction",)), facts(request_class="compaction"), facts(request_class="main")),
            (Match(session=("0192*",)), facts(session="0192-abc"), facts(session="x0192")),
            (Match(path=("/v1/messages/*",)), facts(path="/v1/messages/count_tokens"), facts()),
            (Match(path=("/v1/files*",)), facts(path="/v1/files/x/content"), facts()),
            (Match(), facts(path="/v1/chat/completions"), facts(path="/v1/models")),
            (Match(agent=("code-*",)), facts(system="You review."), facts(system="You plan.")),
            (Match(agent=("Explore",)), facts(agent_type="Explore"), facts(agent_type="Plan")),
            (Match(model=("claude-*",), session=("s",)), facts(session="s"), facts("gpt-4o", session="s")),
        ],
    )
    def test_match(self, match: Match, fits: RequestFacts, does_not: RequestFacts) -> None:
        """Each criterion on what it is about; all of them must fit, and what is not said fits none."""
        router = Router(config(RouteRule(match=match, provider="local")), AGENTS)
        assert router.choose(fits).provider == "local"
        assert router.choose(does_not).provider != "local"

    def test_first_wins(self) -> None:
        """The first that matches is the only one, and mapped agents come after all."""
        router = Router(
            config(
                RouteRule(match=Match(session=("a",)), headers={"X-A": "1"}),
                RouteRule(match=Match(model=("claude-*",)), provider="local", model="qwen3"),
                mappings={"planner": "gpt-4o"},
            ),
            AGENTS,
        )
        first = router.choose(facts(session="a", system="You plan."))
        assert (first.provider, first.model, dict(first.headers)) == ("anthropic", None, {"X-A": "1"})
        second = router.choose(facts(system="You plan."))
        assert (second.provider, second.kind, second.model, dict(second.headers)) == ("local", "openai", "qwen3", {})
        third = router.choose(facts("other", system="You plan."))
        assert (third.provider, third.model, third.agent) == ("openai", "gpt-4o", "planner")

    @pytest.mark.parametrize(
        ("rule", "model", "outcome"),
        [
            (RouteRule(model="gpt-4o"), "claude-x", ("openai", "gpt-4o")),
            (RouteRule(model="claude-y"), "gpt-4o", ("anthropic", "claude-y")),
            (RouteRule(provider="local"), "claude-x", ("local", None)),
            (RouteRule(provider="local", model="gpt-4o"), "claude-x", ("local", "gpt-4o")),
            (RouteRule(model="claude-x"), "claude-x", ("anthropic", None)),
            (RouteRule(model="claude-x"), None, ("anthropic", "claude-x")),
            (RouteRule(headers={"X-A": "b"}), "gpt-4o", ("openai", None)),
        ],
    )
    def test_what_is_set(self, rule: RouteRule, model: str | None, outcome: tuple[str, str | None]) -> None:
        """Without a provider the model that is asked decides; a model that is asked already is no change."""
        route = Router(config(rule)).choose(facts(model))
        assert (route.provider, route.model) == outcome

    def test_refusal(self) -> None:
        """It says what to tell the client."""
        router = Router(config(RouteRule(match=Match(model=("claude-2*",)), refuse="Not any more.")))
        assert router.choose(facts("claude-2.1")).refusal == "Not any more."
        assert router.choose(facts()).refusal is None

    def test_why(self) -> None:
        """The rule, where it stands, and what matched; of headers nothing."""
        rule = RouteRule(
            match=Match(model=("claude-opus-*",), session=("s",)),
            headers={"Authorization": "hunter3"},
            where="config.yaml: routes.1 (line 7)",
        )
        route = Router(config(rule)).choose(facts(session="s"))
        assert route.why == (
            "config.yaml: routes.1 (line 7): model claude-opus-4-5 is like claude-opus-* and session is s"
        )
        assert "hunter" not in repr(route)
        assert route.headers["Authorization"] == "hunter3"
        assert Router(config(RouteRule(model="x"))).choose(facts()).why == "routes.1: it matches anything"


class TestAgents:
    """Which agent is asking."""

    ROUTER = Router(config(mappings={"code-reviewer": "gpt-4o", "Explore": "gpt-5-mini", "own-type": "o3"}), AGENTS)

    @pytest.mark.parametrize(
        ("asked", "agent"),
        [
            (facts(system="You review."), "code-reviewer"),
            (facts(system="You review.", agent_type="custom"), "code-reviewer"),
            (facts(system="You review.", request_class="subagent"), "code-reviewer"),
            (facts(system="You review.", request_class="main", agent_type="custom"), "code-reviewer"),
            (facts(system="You review.", request_class="main"), None),
            (facts(system="You review.", request_class="auxiliary"), None),
            (facts(system="You review.", agent_type="Explore"), "Explore"),
            (facts(system="You review.", agent_type="planner"), "planner"),
            (facts(system="You review.", agent_type="of-a-later-version"), "code-reviewer"),
            (facts(agent_type="own-type"), "own-type"),
            (facts(agent_type="custom"), None),
            (facts(system="You are Claude Code."), None),
            (facts(), None),
        ],
    )
    def test_who(self, asked: RequestFacts, agent: str | None) -> None:
        """The headers say so first, where they name one agent; then the system prompt."""
        route = self.ROUTER.choose(asked)
        assert route.agent == agent
        model = {"code-reviewer": "gpt-4o", "Explore": "gpt-5-mini", "own-type": "o3"}.get(agent or "")
        assert (route.model, route.provider) == (model, "openai" if model else "anthropic")

    def test_mapping_says_why(self) -> None:
        """Which agent, and how it is known."""
        assert self.ROUTER.choose(facts(system="You review.")).why == (
            "subagents.mappings: the agent is code-reviewer, as its system prompt is that of /p/code-reviewer.md"
        )

    def test_without_definitions(self) -> None:
        """Headers are enough for those whom they name."""
        router = Router(config(mappings={"Explore": "gpt-4o"}))
        assert router.choose(facts(agent_type="Explore")).model == "gpt-4o"
        assert router.choose(facts(system="You review.")).model is None

    def test_looked_for_only_when_it_matters(self) -> None:
        """Once for a request, and not at all where something cheaper decides, or nothing asks."""
        known = Known(AGENTS.prompts)
        rules = [
            RouteRule(match=Match(agent=("planner",), session=("s",)), model="a"),
            RouteRule(match=Match(agent=("code-reviewer",), session=("t",)), model="b"),
        ]
        router = Router(config(*rules, mappings={"x": "y"}), known)
        router.choose(facts(path="/v1/models", system="You plan."))
        assert known.asked == 0
        router.choose(facts(session="s", system="You plan."))
        assert known.asked == 1
        router.choose(facts(session="t", system="You plan."))
        assert known.asked == 2
        plain = Router(config(RouteRule(match=Match(session=("s",)), model="a")), known)
        plain.choose(facts(system="You plan."))
        assert known.asked == 2


class TestWarnings:
    """What is told at the start."""

    def test_agents_without_definition(self) -> None:
        """Each, with the directories that were looked into; built-in agents need none, patterns may wait for some."""
        rules = (
            RouteRule(match=Match(agent=("nobody", "code-*", "code-reviewer")), model="gpt-4o", where="here"),
            RouteRule(match=Match(agent=("Plan",)), model="gpt-4o"),
        )
        router = Router(config(*rules, mappings={"ghost": "gpt-4o", "planner": "gpt-4o", "Explore": "o3"}), AGENTS)
        looked = "/p/.claude/agents, /u/.claude/agents"
        assert router.warnings() == [
            f"subagents.mappings has no effect for ghost (gpt-4o): no file in {looked} defines that agent",
            f"here has no effect for nobody: no file in {looked} defines that agent",
        ]

    def test_openai_without_a_key(self) -> None:
        """Whoever leads there is named, and nobody else."""
        rules = (
            RouteRule(match=Match(session=("a",)), model="gpt-4o", where="one"),
            RouteRule(match=Match(session=("b",)), provider="openai", where="two"),
            RouteRule(match=Match(session=("c",)), provider="local", model="gpt-4o", where="three"),
            RouteRule(match=Match(session=("d",)), refuse="no", where="four"),
        )
        made = config(*rules, mappings={"planner": "o3"}, openai=ProviderConfig(kind="openai"))
        assert [warning.partition(": ")[0] for warning in Router(made, AGENTS).warnings()] == [
            "subagents.mappings, planner", "one", "two",
        ]  # fmt: skip
        assert Router(attrs.evolve(made, openai=OPENAI), AGENTS).warnings() == []

    def test_a_model_of_nobody(self) -> None:
        """A model that goes to Anthropic for want of a better place is pointed at, unless somebody says so."""
        rules = (
            RouteRule(match=Match(session=("a",)), model="qwen3", where="one"),
            RouteRule(match=Match(session=("b",)), model="qwen3", provider="local"),
            RouteRule(match=Match(session=("c",)), model="qwen3", provider="anthropic"),
            RouteRule(match=Match(session=("d",)), model="claude-x"),
        )
        found = Router(config(*rules, mappings={"planner": "qwen3:8b"}), AGENTS).warnings()
        assert [warning.partition(" is asked")[0] for warning in found] == [
            "subagents.mappings, planner: qwen3:8b", "one: qwen3",
        ]  # fmt: skip


class TestExplain:
    """What ``explain-route`` prints."""

    def test_explain(self) -> None:
        """What the request says, each rule as far as it came, and the outcome, without a credential."""
        rules = (
            RouteRule(match=Match(agent_type=("Explore",)), model="x"),
            RouteRule(match=Match(model=("claude-*",)), provider="local", model="y", headers={"X-Key": "hunter3"}),
            RouteRule(match=Match(model=("claude-opus-*", "gpt-*")), refuse="never reached"),
        )
        text = Router(config(*rules), AGENTS).explain(facts(session="s", system="You plan."))
        assert [" ".join(line.split()) for line in text.splitlines()] == [
            "path /v1/messages",
            "model claude-opus-4-5",
            "session s",
            "request class not said",
            "agent type not said",
            "agent planner: its system prompt is that of /p/planner.md",
            "routes.1 no: it has no agent type",
            "routes.2 yes: model claude-opus-4-5 is like claude-*",
            "provider local (openai, http://127.0.0.1:8000)",
            "asks for y",
            "sets X-Key",
            "because routes.2: model claude-opus-4-5 is like claude-*",
        ]

    def test_refusal(self) -> None:
        """A refused request has no provider."""
        text = Router(config(RouteRule(refuse="Not today."))).explain(facts())
        assert "refused        Not today." in text
        assert "provider" not in text

    def test_by_prefix(self) -> None:
        """Without a rule too, it says why."""
        text = Router(config()).explain(facts("claude-x"))
        assert "asks for       claude-x, as the client does" in text
        assert "because        no rule matched, and claude-x is of anthropic" in text


class TestFacts:
    """A request that is at hand whole."""

    def test_all(self) -> None:
        """From headers whatever their case, and from the body what they do not say."""
        body = {
            "model": "claude-opus-4-5",
            "system": [{"type": "text", "text": "You review."}],
            "metadata": {"user_id": json.dumps({"session_id": "from-body"})},
            "messages": [],
        }
        headers = [("X-Claude-Code-Agent-Type", "custom"), ("x-claude-code-request-class", "subagent")]
        made = request_facts("/v1/messages?beta=true", headers, json.dumps(body).encode())
        assert made == facts(session="from-body", request_class="subagent", agent_type="custom")
        assert Router(config(), AGENTS).choose(made).provider == "anthropic"
        assert Router(config(mappings={"code-reviewer": "gpt-4o"}), AGENTS).choose(made).model == "gpt-4o"
        made = request_facts("/v1/messages", [("X-Claude-Code-Session-Id", "from-header")], json.dumps(body).encode())
        assert made.session == "from-header"

    @pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": 5}', b"\xff"])
    def test_bodies_that_are_none(self, body: bytes) -> None:
        """They say nothing, and that is no error."""
        assert request_facts("/v1/messages", [], body) == RequestFacts(path="/v1/messages")


class TestFile:
    """A request in a file."""

    def test_body_alone(self) -> None:
        """It is one of ``/v1/messages``, byte for byte."""
        content = b' {"model": "x",  "messages": []}\n'
        assert read_request(content) == ("/v1/messages", [], content)

    @pytest.mark.parametrize("headers", ['{"A": "b"}', '[["A", "b"]]'])
    def test_whole(self, headers: str) -> None:
        """Path, headers as a mapping or a list, and the body's bytes as they stand there."""
        content = f'{{"path": "/v1/x?y", "headers": {headers}, "body": {{"model":  "m"}}}}'.encode()
        assert read_request(content) == ("/v1/x?y", [("A", "b")], b'{"model":  "m"}')

    def test_body_as_text(self) -> None:
        """A body that was written as a string is what the string holds."""
        assert read_request(b'{"body": "{\\"model\\": \\"m\\"}"}') == ("/v1/messages", [], b'{"model": "m"}')

    @pytest.mark.parametrize(
        "content", [b"", b"[]", b"{", b'{"body": {}, "path": 5}', b'{"body": {}, "headers": 5}', b'{"body": "\\ud800"}',
                    b"\xff", b"[" * 100_000]
    )  # fmt: skip
    def test_wrong(self, content: bytes) -> None:
        """What is no request is said so."""
        with pytest.raises(BadRequestFile, match=r"^is no"):
            read_request(content)
