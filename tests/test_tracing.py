"""Tracing, in memory: what the spans of a request say, whose children they are, and what becomes of them in trouble."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
import pkgutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from tests.memory import LAST_CHUNK, STREAM_HEAD, InMemoryProxy, captured, chunk, event
from tests.processes import CHECKOUT, wait_for
from tests.test_recording import FakeKeeper
from tests.test_routes import CLAUDE_KEY, OPENAI, ask, openai, routed
from twisted_proxy import __version__
from twisted_proxy.config import Config
from twisted_proxy.record.live import LiveTap
from twisted_proxy.record.recording import ExchangeTap
from twisted_proxy.tracing import tracing as tracing_module
from twisted_proxy.tracing.environment import INSTALL, TracingConfig
from twisted_proxy.tracing.tracing import STOP_TIMEOUT, Tracing

SECOND = 1_000_000_000
STARTED = 1_700_000_000 * SECOND
COLLECTOR = TracingConfig(endpoint="http://collector.test/v1/traces")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
USAGE = '{"input_tokens":10,"cache_read_input_tokens":300,"cache_creation_input_tokens":4,"output_tokens":1}'
MESSAGE = (
    event(
        "message_start",
        '{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-test-1",'
        f'"content":[],"stop_reason":null,"usage":{USAGE}}}}}',
    )
    + event("content_block_start", '{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}')
    + event(
        "content_block_delta",
        '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"the answer is secret"}}',
    )
    + event("content_block_stop", '{"type":"content_block_stop","index":0}')
)
END = event(
    "message_delta",
    '{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":77}}',
) + event("message_stop", '{"type":"message_stop"}')


class Reactor:
    """A clock to which other threads may hand calls; they run at once, where they are."""

    def __init__(self, clock: Clock) -> None:
        self.seconds = clock.seconds
        self.callLater = clock.callLater

    def callFromThread(self, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        call(*args, **kwargs)


@attrs.define
class Traced:
    """A proxy that traces, and what it has exported."""

    proxy: InMemoryProxy
    exporter: SpanExporter

    @property
    def tracing(self) -> Tracing:
        tracing: Tracing = self.proxy.service.tracing
        return tracing

    def stop(self) -> None:
        done: list[object] = []
        self.tracing.stop().addBoth(done.append)
        wait_for(lambda: done, "the end of tracing")

    def spans(self) -> list[ReadableSpan]:
        """All of them, at the end; no more are made."""
        self.stop()
        assert isinstance(self.exporter, InMemorySpanExporter)
        return list(self.exporter.get_finished_spans())

    def spans_of_one(self) -> tuple[ReadableSpan, ReadableSpan]:
        """The request's, and what was asked upstream."""
        asked, request = self.spans()
        assert (request.kind, asked.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
        assert request.context is not None
        assert asked.parent is not None
        assert asked.parent.span_id == request.context.span_id
        assert asked.context is not None
        assert asked.context.trace_id == request.context.trace_id
        return request, asked


_MADE: list[Traced] = []


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of whoever runs the tests is traced by; and what was begun is ended."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    yield
    while _MADE:
        traces = _MADE.pop()
        if isinstance(traces.exporter, Stuck):
            traces.exporter.go.set()
        traces.stop()


def traced(
    make: Callable[..., InMemoryProxy] = InMemoryProxy,
    *,
    exporter: SpanExporter | None = None,
    config: TracingConfig = COLLECTOR,
    **options: Any,
) -> Traced:
    taking = exporter or InMemorySpanExporter()

    def tracing(clock: Clock, config_of_proxy: Config) -> Tracing:
        return Tracing(
            Reactor(clock), config, config_of_proxy.providers, lambda: 1_700_000_000.0, exporter=lambda: taking
        )

    proxy = make(tracing=tracing, **options)
    proxy.service.tracing.start()
    _MADE.append(Traced(proxy, taking))
    return _MADE[-1]


def told(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def times(span: ReadableSpan) -> tuple[float, float]:
    """When it began and ended, in seconds after the test did."""
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.start_time - STARTED) / SECOND, (span.end_time - STARTED) / SECOND


REQUEST_BODY = b'{"model":"claude-test","stream":true,"messages":[{"role":"user","content":"a secret question"}]}'


class TestAStream:
    def test_two_spans(self) -> None:
        """The request as HTTP's conventions have it, and below it the inference as those of generative AI have it."""
        traces = traced()
        proxy = traces.proxy
        client = proxy.client()
        proxy.clock.advance(5)
        client.request(
            target="/v1/messages?beta=true&token=hush",
            body=REQUEST_BODY,
            headers=[
                ("User-Agent", "claude-cli/2.1"),
                ("X-Api-Key", CLAUDE_KEY),
                ("X-Forwarded-Proto", "https"),
                ("X-Claude-Code-Session-Id", "5e55"),
                ("X-Claude-Code-Agent-Id", "a1"),
                ("X-Claude-Code-Agent-Type", "Explore"),
                ("X-Claude-Code-Request-Class", "subagent"),
            ],
        )
        proxy.clock.advance(0.5)
        proxy.upstream.send(STREAM_HEAD)
        proxy.clock.advance(1)
        proxy.upstream.send(chunk(MESSAGE))
        proxy.clock.advance(10)
        proxy.upstream.send(chunk(END) + LAST_CHUNK)
        assert client.answer().outcome == "complete"
        request, asked = traces.spans_of_one()
        assert (request.name, request.parent) == ("POST /v1/messages", None)
        answer = len(MESSAGE + END)
        assert told(request) == {
            "http.request.method": "POST",
            "http.route": "/v1/messages",
            "http.response.status_code": 200,
            "http.request.body.size": len(REQUEST_BODY),
            "http.response.body.size": answer,
            "url.path": "/v1/messages",
            "url.query": "beta=true&token=***",
            "url.scheme": "https",
            "server.address": "proxy.test",
            "client.address": "127.0.0.1",
            "user_agent.original": "claude-cli/2.1",
            "claude_proxy.request_id": client.answer().header("x-proxy-request-id"),
            "claude_proxy.verdict": "complete",
            "claude_proxy.provider": "anthropic",
            "claude_proxy.time_to_first_byte": 1.5,
            "claude_proxy.agent": "a1",
            "claude_proxy.agent_type": "Explore",
            "claude_proxy.request_class": "subagent",
        }
        assert asked.name == "chat claude-test"
        assert told(asked) == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "anthropic",
            "gen_ai.request.model": "claude-test",
            "gen_ai.request.stream": True,
            "gen_ai.conversation.id": "5e55",
            "gen_ai.response.id": "msg_1",
            "gen_ai.response.model": "claude-test-1",
            "gen_ai.response.finish_reasons": ("end_turn",),
            "gen_ai.response.time_to_first_chunk": 1.5,
            "gen_ai.usage.input_tokens": 314,
            "gen_ai.usage.cache_read.input_tokens": 300,
            "gen_ai.usage.cache_creation.input_tokens": 4,
            "gen_ai.usage.output_tokens": 77,
            "http.response.status_code": 200,
            "server.address": "upstream.test",
            "server.port": 80,
            "claude_proxy.provider": "anthropic",
        }
        assert {request.status.status_code, asked.status.status_code} == {StatusCode.UNSET}
        # The wall clock of the test stands still; what counts are differences.
        assert times(request) == (0, 11.5)
        assert times(asked) == (0, 11.5)

    def test_whose_they_are(self) -> None:
        """The resource names the service, its version and this process."""
        traces = traced()
        traces.proxy.get("/v1/models")
        traces.proxy.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        for span in traces.spans_of_one():
            resource = span.resource.attributes
            assert (resource["service.name"], resource["service.version"]) == ("claude-proxy", __version__)
            assert resource["service.instance.id"]
            assert span.instrumentation_scope is not None
            assert span.instrumentation_scope.name == "claude-proxy"

    def test_a_client_that_takes_its_time(self) -> None:
        """Its request lasts until it has all of it; what was asked upstream was over before."""
        traces = traced()
        client, upstream = traces.proxy.asked(body=REQUEST_BODY)
        upstream.send(STREAM_HEAD + chunk(MESSAGE))
        client.hold()
        traces.proxy.clock.advance(1)
        upstream.send(chunk(END) + LAST_CHUNK)
        traces.proxy.clock.advance(100)
        client.go_on()
        request, asked = traces.spans_of_one()
        assert (times(request), times(asked)) == ((0, 101), (0, 1))

    def test_a_large_one(self) -> None:
        """However long it is, what it cost is known, and little of it is in memory."""
        traces = traced()
        client, upstream = traces.proxy.asked(body=REQUEST_BODY)
        upstream.send(STREAM_HEAD + chunk(MESSAGE))
        for _ in range(100):
            upstream.send(chunk(event("content_block_delta", '{"x":"' + "y" * 10_000 + '"}')))
        upstream.send(chunk(END) + LAST_CHUNK)
        assert client.answer().outcome == "complete"
        _, asked = traces.spans_of_one()
        assert told(asked)["gen_ai.usage.output_tokens"] == 77
        assert told(asked)["gen_ai.usage.input_tokens"] == 314


class TestParents:
    @pytest.mark.parametrize("state", [[], ["a=1,b=2"], ["a=1", "b=2"]])
    def test_a_trace_is_continued(self, state: list[str]) -> None:
        """The request is a child of the client's span; what went up is as it came."""
        traces = traced()
        fields = [("traceparent", TRACEPARENT), *[("tracestate", each) for each in state]]
        _, upstream = traces.proxy.asked(headers=fields)
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        request, _ = traces.spans_of_one()
        assert request.context is not None
        assert request.parent is not None
        assert f"{request.context.trace_id:032x}" == TRACE
        assert f"{request.parent.span_id:016x}" == PARENT
        assert request.parent.is_remote
        assert dict(request.context.trace_state) == ({"a": "1", "b": "2"} if state else {})
        sent = upstream.written.lower()
        assert sent.count(b"traceparent: " + TRACEPARENT.encode()) == sent.count(b"traceparent") == 1
        assert sent.count(b"tracestate") == len(state)

    @pytest.mark.parametrize(
        "parents",
        [
            [],
            ["nonsense"],
            [f"00-{'0' * 32}-{PARENT}-01"],
            [f"00-{TRACE}-{PARENT}-01-more"],
            [f"ff-{TRACE}-{PARENT}-01"],
            [TRACEPARENT, f"00-{'1' * 32}-{PARENT}-01"],
            ["\xe9" * 600],
        ],
    )
    def test_a_trace_begins(self, parents: list[str]) -> None:
        """Where the client sent no trace, or none that can be read as one. Nothing is added to what goes up."""
        traces = traced()
        _, upstream = traces.proxy.asked(headers=[("Traceparent", each) for each in parents])
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        request, _ = traces.spans_of_one()
        assert request.parent is None
        assert request.context is not None
        assert f"{request.context.trace_id:032x}" not in (TRACE, "1" * 32)
        assert upstream.written.lower().count(b"traceparent") == len(parents)

    def test_a_translated_request_has_it_too(self) -> None:
        """What is asked of another API is traced as what the client sent."""
        traces = traced(routed)
        ask(traces.proxy, headers=[("X-Api-Key", CLAUDE_KEY), ("Traceparent", TRACEPARENT)])
        assert f"Traceparent: {TRACEPARENT}".encode() in openai(traces.proxy).written

    def test_a_client_that_does_not_sample(self) -> None:
        """Nothing is exported, and its tap is the recorder's own: it costs nothing."""
        keeper = FakeKeeper()
        traces = traced(keeper=keeper)
        client = traces.proxy.client()
        client.request(headers=[("Traceparent", TRACEPARENT[:-2] + "00")])
        (flight,) = traces.proxy.service.gauge.oldest()
        tap: Any = flight
        assert isinstance(tap.tap, LiveTap)
        of_recorder: Any = tap.tap.answered
        assert isinstance(of_recorder.__self__, ExchangeTap)
        traces.proxy.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        assert keeper.only.closed.verdict == "complete"
        assert traces.spans() == []

    @pytest.mark.parametrize(
        ("sampler", "spans"), [("always_off", 0), ("parentbased_traceidratio", 0), ("always_on", 2)]
    )
    def test_sampling(self, monkeypatch: pytest.MonkeyPatch, sampler: str, spans: int) -> None:
        """As OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG have it."""
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
        traces = traced()
        _, upstream = traces.proxy.asked()
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        assert len(traces.spans()) == spans

    def test_the_name_of_the_service(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say what it is called."""
        monkeypatch.setenv("OTEL_SERVICE_NAME", "blue")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=home,service.instance.id=7")
        traces = traced()
        _, upstream = traces.proxy.asked()
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        resource = traces.spans()[0].resource.attributes
        assert (resource["service.name"], resource["service.instance.id"]) == ("blue", "7")
        assert resource["deployment.environment.name"] == "home"


def outcome(span: ReadableSpan) -> tuple[bool, Any]:
    """Whether it counts as an error, and which."""
    # Texts of errors may quote what was said.
    assert span.status.description is None
    return span.status.status_code is StatusCode.ERROR, told(span).get("error.type")


class TestErrors:
    def test_an_upstream_that_cannot_be_reached(self) -> None:
        """Both failed, for the reason of the forward_error log."""
        traces = traced(anthropic_max_retries=0)
        traces.proxy.endpoint.failures = [Refused()]
        client = traces.proxy.client()
        client.request()
        assert client.answer().status == 502
        request, asked = traces.spans_of_one()
        assert outcome(request) == outcome(asked) == (True, "refused")
        assert told(request)["http.response.status_code"] == 502
        assert "http.response.status_code" not in told(asked)

    @pytest.mark.parametrize(
        ("status", "error_type", "ours"),
        [(529, "overloaded_error", (True, "529")), (400, "invalid_request_error", (False, None))],
    )
    def test_an_error_of_the_upstream(self, status: int, error_type: str, ours: tuple[bool, Any]) -> None:
        """The type that it names. That the client's request is wrong is no error of the server."""
        traces = traced()
        _, upstream = traces.proxy.asked()
        body = json.dumps({"type": "error", "error": {"type": error_type, "message": "a secret"}}).encode()
        upstream.send(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (status, len(body), body)
        )
        request, asked = traces.spans_of_one()
        assert outcome(asked) == (True, error_type)
        assert outcome(request) == ours

    def test_an_error_in_the_middle_of_a_stream(self) -> None:
        """The status was 200, and the last event says what came of it: both failed."""
        traces = traced()
        _, upstream = traces.proxy.asked(body=REQUEST_BODY)
        error = event("error", '{"type":"error","error":{"type":"overloaded_error","message":"secret"}}')
        upstream.send(STREAM_HEAD + chunk(MESSAGE + error) + LAST_CHUNK)
        request, asked = traces.spans_of_one()
        assert outcome(request) == outcome(asked) == (True, "overloaded_error")
        assert told(request)["claude_proxy.verdict"] == "complete"
        assert told(asked)["gen_ai.usage.output_tokens"] == 1

    def test_a_stream_that_is_cut(self) -> None:
        """By its upstream: an error, and what it had told of tokens until then."""
        traces = traced()
        _, upstream = traces.proxy.asked(body=REQUEST_BODY)
        upstream.send(STREAM_HEAD + chunk(MESSAGE))
        traces.proxy.clock.advance(3)
        upstream.reset()
        traces.proxy.pump()
        request, asked = traces.spans_of_one()
        assert outcome(request) == outcome(asked) == (True, "truncated")
        assert told(request)["claude_proxy.verdict"] == "truncated"
        assert times(asked) == (0, 3)
        assert told(asked)["gen_ai.usage.input_tokens"] == 314
        assert "gen_ai.response.finish_reasons" not in told(asked)

    def test_an_upstream_that_falls_silent(self) -> None:
        """It ends when it is given up."""
        traces = traced(anthropic_idle_timeout=30)
        _, upstream = traces.proxy.asked(body=REQUEST_BODY)
        upstream.send(STREAM_HEAD + chunk(MESSAGE))
        traces.proxy.clock.advance(30)
        traces.proxy.pump()
        request, asked = traces.spans_of_one()
        assert outcome(request) == outcome(asked) == (True, "silent")
        assert times(asked) == times(request) == (0, 30)

    def test_a_client_that_leaves(self) -> None:
        """Somebody pressed Escape: no error of anybody's."""
        traces = traced()
        client, upstream = traces.proxy.asked(body=REQUEST_BODY)
        upstream.send(STREAM_HEAD + chunk(MESSAGE))
        client.leave()
        request, asked = traces.spans_of_one()
        assert outcome(request) == outcome(asked) == (False, None)
        assert told(request)["claude_proxy.verdict"] == "client_gone"

    def test_a_drain_that_comes_to_its_end(self) -> None:
        """What it cuts is told so."""
        traces = traced(drain_timeout=5)
        client, upstream = traces.proxy.asked(body=REQUEST_BODY)
        upstream.send(STREAM_HEAD + chunk(MESSAGE))
        for each in traces.proxy.service.gauge.oldest():
            each.cut("the end")
        traces.proxy.pump()
        assert b"the end" in client.written
        request, asked = traces.spans_of_one()
        assert outcome(request)[0]
        assert outcome(asked)[0]
        assert told(request)["error.type"] == told(request)["claude_proxy.verdict"] == "drained"

    @pytest.mark.parametrize("body", [b"x" * 11, None])
    def test_what_is_refused(self, body: bytes | None) -> None:
        """No upstream was asked: one span, and no error of ours."""
        traces = traced(max_message_bytes=10)
        client = traces.proxy.client()
        if body is None:
            client.request(target="/v1/chat/completions", method="GET", body=None)
        else:
            client.request(body=body)
        (request,) = traces.spans()
        assert request.kind is SpanKind.SERVER
        assert outcome(request) == (False, None)
        assert told(request)["claude_proxy.verdict"] == "refused"
        assert told(request)["http.response.status_code"] == (413 if body else 405)

    def test_a_tracer_that_breaks(self, monkeypatch: pytest.MonkeyPatch, logs: list[LogEvent]) -> None:
        """Its request is served and recorded; the log says that it is not traced."""
        keeper = FakeKeeper()
        traces = traced(keeper=keeper)
        monkeypatch.setattr(tracing_module, "at_end", lambda *_: 1 / 0)
        client, upstream = traces.proxy.asked()
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        monkeypatch.setattr(tracing_module, "at_start", lambda *_, **__: 1 / 0)
        client.request()
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        assert [answer.status for answer in client.answers(2)] == [200, 200]
        assert [tap.closed.verdict for tap in keeper.taps] == ["complete", "complete"]
        assert len(captured(logs, "a request cannot be traced")) == 2
        assert traces.proxy.in_flight == 0
        assert traces.spans() == []


class TestOtherAnswers:
    def test_a_message_that_is_not_streamed(self) -> None:
        """Its usage is in the one object that it is."""
        traces = traced()
        _, upstream = traces.proxy.asked(body=b'{"model":"claude-test"}')
        message = json.dumps(
            {"id": "msg_2", "model": "m", "stop_reason": "max_tokens", "usage": {"input_tokens": 3, "output_tokens": 4}}
        ).encode()
        upstream.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(message), message)
        )
        _, asked = traces.spans_of_one()
        found = told(asked)
        assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (3, 4)
        assert found["gen_ai.response.finish_reasons"] == ("max_tokens",)
        assert "gen_ai.request.stream" not in found
        assert "gen_ai.response.time_to_first_chunk" not in found

    @pytest.mark.parametrize("heartbeat", [0, 2])
    def test_a_demoted_request(self, heartbeat: float) -> None:
        """The upstream's stream is what is read, whatever the client was told meanwhile."""
        traces = traced(anthropic_demote_nonstreaming=True, demote_heartbeat=heartbeat)
        body = b'{"model":"claude-test","max_tokens":5,"messages":[]}'
        client, upstream = traces.proxy.asked(body=body)
        upstream.send(STREAM_HEAD)
        traces.proxy.clock.advance(3)
        upstream.send(chunk(MESSAGE))
        upstream.send(chunk(END) + LAST_CHUNK)
        assert client.answer().json["usage"]["output_tokens"] == 77
        request, asked = traces.spans_of_one()
        assert told(request)["claude_proxy.demoted"] is True
        assert told(asked)["gen_ai.request.stream"] is True
        assert told(asked)["gen_ai.usage.output_tokens"] == 77
        assert told(asked)["gen_ai.usage.input_tokens"] == 314

    def test_an_anthropic_client_of_openai(self) -> None:
        """What was asked upstream: that provider, that model, and the tokens that it tells."""
        traces = traced(routed)
        client = ask(traces.proxy, stream=True)
        chunks = [
            {"id": "chatcmpl-1", "model": "gpt-4o-2", "choices": [{"index": 0, "delta": {"content": "Hi"}}]},
            {"id": "chatcmpl-1", "model": "gpt-4o-2", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {
                "id": "chatcmpl-1",
                "model": "gpt-4o-2",
                "choices": [],
                "usage": {"prompt_tokens": 20, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 8}},
            },
        ]
        data = b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in chunks) + b"data: [DONE]\n\n"
        openai(traces.proxy).send(STREAM_HEAD + chunk(data) + LAST_CHUNK)
        assert client.answer().outcome == "complete"
        request, asked = traces.spans_of_one()
        assert request.name == "POST /v1/messages"
        assert asked.name == "chat gpt-4o"
        found = told(asked)
        assert (found["gen_ai.provider.name"], found["server.address"]) == ("openai", OPENAI.removeprefix("http://"))
        assert found["gen_ai.response.model"] == "gpt-4o-2"
        assert found["gen_ai.response.finish_reasons"] == ("stop",)
        assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (20, 5)
        assert found["gen_ai.usage.cache_read.input_tokens"] == 8

    def test_an_openai_client_of_anthropic(self) -> None:
        """The same the other way."""
        traces = traced(routed)
        fields = [("Authorization", f"Bearer {CLAUDE_KEY}")]
        client = ask(traces.proxy, "/v1/chat/completions", headers=fields, model="claude-test", stream=True)
        traces.proxy.upstream.send(STREAM_HEAD + chunk(MESSAGE + END) + LAST_CHUNK)
        assert client.answer().outcome == "complete"
        request, asked = traces.spans_of_one()
        assert request.name == "POST /v1/chat/completions"
        assert asked.name == "chat claude-test"
        found = told(asked)
        assert found["gen_ai.provider.name"] == "anthropic"
        assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (314, 77)

    @pytest.mark.parametrize(
        ("method", "path", "name"),
        [
            ("GET", "/v1/models", "GET /v1/models"),
            ("POST", "/v1/messages/count_tokens?beta=true", "POST /v1/messages/count_tokens"),
            ("DELETE", "/v1/files/file_of_somebody", "DELETE"),
            ("BREW", "/v1/pot", "HTTP"),
        ],
    )
    def test_no_inference(self, method: str, path: str, name: str) -> None:
        """A plain request to an upstream; span names are few, whatever clients ask for."""
        traces = traced()
        client = traces.proxy.client()
        client.request(method=method, target=path, body=b"{}" if method == "POST" else None)
        traces.proxy.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        request, asked = traces.spans_of_one()
        assert (request.name, asked.name) == (name, name.split()[0])
        assert told(request)["url.path"] == path.partition("?")[0]
        assert not [key for key in told(asked) if key.startswith("gen_ai.")]
        if method == "BREW":
            assert told(request)["http.request.method"] == "_OTHER"
            assert told(request)["http.request.method_original"] == "BREW"

    def test_pages_and_the_other_api(self) -> None:
        """Nothing is told of our own pages, nor of what is below /api."""
        traces = traced()
        traces.proxy.get("/livez")
        traces.proxy.asked(method="GET", target="/api/hello", body=None)
        traces.proxy.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        assert traces.spans() == []


def test_nothing_that_was_said_and_no_credential() -> None:
    """In no attribute, name, event or status of any span, whatever came where."""
    traces = traced()
    secrets = [
        "hush-query",
        "hush-key",
        "hush-cookie",
        "secret question",
        "the answer is secret",
        "hush-bearer",
        "hush-proxy",
    ]
    client, upstream = traces.proxy.asked(
        target="/v1/messages?api_key=hush-query",
        body=REQUEST_BODY,
        headers=[
            ("X-Api-Key", "hush-key"),
            ("Cookie", "hush-cookie"),
            ("Authorization", "Bearer hush-bearer"),
            ("Proxy-Authorization", "hush-proxy"),
            ("Traceparent", TRACEPARENT),
        ],
    )
    upstream.send(STREAM_HEAD + chunk(MESSAGE + END) + LAST_CHUNK)
    assert client.answer().outcome == "complete"
    exported = "".join(span.to_json() for span in traces.spans())
    assert "msg_1" in exported
    for secret in secrets:
        assert secret not in exported


def test_the_names_are_those_of_the_conventions() -> None:
    """Every attribute that is not ours is in OpenTelemetry's registry."""
    known = set()
    for room in ("attributes", "_incubating.attributes"):
        package = importlib.import_module(f"opentelemetry.semconv.{room}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            known |= {value for value in vars(importlib.import_module(module.name)).values() if isinstance(value, str)}
    source = (CHECKOUT / "twisted_proxy" / "tracing" / "attributes.py").read_text(encoding="utf-8")
    used = {
        word
        for word in source.split('"')
        if word.startswith(("gen_ai.", "http.", "url.", "server.", "client.", "error.", "user_agent."))
    }
    assert len(used) > 20
    assert used <= known


# Trouble


@attrs.define
class Stuck(SpanExporter):
    """Takes spans when it is let; until then it hangs, as a collector that does not answer."""

    go: threading.Event = attrs.field(factory=threading.Event)
    answers: list[SpanExportResult] = attrs.field(factory=list)
    taken: int = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.go.wait(60)
        self.taken += len(spans)
        return self.answers.pop(0) if self.answers else SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """There is nothing to close."""


def has_taken(exporter: Stuck, count: int) -> bool:
    return exporter.taken == count


def ask_times(traces: Traced, count: int) -> None:
    client = traces.proxy.client()
    for _ in range(count):
        client.request(body=b'{"model":"claude-test"}')
        traces.proxy.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    assert [answer.status for answer in client.answers(count)] == [200] * count


class TestACollectorThatHangs:
    def test_the_queue_is_bounded(self) -> None:
        """What is more is dropped and counted, and nobody waits: not the requests, and the end only for so long."""
        config = attrs.evolve(COLLECTOR, queue=10, batch=4, delay=1)
        traces = traced(exporter=Stuck(), config=config)
        ask_times(traces, 50)
        assert traces.tracing.counts == {"exported": 0, "failed": 0, "dropped": 90}
        done: list[object] = []
        traces.tracing.stop().addBoth(done.append)
        traces.proxy.clock.advance(STOP_TIMEOUT - 0.1)
        assert done == []
        traces.proxy.clock.advance(0.2)
        assert done == [None]

    def test_the_end_says_what_is_lost(self, logs: list[LogEvent]) -> None:
        """How many spans the collector did not get."""
        traces = traced(exporter=Stuck())
        ask_times(traces, 3)
        traces.tracing.stop()
        traces.proxy.clock.advance(STOP_TIMEOUT)
        assert captured(logs, "6 spans did not reach the collector")

    def test_once_it_goes_on(self) -> None:
        """What waited is sent, and there is room again."""
        exporter = Stuck()
        traces = traced(exporter=exporter, config=attrs.evolve(COLLECTOR, queue=10, batch=10, delay=1))
        ask_times(traces, 6)
        assert traces.tracing.counts["dropped"] == 2
        exporter.go.set()
        wait_for(lambda: traces.tracing.counts["exported"] == 10, "ten spans")
        ask_times(traces, 1)
        traces.stop()
        assert traces.tracing.counts == {"exported": 12, "failed": 0, "dropped": 2}
        assert exporter.taken == 12

    def test_a_request_that_ends_after_the_end(self) -> None:
        """It is served and not traced."""
        traces = traced()
        client, upstream = traces.proxy.asked()
        assert traces.spans() == []
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        assert client.answer().status == 200
        assert traces.tracing.counts["dropped"] == 2
        ask_times(traces, 1)
        assert traces.tracing.counts["dropped"] == 2


class TestACollectorThatFails:
    def test_it_is_told_once(self, logs: list[LogEvent]) -> None:
        """When it begins to refuse, and when it takes spans again; each span is counted."""
        exporter = Stuck(answers=[SpanExportResult.FAILURE] * 2)
        exporter.go.set()
        traces = traced(exporter=exporter, config=attrs.evolve(COLLECTOR, batch=2, delay=1))
        for number in range(1, 5):
            ask_times(traces, 1)
            wait_for(functools.partial(has_taken, exporter, 2 * number), "the next two spans")
        traces.stop()
        assert traces.tracing.counts == {"exported": 4, "failed": 4, "dropped": 0}
        assert len(captured(logs, f"{COLLECTOR.endpoint} takes no spans")) == 1
        assert len(captured(logs, f"{COLLECTOR.endpoint} takes spans again")) == 1

    def test_an_exporter_that_raises(self, logs: list[LogEvent]) -> None:
        """It has failed, and is asked again."""

        class Broken(Stuck):
            def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
                raise ZeroDivisionError("with a secret")

        traces = traced(exporter=Broken())
        ask_times(traces, 1)
        traces.stop()
        assert traces.tracing.counts == {"exported": 0, "failed": 2, "dropped": 0}
        (line,) = captured(logs, f"{COLLECTOR.endpoint} takes no spans")
        assert "ZeroDivisionError" in line
        assert "secret" not in line


class TestTheEnvironment:
    @pytest.mark.parametrize(
        ("environ", "endpoint"),
        [
            ({}, None),
            ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
            ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318/v1/traces"),
            ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, "http://c:4318/v1/traces"),
            ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://c/x"}, "https://c/x"),
            (
                {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://[::1]:1/y"},
                "http://[::1]:1/y",
            ),
            ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:hush@c:1/p?key=hush"}, "http://c:1/p"),
            ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "TRUE"}, None),
            ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "false"}, "http://c/v1/traces"),
            ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, None),
            ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "otlp"}, "http://c/v1/traces"),
            (
                {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
                "http://c/v1/traces",
            ),
        ],
    )
    def test_whether_and_where(self, environ: dict[str, str], endpoint: str | None) -> None:
        """By the standard's variables; what may be a credential is not shown."""
        config = TracingConfig.read(environ, lambda: True)
        assert (config.endpoint, config.problems) == (endpoint, ())

    @pytest.mark.parametrize(
        ("more", "says"),
        [
            ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf"),
            ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "http/protobuf"),
            ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER"),
            ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "http://"),
            ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:port"}, "http://"),
            ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "//hush@c"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        ],
    )
    def test_what_cannot_be_done(self, more: dict[str, str], says: str) -> None:
        """It is said which variable is meant, and what to do."""
        config = TracingConfig.read({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", **more}, lambda: True)
        assert config.endpoint is None
        (problem,) = config.problems
        assert problem.startswith("requests are not traced: OTEL_")
        assert says in problem
        assert "hush" not in problem

    def test_without_the_extra(self, logs: list[LogEvent], monkeypatch: pytest.MonkeyPatch) -> None:
        """It is configured and not installed: the log says how to install it, and requests are served."""
        monkeypatch.setattr(tracing_module, "is_installed", lambda: False)
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}
        proxy = InMemoryProxy(
            tracing=lambda clock, config: Tracing.of_environment(clock, environ, config.providers, clock.seconds)
        )
        proxy.service.tracing.start()
        assert any(INSTALL in line for line in captured(logs, "requests are not traced"))
        _, upstream = proxy.asked()
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        assert proxy.in_flight == 0
        assert proxy.service.tracing.counts == {}

    def test_numbers(self) -> None:
        """Of the batching processor; what is no number is said, and the default holds."""
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}
        config = TracingConfig.read(
            {
                **endpoint,
                "OTEL_BSP_MAX_QUEUE_SIZE": "100",
                "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "7",
                "OTEL_BSP_SCHEDULE_DELAY": "50",
            },
            lambda: True,
        )
        assert (config.queue, config.batch, config.delay, config.problems) == (100, 7, 50, ())
        config = TracingConfig.read(
            {**endpoint, "OTEL_BSP_MAX_QUEUE_SIZE": "10", "OTEL_BSP_SCHEDULE_DELAY": "-1"}, lambda: True
        )
        assert (config.queue, config.batch, len(config.problems)) == (10, 10, 1)
        config = TracingConfig.read(
            {**endpoint, "OTEL_BSP_MAX_QUEUE_SIZE": "10", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "11"}, lambda: True
        )
        assert (config.batch, len(config.problems)) == (10, 1)

    def test_what_opentelemetry_complains_about(self, logs: list[LogEvent], monkeypatch: pytest.MonkeyPatch) -> None:
        """It is in the log, as a warning; a field that is malformed without its value, which is a credential."""
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "sometimes")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "hush-header")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.test")
        config = TracingConfig.read({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.test"}, lambda: True)
        proxy = InMemoryProxy(
            tracing=lambda clock, settings: Tracing(Reactor(clock), config, settings.providers, clock.seconds)
        )
        proxy.service.tracing.start()
        lines = captured(logs, "")
        assert any("sometimes" in line for line in lines)
        assert any("OTEL_EXPORTER_OTLP_HEADERS" in line for line in lines)
        assert not any("hush" in line for line in lines)
        Traced(proxy, Stuck()).stop()

    def test_what_opentelemetry_does_not_take(self, logs: list[LogEvent], monkeypatch: pytest.MonkeyPatch) -> None:
        """It is logged, and requests are served; nothing of it stays."""
        monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many")
        before = list(logging.getLogger("opentelemetry").handlers)
        proxy = InMemoryProxy(
            tracing=lambda clock, settings: Tracing(Reactor(clock), COLLECTOR, settings.providers, clock.seconds)
        )
        proxy.service.tracing.start()
        assert captured(logs, "requests are not traced")
        assert logging.getLogger("opentelemetry").handlers == before
        _, upstream = proxy.asked()
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        assert proxy.in_flight == 0


def test_nothing_is_imported_that_is_not_needed() -> None:
    """A proxy that does not trace starts without OpenTelemetry, whether or not that is there."""
    code = (
        "import sys, twisted_proxy.service\n"
        "from twisted_proxy.tracing.tracing import Tracing\n"
        "Tracing.of_environment(None, {}, {}, None).start()\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'requests', 'google.protobuf'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert done.stdout.strip() == "[]"
