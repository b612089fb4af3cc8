"""Agent definitions: what is read of them, when, and which system prompt is whose."""

from __future__ import annotations

import json
import os
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_proxy.relay import agents as agents_module
from twisted_proxy.relay.agents import Agents, default_directories, read_definition, static_part, texts_of

# As Claude Code 2.1 wrote it behind an agent's prompt, cut short.
NOTES = "\n\nNotes:\n- Agent threads always have their cwd reset.\n\n<env>\nWorking directory: /x\n</env>"
MEMORY = "\n\n# Persistent Agent Memory\n\nYou have a persistent, file-based memory system."
BILLING = "x-anthropic-billing-header: cc_version=2.1.330; cc_entrypoint=cli; cc_is_subagent=true;"
SDK = "You are a Claude agent, built on Anthropic's Claude Agent SDK."


def system(*texts: str) -> bytes:
    return json.dumps([{"type": "text", "text": text} for text in texts]).encode()


@attrs.define
class Shelf:
    """A project's directory and a user's, a clock, and what was warned of."""

    project: Path
    user: Path
    now: float = 0.0
    warnings: list[str] = attrs.Factory(list)

    def put(self, name: str, text: str, *, user: bool = False) -> Path:
        path = (self.user if user else self.project) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def agents(self) -> Agents:
        return Agents((self.project, self.user), lambda: self.now, self.warnings.append)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "project" / ".claude" / "agents", tmp_path / "home" / ".claude" / "agents")


def names(agents: Agents, *systems: bytes) -> list[str | None]:
    found = [agents.identify(each) for each in systems]
    return [definition.name if definition else None for definition in found]


class TestDefinition:
    """One file."""

    def test_whole(self) -> None:
        """Name, description, tools and model of the front matter; the prompt is all that follows, rules and all."""
        definition = read_definition(
            "---\nname: code-reviewer\ndescription: Reviews.\ntools: [Read, Grep]\nmodel: sonnet\ncolor: red\n---\n\n"
            "You review.\n\n---\nname: not this\n---\n\nBe terse.\n",
            "/x/reviewer.md",
        )
        assert definition.name == "code-reviewer"
        assert (definition.description, definition.tools, definition.model) == ("Reviews.", "Read, Grep", "sonnet")
        assert definition.prompt == "You review.\n\n---\nname: not this\n---\n\nBe terse."

    @pytest.mark.parametrize("text", ["You review.", "---\n---\nYou review.", "---\nmodel: opus\n---\nYou review.\n"])
    def test_without_a_name(self, text: str) -> None:
        """It is the file's."""
        definition = read_definition(text, "/x/reviewer.md")
        assert (definition.name, definition.prompt) == ("reviewer", "You review.")

    def test_front_matter_that_is_no_yaml(self) -> None:
        """Claude Code writes descriptions with colons, and takes them; so is it here."""
        definition = read_definition(
            "---\nname: \"code-reviewer\"\ndescription: Use it. Examples: <example>user: 'x'</example>\nmodel: opus\n"
            "---\nYou review.",
            "/x/reviewer.md",
        )
        assert (definition.name, definition.model, definition.prompt) == ("code-reviewer", "opus", "You review.")

    def test_windows(self) -> None:
        """A byte order mark and CRLF change nothing."""
        definition = read_definition("\ufeff---\r\nname: a\r\n---\r\nOne.\r\n\r\nTwo.\r\n", "x.md")
        assert (definition.name, definition.prompt) == ("a", "One.\n\nTwo.")

    @given(st.text("-:\n\"'[]{}&*!| abc#", max_size=60) | st.text(max_size=60))
    def test_any_text(self, text: str) -> None:
        """Whatever stands in a file, it defines an agent of some name."""
        for each in (text, f"---\n{text}\n---\nx"):
            assert read_definition(each, "x.md").name

    def test_nothing_grows(self) -> None:
        """Aliases of aliases stay what they are, and a huge front matter is not parsed as YAML."""
        bomb = "\n".join([f"a0: &a0 [{'x, ' * 9}x]", *(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}x]" for n in range(1, 30))])
        assert read_definition(f"---\n{bomb}\nname: b\n---\nx", "x.md").name == "b"
        assert read_definition("---\nname: b\n" + "- [\n" * 50_000 + "---\nx", "x.md").name == "b"


class TestStaticPart:
    """What is the same in every request."""

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("You review." + NOTES, "You review."),
            ("You review.\nNotes: none", "You review."),
            ("You take Notes:\nmany.", "You take Notes:\nmany."),
            ("  You review.\n", "You review."),
            ("Notes:\n- x", ""),
        ],
    )
    def test_part(self, text: str, part: str) -> None:
        """All before the line that begins with ``Notes:``."""
        assert static_part(text) == part


class TestIdentify:
    """Whose system prompt it is."""

    def test_wherever_the_block_stands(self, shelf: Shelf) -> None:
        """Behind a billing header, first, alone, last, or as one text."""
        shelf.put("code-reviewer.md", "---\nname: code-reviewer\n---\n\nYou review.\n\nBe terse.\n")
        prompt = "You review.\n\nBe terse."
        found = names(
            shelf.agents(),
            system(BILLING, SDK, prompt + NOTES),
            system(prompt + NOTES, BILLING),
            system(BILLING, prompt),
            json.dumps(prompt + NOTES).encode(),
            system(BILLING, SDK, "\n" + prompt.replace("\n", "\r\n") + NOTES),
        )
        assert found == ["code-reviewer"] * 5

    def test_with_what_claude_code_adds(self, shelf: Shelf) -> None:
        """An agent's memory stands between its prompt and the notes; a prompt may have notes of its own."""
        shelf.put("remembers.md", "You remember.")
        shelf.put("noted.md", "You are noted.\nNotes: yes\n\nMore.")
        found = names(
            shelf.agents(),
            system(SDK, "You remember." + MEMORY + NOTES),
            system(SDK, "You are noted.\nNotes: yes\n\nMore." + MEMORY + NOTES),
            system(SDK, "You are noted.\n\nNotes: what another version says"),
        )
        assert found == ["remembers", "noted", "noted"]

    def test_nobody(self, shelf: Shelf) -> None:
        """The main conversation, a prompt that only begins alike, and what is no system prompt at all."""
        shelf.put("reviewer.md", "You review.")
        found = names(
            shelf.agents(), system(BILLING, SDK, "You are Claude Code."), system("You review. Not."), system("You rev"),
            system(), b"null", b"5", b'[{"type": "text"}]', b'[{"text": 5}]', b'"\\ud800"', b"", b"[" * 100_000,
            system("Notes:\n- x"),
        )  # fmt: skip
        assert found == [None] * 12

    def test_the_longest(self, shelf: Shelf) -> None:
        """Of two prompts of which one begins the other, the longer that fits."""
        shelf.put("a.md", "You review.")
        shelf.put("b.md", "You review.\n\nThoroughly.")
        found = names(shelf.agents(), system("You review.\n\nThoroughly." + NOTES), system("You review." + NOTES))
        assert found == ["b", "a"]

    def test_a_shared_static_part_is_nobodys(self, shelf: Shelf) -> None:
        """Two agents that differ behind ``Notes:`` alone are told apart by the whole prompt, or not at all."""
        shelf.put("a.md", "You review.\nNotes: a")
        shelf.put("b.md", "You review.\nNotes: b")
        agents = shelf.agents()
        assert names(agents, system("You review.\nNotes: b\n\nNotes:\n- x"), system("You review." + NOTES)) == [
            "b",
            None,
        ]

    def test_an_agent_without_a_prompt(self, shelf: Shelf) -> None:
        """It is defined, and no system prompt is its own."""
        shelf.put("empty.md", "---\nname: empty\n---\n")
        agents = shelf.agents()
        assert agents.named("empty") is not None
        assert names(agents, system(""), system("x")) == [None, None]

    def test_texts(self) -> None:
        """A string is one text, blocks are one each, whatever else they hold."""
        assert texts_of(b'"a"') == ["a"]
        assert texts_of(b'[{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {}]') == ["a", ""]


class TestDirectories:
    """Where definitions are looked for."""

    def test_project_before_user(self, shelf: Shelf) -> None:
        """Of two agents of one name the project's counts, for the prompt too."""
        shelf.put("reviewer.md", "The user's.", user=True)
        shelf.put("other.md", "Other.", user=True)
        path = shelf.put("x.md", "---\nname: reviewer\n---\nThe project's.")
        agents = shelf.agents()
        definition = agents.named("reviewer")
        assert definition is not None
        assert (definition.prompt, definition.path) == ("The project's.", str(path))
        assert names(agents, system("The user's."), system("The project's."), system("Other.")) == [
            None, "reviewer", "other",
        ]  # fmt: skip

    def test_below(self, shelf: Shelf) -> None:
        """Directories below count, other files do not."""
        shelf.put("review/deep/reviewer.md", "You review.")
        shelf.put("README.txt", "---\nname: readme\n---\nRead.")
        agents = shelf.agents()
        assert agents.named("reviewer") is not None
        assert agents.named("readme") is None

    def test_none(self, shelf: Shelf) -> None:
        """Directories need not exist."""
        agents = shelf.agents()
        assert agents.named("x") is None
        assert agents.identify(system("x")) is None

    def test_default(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The working directory's, then the home's; a user may have no home."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", "/home/somebody")
        project = Path(".claude/agents")
        assert default_directories() == (project, Path("/home/somebody/.claude/agents"))
        assert not project.is_absolute()

        def homeless() -> Path:
            raise RuntimeError

        monkeypatch.setattr(Path, "home", homeless)
        assert default_directories() == (project,)

    def test_what_cannot_be_read(self, shelf: Shelf) -> None:
        """It is told of once, and holds nothing up: not even a FIFO, which would for ever."""
        shelf.put("good.md", "Good.")
        bad = shelf.put("bad.md", "")
        bad.write_bytes(b"\xff\xfe")
        (shelf.project / "link.md").symlink_to("nowhere")
        (shelf.project / "directory.md").mkdir()
        os.mkfifo(shelf.project / "fifo.md")
        agents = shelf.agents()
        assert agents.named("good") is not None
        shelf.now += 10
        assert agents.named("bad") is None
        assert shelf.warnings == [f"the agent definition {bad} is not UTF-8 at byte 0"]

    def test_limits(self, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
        """No more files than a limit, none larger than a limit, none deeper than a limit."""
        monkeypatch.setattr(agents_module, "MAX_FILES", 2)
        monkeypatch.setattr(agents_module, "MAX_FILE_BYTES", 5)
        monkeypatch.setattr(agents_module, "MAX_DEPTH", 1)
        shelf.put("a.md", "large enough")
        shelf.put("b.md", "small")
        shelf.put("x/y/z.md", "deep")
        shelf.put("x/y.md", "below")
        shelf.put("x/z.md", "more")
        agents = shelf.agents()
        assert [name for name in ("a", "b", "y", "z") if agents.named(name)] == ["b", "y"]


class TestChanges:
    """Files that change."""

    def test_seen_within_a_second(self, shelf: Shelf) -> None:
        """A file changed, added or gone is seen a second later; before that nothing is looked at."""
        path = shelf.put("reviewer.md", "You review.")
        agents = shelf.agents()
        assert names(agents, system("You review.")) == ["reviewer"]
        path.write_text("You judge.")
        shelf.put("other.md", "Other.")
        shelf.now = 0.9
        assert names(agents, system("You review."), system("You judge."), system("Other.")) == ["reviewer", None, None]
        shelf.now = 1.0
        assert names(agents, system("You review."), system("You judge."), system("Other.")) == [
            None,
            "reviewer",
            "other",
        ]
        path.unlink()
        shelf.now = 2.0
        assert names(agents, system("You judge."), system("Other.")) == [None, "other"]
        assert agents.named("reviewer") is None

    def test_the_same_size(self, shelf: Shelf) -> None:
        """A change that leaves the size is seen by its time."""
        path = shelf.put("reviewer.md", "You review.")
        agents = shelf.agents()
        assert agents.named("reviewer") is not None
        path.write_text("You REVIEW.")
        os.utime(path, ns=(1, 1))
        shelf.now = 5.0
        assert names(agents, system("You REVIEW.")) == ["reviewer"]

    def test_only_what_changed_is_read(self, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each second costs a look at the files, not their contents."""
        paths = [shelf.put(f"{name}.md", name) for name in "abc"]
        agents = shelf.agents()
        read: list[str] = []
        original = Path.read_bytes

        def reading(path: Path) -> bytes:
            read.append(path.name)
            return original(path)

        monkeypatch.setattr(Path, "read_bytes", reading)
        for now in (0.0, 1.0, 2.0):
            shelf.now = now
            agents.named("a")
        assert read == ["a.md", "b.md", "c.md"]
        paths[1].write_text("changed")
        shelf.now = 3.0
        agents.named("a")
        assert read[3:] == ["b.md"]
