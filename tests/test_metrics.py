"""/metrics, in memory: what is counted, what a label may be, who may read, and that the documentation has it all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from tests.memory import LAST_CHUNK, STREAM_HEAD, Answer, InMemoryProxy, captured, chunk, event
from twisted_proxy import __version__
from twisted_proxy.config import Config, ProviderConfig, RecordConfig
from twisted_proxy.config.model import DashboardConfig
from twisted_proxy.metrics.families import FAMILIES
from twisted_proxy.metrics.lag import LOOK_EVERY, LagMonitor
from twisted_proxy.metrics.merging import merge
from twisted_proxy.metrics.metrics import Metrics
from twisted_proxy.metrics.models import MAX_MODELS, NONE, OTHER, ModelLabels
from twisted_proxy.record.control import STORE_BOUNDS, Usage
from twisted_proxy.record.journal import JournalStats
from twisted_proxy.record.process import RecorderStatus
from twisted_proxy.relay.flight import Flight, Verdict
from twisted_proxy.service import ProxyServer
from twisted_proxy.tally import Histogram
from twisted_proxy.web.channel import GUEST_PATIENCE
from twisted_proxy.workers.counts import of_workers

ROOT = Path(__file__).parent.parent
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TOKEN = "t" * 40
OF_A_TEST = {"provider": "anthropic", "model": "claude-test", "endpoint": "messages"}


def scrape(proxy: InMemoryProxy, *fields: str, host: str = "localhost") -> Answer:
    """What somebody on this host is answered."""
    client = proxy.client()
    client.send("\r\n".join(["GET /metrics HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode())
    return client.answer("GET")


def read(proxy: InMemoryProxy) -> Read:
    answer = scrape(proxy)
    assert answer.status == 200
    return Read(list(text_string_to_metric_families(answer.body.decode())))


class Read:
    """Metrics, as a monitoring system reads them."""

    def __init__(self, families: list[Metric]) -> None:
        self.families = {each.name: each for each in families}
        self._samples = [sample for each in families for sample in each.samples]

    def __call__(self, name: str, **labels: str) -> float | None:
        """The sum of the samples that have these labels; ``None`` where there is none."""
        found = [
            sample.value
            for sample in self._samples
            if sample.name == f"claude_proxy_{name}" and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None

    def labels(self, name: str) -> list[dict[str, str]]:
        return [sample.labels for sample in self._samples if sample.name == f"claude_proxy_{name}"]


class TestRequests:
    def test_a_stream(self) -> None:
        """One request more, its times and bytes, when its last byte is out and not before."""
        proxy = InMemoryProxy()
        body = b'{"model":"claude-test","stream":true}'
        client, upstream = proxy.asked(body=body)
        proxy.clock.advance(1.5)
        answer = event("message_start") + event("message_stop")
        upstream.send(STREAM_HEAD + chunk(answer))
        proxy.clock.advance(90)
        seen = read(proxy)
        assert seen("requests_in_flight") == 1
        assert seen("oldest_request_age_seconds") == 91.5
        assert seen("requests_total") is None
        assert seen("upstream_connections", provider="anthropic", state="in_use") == 1
        upstream.send(LAST_CHUNK)
        assert client.answer().outcome == "complete"
        seen = read(proxy)
        assert (seen("requests_in_flight"), seen("oldest_request_age_seconds")) == (0, 0)
        assert seen("requests_total", **OF_A_TEST, status="200", verdict="complete") == 1
        assert seen("time_to_first_byte_seconds_sum", **OF_A_TEST) == 1.5
        assert seen("time_to_first_byte_seconds_bucket", **OF_A_TEST, le="1.0") == 0
        assert seen("time_to_first_byte_seconds_bucket", **OF_A_TEST, le="2.0") == 1
        assert seen("request_duration_seconds_sum", **OF_A_TEST) == 91.5
        assert seen("request_duration_seconds_bucket", **OF_A_TEST, le="+Inf") == 1
        assert seen("request_body_bytes_total", **OF_A_TEST) == len(body)
        assert seen("response_body_bytes_total", **OF_A_TEST) == len(answer)
        assert seen("upstream_errors_total") is None
        assert seen("upstream_connections", provider="anthropic", state="in_use") == 0
        assert seen("upstream_connections", provider="anthropic", state="idle") == 1

    def test_an_upstream_that_cannot_be_reached(self) -> None:
        """Each attempt that is made again, and one error in the end, by its kind."""
        proxy = InMemoryProxy(anthropic_max_retries=1)
        proxy.endpoint.failures = [Refused(), Refused()]
        client = proxy.client()
        client.request()
        proxy.clock.advance(1)
        assert client.answer().status == 502
        seen = read(proxy)
        assert seen("requests_total", status="502", verdict="failed", model=OTHER) == 1
        assert seen("upstream_errors_total", provider="anthropic", kind="refused") == 1
        assert seen("upstream_retries_total", provider="anthropic") == 1
        assert seen("time_to_first_byte_seconds_count") is None or seen("time_to_first_byte_seconds_count") == 0

    def test_an_answer_that_is_cut(self) -> None:
        """The status was 200; the verdict and the error say what came of it."""
        proxy = InMemoryProxy()
        _, upstream = proxy.asked()
        upstream.send(STREAM_HEAD + chunk(event("message_start")))
        upstream.reset()
        proxy.pump()
        seen = read(proxy)
        assert seen("requests_total", **OF_A_TEST, status="200", verdict="truncated") == 1
        assert seen("upstream_errors_total", provider="anthropic", kind="truncated") == 1

    def test_a_client_that_leaves_is_no_error_of_the_upstream(self) -> None:
        """Before there was an answer: no status."""
        proxy = InMemoryProxy()
        client, _ = proxy.asked()
        client.leave()
        proxy.pump()
        seen = read(proxy)
        assert seen("requests_total", status=NONE, verdict="client_gone") == 1
        assert seen("upstream_errors_total") is None

    def test_endpoints(self) -> None:
        """Of a path it is told which of the known ones it is, and no more; our own pages are not counted."""
        proxy = InMemoryProxy()
        paths = {
            "/v1/messages": "messages",
            "/v1/messages/count_tokens?beta=true": "count_tokens",
            "/v1/files/file_secret": "other",
            "/api/anything": "other",
        }
        for path in paths:
            _, upstream = proxy.asked(target=path)
            upstream.send(OK)
        proxy.get("/health")
        seen = read(proxy)
        assert sorted(each["endpoint"] for each in seen.labels("requests_total")) == sorted(set(paths.values()))
        assert seen("requests_total") == len(paths)

    def test_a_refused_request(self) -> None:
        """It names no model, and goes to no provider."""
        proxy = InMemoryProxy(max_message_bytes=10)
        client = proxy.client()
        client.request(body=b"x" * 11)
        assert client.answer().status == 413
        seen = read(proxy)
        assert seen("requests_total", provider=NONE, model=NONE, status="413", verdict="refused") == 1


class TestTheFrontDoor:
    def test_what_it_holds(self) -> None:
        """Connections, bytes of bodies that are still coming, credentials: each beside its limit."""
        proxy = with_door(max_connections=7, max_bodies_bytes=1000, limit_concurrent=5)
        client = proxy.client()
        client.send(
            b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nX-Api-Key: k\r\nContent-Length: 900\r\n\r\n" + b"x" * 600
        )
        proxy.client()
        seen = read(proxy)
        # Beside the two, the one that asks.
        assert (seen("client_connections", site="proxy"), seen("client_connections_max", site="proxy")) == (3, 7)
        assert (seen("request_bodies_bytes"), seen("request_bodies_max_bytes")) == (600, 1000)
        assert seen("limited_credentials", site="proxy") == 1
        client.leave()
        assert read(proxy)("request_bodies_bytes") == 0

    def test_what_it_turns_away(self) -> None:
        """One connection too many that wants to be served; who asks for the metrics is let in all the same."""
        proxy = with_door(max_connections=1)
        proxy.client()
        guest = proxy.client()
        guest.request()
        assert guest.answer().status == 503
        seen = read(proxy)
        assert seen("client_connections_turned_away_total", site="proxy") == 1
        assert seen("refusals_total", site="proxy", status="503") == 1

    def test_a_guest_that_says_nothing(self) -> None:
        """It is told 503 when its time is over, and counted so."""
        proxy = with_door(max_connections=1)
        proxy.client()
        guest = proxy.client()
        proxy.clock.advance(GUEST_PATIENCE)
        assert guest.answer().status == 503
        seen = read(proxy)
        assert seen("client_connections_turned_away_total") == seen("refusals_total", status="503") == 1

    @pytest.mark.parametrize(
        ("sent", "wait", "status"),
        [
            (b"POST /v1/messages HT", 15, 408),
            (b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nx", 600, 408),
            (b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 501\r\n\r\n", 0, 413),
            (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n", 0, 414),
            (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, 0, 431),
            (b"GET / HTTP/1.1\r\n\r\n", 0, 400),
        ],
    )
    def test_what_it_refuses(self, sent: bytes, wait: float, status: int) -> None:
        """By status, whether or not it could be read whose request it is; once each."""
        proxy = with_door(max_message_bytes=500)
        client = proxy.client()
        client.send(sent)
        proxy.clock.advance(wait)
        assert client.answer().status == status
        proxy.clock.advance(60)
        seen = read(proxy)
        assert seen("refusals_total", site="proxy", status=str(status)) == seen("refusals_total") == 1
        assert seen("client_connections_turned_away_total") == 0

    @pytest.mark.parametrize("openai", [False, True])
    def test_too_many_requests_and_bodies(self, openai: bool) -> None:
        """429 and 529, under these names also where an OpenAI client is told others."""
        proxy = with_door(limit_concurrent=1, max_bodies_bytes=1000)
        path = "/v1/chat/completions" if openai else "/v1/messages"
        key = ("Authorization", "Bearer sk-ant-x")
        holding = proxy.client()
        holding.send(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n" + b"x" * 600)
        for _ in range(2):
            client = proxy.client()
            client.request(target=path, headers=[key], body=ASKING)
        assert client.answer().status == 429
        client = proxy.client()
        client.request(target=path, body=b" " * 900)
        assert client.answer().status == (503 if openai else 529)
        seen = read(proxy)
        assert (seen("refusals_total", status="429"), seen("refusals_total", status="529")) == (1, 1)
        assert seen("refusals_total") == 2

    def test_the_sites_of_a_server(self) -> None:
        """A server's own, and the one that only the dashboard has."""
        config = Config(
            listen=("tcp:0",), dashboard=DashboardConfig(listen=("tcp:0",)), record=RecordConfig(mode="off")
        )
        nobody: Any = object()
        server = ProxyServer(config, Clock(), agent=lambda _: nobody)
        assert list(server.metrics.doors) == ["proxy", "dashboard"]
        assert server.metrics.doors["proxy"] is server.site
        assert server.metrics.doors["dashboard"] is server.dashboard_site

    def test_in_a_site_of_another(self) -> None:
        """It is not ours to count, and no number pretends that there were none."""
        seen = read(InMemoryProxy())
        assert seen("client_connections") is None
        assert seen("refusals_total") is None


ASKING = b'{"model":"claude-test","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}'


def with_door(**options: Any) -> InMemoryProxy:
    """A proxy that tells of its site."""
    proxy = InMemoryProxy(**options)
    proxy.service.metrics.doors["proxy"] = proxy.site
    return proxy


class TestModels:
    def test_a_name_that_no_upstream_took_is_no_label(self) -> None:
        """Who makes up names gets 404 for them, and `other`; so does an estimate that no upstream was asked for."""
        proxy = InMemoryProxy(openai=ProviderConfig(kind="openai", api_key="sk-x"))
        for number in range(3):
            _, upstream = proxy.asked(body=b'{"model":"made-up-%d"}' % number)
            upstream.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        client = proxy.client()
        client.request(target="/v1/messages/count_tokens", body=b'{"model":"gpt-made-up","messages":[]}')
        assert client.answer().status == 200
        seen = read(proxy)
        assert seen("requests_total", model=OTHER) == 4
        assert {each["model"] for each in seen.labels("requests_total")} == {OTHER}

    def test_once_taken_its_errors_are_told_by_name(self) -> None:
        """429 of a model that is in use is of interest by its name."""
        proxy = InMemoryProxy()
        for status in (200, 429):
            _, upstream = proxy.asked()
            upstream.send(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)
        assert read(proxy)("requests_total", **OF_A_TEST, status="429", verdict="complete") == 1

    def test_there_is_an_end_to_them(self) -> None:
        """However many an upstream takes."""
        labels = ModelLabels()
        given = {labels.label(f"model-{number}", taken=True) for number in range(1000)}
        assert len(given) == MAX_MODELS + 1
        assert labels.label("model-0", taken=False) == "model-0"
        assert labels.label(f"model-{MAX_MODELS}", taken=True) == OTHER

    @pytest.mark.parametrize("name", ["", " x", 'a"b', "x" * 101, "a\nb", "é", "<script>", OTHER, NONE])
    def test_what_looks_like_none(self, name: str) -> None:
        """Whatever the upstream says to it."""
        labels = ModelLabels()
        assert labels.label(name, taken=True) == OTHER

    def test_none(self) -> None:
        """A request that names no model."""
        assert ModelLabels().label(None, taken=True) == NONE


@attrs.define
class Records:
    """As a `Keeper` tells of recording."""

    mode: str = "full"
    spool_max_bytes: int = 1000
    journal_stats: JournalStats = JournalStats(  # noqa: RUF009 (it is frozen)
        pending_bytes=1, spool_bytes=2, lost_bodies=3, lost_exchanges=4, problem=None
    )
    recorder_status: RecorderStatus = RecorderStatus(  # noqa: RUF009 (it is frozen)
        running=True, recorded=5, behind_bytes=6, incomplete=7, interrupted=8, restarts=9
    )
    usage: tuple[Usage, ...] = ()
    store_writes: Histogram = attrs.field(factory=lambda: Histogram(STORE_BOUNDS))
    begin: Any = None

    def describe(self) -> dict[str, object]:
        return {}


class TestRecording:
    def test_how_it_goes(self) -> None:
        """Numbers of the journal and of the recorder's process, and the time that the store took."""
        records = Records()
        records.store_writes.observe(0.02)
        seen = read(InMemoryProxy(keeper=records))
        assert seen("recording", mode="full") == 1
        values = {
            "recording_up": 1,
            "journal_pending_bytes": 1,
            "spool_bytes": 2,
            "lost_bodies_total": 3,
            "lost_exchanges_total": 4,
            "recorded_exchanges_total": 5,
            "recorder_behind_bytes": 6,
            "recorded_incomplete_total": 7,
            "recorded_interrupted_total": 8,
            "recorder_restarts_total": 9,
            "spool_max_bytes": 1000,
            "store_write_seconds_count": 1,
            "store_write_seconds_sum": 0.02,
        }
        assert {name: seen(name) for name in values} == values

    @pytest.mark.parametrize("whose", ["journal_stats", "recorder_status"])
    def test_trouble(self, whose: str) -> None:
        """Whoever has it."""
        records = Records()
        setattr(records, whose, attrs.evolve(getattr(records, whose), problem="the disk is full"))
        answer = scrape(InMemoryProxy(keeper=records))
        assert b"\nclaude_proxy_recording_up 0.0\n" in answer.body
        assert b"disk" not in answer.body

    def test_tokens_and_money(self) -> None:
        """By kind, provider and model; what the recorder counts together, and names that are none, are `other`."""
        tokens = {"input": 10, "output": 20, "cache_read": 300, "cache_write_5m": 4, "cache_write_1h": 5}
        usages = [
            Usage(provider=provider, model=model, tokens=tokens, cost_nanousd=1_500_000_000, unpriced=1, events=7)
            for provider, model in (
                ("anthropic", "claude-test"),
                ("anthropic", None),
                ("anthropic", 'a"b'),
                (None, "x"),
            )
        ]
        seen = read(InMemoryProxy(keeper=Records(usage=tuple(usages))))
        of_one = {"provider": "anthropic", "model": "claude-test"}
        assert {kind: seen("tokens_total", **of_one, kind=kind) for kind in tokens} == tokens
        assert seen("cost_usd_total", **of_one) == 1.5
        assert seen("unpriced_answers_total", **of_one) == 1
        assert seen("response_events_total", **of_one) == 7
        assert seen("cost_usd_total") == 6
        assert {(each["provider"], each["model"]) for each in seen.labels("cost_usd_total")} == {
            ("anthropic", "claude-test"),
            ("anthropic", NONE),
            ("anthropic", OTHER),
            (NONE, "x"),
        }

    def test_nothing_is_recorded(self) -> None:
        """RECORD=off: nobody reads tokens in answers, and no number pretends that there were none."""
        seen = read(InMemoryProxy())
        assert seen("recording", mode="off") == 1
        for name in ("recording_up", "tokens_total", "cost_usd_total", "spool_bytes", "store_write_seconds_count"):
            assert seen(name) is None, name


class TestTheProcess:
    def test_what_runs(self) -> None:
        """Versions, and what the kernel knows of the process."""
        seen = read(InMemoryProxy())
        assert seen("build_info", version=__version__) == 1
        assert "process_resident_memory_bytes" in seen.families

    def test_draining(self) -> None:
        """And for how long it may go on."""
        proxy = InMemoryProxy(drain_timeout=100)
        assert (read(proxy)("draining"), read(proxy)("drain_remaining_seconds")) == (0, 100)
        proxy.asked()
        proxy.service.drain.begin()
        proxy.clock.advance(30)
        assert (read(proxy)("draining"), read(proxy)("drain_remaining_seconds")) == (1, 70)

    def test_lag(self) -> None:
        """A call that comes late is counted with all of its lateness; one in time with none."""
        clock = Clock()
        monitor = LagMonitor(clock)
        monitor.start()
        monitor.start()
        clock.advance(LOOK_EVERY)
        clock.advance(LOOK_EVERY + 3)
        assert sum(monitor.lag.counts) == 2
        assert monitor.lag.sum == 3
        monitor.stop()
        assert clock.getDelayedCalls() == []
        monitor.stop()

    def test_a_clock_that_was_set_back(self) -> None:
        """It is no lag."""
        clock = Clock()
        monitor = LagMonitor(clock)
        monitor.start()
        clock.rightNow = -100.0
        (call,) = clock.getDelayedCalls()
        call.reset(0)
        clock.advance(0)
        assert monitor.lag.sum == 0

    def test_the_service_measures_while_it_runs(self) -> None:
        """From its start to the end of its drain."""
        proxy = InMemoryProxy()
        proxy.service.startService()
        proxy.clock.advance(LOOK_EVERY)
        assert read(proxy)("reactor_lag_seconds_count") == 1
        proxy.service.stopService()
        proxy.clock.advance(10 * LOOK_EVERY)
        assert sum(proxy.service.metrics.lag.lag.counts) == 1

    def test_two_proxies_in_a_process(self) -> None:
        """Each has its own."""
        one, other = InMemoryProxy(), InMemoryProxy()
        one.asked()
        assert (read(one)("requests_in_flight"), read(other)("requests_in_flight")) == (1, 0)


def test_a_bound_is_below_what_is_above_it() -> None:
    """As Prometheus has it: `le` means at most."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert (histogram.counts, histogram.sum) == ([2, 2, 1], 7.5)


class TestThePage:
    def test_formats(self) -> None:
        """Prometheus asks for OpenMetrics, curl for anything."""
        proxy = InMemoryProxy()
        plain = scrape(proxy)
        assert (plain.header("content-type") or "").startswith("text/plain; version=0.0.4")
        assert plain.header("cache-control") == "no-store"
        openmetrics = scrape(proxy, "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
        assert (openmetrics.header("content-type") or "").startswith("application/openmetrics-text")
        assert openmetrics.body.endswith(b"# EOF\n")

    def test_it_is_neither_counted_nor_logged(self, logs: list[LogEvent]) -> None:
        """It is asked every few seconds."""
        proxy = InMemoryProxy()
        scrape(proxy)
        assert captured(logs, "access") == []
        assert read(proxy)("requests_total") is None

    def test_head(self) -> None:
        """The head alone."""
        client = InMemoryProxy().client()
        client.send(b"HEAD /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = client.answer("HEAD")
        assert (answer.status, answer.body, answer.outcome) == (200, b"", "complete")

    @pytest.mark.parametrize("host", ["localhost", "LocalHost:3001", "127.0.0.1:1", "127.9.9.9", "[::1]", "[::1]:80"])
    def test_names_of_this_host(self, host: str) -> None:
        """Whatever the port."""
        assert scrape(InMemoryProxy(), host=host).status == 200

    @pytest.mark.parametrize(
        "host", ["evil.test", "127.0.0.1.evil.test", "localhost.evil.test", "10.0.0.1", "[::2]", "[fe80::1]", "0.0.0.0"]
    )
    def test_other_names(self, host: str) -> None:
        """A page from elsewhere can make its name lead to this host; it cannot make it a loopback address."""
        answer = scrape(InMemoryProxy(), host=host)
        assert answer.status == 403
        assert answer.json["error"]["type"] == "permission_error"
        assert "127.0.0.1" in answer.json["error"]["message"]
        assert b"claude_proxy_" not in answer.body

    @pytest.mark.parametrize(
        "field", ["X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1", "Via: 1.1 x", "X-Real-IP: 127.0.0.1"]
    )
    def test_behind_another_proxy(self, field: str) -> None:
        """It comes from this host, and speaks for somebody else."""
        assert scrape(InMemoryProxy(), field).status == 403

    @pytest.mark.parametrize(
        ("peer", "status"),
        [
            (IPv4Address("TCP", "127.0.0.2", 1), 200),
            (IPv6Address("TCP", "::1", 1), 200),
            (IPv6Address("TCP", "::ffff:127.0.0.1", 1), 200),
            (UNIXAddress(b"/run/x"), 200),
            (UNIXAddress(None), 200),
            (IPv4Address("TCP", "192.168.0.7", 1), 403),
            (IPv6Address("TCP", "::ffff:192.168.0.7", 1), 403),
            (IPv6Address("TCP", "fe80::1%eth0", 1), 403),
            (HostnameAddress(b"localhost", 1), 403),
        ],
    )
    def test_peers(self, peer: IAddress, status: int) -> None:
        """Only this host's own."""
        proxy = InMemoryProxy()
        client = proxy.client()
        client.channel.getPeer = lambda: peer  # type: ignore[method-assign]
        client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.answer("GET").status == status

    @pytest.mark.parametrize(
        ("dashboard", "field", "status"),
        [
            ({"token": TOKEN}, "X: y", 401),
            ({"token": TOKEN}, f"Authorization: Bearer {TOKEN}", 200),
            ({"token": TOKEN}, "Authorization: Bearer wrong", 401),
            ({"password": "correct horse battery"}, "X: y", 401),
            ({"password": "correct horse battery", "token": TOKEN}, f"Authorization: Bearer {TOKEN}", 200),
        ],
    )
    def test_with_a_token_or_a_password(self, dashboard: dict[str, Any], field: str, status: int) -> None:
        """Who may look at the dashboard; to be on this host is not enough then, and not necessary."""
        proxy = InMemoryProxy(dashboard=DashboardConfig(**dashboard))
        for host in ("localhost", "proxy.test"):
            answer = scrape(proxy, field, host=host)
            assert (answer.status, b"claude_proxy_" in answer.body) == (status, status == 200)


# What is told of them elsewhere


def families_with_samples() -> Iterator[Metric]:
    """Every family that there can be, of a proxy to which everything has happened."""
    usage = Usage(provider="anthropic", model="m", tokens={"input": 1}, cost_nanousd=1, unpriced=0)
    proxy = InMemoryProxy(keeper=Records(usage=(usage,)))
    metrics: Metrics = proxy.service.metrics
    proxy.site.count_refusal(429)
    metrics.doors["proxy"] = proxy.site
    metrics.spans = lambda: {"exported": 1}
    flight = Flight(
        request_id="x", method="POST", path="/v1/messages", query=None, received_at=0.0, on_cut=lambda *_: None
    )
    flight.verdict = Verdict.TRUNCATED
    metrics.count(flight, 1.0)
    yield from metrics.registry.collect()
    yield from merge(of_workers(2, 2, 1))


def test_the_families_are_those_of_the_registry() -> None:
    """Names, kinds and labels are as the table says; beside them there is only what the library says of the process."""
    exposed = {}
    for metric in families_with_samples():
        if metric.name.startswith("process_"):
            continue
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = {frozenset(sample.labels) - {"le"} for sample in metric.samples}
        assert len(labels) == 1, name
        exposed[name] = (metric.type, labels.pop(), metric.documentation)
    assert exposed == {each.name: (each.kind, frozenset(each.labels), each.meaning) for each in FAMILIES}


def test_the_documentation_has_them_all() -> None:
    """docs/metrics.md: a row for each, with its kind, its labels and what it means."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(claude_proxy_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    documented = {name: (kind, labels, meaning) for name, kind, labels, meaning in rows}
    assert len(rows) == len(documented)
    assert documented == {
        each.name: (each.kind, ", ".join(f"`{label}`" for label in each.labels), each.meaning) for each in FAMILIES
    }
    for metric in families_with_samples():
        if metric.name.startswith("process_"):
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            assert f"`{name}`" in text


DASHBOARD = ROOT / "deploy" / "grafana" / "claude-proxy.json"
_SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def _expressions(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for name, each in value.items():
            if name in ("expr", "definition", "query") and isinstance(each, str):
                yield each
            else:
                yield from _expressions(each)
    elif isinstance(value, list):
        for each in value:
            yield from _expressions(each)


def test_the_dashboard_asks_for_what_is_there() -> None:
    """Each metric of each query, with the labels that it has; and every family is on a panel."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    names = {f"{each.name}{suffix}": each for each in FAMILIES for suffix in _SUFFIXES[each.kind]}
    process = {
        sample.name
        for metric in families_with_samples()
        if metric.name.startswith("process_")
        for sample in metric.samples
    }
    shown = set()
    expressions = list(_expressions(dashboard))
    assert len(expressions) > 20
    for expression in expressions:
        found = re.findall(r"\b((?:claude_proxy|process)_\w+)(?:\{([^}]*)\})?", expression)
        assert found or expression == "prometheus", expression
        labels = {"le", "job", "instance"}
        for name, matchers in found:
            assert name in names or name in process, f"{name} in {expression}"
            own = set(names[name].labels) if name in names else set()
            shown.add(names[name].name if name in names else name)
            labels |= own
            for label in re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\"", matchers):
                assert label in own | {"le", "job", "instance"}, f"{label} in {expression}"
        for group in re.findall(r"\b(?:by|on|group_left|ignoring)\s*\(([^)]*)\)", expression):
            assert {each.strip() for each in group.split(",")} - {""} <= labels, expression
    assert shown >= {each.name for each in FAMILIES}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
