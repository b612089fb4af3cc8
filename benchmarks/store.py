"""
What a store costs, and how quickly it finds: python benchmarks/store.py [--exchanges N] [--database URL]

A session of 60 turns whose last request is about 400 KB, in batches as the recorder makes them; then the first page of
each filter in a store of so many exchanges. In a temporary directory, or in an empty PostgreSQL database.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tests.conversations import Session
from twisted_proxy.record import blobs
from twisted_proxy.record.exchange import Body, BytesContent, Exchange, Record, Role
from twisted_proxy.record.postgres import postgres_store
from twisted_proxy.record.sql import SqlStore
from twisted_proxy.record.sqlite import SqliteDriver
from twisted_proxy.record.store import Query
from twisted_proxy.wire.ids import request_id

reactor: Any = installed_reactor

BEGIN = 1_790_000_000_000_000
BATCH = 64
HOUR = 3_600_000_000


def record(number: int, *, text: str, body: bytes | None, chance: random.Random, **fields: Any) -> Record:
    received_at = BEGIN + 1_000_000 * number
    known: dict[str, Any] = {
        "id": request_id(received_at // 1000, chance.randbytes(10)),
        "instance": "bench",
        "received_at": received_at,
        "method": "POST",
        "path": "/v1/messages",
        "verdict": "complete",
        "status": 200,
        "stream": True,
        "user_agent": "claude-cli/2.1.330 (external, cli)",
        "request_headers": tuple((f"x-stainless-header-{n}", "some value") for n in range(15)),
        "response_headers": tuple((f"anthropic-header-{n}", "some value") for n in range(15)),
        "rate_limits": {f"anthropic-ratelimit-unified-{n}": "1790000000" for n in range(12)},
        "usage": {f"counter_{n}": n for n in range(8)},
    }
    bodies = () if body is None else (Body(role=Role.REQUEST, content=BytesContent(body)),)
    return Record(exchange=Exchange(**{**known, **fields}), bodies=bodies, text=text)


async def sessions(store: SqlStore) -> None:
    chance = random.Random(1)
    turns = list(Session(tool_result=4500).bodies(60))
    size = sum(map(len, turns))
    print(f"session: {len(turns)} turns, {size / 1e6:.1f} MB, the last one {len(turns[-1]) / 1e3:.0f} KB")
    wall, cpu = time.monotonic(), time.process_time()
    for some in _batches(enumerate(turns), 4):
        await store.write([record(number, text="", body=body, chance=chance) for number, body in some])
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    stored = await store.stored_bytes()
    last = len(blobs.compress(turns[-1]))
    print(
        f"  stored {stored['bodies'] / 1e3:.0f} KB: {stored['bodies'] / last:.2f} x the last one compressed "
        f"({last / 1e3:.0f} KB); all told {stored['total'] / 1e3:.0f} KB"
    )
    print(f"  {1e9 * cpu / size:.2f} ms CPU a MB, {1e9 * wall / size:.2f} ms a MB; {1e3 * wall / 60:.1f} ms a turn")
    wall = time.monotonic()
    noise = [chance.randbytes(2_000_000) for _ in range(20)]
    wall, cpu = time.monotonic(), time.process_time()
    for some in _batches(noise, 4):
        await store.write([record(1000 + n, text="", body=body, chance=chance) for n, body in enumerate(some)])
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    print(f"  2 MB that nothing shares: {1e3 * cpu / 40:.2f} ms CPU a MB, {1e3 * wall / 40:.2f} ms a MB")
    wall = time.monotonic()
    deleted = await store.delete_all()
    print(f"  deleted: {1e3 * (time.monotonic() - wall) / deleted:.2f} ms an exchange")


async def pages(store: SqlStore, exchanges: int) -> None:
    chance = random.Random(2)
    words = [f"w{number:05d}" for number in range(30_000)]
    often = list(itertools.accumulate(1 / (number + 1) for number in range(len(words))))

    def one(number: int) -> Record:
        session = number // 50
        return record(
            number,
            text=" ".join(["common", *chance.choices(words, cum_weights=often, k=150)]) + (" needle" * (number == 5)),
            body=b'{"model":"claude","messages":[{"role":"user","content":"%d"}]}' % number,
            chance=chance,
            model=f"claude-{number % 3}" if number != 7 else "claude-rare",
            routed_model="other" if number % 97 == 0 else None,
            session=f"{session:036d}",
            agent=f"{number:036d}" if number % 5 == 0 else None,
            conversation=f"req_{session:032d}",
            request_class="main" if number % 2 else "subagent",
            path="/v1/messages/count_tokens" if number % 2 else "/v1/messages",
            verdict="interrupted" if number == 9 else "complete",
            status=529 if number % 1000 == 1 else 200,
            cost_nanousd=number,
            message_id=f"msg_{number:024d}",
            chain=number.to_bytes(20, "big"),
            messages=number % 50,
        )

    wall = cpu = 0.0
    for some in _batches(range(exchanges), BATCH):
        batch = [one(number) for number in some]
        wall -= time.monotonic()
        cpu -= time.process_time()
        await store.write(batch)
        wall += time.monotonic()
        cpu += time.process_time()
    stored = await store.stored_bytes()
    print(
        f"{exchanges} exchanges: {1e3 * wall / exchanges:.2f} ms each, {1e3 * cpu / exchanges:.2f} of CPU; "
        f"reckoned {stored['total'] / 1e6:.0f} MB"
    )
    queries = {
        "all": Query(),
        "model": Query(model="claude-1"),
        "model, rare": Query(model="claude-rare"),
        "model, unknown": Query(model="nobody's"),
        "model, routed": Query(model="other"),
        "session": Query(session=f"{1:036d}"),
        "agent": Query(agent=f"{500:036d}"),
        "conversation": Query(conversation=f"req_{3:032d}"),
        "class": Query(request_class="subagent"),
        "status": Query(status=200),
        "status, rare": Query(status=529),
        "verdict": Query(verdict="complete"),
        "verdict, rare": Query(verdict="interrupted"),
        "in flight": Query(in_flight=True),
        "not in flight": Query(in_flight=False),
        "path": Query(path="/v1/messages"),
        "path, unknown": Query(path="/v1/files"),
        "since": Query(since=BEGIN + HOUR),
        "until, the oldest": Query(until=BEGIN + HOUR // 60),
        "cost at least": Query(cost_at_least=10),
        "cost, the oldest": Query(cost_at_most=10),
        "model and status, none": Query(model="claude-1", status=529, cost_at_least=1, cost_at_most=3),
        "path and class, none of many": Query(path="/v1/messages", request_class="main"),
        "model, path and class, none": Query(model="claude-1", path="/v1/messages", request_class="main"),
        "text, in all": Query(text="common"),
        "text, in one": Query(text="needle"),
        "text, in none": Query(text="nowhere"),
        "text, two in many": Query(text="w00000 w00001"),
        "text, a phrase of many": Query(text='"w00000 w00001"'),
        "text, a phrase of none": Query(text='"w00000 needle"'),
        "text and session": Query(text="common", session=f"{1:036d}"),
        "text and rare verdict": Query(text="common", verdict="interrupted"),
        "text and model": Query(text="w00003", model="claude-1"),
        "text, path and class, none of many": Query(text="w00000", path="/v1/messages", request_class="main"),
        "text in all, path and class, none": Query(text="common", path="/v1/messages", request_class="main"),
        "phrase, path and class, none": Query(text='"w00000 w00001"', path="/v1/messages", request_class="main"),
    }
    slow = 0.0
    for name, query in queries.items():
        took = []
        for _ in range(5):
            start = time.monotonic()
            page = await store.page(query, limit=50)
            took.append(time.monotonic() - start)
        start = time.monotonic()
        found = await store.count(query, at_most=10_000)
        counted = time.monotonic() - start
        slow = max(slow, took[0])
        print(
            f"  {name:38} first {1e3 * took[0]:6.1f} ms, then {1e3 * statistics.median(took):6.1f} ms, "
            f"{len(page.exchanges):3} of {found:5}{'+' if found == 10_000 else ' '}, counted in {1e3 * counted:6.1f} ms"
        )
    print(f"  the slowest: {1e3 * slow:.1f} ms")


def _batches(values: Any, size: int) -> Iterator[list[Any]]:
    each = iter(values)
    while some := list(itertools.islice(each, size)):
        yield some


async def measure(arguments: argparse.Namespace, path: Path) -> None:
    store = postgres_store(reactor, arguments.database) if arguments.database else SqlStore(SqliteDriver(reactor, path))
    await store.open()
    await sessions(store)
    await pages(store, arguments.exchanges)
    await store.close()


def sizes(path: Path) -> None:
    connection = sqlite3.connect(path)
    print(f"  the file: {path.stat().st_size / 1e6:.0f} MB")
    for name, size in connection.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC LIMIT 12"):
        print(f"    {name:30} {size / 1e6:6.1f} MB")
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchanges", type=int, default=100_000)
    parser.add_argument("--database", help="postgresql://…: an empty database")
    arguments = parser.parse_args()
    failed: list[Failure] = []
    with tempfile.TemporaryDirectory() as directory:
        done = Deferred.fromCoroutine(measure(arguments, Path(directory) / "records.db"))
        done.addErrback(failed.append)
        done.addBoth(lambda _: reactor.callLater(0, reactor.stop))
        reactor.run()
        if not failed and not arguments.database:
            sizes(Path(directory) / "records.db")
    if failed:
        sys.exit(failed[0].getTraceback())


if __name__ == "__main__":
    main()
