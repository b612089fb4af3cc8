"""Recorded requests as files: one of them, or all of a session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.web.http import Request
from zope.interface import implementer

from ...record import coding
from ...record.exchange import Exchange, Role, StoredBody
from ...record.sql import SqlStore
from ...relay.streaming import cut
from .app import Route, set_head
from .calls import Call, Refusal, Reply, valid_id
from .formats import FORMATS, Format, Shown
from .records import Records
from .requests import SANDBOX, not_found

AT_ONCE = 50
"""Exchanges of a session that are read in one go, without their bodies."""


@implementer(IPushProducer)
class Paced:
    """Writes no faster than its client takes it."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._going: Deferred[None] | None = None
        request.registerProducer(self, True)

    def pauseProducing(self) -> None:
        if self._going is None:
            self._going = Deferred()

    def resumeProducing(self) -> None:
        self._going, going = None, self._going
        if going is not None:
            going.callback(None)

    def stopProducing(self) -> None:
        """Whoever waits is cancelled."""

    async def write(self, data: bytes) -> None:
        while self._going is not None:
            waiting: Deferred[None] = Deferred()
            self._going.chainDeferred(waiting)
            await waiting
        if data:
            self._request.write(data)

    def finish(self) -> None:
        self._request.unregisterProducer()
        self._request.finish()


@attrs.frozen
class _File:
    """An answer that is a file, written as it is made."""

    format: Format
    name: str
    pieces: Callable[[], AsyncIterator[bytes]]

    async def send(self, request: Request) -> None:
        set_head(
            request,
            200,
            self.format.content_type,
            {
                "Content-Disposition": f'attachment; filename="{self.name}.{self.format.extension}"',
                "Content-Security-Policy": SANDBOX,
            },
        )
        if request.method == b"HEAD":
            request.finish()
            return
        paced = Paced(request)
        try:
            async for piece in self.pieces():
                await paced.write(piece)
        except Refusal:
            # There is no status to choose any more: the file must be seen to be cut. Whoever finished it now would make
            # it look whole; this ends with the connection.
            request.unregisterProducer()
            cut(request)
            await Deferred()
        paced.finish()


class Exports:
    """``…/export``."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def routes(self) -> Sequence[Route]:
        one, all_ = "/api/requests/<exchange_id>/export", "/api/sessions/<session>/export"
        return (
            Route(method="GET", rule=one, name="exportRequest", handler=self.one),
            Route(method="GET", rule=all_, name="exportSession", handler=self.session),
        )

    async def one(self, call: Call, exchange_id: str) -> Reply:
        form = _format(call)
        valid_id(exchange_id)

        async def read(store: SqlStore) -> Reply:
            exchange = await store.get(exchange_id)
            if exchange is None:
                raise not_found(exchange_id)
            shown = await _shown(store, exchange)
            body = await store.compute(lambda: form.begin() + form.entry(shown, 0) + form.end())
            return Reply(
                body=body,
                content_type=form.content_type,
                fields={
                    "Content-Disposition": f'attachment; filename="{exchange_id}.{form.extension}"',
                    "Content-Security-Policy": SANDBOX,
                },
            )

        return await self._records.ask(read)

    async def session(self, call: Call, session: str) -> _File:
        form = _format(call)
        first = await self._records.ask(lambda store: store.aggregates.members("session", session, limit=1))
        if not first:
            raise Refusal(404, "There is no record of this session.")
        return _File(form, f"session-{_safe(session)}", lambda: self._entries(session, form))

    async def _entries(self, session: str, form: Format) -> AsyncIterator[bytes]:
        yield form.begin()
        after: int | None = None
        index = 0
        seen: dict[str, int] = {}
        while True:
            members = await self._records.ask(partial(_members, session=session, after=after))
            if not members:
                break
            for number, exchange in members:
                after = number
                known = seen.get(exchange.parent or "", 0)
                if exchange.messages is not None:
                    seen[exchange.id] = exchange.messages
                yield await self._records.ask(partial(_entry, form=form, exchange=exchange, index=index, known=known))
                index += 1
        yield form.end()


async def _members(store: SqlStore, *, session: str, after: int | None) -> Sequence[tuple[int, Exchange]]:
    return await store.aggregates.members("session", session, limit=AT_ONCE, after=after)


async def _entry(store: SqlStore, *, form: Format, exchange: Exchange, index: int, known: int) -> bytes:
    return await store.compute(form.entry, await _shown(store, exchange, known), index)


def _format(call: Call) -> Format:
    name = call.choice("format", FORMATS)
    if name is None:
        raise Refusal(400, f"format: the parameter is needed, one of {', '.join(FORMATS)}.")
    return FORMATS[name]


def _safe(name: str) -> str:
    return "".join(each if each.isascii() and (each.isalnum() or each in "-_") else "_" for each in name)[:100]


async def _shown(store: SqlStore, exchange: Exchange, known: int = 0) -> Shown:
    request = await store.body(exchange.id, Role.REQUEST)
    answer = await store.body(exchange.id, Role.ANSWER)
    message = await store.body(exchange.id, Role.MESSAGE) or answer

    def plain(body: StoredBody | None) -> bytes | None:
        return None if body is None else coding.decode(body.data, body.content_encoding).data

    decoded = await store.compute(lambda: plain(message))
    return Shown(exchange=exchange, request=request, answer=answer, message=decoded, known=known)
