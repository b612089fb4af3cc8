"""
A process that reads stores for the tests, which are synchronous: ``python -m tests.store_reader``.

Each line of its standard input is a question: a pickled `Question` in base64. Each line of its output is the answer: a
value, or an exception, in the same form. The store is opened for each question, and closed behind it.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Sequence
from typing import Any

import attrs
from twisted.internet import stdio
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorCore
from twisted.internet.protocol import connectionDone
from twisted.internet.task import react
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from twisted_proxy.record.exchange import Exchange, Role, StoredBody
from twisted_proxy.record.opening import store_of
from twisted_proxy.record.store import Query, RecordStore


@attrs.frozen(kw_only=True)
class Question:
    """
    ``query`` asks for all exchanges that are meant, ``ids`` for these with their bodies: ``{id: (Exchange, {Role:
    StoredBody})}``, without those that are not there.
    """

    db_path: str
    database_url: str | None
    query: Query | None = None
    ids: Sequence[str] = ()


Answer = dict[str, tuple[Exchange, dict[Role, StoredBody]]]


def pack(value: object) -> bytes:
    return base64.b64encode(pickle.dumps(value))


def unpack(line: bytes) -> Any:
    return pickle.loads(base64.b64decode(line))


async def exchanges(store: RecordStore, query: Query) -> Answer:
    found: Answer = {}
    before = None
    while True:
        page = await store.page(query, limit=200, before=before)
        found |= {each.id: (each, {}) for each in page.exchanges}
        if not page.more:
            return found
        before = page.exchanges[-1].id


async def kept(store: RecordStore, ids: Sequence[str]) -> Answer:
    found: Answer = {}
    for each in ids:
        exchange = await store.get(each)
        if exchange is None:
            continue
        bodies = [(role, await store.body(each, role)) for role in Role]
        found[each] = exchange, {role: body for role, body in bodies if body is not None}
    return found


async def answer(reactor: Any, question: Question) -> Answer:
    store = store_of(reactor, db_path=question.db_path, database_url=question.database_url)
    try:
        await store.open()
        if question.query is not None:
            return await exchanges(store, question.query)
        return await kept(store, question.ids)
    finally:
        await store.close()


class Questions(LineOnlyReceiver):
    delimiter = b"\n"

    def __init__(self, reactor: IReactorCore) -> None:
        self._reactor = reactor
        self.over: Deferred[None] = Deferred()

    def lineReceived(self, line: bytes) -> None:
        asked = Deferred.fromCoroutine(answer(self._reactor, unpack(line)))
        asked.addBoth(lambda result: self._say(result.value if isinstance(result, Failure) else result))

    def _say(self, value: object) -> None:
        assert self.transport is not None
        self.transport.write(pack(value) + b"\n")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.over.callback(None)


async def main(reactor: Any) -> None:
    questions = Questions(reactor)
    stdio.StandardIO(questions, reactor=reactor)
    await questions.over


if __name__ == "__main__":
    # What is pickled must have the same name on both sides: not `__main__`.
    from tests import store_reader

    react(store_reader.main)
