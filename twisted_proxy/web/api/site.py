"""The page's files, as they are in the package."""

from __future__ import annotations

import gzip
import hashlib
import re
from importlib import resources
from pathlib import Path

import attrs
from twisted.web.http import Request

from .calls import Reply

INDEX = "index.html"

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
_COMPRESSED = frozenset({".css", ".html", ".js", ".json", ".svg", ".txt", ".webmanifest"})
_TAKES_GZIP = re.compile(rb"\bgzip\b(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))")
_NAME = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9.]+", re.ASCII)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing inline, nothing from elsewhere: what a model wrote must find nothing to run."""

PROTECTION = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Fields of every answer of the dashboard."""


def packaged() -> Path:
    """Where the package has the built files."""
    return Path(str(resources.files("twisted_proxy.web") / "static"))


@attrs.frozen(kw_only=True)
class _File:
    stamp: tuple[int, int]
    data: bytes
    zipped: bytes | None
    tag: str


class Files:
    """The files of one directory, each in memory once it was asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[str, _File] = {}

    def has(self, name: str) -> bool:
        return _type_of(name) is not None and (self._directory / name).is_file()

    def answer(self, request: Request, name: str) -> Reply | None:
        """``None``: there is no such file."""
        content_type = _type_of(name)
        file = None if content_type is None else self._find(name)
        if file is None:
            return None
        accepted = b",".join(request.requestHeaders.getRawHeaders(b"Accept-Encoding", ())).lower()
        zipped = file.zipped is not None and _TAKES_GZIP.search(accepted) is not None
        tag = f'"{file.tag}{"-gzip" if zipped else ""}"'
        # The names do not change with what is in them: each use asks whether it is still that.
        fields = {"ETag": tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        known = b",".join(request.requestHeaders.getRawHeaders(b"If-None-Match", ())).decode("latin-1")
        if known.strip() == "*" or tag in [each.strip().removeprefix("W/") for each in known.split(",")]:
            return Reply(status=304, content_type=None, fields=fields)
        if zipped:
            assert file.zipped is not None
            return Reply(body=file.zipped, content_type=content_type, fields={**fields, "Content-Encoding": "gzip"})
        return Reply(body=file.data, content_type=content_type, fields=fields)

    def _find(self, name: str) -> _File | None:
        path = self._directory / name
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            known = self._read.get(name)
            if known is not None and known.stamp == stamp:
                return known
            data = path.read_bytes()
        except OSError:
            return None
        zipped = gzip.compress(data, 6, mtime=0) if path.suffix in _COMPRESSED else None
        file = _File(stamp=stamp, data=data, zipped=zipped, tag=hashlib.sha256(data).hexdigest()[:32])
        self._read[name] = file
        return file


def _type_of(name: str) -> str | None:
    """``None``: no file of that name is given out."""
    return _TYPES.get("." + name.rpartition(".")[2]) if _NAME.fullmatch(name) else None


def wants_html(request: Request) -> bool:
    """Whether a browser asks, for something to show."""
    accepted = b",".join(request.requestHeaders.getRawHeaders(b"Accept", ())).lower()
    return b"text/html" in accepted
