"""Reading the places in which a configuration is written: what was set there, and what is wrong."""

from __future__ import annotations

import difflib
import enum
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs
import dotenv.parser
import yaml

from twisted_proxy.config.settings import SETTINGS, Setting, Tree, yaml_tree
from twisted_proxy.config.values import quote_url


class Rank(enum.IntEnum):
    """The kinds of source; a higher one wins."""

    DEFAULT = 0
    FILE = 1
    DOTENV = 2
    ENVIRONMENT = 3
    OPTION = 4


@attrs.frozen
class Given:
    """Something that was set: the text, and where it stands, in words."""

    setting: Setting
    text: str
    rank: Rank
    where: str


@attrs.frozen
class Problem:
    """Something that is wrong: where, and what, in words that hold no secret."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@attrs.define
class Findings:
    """What the sources hold, in the order in which it was found."""

    given: list[Given] = attrs.Factory(list)
    problems: list[Problem] = attrs.Factory(list)
    warnings: list[str] = attrs.Factory(list)

    def add(self, other: Findings) -> None:
        """Append what ``other`` holds."""
        self.given += other.given
        self.problems += other.problems
        self.warnings += other.warnings

    def problem(self, where: str, what: str) -> None:
        """Append a problem."""
        self.problems.append(Problem(where, what))


# -- the command line ----------------------------------------------------------------------------------------


@attrs.frozen
class CommandLine:
    """The arguments, read. ``wants`` is ``"help"`` or ``"version"`` when that was asked for instead."""

    findings: Findings
    wants: str | None = None


def read_arguments(arguments: Sequence[str]) -> CommandLine:
    """Read ``--name=value`` and ``--name value``, to the end in spite of mistakes.

    A switch takes its value after ``=``, or as the next argument if that is one of its words. Names are not
    abbreviated: what is unambiguous today need not be after the next setting.
    """
    findings = Findings()
    by_option = {setting.option: setting for setting in SETTINGS}
    left = list(arguments)
    last: Setting | None = None
    while left:
        argument, before, last = left.pop(0), last, None
        name, equals, text = argument.partition("=")
        if argument in ("--help", "--version"):
            return CommandLine(findings, wants=argument[2:])
        setting = by_option.get(name[2:]) if name.startswith("--") else None
        if setting is None:
            # What follows an unknown option is its value, and perhaps a secret: it is passed over in silence.
            if argument.startswith("-") and not equals and left and not left[0].startswith("-"):
                left.pop(0)
            if not argument.startswith("-"):
                shown = "" if before is not None and before.secret else f" {quote_url(argument)}"
                findings.problem("command line", f"unexpected argument{shown}; only options are allowed")
            else:
                _unknown(findings, name, by_option)
            continue
        last = setting
        where = f"option --{setting.option}"
        if not equals:
            if setting.kind.switch:
                text = left.pop(0) if left and _is_word_of(setting, left[0]) else "true"
            elif not left or left[0].startswith("--"):
                findings.problem(where, f"needs an argument; allowed: {setting.kind.allowed}")
                continue
            else:
                text = left.pop(0)
        findings.given.append(Given(setting, text, Rank.OPTION, where))
    return CommandLine(findings)


def _is_word_of(setting: Setting, text: str) -> bool:
    try:
        setting.kind.parse(text)
    except ValueError:
        return False
    return True


def _unknown(findings: Findings, name: str, options: Iterable[str]) -> None:
    if not name.startswith("--"):
        # -n and -l are twistd's: by far the likeliest reason to be here.
        findings.problem(
            "command line",
            f"unknown option {name[:2]!r}; options of twistd itself go before the word claude-proxy",
        )
    else:
        close = difflib.get_close_matches(name[2:], list(options), n=1, cutoff=0.6)
        hint = f"; did you mean --{close[0]}?" if close else "; --help lists all"
        findings.problem(f"option {name}" if name.isprintable() else f"option {name!r}", "is unknown" + hint)


# -- the environment -----------------------------------------------------------------------------------------


def _texts(setting: Setting, text: str) -> list[str]:
    return text.split() if setting.kind.many else [text]


def read_environment(environ: Mapping[str, str]) -> Findings:
    """Read the variables that are ours; an empty one counts as not set."""
    findings = Findings()
    for setting in SETTINGS:
        where = f"environment {setting.env}"
        for text in _texts(setting, environ.get(setting.env, "").strip()):
            if text:
                findings.given.append(Given(setting, text, Rank.ENVIRONMENT, where))
    return findings


# -- files ---------------------------------------------------------------------------------------------------


def _read_text(path: Path, label: str, findings: Findings, named_by: str | None = None) -> str | None:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        if named_by:
            findings.problem(named_by, f"there is no file {label}")
    except OSError as error:
        findings.problem(label, f"cannot be read: {error.strerror or type(error).__name__}")
    except UnicodeDecodeError as error:
        findings.problem(label, f"is not UTF-8 at byte {error.start}")
    return None


def read_dotenv(path: Path) -> Findings:
    """Read ``.env``, if it is there. A name that is not ours is another program's, or looks like a slip."""
    findings = Findings()
    text = _read_text(path, path.name, findings)
    by_env = {setting.env: setting for setting in SETTINGS}
    for binding in dotenv.parser.parse_stream(io.StringIO(text or "")):
        # A binding's text begins with the blank lines before it.
        blank = re.match(r"\s*", binding.original.string)
        line = binding.original.line + (blank[0].count("\n") if blank else 0)
        if binding.error:
            findings.problem(path.name, f"line {line} cannot be read; a line is NAME=VALUE, or a comment after #")
            continue
        name, value = binding.key, binding.value
        if name is None:
            continue
        setting = by_env.get(name)
        if setting is None:
            meant = next((known for known in by_env if looks_like(name, known)), None)
            if meant is not None:
                findings.problem(f"{path.name}: {name} (line {line})", f"is unknown; did you mean {meant}?")
            continue
        for item in _texts(setting, (value or "").strip()):
            if item:
                findings.given.append(Given(setting, item, Rank.DOTENV, f"{path.name}: {name}"))
    return findings


def looks_like(name: str, known: str) -> bool:
    """Whether ``name`` is ``known`` with a slip.

    That is: other case or separators; one letter wrong, missing, added or swapped (two in a long name). In a
    name of four or five letters only a swap counts: ``PORTS`` and ``POST`` are words of their own.
    """
    plain, target = ("".join(filter(str.isalnum, word)).upper() for word in (name, known))
    if plain == target:
        return True
    if len(target) < 6:
        return len(plain) == len(target) and sorted(plain) == sorted(target) and _distance(plain, target) == 1
    return _distance(plain, target) <= (2 if len(target) >= 12 else 1)


def _distance(a: str, b: str) -> int:
    # Optimal string alignment: insertions, deletions, substitutions, and swaps of neighbours.
    if abs(len(a) - len(b)) > 2:
        return 3
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp"))
_NULL = "tag:yaml.org,2002:null"


def read_yaml(path: Path, *, named_by: str | None = None) -> Findings:
    """Read ``config.yaml``. Scalars are taken as they are written (``2023-06-01`` is no date), null as unset.

    ``named_by`` says who asked for this very file, which then must exist.
    """
    findings = Findings()
    label = str(path) if named_by else path.name
    text = _read_text(path, label, findings, named_by)
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

    def section(self, node: yaml.Node | None, tree: Tree, place: str) -> None:
        if node is None or node.tag == _NULL:
            return
        if not isinstance(node, yaml.MappingNode):
            self.findings.problem(
                self.where(place or "the file", node),
                f"is {_shape(node)} where a mapping is wanted; its keys are {', '.join(tree)}",
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
            elif name not in tree:
                self.findings.problem(self.where(below, key), f"is unknown{_meant(below, name, tree)}")
            else:
                self.entry(value, tree[name], below)
            if name is not None:
                seen.setdefault(name, key.start_mark.line + 1)

    def entry(self, node: yaml.Node, known: Tree | Setting | None, place: str) -> None:
        if isinstance(known, dict):
            self.section(node, known, place)
        elif node.tag == _NULL:
            return
        elif known is None:
            self.findings.warnings.append(f"{self.where(place, node)} has no effect in this version")
        elif known.kind.many and isinstance(node, yaml.SequenceNode):
            if not node.value:
                self.findings.problem(
                    self.where(place, node), f"is an empty list; allowed: one or more of {known.kind.allowed}"
                )
            for item in node.value:
                self.scalar(item, known, place, whole=True)
        else:
            self.scalar(node, known, place, whole=False)

    def scalar(self, node: yaml.Node, setting: Setting, place: str, *, whole: bool) -> None:
        where = self.where(place, node)
        if not isinstance(node, yaml.ScalarNode):
            self.findings.problem(where, f"is {_shape(node)}; allowed: {setting.kind.allowed}")
        elif node.tag not in _PLAIN_TAGS:
            self.findings.problem(where, f"has a tag; allowed: {setting.kind.allowed}")
        else:
            for text in [node.value] if whole else _texts(setting, node.value.strip()):
                if text or whole:
                    self.findings.given.append(Given(setting, text, Rank.FILE, where))


def _shape(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "a mapping" if isinstance(node, yaml.MappingNode) else "a single value"


def _meant(place: str, name: str, tree: Tree) -> str:
    close = difflib.get_close_matches(name, list(tree), n=1, cutoff=0.7)
    if close:
        return f"; did you mean {place.removesuffix(name)}{close[0]}?"
    # The right word in the wrong section, or the name of the environment: `port` at the top,
    # `server.read_timeout`.
    for setting in SETTINGS:
        if setting.yaml and name.lower() in (setting.yaml.rpartition(".")[2], setting.env.lower()):
            return f"; did you mean {setting.yaml}?"
    return f"; {place.rpartition('.')[0] or 'the file'} has {', '.join(tree)}"
