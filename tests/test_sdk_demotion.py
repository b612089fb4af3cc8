"""Demotion before real clients: the official SDKs call without ``stream``, and never learn that there was one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from tests import test_sdk_node, test_sdk_python
from tests.corpus import BY_NAME, FAILURES
from tests.processes import Proxy, StandIn, proxy, wait_for
from tests.sdk_contract import ADDED_DOWNSTREAM, CUT_WAYS, JSON, OWN_TO_A_CONNECTION, Driver, essence, forwarded, told
from tests.sockets import Answer, Client, Fields, call, events_logged, play, prompt, request_bytes
from tests.standin_api import Request, answer
from tests.standin_messages import TOOL_INPUT
from tests.standin_plan import parse_scenario

anthropic_2 = test_sdk_python.anthropic_2
anthropic_0 = test_sdk_python.anthropic_0
anthropic_node = test_sdk_node.anthropic_node

TARGET = "/v1/messages"
HELD = "message?count=9&delta=6&gate=never@5"
"""A stream that begins, and stays in the middle of a block."""
LARGE = 100_000
"""MAX_RESPONSE_BYTES of a proxy that has a small one."""


@pytest.fixture(scope="module")
def demoting(tmp_path_factory: pytest.TempPathFactory, upstream: StandIn) -> Iterator[Proxy]:
    """A proxy that demotes, with default settings otherwise."""
    with proxy(tmp_path_factory.mktemp("proxy"), upstream, ANTHROPIC_DEMOTE_NONSTREAMING="true") as running:
        yield running


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, upstream: StandIn) -> Iterator[Proxy]:
    """One that waits a second for headers."""
    settings = {"ANTHROPIC_DEMOTE_NONSTREAMING": "true", "ANTHROPIC_RESPONSE_HEADER_TIMEOUT": "1s"}
    with proxy(tmp_path_factory.mktemp("proxy"), upstream, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def impatient_relay(tmp_path_factory: pytest.TempPathFactory, upstream: StandIn) -> Iterator[Proxy]:
    """The same without demotion."""
    with proxy(tmp_path_factory.mktemp("proxy"), upstream, ANTHROPIC_RESPONSE_HEADER_TIMEOUT="1s") as running:
        yield running


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, upstream: StandIn) -> Iterator[Proxy]:
    """One with narrow limits of silence and of size."""
    settings = {
        "ANTHROPIC_DEMOTE_NONSTREAMING": "true",
        "UPSTREAM_IDLE_TIMEOUT": "0.3s",
        "MAX_RESPONSE_BYTES": str(LARGE),
    }
    with proxy(tmp_path_factory.mktemp("proxy"), upstream, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def beating(tmp_path_factory: pytest.TempPathFactory, upstream: StandIn) -> Iterator[Proxy]:
    """One with a heartbeat."""
    settings = {"ANTHROPIC_DEMOTE_NONSTREAMING": "true", "DEMOTE_HEARTBEAT": "0.1s"}
    with proxy(tmp_path_factory.mktemp("proxy"), upstream, **settings) as running:
        yield running


def sent(scenario: str, body: bytes) -> bytes:
    """The body that the stand-in sends for a request, without its framing."""
    request = Request(method="POST", target=TARGET, headers=(play(scenario),), body=body)
    return b"".join(answer(request, parse_scenario(scenario)).pieces)


def ask(running: Proxy | StandIn, scenario: str, body: bytes | None = None, target: str = TARGET) -> Answer:
    """One request on a raw connection."""
    return call(running.port, "POST", target, [play(scenario)], body or prompt())


def kept(headers: Fields) -> list[tuple[str, str]]:
    """The headers of an answer that are the upstream's, in order, names in lower case."""
    hidden = ADDED_DOWNSTREAM | OWN_TO_A_CONNECTION
    return [(name.lower(), value) for name, value in headers if name.lower() not in hidden]


def log_mark(running: Proxy) -> int:
    """The number of the next line of a proxy's log, with the lines of all earlier answers behind us."""
    probe = call(running.port, "GET", "/no-such-page").header("x-proxy-request-id")
    running.wait_for_line(f"access request_id={probe} ")
    return len(running.lines)


def access(running: Proxy, count: int, start: int, **wanted: str) -> list[dict[str, str]]:
    """The access lines from line `start` on that have the `wanted` values, as soon as there are `count` of them."""
    found: list[dict[str, str]] = wait_for(
        lambda: (lines := events_logged(running.lines[start:], "access", **wanted)) and len(lines) >= count and lines,
        f"{count} access lines with {wanted}: {running.lines[start:]}",
    )
    assert len(found) == count
    return found


def begin_drain(running: Proxy, count: int) -> None:
    """SIGTERM as soon as so many requests are in flight; wait until health checks see it."""
    wait_for(lambda: running.in_flight() == count, f"{count} are in flight")
    running.signal(signal.SIGTERM)
    wait_for(lambda: running.get("/health")[0] == 503, "/health answers 503")


class DemotionContract:
    """What an SDK finds behind a demoting proxy: what it finds without. A subclass gives a `sdk` fixture."""

    @pytest.fixture
    def both(self, sdk: Driver, upstream: StandIn, demoting: Proxy) -> Callable[..., JSON]:
        """Plays a scenario directly and demoted; gives what both showed, which must be the same."""

        def both(scenario: str, /, **arguments: object) -> JSON:
            direct = sdk.play(upstream.url, scenario, **arguments)
            behind = sdk.play(demoting.url, scenario, **arguments)
            assert behind == direct
            return direct

        return both

    # a message

    def test_message_that_takes_longer_than_the_header_timeout(
        self, sdk: Driver, upstream: StandIn, impatient: Proxy, impatient_relay: Proxy
    ) -> None:
        """A message that is finished long after RESPONSE_HEADER_TIMEOUT arrives, which without demotion is a 504."""
        mark = upstream.mark()
        gate = f"longer-{mark}"
        scenario = f"message?say=tools&delta=5&gate={gate}@5&whole_gate={gate}"
        asked: JSON = {"scenario": scenario, "more": {"stream": False}}
        with ThreadPoolExecutor(1) as pool:
            playing = pool.submit(sdk.play, impatient.url, "create", **asked)
            upstream.wait_for(lambda seen: seen and seen[0].first_byte_at, "the stream has begun", since=mark)
            # This one was sent later, and the same time has passed for it.
            timed_out = ask(impatient_relay, scenario)
            assert (timed_out.status, timed_out.json()["error"]["type"]) == (504, "timeout_error")
            assert not playing.done()
            assert impatient.in_flight() == 1
            upstream.release(gate)
            behind = playing.result(30)
        assert behind == sdk.play(upstream.url, "create", **asked)
        content, stop_reason = told("tools")
        found = essence(behind["value"]["message"])
        assert found[1:] == (stop_reason, 13)
        assert [block["type"] for block in found[0]] == [block["type"] for block in content]
        assert found[0][1]["input"] == TOOL_INPUT
        wait_for(lambda: impatient.in_flight() == 0, "nothing is in flight")

    @pytest.mark.parametrize("say", ["text", "unicode", "tools", "thinking", "citations", "refusal"])
    def test_message(self, both: Callable[..., JSON], say: str) -> None:
        """A message is the one that the API gives without a stream, its id and request id included."""
        value = both("create", scenario=f"message?say={say}&delta=5", more={"stream": False})["value"]
        assert value["message"]["stop_reason"] == told(say)[1]
        assert value["message"]["usage"]["output_tokens"] == 13
        assert value["request_id"].startswith("req_")

    def test_messages_of_every_kind(self, both: Callable[..., JSON]) -> None:
        """Each stream of the corpus gives what the same request gives without a stream."""
        for name in BY_NAME:
            assert both("create", scenario=f"message?say={quote(f'corpus/{name}')}")["value"]["message"], name

    def test_tools_over_turns(self, both: Callable[..., JSON]) -> None:
        """A tool is called, its result goes up, and the answer quotes it."""
        replies = both("conversation", stream=False)["value"]["replies"]
        assert [reply["stop_reason"] for reply in replies] == ["tool_use", "end_turn"]
        assert replies[0]["content"][1]["input"] == TOOL_INPUT

    @pytest.mark.parametrize("scenario", ["beta", "bearer"])
    def test_other_calls(self, both: Callable[..., JSON], demoting: Proxy, scenario: str) -> None:
        """The beta API, which has a query, and the other kind of credential are demoted as well."""
        start = log_mark(demoting)
        assert both(scenario)["value"]["message"]["stop_reason"] == "end_turn"
        access(demoting, 1, start, demoted="true", verdict="complete", status="200")

    def test_raw_response(self, sdk: Driver, upstream: StandIn, demoting: Proxy) -> None:
        """Status, headers and bytes are those of an answer that was never a stream."""
        direct = sdk.play(upstream.url, "raw_response", scenario="message?say=tools&delta=5", stream=False)["value"]
        behind = sdk.play(demoting.url, "raw_response", scenario="message?say=tools&delta=5", stream=False)["value"]
        assert sorted(kept(behind["headers"])) == sorted(kept(direct["headers"]))
        assert (behind["status"], behind["length"], behind["sha256"]) == (200, direct["length"], direct["sha256"])
        assert "content-type" in dict(behind["headers"])
        assert not {"transfer-encoding", "cache-control"} & set(dict(behind["headers"]))

    # what goes up

    @pytest.mark.parametrize("more", [{}, {"stream": False}], ids=["no stream member", "stream=False"])
    def test_request(self, both: Callable[..., JSON], upstream: StandIn, more: JSON) -> None:
        """Headers are the SDK's but for the length, and so is every byte of the body but for one member."""
        mark = upstream.mark()
        both("create", scenario="auto", more=more)
        direct, behind = upstream.requests(mark)
        assert (behind.method, behind.target) == (direct.method, direct.target)
        if more:
            assert direct.body.count(b'"stream":false') == 1
            assert behind.body == direct.body.replace(b'"stream":false', b'"stream":true')
        else:
            assert b'"stream"' not in direct.body
            assert behind.body == b'{"stream":true,' + direct.body[1:]
        without_length = [
            [(name, value) for name, value in forwarded(seen) if name != "content-length"] for seen in (direct, behind)
        ]
        assert without_length[0] == without_length[1]
        assert behind.header("content-length") == [str(len(behind.body))]

    @pytest.mark.parametrize(
        ("scenario", "arguments"),
        [
            ("stream", {"scenario": "auto"}),
            ("raw_events", {"scenario": "message?say=tools&delta=5"}),
            ("count_tokens", {}),
            ("models", {}),
        ],
    )
    def test_what_is_left_alone(
        self, both: Callable[..., JSON], upstream: StandIn, demoting: Proxy, scenario: str, arguments: JSON
    ) -> None:
        """Streams, counts of tokens and what is no message go up and come down as ever."""
        mark, start = upstream.mark(), log_mark(demoting)
        assert "value" in both(scenario, **arguments)
        seen = upstream.requests(mark)
        half = len(seen) // 2
        assert [each.body for each in seen[half:]] == [each.body for each in seen[:half]]
        assert [forwarded(each) for each in seen[half:]] == [forwarded(each) for each in seen[:half]]
        access(demoting, half, start, demoted="false")

    # errors

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 503, 529])
    def test_error_before_the_stream(self, both: Callable[..., JSON], upstream: StandIn, status: int) -> None:
        """A status of the upstream's raises what it raises without the proxy, with the upstream's body and id."""
        mark = upstream.mark()
        raised = both("create", scenario=f"error?status={status}&message=No%20%E2%80%94%20never")["raised"]
        assert (raised["status"], raised["body"]["error"]["message"]) == (status, "No — never")
        assert raised["request_id"] == raised["body"]["request_id"]
        assert len(upstream.requests(mark)) == 2

    def test_error_that_is_no_json(self, both: Callable[..., JSON]) -> None:
        """A balancer's HTML error comes through as it is."""
        assert both("create", scenario=f"error?status=503&body={quote('<html>Busy</html>')}")["raised"]["status"] == 503

    def test_failures_of_every_kind(self, sdk: Driver, upstream: StandIn, demoting: Proxy) -> None:
        """Each stream of the corpus that is no message raises as its status would; `error` events in their own words.

        The request id is the upstream's, whoever says the error.
        """
        for failure in FAILURES:
            asked: JSON = {"scenario": f"message?say={quote(f'failure/{failure.name}')}"}
            direct = sdk.play(upstream.url, "create", **asked)["raised"]
            behind = sdk.play(demoting.url, "create", **asked)["raised"]
            assert behind["status"] == failure.status, failure.name
            assert behind["body"]["error"]["type"] == failure.error_type, failure.name
            assert behind["body"]["error"]["message"], failure.name
            alike = direct.keys() - ({"body"} if failure.outcome != "ErrorEvent" else set())
            assert {key: behind[key] for key in alike} == {key: direct[key] for key in alike}, failure.name

    @pytest.mark.parametrize("at", [0, 1, 5])
    @pytest.mark.parametrize(("kind", "status"), [("overloaded_error", 529), ("rate_limit_error", 429)])
    def test_error_event(
        self, sdk: Driver, upstream: StandIn, demoting: Proxy, kind: str, status: int, at: int
    ) -> None:
        """An `error` event, first or in the middle, raises what its status raises, with message and request id."""
        mark, start = upstream.mark(), log_mark(demoting)
        scenario = f"message?count=9&delta=6&error_at={at}&type={kind}&message=Try%20later"
        raised = sdk.play(demoting.url, "create", scenario=scenario)["raised"]
        (seen,) = upstream.requests(mark)
        assert seen.body.startswith(b'{"stream":true,')
        direct = sdk.play(upstream.url, "create", scenario=f"error?status={status}&type={kind}")["raised"]
        for name in ("class", "family", "status", "type"):
            assert raised[name] == direct[name], name
        assert raised["body"]["error"] == {"type": kind, "message": "Try later"}
        assert raised["request_id"] == raised["body"]["request_id"]
        (line,) = access(demoting, 1, start, demoted="true", status=str(status))
        (told_why,) = events_logged(demoting.lines[start:], "forward_error", request_id=line["request_id"])
        assert (told_why["demoted"], told_why["kind"], told_why["status"]) == ("true", kind, str(status))

    def test_error_event_that_the_sdk_retries(self, sdk: Driver, upstream: StandIn, demoting: Proxy) -> None:
        """What no SDK retries in a stream is an overload like any other: the third try's answer is the client's."""
        mark = upstream.mark()
        overloaded = f"message?error_at=4&times=2&key=demoted-retry-{mark}&header=retry-after-ms:1"
        value = sdk.play(demoting.url, "create", scenario=overloaded, retries=2)["value"]
        assert value["message"]["stop_reason"] == "end_turn"
        counts = [each.header("x-stainless-retry-count") for each in upstream.requests(mark)]
        assert counts == [["0"], ["1"], ["2"]]

    def test_cuts(self, sdk: Driver, upstream: StandIn, demoting: Proxy) -> None:
        """A stream that is cut before its end, wherever and however, is a 502 to the SDK, and no message."""
        length = sdk.play(upstream.url, "raw_response", scenario="auto?count=1", stream=True)["value"]["length"]
        ways = (*CUT_WAYS, "how=last")
        cuts = [f"cut?count=1&at={at}&{ways[number % len(ways)]}" for number, at in enumerate(range(0, length, 17))]
        value = sdk.play(demoting.url, "truncations", scenarios=cuts, stream=False)["value"]
        assert value == {"successes": [], "raised": ["InternalServerError"]}
        raised = sdk.play(demoting.url, "create", scenario=cuts[len(cuts) // 2])["raised"]
        assert (raised["status"], raised["body"]["error"]["type"]) == (502, "api_error")
        assert "without message_stop" in raised["body"]["error"]["message"]

    def test_json_although_a_stream_was_asked_for(self, both: Callable[..., JSON]) -> None:
        """Passed through, be it compressed."""
        assert both("create", scenario="message?whole=1")["value"]["message"]["stop_reason"] == "end_turn"
        assert both("create", scenario="message?whole=1&gzip=1")["value"]["message"]["stop_reason"] == "end_turn"

    def test_compressed_stream(self, sdk: Driver, demoting: Proxy) -> None:
        """Identity was asked for: a 502 that says so."""
        raised = sdk.play(demoting.url, "create", scenario="message?gzip=1")["raised"]
        assert raised["status"] == 502
        assert "identity" in raised["body"]["error"]["message"]

    def test_silence_in_the_middle(self, sdk: Driver, upstream: StandIn, strict: Proxy) -> None:
        """UPSTREAM_IDLE_TIMEOUT without a byte is a 504, and the upstream is left."""
        mark = upstream.mark()
        raised = sdk.play(strict.url, "create", scenario=HELD)["raised"]
        assert (raised["status"], raised["body"]["error"]["type"]) == (504, "timeout_error")
        assert "UPSTREAM_IDLE_TIMEOUT" in raised["body"]["error"]["message"]
        upstream.wait_closed(since=mark, timeout=1)

    def test_message_beyond_the_limit(self, sdk: Driver, upstream: StandIn, strict: Proxy) -> None:
        """More than MAX_RESPONSE_BYTES is a 502 that names the setting, and the upstream is left."""
        mark = upstream.mark()
        scenario = f"message?count={LARGE // 5}&delta=1000&gate=never@150"
        raised = sdk.play(strict.url, "create", scenario=scenario)["raised"]
        assert (raised["status"], raised["body"]["error"]["type"]) == (502, "api_error")
        assert str(LARGE) in raised["body"]["error"]["message"]
        upstream.wait_closed(since=mark, timeout=1)

    # clients that go

    def test_client_that_gives_up(self, sdk: Driver, upstream: StandIn, demoting: Proxy) -> None:
        """A client that waits no longer ends the upstream's connection within a second, and is counted out."""
        mark, start = upstream.mark(), log_mark(demoting)
        raised = sdk.play(demoting.url, "create", scenario=HELD, timeout=0.3)["raised"]
        assert "Timeout" in raised["class"]
        upstream.wait_closed(since=mark, timeout=1)
        access(demoting, 1, start, demoted="true", verdict="client_gone")
        assert demoting.in_flight() == 0

    # heartbeat

    def test_heartbeat(self, sdk: Driver, upstream: StandIn, beating: Proxy) -> None:
        """Blanks before the message are no part of it."""
        start = log_mark(beating)
        asked: JSON = {"scenario": "message?say=tools&delta=5&silence=0.3@4"}
        direct = sdk.play(upstream.url, "create", **asked)
        assert sdk.play(beating.url, "create", **asked) == direct
        (line,) = access(beating, 1, start, demoted="true", verdict="complete")
        length = sdk.play(upstream.url, "raw_response", **asked)["value"]["length"]
        assert int(line["bytes"]) > length, "no blank was sent"

    def test_failure_after_a_heartbeat(self, sdk: Driver, beating: Proxy) -> None:
        """A 200 is out: all failures are cuts, which raise as broken connections do; the quick ones have a status."""
        late = ["message?count=9&delta=6&silence=0.3@4&error_at=5"]
        late += [f"cut?count=9&delta=6&silence=0.3@4&at=900&{way}" for way in (*CUT_WAYS, "how=last")]
        value = sdk.play(beating.url, "truncations", scenarios=late, stream=False)["value"]
        assert value["successes"] == []
        assert "InternalServerError" not in value["raised"]
        raised = sdk.play(beating.url, "create", scenario="message?error_at=4")["raised"]
        assert raised["status"] == 529


class TestAnthropic2(DemotionContract):
    """anthropic 2.x."""

    @pytest.fixture
    def sdk(self, anthropic_2: Driver) -> Driver:
        return anthropic_2


class TestAnthropic0(DemotionContract):
    """anthropic 0.125."""

    @pytest.fixture
    def sdk(self, anthropic_0: Driver) -> Driver:
        return anthropic_0


class TestNode(DemotionContract):
    """@anthropic-ai/sdk."""

    @pytest.fixture
    def sdk(self, anthropic_node: Driver) -> Driver:
        return anthropic_node


ODD = (
    b'\t{ "max_tokens" : 1e2,\r\n"m\\u006fdel":"claude-\\u00e9",'
    b'"n":[123456789012345678901234567890,-0.0,1.0,1e400,1E+2],'
    b'"o":{"a":1,"a":{"stream":false},"stream":false} ,"t":"\\ud83d\\ude00 \\/ \xc3\xa9 \\"stream\\":false" %b} \n'
)
"""A body in which everything but its meaning gets lost when it is parsed and written again."""


class TestOnTheWire:
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (ODD % b"", ODD.replace(b"{ ", b'{"stream":true, ', 1) % b""),
            (ODD % b',"stream" :\nfalse', ODD % b',"stream" :\ntrue'),
            (ODD % b',"str\\u0065am":null', ODD % b',"str\\u0065am":true'),
            (ODD % b',"stream":false,"stream":null', ODD % b',"stream":true,"stream":true'),
        ],
        ids=["no stream member", "false", "an escaped name", "twice"],
    )
    def test_one_member_is_set(self, upstream: StandIn, demoting: Proxy, before: bytes, after: bytes) -> None:
        """Every other byte of the body goes up as it came."""
        mark = upstream.mark()
        got = ask(demoting, "message", before)
        assert (got.status, got.json()["type"]) == (200, "message")
        (seen,) = upstream.requests(mark)
        assert seen.body == after
        assert seen.header("content-length") == [str(len(after))]

    @pytest.mark.parametrize(
        ("target", "body"),
        [
            (TARGET, ODD % b',"stream":true'),
            (TARGET, b"[]"),
            (TARGET, b'{"model":'),
            (TARGET, b'{"a":NaN}'),
            (TARGET, b'{"a":"\xff"}'),
            (TARGET, b'{"stream":"no"}'),
            (f"{TARGET}/count_tokens", ODD % b""),
            (f"{TARGET}/batches", ODD % b""),
        ],
    )
    def test_what_goes_up_untouched(self, upstream: StandIn, demoting: Proxy, target: str, body: bytes) -> None:
        """A stream, what is no JSON object, other endpoints."""
        mark, start = upstream.mark(), log_mark(demoting)
        assert ask(demoting, "echo", body, target).whole
        (seen,) = upstream.requests(mark)
        assert seen.body == body
        access(demoting, 1, start, demoted="false")

    def test_it_is_off_by_default(self, upstream: StandIn, proxied: Proxy) -> None:
        """The body goes up as it came, and the answer comes down as it came."""
        mark, start = upstream.mark(), log_mark(proxied)
        got = ask(proxied, "message", ODD % b"")
        assert got.body == sent("message", ODD % b"")
        (seen,) = upstream.requests(mark)
        assert seen.body == ODD % b""
        access(proxied, 1, start, demoted="false")

    @pytest.mark.parametrize(
        "scenario",
        [
            "error?status=429&retry_after=3&should_retry=true",
            "error?status=529",
            f"error?status=502&body={quote('<html>Bad gateway</html>')}",
            "message?whole=1",
            "message?whole=1&framing=chunked",
        ],
    )
    def test_what_is_no_stream_passes_verbatim(self, upstream: StandIn, demoting: Proxy, scenario: str) -> None:
        """Status, headers in their order, and every byte of the body."""
        direct, behind = ask(upstream, scenario), ask(demoting, scenario)
        assert (behind.status, behind.body, behind.whole) == (direct.status, direct.body, True)
        assert kept(behind.headers) == kept(direct.headers)

    @pytest.mark.parametrize("name", BY_NAME)
    def test_message(self, upstream: StandIn, demoting: Proxy, name: str) -> None:
        """Byte for byte the answer without a stream, in any piece; its headers as well."""
        scenario = f"message?say={quote(f'corpus/{name}')}"
        direct, behind = ask(upstream, scenario), ask(demoting, f"{scenario}&dribble=101&dribble_interval=0")
        assert (behind.status, behind.body, behind.whole) == (200, direct.body, True)
        assert sorted(kept(behind.headers)) == sorted(kept(direct.headers))
        assert behind.header("content-length") == str(len(direct.body))

    @pytest.mark.parametrize(
        "dialect",
        ["eol=crlf", "eol=cr", "comments=1&ids=1&retry=3000", "huge=2000000", "dribble=7&dribble_interval=0"],
    )
    def test_dialects(self, upstream: StandIn, demoting: Proxy, dialect: str) -> None:
        """However the upstream writes its stream: CR, CRLF, comments, ids, a line of 2 MB, seven bytes at a time."""
        got = ask(demoting, f"message?say=unicode&{dialect}")
        assert (got.status, got.body) == (200, sent("message?say=unicode", prompt()))

    @pytest.mark.parametrize("way", [*CUT_WAYS, "how=fin&framing=close", "how=last"])
    def test_the_end_of_the_last_event_is_the_end(self, demoting: Proxy, way: str) -> None:
        """A cut a byte before it is a 502; after it, nothing of the message is missing."""
        length = len(sent("auto?count=1", prompt(stream=True)))
        short = ask(demoting, f"cut?count=1&at={length - 1}&{way}")
        assert (short.status, short.whole, short.json()["error"]["type"]) == (502, True, "api_error")
        full = ask(demoting, f"cut?count=1&at={length}&{way}")
        assert (full.status, full.whole, full.json()["stop_reason"]) == (200, True, "end_turn")

    def test_tool_input_that_max_tokens_cut_off(self, upstream: StandIn, demoting: Proxy) -> None:
        """The members that are complete, to the last digit."""
        got = ask(demoting, f"message?say={quote('corpus/tool-input-cut-off')}")
        assert got.json()["content"][1]["input"] == {
            "path": "/a",
            "n": 123456789012345678901234567890,
            "edits": [{"old": "x"}],
        }

    def test_the_client_keeps_its_connection(self, demoting: Proxy) -> None:
        """After a message, an error event and a cut stream alike, the next request is served on it."""
        with Client(demoting.port) as client:
            for scenario in ("message", "message?error_at=3", "cut?at=300&how=rst", "message?gzip=1", "message"):
                got = client.call("POST", TARGET, [play(scenario)], prompt())
                assert got.whole, scenario
                assert got.header("connection") is None, scenario

    def test_the_upstreams_connection_is_used_again(self, upstream: StandIn, demoting: Proxy) -> None:
        """Message after message needs no new one."""
        assert ask(demoting, "message").status == 200
        mark = upstream.connection_mark()
        for _ in range(5):
            assert ask(demoting, "message").status == 200
        assert upstream.connections(mark) == []

    def test_thirty_at_once(self, upstream: StandIn, demoting: Proxy) -> None:
        """Each client gets its own message; all are counted while they grow."""
        mark = upstream.mark()
        scenario = f"message?count=200&delta=6&gate=thirty-{mark}@40"
        bodies = [prompt(f"Number {number}") for number in range(30)]
        with ThreadPoolExecutor(30) as pool:
            asking = [pool.submit(ask, demoting, scenario, body) for body in bodies]
            wait_for(lambda: demoting.in_flight() == 30, "all are in flight")
            upstream.release(f"thirty-{mark}")
            answers = [each.result(30) for each in asking]
        assert [each.body for each in answers] == [sent(scenario, body) for body in bodies]
        wait_for(lambda: demoting.in_flight() == 0, "nothing is in flight")

    @pytest.mark.parametrize("how", ["fin", "rst"])
    @pytest.mark.parametrize("interval", [0, 0.005])
    def test_client_that_leaves(self, upstream: StandIn, demoting: Proxy, how: str, interval: float) -> None:
        """While the stream is quiet, or busy: the upstream's connection ends within a second, the gauge is back."""
        mark, start = upstream.mark(), log_mark(demoting)
        scenario = f"message?count=2000&delta=6&interval={interval}" if interval else HELD
        with Client(demoting.port) as client:
            client.ask("POST", TARGET, [play(scenario)], prompt())
            upstream.wait_for(lambda seen: seen and seen[0].written > 300, "the stream has begun", since=mark)
            client.leave(how)
            upstream.wait_closed(since=mark, timeout=1)
        access(demoting, 1, start, demoted="true", verdict="client_gone")
        assert demoting.in_flight() == 0

    def test_client_that_takes_nothing(self, tmp_path: Path, upstream: StandIn) -> None:
        """WRITE_TIMEOUT holds for a folded message as for a relayed one: nobody holds up the drain for ever."""
        settings = {"ANTHROPIC_DEMOTE_NONSTREAMING": "true", "WRITE_TIMEOUT": "0.5s"}
        with proxy(tmp_path, upstream, **settings) as running, Client(running.port, receive_buffer=4096) as client:
            client.ask("POST", TARGET, [play("message?count=1000000&delta=100000")], prompt())
            client.read_until(b"\r\n\r\n")
            access(running, 1, 0, demoted="true", verdict="client_stalled")
            assert running.in_flight() == 0


class TestHeartbeat:
    @pytest.mark.parametrize("framing", ["chunked", "length", "close"])
    def test_status_and_blanks_come_before_the_message(self, upstream: StandIn, beating: Proxy, framing: str) -> None:
        """The head with the first beat, a blank in a chunk of its own with each, and then the same message.

        However the upstream frames its stream.
        """
        mark = upstream.mark()
        scenario = f"message?gate=blanks-{mark}@4&framing={framing}"
        with Client(beating.port) as client:
            client.ask("POST", TARGET, [play(scenario)], prompt())
            head = client.read_until(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"content-type: application/json\r\n" in head.lower()
            assert b"content-length" not in head.lower()
            blanks = b"".join(client.read_until(b"1\r\n \r\n") for _ in range(3))
            assert blanks == 3 * b"1\r\n \r\n"
            assert beating.in_flight() == 1
            upstream.release(f"blanks-{mark}")
            got = client.answer(already=head + blanks)
        assert got.whole
        assert got.body.startswith(b"   ")
        assert got.body.lstrip(b" ") == sent(scenario, prompt())

    def test_none_before_the_upstream_answers(self, upstream: StandIn, beating: Proxy) -> None:
        """Until the upstream's status is known there is nothing to say, and an error keeps its status."""
        mark = upstream.mark()
        scenario = f"error?status=529&header_gate=status-{mark}"
        with Client(beating.port) as client, Client(beating.port) as other:
            client.ask("POST", TARGET, [play(scenario)], prompt())
            # That one beats, and is asked for later.
            other.ask("POST", TARGET, [play(HELD)], prompt())
            other.read_until(b"1\r\n \r\n1\r\n \r\n")
            upstream.release(f"status-{mark}")
            assert client.answer().status == 529

    @pytest.mark.parametrize("rest", ["error_at=5", "at=900&how=fin", "at=900&how=rst", "at=900&how=last"])
    def test_failure_after_the_first_beat(self, upstream: StandIn, beating: Proxy, rest: str) -> None:
        """The 200 has no end: a FIN without the last chunk."""
        mark, start = upstream.mark(), log_mark(beating)
        with Client(beating.port) as client:
            client.ask("POST", TARGET, [play(f"message?count=9&delta=6&gate=fail-{mark}@4&{rest}")], prompt())
            begun = client.read_until(b"1\r\n \r\n")
            upstream.release(f"fail-{mark}")
            got = client.answer(already=begun)
        assert (got.status, got.ending, got.body.strip(b" ")) == (200, "fin", b"")
        (line,) = access(beating, 1, start, demoted="true")
        assert line["verdict"] not in ("complete", "client_gone")
        assert len(events_logged(beating.lines[start:], "forward_error", request_id=line["request_id"])) == 1
        assert beating.in_flight() == 0

    @pytest.mark.parametrize(("rest", "ending"), [("", "fin"), ("&error_at=5", "rst")])
    def test_client_of_http_1_0(self, upstream: StandIn, beating: Proxy, rest: str, ending: str) -> None:
        """The end of the connection ends the message: where there is none, that has to be a reset."""
        mark = upstream.mark()
        scenario = f"message?count=9&delta=6&gate=old-{mark}@4{rest}"
        with Client(beating.port) as client:
            asked = request_bytes("POST", TARGET, [play(scenario)], prompt())
            client.send(asked.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
            head = client.read_until(b"\r\n\r\n")
            assert b"content-length" not in head.lower()
            assert b"chunked" not in head.lower()
            assert client.read_until(b"  ") == b"  "
            upstream.release(f"old-{mark}")
            body, ended = client.read_to_end()
        assert ended == ending
        assert body.lstrip(b" ") == (b"" if rest else sent(scenario, prompt()))

    @pytest.mark.parametrize("how", ["fin", "rst"])
    def test_client_that_leaves_between_beats(self, upstream: StandIn, beating: Proxy, how: str) -> None:
        """It ends the upstream's connection within a second, as ever."""
        mark, start = upstream.mark(), log_mark(beating)
        with Client(beating.port) as client:
            client.ask("POST", TARGET, [play(HELD)], prompt())
            client.read_until(b"1\r\n \r\n")
            client.leave(how)
            upstream.wait_closed(since=mark, timeout=1)
        access(beating, 1, start, demoted="true", verdict="client_gone", status="200")
        assert beating.in_flight() == 0


class TestDrain:
    def test_it_waits_for_the_message(self, tmp_path: Path, upstream: StandIn) -> None:
        """SIGTERM while messages grow, with and without a heartbeat: each is whole, and then the process ends."""
        mark = upstream.mark()
        scenario = f"message?say=tools&delta=5&gate=drained-{mark}@5"
        settings = {"ANTHROPIC_DEMOTE_NONSTREAMING": "true"}
        (tmp_path / "beating").mkdir()
        with (
            proxy(tmp_path, upstream, **settings) as quiet,
            proxy(tmp_path / "beating", upstream, **settings, DEMOTE_HEARTBEAT="0.1s") as beating,
            ThreadPoolExecutor(4) as pool,
        ):
            asking = [pool.submit(ask, running, scenario) for running in (quiet, beating) for _ in range(2)]
            begin_drain(quiet, 2)
            begin_drain(beating, 2)
            assert quiet.in_flight() == beating.in_flight() == 2
            upstream.release(f"drained-{mark}")
            answers = [each.result(30) for each in asking]
            for running in (quiet, beating):
                assert running.wait() == -signal.SIGTERM
                access(running, 2, 0, demoted="true", verdict="complete", status="200")
                assert "Traceback" not in running.log
        for got in answers:
            assert (got.status, got.whole) == (200, True)
            assert got.body.lstrip(b" ") == sent(scenario, prompt())
        assert [got.header("connection") for got in answers[:2]] == ["close", "close"]

    def test_its_end_is_told(self, tmp_path: Path, upstream: StandIn) -> None:
        """DRAIN_TIMEOUT in the middle of the stream: there still is a status, and the upstream is left."""
        mark = upstream.mark()
        settings = {"ANTHROPIC_DEMOTE_NONSTREAMING": "true", "DRAIN_TIMEOUT": "0.3s"}
        with proxy(tmp_path, upstream, **settings) as running, Client(running.port) as client:
            client.ask("POST", TARGET, [play(HELD)], prompt())
            upstream.wait_for(lambda seen: seen and seen[0].written > 300, "the stream has begun", since=mark)
            running.signal(signal.SIGTERM)
            got = client.answer()
            assert running.wait() == -signal.SIGTERM
        assert (got.status, got.whole, got.json()["error"]["type"]) == (529, True, "overloaded_error")
        upstream.wait_closed(since=mark, timeout=1)
        access(running, 1, 0, demoted="true", verdict="drained", status="529")
        assert "Traceback" not in running.log
