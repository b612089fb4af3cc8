"""Where two requests part, in the order in which the prompt cache reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from twisted_proxy.web.api.divergence import MOST_PARAMETERS, Divergence, diverge

BASE: dict[str, Any] = {
    "model": "m",
    "system": [{"type": "text", "text": "x-anthropic-billing-header: cch=1;"}, {"type": "text", "text": "Be brief."}],
    "messages": [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": [{"type": "text", "text": "Two"}]},
    ],
    "tools": [{"name": "A"}, {"name": "B"}],
    "stream": True,
}


def written(body: dict[str, Any]) -> bytes:
    """As JavaScript's clients write it."""
    return json.dumps(body, separators=(",", ":")).encode()


def parted(before: dict[str, Any], after: dict[str, Any]) -> tuple[Divergence, bytes]:
    """Of the base with these members; and the later body."""
    later = written({**BASE, **after})
    found = diverge(written({**BASE, **before}), later)
    assert found is not None
    return found, later


@pytest.mark.parametrize(
    ("before", "after", "path", "role", "here"),
    [
        ({}, {"tools": [{"name": "A"}, {"name": "C"}]}, "tools[1]", None, b"C"),
        ({}, {"system": [{"type": "text", "text": "Be long."}]}, "system[0]", None, b"long."),
        ({"system": "Be brief."}, {"system": "Be long."}, "system", None, b"long."),
        ({}, {"messages": [{"role": "user", "content": "Once"}]}, "messages[0].content", "user", b"ce"),
        (
            {},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Once"}]}]},
            "messages[0].content[0]",
            "user",
            b"ce",
        ),
        (
            {},
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "cache_control": {"type": "ephemeral"}, "text": "Once"}],
                    }
                ]
            },
            "messages[0].content[0]",
            "user",
            b"ce",
        ),
        ({}, {"messages": [{"role": "system", "content": "One"}]}, "messages[0].content", "system", b'"One"'),
    ],
)
def test_changed(before: dict[str, Any], after: dict[str, Any], path: str, role: str | None, here: bytes) -> None:
    """The block, and the byte of the later body where the first one differs, however the block is written."""
    found, later = parted(before, after)
    assert (found.kind, found.path, found.role) == ("changed", path, role)
    assert found.byte is not None
    at = found.byte
    # Another role is another block, of which no byte needs to differ.
    assert later[at:].startswith(here) or role == "system"


def test_no_change() -> None:
    """Markers, how a text is written, and the block for billing do not count."""
    marked = [{"type": "text", "text": "One", "cache_control": {"type": "ephemeral"}}]
    other = {
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cch=2;"},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        ],
        "messages": [{"role": "user", "content": marked}, *BASE["messages"][1:]],
    }
    assert parted({}, other)[0].kind == "identical"


def test_appended_and_removed() -> None:
    """Where one ends before the other."""
    longer = {"messages": [*BASE["messages"], {"role": "user", "content": "Three"}]}
    found, later = parted({}, longer)
    assert (found.kind, found.path) == ("appended", "messages[2].content")
    assert found.byte is not None
    assert later[found.byte :].startswith(b'"Three"')
    assert found.common_bytes > 0
    found, _ = parted(longer, {})
    assert (found.kind, found.path, found.byte, found.after) == ("removed", "messages[2].content", None, None)
    assert "Three" in (found.before or "")


def test_parameters() -> None:
    """Other members that differ in value are named, but for those of which no prompt becomes another."""
    found, _ = parted(
        {
            "thinking": {"type": "adaptive"},
            "tool_choice": {"a": 1, "b": 2},
            "max_tokens": 1,
            "metadata": {"user_id": "a"},
        },
        {"tool_choice": {"b": 2, "a": 1}, "speed": "fast", "max_tokens": 2, "stream": False},
    )
    assert (found.kind, found.parameters) == ("identical", ("speed", "thinking"))
    many = {f"{'x' * 100}{number}": number for number in range(2 * MOST_PARAMETERS)}
    assert len(parted({}, many)[0].parameters) == MOST_PARAMETERS


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'"x"', b"7"])
def test_no_request(body: bytes) -> None:
    """What is no JSON object has nothing to compare."""
    assert diverge(body, written(BASE)) is None
    assert diverge(written(BASE), body) is None


@pytest.mark.parametrize("value", [None, 7, "x", [], [7], {}, [{"role": 7, "content": 7}], [{"content": None}], [[]]])
@pytest.mark.parametrize("name", ["tools", "system", "messages"])
def test_strange_values(name: str, value: object) -> None:
    """Whatever stands in the place of a list, nothing is raised, and it is not the same as something else."""
    assert parted({}, {name: value})[0].kind in ("changed", "removed", "appended")
    assert parted({name: value}, {name: value})[0].kind == "identical"
