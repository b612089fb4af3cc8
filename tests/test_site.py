"""The dashboard's page as it is in the package: built from the source beside it, small, and within its policy."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STATIC = ROOT / "twisted_proxy" / "web" / "static"
SOURCE = ROOT / "svelte"
SOURCES = (
    "index.html",
    "package.json",
    "package-lock.json",
    "vite.config.ts",
    "svelte.config.js",
    "tsconfig.json",
    "public",
    "src",
)
"""What the bundle is made of; as in ``svelte/build-info.mjs``."""
LARGEST = 400_000
"""Bytes of the whole bundle, compressed."""


def source_digest(root: Path) -> str:
    """SHA-256 over the sources, as ``svelte/build-info.mjs`` reckons it."""
    files = [file for name in SOURCES for file in ((root / name), *(root / name).rglob("*")) if file.is_file()]
    digest = hashlib.sha256()
    for path, file in sorted((file.relative_to(root).as_posix().encode(), file) for file in files):
        data = file.read_bytes()
        digest.update(b"%s\0%d\0" % (path, len(data)) + data)
    return digest.hexdigest()


class Page(HTMLParser):
    """What a page loads, and what in it would be inline."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.inline: list[str] = []
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._within = tag
        for name, value in attrs:
            if name in ("src", "href"):
                self.loads.append(value or "")
            elif name == "style" or name.startswith("on"):
                self.inline.append(f"{tag} {name}")

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within in ("script", "style") and data.strip():
            self.inline.append(data)


def test_bundle_is_built_from_its_source() -> None:
    """Who changes ``svelte/`` builds it: ``make site``, and commits both."""
    if not SOURCE.is_dir():
        pytest.skip("a source distribution has no svelte/")
    built = json.loads((STATIC / "BUILD.json").read_text())
    assert built == {"source": source_digest(SOURCE)}


def test_digest_sees_every_change(tmp_path: Path) -> None:
    """A file that is changed, renamed or added makes another digest."""
    (tmp_path / "src").mkdir()
    file = tmp_path / "src" / "main.ts"
    file.write_text("one")
    seen = {source_digest(tmp_path)}
    file.write_text("two")
    seen.add(source_digest(tmp_path))
    file = file.rename(tmp_path / "src" / "other.ts")
    seen.add(source_digest(tmp_path))
    (tmp_path / "src" / "more.ts").write_text("")
    seen.add(source_digest(tmp_path))
    assert len(seen) == 4


def test_bundle_is_small() -> None:
    """All of it together, not only what is loaded at first."""
    sizes = {file.name: len(gzip.compress(file.read_bytes(), 9)) for file in STATIC.iterdir()}
    assert sum(sizes.values()) < LARGEST, sizes


def test_page_has_nothing_inline_and_nothing_from_elsewhere() -> None:
    """The policy forbids both; a page that needs them would stay empty."""
    page = Page((STATIC / "index.html").read_text())
    assert page.inline == []
    assert page.loads
    for address in page.loads:
        assert re.fullmatch(r"/[A-Za-z0-9_-]+\.[a-z]+", address), address
        assert (STATIC / address[1:]).is_file(), address


@pytest.mark.parametrize("name", ["app.css"])
def test_styles_load_nothing(name: str) -> None:
    """No font, image or other sheet is fetched by a style."""
    assert not re.findall(r"url\((?!['\"]?data:)[^)]*\)|@import", (STATIC / name).read_text())


def test_scripts_make_no_code_out_of_text() -> None:
    """``eval`` and its like: the policy forbids them, and what a model wrote must never reach them."""
    for file in STATIC.glob("*.js"):
        assert not re.findall(r"\beval\(|\bnew Function\b|\bdocument\.write\b", file.read_text()), file.name


def test_every_file_has_a_name_that_stays() -> None:
    """No digest in a name: the bundle is committed, and old files must not stay behind."""
    names = {file.name for file in STATIC.iterdir()}
    assert {"index.html", "app.js", "app.css", "BUILD.json"} <= names
    assert not [name for name in names if re.search(r"-[A-Za-z0-9_]{8}\.", name)]
