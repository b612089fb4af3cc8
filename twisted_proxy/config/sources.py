"""Reading the places in which a configuration is written: what was set there, and what is wrong."""

from __future__ import annotations

import difflib
import enum
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import dotenv.parser

from twisted_proxy.config.routes import RouteRule
from twisted_proxy.config.settings import SETTINGS, Setting
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


@attrs.frozen(kw_only=True)
class GivenProvider:
    """A provider of ``config.yaml``; each value with the place where it stands. Without a kind it is not whole."""

    where: str
    values: Mapping[str, tuple[Any, str]]


@attrs.frozen(kw_only=True)
class GivenRule:
    """A rule of ``config.yaml``, and where each of its keys stands, itself as ``""``; `None`: it could not be read."""

    rule: RouteRule | None
    where: Mapping[str, str]


@attrs.define
class Findings:
    """What the sources hold, in the order in which it was found."""

    given: list[Given] = attrs.Factory(list)
    problems: list[Problem] = attrs.Factory(list)
    warnings: list[str] = attrs.Factory(list)
    providers: dict[str, GivenProvider] = attrs.Factory(dict)
    routes: list[GivenRule] = attrs.Factory(list)

    def add(self, other: Findings) -> None:
        """Append what ``other`` holds."""
        self.given += other.given
        self.problems += other.problems
        self.warnings += other.warnings
        self.providers |= other.providers
        self.routes += other.routes

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
        # Of a list each item is an option of its own: white space may belong to it. Pairs have none.
        for item in (setting.kind.split(text) or [text]) if setting.kind.pairs else [text]:
            findings.given.append(Given(setting, item, Rank.OPTION, where))
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


def read_environment(environ: Mapping[str, str]) -> Findings:
    """Read the variables that are ours; an empty one counts as not set."""
    findings = Findings()
    for setting in SETTINGS:
        where = f"environment {setting.env}"
        for text in setting.kind.split(environ.get(setting.env, "").strip()):
            if text:
                findings.given.append(Given(setting, text, Rank.ENVIRONMENT, where))
    return findings


# -- files ---------------------------------------------------------------------------------------------------


def read_text(path: Path, label: str, findings: Findings, named_by: str | None = None) -> str | None:
    """The text of a file; `None` where it is not there, or cannot be read, which is then a problem of ``label``.

    ``named_by`` says who asked for this very file, which then must exist.
    """
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
    text = read_text(path, path.name, findings)
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
        for item in setting.kind.split((value or "").strip()):
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
