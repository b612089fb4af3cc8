"""What every Anthropic SDK must find behind the proxy: exactly what it finds without. One class, run for each SDK.

`Driver` holds a runner (`tests/sdk_runner.py`, `tests/node/run.mjs`) and plays its scenarios. Most tests play one
directly against the stand-in and once more through the proxy, compare the two, and say what they must be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import pytest
import trustme

from tests.corpus import BY_NAME
from tests.processes import Process, Proxy, Seen, StandIn, clean_environment
from tests.standin_api import ERROR_TYPES, MODELS, file_content
from tests.standin_messages import CITATIONS, TOOL_INPUT, blocks

JSON = dict[str, Any]

ADDED_DOWNSTREAM = {"x-proxy-request-id"}
"""Headers that the proxy adds to an answer."""
OWN_TO_A_CONNECTION = {"connection", "keep-alive", "transfer-encoding"}
"""Headers that say how this connection goes, not what was answered."""
REPLACED_UPSTREAM = {"host", "connection", "accept-encoding", "transfer-encoding", "keep-alive"}
"""Headers of a request that are the proxy's own, or not to be forwarded."""
CUT_WAYS = ("how=fin", "how=rst", "how=fin&framing=length", "how=rst&framing=length")
"""Cuts of a body: without a last chunk and short of its Content-Length, by FIN and by RST."""


NOT_FOR_SDKS = {"dialect-of-the-stream"}
"""Entries of the corpus that no SDK can read, proxy or not: an event of unknown name has data that is no JSON."""


class Driver:
    """A runner of one SDK, and its scenarios as calls. `url` is what the client is told to use."""

    def __init__(self, process: Process, upstream: StandIn) -> None:
        self.process = process
        self.upstream = upstream
        self.version = process.wait_for_line(r"^READY (\S+)$").group(1)

    def play(self, url: str, scenario: str, /, **arguments: object) -> JSON:
        """What a scenario showed: ``{"value": …}`` or ``{"raised": …}``."""
        call = {
            "scenario": scenario,
            "base_url": url,
            "control_url": self.upstream.control_url,
            "arguments": arguments,
        }
        start = len(self.process.lines)
        self.process.write_line(json.dumps(call))
        line = self.process.wait_for_line(r"^RESULT (.*)$", timeout=100, start=start)
        found: JSON = json.loads(line.group(1))
        if "crashed" in found:
            raise AssertionError(f"{scenario} {arguments} at {url} crashed:\n{found['crashed']}")
        return found


@contextmanager
def driver(arguments: Sequence[str | Path], directory: Path, upstream: StandIn, **environment: str) -> Iterator[Driver]:
    """A running runner."""
    # A Python SDK reads all certificates that the system trusts for each client, which takes longer than a scenario.
    trusted = directory / "trusted.pem"
    trustme.CA().cert_pem.write_to_path(str(trusted))
    clean = clean_environment(SSL_CERT_FILE=str(trusted), **environment)
    with Process(arguments, environment=clean, cwd=directory, stdin=True) as process:
        yield Driver(process, upstream)


def told(say: str, count: int = 3) -> tuple[list[JSON], str]:
    """The content and the stop reason that a message of the stand-in has, as a client's JSON."""
    content, stop_reason = blocks(say, count)
    return content, stop_reason


def essence(message: JSON) -> tuple[list[JSON], str, int]:
    """The content, the stop reason and the output tokens of a message, without members that a client adds as null."""
    content = [{key: value for key, value in block.items() if value is not None} for block in message["content"]]
    return content, message["stop_reason"], message["usage"]["output_tokens"]


def without_nulls(content: list[JSON]) -> list[JSON]:
    """The same of the stand-in's own blocks."""
    return [{key: value for key, value in block.items() if value is not None} for block in content]


def forwarded(seen: Seen) -> list[tuple[str, str]]:
    """The headers of a request that have to be the same with and without the proxy, in order, names in lower case."""
    return [(name.lower(), value) for name, value in seen.headers if name.lower() not in REPLACED_UPSTREAM]


class SdkContract:
    """The promises. A subclass gives a `sdk` fixture, and says where this SDK differs from the others."""

    cut_stride: ClassVar[int] = 7
    """Every so many bytes a stream is cut; each of `CUT_WAYS` in turn."""

    @pytest.fixture
    def both(self, sdk: Driver, upstream: StandIn, proxied: Proxy) -> Callable[..., JSON]:
        """Plays a scenario directly and through the proxy; gives what both showed, which must be the same."""

        def play(scenario: str, /, **arguments: object) -> JSON:
            direct = sdk.play(upstream.url, scenario, **arguments)
            behind = sdk.play(proxied.url, scenario, **arguments)
            assert behind == direct
            return direct

        return play

    # answers

    @pytest.mark.parametrize("say", ["text", "unicode", "tools", "thinking", "citations", "refusal"])
    def test_message(self, both: Callable[..., JSON], say: str) -> None:
        """A message that is not streamed is the upstream's, its id and request id included."""
        value = both("create", scenario=f"message?say={say}")["value"]
        content, stop_reason = told(say)
        assert essence(value["message"]) == (without_nulls(content), stop_reason, 13)
        assert value["request_id"].startswith("req_")

    @pytest.mark.parametrize("say", ["text", "unicode", "tools", "thinking", "citations", "refusal"])
    def test_streamed_message(self, both: Callable[..., JSON], say: str) -> None:
        """A streamed message folds to the message that the upstream told, with the upstream's request id."""
        value = both("stream", scenario=f"message?say={say}&delta=5")["value"]
        content, stop_reason = told(say)
        assert essence(value["message"]) == (without_nulls(content), stop_reason, 13)
        assert value["events"][0] == "message_start"
        assert value["events"][-1] == "message_stop"
        assert value["request_id"].startswith("req_")

    def test_streams_of_every_kind(self, both: Callable[..., JSON]) -> None:
        """Each stream of the corpus gives the same events, one by one, with and without the proxy."""
        for name in BY_NAME:
            if name in NOT_FOR_SDKS:
                continue
            assert both("raw_events", scenario=f"message?say={quote(f'corpus/{name}')}")["value"]["events"], name

    @pytest.mark.parametrize(
        "dialect",
        ["eol=crlf", "eol=cr", "comments=1&ids=1&retry=3000", "unterminated=1", "huge=2000000", "dribble=7"],
    )
    def test_dialects(self, both: Callable[..., JSON], dialect: str) -> None:
        """CR, CRLF, comments, ids, an end without blank line, a line of 2 MB, seven bytes at a time: all read alike."""
        events = both("raw_events", scenario=f"message?{dialect}")["value"]["events"]
        assert events[0]["type"] == "message_start"
        assert sum(event["type"] == "content_block_delta" for event in events) == 1

    def test_each_event_at_once(self, both: Callable[..., JSON]) -> None:
        """An event reaches the client before the upstream sends the next: nothing on the way waits for more."""
        before_each = [f"paced-{index}" for index in (2, 3, 4, 5)]
        gates = "".join(f"&gate={name}@{index}" for index, name in enumerate(before_each, start=2))
        value = both("paced", scenario=f"message?count=4&delta=6{gates}", gates=before_each)["value"]
        assert value["events"][-1] == "message_stop"

    @pytest.mark.parametrize("stream", [False, True])
    def test_tools_over_turns(self, both: Callable[..., JSON], stream: bool) -> None:
        """A tool is called, its result goes up, and the answer quotes it."""
        replies = both("conversation", stream=stream)["value"]["replies"]
        assert [reply["stop_reason"] for reply in replies] == ["tool_use", "end_turn"]
        assert replies[0]["content"][1]["input"] == TOOL_INPUT
        assert TOOL_INPUT["city"] in replies[1]["content"][0]["text"]

    def test_citations(self, both: Callable[..., JSON]) -> None:
        """Citations arrive whole, their nulls included."""
        events = both("raw_events", scenario="message?say=citations")["value"]["events"]
        deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
        assert [delta["citation"] for delta in deltas if delta["type"] == "citations_delta"] == CITATIONS

    @pytest.mark.parametrize("stream", [False, True])
    def test_raw_response(self, sdk: Driver, upstream: StandIn, proxied: Proxy, stream: bool) -> None:
        """Status, every header, repeated ones apart and in order, and the bytes of the body are the upstream's."""
        direct = sdk.play(upstream.url, "raw_response", scenario="auto", stream=stream)["value"]
        behind = sdk.play(proxied.url, "raw_response", scenario="auto", stream=stream)["value"]

        def kept(value: JSON) -> list[tuple[str, str]]:
            hidden = ADDED_DOWNSTREAM | OWN_TO_A_CONNECTION
            return [(name, text) for name, text in value["headers"] if name not in hidden]

        assert kept(behind) == kept(direct)
        assert (behind["status"], behind["length"], behind["sha256"]) == (200, direct["length"], direct["sha256"])
        assert [text for name, text in behind["headers"] if name == "x-proxy-request-id"]
        assert sum(name == "set-cookie" for name, _ in behind["headers"]) == 2

    def test_gzip_although_identity_was_asked(self, both: Callable[..., JSON]) -> None:
        """An upstream that compresses although it was not asked to is still understood, streamed or not."""
        assert both("create", scenario="message?gzip=1")["value"]["message"]["stop_reason"] == "end_turn"
        assert both("raw_events", scenario="message?gzip=1")["value"]["events"][-1] == {"type": "message_stop"}

    # requests

    @pytest.mark.parametrize(
        ("scenario", "arguments"),
        [
            ("create", {"scenario": "auto"}),
            ("stream", {"scenario": "auto"}),
            ("beta", {}),
            ("bearer", {}),
            ("count_tokens", {}),
            ("models", {}),
        ],
    )
    def test_requests_arrive_as_sent(
        self, both: Callable[..., JSON], upstream: StandIn, scenario: str, arguments: JSON
    ) -> None:
        """Target, headers (order, credential, version and betas) and body bytes go up as the SDK wrote them."""
        mark = upstream.mark()
        assert "value" in both(scenario, **arguments)
        seen = upstream.requests(mark)
        direct, behind = seen[: len(seen) // 2], seen[len(seen) // 2 :]
        assert [(each.method, each.target, each.body) for each in behind] == [
            (each.method, each.target, each.body) for each in direct
        ]
        assert [forwarded(each) for each in behind] == [forwarded(each) for each in direct]
        assert not behind[0].header("cookie"), "the cookies that the upstream set for an earlier client"
        for each in behind:
            assert each.header("accept-encoding") == ["identity"]
            assert each.header("host") == [f"127.0.0.1:{upstream.port}"]
            assert each.header("authorization") or each.header("x-api-key")
            assert len(each.header("anthropic-version")) == 1

    def test_compressed_request(self, sdk: Driver, upstream: StandIn, proxied: Proxy) -> None:
        """A compressed request body goes up compressed, with its Content-Encoding."""
        mark = upstream.mark()
        sdk.play(upstream.url, "compressed_request")
        sdk.play(proxied.url, "compressed_request")
        direct, behind = upstream.requests(mark)
        assert behind.header("content-encoding") == ["gzip"]
        assert behind.body == direct.body
        assert behind.body.startswith(b"\x1f\x8b")

    def test_count_tokens(self, both: Callable[..., JSON]) -> None:
        """Tokens are counted by the upstream."""
        assert both("count_tokens")["value"]["input_tokens"] > 0

    def test_models(self, both: Callable[..., JSON]) -> None:
        """Models are listed over pages, the query of which reaches the upstream."""
        value = both("models")["value"]
        assert [each["id"] for each in value["all"]] == list(MODELS)
        assert value["one"]["id"] == "claude-opus-4-7"

    def test_files(self, both: Callable[..., JSON], upstream: StandIn) -> None:
        """A multipart upload of 3 MB, metadata, a download and a removal."""
        mark = upstream.mark()
        value = both("files", size=3 << 20)["value"]
        content = file_content(value["uploaded"]["id"])
        assert value["download"] == [len(content), hashlib.sha256(content).hexdigest()]
        assert value["deleted"]["id"] == value["uploaded"]["id"]
        uploads = [each for each in upstream.requests(mark) if each.method == "POST"]
        assert all(each.body_length > 3 << 20 for each in uploads)

    def test_batches(self, both: Callable[..., JSON]) -> None:
        """A batch's results arrive line by line."""
        value = both("batches")["value"]
        assert [each["result"]["type"] for each in value["results"]] == ["succeeded", "succeeded", "errored"]
        assert [each["custom_id"] for each in value["results"]] == ["request-0", "request-1", "request-2"]

    # errors

    @pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529])
    def test_error(self, both: Callable[..., JSON], upstream: StandIn, status: int) -> None:
        """Each status raises what it raises without the proxy, with the upstream's body and id; one try each."""
        mark = upstream.mark()
        raised = both("create", scenario=f"error?status={status}&message=No%20%E2%80%94%20never")["raised"]
        assert raised["status"] == status
        assert raised["body"]["error"] == {"type": ERROR_TYPES.get(status, "api_error"), "message": "No — never"}
        assert raised["request_id"] == raised["body"]["request_id"]
        assert len(upstream.requests(mark)) == 2

    def test_error_of_a_stream(self, both: Callable[..., JSON]) -> None:
        """An error status answers a request for a stream just so."""
        raised = both("stream", scenario="error?status=529")["raised"]
        assert (raised["status"], raised["body"]["error"]["type"]) == (529, "overloaded_error")

    def test_error_that_is_no_json(self, both: Callable[..., JSON]) -> None:
        """A balancer's HTML error comes through as it is."""
        raised = both("create", scenario=f"error?status=503&body={quote('<html>Busy</html>')}")["raised"]
        assert raised["status"] == 503

    def test_error_inside_a_stream(self, both: Callable[..., JSON]) -> None:
        """An ``event: error`` in the middle raises, with its type."""
        raised = both("stream", scenario="message?count=9&delta=6&error_at=5")["raised"]
        assert raised["body"]["error"]["type"] == "overloaded_error"

    # retries

    def retries(self, both: Callable[..., JSON], upstream: StandIn, scenario: str) -> tuple[JSON, list[int]]:
        """What both showed, and the retry counts that the upstream saw on either way."""
        mark = upstream.mark()
        value = both("create", scenario=scenario, retries=2)
        seen = upstream.requests(mark)
        counts = [int(each.header("x-stainless-retry-count")[0]) for each in seen]
        half = len(counts) // 2
        assert counts[half:] == counts[:half]
        return value, counts[half:]

    @pytest.mark.parametrize("status", [408, 409, 429, 500, 529])
    def test_retried_by_the_sdk_alone(self, both: Callable[..., JSON], upstream: StandIn, status: int) -> None:
        """An error that SDKs retry reaches the upstream as often as without the proxy: the SDK's three times."""
        value, counts = self.retries(both, upstream, f"error?status={status}&retry_after_ms=1")
        assert value["raised"]["status"] == status
        assert counts == [0, 1, 2]

    @pytest.mark.parametrize(("status", "should"), [(400, "true"), (529, "false")])
    def test_x_should_retry(self, both: Callable[..., JSON], upstream: StandIn, status: int, should: str) -> None:
        """``x-should-retry`` reaches the SDK, and wins."""
        _, counts = self.retries(both, upstream, f"error?status={status}&should_retry={should}&retry_after_ms=1")
        assert counts == ([0, 1, 2] if should == "true" else [0])

    def test_retry_that_succeeds(self, sdk: Driver, upstream: StandIn, proxied: Proxy) -> None:
        """After two overloads the third try's answer is the client's."""
        for url in (upstream.url, proxied.url):
            mark = upstream.mark()
            key = f"{type(self).__name__}-{mark}"
            scenario = f"error?status=529&retry_after_ms=1&times=2&key={key}"
            value = sdk.play(url, "stream", scenario=scenario, retries=2)["value"]
            assert value["message"]["stop_reason"] == "end_turn"
            assert len(upstream.requests(mark)) == 3

    def test_retry_after(self, sdk: Driver, upstream: StandIn, proxied: Proxy) -> None:
        """``retry-after`` reaches the SDK, which waits that long; of itself it would wait half a second."""
        mark = upstream.mark()
        sdk.play(proxied.url, "create", scenario="error?status=429&retry_after=1", retries=1)
        first, second = upstream.requests(mark)
        assert first.finished_at is not None
        assert second.head_at - first.finished_at >= 0.99

    def test_reset_before_the_answer(self, sdk: Driver, upstream: StandIn, proxied: Proxy) -> None:
        """A request that may have been received is not sent again by the proxy: two tries of the SDK, two requests."""
        mark = upstream.mark()
        raised = sdk.play(proxied.url, "create", scenario="cut?wire_at=0&how=rst", retries=1)["raised"]
        assert raised["status"] == 502
        assert raised["body"]["error"]["type"] == "api_error"
        assert len(upstream.requests(mark)) == 2

    # ends that are none

    def test_truncated_stream(self, sdk: Driver, upstream: StandIn, proxied: Proxy) -> None:
        """A stream that is cut, wherever and however, raises: no SDK takes it for a success."""
        length = sdk.play(upstream.url, "raw_response", scenario="auto?count=1", stream=True)["value"]["length"]
        cuts = [
            f"cut?count=1&at={at}&{CUT_WAYS[number % len(CUT_WAYS)]}"
            for number, at in enumerate(range(0, length, self.cut_stride))
        ]
        cuts += [f"cut?count=1&at={length}&{way}" for way in CUT_WAYS[:2]]
        value = sdk.play(proxied.url, "truncations", scenarios=cuts)["value"]
        assert value["successes"] == []
        assert value["raised"]

    def test_truncated_message(self, sdk: Driver, upstream: StandIn, proxied: Proxy) -> None:
        """The same of an answer that is not streamed."""
        cuts = [f"cut?at={at}&{way}" for at in range(0, 400, 57) for way in CUT_WAYS]
        cuts += [f"cut?at={at}&framing=chunked&{way}" for at in range(0, 400, 57) for way in CUT_WAYS[:2]]
        value = sdk.play(proxied.url, "truncations", scenarios=cuts, stream=False)["value"]
        assert value["successes"] == []

    # clients that go

    def test_leaving_a_stream(self, sdk: Driver, upstream: StandIn, proxied: Proxy) -> None:
        """A client that breaks out of a quiet stream ends the upstream's connection within a second."""
        mark = upstream.mark()
        value = sdk.play(proxied.url, "leave", scenario="message?count=9&delta=6&gate=never@5", events=3)["value"]
        assert len(value["events"]) == 3
        upstream.wait_closed(since=mark, timeout=1)

    def test_client_timeout_before_headers(self, sdk: Driver, upstream: StandIn, proxied: Proxy) -> None:
        """A client that gives up waiting for an answer ends the upstream's connection within a second."""
        mark = upstream.mark()
        raised = sdk.play(proxied.url, "create", scenario="message?header_gate=never", timeout=0.3)["raised"]
        assert "Timeout" in raised["class"]
        upstream.wait_closed(since=mark, timeout=1)

    # many

    def test_fifty_streams_at_once(self, sdk: Driver, upstream: StandIn, proxied: Proxy) -> None:
        """Fifty streams that are open at the same time arrive whole, and each at its own client."""
        shown = []
        for url in (upstream.url, proxied.url):
            gate = f"all-begun-{upstream.mark()}"
            scenario = f"message?count=40&delta=6&gate={gate}@9"
            shown.append(sdk.play(url, "many", scenario=scenario, count=50, gate=gate)["value"]["streams"])
        text = "".join(f"word{n} " for n in range(40))
        assert len(set(shown[1])) == 50
        for direct, behind in zip(*shown, strict=True):
            # The gate's name is part of the model, and so of the id that the stand-in gives.
            assert direct.split(" ", 1)[1] == behind.split(" ", 1)[1] == f"end_turn {text}"
