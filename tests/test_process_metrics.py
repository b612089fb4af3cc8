"""A real process, scraped, and looked at with ``claude-proxy status``."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.processes import CHECKOUT, WAIT_LIMIT, Process, Proxy, StandIn, clean_environment, proxy, wait_for
from tests.sockets import Client, call, play, prompt


def scrape(running: Proxy) -> Callable[..., float]:
    """A function that sums up the samples of a name that have some labels."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=WAIT_LIMIT)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    assert response.status == 200, text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def value(name: str, **labels: str) -> float:
        return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())

    return value


def status(running: Proxy, directory: Path) -> tuple[int, str]:
    """The exit status of ``claude-proxy status``, and what it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "twisted_proxy.cli", "status", running.url],
        cwd=directory,
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_what_passes_is_counted(tmp_path: Path, upstream: StandIn) -> None:
    """A request at its end; its tokens, events and the store's time as soon as it is stored; the reactor's lag."""
    with proxy(tmp_path, upstream, RECORD="full") as running:
        got = call(running.port, "POST", "/v1/messages", (), prompt(stream=True))
        assert (got.status, got.whole) == (200, True)
        seen = wait_for(
            lambda: (seen := scrape(running))("claude_proxy_recorded_exchanges_total") == 1 and seen,
            "the exchange is stored",
            30,
        )
        assert seen("claude_proxy_requests_total", provider="anthropic", endpoint="messages", status="200") == 1
        assert seen("claude_proxy_response_body_bytes_total") == len(got.body)
        assert seen("claude_proxy_tokens_total", provider="anthropic", kind="output") > 0
        assert seen("claude_proxy_response_events_total") == got.body.count(b"\n\n")
        assert seen("claude_proxy_store_write_seconds_count") >= 1
        assert seen("claude_proxy_store_write_seconds_sum") > 0
        assert seen("claude_proxy_recording_up") == 1
        assert seen("claude_proxy_reactor_lag_seconds_count") > 0
        assert seen("process_open_fds") > 0


def test_status_of_a_life(tmp_path: Path, upstream: StandIn) -> None:
    """Serving with one in flight, draining, gone: in words, and by the exit status."""
    with proxy(tmp_path, upstream) as running:
        code, text = status(running, tmp_path)
        assert (code, text.splitlines()[1]) == (0, "in flight: 0")
        with Client(running.port) as client:
            client.ask("POST", "/v1/messages", [play("auto?gate=status@3")], prompt(stream=True))
            begun = client.read_until(b'"ping"}\n\n')
            code, text = status(running, tmp_path)
            assert code == 0
            assert re.search(r"^in flight: 1, the oldest for \d+\.\ds$", text, re.MULTILINE), text
            running.signal(signal.SIGTERM)
            wait_for(lambda: running.get("/health")[0] == 503, "/health answers 503")
            code, text = status(running, tmp_path)
            assert code == 2
            assert re.search(r"is draining, for 3\dm\d\ds at most$", text, re.MULTILINE), text
            upstream.release("status")
            assert client.answer(already=begun).whole
        running.wait()
        code, text = status(running, tmp_path)
        assert (code, "nothing listens there" in text) == (1, True)


def test_watching_ends_on_ctrl_c(tmp_path: Path, upstream: StandIn) -> None:
    """With the exit status of what it saw last, and without a traceback."""
    with proxy(tmp_path, upstream) as running:
        command = (sys.executable, "-m", "twisted_proxy.cli", "status", running.url, "--watch")
        with Process(command, environment=clean_environment(PYTHONPATH=str(CHECKOUT)), cwd=tmp_path) as watching:
            watching.wait_for_line("is serving")
            watching.wait_for_line("is serving", start=len(watching.lines))
            watching.signal(signal.SIGINT)
            assert watching.wait() == 0
        assert "Traceback" not in watching.log
