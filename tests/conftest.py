"""Fixtures that several test modules share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from tests.postgresql import database, postgresql
from tests.processes import Proxy, StandIn, proxy, standin
from tests.recorded import Reader
from tests.sockets import RawUpstream
from twisted_proxy.config import SETTINGS

if TYPE_CHECKING:
    from tests.dashboard import Dashboard

__all__ = ["database", "postgresql"]

# Where it is ignored (in what a shell runs in the background), every process of ours would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("tests.sdk_contract")

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("claude-proxy", deadline=None)
hypothesis.settings.load_profile("claude-proxy")


ALONE = {
    "test_chaos",
    "test_front_door",
    "test_process_handover",
    "test_process_records",
    "test_process_records_faults",
    "test_process_rolling",
    "test_recorder_process",
    "test_store_postgres",
    "test_store_sqlite",
}
"""Modules whose tests wait for what a full machine does last: a process at nice 19, a thread, a balancer's check."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in ALONE:
            item.add_marker(pytest.mark.alone)


@implementer(ILogObserver)
class _Kept(list[LogEvent]):
    def __call__(self, event: LogEvent) -> None:
        self.append(event)


@pytest.fixture
def logs() -> Iterator[list[LogEvent]]:
    """What is logged while the test runs."""
    kept = _Kept()
    globalLogPublisher.addObserver(kept)
    yield kept
    globalLogPublisher.removeObserver(kept)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and an environment in which nothing is set."""
    monkeypatch.chdir(tmp_path)
    for setting in SETTINGS:
        monkeypatch.delenv(setting.env, raising=False)
    return tmp_path


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Dashboard]:
    """The dashboard's API, in memory, over a store of its own."""
    from tests.dashboard import dashboard

    with dashboard(tmp_path) as made:
        yield made


@pytest.fixture(scope="class")
def raw() -> Iterator[RawUpstream]:
    """An upstream whose `handle` each test sets."""
    with RawUpstream(lambda connection: None) as running:
        yield running


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """The misbehaving stand-in, one for all tests: tell requests apart by `StandIn.mark`, never `reset` it."""
    with standin(tmp_path_factory.mktemp("standin")) as running:
        yield running


@pytest.fixture(scope="session")
def tls_upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """The same over TLS."""
    with standin(tmp_path_factory.mktemp("standin-tls"), tls=True) as running:
        yield running


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """The API of OpenAI's kind."""
    with standin(tmp_path_factory.mktemp("provider")) as running:
        yield running


@pytest.fixture(scope="session")
def proxied(tmp_path_factory: pytest.TempPathFactory, upstream: StandIn) -> Iterator[Proxy]:
    """A real ``twistd -n claude-proxy`` before `upstream`, with default settings: it records."""
    with proxy(tmp_path_factory.mktemp("proxy"), upstream, RECORD="full") as running:
        yield running


@pytest.fixture(scope="session")
def tls_proxied(tmp_path_factory: pytest.TempPathFactory, tls_upstream: StandIn) -> Iterator[Proxy]:
    """The same before `tls_upstream`."""
    with proxy(tmp_path_factory.mktemp("proxy-tls"), tls_upstream) as running:
        yield running


@pytest.fixture(scope="session")
def reader() -> Iterator[Reader]:
    """A process that reads stores."""
    with Reader() as running:
        yield running
