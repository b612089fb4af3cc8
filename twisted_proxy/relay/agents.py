"""
The agents that a project and its user have defined for Claude Code, and which of them a system prompt is that of.

A definition is a file ``NAME.md``: front matter in YAML between two lines ``---``, then the prompt
(https://code.claude.com/docs/en/sub-agents). Claude Code sends the prompt at the beginning of a block of its own,
followed by what it adds: what the agent is to remember, notes, the environment.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import msgspec
import yaml

MAX_FILES = 500
"""Definitions that are read of one directory."""
MAX_FILE_BYTES = 256 * 1024
"""Larger files are none."""
MAX_DEPTH = 8
"""Directories below directories that are looked into."""
MAX_YAML = 16 * 1024
"""Characters of a front matter beyond which it is read line by line: a parser of YAML takes its time."""
CHECK_EVERY = 1.0
"""Seconds for which what was seen of the files is believed."""


@attrs.frozen(kw_only=True)
class Definition:
    """One agent."""

    name: str
    """As the front matter says; the file's name without ``.md`` where it says none."""
    prompt: str
    """All that stands behind the front matter, without white space around it."""
    path: str
    description: str | None = None
    model: str | None = None
    tools: str | None = None

    @property
    def static_prompt(self) -> str:
        """The prompt up to a line that begins with ``Notes:``, which differs from one request to the next."""
        return static_part(self.prompt)


_NOTES = re.compile(r"^Notes:", re.MULTILINE)


def static_part(prompt: str) -> str:
    """``prompt`` up to a line that begins with ``Notes:``, without white space around it."""
    found = _NOTES.search(prompt)
    return (prompt[: found.start()] if found else prompt).strip()


_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(?P<yaml>.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_LINE = re.compile(r"^(?P<key>[A-Za-z][\w-]*):[ \t]*(?P<value>.*)$", re.MULTILINE)


def read_definition(text: str, path: str) -> Definition:
    """The agent that ``text``, the contents of the file ``path``, defines."""
    text = text.replace("\r\n", "\n").removeprefix("\ufeff")
    matter = _FRONT_MATTER.match(text)
    fields = _fields(matter["yaml"]) if matter else {}
    return Definition(
        name=fields.get("name") or Path(path).stem,
        prompt=text[matter.end() if matter else 0 :].strip(),
        path=path,
        description=fields.get("description") or None,
        model=fields.get("model") or None,
        tools=fields.get("tools") or None,
    )


def _fields(front_matter: str) -> Mapping[str, str]:
    read: object = None
    if len(front_matter) <= MAX_YAML:
        try:
            # It makes strings, lists and mappings, and nothing else.
            read = yaml.load(front_matter, Loader=yaml.BaseLoader)  # noqa: S506
        except (yaml.YAMLError, RecursionError):
            read = None
    if not isinstance(read, dict):
        # Claude Code writes descriptions that are no YAML ("Examples: …: …"), and takes them.
        read = {match["key"]: match["value"].strip().strip("\"'") for match in _LINE.finditer(front_matter)}
    fields = {}
    for key, value in read.items():
        words = value if isinstance(value, list) else [value]
        if isinstance(key, str) and all(isinstance(word, str) for word in words):
            fields[key] = ", ".join(words).strip()
    return fields


class _Block(msgspec.Struct):
    text: str = ""


_SYSTEM = msgspec.json.Decoder(str | list[_Block])


def texts_of(system: bytes) -> list[str]:
    """The texts of a request's ``system``, raw JSON: a string, or blocks. None, where it is neither."""
    try:
        read = _SYSTEM.decode(system)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return []
    return [read] if isinstance(read, str) else [block.text for block in read]


@attrs.frozen
class _Seen:
    """What tells whether a file is still the one that was read."""

    inode: int
    size: int
    changed_ns: int


@attrs.frozen
class _Known:
    """The definitions as they were read, and what prompts are compared with."""

    by_name: Mapping[str, Definition] = attrs.Factory(dict)
    by_prompt: Sequence[tuple[str, Definition]] = ()
    """The longest prompt first."""
    by_static_part: Mapping[str, Definition] = attrs.Factory(dict)
    """Without those that several agents share."""


class Agents:
    """
    The agents defined in the Markdown files of some directories and those below them; an earlier directory wins.

    Files that change are read again. Whether they have is looked up when somebody asks, and at most once a second;
    nothing is read but regular files of a limited size and number. What cannot be read is passed over with a warning.

    :param directories: they need not exist.
    :param now: a clock in seconds that never goes back.
    :param warn: is told, in a sentence, of each file that cannot be read.
    """

    def __init__(
        self, directories: Iterable[Path], now: Callable[[], float], warn: Callable[[str], None] = lambda _: None
    ) -> None:
        self.directories = tuple(directories)
        self._now = now
        self._warn = warn
        self._checked: float | None = None
        self._seen: Mapping[str, _Seen] = {}
        self._read: dict[str, Definition] = {}
        self._known = _Known()

    def named(self, name: str) -> Definition | None:
        """The definition of the agent ``name``."""
        return self._current().by_name.get(name)

    def identify(self, system: bytes) -> Definition | None:
        """
        The agent whose prompt stands in ``system``, a request's member as raw JSON, in whichever block.

        A block that begins with an agent's whole prompt is that agent's, the longest such prompt's; else one whose part
        before ``Notes:`` is that of exactly one agent.
        """
        known = self._current()
        if not known.by_prompt:
            return None
        texts = [text.replace("\r\n", "\n").lstrip() for text in texts_of(system)]
        for prompt, definition in known.by_prompt:
            for text in texts:
                if text.startswith(prompt) and text[len(prompt) : len(prompt) + 1] in ("", "\n"):
                    return definition
        for text in texts:
            found = known.by_static_part.get(static_part(text))
            if found is not None:
                return found
        return None

    def _current(self) -> _Known:
        now = self._now()
        if self._checked is None or now - self._checked >= CHECK_EVERY:
            self._checked = now
            self._check()
        return self._known

    def _check(self) -> None:
        seen = {path: each for directory in self.directories for path, each in _files(directory)}
        if seen == self._seen:
            return
        before, self._seen = self._seen, seen
        read = {}
        for path, each in seen.items():
            definition = self._read.get(path) if before.get(path) == each else self._read_file(path)
            if definition is not None:
                read[path] = definition
        self._read = read
        self._known = _known(read.values())

    def _read_file(self, path: str) -> Definition | None:
        try:
            return read_definition(Path(path).read_bytes().decode(), path)
        except OSError as error:
            self._warn(f"the agent definition {path} cannot be read: {error.strerror or type(error).__name__}")
        except UnicodeDecodeError as error:
            self._warn(f"the agent definition {path} is not UTF-8 at byte {error.start}")
        return None


def _known(definitions: Iterable[Definition]) -> _Known:
    by_name: dict[str, Definition] = {}
    for definition in definitions:
        by_name.setdefault(definition.name, definition)
    static: dict[str, list[Definition]] = {}
    for definition in by_name.values():
        static.setdefault(definition.static_prompt, []).append(definition)
    return _Known(
        by_name=by_name,
        by_prompt=sorted(
            ((each.prompt, each) for each in by_name.values() if each.prompt), key=lambda pair: -len(pair[0])
        ),
        by_static_part={part: found[0] for part, found in static.items() if part and len(found) == 1},
    )


def _files(directory: Path) -> Iterator[tuple[str, _Seen]]:
    """The Markdown files in ``directory``, in the order of their names, and what is to be seen of them."""
    found: list[tuple[str, _Seen]] = []
    for place, below, names in os.walk(directory):
        if len(Path(place).relative_to(directory).parts) >= MAX_DEPTH:
            below.clear()
        below.sort()
        for name in sorted(names):
            if not name.endswith(".md") or len(found) == MAX_FILES:
                continue
            path = str(Path(place) / name)
            try:
                status = os.stat(path)  # noqa: PTH116 (half the cost of Path.stat, for each file each second)
            except OSError:
                continue  # It went since, or is a link to nowhere.
            # A FIFO would hold up whoever reads it.
            if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_FILE_BYTES:
                found.append((path, _Seen(status.st_ino, status.st_size, status.st_mtime_ns)))
    return iter(found)


def default_directories() -> tuple[Path, ...]:
    """
    Where Claude Code looks: the project's definitions, then the user's.

    The first is relative, as ``twistd`` goes to its ``--rundir`` only after the proxy was built.
    """
    project = Path(".claude", "agents")
    try:
        return project, Path.home() / ".claude" / "agents"
    except RuntimeError:  # There is no home.
        return (project,)
