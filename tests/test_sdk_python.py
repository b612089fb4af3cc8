"""The official Python SDKs through the proxy: anthropic as installed, anthropic 0.125 beside it, and openai."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import CHECKOUT, Proxy, StandIn
from tests.sdk_contract import CUT_WAYS, JSON, Driver, SdkContract, driver
from tests.standin_api import MODELS
from tests.standin_messages import TOOL_INPUT, compact

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


@pytest.fixture(scope="module")
def openai(upstream: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with driver((sys.executable, RUNNER, "openai"), tmp_path_factory.mktemp("sdk"), upstream) as running:
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


class TestOpenAI:
    """openai, whose requests are relayed as they are when the upstream speaks its protocol."""

    @pytest.fixture
    def sdk(self, openai: Driver) -> Driver:
        return openai

    @pytest.fixture
    def both(self, sdk: Driver, upstream: StandIn, proxied: Proxy) -> Callable[..., JSON]:
        """Plays a scenario directly and through the proxy; gives what both showed, which must be the same."""

        def play(scenario: str, /, **arguments: object) -> JSON:
            direct = sdk.play(upstream.url, scenario, **arguments)
            behind = sdk.play(proxied.url, scenario, **arguments)
            assert behind == direct
            return direct

        return play

    def test_completion(self, both: Callable[..., JSON]) -> None:
        """A completion is the upstream's, with its request id."""
        value = both("create", scenario="auto")["value"]
        assert value["completion"]["choices"][0]["message"]["content"] == "word0 word1 word2 "
        assert value["request_id"].startswith("req_")

    def test_stream(self, both: Callable[..., JSON]) -> None:
        """Data-only events arrive, and the usage chunk when it was asked for."""
        chunks = both("stream", scenario="auto?delta=6", include_usage=True)["value"]["chunks"]
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
        assert text == "word0 word1 word2 "
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] == 13

    def test_tools(self, both: Callable[..., JSON]) -> None:
        """Calls of tools arrive, whole and in pieces."""
        whole = both("create", scenario="auto", tools=True)["value"]["completion"]["choices"][0]
        assert whole["message"]["tool_calls"][0]["function"]["arguments"] == compact(TOOL_INPUT)
        chunks = both("stream", scenario="auto?delta=5", tools=True)["value"]["chunks"]
        calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
        assert "".join(call["function"]["arguments"] for call in calls) == compact(TOOL_INPUT)
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 500, 529])
    def test_error(self, both: Callable[..., JSON], status: int) -> None:
        """Each status raises what it raises without the proxy."""
        assert both("create", scenario=f"error?status={status}")["raised"]["status"] == status

    def test_retried_by_the_sdk_alone(self, both: Callable[..., JSON], upstream: StandIn) -> None:
        """A rate limit reaches the upstream three times on either way, as the SDK tries three times."""
        mark = upstream.mark()
        assert both("create", scenario="error?status=429&retry_after_ms=1", retries=2)["raised"]["status"] == 429
        assert len(upstream.requests(mark)) == 6

    def test_models(self, both: Callable[..., JSON]) -> None:
        """Models are listed in OpenAI's shape."""
        assert [each["id"] for each in both("models")["value"]["all"]] == list(MODELS)

    @pytest.mark.parametrize("way", CUT_WAYS)
    def test_truncated(self, sdk: Driver, proxied: Proxy, way: str) -> None:
        """A stream that is cut raises."""
        raised = sdk.play(proxied.url, "stream", scenario=f"cut?at=300&{way}")["raised"]
        assert raised["class"] in ("RemoteProtocolError", "ReadError", "APIConnectionError")

    def test_leaving_a_stream(self, sdk: Driver, upstream: StandIn, proxied: Proxy) -> None:
        """A client that closes a quiet stream ends the upstream's connection within a second."""
        mark = upstream.mark()
        sdk.play(proxied.url, "leave", scenario="auto?count=9&delta=6&gate=never@5", events=3)
        upstream.wait_closed(since=mark, timeout=1)


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
