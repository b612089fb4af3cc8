"""A real process that traces: spans at a collector as it decodes them, and collectors that are of no use."""

from __future__ import annotations

import gzip
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.processes import Proxy, StandIn, proxy, wait_for
from tests.sockets import Client, call, free_port, play, prompt
from tests.test_process_drain import open_stream, sent_body
from tests.test_process_metrics import scrape
from twisted_proxy.tracing.tracing import STOP_TIMEOUT

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "hush-collector-key"


class Collector(ThreadingHTTPServer):
    """An OTLP collector: keeps what it is sent, and answers with `status`."""

    daemon_threads = True

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.fields: list[dict[str, str]] = []
        self.spans: list[tuple[dict[str, Any], Any]] = []
        """Each with the attributes of its resource."""
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        self.server.fields.append({name.lower(): value for name, value in self.headers.items()})
        if self.server.status == 200:
            for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                of_resource = values(each.resource.attributes)
                self.server.spans += [(of_resource, span) for scope in each.scope_spans for span in scope.spans]
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """The test says what went wrong."""


def values(attributes: Any) -> dict[str, Any]:
    """Attributes by name, as Python's values; of a list, its first."""
    found = {}
    for each in attributes:
        value = each.value.array_value.values[0] if each.value.HasField("array_value") else each.value
        found[each.key] = getattr(value, value.WhichOneof("value"))
    return found


@contextmanager
def collector(status: int = 200) -> Iterator[Collector]:
    running = Collector(status)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.shutdown()
        running.server_close()
        thread.join(10)


@contextmanager
def silent_collector() -> Iterator[str]:
    """Takes connections, and never answers."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=100)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()


def test_spans_reach_a_collector(tmp_path: Path, upstream: StandIn) -> None:
    """
    With times, parents and tokens, under the service's name, while it runs and the last ones at its end.

    HTTP proxies of the environment are not asked, and the collector's key is in no line of the log.
    """
    mark = upstream.mark()
    with (
        collector() as taking,
        proxy(
            tmp_path,
            upstream,
            OTEL_EXPORTER_OTLP_ENDPOINT=taking.url,
            OTEL_EXPORTER_OTLP_HEADERS=f"authorization=Bearer%20{SECRET}",
            OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
            OTEL_SERVICE_NAME="of-a-test",
            RECORD="full",
            HTTP_PROXY=f"http://127.0.0.1:{free_port()}",
            NO_PROXY="",
        ) as running,
    ):
        running.wait_for_line("requests are traced; spans go to http://127.0.0.1")
        before = time.time_ns()
        fields = [("traceparent", f"00-{TRACE}-{PARENT}-01")]
        assert call(running.port, "POST", "/v1/messages", fields, prompt(stream=True)).whole
        wait_for(lambda: len(taking.spans) == 2, "two spans", 30)
        (_, asked), (resource, request) = sorted(taking.spans, key=lambda each: each[1].kind, reverse=True)
        assert (request.name, asked.kind, request.kind) == ("POST /v1/messages", 3, 2)
        assert request.trace_id.hex() == asked.trace_id.hex() == TRACE
        assert (request.parent_span_id.hex(), asked.parent_span_id) == (PARENT, request.span_id)
        assert before <= request.start_time_unix_nano <= asked.start_time_unix_nano <= asked.end_time_unix_nano
        assert asked.end_time_unix_nano <= request.end_time_unix_nano <= time.time_ns()
        assert (resource["service.name"], "service.instance.id" in resource) == ("of-a-test", True)
        told = values(asked.attributes)
        assert told["gen_ai.usage.output_tokens"] > 0
        assert told["gen_ai.response.finish_reasons"] == "end_turn"
        assert told["server.port"] == upstream.port
        (seen,) = upstream.requests(mark)
        assert [value for name, value in seen.headers if name.lower() == "traceparent"] == [f"00-{TRACE}-{PARENT}-01"]
        assert scrape(running)("claude_proxy_spans_total", outcome="exported") == 2

        # It ends with the proxy, which has not had the time to send its spans.
        stream, start = open_stream(running, "auto?gate=traced@3")
        with stream:
            running.signal(signal.SIGTERM)
            wait_for(lambda: running.get("/health")[0] == 503, "the drain")
            upstream.release("traced")
            stream.answer(already=start)
        assert running.wait() == -signal.SIGTERM
        assert len(taking.spans) == 4
        assert {each["authorization"] for each in taking.fields} == {f"Bearer {SECRET}"}
        assert SECRET not in running.log
        assert "Traceback" not in running.log


@pytest.mark.parametrize("kind", ["silent", "refusing", "absent"])
def test_a_collector_that_is_of_no_use(tmp_path: Path, upstream: StandIn, kind: str) -> None:
    """Requests are served as ever, what waits is bounded, and the end comes in time."""
    with silent_collector() as silent, collector(503) as refusing:
        url = {"silent": silent, "refusing": refusing.url, "absent": f"http://127.0.0.1:{free_port()}"}[kind]
        with proxy(
            tmp_path,
            upstream,
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{url}/v1/traces",
            OTEL_BSP_MAX_QUEUE_SIZE="20",
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="4",
            OTEL_BSP_SCHEDULE_DELAY="10",
            OTEL_EXPORTER_OTLP_TIMEOUT="60" if kind == "silent" else "1",
        ) as running:
            body = prompt(stream=True)
            with Client(running.port) as client:
                for _ in range(40):
                    got = client.call("POST", "/v1/messages", [play("auto")], body)
                    assert (got.status, got.whole) == (200, True)
                    assert got.body == sent_body("auto", body)
            seen = scrape(running)
            assert seen("claude_proxy_spans_total", outcome="exported") == 0
            lost = seen("claude_proxy_spans_total", outcome="dropped") + seen(
                "claude_proxy_spans_total", outcome="failed"
            )
            assert lost >= 80 - 20
            if kind != "silent":
                running.wait_for_line(r"takes no spans \(.+\): they are lost until it does")
            # Long before the minute that the collector would have.
            assert running.stop(STOP_TIMEOUT + 20) == -signal.SIGTERM
            if kind == "silent":
                assert "20 spans did not reach the collector before the end" in running.log
            assert "Traceback" not in running.log
            assert running.log.count("takes no spans") <= 1
            assert "Transient error" not in running.log


def test_it_is_not_asked_for(proxied: Proxy) -> None:
    """No variable, no tracing, no number of it."""
    assert "requests are traced" not in proxied.log
    assert scrape(proxied)("claude_proxy_spans_total") == 0
