"""The official Python SDK through the proxy: anthropic as installed, and anthropic 0.125 beside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import CHECKOUT, Proxy, StandIn
from tests.sdk_contract import Driver, SdkContract, driver

RUNNER = Path(__file__).with_name("sdk_runner.py")


@pytest.fixture(scope="module")
def anthropic_2(upstream: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with driver((sys.executable, RUNNER, "anthropic"), tmp_path_factory.mktemp("sdk"), upstream) as running:
        assert running.version.startswith("2.")
        yield running


@pytest.fixture(scope="module")
def anthropic_0(upstream: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    directory = Path(os.environ.get("CLAUDE_PROXY_SDK_0125") or CHECKOUT / ".venv/sdk/anthropic-0.125")
    if not (directory / "anthropic").is_dir():
        pytest.fail(
            f"anthropic 0.125 is not in {directory}. `make test` puts it into .venv/sdk; elsewhere, run "
            "`pip install --target DIRECTORY 'anthropic == 0.125.*'` and set CLAUDE_PROXY_SDK_0125=DIRECTORY."
        )
    arguments = (sys.executable, RUNNER, "anthropic")
    with driver(arguments, tmp_path_factory.mktemp("sdk"), upstream, PYTHONPATH=str(directory)) as running:
        assert running.version.startswith("0.125.")
        yield running


class TestAnthropic2(SdkContract):
    """anthropic 2.x."""

    cut_stride = 3

    @pytest.fixture
    def sdk(self, anthropic_2: Driver) -> Driver:
        return anthropic_2


class TestAnthropic0(SdkContract):
    """anthropic 0.125, the last of its line, which is installed in a directory of its own."""

    @pytest.fixture
    def sdk(self, anthropic_0: Driver) -> Driver:
        return anthropic_0


class TestOverTLS:
    """anthropic 2.x before a proxy whose upstream speaks TLS: what ends a stream is different there."""

    def test_messages(self, anthropic_2: Driver, proxied: Proxy, tls_proxied: Proxy) -> None:
        """A message, streamed and whole, is the same as over plain TCP."""
        for scenario in ("create", "stream"):
            plain = anthropic_2.play(proxied.url, scenario, scenario="message?say=tools")
            assert anthropic_2.play(tls_proxied.url, scenario, scenario="message?say=tools") == plain

    @pytest.mark.parametrize("how", ["fin", "notify", "rst"])
    @pytest.mark.parametrize("framing", ["chunked", "length"])
    def test_truncated_stream(self, anthropic_2: Driver, tls_proxied: Proxy, framing: str, how: str) -> None:
        """A cut raises, with TLS's close_notify, without, and by a reset."""
        cuts = [f"cut?count=1&at={at}&how={how}&framing={framing}" for at in range(0, 800, 37)]
        assert anthropic_2.play(tls_proxied.url, "truncations", scenarios=cuts)["value"]["successes"] == []

    def test_end_without_close_notify(self, anthropic_2: Driver, tls_proxied: Proxy) -> None:
        """A body that only the connection ends, without close_notify, is taken for cut: it may lack its tail."""
        scenario = "cut?framing=close&how=fin&at=300"
        found = anthropic_2.play(tls_proxied.url, "truncations", scenarios=[scenario])
        assert found["value"]["successes"] == []

    def test_leaving_a_stream(self, anthropic_2: Driver, tls_upstream: StandIn, tls_proxied: Proxy) -> None:
        """A client that breaks out of a quiet stream ends the upstream's connection within a second."""
        mark = tls_upstream.mark()
        anthropic_2.play(tls_proxied.url, "leave", scenario="message?count=9&delta=6&gate=never@5", events=3)
        tls_upstream.wait_closed(since=mark, timeout=1)

    def test_leaving_a_busy_stream(self, anthropic_2: Driver, tls_upstream: StandIn, tls_proxied: Proxy) -> None:
        """The same while events go on coming: nothing waits for the upstream's close_notify."""
        mark = tls_upstream.mark()
        scenario = "message?count=2000&delta=6&interval=0.005"
        anthropic_2.play(tls_proxied.url, "leave", scenario=scenario, events=3)
        tls_upstream.wait_closed(since=mark, timeout=1)
