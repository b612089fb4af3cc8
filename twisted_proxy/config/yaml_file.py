"""Reading ``config.yaml``: what was set there, on which line, and what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import yaml

from twisted_proxy.config import values
from twisted_proxy.config.routes import CRITERIA, Match, RouteRule
from twisted_proxy.config.settings import ANY, SETTINGS, Leaf, Setting, Structure, Tree, yaml_tree
from twisted_proxy.config.sources import Findings, Given, GivenProvider, GivenRule, Rank, read_text
from twisted_proxy.config.values import Kind

_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp"))
_NULL = "tag:yaml.org,2002:null"

_OF_EACH_KIND: Mapping[str, Kind[Any]] = {
    "kind": values.PROVIDER_KIND,
    "base_url": values.BASE_URL,
    "api_key": values.API_KEY,
    "response_header_timeout": values.SECONDS,
    "max_retries": values.RETRIES,
    "idle_timeout": values.SECONDS,
}
PROVIDER_KEYS: Mapping[str, Mapping[str, Kind[Any]]] = {
    "openai": _OF_EACH_KIND,
    "anthropic": {**_OF_EACH_KIND, "version": values.VERSION, "demote_nonstreaming": values.SWITCH},
}
"""The keys of a provider under a name of its own, by its kind. They are fields of `ProviderConfig`."""

_RULE_KEYS: Mapping[str, Kind[Any]] = {
    "provider": values.PROVIDER,
    "model": values.MODEL,
    "refuse": values.REFUSAL,
}


def read_yaml(path: Path, *, named_by: str | None = None) -> Findings:
    """Read ``config.yaml``. Scalars are taken as they are written (``2023-06-01`` is no date), null as unset.

    ``named_by`` says who asked for this very file, which then must exist.
    """
    findings = Findings()
    label = str(path) if named_by else path.name
    text = read_text(path, label, findings, named_by)
    if text is None:
        return findings
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # Of a ComposerError the words repeat a name out of the file.
        why = "undefined or repeated anchor" if isinstance(error, yaml.composer.ComposerError) else error.problem
        findings.problem(label, f"is not YAML{place}: {why}")
        return findings
    except (yaml.YAMLError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else "a character that YAML does not allow"
        findings.problem(label, f"is not YAML: {why}")
        return findings
    _Document(label, findings).section(root, yaml_tree(), "")
    return findings


@attrs.define
class _Document:
    label: str
    findings: Findings

    def where(self, place: str, node: yaml.Node) -> str:
        return f"{self.label}: {place} (line {node.start_mark.line + 1})"

    # -- mappings --------------------------------------------------------------------------------------------

    def members(
        self, node: yaml.Node | None, known: Collection[str], place: str
    ) -> Iterator[tuple[str, yaml.Node, str]]:
        """The members of a mapping whose keys are ``known``: name, value and place of each. The rest is a problem.

        Where `ANY` is known, every name is.
        """
        if node is None or node.tag == _NULL:
            return
        if not isinstance(node, yaml.MappingNode):
            keys = "" if ANY in known and len(known) == 1 else f"; its keys are {_names(known)}"
            self.findings.problem(
                self.where(place or "the file", node), f"is {_shape(node)} where a mapping is wanted{keys}"
            )
            return
        seen: dict[str, int] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            below = f"{place}.{name}".lstrip(".")
            if name is None:
                self.findings.problem(self.where(place or "the file", key), "has a key that is not a word")
            elif name in seen:
                self.findings.problem(
                    self.where(below, key), f"is there twice; first on line {seen[name]}; one must go"
                )
            elif name not in known and ANY not in known:
                self.findings.problem(self.where(below, key), f"is unknown{_meant(below, name, known)}")
            else:
                yield name, value, below
            if name is not None:
                seen.setdefault(name, key.start_mark.line + 1)

    def section(self, node: yaml.Node | None, tree: Tree, place: str) -> None:
        for name, value, below in self.members(node, tree, place):
            known = tree[name] if name in tree else tree[ANY]
            if isinstance(known, dict):
                self.section(value, known, below)
            else:
                self.entry(name, value, known, below)

    def entry(self, name: str, node: yaml.Node, known: Leaf, place: str) -> None:
        if node.tag == _NULL:
            return
        if known is None:
            self.findings.warnings.append(f"{self.where(place, node)} has no effect in this version")
        elif known is Structure.PROVIDER:
            self.provider(name, node, place)
        elif known is Structure.ROUTES:
            self.routes(node, place)
        elif isinstance(known, Setting):
            self.setting(node, known, place)

    # -- settings --------------------------------------------------------------------------------------------

    def setting(self, node: yaml.Node, setting: Setting, place: str) -> None:
        kind = setting.kind
        if kind.pairs and isinstance(node, yaml.MappingNode):
            for name, value, below in self.members(node, (ANY,), place):
                text = None if value.tag == _NULL else self.text(value, kind, below)
                if text is not None:
                    if ":" in name:
                        self.findings.problem(self.where(below, value), "has a colon in its name")
                    else:
                        self.give(setting, f"{name}:{text}", below, value)
        elif kind.many and isinstance(node, yaml.SequenceNode):
            for item in self.items(node, kind, place):
                text = self.text(item, kind, place)
                if text is not None:
                    self.give(setting, text, place, item)
        else:
            text = self.text(node, kind, place)
            for each in kind.split(text.strip()) if text else ():
                if each:
                    self.give(setting, each, place, node)

    def give(self, setting: Setting, text: str, place: str, node: yaml.Node) -> None:
        self.findings.given.append(Given(setting, text, Rank.FILE, self.where(place, node)))

    def items(self, node: yaml.SequenceNode, kind: Kind[Any], place: str) -> list[yaml.Node]:
        items: list[yaml.Node] = node.value
        if not items:
            self.findings.problem(self.where(place, node), f"is an empty list; allowed: one or more of {kind.allowed}")
        return items

    def text(self, node: yaml.Node, kind: Kind[Any], place: str) -> str | None:
        """The text of a scalar; `None` where it is none, which is a problem."""
        if isinstance(node, yaml.ScalarNode) and node.tag in _PLAIN_TAGS:
            return str(node.value)
        what = "has a tag" if isinstance(node, yaml.ScalarNode) else f"is {_shape(node)}"
        self.findings.problem(self.where(place, node), f"{what}; allowed: {kind.allowed}")
        return None

    def value(self, node: yaml.Node, kind: Kind[Any], place: str, key: str | None = None) -> Any:
        """The value of a scalar, with ``key`` that of the pair; `None` where it has none, which is a problem."""
        text = self.text(node, kind, place)
        if text is None:
            return None
        try:
            return kind.parse(text if key is None else (key, text))
        except ValueError as error:
            self.findings.problem(self.where(place, node), f"{kind.quote(text)} {kind.explain(str(error))}")
            return None

    # -- providers and routes --------------------------------------------------------------------------------

    def provider(self, name: str, node: yaml.Node, place: str) -> None:
        try:
            values.parse_provider(name)
        except ValueError as error:
            self.findings.problem(self.where(place, node), f"{values.PROVIDER.explain(str(error))}")
            return
        kind = "anthropic"
        if isinstance(node, yaml.MappingNode):
            kinds = [str(value.value).strip() for key, value in node.value if key.value == "kind"]
            if not kinds:
                close = difflib.get_close_matches(name, list(PROVIDER_KEYS), n=1, cutoff=0.7)
                hint = f"did you mean {close[0]}? A provider of yours" if close else "it"
                self.findings.problem(self.where(place, node), f"has no kind; {hint} must say: anthropic or openai")
            elif kinds[0] in PROVIDER_KEYS:
                kind = kinds[0]
        keys = PROVIDER_KEYS[kind]
        found: dict[str, tuple[Any, str]] = {}
        for key, value, below in self.members(node, keys, place):
            read = None if value.tag == _NULL else self.value(value, keys[key], below)
            if read is not None:
                found[key] = (read, self.where(below, value))
        self.findings.providers[name] = GivenProvider(where=self.where(place, node), values=found)

    def routes(self, node: yaml.Node, place: str) -> None:
        if not isinstance(node, yaml.SequenceNode):
            self.findings.problem(self.where(place, node), f"is {_shape(node)} where a list of rules is wanted")
            return
        for number, item in enumerate(node.value, 1):
            self.findings.routes.append(self.rule(item, f"{place}.{number}"))

    def rule(self, node: yaml.Node, place: str) -> GivenRule:
        problems = len(self.findings.problems)
        where = {"": self.where(place, node)}
        found: dict[str, Any] = {"where": where[""]}
        if node.tag == _NULL:
            self.findings.problem(where[""], "is empty")
        for key, value, below in self.members(node, ("match", *_RULE_KEYS, "headers"), place):
            where[key] = self.where(below, value)
            if value.tag == _NULL:
                continue
            if key == "match":
                found[key] = self.match(value, below)
            elif key == "headers":
                found[key] = self.headers(value, below)
            else:
                found[key] = self.value(value, _RULE_KEYS[key], below)
        sound = len(self.findings.problems) == problems
        return GivenRule(rule=RouteRule(**found) if sound else None, where=where)

    def match(self, node: yaml.Node, place: str) -> Match:
        found: dict[str, tuple[str, ...]] = {}
        for key, value, below in self.members(node, CRITERIA, place):
            if value.tag == _NULL:
                continue
            nodes = self.items(value, values.GLOB, below) if isinstance(value, yaml.SequenceNode) else [value]
            patterns = [self.value(each, values.GLOB, below) for each in nodes]
            found[key] = tuple(pattern for pattern in patterns if pattern is not None)
        return Match(**found)

    def headers(self, node: yaml.Node, place: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, value, below in self.members(node, (ANY,), place):
            header = self.value(value, values.HEADER, below, key=name)
            if header is None:
                continue
            if any(other.lower() == name.lower() for other in found):
                self.findings.problem(self.where(below, value), "is there twice; the names of headers have no case")
            found[header[0]] = header[1]
        return found


def _shape(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "a mapping" if isinstance(node, yaml.MappingNode) else "a single value"


def _names(known: Collection[str]) -> str:
    return ", ".join("names of your own" if name == ANY else name for name in known)


def _meant(place: str, name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    if close:
        return f"; did you mean {place.removesuffix(name)}{close[0]}?"
    # The right word in the wrong section, or the name of the environment: `port` at the top,
    # `server.read_timeout`.
    # But what one provider has is no advice for another.
    for setting in SETTINGS if not place.startswith("providers.") else ():
        if setting.yaml and name.lower() in (setting.yaml.rpartition(".")[2], setting.env.lower()):
            return f"; did you mean {setting.yaml}?"
    return f"; {place.rpartition('.')[0] or 'the file'} has {_names(known)}"
