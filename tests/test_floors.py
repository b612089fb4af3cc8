"""The floors of the house: what each module may import."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "twisted_proxy"

FLOORS = (
    {"__init__", "wire", "config"},
    {"runtime", "fields", "logs", "tally", "siblings", "signals", "listening", "notify", "children"},
    {"relay", "record"},
    {"metrics", "tracing"},
    {"web"},
    {"service"},
    {"workers"},
    {"offline", "status"},
    {"tap", "cli"},
)
"""Rooms, lowest floor first. A room sees the floors below it, and itself."""

WITHOUT_TWISTED = ("wire", "config")
FOREIGN_TO_THE_LOWEST = {"twisted", "treq", "klein", "zope", "asyncio", "socket", "threading", "subprocess", "time"}


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package, by dotted name below ``twisted_proxy``."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imports(name: str, tree: ast.Module) -> Iterator[str]:
    """The dotted names that a module imports anywhere, ``from a import b`` as ``a.b``; relative ones resolved."""
    package = (ROOT / name.replace(".", "/")).is_dir()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["twisted_proxy", *([] if name == "__init__" else name.split("."))]
                up = node.level - 1 if package or name == "__init__" else node.level
                above = here[: len(here) - up]
                base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def floor_of(room: str) -> int:
    """The number of the floor on which ``room`` is."""
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise AssertionError(f"twisted_proxy/{room} has no floor: give it one in {Path(__file__).name}")


def room_of(imported: str) -> str:
    """The room of ``twisted_proxy.room.…``; a name of the package itself is in ``__init__``."""
    room = imported.split(".")[1]
    return room if (ROOT / room).is_dir() or (ROOT / f"{room}.py").is_file() else "__init__"


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_downward(name: str) -> None:
    """A module imports from its own room and from the floors below it, nothing else of ours."""
    room = name.split(".")[0]
    for imported in imports(name, modules()[name]):
        if imported.startswith("twisted_proxy."):
            target = room_of(imported)
            assert target == room or floor_of(target) < floor_of(room), f"{imported} is not below {name}"


@pytest.mark.parametrize("name", sorted(modules()))
def test_only_tap_imports_the_reactor(name: str) -> None:
    """Whatever else needs a reactor is given one."""
    found = [each for each in imports(name, modules()[name]) if each.startswith("twisted.internet.reactor")]
    assert not found or name == "tap"
    if name == "tap":
        assert found, "this test no longer sees the import that it is about"


@pytest.mark.parametrize(
    "name", sorted(name for name in modules() if name.split(".")[0] in (*WITHOUT_TWISTED, "__init__"))
)
def test_the_lowest_floor_has_no_twisted(name: str) -> None:
    """Protocols and configuration are bytes and values: no Twisted, no network, no clock."""
    for imported in imports(name, modules()[name]):
        top = imported.split(".")[0]
        assert top not in FOREIGN_TO_THE_LOWEST, f"{name} imports {imported}"


def test_the_lowest_floor_loads_no_twisted() -> None:
    """Not even by way of something that it imports. In a process of its own, as this one has Twisted loaded."""
    names = [name for name in modules() if name.split(".")[0] in WITHOUT_TWISTED]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module('twisted_proxy.' + name)\n"
    code += "print(sorted(name for name in sys.modules if name.split('.')[0] in ('twisted', 'zope')))"
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert done.stdout.strip() == "[]"


def test_relative_imports_are_seen() -> None:
    """The parser of this test resolves what it is there to see."""
    tree = ast.parse("from . import a\nfrom .b import c\nfrom ..d import e\ndef f():\n    import g.h\n")
    assert list(imports("wire.sse", tree)) == [
        "twisted_proxy.wire.a",
        "twisted_proxy.wire.b.c",
        "twisted_proxy.d.e",
        "g.h",
    ]
    assert next(imports("wire", tree)) == "twisted_proxy.wire.a"
    assert next(imports("__init__", tree)) == "twisted_proxy.a"
