"""The OpenAPI document: a valid one, about the routes that there are, and true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import requests
import schemathesis
import yaml
from hypothesis import HealthCheck, settings
from openapi_spec_validator import validate
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.dashboard import Dashboard
from tests.processes import StandIn, proxy
from tests.store_contract import awaited
from twisted_proxy import __version__
from twisted_proxy.web.api.app import Door
from twisted_proxy.web.api.openapi import document
from twisted_proxy.web.front import OWN_API
from twisted_proxy.web.pages import Pages

METHODS = ("get", "head", "post", "put", "patch", "delete")


@cache
def described() -> dict[tuple[str, str], dict[str, Any]]:
    """Operations of the document by method and path, whose parameters have no names here."""
    return {
        (method.upper(), re.sub(r"\{[^}]*\}", "{}", path)): operation
        for path, item in document()["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


def test_valid() -> None:
    """It is OpenAPI 3.1."""
    validate(document())
    assert document()["openapi"].startswith("3.1.")


@awaited
async def test_served(board: Dashboard) -> None:
    """In both forms, with the version of the program."""
    found = await board.get("/openapi.json")
    answer = await board.ask("/openapi.yaml")
    assert yaml.safe_load(answer.body) == found == document()
    assert answer.header("Content-Type") == "application/yaml"
    assert found["info"]["version"] == __version__


def test_every_route_is_described(board: Dashboard) -> None:
    """Each route of the dashboard and each page, under the name that it has here, as open as it is."""
    for route in board.proxy.service.dashboards.main.routes:
        key = (route.method, re.sub("<[^>]*>", "{}", route.rule))
        operation = described().get(key)
        assert operation is not None, f"{key} is not in openapi.yaml"
        assert operation["operationId"] == route.name
        assert ("security" in operation) == (route.door is not Door.VIEWERS), key
    for rule in Pages.app.url_map.iter_rules():
        for method in set(rule.methods or ()) - {"OPTIONS"}:
            assert (method, rule.rule) in described(), f"{method} {rule.rule} is not in openapi.yaml"


def test_everything_described_is_there(board: Dashboard) -> None:
    """No operation of the document is missing; ``HEAD`` goes wherever ``GET`` does."""
    there = {
        (route.method, re.sub("<[^>]*>", "{}", route.rule)) for route in board.proxy.service.dashboards.main.routes
    }
    there |= {(method, rule.rule) for rule in Pages.app.url_map.iter_rules() for method in rule.methods or ()}
    # The page's files, and what is forwarded.
    there |= {("GET", "/{}")}
    for method, path in described():
        if path.startswith("/v1/"):
            assert document()["paths"][path][method.lower()]["tags"] == ["proxied"]
        else:
            asked = "GET" if method == "HEAD" else method
            assert (asked, path) in there, f"{method} {path} is in openapi.yaml, and nowhere else"


def test_our_part_of_the_api_is_ours() -> None:
    """What is described below ``/api`` is what is not forwarded."""
    assert {path.split("/")[2].encode() for _, path in described() if path.startswith("/api/")} == OWN_API


def test_refusals_are_described() -> None:
    """Whatever asks for a right says what happens without it."""
    for (method, path), operation in described().items():
        if "security" not in operation and method != "HEAD":
            assert {"401", "403"} <= set(operation["responses"]), (method, path)


# Asked by a machine


schema = schemathesis.openapi.from_dict(document()).exclude(path_regex=r"^/v1/|^/api/live$|^/api/log(in|out)$")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, upstream: StandIn) -> Iterator[tuple[str, dict[str, str]]]:
    """A proxy that has recorded something; its URL, and what a request that changes something needs."""
    directory = tmp_path_factory.mktemp("openapi")
    with proxy(directory, upstream, RECORD="full", CLAUDE_PROJECTS_DIR=str(directory / "projects")) as running:
        base = f"http://127.0.0.1:{running.port}"
        body: Any = {"model": "claude-test", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
        requests.post(f"{base}/v1/messages", json=body, headers={"x-api-key": "k"}, timeout=10)
        token = requests.get(f"{base}/api/viewer", timeout=10).json()["csrfToken"]
        yield base, {"X-CSRF-Token": token}


@schema.parametrize()
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
def test_true(case: Any, recording: tuple[str, dict[str, str]]) -> None:
    """Whatever is asked, the answer is one of those that the document has, in the shape that it has there."""
    base, headers = recording
    case.call_and_validate(
        base_url=base,
        headers=headers,
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_headers_conformance,
            response_schema_conformance,
            unsupported_method,
        ],
    )
