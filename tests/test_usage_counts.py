"""What recorded answers were: summed up by the recorder, told to the proxy, and kept when a recorder dies."""

from __future__ import annotations

from typing import Any

from tests.spooled import INSTANCE
from tests.test_recorder_process import SETTINGS, FakeReactor
from twisted_proxy.record import control
from twisted_proxy.record.control import MAX_USAGES, STORE_BOUNDS, Usage
from twisted_proxy.record.exchange import Exchange
from twisted_proxy.record.process import RecorderProcess
from twisted_proxy.record.usage_counts import UsageCounts


def exchange(model: str | None = "claude-test", **fields: object) -> Exchange:
    known = {"id": "req_1", "instance": INSTANCE, "received_at": 0, "method": "POST", "path": "/", "model": model}
    return Exchange(**{**known, **fields})  # type: ignore[arg-type]


def usage(model: str | None = "claude-test", **fields: object) -> Usage:
    tokens = {"input": 1, "output": 2, "cache_read": 3, "cache_write_5m": 4, "cache_write_1h": 5}
    known = {"provider": "anthropic", "model": model, "tokens": tokens, "cost_nanousd": 10, "unpriced": 0, "events": 6}
    return Usage(**{**known, **fields})  # type: ignore[arg-type]


TOKENS: dict[str, Any] = {
    "input_tokens": 1,
    "output_tokens": 2,
    "cache_read_tokens": 3,
    "cache_write_5m_tokens": 4,
    "cache_write_1h_tokens": 5,
}


def test_sums() -> None:
    """By provider, and by the model that was asked upstream."""
    counts = UsageCounts()
    counts.add(exchange(provider="anthropic", cost_nanousd=10, **TOKENS), 6)
    counts.add(exchange("alias", routed_model="claude-test", provider="anthropic", output_tokens=100))
    counts.add(exchange(None, provider=None, cost_nanousd=1, input_tokens=7))
    both = {"input": 1, "output": 102, "cache_read": 3, "cache_write_5m": 4, "cache_write_1h": 5}
    assert counts.told() == (
        usage(tokens=both, unpriced=1),
        usage(None, provider=None, tokens={**dict.fromkeys(both, 0), "input": 7}, cost_nanousd=1, events=0),
    )


def test_what_used_nothing() -> None:
    """A refusal, an error, a list of models: they are no answers of a model."""
    counts = UsageCounts()
    counts.add(exchange())
    counts.add(exchange(cost_nanousd=0))
    assert counts.told() == ()


def test_events_alone() -> None:
    """A stream that was cut before it told of tokens has no price to miss."""
    counts = UsageCounts()
    counts.add(exchange(), 3)
    (only,) = counts.told()
    assert (only.events, only.unpriced, only.cost_nanousd) == (3, 0, 0)


def test_there_is_an_end_to_them() -> None:
    """A line to the proxy has a limit, and its clients choose the names. No token is lost."""
    counts = UsageCounts()
    for number in range(3 * MAX_USAGES):
        counts.add(exchange(f"{number}" + "x" * 250, provider="anthropic", **TOKENS))
    told = counts.told()
    assert len(told) == MAX_USAGES + 1
    assert sum(each.tokens["output"] for each in told) == 6 * MAX_USAGES
    assert len(control.encode(control.Status(usage=told))) < control.MAX_LINE / 2
    assert control.from_recorder(control.encode(control.Status(usage=told))) == control.Status(usage=told)


def test_they_go_on_across_restarts() -> None:
    """They are of the proxy's life, not of one recorder's; so are the times of the store."""
    reactor = FakeReactor()
    process = RecorderProcess(reactor, SETTINGS)
    process.start()
    writes = (1,) * (len(STORE_BOUNDS) + 1)
    reactor.children[0].say(control.Status(usage=(usage(),), writes=writes, writes_seconds=1.5))
    assert process.usage[0] == usage()
    reactor.children[0].die(9)
    assert process.usage[0] == usage()
    reactor.advance(0.5)
    reactor.children[1].say(
        control.Status(usage=(usage(), usage("other", provider=None)), writes=writes, writes_seconds=0.5)
    )
    twice = {kind: 2 * count for kind, count in usage().tokens.items()}
    assert process.usage == (usage(tokens=twice, cost_nanousd=20, events=12), usage("other", provider=None))
    assert process.store_writes.counts == [2] * len(writes)
    assert process.store_writes.sum == 2.0
    reactor.children[1].die(9)
    assert process.store_writes.sum == 2.0


def test_a_recorder_of_another_version() -> None:
    """One that knows nothing of this tells nothing; one that has more bounds is believed as far as ours go."""
    reactor = FakeReactor()
    process = RecorderProcess(reactor, SETTINGS)
    process.start()
    reactor.children[0].say(control.Status(recorded=1))
    assert (process.usage, sum(process.store_writes.counts)) == ((), 0)
    reactor.children[0].say(control.Status(writes=(1,) * 100))
    assert sum(process.store_writes.counts) == len(STORE_BOUNDS) + 1
