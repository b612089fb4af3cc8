"""The official Node SDK through the proxy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import StandIn
from tests.sdk_contract import Driver, SdkContract, driver

RUNNER = Path(__file__).with_name("node") / "run.mjs"


@pytest.fixture(scope="module")
def anthropic_node(upstream: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    node = shutil.which("node")
    if node is None:
        pytest.fail("node is not installed. On Debian: `apt install nodejs npm`.")
    if not (RUNNER.parent / "node_modules" / "@anthropic-ai" / "sdk").is_dir():
        pytest.fail("the Node SDK is not installed. `make test` installs it; or run `npm ci` in tests/node.")
    with driver((node, RUNNER), tmp_path_factory.mktemp("sdk"), upstream) as running:
        yield running


class TestNode(SdkContract):
    """@anthropic-ai/sdk."""

    @pytest.fixture
    def sdk(self, anthropic_node: Driver) -> Driver:
        return anthropic_node
