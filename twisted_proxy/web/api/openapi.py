"""The OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any

import yaml

from ... import __version__
from .app import Door, Route
from .calls import Call, Reply


def _text() -> str:
    return (resources.files("twisted_proxy.web") / "openapi.yaml").read_text(encoding="utf-8")


@cache
def as_yaml() -> bytes:
    """The document, of this version."""
    return _text().replace('version: "0"', f'version: "{__version__}"', 1).encode()


@cache
def as_json() -> bytes:
    """The same."""
    return json.dumps(document(), separators=(",", ":"), default=str).encode("ascii")


def document() -> dict[str, Any]:
    """The same, as a value."""
    # The loader in Python takes seconds.
    found: dict[str, Any] = yaml.load(as_yaml(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    return found


class OpenApi:
    """
    ``/openapi.json`` and ``/openapi.yaml``.

    :param compute: runs what takes long, where it blocks nobody.
    """

    def __init__(self, compute: Callable[..., Awaitable[Any]]) -> None:
        self._compute = compute

    def routes(self) -> Sequence[Route]:
        return (
            Route(method="GET", rule="/openapi.json", name="getOpenapiJson", handler=self.json, door=Door.EVERYBODY),
            Route(method="GET", rule="/openapi.yaml", name="getOpenapiYaml", handler=self.yaml, door=Door.EVERYBODY),
        )

    async def json(self, call: Call) -> Reply:
        body: bytes = await self._compute(as_json)
        return Reply(body=body)

    async def yaml(self, call: Call) -> Reply:
        return Reply(body=as_yaml(), content_type="application/yaml")
