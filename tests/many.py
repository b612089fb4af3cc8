"""Many exchanges, of the shape that a day of Claude Code sessions leaves. The same on each run, but for the time."""

from __future__ import annotations

import itertools
import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import psycopg2
from psycopg2.extras import execute_values

from tests.conversations import Session
from twisted_proxy.record.exchange import Body, BytesContent, Exchange, Link, Record, Role
from twisted_proxy.record.rows import first_number
from twisted_proxy.record.sql import SqlStore
from twisted_proxy.wire.ids import request_id

TURNS: Final = 40
"""Requests of a session: a main conversation, a subagent's, and a few that belong to none."""
BATCH: Final = 64

_REQUEST_FIELDS: Final = tuple((f"x-stainless-header-{number}", "some value") for number in range(15))
_RESPONSE_FIELDS: Final = tuple((f"anthropic-header-{number}", "some value") for number in range(15))


def records(count: int, *, newest: int, apart: int = 1_000_000) -> Iterator[Record]:
    """
    So many records, the oldest first.

    The first request of a conversation has its body, about 60 KB; bodies of the others are not kept.

    :param newest: when the last of them was received, in microseconds since the Unix epoch.
    :param apart: microseconds between two.
    """
    chance = random.Random(1)
    opening = json.loads(next(Session(tool_result=4500).bodies(1)))
    for number in itertools.count():
        session = _session(chance, opening, number, newest - (count - 1 - number * TURNS) * apart, apart)
        left = count - number * TURNS
        yield from itertools.islice(session, left)
        if left <= TURNS:
            return


async def fill(store: SqlStore, count: int, *, newest: int, apart: int = 1_000_000) -> None:
    """Write :func:`records` into a store."""
    found = records(count, newest=newest, apart=apart)
    while batch := list(itertools.islice(found, BATCH)):
        await store.write(batch)


def multiply(place: Path | str, times: int, *, span: int, bodies: bool = True) -> None:
    """
    Put copies of all exchanges into a store, until there are ``times`` as many: seconds, where it would take minutes to
    write them. A search does not find them. Nobody may write meanwhile.

    :param place: a SQLite file, or the URL of a PostgreSQL database.
    :param span: milliseconds by which each copy is older than the one before.
    :param bodies: whether copies have theirs; without, they have no headers either, and take a fraction of the time.
    """
    tables = ("exchanges", "bodies") if bodies else ("exchanges",)
    without = {} if bodies else {"holds": 0, "request_headers": None, "response_headers": None, "rate_limits": None}
    shifts = [number * span for number in range(1, times)]
    if isinstance(place, Path):
        with closing(sqlite3.connect(place)) as file, file:
            file.row_factory = sqlite3.Row
            file.execute("PRAGMA synchronous = OFF")
            file.execute("PRAGMA cache_size = -200000")
            for table in tables:
                rows = [{**dict(row), **without} for row in file.execute(f"SELECT * FROM {table}")]
                names = ", ".join(rows[0])
                copies = (_older(row, shift) for shift in shifts for row in rows)
                file.executemany(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(rows[0]))})", copies)
        return
    with closing(psycopg2.connect(place)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for table in tables:
                cursor.execute(f"SELECT * FROM {table}")
                names = ", ".join(column.name for column in cursor.description or ())
                rows = [{**dict(zip(names.split(", "), row, strict=True)), **without} for row in cursor.fetchall()]
                copies = (_older(row, shift) for shift in shifts for row in rows)
                execute_values(cursor, f"INSERT INTO {table} ({names}) VALUES %s", copies, page_size=500)
                # What its autovacuum does sooner or later.
                cursor.execute(f"VACUUM ANALYZE {table}")


def _older(row: dict[str, Any], milliseconds: int) -> tuple[Any, ...]:
    """The values of a row of an exchange, or of its body, as if it had been then."""
    # The number of an id begins with its time.
    numbers = first_number(milliseconds * 1000)
    new = dict(row)
    for name in row.keys() & {"id", "conversation", "parent"}:
        new[name] = _earlier(row[name], milliseconds)
    for name in row.keys() & {"number", "exchange"}:
        new[name] = row[name] - numbers
    if "received_at" in row:
        new["received_at"] = row["received_at"] - 1000 * milliseconds
    if row.get("session"):
        new["session"] = f"{milliseconds:08x}{row['session'][8:]}"
    return tuple(new.values())


def _earlier(exchange_id: str | None, milliseconds: int) -> str | None:
    if exchange_id is None:
        return None
    return f"req_{int(exchange_id[4:16], 16) - milliseconds:012x}{exchange_id[16:]}"


def _session(chance: random.Random, opening: dict[str, Any], number: int, begin: int, apart: int) -> Iterator[Record]:
    session = f"{chance.getrandbits(128):032x}"
    agent = f"{chance.getrandbits(64):016x}"
    last: dict[str, Exchange] = {}
    for turn in range(TURNS):
        kind = "auxiliary" if turn % 8 == 7 else "subagent" if 12 <= turn < 24 else "main"
        received_at = begin + turn * apart
        own = request_id(received_at // 1000, chance.randbytes(10))
        before = None if kind == "auxiliary" else last.get(kind)
        # Now and then a prefix breaks: nothing is read from the cache.
        broke = before is not None and chance.random() < 0.02
        left = 0 if before is None else (before.cache_read_tokens or 0) + (before.cache_write_1h_tokens or 0)
        failed = chance.random() < 0.01
        first = chance.randrange(400_000, 3_000_000)
        exchange = Exchange(
            id=own,
            instance="many",
            received_at=received_at,
            body_read_us=900,
            connected_us=1500,
            headers_us=first - 1000,
            first_event_us=None if failed else first,
            last_byte_us=first + chance.randrange(1_000_000, 20_000_000),
            method="POST",
            path="/v1/messages",
            query="beta=true",
            client="127.0.0.1",
            verdict="truncated" if failed else "complete",
            status=200,
            request_bytes=60_000 + 4000 * turn,
            response_bytes=20_000,
            model={"main": "claude-opus-4-5", "subagent": "claude-sonnet-4-5", "auxiliary": "claude-haiku-4-5"}[kind],
            provider="anthropic",
            stream=True,
            session=session,
            prompt=f"{session[:20]}-{turn // 8}",
            agent=agent if kind == "subagent" else None,
            request_class=kind,
            agent_type="general-purpose" if kind == "subagent" else None,
            user_agent="claude-cli/2.1.330 (external, cli)",
            credential="6f9f3a52d1c2",
            rate_limits={f"anthropic-ratelimit-unified-{field}-utilization": "0.31" for field in ("5h", "7d")},
            request_headers=_REQUEST_FIELDS,
            response_headers=_RESPONSE_FIELDS,
            message_id=f"msg_{number:012d}{turn:012d}",
            stop_reason="tool_use",
            usage={f"counter_{field}": field for field in range(8)},
            input_tokens=10,
            output_tokens=chance.randrange(50, 2000),
            cache_read_tokens=0 if broke else left,
            cache_write_5m_tokens=0,
            cache_write_1h_tokens=(left if broke else 0) + chance.randrange(500, 5000) + (0 if before else 20_000),
            cost_nanousd=chance.randrange(1_000_000, 300_000_000),
            conversation=None if kind == "auxiliary" else own if before is None else before.conversation,
            parent=None if before is None else before.id,
            link=None if before is None else Link.CONTINUES,
            messages=1 if before is None else (before.messages or 0) + 2,
            chain=chance.randbytes(20),
        )
        bodies: tuple[Body, ...] = ()
        if kind != "auxiliary":
            last[kind] = exchange
            if before is None:
                asked = {**opening, "messages": [{"role": "user", "content": f"{kind} task {number}: mend it"}]}
                content = BytesContent(json.dumps(asked, separators=(",", ":")).encode())
                bodies = (Body(role=Role.REQUEST, content=content, content_type="application/json"),)
        yield Record(exchange=exchange, bodies=bodies, text=f"task {number}")
