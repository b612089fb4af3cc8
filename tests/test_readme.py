"""What the README shows is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock

from twisted_proxy.service import ProxyService

from .memory import Client

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


class _Keeper:
    """In the place of the one that starts a process and a thread."""

    def __init__(self, *_: object) -> None:
        self.begin = None
        self.did: list[str] = []

    def start(self) -> None:
        self.did.append("start")

    def describe(self) -> dict[str, object]:
        return {"status": "ok"}

    async def close(self) -> None:
        self.did.append("close")


def test_the_embedding_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ten lines make an application that serves the proxy below /claude, records, and drains when it stops."""
    monkeypatch.setattr("twisted_proxy.service.Keeper", _Keeper)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    reactor = MemoryReactorClock()
    monkeypatch.setattr("twisted.internet.reactor", reactor, raising=False)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    application = IService(names["application"])
    application.privilegedStartService()
    application.startService()
    ((port, site, _, interface),) = reactor.tcpServers
    assert (port, interface) == (8080, "127.0.0.1")

    wire = Client()
    channel: Any = site.buildProtocol(wire.getPeer())
    channel.callLater = reactor.callLater
    wire.protocol = channel
    channel.makeConnection(wire)
    wire.request("GET", "/claude/livez", body=None)
    assert wire.answer("GET").json["in_flight"] == 0

    assert isinstance(names["proxy"], ProxyService)
    stopped: list[object] = []
    stopping: Deferred[None] = names["proxy"].stopService()
    stopping.addCallback(stopped.append)
    assert names["proxy"].drain.draining
    assert stopped == [None]
    keeper: Any = names["proxy"].keeper
    assert keeper.did == ["start", "close"]


def test_the_links_lead_somewhere() -> None:
    """Each file that the README, or a page of docs, names is there."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_verdicts_and_kinds_of_the_log_are_documented() -> None:
    """A machine that reads the log finds each word in docs/logs.md."""
    from twisted_proxy.relay.flight import Verdict
    from twisted_proxy.relay.upstream import FailureKind

    text = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    for word in [*Verdict, *FailureKind]:
        assert f"`{word.value}`" in text, word.value
