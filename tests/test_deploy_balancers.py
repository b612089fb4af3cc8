"""The files for Traefik, HAProxy and systemd under ``deploy/``: those programs take them, and what they say is right.

That both balancers lose no request with these files is shown where slots are rolled.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.balancers import (
    DEPLOY,
    Balancer,
    haproxy,
    haproxy_file,
    haproxy_program,
    program,
    traefik,
)
from tests.load import ECHO, Ask
from tests.processes import Proxy, StandIn, proxy
from tests.sockets import Client, call, play, prompt
from twisted_proxy.config import Config
from twisted_proxy.config.values import parse_seconds
from twisted_proxy.record.keeper import CLOSE_TIMEOUT
from twisted_proxy.service import CUT_GRACE
from twisted_proxy.web.channel import LAST_CALL

CONFIG: Final = Config()
LONGEST_STOP: Final = CONFIG.drain_timeout + CUT_GRACE + CLOSE_TIMEOUT + LAST_CALL
"""Seconds from SIGTERM to the end of the process, with the defaults."""
SYSTEMD: Final = DEPLOY / "systemd"
UNITS: Final = ("claude-proxy.service", "claude-proxy.socket", "claude-proxy@.service")


def static() -> Any:
    return yaml.safe_load((DEPLOY / "traefik" / "traefik.yml").read_text())


def dynamic() -> Any:
    return yaml.safe_load((DEPLOY / "traefik" / "claude-proxy.yml").read_text())


def stated_lame_duck(path: Path) -> float:
    """What a file says that the slots' lame duck is."""
    found = re.search(r"DRAIN_LAME_DUCK=(\w+)", path.read_text())
    assert found
    return parse_seconds(found.group(1))


def haproxy_value(pattern: str) -> float:
    """A time, or a number, of HAProxy's file."""
    found = re.search(rf"^\s*{pattern} (\w+)\s*$", (DEPLOY / "haproxy" / "haproxy.cfg").read_text(), re.MULTILINE)
    assert found, pattern
    return parse_seconds(found.group(1))


class TestTimes:
    def test_traefik(self) -> None:
        """The lame duck is interval + timeout; Traefik closes idle connections first, cuts no upload and no stream."""
        (service,) = dynamic()["http"]["services"].values()
        check = service["loadBalancer"]["healthCheck"]
        assert check["path"] == "/health"
        lame_duck = stated_lame_duck(DEPLOY / "traefik" / "claude-proxy.yml")
        assert lame_duck == parse_seconds(check["interval"]) + parse_seconds(check["timeout"])
        (transport,) = dynamic()["http"]["serversTransports"].values()
        timeouts = transport["forwardingTimeouts"]
        assert 0 < parse_seconds(timeouts["idleConnTimeout"]) < CONFIG.idle_timeout
        assert parse_seconds(timeouts["responseHeaderTimeout"]) == 0
        entry = static()["entryPoints"]["web"]["transport"]
        assert parse_seconds(entry["respondingTimeouts"]["readTimeout"]) == 0
        assert parse_seconds(entry["respondingTimeouts"]["writeTimeout"]) == 0
        assert parse_seconds(entry["lifeCycle"]["graceTimeOut"]) > CONFIG.drain_timeout

    def test_haproxy(self) -> None:
        """One failed check takes a slot out, within the lame duck; silence is claude-proxy's to end."""
        text = (DEPLOY / "haproxy" / "haproxy.cfg").read_text()
        check = re.search(r"default-server check inter (\w+) fall 1 rise 1\n", text)
        assert check
        lame_duck = stated_lame_duck(DEPLOY / "haproxy" / "haproxy.cfg")
        assert lame_duck == parse_seconds(check.group(1)) + haproxy_value("timeout check")
        assert haproxy_value("timeout server") > CONFIG.anthropic.idle_timeout
        assert haproxy_value("timeout client") > CONFIG.read_timeout
        assert haproxy_value("hard-stop-after") > CONFIG.drain_timeout

    def test_systemd(self) -> None:
        """A slot is killed only after the latest end that it may come to by itself."""
        for unit in ("claude-proxy.service", "claude-proxy@.service"):
            found = re.search(r"^TimeoutStopSec=(\d+)min$", (SYSTEMD / unit).read_text(), re.MULTILINE)
            assert found
            assert int(found.group(1)) * 60 > LONGEST_STOP


def test_haproxy_takes_its_file(tmp_path: Path) -> None:
    """Without a warning."""
    path = haproxy_file(tmp_path, (1, 2), 3, tmp_path / "admin.sock", {})
    checked = subprocess.run(
        (haproxy_program(), "-c", "-f", path), capture_output=True, text=True, timeout=30, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout + checked.stderr


class TestBefore:
    """A slot behind a balancer with the shipped files."""

    @pytest.fixture(params=["traefik", "haproxy"])
    def balancer(self, request: pytest.FixtureRequest, tmp_path: Path, slots: list[Proxy]) -> Iterator[Balancer]:
        make = {"traefik": traefik, "haproxy": haproxy}[request.param]
        with make(tmp_path, [slot.port for slot in slots]) as made:
            yield made

    @pytest.fixture
    def slots(self, tmp_path: Path, upstream: StandIn) -> Iterator[list[Proxy]]:
        with proxy(tmp_path, upstream) as blue, proxy(tmp_path, upstream) as green:
            yield [blue, green]

    def test_what_passes(self, balancer: Balancer, slots: list[Proxy]) -> None:
        """Each event as it comes; large bodies and headers; and nobody is taken for somebody of this host."""
        with Client(balancer.port) as client:
            client.ask("POST", "/v1/messages", [play("auto?gate=balanced@3")], prompt(stream=True))
            # The rest comes when the test says so: nothing waited for it.
            start = client.read_until(b"event: message_start") + client.read_until(b"event: ping")
            assert b"chunked" in start
            slots_see = [slot.in_flight() for slot in slots]
            assert sorted(slots_see) == [0, 1]
        large = Ask(scenario=ECHO, size=20_000_000)
        answer = call(balancer.port, "POST", "/v1/messages", [play(ECHO)], large.body, limit=60)
        assert large.wrong(answer) == ""
        headers = [(f"x-long-{number}", "y" * 6000) for number in range(9)]
        answer = call(balancer.port, "POST", "/v1/messages", headers, prompt())
        assert answer.status == 200
        assert call(balancer.port, "GET", "/api/requests").status == 403


def units_for_here(directory: Path) -> list[Path]:
    """The units with a program that is here; the template as the two slots that it is for."""
    made = []
    for name in UNITS:
        text = (SYSTEMD / name).read_text()
        if name.endswith(".service"):
            assert "ExecStart=/opt/claude-proxy/bin/twistd " in text
            text = text.replace("/opt/claude-proxy/bin/twistd", shutil.which("true") or "/bin/true")
        for real in (name.replace("@", "@blue"), name.replace("@", "@green")) if "@" in name else (name,):
            path = directory / real
            path.write_text(text)
            made.append(path)
    return made


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """No key is unknown, no value is bad, and what one names is there."""
    analyze = program("systemd-analyze", "On Debian: apt install systemd.")
    verified = subprocess.run(
        (analyze, "verify", *units_for_here(tmp_path)), capture_output=True, text=True, timeout=60, check=False
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_the_services_may_do_little(tmp_path: Path) -> None:
    """Of the ten points of exposure that systemd counts they have no more than two."""
    analyze = program("systemd-analyze", "On Debian: apt install systemd.")
    for path in units_for_here(tmp_path):
        if path.suffix == ".service":
            checked = subprocess.run(
                (analyze, "security", "--offline=true", "--threshold=20", "--no-pager", path),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert checked.returncode == 0, checked.stdout[-1000:] + checked.stderr


def test_the_units_fit_together() -> None:
    """The slots listen on the socket that the socket unit names."""
    environment = dict(re.findall(r"^Environment=(\w+)=(.*)$", (SYSTEMD / UNITS[2]).read_text(), re.MULTILINE))
    (name,) = re.findall(r"^FileDescriptorName=(.*)$", (SYSTEMD / UNITS[1]).read_text(), re.MULTILINE)
    assert environment == {"LISTEN": f"systemd:domain=INET:name={name}"}
    assert Config(listen=(environment["LISTEN"],)).listen == (environment["LISTEN"],)
